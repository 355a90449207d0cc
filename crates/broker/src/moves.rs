//! Moves of replicas from one log directory of this broker to another (AlterReplicaLogDirs, KIP-113).
//!
//! ```text
//!  asked ──► waits for its turn ──► copies, throttled ──caught up──► swapped under the lock ──► the controller is told
//!              │                       │
//!              └── asked back, the replica goes, its log fails ──► given up; what was copied goes, or says at the next
//!                                                                  start that the replica is to be moved
//! ```
//!
//! Checkpoints know names only. So those of the old directory say of the replica what they said until those of the new one
//! speak of it, and it does not come back to the old one before what they said is gone.
//!
//! Invariants: so many moves run as there are log directories, or as `num.replica.alter.log.dirs.threads` says; all together
//! they copy no more than `replica.alter.log.dirs.io.max.bytes.per.second` on average. A log that moves is not compacted: what
//! is copied already would miss what a tombstone that is not copied yet has removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metadata::configs::alter_log_dirs_rate;
use model::{DirectoryId, ErrorCode, PartitionIndex, TopicPartition};
use storage::log::relocation::{Relocation, STEP_BYTES};
use storage::{LogDir, LogError, is_movable};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::api::ReplicaLogDir;
use crate::cleaner::{Throttle, slice};
use crate::context::Context;
use crate::partition::{Copied, Partition, Wanted};

/// Between two looks at a log that has nothing to copy, or cannot be swapped yet.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks, while a move is held back, whether it still is.
const NAP: Duration = Duration::from_millis(200);
/// Before it is tried again after the disk was full, or the process had too many files open.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Directories remembered for replicas that are not here yet.
const PREFERRED_MAX: usize = 10_000;
/// Steps that fail one after the other before a move is given up.
const FAILURES_MAX: u32 = 5;

/// What the moves share.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    waiting: Mutex<VecDeque<TopicPartition>>,
    more: Notify,
    begun: AtomicU64,
    /// Replicas with a copy in the making, or on its way out: one at a time for each.
    active: Mutex<BTreeSet<TopicPartition>>,
    throttle: Throttle,
    /// Where replicas are wanted that are not here yet.
    preferred: Mutex<BTreeMap<(String, PartitionIndex), DirectoryId>>,
    /// The directories that replicas have left, as long as the checkpoints there speak of them.
    leaving: Mutex<Leaving>,
}

/// Which directory each has left, and how far the checkpoints are.
pub(crate) type Leaving = BTreeMap<TopicPartition, (DirectoryId, Trace)>;

/// What the next checkpoints are to say of a replica that is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trace {
    /// In the old directory what they said, in the new one what is so.
    Both,
    /// In the old directory nothing.
    None,
}

impl Moves {
    /// A partition is to move; gives the number of its move.
    pub(crate) fn begin(&self, id: TopicPartition) -> u64 {
        self.want(id);
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// A partition's wish is to be looked at; it waits once at most.
    pub(crate) fn want(&self, id: TopicPartition) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.contains(&id) {
            waiting.push_back(id);
        }
        drop(waiting);
        self.more.notify_one();
    }

    /// The directory that was wanted for a replica before it came, once.
    pub(crate) fn take_preferred(&self, topic: &str, partition: PartitionIndex) -> Option<DirectoryId> {
        let mut preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        if preferred.is_empty() {
            return None;
        }
        preferred.remove(&(topic.to_owned(), partition))
    }

