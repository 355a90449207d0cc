//! Compaction (`R39`): what stays, what goes, where it stops, and what a crash or a change of the log leaves of it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::compression::{CompressionLevels, compress_into, decompress};
use crate::config::CleanupPolicy;
use crate::disk::{Call, FaultKind};
use crate::log::compaction::{
    CleanedSwap, Cleaning, CleaningOptions, CleaningStats, CleaningStep, HashKey, LastOfProducer,
};
use crate::log::{Aborted, AbortedTransaction, LogError, Read, Verdict};
use model::{ProducerEpoch, ProducerId, Time};
use proptest::prelude::*;

/// Offset, key and value of a record.
type Row = (i64, Option<String>, Option<String>);

fn compacted() -> LogConfig {
    LogConfig {
        cleanup_policy: CleanupPolicy { delete: false, compact: true },
        delete_retention_ms: 1000,
        file_delete_delay_ms: 0,
        ..small_segments()
    }
}

fn options(world: &World) -> CleaningOptions {
    CleaningOptions {
        now: Time(5_000),
        bound: world.log.log_end(),
        producers: BTreeMap::new(),
        dedupe_bytes: 1 << 20,
        load_factor: 0.9,
        io_buffer_bytes: 300,
        hash_key: HashKey([3, 4]),
    }
}

fn record(delta: i32, key: Option<&str>, value: Option<&str>) -> Record {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    Record {
        offset_delta: delta,
        timestamp_delta: i64::from(delta),
        key: key.map(bytes),
        value: value.map(bytes),
        headers: vec![model::Header { key: "h".to_owned(), value: None }],
    }
}

/// A batch of these keys and values at the log's end.
fn put(world: &mut World, codec: Codec, rows: &[(&str, Option<&str>)]) {
    put_as(world, codec, rows, None, 0);
}

/// The same of a producer: (id, epoch, first sequence), and with more attributes.
fn put_as(
    world: &mut World,
    codec: Codec,
    rows: &[(&str, Option<&str>)],
    producer: Option<(ProducerId, ProducerEpoch, i32)>,
    attributes: i16,
) {
    let records: Vec<Record> = (0..).zip(rows).map(|(delta, (key, value))| record(delta, Some(key), *value)).collect();
    put_records(world, codec, &records, producer, attributes);
}

fn put_records(
    world: &mut World,
    codec: Codec,
    records: &[Record],
    producer: Option<(ProducerId, ProducerEpoch, i32)>,
    attributes: i16,
) {
    let mut payload = Vec::new();
    compress_into(&mut payload, codec, &CompressionLevels::default(), &encode_records(records)).unwrap();
    put_payload(world, codec, &payload, i32::try_from(records.len()).unwrap(), producer, attributes);
}

fn put_payload(
    world: &mut World,
    codec: Codec,
    payload: &[u8],
    count: i32,
    producer: Option<(ProducerId, ProducerEpoch, i32)>,
    attributes: i16,
) {
    let base = world.log.log_end();
    let timestamp = 1000 + base.0;
    let plain = encode_batch(payload, codec, count, timestamp, timestamp + i64::from(count) - 1, producer);
    let plain = RecordBatch::split_off(&mut plain.freeze()).unwrap();
    let mut header = *plain.header();
    header.attributes |= attributes;
    (header.base_offset, header.leader_epoch) = (base, world.epochs.latest().map_or(LeaderEpoch(0), |e| e.epoch));
    let mut out = Vec::new();
    model::batch::put_batch(&mut out, &header, payload);
    world.append(RecordBatch::split_off(&mut Bytes::from(out)).unwrap());
}

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x30;

fn marker(world: &mut World, pid: i64, commit: bool) {
    let key = Bytes::from(vec![0, 0, 0, u8::from(commit)]);
    let records = [Record { key: Some(key), value: Some(Bytes::from_static(&[0; 6])), ..Record::default() }];
    put_records(world, Codec::None, &records, Some((ProducerId(pid), ProducerEpoch(0), -1)), CONTROL);
}

/// Runs a whole cleaning; None where there was nothing to do.
fn clean_with(world: &mut World, change: impl FnOnce(CleaningOptions) -> CleaningOptions) -> Option<CleaningStats> {
    let options = change(options(world));
    let wall = options.now;
    let mut stats = CleaningStats::default();
    for _ in 0..100 {
        let mut cleaning = world.log.start_cleaning(options.clone()).unwrap()?;
        run(&mut world.log, &mut cleaning, wall);
        stats = cleaning.stats();
        if world.log.finish_cleaning(&cleaning).unwrap() {
            world.log.free_deleted(wall).unwrap();
            return Some(stats);
        }
    }
    panic!("a cleaning does not come to its end: {stats:?}");
}

fn run(log: &mut Log, cleaning: &mut Cleaning, wall: Time) {
    loop {
        match cleaning.step(100).unwrap() {
            CleaningStep::More => {}
            CleaningStep::Swap(cleaned) => {
                assert!(matches!(log.swap_cleaned(*cleaned, wall), Ok(CleanedSwap::Done)));
            }
            CleaningStep::Done => return,
        }
    }
}

fn clean(world: &mut World) -> CleaningStats {
    clean_with(world, |options| options).expect("there is something to clean")
}

/// All records, as a reader decodes them.
fn rows(world: &World) -> Vec<Row> {
    let text = |bytes: Option<Bytes>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut rows = Vec::new();
    for batch in world.all() {
        let header = *batch.header();
        let Ok(payload) = decompress(&batch) else { continue };
        for record in model::RecordIter::new(payload, header.record_count).map_while(Result::ok) {
            rows.push((header.base_offset.0 + i64::from(record.offset_delta), text(record.key), text(record.value)));
        }
    }
    rows
}

/// The index of aborted transactions, as readers find it.
fn aborted(world: &World) -> Vec<AbortedTransaction> {
    match world.log.aborted(world.log.log_start(), world.log.log_end()).unwrap() {
        Aborted::Memory(found) => found,
        Aborted::Cold(cold) => cold.run().unwrap(),
    }
}

/// What the last record of each key says.
fn last_values(rows: &[Row]) -> BTreeMap<String, Option<String>> {
    rows.iter().filter_map(|(_, key, value)| Some((key.clone()?, value.clone()))).collect()
}

fn offsets(world: &World) -> Vec<i64> {
    rows(world).iter().map(|row| row.0).collect()
}

/// Ends the active segment, so that all before can be cleaned, and makes it durable.
fn seal(world: &mut World) {
    world.log.maybe_roll(Time(1 << 45)).unwrap();
    world.checkpoint();
}

