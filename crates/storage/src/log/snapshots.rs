//! Producer snapshots (`R41`) as opaque bytes: `<offset>.snapshot` says what producers had written below that offset.
//!
//! Layout: version (2 bytes, 1), CRC32C of the rest (4 bytes), the bytes given. Big endian.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use model::Offset;

use super::segment::parse_name;
use super::{Log, LogError, Names};
use crate::disk::{read_small_file, replace_file};

const VERSION: [u8; 2] = [0, 1];
const HEADER: usize = 6;
/// 100,000 producers take less than a tenth of this.
const SIZE_MAX: usize = 256 << 20;

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
        let mut content = Vec::with_capacity(HEADER + state.len());
        content.extend_from_slice(&VERSION);
        content.extend_from_slice(&model::batch::crc32c(state).to_be_bytes());
        content.extend_from_slice(state);
        let path = self.snapshot_path(offset);
        replace_file(&*self.env.disk, &path, &content).map_err(|e| LogError::write(&self.env.health, &path, &e))
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

fn decode(content: Vec<u8>) -> Option<Bytes> {
    let stored = content.get(2..HEADER)?;
    let sound = content.starts_with(&VERSION) && model::batch::crc32c(&content[HEADER..]).to_be_bytes() == stored;
    sound.then(|| Bytes::from(content).slice(HEADER..))
}
