//! Whose replication is throttled, and to which rate: Kafka's configs, resolved for one leader.
//!
//! `leader.replication.throttled.replicas` of a topic names replicas that are throttled where they lead, and
//! `follower.replication.throttled.replicas` those that are throttled where they follow; the rates are the brokers'. Only
//! replicas that are not in sync are throttled. A leader pushes to its followers, so it holds the followers' rates too: a
//! follower's rate is shared by the leaders that bring it up.

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerId, PartitionIndex, TopicId, TopicPartition};

use crate::configs;
use crate::image::MetadataImage;
use crate::records::ConfigResource;

/// Replicas that are throttled where they lead (topics).
pub const LEADER_REPLICAS: &str = "leader.replication.throttled.replicas";
/// Replicas that are throttled where they follow (topics).
pub const FOLLOWER_REPLICAS: &str = "follower.replication.throttled.replicas";
/// Bytes a second that a broker sends of the former (brokers).
pub const LEADER_RATE: &str = "leader.replication.throttled.rate";
/// Bytes a second that a broker takes of the latter (brokers).
pub const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicationThrottle {
    /// Bytes a second that this broker may send, of those that are throttled where they lead.
    pub leader_rate: Option<u64>,
    /// Bytes a second that it may send to each follower, of those that are throttled where they follow.
    pub follower_rates: BTreeMap<BrokerId, u64>,
    topics: BTreeMap<TopicId, Throttled>,
}

/// The replicas of a topic that are throttled.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Throttled {
    where_leading: Replicas,
    where_following: Replicas,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Replicas {
    All,
    These(BTreeSet<(PartitionIndex, BrokerId)>),
}

impl Default for Replicas {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Replicas {
    /// What cannot be read, which nobody could set, names nobody.
    fn parse(text: Option<&str>) -> Replicas {
        let items = configs::list(text.unwrap_or_default());
        if items.iter().any(|item| item == "*") {
            return Replicas::All;
        }
        let pair = |item: &String| {
            let (partition, broker) = item.split_once(':')?;
            Some((PartitionIndex(partition.parse().ok()?), BrokerId(broker.parse().ok()?)))
        };
        Replicas::These(items.iter().filter_map(pair).collect())
    }

    fn contain(&self, partition: PartitionIndex, broker: BrokerId) -> bool {
        match self {
            Replicas::All => true,
            Replicas::These(these) => these.contains(&(partition, broker)),
        }
    }
}

impl ReplicationThrottle {
    /// What the metadata says for partitions that `leader` leads.
    #[must_use]
    pub fn resolve(image: &MetadataImage, leader: BrokerId) -> ReplicationThrottle {
        let mut topics = BTreeMap::new();
        for (resource, set) in image.configs() {
            let ConfigResource::Topic(name) = resource else { continue };
            let text = |config: &str| set.get(config).map(String::as_str);
            if let (None, None) = (text(LEADER_REPLICAS), text(FOLLOWER_REPLICAS)) {
                continue;
            }
            if let Some(id) = image.topic_id(name) {
                let where_leading = Replicas::parse(text(LEADER_REPLICAS));
                let where_following = Replicas::parse(text(FOLLOWER_REPLICAS));
                topics.insert(id, Throttled { where_leading, where_following });
            }
        }
        let leader_rate = if topics.is_empty() { None } else { rate(image, leader, LEADER_RATE) };
        let mut throttle = ReplicationThrottle { leader_rate, follower_rates: BTreeMap::new(), topics };
        throttle.follower_rates = throttle.shares(image);
        throttle
    }

    /// Whether the configs name replicas, be they in sync at this moment.
    #[must_use]
    pub fn names_replicas(&self) -> bool {
        !self.topics.is_empty()
    }

    /// Whether nobody is throttled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leader_rate.is_none() && self.follower_rates.is_empty()
    }

    /// Whether the leader's rate holds for a partition that it leads.
    #[must_use]
    pub fn throttles_leader(&self, partition: TopicPartition, leader: BrokerId) -> bool {
        let topic = self.topics.get(&partition.topic_id);
        self.leader_rate.is_some() && topic.is_some_and(|t| t.where_leading.contain(partition.partition, leader))
    }

    /// Whether the follower's rate holds for its replica of a partition.
    #[must_use]
    pub fn throttles_follower(&self, partition: TopicPartition, follower: BrokerId) -> bool {
        let topic = self.topics.get(&partition.topic_id);
        self.follower_rates.contains_key(&follower)
            && topic.is_some_and(|t| t.where_following.contain(partition.partition, follower))
    }

