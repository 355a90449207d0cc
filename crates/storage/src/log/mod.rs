//! One partition's log: segments of record batches with sparse indexes, in Kafka's layout.
//!
//! ```text
//!  log_start ≤ … ≤ recovery_point ≤ synced_end ≤ log_end
//!              every byte below recovery_point was synced, and so was the epoch checkpoint that speaks of it (R25);
//!              a start after a crash checks only what follows it (R29)
//! ```
//!
//! Invariants: batches ascend and leader epochs never fall; the active segment is the last; everything on disk below
//! `log_end` is sound, everything in `segments` counts only its sound bytes. Files are made at the first append, opened
//! through the pool of `LogEnv`, and never held open by the log. A log knows nothing of leadership: the replication core
//! owns the epoch cache and the high watermark, the log persists the one and is told the other.
//!
//! Calls block on the disk where they say so; none spawns anything. After `DirectoryOffline` every call gives that (`R30`).
//! Where there is no file descriptor, each gives `NoDescriptor`, and the directory stays in use.

mod aborted;
mod append;
pub mod compaction;
mod damage;
mod epochs;
mod error;
pub(crate) mod identity;
mod index;
pub mod inspect;
mod read;
mod recover;
pub mod relocation;
mod retention;
mod scan;
mod segment;
mod send;
mod snapshots;
mod sync;
pub(crate) mod tail;
mod times;
mod truncate;
mod walk;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metadata::configs::FlushPolicy;
use model::epoch_cache::EpochStart;
use model::{BatchHeader, EpochCache, LeaderEpoch, Offset, TopicId};

pub use aborted::{Aborted, AbortedTransaction, ColdAborted};
pub use append::Appended;
pub use compaction::{Cleanable, CleanedSwap, Cleaning, CleaningOptions, CleaningStats, CleaningStep, SwapEnd};
pub use epochs::EpochCheckpoint;
pub use error::LogError;
pub use read::{ColdRead, Read};
pub use retention::{Deleted, Removal};
pub use send::{ColdRecords, LEND_MIN, RecordRange};
pub use snapshots::ProducerSnapshot;
pub use sync::{SyncDone, SyncTicket};
pub use times::{BatchTime, SegmentTime, TimeLookup, TimeMatch, TimeRead, TimeSearch};

use crate::config::LogConfig;
use crate::env::LogEnv;
use aborted::AbortedIndex;
use index::Indexer;
use retention::PendingDeletion;
use segment::Segment;
use sync::SyncState;
use tail::Tail;

/// What is known of a log from outside of its directory when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenHints {
    /// Which topic it belongs to (`R4`).
    pub topic_id: TopicId,
    /// From the `recovery-point-offset-checkpoint`; zero where it has none.
    pub recovery_point: Offset,
    /// Whether the last shutdown was proven clean (`R10`).
    pub clean: bool,
    /// From the `log-start-offset-checkpoint`; zero where it has none.
    pub log_start: Offset,
    /// From the `replication-offset-checkpoint`; zero where it has none.
    pub high_watermark: Offset,
}

/// What recovery found, by `R29`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All that is there is sound.
    Sound,
    /// The end was torn and is cut off; nothing valid followed, and it lay at or above the high watermark.
    TruncatedTail {
        /// Where the log ends now.
        from: Offset,
        /// Bytes cut off.
        bytes: u64,
    },
    /// Records are missing or corrupt below the high watermark, or with valid ones behind them. The log ends at the first
    /// bad one and takes no append until `truncate_to` or `reset_to` accepts the loss; until then the verdict stays, also
    /// over restarts (`R78`).
    Lossy {
        /// The first offset that is not sound.
        first_bad: Offset,
    },
}

/// What [`Log::open`] found beside the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The epoch cache of the log's records (`R25`).
    pub epochs: EpochCache,
    /// In which state the log was.
    pub verdict: Verdict,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    env: LogEnv,
    dir: Arc<Path>,
    config: Arc<LogConfig>,
    topic_id: TopicId,
    segments: Vec<Segment>,
    indexer: Option<Box<Indexer>>,
    tail: Tail,
    /// None in a log without records.
    last_batch: Option<BatchHeader>,
    log_start: Offset,
    log_end: Offset,
    synced_end: Offset,
    /// The highest recovery point that a checkpoint may hold: a truncation below it leaves a note on disk.
    recovery_point_max: Offset,
    /// Whether such a note is there.
    truncation_noted: bool,
    sync: SyncState,
    names: Names,
    condition: Condition,
    /// The newest entry of the epoch checkpoint on disk.
    persisted_epoch: Option<EpochStart>,
    /// The first record whose epoch that checkpoint does not tell (`R25`).
    unpersisted_from: Option<Offset>,
    /// Bytes of batches appended since it was opened, and of those that were not synced then.
    written: u64,
    /// What of that the last sync covered, and what the one that runs will.
    written_synced: u64,
    written_syncing: u64,
    /// How often its end was cut since then.
    cuts: u32,
    deletions: Vec<PendingDeletion>,
    aborted: AbortedIndex,
    /// The marker of a swap that is not through.
    swap: Option<PathBuf>,
    /// A read found damage, and a note says so.
    damage_noted: bool,
    /// Below it, compaction has seen everything; None until somebody asked.
    cleaned_to: Option<Offset>,
    /// How often the log's end was cut in this process: a cleaning that began before is void.
    truncations: u64,
    /// No record at or above it was lent to be sent from its file.
    lent_end: Offset,
    /// Space was reserved for the active segment.
    preallocated: bool,
    /// Why a change of its files was begun and could not be gone on with: no file descriptor, or no space.
    unfinished: Option<Box<LogError>>,
}

