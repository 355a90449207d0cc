//! One shard: the transactional ids of one partition of `__transaction_state`. How a shell drives it stands in
//! [`crate::driver`]; besides, it carries out [`TransactionEffect`]s.
//!
//! # One change at a time for each id
//!
//! A change that is decided is *under way* until it is committed or has certainly failed; meanwhile the id answers
//! CONCURRENT_TRANSACTIONS to everybody (`R44`). So a decision always looks at what is committed, and the order in which
//! the changes of different ids reach the log does not matter. Where it stays open what became of a batch, its ids stay
//! under way until the leadership ends: the next coordinator's log says.
//!
//! A committed PrepareCommit or PrepareAbort puts its partitions on the list of markers to be written. The shell writes
//! them, however often it takes, and says so with [`TransactionShard::markers_written`]; when none is left the completion
//! is stored, and tried again where that failed.

use std::collections::{BTreeMap, VecDeque};

use model::{ErrorCode, LeaderEpoch, ProducerEpoch, ProducerId, Rule, Rules, Time};

use super::config::TransactionConfig;
use super::decide::{self, Circumstances, Verdict};
use super::record::TransactionFact;
use super::request::{
    AddPartitionsRequest, DescribeTransactionRequest, DescribeTransactionResponse, InitProducerIdRequest,
    ListTransactionsRequest, ListTransactionsResponse, ListedTransaction, Producer, TransactionRequest,
    TransactionResponse,
};
use super::state::{PartitionSet, Status, TransactionMetadata, TransactionState};
use crate::driver::{BatchNumber, Now, Output, Shard, Token};
use crate::record::CoordinatorRecord;

/// What a transaction's outcome is told to partitions with (`R47`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Marker {
    /// Whose transaction.
    pub producer_id: ProducerId,
    /// The epoch in force: the producer's own one is below it from transaction version 2 on.
    pub producer_epoch: ProducerEpoch,
    /// The leader epoch of the coordinator's partition (`R44`).
    pub coordinator_epoch: LeaderEpoch,
    /// Commit, or abort.
    pub commit: bool,
    /// The transaction version, which says how the epoch is checked.
    pub transaction_version: i16,
}

/// What a shard asks of its shell besides answers and appends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TransactionEffect {
    /// Bring a producer id that was never given out, and say [`TransactionShard::producer_id_allocated`].
    AllocateProducerId {
        /// For this id.
        transactional_id: String,
    },
    /// Write the marker to each partition until it is there, and say [`TransactionShard::markers_written`]. A partition of
    /// a topic that was deleted has no need of one.
    WriteMarkers {
        /// Of this id's transaction.
        transactional_id: String,
        /// The marker.
        marker: Marker,
        /// Where.
        partitions: PartitionSet,
    },
}

type TransactionOutput = Output<TransactionResponse, TransactionEffect>;

/// Whether requests can be served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Loading,
    Serving { next_abort: Time, next_expiry: Time },
    Unloaded(ErrorCode),
}

/// What an id waits for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum UnderWay {
    /// A producer id for this request.
    ProducerId { token: Token, request: Box<TransactionRequest> },
    /// Its change to be committed.
    Change(Change),
}

impl UnderWay {
    /// When who waits for it is told that it takes too long.
    fn deadline(&self) -> Option<Time> {
        match self {
            UnderWay::Change(change) => change.waiting.as_ref().map(|_| change.deadline),
            // Whoever brings the id comes back in any case.
            UnderWay::ProducerId { .. } => None,
        }
    }
}

/// A decision on its way to the log.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Change {
    /// What will be so; None where the id expires.
    metadata: Option<Box<TransactionMetadata>>,
    record: CoordinatorRecord,
    /// Who is answered what when it is committed.
    waiting: Option<(Token, TransactionResponse)>,
    /// When who waits is told that it takes too long.
    deadline: Time,
}

/// The transactional ids of one partition of `__transaction_state`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TransactionShard {
    config: TransactionConfig,
    rules: Rules,
    coordinator_epoch: LeaderEpoch,
    /// The cluster's transaction version.
    transaction_version: i16,
    stage: Stage,
    /// What is committed.
    state: TransactionState,
    under_way: BTreeMap<String, UnderWay>,
    /// Ids whose changes wait for a batch.
    queue: VecDeque<String>,
    queued_bytes: usize,
    in_flight: Option<(BatchNumber, Vec<String>)>,
    batches: u64,
    /// For each prepared transaction, where its marker is not known to be yet.
    unmarked: BTreeMap<String, PartitionSet>,
    /// Since when each open transaction is known to be open here, on the monotonic clock.
    open_since: BTreeMap<String, Time>,
    /// When completions that could not be stored are tried again.
    retry_at: Option<Time>,
    /// Nobody who waits for a change is told before this that it takes too long.
    overdue_at: Option<Time>,
    outputs: VecDeque<TransactionOutput>,
    skipped_records: u64,
}

