//! The coordinator's shell, the leaders of partitions, and the clients: what each does with what it gets.

use coordinator::driver::Output;
use coordinator::transaction::request::{AddPartitionsRequest, EndTransactionRequest, InitProducerIdRequest};
use coordinator::transaction::{PartitionSet, TransactionEffect, TransactionRequest, TransactionResponse};
use coordinator::{Shard, Token};
use model::{EndMarker, ErrorCode, Offset, PartitionIndex, ProducerEpoch, ProducerId, Rules, Time};
use replication::producers::{BatchKind, MarkerClaim, ProducerBatch, SequenceCheck, VerificationGuard};

use super::Scenario;
use super::world::{
    Entry, ID, Message, Part, TIMEOUT_MS, TOPIC, Tag, Transactions, Violation, Who, Work, Write, producer, who,
};

fn offset(at: usize) -> Offset {
    Offset(i64::try_from(at).expect("a short log"))
}

/// What the table is to hear of an entry at `at`.
fn batch(at: usize, entry: Entry) -> ProducerBatch {
    let (sequence, kind) = match entry {
        Entry::Data { sequence, .. } => (sequence, BatchKind::Transactional),
        Entry::Marker { commit, coordinator_epoch, .. } => {
            (-1, BatchKind::Marker(EndMarker { commit, coordinator_epoch }))
        }
    };
    ProducerBatch {
        producer_id: ProducerId(entry.who().0),
        producer_epoch: ProducerEpoch(entry.who().1),
        first_sequence: sequence,
        last_sequence: sequence,
        base_offset: offset(at),
        last_offset: offset(at),
        timestamp: Time(1),
        kind,
    }
}

/// What to do with a record.
enum Checked {
    Append,
    /// It stands there already.
    Duplicate,
    Unverified,
}

impl Part {
    /// The table hears of what stands at `at`.
    pub(crate) fn note(&mut self, at: usize, entry: Entry) {
        let batch = batch(at, entry);
        // Whether it is in the index of aborted ones is the log's business.
        let _ = self.table.append(&batch);
    }

    pub(crate) fn stabilise(&mut self) {
        self.table.stabilise(offset(self.high_watermark));
    }

    fn append(&mut self, entry: Entry) -> usize {
        let at = self.log.len();
        self.log.push(entry);
        self.note(at, entry);
        at
    }

    /// As a partition does before it appends.
    fn check(&self, entry: Entry, guard: Option<u64>, rules: Rules) -> Result<Checked, ErrorCode> {
        let batch = batch(self.log.len(), entry);
        if let SequenceCheck::Duplicate { .. } = self.table.check(&batch, rules)? {
            return Ok(Checked::Duplicate);
        }
        let guard = guard.map(VerificationGuard::of_number);
        match self.table.check_verified(batch.producer_id, batch.producer_epoch, guard, rules) {
            Ok(()) => Ok(Checked::Append),
            // The coordinator has not been asked yet.
            Err(_) if guard.is_none() => Ok(Checked::Unverified),
            Err(error) => Err(error),
        }
    }
}

