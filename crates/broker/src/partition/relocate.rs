//! This replica on its way to another log directory of the broker: what a move asks of the partition, under its lock.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use model::{ErrorCode, Offset};
use storage::log::relocation::{Beside, Relocation};
use storage::{LogConfig, LogDir, LogError};

use super::{Inner, Partition, SyncState};
use crate::api::ReplicaOnDisk;
use crate::context::Context;

/// How long the jobs of a log are held up for a swap, at most.
const QUIET_AT_MOST: Duration = Duration::from_secs(1);

/// A move that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Counts the moves of this process.
    pub(crate) number: u64,
    /// Where to.
    pub(crate) to: Arc<LogDir>,
}

/// A move under way.
#[derive(Debug)]
pub(super) struct Moving {
    wanted: Wanted,
    /// How far the copy goes, and its bytes.
    copied: (Offset, u64),
    /// The broker stops: the move goes on when it starts again.
    held: bool,
}

/// What came of one step of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copied {
    /// So many bytes were copied.
    Bytes(u64),
    /// The copy has all that there was a moment ago.
    All,
    /// The log is in the new directory.
    Swapped,
    /// Nobody wants the move any more, or the replica is gone.
    GivenUp,
    /// The broker stops, or the log has failed: the copy stays for the next start.
    Held,
}

/// No job begins in the log's directory until this is dropped; a sync that was asked for meanwhile begins then.
struct JobsHeld {
    partition: Arc<Partition>,
    context: Arc<Context>,
}

impl JobsHeld {
    fn hold(partition: &Arc<Partition>, context: &Arc<Context>) -> JobsHeld {
        partition.lock().jobs_held = true;
        JobsHeld { partition: Arc::clone(partition), context: Arc::clone(context) }
    }
}

impl Drop for JobsHeld {
    fn drop(&mut self) {
        self.partition.handle(&self.context, |inner, _| {
            inner.jobs_held = false;
            if std::mem::take(&mut inner.sync_held) {
                drop(self.partition.sync(&self.context, inner));
            }
        });
        self.partition.quiet.notify_waiters();
    }
}

impl Partition {
    /// Has the replica moved to a directory; to the one that it is in: a move that is under way is given up.
    pub(crate) fn move_to(self: &Arc<Self>, context: &Context, to: &Arc<LogDir>) -> ErrorCode {
        let mut inner = self.lock();
        if inner.failed.is_some() || !inner.dir.works() {
            return ErrorCode::KafkaStorageError;
        }
        let same = inner.moving.as_ref().is_some_and(|moving| moving.wanted.to.id() == to.id());
        if same || inner.removed {
            return ErrorCode::None;
        }
        inner.moving = None;
        if inner.dir.id() != to.id() {
            let wanted = Wanted { number: context.moves.begin(self.id), to: Arc::clone(to) };
            inner.moving = Some(Moving { wanted, copied: (Offset::ZERO, 0), held: false });
        }
        ErrorCode::None
    }

    /// The move that is wanted.
    pub(crate) fn wanted_move(&self) -> Option<Wanted> {
        self.lock().moving.as_ref().map(|moving| moving.wanted.clone())
    }

    /// A move came to nothing.
    pub(crate) fn move_ended(&self, number: u64) {
        self.lock().moving.take_if(|moving| moving.wanted.number == number);
    }

    /// Whether a cleaner is still at the log, which a move waits for.
    pub(crate) fn is_cleaned(&self) -> bool {
        self.lock().cleaning
    }

    /// The configs of the log.
    pub(crate) fn log_config(&self) -> Arc<LogConfig> {
        Arc::clone(self.lock().log.config())
    }

    /// The copy that a move is making: where, and what it takes on disk.
    pub(crate) fn future_on_disk(&self) -> Option<(Arc<LogDir>, ReplicaOnDisk)> {
        let inner = self.lock();
        let moving = inner.moving.as_ref()?;
        let (end, size) = moving.copied;
        let offset_lag = (inner.log.log_end() - end).max(0);
        let replica = ReplicaOnDisk { partition: self.id, size, offset_lag, is_future: true };
        Some((Arc::clone(&moving.wanted.to), replica))
    }

