//! What appends, cold reads and syncs cost: `appends GIGABYTES [DIRECTORY] [--flush-ms N]`.
//!
//! Each figure stands beside the bare cost of the same bytes on the same disk, measured in the same run, in turns: CPU of
//! the calling thread a gigabyte for `Log::append` and for `pwrite`, for `Log::read` of a log without a tail cache and for
//! `pread`; the time of an append that is synced before it is acknowledged and of a write with `fdatasync`; and of a
//! thousand logs written at once and synced as a broker does, with as many threads: beside a thousand files, each with its
//! `fdatasync`, and beside as many bytes in one file.
//!
//! With `--flush-ms`, every flush takes so much longer, the bare ones too: a disk whose flush takes long, and whose writes do
//! not. The waits of flushes that run at once overlap, and a sync of the whole file system waits once.

use std::error::Error;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::{
    ClientBatches, Codec, LeaderEpoch, Offset, Record, RecordBatch, Time, TopicId, Uuid, encode_batch, encode_records,
};
use storage::disk::{DirEntry, Disk, DiskFile, OpenMode, RealDisk, SharedSync};
use storage::reserve::Ballast;
use storage::{DiskPool, Log, LogConfig, LogEnv, OpenHints};

/// Bytes that are written in one turn.
const TURN: usize = 64 << 20;
const SYNCS: usize = 400;
const LOGS: usize = 1000;
const ROUNDS: u64 = 21;
/// Threads of a broker's disk pool.
const THREADS: usize = 8;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut given: Vec<String> = std::env::args().skip(1).collect();
    let mut flush = Duration::ZERO;
    if let Some(at) = given.iter().position(|word| word == "--flush-ms") {
        let ms = given.get(at + 1).ok_or("--flush-ms takes a number")?.parse()?;
        flush = Duration::from_millis(ms);
        given.drain(at..=at + 1);
    }
    let gigabytes = given.first().map_or(Ok(2), |text| text.parse::<usize>())?;
    let parent = given.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("appends-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = measure(&dir, gigabytes, SlowDisk { disk: Arc::new(RealDisk), flush });
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(dir: &Path, gigabytes: usize, disk: SlowDisk) -> Outcome<()> {
    for size in [1 << 20, 16 << 10] {
        appends(&dir.join(format!("size-{size}")), size, gigabytes * (1 << 30) / TURN)?;
    }
    if !disk.flush.is_zero() {
        println!("each flush takes {:?} longer", disk.flush);
    }
    let one = one_log_synced(&dir.join("one"), &disk)?;
    many_logs_synced(&dir.join("many"), one, &disk)
}

/// The machine's disk, whose flushes take longer than they do.
#[derive(Clone, Debug)]
struct SlowDisk {
    disk: Arc<dyn Disk>,
    flush: Duration,
}

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn DiskFile>,
    flush: Duration,
}

#[derive(Debug)]
struct SlowSync {
    shared: Arc<dyn SharedSync>,
    flush: Duration,
}

/// What a flush takes beside what it takes.
fn flushed<T>(done: io::Result<T>, flush: Duration) -> io::Result<T> {
    if !flush.is_zero() {
        std::thread::sleep(flush);
    }
    done
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SlowFile { file: self.disk.open(path, mode)?, flush: self.flush }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.disk.space(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        flushed(self.disk.sync_dir(dir), self.flush)
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        let shared = self.disk.shared_sync(dir)?;
        Some(Arc::new(SlowSync { shared, flush: self.flush }))
    }
}

impl SharedSync for SlowSync {
    fn is_worth(&self, files: usize, each: Duration) -> bool {
        self.shared.is_worth(files, each)
    }

    fn sync_all(&self) -> io::Result<()> {
        flushed(self.shared.sync_all(), self.flush)
    }
}

