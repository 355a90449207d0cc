//! Appending what clients and coordinators write: checks, stamping, the log, the producers' state (`R20`, `R22`, `R40`).

use std::sync::Arc;

use bytes::BytesMut;
use model::batch::BatchError;
use model::record::RawRecords;
use model::{BatchHeader, ClientBatches, Codec, EndMarker, ErrorCode, Offset, RecordBatch, Time, TimestampType};
use replication::ProduceVerdict;
use replication::producers::{ProducerBatch, SequenceCheck};
use storage::LogError;
use storage::compression::{compress_into, decompress_into_counted};

use super::{Inner, Leadership, Partition};
use crate::api::{Acks, Produced, RecordRefused};
use crate::context::Context;
use crate::loading::aborted_transaction;
use crate::topic_settings::TopicSettings;
use crate::waiters::PendingProduce;

/// The timestamp of a record that has none.
const NO_TIMESTAMP: i64 = -1;
/// How many refused records of a batch are named: a batch of a megabyte may have a hundred thousand.
const REFUSED_TOLD: usize = 100;

/// When something is appended, by the broker's two clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    now: Time,
    wall: Time,
}

impl Moment {
    pub(super) fn of(context: &Context) -> Moment {
        Moment { now: context.clock.monotonic(), wall: context.clock.wall() }
    }

    /// In milliseconds since 1970.
    pub(super) fn timestamp(self) -> i64 {
        i64::try_from(self.wall.0).unwrap_or(i64::MAX)
    }
}

impl Partition {
    /// Appends what a client sent, or says why not; `request` is answered when `acks` are there. The result is pushed on
    /// `request` in any case. A writer whose state came from the log names the `leadership` that it belongs to: in another
    /// one nothing is appended.
    pub(crate) fn produce(
        self: &Arc<Self>,
        context: &Arc<Context>,
        acks: Acks,
        leadership: Option<Leadership>,
        records: BytesMut,
        request: &Arc<PendingProduce>,
    ) {
        let moment = Moment::of(context);
        let checked =
            self.check_batch(context, records, moment).and_then(|batch| match batch.header().is_transactional() {
                true => Err(self.refuse(ErrorCode::TransactionalIdAuthorizationFailed, "whose transaction is it?")),
                false => Ok(batch),
            });
        let mut inner = self.lock();
        let appended = inner
            .check_leadership(leadership)
            .map_err(|error| self.refuse(error, "the leadership is another one"))
            .and_then(|()| self.append(context, &mut inner, acks, checked, moment));
        self.answer(&mut inner, acks, appended, request, None);
        self.carry_out(context, &mut inner);
    }

    /// All that costs time is checked without the lock.
    pub(super) fn check_batch(
        &self,
        context: &Context,
        records: BytesMut,
        moment: Moment,
    ) -> Result<ClientBatches, Box<Produced>> {
        let (settings, log_start) = {
            let inner = self.lock();
            (Arc::clone(&inner.settings), inner.log.log_start())
        };
        let batch = ClientBatches::check(records).map_err(|error| self.refuse_batch(&error))?;
        self.check_size(&settings, &batch)?;
        self.check_payload(context, &settings, batch, moment.timestamp()).map_err(|mut refused| {
            if !refused.refused.is_empty() {
                refused.log_start = log_start;
            }
            refused
        })
    }

