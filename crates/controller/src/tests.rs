//! Whole controllers over loopback: formation, elections, isolation, replacement, the metadata stream.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use metadata::MetadataImage;
use metadata::control::{ControlRequest, ControlResponse, Heartbeat, RegisterBroker, Suspect, supported_features};
use metadata::records::{Listener, SecurityProtocol};
use model::{BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, Incarnation, MetadataOffset, Time, Uuid};
use rpc::controller::{CallError, ControllerClient, MetadataEvent, VoterChange};
use rpc::raft::{QuorumNode, RaftCall, RaftServer};
use storage::disk::{Call, Crash, DirEntry, Disk, DiskFile, FaultKind, MemDisk, OpenMode};
use tokio::time::Instant;

use super::*;

/// Far above what anything here takes, so that only a real hang fails.
const PATIENCE: Duration = Duration::from_secs(30);

struct Cluster {
    voters: Vec<(BrokerId, String)>,
    configs: Vec<ControllerConfig>,
    handles: Vec<Option<ControllerHandle>>,
}

impl Cluster {
    /// Three controllers that are configured but not started.
    fn of_three(adjust: impl Fn(&mut ControllerConfig)) -> Cluster {
        let reserve = |_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let reserved: Vec<_> = (0..3).map(reserve).collect();
        let addresses: Vec<SocketAddr> = reserved.iter().map(|l| l.local_addr().unwrap()).collect();
        let voters: Vec<_> = (1..).map(BrokerId).zip(addresses.iter().map(ToString::to_string)).collect();
        let config = |(at, bind): (usize, &SocketAddr)| {
            let mut config = ControllerConfig {
                node_id: voters[at].0,
                directory: DirectoryId(Uuid::from_u128(100 + at as u128)),
                incarnation: Incarnation(Uuid::from_u128(200 + at as u128)),
                network: Network::Tcp,
                disk: Arc::new(MemDisk::new()),
                path: PathBuf::from("/metadata"),
                keep_image: false,
                voters: voters.clone(),
                bind: *bind,
                listeners: Vec::new(),
                internal_listener: "INTERNAL".to_owned(),
                cluster_id: None,
                settings: ControlSettings::default(),
                timeouts: Timeouts::default(),
                seed: 1000 + at as u64,
                on_fatal: Arc::new(|why| panic!("{why}")),
            };
            adjust(&mut config);
            config
        };
        let configs = addresses.iter().enumerate().map(config).collect();
        Cluster { voters: voters.clone(), configs, handles: vec![None, None, None] }
    }

    async fn start(&mut self, at: usize) {
        self.handles[at] = Some(Controller::start(self.configs[at].clone()).await.unwrap());
    }

    async fn start_all(&mut self) {
        for at in 0..3 {
            self.start(at).await;
        }
    }

    async fn stop(&mut self, at: usize) {
        self.handles[at].take().unwrap().shutdown().await;
    }

    fn handle(&self, at: usize) -> &ControllerHandle {
        self.handles[at].as_ref().unwrap()
    }

    fn client(&self) -> ControllerClient {
        ControllerClient::new(&self.voters).unwrap()
    }

    /// The active controller, once there is one, and how long that took.
    async fn active(&self) -> (usize, Duration) {
        let since = Instant::now();
        let find = || (0..3).find(|at| self.handles[*at].as_ref().is_some_and(ControllerHandle::is_active));
        until("an active controller", || find().is_some()).await;
        (find().unwrap_or(0), since.elapsed())
    }

