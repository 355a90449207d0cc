//! What is on its way to the log: one batch in flight, and behind it a bounded queue that becomes the next ones.

use std::collections::{BTreeSet, VecDeque};

use model::{ErrorCode, PartitionIndex, Time};

use crate::classic::Stored;
use crate::config::GroupConfig;
use crate::consumer::ConsumerFact;
use crate::record::{CoordinatorRecord, Fact};
use crate::request::{GroupResponse, OffsetFetchRequest};
use crate::shard::{BatchNumber, Token};
use crate::state::CommittedOffset;

/// Who waits for a write.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Waiting {
    /// A request, with the answer for success.
    Reply(Token, GroupResponse),
    /// A fetch that wants to see all writes before it.
    Fetch(Token, OffsetFetchRequest),
    /// The members of the group that the facts are about.
    Group(Stored),
}

impl Waiting {
    /// The group whose members wait, by the facts that they wait for.
    pub(crate) fn group_id(&self, facts: &[Fact]) -> Option<String> {
        match self {
            Waiting::Group(_) => facts.first().map(|fact| fact.group_id().to_owned()),
            Waiting::Reply(..) | Waiting::Fetch(..) => None,
        }
    }
}

/// A part of a decision's facts that fits a batch; the last part has who waits for the whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Operation {
    decision: u64,
    /// What is to be stored. Nothing for a fetch that waits.
    pub(crate) facts: Vec<Fact>,
    records: Vec<CoordinatorRecord>,
    bytes: usize,
    pub(crate) waiting: Option<Waiting>,
    deadline: Time,
    /// The group that an answer without facts is about: it tells of what was decided before.
    about: Option<String>,
}

impl Operation {
    /// Whether it was decided on what earlier operations of a consumer group, or of one that changes its kind, decided.
    fn depends_on(&self, group_id: &str) -> bool {
        let decided = |fact: &Fact| match fact {
            Fact::Consumer { group_id: id, .. } | Fact::Group { group_id: id, .. } => id == group_id,
            Fact::Offset { .. } => false,
        };
        self.about.as_deref() == Some(group_id) || self.facts.iter().any(decided)
    }

    /// The consumer group that it changes.
    pub(crate) fn consumer_group(&self) -> Option<&str> {
        self.facts.iter().find_map(|fact| match fact {
            Fact::Consumer { group_id, .. } => Some(group_id.as_str()),
            Fact::Group { .. } | Fact::Offset { .. } => None,
        })
    }
}

/// Who has waited too long.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Overdue {
    /// Those whose facts are in flight, and may still be committed.
    pub(crate) in_flight: Vec<Operation>,
    /// Those whose facts are given up with them.
    pub(crate) given_up: Vec<Operation>,
}

/// The batch in flight and the queue behind it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Writes {
    in_flight: Option<(BatchNumber, Vec<Operation>)>,
    queue: VecDeque<Operation>,
    queued_bytes: usize,
    decisions: u64,
    batches: u64,
}

impl Writes {
    /// Queues a decision. Gives it back where a fact cannot be written, or the queue is full.
    pub(crate) fn push(
        &mut self,
        facts: Vec<Fact>,
        waiting: Option<Waiting>,
        deadline: Time,
        config: &GroupConfig,
    ) -> Result<(), (Box<Operation>, ErrorCode)> {
        self.decisions += 1;
        let mut operation = Operation {
            decision: self.decisions,
            facts,
            records: Vec::new(),
            bytes: 0,
            waiting,
            deadline,
            about: None,
        };
        match operation.facts.iter().map(Fact::encode).collect::<Result<Vec<_>, _>>() {
            Ok(records) => operation.records = records,
            Err(_) => return Err((Box::new(operation), ErrorCode::UnknownServerError)),
        }
        operation.bytes = operation.records.iter().map(CoordinatorRecord::batch_bytes).sum();
        // A decision larger than the whole queue is let in alone: it cannot be made smaller by waiting.
        if self.queued_bytes > 0 && self.queued_bytes.saturating_add(operation.bytes) > config.max_queued_bytes {
            return Err((Box::new(operation), ErrorCode::CoordinatorNotAvailable));
        }
        for part in split(operation, config.max_batch_bytes) {
            self.queued_bytes += part.bytes;
            self.queue.push_back(part);
        }
        Ok(())
    }

