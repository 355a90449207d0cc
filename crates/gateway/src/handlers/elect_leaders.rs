//! ElectLeaders: leader elections that an operator asks for.

use broker::api::BrokerApi;
use metadata::control::{ElectLeaders, ElectionType};
use model::PartitionIndex;
use protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use protocol::messages::{ElectLeadersRequest, ElectLeadersResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::{Refusal, wire_code, wire_message};

/// Has the controller elect.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let partitions = request.topic_partitions.map(|topics| {
        let each = topics.into_iter().flat_map(|topic| {
            let name = topic.topic;
            topic.partitions.into_iter().map(move |index| (name.clone(), PartitionIndex(index)))
        });
        each.collect::<Vec<_>>()
    });
    let asked = partitions.clone().unwrap_or_default();
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
                push(&mut response, each.topic, each.partition, error_code, error_message);
            }
        }
        Err(refusal) => {
            response.error_code = refusal.wire();
            for (topic, partition) in asked {
                push(&mut response, topic, partition, refusal.wire(), refusal.message());
            }
        }
    }
    response
}

async fn elect<B: BrokerApi>(
    call: &Call<B>,
    election: ElectionType,
    partitions: Option<Vec<(String, PartitionIndex)>>,
    timeout_ms: i32,
) -> Result<Vec<metadata::control::ElectionResult>, Refusal> {
    ask_controller!(call, ElectLeaders, ElectLeaders { election, partitions }, millis(timeout_ms))
}

/// Adds a partition, under the topic before it if it is the same.
fn push(
    response: &mut ElectLeadersResponse,
    topic: String,
    partition: PartitionIndex,
    error_code: i16,
    error_message: Option<String>,
) {
    let results = &mut response.replica_election_results;
    let result = PartitionResult { partition_id: partition.0, error_code, error_message };
    match results.last_mut() {
        Some(last) if last.topic == topic => last.partition_result.push(result),
        _ => results.push(ReplicaElectionResult { topic, partition_result: vec![result] }),
    }
}