    /// Says on `request` what became of an append: at once, or when the high watermark covers it, or for acks=1 the leader's
    /// sync. `promised` is the place of a result that was pushed before.
    pub(super) fn answer(
        &self,
        inner: &mut Inner,
        acks: Acks,
        appended: Result<Appended, Box<Produced>>,
        request: &Arc<PendingProduce>,
        promised: Option<usize>,
    ) {
        let (result, waits_for) = match appended {
            Ok(Appended { base_offset, end, log_append_time }) => {
                // R21: weaker acks change when the answer goes out, and nothing of what is appended and replicated.
                let verdict = match acks {
                    Acks::All => inner.replica.produce_verdict(end),
                    Acks::Leader => inner.replica.leader_verdict(end),
                    Acks::None => ProduceVerdict::Done(ErrorCode::None),
                };
                let mut result = self.result(ErrorCode::None, None);
                result.base_offset = base_offset;
                result.log_append_time = log_append_time;
                result.log_start = inner.log.log_start();
                match verdict {
                    ProduceVerdict::Pending => (result, Some(end)),
                    ProduceVerdict::Done(error) => {
                        result.error = error;
                        (result, None)
                    }
                }
            }
            Err(refused) => {
                let mut result = *refused;
                if result.error == ErrorCode::NotLeaderOrFollower {
                    result.current_leader = Some(inner.current_leader());
                }
                (result, None)
            }
        };
        let index = match promised {
            None => request.push(result, waits_for.is_some()),
            Some(index) => {
                request.settle(index, result, waits_for.is_some());
                index
            }
        };
        if let Some(end) = waits_for {
            let waiters = if acks == Acks::All { &mut inner.produce_waiters } else { &mut inner.sync_waiters };
            waiters.push(end, request, index);
        }
    }

    fn append(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        acks: Acks,
        checked: Result<ClientBatches, Box<Produced>>,
        moment: Moment,
    ) -> Result<Appended, Box<Produced>> {
        self.check_writable(inner, acks)?;
        let batch = checked?;
        if let Some(producer) = ProducerBatch::of(batch.header(), None)
            && let Some(before) = self.check_producer(inner, &producer)?
        {
            return Ok(before);
        }
        self.write(context, inner, batch, moment)
    }

    /// Whether records may be appended now (`R20`).
    pub(super) fn check_writable(&self, inner: &Inner, acks: Acks) -> Result<(), Box<Produced>> {
        if let Some(reason) = &inner.failed {
            return Err(self.refuse(ErrorCode::KafkaStorageError, reason));
        }
        let required = match acks {
            Acks::All => -1,
            Acks::Leader => 1,
            Acks::None => 0,
        };
        inner.replica.check_produce(required).map_err(|error| self.refuse(error, "the append was refused"))
    }

    /// What the producer's state says of its batch (`R40`): append it, or, where it is there already, where it stands.
    pub(super) fn check_producer(
        &self,
        inner: &Inner,
        producer: &ProducerBatch,
    ) -> Result<Option<Appended>, Box<Produced>> {
        match inner.producers.check(producer, inner.replica.rules()) {
            Ok(SequenceCheck::Append) => Ok(None),
            // The first append's offset; it may still be above the high watermark.
            Ok(SequenceCheck::Duplicate { base_offset, last_offset, timestamp }) => {
                let appended = inner.settings.log_append_time.then(|| i64::try_from(timestamp.0).ok()).flatten();
                Ok(Some(Appended { base_offset, end: last_offset + 1, log_append_time: appended.unwrap_or(-1) }))
            }
            Err(ErrorCode::OutOfOrderSequenceNumber) => {
                Err(self.out_of_order(inner, "the sequence is not the next one"))
            }
            Err(error) => Err(self.refuse(error, "the producer's epoch or sequence is not the next one")),
        }
    }

    /// The answer to a batch that something should have come before; where the log did not take that, it will be sent again.
    pub(super) fn out_of_order(&self, inner: &Inner, reason: &str) -> Box<Produced> {
        if inner.append_refused {
            return self.refuse(ErrorCode::KafkaStorageError, "the log did not take what came before it");
        }
        self.refuse(ErrorCode::OutOfOrderSequenceNumber, reason)
    }

