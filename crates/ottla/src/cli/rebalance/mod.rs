//! `ottla cluster rebalance`: shows what would move, then has it moved, and tells how far it is and what became of it.
//!
//! Invariant: whatever becomes of the moves, and of this program short of SIGKILL, the throttle that it set is taken back.

mod fate;
mod plan;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;
use model::ErrorCode;
use protocol::messages::describe_cluster_response::DescribeClusterBroker;
use protocol::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, DescribeClusterRequest,
    DescribeClusterResponse, ElectLeadersRequest, ElectLeadersResponse, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse, MetadataResponse, alter_partition_reassignments_request, elect_leaders_request,
};
use serde_json::{Value, json};

use super::cluster::ack_rules;
use crate::cli::output::{Output, counted, say};
use crate::kafka_client::{KafkaClient, check, check_message};
use crate::stop::StopSignal;
use fate::{Fate, Watch};
use plan::{Broker, Move, Placed, Plan};
use throttle::Throttle;

const TIMEOUT_MS: i32 = 60_000;
/// Partitions of one request.
const AT_ONCE: usize = 500;
const LOOK: Duration = Duration::from_millis(250);

/// A partition: its topic, and its number.
type Key = (String, i32);

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
    let registered = registered(client).await?;
    let zones = ack_rules(client, &metadata).await?.into_iter().map(|(topic, (_, zones))| (topic, zones)).collect();
    let drained: BTreeSet<i32> = options.drain.iter().copied().collect();
    let brokers = brokers(&registered);
    let placed = placed(&metadata, &zones);
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
    let throttle = Throttle::of(client, &plan.moves, &registered, options.throttle).await?;
    let fates = execute_throttled(client, output, &plan.moves, &throttle).await?;
    let done: Vec<&Move> =
        plan.moves.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Done).map(|(m, _)| m).collect();
    elect(client, &done).await?;
    told(output, &plan, done.len(), &fates)
}

/// What became of it all; an error where something did not move.
fn told(output: Output, plan: &Plan, moved: usize, fates: &[Fate]) -> Result<()> {
    let named = plan.moves.iter().zip(fates);
    let left = named.filter_map(|(m, fate)| Some(format!("{}-{} {}", m.topic, m.partition, fate.failure()?)));
    let left: Vec<String> = left.collect();
    let all = plan.moves.len();
    ensure!(left.is_empty(), "{} of {all} partitions were not moved: {}", left.len(), left.join(", "));
    let unmet = if plan.unmet.is_empty() { "" } else { "; not everything could be had, see above" };
    let object = json!({ "moved": moved, "unmet": plan.unmet });
    output.fact(&format!("moved {}{unmet}", counted(i64::try_from(moved)?, "partition")), &object)
}

/// All brokers that the cluster counts on, those that are away among them.
async fn registered(client: &mut KafkaClient) -> Result<Vec<DescribeClusterBroker>> {
    let request = DescribeClusterRequest { include_fenced_brokers: true, ..DescribeClusterRequest::default() };
    let answer: DescribeClusterResponse = client.any(&request).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    Ok(answer.brokers)
}

fn brokers(registered: &[DescribeClusterBroker]) -> Vec<Broker> {
    let broker = |b: &DescribeClusterBroker| Broker { id: b.broker_id, zone: b.rack.clone(), fenced: b.is_fenced };
    registered.iter().map(broker).collect()
}

