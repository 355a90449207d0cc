//! `ottla topic`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use metadata::configs::FLUSH_MODE;
use model::{ErrorCode, TopicId};
use protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, MetadataResponse, create_partitions_request, create_topics_request,
    delete_topics_request, describe_configs_request, incremental_alter_configs_request, metadata_response,
};
use serde_json::{Value, json};

use super::output::{Output, counted};
use crate::kafka_client::{KafkaClient, check_message};

const TIMEOUT_MS: i32 = 30_000;
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// Kafka's number of the resource type "topic".
const TOPIC_RESOURCE: i8 = 2;
/// The config of a topic has this source where it is set for the topic itself.
const SET_FOR_TOPIC: i8 = 1;

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic
    Create {
        /// Its name
        name: String,
        /// How many partitions; -1: the cluster's default
        #[arg(long, short, default_value_t = -1, allow_negative_numbers = true)]
        partitions: i32,
        /// How many replicas; -1: the cluster's default
        #[arg(long, short, default_value_t = -1, allow_negative_numbers = true)]
        replication_factor: i16,
        /// A config, as name=value
        #[arg(long = "config", short, value_name = "NAME=VALUE")]
        configs: Vec<String>,
    },
    /// List topics
    List {
        /// With the internal ones
        #[arg(long)]
        internal: bool,
    },
    /// Show a topic's partitions and configs
    Describe {
        /// Its name
        name: String,
    },
    /// Change configs, or add partitions
    Alter {
        /// Its name
        name: String,
        /// How many partitions it is to have
        #[arg(long, short)]
        partitions: Option<i32>,
        /// Set a config, as name=value
        #[arg(long = "config", short, value_name = "NAME=VALUE")]
        configs: Vec<String>,
        /// Take a config back
        #[arg(long = "delete-config", value_name = "NAME")]
        deleted: Vec<String>,
    },
    /// Delete topics with their records
    Delete {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: TopicCommand) -> Result<()> {
    match command {
        TopicCommand::Create { name, partitions, replication_factor, configs } => {
            create(client, output, &name, (partitions, replication_factor), &configs).await
        }
        TopicCommand::List { internal } => list(client, output, internal).await,
        TopicCommand::Describe { name } => describe(client, output, &name).await,
        TopicCommand::Alter { name, partitions, configs, deleted } => {
            if partitions.is_none() && configs.is_empty() && deleted.is_empty() {
                bail!("nothing to change: give --partitions, --config or --delete-config");
            }
            if let Some(count) = partitions {
                add_partitions(client, &name, count).await?;
            }
            if !configs.is_empty() || !deleted.is_empty() {
                alter_configs(client, &name, &configs, &deleted).await?;
            }
            output.fact(&format!("changed topic {name}"), &json!({ "topic": name }))
        }
        TopicCommand::Delete { names } => delete(client, output, names).await,
    }
}

/// An error code as an error; an unknown topic with the way to the known ones.
fn check_topic(name: &str, code: i16, message: Option<&str>) -> Result<()> {
    if ErrorCode::from_code(code) == ErrorCode::UnknownTopicOrPartition {
        bail!("there is no topic {name}; `ottla topic list` shows those there are");
    }
    check_message(code, message)
}

