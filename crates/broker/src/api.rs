//! What a broker offers to the listeners in front of it: typed requests and results, without versions, names resolved to
//! ids, one error code each.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use coordinator::request::{OffsetCommitResponse, TxnOffsetCommitRequest};
use coordinator::transaction::{TransactionRequest, TransactionResponse};
use coordinator::{GroupRequest, GroupResponse};
use metadata::{ControlRequest, ControlResponse, MetadataImage};
use model::{
    BrokerId, ClusterId, DirectoryId, EpochEnd, ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch,
    ProducerId, TopicPartition,
};

use crate::budget::Charge;

pub use rpc::lag::Behind;

/// Who must have a record before a producer hears of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acks {
    /// Nobody: no response is sent.
    None,
    /// The leader.
    Leader,
    /// The whole in-sync replica set (`R20`).
    All,
}

/// The batch of one partition.
#[derive(Debug)]
pub struct ProducePartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// One record batch, unchecked, exclusively owned so that it can be stamped in place.
    pub records: BytesMut,
}

/// What a client that writes in transactions understands, by the version of its Produce (KIP-890).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TransactionSupport {
    /// It has added the partitions to its transaction by itself (below version 11).
    AddsPartitions,
    /// It does so, too, and knows TRANSACTION_ABORTABLE (version 11).
    KnowsAbortable,
    /// It leaves it to the broker (from version 12 on): each of its transactions has an epoch of its own.
    Implicit,
}

/// An append to several partitions; each succeeds or fails alone.
#[derive(Debug)]
pub struct ProduceRequest {
    /// Who must have the records.
    pub acks: Acks,
    /// Whose transaction transactional batches belong to; those are refused without it.
    pub transactional_id: Option<String>,
    /// What the client understands of transactions.
    pub transactions: TransactionSupport,
    /// How long to wait for the in-sync replicas, in milliseconds.
    pub timeout_ms: u64,
    /// The partitions, in the request's order.
    pub partitions: Vec<ProducePartition>,
}

/// A record of a batch that was refused, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordRefused {
    /// Its index in the batch.
    pub index: i32,
    /// Why.
    pub message: String,
}

/// The leader of a partition, to steer a client that asked the wrong broker (KIP-951).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CurrentLeader {
    /// The leader.
    pub leader: BrokerId,
    /// Its epoch.
    pub leader_epoch: LeaderEpoch,
}

/// What became of the batch of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Produced {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not. The post-append errors are indeterminate (`R20`).
    pub error: ErrorCode,
    /// Says more than the code, for people.
    pub message: Option<String>,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// The leader's timestamp where the topic uses LogAppendTime, else -1.
    pub log_append_time: i64,
    /// Where the log starts.
    pub log_start: Offset,
    /// Records that were the reason for INVALID_RECORD.
    pub refused: Vec<RecordRefused>,
    /// Set where `error` is NOT_LEADER_OR_FOLLOWER and the leader is known.
    pub current_leader: Option<CurrentLeader>,
}

/// Which records a consumer may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Up to the high watermark.
    ReadUncommitted,
    /// Up to the last stable offset, with the aborted transactions named (`R43`).
    ReadCommitted,
}

/// A consumer's position in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// The leader epoch that the client knows, or NONE.
    pub current_leader_epoch: LeaderEpoch,
    /// The next offset it wants.
    pub fetch_offset: Offset,
    /// The epoch of the last record that it has, or NONE: asks for a divergence check (KIP-595).
    pub last_fetched_epoch: LeaderEpoch,
    /// At most so many bytes of this partition.
    pub max_bytes: usize,
}

/// A consumer's fetch. The order of the partitions is the order in which the limits are spent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// How long to wait for `min_bytes`, in milliseconds.
    pub max_wait_ms: u64,
    /// Answer at once when so many bytes are there.
    pub min_bytes: usize,
    /// At most so many bytes in all; the first batch is sent whatever its size.
    pub max_bytes: usize,
    /// What may be seen.
    pub isolation: Isolation,
    /// The client's rack, for reading from the nearest replica (KIP-392), empty where it has none; None: it knows of leaders
    /// only.
    pub rack: Option<String>,
    /// Whether records may be given as [`FileRecords`].
    pub by_file: bool,
    /// The partitions.
    pub partitions: Vec<FetchPartition>,
}

