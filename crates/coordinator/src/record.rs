//! What the coordinator writes, byte for byte as Kafka 4.3 does, and how it is read back.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{LeaderEpoch, Offset, PartitionIndex, Time, TopicId};
use protocol::messages::ConsumerProtocolSubscription;
use protocol::records::{
    GroupMetadataKey, GroupMetadataValue, OffsetCommitKey, OffsetCommitValue, decode_key, decode_value, encode_key,
    encode_value, group_metadata_value, key_type,
};
use protocol::{DecodeError, Decoder, EncodeError, Message, RecordKey};

use crate::consumer::{self, ConsumerFact};
use crate::state::{CommittedOffset, GroupMetadata, MemberMetadata};

/// Kafka 4.3 writes offsets so.
const OFFSET_COMMIT_VERSION: i16 = 4;
/// The one version that can say when an offset expires; it knows neither leader epoch nor topic id.
const OFFSET_COMMIT_VERSION_WITH_EXPIRY: i16 = 1;
/// Kafka 4.3 writes groups so.
const GROUP_METADATA_VERSION: i16 = 3;
/// Kafka's first coordinator wrote the keys of offsets so; the body is the same.
const LEGACY_OFFSET_COMMIT_TYPE: i16 = 0;

/// One record of `__consumer_offsets`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CoordinatorRecord {
    /// What it is about.
    pub key: Bytes,
    /// What is so now; None is a tombstone.
    pub value: Option<Bytes>,
}

impl CoordinatorRecord {
    /// How much of a batch it takes, generously.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        // Attributes, offset and time deltas, and four lengths as varints.
        const OVERHEAD: usize = 32;
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + OVERHEAD
    }
}

/// What a record says. None is a tombstone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// An offset is stored, or removed.
    Offset {
        /// Whose.
        group_id: String,
        /// Of which topic.
        topic: String,
        /// Of which partition.
        partition: PartitionIndex,
        /// The offset.
        committed: Option<CommittedOffset>,
    },
    /// A group has this generation, or is no more.
    Group {
        /// Which group.
        group_id: String,
        /// The generation.
        metadata: Option<Box<GroupMetadata>>,
    },
    /// Something is so of a consumer group.
    Consumer {
        /// Which group.
        group_id: String,
        /// What is so.
        fact: ConsumerFact,
    },
}

impl Fact {
    /// The group that it is about.
    #[must_use]
    pub fn group_id(&self) -> &str {
        match self {
            Fact::Offset { group_id, .. } | Fact::Group { group_id, .. } | Fact::Consumer { group_id, .. } => group_id,
        }
    }

    /// The record that says so.
    ///
    /// # Errors
    /// If a string is longer than the format allows.
    pub fn encode(&self) -> Result<CoordinatorRecord, EncodeError> {
        match self {
            Fact::Offset { group_id, topic, partition, committed } => {
                let key = OffsetCommitKey { group: group_id.clone(), topic: topic.clone(), partition: partition.0 };
                let value = committed.as_ref().map(encode_offset).transpose()?;
                Ok(CoordinatorRecord { key: encode_key(&key)?, value })
            }
            Fact::Group { group_id, metadata } => {
                let key = GroupMetadataKey { group: group_id.clone() };
                let value = metadata.as_ref().map(|metadata| encode_group(metadata)).transpose()?;
                Ok(CoordinatorRecord { key: encode_key(&key)?, value })
            }
            Fact::Consumer { group_id, fact } => consumer::record::encode(group_id, fact),
        }
    }

    /// What a record says; None for kinds that this version does not know, which are skipped.
    ///
    /// # Errors
    /// If the bytes are not what their type says.
    pub fn decode(record: &CoordinatorRecord) -> Result<Option<Fact>, DecodeError> {
        match key_type(&record.key)? {
            OffsetCommitKey::TYPE => decode_offset(decode_key(&record.key)?, record.value.as_ref()).map(Some),
            LEGACY_OFFSET_COMMIT_TYPE => {
                let key = OffsetCommitKey::decode_all(&mut Decoder::from_slice(&record.key[2..]), 0)?;
                decode_offset(key, record.value.as_ref()).map(Some)
            }
            GroupMetadataKey::TYPE => {
                let GroupMetadataKey { group: group_id } = decode_key(&record.key)?;
                let metadata = record.value.as_ref().map(|value| decode_group(value)).transpose()?;
                Ok(Some(Fact::Group { group_id, metadata: metadata.map(Box::new) }))
            }
            other => {
                let fact = consumer::record::decode(other, record)?;
                Ok(fact.map(|(group_id, fact)| Fact::Consumer { group_id, fact }))
            }
        }
    }
}

