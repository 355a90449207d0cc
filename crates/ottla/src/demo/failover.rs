//! The first act: a producer with acks=all, the leader killed with kill -9, the gap measured, every acknowledged record read
//! back and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::{Codec, Record, RecordBatch, RecordIter, TopicId, encode_batch, encode_records};
use protocol::messages::{
    FetchRequest, FetchResponse, MetadataResponse, ProduceRequest, ProduceResponse, fetch_request, produce_request,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{PATIENCE, Teller, create_topic};
use crate::kafka_client::{KafkaClient, addresses, check};
use crate::local::LocalCluster;

pub(super) const TOPIC: &str = "demo";
/// How long a round sends before the kill.
const CALM: Duration = Duration::from_secs(1);

/// What was acknowledged: value by offset.
type Acknowledged = BTreeMap<i64, u64>;

struct Leader {
    id: u16,
    address: String,
    topic_id: TopicId,
    in_sync: usize,
}

/// One kill.
#[derive(Clone, Debug, Serialize)]
struct Round {
    acknowledged: usize,
    killed_node: u16,
    gap_ms: f64,
}

/// Everything that was found out, for programs; told on the way to people.
#[derive(Debug)]
pub(super) struct Outcome {
    kills: Vec<Round>,
    acknowledged: usize,
    read: usize,
    lost: usize,
    twice: usize,
    unacknowledged: usize,
}

/// Plays the act with `rounds` kills.
pub(super) async fn play(
    cluster: &mut LocalCluster,
    client: &mut KafkaClient,
    rounds: u32,
    tell: Teller,
) -> Result<Outcome> {
    create_topic(client, TOPIC, 1).await?;
    tell.line(&format!(
        "topic {TOPIC}: one partition, three replicas, min.insync.replicas=2; a producer with acks=all\n"
    ))?;
    let mut acknowledged = Acknowledged::new();
    let mut next = 0u64;
    let mut kills: Vec<Round> = Vec::new();
    for round in 1..=rounds {
        let leader = find_leader(client, 3).await?;
        let before = send_for(client, &leader, CALM, &mut next, &mut acknowledged).await?;
        let killed = Instant::now();
        cluster.kill(leader.id).await?;
        let resumed = first_acknowledgement(client, leader.id, &mut next, &mut acknowledged).await?;
        let gap_ms = resumed.saturating_duration_since(killed).as_secs_f64() * 1000.0;
        tell.line(&format!(
            "round {round}  {before:>5} records acknowledged; then kill -9 of the leader, node {}",
            leader.id
        ))?;
        tell.line(&format!("         {gap_ms:>5.0} ms until the next acknowledgement, by another node"))?;
        kills.push(Round { acknowledged: before, killed_node: leader.id, gap_ms });
        cluster.restart(leader.id)?;
    }
    let leader = find_leader(client, 3).await?;
    tell.line("\nthe killed nodes are back and all three replicas in sync; reading everything")?;
    let found = read_all(client, &leader).await?;
    let outcome = Outcome::of(&acknowledged, &found, kills);
    tell.line(&outcome.table())?;
    Ok(outcome)
}

/// The leader, once at least `in_sync` replicas are.
async fn find_leader(client: &mut KafkaClient, in_sync: usize) -> Result<Leader> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(leader) = client.metadata(Some(&[TOPIC])).await.ok().as_ref().and_then(leader_in)
            && leader.in_sync >= in_sync
        {
            return Ok(leader);
        }
        ensure!(
            Instant::now() < deadline,
            "the partition has no leader with {in_sync} replicas in sync after {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn leader_in(metadata: &MetadataResponse) -> Option<Leader> {
    let topic = metadata.topics.first()?;
    let partition = topic.partitions.first()?;
    let address = addresses(metadata).get(&partition.leader_id)?.clone();
    Some(Leader {
        id: u16::try_from(partition.leader_id).ok()?,
        address,
        topic_id: TopicId(topic.topic_id),
        in_sync: partition.isr_nodes.len(),
    })
}

async fn send_for(
    client: &mut KafkaClient,
    leader: &Leader,
    time: Duration,
    next: &mut u64,
    acknowledged: &mut Acknowledged,
) -> Result<usize> {
    let (until, before) = (Instant::now() + time, acknowledged.len());
    while Instant::now() < until {
        send(client, leader, next, acknowledged).await?;
    }
    Ok(acknowledged.len() - before)
}

/// Sends until the new leader acknowledges; says when it did.
async fn first_acknowledgement(
    client: &mut KafkaClient,
    killed: u16,
    next: &mut u64,
    acknowledged: &mut Acknowledged,
) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leader = find_leader(client, 1).await?;
        // What failed is unknown, never lost: its value is not counted, and may be there.
        if leader.id != killed && send(client, &leader, next, acknowledged).await.is_ok() {
            return Ok(Instant::now());
        }
        ensure!(Instant::now() < deadline, "no acknowledgement within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn send(
    client: &mut KafkaClient,
    leader: &Leader,
    next: &mut u64,
    acknowledged: &mut Acknowledged,
) -> Result<()> {
    let value = *next;
    *next += 1;
    let record = Record { value: Some(Bytes::copy_from_slice(&value.to_be_bytes())), ..Record::default() };
    let batch = encode_batch(&encode_records(&[record]), Codec::None, 1, 0, 0, None);
    let data = produce_request::TopicProduceData {
        name: TOPIC.to_owned(),
        topic_id: leader.topic_id.0,
        partition_data: vec![produce_request::PartitionProduceData { index: 0, records: Some(batch) }],
    };
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topic_data: vec![data] };
    let answer: ProduceResponse = client.at(&leader.address, &request).await?;
    let result = answer.responses.first().and_then(|topic| topic.partition_responses.first()).context("no answer")?;
    check(result.error_code)?;
    acknowledged.insert(result.base_offset, value);
    Ok(())
}

