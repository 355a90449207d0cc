//! What the cluster is at one metadata offset: an immutable value that is cheap to clone and shares what did not change.
//!
//! Invariants: an image equals the replay of the records before [`MetadataImage::next_offset`] on an empty one, and the image
//! of its own [`MetadataImage::to_records`]; every name in the name index names a topic that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{
    BrokerEpoch, BrokerId, ClusterId, LeaderEpoch, MetadataOffset, PartitionIndex, ProducerId, TopicId, TopicPartition,
};

use crate::configs;
use crate::records::{
    BrokerChange, BrokerRegistration, ConfigResource, ControllerRegistration, Listener, MetadataRecord, Partition,
    PartitionChange,
};

/// A topic and its partitions.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicImage {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Its partitions.
    pub partitions: BTreeMap<PartitionIndex, Arc<Partition>>,
}

impl TopicImage {
    /// One of its partitions.
    #[must_use]
    pub fn partition(&self, index: PartitionIndex) -> Option<&Arc<Partition>> {
        self.partitions.get(&index)
    }
}

/// The configs of one resource that are set.
pub type ConfigMap = BTreeMap<String, String>;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MetadataImage {
    next_offset: MetadataOffset,
    restored_at: MetadataOffset,
    cluster_id: ClusterId,
    next_producer_id: ProducerId,
    features: Arc<BTreeMap<String, i16>>,
    brokers: Arc<BTreeMap<BrokerId, Arc<BrokerRegistration>>>,
    controllers: Arc<BTreeMap<BrokerId, Arc<ControllerRegistration>>>,
    topics: Arc<BTreeMap<TopicId, Arc<TopicImage>>>,
    topic_ids: Arc<BTreeMap<Arc<str>, TopicId>>,
    configs: Arc<BTreeMap<ConfigResource, Arc<ConfigMap>>>,
}

impl Default for MetadataImage {
    fn default() -> Self {
        Self {
            next_offset: MetadataOffset(0),
            restored_at: MetadataOffset(0),
            cluster_id: ClusterId::NONE,
            next_producer_id: ProducerId(0),
            features: Arc::default(),
            brokers: Arc::default(),
            controllers: Arc::default(),
            topics: Arc::default(),
            topic_ids: Arc::default(),
            configs: Arc::default(),
        }
    }
}