/// The coordinator.
impl Transactions {
    /// Takes out of the shard what it has to say.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.coordinator.shard.poll_output() {
            match output {
                Output::Reply { token, response } => self.answer(token, response),
                Output::Append { batch, records } => self.coordinator.in_flight = Some((batch, records)),
                Output::Effect(TransactionEffect::AllocateProducerId { transactional_id }) => {
                    let id = ProducerId(self.next_producer_id);
                    self.next_producer_id += 1;
                    self.coordinator.shard.producer_id_allocated(&transactional_id, Ok(id), self.now);
                }
                Output::Effect(TransactionEffect::WriteMarkers { marker, partitions, .. }) => {
                    let works = partitions.iter().map(|(_, partition)| Work::of(&marker, small(partition)));
                    self.works.extend(works.map(|work| (work, None)));
                }
                Output::AppendInTransaction { .. } | Output::AppendMarker { .. } => {
                    self.violate(Violation::Panicked("a transaction's shard writes in transactions".to_owned()));
                }
            }
        }
    }

    fn ask(&mut self, message: Message, request: TransactionRequest) {
        let token = (0..).find(|token| !self.coordinator.asked.contains_key(token)).expect("there is always one");
        self.coordinator.asked.insert(token, message);
        self.coordinator.shard.handle(Token(token), request, 0, self.now);
    }

    fn answer(&mut self, token: Token, response: TransactionResponse) {
        let Some(message) = self.coordinator.asked.remove(&token.0) else { return };
        if let Message::Verify { partition, leadership, guard, .. } = message {
            let TransactionResponse::AddPartitions(added) = &response else { return };
            let code = added.partitions.first().map_or(-1, |(_, _, error)| error.code());
            self.network.insert(Message::Verified { partition, leadership, guard, code });
            return;
        }
        if let (Message::Init { client, expected }, TransactionResponse::InitProducerId(granted)) = (message, &response)
            && granted.error == ErrorCode::None
        {
            self.granted(client, expected, who(granted.producer));
        }
        self.answers.push((message, response));
    }

    /// Whoever had the id before has lost it.
    fn granted(&mut self, to: u8, expected: Option<Who>, as_whom: Who) {
        let newer = |who: Who| who >= as_whom;
        let others = self.clients.iter().zip(0u8..).filter(|(_, number)| *number != to);
        let robbed = others.filter_map(|(client, _)| client.who).any(newer);
        // Who says whom it believes to be, and is not that any more, must not get it back.
        let successor = expected.is_some_and(|expected| {
            let holds = |who: Who| who > expected;
            let others = self.clients.iter().zip(0u8..).filter(|(_, number)| *number != to);
            others.filter_map(|(client, _)| client.who).any(holds)
        });
        if robbed || successor {
            let text = format!("client {to} got {as_whom:?} with {expected:?}: {:?}", self.clients);
            self.violate(Violation::ZombieGranted(text));
        }
        let holders = self.clients.iter().zip(0u8..).filter(|(client, _)| client.who.is_some());
        let tags: Vec<Tag> = holders.map(|(client, number)| (number, client.transaction)).collect();
        let doomed: Vec<Tag> = tags.into_iter().filter(|tag| !self.is_committed(*tag)).collect();
        self.doomed.extend(doomed);
    }

    /// The coordinator's partition gets a request.
    pub(crate) fn deliver(&mut self, message: Message, scenario: &Scenario) {
        let id = ID.to_owned();
        match message {
            Message::Init { expected, .. } => {
                let expected = expected.map(producer);
                let request = InitProducerIdRequest { transactional_id: id, timeout_ms: TIMEOUT_MS, expected };
                self.ask(message, TransactionRequest::InitProducerId(request));
            }
            Message::Add { who, partition, .. } => {
                self.ask(message, TransactionRequest::AddPartitions(addition(who, partition, false, 0)));
            }
            Message::Verify { who, partition, add, .. } => {
                let version = if add { 2 } else { 0 };
                self.ask(message, TransactionRequest::AddPartitions(addition(who, partition, !add, version)));
            }
            Message::End { tag, commit, who } => {
                let client_version = if self.clients[usize::from(tag.0)].version >= 2 { 2 } else { 0 };
                let producer = producer(who);
                let request = EndTransactionRequest { transactional_id: id, producer, commit, client_version };
                self.ask(message, TransactionRequest::EndTransaction(request));
            }
            Message::Produce { partition, .. } => self.produce(usize::from(partition), message, scenario.rules),
            Message::Verified { partition, leadership, guard, code } => {
                self.verified(usize::from(partition), leadership, guard, code, scenario.rules);
            }
        }
    }
}

fn small(partition: PartitionIndex) -> u8 {
    u8::try_from(partition.0).expect("few partitions")
}

