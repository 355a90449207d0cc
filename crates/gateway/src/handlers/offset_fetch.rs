//! OffsetFetch: reads stored offsets, of one group or of several.

use broker::api::BrokerApi;
use broker::coordinator::request::{self, TopicPartitions};
use metadata::MetadataImage;
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};
use protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use protocol::messages::{OffsetFetchRequest, OffsetFetchResponse};

use crate::call::Call;
use crate::handlers::ask_group;
use crate::refusal::Refusal;
use crate::resolve;

/// The first version with an error of the whole.
const WHOLE_ERROR: i16 = 2;
/// The first version that asks for several groups (KIP-709).
const SEVERAL: i16 = 8;
/// The first version that names topics by id.
const BY_ID: i16 = 10;

/// Asks the coordinator for each group.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let require_stable = request.require_stable;
    if call.version < SEVERAL {
        return one(&call, request, require_stable).await;
    }
    let mut groups = Vec::with_capacity(request.groups.len());
    for group in request.groups {
        let mut fetched = fetch(&call, group, require_stable).await;
        if request.with_lag {
            add_lag(&call, &mut fetched).await;
        }
        groups.push(fetched);
    }
    OffsetFetchResponse { groups, ..Default::default() }
}

/// What `ottla group describe` asks for, by tags that are Ottla's own: nobody who does not ask gets them.
async fn add_lag<B: BrokerApi>(call: &Call<B>, group: &mut OffsetFetchResponseGroup) {
    let image = call.image();
    let (mut rows, mut positions) = (Vec::new(), Vec::new());
    for topic in &mut group.topics {
        let by_id = Some(TopicId(topic.topic_id)).filter(|id| !id.is_none());
        let Some(topic_id) = by_id.or_else(|| image.topic_id(&topic.name)) else { continue };
        for row in topic.partitions.iter_mut().filter(|row| row.committed_offset >= 0) {
            let id = TopicPartition { topic_id, partition: PartitionIndex(row.partition_index) };
            positions.push((id, Offset(row.committed_offset)));
            rows.push(row);
        }
    }
    let told = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(-1);
    for (row, behind) in rows.into_iter().zip(call.broker().behind(positions).await) {
        (row.lag, row.lag_ms) = (told(behind.records), told(behind.ms));
    }
}

async fn fetch<B: BrokerApi>(
    call: &Call<B>,
    group: OffsetFetchRequestGroup,
    require_stable: bool,
) -> OffsetFetchResponseGroup {
    let image = call.image();
    let (mut refused, mut topics) = (Vec::new(), group.topics.as_ref().map(|_| Vec::new()));
    for topic in group.topics.into_iter().flatten() {
        let partitions = topic.partition_indexes;
        let (name, topic_id) = if call.version >= BY_ID {
            match resolve::by_id(&image, topic.topic_id) {
                Ok(found) => (found.name.to_string(), found.id),
                Err(refusal) => {
                    let partitions = partitions.into_iter().map(|index| refused_partition(index, &refusal)).collect();
                    let topic_id = topic.topic_id;
                    refused.push(OffsetFetchResponseTopics { topic_id, partitions, ..Default::default() });
                    continue;
                }
            }
        } else {
            let id = image.topic_id(&topic.name).unwrap_or(TopicId::NONE);
            (topic.name, id)
        };
        let partitions = partitions.into_iter().map(PartitionIndex).collect();
        topics.get_or_insert_default().push(TopicPartitions { name, topic_id, partitions });
    }
    let group_id = group.group_id.clone();
    let (member_id, member_epoch) = (group.member_id, group.member_epoch);
    let ask = request::OffsetFetchRequest { group_id: group.group_id, member_id, member_epoch, topics, require_stable };
    match ask_group!(call, OffsetFetch, ask) {
        Ok(answer) => {
            let found = answer.topics.into_iter().filter_map(|topic| told(call.version, &image, topic));
            let topics = found.chain(refused).collect();
            OffsetFetchResponseGroup { group_id, topics, error_code: answer.error.code() }
        }
        Err(refusal) => OffsetFetchResponseGroup { group_id, error_code: refusal.wire(), topics: Vec::new() },
    }
}

/// A topic's offsets as the version names it; a topic whose id is not known any more cannot be told by id.
fn told(version: i16, image: &MetadataImage, topic: request::TopicFetchedOffsets) -> Option<OffsetFetchResponseTopics> {
    let topic_id = if version < BY_ID {
        TopicId::NONE
    } else if topic.topic_id.is_none() {
        image.topic_id(&topic.name)?
    } else {
        topic.topic_id
    };
    let partitions = topic.partitions.into_iter().map(|fetched| OffsetFetchResponsePartitions {
        partition_index: fetched.partition.0,
        committed_offset: fetched.offset.0,
        committed_leader_epoch: fetched.leader_epoch.0,
        metadata: Some(fetched.metadata),
        error_code: fetched.error.code(),
        ..Default::default()
    });
    Some(OffsetFetchResponseTopics { name: topic.name, topic_id: topic_id.0, partitions: partitions.collect() })
}

fn refused_partition(partition_index: i32, refusal: &Refusal) -> OffsetFetchResponsePartitions {
    OffsetFetchResponsePartitions {
        partition_index,
        committed_offset: Offset::NONE.0,
        committed_leader_epoch: LeaderEpoch::NONE.0,
        metadata: Some(String::new()),
        error_code: refusal.wire(),
        ..Default::default()
    }
}

/// The versions of one group: the same, told otherwise.
async fn one<B: BrokerApi>(call: &Call<B>, request: OffsetFetchRequest, require_stable: bool) -> OffsetFetchResponse {
    use protocol::messages::offset_fetch_request::OffsetFetchRequestTopics;
    let asked = request.topics.clone();
    let topics = request.topics.map(|topics| {
        let topic = |topic: protocol::messages::offset_fetch_request::OffsetFetchRequestTopic| {
            let (name, partition_indexes) = (topic.name, topic.partition_indexes);
            OffsetFetchRequestTopics { name, partition_indexes, ..Default::default() }
        };
        topics.into_iter().map(topic).collect()
    });
    // Before version 9 nobody says who asks.
    let (member_id, member_epoch) = (None, -1);
    let group = OffsetFetchRequestGroup { group_id: request.group_id, member_id, member_epoch, topics };
    let found = fetch(call, group, require_stable).await;
    let partition = |each: OffsetFetchResponsePartitions| OffsetFetchResponsePartition {
        partition_index: each.partition_index,
        committed_offset: each.committed_offset,
        committed_leader_epoch: each.committed_leader_epoch,
        metadata: each.metadata,
        error_code: each.error_code,
    };
    let topic = |topic: OffsetFetchResponseTopics| OffsetFetchResponseTopic {
        name: topic.name,
        partitions: topic.partitions.into_iter().map(partition).collect(),
    };
    let mut topics: Vec<OffsetFetchResponseTopic> = found.topics.into_iter().map(topic).collect();
    if found.error_code != ErrorCode::None.code() && call.version < WHOLE_ERROR {
        // Version 1 has an error at the partitions only.
        let refusal = Refusal::Broker(ErrorCode::from_code(found.error_code));
        let asked = asked.into_iter().flatten().map(|topic| OffsetFetchResponseTopic {
            name: topic.name,
            partitions: topic
                .partition_indexes
                .into_iter()
                .map(|index| partition(refused_partition(index, &refusal)))
                .collect(),
        });
        topics = asked.collect();
    }
    OffsetFetchResponse { topics, error_code: found.error_code, ..Default::default() }
}
