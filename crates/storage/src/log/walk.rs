//! Walks over the batch headers of a segment file, through a read buffer.
//!
//! Invariants: what it yields lies whole within the file and has sane lengths and offsets; the CRC is the caller's to ask
//! for. No byte of a file leads to an allocation beyond the file's own size.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use model::batch::HEADER_LEN;
use model::{BatchHeader, LeaderEpoch, Offset};

use crate::disk::{DiskFile, read_exact_at};

/// Buffer for walking far.
pub(super) const FAR: usize = 64 << 10;
/// Buffer for walking from an index entry to an offset near it.
pub(super) const NEAR: usize = 4 << 10;

/// What stands at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Batch(BatchHeader),
    End,
    Bad(&'static str),
}

/// What the batches of a log are held to, one after the other: they ascend, lie in reach of their segment's base, and their
/// leader epochs never fall. Their checksum covers neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Order {
    /// No batch may begin below.
    pub(super) expected: Offset,
    pub(super) last_epoch: LeaderEpoch,
}

impl Order {
    pub(super) fn from(expected: Offset) -> Self {
        Self { expected, last_epoch: LeaderEpoch::NONE }
    }

    /// Whether this batch may come next, in a segment of this base.
    pub(super) fn allows(&self, base: Offset, header: &BatchHeader) -> bool {
        header.base_offset >= self.expected
            && header.last_offset() - base <= i64::from(i32::MAX)
            && header.leader_epoch >= self.last_epoch
    }

    pub(super) fn pass(&mut self, header: &BatchHeader) {
        (self.expected, self.last_epoch) = (header.next_offset(), header.leader_epoch);
    }
}

#[derive(Debug)]
pub(super) struct Walker {
    file: Arc<dyn DiskFile>,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    buffer_max: usize,
}

impl Walker {
    /// Over `file` from `position` to `end`.
    pub(super) fn new(file: Arc<dyn DiskFile>, position: u64, end: u64, buffer_max: usize) -> Self {
        Self { file, position, end, buffer: Vec::new(), buffer_at: 0, buffer_max }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// What stands at the position, without moving.
    pub(super) fn peek(&mut self) -> io::Result<Step> {
        let room = self.end.saturating_sub(self.position);
        if room == 0 {
            return Ok(Step::End);
        }
        if room < HEADER_LEN as u64 {
            return Ok(Step::Bad("fewer bytes than a batch header"));
        }
        let header = self.bytes(HEADER_LEN)?;
        Ok(frame(header, room).map_or_else(Step::Bad, Step::Batch))
    }

    /// Moves behind the batch that was peeked at.
    pub(super) fn skip(&mut self, header: &BatchHeader) {
        self.position += header.size as u64;
    }

    /// Peeks and moves.
    pub(super) fn next(&mut self) -> io::Result<Step> {
        let step = self.peek()?;
        if let Step::Batch(header) = &step {
            self.skip(header);
        }
        Ok(step)
    }

    /// The whole batch that was peeked at.
    pub(super) fn batch(&mut self, header: &BatchHeader) -> io::Result<Bytes> {
        Ok(Bytes::copy_from_slice(self.bytes(header.size)?))
    }

    /// The bytes of the batch that was peeked at.
    pub(super) fn raw(&mut self, header: &BatchHeader) -> io::Result<&[u8]> {
        self.bytes(header.size)
    }

    /// Whether the batch that was peeked at has the CRC that its header says.
    pub(super) fn has_good_crc(&mut self, header: &BatchHeader) -> io::Result<bool> {
        Ok(model::batch::check(self.bytes(header.size)?).is_ok())
    }

    /// `length` bytes at the position, which the file has.
    fn bytes(&mut self, length: usize) -> io::Result<&[u8]> {
        let behind = self.position.checked_sub(self.buffer_at).and_then(|n| usize::try_from(n).ok());
        let from = behind.filter(|from| from + length <= self.buffer.len());
        let from = match from {
            Some(from) => from,
            None => {
                let room = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
                // What is there already is not read again.
                let there = behind.filter(|from| *from < self.buffer.len()).map_or(0, |from| {
                    self.buffer.drain(..from);
                    self.buffer.len()
                });
                self.buffer.resize(self.buffer_max.max(length).min(room), 0);
                // Where the read fails, nothing of the buffer may be taken for the file's.
                let read = read_exact_at(&*self.file, &mut self.buffer[there..], self.position + there as u64);
                if let Err(error) = read {
                    self.buffer.clear();
                    return Err(error);
                }
                self.buffer_at = self.position;
                0
            }
        };
        Ok(&self.buffer[from..from + length])
    }
}

/// Reads a header that claims not more than `room` bytes and offsets that exist.
pub(super) fn frame(bytes: &[u8], room: u64) -> Result<BatchHeader, &'static str> {
    let header = BatchHeader::read(bytes).ok_or("impossible length")?;
    if bytes[16] != 2 {
        return Err("magic is not 2");
    }
    if header.size < HEADER_LEN || header.size as u64 > room {
        return Err("length does not fit");
    }
    let end = header.base_offset.0.checked_add(i64::from(header.last_offset_delta) + 1);
    if header.base_offset.0 < 0 || header.last_offset_delta < 0 || end.is_none() {
        return Err("offsets out of range");
    }
    Ok(header)
}
