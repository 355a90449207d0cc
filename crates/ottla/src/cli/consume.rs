//! `ottla consume`: records as lines. It follows the partitions' leaders wherever they move.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use model::{ErrorCode, Offset, Record, RecordBatch, RecordIter};
use protocol::messages::{FetchRequest, FetchResponse, fetch_request};
use serde_json::json;
use tokio::time::Instant;

use super::output::Output;
use super::partitions::{EARLIEST, LATEST, Retry, Topic, list_offsets};
use crate::kafka_client::{KafkaClient, check};

const FETCH_BYTES: i32 = 4 << 20;
const FETCH_WAIT_MS: i32 = 200;

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeOptions {
    /// The topic
    topic: String,
    /// From the first record there is, not from now on
    #[arg(long, conflicts_with = "offset")]
    from_beginning: bool,
    /// From this offset of --partition
    #[arg(long, requires = "partition")]
    offset: Option<i64>,
    /// This partition only
    #[arg(long)]
    partition: Option<i32>,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max_messages: Option<u64>,
    /// End when nothing came for so many milliseconds
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Print keys, with this between key and value
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
}

/// Reads one topic.
struct Consumer<'a> {
    client: &'a mut KafkaClient,
    topic: Topic,
    output: Output,
    options: &'a ConsumeOptions,
    /// The next offset of each partition.
    next: BTreeMap<i32, i64>,
    left: u64,
}

pub(super) async fn consume(client: &mut KafkaClient, output: Output, options: ConsumeOptions) -> Result<()> {
    let topic = Topic::look_up(client, &options.topic).await?;
    let next = start_offsets(client, &topic, &options).await?;
    let left = options.max_messages.unwrap_or(u64::MAX);
    let mut consumer = Consumer { client, topic, output, options: &options, next, left };
    let (mut retry, mut last_record) = (Retry::new(), Instant::now());
    while consumer.left > 0 {
        let before = consumer.left;
        match consumer.turn().await {
            Ok(()) => retry = Retry::new(),
            Err(error) => {
                retry.after(error).await?;
                consumer.topic = Topic::look_up(consumer.client, &options.topic).await?;
            }
        }
        if consumer.left < before {
            last_record = Instant::now();
        } else if options.timeout_ms.is_some_and(|ms| last_record.elapsed() >= Duration::from_millis(ms)) {
            break;
        }
    }
    Ok(())
}

async fn start_offsets(
    client: &mut KafkaClient,
    topic: &Topic,
    options: &ConsumeOptions,
) -> Result<BTreeMap<i32, i64>> {
    if let Some(partition) = options.partition {
        topic.check_partition(partition)?;
    }
    let timestamp = if options.from_beginning { EARLIEST } else { LATEST };
    let mut offsets = list_offsets(client, &topic.name, timestamp).await?;
    offsets.retain(|partition, _| options.partition.is_none_or(|wanted| wanted == *partition));
    if let (Some(partition), Some(offset)) = (options.partition, options.offset) {
        let first = list_offsets(client, &topic.name, EARLIEST).await?.get(&partition).copied().unwrap_or(0);
        let end = offsets.get(&partition).copied().unwrap_or(0);
        ensure!(
            (first..=end).contains(&offset),
            "{}-{partition} has no offset {offset}; it has {first} to {end}",
            topic.name
        );
        offsets.insert(partition, offset);
    }
    Ok(offsets)
}

impl Consumer<'_> {
    /// Asks each leader once, and prints what came.
    async fn turn(&mut self) -> Result<()> {
        for (address, partitions) in self.topic.by_leader(&self.next) {
            for (partition, code, batches) in self.fetch(&address, &partitions).await? {
                if ErrorCode::from_code(code) == ErrorCode::OffsetOutOfRange {
                    self.skip(partition).await?;
                    continue;
                }
                check(code).with_context(|| format!("cannot read {}-{partition}", self.topic.name))?;
                for batch in batches {
                    self.print(partition, &batch)?;
                }
            }
        }
        Ok(())
    }

    /// What was to be read is no longer there: goes to the nearest that is, and says so.
    async fn skip(&mut self, partition: i32) -> Result<()> {
        let bound = |offsets: BTreeMap<i32, i64>| offsets.get(&partition).copied().unwrap_or(0);
        let first = bound(list_offsets(self.client, &self.topic.name, EARLIEST).await?);
        let end = bound(list_offsets(self.client, &self.topic.name, LATEST).await?);
        let position = self.next.entry(partition).or_default();
        let nearest = (*position).clamp(first, end.max(first));
        eprintln!("{}-{partition} has no offset {position} any more: reading on at {nearest}", self.topic.name);
        *position = nearest;
        Ok(())
    }

    async fn fetch(&mut self, address: &str, partitions: &[(i32, i64)]) -> Result<Vec<(i32, i16, Vec<RecordBatch>)>> {
        use fetch_request::{FetchPartition, FetchTopic};
        let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
            partition: *partition,
            fetch_offset: *fetch_offset,
            partition_max_bytes: FETCH_BYTES,
            ..Default::default()
        };
        let asked = FetchTopic {
            topic: self.topic.name.clone(),
            topic_id: self.topic.id.0,
            partitions: partitions.iter().map(partition).collect(),
        };
        let request = FetchRequest {
            max_wait_ms: FETCH_WAIT_MS,
            min_bytes: 1,
            max_bytes: FETCH_BYTES,
            topics: vec![asked],
            ..Default::default()
        };
        let answer: FetchResponse = self.client.at(address, &request).await?;
        check(answer.error_code)?;
        let mut fetched = Vec::new();
        for partition in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
            let records = partition.records.map(|records| records.to_bytes()).unwrap_or_default();
            fetched.push((partition.partition_index, partition.error_code, RecordBatch::split_all(records)?));
        }
        Ok(fetched)
    }

    /// Prints the records from the position on, and moves it.
    fn print(&mut self, partition: i32, batch: &RecordBatch) -> Result<()> {
        let header = *batch.header();
        let position = self.next.get_mut(&partition).context("the broker answered another partition")?;
        let mut lines = Vec::new();
        if !header.is_control() {
            for record in RecordIter::new(broker::compression::decompress(batch)?, header.record_count) {
                let record = record?;
                let offset: Offset = header.base_offset + i64::from(record.offset_delta);
                if offset.0 >= *position && self.left > 0 {
                    self.left -= 1;
                    let timestamp = header.base_timestamp + record.timestamp_delta;
                    lines.push(line(self.output, self.options, partition, offset, timestamp, &record));
                }
            }
        }
        *position = header.next_offset().0.max(*position);
        self.output.lines(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))
    }
}

fn line(
    output: Output,
    options: &ConsumeOptions,
    partition: i32,
    offset: Offset,
    timestamp: i64,
    record: &Record,
) -> String {
    let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| String::from_utf8_lossy(b).into_owned());
    let (key, value) = (text(&record.key), text(&record.value));
    if output.json {
        let object =
            json!({ "partition": partition, "offset": offset.0, "timestamp": timestamp, "key": key, "value": value });
        return object.to_string();
    }
    let value = value.unwrap_or_else(|| "null".to_owned());
    match &options.key_separator {
        Some(separator) => format!("{}{separator}{value}", key.as_deref().unwrap_or("null")),
        None => value,
    }
}
