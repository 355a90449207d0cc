//! The shell around coordinators of any kind: one shard a partition of the kind's topic that is led here (`R44`, `R52`).
//!
//! A shard is loaded from its partition when the leadership begins, and dropped when it ends. Requests go into the core
//! under the shard's lock; what the core wants written is appended with acks=all, and the core hears of it when the high
//! watermark covers it.
//!
//! Invariants: a shard serves only after its whole log up to the high watermark is replayed; every token is answered once;
//! a shard's lock may be held while its partition is locked, never the reverse.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coordinator::driver::{Output, Shard as Core};
use coordinator::transaction::request::Producer;
use coordinator::{BatchNumber, CoordinatorRecord, Now, Token, partition_for};
use model::{
    ClientBatches, Codec, EndMarker, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Record, RecordBatch, RecordIter,
    Time, TopicPartition, encode_batch, encode_records, encode_transactional_batch,
};
use replication::producers::VerificationGuard;
use storage::compression;
use tokio::sync::{Notify, oneshot};

use crate::api::{Acks, Isolation};
use crate::context::Context;
use crate::markers;
use crate::partition::{Leadership, Partition};
use crate::waiters::PendingProduce;

/// Bytes read at a time while a shard loads.
const LOAD_BYTES: usize = 1 << 20;
/// How long a shard that could not be loaded waits until it is tried again.
const RELOAD_PAUSE: Duration = Duration::from_millis(250);
/// The same after it has failed several times.
const RELOAD_PAUSE_MAX: Duration = Duration::from_secs(8);

/// What one kind of coordinator is besides its core.
pub(crate) trait Kind: fmt::Debug + Sized + Send + Sync + 'static {
    /// The core of a shard.
    type Core: Core<Request: Send, Response: Send + fmt::Debug, Effect: Send> + fmt::Debug + Send;

    /// The topic that the state is kept in.
    const TOPIC: &'static str;

    /// The core of a partition led here in this epoch, empty.
    fn core(&self, context: &Context, leader_epoch: LeaderEpoch) -> Self::Core;

    /// Tells the core of an empty shard, listed now, what others are told of when it changes.
    fn listed(_: &mut Self::Core, _: &Context) {}

    /// Takes over what a core has counted, whose leadership ended.
    fn ended(&self, _: &Self::Core) {}

    /// Carries out what only this kind of core asks for. The shard is locked: what takes time, or needs the lock again, goes
    /// into a task of its own.
    fn carry_out(shards: &Arc<Shards<Self>>, shard: &Arc<Shard<Self>>, effect: <Self::Core as Core>::Effect);
}

/// All shards of a kind on this broker.
#[derive(Debug)]
pub(crate) struct Shards<K: Kind> {
    pub(crate) context: Arc<Context>,
    pub(crate) kind: K,
    shards: RwLock<BTreeMap<PartitionIndex, Arc<Shard<K>>>>,
    /// When [`Shards::keep_time`] looks next, in monotonic milliseconds.
    looks_at: AtomicU64,
    /// A shard has an earlier deadline.
    timers_moved: Notify,
}

/// One shard, with what waits for it.
#[derive(Debug)]
pub(crate) struct Shard<K: Kind> {
    partition: Arc<Partition>,
    /// Its state is of this leadership; another one may have been between this and the next.
    leadership: Leadership,
    /// In which it began.
    leader_epoch: LeaderEpoch,
    inner: Mutex<ShardInner<K>>,
    /// Something that it stores is committed, or certainly is not.
    changed: Notify,
}

#[derive(Debug)]
struct ShardInner<K: Kind> {
    core: K::Core,
    stage: Stage,
    waiting: BTreeMap<Token, oneshot::Sender<<K::Core as Core>::Response>>,
    next_token: u64,
}

/// An answer that is to come.
pub(crate) type Answer<K> = oneshot::Receiver<<<K as Kind>::Core as Core>::Response>;

/// The life of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Loading,
    Serving,
    /// The leadership ended.
    Gone,
}

