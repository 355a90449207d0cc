//! A disk that fails at each call in turn, and damage to each kind of file: what is tried and found is told in a line.

use super::*;
use crate::disk::{Call, FaultKind, OpenMode};
use crate::log::{Log, LogError, Read, TimeMatch, Verdict};
use model::{EpochCache, Time};
use std::collections::BTreeMap;

/// A log in use, and what must be true of it whatever the disk does.
struct Script {
    world: World,
    /// Every batch whose append succeeded, but for those that were cut.
    appended: Vec<RecordBatch>,
    /// Below it a sync has returned.
    synced: Offset,
    /// What the checkpoints of a broker would say.
    recovery_point: Offset,
    log_start: Offset,
    /// How often the log was opened anew, for want of descriptors.
    reopened: u32,
    /// For the message of a failure.
    steps: Vec<String>,
}

impl World {
    /// Names and sizes, for the message of a failure.
    fn files(&self) -> Vec<(String, u64)> {
        let entries = self.disk.list(Path::new(DIR)).unwrap_or_default();
        let size = |name: &str| self.disk.open(&Path::new(DIR).join(name), OpenMode::Existing).and_then(|f| f.size());
        entries.iter().map(|entry| (entry.name.clone(), size(&entry.name).unwrap_or(u64::MAX))).collect()
    }
}

impl Script {
    fn new() -> Self {
        let config = LogConfig { file_delete_delay_ms: 0, ..small_segments() };
        let world = World::with_tail(config, 0);
        let zero = Offset::ZERO;
        let (appended, steps) = (Vec::new(), Vec::new());
        Self { world, appended, synced: zero, recovery_point: zero, log_start: zero, reopened: 0, steps }
    }

    fn append(&mut self, epoch: i32) -> Result<(), LogError> {
        let batch = batch(self.world.log.log_end().0, epoch, 3, 1000);
        self.world.log.append(std::slice::from_ref(&batch))?;
        self.world.epochs.appended(batch.header().leader_epoch, batch.header().base_offset);
        self.appended.push(batch);
        Ok(())
    }

