//! What consumers read, and the questions about offsets that a partition answers.

use std::sync::Arc;

use bytes::Bytes;
use model::{EpochEnd, ErrorCode, LeaderEpoch, Offset};
use replication::{Divergence, FetchPosition};
use storage::{Aborted, ColdRead, LogError, Read};

use super::lead::last_of;
use super::{Inner, Partition, SHORTAGE_PAUSE};
use crate::api::{
    AbortedTransaction, EpochEndOffset, FetchPartition, Fetched, Isolation, ProducerDescription, ProducersDescription,
    ReplicaOnDisk,
};
use crate::context::Context;
use crate::waiters::FetchWaiter;

/// How often deletions may come between a read and its index before the client has to ask again.
const GONE_MAX: usize = 3;

/// A consumer's read of this partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionRead {
    /// Where, and how much at most.
    pub(crate) position: FetchPartition,
    /// What may be seen.
    pub(crate) isolation: Isolation,
    /// Bytes, at most.
    pub(crate) max_bytes: usize,
    /// The first batch is given whatever its size.
    pub(crate) min_one: bool,
    /// The client can read from followers (it told its rack).
    pub(crate) from_follower: bool,
    /// The records may stay in their file.
    pub(crate) by_file: bool,
}

/// What a read found, and the rest of it that is on disk.
#[derive(Debug)]
pub(crate) struct ReadResult {
    /// The answer so far.
    pub(crate) fetched: Fetched,
    /// Records to read without the lock.
    pub(crate) cold: Option<ColdRead>,
    /// How large a batch may be here.
    pub(crate) batch_max: usize,
}

impl ReadResult {
    /// How many bytes of records it is, or may become where a first batch may be `batch_max` large.
    pub(crate) fn bytes_max(&self, batch_max: usize) -> usize {
        let there: usize = self.fetched.records.iter().map(Bytes::len).sum();
        self.cold.as_ref().map_or(there, |cold| cold.bytes_max().max(batch_max))
    }
}

impl Partition {
    /// Reads for a consumer; with `waiter`, registers it to be woken when more can be read.
    pub(crate) fn read(
        self: &Arc<Self>,
        context: &Arc<Context>,
        request: &PartitionRead,
        waiter: Option<&Arc<FetchWaiter>>,
    ) -> ReadResult {
        let mut inner = self.lock();
        let mut fetched = self.nothing_fetched();
        let batch_max = inner.settings.max_message_bytes;
        let position = &request.position;
        if let Err(error) = self.check_read(&inner, position.current_leader_epoch, request.from_follower) {
            fetched.error = error;
            // Of an epoch that is yet to come here, the client knows the leader better than this broker (KIP-951).
            let knows = matches!(error, ErrorCode::NotLeaderOrFollower | ErrorCode::FencedLeaderEpoch);
            fetched.current_leader = knows.then(|| inner.current_leader());
            return ReadResult { fetched, cold: None, batch_max };
        }
        let log = inner.replica.log();
        fetched.high_watermark = log.high_watermark;
        fetched.last_stable_offset = inner.last_stable_offset();
        fetched.log_start = log.start;
        if position.last_fetched_epoch != LeaderEpoch::NONE {
            match inner.replica.divergence(position.last_fetched_epoch, position.fetch_offset) {
                Divergence::None => {}
                Divergence::Diverging(end) => {
                    fetched.diverging = Some(end);
                    return ReadResult { fetched, cold: None, batch_max };
                }
                Divergence::OutOfRange => {
                    fetched.error = ErrorCode::OffsetOutOfRange;
                    return ReadResult { fetched, cold: None, batch_max };
                }
            }
        }
        let readable_end = inner.readable_end(request.isolation);
        match inner.replica.fetch_position(position.fetch_offset, readable_end) {
            // Who knows the leader epoch knows that this is a follower, and goes back to the leader instead of waiting for what
            // this replica may have lost (KIP-392). Whoever does not may take it for the leader, and would start anew (R19).
            FetchPosition::Wait
                if position.fetch_offset > log.end && position.current_leader_epoch != LeaderEpoch::NONE =>
            {
                fetched.error = ErrorCode::OffsetOutOfRange;
            }
            FetchPosition::OutOfRange => fetched.error = ErrorCode::OffsetOutOfRange,
            FetchPosition::Wait => {
                if let Some(waiter) = waiter {
                    inner.fetch_waiters.push(waiter);
                }
            }
            FetchPosition::Readable => {
                let max = request.max_bytes.min(position.max_bytes);
                if max == 0 && !request.min_one {
                    return ReadResult { fetched, cold: None, batch_max };
                }
                if let Some(waiter) = waiter {
                    inner.fetch_waiters.push(waiter);
                }
                match inner.log.read(position.fetch_offset, readable_end, max, request.min_one) {
                    Ok(Read::Memory(batches)) => {
                        if request.isolation == Isolation::ReadCommitted {
                            fetched.aborted = inner.aborted_in_memory(position.fetch_offset, &batches);
                        }
                        fetched.records = batches;
                    }
                    Ok(Read::Cold(mut cold)) => {
                        if request.by_file {
                            inner.log.lend(&mut cold);
                        }
                        return ReadResult { fetched, cold: Some(cold), batch_max };
                    }
                    Err(error) => {
                        self.log_failed(context, &mut inner, &error);
                        self.carry_out(context, &mut inner);
                        fetched.error = ErrorCode::KafkaStorageError;
                    }
                }
            }
        }
        ReadResult { fetched, cold: None, batch_max }
    }

