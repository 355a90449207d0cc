//! Transaction markers on their way from the coordinator to the partitions' leaders (`R45`, `R47`): batched for each
//! broker, and tried until they are written, however often leaders change.
//!
//! Invariants: a marker is given up only where its coordinator is no longer here, or its topic was deleted; a partition
//! that cannot take its marker holds up no other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordinator::transaction::request::Producer;
use coordinator::transaction::{Marker, PartitionSet};
use metadata::MetadataImage;
use model::{BrokerId, ErrorCode, TopicPartition};
use rpc::transactions::WriteMarker;

use crate::api::TransactionMarker;
use crate::context::Context;
use crate::peers::Peers;
use crate::shards::{Shard, Shards};
use crate::transaction_coordinator::Transactions;
use crate::transactions::MarkerWriter;

/// How long a leader may wait for its in-sync replicas before it says that it does not know.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests under way to one broker: one partition without enough replicas does not hold up the others.
const MAX_IN_FLIGHT: usize = 4;
/// Partitions in one request.
const MAX_PARTITIONS: usize = 10_000;
const BACKOFF_MIN_MS: u64 = 20;
const BACKOFF_MAX_MS: u64 = 1_000;
/// Attempts after which a marker that is still refused is worth a line, and every so many after that.
const LOUD_EVERY: u32 = 50;

/// See the module.
#[derive(Debug)]
pub(crate) struct MarkerSender {
    context: Arc<Context>,
    writer: Arc<MarkerWriter>,
    peers: Arc<Peers>,
    queues: Mutex<BTreeMap<BrokerId, Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Work>,
    in_flight: usize,
}

/// One transaction's marker, for some of its partitions.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) shards: Arc<Shards<Transactions>>,
    pub(crate) shard: Arc<Shard<Transactions>>,
    pub(crate) transactional_id: Arc<str>,
    pub(crate) marker: Marker,
    pub(crate) partitions: PartitionSet,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

/// A part of a request, and where its partitions are known by name.
#[derive(Debug)]
struct Part {
    work: Work,
    named: Vec<(String, TopicPartition)>,
}

impl Work {
    fn with(&self, partitions: PartitionSet) -> Work {
        Work { partitions, ..self.clone() }
    }

    fn written(&self, partitions: &PartitionSet) {
        let producer = Producer { id: self.marker.producer_id, epoch: self.marker.producer_epoch };
        self.shards.tell(&self.shard, |core, now| {
            core.markers_written(&self.transactional_id, producer, partitions, now);
        });
    }

    fn part(self, image: &MetadataImage) -> Part {
        let named = self.partitions.iter().filter_map(|(topic, partition)| {
            Some((topic.to_owned(), TopicPartition { topic_id: image.topic_id(topic)?, partition }))
        });
        let named = named.collect();
        Part { work: self, named }
    }

    fn backoff(&self) -> Duration {
        Duration::from_millis((BACKOFF_MIN_MS << self.attempts.min(10)).min(BACKOFF_MAX_MS))
    }
}

/// Where the markers of a piece of work have to go.
#[derive(Debug, Default)]
struct Routes {
    leaders: BTreeMap<BrokerId, PartitionSet>,
    leaderless: PartitionSet,
    /// Their topic was deleted. The image is at least as new as this coordinator's leadership, which began after the
    /// partitions joined the transaction: what is not in it was there and is gone.
    gone: PartitionSet,
}

impl Routes {
    fn of(partitions: &PartitionSet, image: &MetadataImage) -> Routes {
        let mut routes = Routes::default();
        for (topic, partition) in partitions.iter() {
            let id = image.topic_by_name(topic).filter(|found| found.partition(partition).is_some());
            let id = id.map(|found| TopicPartition { topic_id: found.id, partition });
            let set = match id.map(|id| image.leader_for(id)) {
                None => &mut routes.gone,
                Some(None) => &mut routes.leaderless,
                Some(Some((leader, _))) => routes.leaders.entry(leader).or_default(),
            };
            set.insert(topic, partition);
        }
        routes
    }
}

impl MarkerSender {
    pub(crate) fn new(context: Arc<Context>, writer: Arc<MarkerWriter>, peers: Arc<Peers>) -> Arc<MarkerSender> {
        Arc::new(MarkerSender { context, writer, peers, queues: Mutex::default() })
    }

    /// Sends the markers to the leaders as they are now. Not to be called under the shard's lock.
    pub(crate) fn send(self: &Arc<Self>, work: &Work) {
        if work.shard.is_gone() {
            return;
        }
        let routes = Routes::of(&work.partitions, &self.context.image());
        if !routes.gone.is_empty() {
            work.written(&routes.gone);
        }
        if !routes.leaderless.is_empty() {
            self.send_later(work.with(routes.leaderless), ErrorCode::LeaderNotAvailable);
        }
        for (leader, partitions) in routes.leaders {
            let mut queues = self.lock();
            queues.entry(leader).or_default().waiting.push_back(work.with(partitions));
            self.start(leader, &mut queues);
        }
    }

