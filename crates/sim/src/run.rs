//! One run: a cluster under load with faults for a while, then all is well again and it has to recover within a bound, then
//! everything that was written is looked for.

use std::collections::BTreeMap;

use model::{BrokerId, Rules};
use rpc::controller::ControllerClient;
use rpc::net::Network;
use std::sync::Arc;
use storage::disk::Crash;

use crate::chance::Chance;
use crate::client::Client;
use crate::cluster::{CLIENTS, Cluster};
use crate::faults::{Faults, KINDS};
use crate::history::Partition;
use crate::invariants::{check_replicas, check_written, observe};
use crate::net::HostId;
use crate::node::{Settings, voters};
use crate::tally::Report;
use crate::workload::{PARTITIONS, Producer, Reader, create_topic};

const NODES: u8 = 3;
/// Producers of each partition.
const PRODUCERS: u64 = 2;
/// What a cluster may take to be whole again, in milliseconds: a session's end, elections, a recovery's wait, and catching up.
const HEALED_WITHIN: u64 = 40_000;
/// After a node ended by itself somebody starts it again.
const RESTARTED_AFTER: u64 = 2_000;
/// What every producer has to get acknowledged once all is well.
const PROGRESS: u64 = 5;
/// Records that a run has to get acknowledged to say anything.
const ENOUGH: u64 = 50;

/// What a run is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything that is chance follows from it.
    pub seed: u64,
    /// How long there are faults, in milliseconds.
    pub faults_ms: u64,
    /// All faults are of this kind.
    pub only: Option<String>,
    /// More is lost than any cluster survives: to see that it is noticed.
    pub careless: bool,
    /// Which rules hold.
    pub rules: Rules,
}

/// Runs one seed.
#[must_use]
pub fn run(options: &Options) -> Report {
    let mut chance = Chance::of(options.seed, "settings");
    let settings = Settings {
        nodes: NODES,
        lag_ms: chance.between(1_000, 8_000),
        session_ms: chance.between(2_000, 6_000),
        snapshot_every: chance.between(20, 200),
        rules: options.rules,
    };
    let mut run = Run { cluster: Cluster::new(&settings, chance.one_in(2), options.seed), down_since: BTreeMap::new() };
    run.cluster.careless = options.careless;
    run.begin(options.seed);
    let mut faults = Faults::new(options.seed, options.only.clone());
    // Formation is not what is looked at: it has its own tests.
    let formed = run.until(HEALED_WITHIN, |cluster| cluster.is_whole());
    let end = run.cluster.now + options.faults_ms;
    while run.cluster.now < end && run.is_good() {
        run.step();
        faults.step(&mut run.cluster);
    }
    faults.heal(&mut run.cluster);
    run.finish(options, formed)
}

struct Run {
    cluster: Cluster,
    /// Nodes that ended by themselves.
    down_since: BTreeMap<HostId, u64>,
}

impl Run {
    fn begin(&mut self, seed: u64) {
        for id in 1..=NODES {
            self.cluster.start(HostId(id));
        }
        let cluster = &self.cluster;
        let client = |first: u8| Client::new(cluster.net.dialer(CLIENTS), NODES, first);
        let (mut creator, synced, history) = (client(0), cluster.synced, cluster.history.clone());
        cluster.spawn_client(async move { create_topic(&mut creator, synced, &history).await });
        let controllers: Vec<(BrokerId, String)> = voters(NODES);
        let network = Network::Other(Arc::new(cluster.net.dialer(CLIENTS)));
        let (observer, history) = (cluster.observer.clone(), cluster.history.clone());
        cluster.spawn_client(async move {
            // Channels need the runtime that they are used in.
            match ControllerClient::over(network, &controllers) {
                Ok(client) => observe(client, observer, history).await,
                Err(error) => history.violation(format!("nobody can observe: {error}")),
            }
        });
        for partition in 0..PARTITIONS {
            let history = cluster.history.clone();
            cluster.spawn_client(Reader { partition, client: client(1), history: history.clone() }.run());
            for number in 0..PRODUCERS {
                let chance = Chance::of(seed, &format!("producer {partition} {number}"));
                let producer = Producer { number, partition, client: client(2), chance, history: history.clone() };
                cluster.spawn_client(producer.run());
            }
        }
    }

    fn is_good(&self) -> bool {
        self.cluster.history.lock().violations.is_empty()
    }

    fn step(&mut self) {
        self.cluster.step();
        let now = self.cluster.now;
        for at in 0..self.cluster.nodes.len() {
            let node = &self.cluster.nodes[at];
            let id = node.id;
            let stopped = node.is_up() && !node.is_done() && node.ended().is_some();
            if stopped && self.down_since.insert(id, now).is_none() {
                tracing::info!(now, node = id.0, why = node.ended(), "a node has ended");
                self.cluster.tally.ended += 1;
                self.cluster.node(id).crash(false, Crash::KeepAll);
            }
            let due = self.down_since.get(&id).is_some_and(|since| since + RESTARTED_AFTER <= now);
            if due {
                self.down_since.remove(&id);
                self.cluster.start(id);
            }
        }
    }