/// What [`FileRecords::load`] gives.
pub type Loading = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// Whole batches that lie in a file, one after the other, to be sent from there. They were checked, and do not change: what
/// becomes of the log meanwhile does not show in them. They take no memory, but hold a file open.
#[expect(clippy::len_without_is_empty, reason = "there are no empty ones")]
pub trait FileRecords: Debug + Send + Sync {
    /// Bytes: there are some.
    fn len(&self) -> usize;
    /// What comes after the last record.
    fn end(&self) -> Offset;
    /// Sends some of what there is from byte `from` on, which is below `len`, to a socket that does not block; says how
    /// many bytes. None: not without waiting for a disk, they are to be loaded.
    ///
    /// # Errors
    /// `WouldBlock` where the socket takes nothing now. Anything else means that the rest will never be sent.
    fn send_to(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<Option<usize>>;
    /// Reads some of what there is from byte `from` on, not much more than half a mebibyte, and checks it anew: for a
    /// connection that does not take files, and where `send_to` asks for it. None where that is not what it was.
    fn load(&self, from: usize) -> Loading;
}

/// An aborted transaction that overlaps the records returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbortedTransaction {
    /// Whose.
    pub producer_id: ProducerId,
    /// Its first offset.
    pub first_offset: Offset,
}

/// What a fetch found.
#[derive(Debug)]
pub struct FetchAnswer {
    /// By partition, as they were asked for.
    pub partitions: Vec<Fetched>,
    /// What the records take of the broker's memory budget: to be held as long as they are.
    pub memory: Charge,
}

/// What a fetch found in one partition.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The high watermark, or -1.
    pub high_watermark: Offset,
    /// The last stable offset, or -1.
    pub last_stable_offset: Offset,
    /// Where the log starts, or -1.
    pub log_start: Offset,
    /// Where the client's log parts from this one.
    pub diverging: Option<EpochEnd>,
    /// Read from this replica instead (KIP-392).
    pub preferred_replica: Option<BrokerId>,
    /// Set where the client's view of the leader is old.
    pub current_leader: Option<CurrentLeader>,
    /// For `ReadCommitted` only.
    pub aborted: Option<Vec<AbortedTransaction>>,
    /// Whole batches, uncopied; the first may start before `fetch_offset`.
    pub records: Vec<Bytes>,
    /// The same in a file, in place of those.
    pub in_file: Option<Arc<dyn FileRecords>>,
}

impl Fetched {
    /// Bytes of records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_in_memory() + self.in_file.as_ref().map_or(0, |records| records.len())
    }

    pub(crate) fn bytes_in_memory(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }

    pub(crate) fn clear_records(&mut self) {
        self.records.clear();
        self.in_file = None;
    }
}

/// What ListOffsets can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffsetSpec {
    /// The log start (-2).
    Earliest,
    /// The high watermark or last stable offset (-1).
    Latest,
    /// The record with the largest timestamp (-3).
    MaxTimestamp,
    /// The first record of this disk (-4).
    EarliestLocal,
    /// The newest offset in remote storage (-5).
    LatestTiered,
    /// The first record at or after a time, in milliseconds since 1970.
    Timestamp(i64),
}

/// An offset asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListOffsetsPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// The leader epoch that the client knows, or NONE.
    pub current_leader_epoch: LeaderEpoch,
    /// What is asked.
    pub spec: OffsetSpec,
}

/// An offset found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedOffset {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The record's timestamp, or -1.
    pub timestamp: i64,
    /// The offset, or -1 where no record is late enough.
    pub offset: Offset,
    /// The leader epoch of that record, or -1.
    pub leader_epoch: LeaderEpoch,
}

/// Where a leader epoch ended (OffsetForLeaderEpoch).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochEndOffset {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The epoch found, or -1.
    pub leader_epoch: LeaderEpoch,
    /// Its end, or -1.
    pub end_offset: Offset,
}

/// What DeleteRecords did to one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeletedRecords {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The log start now, or -1.
    pub low_watermark: Offset,
}

/// One replica in a log directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaOnDisk {
    /// Which partition.
    pub partition: TopicPartition,
    /// Bytes in its segments.
    pub size: u64,
    /// How far it is behind the high watermark; the copy that a move makes: behind the log's end.
    pub offset_lag: i64,
    /// Whether it is such a copy, on its way to this directory.
    pub is_future: bool,
}

/// In which log directory a replica is wanted (AlterReplicaLogDirs). A request names few paths and topics for many partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaLogDir {
    /// The directory's path, as configured.
    pub path: Arc<str>,
    /// The topic's name: it need not exist yet.
    pub topic: Arc<str>,
    /// Which of its partitions.
    pub partition: PartitionIndex,
}

/// A log directory (DescribeLogDirs).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogDirDescription {
    /// NONE, or KAFKA_STORAGE_ERROR where it is offline.
    pub error: ErrorCode,
    /// Its path.
    pub path: String,
    /// Bytes of the file system, or -1.
    pub total_bytes: i64,
    /// Bytes free, or -1.
    pub usable_bytes: i64,
    /// Whether it takes no new replicas, as an operator wants it (KIP-1066).
    pub is_cordoned: bool,
    /// The replicas in it.
    pub replicas: Vec<ReplicaOnDisk>,
}

