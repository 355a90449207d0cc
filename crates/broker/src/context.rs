//! What every part of a broker shares: who it is, the newest metadata, the partitions, and the queues of its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use metadata::configs::cordoned_log_dirs;
use metadata::{ControlRequest, ControlResponse, MetadataImage};
use model::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Offset, PartitionIndex, Time, TopicId, TopicPartition};
use rpc::controller::{Answered, CallError, ControllerClient};
use rpc::net::Network;
use storage::{DirHealth, DiskPool, LogDir, LogDirs};
use tokio::sync::{Notify, watch};

use crate::budget::MemoryBudget;
use crate::catch_up::Rounds;
use crate::cleaner::CleanerState;
use crate::clock::{Chance, Clock, ClockWatch, Judged};
use crate::config::BrokerConfig;
use crate::counters::{Counter, IsrCounters};
use crate::departures::Departures;
use crate::directories::Misplaced;
use crate::flusher::FlushQueue;
use crate::follower_streams::FollowerStreams;
use crate::groups::OFFSETS_TOPIC;
use crate::isr::IsrProposals;
use crate::leaderships::{LeadershipBoard, Leaderships};
use crate::lifecycle::OwnController;
use crate::moves::Moves;
use crate::partition::{Checkpointed, Partition};
use crate::throttle::Throttles;
use crate::timers::Timers;
use crate::transaction_coordinator::TRANSACTIONS_TOPIC;

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) chance: Chance,
    pub(crate) clock_watch: ClockWatch,
    pub(crate) disk_pool: DiskPool,
    /// Over which it reaches other brokers.
    pub(crate) network: Network,
    pub(crate) dirs: LogDirs,
    pub(crate) controller: ControllerClient,
    pub(crate) own_controller: Option<Arc<dyn OwnController>>,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) follower_streams: FollowerStreams,
    pub(crate) isr: IsrProposals,
    pub(crate) isr_counters: IsrCounters,
    /// How often all of the metadata was told anew.
    pub(crate) metadata_snapshots: Counter,
    pub(crate) timers: Timers,
    /// Holds back what brings replicas into sync.
    pub(crate) throttles: Throttles,
    pub(crate) flusher: FlushQueue,
    /// For tasks that begin where a thread of the disk pool may be running.
    pub(crate) runtime: tokio::runtime::Handle,
    partitions: RwLock<BTreeMap<TopicPartition, Arc<Partition>>>,
    /// The newest image, and who waits for a newer one.
    image: watch::Sender<Arc<MetadataImage>>,
    registration: Mutex<Option<BrokerEpoch>>,
    /// Opens of partitions made so far by this process, in steps of 2^32 (`R57`).
    opens: AtomicU64,
    suspects: Mutex<Vec<BrokerId>>,
    /// What clients are told of brokers that seem to be gone.
    pub(crate) departures: Departures,
    pub(crate) suspected: Notify,
    /// Changes of leadership of the coordinators' topics.
    leaderships: Leaderships,
    /// Replicas whose log failed in this process while the directory is in use (`R78`).
    failed_replicas: Mutex<BTreeSet<TopicPartition>>,
    /// Of those, the ones that a read found damaged, and whether the controller has heard: they are opened anew then.
    damaged: Mutex<BTreeMap<TopicPartition, bool>>,
    /// Replicas that were found to be gone, and the heartbeats have not told yet (`R78`).
    found_lossy: Mutex<BTreeSet<TopicPartition>>,
    /// Replicas that were here by name and cannot be opened, or are gone, and the offset below which they had records.
    pub(crate) lost: Mutex<BTreeMap<(String, PartitionIndex), Lost>>,
    /// What the checkpoints hold of logs that the metadata has not claimed yet.
    pub(crate) unclaimed: Mutex<Unclaimed>,
    /// Moves between log directories.
    pub(crate) moves: Moves,
    /// Replicas that are elsewhere than the metadata says (KIP-858).
    pub(crate) misplaced: Misplaced,
    /// Held while the checkpoints are written.
    pub(crate) checkpoints: Mutex<()>,
    pub(crate) cleaner: CleanerState,
    /// When a controller answered last.
    answered: AtomicU64,
    /// How far the metadata went when one answered again after it was cut off.
    rejoined_at: AtomicU64,
    /// Asks how far the metadata is, for those who need to know.
    rounds: Rounds,
    /// Counts up with each wish for it, as long as the threads that serve requests get anywhere.
    pub(crate) turns: AtomicU64,
    pub(crate) turn_wanted: Notify,
    /// They have not for long: this broker is of no use as a leader, although its heartbeats go on.
    pub(crate) stuck: AtomicBool,
    /// Wakes the heartbeat before its time.
    pub(crate) heartbeat_wanted: Notify,
    /// The controller has heard of damaged replicas.
    pub(crate) reopening_wanted: Notify,
}