fn addition(who: Who, partition: u8, verify_only: bool, client_version: i16) -> AddPartitionsRequest {
    let partitions: PartitionSet = [(TOPIC, PartitionIndex(partition.into()))].into_iter().collect();
    let producer = producer(who);
    AddPartitionsRequest { transactional_id: ID.to_owned(), producer, partitions, verify_only, client_version }
}

/// The leaders.
impl Transactions {
    fn produce(&mut self, at: usize, message: Message, rules: Rules) {
        let Message::Produce { who, version, partition, .. } = message else { return };
        let entry = entry_of(message);
        let part = &mut self.parts[at];
        match part.check(entry, None, rules) {
            Ok(Checked::Duplicate) => self.replicated(at),
            Ok(Checked::Append) => {
                part.append(entry);
            }
            Err(error) => self.refused(message, error),
            Ok(Checked::Unverified) => {
                let guard = part.table.start_verification(ProducerId(who.0)).number();
                part.waiting.insert(guard, message);
                let (leadership, add) = (part.leadership, version >= 2);
                self.network.insert(Message::Verify { who, partition, leadership, guard, add });
            }
        }
    }

    fn verified(&mut self, at: usize, leadership: u8, guard: u64, code: i16, rules: Rules) {
        let part = &mut self.parts[at];
        if part.leadership != leadership {
            return;
        }
        let Some(message) = part.waiting.remove(&guard) else { return };
        let entry = entry_of(message);
        let checked = match ErrorCode::from_code(code) {
            ErrorCode::None => part.check(entry, Some(guard), rules),
            error => Err(error),
        };
        part.table.end_verification(ProducerId(entry.who().0), VerificationGuard::of_number(guard));
        match checked {
            Ok(Checked::Duplicate) => self.replicated(at),
            Ok(Checked::Append) => {
                part.append(entry);
            }
            Ok(Checked::Unverified) => unreachable!("it has a guard"),
            Err(error) => {
                self.unverified += 1;
                self.refused(message, error);
            }
        }
    }

    /// Tries a marker once.
    pub(crate) fn mark(&mut self, work: Work, scenario: &Scenario) {
        match self.append_marker(work, scenario) {
            Ok(at) => {
                self.works.insert(work, Some(at));
            }
            Err(error) => {
                let part = &self.parts[usize::from(work.partition)];
                let text = format!("{work:?} is refused with {error:?} at {:?}", part.log);
                self.violate(Violation::NeverEnds(text));
            }
        }
    }

    pub(crate) fn append_marker(&mut self, work: Work, scenario: &Scenario) -> Result<usize, ErrorCode> {
        let claim = MarkerClaim {
            producer_id: ProducerId(work.who.0),
            producer_epoch: ProducerEpoch(work.who.1),
            coordinator_epoch: work.coordinator_epoch,
            transaction_version: i8::try_from(work.version).expect("a version"),
        };
        let part = &mut self.parts[usize::from(work.partition)];
        part.table.check_marker(&claim, scenario.rules)?;
        let Work { who, commit, coordinator_epoch, .. } = work;
        Ok(part.append(Entry::Marker { who, commit, coordinator_epoch }))
    }

    pub(crate) fn replicate(&mut self, partition: u8, scenario: &Scenario) {
        let at = usize::from(partition);
        let part = &mut self.parts[at];
        part.high_watermark = part.log.len();
        part.stabilise();
        self.replicated(at);
        let covered = |(work, stands): &(&Work, &Option<usize>)| work.partition == partition && stands.is_some();
        let done: Vec<Work> = self.works.iter().filter(covered).map(|(work, _)| *work).collect();
        for work in done {
            self.works.remove(&work);
            if work.version >= 2 && scenario.bounds.copies > 0 {
                self.late.insert(work);
            }
            let written: PartitionSet = [(TOPIC, PartitionIndex(partition.into()))].into_iter().collect();
            self.coordinator.shard.markers_written(ID, producer(work.who), &written, self.now);
        }
    }

