//! From directories to partitions: recovery at the start, and what the metadata says belongs here (`R29`, `R38`, `R41`).
//!
//! A replica is found where it is, whatever the metadata says; the metadata is told (KIP-858). Of two copies, which a crash in
//! the middle of a move or a disk that came back leave behind, the one counts whose log is the greater, as in an election
//! (`R35`): it has all that was committed in the other. Invariant: a replica whose directory is out of use is not made anew in
//! another one.
//!
//! Whose a log is, its `partition.metadata` says, and the `topic-id-checkpoint` once more (`R4`). Where the file is missing or
//! damaged, the checkpoint counts, and the file is written again. Invariant: a log with records is deleted for its name's sake
//! only where it is proven to be another topic's, that is gone; else it is kept aside, and what it promised is lost (`R78`).
//!
//! Metadata that was restored (`R80`) may be older than the logs are: the first start by it deletes none of them. What it does
//! not place here is kept aside, directory by directory; each notes when that is done.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use metadata::{MetadataDelta, MetadataImage};
use model::{
    BrokerEpoch, BrokerId, DirectoryId, EndMarker, LeaderEpoch, MetadataOffset, Offset, PartitionIndex, TopicId,
    TopicPartition,
};
use replication::producers::{EndedTransaction, ProducerBatch, ProducerTable};
use replication::{AckRule, Member, PartitionState, ReplicaConfig};
use storage::{
    AbortedTransaction, Checkpoint, DataDirError, DiskPool, FutureDir, Log, LogDir, LogError, OpenHints, PartitionDir,
    Recovered, Verdict,
};

use crate::context::{Context, Lost};
use crate::directories;
use crate::housekeeping::write_checkpoints;
use crate::partition::{Checkpointed, Partition, Parts, SHORTAGE_PAUSE};
use crate::topic_settings::TopicSettings;

/// A log that was found on disk and recovered, waiting for the metadata to claim it.
#[derive(Debug)]
struct Found {
    dir: Arc<LogDir>,
    topic: String,
    log: Log,
    recovered: Recovered,
    producers: ProducerTable,
    snapshot_at: Offset,
    high_watermark: Offset,
    /// Below it the checkpoints promise records.
    promised: Offset,
    synced_since: Option<Offset>,
    /// With what it was opened.
    hints: OpenHints,
    whose: Whose,
}

/// What is known of whose a log is, beside what its file says.
#[derive(Clone, Copy, Debug)]
struct Whose {
    /// A checksum vouches for the file, or the checkpoint says the same.
    sure: bool,
    /// The checkpoint says another topic.
    other: Option<TopicId>,
}

/// Where a new log is to be.
struct Place {
    id: TopicPartition,
    dir: Arc<LogDir>,
    topic: Arc<str>,
    hints: OpenHints,
}

/// A new log, or why there is none.
type Opened = Result<Found, LogError>;

/// New logs that are opened in one job at most: what else waits for the disk pool waits for no more.
const TOGETHER: usize = 256;
/// Between two lines about a recovery that takes long.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Makes partitions as the metadata says. Owned by the task that follows the metadata.
#[derive(Debug)]
pub(crate) struct Replicas {
    context: Arc<Context>,
    /// The copies of each; one, but for crashes in the middle of a move.
    found: BTreeMap<TopicPartition, Vec<Found>>,
    /// Copies that an earlier process was making, to move replicas to other directories.
    futures: BTreeMap<TopicPartition, Vec<(Arc<LogDir>, FutureDir)>>,
    settings: BTreeMap<TopicId, Arc<TopicSettings>>,
    /// By which restored metadata the logs of each directory were sorted.
    sorted_by: BTreeMap<DirectoryId, MetadataOffset>,
    /// Where the metadata was restored that is applied now.
    restored_at: MetadataOffset,
}

