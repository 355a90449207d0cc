//! What an operator watches of a broker.

use std::collections::BTreeMap;
use std::sync::Arc;

use coordinator::Rebalances;
use coordinator::state::CommittedOffset;
use model::{Offset, PartitionIndex, TopicPartition};
use storage::{FlushPolicy, LogDir, Space, UnopenedDir};

use crate::cleaner::CleanerMetrics;
use crate::context::Context;
use crate::groups::Groups;
use crate::lag;
use crate::peers::Peers;
use crate::shards::Shards;

/// One partition with a replica here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionMetrics {
    /// Which.
    pub partition: TopicPartition,
    /// Its topic's name.
    pub topic: String,
    /// Whether it is led here.
    pub leads: bool,
    /// The leader epoch in force here.
    pub leader_epoch: i32,
    /// Bytes in its segments.
    pub size: u64,
    /// Its log's end.
    pub log_end: i64,
    /// Its high watermark, as it is known here.
    pub high_watermark: i64,
    /// When its appends are synced.
    pub flush_policy: FlushPolicy,
    /// Bytes that clients had appended here.
    pub bytes_in: u64,
    /// Records in them.
    pub messages_in: u64,
    /// Bytes that consumers were sent from here.
    pub bytes_out: u64,
}

/// Changes of in-sync replicas that this broker proposed as a leader, since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IsrMetrics {
    /// Those that took a member out.
    pub shrinks: u64,
    /// Those that took a member in.
    pub expands: u64,
    /// Those that were refused, or got no answer.
    pub failed: u64,
}

/// How far a group is behind in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLag {
    /// The group.
    pub group: String,
    /// The topic's name.
    pub topic: String,
    /// Which partition.
    pub partition: TopicPartition,
    /// The next offset that it will read, as it has committed.
    pub committed: i64,
    /// Records between that and the high watermark; None where neither a replica here nor the leader tells.
    pub lag: Option<u64>,
    /// Milliseconds since the next of them was appended: by the time of the append where a broker in charge saw it, else by
    /// the timestamp of its batch; 0 where there is none, None where it is not known.
    pub lag_ms: Option<u64>,
}

/// The groups that are coordinated here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupLags {
    /// By group, topic and partition.
    pub lags: Vec<GroupLag>,
    /// How many are left out, above [`LAGS_MAX`].
    pub left_out: usize,
    /// How many groups there are, by type and state.
    pub states: BTreeMap<(&'static str, &'static str), usize>,
    /// How often they were rebalanced since the process started.
    pub rebalances: Rebalances,
}

/// So many committed offsets are shown, at most: nobody's choice of group names makes a scrape endless.
pub const LAGS_MAX: usize = 50_000;

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
    /// Answers on their way whose records are sent from their files: each may hold one open beside the pool.
    pub lent_files: usize,
    /// How often no file descriptor was to be had.
    pub descriptor_shortages: u64,
    /// How often a partition's alarm has gone off.
    pub timeouts: u64,
    /// Whether nothing is deleted by age, because the wall clock jumped.
    pub deletion_paused: bool,
    /// The log directories.
    pub directories: Vec<DirectoryMetrics>,
    /// The log cleaner's.
    pub cleaner: CleanerMetrics,
    /// Changes of in-sync replicas.
    pub isr: IsrMetrics,
    /// How often all of the metadata was told anew, to a broker that was too far behind.
    pub metadata_snapshots: u64,
}

