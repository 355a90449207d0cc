//! Clusters of the binary under test, on ports that are free, and its commands. What is waited for is a condition; the
//! limits are generous, for machines that do much else.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};
use protocol::{Request, Response, decode_response, encode_request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Waits until there is what `look` looks for.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The binary with arguments, none of them from the environment.
pub(crate) fn ottla(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ottla"));
    command.args(arguments).env_remove("OTTLA_BOOTSTRAP").env_remove("OTTLA_LOG").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    ottla(arguments).output().expect("the binary runs")
}

/// What it prints, having succeeded.
pub(crate) fn stdout(output: &Output) -> &str {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    std::str::from_utf8(&output.stdout).expect("text")
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(stdout(output)).expect("JSON")
}

/// One JSON value a line.
pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// One request to a broker, on a connection of its own.
pub(crate) fn ask<R: Request, A: Response>(address: &str, request: &R, version: i16) -> A {
    let mut stream = TcpStream::connect(address).expect("a broker");
    let frame = encode_request(request, version, 1, Some("test")).expect("a request");
    stream.write_all(&frame.into_bytes()).expect("it is sent");
    let mut size = [0; 4];
    stream.read_exact(&mut size).expect("an answer");
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(size)).expect("a size")];
    stream.read_exact(&mut answer).expect("the whole answer");
    decode_response(BytesMut::from(&answer[..]), version).expect("an answer").1
}

/// A first port such that every port of `nodes` nodes is free now.
pub(crate) fn free_base_port(nodes: u16) -> u16 {
    static LAST: Mutex<u16> = Mutex::new(0);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    // Below the range that connections get their ports from; each process begins elsewhere.
    let start = u16::try_from(std::process::id() % 700).expect("small") * 10;
    loop {
        *last += 10;
        let base = 20_000 + (start + *last) % 7_000;
        let mut ports = [0, 1000, 2000, 3000, 4000, 5000]
            .into_iter()
            .flat_map(|step| (0..nodes).map(move |node| base + step + node));
        if ports.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

/// A directory that goes with the value.
#[derive(Debug)]
pub(crate) struct TempDir(pub(crate) PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> TempDir {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("created");
        TempDir(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A place on the machine, for as long as the value lives: beside others, or, for what is judged by what was done in a given
/// time, alone.
#[derive(Debug)]
pub(crate) struct Place(usize);

static TAKEN: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();

impl Place {
    /// So many can be beside each other; who is alone takes them all.
    const ALL: usize = 1 << 20;

    /// Waits until whoever is alone has left.
    fn shared() -> Place {
        Place::take(1)
    }

    /// Waits until everybody has left.
    pub(crate) fn alone() -> Place {
        Place::take(Place::ALL)
    }

    fn take(share: usize) -> Place {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |taken: &mut usize| *taken + share > Place::ALL;
        *LEFT.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner) += share;
        Place(share)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        LEFT.notify_all();
    }
}

/// `ottla local`, stopped with the value.
#[derive(Debug)]
pub(crate) struct Cluster {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    /// Where its data is, as it says itself.
    pub(crate) directory: PathBuf,
    pub(crate) base_port: u16,
    nodes: u16,
    _place: Place,
}

impl Cluster {
    /// Starts it and waits until it serves.
    pub(crate) fn start(nodes: u16, arguments: &[&str]) -> Cluster {
        Cluster::start_by(ottla(&[]), nodes, arguments)
    }

    /// The same, where each process may have so many files open.
    pub(crate) fn start_with_open_files(limit: u32, nodes: u16, arguments: &[&str]) -> Cluster {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        shell.args(["-c", &limited, env!("CARGO_BIN_EXE_ottla")]).env_remove("OTTLA_LOG").stdin(Stdio::null());
        Cluster::start_by(shell, nodes, arguments)
    }

    fn start_by(mut program: Command, nodes: u16, arguments: &[&str]) -> Cluster {
        let place = Place::shared();
        let (base_port, count) = (free_base_port(nodes), nodes.to_string());
        let mut process = program
            .args(["local", "--nodes", &count, "--base-port", &base_port.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut cluster = Cluster { process, output, directory: PathBuf::new(), base_port, nodes, _place: place };
        let line = cluster.line_with("data in ");
        let directory = line.trim_start_matches("data in ").trim_end_matches(" (removed at the end)");
        cluster.directory = PathBuf::from(directory);
        cluster.line_with("ready in ");
        cluster
    }

    /// Three nodes that the tests of the command line share while any of them runs.
    pub(crate) fn shared() -> Arc<Cluster> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Cluster::start(3, &["--ephemeral"]));
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// The next line that it prints with these words in it.
    pub(crate) fn line_with(&mut self, words: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).expect("text");
            assert!(read > 0, "ottla local ended before it said {words:?}");
            if line.contains(words) {
                return line.trim_end().to_owned();
            }
        }
    }

    /// What the HTTP ports of all nodes show.
    pub(crate) fn metrics(&self) -> String {
        let ask = |node: u16| {
            let mut stream = TcpStream::connect(("127.0.0.1", self.base_port + 3000 + node)).expect("it serves");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("text");
            answer
        };
        (0..self.nodes).map(ask).collect()
    }

    /// The sum of all samples of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let of =
            metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        of.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub(crate) fn bootstrap(&self) -> String {
        let addresses: Vec<String> = (0..self.nodes).map(|i| format!("127.0.0.1:{}", self.base_port + i)).collect();
        addresses.join(",")
    }

    /// Who coordinates a group (0) or a transactional id (1).
    pub(crate) fn coordinator(&self, key_type: i8, key: &str) -> String {
        let bootstrap = self.bootstrap();
        let any = bootstrap.split(',').next().expect("a broker");
        let find = FindCoordinatorRequest { key_type, coordinator_keys: vec![key.to_owned()], ..Default::default() };
        eventually("a coordinator", || {
            let found: FindCoordinatorResponse = ask(any, &find, 4);
            let found = &found.coordinators[0];
            (found.error_code == 0).then(|| format!("{}:{}", found.host, found.port))
        })
    }

    /// A command that asks this cluster.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = ottla(arguments);
        command.args(["--bootstrap", &self.bootstrap()]);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary runs")
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        json(&self.run(&[arguments, &["--json"]].concat()))
    }

    /// Writes lines with `ottla produce`.
    pub(crate) fn produce(&self, arguments: &[&str], lines: &str) -> Output {
        let mut child = self
            .command(&[&["produce"], arguments].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    }

    pub(crate) fn node_file(&self, node: u16, name: &str) -> PathBuf {
        self.directory.join(format!("node-{node}")).join(name)
    }

    /// Who runs a node, as its pid file says.
    pub(crate) fn pid(&self, node: u16) -> Option<Pid> {
        fs::read_to_string(self.node_file(node, "ottla.pid")).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    /// How many processes this one has as children; Linux only.
    pub(crate) fn children(&self) -> usize {
        let id = self.process.id();
        let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("it runs").flatten();
        let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        children.map(|list| list.split_whitespace().count()).sum()
    }

    /// SIGKILL to the supervisor alone.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("a child");
    }

    /// SIGTERM, and how it ends.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        terminate(&mut self.process)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A failed test leaves none behind; its nodes end with their parent.
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.stop();
        }
    }
}

/// SIGTERM to a child, and how it ends.
pub(crate) fn terminate(child: &mut Child) -> ExitStatus {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::TERM).expect("it runs");
    eventually("it stops", || child.try_wait().expect("a child"))
}
