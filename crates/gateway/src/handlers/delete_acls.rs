//! DeleteAcls: nobody decides here who may do what, so there is nothing to delete.

use broker::api::BrokerApi;
use protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use protocol::messages::{DeleteAclsRequest, DeleteAclsResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// Answers SECURITY_DISABLED for each.
pub(crate) async fn handle<B: BrokerApi>(_call: Call<B>, request: DeleteAclsRequest) -> DeleteAclsResponse {
    let refusal = Refusal::NoAuthorizer;
    let refused =
        DeleteAclsFilterResult { error_code: refusal.wire(), error_message: refusal.message(), ..Default::default() };
    DeleteAclsResponse { filter_results: vec![refused; request.filters.len()], ..Default::default() }
}
