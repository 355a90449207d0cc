//! `ottla server`: one node put together from its configuration, run until SIGTERM or Ctrl-C.
//!
//! Order of the start: logging, the directories' locks and identities, the ports (a taken one is told before anything else
//! happens), the HTTP port, the controller on a runtime of its own, the broker (what keeps it registered has one, too:
//! `R76`), the gateway. Order of the stop (`R77`): the broker hands over and flushes, the gateway closes, the controller ends
//! last.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker::budget::MemoryBudget;
use broker::coordinator::consumer::ConsumerConfig;
use broker::coordinator::consumer::assign::Assignor;
use broker::coordinator::consumer::config::{Bounded, MigrationPolicy};
use broker::{Broker, BrokerConfig, BrokerParts, BrokerState, OwnController};
use controller::{Controller, ControllerConfig, ControllerHandle, Timeouts};
use futures_util::FutureExt;
use gateway::{BoundListener, Gateway, GatewayConfig, GatewayHandle, Limits};
use metadata::ControlSettings;
use metadata::Listener as MetadataListener;
use metadata::records::SecurityProtocol;
use model::{BootId, BrokerEpoch, BrokerId, DirectoryId, Incarnation, Uuid};
use storage::{DataDir, DiskPool, LogDir, LogDirs, LogEnv, MetaProperties};
use tokio::net::TcpSocket;
use tokio::runtime::Handle;

use crate::config::{CONTROLLER, INTERNAL, Listener, NodeConfig};
use crate::descriptors::Descriptors;
use crate::status::NodeStatus;
use crate::stop::StopSignal;

/// Threads for cold reads, recovery and all else that blocks; for syncs there are more.
const DISK_THREADS: usize = 8;
/// Paces nothing: where the system's own choice is bbr, that costs a local network more than half of its throughput.
const CONGESTION_DEFAULT: &str = "cubic";
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long produces that were appended may still be answered.
const GATEWAY_LINGER: Duration = Duration::from_secs(1);
/// Between two looks at the space of a directory that no broker watches.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A combined node keeps its controller so long while other brokers stop (`R77`).
const CONTROLLER_LINGER: Duration = Duration::from_secs(5);

/// Runs a node to its end.
pub(crate) fn run(file: &Path, overrides: &[String], parent: Option<i32>) -> Result<()> {
    if let Some(parent) = parent {
        end_with(parent)?;
    }
    // Huge pages would make an idle node several times its size: most of each would stay empty.
    rustix::thread::disable_transparent_huge_pages(true)?;
    let config = NodeConfig::load(file, overrides)?;
    start_logging(&config);
    let descriptors = Descriptors::raise();
    abort_on_panic();
    // What is served does not keep this one waiting (R76).
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let control = builder.worker_threads(1).enable_all().thread_name("control").build()?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads(&config)?).enable_all().thread_name("ottla").build()?;
    let outcome = runtime.block_on(serve(config, descriptors, control.handle().clone()).boxed_local());
    runtime.shutdown_timeout(Duration::from_secs(1));
    control.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// More threads than processors only wake each other: a request passes several tasks, and each hop to another thread costs
/// more than the task.
fn threads(config: &NodeConfig) -> Result<usize> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.number("ottla.threads", processors)?;
    ensure!((1..=1024).contains(&threads), "ottla.threads is {threads}; 1 to 1024 is possible");
    Ok(threads)
}

/// Has this process stop when its parent ends.
fn end_with(parent: i32) -> Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before it could be watched.
    ensure!(
        getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent),
        "process {parent} started this one and is gone"
    );
    Ok(())
}

fn start_logging(config: &NodeConfig) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("OTTLA_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=off"));
    // A line that finds no space on the disk, or nobody who reads, is lost: to tell of that the same way would be a panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false).with_writer(std::io::stderr);
    if config.json_logs {
        builder.json().init();
    } else {
        builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}

