//! AlterReplicaLogDirs: replicas of this broker that are to be in other log directories (KIP-113).

use std::collections::BTreeMap;
use std::sync::Arc;

use broker::api::{BrokerApi, ReplicaLogDir};
use model::{ErrorCode, PartitionIndex};
use protocol::messages::alter_replica_log_dirs_response::{
    AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult,
};
use protocol::messages::{AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse};

use crate::call::Call;
use crate::refusal::Refusal;
use crate::resolve;

/// Asks the broker; a topic that is named for several directories is answered once.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: AlterReplicaLogDirsRequest,
) -> AlterReplicaLogDirsResponse {
    let (mut asked, mut wanted) = (Vec::new(), Vec::new());
    for dir in request.dirs {
        let path: Arc<str> = dir.path.into();
        for topic in dir.topics {
            let name: Arc<str> = topic.name.into();
            if !resolve::is_too_long(&name) {
                wanted.extend(topic.partitions.iter().map(|index| ReplicaLogDir {
                    path: Arc::clone(&path),
                    topic: Arc::clone(&name),
                    partition: PartitionIndex(*index),
                }));
            }
            asked.push((name, topic.partitions));
        }
    }
    let mut errors = call.broker().alter_replica_log_dirs(&wanted).into_iter();
    let mut topics: BTreeMap<Arc<str>, Vec<AlterReplicaLogDirPartitionResult>> = BTreeMap::new();
    for (name, partitions) in asked.into_iter().filter(|(_, partitions)| !partitions.is_empty()) {
        let too_long = resolve::is_too_long(&name);
        let result = |partition_index| {
            let told = if too_long { Some(ErrorCode::InvalidTopicException) } else { errors.next() };
            let error_code = told.map_or(Refusal::Unanswered.wire(), ErrorCode::code);
            AlterReplicaLogDirPartitionResult { partition_index, error_code }
        };
        topics.entry(name).or_default().extend(partitions.into_iter().map(result));
    }
    let result =
        |(name, partitions): (Arc<str>, _)| AlterReplicaLogDirTopicResult { topic_name: name.to_string(), partitions };
    AlterReplicaLogDirsResponse { results: topics.into_iter().map(result).collect(), ..Default::default() }
}