/// Asking.
impl<K: Kind> Shards<K> {
    pub(crate) fn new(context: Arc<Context>, kind: K) -> Arc<Shards<K>> {
        Arc::new(Shards {
            context,
            kind,
            shards: RwLock::default(),
            looks_at: AtomicU64::new(0),
            timers_moved: Notify::new(),
        })
    }

    /// Asks the shard that `key` belongs to, if it is here.
    ///
    /// # Errors
    /// `NOT_COORDINATOR`, `COORDINATOR_LOAD_IN_PROGRESS`, or `COORDINATOR_NOT_AVAILABLE` where the shard went away.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        key: &str,
        request: <K::Core as Core>::Request,
    ) -> Result<<K::Core as Core>::Response, ErrorCode> {
        let shard = self.shard_of(key)?;
        self.ask_shard(&shard, request).await
    }

    /// Hands a request to the shard of one partition, if that is here; its answer is to come.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) fn ask_at(
        self: &Arc<Self>,
        id: TopicPartition,
        request: <K::Core as Core>::Request,
    ) -> Result<Answer<K>, ErrorCode> {
        let shard = self.shard(id.partition).filter(|shard| shard.partition.id() == id);
        self.put(&shard.ok_or(ErrorCode::NotCoordinator)?, request)
    }

    /// The partition that a key's coordinator keeps its state in, where that is served here.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) fn home(&self, key: &str) -> Result<Arc<Partition>, ErrorCode> {
        let shard = self.shard_of(key)?;
        shard.lock().check_served()?;
        Ok(Arc::clone(&shard.partition))
    }

    /// Whether the partition that a key's coordinator keeps its state in is still led as when its shard began: partitions hear of
    /// an image before it is published, shards later.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) fn check_leads(&self, key: &str) -> Result<(), ErrorCode> {
        let shard = self.shard_of(key)?;
        shard.lock().check_served()?;
        shard.partition.check_leadership(shard.leadership).map_err(|_| ErrorCode::NotCoordinator)
    }

    /// As [`Shards::ask`], again and again while what the shard has under way is in the way, as `refused` says, until then.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) async fn ask_patiently(
        self: &Arc<Self>,
        key: &str,
        request: <K::Core as Core>::Request,
        until: tokio::time::Instant,
        refused: impl Fn(&<K::Core as Core>::Response) -> bool,
    ) -> Result<<K::Core as Core>::Response, ErrorCode>
    where
        <K::Core as Core>::Request: Clone,
    {
        let shard = self.shard_of(key)?;
        loop {
            let mut changed = std::pin::pin!(shard.changed.notified());
            // Listed before it is asked, so that no change in between is missed.
            changed.as_mut().enable();
            let answer = self.ask_shard(&shard, request.clone()).await?;
            if !refused(&answer) || tokio::time::timeout_at(until, changed).await.is_err() {
                return Ok(answer);
            }
        }
    }

    fn shard_of(&self, key: &str) -> Result<Arc<Shard<K>>, ErrorCode> {
        let index = self.partition_of(key).ok_or(ErrorCode::NotCoordinator)?;
        self.shard(index).ok_or(ErrorCode::NotCoordinator)
    }

    /// Asks every shard; those that went away meanwhile are left out.
    ///
    /// # Errors
    /// What a shard that is here cannot be asked for.
    pub(crate) async fn ask_all(
        self: &Arc<Self>,
        request: <K::Core as Core>::Request,
    ) -> Result<Vec<<K::Core as Core>::Response>, ErrorCode>
    where
        <K::Core as Core>::Request: Clone,
    {
        let mut answers = Vec::new();
        for shard in self.all() {
            match self.ask_shard(&shard, request.clone()).await {
                Ok(answer) => answers.push(answer),
                // What it held is another broker's by now.
                Err(ErrorCode::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    async fn ask_shard(
        self: &Arc<Self>,
        shard: &Arc<Shard<K>>,
        request: <K::Core as Core>::Request,
    ) -> Result<<K::Core as Core>::Response, ErrorCode> {
        // The sender is dropped only with its shard.
        self.put(shard, request)?.await.map_err(|_| ErrorCode::NotCoordinator)
    }

    fn put(
        self: &Arc<Self>,
        shard: &Arc<Shard<K>>,
        request: <K::Core as Core>::Request,
    ) -> Result<Answer<K>, ErrorCode> {
        let mut inner = shard.lock();
        inner.check_served()?;
        let (answer, answered) = oneshot::channel();
        inner.next_token += 1;
        let token = Token(inner.next_token);
        inner.waiting.insert(token, answer);
        let entropy = self.context.chance.next_wide();
        inner.core.handle(token, request, entropy, self.now());
        self.drain(shard, &mut inner);
        Ok(answered)
    }

    /// Tells a shard's core something besides requests, and carries out what follows.
    pub(crate) fn tell(self: &Arc<Self>, shard: &Arc<Shard<K>>, tell: impl FnOnce(&mut K::Core, Now)) {
        let mut inner = shard.lock();
        if inner.stage != Stage::Gone {
            tell(&mut inner.core, self.now());
            self.drain(shard, &mut inner);
        }
    }

    /// The partition of the topic that a key belongs to; None while the topic does not exist.
    pub(crate) fn partition_of(&self, key: &str) -> Option<PartitionIndex> {
        let image = self.context.image();
        let topic = image.topic_by_name(K::TOPIC)?;
        let count = i32::try_from(topic.partitions.len()).ok().filter(|count| *count > 0)?;
        Some(partition_for(key, count))
    }

    /// All shards that are here.
    pub(crate) fn all(&self) -> Vec<Arc<Shard<K>>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn shard(&self, index: PartitionIndex) -> Option<Arc<Shard<K>>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }

    fn now(&self) -> Now {
        Now { monotonic: self.context.clock.monotonic(), wall: self.context.clock.wall() }
    }

    /// Carries out what the core wants, under the shard's lock.
    fn drain(self: &Arc<Self>, shard: &Arc<Shard<K>>, inner: &mut ShardInner<K>) {
        while let Some(output) = inner.core.poll_output() {
            match output {
                Output::Reply { token, response } => {
                    if let Some(waiting) = inner.waiting.remove(&token) {
                        // Whoever asked may have gone away.
                        let _ = waiting.send(response);
                    }
                }
                Output::Append { batch, records } => {
                    let bytes = encode(&records, self.context.clock.wall());
                    self.append(shard, batch, |context, pending| {
                        shard.partition.produce(context, Acks::All, Some(shard.leadership), bytes, pending);
                    });
                }
                Output::AppendInTransaction { batch, producer, guard, records } => {
                    let guard = guard.map(VerificationGuard::of_number);
                    let bytes = encode_in_transaction(&records, producer, self.context.clock.wall());
                    self.append(shard, batch, |context, pending| {
                        shard.partition.append_in_transaction(context, shard.leadership, guard, bytes, pending);
                    });
                }
                Output::AppendMarker { batch, marker } => {
                    let marker = markers::to_api(&marker);
                    self.append(shard, batch, |context, pending| {
                        shard.partition.append_marker(context, Some(shard.leadership), &marker, pending);
                    });
                }
                Output::Effect(effect) => K::carry_out(self, shard, effect),
            }
        }
        if inner.core.poll_timeout().is_some_and(|due| due.0 < self.looks_at.load(Ordering::Acquire)) {
            self.timers_moved.notify_one();
        }
    }

    /// Appends with acks=all; a task of its own tells the core what came of it.
    fn append(
        self: &Arc<Self>,
        shard: &Arc<Shard<K>>,
        batch: BatchNumber,
        append: impl FnOnce(&Arc<Context>, &Arc<PendingProduce>),
    ) {
        let pending = PendingProduce::new(1);
        append(&self.context, &pending);
        let (shards, shard) = (Arc::clone(self), Arc::clone(shard));
        tokio::spawn(async move {
            pending.wait().await;
            let result = pending.take(ErrorCode::RequestTimedOut).into_iter().next();
            let mut inner = shard.lock();
            match result {
                Some(result) if result.error.is_none() || result.error == ErrorCode::NotEnoughReplicasAfterAppend => {
                    inner.core.committed(batch, shards.now());
                }
                // Nothing was appended.
                Some(result) if result.base_offset == Offset::NONE => {
                    inner.core.failed(batch, refused(result.error), shards.now());
                }
                // Appended, and the leadership ended before it was committed: what became of it, the next coordinator's
                // log says. This shard is about to go; what waits is answered when it does.
                _ => return,
            }
            shards.drain(&shard, &mut inner);
            shard.changed.notify_waiters();
        });
    }
}

/// Loading, and the end.
impl<K: Kind> Shards<K> {
    /// Loads a shard, from the start again where that failed, as long as the leadership lasts.
    async fn load(self: Arc<Self>, shard: Arc<Shard<K>>) {
        let started = self.context.clock.monotonic();
        let Some(end) = self.wait_for_watermark(&shard).await else { return };
        let partition = shard.partition.id().partition;
        let mut pause = RELOAD_PAUSE;
        let records = loop {
            match self.replay(&shard, end).await {
                Ok(records) => break records,
                Err(error) => {
                    let (topic, next_ms) = (K::TOPIC, pause.as_millis());
                    tracing::error!(topic, %partition, error, next_ms, "cannot load this coordinator; it is tried again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RELOAD_PAUSE_MAX);
            if !self.start_over(&shard) {
                return;
            }
        };
        let mut inner = shard.lock();
        // The leadership may have ended meanwhile.
        if inner.stage != Stage::Loading {
            return;
        }
        inner.core.finish_load(self.now());
        inner.stage = Stage::Serving;
        self.drain(&shard, &mut inner);
        let (ms, skipped) = (self.context.clock.monotonic().since(started), inner.core.skipped_records());
        tracing::debug!(topic = K::TOPIC, %partition, records, skipped, ms, "coordinates");
    }

    /// Forgets what was loaded, where the leadership goes on.
    fn start_over(&self, shard: &Shard<K>) -> bool {
        let mut inner = shard.lock();
        if inner.stage != Stage::Loading {
            return false;
        }
        inner.core = self.kind.core(&self.context, shard.leader_epoch);
        K::listed(&mut inner.core, &self.context);
        true
    }

    /// R44, R52: everything that an earlier coordinator may have answered for is below the high watermark when it has
    /// reached the start of this leadership. None where the leadership ended first.
    async fn wait_for_watermark(&self, shard: &Shard<K>) -> Option<Offset> {
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

    fn is_current(&self, shard: &Shard<K>) -> bool {
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        shards.get(&shard.partition.id().partition).is_some_and(|current| std::ptr::eq(&raw const **current, shard))
    }

    async fn replay(&self, shard: &Arc<Shard<K>>, end: Offset) -> Result<usize, String> {
        let mut next = shard.partition.lock().log.log_start();
        let mut records = 0;
        while next < end && self.is_current(shard) {
            let read = shard.partition.read_to_load(&self.context, next, end, LOAD_BYTES);
            let chunks = read.await.map_err(|error| error.to_string())?;
            let before = next;
            for chunk in chunks {
                for batch in RecordBatch::split_all(chunk).map_err(|error| error.to_string())? {
                    next = batch.header().next_offset();
                    records += shard.replay(&self.context, &batch)?;
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
        let (leadership, leader_epoch) = partition.leadership();
        let inner = ShardInner {
            core: self.kind.core(&self.context, leader_epoch),
            stage: Stage::Loading,
            waiting: BTreeMap::new(),
            next_token: 0,
        };
        let inner = Mutex::new(inner);
        let shard = Arc::new(Shard { partition, leadership, leader_epoch, inner, changed: Notify::new() });
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.insert(index, Arc::clone(&shard));
        drop(shards);
        K::listed(&mut shard.lock().core, &self.context);
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
            self.kind.ended(&inner.core);
            shard.changed.notify_waiters();
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
        let Some(leaderships) = self.context.leaderships(K::TOPIC) else { return };
        loop {
            leaderships.moved().await;
            for (id, leads) in leaderships.take() {
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

    /// Calls the shards at their deadlines, until the broker stops.
    pub(crate) async fn keep_time(self: Arc<Self>) {
        loop {
            // A deadline that moves while this looks around is looked at again.
            self.looks_at.store(u64::MAX, Ordering::Release);
            let mut next: Option<Time> = None;
            for shard in self.all() {
                let mut inner = shard.lock();
                if inner.stage != Stage::Serving {
                    continue;
                }
                // Offsets (R55) and transactional ids expire by age.
                let now = Now { wall: self.context.judged_time().wall, ..self.now() };
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

impl<K: Kind> ShardInner<K> {
    fn check_served(&self) -> Result<(), ErrorCode> {
        match self.stage {
            Stage::Loading => Err(ErrorCode::CoordinatorLoadInProgress),
            Stage::Gone => Err(ErrorCode::NotCoordinator),
            Stage::Serving => Ok(()),
        }
    }
}

impl<K: Kind> Shard<K> {
    /// Looks at the core, where it serves.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&K::Core) -> T) -> Option<T> {
        let inner = self.lock();
        (inner.stage == Stage::Serving).then(|| look(&inner.core))
    }

    /// Whether its leadership ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.lock().stage == Stage::Gone
    }

    fn lock(&self) -> MutexGuard<'_, ShardInner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay(&self, context: &Context, batch: &RecordBatch) -> Result<usize, String> {
        let header = batch.header();
        if header.is_control() {
            // Other control records are nobody's.
            if let Some(marker) = EndMarker::of(batch) {
                self.lock().core.replay_marker(header.producer_id, marker.commit);
            }
            return Ok(0);
        }
        // Coordinators compress nothing, but the topic's compression.type may ask for it.
        let mut memory = context.budget.charge(0);
        let payload = compression::decompress_counted(batch, &mut |bytes| memory.add_len(bytes))
            .map_err(|error| error.to_string())?;
        let mut inner = self.lock();
        let mut records = 0;
        for record in RecordIter::new(payload, header.record_count) {
            let record = record.map_err(|error| error.to_string())?;
            let Some(key) = record.key else { continue };
            let record = CoordinatorRecord { key, value: record.value };
            if header.is_transactional() {
                inner.core.replay_in_transaction(&record, header.producer_id);
            } else {
                inner.core.replay(&record);
            }
            records += 1;
        }
        Ok(records)
    }
}

/// What a refusal of the partition means to a coordinator's client.
fn refused(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge => ErrorCode::UnknownServerError,
        // What the partition knows of a producer (`R47`, `R50`) is the answer.
        ErrorCode::InvalidProducerEpoch | ErrorCode::InvalidTxnState | ErrorCode::TransactionCoordinatorFenced => error,
        _ => ErrorCode::CoordinatorNotAvailable,
    }
}

fn encode(records: &[CoordinatorRecord], wall: Time) -> BytesMut {
    let (payload, count, now) = payload(records, wall);
    encode_batch(&payload, Codec::None, count, now, now, None)
}

fn encode_in_transaction(records: &[CoordinatorRecord], producer: Producer, wall: Time) -> ClientBatches {
    const NO_SEQUENCE: i32 = -1;
    let (payload, count, now) = payload(records, wall);
    ClientBatches::own(encode_transactional_batch(&payload, count, now, (producer.id, producer.epoch, NO_SEQUENCE)))
}

fn payload(records: &[CoordinatorRecord], wall: Time) -> (Bytes, i32, i64) {
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
    (encode_records(&records).into(), count, now)
}
