//! What is wrong now with the partitions and with the quorum, as far as the answers of brokers tell.

use std::collections::{BTreeMap, BTreeSet};

use protocol::messages::MetadataResponse;
use protocol::messages::metadata_response::MetadataResponsePartition;

use super::outlook::{self, takes_acks_all};
use super::rebalance::Replicas;

/// A voter that the active controller has not heard of for so long is down; it hears of each several times a second.
const SILENCE_MS: i64 = 5_000;

/// Partitions by topic.
pub(super) type ByTopic = BTreeMap<String, Vec<i32>>;

/// The metadata quorum as brokers describe it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Quorum {
    /// None while nobody leads it.
    pub(super) leader: Option<i32>,
    /// The voters, and when the leader heard of each: in its own time, -1 where it never did.
    pub(super) voters: BTreeMap<i32, i64>,
}

impl Quorum {
    /// The voters that are down. One that is no broker, or is fenced, is not listed: of those the leader alone can tell.
    pub(super) fn down(&self, listed: &BTreeSet<i32>, reached: &BTreeSet<i32>) -> BTreeSet<i32> {
        let newest = self.voters.values().copied().max().unwrap_or(-1);
        let is_down = |(id, heard): &(&i32, &i64)| {
            let heard_of = self.leader == Some(**id) || (**heard >= 0 && newest - **heard < SILENCE_MS);
            !reached.contains(*id) && (listed.contains(*id) || !heard_of)
        };
        self.voters.iter().filter(is_down).map(|(id, _)| *id).collect()
    }
}

/// What the partitions' troubles are told from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) metadata: &'a MetadataResponse,
    /// The brokers that answer.
    pub(super) reached: &'a BTreeSet<i32>,
    /// `min.insync.replicas` and the zones of `ottla.ack.rule`, by topic.
    pub(super) rules: &'a BTreeMap<String, (usize, usize)>,
    /// Who is to have the partitions that are being moved.
    pub(super) moving: &'a Replicas,
}

/// The partitions that are in trouble now; one may be in several lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Trouble {
    pub(super) under_replicated: ByTopic,
    /// Too few replicas are in sync, or in too few zones.
    pub(super) refusing: ByTopic,
    /// The leader does not answer; without a quorum nobody takes over.
    pub(super) silent: ByTopic,
    pub(super) offline: ByTopic,
}

impl<'a> Seen<'a> {
    pub(super) fn trouble(self) -> Trouble {
        let (zones, mut found) = (self.zones(), Trouble::default());
        for (topic, partition) in self.partitions() {
            let (factor, min_isr, ack_zones) = self.rule(topic, partition);
            let tell = |list: &mut ByTopic| {
                list.entry(topic.to_owned()).or_default().push(partition.partition_index);
            };
            if partition.leader_id < 0 {
                tell(&mut found.offline);
                continue;
            }
            if partition.isr_nodes.len() < factor {
                tell(&mut found.under_replicated);
            }
            if !takes_acks_all(&partition.isr_nodes, min_isr, ack_zones, &zones) {
                tell(&mut found.refusing);
            }
            if !self.reached.contains(&partition.leader_id) {
                tell(&mut found.silent);
            }
        }
        found
    }

    /// The same for the outlook, which counts on nobody who does not answer.
    pub(super) fn partitions_up(self) -> Vec<outlook::Partition> {
        let partition = |(topic, partition): (&str, &MetadataResponsePartition)| {
            let (_, min_isr, zones) = self.rule(topic, partition);
            let isr = partition.isr_nodes.iter().copied().filter(|id| self.reached.contains(id)).collect();
            outlook::Partition { leader: partition.leader_id, isr, min_isr, zones }
        };
        self.partitions().map(partition).collect()
    }

    /// The zones of all brokers that the cluster counts on.
    fn zones(self) -> BTreeMap<i32, Option<String>> {
        self.metadata.brokers.iter().map(|broker| (broker.node_id, broker.rack.clone())).collect()
    }

    fn partitions(self) -> impl Iterator<Item = (&'a str, &'a MetadataResponsePartition)> {
        let named = self.metadata.topics.iter().map(|topic| (topic.name.as_deref().unwrap_or_default(), topic));
        named.flat_map(|(name, topic)| topic.partitions.iter().map(move |partition| (name, partition)))
    }

    /// The replication factor, which a move does not change, and what acks=all asks for.
    fn rule(self, topic: &str, partition: &MetadataResponsePartition) -> (usize, usize, usize) {
        let target = self.moving.get(&(topic.to_owned(), partition.partition_index));
        let factor = target.unwrap_or(&partition.replica_nodes).len();
        let (min_isr, zones) = self.rules.get(topic).copied().unwrap_or((1, 0));
        (factor, min_isr.min(factor), zones)
    }
}