    /// A slow sync: more is appended while it runs.
    fn sync(&mut self, epoch: i32) -> Result<(), LogError> {
        if let Some(ticket) = self.world.log.start_sync()? {
            let covered = self.world.log.log_end();
            let appended = self.append(epoch);
            let synced = self.world.log.finish_sync(ticket.run())?;
            assert_eq!(synced, covered, "a sync says more than it covered");
            self.synced = covered;
            appended?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), LogError> {
        self.world.log.write_epoch_checkpoint(&self.world.epochs.clone())?;
        self.recovery_point = self.recovery_point.max(self.world.log.recovery_point());
        assert!(self.recovery_point <= self.synced, "R25: {} above {}", self.recovery_point, self.synced);
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), LogError> {
        let end = self.world.log.log_end();
        if let Some(snapshot) = self.world.log.start_producer_snapshot(end, b"state")? {
            assert!(self.world.log.finish_producer_snapshot(snapshot.run())?);
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<(), LogError> {
        let to = self.world.log.log_end() + -3;
        if to < self.world.log.log_start() {
            // No append had a descriptor so far.
            return Ok(());
        }
        // Whether it happened is open until it says so: what is gone need not be there, nor be gone.
        self.synced = self.synced.min(to);
        self.recovery_point = self.recovery_point.min(to);
        let end = self.world.log.truncate_to(to)?;
        // The next time its file is replaced, not cut.
        self.world.log.assume_lent();
        self.world.epochs.truncate_to(end);
        self.appended.retain(|batch| batch.header().base_offset < end);
        Ok(())
    }

    fn delete(&mut self) -> Result<(), LogError> {
        let start = self.world.log.log_start() + 7;
        if start > self.world.log.log_end() {
            // As above.
            return Ok(());
        }
        self.log_start = self.world.log.advance_log_start(start)?;
        super::retain(&mut self.world.log, Some(Time(5000)), self.synced.max(start), Time(5000))?;
        self.world.log.free_deleted(Time(6000)).map(drop)
    }

    fn read(&mut self) -> Result<(), LogError> {
        let mut from = self.world.log.log_start();
        while from < self.world.log.log_end() {
            let chunks = self.world.log.read_now(from, self.world.log.log_end(), 300, true)?;
            for batch in chunks.into_iter().flat_map(|bytes| RecordBatch::split_all(bytes).unwrap()) {
                assert!(self.appended.contains(&batch), "served what was never appended");
                from = batch.header().next_offset();
            }
        }
        Ok(())
    }

    /// Everything that a log does, some of it twice.
    fn step(&mut self, number: i32) -> Result<(), LogError> {
        match number % 12 {
            4 | 9 => self.sync(number / 12),
            5 => self.checkpoint(),
            6 => self.snapshot(),
            7 => self.read(),
            8 => self.cut(),
            10 => self.delete(),
            11 => self.world.log.settle().map(|synced| self.synced = synced),
            _ => self.append(number / 12),
        }
    }

    /// Goes on until the end or until the directory is offline, and says how often a step failed.
    fn run(&mut self) -> u32 {
        let mut failed = 0;
        for number in 0..48 {
            let done = self.step(number);
            self.steps.push(format!("{number}: {done:?} synced {}", self.synced));
            match done {
                Ok(()) => {}
                Err(LogError::NoSpace(_)) => failed += 1,
                Err(LogError::NoDescriptor(_)) => {
                    failed += 1;
                    self.go_on();
                }
                Err(LogError::DirectoryOffline(_)) => {
                    let again = self.append(9);
                    assert!(matches!(again, Err(LogError::DirectoryOffline(_))), "R30: {again:?}");
                    return failed + 1;
                }
                Err(other) => panic!("step {number}: {other}, {:#?}", self.steps),
            }
        }
        failed
    }

    /// There was no file descriptor: the log is as it was, or opened anew in this process, as a broker does.
    fn go_on(&mut self) {
        assert_eq!(self.world.env.health().failure(), None, "nothing is wrong with the disk");
        if self.world.log.is_unfinished() {
            let again = self.append(9);
            assert!(matches!(again, Err(LogError::NoDescriptor(_))), "{again:?}");
            let hints = self.hints();
            while let Err(error) = self.world.try_reopen(hints) {
                assert!(matches!(error, LogError::NoDescriptor(_)), "{error:?}");
                assert_eq!(self.world.env.health().failure(), None);
            }
            self.reopened += 1;
            self.synced = self.synced.max(self.world.log.synced_end());
            // Whether a cut has happened is open until it says so.
            let end = self.world.log.log_end();
            assert!(end >= self.synced, "{end} {}, {:#?}", self.synced, self.steps);
            self.appended.retain(|batch| batch.header().base_offset < end);
        }
        if self.world.disk.faults_waiting() == 0 {
            self.check_content();
        }
    }

    /// All that was appended is there, and nothing else.
    fn check_content(&self) {
        let start = self.world.log.log_start();
        let appended = self.appended.iter().filter(|batch| batch.header().next_offset() > start);
        assert_eq!(self.world.all(), appended.cloned().collect::<Vec<_>>(), "{:#?}", self.steps);
    }

    /// What the checkpoints of a broker say.
    fn hints(&self) -> OpenHints {
        let (recovery_point, log_start) = (self.recovery_point, self.log_start);
        OpenHints { recovery_point, high_watermark: recovery_point, log_start, ..hints() }
    }

    /// What the next process finds after `crash`: all that was synced, a prefix of what was appended, and nothing else.
    fn check(&self, crash: Crash, what: &str) {
        let disk = self.world.disk.fork();
        disk.crash(crash);
        let mut found = World { disk, ..World::new(self.world.config.clone()) };
        let hints = self.hints();
        let recovered = found.reopen(hints);
        // Writes that reached the disk without the ones before them look like a gap: the replica says so (R29).
        let scattered = matches!(crash, Crash::Scatter(_));
        let lossy = matches!(recovered.verdict, Verdict::Lossy { .. });
        let state = || format!("{:?}, {:#?}", found.files(), self.steps);
        assert!(!lossy || scattered, "{what}, {crash:?}: {recovered:?}, {hints:?}, {}", state());
        assert!(found.log.log_end() >= self.synced, "{what}, {crash:?}: {} was synced", self.synced);
        for batch in found.all() {
            assert!(self.appended.contains(&batch), "{what}, {crash:?}: {:?} was never appended", batch.header());
        }
        check_epochs(&found.epochs, &found.all(), what);
    }
}

/// Base offset, length and leader epoch stand before what a batch's checksum covers.
const UNCHECKED: usize = 16;

fn check_epochs(epochs: &EpochCache, batches: &[RecordBatch], what: &str) {
    for batch in batches {
        let start = batch.header().base_offset.max(epochs.entries().first().map_or(Offset::ZERO, |entry| entry.start));
        assert_eq!(epochs.epoch_of(start), Some(batch.header().leader_epoch), "R25: {what}, {:?}", batch.header());
    }
}

#[test]
fn a_disk_that_fails_at_any_call_loses_nothing_that_was_synced_and_serves_nothing_else() {
    // R30, R31
    let calls = [
        Call::Open,
        Call::Read,
        Call::Write,
        Call::SyncData,
        Call::SyncDir,
        Call::Truncate,
        Call::Rename,
        Call::Remove,
    ];
    let kinds = [FaultKind::Eio, FaultKind::Enospc, FaultKind::ShortWrite(0), FaultKind::ShortWrite(40)];
    let (mut tried, mut noticed, mut waited) = (0, 0, 0);
    for call in calls {
        for kind in kinds {
            let sensible = match kind {
                FaultKind::Eio => true,
                FaultKind::ShortWrite(_) => call == Call::Write,
                FaultKind::Enospc => matches!(call, Call::Open | Call::Write | Call::Rename),
                FaultKind::Emfile | FaultKind::Lie => false,
            };
            if !sensible {
                continue;
            }
            for skip in 0.. {
                let mut script = Script::new();
                script.world.disk.fail(call, skip, kind);
                let failed = script.run();
                if script.world.disk.faults_waiting() > 0 {
                    break;
                }
                tried += 1;
                noticed += u32::from(failed > 0);
                let completed = matches!(kind, FaultKind::ShortWrite(length) if length > 0);
                // Index entries that find no space wait, and the records are synced.
                let waits = failed == 0 && (call, kind) == (Call::Write, FaultKind::Enospc);
                waited += u32::from(waits);
                assert!(
                    failed > 0 || completed || waits || may_be_passed_over(call),
                    "{call:?} {skip} {kind:?} went unnoticed"
                );
                for crash in [Crash::KeepAll, Crash::LoseUnsynced, Crash::Scatter(skip)] {
                    script.check(crash, &format!("{call:?} {skip} {kind:?}"));
                }
            }
        }
    }
    println!(
        "disk faults: {tried} tried, {noticed} told to the caller, 0 records lost that were synced, 0 served that were not appended"
    );
    assert!(tried > 400 && waited < 10, "{tried} {waited}");
}

#[test]
fn a_process_without_descriptors_at_any_open_keeps_its_directory_and_loses_nothing() {
    let (mut tried, mut told, mut unfinished) = (0, 0, 0);
    for call in [Call::Open, Call::List, Call::SyncDir] {
        // Once: the pool gives back what is idle. More often: whoever asks hears of it, and asks again.
        for times in [1, 2, 6] {
            for skip in 0.. {
                let mut script = Script::new();
                (0..times).for_each(|_| script.world.disk.fail(call, skip, FaultKind::Emfile));
                let before = script.world.log.dir().to_owned();
                let failed = script.run();
                if script.world.disk.faults_waiting() == times {
                    break;
                }
                script.world.disk.forgive();
                assert_eq!(script.world.log.dir(), before);
                assert_eq!(script.world.env.health().failure(), None, "{call:?} {skip} {times}");
                script.check_content();
                (tried, told) = (tried + 1, told + u32::from(failed > 0));
                unfinished += u32::from(script.reopened > 0);
                for crash in [Crash::KeepAll, Crash::LoseUnsynced, Crash::Scatter(skip)] {
                    script.check(crash, &format!("no descriptor at {call:?} {skip}, {times} times"));
                }
            }
        }
    }
    println!("no descriptor: {tried} tried, {told} told to the caller, {unfinished} logs opened anew, 0 records lost");
    assert!(tried > 150 && told > 100 && unfinished > 10, "{tried} {told} {unfinished}");
}

#[test]
fn files_that_nobody_uses_are_closed_where_descriptors_are_short() {
    let mut world = World::with_tail(small_segments(), 0);
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    world.checkpoint();
    let all = world.all();
    let open = world.disk.counters().open_now;
    assert!(open >= 10, "the pool keeps files: {open}");
    world.disk.set_descriptors(Some(open));
    // By the pool, and beside it: what is kept open is given back for both.
    world.checkpoint();
    world.append_records(0, 2);
    world.log.roll(world.log.log_end()).unwrap();
    assert_eq!(world.all()[..all.len()], all);
    assert_eq!(world.env.descriptor_shortages(), 0);
    // Where there is none at all, who asks is told, and nothing else happens.
    let read = world.log.read(Offset(0), world.log.log_end(), 300, true).unwrap();
    world.disk.set_descriptors(Some(0));
    world.log.close_files();
    let end = world.log.log_end();
    assert!(matches!(world.log.read_now(Offset(0), end, 300, true), Err(LogError::NoDescriptor(_))));
    assert!(matches!(world.log.append(&[batch(end.0, 0, 2, 0)]), Err(LogError::NoDescriptor(_))));
    assert!(matches!(world.log.sync_now(), Err(LogError::NoDescriptor(_))));
    assert!(matches!(world.log.write_epoch_checkpoint(&world.epochs), Err(LogError::NoDescriptor(_))));
    let Read::Cold(read) = read else { panic!("it is cold") };
    assert!(!read.run().unwrap().is_empty(), "what is open can be read");
    assert!(world.env.descriptor_shortages() >= 4);
    world.disk.set_descriptors(None);
    world.append_records(0, 2);
    world.checkpoint();
    assert_eq!((world.log.log_end(), world.env.health().failure()), (end + 2, None));
    let recovered = world.crash_and_reopen(Crash::LoseUnsynced, hints());
    assert_eq!((recovered.verdict, world.all().len()), (Verdict::Sound, 22));
}

#[test]
fn a_sync_that_finds_no_descriptor_is_made_up_for_and_one_that_failed_never() {
    // R30, R31: the names of a log that is new are synced last.
    for call in [Call::Open, Call::SyncDir] {
        let mut world = World::new(LogConfig::default());
        world.append_records(0, 2);
        let ticket = world.log.start_sync().unwrap().unwrap();
        (0..2).for_each(|_| world.disk.fail(call, 0, FaultKind::Emfile));
        let done = world.log.finish_sync(ticket.run());
        assert!(matches!(done, Err(LogError::NoDescriptor(_))), "{done:?}");
        assert_eq!((world.log.synced_end(), world.disk.faults_waiting()), (Offset(0), 0));
        assert!(world.log.needs_sync());
        assert_eq!(world.log.sync_now(), Ok(Offset(2)));
        world.crash_and_reopen(Crash::LoseUnsynced, OpenHints { high_watermark: Offset(2), ..hints() });
        assert_eq!(world.all().len(), 1, "{call:?}");
    }
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 2);
    world.disk.fail(Call::SyncData, 0, FaultKind::Emfile);
    assert!(matches!(world.log.sync_now(), Err(LogError::DirectoryOffline(_))), "whatever the error's name is");
}

#[test]
fn a_roll_without_space_leaves_nothing_behind_and_keeps_nothing_from_being_deleted() {
    let config = LogConfig { preallocate: true, segment_ms: 50, retention_ms: 100, ..small_segments() };
    for call in [Call::Preallocate, Call::Open] {
        let mut world = World::new(config.clone());
        for _ in 0..12 {
            world.append_records(0, 3);
        }
        // Without opening any: that would take a fault.
        let listed = |world: &World| world.disk.list(Path::new(DIR)).unwrap();
        let names = |world: &World| listed(world).into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        let (before, taken) = (names(&world), world.disk.space_taken());
        (0..3).for_each(|_| world.disk.fail(call, 0, FaultKind::Enospc));
        let rolled = world.log.maybe_roll(Time(5000));
        assert!(matches!(rolled, Err(LogError::NoSpace(_))), "{call:?}: {rolled:?}");
        assert_eq!((names(&world), world.disk.faults_waiting()), (before, 2), "{call:?}");
        assert!(world.disk.space_taken() <= taken + 100, "{call:?}: {taken} {}", world.disk.space_taken());
        if call == Call::Open {
            world.disk.crash(Crash::KeepAll);
            world.reopen(hints());
        }
        let waiting = world.disk.faults_waiting();
        let end = world.log.log_end();
        assert!(super::retain(&mut world.log, Some(Time(5000)), end, Time(5000)).unwrap().segments > 2, "{call:?}");
        assert_eq!((world.log.size_bytes(), world.log.log_start()), (0, end), "{call:?}");
        assert_eq!(world.disk.faults_waiting(), waiting, "it waits for no space");
        assert_eq!(world.env.health().failure(), None);
    }
}

/// The disk may keep the write and forget that it was cut off.
#[test]
fn a_part_of_a_batch_that_found_no_space_does_not_come_back_in_a_sealed_segment() {
    for seed in 0..40 {
        let mut world = World::new(LogConfig { segment_ms: 50, ..LogConfig::default() });
        world.append_records(0, 3);
        world.checkpoint();
        world.disk.fail(Call::Write, 0, FaultKind::ShortWrite(20));
        world.disk.fail(Call::Write, 0, FaultKind::Enospc);
        let refused = world.log.append(&[batch(3, 0, 3, 1003)]);
        assert!(matches!(refused, Err(LogError::NoSpace(_))), "{refused:?}");
        assert!(world.log.maybe_roll(Time(5000)).unwrap());
        world.append_records(0, 3);
        let recovery_point = world.checkpoint();
        assert_eq!(recovery_point, world.log.log_end());
        let (files, all) = (world.files(), world.all());
        world.crash_and_reopen(Crash::Scatter(seed), OpenHints { recovery_point, ..hints() });
        let first = |files: Vec<(String, u64)>| files.into_iter().find(|(name, _)| name == "00000000000000000000.log");
        assert_eq!(first(world.files()), first(files), "seed {seed}");
        assert_eq!(world.all(), all, "seed {seed}");
    }
}

/// What reads a hint may do without it.
fn may_be_passed_over(call: Call) -> bool {
    matches!(call, Call::Read | Call::Open | Call::Remove)
}

/// A small generator (xorshift64), so that a damage is a function of its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// A file is changed in one bit, or cut; says which.
fn damage(disk: &MemDisk, path: &Path, dice: &mut Dice) -> Option<String> {
    let file = disk.open(path, OpenMode::Existing).unwrap();
    let size = file.size().unwrap();
    if size == 0 {
        return None;
    }
    let at = dice.below(size);
    if dice.below(3) == 0 {
        file.truncate(at).unwrap();
        return Some(format!("{} cut at {at} of {size}", path.display()));
    }
    let mut byte = [0u8];
    crate::disk::read_exact_at(&*file, &mut byte, at).unwrap();
    byte[0] ^= 1 << dice.below(8);
    crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(&byte)], at).unwrap();
    Some(format!("{} bit at {at} of {size}", path.display()))
}

