//! A process is killed, or a machine loses its power with what its disk had not synced: nothing of it stays, a part, or all but
//! the end of a write.

use storage::disk::Crash;

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug)]
pub(super) struct Crashed {
    power: bool,
    node: Option<HostId>,
}

impl Crashed {
    pub(super) fn kill() -> Crashed {
        Crashed { power: false, node: None }
    }

    pub(super) fn power() -> Crashed {
        Crashed { power: true, node: None }
    }

    fn how(&self, cluster: &mut Cluster, node: HostId, chance: &mut Chance) -> Crash {
        if !self.power {
            return Crash::KeepAll;
        }
        let unsynced = cluster.node(node).disk.unsynced_bytes();
        match chance.between(0, 4) {
            0 => Crash::LoseUnsynced,
            1 => Crash::TornAt(chance.between(0, unsynced + 1)),
            _ => Crash::Scatter(chance.draw()),
        }
    }
}

impl Fault for Crashed {
    fn kind(&self) -> &'static str {
        if self.power { "power" } else { "kill" }
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        let how = self.how(cluster, node, chance);
        self.node = Some(node);
        cluster.crash(node, self.power, how).then(|| chance.between(100, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.node.into_iter().for_each(|node| cluster.start(node));
    }
}