    /// Whether [`Moves::take_preferred`] has something for any replica.
    pub(crate) fn prefers_any(&self) -> bool {
        !self.preferred.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn prefer(&self, topic: &str, partition: PartitionIndex, dir: DirectoryId) {
        let mut preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (topic.to_owned(), partition);
        if preferred.len() < PREFERRED_MAX || preferred.contains_key(&key) {
            preferred.insert(key, dir);
        }
    }

    /// A replica has left a directory.
    pub(crate) fn left(&self, id: TopicPartition, from: DirectoryId) {
        self.traces().insert(id, (from, Trace::Both));
    }

    /// The replicas that have left a directory whose checkpoints may still speak of them.
    pub(crate) fn leaving(&self) -> Leaving {
        self.traces().clone()
    }

    /// The replica goes for good: gives the directory whose checkpoints may still speak of it.
    pub(crate) fn forget(&self, id: TopicPartition) -> Option<DirectoryId> {
        self.traces().remove(&id).map(|(from, _)| from)
    }

    fn traces(&self) -> MutexGuard<'_, Leaving> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next one that has no copy under way, which has one from now on. The end of a copy is waited for without a thread.
    fn next(&self) -> Option<TopicPartition> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut active = self.active();
        let at = waiting.iter().position(|id| !active.contains(id))?;
        let id = waiting.remove(at)?;
        active.insert(id);
        Some(id)
    }

    fn active(&self) -> MutexGuard<'_, BTreeSet<TopicPartition>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica's copy, until this is dropped.
struct Active {
    context: Arc<Context>,
    id: TopicPartition,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.context.moves.active().remove(&self.id);
    }
}

/// Has a replica moved, or stay where it is: as Kafka answers AlterReplicaLogDirs.
pub(crate) fn alter(context: &Arc<Context>, wanted: &ReplicaLogDir, cordoned: &[DirectoryId]) -> ErrorCode {
    if !is_movable(&wanted.topic, wanted.partition) {
        return ErrorCode::InvalidTopicException;
    }
    let path = Path::new(&*wanted.path);
    let Some(dir) = context.dirs.at(path) else {
        let unopened = context.dirs.unopened().iter().any(|unopened| unopened.path == path);
        return if unopened { ErrorCode::KafkaStorageError } else { ErrorCode::LogDirNotFound };
    };
    if !dir.works() {
        return ErrorCode::KafkaStorageError;
    }
    if cordoned.contains(&dir.id()) {
        return ErrorCode::InvalidReplicaAssignment;
    }
    let id = context.image().topic_id(&wanted.topic);
    let id = id.map(|topic_id| TopicPartition { topic_id, partition: wanted.partition });
    if let Some(partition) = id.and_then(|id| context.partition(id)) {
        return partition.move_to(context, dir);
    }
    if id.is_some_and(|id| is_offline(context, id)) {
        return ErrorCode::KafkaStorageError;
    }
    // It will be made there when it comes.
    context.moves.prefer(&wanted.topic, wanted.partition, dir.id());
    let is_known = id.is_some_and(|id| context.image().partition(id).is_some());
    if is_known { ErrorCode::ReplicaNotAvailable } else { ErrorCode::UnknownTopicOrPartition }
}

/// The checkpoints of all directories were written, after these were leaving.
pub(crate) fn checkpoints_written(context: &Context, leaving: &Leaving) {
    let told_twice = leaving.iter().filter(|(_, (_, trace))| *trace == Trace::Both);
    for (id, (from, _)) in told_twice {
        context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(*id, *from));
        context.flusher.checkpoints_moved();
    }
    let mut traces = context.moves.traces();
    for (id, seen) in leaving {
        match traces.get_mut(id) {
            Some(now) if *now == *seen && now.1 == Trace::Both => now.1 = Trace::None,
            Some(now) if *now == *seen => drop(traces.remove(id)),
            // It goes for good.
            _ => {}
        }
    }
}

/// Whether a replica that should be here is in a directory that is out of use.
fn is_offline(context: &Context, id: TopicPartition) -> bool {
    let (image, me) = (context.image(), context.config.broker_id);
    image.partition(id).is_some_and(|partition| {
        let online = image.broker(me).is_none_or(|broker| broker.is_online(partition.directory_of(me)));
        partition.replicas.contains(&me) && !online
    })
}

