//! Putting a cleaned copy in the place of the segments that it is of, and the checkpoint of how far a log is cleaned.
//!
//! ```text
//!  1  <base>.{log,index,…}.cleaned   written and synced, names included, without the log
//!  2  <base>-<last>.swap                     an empty file, durable: from here on the swap happens, whatever else does
//!  3  the segments base..=last put away, the copy renamed, in any order
//!  4  the directory synced, the .swap file removed, the directory synced
//! ```
//!
//! A crash before 2 is durable leaves the old segments: a start removes the copy. After it, a start does 3 and 4: each file
//! of the copy that is still there is what has not been renamed yet. So there are the old or the new segments, never both.
//!
//! Invariant: between 2 and 4 nothing else changes the log: all of it is done under whatever lock the log stands.

use std::io;
use std::path::{Path, PathBuf};

use model::{Offset, Time};

use super::Cleaned;
use crate::checkpoint;
use crate::disk::{Disk, OpenMode, read_small_file, replace_file};
use crate::log::retention::put_away;
use crate::log::segment::{CLEANED, FILE_KINDS, beside, file_path};
use crate::log::truncate::segment_bases;
use crate::log::{Log, LogError, Names};

const SWAP: &str = ".swap";

impl Log {
    /// Steps 2 to 4: `sources` are the numbers of the segments that the copy replaces.
    pub(super) fn put_in_place(
        &mut self,
        cleaned: Cleaned,
        sources: std::ops::Range<usize>,
        wall: Time,
    ) -> Result<(), LogError> {
        let failed = self.failed("cannot put a cleaned segment in place in");
        let bases: Vec<Offset> = self.segments[sources.clone()].iter().map(|segment| segment.base).collect();
        let (Some(first), Some(last)) = (bases.first(), bases.last()) else { return Ok(()) };
        let marker = marker_path(&self.dir, *first, *last);
        let disk = &*self.env.disk;
        let made = disk.open(&marker, OpenMode::Create);
        made.map_err(|e| LogError::write(&self.env.health, &marker, &e))?;
        disk.sync_dir(&self.dir).map_err(&failed)?;
        for segment in &self.segments[sources.clone()] {
            segment.files(&self.env, &self.dir).close_all();
        }
        let mut away = Vec::new();
        for base in &bases {
            for kind in FILE_KINDS {
                // A large file is not removed under a lock.
                away.extend(put_away(disk, &file_path(&self.dir, *base, kind)).map_err(&failed)?);
            }
        }
        rename_copy(disk, &self.dir, *first).map_err(&failed)?;
        end(disk, &self.dir, &marker).map_err(&failed)?;
        if self.names == Names::NewFiles {
            self.names = Names::Durable;
        }
        let at_end = sources.end + 1 == self.segments.len() && self.segments.last().is_some_and(|last| last.size == 0);
        if at_end {
            // It may have lost its records, and is still the log's last batch.
            self.last_batch = Some(cleaned.last);
        }
        self.segments.splice(sources, [cleaned.segment]);
        self.forget_aborted(&cleaned.removed_markers);
        self.delete_later(wall, away);
        Ok(())
    }

    /// The offset below which compaction has seen everything.
    pub(super) fn cleaned_to(&mut self) -> Result<Offset, LogError> {
        if let Some(known) = self.cleaned_to {
            return Ok(known);
        }
        let read = read_checkpoint(&*self.env.disk, &self.dir).map_err(self.failed("cannot read in"))?;
        self.cleaned_to = Some(read);
        Ok(read)
    }

    pub(super) fn write_cleaned_to(&mut self, offset: Offset) -> Result<(), LogError> {
        let text = checkpoint::format([offset.to_string()].into_iter());
        let path = checkpoint_path(&self.dir);
        let written = replace_file(&*self.env.disk, &path, text.as_bytes());
        written.map_err(|e| LogError::write(&self.env.health, &path, &e))?;
        self.cleaned_to = Some(offset);
        Ok(())
    }

    /// What will be written above `offset` is dirty, also after a crash: a tombstone there that counted as clean would go
    /// while an older value stays. The checkpoint goes whole: that takes no space.
    pub(in crate::log) fn forget_cleaned_above(&mut self, offset: Offset) -> Result<(), LogError> {
        if self.cleaned_to()? > offset {
            let disk = &*self.env.disk;
            let removed = remove(disk, &checkpoint_path(&self.dir)).and_then(|()| disk.sync_dir(&self.dir));
            removed.map_err(self.failed("cannot remove a checkpoint in"))?;
            self.cleaned_to = Some(Offset::ZERO);
        }
        Ok(())
    }
}

/// Completes what a crash has left of swaps; says whether there was one.
pub(in crate::log) fn complete(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
    let mut any = false;
    for entry in disk.list(dir)? {
        let Some((first, last)) = parse_marker(&entry.name) else { continue };
        any = true;
        for base in segment_bases(disk, dir)?.into_iter().filter(|base| *base > first && *base <= last) {
            for kind in FILE_KINDS {
                remove(disk, &file_path(dir, base, kind))?;
            }
        }
        rename_copy(disk, dir, first)?;
        end(disk, dir, &dir.join(&entry.name))?;
        tracing::info!(dir = %dir.display(), %first, %last, "completed the cleaning that a crash interrupted");
    }
    Ok(any)
}

/// Renames what has not been renamed, the log last.
fn rename_copy(disk: &dyn Disk, dir: &Path, base: Offset) -> io::Result<()> {
    for kind in FILE_KINDS.into_iter().rev() {
        let path = file_path(dir, base, kind);
        match disk.rename(&beside(&path, CLEANED), &path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn end(disk: &dyn Disk, dir: &Path, marker: &Path) -> io::Result<()> {
    disk.sync_dir(dir)?;
    disk.remove_file(marker)?;
    // A marker that came back would take segments away that may have names in its range by then.
    disk.sync_dir(dir)
}

fn remove(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn marker_path(dir: &Path, first: Offset, last: Offset) -> PathBuf {
    dir.join(format!("{:020}-{:020}{SWAP}", first.0, last.0))
}

fn parse_marker(name: &str) -> Option<(Offset, Offset)> {
    let (first, last) = name.strip_suffix(SWAP)?.split_once('-')?;
    let offset = |digits: &str| digits.parse().ok().map(Offset).filter(|offset| *offset >= Offset::ZERO);
    Some((offset(first)?, offset(last)?))
}

fn checkpoint_path(dir: &Path) -> PathBuf {
    dir.join("cleaner-offset-checkpoint")
}

/// A damaged checkpoint is a hint lost: the log is cleaned from its start.
fn read_checkpoint(disk: &dyn Disk, dir: &Path) -> io::Result<Offset> {
    let text = match read_small_file(disk, &checkpoint_path(dir), 4096) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(Offset::ZERO),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(Offset::ZERO),
        Err(e) => return Err(e),
    };
    let offset = match checkpoint::parse(&text).as_deref() {
        Ok([one]) => one.parse().ok(),
        _ => None,
    };
    Ok(offset.map_or(Offset::ZERO, Offset))
}
