//! What one more failure would stop: of a node, or of a zone.

use std::collections::{BTreeMap, BTreeSet};

/// A partition as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Partition {
    pub(super) leader: i32,
    /// Those that are up.
    pub(super) isr: Vec<i32>,
    /// `min.insync.replicas`, or the number of replicas where that is smaller.
    pub(super) min_isr: usize,
    /// The zones that `ottla.ack.rule` asks for; 0 where it asks for none.
    pub(super) zones: usize,
}

/// The cluster as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Cluster {
    /// The brokers that are up, with their zones.
    pub(super) brokers: BTreeMap<i32, Option<String>>,
    pub(super) partitions: Vec<Partition>,
    pub(super) voters: BTreeSet<i32>,
    pub(super) voters_down: BTreeSet<i32>,
    /// Whether there is no quorum now: then nobody follows a leader that fails.
    pub(super) quorum_lost: bool,
}

/// What a failure would stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Loss {
    /// `node 1`, `zone a`.
    pub(super) failure: String,
    /// Partitions that nobody in sync would be left to lead.
    pub(super) offline: usize,
    /// Partitions that would be led, but refuse acks=all.
    pub(super) unwritable: usize,
    /// Whether the quorum would lose its majority.
    pub(super) quorum: bool,
}

impl Cluster {
    /// The failures that would stop something which works now.
    pub(super) fn losses(&self) -> Vec<Loss> {
        let nodes = self.brokers.keys().chain(&self.voters).collect::<BTreeSet<_>>();
        let nodes = nodes.into_iter().map(|id| (format!("node {id}"), BTreeSet::from([*id])));
        let mut zones: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
        for (id, zone) in &self.brokers {
            zones.entry(zone.as_deref().unwrap_or_default()).or_default().insert(*id);
        }
        let zones = zones.into_iter().filter(|(zone, nodes)| !zone.is_empty() && nodes.len() > 1);
        let zones = zones.map(|(zone, nodes)| (format!("zone {zone}"), nodes));
        let loss = |(failure, nodes): (String, BTreeSet<i32>)| self.loss(failure, &nodes);
        let stops = |loss: &Loss| loss.offline > 0 || loss.unwritable > 0 || loss.quorum;
        nodes.chain(zones).map(loss).filter(stops).collect()
    }

    fn loss(&self, failure: String, gone: &BTreeSet<i32>) -> Loss {
        let (mut offline, mut unwritable) = (0, 0);
        for partition in self.partitions.iter().filter(|partition| !self.is_stopped(partition)) {
            let left: Vec<i32> = partition.isr.iter().copied().filter(|id| !gone.contains(id)).collect();
            if left.is_empty() || (self.quorum_lost && gone.contains(&partition.leader)) {
                offline += usize::from(!partition.isr.is_empty());
            } else {
                let stops = self.is_writable(partition, &partition.isr) && !self.is_writable(partition, &left);
                unwritable += usize::from(stops);
            }
        }
        Loss { failure, offline, unwritable, quorum: self.loses_quorum(gone) }
    }

    /// Whether its leader is down and nobody is made the next one: there is nothing left to stop.
    fn is_stopped(&self, partition: &Partition) -> bool {
        self.quorum_lost && !self.brokers.contains_key(&partition.leader)
    }

    fn loses_quorum(&self, gone: &BTreeSet<i32>) -> bool {
        let up = self.voters.difference(&self.voters_down);
        let (gone, left): (Vec<&i32>, Vec<&i32>) = up.partition(|voter| gone.contains(voter));
        !self.quorum_lost && !gone.is_empty() && left.len() < self.voters.len() / 2 + 1
    }

    fn is_writable(&self, partition: &Partition, isr: &[i32]) -> bool {
        takes_acks_all(isr, partition.min_isr, partition.zones, &self.brokers)
    }
}

/// Whether these in-sync replicas are enough, and in enough zones, for acks=all.
pub(super) fn takes_acks_all(
    isr: &[i32],
    min_isr: usize,
    zones: usize,
    brokers: &BTreeMap<i32, Option<String>>,
) -> bool {
    let zone = |id: &i32| brokers.get(id).and_then(Option::as_deref);
    let found = isr.iter().filter_map(zone).collect::<BTreeSet<_>>().len();
    isr.len() >= min_isr && found >= zones
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(zones: &[&str], partitions: &[(&[i32], usize, usize)]) -> Cluster {
        let partition = |(isr, min_isr, zones): &(&[i32], usize, usize)| Partition {
            leader: isr.first().copied().unwrap_or(-1),
            isr: isr.to_vec(),
            min_isr: *min_isr,
            zones: *zones,
        };
        Cluster {
            brokers: (1..).zip(zones).map(|(id, zone)| (id, Some((*zone).to_owned()))).collect(),
            partitions: partitions.iter().map(partition).collect(),
            voters: [1, 2, 3].into(),
            ..Cluster::default()
        }
    }

    fn told(cluster: &Cluster) -> Vec<(String, usize, usize, bool)> {
        cluster.losses().into_iter().map(|loss| (loss.failure, loss.offline, loss.unwritable, loss.quorum)).collect()
    }

    #[test]
    fn three_zones_with_a_replica_each_lose_nothing_by_any_one() {
        assert_eq!(told(&cluster(&["a", "b", "c"], &[(&[1, 2, 3], 2, 2)])), []);
    }

    #[test]
    fn what_has_no_replica_to_spare_is_counted() {
        let now = cluster(&["a", "b", "c"], &[(&[1, 2], 2, 0), (&[3], 1, 0), (&[], 1, 0)]);
        let node = |id| format!("node {id}");
        assert_eq!(told(&now), [(node(1), 0, 1, false), (node(2), 0, 1, false), (node(3), 1, 0, false)]);
    }

    #[test]
    fn a_zone_may_stop_what_no_node_does() {
        let now = cluster(&["a", "a", "b", "b"], &[(&[1, 2, 3], 1, 2), (&[1, 2], 1, 0)]);
        let zone = |name: &str| format!("zone {name}");
        // Without 3 the first is in one zone; without zone a the quorum has one voter of three.
        assert_eq!(told(&now), [("node 3".to_owned(), 0, 1, false), (zone("a"), 1, 1, true), (zone("b"), 0, 1, false)]);
    }

    #[test]
    fn a_quorum_that_lost_a_voter_has_none_to_spare() {
        let mut now = cluster(&["a", "b", "c"], &[]);
        now.voters_down = [3].into();
        now.brokers.remove(&3);
        let told: Vec<_> = told(&now).into_iter().map(|(failure, ..)| failure).collect();
        assert_eq!(told, ["node 1", "node 2"]);
    }

    #[test]
    fn without_a_quorum_a_leader_that_fails_stops_its_partitions() {
        let mut now = cluster(&["a", "b", "c"], &[(&[1, 2, 3], 1, 0), (&[2, 1, 3], 1, 0)]);
        now.quorum_lost = true;
        let node = |id| format!("node {id}");
        assert_eq!(told(&now), [(node(1), 1, 0, false), (node(2), 1, 0, false)]);
        // What one that is down leads is stopped already.
        now.brokers.remove(&2);
        assert_eq!(told(&now), [(node(1), 1, 0, false)]);
    }

    #[test]
    fn a_quorum_whose_voters_are_not_seen_but_which_works_has_none_to_spare() {
        let mut now = cluster(&["a", "b", "c"], &[]);
        now.voters_down = [2, 3].into();
        assert_eq!(told(&now), [("node 1".to_owned(), 0, 0, true)]);
    }
}
