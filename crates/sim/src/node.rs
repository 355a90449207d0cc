//! One node: controller, broker and gateway on a machine with a disk, wired as `ottla server` does it, but for the network,
//! the disk, the clocks and the threads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use broker::budget::MemoryBudget;
use broker::{Broker, BrokerConfig, BrokerParts, BrokerState};
use controller::{Controller, ControllerConfig, ControllerHandle, Timeouts};
use coordinator::consumer::ConsumerConfig;
use coordinator::consumer::config::Bounded;
use coordinator::{GroupConfig, TransactionConfig};
use gateway::{BoundListener, Gateway, GatewayConfig, GatewayHandle, Limits};
use metadata::records::SecurityProtocol;
use metadata::{ControlSettings, Listener};
use model::{BootId, BrokerId, ClusterId, DirectoryId, Incarnation, Rules, Uuid};
use rpc::net::{Listening, Network};
use storage::disk::{Crash, Disk, OpenMode};
use storage::{DiskPool, LogDirs, LogEnv};

use crate::chance::Chance;
use crate::clock::{HostClock, Skew, wall};
use crate::disks::{DATA, Disks};
use crate::host::Host;
use crate::net::{HostId, Net};

/// The file that proves a clean shutdown, in each log directory.
const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
/// What it keeps of a disk that fills up.
const RESERVE: i64 = 200_000;
/// How long producers, offsets and transactional ids are kept: longer than any clock jumps.
const KEPT_MS: u64 = 100 * 365 * 86_400_000;
const OPEN_FILES: usize = 64;
const TAIL_BYTES: usize = 4 << 20;
const MEMORY: u64 = 64 << 20;

/// What all nodes of a cluster are started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many there are.
    pub nodes: u8,
    /// `replica.lag.time.max.ms`.
    pub lag_ms: u64,
    /// `broker.session.timeout.ms`.
    pub session_ms: u64,
    /// Log entries of the quorum between two snapshots.
    pub snapshot_every: u64,
    /// Batches of metadata that controllers keep for those who follow it, in bytes.
    pub followed_bytes: usize,
    /// The zone of each machine.
    pub racks: Vec<&'static str>,
    /// Records are acknowledged once they are in two zones (`R79`).
    pub zoned: bool,
    /// How many disks each machine has, with a log directory on each.
    pub disks: Vec<usize>,
    /// Which rules hold.
    pub rules: Rules,
}

/// What runs.
#[derive(Debug)]
pub struct Running {
    /// The controller.
    pub controller: ControllerHandle,
    /// The broker.
    pub broker: Arc<Broker>,
    _gateway: GatewayHandle,
}

/// How far a process is.
#[derive(Debug, Default)]
pub enum Process {
    /// It recovers what is on its disk.
    #[default]
    Starting,
    /// It runs.
    Running(Running),
    /// It could not start.
    Failed(String),
    /// It has ended in good order.
    Done,
}

/// A machine of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Which.
    pub id: HostId,
    /// Its disks, that outlive what runs.
    pub disks: Disks,
    /// How far its wall clock is off.
    pub skew: Skew,
    /// This run of its process.
    pub incarnation: Incarnation,
    /// How often it was started anew.
    boots: u128,
    /// It does nothing until then, and does not know it: SIGSTOP.
    pub paused: bool,
    /// Until when its process has run.
    until: u64,
    host: Option<Host>,
    process: Arc<Mutex<Process>>,
    /// What its controller met, where it could not go on.
    fatal: Arc<AtomicBool>,
    chance: Chance,
    settings: Settings,
    net: Net,
}

impl Node {
    /// A machine with an empty disk, where nothing runs.
    #[must_use]
    pub fn new(id: HostId, settings: Settings, net: Net, seed: u64) -> Node {
        let disks = Disks::new(settings.disks[usize::from(id.0) - 1]);
        let chance = Chance::of(seed, &format!("node {}", id.0));
        Node {
            id,
            disks,
            skew: Skew::default(),
            incarnation: Incarnation(Uuid::nil()),
            boots: 1,
            paused: false,
            until: 0,
            host: None,
            process: Arc::default(),
            fatal: Arc::default(),
            chance,
            settings,
            net,
        }
    }

