//! CreatePartitions: more partitions for topics.

use broker::api::BrokerApi;
use metadata::control::{CreatePartitions, MorePartitions};
use model::BrokerId;
use protocol::messages::create_partitions_request::CreatePartitionsTopic;
use protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use protocol::messages::{CreatePartitionsRequest, CreatePartitionsResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::{wire_code, wire_message};

/// Has the controller create them.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let names: Vec<String> = request.topics.iter().map(|topic| topic.name.clone()).collect();
    let topics = request.topics.into_iter().map(wanted).collect();
    let create = CreatePartitions { topics, validate_only: request.validate_only };
    let results = match ask_controller!(call, CreatePartitions, create, millis(request.timeout_ms)) {
        Ok(results) => {
            let told = |topic: metadata::control::TopicResult| CreatePartitionsTopicResult {
                error_code: wire_code(&topic.result),
                error_message: wire_message(&topic.result),
                name: topic.name,
            };
            results.into_iter().map(told).collect()
        }
        Err(refusal) => {
            let refused = |name| CreatePartitionsTopicResult {
                name,
                error_code: refusal.wire(),
                error_message: refusal.message(),
            };
            names.into_iter().map(refused).collect()
        }
    };
    CreatePartitionsResponse { results, ..Default::default() }
}

fn wanted(topic: CreatePartitionsTopic) -> MorePartitions {
    let assignments = topic.assignments.map(|assignments| {
        let brokers = assignments.into_iter().map(|each| each.broker_ids.into_iter().map(BrokerId).collect());
        brokers.collect()
    });
    MorePartitions { name: topic.name, count: topic.count, assignments }
}
