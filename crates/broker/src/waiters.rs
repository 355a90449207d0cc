//! Who waits for a high watermark: produce requests with acks=all, consumers in a long poll. Under sync before ack those with
//! acks=1 wait in the same way for the leader's own sync.
//!
//! Invariant: an acks=all result is released at one place only, [`ProduceWaiters::release`], called when a partition's
//! high watermark moved or its leadership ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use model::{ErrorCode, Offset};
use tokio::sync::Notify;

use crate::api::Produced;

/// Fewer waiting fetches than this are not swept.
const SWEEP_MIN: usize = 16;

/// A produce request under way: the results of its partitions, some of them still to come.
#[derive(Debug)]
pub(crate) struct PendingProduce {
    state: Mutex<PendingState>,
    done: Notify,
}

#[derive(Debug)]
struct PendingState {
    results: Vec<Produced>,
    /// Which results are not final yet.
    open: Vec<bool>,
    left: usize,
}

impl PendingProduce {
    /// `results` as they will be if all goes well; `open[i]` tells that the i-th still waits.
    pub(crate) fn new(partitions: usize) -> Arc<PendingProduce> {
        let state =
            PendingState { results: Vec::with_capacity(partitions), open: Vec::with_capacity(partitions), left: 0 };
        Arc::new(PendingProduce { state: Mutex::new(state), done: Notify::new() })
    }

    /// Adds the next partition's result; says its index where it has to wait.
    pub(crate) fn push(&self, result: Produced, waits: bool) -> usize {
        let mut state = lock(&self.state);
        state.results.push(result);
        state.open.push(waits);
        state.left += usize::from(waits);
        state.results.len() - 1
    }

    /// What was pushed as waiting at `index` is known better now; it goes on waiting if `waits`.
    pub(crate) fn settle(&self, index: usize, result: Produced, waits: bool) {
        let mut state = lock(&self.state);
        // It was taken meanwhile: its time was up.
        if state.open.get(index) != Some(&true) || index >= state.results.len() {
            return;
        }
        state.results[index] = result;
        if !waits {
            self.close(state, index);
        }
    }

    fn complete(&self, index: usize, error: ErrorCode) {
        let mut state = lock(&self.state);
        // The waiter may be released before the result that it belongs to is pushed: only a pushed one is open.
        if state.open.get(index) != Some(&true) {
            return;
        }
        state.results[index].error = error;
        self.close(state, index);
    }

    fn close(&self, mut state: MutexGuard<'_, PendingState>, index: usize) {
        state.open[index] = false;
        state.left -= 1;
        if state.left == 0 {
            drop(state);
            self.done.notify_one();
        }
    }

    /// Whether every result is final.
    pub(crate) fn is_done(&self) -> bool {
        lock(&self.state).left == 0
    }

    /// Returns when every result is final.
    pub(crate) async fn wait(&self) {
        while !self.is_done() {
            self.done.notified().await;
        }
    }

    /// The results; those that still wait get `error`, one of those that leave open what became of them (`R20`).
    pub(crate) fn take(&self, error: ErrorCode) -> Vec<Produced> {
        let mut state = lock(&self.state);
        for index in 0..state.results.len() {
            if std::mem::replace(&mut state.open[index], false) {
                state.results[index].error = error;
            }
        }
        state.left = 0;
        std::mem::take(&mut state.results)
    }
}

/// Those who wait for one partition's high watermark, or for its syncs, with records of theirs, by rising offset.
#[derive(Debug, Default)]
pub(crate) struct ProduceWaiters {
    waiting: VecDeque<ProduceWaiter>,
}

#[derive(Debug)]
struct ProduceWaiter {
    /// The offset after the last record.
    end: Offset,
    request: Weak<PendingProduce>,
    index: usize,
}

impl ProduceWaiters {
    /// `request`'s result at `index` waits until the high watermark is `end` or more.
    pub(crate) fn push(&mut self, end: Offset, request: &Arc<PendingProduce>, index: usize) {
        // Appends come in order; only a duplicate may wait for an older end.
        let at = self.waiting.partition_point(|waiter| waiter.end <= end);
        self.waiting.insert(at, ProduceWaiter { end, request: Arc::downgrade(request), index });
    }

    /// Answers all whose records are below `high_watermark` with what `verdict` says of their end.
    pub(crate) fn release(&mut self, high_watermark: Offset, verdict: impl Fn(Offset) -> ErrorCode) {
        while let Some(waiter) = self.waiting.front() {
            if waiter.end > high_watermark {
                break;
            }
            let error = verdict(waiter.end);
            if let Some(request) = waiter.request.upgrade() {
                request.complete(waiter.index, error);
            }
            self.waiting.pop_front();
        }
    }

    /// Answers all with `error`: the leadership ended.
    pub(crate) fn fail_all(&mut self, error: ErrorCode) {
        for waiter in self.waiting.drain(..) {
            if let Some(request) = waiter.request.upgrade() {
                request.complete(waiter.index, error);
            }
        }
    }
}

/// A consumer's fetch that waits for more.
#[derive(Debug)]
pub(crate) struct FetchWaiter {
    /// Its own, and larger than that of any before it.
    number: u64,
    moved: AtomicBool,
    notify: Notify,
}

impl Default for FetchWaiter {
    fn default() -> FetchWaiter {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        FetchWaiter { number, moved: AtomicBool::new(false), notify: Notify::new() }
    }
}

