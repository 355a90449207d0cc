//! `ottla produce` and `ottla consume`.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use model::{Codec, ErrorCode, Offset, Record, RecordBatch, RecordIter, TopicId, encode_batch, encode_records};
use protocol::messages::{
    FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse,
    fetch_request, list_offsets_request, metadata_response::MetadataResponseTopic, produce_request,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::output::Output;
use crate::kafka_client::{KafkaClient, addresses, check, check_message};

/// Records in one request of `produce`, and how long a line waits for company.
const BATCH_RECORDS: usize = 1000;
const LINGER: Duration = Duration::from_millis(20);
const FETCH_BYTES: i32 = 4 << 20;
/// ListOffsets' numbers for the first and the next offset.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// Arguments of `produce`.
#[derive(Debug, Args)]
pub(crate) struct ProduceOptions {
    /// The topic
    topic: String,
    /// What stands between key and value; without it a line is a value
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// To this partition; else by the key's hash, or in turn
    #[arg(long)]
    partition: Option<i32>,
    /// 0, 1 or all
    #[arg(long, default_value = "all")]
    acks: String,
}

/// Arguments of `consume`.
#[derive(Debug, Args)]
pub(crate) struct ConsumeOptions {
    /// The topic
    topic: String,
    /// From the first record there is, not from now on
    #[arg(long)]
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

/// A topic's partitions and where they are led.
struct Topic {
    name: String,
    id: TopicId,
    /// Partition → the leader's `host:port`.
    leaders: BTreeMap<i32, String>,
}

async fn look_up(client: &mut KafkaClient, name: &str) -> Result<Topic> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let metadata = client.metadata(Some(&[name])).await?;
        let brokers = addresses(&metadata);
        let topic: MetadataResponseTopic = metadata.topics.into_iter().next().context("Metadata answered nothing")?;
        if ErrorCode::from_code(topic.error_code) == ErrorCode::UnknownTopicOrPartition {
            bail!("there is no topic {name}: create it with `ottla topic create {name}`");
        }
        let leaders: BTreeMap<i32, String> = topic
            .partitions
            .iter()
            .filter_map(|p| Some((p.partition_index, brokers.get(&p.leader_id)?.clone())))
            .collect();
        if !leaders.is_empty() && leaders.len() == topic.partitions.len() {
            return Ok(Topic { name: name.to_owned(), id: TopicId(topic.topic_id), leaders });
        }
        ensure!(tokio::time::Instant::now() < deadline, "some partition of {name} has no leader");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn produce(client: &mut KafkaClient, output: Output, options: ProduceOptions) -> Result<()> {
    let acks = match options.acks.as_str() {
        "all" | "-1" => -1,
        "1" => 1,
        other => bail!("--acks is {other:?}; known are all and 1"),
    };
    let topic = look_up(client, &options.topic).await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let progress = spinner();
    let (mut sent, mut turn, mut ended) = (0usize, 0usize, false);
    while !ended {
        let mut batch = Vec::new();
        match lines.next_line().await? {
            Some(line) => batch.push(line),
            None => ended = true,
        }
        while !ended && batch.len() < BATCH_RECORDS {
            // A line that is cut off by the time stays in the reader.
            match tokio::time::timeout(LINGER, lines.next_line()).await {
                Ok(Ok(Some(line))) => batch.push(line),
                Ok(Ok(None)) => ended = true,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => break,
            }
        }
        for (partition, records) in assign(&topic, &options, &batch, &mut turn)? {
            sent += records.len();
            send(client, &topic, partition, acks, &records).await?;
        }
        progress.set_message(format!("{sent} records"));
    }
    progress.finish_and_clear();
    output.fact(&format!("{sent} records written to {}", topic.name), &json!({ "topic": topic.name, "records": sent }))
}

fn spinner() -> ProgressBar {
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        progress.set_style(style);
    }
    progress
}

type KeyAndValue = (Option<Bytes>, Bytes);

fn assign(
    topic: &Topic,
    options: &ProduceOptions,
    lines: &[String],
    turn: &mut usize,
) -> Result<BTreeMap<i32, Vec<KeyAndValue>>> {
    let mut by_partition: BTreeMap<i32, Vec<KeyAndValue>> = BTreeMap::new();
    *turn += 1;
    for line in lines {
        let (key, value) = match options.key_separator.as_deref().and_then(|separator| line.split_once(separator)) {
            Some((key, value)) => (Some(key), value),
            None => (None, line.as_str()),
        };
        let count = topic.leaders.len();
        let partition = match (options.partition, key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => i32::try_from(usize::try_from(murmur2(key.as_bytes()) & 0x7fff_ffff)? % count)?,
            (None, None) => i32::try_from(*turn % count)?,
        };
        ensure!(topic.leaders.contains_key(&partition), "{} has no partition {partition}", topic.name);
        let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
        by_partition.entry(partition).or_default().push((key, Bytes::copy_from_slice(value.as_bytes())));
    }
    Ok(by_partition)
}

/// The hash that Kafka's clients place keys with.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = 0x9747_b28c_u32 ^ length;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

fn now_ms() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    elapsed.ok().and_then(|e| i64::try_from(e.as_millis()).ok()).unwrap_or(0)
}

