//! Reads: from the tail cache at once, or as a [`ColdRead`] that is executed elsewhere, without the log.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use model::batch::{self, BatchError, HEADER_LEN};
use model::{BatchHeader, Offset};

use super::index;
use super::segment::{FileKind, SegmentFiles};
use super::walk::{NEAR, Step, Walker};
use super::{Log, LogError};
use crate::disk::{DiskFile, read_exact_at};

/// The answer to [`Log::read`].
#[derive(Debug)]
pub enum Read {
    /// Whole batches, in order.
    Memory(Vec<Bytes>),
    /// To be executed with [`ColdRead::run`], on the `DiskPool`.
    Cold(ColdRead),
}

/// A read of files. It holds them open: retention does not disturb it. A truncation of the log at the same time may show
/// in it: where that can be (a follower), ask the log again whether the offsets are still there.
#[derive(Debug)]
pub struct ColdRead {
    segments: Vec<ColdSegment>,
    from: Offset,
    upto: Offset,
    max_bytes: usize,
    min_one: bool,
}

#[derive(Debug)]
struct ColdSegment {
    files: SegmentFiles,
    log: Arc<dyn DiskFile>,
    /// Of the same time as `log`: compaction may put other files in their place.
    index: Option<Arc<dyn DiskFile>>,
    size: u32,
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
        Ok(Read::Cold(ColdRead { segments, from, upto, max_bytes, min_one }))
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
        for segment in &self.segments {
            let found = segment.find(self.from).map_err(|e| segment.failed(&e))?;
            if let Some((position, header)) = found? {
                return self.read_batches(segment, position, &header);
            }
        }
        Ok(Bytes::new())
    }

    fn read_batches(&self, segment: &ColdSegment, position: u64, first: &BatchHeader) -> Result<Bytes, LogError> {
        if first.last_offset() >= self.upto || (first.size > self.max_bytes && !self.min_one) {
            return Ok(Bytes::new());
        }
        let room = usize::try_from(u64::from(segment.size) - position).unwrap_or(usize::MAX);
        let limit = self.max_bytes.max(first.size);
        // With the header that follows: where it begins says whether the last batch's offset is right.
        let mut bytes = vec![0; limit.saturating_add(HEADER_LEN).min(room)];
        read_exact_at(&*segment.log, &mut bytes, position).map_err(|e| segment.failed(&e))?;
        let (mut whole, mut expected) = (0, first.base_offset);
        while whole < bytes.len() {
            let at = position + whole as u64;
            // Whoever asks for less than is there must not wait for the checksum of what it does not get.
            if let Some(next) = BatchHeader::read(&bytes[whole..])
                && (whole + next.size > limit || next.last_offset() >= self.upto)
            {
                segment.check_order(at, &next, (expected, self.from))?;
                break;
            }
            match batch::check(&bytes[whole..]) {
                Ok(header) => {
                    segment.check_order(at, &header, (expected, self.from))?;
                    expected = header.next_offset();
                    whole += header.size;
                }
                Err(BatchError::Truncated { .. }) => break,
                // What is sound before it is given; who reads on from there is told.
                Err(_) if whole > 0 => break,
                Err(e) => return Err(segment.corrupt(at, expected.min(self.from), e.to_string())),
            }
        }
        bytes.truncate(whole);
        // What is kept as long as the answer has to be about what is in it.
        if bytes.capacity() - whole > bytes.capacity() / 8 {
            bytes.shrink_to_fit();
        }
        Ok(Bytes::from(bytes))
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

    fn corrupt(&self, position: u64, offset: Offset, what: String) -> LogError {
        LogError::Corrupt { path: self.files.path(FileKind::Log), position, offset, what }
    }

    fn failed(&self, error: &io::Error) -> LogError {
        self.files.read_failed(FileKind::Log, error)
    }
}