#[cfg(test)]
mod tests {
    use protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};

    use super::*;

    fn quorum(leader: Option<i32>, heard: [i64; 3]) -> Quorum {
        Quorum { leader, voters: (1..).zip(heard).collect() }
    }

    #[test]
    fn a_voter_that_is_fenced_or_does_not_answer_is_down() {
        let (all, two) = (BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2]));
        let now = quorum(Some(1), [100_000, 99_900, 80_000]);
        assert_eq!(now.down(&all, &all), [].into());
        assert_eq!(now.down(&all, &two), [3].into(), "it does not answer");
        assert_eq!(now.down(&two, &two), [3].into(), "it is fenced, and listed no longer");
        let never = quorum(Some(1), [100_000, 99_900, -1]);
        assert_eq!(never.down(&two, &two), [3].into());
    }

    #[test]
    fn a_controller_that_is_no_broker_is_up_while_the_active_one_hears_of_it() {
        let brokers = BTreeSet::from([4, 5]);
        let now = quorum(Some(1), [-1, 99_900, 80_000]);
        assert_eq!(now.down(&brokers, &brokers), [3].into());
        // Whoever has resigned hears of nobody any more.
        assert_eq!(quorum(None, [100_000, 80_000, -1]).down(&brokers, &brokers), [2, 3].into());
    }

    /// Topic "t" on brokers 1 to 3 in zones a, a and b: leader, replicas and ISR of each partition.
    fn metadata(partitions: &[(i32, &[i32], &[i32])]) -> MetadataResponse {
        let broker = |(node_id, zone): (i32, &str)| MetadataResponseBroker {
            node_id,
            rack: Some(zone.to_owned()),
            ..Default::default()
        };
        let partition = |(index, (leader, replicas, isr)): (i32, &(i32, &[i32], &[i32]))| MetadataResponsePartition {
            partition_index: index,
            leader_id: *leader,
            replica_nodes: replicas.to_vec(),
            isr_nodes: isr.to_vec(),
            ..Default::default()
        };
        let partitions = (0..).zip(partitions).map(partition).collect();
        MetadataResponse {
            brokers: [(1, "a"), (2, "a"), (3, "b")].map(broker).into(),
            topics: vec![MetadataResponseTopic { name: Some("t".to_owned()), partitions, ..Default::default() }],
            ..Default::default()
        }
    }

    fn told(metadata: &MetadataResponse, reached: &[i32], rule: (usize, usize), moving: &[(i32, &[i32])]) -> Trouble {
        let reached = reached.iter().copied().collect();
        let rules = [("t".to_owned(), rule)].into();
        let moving = moving.iter().map(|(index, target)| (("t".to_owned(), *index), target.to_vec())).collect();
        Seen { metadata, reached: &reached, rules: &rules, moving: &moving }.trouble()
    }

    fn of(partitions: &[i32]) -> ByTopic {
        [("t".to_owned(), partitions.to_vec())].into()
    }

    #[test]
    fn partitions_that_refuse_acks_all_are_told_apart_from_those_that_are_only_short_of_a_replica() {
        let all: &[i32] = &[1, 2, 3];
        let now = metadata(&[(1, all, all), (1, all, &[1, 2]), (1, all, &[1]), (-1, all, &[3])]);
        let under_replicated = of(&[1, 2]);
        let expected = Trouble { under_replicated, refusing: of(&[2]), offline: of(&[3]), ..Trouble::default() };
        assert_eq!(told(&now, all, (2, 0), &[]), expected);
        // Brokers 1 and 2 are in one zone.
        assert_eq!(told(&now, all, (2, 2), &[]).refusing, of(&[1, 2]));
    }

    #[test]
    fn partitions_whose_leader_does_not_answer_are_told() {
        let now = metadata(&[(1, &[1, 2], &[1, 2]), (2, &[2, 1], &[2, 1])]);
        assert_eq!(told(&now, &[1], (1, 0), &[]), Trouble { silent: of(&[1]), ..Trouble::default() });
    }

    #[test]
    fn a_partition_that_grows_while_it_moves_lacks_nothing() {
        let now = metadata(&[(1, &[2, 1], &[1])]);
        assert_eq!(told(&now, &[1, 2, 3], (2, 0), &[(0, &[2])]), Trouble::default());
        assert_eq!(told(&now, &[1, 2, 3], (2, 0), &[]).refusing, of(&[0]));
    }
}
