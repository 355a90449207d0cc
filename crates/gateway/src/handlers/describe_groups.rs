//! DescribeGroups: shows groups and their members.

use broker::api::BrokerApi;
use broker::coordinator::request::{DescribeGroupRequest, DescribeGroupResponse};
use model::ErrorCode;
use protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use protocol::messages::{DescribeGroupsRequest, DescribeGroupsResponse};

use crate::call::Call;
use crate::handlers::{ask_group, operations};
use crate::refusal::Refusal;

/// The first version that tells of a group that is not there by an error; before, its state alone is `Dead`.
const NOT_FOUND: i16 = 6;

/// Asks the coordinator for each group.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DescribeGroupsRequest) -> DescribeGroupsResponse {
    let asked = request.include_authorized_operations;
    let mut groups = Vec::with_capacity(request.groups.len());
    for group_id in request.groups {
        let described = ask_group!(call, DescribeGroup, DescribeGroupRequest { group_id: group_id.clone() });
        groups.push(match described {
            Ok(group) => told(call.version, asked, group),
            Err(refusal) => refused(group_id, &refusal),
        });
    }
    DescribeGroupsResponse { groups, ..Default::default() }
}

fn told(version: i16, asked: bool, group: DescribeGroupResponse) -> DescribedGroup {
    let hidden = group.error == ErrorCode::GroupIdNotFound && version < NOT_FOUND;
    let error = if hidden { ErrorCode::None } else { group.error };
    let members = group.members.into_iter().map(|member| DescribedGroupMember {
        member_id: member.member_id,
        group_instance_id: member.group_instance_id,
        client_id: member.client_id,
        client_host: member.client_host,
        member_metadata: member.metadata,
        member_assignment: member.assignment,
    });
    DescribedGroup {
        error_code: error.code(),
        error_message: group.error_message,
        group_id: group.group_id,
        group_state: group.state.to_owned(),
        protocol_type: group.protocol_type,
        protocol_data: group.protocol,
        members: members.collect(),
        authorized_operations: operations::if_asked(asked && error == ErrorCode::None, operations::GROUP),
    }
}

fn refused(group_id: String, refusal: &Refusal) -> DescribedGroup {
    let (error_code, error_message) = (refusal.wire(), refusal.message());
    DescribedGroup { error_code, error_message, group_id, ..Default::default() }
}
