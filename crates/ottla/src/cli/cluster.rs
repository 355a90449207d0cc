//! `ottla cluster`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
use super::rebalance::{self, RebalanceOptions, Replicas};
use super::trouble::{ByTopic, Quorum, Seen, Trouble};
use crate::kafka_client::{KafkaClient, addresses, check, check_message};

/// How long the status waits for an answer: somewhat longer than a broker looks for the active controller.
const ANSWER: Duration = Duration::from_secs(6);
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

/// What brokers answered.
struct Answers {
    metadata: MetadataResponse,
    reached: BTreeSet<i32>,
    /// A cluster without a quorum still has nodes to show.
    quorum: Result<Quorum>,
    rules: Result<Rules>,
    moving: Replicas,
    disks: Vec<String>,
    /// What is not known, and why.
    unanswered: Vec<String>,
}

impl Answers {
    async fn of(client: &mut KafkaClient) -> Result<Answers> {
        client.wait_at_most(ANSWER);
        let metadata = client.metadata(None).await?;
        // Without a quorum nobody is fenced, and the metadata still lists the dead.
        let reached = client.reached(addresses(&metadata)).await;
        let quorum = quorum(client).await;
        let rules = ack_rules(client, &metadata).await;
        let (mut disks, mut unanswered) = (Vec::new(), Vec::new());
        let moving = rebalance::ongoing(client).await.unwrap_or_else(|error| {
            unanswered.push(format!("which partitions are being moved: {error:#}"));
            Replicas::new()
        });
        if let Err(error) = &rules {
            unanswered.push(format!("which partitions refuse acks=all: {error:#}"));
        }
        for (id, address) in addresses(&metadata).into_iter().filter(|(id, _)| reached.contains(id)) {
            match disks::trouble(client, id, &address).await {
                Ok(trouble) => disks.extend(trouble),
                Err(error) => unanswered.push(format!("the disks of node {id}: {error:#}")),
            }
        }
        Ok(Answers { metadata, reached, quorum, rules, moving, disks, unanswered })
    }

    fn trouble(&self) -> Trouble {
        self.seen(self.rules.as_ref().unwrap_or(&Rules::new())).trouble()
    }

    fn seen<'a>(&'a self, rules: &'a Rules) -> Seen<'a> {
        Seen { metadata: &self.metadata, reached: &self.reached, rules, moving: &self.moving }
    }

    fn voters(&self) -> Vec<i32> {
        self.quorum.iter().flat_map(|quorum| quorum.voters.keys()).copied().collect()
    }

    fn voters_down(&self) -> BTreeSet<i32> {
        let listed = self.metadata.brokers.iter().map(|broker| broker.node_id).collect();
        self.quorum.iter().flat_map(|quorum| quorum.down(&listed, &self.reached)).collect()
    }

    /// What the failure of one more node, or of a zone, would stop.
    fn outlook(&self) -> Result<Vec<Loss>, String> {
        let rules = self.rules.as_ref().map_err(|error| format!("{error:#}"))?;
        let up = self.metadata.brokers.iter().filter(|broker| self.reached.contains(&broker.node_id));
        let cluster = outlook::Cluster {
            brokers: up.map(|broker| (broker.node_id, broker.rack.clone())).collect(),
            partitions: self.seen(rules).partitions_up(),
            voters: self.voters().into_iter().collect(),
            voters_down: self.voters_down(),
            quorum_lost: self.standing() != Standing::Works,
        };
        Ok(cluster.losses())
    }

    fn standing(&self) -> Standing {
        match &self.quorum {
            Ok(Quorum { leader: Some(_), .. }) => Standing::Works,
            Ok(Quorum { leader: None, .. }) => Standing::Lost,
            Err(_) => Standing::Unknown,
        }
    }

    /// The line about the quorum.
    fn quorum_in_words(&self) -> String {
        let quorum = match &self.quorum {
            Ok(quorum) => quorum,
            Err(error) => return format!("no answer: {error:#}"),
        };
        let down = self.voters_down();
        let leader = match quorum.leader {
            Some(leader) if down.contains(&leader) => format!("active controller {leader} does not answer"),
            Some(leader) => format!("active controller {leader}"),
            None => "no active controller".to_owned(),
        };
        let down = if down.is_empty() { String::new() } else { format!(", down {}", ranges(down)) };
        format!("{leader}, voters {}{down}", ranges(self.voters()))
    }
}

/// Whether the quorum decides anything now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Works,
    Lost,
    Unknown,
}

