//! `ottla cluster`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use clap::Subcommand;
use protocol::messages::describe_configs_response::DescribeConfigsResult;
use protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, DescribeQuorumRequest, DescribeQuorumResponse, MetadataResponse,
    UnregisterBrokerRequest, UnregisterBrokerResponse, describe_configs_request, describe_quorum_request,
};
use serde_json::{Value, json};

use super::disks;
use super::outlook::{self, Loss};
use super::output::{Output, counted, object};
use super::rebalance::{self, RebalanceOptions};
use crate::kafka_client::{KafkaClient, addresses, check, check_message};

/// Kafka's number of the resource type "topic".
const TOPIC_RESOURCE: i8 = 2;
const MIN_ISR: &str = "min.insync.replicas";
const ACK_RULE: &str = "ottla.ack.rule";
const COLUMNS: [&str; 7] = ["node", "zone", "address", "state", "controller", "leaders", "replicas"];

/// What to ask of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, zones, the quorum, partitions in trouble, and what another failure would stop
    Status,
    /// Even out replicas and leaders over nodes and zones, or move all off a node: shows the plan, or executes it
    Rebalance(#[command(flatten)] RebalanceOptions),
    /// Forget a node that is gone for good; it must hold no replica
    Unregister {
        /// Its node.id
        node: i32,
    },
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Status => status(client, output).await,
        ClusterCommand::Rebalance(options) => rebalance::run(client, output, options).await,
        ClusterCommand::Unregister { node } => unregister(client, output, node).await,
    }
}

struct Quorum {
    /// None while nobody leads it.
    leader: Option<i32>,
    voters: Vec<i32>,
}

/// Partitions by topic.
type ByTopic = BTreeMap<String, Vec<i32>>;

async fn status(client: &mut KafkaClient, output: Output) -> Result<()> {
    let metadata = client.metadata(None).await?;
    // A cluster without a quorum still has nodes to show.
    let quorum = quorum(client).await;
    // Without a quorum nobody is fenced, and the metadata still lists the dead.
    let mut reached = BTreeSet::new();
    for (id, address) in addresses(&metadata) {
        if client.reaches(&address).await {
            reached.insert(id);
        }
    }
    let nodes = nodes(&metadata, &reached, quorum.as_ref().ok());
    let (under, offline) = in_trouble(&metadata);
    let losses = outlook(client, &metadata, &reached, quorum.as_ref().ok()).await;
    let mut disks = Vec::new();
    for (id, address) in addresses(&metadata).into_iter().filter(|(id, _)| reached.contains(id)) {
        // What a node cannot tell of its disks is not worth a failed status.
        disks.extend(disks::trouble(client, id, &address).await.unwrap_or_default());
    }
    if output.json {
        let all = json!({
            "cluster_id": metadata.cluster_id,
            "nodes": nodes.into_iter().map(|row| object(&COLUMNS, row)).collect::<Vec<_>>(),
            "active_controller": quorum.as_ref().ok().and_then(|quorum| quorum.leader),
            "voters": quorum.as_ref().map(|quorum| quorum.voters.clone()).unwrap_or_default(),
            "topics": metadata.topics.len(),
            "under_replicated": names(&under),
            "offline": names(&offline),
            "another_failure_stops": losses.as_ref().map(|losses| losses.iter().map(loss_json).collect::<Vec<_>>()).ok(),
            "disks": disks,
        });
        return output.fact("", &all);
    }
    let line = match &quorum {
        Ok(Quorum { leader, voters }) => {
            let voters = ranges(voters);
            match leader {
                Some(leader) if !reached.contains(leader) && metadata.brokers.iter().any(|b| b.node_id == *leader) => {
                    format!("active controller {leader} does not answer, voters {voters}")
                }
                Some(leader) => format!("active controller {leader}, voters {voters}"),
                None => format!("no active controller, voters {voters}"),
            }
        }
        Err(error) => format!("no answer: {error:#}"),
    };
    output.text(&format!("cluster  {}", metadata.cluster_id.as_deref().unwrap_or("-")))?;
    output.text(&format!("quorum   {line}"))?;
    let counts = [("under-replicated", count(&under)), ("offline", count(&offline))];
    let counts = counts.map(|(what, count)| format!("{what} partitions {count}"));
    output.text(&format!("topics   {}, {}\n", metadata.topics.len(), counts.join(", ")))?;
    output.rows(&COLUMNS, nodes)?;
    for (what, topics) in [("under-replicated", under), ("offline", offline)] {
        if !topics.is_empty() {
            let topics: Vec<String> = topics.iter().map(|(topic, p)| format!("  {topic} {}", ranges(p))).collect();
            output.text(&format!("\n{what}\n{}", topics.join("\n")))?;
        }
    }
    if !disks.is_empty() {
        output.text(&format!("\ndisks\n  {}", disks.join("\n  ")))?;
    }
    output.text(&format!("\n{}", losses_in_words(&losses)))
}

