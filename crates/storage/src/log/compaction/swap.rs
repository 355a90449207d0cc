//! Putting a cleaned copy in the place of the segments that it is of, and the checkpoint of how far a log is cleaned.
//!
//! ```text
//!  1  <base>.{log,index,…}.cleaned   written and synced, names included, without the log
//!  2  <base>-<last>.swap                     an empty file, durable: from here on the swap happens, whatever else does
//!  3  the segments base..=last put away, the copy renamed, in any order
//!  4  the directory synced, the .swap file removed, the directory synced: without the log, by [`SwapEnd::run`]
//! ```
//!
//! A crash before 2 is durable leaves the old segments: a start removes the copy. After it, a start does 3 and 4: each file
//! of the copy that is still there is what has not been renamed yet. So there are the old or the new segments, never both.
//!
//! Invariant: 2 and 3 are done under whatever lock the log stands; until 4 is through, no segment in that range is made or
//! cut, and no other copy written: a cut first does 4 itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Offset, Time};

use super::Cleaned;
use crate::checkpoint;
use crate::disk::{Disk, OpenMode, read_small_file, replace_file};
use crate::env::LogEnv;
use crate::log::retention::put_away;
use crate::log::segment::{CLEANED, FILE_KINDS, beside, file_path};
use crate::log::truncate::segment_bases;
use crate::log::{Log, LogError, Names};

const SWAP: &str = ".swap";

/// What is left of a swap once the names are in place; to be run without the log.
#[derive(Debug)]
pub struct SwapEnd {
    env: LogEnv,
    dir: Arc<Path>,
    marker: PathBuf,
}

impl SwapEnd {
    /// Makes the new names durable, and takes the marker away. Blocks.
    ///
    /// # Errors
    /// Took the directory offline.
    pub fn run(&self) -> Result<(), LogError> {
        let ended = end(&*self.env.disk, &self.dir, &self.marker);
        ended.map_err(|e| LogError::fatal(&self.env.health, &self.dir, "cannot end the swap of a segment in", &e))
    }
}

impl Log {
    /// Steps 2 and 3: `sources` are the numbers of the segments that the copy replaces.
    pub(super) fn put_in_place(
        &mut self,
        cleaned: Cleaned,
        sources: std::ops::Range<usize>,
        now: Time,
    ) -> Result<(), LogError> {
        let failed = self.failed("cannot put a cleaned segment in place in");
        let bases: Vec<Offset> = self.segments[sources.clone()].iter().map(|segment| segment.base).collect();
        let (Some(first), Some(last)) = (bases.first(), bases.last()) else { return Ok(()) };
        let marker = marker_path(&self.dir, *first, *last);
        let disk = &*self.env.disk;
        let made = disk.open(&marker, OpenMode::Create);
        made.map_err(|e| LogError::write(&self.env.health, &marker, &e))?;
        if let Err(error) = disk.sync_dir(&self.dir) {
            // The marker may be durable or not: whichever it is, a start goes by it.
            return self.ended(Err(failed(error)));
        }
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
        self.swap = Some(marker);
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
        self.delete_later(now, away);
        Ok(())
    }

    /// What the last swap has left to do, to be done before another one begins.
    #[must_use]
    pub fn start_swap_end(&self) -> Option<SwapEnd> {
        let marker = self.swap.clone()?;
        Some(SwapEnd { env: self.env.clone(), dir: Arc::clone(&self.dir), marker })
    }

    /// Takes the outcome of [`SwapEnd::run`].
    ///
    /// # Errors
    /// As given.
    pub fn finish_swap_end(&mut self, done: Result<(), LogError>) -> Result<(), LogError> {
        done?;
        self.swap = None;
        Ok(())
    }

    /// Does at once what a swap has left to do, perhaps at the same time as the one who was to do it.
    pub(in crate::log) fn complete_swap(&mut self) -> Result<(), LogError> {
        let Some(end) = self.start_swap_end() else { return Ok(()) };
        self.finish_swap_end(end.run())
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
    remove(disk, marker)?;
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
    Ok(checkpoint::parse_one(&text).unwrap_or(Offset::ZERO))
}