fn names(world: &World) -> Vec<String> {
    world.disk.list(Path::new(DIR)).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn the_last_value_of_each_key_stays_at_its_offset_and_batches_keep_their_ranges() {
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut world = World::with_tail(compacted(), 0);
        for round in 0..12 {
            let value = round.to_string();
            let own = format!("only{round}");
            put(&mut world, codec, &[("a", Some(&value)), (&own, Some("x")), ("b", Some(&value))]);
        }
        seal(&mut world);
        let before = rows(&world);
        let ranges: BTreeMap<i64, (i64, i32, i16)> = world
            .all()
            .iter()
            .map(|b| {
                (
                    b.header().base_offset.0,
                    (b.header().last_offset().0, b.header().leader_epoch.0, b.header().attributes),
                )
            })
            .collect();
        let stats = clean(&mut world);
        assert_eq!((stats.filter.records, stats.filter.records_kept, stats.keys), (36, 14, 14));
        let after = rows(&world);
        assert_eq!(last_values(&after), last_values(&before));
        assert_eq!(after.len(), 14, "{codec:?}");
        assert!(after.iter().all(|row| before.contains(row)));
        for batch in world.all() {
            let h = batch.header();
            assert_eq!(ranges[&h.base_offset.0], (h.last_offset().0, h.leader_epoch.0, h.attributes), "{codec:?}");
        }
        assert!(stats.bytes_after < stats.bytes_before);
        assert_eq!(world.log.log_end(), Offset(36));
        // The timestamps are the records' own, and a start finds the same.
        assert_eq!(world.log.max_timestamp().unwrap().map(|(t, _)| t), Some(1035));
        let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
        assert_eq!((recovered.verdict, rows(&world)), (Verdict::Sound, after));
        assert!(names(&world).iter().all(|name| !name.ends_with(".cleaned") && !name.ends_with(".swap")));
    }
}

#[test]
fn nothing_at_or_above_a_bound_is_cleaned() {
    // R39: high watermark and last stable offset (the caller's bound), recovery point, active segment.
    let mut world = World::with_tail(compacted(), 0);
    for _ in 0..40 {
        put(&mut world, Codec::None, &[("a", Some("v")), ("b", Some("v"))]);
    }
    let before = rows(&world);
    assert_eq!(world.log.start_cleaning(options(&world)).unwrap().map(drop), None, "nothing is durable");
    world.log.sync_now().unwrap();
    assert_eq!(world.log.start_cleaning(options(&world)).unwrap().map(drop), None, "no epoch is on disk (R25)");
    world.checkpoint();
    let active = world.log.segments().last().unwrap().0;
    for bound in [0, 9, 30, 41, 79, 80] {
        let mut world = {
            let mut fork = World::on(world.disk.fork(), compacted(), 0);
            fork.checkpoint();
            fork
        };
        let bound = Offset(bound);
        let found = world.log.cleanable(Time(5000), bound).unwrap().unwrap();
        assert!(found.end <= bound.min(active), "{found:?}");
        clean_with(&mut world, |o| CleaningOptions { bound, ..o });
        let kept: Vec<Row> = before.iter().filter(|row| row.0 >= found.end.0).cloned().collect();
        assert!(rows(&world).ends_with(&kept), "bound {bound}");
        assert_eq!(last_values(&rows(&world)), last_values(&before));
        assert_eq!(rows(&world).len() < before.len(), found.dirty_bytes > 0);
    }
}

#[test]
fn lags_and_the_dirty_ratio_say_what_is_to_be_cleaned() {
    let mut world = World::with_tail(compacted(), 0);
    for _ in 0..40 {
        put(&mut world, Codec::None, &[("a", Some("v")), ("b", Some("v"))]);
    }
    seal(&mut world);
    let bound = world.log.log_end();
    let all = world.log.cleanable(Time(1000), bound).unwrap().unwrap();
    assert_eq!((all.first_dirty, all.end, all.overdue_ms), (Offset(0), Offset(80), 0));
    assert!((all.dirty_ratio() - 1.0).abs() < 1e-9);
    // Timestamps are 1000 and the offset: what is younger than the lag stays as it is.
    let with = |min, max| Arc::new(LogConfig { min_compaction_lag_ms: min, max_compaction_lag_ms: max, ..compacted() });
    world.log.set_config(with(50, 30));
    let some = world.log.cleanable(Time(1080), bound).unwrap().unwrap();
    assert!(some.end > Offset(0) && some.end <= Offset(30), "{some:?}");
    let first_batch_timestamp = 1001;
    assert_eq!(some.overdue_ms, 1080 - 30 - first_batch_timestamp);
    world.log.set_config(with(0, i64::MAX));
    clean(&mut world);
    let none = world.log.cleanable(Time(1080), bound).unwrap().unwrap();
    assert_eq!((none.first_dirty, none.dirty_bytes), (Offset(80), 0));
    for _ in 0..10 {
        put(&mut world, Codec::None, &[("a", Some("v")), ("b", Some("v"))]);
    }
    seal(&mut world);
    let again = world.log.cleanable(Time(1080), world.log.log_end()).unwrap().unwrap();
    assert_eq!(again.first_dirty, Offset(80));
    assert!(again.dirty_ratio() > 0.5 && again.dirty_ratio() < 1.0, "{again:?}");
    // A segment that must be compacted in time is closed in time.
    assert_eq!(with(0, 7).max_segment_ms(), 7);
}