/// A producer's state in one partition (DescribeProducers).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerDescription {
    /// Who.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// The last sequence number, or -1.
    pub last_sequence: i32,
    /// When it last wrote, in milliseconds since 1970.
    pub last_timestamp: i64,
    /// The coordinator epoch of its last marker, or -1.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction, or -1.
    pub transaction_start: Offset,
}

/// DescribeProducers of one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducersDescription {
    /// Which partition.
    pub partition: TopicPartition,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The producers.
    pub producers: Vec<ProducerDescription>,
}

/// The end of a producer's transaction, to be written to the partitions that it wrote to (WriteTxnMarkers).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TransactionMarker {
    /// Whose transaction.
    pub producer_id: ProducerId,
    /// The epoch that the producer has from then on; older ones are fenced.
    pub producer_epoch: ProducerEpoch,
    /// The epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
    /// The version of the transaction protocol: from 2 on each transaction has an epoch of its own (KIP-890).
    pub transaction_version: i8,
    /// Committed, else aborted.
    pub commit: bool,
}

/// Whether the coordinator of a transaction knows that it is open and reaches these partitions (`R50`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyTransaction {
    /// Whose.
    pub transactional_id: String,
    /// Its producer id.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// Where records are to be written.
    pub partitions: Vec<TopicPartition>,
    /// Add the partitions to the transaction, beginning one if none is open (KIP-890, part 2); else only look.
    pub add: bool,
}

/// What a [`TransactionVerifier`] gives: a code a partition, in the order asked.
pub type Verified = Pin<Box<dyn Future<Output = Vec<ErrorCode>> + Send>>;

/// The way to transaction coordinators, on this broker or another.
pub trait TransactionVerifier: Send + Sync + std::fmt::Debug + 'static {
    /// Asks the coordinator, once, and answers within a bounded time: NONE, or what the coordinator says, or why it was
    /// not reached (COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, NETWORK_EXCEPTION).
    fn verify(&self, request: VerifyTransaction) -> Verified;
}

/// What coordinators there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoordinatorKind {
    /// Of groups.
    Group,
    /// Of transactional ids.
    Transaction,
}

/// Who this broker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its `node.id`.
    pub broker_id: BrokerId,
    /// Its cluster.
    pub cluster_id: ClusterId,
}

/// A controller's decision did not come: what to tell the client.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{error}: {message}")]
pub struct ControlUnavailable {
    /// REQUEST_TIMED_OUT where the outcome is unknown, NOT_CONTROLLER where nobody decided.
    pub error: ErrorCode,
    /// Why, for people.
    pub message: String,
}

/// The state of the metadata quorum (DescribeQuorum).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuorumDescription {
    /// The active controller, or -1.
    pub leader_id: i32,
    /// The quorum's term.
    pub leader_epoch: i32,
    /// How far the quorum has committed.
    pub high_watermark: i64,
    /// The voters.
    pub voters: Vec<QuorumReplica>,
    /// Who follows without a vote.
    pub observers: Vec<QuorumReplica>,
}

/// One replica of the metadata log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuorumReplica {
    /// Its `node.id`.
    pub id: i32,
    /// Its metadata directory.
    pub directory_id: DirectoryId,
    /// How far its log goes, or -1.
    pub log_end_offset: i64,
    /// When it last asked, in milliseconds since 1970, or -1.
    pub last_fetch_timestamp: i64,
    /// When it was last at the end of the leader's log, or -1.
    pub last_caught_up_timestamp: i64,
    /// `host`, `port` of its CONTROLLER listener.
    pub endpoint: Option<(String, u16)>,
}

/// A voter of the metadata quorum that comes or goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VoterChange {
    /// It comes.
    Add {
        /// Its `node.id`.
        id: BrokerId,
        /// Its metadata directory; `NONE`: the one that it introduced itself by.
        directory: DirectoryId,
        /// `host:port` of its CONTROLLER listener.
        address: String,
    },
    /// It goes.
    Remove {
        /// Its `node.id`.
        id: BrokerId,
        /// Its metadata directory; `NONE`: whichever votes.
        directory: DirectoryId,
    },
}

