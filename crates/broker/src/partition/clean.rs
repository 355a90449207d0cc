//! Compaction of this partition's log (`R39`): the bound, the claim of a cleaner on it, and what its steps do under the
//! lock.
//!
//! A cleaner works in slices on the disk pool. Between them it holds nothing: a partition that is taken off this broker
//! meanwhile, or whose log fails, waits for one slice at most, and the next one is never begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::configs::CleanerConfig;
use model::{Offset, ProducerId, Time};
use storage::log::compaction::{HashKey, LastOfProducer};
use storage::{Cleanable, CleanedSwap, Cleaning, CleaningOptions, CleaningStep, LogError};

use super::{Inner, Partition};
use crate::context::Context;

/// One cleaner's right to clean this log, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    partition: Arc<Partition>,
}

/// One job of the disk pool in this log's directory, until it is dropped.
#[derive(Debug)]
struct Slice {
    partition: Arc<Partition>,
}

/// What came of a slice.
#[derive(Debug)]
pub(crate) enum SliceOutcome {
    /// Go on.
    More,
    /// The cleaning is through. True where another one has to go on at once, because the map of keys was full.
    Done(bool),
    /// The log has changed, is no longer here or has no space: to be tried again in a later round.
    GivenUp(String),
    /// A batch of the log is not what was written: nothing here can clean it.
    Uncleanable,
}

impl Partition {
    /// What there is to clean, where the topic is compacted and no cleaner is at it. Blocks.
    pub(crate) fn cleanable(self: &Arc<Self>, context: &Arc<Context>) -> Option<Cleanable> {
        // What goes by its age, or is kept for its youth, does not hang on a clock that was set wrong.
        let wall = context.judged_time().wall;
        self.handle(context, |inner, now| {
            if !inner.settings.compacted || !inner.may_be_cleaned() || inner.cleaning {
                return None;
            }
            if inner.cleaning_pause.holds(now) || inner.has_no_space_for_a_copy() {
                return None;
            }
            let bound = inner.cleaning_bound();
            inner.log.cleanable(wall, bound).unwrap_or_else(|error| {
                self.log_failed(context, inner, &error);
                None
            })
        })
    }

    /// Takes the log for one cleaner; None where another has it.
    pub(crate) fn claim_cleaning(self: &Arc<Self>) -> Option<Claim> {
        let mut inner = self.lock();
        let free = inner.may_be_cleaned() && !inner.cleaning;
        inner.cleaning |= free;
        free.then(|| Claim { partition: Arc::clone(self) })
    }

    /// Whether this log could not be cleaned, and its bytes.
    pub(crate) fn uncleanable_bytes(&self) -> Option<u64> {
        let inner = self.lock();
        inner.uncleanable.is_some().then(|| inner.log.size_bytes())
    }

    fn mark_uncleanable(&self, error: &LogError) {
        tracing::error!(topic = %self.topic, partition = %self.id.partition, %error, "this log is not compacted any more");
        self.lock().uncleanable = Some(error.to_string());
    }
}

/// After cleanings that were given up: why ever that was, the next one would not get further at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CleaningPause {
    /// How many there were, one after the other.
    given_up: u32,
    until: Time,
}

impl CleaningPause {
    /// The pause is as long as the cleaner's own after the first, and at most so many times as long.
    const LONGEST: u32 = 16;

    fn holds(&self, now: Time) -> bool {
        self.given_up > 0 && now < self.until
    }

    fn begin(&mut self, now: Time, backoff_ms: u64) {
        let times = 1u32.checked_shl(self.given_up).unwrap_or(u32::MAX).min(Self::LONGEST);
        *self = Self {
            given_up: self.given_up.saturating_add(1),
            until: Time(now.0.saturating_add(backoff_ms.saturating_mul(u64::from(times)))),
        };
    }
}

impl Claim {
    /// The cleaning was given up: the next one of this log waits.
    pub(crate) fn pause(&self, now: Time, backoff_ms: u64) {
        self.partition.lock().cleaning_pause.begin(now, backoff_ms);
    }

