//! `ottla local`: a cluster of processes on this machine, one a node, for one terminal.
//!
//! It writes each node's directory `DIR/node-N` (`server.properties`, `ottla.log`; the node adds `ottla.pid` while it runs),
//! starts the nodes, tells when the cluster serves, watches them, and stops them on Ctrl-C or SIGTERM. A node that dies
//! is told, with the command that starts it again; the others go on. Everything listens on loopback.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// What `ottla local` was asked for.
#[derive(Clone, Debug)]
pub(crate) struct LocalOptions {
    pub(crate) data: Option<PathBuf>,
    pub(crate) ephemeral: bool,
    pub(crate) nodes: u16,
    pub(crate) base_port: u16,
    pub(crate) overrides: Vec<String>,
}

/// A running local cluster.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    nodes: Vec<Node>,
    /// Kept so that the directory goes when the cluster does.
    _ephemeral: Option<EphemeralDir>,
    pub(crate) directory: PathBuf,
}

#[derive(Debug)]
struct Node {
    id: u16,
    directory: PathBuf,
    ports: Ports,
    process: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    kafka: u16,
    internal: u16,
    controller: u16,
    http: u16,
}

#[derive(Debug)]
struct EphemeralDir(PathBuf);

impl Drop for EphemeralDir {
    fn drop(&mut self) {
        // A directory that stays behind is only untidy.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a cluster until Ctrl-C or SIGTERM.
pub(crate) async fn run(options: LocalOptions) -> Result<()> {
    let started = Instant::now();
    let mut cluster = LocalCluster::start(&options)?;
    println!("data in {}", cluster.directory.display());
    tokio::select! {
        ready = cluster.wait_ready(Duration::from_secs(60)) => ready?,
        () = crate::server::stop_signal() => return cluster.stop().await,
    }
    println!(
        "ready in {:.2} s: {} nodes, bootstrap {}",
        started.elapsed().as_secs_f64(),
        cluster.nodes.len(),
        cluster.bootstrap()
    );
    let mut status = StatusLine::new();
    loop {
        tokio::select! {
            () = crate::server::stop_signal() => break,
            () = tokio::time::sleep(Duration::from_millis(500)) => cluster.report(&mut status).await,
        }
    }
    status.clear();
    println!("stopping");
    cluster.stop().await
}

impl LocalCluster {
    /// Writes the configuration and starts every node.
    pub(crate) fn start(options: &LocalOptions) -> Result<LocalCluster> {
        ensure!((1..=9).contains(&options.nodes), "--nodes is {}; 1 to 9 are possible", options.nodes);
        let (directory, ephemeral) = directory(options)?;
        let mut nodes = Vec::new();
        for id in 1..=options.nodes {
            let ports = Ports::of(options.base_port, id)?;
            nodes.push(Node { id, directory: directory.join(format!("node-{id}")), ports, process: None });
        }
        check_ports(&nodes)?;
        let voters: Vec<String> = nodes.iter().map(|n| format!("{}@127.0.0.1:{}", n.id, n.ports.controller)).collect();
        let mut cluster = LocalCluster { nodes, _ephemeral: ephemeral, directory };
        let count = options.nodes;
        for node in &mut cluster.nodes {
            node.write_configuration(&voters.join(","), count, &options.overrides)?;
            node.process = Some(node.spawn()?);
        }
        Ok(cluster)
    }

    /// `host:port,…` of all nodes.
    pub(crate) fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.ports.kafka)).collect();
        addresses.join(",")
    }

    /// Waits until every node says that it serves.
    pub(crate) async fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        for node in &mut self.nodes {
            while !is_ready(node.ports.http).await {
                let process = node.process.as_mut().context("the node was started")?;
                if let Some(status) = process.try_wait()? {
                    bail!(
                        "node {} ended with {status}: see {}\n{}",
                        node.id,
                        node.log_path().display(),
                        node.last_lines()
                    );
                }
                if Instant::now() > deadline {
                    bail!("node {} is not ready after {limit:?}: see {}", node.id, node.log_path().display());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to a node, as a crash does.
    pub(crate) async fn kill(&mut self, id: u16) -> Result<()> {
        let node = self.nodes.iter_mut().find(|n| n.id == id).with_context(|| format!("there is no node {id}"))?;
        let mut process = node.process.take().with_context(|| format!("node {id} does not run"))?;
        process.kill().await.with_context(|| format!("cannot kill node {id}"))
    }

    /// Starts a node that does not run.
    pub(crate) fn restart(&mut self, id: u16) -> Result<()> {
        let node = self.nodes.iter_mut().find(|n| n.id == id).with_context(|| format!("there is no node {id}"))?;
        ensure!(node.process.is_none(), "node {id} runs already");
        node.process = Some(node.spawn()?);
        Ok(())
    }

    /// SIGTERM to all, and waits: each moves its leaderships, flushes and ends.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        for node in &self.nodes {
            if let Some(pid) = node.process.as_ref().and_then(Child::id).and_then(|id| i32::try_from(id).ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    // It may have ended in the meantime.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else { continue };
            let status = process.wait().await?;
            if !status.success() {
                eprintln!("node {} ended with {status}: see {}", node.id, node.log_path().display());
            }
            node.process = None;
        }
        Ok(())
    }

    async fn report(&mut self, status: &mut StatusLine) {
        let mut line = String::new();
        for node in &mut self.nodes {
            let ended = node.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if let Some(exit) = ended {
                node.process = None;
                status.clear();
                eprintln!("node {} died ({exit}); start it again with:\n  {}", node.id, node.start_command());
            }
            // Somebody may have started it again by hand.
            let state = if is_ready(node.ports.http).await { "up" } else { "down" };
            line.push_str(&format!("node {} {state}  ", node.id));
        }
        status.show(&line);
    }
}

impl Ports {
    fn of(base: u16, id: u16) -> Result<Ports> {
        let kafka = base.checked_add(id - 1);
        let port = |above: u16| kafka.and_then(|k| k.checked_add(above)).context("--base-port is too high");
        Ok(Ports { kafka: port(0)?, internal: port(1000)?, controller: port(2000)?, http: port(3000)? })
    }
}

impl Node {
    fn config_path(&self) -> PathBuf {
        self.directory.join("server.properties")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("ottla.log")
    }

    fn start_command(&self) -> String {
        let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ottla"));
        format!("{} server --config {}", exe.display(), self.config_path().display())
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn write_configuration(&self, voters: &str, count: u16, overrides: &[String]) -> Result<()> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot create {}", self.directory.display()))?;
        let Ports { kafka, internal, controller, http } = self.ports;
        let zone = char::from(b'a' + u8::try_from((self.id - 1) % 3).unwrap_or(0));
        let (replicas, min_isr) = (count.min(3), count.min(2));
        let mut text = format!(
            "# Written by `ottla local` at each start.\nnode.id={id}\nprocess.roles=broker,controller\nbroker.rack={zone}\n\
             listeners=PLAINTEXT://127.0.0.1:{kafka},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}\n\
             controller.quorum.voters={voters}\nlog.dirs={data}\nottla.http.listener=127.0.0.1:{http}\nottla.pid.file={pid}\n\
             default.replication.factor={replicas}\noffsets.topic.replication.factor={replicas}\n\
             transaction.state.log.replication.factor={replicas}\nmin.insync.replicas={min_isr}\n\
             transaction.state.log.min.isr={min_isr}\n",
            id = self.id,
            data = self.directory.join("data").display(),
            pid = self.directory.join("ottla.pid").display(),
        );
        for line in overrides {
            text.push_str(line);
            text.push('\n');
        }
        std::fs::write(self.config_path(), text)
            .with_context(|| format!("cannot write {}", self.config_path().display()))
    }

    fn spawn(&self) -> Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path())?;
        Command::new(std::env::current_exe().context("cannot find this program")?)
            .args(["server", "--end-with-parent", "--config"])
            .arg(self.config_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the whole foreground group: the nodes are stopped by SIGTERM, in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start node {}", self.id))
    }
}

