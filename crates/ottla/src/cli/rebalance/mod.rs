//! `ottla cluster rebalance`: shows what would move, then has it moved, and tells how far it is.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use model::ErrorCode;
use protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ElectLeadersRequest, ElectLeadersResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse, MetadataResponse, alter_partition_reassignments_request, elect_leaders_request,
    incremental_alter_configs_request,
};
use serde_json::{Value, json};

use crate::cli::output::{Output, counted, say};
use crate::kafka_client::{KafkaClient, check, check_message};
use plan::{Broker, Move, Placed, Plan};

const TIMEOUT_MS: i32 = 60_000;
/// Partitions of one request.
const AT_ONCE: usize = 500;
const LOOK: Duration = Duration::from_millis(250);
/// Kafka's numbers of resource types and config operations.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const SET: i8 = 0;
const DELETE: i8 = 1;
const LEADER_RATE: &str = "leader.replication.throttled.rate";
const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";
const LEADER_REPLICAS: &str = "leader.replication.throttled.replicas";
const FOLLOWER_REPLICAS: &str = "follower.replication.throttled.replicas";

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct RebalanceOptions {
    /// Move everything off this node, so that it can be taken away
    #[arg(long, value_name = "NODE")]
    drain: Vec<i32>,
    /// Do it; without this, only show what would be done
    #[arg(long)]
    execute: bool,
    /// Bytes a second that each broker may send and take for it
    #[arg(long, value_name = "BYTES", requires = "execute")]
    throttle: Option<u64>,
    /// Cancel all moves that are under way
    #[arg(long, conflicts_with_all = ["drain", "execute", "throttle"])]
    cancel: bool,
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, options: RebalanceOptions) -> Result<()> {
    if options.cancel {
        return cancel(client, output).await;
    }
    let metadata = client.metadata(None).await?;
    let drained: BTreeSet<i32> = options.drain.iter().copied().collect();
    let brokers = brokers(&metadata);
    let placed = placed(&metadata);
    for id in &drained {
        let known = brokers.iter().any(|b| b.id == *id) || placed.iter().any(|p| p.replicas.contains(id));
        ensure!(known, "there is no node {id}; `ottla cluster status` shows those there are");
    }
    let plan = plan::plan(&brokers, &placed, &drained);
    show(output, &plan, options.execute)?;
    if !options.execute || plan.moves.is_empty() {
        return Ok(());
    }
    let under_way = ongoing(client).await?;
    ensure!(
        under_way.is_empty(),
        "{} under way: wait for them, or cancel them with `ottla cluster rebalance --cancel`",
        counted(i64::try_from(under_way.len())?, "move")
    );
    let throttle = Throttle::of(&plan.moves, options.throttle);
    throttle.set(client).await?;
    let done = execute(client, output, &plan.moves).await;
    // Whatever became of the moves: a throttle that is left behind slows everything that comes later.
    throttle.take_back(client).await?;
    done?;
    elect(client, &plan.moves).await?;
    let left = if plan.unmet.is_empty() { "" } else { "; not everything could be had, see above" };
    let object = json!({ "moved": plan.moves.len(), "unmet": plan.unmet });
    output.fact(&format!("moved {}{left}", counted(i64::try_from(plan.moves.len())?, "partition")), &object)
}

fn brokers(metadata: &MetadataResponse) -> Vec<Broker> {
    metadata.brokers.iter().map(|broker| Broker { id: broker.node_id, zone: broker.rack.clone() }).collect()
}

fn placed(metadata: &MetadataResponse) -> Vec<Placed> {
    let mut placed: Vec<Placed> = Vec::new();
    for topic in &metadata.topics {
        placed.extend(topic.partitions.iter().map(|partition| Placed {
            topic: topic.name.clone().unwrap_or_default(),
            partition: partition.partition_index,
            replicas: partition.replica_nodes.clone(),
        }));
    }
    placed.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    placed
}

