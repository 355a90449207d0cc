//! CreateTopics.

use std::collections::BTreeSet;

use broker::api::BrokerApi;
use metadata::control::{CreateTopic, CreateTopics, CreatedTopic, NewTopic};
use model::{BrokerId, PartitionIndex};
use protocol::messages::create_topics_request::CreatableTopic;
use protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};

use crate::call::Call;
use crate::handlers::config_view::ConfigView;
use crate::handlers::{ask_controller, millis};
use crate::refusal::Refusal;

/// Has the controller create them.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let names: Vec<String> = request.topics.iter().map(|topic| topic.name.clone()).collect();
    let topics = request.topics.into_iter().map(wanted).collect();
    let create = CreateTopics { topics, validate_only: request.validate_only, seed: 0 };
    let mut topics: Vec<CreatableTopicResult> =
        match ask_controller!(call, CreateTopics, create, millis(request.timeout_ms)) {
            Ok(created) => created.into_iter().map(|topic| told(&call, topic)).collect(),
            Err(refusal) => names.into_iter().map(|name| refused(name, &refusal)).collect(),
        };
    // A name that stands in the request more than once is refused, and told of once.
    let mut seen = BTreeSet::new();
    topics.retain(|topic| seen.insert(topic.name.clone()));
    CreateTopicsResponse { topics, ..Default::default() }
}

fn wanted(topic: CreatableTopic) -> CreateTopic {
    let assignments = topic.assignments.into_iter().map(|assignment| {
        let brokers = assignment.broker_ids.into_iter().map(BrokerId).collect();
        (PartitionIndex(assignment.partition_index), brokers)
    });
    CreateTopic {
        name: topic.name,
        partitions: topic.num_partitions,
        replication_factor: topic.replication_factor,
        assignments: assignments.collect(),
        configs: topic.configs.into_iter().map(|config| (config.name, config.value)).collect(),
    }
}

fn told<B: BrokerApi>(call: &Call<B>, topic: CreatedTopic) -> CreatableTopicResult {
    match topic.result {
        Ok(created) => CreatableTopicResult {
            topic_id: created.id.0,
            num_partitions: created.partitions,
            replication_factor: created.replication_factor,
            configs: Some(configs(call, &created)),
            name: topic.name,
            error_message: None,
            ..Default::default()
        },
        Err(error) => refused(topic.name, &Refusal::Decided(error)),
    }
}

/// All configs of a new topic, as they will be.
fn configs<B: BrokerApi>(call: &Call<B>, created: &NewTopic) -> Vec<CreatableTopicConfigs> {
    let image = call.image();
    let entries = ConfigView::new(call, &image).topic(Some(&created.configs));
    let config = |entry: crate::handlers::config_view::Entry| CreatableTopicConfigs {
        name: entry.definition.name.to_owned(),
        value: entry.shown_value(),
        read_only: entry.is_read_only(),
        config_source: entry.source as i8,
        is_sensitive: entry.definition.is_sensitive(),
    };
    entries.into_iter().map(config).collect()
}

fn refused(name: String, refusal: &Refusal) -> CreatableTopicResult {
    let (error_code, error_message) = (refusal.wire(), refusal.message());
    CreatableTopicResult { name, error_code, error_message, ..Default::default() }
}
