//! A broker that does what a test says, and a client that speaks to it through the gateway over a real socket.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use broker::api::*;
use broker::budget::MemoryBudget;
use broker::coordinator::request::{
    FetchedOffset, OffsetCommitResponse, TopicFetchedOffsets, TopicPartitions, TxnOffsetCommitRequest,
};
use broker::coordinator::transaction::{TransactionRequest, TransactionResponse};
use broker::coordinator::{GroupRequest, GroupResponse};
use bytes::{Bytes, BytesMut};
use gateway::{BoundListener, Gateway, GatewayConfig, GatewayHandle, Limits};
use metadata::control::{
    AlterReassignments, ControlError, CreateTopics, CreatedTopic, ElectLeaders, ElectionResult, NewTopic, Reassignment,
    ReassignmentResult,
};
use metadata::records::{BrokerRegistration, Listener, MetadataRecord, Partition, SecurityProtocol};
use metadata::{ControlRequest, ControlResponse, MetadataImage};
use model::*;
use protocol::{Request, decode_response, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) const HERE: BrokerId = BrokerId(1);
pub(crate) const LISTENER: &str = "EXTERNAL";

/// A Produce that the broker has appended: the test says when its acks are there.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) request: ProduceRequest,
    pub(crate) acked: oneshot::Sender<ErrorCode>,
}

#[derive(Debug)]
pub(crate) struct Fake {
    budget: Arc<MemoryBudget>,
    image: Mutex<Arc<MetadataImage>>,
    /// Produces with acks=all, in the order in which they were appended.
    appended: mpsc::UnboundedSender<Appended>,
    /// What a fetch finds, by partition number: high watermark and records.
    pub(crate) logs: Mutex<BTreeMap<i32, (i64, Vec<Bytes>)>>,
    /// The same, in a file.
    pub(crate) files: Mutex<BTreeMap<i32, Arc<Filed>>>,
    pub(crate) fetches: AtomicUsize,
    pub(crate) last_fetch: Mutex<Option<FetchRequest>>,
    /// Whether fetches wait for ever.
    pub(crate) fetch_waits: std::sync::atomic::AtomicBool,
    pub(crate) asked_group: Mutex<Vec<GroupRequest>>,
    pub(crate) group_error: Mutex<Option<ErrorCode>>,
    pub(crate) committed_in_transactions: Mutex<Vec<(String, TransactionSupport, TxnOffsetCommitRequest)>>,
    pub(crate) controlled: Mutex<Vec<ControlRequest>>,
    pub(crate) voters: Mutex<Vec<VoterChange>>,
    /// Whether some broker seems to be gone and nobody has decided yet.
    pub(crate) unsettled: watch::Sender<bool>,
    pub(crate) recently_gone: Mutex<Vec<BrokerId>>,
    pub(crate) asked_transaction: Mutex<Vec<TransactionRequest>>,
    /// What the transaction coordinator answers to everything.
    pub(crate) transaction_error: Mutex<Option<ErrorCode>>,
    pub(crate) markers: Mutex<Vec<(TransactionMarker, Vec<TopicPartition>)>>,
    pub(crate) wanted_dirs: Mutex<Vec<ReplicaLogDir>>,
}

/// Records that are sent by who has them, as from a file; every third time they have to be loaded.
#[derive(Debug)]
pub(crate) struct Filed {
    pub(crate) bytes: Bytes,
    /// So many of them are there by now.
    pub(crate) left: AtomicUsize,
    pub(crate) turns: AtomicUsize,
}

impl Filed {
    pub(crate) fn new(bytes: &[u8], left: usize) -> Arc<Filed> {
        let (left, turns) = (left.into(), 0.into());
        Arc::new(Filed { bytes: Bytes::copy_from_slice(bytes), left, turns })
    }
}

impl FileRecords for Filed {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn end(&self) -> Offset {
        Offset(1)
    }