/// A broker that has had no answer of a controller for so long, of which it wants several a second, is cut off.
const CUT_OFF_MS: u64 = 1_500;

/// By replica and directory: the topic's name, and what the checkpoints hold.
pub(crate) type Unclaimed = BTreeMap<(TopicPartition, DirectoryId), (Arc<str>, Checkpointed)>;

/// A replica that was here and is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost {
    /// Where it was.
    pub(crate) directory: DirectoryId,
    /// Below it, it had records.
    pub(crate) promised: Offset,
    /// Which topic's it was, as far as it is known.
    pub(crate) topic_id: Option<TopicId>,
}

/// What a [`Context`] is made of.
pub(crate) struct ContextParts {
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seed: u64,
    pub(crate) disk_pool: DiskPool,
    /// Over which it reaches other brokers.
    pub(crate) network: Network,
    pub(crate) dirs: LogDirs,
    pub(crate) controller: ControllerClient,
    pub(crate) own_controller: Option<Arc<dyn OwnController>>,
    pub(crate) budget: Arc<MemoryBudget>,
}

impl Context {
    pub(crate) fn new(parts: ContextParts) -> Arc<Context> {
        let clock_watch = ClockWatch::new(parts.clock.monotonic(), parts.clock.wall());
        Arc::new(Context {
            config: parts.config,
            clock_watch,
            clock: parts.clock,
            chance: Chance::new(parts.seed),
            disk_pool: parts.disk_pool,
            network: parts.network,
            dirs: parts.dirs,
            controller: parts.controller,
            own_controller: parts.own_controller,
            budget: parts.budget,
            follower_streams: FollowerStreams::default(),
            isr: IsrProposals::default(),
            isr_counters: IsrCounters::default(),
            metadata_snapshots: Counter::default(),
            timers: Timers::default(),
            throttles: Throttles::default(),
            flusher: FlushQueue::default(),
            runtime: tokio::runtime::Handle::current(),
            partitions: RwLock::default(),
            image: watch::Sender::new(Arc::new(MetadataImage::default())),
            registration: Mutex::new(None),
            opens: AtomicU64::new(0),
            suspects: Mutex::default(),
            departures: Departures::default(),
            suspected: Notify::new(),
            leaderships: Leaderships::new(&[OFFSETS_TOPIC, TRANSACTIONS_TOPIC]),
            failed_replicas: Mutex::default(),
            damaged: Mutex::default(),
            reopening_wanted: Notify::new(),
            found_lossy: Mutex::default(),
            lost: Mutex::default(),
            unclaimed: Mutex::default(),
            moves: Moves::default(),
            misplaced: Misplaced::default(),
            checkpoints: Mutex::new(()),
            cleaner: CleanerState::default(),
            answered: AtomicU64::new(0),
            rejoined_at: AtomicU64::new(0),
            rounds: Rounds::default(),
            turns: AtomicU64::new(0),
            turn_wanted: Notify::new(),
            stuck: AtomicBool::new(false),
            heartbeat_wanted: Notify::new(),
        })
    }

