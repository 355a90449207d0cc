//! `ottla chaos run`: a local cluster of its own, clients, and harm to its nodes drawn by a seed; then the verdict and the report.
//!
//! Each fault is taken away and the cluster waited for before the next one, so that a time without acknowledgements has one cause.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::chaos::check::check;
use ::chaos::event::{Event, Fault, Run, VERSION};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use protocol::messages::{CreateTopicsRequest, CreateTopicsResponse, create_topics_request};
use tokio::task::JoinSet;

use super::clients::{self, PARTITIONS, Recorder, TOPIC};
use super::relay::Lines;
use super::{check as verdicts, replica};
use crate::cli::output::{Output, counted};
use crate::kafka_client::{KafkaClient, check_message};
use crate::local::{LocalCluster, LocalOptions};
use crate::stop::StopSignal;

/// How long a cluster may take to serve, and to be whole again.
const PATIENCE: Duration = Duration::from_secs(90);
/// The clients are at rest for as long between two faults.
const CALM_MS: u64 = 1000;
/// How long a node is away at most after a kill.
const KILLED_MAX: Duration = Duration::from_millis(1500);

/// What to do to whom, and for how long.
#[derive(Debug, Args)]
pub(super) struct RunOptions {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What is drawn from; another one each time by default
    #[arg(long)]
    seed: Option<u64>,
    /// The kinds of harm
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Kill, Kind::KillAll, Kind::Pause, Kind::Partition, Kind::OneWay])]
    faults: Vec<Kind>,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    nodes: u16,
    /// Kafka port of the first node
    #[arg(long, default_value_t = 24092, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// A setting for every node, as name=value
    #[arg(long = "override", value_name = "NAME=VALUE")]
    overrides: Vec<String>,
    /// Where the history goes
    #[arg(long, default_value = "ottla-chaos.jsonl")]
    history: PathBuf,
    /// Where the report goes
    #[arg(long, default_value = "ottla-chaos.html")]
    report: PathBuf,
}

/// A kind of harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// A node is ended by kill -9, and started again
    Kill,
    /// All nodes are, at once
    KillAll,
    /// A node is stopped by SIGSTOP for a while
    Pause,
    /// A node and the others do not hear each other; clients reach all
    Partition,
    /// Only one of the two hears the other
    OneWay,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.to_possible_value().expect("no kind is skipped");
        f.write_str(name.get_name())
    }
}

/// A small generator (splitmix64): what a run does to whom is a function of its seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        let count = u64::try_from(all.len()).expect("there are few");
        all[usize::try_from(self.below(count)).expect("it is below a length")]
    }
}

/// Runs it all, and fails if anything is wrong.
pub(super) async fn run(options: RunOptions, output: Output) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        elapsed.map_or(1, |elapsed| u64::from(elapsed.subsec_nanos()))
    });
    let RunOptions { nodes, base_port, ref overrides, .. } = options;
    let local =
        LocalOptions { data: None, ephemeral: true, nodes, base_port, overrides: overrides.clone(), detoured: true };
    let mut stop = StopSignal::new()?;
    let mut cluster = LocalCluster::start(&local)?;
    let lines = Lines::open(cluster.detours())?;
    lines.know(cluster.processes());
    // Ctrl-C in the middle still stops the nodes, and removes what they wrote.
    let outcome = tokio::select! {
        outcome = disturb(&mut cluster, &lines, &options, seed, output) => outcome,
        () = stop.received() => Err(anyhow::anyhow!("stopped before the end")),
    };
    lines.cut(BTreeSet::new());
    for id in 1..=nodes {
        cluster.resume(id)?;
    }
    let stopped = cluster.stop(&mut stop).await;
    outcome?;
    stopped?;
    judge(&options, output)
}

/// From the first record until everything is read back.
async fn disturb(
    cluster: &mut LocalCluster,
    lines: &Lines,
    options: &RunOptions,
    seed: u64,
    output: Output,
) -> Result<()> {
    cluster.wait_ready(PATIENCE).await?;
    let recorder = Arc::new(Recorder::create(&options.history, cluster.bootstrap())?);
    let title = format!("{} and {} under load", counted(options.nodes, "node"), counted(PARTITIONS, "partition"));
    let run = Run { version: VERSION, seed, commit: String::new(), started: String::new(), title };
    recorder.write(&Event::Run(run))?;
    let mut client = recorder.client()?;
    create_topic(&mut client, options.nodes).await?;
    wait_whole(&mut client, options.nodes).await?;
    let mut clients = start_clients(&recorder);
    let progress = progress(output);
    let (mut chance, mut faults) = (Chance(seed), 0u64);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        show(&progress, &recorder, faults, begun, options.seconds);
        tokio::time::sleep(Duration::from_millis(chance.below(CALM_MS))).await;
        harm(cluster, lines, &recorder, options, &mut chance).await?;
        faults += 1;
        // A client that ended before it was told to has failed.
        if let Some(ended) = clients.try_join_next() {
            ended.context("a client has panicked")?.context("a client has failed")?;
        }
    }
    recorder.stopped.store(true, Ordering::Relaxed);
    progress.set_message("reading everything back");
    while let Some(ended) = clients.join_next().await {
        ended.context("a client has panicked")?.context("a client has failed")?;
    }
    wait_whole(&mut client, options.nodes).await?;
    clients::read_back(&recorder).await?;
    read_replicas(cluster, &recorder, options.nodes)?;
    progress.finish_and_clear();
    recorder.flush()
}

