//! Watches the log directories: says why writes are refused or go on again, ends the replicas of one that fails (`R30`), and
//! tells the controller which replicas are elsewhere than the metadata says (KIP-858).
//!
//! Below the reserve the logs refuse appends by themselves; what is left to do here is to look, to tell, and to have the
//! controller hand this broker's leaderships to replicas that have space.
//!
//! Invariant: a replica whose directory is not the one that the metadata names is told of until both agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metadata::control::{AssignReplicas, ControlRequest, ControlResponse};
use model::{DirectoryId, TopicPartition};
use storage::LogDir;
use storage::reserve::floor_of;
use tokio::sync::Notify;

use crate::context::Context;

/// Between two looks; appends between them are counted.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Before what the controller did not take is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// Replicas told of in one request.
const TOLD_MAX: usize = 2000;

/// Replicas that are elsewhere than the metadata says.
#[derive(Debug, Default)]
pub(crate) struct Misplaced {
    replicas: Mutex<BTreeSet<TopicPartition>>,
    more: Notify,
}

impl Misplaced {
    /// The controller is to be told where this one is.
    pub(crate) fn tell(&self, id: TopicPartition) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.more.notify_one();
    }

    /// Those to tell of; those that the metadata knows by now, or that are gone, are forgotten.
    fn take_stock(&self, context: &Context) -> Vec<(TopicPartition, DirectoryId)> {
        let (image, me) = (context.image(), context.config.broker_id);
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Vec::new();
        replicas.retain(|id| {
            let Some(actual) = context.partition(*id).map(|partition| partition.dir().id()) else { return false };
            let misplaced = image.partition(*id).is_some_and(|partition| partition.directory_of(me) != actual);
            if misplaced && found.len() < TOLD_MAX {
                found.push((*id, actual));
            }
            misplaced
        });
        found
    }
}

/// Runs until the broker stops.
pub(crate) async fn watch(context: Arc<Context>) {
    let mut seen: BTreeMap<DirectoryId, Seen> = BTreeMap::new();
    loop {
        let job_context = Arc::clone(&context);
        let look = move || {
            for dir in job_context.dirs.working() {
                dir.data().watch_space();
            }
        };
        context.disk_pool.run(look).await;
        for dir in context.dirs.iter() {
            let health = dir.health();
            let now = Seen { full: health.is_full(), exhausted: health.is_exhausted(), failed: !dir.works() };
            let before = seen.insert(dir.id(), now).unwrap_or_default();
            if now.failed && !before.failed {
                end_replicas(&context, dir);
                context.heartbeat_wanted.notify_one();
            }
            // A fast writer may have reached the reserve between two looks.
            if now.full != before.full && !now.failed {
                tell_space(dir, now.full);
                context.heartbeat_wanted.notify_one();
            }
            if now.exhausted != before.exhausted && !now.failed {
                tell_exhausted(dir, now.exhausted);
                context.heartbeat_wanted.notify_one();
                // Of replicas that ended for want of space.
                context.reopening_wanted.notify_one();
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// What was told of a directory.
#[derive(Clone, Copy, Default)]
struct Seen {
    full: bool,
    exhausted: bool,
    failed: bool,
}

fn end_replicas(context: &Arc<Context>, dir: &Arc<LogDir>) {
    let mut ended = 0;
    for partition in context.partitions() {
        if partition.dir().id() == dir.id() {
            partition.directory_failed(context);
            ended += 1;
        }
    }
    let others = context.dirs.working().count();
    tracing::error!(directory = %dir.data().path().display(), ended, others, "the replicas of a failed log directory are offline");
}

fn tell_space(dir: &LogDir, full: bool) {
    let space = dir.health().space();
    let directory = dir.data().path().display();
    let (available, reserve) = (space.available, space.reserve);
    if full {
        tracing::error!(
            %directory, available, reserve,
            "less space is free than ottla.disk.reserve.bytes keeps: writes are refused here, reads go on; free some space"
        );
    } else {
        tracing::info!(%directory, available, reserve, "there is space again: writes are taken");
    }
}

fn tell_exhausted(dir: &LogDir, exhausted: bool) {
    let space = dir.health().space();
    let directory = dir.data().path().display();
    let (available, least) = (space.available, floor_of(space.reserve));
    if exhausted {
        tracing::error!(
            %directory, available, least,
            "little is left of what ottla.disk.reserve.bytes keeps: writes of internal topics are refused here, too, so no \
             offset can be committed; free some space"
        );
    } else {
        tracing::info!(%directory, available, least, "writes of internal topics are taken again");
    }
}

/// Tells the controller of misplaced replicas, until the broker stops.
pub(crate) async fn keep_assigned(context: Arc<Context>) {
    loop {
        let replicas = context.misplaced.take_stock(&context);
        if replicas.is_empty() {
            context.misplaced.more.notified().await;
            continue;
        }
        if let Some((epoch, _)) = context.registration() {
            let count = replicas.len();
            let request = AssignReplicas { broker: context.config.broker_id, epoch, replicas: replicas.clone() };
            match context.ask(ControlRequest::AssignReplicas(request), CALL_TIMEOUT).await {
                Ok(ControlResponse::Done) => {
                    tracing::info!(count, "told the controller in which log directories replicas are")
                }
                Ok(other) => {
                    tracing::warn!(?other, "the controller does not take where replicas are; telling it again")
                }
                Err(error) => tracing::info!(%error, "no answer to where replicas are; telling it again"),
            }
        }
        let (image, me) = (context.image(), context.config.broker_id);
        let known = |(id, dir): &(TopicPartition, DirectoryId)| {
            image.partition(*id).is_none_or(|partition| partition.directory_of(me) == *dir)
        };
        let _ = context.wait_metadata(TELL_AGAIN, || replicas.iter().all(known).then_some(())).await;
    }
}

/// The directory for a new replica that the metadata does not name one for: Kafka's rule, the one with the fewest.
pub(crate) fn choose(context: &Context) -> Option<Arc<LogDir>> {
    let mut loads: BTreeMap<DirectoryId, usize> = BTreeMap::new();
    for partition in context.partitions() {
        *loads.entry(partition.dir().id()).or_default() += 1;
    }
    let (cordoned, load) = (context.cordoned_directories(), |dir: &LogDir| loads.get(&dir.id()).copied().unwrap_or(0));
    let rank = |dir: &&Arc<LogDir>| (cordoned.contains(&dir.id()), dir.health().is_full(), load(dir));
    context.dirs.working().min_by_key(rank).cloned()
}