    /// Goes on until something is so; says whether it came.
    fn until(&mut self, ms: u64, is_so: impl Fn(&Cluster) -> bool) -> bool {
        let end = self.cluster.now + ms;
        while self.cluster.now < end && self.is_good() {
            if self.cluster.now.is_multiple_of(50) && is_so(&self.cluster) {
                return true;
            }
            self.step();
        }
        is_so(&self.cluster)
    }

    /// The cluster is well: it has to recover, and everything has to be there.
    fn finish(mut self, options: &Options, formed: bool) -> Report {
        for id in 1..=NODES {
            self.cluster.start(HostId(id));
        }
        let before = self.cluster.history.lock().progress.clone();
        let healed = self.until(HEALED_WITHIN, |cluster| cluster.is_whole() && progressed(cluster, &before));
        let mut violations = Vec::new();
        if !healed && self.is_good() {
            violations.push(self.not_healed(formed, &before));
        }
        if healed {
            self.cluster.history.lock().stopping = true;
            if self.until(HEALED_WITHIN, is_quiet) {
                // What followers have is settled once they know the last high watermark.
                self.until(2_000, |_| false);
                violations.extend(check_written(&self.cluster.history.lock()));
                violations.extend(check_replicas(&self.cluster.nodes));
            } else if self.is_good() {
                violations.push("what was begun is not answered, or not read to its end".to_owned());
            }
        }
        self.report(options, violations)
    }

    fn not_healed(&self, formed: bool, before: &BTreeMap<(Partition, u64), u64>) -> String {
        let (whole, progress) = (self.cluster.is_whole(), progressed(&self.cluster, before));
        let seen = self.cluster.observer.lock();
        let partitions: Vec<_> = seen.image.partitions().map(|p| (p.partition.0, p.leader.0, &p.isr, &p.elr)).collect();
        let nodes: Vec<_> = self.cluster.nodes.iter().map(|node| (node.id.0, node.is_up(), node.ended())).collect();
        format!(
            "the cluster does not recover (formed: {formed}, whole: {whole}, progress: {progress}): \
             partitions {partitions:?}, nodes {nodes:?}"
        )
    }

    fn report(&self, options: &Options, mut violations: Vec<String>) -> Report {
        let history = self.cluster.history.lock();
        let (seen, tally) = (self.cluster.observer.lock(), &self.cluster.tally);
        violations.extend(history.violations.iter().cloned());
        let mut counts: BTreeMap<String, u64> =
            KINDS.iter().map(|kind| ((*kind).to_owned(), tally.faults.get(kind).copied().unwrap_or(0))).collect();
        let others = [
            ("acknowledged", history.acknowledged),
            ("read", u64::try_from(history.read.len()).unwrap_or(u64::MAX)),
            ("starts", tally.starts),
            ("ended", tally.ended),
            ("truncations", tally.truncations),
            ("images", tally.images),
            ("isr-failed", tally.isr_failed()),
            ("elections", seen.elections),
            ("elr-elections", seen.elr_elections),
            ("recoveries", seen.recoveries),
            ("shrinks", seen.shrinks),
            ("expands", seen.expands),
            ("fences", seen.fences),
            ("synced", u64::from(self.cluster.synced)),
        ];
        counts.extend(others.map(|(name, count)| (name.to_owned(), count)));
        counts.extend(history.errors.iter().map(|(code, count)| (format!("error-{code}"), *count)));
        let too_little = [("acknowledged", ENOUGH), ("images", 1)].into_iter();
        let too_little = too_little.filter(|(name, least)| counts.get(*name).is_none_or(|count| count < least));
        Report {
            seed: options.seed,
            trace: self.cluster.net.trace(),
            ms: self.cluster.now,
            too_little: too_little.map(|(name, least)| format!("{name} is below {least}")).collect(),
            counts,
            violations,
        }
    }
}

fn progressed(cluster: &Cluster, before: &BTreeMap<(Partition, u64), u64>) -> bool {
    let history = cluster.history.lock();
    let all = (0..PARTITIONS).flat_map(|partition| (0..PRODUCERS).map(move |number| (partition, number)));
    all.into_iter().all(|key| {
        let count = |of: &BTreeMap<(Partition, u64), u64>| of.get(&key).copied().unwrap_or(0);
        count(&history.progress) >= count(before) + PROGRESS
    })
}

/// Everything that was begun is answered, and read.
fn is_quiet(cluster: &Cluster) -> bool {
    let history = cluster.history.lock();
    let answered = |written: &Vec<crate::history::Written>| {
        written.last().is_some_and(|last| last.outcome != crate::history::Outcome::Unknown)
    };
    let read = u64::try_from(history.read.len()).unwrap_or(0);
    history.written.values().all(answered) && read >= history.acknowledged
}
