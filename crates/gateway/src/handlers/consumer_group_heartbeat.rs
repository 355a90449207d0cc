//! ConsumerGroupHeartbeat: joins, lives in and leaves a consumer group of the next generation (KIP-848).

use broker::api::BrokerApi;
use broker::coordinator::consumer::group::Partitions;
use broker::coordinator::consumer::request::{ConsumerHeartbeatRequest, ConsumerHeartbeatResponse};
use model::{ErrorCode, PartitionIndex, TopicId};
use protocol::messages::consumer_group_heartbeat_response::{Assignment, TopicPartitions};
use protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use crate::call::Call;
use crate::handlers::{ask_group, consumer_groups_are_served};

/// The first version in which clients choose their member ids (KIP-1082).
const CLIENT_CHOOSES_ID: i16 = 1;

/// Asks the coordinator.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: ConsumerGroupHeartbeatRequest,
) -> ConsumerGroupHeartbeatResponse {
    if !consumer_groups_are_served(&call) {
        return told(ConsumerHeartbeatResponse::refused(ErrorCode::UnsupportedVersion, None));
    }
    if request.group_id.is_empty() {
        // No broker coordinates a group without a name: whoever is asked says so.
        return told(ConsumerHeartbeatResponse::refused(
            ErrorCode::InvalidRequest,
            Some("GroupId can't be empty.".to_owned()),
        ));
    }
    let owned = |topics: Vec<protocol::messages::consumer_group_heartbeat_request::TopicPartitions>| {
        let topics = topics
            .into_iter()
            .map(|topic| (TopicId(topic.topic_id), topic.partitions.into_iter().map(PartitionIndex).collect()));
        topics.collect::<Partitions>()
    };
    let heartbeat = ConsumerHeartbeatRequest {
        group_id: request.group_id,
        member_id: request.member_id,
        member_epoch: request.member_epoch,
        instance_id: request.instance_id,
        rack_id: request.rack_id,
        rebalance_timeout_ms: request.rebalance_timeout_ms,
        topics: request.subscribed_topic_names.map(|names| names.into_iter().collect()),
        regex: request.subscribed_topic_regex,
        assignor: request.server_assignor,
        owned: request.topic_partitions.map(owned),
        client_id: call.client_id.clone().unwrap_or_default(),
        client_host: call.client_host(),
        requires_member_id: call.version >= CLIENT_CHOOSES_ID,
    };
    let answer = ask_group!(call, ConsumerHeartbeat, heartbeat);
    told(answer.unwrap_or_else(|refusal| ConsumerHeartbeatResponse::refused(refusal.code(), None)))
}

fn told(answer: ConsumerHeartbeatResponse) -> ConsumerGroupHeartbeatResponse {
    let assignment = |partitions: Partitions| {
        let topics = partitions.into_iter().map(|(topic, partitions)| TopicPartitions {
            topic_id: topic.0,
            partitions: partitions.into_iter().map(|index| index.0).collect(),
        });
        Assignment { topic_partitions: topics.collect() }
    };
    ConsumerGroupHeartbeatResponse {
        error_code: answer.error.code(),
        error_message: answer.error_message,
        member_id: answer.member_id,
        member_epoch: answer.member_epoch,
        heartbeat_interval_ms: answer.heartbeat_interval_ms,
        assignment: answer.assignment.map(assignment),
        ..Default::default()
    }
}
