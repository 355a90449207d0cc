//! One segment: its batches in order, and its indexes against them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{BatchHeader, EpochCache, Offset};

use super::super::aborted;
use super::super::recover::Search;
use super::super::segment::{FileKind, Stamp, file_path};
use super::super::walk::{FAR, Order, Step, Walker};
use super::super::{append, index};
use super::verify::{Finding, Report, Severity};
use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at};

const WALKED: &str = "an entry is followed only where its batch stands there; reads walk from further below, a start makes the indexes behind its recovery point again";
const REBUILT: &str = "reads walk from the segment's start, and the newest timestamp is looked for in its batches; a start makes the indexes behind its recovery point again";
const AGAIN: &str = "what is sound is kept, the rest is made again from the log";

/// Something wrong with the batches; what a start does about it depends on where it looks.
#[derive(Debug)]
pub(super) struct BadBatch {
    pub(super) path: PathBuf,
    pub(super) position: u64,
    /// Every record below was met.
    pub(super) offset: Offset,
    pub(super) what: String,
}

/// What goes from one segment to the next.
pub(super) struct LogScan<'a> {
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) dir: &'a Path,
    pub(super) order: Order,
    /// No segment was looked at yet.
    pub(super) is_first: bool,
    /// As the batches say.
    pub(super) epochs: EpochCache,
    pub(super) bad: Vec<BadBatch>,
    pub(super) report: &'a mut Report,
}

/// The indexes of a segment, followed along with its batches.
struct Indexes {
    base: Offset,
    offsets: Option<Vec<(u32, u32)>>,
    times: Option<Vec<(i64, u32)>>,
    /// The next entries to be met.
    next: usize,
    next_time: usize,
    /// Numbers of entries that are not what the batches say.
    wrong: Vec<usize>,
    wrong_times: Vec<usize>,
    max: Option<Stamp>,
    /// Markers that the index of aborted transactions names and the scan has not met.
    markers: BTreeSet<Offset>,
}