    /// Starts it, so long after the run's beginning.
    pub fn start(&mut self, now: u64) {
        self.net.power_on(self.id);
        let host = Host::new();
        self.process = Arc::default();
        self.fatal = Arc::default();
        (self.paused, self.until) = (false, now);
        self.incarnation = Incarnation(Uuid::from_u128(self.chance.wide()));
        let boot = Boot {
            node: self.id,
            incarnation: self.incarnation,
            boot: BootId(Uuid::from_u128(self.boots)),
            settings: self.settings.clone(),
            net: self.net.clone(),
            disks: self.disks.clone(),
            skew: Arc::clone(&self.skew),
            chance: Chance::of(self.chance.draw(), "process"),
            fatal: Arc::clone(&self.fatal),
            now,
        };
        let process = Arc::clone(&self.process);
        host.spawn(async move {
            let begun = Box::pin(boot.run()).await;
            let begun = begun.map_or_else(|error| Process::Failed(format!("{error:#}")), Process::Running);
            *process.lock().unwrap_or_else(PoisonError::into_inner) = begun;
        });
        self.host = Some(host);
    }

    /// Whether a process is there.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.host.is_some()
    }

    /// Whether it has ended by itself, and why: its disk, or what its controller met.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        if self.fatal.load(Ordering::Relaxed) {
            return Some("its controller could not go on".to_owned());
        }
        match &*self.process.lock().unwrap_or_else(PoisonError::into_inner) {
            Process::Starting => None,
            Process::Failed(error) => Some(format!("it could not start: {error}")),
            Process::Done => Some("it was stopped".to_owned()),
            Process::Running(running) => {
                let stopped = *running.broker.state().borrow() == BrokerState::Stopped;
                stopped.then(|| "its broker stopped".to_owned())
            }
        }
    }

    /// Whether it was stopped in good order, and has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(*self.process.lock().unwrap_or_else(PoisonError::into_inner), Process::Done)
    }

    /// Ends the process at once: `power` of the whole machine. `how` says what of its disk's writes stays.
    pub fn crash(&mut self, power: bool, how: Crash) {
        let Some(host) = self.host.take() else { return };
        if power {
            self.net.power_off(self.id);
        }
        // No page cache is lost but with its machine (R35).
        self.boots += u128::from(power || how != Crash::KeepAll);
        let before = self.disks.clone();
        before.crash(how);
        // What the process does while it is taken down finds other disks.
        self.disks = before.fork();
        let process = &self.process;
        let gone = || std::mem::take(&mut *process.lock().unwrap_or_else(PoisonError::into_inner));
        // A broker that is dropped ends its tasks, in their runtime.
        host.look(|| drop(gone()));
        drop(host);
        if !power {
            self.net.power_on(self.id);
        }
    }

    /// The machine loses its power, and gets new disks in place of these.
    pub fn wipe(&mut self, disks: &[usize]) {
        self.crash(true, Crash::KeepAll);
        disks.iter().for_each(|number| self.disks.replace(*number));
    }

    /// Whether it goes on without a log directory that it would have again if it was started anew.
    #[must_use]
    pub fn is_crippled(&self) -> bool {
        let failed = |running: &Running| running.broker.metrics().directories.iter().any(|dir| dir.failure.is_some());
        !self.disks.is_any_broken() && self.look(failed) == Some(true)
    }

    /// Whether its disks prove an orderly end of its last process (`R10`).
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let disks = self.disks.fork();
        let proves = |dir: &PathBuf| disks.open(&dir.join(CLEAN_SHUTDOWN), OpenMode::ReadOnly).is_ok();
        disks.log_dirs().iter().all(proves)
    }

    /// Does what there is to do until `now`.
    pub fn step(&mut self, now: u64) {
        self.disks.set_time(wall(now, &self.skew));
        if let Some(host) = self.host.as_ref().filter(|_| !self.paused) {
            host.step(now - self.until);
            self.until = now;
        }
    }

    /// Begins an orderly end of the process; [`ended`](Self::ended) says when it is done.
    pub fn shut_down(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(host), Process::Running(running)) = (&self.host, &*process) else { return };
        let (broker, controller) = (Arc::clone(&running.broker), running.controller.clone());
        let process = Arc::clone(&self.process);
        host.spawn(async move {
            broker.shut_down().await;
            controller.shutdown().await;
            *process.lock().unwrap_or_else(PoisonError::into_inner) = Process::Done;
        });
    }

    /// Looks at what runs, if it does.
    pub fn look<T>(&self, look: impl FnOnce(&Running) -> T) -> Option<T> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(host), Process::Running(running)) = (&self.host, &*process) else { return None };
        Some(host.look(|| look(running)))
    }
}

