//! The adapter over openraft: everything of the quorum that is not metadata.
//!
//! Reading order: [`types`] and [`runtime`] (openraft's parameters), [`codec`], [`log_store`] and [`state_machine`] (what is
//! kept), [`image_keeper`] (its copy in sled), [`network`] and [`server`] (messages out and in), [`contact`] (whether this
//! node is active, and when it heard of a leader), [`election`], [`formation`] and [`members`] (the tasks that openraft
//! leaves to us), [`recovery`] (a quorum of one, by hand).
//!
//! Invariant: no other module knows openraft.

pub(crate) mod codec;
pub(crate) mod contact;
pub(crate) mod election;
pub(crate) mod formation;
pub(crate) mod image_keeper;
pub(crate) mod log_store;
pub(crate) mod members;
pub(crate) mod network;
pub mod recovery;
pub(crate) mod runtime;
pub(crate) mod server;
pub(crate) mod state_machine;
pub(crate) mod types;

#[cfg(test)]
mod store_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use metadata::MetadataImage;
use model::{BrokerId, MetadataOffset, Rules};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{Config, SnapshotPolicy};
use rpc::controller::{QuorumInfo, QuorumReplica, Tenure};
use rpc::raft::QuorumNode;
use storage::DiskPool;
use storage::disk::Disk;
use storage::patience::{Patience, PatientDisk};
use storage::quorum_log::QuorumError;
use storage::quorum_snapshot::QuorumSnapshots;
use tokio::sync::watch;

use crate::metadata_log::MetadataLog;
use crate::raft::contact::Contact;
use crate::raft::image_keeper::ImageKeeper;
use crate::raft::log_store::{LogStore, StoreError};
use crate::raft::network::{Links, Network};
use crate::raft::state_machine::{Position, StateMachine};
use crate::raft::types::{Applied, Batch, NodeId, Raft, RaftMetrics, RecordBytes, SnapshotMeta};

/// How long things take in a quorum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Between two heartbeats of a leader; also the longest that sending an entry may take.
    pub heartbeat: Duration,
    /// The shortest election timeout: what is waited at random beyond a lease is a part of it.
    pub election_min: Duration,
    /// The longest: the lease in which a voter refuses all others (`R75`).
    pub election_max: Duration,
    /// How long a voter whose disk was wiped must be silent before its successor replaces it (`R74`).
    pub replace_after: Duration,
    /// How long each of two probes of a broker that is believed gone may take (`R76`).
    pub probe: Duration,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot.
    pub snapshot_keep: u64,
    /// Batches of metadata kept in memory for those who follow it, in bytes: who is further behind is told all anew.
    pub followed_bytes: usize,
}

impl Default for Timeouts {
    /// For slow disks: a failover takes 0.5 to 0.8 s.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
            replace_after: Duration::from_secs(9),
            probe: Duration::from_millis(200),
            snapshot_every: 5_000,
            snapshot_keep: 1_000,
            followed_bytes: 16 << 20,
        }
    }
}

/// Why a quorum's member cannot start.
#[derive(thiserror::Error, Debug)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Files(#[from] QuorumError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{path}: the log is purged up to entry {purged}, but the newest snapshot ends at {snapshot:?}; move the metadata directory aside to start as a new voter"
    )]
    SnapshotMissing { path: PathBuf, purged: u64, snapshot: Option<u64> },
    #[error("openraft does not start: {0}")]
    Raft(String),
}

/// What a member starts with.
#[derive(Clone, Debug)]
pub(crate) struct QuorumConfig {
    pub(crate) me: QuorumNode,
    pub(crate) voters: Vec<(BrokerId, String)>,
    pub(crate) disk: Arc<dyn Disk>,
    /// Who waits where that has no space.
    pub(crate) waits: Waits,
    pub(crate) dir: PathBuf,
    /// Whether the image is also kept in sled, on the machine's own file system.
    pub(crate) keep_image: bool,
    pub(crate) pool: DiskPool,
    pub(crate) network: rpc::net::Network,
    pub(crate) timeouts: Timeouts,
    pub(crate) rules: Rules,
}

