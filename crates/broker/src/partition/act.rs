//! What the core's actions mean here, and the syncs that they ask for.

use std::sync::Arc;
use std::time::Duration;

use model::{BrokerId, ErrorCode, Offset, Time};
use replication::{Action, Lane, ProduceVerdict, SyncPoint};
use rpc::replication::{Answer, OpenAnswer};
use storage::{FlushPolicy, LogError};
use tokio::task::JoinHandle;

use super::{Inner, Link, Partition, SyncState, kind_of};
use crate::context::Context;
use crate::loading::load_producers;

/// The producers' state is checkpointed after so many bytes: to replay them takes a start some milliseconds.
const SNAPSHOT_BYTES: u64 = 32 << 20;
/// Before a replica that ended for want of space is opened anew.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

impl Partition {
    /// Carries out every action that is due, in order, under the lock; then sets the timer.
    pub(super) fn carry_out(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner) {
        while let Some(action) = inner.replica.poll_action() {
            self.act(context, inner, action);
        }
        inner.note_in_flight();
        self.note_changes(context, inner);
        let own = [inner.reopen_at, self.sync_by_interval(context, inner), inner.freeing_due()];
        if let Some(due) = own.into_iter().flatten().chain(inner.replica.poll_timeout()).min()
            && inner.timer.is_none_or(|set| due < set)
        {
            inner.timer = Some(due);
            context.timers.set(due, self.id);
        }
    }

    /// Has the flusher come, where there is something for it.
    fn note_changes(&self, context: &Context, inner: &mut Inner) {
        if inner.failed.is_some() || inner.removed {
            return;
        }
        let dirty = inner.log.unsynced() > 0 || (inner.epochs_changed && inner.log.is_on_disk());
        if dirty && !std::mem::replace(&mut inner.flush_queued, dirty) {
            context.flusher.push(self.id);
        }
        let checkpoints = Some(inner.checkpoints(self.id.topic_id));
        if checkpoints != inner.checkpointed || inner.sync_history.is_ending() {
            inner.checkpointed = checkpoints;
            context.flusher.checkpoints_moved();
        }
    }

    /// Syncs where `flush.messages` or `flush.ms` say that it is time, and says when it will be.
    fn sync_by_interval(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner) -> Option<Time> {
        let policy = inner.log.flush_policy();
        let FlushPolicy::Interval { ms, .. } = policy else {
            inner.unsynced_since = None;
            return None;
        };
        // What can no longer be synced needs no timer.
        let unsynced = if inner.failed.is_some() || inner.removed { 0 } else { inner.log.unsynced() };
        if unsynced == 0 {
            inner.unsynced_since = None;
            return None;
        }
        let now = context.clock.monotonic();
        let since = *inner.unsynced_since.get_or_insert(now);
        if policy.is_due(unsynced, now.since(since)) {
            // What comes while the sync runs waits from now on.
            inner.unsynced_since = Some(now);
            self.sync(context, inner);
            return ms.map(|ms| now + ms.max(1));
        }
        ms.map(|ms| since + ms)
    }

