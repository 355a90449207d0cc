//! Reads: from the tail cache at once, or as a [`ColdRead`] that is executed elsewhere, without the log.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use model::batch::{BatchCheck, BatchError, HEADER_LEN};
use model::{BatchHeader, Offset};

use super::index;
use super::segment::{FileKind, SegmentFiles};
use super::walk::{NEAR, Step, Walker};
use super::{Log, LogError};
use crate::disk::{DiskFile, read_exact_at};
use crate::env::Lease;

/// The answer to [`Log::read`].
#[derive(Debug)]
pub enum Read {
    /// Whole batches, in order.
    Memory(Vec<Bytes>),
    /// To be executed with [`ColdRead::run`], on the `DiskPool`.
    Cold(ColdRead),
}

/// A read of files. It holds them open: retention does not disturb it. A truncation of the log at the same time may show
/// in it, unless it was lent ([`Log::lend`]): where that can be (a follower), ask the log again whether the offsets are
/// still there.
#[derive(Debug)]
pub struct ColdRead {
    pub(super) segments: Vec<ColdSegment>,
    pub(super) from: Offset,
    pub(super) upto: Offset,
    pub(super) max_bytes: usize,
    min_one: bool,
    /// The records that it finds may stay in their file.
    pub(super) lease: Option<Lease>,
}

#[derive(Debug)]
pub(super) struct ColdSegment {
    files: SegmentFiles,
    pub(super) log: Arc<dyn DiskFile>,
    /// Of the same time as `log`: compaction may put other files in their place.
    pub(super) index: Option<Arc<dyn DiskFile>>,
    pub(super) size: u32,
    /// What comes after its last record: no batch of it reaches over that.
    end: Offset,
    /// A position to walk from that the index file does not have yet.
    pending: Option<u32>,
}

/// Segments that one read looks into: the second only where the first has nothing at or above the offset.
const SEGMENTS_MAX: usize = 2;

impl Log {
    /// Batches from the one that contains `from` on (or the first one after it), none of which ends at `upto` or above,
    /// of at most `max_bytes` together; with `min_one` the first is given whatever its size.
    ///
    /// # Errors
    /// `OutOfRange` where `from` is below the log start or above the log end.
    pub fn read(&self, from: Offset, upto: Offset, max_bytes: usize, min_one: bool) -> Result<Read, LogError> {
        if let Some(batches) = self.read_memory(from, upto, max_bytes, min_one)? {
            return Ok(Read::Memory(batches));
        }
        let first = self.segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
        let mut segments = Vec::with_capacity(1);
        for (i, segment) in self.segments.iter().enumerate().skip(first).take(SEGMENTS_MAX) {
            if segment.size == 0 {
                continue;
            }
            let files = segment.files(&self.env, &self.dir);
            let log =
                files.open(FileKind::Log).map_err(|e| self.fatal(&files.path(FileKind::Log), "cannot open", &e))?;
            let indexer = self.indexer.as_ref().filter(|_| i + 1 == self.segments.len());
            let pending = indexer.and_then(|indexer| indexer.floor_pending(segment.base, from));
            let end = self.segments.get(i + 1).map_or(self.log_end, |next| next.base);
            let index = match pending {
                Some(_) => None,
                None => index::open(&files).map_err(|e| self.fatal(&files.path(FileKind::Index), "cannot open", &e))?,
            };
            segments.push(ColdSegment { files, log, index, size: segment.size, end, pending });
        }
        Ok(Read::Cold(ColdRead { segments, from, upto, max_bytes, min_one, lease: None }))
    }

    /// The same, where that needs no file; None where it does.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_memory(
        &self,
        from: Offset,
        upto: Offset,
        max_bytes: usize,
        min_one: bool,
    ) -> Result<Option<Vec<Bytes>>, LogError> {
        self.usable()?;
        self.in_range(from)?;
        if from >= upto.min(self.log_end) {
            return Ok(Some(Vec::new()));
        }
        Ok(self.tail.read(from, upto, max_bytes, min_one))
    }

    /// Whether all that is to be read from `from` on is in memory now, or will be when it is appended.
    #[must_use]
    pub fn is_in_memory(&self, from: Offset) -> bool {
        if from >= self.log_end { self.tail.keeps() } else { self.tail.reaches(from) }
    }

    /// As [`Log::read`], with a cold read executed at once.
    ///
    /// # Errors
    /// As [`Log::read`] and [`ColdRead::run`].
    pub fn read_now(
        &self,
        from: Offset,
        upto: Offset,
        max_bytes: usize,
        min_one: bool,
    ) -> Result<Vec<Bytes>, LogError> {
        match self.read(from, upto, max_bytes, min_one)? {
            Read::Memory(batches) => Ok(batches),
            Read::Cold(cold) => {
                let bytes = cold.run()?;
                Ok(if bytes.is_empty() { Vec::new() } else { vec![bytes] })
            }
        }
    }
}

