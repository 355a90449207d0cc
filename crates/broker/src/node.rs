//! A whole broker: its parts put together, its tasks started and stopped, and the [`BrokerApi`] that listeners call.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coordinator::request::{OffsetCommitResponse, TxnOffsetCommitRequest};
use coordinator::transaction::{TransactionRequest, TransactionResponse};
use coordinator::{GroupRequest, GroupResponse};
use futures_util::FutureExt;
use metadata::MetadataImage;
use metadata::control::{ControlRequest, ControlResponse, CreateTopic, CreateTopics};
use model::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, ProducerId, TopicPartition};
use rpc::broker::{BrokerPeer, Probe};
use rpc::controller::{CallError, ControllerClient};
use rpc::net::{Listening, Network};
use storage::{DiskPool, LogDirs};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{
    Behind, BrokerApi, ControlUnavailable, CoordinatorKind, DeletedRecords, EpochEndOffset, FetchAnswer, FetchRequest,
    Identity, Isolation, ListOffsetsPartition, ListedOffset, LogDirDescription, ProduceRequest, Produced,
    ProducersDescription, QuorumDescription, ReplicaLogDir, TransactionMarker, TransactionSupport, TransactionVerifier,
    VoterChange,
};
use crate::budget::{MemoryBudget, Standing};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::context::{Context, ContextParts};
use crate::groups::{Groups, OFFSETS_TOPIC};
use crate::lag::PeerLags;
use crate::leader_streams::LeaderStreams;
use crate::lifecycle::{BrokerState, Lifecycle, OwnController};
use crate::loading::Replicas;
use crate::markers::MarkerSender;
use crate::metrics::{BrokerMetrics, GroupLags};
use crate::peers::Peers;
use crate::producer_ids::ProducerIds;
use crate::shards::Shards;
use crate::transaction_coordinator::{CoordinatorVerifier, PeerTransactions, TRANSACTIONS_TOPIC, Transactions};
use crate::transactions::MarkerWriter;
use crate::waiters::PendingProduce;
use crate::{
    cleaner, directories, fetch, flusher, housekeeping, isr, lag, lifecycle, moves, offsets, timers, transactions,
};

/// How long what an answer rests on may take to arrive in this broker's own image before the client is answered all the
/// same.
const IMAGE_WAIT: Duration = Duration::from_millis(500);

/// How often a produce that waits looks whether this broker may still lead.
const LEADERSHIP_LOOK: Duration = Duration::from_millis(500);

/// What a broker stands on.
#[derive(Debug)]
pub struct BrokerParts {
    /// Kafka's configuration.
    pub config: BrokerConfig,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Seed of its chance.
    pub seed: u64,
    /// Threads for blocking work.
    pub disk_pool: DiskPool,
    /// Its log directories, locked.
    pub dirs: LogDirs,
    /// The way to the quorum.
    pub controller: ControllerClient,
    /// The controller of this process.
    pub own_controller: Option<Arc<dyn OwnController>>,
    /// Over which it reaches other brokers.
    pub network: Network,
    /// Where heartbeats, signs of life and the watch over other brokers run (`R76`): not where requests are served, so that
    /// load there does not make this broker look dead. None: where all else does.
    pub control: Option<Handle>,
    /// The INTERNAL listener, bound.
    pub internal: Listening,
    /// What this broker may hold in memory for others, the tail cache included.
    pub budget: Arc<MemoryBudget>,
    /// Another way to transaction coordinators than the broker's own, for tests.
    pub verifier: Option<Arc<dyn TransactionVerifier>>,
}

/// A running broker. See the module.
#[derive(Debug)]
pub struct Broker {
    context: Arc<Context>,
    lifecycle: Arc<Lifecycle>,
    groups: Arc<Shards<Groups>>,
    leader_streams: Arc<LeaderStreams>,
    transactions: Arc<Shards<Transactions>>,
    peers: Arc<Peers>,
    producer_ids: Arc<ProducerIds>,
    markers: Arc<MarkerWriter>,
    /// The way to transaction coordinators.
    verifier: Arc<dyn TransactionVerifier>,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
    /// The registration that the last clean shutdown was proven for; it stays proven until this run is registered.
    previous_epoch: BrokerEpoch,
    /// How many topics' requests this process has seeded.
    seeded: AtomicU64,
    /// What the tail cache may hold.
    _tail_cache: Standing,
}

