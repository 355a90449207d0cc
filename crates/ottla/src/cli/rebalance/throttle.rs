//! Kafka's throttle configs for some moves: what they were before, what they are meanwhile, and how that is undone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use model::ErrorCode;
use protocol::messages::describe_cluster_response::DescribeClusterBroker;
use protocol::messages::describe_configs_request::DescribeConfigsResource;
use protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    incremental_alter_configs_request,
};

use super::plan::Move;
use crate::cli::partitions::Retry;
use crate::kafka_client::{KafkaClient, check_message, code_of};

/// Kafka's numbers of resource types, config operations, and sources of configs.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const DELETE: i8 = 1;
const SET_FOR_TOPIC: i8 = 1;
const SET_FOR_BROKER: i8 = 2;
const LEADER_RATE: &str = "leader.replication.throttled.rate";
const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";
const LEADER_REPLICAS: &str = "leader.replication.throttled.replicas";
const FOLLOWER_REPLICAS: &str = "follower.replication.throttled.replicas";

const RATES: [&str; 2] = [LEADER_RATE, FOLLOWER_RATE];
const REPLICAS: [&str; 2] = [LEADER_REPLICAS, FOLLOWER_REPLICAS];

/// The values of two configs of a broker or a topic; `None` where it has none of its own.
type Values = [Option<String>; 2];
const NOTHING: Values = [None, None];

/// One whose configs are changed.
struct Throttled {
    kind: i8,
    name: String,
    configs: [&'static str; 2],
    before: Values,
    meanwhile: Values,
}

impl Throttled {
    fn kind(&self) -> &'static str {
        if self.kind == TOPIC { "topic" } else { "node" }
    }
}

/// See the module; nothing where there is no rate.
pub(super) struct Throttle(Vec<Throttled>);

impl Throttle {
    /// For these moves: asks what is set now, so that it can be put back.
    pub(super) async fn of(
        client: &mut KafkaClient,
        moves: &[Move],
        registered: &[DescribeClusterBroker],
        rate: Option<u64>,
    ) -> Result<Throttle> {
        let Some(rate) = rate else { return Ok(Throttle(Vec::new())) };
        let mut throttled = Vec::new();
        let moved: BTreeSet<i32> = moves.iter().flat_map(|m| m.from.iter().chain(&m.to)).copied().collect();
        // One that is away sends and takes nothing, and cannot be asked what is set for it.
        for broker in registered.iter().filter(|broker| moved.contains(&broker.broker_id) && !broker.is_fenced) {
            let (name, before) = (broker.broker_id.to_string(), rates(client, broker).await?);
            let meanwhile = [Some(rate.to_string()), Some(rate.to_string())];
            throttled.push(Throttled { kind: BROKER, name, configs: RATES, before, meanwhile });
        }
        let topics = replicas(moves);
        let answer = describe_topics(client, topics.keys()).await?;
        for (name, meanwhile) in topics {
            let before = own(&answer, &name, REPLICAS, SET_FOR_TOPIC).with_context(|| format!("topic {name}"))?;
            throttled.push(Throttled { kind: TOPIC, name, configs: REPLICAS, before, meanwhile });
        }
        Ok(Throttle(throttled))
    }

    /// All that is set now for these brokers and topics, by whomever; [`Throttle::remove`] removes it.
    pub(super) async fn found(
        client: &mut KafkaClient,
        brokers: impl Iterator<Item = &DescribeClusterBroker>,
        topics: &BTreeSet<String>,
    ) -> Result<Throttle> {
        let mut found = Vec::new();
        for broker in brokers {
            let before = if broker.is_fenced { None } else { rates(client, broker).await.ok() };
            // What is set for one that does not say so would slow it when it is back.
            if before != Some(NOTHING) {
                let (name, before) = (broker.broker_id.to_string(), before.unwrap_or(NOTHING));
                found.push(Throttled { kind: BROKER, name, configs: RATES, before, meanwhile: NOTHING });
            }
        }
        let answer = describe_topics(client, topics.iter()).await?;
        for name in topics {
            // One that was deleted needs nothing.
            if let Ok(before) = own(&answer, name, REPLICAS, SET_FOR_TOPIC)
                && before != NOTHING
            {
                let (name, configs) = (name.clone(), REPLICAS);
                found.push(Throttled { kind: TOPIC, name, configs, before, meanwhile: NOTHING });
            }
        }
        Ok(Throttle(found))
    }

    /// What is set for the brokers and topics of these moves.
    pub(super) async fn found_for(
        client: &mut KafkaClient,
        moves: &[Move],
        registered: &[DescribeClusterBroker],
    ) -> Result<Throttle> {
        let moved: BTreeSet<i32> = moves.iter().flat_map(|m| m.from.iter().chain(&m.to)).copied().collect();
        let brokers = registered.iter().filter(|broker| moved.contains(&broker.broker_id));
        Throttle::found(client, brokers, &moves.iter().map(|m| m.topic.clone()).collect()).await
    }

    /// What is set, a line for each broker and topic that is known to have something.
    pub(super) fn lines(&self) -> Vec<String> {
        let line = |each: &Throttled| {
            let values = each.configs.iter().zip(&each.before);
            let values = values.filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
            format!("{} {}: {}", each.kind(), each.name, values.collect::<Vec<_>>().join(", "))
        };
        self.0.iter().filter(|each| each.before != NOTHING).map(line).collect()
    }

    /// Sets it. Where something is refused, the rest is set all the same, and is to be taken back.
    pub(super) async fn set(&self, client: &mut KafkaClient) -> Result<()> {
        let refusals = self.alter(client, |each| &each.meanwhile).await?;
        refusals.into_iter().next().map_or(Ok(()), Err)
    }

