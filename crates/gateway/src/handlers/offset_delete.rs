//! OffsetDelete: deletes stored offsets of a group.

use std::collections::VecDeque;

use broker::api::BrokerApi;
use broker::coordinator::request::{self, TopicPartitions};
use model::{ErrorCode, PartitionIndex};
use protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use protocol::messages::{OffsetDeleteRequest, OffsetDeleteResponse};

use crate::call::Call;
use crate::handlers::ask_group;
use crate::refusal::Refusal;
use crate::resolve;

/// Asks the coordinator for the partitions that exist.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let image = call.image();
    let (mut asked, mut topics) = (Vec::new(), Vec::new());
    for topic in request.topics {
        let found = resolve::by_name(&image, &topic.name);
        let indexes = topic.partitions.into_iter().map(|partition| partition.partition_index);
        let slots: Vec<(i32, Result<(), Refusal>)> =
            indexes.map(|index| (index, resolve::partition(&found, index).map(|_| ()))).collect();
        let there = slots.iter().filter(|(_, slot)| slot.is_ok()).map(|(index, _)| PartitionIndex(*index));
        let partitions: Vec<PartitionIndex> = there.collect();
        if let (Ok(found), false) = (&found, partitions.is_empty()) {
            topics.push(TopicPartitions { name: topic.name.clone(), topic_id: found.id, partitions });
        }
        asked.push((topic.name, slots));
    }
    drop(image);
    let delete = request::OffsetDeleteRequest { group_id: request.group_id, topics };
    let answer = match ask_group!(call, OffsetDelete, delete) {
        Ok(answer) if answer.error == ErrorCode::None => answer,
        Ok(answer) => return OffsetDeleteResponse { error_code: answer.error.code(), ..Default::default() },
        Err(refusal) => return OffsetDeleteResponse { error_code: refusal.wire(), ..Default::default() },
    };
    let mut deleted: VecDeque<_> = answer.topics.into_iter().flat_map(|topic| topic.partitions).collect();
    let mut told = |(partition_index, slot): (i32, Result<(), Refusal>)| {
        let code = slot.and_then(|()| match deleted.pop_front() {
            Some((index, code)) if index.0 == partition_index => Ok(code.code()),
            _ => Err(Refusal::Unanswered),
        });
        let error_code = code.unwrap_or_else(|refusal| refusal.wire());
        OffsetDeleteResponsePartition { partition_index, error_code }
    };
    let topics = asked.into_iter().map(|(name, slots)| OffsetDeleteResponseTopic {
        name,
        partitions: slots.into_iter().map(&mut told).collect(),
    });
    OffsetDeleteResponse { topics: topics.collect(), ..Default::default() }
}
