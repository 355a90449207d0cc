//! A shell in miniature: one shard, a log, two clocks that move together, producer ids and markers.

use std::collections::BTreeMap;

use coordinator::driver::Output;
use coordinator::transaction::request::*;
use coordinator::transaction::{
    Marker, PartitionSet, Status, TransactionEffect, TransactionFact, TransactionMetadata, TransactionRequest,
    TransactionResponse, TransactionState,
};
use coordinator::{BatchNumber, CoordinatorRecord, Now, Shard, Token, TransactionConfig, TransactionShard};
use model::{ErrorCode, LeaderEpoch, PartitionIndex, ProducerEpoch, ProducerId, Rules, Time};

pub(crate) const ID: &str = "id";
/// The wall clock when the monotonic one shows zero.
const EPOCH_MS: u64 = 1_000_000_000_000;

pub(crate) struct Context {
    pub(crate) shard: TransactionShard,
    pub(crate) log: Vec<CoordinatorRecord>,
    pub(crate) in_flight: Option<(BatchNumber, Vec<CoordinatorRecord>)>,
    /// Whether batches are committed as soon as they are cut.
    pub(crate) log_works: bool,
    /// Whether producer ids come at once.
    pub(crate) ids_work: bool,
    pub(crate) ids_wanted: Vec<String>,
    /// Markers that are to be written, in order.
    pub(crate) markers: Vec<(String, Marker, PartitionSet)>,
    pub(crate) next_id: i64,
    /// How far the wall clock was set back.
    pub(crate) set_back_ms: u64,
    rules: Rules,
    coordinator_epoch: i32,
    version: i16,
    replies: BTreeMap<Token, TransactionResponse>,
    ms: u64,
    tokens: u64,
}

impl Context {
    /// At transaction version 2.
    pub(crate) fn new() -> Self {
        Self::with(2, Rules::all())
    }

    pub(crate) fn at_version(version: i16) -> Self {
        Self::with(version, Rules::all())
    }

    pub(crate) fn with(version: i16, rules: Rules) -> Self {
        Self::load(TransactionConfig::default(), version, rules, Vec::new(), (0, 0, 1_000, 1))
    }

    fn load(
        config: TransactionConfig,
        version: i16,
        rules: Rules,
        log: Vec<CoordinatorRecord>,
        (ms, tokens, next_id, coordinator_epoch): (u64, u64, i64, i32),
    ) -> Self {
        let mut shard = TransactionShard::new(config, LeaderEpoch(coordinator_epoch), version, rules);
        log.iter().for_each(|record| shard.replay(record));
        let mut context = Context {
            shard,
            log,
            in_flight: None,
            log_works: true,
            ids_work: true,
            ids_wanted: Vec::new(),
            markers: Vec::new(),
            next_id,
            set_back_ms: 0,
            rules,
            coordinator_epoch,
            version,
            replies: BTreeMap::new(),
            ms,
            tokens,
        };
        let now = context.now();
        context.shard.finish_load(now);
        context.drain();
        context
    }