#[test]
fn a_tombstone_stays_for_its_time_from_the_first_cleaning_on() {
    for codec in [Codec::None, Codec::Zstd] {
        let mut world = World::with_tail(compacted(), 0);
        put(&mut world, codec, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
        put(&mut world, codec, &[("a", None), ("b", Some("2"))]);
        seal(&mut world);
        clean(&mut world);
        assert_eq!(offsets(&world), [2, 3, 4]);
        let stamped = world.all().into_iter().find_map(|batch| batch.header().delete_horizon());
        assert_eq!(stamped, Some(6000), "cleaned at 5000, kept for 1000");
        // The records' own timestamps are as before.
        let batch = world.all().into_iter().find(|batch| batch.header().delete_horizon().is_some()).unwrap();
        let records: Vec<Record> =
            model::RecordIter::new(decompress(&batch).unwrap(), 2).collect::<Result<_, _>>().unwrap();
        let timestamps: Vec<i64> = records.iter().map(|r| batch.header().base_timestamp + r.timestamp_delta).collect();
        assert_eq!((timestamps, batch.header().max_timestamp), (vec![1003, 1004], 1004));
        // Later cleanings neither stamp it again nor take it early.
        for (now, left) in [(5_500, vec![2, 3, 4]), (5_999, vec![2, 3, 4]), (6_000, vec![2, 4])] {
            put(&mut world, Codec::None, &[("z", Some("1"))]);
            seal(&mut world);
            clean_with(&mut world, |o| CleaningOptions { now: Time(now), ..o });
            let mut found = offsets(&world);
            found.pop();
            assert_eq!(found, left, "at {now}");
        }
        assert_eq!(last_values(&rows(&world)).get("a"), None);
    }
}

#[test]
fn a_map_that_is_too_small_takes_several_passes() {
    let mut world = World::with_tail(LogConfig { segment_bytes: 20_000, ..compacted() }, 0);
    for round in 0..3 {
        for i in 0..200 {
            let keys: Vec<String> = (0..40).map(|j| format!("key{}", i * 40 + j)).collect();
            let value = round.to_string();
            put(&mut world, Codec::None, &keys.iter().map(|key| (key.as_str(), Some(&*value))).collect::<Vec<_>>());
        }
    }
    seal(&mut world);
    let before = rows(&world);
    let small = CleaningOptions { dedupe_bytes: 0, ..options(&world) };
    let mut passes = 0;
    loop {
        let mut cleaning = world.log.start_cleaning(small.clone()).unwrap().unwrap();
        run(&mut world.log, &mut cleaning, Time(5000));
        passes += 1;
        assert!(cleaning.stats().key_bytes <= 256 * 8 * 24);
        if world.log.finish_cleaning(&cleaning).unwrap() {
            break;
        }
        assert_eq!(last_values(&rows(&world)), last_values(&before), "after pass {passes}");
    }
    assert!(passes > 3, "{passes}");
    assert_eq!(last_values(&rows(&world)), last_values(&before));
    assert_eq!(rows(&world).len(), 8000);
}

#[test]
fn segments_are_grouped_and_those_that_do_not_change_are_not_written_again() {
    let mut world = World::with_tail(compacted(), 0);
    for i in 0..60 {
        put(&mut world, Codec::None, &[(&format!("key{}", i % 7), Some("some value of some length"))]);
    }
    seal(&mut world);
    let before = world.log.segments().len();
    clean(&mut world);
    let first = world.log.segments().len();
    assert!(before > 10 && first <= before, "{before} {first}");
    for _ in 0..3 {
        put(&mut world, Codec::None, &[("more", Some("x"))]);
        seal(&mut world);
        clean(&mut world);
    }
    assert!(world.log.segments().len() < before / 2, "{:?}", world.log.segments().collect::<Vec<_>>());
    assert!(world.log.segments().all(|(_, size)| size <= 500));
    // One segment that is full, of keys that nobody writes again.
    let mut world = World::with_tail(compacted(), 0);
    for i in 0..12 {
        put(&mut world, Codec::None, &[(&format!("key{i}"), Some("some value of some length"))]);
    }
    seal(&mut world);
    let writes = world.disk.counters().writes;
    let stats = clean(&mut world);
    assert_eq!((stats.bytes_written, stats.bytes_after), (0, stats.bytes_before));
    assert_eq!(world.disk.counters().writes - writes, 1, "the checkpoint only");
}

#[test]
fn the_beginning_of_a_segment_that_changes_late_is_copied_as_it_is() {
    let mut world = World::with_tail(LogConfig { segment_bytes: 700_000, index_interval_bytes: 100, ..compacted() }, 0);
    let long = "v".repeat(1000);
    for i in 0..600 {
        put(&mut world, Codec::None, &[(&format!("key{i}"), Some(&long))]);
    }
    put(&mut world, Codec::None, &[("twice", Some("1"))]);
    put(&mut world, Codec::None, &[("twice", Some("2"))]);
    put(&mut world, Codec::None, &[("end", Some("1"))]);
    seal(&mut world);
    let before = rows(&world);
    clean(&mut world);
    assert_eq!(world.log.segments().len(), 2);
    let expected: Vec<Row> = before.into_iter().filter(|row| row.0 != 600).collect();
    assert_eq!(rows(&world), expected);
    // Its index leads to the batches, also in the part that was copied.
    for offset in [0, 1, 299, 300, 599, 600, 601, 602] {
        let reads = world.disk.counters().reads;
        let read = world.log.read_now(Offset(offset), Offset(603), 10, true).unwrap();
        let batch = RecordBatch::split_all(read[0].clone()).unwrap();
        assert_eq!(batch[0].header().base_offset.0, if offset == 600 { 601 } else { offset });
        assert!(world.disk.counters().reads - reads < 25, "{}", world.disk.counters().reads - reads);
    }
}

#[test]
fn each_active_producer_keeps_its_last_batch_and_nobody_else_an_empty_one() {
    // R39, R40: the state that fences and deduplicates is derived from the log alone.
    let mut world = World::with_tail(compacted(), 0);
    let producer = |id, sequence| Some((ProducerId(id), ProducerEpoch(2), sequence));
    put_as(&mut world, Codec::Lz4, &[("a", Some("1")), ("b", Some("1"))], producer(7, 10), 0);
    put_as(&mut world, Codec::None, &[("a", Some("2")), ("b", Some("2"))], producer(7, 12), 0);
    put_as(&mut world, Codec::None, &[("a", Some("3"))], producer(8, 0), 0);
    put(&mut world, Codec::None, &[("a", Some("4")), ("b", Some("4"))]);
    put(&mut world, Codec::None, &[("c", Some("4"))]);
    seal(&mut world);
    let active = [(ProducerId(7), LastOfProducer::Data(Offset(3)))].into();
    clean_with(&mut world, |o| CleaningOptions { producers: active, ..o });
    let headers: Vec<_> = world.all().iter().map(|b| *b.header()).collect();
    let of = |id| headers.iter().filter(|h| h.producer_id.0 == id).collect::<Vec<_>>();
    assert_eq!(of(8), Vec::<&model::BatchHeader>::new());
    let [kept] = of(7)[..] else { panic!("{headers:?}") };
    assert_eq!((kept.base_offset, kept.last_offset(), kept.record_count), (Offset(2), Offset(3), 0));
    assert_eq!((kept.base_sequence, kept.last_sequence(), kept.producer_epoch.0), (12, 13, 2));
    assert_eq!(offsets(&world), [5, 6, 7]);
    // Once it is no longer active it goes with the next cleaning.
    put(&mut world, Codec::None, &[("d", Some("1"))]);
    seal(&mut world);
    clean(&mut world);
    assert!(world.all().iter().all(|batch| !batch.header().has_producer_id()));
}

#[test]
fn the_last_batch_of_a_segment_stays_so_that_no_gap_looks_like_a_loss() {
    let mut world = World::with_tail(compacted(), 0);
    for _ in 0..40 {
        put(&mut world, Codec::None, &[("a", Some("v")), ("b", Some("v"))]);
    }
    world.epochs.assign(LeaderEpoch(4), world.log.log_end());
    put_payload(&mut world, Codec::None, &encode_records(&[record(0, None, Some("keyless"))]), 1, None, 0);
    seal(&mut world);
    let end = world.log.epoch_and_end();
    assert_eq!(end, (LeaderEpoch(4), Offset(81)));
    let stats = clean(&mut world);
    assert_eq!(stats.filter.keyless_records, 1);
    assert_eq!(world.log.epoch_and_end(), end);
    assert_eq!(world.log.last_batch_header(), world.all().last().map(RecordBatch::header));
    // A start that trusts nothing goes through all of it.
    let recovered = world.crash_and_reopen(Crash::LoseUnsynced, OpenHints { high_watermark: Offset(81), ..hints() });
    assert_eq!(recovered.verdict, Verdict::Sound);
    assert_eq!(world.log.epoch_and_end(), end);
    for batch in world.all() {
        let h = batch.header();
        assert_eq!(recovered.epochs.epoch_of(h.base_offset), Some(h.leader_epoch), "R25");
    }
}

#[test]
fn a_batch_that_does_not_decode_stays_whole_and_no_tombstone_behind_it_goes() {
    let mut world = World::with_tail(compacted(), 0);
    put(&mut world, Codec::None, &[("early", None)]);
    put(&mut world, Codec::None, &[("a", Some("1"))]);
    put_payload(&mut world, Codec::Zstd, b"no frame of zstd", 3, None, 0);
    let mut bomb = Vec::new();
    compress_into(&mut bomb, Codec::Gzip, &CompressionLevels::default(), &vec![0; 65 << 20]).unwrap();
    put_payload(&mut world, Codec::Gzip, &bomb, 2, None, 0);
    put_payload(&mut world, Codec::None, b"\x02\x00", 1, None, 0);
    put(&mut world, Codec::None, &[("a", None)]);
    put(&mut world, Codec::None, &[("z", Some("1"))]);
    seal(&mut world);
    let opaque: Vec<RecordBatch> = world.all()[2..5].to_vec();
    let stats = clean(&mut world);
    assert_eq!(stats.filter.opaque_batches, 3);
    put(&mut world, Codec::None, &[("y", Some("1"))]);
    seal(&mut world);
    clean_with(&mut world, |o| CleaningOptions { now: Time(1 << 40), ..o });
    let left = last_values(&rows(&world));
    assert_eq!(left.keys().collect::<Vec<_>>(), ["a", "y", "z"], "the early tombstone is gone, the other is not");
    assert!(opaque.iter().all(|batch| world.all().contains(batch)));
}

#[test]
fn aborted_records_go_and_markers_stay_until_their_transaction_is_gone_and_their_time_is_over() {
    // R39.
    let mut world = World::with_tail(compacted(), 0);
    let of = |id, sequence| Some((ProducerId(id), ProducerEpoch(0), sequence));
    put(&mut world, Codec::None, &[("a", Some("0")), ("b", Some("0"))]);
    put_as(&mut world, Codec::None, &[("a", Some("aborted"))], of(5, 0), TRANSACTIONAL);
    put_as(&mut world, Codec::None, &[("b", Some("committed"))], of(6, 0), TRANSACTIONAL);
    marker(&mut world, 5, false);
    let entry = AbortedTransaction {
        producer_id: ProducerId(5),
        first_offset: Offset(2),
        last_offset: Offset(4),
        last_stable_offset: Offset(3),
    };
    world.log.note_aborted(entry).unwrap();
    marker(&mut world, 6, true);
    // The same producer again, this time to the good.
    put_as(&mut world, Codec::None, &[("c", Some("committed"))], of(5, 1), TRANSACTIONAL);
    marker(&mut world, 5, true);
    put(&mut world, Codec::None, &[("z", Some("1"))]);
    seal(&mut world);
    let next = |world: &mut World, now: u64| {
        clean_with(world, |o| CleaningOptions { now: Time(now), ..o }).unwrap();
        let markers: Vec<i64> =
            world.all().iter().filter(|b| b.header().is_control()).map(|b| b.header().base_offset.0).collect();
        let data: BTreeSet<String> = rows(world).into_iter().filter_map(|row| row.2).collect();
        // As readers and a start find them: those of the markers that are left.
        let told = aborted(world);
        let recovery_point = world.log.recovery_point();
        world.crash_and_reopen(Crash::LoseUnsynced, OpenHints { recovery_point, ..hints() });
        assert_eq!(aborted(world), told);
        assert_eq!(told, if markers.contains(&4) { vec![entry] } else { Vec::new() });
        put(world, Codec::None, &[("z", Some("1"))]);
        seal(world);
        (markers, data)
    };
    let all = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<BTreeSet<_>>();
    let (markers, data) = next(&mut world, 5_000);
    assert_eq!(markers, [4, 5, 7], "each marker has met a batch of its transaction");
    assert!(data.is_superset(&all(&["0", "committed"])) && !data.contains("aborted"), "{data:?}");
    assert_eq!(last_values(&rows(&world)).get("a").cloned().flatten().as_deref(), Some("0"), "the abort took nothing");
    // Nothing is left of the aborted transaction: its marker's time begins.
    assert_eq!(next(&mut world, 5_100).0, [4, 5, 7]);
    assert_eq!(next(&mut world, 6_099).0, [4, 5, 7]);
    assert_eq!(next(&mut world, 6_100).0, [5, 7]);
    // The committed ones still have records.
    assert_eq!(next(&mut world, 99_000).0, [5, 7]);
}

#[test]
fn what_a_map_did_not_reach_keeps_its_aborted_transactions() {
    // The segment in which the map was full is copied too, and its transactions with it.
    let mut world = World::with_tail(LogConfig { segment_bytes: 1_000_000, ..compacted() }, 0);
    for i in 0..60 {
        let keys: Vec<String> = (0..100).map(|j| format!("key{}", i * 100 + j)).collect();
        put(&mut world, Codec::None, &keys.iter().map(|key| (key.as_str(), Some("v"))).collect::<Vec<_>>());
    }
    put(&mut world, Codec::None, &[("key0", Some("w")), ("key1", Some("w"))]);
    let first_offset = world.log.log_end();
    let of = Some((ProducerId(5), ProducerEpoch(0), 0));
    put_as(&mut world, Codec::None, &[("key0", Some("aborted"))], of, TRANSACTIONAL);
    marker(&mut world, 5, false);
    let entry = AbortedTransaction {
        producer_id: ProducerId(5),
        first_offset,
        last_offset: first_offset + 1,
        last_stable_offset: first_offset,
    };
    world.log.note_aborted(entry).unwrap();
    put(&mut world, Codec::None, &[("z", Some("1"))]);
    seal(&mut world);
    // From here on only the files know of it.
    world.crash_and_reopen(Crash::KeepAll, OpenHints { recovery_point: world.log.log_end(), ..hints() });
    world.checkpoint();
    let mut passes = 0;
    loop {
        let small = CleaningOptions { dedupe_bytes: 0, ..options(&world) };
        let mut cleaning = world.log.start_cleaning(small).unwrap().unwrap();
        run(&mut world.log, &mut cleaning, Time(5000));
        passes += 1;
        assert_eq!(aborted(&world), [entry], "after pass {passes}");
        if world.log.finish_cleaning(&cleaning).unwrap() {
            break;
        }
    }
    assert!(passes > 1, "{passes}");
    assert!(!rows(&world).iter().any(|row| row.2.as_deref() == Some("aborted")));
    assert_eq!(last_values(&rows(&world)).get("key0").cloned().flatten().as_deref(), Some("w"));
}

#[test]
fn a_read_that_began_before_a_swap_goes_on_with_the_files_it_holds() {
    let mut world = World::with_tail(LogConfig { segment_bytes: 4000, ..compacted() }, 0);
    for i in 0..60 {
        put(&mut world, Codec::None, &[("a", Some(&i.to_string())), ("b", Some("v"))]);
    }
    seal(&mut world);
    let end = world.log.log_end();
    let cold: Vec<_> = (0..end.0)
        .map(|from| match world.log.read(Offset(from), end, 300, true).unwrap() {
            Read::Cold(cold) => (from, cold),
            Read::Memory(_) => panic!("there is no tail cache"),
        })
        .collect();
    let before: Vec<Bytes> = cold.iter().map(|(_, cold)| cold.run().unwrap()).collect();
    clean(&mut world);
    for ((from, cold), before) in cold.iter().zip(before) {
        assert_eq!(cold.run().unwrap(), before, "from {from}");
    }
    assert_eq!(offsets(&world), [118, 119]);
}

/// A log with segments of a few batches each, all of them durable, and a cleaning of it that has a copy ready.
fn with_copy_ready() -> (World, Cleaning, Box<crate::log::compaction::Cleaned>) {
    let mut world = World::with_tail(compacted(), 0);
    for i in 0..40 {
        put(&mut world, Codec::None, &[("a", Some(&i.to_string())), ("b", Some("v"))]);
    }
    world.checkpoint();
    let mut cleaning = world.log.start_cleaning(options(&world)).unwrap().unwrap();
    loop {
        match cleaning.step(1000).unwrap() {
            CleaningStep::More => {}
            CleaningStep::Swap(cleaned) => return (world, cleaning, cleaned),
            CleaningStep::Done => panic!("no copy was made"),
        }
    }
}

#[test]
fn a_log_that_was_cut_or_reset_or_whose_start_is_gone_takes_no_copy() {
    type Change = fn(&mut World);
    let cut_and_write_the_same_again: Change = |world| {
        let batches = world.all();
        let to = batches[1].header().base_offset;
        world.log.truncate_to(to).unwrap();
        world.epochs.truncate_to(to);
        for batch in &batches[1..] {
            world.append(batch.clone());
        }
    };
    let retain: Change = |world| {
        world.log.advance_log_start(Offset(20)).unwrap();
        assert!(super::retain(&mut world.log, Some(Time(5000)), Offset(80), Time(5000)).unwrap().segments > 0);
    };
    let changes: [(&str, Change); 4] = [
        ("cut", |world| assert_eq!(world.log.truncate_to(Offset(3)), Ok(Offset(2)))),
        ("cut and written", cut_and_write_the_same_again),
        ("reset", |world| world.log.reset_to(Offset(100)).unwrap()),
        ("retained", retain),
    ];
    for (name, change) in changes {
        let (mut world, mut cleaning, cleaned) = with_copy_ready();
        change(&mut world);
        let before = world.all();
        assert_eq!(world.log.swap_cleaned(*cleaned, Time(5000)).unwrap(), CleanedSwap::Outdated, "{name}");
        assert_eq!(world.all(), before, "{name}");
        // What it goes on with is outdated, or cannot even be read: both leave the log alone.
        loop {
            match cleaning.step(u64::MAX) {
                Ok(CleaningStep::More) => {}
                Ok(CleaningStep::Swap(cleaned)) => {
                    world.log.swap_cleaned(*cleaned, Time(5000)).unwrap();
                }
                Ok(CleaningStep::Done) => break,
                Err(error) => {
                    assert!(matches!(error, LogError::Gone(_) | LogError::Corrupt { .. }), "{name}: {error}");
                    break;
                }
            }
        }
        cleaning.abandon().unwrap();
        assert_eq!(last_values(&rows(&world)), last_values(&before.iter().flat_map(rows_of).collect::<Vec<_>>()));
        assert!(names(&world).iter().all(|n| !n.ends_with(".cleaned") && !n.ends_with(".swap")), "{name}");
        assert!(world.env.health().failure().is_none());
    }
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let text = |bytes: Option<Bytes>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let header = *batch.header();
    model::RecordIter::new(decompress(batch).unwrap(), header.record_count)
        .map_while(Result::ok)
        .map(|r| (header.base_offset.0 + i64::from(r.offset_delta), text(r.key), text(r.value)))
        .collect()
}

#[test]
fn a_truncation_below_what_was_cleaned_makes_it_dirty_also_after_a_crash() {
    // A tombstone that counted as clean would go while an older value stays: a deleted key would come back.
    let mut world = World::with_tail(compacted(), 0);
    for i in 0..40 {
        put(&mut world, Codec::None, &[("a", Some(&i.to_string())), ("b", Some("v"))]);
    }
    seal(&mut world);
    clean(&mut world);
    let end = world.log.log_end();
    assert_eq!(world.log.cleanable(Time(0), end).unwrap().unwrap().first_dirty, Offset(80));
    let kept = world.log.truncate_to(Offset(79)).unwrap();
    world.epochs.truncate_to(kept);
    for how in [Crash::KeepAll, Crash::LoseUnsynced] {
        let mut found = World { disk: world.disk.fork(), ..World::new(compacted()) };
        found.crash_and_reopen(how, OpenHints { recovery_point: Offset(80), ..hints() });
        put(&mut found, Codec::None, &[("k", Some("1"))]);
        put(&mut found, Codec::None, &[("k", None)]);
        put(&mut found, Codec::None, &[("z", Some("1"))]);
        seal(&mut found);
        for now in [5_000, 99_000] {
            clean_with(&mut found, |o| CleaningOptions { now: Time(now), ..o });
            put(&mut found, Codec::None, &[("z", Some("1"))]);
            seal(&mut found);
        }
        assert_eq!(last_values(&rows(&found)).get("k"), None, "{how:?}: {:?}", rows(&found));
    }
}

#[test]
fn a_corrupt_batch_stops_a_cleaning_and_changes_nothing() {
    let (mut world, cleaning, cleaned) = with_copy_ready();
    assert_eq!(world.log.swap_cleaned(*cleaned, Time(5000)), Ok(CleanedSwap::Done));
    cleaning.abandon().unwrap();
    let base = world.log.segments().nth(3).unwrap().0;
    let path = crate::log::segment::file_path(Path::new(DIR), base, crate::log::segment::FileKind::Log);
    let file = world.disk.open(&path, crate::disk::OpenMode::Existing).unwrap();
    crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(b"!")], 70).unwrap();
    let segments: Vec<_> = world.log.segments().collect();
    let mut cleaning = world.log.start_cleaning(options(&world)).unwrap().unwrap();
    let refused = loop {
        match cleaning.step(1000) {
            Ok(CleaningStep::More) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::Corrupt { .. }), "{refused}");
    cleaning.abandon().unwrap();
    assert_eq!(world.log.segments().collect::<Vec<_>>(), segments);
    assert!(world.env.health().failure().is_none());
}

