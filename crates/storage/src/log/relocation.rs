//! A log on its way to another log directory (AlterReplicaLogDirs, KIP-113).
//!
//! ```text
//!  current   X/topic-0 ═══════════════════════════════════════════► X/topic-0.0-delete
//!                │ copied, while appends go on                  2 ▲
//!  future    Y/topic-0.<topic id>-future ════ 1 ════► Y/topic-0 ──┘ the log from now on
//! ```
//!
//! Invariants: the future log is a prefix of the current one whenever both are looked at together; where the current one was
//! cut meanwhile, the future one is cut to what both have, by their epochs (`R24`). Before it takes the name (1), it has every
//! record and all of it is durable; only then the other one loses it (2). So at every moment, whatever crashes, a whole log has
//! the name; where two have it, the greater one is whole. What a crash leaves of a future log tells only that the replica is to
//! be moved: it is copied anew, as the log may have been compacted since, and of the transactions that were aborted some may
//! not have reached the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use model::{EpochCache, Offset, RecordBatch, Time, TopicPartition};

use super::{Aborted, AbortedTransaction, Log, LogError, OpenHints, Read};
use crate::config::LogConfig;
use crate::disk::is_out_of_descriptors;
use crate::log_dirs::LogDir;

/// Bytes copied at a time, at most.
pub const STEP_BYTES: usize = 1 << 20;
/// What the future log has not synced, at most.
const UNSYNCED_BYTES: u64 = 32 << 20;
/// What the swap itself copies, at most: nothing is appended meanwhile.
const SWAP_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct Relocation {
    future: Log,
    topic: String,
    id: TopicPartition,
    /// The future log's directory once it is the log.
    path: PathBuf,
    /// How often the current log was cut when both were last compared.
    compared: Option<u64>,
    /// What the future log had written when it was last synced.
    synced: u64,
}

/// What is to be copied next, to be read outside of the current log's lock.
#[derive(Debug)]
pub struct CopyStep {
    from: Offset,
    /// How often the current log had been cut when this was begun.
    cuts: u64,
    dir: Arc<Path>,
    read: Read,
    aborted: Aborted,
}

/// What was read of the current log.
#[derive(Debug)]
pub struct Portion {
    batches: Vec<RecordBatch>,
    aborted: Vec<AbortedTransaction>,
}

impl CopyStep {
    /// Where it begins.
    #[must_use]
    pub fn begins_at(&self) -> Offset {
        self.from
    }

    /// How often the current log had been cut when this was begun ([`Log::truncations`]).
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// Reads the current log. Blocks.
    ///
    /// # Errors
    /// The source's, as of any cold read.
    pub fn read(self) -> Result<Portion, LogError> {
        let chunks = match self.read {
            Read::Memory(chunks) => chunks,
            Read::Cold(cold) => vec![cold.run()?],
        };
        let mut batches = Vec::new();
        for chunk in chunks {
            batches.extend(split(chunk, self.from, &self.dir)?);
        }
        let end = batches.last().map_or(self.from, |last| last.header().next_offset());
        let mut aborted = match self.aborted {
            Aborted::Memory(found) => found,
            Aborted::Cold(cold) => cold.up_to(end).run()?,
        };
        aborted.retain(|transaction| transaction.last_offset < end);
        aborted.sort_by_key(|transaction| transaction.last_offset);
        Ok(Portion { batches, aborted })
    }
}

fn split(chunk: Bytes, offset: Offset, dir: &Path) -> Result<Vec<RecordBatch>, LogError> {
    let corrupt = |what| LogError::Corrupt { path: dir.to_path_buf(), position: 0, offset, what };
    RecordBatch::split_all(chunk).map_err(|error| corrupt(error.to_string()))
}

/// What the log is to know in its new place beside its records.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// Its epochs (`R25`).
    pub epochs: &'a EpochCache,
    /// The producers' state at its end (`R41`).
    pub producers: &'a [u8],
}

