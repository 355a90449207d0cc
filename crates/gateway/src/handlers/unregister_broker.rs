//! UnregisterBroker: a broker that is not to come back.

use broker::api::BrokerApi;
use metadata::{ControlRequest, ControlResponse};
use model::BrokerId;
use protocol::messages::{UnregisterBrokerRequest, UnregisterBrokerResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// How long the controller may take: the request names no time.
const TIMEOUT_MS: u64 = 30_000;

/// Has the controller forget it.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: UnregisterBrokerRequest) -> UnregisterBrokerResponse {
    let asked = ControlRequest::UnregisterBroker { broker: BrokerId(request.broker_id) };
    let refusal = match call.broker().control(asked, TIMEOUT_MS).await {
        Ok(ControlResponse::Done) => return UnregisterBrokerResponse::default(),
        Ok(ControlResponse::Refused(error)) => Refusal::Decided(error),
        Ok(_) => Refusal::Unanswered,
        Err(unavailable) => Refusal::Undecided(unavailable),
    };
    UnregisterBrokerResponse { error_code: refusal.wire(), error_message: refusal.message(), ..Default::default() }
}
