//! A process that stands still and does not know it: SIGSTOP, a machine that swaps, a virtual machine that is moved.

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pause {
    node: Option<HostId>,
}

impl Fault for Pause {
    fn kind(&self) -> &'static str {
        "pause"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        self.node = Some(node);
        cluster.node(node).paused = true;
        Some(chance.between(50, 15_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.node.into_iter().for_each(|node| cluster.node(node).paused = false);
    }
}