impl Relocation {
    /// Begins to move a partition's log to the directory `to`; what an earlier process copied there goes. Blocks.
    ///
    /// # Errors
    /// `Gone` where the name would be too long, or another log has the name there already; the disk's.
    pub fn open(to: &LogDir, topic: &str, id: TopicPartition, config: Arc<LogConfig>) -> Result<Self, LogError> {
        let path = to.data().partition_path(topic, id.partition);
        let future = to.data().future_path(topic, id).ok_or_else(|| LogError::Gone(path.clone()))?;
        let failed = |error: crate::DataDirError| {
            if error.is_out_of_descriptors() {
                return LogError::NoDescriptor(path.clone());
            }
            to.failed(&error);
            LogError::DirectoryOffline(error.to_string())
        };
        if to.data().has_partition(topic, id.partition).map_err(failed)? {
            return Err(LogError::Gone(path));
        }
        to.data().delete_future(&future).map_err(failed)?;
        let hints = OpenHints {
            topic_id: id.topic_id,
            recovery_point: Offset::ZERO,
            clean: false,
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
        };
        let (mut future, _) = Log::open(to.data().env(), &future, config, hints)?;
        // Nobody reads it, and the memory is others'.
        future.keep_tail(false);
        Ok(Self { future, topic: topic.to_owned(), id, path, compared: None, synced: 0 })
    }

