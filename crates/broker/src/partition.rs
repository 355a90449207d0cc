//! One replica of one partition on this broker: the `replication` core, the log and the producers' state behind one lock,
//! and who waits for it.
//!
//! Every input goes the same way: take the lock, give it to the core, carry out the core's actions in order, let go. What
//! takes long (fdatasync, reads from disk) runs without the lock, on the disk pool.
//!
//! Invariants: the core's view of the log's start and end is the log's; actions are carried out under the lock that their
//! input was handled under; nobody calls into a stream's or a manager's lock and back into a partition.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use model::batch::BatchError;
use model::{
    BrokerId, ClientBatches, Codec, ErrorCode, LeaderEpoch, Offset, ProducerEpoch, RecordBatch, RecordIter, Time,
    TimestampType, TopicPartition,
};
use replication::{
    Action, BatchInfo, DataHeader, DataVerdict, LogView, PartitionState, ProducerBatch, ProducerTable, ProducerVerdict,
    Replica, ReplicaConfig, SyncPoint,
};
use rpc::replication as wire;
use storage::{ColdRead, Log, LogError, Read};

use crate::api::{Acks, CurrentLeader, Produced, RecordRefused};
use crate::context::Context;
use crate::leader_streams::LeaderStream;
use crate::topic_config::TopicSettings;
use crate::waiters::{FetchWaiter, FetchWaiters, PendingProduce, ProduceWaiters};

/// See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    id: TopicPartition,
    topic: Arc<str>,
    inner: Mutex<Inner>,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) replica: Replica,
    pub(crate) log: Log,
    pub(crate) producers: ProducerTable,
    pub(crate) settings: Arc<TopicSettings>,
    produce_waiters: ProduceWaiters,
    fetch_waiters: FetchWaiters,
    /// The stream of each follower that has a session here.
    links: Vec<Link>,
    /// The handle of this follower's own session, while there is one.
    handle: Option<(u64, u64)>,
    following: Option<BrokerId>,
    sync: SyncState,
    /// Why nothing can be read or written, once the log failed.
    failed: Option<String>,
}

/// A follower's session and the stream that it is on.
#[derive(Debug)]
struct Link {
    follower: BrokerId,
    stream: Arc<LeaderStream>,
    handle: u64,
    open_no: u64,
    queued_data: bool,
    queued_progress: bool,
}

/// Whether an fdatasync of this log is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SyncState {
    Idle,
    Running,
    /// More was asked for since it started.
    RunningAndWanted,
}

/// The leader's answer to an open, or that it must wait for metadata.
#[derive(Debug)]
pub(crate) enum OpenVerdict {
    Answer(wire::Answer),
    Park,
}

/// What a partition has for a follower's stream.
#[derive(Debug)]
pub(crate) enum NextData {
    Nothing,
    Data { data: wire::Data, more: bool },
    Cold(ColdData),
}

/// Records for a follower that have to be read from disk first.
#[derive(Debug)]
pub(crate) struct ColdData {
    partition: Arc<Partition>,
    stream: Arc<LeaderStream>,
    data: wire::Data,
    read: ColdRead,
}

impl Partition {
    /// A replica of `topic`'s partition over its opened log.
    pub(crate) fn new(
        id: TopicPartition,
        topic: Arc<str>,
        config: ReplicaConfig,
        log: Log,
        epochs: model::EpochCache,
        high_watermark: Offset,
        producers: ProducerTable,
        settings: Arc<TopicSettings>,
    ) -> Arc<Partition> {
        let view = LogView {
            start: log.log_start(),
            end: log.log_end(),
            synced_end: log.synced_end(),
            high_watermark,
        };
        let inner = Inner {
            replica: Replica::new(config, view, epochs),
            log,
            producers,
            settings,
            produce_waiters: ProduceWaiters::default(),
            fetch_waiters: FetchWaiters::default(),
            links: Vec::new(),
            handle: None,
            following: None,
            sync: SyncState::Idle,
            failed: None,
        };
        Arc::new(Partition { id, topic, inner: Mutex::new(inner) })
    }

    /// Which partition.
    pub(crate) fn id(&self) -> TopicPartition {
        self.id
    }