/// The life of a shard, and the shell's side of it.
impl TransactionShard {
    /// An empty shard, to be loaded. `coordinator_epoch` is the leader epoch of its partition.
    #[must_use]
    pub fn new(
        config: TransactionConfig,
        coordinator_epoch: LeaderEpoch,
        transaction_version: i16,
        rules: Rules,
    ) -> Self {
        TransactionShard {
            config,
            rules,
            coordinator_epoch,
            transaction_version,
            stage: Stage::Loading,
            state: TransactionState::default(),
            under_way: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: None,
            batches: 0,
            unmarked: BTreeMap::new(),
            open_since: BTreeMap::new(),
            retry_at: None,
            overdue_at: None,
            outputs: VecDeque::new(),
            skipped_records: 0,
        }
    }

    /// The cluster's transaction version is another one.
    pub fn set_transaction_version(&mut self, version: i16) {
        self.transaction_version = version;
    }

    /// A producer id for the request that waits for one, or why there is none.
    pub fn producer_id_allocated(&mut self, transactional_id: &str, id: Result<ProducerId, ErrorCode>, now: Now) {
        // The shard may have been unloaded meanwhile.
        if !matches!(self.under_way.get(transactional_id), Some(UnderWay::ProducerId { .. })) {
            return;
        }
        let Some(UnderWay::ProducerId { token, request }) = self.under_way.remove(transactional_id) else { return };
        match id {
            Ok(fresh) => self.serve(token, *request, Some(fresh), now),
            Err(error) => self.reply(token, request.refused(error)),
        }
    }

    /// The marker of this producer's transaction stands in these partitions.
    pub fn markers_written(&mut self, transactional_id: &str, producer: Producer, written: &PartitionSet, now: Now) {
        // A late word of an earlier transaction says nothing of this one.
        if self.state.get(transactional_id).is_none_or(|known| known.producer() != producer) {
            return;
        }
        let Some(unmarked) = self.unmarked.get_mut(transactional_id) else { return };
        for (topic, partition) in written.iter() {
            unmarked.remove(topic, partition);
        }
        if unmarked.is_empty() || !self.rules.hold(Rule::R45AllMarkers) {
            self.complete(transactional_id, now);
        }
    }

    /// What is committed.
    #[must_use]
    pub fn state(&self) -> &TransactionState {
        &self.state
    }

    /// What this shard was configured with.
    #[must_use]
    pub fn config(&self) -> &TransactionConfig {
        &self.config
    }

    /// Panics where the shard contradicts itself.
    pub fn assert_invariants(&self) {
        let in_flight = self.in_flight.iter().flat_map(|(_, ids)| ids);
        let mut listed: Vec<&String> = in_flight.chain(&self.queue).collect();
        listed.sort();
        let is_change = |(id, what)| matches!(what, &UnderWay::Change(_)).then_some(id);
        let changes: Vec<&String> = self.under_way.iter().filter_map(is_change).collect();
        assert_eq!(changes, listed, "each change is queued or in flight, once");
        let queued: usize = self.queue.iter().map(|id| self.change_bytes(id)).sum();
        assert_eq!(queued, self.queued_bytes, "bytes that are queued");
        let open = self.state.iter().filter(|(_, known)| known.status == Status::Ongoing);
        let open: Vec<&String> = open.map(|(id, _)| id).collect();
        let clocked = matches!(self.stage, Stage::Serving { .. }) && self.rules.hold(Rule::R44EffectWhenCommitted);
        assert!(!clocked || self.open_since.keys().eq(open), "every open transaction has a time from which it counts");
        for id in self.unmarked.keys() {
            let status = self.state.get(id).map(|known| known.status);
            assert!(status.is_some_and(Status::is_prepared), "{id} has markers to write and is {status:?}");
        }
    }
}

impl Shard for TransactionShard {
    type Request = TransactionRequest;
    type Response = TransactionResponse;
    type Effect = TransactionEffect;

    fn replay(&mut self, record: &CoordinatorRecord) {
        match TransactionFact::decode(record) {
            Ok(Some(fact)) => self.state.replay(fact),
            Ok(None) => {}
            Err(_) => self.skipped_records += 1,
        }
    }

