//! What an operator watches of a broker.

use std::sync::Arc;

use model::TopicPartition;
use storage::{FlushPolicy, Space};

use crate::cleaner::CleanerMetrics;
use crate::context::Context;

/// One partition with a replica here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionMetrics {
    /// Which.
    pub partition: TopicPartition,
    /// Its topic's name.
    pub topic: String,
    /// Whether it is led here.
    pub leads: bool,
    /// Bytes in its segments.
    pub size: u64,
    /// Its log's end.
    pub log_end: i64,
    /// When its appends are synced.
    pub flush_policy: FlushPolicy,
}

/// One log directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectoryMetrics {
    /// Where it is.
    pub path: String,
    /// Its free space.
    pub space: Space,
    /// Why it is out of use, if it is (`R30`).
    pub failure: Option<String>,
}

/// See the module.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BrokerMetrics {
    /// The partitions here.
    pub partitions: Vec<PartitionMetrics>,
    /// Partitions led here.
    pub leaders: usize,
    /// Of those, with an ISR smaller than their replicas.
    pub under_replicated: usize,
    /// Of those, with an ISR below `min.insync.replicas`, or in fewer zones than `ottla.ack.rule` asks for.
    pub under_min_isr: usize,
    /// Of the whole cluster, as the metadata has it: without a leader.
    pub offline: usize,
    /// Bytes in the tail caches.
    pub tail_cache_bytes: usize,
    /// Files open in the pool.
    pub open_files: usize,
    /// Whether nothing is deleted by age, because the wall clock jumped.
    pub deletion_paused: bool,
    /// The log directories.
    pub directories: Vec<DirectoryMetrics>,
    /// The log cleaner's.
    pub cleaner: CleanerMetrics,
}

impl BrokerMetrics {
    /// Looks at everything; costs a lock of each partition.
    pub(crate) fn collect(context: &Arc<Context>) -> BrokerMetrics {
        let image = context.image();
        let env = context.data.env();
        let mut metrics = BrokerMetrics {
            offline: image.partitions().filter(|partition| partition.is_leaderless()).count(),
            tail_cache_bytes: env.tail_bytes(),
            open_files: env.open_files(),
            deletion_paused: context.clock_watch.is_paused(),
            directories: vec![DirectoryMetrics {
                path: context.data.path().display().to_string(),
                space: env.health().space(),
                failure: env.health().failure().map(str::to_owned),
            }],
            cleaner: context.cleaner.metrics(context.clock.monotonic(), &context.partitions()),
            ..BrokerMetrics::default()
        };
        for partition in context.partitions() {
            let id = partition.id();
            let (leads, size, log_end, isr, flush_policy) = {
                let inner = partition.lock();
                let leads = inner.replica.is_leader();
                let isr = inner.replica.isr().to_vec();
                (leads, inner.log.size_bytes(), inner.replica.log().end.0, isr, inner.log.flush_policy())
            };
            if leads {
                // A partition that grows is not under-replicated for it.
                let replicas = image.partition(id).map_or(0, |p| p.factor());
                metrics.leaders += 1;
                metrics.under_replicated += usize::from(isr.len() < replicas);
                metrics.under_min_isr += usize::from(!image.is_enough(partition.topic(), replicas, &isr));
            }
            let topic = partition.topic().to_string();
            metrics.partitions.push(PartitionMetrics { partition: id, topic, leads, size, log_end, flush_policy });
        }
        metrics
    }
}
