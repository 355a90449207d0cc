//! From directories to partitions: recovery at the start, and what the metadata says belongs here (`R29`, `R38`, `R41`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use metadata::{MetadataDelta, MetadataImage};
use model::{BrokerEpoch, BrokerId, EndMarker, Offset, PartitionIndex, TopicId, TopicPartition};
use replication::producers::{EndedTransaction, ProducerBatch, ProducerTable};
use replication::{AckRule, Member, PartitionState, ReplicaConfig};
use storage::{
    AbortedTransaction, Checkpoint, DataDirError, Log, LogError, OpenHints, PartitionDir, Recovered, Verdict,
};

use crate::context::Context;
use crate::housekeeping::write_checkpoints;
use crate::partition::{Checkpointed, Partition, Parts};
use crate::topic_settings::TopicSettings;

/// A log that was found on disk and recovered, waiting for the metadata to claim it.
#[derive(Debug)]
struct Found {
    topic: String,
    log: Log,
    recovered: Recovered,
    producers: ProducerTable,
    snapshot_at: Offset,
    high_watermark: Offset,
    /// Below it the checkpoints promise records.
    promised: Offset,
    synced_since: Option<Offset>,
}

/// Between two lines about a recovery that takes long.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Makes partitions as the metadata says. Owned by the task that follows the metadata.
#[derive(Debug)]
pub(crate) struct Replicas {
    context: Arc<Context>,
    found: BTreeMap<TopicPartition, Found>,
    settings: BTreeMap<TopicId, Arc<TopicSettings>>,
}