    fn finish_load(&mut self, now: Now) {
        assert_eq!(self.stage, Stage::Loading, "a shard is loaded once");
        self.stage = Stage::Serving {
            next_abort: now.monotonic + self.config.abort_interval_ms.max(1),
            next_expiry: now.monotonic + self.config.expiry_interval_ms.max(1),
        };
        let prepared: Vec<String> =
            self.state.iter().filter(|(_, known)| known.status.is_prepared()).map(|(id, _)| id.clone()).collect();
        for id in prepared {
            self.write_markers(&id, now);
        }
        let open = self.state.iter().filter(|(_, known)| known.status == Status::Ongoing);
        self.open_since = open.map(|(id, _)| (id.clone(), now.monotonic)).collect();
    }

    fn handle(&mut self, token: Token, request: TransactionRequest, _entropy: u128, now: Now) {
        match self.stage {
            Stage::Loading => self.reply(token, request.refused(ErrorCode::CoordinatorLoadInProgress)),
            Stage::Unloaded(error) => self.reply(token, request.refused(error)),
            Stage::Serving { .. } => self.serve(token, request, None, now),
        }
    }

    fn poll_output(&mut self) -> Option<TransactionOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let (batch, records) = self.cut_batch()?;
        Some(Output::Append { batch, records })
    }

    fn committed(&mut self, batch: BatchNumber, now: Now) {
        for id in self.take_batch(batch) {
            let Some(UnderWay::Change(change)) = self.under_way.remove(&id) else { continue };
            self.apply(&id, change.metadata, now);
            if let Some((token, response)) = change.waiting {
                self.reply(token, response);
            }
        }
    }

    fn failed(&mut self, batch: BatchNumber, error: ErrorCode, now: Now) {
        for id in self.take_batch(batch) {
            self.fail(&id, append_error(error), now);
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        let Stage::Serving { next_abort, next_expiry } = self.stage else { return None };
        self.overdue_at.into_iter().chain(self.retry_at).chain([next_abort, next_expiry]).min()
    }

    fn handle_timeout(&mut self, now: Now) {
        let Stage::Serving { next_abort, next_expiry } = self.stage else { return };
        if self.overdue_at.take_if(|at| *at <= now.monotonic).is_some() {
            self.answer_overdue(now);
        }
        if self.retry_at.take_if(|at| *at <= now.monotonic).is_some() {
            let ready = self.unmarked.iter().filter(|(_, unmarked)| unmarked.is_empty());
            let ready: Vec<String> = ready.map(|(id, _)| id.clone()).collect();
            ready.iter().for_each(|id| self.complete(id, now));
        }
        let mut stage = (next_abort, next_expiry);
        if next_abort <= now.monotonic {
            stage.0 = now.monotonic + self.config.abort_interval_ms.max(1);
            self.abort_timed_out(now);
        }
        if next_expiry <= now.monotonic {
            stage.1 = now.monotonic + self.config.expiry_interval_ms.max(1);
            self.expire(now);
        }
        self.stage = Stage::Serving { next_abort: stage.0, next_expiry: stage.1 };
    }

    fn unload(&mut self, error: ErrorCode) {
        self.stage = Stage::Unloaded(error);
        self.queue.clear();
        (self.queued_bytes, self.in_flight) = (0, None);
        self.unmarked.clear();
        self.open_since.clear();
        // Effects of a shard that is gone are nobody's.
        self.outputs.retain(|output| matches!(output, Output::Reply { .. }));
        for (_, what) in std::mem::take(&mut self.under_way) {
            match what {
                UnderWay::ProducerId { token, request } => self.reply(token, request.refused(error)),
                UnderWay::Change(Change { waiting: Some((token, response)), .. }) => {
                    self.reply(token, response.failed(error));
                }
                UnderWay::Change(_) => {}
            }
        }
    }

    fn skipped_records(&self) -> u64 {
        self.skipped_records
    }
}

/// One method a request.
impl TransactionShard {
    fn serve(&mut self, token: Token, request: TransactionRequest, fresh: Option<ProducerId>, now: Now) {
        match &request {
            TransactionRequest::Describe(describe) => {
                let response = TransactionResponse::Describe(self.describe(describe));
                self.reply(token, response);
            }
            TransactionRequest::List(list) => {
                let response = TransactionResponse::List(self.list(list, now.wall));
                self.reply(token, response);
            }
            TransactionRequest::AddPartitions(verify) if verify.verify_only => {
                let response = TransactionResponse::AddPartitions(self.verify(verify));
                self.reply(token, response);
            }
            TransactionRequest::InitProducerId(_)
            | TransactionRequest::AddPartitions(_)
            | TransactionRequest::EndTransaction(_) => self.change(token, request, fresh, now),
        }
    }

