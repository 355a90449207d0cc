//! One node of a local cluster: its directory, its ports, and the process that runs it.
//!
//! The process is a child of this one, or one that somebody started by hand with the node's configuration: that one is
//! known by the node's pid file, which a node writes once it holds its data directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use tokio::process::{Child, Command};

use crate::config::NodeConfig;
use crate::{http, properties};

/// How far above a listener its detour is.
const DETOUR: u16 = 3000;

/// The ports of a node, all of them on loopback.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) kafka: u16,
    pub(super) internal: u16,
    pub(super) controller: u16,
    pub(super) http: u16,
}

impl Ports {
    pub(super) fn of(base: u16, id: u16) -> Result<Ports> {
        let kafka = base.checked_add(id - 1);
        let port = |above: u16| {
            kafka
                .and_then(|k| k.checked_add(above))
                .with_context(|| format!("--base-port {base} is too high: up to {} above it are needed", 2000 + DETOUR))
        };
        // The detours of the controllers are the highest.
        port(2000 + DETOUR)?;
        Ok(Ports { kafka: port(0)?, internal: port(1000)?, controller: port(2000)?, http: port(3000)? })
    }

    pub(super) fn check_free(self, id: u16) -> Result<()> {
        for port in [self.kafka, self.internal, self.controller, self.http] {
            let free = std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
            ensure!(free, "port {port} of node {id} is taken: stop what uses it, or give another --base-port");
        }
        Ok(())
    }
}

/// Who runs a node.
#[derive(Debug)]
enum Process {
    /// Started by this program.
    Child(Child),
    /// Started by somebody else.
    Foreign(Pid),
    /// Nobody. The last one had this id.
    None { last: Option<Pid> },
}

/// What happened to a node since it was last looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// It ended; how is known of children only.
    Ended(Option<ExitStatus>),
    /// Somebody started it.
    Started(i32),
}

/// What a node says of itself and of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(super) struct NodeReport {
    pub(super) state: Option<String>,
    pub(super) metadata_offset: Option<i64>,
    pub(super) leaders: usize,
    pub(super) under_replicated: usize,
    pub(super) offline: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u16,
    directory: PathBuf,
    pub(super) ports: Ports,
    detoured: bool,
    process: Process,
}

impl Node {
    pub(super) fn new(id: u16, directory: PathBuf, ports: Ports, detoured: bool) -> Node {
        Node { id, directory, ports, detoured, process: Process::None { last: None } }
    }

    /// Where the other nodes look for its INTERNAL and CONTROLLER listeners.
    pub(super) fn told_ports(&self) -> (u16, u16) {
        let Ports { internal, controller, .. } = self.ports;
        if self.detoured { (internal + DETOUR, controller + DETOUR) } else { (internal, controller) }
    }

