//! ListPartitionReassignments: which replicas are on their way (KIP-455).

use std::collections::BTreeSet;
use std::sync::Arc;

use broker::api::BrokerApi;
use metadata::{Partition, TopicImage};
use protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use protocol::messages::{ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse};

use crate::call::Call;
use crate::handlers::partition_view::numbers;

/// Says what the newest image shows. What does not exist is on no way.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    let image = call.image();
    let topics = match request.topics {
        Some(asked) => {
            let asked = asked.iter().filter_map(|asked| ongoing(image.topic_by_name(&asked.name)?, Some(asked)));
            asked.collect()
        }
        None => image.topics().values().filter_map(|topic| ongoing(topic, None)).collect(),
    };
    ListPartitionReassignmentsResponse { topics, error_message: None, ..Default::default() }
}

/// The partitions of a topic that are on their way, of those asked for; `None` where there are none.
fn ongoing(
    topic: &Arc<TopicImage>,
    asked: Option<&ListPartitionReassignmentsTopics>,
) -> Option<OngoingTopicReassignment> {
    let asked: Option<BTreeSet<i32>> = asked.map(|asked| asked.partition_indexes.iter().copied().collect());
    let is_asked = |partition: &&Arc<Partition>| {
        asked.as_ref().is_none_or(|asked| asked.contains(&partition.partition.0)) && partition.is_reassigning()
    };
    let told = |partition: &Arc<Partition>| OngoingPartitionReassignment {
        partition_index: partition.partition.0,
        replicas: numbers(partition.replicas.iter().copied()),
        adding_replicas: numbers(partition.adding.iter().copied()),
        removing_replicas: numbers(partition.removing.iter().copied()),
    };
    let partitions: Vec<_> = topic.partitions.values().filter(is_asked).map(told).collect();
    (!partitions.is_empty()).then(|| OngoingTopicReassignment { name: topic.name.to_string(), partitions })
}