/// The topics of a consumer's subscription. Every version begins with version 0, so that is all that is read.
#[must_use]
pub fn subscribed_topics(metadata: &[u8]) -> Option<Vec<String>> {
    let version = key_type(metadata).ok()?;
    if version < 0 {
        return None;
    }
    let mut decoder = Decoder::from_slice(metadata.get(2..)?);
    ConsumerProtocolSubscription::decode(&mut decoder, 0).ok().map(|subscription| subscription.topics)
}

fn encode_offset(committed: &CommittedOffset) -> Result<Bytes, EncodeError> {
    let version = match committed.expire_timestamp {
        Some(_) => OFFSET_COMMIT_VERSION_WITH_EXPIRY,
        None => OFFSET_COMMIT_VERSION,
    };
    let value = OffsetCommitValue {
        offset: committed.offset.0,
        leader_epoch: committed.leader_epoch.0,
        metadata: committed.metadata.clone(),
        commit_timestamp: wire_time(Some(committed.commit_timestamp)),
        expire_timestamp: wire_time(committed.expire_timestamp),
        topic_id: committed.topic_id.0,
    };
    encode_value(&value, version)
}

fn decode_offset(key: OffsetCommitKey, value: Option<&Bytes>) -> Result<Fact, DecodeError> {
    let committed = value.map(|value| decode_value::<OffsetCommitValue>(value)).transpose()?;
    let committed = committed.map(|value| CommittedOffset {
        offset: Offset(value.offset),
        leader_epoch: LeaderEpoch(value.leader_epoch),
        metadata: value.metadata,
        commit_timestamp: read_time(value.commit_timestamp).unwrap_or(Time::ZERO),
        expire_timestamp: read_time(value.expire_timestamp),
        topic_id: TopicId(value.topic_id),
    });
    let OffsetCommitKey { group: group_id, topic, partition } = key;
    Ok(Fact::Offset { group_id, topic, partition: PartitionIndex(partition), committed })
}

fn encode_group(metadata: &GroupMetadata) -> Result<Bytes, EncodeError> {
    let member = |(member_id, member): (&String, &MemberMetadata)| group_metadata_value::MemberMetadata {
        member_id: member_id.clone(),
        group_instance_id: member.group_instance_id.clone(),
        client_id: member.client_id.clone(),
        client_host: member.client_host.clone(),
        rebalance_timeout: i32::try_from(member.rebalance_timeout_ms).unwrap_or(i32::MAX),
        session_timeout: i32::try_from(member.session_timeout_ms).unwrap_or(i32::MAX),
        subscription: member.subscription.clone(),
        assignment: member.assignment.clone(),
    };
    let value = GroupMetadataValue {
        protocol_type: metadata.protocol_type.clone(),
        generation: metadata.generation_id,
        protocol: metadata.protocol.clone(),
        leader: metadata.leader.clone(),
        current_state_timestamp: wire_time(metadata.current_state_timestamp),
        members: metadata.members.iter().map(member).collect(),
    };
    encode_value(&value, GROUP_METADATA_VERSION)
}

fn decode_group(value: &[u8]) -> Result<GroupMetadata, DecodeError> {
    let value: GroupMetadataValue = decode_value(value)?;
    let member = |member: group_metadata_value::MemberMetadata| {
        let session_timeout_ms = u64::try_from(member.session_timeout).unwrap_or(0);
        let metadata = MemberMetadata {
            group_instance_id: member.group_instance_id,
            client_id: member.client_id,
            client_host: member.client_host,
            // Version 0 has none: then it is the session timeout.
            rebalance_timeout_ms: u64::try_from(member.rebalance_timeout).unwrap_or(session_timeout_ms),
            session_timeout_ms,
            subscription: member.subscription,
            assignment: member.assignment,
        };
        (member.member_id, metadata)
    };
    Ok(GroupMetadata {
        protocol_type: value.protocol_type,
        generation_id: value.generation,
        protocol: value.protocol,
        leader: value.leader,
        current_state_timestamp: read_time(value.current_state_timestamp),
        members: value.members.into_iter().map(member).collect::<BTreeMap<_, _>>(),
    })
}