    /// Queues a fetch behind all writes.
    pub(crate) fn push_barrier(&mut self, token: Token, request: OffsetFetchRequest, deadline: Time) {
        self.push_waiting(Waiting::Fetch(token, request), None, deadline);
    }

    /// Queues an answer behind all writes: it tells of what they decide about a group.
    pub(crate) fn push_answer(&mut self, token: Token, response: GroupResponse, about: &str, deadline: Time) {
        self.push_waiting(Waiting::Reply(token, response), Some(about.to_owned()), deadline);
    }

    fn push_waiting(&mut self, waiting: Waiting, about: Option<String>, deadline: Time) {
        self.decisions += 1;
        let (decision, facts, records, waiting) = (self.decisions, Vec::new(), Vec::new(), Some(waiting));
        self.queue.push_back(Operation { decision, facts, records, bytes: 0, waiting, deadline, about });
    }

    /// Those who wait for nothing but writes, and before whom none stands any more.
    pub(crate) fn take_leading_barriers(&mut self) -> Vec<Waiting> {
        let mut done = Vec::new();
        while self.in_flight.is_none() && self.queue.front().is_some_and(|operation| operation.facts.is_empty()) {
            done.extend(self.queue.pop_front().and_then(|operation| operation.waiting));
        }
        done
    }

    /// Sends the next batch on its way, where none is.
    pub(crate) fn cut_batch(&mut self, max_bytes: usize) -> Option<(BatchNumber, Vec<CoordinatorRecord>)> {
        if self.in_flight.is_some() || self.queue.is_empty() {
            return None;
        }
        let mut operations = Vec::new();
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queue.front() {
            if !records.is_empty() && bytes + next.bytes > max_bytes {
                break;
            }
            bytes += next.bytes;
            if let Some(mut operation) = self.queue.pop_front() {
                records.append(&mut operation.records);
                operations.push(operation);
            }
        }
        self.queued_bytes -= bytes;
        self.batches += 1;
        let batch = BatchNumber(self.batches);
        self.in_flight = Some((batch, operations));
        Some((batch, records))
    }

    /// The batch in flight, if it is this one: a shell may speak of a batch of a shard that was unloaded.
    pub(crate) fn take_batch(&mut self, batch: BatchNumber) -> Vec<Operation> {
        self.in_flight.take_if(|(number, _)| *number == batch).map(|(_, operations)| operations).unwrap_or_default()
    }

    /// The batch in flight, and what is queued of decisions that had a part in it: half a decision is not stored.
    pub(crate) fn take_failed_batch(&mut self, batch: BatchNumber) -> Vec<Operation> {
        let mut failed = self.take_batch(batch);
        if let Some(decision) = failed.last().map(|operation| operation.decision) {
            while self.queue.front().is_some_and(|operation| operation.decision == decision) {
                failed.extend(self.pop());
            }
        }
        failed
    }

    /// Who has waited too long. What is queued is given up with them; what is in flight may still be committed.
    pub(crate) fn take_overdue(&mut self, now: Time) -> Overdue {
        let mut overdue = Overdue::default();
        if let Some((_, operations)) = &mut self.in_flight {
            for operation in operations.iter_mut().filter(|o| o.waiting.is_some() && o.deadline <= now) {
                overdue.in_flight.push(Operation { waiting: operation.waiting.take(), ..operation.clone() });
            }
        }
        while self.queue.front().is_some_and(|operation| operation.deadline <= now) {
            overdue.given_up.extend(self.pop());
        }
        overdue
    }