/// What the failure of one more node, or of a zone, would stop.
async fn outlook(
    client: &mut KafkaClient,
    metadata: &MetadataResponse,
    reached: &BTreeSet<i32>,
    quorum: Option<&Quorum>,
) -> Result<Vec<Loss>> {
    let rules = ack_rules(client, metadata).await?;
    let up = metadata.brokers.iter().filter(|broker| reached.contains(&broker.node_id));
    let mut cluster = outlook::Cluster {
        brokers: up.map(|broker| (broker.node_id, broker.rack.clone())).collect(),
        ..outlook::Cluster::default()
    };
    for topic in &metadata.topics {
        let (min_isr, zones) = rules.get(topic.name.as_deref().unwrap_or_default()).copied().unwrap_or((1, 0));
        cluster.partitions.extend(topic.partitions.iter().map(|partition| outlook::Partition {
            isr: partition.isr_nodes.clone(),
            min_isr: min_isr.min(partition.replica_nodes.len()),
            zones,
        }));
    }
    cluster.voters = quorum.iter().flat_map(|quorum| &quorum.voters).copied().collect();
    let is_down = |id: &&i32| metadata.brokers.iter().any(|b| b.node_id == **id) && !reached.contains(id);
    cluster.voters_down = cluster.voters.iter().filter(is_down).copied().collect();
    Ok(cluster.losses())
}

/// min.insync.replicas and the zones of ottla.ack.rule, by topic.
pub(super) async fn ack_rules(
    client: &mut KafkaClient,
    metadata: &MetadataResponse,
) -> Result<BTreeMap<String, (usize, usize)>> {
    let resource = |name: &String| describe_configs_request::DescribeConfigsResource {
        resource_type: TOPIC_RESOURCE,
        resource_name: name.clone(),
        configuration_keys: Some(vec![MIN_ISR.to_owned(), ACK_RULE.to_owned()]),
    };
    let names: Vec<String> = metadata.topics.iter().filter_map(|topic| topic.name.clone()).collect();
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let request =
        DescribeConfigsRequest { resources: names.iter().map(resource).collect(), ..DescribeConfigsRequest::default() };
    let answer: DescribeConfigsResponse = client.any(&request).await?;
    let rule = |result: DescribeConfigsResult| {
        let value = |name: &str| result.configs.iter().find(|c| c.name == name).and_then(|c| c.value.as_deref());
        let min_isr = value(MIN_ISR).and_then(|value| value.parse().ok()).unwrap_or(1);
        let zones = value(ACK_RULE).and_then(|value| value.strip_prefix("zones=")?.parse().ok()).unwrap_or(0);
        (result.resource_name.clone(), (min_isr, zones))
    };
    Ok(answer.results.into_iter().map(rule).collect())
}

fn loss_json(loss: &Loss) -> Value {
    json!({
        "failure": loss.failure, "offline_partitions": loss.offline, "unwritable_partitions": loss.unwritable,
        "quorum": loss.quorum,
    })
}

fn losses_in_words(losses: &Result<Vec<Loss>>) -> String {
    let losses = match losses {
        Ok(losses) if losses.is_empty() => {
            return "another failure of any one node or zone stops nothing".to_owned();
        }
        Ok(losses) => losses,
        Err(error) => return format!("what another failure would stop is not known: {error:#}"),
    };
    let words = |loss: &Loss| {
        let partitions =
            |count: usize| if count == 1 { "1 partition".to_owned() } else { format!("{count} partitions") };
        let offline = (loss.offline > 0).then(|| format!("{} without a leader", partitions(loss.offline)));
        let unwritable = (loss.unwritable > 0).then(|| format!("{} refusing acks=all", partitions(loss.unwritable)));
        let quorum = loss.quorum.then(|| "the quorum, and with it every change".to_owned());
        let all: Vec<String> = [offline, unwritable, quorum].into_iter().flatten().collect();
        format!("  {}: {}", loss.failure, all.join(", "))
    };
    let lines: Vec<String> = losses.iter().map(words).collect();
    format!("another failure would stop\n{}", lines.join("\n"))
}

