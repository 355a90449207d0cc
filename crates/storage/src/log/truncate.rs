//! Cutting the log's end (`R24`), starting over (`R26`), and the note that keeps a crash from trusting too much.
//!
//! A recovery point checkpoint on disk may be above the place of a truncation. What is appended there later would then
//! not be checked after a crash. So a truncation below the highest recovery point ever shown first writes a note,
//! `truncation-checkpoint`, durably: a start after a crash takes the lower of the two. The note goes once the recovery
//! point has passed that highest one again.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use model::{BatchHeader, Offset};

use super::identity;
use super::segment::{FileKind, Segment, SegmentFiles, beside, parse_name};
use super::sync::SyncState;
use super::walk::{FAR, NEAR, Step, Walker};
use super::{Condition, Log, LogError, Names, index};
use crate::checkpoint;
use crate::disk::{Disk, OpenMode, read_exact_at, read_small_file, replace_file, write_all_at};
use crate::env::FileKey;

/// What is copied at once of a file that is replaced.
const COPY: usize = 1 << 20;

/// Where a segment is cut.
struct Cut {
    position: u64,
    /// The last batch that stays in it.
    last: Option<BatchHeader>,
    /// Entries of its offset index that stay.
    index_entries: u32,
}

impl Cut {
    /// Where a log ends that is cut so; `base` is that of the segment.
    fn end(&self, base: Offset) -> Offset {
        self.last.map_or(base, |last| last.next_offset())
    }
}

impl Log {
    /// Removes every batch that has an offset at or above `offset`, durably; gives the new log end, which is the end of
    /// the last batch that stays. In a lossy log this accepts the loss (`R29`). Blocks.
    ///
    /// # Errors
    /// `OutOfRange` below the log start; `NoSpace` where a copy has to be made of what was lent ([`Log::lend`]), or for the
    /// note, and the log is as it was; `NoSpace` or `NoDescriptor`, and it is unfinished; anything else took the directory
    /// offline.
    pub fn truncate_to(&mut self, offset: Offset) -> Result<Offset, LogError> {
        self.usable()?;
        let cut = self.cut_to(offset);
        self.ended(cut)
    }

    fn cut_to(&mut self, offset: Offset) -> Result<Offset, LogError> {
        if offset < self.log_start {
            return Err(LogError::OutOfRange { offset, log_start: self.log_start, log_end: self.log_end });
        }
        if offset >= self.log_end && self.condition == Condition::Usable {
            return Ok(self.log_end);
        }
        if self.names == Names::Absent {
            self.condition = Condition::Usable;
            return Ok(self.log_end);
        }
        self.cuts = self.cuts.wrapping_add(1);
        self.complete_swap()?;
        self.forget_cleaned_above(offset)?;
        let keep = self.segments.partition_point(|segment| segment.base < offset).max(1).min(self.segments.len());
        // A batch that reaches over `offset` goes whole, and there may be a hole before it.
        let end = match keep.checked_sub(1) {
            Some(last) => {
                let cut = self.find_cut(last, offset)?;
                if self.is_lent(offset) {
                    self.copy_aside(last, cut.position)?;
                }
                cut.end(self.segments[last].base)
            }
            None => self.log_end,
        };
        self.note_truncation(end.min(offset))?;
        let cut = self.cut_noted(keep, offset);
        self.begun(cut)?;
        Ok(self.log_end)
    }

    /// The cut itself: `keep` segments stay, but for what the last one has from `offset` on.
    fn cut_noted(&mut self, keep: usize, offset: Offset) -> Result<(), LogError> {
        self.remove_segments_from(keep)?;
        if self.segments.is_empty() {
            self.start_over(self.log_end)?;
        } else {
            self.cut_active(offset)?;
        }
        if self.log_end < self.log_start {
            // What stays is below the log start, and would be taken for the whole log at the next start.
            self.remove_segments_from(0)?;
            self.start_over(self.log_start)?;
        }
        self.cut_aborted(self.log_end)?;
        self.forget_snapshots_above(self.log_end)?;
        self.accept_loss()
    }

