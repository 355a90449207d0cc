//! The newest batches of a log, kept as the `Bytes` that came in: followers and tailing consumers are served from here.
//!
//! Invariants: what is kept is a contiguous end of the log; the bytes kept by all logs of a process together exceed the
//! budget by no more than one append each while it runs. An idle log that keeps nothing has no memory here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use model::{Offset, RecordBatch};

use crate::env::TailBudget;

#[derive(Debug)]
pub(super) struct Tail {
    budget: Arc<TailBudget>,
    batches: VecDeque<TailBatch>,
}

#[derive(Debug)]
struct TailBatch {
    base: Offset,
    last: Offset,
    bytes: Bytes,
}

impl Tail {
    pub(super) fn new(budget: Arc<TailBudget>) -> Self {
        Self { budget, batches: VecDeque::new() }
    }

    /// Takes batches that were appended to the log.
    pub(super) fn append(&mut self, batches: &[RecordBatch]) {
        for batch in batches {
            let header = batch.header();
            let bytes = batch.bytes().clone();
            self.budget.used.fetch_add(bytes.len(), Ordering::Relaxed);
            self.batches.push_back(TailBatch { base: header.base_offset, last: header.last_offset(), bytes });
        }
        while self.budget.used.load(Ordering::Relaxed) > self.budget.limit && self.evict() {}
    }

    /// Batches from the one that contains `from` on, or None where they are not all here.
    pub(super) fn read(&self, from: Offset, upto: Offset, max_bytes: usize, min_one: bool) -> Option<Vec<Bytes>> {
        if self.batches.front()?.base > from {
            return None;
        }
        let first = self.batches.partition_point(|batch| batch.last < from);
        let mut found = Vec::new();
        let mut size = 0;
        for batch in self.batches.range(first..) {
            size += batch.bytes.len();
            if batch.last >= upto || (size > max_bytes && !(min_one && found.is_empty())) {
                break;
            }
            found.push(batch.bytes.clone());
        }
        Some(found)
    }

    /// Forgets what ends at `end` or above.
    pub(super) fn truncate_to(&mut self, end: Offset) {
        while self.batches.back().is_some_and(|batch| batch.last >= end) {
            let gone = self.batches.pop_back();
            self.give_back(gone.as_ref());
        }
    }

    /// Forgets what lies whole below `start`.
    pub(super) fn forget_below(&mut self, start: Offset) {
        while self.batches.front().is_some_and(|batch| batch.last < start) {
            self.evict();
        }
    }

    fn evict(&mut self) -> bool {
        let gone = self.batches.pop_front();
        self.give_back(gone.as_ref());
        if self.batches.is_empty() {
            self.batches = VecDeque::new();
        }
        gone.is_some()
    }

    fn give_back(&self, gone: Option<&TailBatch>) {
        self.budget.used.fetch_sub(gone.map_or(0, |batch| batch.bytes.len()), Ordering::Relaxed);
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        while self.evict() {}
    }
}
