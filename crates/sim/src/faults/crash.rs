//! A process is killed, or a machine loses its power with what its disk had not synced: nothing of it stays, a part, or all but
//! the end of a write. In a careless cluster all machines lose it at once, and all that is not synced: what a cluster does not
//! survive.

use storage::disk::Crash;

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug)]
pub(super) struct Crashed {
    power: bool,
    nodes: Vec<HostId>,
}

impl Crashed {
    pub(super) fn kill() -> Crashed {
        Crashed { power: false, nodes: Vec::new() }
    }

    pub(super) fn power() -> Crashed {
        Crashed { power: true, nodes: Vec::new() }
    }
}

/// What is left of what a disk had not synced.
pub(super) fn loss(cluster: &mut Cluster, node: HostId, chance: &mut Chance) -> Crash {
    let unsynced = cluster.node(node).disks.unsynced_bytes();
    match chance.between(0, 4) {
        0 => Crash::LoseUnsynced,
        1 => Crash::TornAt(chance.between(0, unsynced + 1)),
        _ => Crash::Scatter(chance.draw()),
    }
}

impl Fault for Crashed {
    fn kind(&self) -> &'static str {
        if self.power { "power" } else { "kill" }
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        if self.power && cluster.careless {
            self.nodes = cluster.running();
            for node in &self.nodes {
                cluster.crash(*node, true, Crash::LoseUnsynced);
            }
            return Some(chance.between(100, 8_000));
        }
        let how = if self.power { loss(cluster, node, chance) } else { Crash::KeepAll };
        self.nodes.push(node);
        cluster.crash(node, self.power, how).then(|| chance.between(100, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.nodes.drain(..).for_each(|node| cluster.start(node));
    }
}