#[test]
fn a_full_disk_stops_a_cleaning_and_leaves_the_log_usable() {
    for room in [0, 10, 100, 300] {
        let mut world = World::with_tail(compacted(), 0);
        for i in 0..40 {
            put(&mut world, Codec::None, &[("a", Some(&i.to_string())), ("b", Some("v"))]);
        }
        world.checkpoint();
        let before = rows(&world);
        let used: u64 = world.log.size_bytes() + 2000;
        world.disk.set_capacity(Some(used + room));
        let mut cleaning = world.log.start_cleaning(options(&world)).unwrap().unwrap();
        let stopped = loop {
            match cleaning.step(1000) {
                Ok(CleaningStep::More) => {}
                Ok(CleaningStep::Swap(cleaned)) => {
                    assert!(!matches!(world.log.swap_cleaned(*cleaned, Time(5000)), Err(LogError::DirectoryOffline(_))))
                }
                Ok(CleaningStep::Done) => break None,
                Err(error) => break Some(error),
            }
        };
        assert!(matches!(stopped, None | Some(LogError::NoSpace(_))), "{stopped:?}");
        cleaning.abandon().unwrap();
        world.disk.set_capacity(None);
        assert_eq!(last_values(&rows(&world)), last_values(&before));
        clean(&mut world);
        assert_eq!(last_values(&rows(&world)), last_values(&before));
    }
}

