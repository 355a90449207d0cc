//! Produce: resolves topics, hands the batches on, and says what became of each.
//!
//! Invariant: the broker has appended everything when [`start`] returns; the answer alone may wait.

use std::collections::BTreeSet;

use broker::api::{self, Acks, BrokerApi, CurrentLeader, Produced, RecordRefused, TransactionSupport};
use model::{ErrorCode, TopicPartition, Uuid};
use protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use protocol::messages::{ProduceRequest, ProduceResponse};

use crate::call::Call;
use crate::connection::{Answer, Answering, HangUp};
use crate::dispatch::encoded;
use crate::refusal::Refusal;
use crate::resolve::{self, ByPartition};

/// The first version that names topics by id.
const BY_ID: i16 = 13;
/// The first version that says where the leader is (KIP-951).
const TELLS_LEADER: i16 = 10;
/// The first version whose clients know TRANSACTION_ABORTABLE (KIP-890, part 1).
const KNOWS_ABORTABLE: i16 = 11;
/// The first version whose clients leave it to the broker to add partitions to transactions (KIP-890, part 2).
const IMPLICIT_PARTITIONS: i16 = 12;

/// A topic of the request, with what is known of its partitions before the append.
struct Asked {
    name: String,
    topic_id: Uuid,
    partitions: Vec<(i32, Result<TopicPartition, Refusal>)>,
}

/// Appends, and gives the answer to come.
pub(crate) fn start<B: BrokerApi>(call: Call<B>, mut request: ProduceRequest, correlation_id: i32) -> Answering {
    let acks = match request.acks {
        0 => Ok(Acks::None),
        1 => Ok(Acks::Leader),
        -1 => Ok(Acks::All),
        _ => Err(Refusal::InvalidAcks),
    };
    let timeout_ms = u64::try_from(request.timeout_ms).unwrap_or(0);
    let transactional_id = request.transactional_id.take();
    let transactions = transaction_support(call.version);
    let (asked, partitions) = resolve_all(&call, request, &acks);
    let acks = acks.unwrap_or(Acks::Leader);
    let appended = (!partitions.is_empty()).then(|| {
        call.broker().produce(api::ProduceRequest { acks, transactional_id, transactions, timeout_ms, partitions })
    });
    Box::pin(async move {
        let produced = match appended {
            Some(appended) => appended.await,
            None => Vec::new(),
        };
        let response = respond(&call, asked, produced);
        if acks == Acks::None { silent(&response) } else { encoded(&response, call.version, correlation_id) }
    })
}

fn transaction_support(version: i16) -> TransactionSupport {
    match version {
        IMPLICIT_PARTITIONS.. => TransactionSupport::Implicit,
        KNOWS_ABORTABLE.. => TransactionSupport::KnowsAbortable,
        _ => TransactionSupport::AddsPartitions,
    }
}

fn resolve_all<B: BrokerApi>(
    call: &Call<B>,
    request: ProduceRequest,
    acks: &Result<Acks, Refusal>,
) -> (Vec<Asked>, Vec<api::ProducePartition>) {
    let image = call.image();
    let mut batches = Vec::with_capacity(request.topic_data.len());
    let mut asked = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let found = if call.version >= BY_ID {
            resolve::by_id(&image, topic.topic_id)
        } else {
            resolve::by_name(&image, &topic.name)
        };
        let found = resolve::to_change(found);
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        for data in topic.partition_data {
            let partition = acks.clone().and_then(|_| resolve::partition(&found, data.index));
            let partition = match (partition, data.records) {
                (Ok(partition), Some(records)) if !records.is_empty() => {
                    batches.push(api::ProducePartition { partition, records });
                    Ok(partition)
                }
                (Ok(_), _) => Err(Refusal::NoRecords),
                (Err(refusal), _) => Err(refusal),
            };
            partitions.push((data.index, partition));
        }
        asked.push(Asked { name: topic.name, topic_id: topic.topic_id, partitions });
    }
    (asked, batches)
}

fn respond<B: BrokerApi>(call: &Call<B>, asked: Vec<Asked>, produced: Vec<Produced>) -> ProduceResponse {
    let mut leaders = BTreeSet::new();
    let mut produced = ByPartition::new(produced, |produced| produced.partition);
    let mut responses = Vec::with_capacity(asked.len());
    for Asked { name, topic_id, partitions } in asked {
        let mut partition_responses = Vec::with_capacity(partitions.len());
        for (index, partition) in partitions {
            let answer = match partition.and_then(|partition| produced.take(partition)) {
                Ok(produced) => {
                    leaders.extend(produced.current_leader.map(|leader| leader.leader));
                    told(index, produced)
                }
                Err(refusal) => refused(index, &refusal),
            };
            partition_responses.push(answer);
        }
        responses.push(TopicProduceResponse { name, topic_id, partition_responses });
    }
    let mut response = ProduceResponse { responses, ..Default::default() };
    if call.version >= TELLS_LEADER {
        let endpoint = |(node_id, host, port, rack)| NodeEndpoint { node_id, host, port, rack };
        response.node_endpoints = call.endpoints(leaders).into_iter().map(endpoint).collect();
    }
    response
}

fn told(index: i32, produced: Produced) -> PartitionProduceResponse {
    let leader =
        |leader: CurrentLeader| LeaderIdAndEpoch { leader_id: leader.leader.0, leader_epoch: leader.leader_epoch.0 };
    let refused = |refused: RecordRefused| BatchIndexAndErrorMessage {
        batch_index: refused.index,
        batch_index_error_message: Some(refused.message),
    };
    PartitionProduceResponse {
        index,
        error_code: produced.error.code(),
        base_offset: produced.base_offset.0,
        log_append_time_ms: produced.log_append_time,
        log_start_offset: produced.log_start.0,
        record_errors: produced.refused.into_iter().map(refused).collect(),
        error_message: produced.message,
        current_leader: produced.current_leader.map(leader).unwrap_or_default(),
    }
}

fn refused(index: i32, refusal: &Refusal) -> PartitionProduceResponse {
    PartitionProduceResponse {
        index,
        error_code: refusal.wire(),
        base_offset: -1,
        error_message: refusal.message(),
        ..Default::default()
    }
}

/// With acks=0 nobody reads an answer: an error closes the connection, so that the client asks for metadata again.
fn silent(response: &ProduceResponse) -> Answer {
    let mut codes = response.responses.iter().flat_map(|topic| &topic.partition_responses).map(|p| p.error_code);
    match codes.find(|code| *code != ErrorCode::None.code()) {
        Some(code) => Answer::HangUp(HangUp::Unanswerable(ErrorCode::from_code(code).name())),
        None => Answer::Silent,
    }
}
