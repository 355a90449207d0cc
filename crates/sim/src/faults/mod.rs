//! What can go wrong, one file each: a fault begins, lasts, and ends.

mod clock;
mod crash;
mod disk;
mod links;
mod pause;
mod restart;
mod siege;
mod wipe;
mod zone;

use crate::chance::Chance;
use crate::cluster::Cluster;
use crate::net::HostId;

/// Something that goes wrong for a while.
pub trait Fault: std::fmt::Debug {
    /// Its kind, as it is counted.
    fn kind(&self) -> &'static str;
    /// Begins, if it can now; says for how many milliseconds it lasts.
    fn begin(&mut self, cluster: &mut Cluster, chance: &mut Chance) -> Option<u64>;
    /// Does what is due in the meantime.
    fn step(&mut self, _cluster: &mut Cluster) {}
    /// Ends.
    fn end(&mut self, cluster: &mut Cluster);
}

/// All kinds, as they are counted.
pub const KINDS: &[&str] = &[
    "kill",
    "power",
    "restart",
    "partition",
    "one-way",
    "isolated-leader",
    "slow-link",
    "broken-connections",
    "io-error",
    "disk-full",
    "broken-disk",
    "clock-jump",
    "pause",
    "all-down",
    "one-by-one",
    "crash-again",
    "wipe",
    "zone-power",
];

/// The milliseconds between two faults, from calm to wild.
const PACES: &[(u64, u64)] = &[(100, 2_500), (100, 2_500), (50, 1_000), (20, 400)];

/// Faults that come and go.
#[derive(Debug)]
pub struct Faults {
    chance: Chance,
    next: u64,
    active: Vec<(u64, Box<dyn Fault>)>,
    /// Those that happen in this run: what a few do together shows where others do not come between.
    kinds: Vec<&'static str>,
    pace: (u64, u64),
}

impl Faults {
    /// None yet. With `only` all are of that kind.
    #[must_use]
    pub fn new(seed: u64, only: Option<&str>) -> Faults {
        let mut chance = Chance::of(seed, "faults");
        let all = chance.one_in(2);
        let mut kinds: Vec<&'static str> = KINDS.iter().copied().filter(|_| all || chance.one_in(3)).collect();
        if kinds.is_empty() {
            kinds.push("kill");
        }
        let mut pace = *chance.pick(PACES);
        if let Some(only) = only {
            kinds = KINDS.iter().copied().filter(|kind| *kind == only).collect();
            pace = PACES[0];
        }
        Faults { chance, next: 0, active: Vec::new(), kinds, pace }
    }

    /// Begins and ends what is due.
    pub fn step(&mut self, cluster: &mut Cluster) {
        let now = cluster.now;
        let active = std::mem::take(&mut self.active).into_iter();
        let (due, later): (Vec<_>, Vec<_>) = active.partition(|(until, _)| *until <= now);
        self.active = later;
        for (_, mut fault) in due {
            tracing::info!(now, ?fault, "ends");
            fault.end(cluster);
        }
        self.active.iter_mut().for_each(|(_, fault)| fault.step(cluster));
        if now < self.next || self.kinds.is_empty() {
            return;
        }
        self.next = now + self.chance.between(self.pace.0, self.pace.1);
        let mut fault = self.choose();
        if let Some(lasts) = fault.begin(cluster, &mut self.chance) {
            tracing::info!(now, ?fault, lasts, "begins");
            cluster.tally.fault(fault.kind());
            self.active.push((now + lasts, fault));
        }
    }

    /// Everything is well again.
    pub fn heal(&mut self, cluster: &mut Cluster) {
        for (_, mut fault) in self.active.drain(..) {
            fault.end(cluster);
        }
        // A call that was to fail and has not come yet must not take a directory away once all is well (seed 90407).
        for node in &cluster.nodes {
            (0..node.disks.count()).for_each(|number| node.disks.get(number).forgive());
        }
    }

    fn branch(&mut self) -> Chance {
        Chance::of(self.chance.draw(), "siege")
    }

    fn choose(&mut self) -> Box<dyn Fault> {
        match *self.chance.pick(&self.kinds) {
            "kill" => Box::new(crash::Crashed::kill()),
            "power" => Box::new(crash::Crashed::power()),
            "restart" => Box::new(restart::Restart::default()),
            "partition" => Box::new(links::Cut::partition()),
            "one-way" => Box::new(links::Cut::one_way()),
            "isolated-leader" => Box::new(links::Cut::isolated_leader()),
            "slow-link" => Box::new(links::Slow::default()),
            "broken-connections" => Box::new(links::Broken),
            "io-error" => Box::new(disk::Error),
            "disk-full" => Box::new(disk::Full::default()),
            "broken-disk" => Box::new(disk::Dead::default()),
            "clock-jump" => Box::new(clock::Jump::default()),
            "all-down" => Box::new(siege::Siege::all_down(self.branch())),
            "one-by-one" => Box::new(siege::Siege::one_by_one(self.branch())),
            "crash-again" => Box::new(siege::Siege::again(self.branch())),
            "wipe" => Box::new(wipe::Wipe::default()),
            "zone-power" => Box::new(zone::Zone::default()),
            _ => Box::new(pause::Pause::default()),
        }
    }
}

/// One of the nodes.
fn any_node(cluster: &Cluster, chance: &mut Chance) -> HostId {
    chance.pick(&cluster.nodes).id
}

/// One of those whose process runs.
fn running_node(cluster: &Cluster, chance: &mut Chance) -> Option<HostId> {
    let id = any_node(cluster, chance);
    let runs = cluster.nodes.iter().any(|node| node.id == id && node.is_up() && !node.paused);
    runs.then_some(id)
}