/// Moves until the broker stops.
pub(crate) async fn run(context: Arc<Context>) {
    let mut running = JoinSet::new();
    let given = context.config.file.get("num.replica.alter.log.dirs.threads").and_then(|given| given.parse().ok());
    let threads = given.unwrap_or(context.dirs.iter().len()).max(1);
    loop {
        while running.len() < threads {
            let Some(id) = context.moves.next() else { break };
            running.spawn(relocate(Active { context: Arc::clone(&context), id }));
        }
        // Dropping either is safe: the round looks at everything anew.
        tokio::select! {
            () = context.moves.more.notified() => {}
            Some(ended) = running.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a move ended in a way that it must not");
            },
        }
    }
}

/// Moves one replica.
async fn relocate(active: Active) {
    let (context, id) = (Arc::clone(&active.context), active.id);
    let Some(partition) = context.partition(id) else { return };
    let Some(wanted) = partition.wanted_move() else { return };
    let (from, to) = (partition.dir(), Arc::clone(&wanted.to));
    let (topic, directory) = (Arc::clone(partition.topic()), to.data().path().display().to_string());
    tracing::info!(%topic, partition = %id.partition, %directory, "moving a replica to another log directory");
    // One that was moved a moment ago is not to meet what the checkpoints still say of it.
    while partition.is_cleaned() || context.moves.traces().contains_key(&id) {
        tokio::time::sleep(PAUSE).await;
    }
    let (job_to, job_topic, config) = (Arc::clone(&to), Arc::clone(&topic), partition.log_config());
    let opened = context.disk_pool.run(move || Relocation::open(&job_to, &job_topic, id, config)).await;
    // What an earlier process had copied there takes the space that this copy needs.
    free(&context, Arc::clone(&to)).await;
    let ended = match opened {
        Ok(relocation) => copy_and_swap(&context, &partition, &wanted, Box::new(relocation)).await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(End::Swapped) => {
            tracing::info!(%topic, partition = %id.partition, %directory, "a replica was moved");
            context.misplaced.tell(id);
            free(&context, from).await;
        }
        Ok(End::GivenUp) => {
            tracing::info!(%topic, partition = %id.partition, %directory, "a move was given up");
            free(&context, to).await;
        }
        Ok(End::Held) => {}
        Err(error) => {
            tracing::error!(%topic, partition = %id.partition, %directory, %error, "cannot move a replica; it stays where it is");
            partition.move_ended(wanted.number);
            forget_copy(&context, &to, &topic, id).await;
        }
    }
}

/// What was copied of a replica that stays goes: the next start would take it for a move that goes on.
async fn forget_copy(context: &Context, to: &Arc<LogDir>, topic: &Arc<str>, id: TopicPartition) {
    let (dir, name) = (Arc::clone(to), Arc::clone(topic));
    let forgotten = context.disk_pool.run(move || match dir.data().future_path(&name, id) {
        Some(path) if dir.works() => dir.data().delete_future(&path),
        _ => Ok(()),
    });
    if let Err(error) = forgotten.await {
        tracing::error!(%error, "cannot take what was copied of a replica out of use");
    }
    free(context, Arc::clone(to)).await;
}

/// Frees what a move has left behind.
async fn free(context: &Context, dir: Arc<LogDir>) {
    let path = dir.data().path().display().to_string();
    if let Err(error) = context.disk_pool.run(move || dir.data().free_deleted()).await {
        tracing::error!(directory = path, %error, "cannot free what a move has left behind");
    }
}

/// How a move ended.
enum End {
    Swapped,
    /// Nobody wants it any more.
    GivenUp,
    /// It waits for the next start of the process.
    Held,
}

