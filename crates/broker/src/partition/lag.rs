//! How far behind an offset is here: in records, and in time since the next one was appended.
//!
//! When records were appended is remembered by the monotonic clock, in a few samples: the producers' own timestamps say
//! when something happened, which may be long before. What this process did not see appended (after a start) only its
//! batch's timestamp tells; what was looked up once is remembered, so that a group that stands still costs one look.
//!
//! Invariant: samples ascend in offset and in time, and a record at or above the first one was appended no earlier than the
//! last sample at or below it says; how much later, an eighth of its age or [`EVERY_MS`] at most, where this replica kept up.

use std::collections::VecDeque;

use model::{Offset, Time};
use storage::BatchTime;

use super::Partition;

/// Samples in memory, at most: 4 KiB, and only where something is appended.
const SAMPLES_MAX: usize = 256;
/// Between two samples, at least.
const EVERY_MS: u64 = 100;
/// Two samples are one where what is between them is such a part of their age.
const PRECISION: u64 = 8;
/// Offsets whose batch was looked up that are remembered.
const LOOKED_UP_MAX: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct AppendTimes {
    samples: VecDeque<(Offset, Time)>,
    /// The leader's log end as the last frame told it.
    heard: Option<Offset>,
    /// The timestamps of the batches that these offsets are in.
    looked_up: VecDeque<(Offset, i64)>,
}

impl AppendTimes {
    /// Records from `from` on were not there before `now`.
    pub(super) fn note(&mut self, from: Offset, now: Time) {
        match self.samples.back_mut() {
            Some((last, at)) if *last == from => *at = now,
            Some((last, at)) if *last > from || now.since(*at) < EVERY_MS => {}
            _ => {
                if self.samples.len() == SAMPLES_MAX {
                    self.thin(now);
                }
                self.samples.push_back((from, now));
            }
        }
    }

    /// A frame of the leader, whose log ended at `leader_end`, brought records from `from` up to `end`.
    pub(super) fn note_frame(&mut self, from: Offset, end: Offset, leader_end: Offset, now: Time) {
        // Else they were there when the last frame came, and only the samples from before may tell of them.
        if self.heard.is_some_and(|heard| heard <= from) {
            self.note(from, now);
        }
        if end < leader_end {
            self.note(leader_end, now);
        }
        self.heard = Some(leader_end.max(end));
    }

    /// A session was opened on a log that ends here at `end`: what the leader has above may be of any age.
    pub(super) fn opened(&mut self, end: Offset, leader_end: Offset) {
        if end < leader_end {
            self.samples.clear();
        }
        self.heard = Some(leader_end);
    }

    /// The log ends at `end` now.
    pub(super) fn cut(&mut self, end: Offset) {
        while self.samples.pop_back_if(|(from, _)| *from >= end).is_some() {}
        self.looked_up.retain(|(offset, _)| *offset < end);
        self.heard = None;
    }

    fn note_looked_up(&mut self, offset: Offset, timestamp: i64) {
        if self.looked_up.len() == LOOKED_UP_MAX {
            self.looked_up.pop_front();
        }
        self.looked_up.push_back((offset, timestamp));
    }

    fn at(&self, offset: Offset) -> Option<Time> {
        let above = self.samples.partition_point(|(from, _)| *from <= offset);
        above.checked_sub(1).map(|i| self.samples[i].1)
    }

    fn timestamp(&self, offset: Offset) -> Option<i64> {
        self.looked_up.iter().find(|(known, _)| *known == offset).map(|(_, timestamp)| *timestamp)
    }

    /// Takes out what is finer than it has to be, and the oldest where that is not enough.
    fn thin(&mut self, now: Time) {
        let samples = std::mem::take(&mut self.samples);
        for (i, (from, at)) in samples.iter().enumerate() {
            let spare = self
                .samples
                .back()
                .zip(samples.get(i + 1))
                .is_some_and(|((_, before), (_, after))| after.since(*before) <= now.since(*after) / PRECISION);
            if !spare {
                self.samples.push_back((*from, *at));
            }
        }
        while self.samples.len() > SAMPLES_MAX * 3 / 4 {
            self.samples.pop_front();
        }
    }
}