/// An impossible state ends the process with its numbers.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// The process id, as long as the node runs.
struct PidFile(std::path::PathBuf);

impl PidFile {
    /// A file that cannot be written keeps no node from starting: the disk may be full.
    fn write(path: &Path) -> PidFile {
        if let Err(error) = std::fs::write(path, format!("{}\n", std::process::id())) {
            tracing::warn!(path = %path.display(), %error, "cannot write the process id");
        }
        PidFile(path.to_owned())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A file that stays behind names a process that is gone: whoever reads it can tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The directories of a node, locked.
pub(crate) struct Directories {
    logs: LogDirs,
    /// Where the quorum's files are, if in none of the above.
    metadata: Option<DataDir>,
    /// The identity of the directory that the quorum's files are in (`R74`).
    metadata_id: DirectoryId,
}

fn open_directories(config: &NodeConfig, descriptors: Descriptors) -> Result<Directories> {
    let tail_bytes = config.number("ottla.tail.cache.bytes", storage::env::TAIL_BYTES_DEFAULT)?;
    let env = LogEnv::new(Arc::new(storage::disk::RealDisk), descriptors.files, tail_bytes);
    let reserve = config.number("ottla.disk.reserve.bytes", -1)?;
    let shared = config.is_controller && config.log_dirs.contains(&config.metadata_dir);
    let needed = shared.then_some(config.metadata_dir.as_path());
    let new_id = || random_id().map(DirectoryId).map_err(std::io::Error::other);
    let logs = LogDirs::open(&env, &config.log_dirs, BrokerId(config.node_id), needed, new_id)?;
    logs.iter().for_each(|dir| dir.data().keep_reserve(reserve));
    if !config.is_controller || shared {
        let metadata_id = logs.at(&config.metadata_dir).map_or(DirectoryId::NONE, |dir| dir.id());
        return Ok(Directories { logs, metadata: None, metadata_id });
    }
    let metadata = DataDir::open(&env, &config.metadata_dir)?;
    metadata.keep_reserve(reserve);
    let metadata_id = identify_metadata(config, &logs, &metadata)?;
    Ok(Directories { logs, metadata: Some(metadata), metadata_id })
}

/// The identity of a metadata directory of its own. A quorum that was formed before such directories had one knows it by that
/// of the first log directory.
fn identify_metadata(config: &NodeConfig, logs: &LogDirs, metadata: &DataDir) -> Result<DirectoryId> {
    let (path, node_id) = (&config.metadata_dir, BrokerId(config.node_id));
    if let Some(meta) = metadata.meta()? {
        let found = meta.node_id;
        ensure!(found == node_id, "{} belongs to node {found}, not to {node_id}", path.display());
        return Ok(meta.directory_id);
    }
    let directory_id = if metadata_path(config).exists() {
        let first = logs.at(&config.log_dirs[0]);
        first
            .with_context(|| format!("{} is needed to identify {}", config.log_dirs[0].display(), path.display()))?
            .id()
    } else {
        DirectoryId(random_id()?)
    };
    metadata.write_meta(&MetaProperties { cluster_id: None, node_id, directory_id })?;
    Ok(directory_id)
}

/// The metadata files of a node that is stopped, whose directories stay locked while the first value lives.
pub(crate) fn quorum_files(config: &NodeConfig) -> Result<(Directories, controller::recovery::QuorumFiles)> {
    ensure!(config.is_controller, "process.roles of this node has no controller: it holds no metadata of its own");
    let directories = open_directories(config, Descriptors::raise())?;
    let voter = config.voters.iter().find(|voter| voter.id == config.node_id);
    let advertised = || config.advertised.iter().find(|listener| listener.name == CONTROLLER);
    let address = voter.map(|voter| format!("{}:{}", voter.host, voter.port));
    let address = address.or_else(|| advertised().map(|listener| format!("{}:{}", listener.host, listener.port)));
    let files = controller::recovery::QuorumFiles {
        node_id: BrokerId(config.node_id),
        directory: directories.metadata_id,
        address: address.context("listeners has no CONTROLLER")?,
        disk: Arc::new(storage::disk::RealDisk),
        path: metadata_path(config),
    };
    Ok((directories, files))
}

fn metadata_path(config: &NodeConfig) -> PathBuf {
    config.metadata_dir.join("__cluster_metadata")
}

fn random_id() -> Result<Uuid> {
    let mut bytes = [0u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    ensure!(filled == bytes.len(), "the system gave too little randomness");
    // A version 4 identifier; Kafka keeps off those that begin with a dash in base64.
    let id = Uuid::from_bytes(bytes);
    if DirectoryId(id).to_string().starts_with('-') { random_id() } else { Ok(id) }
}

/// Which run of the machine this is, where the system tells: what a dead process wrote is still in the page cache of the
/// same one (`R35`).
fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Uuid::parse_str(text.trim()).map_or(BootId::NONE, BootId)
}

/// Ports taken before anything else happens, and opened when the node is ready to answer there: a client that is refused
/// asks the next broker, one that is let in too early waits.
struct Sockets {
    http: Option<TcpSocket>,
    /// A broker's.
    internal: Option<TcpSocket>,
    kafka: Vec<(String, TcpSocket)>,
}

impl Sockets {
    async fn reserve(config: &NodeConfig) -> Result<Sockets> {
        let congestion = config.given.get("ottla.tcp.congestion.control").map_or(CONGESTION_DEFAULT, String::as_str);
        let http = match &config.http {
            Some(address) => Some(reserve("ottla.http.listener", address, congestion).await?),
            None => None,
        };
        let mut sockets = Sockets { http, internal: None, kafka: Vec::new() };
        for listener in config.listeners.iter().filter(|_| config.is_broker) {
            // The controller binds its own.
            if listener.name != CONTROLLER {
                let socket = reserve(&listener.name, &listener.bind_address(), congestion).await?;
                match listener.name.as_str() {
                    INTERNAL => sockets.internal = Some(socket),
                    name => sockets.kafka.push((name.to_owned(), socket)),
                }
            }
        }
        Ok(sockets)
    }
}

async fn reserve(what: &str, address: &str, congestion: &str) -> Result<TcpSocket> {
    let found = resolve(what, address).await?;
    let socket = if found.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What an earlier process left in TIME_WAIT is no obstacle.
    socket.set_reuseaddr(true)?;
    // Connections that are accepted inherit it; what brokers and consumers are sent in bulk goes over those.
    if !congestion.is_empty()
        && let Err(error) = socket2::SockRef::from(&socket).set_tcp_congestion(congestion.as_bytes())
    {
        tracing::warn!(what, congestion, %error, "the system does not know this ottla.tcp.congestion.control; its own is used");
    }
    socket.bind(found).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop the process that uses the port, or configure another one",
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address: configure one that it has",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: configure another one",
            _ => "configure another one",
        };
        anyhow::Error::new(error).context(format!("cannot listen on {address} ({what}): {advice}"))
    })?;
    Ok(socket)
}

