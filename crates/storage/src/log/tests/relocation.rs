//! A log that goes to another log directory while it is written to.

use std::path::PathBuf;
use std::sync::Arc;

use model::{BrokerId, DirectoryId, LeaderEpoch, Offset, PartitionIndex, ProducerId, TopicPartition, Uuid};

use proptest::prelude::*;

use super::*;
use crate::disk::{Call, Crash, FaultKind};
use crate::log::relocation::{Beside, Relocation};
use crate::log::{Aborted, AbortedTransaction, LogError};
use crate::{LogDir, LogDirs};

const ID: TopicPartition = TopicPartition { topic_id: TOPIC, partition: PartitionIndex(0) };

/// A machine with the log directories `/x` and `/y`, and the greatest log in them, as a start takes it.
struct Machine {
    disk: MemDisk,
    dirs: LogDirs,
    log: Log,
    epochs: EpochCache,
    /// In which of the two it is.
    at: usize,
    copies: usize,
}

impl Machine {
    fn new() -> Machine {
        let disk = MemDisk::new();
        let mut machine = Machine::start(&disk);
        for _ in 0..30 {
            machine.append(1, 3);
        }
        machine.checkpoint();
        machine
    }

    fn start(disk: &MemDisk) -> Machine {
        let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
        let mut ids = 1..;
        let new_id = || Ok(DirectoryId(Uuid::from_u128(ids.next().unwrap())));
        let paths = ["/x", "/y"].map(PathBuf::from);
        let dirs = LogDirs::open(&env, &paths, BrokerId(1), None, new_id).unwrap();
        let mut copies = Vec::new();
        for (at, dir) in dirs.iter().enumerate() {
            for found in dir.data().partitions().unwrap() {
                let (log, recovered) = open(dir, &found.path);
                copies.push((at, log, recovered.epochs));
            }
        }
        copies.sort_by_key(|(at, log, _)| (log.epoch_and_end(), std::cmp::Reverse(*at)));
        let count = copies.len();
        let taken = copies.pop();
        for (at, log, _) in copies {
            drop(log);
            let dir = dirs.iter().nth(at).unwrap();
            assert!(dir.data().delete_partition("topic", ID.partition).unwrap());
        }
        let (at, mut log, epochs) = taken.unwrap_or_else(|| {
            let dir = dirs.iter().next().unwrap();
            let (log, recovered) = open(dir, &dir.data().partition_path("topic", ID.partition));
            (0, log, recovered.epochs)
        });
        // What was not synced may be gone in its middle.
        log.truncate_to(log.log_end()).unwrap();
        Machine { disk: disk.clone(), dirs, log, epochs, at, copies: count }
    }

    /// The machine again after a crash.
    fn crashed(self, how: Crash) -> Machine {
        let disk = self.disk.clone();
        drop(self);
        disk.crash(how);
        Machine::start(&disk)
    }

    fn append(&mut self, epoch: i32, records: i32) {
        let batch = batch(self.log.log_end().0, epoch, records, 1_000);
        self.epochs.appended(batch.header().leader_epoch, batch.header().base_offset);
        self.log.append(&[batch]).unwrap();
    }

    fn cut(&mut self, offset: i64) {
        let end = self.log.truncate_to(Offset(offset)).unwrap();
        self.epochs.truncate_to(end);
    }

    fn checkpoint(&mut self) {
        self.log.sync_now().unwrap();
        self.log.write_epoch_checkpoint(&self.epochs).unwrap();
    }

    fn dir(&self, at: usize) -> &Arc<LogDir> {
        self.dirs.iter().nth(at).unwrap()
    }

    fn relocation(&self) -> Relocation {
        self.try_relocation().unwrap()
    }

    fn try_relocation(&self) -> Result<Relocation, LogError> {
        Relocation::open(self.dir(1 - self.at), "topic", ID, Arc::new(small_segments()))
    }

    /// One step; false where there is nothing to copy.
    fn step(&mut self, relocation: &mut Relocation) -> Result<bool, LogError> {
        match relocation.next(&self.log, &self.epochs, 10_000)? {
            Some(step) => relocation.write(step.read()?).map(|bytes| bytes > 0),
            None => Ok(false),
        }
    }

    fn swap(&mut self, relocation: &mut Relocation) -> Result<bool, LogError> {
        let from = Arc::clone(self.dir(self.at));
        let beside = Beside { epochs: &self.epochs, producers: b"producers" };
        let swapped = relocation.swap(&mut self.log, beside, &from)?;
        if swapped {
            self.at = 1 - self.at;
        }
        Ok(swapped)
    }

    fn relocate(&mut self) -> Result<(), LogError> {
        let mut relocation = self.try_relocation()?;
        while self.step(&mut relocation)? {}
        relocation.sync()?;
        assert!(self.swap(&mut relocation)?);
        Ok(())
    }

