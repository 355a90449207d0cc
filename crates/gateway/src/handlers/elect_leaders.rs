//! ElectLeaders: leader elections that an operator asks for.

use broker::api::BrokerApi;
use metadata::control::{ElectLeaders, ElectionType};
use model::PartitionIndex;
use protocol::messages::elect_leaders_request::TopicPartitions;
use protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::{Refusal, wire_code, wire_message};
use crate::resolve;

/// Has the controller elect.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let partitions = request.topic_partitions.as_deref().map(wanted);
    let mut asked = request.topic_partitions.unwrap_or_default();
    // Version 0 knows preferred elections only, and leaves the type at 0.
    let elected = match request.election_type {
        0 => elect(&call, ElectionType::Preferred, partitions, request.timeout_ms).await,
        1 => elect(&call, ElectionType::Unclean, partitions, request.timeout_ms).await,
        _ => Err(Refusal::Malformed("the election type must be 0 or 1")),
    };
    let mut response = ElectLeadersResponse::default();
    match elected {
        Ok(results) => {
            for each in results {
                let (error_code, error_message) = (wire_code(&each.result), wire_message(&each.result));
                let result = PartitionResult { partition_id: each.partition.0, error_code, error_message };
                push(&mut response, each.topic, [result]);
            }
            asked.retain(|topic| resolve::is_too_long(&topic.topic));
            refuse(&mut response, asked, &Refusal::UnknownTopicOrPartition);
        }
        Err(refusal) => {
            response.error_code = refusal.wire();
            refuse(&mut response, asked, &refusal);
        }
    }
    response
}

/// The partitions that the controller is asked for.
fn wanted(topics: &[TopicPartitions]) -> Vec<(String, PartitionIndex)> {
    let topics = topics.iter().filter(|topic| !resolve::is_too_long(&topic.topic));
    let each =
        topics.flat_map(|topic| topic.partitions.iter().map(|index| (topic.topic.clone(), PartitionIndex(*index))));
    each.collect()
}

async fn elect<B: BrokerApi>(
    call: &Call<B>,
    election: ElectionType,
    partitions: Option<Vec<(String, PartitionIndex)>>,
    timeout_ms: i32,
) -> Result<Vec<metadata::control::ElectionResult>, Refusal> {
    ask_controller!(call, ElectLeaders, ElectLeaders { election, partitions }, millis(timeout_ms))
}

fn refuse(response: &mut ElectLeadersResponse, topics: Vec<TopicPartitions>, refusal: &Refusal) {
    let result = |partition_id: i32| PartitionResult {
        partition_id,
        error_code: refusal.wire(),
        error_message: refusal.message(),
    };
    for topic in topics.into_iter().filter(|topic| !topic.partitions.is_empty()) {
        push(response, topic.topic, topic.partitions.into_iter().map(result));
    }
}

/// Adds partitions, under the topic before them if it is the same.
fn push(response: &mut ElectLeadersResponse, topic: String, partitions: impl IntoIterator<Item = PartitionResult>) {
    let results = &mut response.replica_election_results;
    match results.last_mut() {
        Some(last) if last.topic == topic => last.partition_result.extend(partitions),
        _ => results.push(ReplicaElectionResult { topic, partition_result: partitions.into_iter().collect() }),
    }
}
