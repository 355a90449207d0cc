//! What every part of a broker shares: who it is, the newest metadata, the partitions, and the queues of its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use metadata::{ControlRequest, ControlResponse, MetadataImage};
use model::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Offset, PartitionIndex, TopicPartition};
use rpc::controller::{CallError, ControllerClient};
use storage::{DataDir, DiskPool, MetaProperties};
use tokio::sync::{Notify, watch};

use crate::budget::MemoryBudget;
use crate::cleaner::CleanerState;
use crate::clock::{Chance, Clock, ClockWatch, Judged};
use crate::config::BrokerConfig;
use crate::counters::IsrCounters;
use crate::departures::Departures;
use crate::flusher::FlushQueue;
use crate::follower_streams::FollowerStreams;
use crate::groups::OFFSETS_TOPIC;
use crate::isr::IsrProposals;
use crate::leaderships::{LeadershipBoard, Leaderships};
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
    pub(crate) data: DataDir,
    pub(crate) controller: ControllerClient,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) follower_streams: FollowerStreams,
    pub(crate) isr: IsrProposals,
    pub(crate) isr_counters: IsrCounters,
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
    /// As the directory said at the start.
    cluster_on_disk: ClusterId,
    joined: AtomicBool,
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
    pub(crate) lost: Mutex<BTreeMap<(String, PartitionIndex), Offset>>,
    /// What the checkpoints hold of logs that the metadata has not claimed yet.
    pub(crate) unclaimed: Mutex<BTreeMap<TopicPartition, (Arc<str>, Checkpointed)>>,
    /// Held while the checkpoints are written.
    pub(crate) checkpoints: Mutex<()>,
    pub(crate) cleaner: CleanerState,
    /// Wakes the heartbeat before its time.
    pub(crate) heartbeat_wanted: Notify,
    /// The controller has heard of damaged replicas.
    pub(crate) reopening_wanted: Notify,
}

/// What a [`Context`] is made of.
pub(crate) struct ContextParts {
    pub(crate) config: BrokerConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seed: u64,
    pub(crate) cluster_id: ClusterId,
    pub(crate) disk_pool: DiskPool,
    pub(crate) data: DataDir,
    pub(crate) controller: ControllerClient,
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
            data: parts.data,
            controller: parts.controller,
            budget: parts.budget,
            follower_streams: FollowerStreams::default(),
            isr: IsrProposals::default(),
            isr_counters: IsrCounters::default(),
            timers: Timers::default(),
            throttles: Throttles::default(),
            flusher: FlushQueue::default(),
            runtime: tokio::runtime::Handle::current(),
            partitions: RwLock::default(),
            image: watch::Sender::new(Arc::new(MetadataImage::default())),
            registration: Mutex::new(None),
            opens: AtomicU64::new(0),
            cluster_on_disk: parts.cluster_id,
            joined: AtomicBool::new(false),
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
            checkpoints: Mutex::new(()),
            cleaner: CleanerState::default(),
            heartbeat_wanted: Notify::new(),
        })
    }

    /// Asks the active controller.
    ///
    /// # Errors
    /// No answer in time: what became of the request is unknown.
    pub(crate) async fn ask(&self, request: ControlRequest, timeout: Duration) -> Result<ControlResponse, CallError> {
        self.controller.call(request, tokio::time::Instant::now() + timeout).await
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
        if told.is_none() { self.cluster_on_disk } else { told }
    }

    /// The metadata is of this cluster: notes it in the directory the first time.
    ///
    /// # Errors
    /// Where the directory is another cluster's, or cannot be written.
    pub(crate) async fn join_cluster(self: &Arc<Self>, cluster: ClusterId) -> Result<(), String> {
        if cluster.is_none() || cluster == self.cluster_on_disk || self.joined.load(Ordering::Acquire) {
            return Ok(());
        }
        if !self.cluster_on_disk.is_none() {
            return Err(format!("the directory is of cluster {}, the quorum of {cluster}", self.cluster_on_disk));
        }
        let meta = MetaProperties {
            cluster_id: Some(cluster),
            node_id: self.config.broker_id,
            directory_id: self.config.directory_id,
        };
        let context = Arc::clone(self);
        let written = self.disk_pool.run(move || context.data.write_meta(&meta)).await;
        written.map_err(|error| error.to_string())?;
        self.joined.store(true, Ordering::Release);
        Ok(())
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
    pub(crate) fn replica_failed(&self, id: TopicPartition) {
        if !self.directory_failed() {
            self.failed_replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        self.heartbeat_wanted.notify_one();
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

    /// Replicas that can no longer be trusted, in a directory that is in use.
    pub(crate) fn failed_replicas(&self) -> Vec<TopicPartition> {
        self.failed_replicas.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
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

    /// The log directory, where it is out of use.
    pub(crate) fn offline_directories(&self) -> Vec<DirectoryId> {
        if self.directory_failed() { vec![self.config.directory_id] } else { Vec::new() }
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

    /// The log directory, where it has less space than is to be kept.
    pub(crate) fn full_directories(&self) -> Vec<DirectoryId> {
        if self.data.env().health().is_full() { vec![self.config.directory_id] } else { Vec::new() }
    }

    /// Whether the log directory is out of use.
    pub(crate) fn directory_failed(&self) -> bool {
        self.data.env().health().failure().is_some()
    }

    /// Between half of `duration` and all of it.
    pub(crate) fn jitter(&self, duration: Duration) -> Duration {
        self.chance.jitter(duration)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
