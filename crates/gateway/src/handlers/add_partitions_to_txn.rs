//! AddPartitionsToTxn: partitions join a transaction, or are asked whether they did (`R50`).

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::{AddPartitionsRequest, Producer};
use broker::coordinator::transaction::{EPOCH_BUMP_VERSION, PartitionSet, TransactionRequest, TransactionResponse};
use model::{ErrorCode, PartitionIndex};
use protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnResult, AddPartitionsToTxnTopicResult,
};
use protocol::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};

use crate::call::Call;
use crate::handlers::transactional::{ask, producer, told};
use crate::refusal::Refusal;
use crate::resolve;

/// The first version that names several transactions; brokers speak it, for clients of transaction version 2.
const SEVERAL: i16 = 4;
/// The first version that knows PRODUCER_FENCED.
const KNOWS_FENCED: i16 = 2;

/// Asks for each transaction.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: AddPartitionsToTxnRequest,
) -> AddPartitionsToTxnResponse {
    if call.version < SEVERAL {
        let who = producer(request.v3_and_below_producer_id, request.v3_and_below_producer_epoch);
        let id = request.v3_and_below_transactional_id;
        let results = add(&call, id, who, false, request.v3_and_below_topics).await;
        return AddPartitionsToTxnResponse { results_by_topic_v3_and_below: results, ..Default::default() };
    }
    let mut results_by_transaction = Vec::with_capacity(request.transactions.len());
    for each in request.transactions {
        let who = producer(each.producer_id, each.producer_epoch);
        let transactional_id = each.transactional_id.clone();
        let topic_results = add(&call, each.transactional_id, who, each.verify_only, each.topics).await;
        results_by_transaction.push(AddPartitionsToTxnResult { transactional_id, topic_results });
    }
    AddPartitionsToTxnResponse { results_by_transaction, ..Default::default() }
}

async fn add<B: BrokerApi>(
    call: &Call<B>,
    transactional_id: String,
    producer: Producer,
    verify_only: bool,
    topics: Vec<AddPartitionsToTxnTopic>,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let image = call.image();
    let exists = |name: &str, index: i32| resolve::partition(&resolve::by_name(&image, name), index).is_ok();
    let all = |topic: &AddPartitionsToTxnTopic| topic.partitions.iter().all(|index| exists(&topic.name, *index));
    if !topics.iter().all(all) {
        // One that does not exist keeps out the others: the client does not go on without it.
        return results(topics, |name, index| match exists(name, index) {
            true => ErrorCode::OperationNotAttempted.code(),
            false => ErrorCode::UnknownTopicOrPartition.code(),
        });
    }
    let each = topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|index| (topic.name.as_str(), PartitionIndex(*index))));
    let partitions: PartitionSet = each.collect();
    let client_version = if call.version < SEVERAL { 0 } else { EPOCH_BUMP_VERSION };
    let request = AddPartitionsRequest { transactional_id, producer, partitions, verify_only, client_version };
    let answer = match ask(call, TransactionRequest::AddPartitions(request)).await {
        Ok(TransactionResponse::AddPartitions(answer)) => Ok(answer.partitions),
        Ok(_) => Err(Refusal::Unanswered),
        Err(refusal) => Err(refusal),
    };
    results(topics, |name, index| {
        let found = answer.as_ref().map(|partitions| {
            // They come in order.
            let at =
                partitions.binary_search_by(|(topic, partition, _)| (topic.as_str(), partition.0).cmp(&(name, index)));
            at.map_or(ErrorCode::UnknownServerError, |at| partitions[at].2)
        });
        found.map_or_else(|refusal| refusal.wire(), |error| told(call, KNOWS_FENCED, error))
    })
}

fn results(
    topics: Vec<AddPartitionsToTxnTopic>,
    code: impl Fn(&str, i32) -> i16,
) -> Vec<AddPartitionsToTxnTopicResult> {
    let topic = |topic: AddPartitionsToTxnTopic| {
        let result = |index: &i32| AddPartitionsToTxnPartitionResult {
            partition_index: *index,
            partition_error_code: code(&topic.name, *index),
        };
        let results_by_partition = topic.partitions.iter().map(result).collect();
        AddPartitionsToTxnTopicResult { name: topic.name, results_by_partition }
    };
    topics.into_iter().map(topic).collect()
}
