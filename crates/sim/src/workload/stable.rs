//! A reader of committed records: it leaves out what aborted transactions wrote, as clients do, by the list that comes with each
//! answer and by the markers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::{EndMarker, ErrorCode, RecordIter};
use protocol::messages::fetch_response::PartitionData;
use protocol::messages::{FetchRequest, FetchResponse};

use super::reader::{fetch_request, whole_batches};
use super::{OUT, PAUSE};
use crate::client::Client;
use crate::history::Shared;

const READ_COMMITTED: i8 = 1;

/// See the module.
#[derive(Debug)]
pub struct StableReader {
    /// What it reads.
    pub partition: i32,
    /// How it asks.
    pub client: Client,
    /// What it saw.
    pub history: Shared,
}

impl StableReader {
    /// Reads for as long as the run lasts.
    pub async fn run(mut self) {
        let mut next = 0;
        loop {
            let nobody_writes = {
                let history = self.history.lock();
                history.stopping && history.working == 0
            };
            match self.fetch(next).await {
                Ok(Some((read, is_end))) => {
                    next = read;
                    let mut history = self.history.lock();
                    history.settled.insert(self.partition, nobody_writes && is_end);
                    history.stable_positions.insert(self.partition, next);
                }
                Ok(None) | Err(_) => {
                    self.client.forget_leader(self.partition);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Says where it goes on, and whether that is the log's end; nothing where another broker is to be asked.
    async fn fetch(&mut self, next: i64) -> Result<Option<(i64, bool)>> {
        let leader = self.client.leader(OUT, self.partition).await?;
        let request = fetch_request(OUT, &self.client, self.partition, next);
        let request = FetchRequest { isolation_level: READ_COMMITTED, ..request };
        let answer: FetchResponse = self.client.at(&leader, &request).await?;
        ensure!(answer.error_code == 0, "a fetch is refused with {}", answer.error_code);
        let topic = answer.responses.into_iter().next().context("no topic")?;
        let mut part = topic.partitions.into_iter().next().context("no partition")?;
        match ErrorCode::from_code(part.error_code) {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => {
                let what = format!("{leader} says that offset {next} of {OUT}-{} is out of range", self.partition);
                self.history.violation(what);
                std::future::pending().await
            }
            _ => return Ok(None),
        }
        let bytes = part.records.take().map(|records| records.to_bytes()).unwrap_or_default();
        let read = self.read(next, bytes, &part)?;
        let is_end = read == part.high_watermark && read == part.last_stable_offset;
        Ok(Some((read, is_end)))
    }

    fn read(&mut self, begin: i64, bytes: Bytes, part: &PartitionData) -> Result<i64> {
        let mut aborted: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for transaction in part.aborted_transactions.iter().flatten() {
            aborted.entry(transaction.first_offset).or_default().push(transaction.producer_id);
        }
        let mut out: BTreeSet<i64> = BTreeSet::new();
        let mut next = begin;
        for batch in whole_batches(bytes)? {
            let header = batch.header();
            self.client.note_epoch(self.partition, header.leader_epoch.0);
            let begun = aborted.range(..=header.last_offset().0).flat_map(|(_, ids)| ids.iter().copied());
            out.extend(begun);
            aborted.retain(|first, _| *first > header.last_offset().0);
            if let Some(marker) = EndMarker::of(&batch) {
                if !marker.commit {
                    out.remove(&header.producer_id.0);
                }
            } else if !(header.is_control() || header.is_transactional() && out.contains(&header.producer_id.0)) {
                for record in RecordIter::new(batch.payload(), header.record_count) {
                    let record = record?;
                    let offset = header.base_offset.0 + i64::from(record.offset_delta);
                    if offset >= next {
                        let value = record.value.unwrap_or_default();
                        self.history.lock().saw_stable(self.partition, offset, &value);
                    }
                }
            }
            next = header.next_offset().0.max(next);
        }
        if next > begin && next > part.last_stable_offset {
            let (partition, end) = (self.partition, part.last_stable_offset);
            self.history.violation(format!("{OUT}-{partition} is read to {next}, above the last stable offset {end}"));
        }
        Ok(next)
    }
}