impl Replicas {
    /// Recovers every log on disk, some at a time. `clean` tells that the last shutdown was proven clean (`R10`).
    ///
    /// # Errors
    /// Where no directory can be read.
    pub(crate) async fn recover(context: &Arc<Context>, clean: bool) -> Result<Replicas, DataDirError> {
        let surveys = loop {
            match survey(context) {
                // What cannot be seen for want of file descriptors is there all the same.
                Err(error) if error.is_out_of_descriptors() => tokio::time::sleep(SHORTAGE_PAUSE).await,
                surveyed => break surveyed?,
            }
        };
        let total = surveys.iter().map(|survey| survey.partitions.len()).sum();
        let mut lost = promised_in(&surveys);
        let elsewhere = promised_elsewhere(&surveys);
        let sorted_by = surveys.iter().map(|survey| (survey.dir.id(), survey.sorted_by)).collect();
        let mut jobs = tokio::task::JoinSet::new();
        let mut futures: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for Survey { dir, checkpoints, partitions, futures: begun, .. } in surveys {
            for future in begun {
                futures.entry(future.id).or_default().push((Arc::clone(&dir), future));
            }
            let checkpoints = Arc::new(checkpoints);
            for partition in partitions {
                let key = (partition.topic.clone(), partition.partition);
                let told = [None, checkpoints.whose(&partition)]
                    .map(|topic_id| elsewhere.get(&(key.clone(), topic_id)).copied());
                let elsewhere = told.into_iter().flatten().fold(Elsewhere::NOTHING, Elsewhere::and);
                let (pool, dir, checkpoints) = (context.disk_pool.clone(), Arc::clone(&dir), Arc::clone(&checkpoints));
                let recover = move || recover_one(&dir, &checkpoints, elsewhere, &partition, clean);
                jobs.spawn(async move { when_possible(&pool, recover).await.ok().flatten() });
            }
        }
        let found = collect(jobs, total).await;
        if total > 0 {
            tracing::info!(partitions = found.len(), of = total, clean, "recovered the logs");
        }
        let mut unclaimed = context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, copies) in &found {
            for copy in copies {
                // Else it may not be the one that promised.
                if copy.whose.other.is_none() {
                    lost.remove(&(copy.topic.clone(), id.partition));
                }
                unclaimed
                    .insert((*id, copy.dir.id()), (Arc::from(copy.topic.as_str()), copy.checkpointed(id.topic_id)));
            }
        }
        drop(unclaimed);
        // What lies in a directory that failed is not lost.
        lost.retain(|_, lost| context.dirs.get(lost.directory).is_some_and(|dir| dir.works()));
        for ((topic, partition), Lost { promised, .. }) in &lost {
            tracing::error!(topic, %partition, records_below = %promised, "a replica that was here is gone");
        }
        *context.lost.lock().unwrap_or_else(PoisonError::into_inner) = lost;
        let (settings, restored_at) = (BTreeMap::new(), MetadataOffset(0));
        Ok(Replicas { context: Arc::clone(context), found, futures, settings, sorted_by, restored_at })
    }

    /// Whether all that was here can be told to be here. Else a clean shutdown is no proof of it (`R10`, `R34`).
    pub(crate) fn is_whole(&self) -> bool {
        let none_lost = self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        none_lost && self.context.dirs.offline().is_empty()
    }

    /// Replicas that lost records below the high watermark or in their middle (`R29`, `R78`), in each of their copies.
    pub(crate) fn lossy(&self) -> Vec<TopicPartition> {
        let lossy = |found: &Found| matches!(found.recovered.verdict, Verdict::Lossy { .. });
        self.found.iter().filter(|(_, copies)| copies.iter().all(lossy)).map(|(id, _)| *id).collect()
    }

    /// Brings the partitions here from `before` to `after`.
    pub(crate) async fn apply(&mut self, before: &MetadataImage, after: &Arc<MetadataImage>) {
        let delta = MetadataDelta::between(before, after);
        self.restored_at = after.restored_at();
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
        let (mut opened, others) = self.open_new(after, &told);
        while let Some(batch) = opened.next().await {
            for (id, log) in batch {
                self.ensure(after, id, Some(log)).await;
            }
        }
        for id in others {
            self.ensure(after, id, None).await;
        }
        // What the metadata says of replicas' brokers and of configs reaches the cores by the same path.
        if !delta.brokers.is_empty() || !delta.configs.is_empty() {
            told.extend(self.context.partitions().iter().map(|partition| partition.id()));
        }
        for id in told {
            self.tell(after, id);
        }
    }

    /// Takes away what is on disk but not in the metadata: called once the metadata is known to be current.
    pub(crate) async fn drop_strays(&mut self) {
        // Every replica that is placed here has been made by now: what is still missed is missed by nobody.
        self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Copies of a replica whose directory is out of use stay: they may be all that there is of it.
        let (image, me) = (self.context.image(), self.context.config.broker_id);
        let placed = |id: &TopicPartition| image.partition(*id).is_some_and(|p| p.replicas.contains(&me));
        let begun = std::mem::take(&mut self.futures).into_iter();
        for (dir, future) in begun.filter(|(id, _)| !placed(id)).flat_map(|(_, begun)| begun) {
            forget(&self.context, dir, future).await;
        }
        // A log under the name of a replica that belongs here, and nothing proves that it is not it.
        let doubtful = |id: &TopicPartition, copies: &[Found]| {
            let is_doubtful = |copy: &Found| {
                !copy.whose.sure
                    && image
                        .topic_id(&copy.topic)
                        .is_some_and(|topic_id| placed(&TopicPartition { topic_id, partition: id.partition }))
            };
            copies.iter().any(is_doubtful)
        };
        let strays = self.found.iter().filter(|(id, copies)| !placed(id) && !doubtful(id, copies));
        let strays: Vec<TopicPartition> = strays.map(|(id, _)| *id).collect();
        if !strays.is_empty() {
            tracing::warn!(count = strays.len(), "taking away replicas that the metadata does not place here");
            self.remove(&strays).await;
        }
        self.note_sorted().await;
    }

    /// Whether a directory's logs may be of a time that the metadata does not know, as it was restored since (`R80`).
    fn is_unsorted(&self, dir: DirectoryId) -> bool {
        self.sorted_by.get(&dir).is_none_or(|at| *at < self.restored_at) && self.restored_at != MetadataOffset(0)
    }

    /// Each log here is where the restored metadata wants it, or aside: from now on what it deletes goes (`R80`).
    async fn note_sorted(&mut self) {
        let at = self.restored_at;
        let dirs: Vec<_> = self.context.dirs.working().filter(|dir| self.is_unsorted(dir.id())).cloned().collect();
        for dir in dirs {
            let job_dir = Arc::clone(&dir);
            let noted = self.context.disk_pool.run(move || job_dir.data().write_restored_at(at)).await;
            if let Err(error) = noted {
                // The next start sets aside once more.
                tracing::error!(%error, "cannot note by which metadata the logs were sorted");
                dir.failed(&error);
            }
            self.sorted_by.insert(dir.id(), at);
        }
    }

    /// Opens logs for those of `told` that have none here and whose place is known and free, [`TOGETHER`] in a job: a start with a
    /// hundred thousand partitions that were never written to would go to the disk pool and back for each of them. Returns
    /// whom that leaves, too.
    fn open_new(
        &self,
        image: &MetadataImage,
        told: &BTreeSet<TopicPartition>,
    ) -> (BoxStream<'static, Vec<(TopicPartition, Opened)>>, Vec<TopicPartition>) {
        let is_new = |id: &TopicPartition| self.context.partition(*id).is_none() && !self.found.contains_key(id);
        let (new, mut others): (Vec<_>, Vec<_>) = told.iter().copied().partition(is_new);
        let mut plain = Vec::new();
        if !new.is_empty() {
            let named = |(id, copies): (&TopicPartition, &Vec<Found>)| {
                let partition = id.partition;
                copies.iter().map(move |copy| (copy.topic.clone(), partition)).collect::<Vec<_>>()
            };
            let named: BTreeSet<_> = self.found.iter().flat_map(named).collect();
            for id in new {
                match self.plain_place(image, id, &named) {
                    Some(place) => plain.push(place),
                    None => others.push(id),
                }
            }
        }
        let mut batches = Vec::new();
        while !plain.is_empty() {
            batches.push(plain.drain(..plain.len().min(TOGETHER)).collect::<Vec<_>>());
        }
        let pool = self.context.disk_pool.clone();
        let open = move |batch: Vec<Place>| {
            let pool = pool.clone();
            async move { pool.run(move || batch.into_iter().map(|place| (place.id, place.open())).collect()).await }
        };
        // One is opened while the one before is taken in.
        (stream::iter(batches).map(open).buffered(2).boxed(), others)
    }

    /// Where a new log is to be, if nothing that lies there may be in its way (`named`), and nobody has to choose.
    fn plain_place(&self, image: &MetadataImage, id: TopicPartition, named: &BTreeSet<ReplicaName>) -> Option<Place> {
        let (topic, partition) = (image.topic(id.topic_id)?, image.partition(id)?);
        let assigned = partition.directory_of(self.context.config.broker_id);
        let dir = self.context.dirs.get(assigned).filter(|dir| dir.works())?;
        let is_plain = !self.context.moves.prefers_any() && !named.contains(&(topic.name.to_string(), id.partition));
        let (dir, topic) = (Arc::clone(dir), Arc::clone(&topic.name));
        is_plain.then(|| Place { hints: self.hints_of_new(&topic, id), id, dir, topic })
    }

    /// A lossy log where one was lost: it says so where the controller asks for it (R35), until a leader's records come.
    fn hints_of_new(&self, topic: &str, id: TopicPartition) -> OpenHints {
        let all = self.context.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = if all.is_empty() { None } else { all.get(&(topic.to_owned(), id.partition)) };
        OpenHints {
            topic_id: id.topic_id,
            recovery_point: Offset::ZERO,
            clean: true,
            log_start: Offset::ZERO,
            high_watermark: lost.map_or(Offset::ZERO, |lost| lost.promised),
        }
    }

    /// `opened` is the log that was opened for it with others, if there is one.
    async fn ensure(&mut self, image: &MetadataImage, id: TopicPartition, opened: Option<Opened>) {
        if self.context.partition(id).is_some() {
            return;
        }
        let (Some(topic), Some(partition)) = (image.topic(id.topic_id), image.partition(id)) else { return };
        let assigned = partition.directory_of(self.context.config.broker_id);
        if self.is_offline(image, assigned) {
            tracing::warn!(topic = %topic.name, partition = %id.partition, directory = %assigned, "the replica's log directory is out of use");
            return;
        }
        let settings = self.settings(image, id.topic_id, &topic.name);
        let found = match self.claim(id, &topic.name, assigned).await {
            Some(found) => found,
            None => {
                let preferred = self.context.moves.take_preferred(&topic.name, id.partition);
                let preferred = preferred.and_then(|id| self.context.dirs.get(id)).filter(|dir| dir.works());
                // A wish that came meanwhile goes first: a log that nothing was written to leaves nothing behind.
                let opened = opened.filter(|_| preferred.is_none());
                let assigned = preferred.or_else(|| self.context.dirs.get(assigned)).cloned();
                let dir = assigned.or_else(|| directories::choose(&self.context));
                let Some(dir) = dir else { return };
                let made = match opened {
                    Some(opened) if !matches!(opened, Err(LogError::NoDescriptor(_))) => opened,
                    // It waits for a file descriptor, too.
                    _ => self.create(image, &dir, &topic.name, id).await,
                };
                match made {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::error!(topic = %topic.name, partition = %id.partition, %error, "cannot create a partition's log");
                        self.context.replica_failed(id, &dir);
                        return;
                    }
                }
            }
        };
        let dir = found.dir.id();
        let topic = Arc::clone(&topic.name);
        self.host(id, &topic, found, settings).await;
        if dir != assigned {
            self.context.misplaced.tell(id);
        }
    }

    /// Whether the directory that the metadata has a replica in is not in use here, but known.
    fn is_offline(&self, image: &MetadataImage, assigned: DirectoryId) -> bool {
        match self.context.dirs.get(assigned) {
            Some(dir) => !dir.works(),
            None => image.broker(self.context.config.broker_id).is_some_and(|me| !me.is_online(assigned)),
        }
    }

    /// The replica over its log becomes one of this broker's.
    async fn host(&mut self, id: TopicPartition, topic: &Arc<str>, found: Found, settings: Arc<TopicSettings>) {
        let mut log = found.log;
        log.set_config(Arc::clone(&settings.log));
        let dir = found.dir.id();
        let partition = Partition::new(Parts {
            id,
            topic: Arc::clone(topic),
            config: ReplicaConfig {
                me: self.context.config.broker_id,
                lag_time_max_ms: self.context.config.replica_lag_time_max_ms,
                window_bytes: self.context.config.replica_fetch_max_bytes,
                opens_before: self.context.opens_before(),
                rules: self.context.config.rules,
            },
            dir: found.dir,
            log,
            epochs: found.recovered.epochs,
            high_watermark: found.high_watermark,
            promised: found.promised,
            synced_since: found.synced_since,
            producers: found.producers,
            snapshot_at: found.snapshot_at,
            settings,
        });
        self.resume_move(&partition).await;
        self.context.insert_partition(&partition);
        if partition.wanted_move().is_some() {
            // Who looked before it was there has found nothing.
            self.context.moves.want(id);
        }
        self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(id, dir));
        let key = (topic.to_string(), id.partition);
        if self.context.lost.lock().unwrap_or_else(PoisonError::into_inner).remove(&key).is_some() {
            self.context.replica_found_lossy(id);
        }
    }

    /// A move that the last process began is begun anew, before a cleaner sees the log.
    async fn resume_move(&mut self, partition: &Arc<Partition>) {
        for (dir, future) in self.futures.remove(&partition.id()).unwrap_or_default() {
            if dir.works() && dir.id() != partition.dir().id() && partition.wanted_move().is_none() {
                partition.move_to(&self.context, &dir);
            } else {
                forget(&self.context, dir, future).await;
            }
        }
    }

    /// The log that was found of a replica, in a directory that is in use; of several copies the greatest, the others go.
    async fn claim(&mut self, id: TopicPartition, topic: &str, assigned: DirectoryId) -> Option<Found> {
        // One of another name says whose it is, and cannot be right.
        let (mut copies, others): (Vec<_>, Vec<_>) =
            self.found.remove(&id)?.into_iter().partition(|copy| copy.topic == topic);
        if !others.is_empty() {
            self.found.insert(id, others);
        }
        copies.retain(|copy| copy.dir.works());
        copies.sort_by_key(|copy| {
            let lossy = matches!(copy.recovered.verdict, Verdict::Lossy { .. });
            (!lossy, copy.last_epoch(), copy.log.log_end(), copy.dir.id() == assigned)
        });
        let best = copies.pop()?;
        if !copies.is_empty() {
            let kept = best.dir.data().path().display();
            tracing::warn!(topic = %best.topic, partition = %id.partition, %kept, "a replica was found in several log directories");
            let others = self.found.insert(id, copies);
            self.remove(&[id]).await;
            self.found.extend(others.map(|others| (id, others)));
        }
        Some(best)
    }

    /// Takes the first log out of those that were found that is `wanted`, with the id of what it was found as.
    fn take_found(&mut self, wanted: impl Fn(&TopicPartition, &Found) -> bool) -> Option<(TopicPartition, Found)> {
        let place = |(id, copies): (&TopicPartition, &Vec<Found>)| {
            copies.iter().position(|copy| wanted(id, copy)).map(|at| (*id, at))
        };
        let (id, at) = self.found.iter().find_map(place)?;
        let copies = self.found.get_mut(&id).expect("it was there a moment ago");
        let found = copies.swap_remove(at);
        if copies.is_empty() {
            self.found.remove(&id);
        }
        self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(id, found.dir.id()));
        Some((id, found))
    }

    /// The log that has another topic's id in its file, and by the checkpoint is this replica's: two say so.
    async fn adopt(&mut self, topic: &Arc<str>, id: TopicPartition) -> Option<Found> {
        let (told, found) = self.take_found(|other, found| {
            found.whose.other == Some(id.topic_id) && is_named(found, other, topic, id) && found.dir.works()
        })?;
        let (dir, name) = (Arc::clone(&found.dir), Arc::clone(topic));
        let (hints, high_watermark) = (OpenHints { topic_id: id.topic_id, ..found.hints }, found.high_watermark);
        tracing::error!(topic = %topic, partition = %id.partition, told = %told.topic_id, "partition.metadata told of another topic; it is written again");
        drop(found);
        let opening = move || {
            let path = dir.data().partition_path(&name, id.partition);
            dir.data().restore_identity(&path, id.topic_id).map_err(|error| as_log_error(&dir, &path, &error))?;
            open(&dir, &name, path, hints, high_watermark)
        };
        match when_possible(&self.context.disk_pool, opening).await {
            Ok(found) => {
                self.context
                    .lost
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&(topic.to_string(), id.partition));
                Some(found)
            }
            Err(error) => {
                tracing::error!(topic = %topic, partition = %id.partition, %error, "cannot open a partition's log");
                None
            }
        }
    }

    /// What lies in the way of a new log: that of a topic of its name that was deleted while this broker was away goes. Of one
    /// that may be this replica's nothing is deleted: it is kept aside, and what it promised is lost (`R78`).
    async fn clear_way(
        &mut self,
        image: &MetadataImage,
        dir: &Arc<LogDir>,
        topic: &Arc<str>,
        id: TopicPartition,
    ) -> Result<(), LogError> {
        let is_proven = |other: &TopicPartition, found: &Found| {
            let is_empty = found.promised.max(found.log.log_end()) == Offset::ZERO;
            image.topic(other.topic_id).is_none() && (is_empty || found.whose.sure)
        };
        while let Some((_, found)) =
            self.take_found(|other, found| is_named(found, other, topic, id) && !is_proven(other, found))
        {
            let lost = Lost { directory: found.dir.id(), promised: found.promised.max(Offset(1)), topic_id: None };
            let (old, name) = (Arc::clone(&found.dir), Arc::clone(topic));
            drop(found);
            let put = move || set_aside(&old, &name, id.partition);
            when_possible(&self.context.disk_pool, put).await?;
            let mut all = self.context.lost.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.entry((topic.to_string(), id.partition)).or_insert(lost);
            known.promised = known.promised.max(lost.promised);
        }
        let namesake = |(other, copies): (&TopicPartition, &Vec<Found>)| {
            let here = |found: &Found| is_named(found, other, topic, id) && found.dir.id() == dir.id();
            copies.iter().any(here).then_some(*other)
        };
        if let Some(old) = self.found.iter().find_map(namesake) {
            self.remove(&[old]).await;
        }
        Ok(())
    }

    /// A log for a partition that has none here.
    async fn create(
        &mut self,
        image: &MetadataImage,
        dir: &Arc<LogDir>,
        topic: &Arc<str>,
        id: TopicPartition,
    ) -> Result<Found, LogError> {
        if let Some(found) = self.adopt(topic, id).await {
            return Ok(found);
        }
        self.clear_way(image, dir, topic, id).await?;
        let place = Place { hints: self.hints_of_new(topic, id), id, dir: Arc::clone(dir), topic: Arc::clone(topic) };
        when_possible(&self.context.disk_pool, move || place.open()).await
    }

    /// Opens replicas anew that a read found damaged, or that could not go on for want of a file descriptor or of space, once
    /// the metadata says that they count for nothing: they are found as at a start, and fetch again what they have lost (`R29`).
    /// Where nothing is left of the reserve, they would end again: that is waited for.
    pub(crate) async fn reopen_damaged(&mut self, image: &MetadataImage) {
        let me = self.context.config.broker_id;
        for id in self.context.damaged_and_told() {
            match image.partition(id) {
                // It goes, or is gone.
                None => self.context.reopened(id),
                Some(now) if now.isr.contains(&me) || now.elr.contains(&me) || now.leader == me => {}
                Some(_) if self.context.partition(id).is_some_and(|p| p.dir().health().is_exhausted()) => {}
                Some(_) => self.reopen(image, id).await,
            }
        }
    }

    async fn reopen(&mut self, image: &MetadataImage, id: TopicPartition) {
        let Some(partition) = self.context.partition(id) else { return self.context.reopened(id) };
        let (topic, dir, (_, held)) = (Arc::clone(partition.topic()), partition.dir(), partition.checkpoints());
        let high_watermark = partition.high_watermark();
        let wanted = partition.wanted_move();
        // The checkpoints go on to say what they say.
        let line = (Arc::clone(&topic), held);
        self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert((id, dir.id()), line);
        self.context.remove_partition(id);
        partition.stop(&self.context, true);
        partition.settled().await;
        partition.close();
        let hints = OpenHints {
            topic_id: id.topic_id,
            recovery_point: held.recovery_point,
            clean: false,
            log_start: held.log_start,
            high_watermark: held.high_watermark,
        };
        let (job_dir, name) = (Arc::clone(&dir), Arc::clone(&topic));
        let opening = move || {
            let path = job_dir.data().partition_path(&name, id.partition);
            open(&job_dir, &name, path, hints, high_watermark)
        };
        match when_possible(&self.context.disk_pool, opening).await {
            Ok(mut found) => {
                // By what it was before.
                found.log.assume_lent();
                // Told once more: a leader may have asked for it to be in sync meanwhile.
                self.context.replica_found_lossy(id);
                self.context.reopened(id);
                self.found.insert(id, vec![found]);
                self.ensure(image, id, None).await;
                if let (Some(wanted), Some(partition)) = (wanted, self.context.partition(id)) {
                    partition.move_to(&self.context, &wanted.to);
                }
                self.tell(image, id);
            }
            Err(error) => {
                tracing::error!(%topic, partition = %id.partition, %error, "cannot open a damaged log anew");
                self.context.reopened(id);
                self.context.replica_failed(id, &dir);
            }
        }
    }

    /// Takes replicas off this broker and deletes them: those that it hosts, or what was found of them. What was found by a
    /// metadata that was restored since is kept aside (`R80`).
    async fn remove(&mut self, ids: &[TopicPartition]) {
        let (mut names, mut kept) = (Vec::new(), Vec::new());
        for id in ids {
            for (dir, future) in self.futures.remove(id).unwrap_or_default() {
                forget(&self.context, dir, future).await;
            }
            if let Some(partition) = self.context.remove_partition(*id) {
                partition.stop(&self.context, true);
                // A job that is under way would miss its files.
                partition.settled().await;
                partition.close();
                names.push((partition.dir(), Arc::clone(partition.topic()), id.partition));
            }
            let left = self.context.moves.forget(*id);
            let mut unclaimed = self.context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(left) = left {
                unclaimed.remove(&(*id, left));
            }
            for found in self.found.remove(id).unwrap_or_default() {
                unclaimed.remove(&(*id, found.dir.id()));
                let to = if self.is_unsorted(found.dir.id()) { &mut kept } else { &mut names };
                to.push((found.dir, Arc::from(found.topic.as_str()), id.partition));
            }
        }
        if names.is_empty() && kept.is_empty() {
            return;
        }
        // The checkpoints know names only: what they say of these would be taken for another topic's of that name.
        write_checkpoints(&self.context).await;
        let mut by_dir: BTreeMap<DirectoryId, (Arc<LogDir>, Vec<Gone>)> = BTreeMap::new();
        for (dir, topic, partition) in names.into_iter().filter(|(dir, ..)| dir.works()) {
            tracing::info!(%topic, %partition, directory = %dir.data().path().display(), "deleting a replica");
            by_dir.entry(dir.id()).or_insert_with(|| (dir, Vec::new())).1.push((topic, partition));
        }
        for (dir, partitions) in by_dir.into_values() {
            delete(&self.context, dir, partitions).await;
        }
        for (dir, topic, partition) in kept.into_iter().filter(|(dir, ..)| dir.works()) {
            keep_unknown(&self.context, dir, topic, partition).await;
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

/// Whether a log that was found as `other` lies under the name that `id` has.
fn is_named(found: &Found, other: &TopicPartition, topic: &str, id: TopicPartition) -> bool {
    found.topic == topic && other.partition == id.partition
}

/// Takes a directory out of use of which nobody can say whose it is: for good where it never had a record, else it is kept for
/// people to look at.
fn set_aside(dir: &LogDir, topic: &str, partition: PartitionIndex) -> Result<(), LogError> {
    if let Some(aside) = put_aside(dir, topic, partition)? {
        let kept = aside.display();
        tracing::error!(%topic, %partition, %kept, "nothing proves which topic the log in this directory is of: it is kept under another name, and the replica begins anew as one that lost its records. If no other replica has them: stop this broker, delete the new directory, give this one its name back with a partition.metadata that has the topic's id, and start it; else delete it");
    }
    Ok(())
}

/// The log of a replica that the restored metadata does not place here: it may be all that there is of it (`R80`).
async fn keep_unknown(context: &Context, dir: Arc<LogDir>, topic: Arc<str>, partition: PartitionIndex) {
    let name = Arc::clone(&topic);
    let put = move || put_aside(&dir, &name, partition);
    match when_possible(&context.disk_pool, put).await {
        Ok(None) => {}
        Ok(Some(aside)) => {
            let kept = aside.display();
            tracing::error!(%topic, %partition, %kept, "the metadata was restored from a time when this replica was not here: its log is kept under another name. Nobody reads it any more; once its records are not needed, delete it");
        }
        Err(error) => tracing::error!(%topic, %partition, %error, "cannot set a partition's log aside"),
    }
}

/// Takes a partition's directory away: for good where it never had a record; else gives the name that it has now.
fn put_aside(dir: &LogDir, topic: &str, partition: PartitionIndex) -> Result<Option<PathBuf>, LogError> {
    let path = dir.data().partition_path(topic, partition);
    let aside = match dir.data().has_records(topic, partition) {
        Ok(true) => dir.data().set_aside(topic, partition),
        Ok(false) => dir.data().delete_partition(topic, partition).map(|_| None),
        Err(error) => Err(error),
    };
    aside.map_err(|error| as_log_error(dir, &path, &error))
}

fn as_log_error(dir: &LogDir, path: &Path, error: &DataDirError) -> LogError {
    if error.is_out_of_descriptors() {
        return LogError::NoDescriptor(path.to_owned());
    }
    dir.failed(error);
    LogError::DirectoryOffline(error.to_string())
}

/// The zone of a replica, numbered by the first of the replicas that is in it (`R79`).
fn zone_of(image: &MetadataImage, replicas: &[BrokerId], broker: BrokerId) -> Option<u32> {
    let rack = |broker: &BrokerId| image.broker(*broker).and_then(|broker| broker.rack.as_deref());
    let mine = rack(&broker)?;
    let first = replicas.iter().position(|replica| rack(replica) == Some(mine))?;
    u32::try_from(first).ok()
}

/// What lies in one directory, before any log is opened.
struct Survey {
    dir: Arc<LogDir>,
    checkpoints: Checkpoints,
    partitions: Vec<PartitionDir>,
    futures: Vec<FutureDir>,
    /// By which restored metadata they were sorted (`R80`).
    sorted_by: MetadataOffset,
}

impl Survey {
    fn of(dir: &Arc<LogDir>) -> Result<Survey, DataDirError> {
        let data = dir.data();
        Ok(Survey {
            dir: Arc::clone(dir),
            checkpoints: Checkpoints::read(dir)?,
            partitions: data.partitions()?,
            futures: data.futures()?,
            sorted_by: data.read_restored_at()?,
        })
    }
}

/// Looks into all directories. One that cannot be read is offline from then on.
fn survey(context: &Context) -> Result<Vec<Survey>, DataDirError> {
    let (mut surveys, mut last_error) = (Vec::new(), None);
    for dir in context.dirs.working() {
        match Survey::of(dir) {
            Ok(survey) => surveys.push(survey),
            Err(error) if error.is_out_of_descriptors() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a log directory cannot be read: it is offline");
                dir.failed(&error);
                last_error = Some(error);
            }
        }
    }
    match last_error {
        Some(error) if surveys.is_empty() => Err(error),
        _ => Ok(surveys),
    }
}

/// The replicas that had records, and below which offset, as the directories tell that they were in.
fn promised_in(surveys: &[Survey]) -> BTreeMap<(String, PartitionIndex), Lost> {
    let mut promised: BTreeMap<(String, PartitionIndex), Lost> = BTreeMap::new();
    for survey in surveys {
        let directory = survey.dir.id();
        let ids = &survey.checkpoints.topic_ids;
        let found = survey.partitions.iter().map(|each| ((each.topic.clone(), each.partition), Offset(1)));
        for (key, offset) in survey.checkpoints.promised().into_iter().chain(found) {
            let here = Lost { directory, promised: offset, topic_id: ids.get(&key).copied() };
            let lost = promised.entry(key).or_insert(here);
            if offset > lost.promised {
                *lost = here;
            }
        }
    }
    promised
}

/// What the directories say of replicas, by name, and by the topic's id where a log says it there: wherever such a replica is
/// now, it has to have that, and no copy may stand for what it has lost.
fn promised_elsewhere(surveys: &[Survey]) -> BTreeMap<(ReplicaName, Option<TopicId>), Elsewhere> {
    let mut promised: BTreeMap<_, Elsewhere> = BTreeMap::new();
    for survey in surveys {
        let here: BTreeMap<_, _> = survey
            .partitions
            .iter()
            .map(|each| ((each.topic.as_str(), each.partition), survey.checkpoints.whose(each)))
            .collect();
        for (name, offset) in survey.checkpoints.promised() {
            let found = here.get(&(name.0.as_str(), name.1));
            let log_start = survey.checkpoints.log_starts.get(&name).copied().unwrap_or(Offset::ZERO);
            let high_watermark = survey.checkpoints.high_watermarks.get(&name).copied().unwrap_or(Offset::ZERO);
            let below = if found.is_none() { offset } else { high_watermark };
            // Whose a log is that does not say it, nobody knows.
            let topic_id = match found {
                Some(None) => continue,
                found => found.copied().flatten(),
            };
            let all = promised.entry((name, topic_id)).or_insert(Elsewhere::NOTHING);
            *all = all.and(Elsewhere { high_watermark, promised: below, log_start });
        }
    }
    promised
}

/// A replica by its name on disk.
type ReplicaName = (String, PartitionIndex);

/// What any directory says of a replica, whichever it is in.
#[derive(Clone, Copy)]
struct Elsewhere {
    high_watermark: Offset,
    /// Below it records have to be; not all of them need be committed.
    promised: Offset,
    log_start: Offset,
}

impl Elsewhere {
    const NOTHING: Elsewhere =
        Elsewhere { high_watermark: Offset::ZERO, promised: Offset::ZERO, log_start: Offset::ZERO };

    /// Both are so.
    fn and(self, other: Elsewhere) -> Elsewhere {
        Elsewhere {
            high_watermark: self.high_watermark.max(other.high_watermark),
            promised: self.promised.max(other.promised),
            log_start: self.log_start.max(other.log_start),
        }
    }
}

/// Waits for all logs, and tells how far it is where that takes long.
async fn collect(
    mut jobs: tokio::task::JoinSet<Option<(TopicPartition, Found)>>,
    total: usize,
) -> BTreeMap<TopicPartition, Vec<Found>> {
    let (mut found, mut done) = (BTreeMap::<_, Vec<Found>>::new(), 0);
    let mut tell = tokio::time::interval_at(tokio::time::Instant::now() + TELL_EVERY, TELL_EVERY);
    loop {
        // Dropping either branch is safe: what has ended stays in the set.
        tokio::select! {
            ended = jobs.join_next() => match ended {
                Some(job) => {
                    done += 1;
                    let one = job.expect("no job of the set is aborted, and a panic ends the process");
                    if let Some((id, copy)) = one {
                        found.entry(id).or_default().push(copy);
                    }
                }
                None => return found,
            },
            _ = tell.tick() => tracing::info!(done, of = total, "recovering the logs"),
        }
    }
}

/// Does what opens a log, as soon as there are file descriptors for it: what cannot be opened for want of them is not gone, and
/// a log that was made anew in its place would be taken for all that there is.
async fn when_possible<T: Send + 'static>(
    pool: &DiskPool,
    open: impl Fn() -> Result<T, LogError> + Send + Sync + 'static,
) -> Result<T, LogError> {
    let open = Arc::new(open);
    loop {
        let job = Arc::clone(&open);
        match pool.run(move || job()).await {
            Err(LogError::NoDescriptor(_)) => tokio::time::sleep(SHORTAGE_PAUSE).await,
            opened => return opened,
        }
    }
}

