//! ListGroups: the groups that are coordinated here.

use broker::api::BrokerApi;
use broker::coordinator::request;
use protocol::messages::list_groups_response::ListedGroup;
use protocol::messages::{ListGroupsRequest, ListGroupsResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// Asks all coordinators here.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ListGroupsRequest) -> ListGroupsResponse {
    let list = request::ListGroupsRequest { states: request.states_filter, types: request.types_filter };
    match ask_group!(call, ListGroups, list) {
        Ok(listed) => {
            let groups = listed.groups.into_iter().map(|group| ListedGroup {
                group_id: group.group_id,
                protocol_type: group.protocol_type,
                group_state: group.state.to_owned(),
                group_type: group.group_type.to_owned(),
            });
            ListGroupsResponse { error_code: listed.error.code(), groups: groups.collect(), ..Default::default() }
        }
        Err(refusal) => ListGroupsResponse { error_code: refusal.wire(), ..Default::default() },
    }
}