fn start_clients(recorder: &Arc<Recorder>) -> JoinSet<Result<()>> {
    let mut clients = JoinSet::new();
    for partition in 0..PARTITIONS {
        for number in 0..2 {
            let recorder = Arc::clone(recorder);
            let number = usize::try_from(partition * 2 + number).expect("there are few");
            clients.spawn(async move { clients::produce(&recorder, number, partition).await });
        }
        let recorder = Arc::clone(recorder);
        clients.spawn(async move { clients::consume(&recorder, partition).await });
    }
    let recorder = Arc::clone(recorder);
    clients.spawn(async move { clients::watch(&recorder).await });
    clients
}

/// Does one kind of harm, takes it away and waits until the cluster is whole again.
async fn harm(
    cluster: &mut LocalCluster,
    lines: &Lines,
    recorder: &Recorder,
    options: &RunOptions,
    chance: &mut Chance,
) -> Result<()> {
    let kind = chance.one_of(&options.faults);
    let nodes: Vec<u16> = (1..=options.nodes).collect();
    let node = chance.one_of(&nodes);
    let start = recorder.now();
    let target = if kind == Kind::KillAll { "all".to_owned() } else { node.to_string() };
    // Some outlast a broker's session.
    let longest = if chance.below(4) == 0 { 13_000 } else { 3000 };
    let time = Duration::from_millis(chance.below(longest));
    match kind {
        Kind::Kill => {
            cluster.kill(node).await?;
            tokio::time::sleep(time.min(KILLED_MAX)).await;
            cluster.restart(node)?;
        }
        Kind::KillAll => {
            for node in &nodes {
                cluster.kill(*node).await?;
            }
            nodes.iter().try_for_each(|node| cluster.restart(*node))?;
        }
        Kind::Pause => {
            cluster.pause(node)?;
            tokio::time::sleep(time).await;
            cluster.resume(node)?;
        }
        Kind::Partition | Kind::OneWay => {
            let others = || nodes.iter().copied().filter(move |other| *other != node);
            let (told, heard) = (others().map(|other| (node, other)), others().map(|other| (other, node)));
            let ways = match (kind, chance.below(2)) {
                (Kind::OneWay, 0) => told.collect(),
                (Kind::OneWay, _) => heard.collect(),
                _ => told.chain(heard).collect(),
            };
            lines.cut(ways);
            tokio::time::sleep(time).await;
            lines.cut(BTreeSet::new());
        }
    }
    lines.know(cluster.processes());
    let end = recorder.now();
    cluster.wait_ready(PATIENCE).await?;
    wait_whole(&mut recorder.client()?, options.nodes).await?;
    let fault = Fault { kind: kind.to_string(), target, start, end, settled: Some(recorder.now()) };
    recorder.write(&Event::Fault(fault))
}

async fn create_topic(client: &mut KafkaClient, nodes: u16) -> Result<()> {
    let config = create_topics_request::CreatableTopicConfig {
        name: "min.insync.replicas".to_owned(),
        value: Some("2".to_owned()),
    };
    let topic = create_topics_request::CreatableTopic {
        name: TOPIC.to_owned(),
        num_partitions: PARTITIONS,
        replication_factor: i16::try_from(nodes.min(3))?,
        configs: vec![config],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, validate_only: false };
    let answer: CreateTopicsResponse = client.any(&request).await?;
    let created = answer.topics.first().context("CreateTopics answered nothing")?;
    check_message(created.error_code, created.error_message.as_deref()).context("cannot create the topic")
}

/// Every replica of every partition in sync.
async fn wait_whole(client: &mut KafkaClient, nodes: u16) -> Result<()> {
    let (deadline, replicas) = (Instant::now() + PATIENCE, usize::from(nodes.min(3)));
    loop {
        let whole = client.metadata(Some(&[TOPIC])).await.is_ok_and(|metadata| {
            let partitions = metadata.topics.first().map(|topic| topic.partitions.as_slice()).unwrap_or_default();
            !partitions.is_empty() && partitions.iter().all(|p| p.leader_id >= 0 && p.isr_nodes.len() == replicas)
        });
        if whole {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not all replicas are in sync {PATIENCE:?} after the fault was over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn read_replicas(cluster: &LocalCluster, recorder: &Recorder, nodes: u16) -> Result<()> {
    for node in 1..=nodes {
        for partition in 0..PARTITIONS {
            let directory = cluster.data_directory(node).join(format!("{TOPIC}-{partition}"));
            // With more than three nodes not every one has a replica.
            if !directory.exists() {
                continue;
            }
            for replica in replica::read(&directory, i32::from(node), (TOPIC, partition), true)? {
                recorder.write(&Event::Replica(replica))?;
            }
        }
    }
    Ok(())
}

fn progress(output: Output) -> ProgressBar {
    if output.json {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        progress.set_style(style);
    }
    progress
}

fn show(progress: &ProgressBar, recorder: &Recorder, faults: u64, begun: Instant, seconds: u64) {
    let acknowledged = recorder.acknowledged.load(Ordering::Relaxed);
    let elapsed = begun.elapsed().as_secs();
    progress.set_message(format!("{elapsed} of {seconds} s: {faults} faults, {acknowledged} records acknowledged"));
    progress.tick();
}

fn judge(options: &RunOptions, output: Output) -> Result<()> {
    let history = verdicts::read(&options.history)?;
    let verdict = check(&history).with_context(|| options.history.display().to_string())?;
    verdicts::write_page(&history, &verdict, &options.report)?;
    verdicts::tell(&history, &verdict, output)?;
    if !output.json {
        let (report, history) = (options.report.display(), options.history.display());
        output.text(&format!("the report is {report}, the history {history}"))?;
    }
    ensure!(verdict.figures.faults > 0, "nothing was done to the cluster: give it more --seconds");
    ensure!(verdict.is_sound(), "the history shows what must not be");
    Ok(())
}
