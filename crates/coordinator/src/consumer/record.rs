//! The records of consumer groups, byte for byte as Kafka 4.3 writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use model::{PartitionIndex, Time, TopicId};
use protocol::records::{
    ConsumerGroupCurrentMemberAssignmentKey, ConsumerGroupCurrentMemberAssignmentValue, ConsumerGroupMemberMetadataKey,
    ConsumerGroupMemberMetadataValue, ConsumerGroupMetadataKey, ConsumerGroupMetadataValue,
    ConsumerGroupRegularExpressionKey, ConsumerGroupRegularExpressionValue, ConsumerGroupTargetAssignmentMemberKey,
    ConsumerGroupTargetAssignmentMemberValue, ConsumerGroupTargetAssignmentMetadataKey,
    ConsumerGroupTargetAssignmentMetadataValue, consumer_group_current_member_assignment_value as current_value,
    consumer_group_member_metadata_value as member_value,
    consumer_group_target_assignment_member_value as target_value, decode_key, decode_value, encode_key, encode_value,
};
use protocol::{DecodeError, EncodeError, RecordKey};

use crate::consumer::group::{
    ClassicMember, ClassicProtocol, ConsumerFact, CurrentAssignment, GroupEpoch, MemberProfile, MemberState,
    OwnedPartitions, Partitions, ResolvedRegex, Subscription, TargetEpoch,
};
use crate::record::{CoordinatorRecord, read_time, wire_time};

/// All values of consumer groups have one version.
const VERSION: i16 = 0;

/// The record of a fact.
pub(crate) fn encode(group_id: &str, fact: &ConsumerFact) -> Result<CoordinatorRecord, EncodeError> {
    let group_id = group_id.to_owned();
    let (key, value) = match fact {
        ConsumerFact::Epoch(epoch) => {
            let key = encode_key(&ConsumerGroupMetadataKey { group_id })?;
            (key, epoch.map(encode_epoch).transpose()?)
        }
        ConsumerFact::Profile(member_id, profile) => {
            let key = encode_key(&ConsumerGroupMemberMetadataKey { group_id, member_id: member_id.clone() })?;
            (key, profile.as_deref().map(encode_profile).transpose()?)
        }
        ConsumerFact::TargetEpoch(epoch) => {
            let key = encode_key(&ConsumerGroupTargetAssignmentMetadataKey { group_id })?;
            (key, epoch.map(encode_target_epoch).transpose()?)
        }
        ConsumerFact::Target(member_id, target) => {
            let key = encode_key(&ConsumerGroupTargetAssignmentMemberKey { group_id, member_id: member_id.clone() })?;
            (key, target.as_deref().map(encode_target).transpose()?)
        }
        ConsumerFact::Current(member_id, current) => {
            let key = encode_key(&ConsumerGroupCurrentMemberAssignmentKey { group_id, member_id: member_id.clone() })?;
            (key, current.as_deref().map(encode_current).transpose()?)
        }
        ConsumerFact::Regex(regex, resolved) => {
            let key = ConsumerGroupRegularExpressionKey { group_id, regular_expression: regex.clone() };
            (encode_key(&key)?, resolved.as_deref().map(encode_regex).transpose()?)
        }
    };
    Ok(CoordinatorRecord { key, value })
}