    fn send_to(&self, socket: BorrowedFd<'_>, from: usize) -> std::io::Result<Option<usize>> {
        let left = self.left.load(Ordering::SeqCst);
        if from >= left {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.turns.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            return Ok(None);
        }
        let mut socket = std::net::TcpStream::from(socket.try_clone_to_owned()?);
        socket.write(&self.bytes[from..left.min(from + 300_000)]).map(Some)
    }

    fn load(&self, from: usize) -> Loading {
        let left = self.left.load(Ordering::SeqCst);
        let bytes = (from < left).then(|| self.bytes.slice(from..left.min(from + 100_000)));
        Box::pin(async move {
            tokio::task::yield_now().await;
            bytes
        })
    }
}

impl Fake {
    fn new(budget: &Arc<MemoryBudget>) -> (Arc<Fake>, mpsc::UnboundedReceiver<Appended>) {
        let (appended, appends) = mpsc::unbounded_channel();
        let fake = Fake {
            budget: Arc::clone(budget),
            image: Mutex::new(Arc::new(cluster())),
            appended,
            logs: Mutex::default(),
            files: Mutex::default(),
            fetches: AtomicUsize::new(0),
            last_fetch: Mutex::default(),
            fetch_waits: false.into(),
            asked_group: Mutex::default(),
            group_error: Mutex::default(),
            committed_in_transactions: Mutex::default(),
            controlled: Mutex::default(),
            voters: Mutex::default(),
            unsettled: watch::Sender::new(false),
            recently_gone: Mutex::default(),
            asked_transaction: Mutex::default(),
            transaction_error: Mutex::default(),
            markers: Mutex::default(),
            wanted_dirs: Mutex::default(),
        };
        (Arc::new(fake), appends)
    }

    pub(crate) fn apply(&self, records: &[MetadataRecord]) {
        let mut image = self.image.lock().unwrap();
        let mut next = (**image).clone();
        records.iter().for_each(|record| next.apply(record));
        *image = Arc::new(next);
    }

    pub(crate) fn topic(&self, name: &str, partitions: i32) -> TopicId {
        let id = topic_id(name);
        self.apply(&[MetadataRecord::Topic { id, name: name.to_owned() }]);
        for index in 0..partitions {
            self.apply(&[MetadataRecord::Partition(Box::new(partition(id, index, HERE)))]);
        }
        id
    }
}

pub(crate) fn topic_id(name: &str) -> TopicId {
    let number = name.bytes().fold(1u128, |number, byte| number.wrapping_mul(257).wrapping_add(u128::from(byte)));
    TopicId(Uuid::from_u128(number))
}

pub(crate) fn partition(topic_id: TopicId, index: i32, leader: BrokerId) -> Partition {
    Partition {
        topic_id,
        partition: PartitionIndex(index),
        replicas: vec![HERE, BrokerId(2)],
        directories: vec![DirectoryId::NONE; 2],
        adding: Vec::new(),
        removing: Vec::new(),
        isr: vec![HERE],
        elr: vec![BrokerId(2)],
        last_known_elr: Vec::new(),
        displaced: Vec::new(),
        leader,
        last_leader: leader,
        last_leader_directory: DirectoryId::NONE,
        leader_epoch: LeaderEpoch(3),
        partition_epoch: PartitionEpoch(4),
        leader_recovery_state: metadata::records::LeaderRecoveryState::Recovered,
    }
}

pub(crate) fn broker(id: i32, fenced: bool) -> MetadataRecord {
    MetadataRecord::RegisterBroker(Box::new(BrokerRegistration {
        id: BrokerId(id),
        epoch: BrokerEpoch::NONE,
        incarnation: Incarnation::NONE,
        boot: BootId::NONE,
        directories: Vec::new(),
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        listeners: vec![Listener {
            name: LISTENER.to_owned(),
            host: format!("host-{id}"),
            port: 9_090 + u16::try_from(id).unwrap(),
            security_protocol: SecurityProtocol::Plaintext,
        }],
        rack: Some(format!("zone-{id}")),
        features: BTreeMap::new(),
        fenced,
        in_controlled_shutdown: false,
    }))
}

