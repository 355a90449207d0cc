//! Tests of the log: what holds in ordinary life here, crashes and faults beside it.

mod aborted;
mod compaction;
mod crashes;
mod faults;
mod inspect;
mod life;
mod model_based;
mod relocation;
mod send;
mod space;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use model::{
    Codec, EpochCache, LeaderEpoch, Offset, Record, RecordBatch, Time, TopicId, Uuid, encode_batch, encode_records,
};

use super::{Deleted, Log, LogError, OpenHints, Recovered, Verdict};
use crate::config::LogConfig;
use crate::disk::{Crash, Disk, MemDisk};
use crate::env::LogEnv;

const DIR: &str = "/data/topic-0";
const TOPIC: TopicId = TopicId(Uuid::from_u128(7));

/// A log on a disk in memory, with the epoch cache that the replication core would keep.
struct World {
    disk: MemDisk,
    env: LogEnv,
    config: LogConfig,
    tail_bytes: usize,
    log: Log,
    epochs: EpochCache,
}

impl World {
    fn new(config: LogConfig) -> Self {
        Self::with_tail(config, 1 << 20)
    }

    /// Without a tail cache every read is a cold one.
    fn with_tail(config: LogConfig, tail_bytes: usize) -> Self {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/data")).unwrap();
        disk.crash(Crash::KeepAll);
        Self::on(disk, config, tail_bytes)
    }

    fn on(disk: MemDisk, config: LogConfig, tail_bytes: usize) -> Self {
        let env = LogEnv::new(Arc::new(disk.clone()), 16, tail_bytes);
        let (log, recovered) = Log::open(&env, Path::new(DIR), Arc::new(config.clone()), hints()).unwrap();
        Self { disk, env, config, tail_bytes, log, epochs: recovered.epochs }
    }

    fn append(&mut self, batch: RecordBatch) {
        self.epochs.appended(batch.header().leader_epoch, batch.header().base_offset);
        self.log.append(&[batch]).unwrap();
    }

    /// One batch of `records` records at the log's end.
    fn append_records(&mut self, epoch: i32, records: i32) {
        self.append(batch(self.log.log_end().0, epoch, records, 1000 + self.log.log_end().0));
    }

    /// What a broker does about once a second: sync, and write what the sync allows.
    fn checkpoint(&mut self) -> Offset {
        self.log.sync_now().unwrap();
        self.log.write_epoch_checkpoint(&self.epochs).unwrap();
        self.log.recovery_point()
    }

    /// The log as another process finds it.
    fn reopen(&mut self, hints: OpenHints) -> Recovered {
        self.try_reopen(hints).unwrap()
    }

    fn try_reopen(&mut self, hints: OpenHints) -> Result<Recovered, LogError> {
        self.env = LogEnv::new(Arc::new(self.disk.clone()), 16, self.tail_bytes);
        let config = Arc::new(self.config.clone());
        let (log, recovered) = Log::open(&self.env, Path::new(DIR), config, hints)?;
        self.log = log;
        self.epochs = recovered.epochs.clone();
        Ok(recovered)
    }

    fn crash_and_reopen(&mut self, how: Crash, hints: OpenHints) -> Recovered {
        self.disk.crash(how);
        self.reopen(hints)
    }

    fn all(&self) -> Vec<RecordBatch> {
        batches_from(&self.log, self.log.log_start())
    }
}

/// A pass of retention, with the checkpoint of the log start written between its halves.
fn retain(log: &mut Log, wall: Option<Time>, high_watermark: Offset, now: Time) -> Result<Deleted, LogError> {
    log.expire(wall, high_watermark)?;
    log.delete_below(log.log_start(), true, high_watermark, now)
}

fn hints() -> OpenHints {
    OpenHints {
        topic_id: TOPIC,
        recovery_point: Offset::ZERO,
        clean: false,
        log_start: Offset::ZERO,
        high_watermark: Offset::ZERO,
    }
}

fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 500, index_interval_bytes: 100, ..LogConfig::default() }
}

/// A batch of `records` records with timestamps from `timestamp` on, one millisecond apart.
pub(super) fn batch(base: i64, epoch: i32, records: i32, timestamp: i64) -> RecordBatch {
    batch_of(base, epoch, records, timestamp, Codec::None)
}

fn batch_of(base: i64, epoch: i32, records: i32, timestamp: i64, codec: Codec) -> RecordBatch {
    let records: Vec<Record> = (0..records)
        .map(|i| Record {
            offset_delta: i,
            timestamp_delta: i64::from(i),
            value: Some(Bytes::from(format!("{epoch}/{}", base + i64::from(i)))),
            ..Record::default()
        })
        .collect();
    let count = i32::try_from(records.len()).unwrap();
    let max = timestamp + i64::from(count) - 1;
    let bytes = encode_batch(&encode_records(&records), codec, count, timestamp, max, None);
    model::ClientBatches::check(bytes).unwrap().stamp(Offset(base), LeaderEpoch(epoch))
}

/// Everything from `from` on, read piece by piece as consumers do.
fn batches_from(log: &Log, from: Offset) -> Vec<RecordBatch> {
    let (mut from, mut all) = (from, Vec::new());
    loop {
        let read = log.read_now(from, log.log_end(), 300, true).unwrap();
        if read.is_empty() {
            return all;
        }
        for bytes in read {
            all.extend(RecordBatch::split_all(bytes).unwrap());
        }
        from = all.last().unwrap().header().next_offset();
    }
}