/// A time as it is written: -1 is none.
pub(crate) fn wire_time(time: Option<Time>) -> i64 {
    time.map_or(-1, |time| i64::try_from(time.0).unwrap_or(i64::MAX))
}

/// A time as it is read.
pub(crate) fn read_time(ms: i64) -> Option<Time> {
    u64::try_from(ms).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Bytes {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect::<Vec<u8>>().into()
    }

    fn offset_fact(committed: CommittedOffset) -> Fact {
        Fact::Offset {
            group_id: "s1".into(),
            topic: "s2".into(),
            partition: PartitionIndex(1003),
            committed: Some(committed),
        }
    }

    #[test]
    fn an_offset_is_the_bytes_that_kafka_writes() {
        let committed = CommittedOffset {
            offset: Offset(1_000_000_000_001),
            leader_epoch: LeaderEpoch(1002),
            metadata: "s3".into(),
            commit_timestamp: Time(1_000_000_000_004),
            expire_timestamp: None,
            topic_id: "ESIzRFVmd40AAAAAAAAABQ".parse().unwrap(),
        };
        let fact = offset_fact(committed);
        let record = fact.encode().unwrap();
        assert_eq!(record.key, hex("00010002733100027332000003eb"));
        let value = "0004000000e8d4a51001000003ea037333000000e8d4a51004010010112233445566778d0000000000000005";
        assert_eq!(record.value, Some(hex(value)));
        assert_eq!(Fact::decode(&record), Ok(Some(fact)));
    }

    #[test]
    fn an_offset_with_an_expiry_is_written_in_the_version_that_has_one() {
        let committed = CommittedOffset {
            offset: Offset(1_000_000_000_001),
            leader_epoch: LeaderEpoch::NONE,
            metadata: "s2".into(),
            commit_timestamp: Time(1_000_000_000_003),
            expire_timestamp: Some(Time(1_000_000_000_004)),
            topic_id: TopicId::NONE,
        };
        let fact = offset_fact(committed);
        let record = fact.encode().unwrap();
        let value = "0001000000e8d4a5100100027332000000e8d4a51003000000e8d4a51004";
        assert_eq!(record.value, Some(hex(value)));
        assert_eq!(Fact::decode(&record), Ok(Some(fact)));
    }

    #[test]
    fn an_offset_under_a_legacy_key_is_read() {
        let record = CoordinatorRecord { key: hex("00000002733100027332000003eb"), value: None };
        let fact = Fact::decode(&record).unwrap().unwrap();
        let expected = Fact::Offset {
            group_id: "s1".into(),
            topic: "s2".into(),
            partition: PartitionIndex(1003),
            committed: None,
        };
        assert_eq!(fact, expected);
    }

    #[test]
    fn a_group_is_the_bytes_that_kafka_writes() {
        let value = hex(concat!("0003", "00000000000000000000", "ffffffffffffffff", "00000000"));
        let metadata = GroupMetadata {
            protocol_type: String::new(),
            generation_id: 0,
            protocol: Some(String::new()),
            leader: Some(String::new()),
            current_state_timestamp: None,
            members: BTreeMap::new(),
        };
        let fact = Fact::Group { group_id: "s1".into(), metadata: Some(Box::new(metadata)) };
        let record = fact.encode().unwrap();
        assert_eq!(record, CoordinatorRecord { key: hex("000200027331"), value: Some(value) });
        assert_eq!(Fact::decode(&record), Ok(Some(fact)));
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_skipped_and_a_broken_one_is_an_error() {
        let unknown = CoordinatorRecord { key: hex("7fff00027331"), value: None };
        assert_eq!(Fact::decode(&unknown), Ok(None));
        for key in ["", "00", "0001", "00010002733100027332"] {
            assert!(Fact::decode(&CoordinatorRecord { key: hex(key), value: None }).is_err(), "{key}");
        }
    }
}
