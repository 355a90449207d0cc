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
use crate::history::{Outcome, Partition, Written};
use crate::invariants::{check_keyed, check_offsets, check_replicas, check_transactions, check_written, observe};
use crate::net::HostId;
use crate::node::{Settings, voters};
use crate::tally::Report;
use crate::workload::{
    Admin, Auditor, Classic, Consumer, GroupClient, KEYED, LOOSE, OUTS, PARTITIONS, Producer, Reader, Shape,
    StableReader, TOPIC, TRANSFORM, Transformer, create_topics,
};

/// Of every topic's partitions.
const REPLICAS: i16 = 3;
/// Producers of each partition.
const PRODUCERS: u64 = 2;
/// What a cluster may take to be whole again, in milliseconds: a session's end, elections, a recovery's wait, and catching up.
const HEALED_WITHIN: u64 = 40_000;
/// As long does a node go on without a log directory before somebody starts it anew.
const REPAIRED_AFTER: u64 = 4_000;
/// After a node ended by itself somebody starts it again.
const RESTARTED_AFTER: u64 = 2_000;
/// What every producer has to get acknowledged once all is well.
const PROGRESS: u64 = 5;
/// How often every group and every transactional id has to get on once all is well.
const STEPS: u64 = 2;
/// The groups with members: a classic one, and one of the next generation.
const CLASSIC: &str = "classic";
const CONSUMER: &str = "consumer";
/// Their members.
const MEMBERS: u64 = 3;
/// The partitions whose records are transformed.
const INPUTS: i32 = 2;
/// Records that a run has to get acknowledged to say anything.
const ENOUGH: u64 = 50;
/// High watermarks that have to rise where records are acknowledged by zones.
const ENOUGH_ZONED: u64 = 10;

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

/// Who is there besides producers and readers, and how many nodes.
#[derive(Clone, Copy, Debug)]
struct Cast {
    nodes: u8,
    zoned: bool,
    groups: bool,
    transactions: bool,
    admin: bool,
}

impl Cast {
    fn of(chance: &mut Chance, zoned: bool) -> Cast {
        let nodes = if chance.one_in(3) { 4 } else { 3 };
        let (groups, transactions, admin) = (chance.one_in(2), chance.one_in(2), chance.one_in(2));
        Cast { nodes, zoned, groups, transactions, admin }
    }

    /// Those who have to get on.
    fn names(self) -> Vec<String> {
        let groups = if self.groups { [CLASSIC, CONSUMER].as_slice() } else { &[] };
        let transformers = (0..INPUTS).filter(|_| self.transactions).map(|input| format!("x-{input}"));
        groups.iter().map(|name| (*name).to_owned()).chain(transformers).collect()
    }
}

/// The zones that machines may be in: each in its own, or some together.
fn racks(nodes: u8) -> &'static [&'static [&'static str]] {
    match nodes {
        4 => &[&["a", "a", "b", "c"], &["a", "a", "b", "b"]],
        _ => &[&["a", "b", "c"], &["a", "a", "b"]],
    }
}

/// Batches of metadata that are kept for those who follow it: all of a run's in half of the runs, else those of a few moments.
fn followed_bytes(seed: u64) -> usize {
    let mut chance = Chance::of(seed, "followed");
    if chance.one_in(2) { 16 << 20 } else { usize::try_from(chance.between(200, 6_000)).expect("small") }
}

/// How many disks each machine has.
fn disks(seed: u64, nodes: u8) -> Vec<usize> {
    let mut chance = Chance::of(seed, "disks");
    (0..nodes).map(|_| if chance.one_in(2) { 2 } else { 1 }).collect()
}

