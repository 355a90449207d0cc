//! What the log of one `__transaction_state` partition says. Changed by replaying facts, by nothing else.

use std::collections::{BTreeMap, BTreeSet};

use model::{PartitionIndex, ProducerEpoch, ProducerId, Time};

use super::EPOCH_BUMP_VERSION;
use super::record::TransactionFact;
use super::request::Producer;

/// Where a transactional id stands (`R45`). Kafka's Dead and PrepareEpochFence are never stored, and have no place here: an
/// id that expires is a tombstone, a fence is stored as PrepareAbort with the bumped epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "Kafka's names; the diagram stands above the module")]
pub enum Status {
    Empty,
    Ongoing,
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
}

impl Status {
    /// All of them, with Kafka's number and name.
    pub const ALL: [(Status, i8, &'static str); 6] = [
        (Status::Empty, 0, "Empty"),
        (Status::Ongoing, 1, "Ongoing"),
        (Status::PrepareCommit, 2, "PrepareCommit"),
        (Status::PrepareAbort, 3, "PrepareAbort"),
        (Status::CompleteCommit, 4, "CompleteCommit"),
        (Status::CompleteAbort, 5, "CompleteAbort"),
    ];

    /// Kafka's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().2
    }

    /// Kafka's number.
    #[must_use]
    pub fn code(self) -> i8 {
        self.entry().1
    }

    /// The status of a number; None for what is never stored.
    #[must_use]
    pub fn from_code(code: i8) -> Option<Status> {
        Status::ALL.into_iter().find(|(_, number, _)| *number == code).map(|(status, ..)| status)
    }

    /// Whether the outcome is decided and the markers are on their way.
    #[must_use]
    pub fn is_prepared(self) -> bool {
        matches!(self, Status::PrepareCommit | Status::PrepareAbort)
    }

    /// Whether no transaction is open and none is being ended.
    #[must_use]
    pub fn is_idle(self) -> bool {
        matches!(self, Status::Empty | Status::CompleteCommit | Status::CompleteAbort)
    }

    /// Whether `self` may follow `before` (`R45`).
    #[must_use]
    pub fn may_follow(self, before: Status) -> bool {
        match self {
            Status::Empty => before.is_idle(),
            Status::Ongoing => before == Status::Ongoing || before.is_idle(),
            Status::PrepareCommit => before == Status::Ongoing,
            Status::PrepareAbort => before == Status::Ongoing || before.is_idle(),
            Status::CompleteCommit => before == Status::PrepareCommit,
            Status::CompleteAbort => before == Status::PrepareAbort,
        }
    }

    fn entry(self) -> (Status, i8, &'static str) {
        match self {
            Status::Empty => Status::ALL[0],
            Status::Ongoing => Status::ALL[1],
            Status::PrepareCommit => Status::ALL[2],
            Status::PrepareAbort => Status::ALL[3],
            Status::CompleteCommit => Status::ALL[4],
            Status::CompleteAbort => Status::ALL[5],
        }
    }
}

/// Partitions by topic name, as a transaction's record names them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PartitionSet {
    topics: BTreeMap<String, BTreeSet<PartitionIndex>>,
}

impl PartitionSet {
    /// Adds one; says whether it was not there.
    pub fn insert(&mut self, topic: &str, partition: PartitionIndex) -> bool {
        match self.topics.get_mut(topic) {
            Some(partitions) => partitions.insert(partition),
            None => self.topics.entry(topic.to_owned()).or_default().insert(partition),
        }
    }

    /// Takes one out; says whether it was there.
    pub fn remove(&mut self, topic: &str, partition: PartitionIndex) -> bool {
        let Some(partitions) = self.topics.get_mut(topic) else { return false };
        let removed = partitions.remove(&partition);
        if partitions.is_empty() {
            self.topics.remove(topic);
        }
        removed
    }

    /// Whether it is there.
    #[must_use]
    pub fn contains(&self, topic: &str, partition: PartitionIndex) -> bool {
        self.topics.get(topic).is_some_and(|partitions| partitions.contains(&partition))
    }

