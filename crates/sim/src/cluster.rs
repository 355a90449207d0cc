//! The cluster of a run, and its time: the network delivers, then each machine does what it has to do in that millisecond.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::records::Partition;
use model::Incarnation;
use storage::disk::Crash;

use crate::chance::Chance;
use crate::clock::set_now;
use crate::history::Shared;
use crate::host::Host;
use crate::invariants::{Leaders, Observer, Watermarks, Zones, check_images};
use crate::net::{HostId, Net};
use crate::node::{Node, Settings};
use crate::tally::Tally;

/// How often the replicas are looked at, in milliseconds.
const LOOK_EVERY: u64 = 20;
/// The clients' machine.
pub const CLIENTS: HostId = HostId(0);

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    /// Milliseconds since the run's beginning.
    pub now: u64,
    /// The network.
    pub net: Net,
    /// The machines with nodes.
    pub nodes: Vec<Node>,
    /// What clients did.
    pub history: Shared,
    /// What the metadata came to.
    pub observer: Observer,
    /// What happened how often.
    pub tally: Tally,
    /// Whether acknowledged records are synced: then any number of disks may lose what is not.
    pub synced: bool,
    /// Acknowledged records are in two zones: then the disks of one zone may lose what is not synced together.
    pub zoned: bool,
    /// Any number of disks may lose something all the same: records are lost by right, and that has to be noticed.
    pub careless: bool,
    /// Nodes whose disk has lost what nobody had synced, and that have not caught up since; with the process that lost it: as
    /// long as the controller has not noticed, that one is in sync.
    in_debt: BTreeMap<HostId, Incarnation>,
    /// A disk has been replaced: another one must not.
    wiped: bool,
    clients: Host,
    leaders: Leaders,
    watermarks: Watermarks,
    zones: Option<Zones>,
    racks: Vec<&'static str>,
}

impl Cluster {
    /// Machines on which nothing runs yet.
    #[must_use]
    pub fn new(settings: &Settings, synced: bool, seed: u64) -> Cluster {
        let net = Net::new(Chance::of(seed, "network"));
        let node = |id| Node::new(HostId(id), settings.clone(), net.clone(), seed);
        Cluster {
            now: 0,
            nodes: (1..=settings.nodes).map(node).collect(),
            net,
            history: Shared::default(),
            observer: Observer::default(),
            tally: Tally::default(),
            synced,
            zoned: settings.zoned,
            careless: false,
            in_debt: BTreeMap::new(),
            wiped: false,
            clients: Host::new(),
            leaders: Leaders::default(),
            watermarks: Watermarks::default(),
            zones: settings.zoned.then(|| Zones::new(&settings.racks)),
            racks: settings.racks.clone(),
        }
    }

