//! Appending what clients and coordinators write: checks, stamping, the log, the producers' state (`R20`, `R22`, `R40`).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use model::batch::BatchError;
use model::{ClientBatches, Codec, ErrorCode, Offset, RecordIter, Rules, Time, TimestampType};
use replication::ProduceVerdict;
use replication::producers::{ProducerBatch, SequenceCheck};

use super::{Inner, Leadership, Partition};
use crate::api::{Acks, Produced, RecordRefused};
use crate::context::Context;
use crate::topic_settings::TopicSettings;
use crate::waiters::PendingProduce;

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
        let now = context.clock.monotonic();
        let wall = context.clock.wall();
        // All that costs time is checked without the lock.
        let settings = Arc::clone(&self.lock().settings);
        let checked = ClientBatches::check(records)
            .map_err(|error| self.refuse_batch(&error))
            .and_then(|batch| self.check_settings(&settings, &batch, wall).map(|()| batch));
        let mut inner = self.lock();
        let appended = if leadership.is_some_and(|named| named != inner.leadership) {
            Err(self.refuse(ErrorCode::NotLeaderOrFollower, "the leadership is another one"))
        } else {
            self.append(context, &mut inner, acks, checked, (now, wall))
        };
        match appended {
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
                    ProduceVerdict::Pending => {
                        let index = request.push(result, true);
                        inner.produce_waiters.push(end, request, index);
                    }
                    ProduceVerdict::Done(error) => {
                        result.error = error;
                        request.push(result, false);
                    }
                }
            }
            Err(refused) => {
                let mut result = *refused;
                if result.error == ErrorCode::NotLeaderOrFollower {
                    result.current_leader = Some(inner.current_leader());
                }
                request.push(result, false);
            }
        }
        self.carry_out(context, &mut inner);
    }

    fn append(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        acks: Acks,
        checked: Result<ClientBatches, Box<Produced>>,
        (now, wall): (Time, Time),
    ) -> Result<Appended, Box<Produced>> {
        if let Some(reason) = &inner.failed {
            return Err(self.refuse(ErrorCode::KafkaStorageError, reason));
        }
        let required = match acks {
            Acks::All => -1,
            Acks::Leader => 1,
            Acks::None => 0,
        };
        inner.replica.check_produce(required).map_err(|error| self.refuse(error, "the append was refused"))?;
        let mut batch = checked?;
        let header = *batch.header();
        if let Some(producer) = ProducerBatch::of(&header, -1) {
            match inner.producers.check(&producer, Rules::all()) {
                Ok(SequenceCheck::Append) => {}
                // R40: the first append's offset; it may still be above the high watermark.
                Ok(SequenceCheck::Duplicate { base_offset, last_offset, .. }) => {
                    return Ok(Appended { base_offset, end: last_offset + 1, log_append_time: -1 });
                }
                Err(error) => return Err(self.refuse(error, "the producer's epoch or sequence is not the next one")),
            }
        }
        let mut log_append_time = -1;
        if inner.settings.log_append_time {
            log_append_time = i64::try_from(wall.0).unwrap_or(i64::MAX);
            batch.set_log_append_time(log_append_time);
        }
        let base_offset = inner.replica.next_offset();
        let batch = batch.stamp(base_offset, inner.replica.leader_epoch());
        if let Err(error) = inner.log.append(std::slice::from_ref(&batch)) {
            self.log_failed(context, inner, &error);
            return Err(self.refuse(ErrorCode::KafkaStorageError, &error.to_string()));
        }
        inner.no_space = false;
        if let Some(producer) = ProducerBatch::of(batch.header(), -1) {
            inner.producers.append(&producer);
        }
        let end = batch.header().next_offset();
        inner.replica.handle_leader_append(end, now);
        Ok(Appended { base_offset, end, log_append_time })
    }

    /// What the topic's configs say of a batch.
    fn check_settings(&self, settings: &TopicSettings, batch: &ClientBatches, wall: Time) -> Result<(), Box<Produced>> {
        let header = batch.header();
        if batch.size() > settings.max_message_bytes {
            let reason =
                format!("the batch has {} bytes; max.message.bytes is {}", batch.size(), settings.max_message_bytes);
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
            return model::record::check_records(batch.payload(), header.record_count)
                .map_err(|error| self.refuse(ErrorCode::InvalidRecord, &error.to_string()));
        }
        let mut refused = Vec::new();
        for (index, record) in (0..).zip(RecordIter::new(Bytes::copy_from_slice(batch.payload()), header.record_count))
        {
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
