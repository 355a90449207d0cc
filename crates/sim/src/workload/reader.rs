//! Readers: one for each partition, from its beginning, as far as it goes.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use model::{ErrorCode, RecordBatch, RecordIter};
use protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use protocol::messages::{FetchRequest, FetchResponse};

use super::{PAUSE, TOPIC};
use crate::client::Client;
use crate::history::Shared;

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
        let request = fetch_request(TOPIC, &self.client, self.partition, next);
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
            self.client.note_epoch(partition, epoch);
            next = offset + 1;
        }
        // Without records the leader may be a new one, that does not know yet how far the one before had come.
        if part.high_watermark < next && !is_empty {
            history.violations.push(format!("partition {partition} was read to {next}, above {}", part.high_watermark));
        }
        Ok(Some(next))
    }
}

/// A fetch of one partition.
pub(super) fn fetch_request(topic: &str, client: &Client, partition: i32, next: i64) -> FetchRequest {
    let partition = FetchPartition {
        partition,
        current_leader_epoch: client.epoch(partition),
        fetch_offset: next,
        partition_max_bytes: 200_000,
        ..Default::default()
    };
    let topic = FetchTopic { topic: topic.to_owned(), topic_id: client.topic_id, partitions: vec![partition] };
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
pub(super) fn whole_batches(mut bytes: Bytes) -> Result<Vec<RecordBatch>> {
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
