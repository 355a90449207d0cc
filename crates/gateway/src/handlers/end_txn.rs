//! EndTxn: commits or aborts (`R45`, `R51`).

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::{EndTransactionRequest, Producer};
use broker::coordinator::transaction::{EPOCH_BUMP_VERSION, TransactionRequest, TransactionResponse};
use model::ErrorCode;
use protocol::messages::{EndTxnRequest, EndTxnResponse};

use crate::call::Call;
use crate::handlers::transactional::{ask, producer, told};
use crate::refusal::Refusal;

/// The first version that knows PRODUCER_FENCED.
const KNOWS_FENCED: i16 = 2;
/// The first version of clients whose every transaction has an epoch of its own.
const BUMPS_EPOCH: i16 = 5;

/// Asks the transaction's coordinator.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: EndTxnRequest) -> EndTxnResponse {
    let end = EndTransactionRequest {
        transactional_id: request.transactional_id,
        producer: producer(request.producer_id, request.producer_epoch),
        commit: request.committed,
        client_version: if call.version < BUMPS_EPOCH { 0 } else { EPOCH_BUMP_VERSION },
    };
    let (error, next) = match ask(&call, TransactionRequest::EndTransaction(end)).await {
        Ok(TransactionResponse::EndTransaction(answer)) => (answer.error, answer.producer),
        Ok(_) => (Refusal::Unanswered.code(), Producer::NONE),
        Err(refusal) => (refusal.code(), Producer::NONE),
    };
    let next = if error == ErrorCode::None { next } else { Producer::NONE };
    EndTxnResponse {
        error_code: told(&call, KNOWS_FENCED, error),
        producer_id: next.id.0,
        producer_epoch: next.epoch.0,
        ..Default::default()
    }
}