impl ColdRead {
    /// How many bytes it reads at most, but for a first batch that is larger than what it was given.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        let largest = self.segments.iter().map(|segment| segment.size).max().unwrap_or(0);
        self.max_bytes.min(usize::try_from(largest).unwrap_or(usize::MAX))
    }

    /// Reads: whole batches one after the other, their CRC checked. Blocks.
    ///
    /// # Errors
    /// `Corrupt` where the bytes are not batches; an I/O error takes the directory offline (`R30`).
    pub fn run(&self) -> Result<Bytes, LogError> {
        match self.find()? {
            Some(found) => self.read_found(&found, self.limit(&found)),
            None => Ok(Bytes::new()),
        }
    }

    /// The first batch that is to be given; None where there is none.
    pub(super) fn find(&self) -> Result<Option<Found>, LogError> {
        for (number, segment) in self.segments.iter().enumerate() {
            let found = segment.find(self.from).map_err(|e| segment.failed(&e))?;
            if let Some((position, first)) = found? {
                let given = first.last_offset() < self.upto && (first.size <= self.max_bytes || self.min_one);
                return Ok(given.then_some(Found { number, position, first }));
            }
        }
        Ok(None)
    }

    /// What was found and what follows, at most `limit` bytes, in memory.
    pub(super) fn read_found(&self, found: &Found, limit: usize) -> Result<Bytes, LogError> {
        let mut window = self.window(found, limit, usize::MAX);
        let whole = self.check(found, limit, &mut window)?.len;
        let mut bytes = window.buffer;
        bytes.truncate(whole);
        // What is kept as long as the answer has to be about what is in it.
        if bytes.capacity() - whole > bytes.capacity() / 8 {
            bytes.shrink_to_fit();
        }
        Ok(Bytes::from(bytes))
    }

    /// To look at what was found and what follows, at most `limit` bytes, `size` of them at once.
    pub(super) fn window(&self, found: &Found, limit: usize, size: usize) -> Window<'_> {
        let segment = &self.segments[found.number];
        // With the header that follows: where it begins says whether the last batch's offset is right.
        let upto = found.position.saturating_add(limit.saturating_add(HEADER_LEN) as u64);
        Window::new(&*segment.log, found.position, upto.min(u64::from(segment.size)), size)
    }

    /// How many bytes are given at most.
    pub(super) fn limit(&self, found: &Found) -> usize {
        self.max_bytes.max(found.first.size)
    }

    /// How much of it is sound and to be given, from the batch found on, at most `limit` bytes.
    pub(super) fn check(&self, found: &Found, limit: usize, window: &mut Window<'_>) -> Result<Checked, LogError> {
        let segment = &self.segments[found.number];
        let mut expected = found.first.base_offset;
        let mut checked = Checked { len: 0, end: expected, marks: Vec::new() };
        loop {
            let at = found.position + checked.len as u64;
            let head = window.at(at, HEADER_LEN).map_err(|e| segment.failed(&e))?;
            // Whoever asks for less than is there must not wait for the checksum of what it does not get.
            if let Some(next) = BatchHeader::read(head)
                && (checked.len + next.size > limit || next.last_offset() >= self.upto)
            {
                segment.check_order(at, &next, (expected, self.from))?;
                return Ok(checked);
            }
            match window.check_batch(at).map_err(|e| segment.failed(&e))? {
                Ok(header) => {
                    segment.check_order(at, &header, (expected, self.from))?;
                    expected = header.next_offset();
                    checked.pass(&header);
                }
                Err(BatchError::Truncated { .. }) => return Ok(checked),
                // What is sound before it is given; who reads on from there is told.
                Err(_) if checked.len > 0 => return Ok(checked),
                Err(e) => return Err(segment.corrupt(at, expected.min(self.from), e.to_string())),
            }
        }
    }
}

/// Where a read begins.
#[derive(Debug)]
pub(super) struct Found {
    /// Of the read's segments.
    pub(super) number: usize,
    pub(super) position: u64,
    pub(super) first: BatchHeader,
}

/// Whole batches that are sound.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) len: usize,
    /// What comes after the last record.
    pub(super) end: Offset,
    /// Some of the batches, the first of them, at least [`STEP`] apart: where they begin.
    pub(super) marks: Vec<(usize, BatchHeader)>,
}