fn directory(options: &LocalOptions) -> Result<(PathBuf, Option<EphemeralDir>)> {
    if options.ephemeral {
        let path = std::env::temp_dir().join(format!("ottla-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        return Ok((path.clone(), Some(EphemeralDir(path))));
    }
    let path = options.data.clone().unwrap_or_else(|| PathBuf::from("ottla-data"));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok((std::path::absolute(&path)?, None))
}

fn check_ports(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let Ports { kafka, internal, controller, http } = node.ports;
        for port in [kafka, internal, controller, http] {
            std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!("port {port} of node {} is taken: stop what uses it, or give another --base-port", node.id)
            })?;
        }
    }
    Ok(())
}

/// Asks a node's `/health/ready`.
async fn is_ready(http: u16) -> bool {
    http_get(&format!("127.0.0.1:{http}"), "/health/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// A plain HTTP/1.1 GET, answered within a second, whole.
pub(crate) async fn http_get(address: &str, path: &str) -> Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(1), asked).await.context("no answer within a second")?
}

/// One line that is rewritten in place, on terminals only.
struct StatusLine {
    terminal: bool,
    shown: usize,
}

impl StatusLine {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: 0 }
    }

    fn show(&mut self, line: &str) {
        if self.terminal {
            self.clear();
            self.shown = line.chars().count();
            eprint!("{line}");
            // A status line that cannot be written is not worth an error.
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&mut self) {
        if self.shown > 0 {
            eprint!("\r{:width$}\r", "", width = self.shown);
            self.shown = 0;
        }
    }
}