    /// Whether the future log cannot be gone on with ([`Log::is_unfinished`]): it is to be given up.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.future.is_unfinished()
    }

    /// How far the future log goes, and its bytes.
    #[must_use]
    pub fn progress(&self) -> (Offset, u64) {
        (self.future.log_end(), self.future.size_bytes())
    }

    /// What to copy next from `current`, whose epochs are these, in at most so many bytes, but one batch at least; None where
    /// there is nothing. To be called under its lock; what it gives is read and written ([`Relocation::write`]) outside of it.
    ///
    /// # Errors
    /// The disks'.
    pub fn next(&mut self, current: &Log, epochs: &EpochCache, max_bytes: usize) -> Result<Option<CopyStep>, LogError> {
        self.compare(current, epochs)?;
        let (copied, end) = (self.future.log_end(), current.log_end());
        if copied >= end {
            return Ok(None);
        }
        // The log may start within the batch that is next.
        let from = copied.max(current.log_start());
        let (read, aborted) = (current.read(from, end, max_bytes, true)?, current.aborted(from, end)?);
        Ok(Some(CopyStep { from, cuts: current.truncations, dir: Arc::clone(&current.dir), read, aborted }))
    }

    /// Cuts the future log to what both have.
    fn compare(&mut self, current: &Log, epochs: &EpochCache) -> Result<(), LogError> {
        let changed = self.compared != Some(current.truncations);
        while changed && self.future.size_bytes() > 0 {
            let (epoch, end) = self.future.epoch_and_end();
            match epochs.end_offset_for(epoch, current.log_end()) {
                Some(found) if found.epoch == epoch && found.end >= end => break,
                // Of an older epoch: what is left is looked at again.
                Some(found) if (self.future.log_start() + 1..end).contains(&found.end) => {
                    self.future.truncate_to(found.end)?;
                }
                _ => self.future.reset_to(first_base(current)?)?,
            }
        }
        self.compared = Some(current.truncations);
        let is_empty = self.future.size_bytes() == 0;
        if self.future.log_end() < current.log_start() || (changed && is_empty) {
            let base = first_base(current)?;
            if self.future.log_end() != base {
                self.future.reset_to(base)?;
            }
        }
        Ok(())
    }

    /// Writes what was read; gives how many bytes. Blocks.
    ///
    /// # Errors
    /// `NoSpace` leaves the future log as it was; `OutOfOrder` may come of a change of the current log meanwhile.
    pub fn write(&mut self, portion: Portion) -> Result<u64, LogError> {
        self.future.append(&portion.batches)?;
        for transaction in portion.aborted {
            self.future.note_aborted(transaction)?;
        }
        if self.future.bytes_written() - self.synced >= UNSYNCED_BYTES {
            self.sync()?;
        }
        Ok(portion.batches.iter().map(|batch| batch.bytes().len() as u64).sum())
    }

    /// Syncs what was copied, so that little is left to the swap. Blocks.
    ///
    /// # Errors
    /// The directory is offline then.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.synced = self.future.bytes_written();
        self.future.sync_now().map(drop)
    }

    /// Copies what is missing and puts the future log in the place of `current`, which is in `from`; false where there is too
    /// much to copy still. To be called under its lock, with no sync or other job of it under way; once it has swapped, there is
    /// nothing left to do. Blocks.
    ///
    /// # Errors
    /// Nothing has happened to `current` then.
    pub fn swap(&mut self, current: &mut Log, beside: Beside<'_>, from: &LogDir) -> Result<bool, LogError> {
        let mut copied = 0;
        while let Some(step) = self.next(current, beside.epochs, STEP_BYTES)? {
            if copied >= SWAP_BYTES {
                return Ok(false);
            }
            match self.write(step.read()?)? {
                // No record lies between here and the end: the next append shows where the copy goes on.
                0 => return Ok(false),
                bytes => copied += bytes,
            }
        }
        self.complete(current, beside)?;
        std::mem::swap(current, &mut self.future);
        if let Err(error) = from.data().delete_partition(&self.topic, self.id.partition) {
            // The log is whole where it is now; of what stays behind, a start takes the greater one.
            tracing::error!(%error, "cannot take the files of a replica that was moved out of use");
            from.failed(&error);
        }
        Ok(true)
    }

    /// Makes the future log one that only lacks the name, durably, then gives it the name.
    fn complete(&mut self, current: &Log, beside: Beside<'_>) -> Result<(), LogError> {
        let future = &mut self.future;
        future.set_config(Arc::clone(current.config()));
        // A log that was never written has no directory, nowhere.
        if future.is_on_disk() {
            future.advance_log_start(current.log_start())?;
            future.write_producer_snapshot(future.log_end(), beside.producers)?;
            future.write_epoch_checkpoint(beside.epochs)?;
            future.settle()?;
            // What retention left would be looked for under the old name.
            future.free_deleted(Time(u64::MAX))?;
        }
        future.rename_to(&self.path)
    }

    /// Gives the move up: the future log goes. Blocks.
    ///
    /// # Errors
    /// The disk's.
    pub fn abandon(self, to: &LogDir) -> Result<(), crate::DataDirError> {
        if !self.future.is_on_disk() {
            return Ok(());
        }
        let path = self.future.dir().to_path_buf();
        drop(self.future);
        to.data().delete_future(&path)
    }
}

/// Where the first batch begins that has records of the log: the log may start in its middle.
fn first_base(log: &Log) -> Result<Offset, LogError> {
    let mut first = log.read_now(log.log_start(), log.log_end(), 1, true)?;
    let batch = first.first_mut().map(RecordBatch::split_off);
    Ok(batch.and_then(Result::ok).map_or(log.log_start(), |batch| batch.header().base_offset.min(log.log_start())))
}

impl Log {
    /// Gives the log's directory another name in the same log directory, durably. No job may be under way in it.
    pub(super) fn rename_to(&mut self, path: &std::path::Path) -> Result<(), LogError> {
        self.usable()?;
        if self.is_on_disk() {
            let failed = self.failed("cannot rename");
            self.env.disk.rename(&self.dir, path).map_err(&failed)?;
            if let Err(error) = path.parent().map_or(Ok(()), |above| self.env.disk.sync_dir(above)) {
                if is_out_of_descriptors(&error) {
                    // A crash before the old name is durable again leaves two copies, and the greater one counts.
                    self.env.disk.rename(path, &self.dir).map_err(&failed)?;
                }
                return Err(failed(error));
            }
        }
        self.dir = Arc::from(path);
        Ok(())
    }
}
