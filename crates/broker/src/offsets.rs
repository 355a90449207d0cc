//! Questions about offsets, log starts and directories that concern several partitions or need the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{BrokerId, DirectoryId, ErrorCode, LeaderEpoch, Offset, RecordIter, TimestampType, TopicPartition};
use rpc::controller::{CallError, QuorumInfo};
use storage::{TimeMatch, compression};

use crate::api::{
    ControlUnavailable, CurrentLeader, DeletedRecords, Isolation, ListOffsetsPartition, ListedOffset,
    LogDirDescription, OffsetSpec, Produced, QuorumDescription, QuorumReplica, ReplicaOnDisk, VoterChange,
};
use crate::budget::Charge;
use crate::context::Context;
use crate::fetch;
use crate::partition::{FoundByTime, Partition};

/// How long the active controller is looked for.
const QUORUM_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a produce to a partition that is not here.
pub(crate) fn not_produced(context: &Context, partition: TopicPartition) -> Produced {
    let image = context.image();
    Produced {
        partition,
        error: fetch::not_here(context, partition),
        message: None,
        base_offset: Offset::NONE,
        log_append_time: -1,
        log_start: Offset::NONE,
        refused: Vec::new(),
        current_leader: image
            .leader_for(partition)
            .map(|(leader, leader_epoch)| CurrentLeader { leader, leader_epoch }),
    }
}

/// ListOffsets of one partition.
pub(crate) async fn list(context: &Arc<Context>, isolation: Isolation, asked: ListOffsetsPartition) -> ListedOffset {
    let id = asked.partition;
    let answer =
        |error, timestamp, offset, leader_epoch| ListedOffset { partition: id, error, timestamp, offset, leader_epoch };
    let Some(partition) = context.partition(id) else {
        return answer(fetch::not_here(context, id), -1, Offset::NONE, LeaderEpoch::NONE);
    };
    let epoch = asked.current_leader_epoch;
    let found = match asked.spec {
        OffsetSpec::Earliest | OffsetSpec::EarliestLocal => partition.earliest(epoch).map(|(o, e)| (-1, o, e)),
        OffsetSpec::Latest => partition.latest(epoch, isolation).map(|(o, e)| (-1, o, e)),
        // There is no remote storage: nothing is in it.
        OffsetSpec::LatestTiered => partition.earliest(epoch).map(|_| (-1, Offset::NONE, LeaderEpoch::NONE)),
        OffsetSpec::MaxTimestamp | OffsetSpec::Timestamp(_) => {
            let (pool, spec) = (context.disk_pool.clone(), asked.spec);
            let mut memory = context.budget.charge(0);
            let job_context = Arc::clone(context);
            pool.run(move || by_time(&job_context, &partition, (epoch, isolation), spec, &mut memory)).await
        }
    };
    match found {
        Ok((timestamp, offset, leader_epoch)) => answer(ErrorCode::None, timestamp, offset, leader_epoch),
        Err(error) => answer(error, -1, Offset::NONE, LeaderEpoch::NONE),
    }
}

type Found = Result<(i64, Offset, LeaderEpoch), ErrorCode>;

/// Blocks.
fn by_time(
    context: &Arc<Context>,
    partition: &Arc<Partition>,
    (epoch, isolation): (LeaderEpoch, Isolation),
    spec: OffsetSpec,
    memory: &mut Charge,
) -> Found {
    let asked = match spec {
        OffsetSpec::Timestamp(timestamp) => Some(timestamp),
        _ => None,
    };
    let nothing = (-1, Offset::NONE, LeaderEpoch::NONE);
    let found = partition.find_by_time(context, epoch, isolation, asked)?;
    let Some(FoundByTime { found, timestamp, log_start, readable_end }) = found else { return Ok(nothing) };
    let found = match found {
        TimeMatch::Record { timestamp, offset, leader_epoch } => Some((timestamp, offset, leader_epoch)),
        TimeMatch::Compressed(batch) => {
            let header = *batch.header();
            let payload = compression::decompress_counted(&batch, &mut |bytes| memory.add_len(bytes))
                .map_err(|_| ErrorCode::CorruptMessage)?;
            RecordIter::new(payload, header.record_count)
                .filter_map(Result::ok)
                .map(|record| {
                    let at = match header.timestamp_type() {
                        TimestampType::CreateTime => header.base_timestamp.saturating_add(record.timestamp_delta),
                        TimestampType::LogAppendTime => header.max_timestamp,
                    };
                    (at, header.base_offset + i64::from(record.offset_delta))
                })
                .find(|(at, offset)| *at >= timestamp && *offset >= log_start)
                .map(|(at, offset)| (at, offset, header.leader_epoch))
        }
    };
    // Records above do not exist for this client yet.
    Ok(found.filter(|(_, offset, _)| *offset < readable_end).unwrap_or(nothing))
}