/// A log of several segments with everything that may lie beside them; the record at offset n is of time 1000 + n.
fn furnished() -> World {
    let mut world = World::with_tail(small_segments(), 0);
    world.disk.set_time(Time(NOW));
    for i in 0..24 {
        world.append_records(i / 8, 3);
        if i % 6 == 5 {
            world.checkpoint();
            let end = world.log.log_end();
            world.log.write_producer_snapshot(end, format!("state {end}").as_bytes()).unwrap();
        }
    }
    world.log.truncate_to(Offset(66)).unwrap();
    world.epochs.truncate_to(Offset(66));
    world.log.settle().unwrap();
    world.log.write_epoch_checkpoint(&world.epochs.clone()).unwrap();
    world.disk.crash(Crash::KeepAll);
    world.reopen(hints());
    world
}

/// When the disk of a furnished log was written.
const NOW: u64 = 1100;

/// Asks a log that its start found sound what retention and lookups by time ask: an answer is right, or says that something
/// is damaged. True where one says so.
fn judge_times(log: &mut Log, whole: &[RecordBatch], what: &str) -> bool {
    let end = log.log_end();
    let mut told = false;
    let mut judge = |asked: Result<Option<(i64, Offset)>, LogError>, right: (i64, Offset), question: &str| match asked {
        Ok(found) => assert_eq!(found, Some(right), "{what}: {question}"),
        Err(LogError::Corrupt { .. } | LogError::Gone(_)) => told = true,
        Err(other) => panic!("{what}: {question}: {other}"),
    };
    for wanted in [0, 1000, 1001, 1017, 1030, 1031, 1032, 1044, 1059, 1064, 1065] {
        let found = log.offset_for_time(wanted).map(|found| match found {
            Some(TimeMatch::Record { timestamp, offset, .. }) => Some((timestamp, offset)),
            other => other.map(|other| panic!("{what}: {other:?}")),
        });
        let right = wanted.max(1000);
        judge(found, (right, Offset(right - 1000)), &format!("the first record since {wanted}"));
    }
    // The offset of the batch is not asked for by anybody; which record it is, is looked for by its time.
    let newest = log.max_timestamp().map(|newest| newest.map(|(timestamp, _)| (timestamp, Offset(65))));
    judge(newest, (1065, Offset(65)), "the newest record");
    // Two segments are too old, or none is, whatever their indexes say.
    let config = |ms| Arc::new(LogConfig { retention_ms: ms, ..small_segments() });
    let starts: Vec<Offset> = log.segments().map(|(base, _)| base).collect();
    let newest = |n: usize| 1000 + starts[n + 1].0 - 1;
    for (kept, start) in [(newest(0), Offset::ZERO), (newest(2), starts[2])] {
        let age = i64::try_from(NOW).unwrap() - kept;
        log.set_config(config(age));
        match super::retain(log, Some(Time(NOW)), end, Time(NOW)) {
            Ok(_) => {}
            Err(LogError::Corrupt { .. }) => told = true,
            Err(other) => panic!("{what}: {other}"),
        }
        // Where a batch is damaged, its segment is as old as its file: it stays.
        assert!(log.log_start() <= start, "{what}: fresh records were deleted, up to {}", log.log_start());
        assert!(told || log.log_start() == start, "{what}: old records stay, from {} on", log.log_start());
    }
    assert!(whole.iter().any(|batch| batch.header().base_offset == log.log_start()), "{what}");
    told
}

