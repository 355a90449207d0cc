//! What a broker does from time to time: retention, expiry of producers; and what the checkpoints say.
//!
//! Invariant: a checkpoint holds only what an fdatasync covered (`R25`, `R31`).

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use model::{Offset, PartitionIndex};
use storage::Checkpoint;

use crate::context::Context;
use crate::partition::Checkpointed;

/// Brings everything to the disk, for a clean shutdown. True where nothing is missing (`R10`).
pub(crate) async fn complete(context: &Arc<Context>) -> bool {
    let mut whole = true;
    for partition in context.partitions() {
        whole &= partition.complete(context).await;
    }
    write_checkpoints(context).await && whole
}

type Lines = BTreeMap<(Arc<str>, PartitionIndex), Checkpointed>;

/// What the checkpoints are to say: of replicas that are gone what they promised (`R78`), of logs that nobody has claimed
/// yet what was found, and of the partitions here. A replica that goes from one to the next is never in none.
fn checkpoint_lines(context: &Context) -> Lines {
    let mut lines = Lines::new();
    for ((topic, partition), promised) in &*context.lost.lock().unwrap_or_else(PoisonError::into_inner) {
        let all = Checkpointed {
            recovery_point: Offset::ZERO,
            log_start: Offset::ZERO,
            high_watermark: *promised,
            synced_since: None,
        };
        lines.insert((Arc::from(topic.as_str()), *partition), all);
    }
    for (id, (topic, all)) in &*context.unclaimed.lock().unwrap_or_else(PoisonError::into_inner) {
        lines.insert((Arc::clone(topic), id.partition), *all);
    }
    for partition in context.partitions() {
        lines.insert((Arc::clone(partition.topic()), partition.id().partition), partition.checkpoints());
    }
    lines
}

/// Writes recovery points, log starts and high watermarks, as they are when it is its turn; says whether it did.
pub(crate) async fn write_checkpoints(context: &Arc<Context>) -> bool {
    let job_context = Arc::clone(context);
    let write = move || {
        // One after the other: a writer that nobody waits for any more may still be at it.
        let _turn = job_context.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = checkpoint_lines(&job_context);
        let line = |offset: fn(&Checkpointed) -> Offset| {
            lines.iter().map(move |((topic, index), all)| (&**topic, *index, offset(all)))
        };
        let synced = lines.iter().filter_map(|((_, index), all)| all.synced_since.map(|since| (*index, since)));
        let synced: Vec<_> = synced.map(|(index, (id, since))| (id.to_string(), index, since)).collect();
        let data = &job_context.data;
        data.write_checkpoint(Checkpoint::RecoveryPoint, line(|all| all.recovery_point))?;
        data.write_checkpoint(Checkpoint::LogStart, line(|all| all.log_start))?;
        data.write_checkpoint(Checkpoint::HighWatermark, line(|all| all.high_watermark))?;
        let synced = synced.iter().map(|(id, index, since)| (id.as_str(), *index, *since));
        data.write_checkpoint(Checkpoint::SyncedBeforeAck, synced)
    };
    let written = context.disk_pool.run(write).await;
    if let Err(error) = &written {
        tracing::error!(%error, "cannot write the checkpoints; the next start will take longer");
    }
    written.is_ok()
}

/// Retention, rolling by time, expiry of producers, until the broker stops. Files that were deleted are freed in the first
/// round after their time.
pub(crate) async fn retain(context: Arc<Context>) {
    let interval = Duration::from_millis(context.config.log_retention_check_interval_ms.max(1));
    loop {
        tokio::time::sleep(interval).await;
        for partition in context.partitions() {
            let (job_context, pool) = (Arc::clone(&context), context.disk_pool.clone());
            pool.run(move || partition.retain(&job_context)).await;
        }
    }
}