async fn send(
    client: &mut KafkaClient,
    topic: &Topic,
    partition: i32,
    acks: i16,
    records: &[KeyAndValue],
) -> Result<()> {
    let encoded: Vec<Record> = (0..)
        .zip(records)
        .map(|(offset_delta, (key, value))| Record {
            offset_delta,
            key: key.clone(),
            value: Some(value.clone()),
            ..Record::default()
        })
        .collect();
    let (now, count) = (now_ms(), i32::try_from(encoded.len())?);
    let batch: BytesMut = encode_batch(&encode_records(&encoded), Codec::None, count, now, now, None);
    let data = produce_request::TopicProduceData {
        name: topic.name.clone(),
        topic_id: topic.id.0,
        partition_data: vec![produce_request::PartitionProduceData { index: partition, records: Some(batch) }],
    };
    let request = ProduceRequest { transactional_id: None, acks, timeout_ms: 30_000, topic_data: vec![data] };
    let answer: ProduceResponse = client.at(&topic.leaders[&partition], &request).await?;
    for result in answer.responses.iter().flat_map(|topic| &topic.partition_responses) {
        check_message(result.error_code, result.error_message.as_deref())
            .with_context(|| format!("cannot write to {}-{partition}", topic.name))?;
    }
    Ok(())
}

pub(super) async fn consume(client: &mut KafkaClient, output: Output, options: ConsumeOptions) -> Result<()> {
    let topic = look_up(client, &options.topic).await?;
    let mut next = start_offsets(client, &topic, &options).await?;
    let mut left = options.max_messages.unwrap_or(u64::MAX);
    let mut last_record = tokio::time::Instant::now();
    while left > 0 {
        let mut any = false;
        for (address, partitions) in by_leader(&topic, &next) {
            let batches = fetch(client, &topic, &address, &partitions).await?;
            for (partition, batch) in batches {
                let position = next.get_mut(&partition).context("the broker answered another partition")?;
                any |= print_batch(output, &options, partition, &batch, position, &mut left)?;
                if left == 0 {
                    return Ok(());
                }
            }
        }
        if any {
            last_record = tokio::time::Instant::now();
        } else if options.timeout_ms.is_some_and(|ms| last_record.elapsed() >= Duration::from_millis(ms)) {
            return Ok(());
        }
    }
    Ok(())
}

fn by_leader(topic: &Topic, next: &BTreeMap<i32, i64>) -> BTreeMap<String, Vec<(i32, i64)>> {
    let mut leaders: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
    for (partition, offset) in next {
        if let Some(address) = topic.leaders.get(partition) {
            leaders.entry(address.clone()).or_default().push((*partition, *offset));
        }
    }
    leaders
}