fn name_and_value(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').with_context(|| format!("--config {text:?} is not name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

async fn create(
    client: &mut KafkaClient,
    output: Output,
    name: &str,
    (partitions, replication_factor): (i32, i16),
    configs: &[String],
) -> Result<()> {
    let configs = configs.iter().map(|text| {
        let (name, value) = name_and_value(text)?;
        Ok(create_topics_request::CreatableTopicConfig { name, value: Some(value) })
    });
    let topic = create_topics_request::CreatableTopic {
        name: name.to_owned(),
        num_partitions: partitions,
        replication_factor,
        configs: configs.collect::<Result<_>>()?,
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: TIMEOUT_MS, validate_only: false };
    let answer: CreateTopicsResponse = client.any(&request).await?;
    let topic = answer.topics.first().context("CreateTopics answered nothing")?;
    check_message(topic.error_code, topic.error_message.as_deref())
        .with_context(|| format!("cannot create topic {name}"))?;
    wait_until_seen(client, name).await?;
    let crowded = crowded(&client.metadata(Some(&[name])).await?);
    let (partitions, replicas) =
        (counted(topic.num_partitions, "partition"), counted(topic.replication_factor, "replica"));
    let note = match crowded {
        0 => String::new(),
        count => format!(
            "\nnote: {} several replicas in one zone",
            if count == 1 { "1 partition has".to_owned() } else { format!("{count} partitions have") }
        ),
    };
    let sentence = format!("created topic {name}: {partitions}, {replicas} each{note}");
    let object = json!({
        "topic": name, "topic_id": TopicId(topic.topic_id).to_string(), "partitions": topic.num_partitions,
        "replication_factor": topic.replication_factor, "sharing_a_zone": crowded,
    });
    output.fact(&sentence, &object)
}

/// How many partitions have several replicas in one zone, where the nodes have zones.
fn crowded(metadata: &MetadataResponse) -> usize {
    let zones: BTreeMap<i32, &str> =
        metadata.brokers.iter().filter_map(|b| Some((b.node_id, b.rack.as_deref()?))).collect();
    let shares = |partition: &&metadata_response::MetadataResponsePartition| {
        let in_zones: Vec<_> = partition.replica_nodes.iter().filter_map(|id| zones.get(id)).collect();
        in_zones.iter().collect::<BTreeSet<_>>().len() < in_zones.len()
    };
    metadata.topics.iter().flat_map(|topic| &topic.partitions).filter(shares).count()
}

/// The quorum has decided; the broker that is asked first learns it a moment later, and the next command may ask it.
async fn wait_until_seen(client: &mut KafkaClient, name: &str) -> Result<()> {
    let deadline = Instant::now() + SEEN_WITHIN;
    loop {
        let metadata = client.metadata(Some(&[name])).await?;
        let seen =
            metadata.topics.iter().all(|t| ErrorCode::from_code(t.error_code) != ErrorCode::UnknownTopicOrPartition);
        if seen || Instant::now() >= deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn list(client: &mut KafkaClient, output: Output, internal: bool) -> Result<()> {
    let metadata = client.metadata(None).await?;
    let mut topics = metadata.topics;
    topics.retain(|topic| internal || !topic.is_internal);
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let row = |topic: &metadata_response::MetadataResponseTopic| {
        let under = topic.partitions.iter().filter(|p| p.isr_nodes.len() < p.replica_nodes.len()).count();
        let offline = topic.partitions.iter().filter(|p| p.leader_id < 0).count();
        let replicas = topic.partitions.first().map_or(0, |p| p.replica_nodes.len());
        vec![json!(topic.name), json!(topic.partitions.len()), json!(replicas), json!(under), json!(offline)]
    };
    let columns = ["topic", "partitions", "replicas", "under_replicated", "offline"];
    output.rows(&columns, topics.iter().map(row).collect())
}

async fn describe(client: &mut KafkaClient, output: Output, name: &str) -> Result<()> {
    let metadata = client.metadata(Some(&[name])).await?;
    let topic = metadata.topics.into_iter().next().context("Metadata answered nothing")?;
    check_topic(name, topic.error_code, None)?;
    let (configs, flush) = configs_set(client, name).await?;
    let mut partitions = topic.partitions;
    partitions.sort_by_key(|p| p.partition_index);
    if output.json {
        let partition = |p: &metadata_response::MetadataResponsePartition| {
            json!({ "partition": p.partition_index, "leader": p.leader_id, "leader_epoch": p.leader_epoch,
                    "replicas": p.replica_nodes, "isr": p.isr_nodes })
        };
        let all: Vec<Value> = partitions.iter().map(partition).collect();
        let object = json!({ "topic": name, "topic_id": TopicId(topic.topic_id).to_string(), "flush": flush, "configs": configs, "partitions": all });
        return output.fact("", &object);
    }
    let shown: Vec<String> = configs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let shown = if shown.is_empty() { "-".to_owned() } else { shown.join(",") };
    let id = TopicId(topic.topic_id);
    let flush = flush.as_deref().unwrap_or("-");
    output.text(&format!("topic    {name}\nid       {id}\nflush    {flush}\nconfigs  {shown}\n"))?;
    let row = |p: &metadata_response::MetadataResponsePartition| {
        let leader = if p.leader_id < 0 { json!("none") } else { json!(p.leader_id) };
        vec![json!(p.partition_index), leader, json!(p.leader_epoch), json!(p.replica_nodes), json!(p.isr_nodes)]
    };
    output.rows(&["partition", "leader", "leader_epoch", "replicas", "isr"], partitions.iter().map(row).collect())
}

/// The configs that are set for the topic itself, and when its appends are synced, where the broker says so.
async fn configs_set(client: &mut KafkaClient, name: &str) -> Result<(BTreeMap<String, String>, Option<String>)> {
    let resource = describe_configs_request::DescribeConfigsResource {
        resource_type: TOPIC_RESOURCE,
        resource_name: name.to_owned(),
        configuration_keys: None,
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let answer: DescribeConfigsResponse = client.any(&request).await?;
    let result = answer.results.into_iter().next().context("DescribeConfigs answered nothing")?;
    check_message(result.error_code, result.error_message.as_deref())?;
    let flush = result.configs.iter().find(|config| config.name == FLUSH_MODE.name).and_then(|c| c.value.clone());
    let set = result.configs.into_iter().filter(|config| config.config_source == SET_FOR_TOPIC);
    Ok((set.map(|config| (config.name, config.value.unwrap_or_default())).collect(), flush))
}

async fn add_partitions(client: &mut KafkaClient, name: &str, count: i32) -> Result<()> {
    let topic = create_partitions_request::CreatePartitionsTopic { name: name.to_owned(), count, assignments: None };
    let request = CreatePartitionsRequest { topics: vec![topic], timeout_ms: TIMEOUT_MS, validate_only: false };
    let answer: CreatePartitionsResponse = client.any(&request).await?;
    let result = answer.results.first().context("CreatePartitions answered nothing")?;
    check_topic(name, result.error_code, result.error_message.as_deref())
        .with_context(|| format!("cannot add partitions to {name}"))
}

async fn alter_configs(client: &mut KafkaClient, name: &str, set: &[String], deleted: &[String]) -> Result<()> {
    use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let mut configs = Vec::new();
    for text in set {
        let (name, value) = name_and_value(text)?;
        configs.push(AlterableConfig { name, config_operation: 0, value: Some(value) });
    }
    configs.extend(deleted.iter().map(|name| AlterableConfig { name: name.clone(), config_operation: 1, value: None }));
    let resource = AlterConfigsResource { resource_type: TOPIC_RESOURCE, resource_name: name.to_owned(), configs };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], validate_only: false };
    let answer: IncrementalAlterConfigsResponse = client.any(&request).await?;
    let result = answer.responses.first().context("IncrementalAlterConfigs answered nothing")?;
    check_topic(name, result.error_code, result.error_message.as_deref())
        .with_context(|| format!("cannot change topic {name}"))
}

async fn delete(client: &mut KafkaClient, output: Output, names: Vec<String>) -> Result<()> {
    let topic =
        |name: &String| delete_topics_request::DeleteTopicState { name: Some(name.clone()), ..Default::default() };
    let request = DeleteTopicsRequest {
        topics: names.iter().map(topic).collect(),
        topic_names: names.clone(),
        timeout_ms: TIMEOUT_MS,
    };
    let answer: DeleteTopicsResponse = client.any(&request).await?;
    let mut failed = 0;
    for topic in answer.responses {
        let name = topic.name.unwrap_or_default();
        match check_topic(&name, topic.error_code, topic.error_message.as_deref()) {
            Ok(()) => output.fact(&format!("deleted topic {name}"), &json!({ "topic": name }))?,
            Err(error) => {
                eprintln!("cannot delete topic {name}: {error}");
                failed += 1;
            }
        }
    }
    if failed > 0 { bail!("{failed} of {} not deleted", counted(i64::try_from(names.len())?, "topic")) } else { Ok(()) }
}
