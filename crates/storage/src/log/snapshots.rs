//! Producer snapshots (`R41`) as opaque bytes: `<offset>.snapshot` says what producers had written below that offset.
//!
//! Layout: version (2 bytes, 1), CRC32C of the rest (4 bytes), the bytes given. Big endian.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use model::Offset;

use super::segment::parse_name;
use super::{Log, LogError, Names};
use crate::disk::{DiskFile, OpenMode, read_small_file, replace_file, write_all_at};
use crate::env::LogEnv;

const VERSION: [u8; 2] = [0, 1];
const HEADER: usize = 6;
/// 100,000 producers take less than a tenth of this.
pub(super) const SIZE_MAX: usize = 256 << 20;
/// So many of the newest are kept, beside the newest of each segment: a truncation leaves the one below it.
const KEPT: usize = 3;

/// A producer snapshot to be written, where blocking is allowed. One of a log at a time.
#[derive(Debug)]
pub struct ProducerSnapshot {
    env: LogEnv,
    path: PathBuf,
    content: Vec<u8>,
    /// To be synced first: below a snapshot they miss nothing.
    aborted: Vec<Arc<dyn DiskFile>>,
    cuts: u32,
    result: Result<(), LogError>,
}

impl Log {
    /// Writes a snapshot of the producers as of `offset`, durably (`R31`), and before it the aborted transactions that it no
    /// longer tells of. Blocks.
    ///
    /// # Errors
    /// `NoSpace`; anything else took the directory offline.
    pub fn write_producer_snapshot(&mut self, offset: Offset, state: &[u8]) -> Result<(), LogError> {
        self.usable()?;
        self.make_directory_durable()?;
        self.sync_aborted()?;
        let path = self.snapshot_path(offset);
        replace_file(&*self.env.disk, &path, &encode(state)).map_err(|e| LogError::write(&self.env.health, &path, &e))
    }

    /// The same in three steps, as a sync, so that nothing waits for the disk; None before the first sync.
    ///
    /// # Errors
    /// Where the directory is offline.
    pub fn start_producer_snapshot(
        &mut self,
        offset: Offset,
        state: &[u8],
    ) -> Result<Option<ProducerSnapshot>, LogError> {
        self.usable()?;
        if matches!(self.names, Names::Absent | Names::NewDirectory) {
            return Ok(None);
        }
        let aborted = self.take_unsynced_aborted()?;
        let (env, path, content) = (self.env.clone(), self.snapshot_path(offset), encode(state));
        Ok(Some(ProducerSnapshot { env, path, content, aborted, cuts: self.cuts, result: Ok(()) }))
    }

    /// Takes the outcome, and removes what it makes superfluous; false where the log was cut meanwhile: then it may speak
    /// of records that are gone. Its name becomes durable in its own time: a snapshot that is lost is a hint lost.
    ///
    /// # Errors
    /// What went wrong while it was written; anything but `NoSpace` and `NoDescriptor` took the directory offline.
    pub fn finish_producer_snapshot(&mut self, done: ProducerSnapshot) -> Result<bool, LogError> {
        if let Err(error) = done.result {
            if matches!(error, LogError::NoDescriptor(_)) && !done.aborted.is_empty() {
                self.put_back_unsynced_aborted();
            }
            return Err(error);
        }
        self.usable()?;
        let failed = self.failed("cannot put a producer snapshot into");
        if done.cuts != self.cuts {
            self.env.disk.remove_file(&aside(&done.path)).map_err(&failed)?;
            return Ok(false);
        }
        self.env.disk.rename(&aside(&done.path), &done.path).map_err(&failed)?;
        self.forget_superfluous_snapshots()?;
        Ok(true)
    }

    /// The newest sound snapshot at or below `max`: damaged ones are passed over. Blocks.
    ///
    /// # Errors
    /// An I/O error takes the directory offline.
    pub fn latest_producer_snapshot(&self, max: Offset) -> Result<Option<(Offset, Bytes)>, LogError> {
        self.usable()?;
        let failed = self.failed("cannot read a producer snapshot in");
        for offset in self.snapshot_offsets()?.into_iter().rev().filter(|offset| *offset <= max) {
            let content = match read_small_file(&*self.env.disk, &self.snapshot_path(offset), SIZE_MAX) {
                Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
                other => other.map_err(&failed)?,
            };
            if let Some(state) = content.and_then(decode) {
                return Ok(Some((offset, state)));
            }
            tracing::warn!(dir = %self.dir.display(), %offset, "a producer snapshot is damaged and passed over");
        }
        Ok(None)
    }

