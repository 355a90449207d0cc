//! The newest batches of a log, kept as the `Bytes` that came in: followers and tailing consumers are served from here.
//!
//! All logs share one budget, and what was appended longest ago leaves first, of whichever log it is: so a log that had
//! its hour does not keep memory from those that are written now. The budget remembers who appended how much in which
//! order; room is made by whoever appends, in the queue of the log whose turn it is. Hence the lock on each queue, that
//! only such an eviction ever contends for.
//!
//! Invariants: what is kept is a contiguous end of the log; after each append all logs together hold no more than the
//! budget. A log that was never written, or that nobody is served from, has no memory here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use model::{Offset, RecordBatch};

/// Appends that are remembered at most: the oldest leave the cache also where there is room.
const TURNS_MAX: usize = 1 << 17;

/// The bytes that all tail caches may hold together, and in which order they came.
#[derive(Debug)]
pub(crate) struct TailBudget {
    limit: usize,
    used: AtomicUsize,
    turns: Mutex<VecDeque<Turn>>,
}

/// So many bytes were appended to this queue, in one go.
#[derive(Debug)]
struct Turn {
    queue: Weak<Mutex<Queue>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<TailBatch>,
}

#[derive(Debug)]
struct TailBatch {
    base: Offset,
    last: Offset,
    bytes: Bytes,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tail {
    budget: Arc<TailBudget>,
    queue: Option<Arc<Mutex<Queue>>>,
    /// Whether what is appended is kept.
    keeps: bool,
}

impl TailBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), turns: Mutex::default() }
    }

    /// Bytes that there may be.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` that `queue` has got, and makes room for them.
    fn take(&self, queue: &Arc<Mutex<Queue>>, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        let mut turns = self.turns.lock().expect("no holder of the lock panics");
        match turns.back_mut() {
            Some(last) if std::ptr::eq(last.queue.as_ptr(), Arc::as_ptr(queue)) => last.bytes += bytes,
            _ => turns.push_back(Turn { queue: Arc::downgrade(queue), bytes }),
        }
        while self.used() > self.limit || turns.len() > TURNS_MAX {
            let Some(oldest) = turns.front_mut() else { break };
            let evicted = match oldest.queue.upgrade() {
                Some(queue) => self.give_back(lock(&queue).batches.pop_front()),
                None => None,
            };
            oldest.bytes = oldest.bytes.saturating_sub(evicted.unwrap_or(usize::MAX));
            if oldest.bytes == 0 {
                turns.pop_front();
            }
        }
    }

    /// The size of a batch that left; None where there was none.
    fn give_back(&self, gone: Option<TailBatch>) -> Option<usize> {
        let size = gone?.bytes.len();
        self.used.fetch_sub(size, Ordering::Relaxed);
        Some(size)
    }
}

impl Tail {
    pub(super) fn new(budget: Arc<TailBudget>) -> Self {
        Self { budget, queue: None, keeps: true }
    }

    /// Whether what is appended from now on is kept. What was kept before goes where it is not.
    pub(super) fn set_keeps(&mut self, keeps: bool) {
        self.keeps = keeps;
        if !keeps {
            self.truncate_to(Offset(-1));
            self.queue = None;
        }
    }

    /// Takes batches that were appended to the log.
    pub(super) fn append(&mut self, batches: &[RecordBatch]) {
        if !self.keeps {
            return;
        }
        let queue = self.queue.get_or_insert_default();
        let mut size = 0;
        let mut kept = lock(queue);
        for batch in batches {
            let header = batch.header();
            let bytes = batch.bytes().clone();
            size += bytes.len();
            kept.batches.push_back(TailBatch { base: header.base_offset, last: header.last_offset(), bytes });
        }
        drop(kept);
        self.budget.take(queue, size);
    }

