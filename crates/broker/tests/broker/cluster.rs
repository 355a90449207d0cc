//! Whole clusters in one process: brokers over disks in memory and a controller that is `metadata::control` behind the real
//! gRPC service, without a quorum. Brokers and controller talk over TCP on the loopback.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use broker::api::{
    Acks, BrokerApi, FetchPartition, FetchRequest, Fetched, Isolation, ProducePartition, ProduceRequest, Produced,
    TransactionSupport, TransactionVerifier,
};
use broker::budget::MemoryBudget;
use broker::clock::{Clock, SystemClock};
use broker::{Broker, BrokerConfig, BrokerParts, BrokerState, OwnController};
use bytes::{Bytes, BytesMut};
use metadata::configs::StaticConfig;
use metadata::control::{CreateTopic, CreateTopics, Suspect, Suspicion};
use metadata::records::SecurityProtocol;
use metadata::{
    ClusterControl, ControlRequest, ControlResponse, ControlSettings, Decision, Listener, MetadataImage, MetadataRecord,
};
use model::{
    BootId, BrokerEpoch, BrokerId, ClusterId, Codec, DirectoryId, ErrorCode, Incarnation, LeaderEpoch, MetadataOffset,
    Offset, PartitionIndex, ProducerEpoch, ProducerId, Record, RecordBatch, RecordIter, Time, TopicPartition, Uuid,
    encode_batch, encode_records,
};
use rpc::broker::Probed;
use rpc::controller::{Answered, ControllerServer, FollowSender, MetadataEvent, QuorumInfo, Reply, Tenure};
use rpc::raft::{QuorumNode, RaftAnswer, RaftCall, RaftServer, RaftVote};
use storage::disk::{Crash, MemDisk};
use storage::{Checkpoint, DataDir, DiskPool, LogDirs, LogEnv};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::disks::Mounts;