impl BrokerMetrics {
    /// Looks at everything; costs a lock of each partition.
    pub(crate) fn collect(context: &Arc<Context>) -> BrokerMetrics {
        let image = context.image();
        let env = context.dirs.env();
        let directory = |dir: &Arc<LogDir>| DirectoryMetrics {
            path: dir.data().path().display().to_string(),
            space: dir.health().space(),
            failure: dir.health().failure().map(str::to_owned),
        };
        let unopened = |dir: &UnopenedDir| DirectoryMetrics {
            path: dir.path.display().to_string(),
            space: Space::default(),
            failure: Some(dir.reason.clone()),
        };
        let opened = context.dirs.iter().map(directory);
        let mut metrics = BrokerMetrics {
            offline: image.partitions().filter(|partition| partition.is_leaderless()).count(),
            tail_cache_bytes: env.tail_bytes(),
            open_files: env.open_files(),
            lent_files: env.lent_files(),
            descriptor_shortages: env.descriptor_shortages(),
            timeouts: context.timers.fired(),
            deletion_paused: context.clock_watch.is_paused(),
            directories: opened.chain(context.dirs.unopened().iter().map(unopened)).collect(),
            cleaner: context.cleaner.metrics(context.clock.monotonic(), &context.partitions()),
            isr: IsrMetrics {
                shrinks: context.isr_counters.shrinks.get(),
                expands: context.isr_counters.expands.get(),
                failed: context.isr_counters.failed.get(),
            },
            metadata_snapshots: context.metadata_snapshots.get(),
            ..BrokerMetrics::default()
        };
        for partition in context.partitions() {
            let id = partition.id();
            let (leads, leader_epoch, size, log, isr, flush_policy) = {
                let inner = partition.lock();
                let leads = inner.replica.is_leader();
                let isr = inner.replica.isr().to_vec();
                let epoch = inner.replica.leader_epoch().0;
                (leads, epoch, inner.log.size_bytes(), inner.replica.log(), isr, inner.log.flush_policy())
            };
            if leads {
                // A partition that grows is not under-replicated for it.
                let replicas = image.partition(id).map_or(0, |p| p.factor());
                metrics.leaders += 1;
                metrics.under_replicated += usize::from(isr.len() < replicas);
                metrics.under_min_isr += usize::from(!image.is_enough(partition.topic(), replicas, &isr));
            }
            metrics.partitions.push(PartitionMetrics {
                partition: id,
                topic: partition.topic().to_string(),
                leads,
                leader_epoch,
                size,
                log_end: log.end.0,
                high_watermark: log.high_watermark.0,
                flush_policy,
                bytes_in: partition.traffic.bytes_in.get(),
                messages_in: partition.traffic.messages_in.get(),
                bytes_out: partition.traffic.bytes_out.get(),
            });
        }
        metrics
    }
}

impl GroupLags {
    /// Looks at the committed offsets of every group here; costs a lock of each shard, and what [`lag`] says.
    pub(crate) async fn collect(groups: &Arc<Shards<Groups>>, peers: &Peers) -> GroupLags {
        let context = &groups.context;
        let image = context.image();
        let (states, rebalances) = (groups.states().await, groups.rebalances());
        let mut found = GroupLags { states, rebalances, ..GroupLags::default() };
        let mut positions = Vec::new();
        for (group, topic, index, offset) in committed_offsets(groups, &mut found.left_out) {
            // Of a topic that is gone, until the coordinator drops it.
            let Some(topic_image) = image.topic_by_name(&topic) else { continue };
            let partition = TopicPartition { topic_id: topic_image.id, partition: index };
            positions.push((partition, Offset(offset)));
            found.lags.push(GroupLag { group, topic, partition, committed: offset, lag: None, lag_ms: None });
        }
        let behind = lag::behind(context, peers, &positions).await;
        for (row, behind) in found.lags.iter_mut().zip(behind) {
            (row.lag, row.lag_ms) = (behind.records, behind.ms);
        }
        found
    }
}

/// Group, topic, partition and offset of at most [`LAGS_MAX`] commits; the others are counted.
fn committed_offsets(groups: &Shards<Groups>, left_out: &mut usize) -> Vec<(String, String, PartitionIndex, i64)> {
    let mut found = Vec::new();
    for shard in groups.all() {
        shard.look(|core| {
            for (group, topics) in core.state().all_offsets() {
                for (topic, partitions) in topics {
                    let room = LAGS_MAX - found.len();
                    *left_out += partitions.len().saturating_sub(room);
                    let row = |(index, committed): (&PartitionIndex, &CommittedOffset)| {
                        (group.clone(), topic.clone(), *index, committed.offset.0)
                    };
                    found.extend(partitions.iter().take(room).map(row));
                }
            }
        });
    }
    found
}