    /// Batches from the one that contains `from` on, or None where they are not all here.
    pub(super) fn read(&self, from: Offset, upto: Offset, max_bytes: usize, min_one: bool) -> Option<Vec<Bytes>> {
        let kept = lock(self.queue.as_ref()?);
        if kept.batches.front()?.base > from {
            return None;
        }
        let first = kept.batches.partition_point(|batch| batch.last < from);
        let mut found = Vec::new();
        let mut size = 0;
        for batch in kept.batches.range(first..) {
            size += batch.bytes.len();
            if batch.last >= upto || (size > max_bytes && !(min_one && found.is_empty())) {
                break;
            }
            found.push(batch.bytes.clone());
        }
        Some(found)
    }

    /// Whether what is appended from now on is kept, and there is room for it.
    pub(super) fn keeps(&self) -> bool {
        self.keeps && self.budget.limit() > 0
    }

    /// Whether the batch that contains `from` and all that follow are here.
    pub(super) fn reaches(&self, from: Offset) -> bool {
        self.queue.as_ref().is_some_and(|queue| lock(queue).batches.front().is_some_and(|first| first.base <= from))
    }

    /// Forgets what ends at `end` or above.
    pub(super) fn truncate_to(&mut self, end: Offset) {
        let Some(queue) = &self.queue else { return };
        let mut kept = lock(queue);
        while kept.batches.back().is_some_and(|batch| batch.last >= end) {
            self.budget.give_back(kept.batches.pop_back());
        }
    }

    /// Forgets what lies whole below `start`.
    pub(super) fn forget_below(&mut self, start: Offset) {
        let Some(queue) = &self.queue else { return };
        let mut kept = lock(queue);
        while kept.batches.front().is_some_and(|batch| batch.last < start) {
            self.budget.give_back(kept.batches.pop_front());
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.truncate_to(Offset(-1));
    }
}

fn lock(queue: &Arc<Mutex<Queue>>) -> MutexGuard<'_, Queue> {
    queue.lock().expect("no holder of the lock panics")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::batch;

    fn appended(tail: &mut Tail, from: i64, count: i64) {
        for base in from..from + count {
            tail.append(&[batch(base, 0, 1, 0)]);
        }
    }

    #[test]
    fn what_was_appended_longest_ago_leaves_first_of_whichever_log() {
        let size = batch(10, 0, 1, 0).bytes().len();
        let budget = Arc::new(TailBudget::new(10 * size));
        let (mut early, mut late) = (Tail::new(Arc::clone(&budget)), Tail::new(Arc::clone(&budget)));
        appended(&mut early, 10, 10);
        assert_eq!(budget.used(), 10 * size);
        appended(&mut late, 10, 6);
        let kept = |tail: &Tail, from| tail.read(Offset(from), Offset(99), usize::MAX, true).map(|b| b.len());
        assert_eq!([kept(&early, 15), kept(&early, 16), kept(&late, 10)], [None, Some(4), Some(6)]);
        // A log that is gone gives its bytes back, and its turns are passed over.
        drop(early);
        assert_eq!(budget.used(), 6 * size);
        appended(&mut late, 16, 6);
        assert_eq!([kept(&late, 11), kept(&late, 12)], [None, Some(10)]);
        assert_eq!(budget.used(), 10 * size);
    }

    #[test]
    fn a_tail_that_keeps_nothing_holds_no_memory_and_begins_anew() {
        let size = batch(10, 0, 1, 0).bytes().len();
        let budget = Arc::new(TailBudget::new(10 * size));
        let mut tail = Tail::new(Arc::clone(&budget));
        appended(&mut tail, 10, 2);
        tail.set_keeps(false);
        appended(&mut tail, 12, 2);
        assert_eq!((budget.used(), tail.read(Offset(12), Offset(99), usize::MAX, true)), (0, None));
        tail.set_keeps(true);
        appended(&mut tail, 14, 2);
        let kept = |from| tail.read(Offset(from), Offset(99), usize::MAX, true).map(|b| b.len());
        assert_eq!([kept(13), kept(14), kept(15)], [None, Some(2), Some(1)], "what is kept has no hole");
    }
}