/// Where a node listens.
#[must_use]
pub fn address(node: HostId, listener: &str) -> String {
    format!("n{}:{}", node.0, port(listener))
}

fn port(listener: &str) -> u16 {
    match listener {
        "PLAINTEXT" => 9092,
        "INTERNAL" => 9091,
        _ => 9093,
    }
}

/// The controllers of a cluster of so many nodes.
#[must_use]
pub fn voters(nodes: u8) -> Vec<(BrokerId, String)> {
    (1..=nodes).map(|id| (BrokerId(i32::from(id)), address(HostId(id), "CONTROLLER"))).collect()
}

struct Boot {
    node: HostId,
    incarnation: Incarnation,
    boot: BootId,
    settings: Settings,
    net: Net,
    disks: Disks,
    skew: Skew,
    chance: Chance,
    fatal: Arc<AtomicBool>,
    now: u64,
}

impl Boot {
    async fn run(mut self) -> anyhow::Result<Running> {
        let (id, incarnation) = (self.id(), self.incarnation);
        let env = LogEnv::new(Arc::new(self.disks.clone()), OPEN_FILES, TAIL_BYTES);
        let chance = &mut self.chance;
        let new_id = || Ok(DirectoryId(Uuid::from_u128(chance.wide())));
        let dirs = LogDirs::open(&env, &self.disks.log_dirs(), id, Some(Path::new(DATA)), new_id)?;
        dirs.iter().for_each(|dir| dir.data().keep_reserve(RESERVE));
        let controller = self.controller(&dirs, incarnation).await?;
        let internal = self.net.listen_for_nodes(self.node, &address(self.node, "INTERNAL"));
        let network = self.network();
        let budget = MemoryBudget::new(MEMORY);
        let broker = Broker::start(BrokerParts {
            config: self.broker_config(incarnation),
            clock: Arc::new(HostClock::new(self.now, Arc::clone(&self.skew))),
            seed: self.chance.draw(),
            disk_pool: DiskPool::inline(),
            dirs,
            controller: rpc::controller::ControllerClient::over(network.clone(), &voters(self.settings.nodes))?,
            own_controller: None,
            network,
            control: None,
            internal: Listening::Links(internal),
            budget: Arc::clone(&budget),
            verifier: None,
        })
        .await?;
        let gateway = self.gateway(&broker, budget);
        Ok(Running { controller, broker, _gateway: gateway })
    }

    fn id(&self) -> BrokerId {
        BrokerId(i32::from(self.node.0))
    }

    fn network(&self) -> Network {
        Network::Other(Arc::new(self.net.dialer(self.node)))
    }

    async fn controller(&mut self, dirs: &LogDirs, incarnation: Incarnation) -> anyhow::Result<ControllerHandle> {
        let directory = dirs.iter().next().map_or(DirectoryId::NONE, |dir| dir.id());
        let disk: Arc<dyn Disk> = Arc::clone(dirs.env().disk());
        let fatal = Arc::clone(&self.fatal);
        let config = ControllerConfig {
            node_id: self.id(),
            directory,
            incarnation,
            network: self.network(),
            disk,
            path: PathBuf::from(DATA).join("__cluster_metadata"),
            keep_image: false,
            voters: voters(self.settings.nodes),
            bind: ([10, 0, 0, self.node.0], port("CONTROLLER")).into(),
            listeners: vec![self.listener("CONTROLLER")],
            internal_listener: "INTERNAL".to_owned(),
            cluster_id: Some(ClusterId(Uuid::from_u128(7))),
            settings: ControlSettings {
                session_timeout_ms: self.settings.session_ms,
                recovery_wait_ms: 5_000,
                min_insync_replicas: 2,
                leader_rebalance_ms: Some(20_000),
                rules: self.settings.rules,
                ..ControlSettings::default()
            },
            timeouts: Timeouts {
                snapshot_every: self.settings.snapshot_every,
                snapshot_keep: self.settings.snapshot_every / 4,
                followed_bytes: self.settings.followed_bytes,
                ..Timeouts::default()
            },
            seed: self.chance.draw(),
            on_fatal: Arc::new(move |why| {
                tracing::error!(why, "the controller cannot go on");
                fatal.store(true, Ordering::Relaxed);
            }),
        };
        let incoming = self.net.listen_for_nodes(self.node, &address(self.node, "CONTROLLER"));
        Ok(Controller::start_within(config, incoming).await?)
    }

