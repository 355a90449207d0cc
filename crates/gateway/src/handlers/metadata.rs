//! Metadata: who the brokers are, what topics there are, and who leads their partitions. Creates topics that are asked for.

use std::collections::{BTreeMap, BTreeSet};

use ::metadata::control::{CreateTopic, CreateTopics, check_topic_name};
use ::metadata::{MetadataImage, TopicImage};
use broker::api::{BrokerApi, CoordinatorKind};
use model::{BrokerId, ErrorCode, TopicId, Uuid};
use protocol::messages::metadata_request::MetadataRequestTopic;
use protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic};
use protocol::messages::{MetadataRequest, MetadataResponse};

use crate::call::Call;
use crate::handlers::partition_view::{PartitionView, TELLS_LISTENER};
use crate::handlers::{ask_controller, operations};
use crate::refusal::Refusal;

/// The first version in which topics may be asked for by id.
const BY_ID: i16 = 12;
/// How long a client waits for a topic to be created; then it is told to ask again.
const CREATE_TIMEOUT_MS: u64 = 5_000;
/// The topics that only coordinators know how to create.
const COORDINATORS: [(&str, CoordinatorKind); 2] =
    [("__consumer_offsets", CoordinatorKind::Group), ("__transaction_state", CoordinatorKind::Transaction)];

/// Which topics are asked for.
enum Wanted {
    All,
    Names(Vec<String>),
    Ids(Vec<Uuid>),
}

/// Answers from the image, after creating what is missing.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: MetadataRequest) -> MetadataResponse {
    let with_operations = request.include_topic_authorized_operations;
    let refusals = match wanted(call.version, &request) {
        Ok(Wanted::Names(names)) if request.allow_auto_topic_creation => create_missing(&call, &names).await,
        _ => BTreeMap::new(),
    };
    call.broker().departures_settled().await;
    let image = call.image();
    let topics = match wanted(call.version, &request) {
        Ok(Wanted::All) => {
            let topics = image.topic_ids().values().filter_map(|id| image.topic(*id));
            topics.map(|topic| known(&call, &image, topic)).collect()
        }
        Ok(Wanted::Names(names)) => {
            let topic = |name: &String| match image.topic_by_name(name) {
                Some(topic) => known(&call, &image, topic),
                None => unknown(name, refusals.get(name).cloned().unwrap_or_else(|| missing(name))),
            };
            names.iter().map(topic).collect()
        }
        Ok(Wanted::Ids(ids)) => {
            let topic = |id: &Uuid| match image.topic(TopicId(*id)) {
                Some(topic) => known(&call, &image, topic),
                None => MetadataResponseTopic {
                    error_code: Refusal::UnknownTopicId.wire(),
                    name: None,
                    topic_id: *id,
                    ..Default::default()
                },
            };
            ids.iter().map(topic).collect()
        }
        Err(refusal) => request.topics.iter().flatten().map(|topic| refused(topic, &refusal)).collect(),
    };
    let mut response = cluster(&call, &image);
    response.topics = topics;
    for topic in &mut response.topics {
        let told = with_operations && topic.error_code == 0;
        topic.topic_authorized_operations = operations::if_asked(told, operations::TOPIC);
    }
    let asked = request.include_cluster_authorized_operations;
    response.cluster_authorized_operations = operations::if_asked(asked, operations::CLUSTER);
    response
}

/// The broker that clients are sent to for what the controller decides: any broker asks it for them.
pub(crate) fn controller_for_clients<B: BrokerApi>(call: &Call<B>, image: &MetadataImage) -> BrokerId {
    let here = call.broker().identity().broker_id;
    if call.address_of(image, here).is_some() {
        return here;
    }
    let mut alive = image.alive_brokers().map(|broker| broker.id);
    alive.find(|id| call.address_of(image, *id).is_some()).unwrap_or(BrokerId::NONE)
}

/// Why a topic that is not there is not.
pub(crate) fn missing(name: &str) -> Refusal {
    match check_topic_name(name) {
        Ok(()) => Refusal::UnknownTopicOrPartition,
        Err(error) => Refusal::Decided(error),
    }
}

fn wanted(version: i16, request: &MetadataRequest) -> Result<Wanted, Refusal> {
    let Some(topics) = &request.topics else { return Ok(Wanted::All) };
    // Version 0 has no null, and means everything by nothing.
    if version == 0 && topics.is_empty() {
        return Ok(Wanted::All);
    }
    if version < BY_ID && topics.iter().any(|topic| topic.name.is_none() || !topic.topic_id.is_nil()) {
        return Err(Refusal::Malformed("topics are asked for by name in this version"));
    }
    // As Kafka: where one id is given, ids are what is asked for.
    let ids: BTreeSet<Uuid> = topics.iter().map(|topic| topic.topic_id).filter(|id| !id.is_nil()).collect();
    if !ids.is_empty() {
        return Ok(Wanted::Ids(ids.into_iter().collect()));
    }
    let mut seen = BTreeSet::new();
    let names = topics.iter().filter_map(|topic| topic.name.as_ref()).filter(|name| seen.insert(*name));
    Ok(Wanted::Names(names.cloned().collect()))
}

