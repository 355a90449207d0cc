//! OffsetCommit: stores offsets of a group.

use std::collections::VecDeque;

use broker::api::BrokerApi;
use broker::coordinator::request::{self, OffsetToCommit, TopicOffsetsToCommit};
use model::{LeaderEpoch, Offset, PartitionIndex, Uuid};
use protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use protocol::messages::{OffsetCommitRequest, OffsetCommitResponse};

use crate::call::Call;
use crate::handlers::ask_group;
use crate::refusal::Refusal;
use crate::resolve;

/// The first version that names topics by id.
const BY_ID: i16 = 10;
/// The first version that knows GROUP_ID_NOT_FOUND here.
const GROUP_NOT_FOUND: i16 = 9;

/// A topic of the request, and which of its partitions the coordinator is asked for.
struct Asked {
    name: String,
    topic_id: Uuid,
    partitions: Vec<(i32, Result<(), Refusal>)>,
}

/// Asks the coordinator for the partitions that exist.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, mut request: OffsetCommitRequest) -> OffsetCommitResponse {
    let (asked, topics) = resolve_all(&call, &mut request);
    let commit = request::OffsetCommitRequest {
        group_id: request.group_id,
        generation_id: request.generation_id_or_member_epoch,
        member_id: request.member_id,
        group_instance_id: request.group_instance_id,
        retention_time_ms: request.retention_time_ms,
        topics,
        supports_member_epochs: call.version >= GROUP_NOT_FOUND,
    };
    let committed = if commit.topics.is_empty() {
        Ok(VecDeque::new())
    } else {
        let answer = ask_group!(call, OffsetCommit, commit);
        answer.map(|answer| answer.topics.into_iter().flat_map(|topic| topic.partitions).collect::<VecDeque<_>>())
    };
    OffsetCommitResponse { topics: respond(asked, committed), ..Default::default() }
}

fn resolve_all<B: BrokerApi>(
    call: &Call<B>,
    request: &mut OffsetCommitRequest,
) -> (Vec<Asked>, Vec<TopicOffsetsToCommit>) {
    let image = call.image();
    let (mut asked, mut topics) = (Vec::new(), Vec::new());
    for topic in std::mem::take(&mut request.topics) {
        let found = if call.version >= BY_ID {
            resolve::by_id(&image, topic.topic_id)
        } else {
            resolve::by_name(&image, &topic.name)
        };
        let (mut partitions, mut offsets) = (Vec::new(), Vec::new());
        for partition in topic.partitions {
            let resolved = resolve::partition(&found, partition.partition_index).map(|_| ());
            partitions.push((partition.partition_index, resolved.clone()));
            offsets.extend(resolved.ok().map(|()| offset(partition)));
        }
        if let (Ok(found), false) = (&found, offsets.is_empty()) {
            let (name, topic_id) = (found.name.to_string(), found.id);
            topics.push(TopicOffsetsToCommit { name, topic_id, partitions: offsets });
        }
        asked.push(Asked { name: topic.name, topic_id: topic.topic_id, partitions });
    }
    (asked, topics)
}

fn offset(partition: OffsetCommitRequestPartition) -> OffsetToCommit {
    OffsetToCommit {
        partition: PartitionIndex(partition.partition_index),
        offset: Offset(partition.committed_offset),
        leader_epoch: LeaderEpoch(partition.committed_leader_epoch),
        metadata: partition.committed_metadata.unwrap_or_default(),
    }
}

/// Joins the coordinator's answers, which are in the request's order, with what was refused before.
fn respond(
    asked: Vec<Asked>,
    mut committed: Result<VecDeque<(PartitionIndex, model::ErrorCode)>, Refusal>,
) -> Vec<OffsetCommitResponseTopic> {
    let mut code = |partition_index: i32, resolved: Result<(), Refusal>| {
        let code = resolved.and_then(|()| match &mut committed {
            Ok(committed) => match committed.pop_front() {
                Some((index, code)) if index.0 == partition_index => Ok(code.code()),
                _ => Err(Refusal::Unanswered),
            },
            Err(refusal) => Err(refusal.clone()),
        });
        let error_code = code.unwrap_or_else(|refusal| refusal.wire());
        OffsetCommitResponsePartition { partition_index, error_code }
    };
    let topics = asked.into_iter().map(|topic| OffsetCommitResponseTopic {
        name: topic.name,
        topic_id: topic.topic_id,
        partitions: topic.partitions.into_iter().map(|(index, resolved)| code(index, resolved)).collect(),
    });
    topics.collect()
}
