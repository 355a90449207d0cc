//! A topic's partitions: where they are led, and where their logs begin and end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use model::{ErrorCode, TopicId};
use protocol::messages::{ListOffsetsRequest, ListOffsetsResponse, list_offsets_request};
use tokio::time::Instant;

use crate::kafka_client::{KafkaClient, addresses, check, is_retriable};

/// ListOffsets' numbers for the first offset and the one after the last.
pub(super) const EARLIEST: i64 = -2;
pub(super) const LATEST: i64 = -1;

/// Tries again what may work once leaders have moved, for a while.
pub(crate) struct Retry {
    deadline: Instant,
}

impl Retry {
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(10);

    pub(crate) fn new() -> Retry {
        Retry { deadline: Instant::now() + Self::PATIENCE }
    }

    /// Waits for the next attempt; gives the error back if there is to be none.
    pub(crate) async fn after(&self, error: anyhow::Error) -> Result<()> {
        if !is_retriable(&error) || Instant::now() >= self.deadline {
            return Err(error);
        }
        tokio::time::sleep(Self::PAUSE).await;
        Ok(())
    }
}

/// See the module.
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: TopicId,
    /// Partition → the leader's `host:port`.
    pub(crate) leaders: BTreeMap<i32, String>,
}

impl Topic {
    /// Looks a topic up, and waits for the leaders of all of its partitions.
    pub(crate) async fn look_up(client: &mut KafkaClient, name: &str) -> Result<Topic> {
        let retry = Retry::new();
        loop {
            match Self::look_up_once(client, name).await {
                Ok(topic) => return Ok(topic),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    async fn look_up_once(client: &mut KafkaClient, name: &str) -> Result<Topic> {
        let metadata = client.metadata(Some(&[name])).await?;
        let brokers = addresses(&metadata);
        let topic = metadata.topics.into_iter().next().context("Metadata answered nothing")?;
        if ErrorCode::from_code(topic.error_code) == ErrorCode::UnknownTopicOrPartition {
            bail!("there is no topic {name}: create it with `ottla topic create {name}`");
        }
        check(topic.error_code)?;
        let mut leaders = BTreeMap::new();
        for partition in &topic.partitions {
            let leader = brokers.get(&partition.leader_id);
            // The broker says so with an error only where it has no leader; one that just died is missing.
            let code = if leader.is_some() { ErrorCode::None } else { ErrorCode::LeaderNotAvailable };
            check(code.code()).with_context(|| format!("{name}-{} has no leader", partition.partition_index))?;
            leaders.extend(leader.map(|address| (partition.partition_index, address.clone())));
        }
        Ok(Topic { name: name.to_owned(), id: TopicId(topic.topic_id), leaders })
    }

    pub(super) fn check_partition(&self, partition: i32) -> Result<()> {
        let last = self.leaders.keys().last().copied().unwrap_or(-1);
        ensure!(
            self.leaders.contains_key(&partition),
            "{} has no partition {partition}; it has 0 to {last}",
            self.name
        );
        Ok(())
    }

    /// Partitions and their offsets, by the leaders' addresses.
    pub(super) fn by_leader(&self, offsets: &BTreeMap<i32, i64>) -> BTreeMap<String, Vec<(i32, i64)>> {
        let mut leaders: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
        for (partition, offset) in offsets {
            if let Some(address) = self.leaders.get(partition) {
                leaders.entry(address.clone()).or_default().push((*partition, *offset));
            }
        }
        leaders
    }
}

/// The offset at a time, or at Kafka's special times, of every partition of a topic.
pub(super) async fn list_offsets(client: &mut KafkaClient, name: &str, timestamp: i64) -> Result<BTreeMap<i32, i64>> {
    let retry = Retry::new();
    loop {
        match list_offsets_once(client, name, timestamp).await {
            Ok(offsets) => return Ok(offsets),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn list_offsets_once(client: &mut KafkaClient, name: &str, timestamp: i64) -> Result<BTreeMap<i32, i64>> {
    use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let topic = Topic::look_up(client, name).await?;
    let mut offsets = BTreeMap::new();
    for (address, partitions) in topic.by_leader(&topic.leaders.keys().map(|p| (*p, 0)).collect()) {
        let partition = |(partition_index, _): &(i32, i64)| ListOffsetsPartition {
            partition_index: *partition_index,
            current_leader_epoch: -1,
            timestamp,
        };
        let asked = ListOffsetsTopic { name: name.to_owned(), partitions: partitions.iter().map(partition).collect() };
        let request =
            ListOffsetsRequest { replica_id: -1, isolation_level: 0, topics: vec![asked], timeout_ms: 10_000 };
        let answer: ListOffsetsResponse = client.at(&address, &request).await?;
        for found in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            check(found.error_code).with_context(|| format!("offsets of {name}-{}", found.partition_index))?;
            offsets.insert(found.partition_index, found.offset);
        }
    }
    Ok(offsets)
}