    /// Drops everything and goes on at `offset` (`R26`), durably. Blocks.
    ///
    /// # Errors
    /// `NoSpace` for the note, and the log is as it was; `NoSpace` or `NoDescriptor`, and it is unfinished; anything else took
    /// the directory offline.
    pub fn reset_to(&mut self, offset: Offset) -> Result<(), LogError> {
        self.usable()?;
        let reset = self.begin_at(offset);
        self.ended(reset)
    }

    fn begin_at(&mut self, offset: Offset) -> Result<(), LogError> {
        if self.names == Names::Absent && offset == Offset::ZERO {
            return Ok(());
        }
        self.cuts = self.cuts.wrapping_add(1);
        self.make_directory_durable()?;
        self.complete_swap()?;
        self.forget_cleaned_above(Offset::ZERO)?;
        self.note_truncation(offset.min(self.log_start))?;
        let begun = self.begin_noted(offset);
        self.begun(begun)
    }

    fn begin_noted(&mut self, offset: Offset) -> Result<(), LogError> {
        self.remove_segments_from(0)?;
        self.start_over(offset)?;
        self.forget_snapshots_above(Offset(-1))?;
        self.accept_loss()
    }

    /// What was lossy is gone; the directory is this topic's from now on, whoever's it was.
    fn accept_loss(&mut self) -> Result<(), LogError> {
        if self.condition == Condition::Usable {
            return Ok(());
        }
        // A file that says so already is left alone: one that is written again may be empty after a crash.
        let found = identity::read(&*self.env.disk, &self.dir).map_err(self.failed("cannot read in"))?;
        if !found.is(self.topic_id) {
            self.write_identity()?;
        }
        self.condition = Condition::Usable;
        self.forget_damage()
    }

    /// An empty log that starts and ends at `offset`; an empty segment of that name says so on disk.
    fn start_over(&mut self, offset: Offset) -> Result<(), LogError> {
        self.tail.truncate_to(Offset(-1));
        self.indexer = None;
        self.aborted.start_over(offset);
        self.roll(offset)?;
        self.sync_names()?;
        self.last_batch = None;
        self.log_start = offset;
        self.lower_ends(offset);
        // Nothing is there that could be lost.
        self.synced_end = offset;
        Ok(())
    }

    /// The log ends at `end` now.
    fn lower_ends(&mut self, end: Offset) {
        self.log_end = end;
        self.truncations += 1;
        // What was lent from here on lies in files that were replaced, or are gone.
        self.lent_end = self.lent_end.min(end);
        self.synced_end = self.synced_end.min(end);
        self.unpersisted_from = self.unpersisted_from.filter(|from| *from < end);
        if let SyncState::InFlight(upto) = &mut self.sync {
            *upto = end.min(*upto);
        }
    }

    /// Where segment `number` is to be cut: before its first batch with an offset at or above `offset`.
    fn find_cut(&self, number: usize, offset: Offset) -> Result<Cut, LogError> {
        let failed = self.failed("cannot truncate in");
        let segment = &self.segments[number];
        let files = segment.files(&self.env, &self.dir);
        let end = u64::from(segment.size);
        // Entries that wait in memory are not in the file; the walk from the file's last one finds the place as well.
        let floor = index::floor_entry(&files, offset + -1, end).map_err(&failed)?;
        let log = files.create(FileKind::Log).map_err(&failed)?;
        let start = floor.map_or(0, |entry| u64::from(entry.position));
        let mut walker = Walker::new(log, start, end, NEAR);
        let mut last = None;
        while let Step::Batch(header) = walker.peek().map_err(&failed)? {
            if header.last_offset() >= offset {
                break;
            }
            walker.skip(&header);
            last = Some(header);
        }
        Ok(Cut { position: walker.position(), last, index_entries: floor.map_or(0, |entry| entry.number + 1) })
    }