    /// Decides a request that may change something.
    fn change(&mut self, token: Token, request: TransactionRequest, fresh: Option<ProducerId>, now: Now) {
        let Some(id) = request.transactional_id().map(str::to_owned) else { return };
        if let Err(error) = self.check(&id, &request) {
            return self.reply(token, request.refused(error));
        }
        match self.decide(&id, &request, fresh, now) {
            Verdict::Answer(response) => self.reply(token, response),
            Verdict::Store(metadata, response) => {
                let is_addition = matches!(request, TransactionRequest::AddPartitions(_));
                self.store(id, Some(metadata), Some((token, response)), is_addition, now);
            }
            Verdict::NeedsProducerId => {
                self.under_way.insert(id.clone(), UnderWay::ProducerId { token, request: Box::new(request) });
                self.outputs.push_back(Output::Effect(TransactionEffect::AllocateProducerId { transactional_id: id }));
            }
        }
    }

    fn check(&self, id: &str, request: &TransactionRequest) -> Result<(), ErrorCode> {
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        if let TransactionRequest::InitProducerId(InitProducerIdRequest { timeout_ms, .. }) = request {
            if *timeout_ms <= 0 || *timeout_ms > self.config.max_timeout_ms {
                return Err(ErrorCode::InvalidTransactionTimeout);
            }
            let known = self.state.get(id).is_some() || self.under_way.contains_key(id);
            if !known && self.state.len() + self.under_way.len() >= self.config.max_ids {
                return Err(ErrorCode::CoordinatorNotAvailable);
            }
        }
        if self.under_way.contains_key(id) { Err(ErrorCode::ConcurrentTransactions) } else { Ok(()) }
    }

    fn decide(
        &self,
        id: &str,
        request: &TransactionRequest,
        fresh: Option<ProducerId>,
        now: Now,
    ) -> Verdict<TransactionResponse> {
        let c = Circumstances { fresh, ..self.circumstances(now) };
        let known = self.state.get(id);
        match request {
            TransactionRequest::InitProducerId(request) => {
                decide::init_producer_id(known, request, &c).map(TransactionResponse::InitProducerId)
            }
            TransactionRequest::AddPartitions(request) => {
                decide::add_partitions(known, request, &c).map(TransactionResponse::AddPartitions)
            }
            TransactionRequest::EndTransaction(request) => {
                decide::end_transaction(known, request, &c).map(TransactionResponse::EndTransaction)
            }
            TransactionRequest::Describe(_) | TransactionRequest::List(_) => {
                Verdict::Answer(request.refused(ErrorCode::InvalidRequest))
            }
        }
    }

    fn circumstances(&self, now: Now) -> Circumstances {
        Circumstances { now: now.wall, transaction_version: self.transaction_version, fresh: None, rules: self.rules }
    }

    /// What is under way does not matter here: the partition asks again under its own guard before it appends (`R50`).
    fn verify(&self, request: &AddPartitionsRequest) -> super::request::AddPartitionsResponse {
        if request.transactional_id.is_empty() {
            return request.answered(ErrorCode::InvalidRequest);
        }
        decide::verify_partitions(self.state.get(&request.transactional_id), request)
    }

    fn describe(&self, request: &DescribeTransactionRequest) -> DescribeTransactionResponse {
        let id = &request.transactional_id;
        match self.state.get(id) {
            _ if id.is_empty() => DescribeTransactionResponse::refused(id, ErrorCode::InvalidRequest),
            None => DescribeTransactionResponse::refused(id, ErrorCode::TransactionalIdNotFound),
            Some(known) => DescribeTransactionResponse {
                error: ErrorCode::None,
                transactional_id: id.clone(),
                state: known.status.name(),
                timeout_ms: known.timeout_ms,
                start_time_ms: known.started.map_or(-1, |at| i64::try_from(at.0).unwrap_or(i64::MAX)),
                producer: known.producer(),
                partitions: known.partitions.clone(),
            },
        }
    }