async fn status(client: &mut KafkaClient, output: Output) -> Result<()> {
    let answers = Answers::of(client).await?;
    let trouble = answers.trouble();
    if output.json { output.fact("", &status_json(&answers, &trouble)) } else { show(output, &answers, &trouble) }
}

fn status_json(answers: &Answers, trouble: &Trouble) -> Value {
    let quorum = answers.quorum.as_ref().ok();
    let nodes = nodes(&answers.metadata, &answers.reached, quorum);
    json!({
        "cluster_id": answers.metadata.cluster_id,
        "nodes": nodes.into_iter().map(|row| object(&COLUMNS, row)).collect::<Vec<_>>(),
        "active_controller": quorum.and_then(|quorum| quorum.leader),
        "voters": answers.voters(),
        "voters_down": answers.voters_down(),
        "topics": answers.metadata.topics.len(),
        "under_replicated": names(&trouble.under_replicated),
        "refuse_acks_all": answers.rules.is_ok().then(|| names(&trouble.refusing)),
        "leader_does_not_answer": names(&trouble.silent),
        "offline": names(&trouble.offline),
        "another_failure_stops": answers.outlook().map(|losses| losses.iter().map(loss_json).collect::<Vec<_>>()).ok(),
        "disks": answers.disks,
        "unanswered": answers.unanswered,
    })
}

fn show(output: Output, answers: &Answers, trouble: &Trouble) -> Result<()> {
    let lists = [
        ("under-replicated", &trouble.under_replicated),
        ("refusing acks=all", &trouble.refusing),
        ("led by a node that does not answer", &trouble.silent),
        ("offline", &trouble.offline),
    ];
    let counts = lists.map(|(what, topics)| format!("{what} {}", count(topics)));
    output.text(&format!("cluster  {}", answers.metadata.cluster_id.as_deref().unwrap_or("-")))?;
    output.text(&format!("quorum   {}", answers.quorum_in_words()))?;
    output.text(&format!("topics   {}, partitions {}\n", answers.metadata.topics.len(), counts.join(", ")))?;
    output.rows(&COLUMNS, nodes(&answers.metadata, &answers.reached, answers.quorum.as_ref().ok()))?;
    for (what, topics) in lists.iter().filter(|(_, topics)| !topics.is_empty()) {
        let topics: Vec<String> =
            topics.iter().map(|(topic, p)| format!("  {topic} {}", ranges(p.iter().copied()))).collect();
        output.text(&format!("\n{what}\n{}", topics.join("\n")))?;
    }
    for (what, lines) in [("disks", &answers.disks), ("not answered", &answers.unanswered)] {
        if !lines.is_empty() {
            output.text(&format!("\n{what}\n  {}", lines.join("\n  ")))?;
        }
    }
    output.text(&format!("\n{}", losses_in_words(answers.standing(), &answers.outlook())))
}

/// min.insync.replicas and the zones of ottla.ack.rule, by topic.
type Rules = BTreeMap<String, (usize, usize)>;