    /// Snapshots of what is no longer in the log say nothing of it; durably, as other records will stand there.
    pub(super) fn forget_snapshots_above(&mut self, end: Offset) -> Result<(), LogError> {
        if self.forget_snapshots(|offset| offset > end)? { self.sync_names() } else { Ok(()) }
    }

    /// Snapshots below the log start, but for the newest of them, are never read again.
    pub(super) fn forget_snapshots_below(&mut self, start: Offset) -> Result<(), LogError> {
        let newest = self.snapshot_offsets()?.into_iter().rfind(|offset| *offset <= start);
        self.forget_snapshots(|offset| newest.is_some_and(|newest| offset < newest)).map(drop)
    }

    fn forget_superfluous_snapshots(&mut self) -> Result<(), LogError> {
        let offsets = self.snapshot_offsets()?;
        let recent = offsets.len().saturating_sub(KEPT);
        let segment = |offset: Offset| self.segments.partition_point(|segment| segment.base <= offset);
        let superfluous: BTreeSet<Offset> = offsets
            .windows(2)
            .take(recent)
            .filter(|pair| segment(pair[0]) == segment(pair[1]))
            .map(|pair| pair[0])
            .collect();
        if !superfluous.is_empty() {
            self.forget_snapshots(|offset| superfluous.contains(&offset))?;
        }
        Ok(())
    }

    /// Whether there were any.
    fn forget_snapshots(&mut self, which: impl Fn(Offset) -> bool) -> Result<bool, LogError> {
        let failed = self.failed("cannot remove a producer snapshot in");
        let mut any = false;
        for offset in self.snapshot_offsets()?.into_iter().filter(|offset| which(*offset)) {
            self.env.disk.remove_file(&self.snapshot_path(offset)).map_err(&failed)?;
            any = true;
        }
        Ok(any)
    }

    fn snapshot_offsets(&self) -> Result<Vec<Offset>, LogError> {
        if self.names == Names::Absent {
            return Ok(Vec::new());
        }
        let entries = self.env.disk.list(&self.dir).map_err(self.failed("cannot list"))?;
        let mut offsets: Vec<Offset> = entries.iter().filter_map(|e| parse_name(&e.name, "snapshot")).collect();
        offsets.sort_unstable();
        Ok(offsets)
    }

    fn snapshot_path(&self, offset: Offset) -> PathBuf {
        self.dir.join(format!("{:020}.snapshot", offset.0))
    }
}

impl ProducerSnapshot {
    /// Writes, beside the place where it will stand. Blocks.
    #[must_use = "the log waits for the outcome"]
    pub fn run(mut self) -> Self {
        self.result = self.sync_aborted().and_then(|()| {
            let written = self.write();
            written.map_err(|e| LogError::write(&self.env.health, &self.path, &e))
        });
        self
    }

    fn sync_aborted(&self) -> Result<(), LogError> {
        let dir = self.path.parent().filter(|_| !self.aborted.is_empty());
        let synced = self.aborted.iter().try_for_each(|file| file.sync_data());
        let synced = synced.and_then(|()| dir.map_or(Ok(()), |dir| self.env.disk.sync_dir(dir)));
        synced.map_err(|e| LogError::fatal(&self.env.health, &self.path, "cannot sync what stands beside", &e))
    }

    fn write(&self) -> io::Result<()> {
        let file = self.env.disk.open(&aside(&self.path), OpenMode::Truncate)?;
        write_all_at(&*file, &mut [IoSlice::new(&self.content)], 0)?;
        file.sync_data()
    }
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    aside.into()
}

fn encode(state: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(HEADER + state.len());
    content.extend_from_slice(&VERSION);
    content.extend_from_slice(&model::batch::crc32c(state).to_be_bytes());
    content.extend_from_slice(state);
    content
}

pub(super) fn decode(content: Vec<u8>) -> Option<Bytes> {
    let stored = content.get(2..HEADER)?;
    let sound = content.starts_with(&VERSION) && model::batch::crc32c(&content[HEADER..]).to_be_bytes() == stored;
    sound.then(|| Bytes::from(content).slice(HEADER..))
}
