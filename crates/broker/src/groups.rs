//! The shell around the group coordinator's shards: one shard a partition of `__consumer_offsets` that is led here
//! (`R52`).
//!
//! A shard is loaded from its partition when the leadership begins, and dropped when it ends. Requests go into the core
//! under the shard's lock; what the core wants written is appended with acks=all, and the core hears of it when the high
//! watermark covers it.
//!
//! Invariants: a shard serves only after its whole log up to the high watermark is replayed; every token is answered once;
//! a shard's lock may be held while its partition is locked, never the reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;
use coordinator::consumer::topics::changed_topics;
use coordinator::shard::GroupEffect;
use coordinator::{
    BatchNumber, CoordinatorRecord, GroupRequest, GroupResponse, GroupShard, Now, Output, Token, partition_for,
};
use metadata::MetadataDelta;
use model::{
    Codec, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Record, RecordBatch, RecordIter, Time, TopicId,
    encode_batch, encode_records,
};
use tokio::sync::{Notify, oneshot};

use crate::api::{Acks, Isolation};
use crate::context::Context;
use crate::partition::{Leadership, Partition};
use crate::waiters::PendingProduce;

/// The topic that the groups' state is kept in.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Bytes read at a time while a shard loads.
const LOAD_BYTES: usize = 1 << 20;

/// All shards of this broker.
#[derive(Debug)]
pub(crate) struct Groups {
    context: Arc<Context>,
    shards: RwLock<BTreeMap<PartitionIndex, Arc<Shard>>>,
    /// When [`Groups::keep_time`] looks next, in monotonic milliseconds.
    looks_at: AtomicU64,
    /// A shard has an earlier deadline.
    timers_moved: Notify,
}

#[derive(Debug)]
struct Shard {
    partition: Arc<Partition>,
    /// Its state is of this leadership; another one may have been between this and the next.
    leadership: Leadership,
    inner: Mutex<ShardInner>,
}

#[derive(Debug)]
struct ShardInner {
    core: GroupShard,
    stage: Stage,
    waiting: BTreeMap<Token, oneshot::Sender<GroupResponse>>,
    next_token: u64,
}

/// The life of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Loading,
    Serving,
    /// The leadership ended.
    Gone,
}

impl Groups {
    pub(crate) fn new(context: Arc<Context>) -> Arc<Groups> {
        Arc::new(Groups {
            context,
            shards: RwLock::default(),
            looks_at: AtomicU64::new(0),
            timers_moved: Notify::new(),
        })
    }

    /// Asks the coordinator of the request's group, if it is here.
    ///
    /// # Errors
    /// `NOT_COORDINATOR`, `COORDINATOR_LOAD_IN_PROGRESS`, or `COORDINATOR_NOT_AVAILABLE` where the shard went away.
    pub(crate) async fn ask(self: &Arc<Self>, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        if let GroupRequest::ListGroups(_) = &request {
            return self.ask_every_shard(request).await;
        }
        let count = self.partition_count().ok_or(ErrorCode::NotCoordinator)?;
        let group = request.group_id().ok_or(ErrorCode::InvalidGroupId)?;
        let index = partition_for(group, count);
        let shard = self.shard(index).ok_or(ErrorCode::NotCoordinator)?;
        self.ask_shard(&shard, request).await
    }

    async fn ask_shard(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        request: GroupRequest,
    ) -> Result<GroupResponse, ErrorCode> {
        let answered = {
            let mut inner = shard.lock();
            match inner.stage {
                Stage::Loading => return Err(ErrorCode::CoordinatorLoadInProgress),
                Stage::Gone => return Err(ErrorCode::NotCoordinator),
                Stage::Serving => {}
            }
            let (answer, answered) = oneshot::channel();
            inner.next_token += 1;
            let token = Token(inner.next_token);
            inner.waiting.insert(token, answer);
            let entropy = self.context.chance.next_wide();
            inner.core.handle(token, request, entropy, self.now());
            self.drain(shard, &mut inner);
            answered
        };
        // The sender is dropped only with its shard.
        answered.await.map_err(|_| ErrorCode::NotCoordinator)
    }

