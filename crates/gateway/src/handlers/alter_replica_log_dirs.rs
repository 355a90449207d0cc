//! AlterReplicaLogDirs: replicas of this broker that are to be in other log directories (KIP-113).

use std::collections::BTreeMap;

use broker::api::{BrokerApi, ReplicaLogDir};
use model::PartitionIndex;
use protocol::messages::alter_replica_log_dirs_response::{
    AlterReplicaLogDirPartitionResult, AlterReplicaLogDirTopicResult,
};
use protocol::messages::{AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse};

use crate::call::Call;

/// Asks the broker; a topic that is named for several directories is answered once.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: AlterReplicaLogDirsRequest,
) -> AlterReplicaLogDirsResponse {
    let mut wanted = Vec::new();
    for dir in request.dirs {
        for topic in dir.topics {
            wanted.extend(topic.partitions.into_iter().map(|index| ReplicaLogDir {
                path: dir.path.clone(),
                topic: topic.name.clone(),
                partition: PartitionIndex(index),
            }));
        }
    }
    let errors = call.broker().alter_replica_log_dirs(wanted.clone());
    let mut topics: BTreeMap<String, Vec<AlterReplicaLogDirPartitionResult>> = BTreeMap::new();
    for (wanted, error) in wanted.into_iter().zip(errors) {
        topics
            .entry(wanted.topic)
            .or_default()
            .push(AlterReplicaLogDirPartitionResult { partition_index: wanted.partition.0, error_code: error.code() });
    }
    let result = |(topic_name, partitions)| AlterReplicaLogDirTopicResult { topic_name, partitions };
    AlterReplicaLogDirsResponse { results: topics.into_iter().map(result).collect(), ..Default::default() }
}