/// Creates those that may be; says why others are not.
async fn create_missing<B: BrokerApi>(call: &Call<B>, names: &[String]) -> BTreeMap<String, Refusal> {
    let image = call.image();
    let auto_create = call.shared.limits.auto_create_topics;
    let absent = names.iter().filter(|name| image.topic_by_name(name).is_none() && check_topic_name(name).is_ok());
    let absent: Vec<&String> = absent.filter(|_| auto_create).collect();
    drop(image);
    if absent.is_empty() {
        return BTreeMap::new();
    }
    for (name, kind) in COORDINATORS {
        if absent.iter().any(|absent| *absent == name) {
            // Whether it worked shows in the image.
            let _ = call.broker().find_coordinator(kind, "").await;
        }
    }
    let topic = |name: &String| CreateTopic {
        name: name.clone(),
        partitions: -1,
        replication_factor: -1,
        assignments: Vec::new(),
        configs: Vec::new(),
    };
    let topics: Vec<CreateTopic> =
        absent.iter().filter(|name| !metadata::is_internal_topic(name)).map(|name| topic(name)).collect();
    if topics.is_empty() {
        return BTreeMap::new();
    }
    let request = CreateTopics { topics, validate_only: false, seed: 0 };
    match ask_controller!(call, CreateTopics, request, CREATE_TIMEOUT_MS) {
        Ok(created) => {
            let refusal = |error: ::metadata::ControlError| match error.code {
                // Somebody else was quicker: the client finds it when it asks again.
                ErrorCode::TopicAlreadyExists => Refusal::UnknownTopicOrPartition,
                _ => Refusal::Decided(error),
            };
            // One that was created but is not in the image yet will be when the client asks again.
            let told = |topic: ::metadata::control::CreatedTopic| {
                (topic.name, topic.result.err().map_or(Refusal::NoLeader, refusal))
            };
            created.into_iter().map(told).collect()
        }
        Err(refusal) => {
            tracing::info!(%refusal, "topics that a client asked for were not created");
            BTreeMap::new()
        }
    }
}

fn cluster<B: BrokerApi>(call: &Call<B>, image: &MetadataImage) -> MetadataResponse {
    let alive = image.alive_brokers().map(|broker| broker.id);
    let mut listed: BTreeSet<BrokerId> = alive.chain(call.broker().recently_gone()).collect();
    if listed.is_empty() {
        // A client that is told of no broker has nobody left to ask: librdkafka never comes back from that.
        listed.extend(image.brokers().keys());
    }
    let brokers = call.endpoints(listed);
    let broker = |(node_id, host, port, rack)| MetadataResponseBroker { node_id, host, port, rack };
    MetadataResponse {
        brokers: brokers.into_iter().map(broker).collect(),
        cluster_id: Some(call.broker().identity().cluster_id.to_string()),
        controller_id: controller_for_clients(call, image).0,
        ..Default::default()
    }
}

fn known<B: BrokerApi>(call: &Call<B>, image: &MetadataImage, topic: &TopicImage) -> MetadataResponseTopic {
    let partitions = topic.partitions.values().map(|partition| {
        let view = PartitionView::new(call, image, partition, call.version >= TELLS_LISTENER);
        let view = if call.version == 0 { view.without_offline() } else { view };
        MetadataResponsePartition {
            error_code: view.error_code,
            partition_index: partition.partition.0,
            leader_id: view.leader_id,
            leader_epoch: view.leader_epoch,
            replica_nodes: view.replicas,
            isr_nodes: view.isr,
            offline_replicas: view.offline,
        }
    });
    MetadataResponseTopic {
        name: Some(topic.name.to_string()),
        topic_id: topic.id.0,
        is_internal: metadata::is_internal_topic(&topic.name),
        partitions: partitions.collect(),
        ..Default::default()
    }
}

fn unknown(name: &str, refusal: Refusal) -> MetadataResponseTopic {
    MetadataResponseTopic {
        error_code: refusal.wire(),
        name: Some(name.to_owned()),
        is_internal: metadata::is_internal_topic(name),
        ..Default::default()
    }
}

fn refused(topic: &MetadataRequestTopic, refusal: &Refusal) -> MetadataResponseTopic {
    MetadataResponseTopic {
        error_code: refusal.wire(),
        name: Some(topic.name.clone().unwrap_or_default()),
        topic_id: topic.topic_id,
        ..Default::default()
    }
}