async fn start_offsets(
    client: &mut KafkaClient,
    topic: &Topic,
    options: &ConsumeOptions,
) -> Result<BTreeMap<i32, i64>> {
    if let (Some(partition), Some(offset)) = (options.partition, options.offset) {
        return Ok(BTreeMap::from([(partition, offset)]));
    }
    let timestamp = if options.from_beginning { EARLIEST } else { LATEST };
    let mut offsets = list_offsets(client, &topic.name, timestamp).await?;
    offsets.retain(|partition, _| options.partition.is_none_or(|wanted| wanted == *partition));
    ensure!(!offsets.is_empty(), "{} has no such partition", topic.name);
    Ok(offsets)
}

/// The offset at a time, or at Kafka's special times, of every partition of a topic.
pub(super) async fn list_offsets(client: &mut KafkaClient, name: &str, timestamp: i64) -> Result<BTreeMap<i32, i64>> {
    use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let topic = look_up(client, name).await?;
    let mut offsets = BTreeMap::new();
    for (address, partitions) in by_leader(&topic, &topic.leaders.keys().map(|p| (*p, 0)).collect()) {
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

async fn fetch(
    client: &mut KafkaClient,
    topic: &Topic,
    address: &str,
    partitions: &[(i32, i64)],
) -> Result<Vec<(i32, RecordBatch)>> {
    use fetch_request::{FetchPartition, FetchTopic};
    let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
        partition: *partition,
        fetch_offset: *fetch_offset,
        partition_max_bytes: FETCH_BYTES,
        ..Default::default()
    };
    let asked = FetchTopic {
        topic: topic.name.clone(),
        topic_id: topic.id.0,
        partitions: partitions.iter().map(partition).collect(),
    };
    let request = FetchRequest {
        max_wait_ms: 200,
        min_bytes: 1,
        max_bytes: FETCH_BYTES,
        topics: vec![asked],
        ..Default::default()
    };
    let answer: FetchResponse = client.at(address, &request).await?;
    check(answer.error_code)?;
    let mut batches = Vec::new();
    for partition in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
        check(partition.error_code)
            .with_context(|| format!("cannot read {}-{}", topic.name, partition.partition_index))?;
        let records = partition.records.map(|records| records.to_bytes()).unwrap_or_default();
        for batch in RecordBatch::split_all(records)? {
            batches.push((partition.partition_index, batch));
        }
    }
    Ok(batches)
}

/// Prints the records from `position` on, and moves it; true where there were any.
fn print_batch(
    output: Output,
    options: &ConsumeOptions,
    partition: i32,
    batch: &RecordBatch,
    position: &mut i64,
    left: &mut u64,
) -> Result<bool> {
    let header = *batch.header();
    let mut out = std::io::stdout().lock();
    let mut any = false;
    if !header.is_control() {
        for record in RecordIter::new(broker::compression::decompress(batch)?, header.record_count) {
            let record = record?;
            let offset: Offset = header.base_offset + i64::from(record.offset_delta);
            if offset.0 < *position || *left == 0 {
                continue;
            }
            any = true;
            *left -= 1;
            let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| String::from_utf8_lossy(b).into_owned());
            let (key, value) = (text(&record.key), text(&record.value));
            if output.json {
                let timestamp = header.base_timestamp + record.timestamp_delta;
                let object = json!({ "partition": partition, "offset": offset.0, "timestamp": timestamp, "key": key, "value": value });
                writeln!(out, "{object}")?;
            } else if let Some(separator) = &options.key_separator {
                writeln!(out, "{}{separator}{}", key.as_deref().unwrap_or("null"), value.as_deref().unwrap_or("null"))?;
            } else {
                writeln!(out, "{}", value.as_deref().unwrap_or("null"))?;
            }
        }
    }
    *position = header.next_offset().0.max(*position);
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_kafkas_clients_hash_them() {
        // Values of Apache Kafka's own test of its hash.
        let cases: [(&[u8], i32); 5] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key).cast_signed(), hash);
        }
    }
}
