//! SyncGroup: brings and fetches the assignment of a generation. The answer may wait for the leader.

use broker::api::BrokerApi;
use broker::coordinator::request::{self, MemberAssignment};
use model::ErrorCode;
use protocol::messages::{SyncGroupRequest, SyncGroupResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// The first version that names the protocol, which has to be done (KIP-559).
const NAMES_PROTOCOL: i16 = 5;

/// Asks the coordinator.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: SyncGroupRequest) -> SyncGroupResponse {
    let named = request.protocol_type.is_some() && request.protocol_name.is_some();
    if call.version >= NAMES_PROTOCOL && !named {
        let error_code = ErrorCode::InconsistentGroupProtocol.code();
        return SyncGroupResponse { error_code, ..Default::default() };
    }
    let assignments = request
        .assignments
        .into_iter()
        .map(|each| MemberAssignment { member_id: each.member_id, assignment: each.assignment });
    let sync = request::SyncGroupRequest {
        group_id: request.group_id,
        generation_id: request.generation_id,
        member_id: request.member_id,
        group_instance_id: request.group_instance_id,
        protocol_type: request.protocol_type,
        protocol_name: request.protocol_name,
        assignments: assignments.collect(),
    };
    let synced =
        ask_group!(call, SyncGroup, sync).unwrap_or_else(|refusal| request::SyncGroupResponse::refused(refusal.code()));
    SyncGroupResponse {
        error_code: synced.error.code(),
        protocol_type: synced.protocol_type,
        protocol_name: synced.protocol_name,
        assignment: synced.assignment,
        ..Default::default()
    }
}
