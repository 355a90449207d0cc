//! AlterPartitionReassignments: moves replicas, or cancels that (KIP-455).

use broker::api::BrokerApi;
use metadata::control::{AlterReassignments, Reassignment, ReassignmentResult};
use model::{BrokerId, PartitionIndex};
use protocol::messages::alter_partition_reassignments_request::ReassignableTopic;
use protocol::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use protocol::messages::{AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::{Refusal, wire_code, wire_message};
use crate::resolve;

/// Has the controller decide each partition.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let allow_replication_factor_change = request.allow_replication_factor_change;
    let (unknown, topics): (Vec<_>, Vec<_>) =
        request.topics.into_iter().partition(|topic| resolve::is_too_long(&topic.name));
    let asked = AlterReassignments {
        partitions: topics.into_iter().flat_map(wanted).collect(),
        allow_factor_change: allow_replication_factor_change,
    };
    let mut response = AlterPartitionReassignmentsResponse {
        allow_replication_factor_change,
        error_message: None,
        ..Default::default()
    };
    match ask_controller!(call, AlterReassignments, asked, millis(request.timeout_ms)) {
        Ok(results) => {
            results.into_iter().for_each(|result| push(&mut response, result));
            let unknown = unknown.into_iter().filter(|topic| !topic.partitions.is_empty());
            response.responses.extend(unknown.map(refused));
        }
        Err(refusal) => {
            response.error_code = refusal.wire();
            response.error_message = refusal.message();
        }
    }
    response
}

fn wanted(topic: ReassignableTopic) -> impl Iterator<Item = Reassignment> {
    let name = topic.name;
    topic.partitions.into_iter().map(move |partition| Reassignment {
        topic: name.clone(),
        partition: PartitionIndex(partition.partition_index),
        target: partition.replicas.map(|replicas| replicas.into_iter().map(BrokerId).collect()),
    })
}

/// A topic that cannot be.
fn refused(topic: ReassignableTopic) -> ReassignableTopicResponse {
    let refusal = Refusal::UnknownTopicOrPartition;
    let partitions = topic.partitions.into_iter().map(|partition| ReassignablePartitionResponse {
        partition_index: partition.partition_index,
        error_code: refusal.wire(),
        error_message: refusal.message(),
    });
    ReassignableTopicResponse { name: topic.name, partitions: partitions.collect() }
}

/// Adds a partition, under the topic before it if it is the same.
fn push(response: &mut AlterPartitionReassignmentsResponse, result: ReassignmentResult) {
    let partition = ReassignablePartitionResponse {
        partition_index: result.partition.0,
        error_code: wire_code(&result.result),
        error_message: wire_message(&result.result),
    };
    match response.responses.last_mut() {
        Some(last) if last.name == result.topic => last.partitions.push(partition),
        _ => {
            response.responses.push(ReassignableTopicResponse { name: result.topic, partitions: vec![partition] });
        }
    }
}
