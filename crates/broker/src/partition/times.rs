//! Questions about timestamps, and retention, which asks them too: what has to be read from disk is read without the lock,
//! so that appends and reads go on meanwhile; then it is looked at again what still holds.

use std::sync::Arc;

use model::{DirectoryId, ErrorCode, LeaderEpoch, Offset, Time};
use storage::{LogError, Removal, SegmentTime, TimeLookup, TimeMatch, TimeRead};

use super::{Inner, Leadership, Partition};
use crate::api::Isolation;
use crate::clock::Judged;
use crate::context::Context;

/// The first record since a time, and the range of offsets that exist for the client.
#[derive(Debug)]
pub(crate) struct FoundByTime {
    pub(crate) found: TimeMatch,
    pub(crate) timestamp: i64,
    pub(crate) log_start: Offset,
    pub(crate) readable_end: Offset,
}

/// Who asks for a time, of which leadership.
#[derive(Clone, Copy)]
struct Asking<'a> {
    context: &'a Arc<Context>,
    epoch: LeaderEpoch,
    leadership: Leadership,
}

impl Partition {
    /// The first record that is not older than `timestamp`, or than the newest one where there is none. Blocks.
    pub(crate) fn find_by_time(
        self: &Arc<Self>,
        context: &Arc<Context>,
        epoch: LeaderEpoch,
        isolation: Isolation,
        timestamp: Option<i64>,
    ) -> Result<Option<FoundByTime>, ErrorCode> {
        let asking = Asking { context, epoch, leadership: self.leadership().0 };
        let timestamp = match timestamp {
            Some(timestamp) => timestamp,
            None => match self.newest_time(asking)? {
                Some(newest) => newest,
                None => return Ok(None),
            },
        };
        let mut from = Offset::ZERO;
        loop {
            let search = match self.while_leading(asking, |inner| inner.log.search_time(timestamp, from))? {
                TimeLookup::Nothing => return Ok(None),
                TimeLookup::Unread(read) => {
                    self.note(asking, &read)?;
                    continue;
                }
                TimeLookup::Search(search) => search,
            };
            let found = search.run().map_err(|error| self.lookup_failed(context, from, error))?;
            let answer = self.while_leading(asking, |inner| Ok((inner.log.log_start(), inner.readable_end(isolation))));
            let (log_start, readable_end) = answer?;
            match found {
                None => from = search.end(),
                // Deleted while it was looked for.
                Some(TimeMatch::Record { offset, .. }) if offset < log_start => from = log_start,
                Some(found) => return Ok(Some(FoundByTime { found, timestamp, log_start, readable_end })),
            }
        }
    }

    fn newest_time(self: &Arc<Self>, asking: Asking<'_>) -> Result<Option<i64>, ErrorCode> {
        while let Some(read) = self.while_leading(asking, |inner| inner.log.unread_time())? {
            self.note(asking, &read)?;
        }
        let newest = self.while_leading(asking, |inner| inner.log.max_timestamp())?;
        Ok(newest.map(|(timestamp, _)| timestamp))
    }

    fn note(self: &Arc<Self>, asking: Asking<'_>, read: &TimeRead) -> Result<(), ErrorCode> {
        let time = read.run().map_err(|error| self.lookup_failed(asking.context, Offset::ZERO, error))?;
        self.while_leading(asking, |inner| inner.log.note_time(&time))
    }

    /// What a lookup without the lock met is judged as what a reader meets (`R29`).
    fn lookup_failed(self: &Arc<Self>, context: &Arc<Context>, from: Offset, error: LogError) -> ErrorCode {
        match self.judge_read(context, from, error) {
            // It was of files that this log has left.
            ErrorCode::None => ErrorCode::NotLeaderOrFollower,
            told => told,
        }
    }

    /// A leader's log is never cut: what was read without the lock is still there, unless this says otherwise.
    fn while_leading<T>(
        self: &Arc<Self>,
        Asking { context, epoch, leadership }: Asking<'_>,
        ask: impl FnOnce(&mut Inner) -> Result<T, LogError>,
    ) -> Result<T, ErrorCode> {
        self.handle(context, |inner, _| {
            inner.replica.check_leader(epoch)?;
            if inner.leadership != leadership {
                return Err(ErrorCode::NotLeaderOrFollower);
            }
            ask(inner).map_err(|error| self.refuse_read(context, inner, &error))
        })
    }
}

/// `producer.id.expiration.ms`, which may be changed while the broker runs.
fn producer_id_expiration_ms(context: &Context) -> u64 {
    let image = context.image();
    let set = image.broker_config(context.config.broker_id, "producer.id.expiration.ms");
    set.and_then(|value| value.trim().parse().ok()).unwrap_or(context.config.producer_id_expiration_ms)
}

