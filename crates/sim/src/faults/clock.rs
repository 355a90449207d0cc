//! A wall clock that jumps, by seconds or by years, and is set right again.

use std::sync::atomic::Ordering;

use super::{Fault, any_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

const YEAR_MS: i64 = 365 * 86_400_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Jump {
    node: Option<HostId>,
    by_ms: i64,
}

impl Fault for Jump {
    fn kind(&self) -> &'static str {
        "clock-jump"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = any_node(cluster, chance);
        self.node = Some(node);
        self.by_ms = *chance.pick(&[-YEAR_MS, -3_600_000, -5_000, 5_000, 3_600_000, YEAR_MS]);
        cluster.node(node).skew.fetch_add(self.by_ms, Ordering::Relaxed);
        Some(chance.between(500, 15_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        if let Some(node) = self.node {
            cluster.node(node).skew.fetch_sub(self.by_ms, Ordering::Relaxed);
        }
    }
}