/// What became of a damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// Everything is there as it was.
    Harmless,
    /// The log, or a read, says that it is damaged.
    Told,
    /// A batch's offset or leader epoch is another one: Kafka's checksum covers neither. Its records are right.
    Header,
}

/// Opens a damaged log as a broker does after a kill, with the recovery point at its end or at zero, and reads it.
fn judge(disk: MemDisk, whole: &[RecordBatch], recovery_point: Offset, what: &str) -> Outcome {
    let env = LogEnv::new(Arc::new(disk), 16, 0);
    let end = whole.last().unwrap().header().next_offset();
    let hints = OpenHints { recovery_point, high_watermark: end, ..hints() };
    let (mut log, recovered) = match Log::open(&env, Path::new(DIR), Arc::new(small_segments()), hints) {
        Ok(opened) => opened,
        Err(LogError::UnknownTopic(_) | LogError::WrongTopic { .. }) => return Outcome::Told,
        Err(other) => panic!("{what}: {other}"),
    };
    let (mut told, mut header) = (recovered.verdict != Verdict::Sound, false);
    let mut from = log.log_start();
    while from < log.log_end() {
        match log.read_now(from, log.log_end(), 300, true) {
            Ok(read) if read.is_empty() => break,
            Ok(read) => {
                for batch in read.into_iter().flat_map(|bytes| RecordBatch::split_all(bytes).unwrap()) {
                    let checked = |batch: &RecordBatch| batch.bytes().slice(UNCHECKED..);
                    assert!(
                        whole.iter().any(|each| checked(each) == checked(&batch)),
                        "{what}: served {:?}",
                        batch.header()
                    );
                    header |= !whole.contains(&batch);
                    from = batch.header().next_offset();
                }
            }
            Err(LogError::Corrupt { .. } | LogError::Gone(_)) => {
                told = true;
                break;
            }
            Err(other) => panic!("{what}: {other}"),
        }
    }
    let missing = from < end;
    assert!(told || !missing, "{what}: records from {from} on are missing and nobody says so");
    if let Ok(Some((offset, state))) = log.latest_producer_snapshot(log.log_end()) {
        assert_eq!(state, format!("state {offset}"), "{what}");
    }
    if header {
        return Outcome::Header;
    }
    if recovered.verdict == Verdict::Sound {
        let asked = judge_times(&mut log, whole, what);
        assert!(told || !asked, "{what}: what no reader meets is damaged");
    }
    let read: Vec<RecordBatch> = whole.iter().filter(|b| b.header().next_offset() <= from).cloned().collect();
    check_epochs(&recovered.epochs, &read, what);
    if told { Outcome::Told } else { Outcome::Harmless }
}