    async fn ask_every_shard(self: &Arc<Self>, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        let shards: Vec<_> = self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut all = coordinator::request::ListGroupsResponse { error: ErrorCode::None, groups: Vec::new() };
        for shard in shards {
            match self.ask_shard(&shard, request.clone()).await {
                Ok(GroupResponse::ListGroups(listed)) => all.groups.extend(listed.groups),
                // Its groups are another broker's by now.
                Ok(_) | Err(ErrorCode::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(GroupResponse::ListGroups(all))
    }

    /// The partition of `__consumer_offsets` that a group belongs to; None while the topic does not exist.
    pub(crate) fn partition_of(&self, group_id: &str) -> Option<PartitionIndex> {
        self.partition_count().map(|count| partition_for(group_id, count))
    }

    fn partition_count(&self) -> Option<i32> {
        let image = self.context.image();
        let topic = image.topic_by_name(OFFSETS_TOPIC)?;
        i32::try_from(topic.partitions.len()).ok().filter(|count| *count > 0)
    }

    fn shard(&self, index: PartitionIndex) -> Option<Arc<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }

    fn now(&self) -> Now {
        Now { monotonic: self.context.clock.monotonic(), wall: self.context.clock.wall() }
    }

    /// Carries out what the core wants, under the shard's lock.
    fn drain(self: &Arc<Self>, shard: &Arc<Shard>, inner: &mut ShardInner) {
        while let Some(output) = inner.core.poll_output() {
            match output {
                Output::Reply { token, response } => {
                    if let Some(waiting) = inner.waiting.remove(&token) {
                        // Whoever asked may have gone away.
                        let _ = waiting.send(response);
                    }
                }
                Output::Append { batch, records } => self.append(shard, batch, &records),
                Output::Effect(effect) => self.carry_out(shard, effect),
            }
        }
        if inner.core.poll_timeout().is_some_and(|due| due.0 < self.looks_at.load(Ordering::Acquire)) {
            self.timers_moved.notify_one();
        }
    }

    /// Carries out what takes a while, and needs the shard's lock again, in a task of its own.
    fn carry_out(self: &Arc<Self>, shard: &Arc<Shard>, effect: GroupEffect) {
        let GroupEffect::Resolve { group_id, expressions, image } = effect;
        let (groups, shard) = (Arc::clone(self), Arc::clone(shard));
        tokio::spawn(async move {
            let wall = groups.now().wall;
            let resolve = move || coordinator::consumer::regex::resolve(&expressions, &image, wall);
            let resolved = groups.context.disk_pool.run(resolve).await;
            let mut inner = shard.lock();
            inner.core.resolved(&group_id, resolved, groups.now());
            groups.drain(&shard, &mut inner);
        });
    }

    /// Appends with acks=all; a task of its own tells the core what came of it.
    fn append(self: &Arc<Self>, shard: &Arc<Shard>, batch: BatchNumber, records: &[CoordinatorRecord]) {
        let bytes = encode(records, self.context.clock.wall());
        let pending = PendingProduce::new(1);
        shard.partition.produce(&self.context, Acks::All, Some(shard.leadership), bytes, &pending);
        let (groups, shard) = (Arc::clone(self), Arc::clone(shard));
        tokio::spawn(async move {
            pending.wait().await;
            let result = pending.take().into_iter().next();
            let mut inner = shard.lock();
            match result {
                Some(result) if result.error.is_none() || result.error == ErrorCode::NotEnoughReplicasAfterAppend => {
                    inner.core.committed(batch, groups.now());
                }
                // Nothing was appended.
                Some(result) if result.base_offset == Offset::NONE => {
                    inner.core.failed(batch, refused(result.error), groups.now());
                }
                // Appended, and the leadership ended before it was committed: what became of it, the next coordinator's
                // log says. This shard is about to go; what waits is answered when it does.
                _ => return,
            }
            groups.drain(&shard, &mut inner);
        });
    }

    async fn load(self: Arc<Self>, shard: Arc<Shard>) {
        let started = self.context.clock.monotonic();
        let Some(end) = self.wait_for_watermark(&shard).await else { return };
        match self.replay(&shard, end).await {
            Ok(records) => {
                let mut inner = shard.lock();
                // The leadership may have ended meanwhile.
                if inner.stage != Stage::Loading {
                    return;
                }
                inner.core.finish_load(self.now());
                inner.stage = Stage::Serving;
                self.drain(&shard, &mut inner);
                let ms = self.context.clock.monotonic().since(started);
                tracing::debug!(partition = %shard.partition.id().partition, records, ms, "coordinates groups");
            }
            Err(error) => {
                tracing::error!(partition = %shard.partition.id().partition, error, "cannot load groups; their coordinator stays unavailable");
            }
        }
    }

    /// R52: everything that an earlier coordinator may have answered for is below the high watermark when it has reached
    /// the start of this leadership. None where the leadership ended first.
    async fn wait_for_watermark(&self, shard: &Shard) -> Option<Offset> {
        loop {
            if !self.is_current(shard) {
                return None;
            }
            // Listed before the look, so that no move in between is missed.
            let waiter = Arc::default();
            shard.partition.wake_at_next_move(&waiter);
            match shard.partition.latest(LeaderEpoch::NONE, Isolation::ReadUncommitted) {
                Ok((end, _)) => return Some(end),
                Err(ErrorCode::OffsetNotAvailable) => {}
                Err(_) => return None,
            }
            // The leadership may end without a move of the watermark: look again now and then.
            let _ = tokio::time::timeout(Duration::from_millis(100), waiter.moved()).await;
        }
    }

    fn is_current(&self, shard: &Shard) -> bool {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(&shard.partition.id().partition).is_some_and(|current| std::ptr::eq(&raw const **current, shard))
    }

    async fn replay(&self, shard: &Arc<Shard>, end: Offset) -> Result<usize, String> {
        let mut next = shard.partition.lock().log.log_start();
        let mut records = 0;
        while next < end && self.is_current(shard) {
            let partition = Arc::clone(&shard.partition);
            let read = move || partition.lock().log.read_now(next, end, LOAD_BYTES, true);
            let chunks = self.context.disk_pool.run(read).await.map_err(|error| error.to_string())?;
            let before = next;
            for chunk in chunks {
                for batch in RecordBatch::split_all(chunk).map_err(|error| error.to_string())? {
                    next = batch.header().next_offset();
                    records += replay_batch(shard, &batch)?;
                }
            }
            if next == before {
                return Err(format!("the log has nothing at offset {next} below the high watermark {end}"));
            }
        }
        Ok(records)
    }

    fn begin(self: &Arc<Self>, partition: Arc<Partition>) {
        let index = partition.id().partition;
        let mut core = GroupShard::new(self.context.config.groups.clone());
        core.handle_metadata(&self.context.image(), &BTreeSet::new());
        let inner = ShardInner { core, stage: Stage::Loading, waiting: BTreeMap::new(), next_token: 0 };
        let shard = Arc::new(Shard { leadership: partition.leadership(), partition, inner: Mutex::new(inner) });
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.insert(index, Arc::clone(&shard));
        drop(shards);
        // What changed before the shard was listed.
        shard.lock().core.handle_metadata(&self.context.image(), &BTreeSet::new());
        tokio::spawn(Arc::clone(self).load(shard));
    }

    fn end(self: &Arc<Self>, index: PartitionIndex) {
        let gone = self.shards.write().unwrap_or_else(PoisonError::into_inner).remove(&index);
        if let Some(shard) = gone {
            let mut inner = shard.lock();
            inner.stage = Stage::Gone;
            inner.core.unload(ErrorCode::NotCoordinator);
            self.drain(&shard, &mut inner);
            inner.waiting.clear();
        }
    }

    /// Ends all shards, as the broker stops.
    pub(crate) fn stop(self: &Arc<Self>) {
        let all: Vec<_> = self.shards.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for index in all {
            self.end(index);
        }
    }

    /// Follows leaderships until the broker stops.
    pub(crate) async fn follow_leaderships(self: Arc<Self>) {
        loop {
            self.context.leadership_moved.notified().await;
            for (id, leads) in self.context.take_leaderships() {
                let current = self.shard(id.partition);
                match self.context.partition(id).filter(|_| leads) {
                    // The same leader in a newer epoch keeps what it has.
                    Some(partition)
                        if current.as_ref().is_some_and(|shard| Arc::ptr_eq(&shard.partition, &partition)) => {}
                    Some(partition) => {
                        self.end(id.partition);
                        self.begin(partition);
                    }
                    None if current.is_some_and(|shard| shard.partition.id() == id) => self.end(id.partition),
                    None => {}
                }
            }
        }
    }

    /// Tells the shards of the metadata, and of topics that are gone: their offsets go with them.
    pub(crate) async fn follow_topics(self: Arc<Self>) {
        let mut images = self.context.images();
        let mut before = Arc::clone(&images.borrow_and_update());
        while images.changed().await.is_ok() {
            let after = Arc::clone(&images.borrow_and_update());
            let delta = MetadataDelta::between(&before, &after);
            let previous = std::mem::replace(&mut before, after);
            let gone: Vec<(String, TopicId)> =
                delta.removed_topics.iter().map(|topic| (topic.name.to_string(), topic.id)).collect();
            let changed = changed_topics(&previous, &before, &delta);
            let shards: Vec<_> = self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            for shard in shards {
                let mut inner = shard.lock();
                inner.core.handle_metadata(&before, &changed);
                if inner.stage == Stage::Serving && !gone.is_empty() {
                    inner.core.handle_topics_deleted(&gone, self.now());
                    self.drain(&shard, &mut inner);
                }
            }
        }
    }

    /// Calls the shards at their deadlines, until the broker stops.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            // A deadline that moves while this looks around is looked at again.
            self.looks_at.store(u64::MAX, Ordering::Release);
            let shards: Vec<_> = self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
            let mut next: Option<Time> = None;
            for shard in shards {
                let mut inner = shard.lock();
                if inner.stage != Stage::Serving {
                    continue;
                }
                let now = self.now();
                if inner.core.poll_timeout().is_some_and(|due| due <= now.monotonic) {
                    inner.core.handle_timeout(now);
                    self.drain(&shard, &mut inner);
                }
                next = next.into_iter().chain(inner.core.poll_timeout()).min();
            }
            self.looks_at.store(next.map_or(u64::MAX, |due| due.0), Ordering::Release);
            let wait = next.map_or(3_600_000, |due| due.since(self.context.clock.monotonic()).max(1));
            // Dropping either is safe: the deadlines are asked for again.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
                () = self.timers_moved.notified() => {}
            }
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, ShardInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a refusal of the partition means to a group's client.
fn refused(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge => ErrorCode::UnknownServerError,
        _ => ErrorCode::CoordinatorNotAvailable,
    }
}

fn replay_batch(shard: &Shard, batch: &RecordBatch) -> Result<usize, String> {
    let header = batch.header();
    if header.is_control() {
        return Ok(0);
    }
    if header.codec() != Some(Codec::None) {
        return Err(format!("the batch at offset {} is compressed; coordinators write none", header.base_offset));
    }
    let mut inner = shard.lock();
    let mut records = 0;
    for record in RecordIter::new(batch.payload(), header.record_count) {
        let record = record.map_err(|error| error.to_string())?;
        let Some(key) = record.key else { continue };
        inner.core.replay(&CoordinatorRecord { key, value: record.value });
        records += 1;
    }
    Ok(records)
}

fn encode(records: &[CoordinatorRecord], wall: Time) -> BytesMut {
    let records: Vec<Record> = (0..)
        .zip(records)
        .map(|(offset_delta, record)| Record {
            offset_delta,
            timestamp_delta: 0,
            key: Some(record.key.clone()),
            value: record.value.clone(),
            headers: Vec::new(),
        })
        .collect();
    let count = i32::try_from(records.len()).unwrap_or(i32::MAX);
    let now = i64::try_from(wall.0).unwrap_or(i64::MAX);
    encode_batch(&encode_records(&records), Codec::None, count, now, now, None)
}
