//! DescribeConfigs: the configs of topics, brokers and groups, with where each value comes from.

use broker::api::BrokerApi;
use metadata::control::check_topic_name;
use metadata::records::ConfigResource;
use model::BrokerId;
use protocol::messages::describe_configs_request::DescribeConfigsResource;
use protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};

use crate::call::Call;
use crate::handlers::config_view::{ConfigView, Entry, type_code};
use crate::refusal::Refusal;

/// Answers from the image and the file.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let with_synonyms = request.include_synonyms;
    let results = request.resources.into_iter().map(|resource| describe(&call, resource, with_synonyms)).collect();
    DescribeConfigsResponse { results, ..Default::default() }
}

fn describe<B: BrokerApi>(
    call: &Call<B>,
    resource: DescribeConfigsResource,
    with_synonyms: bool,
) -> DescribeConfigsResult {
    let entries = entries(call, resource.resource_type, &resource.resource_name);
    let mut result = DescribeConfigsResult {
        resource_type: resource.resource_type,
        resource_name: resource.resource_name,
        ..Default::default()
    };
    match entries {
        Ok(entries) => {
            let names = resource.configuration_keys.filter(|names| !names.is_empty());
            let asked = |entry: &Entry| {
                names.as_ref().is_none_or(|names| names.iter().any(|name| name == entry.definition.name))
            };
            result.configs =
                entries.iter().filter(|entry| asked(entry)).map(|entry| told(entry, with_synonyms)).collect();
        }
        Err(refusal) => {
            result.error_code = refusal.wire();
            result.error_message = refusal.message();
        }
    }
    result
}

fn entries<B: BrokerApi>(call: &Call<B>, type_code: i8, name: &str) -> Result<Vec<Entry>, Refusal> {
    let image = call.image();
    let view = ConfigView::new(call, &image);
    let here = call.broker().identity().broker_id;
    let resource = ConfigResource::from_kafka(type_code, name);
    let resource = resource
        .ok_or_else(|| Refusal::UnknownResource(format!("no configs of type {type_code} and name {name:?}")))?;
    let set = image.configs().get(&resource).map(|map| &**map);
    match resource {
        ConfigResource::Topic(name) => {
            check_topic_name(&name)?;
            image.topic_id(&name).ok_or(Refusal::UnknownTopicOrPartition)?;
            let mut entries = view.topic(set);
            entries.push(view.flush_mode(&name));
            Ok(entries)
        }
        ConfigResource::Broker(id) if id == here => Ok(view.broker()),
        // Each broker alone knows its file.
        ConfigResource::Broker(BrokerId(id)) => Err(Refusal::UnknownResource(format!(
            "this is broker {here}: ask broker {id} itself, or for all brokers by an empty name"
        ))),
        ConfigResource::DefaultBroker => Ok(view.all_brokers()),
        ConfigResource::Group(name) if name.is_empty() => Err(Refusal::Malformed("a group's id must not be empty")),
        ConfigResource::Group(_) => Ok(view.group(set)),
        ConfigResource::ClientMetrics(_) => Ok(Vec::new()),
    }
}

fn told(entry: &Entry, with_synonyms: bool) -> DescribeConfigsResourceResult {
    let synonyms = entry.synonyms.iter().filter(|_| with_synonyms).map(|synonym| DescribeConfigsSynonym {
        name: synonym.name.to_owned(),
        value: entry.shown(&synonym.value),
        source: synonym.source as i8,
    });
    DescribeConfigsResourceResult {
        name: entry.definition.name.to_owned(),
        value: entry.shown_value(),
        read_only: entry.is_read_only(),
        config_source: entry.source as i8,
        is_sensitive: entry.definition.is_sensitive(),
        synonyms: synonyms.collect(),
        config_type: type_code(entry.definition.config_type),
        documentation: None,
    }
}
