//! Looking through the log outside of the data path: headers for producer state (`R41`).

use std::sync::Arc;

use model::{BatchHeader, Offset, RecordBatch};

use super::index;
use super::segment::FileKind;
use super::walk::{FAR, Step, Walker};
use super::{Log, LogError};

impl Log {
    /// Shows each batch that ends at `from` or above, in order: its header, and whole where it is a control batch. Blocks.
    ///
    /// # Errors
    /// `Corrupt`; an I/O error takes the directory offline.
    pub fn scan(&self, from: Offset, mut see: impl FnMut(&BatchHeader, Option<&RecordBatch>)) -> Result<(), LogError> {
        self.walk(from, |walker, header| {
            if header.is_control() {
                see(header, Some(&walker.checked_batch(header)?));
            } else {
                see(header, None);
            }
            Ok(None::<()>)
        })
        .map(|_| ())
    }

    /// Walks the batches that end at `from` or above, until `see` gives something.
    pub(super) fn walk<T>(
        &self,
        from: Offset,
        mut see: impl FnMut(&mut LogWalker<'_>, &BatchHeader) -> Result<Option<T>, LogError>,
    ) -> Result<Option<T>, LogError> {
        self.usable()?;
        let failed = self.failed("cannot read in");
        let first = self.segments.partition_point(|segment| segment.base <= from).saturating_sub(1);
        for segment in &self.segments[first.min(self.segments.len())..] {
            if segment.size == 0 {
                continue;
            }
            let files = segment.files(&self.env, &self.dir);
            let log = files.open(FileKind::Log).map_err(&failed)?;
            let end = u64::from(segment.size);
            let start = index::floor(&files, from, end).map_err(&failed)?;
            let mut walker = LogWalker {
                log: self,
                base: segment.base,
                expected: segment.base,
                walker: Walker::new(log, start, end, FAR),
            };
            loop {
                match walker.walker.peek().map_err(&failed)? {
                    Step::End => break,
                    Step::Bad(what) => return Err(walker.corrupt(what)),
                    Step::Batch(header) => {
                        if header.last_offset() >= from
                            && let Some(found) = see(&mut walker, &header)?
                        {
                            return Ok(Some(found));
                        }
                        walker.walker.skip(&header);
                        walker.expected = header.next_offset();
                    }
                }
            }
        }
        Ok(None)
    }
}

/// A walker that knows where it is.
pub(super) struct LogWalker<'a> {
    log: &'a Log,
    base: Offset,
    /// The batches before end there.
    expected: Offset,
    walker: Walker,
}

impl LogWalker<'_> {
    /// The batch with this header, at which the walk is, checked whole.
    fn checked_batch(&mut self, header: &BatchHeader) -> Result<RecordBatch, LogError> {
        let read = self.walker.batch(header).map_err(self.log.failed("cannot read in"))?;
        let mut bytes = read;
        RecordBatch::split_off(&mut bytes).map_err(|e| self.corrupt(&e.to_string()))
    }

    fn corrupt(&self, what: &str) -> LogError {
        let path = super::segment::file_path(&Arc::clone(&self.log.dir), self.base, FileKind::Log);
        LogError::Corrupt { path, position: self.walker.position(), offset: self.expected, what: what.to_owned() }
    }
}