impl Replicas {
    /// Recovers every log on disk, some at a time. `clean` tells that the last shutdown was proven clean (`R10`).
    ///
    /// # Errors
    /// Where the directory itself cannot be read.
    pub(crate) async fn recover(context: &Arc<Context>, clean: bool) -> Result<Replicas, DataDirError> {
        let data = &context.data;
        let checkpoints = Arc::new(Checkpoints {
            recovery_points: data.read_checkpoint(Checkpoint::RecoveryPoint)?,
            log_starts: data.read_checkpoint(Checkpoint::LogStart)?,
            high_watermarks: data.read_checkpoint(Checkpoint::HighWatermark)?,
            synced: data.read_checkpoint(Checkpoint::SyncedBeforeAck)?,
        });
        let directories = data.partitions()?;
        let total = directories.len();
        let mut lost = checkpoints.promised();
        for each in &directories {
            lost.entry((each.topic.clone(), each.partition)).or_insert(Offset(1));
        }
        let mut jobs = tokio::task::JoinSet::new();
        for directory in directories {
            let (context, checkpoints) = (Arc::clone(context), Arc::clone(&checkpoints));
            jobs.spawn(async move {
                let pool = context.disk_pool.clone();
                pool.run(move || recover_one(&context, &checkpoints, &directory, clean)).await
            });
        }
        let found = collect(jobs, total).await;
        if total > 0 {
            tracing::info!(partitions = found.len(), of = total, clean, "recovered the logs");
        }
        context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).extend(found.iter().map(|(id, found)| {
            let lossy = found.log.lossy_from().is_some();
            let held = Checkpointed {
                recovery_point: found.log.recovery_point(),
                log_start: found.log.log_start(),
                high_watermark: if lossy { found.promised } else { found.high_watermark },
                synced_since: found.synced_since.map(|since| (id.topic_id, since)),
            };
            (*id, (Arc::from(found.topic.as_str()), held))
        }));
        for (id, found) in &found {
            lost.remove(&(found.topic.clone(), id.partition));
        }
        for ((topic, partition), promised) in &lost {
            tracing::error!(topic, %partition, records_below = %promised, "a replica that was here is gone");
        }
        *context.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
        Ok(Replicas { context: Arc::clone(context), found, settings: BTreeMap::new() })
    }

    /// Whether a replica is gone whole. A clean shutdown is then no proof that what was here is here (`R10`, `R34`).
    pub(crate) fn any_gone(&self) -> bool {
        !self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Replicas that lost records below the high watermark or in their middle (`R29`, `R78`).
    pub(crate) fn lossy(&self) -> Vec<TopicPartition> {
        let lossy = |found: &Found| matches!(found.recovered.verdict, Verdict::Lossy { .. });
        self.found.iter().filter(|(_, found)| lossy(found)).map(|(id, _)| *id).collect()
    }

    /// Brings the partitions here from `before` to `after`.
    pub(crate) async fn apply(&mut self, before: &MetadataImage, after: &Arc<MetadataImage>) {
        let delta = MetadataDelta::between(before, after);
        let me = self.context.config.broker_id;
        // Before any partition hears of a replica that is to be brought up.
        self.context.throttles.follow(before, after, me, self.context.clock.monotonic());
        if !delta.configs.is_empty() || !delta.removed_topics.is_empty() {
            self.settings.clear();
        }
        let mut told: BTreeSet<TopicPartition> = BTreeSet::new();
        let mut gone = Vec::new();
        let (mut leads, mut follows, mut leaderless) = (0, 0, 0);
        for (id, change) in &delta.partitions {
            let Some(partition) = change.after.as_ref().filter(|partition| partition.replicas.contains(&me)) else {
                gone.push(*id);
                continue;
            };
            told.insert(*id);
            if change.before.as_ref().is_none_or(|before| before.leader_epoch != partition.leader_epoch) {
                match partition.leader {
                    BrokerId::NONE => leaderless += 1,
                    leader if leader == me => leads += 1,
                    _ => follows += 1,
                }
            }
        }
        if leads + follows + leaderless > 0 {
            tracing::info!(leads, follows, leaderless, "new leaderships");
        }
        // First what goes: a topic that is made again has the same names on disk.
        self.remove(&gone).await;
        for id in &told {
            self.ensure(after, *id).await;
        }
        // What the metadata says of replicas' brokers and of configs reaches the cores by the same path.
        if !delta.brokers.is_empty() || !delta.configs.is_empty() {
            told.extend(self.context.partitions().iter().map(|partition| partition.id()));
        }
        for id in told {
            self.tell(after, id);
        }
    }

    /// Deletes what is on disk but not in the metadata: called once the metadata is known to be current.
    pub(crate) async fn drop_strays(&mut self) {
        // Every replica that is placed here has been made by now: what is still missed is missed by nobody.
        self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let strays: Vec<TopicPartition> = self.found.keys().copied().collect();
        if !strays.is_empty() {
            tracing::warn!(count = strays.len(), "deleting replicas that the metadata does not place here");
            self.remove(&strays).await;
        }
    }

    async fn ensure(&mut self, image: &MetadataImage, id: TopicPartition) {
        if self.context.partition(id).is_some() {
            return;
        }
        let Some(topic) = image.topic(id.topic_id) else { return };
        let settings = self.settings(image, id.topic_id, &topic.name);
        let found = match self.found.remove(&id) {
            Some(found) => found,
            None => match self.create(&topic.name, id).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(topic = %topic.name, partition = %id.partition, %error, "cannot create a partition's log");
                    self.context.replica_failed(id);
                    return;
                }
            },
        };
        let mut log = found.log;
        log.set_config(Arc::clone(&settings.log));
        let partition = Partition::new(Parts {
            id,
            topic: Arc::clone(&topic.name),
            config: ReplicaConfig {
                me: self.context.config.broker_id,
                lag_time_max_ms: self.context.config.replica_lag_time_max_ms,
                window_bytes: self.context.config.replica_fetch_max_bytes,
                opens_before: self.context.opens_before(),
                rules: model::Rules::all(),
            },
            log,
            epochs: found.recovered.epochs,
            high_watermark: found.high_watermark,
            promised: found.promised,
            synced_since: found.synced_since,
            producers: found.producers,
            snapshot_at: found.snapshot_at,
            settings,
        });
        self.context.insert_partition(&partition);
        self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let key = (topic.name.to_string(), id.partition);
        if self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).remove(&key).is_some() {
            self.context.replica_found_lossy(id);
        }
    }

    /// A log for a partition that has none here.
    async fn create(&mut self, topic: &Arc<str>, id: TopicPartition) -> Result<Found, LogError> {
        // A topic of that name was deleted while this broker was away.
        let namesake = |(other, found): (&TopicPartition, &Found)| {
            (found.topic == **topic && other.partition == id.partition).then_some(*other)
        };
        if let Some(old) = self.found.iter().find_map(namesake) {
            self.remove(&[old]).await;
        }
        // A lossy log: it says so where the controller asks for it (R35), until a leader's records come.
        let key = (topic.to_string(), id.partition);
        let lost = self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let promised = lost.unwrap_or(Offset::ZERO);
        let hints = OpenHints {
            topic_id: id.topic_id,
            recovery_point: Offset::ZERO,
            clean: true,
            log_start: Offset::ZERO,
            high_watermark: promised,
        };
        let (context, name) = (Arc::clone(&self.context), Arc::clone(topic));
        let opening = move || {
            let path = context.data.partition_path(&name, id.partition);
            match open(&context, &name, path.clone(), hints) {
                // What lies there could not be told to be this partition's, and is fetched again.
                Err(error @ (LogError::UnknownTopic(_) | LogError::WrongTopic { .. })) => {
                    tracing::error!(%error, "taking a directory out of use");
                    if let Err(error) = context.data.delete_partition(&name, id.partition) {
                        tracing::error!(%error, "cannot take a directory out of use");
                    }
                    open(&context, &name, path, hints)
                }
                other => other,
            }
        };
        self.context.disk_pool.run(opening).await
    }

    /// Opens replicas anew that a read found damaged, once the metadata says that they count for nothing: they are found
    /// lossy as at a start, and fetch again what they have lost (`R29`).
    pub(crate) async fn reopen_damaged(&mut self, image: &MetadataImage) {
        let me = self.context.config.broker_id;
        for id in self.context.damaged_and_told() {
            match image.partition(id) {
                // It goes, or is gone.
                None => self.context.reopened(id),
                Some(now) if now.isr.contains(&me) || now.elr.contains(&me) || now.leader == me => {}
                Some(_) => self.reopen(image, id).await,
            }
        }
    }

    async fn reopen(&mut self, image: &MetadataImage, id: TopicPartition) {
        let Some(partition) = self.context.partition(id) else { return self.context.reopened(id) };
        let (topic, held) = (Arc::clone(partition.topic()), partition.checkpoints());
        // The checkpoints go on to say what they say.
        self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (Arc::clone(&topic), held));
        self.context.remove_partition(id);
        partition.stop(&self.context, true);
        partition.settled().await;
        let hints = OpenHints {
            topic_id: id.topic_id,
            recovery_point: held.recovery_point,
            clean: false,
            log_start: held.log_start,
            high_watermark: held.high_watermark,
        };
        let (context, name) = (Arc::clone(&self.context), Arc::clone(&topic));
        let opening = move || open(&context, &name, context.data.partition_path(&name, id.partition), hints);
        match self.context.disk_pool.run(opening).await {
            Ok(found) => {
                // Told once more: a leader may have asked for it to be in sync meanwhile.
                self.context.replica_found_lossy(id);
                self.context.reopened(id);
                self.found.insert(id, found);
                self.ensure(image, id).await;
                self.tell(image, id);
            }
            Err(error) => {
                tracing::error!(%topic, partition = %id.partition, %error, "cannot open a damaged log anew");
                self.context.reopened(id);
                self.context.replica_failed(id);
            }
        }
    }

    /// Takes replicas off this broker and deletes them.
    async fn remove(&mut self, ids: &[TopicPartition]) {
        let mut names = Vec::new();
        for id in ids {
            if let Some(partition) = self.context.remove_partition(*id) {
                partition.stop(&self.context, true);
                // A job that is under way would miss its files.
                partition.settled().await;
                names.push((Arc::clone(partition.topic()), id.partition));
            } else if let Some(found) = self.found.remove(id) {
                names.push((Arc::from(found.topic.as_str()), id.partition));
            }
            self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
        if names.is_empty() {
            return;
        }
        // The checkpoints know names only: what they say of these would be taken for another topic's of that name.
        write_checkpoints(&self.context).await;
        for (topic, partition) in names {
            tracing::info!(%topic, %partition, "deleting a replica");
            delete(&self.context, &topic, partition).await;
        }
    }

    fn tell(&mut self, image: &MetadataImage, id: TopicPartition) {
        let (Some(local), Some(partition)) = (self.context.partition(id), image.partition(id)) else { return };
        let settings = self.settings(image, id.topic_id, local.topic());
        let member = |broker: &BrokerId| Member {
            id: *broker,
            broker_epoch: image.broker(*broker).map_or(BrokerEpoch::NONE, |registration| registration.epoch),
            eligible: image.is_eligible(partition, *broker),
            zone: zone_of(image, &partition.replicas, *broker),
        };
        let state = PartitionState {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas.iter().map(member).collect(),
            isr: partition.isr.clone(),
            recovering: partition.leader_recovery_state == metadata::records::LeaderRecoveryState::Recovering,
            ack_rule: AckRule { min_isr: image.min_isr(local.topic(), partition.factor()), zones: settings.ack_zones },
            sync_before_ack: settings.sync_before_ack(),
        };
        local.handle_metadata(&self.context, &state, &settings);
    }

    fn settings(&mut self, image: &MetadataImage, id: TopicId, name: &str) -> Arc<TopicSettings> {
        let config = &self.context.config;
        Arc::clone(self.settings.entry(id).or_insert_with(|| TopicSettings::resolve(image, name, config)))
    }
}

