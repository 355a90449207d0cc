//! CreateAcls: nobody decides here who may do what, so nothing can be written down about it.

use broker::api::BrokerApi;
use protocol::messages::create_acls_response::AclCreationResult;
use protocol::messages::{CreateAclsRequest, CreateAclsResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// Answers SECURITY_DISABLED for each.
pub(crate) async fn handle<B: BrokerApi>(_call: Call<B>, request: CreateAclsRequest) -> CreateAclsResponse {
    let refusal = Refusal::NoAuthorizer;
    let refused = AclCreationResult { error_code: refusal.wire(), error_message: refusal.message() };
    CreateAclsResponse { results: vec![refused; request.creations.len()], ..Default::default() }
}