    /// Finds which transactions of the records that were read from `from` on were aborted (`R43`). Where the log has changed
    /// meanwhile there are no records any more: the client asks again.
    pub(crate) async fn find_aborted(self: &Arc<Self>, context: &Arc<Context>, from: Offset, fetched: &mut Fetched) {
        let end_in_file = fetched.in_file.as_ref().map(|records| records.end());
        if let Some(end) = end_in_file.or_else(|| Some(last_of(&fetched.records)?.0)) {
            for _ in 0..GONE_MAX {
                let asked = self.lock().log.aborted(from, end);
                let found = match asked {
                    Ok(Aborted::Memory(found)) => Ok(found),
                    Ok(Aborted::Cold(cold)) => context.disk_pool.run(move || cold.run()).await,
                    Err(error) => Err(error),
                };
                match found {
                    Ok(found) => {
                        fetched.aborted = Some(found.iter().map(aborted).collect());
                        return;
                    }
                    Err(LogError::Gone(_)) => {}
                    Err(LogError::OutOfRange { .. }) => break,
                    Err(error) => {
                        fetched.error = self.read_failed(context, from, error).await;
                        break;
                    }
                }
            }
            fetched.clear_records();
        }
        fetched.aborted = Some(Vec::new());
    }

    /// A read at `from` without the lock failed: a fault of the disk, or only overtaken by a deletion. Says what a client is
    /// to hear: nothing in the latter case.
    pub(crate) async fn read_failed(
        self: &Arc<Self>,
        context: &Arc<Context>,
        from: Offset,
        error: LogError,
    ) -> ErrorCode {
        let (partition, job_context) = (Arc::clone(self), Arc::clone(context));
        context.disk_pool.run(move || partition.judge_read(&job_context, from, error)).await
    }

    /// See [`Partition::read_failed`]. Blocks.
    pub(super) fn judge_read(self: &Arc<Self>, context: &Arc<Context>, from: Offset, error: LogError) -> ErrorCode {
        self.handle(context, |inner, _| {
            // A reader may have held files of the log for long: of a directory that it has left, or of a replica that is gone.
            let outdated = inner.removed
                || match &error {
                    LogError::DirectoryOffline(_) => inner.dir.works(),
                    LogError::Corrupt { path, .. } => path.parent() != Some(inner.log.dir()),
                    _ => false,
                };
            if outdated {
                return ErrorCode::None;
            }
            let found = match error {
                LogError::Gone(_) => inner.log.read_now(from, inner.log.log_end(), 1, true).map(drop),
                other => Err(other),
            };
            match found {
                Ok(()) | Err(LogError::OutOfRange { .. }) => ErrorCode::None,
                Err(error) => self.refuse_read(context, inner, &error),
            }
        })
    }

