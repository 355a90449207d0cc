//! DescribeCluster: who the brokers are.

use broker::api::BrokerApi;
use protocol::messages::describe_cluster_response::DescribeClusterBroker;
use protocol::messages::{DescribeClusterRequest, DescribeClusterResponse};

use crate::call::Call;
use crate::handlers::metadata::controller_for_clients;
use crate::handlers::operations;
use crate::refusal::Refusal;

/// The endpoint type of brokers (KIP-919).
const BROKERS: i8 = 1;
/// The endpoint type of controllers.
const CONTROLLERS: i8 = 2;

/// Answers from the image.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let refusal = match request.endpoint_type {
        BROKERS => None,
        CONTROLLERS => Some(Refusal::OtherEndpointType),
        _ => Some(Refusal::UnknownEndpointType),
    };
    if let Some(refusal) = refusal {
        let (error_code, error_message) = (refusal.wire(), refusal.message());
        return DescribeClusterResponse { error_code, error_message, ..Default::default() };
    }
    let image = call.image();
    let shown = image.brokers().values().filter(|broker| request.include_fenced_brokers || !broker.fenced);
    let brokers = shown.filter_map(|broker| {
        let listener = broker.listener(&call.connection.listener)?;
        Some(DescribeClusterBroker {
            broker_id: broker.id.0,
            host: listener.host.clone(),
            port: i32::from(listener.port),
            rack: broker.rack.clone(),
            is_fenced: broker.fenced,
        })
    });
    let asked = request.include_cluster_authorized_operations;
    DescribeClusterResponse {
        cluster_id: call.broker().identity().cluster_id.to_string(),
        controller_id: controller_for_clients(&call, &image).0,
        brokers: brokers.collect(),
        cluster_authorized_operations: operations::if_asked(asked, operations::CLUSTER),
        ..Default::default()
    }
}
