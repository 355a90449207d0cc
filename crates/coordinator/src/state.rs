//! What the log of one `__consumer_offsets` partition says: groups and offsets. Changed by replaying, by nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{LeaderEpoch, Offset, PartitionIndex, ProducerId, Rule, Rules, Time, TopicId};

use crate::consumer::{ConsumerFact, ConsumerGroup};
use crate::pending::{OffsetKey, PendingOffsets};
use crate::record::Fact;

/// A stored offset.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: Offset,
    /// The leader epoch of the last record read, or NONE.
    pub leader_epoch: LeaderEpoch,
    /// The consumer's own words.
    pub metadata: String,
    /// When it was committed, wall clock.
    pub commit_timestamp: Time,
    /// When it expires, where an old client said so; else the group's retention decides.
    pub expire_timestamp: Option<Time>,
    /// The topic's id, or NONE where it was not known.
    pub topic_id: TopicId,
}

/// One member of a stored generation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MemberMetadata {
    /// Its static id (`R54`).
    pub group_instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// How long it needs to rejoin.
    pub rebalance_timeout_ms: u64,
    /// How long it may be silent.
    pub session_timeout_ms: u64,
    /// Its subscription in the protocol chosen.
    pub subscription: Bytes,
    /// Its assignment.
    pub assignment: Bytes,
}

/// A stored generation of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupMetadata {
    /// `consumer` …
    pub protocol_type: String,
    /// Its number.
    pub generation_id: i32,
    /// The protocol chosen; None in an empty group.
    pub protocol: Option<String>,
    /// The leader's member id; None in an empty group.
    pub leader: Option<String>,
    /// When the group entered its state, wall clock.
    pub current_state_timestamp: Option<Time>,
    /// The members by id.
    pub members: BTreeMap<String, MemberMetadata>,
}

/// The offsets of one group: by topic name, then by partition.
pub type GroupOffsets = BTreeMap<String, BTreeMap<PartitionIndex, CommittedOffset>>;

/// Everything that the log says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct GroupState {
    groups: BTreeMap<String, GroupMetadata>,
    consumers: BTreeMap<String, ConsumerGroup>,
    offsets: BTreeMap<String, GroupOffsets>,
    pending: PendingOffsets,
}

impl GroupState {
    /// Applies one fact: later facts replace earlier ones of the same key, tombstones remove.
    pub fn replay(&mut self, fact: Fact, rules: Rules) {
        match fact {
            Fact::Group { group_id, metadata: Some(metadata) } => {
                self.groups.insert(group_id, *metadata);
            }
            Fact::Group { group_id, metadata: None } => {
                self.groups.remove(&group_id);
            }
            Fact::Consumer { group_id, fact } => self.replay_consumer(group_id, &fact),
            Fact::Offset { group_id, topic, partition, committed: Some(committed) } => {
                self.pending.overtake((&group_id, &topic, partition), rules);
                self.insert_offset((group_id, topic, partition), committed);
            }
            Fact::Offset { group_id, topic, partition, committed: None } => {
                self.remove_offset(&group_id, &topic, partition);
                if rules.hold(Rule::R49TombstoneDrops) {
                    self.pending.remove(&group_id, &topic, partition);
                }
            }
        }
    }

    /// Applies a fact that stands in a producer's transaction: an offset waits for the marker (`R49`). Nothing else is
    /// written in transactions; what is there all the same counts as it stands.
    pub fn replay_in_transaction(&mut self, producer_id: ProducerId, fact: Fact, rules: Rules) {
        match fact {
            Fact::Offset { group_id, topic, partition, committed: Some(committed) }
                if rules.hold(Rule::R49UntilMarker) =>
            {
                self.pending.add(producer_id, (group_id, topic, partition), committed);
            }
            fact => self.replay(fact, rules),
        }
    }

    /// Applies the marker that ends a producer's transaction.
    pub fn replay_marker(&mut self, producer_id: ProducerId, commit: bool, rules: Rules) {
        for (key, committed) in self.pending.end(producer_id, commit, rules) {
            self.insert_offset(key, committed);
        }
    }

    fn insert_offset(&mut self, (group_id, topic, partition): OffsetKey, committed: CommittedOffset) {
        self.offsets.entry(group_id).or_default().entry(topic).or_default().insert(partition, committed);
    }

    fn replay_consumer(&mut self, group_id: String, fact: &ConsumerFact) {
        if let Some(group) = self.consumers.get_mut(&group_id) {
            group.replay(fact);
            if group.is_gone() {
                self.consumers.remove(&group_id);
            }
            return;
        }
        let mut group = ConsumerGroup::default();
        group.replay(fact);
        if !group.is_gone() {
            self.consumers.insert(group_id, group);
        }
    }

    /// What is stored of a consumer group; remains of one that does not exist are among it.
    #[must_use]
    pub fn consumer(&self, group_id: &str) -> Option<&ConsumerGroup> {
        self.consumers.get(group_id)
    }

    /// All that is stored of consumer groups, by group id.
    pub fn consumers(&self) -> impl Iterator<Item = (&String, &ConsumerGroup)> {
        self.consumers.iter()
    }

    /// The stored generation of a group.
    #[must_use]
    pub fn group(&self, group_id: &str) -> Option<&GroupMetadata> {
        self.groups.get(group_id)
    }

    /// All stored generations, by group id.
    pub fn groups(&self) -> impl Iterator<Item = (&String, &GroupMetadata)> {
        self.groups.iter()
    }

    /// The stored offsets of a group.
    #[must_use]
    pub fn offsets(&self, group_id: &str) -> Option<&GroupOffsets> {
        self.offsets.get(group_id)
    }

    /// All stored offsets, by group id.
    pub fn all_offsets(&self) -> impl Iterator<Item = (&String, &GroupOffsets)> {
        self.offsets.iter()
    }

    /// The offsets that wait for the end of their transactions.
    #[must_use]
    pub fn pending(&self) -> &PendingOffsets {
        &self.pending
    }

    /// How many groups have stored offsets, and how many have some that wait.
    #[must_use]
    pub fn offset_groups(&self) -> usize {
        self.offsets.len() + self.pending.group_count()
    }

    /// One stored offset.
    #[must_use]
    pub fn offset(&self, group_id: &str, topic: &str, partition: PartitionIndex) -> Option<&CommittedOffset> {
        self.offsets.get(group_id)?.get(topic)?.get(&partition)
    }

    fn remove_offset(&mut self, group_id: &str, topic: &str, partition: PartitionIndex) {
        let Some(topics) = self.offsets.get_mut(group_id) else { return };
        let Some(partitions) = topics.get_mut(topic) else { return };
        partitions.remove(&partition);
        if partitions.is_empty() {
            topics.remove(topic);
        }
        if topics.is_empty() {
            self.offsets.remove(group_id);
        }
    }
}