pub(crate) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(77));
/// What each broker keeps free, where its disk has an end.
pub(crate) const RESERVE: i64 = 10_000;
/// Threads of each broker's pool, for reads and for syncs.
pub(crate) const DISK_THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` finds something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a future, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The only controller, always active.
#[derive(Debug)]
pub(crate) struct Controller {
    state: Mutex<ControllerState>,
    next: watch::Sender<MetadataOffset>,
    /// Nothing new is told to those who follow while this is set.
    held: watch::Sender<bool>,
    /// Nobody is answered while this is set.
    pub(crate) refuses: AtomicBool,
    /// Signs of life of each broker that came over connections.
    signs_of_life: Mutex<BTreeMap<BrokerId, usize>>,
    /// How often each broker was asked what it has of partitions without a leader, and how often it told (`R35`).
    recoveries: Mutex<BTreeMap<BrokerId, (usize, usize)>>,
    clock: SystemClock,
    pub(crate) address: String,
}

#[derive(Debug)]
struct ControllerState {
    control: ClusterControl,
    batches: Vec<(MetadataOffset, Vec<MetadataRecord>)>,
    decisions: u128,
    /// Probes of suspects that came to nothing.
    unanswered: usize,
}

fn tenure() -> Tenure {
    Tenure { term: 1, node: QuorumNode { id: BrokerId(1), directory: DirectoryId(Uuid::from_u128(1)) } }
}

impl Controller {
    async fn start(min_isr: u32) -> Arc<Controller> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = ControlSettings {
            min_insync_replicas: min_isr,
            leader_rebalance_ms: None,
            recovery_wait_ms: 1_000,
            ..ControlSettings::default()
        };
        let clock = SystemClock::new();
        let mut control = ClusterControl::new(settings);
        control.begin_tenure(clock.monotonic());
        let first = control.first_records(CLUSTER);
        let controller = Arc::new(Controller {
            state: Mutex::new(ControllerState { control, batches: Vec::new(), decisions: 0, unanswered: 0 }),
            next: watch::Sender::new(MetadataOffset(0)),
            held: watch::Sender::new(false),
            refuses: AtomicBool::new(false),
            signs_of_life: Mutex::default(),
            recoveries: Mutex::default(),
            clock,
            address: listener.local_addr().unwrap().to_string(),
        });
        controller.commit(&mut controller.lock(), &first);
        let routes = rpc::controller::routes(Arc::clone(&controller), Arc::new(NoQuorum));
        tokio::spawn(rpc::net::serve(listener, routes, std::future::pending()));
        tokio::spawn(Arc::clone(&controller).keep_time());
        controller
    }

    fn lock(&self) -> MutexGuard<'_, ControllerState> {
        self.state.lock().unwrap()
    }

    pub(crate) fn image(&self) -> MetadataImage {
        self.lock().control.image().clone()
    }

    pub(crate) fn unanswered_probes(&self) -> usize {
        self.lock().unanswered
    }

    /// How often a broker has said over a connection that it lives.
    pub(crate) fn signs_of(&self, broker: BrokerId) -> usize {
        self.signs_of_life.lock().unwrap().get(&broker).copied().unwrap_or_default()
    }

    /// How often a broker was asked what it has of partitions without a leader, and how often it told.
    pub(crate) fn recoveries_of(&self, broker: BrokerId) -> (usize, usize) {
        self.recoveries.lock().unwrap().get(&broker).copied().unwrap_or_default()
    }

    fn note_recovery(&self, request: &ControlRequest, response: &ControlResponse) {
        let mut recoveries = self.recoveries.lock().unwrap();
        match (request, response) {
            (ControlRequest::Heartbeat(beat), ControlResponse::Heartbeat(answer)) => {
                recoveries.entry(beat.broker).or_default().0 += usize::from(!answer.recovery_wanted.is_empty());
            }
            (ControlRequest::RecoveryReport(report), _) => recoveries.entry(report.broker).or_default().1 += 1,
            _ => {}
        }
    }

    /// Holds up the metadata streams, or lets them go on.
    pub(crate) fn hold_metadata(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub(crate) fn ask(&self, request: &ControlRequest) -> ControlResponse {
        let mut state = self.lock();
        state.control.observe(request, self.clock.monotonic());
        state.decisions += 1;
        let entropy = state.decisions << 64 | 0x5eed;
        let decision = state.control.decide(request, self.clock.monotonic(), entropy);
        self.take(&mut state, decision)
    }

    fn take(&self, state: &mut ControllerState, decision: Decision) -> ControlResponse {
        self.commit(state, &decision.records);
        decision.response
    }

    fn commit(&self, state: &mut ControllerState, records: &[MetadataRecord]) {
        if records.is_empty() {
            return;
        }
        let base = state.control.image().next_offset();
        records.iter().for_each(|record| state.control.replay(record));
        state.batches.push((base, records.to_vec()));
        self.next.send_replace(state.control.image().next_offset());
    }

    /// Probes suspects and decides what is due, as the real one does (`R9`, `R76`).
    async fn keep_time(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.clock.monotonic();
            let suspects = {
                let mut state = self.lock();
                let due = state.control.tick(now);
                self.take(&mut state, due);
                state.control.suspects(now)
            };
            for suspicion in suspects {
                self.judge(&suspicion).await;
            }
        }
    }

    async fn judge(&self, suspicion: &Suspicion) {
        let address = self.image().broker(suspicion.broker).map(|broker| {
            let listener = broker.listener("INTERNAL").unwrap();
            format!("{}:{}", listener.host, listener.port)
        });
        let Some(address) = address else { return };
        let answer = rpc::broker::probe(&rpc::net::Network::Tcp, &address, Duration::from_millis(500)).await;
        let mut state = self.lock();
        if matches!(&answer, Probed::Answered(probe) if probe.broker_epoch == suspicion.epoch) {
            state.control.clear_suspicion(suspicion);
        } else {
            state.unanswered += 1;
            let fenced = state.control.fence_suspect(suspicion, self.clock.monotonic());
            self.take(&mut state, fenced);
        }
    }
}

impl ControllerServer for Controller {
    async fn call(self: Arc<Self>, request: ControlRequest, _: Duration) -> Reply<Answered> {
        if self.refuses.load(Ordering::Relaxed) {
            return Reply::NotController { leader: None, undecided: true };
        }
        if let ControlRequest::Alive { broker, .. } = &request {
            *self.signs_of_life.lock().unwrap().entry(*broker).or_default() += 1;
        }
        let response = self.ask(&request);
        self.note_recovery(&request, &response);
        Reply::Active(tenure(), Answered { response, next_offset: self.image().next_offset() })
    }

    async fn follow(self: Arc<Self>, _: ClusterId, mut next: MetadataOffset, sender: FollowSender) {
        let mut moved = self.next.subscribe();
        let mut held = self.held.subscribe();
        loop {
            while *held.borrow_and_update() {
                let _ = tokio::time::timeout(Duration::from_millis(200), held.changed()).await;
                if !sender.keep_alive(tenure()).await {
                    return;
                }
            }
            moved.borrow_and_update();
            let batch = self.lock().batches.iter().find(|(base, _)| *base == next).cloned();
            let sent = match batch {
                Some((base, records)) => {
                    next = MetadataOffset(base.0 + records.len() as u64);
                    sender.event(tenure(), &MetadataEvent::Batch { base, records }).await
                }
                None => {
                    let _ = tokio::time::timeout(Duration::from_millis(200), moved.changed()).await;
                    sender.keep_alive(tenure()).await
                }
            };
            if !sent {
                return;
            }
        }
    }

    async fn change_voters(
        self: Arc<Self>,
        _: rpc::controller::VoterChange,
    ) -> Reply<Result<(), metadata::ControlError>> {
        Reply::NotController { leader: None, undecided: true }
    }

    async fn describe(&self) -> QuorumInfo {
        QuorumInfo {
            leader: BrokerId(1),
            term: 1,
            active: true,
            next_offset: *self.next.borrow(),
            voters: Vec::new(),
            observers: Vec::new(),
        }
    }
}

struct NoQuorum;

impl RaftServer for NoQuorum {
    async fn call(self: Arc<Self>, _: QuorumNode, _: QuorumNode, _: RaftCall) -> Result<RaftAnswer, String> {
        Err("there is no quorum here".to_owned())
    }

    fn snapshot_arriving(&self, _: QuorumNode, _: RaftVote) {}

    async fn install_snapshot(
        self: Arc<Self>,
        _: QuorumNode,
        _: QuorumNode,
        _: RaftVote,
        _: Bytes,
        _: Bytes,
    ) -> Result<RaftVote, String> {
        Err("there is no quorum here".to_owned())
    }
}

/// See the module.
pub(crate) struct Cluster {
    pub(crate) controller: Arc<Controller>,
    pub(crate) brokers: BTreeMap<i32, Arc<Broker>>,
    disks: BTreeMap<i32, Mounts>,
    /// Log directories of each broker that is started from now on.
    pub(crate) directories: usize,
    starts: u128,
    /// How often each broker's machine was started.
    boots: BTreeMap<i32, u128>,
    identities: Arc<AtomicU64>,
    pub(crate) budgets: BTreeMap<i32, Arc<MemoryBudget>>,
    /// Bytes of each broker's tail cache.
    pub(crate) tail_bytes: usize,
    /// What may be under way on a stream that a broker started from now on leads.
    pub(crate) window_bytes: u64,
    /// Between heartbeats of a running broker that is started from now on.
    pub(crate) heartbeat_ms: u64,
    /// Between rounds of retention of a broker that is started from now on.
    pub(crate) retention_check_ms: u64,
    /// Where brokers started from now on keep themselves registered, if not where they serve.
    pub(crate) control: Option<tokio::runtime::Handle>,
    /// Where they serve, if not where the test runs.
    pub(crate) serving: Option<tokio::runtime::Handle>,
    /// What brokers started from now on ask about transactions.
    pub(crate) verifier: Option<Arc<dyn TransactionVerifier>>,
    /// The controller that is of the process of brokers started from now on.
    pub(crate) own_controller: Option<Arc<dyn OwnController>>,
    /// Their files.
    file: StaticConfig,
    /// The racks of the brokers 1, 2, … that are started from now on; further ones have none.
    racks: Vec<&'static str>,
    /// What they take their time from.
    pub(crate) clock: Arc<WrongClock>,
}

/// The machine's clock, of which the wall clock can be set wrong.
#[derive(Debug)]
pub(crate) struct WrongClock {
    system: SystemClock,
    ahead_ms: AtomicI64,
}

impl WrongClock {
    /// From now on the wall clock is so far ahead.
    pub(crate) fn set_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for WrongClock {
    fn monotonic(&self) -> Time {
        self.system.monotonic()
    }

    fn wall(&self) -> Time {
        Time(self.system.wall().0.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed)))
    }
}

impl Cluster {
    pub(crate) async fn start(brokers: i32, min_isr: u32) -> Cluster {
        Cluster::with_verifier(brokers, min_isr, None).await
    }

    /// One whose brokers ask `verifier` about transactions.
    pub(crate) async fn with_verifier(
        brokers: i32,
        min_isr: u32,
        verifier: Option<Arc<dyn TransactionVerifier>>,
    ) -> Cluster {
        Cluster::of(brokers, min_isr, verifier, &[]).await
    }

    /// One whose brokers have this in their files, and no tail cache: every read is of what is on disk.
    pub(crate) async fn on_disk_only(brokers: i32, min_isr: u32, file: &[(&str, &str)]) -> Cluster {
        Cluster::of(brokers, min_isr, None, file).await
    }

    /// Both.
    pub(crate) async fn of(
        brokers: i32,
        min_isr: u32,
        verifier: Option<Arc<dyn TransactionVerifier>>,
        file: &[(&str, &str)],
    ) -> Cluster {
        let mut cluster = Cluster {
            controller: Controller::start(min_isr).await,
            brokers: BTreeMap::new(),
            disks: BTreeMap::new(),
            directories: 1,
            starts: 0,
            boots: BTreeMap::new(),
            identities: Arc::default(),
            budgets: BTreeMap::new(),
            tail_bytes: if file.is_empty() { 16 << 20 } else { 0 },
            window_bytes: 10 << 20,
            heartbeat_ms: 500,
            retention_check_ms: 50,
            control: None,
            serving: None,
            verifier,
            own_controller: None,
            file: file.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            racks: Vec::new(),
            clock: Arc::new(WrongClock { system: SystemClock::new(), ahead_ms: AtomicI64::new(0) }),
        };
        for id in 1..=brokers {
            cluster.start_broker(id).await;
        }
        cluster
    }

    /// One whose brokers 1, 2, … are in these racks.
    pub(crate) async fn in_racks(racks: &[&'static str], min_isr: u32) -> Cluster {
        let mut cluster = Cluster::start(0, min_isr).await;
        cluster.racks = racks.to_vec();
        for (id, _) in (1..).zip(racks) {
            cluster.start_broker(id).await;
        }
        cluster
    }

    /// Starts a broker over its disk as it is, and waits until it serves.
    pub(crate) async fn start_broker(&mut self, id: i32) {
        self.starts += 1;
        let boots = self.boots.get(&id).copied().unwrap_or(1);
        let paths: Vec<_> = (0..self.directories).map(path_of).collect();
        let mounts = self.disks.entry(id).or_default();
        paths.iter().for_each(|path| drop(mounts.disk(path).clone()));
        let env = LogEnv::new(Arc::new(mounts.clone()), 1024, self.tail_bytes);
        let identities = Arc::clone(&self.identities);
        let new_id = || Ok(directory_id(id, identities.fetch_add(1, Ordering::Relaxed)));
        let dirs = LogDirs::open(&env, &paths, BrokerId(id), None, new_id).unwrap();
        dirs.iter().for_each(|dir| dir.data().keep_reserve(RESERVE));
        let internal = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = internal.local_addr().unwrap().port();
        let budget = MemoryBudget::new(256 << 20);
        let broker = Broker::start(BrokerParts {
            config: BrokerConfig {
                file: self.file.clone(),
                rack: usize::try_from(id - 1).ok().and_then(|at| self.racks.get(at)).map(ToString::to_string),
                replica_fetch_response_max_bytes: self.window_bytes,
                broker_heartbeat_interval_ms: self.heartbeat_ms,
                log_retention_check_interval_ms: self.retention_check_ms,
                boot: BootId(Uuid::from_u128(boots)),
                ..config(id, self.starts, port)
            },
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            seed: 7,
            disk_pool: DiskPool::new(DISK_THREADS).unwrap(),
            dirs,
            controller: self.controller_client(),
            own_controller: self.own_controller.clone(),
            network: rpc::net::Network::Tcp,
            control: self.control.clone(),
            internal: internal.into(),
            budget: Arc::clone(&budget),
            verifier: self.verifier.clone(),
        });
        let broker = match &self.serving {
            Some(serving) => serving.spawn(broker).await.unwrap().unwrap(),
            None => broker.await.unwrap(),
        };
        self.budgets.insert(id, budget);
        let mut state = broker.state();
        soon("a broker to serve", state.wait_for(|state| *state == BrokerState::Running)).await.unwrap();
        self.brokers.insert(id, broker);
    }

    /// Its connections are kept where the broker keeps itself registered.
    fn controller_client(&self) -> rpc::controller::ControllerClient {
        let _within = self.control.as_ref().map(tokio::runtime::Handle::enter);
        rpc::controller::ControllerClient::new(&[(BrokerId(1), self.controller.address.clone())]).unwrap()
    }

    pub(crate) fn broker(&self, id: i32) -> &Arc<Broker> {
        &self.brokers[&id]
    }

    pub(crate) fn disk(&self, id: i32) -> &MemDisk {
        self.disk_at(id, 0)
    }

    /// The disk of one of its log directories.
    pub(crate) fn disk_at(&self, id: i32, at: usize) -> &MemDisk {
        self.disks[&id].at(&path_of(at))
    }

    /// The disks of a broker.
    pub(crate) fn mounts(&mut self, id: i32) -> &mut Mounts {
        self.disks.entry(id).or_default()
    }

    /// The process is gone at once; `how` says what its disk has.
    pub(crate) async fn kill(&mut self, id: i32, how: Crash) {
        let broker = self.brokers.remove(&id).unwrap();
        let epoch = self.controller.image().broker_epoch(BrokerId(id));
        drop(broker);
        self.crash(id, how);
        // What its peers' broken connections would say.
        self.controller.ask(&ControlRequest::Suspect(Suspect {
            broker: BrokerId(id),
            epoch,
            reporter: BrokerId(id % 3 + 1),
        }));
    }

    /// Kills, and waits until the controller has fenced it.
    pub(crate) async fn kill_and_fence(&mut self, id: i32, how: Crash) {
        self.kill(id, how).await;
        let controller = &self.controller;
        eventually("the killed broker is fenced", || {
            controller.image().broker(BrokerId(id)).is_none_or(|broker| broker.fenced).then_some(())
        })
        .await;
    }

    /// A controlled shutdown; what no sync covered is lost with the machine.
    pub(crate) async fn shut_down(&mut self, id: i32) {
        self.stop(id).await;
        self.crash(id, Crash::LoseUnsynced);
    }

    /// A controlled shutdown; the machine runs on.
    pub(crate) async fn stop(&mut self, id: i32) {
        let broker = self.brokers.remove(&id).unwrap();
        soon("a controlled shutdown", broker.shut_down()).await;
        drop(broker);
    }

    /// A machine that loses what was in its page cache was started anew.
    fn crash(&mut self, id: i32, how: Crash) {
        self.disks[&id].crash(how);
        if how != Crash::KeepAll {
            *self.boots.entry(id).or_insert(1) += 1;
        }
    }

    /// A topic of one partition on these brokers, the first of them its leader; waits until all of them know it.
    pub(crate) async fn topic(&self, name: &str, replicas: &[i32], configs: &[(&str, &str)]) -> TopicPartition {
        let topic = CreateTopic {
            name: name.to_owned(),
            partitions: -1,
            replication_factor: -1,
            assignments: vec![(PartitionIndex(0), replicas.iter().map(|id| BrokerId(*id)).collect())],
            configs: configs.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect(),
        };
        let request = ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 });
        let ControlResponse::CreateTopics(created) = self.controller.ask(&request) else { panic!("another answer") };
        let id = created[0].result.as_ref().unwrap().id;
        let id = TopicPartition { topic_id: id, partition: PartitionIndex(0) };
        for broker in self.brokers.values() {
            eventually("the topic is known", || broker.image().partition(id).map(|_| ())).await;
        }
        id
    }

    /// A topic of so many partitions without replicas beyond the first, spread over the brokers.
    pub(crate) fn wide_topic(&self, partitions: i32, configs: &[(&str, &str)]) -> Vec<TopicPartition> {
        let topic = CreateTopic {
            name: "wide".to_owned(),
            partitions,
            replication_factor: 1,
            assignments: Vec::new(),
            configs: configs.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect(),
        };
        let request = ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 });
        let ControlResponse::CreateTopics(created) = self.controller.ask(&request) else { panic!("another answer") };
        let topic_id = created[0].result.as_ref().unwrap().id;
        (0..partitions).map(|at| TopicPartition { topic_id, partition: PartitionIndex(at) }).collect()
    }

    /// Waits until a broker leads all of them, and knows it.
    pub(crate) async fn wait_leads(&self, broker: i32, all: &[TopicPartition]) {
        eventually("the broker leads them", || {
            let led = self.broker(broker).metrics().partitions;
            let led: std::collections::BTreeSet<_> = led.iter().filter(|p| p.leads).map(|p| p.partition).collect();
            all.iter().all(|id| led.contains(id)).then_some(())
        })
        .await;
    }

    pub(crate) fn isr(&self, id: TopicPartition) -> Vec<i32> {
        let image = self.controller.image();
        let mut isr: Vec<i32> = image.partition(id).unwrap().isr.iter().map(|id| id.0).collect();
        isr.sort_unstable();
        isr
    }

    pub(crate) async fn wait_isr(&self, id: TopicPartition, isr: &[i32]) {
        eventually(&format!("the ISR is {isr:?}"), || (self.isr(id) == isr).then_some(())).await;
        // A broker shows an image once its replicas have been told of it.
        let next = self.controller.image().next_offset();
        for broker in self.brokers.values() {
            eventually("the brokers know", || (broker.image().next_offset() >= next).then_some(())).await;
        }
    }

    /// Who leads, as the controller has it.
    pub(crate) fn leader(&self, id: TopicPartition) -> Option<i32> {
        let image = self.controller.image();
        image.leader_for(id).map(|(leader, _)| leader.0)
    }

    /// Waits until a live broker leads, and knows it.
    pub(crate) async fn wait_leader(&self, id: TopicPartition) -> i32 {
        eventually("the partition has a leader", || {
            let leader = self.controller.image().partition(id)?.leader;
            let metrics = self.brokers.get(&leader.0)?.metrics();
            metrics.partitions.iter().any(|p| p.partition == id && p.leads).then_some(leader.0)
        })
        .await
    }

    /// Who leads, where that is not `broker` any more.
    pub(crate) fn led_by_another_than(&self, id: TopicPartition, broker: i32) -> Option<i32> {
        let leader = self.controller.image().partition(id)?.leader.0;
        let metrics = self.brokers.get(&leader)?.metrics();
        let leads = metrics.partitions.iter().any(|p| p.partition == id && p.leads);
        (leads && leader != broker).then_some(leader)
    }

    pub(crate) fn log_end(&self, broker: i32, id: TopicPartition) -> i64 {
        let metrics = self.broker(broker).metrics();
        metrics.partitions.iter().find(|partition| partition.partition == id).map_or(-1, |partition| partition.log_end)
    }
}

fn config(id: i32, start: u128, port: u16) -> BrokerConfig {
    BrokerConfig {
        broker_id: BrokerId(id),
        incarnation: Incarnation(Uuid::from_u128(1_000 + start)),
        boot: BootId::NONE,
        rack: None,
        listeners: vec![Listener {
            name: "INTERNAL".to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
            security_protocol: SecurityProtocol::Plaintext,
        }],
        internal_listener: "INTERNAL".to_owned(),
        replica_lag_time_max_ms: 30_000,
        replica_fetch_max_bytes: 1 << 20,
        replica_fetch_response_max_bytes: 10 << 20,
        num_replica_fetchers: 1,
        broker_heartbeat_interval_ms: 500,
        peer_keepalive_ms: broker::config::PEER_KEEPALIVE_MS,
        peer_silence_ms: broker::config::PEER_SILENCE_MS,
        log_retention_check_interval_ms: 50,
        producer_id_expiration_ms: 86_400_000,
        offsets_topic_num_partitions: 2,
        offsets_topic_replication_factor: 2,
        offsets_topic_segment_bytes: 104_857_600,
        transaction_state_log_num_partitions: 2,
        transaction_state_log_replication_factor: 2,
        transaction_state_log_min_isr: 1,
        transaction_state_log_segment_bytes: 104_857_600,
        rack_aware_reads: true,
        file: BTreeMap::new(),
        groups: coordinator::GroupConfig { initial_rebalance_delay_ms: 0, ..coordinator::GroupConfig::default() },
        transactions: coordinator::TransactionConfig::default(),
        rules: model::Rules::all(),
    }
}

/// Where the log directories of each broker are.
pub(crate) fn path_of(at: usize) -> PathBuf {
    if at == 0 { "/data".into() } else { format!("/data{at}").into() }
}

fn directory_id(broker: i32, number: u64) -> DirectoryId {
    DirectoryId(Uuid::from_u128((u128::from(broker.unsigned_abs()) << 64) | (u128::from(number) + 1)))
}

/// A batch of these values.
pub(crate) fn batch(values: &[&str]) -> BytesMut {
    batch_of(values, None)
}

/// The same, of an idempotent producer: id, epoch, first sequence.
pub(crate) fn batch_of(values: &[&str], producer: Option<(i64, i16, i32)>) -> BytesMut {
    let records: Vec<Record> = (0..)
        .zip(values)
        .map(|(offset_delta, value)| Record {
            offset_delta,
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            ..Record::default()
        })
        .collect();
    let now = i64::try_from(SystemClock::new().wall().0).unwrap();
    let producer = producer.map(|(id, epoch, sequence)| (ProducerId(id), ProducerEpoch(epoch), sequence));
    encode_batch(&encode_records(&records), Codec::None, i32::try_from(values.len()).unwrap(), now, now, producer)
}

/// A batch as a leader of `epoch` wrote it at `offset`.
pub(crate) fn written(values: &[&str], offset: i64, epoch: i32) -> Bytes {
    let batch = model::ClientBatches::check(batch(values)).unwrap();
    batch.stamp(Offset(offset), LeaderEpoch(epoch)).bytes().clone()
}

/// Begins a produce; the append is done when this returns.
pub(crate) fn begin_produce(
    broker: &Broker,
    id: TopicPartition,
    acks: Acks,
    records: BytesMut,
) -> Pin<Box<dyn Future<Output = Produced> + Send>> {
    let partitions = vec![ProducePartition { partition: id, records }];
    let answer = broker.produce(ProduceRequest {
        acks,
        transactional_id: None,
        transactions: TransactionSupport::Implicit,
        timeout_ms: 25_000,
        partitions,
    });
    Box::pin(async move { answer.await.remove(0) })
}

pub(crate) async fn produce(broker: &Broker, id: TopicPartition, acks: Acks, records: BytesMut) -> Produced {
    soon("a produce to be answered", begin_produce(broker, id, acks, records)).await
}

/// Produces until it succeeds with the outcome known; answers its offset.
pub(crate) async fn produce_ok(broker: &Broker, id: TopicPartition, values: &[&str]) -> i64 {
    let produced = produce(broker, id, Acks::All, batch(values)).await;
    assert_eq!(produced.error, ErrorCode::None, "{:?}", produced.message);
    produced.base_offset.0
}

pub(crate) fn fetch_request(id: TopicPartition, offset: i64) -> FetchRequest {
    FetchRequest {
        max_wait_ms: 0,
        min_bytes: 1,
        max_bytes: 50 << 20,
        isolation: Isolation::ReadUncommitted,
        rack: None,
        by_file: false,
        partitions: vec![FetchPartition {
            partition: id,
            current_leader_epoch: LeaderEpoch::NONE,
            fetch_offset: Offset(offset),
            last_fetched_epoch: LeaderEpoch::NONE,
            max_bytes: 10 << 20,
        }],
    }
}

pub(crate) async fn fetch(broker: &Broker, id: TopicPartition, offset: i64) -> Fetched {
    soon("a fetch to be answered", broker.fetch(fetch_request(id, offset))).await.partitions.remove(0)
}

/// All values from `offset` on that a consumer sees at this broker, leader or not.
pub(crate) async fn values(broker: &Broker, id: TopicPartition, offset: i64) -> Vec<String> {
    let (mut next, mut found) = (offset, Vec::new());
    loop {
        let request = FetchRequest { rack: Some("none".to_owned()), ..fetch_request(id, next) };
        let fetched = soon("a fetch to be answered", broker.fetch(request)).await.partitions.remove(0);
        assert_eq!(fetched.error, ErrorCode::None);
        if fetched.records.is_empty() {
            return found;
        }
        for chunk in fetched.records {
            for batch in RecordBatch::split_all(chunk).unwrap() {
                next = batch.header().next_offset().0;
                let records = RecordIter::new(batch.payload(), batch.header().record_count);
                found.extend(records.map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap()));
            }
        }
    }
}

/// A broker that the test plays itself, registered and unfenced; `port` is where it listens, if it does.
pub(crate) fn register_by_hand(controller: &Controller, id: i32, port: u16, rack: Option<&str>) -> BrokerEpoch {
    let played = config(id, u128::from(port) << 32 | 9, port);
    let register = metadata::control::RegisterBroker {
        broker: played.broker_id,
        cluster_id: CLUSTER,
        incarnation: played.incarnation,
        boot: played.boot,
        directories: vec![directory_id(id, u64::from(port))],
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        unidentified_directories: false,
        listeners: played.listeners,
        rack: rack.map(str::to_owned),
        features: metadata::control::supported_features(),
        previous_epoch: controller.image().broker_epoch(BrokerId(id)),
        lossy: Vec::new(),
    };
    let ControlResponse::RegisterBroker { epoch } = controller.ask(&ControlRequest::RegisterBroker(register)) else {
        panic!("the registration was refused");
    };
    let heartbeat = metadata::control::Heartbeat {
        broker: BrokerId(id),
        epoch,
        next_offset: controller.image().next_offset(),
        want_fence: false,
        want_shutdown: false,
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        lossy: Vec::new(),
        full_directories: vec![],
        exhausted_directories: vec![],
    };
    controller.ask(&ControlRequest::Heartbeat(heartbeat));
    epoch
}

/// What the checkpoint on a broker's disk says of partition 0 of a topic.
pub(crate) fn checkpointed(cluster: &Cluster, broker: i32, which: Checkpoint, topic: &str) -> Option<i64> {
    let copy = LogEnv::new(Arc::new(cluster.disk(broker).fork()), 16, 0);
    let data = DataDir::open(&copy, "/data".as_ref()).unwrap();
    data.read_checkpoint(which).unwrap().get(&(topic.to_owned(), model::PartitionIndex(0))).map(|offset| offset.0)
}