    /// Cuts the last segment before the first batch with an offset at or above `offset`.
    fn cut_active(&mut self, offset: Offset) -> Result<(), LogError> {
        let failed = self.failed("cannot truncate in");
        let cut = self.find_cut(self.segments.len() - 1, offset)?;
        let Cut { position, last, index_entries } = cut;
        let active = self.segments.last().expect("the caller has checked");
        let files = active.files(&self.env, &self.dir);
        if self.is_lent(offset) {
            self.put_aside_in_place(&files, active.key).map_err(&failed)?;
        } else {
            let log = files.create(FileKind::Log).map_err(&failed)?;
            log.truncate(position).and_then(|()| log.sync_data()).map_err(&failed)?;
        }
        let last_offset = last.map_or(active.base + -1, |last| last.last_offset());
        index::cut(&files, index_entries, last_offset).map_err(&failed)?;
        self.indexer = None;
        self.tail.truncate_to(offset);
        let active = self.segments.last_mut().expect("the caller has checked");
        active.size = u32::try_from(position).expect("a cut segment is not larger than before");
        let base = active.base;
        if position == 0 {
            active.first_timestamp = None;
        }
        (active.max, active.unread, active.time_damage) = (None, 0, None);
        self.last_batch = match last {
            Some(last) => Some(last),
            None => self.last_batch_before(self.segments.len() - 1)?,
        };
        // An emptied segment says by its name where the log ends: there is no record between the last batch and it.
        self.lower_ends(cut.end(base));
        self.restore_max()
    }

    /// A `.log` whose bytes may be on their way to somebody is not cut in place: what is appended later would be sent in
    /// their stead. A copy of what stays takes its name, and who has the file open keeps it as it was. It takes the time and
    /// the space of a copy, and is rare: what was lent lies below the high watermark, where only an unclean election and
    /// damage cut.
    fn is_lent(&self, offset: Offset) -> bool {
        offset < self.lent_end
    }

    /// Makes that copy of the first `size` bytes of segment `number`, aside.
    fn copy_aside(&self, number: usize, size: u64) -> Result<(), LogError> {
        let files = self.segments[number].files(&self.env, &self.dir);
        let aside = aside(&files);
        let copied = files.create(FileKind::Log).and_then(|from| {
            let to = self.env.disk.open(&aside, OpenMode::Truncate)?;
            let mut buffer = vec![0; usize::try_from(size).unwrap_or(COPY).min(COPY)];
            let mut done = 0;
            while done < size {
                let step = buffer.len().min(usize::try_from(size - done).unwrap_or(usize::MAX));
                read_exact_at(&*from, &mut buffer[..step], done)?;
                write_all_at(&*to, &mut [IoSlice::new(&buffer[..step])], done)?;
                done += step as u64;
            }
            to.sync_data()
        });
        copied.map_err(|e| {
            // It is of no use, and the space is short, perhaps. A start removes it, too.
            let _ = self.env.disk.remove_file(&aside);
            LogError::write(&self.env.health, &aside, &e)
        })
    }

    /// Puts the copy in the place of the active segment's `.log`.
    fn put_aside_in_place(&self, files: &SegmentFiles, key: FileKey) -> io::Result<()> {
        self.env.disk.rename(&aside(files), &files.path(FileKind::Log))?;
        // After the rename: whoever opens it from here on, for whatever read, opens the copy.
        self.env.files.close(key);
        self.env.disk.sync_dir(&self.dir)
    }

    /// The largest timestamp of what the active segment still has.
    fn restore_max(&mut self) -> Result<(), LogError> {
        let failed = self.failed("cannot read in");
        let (env, dir) = (&self.env, &self.dir);
        let Some(active) = self.segments.last_mut() else { return Ok(()) };
        let files = active.files(env, dir);
        let end = u64::from(active.size);
        let floor = index::floor_entry(&files, Offset(i64::MAX), end).map_err(&failed)?;
        // The time index counts all up to there: that is read where somebody asks.
        active.unread = floor.map_or(0, |entry| entry.position);
        let start = u64::from(active.unread);
        let mut walker = Walker::new(files.create(FileKind::Log).map_err(&failed)?, start, end, FAR);
        while let Step::Batch(header) = walker.peek().map_err(&failed)? {
            let believed = walker.has_good_crc(&header).map_err(&failed)?;
            walker.skip(&header);
            active.count_time(&header, believed, walker.position());
        }
        Ok(())
    }

