//! Offsets: what a commit, a deletion or the passing of time writes, and what a fetch reads. Nothing here changes anything.

use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, Rule, Rules, Time, TopicId};

use crate::config::GroupConfig;
use crate::pending::PendingOffsets;
use crate::record::Fact;
use crate::request::{
    FetchedOffset, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, OffsetToCommit, TopicErrors, TopicFetchedOffsets, TopicOffsetsToCommit,
    TopicPartitions,
};
use crate::shard::Readers;
use crate::state::{CommittedOffset, GroupOffsets, GroupState};

/// What a decision comes to: facts to store, and the answer when they are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Decision<R> {
    /// What to store, in order.
    pub facts: Vec<Fact>,
    /// The answer.
    pub response: R,
}

/// The offsets that a commit of an accepted member stores.
#[must_use]
pub fn decide_commit(request: &OffsetCommitRequest, now: Time, config: &GroupConfig) -> Decision<OffsetCommitResponse> {
    let expire =
        (request.retention_time_ms != -1).then(|| Time(now.0.saturating_add_signed(request.retention_time_ms)));
    let mut facts = Vec::new();
    let mut topics = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for offset in &topic.partitions {
            let error = if metadata_fits(&offset.metadata, config) {
                facts.push(Fact::Offset {
                    group_id: request.group_id.clone(),
                    topic: topic.name.clone(),
                    partition: offset.partition,
                    committed: Some(committed(topic, offset, now, expire)),
                });
                ErrorCode::None
            } else {
                ErrorCode::OffsetMetadataTooLarge
            };
            partitions.push((offset.partition, error));
        }
        topics.push(TopicErrors { name: topic.name.clone(), topic_id: topic.topic_id, partitions });
    }
    Decision { facts, response: OffsetCommitResponse { topics } }
}

fn committed(
    topic: &TopicOffsetsToCommit,
    offset: &OffsetToCommit,
    now: Time,
    expire_timestamp: Option<Time>,
) -> CommittedOffset {
    // The version of the record that can hold an expiry holds neither of these two.
    let (leader_epoch, topic_id) = match expire_timestamp {
        Some(_) => (LeaderEpoch::NONE, TopicId::NONE),
        None => (offset.leader_epoch, topic.topic_id),
    };
    CommittedOffset {
        offset: offset.offset,
        leader_epoch,
        metadata: offset.metadata.clone(),
        commit_timestamp: now,
        expire_timestamp,
        topic_id,
    }
}

/// Kafka counts UTF-16 units, as Java does; a text of fewer bytes has no more of them.
fn metadata_fits(metadata: &str, config: &GroupConfig) -> bool {
    let max = config.offset_metadata_max_bytes;
    metadata.len() <= max || metadata.encode_utf16().count() <= max
}

/// What a fetch finds. A group or partition without offsets is no error: the offset is -1. Who wants stable ones is told of
/// those that a transaction may still change (`R49`).
#[must_use]
pub fn fetch(state: &GroupState, request: &OffsetFetchRequest, rules: Rules) -> OffsetFetchResponse {
    let mut response = fetch_stored(state, request);
    if request.require_stable && rules.hold(Rule::R49Unstable) && state.pending().has_group(&request.group_id) {
        for topic in &mut response.topics {
            let name = &topic.name;
            let open = |found: &&mut FetchedOffset| state.pending().contains(&request.group_id, name, found.partition);
            topic.partitions.iter_mut().filter(open).for_each(|found| {
                *found = not_found(found.partition, ErrorCode::UnstableOffsetCommit);
            });
        }
    }
    response
}

fn fetch_stored(state: &GroupState, request: &OffsetFetchRequest) -> OffsetFetchResponse {
    let stored = state.offsets(&request.group_id);
    let topics = match (&request.topics, stored) {
        (Some(topics), _) => topics.iter().map(|topic| fetch_topic(stored, topic)).collect(),
        (None, Some(stored)) => stored
            .iter()
            .map(|(name, partitions)| TopicFetchedOffsets {
                name: name.clone(),
                topic_id: TopicId::NONE,
                partitions: partitions.iter().map(|(partition, committed)| found(*partition, committed)).collect(),
            })
            .collect(),
        (None, None) => Vec::new(),
    };
    OffsetFetchResponse { group_id: request.group_id.clone(), error: ErrorCode::None, topics }
}

fn fetch_topic(stored: Option<&GroupOffsets>, topic: &TopicPartitions) -> TopicFetchedOffsets {
    let offsets = stored.and_then(|topics| topics.get(&topic.name));
    let fetch = |partition: &PartitionIndex| {
        let committed = offsets.and_then(|offsets| offsets.get(partition));
        match committed.filter(|committed| same_topic(committed.topic_id, topic.topic_id)) {
            Some(committed) => found(*partition, committed),
            None => not_found(*partition, ErrorCode::None),
        }
    };
    let partitions = topic.partitions.iter().map(fetch).collect();
    TopicFetchedOffsets { name: topic.name.clone(), topic_id: topic.topic_id, partitions }
}