    fn act(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner, action: Action) {
        match action {
            Action::LeaderStarted { leader_epoch } => {
                tracing::debug!(topic = %self.topic, partition = %self.id.partition, %leader_epoch, "leads");
                self.unassign(context, inner);
                self.accept_loss(context, inner);
                inner.log.keep_tail(true);
                context.leadership_changed(self, true);
            }
            Action::LeaderStopped => {
                inner.leadership.0 += 1;
                self.forget_unverified(inner, ErrorCode::NotLeaderOrFollower);
                inner.fail_waiters(ErrorCode::NotLeaderOrFollower);
                inner.fetch_waiters.wake();
                context.leadership_changed(self, false);
            }
            Action::FollowerStarted { leader, leader_epoch } => {
                tracing::debug!(topic = %self.topic, partition = %self.id.partition, %leader, %leader_epoch, "follows");
                inner.fetch_waiters.wake();
                inner.log.keep_tail(false);
                let (before, handle) = (inner.follows.take(), inner.handle.take().map(|(handle, _)| handle));
                inner.follows = Some(context.follower_streams.assign(context, leader, self, before, handle));
            }
            Action::FollowerStopped => {
                inner.fetch_waiters.wake();
                self.unassign(context, inner);
            }
            Action::HighWatermark(high_watermark) => inner.high_watermark_moved(high_watermark),
            Action::ProposeIsr(proposal) => context.isr.propose(self, inner.replica.isr(), proposal),
            Action::MemberLostRecords { follower, log_end, high_watermark } => tracing::error!(
                topic = %self.topic, partition = %self.id.partition, %follower, %log_end, %high_watermark,
                "an in-sync follower came back without records below the high watermark; proposing its removal"
            ),
            Action::StreamDirty { follower } => self.queue_data(inner, follower),
            Action::ProgressDirty { follower } => self.queue_progress(inner, follower),
            Action::SessionEnded { follower, session, error } => inner.refuse_session(follower, session.open_no, error),
            Action::SessionMoved { follower, session, to } => inner.send_away(follower, session.open_no, to),
            // R25: durable before the recovery point passes its newest entry; the flusher does so.
            Action::EpochsChanged => inner.epochs_changed = true,
            Action::TruncateTo(end) => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %end, "cutting the log where it parts from the leader's");
                let cut = inner.log.truncate_to(end).map(drop);
                self.after_cut(context, inner, cut);
            }
            Action::ResetTo(start) => {
                tracing::info!(topic = %self.topic, partition = %self.id.partition, %start, "starting the log anew where the leader's starts");
                let reset = inner.log.reset_to(start);
                self.after_cut(context, inner, reset);
            }
            Action::AdvanceLogStart(start) => {
                let advanced = inner.log.advance_log_start(start).map(drop);
                self.check_log(context, inner, advanced);
                inner.fetch_waiters.wake();
            }
            // Whoever waits for it is woken when it ends.
            Action::Sync => drop(self.sync(context, inner)),
            Action::OpenSession { .. } => {
                if let Some(stream) = &inner.follows {
                    stream.want_session(self.id);
                }
            }
            Action::MoveSession { to, .. } => self.move_session(context, inner, to),
            Action::CloseSession { .. } => {
                if let (Some((handle, _)), Some(stream)) = (inner.handle.take(), &inner.follows) {
                    stream.close_session(self.id, handle);
                }
            }
            Action::AckDirty => {
                if let Some(stream) = inner.follows.as_ref().filter(|_| !inner.in_frame) {
                    stream.ack_moved(self.id);
                }
            }
        }
    }

    /// R62: this follower's next session is on a stream of that lane.
    fn move_session(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner, to: Lane) {
        if let Some(before) = inner.follows.take() {
            let handle = inner.handle.take().map(|(handle, _)| handle);
            inner.follows = Some(context.follower_streams.move_to(context, to, self, &before, handle));
        }
    }

    /// After a cut, the producers' state is what the log still says (`R41`). A cut that failed leaves a log that is not what
    /// the core believes: whatever the reason, the replica ends.
    fn after_cut(&self, context: &Arc<Context>, inner: &mut Inner, cut: Result<(), LogError>) {
        let end = inner.log.log_end();
        inner.append_times.cut(end);
        match cut.and_then(|()| load_producers(&mut inner.log)) {
            Ok(loaded) => {
                (inner.producers, inner.snapshot_at) = loaded;
                inner.producers.stabilise(inner.replica.log().high_watermark);
            }
            Err(error) => self.fail(context, inner, &error),
        }
    }

    fn unassign(&self, context: &Context, inner: &mut Inner) {
        let handle = inner.handle.take().map(|(handle, _)| handle);
        if let Some(stream) = inner.follows.take() {
            context.follower_streams.unassign(&stream, self.id, handle);
        }
    }

    /// R29: a log that was found lossy takes records again once the controller knows and this replica follows a leader that
    /// took its open, or was chosen to lead all the same (`R35`).
    pub(super) fn accept_loss(&self, context: &Arc<Context>, inner: &mut Inner) {
        let Some(first_bad) = inner.log.lossy_from() else { return };
        tracing::error!(
            topic = %self.topic, partition = %self.id.partition, %first_bad,
            "records from here on were lost on this disk"
        );
        let end = inner.log.log_end();
        if let Err(error) = inner.log.truncate_to(end) {
            self.fail(context, inner, &error);
        }
    }

    fn check_log(&self, context: &Arc<Context>, inner: &mut Inner, outcome: Result<(), LogError>) {
        if let Err(error) = outcome {
            self.log_failed(context, inner, &error);
        }
    }

    /// Syncs the log on the disk pool; one sync at a time, each covering all that was written before it. Gives the task to
    /// wait for, where this call began one.
    pub(super) fn sync(self: &Arc<Self>, context: &Arc<Context>, inner: &mut Inner) -> Option<JoinHandle<()>> {
        if inner.failed.is_some() || inner.removed {
            return None;
        }
        if inner.jobs_held {
            inner.sync_held = true;
            return None;
        }
        if inner.sync != SyncState::Idle {
            inner.sync = SyncState::Wanted;
            return None;
        }
        let point = inner.replica.sync_point();
        let ticket = match inner.log.start_sync() {
            Ok(Some(ticket)) => ticket,
            // Nothing is dirty: what is there is durable already.
            Ok(None) => {
                inner.handle_synced(point, context.clock.monotonic());
                return None;
            }
            Err(error) => {
                self.log_failed(context, inner, &error);
                return None;
            }
        };
        inner.sync = SyncState::Running;
        inner.jobs += 1;
        let (partition, task_context) = (Arc::clone(self), Arc::clone(context));
        Some(context.runtime.spawn(async move {
            let outcome = ticket.run_in_turn(&task_context.disk_pool).await;
            partition.handle(&task_context, |inner, now| {
                partition.job_ended(inner);
                let wanted = std::mem::replace(&mut inner.sync, SyncState::Idle) == SyncState::Wanted;
                match inner.log.finish_sync(outcome) {
                    Ok(_) => inner.handle_synced(point, now),
                    Err(error) => return partition.log_failed(&task_context, inner, &error),
                }
                if wanted {
                    drop(partition.sync(&task_context, inner));
                }
            });
        }))
    }

    pub(super) fn job_ended(&self, inner: &mut Inner) {
        inner.jobs -= 1;
        if inner.jobs == 0 {
            self.quiet.notify_waiters();
        }
    }

    /// What a start after a crash would have to read, about; 0 only where it would read nothing.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        let log = &self.lock().log;
        log.unsynced_bytes().max(u64::from(log.unsynced() > 0))
    }

    /// This log's turn with the background flusher: the epochs, then the records (`R25`), then the producers.
    pub(crate) async fn flush(self: &Arc<Self>, context: &Arc<Context>) {
        // From here on a change puts it on the list again.
        self.lock().flush_queued = false;
        self.checkpoint_epochs(context).await;
        let running = self.handle(context, |inner, _| match inner.log.needs_sync() {
            true => self.sync(context, inner),
            false => None,
        });
        if let Some(running) = running {
            // It fails only where the runtime ends.
            let _ = running.await;
        }
        self.checkpoint_producers(context).await;
    }

    /// A producer snapshot after a roll, and after so many bytes that to replay them would make a start take long (`R41`).
    async fn checkpoint_producers(self: &Arc<Self>, context: &Arc<Context>) {
        let snapshot = self.handle(context, |inner, _| {
            let newest = inner.log.segments().last().map_or(Offset::ZERO, |(base, _)| base);
            let far = inner.log.bytes_written() - inner.snapshot_written >= SNAPSHOT_BYTES;
            let may = inner.failed.is_none() && !inner.removed && !inner.jobs_held;
            if !(newest > inner.snapshot_at || far) || !may {
                return None;
            }
            let end = inner.log.log_end();
            match inner.log.start_producer_snapshot(end, &inner.producers.snapshot(end)) {
                Ok(snapshot) => {
                    inner.jobs += u32::from(snapshot.is_some());
                    snapshot.map(|snapshot| (snapshot, end, inner.log.bytes_written()))
                }
                Err(error) => {
                    self.log_failed(context, inner, &error);
                    None
                }
            }
        });
        let Some((snapshot, end, written)) = snapshot else { return };
        let (partition, task_context) = (Arc::clone(self), Arc::clone(context));
        // A task of its own: it ends also where the flusher is stopped meanwhile.
        let done = context.runtime.spawn(async move {
            let done = task_context.disk_pool.run(move || snapshot.run()).await;
            partition.handle(&task_context, |inner, _| {
                partition.job_ended(inner);
                match inner.log.finish_producer_snapshot(done) {
                    Ok(true) => (inner.snapshot_at, inner.snapshot_written) = (end, written),
                    // The log was cut meanwhile.
                    Ok(false) => {}
                    Err(error) => partition.log_failed(&task_context, inner, &error),
                }
            });
        });
        // It fails only where the runtime ends.
        let _ = done.await;
    }

    /// Brings all of it to the disk, for a clean shutdown: the epochs, the producers, the records, the indexes. The replica
    /// must have no role any more. True where nothing is missing (`R10`).
    pub(crate) async fn complete(self: &Arc<Self>, context: &Arc<Context>) -> bool {
        self.wait_until(|inner| inner.jobs == 0 && !inner.jobs_held).await;
        self.lock().epochs_changed = true;
        self.checkpoint_epochs(context).await;
        let (partition, pool_context) = (Arc::clone(self), Arc::clone(context));
        context.disk_pool.run(move || partition.settle(&pool_context)).await
    }

    async fn checkpoint_epochs(self: &Arc<Self>, context: &Arc<Context>) {
        let checkpoint = self.handle(context, |inner, _| {
            if !inner.epochs_changed || inner.failed.is_some() || inner.removed || inner.jobs_held {
                return None;
            }
            match inner.log.start_epoch_checkpoint(inner.replica.epochs()) {
                Ok(Some(checkpoint)) => {
                    inner.epochs_changed = false;
                    inner.jobs += 1;
                    Some(checkpoint)
                }
                // There is no directory before the first append: again in the next round.
                Ok(None) => None,
                Err(error) => {
                    self.log_failed(context, inner, &error);
                    None
                }
            }
        });
        let Some(checkpoint) = checkpoint else { return };
        let (partition, task_context) = (Arc::clone(self), Arc::clone(context));
        // A task of its own: it ends also where the flusher is stopped meanwhile.
        let written = context.runtime.spawn(async move {
            let done = task_context.disk_pool.run(move || checkpoint.run()).await;
            partition.handle(&task_context, |inner, _| {
                partition.job_ended(inner);
                if let Err(error) = inner.log.finish_epoch_checkpoint(done) {
                    inner.epochs_changed = true;
                    partition.log_failed(&task_context, inner, &error);
                }
            });
        });
        // It fails only where the runtime ends.
        let _ = written.await;
    }

    /// Blocks.
    fn settle(self: &Arc<Self>, context: &Arc<Context>) -> bool {
        self.handle(context, |inner, _| {
            if inner.removed {
                return true;
            }
            if inner.failed.is_some() {
                return false;
            }
            let snapshot = if inner.log.log_end() > inner.snapshot_at { snapshot_producers(inner) } else { Ok(()) };
            let settled = snapshot.and_then(|()| inner.log.settle()).map(drop);
            let done = settled.is_ok() && !inner.log.needs_sync() && inner.log.recovery_point() == inner.log.log_end();
            self.check_log(context, inner, settled);
            done
        })
    }

    /// What an error of the log means: where there is no space, or no file descriptor, the log is as it was, and what was asked
    /// for is refused until there is again (the storage tells of descriptors, for all logs); anything else ends this replica.
    pub(super) fn log_failed(&self, context: &Arc<Context>, inner: &mut Inner, error: &LogError) {
        match error {
            // Half of a change is done: this log takes nothing any more, and says so to whoever asks.
            LogError::NoSpace(_) | LogError::NoDescriptor(_) if inner.log.is_unfinished() => {
                self.fail(context, inner, error)
            }
            LogError::NoSpace(_) if std::mem::replace(&mut inner.no_space, true) => {}
            LogError::NoSpace(_) => {
                tracing::warn!(topic = %self.topic, partition = %self.id.partition, %error, "writes are refused");
            }
            LogError::NoDescriptor(_) => {}
            LogError::Corrupt { offset, .. } => self.found_damage(context, inner, *offset, error),
            _ => self.fail(context, inner, error),
        }
    }

    /// R29: a read has met records that are not what was written. This replica takes no role any more until the controller
    /// knows; then its log is opened anew, and is found lossy as at a start. Where no other replica is in sync it goes on:
    /// what it has lost nobody has, and the rest must stay; only those records are refused.
    fn found_damage(&self, context: &Arc<Context>, inner: &mut Inner, offset: Offset, error: &LogError) {
        if inner.failed.is_some() {
            return;
        }
        if inner.is_irreplaceable() {
            if inner.damaged_from.replace(offset) != Some(offset) {
                tracing::error!(
                    topic = %self.topic, partition = %self.id.partition, %error,
                    "records are damaged, and no other replica is in sync: they are not served, all others are"
                );
            }
            return;
        }
        match inner.log.note_damage(offset) {
            Ok(()) => context.replica_damaged(self.id),
            // Without the note it must not come back in this process: the next start is told by the controller.
            Err(note) => {
                tracing::error!(topic = %self.topic, partition = %self.id.partition, error = %note, "cannot note the damage")
            }
        }
        self.fail(context, inner, error);
    }

    /// Its directory is out of use: the replica ends, also where nobody has touched it since (`R30`).
    pub(crate) fn directory_failed(self: &Arc<Self>, context: &Arc<Context>) {
        self.handle(context, |inner, _| {
            if let Some(reason) = inner.dir.health().failure() {
                let error = LogError::DirectoryOffline(reason.to_owned());
                self.fail(context, inner, &error);
            }
        });
    }

    /// R30: the replica takes no role any more, and the controller will hear why.
    fn fail(&self, context: &Arc<Context>, inner: &mut Inner, error: &LogError) {
        if inner.failed.is_some() {
            return;
        }
        tracing::error!(topic = %self.topic, partition = %self.id.partition, %error, "the log failed; this replica serves no longer");
        inner.failed = Some(error.to_string());
        match error {
            // Nothing is lost: it is opened anew, as after a crash, once the controller has heard; without space not at once.
            LogError::NoSpace(_) => self.reopen_later(context),
            _ if inner.log.is_unfinished() => context.replica_damaged(self.id),
            _ => {}
        }
        self.forget_unverified(inner, ErrorCode::KafkaStorageError);
        inner.fail_waiters(ErrorCode::KafkaStorageError);
        inner.fetch_waiters.wake();
        inner.replica.handle_stop();
        context.replica_failed(self.id, &inner.dir);
    }

    /// What was not to be had may be there soon.
    fn reopen_later(&self, context: &Arc<Context>) {
        let (id, task_context) = (self.id, Arc::clone(context));
        context.runtime.spawn(async move {
            tokio::time::sleep(REOPEN_PAUSE).await;
            task_context.replica_damaged(id);
            task_context.heartbeat_wanted.notify_one();
        });
    }
}

