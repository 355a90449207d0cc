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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Fact;

    fn hex(text: &str) -> Bytes {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect::<Vec<u8>>().into()
    }

    fn topic(id: &str) -> TopicId {
        id.parse().unwrap()
    }

    fn list(numbers: &[i32]) -> BTreeSet<PartitionIndex> {
        numbers.iter().copied().map(PartitionIndex).collect()
    }

    fn check(fact: ConsumerFact, key: &str, value: Option<&str>) {
        let fact = Fact::Consumer { group_id: "s1".into(), fact };
        let record = fact.encode().unwrap();
        assert_eq!((record.key.clone(), record.value.clone()), (hex(key), value.map(hex)));
        assert_eq!(Fact::decode(&record), Ok(Some(fact)));
    }

    #[test]
    fn facts_are_the_bytes_that_kafka_writes() {
        let epoch = GroupEpoch { epoch: 1001, metadata_hash: 1_000_000_000_002 };
        check(ConsumerFact::Epoch(Some(epoch)), "000300027331", Some("0000000003e9010008000000e8d4a51002"));
        check(ConsumerFact::Epoch(None), "000300027331", None);
        let computed_at = Time(1_000_000_000_002);
        let epoch = TargetEpoch { epoch: 1001, computed_at };
        check(ConsumerFact::TargetEpoch(Some(epoch)), "000600027331", Some("0000000003e9010008000000e8d4a51002"));
        let target = Partitions::from([
            (topic("ESIzRFVmd4sAAAAAAAAAAw"), list(&[1005, 1006])),
            (topic("ESIzRFVmd5AAAAAAAAAACA"), list(&[1010, 1011])),
        ]);
        let value = concat!(
            "000003112233445566778b000000000000000303000003ed000003ee00",
            "1122334455667790000000000000000803000003f2000003f30000"
        );
        check(ConsumerFact::Target("s2".into(), Some(Arc::new(target))), "00070002733100027332", Some(value));
        let resolved = ResolvedRegex {
            topics: Arc::new(BTreeSet::from(["s2".into(), "s3".into()])),
            version: 1_000_000_000_004,
            resolved_at: Time(1_000_000_000_005),
        };
        let value = "000003037332037333000000e8d4a51004000000e8d4a5100500";
        check(ConsumerFact::Regex("s2".into(), Some(Arc::new(resolved))), "00100002733100027332", Some(value));
    }

    #[test]
    fn a_member_is_the_bytes_that_kafka_writes() {
        let protocol = |name: &str, metadata: &'static [u8]| ClassicProtocol {
            name: name.into(),
            metadata: Bytes::from_static(metadata),
        };
        let profile = MemberProfile {
            instance_id: Some("s1".into()),
            rack_id: Some("s2".into()),
            client_id: "s3".into(),
            client_host: "s4".into(),
            subscription: Subscription {
                topics: Arc::new(BTreeSet::from(["s6".into(), "s7".into()])),
                regex: Some("s8".into()),
            },
            rebalance_timeout_ms: 1009,
            assignor: Some("s10".into()),
            classic: Some(ClassicMember {
                session_timeout_ms: 1012,
                protocols: vec![protocol("s15", &[16, 2, 3]), protocol("s18", &[19, 2, 3])],
            }),
        };
        let value = concat!(
            "000003733103733203733303733403037336037337037338000003f104733130",
            "01001901000003f40304733135041002030004733138041302030000"
        );
        check(ConsumerFact::Profile("s2".into(), Some(Arc::new(profile))), "00050002733100027332", Some(value));
        check(ConsumerFact::Profile("s2".into(), None), "00050002733100027332", None);
    }

    #[test]
    fn what_a_member_has_is_read_with_and_without_assignment_epochs() {
        let owned = |id: &str, partitions: &[(i32, i32)]| {
            let partitions = partitions.iter().map(|(index, epoch)| (PartitionIndex(*index), *epoch));
            (topic(id), partitions.collect())
        };
        let current = CurrentAssignment {
            epoch: 1001,
            previous_epoch: 1002,
            state: MemberState::UnrevokedPartitions,
            assigned: OwnedPartitions::from([owned("ESIzRFVmd44AAAAAAAAABg", &[(1008, 1011), (1009, 1012)])]),
            revoking: OwnedPartitions::new(),
        };
        let value = concat!(
            "0000000003e9000003ea0102112233445566778e000000000000000603000003f0000003f1",
            "01000903000003f3000003f40100"
        );
        check(ConsumerFact::Current("s2".into(), Some(Arc::new(current.clone()))), "00080002733100027332", Some(value));
        let old = concat!("0000000003e9000003ea0102112233445566778e000000000000000603000003f0000003f1", "000100");
        let record = CoordinatorRecord { key: hex("00080002733100027332"), value: Some(hex(old)) };
        let assigned = OwnedPartitions::from([owned("ESIzRFVmd44AAAAAAAAABg", &[(1008, 1001), (1009, 1001)])]);
        let current = CurrentAssignment { assigned, ..current };
        let fact = ConsumerFact::Current("s2".into(), Some(Arc::new(current)));
        assert_eq!(Fact::decode(&record), Ok(Some(Fact::Consumer { group_id: "s1".into(), fact })));
    }
}