async fn unregister(client: &mut KafkaClient, output: Output, node: i32) -> Result<()> {
    let metadata = client.metadata(None).await?;
    let partitions = metadata.topics.iter().flat_map(|topic| &topic.partitions);
    let held = partitions.filter(|partition| partition.replica_nodes.contains(&node)).count();
    ensure!(
        held == 0,
        "node {node} has {} of partitions: move them with `ottla cluster rebalance --drain {node} --execute` first",
        counted(i64::try_from(held)?, "replica")
    );
    let answer: UnregisterBrokerResponse = client.any(&UnregisterBrokerRequest { broker_id: node }).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    output.fact(&format!("node {node} is no longer registered"), &json!({ "node": node }))
}

/// A row for each broker that the cluster counts on, and for each other node that it knows.
fn nodes(metadata: &MetadataResponse, reached: &BTreeSet<i32>, quorum: Option<&Quorum>) -> Vec<Vec<Value>> {
    let partitions = || metadata.topics.iter().flat_map(|topic| &topic.partitions);
    let controller = |id: i32| match quorum {
        Some(quorum) if quorum.leader == Some(id) => json!("active"),
        Some(quorum) if quorum.voters.contains(&id) => json!("standby"),
        _ => Value::Null,
    };
    let row = |id: i32, zone: Value, address: Value, state: &str| {
        let led = partitions().filter(|p| p.leader_id == id).count();
        let held = partitions().filter(|p| p.replica_nodes.contains(&id)).count();
        let role = if state == "up" { controller(id) } else { Value::Null };
        vec![json!(id), zone, address, json!(state), role, json!(led), json!(held)]
    };
    let mut rows = BTreeMap::new();
    for id in partitions().flat_map(|p| &p.replica_nodes).chain(quorum.iter().flat_map(|quorum| &quorum.voters)) {
        rows.insert(*id, row(*id, Value::Null, Value::Null, "down"));
    }
    for broker in &metadata.brokers {
        let address = json!(format!("{}:{}", broker.host, broker.port));
        let state = if reached.contains(&broker.node_id) { "up" } else { "no answer" };
        rows.insert(broker.node_id, row(broker.node_id, json!(broker.rack), address, state));
    }
    rows.into_values().collect()
}

/// The under-replicated partitions, and those without a leader.
fn in_trouble(metadata: &MetadataResponse) -> (ByTopic, ByTopic) {
    let (mut under, mut offline) = (ByTopic::new(), ByTopic::new());
    for topic in &metadata.topics {
        for partition in &topic.partitions {
            let list = if partition.leader_id < 0 {
                &mut offline
            } else if partition.isr_nodes.len() < partition.replica_nodes.len() {
                &mut under
            } else {
                continue;
            };
            list.entry(topic.name.clone().unwrap_or_default()).or_default().push(partition.partition_index);
        }
    }
    (under, offline)
}

fn count(topics: &ByTopic) -> usize {
    topics.values().map(Vec::len).sum()
}

fn names(topics: &ByTopic) -> Vec<String> {
    topics.iter().flat_map(|(topic, list)| list.iter().map(move |p| format!("{topic}-{p}"))).collect()
}

/// Numbers in short: `0-2,5`.
fn ranges(numbers: &[i32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): (i32, i32)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

async fn quorum(client: &mut KafkaClient) -> Result<Quorum> {
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".to_owned(),
        partitions: vec![describe_quorum_request::PartitionData { partition_index: 0 }],
    };
    let answer: DescribeQuorumResponse = client.any(&DescribeQuorumRequest { topics: vec![topic] }).await?;
    check(answer.error_code)?;
    let partition = answer.topics.into_iter().flat_map(|topic| topic.partitions).next();
    let Some(partition) = partition else { return Ok(Quorum { leader: None, voters: Vec::new() }) };
    check(partition.error_code)?;
    let voters = partition.current_voters.iter().map(|voter| voter.replica_id).collect();
    Ok(Quorum { leader: Some(partition.leader_id).filter(|id| *id >= 0), voters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_in_ranges() {
        assert_eq!(ranges(&[3, 1, 2, 7]), "1-3,7");
        assert_eq!(ranges(&[5]), "5");
        assert_eq!(ranges(&[]), "");
    }
}