    /// What is queued and was decided on earlier facts of this group that are not to be.
    pub(crate) fn take_dependent(&mut self, group_id: &str) -> Vec<Operation> {
        let (doomed, rest): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|o| o.depends_on(group_id));
        self.queue.extend(rest);
        self.queued_bytes -= doomed.iter().map(|operation| operation.bytes).sum::<usize>();
        doomed
    }

    /// The facts of a consumer group that are on their way, in order.
    pub(crate) fn consumer_facts(&self, group_id: &str) -> impl Iterator<Item = &ConsumerFact> {
        self.facts().filter_map(move |fact| match fact {
            Fact::Consumer { group_id: id, fact } if id == group_id => Some(fact),
            Fact::Consumer { .. } | Fact::Group { .. } | Fact::Offset { .. } => None,
        })
    }

    /// Everything, for a shard that ends.
    pub(crate) fn take_all(&mut self) -> Vec<Operation> {
        let mut all = self.in_flight.take().map(|(_, operations)| operations).unwrap_or_default();
        all.extend(self.queue.drain(..));
        self.queued_bytes = 0;
        all
    }

    /// When somebody will have waited too long.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let in_flight = self.in_flight.iter().flat_map(|(_, operations)| operations);
        let waiting = in_flight.filter(|operation| operation.waiting.is_some());
        waiting.map(|operation| operation.deadline).chain(self.queue.front().map(|next| next.deadline)).min()
    }

    /// Whether something of this group is on its way.
    pub(crate) fn touch(&self, group_id: &str) -> bool {
        self.facts().any(|fact| fact.group_id() == group_id)
    }

    /// The groups of which something is on its way.
    pub(crate) fn groups_touched(&self) -> BTreeSet<String> {
        self.facts().map(|fact| fact.group_id().to_owned()).collect()
    }

    /// The groups whose members wait for a write.
    pub(crate) fn groups_waiting(&self) -> BTreeSet<&str> {
        let waiting = self.operations().filter(|o| matches!(o.waiting, Some(Waiting::Group(_))));
        waiting.filter_map(|operation| operation.facts.first()).map(Fact::group_id).collect()
    }

    /// The offsets on their way: group, topic, partition, and the offset or a tombstone.
    pub(crate) fn offsets_under_way(
        &self,
    ) -> impl Iterator<Item = (&str, &str, PartitionIndex, Option<&CommittedOffset>)> {
        self.facts().filter_map(|fact| match fact {
            Fact::Offset { group_id, topic, partition, committed } => {
                Some((group_id.as_str(), topic.as_str(), *partition, committed.as_ref()))
            }
            Fact::Group { .. } | Fact::Consumer { .. } => None,
        })
    }

    fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.in_flight.iter().flat_map(|(_, operations)| operations).chain(&self.queue)
    }

    fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.operations().flat_map(|operation| &operation.facts)
    }

    fn pop(&mut self) -> Option<Operation> {
        let operation = self.queue.pop_front()?;
        self.queued_bytes -= operation.bytes;
        Some(operation)
    }
}

/// Cuts a decision into parts that fit a batch. Parts of one decision stay in order and without others between them.
fn split(operation: Operation, max_bytes: usize) -> Vec<Operation> {
    if operation.bytes <= max_bytes {
        return vec![operation];
    }
    let Operation { decision, facts, records, waiting, deadline, .. } = operation;
    let empty = || {
        let (facts, records) = (Vec::new(), Vec::new());
        Operation { decision, facts, records, bytes: 0, waiting: None, deadline, about: None }
    };
    let mut parts = vec![empty()];
    for (fact, record) in facts.into_iter().zip(records) {
        let bytes = record.batch_bytes();
        if parts.last().is_some_and(|part| part.bytes > 0 && part.bytes + bytes > max_bytes) {
            parts.push(empty());
        }
        if let Some(part) = parts.last_mut() {
            part.facts.push(fact);
            part.records.push(record);
            part.bytes += bytes;
        }
    }
    if let Some(last) = parts.last_mut() {
        last.waiting = waiting;
    }
    parts
}
