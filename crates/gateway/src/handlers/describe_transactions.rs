//! DescribeTransactions: transactional ids coordinated here.

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::{DescribeTransactionRequest, DescribeTransactionResponse};
use broker::coordinator::transaction::{TransactionRequest, TransactionResponse};
use model::ErrorCode;
use protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use protocol::messages::{DescribeTransactionsRequest, DescribeTransactionsResponse};

use crate::call::Call;
use crate::handlers::transactional::ask;
use crate::refusal::Refusal;

/// Asks the coordinator for each id.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let mut transaction_states = Vec::with_capacity(request.transactional_ids.len());
    for transactional_id in request.transactional_ids {
        let describe = DescribeTransactionRequest { transactional_id: transactional_id.clone() };
        let described = match ask(&call, TransactionRequest::Describe(describe)).await {
            Ok(TransactionResponse::Describe(described)) if described.error == ErrorCode::None => Ok(described),
            Ok(TransactionResponse::Describe(described)) => Err(Refusal::Broker(described.error)),
            Ok(_) => Err(Refusal::Unanswered),
            Err(refusal) => Err(refusal),
        };
        transaction_states.push(match described {
            Ok(described) => state(described),
            Err(refusal) => TransactionState { error_code: refusal.wire(), transactional_id, ..Default::default() },
        });
    }
    DescribeTransactionsResponse { transaction_states, ..Default::default() }
}

fn state(described: DescribeTransactionResponse) -> TransactionState {
    let topic = |(topic, partitions): (&String, &std::collections::BTreeSet<model::PartitionIndex>)| TopicData {
        topic: topic.clone(),
        partitions: partitions.iter().map(|partition| partition.0).collect(),
    };
    TransactionState {
        error_code: ErrorCode::None.code(),
        transaction_state: described.state.to_owned(),
        transaction_timeout_ms: described.timeout_ms,
        transaction_start_time_ms: described.start_time_ms,
        producer_id: described.producer.id.0,
        producer_epoch: described.producer.epoch.0,
        topics: described.partitions.topics().map(topic).collect(),
        transactional_id: described.transactional_id,
    }
}
