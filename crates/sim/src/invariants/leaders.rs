//! A leader epoch has one leader at most (`R2`): no two brokers ever believe that they lead in it.

use std::collections::BTreeMap;

use broker::PartitionMetrics;
use model::TopicPartition;

use crate::net::HostId;

/// See the module: who led in each epoch.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<(TopicPartition, i32), HostId>);

impl Leaders {
    /// Looks at a replica of a node.
    pub fn look(&mut self, node: HostId, replica: &PartitionMetrics) -> Option<String> {
        if !replica.leads {
            return None;
        }
        let (partition, epoch) = (replica.partition, replica.leader_epoch);
        let first = *self.0.entry((partition, epoch)).or_insert(node);
        (first != node).then(|| format!("{partition:?}: both {first:?} and {node:?} led in epoch {epoch}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::replica;
    use super::*;

    #[test]
    fn two_who_lead_in_one_epoch_are_noticed() {
        let mut leaders = Leaders::default();
        let (one, other) = (HostId(1), HostId(2));
        assert_eq!(leaders.look(one, &replica(true, 4, 0, 0)), None);
        assert_eq!(leaders.look(one, &replica(true, 4, 1, 1)), None);
        assert_eq!(leaders.look(other, &replica(false, 4, 0, 0)), None, "it follows");
        assert_eq!(leaders.look(other, &replica(true, 5, 0, 0)), None, "another epoch");
        assert!(leaders.look(other, &replica(true, 4, 0, 0)).is_some());
        assert!(leaders.look(one, &replica(true, 5, 0, 0)).is_some());
    }
}