    /// The next coordinator of the same log.
    pub(crate) fn fail_over(&self) -> Self {
        let soft = (self.ms, self.tokens, self.next_id, self.coordinator_epoch + 1);
        Self::load(self.shard.config().clone(), self.version, self.rules, self.log.clone(), soft)
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: Time(self.ms), wall: Time(self.ms + EPOCH_MS - self.set_back_ms) }
    }

    /// What the log says, with what it does not say taken from the shard: the last epochs.
    pub(crate) fn replayed(&self) -> TransactionState {
        let mut state = TransactionState::default();
        for record in &self.log {
            let mut fact = TransactionFact::decode(record).unwrap().unwrap();
            let known = self.shard.state().get(&fact.transactional_id);
            if let (Some(metadata), Some(known)) = (&mut fact.metadata, known) {
                metadata.last_producer_epoch = known.last_producer_epoch;
            }
            state.replay(fact);
        }
        state
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Reply { token, response } => {
                    assert!(self.replies.insert(token, response).is_none(), "{token:?} is answered twice");
                }
                Output::Append { batch, records } => {
                    assert!(!records.is_empty() && self.in_flight.is_none());
                    self.in_flight = Some((batch, records));
                    if self.log_works {
                        self.commit();
                    }
                }
                Output::AppendInTransaction { .. } | Output::AppendMarker { .. } => {
                    panic!("the state of transactions is kept outside of transactions")
                }
                Output::Effect(TransactionEffect::AllocateProducerId { transactional_id }) => {
                    self.ids_wanted.push(transactional_id);
                    if self.ids_work {
                        self.bring_ids();
                    }
                }
                Output::Effect(TransactionEffect::WriteMarkers { transactional_id, marker, partitions }) => {
                    assert_eq!(marker.coordinator_epoch, LeaderEpoch(self.coordinator_epoch));
                    self.markers.push((transactional_id, marker, partitions));
                }
            }
        }
        self.shard.assert_invariants();
    }

    pub(crate) fn bring_ids(&mut self) {
        for id in std::mem::take(&mut self.ids_wanted) {
            self.next_id += 1;
            let now = self.now();
            self.shard.producer_id_allocated(&id, Ok(ProducerId(self.next_id)), now);
        }
        self.drain();
    }

    pub(crate) fn commit(&mut self) {
        let (batch, records) = self.in_flight.take().unwrap();
        self.log.extend(records);
        let now = self.now();
        self.shard.committed(batch, now);
        self.drain();
    }

    pub(crate) fn fail(&mut self, error: ErrorCode) {
        let (batch, _) = self.in_flight.take().unwrap();
        let now = self.now();
        self.shard.failed(batch, error, now);
        self.drain();
    }

    /// Every marker that is to be written is.
    pub(crate) fn write_markers(&mut self) {
        for (id, marker, partitions) in std::mem::take(&mut self.markers) {
            self.marked(&id, &marker, &partitions);
        }
    }

    pub(crate) fn marked(&mut self, id: &str, marker: &Marker, partitions: &PartitionSet) {
        let producer = Producer { id: marker.producer_id, epoch: marker.producer_epoch };
        let now = self.now();
        self.shard.markers_written(id, producer, partitions, now);
        self.drain();
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        let end = self.ms + ms;
        while let Some(due) = self.shard.poll_timeout().filter(|due| due.0 <= end) {
            self.ms = self.ms.max(due.0);
            let now = self.now();
            self.shard.handle_timeout(now);
            self.drain();
        }
        self.ms = end;
    }

    pub(crate) fn send(&mut self, request: TransactionRequest) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let now = self.now();
        self.shard.handle(token, request, 0, now);
        self.drain();
        token
    }

    pub(crate) fn reply(&mut self, token: Token) -> Option<TransactionResponse> {
        self.replies.remove(&token)
    }

    pub(crate) fn is_parked(&self, token: Token) -> bool {
        !self.replies.contains_key(&token)
    }

    pub(crate) fn init(&mut self, expected: Option<Producer>) -> Result<Producer, ErrorCode> {
        let token = self.send(init_request(expected));
        self.inited(token)
    }

    pub(crate) fn inited(&mut self, token: Token) -> Result<Producer, ErrorCode> {
        match self.reply(token) {
            Some(TransactionResponse::InitProducerId(response)) if response.error.is_none() => Ok(response.producer),
            Some(TransactionResponse::InitProducerId(response)) => {
                assert_eq!(response.producer, Producer::NONE);
                Err(response.error)
            }
            other => panic!("no answer to an InitProducerId: {other:?}"),
        }
    }

    pub(crate) fn add(&mut self, producer: Producer, partitions: &[i32]) -> ErrorCode {
        let token = self.send(add_request(producer, partitions, false));
        self.added(token)[0]
    }

    pub(crate) fn verify(&mut self, producer: Producer, partitions: &[i32]) -> Vec<ErrorCode> {
        let token = self.send(add_request(producer, partitions, true));
        self.added(token)
    }

    pub(crate) fn added(&mut self, token: Token) -> Vec<ErrorCode> {
        match self.reply(token) {
            Some(TransactionResponse::AddPartitions(response)) => {
                response.partitions.into_iter().map(|(_, _, error)| error).collect()
            }
            other => panic!("no answer to an AddPartitionsToTxn: {other:?}"),
        }
    }

    /// As a client of the shard's transaction version does it.
    pub(crate) fn end(&mut self, producer: Producer, commit: bool) -> Result<Producer, ErrorCode> {
        let token = self.send(end_request(producer, commit, if self.version < 2 { 0 } else { 2 }));
        self.ended(token)
    }

    pub(crate) fn end_at(&mut self, version: i16, producer: Producer, commit: bool) -> Result<Producer, ErrorCode> {
        let token = self.send(end_request(producer, commit, version));
        self.ended(token)
    }

    pub(crate) fn ended(&mut self, token: Token) -> Result<Producer, ErrorCode> {
        match self.reply(token) {
            Some(TransactionResponse::EndTransaction(response)) if response.error.is_none() => Ok(response.producer),
            Some(TransactionResponse::EndTransaction(response)) => {
                assert_eq!(response.producer, Producer::NONE);
                Err(response.error)
            }
            other => panic!("no answer to an EndTxn: {other:?}"),
        }
    }

    pub(crate) fn describe(&mut self) -> DescribeTransactionResponse {
        let request = DescribeTransactionRequest { transactional_id: ID.into() };
        let token = self.send(TransactionRequest::Describe(request));
        match self.reply(token) {
            Some(TransactionResponse::Describe(response)) => response,
            other => panic!("no answer to a DescribeTransactions: {other:?}"),
        }
    }

    pub(crate) fn list(&mut self, request: ListTransactionsRequest) -> Vec<String> {
        let token = self.send(TransactionRequest::List(request));
        match self.reply(token) {
            Some(TransactionResponse::List(response)) => {
                response.transactions.into_iter().map(|listed| listed.transactional_id).collect()
            }
            other => panic!("no answer to a ListTransactions: {other:?}"),
        }
    }

    pub(crate) fn known(&self) -> &TransactionMetadata {
        self.shard.state().get(ID).unwrap()
    }

    pub(crate) fn status(&self) -> Status {
        self.known().status
    }

    /// A producer with an open transaction.
    pub(crate) fn open(&mut self) -> Producer {
        let producer = self.init(None).unwrap();
        assert_eq!(self.add(producer, &[0, 1]), ErrorCode::None);
        producer
    }

    /// A log in which the id has this epoch, without a transaction.
    pub(crate) fn with_epoch(epoch: i16, rules: Rules) -> Self {
        let mut context = Context::with(2, rules);
        context.init(None).unwrap();
        let metadata = TransactionMetadata { producer_epoch: ProducerEpoch(epoch), ..context.known().clone() };
        let fact = TransactionFact { transactional_id: ID.into(), metadata: Some(Box::new(metadata)) };
        context.log.push(fact.encode(2).unwrap());
        context.fail_over()
    }
}

