//! A cluster's metadata in miniature: topics with partitions on brokers in racks.

use std::collections::BTreeSet;
use std::sync::Arc;

use coordinator::consumer::topics::changed_topics;
use metadata::{BrokerRegistration, MetadataDelta, MetadataImage, MetadataRecord, Partition};
use model::{
    BootId, BrokerEpoch, BrokerId, DirectoryId, Incarnation, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId, Uuid,
};

/// The brokers, each in a rack of its own: `rack-0` to `rack-2`.
const BROKERS: i32 = 3;

/// An empty cluster of three brokers.
pub(crate) fn cluster() -> MetadataImage {
    let mut image = MetadataImage::default();
    for id in 0..BROKERS {
        image.apply(&MetadataRecord::RegisterBroker(Box::new(BrokerRegistration {
            id: BrokerId(id),
            epoch: BrokerEpoch::NONE,
            incarnation: Incarnation::NONE,
            boot: BootId::NONE,
            directories: Vec::new(),
            offline_directories: Vec::new(),
            cordoned_directories: Vec::new(),
            listeners: Vec::new(),
            rack: Some(format!("rack-{id}")),
            features: Default::default(),
            fenced: false,
            in_controlled_shutdown: false,
        })));
    }
    image
}

/// The id of a topic of this name.
pub(crate) fn topic_id(name: &str) -> TopicId {
    let number = name.bytes().fold(7_u128, |number, byte| number * 257 + u128::from(byte));
    TopicId(Uuid::from_u128(number))
}

/// Partitions `range` of a topic come to be, each on one broker: partition 4 on broker 1.
pub(crate) fn add_partitions(image: &mut MetadataImage, name: &str, range: std::ops::Range<i32>) {
    let id = topic_id(name);
    if image.topic(id).is_none() {
        image.apply(&MetadataRecord::Topic { id, name: name.to_owned() });
    }
    for index in range {
        let broker = BrokerId(index % BROKERS);
        image.apply(&MetadataRecord::Partition(Box::new(Partition {
            topic_id: id,
            partition: PartitionIndex(index),
            replicas: vec![broker],
            directories: vec![DirectoryId::NONE],
            adding: Vec::new(),
            removing: Vec::new(),
            isr: vec![broker],
            elr: Vec::new(),
            last_known_elr: Vec::new(),
            displaced: Vec::new(),
            leader: broker,
            last_leader: broker,
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(0),
            partition_epoch: PartitionEpoch(0),
            leader_recovery_state: metadata::records::LeaderRecoveryState::Recovered,
        })));
    }
}

/// A cluster with these topics.
pub(crate) fn cluster_with(topics: &[(&str, i32)]) -> Arc<MetadataImage> {
    let mut image = cluster();
    topics.iter().for_each(|(name, partitions)| add_partitions(&mut image, name, 0..*partitions));
    Arc::new(image)
}

/// The topics that differ between two images.
pub(crate) fn changed(before: &MetadataImage, after: &MetadataImage) -> BTreeSet<Arc<str>> {
    changed_topics(before, after, &MetadataDelta::between(before, after))
}