    /// Its topic's name.
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// The lock, for those who only look.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an input to the replica and carries out what follows from it.
    fn handle<R>(self: &Arc<Self>, context: &Arc<Context>, input: impl FnOnce(&mut Inner, Time) -> R) -> R {
        let mut inner = self.lock();
        let now = context.clock.monotonic();
        let result = input(&mut inner, now);
        self.carry_out(context, &mut inner);
        result
    }

    /// The metadata says this of the partition now.
    pub(crate) fn handle_metadata(self: &Arc<Self>, context: &Arc<Context>, state: &PartitionState, settings: Arc<TopicSettings>) {
        self.handle(context, |inner, now| {
            if !Arc::ptr_eq(&inner.settings, &settings) {
                inner.log.set_config(settings.log.clone());
                inner.settings = settings;
            }
            inner.replica.handle_metadata(state, now);
        });
    }

    /// A time that [`Replica::poll_timeout`] named has come.
    pub(crate) fn handle_timeout(self: &Arc<Self>, context: &Arc<Context>) {
        self.handle(context, |inner, now| inner.replica.handle_timeout(now));
    }

    /// The controller answered, or did not, what was proposed as `proposal_no` (`R16`).
    pub(crate) fn handle_isr_answer(
        self: &Arc<Self>,
        context: &Arc<Context>,
        proposal_no: u64,
        answer: replication::AlterPartitionAnswer,
    ) {
        self.handle(context, |inner, now| inner.replica.handle_alter_partition_answer(proposal_no, answer, now));
    }

    /// Appends what a client sent, or says why not; `request` is answered when `acks` are there. The result is pushed on
    /// `request` in any case.
    pub(crate) fn produce(
        self: &Arc<Self>,
        context: &Arc<Context>,
        acks: Acks,
        records: BytesMut,
        request: &Arc<PendingProduce>,
    ) {
        let checked = ClientBatches::check(records);
        let mut inner = self.lock();
        let now = context.clock.monotonic();
        let wall = context.clock.wall();
        match checked.map_err(|error| self.refuse_batch(&error)).and_then(|batch| self.append(&mut inner, acks, batch, now, wall)) {
            Ok(Appended { base_offset, end, log_append_time }) => {
                let verdict = match acks {
                    Acks::All => inner.replica.produce_verdict(end),
                    Acks::None | Acks::Leader => Some(ErrorCode::None),
                };
                let mut result = self.result(ErrorCode::None, None);
                result.base_offset = base_offset;
                result.log_append_time = log_append_time;
                result.log_start = inner.log.log_start();
                result.error = verdict.unwrap_or(ErrorCode::None);
                let index = request.push(result, verdict.is_none());
                if verdict.is_none() {
                    inner.produce_waiters.push(end, request, index);
                }
            }
            Err(refused) => {
                let mut result = *refused;
                if result.error == ErrorCode::NotLeaderOrFollower {
                    result.current_leader = inner.current_leader();
                }
                request.push(result, false);
            }
        }
        self.carry_out(context, &mut inner);
    }

    fn append(
        &self,
        inner: &mut Inner,
        acks: Acks,
        mut batch: ClientBatches,
        now: Time,
        wall: Time,
    ) -> Result<Appended, Box<Produced>> {
        if let Some(reason) = &inner.failed {
            return Err(self.refuse(ErrorCode::KafkaStorageError, reason));
        }
        let all = acks == Acks::All;
        inner.replica.check_produce(all).map_err(|error| self.refuse(error, "the append was refused"))?;
        self.check_settings(&inner.settings, &batch, wall)?;
        let header = *batch.header();
        let producer = ProducerBatch::of(&header);
        match producer.map(|batch| inner.producers.check(&batch)) {
            None | Some(ProducerVerdict::Append) => {}
            Some(ProducerVerdict::Duplicate { base_offset }) => {
                // R40: the first append's offset; it may still be above the high watermark.
                let end = base_offset + i64::from(header.last_offset_delta) + 1;
                return Ok(Appended { base_offset, end, log_append_time: -1 });
            }
            Some(ProducerVerdict::Refused(error)) => return Err(self.refuse(error, "the producer's epoch or sequence is not the next")),
        }
        let mut log_append_time = -1;
        if inner.settings.log_append_time {
            log_append_time = i64::try_from(wall.0).unwrap_or(i64::MAX);
            batch.set_log_append_time(log_append_time);
        }
        let base_offset = inner.log.log_end();
        let batch = batch.stamp(base_offset, inner.replica.leader_epoch());
        inner.log.append(std::slice::from_ref(&batch)).map_err(|error| {
            let reason = error.to_string();
            inner.failed = Some(reason.clone());
            self.refuse(ErrorCode::KafkaStorageError, &reason)
        })?;
        if let Some(producer) = producer {
            inner.producers.appended(&producer, base_offset, wall);
        }
        let end = batch.header().next_offset();
        inner.replica.handle_leader_append(end, now);
        Ok(Appended { base_offset, end, log_append_time })
    }