/// Runs one seed.
#[must_use]
pub fn run(options: &Options) -> Report {
    let mut chance = Chance::of(options.seed, "settings");
    let mut of_zones = Chance::of(options.seed, "zones");
    let cast = Cast::of(&mut chance, of_zones.one_in(3));
    let settings = Settings {
        nodes: cast.nodes,
        lag_ms: chance.between(1_000, 8_000),
        session_ms: chance.between(2_000, 6_000),
        snapshot_every: chance.between(20, 200),
        followed_bytes: followed_bytes(options.seed),
        racks: of_zones.pick(racks(cast.nodes)).to_vec(),
        zoned: cast.zoned,
        disks: disks(options.seed, cast.nodes),
        rules: options.rules,
    };
    let cluster = Cluster::new(&settings, chance.one_in(2), options.seed);
    let mut chance = Chance::of(options.seed, "shape");
    let segment_ms = (!chance.one_in(3)).then(|| chance.between(300, 4_000));
    let loose = Chance::of(options.seed, "loose").one_in(4);
    let shape = Shape { synced: cluster.synced, zoned: cast.zoned, loose, segment_ms };
    let mut run = Run { cluster, cast, shape, down_since: BTreeMap::new(), crippled_since: BTreeMap::new() };
    run.cluster.careless = options.careless;
    run.begin(options.seed);
    let mut faults = Faults::new(options.seed, options.only.as_deref());
    // Formation is not what is looked at: it has its own tests.
    let formed = run.until(HEALED_WITHIN, |run| run.cluster.is_whole());
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
    cast: Cast,
    shape: Shape,
    /// Nodes that ended by themselves.
    down_since: BTreeMap<HostId, u64>,
    /// Nodes that go on without one of their log directories.
    crippled_since: BTreeMap<HostId, u64>,
}

impl Run {
    fn begin(&mut self, seed: u64) {
        for id in 1..=self.cast.nodes {
            self.cluster.start(HostId(id));
        }
        let cluster = &self.cluster;
        let (mut creator, shape, history) = (self.client(0), self.shape, cluster.history.clone());
        cluster.spawn_client(async move { create_topics(&mut creator, REPLICAS, shape, &history).await });
        let controllers: Vec<(BrokerId, String)> = voters(self.cast.nodes);
        let network = Network::Other(Arc::new(cluster.net.dialer(CLIENTS)));
        let (observer, history) = (cluster.observer.clone(), cluster.history.clone());
        cluster.spawn_client(async move {
            // Channels need the runtime that they are used in.
            match ControllerClient::over(network, &controllers) {
                Ok(client) => observe(client, observer, history).await,
                Err(error) => history.violation(format!("nobody can observe: {error}")),
            }
        });
        self.begin_records(seed);
        if self.shape.segment_ms.is_some() {
            self.begin_keyed(seed);
        }
        if self.shape.loose {
            let producer = self.producer(0, (LOOSE, 0), Chance::of(seed, LOOSE));
            self.cluster.spawn_client(producer.run_loose());
        }
        if self.cast.groups {
            self.begin_groups(seed);
        }
        if self.cast.transactions {
            self.begin_transactions(seed);
        }
        if self.cast.admin {
            let chance = Chance::of(seed, "admin");
            let (nodes, synced, history) = (self.cast.nodes, cluster.synced, cluster.history.clone());
            let two_dirs = cluster.nodes.iter().filter(|node| node.disks.count() > 1).map(|node| node.id).collect();
            cluster.spawn_client(Admin { nodes, two_dirs, synced, client: self.client(0), chance, history }.run());
        }
        let groups = [CLASSIC, CONSUMER, TRANSFORM].map(|group| self.group(seed, group, "auditor"));
        cluster.spawn_client(Auditor(groups.into()).run());
    }

    fn client(&self, first: u8) -> Client {
        Client::new(self.cluster.net.dialer(CLIENTS), self.cast.nodes, first)
    }

    fn group(&self, seed: u64, group: &str, who: &str) -> GroupClient {
        let chance = Chance::of(seed, &format!("{group} {who}"));
        let history = self.cluster.history.clone();
        GroupClient { group: group.to_owned(), client: self.client(1), chance, history }
    }

    /// Somebody who has to be done before the end.
    fn employ(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.cluster.history.lock().working += 1;
        self.cluster.spawn_client(task);
    }

    fn begin_records(&self, seed: u64) {
        for partition in 0..PARTITIONS {
            let history = self.cluster.history.clone();
            let reader = Reader { partition, client: self.client(1), history: history.clone() };
            self.cluster.spawn_client(reader.run());
            for number in 0..PRODUCERS {
                let chance = Chance::of(seed, &format!("producer {partition} {number}"));
                let producer = self.producer(number, (TOPIC, partition), chance);
                self.cluster.spawn_client(producer.run());
            }
        }
    }