    /// Clients hear of their records below the high watermark.
    fn replicated(&mut self, at: usize) {
        let part = &self.parts[at];
        for entry in &part.log[..part.high_watermark] {
            let Entry::Data { tag, .. } = entry else { continue };
            let client = &mut self.clients[usize::from(tag.0)];
            if client.transaction == tag.1 && client.writes[at] == Write::Sent {
                client.writes[at] = Write::Acked;
                client.sequences[at] += 1;
            }
        }
    }
}

fn entry_of(message: Message) -> Entry {
    match message {
        Message::Produce { who, sequence, tag, .. } => Entry::Data { who, sequence, tag },
        _ => unreachable!("only records wait"),
    }
}

/// The clients.
impl Transactions {
    /// A record is refused.
    fn refused(&mut self, message: Message, error: ErrorCode) {
        let Message::Produce { tag, partition, .. } = message else { return };
        let client = &mut self.clients[usize::from(tag.0)];
        let write = &mut client.writes[usize::from(partition)];
        if client.transaction != tag.1 || *write != Write::Sent {
            return;
        }
        match error {
            ErrorCode::ConcurrentTransactions
            | ErrorCode::NotCoordinator
            | ErrorCode::CoordinatorNotAvailable
            | ErrorCode::CoordinatorLoadInProgress => *write = Write::Unsent,
            ErrorCode::InvalidProducerEpoch | ErrorCode::ProducerFenced | ErrorCode::InvalidProducerIdMapping => {
                client.fenced = true;
            }
            // The transaction is to be aborted.
            _ => *write = Write::Refused,
        }
    }

    /// A client hears an answer that it still waits for.
    pub(crate) fn hear(&mut self, message: Message, response: &TransactionResponse) {
        let me = match message {
            Message::Init { client, .. } | Message::Add { client, .. } => client,
            Message::End { tag, .. } => tag.0,
            _ => return,
        };
        if self.clients[usize::from(me)].expecting != Some(message) {
            return;
        }
        let (error, given) = match response {
            TransactionResponse::InitProducerId(granted) => (granted.error, granted.producer),
            TransactionResponse::EndTransaction(ended) => (ended.error, ended.producer),
            TransactionResponse::AddPartitions(added) => {
                let error = added.partitions.first().map_or(ErrorCode::UnknownServerError, |(_, _, error)| *error);
                (error, coordinator::transaction::request::Producer::NONE)
            }
            TransactionResponse::Describe(_) | TransactionResponse::List(_) => return,
        };
        let given = Some(who(given)).filter(|who| who.0 >= 0);
        match (error, message) {
            (ErrorCode::None, Message::Init { .. }) => self.clients[usize::from(me)].begin(given),
            (ErrorCode::None, Message::Add { partition, .. }) => {
                self.clients[usize::from(me)].added[usize::from(partition)] = true;
            }
            (ErrorCode::None, Message::End { tag, commit, .. }) => {
                self.told.insert(tag, commit);
                self.clients[usize::from(me)].begin(given);
            }
            (error, _) if is_retriable(error) => {
                // An end is asked for again until its outcome is known.
                if !matches!(message, Message::End { .. }) {
                    self.clients[usize::from(me)].expecting = None;
                }
                return;
            }
            _ => self.clients[usize::from(me)].fenced = true,
        }
        self.clients[usize::from(me)].expecting = None;
    }
}

fn is_retriable(error: ErrorCode) -> bool {
    matches!(
        error,
        ErrorCode::ConcurrentTransactions
            | ErrorCode::NotCoordinator
            | ErrorCode::CoordinatorNotAvailable
            | ErrorCode::CoordinatorLoadInProgress
    )
}

impl super::world::Client {
    /// The next transaction, in another epoch where there is one.
    fn begin(&mut self, given: Option<Who>) {
        if self.who.is_some() {
            self.transaction += 1;
        }
        self.added.fill(false);
        self.writes.fill(Write::Unsent);
        if let Some(who) = given.filter(|given| self.who != Some(*given)) {
            self.who = Some(who);
            self.sequences.fill(0);
        }
    }
}