/// The zone of a replica, numbered by the first of the replicas that is in it (`R79`).
fn zone_of(image: &MetadataImage, replicas: &[BrokerId], broker: BrokerId) -> Option<u32> {
    let rack = |broker: &BrokerId| image.broker(*broker).and_then(|broker| broker.rack.as_deref());
    let mine = rack(&broker)?;
    let first = replicas.iter().position(|replica| rack(replica) == Some(mine))?;
    u32::try_from(first).ok()
}

/// Waits for all logs, and tells how far it is where that takes long.
async fn collect(
    mut jobs: tokio::task::JoinSet<Option<(TopicPartition, Found)>>,
    total: usize,
) -> BTreeMap<TopicPartition, Found> {
    let (mut found, mut done) = (BTreeMap::new(), 0);
    let mut tell = tokio::time::interval_at(tokio::time::Instant::now() + TELL_EVERY, TELL_EVERY);
    loop {
        // Dropping either branch is safe: what has ended stays in the set.
        tokio::select! {
            ended = jobs.join_next() => match ended {
                Some(job) => {
                    done += 1;
                    found.extend(job.expect("no job of the set is aborted, and a panic ends the process"));
                }
                None => return found,
            },
            _ = tell.tick() => tracing::info!(done, of = total, "recovering the logs"),
        }
    }
}