    /// Asks the active controller.
    ///
    /// # Errors
    /// No answer in time: what became of the request is unknown.
    pub(crate) async fn ask(&self, request: ControlRequest, timeout: Duration) -> Result<ControlResponse, CallError> {
        self.ask_how_far(request, timeout).await.map(|answered| answered.response)
    }

    async fn ask_how_far(&self, request: ControlRequest, timeout: Duration) -> Result<Answered, CallError> {
        let answered = self.controller.ask(request, tokio::time::Instant::now() + timeout).await?;
        if self.is_unheard() {
            self.rejoined_at.store(answered.next_offset.0, Ordering::Relaxed);
        }
        self.answered.store(self.clock.monotonic().0, Ordering::Release);
        Ok(answered)
    }

    /// Waits until the image has all that was decided before this was called, `limit` at most; whether it has. Only the active
    /// controller knows (`R68`): who still leads by that image had no successor until then.
    pub(crate) async fn catch_up(&self, limit: Duration) -> bool {
        let Some((epoch, _)) = self.registration() else { return false };
        let alive = ControlRequest::Alive { broker: self.config.broker_id, epoch };
        let ask = async { self.ask_how_far(alive, limit).await.map(|answered| answered.next_offset) };
        let caught_up = async {
            let at = self.rounds.join(ask).await.ok()?;
            self.images().wait_for(|image| image.next_offset() >= at).await.ok().map(drop)
        };
        tokio::time::timeout(limit, caught_up).await.is_ok_and(|done| done.is_some())
    }

    /// Gives a sign of life to the controller of this process; whether that is the active one, and has heard it. After this broker
    /// was cut off it has to [`ask`](Self::ask), which tells how far the metadata is by now.
    pub(crate) fn is_heard_here(&self, epoch: BrokerEpoch) -> bool {
        let heard = !self.is_unheard()
            && self.own_controller.as_ref().is_some_and(|own| own.hear(self.config.broker_id, epoch));
        if heard {
            self.answered.store(self.clock.monotonic().0, Ordering::Release);
        }
        heard
    }