    async fn register(&self, broker: i32) -> BrokerEpoch {
        register(&self.client(), broker, 1).await
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn register(client: &ControllerClient, broker: i32, port: u16) -> BrokerEpoch {
    let listener = Listener {
        name: "INTERNAL".to_owned(),
        host: "127.0.0.1".to_owned(),
        port,
        security_protocol: SecurityProtocol::Plaintext,
    };
    let request = ControlRequest::RegisterBroker(RegisterBroker {
        broker: BrokerId(broker),
        cluster_id: ClusterId::NONE,
        incarnation: Incarnation(Uuid::from_u128(300)),
        boot: BootId::NONE,
        directories: vec![DirectoryId(Uuid::from_u128(400 + u128::from(broker.unsigned_abs())))],
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        unidentified_directories: false,
        listeners: vec![listener],
        rack: None,
        features: supported_features(),
        previous_epoch: BrokerEpoch::NONE,
        lossy: Vec::new(),
    });
    match client.call(request, Instant::now() + PATIENCE).await {
        Ok(ControlResponse::RegisterBroker { epoch }) => epoch,
        other => panic!("{other:?}"),
    }
}

/// Of a broker that has applied all of the metadata.
fn heartbeat(broker: i32, epoch: BrokerEpoch) -> ControlRequest {
    ControlRequest::Heartbeat(Heartbeat {
        broker: BrokerId(broker),
        epoch,
        next_offset: MetadataOffset(1 << 40),
        want_fence: false,
        want_shutdown: false,
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        lossy: Vec::new(),
        full_directories: Vec::new(),
        exhausted_directories: Vec::new(),
    })
}

/// Follows until `image` is at least at `end`; says how many snapshots came.
async fn follow(
    events: &mut (impl Stream<Item = MetadataEvent> + Unpin),
    image: &mut MetadataImage,
    end: MetadataOffset,
) -> u32 {
    let mut snapshots = 0;
    while image.next_offset() < end {
        match tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap() {
            MetadataEvent::Snapshot { next_offset, records } => {
                snapshots += 1;
                *image = MetadataImage::from_snapshot(next_offset, &records);
            }
            MetadataEvent::Batch { base, records } => {
                assert_eq!(base, image.next_offset());
                records.iter().for_each(|record| image.apply(record));
            }
            MetadataEvent::Refused(reason) => panic!("{reason}"),
        }
    }
    snapshots
}

fn said(what: &str, took: Duration) {
    println!("{what}: {} ms", took.as_millis());
}

#[tokio::test]
async fn three_controllers_form_a_quorum_and_survive_the_loss_of_their_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(storage::disk::RealDisk);
        config.path = dir.path().join(config.node_id.to_string());
        config.keep_image = true;
    });
    let since = Instant::now();
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    said("formation", since.elapsed());
    let since = Instant::now();
    let epoch = cluster.register(7).await;
    said("first registration", since.elapsed());
    let mut image = MetadataImage::default();
    let client = cluster.client();
    let mut events = pin!(client.follow(ClusterId::NONE, MetadataOffset(0)));
    follow(&mut events, &mut image, MetadataOffset(epoch_offset(epoch) + 1)).await;
    assert_eq!(image.broker_epoch(BrokerId(7)), epoch);

    cluster.stop(leader).await;
    let (second, took) = cluster.active().await;
    assert_ne!(second, leader);
    said("failover", took);
    let since = Instant::now();
    let later = register(&client, 8, 1).await;
    said("first registration after it", since.elapsed());
    assert!(later > epoch);
    follow(&mut events, &mut image, MetadataOffset(epoch_offset(later) + 1)).await;
    assert_eq!((image.broker_epoch(BrokerId(7)), image.broker_epoch(BrokerId(8))), (epoch, later));

    cluster.start(leader).await;
    let back = cluster.handle(leader).clone();
    until("the lost leader's return", || back.status().next_offset >= image.next_offset()).await;
    assert_eq!(back.status().cluster_id, image.cluster_id());
    until("all controllers' registrations", || back.quorum.image().controllers().len() == 3).await;
}

#[tokio::test]
async fn a_power_cut_of_all_controllers_loses_nothing_acknowledged() {
    let mut disks: Vec<MemDisk> = (0..3).map(|_| MemDisk::new()).collect();
    let at = |config: &ControllerConfig| usize::try_from(config.node_id.0 - 1).unwrap();
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(disks[at(config)].clone());
        config.timeouts.snapshot_every = 15;
        config.timeouts.snapshot_keep = 2;
    });
    cluster.start_all().await;
    let client = cluster.client();
    let mut epochs = Vec::new();
    for round in 0..4u64 {
        for broker in 0..10 {
            let broker = i32::try_from(round * 10 + broker).unwrap();
            epochs.push((BrokerId(broker), register(&client, broker, 1).await));
        }
        // The power goes everywhere, in the middle of whatever the disks are doing.
        disks = disks.iter().map(MemDisk::fork).collect();
        for (at, disk) in (0u64..).zip(&disks) {
            disk.crash(Crash::Scatter(round * 3 + at));
        }
        for (at, disk) in disks.iter().enumerate() {
            cluster.stop(at).await;
            cluster.configs[at].disk = Arc::new(disk.clone());
        }
        cluster.start_all().await;
        let (active, _) = cluster.active().await;
        let image = cluster.handle(active).quorum.image();
        for (broker, epoch) in &epochs {
            assert_eq!(image.broker_epoch(*broker), *epoch, "round {round}");
        }
    }
}

fn epoch_offset(epoch: BrokerEpoch) -> u64 {
    u64::try_from(epoch.0).unwrap()
}

#[tokio::test]
async fn a_quorum_waits_for_a_voter_that_is_missing() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start(0).await;
    cluster.start(1).await;
    // Ten times as long as forming takes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for at in 0..2 {
        let status = cluster.handle(at).status();
        assert_eq!((status.quorum.leader, status.quorum.voters.len()), (BrokerId::NONE, 0), "{status:?}");
    }
    let since = Instant::now();
    cluster.start(2).await;
    cluster.active().await;
    said("formation after the last voter came", since.elapsed());
    cluster.register(1).await;
    let ids: Vec<_> = (0..3).map(|at| cluster.handle(at).clone()).collect();
    until("one cluster id", || {
        let ids: Vec<_> = ids.iter().map(|h| h.status().cluster_id).collect();
        !ids[0].is_none() && ids.iter().all(|id| *id == ids[0])
    })
    .await;
}

#[tokio::test]
async fn an_isolated_leader_stops_answering_and_gives_way() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    cluster.register(1).await;
    let old = cluster.handle(leader).clone();
    let term = old.status().quorum.term;
    old.quorum.links.cut.lock().unwrap().extend([1, 2, 3]);
    let since = Instant::now();
    until("the end of its activity", || !old.is_active()).await;
    said("an isolated leader is inactive after", since.elapsed());
    let alone = ControllerClient::new(&cluster.voters[leader..=leader]).unwrap();
    let request = ControlRequest::UnregisterBroker { broker: BrokerId(1) };
    let deadline = Instant::now() + Duration::from_millis(500);
    // Who asks again and again until the deadline may have a question under way at that moment.
    let answer = alone.call(request, deadline).await;
    assert!(matches!(answer, Err(CallError::Timeout | CallError::Unknown)), "{answer:?}");
    let (second, _) = cluster.active().await;
    assert_ne!(second, leader);
    let epoch = cluster.register(2).await;
    old.quorum.links.cut.lock().unwrap().clear();
    until("the old leader's return", || old.quorum.image().broker_epoch(BrokerId(2)) == epoch).await;
    let status = old.status();
    assert!(status.quorum.term > term && !status.quorum.active, "{status:?}");
    assert_eq!(old.quorum.image().brokers().len(), 2);
}

