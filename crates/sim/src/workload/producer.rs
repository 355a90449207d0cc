//! Idempotent producers with acks=all that never give a batch up. Those of [`KEYED`] write a few keys again and again; that of
//! [`LOOSE`] is not idempotent, and goes on whatever became of a batch.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use model::{Codec, ErrorCode, ProducerEpoch, ProducerId, Record, encode_batch, encode_records};
use protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse};

use super::{KEYED, LOOSE, PAUSE, topics_made};
use crate::chance::Chance;
use crate::client::Client;
use crate::clock::timestamp;
use crate::history::{Outcome, Shared, Written};

/// Keys of each producer of [`KEYED`].
const KEYS: u64 = 4;

/// One idempotent producer of one partition.
#[derive(Debug)]
pub struct Producer {
    /// Its number.
    pub number: u64,
    /// Where it writes.
    pub topic: &'static str,
    /// Which partition.
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
            let batch = batch(None, &values, Some((id.0, id.1, sequence)));
            let offset = self.write(&batch).await;
            self.history.lock().acknowledge(key, offset);
            sequence += count;
            let pause = Duration::from_millis(self.chance.between(0, 40));
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes its keys until it is told to stop, and the last batch to its end.
    pub async fn run_keyed(mut self) {
        topics_made(&self.history).await;
        let id = self.identity().await;
        let mut sequence = 0;
        while !self.history.lock().stopping {
            let key = format!("{}-{}", self.number, self.chance.between(0, KEYS));
            let value = Bytes::from(sequence.to_string());
            let batch = batch(Some(&key), &[value], Some((id.0, id.1, sequence)));
            self.history.lock().keyed.insert(key, sequence);
            self.write(&batch).await;
            self.history.lock().step(KEYED);
            sequence += 1;
            let pause = Duration::from_millis(self.chance.between(0, 100));
            tokio::time::sleep(pause).await;
        }
        self.history.lock().working -= 1;
    }

    /// Writes until it is told to stop, and asks for nothing twice.
    pub async fn run_loose(mut self) {
        topics_made(&self.history).await;
        let mut number = 0;
        while !self.history.lock().stopping {
            let value = Bytes::from(format!("{number} "));
            let came_to = self.attempt(&batch(None, &[value], None)).await;
            if matches!(came_to, Ok(Attempt::Done(_))) {
                self.history.lock().step(LOOSE);
            } else {
                self.client.forget_leader(self.partition);
                tokio::time::sleep(PAUSE).await;
            }
            number += 1;
            let pause = Duration::from_millis(self.chance.between(0, 60));
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
        let leader = self.client.leader(self.topic, self.partition).await?;
        let data = PartitionProduceData { index: self.partition, records: Some(batch.clone()) };
        let topic = TopicProduceData {
            name: self.topic.to_owned(),
            topic_id: self.client.topic_id,
            partition_data: vec![data],
        };
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
                let (topic, partition, number) = (self.topic, self.partition, self.number);
                self.history
                    .violation(format!("producer {number} of {topic}-{partition} is told {code:?} by {leader}"));
                std::future::pending().await
            }
            _ => Ok(Attempt::Again),
        }
    }
}

fn batch(key: Option<&str>, values: &[Bytes], sequence: Option<(ProducerId, ProducerEpoch, i32)>) -> BytesMut {
    let key = key.map(|key| Bytes::copy_from_slice(key.as_bytes()));
    let record = |(at, value): (i32, &Bytes)| Record {
        offset_delta: at,
        key: key.clone(),
        value: Some(value.clone()),
        ..Record::default()
    };
    let records: Vec<Record> = (0..).zip(values).map(record).collect();
    let count = i32::try_from(values.len()).expect("a few");
    let now = timestamp();
    encode_batch(&encode_records(&records), Codec::None, count, now, now, sequence)
}