/// The group and the fact of a record of type `key_type`; None for other types.
pub(crate) fn decode(key_type: i16, record: &CoordinatorRecord) -> Result<Option<(String, ConsumerFact)>, DecodeError> {
    let (key, value) = (&record.key, record.value.as_ref());
    Ok(Some(match key_type {
        ConsumerGroupMetadataKey::TYPE => {
            let ConsumerGroupMetadataKey { group_id } = decode_key(key)?;
            (group_id, ConsumerFact::Epoch(value.map(decode_epoch).transpose()?))
        }
        ConsumerGroupMemberMetadataKey::TYPE => {
            let ConsumerGroupMemberMetadataKey { group_id, member_id } = decode_key(key)?;
            let profile = value.map(decode_profile).transpose()?;
            (group_id, ConsumerFact::Profile(member_id, profile.map(Arc::new)))
        }
        ConsumerGroupTargetAssignmentMetadataKey::TYPE => {
            let ConsumerGroupTargetAssignmentMetadataKey { group_id } = decode_key(key)?;
            (group_id, ConsumerFact::TargetEpoch(value.map(decode_target_epoch).transpose()?))
        }
        ConsumerGroupTargetAssignmentMemberKey::TYPE => {
            let ConsumerGroupTargetAssignmentMemberKey { group_id, member_id } = decode_key(key)?;
            let target = value.map(decode_target).transpose()?;
            (group_id, ConsumerFact::Target(member_id, target.map(Arc::new)))
        }
        ConsumerGroupCurrentMemberAssignmentKey::TYPE => {
            let ConsumerGroupCurrentMemberAssignmentKey { group_id, member_id } = decode_key(key)?;
            let current = value.map(decode_current).transpose()?;
            (group_id, ConsumerFact::Current(member_id, current.map(Arc::new)))
        }
        ConsumerGroupRegularExpressionKey::TYPE => {
            let ConsumerGroupRegularExpressionKey { group_id, regular_expression } = decode_key(key)?;
            let resolved = value.map(decode_regex).transpose()?;
            (group_id, ConsumerFact::Regex(regular_expression, resolved.map(Arc::new)))
        }
        _ => return Ok(None),
    }))
}

fn encode_epoch(epoch: GroupEpoch) -> Result<Bytes, EncodeError> {
    let value = ConsumerGroupMetadataValue { epoch: epoch.epoch, metadata_hash: epoch.metadata_hash };
    encode_value(&value, VERSION)
}

fn decode_epoch(value: &Bytes) -> Result<GroupEpoch, DecodeError> {
    let value: ConsumerGroupMetadataValue = decode_value(value)?;
    Ok(GroupEpoch { epoch: value.epoch, metadata_hash: value.metadata_hash })
}

fn encode_profile(profile: &MemberProfile) -> Result<Bytes, EncodeError> {
    let protocol = |protocol: &ClassicProtocol| member_value::ClassicProtocol {
        name: protocol.name.clone(),
        metadata: protocol.metadata.clone(),
    };
    let classic = profile.classic.as_ref().map(|classic| member_value::ClassicMemberMetadata {
        session_timeout_ms: classic.session_timeout_ms,
        supported_protocols: classic.protocols.iter().map(protocol).collect(),
    });
    let value = ConsumerGroupMemberMetadataValue {
        instance_id: profile.instance_id.clone(),
        rack_id: profile.rack_id.clone(),
        client_id: profile.client_id.clone(),
        client_host: profile.client_host.clone(),
        subscribed_topic_names: profile.subscription.topics.iter().cloned().collect(),
        subscribed_topic_regex: profile.subscription.regex.as_deref().map(str::to_owned),
        rebalance_timeout_ms: profile.rebalance_timeout_ms,
        server_assignor: profile.assignor.clone(),
        classic_member_metadata: classic,
    };
    encode_value(&value, VERSION)
}

fn decode_profile(value: &Bytes) -> Result<MemberProfile, DecodeError> {
    let value: ConsumerGroupMemberMetadataValue = decode_value(value)?;
    let protocol = |protocol: member_value::ClassicProtocol| ClassicProtocol {
        name: protocol.name,
        // A copy of its own: it stays for long, and must not keep a whole chunk of the log in memory.
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    };
    let classic = value.classic_member_metadata.map(|classic| ClassicMember {
        session_timeout_ms: classic.session_timeout_ms,
        protocols: classic.supported_protocols.into_iter().map(protocol).collect(),
    });
    let subscription = Subscription {
        topics: Arc::new(value.subscribed_topic_names.into_iter().collect()),
        regex: value.subscribed_topic_regex.filter(|regex| !regex.is_empty()).map(Arc::from),
    };
    Ok(MemberProfile {
        instance_id: value.instance_id,
        rack_id: value.rack_id,
        client_id: value.client_id,
        client_host: value.client_host,
        subscription,
        rebalance_timeout_ms: value.rebalance_timeout_ms,
        assignor: value.server_assignor,
        classic,
    })
}

fn encode_target_epoch(epoch: TargetEpoch) -> Result<Bytes, EncodeError> {
    let value = ConsumerGroupTargetAssignmentMetadataValue {
        assignment_epoch: epoch.epoch,
        assignment_timestamp: wire_time(Some(epoch.computed_at)),
    };
    encode_value(&value, VERSION)
}

