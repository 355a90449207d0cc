//! The index of aborted transactions against what the log says, in ordinary life and over crashes.

use std::collections::BTreeMap;

use super::*;
use crate::disk::OpenMode;
use crate::log::segment::{FileKind, file_path};
use crate::log::{Aborted, AbortedTransaction, LogError};
use bytes::{Buf, BufMut, BytesMut};
use model::{BatchHeader, ClientBatches, EndMarker, ProducerEpoch, ProducerId};
use proptest::prelude::*;

/// What a broker keeps of producers, as far as it matters here: where open transactions began.
#[derive(Clone, Default)]
struct Producers {
    open: BTreeMap<i64, Offset>,
}

impl Producers {
    fn see(&mut self, header: &BatchHeader, control: Option<&RecordBatch>) -> Option<AbortedTransaction> {
        let id = header.producer_id.0;
        let Some(marker) = control.and_then(EndMarker::of) else {
            if header.is_transactional() {
                self.open.entry(id).or_insert(header.base_offset);
            }
            return None;
        };
        let first_offset = self.open.remove(&id)?;
        (!marker.commit).then(|| AbortedTransaction {
            producer_id: header.producer_id,
            first_offset,
            last_offset: header.base_offset,
            last_stable_offset: self.open.values().min().copied().unwrap_or(header.next_offset()),
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (id, first) in &self.open {
            out.put_i64(*id);
            out.put_i64(first.0);
        }
        out.to_vec()
    }

    fn decode(mut state: &[u8]) -> Producers {
        let mut open = BTreeMap::new();
        while !state.is_empty() {
            open.insert(state.get_i64(), Offset(state.get_i64()));
        }
        Producers { open }
    }
}

/// A log with transactions, and the one who keeps its producers.
struct Transactions {
    world: World,
    producers: Producers,
    recovery_point: Offset,
}

impl Transactions {
    fn new(config: LogConfig) -> Self {
        Self { world: World::new(config), producers: Producers::default(), recovery_point: Offset::ZERO }
    }

    fn append(&mut self, batch: RecordBatch) {
        let ended = self.producers.see(batch.header(), Some(&batch));
        self.world.append(batch);
        if let Some(aborted) = ended {
            self.world.log.note_aborted(aborted).unwrap();
        }
    }

    fn data(&mut self, id: i64) {
        let record = Record { value: Some(Bytes::from_static(b"record")), ..Record::default() };
        let producer = (ProducerId(id), ProducerEpoch(0), 0);
        let bytes = model::encode_transactional_batch(&encode_records(&[record]), 1, 1000, producer);
        self.append(ClientBatches::check(bytes).unwrap().stamp(self.world.log.log_end(), LeaderEpoch(0)));
    }

    fn end(&mut self, id: i64, commit: bool) {
        let marker = EndMarker { commit, coordinator_epoch: 0 }.encode((ProducerId(id), ProducerEpoch(0)), 1000);
        self.append(marker.stamp(self.world.log.log_end(), LeaderEpoch(0)));
    }

    fn abort(&mut self, id: i64) {
        self.data(id);
        self.end(id, false);
    }

    fn snapshot(&mut self) {
        let end = self.world.log.log_end();
        self.world.log.write_producer_snapshot(end, &self.producers.encode()).unwrap();
    }

    /// As a broker does after a truncation.
    fn replay(&mut self, newest: Offset) {
        let log = &mut self.world.log;
        let snapshot = log.latest_producer_snapshot(newest).unwrap();
        let (from, mut producers) = snapshot
            .map_or((log.log_start(), Producers::default()), |(offset, state)| (offset, Producers::decode(&state)));
        let mut aborted = Vec::new();
        log.scan(from, |header, control| aborted.extend(producers.see(header, control))).unwrap();
        for transaction in aborted {
            log.note_aborted(transaction).unwrap();
        }
        self.producers = producers;
    }

    /// As a broker does at its start.
    fn reopen(&mut self, how: Crash) {
        let hints = OpenHints { recovery_point: self.recovery_point, ..hints() };
        self.world.crash_and_reopen(how, hints);
        let log = &mut self.world.log;
        let newest = log.log_end().min(log.aborted_sound_to());
        let snapshot = log.latest_producer_snapshot(newest).unwrap().map_or(log.log_start(), |(offset, _)| offset);
        log.replay_aborted_from(snapshot).unwrap();
        self.replay(newest);
    }

    fn truncate(&mut self, offset: Offset) {
        let end = self.world.log.truncate_to(offset).unwrap();
        self.world.epochs.truncate_to(end);
        self.recovery_point = self.recovery_point.min(end);
        self.replay(end);
    }

    /// What the records that are there say.
    fn expected(&self) -> Vec<AbortedTransaction> {
        let mut producers = Producers::default();
        self.world.all().iter().filter_map(|batch| producers.see(batch.header(), Some(batch))).collect()
    }

    fn check(&self, expected: &[AbortedTransaction], from: i64, end: i64) {
        let from = Offset(from.clamp(self.world.log.log_start().0, self.world.log.log_end().0));
        let overlaps = |entry: &&AbortedTransaction| entry.last_offset >= from && entry.first_offset < Offset(end);
        let expected: Vec<AbortedTransaction> = expected.iter().filter(overlaps).copied().collect();
        assert_eq!(find(&self.world.log, from, Offset(end)), expected, "{from}..{end}");
    }

    fn check_all(&self) {
        let expected = self.expected();
        let end = self.world.log.log_end().0;
        for from in 0..=end {
            for to in from..=end + 1 {
                self.check(&expected, from, to);
            }
        }
    }
}

fn find(log: &Log, from: Offset, end: Offset) -> Vec<AbortedTransaction> {
    match log.aborted(from, end).unwrap() {
        Aborted::Memory(found) => found,
        Aborted::Cold(cold) => cold.run().unwrap(),
    }
}

fn index_of(world: &World, base: i64) -> Vec<u8> {
    let path = file_path(Path::new(DIR), Offset(base), FileKind::TxnIndex);
    let file = world.disk.open(&path, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    crate::disk::read_exact_at(&*file, &mut bytes, 0).unwrap();
    bytes
}

fn has_index(world: &World, base: i64) -> bool {
    world.disk.open(&file_path(Path::new(DIR), Offset(base), FileKind::TxnIndex), OpenMode::Existing).is_ok()
}

#[test]
fn an_entry_is_kafkas_and_a_segment_without_aborts_has_no_file() {
    let mut log = Transactions::new(LogConfig::default());
    log.data(5);
    log.data(258);
    log.end(5, true);
    assert!(!has_index(&log.world, 0));
    log.data(5);
    log.end(258, false);
    log.snapshot();
    let expected = "0000 0000000000000102 0000000000000001 0000000000000004 0000000000000003".replace(' ', "");
    let found: String = index_of(&log.world, 0).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, expected);
}

#[test]
fn transactions_over_several_segments_are_found_in_memory_and_in_files() {
    let mut log = Transactions::new(small_segments());
    log.data(1);
    for id in 2..30 {
        log.abort(id);
        log.data(100 + id);
        if id % 3 == 0 {
            log.end(100 + id, false);
        }
    }
    log.end(1, false);
    assert!(log.world.log.segments().len() > 5);
    log.check_all();
    log.recovery_point = log.world.checkpoint();
    log.snapshot();
    log.reopen(Crash::LoseUnsynced);
    log.check_all();
    assert!(matches!(log.world.log.aborted(Offset(0), Offset(5)), Ok(Aborted::Cold(_))));
    let end = log.world.log.log_end();
    assert!(matches!(log.world.log.aborted(end, end), Ok(Aborted::Memory(_))));
}

#[test]
fn more_aborts_than_memory_keeps_are_found_all_the_same() {
    let mut log = Transactions::new(LogConfig { segment_bytes: 20_000, ..LogConfig::default() });
    log.data(1);
    for id in 2..1500 {
        log.abort(id);
    }
    log.end(1, false);
    let expected = log.expected();
    assert_eq!(expected.len(), 1499);
    let end = log.world.log.log_end().0;
    for (from, to) in [(0, end), (0, 1), (end - 3, end), (end / 2, end / 2 + 5), (end - 700, end), (end, end)] {
        log.check(&expected, from, to);
    }
}

#[test]
fn what_retention_takes_goes_with_its_index() {
    let config = LogConfig { retention_ms: 10, file_delete_delay_ms: 0, ..small_segments() };
    let mut log = Transactions::new(config);
    for id in 1..20 {
        log.abort(id);
    }
    assert!(has_index(&log.world, 0));
    let asked = log.world.log.aborted(Offset(0), Offset(5)).unwrap();
    let middle = log.world.log.segments().nth(2).unwrap().0;
    super::retain(&mut log.world.log, Some(model::Time(2_000)), middle, model::Time(2_000)).unwrap();
    log.world.log.free_deleted(model::Time(2_000)).unwrap();
    assert!(!has_index(&log.world, 0));
    let expected = log.expected();
    log.check(&expected, middle.0, log.world.log.log_end().0);
    let too_low = log.world.log.aborted(Offset(0), Offset(5));
    assert!(matches!(too_low, Err(LogError::OutOfRange { .. })), "{too_low:?}");
    if let Aborted::Cold(cold) = asked {
        assert!(matches!(cold.run(), Err(LogError::Gone(_))));
    }
}

#[test]
fn a_damaged_or_torn_index_is_made_again_from_the_log() {
    let mut log = Transactions::new(small_segments());
    for id in 1..20 {
        log.abort(id);
    }
    log.snapshot();
    log.recovery_point = log.world.checkpoint();
    let before = index_of(&log.world, 0);
    // Version, first offset, last offset, last stable offset; nothing tells whether a producer id is the right one.
    for position in [0, 10, 18, 26] {
        let path = file_path(Path::new(DIR), Offset(0), FileKind::TxnIndex);
        let file = log.world.disk.open(&path, OpenMode::Existing).unwrap();
        crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(&[0xee])], position).unwrap();
        log.reopen(Crash::KeepAll);
        log.check_all();
        log.snapshot();
        assert_eq!(index_of(&log.world, 0), before, "damaged at {position}");
        let file = log.world.disk.open(&path, OpenMode::Existing).unwrap();
        file.truncate(u64::try_from(before.len()).unwrap() - 1).unwrap();
        log.reopen(Crash::KeepAll);
        log.check_all();
        log.snapshot();
    }
}