/// Brokers 1 and 2 live, 3 is fenced.
fn cluster() -> MetadataImage {
    let mut image = MetadataImage::default();
    image.apply(&MetadataRecord::ClusterId(ClusterId(Uuid::from_u128(7))));
    image.apply(&MetadataRecord::FeatureLevel { name: "metadata.version".to_owned(), level: 1 });
    for record in [broker(1, false), broker(2, false), broker(3, true)] {
        image.apply(&record);
    }
    image
}

pub(crate) fn produced(partition: TopicPartition, error: ErrorCode) -> Produced {
    Produced {
        partition,
        error,
        message: None,
        base_offset: Offset(if error == ErrorCode::None { 5 } else { -1 }),
        log_append_time: -1,
        log_start: Offset(0),
        refused: Vec::new(),
        current_leader: (error == ErrorCode::NotLeaderOrFollower)
            .then_some(CurrentLeader { leader: BrokerId(2), leader_epoch: LeaderEpoch(9) }),
    }
}

impl BrokerApi for Fake {
    fn identity(&self) -> Identity {
        Identity { broker_id: HERE, cluster_id: self.image().cluster_id() }
    }

    fn image(&self) -> Arc<MetadataImage> {
        Arc::clone(&self.image.lock().unwrap())
    }

    async fn departures_settled(&self) {
        self.unsettled.subscribe().wait_for(|unsettled| !*unsettled).await.unwrap();
    }

    fn recently_gone(&self) -> Vec<BrokerId> {
        self.recently_gone.lock().unwrap().clone()
    }