fn recover_one(
    context: &Context,
    checkpoints: &Checkpoints,
    directory: &PartitionDir,
    clean: bool,
) -> Option<(TopicPartition, Found)> {
    let Some(topic_id) = directory.topic_id else {
        tracing::error!(directory = %directory.path.display(), "partition.metadata is missing or damaged; this replica is fetched again where the metadata places one");
        return None;
    };
    let key = (directory.topic.clone(), directory.partition);
    let hint = |offsets: &BTreeMap<_, Offset>| offsets.get(&key).copied().unwrap_or(Offset::ZERO);
    let hints = OpenHints {
        topic_id,
        recovery_point: hint(&checkpoints.recovery_points),
        clean,
        log_start: hint(&checkpoints.log_starts),
        high_watermark: hint(&checkpoints.high_watermarks),
    };
    let synced_since = checkpoints.synced.get(&(topic_id.to_string(), directory.partition)).copied();
    match open(context, &directory.topic, directory.path.clone(), hints) {
        Ok(found) => {
            let found = Found { synced_since, ..found };
            Some((TopicPartition { topic_id, partition: directory.partition }, found))
        }
        Err(error) => {
            tracing::error!(directory = %directory.path.display(), %error, "cannot open a partition's log");
            None
        }
    }
}

fn open(context: &Context, topic: &str, path: PathBuf, hints: OpenHints) -> Result<Found, LogError> {
    let (mut log, recovered) = Log::open(context.data.env(), &path, Arc::default(), hints)?;
    if let Verdict::TruncatedTail { from, bytes } = recovered.verdict {
        tracing::warn!(directory = %path.display(), %from, bytes, "cut off a torn end that no acknowledged record was in");
    }
    if let Verdict::Lossy { first_bad } = recovered.verdict {
        tracing::error!(directory = %path.display(), %first_bad, "the log is corrupt; it will be fetched from the leader again");
    }
    let (producers, snapshot_at) = match recover_producers(&mut log) {
        // R29: it lies where a start does not look, and is found by looking there.
        Err(LogError::Corrupt { offset, .. }) if log.lossy_from().is_none() => {
            log.note_damage(offset)?;
            return open(context, topic, path, hints);
        }
        recovered => recovered?,
    };
    Ok(Found {
        topic: topic.to_owned(),
        log,
        recovered,
        producers,
        snapshot_at,
        high_watermark: hints.high_watermark,
        promised: hints.high_watermark.max(hints.recovery_point),
        synced_since: None,
    })
}

