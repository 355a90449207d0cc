//! Producers of one partition, idempotent and transactional (`R40`, `R41`): which sequence numbers the log holds, which
//! transactions are open or not yet safely ended (`R43`), derived from the log alone.
//!
//! The leader asks [`ProducerTable::check`] before it appends a batch and calls [`ProducerTable::append`] right after each
//! accepted one, so that the next batch, also of the same request, is checked against it. Followers and recovery only
//! append. After a truncation the table is made anew from the newest snapshot that is not above the log's end, and the
//! records after it.
//!
//! ```text
//!              first transactional batch              marker              high watermark passes the marker
//!   (nothing) ──────────────────────────► open ─────────────────► ended ──────────────────────────────► (nothing)
//!                                          └── holds the last stable offset at its first offset ──┘
//! ```
//!
//! Invariants: at most [`RETAINED`] batches a producer, ascending, all of its present epoch; one open transaction a
//! producer at most; `open` holds the start of each. A transaction whose marker was once below the high watermark stays
//! ended for good: what is committed does not change. Times are the batches' own (wall clock, milliseconds), as the leader
//! wrote them. The verifications of `R50` are of this process alone: no snapshot has them.
//!
//! Snapshot, version 3, big-endian: `version u16, crc32c u32 of what follows, log end i64, producers u32`, then for each
//! producer `id i64, epoch i16, coordinator epoch i32, last append i64, open transaction's first offset i64 (-1: none), last
//! marker's offset i64 (-1: none), batches u8`, then for each batch `first sequence i32, last sequence i32, base offset
//! i64, last offset i64, time i64`; then `ended transactions u32`, for each `first offset i64, marker's offset i64`.
//! Version 2 has no last markers, version 1 ends after the producers, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::batch::crc32c;
use model::{EndMarker, ErrorCode, Offset, ProducerEpoch, ProducerId, Rule, Rules, Time};

use crate::messages::LogView;

/// Batches of a producer that are remembered, as many as a client may have in flight.
pub const RETAINED: usize = 5;
const VERSION: u16 = 3;
/// The version before last markers.
const VERSION_WITHOUT_LAST_MARKERS: u16 = 2;
/// The version before transactions.
const VERSION_WITHOUT_TRANSACTIONS: u16 = 1;
const HEAD_LEN: usize = 6;
/// The time of a batch whose records have none.
const NO_TIME: Time = Time(0);
const PRODUCER_LEN: usize = 39;
const BATCH_LEN: usize = 32;

/// The part of a batch that producer state is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProducerBatch {
    /// Whose it is.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record; -1 in markers.
    pub first_sequence: i32,
    /// Sequence of the last record; -1 in markers.
    pub last_sequence: i32,
    /// Offset of the first record; without meaning in a check.
    pub base_offset: Offset,
    /// Offset of the last record; without meaning in a check.
    pub last_offset: Offset,
    /// The batch's largest timestamp, 0 where it has none.
    pub timestamp: Time,
    /// What it is to a transaction.
    pub kind: BatchKind,
}

/// What a batch is to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BatchKind {
    /// Nothing.
    Plain,
    /// Records of one.
    Transactional,
    /// The marker that ends one (`R47`).
    Marker(EndMarker),
}

impl ProducerBatch {
    /// The state of a batch with a producer id; None for one without, and for a control batch that is no marker. `marker`
    /// is what stands in a control batch's record.
    #[must_use]
    pub fn of(header: &model::BatchHeader, marker: Option<EndMarker>) -> Option<ProducerBatch> {
        let kind = match (header.is_control(), header.is_transactional()) {
            (true, _) => BatchKind::Marker(marker?),
            (false, true) => BatchKind::Transactional,
            (false, false) => BatchKind::Plain,
        };
        header.has_producer_id().then(|| ProducerBatch {
            producer_id: header.producer_id,
            producer_epoch: header.producer_epoch,
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            timestamp: u64::try_from(header.max_timestamp).map_or(NO_TIME, Time),
            kind,
        })
    }
}

/// Whose transaction a marker is to end, before it is written (`R47`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MarkerClaim {
    /// The producer.
    pub producer_id: ProducerId,
    /// The epoch that the producer is to have from then on.
    pub producer_epoch: ProducerEpoch,
    /// The epoch of the coordinator that asks.
    pub coordinator_epoch: i32,
    /// By which version of the transaction protocol: from 2 on each transaction has an epoch of its own (KIP-890).
    pub transaction_version: i8,
}

/// A transaction that a marker ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EndedTransaction {
    /// Whose it was.
    pub producer_id: ProducerId,
    /// Where it began.
    pub first_offset: Offset,
    /// Where its marker stands.
    pub marker_offset: Offset,
    /// Committed, else aborted.
    pub commit: bool,
    /// The start of the earliest transaction that is open still, or the offset after the marker: no transaction that ends
    /// later began below.
    pub stable_end: Offset,
}

/// A verification with the coordinator that is under way (`R50`); unique in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VerificationGuard(u64);

impl VerificationGuard {
    /// As a number, for who only passes it on.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// The guard of a number.
    #[must_use]
    pub fn of_number(number: u64) -> VerificationGuard {
        VerificationGuard(number)
    }
}

/// What to do with a batch of an idempotent producer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SequenceCheck {
    /// Append it.
    Append,
    /// It is in the log already: append nothing; succeed, with the original offsets, once the high watermark has passed
    /// `last_offset`.
    Duplicate {
        /// Where its first record stands.
        base_offset: Offset,
        /// Where its last record stands.
        last_offset: Offset,
        /// Its largest timestamp.
        timestamp: Time,
    },
}

/// One remembered batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RetainedBatch {
    /// Sequence of the first record.
    pub first_sequence: i32,
    /// Sequence of the last record.
    pub last_sequence: i32,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset of the last record.
    pub last_offset: Offset,
    /// Its largest timestamp.
    pub timestamp: Time,
}

