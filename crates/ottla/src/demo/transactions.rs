//! The second act: transactions of records in several partitions and an offset of a group, whose coordinator is killed with
//! kill -9 in the middle. Each is to end whole: a reader of committed records sees all of it or nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use model::ErrorCode;
use protocol::messages::{MetadataResponse, OffsetFetchRequest, OffsetFetchResponse, offset_fetch_request};
use serde::Serialize;

use super::producer::{TransactionalProducer, read_committed};
use super::{PATIENCE, Teller, create_topic, failover};
use crate::cli::partitions::Retry;
use crate::kafka_client::{KafkaClient, addresses, check, code_of};
use crate::local::LocalCluster;

const TOPIC: &str = "demo-transactions";
const GROUP: &str = "demo-group";
const ID: &str = "demo-producer";
const PARTITIONS: i32 = 3;
/// Records of a transaction in each partition.
const RECORDS: usize = 10;
const IN_ALL: usize = 3 * RECORDS;
/// The topics that have to be whole before somebody is killed.
const NEEDED: [&str; 3] = [TOPIC, "__transaction_state", "__consumer_offsets"];

/// What happens to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Story {
    /// Its coordinator is killed between its records; it is committed.
    KilledInTheMiddle,
    /// Its coordinator is killed as it is told to commit.
    KilledAtTheEnd,
    /// Its coordinator is killed, and its producer does not come back; another one takes the name over.
    ProducerGone,
}

/// How a transaction ended.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ended {
    story: Story,
    killed_node: u16,
    led_partitions: Vec<i32>,
    records: usize,
    seen_before: usize,
    seen_after: usize,
    offset_before: i64,
    offset_after: i64,
    /// From the kill until the last marker was written.
    ended_after_ms: f64,
}

impl Ended {
    fn committed(&self) -> bool {
        self.story != Story::ProducerGone
    }

    /// All or nothing, and the same of the records and the offset.
    fn check(&self) -> Result<()> {
        let (records, offset) =
            if self.committed() { (self.records, self.offset_before + 1) } else { (0, self.offset_before) };
        ensure!(self.seen_before == 0, "{} records were seen before the transaction ended", self.seen_before);
        ensure!(self.seen_after == records, "{} records of the transaction are seen, not {records}", self.seen_after);
        ensure!(self.offset_after == offset, "the group's offset is {}, not {offset}", self.offset_after);
        Ok(())
    }
}

/// Plays the act: one transaction of each story.
pub(super) async fn play(cluster: &mut LocalCluster, client: &mut KafkaClient, tell: Teller) -> Result<Vec<Ended>> {
    create_topic(client, TOPIC, PARTITIONS).await?;
    tell.line(&format!(
        "topic {TOPIC}: three partitions; each transaction is {RECORDS} records in each of them and an offset of a group\n"
    ))?;
    let mut producer = TransactionalProducer::begin(client, ID, TOPIC).await?;
    let mut all = Vec::new();
    for (number, story) in (1..).zip([Story::KilledInTheMiddle, Story::KilledAtTheEnd, Story::ProducerGone]) {
        let act = Act { cluster: &mut *cluster, client: &mut *client, number, story, tell };
        let ended = act.play(&mut producer).await?;
        ended.check()?;
        all.push(ended);
    }
    Ok(all)
}

/// One transaction.
struct Act<'a> {
    cluster: &'a mut LocalCluster,
    client: &'a mut KafkaClient,
    number: i64,
    story: Story,
    tell: Teller,
}

