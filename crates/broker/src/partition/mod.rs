//! One replica of one partition on this broker: the `replication` core, the log and the producers' state behind one lock,
//! and who waits for it.
//!
//! Every input goes the same way: take the lock, give it to the core, carry out the core's actions in order, let go. What
//! takes long (fdatasync, reads from disk) runs without the lock, on the disk pool.
//!
//! Reading order: here the state and the inputs from metadata; [`append`] (produce), [`transactions`] (verification and
//! markers), [`read`] (fetch and questions),
//! [`times`] (timestamps, retention), [`lead`] and [`follow`] (the two ends of sessions), [`lag`] (how far readers are behind),
//! [`act`] (what the core's actions mean), [`clean`] (compaction), [`relocate`] (moves to another log directory).
//!
//! Invariants: the core's view of the log's start and end is the log's; actions are carried out under the lock that their
//! input was handled under; nobody calls into a stream's or a manager's lock and back into a partition.

mod act;
mod append;
mod clean;
mod follow;
mod lag;
mod lead;
mod read;
mod relocate;
mod sync_history;
mod times;
mod transactions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metadata::control::RecoveryAnswer;
use model::{
    BrokerId, DirectoryId, EpochCache, ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Time, TopicId,
    TopicPartition,
};
use replication::producers::ProducerTable;
use replication::{AlterAnswer, Lane, LogView, PartitionState, ProposalId, Replica, ReplicaConfig};
use storage::{Log, LogDir};
use tokio::sync::Notify;

use crate::api::CurrentLeader;
use crate::context::Context;
use crate::counters::Traffic;
use crate::follower_streams::FollowerStream;
use crate::leader_streams::LeaderStream;
use crate::topic_settings::TopicSettings;
use crate::waiters::{FetchWaiter, FetchWaiters, ProduceWaiters};

use lag::AppendTimes;
use relocate::Moving;
use sync_history::SyncHistory;
use transactions::Unverified;

pub(crate) use clean::{Claim, SliceOutcome};
pub(crate) use lag::Age;
pub(crate) use lead::{NextData, Opening, Space};
pub(crate) use read::{PartitionRead, ReadResult};
pub(crate) use relocate::{Copied, Wanted};
pub(crate) use times::FoundByTime;
pub(crate) use transactions::{Verification, Verifying};

/// Before a file is asked for again that could not be opened because the process has too many.
pub(crate) const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    id: TopicPartition,
    topic: Arc<str>,
    inner: Mutex<Inner>,
    /// What clients write and read here.
    pub(crate) traffic: Traffic,
    /// The last job of the disk pool ended, or none is held up any more.
    quiet: Notify,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) replica: Replica,
    pub(crate) log: Log,
    /// The log directory that it is in.
    dir: Arc<LogDir>,
    pub(crate) producers: ProducerTable,
    pub(crate) settings: Arc<TopicSettings>,
    /// The leader as the metadata has it.
    leader: BrokerId,
    leadership: Leadership,
    produce_waiters: ProduceWaiters,
    /// Requests with acks=1 that wait for a sync of this log.
    sync_waiters: ProduceWaiters,
    fetch_waiters: FetchWaiters,
    append_times: AppendTimes,
    /// Batches that wait for a coordinator's word (`R50`).
    unverified: BTreeMap<(ProducerId, ProducerEpoch), Unverified>,
    /// The stream of each follower that has a session here.
    links: Vec<Link>,
    /// The stream that this follower is assigned to.
    follows: Option<Arc<FollowerStream>>,
    /// This follower's own session on its stream: handle and open number.
    handle: Option<(u64, u64)>,
    /// The stream's task asks for the acknowledgement once the input at hand is handled.
    in_frame: bool,
    /// When to ask for a session again, after the disk was full.
    reopen_at: Option<Time>,
    sync: SyncState,
    /// Jobs of the disk pool that write in this log's directory.
    jobs: u32,
    /// The log is on its way to another directory.
    moving: Option<Moving>,
    /// No job begins in this log's directory: it is about to be another one.
    jobs_held: bool,
    /// A sync was asked for meanwhile.
    sync_held: bool,
    /// A cleaner is at this log.
    cleaning: bool,
    cleaning_pause: clean::CleaningPause,
    /// Why this log cannot be compacted, until the process starts again.
    uncleanable: Option<String>,
    /// The newest producer snapshot is of this offset (`R41`).
    snapshot_at: Offset,
    /// Below it the last process had records: what the checkpoints go on to say while the log is lossy (`R78`).
    promised: Offset,
    /// Whether records count only once they are durable, and always have (`R35`).
    sync_history: SyncHistory,
    /// What the log had written when it was taken.
    snapshot_written: u64,
    /// A write was refused for want of space, and none has succeeded since.
    no_space: bool,
    /// A client's batch was refused by the log, and nothing was appended since: batches that were sent behind it are not out of
    /// order, as their producer sends it again (librdkafka takes a new epoch for an OUT_OF_ORDER_SEQUENCE_NUMBER, and with it
    /// sends what other partitions have appended and not yet acknowledged a second time).
    append_refused: bool,
    /// The epoch cache is newer than its checkpoint.
    epochs_changed: bool,
    /// It is on the flusher's list.
    flush_queued: bool,
    /// Since when records wait for a sync, where the topic bounds that.
    unsynced_since: Option<Time>,
    /// What the flusher knows to be worth a checkpoint.
    checkpointed: Option<Checkpointed>,
    /// When this partition's entry in the broker's timers is due.
    timer: Option<Time>,
    /// Why nothing can be read or written, once the log failed (`R30`).
    failed: Option<String>,
    /// Where a read met damaged records that no other replica has.
    damaged_from: Option<Offset>,
    /// The partition was taken off this broker: its files may be gone.
    removed: bool,
}