/// A disk whose syncs can be held up, or take a while.
#[derive(Debug, Clone, Default)]
struct GatedDisk {
    disk: MemDisk,
    held: Arc<(Mutex<bool>, Condvar)>,
    takes: Duration,
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    held: Arc<(Mutex<bool>, Condvar)>,
    takes: Duration,
}

impl GatedDisk {
    fn hold(&self, held: bool) {
        *self.held.0.lock().unwrap() = held;
        self.held.1.notify_all();
    }
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, mode)?;
        Ok(Arc::new(GatedFile { file, held: Arc::clone(&self.held), takes: self.takes }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.disk.space(path)
    }
}

impl DiskFile for GatedFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(into, position)
    }

    fn write_at(&self, from: &[io::IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.file.write_at(from, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        let held = self.held.0.lock().unwrap();
        drop(self.held.1.wait_while(held, |held| *held).unwrap());
        std::thread::sleep(self.takes);
        self.file.sync_data()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.truncate(size)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn modified(&self) -> io::Result<Time> {
        self.file.modified()
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        self.file.preallocate(size)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

#[tokio::test]
async fn a_leader_whose_disk_stalls_stops_answering_and_its_batch_is_superseded() {
    // R66, R67, R68
    let disks: Vec<GatedDisk> = (0..3).map(|_| GatedDisk::default()).collect();
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(disks[usize::try_from(config.node_id.0 - 1).unwrap()].clone());
    });
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    cluster.register(1).await;
    let old = cluster.handle(leader).clone();
    disks[leader].hold(true);
    let stalled = ControllerClient::new(&cluster.voters[leader..=leader]).unwrap();
    let hanging = tokio::spawn(async move { register(&stalled, 2, 1).await });
    until("the end of its activity", || !old.is_active()).await;
    let (second, _) = cluster.active().await;
    assert_ne!(second, leader);
    let others: Vec<_> = cluster.voters.iter().filter(|(id, _)| *id != cluster.voters[leader].0).cloned().collect();
    let epoch = register(&ControllerClient::new(&others).unwrap(), 3, 1).await;
    hanging.abort();
    disks[leader].hold(false);
    until("its return", || old.quorum.image().broker_epoch(BrokerId(3)) == epoch).await;
    let (active, _) = cluster.active().await;
    assert_eq!(old.quorum.image().brokers().keys().filter(|id| id.0 == 2).count(), 0, "its batch has no effect");
    assert!(cluster.handle(active).status().quorum.term > 1);
}

#[tokio::test]
async fn on_slow_disks_candidates_do_not_overtake_each_other() {
    // R75: a vote is synced by the candidate, then by the others
    let takes = Duration::from_millis(100);
    let mut cluster = Cluster::of_three(|config| config.disk = Arc::new(GatedDisk { takes, ..GatedDisk::default() }));
    cluster.start_all().await;
    let (active, took) = cluster.active().await;
    said("a first leader on disks whose syncs take 100 ms, after", took);
    let term = cluster.handle(active).status().quorum.term;
    assert!(term <= 12, "{term} terms");
}

#[tokio::test]
async fn an_answer_that_must_be_current_waits_for_a_quorum_and_a_heartbeat_rests_on_the_lease() {
    // R68, R71: the lease is long, so that the leader counts as active for a while after it lost its quorum
    let mut cluster = Cluster::of_three(|config| config.timeouts.election_max = Duration::from_secs(4));
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let epoch = cluster.register(1).await;
    let handle = cluster.handle(leader).clone();
    let client = ControllerClient::new(&cluster.voters[leader..=leader]).unwrap();
    // Nobody has that number: the answer records nothing.
    let unregister = ControlRequest::UnregisterBroker { broker: BrokerId(99) };
    let refused = client.call(unregister.clone(), Instant::now() + PATIENCE).await;
    assert!(matches!(refused, Ok(ControlResponse::Refused(_))), "{refused:?}");
    // The first one unfences the broker; those after it record nothing.
    client.call(heartbeat(1, epoch), Instant::now() + PATIENCE).await.unwrap();
    handle.quorum.links.cut.lock().unwrap().extend([1, 2, 3]);
    let in_lease = Instant::now() + Duration::from_secs(1);
    let (beat, stale) =
        tokio::join!(client.call(heartbeat(1, epoch), in_lease), client.call(unregister.clone(), in_lease));
    let described = client.describe(Instant::now() + Duration::from_secs(1)).await.unwrap();
    assert!(handle.is_active(), "by its lease");
    assert!(matches!(beat, Ok(ControlResponse::Heartbeat(_))), "{beat:?}");
    // Whichever gives up first, nobody answers from an image that may be old.
    assert!(stale.is_err(), "{stale:?}");
    assert!(!described.active, "{described:?}");
    handle.quorum.links.cut.lock().unwrap().clear();
    let refused = cluster.client().call(unregister, Instant::now() + PATIENCE).await;
    assert!(matches!(refused, Ok(ControlResponse::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_decision_has_no_effect_before_it_is_committed() {
    // R2: it is in the leader's log, and in nobody else's
    let disks: Vec<GatedDisk> = (0..3).map(|_| GatedDisk::default()).collect();
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(disks[usize::try_from(config.node_id.0 - 1).unwrap()].clone());
    });
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    cluster.register(1).await;
    let handle = cluster.handle(leader).clone();
    until("all controllers' registrations", || handle.quorum.image().controllers().len() == 3).await;
    let (before, log_end) = (handle.quorum.image(), handle.quorum.contact.metrics().last_log_index);
    for follower in (0..3).filter(|at| *at != leader) {
        disks[follower].hold(true);
    }
    let client = cluster.client();
    let mut asked = tokio::spawn(async move { register(&client, 2, 1).await });
    let appended = || handle.quorum.contact.metrics().last_log_index > log_end;
    until("the decision in the leader's log", appended).await;
    let early = tokio::time::timeout(Duration::from_millis(300), &mut asked).await;
    assert!(early.is_err(), "answered: {early:?}");
    assert_eq!(handle.quorum.image(), before);
    disks.iter().for_each(|disk| disk.hold(false));
    let epoch = asked.await.unwrap();
    until("its effect", || handle.quorum.image().broker_epoch(BrokerId(2)) == epoch).await;
}

#[tokio::test]
async fn a_controller_whose_disk_fails_asks_for_its_end_and_the_others_go_on() {
    let disks: Vec<MemDisk> = (0..3).map(|_| MemDisk::new()).collect();
    let fatal = Arc::new(Mutex::new(Vec::new()));
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(disks[usize::try_from(config.node_id.0 - 1).unwrap()].clone());
        let (fatal, id) = (Arc::clone(&fatal), config.node_id.0);
        config.on_fatal = Arc::new(move |_| fatal.lock().unwrap().push(id));
    });
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let epoch = cluster.register(1).await;
    disks[leader].fail(Call::SyncData, 0, FaultKind::Eio);
    assert!(cluster.register(2).await > epoch);
    until("the wish to end", || !fatal.lock().unwrap().is_empty()).await;
    assert!(fatal.lock().unwrap().iter().all(|id| *id == cluster.voters[leader].0.0));
    assert!(!cluster.handle(leader).is_active());
}

/// From now on every write there finds no space, until it is forgiven.
fn fill(disk: &MemDisk) {
    (0..5_000).for_each(|_| disk.fail(Call::Write, 0, FaultKind::Enospc));
}

/// A registration at one controller alone, which nobody answers yet.
fn begin_register(cluster: &Cluster, at: usize, broker: i32) -> tokio::task::JoinHandle<BrokerEpoch> {
    let client = ControllerClient::new(&cluster.voters[at..=at]).unwrap();
    tokio::spawn(async move { register(&client, broker, 1).await })
}

#[tokio::test]
async fn a_leader_without_space_waits_as_one_that_is_paused_and_comes_back_by_itself() {
    // R30, R67: the others go on, and no process ends.
    let disks: Vec<MemDisk> = (0..3).map(|_| MemDisk::new()).collect();
    let mut cluster = Cluster::of_three(|config| {
        config.disk = Arc::new(disks[usize::try_from(config.node_id.0 - 1).unwrap()].clone());
    });
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    cluster.register(1).await;
    let old = cluster.handle(leader).clone();
    fill(&disks[leader]);
    let hanging = begin_register(&cluster, leader, 2);
    until("the wait", || old.quorum.waits_for_space()).await;
    until("the end of its activity", || !old.is_active()).await;
    let (second, _) = cluster.active().await;
    assert_ne!(second, leader);
    let others: Vec<_> = cluster.voters.iter().filter(|(id, _)| *id != cluster.voters[leader].0).cloned().collect();
    let epoch = register(&ControllerClient::new(&others).unwrap(), 3, 1).await;
    assert!(old.quorum.waits_for_space() && old.quorum.image().broker_epoch(BrokerId(3)) != epoch);
    hanging.abort();
    disks[leader].forgive();
    until("its return", || old.quorum.image().broker_epoch(BrokerId(3)) == epoch).await;
    assert!(!old.quorum.waits_for_space());
    let (active, _) = cluster.active().await;
    assert_eq!(cluster.handle(active).status().quorum.term, cluster.handle(second).status().quorum.term);
}

#[tokio::test]
async fn a_sole_voter_without_space_waits_for_it_and_can_be_stopped_meanwhile() {
    let disk = MemDisk::new();
    let mut cluster = Cluster::of_three(|config| config.disk = Arc::new(disk.clone()));
    cluster.configs[0].voters.truncate(1);
    cluster.start(0).await;
    cluster.active().await;
    fill(&disk);
    let hanging = begin_register(&cluster, 0, 1);
    until("the wait", || cluster.handle(0).quorum.waits_for_space()).await;
    disk.forgive();
    let epoch = hanging.await.unwrap();
    fill(&disk);
    let hanging = begin_register(&cluster, 0, 2);
    until("the wait", || cluster.handle(0).quorum.waits_for_space()).await;
    tokio::time::timeout(PATIENCE, cluster.stop(0)).await.unwrap();
    hanging.abort();
    disk.forgive();
    cluster.start(0).await;
    cluster.active().await;
    let image = cluster.handle(0).quorum.image();
    assert_eq!((image.broker_epoch(BrokerId(1)), image.brokers().len()), (epoch, 1));
}

#[tokio::test]
async fn an_isolated_follower_does_not_depose_the_leader() {
    // R75
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let alone = cluster.handle((leader + 1) % 3).clone();
    alone.quorum.links.cut.lock().unwrap().extend([1, 2, 3]);
    let lease = Timeouts::default().election_max;
    until("silence", || alone.quorum.contact.age() > 3 * lease).await;
    let (term, active) = (alone.status().quorum.term, cluster.handle(leader).status().quorum.term);
    assert_eq!(term, active, "it has started no election");
    alone.quorum.links.cut.lock().unwrap().clear();
    let epoch = cluster.register(4).await;
    until("its return", || alone.quorum.image().broker_epoch(BrokerId(4)) == epoch).await;
}

/// R5, R74: the address of a node may be another's by now, or that of the same node with another disk.
#[tokio::test]
async fn a_message_that_means_another_node_or_another_disk_of_it_is_refused() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let node = |at: usize| cluster.handle(at).quorum.me.quorum_node();
    let (from, asked) = (node(leader), (leader + 1) % 3);
    let other_disk = QuorumNode { directory: DirectoryId(Uuid::from_u128(9)), ..node(asked) };
    let call = |to| Arc::clone(&cluster.handle(asked).quorum).call(from, to, RaftCall::Meet);
    assert!(call(node(asked)).await.is_ok());
    for to in [node((leader + 2) % 3), other_disk] {
        let refused = call(to).await.unwrap_err();
        assert!(refused.contains(&format!("this is node {}", node(asked).id)), "{refused}");
    }
}

#[tokio::test]
async fn a_restarted_controller_catches_up_by_snapshot() {
    let mut cluster = Cluster::of_three(|config| {
        config.timeouts.snapshot_every = 20;
        config.timeouts.snapshot_keep = 2;
    });
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let behind = (leader + 1) % 3;
    cluster.register(1).await;
    cluster.stop(behind).await;
    let client = cluster.client();
    let mut last = BrokerEpoch::NONE;
    for broker in 2..150 {
        last = register(&client, broker, 1).await;
    }
    let leading = cluster.handle(leader).clone();
    until("a purge", || leading.quorum.contact.metrics().purged.is_some_and(|id| id.index > 60)).await;
    cluster.start(behind).await;
    let back = cluster.handle(behind).clone();
    assert!(back.status().next_offset.0 < 100);
    until("catching up", || back.quorum.image().broker_epoch(BrokerId(149)) == last).await;
    let snapshot = back.quorum.contact.metrics().snapshot;
    assert!(snapshot.is_some_and(|id| id.index > 60), "{snapshot:?}");
    assert_eq!(back.quorum.image(), leading.quorum.image());
    // It works from the snapshot after another restart too.
    cluster.stop(behind).await;
    cluster.start(behind).await;
    let back = cluster.handle(behind).clone();
    until("starting over", || back.quorum.image() == leading.quorum.image()).await;
    // A follower of the metadata that asks for what nobody keeps is given the image.
    let mut image = MetadataImage::default();
    cluster.stop(leader).await;
    let mut events = pin!(client.follow(leading.status().cluster_id, MetadataOffset(0)));
    follow(&mut events, &mut image, MetadataOffset(epoch_offset(last) + 1)).await;
    assert_eq!(image.brokers().len(), 149);
}

#[tokio::test]
async fn a_voter_with_a_wiped_disk_is_replaced_by_its_successor() {
    let mut cluster = Cluster::of_three(|config| config.timeouts.replace_after = Duration::from_millis(600));
    cluster.start_all().await;
    let (leader, _) = cluster.active().await;
    let epoch = cluster.register(1).await;
    let wiped = (leader + 1) % 3;
    cluster.stop(wiped).await;
    cluster.configs[wiped].disk = Arc::new(MemDisk::new());
    let fresh = DirectoryId(Uuid::from_u128(999));
    cluster.configs[wiped].directory = fresh;
    let since = Instant::now();
    cluster.start(wiped).await;
    let leading = cluster.handle(leader).clone();
    let directories = |handle: &ControllerHandle| {
        let voters = handle.status().quorum.voters;
        voters.iter().map(|voter| (voter.node.id, voter.node.directory)).collect::<BTreeMap<_, _>>()
    };
    let id = cluster.voters[wiped].0;
    // Committed, not only begun: before, the old configuration is needed too.
    let settled = || {
        let metrics = leading.quorum.contact.metrics();
        let membership = &metrics.membership_config;
        membership.membership().get_joint_config().len() == 1 && *membership.log_id() <= metrics.last_applied
    };
    until("the replacement", || directories(&leading).get(&id) == Some(&fresh) && settled()).await;
    said("replacement", since.elapsed());
    assert_eq!(leading.status().quorum.voters.len(), 3);
    let new = cluster.handle(wiped).clone();
    until("its metadata", || new.quorum.image().broker_epoch(BrokerId(1)) == epoch).await;
    // With the third one gone it is needed, and counts.
    let other = 3 - leader - wiped;
    cluster.stop(other).await;
    cluster.register(2).await;
}

#[tokio::test]
async fn a_suspect_that_is_gone_is_fenced_and_one_that_lives_is_not() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let client = cluster.client();
    let alive = serve_broker().await;
    let ports = [1, alive, alive];
    let mut epochs = Vec::new();
    for (broker, port) in (1..).zip(ports) {
        epochs.push(register(&client, broker, port).await);
    }
    for (broker, epoch) in (1..).zip(&epochs) {
        let answer = client.call(heartbeat(broker, *epoch), Instant::now() + PATIENCE).await;
        assert!(matches!(&answer, Ok(ControlResponse::Heartbeat(now)) if !now.is_fenced), "{answer:?}");
    }
    let (leader, _) = cluster.active().await;
    let handle = cluster.handle(leader).clone();
    let suspect = |broker: i32, epoch| {
        ControlRequest::Suspect(Suspect { broker: BrokerId(broker), epoch, reporter: BrokerId(3) })
    };
    let since = Instant::now();
    for (broker, epoch) in [(2, epochs[1]), (1, epochs[0])] {
        client.call(suspect(broker, epoch), Instant::now() + PATIENCE).await.unwrap();
        until("judgement", || handle.quorum.image().broker(BrokerId(1)).is_some_and(|b| b.fenced) || broker == 2).await;
    }
    said("suspicion to fence", since.elapsed());
    let image = handle.quorum.image();
    let fenced: Vec<_> = image.brokers().values().map(|broker| broker.fenced).collect();
    assert_eq!(fenced, [true, false, false]);
}

