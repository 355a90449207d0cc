//! InitProducerId: ids for idempotent producers (`R42`), and the taking of transactional ids (`R46`).

use broker::api::BrokerApi;
use broker::coordinator::transaction::request::{self, Producer};
use broker::coordinator::transaction::{TransactionRequest, TransactionResponse};
use model::{ErrorCode, ProducerEpoch};
use protocol::messages::{InitProducerIdRequest, InitProducerIdResponse};

use crate::call::Call;
use crate::handlers::transactional::{ask, producer, told};
use crate::refusal::Refusal;

/// The first version that knows PRODUCER_FENCED.
const KNOWS_FENCED: i16 = 4;

/// Without a transactional id: a new producer id, whatever the producer had, as nothing connects the two. With one: what its
/// coordinator says.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    match init(&call, request).await {
        Ok(granted) => {
            InitProducerIdResponse { producer_id: granted.id.0, producer_epoch: granted.epoch.0, ..Default::default() }
        }
        Err(refusal) => InitProducerIdResponse {
            error_code: told(&call, KNOWS_FENCED, refusal.code()),
            producer_epoch: -1,
            ..Default::default()
        },
    }
}

async fn init<B: BrokerApi>(call: &Call<B>, asked: InitProducerIdRequest) -> Result<Producer, Refusal> {
    let before = producer(asked.producer_id, asked.producer_epoch);
    let expected = match (asked.producer_id, asked.producer_epoch) {
        (-1, -1) => None,
        (-1, _) | (_, -1) => return Err(Refusal::Malformed("a producer id and its epoch are given together")),
        _ => Some(before),
    };
    let Some(transactional_id) = asked.transactional_id else {
        let id = call.broker().new_producer_id().await.map_err(Refusal::Undecided)?;
        return Ok(Producer { id, epoch: ProducerEpoch(0) });
    };
    if transactional_id.is_empty() {
        return Err(Refusal::Malformed("the transactional id must not be empty"));
    }
    let timeout_ms = asked.transaction_timeout_ms;
    let init = request::InitProducerIdRequest { transactional_id, timeout_ms, expected };
    match ask(call, TransactionRequest::InitProducerId(init)).await? {
        TransactionResponse::InitProducerId(answer) if answer.error == ErrorCode::None => Ok(answer.producer),
        TransactionResponse::InitProducerId(answer) => Err(Refusal::Broker(answer.error)),
        _ => Err(Refusal::Unanswered),
    }
}