    fn producer(&self, number: u64, (topic, partition): (&'static str, Partition), chance: Chance) -> Producer {
        Producer { number, topic, partition, client: self.client(2), chance, history: self.cluster.history.clone() }
    }

    fn begin_keyed(&self, seed: u64) {
        for number in 0..PRODUCERS {
            let chance = Chance::of(seed, &format!("keyed {number}"));
            self.employ(self.producer(number, (KEYED, 0), chance).run_keyed());
        }
    }

    fn begin_groups(&self, seed: u64) {
        let has_static = Chance::of(seed, "static members").one_in(2);
        for member in 0..MEMBERS {
            // Two of them have the same name.
            let instance = has_static.then(|| format!("instance {}", member % 2));
            self.employ(Classic(self.group(seed, CLASSIC, &member.to_string()), instance).run());
            self.employ(Consumer(self.group(seed, CONSUMER, &member.to_string())).run());
        }
    }

    fn begin_transactions(&self, seed: u64) {
        for partition in 0..OUTS {
            let history = self.cluster.history.clone();
            self.cluster.spawn_client(StableReader { partition, client: self.client(2), history }.run());
        }
        for input in 0..INPUTS {
            let offsets = self.group(seed, TRANSFORM, &input.to_string());
            self.employ(Transformer { input, client: self.client(0), offsets }.run());
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
            if stopped {
                self.down_since.insert(id, now);
                tracing::info!(now, node = id.0, why = node.ended(), "a node has ended");
                self.cluster.tally.ended += 1;
                self.cluster.node(id).crash(false, Crash::KeepAll);
            }
            self.repair(id);
            let due = self.down_since.get(&id).is_some_and(|since| since + RESTARTED_AFTER <= now);
            if due {
                self.down_since.remove(&id);
                self.cluster.start(id);
            }
        }
    }

    /// Starts a node anew that has gone on without one of its log directories for long enough.
    fn repair(&mut self, id: HostId) {
        let now = self.cluster.now;
        if !now.is_multiple_of(100) {
            return;
        }
        if !self.cluster.node(id).is_crippled() {
            self.crippled_since.remove(&id);
        } else if *self.crippled_since.entry(id).or_insert(now) + REPAIRED_AFTER <= now {
            self.cluster.tally.repaired += 1;
            self.cluster.node(id).crash(false, Crash::KeepAll);
            self.cluster.start(id);
        }
    }

    /// Goes on until something is so; says whether it came.
    fn until(&mut self, ms: u64, is_so: impl Fn(&Run) -> bool) -> bool {
        let end = self.cluster.now + ms;
        while self.cluster.now < end && self.is_good() {
            if self.cluster.now.is_multiple_of(50) && is_so(self) {
                return true;
            }
            self.step();
        }
        is_so(self)
    }

    /// The cluster is well: it has to recover, and everything has to be there.
    fn finish(mut self, options: &Options, formed: bool) -> Report {
        for id in 1..=self.cast.nodes {
            self.cluster.start(HostId(id));
        }
        let before = {
            let mut history = self.cluster.history.lock();
            history.calm = true;
            Progress { records: history.progress.clone(), steps: history.steps.clone() }
        };
        let healed = self.until(HEALED_WITHIN, |run| run.cluster.is_whole() && run.progressed(&before));
        let mut violations = Vec::new();
        if !healed && self.is_good() {
            violations.push(self.not_healed(formed, &before));
        }
        if healed {
            self.cluster.history.lock().stopping = true;
            if self.until(HEALED_WITHIN, Run::is_quiet) {
                // What followers have is settled once they know the last high watermark.
                self.until(2_000, |_| false);
                violations.extend(self.check());
            } else if self.is_good() {
                violations
                    .push(format!("what was begun is not answered, or not read to its end: {}", self.unfinished()));
            }
        }
        self.report(options, violations)
    }

    fn check(&self) -> Vec<String> {
        let mut violations = {
            let history = self.cluster.history.lock();
            let mut found = check_written(&history);
            found.extend(check_transactions(&history));
            found
        };
        violations.extend(check_replicas(&self.cluster));
        violations.extend(check_offsets(&self.cluster));
        violations.extend(check_keyed(&self.cluster));
        violations
    }

    fn not_healed(&self, formed: bool, before: &Progress) -> String {
        let (whole, progress) = (self.cluster.is_whole(), self.progressed(before));
        let steps = self.cluster.history.lock().steps.clone();
        let seen = self.cluster.observer.lock();
        let partitions: Vec<_> = seen
            .image
            .partitions()
            .map(|p| (p.partition.0, p.leader.0, &p.replicas, &p.isr, &p.elr, &p.adding, &p.removing))
            .collect();
        let nodes: Vec<_> = self.cluster.nodes.iter().map(|node| (node.id.0, node.is_up(), node.ended())).collect();
        format!(
            "the cluster does not recover (formed: {formed}, whole: {whole}, progress: {progress}, steps: {steps:?}, \
             before: {:?}): partitions {partitions:?}, nodes {nodes:?}",
            before.steps
        )
    }

    fn progressed(&self, before: &Progress) -> bool {
        let history = self.cluster.history.lock();
        let all = (0..PARTITIONS).flat_map(|partition| (0..PRODUCERS).map(move |number| (partition, number)));
        let records = all.into_iter().all(|key| {
            let count = |of: &BTreeMap<(Partition, u64), u64>| of.get(&key).copied().unwrap_or(0);
            count(&history.progress) >= count(&before.records) + PROGRESS
        });
        let keyed = self.shape.segment_ms.map(|_| KEYED.to_owned());
        let steps = self.cast.names().iter().chain(&keyed).all(|name| {
            let count = |of: &BTreeMap<String, u64>| of.get(name).copied().unwrap_or(0);
            count(&history.steps) >= count(&before.steps) + STEPS
        });
        records && steps
    }

    /// Everything that was begun is answered, and read.
    fn is_quiet(&self) -> bool {
        let history = self.cluster.history.lock();
        let answered = |written: &Vec<Written>| written.last().is_some_and(|last| last.outcome != Outcome::Unknown);
        let read = u64::try_from(history.read.len()).unwrap_or(0);
        let settled = |partition: i32| history.settled.get(&partition) == Some(&true);
        history.written.values().all(answered)
            && read >= history.acknowledged
            && history.working == 0
            && history.audited.is_some()
            && (!self.cast.transactions || (0..OUTS).all(settled))
    }

    fn unfinished(&self) -> String {
        let history = self.cluster.history.lock();
        format!(
            "{} read of {} acknowledged, {} still at work, audited: {}, settled: {:?}, errors: {:?}",
            history.read.len(),
            history.acknowledged,
            history.working,
            history.audited.is_some(),
            history.settled,
            history.errors
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
            ("repaired", tally.repaired),
            ("relocations", seen.relocations),
            ("truncations", tally.truncations),
            ("cleanings", tally.cleanings()),
            ("images", tally.images),
            ("isr-failed", tally.isr_failed()),
            ("elections", seen.elections),
            ("elr-elections", seen.elr_elections),
            ("recoveries", seen.recoveries),
            ("unclean", seen.unclean),
            ("shrinks", seen.shrinks),
            ("expands", seen.expands),
            ("fences", seen.fences),
            ("snapshots", seen.snapshots + tally.snapshots()),
            ("synced", u64::from(self.cluster.synced)),
            ("zones", u64::from(self.cast.zoned)),
            ("zoned", tally.zoned),
            ("nodes", u64::from(self.cast.nodes)),
            ("transacted", u64::try_from(history.stable.len()).unwrap_or(u64::MAX)),
        ];
        counts.extend(others.map(|(name, count)| (name.to_owned(), count)));
        counts.extend(history.steps.iter().map(|(who, count)| (who.clone(), *count)));
        counts.extend(history.errors.iter().map(|(code, count)| (format!("error-{code}"), *count)));
        let zoned = u64::from(self.cast.zoned) * ENOUGH_ZONED;
        let too_little = [("acknowledged", ENOUGH), ("images", 1), ("zoned", zoned)].into_iter();
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

/// How far all had come at a time.
struct Progress {
    records: BTreeMap<(Partition, u64), u64>,
    steps: BTreeMap<String, u64>,
}