/// A cleaning up to its end or to the first call of the disk that fails.
fn try_clean(world: &mut World) -> Result<(), LogError> {
    let options = options(world);
    let Some(mut cleaning) = world.log.start_cleaning(options)? else { return Ok(()) };
    loop {
        match cleaning.step(500)? {
            CleaningStep::More => {}
            CleaningStep::Swap(cleaned) => {
                world.log.swap_cleaned(*cleaned, Time(5000))?;
            }
            CleaningStep::Done => break,
        }
    }
    world.log.finish_cleaning(&cleaning)?;
    world.log.free_deleted(Time(5000)).map(drop)
}

/// Values of a first cleaning, tombstones among them, and then more dirty ones; several groups of several segments.
fn half_cleaned() -> (World, Offset) {
    let mut world = World::with_tail(compacted(), 0);
    for i in 0..30 {
        let codec = if i % 5 == 0 { Codec::Lz4 } else { Codec::None };
        put(&mut world, codec, &[("a", Some(&i.to_string())), (&format!("own{}", i % 9), Some("v"))]);
    }
    seal(&mut world);
    clean(&mut world);
    for i in 0..20 {
        put(&mut world, Codec::None, &[("a", Some("new")), (&format!("own{}", i % 5), None)]);
    }
    seal(&mut world);
    let recovery_point = world.log.recovery_point();
    (world, recovery_point)
}

