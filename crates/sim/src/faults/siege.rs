//! Several crashes by a plan: all machines at about the same time, one after the other with what the cluster does about each in
//! between, or one again and again before it is through with its recovery. Who went down last need not come back first.

use storage::disk::Crash;

use super::Fault;
use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// See the module.
#[derive(Debug)]
pub(super) struct Siege {
    kind: &'static str,
    /// What is still to come, the next one last: when, which machine, and whether it goes up.
    plan: Vec<(u64, HostId, bool)>,
    chance: Chance,
}

impl Siege {
    pub(super) fn all_down(chance: Chance) -> Siege {
        Siege { kind: "all-down", plan: Vec::new(), chance }
    }

    pub(super) fn one_by_one(chance: Chance) -> Siege {
        Siege { kind: "one-by-one", plan: Vec::new(), chance }
    }

    pub(super) fn again(chance: Chance) -> Siege {
        Siege { kind: "crash-again", plan: Vec::new(), chance }
    }

    fn lay(&mut self, cluster: &Cluster) {
        let ids: Vec<HostId> = cluster.nodes.iter().map(|node| node.id).collect();
        let chance = &mut self.chance;
        let mut at = cluster.now;
        if self.kind == "crash-again" {
            let id = *chance.pick(&ids);
            for _ in 0..chance.between(2, 6) {
                self.plan.push((at, id, false));
                at += chance.between(1, 300);
                self.plan.push((at, id, true));
                // From the first calls of its start on, to when it has just come into some ISR again.
                at += chance.between(1, *chance.clone().pick(&[20, 200, 2_000]));
            }
        } else {
            let gap = if self.kind == "all-down" { 60 } else { 6_000 };
            for id in shuffled(&ids, chance) {
                self.plan.push((at, id, false));
                at += chance.between(1, gap);
            }
            for id in shuffled(&ids, chance) {
                at += chance.between(1, 4_000);
                self.plan.push((at, id, true));
            }
        }
        self.plan.reverse();
    }

    fn down(&mut self, cluster: &mut Cluster, id: HostId) {
        let power = self.chance.one_in(2);
        let unsynced = cluster.node(id).disks.unsynced_bytes();
        let how = match self.chance.between(0, 5) {
            0 => Crash::LoseUnsynced,
            1 => Crash::TornAt(self.chance.between(0, unsynced + 1)),
            2 | 3 => Crash::Scatter(self.chance.draw()),
            _ => Crash::KeepAll,
        };
        if !cluster.crash(id, power, how) {
            cluster.crash(id, power, Crash::KeepAll);
        }
    }
}

fn shuffled(ids: &[HostId], chance: &mut Chance) -> Vec<HostId> {
    let mut left = ids.to_vec();
    let mut out = Vec::new();
    while !left.is_empty() {
        let id = *chance.pick(&left);
        left.retain(|other| *other != id);
        out.push(id);
    }
    out
}

impl Fault for Siege {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn begin(&mut self, cluster: &mut Cluster, _: &mut Chance) -> Option<u64> {
        self.lay(cluster);
        let end = self.plan.first().map_or(cluster.now, |(at, ..)| *at);
        Some(end + 1 - cluster.now)
    }

    fn step(&mut self, cluster: &mut Cluster) {
        while let Some((at, id, up)) = self.plan.last().copied() {
            if at > cluster.now {
                return;
            }
            self.plan.pop();
            if up {
                cluster.start(id);
            } else {
                self.down(cluster, id);
            }
        }
    }

    fn end(&mut self, cluster: &mut Cluster) {
        let left: Vec<HostId> = cluster.nodes.iter().map(|node| node.id).collect();
        left.into_iter().for_each(|id| cluster.start(id));
    }
}
