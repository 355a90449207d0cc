//! Offsets that were committed in transactions which have not ended (`R49`).
//!
//! Each partition of a group has a line of them, in the order of the log. A marker takes its producer's offsets out of their
//! lines; COMMIT makes them the group's, unless the log has a later one of the same partition: a commit outside of
//! transactions, or one of another transaction that was committed first. What is overtaken so stays in its line, as the
//! partition is undecided until the marker, and comes to nothing. A tombstone ends the line.
//!
//! So what counts in the end is always the last record of a key among those not aborted, which is what a compaction keeps:
//! the next coordinator comes to the same.
//!
//! Invariant: a producer is in the line of exactly the partitions that `producers` has of it, once in each; no line is empty.

use std::collections::{BTreeMap, BTreeSet};

use model::{PartitionIndex, ProducerId, Rule, Rules};

use crate::state::CommittedOffset;

/// One producer's offset in a line.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Pending {
    producer_id: ProducerId,
    /// None where it was overtaken.
    committed: Option<CommittedOffset>,
}

/// Group, topic and partition.
pub(crate) type OffsetKey = (String, String, PartitionIndex);

type Lines = BTreeMap<String, BTreeMap<PartitionIndex, Vec<Pending>>>;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PendingOffsets {
    groups: BTreeMap<String, Lines>,
    producers: BTreeMap<ProducerId, BTreeSet<OffsetKey>>,
}

impl PendingOffsets {
    /// Whether an offset of this partition waits for a marker.
    #[must_use]
    pub fn contains(&self, group_id: &str, topic: &str, partition: PartitionIndex) -> bool {
        self.line(group_id, topic, partition).is_some()
    }

    /// Whether offsets of this group wait for markers.
    #[must_use]
    pub fn has_group(&self, group_id: &str) -> bool {
        self.groups.contains_key(group_id)
    }

    /// How many groups those are.
    #[must_use]
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// The groups of which offsets wait for markers.
    pub fn groups(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }

    /// The partitions of a group of which offsets wait for markers.
    pub fn partitions(&self, group_id: &str) -> impl Iterator<Item = (&str, PartitionIndex)> {
        let lines = self.groups.get(group_id).into_iter().flatten();
        lines.flat_map(|(topic, lines)| lines.keys().map(move |partition| (topic.as_str(), *partition)))
    }

    /// Everything that may yet become a group's offset: group, topic, partition and offset.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str, PartitionIndex, &CommittedOffset)> {
        self.groups.iter().flat_map(|(group_id, topics)| {
            topics.iter().flat_map(move |(topic, lines)| {
                lines.iter().flat_map(move |(partition, line)| {
                    let offsets = line.iter().filter_map(|pending| pending.committed.as_ref());
                    offsets.map(move |committed| (group_id.as_str(), topic.as_str(), *partition, committed))
                })
            })
        })
    }

    /// A producer commits an offset; an earlier one of it in the same transaction is replaced.
    pub(crate) fn add(&mut self, producer_id: ProducerId, key: OffsetKey, committed: CommittedOffset) {
        let (group_id, topic, partition) = key.clone();
        let line = self.groups.entry(group_id).or_default().entry(topic).or_default().entry(partition).or_default();
        line.retain(|pending| pending.producer_id != producer_id);
        line.push(Pending { producer_id, committed: Some(committed) });
        self.producers.entry(producer_id).or_default().insert(key);
    }

    /// An offset was committed outside of transactions: all that wait are older.
    pub(crate) fn overtake(&mut self, (group_id, topic, partition): (&str, &str, PartitionIndex), rules: Rules) {
        let line = self.groups.get_mut(group_id).and_then(|topics| topics.get_mut(topic)?.get_mut(&partition));
        if let Some(line) = line.filter(|_| rules.hold(Rule::R49LogOrder)) {
            line.iter_mut().for_each(|pending| pending.committed = None);
        }
    }

    /// The offset was deleted: what waits is older, and deleted with it.
    pub(crate) fn remove(&mut self, group_id: &str, topic: &str, partition: PartitionIndex) {
        let Some(line) = self.take_line(group_id, topic, partition) else { return };
        let key = (group_id.to_owned(), topic.to_owned(), partition);
        for Pending { producer_id, .. } in line {
            if let Some(keys) = self.producers.get_mut(&producer_id) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.producers.remove(&producer_id);
                }
            }
        }
    }

    /// A producer's transaction ended: its offsets that count now, none where it was aborted.
    pub(crate) fn end(
        &mut self,
        producer_id: ProducerId,
        commit: bool,
        rules: Rules,
    ) -> Vec<(OffsetKey, CommittedOffset)> {
        let mut count = Vec::new();
        let commit = commit || !rules.hold(Rule::R49AbortDrops);
        for key in self.producers.remove(&producer_id).unwrap_or_default() {
            let (group_id, topic, partition) = &key;
            let Some(mut line) = self.take_line(group_id, topic, *partition) else { continue };
            let Some(at) = line.iter().position(|pending| pending.producer_id == producer_id) else { continue };
            let ended = line.remove(at);
            if commit && rules.hold(Rule::R49LogOrder) {
                line.iter_mut().take(at).for_each(|pending| pending.committed = None);
            }
            if !line.is_empty() {
                let topics = self.groups.entry(group_id.clone()).or_default();
                topics.entry(topic.clone()).or_default().insert(*partition, line);
            }
            count.extend(ended.committed.filter(|_| commit).map(|committed| (key, committed)));
        }
        count
    }

    fn line(&self, group_id: &str, topic: &str, partition: PartitionIndex) -> Option<&Vec<Pending>> {
        self.groups.get(group_id)?.get(topic)?.get(&partition)
    }

    fn take_line(&mut self, group_id: &str, topic: &str, partition: PartitionIndex) -> Option<Vec<Pending>> {
        let topics = self.groups.get_mut(group_id)?;
        let lines = topics.get_mut(topic)?;
        let line = lines.remove(&partition);
        if lines.is_empty() {
            topics.remove(topic);
        }
        if topics.is_empty() {
            self.groups.remove(group_id);
        }
        line
    }

    /// Panics where it contradicts itself.
    pub fn assert_invariants(&self) {
        let mut producers: BTreeMap<ProducerId, BTreeSet<OffsetKey>> = BTreeMap::new();
        for (group_id, topics) in &self.groups {
            for (topic, lines) in topics {
                for (partition, line) in lines {
                    assert!(!line.is_empty(), "an empty line of {group_id}: {topic}-{partition}");
                    for Pending { producer_id, .. } in line {
                        let key = (group_id.clone(), topic.clone(), *partition);
                        let first = producers.entry(*producer_id).or_default().insert(key);
                        assert!(first, "{producer_id} is twice in the line of {group_id}: {topic}-{partition}");
                    }
                }
            }
        }
        assert_eq!(producers, self.producers, "who is in which line");
    }
}
