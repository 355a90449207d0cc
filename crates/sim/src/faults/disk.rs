//! What a disk does: a call fails, or there is no space left.

use storage::disk::{Call, FaultKind};

use super::{Fault, running_node};
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// A call that fails once, soon.
#[derive(Debug)]
pub(super) struct Error;

impl Fault for Error {
    fn kind(&self) -> &'static str {
        "io-error"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        // What the disk takes back of a write or a sync is lost.
        if !cluster.loses(node) {
            return None;
        }
        let calls = [
            Call::Open,
            Call::Read,
            Call::Write,
            Call::SyncData,
            Call::SyncDir,
            Call::SyncAll,
            Call::Truncate,
            Call::Rename,
        ];
        let call = *chance.pick(&calls);
        let kind = if call == Call::Write && chance.one_in(2) {
            FaultKind::ShortWrite(usize::try_from(chance.between(1, 200)).expect("small"))
        } else {
            FaultKind::Eio
        };
        cluster.node(node).disk.fail(call, chance.between(0, 40), kind);
        Some(1)
    }

    fn end(&mut self, _: &mut Cluster) {}
}

/// A disk that fills up, and has space again.
#[derive(Debug, Default)]
pub(super) struct Full {
    node: Option<HostId>,
}

impl Fault for Full {
    fn kind(&self) -> &'static str {
        "disk-full"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        self.node = Some(node);
        cluster.node(node).disk.leave_space(chance.between(0, 100_000));
        Some(chance.between(500, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.node.into_iter().for_each(|node| cluster.node(node).disk.set_capacity(None));
    }
}