    /// The process that runs it.
    pub(super) fn process_id(&self) -> Option<u32> {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Foreign(pid) => u32::try_from(pid.as_raw_nonzero().get()).ok(),
            Process::None { .. } => None,
        }
    }

    /// Writes `server.properties`, once it is known to be good.
    pub(super) fn write_configuration(&self, voters: &str, count: u16, overrides: &[String]) -> Result<()> {
        let path = self.config_path();
        let mut given = self.own_settings(voters);
        for text in overrides {
            let (name, value) = properties::parse_override(text)?;
            ensure!(!given.contains_key(&name), "--override {name}: `ottla local` gives each node its own");
            given.insert(name, value);
        }
        for (name, value) in safety(count) {
            given.entry(name.to_owned()).or_insert_with(|| value.to_string());
        }
        // The nodes share one machine.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let share = (processors / usize::from(count.max(1))).max(1);
        given.entry("ottla.threads".to_owned()).or_insert_with(|| share.to_string());
        NodeConfig::from_properties(given.clone()).context("--override")?;
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot create {}", self.directory.display()))?;
        let mut text = "# Written by `ottla local` at each start.\n".to_owned();
        given.iter().for_each(|(name, value)| text.push_str(&properties::line(name, value)));
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What differs from node to node.
    fn own_settings(&self, voters: &str) -> BTreeMap<String, String> {
        let Ports { kafka, internal, controller, http } = self.ports;
        let zone = ["a", "b", "c"][usize::from(self.id - 1) % 3];
        let listeners = format!(
            "PLAINTEXT://127.0.0.1:{kafka},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}"
        );
        let (told_internal, told_controller) = self.told_ports();
        let told = format!(
            "PLAINTEXT://127.0.0.1:{kafka},INTERNAL://127.0.0.1:{told_internal},CONTROLLER://127.0.0.1:{told_controller}"
        );
        let advertised = self.detoured.then_some(("advertised.listeners", told));
        let own = [
            ("node.id", self.id.to_string()),
            ("process.roles", "broker,controller".to_owned()),
            ("broker.rack", zone.to_owned()),
            ("listeners", listeners),
            ("controller.quorum.voters", voters.to_owned()),
            ("log.dirs", self.directory.join("data").display().to_string()),
            ("ottla.http.listener", format!("127.0.0.1:{http}")),
            ("ottla.pid.file", self.pid_path().display().to_string()),
        ];
        own.into_iter().chain(advertised).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Starts it as a child.
    pub(super) fn start(&mut self) -> Result<()> {
        ensure!(matches!(self.process, Process::None { .. }), "node {} runs already", self.id);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let child = Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["server", "--end-with-parent", &std::process::id().to_string(), "--config"])
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the whole foreground group: the nodes are stopped by SIGTERM, in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start node {}", self.id))?;
        self.process = Process::Child(child);
        Ok(())
    }

    /// Looks after the process; says what changed.
    pub(super) fn watch(&mut self) -> Option<Change> {
        let pid_path = self.pid_path();
        match &mut self.process {
            Process::Child(child) => {
                // Asked before it is waited for: afterwards a child has no id.
                let last = pid_of(child);
                let exit = child.try_wait().ok().flatten()?;
                self.process = Process::None { last };
                Some(Change::Ended(Some(exit)))
            }
            Process::Foreign(pid) if is_alive(*pid) => None,
            Process::Foreign(pid) => {
                self.process = Process::None { last: Some(*pid) };
                Some(Change::Ended(None))
            }
            Process::None { last } => {
                let found = read_pid(&pid_path).filter(|pid| Some(*pid) != *last && is_alive(*pid))?;
                self.process = Process::Foreign(found);
                Some(Change::Started(found.as_raw_nonzero().get()))
            }
        }
    }

    pub(super) fn runs(&self) -> bool {
        !matches!(self.process, Process::None { .. })
    }

    /// Sends a signal to whoever runs the node.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = match &self.process {
            Process::Child(child) => pid_of(child),
            Process::Foreign(pid) => Some(*pid),
            Process::None { .. } => None,
        };
        if let Some(pid) = pid {
            // It may have ended in the meantime.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Asks it how it is; None while it does not answer.
    pub(super) async fn report(&self) -> Option<NodeReport> {
        let answer = http::get(&self.http_address(), "/api/status").await.ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    pub(super) async fn is_ready(&self) -> bool {
        http::get(&self.http_address(), "/health/ready").await.is_ok_and(|answer| answer.code == 200)
    }

    fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.http)
    }

    pub(super) fn start_command(&self) -> String {
        let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ottla"));
        format!("{} server --config {}", exe.display(), self.config_path().display())
    }

    /// The end of its log, for an error message.
    pub(super) fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.directory.join("ottla.log")
    }

    fn config_path(&self) -> PathBuf {
        self.directory.join("server.properties")
    }

    fn pid_path(&self) -> PathBuf {
        self.directory.join("ottla.pid")
    }
}

/// As safe as so many nodes can be.
fn safety(nodes: u16) -> [(&'static str, u16); 5] {
    let (replicas, min_isr) = (nodes.min(3), nodes.min(2));
    [
        ("default.replication.factor", replicas),
        ("offsets.topic.replication.factor", replicas),
        ("transaction.state.log.replication.factor", replicas),
        ("min.insync.replicas", min_isr),
        ("transaction.state.log.min.isr", min_isr),
    ]
}

fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

fn read_pid(path: &Path) -> Option<Pid> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

/// Whether a process runs: one that has ended and that its parent has not asked about yet does not.
fn is_alive(pid: Pid) -> bool {
    let is_zombie = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'))
    };
    rustix::process::test_kill_process(pid).is_ok() && !is_zombie()
}
