//! What a broker counts while it works, as plain atomics: written without a lock, read when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Changes of in-sync replicas that this broker proposed as a leader.
#[derive(Debug, Default)]
pub(crate) struct IsrCounters {
    /// Those that took a member out.
    pub(crate) shrinks: Counter,
    /// Those that took a member in.
    pub(crate) expands: Counter,
    /// Those that were refused, or got no answer.
    pub(crate) failed: Counter,
}

/// What clients wrote to and read from one replica.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes of batches that were appended as a leader.
    pub(crate) bytes_in: Counter,
    /// Records in them.
    pub(crate) messages_in: Counter,
    /// Bytes of batches that consumers were sent.
    pub(crate) bytes_out: Counter,
}