#[test]
fn entries_wait_in_memory_while_the_disk_is_full() {
    let mut log = Transactions::new(LogConfig::default());
    for id in 1..5 {
        log.abort(id);
    }
    // The log's own bytes fit, the index does not.
    let used = log.world.log.size_bytes();
    for id in 5..200 {
        log.data(id);
        log.world.disk.set_capacity(None);
        let marker = EndMarker { commit: false, coordinator_epoch: 0 }.encode((ProducerId(id), ProducerEpoch(0)), 1000);
        let marker = marker.stamp(log.world.log.log_end(), LeaderEpoch(0));
        let ended = log.producers.see(marker.header(), Some(&marker)).unwrap();
        log.world.append(marker);
        log.world.disk.set_capacity(Some(used));
        log.world.log.note_aborted(ended).unwrap();
        log.world.disk.set_capacity(None);
    }
    let check = |log: &Transactions| log.check(&log.expected(), 0, log.world.log.log_end().0 + 1);
    check(&log);
    log.recovery_point = log.world.checkpoint();
    log.snapshot();
    log.reopen(Crash::LoseUnsynced);
    check(&log);
    assert_eq!(log.expected().len(), 199);
}

#[derive(Clone, Debug)]
enum Step {
    Data(i64),
    End(i64, bool),
    Snapshot,
    Checkpoint,
    Roll,
    Truncate(i64),
    Reopen(Crash),
    Ask(i64, i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0i64..6).prop_map(Step::Data),
        8 => (0i64..6, any::<bool>()).prop_map(|(id, commit)| Step::End(id, commit)),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Roll),
        1 => (0i64..80).prop_map(Step::Truncate),
        2 => prop_oneof![
            Just(Crash::KeepAll),
            Just(Crash::LoseUnsynced),
            (0u64..6000).prop_map(Crash::TornAt),
            any::<u64>().prop_map(Crash::Scatter),
        ].prop_map(Step::Reopen),
        4 => (0i64..80, 0i64..80).prop_map(|(from, end)| Step::Ask(from, end)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_index_says_what_the_log_says_whatever_crashed(steps in prop::collection::vec(step(), 1..80)) {
        let mut log = Transactions::new(small_segments());
        for step in steps {
            match step {
                Step::Data(id) => log.data(id),
                Step::End(id, commit) => log.end(id, commit),
                Step::Snapshot => log.snapshot(),
                Step::Checkpoint => log.recovery_point = log.world.checkpoint(),
                Step::Roll => drop(log.world.log.maybe_roll(model::Time(1 << 40)).unwrap()),
                Step::Truncate(offset) => log.truncate(Offset(offset)),
                Step::Reopen(how) => {
                    log.reopen(how);
                    if log.world.log.lossy_from().is_some() {
                        // A scattered crash may leave valid batches behind a hole: the loss is accepted (R29).
                        log.truncate(log.world.log.log_end());
                        log.recovery_point = log.world.checkpoint();
                    }
                }
                Step::Ask(from, end) => log.check(&log.expected(), from, end),
            }
        }
        log.check_all();
    }
}