/// R76: neither what peers say nor a probe without an answer is enough while the suspect says that it lives.
#[tokio::test]
async fn a_suspect_that_answers_no_probe_is_fenced_only_when_its_signs_of_life_cease() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let client = cluster.client();
    // Connections are taken, and nobody answers, as it is with a process that is paused or gets no processor.
    let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let alive = serve_broker().await;
    let mut epochs = Vec::new();
    for (broker, port) in (1..).zip([silent.local_addr().unwrap().port(), alive, alive]) {
        epochs.push(register(&client, broker, port).await);
        let answer = client.call(heartbeat(broker, epochs[epochs.len() - 1]), Instant::now() + PATIENCE).await;
        assert!(matches!(&answer, Ok(ControlResponse::Heartbeat(now)) if !now.is_fenced), "{answer:?}");
    }
    let (leader, _) = cluster.active().await;
    let handle = cluster.handle(leader).clone();
    let fenced = || handle.quorum.image().broker(BrokerId(1)).is_some_and(|broker| broker.fenced);
    let (broker, epoch) = (BrokerId(1), epochs[0]);
    let suspect = ControlRequest::Suspect(Suspect { broker, epoch, reporter: BrokerId(3) });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(3_000) {
        client.call(suspect.clone(), Instant::now() + PATIENCE).await.unwrap();
        if begun.elapsed() < Duration::from_millis(1_500) {
            client.call(ControlRequest::Alive { broker, epoch }, Instant::now() + PATIENCE).await.unwrap();
        } else {
            // As one of the same process tells it.
            until("it listens", || handle.hear(broker, epoch)).await;
            assert!(!cluster.handle((leader + 1) % 3).hear(broker, epoch), "that one is not active");
        }
        assert!(!fenced(), "fenced after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.call(suspect, Instant::now() + PATIENCE).await.unwrap();
    let since = Instant::now();
    until("the fence", fenced).await;
    said("silence to fence", since.elapsed());
}

/// A broker that says it is the incarnation that registered.
async fn serve_broker() -> u16 {
    struct Peer;
    impl rpc::broker::BrokerPeer for Peer {
        fn identity(&self) -> rpc::broker::Probe {
            rpc::broker::Probe {
                cluster_id: ClusterId::NONE,
                broker_id: BrokerId(2),
                incarnation: Incarnation(Uuid::from_u128(300)),
                broker_epoch: BrokerEpoch::NONE,
            }
        }
    }
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(rpc::net::serve(listener, rpc::broker::routes(Arc::new(Peer)), std::future::pending()));
    port
}

impl Cluster {
    /// A fourth controller, blank, that knows the others; not started.
    fn add_config(&mut self) -> usize {
        let reserved = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = self.configs.len();
        let id = BrokerId(i32::try_from(at).unwrap() + 1);
        let bind = reserved.local_addr().unwrap();
        let mut voters = self.voters.clone();
        voters.push((id, bind.to_string()));
        let config = ControllerConfig {
            node_id: id,
            directory: DirectoryId(Uuid::from_u128(100 + at as u128)),
            incarnation: Incarnation(Uuid::from_u128(200 + at as u128)),
            disk: Arc::new(MemDisk::new()),
            voters,
            bind,
            seed: 1000 + at as u64,
            ..self.configs[0].clone()
        };
        self.configs.push(config);
        self.handles.push(None);
        at
    }

    fn voters_now(&self) -> Vec<i32> {
        let (at, _) = (0..self.handles.len())
            .filter_map(|at| self.handles[at].as_ref().map(|handle| (at, handle)))
            .find(|(_, handle)| handle.is_active())
            .unwrap_or((0, self.handle(0)));
        let mut ids: Vec<i32> = self.handle(at).status().quorum.voters.iter().map(|voter| voter.node.id.0).collect();
        ids.sort_unstable();
        ids
    }
}

fn voter(id: i32, directory: DirectoryId) -> QuorumNode {
    QuorumNode { id: BrokerId(id), directory }
}

async fn change(client: &ControllerClient, change: VoterChange) -> Result<(), model::ErrorCode> {
    let outcome = client.change_voters(&change, Instant::now() + PATIENCE).await;
    outcome.expect("a controller answers").map_err(|error| error.code)
}

#[tokio::test]
async fn voters_come_and_go_while_the_quorum_works() {
    // R74, KIP-853
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    cluster.active().await;
    let client = cluster.client();
    let first = cluster.register(1).await;
    let unknown = VoterChange::Add { node: voter(4, DirectoryId::NONE), address: "127.0.0.1:1".to_owned() };
    assert_eq!(change(&client, unknown).await, Err(model::ErrorCode::VoterNotFound), "nobody has met it");
    let at = cluster.add_config();
    cluster.start(at).await;
    let address = cluster.handle(at).address().to_string();
    let add = VoterChange::Add { node: voter(4, cluster.configs[at].directory), address };
    assert_eq!(change(&client, add.clone()).await, Ok(()));
    until("four voters", || cluster.voters_now() == [1, 2, 3, 4]).await;
    assert_eq!(change(&client, add).await, Err(model::ErrorCode::DuplicateVoter));
    // The new one has all there is, and is needed for a majority once one is gone.
    let gone = VoterChange::Remove { node: voter(9, DirectoryId::NONE) };
    assert_eq!(change(&client, gone).await, Err(model::ErrorCode::VoterNotFound));
    let removed = VoterChange::Remove { node: voter(1, DirectoryId::NONE) };
    assert_eq!(change(&client, removed).await, Ok(()));
    until("three voters", || {
        let active = cluster.handles.iter().flatten().any(ControllerHandle::is_active);
        active && cluster.voters_now() == [2, 3, 4]
    })
    .await;
    cluster.stop(0).await;
    cluster.stop(1).await;
    let second = register(&client, 2, 1).await;
    assert!(second > first, "3 and 4 alone decide");
    until("the new voter knows", || cluster.handle(at).status().next_offset.0 > second.0.unsigned_abs()).await;
}

#[tokio::test]
async fn a_voter_is_added_at_another_address_than_the_one_that_is_configured() {
    // R74, KIP-853: its machine was replaced
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    cluster.active().await;
    let first = cluster.register(1).await;
    let client = cluster.client();
    assert_eq!(change(&client, VoterChange::Remove { node: voter(3, DirectoryId::NONE) }).await, Ok(()));
    cluster.stop(2).await;
    let moved = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    cluster.configs[2].bind = moved;
    cluster.configs[2].disk = Arc::new(MemDisk::new());
    cluster.configs[2].directory = DirectoryId(Uuid::from_u128(900));
    cluster.start(2).await;
    let add = VoterChange::Add { node: voter(3, cluster.configs[2].directory), address: moved.to_string() };
    assert_eq!(change(&client, add).await, Ok(()));
    until("three voters", || cluster.voters_now() == [1, 2, 3]).await;
    cluster.stop(0).await;
    let second = register(&client, 2, 1).await;
    assert!(second > first, "2 and 3 alone decide, whoever of them leads");
    // All files still name where it was: whoever follows finds it where it is.
    cluster.start(0).await;
    cluster.stop(1).await;
    let third = register(&client, 4, 1).await;
    assert!(third > second, "1 and 3 alone decide");
}

#[tokio::test]
async fn a_voter_that_was_named_at_a_wrong_address_is_added_at_the_right_one() {
    // R74: openraft keeps the address that a learner came with.
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    cluster.active().await;
    let client = cluster.client();
    assert_eq!(change(&client, VoterChange::Remove { node: voter(3, DirectoryId::NONE) }).await, Ok(()));
    cluster.stop(2).await;
    cluster.configs[2].disk = Arc::new(MemDisk::new());
    cluster.configs[2].directory = DirectoryId(Uuid::from_u128(900));
    cluster.start(2).await;
    let (node, right) = (voter(3, cluster.configs[2].directory), cluster.voters[2].1.clone());
    let add = |address: &str| VoterChange::Add { node, address: address.to_owned() };
    let (asking, wrong) = (client.clone(), add("127.0.0.1:1"));
    let waits = tokio::spawn(async move { change(&asking, wrong).await });
    let since = Instant::now();
    let observers = async || client.describe(Instant::now() + PATIENCE).await.unwrap().observers;
    while !observers().await.iter().any(|learner| learner.node == node) {
        assert!(since.elapsed() < PATIENCE, "it is not named");
    }
    // Nobody waits until it is certain that nobody is there.
    waits.abort();
    assert_eq!(change(&client, add(&right)).await, Ok(()));
    until("three voters", || cluster.voters_now() == [1, 2, 3]).await;
}

impl Cluster {
    fn files(&self, at: usize) -> recovery::QuorumFiles {
        let config = &self.configs[at];
        recovery::QuorumFiles {
            node_id: config.node_id,
            directory: config.directory,
            address: self.voters[at].1.clone(),
            disk: Arc::clone(&config.disk),
            path: config.path.clone(),
        }
    }
}

#[tokio::test]
async fn one_survivor_goes_on_alone_and_takes_on_the_others_anew() {
    // R74: two of three are wiped
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    cluster.active().await;
    let first = cluster.register(1).await;
    until("the survivor knows", || cluster.handle(2).status().next_offset.0 > first.0.unsigned_abs()).await;
    for at in 0..3 {
        cluster.stop(at).await;
    }
    let recovered = recovery::recover_alone(&cluster.files(2)).await.unwrap();
    assert_eq!(recovered.voters, [BrokerId(1), BrokerId(2), BrokerId(3)]);
    assert!(recovered.next_offset.0 > first.0.unsigned_abs(), "{recovered:?}");
    cluster.start(2).await;
    until("it is active alone", || cluster.handle(2).is_active()).await;
    assert_eq!(cluster.handle(2).status().cluster_id, recovered.cluster_id);
    let client = ControllerClient::new(&cluster.voters[2..]).unwrap();
    let second = register(&client, 2, 1).await;
    assert!(second > first);
    // The wiped one joins as a new one.
    cluster.configs[0].disk = Arc::new(MemDisk::new());
    cluster.configs[0].directory = DirectoryId(Uuid::from_u128(900));
    cluster.start(0).await;
    let address = cluster.voters[0].1.clone();
    let add = VoterChange::Add { node: voter(1, cluster.configs[0].directory), address };
    assert_eq!(change(&client, add).await, Ok(()));
    until("it has it all", || cluster.handle(0).status().next_offset.0 > second.0.unsigned_abs()).await;
}

#[tokio::test]
async fn a_sole_voter_that_starts_again_waits_for_no_lease() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.configs[0].voters.truncate(1);
    cluster.start(0).await;
    cluster.active().await;
    cluster.stop(0).await;
    // R75: a lease would outlast the patience.
    cluster.configs[0].timeouts.election_max = PATIENCE * 10;
    cluster.start(0).await;
    cluster.active().await;
}