#[test]
fn a_crash_at_any_call_of_the_disk_leaves_the_old_or_the_new_segments() {
    // R39: never both, never a mix, whatever of the unsynced reached the disk.
    let (world, recovery_point) = half_cleaned();
    let before = rows(&world);
    let end = world.log.epoch_and_end();
    let mut tried = 0;
    let mut sizes = BTreeSet::new();
    for call in [Call::Open, Call::Write, Call::SyncData, Call::SyncDir, Call::Rename, Call::Remove, Call::Truncate] {
        for skip in 0.. {
            let start = || {
                let mut found = World { disk: world.disk.fork(), ..World::new(compacted()) };
                found.crash_and_reopen(Crash::KeepAll, OpenHints { recovery_point, ..hints() });
                found.checkpoint();
                found.disk.fail(call, skip, FaultKind::Eio);
                let outcome = try_clean(&mut found);
                (found, outcome)
            };
            if start().1.is_ok() {
                assert!(skip > 0 || call == Call::Truncate, "{call:?} is never called");
                break;
            }
            let crashes = [Crash::KeepAll, Crash::LoseUnsynced].into_iter().chain((0..6).map(Crash::Scatter));
            for how in crashes {
                // An old recovery point on disk makes the start look at all that was swapped.
                for recovery_point in [recovery_point, Offset(0)] {
                    let (mut found, _) = start();
                    let hints = OpenHints { recovery_point, high_watermark: end.1, ..hints() };
                    let recovered = found.crash_and_reopen(how, hints);
                    let case = format!("{call:?} {skip} {how:?} {recovery_point}");
                    assert_eq!(recovered.verdict, Verdict::Sound, "{case}");
                    assert_eq!(found.log.epoch_and_end(), end, "{case}");
                    let after = rows(&found);
                    assert!(after.iter().all(|row| before.contains(row)), "{case}");
                    assert!(after.windows(2).all(|pair| pair[0].0 < pair[1].0), "{case}: a mix");
                    assert_eq!(last_values(&after), last_values(&before), "{case}");
                    for batch in found.all() {
                        let epoch = recovered.epochs.epoch_of(batch.header().base_offset);
                        assert_eq!(epoch, Some(batch.header().leader_epoch), "{case}");
                    }
                    let left = names(&found);
                    assert!(left.iter().all(|n| !n.ends_with(".cleaned") && !n.ends_with(".swap")), "{case}: {left:?}");
                    sizes.insert(found.log.segments().map(|(_, size)| size).collect::<Vec<_>>());
                    // And it goes on.
                    found.checkpoint();
                    try_clean(&mut found).unwrap();
                    assert_eq!(last_values(&rows(&found)), last_values(&before), "{case}");
                    assert_eq!(rows(&found).len(), last_values(&before).len(), "{case}");
                    tried += 1;
                }
            }
        }
    }
    println!("crashes of a cleaning: {tried} tried, {} different logs, 0 values lost", sizes.len());
    assert!(tried > 500 && sizes.len() >= 3, "{tried} crashes gave {} different logs", sizes.len());
}

