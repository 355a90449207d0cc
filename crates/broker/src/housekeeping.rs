//! What a broker does from time to time: retention, expiry of producers; and what the checkpoints say.
//!
//! Invariants: a checkpoint holds only what an fdatasync covered (`R25`, `R31`). A segment goes only when a checkpoint holds the
//! log start that it lies below.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use model::{DirectoryId, Offset, PartitionIndex};
use storage::{Checkpoint, DataDirError, LogDir};

use crate::context::Context;
use crate::partition::Checkpointed;

/// Brings everything to the disk, for a clean shutdown. True where nothing is missing (`R10`).
pub(crate) async fn complete(context: &Arc<Context>) -> bool {
    let mut whole = true;
    for partition in context.partitions() {
        whole &= partition.complete(context).await;
    }
    write_checkpoints(context).await.len() == context.dirs.iter().len() && whole
}

/// By directory, then by name.
type Lines = BTreeMap<DirectoryId, BTreeMap<(Arc<str>, PartitionIndex), Checkpointed>>;

/// What the checkpoints of each directory are to say: of replicas that are gone what they promised (`R78`), of logs that nobody has claimed
/// yet what was found, and of the partitions here. A replica that goes from one to the next is never in none.
fn checkpoint_lines(context: &Context) -> Lines {
    let mut lines: Lines = context.dirs.iter().map(|dir| (dir.id(), BTreeMap::new())).collect();
    let mut put = |dir, name, all| {
        lines.entry(dir).or_default().insert(name, all);
    };
    for ((topic, partition), lost) in &*context.lost.lock().unwrap_or_else(PoisonError::into_inner) {
        let all = Checkpointed {
            recovery_point: Offset::ZERO,
            log_start: Offset::ZERO,
            high_watermark: lost.promised,
            synced_since: None,
            topic_id: lost.topic_id,
        };
        put(lost.directory, (Arc::from(topic.as_str()), *partition), all);
    }
    for ((id, dir), (topic, all)) in &*context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner) {
        put(*dir, (Arc::clone(topic), id.partition), *all);
    }
    for partition in context.partitions() {
        let (dir, all) = partition.checkpoints();
        put(dir, (Arc::clone(partition.topic()), partition.id().partition), all);
    }
    lines
}

/// Writes recovery points, log starts and high watermarks, as they are when it is its turn; says in which directories. One
/// where it fails for another reason than want of space is offline from then on (`R30`).
pub(crate) async fn write_checkpoints(context: &Arc<Context>) -> BTreeSet<DirectoryId> {
    let job_context = Arc::clone(context);
    let write = move || {
        // One after the other: a writer that nobody waits for any more may still be at it.
        let _turn = job_context.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = checkpoint_lines(&job_context);
        let mut written = BTreeSet::new();
        for dir in job_context.dirs.working() {
            match write_directory(dir, &lines.remove(&dir.id()).unwrap_or_default()) {
                Ok(()) => drop(written.insert(dir.id())),
                Err(error) => {
                    tracing::error!(%error, "cannot write the checkpoints; the next start will take longer");
                    dir.failed(&error);
                }
            }
        }
        written
    };
    context.disk_pool.run(write).await
}

fn write_directory(
    dir: &LogDir,
    lines: &BTreeMap<(Arc<str>, PartitionIndex), Checkpointed>,
) -> Result<(), DataDirError> {
    let line = |offset: fn(&Checkpointed) -> Offset| {
        lines.iter().map(move |((topic, index), all)| (&**topic, *index, offset(all)))
    };
    let synced = lines.iter().filter_map(|((_, index), all)| all.synced_since.map(|since| (*index, since)));
    let synced: Vec<_> = synced.map(|(index, (id, since))| (id.to_string(), index, since)).collect();
    let data = dir.data();
    let ids = lines.iter().filter_map(|((topic, index), all)| all.topic_id.map(|id| (&**topic, *index, id)));
    // First: whose the promises of the others are.
    data.write_topic_ids(ids)?;
    data.write_checkpoint(Checkpoint::RecoveryPoint, line(|all| all.recovery_point))?;
    data.write_checkpoint(Checkpoint::LogStart, line(|all| all.log_start))?;
    data.write_checkpoint(Checkpoint::HighWatermark, line(|all| all.high_watermark))?;
    let synced = synced.iter().map(|(id, index, since)| (id.as_str(), *index, *since));
    data.write_checkpoint(Checkpoint::SyncedBeforeAck, synced)
}

/// Retention, rolling by time, expiry of producers, until the broker stops. Files that were deleted are freed when their time
/// has come, by the partitions' timers.
pub(crate) async fn retain(context: Arc<Context>) {
    let interval = Duration::from_millis(context.config.log_retention_check_interval_ms.max(1));
    loop {
        tokio::time::sleep(interval).await;
        retain_once(&context).await;
    }
}

/// The log starts of all rise and are written before anything below them goes: a power cut may undo any part of what was not
/// synced, and is to leave no log with a hole.
async fn retain_once(context: &Arc<Context>) {
    let mut expired = Vec::new();
    for partition in context.partitions() {
        let (job_context, pool) = (Arc::clone(context), context.disk_pool.clone());
        let found = pool.run(move || partition.expire(&job_context).map(|start| (partition, start))).await;
        expired.extend(found);
    }
    if expired.is_empty() {
        return;
    }
    let written = write_checkpoints(context).await;
    for (partition, start) in expired {
        // Where there is no space for a checkpoint, space is what deletion is to bring.
        let (job_context, is_written) = (Arc::clone(context), written.contains(&start.0));
        context.disk_pool.run(move || partition.delete_below(&job_context, start, is_written)).await;
    }
}