    /// The last batch of the segments before number `before`.
    pub(super) fn last_batch_before(&self, before: usize) -> Result<Option<BatchHeader>, LogError> {
        let failed = self.failed("cannot read in");
        for segment in self.segments[..before].iter().rev() {
            let files = segment.files(&self.env, &self.dir);
            let end = u64::from(segment.size);
            let start = index::floor(&files, Offset(i64::MAX), end).map_err(&failed)?;
            let mut walker = Walker::new(files.open(FileKind::Log).map_err(&failed)?, start, end, NEAR);
            let mut last = None;
            while let Step::Batch(header) = walker.next().map_err(&failed)? {
                last = Some(header);
            }
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Removes segments from number `keep` on, and those that a lossy start left out of the list, the last one first: a
    /// crash on the way leaves a log that is cut further above.
    fn remove_segments_from(&mut self, keep: usize) -> Result<(), LogError> {
        let failed = self.failed("cannot remove a segment in");
        let kept_base = keep.checked_sub(1).map(|last| self.segments[last].base);
        let mut bases = segment_bases(&*self.env.disk, &self.dir).map_err(&failed)?;
        bases.retain(|base| kept_base.is_none_or(|kept| *base > kept));
        for base in bases.iter().rev() {
            let known = self.segments.iter().find(|segment| segment.base == *base);
            let files = match known {
                Some(segment) => segment.files(&self.env, &self.dir),
                None => Segment::new(&self.env, *base, 0).files(&self.env, &self.dir),
            };
            files.remove().map_err(&failed)?;
        }
        if !bases.is_empty() {
            self.indexer = None;
        }
        self.segments.truncate(keep);
        self.sync_names()
    }

    /// Makes removed and added names durable before anything is written that relies on them.
    pub(super) fn sync_names(&mut self) -> Result<(), LogError> {
        let synced = self.env.disk.sync_dir(&self.dir);
        synced.map_err(|e| self.fatal(&self.dir, "cannot sync the directory", &e))?;
        if self.names == Names::NewFiles {
            self.names = Names::Durable;
        }
        Ok(())
    }

    /// The same, where there are new names.
    pub(super) fn sync_new_names(&mut self) -> Result<(), LogError> {
        match self.names {
            Names::NewDirectory => self.make_directory_durable(),
            Names::NewFiles => self.sync_names(),
            Names::Absent | Names::Durable => Ok(()),
        }
    }

    /// Leaves the note that recovery points above `offset` are void.
    fn note_truncation(&mut self, offset: Offset) -> Result<(), LogError> {
        if offset >= self.recovery_point_max {
            return Ok(());
        }
        let noted = match self.truncation_noted {
            true => read_note(&*self.env.disk, &self.dir).map_err(self.failed("cannot read a note in"))?,
            false => None,
        };
        let offset = noted.map_or(offset, |noted| noted.min(offset));
        let text = checkpoint::format([offset.to_string()].into_iter());
        let written = replace_file(&*self.env.disk, &note_path(&self.dir), text.as_bytes());
        // Nothing was cut yet: without space the log is as it was.
        written.map_err(self.short())?;
        self.truncation_noted = true;
        Ok(())
    }

    /// The recovery point may have moved: a note that it has passed goes.
    pub(super) fn raise_recovery_point(&mut self) -> Result<(), LogError> {
        let now = self.recovery_point();
        if now < self.recovery_point_max {
            return Ok(());
        }
        self.recovery_point_max = now;
        if std::mem::take(&mut self.truncation_noted) {
            // Not synced: a note that comes back only makes the next recovery look at more.
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

/// The offset of the note: recovery points above it are void. A damaged one voids them all.
pub(super) fn read_note(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Offset>> {
    let text = match read_small_file(disk, &note_path(dir), 4096) {
        Ok(None) => return Ok(None),
        Ok(Some(text)) => text,
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Vec::new(),
        Err(e) => return Err(e),
    };
    Ok(Some(checkpoint::parse_one(&text).unwrap_or(Offset::ZERO)))
}

/// The base offsets of all segments in a directory, ascending.
pub(super) fn segment_bases(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Offset>> {
    let mut bases: Vec<Offset> = disk.list(dir)?.iter().filter_map(|entry| parse_name(&entry.name, "log")).collect();
    bases.sort_unstable();
    Ok(bases)
}

/// Where the copy of a `.log` is made that is to take its place.
fn aside(files: &SegmentFiles) -> PathBuf {
    beside(&files.path(FileKind::Log), ".tmp")
}

fn note_path(dir: &Path) -> PathBuf {
    dir.join("truncation-checkpoint")
}
