//! `ottla local`: a cluster of processes on this machine, one a node, for one terminal.
//!
//! It writes each node's directory `DIR/node-N` (`server.properties`, `ottla.log`; the node adds `ottla.pid` while it runs),
//! starts the nodes, tells when the cluster serves, watches them, and stops them on Ctrl-C or SIGTERM. A node that dies
//! is told, with the command that starts it again; the others go on. A node that was started again by hand belongs to
//! the cluster as before, and is stopped with it. Everything listens on loopback.

mod directory;
mod node;
mod status_line;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::cli::output::say;
use crate::stop::StopSignal;
use directory::ClusterDir;
use node::{Change, Node, Ports};
use status_line::StatusLine;

/// How often the nodes are looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How long the nodes may take to serve, and to stop.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What `ottla local` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct LocalOptions {
    pub(crate) data: Option<PathBuf>,
    pub(crate) ephemeral: bool,
    pub(crate) nodes: u16,
    pub(crate) base_port: u16,
    pub(crate) overrides: Vec<String>,
    /// The nodes tell each other addresses where somebody else listens and passes on; see [`LocalCluster::detours`].
    pub(crate) detoured: bool,
}

/// A running local cluster.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    nodes: Vec<Node>,
    directory: ClusterDir,
}

/// Runs a cluster until Ctrl-C or SIGTERM.
pub(crate) async fn run(options: LocalOptions) -> Result<()> {
    let started = Instant::now();
    let mut stop = StopSignal::new()?;
    let mut cluster = LocalCluster::start(&options)?;
    let kept = if cluster.directory.is_ephemeral() { " (removed at the end)" } else { "" };
    say(&format!("data in {}{kept}", cluster.directory.path().display()));
    let outcome = tokio::select! {
        ready = cluster.wait_ready(START_LIMIT) => ready,
        () = stop.received() => return cluster.stop(&mut stop).await,
    };
    if let Err(error) = outcome {
        cluster.stop(&mut stop).await?;
        return Err(error);
    }
    say(&format!("ready in {:.2} s: {}", started.elapsed().as_secs_f64(), cluster.greeting()));
    let mut status = StatusLine::new();
    loop {
        cluster.report(&mut status).await;
        // Only a wait is dropped here.
        tokio::select! {
            () = stop.received() => break,
            () = tokio::time::sleep(WATCH) => {}
        }
    }
    status.clear();
    say("stopping");
    cluster.stop(&mut stop).await
}

impl LocalCluster {
    /// Writes the configuration and starts every node.
    pub(crate) fn start(options: &LocalOptions) -> Result<LocalCluster> {
        ensure!((1..=9).contains(&options.nodes), "--nodes is {}; 1 to 9 are possible", options.nodes);
        let directory = ClusterDir::open(options)?;
        let mut nodes = Vec::new();
        for id in 1..=options.nodes {
            let ports = Ports::of(options.base_port, id)?;
            ports.check_free(id)?;
            nodes.push(Node::new(id, directory.node(id), ports, options.detoured));
        }
        let voters: Vec<String> = nodes.iter().map(|n| format!("{}@127.0.0.1:{}", n.id, n.told_ports().1)).collect();
        for node in &nodes {
            node.write_configuration(&voters.join(","), options.nodes, &options.overrides)?;
        }
        let mut cluster = LocalCluster { nodes, directory };
        for node in &mut cluster.nodes {
            node.start()?;
        }
        Ok(cluster)
    }