#[tokio::test]
async fn a_backup_is_put_into_an_empty_directory_only() {
    let mut cluster = Cluster::of_three(|_| {});
    cluster.start_all().await;
    let (at, _) = cluster.active().await;
    cluster.register(1).await;
    let mut events = pin!(cluster.client().follow(ClusterId::NONE, MetadataOffset(0)));
    let mut image = MetadataImage::default();
    follow(&mut events, &mut image, cluster.handle(at).status().next_offset).await;
    for at in 0..3 {
        cluster.stop(at).await;
    }
    let backup = recovery::write_backup(&image);
    let occupied = recovery::restore(&cluster.files(0), backup.clone()).await;
    assert!(occupied.is_err_and(|error| error.to_string().contains("holds metadata already")));
    cluster.configs[0].disk = Arc::new(MemDisk::new());
    let mut damaged = backup.to_vec();
    damaged[30] ^= 1;
    let refused = recovery::restore(&cluster.files(0), damaged.into()).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("checksum")));
    let restored = recovery::restore(&cluster.files(0), backup).await.unwrap();
    assert_eq!((restored.cluster_id, restored.next_offset), (image.cluster_id(), image.next_offset()));
    cluster.start(0).await;
    until("it is active alone", || cluster.handle(0).is_active()).await;
    let again = register(&ControllerClient::new(&cluster.voters[..1]).unwrap(), 2, 1).await;
    assert!(again.0.unsigned_abs() >= image.next_offset().0, "it goes on where the backup ended");
}

