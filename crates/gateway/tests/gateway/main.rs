//! The gateway over real sockets, in front of a broker that does what the tests say.

#![expect(clippy::unwrap_used, reason = "what a test stands on is there, or the test ends")]

mod connections;
mod fake;
mod handlers;
mod long_names;
mod transactions;
mod versions;