/// How far apart the places are from where a part of what was checked can be read again.
pub(super) const STEP: usize = 512 << 10;

impl Checked {
    fn pass(&mut self, header: &BatchHeader) {
        if self.marks.last().is_none_or(|(at, _)| self.len - at >= STEP) {
            self.marks.push((self.len, *header));
        }
        self.len += header.size;
        self.end = header.next_offset();
    }
}

/// A part of a file in memory that moves over it forwards: all of it, or a little at a time, that stays in the processor's
/// cache.
#[derive(Debug)]
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    /// Where the bytes of `buffer` up to `filled` come from.
    position: u64,
    end: u64,
    pub(super) buffer: Vec<u8>,
    filled: usize,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn DiskFile, position: u64, end: u64, size: usize) -> Self {
        let all = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        Self { file, position, end, buffer: vec![0; all.min(size)], filled: 0 }
    }

    /// What there is from `at` on in memory, at least `least` bytes unless the window's way ends before; `at` never goes
    /// back.
    fn at(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let mut from = usize::try_from(at - self.position).unwrap_or(usize::MAX);
        assert!(
            from <= self.filled,
            "a window goes on where it is: at={at} upto={}",
            self.position + self.filled as u64
        );
        let rest = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        if self.filled - from < least.min(rest) {
            if from + least.min(rest) > self.buffer.len() {
                self.buffer.copy_within(from..self.filled, 0);
                (self.position, self.filled, from) = (at, self.filled - from, 0);
            }
            let upto = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(self.buffer.len());
            read_exact_at(self.file, &mut self.buffer[self.filled..upto], self.position + self.filled as u64)?;
            self.filled = upto;
        }
        Ok(&self.buffer[from..self.filled])
    }

    /// Checks the batch at `at`.
    fn check_batch(&mut self, at: u64) -> io::Result<Result<BatchHeader, BatchError>> {
        let available = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut check = match BatchCheck::begin(self.at(at, HEADER_LEN)?, available) {
            Ok(check) => check,
            Err(e) => return Ok(Err(e)),
        };
        while check.missing() > 0 {
            let taken = (check.header().size - check.missing()) as u64;
            check.take(self.at(at + taken, 1)?);
        }
        Ok(check.end())
    }
}

impl ColdSegment {
    /// The first batch that ends at `from` or above.
    fn find(&self, from: Offset) -> io::Result<Result<Option<(u64, BatchHeader)>, LogError>> {
        let end = u64::from(self.size);
        let start = match (self.pending, &self.index) {
            (Some(position), _) => u64::from(position),
            (None, None) => 0,
            (None, Some(index)) => {
                let entry = index::entry_in(&**index, Arc::clone(&self.log), self.files.base(), from, end)?;
                entry.map_or(0, |entry| u64::from(entry.position))
            }
        };
        let mut walker = Walker::new(Arc::clone(&self.log), start, end, NEAR);
        let mut expected = self.files.base();
        loop {
            match walker.peek()? {
                Step::Batch(header) => {
                    if let Err(corrupt) = self.check_order(walker.position(), &header, (expected, from)) {
                        return Ok(Err(corrupt));
                    }
                    if header.last_offset() >= from {
                        return Ok(Ok(Some((walker.position(), header))));
                    }
                    expected = header.next_offset();
                    walker.skip(&header);
                }
                Step::End => return Ok(Ok(None)),
                Step::Bad(what) => {
                    return Ok(Err(self.corrupt(walker.position(), expected.min(from), what.to_owned())));
                }
            }
        }
    }

    /// Batches ascend and lie within the segment: their checksum does not cover their offset. It may be the batch before
    /// that is wrong, so what is known to be sound are the records below `from`.
    fn check_order(
        &self,
        position: u64,
        header: &BatchHeader,
        (expected, from): (Offset, Offset),
    ) -> Result<(), LogError> {
        if header.base_offset < expected || header.next_offset() > self.end {
            let what = format!("a batch at offset {} where {expected} is next, of {}", header.base_offset, self.end);
            return Err(self.corrupt(position, expected.min(from), what));
        }
        Ok(())
    }

    pub(super) fn corrupt(&self, position: u64, offset: Offset, what: String) -> LogError {
        LogError::Corrupt { path: self.files.path(FileKind::Log), position, offset, what }
    }

    pub(super) fn failed(&self, error: &io::Error) -> LogError {
        self.files.read_failed(FileKind::Log, error)
    }
}