async fn resolve(what: &str, address: &str) -> Result<SocketAddr> {
    let found = tokio::net::lookup_host(address).await.with_context(|| format!("{what}: cannot resolve {address}"))?;
    found.into_iter().next().with_context(|| format!("{what}: {address} has no address"))
}

async fn serve(config: NodeConfig, descriptors: Descriptors, control: Handle) -> Result<()> {
    let mut stop = StopSignal::new()?;
    let directories = open_directories(&config, descriptors)?;
    // Only who holds the directories says so.
    let _pid = config.pid_file.as_deref().map(PidFile::write);
    let running = tokio::select! {
        running = Running::start(&config, directories, descriptors, control) => running?,
        // A start that is given up is a crash, and every start copes with those.
        () = stop.received() => return Ok(()),
    };
    tracing::info!(node = config.node_id, broker = config.is_broker, controller = config.is_controller, "started");
    let refused = tokio::select! {
        () = stop.received() => false,
        () = running.broker_ended() => true,
    };
    tracing::info!("stopping");
    running.stop().await;
    tracing::info!("stopped");
    ensure!(!refused, "this node cannot go on: the log says why, just above");
    Ok(())
}

/// What runs in a node.
struct Running {
    controller: Option<ControllerHandle>,
    serving: Option<(Arc<Broker>, GatewayHandle)>,
}