type Accepting = tokio::sync::mpsc::UnboundedSender<io::Result<Box<dyn rpc::net::Link>>>;

/// A network in memory: who listens at an address gets the other ends of what is dialled there.
#[derive(Default)]
struct Memory {
    listeners: Mutex<BTreeMap<String, Accepting>>,
}

impl Memory {
    fn listen(&self, address: &str) -> Incoming {
        let (sender, links) = tokio::sync::mpsc::unbounded_channel();
        self.listeners.lock().unwrap().insert(address.to_owned(), sender);
        futures_util::stream::unfold(links, |mut links| async move { Some((links.recv().await?, links)) }).boxed()
    }
}

impl rpc::net::Dial for Memory {
    fn dial(&self, address: &str) -> futures_util::future::BoxFuture<'static, io::Result<Box<dyn rpc::net::Link>>> {
        let (mine, theirs) = tokio::io::duplex(64 << 10);
        let sent = self.listeners.lock().unwrap().get(address).is_some_and(|to| to.send(Ok(Box::new(theirs))).is_ok());
        let link = if sent {
            Ok(Box::new(mine) as Box<dyn rpc::net::Link>)
        } else {
            Err(io::ErrorKind::ConnectionRefused.into())
        };
        std::future::ready(link).boxed()
    }
}

