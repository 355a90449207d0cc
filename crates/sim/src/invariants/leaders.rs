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