fn snapshot_producers(inner: &mut Inner) -> Result<(), LogError> {
    let end = inner.log.log_end();
    inner.log.write_producer_snapshot(end, &inner.producers.snapshot(end))?;
    inner.snapshot_at = end;
    Ok(())
}

impl Inner {
    /// Whether nobody else could lead without losing records.
    pub(super) fn is_irreplaceable(&self) -> bool {
        self.replica.is_leader() && self.replica.isr().len() <= 1
    }

    /// Whoever waits for it hears of it; with it moves the last stable offset (`R43`).
    fn high_watermark_moved(&mut self, high_watermark: Offset) {
        self.producers.stabilise(high_watermark);
        let replica = &self.replica;
        self.produce_waiters.release(high_watermark, |end| match replica.produce_verdict(end) {
            ProduceVerdict::Done(error) => error,
            // The waiter is below the high watermark, so the core has a verdict.
            ProduceVerdict::Pending => ErrorCode::UnknownServerError,
        });
        self.fetch_waiters.wake();
    }

    pub(super) fn handle_synced(&mut self, point: SyncPoint, now: Time) {
        self.replica.handle_synced(point, now);
        self.sync_history.synced(self.replica.log().synced_end);
        self.counted_end_moved();
    }

    /// Requests with acks=1 hear of it.
    pub(super) fn counted_end_moved(&mut self) {
        let replica = &self.replica;
        self.sync_waiters.release(replica.counted_end(), |end| match replica.leader_verdict(end) {
            ProduceVerdict::Done(error) => error,
            // The waiter is below what counts, so the core has a verdict.
            ProduceVerdict::Pending => ErrorCode::UnknownServerError,
        });
    }

    /// Whoever waits for an answer of this leader gets this one.
    fn fail_waiters(&mut self, error: ErrorCode) {
        self.produce_waiters.fail_all(error);
        self.sync_waiters.fail_all(error);
    }

    /// The session is void: the follower is told.
    fn refuse_session(&self, follower: BrokerId, open_no: u64, error: ErrorCode) {
        if let Some(link) = self.link_of(follower, open_no) {
            link.stream.refuse(link.handle, link.open_no, error);
        }
    }

    /// R62: the session is over, and the follower is told where to open the next one.
    fn send_away(&self, follower: BrokerId, open_no: u64, to: Lane) {
        if let Some(link) = self.link_of(follower, open_no) {
            let answer = Answer::Moved(kind_of(to));
            link.stream.push_move(OpenAnswer { handle: link.handle, open_no: link.open_no, answer });
        }
    }

    /// Where a session that is over ran, if it is still the one on its stream. The link stays for the next session on that
    /// stream: it knows on which of the stream's lists this partition is.
    fn link_of(&self, follower: BrokerId, open_no: u64) -> Option<&Link> {
        self.links.iter().find(|link| link.follower == follower && link.open_no == open_no)
    }
}
