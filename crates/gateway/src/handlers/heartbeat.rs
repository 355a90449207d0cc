//! Heartbeat: keeps a member's session.

use broker::api::BrokerApi;
use broker::coordinator::request;
use protocol::messages::{HeartbeatRequest, HeartbeatResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// Asks the coordinator.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: HeartbeatRequest) -> HeartbeatResponse {
    let heartbeat = request::HeartbeatRequest {
        group_id: request.group_id,
        generation_id: request.generation_id,
        member_id: request.member_id,
        group_instance_id: request.group_instance_id,
    };
    let error = match ask_group!(call, Heartbeat, heartbeat) {
        Ok(answer) => answer.error,
        Err(refusal) => refusal.code(),
    };
    HeartbeatResponse { error_code: error.code(), ..Default::default() }
}