impl DiskFile for SlowFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(into, position)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.file.write_at(from, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        flushed(self.file.sync_data(), self.flush)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.truncate(size)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn modified(&self) -> io::Result<Time> {
        self.file.modified()
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        self.file.preallocate(size)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

/// As of a log directory, without a tail cache: what is measured is the disk.
fn env(dir: &Path, disk: Arc<dyn Disk>) -> LogEnv {
    LogEnv::new(Arc::clone(&disk), 2 * LOGS, 0).for_directory(Ballast::new(disk, dir))
}

fn open(env: &LogEnv, dir: &Path, config: LogConfig) -> Outcome<Log> {
    let hints = OpenHints {
        topic_id: TopicId(Uuid::from_u128(1)),
        recovery_point: Offset::ZERO,
        clean: false,
        log_start: Offset::ZERO,
        high_watermark: Offset::ZERO,
    };
    Ok(Log::open(env, dir, Arc::new(config), hints)?.0)
}

/// A batch of one record with about so many bytes.
fn batch(base: Offset, bytes: usize) -> Outcome<RecordBatch> {
    let value: Vec<u8> = (0u8..=255).cycle().take(bytes.saturating_sub(80)).collect();
    let record = Record { value: Some(value.into()), ..Record::default() };
    let bytes = encode_batch(&encode_records(&[record]), Codec::None, 1, 1, 1, None);
    Ok(ClientBatches::check(bytes)?.stamp(base, LeaderEpoch(0)))
}

/// CPU time of this thread.
fn cpu() -> Outcome<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split(' ').next().ok_or("schedstat has no words")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

#[derive(Default)]
struct Cost {
    cpu: Duration,
    bytes: usize,
}

impl Cost {
    fn of<T>(&mut self, bytes: usize, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let before = cpu()?;
        let done = work()?;
        self.cpu += cpu()? - before;
        self.bytes += bytes;
        Ok(done)
    }

    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn per_gigabyte(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.bytes as f64
    }
}

fn appends(dir: &Path, size: usize, turns: usize) -> Outcome<()> {
    std::fs::create_dir_all(dir)?;
    let mut log = open(&env(dir, Arc::new(RealDisk)), &dir.join("bench-0"), LogConfig::default())?;
    let (mut ours, mut bare) = (Cost::default(), Cost::default());
    let mut files = Vec::new();
    for turn in 0..turns {
        let batches: Vec<RecordBatch> =
            (0..TURN / size).map(|i| batch(log.log_end() + i64::try_from(i)?, size)).collect::<Outcome<_>>()?;
        let bytes = batches.iter().map(|batch| batch.bytes().len()).sum();
        let mut append = || batches.iter().try_for_each(|batch| log.append(std::slice::from_ref(batch)).map(drop));
        // A file of a gigabyte, as a segment is.
        if files.is_empty() || turn % 16 == 0 {
            files.push(File::create_new(dir.join(format!("bare-{turn}")))?);
        }
        let file = files.last().ok_or("there is a file")?;
        let mut position = u64::try_from(turn % 16 * bytes)?;
        let mut write = || -> Outcome<()> {
            for batch in &batches {
                file.write_all_at(batch.bytes(), position)?;
                position += batch.bytes().len() as u64;
            }
            Ok(())
        };
        if turn % 2 == 0 {
            ours.of(bytes, || Ok(append()?))?;
            bare.of(bytes, &mut write)?;
        } else {
            bare.of(bytes, &mut write)?;
            ours.of(bytes, || Ok(append()?))?;
        }
    }
    let (a, b) = (ours.per_gigabyte(), bare.per_gigabyte());
    println!("append of {} KiB: {a:.3} s/GB, pwrite {b:.3}, {:.2} x", size >> 10, a / b);
    reads(&log, &files, size)?;
    drop(log);
    Ok(std::fs::remove_dir_all(dir)?)
}

/// Consumers' reads of a megabyte from files, every checksum looked at, beside `pread` of the same.
fn reads(log: &Log, files: &[File], size: usize) -> Outcome<()> {
    let (mut ours, mut bare) = (Cost::default(), Cost::default());
    let (mut from, mut file, mut position) = (Offset::ZERO, 0, 0);
    while from < log.log_end() {
        let before = cpu()?;
        let read = log.read_now(from, log.log_end(), 1 << 20, true)?;
        ours.cpu += cpu()? - before;
        let length: usize = read.iter().map(bytes::Bytes::len).sum();
        ours.bytes += length;
        from = from + i64::try_from(length.div_ceil(size))?;
        bare.of(length, || {
            let mut into = vec![0; length];
            if files[file].read_exact_at(&mut into, position).is_err() {
                (file, position) = (file + 1, 0);
                if let Some(next) = files.get(file) {
                    next.read_exact_at(&mut into, 0)?;
                }
            }
            position += length as u64;
            file = file.min(files.len() - 1);
            Ok(())
        })?;
    }
    let (a, b) = (ours.per_gigabyte(), bare.per_gigabyte());
    println!("cold read of {} KiB batches, checksums looked at: {a:.3} s/GB, pread {b:.3}, {:.2} x", size >> 10, a / b);
    Ok(())
}

fn before_ack() -> LogConfig {
    LogConfig { flush_messages: 1, ..LogConfig::default() }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The median of an append that is synced; beside it a write that is.
fn one_log_synced(dir: &Path, disk: &SlowDisk) -> Outcome<Duration> {
    std::fs::create_dir_all(dir)?;
    let mut log = open(&env(dir, Arc::new(disk.clone())), &dir.join("bench-0"), before_ack())?;
    let bare = File::create_new(dir.join("bare"))?;
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for i in 0..SYNCS {
        let batch = batch(log.log_end(), 1000)?;
        let begun = Instant::now();
        log.append(std::slice::from_ref(&batch))?;
        log.sync_now()?;
        ours.push(begun.elapsed());
        let begun = Instant::now();
        bare.write_all_at(batch.bytes(), u64::try_from(i * batch.bytes().len())?)?;
        flushed(bare.sync_data(), disk.flush)?;
        bares.push(begun.elapsed());
    }
    let (a, b) = (median(&mut ours), median(&mut bares));
    println!(
        "synced before ack, one log: p50 {a:.2?}, write and fdatasync {b:.2?}, {:.2} x",
        a.as_secs_f64() / b.as_secs_f64()
    );
    Ok(a)
}

/// A thousand logs, each with a batch, synced together; beside it a thousand files, and one with as many bytes.
fn many_logs_synced(dir: &Path, one: Duration, disk: &SlowDisk) -> Outcome<()> {
    std::fs::create_dir_all(dir)?;
    let env = env(dir, Arc::new(disk.clone()));
    let open_one = |i| open(&env, &dir.join(format!("bench-{i}")), before_ack());
    let mut logs: Vec<Log> = (0..LOGS).map(open_one).collect::<Outcome<_>>()?;
    let files: Vec<File> =
        (0..LOGS).map(|i| File::create_new(dir.join(format!("bare-{i}")))).collect::<Result<_, _>>()?;
    let single = File::create_new(dir.join("single"))?;
    let (pool, runtime) = (DiskPool::new(THREADS)?, tokio::runtime::Builder::new_multi_thread().build()?);
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..ROUNDS {
        let batches: Vec<RecordBatch> = logs.iter().map(|log| batch(log.log_end(), 1000)).collect::<Outcome<_>>()?;
        let begun = Instant::now();
        for (log, batch) in logs.iter_mut().zip(&batches) {
            log.append(std::slice::from_ref(batch))?;
        }
        let appended = begun.elapsed();
        runtime.block_on(sync_all(&mut logs, &pool))?;
        let synced = begun.elapsed();
        let begun = Instant::now();
        for (file, batch) in files.iter().zip(&batches) {
            file.write_all_at(batch.bytes(), round * 1000)?;
        }
        let synced_one = in_parallel(files.iter().collect(), |file| flushed(file.sync_data(), disk.flush));
        synced_one.into_iter().collect::<Result<Vec<()>, _>>()?;
        let bare = begun.elapsed();
        let written: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes().iter().copied()).collect();
        let begun = Instant::now();
        single.write_all_at(&written, round * written.len() as u64)?;
        flushed(single.sync_data(), disk.flush)?;
        // The first round makes the directories' names durable.
        if round > 0 {
            let of_round = [appended, synced, bare, begun.elapsed()];
            times.iter_mut().zip(of_round).for_each(|(times, time)| times.push(time));
        }
    }
    let [appended, synced, bare, single] = times.map(|mut times| median(&mut times));
    println!("{LOGS} logs at once: appended after {appended:.2?}, synced before ack after {synced:.2?}, p50");
    println!("  as many files, each with fdatasync: {bare:.2?}, {:.2} x", ratio(synced, bare));
    println!("  as many bytes in one file, one fdatasync: {single:.2?}, {:.2} x", ratio(synced, single));
    println!(
        "  one log: {one:.2?}, {:.1} x; without the appends {:.1} x",
        ratio(synced, one),
        ratio(synced - appended, one)
    );
    Ok(std::fs::remove_dir_all(dir)?)
}

/// As a broker: a task for each.
async fn sync_all(logs: &mut [Log], pool: &DiskPool) -> Outcome<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (at, log) in logs.iter_mut().enumerate() {
        if let Some(ticket) = log.start_sync()? {
            let pool = pool.clone();
            tasks.spawn(async move { (at, ticket.run_in_turn(&pool).await) });
        }
    }
    while let Some(done) = tasks.join_next().await {
        let (at, done) = done?;
        logs[at].finish_sync(done)?;
    }
    Ok(())
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// The results in order.
fn in_parallel<T: Send, R: Send>(jobs: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some((number, job)) = queue.lock().expect("no worker panics").next() else { return };
                    let result = work(job);
                    results.lock().expect("no worker panics").push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no worker panics");
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}