    fn all(&self) -> Vec<RecordBatch> {
        batches_from(&self.log, self.log.log_start())
    }

    fn names(&self, at: usize) -> Vec<String> {
        self.disk.list(self.dir(at).data().path()).unwrap().into_iter().map(|entry| entry.name).collect()
    }
}

fn open(dir: &LogDir, path: &std::path::Path) -> (Log, Recovered) {
    Log::open(dir.data().env(), path, Arc::new(small_segments()), hints()).unwrap()
}

fn aborted_of(log: &Log) -> Vec<AbortedTransaction> {
    match log.aborted(log.log_start(), log.log_end()).unwrap() {
        Aborted::Memory(found) => found,
        Aborted::Cold(cold) => cold.run().unwrap(),
    }
}

#[test]
fn a_log_moves_with_all_that_it_has_while_it_grows() {
    let mut machine = Machine::new();
    let aborted = |number: i64| AbortedTransaction {
        producer_id: ProducerId(number),
        first_offset: Offset(number),
        last_offset: Offset(number + 10),
        last_stable_offset: Offset(number + 11),
    };
    machine.log.note_aborted(aborted(4)).unwrap();
    let mut relocation = machine.relocation();
    for i in 0..40 {
        machine.step(&mut relocation).unwrap();
        if i < 20 {
            machine.append(2, 1);
        }
        // As a broker does: before anybody can have copied its marker.
        if i == 5 {
            machine.log.note_aborted(aborted(85)).unwrap();
        }
    }
    let before = machine.all();
    assert!(machine.names(0).contains(&"topic-0".to_owned()));
    assert!(!machine.names(1).contains(&"topic-0".to_owned()), "it has no name yet");
    assert!(machine.swap(&mut relocation).unwrap());
    assert_eq!(machine.all(), before);
    assert_eq!(aborted_of(&machine.log), [aborted(4), aborted(85)]);
    assert_eq!((machine.log.recovery_point(), machine.log.synced_end()), (Offset(110), Offset(110)));
    assert_eq!(
        machine.log.latest_producer_snapshot(Offset(110)).unwrap(),
        Some((Offset(110), b"producers"[..].into()))
    );
    assert!(machine.names(1).contains(&"topic-0".to_owned()));
    assert!(!machine.names(0).contains(&"topic-0".to_owned()));
    assert_eq!(machine.dir(0).data().free_deleted().unwrap(), 1);
    machine.append(3, 1);
    machine.checkpoint();
    let before = machine.all();
    let mut machine = machine.crashed(Crash::LoseUnsynced);
    assert_eq!((machine.all(), machine.at, machine.copies), (before.clone(), 1, 1));
    assert_eq!(aborted_of(&machine.log).len(), 2);
    // And back.
    machine.relocate().unwrap();
    assert_eq!((machine.all(), machine.at), (before, 0));
}

#[test]
fn a_log_that_is_cut_meanwhile_moves_as_it_is_in_the_end() {
    // R24
    for cut in [0, 1, 30, 60, 87, 89, 90] {
        let mut machine = Machine::new();
        let mut relocation = machine.relocation();
        while machine.step(&mut relocation).unwrap() {}
        machine.append(2, 3);
        let stale = relocation.next(&machine.log, &machine.epochs, 10_000).unwrap().unwrap();
        machine.cut(cut);
        for _ in 0..5 {
            machine.append(3, 2);
        }
        // What was read before the cut may come, or be noticed.
        let _ = stale.read().and_then(|read| relocation.write(read));
        while machine.step(&mut relocation).unwrap() {}
        assert!(machine.swap(&mut relocation).unwrap());
        let found = machine.all();
        let machine = machine.crashed(Crash::LoseUnsynced);
        assert_eq!((machine.all(), machine.at, machine.copies), (found.clone(), 1, 1), "{cut}");
        let epochs: Vec<_> = found.iter().map(|batch| batch.header().leader_epoch).collect();
        assert_eq!(epochs.iter().filter(|epoch| **epoch == LeaderEpoch(3)).count(), 5, "{cut}");
        assert!(!epochs.contains(&LeaderEpoch(2)), "{cut}");
    }
}

