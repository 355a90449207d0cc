//! What changed between two images, for those who act on metadata. A snapshot is delivered as a delta too: there is one path.
//!
//! Invariant: a delta spans whole batches (`R70`), because images are published once per batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{BrokerId, MetadataOffset, TopicPartition};

use crate::image::{MetadataImage, TopicImage};
use crate::records::{BrokerRegistration, ConfigResource, Partition};

/// A value before and after; `None` where it did not exist.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Change<T> {
    /// Before.
    pub before: Option<Arc<T>>,
    /// After.
    pub after: Option<Arc<T>>,
}

/// See the module. All lists are in ascending order of what they name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MetadataDelta {
    /// The `next_offset` of the image before.
    pub from: MetadataOffset,
    /// The `next_offset` of the image after.
    pub to: MetadataOffset,
    /// Topics that are new.
    pub created_topics: Vec<Arc<TopicImage>>,
    /// Topics that are gone, as they were.
    pub removed_topics: Vec<Arc<TopicImage>>,
    /// Partitions that changed, those of created and removed topics included.
    pub partitions: Vec<(TopicPartition, Change<Partition>)>,
    /// Brokers that changed.
    pub brokers: Vec<(BrokerId, Change<BrokerRegistration>)>,
    /// Resources whose configs changed.
    pub configs: Vec<ConfigResource>,
    /// Whether a finalised feature changed.
    pub features_changed: bool,
}

impl MetadataDelta {
    /// What turns `before` into `after`.
    #[must_use]
    pub fn between(before: &MetadataImage, after: &MetadataImage) -> MetadataDelta {
        let mut delta = MetadataDelta {
            from: before.next_offset(),
            to: after.next_offset(),
            created_topics: Vec::new(),
            removed_topics: Vec::new(),
            partitions: Vec::new(),
            brokers: changes(before.brokers(), after.brokers()),
            configs: changes(before.configs(), after.configs()).into_iter().map(|(resource, _)| resource).collect(),
            features_changed: before.features() != after.features(),
        };
        for (id, topic) in changes(before.topics(), after.topics()) {
            let none = BTreeMap::new();
            let old = topic.before.as_ref().map_or(&none, |topic| &topic.partitions);
            let new = topic.after.as_ref().map_or(&none, |topic| &topic.partitions);
            let partition = |(partition, change)| (TopicPartition { topic_id: id, partition }, change);
            delta.partitions.extend(changes(old, new).into_iter().map(partition));
            match (topic.before, topic.after) {
                (None, Some(created)) => delta.created_topics.push(created),
                (Some(removed), None) => delta.removed_topics.push(removed),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        delta
    }

    /// Whether nothing changed but the offset.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.created_topics.is_empty()
            && self.removed_topics.is_empty()
            && self.partitions.is_empty()
            && self.brokers.is_empty()
            && self.configs.is_empty()
            && !self.features_changed
    }
}

/// The entries that differ. What two images share is not looked into.
fn changes<K: Ord + Clone, V: PartialEq>(
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
) -> Vec<(K, Change<V>)> {
    if std::ptr::eq(before, after) {
        return Vec::new();
    }
    let mut found = BTreeMap::new();
    for (key, new) in after {
        let old = before.get(key);
        if old.is_none_or(|old| !Arc::ptr_eq(old, new) && old != new) {
            found.insert(key.clone(), Change { before: old.cloned(), after: Some(new.clone()) });
        }
    }
    for (key, old) in before {
        if !after.contains_key(key) {
            found.insert(key.clone(), Change { before: Some(old.clone()), after: None });
        }
    }
    found.into_iter().collect()
}