/// A broker as its listeners see it.
pub trait BrokerApi: Send + Sync + 'static {
    /// Who this is.
    fn identity(&self) -> Identity;

    /// The newest metadata applied here.
    fn image(&self) -> Arc<MetadataImage>;

    /// Waits while some broker seems to be gone and the metadata does not say yet whether it is: a fraction of a second at
    /// most. An answer that names leaders is better for it.
    fn departures_settled(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Brokers that were fenced a few seconds ago: still to be listed, so that clients keep what they have queued for them.
    fn recently_gone(&self) -> Vec<BrokerId> {
        Vec::new()
    }

    /// Appends before it returns, so that two requests of one connection are appended in order; the future answers when
    /// the acks are there, and must not delay the next append.
    fn produce(&self, request: ProduceRequest) -> impl Future<Output = Vec<Produced>> + Send + 'static;

    /// Reads for a consumer; waits up to `max_wait_ms` for `min_bytes`. Every partition asked for is answered.
    fn fetch(&self, request: FetchRequest) -> impl Future<Output = FetchAnswer> + Send;

    /// ListOffsets of partitions led here.
    fn list_offsets(
        &self,
        isolation: Isolation,
        partitions: Vec<ListOffsetsPartition>,
    ) -> impl Future<Output = Vec<ListedOffset>> + Send;

    /// OffsetForLeaderEpoch of a partition led here.
    fn epoch_end_offset(
        &self,
        partition: TopicPartition,
        current_leader_epoch: LeaderEpoch,
        leader_epoch: LeaderEpoch,
    ) -> EpochEndOffset;

    /// Moves log starts up (DeleteRecords); offset -1 means the high watermark. Answers when all live replicas have
    /// moved, or after `timeout_ms` with REQUEST_TIMED_OUT.
    fn delete_records(
        &self,
        partitions: Vec<(TopicPartition, Offset)>,
        timeout_ms: u64,
    ) -> impl Future<Output = Vec<DeletedRecords>> + Send;

    /// How far behind these offsets are, one answer for each, in order: leaders elsewhere are asked, for a second at most.
    fn behind(&self, positions: Vec<(TopicPartition, Offset)>) -> impl Future<Output = Vec<Behind>> + Send;

    /// The log directories and what is in them.
    fn describe_log_dirs(&self) -> Vec<LogDirDescription>;

    /// Has replicas moved to other log directories, in the background: one answer for each, in order.
    fn alter_replica_log_dirs(&self, wanted: &[ReplicaLogDir]) -> Vec<ErrorCode>;

    /// The producers that have state in a partition led here.
    fn describe_producers(&self, partition: TopicPartition) -> ProducersDescription;

    /// Writes transaction markers to partitions led here, and waits until all in-sync replicas have them (`R47`). For each
    /// marker what became of it on each partition, in the order asked; REQUEST_TIMED_OUT leaves it open.
    fn write_txn_markers(
        &self,
        markers: Vec<(TransactionMarker, Vec<TopicPartition>)>,
        timeout_ms: u64,
    ) -> impl Future<Output = Vec<Vec<(TopicPartition, ErrorCode)>>> + Send;

    /// A producer id never given out before, with epoch 0 (`R42`).
    fn new_producer_id(&self) -> impl Future<Output = Result<ProducerId, ControlUnavailable>> + Send;

    /// Has the active controller decide. On success the decision is committed and applied to this broker's image where
    /// it arrives within the time; a client that asks here next mostly sees it.
    fn control(
        &self,
        request: ControlRequest,
        timeout_ms: u64,
    ) -> impl Future<Output = Result<ControlResponse, ControlUnavailable>> + Send;

    /// The metadata quorum's state.
    fn describe_quorum(&self) -> impl Future<Output = Result<QuorumDescription, ControlUnavailable>> + Send;

    /// Has the active controller change who votes in the metadata quorum (KIP-853).
    fn change_voters(
        &self,
        change: VoterChange,
        timeout_ms: u64,
    ) -> impl Future<Output = Result<(), ControlUnavailable>> + Send;

    /// The broker that coordinates a group or a transactional id, creating the coordinators' topic where it does not exist.
    ///
    /// Answers its id, or COORDINATOR_NOT_AVAILABLE.
    fn find_coordinator(
        &self,
        kind: CoordinatorKind,
        key: &str,
    ) -> impl Future<Output = Result<BrokerId, ErrorCode>> + Send;

    /// Asks the group coordinator on this broker: COORDINATOR_LOAD_IN_PROGRESS or NOT_COORDINATOR where it is not ready
    /// or not here.
    fn group(&self, request: GroupRequest) -> impl Future<Output = Result<GroupResponse, ErrorCode>> + Send;

    /// Commits offsets of a group coordinated on this broker in a transaction, which is verified with its own coordinator
    /// (`R49`, `R50`). The request needs no guard.
    fn commit_in_transaction(
        &self,
        transactional_id: String,
        transactions: TransactionSupport,
        request: TxnOffsetCommitRequest,
    ) -> impl Future<Output = Result<OffsetCommitResponse, ErrorCode>> + Send;

    /// Asks the transaction coordinator on this broker: COORDINATOR_LOAD_IN_PROGRESS or NOT_COORDINATOR where it is not
    /// ready or not here.
    fn transaction(
        &self,
        request: TransactionRequest,
    ) -> impl Future<Output = Result<TransactionResponse, ErrorCode>> + Send;

    /// The partition of `__consumer_offsets` that holds a group's offsets; None while the topic does not exist.
    fn group_partition(&self, group_id: &str) -> Option<TopicPartition>;
}