    /// What the topic's configs say of a batch.
    fn check_settings(&self, settings: &TopicSettings, batch: &ClientBatches, wall: Time) -> Result<(), Box<Produced>> {
        let header = batch.header();
        if batch.size() > settings.max_message_bytes {
            let reason = format!("the batch has {} bytes; max.message.bytes is {}", batch.size(), settings.max_message_bytes);
            return Err(self.refuse(ErrorCode::MessageTooLarge, &reason));
        }
        if header.is_transactional() {
            return Err(self.refuse(ErrorCode::InvalidTxnState, "transactions are not supported yet"));
        }
        if header.timestamp_type() == TimestampType::CreateTime && !settings.log_append_time {
            let now = i64::try_from(wall.0).unwrap_or(i64::MAX);
            let late = header.max_timestamp.saturating_sub(now) > settings.timestamp_after_max_ms;
            let early = now.saturating_sub(header.base_timestamp) > settings.timestamp_before_max_ms;
            if header.base_timestamp >= 0 && (late || early) {
                return Err(self.refuse(ErrorCode::InvalidTimestamp, "a timestamp is too far from the broker's clock"));
            }
        }
        if header.codec() == Some(Codec::None) {
            self.check_records(settings, batch)?;
        }
        Ok(())
    }

    /// The framing of uncompressed records, and that each has a key where the topic is compacted.
    fn check_records(&self, settings: &TopicSettings, batch: &ClientBatches) -> Result<(), Box<Produced>> {
        let header = batch.header();
        if !settings.compacted {
            return model::check_records(batch.payload(), header.record_count)
                .map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()));
        }
        let mut refused = Vec::new();
        for (index, record) in (0..).zip(RecordIter::new(Bytes::copy_from_slice(batch.payload()), header.record_count)) {
            let record = record.map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()))?;
            if record.key.is_none() {
                let message = "Compacted topic cannot accept message without key".to_owned();
                refused.push(RecordRefused { index, message });
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let mut result = self.refuse(ErrorCode::InvalidRecord, "One or more records have been rejected");
        result.refused = refused;
        Err(result)
    }

    fn refuse_batch(&self, error: &BatchError) -> Box<Produced> {
        let code = match error {
            BatchError::Truncated { .. } | BatchError::BadLength(_) | BatchError::BadCrc { .. } => ErrorCode::CorruptMessage,
            BatchError::BadMagic(_) => ErrorCode::UnsupportedForMessageFormat,
            BatchError::UnknownCodec(_) => ErrorCode::UnsupportedCompressionType,
            BatchError::Invalid(_) | BatchError::NotOneBatch => ErrorCode::InvalidRecord,
        };
        self.refuse(code, &error.to_string())
    }

    fn refuse(&self, error: ErrorCode, message: &str) -> Box<Produced> {
        Box::new(self.result(error, Some(message.to_owned())))
    }

    fn result(&self, error: ErrorCode, message: Option<String>) -> Produced {
        Produced {
            partition: self.id,
            error,
            message,
            base_offset: Offset::NONE,
            log_append_time: -1,
            log_start: Offset::NONE,
            refused: Vec::new(),
            current_leader: None,
        }
    }
}

struct Appended {
    base_offset: Offset,
    end: Offset,
    log_append_time: i64,
}