    /// Whether all of `self` is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &PartitionSet) -> bool {
        self.iter().all(|(topic, partition)| other.contains(topic, partition))
    }

    /// Both together.
    #[must_use]
    pub fn union(&self, other: &PartitionSet) -> PartitionSet {
        let mut all = self.clone();
        for (topic, partition) in other.iter() {
            all.insert(topic, partition);
        }
        all
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, PartitionIndex)> {
        self.topics.iter().flat_map(|(topic, partitions)| partitions.iter().map(|p| (topic.as_str(), *p)))
    }

    /// The topics with their partitions, in order.
    pub fn topics(&self) -> impl Iterator<Item = (&String, &BTreeSet<PartitionIndex>)> {
        self.topics.iter()
    }
}

impl<T: AsRef<str>> FromIterator<(T, PartitionIndex)> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = (T, PartitionIndex)>>(partitions: I) -> Self {
        let mut set = PartitionSet::default();
        for (topic, partition) in partitions {
            set.insert(topic.as_ref(), partition);
        }
        set
    }
}

/// What is stored of one transactional id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TransactionMetadata {
    /// Its producer id.
    pub producer_id: ProducerId,
    /// The producer id before this change; the same one, unless this change brought a new one.
    pub previous_producer_id: ProducerId,
    /// The producer id that the transaction's completion brings, because the epochs of this one are used up (`R51`).
    pub next_producer_id: ProducerId,
    /// The epoch in force: whoever comes with a lower one is fenced.
    pub producer_epoch: ProducerEpoch,
    /// The epoch before, where its holder was told the present one: a repeated request is known by it (`R46`). It is not in
    /// the log: after a change of coordinator there is none, and such a request is fenced, as in Kafka.
    pub last_producer_epoch: ProducerEpoch,
    /// After how long an open transaction is aborted.
    pub timeout_ms: i32,
    /// Where it stands.
    pub status: Status,
    /// The partitions of the transaction.
    pub partitions: PartitionSet,
    /// When the transaction began, wall clock.
    pub started: Option<Time>,
    /// When this was written, wall clock.
    pub updated: Time,
    /// The transaction version of the client's last change.
    pub client_version: i16,
}

impl TransactionMetadata {
    /// Who holds the id.
    #[must_use]
    pub fn producer(&self) -> Producer {
        Producer { id: self.producer_id, epoch: self.producer_epoch }
    }

    /// Who holds the id once the transaction under way is completed.
    #[must_use]
    pub fn completed_producer(&self) -> Producer {
        if self.brings_new_id() {
            Producer { id: self.next_producer_id, epoch: ProducerEpoch(0) }
        } else {
            self.producer()
        }
    }

    /// Whether the completion changes the producer id.
    #[must_use]
    pub fn brings_new_id(&self) -> bool {
        self.client_version >= EPOCH_BUMP_VERSION && self.next_producer_id != ProducerId::NONE
    }

    /// Whether the producer may use no more epochs of its id: the last one is kept for fencing it.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        is_exhausted(self.producer_epoch)
    }
}

/// Whether no epoch follows that a producer may use.
#[must_use]
pub fn is_exhausted(epoch: ProducerEpoch) -> bool {
    epoch.0 >= i16::MAX - 1
}

/// Everything that the log says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TransactionState {
    ids: BTreeMap<String, TransactionMetadata>,
}

impl TransactionState {
    /// Applies one fact: later facts replace earlier ones of the same id, tombstones remove.
    pub fn replay(&mut self, fact: TransactionFact) {
        match fact.metadata {
            Some(metadata) => {
                self.ids.insert(fact.transactional_id, *metadata);
            }
            None => {
                self.ids.remove(&fact.transactional_id);
            }
        }
    }

    /// What is stored of an id.
    #[must_use]
    pub fn get(&self, transactional_id: &str) -> Option<&TransactionMetadata> {
        self.ids.get(transactional_id)
    }

    /// All ids.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &TransactionMetadata)> {
        self.ids.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
