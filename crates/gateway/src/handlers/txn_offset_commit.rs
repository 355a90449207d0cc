//! TxnOffsetCommit: stores offsets of a group in a transaction (`R49`).

use std::collections::VecDeque;

use broker::api::{BrokerApi, TransactionSupport};
use broker::coordinator::request::{OffsetCommitRequest, OffsetToCommit, TopicOffsetsToCommit};
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex};
use protocol::messages::txn_offset_commit_request::TxnOffsetCommitRequestPartition;
use protocol::messages::txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic};
use protocol::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};

use crate::call::Call;
use crate::handlers::transactional::producer;
use crate::refusal::Refusal;
use crate::resolve;

/// Producers below this version stop at COORDINATOR_LOAD_IN_PROGRESS (KAFKA-7296).
const KNOWS_LOADING: i16 = 2;
/// The first version whose clients know TRANSACTION_ABORTABLE (KIP-890, part 1).
const KNOWS_ABORTABLE: i16 = 4;
/// The first version whose clients leave it to the broker to add the group's partition to the transaction (KIP-890, part 2).
const IMPLICIT_PARTITIONS: i16 = 5;

/// A topic of the request, and which of its partitions the coordinator is asked for.
type Asked = (String, Vec<(i32, Result<(), Refusal>)>);

/// Asks the coordinator for the partitions that exist.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let transactions = match call.version {
        IMPLICIT_PARTITIONS.. => TransactionSupport::Implicit,
        KNOWS_ABORTABLE.. => TransactionSupport::KnowsAbortable,
        _ => TransactionSupport::AddsPartitions,
    };
    let (asked, topics) = resolve_all(&call, request.topics);
    let commit = broker::coordinator::request::TxnOffsetCommitRequest {
        producer: producer(request.producer_id, request.producer_epoch),
        guard: None,
        commit: OffsetCommitRequest {
            group_id: request.group_id,
            generation_id: request.generation_id,
            member_id: request.member_id,
            group_instance_id: request.group_instance_id,
            retention_time_ms: -1,
            topics,
            supports_member_epochs: true,
        },
    };
    let committed = if commit.commit.topics.is_empty() {
        Ok(VecDeque::new())
    } else {
        let answer = call.broker().commit_in_transaction(request.transactional_id, transactions, commit).await;
        let answer = answer.map(|answer| answer.topics.into_iter().flat_map(|topic| topic.partitions).collect());
        answer.map_err(Refusal::Broker)
    };
    TxnOffsetCommitResponse { topics: respond(call.version, asked, committed), ..Default::default() }
}

fn resolve_all<B: BrokerApi>(
    call: &Call<B>,
    request: Vec<protocol::messages::txn_offset_commit_request::TxnOffsetCommitRequestTopic>,
) -> (Vec<Asked>, Vec<TopicOffsetsToCommit>) {
    let image = call.image();
    let (mut asked, mut topics) = (Vec::with_capacity(request.len()), Vec::with_capacity(request.len()));
    for topic in request {
        let found = resolve::by_name(&image, &topic.name);
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
        asked.push((topic.name, partitions));
    }
    (asked, topics)
}

fn offset(partition: TxnOffsetCommitRequestPartition) -> OffsetToCommit {
    OffsetToCommit {
        partition: PartitionIndex(partition.partition_index),
        offset: Offset(partition.committed_offset),
        leader_epoch: LeaderEpoch(partition.committed_leader_epoch),
        metadata: partition.committed_metadata.unwrap_or_default(),
    }
}

/// Joins the coordinator's answers, which are in the request's order, with what was refused before.
fn respond(
    version: i16,
    asked: Vec<Asked>,
    mut committed: Result<VecDeque<(PartitionIndex, ErrorCode)>, Refusal>,
) -> Vec<TxnOffsetCommitResponseTopic> {
    let mut partition = |(partition_index, resolved): (i32, Result<(), Refusal>)| {
        let code = resolved.and_then(|()| match &mut committed {
            Ok(committed) => match committed.pop_front() {
                Some((index, code)) if index.0 == partition_index => Ok(code.code()),
                _ => Err(Refusal::Unanswered),
            },
            Err(refusal) => Err(refusal.clone()),
        });
        let code = code.unwrap_or_else(|refusal| refusal.wire());
        let loading = version < KNOWS_LOADING && code == ErrorCode::CoordinatorLoadInProgress.code();
        let error_code = if loading { ErrorCode::CoordinatorNotAvailable.code() } else { code };
        TxnOffsetCommitResponsePartition { partition_index, error_code }
    };
    let topic = |(name, partitions): Asked| TxnOffsetCommitResponseTopic {
        name,
        partitions: partitions.into_iter().map(&mut partition).collect(),
    };
    asked.into_iter().map(topic).collect()
}