    /// Begins a task on the clients' machine.
    pub fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.clients.spawn(task);
    }

    /// The node of a machine.
    pub fn node(&mut self, id: HostId) -> &mut Node {
        &mut self.nodes[usize::from(id.0) - 1]
    }

    /// Starts the node of a machine, if it does not run.
    pub fn start(&mut self, id: HostId) {
        let now = self.now;
        let node = self.node(id);
        if !node.is_up() {
            node.start(now);
            self.tally.starts += 1;
        }
    }

    /// A millisecond passes.
    pub fn step(&mut self) {
        self.now += 1;
        set_now(self.now);
        self.net.deliver(self.now);
        self.clients.step(1);
        for node in &mut self.nodes {
            node.step(self.now);
        }
        if self.now.is_multiple_of(1_000) {
            tracing::debug!(now = self.now, acknowledged = self.history.lock().acknowledged, "a second has passed");
        }
        if self.now.is_multiple_of(LOOK_EVERY) {
            self.look();
        }
    }

    /// Whose process runs.
    #[must_use]
    pub fn running(&self) -> Vec<HostId> {
        self.nodes.iter().filter(|node| node.is_up()).map(|node| node.id).collect()
    }

    /// Ends a process, and with `power` its machine. Says no where that could lose acknowledged records by right.
    pub fn crash(&mut self, id: HostId, power: bool, how: Crash) -> bool {
        if how != Crash::KeepAll && !self.may_lose(id) {
            return false;
        }
        if how != Crash::KeepAll {
            self.owe(id);
            self.look_at_zones();
        }
        self.node(id).crash(power, how);
        true
    }

    /// All machines of the zone of one of them.
    #[must_use]
    pub fn zone_of(&self, id: HostId) -> Vec<HostId> {
        let ids = self.nodes.iter().map(|node| node.id);
        ids.filter(|other| self.is_together(*other, id)).collect()
    }

    fn is_together(&self, one: HostId, other: HostId) -> bool {
        self.rack(one) == self.rack(other)
    }

    fn rack(&self, id: HostId) -> &'static str {
        self.racks[usize::from(id.0) - 1]
    }

    /// Replaces disks of a machine, if everything is in sync elsewhere and this is the first time.
    pub fn wipe(&mut self, id: HostId, disks: &[usize]) -> bool {
        let may = !self.wiped && self.in_debt.is_empty() && self.is_whole();
        if may {
            self.wiped = true;
            self.owe(id);
            self.look_at_zones();
            self.node(id).wipe(disks);
        }
        may
    }

    /// Whether this disk may lose what is not synced: always where acknowledged records are, else only one at a time, or those
    /// of one zone where acknowledged records are in two (`R79`). Who has lost something counts until it is back in every ISR.
    #[must_use]
    pub fn may_lose(&self, id: HostId) -> bool {
        let goes_with = |other: HostId| other == id || self.zoned && self.is_together(other, id);
        self.synced || self.careless || self.in_debt.keys().all(|other| goes_with(*other))
    }

    /// Whether all disks of a zone may lose that at once.
    #[must_use]
    pub fn may_lose_zone(&self, zone: &[HostId]) -> bool {
        let is_one = self.synced || self.zoned || zone.len() == 1;
        is_one && zone.iter().all(|id| self.may_lose(*id))
    }

    /// A disk will lose something, if it may.
    pub fn loses(&mut self, id: HostId) -> bool {
        let may = self.may_lose(id);
        if may {
            self.owe(id);
        }
        may
    }

    fn owe(&mut self, id: HostId) {
        let process = self.node(id).incarnation;
        self.in_debt.insert(id, process);
    }

    /// Whether every partition has all of its replicas in sync, on processes that run now, and none is on its way elsewhere.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let moves = |partition: &Arc<Partition>| !partition.adding.is_empty() || !partition.removing.is_empty();
        self.nodes.iter().all(|node| self.is_in_sync(node)) && !self.observer.lock().image.partitions().any(moves)
    }

    fn is_in_sync(&self, node: &Node) -> bool {
        let seen = self.observer.lock();
        let id = model::BrokerId(i32::from(node.id.0));
        let registered = seen.image.broker(id).is_some_and(|b| b.incarnation == node.incarnation && !b.fenced);
        let member = |partition: &Arc<Partition>| partition.isr.contains(&id) || !partition.replicas.contains(&id);
        registered && seen.image.partitions().count() > 0 && seen.image.partitions().all(member)
    }

    /// Where records are that count now: also before a disk loses some of them.
    fn look_at_zones(&mut self) {
        if let Some(zones) = &mut self.zones {
            let mut found = zones.look(&self.nodes);
            self.tally.zoned = zones.checked();
            self.history.lock().violations.append(&mut found);
        }
    }

    fn look(&mut self) {
        let is_paid = |node: &&Node| {
            let lost = self.in_debt.get(&node.id);
            lost.is_some_and(|process| *process != node.incarnation) && node.is_up() && self.is_in_sync(node)
        };
        let paid: Vec<HostId> = self.nodes.iter().filter(is_paid).map(|node| node.id).collect();
        self.in_debt.retain(|id, _| !paid.contains(id));
        let mut found = Vec::new();
        for node in &self.nodes {
            let Some(metrics) = node.look(|running| running.broker.metrics()) else { continue };
            for replica in &metrics.partitions {
                found.extend(self.leaders.look(node.id, replica));
                found.extend(self.watermarks.look(replica));
                self.tally.look(node.id, replica);
            }
            self.tally.forget_others(node.id, &metrics.partitions);
            self.tally.look_at_broker(node.id, node.incarnation, &metrics);
        }
        self.look_at_zones();
        let (compared, differ) = check_images(&self.nodes, &self.observer);
        self.tally.images += compared;
        found.extend(differ);
        if !found.is_empty() {
            self.history.lock().violations.append(&mut found);
        }
    }
}