    /// Stamps a batch that all checks have passed and writes it (`R22`).
    pub(super) fn write(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        mut batch: ClientBatches,
        moment: Moment,
    ) -> Result<Appended, Box<Produced>> {
        let mut log_append_time = -1;
        if inner.settings.log_append_time {
            log_append_time = moment.timestamp();
            batch.set_timestamps(TimestampType::LogAppendTime, log_append_time);
        }
        let base_offset = inner.replica.next_offset();
        if !batch.header().fits_at(base_offset) {
            return Err(self.refuse(ErrorCode::KafkaStorageError, "the log is at the end of all offsets"));
        }
        let batch = batch.stamp(base_offset, inner.replica.leader_epoch());
        if let Err(error) = inner.log.append(std::slice::from_ref(&batch)) {
            inner.append_refused = true;
            self.log_failed(context, inner, &error);
            return Err(self.refuse(ErrorCode::KafkaStorageError, &error.to_string()));
        }
        (inner.no_space, inner.append_refused) = (false, false);
        if let Err(error) = inner.note_producer(&batch) {
            self.log_failed(context, inner, &error);
            return Err(self.refuse(ErrorCode::KafkaStorageError, &error.to_string()));
        }
        self.traffic.bytes_in.add(u64::try_from(batch.header().size).unwrap_or(0));
        self.traffic.messages_in.add(u64::try_from(batch.header().record_count).unwrap_or(0));
        let end = batch.header().next_offset();
        inner.append_times.note(base_offset, moment.now);
        inner.replica.handle_leader_append(end, moment.now);
        Ok(Appended { base_offset, end, log_append_time })
    }

    pub(super) fn check_size(&self, settings: &TopicSettings, batch: &ClientBatches) -> Result<(), Box<Produced>> {
        if batch.size() <= settings.max_message_bytes {
            return Ok(());
        }
        let reason =
            format!("the batch has {} bytes; max.message.bytes is {}", batch.size(), settings.max_message_bytes);
        Err(self.refuse(ErrorCode::MessageTooLarge, &reason))
    }

    /// Checks the records where they can be seen or have to be, compresses them as the topic asks for it, and writes into the
    /// header which timestamp is the largest: retention, rolling and lookups by time go by it. Compressed records of a topic
    /// that leaves the codec to producers are looked at only where their header is not to be believed.
    fn check_payload(
        &self,
        context: &Context,
        settings: &TopicSettings,
        batch: ClientBatches,
        now: i64,
    ) -> Result<ClientBatches, Box<Produced>> {
        let times = Timestamps::of(settings, now);
        let codec = batch.header().codec().unwrap_or(Codec::None);
        let wanted = settings.codec.unwrap_or(codec);
        if codec != Codec::None && codec == wanted && !settings.compacted && times.believe(batch.header()) {
            return Ok(batch);
        }
        let check = || self.check_and_compress(context, settings, batch, (codec, wanted), times);
        if codec == wanted && codec == Codec::None {
            return check();
        }
        // Up to a tenth of a second or more for a large batch, and batches of a producer keep their order.
        context.disk_pool.compute_in_place(check)
    }

    /// Checks the records one by one, and compresses them where another codec is wanted than they have.
    fn check_and_compress(
        &self,
        context: &Context,
        settings: &TopicSettings,
        mut batch: ClientBatches,
        (codec, wanted): (Codec, Codec),
        times: Timestamps,
    ) -> Result<ClientBatches, Box<Produced>> {
        // Charged until the batch is as it is appended; the request's own charge covers that.
        let mut memory = context.budget.charge(0);
        let mut decoded = Vec::new();
        let plain = if codec == Codec::None {
            batch.payload()
        } else {
            decompress_into_counted(&mut decoded, codec, batch.payload(), &mut |bytes| memory.add_len(bytes))
                .map_err(|error| self.refuse(ErrorCode::InvalidRecord, &format!("records do not decode: {error}")))?;
            &decoded
        };
        let newest = self.check_records(settings, times, batch.header(), plain)?;
        if codec != wanted {
            let mut packed = Vec::new();
            compress_into(&mut packed, wanted, &settings.log.compression_levels, plain)
                .map_err(|error| self.refuse(ErrorCode::UnknownServerError, &error.to_string()))?;
            memory.add_len(packed.len());
            batch = batch.recompressed(wanted, &packed);
            self.check_size(settings, &batch)?;
        }
        if !settings.log_append_time {
            batch.set_timestamps(TimestampType::CreateTime, newest);
        }
        Ok(batch)
    }

