//! The consumer protocol inside the classic one: subscriptions and assignments that classic members bring and take.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use metadata::MetadataImage;
use model::{PartitionIndex, TopicId};
use protocol::messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, consumer_protocol_assignment as assignment,
    consumer_protocol_subscription as subscription,
};
use protocol::records::{decode_value, encode_value, key_type};
use protocol::{Decoder, Message};

use crate::consumer::group::{OwnedPartitions, Partitions};

/// The newest version of both that is known here. A later one begins with it.
const NEWEST: i16 = 3;

/// What a classic member is subscribed to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct EmbeddedSubscription {
    pub(crate) topics: BTreeSet<String>,
    pub(crate) owned: BTreeMap<String, Vec<i32>>,
    pub(crate) rack_id: Option<String>,
}

/// Reads a subscription; None where it is none.
pub(crate) fn read_subscription(metadata: &[u8]) -> Option<EmbeddedSubscription> {
    let version = key_type(metadata).ok().filter(|version| *version >= 0)?;
    let mut decoder = Decoder::from_slice(metadata.get(2..)?);
    let read = ConsumerProtocolSubscription::decode(&mut decoder, version.min(NEWEST)).ok()?;
    let owned = |topic: subscription::TopicPartition| (topic.topic, topic.partitions);
    Some(EmbeddedSubscription {
        topics: read.topics.into_iter().collect(),
        owned: read.owned_partitions.into_iter().map(owned).collect(),
        rack_id: read.rack_id,
    })
}

/// The partitions that a classic member says it holds.
pub(crate) fn owned(subscription: &EmbeddedSubscription, image: &MetadataImage) -> Partitions {
    let known = |(name, partitions): (&String, &Vec<i32>)| {
        Some((image.topic_id(name)?, partitions.iter().copied().map(PartitionIndex).collect()))
    };
    subscription.owned.iter().filter_map(known).collect()
}

/// Why an assignment cannot be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unreadable {
    /// It is none.
    Malformed,
    /// It has data of an assignor of the members' own, which no server-side assignor would give.
    CustomAssignor,
}

/// Reads an assignment. An empty one gives nothing.
pub(crate) fn read_assignment(bytes: &[u8], image: &MetadataImage) -> Result<Partitions, Unreadable> {
    if bytes.is_empty() {
        return Ok(Partitions::new());
    }
    let read: ConsumerProtocolAssignment = decode_value(bytes).map_err(|_| Unreadable::Malformed)?;
    if read.user_data.as_ref().is_some_and(|data| !data.is_empty()) {
        return Err(Unreadable::CustomAssignor);
    }
    let known = |topic: assignment::TopicPartition| {
        let id: TopicId = image.topic_id(&topic.topic)?;
        Some((id, topic.partitions.into_iter().map(PartitionIndex).collect()))
    };
    Ok(read.assigned_partitions.into_iter().filter_map(known).collect())
}

/// An assignment for a classic member, in the version of its subscription.
pub(crate) fn write_assignment(assigned: &OwnedPartitions, metadata: &[u8], image: &MetadataImage) -> Bytes {
    let version = key_type(metadata).unwrap_or(0).clamp(0, NEWEST);
    let named = assigned.iter().filter_map(|(topic, partitions)| {
        let topic = image.topic(*topic)?.name.to_string();
        let partitions = partitions.keys().map(|index| index.0).collect();
        Some(assignment::TopicPartition { topic, partitions })
    });
    let value = ConsumerProtocolAssignment { assigned_partitions: named.collect(), user_data: None };
    encode_value(&value, version).unwrap_or_default()
}
