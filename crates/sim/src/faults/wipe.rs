//! A machine's disks are replaced: what it had is gone, its vote in the quorum too (`R35`, `R74`). Where it has two, sometimes
//! the second one only: then it comes back with all but the logs there. Once in a run: two of three are more than a quorum
//! survives.

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Wipe {
    node: Option<HostId>,
}

impl Fault for Wipe {
    fn kind(&self) -> &'static str {
        "wipe"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        self.node = Some(node);
        let count = cluster.node(node).disks.count();
        let first = if count > 1 && chance.one_in(2) { 1 } else { 0 };
        let disks: Vec<usize> = (first..count).collect();
        cluster.wipe(node, &disks).then(|| chance.between(100, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.node.into_iter().for_each(|node| cluster.start(node));
    }
}
