//! DeleteGroups: deletes empty groups with their offsets.

use broker::api::BrokerApi;
use broker::coordinator::request::DeleteGroupRequest;
use protocol::messages::delete_groups_response::DeletableGroupResult;
use protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse};

use crate::call::Call;
use crate::handlers::ask_group;

/// Asks the coordinator for each group.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for group_id in request.groups_names {
        let error = match ask_group!(call, DeleteGroup, DeleteGroupRequest { group_id: group_id.clone() }) {
            Ok(answer) => answer.error,
            Err(refusal) => refusal.code(),
        };
        results.push(DeletableGroupResult { group_id, error_code: error.code() });
    }
    DeleteGroupsResponse { results, ..Default::default() }
}