/// What is known of one producer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ProducerState {
    /// Its present epoch.
    pub epoch: ProducerEpoch,
    /// Of the last marker; -1 before.
    pub coordinator_epoch: i32,
    /// The largest timestamp of its last batch; where that had none, when it was seen by [`ProducerTable::expire`].
    pub last_append: Time,
    /// Where its open transaction began.
    pub transaction_start: Option<Offset>,
    /// Where its last marker stands.
    last_marker: Option<Offset>,
    batches: VecDeque<RetainedBatch>,
}

impl ProducerState {
    /// The remembered batches, ascending.
    pub fn batches(&self) -> impl Iterator<Item = &RetainedBatch> {
        self.batches.iter()
    }

    /// Where a batch stands that is sent again. None of an ended transaction is: whoever gives its sequence numbers to other
    /// records, as librdkafka does after an abort with those of records that it had sent and then given up, must not hear that
    /// these are here.
    fn sent_before(&self, batch: &ProducerBatch) -> Option<RetainedBatch> {
        let same =
            |b: &&RetainedBatch| b.first_sequence == batch.first_sequence && b.last_sequence == batch.last_sequence;
        let ended = |b: &RetainedBatch| self.last_marker.is_some_and(|marker| b.last_offset < marker);
        self.batches.iter().find(same).filter(|b| !ended(b)).copied()
    }

    /// The sequence of its last record; -1 where it has written none in this epoch.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(-1, |batch| batch.last_sequence)
    }
}

/// Why bytes are not a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Another version.
    #[error(
        "producer snapshot has version {0}; this release reads versions up to {VERSION}: delete it and replay the log"
    )]
    Version(u16),
    /// Damaged.
    #[error("producer snapshot fails its checksum: delete it and replay the log")]
    Checksum,
    /// Cut off, or with counts that do not fit.
    #[error("producer snapshot is malformed: delete it and replay the log")]
    Malformed,
}

/// A transaction whose marker the high watermark has not passed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Unreplicated {
    first_offset: Offset,
    marker_offset: Offset,
}

/// The producers of one partition. See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProducerTable {
    producers: BTreeMap<ProducerId, ProducerState>,
    /// Where open transactions began.
    open: BTreeSet<Offset>,
    /// Ended transactions above the high watermark, by their markers.
    ended: VecDeque<Unreplicated>,
    /// Where those began.
    ended_starts: BTreeSet<Offset>,
    verifying: BTreeSet<(ProducerId, VerificationGuard)>,
    last_guard: u64,
}

impl ProducerTable {
    /// Whether a client's batch may be appended (`R40`). One outside of the producer's open transaction may not: readers
    /// could not tell what it belongs to.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH`, `OUT_OF_ORDER_SEQUENCE_NUMBER`, `INVALID_TXN_STATE`.
    pub fn check(&self, batch: &ProducerBatch, rules: Rules) -> Result<SequenceCheck, ErrorCode> {
        let checked = self.check_sequence(batch, rules)?;
        let open = || self.producers.get(&batch.producer_id).is_some_and(|state| state.transaction_start.is_some());
        if checked == SequenceCheck::Append && batch.kind == BatchKind::Plain && open() {
            return Err(ErrorCode::InvalidTxnState);
        }
        Ok(checked)
    }

