//! What is on its way to the log: batches in flight, and behind them a bounded queue that becomes the next ones.
//!
//! Facts of groups gather in the queue while one batch of them is in flight. What belongs to transactions (`R49`) is a batch
//! of its own in any case, so that it need not wait for those before it. Invariants: one batch of plain facts in flight at
//! most; not more bytes than fit one batch, but for a single one; whatever the order in which their ends become known,
//! batches are taken out in the order of the log.

use std::collections::{BTreeSet, VecDeque};

use model::{ErrorCode, PartitionIndex, Time};

use crate::classic::Stored;
use crate::config::GroupConfig;
use crate::consumer::ConsumerFact;
use crate::record::{CoordinatorRecord, Fact};
use crate::request::{GroupResponse, OffsetFetchRequest};
use crate::shard::{BatchNumber, Token};
use crate::state::CommittedOffset;
use crate::transaction::Marker;
use crate::transaction::request::Producer;

/// How much of the queue a marker takes.
const MARKER_BYTES: usize = 128;

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

/// What a batch is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Form {
    /// What its records say is so.
    Plain,
    /// It is part of a producer's transaction; `guard` is what the shell verified that with (`R50`).
    InTransaction { producer: Producer, guard: Option<u64> },
    /// It ends a transaction.
    End(Marker),
}

/// A part of a decision's facts that fits a batch; the last part has who waits for the whole.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Operation {
    decision: u64,
    form: Form,
    /// What is to be stored. Nothing for a fetch that waits, and for a marker.
    pub(crate) facts: Vec<Fact>,
    records: Vec<CoordinatorRecord>,
    bytes: usize,
    pub(crate) waiting: Option<Waiting>,
    deadline: Time,
    /// The group that an answer without facts is about: it tells of what was decided before.
    about: Option<String>,
}

impl Operation {
    /// Whether it only waits for what is before it.
    fn is_barrier(&self) -> bool {
        self.form == Form::Plain && self.facts.is_empty()
    }

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

/// A batch on its way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct InFlight {
    number: BatchNumber,
    form: Form,
    bytes: usize,
    operations: Vec<Operation>,
    /// What became of it, once that is known.
    outcome: Option<Result<(), ErrorCode>>,
}

/// A batch of which it is known what became of it, and whose turn it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Resolved {
    pub(crate) form: Form,
    /// Where it failed, with what is queued of decisions that had a part in it: half a decision is not stored.
    pub(crate) operations: Vec<Operation>,
    pub(crate) outcome: Result<(), ErrorCode>,
}

/// The batches in flight and the queue behind them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Writes {
    in_flight: VecDeque<InFlight>,
    queue: VecDeque<Operation>,
    queued_bytes: usize,
    decisions: u64,
    batches: u64,
}

impl Writes {
    /// Queues a decision, or a marker, which has no facts. Gives it back where a fact cannot be written, or the queue is full.
    pub(crate) fn push(
        &mut self,
        (form, facts): (Form, Vec<Fact>),
        waiting: Option<Waiting>,
        deadline: Time,
        config: &GroupConfig,
    ) -> Result<(), (Box<Operation>, ErrorCode)> {
        self.decisions += 1;
        let mut operation = Operation {
            decision: self.decisions,
            form,
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
        operation.bytes = match form {
            Form::End(_) => MARKER_BYTES,
            Form::Plain | Form::InTransaction { .. } => {
                operation.records.iter().map(CoordinatorRecord::batch_bytes).sum()
            }
        };
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
        let form = Form::Plain;
        self.queue.push_back(Operation { decision, form, facts, records, bytes: 0, waiting, deadline, about });
    }

    /// Those who wait for nothing but writes, and before whom none stands any more.
    pub(crate) fn take_leading_barriers(&mut self) -> Vec<Waiting> {
        let mut done = Vec::new();
        while self.in_flight.is_empty() && self.queue.front().is_some_and(Operation::is_barrier) {
            done.extend(self.queue.pop_front().and_then(|operation| operation.waiting));
        }
        done
    }

    /// Sends the next batch on its way, where it need not wait for those before it.
    pub(crate) fn cut_batch(&mut self, max_bytes: usize) -> Option<(BatchNumber, Form, Vec<CoordinatorRecord>)> {
        let form = self.queue.front().filter(|next| self.may_go(next, max_bytes))?.form;
        let mut operations = Vec::new();
        let mut records = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.queue.front() {
            let joins = next.is_barrier() || (next.form == form && !matches!(form, Form::End(_)));
            if !operations.is_empty() && (!joins || bytes + next.bytes > max_bytes) {
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
        let number = BatchNumber(self.batches);
        self.in_flight.push_back(InFlight { number, form, bytes, operations, outcome: None });
        Some((number, form, records))
    }

    fn may_go(&self, next: &Operation, max_bytes: usize) -> bool {
        if self.in_flight.is_empty() {
            return true;
        }
        let bytes: usize = self.in_flight.iter().map(|batch| batch.bytes).sum();
        let behind_its_like = next.form == Form::Plain && self.in_flight.iter().any(|batch| batch.form == Form::Plain);
        !next.is_barrier() && !behind_its_like && bytes + next.bytes <= max_bytes
    }

    /// It is known what became of a batch. A shell may speak of one of a shard that was unloaded.
    pub(crate) fn resolve(&mut self, batch: BatchNumber, outcome: Result<(), ErrorCode>) {
        if let Some(resolved) = self.in_flight.iter_mut().find(|in_flight| in_flight.number == batch) {
            resolved.outcome = Some(outcome);
        }
    }

    /// The first batch, if it is known what became of it.
    pub(crate) fn take_resolved(&mut self) -> Option<Resolved> {
        let outcome = self.in_flight.front()?.outcome?;
        let InFlight { form, mut operations, .. } = self.in_flight.pop_front()?;
        if let (Err(_), Some(decision)) = (outcome, operations.last().map(|operation| operation.decision)) {
            while self.queue.front().is_some_and(|operation| operation.decision == decision) {
                operations.extend(self.pop());
            }
        }
        Some(Resolved { form, operations, outcome })
    }

    /// Who has waited too long. What is queued is given up with them; what is in flight may still be committed.
    pub(crate) fn take_overdue(&mut self, now: Time) -> Overdue {
        let mut overdue = Overdue::default();
        let in_flight = self.in_flight.iter_mut().flat_map(|batch| &mut batch.operations);
        for operation in in_flight.filter(|o| o.waiting.is_some() && o.deadline <= now) {
            overdue.in_flight.push(Operation { waiting: operation.waiting.take(), ..operation.clone() });
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
        let mut all: Vec<Operation> = self.in_flight.drain(..).flat_map(|batch| batch.operations).collect();
        all.extend(self.queue.drain(..));
        self.queued_bytes = 0;
        all
    }

    /// When somebody will have waited too long. All wait for the same time, so that the first of them is the one: this is
    /// asked with every request, and there may be thousands.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let mut in_flight = self.in_flight.iter().flat_map(|batch| &batch.operations);
        let waiting = in_flight.find(|operation| operation.waiting.is_some());
        waiting.or(self.queue.front()).map(|operation| operation.deadline)
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

    /// The offsets on their way, in transactions or not: group, topic, partition, and the offset or a tombstone.
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
        self.in_flight.iter().flat_map(|batch| &batch.operations).chain(&self.queue)
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
    let Operation { decision, form, facts, records, waiting, deadline, .. } = operation;
    let empty = || {
        let (facts, records) = (Vec::new(), Vec::new());
        Operation { decision, form, facts, records, bytes: 0, waiting: None, deadline, about: None }
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