impl Broker {
    /// Recovers the logs, then starts: registers, follows the metadata, replicates. Returns once the logs are recovered; the
    /// broker serves when [`state`](Self::state) is `Running`.
    ///
    /// # Errors
    /// Where no log directory can be read.
    pub async fn start(parts: BrokerParts) -> Result<Arc<Broker>, storage::DataDirError> {
        let context = Context::new(ContextParts {
            config: parts.config,
            clock: parts.clock,
            seed: parts.seed,
            disk_pool: parts.disk_pool,
            network: parts.network,
            dirs: parts.dirs,
            controller: parts.controller,
            own_controller: parts.own_controller,
            budget: parts.budget,
        });
        let tail_bytes = u64::try_from(context.dirs.env().tail_limit()).unwrap_or(u64::MAX);
        // R10: the proof is gone before anything else happens.
        let previous_epoch = context.dirs.take_clean_shutdown()?.unwrap_or(BrokerEpoch::NONE);
        let replicas = Replicas::recover(&context, previous_epoch != BrokerEpoch::NONE).await?;
        let lossy = replicas.lossy();
        let previous_epoch = if replicas.is_whole() { previous_epoch } else { BrokerEpoch::NONE };
        let lifecycle = Lifecycle::new();
        let groups = Shards::new(Arc::clone(&context), Groups::default());
        let writer = Arc::new(MarkerWriter { context: Arc::clone(&context), groups: Arc::clone(&groups) });
        let peers = Peers::new(Arc::clone(&context));
        let producer_ids = Arc::<ProducerIds>::default();
        let markers = MarkerSender::new(Arc::clone(&context), Arc::clone(&writer), Arc::clone(&peers));
        let kind = Transactions { producer_ids: Arc::clone(&producer_ids), markers };
        let transactions = Shards::new(Arc::clone(&context), kind);
        let verifier = Arc::new(CoordinatorVerifier { shards: Arc::clone(&transactions), peers: Arc::clone(&peers) });
        let leader_streams = Arc::new(LeaderStreams::new(Arc::clone(&context)));
        let broker = Arc::new(Broker {
            context: Arc::clone(&context),
            lifecycle: Arc::clone(&lifecycle),
            groups: Arc::clone(&groups),
            leader_streams: Arc::clone(&leader_streams),
            transactions: Arc::clone(&transactions),
            peers,
            producer_ids,
            markers: writer,
            verifier: parts.verifier.unwrap_or(verifier),
            tasks: std::sync::Mutex::default(),
            previous_epoch,
            seeded: AtomicU64::new(0),
            _tail_cache: context.budget.stand_beside(tail_bytes),
        });
        let control = parts.control.unwrap_or_else(Handle::current);
        broker.serve_peers(parts.internal);
        broker.spawn(isr::run(Arc::clone(&context)));
        broker.spawn(timers::run(Arc::clone(&context)));
        broker.spawn(flusher::sync_in_turn(Arc::clone(&context)));
        broker.spawn(flusher::keep_checkpoints(Arc::clone(&context)));
        broker.spawn(directories::watch(Arc::clone(&context)));
        broker.spawn(directories::keep_assigned(Arc::clone(&context)));
        broker.spawn(moves::run(Arc::clone(&context)));
        broker.spawn(housekeeping::retain(Arc::clone(&context)));
        broker.spawn(cleaner::run(Arc::clone(&context)));
        broker.spawn(lifecycle::follow_metadata(Arc::clone(&context), Arc::clone(&lifecycle), replicas));
        broker.spawn(lifecycle::count_turns(Arc::clone(&context)));
        broker.spawn_on(&control, lifecycle::watch_peers(Arc::clone(&context)));
        broker.spawn_on(&control, lifecycle::keep_alive(Arc::clone(&context)));
        broker.spawn_on(&control, lifecycle::keep_registered(context, lifecycle, previous_epoch, lossy));
        broker.spawn(Arc::clone(&groups).follow_leaderships());
        broker.spawn(Arc::clone(&groups).follow_topics());
        broker.spawn(groups.keep_time());
        broker.spawn(Arc::clone(&transactions).follow_leaderships());
        broker.spawn(Arc::clone(&transactions).follow_features());
        broker.spawn(transactions.keep_time());
        broker.spawn(Arc::clone(&leader_streams).follow_registrations());
        Ok(broker)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), task);
    }

    fn spawn_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(runtime.spawn(task.boxed()));
    }

    fn serve_peers(self: &Arc<Self>, listener: Listening) {
        let identity = Arc::new(PeerIdentity { context: Arc::clone(&self.context) });
        let transactions =
            Arc::new(PeerTransactions { shards: Arc::clone(&self.transactions), writer: Arc::clone(&self.markers) });
        let routes = rpc::net::merge([
            rpc::replication::routes(Arc::clone(&self.leader_streams)),
            rpc::broker::routes(identity),
            rpc::transactions::routes(transactions),
            rpc::lag::routes(Arc::new(PeerLags { context: Arc::clone(&self.context) })),
        ]);
        // Ends with its task: streams that never end by themselves would hold up an orderly end.
        self.spawn(async move {
            if let Err(error) = rpc::net::serve(listener, routes, std::future::pending()).await {
                tracing::error!(%error, "the INTERNAL listener failed");
            }
        });
    }

    /// Where the broker stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BrokerState> {
        self.lifecycle.state()
    }

    /// What an operator watches.
    #[must_use]
    pub fn metrics(&self) -> BrokerMetrics {
        BrokerMetrics::collect(&self.context)
    }

    /// How far the groups that are coordinated here are behind.
    pub async fn group_lags(&self) -> GroupLags {
        GroupLags::collect(&self.groups, &self.peers).await
    }

    /// A controlled shutdown (`R32`, `R77`): leaderships move, everything is flushed, the clean-shutdown file is written.
    pub async fn shut_down(&self) {
        self.lifecycle.shut_down().await;
        // From here on nothing gives a replica a role again, so that nothing is written behind the flush (R10).
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in &tasks {
            task.abort();
        }
        for task in &mut tasks {
            // Aborted.
            let _ = task.await;
        }
        self.stop_serving(false);
        let complete = housekeeping::complete(&self.context).await;
        let epoch = self.context.registration().map_or(self.previous_epoch, |(epoch, _)| epoch);
        if !complete || !self.context.dirs.offline().is_empty() || epoch == BrokerEpoch::NONE {
            tracing::warn!("the shutdown is not proven clean; the next start recovers the logs");
            return;
        }
        let context = Arc::clone(&self.context);
        if let Err(error) = self.context.disk_pool.run(move || context.dirs.write_clean_shutdown(epoch)).await {
            tracing::error!(%error, "cannot prove the clean shutdown; the next start recovers the logs");
        }
    }

    fn stop_serving(&self, removed: bool) {
        self.context.follower_streams.stop();
        for partition in self.context.partitions() {
            partition.stop(&self.context, removed);
        }
        self.leader_streams.stop();
        self.groups.stop();
        self.transactions.stop();
    }

    /// So that new topics are known when their request is asked again: another seed for each, from what no other process has.
    fn seed(&self, request: &mut ControlRequest) {
        if let ControlRequest::CreateTopics(create) = request {
            let number = u128::from(self.seeded.fetch_add(1, Ordering::Relaxed)) + 1;
            create.seed = self.context.config.incarnation.0.as_u128().wrapping_add(number << 32);
        }
    }

    /// As Kafka makes the topics of its coordinators.
    async fn create_coordinators_topic(&self, kind: CoordinatorKind) -> Result<(), ErrorCode> {
        let topic = coordinators_topic(&self.context.config, kind);
        let name = topic.name.clone();
        let request = ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 });
        match self.control(request, 5_000).await {
            Ok(ControlResponse::CreateTopics(created)) => match created.first().map(|topic| &topic.result) {
                Some(Err(error)) if error.code != ErrorCode::TopicAlreadyExists => {
                    tracing::warn!(%error, "cannot create {name}");
                    Err(ErrorCode::CoordinatorNotAvailable)
                }
                _ => Ok(()),
            },
            _ => Err(ErrorCode::CoordinatorNotAvailable),
        }
    }
}

