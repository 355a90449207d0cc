//! `ottla demo`: what Ottla is for, in one command and half a minute. A cluster in three zones, a producer with acks=all, the
//! leader killed with kill -9, the gap measured, every acknowledged record read back and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::{Codec, Record, RecordBatch, RecordIter, TopicId, encode_batch, encode_records};
use protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchRequest, FetchResponse, MetadataResponse, ProduceRequest,
    ProduceResponse, create_topics_request, fetch_request, produce_request,
};

use crate::cli::output::Output;
use crate::kafka_client::{KafkaClient, addresses, check, check_message};
use crate::local::{LocalCluster, LocalOptions};
use crate::stop::StopSignal;
use serde_json::json;

const TOPIC: &str = "demo";
/// How long a round sends before the kill, and after the first acknowledgement behind it.
const CALM: Duration = Duration::from_secs(2);
/// How long a cluster may take to serve again.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was acknowledged: value by offset.
type Acknowledged = BTreeMap<i64, u64>;

struct Leader {
    id: u16,
    address: String,
    topic_id: TopicId,
    in_sync: usize,
}

/// One kill.
#[derive(Clone, Debug, serde::Serialize)]
struct Round {
    acknowledged: usize,
    killed_node: u16,
    gap_ms: f64,
}

/// Runs the demonstration with `rounds` kills.
pub(crate) async fn run(base_port: u16, rounds: u32, output: Output) -> Result<()> {
    let options =
        LocalOptions { data: None, ephemeral: true, nodes: 3, base_port, overrides: Vec::new(), detoured: false };
    let mut stop = StopSignal::new()?;
    let started = Instant::now();
    let mut cluster = LocalCluster::start(&options)?;
    // Ctrl-C in the middle still stops the nodes, and removes what they wrote.
    let outcome = tokio::select! {
        outcome = show(&mut cluster, rounds, started, output) => outcome,
        () = stop.received() => Err(anyhow::anyhow!("stopped before the end")),
    };
    cluster.stop(&mut stop).await?;
    outcome
}

async fn show(cluster: &mut LocalCluster, rounds: u32, started: Instant, output: Output) -> Result<()> {
    // Programs get one object at the end.
    let tell = |line: &str| if output.json { Ok(()) } else { output.text(line) };
    cluster.wait_ready(PATIENCE).await?;
    tell(&format!("three nodes in zones a, b, c serve after {:.2} s", started.elapsed().as_secs_f64()))?;
    let mut client = KafkaClient::new(&cluster.bootstrap())?;
    create_topic(&mut client).await?;
    tell(&format!("topic {TOPIC}: one partition, three replicas, min.insync.replicas=2; a producer with acks=all\n"))?;
    let mut acknowledged = Acknowledged::new();
    let mut next = 0u64;
    let mut kills: Vec<Round> = Vec::new();
    for round in 1..=rounds {
        let leader = find_leader(&mut client, 3).await?;
        let before = send_for(&mut client, &leader, CALM, &mut next, &mut acknowledged).await?;
        let killed = Instant::now();
        cluster.kill(leader.id).await?;
        let resumed = first_acknowledgement(&mut client, leader.id, &mut next, &mut acknowledged).await?;
        let gap_ms = resumed.saturating_duration_since(killed).as_secs_f64() * 1000.0;
        tell(&format!(
            "round {round}  {before:>5} records acknowledged; then kill -9 of the leader, node {}",
            leader.id
        ))?;
        tell(&format!("         {gap_ms:>5.0} ms until the next acknowledgement, by another node"))?;
        kills.push(Round { acknowledged: before, killed_node: leader.id, gap_ms });
        cluster.restart(leader.id)?;
    }
    let leader = find_leader(&mut client, 3).await?;
    tell("\nthe killed nodes are back and all three replicas in sync; reading everything")?;
    let found = read_all(&mut client, &leader).await?;
    report(&acknowledged, &found, &kills, output)
}

async fn create_topic(client: &mut KafkaClient) -> Result<()> {
    let config = create_topics_request::CreatableTopicConfig {
        name: "min.insync.replicas".to_owned(),
        value: Some("2".to_owned()),
    };
    let topic = create_topics_request::CreatableTopic {
        name: TOPIC.to_owned(),
        num_partitions: 1,
        replication_factor: 3,
        configs: vec![config],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, validate_only: false };
    let answer: CreateTopicsResponse = client.any(&request).await?;
    let created = answer.topics.first().context("CreateTopics answered nothing")?;
    check_message(created.error_code, created.error_message.as_deref()).context("cannot create the topic")
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

fn report(acknowledged: &Acknowledged, found: &Acknowledged, kills: &[Round], output: Output) -> Result<()> {
    let lost = acknowledged.iter().filter(|(offset, value)| found.get(offset) != Some(value)).count();
    let values: BTreeSet<u64> = found.values().copied().collect();
    let (twice, unknown) = (found.len() - values.len(), found.len().saturating_sub(acknowledged.len() - lost));
    let object = json!({
        "rounds": kills, "acknowledged": acknowledged.len(), "read": found.len(), "lost": lost, "twice": twice,
        "unacknowledged": unknown,
    });
    let rows = [
        ("acknowledged", acknowledged.len(), ""),
        ("read back", found.len(), ""),
        ("lost", lost, ""),
        ("there twice", twice, ""),
        ("without an acknowledgement", unknown, "   (sent when the leader died: may be there, or not)"),
    ];
    let lines: Vec<String> = rows.iter().map(|(what, count, note)| format!("  {what:<27}{count:>7}{note}")).collect();
    output.fact(&lines.join("\n"), &object)?;
    ensure!(lost == 0, "{lost} acknowledged records are lost");
    ensure!(twice == 0, "{twice} records are there twice");
    if output.json { Ok(()) } else { output.text("every acknowledged record is there, once, at its offset") }
}