fn placed(metadata: &MetadataResponse, zones: &BTreeMap<String, usize>) -> Vec<Placed> {
    let mut placed: Vec<Placed> = Vec::new();
    for topic in &metadata.topics {
        let name = topic.name.clone().unwrap_or_default();
        placed.extend(topic.partitions.iter().map(|partition| Placed {
            topic: name.clone(),
            partition: partition.partition_index,
            replicas: partition.replica_nodes.clone(),
            zones: zones.get(&name).copied().unwrap_or(0),
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

/// Which partitions are being moved, and where to.
async fn ongoing(client: &mut KafkaClient) -> Result<BTreeMap<Key, Vec<i32>>> {
    let request = ListPartitionReassignmentsRequest { topics: None, timeout_ms: TIMEOUT_MS };
    let answer: ListPartitionReassignmentsResponse = client.any(&request).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    let target = |p: OngoingPartitionReassignment| -> Vec<i32> {
        p.replicas.into_iter().filter(|id| !p.removing_replicas.contains(id)).collect()
    };
    let each = |topic: OngoingTopicReassignment| {
        let name = topic.name;
        topic.partitions.into_iter().map(move |p| ((name.clone(), p.partition_index), target(p)))
    };
    Ok(answer.topics.into_iter().flat_map(each).collect())
}

/// Asks for replicas of partitions; `None` cancels. Answers which are refused, and why.
async fn alter(client: &mut KafkaClient, wanted: &[(String, i32, Option<Vec<i32>>)]) -> Result<BTreeMap<Key, String>> {
    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let mut refused = BTreeMap::new();
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
                    refused.insert((topic.name.clone(), partition.partition_index), format!("{error:#}"));
                }
            }
        }
    }
    Ok(refused)
}

/// Has it moved under the throttle, which is taken back whatever becomes of the moves: one that is left behind slows
/// everything that comes later.
async fn execute_throttled(
    client: &mut KafkaClient,
    output: Output,
    moves: &[Move],
    throttle: &Throttle,
) -> Result<Vec<Fate>> {
    let mut stop = StopSignal::new()?;
    // Not to be cut off: what is on its way could arrive after it was taken back.
    let done = match throttle.set(client).await {
        // Cutting off loses nothing: a connection is used again only after a whole exchange, and the moves are the cluster's.
        Ok(()) => tokio::select! {
            fates = execute(client, output, moves) => fates,
            () = stop.received() => Err(anyhow!(
                "stopped: the moves that are under way go on, without a throttle; `ottla cluster rebalance --cancel` ends them"
            )),
        },
        Err(error) => Err(error),
    };
    let back = tokio::select! {
        back = throttle.take_back(client) => back,
        () = stop.received() => Err(anyhow!("stopped again")),
    };
    match (done, back) {
        (done, Ok(())) => done,
        (Ok(_), Err(error)) => Err(error.context("the throttle could not be taken back")),
        (Err(why), Err(error)) => Err(why.context(format!("the throttle could not be taken back: {error:#}"))),
    }
}

/// Has it moved, and waits until that is done, or known not to be: what became of each move.
async fn execute(client: &mut KafkaClient, output: Output, moves: &[Move]) -> Result<Vec<Fate>> {
    let wanted: Vec<_> = moves.iter().map(|m| (m.topic.clone(), m.partition, Some(m.to.clone()))).collect();
    let mut watch = Watch::new(moves, alter(client, &wanted).await?);
    let mut told = None;
    loop {
        let under_way = ongoing(client).await?;
        let placed = placed(&client.metadata(None).await?, &BTreeMap::new());
        let now = placed.into_iter().map(|p| ((p.topic, p.partition), p.replicas)).collect();
        let left = watch.look(&under_way, &now, Instant::now());
        if told != Some(left) && !output.json {
            say(&format!("{} of {} moved", moves.len() - left, moves.len()));
        }
        told = Some(left);
        if let Some(fates) = watch.ended() {
            return Ok(fates);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The preferred replicas lead where they changed.
async fn elect(client: &mut KafkaClient, moves: &[&Move]) -> Result<()> {
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
    let wanted: Vec<_> = under_way.into_keys().map(|(topic, partition)| (topic, partition, None)).collect();
    let refused = alter(client, &wanted).await?;
    if let Some(((topic, partition), why)) = refused.first_key_value() {
        let (refused, all) = (refused.len(), wanted.len());
        bail!("{refused} of {all} moves could not be cancelled; {topic}-{partition}: {why}");
    }
    let count = i64::try_from(wanted.len())?;
    output.fact(&format!("cancelled {}", counted(count, "move")), &json!({ "cancelled": count }))
}