    fn gateway(&mut self, broker: &Arc<Broker>, budget: Arc<MemoryBudget>) -> GatewayHandle {
        let incoming = self.net.listen_for_clients(self.node, &address(self.node, "PLAINTEXT"));
        let mut serves = broker.state();
        Gateway::start(
            GatewayConfig {
                listeners: vec![BoundListener { name: "PLAINTEXT".to_owned(), socket: incoming.into() }],
                limits: Limits::default(),
                file: Arc::default(),
                session_seed: self.chance.draw(),
                budget,
            },
            Arc::clone(broker),
            // The first time only. The sender lives as long as the broker.
            async move { drop(serves.wait_for(|state| *state == BrokerState::Running).await) },
        )
    }

    fn listener(&self, name: &str) -> Listener {
        Listener {
            name: name.to_owned(),
            host: format!("n{}", self.node.0),
            port: port(name),
            security_protocol: SecurityProtocol::Plaintext,
        }
    }

    fn broker_config(&self, incarnation: Incarnation) -> BrokerConfig {
        BrokerConfig {
            broker_id: self.id(),
            incarnation,
            boot: self.boot,
            rack: Some(self.settings.racks[usize::from(self.node.0) - 1].to_owned()),
            listeners: vec![self.listener("INTERNAL"), self.listener("PLAINTEXT")],
            internal_listener: "INTERNAL".to_owned(),
            replica_lag_time_max_ms: self.settings.lag_ms,
            replica_fetch_max_bytes: 1 << 20,
            replica_fetch_response_max_bytes: 2 << 20,
            num_replica_fetchers: 1,
            broker_heartbeat_interval_ms: 500,
            peer_keepalive_ms: broker::config::PEER_KEEPALIVE_MS,
            peer_silence_ms: broker::config::PEER_SILENCE_MS,
            log_retention_check_interval_ms: 5_000,
            producer_id_expiration_ms: KEPT_MS,
            offsets_topic_num_partitions: 2,
            offsets_topic_replication_factor: 3,
            offsets_topic_segment_bytes: 1 << 20,
            transaction_state_log_num_partitions: 2,
            transaction_state_log_replication_factor: 3,
            transaction_state_log_min_isr: 2,
            transaction_state_log_segment_bytes: 1 << 20,
            rack_aware_reads: false,
            file: BTreeMap::from([("log.cleaner.backoff.ms".to_owned(), "700".to_owned())]),
            groups: self.group_config(),
            transactions: TransactionConfig {
                id_expiration_ms: KEPT_MS,
                abort_interval_ms: 1_000,
                ..Default::default()
            },
            rules: self.settings.rules,
        }
    }

    fn group_config(&self) -> GroupConfig {
        let session_timeout_ms = Bounded { value: 3_000, min: 1_000, max: 60_000 };
        let consumer = ConsumerConfig {
            broker: self.id(),
            session_timeout_ms,
            assignment_interval_ms: Bounded { value: 0, min: 0, max: 15_000 },
            rules: self.settings.rules,
            ..ConsumerConfig::default()
        };
        GroupConfig {
            initial_rebalance_delay_ms: 300,
            min_session_timeout_ms: 1_000,
            offsets_retention_ms: KEPT_MS,
            consumer,
            ..GroupConfig::default()
        }
    }
}