/// How old the next record is.
#[derive(Debug)]
pub(crate) enum Age {
    /// So many milliseconds; 0 where there is none.
    Ms(u64),
    /// Its batch has this timestamp, by its producer's clock or the leader's.
    Timestamp(i64),
    /// Its batch has to be looked at.
    Read(BatchTime),
    /// Nobody here can tell.
    Unknown,
}

impl Partition {
    /// Records from `offset` up to the high watermark, and how old the first of them is; None where this replica does not
    /// hear of what is appended.
    pub(crate) fn behind(&self, offset: Offset, now: Time) -> Option<(u64, Age)> {
        let inner = self.lock();
        let leads = inner.replica.is_leader();
        if inner.failed.is_some() || inner.removed || !(leads || inner.handle.is_some()) {
            return None;
        }
        let end = inner.replica.log().high_watermark;
        let records = u64::try_from(end.0.saturating_sub(offset.0)).unwrap_or(0);
        if records == 0 {
            return Some((0, Age::Ms(0)));
        }
        let next = offset.max(inner.log.log_start());
        let age = match (inner.append_times.at(next), inner.append_times.timestamp(next)) {
            (Some(at), _) => Age::Ms(now.since(at)),
            (None, Some(timestamp)) => Age::Timestamp(timestamp),
            (None, None) if leads => inner.log.batch_time(next).ok().flatten().map_or(Age::Unknown, Age::Read),
            // A leader knows better, and is asked.
            (None, None) => Age::Unknown,
        };
        Some((records, age))
    }

    /// The timestamp of the next record's batch, which is remembered. Blocks. None where the log cannot tell.
    pub(crate) fn look_up(&self, offset: Offset, read: &BatchTime) -> Option<i64> {
        let timestamp = match read.run() {
            Ok(timestamp) => timestamp?,
            // Cut meanwhile, or broken: whoever needs the records meets that too, and gives the log up where it has to be.
            Err(_) => return None,
        };
        let mut inner = self.lock();
        let next = offset.max(inner.log.log_start());
        inner.append_times.note_looked_up(next, timestamp);
        Some(timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_old_as_its_append_to_within_an_eighth() {
        let mut times = AppendTimes::default();
        // A day of appends, ten a second.
        let appended = |i: i64| Time(1_000_000 + u64::try_from(i).unwrap() * 100);
        let end = 864_000;
        for i in 0..end {
            times.note(Offset(i), appended(i));
        }
        assert!(times.samples.len() <= SAMPLES_MAX);
        let now = appended(end);
        for offset in (0..end).step_by(997).chain(end - 20..end) {
            let Some(at) = times.at(Offset(offset)) else {
                assert!(offset < end / 2, "{offset} is forgotten");
                continue;
            };
            let (age, told) = (now.since(appended(offset)), now.since(at));
            assert!(told >= age && told <= age + (age / PRECISION).max(EVERY_MS), "{offset}: {age} told as {told}");
        }
    }

    #[test]
    fn what_a_follower_got_late_is_not_taken_for_new() {
        let mut times = AppendTimes::default();
        times.opened(Offset(0), Offset(50));
        times.note_frame(Offset(0), Offset(10), Offset(60), Time(1_000));
        times.note_frame(Offset(10), Offset(60), Offset(60), Time(9_000));
        assert_eq!(times.at(Offset(59)), None, "it may be of any age");
        // Caught up: what comes next is new, also after an hour in which nothing came.
        times.note_frame(Offset(60), Offset(61), Offset(61), Time(3_600_000));
        assert_eq!(times.at(Offset(60)), Some(Time(3_600_000)));
        // A new session that has missed something.
        times.opened(Offset(61), Offset(70));
        assert_eq!(times.at(Offset(60)), None);
    }

    #[test]
    fn what_is_cut_off_is_forgotten() {
        let mut times = AppendTimes::default();
        for i in 0..10 {
            times.note(Offset(i * 10), Time(1_000 * (1 + u64::try_from(i).unwrap())));
        }
        times.note_looked_up(Offset(60), 5);
        times.cut(Offset(50));
        assert_eq!((times.at(Offset(60)), times.timestamp(Offset(60))), (Some(Time(5_000)), None));
        times.note(Offset(50), Time(20_000));
        assert_eq!(times.at(Offset(60)), Some(Time(20_000)));
    }
}
