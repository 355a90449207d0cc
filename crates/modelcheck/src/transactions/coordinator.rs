//! The coordinator's shell: what `broker::shards` and `broker::transaction_coordinator` do.

use coordinator::driver::Output;
use coordinator::transaction::request::{AddPartitionsRequest, EndTransactionRequest, InitProducerIdRequest};
use coordinator::transaction::{
    Status, TransactionEffect, TransactionMetadata, TransactionRequest, TransactionResponse,
};
use coordinator::{Now, Shard, Token};
use model::{ErrorCode, PartitionIndex, ProducerId};

use super::Scenario;
use super::world::{
    ID, InFlight, Message, NOW, TIMEOUT_MS, Tag, Transactions, Violation, Who, Work, loaded, producer, read, set_of,
    who,
};

impl Transactions {
    /// Takes out of the shard what it has to say.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.coordinator.shard.poll_output() {
            match output {
                Output::Reply { token, response } => self.answer(token, response),
                Output::Append { batch, records } => {
                    let record = records.into_iter().next().expect("a batch has records");
                    let next = read(&record);
                    // There is one id, and so one change at a time: whoever is not answered yet waits for it.
                    let cause = self.coordinator.asked.values().next().copied();
                    self.coordinator.in_flight = Some(InFlight { batch, record, next, cause });
                }
                Output::Effect(TransactionEffect::AllocateProducerId { transactional_id }) => {
                    let id = ProducerId(self.next_producer_id);
                    self.next_producer_id += 1;
                    self.coordinator.shard.producer_id_allocated(&transactional_id, Ok(id), NOW);
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
        self.coordinator.shard.handle(Token(token), request, 0, NOW);
        self.drain();
    }

    fn answer(&mut self, token: Token, response: TransactionResponse) {
        let Some(message) = self.coordinator.asked.remove(&token.0) else { return };
        if let Message::Verify { partition, guard, .. } = message {
            let TransactionResponse::AddPartitions(added) = &response else { return };
            let code = added.partitions.first().map_or(-1, |(_, _, error)| error.code());
            self.network.insert(Message::Verified { partition, guard, code });
            return;
        }
        if let (Message::Init { client, expected }, TransactionResponse::InitProducerId(granted)) = (message, &response)
            && granted.error == ErrorCode::None
        {
            self.granted(client, expected, who(granted.producer));
        }
        self.answers.push((message, response));
    }

    /// Whoever had the id before has lost it, and so has its transaction.
    fn granted(&mut self, to: u8, expected: Option<Who>, as_whom: Who) {
        let others = self.clients.iter().zip(0u8..).filter(|(_, number)| *number != to);
        let mut held = others.filter_map(|(client, _)| client.who);
        // Who says whom it believes to be, and is not that any more, must not get it back.
        if held.any(|held| held >= as_whom || expected.is_some_and(|expected| held > expected)) {
            let text = format!("client {to} got {as_whom:?} with {expected:?}: {:?}", self.clients);
            self.violate(Violation::ZombieGranted(text));
        }
        // A repeated answer changes nothing.
        let robbed = |client: &super::world::Client| client.who.is_some_and(|held| held != as_whom);
        let holders = self.clients.iter().zip(0u8..).filter(|(client, _)| robbed(client));
        let tags: Vec<Tag> = holders.map(|(client, number)| (number, client.transaction)).collect();
        self.doomed.extend(tags.into_iter().filter(|tag| self.decided.get(tag) != Some(&true)));
    }

    /// The coordinator gets a request.
    pub(crate) fn deliver_to_coordinator(&mut self, message: Message) {
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
                let client_version = if self.version_of(tag.0) >= 2 { 2 } else { 0 };
                let producer = producer(who);
                let request = EndTransactionRequest { transactional_id: id, producer, commit, client_version };
                self.ask(message, TransactionRequest::EndTransaction(request));
            }
            Message::Write { .. } | Message::Verified { .. } => {}
        }
    }

    /// What is in flight is committed, or refused.
    pub(crate) fn end_write(&mut self, stored: bool) {
        let Some(in_flight) = self.coordinator.in_flight.take() else { return };
        if stored {
            let batch = in_flight.batch;
            self.take(in_flight);
            self.coordinator.shard.committed(batch, NOW);
        } else {
            self.left.refusals -= 1;
            self.coordinator.shard.failed(in_flight.batch, ErrorCode::NotEnoughReplicas, NOW);
            // The completion that could not be stored is tried again.
            let later = NOW.monotonic + self.coordinator.shard.config().retry_ms;
            self.coordinator.shard.handle_timeout(Now { monotonic: later, ..NOW });
        }
        self.drain();
    }

    /// A record is in the log now.
    fn take(&mut self, in_flight: InFlight) {
        let InFlight { record, next, cause, .. } = in_flight;
        let before = self.coordinator.stored.take();
        if let Some(before) = &before
            && !next.status.may_follow(before.status)
        {
            self.violate(Violation::DecidedTwice(format!("{next:?} after {before:?}")));
        }
        if let Some(tag) = self.ended_by(&next, before.as_ref(), cause) {
            let commit = next.status == Status::PrepareCommit;
            if self.decided.insert(tag, commit).is_some_and(|before| before != commit) {
                self.violate(Violation::DecidedTwice(format!("{tag:?}: {next:?} after {before:?}")));
            }
        }
        (self.coordinator.log, self.coordinator.stored) = (Some(record), Some(next));
    }

    /// Whose transaction a record decides.
    fn ended_by(
        &self,
        next: &TransactionMetadata,
        before: Option<&TransactionMetadata>,
        cause: Option<Message>,
    ) -> Option<Tag> {
        if !next.status.is_prepared() {
            return None;
        }
        if let Some(Message::End { tag, .. }) = cause {
            return Some(tag);
        }
        let ended = before.map(|before| who(before.producer()));
        let mut clients = self.clients.iter().zip(0u8..);
        clients
            .find(|(client, _)| client.who.is_some() && client.who == ended)
            .map(|(client, at)| (at, client.transaction))
    }

    /// A transaction is open for longer than its producer wanted.
    pub(crate) fn time_out(&mut self, scenario: &Scenario) {
        self.left.timeouts -= 1;
        let times = u64::from(scenario.bounds.timeouts - self.left.timeouts);
        let late = u64::try_from(TIMEOUT_MS).expect("it is positive") + 1;
        let later = Now { monotonic: NOW.monotonic + 1_000 * times, wall: NOW.wall + late };
        self.coordinator.shard.handle_timeout(later);
        self.drain();
    }

    /// Another one leads the coordinator's partition; what was in flight is in the log, or not.
    pub(crate) fn move_coordinator(&mut self, kept: bool, scenario: &Scenario) {
        self.left.coordinators -= 1;
        let in_flight = self.coordinator.in_flight.take();
        self.coordinator.shard.unload(ErrorCode::NotCoordinator);
        self.drain();
        if let Some(in_flight) = in_flight.filter(|_| kept) {
            self.take(in_flight);
        }
        self.coordinator.epoch += 1;
        let unanswered = std::mem::take(&mut self.works);
        // Its requests are still on their way.
        let travels = |work: &Work, stands: Option<usize>| stands.is_none() || work.version >= 2;
        self.late.extend(unanswered.into_iter().filter(|(work, stands)| travels(work, *stands)).map(|(work, _)| work));
        self.coordinator.shard = loaded(self.coordinator.log.as_ref(), self.coordinator.epoch, scenario);
        self.coordinator.asked.clear();
        self.drain();
    }

    /// A marker stands where it should, safely.
    pub(crate) fn written(&mut self, work: Work) {
        self.works.remove(&work);
        if work.version >= 2 {
            self.late.insert(work);
        }
        self.coordinator.shard.markers_written(ID, producer(work.who), &set_of(work.partition), NOW);
        self.drain();
    }
}

fn small(partition: PartitionIndex) -> u8 {
    u8::try_from(partition.0).expect("few partitions")
}

fn addition(who: Who, partition: u8, verify_only: bool, client_version: i16) -> AddPartitionsRequest {
    let (producer, partitions) = (producer(who), set_of(partition));
    AddPartitionsRequest { transactional_id: ID.to_owned(), producer, partitions, verify_only, client_version }
}
