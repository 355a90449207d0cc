//! FindCoordinator: which broker coordinates a group or a transactional id.

use broker::api::{BrokerApi, CoordinatorKind};
use model::ErrorCode;
use protocol::messages::find_coordinator_response::Coordinator;
use protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// The first version that asks for several at once.
const SEVERAL: i16 = 4;
/// The key type of groups.
const GROUP: i8 = 0;
/// The key type of transactional ids.
const TRANSACTION: i8 = 1;

/// Asks for each key.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    if call.version >= SEVERAL {
        let mut coordinators = Vec::with_capacity(request.coordinator_keys.len());
        for key in request.coordinator_keys {
            coordinators.push(find(&call, request.key_type, key).await);
        }
        return FindCoordinatorResponse { coordinators, ..Default::default() };
    }
    let found = find(&call, request.key_type, request.key).await;
    FindCoordinatorResponse {
        error_code: found.error_code,
        error_message: found.error_message,
        node_id: found.node_id,
        host: found.host,
        port: found.port,
        ..Default::default()
    }
}

async fn find<B: BrokerApi>(call: &Call<B>, key_type: i8, key: String) -> Coordinator {
    match address(call, key_type, &key).await {
        Ok((node_id, host, port)) => {
            let error_message = Some(ErrorCode::None.name().to_owned());
            Coordinator { key, node_id, host, port, error_message, ..Default::default() }
        }
        Err(refusal) => Coordinator {
            key,
            node_id: -1,
            port: -1,
            error_code: refusal.wire(),
            error_message: refusal.message(),
            ..Default::default()
        },
    }
}

async fn address<B: BrokerApi>(call: &Call<B>, key_type: i8, key: &str) -> Result<(i32, String, i32), Refusal> {
    let kind = match key_type {
        GROUP => CoordinatorKind::Group,
        TRANSACTION => CoordinatorKind::Transaction,
        _ => return Err(Refusal::Malformed("there is no coordinator of this type")),
    };
    let id = call.broker().find_coordinator(kind, key).await.map_err(Refusal::Broker)?;
    let image = call.image();
    let listener = call.address_of(&image, id).ok_or(Refusal::NoCoordinator)?;
    Ok((id.0, listener.host.clone(), i32::from(listener.port)))
}
