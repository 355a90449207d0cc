//! What happened in a run with faults, and whether it may have happened.
//!
//! A run writes a history: one JSON object a line for each operation of each client, each fault, and, at the end, the log as
//! it was read back and the files of each replica ([`event`]). [`History`] holds it compactly; [`check::check`] gives the
//! anomalies by class; [`unavailability`] says for how long nothing was acknowledged, and beside which faults.
//!
//! Pure: no clock, no file, no thread. Memory is bounded by the number of operations: about a kilobyte for each record with all
//! that is known of it (sent, acknowledged, polled, read back, in three replicas), a gigabyte for a million of these.

pub mod event;
mod history;
mod names;

pub mod check;
pub mod report;
pub mod unavailability;

pub use history::{History, HistoryError};
