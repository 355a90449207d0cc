//! `ottla cluster rebalance`: shows what would move, then has it moved, and tells how far it is and what became of it.
//!
//! Invariant: the throttle that it set stays as long as moves go on, and is taken back when they have ended, whatever became
//! of them, or when somebody stops this program short of SIGKILL. Where nobody tells whether they have ended it is left, and
//! the error says how it is taken back.

mod fate;
mod plan;
#[cfg(test)]
mod tests;
mod throttle;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
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
use crate::cli::partitions::Retry;
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
/// By partition: who has it, or is to have it.
pub(super) type Replicas = BTreeMap<Key, Vec<i32>>;

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
    /// Cancel all moves that are under way, and remove the throttles of their topics and of all nodes
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
    if options.throttle.is_none() && !output.json {
        tell_throttles(&Throttle::found_for(client, &plan.moves, &registered).await?.lines());
    }
    let throttle = Throttle::of(client, &plan.moves, &registered, options.throttle).await?;
    let fates = execute_throttled(client, output, &plan.moves, &throttle).await?;
    let done: Vec<&Move> =
        plan.moves.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Done).map(|(m, _)| m).collect();
    elect(client, &done).await?;
    told(output, &plan, done.len(), &fates)
}

/// Says what somebody else, or a run that was killed, has left: the moves may stand still under it.
fn tell_throttles(lines: &[String]) {
    if !lines.is_empty() {
        say(&format!(
            "note: throttles are set, and slow the moves; where nobody else needs them, `ottla cluster rebalance --cancel` ends \
             the moves and removes the throttles of all nodes\n  {}",
            lines.join("\n  ")
        ));
    }
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
pub(super) async fn ongoing(client: &mut KafkaClient) -> Result<Replicas> {
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

/// Which replicas a partition is to have; `None` cancels its move.
type Wanted = (String, i32, Option<Vec<i32>>);

/// Asks for replicas of partitions, of no more than one request may name. Answers which are refused, and why. Where nobody
/// answers, or nobody knows whether it was begun, it is asked again: the same twice is done once.
async fn alter(client: &mut KafkaClient, wanted: &[Wanted]) -> Result<BTreeMap<Key, String>> {
    let (request, retry) = (alteration(wanted), Retry::new());
    loop {
        match alter_once(client, &request).await {
            Ok(refused) => return Ok(refused),
            Err(error) => retry.after(error).await?,
        }
    }
}

fn alteration(wanted: &[Wanted]) -> AlterPartitionReassignmentsRequest {
    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let mut topics: BTreeMap<&str, Vec<ReassignablePartition>> = BTreeMap::new();
    for (topic, partition_index, replicas) in wanted {
        let partition = ReassignablePartition { partition_index: *partition_index, replicas: replicas.clone() };
        topics.entry(topic).or_default().push(partition);
    }
    let topic = |(name, partitions): (&str, _)| ReassignableTopic { name: name.to_owned(), partitions };
    AlterPartitionReassignmentsRequest {
        timeout_ms: TIMEOUT_MS,
        allow_replication_factor_change: false,
        topics: topics.into_iter().map(topic).collect(),
    }
}

async fn alter_once(
    client: &mut KafkaClient,
    request: &AlterPartitionReassignmentsRequest,
) -> Result<BTreeMap<Key, String>> {
    let answer: AlterPartitionReassignmentsResponse = client.any(request).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    let mut refused = BTreeMap::new();
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
    Ok(refused)
}

/// Moves that were asked for.
struct Asked {
    refused: BTreeMap<Key, String>,
    /// So many, from the first on, were answered.
    answered: usize,
    /// Why the others were not. Some of them may be under way all the same.
    failure: Option<String>,
}

async fn ask(client: &mut KafkaClient, moves: &[Move]) -> Asked {
    let mut asked = Asked { refused: BTreeMap::new(), answered: 0, failure: None };
    for part in moves.chunks(AT_ONCE) {
        let wanted: Vec<Wanted> = part.iter().map(|m| (m.topic.clone(), m.partition, Some(m.to.clone()))).collect();
        match alter(client, &wanted).await {
            Ok(refused) => asked.refused.extend(refused),
            Err(error) => {
                asked.failure = Some(format!("{error:#}"));
                break;
            }
        }
        asked.answered += part.len();
    }
    asked
}

/// Has it moved under the throttle, which is taken back once nothing moves: one that is left behind slows everything that
/// comes later.
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
            // Whoever lost sight of moves leaves their throttle: without one they take from those who are served.
            fates = execute(client, output, moves) => Ok(fates.map_err(|error| lost(&error, throttle))?),
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
    let by_hand = || throttle.by_hand();
    match (done, back) {
        (done, Ok(())) => done,
        (Ok(_), Err(error)) => Err(anyhow!("{error:#}{}", by_hand())),
        (Err(why), Err(error)) => Err(anyhow!("{why:#}; {error:#}{}", by_hand())),
    }
}

/// The error where nobody tells any more what becomes of the moves.
fn lost(error: &anyhow::Error, throttle: &Throttle) -> anyhow::Error {
    let by_hand = throttle.by_hand();
    anyhow!(
        "moves may be under way, and nobody tells ({error:#}): wait for them, or end them with `ottla cluster rebalance \
         --cancel`{by_hand}"
    )
}

/// Has it moved, and waits until that is done, or known not to be: what became of each move. An error says that nobody tells.
async fn execute(client: &mut KafkaClient, output: Output, moves: &[Move]) -> Result<Vec<Fate>> {
    let asked = ask(client, moves).await;
    if let Some(why) = &asked.failure
        && !output.json
    {
        say(&format!(
            "not all moves could be asked for ({why}); waiting for those that are under way: `ottla cluster rebalance \
             --cancel` ends them"
        ));
    }
    let mut watch = Watch::new(moves, asked.refused);
    let mut told = None;
    loop {
        let (under_way, now) = look(client).await?;
        let left = watch.look(&under_way, &now, Instant::now());
        if told != Some(left) && !output.json {
            say(&format!("{} of {} moved", moves.len() - left, moves.len()));
        }
        told = Some(left);
        if let Some(mut fates) = watch.ended() {
            if let Some(why) = &asked.failure {
                fates[asked.answered..].iter_mut().for_each(|fate| fate.was_not_answered(why));
            }
            return Ok(fates);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where partitions are on their way to, then who has them. Moves go on while nobody answers.
async fn look(client: &mut KafkaClient) -> Result<(Replicas, Replicas)> {
    let retry = Retry::new();
    loop {
        match look_once(client).await {
            Ok(seen) => return Ok(seen),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn look_once(client: &mut KafkaClient) -> Result<(Replicas, Replicas)> {
    let under_way = ongoing(client).await?;
    let placed = placed(&client.metadata(None).await?, &BTreeMap::new());
    Ok((under_way, placed.into_iter().map(|p| ((p.topic, p.partition), p.replicas)).collect()))
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

/// Cancels all moves, and takes back their throttle with that of the nodes, where nothing moves any more: a run that was killed
/// leaves both, and the next one would stand still.
async fn cancel(client: &mut KafkaClient, output: Output) -> Result<()> {
    let cancelled = cancel_moves(client).await?;
    let count = i64::try_from(cancelled.len())?;
    let again = || format!("cancelled {}, but not their throttles: do it again", counted(count, "move"));
    let removed = remove_throttles(client, &cancelled).await.with_context(again)?;
    let mut sentence = format!("cancelled {}", counted(count, "move"));
    if !removed.is_empty() {
        sentence = format!("{sentence}; removed the throttles that were set\n  {}", removed.join("\n  "));
    }
    output.fact(&sentence, &json!({ "cancelled": count, "throttles_removed": removed }))
}

async fn cancel_moves(client: &mut KafkaClient) -> Result<Vec<Key>> {
    let under_way: Vec<Key> = ongoing(client).await?.into_keys().collect();
    let wanted: Vec<Wanted> = under_way.iter().map(|(topic, partition)| (topic.clone(), *partition, None)).collect();
    let mut refused = BTreeMap::new();
    for part in wanted.chunks(AT_ONCE) {
        refused.extend(alter(client, part).await?);
    }
    if let Some(((topic, partition), why)) = refused.first_key_value() {
        let (refused, all) = (refused.len(), wanted.len());
        bail!("{refused} of {all} moves could not be cancelled; {topic}-{partition}: {why}");
    }
    Ok(under_way)
}

/// As Kafka does: of the topics whose moves were cancelled, and of all nodes. Answers what was set.
async fn remove_throttles(client: &mut KafkaClient, cancelled: &[Key]) -> Result<Vec<String>> {
    let registered = registered(client).await?;
    let topics = cancelled.iter().map(|(topic, _)| topic.clone()).collect();
    let found = Throttle::found(client, registered.iter(), &topics).await?;
    found.remove(client).await?;
    Ok(found.lines())
}