    fn send_later(self: &Arc<Self>, work: Work, error: ErrorCode) {
        let work = Work { attempts: work.attempts.saturating_add(1), ..work };
        if work.attempts.is_multiple_of(LOUD_EVERY) {
            let (id, attempts) = (&*work.transactional_id, work.attempts);
            tracing::warn!(transactional_id = id, attempts, %error, partitions = ?work.partitions, "markers are refused");
        }
        let sender = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(work.backoff()).await;
            sender.send(&work);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<BrokerId, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts requests to a broker, as many as are allowed.
    fn start(self: &Arc<Self>, broker: BrokerId, queues: &mut BTreeMap<BrokerId, Queue>) {
        let Some(queue) = queues.get_mut(&broker) else { return };
        while queue.in_flight < MAX_IN_FLIGHT && !queue.waiting.is_empty() {
            let (mut batch, mut partitions) = (Vec::new(), 0);
            while partitions < MAX_PARTITIONS
                && let Some(work) = queue.waiting.pop_front()
            {
                partitions += work.partitions.iter().count();
                batch.push(work);
            }
            queue.in_flight += 1;
            tokio::spawn(Arc::clone(self).run(broker, batch));
        }
        if queue.in_flight == 0 {
            queues.remove(&broker);
        }
    }

    async fn run(self: Arc<Self>, broker: BrokerId, batch: Vec<Work>) {
        let image = self.context.image();
        let parts: Vec<Part> =
            batch.into_iter().filter(|work| !work.shard.is_gone()).map(|work| work.part(&image)).collect();
        let mut errors = self.write(broker, &parts).await.into_iter();
        for Part { work, named } in parts {
            let (mut written, mut refused, mut last) = (PartitionSet::default(), PartitionSet::default(), None);
            for (topic, id) in named {
                match errors.next().unwrap_or(ErrorCode::UnknownServerError) {
                    ErrorCode::None => {
                        written.insert(&topic, id.partition);
                    }
                    error => {
                        last = Some(error);
                        refused.insert(&topic, id.partition);
                    }
                }
            }
            if !written.is_empty() {
                work.written(&written);
            }
            // Of a topic that went away since the work was routed.
            for (topic, partition) in work.partitions.iter() {
                if !written.contains(topic, partition) && refused.insert(topic, partition) {
                    last = last.or(Some(ErrorCode::UnknownTopicOrPartition));
                }
            }
            if let Some(error) = last {
                self.send_later(work.with(refused), error);
            }
        }
        let mut queues = self.lock();
        if let Some(queue) = queues.get_mut(&broker) {
            queue.in_flight -= 1;
        }
        self.start(broker, &mut queues);
    }

    /// A code for each partition of each part.
    async fn write(&self, broker: BrokerId, parts: &[Part]) -> Vec<ErrorCode> {
        let partitions = |part: &Part| part.named.iter().map(|(_, id)| *id).collect::<Vec<TopicPartition>>();
        if parts.is_empty() {
            return Vec::new();
        }
        if broker == self.context.config.broker_id {
            let markers = parts.iter().map(|part| (to_api(&part.work.marker), partitions(part))).collect();
            let written = self.writer.write(markers, WRITE_TIMEOUT).await;
            return written.into_iter().flatten().map(|(_, error)| error).collect();
        }
        let markers: Vec<WriteMarker> = parts.iter().map(|part| to_peer(&part.work.marker, partitions(part))).collect();
        let answer = match self.peers.client(broker) {
            Some(client) => client.write_markers(&markers, WRITE_TIMEOUT).await,
            None => return vec![ErrorCode::LeaderNotAvailable; count(parts)],
        };
        answer.unwrap_or_else(|error| {
            tracing::debug!(%broker, %error, "markers were not delivered");
            vec![ErrorCode::NetworkException; count(parts)]
        })
    }
}

fn count(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.named.len()).sum()
}

pub(crate) fn to_api(marker: &Marker) -> TransactionMarker {
    TransactionMarker {
        producer_id: marker.producer_id,
        producer_epoch: marker.producer_epoch,
        coordinator_epoch: marker.coordinator_epoch.0,
        transaction_version: version(marker),
        commit: marker.commit,
    }
}

fn to_peer(marker: &Marker, partitions: Vec<TopicPartition>) -> WriteMarker {
    WriteMarker {
        producer_id: marker.producer_id,
        producer_epoch: marker.producer_epoch,
        coordinator_epoch: marker.coordinator_epoch.0,
        commit: marker.commit,
        transaction_version: version(marker),
        partitions,
    }
}

fn version(marker: &Marker) -> i8 {
    i8::try_from(marker.transaction_version).unwrap_or(0)
}
