//! DescribeQuorum: the metadata quorum, as the partition that Kafka shows it as.

use broker::api::{BrokerApi, QuorumDescription, QuorumReplica};
use metadata::MetadataImage;
use model::BrokerId;
use protocol::messages::describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData};
use protocol::messages::{DescribeQuorumRequest, DescribeQuorumResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// The topic that stands for the metadata log.
const METADATA_TOPIC: &str = "__cluster_metadata";
/// The listener's name where a controller has not registered.
const CONTROLLER_LISTENER: &str = "CONTROLLER";

/// Asks the quorum.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let is_quorum = request.topics.len() == 1
        && request.topics[0].topic_name == METADATA_TOPIC
        && request.topics[0].partitions.len() == 1
        && request.topics[0].partitions[0].partition_index == 0;
    if !is_quorum {
        return unknown_partitions(request);
    }
    let quorum = match call.broker().describe_quorum().await {
        Ok(quorum) => quorum,
        Err(unavailable) => {
            let refusal = Refusal::Undecided(unavailable);
            let (error_code, error_message) = (refusal.wire(), refusal.message());
            return DescribeQuorumResponse { error_code, error_message, ..Default::default() };
        }
    };
    let nodes = nodes(&call.image(), &quorum);
    let partition = PartitionData {
        leader_id: quorum.leader_id,
        leader_epoch: quorum.leader_epoch,
        high_watermark: quorum.high_watermark,
        current_voters: quorum.voters.iter().map(replica).collect(),
        observers: quorum.observers.iter().map(replica).collect(),
        ..Default::default()
    };
    let topic = TopicData { topic_name: METADATA_TOPIC.to_owned(), partitions: vec![partition] };
    DescribeQuorumResponse { topics: vec![topic], nodes, ..Default::default() }
}

fn replica(replica: &QuorumReplica) -> ReplicaState {
    ReplicaState {
        replica_id: replica.id,
        replica_directory_id: replica.directory_id.0,
        log_end_offset: replica.log_end_offset,
        last_fetch_timestamp: replica.last_fetch_timestamp,
        last_caught_up_timestamp: replica.last_caught_up_timestamp,
    }
}

/// Where the voters are reached: as they registered, else as the quorum knows them.
fn nodes(image: &MetadataImage, quorum: &QuorumDescription) -> Vec<Node> {
    let node = |voter: &QuorumReplica| {
        let registered = image.controllers().get(&BrokerId(voter.id));
        let registered = registered.into_iter().flat_map(|controller| &controller.listeners);
        let registered =
            registered.map(|each| Listener { name: each.name.clone(), host: each.host.clone(), port: each.port });
        let mut listeners: Vec<Listener> = registered.collect();
        if let (true, Some((host, port))) = (listeners.is_empty(), &voter.endpoint) {
            let name = CONTROLLER_LISTENER.to_owned();
            listeners.push(Listener { name, host: host.clone(), port: *port });
        }
        Node { node_id: voter.id, listeners }
    };
    quorum.voters.iter().map(node).collect()
}

fn unknown_partitions(request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let refusal = Refusal::UnknownTopicOrPartition;
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| PartitionData {
            partition_index: partition.partition_index,
            error_code: refusal.wire(),
            error_message: refusal.message(),
            ..Default::default()
        });
        TopicData { topic_name: topic.topic_name, partitions: partitions.collect() }
    });
    DescribeQuorumResponse { topics: topics.collect(), ..Default::default() }
}
