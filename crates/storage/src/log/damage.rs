//! What a read has found to be damaged, below where a start would look: a note on disk, `damage-checkpoint`, so that every
//! start looks again from there, until a truncation or a reset has accepted the loss (`R29`, `R78`).
//!
//! The note says where to look, not what is lost: a batch that reads well then, because it was the memory that erred, is
//! sound. It is of no use to a log that is sound, and goes.

use std::io;
use std::path::{Path, PathBuf};

use model::Offset;

use super::{Log, LogError};
use crate::checkpoint;
use crate::disk::{Disk, read_small_file, replace_file};
use crate::env::LogEnv;

impl Log {
    /// A read has met a batch at or behind `offset` that is not what was written: from now on each start checks the log
    /// from there, however it was stopped. Durable when this returns. Blocks.
    ///
    /// # Errors
    /// `NoSpace`; anything else took the directory offline.
    pub fn note_damage(&mut self, offset: Offset) -> Result<(), LogError> {
        self.usable()?;
        write_note(&self.env, &self.dir, offset)?;
        self.damage_noted = true;
        Ok(())
    }

    /// There is no damage any more.
    pub(super) fn forget_damage(&mut self) -> Result<(), LogError> {
        if std::mem::take(&mut self.damage_noted) {
            // Not synced: a note that comes back only makes the next start look at more.
            match self.env.disk.remove_file(&note_path(&self.dir)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(self.fatal(&self.dir, "cannot remove a note in", &e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Leaves the note, unless one says the same or more.
pub(super) fn write_note(env: &LogEnv, dir: &Path, offset: Offset) -> Result<(), LogError> {
    let (disk, path) = (&*env.disk, note_path(dir));
    let noted = read_note(disk, dir).map_err(|e| LogError::fatal(&env.health, &path, "cannot read", &e))?;
    if noted.is_some_and(|noted| noted <= offset) {
        return Ok(());
    }
    let text = checkpoint::format([offset.to_string()].into_iter());
    replace_file(disk, &path, text.as_bytes()).map_err(|e| LogError::write(&env.health, &path, &e))
}

/// Where a start has to begin to look. A damaged note says: at the beginning.
pub(super) fn read_note(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Offset>> {
    match read_small_file(disk, &note_path(dir), 4096) {
        Ok(text) => Ok(text.map(|text| checkpoint::parse_one(&text).unwrap_or(Offset::ZERO))),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Some(Offset::ZERO)),
        Err(e) => Err(e),
    }
}

fn note_path(dir: &Path) -> PathBuf {
    dir.join("damage-checkpoint")
}
