//! What the APIs of transactions share.

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::Producer;
use broker::coordinator::transaction::{TransactionRequest, TransactionResponse};
use model::{ErrorCode, ProducerEpoch, ProducerId};

use crate::call::Call;
use crate::refusal::Refusal;

/// A producer's incarnation as requests name it.
pub(crate) fn producer(id: i64, epoch: i16) -> Producer {
    Producer { id: ProducerId(id), epoch: ProducerEpoch(epoch) }
}

/// Asks the transaction coordinator on this broker.
pub(crate) async fn ask<B: BrokerApi>(
    call: &Call<B>,
    request: TransactionRequest,
) -> Result<TransactionResponse, Refusal> {
    call.broker().transaction(request).await.map_err(Refusal::Broker)
}

/// Clients below `version` know no PRODUCER_FENCED.
pub(crate) fn told<B>(call: &Call<B>, version: i16, error: ErrorCode) -> i16 {
    match error {
        ErrorCode::ProducerFenced if call.version < version => ErrorCode::InvalidProducerEpoch.code(),
        error => error.code(),
    }
}
