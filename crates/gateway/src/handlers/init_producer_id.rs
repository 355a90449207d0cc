//! InitProducerId: ids for idempotent producers (`R42`).

use broker::api::BrokerApi;
use protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// A new id, whatever the producer had: without a transactional id nothing connects the two.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let result = match check(&request) {
        Ok(()) => call.broker().new_producer_id().await.map_err(Refusal::Undecided),
        Err(refusal) => Err(refusal),
    };
    match result {
        Ok(id) => InitProducerIdResponse { producer_id: id.0, producer_epoch: 0, ..Default::default() },
        Err(refusal) => InitProducerIdResponse { error_code: refusal.wire(), producer_epoch: -1, ..Default::default() },
    }
}

fn check(request: &InitProducerIdRequest) -> Result<(), Refusal> {
    if (request.producer_id == -1) != (request.producer_epoch == -1) {
        return Err(Refusal::Malformed("a producer id and its epoch are given together"));
    }
    match request.transactional_id.as_deref() {
        None => Ok(()),
        Some("") => Err(Refusal::Malformed("the transactional id must not be empty")),
        Some(_) => Err(Refusal::NoTransactions),
    }
}
