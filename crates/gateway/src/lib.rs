//! The Kafka listeners of a broker: connections, limits, versions, and a handler for each API.
//!
//! Reading order: `config`, `listener` and `stream` (what an operator chooses; accepting, sweeping, stopping; what
//! connections are made of), `connection` (one task, with `input`, `output` and `watch`), `dispatch` (the table of what is
//! served), `call` and `resolve` (what handlers stand on), `refusal` (the table of error codes), `sessions` (KIP-227),
//! `handlers` (one module for each API), `metrics`.
//!
//! Invariants: below this crate nobody knows an API version; answers leave in the order of the requests; what one client
//! sends costs its own connection at most; an API is advertised exactly if it is served.

mod config;
mod listener;
mod stream;

mod connection;
mod input;
mod output;
mod watch;

mod call;
mod dispatch;
mod error_counts;
mod refusal;
mod resolve;
mod sessions;

mod handlers;
mod metrics;

pub use config::{Descriptors, Limits};
pub use listener::{BoundListener, Gateway, GatewayConfig, GatewayHandle};
pub use metrics::{ApiMetrics, GatewayMetrics, LATENCY_BOUNDS_US};
pub use stream::{Incoming, Link, Port};
