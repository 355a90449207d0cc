//! LeaveGroup: members leave, or are removed.

use broker::api::BrokerApi;
use broker::coordinator::request::{self, LeavingMember};
use model::ErrorCode;
use protocol::messages::leave_group_response::MemberResponse;
use protocol::messages::{LeaveGroupRequest, LeaveGroupResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// The first version in which several members leave at once (KIP-345).
const SEVERAL: i16 = 3;

/// Asks the coordinator.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let several = call.version >= SEVERAL;
    let members = if several {
        let leaving = request.members.into_iter().map(|member| LeavingMember {
            member_id: member.member_id,
            group_instance_id: member.group_instance_id,
            reason: member.reason,
        });
        leaving.collect()
    } else {
        vec![LeavingMember { member_id: request.member_id, group_instance_id: None, reason: None }]
    };
    let leave = request::LeaveGroupRequest { group_id: request.group_id, members };
    let left = match ask_group!(call, LeaveGroup, leave) {
        Ok(left) => left,
        Err(refusal) => return LeaveGroupResponse { error_code: refusal.wire(), ..Default::default() },
    };
    if !several {
        // The one member's error is the response's.
        let alone = left.members.first().map_or(ErrorCode::None, |member| member.error);
        let error = if left.error == ErrorCode::None { alone } else { left.error };
        return LeaveGroupResponse { error_code: error.code(), ..Default::default() };
    }
    let members = left.members.into_iter().map(|member| MemberResponse {
        member_id: member.member_id,
        group_instance_id: member.group_instance_id,
        error_code: member.error.code(),
    });
    LeaveGroupResponse { error_code: left.error.code(), members: members.collect(), ..Default::default() }
}