/// Who waits for space. openraft's core stands still while its log or vote is written, and goes on beside a snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits {
    /// For the log and the vote.
    pub(crate) log: Arc<Patience>,
    pub(crate) snapshots: Arc<Patience>,
}

impl Waits {
    /// Nobody ever waits.
    pub(crate) fn never() -> Waits {
        let waits = Waits::default();
        waits.end();
        waits
    }

    /// From now on nobody waits.
    pub(crate) fn end(&self) {
        self.log.end();
        self.snapshots.end();
    }
}

/// A member of the quorum.
pub(crate) struct Quorum {
    pub(crate) me: NodeId,
    pub(crate) voters: Vec<(BrokerId, String)>,
    pub(crate) timeouts: Timeouts,
    pub(crate) raft: Raft,
    pub(crate) contact: Contact,
    pub(crate) links: Arc<Links>,
    pub(crate) log_store: LogStore,
    pub(crate) waits: Waits,
    pub(crate) machine: StateMachine,
    pub(crate) published: Arc<MetadataLog>,
    /// Whether this node had nothing at all when it started.
    pub(crate) was_blank: bool,
    pub(crate) meetings: Mutex<formation::Meetings>,
    /// Held while the membership is changed.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Leaders that were elected here.
    pub(crate) elections: Elections,
    reports: watch::Sender<u64>,
}

/// Counts elections of partitions' leaders.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    pub(crate) all: AtomicU64,
    pub(crate) unclean: AtomicU64,
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quorum").field("me", &self.me).field("contact", &self.contact).finish_non_exhaustive()
    }
}

/// Between two writes of the copy in sled at least; at most; and so many times what the last one took: a start that changes a
/// hundred thousand partitions thrice writes them once or twice.
const KEEP_PAUSE: Duration = Duration::from_millis(500);
const KEEP_PAUSE_MAX: Duration = Duration::from_secs(10);
const KEEP_SHARE: u32 = 10;

/// What became of a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proposed {
    /// It is part of the image, which stands at this offset.
    Applied(MetadataOffset),
    /// It changed nothing and never will (`R66`).
    Superseded,
    /// Unknown, and this tenure is over for good (`R67`).
    TenureOver,
    /// Unknown, and openraft does not work any more.
    Dead,
}

impl Quorum {
    /// Opens the files and starts openraft.
    pub(crate) async fn open(config: QuorumConfig) -> Result<Quorum, OpenError> {
        let published = Arc::new(MetadataLog::keeping(config.timeouts.followed_bytes));
        let pool = config.pool.clone();
        let opening = (config.clone(), Arc::clone(&published));
        let (log_store, machine) = pool.run(move || open_stores(&opening.0, opening.1)).await?;
        let was_blank = log_store.last().is_none() && !log_store.has_voted();
        let addresses: BTreeMap<i32, String> = config.voters.iter().map(|(id, a)| (id.0, a.clone())).collect();
        let links = Arc::new(Links::new(config.network, config.me, addresses));
        let raft_config = raft_config(&config.timeouts)?;
        let me = NodeId::new(config.me);
        let network = Network { links: Arc::clone(&links) };
        let raft = Raft::new(me, Arc::new(raft_config), network, log_store.clone(), machine.clone()).await;
        let raft = raft.map_err(|error| OpenError::Raft(error.to_string()))?;
        let contact = Contact::new(raft.metrics().borrow().clone(), config.timeouts.election_max, config.rules);
        Ok(Quorum {
            me,
            voters: config.voters,
            timeouts: config.timeouts,
            raft,
            contact,
            links,
            log_store,
            waits: config.waits,
            machine,
            published,
            was_blank,
            meetings: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            elections: Elections::default(),
            reports: watch::Sender::new(0),
        })
    }

    /// Whether openraft's core stands still until there is space for its log or vote, or for a snapshot that its log goes on
    /// behind: nothing is to be asked of it meanwhile,
    /// as it would do all of that afterwards.
    pub(crate) fn waits_for_space(&self) -> bool {
        self.waits.log.is_waiting() || (self.waits.snapshots.is_waiting() && self.log_store.awaits_snapshot())
    }