    /// The framing of records, that each has a key where the topic is compacted, and a timestamp within the topic's bounds.
    /// Gives the largest timestamp, -1 where there is none.
    fn check_records(
        &self,
        settings: &TopicSettings,
        times: Timestamps,
        header: &BatchHeader,
        payload: &[u8],
    ) -> Result<i64, Box<Produced>> {
        if settings.compacted {
            return self.check_each(settings, times, header, payload);
        }
        let deltas = model::record::check_records(payload, header.record_count)
            .map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()))?;
        let at = |delta| header.base_timestamp.saturating_add(delta);
        if times.allow_all(at(deltas.min), at(deltas.max)) {
            return Ok(at(deltas.max).max(NO_TIMESTAMP));
        }
        self.check_each(settings, times, header, payload)
    }

    /// As [`check_records`](Self::check_records), record by record: names those that the topic does not take.
    fn check_each(
        &self,
        settings: &TopicSettings,
        times: Timestamps,
        header: &BatchHeader,
        payload: &[u8],
    ) -> Result<i64, Box<Produced>> {
        let (mut refused, mut count, mut error) = (Vec::new(), 0u32, ErrorCode::InvalidRecord);
        let mut newest = NO_TIMESTAMP;
        // As many records as offsets, ascending: they count up from 0.
        for record in RawRecords::new(payload, header.record_count, header.last_offset_delta) {
            let record = record.map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()))?;
            let timestamp = header.base_timestamp.saturating_add(record.timestamp_delta);
            newest = newest.max(timestamp);
            let message = if settings.compacted && record.key.is_none() {
                format!(
                    "Compacted topic cannot accept message without key in topic partition {}-{}",
                    self.topic, self.id.partition
                )
            } else if !times.allow(timestamp) {
                error = ErrorCode::InvalidTimestamp;
                times.refusal(timestamp, record.offset_delta)
            } else {
                continue;
            };
            count += 1;
            if refused.len() < REFUSED_TOLD {
                refused.push(RecordRefused { index: record.offset_delta, message });
            }
        }
        if refused.is_empty() {
            return Ok(newest);
        }
        let mut result = self.refuse(error, &refused_message(error, count, &refused));
        result.refused = refused;
        Err(result)
    }

    fn refuse_batch(&self, error: &BatchError) -> Box<Produced> {
        let code = match error {
            BatchError::BadLength(_) | BatchError::BadCrc { .. } => ErrorCode::CorruptMessage,
            // The formats before are refused as such; what never was one is damage.
            BatchError::BadMagic(0 | 1) => ErrorCode::InvalidRecord,
            BatchError::BadMagic(_) => ErrorCode::CorruptMessage,
            // A batch that is not whole is none, and a produce must have one.
            BatchError::Truncated { .. } => ErrorCode::InvalidRecord,
            BatchError::UnknownCodec(_) => ErrorCode::UnsupportedCompressionType,
            BatchError::Invalid(_) | BatchError::NotOneBatch => ErrorCode::InvalidRecord,
        };
        self.refuse(code, &error.to_string())
    }

    pub(super) fn refuse(&self, error: ErrorCode, message: &str) -> Box<Produced> {
        Box::new(self.result(error, Some(message.to_owned())))
    }

    pub(super) fn result(&self, error: ErrorCode, message: Option<String>) -> Produced {
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

impl Inner {
    /// A batch stands in the log: what follows for its producer, and for readers where it ends a transaction. An error ends
    /// the replica: its log has more than its state says.
    pub(super) fn note_producer(&mut self, batch: &RecordBatch) -> Result<(), LogError> {
        let Some(producer) = ProducerBatch::of(batch.header(), EndMarker::of(batch)) else { return Ok(()) };
        match self.producers.append(&producer).filter(|ended| !ended.commit) {
            Some(aborted) => self.log.note_aborted(aborted_transaction(&aborted)),
            None => Ok(()),
        }
    }

    /// The end of what read_committed consumers see, and below which nothing is undecided (`R43`): retention and compaction
    /// stay below it (`R39`).
    pub(crate) fn last_stable_offset(&self) -> Offset {
        self.producers.last_stable_offset(self.replica.log(), self.replica.rules())
    }

    pub(super) fn check_leadership(&self, named: Option<Leadership>) -> Result<(), ErrorCode> {
        match named {
            Some(named) if named != self.leadership => Err(ErrorCode::NotLeaderOrFollower),
            _ => Ok(()),
        }
    }
}

/// Where a batch stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appended {
    base_offset: Offset,
    end: Offset,
    log_append_time: i64,
}