pub(super) async fn ack_rules(client: &mut KafkaClient, metadata: &MetadataResponse) -> Result<Rules> {
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

fn losses_in_words(standing: Standing, losses: &Result<Vec<Loss>, String>) -> String {
    let quorum = match standing {
        Standing::Works => "",
        Standing::Lost => {
            "the quorum is lost now: until a majority of the voters is up nothing can be changed, and no leader is elected\n"
        }
        Standing::Unknown => "whether there is a quorum, and what another failure would do to it, is not known\n",
    };
    format!("{quorum}{}", partitions_in_words(standing, losses))
}

fn partitions_in_words(standing: Standing, losses: &Result<Vec<Loss>, String>) -> String {
    let losses = match losses {
        Ok(losses) if losses.is_empty() && standing == Standing::Works => {
            return "another failure of any one node or zone stops nothing".to_owned();
        }
        Ok(losses) if losses.is_empty() => {
            return "another failure of any one node or zone stops no partition".to_owned();
        }
        Ok(losses) => losses,
        Err(error) => return format!("what another failure would stop is not known: {error}"),
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
        Some(quorum) if quorum.voters.contains_key(&id) => json!("standby"),
        _ => Value::Null,
    };
    let row = |id: i32, zone: Value, address: Value, state: &str| {
        let led = partitions().filter(|p| p.leader_id == id).count();
        let held = partitions().filter(|p| p.replica_nodes.contains(&id)).count();
        let role = if state == "up" { controller(id) } else { Value::Null };
        vec![json!(id), zone, address, json!(state), role, json!(led), json!(held)]
    };
    let mut rows = BTreeMap::new();
    for id in partitions().flat_map(|p| &p.replica_nodes).chain(quorum.iter().flat_map(|quorum| quorum.voters.keys())) {
        rows.insert(*id, row(*id, Value::Null, Value::Null, "down"));
    }
    for broker in &metadata.brokers {
        let address = json!(format!("{}:{}", broker.host, broker.port));
        let state = if reached.contains(&broker.node_id) { "up" } else { "no answer" };
        rows.insert(broker.node_id, row(broker.node_id, json!(broker.rack), address, state));
    }
    rows.into_values().collect()
}

fn count(topics: &ByTopic) -> usize {
    topics.values().map(Vec::len).sum()
}

fn names(topics: &ByTopic) -> Vec<String> {
    topics.iter().flat_map(|(topic, list)| list.iter().map(move |p| format!("{topic}-{p}"))).collect()
}

/// Numbers in short: `0-2,5`.
fn ranges(numbers: impl IntoIterator<Item = i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for number in numbers.into_iter().collect::<BTreeSet<_>>() {
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
    let Some(partition) = partition else { return Ok(Quorum::default()) };
    check(partition.error_code)?;
    let voters = partition.current_voters.iter().map(|voter| (voter.replica_id, voter.last_fetch_timestamp)).collect();
    Ok(Quorum { leader: Some(partition.leader_id).filter(|id| *id >= 0), voters })
}

#[cfg(test)]
mod tests {
    use protocol::messages::metadata_response::{
        MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
    };

    use super::*;

    #[test]
    fn a_quorum_that_is_lost_or_does_not_answer_is_told_whatever_another_failure_stops() {
        let told = |standing| losses_in_words(standing, &Ok(Vec::new()));
        assert_eq!(told(Standing::Works), "another failure of any one node or zone stops nothing");
        let lost = told(Standing::Lost);
        assert!(lost.starts_with("the quorum is lost now: ") && lost.ends_with(" stops no partition"), "{lost}");
        let unknown = told(Standing::Unknown);
        assert!(unknown.starts_with("whether there is a quorum"), "{unknown}");
        assert!(unknown.ends_with(" stops no partition"), "{unknown}");
    }

    /// Nodes 1 to 3 vote, and one leads a partition; `listed` are not fenced, `reached` answer.
    fn answers(leader: Option<i32>, listed: &[i32], reached: &[i32]) -> Answers {
        let broker = |id: &i32| MetadataResponseBroker { node_id: *id, ..Default::default() };
        let partition = MetadataResponsePartition {
            leader_id: 1,
            replica_nodes: vec![1, 2, 3],
            isr_nodes: listed.to_vec(),
            ..Default::default()
        };
        let topic =
            MetadataResponseTopic { name: Some("t".to_owned()), partitions: vec![partition], ..Default::default() };
        Answers {
            metadata: MetadataResponse {
                brokers: listed.iter().map(broker).collect(),
                topics: vec![topic],
                ..Default::default()
            },
            reached: reached.iter().copied().collect(),
            quorum: Ok(Quorum { leader, voters: [1, 2, 3].map(|id| (id, -1)).into() }),
            rules: Ok(Rules::new()),
            moving: Replicas::new(),
            disks: Vec::new(),
            unanswered: Vec::new(),
        }
    }

    #[test]
    fn a_fenced_node_leaves_the_quorum_no_voter_to_spare() {
        let now = answers(Some(1), &[1, 2], &[1, 2]);
        assert_eq!(now.quorum_in_words(), "active controller 1, voters 1-3, down 3");
        let losses = now.outlook().expect("the rules are known");
        let told: Vec<_> = losses.iter().map(|loss| (loss.failure.as_str(), loss.quorum)).collect();
        assert_eq!(told, [("node 1", true), ("node 2", true)]);
    }

    #[test]
    fn a_quorum_that_is_lost_is_told_with_the_partitions_that_nobody_leads_any_more() {
        let now = answers(None, &[1, 2, 3], &[2]);
        assert_eq!(now.quorum_in_words(), "no active controller, voters 1-3, down 1,3");
        assert_eq!(now.standing(), Standing::Lost);
        assert_eq!(names(&now.trouble().silent), ["t-0"]);
        let told = status_json(&now, &now.trouble());
        assert_eq!((&told["active_controller"], &told["leader_does_not_answer"]), (&Value::Null, &json!(["t-0"])));
    }

    #[test]
    fn numbers_are_shown_in_ranges() {
        assert_eq!(ranges([3, 1, 2, 7]), "1-3,7");
        assert_eq!(ranges([5]), "5");
        assert_eq!(ranges([]), "");
    }
}
