//! Where topics ask for two zones, what is committed lies in two (`R79`): whenever a leader's high watermark rises, replicas in
//! two zones have all below it. What is acknowledged under acks=all and what readers see is below it.
//!
//! Looked at from time to time, and before a disk loses something. Whose process has ended in between has what lies on its disk.
//! A leader that stood still may learn only then what a follower once had, and has lost since: that counts as well.

use std::collections::{BTreeMap, BTreeSet};

use broker::PartitionMetrics;
use model::TopicPartition;

use super::replicas::read_log;
use crate::net::HostId;
use crate::node::Node;
use crate::workload::LOOSE;

/// In so many zones records have to be.
const ENOUGH: usize = 2;

/// See the module.
#[derive(Debug)]
pub struct Zones {
    /// The zone of each machine.
    racks: Vec<&'static str>,
    /// How far each replica's log ever went.
    ends: BTreeMap<(TopicPartition, HostId), i64>,
    /// The highest watermarks that were judged.
    judged: BTreeMap<TopicPartition, i64>,
    checked: u64,
}

impl Zones {
    /// Of machines in these zones, that all have the rule.
    #[must_use]
    pub fn new(racks: &[&'static str]) -> Zones {
        Zones { racks: racks.to_vec(), ends: BTreeMap::new(), judged: BTreeMap::new(), checked: 0 }
    }

    /// How many risen high watermarks were judged.
    #[must_use]
    pub fn checked(&self) -> u64 {
        self.checked
    }

    /// Looks at all replicas.
    pub fn look(&mut self, nodes: &[Node]) -> Vec<String> {
        let mut led = Vec::new();
        for node in nodes {
            let Some(metrics) = node.look(|running| running.broker.metrics()) else { continue };
            for replica in metrics.partitions {
                self.saw(node.id, &replica);
                led.extend((replica.leads && replica.topic != LOOSE).then_some(replica));
            }
        }
        led.iter().filter_map(|leader| self.judge(leader, nodes)).collect()
    }

    fn saw(&mut self, node: HostId, replica: &PartitionMetrics) {
        let end = self.ends.entry((replica.partition, node)).or_default();
        *end = replica.log_end.max(*end);
    }

    fn judge(&mut self, leader: &PartitionMetrics, nodes: &[Node]) -> Option<String> {
        let judged = self.judged.entry(leader.partition).or_default();
        if leader.high_watermark <= *judged {
            return None;
        }
        *judged = leader.high_watermark;
        self.checked += 1;
        if self.zones(leader).len() >= ENOUGH {
            return None;
        }
        for node in nodes {
            if let Some(end) = end_on_disk(node, leader) {
                self.ends.entry((leader.partition, node.id)).and_modify(|last| *last = end.max(*last)).or_insert(end);
            }
        }
        let zones = self.zones(leader);
        let PartitionMetrics { topic, partition, high_watermark, leader_epoch, .. } = leader;
        let what = || {
            let ends: Vec<_> = self.of_partition(leader).map(|((_, node), end)| (node.0, *end)).collect();
            let partition = partition.partition.0;
            format!(
                "{topic}-{partition} is committed up to {high_watermark} in leader epoch {leader_epoch}, and lies so far in the \
                 zones {zones:?} only; the replicas' ends: {ends:?}"
            )
        };
        (zones.len() < ENOUGH).then(what)
    }

    fn of_partition(&self, leader: &PartitionMetrics) -> impl Iterator<Item = (&(TopicPartition, HostId), &i64)> {
        self.ends.range((leader.partition, HostId(0))..=(leader.partition, HostId(u8::MAX)))
    }

    /// The zones in which all lies that this leader shows as committed.
    fn zones(&self, leader: &PartitionMetrics) -> BTreeSet<&'static str> {
        let has_all = self.of_partition(leader).filter(|(_, end)| **end >= leader.high_watermark);
        has_all.filter_map(|((_, node), _)| self.racks.get(usize::from(node.0) - 1).copied()).collect()
    }
}

/// Where the log ends that a node's disk has, if that can be read.
fn end_on_disk(node: &Node, replica: &PartitionMetrics) -> Option<i64> {
    let batches = read_log(&node.disks, &replica.topic, replica.partition.partition.0).ok()?;
    batches.last().map(|last| last.header().next_offset().0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::replica;
    use super::*;

    #[test]
    fn what_lies_in_one_zone_only_must_not_be_committed() {
        let found = |ends: [i64; 3], high_watermark| {
            let mut zones = Zones::new(&["a", "a", "b"]);
            for (node, end) in (1..).zip(ends) {
                zones.saw(HostId(node), &replica(false, 1, 0, end));
            }
            let found = zones.judge(&replica(true, 1, high_watermark, high_watermark), &[]);
            // What was found once is not judged again.
            assert_eq!(zones.judge(&replica(true, 1, high_watermark, high_watermark), &[]), None);
            assert_eq!(zones.checked(), 1);
            found.is_some()
        };
        let mut lost_since = Zones::new(&["a", "b"]);
        lost_since.saw(HostId(1), &replica(true, 1, 0, 5));
        lost_since.saw(HostId(2), &replica(false, 1, 0, 5));
        lost_since.saw(HostId(2), &replica(false, 2, 0, 0));
        assert_eq!(lost_since.judge(&replica(true, 3, 5, 5), &[]), None, "it had them once");
        assert!(lost_since.judge(&replica(true, 3, 6, 6), &[]).is_some());
        assert!(!found([5, 3, 5], 5));
        assert!(!found([5, 3, 5], 4));
        assert!(found([5, 5, 4], 5));
        assert!(found([5, 0, 0], 1));
    }
}
