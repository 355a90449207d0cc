//! What the targets of the storage have in common: logs on a disk in memory, with files as the fuzzer would have them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use model::{
    ClientBatches, Codec, LeaderEpoch, Offset, Record, RecordBatch, TopicId, Uuid, encode_batch, encode_records,
};
use storage::disk::{Disk, MemDisk, replace_file};
use storage::{Log, LogConfig, LogEnv, OpenHints, Recovered};

pub const DIR: &str = "/data/t-0";
const TOPIC: TopicId = TopicId(Uuid::from_u128(7));

/// Nothing is known, and nothing was stopped cleanly.
pub fn hints() -> OpenHints {
    OpenHints {
        topic_id: TOPIC,
        recovery_point: Offset::ZERO,
        clean: false,
        log_start: Offset::ZERO,
        high_watermark: Offset::ZERO,
    }
}

pub fn config() -> LogConfig {
    LogConfig { segment_bytes: 4000, index_interval_bytes: 200, ..LogConfig::default() }
}

/// A file of the log's directory.
pub fn file(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// A disk with a sound log of some segments and epochs, and its batches. The same each time.
pub fn sound() -> (MemDisk, &'static [RecordBatch]) {
    static SOUND: OnceLock<(MemDisk, Vec<RecordBatch>)> = OnceLock::new();
    let (disk, batches) = SOUND.get_or_init(|| {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/data")).expect("memory");
        let (mut log, _) = open(&disk, hints());
        let batches: Vec<RecordBatch> = (0..60).map(|i| batch(i * 2, i32::try_from(i / 20).expect("small"))).collect();
        log.append(&batches).expect("memory");
        log.settle().expect("memory");
        (disk, batches)
    });
    (disk.fork(), batches)
}

fn batch(base: i64, epoch: i32) -> RecordBatch {
    let records: Vec<Record> =
        (0..2).map(|i| Record { offset_delta: i, value: Some(vec![b'x'; 60].into()), ..Record::default() }).collect();
    let bytes = encode_batch(&encode_records(&records), Codec::None, 2, 1000 + base, 1000 + base, None);
    ClientBatches::check(bytes).expect("encoded here").stamp(Offset(base), LeaderEpoch(epoch))
}

/// Opens the log that is there.
pub fn open(disk: &MemDisk, hints: OpenHints) -> (Log, Recovered) {
    try_open(disk, hints).expect("a disk in memory has no faults")
}

/// The same, where the files may belong to nobody.
pub fn try_open(disk: &MemDisk, hints: OpenHints) -> Result<(Log, Recovered), storage::LogError> {
    let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
    Log::open(&env, Path::new(DIR), Arc::new(config()), hints)
}

/// Puts a file where it belongs.
pub fn put(disk: &MemDisk, name: &str, content: &[u8]) {
    replace_file(disk, &file(name), content).expect("memory");
}

/// Everything that a reader gets, in order: batches that were checked, ascending, until the end or something damaged.
pub fn read_all(log: &Log) -> Vec<RecordBatch> {
    let (mut from, mut all) = (log.log_start(), Vec::new());
    while from < log.log_end() {
        let Ok(read) = log.read_now(from, log.log_end(), 1000, true) else { return all };
        if read.is_empty() {
            break;
        }
        for bytes in read {
            for batch in RecordBatch::split_all(bytes).expect("what is served is sound") {
                assert!(batch.header().next_offset() > from, "what is served ascends");
                from = batch.header().next_offset();
                all.push(batch);
            }
        }
    }
    all
}