impl Act<'_> {
    async fn play(mut self, producer: &mut TransactionalProducer) -> Result<Ended> {
        let offset_before = stable_offset(self.client).await?;
        let (killed_node, led_partitions) = self.find_victim().await?;
        let half = if self.story == Story::KilledInTheMiddle { RECORDS / 2 } else { RECORDS };
        self.write(producer, 0..half).await?;
        if self.story != Story::KilledInTheMiddle {
            self.commit_offset(producer).await?;
        }
        let seen_before = self.seen().await?.0;
        let leads: Vec<String> = led_partitions.iter().map(|partition| format!("partition {partition}")).collect();
        self.tell.line(&format!(
            "{}  {} records written, a reader of committed records sees {seen_before} of them; then kill -9 of\n   node {killed_node}, which coordinates the transaction{}{}",
            self.number,
            half * 3,
            if leads.is_empty() { String::new() } else { format!(" and leads {}", leads.join(", ")) },
            if self.story == Story::KilledAtTheEnd { ", as it is told to commit" } else { "" },
        ))?;
        let killed = Instant::now();
        let done = self.kill_and_end(producer, killed_node).await?;
        let seen_after = self.settled().await?;
        let ended_after_ms = killed.elapsed().as_secs_f64() * 1000.0;
        let offset_after = stable_offset(self.client).await?;
        self.tell.line(&format!(
            "   {done}; ended in all partitions {ended_after_ms:.0} ms after the kill:\n   {seen_after} of {IN_ALL} records are seen, the group's offset {}",
            if offset_after == offset_before { "stayed".to_owned() } else { format!("is {offset_after}") },
        ))?;
        self.cluster.restart(killed_node)?;
        let (story, records) = (self.story, IN_ALL);
        #[rustfmt::skip]
        let ended = Ended { story, killed_node, led_partitions, records, seen_before, seen_after, offset_before, offset_after, ended_after_ms };
        Ok(ended)
    }

    /// Kills, and ends the transaction in the way of its story; says how.
    async fn kill_and_end(&mut self, producer: &mut TransactionalProducer, node: u16) -> Result<&'static str> {
        match self.story {
            Story::KilledInTheMiddle => {
                self.cluster.kill(node).await?;
                self.write(producer, RECORDS / 2..RECORDS).await?;
                self.commit_offset(producer).await?;
                producer.end(self.client, true).await?;
                Ok("the rest was written to those who took over, and committed")
            }
            Story::KilledAtTheEnd => {
                let coordinator = self.client.transaction_coordinator(ID).await?;
                // Connected before, so that the request goes out first and the kill comes right behind it.
                ensure!(self.client.reaches(&coordinator).await, "the coordinator does not answer");
                let (answered, killed) =
                    tokio::join!(producer.end_at(self.client, &coordinator, true), self.cluster.kill(node));
                killed?;
                if answered.is_ok() {
                    return Ok("it had answered before it died: committed");
                }
                producer.end(self.client, true).await?;
                Ok("nobody answered; its successor was asked again, and committed it")
            }
            Story::ProducerGone => {
                self.cluster.kill(node).await?;
                let mut zombie = producer.clone();
                *producer = TransactionalProducer::begin(self.client, ID, TOPIC).await?;
                let refused = zombie.send(self.client, 0, &["from the dead".to_owned()]).await;
                match refused.as_ref().err().and_then(code_of) {
                    Some(ErrorCode::InvalidProducerEpoch | ErrorCode::ProducerFenced) => {}
                    other => bail!("a fenced producer was answered {other:?}"),
                }
                Ok("its producer is gone; the next one of that name aborted it, and the old one is refused")
            }
        }
    }

    /// Writes these records of the transaction to each partition.
    async fn write(&mut self, producer: &mut TransactionalProducer, which: std::ops::Range<usize>) -> Result<()> {
        for partition in 0..PARTITIONS {
            let values: Vec<String> =
                which.clone().map(|record| format!("{}:{partition}-{record}", self.number)).collect();
            producer.send(self.client, partition, &values).await?;
        }
        Ok(())
    }

    async fn commit_offset(&mut self, producer: &TransactionalProducer) -> Result<()> {
        producer.commit_offset(self.client, GROUP, (failover::TOPIC, 0), self.number).await
    }

    /// How many records of this transaction a reader sees, and whether anything is undecided. None may be there twice.
    async fn seen(&mut self) -> Result<(usize, bool)> {
        let read = read_committed(self.client, TOPIC).await?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        read.values.iter().for_each(|value| *counts.entry(value).or_default() += 1);
        ensure!(counts.values().all(|count| *count == 1), "records of transactions are there twice");
        let mine = format!("{}:", self.number);
        Ok((counts.keys().filter(|value| value.starts_with(&mine)).count(), read.undecided))
    }

    /// The same, once nothing is undecided any more.
    async fn settled(&mut self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (seen, undecided) = self.seen().await?;
            if !undecided {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "the transaction has not ended within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The node that coordinates the transactions, and what it leads of the topic, once all replicas are in sync.
    async fn find_victim(&mut self) -> Result<(u16, Vec<i32>)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metadata = self.client.metadata(Some(&NEEDED)).await?;
            let address = self.client.transaction_coordinator(ID).await?;
            let node = addresses(&metadata).into_iter().find(|(_, known)| *known == address);
            if is_whole(&metadata)
                && let Some((node, _)) = node
            {
                return Ok((u16::try_from(node)?, led_by(&metadata, node)));
            }
            ensure!(Instant::now() < deadline, "not all replicas are in sync after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn is_whole(metadata: &MetadataResponse) -> bool {
    metadata.topics.len() == NEEDED.len()
        && metadata.topics.iter().all(|topic| {
            topic.error_code == 0
                && topic.partitions.iter().all(|partition| partition.isr_nodes.len() == partition.replica_nodes.len())
        })
}

fn led_by(metadata: &MetadataResponse, node: i32) -> Vec<i32> {
    let topic = metadata.topics.iter().filter(|topic| topic.name.as_deref() == Some(TOPIC));
    let led = topic.flat_map(|topic| &topic.partitions).filter(|partition| partition.leader_id == node);
    led.map(|partition| partition.partition_index).collect()
}

/// The group's offset, when no transaction holds it back any more.
async fn stable_offset(client: &mut KafkaClient) -> Result<i64> {
    let retry = Retry::new();
    loop {
        match stable_offset_once(client).await {
            Ok(offset) => return Ok(offset),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn stable_offset_once(client: &mut KafkaClient) -> Result<i64> {
    let address = client.coordinator(GROUP).await?;
    let asked = offset_fetch_request::OffsetFetchRequestGroup {
        group_id: GROUP.to_owned(),
        topics: None,
        ..Default::default()
    };
    let request = OffsetFetchRequest { groups: vec![asked], require_stable: true, ..Default::default() };
    let answer: OffsetFetchResponse = client.at(&address, &request).await?;
    let found = answer.groups.into_iter().next().context("OffsetFetch answered nothing")?;
    check(found.error_code)?;
    let Some(partition) = found.topics.iter().flat_map(|topic| &topic.partitions).next() else { return Ok(0) };
    check(partition.error_code)?;
    Ok(partition.committed_offset)
}