#[test]
fn damage_to_any_file_of_a_log_is_told_or_harmless_and_never_served() {
    // R29
    let world = furnished();
    let whole = world.all();
    let end = world.log.log_end();
    let names: Vec<String> = world.disk.list(Path::new(DIR)).unwrap().into_iter().map(|entry| entry.name).collect();
    for kind in [".log", ".index", ".timeindex", ".snapshot", "leader-epoch-checkpoint", "partition.metadata"] {
        assert!(names.iter().any(|name| name.ends_with(kind)), "{kind}: {names:?}");
    }
    let mut dice = Dice(0x5eed);
    let mut outcomes: BTreeMap<Outcome, u32> = BTreeMap::new();
    for name in &names {
        for _ in 0..60 {
            let disk = world.disk.fork();
            let Some(what) = damage(&disk, &Path::new(DIR).join(name), &mut dice) else { continue };
            for recovery_point in [Offset::ZERO, end] {
                let found =
                    judge(disk.fork(), &whole, recovery_point, &format!("{what}, recovery point {recovery_point}"));
                assert!(found != Outcome::Header || name.ends_with(".log"), "{what}: {found:?}");
                *outcomes.entry(found).or_default() += 1;
            }
        }
    }
    let tried: u32 = outcomes.values().sum();
    println!("damage: {tried} flips and cuts tried in {} files: {outcomes:?}, 0 wrong records served", names.len());
    assert!(tried >= 500 && outcomes[&Outcome::Told] > 100, "{outcomes:?}");
}
