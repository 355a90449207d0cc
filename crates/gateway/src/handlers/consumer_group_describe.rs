//! ConsumerGroupDescribe: shows consumer groups of the next generation and their members (KIP-848).

use broker::api::BrokerApi;
use broker::coordinator::consumer::group::Partitions;
use broker::coordinator::consumer::request::{ConsumerDescribeRequest, ConsumerDescribeResponse, DescribedConsumer};
use metadata::MetadataImage;
use model::ErrorCode;
use protocol::messages::consumer_group_describe_response::{Assignment, DescribedGroup, Member, TopicPartitions};
use protocol::messages::{ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse};

use crate::call::Call;
use crate::handlers::{ask_group, consumer_groups_are_served, operations};

/// A member of the classic protocol, and one of the consumer protocol.
const CLASSIC: i8 = 0;
const CONSUMER: i8 = 1;

/// Asks the coordinator for each group.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: ConsumerGroupDescribeRequest,
) -> ConsumerGroupDescribeResponse {
    let asked = request.include_authorized_operations;
    let served = consumer_groups_are_served(&call);
    let image = call.image();
    let mut groups = Vec::with_capacity(request.group_ids.len());
    for group_id in request.group_ids {
        let described = match (served, group_id.is_empty()) {
            (false, _) => ConsumerDescribeResponse::refused(&group_id, ErrorCode::UnsupportedVersion, None),
            (true, true) => ConsumerDescribeResponse::refused(&group_id, ErrorCode::InvalidGroupId, None),
            (true, false) => {
                let describe = ConsumerDescribeRequest { group_id: group_id.clone() };
                ask_group!(call, ConsumerDescribe, describe).unwrap_or_else(|refusal| {
                    ConsumerDescribeResponse::refused(&group_id, refusal.code(), refusal.message())
                })
            }
        };
        groups.push(told(asked, &image, described));
    }
    ConsumerGroupDescribeResponse { groups, ..Default::default() }
}

fn told(asked: bool, image: &MetadataImage, group: ConsumerDescribeResponse) -> DescribedGroup {
    let member = |member: DescribedConsumer| Member {
        member_id: member.member_id,
        instance_id: member.instance_id,
        rack_id: member.rack_id,
        member_epoch: member.member_epoch,
        client_id: member.client_id,
        client_host: member.client_host,
        subscribed_topic_names: member.topics.into_iter().collect(),
        // Never null, as Kafka's.
        subscribed_topic_regex: Some(member.regex.unwrap_or_default()),
        assignment: assignment(image, member.assignment),
        target_assignment: assignment(image, member.target),
        member_type: if member.is_classic { CLASSIC } else { CONSUMER },
    };
    DescribedGroup {
        error_code: group.error.code(),
        error_message: group.error_message,
        group_id: group.group_id,
        group_state: group.state.to_owned(),
        group_epoch: group.group_epoch,
        assignment_epoch: group.assignment_epoch,
        assignor_name: group.assignor.to_owned(),
        members: group.members.into_iter().map(member).collect(),
        authorized_operations: operations::if_asked(asked && group.error.is_none(), operations::GROUP),
    }
}

/// Topics that are gone have no name to be told by.
fn assignment(image: &MetadataImage, partitions: Partitions) -> Assignment {
    let known = |(topic, partitions): (model::TopicId, std::collections::BTreeSet<model::PartitionIndex>)| {
        let topic_name = image.topic(topic)?.name.to_string();
        let partitions = partitions.into_iter().map(|index| index.0).collect();
        Some(TopicPartitions { topic_id: topic.0, topic_name, partitions })
    };
    Assignment { topic_partitions: partitions.into_iter().filter_map(known).collect() }
}