async fn read_all(client: &mut KafkaClient, leader: &Leader) -> Result<Acknowledged> {
    let mut found = Acknowledged::new();
    let mut next = 0;
    loop {
        let partition = fetch_request::FetchPartition {
            partition: 0,
            fetch_offset: next,
            partition_max_bytes: 4 << 20,
            ..Default::default()
        };
        let topic = fetch_request::FetchTopic {
            topic: TOPIC.to_owned(),
            topic_id: leader.topic_id.0,
            partitions: vec![partition],
        };
        let request = FetchRequest { max_bytes: 4 << 20, topics: vec![topic], ..Default::default() };
        let answer: FetchResponse = client.at(&leader.address, &request).await?;
        let partition =
            answer.responses.into_iter().flat_map(|t| t.partitions).next().context("Fetch answered nothing")?;
        check(partition.error_code)?;
        let records = partition.records.map(|records| records.to_bytes()).unwrap_or_default();
        if records.is_empty() && next >= partition.high_watermark {
            return Ok(found);
        }
        for batch in RecordBatch::split_all(records)? {
            for record in RecordIter::new(batch.payload(), batch.header().record_count) {
                let record = record?;
                let value: [u8; 8] = record.value.as_deref().unwrap_or_default().try_into()?;
                let offset = batch.header().base_offset + i64::from(record.offset_delta);
                found.insert(offset.0, u64::from_be_bytes(value));
            }
            next = batch.header().next_offset().0;
        }
    }
}

impl Outcome {
    fn of(acknowledged: &Acknowledged, found: &Acknowledged, kills: Vec<Round>) -> Outcome {
        let lost = acknowledged.iter().filter(|(offset, value)| found.get(offset) != Some(value)).count();
        let values: BTreeSet<u64> = found.values().copied().collect();
        Outcome {
            kills,
            acknowledged: acknowledged.len(),
            read: found.len(),
            lost,
            twice: found.len() - values.len(),
            unacknowledged: found.len().saturating_sub(acknowledged.len() - lost),
        }
    }

    fn table(&self) -> String {
        let rows = [
            ("acknowledged", self.acknowledged, ""),
            ("read back", self.read, ""),
            ("lost", self.lost, ""),
            ("there twice", self.twice, ""),
            ("without an acknowledgement", self.unacknowledged, "   (sent when the leader died: may be there, or not)"),
        ];
        let lines: Vec<String> =
            rows.iter().map(|(what, count, note)| format!("  {what:<27}{count:>7}{note}")).collect();
        lines.join("\n")
    }

    pub(super) fn json(&self) -> Value {
        json!({ "rounds": self.kills, "acknowledged": self.acknowledged, "read": self.read, "lost": self.lost,
                "twice": self.twice, "unacknowledged": self.unacknowledged })
    }

    /// Whether all is as it should be.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.lost == 0, "{} acknowledged records are lost", self.lost);
        ensure!(self.twice == 0, "{} records are there twice", self.twice);
        Ok(())
    }
}
