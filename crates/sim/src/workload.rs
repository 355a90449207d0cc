//! The clients: idempotent producers with acks=all that never give a batch up, and a reader for each partition.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use model::{
    Codec, ErrorCode, ProducerEpoch, ProducerId, Record, RecordBatch, RecordIter, encode_batch, encode_records,
};
use protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchRequest, FetchResponse, InitProducerIdRequest,
    InitProducerIdResponse, ProduceRequest, ProduceResponse,
};

use crate::chance::Chance;
use crate::client::Client;
use crate::clock::EPOCH_MS;
use crate::history::{Outcome, Shared, Written};

/// The topic that everybody uses.
pub const TOPIC: &str = "t";
/// Its partitions.
pub const PARTITIONS: i32 = 3;

const PAUSE: Duration = Duration::from_millis(50);

/// Makes the topic, however often that has to be asked.
pub async fn create_topic(client: &mut Client, synced: bool, history: &Shared) {
    let config =
        |name: &str, value: &str| CreatableTopicConfig { name: name.to_owned(), value: Some(value.to_owned()) };
    let mut configs = vec![
        config("min.insync.replicas", "2"),
        config("segment.bytes", "1048576"),
        // Whoever starts with a wrong clock believes it.
        config("retention.ms", "-1"),
    ];
    if synced {
        configs.push(config("flush.messages", "1"));
    }
    let topic = CreatableTopic {
        name: TOPIC.to_owned(),
        num_partitions: PARTITIONS,
        replication_factor: 3,
        configs,
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 3_000, ..Default::default() };
    loop {
        let answer: Result<CreateTopicsResponse> = client.any(&request).await;
        let code = answer.ok().and_then(|answer| Some(ErrorCode::from_code(answer.topics.first()?.error_code)));
        match code {
            Some(ErrorCode::None | ErrorCode::TopicAlreadyExists) => return,
            Some(ErrorCode::InvalidConfig) => history.violation("the topic is not as topics are".to_owned()),
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One idempotent producer of one partition.
#[derive(Debug)]
pub struct Producer {
    /// Its number.
    pub number: u64,
    /// Where it writes.
    pub partition: i32,
    /// How it asks.
    pub client: Client,
    /// Its chance.
    pub chance: Chance,
    /// What it did.
    pub history: Shared,
}

/// What an attempt came to.
enum Attempt {
    Done(Option<i64>),
    Again,
}

impl Producer {
    /// Writes until it is told to stop. The batch under way is tried until its outcome is known, or the run ends.
    pub async fn run(mut self) {
        let id = self.identity().await;
        let mut sequence = 0;
        while !self.history.lock().stopping {
            let values = self.values(sequence);
            let count = i32::try_from(values.len()).expect("a few");
            let key = (self.partition, self.number);
            let written = Written { values: values.clone(), outcome: Outcome::Unknown };
            self.history.lock().written.entry(key).or_default().push(written);
            let batch = batch(&values, id, sequence);
            let offset = self.write(&batch).await;
            self.history.lock().acknowledge(key, offset);
            sequence += count;
            let pause = Duration::from_millis(self.chance.between(0, 40));
            tokio::time::sleep(pause).await;
        }
    }

    async fn identity(&mut self) -> (ProducerId, ProducerEpoch) {
        let request =
            InitProducerIdRequest { transactional_id: None, producer_id: -1, producer_epoch: -1, ..Default::default() };
        loop {
            let answer: Result<InitProducerIdResponse> = self.client.any(&request).await;
            if let Some(answer) = answer.ok().filter(|answer| answer.error_code == 0) {
                return (ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn values(&mut self, sequence: i32) -> Vec<Bytes> {
        let count = i32::try_from(self.chance.between(1, 4)).expect("below 4");
        let value = |at: i32| {
            let length = if self.chance.one_in(8) { self.chance.between(1_000, 20_000) } else { 20 };
            let name = format!("{}-{}-{} ", self.partition, self.number, sequence + at);
            let filler = ".".repeat(usize::try_from(length).expect("small"));
            Bytes::from(name + &filler)
        };
        (0..count).map(value).collect()
    }

    async fn write(&mut self, batch: &BytesMut) -> Option<i64> {
        loop {
            match self.attempt(batch).await {
                Ok(Attempt::Done(offset)) => return offset,
                Ok(Attempt::Again) => {}
                Err(error) => tracing::debug!(partition = self.partition, "no answer to a produce: {error:#}"),
            }
            self.client.forget_leader(self.partition);
            let pause = PAUSE + Duration::from_millis(self.chance.between(0, 100));
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&mut self, batch: &BytesMut) -> Result<Attempt> {
        let leader = self.client.leader(TOPIC, self.partition).await?;
        let data = PartitionProduceData { index: self.partition, records: Some(batch.clone()) };
        let topic =
            TopicProduceData { name: TOPIC.to_owned(), topic_id: self.client.topic_id, partition_data: vec![data] };
        let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 3_000, topic_data: vec![topic] };
        let answer: ProduceResponse = self.client.at(&leader, &request).await?;
        let topic = answer.responses.into_iter().next().context("no topic")?;
        let part = topic.partition_responses.into_iter().next().context("no partition")?;
        let code = ErrorCode::from_code(part.error_code);
        if code != ErrorCode::None {
            *self.history.lock().errors.entry(part.error_code).or_default() += 1;
        }
        match code {
            ErrorCode::None => Ok(Attempt::Done(Some(part.base_offset).filter(|offset| *offset >= 0))),
            ErrorCode::DuplicateSequenceNumber => Ok(Attempt::Done(None)),
            // Either the log has lost what it acknowledged, or the table of producers is not what the log says.
            ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId | ErrorCode::InvalidProducerEpoch => {
                let (partition, number) = (self.partition, self.number);
                self.history
                    .violation(format!("producer {number} of partition {partition} is told {code:?} by {leader}"));
                std::future::pending().await
            }
            _ => Ok(Attempt::Again),
        }
    }
}

fn batch(values: &[Bytes], id: (ProducerId, ProducerEpoch), sequence: i32) -> BytesMut {
    let record =
        |(at, value): (i32, &Bytes)| Record { offset_delta: at, value: Some(value.clone()), ..Record::default() };
    let records: Vec<Record> = (0..).zip(values).map(record).collect();
    let count = i32::try_from(values.len()).expect("a few");
    let now = i64::try_from(EPOCH_MS).expect("it is of this century");
    encode_batch(&encode_records(&records), Codec::None, count, now, now, Some((id.0, id.1, sequence)))
}

/// Reads one partition from its beginning, as far as it goes.
#[derive(Debug)]
pub struct Reader {
    /// What it reads.
    pub partition: i32,
    /// How it asks.
    pub client: Client,
    /// What it saw.
    pub history: Shared,
}

impl Reader {
    /// Reads for as long as the run lasts.
    pub async fn run(mut self) {
        let mut next = 0;
        loop {
            match self.fetch(next).await {
                Ok(Some(read)) => next = read,
                Ok(None) | Err(_) => {
                    self.client.forget_leader(self.partition);
                    tokio::time::sleep(PAUSE).await;
                }
            }
            self.history.lock().positions.insert(self.partition, next);
        }
    }

    /// Says where it goes on; nothing where another broker is to be asked.
    async fn fetch(&mut self, next: i64) -> Result<Option<i64>> {
        let leader = self.client.leader(TOPIC, self.partition).await?;
        let request = fetch_request(&self.client, self.partition, next);
        let answer: FetchResponse = self.client.at(&leader, &request).await?;
        ensure!(answer.error_code == 0, "a fetch is refused with {}", answer.error_code);
        let topic = answer.responses.into_iter().next().context("no topic")?;
        let part = topic.partitions.into_iter().next().context("no partition")?;
        match ErrorCode::from_code(part.error_code) {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => {
                let partition = self.partition;
                self.history.violation(format!(
                    "{leader} says that offset {next} of partition {partition} is out of range; all below was read"
                ));
                std::future::pending().await
            }
            _ => return Ok(None),
        }
        let bytes = part.records.map(|records| records.to_bytes()).unwrap_or_default();
        let (partition, history) = (self.partition, self.history.clone());
        let read = records(bytes, next)?;
        let is_empty = read.is_empty();
        let mut history = history.lock();
        let mut next = next;
        for (offset, epoch, value) in read {
            if offset != next {
                history.violations.push(format!("partition {partition} has {offset} where {next} was to come"));
            }
            history.saw(partition, offset, epoch, &value);
            next = offset + 1;
        }
        // Without records the leader may be a new one, that does not know yet how far the one before had come.
        if part.high_watermark < next && !is_empty {
            history.violations.push(format!("partition {partition} was read to {next}, above {}", part.high_watermark));
        }
        Ok(Some(next))
    }
}

fn fetch_request(client: &Client, partition: i32, next: i64) -> FetchRequest {
    let partition =
        FetchPartition { partition, fetch_offset: next, partition_max_bytes: 200_000, ..Default::default() };
    let topic = FetchTopic { topic: TOPIC.to_owned(), topic_id: client.topic_id, partitions: vec![partition] };
    FetchRequest { max_wait_ms: 400, min_bytes: 1, max_bytes: 1 << 20, topics: vec![topic], ..Default::default() }
}

/// The records from `next` on: offset, leader epoch, value.
fn records(bytes: Bytes, next: i64) -> Result<Vec<(i64, i32, Bytes)>> {
    let mut read = Vec::new();
    for batch in whole_batches(bytes)? {
        let header = batch.header();
        for record in RecordIter::new(batch.payload(), header.record_count) {
            let record = record?;
            let offset = header.base_offset.0 + i64::from(record.offset_delta);
            if offset >= next {
                read.push((offset, header.leader_epoch.0, record.value.unwrap_or_default()));
            }
        }
    }
    Ok(read)
}

/// The last batch of an answer may be cut off.
fn whole_batches(mut bytes: Bytes) -> Result<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    while let Some(length) = bytes.get(8..12) {
        let length = usize::try_from(i32::from_be_bytes(length.try_into()?))? + 12;
        if bytes.len() < length {
            break;
        }
        let mut whole = bytes.split_to(length);
        let Ok(batch) = RecordBatch::split_off(&mut whole) else { bail!("a fetched batch is damaged") };
        batches.push(batch);
    }
    Ok(batches)
}