fn decode_target_epoch(value: &Bytes) -> Result<TargetEpoch, DecodeError> {
    let value: ConsumerGroupTargetAssignmentMetadataValue = decode_value(value)?;
    let computed_at = read_time(value.assignment_timestamp).unwrap_or(Time::ZERO);
    Ok(TargetEpoch { epoch: value.assignment_epoch, computed_at })
}

fn encode_target(target: &Partitions) -> Result<Bytes, EncodeError> {
    let topic = |(topic, partitions): (&TopicId, &BTreeSet<PartitionIndex>)| target_value::TopicPartition {
        topic_id: topic.0,
        partitions: partitions.iter().map(|partition| partition.0).collect(),
    };
    let value = ConsumerGroupTargetAssignmentMemberValue { topic_partitions: target.iter().map(topic).collect() };
    encode_value(&value, VERSION)
}

fn decode_target(value: &Bytes) -> Result<Partitions, DecodeError> {
    let value: ConsumerGroupTargetAssignmentMemberValue = decode_value(value)?;
    let topic = |topic: target_value::TopicPartition| {
        (TopicId(topic.topic_id), topic.partitions.into_iter().map(PartitionIndex).collect())
    };
    Ok(value.topic_partitions.into_iter().map(topic).collect())
}

fn encode_current(current: &CurrentAssignment) -> Result<Bytes, EncodeError> {
    let value = ConsumerGroupCurrentMemberAssignmentValue {
        member_epoch: current.epoch,
        previous_member_epoch: current.previous_epoch,
        state: current.state.code(),
        assigned_partitions: encode_owned(&current.assigned),
        partitions_pending_revocation: encode_owned(&current.revoking),
    };
    encode_value(&value, VERSION)
}

fn encode_owned(owned: &OwnedPartitions) -> Vec<current_value::TopicPartitions> {
    let topic = |(topic, partitions): (&TopicId, &BTreeMap<PartitionIndex, i32>)| current_value::TopicPartitions {
        topic_id: topic.0,
        partitions: partitions.keys().map(|partition| partition.0).collect(),
        assignment_epochs: Some(partitions.values().copied().collect()),
    };
    owned.iter().map(topic).collect()
}

fn decode_current(value: &Bytes) -> Result<CurrentAssignment, DecodeError> {
    let value: ConsumerGroupCurrentMemberAssignmentValue = decode_value(value)?;
    Ok(CurrentAssignment {
        epoch: value.member_epoch,
        previous_epoch: value.previous_member_epoch,
        state: MemberState::from_code(value.state),
        assigned: decode_owned(value.assigned_partitions, value.member_epoch),
        revoking: decode_owned(value.partitions_pending_revocation, value.member_epoch),
    })
}

/// Before KIP-1251 the epochs were not written: then a commit of any older epoch is refused.
fn decode_owned(owned: Vec<current_value::TopicPartitions>, member_epoch: i32) -> OwnedPartitions {
    let topic = |topic: current_value::TopicPartitions| {
        let epochs = topic.assignment_epochs.unwrap_or_default();
        let epochs = epochs.into_iter().chain(std::iter::repeat(member_epoch));
        (TopicId(topic.topic_id), topic.partitions.into_iter().map(PartitionIndex).zip(epochs).collect())
    };
    owned.into_iter().map(topic).collect()
}

fn encode_regex(resolved: &ResolvedRegex) -> Result<Bytes, EncodeError> {
    let value = ConsumerGroupRegularExpressionValue {
        topics: resolved.topics.iter().cloned().collect(),
        version: resolved.version,
        timestamp: wire_time(Some(resolved.resolved_at)),
    };
    encode_value(&value, VERSION)
}

fn decode_regex(value: &Bytes) -> Result<ResolvedRegex, DecodeError> {
    let value: ConsumerGroupRegularExpressionValue = decode_value(value)?;
    Ok(ResolvedRegex {
        topics: Arc::new(value.topics.into_iter().collect()),
        version: value.version,
        resolved_at: read_time(value.timestamp).unwrap_or(Time::ZERO),
    })
}
