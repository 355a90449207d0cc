//! What the core's actions mean here, and the syncs that they ask for.

use std::sync::Arc;

use model::ErrorCode;
use replication::{Action, ProduceVerdict};
use storage::LogError;

use super::{Inner, Link, Partition, SyncState};
use crate::context::Context;
use crate::loading::load_producers;

impl Partition {
    /// Carries out every action that is due, in order, under the lock; then sets the timer.
    pub(super) fn carry_out(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner) {
        while let Some(action) = inner.replica.poll_action() {
            self.act(context, inner, action);
        }
        if let Some(due) = inner.replica.poll_timeout()
            && inner.timer.is_none_or(|set| due < set)
        {
            inner.timer = Some(due);
            context.timers.set(due, self.id);
        }
    }

    fn act(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner, action: Action) {
        match action {
            Action::LeaderStarted { leader_epoch } => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %leader_epoch, "leads");
                context.leadership_changed(self.id, true);
            }
            Action::LeaderStopped => {
                inner.produce_waiters.fail_all(ErrorCode::NotLeaderOrFollower);
                inner.fetch_waiters.wake();
                context.leadership_changed(self.id, false);
            }
            Action::FollowerStarted { leader, leader_epoch } => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %leader, %leader_epoch, "follows");
                inner.fetch_waiters.wake();
                context.follower_streams.assign(context, leader, self);
            }
            Action::FollowerStopped => context.follower_streams.unassign(self.id),
            Action::HighWatermark(high_watermark) => {
                let replica = &inner.replica;
                inner.produce_waiters.release(high_watermark, |end| match replica.produce_verdict(end) {
                    ProduceVerdict::Done(error) => error,
                    // The waiter is below the high watermark, so the core has a verdict.
                    ProduceVerdict::Pending => ErrorCode::UnknownServerError,
                });
                inner.fetch_waiters.wake();
            }
            Action::ProposeIsr(proposal) => context.isr.propose(self, proposal),
            Action::MemberLostRecords { follower, log_end, high_watermark } => tracing::error!(
                topic = %self.topic, partition = %self.id.partition, %follower, %log_end, %high_watermark,
                "an in-sync follower came back without records below the high watermark; proposing its removal"
            ),
            Action::StreamDirty { follower } => self.queue_data(inner, follower),
            Action::SessionEnded { follower, session, error } => {
                let ended = |link: &&mut Link| link.follower == follower && link.open_no == session.open_no;
                if let Some(link) = inner.links.iter_mut().find(ended) {
                    link.stream.refuse(link.handle, link.open_no, error);
                }
                inner.links.retain(|link| link.follower != follower || link.open_no != session.open_no);
            }
            // R25: durable before the recovery point passes its newest entry; the flusher does so.
            Action::EpochsChanged => inner.epochs_changed = true,
            Action::TruncateTo(end) => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %end, "cutting the log where it parts from the leader's");
                let cut = inner.log.truncate_to(end).and_then(|_| reload_producers(inner));
                self.check_log(context, inner, cut);
            }
            Action::ResetTo(start) => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %start, "starting the log anew where the leader's starts");
                let reset = inner.log.reset_to(start).and_then(|()| reload_producers(inner));
                self.check_log(context, inner, reset);
            }
            Action::AdvanceLogStart(start) => {
                let advanced = inner.log.advance_log_start(start).map(drop);
                self.check_log(context, inner, advanced);
            }
            Action::Sync => self.sync(context, inner),
            Action::OpenSession { .. } => context.follower_streams.reopen(self.id),
            Action::CloseSession { .. } => inner.handle = None,
            Action::AckDirty => context.follower_streams.ack_moved(self.id),
        }
    }

    fn check_log(&self, context: &Arc<Context>, inner: &mut Inner, outcome: Result<(), LogError>) {
        if let Err(error) = outcome {
            self.log_failed(context, inner, &error);
        }
    }

    /// Syncs the log on the disk pool; one sync at a time, each covering all that was written before it.
    fn sync(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner) {
        if inner.sync != SyncState::Idle {
            inner.sync = SyncState::Wanted;
            return;
        }
        let point = inner.replica.sync_point();
        let ticket = match inner.log.start_sync() {
            Ok(Some(ticket)) => ticket,
            // Nothing is dirty: what is there is durable already.
            Ok(None) => return inner.replica.handle_synced(point, context.clock.monotonic()),
            Err(error) => return self.log_failed(context, inner, &error),
        };
        inner.sync = SyncState::Running;
        let (partition, context) = (Arc::clone(self), Arc::clone(context));
        tokio::spawn(async move {
            let outcome = context.disk_pool.run(move || ticket.run()).await;
            partition.handle(&context, |inner, now| {
                let wanted = std::mem::replace(&mut inner.sync, SyncState::Idle) == SyncState::Wanted;
                match inner.log.finish_sync(outcome) {
                    Ok(_) => inner.replica.handle_synced(point, now),
                    Err(error) => {
                        partition.log_failed(&context, inner, &error);
                        return;
                    }
                }
                if wanted {
                    partition.sync(&context, inner);
                }
            });
        });
    }

    /// One round of the background flusher: the epochs, then the records (`R25`). With `all`, for a clean shutdown, the
    /// indexes and a producer snapshot too. True where something became durable.
    pub(crate) async fn flush(self: &Arc<Self>, context: &Arc<Context>, all: bool) -> bool {
        let epochs = {
            let mut inner = self.lock();
            if inner.failed.is_some() || inner.removed {
                return false;
            }
            let changed = std::mem::take(&mut inner.epochs_changed) || all;
            let cache = inner.replica.epochs().clone();
            if changed { inner.log.start_epoch_checkpoint(&cache) } else { Ok(None) }
        };
        let mut moved = false;
        match epochs {
            Ok(Some(checkpoint)) => {
                let done = context.disk_pool.run(move || checkpoint.run()).await;
                self.handle(context, |inner, _| {
                    let finished = inner.log.finish_epoch_checkpoint(done);
                    self.check_log(context, inner, finished);
                });
                moved = true;
            }
            Ok(None) => {}
            Err(error) => self.handle(context, |inner, _| self.log_failed(context, inner, &error)),
        }
        if all {
            let (partition, pool_context) = (Arc::clone(self), Arc::clone(context));
            context.disk_pool.run(move || partition.settle(&pool_context)).await;
            return true;
        }
        self.handle(context, |inner, _| {
            if inner.log.needs_sync() {
                moved = true;
                self.sync(context, inner);
            }
        });
        moved
    }

    /// Completes everything on disk; blocks.
    fn settle(self: &Arc<Self>, context: &Arc<Context>) {
        self.handle(context, |inner, _| {
            let end = inner.log.log_end();
            let settled = if inner.producers.is_empty() {
                Ok(())
            } else {
                inner.log.write_producer_snapshot(end, &inner.producers.snapshot(end))
            };
            let settled = settled.and_then(|()| inner.log.settle()).map(drop);
            self.check_log(context, inner, settled);
        });
    }

    /// R30: the log takes nothing any more; the controller will hear of the directory.
    pub(super) fn log_failed(&self, context: &Arc<Context>, inner: &mut Inner, error: &LogError) {
        if let LogError::NoSpace(_) = error {
            // The log is as it was: reads go on, and writes are refused until there is space again.
            tracing::warn!(topic = %self.topic, partition = %self.id.partition, %error, "a write was refused");
        } else if inner.failed.is_none() {
            tracing::error!(topic = %self.topic, partition = %self.id.partition, %error, "the log failed; this replica serves no longer");
            inner.failed = Some(error.to_string());
            inner.produce_waiters.fail_all(ErrorCode::KafkaStorageError);
            inner.fetch_waiters.wake();
            context.log_failed();
        }
    }
}

/// After a cut, the producers' state is what the log still says (`R41`).
fn reload_producers(inner: &mut Inner) -> Result<(), LogError> {
    inner.producers = load_producers(&inner.log)?;
    Ok(())
}