    fn produce(&self, request: ProduceRequest) -> impl Future<Output = Vec<Produced>> + Send + 'static {
        // Backwards: the order of the answers is not promised.
        let partitions: Vec<TopicPartition> = request.partitions.iter().rev().map(|each| each.partition).collect();
        let corrupt = request.partitions.iter().any(|each| each.records.as_ref() == b"corrupt");
        let acked = (request.acks == Acks::All).then(|| {
            let (acked, wait) = oneshot::channel();
            self.appended.send(Appended { request, acked }).unwrap();
            wait
        });
        async move {
            let error = match acked {
                Some(acked) => acked.await.unwrap_or(ErrorCode::RequestTimedOut),
                None if corrupt => ErrorCode::CorruptMessage,
                None => ErrorCode::None,
            };
            partitions.into_iter().map(|partition| produced(partition, error)).collect()
        }
    }

    async fn fetch(&self, request: FetchRequest) -> FetchAnswer {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let partitions = request.partitions.clone();
        *self.last_fetch.lock().unwrap() = Some(request);
        if self.fetch_waits.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let (logs, files) = (self.logs.lock().unwrap().clone(), self.files.lock().unwrap().clone());
        let read = |asked: FetchPartition| {
            let (high_watermark, records) = logs.get(&asked.partition.partition.0).cloned().unwrap_or_default();
            let lost = asked.fetch_offset.0 > 1_000;
            Fetched {
                partition: asked.partition,
                error: if lost { ErrorCode::OffsetOutOfRange } else { ErrorCode::None },
                high_watermark: Offset(high_watermark),
                last_stable_offset: Offset(high_watermark),
                log_start: Offset(0),
                diverging: None,
                preferred_replica: None,
                current_leader: None,
                aborted: None,
                in_file: files.get(&asked.partition.partition.0).cloned().map(|file| file as Arc<dyn FileRecords>),
                records: if asked.fetch_offset.0 < high_watermark { records } else { Vec::new() },
            }
        };
        let partitions: Vec<Fetched> = partitions.into_iter().map(read).collect();
        let mut memory = self.budget.charge(0);
        partitions.iter().flat_map(|fetched| &fetched.records).for_each(|chunk| memory.add_len(chunk.len()));
        FetchAnswer { partitions, memory }
    }

    async fn list_offsets(&self, _: Isolation, partitions: Vec<ListOffsetsPartition>) -> Vec<ListedOffset> {
        let listed = |asked: ListOffsetsPartition| ListedOffset {
            partition: asked.partition,
            error: ErrorCode::None,
            timestamp: -1,
            offset: Offset(11),
            leader_epoch: LeaderEpoch(3),
        };
        partitions.into_iter().map(listed).collect()
    }

    fn epoch_end_offset(&self, partition: TopicPartition, _: LeaderEpoch, leader_epoch: LeaderEpoch) -> EpochEndOffset {
        EpochEndOffset { partition, error: ErrorCode::None, leader_epoch, end_offset: Offset(12) }
    }

    async fn delete_records(&self, partitions: Vec<(TopicPartition, Offset)>, _: u64) -> Vec<DeletedRecords> {
        let deleted = |(partition, low_watermark)| DeletedRecords { partition, error: ErrorCode::None, low_watermark };
        partitions.into_iter().map(deleted).collect()
    }

    async fn behind(&self, positions: Vec<(TopicPartition, Offset)>) -> Vec<Behind> {
        let behind = |(_, offset): (TopicPartition, Offset)| Behind {
            records: Some(12 - u64::try_from(offset.0).unwrap()),
            ms: (offset.0 > 5).then_some(700),
        };
        positions.into_iter().map(behind).collect()
    }

    fn describe_log_dirs(&self) -> Vec<LogDirDescription> {
        let image = self.image();
        let replica = |partition: &Arc<Partition>| ReplicaOnDisk {
            partition: partition.id(),
            size: 9,
            offset_lag: 0,
            is_future: false,
        };
        vec![LogDirDescription {
            error: ErrorCode::None,
            path: "/data".to_owned(),
            total_bytes: 100,
            is_cordoned: false,
            usable_bytes: 50,
            replicas: image.partitions().map(replica).collect(),
        }]
    }

    fn alter_replica_log_dirs(&self, wanted: &[ReplicaLogDir]) -> Vec<ErrorCode> {
        self.wanted_dirs.lock().unwrap().extend_from_slice(wanted);
        let known = |wanted: &ReplicaLogDir| &*wanted.path == "/data";
        wanted.iter().map(|wanted| if known(wanted) { ErrorCode::None } else { ErrorCode::LogDirNotFound }).collect()
    }

    fn describe_producers(&self, partition: TopicPartition) -> ProducersDescription {
        ProducersDescription { partition, error: ErrorCode::None, producers: Vec::new() }
    }

    async fn write_txn_markers(
        &self,
        markers: Vec<(TransactionMarker, Vec<TopicPartition>)>,
        _: u64,
    ) -> Vec<Vec<(TopicPartition, ErrorCode)>> {
        self.markers.lock().unwrap().extend(markers.clone());
        let written = |(_, partitions): (_, Vec<TopicPartition>)| {
            partitions.into_iter().map(|partition| (partition, ErrorCode::None)).collect()
        };
        markers.into_iter().map(written).collect()
    }

    async fn new_producer_id(&self) -> Result<ProducerId, ControlUnavailable> {
        Ok(ProducerId(4_000))
    }

    async fn control(&self, request: ControlRequest, _: u64) -> Result<ControlResponse, ControlUnavailable> {
        self.controlled.lock().unwrap().push(request.clone());
        match request {
            ControlRequest::CreateTopics(CreateTopics { topics, validate_only, .. }) => {
                let create = |topic: metadata::control::CreateTopic| {
                    let id = if validate_only { TopicId::NONE } else { self.topic(&topic.name, 1) };
                    let configs = topic.configs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
                    let created = NewTopic { id, partitions: 1, replication_factor: 2, configs };
                    CreatedTopic { name: topic.name, result: Ok(created) }
                };
                Ok(ControlResponse::CreateTopics(topics.into_iter().map(create).collect()))
            }
            ControlRequest::AlterReassignments(AlterReassignments { partitions, .. }) => {
                let refuse = |asked: &Reassignment| match &asked.target {
                    None => Err(ControlError::new(ErrorCode::NoReassignmentInProgress, "nothing moves")),
                    Some(_) => Ok(()),
                };
                let decide = |asked: Reassignment| ReassignmentResult {
                    result: refuse(&asked),
                    topic: asked.topic,
                    partition: asked.partition,
                };
                Ok(ControlResponse::AlterReassignments(partitions.into_iter().map(decide).collect()))
            }
            ControlRequest::ElectLeaders(ElectLeaders { partitions, .. }) => {
                let elect = |(topic, partition)| ElectionResult { topic, partition, result: Ok(()) };
                let elected = partitions.into_iter().flatten().map(elect);
                Ok(ControlResponse::ElectLeaders(elected.collect()))
            }
            ControlRequest::UnregisterBroker { broker: BrokerId(9) } => {
                let error = ControlError::new(ErrorCode::BrokerIdNotRegistered, "there is none");
                Ok(ControlResponse::Refused(error))
            }
            ControlRequest::UnregisterBroker { .. } => Ok(ControlResponse::Done),
            _ => {
                let message = "nobody decides here".to_owned();
                Err(ControlUnavailable { error: ErrorCode::NotController, message })
            }
        }
    }

    async fn describe_quorum(&self) -> Result<QuorumDescription, ControlUnavailable> {
        let voter = QuorumReplica { id: 1, endpoint: Some(("host-1".to_owned(), 7_000)), ..Default::default() };
        Ok(QuorumDescription {
            leader_id: 1,
            leader_epoch: 2,
            high_watermark: 3,
            voters: vec![voter],
            observers: vec![],
        })
    }

    async fn change_voters(&self, change: VoterChange, _: u64) -> Result<(), ControlUnavailable> {
        self.voters.lock().unwrap().push(change);
        Ok(())
    }

    async fn find_coordinator(&self, kind: CoordinatorKind, key: &str) -> Result<BrokerId, ErrorCode> {
        match (kind, key) {
            (_, "nowhere") => Err(ErrorCode::CoordinatorNotAvailable),
            (_, "fenced") => Ok(BrokerId(3)),
            (CoordinatorKind::Group, _) => Ok(BrokerId(2)),
            (CoordinatorKind::Transaction, _) => Ok(BrokerId(1)),
        }
    }

    async fn transaction(&self, request: TransactionRequest) -> Result<TransactionResponse, ErrorCode> {
        let error = self.transaction_error.lock().unwrap().unwrap_or(ErrorCode::None);
        let answer = request.refused(error);
        self.asked_transaction.lock().unwrap().push(request);
        Ok(answer)
    }

    fn group_partition(&self, _: &str) -> Option<TopicPartition> {
        let topic_id = self.image().topic_id("__consumer_offsets")?;
        Some(TopicPartition { topic_id, partition: PartitionIndex(1) })
    }

    async fn group(&self, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        let error = self.group_error.lock().unwrap().unwrap_or(ErrorCode::None);
        let mut answer = request.refused(error);
        if let (GroupResponse::OffsetFetch(fetched), GroupRequest::OffsetFetch(asked)) = (&mut answer, &request)
            && error == ErrorCode::None
        {
            fetched.topics = asked.topics.iter().flatten().map(sixth_offsets).collect();
        }
        self.asked_group.lock().unwrap().push(request);
        if error == ErrorCode::None { Ok(answer) } else { Err(error) }
    }

    async fn commit_in_transaction(
        &self,
        transactional_id: String,
        transactions: TransactionSupport,
        request: TxnOffsetCommitRequest,
    ) -> Result<OffsetCommitResponse, ErrorCode> {
        let error = self.group_error.lock().unwrap().unwrap_or(ErrorCode::None);
        let answer = request.commit.refused(error);
        self.committed_in_transactions.lock().unwrap().push((transactional_id, transactions, request));
        if error == ErrorCode::None { Ok(answer) } else { Err(error) }
    }
}