    /// Each throttled follower's rate, shared by the leaders that bring it up.
    fn shares(&self, image: &MetadataImage) -> BTreeMap<BrokerId, u64> {
        let mut leaders: BTreeMap<BrokerId, BTreeSet<BrokerId>> = BTreeMap::new();
        for (id, throttled) in &self.topics {
            let Some(topic) = image.topic(*id) else { continue };
            for partition in topic.partitions.values().filter(|partition| !partition.is_leaderless()) {
                let behind = partition.replicas.iter().filter(|b| !partition.isr.contains(b));
                for follower in behind.filter(|b| throttled.where_following.contain(partition.partition, **b)) {
                    leaders.entry(*follower).or_default().insert(partition.leader);
                }
            }
        }
        let share = |(follower, leaders): (BrokerId, BTreeSet<BrokerId>)| {
            let leaders = u64::try_from(leaders.len()).unwrap_or(u64::MAX).max(1);
            rate(image, follower, FOLLOWER_RATE).map(|rate| (follower, rate / leaders))
        };
        leaders.into_iter().filter_map(share).collect()
    }
}

fn rate(image: &MetadataImage, broker: BrokerId, name: &str) -> Option<u64> {
    image.broker_config(broker, name).and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{LeaderRecoveryState, MetadataRecord, Partition};
    use model::{DirectoryId, LeaderEpoch, PartitionEpoch, Uuid};

    fn ids(numbers: &[i32]) -> Vec<BrokerId> {
        numbers.iter().copied().map(BrokerId).collect()
    }

    fn id(partition: i32) -> TopicPartition {
        TopicPartition { topic_id: TopicId(Uuid::from_u128(5)), partition: PartitionIndex(partition) }
    }

    fn partition(index: i32, replicas: &[i32], isr: &[i32]) -> MetadataRecord {
        MetadataRecord::Partition(Box::new(Partition {
            topic_id: id(0).topic_id,
            partition: PartitionIndex(index),
            replicas: ids(replicas),
            directories: vec![DirectoryId::NONE; replicas.len()],
            adding: vec![],
            removing: vec![],
            isr: ids(isr),
            elr: vec![],
            last_known_elr: vec![],
            displaced: vec![],
            leader: BrokerId(isr[0]),
            last_leader: BrokerId(isr[0]),
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(0),
            partition_epoch: PartitionEpoch(0),
            leader_recovery_state: LeaderRecoveryState::Recovered,
        }))
    }

    fn set(resource: ConfigResource, name: &str, value: &str) -> MetadataRecord {
        MetadataRecord::Config { resource, name: name.to_owned(), value: Some(value.to_owned()) }
    }

    /// Partitions 0 and 1, led by 1 and 2, are both to be brought to 3.
    fn image(configs: &[MetadataRecord]) -> MetadataImage {
        let topic = MetadataRecord::Topic { id: id(0).topic_id, name: "t".to_owned() };
        let partitions = [partition(0, &[1, 3], &[1]), partition(1, &[2, 3], &[2])];
        let mut image = MetadataImage::default();
        [topic].iter().chain(&partitions).chain(configs).for_each(|record| image.apply(record));
        image
    }

    fn topic() -> ConfigResource {
        ConfigResource::Topic("t".to_owned())
    }

    #[test]
    fn a_rate_without_replicas_and_replicas_without_a_rate_throttle_nobody() {
        let rate = |name| set(ConfigResource::DefaultBroker, name, "1000");
        assert!(
            ReplicationThrottle::resolve(&image(&[rate(LEADER_RATE), rate(FOLLOWER_RATE)]), BrokerId(1)).is_empty()
        );
        let all = [set(topic(), LEADER_REPLICAS, "*"), set(topic(), FOLLOWER_REPLICAS, "*")];
        assert!(ReplicationThrottle::resolve(&image(&all), BrokerId(1)).is_empty());
    }

    #[test]
    fn the_leaders_rate_is_its_own_and_holds_for_the_replicas_named() {
        let configs = [
            set(topic(), LEADER_REPLICAS, "0:1,1:9"),
            set(ConfigResource::DefaultBroker, LEADER_RATE, "1000"),
            set(ConfigResource::Broker(BrokerId(1)), LEADER_RATE, "3000"),
        ];
        let throttle = ReplicationThrottle::resolve(&image(&configs), BrokerId(1));
        assert_eq!(throttle.leader_rate, Some(3_000));
        assert!(throttle.throttles_leader(id(0), BrokerId(1)));
        assert!(!throttle.throttles_leader(id(1), BrokerId(1)));
        assert!(!throttle.throttles_follower(id(0), BrokerId(3)));
    }

    #[test]
    fn a_followers_rate_is_shared_by_the_leaders_that_bring_it_up() {
        let configs =
            [set(topic(), FOLLOWER_REPLICAS, "*"), set(ConfigResource::Broker(BrokerId(3)), FOLLOWER_RATE, "1000")];
        let mut image = image(&configs);
        let throttle = ReplicationThrottle::resolve(&image, BrokerId(1));
        assert_eq!(throttle.follower_rates, [(BrokerId(3), 500)].into());
        assert!(throttle.throttles_follower(id(0), BrokerId(3)));
        assert!(!throttle.throttles_follower(id(0), BrokerId(2)));
        image.apply(&partition(1, &[2, 3], &[2, 3]));
        let throttle = ReplicationThrottle::resolve(&image, BrokerId(1));
        assert_eq!(throttle.follower_rates, [(BrokerId(3), 1_000)].into());
    }
}
