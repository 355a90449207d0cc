//! Appending what clients and coordinators write: checks, stamping, the log, the producers' state (`R20`, `R22`, `R40`).

use std::sync::Arc;

use bytes::BytesMut;
use model::batch::BatchError;
use model::record::RawRecords;
use model::{BatchHeader, ClientBatches, Codec, EndMarker, ErrorCode, Offset, RecordBatch, Rules, Time, TimestampType};
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
        let settings = Arc::clone(&self.lock().settings);
        let batch = ClientBatches::check(records).map_err(|error| self.refuse_batch(&error))?;
        self.check_settings(&settings, &batch, moment.wall)?;
        self.check_payload(context, &settings, batch)
    }

    /// Says on `request` what became of an append: at once, or when the high watermark covers it. `promised` is the place
    /// of a result that was pushed before.
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
                let verdict = match acks {
                    Acks::All => inner.replica.produce_verdict(end),
                    Acks::None | Acks::Leader => ProduceVerdict::Done(ErrorCode::None),
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
            inner.produce_waiters.push(end, request, index);
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
        match inner.producers.check(producer, Rules::all()) {
            Ok(SequenceCheck::Append) => Ok(None),
            // The first append's offset; it may still be above the high watermark.
            Ok(SequenceCheck::Duplicate { base_offset, last_offset, .. }) => {
                Ok(Some(Appended { base_offset, end: last_offset + 1, log_append_time: -1 }))
            }
            Err(error) => Err(self.refuse(error, "the producer's epoch or sequence is not the next one")),
        }
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
            batch.set_log_append_time(log_append_time);
        }
        let base_offset = inner.replica.next_offset();
        let batch = batch.stamp(base_offset, inner.replica.leader_epoch());
        if let Err(error) = inner.log.append(std::slice::from_ref(&batch)) {
            self.log_failed(context, inner, &error);
            return Err(self.refuse(ErrorCode::KafkaStorageError, &error.to_string()));
        }
        inner.no_space = false;
        if let Err(error) = inner.note_producer(&batch) {
            self.log_failed(context, inner, &error);
            return Err(self.refuse(ErrorCode::KafkaStorageError, &error.to_string()));
        }
        let end = batch.header().next_offset();
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

    /// What the topic's configs say of a batch.
    fn check_settings(&self, settings: &TopicSettings, batch: &ClientBatches, wall: Time) -> Result<(), Box<Produced>> {
        let header = batch.header();
        self.check_size(settings, batch)?;
        if header.timestamp_type() == TimestampType::CreateTime && !settings.log_append_time {
            let now = i64::try_from(wall.0).unwrap_or(i64::MAX);
            let late = header.max_timestamp.saturating_sub(now) > settings.timestamp_after_max_ms;
            let early = now.saturating_sub(header.base_timestamp) > settings.timestamp_before_max_ms;
            if header.base_timestamp >= 0 && (late || early) {
                return Err(self.refuse(ErrorCode::InvalidTimestamp, "a timestamp is too far from the broker's clock"));
            }
        }
        Ok(())
    }

    /// Checks the records where they can be seen or have to be, and compresses them as the topic asks for it. Compressed
    /// records of a topic that leaves the codec to producers are not looked at.
    fn check_payload(
        &self,
        context: &Context,
        settings: &TopicSettings,
        batch: ClientBatches,
    ) -> Result<ClientBatches, Box<Produced>> {
        let codec = batch.header().codec().unwrap_or(Codec::None);
        let wanted = settings.codec.unwrap_or(codec);
        if codec != Codec::None && codec == wanted && !settings.compacted {
            return Ok(batch);
        }
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
        self.check_records(settings, batch.header(), plain)?;
        if codec == wanted {
            return Ok(batch);
        }
        let mut packed = Vec::new();
        compress_into(&mut packed, wanted, &settings.log.compression_levels, plain)
            .map_err(|error| self.refuse(ErrorCode::UnknownServerError, &error.to_string()))?;
        memory.add_len(packed.len());
        let batch = batch.recompressed(wanted, &packed);
        self.check_size(settings, &batch)?;
        Ok(batch)
    }

    /// The framing of records, and that each has a key where the topic is compacted.
    fn check_records(
        &self,
        settings: &TopicSettings,
        header: &BatchHeader,
        payload: &[u8],
    ) -> Result<(), Box<Produced>> {
        if !settings.compacted {
            return model::record::check_records(payload, header.record_count)
                .map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()));
        }
        let mut refused = Vec::new();
        // As many records as offsets, ascending: they count up from 0.
        for (index, record) in (0..).zip(RawRecords::new(payload, header.record_count, header.last_offset_delta)) {
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
            BatchError::Truncated { .. } | BatchError::BadLength(_) | BatchError::BadCrc { .. } => {
                ErrorCode::CorruptMessage
            }
            BatchError::BadMagic(_) => ErrorCode::UnsupportedForMessageFormat,
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
        self.producers.last_stable_offset(self.replica.log(), Rules::all())
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