pub(crate) fn producer(id: i64, epoch: i16) -> Producer {
    Producer { id: ProducerId(id), epoch: ProducerEpoch(epoch) }
}

pub(crate) fn partitions(partitions: &[i32]) -> PartitionSet {
    partitions.iter().map(|partition| ("t", PartitionIndex(*partition))).collect()
}

pub(crate) fn init_request(expected: Option<Producer>) -> TransactionRequest {
    init_request_of(ID, expected)
}

pub(crate) fn init_request_of(id: &str, expected: Option<Producer>) -> TransactionRequest {
    TransactionRequest::InitProducerId(InitProducerIdRequest {
        transactional_id: id.into(),
        timeout_ms: 60_000,
        expected,
    })
}

pub(crate) fn add_request(producer: Producer, added: &[i32], verify_only: bool) -> TransactionRequest {
    TransactionRequest::AddPartitions(AddPartitionsRequest {
        transactional_id: ID.into(),
        producer,
        partitions: partitions(added),
        verify_only,
        client_version: 0,
    })
}

pub(crate) fn end_request(producer: Producer, commit: bool, client_version: i16) -> TransactionRequest {
    TransactionRequest::EndTransaction(EndTransactionRequest {
        transactional_id: ID.into(),
        producer,
        commit,
        client_version,
    })
}