    fn list(&self, request: &ListTransactionsRequest, wall: Time) -> ListTransactionsResponse {
        let passes = |known: &TransactionMetadata| {
            let state = request.states.is_empty() || request.states.iter().any(|name| name == known.status.name());
            let producer = request.producer_ids.is_empty() || request.producer_ids.contains(&known.producer_id);
            let open_longer = match u64::try_from(request.open_longer_than_ms) {
                Err(_) => true,
                Ok(ms) => known.started.is_some_and(|started| wall.since(started) > ms),
            };
            state && producer && open_longer
        };
        let list = |(id, known): (&String, &TransactionMetadata)| ListedTransaction {
            transactional_id: id.clone(),
            producer_id: known.producer_id,
            state: known.status.name(),
        };
        let transactions = self.state.iter().filter(|(_, known)| passes(known)).map(list).collect();
        ListTransactionsResponse { error: ErrorCode::None, transactions }
    }
}

/// Changes on their way.
impl TransactionShard {
    /// Queues a change. An addition may not make the record so large that the transaction could not be ended.
    fn store(
        &mut self,
        id: String,
        metadata: Option<Box<TransactionMetadata>>,
        waiting: Option<(Token, TransactionResponse)>,
        is_addition: bool,
        now: Now,
    ) {
        if let (Some(before), Some(after)) = (self.state.get(&id), &metadata) {
            let (before, after) = (before.status, after.status);
            assert!(after.may_follow(before), "{id} cannot be {after:?} after {before:?}");
        }
        let fact = TransactionFact { transactional_id: id.clone(), metadata };
        let encoded = fact.encode(self.transaction_version);
        let error = match &encoded {
            Err(_) => ErrorCode::UnknownServerError,
            Ok(record) if is_addition && record.batch_bytes() > self.config.max_batch_bytes => {
                ErrorCode::UnknownServerError
            }
            Ok(_) if self.queued_bytes > self.config.max_queued_bytes && waiting.is_some() => {
                ErrorCode::CoordinatorNotAvailable
            }
            Ok(_) => ErrorCode::None,
        };
        let (Ok(record), true) = (encoded, error.is_none()) else {
            if let Some((token, response)) = waiting {
                self.reply(token, response.failed(error));
            }
            return;
        };
        self.queued_bytes += record.batch_bytes();
        let deadline = now.monotonic + self.config.request_timeout_ms;
        if !self.rules.hold(Rule::R44EffectWhenCommitted) {
            self.state.replay(fact.clone());
        }
        if waiting.is_some() {
            self.overdue_at.get_or_insert(deadline);
        }
        let change = Change { metadata: fact.metadata, record, waiting, deadline };
        self.under_way.insert(id.clone(), UnderWay::Change(change));
        self.queue.push_back(id);
    }

    /// A change is true now.
    fn apply(&mut self, id: &str, metadata: Option<Box<TransactionMetadata>>, now: Now) {
        self.state.replay(TransactionFact { transactional_id: id.to_owned(), metadata });
        self.unmarked.remove(id);
        let status = self.state.get(id).map(|known| known.status);
        if status == Some(Status::Ongoing) {
            self.open_since.entry(id.to_owned()).or_insert(now.monotonic);
        } else {
            self.open_since.remove(id);
        }
        if status.is_some_and(Status::is_prepared) {
            self.write_markers(id, now);
        }
    }

    /// The outcome is decided: every partition is to hear of it (`R45`).
    fn write_markers(&mut self, id: &str, now: Now) {
        let Some(known) = self.state.get(id) else { return };
        self.unmarked.insert(id.to_owned(), known.partitions.clone());
        if known.partitions.is_empty() {
            return self.complete(id, now);
        }
        let marker = Marker {
            producer_id: known.producer_id,
            producer_epoch: known.producer_epoch,
            coordinator_epoch: self.coordinator_epoch,
            commit: known.status == Status::PrepareCommit,
            transaction_version: known.client_version,
        };
        let (transactional_id, partitions) = (id.to_owned(), known.partitions.clone());
        let effect = TransactionEffect::WriteMarkers { transactional_id, marker, partitions };
        self.outputs.push_back(Output::Effect(effect));
    }

    fn complete(&mut self, id: &str, now: Now) {
        let Some(known) = self.state.get(id).filter(|known| known.status.is_prepared()) else { return };
        if !self.under_way.contains_key(id) {
            let metadata = Box::new(decide::complete(known, now.wall));
            self.store(id.to_owned(), Some(metadata), None, false, now);
        }
    }

