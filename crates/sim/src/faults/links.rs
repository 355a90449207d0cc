//! What the network does: cut links (both ways, one way, around a leader), slow ones, connections that break.

use metadata::records::Partition;

use super::{Fault, any_node};
use crate::chance::Chance;
use crate::cluster::{CLIENTS, Cluster};
use crate::net::HostId;

/// Links that are cut.
#[derive(Debug)]
pub(super) struct Cut {
    kind: &'static str,
    links: Vec<(HostId, HostId)>,
}

impl Cut {
    pub(super) fn partition() -> Cut {
        Cut { kind: "partition", links: Vec::new() }
    }

    pub(super) fn one_way() -> Cut {
        Cut { kind: "one-way", links: Vec::new() }
    }

    pub(super) fn isolated_leader() -> Cut {
        Cut { kind: "isolated-leader", links: Vec::new() }
    }

    fn choose(&self, cluster: &Cluster, chance: &mut Chance) -> Vec<(HostId, HostId)> {
        let node = match self.kind {
            "isolated-leader" => leader(cluster, chance).unwrap_or_else(|| any_node(cluster, chance)),
            _ => any_node(cluster, chance),
        };
        let others = cluster.nodes.iter().map(|other| other.id).filter(|other| *other != node);
        let mut others: Vec<HostId> = others.collect();
        if self.kind != "isolated-leader" && chance.one_in(2) {
            others = vec![*chance.pick(&others)];
        }
        // Clients mostly still reach it: then it answers them, and must not say what is not so.
        if chance.one_in(3) {
            others.push(CLIENTS);
        }
        let inward = chance.one_in(2);
        let both = others.iter().flat_map(|other| [(node, *other), (*other, node)]);
        match self.kind {
            "one-way" => both.filter(|(from, _)| (*from == node) != inward).collect(),
            _ => both.collect(),
        }
    }
}

/// Who leads some partition, as the metadata has it.
fn leader(cluster: &Cluster, chance: &mut Chance) -> Option<HostId> {
    let seen = cluster.observer.lock();
    let leader = |partition: &std::sync::Arc<Partition>| u8::try_from(partition.leader.0).ok().map(HostId);
    let leaders: Vec<HostId> = seen.image.partitions().filter_map(leader).collect();
    (!leaders.is_empty()).then(|| *chance.pick(&leaders))
}

impl Fault for Cut {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        self.links = self.choose(cluster, chance);
        self.links.iter().for_each(|(from, to)| cluster.net.set_cut(*from, *to, true));
        Some(chance.between(100, 12_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.links.iter().for_each(|(from, to)| cluster.net.set_cut(*from, *to, false));
    }
}

/// A link on which everything takes longer.
#[derive(Debug, Default)]
pub(super) struct Slow {
    links: Vec<(HostId, HostId)>,
}

impl Fault for Slow {
    fn kind(&self) -> &'static str {
        "slow-link"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let (a, b) = (any_node(cluster, chance), any_node(cluster, chance));
        let b = if a == b { CLIENTS } else { b };
        self.links = if chance.one_in(2) { vec![(a, b), (b, a)] } else { vec![(a, b)] };
        // Sometimes so slow that what was sent in one session arrives in another.
        let ms = if chance.one_in(4) { chance.between(400, 8_000) } else { chance.between(5, 400) };
        self.links.iter().for_each(|(from, to)| cluster.net.set_slow(*from, *to, ms));
        Some(chance.between(500, 10_000))
    }

    fn end(&mut self, cluster: &mut Cluster) {
        self.links.iter().for_each(|(from, to)| cluster.net.set_slow(*from, *to, 0));
    }
}

/// Connections that break, with what is under way in them.
#[derive(Debug)]
pub(super) struct Broken;

impl Fault for Broken {
    fn kind(&self) -> &'static str {
        "broken-connections"
    }

    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64> {
        let (a, b) = (any_node(cluster, chance), any_node(cluster, chance));
        let b = if a == b { CLIENTS } else { b };
        (cluster.net.break_some(a, b) > 0).then_some(1)
    }

    fn end(&mut self, _: &mut Cluster) {}
}