    /// Puts back what was set before.
    pub(super) async fn take_back(&self, client: &mut KafkaClient) -> Result<()> {
        self.settle(client, |each| &each.before).await
    }

    /// Sets what [`Throttle::found`] found to nothing.
    pub(super) async fn remove(&self, client: &mut KafkaClient) -> Result<()> {
        self.settle(client, |each| &each.meanwhile).await
    }

    /// Gives each its values, and tries again. What does not exist any more needs nothing.
    async fn settle(&self, client: &mut KafkaClient, values: impl Fn(&Throttled) -> &Values + Copy) -> Result<()> {
        let gone = [ErrorCode::UnknownTopicOrPartition, ErrorCode::BrokerIdNotRegistered];
        let retry = Retry::new();
        loop {
            let answered = self.alter(client, values).await;
            let mut failures = answered.unwrap_or_else(|error| vec![error]).into_iter();
            match failures.find(|error| !code_of(error).is_some_and(|code| gone.contains(&code))) {
                Some(error) => retry.after(error).await?,
                None => return Ok(()),
            }
        }
    }

    /// What the operator is to do where this program could not; nothing where there is no rate.
    pub(super) fn by_hand(&self) -> String {
        let each = |each: &Throttled| {
            let config = |(name, value): (&&str, &Option<String>)| match value {
                Some(value) => format!("set {name}={value}"),
                None => format!("delete {name}"),
            };
            let configs: Vec<String> = each.configs.iter().zip(&each.before).map(config).collect();
            format!("\n  {} {}: {}", each.kind(), each.name, configs.join(", "))
        };
        if self.0.is_empty() {
            return String::new();
        }
        let all: String = self.0.iter().map(each).collect();
        format!("; the throttle is still set: when nothing moves any more, take it back with kafka-configs.sh:{all}")
    }

    /// Gives each resource its values; answers what is refused, each by itself.
    async fn alter(
        &self,
        client: &mut KafkaClient,
        values: impl Fn(&Throttled) -> &Values,
    ) -> Result<Vec<anyhow::Error>> {
        use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let config = |(name, value): (&&str, &Option<String>)| AlterableConfig {
            name: (*name).to_owned(),
            config_operation: if value.is_some() { SET } else { DELETE },
            value: value.clone(),
        };
        let resource = |each: &Throttled| AlterConfigsResource {
            resource_type: each.kind,
            resource_name: each.name.clone(),
            configs: each.configs.iter().zip(values(each)).map(config).collect(),
        };
        let resources = self.0.iter().map(resource).collect();
        let request = IncrementalAlterConfigsRequest { resources, validate_only: false };
        let answer: IncrementalAlterConfigsResponse = client.any(&request).await?;
        let checked = answer.responses.iter().map(|result| {
            check_message(result.error_code, result.error_message.as_deref())
                .with_context(|| format!("the throttle of {}", result.resource_name))
        });
        Ok(checked.filter_map(Result::err).collect())
    }
}

/// By topic: who is throttled where it leads, and where it follows.
fn replicas(moves: &[Move]) -> BTreeMap<String, Values> {
    let mut topics: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    for each in moves {
        let (leading, following) = topics.entry(each.topic.clone()).or_default();
        let named = |id: &i32| format!("{}:{id}", each.partition);
        leading.extend(each.from.iter().map(named));
        following.extend(each.to.iter().filter(|id| !each.from.contains(id)).map(named));
    }
    let joined =
        |(leading, following): (Vec<String>, Vec<String>)| [Some(leading.join(",")), Some(following.join(","))];
    topics.into_iter().map(|(topic, named)| (topic, joined(named))).collect()
}

/// A broker's own rates, as it says itself.
async fn rates(client: &mut KafkaClient, broker: &DescribeClusterBroker) -> Result<Values> {
    let (name, address) = (broker.broker_id.to_string(), format!("{}:{}", broker.host, broker.port));
    let resources = vec![describe(BROKER, &name, RATES)];
    let request = DescribeConfigsRequest { resources, ..DescribeConfigsRequest::default() };
    let answer: DescribeConfigsResponse = client.at(&address, &request).await?;
    own(&answer, &name, RATES, SET_FOR_BROKER).with_context(|| format!("node {name}"))
}

async fn describe_topics(
    client: &mut KafkaClient,
    topics: impl Iterator<Item = &String>,
) -> Result<DescribeConfigsResponse> {
    let resources: Vec<_> = topics.map(|name| describe(TOPIC, name, REPLICAS)).collect();
    if resources.is_empty() {
        return Ok(DescribeConfigsResponse::default());
    }
    client.any(&DescribeConfigsRequest { resources, ..DescribeConfigsRequest::default() }).await
}

fn describe(resource_type: i8, name: &str, configs: [&str; 2]) -> DescribeConfigsResource {
    let configuration_keys = Some(configs.map(str::to_owned).to_vec());
    DescribeConfigsResource { resource_type, resource_name: name.to_owned(), configuration_keys }
}

/// What a resource has of its own, and not by a default.
fn own(answer: &DescribeConfigsResponse, resource: &str, configs: [&str; 2], source: i8) -> Result<Values> {
    let result = answer.results.iter().find(|result| result.resource_name == resource);
    let result = result.context("DescribeConfigs did not answer")?;
    check_message(result.error_code, result.error_message.as_deref())?;
    let value = |name: &str| {
        let config = result.configs.iter().find(|config| config.name == name && config.config_source == source)?;
        config.value.clone()
    };
    Ok(configs.map(value))
}