    /// `host:port,…` of all nodes.
    pub(crate) fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.ports.kafka)).collect();
        addresses.join(",")
    }

    fn greeting(&self) -> String {
        let count = self.nodes.len();
        format!("{count} node{}, bootstrap {}", if count == 1 { "" } else { "s" }, self.bootstrap())
    }

    /// Waits until every node says that it serves.
    pub(crate) async fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for node in &mut self.nodes {
            while !node.is_ready().await {
                let log = node.log_path();
                if let Some(Change::Ended(how)) = node.watch() {
                    let (how, end) = (exit_text(how), node.last_lines());
                    bail!("node {} ended{how} before it served; its log {} ends with\n{end}", node.id, log.display());
                }
                ensure!(
                    Instant::now() < deadline,
                    "node {} is not ready after {limit:?}: see {}",
                    node.id,
                    log.display()
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to a node, as a crash does.
    pub(crate) async fn kill(&mut self, id: u16) -> Result<()> {
        let node = self.node(id)?;
        node.signal(Signal::KILL);
        while node.runs() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            node.watch();
        }
        Ok(())
    }

    /// Starts a node that does not run.
    pub(crate) fn restart(&mut self, id: u16) -> Result<()> {
        self.node(id)?.start()
    }

    /// Stops a node in its tracks, as a machine that swaps does.
    pub(crate) fn pause(&mut self, id: u16) -> Result<()> {
        self.node(id)?.signal(Signal::STOP);
        Ok(())
    }

    /// Lets a node that was paused go on.
    pub(crate) fn resume(&mut self, id: u16) -> Result<()> {
        self.node(id)?.signal(Signal::CONT);
        Ok(())
    }

    /// Where the nodes are told to each other: node, the port that is told, the port where it listens.
    pub(crate) fn detours(&self) -> Vec<(u16, u16, u16)> {
        let of = |node: &Node| {
            let (internal, controller) = node.told_ports();
            [(node.id, internal, node.ports.internal), (node.id, controller, node.ports.controller)]
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// The nodes by the processes that run them.
    pub(crate) fn processes(&self) -> BTreeMap<u32, u16> {
        self.nodes.iter().filter_map(|node| Some((node.process_id()?, node.id))).collect()
    }

    /// Where a node keeps its partitions.
    pub(crate) fn data_directory(&self, id: u16) -> PathBuf {
        self.directory.node(id).join("data")
    }

    fn node(&mut self, id: u16) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|n| n.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// SIGTERM to all, and waits: each moves its leaderships, flushes and ends. A second stop signal, or a node that
    /// takes too long, means SIGKILL.
    pub(crate) async fn stop(&mut self, stop: &mut StopSignal) -> Result<()> {
        let deadline = tokio::time::Instant::now() + STOP_LIMIT;
        // One that was started by hand just now is stopped too.
        for node in &mut self.nodes {
            node.watch();
        }
        self.nodes.iter().for_each(|node| node.signal(Signal::TERM));
        let mut bad = Vec::new();
        while self.nodes.iter().any(Node::runs) {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
                () = stop.received() => {
                    say("killing the nodes that still run");
                    self.nodes.iter().for_each(|node| node.signal(Signal::KILL));
                }
                () = tokio::time::sleep_until(deadline) => {
                    self.nodes.iter().for_each(|node| node.signal(Signal::KILL));
                    let late: Vec<String> = self.nodes.iter().filter(|n| n.runs()).map(|n| n.id.to_string()).collect();
                    bail!("nodes {} did not stop within {STOP_LIMIT:?} and were killed", late.join(", "));
                }
            }
            for node in self.nodes.iter_mut().filter(|node| node.runs()) {
                if let Some(Change::Ended(how)) = node.watch()
                    && how.is_some_and(is_bad)
                {
                    bad.push(format!("node {} ended{}: see {}", node.id, exit_text(how), node.log_path().display()));
                }
            }
        }
        ensure!(bad.is_empty(), "the cluster did not stop cleanly: {}", bad.join("; "));
        Ok(())
    }

    /// Tells what changed, and shows the cluster's state.
    async fn report(&mut self, status: &mut StatusLine) {
        for node in &mut self.nodes {
            match node.watch() {
                None => {}
                Some(Change::Ended(how)) => {
                    status.clear();
                    say(&format!(
                        "node {} died{}; start it again with\n  {}",
                        node.id,
                        exit_text(how),
                        node.start_command()
                    ));
                }
                Some(Change::Started(pid)) => {
                    status.clear();
                    say(&format!("node {} was started again, as process {pid}", node.id));
                }
            }
        }
        if status.is_shown() {
            status.show(&status_line::describe(&self.nodes).await);
        }
    }
}

/// How a child ended, as words behind others.
fn exit_text(exit: Option<ExitStatus>) -> String {
    exit.map(|exit| format!(" ({exit})")).unwrap_or_default()
}

/// A node that SIGTERM found before it listened for it had nothing to stop yet.
fn is_bad(exit: ExitStatus) -> bool {
    !exit.success() && exit.signal() != Some(Signal::TERM.as_raw())
}