    /// A change is certainly not in the log.
    fn fail(&mut self, id: &str, error: ErrorCode, now: Now) {
        let Some(UnderWay::Change(change)) = self.under_way.remove(id) else { return };
        if let Some((token, response)) = change.waiting {
            self.reply(token, response.failed(error));
        }
        if self.unmarked.contains_key(id) {
            self.retry_at = Some(now.monotonic + self.config.retry_ms.max(1));
        }
    }

    /// Who has waited too long is answered. What is queued is given up with it; what is in flight may still be committed.
    fn answer_overdue(&mut self, now: Now) {
        let overdue = |what: &UnderWay| what.deadline().is_some_and(|deadline| deadline <= now.monotonic);
        let ids: Vec<String> =
            self.under_way.iter().filter(|(_, what)| overdue(what)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let error = append_error(ErrorCode::RequestTimedOut);
            if let Some(at) = self.queue.iter().position(|queued| *queued == id) {
                self.queued_bytes -= self.change_bytes(&id);
                self.queue.remove(at);
                self.fail(&id, error, now);
            } else if let Some(UnderWay::Change(change)) = self.under_way.get_mut(&id)
                && let Some((token, response)) = change.waiting.take()
            {
                self.reply(token, response.failed(error));
            }
        }
        self.overdue_at = self.under_way.values().filter_map(UnderWay::deadline).min();
    }

    /// Sends the next batch on its way, where none is.
    fn cut_batch(&mut self) -> Option<(BatchNumber, Vec<CoordinatorRecord>)> {
        if self.in_flight.is_some() {
            return None;
        }
        let (mut ids, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(id) = self.queue.front() {
            let Some(UnderWay::Change(change)) = self.under_way.get(id) else { break };
            let next = change.record.batch_bytes();
            if !records.is_empty() && bytes + next > self.config.max_batch_bytes {
                break;
            }
            bytes += next;
            records.push(change.record.clone());
            ids.extend(self.queue.pop_front());
        }
        if records.is_empty() {
            return None;
        }
        self.queued_bytes -= bytes;
        self.batches += 1;
        let batch = BatchNumber(self.batches);
        self.in_flight = Some((batch, ids));
        Some((batch, records))
    }

    /// The ids of the batch in flight, if it is this one: a shell may speak of a batch of a shard that was unloaded.
    fn take_batch(&mut self, batch: BatchNumber) -> Vec<String> {
        self.in_flight.take_if(|(number, _)| *number == batch).map(|(_, ids)| ids).unwrap_or_default()
    }

    fn change_bytes(&self, id: &str) -> usize {
        match self.under_way.get(id) {
            Some(UnderWay::Change(change)) => change.record.batch_bytes(),
            _ => 0,
        }
    }

    /// Transactions that are open for longer than their producers wanted are aborted, in another epoch (`R48`): by the wall
    /// clock, which goes on from one coordinator to the next, or by the monotonic one, whatever the wall clock does: one that
    /// was set back, or is not believed, must not keep a transaction open.
    fn abort_timed_out(&mut self, now: Now) {
        let late = |id: &String, known: &TransactionMetadata| {
            let timeout_ms = u64::try_from(known.timeout_ms).unwrap_or(0);
            let by_wall = known.started.is_some_and(|at| now.wall.since(at) > timeout_ms);
            let by_this_clock = self.open_since.get(id).is_some_and(|at| now.monotonic.since(*at) > timeout_ms);
            known.status == Status::Ongoing && (by_wall || by_this_clock)
        };
        let c = self.circumstances(now);
        let decided: Vec<(String, TransactionMetadata)> = self
            .state
            .iter()
            .filter(|(id, known)| late(id, known) && !self.under_way.contains_key(*id))
            .map(|(id, known)| (id.clone(), decide::time_out(known, &c)))
            .collect();
        for (id, metadata) in decided {
            self.store(id, Some(Box::new(metadata)), None, false, now);
        }
    }

    /// Ids that nobody has used for long are forgotten.
    fn expire(&mut self, now: Now) {
        let expired = |known: &TransactionMetadata| {
            known.status.is_idle() && now.wall.since(known.updated) >= self.config.id_expiration_ms
        };
        let ids: Vec<String> = self
            .state
            .iter()
            .filter(|(id, known)| expired(known) && !self.under_way.contains_key(*id))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.store(id, None, None, false, now);
        }
    }

    fn reply(&mut self, token: Token, response: TransactionResponse) {
        self.outputs.push_back(Output::Reply { token, response });
    }
}

/// What a client hears of an append that failed, as Kafka tells it.
fn append_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::NotEnoughReplicasAfterAppend
        | ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge => ErrorCode::UnknownServerError,
        other => other,
    }
}