impl Running {
    async fn start(
        config: &NodeConfig,
        directories: Directories,
        descriptors: Descriptors,
        control: Handle,
    ) -> Result<Running> {
        let sockets = Sockets::reserve(config).await?;
        let status = NodeStatus::new(config.node_id, config.is_broker);
        if let Some(socket) = sockets.http {
            let (listener, source) = (socket.listen(BACKLOG)?, Arc::clone(&status));
            // It answers from now on: a node that recovers for long is alive, and not ready.
            tokio::spawn(async move {
                if let Err(error) = console::serve(listener, source, std::future::pending()).await {
                    tracing::error!(%error, "the HTTP port failed");
                }
            });
        }
        let incarnation = Incarnation(random_id()?);
        let mut controller = None;
        if config.is_controller {
            let started = Controller::start(controller_config(config, &directories, incarnation).await?).await?;
            status.set_controller(started.clone());
            controller = Some(started);
        }
        let Directories { logs, metadata, .. } = directories;
        let unused = if config.is_broker { Vec::new() } else { logs.iter().cloned().collect() };
        if metadata.is_some() || !unused.is_empty() {
            tokio::spawn(watch_space(unused, metadata, DiskPool::new(1)?));
        }
        let mut serving = None;
        if let Some(internal) = sockets.internal {
            let sockets = (internal, sockets.kafka);
            let limits = limits(config, descriptors);
            let broker =
                start_broker((config, limits), logs, incarnation, sockets, (control, controller.clone()), &status);
            serving = Some(broker.await?);
        }
        Ok(Running { controller, serving })
    }

    /// Completes when the broker has ended by itself: the quorum, or its own directories, are another cluster's (`R69`), or the
    /// disks that it needs are out of use (`R30`).
    async fn broker_ended(&self) {
        match &self.serving {
            // An error says that the broker is gone, which is what is waited for.
            Some((broker, _)) => drop(broker.state().wait_for(|state| *state == BrokerState::Stopped).await),
            None => std::future::pending().await,
        }
    }

    async fn stop(self) {
        if let Some((broker, gateway)) = self.serving {
            broker.shut_down().await;
            gateway.stop(GATEWAY_LINGER).await;
        }
        if let Some(controller) = self.controller {
            linger(|| controller.is_active() && controller.stopping_brokers() > 0).await;
            controller.shutdown().await;
        }
    }
}