/// The only error is that there is no file descriptor.
fn recover_one(
    dir: &Arc<LogDir>,
    checkpoints: &Checkpoints,
    elsewhere: Elsewhere,
    directory: &PartitionDir,
    clean: bool,
) -> Result<Option<(TopicPartition, Found)>, LogError> {
    let shown = directory.path.display();
    let Some(topic_id) = checkpoints.whose(directory) else {
        tracing::error!(directory = %shown, "partition.metadata is missing or damaged; this replica is fetched again where the metadata places one");
        return Ok(None);
    };
    if directory.topic_id.is_none() {
        tracing::error!(directory = %shown, %topic_id, "partition.metadata is missing or damaged; it is written again as the topic-id-checkpoint says");
        match dir.data().restore_identity(&directory.path, topic_id) {
            Err(error) if error.is_out_of_descriptors() => return Err(LogError::NoDescriptor(directory.path.clone())),
            Err(error) => {
                tracing::error!(%error, "cannot write partition.metadata");
                return Ok(None);
            }
            Ok(()) => {}
        }
    }
    let key = (directory.topic.clone(), directory.partition);
    let noted = checkpoints.topic_ids.get(&key).copied();
    let is_sure = directory.checked || directory.topic_id.is_some() && noted == directory.topic_id;
    let whose = Whose { sure: is_sure, other: noted.filter(|noted| *noted != topic_id) };
    let hint = |offsets: &BTreeMap<_, Offset>| offsets.get(&key).copied().unwrap_or(Offset::ZERO);
    let high_watermark = hint(&checkpoints.high_watermarks).max(elsewhere.high_watermark);
    let hints = OpenHints {
        topic_id,
        recovery_point: hint(&checkpoints.recovery_points),
        clean,
        log_start: hint(&checkpoints.log_starts).max(elsewhere.log_start),
        high_watermark: high_watermark.max(elsewhere.promised),
    };
    let synced_since = checkpoints.synced.get(&(topic_id.to_string(), directory.partition)).copied();
    match open(dir, &directory.topic, directory.path.clone(), hints, high_watermark) {
        Ok(found) => {
            let found = Found { synced_since, whose, ..found };
            Ok(Some((TopicPartition { topic_id, partition: directory.partition }, found)))
        }
        Err(error @ LogError::NoDescriptor(_)) => Err(error),
        Err(error) => {
            tracing::error!(directory = %shown, %error, "cannot open a partition's log");
            Ok(None)
        }
    }
}

