//! The epoch checkpoint of a log (`R25`): `leader-epoch-checkpoint`, Kafka's format, replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{EpochCache, EpochStart, LeaderEpoch, Offset};

use super::{Log, LogError, Names};
use crate::checkpoint;
use crate::disk::{Disk, read_small_file, replace_file};
use crate::env::LogEnv;

/// What an epoch checkpoint may have as its size: 100,000 leaderships.
const SIZE_MAX: usize = 4 << 20;

/// An epoch checkpoint to be written, where blocking is allowed. One of a log at a time.
#[derive(Debug)]
pub struct EpochCheckpoint {
    env: LogEnv,
    dir: Arc<Path>,
    cache: EpochCache,
    result: Result<(), LogError>,
}

impl Log {
    /// Writes the epoch cache durably (`R31`), in this thread; nothing happens before the first append. Blocks.
    ///
    /// # Errors
    /// `NoSpace` leaves the old one; anything else took the directory offline.
    pub fn write_epoch_checkpoint(&mut self, cache: &EpochCache) -> Result<(), LogError> {
        match self.start_epoch_checkpoint(cache)? {
            None => Ok(()),
            Some(checkpoint) => self.finish_epoch_checkpoint(checkpoint.run()),
        }
    }

    /// The same in three steps, as a sync; None before the first append, when there is no directory.
    ///
    /// # Errors
    /// Where the directory is offline.
    pub fn start_epoch_checkpoint(&self, cache: &EpochCache) -> Result<Option<EpochCheckpoint>, LogError> {
        self.usable()?;
        if self.names == Names::Absent {
            return Ok(None);
        }
        let (env, dir, cache) = (self.env.clone(), Arc::clone(&self.dir), cache.clone());
        Ok(Some(EpochCheckpoint { env, dir, cache, result: Ok(()) }))
    }

    /// Takes the outcome: the recovery point may pass what the checkpoint tells (`R25`).
    ///
    /// # Errors
    /// What went wrong while it was written.
    pub fn finish_epoch_checkpoint(&mut self, done: EpochCheckpoint) -> Result<(), LogError> {
        done.result?;
        self.persisted_epoch = done.cache.latest();
        // Only a cache that knows the last batch frees the recovery point: an older one was overtaken by appends.
        let last = self.last_batch.as_ref();
        if last.is_none_or(|last| done.cache.epoch_of(last.base_offset) == Some(last.leader_epoch)) {
            self.unpersisted_from = None;
        }
        self.raise_recovery_point()
    }
}

impl EpochCheckpoint {
    /// Writes. Blocks.
    #[must_use = "the log waits for the outcome"]
    pub fn run(mut self) -> Self {
        let written = write(&*self.env.disk, &self.dir, &self.cache);
        self.result = written.map_err(|e| LogError::write(&self.env.health, &path(&self.dir), &e));
        self
    }
}

/// The cache on disk; None where there is none or it is damaged.
pub(super) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<EpochCache>> {
    match read_small_file(disk, &path(dir), SIZE_MAX) {
        Ok(text) => Ok(text.and_then(|text| parse(&text))),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("leader-epoch-checkpoint")
}

fn write(disk: &dyn Disk, dir: &Path, cache: &EpochCache) -> io::Result<()> {
    let lines = cache.entries().iter().map(|entry| format!("{} {}", entry.epoch, entry.start));
    replace_file(disk, &path(dir), checkpoint::format(lines).as_bytes())
}

fn parse(text: &[u8]) -> Option<EpochCache> {
    let lines = checkpoint::parse(text).ok()?;
    let mut entries = Vec::new();
    for line in lines {
        let (epoch, start) = line.split_once(' ')?;
        let entry = EpochStart { epoch: LeaderEpoch(epoch.parse().ok()?), start: Offset(start.parse().ok()?) };
        entries.push(entry);
    }
    let cache = EpochCache::from_entries(entries.iter().copied());
    (cache.entries() == entries).then_some(cache)
}