/// Waits until every result is final, for at most `timeout`; then, says what the others are answered with. What ends is only
/// the waiting: the records stay, and what became of them stays open (`R20`). A leader that is cut off is in all likelihood
/// none any more, and nothing will be acknowledged here: its clients are better off looking for the next one.
async fn wait_acknowledged(context: &Context, pending: &PendingProduce, timeout: Duration) -> ErrorCode {
    let mut left = timeout;
    while !left.is_zero() {
        let turn = left.min(LEADERSHIP_LOOK);
        if tokio::time::timeout(turn, pending.wait()).await.is_ok() {
            break;
        }
        left -= turn;
        if context.is_cut_off() {
            return ErrorCode::NotLeaderOrFollower;
        }
    }
    ErrorCode::RequestTimedOut
}

fn coordinators_topic(config: &BrokerConfig, kind: CoordinatorKind) -> CreateTopic {
    let (name, partitions, replication_factor, mut configs) = match kind {
        CoordinatorKind::Group => (
            OFFSETS_TOPIC,
            config.offsets_topic_num_partitions,
            config.offsets_topic_replication_factor,
            vec![
                ("compression.type", "producer".to_owned()),
                ("segment.bytes", config.offsets_topic_segment_bytes.to_string()),
            ],
        ),
        CoordinatorKind::Transaction => (
            TRANSACTIONS_TOPIC,
            config.transaction_state_log_num_partitions,
            config.transaction_state_log_replication_factor,
            vec![
                ("compression.type", "uncompressed".to_owned()),
                ("unclean.leader.election.enable", "false".to_owned()),
                ("min.insync.replicas", config.transaction_state_log_min_isr.to_string()),
                ("segment.bytes", config.transaction_state_log_segment_bytes.to_string()),
            ],
        ),
    };
    configs.push(("cleanup.policy", "compact".to_owned()));
    CreateTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        assignments: Vec::new(),
        configs: configs.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect(),
    }
}