/// Counts the leaderships of a replica in this process; one that goes on in a newer epoch is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leadership(u64);

/// A follower's session and the stream that it is on.
#[derive(Debug)]
struct Link {
    follower: BrokerId,
    stream: Arc<LeaderStream>,
    handle: u64,
    open_no: u64,
    /// Its share of what the stream has under way (`R62`): given back when this is dropped.
    in_flight: u64,
    queued_data: bool,
    queued_progress: bool,
}

/// The kind of stream that a lane is.
pub(crate) fn kind_of(lane: Lane) -> rpc::replication::LaneKind {
    match lane {
        Lane::Tail => rpc::replication::LaneKind::Tail,
        Lane::CatchUp => rpc::replication::LaneKind::CatchUp,
    }
}

/// Whether an fdatasync of this log is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SyncState {
    Idle,
    Running,
    /// More was asked for since it started.
    Wanted,
}

/// What a partition is made of.
pub(crate) struct Parts {
    pub(crate) id: TopicPartition,
    pub(crate) topic: Arc<str>,
    pub(crate) config: ReplicaConfig,
    pub(crate) dir: Arc<LogDir>,
    pub(crate) log: Log,
    pub(crate) epochs: EpochCache,
    /// As checkpointed: a hint (`R19`).
    pub(crate) high_watermark: Offset,
    /// Below it the checkpoints promise records (`R78`).
    pub(crate) promised: Offset,
    /// What the checkpoint says of its acknowledgements (`R35`).
    pub(crate) synced_since: Option<Offset>,
    pub(crate) producers: ProducerTable,
    /// The offset of the newest producer snapshot.
    pub(crate) snapshot_at: Offset,
    pub(crate) settings: Arc<TopicSettings>,
}

