//! What a broker does from time to time: background syncs, checkpoints, retention, expiry of producers.
//!
//! Invariant: a checkpoint holds only what an fdatasync covered (`R25`, `R31`).

use std::sync::Arc;
use std::time::Duration;

use model::{Offset, PartitionIndex};
use storage::Checkpoint;

use crate::context::Context;
use crate::partition::Checkpointed;

/// Between rounds of the background flusher (performance lesson: recovery scans what follows the last round).
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Syncs dirty logs in turn and writes the checkpoints, until the broker stops.
pub(crate) async fn flush_in_background(context: Arc<Context>) {
    loop {
        tokio::time::sleep(FLUSH_INTERVAL).await;
        flush_round(&context, false).await;
    }
}

/// One round; `all` also completes indexes and producer snapshots, for a clean shutdown.
pub(crate) async fn flush_round(context: &Arc<Context>, all: bool) {
    let mut changed = false;
    for partition in context.partitions() {
        changed |= partition.flush(context, all).await;
    }
    if changed || all {
        write_checkpoints(context).await;
    }
}

/// Writes recovery points, log starts and high watermarks.
async fn write_checkpoints(context: &Arc<Context>) {
    let offsets: Vec<(Arc<str>, PartitionIndex, Checkpointed)> = context
        .partitions()
        .iter()
        .map(|partition| (Arc::clone(partition.topic()), partition.id().partition, partition.checkpoints()))
        .collect();
    let job_context = Arc::clone(context);
    let write = move || {
        let line = |offset: fn(&Checkpointed) -> Offset| {
            offsets.iter().map(move |(topic, index, all)| (&**topic, *index, offset(all)))
        };
        let data = &job_context.data;
        data.write_checkpoint(Checkpoint::RecoveryPoint, line(|all| all.recovery_point))?;
        data.write_checkpoint(Checkpoint::LogStart, line(|all| all.log_start))?;
        data.write_checkpoint(Checkpoint::HighWatermark, line(|all| all.high_watermark))
    };
    if let Err(error) = context.disk_pool.run(write).await {
        tracing::error!(%error, "cannot write the checkpoints; the next start will take longer");
    }
}

/// Retention, rolling by time, expiry of producers, until the broker stops.
pub(crate) async fn retain(context: Arc<Context>) {
    // The configured interval is for deletion; files that wait for it are freed within a second or two of their time.
    let interval = Duration::from_millis(context.config.log_retention_check_interval_ms);
    loop {
        tokio::time::sleep(interval).await;
        for partition in context.partitions() {
            let (context, partition) = (Arc::clone(&context), partition);
            let pool = context.disk_pool.clone();
            pool.run(move || partition.retain(&context)).await;
        }
    }
}