/// Each partition's committed offset is six times its number.
fn sixth_offsets(asked: &TopicPartitions) -> TopicFetchedOffsets {
    let fetched = |partition: &PartitionIndex| FetchedOffset {
        partition: *partition,
        offset: Offset(i64::from(partition.0) * 6),
        leader_epoch: LeaderEpoch::NONE,
        metadata: String::new(),
        error: ErrorCode::None,
    };
    let partitions = asked.partitions.iter().map(fetched).collect();
    TopicFetchedOffsets { name: asked.name.clone(), topic_id: asked.topic_id, partitions }
}

/// The gateway over the fake broker.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) broker: Arc<Fake>,
    pub(crate) appends: mpsc::UnboundedReceiver<Appended>,
    pub(crate) handle: GatewayHandle,
    pub(crate) address: SocketAddr,
    pub(crate) budget: Arc<MemoryBudget>,
}

impl Served {
    pub(crate) async fn with(limits: Limits) -> Served {
        Served::from(limits, std::future::ready(())).await
    }

    /// Served from `ready` on.
    pub(crate) async fn from(limits: Limits, ready: impl Future<Output = ()> + Send + 'static) -> Served {
        let budget = MemoryBudget::new(limits.memory_bytes);
        let (broker, appends) = Fake::new(&budget);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let file = [("log.retention.hours", "2"), ("broker.rack", "zone-1")];
        let file = file.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let listeners = vec![BoundListener { name: LISTENER.to_owned(), socket: socket.into() }];
        let (file, used) = (Arc::new(file), Arc::clone(&budget));
        let config = GatewayConfig { listeners, limits, file, session_seed: 42, budget };
        let handle = Gateway::start(config, Arc::clone(&broker), ready);
        Served { broker, appends, handle, address, budget: used }
    }