impl MetadataImage {
    /// The image of a snapshot: its records, and the offset after the last record it stands for.
    #[must_use]
    pub fn from_snapshot<'a>(
        next_offset: MetadataOffset,
        records: impl IntoIterator<Item = &'a MetadataRecord>,
    ) -> MetadataImage {
        let mut image = MetadataImage::default();
        for record in records {
            image.apply(record);
        }
        image.next_offset = next_offset;
        image
    }

    /// The offset of the next record: how many were applied (`R65`).
    #[must_use]
    pub fn next_offset(&self) -> MetadataOffset {
        self.next_offset
    }

    /// Where the metadata goes on since it was put back or recovered last: what was told before at lower offsets may be
    /// another history (`R80`). 0 where it never was.
    #[must_use]
    pub fn restored_at(&self) -> MetadataOffset {
        self.restored_at
    }

    /// The cluster's identity; `NONE` before the first record.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The first producer id that was never given out (`R42`).
    #[must_use]
    pub fn next_producer_id(&self) -> ProducerId {
        self.next_producer_id
    }

    /// The finalised features.
    #[must_use]
    pub fn features(&self) -> &BTreeMap<String, i16> {
        &self.features
    }

    /// The finalised level of a feature; 0 where there is none.
    #[must_use]
    pub fn feature(&self, name: &str) -> i16 {
        self.features.get(name).copied().unwrap_or(0)
    }

    /// All registered brokers by id, fenced ones too.
    #[must_use]
    pub fn brokers(&self) -> &BTreeMap<BrokerId, Arc<BrokerRegistration>> {
        &self.brokers
    }

    /// A registered broker.
    #[must_use]
    pub fn broker(&self, id: BrokerId) -> Option<&Arc<BrokerRegistration>> {
        self.brokers.get(&id)
    }

    /// The epoch of a broker's registration; `NONE` where it has none.
    #[must_use]
    pub fn broker_epoch(&self, id: BrokerId) -> BrokerEpoch {
        self.brokers.get(&id).map_or(BrokerEpoch::NONE, |broker| broker.epoch)
    }

    /// The brokers that are unfenced, by id.
    pub fn alive_brokers(&self) -> impl Iterator<Item = &Arc<BrokerRegistration>> {
        self.brokers.values().filter(|broker| !broker.fenced)
    }

    /// Whether a broker is unfenced and not in controlled shutdown (`R12`).
    #[must_use]
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.is_active())
    }

    /// A listener of a broker that is unfenced.
    #[must_use]
    pub fn alive_listener(&self, id: BrokerId, name: &str) -> Option<&Listener> {
        self.brokers.get(&id).filter(|broker| !broker.fenced).and_then(|broker| broker.listener(name))
    }

    /// The controllers that registered, by id.
    #[must_use]
    pub fn controllers(&self) -> &BTreeMap<BrokerId, Arc<ControllerRegistration>> {
        &self.controllers
    }

    /// All topics, by id.
    #[must_use]
    pub fn topics(&self) -> &BTreeMap<TopicId, Arc<TopicImage>> {
        &self.topics
    }

    /// The ids of all topics, by name.
    #[must_use]
    pub fn topic_ids(&self) -> &BTreeMap<Arc<str>, TopicId> {
        &self.topic_ids
    }

    /// A topic by id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Arc<TopicImage>> {
        self.topics.get(&id)
    }

    /// A topic by name.
    #[must_use]
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<TopicImage>> {
        self.topic_ids.get(name).and_then(|id| self.topics.get(id))
    }

    /// A topic's id by name.
    #[must_use]
    pub fn topic_id(&self, name: &str) -> Option<TopicId> {
        self.topic_ids.get(name).copied()
    }

    /// A partition.
    #[must_use]
    pub fn partition(&self, id: TopicPartition) -> Option<&Arc<Partition>> {
        self.topics.get(&id.topic_id).and_then(|topic| topic.partition(id.partition))
    }

    /// All partitions, by topic id and number.
    pub fn partitions(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.topics.values().flat_map(|topic| topic.partitions.values())
    }

    /// The leader of a partition and its epoch, where there is one.
    #[must_use]
    pub fn leader_for(&self, id: TopicPartition) -> Option<(BrokerId, LeaderEpoch)> {
        let partition = self.partition(id)?;
        (!partition.is_leaderless()).then_some((partition.leader, partition.leader_epoch))
    }

    /// Whether the replica of a partition on `broker` could lead or be in its ISR: the broker is active and the replica's
    /// directory online (`R33`).
    #[must_use]
    pub fn is_eligible(&self, partition: &Partition, broker: BrokerId) -> bool {
        self.brokers.get(&broker).is_some_and(|b| b.is_active() && b.is_online(partition.directory_of(broker)))
    }

    /// All resources that have configs set.
    #[must_use]
    pub fn configs(&self) -> &BTreeMap<ConfigResource, Arc<ConfigMap>> {
        &self.configs
    }

    /// What is set for a resource itself.
    #[must_use]
    pub fn config_of(&self, resource: &ConfigResource, name: &str) -> Option<&str> {
        self.configs.get(resource).and_then(|map| map.get(name)).map(String::as_str)
    }

    /// A topic's config as far as the metadata log says: set for the topic, else for the broker under the name of the
    /// broker's synonym, else for all brokers. Below it come the broker's own file and the default of the table
    /// ([`configs`]).
    #[must_use]
    pub fn topic_config(&self, topic: &str, name: &str, broker: BrokerId) -> Option<&str> {
        self.config_of(&ConfigResource::Topic(topic.to_owned()), name).or_else(|| {
            let synonym = configs::topic(name).and_then(|definition| definition.broker_synonym)?;
            self.broker_config(broker, synonym)
        })
    }

    /// A broker's config as far as the metadata log says: set for the broker, else for all brokers.
    #[must_use]
    pub fn broker_config(&self, broker: BrokerId, name: &str) -> Option<&str> {
        self.config_of(&ConfigResource::Broker(broker), name)
            .or_else(|| self.config_of(&ConfigResource::DefaultBroker, name))
    }

    /// The effective min ISR of a topic's partition with so many replicas ([`Partition::factor`]): min(min.insync.replicas, RF). It is the same on
    /// every node: brokers cannot set it for themselves, and the cluster's first records carry the configured default.
    #[must_use]
    pub fn min_isr(&self, topic: &str, replicas: usize) -> usize {
        let set = self.topic_config(topic, configs::MIN_INSYNC_REPLICAS, BrokerId::NONE);
        set.and_then(|value| value.trim().parse().ok()).unwrap_or(1).clamp(1, replicas.max(1))
    }

    /// How many zones the in-sync replicas of a topic must be in to commit (`R79`); none where it does not ask for zones.
    #[must_use]
    pub fn ack_zones(&self, topic: &str) -> usize {
        let rule = self.config_of(&ConfigResource::Topic(topic.to_owned()), configs::ACK_RULE);
        rule.and_then(configs::ack_zones).unwrap_or(0)
    }

    /// How many zones these brokers are in, by the registrations in force; a broker without a rack is in none (`R79`).
    #[must_use]
    pub fn zones_of(&self, brokers: &[BrokerId]) -> usize {
        let rack = |broker: &BrokerId| self.brokers.get(broker).and_then(|broker| broker.rack.as_deref());
        brokers.iter().filter_map(rack).collect::<BTreeSet<_>>().len()
    }

    /// Whether these in-sync replicas of a topic's partition may commit: they are as many as min ISR asks for (`R18`,
    /// `R34`), in as many zones as the ack rule does (`R79`). `factor` is [`Partition::factor`].
    #[must_use]
    pub fn is_enough(&self, topic: &str, factor: usize, isr: &[BrokerId]) -> bool {
        let zones = self.ack_zones(topic);
        isr.len() >= self.min_isr(topic, factor) && (zones == 0 || self.zones_of(isr) >= zones)
    }

    /// Applies one record at [`MetadataImage::next_offset`]. It cannot fail: a record about something that does not exist
    /// changes nothing but the offset.
    pub fn apply(&mut self, record: &MetadataRecord) {
        match record {
            MetadataRecord::ClusterId(id) => self.cluster_id = *id,
            MetadataRecord::FeatureLevel { name, level } => self.set_feature(name, *level),
            MetadataRecord::RegisterBroker(broker) => self.register(broker),
            MetadataRecord::BrokerChange(change) => self.change_broker(change),
            MetadataRecord::UnregisterBroker { id, epoch } => {
                if self.broker_epoch(*id) == *epoch {
                    Arc::make_mut(&mut self.brokers).remove(id);
                }
            }
            MetadataRecord::ControllerRegistration(controller) => {
                Arc::make_mut(&mut self.controllers).insert(controller.id, Arc::new((**controller).clone()));
            }
            MetadataRecord::Topic { id, name } => self.add_topic(*id, name),
            MetadataRecord::RemoveTopic { id } => self.remove_topic(*id),
            MetadataRecord::Partition(partition) => {
                self.set_partition(partition.id(), Arc::new((**partition).clone()));
            }
            MetadataRecord::PartitionChange(change) => self.change_partition(change),
            MetadataRecord::Config { resource, name, value } => self.set_config(resource, name, value.as_deref()),
            MetadataRecord::ProducerIds { next } => self.next_producer_id = *next,
            MetadataRecord::Restored { at } => self.restored_at = *at,
        }
        self.next_offset = MetadataOffset(self.next_offset.0 + 1);
    }

    /// The records that make this image from an empty one, but for the offset ([`MetadataImage::from_snapshot`]).
    #[must_use]
    pub fn to_records(&self) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        if !self.cluster_id.is_none() {
            records.push(MetadataRecord::ClusterId(self.cluster_id));
        }
        let feature =
            |(name, level): (&String, &i16)| MetadataRecord::FeatureLevel { name: name.clone(), level: *level };
        records.extend(self.features.iter().map(feature));
        if self.next_producer_id != ProducerId(0) {
            records.push(MetadataRecord::ProducerIds { next: self.next_producer_id });
        }
        if self.restored_at != MetadataOffset(0) {
            records.push(MetadataRecord::Restored { at: self.restored_at });
        }
        let controller =
            |c: &Arc<ControllerRegistration>| MetadataRecord::ControllerRegistration(Box::new((**c).clone()));
        records.extend(self.controllers.values().map(controller));
        let broker = |b: &Arc<BrokerRegistration>| MetadataRecord::RegisterBroker(Box::new((**b).clone()));
        records.extend(self.brokers.values().map(broker));
        for topic in self.topics.values() {
            records.push(MetadataRecord::Topic { id: topic.id, name: topic.name.to_string() });
            let partition = |p: &Arc<Partition>| MetadataRecord::Partition(Box::new((**p).clone()));
            records.extend(topic.partitions.values().map(partition));
        }
        for (resource, map) in self.configs.iter() {
            records.extend(map.iter().map(|(name, value)| MetadataRecord::Config {
                resource: resource.clone(),
                name: name.clone(),
                value: Some(value.clone()),
            }));
        }
        records
    }

    fn set_feature(&mut self, name: &str, level: i16) {
        let features = Arc::make_mut(&mut self.features);
        if level == 0 {
            features.remove(name);
        } else {
            features.insert(name.to_owned(), level);
        }
    }

    fn register(&mut self, broker: &BrokerRegistration) {
        let mut broker = broker.clone();
        if broker.epoch == BrokerEpoch::NONE {
            broker.epoch = BrokerEpoch(i64::try_from(self.next_offset.0).unwrap_or(i64::MAX));
        }
        Arc::make_mut(&mut self.brokers).insert(broker.id, Arc::new(broker));
    }

    fn change_broker(&mut self, change: &BrokerChange) {
        let brokers = Arc::make_mut(&mut self.brokers);
        let Some(broker) = brokers.get_mut(&change.id).filter(|broker| broker.epoch == change.epoch) else { return };
        let broker = Arc::make_mut(broker);
        broker.fenced = change.fenced.unwrap_or(broker.fenced);
        broker.in_controlled_shutdown = change.in_controlled_shutdown.unwrap_or(broker.in_controlled_shutdown);
        if let Some(offline) = &change.offline_directories {
            broker.offline_directories.clone_from(offline);
        }
        if let Some(cordoned) = &change.cordoned_directories {
            broker.cordoned_directories.clone_from(cordoned);
        }
    }

    /// A topic takes the place of any other of its id or its name.
    fn add_topic(&mut self, id: TopicId, name: &str) {
        match self.topic(id).map(|topic| &*topic.name == name) {
            Some(true) => return,
            Some(false) => self.remove_topic(id),
            None => {}
        }
        if let Some(other) = self.topic_id(name) {
            self.remove_topic(other);
        }
        let name: Arc<str> = name.into();
        let topic = TopicImage { id, name: name.clone(), partitions: BTreeMap::new() };
        Arc::make_mut(&mut self.topics).insert(id, Arc::new(topic));
        Arc::make_mut(&mut self.topic_ids).insert(name, id);
    }

    fn remove_topic(&mut self, id: TopicId) {
        let Some(topic) = Arc::make_mut(&mut self.topics).remove(&id) else { return };
        Arc::make_mut(&mut self.topic_ids).remove(&topic.name);
        let resource = ConfigResource::Topic(topic.name.to_string());
        if self.configs.contains_key(&resource) {
            Arc::make_mut(&mut self.configs).remove(&resource);
        }
    }

    fn set_partition(&mut self, id: TopicPartition, partition: Arc<Partition>) {
        if let Some(topic) = Arc::make_mut(&mut self.topics).get_mut(&id.topic_id) {
            Arc::make_mut(topic).partitions.insert(id.partition, partition);
        }
    }

    fn change_partition(&mut self, change: &PartitionChange) {
        if let Some(before) = self.partition(change.id()) {
            let after = Arc::new(before.with(change));
            self.set_partition(change.id(), after);
        }
    }

    fn set_config(&mut self, resource: &ConfigResource, name: &str, value: Option<&str>) {
        let all = Arc::make_mut(&mut self.configs);
        let map = Arc::make_mut(all.entry(resource.clone()).or_default());
        match value {
            Some(value) => map.insert(name.to_owned(), value.to_owned()),
            None => map.remove(name),
        };
        if map.is_empty() {
            all.remove(resource);
        }
    }
}