impl Drop for Broker {
    /// Without a shutdown before, the broker ends as a process that is killed does: nothing more is written.
    fn drop(&mut self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.stop_serving(true);
    }
}

impl BrokerApi for Broker {
    fn identity(&self) -> Identity {
        Identity { broker_id: self.context.config.broker_id, cluster_id: self.context.image().cluster_id() }
    }

    fn image(&self) -> Arc<MetadataImage> {
        self.context.image()
    }

    async fn departures_settled(&self) {
        let now = || self.context.clock.monotonic();
        if let Some(hold_ms) = self.context.departures.hold_ms(now()) {
            let settled = || self.context.departures.hold_ms(now()).is_none().then_some(());
            // The wait's end settles it too.
            let _ = self.context.wait_metadata(Duration::from_millis(hold_ms), settled).await;
        }
    }

    fn recently_gone(&self) -> Vec<BrokerId> {
        self.context.departures.recent(self.context.clock.monotonic())
    }

    fn produce(&self, request: ProduceRequest) -> impl Future<Output = Vec<Produced>> + Send + 'static {
        let pending = PendingProduce::new(request.partitions.len());
        let how = (request.acks, request.transactions);
        let mut unverified = Vec::new();
        for part in request.partitions {
            let Some(partition) = self.context.partition(part.partition) else {
                pending.push(offsets::not_produced(&self.context, part.partition), false);
                continue;
            };
            if request.transactional_id.is_none() {
                partition.produce(&self.context, request.acks, None, part.records, &pending);
            } else {
                unverified.extend(partition.produce_in_transaction(&self.context, how, part.records, &pending));
            }
        }
        if let Some(id) = request.transactional_id.filter(|_| !unverified.is_empty()) {
            transactions::verify(&self.context, &self.verifier, &id, request.transactions, unverified);
        }
        let timeout = Duration::from_millis(request.timeout_ms);
        let context = Arc::clone(&self.context);
        async move {
            let otherwise = if pending.is_done() {
                ErrorCode::RequestTimedOut
            } else {
                wait_acknowledged(&context, &pending, timeout).await
            };
            pending.take(otherwise)
        }
    }

    fn fetch(&self, request: FetchRequest) -> impl Future<Output = FetchAnswer> + Send {
        fetch::fetch(&self.context, request)
    }

    async fn list_offsets(&self, isolation: Isolation, partitions: Vec<ListOffsetsPartition>) -> Vec<ListedOffset> {
        let mut answers = Vec::with_capacity(partitions.len());
        for asked in partitions {
            answers.push(offsets::list(&self.context, isolation, asked).await);
        }
        answers
    }

    fn epoch_end_offset(
        &self,
        partition: TopicPartition,
        current_leader_epoch: LeaderEpoch,
        leader_epoch: LeaderEpoch,
    ) -> EpochEndOffset {
        match self.context.partition(partition) {
            Some(local) => local.epoch_end(current_leader_epoch, leader_epoch),
            None => EpochEndOffset {
                partition,
                error: fetch::not_here(&self.context, partition),
                leader_epoch: LeaderEpoch::NONE,
                end_offset: Offset::NONE,
            },
        }
    }

    async fn delete_records(&self, partitions: Vec<(TopicPartition, Offset)>, timeout_ms: u64) -> Vec<DeletedRecords> {
        offsets::delete_records(&self.context, partitions, timeout_ms).await
    }

    fn describe_log_dirs(&self) -> Vec<LogDirDescription> {
        offsets::describe_log_dirs(&self.context)
    }

    fn alter_replica_log_dirs(&self, wanted: &[ReplicaLogDir]) -> Vec<ErrorCode> {
        let cordoned = self.context.cordoned_directories();
        wanted.iter().map(|wanted| moves::alter(&self.context, wanted, &cordoned)).collect()
    }

    fn describe_producers(&self, partition: TopicPartition) -> ProducersDescription {
        match self.context.partition(partition) {
            Some(local) => local.describe_producers(),
            None => ProducersDescription {
                partition,
                error: fetch::not_here(&self.context, partition),
                producers: Vec::new(),
            },
        }
    }

    async fn write_txn_markers(
        &self,
        markers: Vec<(TransactionMarker, Vec<TopicPartition>)>,
        timeout_ms: u64,
    ) -> Vec<Vec<(TopicPartition, ErrorCode)>> {
        self.markers.write(markers, Duration::from_millis(timeout_ms)).await
    }

    async fn new_producer_id(&self) -> Result<ProducerId, ControlUnavailable> {
        self.producer_ids.next(&self.context).await
    }

    async fn control(
        &self,
        mut request: ControlRequest,
        timeout_ms: u64,
    ) -> Result<ControlResponse, ControlUnavailable> {
        let timed_out = |message: String| ControlUnavailable { error: ErrorCode::RequestTimedOut, message };
        if timeout_ms == 0 {
            // As Kafka: nothing is begun whose time is over.
            return Err(timed_out("the request leaves the controller no time".to_owned()));
        }
        let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout_ms);
        let unavailable = |error: CallError| timed_out(error.to_string());
        self.seed(&mut request);
        let answered = self.context.controller.ask(request, deadline).await.map_err(unavailable)?;
        // A client that asks here next sees what was decided.
        let shown = || (self.context.image().next_offset() >= answered.next_offset).then_some(());
        let _ = self.context.wait_metadata(IMAGE_WAIT, shown).await;
        Ok(answered.response)
    }

    async fn describe_quorum(&self) -> Result<QuorumDescription, ControlUnavailable> {
        offsets::describe_quorum(&self.context).await
    }

    async fn change_voters(&self, change: VoterChange, timeout_ms: u64) -> Result<(), ControlUnavailable> {
        offsets::change_voters(&self.context, change, timeout_ms).await
    }

    async fn behind(&self, positions: Vec<(TopicPartition, Offset)>) -> Vec<Behind> {
        lag::behind(&self.context, &self.peers, &positions).await
    }

    async fn find_coordinator(&self, kind: CoordinatorKind, key: &str) -> Result<BrokerId, ErrorCode> {
        let name = match kind {
            CoordinatorKind::Group => OFFSETS_TOPIC,
            CoordinatorKind::Transaction => TRANSACTIONS_TOPIC,
        };
        if self.context.image().topic_by_name(name).is_none() {
            self.create_coordinators_topic(kind).await?;
        }
        let partition = match kind {
            CoordinatorKind::Group => self.groups.partition_of(key),
            CoordinatorKind::Transaction => self.transactions.partition_of(key),
        };
        let image = self.context.image();
        let topic_id = image.topic_id(name).ok_or(ErrorCode::CoordinatorNotAvailable)?;
        let partition = partition.ok_or(ErrorCode::CoordinatorNotAvailable)?;
        let (leader, _) =
            image.leader_for(TopicPartition { topic_id, partition }).ok_or(ErrorCode::CoordinatorNotAvailable)?;
        if image.is_active(leader) { Ok(leader) } else { Err(ErrorCode::CoordinatorNotAvailable) }
    }

    fn group_partition(&self, group_id: &str) -> Option<TopicPartition> {
        let topic_id = self.context.image().topic_id(OFFSETS_TOPIC)?;
        self.groups.partition_of(group_id).map(|partition| TopicPartition { topic_id, partition })
    }

    async fn transaction(&self, request: TransactionRequest) -> Result<TransactionResponse, ErrorCode> {
        self.transactions.transaction(request).await
    }

    async fn group(&self, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        self.groups.group(request).await
    }

    async fn commit_in_transaction(
        &self,
        transactional_id: String,
        transactions: TransactionSupport,
        request: TxnOffsetCommitRequest,
    ) -> Result<OffsetCommitResponse, ErrorCode> {
        transactions::commit_offsets(&self.groups, &self.verifier, transactional_id, transactions, request).await
    }
}

#[derive(Debug)]
struct PeerIdentity {
    context: Arc<Context>,
}

impl BrokerPeer for PeerIdentity {
    fn identity(&self) -> Probe {
        Probe {
            cluster_id: self.context.image().cluster_id(),
            broker_id: self.context.config.broker_id,
            incarnation: self.context.config.incarnation,
            broker_epoch: self.context.registration().map_or(BrokerEpoch::NONE, |(epoch, _)| epoch),
        }
    }
}