    /// Which partition.
    pub(crate) fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }

    /// A cleaning of what there is now. Blocks.
    pub(crate) fn start(&self, context: &Arc<Context>, config: &CleanerConfig) -> Option<Box<Cleaning>> {
        let wall = context.judged_time().wall;
        let threads = u64::from(config.threads.max(1));
        let share = |bytes: u64| usize::try_from(bytes / threads).unwrap_or(usize::MAX);
        self.partition.handle(context, |inner, _| {
            if !inner.may_be_cleaned() {
                return None;
            }
            let bound = inner.cleaning_bound();
            let options = CleaningOptions {
                now: wall,
                bound,
                producers: inner.needed_batches(bound),
                dedupe_bytes: share(config.dedupe_buffer_size),
                load_factor: config.io_buffer_load_factor,
                io_buffer_bytes: share(config.io_buffer_size / 2),
                hash_key: HashKey::random(),
            };
            match inner.log.start_cleaning(options) {
                Ok(cleaning) => cleaning.map(Box::new),
                Err(error) => {
                    self.partition.log_failed(context, inner, &error);
                    None
                }
            }
        })
    }

    /// Works on a cleaning until about `budget` bytes went through it. Blocks.
    pub(crate) fn work(&self, context: &Arc<Context>, cleaning: &mut Cleaning, budget: u64) -> SliceOutcome {
        let Some(_slice) = self.begin_slice() else { return SliceOutcome::GivenUp("the replica is gone".to_owned()) };
        if self.partition.lock().has_no_space_for_a_copy() {
            return SliceOutcome::GivenUp("the log directory has less space than is to be kept free".to_owned());
        }
        match cleaning.step(budget) {
            Ok(CleaningStep::More) => SliceOutcome::More,
            Ok(CleaningStep::Swap(cleaned)) => {
                let now = context.clock.monotonic();
                let swapped = self.locked(context, |inner| match inner.log.swap_cleaned(*cleaned, now)? {
                    CleanedSwap::Done => Ok(SliceOutcome::More),
                    CleanedSwap::Outdated => Ok(SliceOutcome::GivenUp("the log was cut meanwhile".to_owned())),
                });
                // What takes long, without the lock.
                let left = self.partition.lock().log.start_swap_end();
                match left.map(|left| left.run()) {
                    None => swapped,
                    Some(done) => self.locked(context, |inner| inner.log.finish_swap_end(done).map(|()| swapped)),
                }
            }
            Ok(CleaningStep::Done) => self.locked(context, |inner| {
                let end = inner.log.finish_cleaning(cleaning)?;
                inner.cleaning_pause = CleaningPause::default();
                Ok(SliceOutcome::Done(!end))
            }),
            Err(LogError::Corrupt { .. }) if !self.partition.lock().log.is_current(cleaning) => {
                SliceOutcome::GivenUp("the log was cut meanwhile".to_owned())
            }
            Err(error) => self.stopped(context, &error),
        }
    }

    /// Removes what a cleaning that is given up has written. Blocks.
    pub(crate) fn abandon(&self, context: &Arc<Context>, cleaning: Cleaning) {
        // Where the partition is gone, so are its files, or they will be removed at the next start.
        let Some(_slice) = self.begin_slice() else { return };
        if let Err(error) = cleaning.abandon() {
            self.stopped(context, &error);
        }
    }

    fn locked(
        &self,
        context: &Arc<Context>,
        act: impl FnOnce(&mut Inner) -> Result<SliceOutcome, LogError>,
    ) -> SliceOutcome {
        match self.partition.handle(context, |inner, _| act(inner)) {
            Ok(outcome) => outcome,
            Err(error) => self.stopped(context, &error),
        }
    }

    fn stopped(&self, context: &Arc<Context>, error: &LogError) -> SliceOutcome {
        match error {
            LogError::Corrupt { .. } => {
                self.partition.handle(context, |inner, _| self.partition.log_failed(context, inner, error));
                self.partition.mark_uncleanable(error);
                return SliceOutcome::Uncleanable;
            }
            // The log is as it was, and takes appends as before.
            LogError::Gone(_) | LogError::NoSpace(_) => {}
            _ => self.partition.handle(context, |inner, _| self.partition.log_failed(context, inner, error)),
        }
        SliceOutcome::GivenUp(error.to_string())
    }

    fn begin_slice(&self) -> Option<Slice> {
        let mut inner = self.partition.lock();
        if !inner.may_be_cleaned() {
            return None;
        }
        inner.jobs += 1;
        Some(Slice { partition: Arc::clone(&self.partition) })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.partition.lock().cleaning = false;
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut inner = self.partition.lock();
        self.partition.job_ended(&mut inner);
    }
}

impl Inner {
    fn may_be_cleaned(&self) -> bool {
        // What a tombstone removes in a log that moves would come back from the part that was copied before.
        self.failed.is_none() && !self.removed && self.uncleanable.is_none() && self.moving.is_none()
    }

    /// A copy takes space before any is freed: what is to be kept free is not for it, but in logs that may use some of it.
    fn has_no_space_for_a_copy(&self) -> bool {
        self.dir.health().refuses(self.settings.log.may_use_reserve)
    }

    /// R39: nothing at or above the high watermark, or that belongs to a transaction that may still be decided.
    fn cleaning_bound(&self) -> Offset {
        self.producers.last_stable_offset(self.replica.log(), self.replica.rules())
    }

    /// The batch that keeps each active producer's state alive (R40). Where the newest may yet be cut off, as it lies above
    /// the bound, that is the newest below.
    fn needed_batches(&self, bound: Offset) -> BTreeMap<ProducerId, LastOfProducer> {
        let needed = |state: &replication::producers::ProducerState| {
            let below = state.batches().filter(|batch| batch.last_offset < bound).last();
            match (below, state.last_sequence()) {
                (Some(batch), _) => Some(LastOfProducer::Data(batch.last_offset)),
                (None, -1) => Some(LastOfProducer::Marker(state.epoch)),
                (None, _) => None,
            }
        };
        self.producers.iter().filter_map(|(id, state)| Some((id, needed(state)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_cleanings_that_were_given_up_grows_up_to_a_bound() {
        let mut pause = CleaningPause::default();
        assert!(!pause.holds(Time(0)));
        let mut now = 1_000;
        for times in [1, 2, 4, 8, 16, 16, 16] {
            pause.begin(Time(now), 100);
            assert!(pause.holds(Time(now + times * 100 - 1)) && !pause.holds(Time(now + times * 100)), "{times}");
            now += times * 100;
        }
        (0..100).for_each(|_| pause.begin(Time(now), 100));
        assert!(!pause.holds(Time(now + 1_600)));
    }
}