/// A log that is gone leaves no file open: of one that is deleted, an open file keeps the space.
impl Drop for Log {
    fn drop(&mut self) {
        self.close_files();
    }
}

/// Whether the names of the log's files are durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Names {
    /// There is no directory yet.
    Absent,
    /// The directory and `partition.metadata` are new.
    NewDirectory,
    /// The directory has new files.
    NewFiles,
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Usable,
    Lossy(Offset),
}

impl Log {
    /// The offset of the first record that is served.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The offset after the last record.
    #[must_use]
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Every record below this is on disk for good. In `FlushPolicy::BeforeAck` this is the log end that counts (`R18`).
    #[must_use]
    pub fn synced_end(&self) -> Offset {
        self.synced_end
    }

    /// What the recovery point checkpoint may hold: never more than `synced_end`, and never past the start of an epoch
    /// that the epoch checkpoint does not have (`R25`).
    #[must_use]
    pub fn recovery_point(&self) -> Offset {
        self.unpersisted_from.map_or(self.synced_end, |from| from.min(self.synced_end))
    }

    /// The header of the last batch, None in a log without records.
    #[must_use]
    pub fn last_batch_header(&self) -> Option<&BatchHeader> {
        self.last_batch.as_ref()
    }

    /// The epoch of the last record (-1 without one) and the log end: what a follower opens with (`R57`).
    #[must_use]
    pub fn epoch_and_end(&self) -> (LeaderEpoch, Offset) {
        (self.last_batch.map_or(LeaderEpoch::NONE, |batch| batch.leader_epoch), self.log_end)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.size)).sum()
    }

    /// The base offset and the bytes of each segment, ascending; the last is the active one.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = (Offset, u64)> {
        self.segments.iter().map(|segment| (segment.base, u64::from(segment.size)))
    }

    /// The directory, that is there from the first append on.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it has a directory: from the first append on.
    #[must_use]
    pub fn is_on_disk(&self) -> bool {
        self.names != Names::Absent
    }

    /// How often its end was cut in this process: what was read without its lock meanwhile may be anything.
    #[must_use]
    pub fn truncations(&self) -> u64 {
        self.truncations
    }

    /// Bytes of batches that were appended since it was opened, and of those that an earlier process left unsynced.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Which topic it belongs to.
    #[must_use]
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }

    /// The configs in force.
    #[must_use]
    pub fn config(&self) -> &Arc<LogConfig> {
        &self.config
    }

    /// Takes new configs; they count from the next call on.
    pub fn set_config(&mut self, config: Arc<LogConfig>) {
        self.config = config;
    }

    /// When appends are synced.
    #[must_use]
    pub fn flush_policy(&self) -> FlushPolicy {
        self.config.flush_policy()
    }

    /// Bytes that no sync has covered: about as many as a start after a crash would read.
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        self.written.saturating_sub(self.written_synced)
    }

    /// Offsets that no sync has covered.
    #[must_use]
    pub fn unsynced(&self) -> u64 {
        u64::try_from(self.log_end - self.synced_end).unwrap_or(0)
    }

    /// The first bad offset, in a log that was found lossy and waits for `truncate_to` or `reset_to` (`R29`).
    #[must_use]
    pub fn lossy_from(&self) -> Option<Offset> {
        match self.condition {
            Condition::Usable => None,
            Condition::Lossy(first_bad) => Some(first_bad),
        }
    }

    /// Closes its files, where it goes and somebody may hold it still: of a deleted one, an open file keeps the space.
    pub fn close_files(&self) {
        self.segments.iter().for_each(|segment| segment.files(&self.env, &self.dir).close_all());
    }

    /// Whether a change was begun and not ended, for want of a file descriptor or of space: the files are as a crash would
    /// leave them, which every start copes with. This log gives that error from now on, and is to be opened anew.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    /// The outcome of a change that must not stay half done; without space it was not begun.
    fn ended<T>(&mut self, outcome: Result<T, LogError>) -> Result<T, LogError> {
        match outcome {
            Err(LogError::NoDescriptor(_)) => self.begun(outcome),
            other => other,
        }
    }

    /// The same of a change that was begun.
    fn begun<T>(&mut self, outcome: Result<T, LogError>) -> Result<T, LogError> {
        if let Err(error) = &outcome
            && error.is_shortage()
        {
            self.unfinished.get_or_insert_with(|| Box::new(error.clone()));
        }
        outcome
    }

    fn usable(&self) -> Result<(), LogError> {
        match self.env.health.failure() {
            None => self.unfinished.as_deref().map_or(Ok(()), |error| Err(error.clone())),
            Some(reason) => Err(LogError::DirectoryOffline(reason.to_owned())),
        }
    }

    fn in_range(&self, offset: Offset) -> Result<(), LogError> {
        if (self.log_start..=self.log_end).contains(&offset) {
            return Ok(());
        }
        Err(LogError::OutOfRange { offset, log_start: self.log_start, log_end: self.log_end })
    }

    fn fatal(&self, path: &Path, what: &str, error: &io::Error) -> LogError {
        LogError::fatal(&self.env.health, path, what, error)
    }

    /// An error of a call that may need space: without it, nothing was done.
    fn short(&self) -> impl Fn(io::Error) -> LogError + use<> {
        let (health, dir) = (Arc::clone(&self.env.health), Arc::clone(&self.dir));
        move |error| LogError::write(&health, &dir, &error)
    }

    /// An error somewhere in the log's directory that ends its use, unless there was no descriptor.
    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> LogError + use<> {
        let (health, dir) = (Arc::clone(&self.env.health), Arc::clone(&self.dir));
        move |error| LogError::fatal(&health, &dir, what, &error)
    }
}