fn found(partition: PartitionIndex, committed: &CommittedOffset) -> FetchedOffset {
    FetchedOffset {
        partition,
        error: ErrorCode::None,
        offset: committed.offset,
        leader_epoch: committed.leader_epoch,
        metadata: committed.metadata.clone(),
    }
}

fn not_found(partition: PartitionIndex, error: ErrorCode) -> FetchedOffset {
    let (offset, leader_epoch) = (Offset::NONE, LeaderEpoch::NONE);
    FetchedOffset { partition, error, offset, leader_epoch, metadata: String::new() }
}

/// An id that is not known may be any topic's (`R4`).
pub(crate) fn same_topic(stored: TopicId, asked: TopicId) -> bool {
    stored.is_none() || asked.is_none() || stored == asked
}

/// The tombstones of a deletion, but for topics that a member reads. `exists` says which offsets are there, or on their way.
#[must_use]
pub fn decide_delete(
    group: Readers<'_>,
    request: &OffsetDeleteRequest,
    exists: impl Fn(&str, PartitionIndex) -> bool,
) -> Decision<OffsetDeleteResponse> {
    let mut facts = Vec::new();
    let mut topics = Vec::new();
    for topic in &request.topics {
        let subscribed = group.read(&topic.name);
        let error = if subscribed { ErrorCode::GroupSubscribedToTopic } else { ErrorCode::None };
        let doomed = topic.partitions.iter().filter(|partition| !subscribed && exists(&topic.name, **partition));
        facts.extend(doomed.map(|partition| tombstone(&request.group_id, &topic.name, *partition)));
        let partitions = topic.partitions.iter().map(|partition| (*partition, error)).collect();
        topics.push(TopicErrors { name: topic.name.clone(), topic_id: topic.topic_id, partitions });
    }
    Decision { facts, response: OffsetDeleteResponse { error: ErrorCode::None, topics } }
}

/// The tombstones of one group's expired offsets, and whether it has no others (`R55`). What a transaction may still change
/// does not expire.
#[must_use]
pub fn decide_expiry(
    group_id: &str,
    group: Readers<'_>,
    (stored, pending): (&GroupOffsets, &PendingOffsets),
    now: Time,
    config: &GroupConfig,
) -> (Vec<Fact>, bool) {
    let Some(rule) = ExpiryRule::of(group) else { return (Vec::new(), false) };
    let mut facts = Vec::new();
    let mut all = true;
    for (topic, partitions) in stored {
        let in_use = group.read(topic);
        for (partition, committed) in partitions {
            let open = pending.contains(group_id, topic, *partition);
            if !in_use && !open && rule.is_over(committed, now, config) {
                facts.push(tombstone(group_id, topic, *partition));
            } else {
                all = false;
            }
        }
    }
    (facts, all)
}

/// Since when an offset counts as unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ExpiryRule {
    SinceCommit,
    SinceGroupEmpty(Time),
}

impl ExpiryRule {
    /// None while the group may still need its offsets.
    fn of(group: Readers<'_>) -> Option<ExpiryRule> {
        match group {
            Readers::Classic(group) if !group.is_empty() => {
                group.knows_subscriptions().then_some(ExpiryRule::SinceCommit)
            }
            Readers::Classic(group) if group.protocol_type().is_some() => {
                Some(group.state_since().map_or(ExpiryRule::SinceCommit, ExpiryRule::SinceGroupEmpty))
            }
            // What a consumer group is not subscribed to, only commits keep.
            Readers::Consumer(_) => Some(ExpiryRule::SinceCommit),
            // A simple consumer: it is never a member, so only its commits show that it lives.
            Readers::Classic(_) | Readers::Nobody => Some(ExpiryRule::SinceCommit),
        }
    }

    fn is_over(self, committed: &CommittedOffset, now: Time, config: &GroupConfig) -> bool {
        match (committed.expire_timestamp, self) {
            (Some(expire), _) => now >= expire,
            (None, ExpiryRule::SinceCommit) => now.since(committed.commit_timestamp) >= config.offsets_retention_ms,
            (None, ExpiryRule::SinceGroupEmpty(since)) => now.since(since) >= config.offsets_retention_ms,
        }
    }
}

/// The tombstones of deleted topics. An offset of another topic of that name stays (`R4`).
#[must_use]
pub fn decide_topics_deleted(state: &GroupState, topics: &[(String, TopicId)]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (group_id, stored) in state.all_offsets() {
        for (topic, topic_id) in topics {
            let Some(partitions) = stored.get(topic) else { continue };
            let doomed = partitions.iter().filter(|(_, committed)| same_topic(committed.topic_id, *topic_id));
            facts.extend(doomed.map(|(partition, _)| tombstone(group_id, topic, *partition)));
        }
    }
    for (group_id, topic, partition, committed) in state.pending().all() {
        let doomed = |(name, id): &(String, TopicId)| name == topic && same_topic(committed.topic_id, *id);
        if topics.iter().any(doomed) {
            facts.push(tombstone(group_id, topic, partition));
        }
    }
    facts
}

/// The tombstone of one offset.
#[must_use]
pub fn tombstone(group_id: &str, topic: &str, partition: PartitionIndex) -> Fact {
    Fact::Offset { group_id: group_id.to_owned(), topic: topic.to_owned(), partition, committed: None }
}
