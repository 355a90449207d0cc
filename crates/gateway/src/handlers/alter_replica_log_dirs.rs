//! AlterReplicaLogDirs: replicas of this broker that are to be in other log directories (KIP-113).

use std::collections::BTreeMap;
use std::sync::Arc;

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
        let path: Arc<str> = dir.path.into();
        for topic in dir.topics {
            let name: Arc<str> = topic.name.into();
            wanted.extend(topic.partitions.into_iter().map(|index| ReplicaLogDir {
                path: Arc::clone(&path),
                topic: Arc::clone(&name),
                partition: PartitionIndex(index),
            }));
        }
    }
    let errors = call.broker().alter_replica_log_dirs(&wanted);
    let mut topics: BTreeMap<Arc<str>, Vec<AlterReplicaLogDirPartitionResult>> = BTreeMap::new();
    for (wanted, error) in wanted.into_iter().zip(errors) {
        topics
            .entry(wanted.topic)
            .or_default()
            .push(AlterReplicaLogDirPartitionResult { partition_index: wanted.partition.0, error_code: error.code() });
    }
    let result =
        |(name, partitions): (Arc<str>, _)| AlterReplicaLogDirTopicResult { topic_name: name.to_string(), partitions };
    AlterReplicaLogDirsResponse { results: topics.into_iter().map(result).collect(), ..Default::default() }
}