    /// Takes openraft's metrics as they come; returns when openraft has stopped.
    pub(crate) async fn watch_metrics(&self) {
        let mut metrics = self.raft.metrics();
        loop {
            self.contact.report(metrics.borrow_and_update().clone());
            self.reports.send_modify(|count| *count += 1);
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Changes with every report of openraft.
    pub(crate) fn reports(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    /// Keeps the copy in sled up to date.
    pub(crate) async fn keep_image(&self) {
        let mut moved = self.published.watch();
        let mut pause = KEEP_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let began = tokio::time::Instant::now();
            self.machine.keep().await;
            pause = (began.elapsed() * KEEP_SHARE).clamp(KEEP_PAUSE, KEEP_PAUSE_MAX);
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    /// Appends records that were decided in `tenure` on an image at `base`, and waits until what becomes of them is known.
    pub(crate) async fn propose(&self, tenure: Tenure, base: MetadataOffset, records: Bytes) -> Proposed {
        let batch =
            Batch { term: tenure.term, node: NodeId::new(tenure.node), base: base.0, records: RecordBytes(records) };
        match self.raft.client_write(batch).await {
            Ok(written) => match written.data {
                Applied::Records { next_offset } => Proposed::Applied(MetadataOffset(next_offset)),
                Applied::Superseded | Applied::Nothing => Proposed::Superseded,
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Proposed::TenureOver,
            Err(error) => {
                tracing::error!(%error, "a proposal failed");
                Proposed::Dead
            }
        }
    }

    /// Whether a quorum confirms, in answers to messages sent from now on, that nobody else leads, and all that was
    /// committed before is applied here (`R71`).
    pub(crate) async fn is_current(&self, timeout: Duration) -> bool {
        // What is dropped late is only the waiting.
        matches!(tokio::time::timeout(timeout, self.raft.ensure_linearizable()).await, Ok(Ok(_)))
    }

    /// Whom this node follows, and its address.
    pub(crate) fn leader(&self) -> Option<(BrokerId, String)> {
        let metrics = self.contact.metrics();
        let leader = metrics.current_leader?;
        let member = metrics.membership_config.membership().get_node(&leader)?;
        Some((BrokerId(leader.id), self.links.address(leader, member)))
    }

    pub(crate) fn image(&self) -> MetadataImage {
        self.published.image()
    }

    /// What is known of the quorum (DescribeQuorum).
    pub(crate) fn describe(&self) -> QuorumInfo {
        let metrics = self.contact.metrics();
        let membership = metrics.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let replica = |(node, member): (&NodeId, &types::Member)| self.describe_member(&metrics, *node, member);
        let (voting, observing): (Vec<_>, Vec<_>) = membership.nodes().partition(|(node, _)| voters.contains(node));
        QuorumInfo {
            leader: metrics.current_leader.map_or(BrokerId::NONE, |leader| BrokerId(leader.id)),
            term: metrics.current_term,
            active: self.contact.active().is_some(),
            next_offset: self.image().next_offset(),
            voters: voting.into_iter().map(replica).collect(),
            observers: observing.into_iter().map(replica).collect(),
        }
    }

    fn describe_member(&self, metrics: &RaftMetrics, node: NodeId, member: &types::Member) -> QuorumReplica {
        let replicated = metrics.replication.as_ref().and_then(|replication| replication.get(&node).copied().flatten());
        let log_end = if node == self.me { metrics.last_log_index } else { replicated.map(|id| id.index) };
        let acknowledged = self.links.acknowledged(node).map(|at| at.elapsed());
        let acknowledged = if node == self.me { Some(Duration::ZERO) } else { acknowledged };
        QuorumReplica {
            node: node.quorum_node(),
            address: self.links.address(node, member),
            log_end: log_end.map_or(0, |index| index + 1),
            last_acknowledged_ms: acknowledged.and_then(|age| u64::try_from(age.as_millis()).ok()),
        }
    }

    /// Whether this node has neither an entry nor a snapshot (`R74`).
    pub(crate) fn is_empty(&self) -> bool {
        let metrics = self.contact.metrics();
        self.log_store.last().is_none() && metrics.snapshot.is_none() && metrics.last_applied.is_none()
    }

    /// Stops openraft; what was acknowledged is durable.
    pub(crate) async fn shutdown(&self) {
        if self.raft.shutdown().await.is_err() {
            tracing::warn!("openraft's core had panicked");
        }
        self.machine.keep().await;
        self.machine.close();
    }
}

/// Opens log, vote, snapshots and the copy in sled, and chooses where to start from (`R72`).
pub(crate) fn open_stores(
    config: &QuorumConfig,
    published: Arc<MetadataLog>,
) -> Result<(LogStore, StateMachine), OpenError> {
    let over = |patience| PatientDisk::over(Arc::clone(&config.disk), Arc::clone(patience));
    let (disk, dir) = (&over(&config.waits.log), &config.dir);
    disk.create_dir_all(dir).map_err(|source| QuorumError::Io { path: dir.clone(), source })?;
    let snapshots = QuorumSnapshots::open(over(&config.waits.snapshots), &dir.join("snapshots"))?;
    let newest = snapshots.newest()?;
    let meta: Option<SnapshotMeta> =
        newest.as_ref().map(|s| codec::from_json(&s.meta)).transpose().map_err(StoreError::from)?;
    let snapshot_id = meta.as_ref().and_then(|meta| meta.last_log_id);
    let log_store = LogStore::open(disk, dir, config.pool.clone(), snapshot_id, config.rules)?;
    log_store.forget_leadership()?;
    let bounds = log_store.bounds()?;
    if bounds.purged > snapshot_id {
        return Err(OpenError::SnapshotMissing {
            path: dir.clone(),
            purged: bounds.purged.map_or(0, |id| id.index),
            snapshot: snapshot_id.map(|id| id.index),
        });
    }
    let mut start = (Position::default(), MetadataImage::default());
    if let (Some(meta), Some(snapshot)) = (meta, newest) {
        let image = state_machine::image_of(snapshot.data)?;
        let position = Position {
            applied: meta.last_log_id,
            membership: meta.last_membership,
            next_offset: image.next_offset().0,
        };
        start = (position, image);
    }
    let keeper = open_keeper(config, dir, &log_store, &mut start);
    let (position, image) = start;
    tracing::info!(applied = ?position.applied, next_offset = %image.next_offset(), "the metadata is loaded");
    let machine =
        StateMachine::new(position, image, snapshots, log_store.clone(), config.pool.clone(), published, keeper);
    Ok((log_store, machine))
}

/// Opens the copy in sled; where it is ahead of the snapshot and agrees with the log, `start` becomes it (`R72`, `R73`).
fn open_keeper(
    config: &QuorumConfig,
    dir: &Path,
    log_store: &LogStore,
    start: &mut (Position, MetadataImage),
) -> ImageKeeper {
    if !config.keep_image {
        return ImageKeeper::nowhere();
    }
    let (keeper, found) = ImageKeeper::open(&dir.join("image.sled"), config.me.directory.0.as_bytes());
    let agrees = |position: &Position| position.applied.is_some_and(|id| log_store.has(&id));
    match found {
        Some((position, image)) if position == start.0 => *start = (position, image),
        Some((position, image)) if position.applied > start.0.applied && agrees(&position) => {
            *start = (position, image);
        }
        Some(_) => keeper.start_over(),
        None => {}
    }
    keeper
}

fn raft_config(timeouts: &Timeouts) -> Result<Config, OpenError> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "ottla".to_owned(),
        heartbeat_interval: ms(timeouts.heartbeat),
        election_timeout_min: ms(timeouts.election_min),
        election_timeout_max: ms(timeouts.election_max),
        // Elections are ours (`R75`).
        enable_elect: false,
        install_snapshot_timeout: 30_000,
        snapshot_max_chunk_size: 1 << 20,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timeouts.snapshot_every),
        max_in_snapshot_log_to_keep: timeouts.snapshot_keep,
        // Above the snapshot policy's count, or a follower would be sent a snapshot for ever.
        replication_lag_threshold: 2 * (timeouts.snapshot_every + timeouts.snapshot_keep),
        ..Config::default()
    };
    config.validate().map_err(|error| OpenError::Raft(error.to_string()))
}