/// Whether the brokers keep a topic of this name for themselves.
#[must_use]
pub fn is_internal_topic(name: &str) -> bool {
    matches!(name, "__consumer_offsets" | "__transaction_state" | "__share_group_state")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::MetadataDelta;
    use model::{BootId, DirectoryId, Incarnation, Uuid};
    use proptest::prelude::*;

    fn topic_id(number: u8) -> TopicId {
        TopicId(Uuid::from_u128(u128::from(number)))
    }

    fn partition(topic: u8, index: i32, leader: i32) -> Partition {
        Partition {
            topic_id: topic_id(topic),
            partition: PartitionIndex(index),
            replicas: vec![BrokerId(leader)],
            directories: vec![DirectoryId::NONE],
            adding: vec![],
            removing: vec![],
            isr: vec![BrokerId(leader)],
            elr: vec![],
            last_known_elr: vec![],
            displaced: vec![],
            leader: BrokerId(leader),
            last_leader: BrokerId(leader),
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(leader),
            partition_epoch: model::PartitionEpoch(leader),
            leader_recovery_state: crate::records::LeaderRecoveryState::Recovered,
        }
    }

    fn broker(id: i32) -> BrokerRegistration {
        BrokerRegistration {
            id: BrokerId(id),
            epoch: BrokerEpoch::NONE,
            incarnation: Incarnation::NONE,
            boot: BootId::NONE,
            directories: vec![],
            offline_directories: vec![],
            cordoned_directories: vec![],
            listeners: vec![],
            rack: None,
            features: BTreeMap::new(),
            fenced: true,
            in_controlled_shutdown: false,
        }
    }

    /// Any record, about things that exist or not.
    fn record() -> impl Strategy<Value = MetadataRecord> {
        let small = || 0..4u8;
        prop_oneof![
            (small(), small())
                .prop_map(|(id, name)| MetadataRecord::Topic { id: topic_id(id), name: format!("t{name}") }),
            small().prop_map(|id| MetadataRecord::RemoveTopic { id: topic_id(id) }),
            (small(), 0..3, 0..3).prop_map(|(t, p, l)| MetadataRecord::Partition(Box::new(partition(t, p, l)))),
            (small(), 0..3, 0..3, 0..3).prop_map(|(t, p, a, b)| {
                let change = PartitionChange::between(&partition(t, p, a), &partition(t, p, b));
                MetadataRecord::PartitionChange(Box::new(change))
            }),
            (0..4).prop_map(|id| MetadataRecord::RegisterBroker(Box::new(broker(id)))),
            (0..4, 0..40i64, any::<bool>()).prop_map(|(id, epoch, fenced)| {
                MetadataRecord::BrokerChange(BrokerChange {
                    id: BrokerId(id),
                    epoch: BrokerEpoch(epoch),
                    fenced: Some(fenced),
                    in_controlled_shutdown: None,
                    offline_directories: None,
                    cordoned_directories: None,
                })
            }),
            (0..4, 0..40i64).prop_map(|(id, epoch)| MetadataRecord::UnregisterBroker {
                id: BrokerId(id),
                epoch: BrokerEpoch(epoch)
            }),
            (small(), prop::option::of(small())).prop_map(|(topic, value)| MetadataRecord::Config {
                resource: ConfigResource::Topic(format!("t{topic}")),
                name: "flush.ms".to_owned(),
                value: value.map(|value| value.to_string()),
            }),
            (0..3i16).prop_map(|level| MetadataRecord::FeatureLevel { name: "f".to_owned(), level }),
            (0..9i64).prop_map(|next| MetadataRecord::ProducerIds { next: ProducerId(next) }),
            (0..9u64).prop_map(|at| MetadataRecord::Restored { at: MetadataOffset(at) }),
        ]
    }

    fn replayed<'a>(records: impl IntoIterator<Item = &'a MetadataRecord>) -> MetadataImage {
        let mut image = MetadataImage::default();
        records.into_iter().for_each(|record| image.apply(record));
        image
    }

    proptest! {
        #[test]
        fn an_image_is_the_image_of_its_snapshot(records in prop::collection::vec(record(), 0..60)) {
            let image = replayed(&records);
            let snapshot = image.to_records();
            let again = MetadataImage::from_snapshot(image.next_offset(), &snapshot);
            prop_assert_eq!(&again, &image);
            prop_assert_eq!(again.to_records(), snapshot);
            for (name, id) in image.topic_ids() {
                prop_assert_eq!(&image.topic(*id).unwrap().name, name);
            }
            prop_assert_eq!(image.topic_ids().len(), image.topics().len());
        }

        #[test]
        fn an_image_is_not_changed_by_what_is_applied_to_a_copy(
            before in prop::collection::vec(record(), 0..40), after in prop::collection::vec(record(), 0..40),
        ) {
            let image = replayed(&before);
            let mut copy = image.clone();
            after.iter().for_each(|record| copy.apply(record));
            prop_assert_eq!(&image, &replayed(&before));
            prop_assert_eq!(&copy, &replayed(before.iter().chain(&after)));
        }

        /// Against brute force, and the same whether the images share anything or not.
        #[test]
        fn a_delta_names_what_differs(
            before in prop::collection::vec(record(), 0..40), after in prop::collection::vec(record(), 0..40),
        ) {
            let old = replayed(&before);
            let mut new = old.clone();
            after.iter().for_each(|record| new.apply(record));
            let delta = MetadataDelta::between(&old, &new);
            prop_assert_eq!(&delta, &MetadataDelta::between(&old, &MetadataImage::from_snapshot(new.next_offset(), &new.to_records())));
            let ids: BTreeSet<_> = old.partitions().chain(new.partitions()).map(|p| p.id()).collect();
            let differ: Vec<_> = ids.into_iter().filter(|id| old.partition(*id) != new.partition(*id)).collect();
            prop_assert_eq!(delta.partitions.iter().map(|(id, _)| *id).collect::<Vec<_>>(), differ);
            let brokers: Vec<_> = (0..4).map(BrokerId).filter(|id| old.broker(*id) != new.broker(*id)).collect();
            prop_assert_eq!(delta.brokers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), brokers);
            let created: Vec<_> = new.topics().keys().filter(|id| old.topic(**id).is_none()).collect();
            prop_assert_eq!(delta.created_topics.iter().map(|t| &t.id).collect::<Vec<_>>(), created);
        }
    }

    #[test]
    fn a_brokers_epoch_is_the_offset_of_its_registration() {
        // R6, R65
        let image = replayed(&[
            MetadataRecord::ProducerIds { next: ProducerId(1) },
            MetadataRecord::RegisterBroker(Box::new(broker(1))),
            MetadataRecord::RegisterBroker(Box::new(broker(2))),
        ]);
        assert_eq!([1, 2, 3].map(|id| image.broker_epoch(BrokerId(id)).0), [1, 2, -1]);
    }
}