#[test]
fn a_crash_while_a_start_completes_a_swap_is_completed_by_the_next() {
    let (world, recovery_point) = half_cleaned();
    let before = rows(&world);
    // Up to the first rename of the swap that fails: its marker is durable, nothing is in place.
    let mut found = World { disk: world.disk.fork(), ..World::new(compacted()) };
    found.crash_and_reopen(Crash::KeepAll, OpenHints { recovery_point, ..hints() });
    found.checkpoint();
    found.disk.fail(Call::Rename, 1, FaultKind::Eio);
    assert!(try_clean(&mut found).is_err());
    assert!(names(&found).iter().any(|name| name.ends_with(".swap")), "{:?}", names(&found));
    found.disk.crash(Crash::KeepAll);
    let mut tried = 0;
    for call in [Call::SyncDir, Call::Rename, Call::Remove] {
        for skip in 0.. {
            let start = || {
                let disk = found.disk.fork();
                disk.fail(call, skip, FaultKind::Eio);
                let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
                let opened = Log::open(&env, Path::new(DIR), Arc::new(compacted()), hints()).map(drop);
                (disk, opened)
            };
            if start().1.is_ok() {
                break;
            }
            for how in [Crash::KeepAll, Crash::LoseUnsynced].into_iter().chain((0..30).map(Crash::Scatter)) {
                let mut again = World { disk: start().0, ..World::new(compacted()) };
                let recovered = again.crash_and_reopen(how, OpenHints { recovery_point, ..hints() });
                assert_eq!(recovered.verdict, Verdict::Sound);
                assert_eq!(last_values(&rows(&again)), last_values(&before), "{call:?} {skip} {how:?}");
                assert!(names(&again).iter().all(|name| !name.ends_with(".swap")));
                tried += 1;
            }
        }
    }
    println!("crashes of a start that completes a swap: {tried} tried, 0 values lost");
    assert!(tried > 200, "{tried}");
}

#[derive(Clone, Debug)]
enum Op {
    /// Key numbers, each with a value or as a tombstone; the codec.
    Append(Vec<(u8, bool)>, u8),
    Opaque,
    NewEpoch,
    Roll,
    Checkpoint,
    Clean {
        bound: i64,
        passes_small: bool,
    },
    Truncate(i64),
    AdvanceLogStart(i64),
    Later(u64),
    Reopen,
    Crash(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (prop::collection::vec((0u8..12, prop::bool::weighted(0.75)), 1..5), 0u8..5)
            .prop_map(|(rows, codec)| Op::Append(rows, codec)),
        1 => prop::bool::weighted(0.1).prop_map(|opaque| if opaque { Op::Opaque } else { Op::Roll }),
        1 => Just(Op::NewEpoch),
        2 => Just(Op::Roll),
        3 => Just(Op::Checkpoint),
        4 => (0i64..400, any::<bool>()).prop_map(|(bound, passes_small)| Op::Clean { bound, passes_small }),
        1 => (0i64..300).prop_map(Op::Truncate),
        1 => (0i64..100).prop_map(Op::AdvanceLogStart),
        2 => (0u64..900).prop_map(Op::Later),
        1 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::Crash),
    ]
}

/// What was ever appended and not cut, in order.
struct Truth {
    rows: Vec<Row>,
    epochs: Vec<(i64, i32)>,
    recovery_point: Offset,
    log_start: Offset,
    cleaned_to: Offset,
    now: u64,
    written: u64,
}

impl Truth {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            epochs: vec![(0, 0)],
            recovery_point: Offset(0),
            log_start: Offset(0),
            cleaned_to: Offset(0),
            now: 2_000,
            written: 0,
        }
    }

    /// Tombstones may be gone after a while, and nothing else.
    fn check(&self, world: &World) -> Result<(), TestCaseError> {
        let found = rows(world);
        for row in &found {
            prop_assert!(self.rows.contains(row) || row.0 < self.log_start.0, "{row:?} was never written");
        }
        prop_assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let (told, kept) = (last_values(&self.rows), last_values(&found));
        for (key, value) in &told {
            let at = self.rows.iter().rev().find(|row| row.1.as_ref() == Some(key)).map_or(0, |row| row.0);
            if at < self.log_start.0 {
                continue;
            }
            match (value, kept.get(key)) {
                (Some(value), found) => prop_assert_eq!(found, Some(&Some(value.clone())), "{}", key),
                // A deleted key never comes back.
                (None, Some(found)) => prop_assert_eq!(found, &None, "{}", key),
                (None, None) => {}
            }
        }
        for batch in world.all() {
            let header = batch.header();
            let epoch = self.epochs.iter().rev().find(|(from, _)| *from <= header.base_offset.0).map(|(_, e)| *e);
            prop_assert_eq!(epoch, Some(header.leader_epoch.0));
        }
        Ok(())
    }
}