/// The producers' state as the log says: the newest snapshot, and the batches after it; and the snapshot's offset (`R41`).
pub(crate) fn load_producers(log: &mut Log) -> Result<(ProducerTable, Offset), LogError> {
    load_producers_by(log, log.log_end())
}

/// As [`load_producers`], at the start, where a crash may have left an index of aborted transactions that knows more or
/// less than the log.
fn recover_producers(log: &mut Log) -> Result<(ProducerTable, Offset), LogError> {
    let newest = log.log_end().min(log.aborted_sound_to());
    let snapshot = log.latest_producer_snapshot(newest)?.map_or(log.log_start(), |(offset, _)| offset);
    log.replay_aborted_from(snapshot)?;
    load_producers_by(log, newest)
}

/// From a snapshot that is not above `newest`. The log is told of the transactions that were aborted after it.
fn load_producers_by(log: &mut Log, newest: Offset) -> Result<(ProducerTable, Offset), LogError> {
    let restored = log.latest_producer_snapshot(newest)?.and_then(|(_, bytes)| ProducerTable::restore(&bytes).ok());
    let (from, mut table) = restored.unwrap_or_else(|| (log.log_start(), ProducerTable::default()));
    let mut aborted = Vec::new();
    log.scan(from.max(log.log_start()), |header, control| {
        let ended = ProducerBatch::of(header, control.and_then(EndMarker::of)).and_then(|batch| table.append(&batch));
        aborted.extend(ended.filter(|ended| !ended.commit).map(|ended| aborted_transaction(&ended)));
    })?;
    for transaction in aborted {
        log.note_aborted(transaction)?;
    }
    Ok((table, from))
}

/// What the log keeps of a transaction that was aborted.
pub(crate) fn aborted_transaction(ended: &EndedTransaction) -> AbortedTransaction {
    AbortedTransaction {
        producer_id: ended.producer_id,
        first_offset: ended.first_offset,
        last_offset: ended.marker_offset,
        last_stable_offset: ended.stable_end,
    }
}

/// Takes a partition's files out of use on the disk pool, then frees their space.
async fn delete(context: &Arc<Context>, topic: &str, partition: PartitionIndex) {
    let (job_context, topic) = (Arc::clone(context), topic.to_owned());
    let deleted = context.disk_pool.run(move || {
        job_context.data.delete_partition(&topic, partition)?;
        job_context.data.free_deleted()
    });
    if let Err(error) = deleted.await {
        tracing::error!(%error, "cannot delete a partition's files");
    }
}

impl Checkpoints {
    /// The replicas that had records, and below which offset.
    fn promised(&self) -> BTreeMap<(String, PartitionIndex), Offset> {
        let mut promised: BTreeMap<(String, PartitionIndex), Offset> = BTreeMap::new();
        for (key, offset) in self.recovery_points.iter().chain(&self.high_watermarks) {
            if *offset > Offset::ZERO {
                let above = promised.entry(key.clone()).or_insert(*offset);
                *above = (*above).max(*offset);
            }
        }
        promised
    }
}

/// The checkpoints of the last process.
struct Checkpoints {
    recovery_points: BTreeMap<(String, PartitionIndex), Offset>,
    log_starts: BTreeMap<(String, PartitionIndex), Offset>,
    high_watermarks: BTreeMap<(String, PartitionIndex), Offset>,
    /// By topic id, not by name.
    synced: BTreeMap<(String, PartitionIndex), Offset>,
}