#[test]
fn a_log_whose_start_moves_or_that_starts_anew_moves_as_it_is_in_the_end() {
    for start in [0, 1, 3, 44, 45, 90] {
        let mut machine = Machine::new();
        let mut relocation = machine.relocation();
        let copied = machine.step(&mut relocation).unwrap();
        assert!(copied);
        machine.log.advance_log_start(Offset(start)).unwrap();
        let end = machine.log.log_end();
        super::retain(&mut machine.log, None, end, model::Time(0)).unwrap();
        machine.append(1, 1);
        while machine.step(&mut relocation).unwrap() {}
        let before = (machine.log.log_start(), machine.all());
        assert!(machine.swap(&mut relocation).unwrap());
        assert_eq!((machine.log.log_start(), machine.all()), before, "{start}");
    }
    let mut machine = Machine::new();
    let mut relocation = machine.relocation();
    while machine.step(&mut relocation).unwrap() {}
    machine.log.reset_to(Offset(7)).unwrap();
    machine.epochs = EpochCache::default();
    machine.step(&mut relocation).unwrap();
    assert!(machine.swap(&mut relocation).unwrap());
    assert_eq!((machine.log.log_start(), machine.log.log_end()), (Offset(7), Offset(7)));
    let machine = machine.crashed(Crash::LoseUnsynced);
    assert_eq!((machine.log.log_start(), machine.log.log_end(), machine.at), (Offset(7), Offset(7), 1));
}

#[test]
fn a_log_that_was_never_written_moves_without_a_directory() {
    let mut machine = Machine::start(&MemDisk::new());
    machine.relocate().unwrap();
    assert!(!machine.log.is_on_disk());
    machine.append(1, 1);
    assert!(machine.names(1).contains(&"topic-0".to_owned()));
}

#[test]
fn a_move_that_a_crash_interrupts_leaves_word_of_it_and_one_that_is_given_up_leaves_nothing() {
    let mut machine = Machine::new();
    for _ in 0..20 {
        machine.append(1, 300);
    }
    machine.checkpoint();
    let mut relocation = machine.relocation();
    assert!(machine.step(&mut relocation).unwrap());
    relocation.sync().unwrap();
    let (copied, _) = relocation.progress();
    assert!(copied > Offset(0) && copied < machine.log.log_end());
    drop(relocation);
    let mut machine = machine.crashed(Crash::LoseUnsynced);
    assert_eq!((machine.at, machine.copies), (0, 1));
    let futures = machine.dir(1).data().futures().unwrap();
    assert_eq!(futures.iter().map(|future| (future.topic.as_str(), future.id)).collect::<Vec<_>>(), [("topic", ID)]);
    // What is there may not be what the log is now.
    let mut relocation = machine.relocation();
    assert_eq!(relocation.progress().0, Offset(0));
    assert!(machine.step(&mut relocation).unwrap());
    relocation.abandon(machine.dir(1)).unwrap();
    assert_eq!(machine.dir(1).data().futures().unwrap(), []);
    assert_eq!(machine.dir(1).data().free_deleted().unwrap(), 2);
    let before = machine.all();
    machine.relocate().unwrap();
    assert_eq!((machine.all(), machine.at), (before, 1));
}

#[test]
fn a_log_that_has_the_name_already_is_not_written_over() {
    let mut machine = Machine::new();
    let path = machine.dir(1).data().partition_path("topic", ID.partition);
    let other = OpenHints { topic_id: model::TopicId(Uuid::from_u128(99)), ..hints() };
    let (mut log, _) = Log::open(machine.dir(1).data().env(), &path, Arc::new(small_segments()), other).unwrap();
    log.append(&[batch(0, 1, 1, 1_000)]).unwrap();
    assert!(matches!(machine.try_relocation(), Err(LogError::Gone(at)) if at == path));
    assert_eq!(log.read_now(Offset(0), Offset(1), 100, true).unwrap().len(), 1);
    assert!(machine.dir(1).works());
    let before = machine.all();
    machine.append(1, 1);
    assert_eq!(machine.all().len(), before.len() + 1);
}

#[test]
fn a_crash_at_any_call_of_the_disk_leaves_a_whole_log_with_the_name() {
    let world = Machine::new();
    let before = world.all();
    let (mut tried, mut places) = (0, [0, 0]);
    for call in [Call::Open, Call::Read, Call::Write, Call::SyncData, Call::SyncDir, Call::Rename, Call::Truncate] {
        for skip in 0.. {
            let start = || {
                let mut machine = Machine::start(&world.disk.fork());
                machine.checkpoint();
                machine.disk.fail(call, skip, FaultKind::Eio);
                let outcome = machine.relocate();
                (machine, outcome)
            };
            // An error of the source's removal does not undo the move.
            if start().0.disk.faults_waiting() > 0 {
                assert!(skip > 0 || call == Call::Truncate, "{call:?} is never called");
                break;
            }
            for how in [Crash::KeepAll, Crash::LoseUnsynced].into_iter().chain((0..4).map(Crash::Scatter)) {
                let case = format!("{call:?} {skip} {how:?}");
                let (machine, _) = start();
                let mut machine = machine.crashed(how);
                assert!(machine.copies >= 1, "{case}");
                assert_eq!(machine.all(), before, "{case}");
                for batch in machine.all() {
                    let header = batch.header();
                    assert_eq!(machine.epochs.epoch_of(header.base_offset), Some(header.leader_epoch), "{case}");
                }
                places[machine.at] += 1;
                // And it goes on.
                machine.checkpoint();
                machine.relocate().unwrap();
                assert_eq!(machine.all(), before, "{case}");
                tried += 1;
            }
        }
    }
    assert!(tried > 200 && places.iter().all(|count| *count > 0), "{tried} {places:?}");
}