impl Partition {
    /// A replica over its opened log; idle until metadata comes.
    pub(crate) fn new(parts: Parts) -> Arc<Partition> {
        let log = parts.log;
        let view = LogView {
            start: log.log_start(),
            end: log.log_end(),
            synced_end: log.synced_end(),
            high_watermark: parts.high_watermark,
        };
        let replica = Replica::new(parts.config, view, parts.epochs);
        let mut producers = parts.producers;
        producers.stabilise(replica.log().high_watermark);
        let inner = Inner {
            promised: parts.promised,
            sync_history: SyncHistory::restored(parts.synced_since, view.end),
            replica,
            log,
            dir: parts.dir,
            producers,
            settings: parts.settings,
            leader: BrokerId::NONE,
            leadership: Leadership(0),
            produce_waiters: ProduceWaiters::default(),
            sync_waiters: ProduceWaiters::default(),
            fetch_waiters: FetchWaiters::default(),
            append_times: AppendTimes::default(),
            unverified: BTreeMap::new(),
            links: Vec::new(),
            follows: None,
            handle: None,
            in_frame: false,
            reopen_at: None,
            sync: SyncState::Idle,
            jobs: 0,
            moving: None,
            jobs_held: false,
            sync_held: false,
            cleaning: false,
            cleaning_pause: clean::CleaningPause::default(),
            uncleanable: None,
            snapshot_at: parts.snapshot_at,
            snapshot_written: 0,
            no_space: false,
            append_refused: false,
            epochs_changed: false,
            flush_queued: false,
            unsynced_since: None,
            checkpointed: None,
            timer: None,
            failed: None,
            damaged_from: None,
            removed: false,
        };
        let (inner, traffic) = (Mutex::new(inner), Traffic::default());
        Arc::new(Partition { id: parts.id, topic: parts.topic, inner, traffic, quiet: Notify::new() })
    }

    /// Which partition.
    pub(crate) fn id(&self) -> TopicPartition {
        self.id
    }

    /// Its topic's name.
    pub(crate) fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The lock, for those who only look.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an input to the replica and carries out what follows from it.
    pub(crate) fn handle<R>(self: &Arc<Self>, context: &Arc<Context>, input: impl FnOnce(&mut Inner, Time) -> R) -> R {
        let mut inner = self.lock();
        let now = context.clock.monotonic();
        let result = input(&mut inner, now);
        self.carry_out(context, &mut inner);
        result
    }

    /// The metadata says this of the partition now.
    pub(crate) fn handle_metadata(
        self: &Arc<Self>,
        context: &Arc<Context>,
        state: &PartitionState,
        settings: &Arc<TopicSettings>,
    ) {
        self.handle(context, |inner, now| {
            if inner.settings != *settings {
                inner.log.set_config(Arc::clone(&settings.log));
                inner.settings = Arc::clone(settings);
            }
            inner.leader = state.leader;
            let me = state.replicas.iter().find(|member| member.id == context.config.broker_id);
            let registered = context.registration().map(|(epoch, _)| epoch);
            let in_sync = state.isr.contains(&context.config.broker_id)
                && registered.is_some()
                && me.map(|member| member.broker_epoch) == registered;
            inner.sync_history.want(state.sync_before_ack, in_sync, inner.log.log_end());
            inner.sync_history.synced(inner.replica.log().synced_end);
            // R30: a replica whose log failed takes no role again in this process.
            if inner.failed.is_none() {
                let sync_before_ack = inner.sync_history.in_force();
                inner.replica.handle_metadata(&PartitionState { sync_before_ack, ..state.clone() }, now);
                inner.counted_end_moved();
            }
        });
    }

    /// Whether acknowledgements still wait for syncs only because the checkpoint says so (`R35`).
    pub(crate) fn awaits_checkpoint(&self) -> bool {
        self.lock().sync_history.is_ending()
    }

    /// The checkpoints were written after `awaits_checkpoint` said so.
    pub(crate) fn checkpoint_written(self: &Arc<Self>, context: &Arc<Context>) {
        self.handle(context, |inner, now| {
            inner.sync_history.forgotten(inner.log.log_end());
            inner.replica.handle_sync_before_ack(inner.sync_history.in_force(), now);
            inner.counted_end_moved();
        });
    }

    /// The time that this partition asked for has come.
    pub(crate) fn handle_timeout(self: &Arc<Self>, context: &Arc<Context>) {
        let removal = self.handle(context, |inner, now| {
            inner.timer = None;
            inner.replica.handle_timeout(now);
            if inner.reopen_at.take_if(|at| *at <= now).is_some()
                && let Some(stream) = &inner.follows
            {
                stream.want_session(self.id);
            }
            self.start_freeing(context, inner, now)
        });
        if let Some(removal) = removal {
            self.free(context, removal);
        }
    }

    /// What came of one copy of a proposed ISR (`R16`).
    pub(crate) fn handle_isr_answer(self: &Arc<Self>, context: &Arc<Context>, id: ProposalId, answer: AlterAnswer) {
        self.handle(context, |inner, now| inner.replica.handle_alter_partition_answer(id, answer, now));
    }