impl FetchWaiter {
    /// Something that it waits for has moved.
    pub(crate) fn wake(&self) {
        if !self.moved.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Returns when something has moved since the last return.
    pub(crate) async fn moved(&self) {
        while !self.moved.swap(false, Ordering::AcqRel) {
            self.notify.notified().await;
        }
    }
}

/// The fetches that wait at one partition, each once, woken in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct FetchWaiters {
    waiting: BTreeMap<u64, Weak<FetchWaiter>>,
    /// Entries at which those of fetches that have ended are swept.
    sweep_at: usize,
}

impl FetchWaiters {
    /// Wakes `waiter` at the next move, once.
    pub(crate) fn push(&mut self, waiter: &Arc<FetchWaiter>) {
        self.waiting.entry(waiter.number).or_insert_with(|| Arc::downgrade(waiter));
        if self.waiting.len() > self.sweep_at {
            self.waiting.retain(|_, waiter| waiter.strong_count() > 0);
            self.sweep_at = (self.waiting.len() * 2).max(SWEEP_MIN);
        }
    }

    /// Wakes all.
    pub(crate) fn wake(&mut self) {
        for waiter in std::mem::take(&mut self.waiting).into_values() {
            if let Some(waiter) = waiter.upgrade() {
                waiter.wake();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{PartitionIndex, TopicId, TopicPartition};

    fn produced() -> Produced {
        Produced {
            partition: TopicPartition { topic_id: TopicId::NONE, partition: PartitionIndex(0) },
            error: ErrorCode::None,
            message: None,
            base_offset: Offset(0),
            log_append_time: -1,
            log_start: Offset(0),
            refused: Vec::new(),
            current_leader: None,
        }
    }

    /// Not in one that the allocator chooses: a simulated run takes the same way each time.
    #[test]
    fn fetches_are_woken_in_the_order_in_which_they_began() {
        let (gone, first) = (Arc::new(FetchWaiter::default()), Arc::new(FetchWaiter::default()));
        drop(gone);
        // Most likely at the address of the one that is gone.
        let second = Arc::new(FetchWaiter::default());
        let mut waiters = FetchWaiters::default();
        waiters.push(&second);
        waiters.push(&first);
        let order: Vec<_> = waiters.waiting.into_values().map(|waiter| waiter.upgrade().unwrap()).collect();
        assert!(Arc::ptr_eq(&order[0], &first) && Arc::ptr_eq(&order[1], &second));
    }

    #[tokio::test]
    async fn a_request_is_answered_when_its_last_partition_is() {
        let request = PendingProduce::new(2);
        let mut waiters = ProduceWaiters::default();
        let first = request.push(produced(), true);
        waiters.push(Offset(10), &request, first);
        let second = request.push(produced(), true);
        waiters.push(Offset(20), &request, second);
        waiters.release(Offset(10), |_| ErrorCode::None);
        assert!(!request.is_done());
        waiters.release(Offset(20), |_| ErrorCode::NotEnoughReplicasAfterAppend);
        request.wait().await;
        let errors: Vec<_> = request.take(ErrorCode::RequestTimedOut).iter().map(|r| r.error).collect();
        assert_eq!(errors, [ErrorCode::None, ErrorCode::NotEnoughReplicasAfterAppend]);
    }

    #[test]
    fn what_still_waits_when_the_time_is_up_has_timed_out_and_stays_so() {
        let request = PendingProduce::new(1);
        let mut waiters = ProduceWaiters::default();
        waiters.push(Offset(10), &request, request.push(produced(), true));
        let results = request.take(ErrorCode::RequestTimedOut);
        waiters.release(Offset(10), |_| ErrorCode::None);
        assert_eq!(results[0].error, ErrorCode::RequestTimedOut);
    }

    #[test]
    fn a_lost_leadership_fails_all_that_wait() {
        let request = PendingProduce::new(1);
        let mut waiters = ProduceWaiters::default();
        waiters.push(Offset(10), &request, request.push(produced(), true));
        waiters.fail_all(ErrorCode::NotLeaderOrFollower);
        assert_eq!(request.take(ErrorCode::RequestTimedOut)[0].error, ErrorCode::NotLeaderOrFollower);
    }

    #[tokio::test]
    async fn a_waiting_fetch_is_woken_once_for_many_moves() {
        let waiter = Arc::new(FetchWaiter::default());
        let mut waiters = FetchWaiters::default();
        waiters.push(&waiter);
        waiters.push(&waiter);
        waiters.wake();
        waiter.moved().await;
        assert!(!waiter.moved.load(Ordering::Acquire));
    }

    #[test]
    fn a_fetch_is_listed_once_and_one_that_ended_not_for_long() {
        let mut waiters = FetchWaiters::default();
        let stays = Arc::new(FetchWaiter::default());
        for _ in 0..1000 {
            waiters.push(&stays);
            waiters.push(&Arc::new(FetchWaiter::default()));
        }
        assert!(waiters.waiting.len() <= SWEEP_MIN + 1, "{}", waiters.waiting.len());
        waiters.wake();
        assert!(stays.moved.load(Ordering::Acquire));
    }

    #[test]
    fn a_duplicate_that_waits_for_an_older_end_does_not_wait_for_newer_ones() {
        let mut waiters = ProduceWaiters::default();
        let (new, old) = (PendingProduce::new(1), PendingProduce::new(1));
        waiters.push(Offset(20), &new, new.push(produced(), true));
        waiters.push(Offset(10), &old, old.push(produced(), true));
        waiters.release(Offset(10), |_| ErrorCode::None);
        assert!(old.is_done() && !new.is_done());
    }
}
