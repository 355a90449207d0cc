//! How fast and in how much memory a log is compacted: `compaction GIGABYTES MILLION_KEYS [CODEC] [DIRECTORY]`.
//!
//! Writes a log of records of 100 bytes with keys drawn evenly, compacts it with Kafka's default memory for keys, and
//! prints bytes a second and the process's peak memory, beside the bare cost of reading the same files twice and writing
//! the result, in the same run on the same disk.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use model::{Codec, EpochCache, LeaderEpoch, Offset, Record, RecordBatch, Time, TopicId, Uuid, encode_records};
use storage::compression::{CompressionLevels, compress_into};
use storage::disk::{Disk, OpenMode, RealDisk, read_exact_at, write_all_at};
use storage::log::compaction::HashKey;
use storage::{CleaningOptions, CleaningStep, CleanupPolicy, Log, LogConfig, LogEnv, OpenHints};

const RECORDS: i32 = 100;
const KAFKA_DEDUPE_BYTES: usize = 128 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| given.get(at).map_or(Ok(1.0), |text| text.parse::<f64>());
    let (gigabytes, million_keys) = (number(0)?, number(1)?);
    let codec = match given.get(2).map_or("none", String::as_str) {
        "none" => Codec::None,
        "gzip" => Codec::Gzip,
        "snappy" => Codec::Snappy,
        "lz4" => Codec::Lz4,
        "zstd" => Codec::Zstd,
        other => return Err(format!("{other} is no codec").into()),
    };
    let parent = given.get(3).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("compaction-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = measure(&dir, gigabytes, million_keys, codec);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(dir: &Path, gigabytes: f64, million_keys: f64, codec: Codec) -> Result<(), Box<dyn Error>> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    // No tail cache: what is measured is compaction.
    let env = LogEnv::new(Arc::clone(&disk), 64, 0);
    let config = LogConfig {
        cleanup_policy: CleanupPolicy { delete: false, compact: true },
        file_delete_delay_ms: 0,
        ..LogConfig::default()
    };
    let hints = OpenHints {
        topic_id: TopicId(Uuid::from_u128(1)),
        recovery_point: Offset::ZERO,
        clean: false,
        log_start: Offset::ZERO,
        high_watermark: Offset::ZERO,
    };
    let (mut log, _) = Log::open(&env, &dir.join("bench-0"), Arc::new(config), hints)?;
    let records = fill(&mut log, gigabytes * 1e9, million_keys * 1e6, codec)?;
    let size = log.size_bytes();
    println!("log: {:.2} GB, {records} records, {:.0} keys drawn, {codec:?}", precise(size) / 1e9, million_keys * 1e6);
    let before = peak_memory();
    let started = Instant::now();
    let (passes, read, written, key_bytes) = compact(&mut log)?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "compaction: {passes} pass(es), {seconds:.2} s, {:.0} MB/s of log, read {:.2} GB, wrote {:.2} GB, {:.2} GB left",
        precise(size) / 1e6 / seconds,
        precise(read) / 1e9,
        precise(written) / 1e9,
        precise(log.size_bytes()) / 1e9,
    );
    println!(
        "memory: map of keys {:.0} MiB, peak of the process {:.0} MiB (before: {:.0} MiB)",
        precise(key_bytes as u64) / f64::from(1 << 20),
        peak_memory(),
        before
    );
    let started = Instant::now();
    bare(&*disk, dir, read, written)?;
    let bare = started.elapsed().as_secs_f64();
    println!("bare cost of the same bytes: {bare:.2} s; compaction took {:.2} times that", seconds / bare);
    Ok(())
}

/// Appends batches until the log has so many bytes; ends the last segment, and syncs. Gives the number of records.
fn fill(log: &mut Log, bytes: f64, keys: f64, codec: Codec) -> Result<i64, Box<dyn Error>> {
    let mut epochs = EpochCache::default();
    epochs.assign(LeaderEpoch(0), Offset::ZERO);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let keys = format!("{keys:.0}").parse::<u64>()?.max(1);
    while precise(log.size_bytes()) < bytes {
        let records: Vec<Record> = (0..RECORDS)
            .map(|offset_delta| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let key = Bytes::from(format!("key-{:016}", random % keys));
                let value = Some(Bytes::from(format!("{random:016x}").repeat(5)));
                Record { offset_delta, key: Some(key), value, ..Record::default() }
            })
            .collect();
        let mut payload = Vec::new();
        compress_into(&mut payload, codec, &CompressionLevels::default(), &encode_records(&records))?;
        let bytes = model::encode_batch(&payload, codec, RECORDS, 1, 1, None);
        let batch = model::ClientBatches::check(bytes)?.stamp(log.log_end(), LeaderEpoch(0));
        log.append(&[RecordBatch::clone(&batch)])?;
    }
    log.maybe_roll(Time(1 << 45))?;
    log.sync_now()?;
    log.write_epoch_checkpoint(&epochs)?;
    Ok(log.log_end().0)
}

fn compact(log: &mut Log) -> Result<(u32, u64, u64, usize), Box<dyn Error>> {
    let options = CleaningOptions {
        now: Time(1 << 41),
        bound: log.log_end(),
        producers: BTreeMap::new(),
        dedupe_bytes: KAFKA_DEDUPE_BYTES,
        load_factor: 0.9,
        io_buffer_bytes: 256 << 10,
        hash_key: HashKey::random(),
    };
    let (mut passes, mut read, mut written, mut key_bytes) = (0, 0, 0, 0);
    loop {
        let Some(mut cleaning) = log.start_cleaning(options.clone())? else { break };
        passes += 1;
        loop {
            match cleaning.step(4 << 20)? {
                CleaningStep::More => {}
                CleaningStep::Swap(cleaned) => {
                    log.swap_cleaned(*cleaned, options.now)?;
                }
                CleaningStep::Done => break,
            }
        }
        let stats = cleaning.stats();
        read += stats.bytes_read;
        written += stats.bytes_written;
        key_bytes = key_bytes.max(stats.key_bytes);
        if log.finish_cleaning(&cleaning)? {
            break;
        }
    }
    log.free_deleted(options.now)?;
    Ok((passes, read, written, key_bytes))
}

/// Writes and reads so many bytes and syncs, without looking at them.
fn bare(disk: &dyn Disk, dir: &Path, read: u64, written: u64) -> Result<(), Box<dyn Error>> {
    let chunk = vec![7u8; 256 << 10];
    let file = disk.open(&dir.join("bare"), OpenMode::Truncate)?;
    let mut position = 0;
    while position < written.max(256 << 10) {
        write_all_at(&*file, &mut [IoSlice::new(&chunk)], position)?;
        position += chunk.len() as u64;
    }
    file.sync_data()?;
    let (mut into, mut done) = (chunk, 0);
    while done < read {
        read_exact_at(&*file, &mut into, done % position)?;
        done += into.len() as u64;
    }
    Ok(())
}

/// In MiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn precise(number: u64) -> f64 {
    number as f64
}