/// What a topic asks of the timestamps of records (`message.timestamp.before.max.ms`, `message.timestamp.after.max.ms`).
#[derive(Clone, Copy, Debug)]
enum Timestamps {
    /// Nothing: its records get the leader's (`message.timestamp.type=LogAppendTime`).
    Any,
    /// To be within these bounds, both included.
    Within {
        earliest: i64,
        latest: i64,
        /// There is a bound to the past, that no header can vouch for.
        bounded: bool,
    },
}

impl Timestamps {
    fn of(settings: &TopicSettings, now: i64) -> Timestamps {
        if settings.log_append_time {
            return Timestamps::Any;
        }
        Timestamps::Within {
            earliest: now.saturating_sub(settings.timestamp_before_max_ms),
            latest: now.saturating_add(settings.timestamp_after_max_ms),
            bounded: settings.timestamp_before_max_ms != i64::MAX,
        }
    }

    fn allow(self, timestamp: i64) -> bool {
        timestamp == NO_TIMESTAMP || self.allow_all(timestamp, timestamp)
    }

    /// Whether all from `first` to `last` are allowed.
    fn allow_all(self, first: i64, last: i64) -> bool {
        match self {
            Timestamps::Any => true,
            Timestamps::Within { earliest, latest, .. } => earliest <= first && last <= latest,
        }
    }

    /// Whether the largest timestamp in a header may be taken without a look at the compressed records: some producers do
    /// not fill it in, and what is out of bounds is named by record.
    fn believe(self, header: &BatchHeader) -> bool {
        match self {
            Timestamps::Any => true,
            Timestamps::Within { bounded, .. } => {
                header.timestamp_type() == TimestampType::CreateTime
                    && header.max_timestamp >= header.base_timestamp.max(0)
                    && self.allow(header.max_timestamp)
                    && !bounded
            }
        }
    }

    /// What Kafka says of such a record.
    fn refusal(self, timestamp: i64, offset_delta: i32) -> String {
        let (earliest, latest) = match self {
            Timestamps::Any => (i64::MIN, i64::MAX),
            Timestamps::Within { earliest, latest, .. } => (earliest, latest),
        };
        format!(
            "Timestamp {timestamp} of message with offset {offset_delta} is out of range. \
             The timestamp should be within [{earliest}, {latest}]"
        )
    }
}

/// What Kafka says of a batch some of whose records are refused.
fn refused_message(error: ErrorCode, count: u32, refused: &[RecordRefused]) -> String {
    if error == ErrorCode::InvalidTimestamp {
        return "One or more records have been rejected due to invalid timestamp".to_owned();
    }
    let first = refused
        .iter()
        .take(3)
        .map(|record| format!("RecordError(batchIndex={}, message='{}')", record.index, record.message));
    format!(
        "One or more records have been rejected due to {count} record errors in total, \
         and only showing the first three errors at most: [{}]",
        first.collect::<Vec<_>>().join(", ")
    )
}
