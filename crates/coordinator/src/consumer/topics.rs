//! The topics that a group is subscribed to, as the metadata has them now.

use std::collections::BTreeSet;
use std::sync::Arc;

use metadata::{MetadataDelta, MetadataImage};
use model::TopicId;

use crate::consumer::group::{ConsumerGroup, Subscription, TopicNames};

/// Where FNV-1a begins, and what it multiplies with.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The names of topics whose partitions or replicas are other ones after a change of the metadata.
#[must_use]
pub fn changed_topics(before: &MetadataImage, after: &MetadataImage, delta: &MetadataDelta) -> BTreeSet<Arc<str>> {
    let moved = delta.partitions.iter().filter(|(_, change)| {
        let replicas = |partition: &Option<Arc<metadata::records::Partition>>| {
            partition.as_ref().map(|partition| partition.replicas.clone())
        };
        replicas(&change.before) != replicas(&change.after)
    });
    let ids: BTreeSet<TopicId> = moved.map(|(id, _)| id.topic_id).collect();
    let topics = ids.into_iter().filter_map(|id| after.topic(id).or_else(|| before.topic(id)));
    topics.map(|topic| Arc::clone(&topic.name)).collect()
}

/// The names that a subscription stands for; topics that do not exist are among them.
#[must_use]
pub fn names_of(group: &ConsumerGroup, subscription: &Subscription) -> TopicNames {
    let resolved = subscription.regex.as_deref().and_then(|regex| group.regexes().get(regex));
    match resolved {
        None => Arc::clone(&subscription.topics),
        Some(resolved) if subscription.topics.is_empty() => Arc::clone(&resolved.topics),
        Some(resolved) => Arc::new(subscription.topics.union(&resolved.topics).cloned().collect()),
    }
}

/// A digest of what exists of the topics that a group is subscribed to: names, ids, partitions and their racks. It is only
/// ever compared with one that was computed here, so any good function will do; 0 stands for no topics, as in Kafka.
#[must_use]
pub fn metadata_hash(group: &ConsumerGroup, image: &MetadataImage) -> i64 {
    let all: Vec<TopicNames> = group.subscriptions().keys().map(|subscription| names_of(group, subscription)).collect();
    let names: BTreeSet<&String> = all.iter().flat_map(|names| names.iter()).collect();
    let mut hash = Fnv(FNV_BASIS);
    let mut any = false;
    for topic in names.into_iter().filter_map(|name| image.topic_by_name(name)) {
        any = true;
        hash.add(topic.name.as_bytes());
        hash.add(topic.id.0.as_bytes());
        hash.add(&topic.partitions.len().to_be_bytes());
        for partition in topic.partitions.values() {
            let racks = partition.replicas.iter().filter_map(|id| image.broker(*id)?.rack.as_deref());
            let racks: BTreeSet<&str> = racks.collect();
            hash.add(&racks.len().to_be_bytes());
            racks.into_iter().for_each(|rack| hash.add(rack.as_bytes()));
        }
    }
    if any { i64::from_be_bytes(hash.0.to_be_bytes()) } else { 0 }
}

struct Fnv(u64);

impl Fnv {
    /// Adds bytes and their number, so that ("ab", "c") is not ("a", "bc").
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&bytes.len().to_be_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }
}