/// The log has to have what `hints` say; it is committed up to `high_watermark`, as far as anybody remembers (`R18`).
fn open(
    dir: &Arc<LogDir>,
    topic: &str,
    path: PathBuf,
    hints: OpenHints,
    high_watermark: Offset,
) -> Result<Found, LogError> {
    let (mut log, recovered) = Log::open(dir.data().env(), &path, Arc::default(), hints)?;
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
            return open(dir, topic, path, hints, high_watermark);
        }
        recovered => recovered?,
    };
    Ok(Found {
        dir: Arc::clone(dir),
        topic: topic.to_owned(),
        log,
        recovered,
        producers,
        snapshot_at,
        high_watermark,
        promised: hints.high_watermark.max(hints.recovery_point),
        synced_since: None,
        hints,
        whose: Whose { sure: true, other: None },
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

/// Takes a copy that nobody goes on with out of use.
async fn forget(context: &Context, dir: Arc<LogDir>, future: FutureDir) {
    tracing::info!(directory = %future.path.display(), "a move that was begun is not gone on with");
    let job_dir = Arc::clone(&dir);
    let forgotten = context.disk_pool.run(move || {
        job_dir.data().delete_future(&future.path)?;
        job_dir.data().free_deleted()
    });
    if let Err(error) = forgotten.await {
        tracing::error!(%error, "cannot take a directory out of use");
        dir.failed(&error);
    }
}

/// A partition that is deleted, by name.
type Gone = (Arc<str>, PartitionIndex);

/// Takes the files of partitions in one directory out of use on the disk pool.
/// They have other names when this returns; their space is freed later, so that what follows in the metadata does not wait.
async fn delete(context: &Arc<Context>, dir: Arc<LogDir>, partitions: Vec<Gone>) {
    let job_dir = Arc::clone(&dir);
    let renamed = context.disk_pool.run(move || {
        let names: Vec<_> = partitions.iter().map(|(topic, partition)| (&**topic, *partition)).collect();
        job_dir.data().delete_partitions(&names)
    });
    if let Err(error) = renamed.await {
        tracing::error!(%error, "cannot delete the files of partitions");
        return;
    }
    let pool = context.disk_pool.clone();
    tokio::spawn(async move {
        if let Err(error) = pool.run(move || dir.data().free_deleted()).await {
            tracing::error!(%error, "cannot free the space of deleted partitions");
        }
    });
}

impl Place {
    fn open(&self) -> Opened {
        let Place { id, dir, topic, hints } = self;
        let path = dir.data().partition_path(topic, id.partition);
        // Nobody has looked at it: what is in it is committed once a leader says so.
        match open(dir, topic, path.clone(), *hints, Offset::ZERO) {
            // What lies there cannot be told to be this partition's.
            Err(LogError::UnknownTopic(_) | LogError::WrongTopic { .. }) => {
                set_aside(dir, topic, id.partition)?;
                open(dir, topic, path, *hints, Offset::ZERO)
            }
            other => other,
        }
    }
}

impl Found {
    /// What the checkpoints go on to say of it until the metadata has claimed it.
    fn checkpointed(&self, topic_id: TopicId) -> Checkpointed {
        let lossy = self.log.lossy_from().is_some();
        Checkpointed {
            recovery_point: self.log.recovery_point(),
            log_start: self.log.log_start(),
            high_watermark: if lossy { self.promised } else { self.high_watermark },
            synced_since: self.synced_since.map(|since| (topic_id, since)),
            topic_id: self.whose.other.or(Some(topic_id)),
        }
    }

    /// The epoch of its last record (`R57`).
    fn last_epoch(&self) -> LeaderEpoch {
        self.log.last_batch_header().map_or(LeaderEpoch::NONE, |header| header.leader_epoch)
    }
}

impl Checkpoints {
    fn read(dir: &LogDir) -> Result<Checkpoints, DataDirError> {
        let data = dir.data();
        Ok(Checkpoints {
            recovery_points: data.read_checkpoint(Checkpoint::RecoveryPoint)?,
            log_starts: data.read_checkpoint(Checkpoint::LogStart)?,
            high_watermarks: data.read_checkpoint(Checkpoint::HighWatermark)?,
            synced: data.read_checkpoint(Checkpoint::SyncedBeforeAck)?,
            topic_ids: data.read_topic_ids()?,
        })
    }

    /// Which topic's the log in a directory is: as its file says, else as was noted.
    fn whose(&self, directory: &PartitionDir) -> Option<TopicId> {
        let noted = || self.topic_ids.get(&(directory.topic.clone(), directory.partition)).copied();
        directory.topic_id.or_else(noted)
    }

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
    topic_ids: BTreeMap<(String, PartitionIndex), TopicId>,
}
