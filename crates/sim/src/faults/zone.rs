//! A zone loses its power: all of its machines at once, each with what its disk had not synced. Where acknowledged records are
//! neither synced nor in two zones (`R79`), a zone of one machine at most.

use super::crash::loss;
use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Zone {
    nodes: Vec<HostId>,
}

impl Fault for Zone {
    fn kind(&self) -> &'static str {
        "zone-power"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        let zone = cluster.zone_of(node);
        if !cluster.may_lose_zone(&zone) {
            return None;
        }
        let running = cluster.running();
        for id in zone.into_iter().filter(|id| running.contains(id)) {
            let how = loss(cluster, id, chance);
            assert!(cluster.crash(id, true, how), "all of the zone may lose it");
            self.nodes.push(id);
        }
        Some(chance.between(100, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.nodes.drain(..).for_each(|node| cluster.start(node));
    }
}
