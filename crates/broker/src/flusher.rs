//! Brings dirty logs to the disk in the background, and writes the checkpoints of what is there.
//!
//! A partition puts itself on the list when it has something to sync, and says so when what the checkpoints hold of it has
//! moved: an idle partition costs nothing here.
//!
//! Invariants: one log at a time, and after each a pause as long as it took: the appends and the syncs that somebody waits
//! for have the disk at least half of the time. Of a round's logs the one with the most to sync comes first: under a load that
//! the disk cannot follow, and where one crash follows the other, none grows beyond all others. A checkpoint holds only what an
//! fdatasync covered (`R25`, `R31`), and is written about once a second, so that a start after a crash reads a few seconds of
//! records, however large the log.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::TopicPartition;
use tokio::time::Instant;

use crate::context::Context;
use crate::housekeeping::write_checkpoints;
use crate::moves;
use crate::partition::Partition;

/// Between the starts of two rounds over the dirty logs, at least.
const ROUND: Duration = Duration::from_secs(1);
/// The longest pause after one log.
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

/// Syncs dirty logs in turn, until the broker stops.
pub(crate) async fn sync_in_turn(context: Arc<Context>) {
    loop {
        let round = Instant::now() + ROUND;
        let dirty = context.flusher.take().into_iter();
        let mut partitions: Vec<_> = dirty.filter_map(|id| context.partition(id)).collect();
        partitions.sort_by_cached_key(|partition| Reverse(partition.unsynced_bytes()));
        for partition in partitions {
            let began = Instant::now();
            partition.flush(&context).await;
            tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
        }
        tokio::time::sleep_until(round).await;
    }
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
