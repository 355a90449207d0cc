//! DescribeAcls: nobody decides here who may do what, and that is said as Kafka says it.

use broker::api::BrokerApi;
use protocol::messages::{DescribeAclsRequest, DescribeAclsResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// Answers SECURITY_DISABLED.
pub(crate) async fn handle<B: BrokerApi>(_call: Call<B>, _request: DescribeAclsRequest) -> DescribeAclsResponse {
    let refusal = Refusal::NoAuthorizer;
    DescribeAclsResponse { error_code: refusal.wire(), error_message: refusal.message(), ..Default::default() }
}
