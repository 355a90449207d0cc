//! The codec against Kafka's own bytes, against hostile ones, and against a second implementation.

mod hostile;
mod memory;
mod oracle;
mod samples;
mod vectors;