    /// The log's error of a read, and what the reader is told.
    pub(super) fn refuse_read(&self, context: &Arc<Context>, inner: &mut Inner, error: &LogError) -> ErrorCode {
        self.log_failed(context, inner, error);
        match (error, &inner.failed) {
            // Asking again would not help: the reader has to pass over them.
            (LogError::Corrupt { .. }, None) => ErrorCode::CorruptMessage,
            _ => ErrorCode::KafkaStorageError,
        }
    }

    /// Records from `from` on, below `upto`, at least one batch, for a coordinator that loads. What is on disk only is read
    /// without the lock.
    ///
    /// # Errors
    /// The log's.
    pub(crate) async fn read_to_load(
        self: &Arc<Self>,
        context: &Arc<Context>,
        from: Offset,
        upto: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, LogError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (read, is_unfinished) = {
                let inner = self.lock();
                (inner.log.read(from, upto, max_bytes, true), inner.log.is_unfinished())
            };
            let cold = match read {
                Ok(Read::Memory(batches)) => return Ok(batches),
                Ok(Read::Cold(cold)) => cold,
                // A coordinator that could not load would be none until another leadership.
                Err(error) if error.is_shortage() && !is_unfinished => {
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                    attempts = 0;
                    continue;
                }
                Err(error) => return Err(error),
            };
            match context.disk_pool.run(move || cold.run()).await {
                // Other files may have come in the place of those that were found: the log knows which.
                Err(LogError::Gone(_)) if attempts < GONE_MAX => {}
                done => return done.map(|bytes| if bytes.is_empty() { Vec::new() } else { vec![bytes] }),
            }
        }
    }

    fn check_read(
        &self,
        inner: &Inner,
        current_leader_epoch: LeaderEpoch,
        from_follower: bool,
    ) -> Result<(), ErrorCode> {
        if inner.failed.is_some() {
            return Err(ErrorCode::KafkaStorageError);
        }
        if from_follower && inner.replica.followed_leader().is_some() {
            return inner.replica.check_epoch(current_leader_epoch);
        }
        inner.replica.check_leader(current_leader_epoch)
    }

    /// An answer without records or offsets.
    pub(crate) fn nothing_fetched(&self) -> Fetched {
        crate::fetch::unanswered(self.id, ErrorCode::None)
    }

    /// The log's start, for clients of the leader.
    pub(crate) fn earliest(&self, current_leader_epoch: LeaderEpoch) -> Result<(Offset, LeaderEpoch), ErrorCode> {
        let inner = self.lock();
        inner.replica.check_leader(current_leader_epoch)?;
        let start = inner.log.log_start();
        Ok((start, inner.replica.epochs().epoch_of(start).unwrap_or(LeaderEpoch::NONE)))
    }

    /// The offset after the last record that a consumer may see (`R19`, `R43`).
    pub(crate) fn latest(
        &self,
        current_leader_epoch: LeaderEpoch,
        isolation: Isolation,
    ) -> Result<(Offset, LeaderEpoch), ErrorCode> {
        let inner = self.lock();
        inner.replica.check_leader(current_leader_epoch)?;
        inner.replica.latest_offset()?;
        Ok((inner.readable_end(isolation), inner.replica.leader_epoch()))
    }

    /// Where a leader epoch ended (`R24`).
    pub(crate) fn epoch_end(&self, current_leader_epoch: LeaderEpoch, leader_epoch: LeaderEpoch) -> EpochEndOffset {
        let inner = self.lock();
        let answer = |error, end: Option<EpochEnd>| EpochEndOffset {
            partition: self.id,
            error,
            leader_epoch: end.map_or(LeaderEpoch::NONE, |end| end.epoch),
            end_offset: end.map_or(Offset::NONE, |end| end.end),
        };
        match inner.replica.check_leader(current_leader_epoch) {
            Err(error) => answer(error, None),
            Ok(()) => answer(ErrorCode::None, inner.replica.end_offset_for_epoch(leader_epoch)),
        }
    }

    /// What this replica takes on disk.
    pub(crate) fn on_disk(&self) -> ReplicaOnDisk {
        let inner = self.lock();
        let log = inner.replica.log();
        let lag = if inner.replica.is_leader() { 0 } else { (log.high_watermark - log.end).max(0) };
        ReplicaOnDisk { partition: self.id, size: inner.log.size_bytes(), offset_lag: lag, is_future: false }
    }

    /// The producers with state here (DescribeProducers).
    pub(crate) fn describe_producers(&self) -> ProducersDescription {
        let inner = self.lock();
        if let Err(error) = inner.replica.check_leader(LeaderEpoch::NONE) {
            return ProducersDescription { partition: self.id, error, producers: Vec::new() };
        }
        let producers = inner.producers.iter().map(|(producer_id, state)| ProducerDescription {
            producer_id,
            producer_epoch: state.epoch,
            last_sequence: state.last_sequence(),
            last_timestamp: i64::try_from(state.last_append.0).unwrap_or(i64::MAX),
            coordinator_epoch: state.coordinator_epoch,
            transaction_start: state.transaction_start.unwrap_or(Offset::NONE),
        });
        ProducersDescription { partition: self.id, error: ErrorCode::None, producers: producers.collect() }
    }

    /// Moves the log start to `offset` (DeleteRecords; -1 is the high watermark), never above the high watermark (`R39`).
    /// A log that is only compacted keeps the last record of every key: nobody may cut it.
    pub(crate) fn delete_records(
        self: &Arc<Self>,
        context: &Arc<Context>,
        offset: Offset,
    ) -> Result<Offset, ErrorCode> {
        self.handle(context, |inner, _| {
            if inner.failed.is_some() {
                return Err(ErrorCode::KafkaStorageError);
            }
            inner.replica.check_leader(LeaderEpoch::NONE)?;
            if inner.settings.only_compacted {
                return Err(ErrorCode::PolicyViolation);
            }
            let log = inner.replica.log();
            let target = if offset == Offset::NONE { log.high_watermark } else { offset };
            if target < Offset::ZERO || target > log.high_watermark {
                return Err(ErrorCode::OffsetOutOfRange);
            }
            if target > log.start {
                if let Err(error) = inner.log.advance_log_start(target) {
                    self.log_failed(context, inner, &error);
                    return Err(ErrorCode::KafkaStorageError);
                }
                inner.replica.handle_log_start(target);
                inner.fetch_waiters.wake();
            }
            Ok(target)
        })
    }

    /// The smallest log start of the live replicas (`R60`); None where this replica does not lead.
    pub(crate) fn low_watermark(&self) -> Option<Offset> {
        let inner = self.lock();
        inner.replica.is_leader().then(|| inner.replica.low_watermark())
    }
}

impl Inner {
    /// The end of what a consumer may see.
    pub(crate) fn readable_end(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadUncommitted => self.replica.log().high_watermark,
            Isolation::ReadCommitted => self.last_stable_offset(),
        }
    }

    /// The aborted transactions of batches read from `from` on; None where files have to be asked.
    fn aborted_in_memory(&self, from: Offset, batches: &[Bytes]) -> Option<Vec<AbortedTransaction>> {
        let Some((end, _)) = last_of(batches) else { return Some(Vec::new()) };
        match self.log.aborted(from, end) {
            Ok(Aborted::Memory(found)) => Some(found.iter().map(aborted).collect()),
            Ok(Aborted::Cold(_)) | Err(_) => None,
        }
    }
}

fn aborted(transaction: &storage::AbortedTransaction) -> AbortedTransaction {
    AbortedTransaction { producer_id: transaction.producer_id, first_offset: transaction.first_offset }
}