    /// One step of a move, of about so many bytes. Blocks.
    ///
    /// # Errors
    /// What went wrong with either log. One that cannot be read ends as after any read; else the replica is as it was.
    pub(crate) fn copy_some(
        self: &Arc<Self>,
        context: &Arc<Context>,
        number: u64,
        relocation: &mut Relocation,
        bytes: usize,
    ) -> Result<Copied, LogError> {
        let next = {
            let mut inner = self.lock();
            if let Some(ended) = inner.move_is_over(number) {
                return Ok(ended);
            }
            if inner.log.lossy_from().is_some() {
                // It takes its leader's records first.
                return Ok(Copied::Bytes(0));
            }
            let Inner { log, replica, .. } = &mut *inner;
            relocation.next(log, replica.epochs(), bytes)?
        };
        let copied = match next {
            None => 0,
            Some(step) => {
                let (from, cuts) = (step.begins_at(), step.cuts());
                let read = step.read();
                // What was read while the log was cut may be anything: a mixture of what was there and what came.
                if self.lock().log.truncations() != cuts {
                    return Ok(Copied::Bytes(0));
                }
                match read {
                    Ok(portion) => relocation.write(portion)?,
                    Err(error) => match self.judge_read(context, from, error.clone()) {
                        ErrorCode::None => return Ok(Copied::Bytes(0)),
                        _ => return Err(error),
                    },
                }
            }
        };
        if copied == 0 {
            relocation.sync()?;
        }
        if let Some(moving) = self.lock().moving.as_mut().filter(|moving| moving.wanted.number == number) {
            moving.copied = relocation.progress();
        }
        Ok(if copied > 0 { Copied::Bytes(copied) } else { Copied::All })
    }

    /// Puts a copy that has all in the log's place. Until that is done, or cannot be, no job begins in the log's directory.
    ///
    /// # Errors
    /// As [`Partition::copy_some`].
    pub(crate) async fn swap(
        self: &Arc<Self>,
        context: &Arc<Context>,
        number: u64,
        mut relocation: Box<Relocation>,
    ) -> (Box<Relocation>, Result<Copied, LogError>) {
        let _held = JobsHeld::hold(self, context);
        if tokio::time::timeout(QUIET_AT_MOST, self.settled()).await.is_err() {
            return (relocation, Ok(Copied::All));
        }
        let (partition, job_context) = (Arc::clone(self), Arc::clone(context));
        let swapping = move || {
            let outcome = partition.swap_now(&job_context, number, &mut relocation);
            (relocation, outcome)
        };
        context.disk_pool.run(swapping).await
    }

    /// Blocks.
    fn swap_now(
        self: &Arc<Self>,
        context: &Arc<Context>,
        number: u64,
        relocation: &mut Relocation,
    ) -> Result<Copied, LogError> {
        // No checkpoint is written meanwhile: none may miss what both directories promise.
        let _turn = context.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle(context, |inner, now| {
            if let Some(ended) = inner.move_is_over(number) {
                return Ok(ended);
            }
            if inner.jobs > 0 || inner.sync != SyncState::Idle || inner.log.lossy_from().is_some() {
                return Ok(Copied::All);
            }
            let end = inner.log.log_end();
            let producers = inner.producers.snapshot(end);
            let beside = Beside { epochs: inner.replica.epochs(), producers: &producers };
            let (from, before) = (Arc::clone(&inner.dir), inner.checkpoints(self.id.topic_id));
            if !relocation.swap(&mut inner.log, beside, &from)? {
                return Ok(Copied::All);
            }
            context.left(self, from.id(), before);
            inner.moved(end);
            inner.handle_synced(inner.replica.sync_point(), now);
            Ok(Copied::Swapped)
        })
    }
}

impl Inner {
    /// The replica ends: for good, or until the broker starts again.
    pub(super) fn hold_move(&mut self, removed: bool) {
        match &mut self.moving {
            Some(moving) if !removed => moving.held = true,
            _ => self.moving = None,
        }
    }

    /// Why there is nothing to do for a move.
    fn move_is_over(&self, number: u64) -> Option<Copied> {
        match self.moving.as_ref().filter(|moving| moving.wanted.number == number && !self.removed) {
            None => Some(Copied::GivenUp),
            Some(moving) if moving.held || self.failed.is_some() => Some(Copied::Held),
            Some(_) => None,
        }
    }

    /// The log is in its new directory, and all of it is durable.
    fn moved(&mut self, end: Offset) {
        if let Some(moving) = self.moving.take() {
            self.dir = moving.wanted.to;
        }
        (self.snapshot_at, self.snapshot_written) = (end, self.log.bytes_written());
        // A log without a directory has written none.
        self.epochs_changed = !self.log.is_on_disk();
        let leads = self.replica.is_leader();
        self.log.keep_tail(leads);
    }
}
