//! Records that stay in their file until they are sent from there: a cold read that was *lent*.
//!
//! What is checked is what is sent. A file of a segment only grows, goes away, or has another one put in its place, which
//! those who hold it open do not see; it is cut in place only above what was ever lent ([`Log::lend`], and `replace_log` in
//! `truncate`). So the bytes of a [`RecordRange`] do not change while it exists, nor while the kernel sends pages of them.
//! What may happen is that pages leave the memory between the check and the sending, and are another time read from the
//! disk: where that is seen ([`Sent::NotCached`]) they are checked again.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use model::Offset;

use super::read::{Checked, ColdRead, Found};
use super::{Log, LogError};
use crate::disk::Sent;

/// Records of fewer bytes are not worth a send of their own.
pub const LEND_MIN: usize = 64 << 10;
/// What is looked at at once: it stays in the processor's cache, and is half of what a kernel reads ahead at least.
const WINDOW: usize = 128 << 10;

/// What a cold read that may be lent has found.
#[derive(Debug)]
pub enum ColdRecords {
    /// Whole batches, checked; nothing where there are none.
    Memory(Bytes),
    /// The same, in their file.
    File(RecordRange),
}

/// Whole batches of one segment, that were checked and are in the system's page cache, most likely. Holds the file open.
#[derive(Debug)]
pub struct RecordRange {
    /// Of the one segment.
    read: ColdRead,
    position: u64,
    checked: Checked,
}

impl Log {
    /// Allows that the records of `read`, of this moment, are sent from their files, if there are enough of them and not
    /// too many files lent: from now on they are not cut in place.
    pub fn lend(&mut self, read: &mut ColdRead) {
        if read.max_bytes >= LEND_MIN && read.segments.iter().all(|segment| segment.log.can_send()) {
            read.lease = self.env.files.lend();
            if read.lease.is_some() {
                self.lent_end = self.lent_end.max(read.upto.min(self.log_end));
            }
        }
    }

    /// Whatever is there may have been lent: by the log that was opened before from this directory, in this process. Of one that
    /// is whole, nothing lies behind its end.
    pub fn assume_lent(&mut self) {
        self.lent_end = if self.lossy_from().is_none() { self.log_end } else { Offset(i64::MAX) };
    }
}

impl ColdRead {
    /// Whether it was lent.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.lease.is_some()
    }

    /// As [`ColdRead::run`], but the records stay in their file where the read was lent and they are worth it. They are read
    /// all the same, to be checked, and are then in the page cache. Blocks.
    ///
    /// # Errors
    /// As [`ColdRead::run`].
    pub fn run_to_send(mut self) -> Result<ColdRecords, LogError> {
        if !self.is_lent() {
            return self.run().map(ColdRecords::Memory);
        }
        let Some(found) = self.find()? else { return Ok(ColdRecords::Memory(Bytes::new())) };
        let limit = self.limit(&found);
        let mut window = self.window(&found, limit, WINDOW);
        let checked = self.check(&found, limit, &mut window)?;
        if checked.len < LEND_MIN {
            return self.read_found(&found, checked.len.max(found.first.size)).map(ColdRecords::Memory);
        }
        // From here on only what was found is looked at.
        let mut segment = self.segments.swap_remove(found.number);
        segment.index = None;
        segment.size = u32::try_from(found.position + checked.len as u64).expect("it lies within its segment");
        self.segments = vec![segment];
        Ok(ColdRecords::File(RecordRange { read: self, position: found.position, checked }))
    }
}

#[expect(clippy::len_without_is_empty, reason = "there is no empty one")]
impl RecordRange {
    /// Bytes, at least [`LEND_MIN`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.checked.len
    }

    /// What comes after the last record.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.checked.end
    }

    /// Sends some of what there is from byte `from` on, which is below `len`, to a socket that does not block.
    ///
    /// # Errors
    /// `WouldBlock` where the socket takes nothing now. Anything else, `UnexpectedEof` too, means that what was promised
    /// cannot be sent.
    pub fn send_to(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<Sent> {
        self.read.segments[0].log.send_to(socket, self.position + from as u64, self.len() - from)
    }

    /// Some of what there is from byte `from` on, which is below `len`, checked anew, in memory: at least one byte, and not
    /// many more than half a mebibyte, but for larger batches. Blocks.
    ///
    /// # Errors
    /// As [`ColdRead::run`]; `Corrupt` also where less is sound than was before.
    pub fn load(&self, from: usize) -> Result<Bytes, LogError> {
        let marks = &self.checked.marks;
        let next = marks.partition_point(|(at, _)| *at <= from);
        let (start, first) = marks[next - 1];
        let wanted = marks.get(next).map_or(self.len(), |(at, _)| *at) - start;
        let found = Found { number: 0, position: self.position + start as u64, first };
        let bytes = self.read.read_found(&found, wanted)?;
        if bytes.len() != wanted {
            let what = "records that were sound before are not any more".to_owned();
            return Err(self.read.segments[0].corrupt(found.position + bytes.len() as u64, first.base_offset, what));
        }
        let rest = bytes.slice(from - start..);
        // What is kept, and charged, is what is still to be sent.
        Ok(if from - start > bytes.len() / 8 { Bytes::copy_from_slice(&rest) } else { rest })
    }
}