fn clean_some(world: &mut World, truth: &mut Truth, bound: i64, passes_small: bool) -> Result<(), TestCaseError> {
    let bound = Offset(bound.min(world.log.log_end().0));
    let dedupe_bytes = if passes_small { 0 } else { 1 << 20 };
    let now = Time(truth.now);
    let found = world.log.cleanable(now, bound).unwrap().filter(|found| found.dirty_bytes > 0);
    let above: Vec<Row> = rows(world).into_iter().filter(|row| found.is_some_and(|f| row.0 >= f.end.0)).collect();
    clean_with(world, |o| CleaningOptions { bound, dedupe_bytes, now, ..o });
    truth.cleaned_to = found.map_or(truth.cleaned_to, |found| found.end.max(truth.cleaned_to));
    let after = rows(world);
    prop_assert!(after.ends_with(&above), "R39: nothing above {found:?} may go");
    let cleaned: Vec<&Row> = after
        .iter()
        .filter(|row| found.is_some_and(|f| row.0 < f.end.0))
        .filter(|row| row.0 >= truth.log_start.0)
        .collect();
    let keys: BTreeSet<_> = cleaned.iter().map(|row| &row.1).collect();
    prop_assert_eq!(keys.len(), cleaned.len(), "each key once: {:?}", cleaned);
    Ok(())
}

fn apply(world: &mut World, truth: &mut Truth, op: Op) -> Result<(), TestCaseError> {
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let epoch = truth.epochs.last().map_or(0, |(_, epoch)| *epoch);
    match op {
        Op::Append(keys, codec) => {
            let base = world.log.log_end().0;
            truth.epochs.push((base, epoch));
            world.epochs.assign(LeaderEpoch(epoch), Offset(base));
            let mut names = Vec::new();
            for (key, has_value) in keys {
                truth.written += 1;
                names.push((format!("k{key}"), has_value.then(|| truth.written.to_string())));
            }
            let rows: Vec<(&str, Option<&str>)> = names.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
            put(world, codecs[usize::from(codec)], &rows);
            truth.rows.extend((base..).zip(names).map(|(offset, (key, value))| (offset, Some(key), value)));
        }
        Op::Opaque => {
            truth.epochs.push((world.log.log_end().0, epoch));
            world.epochs.assign(LeaderEpoch(epoch), world.log.log_end());
            put_payload(world, Codec::Gzip, b"noise", 2, None, 0);
        }
        Op::NewEpoch => truth.epochs.push((world.log.log_end().0, epoch + 1)),
        Op::Roll => drop(world.log.maybe_roll(Time(1 << 45)).unwrap()),
        Op::Checkpoint => truth.recovery_point = world.checkpoint(),
        Op::Clean { bound, passes_small } => clean_some(world, truth, bound, passes_small)?,
        Op::Truncate(offset) => {
            // R24: nobody truncates below the high watermark, and nothing above it is cleaned.
            let offset = Offset(offset).max(world.log.log_start()).max(truth.cleaned_to);
            let end = world.log.truncate_to(offset).unwrap();
            world.epochs.truncate_to(end);
            truth.rows.retain(|row| row.0 < end.0);
            truth.recovery_point = truth.recovery_point.min(end);
            truth.epochs.push((end.0, epoch + 1));
            // What lies below the log's start may be gone with what was cut.
            truth.log_start = truth.log_start.max(world.log.log_start());
        }
        Op::AdvanceLogStart(offset) => {
            let active = world.log.segments().last().map_or(0, |(base, _)| base.0);
            truth.log_start = world.log.advance_log_start(Offset(offset.min(active))).unwrap();
            world.epochs.truncate_from_start(truth.log_start);
            super::retain(&mut world.log, Some(Time(truth.now)), truth.log_start, Time(truth.now)).unwrap();
            if active > 0 {
                world.disk.sync_dir(Path::new(DIR)).unwrap();
            }
        }
        Op::Later(ms) => truth.now += ms,
        Op::Reopen => {
            let verdict = world.crash_and_reopen(Crash::KeepAll, truth.hints(world)).verdict;
            prop_assert_eq!(verdict, Verdict::Sound);
        }
        Op::Crash(seed) => {
            let hints = OpenHints { high_watermark: Offset(0), ..truth.hints(world) };
            let recovered = world.crash_and_reopen(Crash::Scatter(seed), hints);
            let end = world.log.log_end();
            prop_assert!(end >= truth.recovery_point, "{recovered:?}");
            // Of what was never synced, any part may be lost: that is a loss to accept, and none of compaction's.
            world.log.truncate_to(end).unwrap();
            truth.recovery_point = world.checkpoint();
            truth.rows.retain(|row| row.0 < end.0);
            truth.epochs.push((end.0, epoch + 1));
        }
    }
    Ok(())
}

impl Truth {
    fn hints(&self, world: &World) -> OpenHints {
        OpenHints {
            recovery_point: self.recovery_point,
            log_start: self.log_start,
            high_watermark: world.log.log_end(),
            ..hints()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_each_key_keeps_its_last_value_and_each_record_its_offset(
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut world = World::with_tail(compacted(), 0);
        let mut truth = Truth::new();
        for op in ops {
            apply(&mut world, &mut truth, op)?;
        }
        truth.check(&world)?;
        let hints = truth.hints(&world);
        prop_assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints).verdict, Verdict::Sound);
        truth.check(&world)?;
    }

    /// Whatever a client gets past the checks of produce, a cleaning ends, and keeps what it does not understand.
    #[test]
    fn hostile_batches_neither_stop_nor_fool_a_cleaning(
        batches in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..80), 1i32..6, 0i16..5, any::<bool>(), 0i16..2), 1..20),
    ) {
        let mut world = World::with_tail(compacted(), 0);
        for (payload, count, codec, sound, horizon) in &batches {
            let codec = Codec::from_attributes(*codec).unwrap();
            let payload = if *sound {
                encode_records(&(0..*count).map(|i| record(i, Some("k"), None)).collect::<Vec<_>>()).to_vec()
            } else {
                payload.clone()
            };
            let codec = if *sound { Codec::None } else { codec };
            put_payload(&mut world, codec, &payload, *count, None, horizon * 0x40);
        }
        seal(&mut world);
        let before = world.all();
        let stats = clean(&mut world);
        let after = world.all();
        let kept = after.iter().filter(|batch| before.contains(batch)).count();
        prop_assert!(u64::try_from(kept).unwrap() >= stats.filter.opaque_batches);
        prop_assert_eq!(world.log.log_end(), before.last().unwrap().header().next_offset());
        let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
        prop_assert_eq!(recovered.verdict, Verdict::Sound);
    }
}