fn show(output: Output, plan: &Plan, executes: bool) -> Result<()> {
    let row = |m: &Move| vec![json!(m.topic), json!(m.partition), json!(m.from), json!(m.to)];
    if output.json {
        if executes && !plan.moves.is_empty() {
            return Ok(());
        }
        let moves: Vec<Value> = plan
            .moves
            .iter()
            .map(|m| json!({ "topic": m.topic, "partition": m.partition, "from": m.from, "to": m.to }))
            .collect();
        let brokers: Vec<Value> = plan
            .held
            .iter()
            .map(|(id, (before, after))| json!({ "node": id, "replicas": before, "planned": after }))
            .collect();
        return output.fact("", &json!({ "moves": moves, "nodes": brokers, "unmet": plan.unmet }));
    }
    if plan.moves.is_empty() {
        output.text("nothing to move: replicas and leaders are even")?;
    } else {
        output.rows(&["topic", "partition", "from", "to"], plan.moves.iter().map(row).collect())?;
        let held = plan.held.iter().map(|(id, (before, after))| vec![json!(id), json!(before), json!(after)]);
        output.text("")?;
        output.rows(&["node", "replicas", "planned"], held.collect())?;
    }
    for unmet in &plan.unmet {
        output.text(&format!("note: {unmet}"))?;
    }
    if !executes && !plan.moves.is_empty() {
        output.text("\nnothing was moved: give --execute to do it")?;
    }
    Ok(())
}

/// Which partitions are being moved: their topics and numbers.
async fn ongoing(client: &mut KafkaClient) -> Result<BTreeSet<(String, i32)>> {
    let request = ListPartitionReassignmentsRequest { topics: None, timeout_ms: TIMEOUT_MS };
    let answer: ListPartitionReassignmentsResponse = client.any(&request).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    let each = |topic: protocol::messages::list_partition_reassignments_response::OngoingTopicReassignment| {
        let name = topic.name;
        topic.partitions.into_iter().map(move |p| (name.clone(), p.partition_index))
    };
    Ok(answer.topics.into_iter().flat_map(each).collect())
}

/// Asks for replicas of partitions; `None` cancels.
async fn alter(client: &mut KafkaClient, wanted: &[(String, i32, Option<Vec<i32>>)]) -> Result<()> {
    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    for part in wanted.chunks(AT_ONCE) {
        let mut topics: BTreeMap<&str, Vec<ReassignablePartition>> = BTreeMap::new();
        for (topic, partition_index, replicas) in part {
            let partition = ReassignablePartition { partition_index: *partition_index, replicas: replicas.clone() };
            topics.entry(topic).or_default().push(partition);
        }
        let topic = |(name, partitions): (&str, _)| ReassignableTopic { name: name.to_owned(), partitions };
        let request = AlterPartitionReassignmentsRequest {
            timeout_ms: TIMEOUT_MS,
            allow_replication_factor_change: false,
            topics: topics.into_iter().map(topic).collect(),
        };
        let answer: AlterPartitionReassignmentsResponse = client.any(&request).await?;
        check_message(answer.error_code, answer.error_message.as_deref())?;
        for topic in &answer.responses {
            for partition in &topic.partitions {
                let gone = ErrorCode::from_code(partition.error_code) == ErrorCode::NoReassignmentInProgress;
                if let Err(error) = check_message(partition.error_code, partition.error_message.as_deref())
                    && !gone
                {
                    bail!("{}-{}: {error:#}", topic.name, partition.partition_index);
                }
            }
        }
    }
    Ok(())
}