/// Retention.
impl Partition {
    /// Raises the log start over what retention no longer keeps, rolls by time, and frees what was deleted long enough ago. Tells
    /// the log start below which something is to be deleted, and in which directory's checkpoint it belongs before. Blocks.
    pub(crate) fn expire(self: &Arc<Self>, context: &Arc<Context>) -> Option<(DirectoryId, Offset)> {
        let judged = context.judged_time();
        self.read_ages(context, judged);
        let expiration_ms = producer_id_expiration_ms(context);
        let (removal, expired) = self.handle(context, |inner, now| {
            if inner.failed.is_some() || inner.removed {
                return (None, None);
            }
            let (removal, done) = housekeep(inner, judged, now);
            if inner.failed.is_none() {
                // Also where it was broken off on its way.
                let start = inner.log.log_start();
                inner.replica.handle_log_start(start);
            }
            match done {
                Ok(()) => {
                    inner.producers.expire(judged.wall, expiration_ms);
                }
                Err(error) => self.log_failed(context, inner, &error),
            }
            inner.jobs += u32::from(removal.is_some());
            let expired = inner.failed.is_none() && inner.log.has_expired(inner.last_stable_offset());
            (removal, expired.then(|| (inner.dir.id(), inner.log.log_start())))
        });
        if let Some(removal) = removal {
            self.freed(context, removal.run());
        }
        expired
    }

    /// Deletes what lies below a log start that was told by `expire`; `is_written` says whether the checkpoint holds it. Blocks.
    pub(crate) fn delete_below(
        self: &Arc<Self>,
        context: &Arc<Context>,
        (dir, start): (DirectoryId, Offset),
        is_written: bool,
    ) {
        self.handle(context, |inner, now| {
            // A log that was moved to another directory meanwhile has its turn in the next round.
            if inner.failed.is_some() || inner.removed || inner.dir.id() != dir {
                return;
            }
            let stable = inner.last_stable_offset();
            if let Err(error) = inner.log.delete_below(start, is_written, stable, now) {
                self.log_failed(context, inner, &error);
            }
        });
    }

    /// The files whose `file.delete.delay.ms` is over.
    pub(super) fn start_freeing(
        self: &Arc<Self>,
        context: &Arc<Context>,
        inner: &mut Inner,
        now: Time,
    ) -> Option<Removal> {
        if inner.freeing_due().is_none_or(|due| due > now) {
            return None;
        }
        let removal = inner.log.start_freeing(now).unwrap_or_else(|error| {
            self.log_failed(context, inner, &error);
            None
        });
        inner.jobs += u32::from(removal.is_some());
        removal
    }

    /// Removes them on the disk pool.
    pub(super) fn free(self: &Arc<Self>, context: &Arc<Context>, removal: Removal) {
        let (partition, task_context) = (Arc::clone(self), Arc::clone(context));
        context.runtime.spawn(async move {
            let removed = task_context.disk_pool.run(move || removal.run()).await;
            partition.freed(&task_context, removed);
        });
    }

    fn freed(self: &Arc<Self>, context: &Arc<Context>, removed: Result<(), LogError>) {
        self.handle(context, |inner, _| {
            self.job_ended(inner);
            if let Err(error) = removed {
                self.log_failed(context, inner, &error);
            }
        });
    }

    /// The largest timestamps of the segments that may be too old, so that their ages can be judged from memory.
    fn read_ages(self: &Arc<Self>, context: &Arc<Context>, judged: Judged) {
        let mut known: Option<SegmentTime> = None;
        loop {
            let unread = self.handle(context, |inner, _| {
                if let Some(Err(damage)) = known.take().map(|time| inner.log.note_time(&time)) {
                    self.log_failed(context, inner, &damage);
                }
                if inner.failed.is_some() || inner.removed || judged.paused {
                    return None;
                }
                let unread = inner.log.unread_time_for_retention(judged.wall);
                unread.unwrap_or_else(|error| {
                    self.log_failed(context, inner, &error);
                    None
                })
            });
            let Some(unread) = unread else { return };
            match unread.run() {
                Ok(time) => known = Some(time),
                // The log was cut meanwhile: again in the next round.
                Err(LogError::Gone(_)) => return,
                Err(error) => return self.handle(context, |inner, _| self.log_failed(context, inner, &error)),
            }
        }
    }
}

impl Inner {
    /// When files are to be freed; never by a replica that ended.
    pub(super) fn freeing_due(&self) -> Option<Time> {
        self.log.freeing_due().filter(|_| self.failed.is_none() && !self.removed)
    }
}

/// What is to be freed, and the first error. A step that finds no space keeps none of those that make some from being taken.
fn housekeep(inner: &mut Inner, judged: Judged, now: Time) -> (Option<Removal>, Result<(), LogError>) {
    let Judged { wall, paused, .. } = judged;
    let go_on = |done: &Result<(), LogError>| done.as_ref().err().is_none_or(LogError::is_shortage);
    let mut done = inner.log.maybe_roll(wall).map(drop);
    if go_on(&done) {
        // R39: nothing that is undecided, above the high watermark or in an open transaction.
        let stable = inner.last_stable_offset();
        let expired = inner.log.expire((!paused).then_some(wall), stable).map(drop);
        done = if go_on(&expired) { done.and(expired) } else { expired };
    }
    if !go_on(&done) {
        return (None, done);
    }
    match inner.log.start_freeing(now) {
        Ok(removal) => (removal, done),
        Err(error) => (None, Err(error)),
    }
}