async fn copy_and_swap(
    context: &Arc<Context>,
    partition: &Arc<Partition>,
    wanted: &Wanted,
    mut relocation: Box<Relocation>,
) -> Result<End, LogError> {
    let (mut failures, mut told, number) = (0, false, wanted.number);
    loop {
        let (job_partition, job_context, rate) = (Arc::clone(partition), Arc::clone(context), rate_of(context));
        let slice = usize::try_from(slice(rate)).map_or(STEP_BYTES, |bytes| bytes.min(STEP_BYTES));
        let step = move || {
            let copied = job_partition.copy_some(&job_context, number, &mut relocation, slice);
            (relocation, copied)
        };
        let (back, mut copied) = context.disk_pool.run(step).await;
        relocation = back;
        if matches!(copied, Ok(Copied::All)) {
            (relocation, copied) = partition.swap(context, number, relocation).await;
        }
        match copied {
            Ok(Copied::Bytes(bytes)) => {
                failures = 0;
                pace(context, partition, number, bytes, rate).await;
            }
            Ok(Copied::All) => tokio::time::sleep(PAUSE).await,
            Ok(Copied::Swapped) => return Ok(End::Swapped),
            Ok(Copied::Held) => return Ok(End::Held),
            Ok(Copied::GivenUp) => {
                abandon(context, &wanted.to, relocation).await;
                return Ok(End::GivenUp);
            }
            Err(error) if error.is_shortage() && !relocation.is_unfinished() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(topic = %partition.topic(), partition = %partition.id().partition, %error, "a move waits");
                }
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
            Err(error) if failures < FAILURES_MAX && may_pass(&error) => {
                failures += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the log was cut or deleted while it was read: the next step compares both.
fn may_pass(error: &LogError) -> bool {
    use LogError::{Corrupt, Gone, OutOfOrder, OutOfRange};
    matches!(error, Gone(_) | Corrupt { .. } | OutOfOrder { .. } | OutOfRange { .. })
}

async fn abandon(context: &Context, to: &Arc<LogDir>, relocation: Box<Relocation>) {
    let to = Arc::clone(to);
    if let Err(error) = context.disk_pool.run(move || relocation.abandon(&to)).await {
        tracing::error!(%error, "cannot take what was copied of a replica out of use");
    }
}

/// Waits until so many bytes are paid for, or the move is given up, or the rate is another one.
async fn pace(context: &Context, partition: &Partition, number: u64, bytes: u64, rate: f64) {
    if bytes == 0 {
        return tokio::time::sleep(PAUSE).await;
    }
    let mut pause = context.moves.throttle.pay(context.clock.monotonic(), bytes, rate);
    while pause >= Duration::from_millis(1) {
        let nap = pause.min(NAP);
        tokio::time::sleep(nap).await;
        pause -= nap;
        if partition.wanted_move().is_none_or(|wanted| wanted.number != number) {
            return;
        }
        if rate_of(context).to_bits() != rate.to_bits() {
            return context.moves.throttle.forgive();
        }
    }
}

fn rate_of(context: &Context) -> f64 {
    alter_log_dirs_rate(&context.image(), context.config.broker_id, &context.config.file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{TopicId, Uuid};

    fn id(partition: i32) -> TopicPartition {
        TopicPartition { topic_id: TopicId(Uuid::from_u128(7)), partition: PartitionIndex(partition) }
    }

    #[test]
    fn a_replica_waits_once_and_is_passed_over_while_a_copy_of_it_is_made() {
        let moves = Moves::default();
        for wish in [id(1), id(1), id(2), id(1)] {
            moves.begin(wish);
        }
        assert_eq!([moves.next(), moves.next(), moves.next()], [Some(id(1)), Some(id(2)), None]);
        // Wanted elsewhere meanwhile: for that it waits until the copy is over, and keeps no other one waiting.
        for wish in [id(1), id(3), id(1)] {
            moves.want(wish);
        }
        assert_eq!([moves.next(), moves.next()], [Some(id(3)), None]);
        moves.active().remove(&id(1));
        assert_eq!([moves.next(), moves.next()], [Some(id(1)), None]);
    }
}