#[tokio::test]
async fn three_voters_in_one_thread_form_a_quorum_over_a_network_in_memory_and_outlive_their_leader() {
    let memory = Arc::new(Memory::default());
    let network = Network::Other(Arc::clone(&memory) as Arc<dyn rpc::net::Dial>);
    let mut cluster = Cluster::of_three(|config| {
        config.voters = (1..=3).map(|id| (BrokerId(id), format!("voter-{id}:1"))).collect();
        config.network = network.clone();
    });
    for at in 0..3 {
        let config = cluster.configs[at].clone();
        let incoming = memory.listen(&config.voters[at].1);
        cluster.handles[at] = Some(Controller::start_within(config, incoming).await.unwrap());
    }
    let (leader, _) = cluster.active().await;
    let client = ControllerClient::over(network, &cluster.configs[0].voters).unwrap();
    register(&client, 7, 1).await;
    // Who is gone answers nobody.
    memory.listeners.lock().unwrap().remove(&cluster.configs[leader].voters[leader].1);
    cluster.stop(leader).await;
    let (next, _) = cluster.active().await;
    assert_ne!(next, leader);
    register(&client, 8, 1).await;
    let knows = |at: usize| cluster.handle(at).status().next_offset;
    until("both know it", || (0..3).filter(|at| *at != leader).all(|at| knows(at) == knows(next))).await;
}
