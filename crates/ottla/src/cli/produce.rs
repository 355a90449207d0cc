//! `ottla produce`: lines of standard input as records.
//!
//! With acks=all it is an idempotent producer: a request that is repeated because a leader died is written once.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use model::{Codec, ErrorCode, ProducerEpoch, ProducerId, Record, encode_batch, encode_records};
use protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, produce_request,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Split, Stdin};

use super::output::{Output, counted};
use super::partitions::{Retry, Topic};
use crate::kafka_client::{KafkaClient, check, check_message, code_of};

/// Records in one turn, and how long a line waits for company.
const TURN_RECORDS: usize = 1000;
/// Bytes of keys and values in one batch, but for a longer line; half of the default of `max.message.bytes`.
const BATCH_BYTES: usize = 512 << 10;
const LINGER: Duration = Duration::from_millis(20);
const TIMEOUT_MS: i32 = 30_000;

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
    /// Who must have a record before it counts as written
    #[arg(long, value_enum, default_value_t = Acks::All)]
    acks: Acks,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Acks {
    /// Every in-sync replica
    All,
    /// The leader
    #[value(name = "1")]
    Leader,
}

type KeyAndValue = (Option<Bytes>, Bytes);

/// Writes to one topic.
struct Producer<'a> {
    client: &'a mut KafkaClient,
    topic: Topic,
    options: &'a ProduceOptions,
    /// Given for acks=all.
    identity: Option<(ProducerId, ProducerEpoch)>,
    /// The next sequence of each partition.
    sequences: BTreeMap<i32, i32>,
    turn: usize,
}

pub(super) async fn produce(client: &mut KafkaClient, output: Output, options: ProduceOptions) -> Result<()> {
    let topic = Topic::look_up(client, &options.topic).await?;
    if let Some(partition) = options.partition {
        topic.check_partition(partition)?;
    }
    let identity = match options.acks {
        Acks::All => Some(identify(client).await?),
        Acks::Leader => None,
    };
    let mut producer = Producer { client, topic, options: &options, identity, sequences: BTreeMap::new(), turn: 0 };
    let mut lines = BufReader::new(tokio::io::stdin()).split(b'\n');
    let progress = spinner();
    let (mut sent, mut ended) = (0i64, false);
    while !ended {
        let batch;
        (batch, ended) = read_turn(&mut lines).await?;
        for (partition, records) in producer.assign(&batch)? {
            for records in batches(&records) {
                producer.send(partition, records).await?;
                sent += i64::try_from(records.len())?;
            }
        }
        progress.set_message(counted(sent, "record"));
    }
    progress.finish_and_clear();
    let name = &producer.topic.name;
    output.fact(&format!("{} written to {name}", counted(sent, "record")), &json!({ "topic": name, "records": sent }))
}

/// The lines that came together, and whether they were the last.
async fn read_turn(lines: &mut Split<BufReader<Stdin>>) -> Result<(Vec<Vec<u8>>, bool)> {
    let Some(first) = lines.next_segment().await? else { return Ok((Vec::new(), true)) };
    let mut bytes = first.len();
    let mut turn = vec![first];
    while turn.len() < TURN_RECORDS && bytes < BATCH_BYTES {
        // A line that is cut off by the time stays in the reader.
        match tokio::time::timeout(LINGER, lines.next_segment()).await {
            Ok(Ok(Some(line))) => {
                bytes += line.len();
                turn.push(line);
            }
            Ok(Ok(None)) => return Ok((turn, true)),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => break,
        }
    }
    Ok((turn, false))
}

/// A producer's identity.
pub(super) async fn identify(client: &mut KafkaClient) -> Result<(ProducerId, ProducerEpoch)> {
    let request = InitProducerIdRequest {
        transactional_id: None,
        transaction_timeout_ms: TIMEOUT_MS,
        producer_id: -1,
        producer_epoch: -1,
        ..Default::default()
    };
    let retry = Retry::new();
    loop {
        let answer = client.any::<_, InitProducerIdResponse>(&request).await;
        match answer.and_then(|answer| check(answer.error_code).map(|()| answer)) {
            Ok(answer) => return Ok((ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch))),
            Err(error) => retry.after(error.context("cannot get a producer id")).await?,
        }
    }
}

fn spinner() -> ProgressBar {
    // Lines that are typed are not to be drawn over.
    if std::io::stdin().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        progress.set_style(style);
    }
    progress
}

