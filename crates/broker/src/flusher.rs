//! Brings dirty logs to the disk in the background, and writes the checkpoints of what is there.
//!
//! A partition puts itself on the list when it has something to sync, and says so when what the checkpoints hold of it has
//! moved: an idle partition costs nothing here.
//!
//! Invariants: one log at a time, or a few that have little to sync, and after each turn a pause as long as it took: the appends
//! and the syncs that somebody waits for have the disk at least half of the time. Of a round's logs the one with the most to sync
//! comes first: under a load that the disk cannot follow, and where one crash follows the other, none grows beyond all others.
//! Records come before leader epochs without any: after a failover every log that is led has a new epoch to write, and records
//! do not wait for thousands of those. A checkpoint holds only what an fdatasync covered (`R25`, `R31`), and is written about
//! once a second, so that a start after a crash reads a few seconds of records, however large the log.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use model::TopicPartition;
use tokio::time::Instant;

use crate::context::Context;
use crate::housekeeping::write_checkpoints;
use crate::moves;
use crate::partition::Partition;

/// Between the starts of two rounds over the dirty logs, at least.
const ROUND: Duration = Duration::from_secs(1);
/// Logs with no more bytes to sync than this are synced some at once: one flush of the disk may serve them all.
const SMALL: u64 = 64 << 10;
/// So many of them.
const SMALL_TOGETHER: usize = 16;
/// So many logs at once that have nothing but epochs to write: they take the threads that cold reads need, too.
const EPOCHS_TOGETHER: usize = 4;
/// The longest pause after one turn.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two checkpoints, at least.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Writing checkpoints takes at most this share of the time, with however many partitions.
const CHECKPOINT_SHARE: u32 = 20;

/// What waits for the flusher.
#[derive(Debug, Default)]
pub(crate) struct FlushQueue {
    dirty: Mutex<VecDeque<TopicPartition>>,
    moved: AtomicBool,
}

impl FlushQueue {
    /// The partition has something to sync. It says so once, until its turn has come.
    pub(crate) fn push(&self, partition: TopicPartition) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push_back(partition);
    }

    /// What the checkpoints say is no longer all there is to say.
    pub(crate) fn checkpoints_moved(&self) {
        // Looked at first: a store by every append would have the processors pass the line around.
        if !self.moved.load(Ordering::Relaxed) {
            self.moved.store(true, Ordering::Relaxed);
        }
    }

    fn take(&self) -> VecDeque<TopicPartition> {
        std::mem::take(&mut self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whose turn it is next.
#[derive(Debug)]
struct Turns<P> {
    /// With bytes to sync, of this round; the most first.
    records: VecDeque<(P, u64)>,
    /// With epochs only, of this round and earlier ones.
    epochs: VecDeque<P>,
}

impl<P> Turns<P> {
    fn new() -> Self {
        Self { records: VecDeque::new(), epochs: VecDeque::new() }
    }

    /// A round begins with these. Whoever waits still with epochs only may have bytes to sync by now.
    fn begin(&mut self, dirty: impl IntoIterator<Item = P>, bytes_of: impl Fn(&P) -> u64) {
        let waiting = std::mem::take(&mut self.epochs).into_iter().chain(dirty);
        for log in waiting {
            match bytes_of(&log) {
                0 => self.epochs.push_back(log),
                bytes => self.records.push_back((log, bytes)),
            }
        }
        self.records.make_contiguous().sort_by_key(|(_, bytes)| Reverse(*bytes));
    }

    /// The next ones with records, all at once.
    fn next_records(&mut self) -> Vec<P> {
        let first_is_small = self.records.front().is_some_and(|(_, bytes)| *bytes <= SMALL);
        let count = if first_is_small { SMALL_TOGETHER } else { 1 };
        self.records.drain(..count.min(self.records.len())).map(|(log, _)| log).collect()
    }

    fn next_epochs(&mut self) -> Vec<P> {
        self.epochs.drain(..EPOCHS_TOGETHER.min(self.epochs.len())).collect()
    }
}

/// Syncs dirty logs in turn, until the broker stops.
pub(crate) async fn sync_in_turn(context: Arc<Context>) {
    let mut turns = Turns::new();
    loop {
        let round = Instant::now() + ROUND;
        let dirty = context.flusher.take().into_iter();
        turns.begin(dirty.filter_map(|id| context.partition(id)), |partition| partition.unsynced_bytes());
        while !turns.records.is_empty() {
            flush_together(&context, turns.next_records()).await;
        }
        // Some in every round; more while nothing else can be waiting for long.
        while !turns.epochs.is_empty() {
            flush_together(&context, turns.next_epochs()).await;
            if Instant::now() >= round {
                break;
            }
        }
        tokio::time::sleep_until(round).await;
    }
}

/// One turn, with the pause after it.
async fn flush_together(context: &Arc<Context>, logs: Vec<Arc<Partition>>) {
    let began = Instant::now();
    join_all(logs.iter().map(|partition| partition.flush(context))).await;
    tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
}

/// Writes the checkpoints where they moved, until the broker stops.
pub(crate) async fn keep_checkpoints(context: Arc<Context>) {
    let mut pause = CHECKPOINT_INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        pause = CHECKPOINT_INTERVAL;
        if !context.flusher.moved.swap(false, Ordering::Relaxed) {
            continue;
        }
        let began = Instant::now();
        // Before they are written: what waits from now on is not in them.
        let mut awaited = context.partitions();
        awaited.retain(|partition| partition.awaits_checkpoint());
        let leaving = context.moves.leaving();
        let written = write_checkpoints(&context).await;
        let is_written = |partition: &&Arc<Partition>| written.contains(&partition.dir().id());
        awaited.iter().filter(is_written).for_each(|partition| partition.checkpoint_written(&context));
        if written.len() < context.dirs.working().count() {
            context.flusher.checkpoints_moved();
        } else {
            moves::checkpoints_written(&context, &leaving);
        }
        pause = pause.max(began.elapsed() * CHECKPOINT_SHARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_first_the_most_of_them_and_small_ones_together() {
        let mut turns = Turns::new();
        let bytes = [("idle", 0), ("small", 7), ("large", 1 << 30), ("smaller", 1), ("medium", SMALL + 1)];
        turns.begin(bytes, |(_, bytes)| *bytes);
        let order: Vec<_> = (0..4).map(|_| turns.next_records()).collect();
        assert_eq!(order, [vec![bytes[2]], vec![bytes[4]], vec![bytes[1], bytes[3]], vec![]]);
        assert_eq!(turns.next_epochs(), [bytes[0]]);
        assert!(turns.next_epochs().is_empty());
    }

    #[test]
    fn records_do_not_wait_for_the_epochs_of_thousands() {
        let mut turns = Turns::new();
        turns.begin(0..5000, |_| 0);
        assert!(turns.next_records().is_empty());
        assert_eq!(turns.next_epochs(), [0, 1, 2, 3]);
        // One that has just come, and one that was written while it waited.
        turns.begin([9000, 9001], |log| if [9001, 4321].contains(log) { 100 } else { 0 });
        assert_eq!(turns.next_records(), [4321, 9001]);
        let mut rest = Vec::new();
        while let epochs @ [_, ..] = &turns.next_epochs()[..] {
            rest.extend_from_slice(epochs);
        }
        let expected: Vec<_> = (4..5000).filter(|log| *log != 4321).chain([9000]).collect();
        assert_eq!(rest, expected, "in their order, none twice");
    }
}