/// Has it moved, and waits until it is.
async fn execute(client: &mut KafkaClient, output: Output, moves: &[Move]) -> Result<()> {
    let wanted: Vec<_> = moves.iter().map(|m| (m.topic.clone(), m.partition, Some(m.to.clone()))).collect();
    alter(client, &wanted).await?;
    let mut told = None;
    loop {
        let under_way = ongoing(client).await?;
        let left = moves.iter().filter(|m| under_way.contains(&(m.topic.clone(), m.partition))).count();
        // A broker that has not heard of the moves yet knows of none under way either.
        if left == 0 && are_done(client, moves).await? {
            return Ok(());
        }
        if told != Some(left) && !output.json {
            say(&format!("{} of {} moved", moves.len() - left, moves.len()));
        }
        told = Some(left);
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the replicas are where they were to be.
async fn are_done(client: &mut KafkaClient, moves: &[Move]) -> Result<bool> {
    let placed = placed(&client.metadata(None).await?);
    let now: BTreeMap<_, _> = placed.iter().map(|p| ((p.topic.as_str(), p.partition), &p.replicas)).collect();
    // A topic that was deleted meanwhile has nothing left to move.
    let done = |m: &Move| now.get(&(m.topic.as_str(), m.partition)).is_none_or(|replicas| **replicas == m.to);
    Ok(moves.iter().all(done))
}

/// The preferred replicas lead where they changed.
async fn elect(client: &mut KafkaClient, moves: &[Move]) -> Result<()> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for each in moves.iter().filter(|m| m.from.first() != m.to.first()) {
        topics.entry(&each.topic).or_default().push(each.partition);
    }
    if topics.is_empty() {
        return Ok(());
    }
    let topic =
        |(topic, partitions): (&str, _)| elect_leaders_request::TopicPartitions { topic: topic.to_owned(), partitions };
    let topic_partitions = Some(topics.into_iter().map(topic).collect());
    let request = ElectLeadersRequest { election_type: 0, topic_partitions, timeout_ms: TIMEOUT_MS };
    let answer: ElectLeadersResponse = client.any(&request).await?;
    // One that is not in sync at this moment leads once it is: the cluster balances its leaders itself.
    check(answer.error_code)
}

async fn cancel(client: &mut KafkaClient, output: Output) -> Result<()> {
    let under_way = ongoing(client).await?;
    let wanted: Vec<_> = under_way.iter().map(|(topic, partition)| (topic.clone(), *partition, None)).collect();
    alter(client, &wanted).await?;
    let count = i64::try_from(wanted.len())?;
    output.fact(&format!("cancelled {}", counted(count, "move")), &json!({ "cancelled": count }))
}

/// Kafka's throttle configs for some moves.
struct Throttle {
    rate: Option<u64>,
    brokers: BTreeSet<i32>,
    /// By topic: who is throttled where it leads, and where it follows.
    topics: BTreeMap<String, (Vec<String>, Vec<String>)>,
}

impl Throttle {
    fn of(moves: &[Move], rate: Option<u64>) -> Throttle {
        let mut throttle = Throttle { rate, brokers: BTreeSet::new(), topics: BTreeMap::new() };
        for each in moves {
            let (leading, following) = throttle.topics.entry(each.topic.clone()).or_default();
            let named = |id: &i32| format!("{}:{id}", each.partition);
            leading.extend(each.from.iter().map(named));
            following.extend(each.to.iter().filter(|id| !each.from.contains(id)).map(named));
            throttle.brokers.extend(each.from.iter().chain(&each.to));
        }
        throttle
    }

    async fn set(&self, client: &mut KafkaClient) -> Result<()> {
        let Some(rate) = self.rate else { return Ok(()) };
        self.alter(client, SET, &rate.to_string()).await
    }

    async fn take_back(&self, client: &mut KafkaClient) -> Result<()> {
        if self.rate.is_none() {
            return Ok(());
        }
        self.alter(client, DELETE, "").await
    }

    async fn alter(&self, client: &mut KafkaClient, config_operation: i8, rate: &str) -> Result<()> {
        use incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
        let config = |name: &str, value: String| AlterableConfig {
            name: name.to_owned(),
            config_operation,
            value: (config_operation == SET).then_some(value),
        };
        let broker = |id: &i32| AlterConfigsResource {
            resource_type: BROKER,
            resource_name: id.to_string(),
            configs: vec![config(LEADER_RATE, rate.to_owned()), config(FOLLOWER_RATE, rate.to_owned())],
        };
        let topic = |(name, (leading, following)): (&String, &(Vec<String>, Vec<String>))| AlterConfigsResource {
            resource_type: TOPIC,
            resource_name: name.clone(),
            configs: vec![config(LEADER_REPLICAS, leading.join(",")), config(FOLLOWER_REPLICAS, following.join(","))],
        };
        let resources = self.brokers.iter().map(broker).chain(self.topics.iter().map(topic)).collect();
        let request = IncrementalAlterConfigsRequest { resources, validate_only: false };
        let answer: IncrementalAlterConfigsResponse = client.any(&request).await?;
        for result in &answer.responses {
            check_message(result.error_code, result.error_message.as_deref())?;
        }
        Ok(())
    }
}