    pub(crate) async fn start() -> Served {
        Served::with(Limits::default()).await
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), next_id: 0 }
    }
}

/// A client that sends what it is told.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    next_id: i32,
}

impl Client {
    /// Sends a request and gives its correlation id.
    pub(crate) async fn send<R: Request>(&mut self, request: &R, version: i16) -> i32 {
        self.next_id += 1;
        let frame = encode_request(request, version, self.next_id, Some("tester")).unwrap();
        self.stream.write_all(&frame.into_bytes()).await.unwrap();
        self.next_id
    }

    /// The next frame; none if the connection was closed.
    pub(crate) async fn frame(&mut self) -> Option<BytesMut> {
        let size = self.stream.read_i32().await.ok()?;
        let mut frame = BytesMut::zeroed(usize::try_from(size).unwrap());
        self.stream.read_exact(&mut frame).await.ok()?;
        Some(frame)
    }

    pub(crate) async fn receive<R: Request>(&mut self, version: i16) -> (i32, R::Response) {
        let frame = self.frame().await.expect("an answer");
        decode_response::<R::Response>(frame, version).expect("an answer of this version")
    }

    /// A request and its answer.
    pub(crate) async fn ask<R: Request>(&mut self, request: &R, version: i16) -> R::Response {
        let id = self.send(request, version).await;
        let (answered, response) = self.receive::<R>(version).await;
        assert_eq!(answered, id, "answers come in the order of the requests");
        response
    }

    /// Whether the gateway closes the connection without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is a close as well.
        !matches!(self.stream.read_to_end(&mut rest).await, Ok(count) if count > 0)
    }
}
