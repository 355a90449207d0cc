//! One alarm clock for all partitions: an idle partition has no task and no timer of its own.
//!
//! Invariant: a partition has at most a few entries; an entry that comes too early or too late does no harm.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{Time, TopicPartition};
use tokio::sync::Notify;

use crate::context::Context;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: Mutex<BTreeSet<(Time, TopicPartition)>>,
    earlier: Notify,
    fired: AtomicU64,
}

impl Timers {
    /// Calls the partition's `handle_timeout` at `due` or soon after.
    pub(crate) fn set(&self, due: Time, partition: TopicPartition) {
        let mut entries = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let first = entries.first().is_none_or(|(earliest, _)| due < *earliest);
        entries.insert((due, partition));
        drop(entries);
        if first {
            self.earlier.notify_one();
        }
    }

    /// How many entries have come.
    pub(crate) fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<Time> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).first().map(|(due, _)| *due)
    }

    fn take_due(&self, now: Time) -> Vec<TopicPartition> {
        let mut entries = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        while entries.first().is_some_and(|(at, _)| *at <= now) {
            due.extend(entries.pop_first().map(|(_, partition)| partition));
        }
        self.fired.fetch_add(due.len() as u64, Ordering::Relaxed);
        due
    }
}

/// Runs until the broker stops.
pub(crate) async fn run(context: Arc<Context>) {
    loop {
        let wait = context.timers.next().map(|due| Duration::from_millis(due.since(context.clock.monotonic())));
        // Dropping either branch is safe: the entries stay where they are.
        tokio::select! {
            () = tokio::time::sleep(wait.unwrap_or(Duration::from_secs(3600))) => {}
            () = context.timers.earlier.notified() => {}
        }
        for id in context.timers.take_due(context.clock.monotonic()) {
            if let Some(partition) = context.partition(id) {
                partition.handle_timeout(&context);
            }
        }
    }
}
