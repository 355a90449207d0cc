//! ListConfigResources: what has configs (KIP-1142).

use std::collections::BTreeSet;

use broker::api::BrokerApi;
use metadata::MetadataImage;
use metadata::records::ConfigResource as Resource;
use protocol::messages::list_config_resources_response::ConfigResource;
use protocol::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};

use crate::call::Call;
use crate::refusal::Refusal;

/// The types of resources, by Kafka's numbers.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;

/// Answers from the image.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    let image = call.image();
    // Version 0 knows one type only.
    let types = match request.resource_types {
        _ if call.version == 0 => vec![CLIENT_METRICS],
        types if types.is_empty() => vec![TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP],
        types => {
            let mut seen = BTreeSet::new();
            types.into_iter().filter(|each| seen.insert(*each)).collect()
        }
    };
    let mut response = ListConfigResourcesResponse::default();
    for resource_type in types {
        let Some(names) = names(&image, resource_type) else {
            let error_code = Refusal::UnsupportedValue.wire();
            return ListConfigResourcesResponse { error_code, ..Default::default() };
        };
        let resource = |resource_name| ConfigResource { resource_name, resource_type };
        response.config_resources.extend(names.into_iter().map(resource));
    }
    response
}

fn names(image: &MetadataImage, resource_type: i8) -> Option<Vec<String>> {
    let brokers = || image.alive_brokers().map(|broker| broker.id.to_string()).collect();
    let group = |resource: &Resource| match resource {
        Resource::Group(name) => Some(name.clone()),
        Resource::Topic(_) | Resource::Broker(_) | Resource::DefaultBroker | Resource::ClientMetrics(_) => None,
    };
    match resource_type {
        TOPIC => Some(image.topic_ids().keys().map(|name| name.to_string()).collect()),
        BROKER | BROKER_LOGGER => Some(brokers()),
        CLIENT_METRICS => Some(Vec::new()),
        GROUP => Some(image.configs().keys().filter_map(group).collect()),
        _ => None,
    }
}
