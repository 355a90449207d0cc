//! JoinGroup: enters a group, or a new generation of it. The answer may wait for the other members.

use broker::api::BrokerApi;
use broker::coordinator::request::{self, JoinProtocol};
use protocol::messages::join_group_response::JoinGroupResponseMember;
use protocol::messages::{JoinGroupRequest, JoinGroupResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// The first version with a rebalance timeout of its own.
const REBALANCE_TIMEOUT: i16 = 1;
/// The first version in which a new member is told its id before it joins (KIP-394).
const KNOWN_MEMBER_ID: i16 = 4;
/// The first version in which the protocol's name may be null.
const NULL_PROTOCOL: i16 = 7;
/// The first version that can tell a static leader to keep the assignment (KIP-814).
const SKIP_ASSIGNMENT: i16 = 9;

/// Asks the coordinator.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: JoinGroupRequest) -> JoinGroupResponse {
    let version = call.version;
    let rebalance_timeout_ms =
        if version >= REBALANCE_TIMEOUT { request.rebalance_timeout_ms } else { request.session_timeout_ms };
    let protocols = request.protocols.into_iter().map(|each| JoinProtocol { name: each.name, metadata: each.metadata });
    let member_id = request.member_id.clone();
    let join = request::JoinGroupRequest {
        group_id: request.group_id,
        member_id: request.member_id,
        group_instance_id: request.group_instance_id,
        client_id: call.client_id.clone().unwrap_or_default(),
        client_host: call.client_host(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: request.protocol_type,
        protocols: protocols.collect(),
        require_known_member_id: version >= KNOWN_MEMBER_ID,
        supports_skip_assignment: version >= SKIP_ASSIGNMENT,
        reason: request.reason,
    };
    let joined = ask_group!(call, JoinGroup, join)
        .unwrap_or_else(|refusal| request::JoinGroupResponse::refused(&member_id, refusal.code()));
    let members = joined.members.into_iter().map(|member| JoinGroupResponseMember {
        member_id: member.member_id,
        group_instance_id: member.group_instance_id,
        metadata: member.metadata,
    });
    let or_empty = |name: Option<String>| if version >= NULL_PROTOCOL { name } else { Some(name.unwrap_or_default()) };
    JoinGroupResponse {
        error_code: joined.error.code(),
        generation_id: joined.generation_id,
        protocol_type: joined.protocol_type,
        protocol_name: or_empty(joined.protocol_name),
        leader: joined.leader,
        skip_assignment: joined.skip_assignment,
        member_id: joined.member_id,
        members: members.collect(),
        ..Default::default()
    }
}