    /// Whether no controller has answered for so long that another leader may have been elected wherever one could be (`R76`),
    /// or what was decided meanwhile has not come yet.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.is_unheard() || self.image.borrow().next_offset().0 < self.rejoined_at.load(Ordering::Relaxed)
    }

    fn is_unheard(&self) -> bool {
        self.clock.monotonic().since(Time(self.answered.load(Ordering::Acquire))) > CUT_OFF_MS
    }

    /// The newest metadata applied here.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        Arc::clone(&self.image.borrow())
    }

    /// Publishes a newer image, after the partitions have been told.
    pub(crate) fn publish(&self, image: Arc<MetadataImage>) {
        self.departures.changed(&self.image(), &image, self.clock.monotonic());
        self.image.send_replace(image);
    }

    /// Follows the images.
    pub(crate) fn images(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.image.subscribe()
    }

    /// Looks again after each new image until `look` finds something or the time is up.
    pub(crate) async fn wait_metadata<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut images = self.images();
        let found = async {
            loop {
                images.borrow_and_update();
                if let Some(found) = look() {
                    return Some(found);
                }
                // The sender lives as long as `self`.
                images.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, found).await.ok().flatten()
    }

    /// A partition that has a replica here.
    pub(crate) fn partition(&self, id: TopicPartition) -> Option<Arc<Partition>> {
        self.partitions.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All of them, in order.
    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn insert_partition(&self, partition: &Arc<Partition>) {
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        partitions.insert(partition.id(), Arc::clone(partition));
    }

    pub(crate) fn remove_partition(&self, id: TopicPartition) -> Option<Arc<Partition>> {
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    /// This broker's registration in force and its cluster; None before it is registered.
    pub(crate) fn registration(&self) -> Option<(BrokerEpoch, ClusterId)> {
        let epoch = (*self.registration.lock().unwrap_or_else(PoisonError::into_inner))?;
        let cluster = self.image.borrow().cluster_id();
        (!cluster.is_none()).then_some((epoch, cluster))
    }

    /// The controller gave this registration.
    pub(crate) fn registered(&self, epoch: BrokerEpoch) {
        *self.registration.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
    }

    /// The cluster that this directory belongs to, or the one that the metadata has told; none at the first start.
    pub(crate) fn known_cluster(&self) -> ClusterId {
        let told = self.image.borrow().cluster_id();
        if told.is_none() { self.dirs.cluster_id() } else { told }
    }

    /// The metadata is of this cluster: notes it in the directories that do not say so.
    ///
    /// # Errors
    /// Where the directories are another cluster's, or none can be written.
    pub(crate) async fn join_cluster(self: &Arc<Self>, cluster: ClusterId) -> Result<(), String> {
        let on_disk = self.dirs.cluster_id();
        if !cluster.is_none() && !on_disk.is_none() && on_disk != cluster {
            return Err(format!("the directories are of cluster {on_disk}, the quorum of {cluster}"));
        }
        if cluster.is_none() || self.dirs.is_joined() {
            return Ok(());
        }
        let context = Arc::clone(self);
        self.disk_pool.run(move || context.dirs.join(cluster)).await.map_err(|error| error.to_string())
    }

    /// The registration of a broker, as the newest metadata has it.
    pub(crate) fn broker_epoch_of(&self, broker: BrokerId) -> Option<BrokerEpoch> {
        self.image.borrow().broker(broker).map(|registration| registration.epoch)
    }

    /// `host:port` of a broker's INTERNAL listener, with the registration that says so.
    pub(crate) fn internal_address(&self, broker: BrokerId) -> Option<(String, BrokerEpoch)> {
        let image = self.image();
        let registration = image.broker(broker)?;
        let listener = registration.listener(&self.config.internal_listener)?;
        Some((format!("{}:{}", listener.host, listener.port), registration.epoch))
    }

    /// The number of opens to count from for a replica that is made now (`R57`).
    pub(crate) fn opens_before(&self) -> u64 {
        self.opens.fetch_add(1 << 32, Ordering::Relaxed)
    }

    /// A connection to `broker` broke: it may be gone (`R63`, `R76`).
    pub(crate) fn suspect(&self, broker: BrokerId) {
        if let Some(epoch) = self.broker_epoch_of(broker) {
            self.departures.suspect(broker, epoch, self.clock.monotonic());
        }
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if !suspects.contains(&broker) {
            suspects.push(broker);
        }
        drop(suspects);
        self.suspected.notify_one();
    }

    pub(crate) fn take_suspects(&self) -> Vec<BrokerId> {
        std::mem::take(&mut self.suspects.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A partition began or ceased to be led here. Called with the partition's lock held, so it only notes it.
    pub(crate) fn leadership_changed(&self, partition: &Partition, leads: bool) {
        if let Some(board) = self.leaderships.of(partition.topic()) {
            board.note(partition.id(), leads);
        }
    }

    /// Where changes of a coordinators' topic are noted.
    pub(crate) fn leaderships(&self, topic: &str) -> Option<&LeadershipBoard> {
        self.leaderships.of(topic)
    }

    /// The log of a replica failed for good: the controller must hear of it, or of the whole directory (`R30`, `R78`).
    pub(crate) fn replica_failed(&self, id: TopicPartition, dir: &LogDir) {
        if dir.works() {
            self.failed_replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        self.heartbeat_wanted.notify_one();
    }

    /// A replica has left a log directory of this broker for another one. What the checkpoints of the old one promise stays
    /// until those of the new one say so too. Called with the checkpoints' turn held.
    pub(crate) fn left(&self, partition: &Partition, from: DirectoryId, held: Checkpointed) {
        let line = (Arc::clone(partition.topic()), held);
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert((partition.id(), from), line);
        self.moves.left(partition.id(), from);
        self.flusher.checkpoints_moved();
    }

    /// A read found this replica damaged: once the controller has heard that it failed, it is opened anew (`R29`).
    pub(crate) fn replica_damaged(&self, id: TopicPartition) {
        lock(&self.damaged).insert(id, false);
    }

    /// The controller has heard of these failed replicas, and recorded it.
    pub(crate) fn failures_told(&self, told: &[TopicPartition]) {
        let mut any = false;
        for heard in lock(&self.damaged).iter_mut().filter(|(id, heard)| !**heard && told.contains(id)).map(|(_, h)| h)
        {
            *heard = true;
            any = true;
        }
        if any {
            self.reopening_wanted.notify_one();
        }
    }

    /// Damaged replicas that the controller knows of.
    pub(crate) fn damaged_and_told(&self) -> Vec<TopicPartition> {
        lock(&self.damaged).iter().filter(|(_, heard)| **heard).map(|(id, _)| *id).collect()
    }

    /// A damaged replica was opened anew, and says for itself what it has.
    pub(crate) fn reopened(&self, id: TopicPartition) {
        lock(&self.damaged).remove(&id);
        lock(&self.failed_replicas).remove(&id);
    }

    /// Replicas that can no longer be trusted: in a directory that is in use, or in one that is out of use and not the one
    /// that the metadata has them in.
    pub(crate) fn failed_replicas(&self) -> Vec<TopicPartition> {
        let mut failed = self.failed_replicas.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let offline = self.dirs.offline();
        if !offline.is_empty() {
            let image = self.image();
            let known = |id| image.partition(id).map(|partition| partition.directory_of(self.config.broker_id));
            let lost = self.partitions().into_iter().filter(|partition| !partition.dir().works());
            let unknown = lost.map(|lost| lost.id()).filter(|id| known(*id).is_some_and(|dir| !offline.contains(&dir)));
            failed.extend(unknown);
        }
        failed.into_iter().collect()
    }

    /// A replica that was here is gone: the controller must hear of it before this broker is unfenced (`R78`).
    pub(crate) fn replica_found_lossy(&self, id: TopicPartition) {
        self.found_lossy.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// What heartbeats and registrations are to tell of, once.
    pub(crate) fn found_lossy(&self) -> Vec<TopicPartition> {
        self.found_lossy.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// The controller has heard, and recorded it.
    pub(crate) fn lossy_told(&self, told: &[TopicPartition]) {
        self.found_lossy.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| !told.contains(id));
    }

    /// The log directories that take no new replicas, as an operator wants it (KIP-1066).
    pub(crate) fn cordoned_directories(&self) -> Vec<DirectoryId> {
        let named = cordoned_log_dirs(&self.image(), self.config.broker_id, &self.config.file);
        let is_named =
            |dir: &&Arc<LogDir>| named.iter().any(|path| path == "*" || dir.data().path() == Path::new(path));
        self.dirs.iter().filter(is_named).map(|dir| dir.id()).collect()
    }

    /// The time by which age is judged, and whether deletion by age is paused; says so where that has changed.
    pub(crate) fn judged_time(&self) -> Judged {
        let judged = self.clock_watch.look(self.clock.monotonic(), self.clock.wall());
        if judged.news && judged.paused {
            let (wall, believed) = (self.clock.wall(), judged.wall);
            tracing::error!(
                %wall, %believed,
                "the wall clock jumped by more than 10 minutes: nothing is deleted by age until it is set right, or has stood for a day, or this broker starts again"
            );
        } else if judged.news {
            tracing::info!("the wall clock is believed again: deletion by age goes on");
        }
        judged
    }

    /// The log directories that are in use and in this state.
    pub(crate) fn directories_that(&self, are: fn(&DirHealth) -> bool) -> Vec<DirectoryId> {
        self.dirs.working().filter(|dir| are(dir.health())).map(|dir| dir.id()).collect()
    }

    /// Between half of `duration` and all of it.
    pub(crate) fn jitter(&self, duration: Duration) -> Duration {
        self.chance.jitter(duration)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