    /// The broker stops, or the partition is no longer its: no role any more, waiting produces fail.
    pub(crate) fn stop(self: &Arc<Self>, context: &Arc<Context>, removed: bool) {
        self.handle(context, |inner, _| {
            inner.removed = removed;
            inner.hold_move(removed);
            inner.replica.handle_stop();
        });
        self.lock().links.clear();
    }
}

impl Partition {
    /// It was taken off this broker, and no job is under way: its files are closed, though answers that are on their way may
    /// hold it for long. Each of those holds the one file that it is sent from.
    pub(crate) fn close(&self) {
        self.lock().log.close_files();
    }

    /// Returns when no job of the disk pool writes in this log's directory.
    pub(crate) async fn settled(&self) {
        self.wait_until(|inner| inner.jobs == 0).await;
    }

    /// Waits for what jobs of the disk pool, or a move, have under way.
    pub(super) async fn wait_until(&self, is_so: impl Fn(&Inner) -> bool) {
        loop {
            let quiet = self.quiet.notified();
            if is_so(&self.lock()) {
                return;
            }
            quiet.await;
        }
    }

    /// The leadership at hand, or the next one, and the leader epoch.
    pub(crate) fn leadership(&self) -> (Leadership, LeaderEpoch) {
        let inner = self.lock();
        (inner.leadership, inner.replica.leader_epoch())
    }

    /// Whether this is still led as it was then.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_leadership(&self, named: Leadership) -> Result<(), ErrorCode> {
        self.lock().check_leadership(Some(named))
    }

    /// Wakes `waiter` when the high watermark or the leadership moves next.
    pub(crate) fn wake_at_next_move(&self, waiter: &Arc<FetchWaiter>) {
        self.lock().fetch_waiters.push(waiter);
    }

    /// What the checkpoints of which directory are to say of this partition.
    pub(crate) fn checkpoints(&self) -> (DirectoryId, Checkpointed) {
        let inner = self.lock();
        (inner.dir.id(), inner.checkpoints(self.id.topic_id))
    }

    /// Up to where its records are committed, as it knows.
    pub(crate) fn high_watermark(&self) -> Offset {
        self.lock().replica.log().high_watermark
    }

    /// The log directory that it is in.
    pub(crate) fn dir(&self) -> Arc<LogDir> {
        Arc::clone(&self.lock().dir)
    }

    /// What this replica holds, for the recovery of a leaderless partition (`R35`). One that failed could not lead: it says
    /// nothing until it is opened anew.
    pub(crate) fn recovery_answer(&self) -> Option<RecoveryAnswer> {
        let inner = self.lock();
        let log = inner.replica.log();
        inner.failed.is_none().then(|| RecoveryAnswer {
            directory: inner.dir.id(),
            last_epoch: inner.replica.last_epoch(),
            log_end: log.end,
            lossy: inner.log.lossy_from().is_some(),
            synced_before_ack: inner.sync_history.holds(),
        })
    }
}

/// What the checkpoints hold of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Checkpointed {
    pub(crate) recovery_point: Offset,
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    /// Where the log ended when sync before ack came into force without a gap (`R35`).
    pub(crate) synced_since: Option<(TopicId, Offset)>,
    /// Which topic's log it is; None where nobody knows.
    pub(crate) topic_id: Option<TopicId>,
}

impl Inner {
    fn checkpoints(&self, topic_id: TopicId) -> Checkpointed {
        let lossy = self.log.lossy_from().is_some();
        let high_watermark = self.replica.log().high_watermark;
        Checkpointed {
            recovery_point: self.log.recovery_point(),
            log_start: self.log.log_start(),
            // R78: another crash must not make a sound log of it.
            high_watermark: if lossy { high_watermark.max(self.promised) } else { high_watermark },
            synced_since: self.sync_history.since().map(|since| (topic_id, since)),
            topic_id: Some(topic_id),
        }
    }

    /// Where to send a client that came to the wrong broker.
    pub(crate) fn current_leader(&self) -> CurrentLeader {
        CurrentLeader { leader: self.leader, leader_epoch: self.replica.leader_epoch() }
    }
}
