//! What a disk does: a call fails, or every call; or there is no space left. Where a machine has two, the other one goes on.

use storage::disk::{Call, FaultKind, MemDisk};

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
        any_disk(cluster, node, chance).fail(call, chance.between(0, 40), kind);
        Some(1)
    }

    fn end(&mut self, _: &mut Cluster) {}
}

/// A disk that fills up, and has space again.
#[derive(Debug, Default)]
pub(super) struct Full {
    full: Option<(HostId, usize)>,
}

impl Fault for Full {
    fn kind(&self) -> &'static str {
        "disk-full"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        let number = any_number(cluster, node, chance);
        self.full = Some((node, number));
        cluster.node(node).disks.get(number).leave_space(chance.between(0, 100_000));
        Some(chance.between(500, 8_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.full.into_iter().for_each(|(node, number)| cluster.node(node).disks.get(number).set_capacity(None));
    }
}

/// A disk on which every call fails, for a while.
#[derive(Debug, Default)]
pub(super) struct Dead {
    dead: Option<(HostId, usize)>,
}

impl Fault for Dead {
    fn kind(&self) -> &'static str {
        "broken-disk"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let node = running_node(cluster, chance)?;
        if !cluster.loses(node) {
            return None;
        }
        let number = any_number(cluster, node, chance);
        self.dead = Some((node, number));
        cluster.node(node).disks.set_broken(number, true);
        Some(chance.between(300, 12_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.dead.into_iter().for_each(|(node, number)| cluster.node(node).disks.set_broken(number, false));
    }
}

fn any_number(cluster: &mut Cluster, node: HostId, chance: &mut Chance) -> usize {
    let count = cluster.node(node).disks.count();
    usize::from(count > 1 && chance.one_in(2))
}

fn any_disk<'a>(cluster: &'a mut Cluster, node: HostId, chance: &mut Chance) -> &'a MemDisk {
    let number = any_number(cluster, node, chance);
    cluster.node(node).disks.get(number)
}