impl Producer<'_> {
    /// Gives each line its partition: the one asked for, the key's, or one a turn.
    fn assign(&mut self, lines: &[Vec<u8>]) -> Result<BTreeMap<i32, Vec<KeyAndValue>>> {
        let mut by_partition: BTreeMap<i32, Vec<KeyAndValue>> = BTreeMap::new();
        let count = self.topic.leaders.len();
        self.turn += 1;
        for line in lines {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (key, value) = split(line, self.options.key_separator.as_deref());
            let partition = match (self.options.partition, key) {
                (Some(partition), _) => partition,
                (None, Some(key)) => i32::try_from(usize::try_from(murmur2(key) & 0x7fff_ffff)? % count)?,
                (None, None) => i32::try_from(self.turn % count)?,
            };
            let record = (key.map(Bytes::copy_from_slice), Bytes::copy_from_slice(value));
            by_partition.entry(partition).or_default().push(record);
        }
        Ok(by_partition)
    }

    /// Sends until it is acknowledged, or cannot be.
    async fn send(&mut self, partition: i32, records: &[KeyAndValue]) -> Result<()> {
        let request = self.request(partition, records)?;
        let retry = Retry::new();
        while let Err(error) = self.send_once(partition, &request).await {
            // What was written by an attempt that nobody answered.
            if code_of(&error) == Some(ErrorCode::DuplicateSequenceNumber) {
                break;
            }
            retry.after(error).await.with_context(|| format!("cannot write to {}-{partition}", self.topic.name))?;
            self.topic = Topic::look_up(self.client, &self.topic.name).await?;
        }
        let next = self.sequences.entry(partition).or_default();
        *next = next.wrapping_add(i32::try_from(records.len())?) & i32::MAX;
        Ok(())
    }

    fn request(&self, partition: i32, records: &[KeyAndValue]) -> Result<ProduceRequest> {
        let records: Vec<Record> = (0..)
            .zip(records)
            .map(|(offset_delta, (key, value))| Record {
                offset_delta,
                key: key.clone(),
                value: Some(value.clone()),
                ..Record::default()
            })
            .collect();
        let (now, count) = (now_ms(), i32::try_from(records.len())?);
        let sequence = self.sequences.get(&partition).copied().unwrap_or(0);
        let producer = self.identity.map(|(id, epoch)| (id, epoch, sequence));
        let batch = encode_batch(&encode_records(&records), Codec::None, count, now, now, producer);
        let data = produce_request::TopicProduceData {
            name: self.topic.name.clone(),
            topic_id: self.topic.id.0,
            partition_data: vec![produce_request::PartitionProduceData { index: partition, records: Some(batch) }],
        };
        let acks = if self.options.acks == Acks::All { -1 } else { 1 };
        Ok(ProduceRequest { transactional_id: None, acks, timeout_ms: TIMEOUT_MS, topic_data: vec![data] })
    }

    async fn send_once(&mut self, partition: i32, request: &ProduceRequest) -> Result<()> {
        let answer: ProduceResponse = self.client.at(&self.topic.leaders[&partition], request).await?;
        let result = answer.responses.iter().flat_map(|topic| &topic.partition_responses).next();
        let result = result.context("Produce answered nothing")?;
        check_message(result.error_code, result.error_message.as_deref())
    }
}

/// The records in their order, cut where a batch would grow too large.
fn batches(records: &[KeyAndValue]) -> impl Iterator<Item = &[KeyAndValue]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|(key, value)| {
            bytes += key.as_ref().map_or(0, Bytes::len) + value.len();
            bytes <= BATCH_BYTES
        });
        let count = fits.count().max(1);
        let (batch, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(batch)
    })
}

fn split<'a>(line: &'a [u8], separator: Option<&str>) -> (Option<&'a [u8]>, &'a [u8]) {
    let separator = separator.unwrap_or_default().as_bytes();
    if separator.is_empty() {
        return (None, line);
    }
    match line.windows(separator.len()).position(|window| window == separator) {
        Some(at) => (Some(&line[..at]), &line[at + separator.len()..]),
        None => (None, line),
    }
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

pub(crate) fn now_ms() -> i64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    elapsed.ok().and_then(|e| i64::try_from(e.as_millis()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_at_its_first_separator() {
        assert_eq!(split(b"a=b=c", Some("=")), (Some(&b"a"[..]), &b"b=c"[..]));
        assert_eq!(split(b"=v", Some("=")), (Some(&b""[..]), &b"v"[..]));
        assert_eq!(split(b"plain", Some("=")), (None, &b"plain"[..]));
        assert_eq!(split(b"a=b", None), (None, &b"a=b"[..]));
        assert_eq!(split(b"a=b", Some("")), (None, &b"a=b"[..]));
    }

    #[test]
    fn a_batch_stays_below_the_largest_that_a_topic_takes_but_for_a_longer_line() {
        let record = |size: usize| (Some(Bytes::from_static(b"key")), Bytes::from(vec![b'v'; size]));
        let records: Vec<_> =
            [BATCH_BYTES / 2, BATCH_BYTES / 3, BATCH_BYTES / 3, 2 * BATCH_BYTES, 1, 1].map(record).into();
        let counts: Vec<_> = batches(&records).map(<[_]>::len).collect();
        assert_eq!(counts, [2, 1, 1, 2]);
        assert_eq!(batches(&[]).count(), 0);
    }

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
