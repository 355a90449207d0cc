//! Requests, responses, headers, control records and the consumer protocol: one module a message, generated.

include!(concat!(env!("OUT_DIR"), "/messages.rs"));
