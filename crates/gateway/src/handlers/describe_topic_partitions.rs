//! DescribeTopicPartitions: topics in pages, with the eligible leader replicas (KIP-966).

use std::collections::BTreeSet;

use broker::api::BrokerApi;
use metadata::{MetadataImage, TopicImage};
use model::PartitionIndex;
use protocol::messages::describe_topic_partitions_request;
use protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use protocol::messages::{DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse};

use crate::call::Call;
use crate::handlers::metadata::missing;
use crate::handlers::operations;
use crate::handlers::partition_view::{PartitionView, numbers};
use crate::refusal::Refusal;

/// Answers with a page of partitions in the order of the names, and where the next page begins.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let image = call.image();
    if let Some(refusal) = request.cursor.as_ref().and_then(|cursor| cursor_refused(cursor, &request)) {
        let topics = request.topics.into_iter().map(|topic| refused(topic.name, &refusal)).collect();
        return DescribeTopicPartitionsResponse { topics, ..Default::default() };
    }
    let mut room = usize::try_from(request.response_partition_limit).unwrap_or(0);
    room = room.min(call.shared.limits.described_partitions_max).max(1);
    let all = request.topics.is_empty();
    let names = names(&image, &request);
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names {
        if room == 0 {
            response.next_cursor = Some(Cursor { topic_name: name.to_owned(), partition_index: 0 });
            break;
        }
        let Some(topic) = image.topic_by_name(name) else {
            if !all {
                response.topics.push(refused(name.to_owned(), &missing(name)));
            }
            continue;
        };
        let first = request.cursor.as_ref().filter(|cursor| cursor.topic_name == name);
        let first = PartitionIndex(first.map_or(0, |cursor| cursor.partition_index));
        let page = page(&call, &image, topic, first, room);
        room -= page.partitions.len();
        let last = page.partitions.last().map_or(first.0 - 1, |partition| partition.partition_index);
        response.topics.push(page);
        let mut rest = topic.partitions.range(PartitionIndex(last.saturating_add(1))..);
        if let Some((next, _)) = rest.next() {
            response.next_cursor = Some(Cursor { topic_name: name.to_owned(), partition_index: next.0 });
            break;
        }
    }
    response
}

/// A cursor must name a partition of what is asked for.
fn cursor_refused(
    cursor: &describe_topic_partitions_request::Cursor,
    request: &DescribeTopicPartitionsRequest,
) -> Option<Refusal> {
    let asked = request.topics.is_empty() || request.topics.iter().any(|topic| topic.name == cursor.topic_name);
    match (cursor.partition_index < 0, asked) {
        (true, _) => Some(Refusal::Malformed("the cursor must name a partition")),
        (false, false) => Some(Refusal::Malformed("the cursor must name a topic that is asked for")),
        (false, true) => None,
    }
}

/// The topics to describe, from the cursor on, in order.
fn names<'a>(image: &'a MetadataImage, request: &'a DescribeTopicPartitionsRequest) -> BTreeSet<&'a str> {
    let from = request.cursor.as_ref().map_or("", |cursor| cursor.topic_name.as_str());
    if request.topics.is_empty() {
        return image.topic_ids().keys().map(|name| &**name).filter(|name| *name >= from).collect();
    }
    let name = |topic: &'a describe_topic_partitions_request::TopicRequest| topic.name.as_str();
    let asked = request.topics.iter().map(name).filter(|name| *name >= from);
    asked.collect()
}

fn page<B: BrokerApi>(
    call: &Call<B>,
    image: &MetadataImage,
    topic: &TopicImage,
    first: PartitionIndex,
    room: usize,
) -> DescribeTopicPartitionsResponseTopic {
    let partitions = topic.partitions.range(first..).take(room).map(|(index, partition)| {
        let view = PartitionView::new(call, image, partition, true);
        DescribeTopicPartitionsResponsePartition {
            error_code: view.error_code,
            partition_index: index.0,
            leader_id: view.leader_id,
            leader_epoch: view.leader_epoch,
            replica_nodes: view.replicas,
            isr_nodes: view.isr,
            eligible_leader_replicas: Some(numbers(partition.elr.iter().copied())),
            last_known_elr: Some(numbers(partition.last_known_elr.iter().copied())),
            offline_replicas: view.offline,
        }
    });
    DescribeTopicPartitionsResponseTopic {
        name: Some(topic.name.to_string()),
        topic_id: topic.id.0,
        is_internal: metadata::is_internal_topic(&topic.name),
        partitions: partitions.collect(),
        topic_authorized_operations: operations::TOPIC,
        ..Default::default()
    }
}

fn refused(name: String, refusal: &Refusal) -> DescribeTopicPartitionsResponseTopic {
    let is_internal = metadata::is_internal_topic(&name);
    let error_code = refusal.wire();
    DescribeTopicPartitionsResponseTopic { error_code, name: Some(name), is_internal, ..Default::default() }
}