/// R77: other brokers may still be stopping, and need the quorum for it.
async fn linger(is_needed: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + CONTROLLER_LINGER;
    while is_needed() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn controller_config(
    config: &NodeConfig,
    directories: &Directories,
    incarnation: Incarnation,
) -> Result<ControllerConfig> {
    let cluster_id = directories.logs.cluster_id();
    let listener = config.listener(CONTROLLER).context("listeners has no CONTROLLER")?;
    let bind = resolve(CONTROLLER, &listener.bind_address()).await?;
    let defaults = ControlSettings::default();
    let rebalance = config.boolean("auto.leader.rebalance.enable", true)?;
    let rebalance_ms = config.number("leader.imbalance.check.interval.seconds", 300u64)? * 1000;
    Ok(ControllerConfig {
        network: rpc::net::Network::Tcp,
        node_id: BrokerId(config.node_id),
        directory: directories.metadata_id,
        incarnation,
        disk: quorum_disk(config, directories),
        path: metadata_path(config),
        keep_image: true,
        voters: voters(config),
        bind,
        listeners: config.advertised.iter().filter(|l| l.name == CONTROLLER).map(metadata_listener).collect(),
        internal_listener: INTERNAL.to_owned(),
        cluster_id: (!cluster_id.is_none()).then_some(cluster_id),
        settings: ControlSettings {
            session_timeout_ms: config.number("broker.session.timeout.ms", defaults.session_timeout_ms)?,
            recovery_wait_ms: config.number("ottla.recovery.wait.ms", defaults.recovery_wait_ms)?,
            num_partitions: config.number("num.partitions", defaults.num_partitions)?,
            default_replication_factor: config
                .number("default.replication.factor", defaults.default_replication_factor)?,
            min_insync_replicas: config.number("min.insync.replicas", defaults.min_insync_replicas)?,
            unclean_leader_election: config
                .boolean("unclean.leader.election.enable", defaults.unclean_leader_election)?,
            leader_rebalance_ms: rebalance.then_some(rebalance_ms),
            ..defaults
        },
        timeouts: timeouts(config)?,
        seed: random_seed()?,
        on_fatal: Arc::new(|reason| {
            tracing::error!(reason, "the controller cannot go on; this process ends and must be started again");
            std::process::abort();
        }),
    })
}

/// An election takes one of these timeouts and a part of it, whatever a sync takes as long as it is shorter than a heartbeat
/// interval.
fn timeouts(config: &NodeConfig) -> Result<Timeouts> {
    let defaults = Timeouts::default();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let election = "controller.quorum.election.timeout.ms";
    let election_ms = positive(config, election, millis(defaults.election_max))?;
    ensure!(election_ms >= 100, "{election} is {election_ms}; a sync of the metadata log needs 100 or more");
    let election_max = Duration::from_millis(election_ms);
    Ok(Timeouts {
        heartbeat: election_max / 4,
        election_min: election_max / 2,
        election_max,
        probe: Duration::from_millis(positive(config, "ottla.probe.timeout.ms", millis(defaults.probe))?),
        ..defaults
    })
}

/// A time that is not 0.
fn positive(config: &NodeConfig, name: &str, default: u64) -> Result<u64> {
    let given = config.number(name, default)?;
    ensure!((1..=600_000).contains(&given), "{name} is {given}; 1 to 600000 is possible");
    Ok(given)
}

/// The disk of the quorum's files: on a full one they may use up what is kept in the directory that they lie in.
fn quorum_disk(config: &NodeConfig, directories: &Directories) -> Arc<dyn storage::disk::Disk> {
    let around = directories.logs.iter().find(|dir| config.metadata_dir.starts_with(dir.data().path()));
    let data = around.map(|dir| dir.data()).or(directories.metadata.as_ref());
    data.map_or_else(|| Arc::new(storage::disk::RealDisk) as _, |data| Arc::clone(data.env().disk()))
}

fn voters(config: &NodeConfig) -> Vec<(BrokerId, String)> {
    config.voters.iter().map(|voter| (BrokerId(voter.id), format!("{}:{}", voter.host, voter.port))).collect()
}

fn random_seed() -> Result<u64> {
    Ok(u64::from_be_bytes(random_id()?.as_bytes()[..8].try_into()?))
}

fn limits(config: &NodeConfig, descriptors: Descriptors) -> Limits {
    let Descriptors { limit, connections, .. } = descriptors;
    Limits { descriptors: gateway::Descriptors { limit, connections }, ..Limits::from_file(&config.given) }
}

/// Watches the space of directories that no broker watches, and holds their locks, until the runtime ends: a ballast that was
/// given up is taken again once there is room.
async fn watch_space(logs: Vec<Arc<LogDir>>, metadata: Option<DataDir>, pool: DiskPool) {
    let dirs = Arc::new((logs, metadata));
    loop {
        let looked_at = Arc::clone(&dirs);
        let look = move || {
            for dir in looked_at.0.iter().map(|dir| dir.data()).chain(&looked_at.1) {
                dir.watch_space();
            }
        };
        pool.run(look).await;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What the broker of a combined node tells its controller without a connection.
#[derive(Debug)]
struct Own(ControllerHandle);

impl OwnController for Own {
    fn hear(&self, broker: BrokerId, epoch: BrokerEpoch) -> bool {
        self.0.hear(broker, epoch)
    }
}

async fn start_broker(
    (config, limits): (&NodeConfig, Limits),
    dirs: LogDirs,
    incarnation: Incarnation,
    (internal, kafka): (TcpSocket, Vec<(String, TcpSocket)>),
    (control, own_controller): (Handle, Option<ControllerHandle>),
    status: &Arc<NodeStatus>,
) -> Result<(Arc<Broker>, GatewayHandle)> {
    let budget = MemoryBudget::new(limits.memory_bytes);
    let broker = Broker::start(BrokerParts {
        config: broker_config(config, incarnation)?,
        clock: Arc::new(broker::clock::SystemClock::new()),
        seed: random_seed()?,
        disk_pool: DiskPool::new(DISK_THREADS)?,
        dirs,
        controller: controller_client(config, &control)?,
        own_controller: own_controller.map(|own| Arc::new(Own(own)) as _),
        network: rpc::net::Network::Tcp,
        control: Some(control),
        internal: internal.listen(BACKLOG)?.into(),
        budget: Arc::clone(&budget),
        verifier: None,
    })
    .await?;
    let listen =
        |(name, socket): (String, TcpSocket)| Ok(BoundListener { name, socket: socket.listen(BACKLOG)?.into() });
    let listeners = kafka.into_iter().map(listen).collect::<Result<_>>()?;
    let mut serves = broker.state();
    let gateway = Gateway::start(
        GatewayConfig { listeners, limits, file: Arc::new(config.given.clone()), session_seed: random_seed()?, budget },
        Arc::clone(&broker),
        async move {
            // The first time only. The sender lives as long as the broker.
            if serves.wait_for(|state| *state == BrokerState::Running).await.is_ok() {
                tracing::info!("serving");
            }
        },
    );
    status.set_broker(Arc::clone(&broker), gateway.metrics());
    Ok((broker, gateway))
}

/// Its connections are kept where heartbeats come from.
fn controller_client(config: &NodeConfig, control: &Handle) -> Result<rpc::controller::ControllerClient> {
    let _within = control.enter();
    Ok(rpc::controller::ControllerClient::new(&voters(config))?)
}

fn metadata_listener(listener: &Listener) -> MetadataListener {
    MetadataListener {
        name: listener.name.clone(),
        host: listener.host.clone(),
        port: listener.port,
        security_protocol: SecurityProtocol::Plaintext,
    }
}

fn broker_config(config: &NodeConfig, incarnation: Incarnation) -> Result<BrokerConfig> {
    let rack_aware =
        config.given.get("replica.selector.class").is_some_and(|class| class.ends_with("RackAwareReplicaSelector"));
    Ok(BrokerConfig {
        broker_id: BrokerId(config.node_id),
        incarnation,
        boot: boot_id(),
        rack: config.rack.clone(),
        listeners: config.advertised.iter().filter(|l| l.name != CONTROLLER).map(metadata_listener).collect(),
        internal_listener: INTERNAL.to_owned(),
        replica_lag_time_max_ms: config.number("replica.lag.time.max.ms", 30_000)?,
        replica_fetch_max_bytes: config.number("replica.fetch.max.bytes", 1 << 20)?,
        replica_fetch_response_max_bytes: config.number("replica.fetch.response.max.bytes", 10 << 20)?,
        num_replica_fetchers: config.number("num.replica.fetchers", 1)?,
        broker_heartbeat_interval_ms: config.number("broker.heartbeat.interval.ms", 2_000)?,
        peer_keepalive_ms: positive(config, "ottla.peer.keepalive.ms", broker::config::PEER_KEEPALIVE_MS)?,
        peer_silence_ms: positive(config, "ottla.peer.silence.ms", broker::config::PEER_SILENCE_MS)?,
        log_retention_check_interval_ms: config.number("log.retention.check.interval.ms", 300_000)?,
        producer_id_expiration_ms: config.number("producer.id.expiration.ms", 86_400_000)?,
        offsets_topic_num_partitions: config.number("offsets.topic.num.partitions", 50)?,
        offsets_topic_replication_factor: config.number("offsets.topic.replication.factor", 3)?,
        offsets_topic_segment_bytes: config.number("offsets.topic.segment.bytes", 104_857_600)?,
        transaction_state_log_num_partitions: config.number("transaction.state.log.num.partitions", 50)?,
        transaction_state_log_replication_factor: config.number("transaction.state.log.replication.factor", 3)?,
        transaction_state_log_min_isr: config.number("transaction.state.log.min.isr", 2)?,
        transaction_state_log_segment_bytes: config.number("transaction.state.log.segment.bytes", 104_857_600)?,
        rack_aware_reads: rack_aware,
        file: config.given.clone(),
        groups: group_config(config)?,
        transactions: transaction_config(config)?,
        rules: model::Rules::all(),
    })
}

fn transaction_config(config: &NodeConfig) -> Result<broker::coordinator::TransactionConfig> {
    let defaults = broker::coordinator::TransactionConfig::default();
    Ok(broker::coordinator::TransactionConfig {
        max_timeout_ms: config.number("transaction.max.timeout.ms", defaults.max_timeout_ms)?,
        id_expiration_ms: config.number("transactional.id.expiration.ms", defaults.id_expiration_ms)?,
        abort_interval_ms: config
            .number("transaction.abort.timed.out.transaction.cleanup.interval.ms", defaults.abort_interval_ms)?,
        expiry_interval_ms: config
            .number("transaction.remove.expired.transaction.cleanup.interval.ms", defaults.expiry_interval_ms)?,
        request_timeout_ms: config.number("request.timeout.ms", defaults.request_timeout_ms)?,
        ..defaults
    })
}

fn group_config(config: &NodeConfig) -> Result<broker::coordinator::GroupConfig> {
    let defaults = broker::coordinator::GroupConfig::default();
    Ok(broker::coordinator::GroupConfig {
        initial_rebalance_delay_ms: config
            .number("group.initial.rebalance.delay.ms", defaults.initial_rebalance_delay_ms)?,
        min_session_timeout_ms: config.number("group.min.session.timeout.ms", defaults.min_session_timeout_ms)?,
        max_session_timeout_ms: config.number("group.max.session.timeout.ms", defaults.max_session_timeout_ms)?,
        max_size: config.number("group.max.size", defaults.max_size)?,
        offset_metadata_max_bytes: config.number("offset.metadata.max.bytes", defaults.offset_metadata_max_bytes)?,
        offsets_retention_ms: config.number("offsets.retention.minutes", 10_080)? * 60_000,
        offsets_retention_check_interval_ms: config
            .number("offsets.retention.check.interval.ms", defaults.offsets_retention_check_interval_ms)?,
        offsets_commit_timeout_ms: config.number("offsets.commit.timeout.ms", defaults.offsets_commit_timeout_ms)?,
        consumer: consumer_config(config, &defaults.consumer)?,
        ..defaults
    })
}

fn consumer_config(config: &NodeConfig, defaults: &ConsumerConfig) -> Result<ConsumerConfig> {
    let bounded = |what: &str, default: Bounded| -> Result<Bounded> {
        let value = config.number(&format!("group.consumer.{what}.ms"), default.value)?;
        let min = config.number(&format!("group.consumer.min.{what}.ms"), default.min)?;
        let max = config.number(&format!("group.consumer.max.{what}.ms"), default.max)?;
        ensure!(
            min <= value && value <= max,
            "group.consumer.{what}.ms must be between its min {min} and max {max}, not {value}"
        );
        Ok(Bounded { value, min, max })
    };
    let list = |name: &str| config.given.get(name).map(|value| metadata::configs::list(value));
    let named = |name: &String| {
        Assignor::from_name(name)
            .with_context(|| format!("there is no server-side assignor {name}; there are uniform and range"))
    };
    let assignors = list("group.consumer.assignors").map(|names| names.iter().map(named).collect::<Result<Vec<_>>>());
    let policy = "group.consumer.migration.policy";
    let migration = config.given.get(policy).map(|name| {
        MigrationPolicy::from_name(name)
            .with_context(|| format!("{policy} is disabled, upgrade, downgrade or bidirectional, not {name}"))
    });
    Ok(ConsumerConfig {
        broker: BrokerId(config.node_id),
        session_timeout_ms: bounded("session.timeout", defaults.session_timeout_ms)?,
        heartbeat_interval_ms: bounded("heartbeat.interval", defaults.heartbeat_interval_ms)?,
        assignment_interval_ms: bounded("assignment.interval", defaults.assignment_interval_ms)?,
        max_size: config.number("group.consumer.max.size", defaults.max_size)?,
        assignors: assignors.transpose()?.unwrap_or_else(|| defaults.assignors.clone()),
        migration: migration.transpose()?.unwrap_or(defaults.migration),
        ..defaults.clone()
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::IoSlice;

    use storage::disk::{Disk, MemDisk, OpenMode};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_controller_stays_while_brokers_stop_but_for_five_seconds_at_most() {
        // R77
        let began = tokio::time::Instant::now();
        linger(|| false).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let looks = Cell::new(0);
        linger(|| looks.replace(looks.get() + 1) < 3).await;
        assert_eq!(began.elapsed(), Duration::from_millis(150));
        linger(|| true).await;
        assert_eq!(began.elapsed(), Duration::from_millis(5_150));
    }

    #[tokio::test(start_paused = true)]
    async fn directories_without_a_broker_take_their_ballast_again_once_there_is_room() {
        let (disk, reserve) = (MemDisk::new(), 16 << 20);
        let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
        let paths = [Path::new("/logs"), Path::new("/metadata")];
        disk.set_capacity(Some(64 << 20));
        let logs =
            LogDirs::open(&env, &[paths[0].to_owned()], BrokerId(1), None, || Ok(DirectoryId(Uuid::from_u128(1))));
        let (logs, metadata) = (logs.unwrap(), DataDir::open(&env, paths[1]).unwrap());
        let dirs: Vec<&DataDir> = logs.iter().map(|dir| dir.data()).chain([&metadata]).collect();
        dirs.iter().for_each(|dir| dir.keep_reserve(reserve));
        let ballasts = || {
            let has = |dir: &&&Path| disk.list(dir).unwrap().iter().any(|entry| entry.name == ".ottla-ballast");
            paths.iter().filter(has).count()
        };
        assert_eq!(ballasts(), 2);
        disk.set_capacity(Some(0));
        for dir in &dirs {
            let path = dir.path().join("vote");
            dir.env().disk().open(&path, OpenMode::Create).unwrap().write_at(&[IoSlice::new(&[0])], 0).unwrap_err();
        }
        assert_eq!(ballasts(), 0, "they were given up");
        disk.set_capacity(Some(64 << 20));
        let logs = logs.iter().cloned().collect();
        let _ = tokio::time::timeout(2 * LOOK_INTERVAL, watch_space(logs, Some(metadata), DiskPool::inline())).await;
        assert_eq!(ballasts(), 2);
    }
}
