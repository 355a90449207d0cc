//! A node is stopped in good order and started again; half of the machines lose their power right after: a clean shutdown
//! is proven, and so everything must be there (`R10`, `R32`).

use storage::disk::Crash;

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// What an orderly end may take, in milliseconds.
const PATIENCE: u64 = 6_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Restart {
    node: Option<HostId>,
    power: bool,
}

impl Fault for Restart {
    fn kind(&self) -> &'static str {
        "restart"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        self.node = Some(node);
        self.power = chance.one_in(2);
        cluster.node(node).shut_down();
        Some(chance.between(1, PATIENCE))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        let Some(id) = self.node else { return };
        // Who is not done is killed, as an impatient supervisor does. Who could not flush everything proves nothing.
        let clean = cluster.node(id).is_done() && cluster.node(id).is_clean();
        let how = if clean && self.power { Crash::LoseUnsynced } else { Crash::KeepAll };
        cluster.node(id).crash(false, how);
        cluster.start(id);
    }
}