    fn check_sequence(&self, batch: &ProducerBatch, rules: Rules) -> Result<SequenceCheck, ErrorCode> {
        let Some(state) = self.producers.get(&batch.producer_id) else { return Ok(SequenceCheck::Append) };
        if !rules.hold(Rule::R40Sequence) {
            return Ok(SequenceCheck::Append);
        }
        if batch.producer_epoch < state.epoch {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if batch.producer_epoch > state.epoch {
            return if batch.first_sequence == 0 { Ok(SequenceCheck::Append) } else { out_of_order() };
        }
        if let Some(RetainedBatch { base_offset, last_offset, timestamp, .. }) = state.sent_before(batch) {
            return Ok(SequenceCheck::Duplicate { base_offset, last_offset, timestamp });
        }
        if batch.first_sequence == next_sequence(state.last_sequence()) {
            Ok(SequenceCheck::Append)
        } else {
            out_of_order()
        }
    }

    /// Whether a coordinator may append for a producer of this epoch (`R49`): its batches have no sequence.
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH`.
    pub fn check_epoch(&self, producer: ProducerId, epoch: ProducerEpoch) -> Result<(), ErrorCode> {
        match self.producers.get(&producer) {
            Some(state) if epoch < state.epoch => Err(ErrorCode::InvalidProducerEpoch),
            _ => Ok(()),
        }
    }

    /// Whether a marker may be appended (`R47`).
    ///
    /// # Errors
    /// `INVALID_PRODUCER_EPOCH`, `TRANSACTION_COORDINATOR_FENCED`.
    pub fn check_marker(&self, claim: &MarkerClaim, rules: Rules) -> Result<(), ErrorCode> {
        let Some(state) = self.producers.get(&claim.producer_id) else { return Ok(()) };
        if claim.producer_epoch < state.epoch && rules.hold(Rule::R47ProducerEpoch) {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        if claim.coordinator_epoch < state.coordinator_epoch && rules.hold(Rule::R47CoordinatorEpoch) {
            return Err(ErrorCode::TransactionCoordinatorFenced);
        }
        // The open transaction is the next one already, if the marker's epoch is its own: the marker is a late copy.
        let late = claim.transaction_version >= 2 && claim.producer_epoch == state.epoch;
        if late && state.transaction_start.is_some() && rules.hold(Rule::R47MarkerEpochAboveKnown) {
            return Err(ErrorCode::InvalidProducerEpoch);
        }
        Ok(())
    }

    /// Whether the producer has a transaction open here, in this epoch: then the coordinator knows of this partition.
    #[must_use]
    pub fn has_open(&self, producer: ProducerId, epoch: ProducerEpoch) -> bool {
        let open = |state: &ProducerState| state.epoch == epoch && state.transaction_start.is_some();
        self.producers.get(&producer).is_some_and(open)
    }

    /// Whether a transaction of this producer from before this epoch is open here: its marker is on its way.
    #[must_use]
    pub fn has_earlier_open(&self, producer: ProducerId, epoch: ProducerEpoch) -> bool {
        let open = |state: &ProducerState| state.epoch < epoch && state.transaction_start.is_some();
        self.producers.get(&producer).is_some_and(open)
    }

    /// Before the coordinator is asked whether a transaction of this producer is open (`R50`). Whoever starts a verification
    /// ends it, too.
    pub fn start_verification(&mut self, producer: ProducerId) -> VerificationGuard {
        self.last_guard += 1;
        let guard = VerificationGuard(self.last_guard);
        self.verifying.insert((producer, guard));
        guard
    }

    /// Whether no marker came since the verification was started, so that what the coordinator says counts.
    #[must_use]
    pub fn is_verifying(&self, producer: ProducerId, guard: VerificationGuard) -> bool {
        self.verifying.contains(&(producer, guard))
    }

    /// What came of the verification is done.
    pub fn end_verification(&mut self, producer: ProducerId, guard: VerificationGuard) {
        self.verifying.remove(&(producer, guard));
    }

    /// The leadership ended: what coordinators said in it counts no longer.
    pub fn end_verifications(&mut self) {
        self.verifying.clear();
    }

    /// Whether a transactional batch belongs to a transaction that the coordinator knows of (`R50`): it is open here, or
    /// was verified, and no marker came since the coordinator was asked.
    ///
    /// # Errors
    /// `INVALID_TXN_STATE`.
    pub fn check_verified(
        &self,
        producer: ProducerId,
        epoch: ProducerEpoch,
        guard: Option<VerificationGuard>,
        rules: Rules,
    ) -> Result<(), ErrorCode> {
        let verified = match guard {
            Some(guard) => self.is_verifying(producer, guard) || !rules.hold(Rule::R50Guard),
            None => !rules.hold(Rule::R50Verification),
        };
        if verified || self.has_open(producer, epoch) { Ok(()) } else { Err(ErrorCode::InvalidTxnState) }
    }

    /// A batch of a producer stands in the log, whoever wrote it. It is not checked: the log is right. Gives the
    /// transaction that it ended.
    pub fn append(&mut self, batch: &ProducerBatch) -> Option<EndedTransaction> {
        let state = self.producers.entry(batch.producer_id).or_insert_with(|| ProducerState {
            epoch: batch.producer_epoch,
            coordinator_epoch: -1,
            last_append: batch.timestamp,
            transaction_start: None,
            last_marker: None,
            batches: VecDeque::new(),
        });
        if state.epoch != batch.producer_epoch {
            state.epoch = batch.producer_epoch;
            state.batches.clear();
        }
        state.last_append = batch.timestamp;
        match batch.kind {
            BatchKind::Marker(marker) => {
                state.coordinator_epoch = marker.coordinator_epoch;
                state.last_marker = Some(batch.last_offset);
                let first_offset = state.transaction_start.take();
                // R50: what the coordinator said before this marker was said of the transaction that it ends.
                self.forget_verifications(batch.producer_id);
                return first_offset.map(|first_offset| self.end(batch, marker, first_offset));
            }
            BatchKind::Transactional => {
                if state.transaction_start.is_none() {
                    state.transaction_start = Some(batch.base_offset);
                    self.open.insert(batch.base_offset);
                }
                state.retain(batch);
            }
            BatchKind::Plain => state.retain(batch),
        }
        None
    }

    fn end(&mut self, batch: &ProducerBatch, marker: EndMarker, first_offset: Offset) -> EndedTransaction {
        let marker_offset = batch.last_offset;
        self.open.remove(&first_offset);
        self.ended.push_back(Unreplicated { first_offset, marker_offset });
        self.ended_starts.insert(first_offset);
        EndedTransaction {
            producer_id: batch.producer_id,
            first_offset,
            marker_offset,
            commit: marker.commit,
            stable_end: self.open.first().copied().unwrap_or(marker_offset + 1),
        }
    }

    fn forget_verifications(&mut self, producer: ProducerId) {
        if !self.verifying.is_empty() {
            self.verifying.retain(|(verified, _)| *verified != producer);
        }
    }

    /// The high watermark is here: markers below it are not lost any more.
    pub fn stabilise(&mut self, high_watermark: Offset) {
        while let Some(ended) = self.ended.front().filter(|ended| ended.marker_offset < high_watermark) {
            self.ended_starts.remove(&ended.first_offset);
            self.ended.pop_front();
        }
    }

    /// Where the first transaction begins that is open, or ended by a marker that may yet be lost.
    #[must_use]
    pub fn first_unstable_offset(&self, rules: Rules) -> Option<Offset> {
        let open = self.open.first().filter(|_| rules.hold(Rule::R43OpenTransactions));
        let ended = self.ended_starts.first().filter(|_| rules.hold(Rule::R43MarkersAboveHighWatermark));
        open.into_iter().chain(ended).min().copied()
    }

    /// The end of what read_committed consumers may see (`R43`).
    #[must_use]
    pub fn last_stable_offset(&self, log: LogView, rules: Rules) -> Offset {
        let unstable = self.first_unstable_offset(rules).unwrap_or(log.high_watermark);
        log.high_watermark.min(unstable).max(log.start)
    }

    /// Forgets producers that have appended nothing for `expiration_ms` (`producer.id.expiration.ms`); never those with an
    /// open transaction (`R42`). A last batch without a timestamp counts from now on. Whether any went.
    pub fn expire(&mut self, now: Time, expiration_ms: u64) -> bool {
        let before = self.producers.len();
        self.producers.retain(|_, state| {
            if state.last_append == NO_TIME {
                state.last_append = now;
            }
            state.transaction_start.is_some() || now.since(state.last_append) < expiration_ms
        });
        self.producers.len() < before
    }

    /// The log was emptied (`R26`).
    pub fn clear(&mut self) {
        *self = ProducerTable { last_guard: self.last_guard, ..ProducerTable::default() };
    }

    /// The producers, by id (DescribeProducers).
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerState)> {
        self.producers.iter().map(|(id, state)| (*id, state))
    }

    /// One producer.
    #[must_use]
    pub fn get(&self, id: ProducerId) -> Option<&ProducerState> {
        self.producers.get(&id)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// The snapshot of the state that the log up to `log_end` gives.
    #[must_use]
    pub fn snapshot(&self, log_end: Offset) -> Vec<u8> {
        let mut body = Vec::with_capacity(12 + self.producers.len() * (PRODUCER_LEN + BATCH_LEN));
        body.extend(log_end.0.to_be_bytes());
        body.extend(
            u32::try_from(self.producers.len()).expect("fewer than 2^32 producers fit in memory").to_be_bytes(),
        );
        for (id, state) in &self.producers {
            body.extend(id.0.to_be_bytes());
            body.extend(state.epoch.0.to_be_bytes());
            body.extend(state.coordinator_epoch.to_be_bytes());
            body.extend(state.last_append.0.to_be_bytes());
            body.extend(state.transaction_start.unwrap_or(Offset::NONE).0.to_be_bytes());
            body.extend(state.last_marker.unwrap_or(Offset::NONE).0.to_be_bytes());
            body.push(u8::try_from(state.batches.len()).expect("at most RETAINED"));
            for batch in &state.batches {
                body.extend(batch.first_sequence.to_be_bytes());
                body.extend(batch.last_sequence.to_be_bytes());
                body.extend(batch.base_offset.0.to_be_bytes());
                body.extend(batch.last_offset.0.to_be_bytes());
                body.extend(batch.timestamp.0.to_be_bytes());
            }
        }
        body.extend(u32::try_from(self.ended.len()).expect("fewer than 2^32 transactions fit in memory").to_be_bytes());
        for ended in &self.ended {
            body.extend(ended.first_offset.0.to_be_bytes());
            body.extend(ended.marker_offset.0.to_be_bytes());
        }
        let mut out = Vec::with_capacity(HEAD_LEN + body.len());
        out.extend(VERSION.to_be_bytes());
        out.extend(crc32c(&body).to_be_bytes());
        out.extend(body);
        out
    }

    /// Reads a snapshot: the log end that it is of, and the table.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn restore(bytes: &[u8]) -> Result<(Offset, ProducerTable), SnapshotError> {
        let mut head = Reader { bytes };
        let version = u16::from_be_bytes(head.take()?);
        if !(VERSION_WITHOUT_TRANSACTIONS..=VERSION).contains(&version) {
            return Err(SnapshotError::Version(version));
        }
        let crc = u32::from_be_bytes(head.take()?);
        let mut body = Reader { bytes: head.bytes };
        if crc32c(body.bytes) != crc {
            return Err(SnapshotError::Checksum);
        }
        let log_end = Offset(body.i64()?);
        let count = u32::from_be_bytes(body.take()?);
        let mut table = ProducerTable::default();
        for _ in 0..count {
            let (id, state) = body.producer(version)?;
            table.open.extend(state.transaction_start);
            table.producers.insert(id, state);
        }
        let ended = if version > VERSION_WITHOUT_TRANSACTIONS { u32::from_be_bytes(body.take()?) } else { 0 };
        for _ in 0..ended {
            let ended = Unreplicated { first_offset: Offset(body.i64()?), marker_offset: Offset(body.i64()?) };
            table.ended_starts.insert(ended.first_offset);
            table.ended.push_back(ended);
        }
        if body.bytes.is_empty() { Ok((log_end, table)) } else { Err(SnapshotError::Malformed) }
    }
}

impl ProducerState {
    fn retain(&mut self, batch: &ProducerBatch) {
        if self.batches.len() == RETAINED {
            self.batches.pop_front();
        }
        self.batches.push_back(RetainedBatch {
            first_sequence: batch.first_sequence,
            last_sequence: batch.last_sequence,
            base_offset: batch.base_offset,
            last_offset: batch.last_offset,
            timestamp: batch.timestamp,
        });
    }
}

fn out_of_order() -> Result<SequenceCheck, ErrorCode> {
    Err(ErrorCode::OutOfOrderSequenceNumber)
}

/// Sequences wrap from `i32::MAX` to 0; the first of an epoch is 0, which follows -1.
fn next_sequence(last: i32) -> i32 {
    last.checked_add(1).unwrap_or(0)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(SnapshotError::Malformed)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn i32(&mut self) -> Result<i32, SnapshotError> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    fn i64(&mut self) -> Result<i64, SnapshotError> {
        Ok(i64::from_be_bytes(self.take()?))
    }

    fn time(&mut self) -> Result<Time, SnapshotError> {
        Ok(Time(u64::from_be_bytes(self.take()?)))
    }

    fn offset(&mut self) -> Result<Option<Offset>, SnapshotError> {
        Ok(Some(Offset(self.i64()?)).filter(|offset| *offset != Offset::NONE))
    }

    fn producer(&mut self, version: u16) -> Result<(ProducerId, ProducerState), SnapshotError> {
        let id = ProducerId(self.i64()?);
        let mut state = ProducerState {
            epoch: ProducerEpoch(i16::from_be_bytes(self.take()?)),
            coordinator_epoch: self.i32()?,
            last_append: self.time()?,
            transaction_start: self.offset()?,
            last_marker: if version > VERSION_WITHOUT_LAST_MARKERS { self.offset()? } else { None },
            batches: VecDeque::new(),
        };
        let [batches] = self.take()?;
        if usize::from(batches) > RETAINED {
            return Err(SnapshotError::Malformed);
        }
        for _ in 0..batches {
            state.batches.push_back(RetainedBatch {
                first_sequence: self.i32()?,
                last_sequence: self.i32()?,
                base_offset: Offset(self.i64()?),
                last_offset: Offset(self.i64()?),
                timestamp: self.time()?,
            });
        }
        Ok((id, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rules;
    use proptest::prelude::*;

    fn batch(epoch: i16, first: i32, last: i32, base: i64) -> ProducerBatch {
        let records = (i64::from(last) - i64::from(first)).rem_euclid(1 << 31);
        ProducerBatch {
            producer_id: ProducerId(7),
            producer_epoch: ProducerEpoch(epoch),
            first_sequence: first,
            last_sequence: last,
            base_offset: Offset(base),
            last_offset: Offset(base + records),
            timestamp: Time(1000),
            kind: BatchKind::Plain,
        }
    }

    fn check(table: &ProducerTable, epoch: i16, first: i32, last: i32) -> Result<SequenceCheck, ErrorCode> {
        table.check(&batch(epoch, first, last, -1), rules())
    }

    fn table(batches: &[ProducerBatch]) -> ProducerTable {
        let mut table = ProducerTable::default();
        for batch in batches {
            table.append(batch);
        }
        table
    }

    const APPEND: Result<SequenceCheck, ErrorCode> = Ok(SequenceCheck::Append);
    const OUT_OF_ORDER: Result<SequenceCheck, ErrorCode> = Err(ErrorCode::OutOfOrderSequenceNumber);

    #[test]
    fn an_unknown_producer_may_start_anywhere() {
        assert_eq!(check(&ProducerTable::default(), 3, 41, 50), APPEND);
    }

    #[test]
    fn a_batch_sent_again_gets_the_original_offsets() {
        let table = table(&[batch(0, 0, 9, 100), batch(0, 10, 12, 200)]);
        let original =
            SequenceCheck::Duplicate { base_offset: Offset(100), last_offset: Offset(109), timestamp: Time(1000) };
        assert_eq!(check(&table, 0, 0, 9), Ok(original));
    }

    #[test]
    fn five_batches_are_remembered_and_an_older_one_is_out_of_order() {
        let batches: Vec<_> = (0..6).map(|i| batch(0, i, i, i64::from(i))).collect();
        let table = table(&batches);
        assert!(matches!(check(&table, 0, 1, 1), Ok(SequenceCheck::Duplicate { .. })));
        assert_eq!(check(&table, 0, 0, 0), OUT_OF_ORDER);
    }

    #[test]
    fn a_gap_and_a_part_of_a_known_batch_are_out_of_order() {
        let table = table(&[batch(0, 0, 9, 0)]);
        assert_eq!(check(&table, 0, 11, 12), OUT_OF_ORDER);
        assert_eq!(check(&table, 0, 0, 4), OUT_OF_ORDER);
        assert_eq!(check(&table, 0, 10, 10), APPEND);
    }

    #[test]
    fn batches_of_one_request_are_checked_against_each_other() {
        let mut table = table(&[batch(0, 0, 4, 0)]);
        assert_eq!(check(&table, 0, 5, 9), APPEND);
        table.append(&batch(0, 5, 9, 5));
        assert!(matches!(check(&table, 0, 5, 9), Ok(SequenceCheck::Duplicate { .. })));
        assert_eq!(check(&table, 0, 10, 11), APPEND);
    }

    #[test]
    fn sequences_wrap_from_the_greatest_integer_to_zero() {
        let table = table(&[batch(0, i32::MAX - 1, i32::MAX, 0)]);
        assert_eq!(check(&table, 0, 0, 3), APPEND);
        assert_eq!(check(&table, 0, 1, 3), OUT_OF_ORDER);
        let across = super::tests::table(&[batch(0, i32::MAX, 1, 0)]);
        assert_eq!(check(&across, 0, 2, 2), APPEND);
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_starts_at_zero() {
        let table = table(&[batch(4, 0, 9, 0)]);
        assert_eq!(check(&table, 3, 10, 10), Err(ErrorCode::InvalidProducerEpoch));
        assert_eq!(check(&table, 3, 0, 9), Err(ErrorCode::InvalidProducerEpoch));
        assert_eq!(check(&table, 5, 1, 1), OUT_OF_ORDER);
        assert_eq!(check(&table, 5, 0, 9), APPEND);
    }

    #[test]
    fn a_marker_ends_the_transaction_and_its_epoch_fences() {
        let begun = ProducerBatch { kind: BatchKind::Transactional, ..batch(1, 0, 0, 10) };
        let marker = ProducerBatch {
            kind: BatchKind::Marker(EndMarker { commit: true, coordinator_epoch: 6 }),
            ..batch(2, -1, -1, 11)
        };
        let mut table = table(&[begun]);
        assert_eq!(table.get(ProducerId(7)).unwrap().transaction_start, Some(Offset(10)));
        table.append(&marker);
        let state = table.get(ProducerId(7)).unwrap();
        assert_eq!((state.transaction_start, state.coordinator_epoch, state.last_sequence()), (None, 6, -1));
        assert_eq!(check(&table, 1, 1, 1), Err(ErrorCode::InvalidProducerEpoch));
        assert_eq!(check(&table, 2, 0, 0), APPEND);
    }

    #[test]
    fn sequences_of_an_ended_transaction_are_not_taken_for_its_records_sent_again() {
        let sent = ProducerBatch { kind: BatchKind::Transactional, ..batch(0, 0, 4, 10) };
        let marker = ProducerBatch {
            kind: BatchKind::Marker(EndMarker { commit: false, coordinator_epoch: 6 }),
            ..batch(0, -1, -1, 15)
        };
        let next = ProducerBatch { kind: BatchKind::Transactional, ..batch(0, 5, 5, 16) };
        let mut table = table(&[sent]);
        assert!(matches!(check(&table, 0, 0, 4), Ok(SequenceCheck::Duplicate { .. })));
        table.append(&marker);
        let (_, restarted) = ProducerTable::restore(&table.snapshot(Offset(16))).unwrap();
        for mut table in [table, restarted] {
            assert_eq!(check(&table, 0, 0, 4), OUT_OF_ORDER, "these are other records");
            assert_eq!(check(&table, 0, 5, 5), APPEND);
            table.append(&next);
            assert!(matches!(check(&table, 0, 5, 5), Ok(SequenceCheck::Duplicate { .. })));
            assert_eq!(check(&table, 0, 0, 4), OUT_OF_ORDER);
        }
    }

    fn begun(id: i64, epoch: i16, base: i64) -> ProducerBatch {
        ProducerBatch { producer_id: ProducerId(id), kind: BatchKind::Transactional, ..batch(epoch, 0, 0, base) }
    }

    fn ended(id: i64, epoch: i16, base: i64, coordinator_epoch: i32) -> ProducerBatch {
        let kind = BatchKind::Marker(EndMarker { commit: true, coordinator_epoch });
        ProducerBatch { producer_id: ProducerId(id), kind, ..batch(epoch, -1, -1, base) }
    }

    fn view(start: i64, high_watermark: i64, end: i64) -> LogView {
        let (start, end, high_watermark) = (Offset(start), Offset(end), Offset(high_watermark));
        LogView { start, end, synced_end: end, high_watermark }
    }

    fn stable(table: &ProducerTable, high_watermark: i64) -> i64 {
        table.last_stable_offset(view(0, high_watermark, 100), rules()).0
    }

    #[test]
    fn the_last_stable_offset_waits_for_the_end_of_each_transaction_and_for_its_marker_to_be_safe() {
        let mut table = table(&[begun(1, 0, 10), begun(2, 0, 11)]);
        assert_eq!((stable(&table, 5), stable(&table, 12)), (5, 10));
        let first = table.append(&ended(1, 0, 12, 3)).unwrap();
        assert_eq!((first.first_offset, first.marker_offset, first.stable_end), (Offset(10), Offset(12), Offset(11)));
        table.stabilise(Offset(12));
        assert_eq!(stable(&table, 12), 10, "the marker may yet be lost");
        table.stabilise(Offset(13));
        assert_eq!(stable(&table, 13), 11);
        let second = table.append(&ended(2, 0, 13, 3)).unwrap();
        assert_eq!(second.stable_end, Offset(14));
        table.stabilise(Offset(14));
        assert_eq!(stable(&table, 14), 14);
        // A log start above the first unstable offset wins.
        let open = super::tests::table(&[begun(1, 0, 10)]);
        assert_eq!(open.last_stable_offset(view(20, 30, 30), rules()), Offset(20));
    }

    #[test]
    fn without_the_rules_of_the_last_stable_offset_undecided_records_would_be_seen() {
        #[cfg(feature = "mutations")]
        {
            let open = table(&[begun(1, 0, 10)]);
            let without = Rules::without(Rule::R43OpenTransactions);
            assert_eq!(open.last_stable_offset(view(0, 20, 20), without), Offset(20));
            let ended = table(&[begun(1, 0, 10), ended(1, 0, 12, 0)]);
            let without = Rules::without(Rule::R43MarkersAboveHighWatermark);
            assert_eq!(ended.last_stable_offset(view(0, 12, 20), without), Offset(12));
        }
    }

    fn claim(epoch: i16, coordinator_epoch: i32, transaction_version: i8) -> MarkerClaim {
        let (producer_id, producer_epoch) = (ProducerId(1), ProducerEpoch(epoch));
        MarkerClaim { producer_id, producer_epoch, coordinator_epoch, transaction_version }
    }

    #[test]
    fn markers_of_older_producers_and_coordinators_are_fenced() {
        let empty = ProducerTable::default();
        assert_eq!(empty.check_marker(&claim(0, 0, 2), rules()), Ok(()));
        let table = table(&[begun(1, 4, 10), ended(1, 4, 11, 7), begun(1, 4, 12)]);
        let check = |epoch, coordinator, version| table.check_marker(&claim(epoch, coordinator, version), rules());
        assert_eq!(check(3, 7, 1), Err(ErrorCode::InvalidProducerEpoch));
        assert_eq!(check(4, 6, 1), Err(ErrorCode::TransactionCoordinatorFenced));
        assert_eq!(check(4, 7, 1), Ok(()));
        assert_eq!(check(5, 8, 2), Ok(()));
        // The transaction of epoch 4 goes on: a marker of that epoch is a late copy of the one before.
        assert_eq!(check(4, 7, 2), Err(ErrorCode::InvalidProducerEpoch));
        let no_open = super::tests::table(&[begun(1, 4, 10), ended(1, 5, 11, 7)]);
        assert_eq!(no_open.check_marker(&claim(5, 7, 2), rules()), Ok(()), "a retry");
    }

    #[test]
    fn a_batch_outside_of_the_open_transaction_is_refused_until_it_ends() {
        let plain = ProducerBatch { producer_id: ProducerId(1), ..batch(0, 1, 1, -1) };
        let mut table = table(&[begun(1, 0, 10)]);
        assert_eq!(table.check(&plain, Rules::all()), Err(ErrorCode::InvalidTxnState));
        let inside = ProducerBatch { kind: BatchKind::Transactional, ..plain };
        assert_eq!(table.check(&inside, Rules::all()), APPEND);
        table.append(&ended(1, 0, 11, 0));
        assert_eq!(table.check(&plain, Rules::all()), APPEND);
    }

    #[test]
    fn without_a_rule_of_markers_a_zombie_would_end_a_transaction() {
        #[cfg(feature = "mutations")]
        {
            let table = table(&[begun(1, 4, 10), ended(1, 4, 11, 7), begun(1, 4, 12)]);
            let without = |rule, claim: MarkerClaim| table.check_marker(&claim, Rules::without(rule));
            assert_eq!(without(Rule::R47ProducerEpoch, claim(3, 7, 1)), Ok(()));
            assert_eq!(without(Rule::R47CoordinatorEpoch, claim(4, 6, 1)), Ok(()));
            assert_eq!(without(Rule::R47MarkerEpochAboveKnown, claim(4, 7, 2)), Ok(()));
        }
    }

    #[test]
    fn a_verification_counts_until_a_marker_comes_and_only_for_its_own_asking() {
        let (id, epoch) = (ProducerId(1), ProducerEpoch(0));
        let mut table = ProducerTable::default();
        let check = |table: &ProducerTable, guard| table.check_verified(id, epoch, guard, rules());
        assert_eq!(check(&table, None), Err(ErrorCode::InvalidTxnState));
        let asked = table.start_verification(id);
        assert_eq!(check(&table, Some(asked)), Ok(()));
        assert_eq!(table.check_verified(ProducerId(2), epoch, Some(asked), rules()), Err(ErrorCode::InvalidTxnState));
        table.append(&ended(1, 0, 0, 0));
        assert_eq!(
            check(&table, Some(asked)),
            Err(ErrorCode::InvalidTxnState),
            "the answer was of the transaction before"
        );
        let again = table.start_verification(id);
        assert_ne!(again, asked);
        table.append(&begun(1, 0, 1));
        table.end_verification(id, again);
        assert_eq!(check(&table, None), Ok(()), "the transaction is open");
        assert_eq!(table.check_verified(id, ProducerEpoch(1), None, rules()), Err(ErrorCode::InvalidTxnState));
    }

    #[test]
    fn without_the_rules_of_verification_a_hanging_transaction_would_begin() {
        #[cfg(feature = "mutations")]
        {
            let (id, epoch) = (ProducerId(1), ProducerEpoch(0));
            let mut table = ProducerTable::default();
            assert_eq!(table.check_verified(id, epoch, None, Rules::without(Rule::R50Verification)), Ok(()));
            let late = table.start_verification(id);
            table.append(&ended(1, 0, 0, 0));
            assert_eq!(table.check_verified(id, epoch, Some(late), Rules::without(Rule::R50Guard)), Ok(()));
        }
    }

    #[test]
    fn snapshots_of_earlier_versions_read_back() {
        // Log end and number of producers come before the one producer, its last marker and batches end it.
        const LAST_MARKER: usize = 8 + 4 + PRODUCER_LEN - 9;
        let table = table(&[batch(0, 0, 9, 0)]);
        let mut body = table.snapshot(Offset(10)).split_off(HEAD_LEN);
        body.drain(LAST_MARKER..LAST_MARKER + 8);
        let without_ended = body[..body.len() - 4].to_vec();
        for (version, body) in [(1_u16, without_ended), (2, body)] {
            let mut old = version.to_be_bytes().to_vec();
            old.extend(crc32c(&body).to_be_bytes());
            old.extend(body);
            assert_eq!(ProducerTable::restore(&old), Ok((Offset(10), table.clone())), "version {version}");
        }
    }

    #[test]
    fn producers_expire_by_their_last_append_but_not_within_a_transaction() {
        let open = ProducerBatch { producer_id: ProducerId(8), kind: BatchKind::Transactional, ..batch(0, 0, 0, 5) };
        let mut table = table(&[batch(0, 0, 0, 0), open]);
        assert!(!table.expire(Time(1999), 1000));
        assert!(table.expire(Time(2000), 1000));
        assert_eq!(table.iter().map(|(id, _)| id).collect::<Vec<_>>(), [ProducerId(8)]);
    }

    #[test]
    fn a_producer_whose_records_have_no_timestamp_expires_by_when_it_was_seen() {
        let header = model::BatchHeader::read(&model::encode_batch(
            &model::encode_records(&[model::Record::default()]),
            model::Codec::None,
            1,
            -1,
            -1,
            Some((ProducerId(7), ProducerEpoch(0), 0)),
        ));
        let mut table = table(&[ProducerBatch::of(&header.unwrap(), None).unwrap()]);
        assert!(!table.expire(Time(50_000), 1000));
        assert!(!table.expire(Time(50_999), 1000));
        assert!(table.expire(Time(51_000), 1000));
    }

    #[test]
    fn without_the_sequence_rule_a_duplicate_would_be_appended() {
        #[cfg(feature = "mutations")]
        {
            let table = table(&[batch(0, 0, 9, 100)]);
            assert_eq!(table.check(&batch(0, 0, 9, -1), Rules::without(Rule::R40Sequence)), APPEND);
        }
    }

    #[test]
    fn a_snapshot_of_another_version_or_with_a_flipped_bit_is_refused() {
        let bytes = table(&[batch(0, 0, 9, 0)]).snapshot(Offset(10));
        let mut newer = bytes.clone();
        newer[1] = 4;
        assert_eq!(ProducerTable::restore(&newer), Err(SnapshotError::Version(4)));
        for at in 2..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert_eq!(ProducerTable::restore(&flipped), Err(SnapshotError::Checksum));
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_reads_back(appends in prop::collection::vec((0..4i64, 0..3i16, 0..100i32, 0..3u8), 0..40), hw in 0..40i64) {
            let mut table = ProducerTable::default();
            for (at, (id, epoch, first, kind)) in appends.into_iter().enumerate() {
                let base = i64::try_from(at).unwrap();
                table.append(&match kind {
                    0 => ProducerBatch { producer_id: ProducerId(id), ..batch(epoch, first, first, base) },
                    1 => begun(id, epoch, base),
                    _ => ended(id, epoch, base, first),
                });
            }
            table.stabilise(Offset(hw));
            prop_assert_eq!(ProducerTable::restore(&table.snapshot(Offset(9))), Ok((Offset(9), table)));
        }

        #[test]
        fn noise_with_a_right_checksum_gives_errors_and_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = VERSION.to_be_bytes().to_vec();
            bytes.extend(crc32c(&body).to_be_bytes());
            bytes.extend(&body);
            if let Ok((_, table)) = ProducerTable::restore(&bytes) {
                prop_assert!(table.producers.len() * PRODUCER_LEN <= body.len());
            }
        }

        /// Against a reference that remembers everything: what is appended is each sequence once, in order.
        #[test]
        fn retries_in_any_order_append_each_record_once(sends in prop::collection::vec(0..8usize, 1..80)) {
            let client: Vec<ProducerBatch> = (0..8).map(|i| batch(0, i * 3, i * 3 + 2, -1)).collect();
            let (mut table, mut log) = (ProducerTable::default(), Vec::<i32>::new());
            table.append(&batch(0, i32::MAX - 2, i32::MAX, 0));
            for send in sends {
                let sent = client[send];
                if table.check(&sent, rules()) == APPEND {
                    let base = Offset(i64::try_from(log.len()).unwrap());
                    log.extend(sent.first_sequence..=sent.last_sequence);
                    table.append(&ProducerBatch { base_offset: base, last_offset: base + 2, ..sent });
                }
            }
            let expected: Vec<i32> = (0..i32::try_from(log.len()).unwrap()).collect();
            prop_assert_eq!(log, expected);
        }

        /// Against a plain model: the log as a list, everything derived from the whole of it.
        #[test]
        fn transactions_are_what_the_log_says_over_truncations_restarts_and_failovers(
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut world = World::default();
            for step in steps {
                world.take(step);
                world.check();
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Data(i64),
        Plain(i64),
        End(i64, bool),
        HighWatermark(i64),
        Snapshot,
        /// Down to so far above the high watermark.
        Truncate(i64),
        /// The high watermark's checkpoint is so far behind.
        Restart(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5i64).prop_map(Step::Data),
            1 => (0..5i64).prop_map(Step::Plain),
            5 => (0..5i64, any::<bool>()).prop_map(|(id, commit)| Step::End(id, commit)),
            4 => (1..8i64).prop_map(Step::HighWatermark),
            1 => Just(Step::Snapshot),
            1 => (0..6i64).prop_map(Step::Truncate),
            1 => (0..6i64).prop_map(Step::Restart),
        ]
    }

    #[derive(Default)]
    struct World {
        log: Vec<ProducerBatch>,
        snapshots: Vec<(i64, Vec<u8>)>,
        table: ProducerTable,
        high_watermark: i64,
        /// The highest high watermark ever: what is below is committed, whatever a replica knows of it.
        committed: i64,
        ended: BTreeMap<Offset, EndedTransaction>,
    }

    impl World {
        fn end(&self) -> i64 {
            i64::try_from(self.log.len()).unwrap()
        }

        fn take(&mut self, step: Step) {
            match step {
                Step::Data(id) => self.append(begun(id, 0, self.end())),
                Step::Plain(id) => self.append(ProducerBatch { kind: BatchKind::Plain, ..begun(id, 0, self.end()) }),
                Step::End(id, commit) => {
                    let marker = EndMarker { commit, coordinator_epoch: 0 };
                    let kind = BatchKind::Marker(marker);
                    self.append(ProducerBatch { kind, ..ended(id, 0, self.end(), 0) });
                }
                Step::HighWatermark(by) => self.raise((self.high_watermark + by).min(self.end())),
                Step::Snapshot => self.snapshots.push((self.end(), self.table.snapshot(Offset(self.end())))),
                Step::Truncate(above) => {
                    let end = (self.committed + above).min(self.end());
                    self.log.truncate(usize::try_from(end).unwrap());
                    self.snapshots.retain(|(offset, _)| *offset <= end);
                    self.ended.retain(|marker, _| marker.0 < end);
                    self.reload();
                }
                Step::Restart(behind) => {
                    self.high_watermark = (self.high_watermark - behind).max(0);
                    self.reload();
                }
            }
        }

        fn append(&mut self, batch: ProducerBatch) {
            self.log.push(batch);
            let ended = self.table.append(&batch);
            self.ended.extend(ended.map(|ended| (ended.marker_offset, ended)));
        }

        fn raise(&mut self, high_watermark: i64) {
            self.high_watermark = high_watermark;
            self.committed = self.committed.max(high_watermark);
            self.table.stabilise(Offset(high_watermark));
        }

        fn reload(&mut self) {
            let newest = self.snapshots.last();
            let (from, table) = newest
                .map_or((Offset(0), ProducerTable::default()), |(_, bytes)| ProducerTable::restore(bytes).unwrap());
            self.table = table;
            for batch in &self.log[usize::try_from(from.0).unwrap()..] {
                if let Some(ended) = self.table.append(batch) {
                    assert_eq!(self.ended.get(&ended.marker_offset), Some(&ended));
                }
            }
            self.table.stabilise(Offset(self.high_watermark));
        }

        /// All transactions by the whole log: where each begins, where its marker stands, and how it ended.
        fn transactions(&self) -> Vec<(i64, Option<(i64, bool)>)> {
            let mut open = BTreeMap::new();
            let mut all = Vec::new();
            for batch in &self.log {
                match batch.kind {
                    BatchKind::Plain => {}
                    BatchKind::Transactional => drop(open.entry(batch.producer_id).or_insert(batch.base_offset.0)),
                    BatchKind::Marker(marker) => {
                        let began = open.remove(&batch.producer_id);
                        all.extend(began.map(|began| (began, Some((batch.base_offset.0, marker.commit)))));
                    }
                }
            }
            all.extend(open.into_values().map(|began| (began, None)));
            all
        }

        /// R43, with a marker safe below `safe`.
        fn stable(&self, safe: i64) -> i64 {
            let undecided = self.transactions().into_iter().filter(|(_, end)| end.is_none_or(|(at, _)| at >= safe));
            undecided.map(|(began, _)| began).chain([self.high_watermark]).min().unwrap()
        }

        fn check(&self) {
            let log = view(0, self.high_watermark, self.end());
            let stable = self.table.last_stable_offset(log, Rules::all()).0;
            assert!(stable <= self.stable(self.committed), "undecided records are seen below {stable}");
            assert!(stable >= self.stable(self.high_watermark), "decided records are held back at {stable}");
            let ended: Vec<_> =
                self.transactions().into_iter().filter_map(|(began, end)| Some((began, end?))).collect();
            assert_eq!(self.ended.len(), ended.len());
            for (began, (at, commit)) in ended {
                let told = self.ended[&Offset(at)];
                assert_eq!((told.first_offset.0, told.commit), (began, commit));
                let later = self.transactions().into_iter().filter(|(_, end)| end.is_none_or(|(other, _)| other > at));
                assert!(later.map(|(began, _)| began).all(|began| began >= told.stable_end.0));
            }
        }
    }
}