impl LogScan<'_> {
    /// Goes through the segment with this base; `limit` is the base of the next one.
    pub(super) fn segment(&mut self, base: Offset, limit: Option<Offset>) -> io::Result<()> {
        let path = file_path(self.dir, base, FileKind::Log);
        let log = self.disk.open(&path, OpenMode::ReadOnly)?;
        let size = log.size()?;
        // As a start sees it: a segment is named after the end of the one before it.
        let gap = base - self.order.expected;
        let far = !self.is_first && gap > i64::from(i32::MAX);
        if !self.is_first && gap != 0 && !far {
            self.note_bad(&path, 0, format!("the segment before ends at {}", self.order.expected));
        }
        let (before, batches) = (self.order.expected, self.report.batches);
        self.order.expected = base.max(self.order.expected);
        self.is_first = false;
        self.report.segments += 1;
        let mut indexes = self.open_indexes(base, limit.unwrap_or(Offset(i64::MAX)))?;
        let mut walker = Walker::new(Arc::clone(&log), 0, size, FAR);
        loop {
            let position = walker.position();
            match walker.peek()? {
                Step::End => break,
                Step::Batch(header) => {
                    let checked = model::batch::check(walker.raw(&header)?).map(drop).map_err(|e| e.to_string());
                    self.batch(&path, position, &header, checked, &mut indexes);
                    walker.skip(&header);
                }
                Step::Bad(what) => {
                    let next = Search::new(self.order).find(&*log, base, position + 1)?;
                    let end = next.unwrap_or(size);
                    self.unreadable(&*log, &path, (position, end), what)?;
                    if next.is_none() {
                        break;
                    }
                    walker = Walker::new(Arc::clone(&log), end, size, FAR);
                }
            }
        }
        if far && self.report.batches == batches {
            self.order.expected = before;
            self.note_bad(&path, 0, format!("no batch is in it, and the segment before ends at {before}"));
        }
        self.tell_indexes(base, size > 0, &indexes);
        Ok(())
    }

    fn batch(
        &mut self,
        path: &Path,
        position: u64,
        header: &BatchHeader,
        checked: Result<(), String>,
        indexes: &mut Indexes,
    ) {
        self.report.batches += 1;
        self.report.bytes += header.size as u64;
        indexes.meet(header, position);
        if let Err(what) = checked {
            self.note_bad(path, position, what);
        } else if !self.order.allows(indexes.base, header) {
            let (offset, epoch, order) = (header.base_offset, header.leader_epoch, self.order);
            let what = format!(
                "a batch at offset {offset} of leader epoch {epoch} follows offset {} of leader epoch {}",
                order.expected, order.last_epoch
            );
            self.note_bad(path, position, what);
        } else {
            self.order.pass(header);
            self.epochs.appended(header.leader_epoch, header.base_offset);
        }
    }

    fn unreadable(
        &mut self,
        log: &dyn DiskFile,
        path: &Path,
        (position, end): (u64, u64),
        what: &str,
    ) -> io::Result<()> {
        if end == log.size()? && is_zero(log, position, end)? {
            let what = format!("{} bytes are reserved and not written", end - position);
            let position = Some(position);
            let at_start = "a start after a crash cuts them off".to_owned();
            self.report.add(Finding { path: path.to_owned(), position, severity: Severity::Note, what, at_start });
        } else {
            self.note_bad(path, position, format!("{} bytes are no batch: {what}", end - position));
        }
        Ok(())
    }

    fn note_bad(&mut self, path: &Path, position: u64, what: String) {
        self.bad.push(BadBatch { path: path.to_owned(), position, offset: self.order.expected, what });
    }

    fn open_indexes(&mut self, base: Offset, limit: Offset) -> io::Result<Indexes> {
        let opened = |kind| {
            let path = file_path(self.dir, base, kind);
            match self.disk.open(&path, OpenMode::ReadOnly) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                opened => opened.map(|file| Some((path, file))),
            }
        };
        let mut indexes = Indexes {
            base,
            offsets: None,
            times: None,
            next: 0,
            next_time: 0,
            wrong: Vec::new(),
            wrong_times: Vec::new(),
            max: None,
            markers: BTreeSet::new(),
        };
        let (offsets, times, txns) =
            (opened(FileKind::Index)?, opened(FileKind::TimeIndex)?, opened(FileKind::TxnIndex)?);
        if let Some((path, file)) = offsets {
            let (entries, rest) = entries(&*file, index::decode_entry)?;
            self.tell_rest(&path, rest, WALKED);
            indexes.offsets = Some(entries);
        }
        if let Some((path, file)) = times {
            let (entries, rest) = entries(&*file, index::decode_time)?;
            self.tell_rest(&path, rest, WALKED);
            indexes.times = Some(entries);
        }
        if let Some((path, file)) = txns {
            let sound = aborted::check(&*file, base, limit)?.count();
            let there = file.size()?;
            if u64::from(sound) * aborted::ENTRY as u64 != there {
                let what = format!("only its first {sound} entries make sense, of {there} bytes");
                self.report.tell(Severity::Damage, &path, what, AGAIN);
            }
            indexes.markers = aborted::read(&*file, 0, sound)?.iter().map(|entry| entry.last_offset).collect();
        }
        Ok(indexes)
    }

    fn tell_rest(&mut self, path: &Path, rest: u64, at_start: &str) {
        if rest > 0 {
            self.report.tell(Severity::Damage, path, format!("{rest} bytes at its end are no entry"), at_start);
        }
    }

    fn tell_indexes(&mut self, base: Offset, any: bool, indexes: &Indexes) {
        let of = |kind| file_path(self.dir, base, kind);
        let (path, times, txns) = (of(FileKind::Index), of(FileKind::TimeIndex), of(FileKind::TxnIndex));
        for (path, missing) in [(&path, indexes.offsets.is_none()), (&times, indexes.times.is_none())] {
            if missing && any {
                self.report.tell(Severity::Damage, path, "it is missing", REBUILT);
            }
        }
        let mut wrong: Vec<(&Path, usize)> = indexes.wrong.iter().map(|number| (path.as_path(), *number)).collect();
        wrong.extend((indexes.next..indexes.offsets.as_ref().map_or(0, Vec::len)).map(|n| (path.as_path(), n)));
        wrong.extend(indexes.wrong_times.iter().map(|number| (times.as_path(), *number)));
        wrong.extend((indexes.next_time..indexes.times.as_ref().map_or(0, Vec::len)).map(|n| (times.as_path(), n)));
        for (path, number) in wrong {
            let what = format!("entry {number} is not what the batches say");
            self.report.tell(Severity::Damage, path, what, WALKED);
        }
        for marker in &indexes.markers {
            let what = format!("it names a marker at offset {marker}, and there is none");
            self.report.tell(
                Severity::Damage,
                &txns,
                what,
                "it is believed where it lies below the newest producer snapshot",
            );
        }
    }
}

impl Indexes {
    /// A batch stands at `position`.
    fn meet(&mut self, header: &BatchHeader, position: u64) {
        append::raise(&mut self.max, header);
        if header.is_control() {
            self.markers.remove(&header.last_offset());
        }
        while let Some((relative, at)) = self.offsets.as_ref().and_then(|entries| entries.get(self.next)) {
            if u64::from(*at) > position {
                break;
            }
            if u64::from(*at) < position || self.base + i64::from(*relative) != header.last_offset() {
                self.wrong.push(self.next);
            }
            self.next += 1;
        }
        while let Some((timestamp, relative)) = self.times.as_ref().and_then(|entries| entries.get(self.next_time)) {
            let offset = self.base + i64::from(*relative);
            if offset > header.last_offset() {
                break;
            }
            // It is the last batch that raised the largest timestamp.
            if self.max != Some(Stamp { timestamp: *timestamp, offset }) {
                self.wrong_times.push(self.next_time);
            }
            self.next_time += 1;
        }
    }
}

/// All entries of an index file, and how many bytes are left behind them.
fn entries<const N: usize, T>(file: &dyn DiskFile, decode: impl Fn([u8; N]) -> T) -> io::Result<(Vec<T>, u64)> {
    // No index is larger than that: segments have less than 2 GiB, and an entry every few bytes would be too many.
    let bytes = super::whole(file, 1 << 30)?;
    let whole = bytes.chunks_exact(N);
    let rest = whole.remainder().len() as u64;
    Ok((whole.map(|entry| decode(entry.try_into().expect("chunks of this size"))).collect(), rest))
}

fn is_zero(log: &dyn DiskFile, mut position: u64, end: u64) -> io::Result<bool> {
    let mut chunk = vec![0; super::CHUNK];
    while position < end {
        let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(chunk.len());
        read_exact_at(log, &mut chunk[..length], position)?;
        if chunk[..length].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        position += length as u64;
    }
    Ok(true)
}