#[test]
fn a_move_that_finds_no_descriptor_anywhere_leaves_a_log_that_can_be_moved() {
    let world = Machine::new();
    let before = world.all();
    let (mut tried, mut refused) = (0, 0);
    for call in [Call::Open, Call::List, Call::SyncDir] {
        for skip in 0.. {
            let mut machine = Machine::start(&world.disk.fork());
            machine.checkpoint();
            (0..2).for_each(|_| machine.disk.fail(call, skip, FaultKind::Emfile));
            let outcome = machine.relocate();
            if machine.disk.faults_waiting() == 2 {
                assert!(skip > 0, "{call:?} is never called");
                break;
            }
            machine.disk.forgive();
            let case = format!("{call:?} {skip} {outcome:?}");
            assert!(matches!(outcome, Ok(()) | Err(LogError::NoDescriptor(_))), "{case}");
            assert!(machine.dirs.offline().is_empty(), "{case}");
            assert_eq!(machine.all(), before, "{case}");
            machine.append(2, 1);
            machine.checkpoint();
            let whole = machine.all();
            (tried, refused) = (tried + 1, refused + u32::from(outcome.is_err()));
            if outcome.is_err() {
                machine.relocate().unwrap();
                assert_eq!(machine.all(), whole, "{case}");
            }
            let machine = machine.crashed(Crash::LoseUnsynced);
            assert_eq!(machine.all(), whole, "{case}");
        }
    }
    assert!(tried > 30 && refused > 10, "{tried} {refused}");
}

#[derive(Clone, Debug)]
enum Happening {
    Append(i32),
    /// Cuts so many records off, and a new leader begins.
    Cut(i64),
    Sync,
    Step,
    Swap,
    GiveUp,
    Crash(Crash),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (1..60).prop_map(Happening::Append),
        1 => (0i64..40).prop_map(Happening::Cut),
        2 => Just(Happening::Sync),
        6 => Just(Happening::Step),
        3 => Just(Happening::Swap),
        1 => Just(Happening::GiveUp),
        1 => prop_oneof![
            Just(Crash::KeepAll),
            Just(Crash::LoseUnsynced),
            (0u64..1000).prop_map(Crash::Scatter)
        ]
        .prop_map(Happening::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_around_moves_the_log_is_what_was_written(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut machine = Machine::start(&MemDisk::new());
        let (mut relocation, mut written, mut epoch): (Option<Relocation>, Vec<RecordBatch>, i32) = (None, Vec::new(), 1);
        let mut synced = Offset(0);
        for happening in happenings {
            match happening {
                Happening::Append(records) => {
                    machine.append(epoch, records);
                    written = machine.all();
                }
                Happening::Cut(records) => {
                    epoch += 1;
                    machine.cut((machine.log.log_end().0 - records).max(0));
                    synced = synced.min(machine.log.log_end());
                    written.retain(|batch| batch.header().next_offset() <= machine.log.log_end());
                }
                Happening::Sync => {
                    machine.checkpoint();
                    synced = machine.log.log_end();
                }
                Happening::Step => {
                    let mut under_way = relocation.take().unwrap_or_else(|| machine.relocation());
                    machine.step(&mut under_way).unwrap();
                    relocation = Some(under_way);
                }
                Happening::Swap => {
                    if let Some(mut under_way) = relocation.take() {
                        if machine.swap(&mut under_way).unwrap() {
                            // R30, R31: a move leaves nothing that is only in the page cache.
                            synced = machine.log.log_end();
                            prop_assert_eq!(machine.log.recovery_point(), synced);
                        } else {
                            relocation = Some(under_way);
                        }
                    }
                }
                Happening::GiveUp => {
                    if let Some(under_way) = relocation.take() {
                        under_way.abandon(machine.dir(1 - machine.at)).unwrap();
                    }
                }
                Happening::Crash(how) => {
                    drop(relocation.take());
                    machine = machine.crashed(how);
                    prop_assert!(machine.copies <= 1, "{} copies", machine.copies);
                    let found = machine.all();
                    prop_assert!(machine.log.log_end() >= synced, "{} of {synced} synced", machine.log.log_end());
                    prop_assert!(written.starts_with(&found));
                    written = found;
                    epoch += 1;
                }
            }
            prop_assert_eq!(machine.all(), written.clone());
        }
    }
}