/// DeleteRecords: moves the log starts, then waits until all live replicas have followed (`R60`).
pub(crate) async fn delete_records(
    context: &Arc<Context>,
    partitions: Vec<(TopicPartition, Offset)>,
    timeout_ms: u64,
) -> Vec<DeletedRecords> {
    let mut targets = Vec::with_capacity(partitions.len());
    for (id, offset) in partitions {
        let target = match context.partition(id) {
            Some(partition) => partition.delete_records(context, offset).map(|target| (partition, target)),
            None => Err(fetch::not_here(context, id)),
        };
        targets.push((id, target));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_millis(timeout_ms);
    let mut answers = Vec::with_capacity(targets.len());
    for (id, target) in targets {
        let (error, low_watermark) = match target {
            Err(error) => (error, Offset::NONE),
            Ok((partition, target)) => wait_for_log_start(&partition, target, deadline).await,
        };
        answers.push(DeletedRecords { partition: id, error, low_watermark });
    }
    answers
}

async fn wait_for_log_start(
    partition: &Arc<Partition>,
    target: Offset,
    deadline: tokio::time::Instant,
) -> (ErrorCode, Offset) {
    loop {
        match partition.low_watermark() {
            None => return (ErrorCode::NotLeaderOrFollower, Offset::NONE),
            Some(low) if low >= target => return (ErrorCode::None, low),
            Some(_) if tokio::time::Instant::now() >= deadline => return (ErrorCode::RequestTimedOut, Offset::NONE),
            // Acknowledged log starts wake nobody: they are rare, and asked for by people.
            Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// The log directories and what is in them.
pub(crate) fn describe_log_dirs(context: &Arc<Context>) -> Vec<LogDirDescription> {
    let mut replicas: BTreeMap<DirectoryId, Vec<ReplicaOnDisk>> = BTreeMap::new();
    for partition in context.partitions() {
        replicas.entry(partition.dir().id()).or_default().push(partition.on_disk());
        if let Some((to, future)) = partition.future_on_disk() {
            replicas.entry(to.id()).or_default().push(future);
        }
    }
    let cordoned = context.cordoned_directories();
    let opened = context.dirs.iter().map(|dir| {
        let path = dir.data().path().display().to_string();
        if !dir.works() {
            return offline(path);
        }
        let (total_bytes, usable_bytes) = dir.data().space().unwrap_or((-1, -1));
        let replicas = replicas.remove(&dir.id()).unwrap_or_default();
        let is_cordoned = cordoned.contains(&dir.id());
        LogDirDescription { error: ErrorCode::None, path, total_bytes, usable_bytes, is_cordoned, replicas }
    });
    let mut all: Vec<_> = opened.collect();
    all.extend(context.dirs.unopened().iter().map(|unopened| offline(unopened.path.display().to_string())));
    all
}

/// A directory that is out of use: what was in it is not told, as Kafka does.
fn offline(path: String) -> LogDirDescription {
    LogDirDescription {
        error: ErrorCode::KafkaStorageError,
        path,
        total_bytes: -1,
        usable_bytes: -1,
        is_cordoned: false,
        replicas: Vec::new(),
    }
}

/// Has the active controller change who votes.
pub(crate) async fn change_voters(
    context: &Arc<Context>,
    change: VoterChange,
    timeout_ms: u64,
) -> Result<(), ControlUnavailable> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(timeout_ms.max(1));
    let node = |id, directory| rpc::raft::QuorumNode { id, directory };
    let change = match change {
        VoterChange::Add { id, directory, address } => {
            rpc::controller::VoterChange::Add { node: node(id, directory), address }
        }
        VoterChange::Remove { id, directory } => rpc::controller::VoterChange::Remove { node: node(id, directory) },
    };
    match context.controller.change_voters(&change, deadline).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ControlUnavailable { error: error.code, message: error.message }),
        Err(error) => Err(ControlUnavailable { error: ErrorCode::RequestTimedOut, message: error.to_string() }),
    }
}

/// The metadata quorum's state, as the active controller tells it, or else as any controller does.
pub(crate) async fn describe_quorum(context: &Arc<Context>) -> Result<QuorumDescription, ControlUnavailable> {
    let deadline = tokio::time::Instant::now() + QUORUM_TIMEOUT;
    let unavailable =
        |error: CallError| ControlUnavailable { error: ErrorCode::RequestTimedOut, message: error.to_string() };
    let info = context.controller.describe(deadline).await.map_err(unavailable)?;
    let wall = i64::try_from(context.clock.wall().0).unwrap_or(i64::MAX);
    let replica = |replica: &rpc::controller::QuorumReplica| {
        let heard = replica.last_acknowledged_ms.and_then(|ms| i64::try_from(ms).ok()).map_or(-1, |ms| wall - ms);
        QuorumReplica {
            id: replica.node.id.0,
            directory_id: replica.node.directory,
            log_end_offset: i64::try_from(replica.log_end).unwrap_or(i64::MAX) - 1,
            last_fetch_timestamp: heard,
            last_caught_up_timestamp: heard,
            endpoint: replica
                .address
                .rsplit_once(':')
                .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?))),
        }
    };
    Ok(QuorumDescription {
        leader_id: active_controller(&info),
        leader_epoch: i32::try_from(info.term).unwrap_or(i32::MAX),
        high_watermark: i64::try_from(info.next_offset.0).unwrap_or(i64::MAX),
        voters: info.voters.iter().map(replica).collect(),
        observers: info.observers.iter().map(replica).collect(),
    })
}

/// The active controller, or -1. A controller that has resigned may believe in its term for as long as nobody begins another.
fn active_controller(info: &QuorumInfo) -> i32 {
    if info.active { info.leader.0 } else { BrokerId::NONE.0 }
}

#[cfg(test)]
mod tests {
    use model::MetadataOffset;

    use super::*;

    #[test]
    fn a_controller_that_has_resigned_is_not_told_as_the_active_one() {
        let info = |active| QuorumInfo {
            leader: BrokerId(2),
            term: 1,
            active,
            next_offset: MetadataOffset(0),
            voters: Vec::new(),
            observers: Vec::new(),
        };
        assert_eq!([true, false].map(|active| active_controller(&info(active))), [2, -1]);
    }
}
