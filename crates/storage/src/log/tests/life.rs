//! A log in ordinary life.

use super::*;
use crate::log::{LogError, Read, TimeMatch, Verdict};
use model::Time;

#[test]
fn what_was_appended_is_read_back_and_found_again_after_a_clean_restart() {
    let mut world = World::new(small_segments());
    for _ in 0..30 {
        world.append_records(0, 3);
    }
    let before = world.all();
    assert_eq!(before.len(), 30);
    assert!(world.log.segments().len() > 3);
    world.checkpoint();
    world.log.settle().unwrap();
    let recovery_point = world.log.recovery_point();
    assert_eq!(recovery_point, Offset(90));
    let recovered = world.reopen(OpenHints { clean: true, recovery_point, high_watermark: Offset(90), ..hints() });
    assert_eq!(recovered, Recovered { epochs: world.epochs.clone(), verdict: Verdict::Sound });
    assert_eq!(world.epochs.entries().len(), 1);
    assert_eq!(world.all(), before);
    assert_eq!(world.log.synced_end(), Offset(90));
    world.append_records(0, 3);
    assert_eq!(world.all().len(), 31);
}

#[test]
fn an_append_of_one_batch_is_one_write() {
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 1);
    let before = world.disk.counters();
    world.append_records(0, 1000);
    let after = world.disk.counters();
    assert_eq!((after.writes - before.writes, after.opens - before.opens), (1, 0));
    let many: Vec<RecordBatch> = (0..50).map(|i| batch(world.log.log_end().0 + i, 0, 1, 5)).collect();
    world.log.append(&many).unwrap();
    assert_eq!(world.disk.counters().writes - after.writes, 1, "many batches are one vectored write");
}

#[test]
fn what_no_sync_has_covered_is_counted_in_bytes_over_a_crash_too() {
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 100);
    let first = world.log.unsynced_bytes();
    assert!(first > 100);
    let ticket = world.log.start_sync().unwrap().unwrap();
    world.append_records(0, 3);
    let second = world.log.unsynced_bytes() - first;
    assert!(second > 0);
    world.log.finish_sync(ticket.run()).unwrap();
    assert_eq!(world.log.unsynced_bytes(), second, "it came after the sync began");
    let recovery_point = world.log.recovery_point();
    let hints = OpenHints { recovery_point, ..hints() };
    world.crash_and_reopen(Crash::KeepAll, hints);
    assert_eq!(world.log.log_end(), Offset(103));
    assert!(world.log.unsynced_bytes() >= second, "an earlier process left it unsynced");
    world.log.sync_now().unwrap();
    assert_eq!(world.log.unsynced_bytes(), 0);
    world.reopen(OpenHints { clean: true, recovery_point: Offset(103), ..hints });
    assert_eq!(world.log.unsynced_bytes(), 0);
}

#[test]
fn an_empty_log_has_no_file_and_is_small() {
    let world = World::new(LogConfig::default());
    assert_eq!(world.disk.list(Path::new("/data")).unwrap(), []);
    assert_eq!((world.log.log_start(), world.log.log_end()), (Offset(0), Offset(0)));
    assert!(std::mem::size_of::<Log>() <= 512, "{}", std::mem::size_of::<Log>());
}

#[test]
fn tailing_reads_come_from_memory_and_older_ones_from_files() {
    let mut world = World::with_tail(LogConfig::default(), 500);
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    assert!(world.env.tail_bytes() <= 500);
    assert!(matches!(world.log.read(Offset(39), Offset(40), 1000, true), Ok(Read::Memory(b)) if b.len() == 1));
    let Ok(Read::Cold(cold)) = world.log.read(Offset(1), Offset(40), 1000, true) else { panic!("not cold") };
    let bytes = cold.run().unwrap();
    assert!(bytes.len() <= 1000 && bytes.len() > 800);
    assert_eq!(RecordBatch::split_all(bytes).unwrap()[0].header().base_offset, Offset(0));
    world.log.truncate_to(Offset(0)).unwrap();
    assert_eq!(world.env.tail_bytes(), 0);
}

#[test]
fn a_read_stops_below_its_bound_and_gives_one_large_batch_where_it_may() {
    for tail in [0, 1 << 20] {
        let mut world = World::with_tail(LogConfig::default(), tail);
        for _ in 0..3 {
            world.append_records(0, 10);
        }
        let read = |upto, max, one| {
            let read = world.log.read_now(Offset(5), Offset(upto), max, one).unwrap();
            read.into_iter()
                .flat_map(|b| RecordBatch::split_all(b).unwrap())
                .map(|b| b.header().base_offset.0)
                .collect()
        };
        let ends: [Vec<i64>; 5] = [
            read(30, 10_000, true),
            read(29, 10_000, true),
            read(9, 10_000, true),
            read(30, 1, true),
            read(30, 1, false),
        ];
        assert_eq!(ends, [vec![0, 10, 20], vec![0, 10], vec![], vec![0], vec![]]);
        let outside = world.log.read_now(Offset(31), Offset(40), 1, true).unwrap_err();
        assert_eq!(outside, LogError::OutOfRange { offset: Offset(31), log_start: Offset(0), log_end: Offset(30) });
        assert!(world.log.read_now(Offset(30), Offset(40), 1, true).unwrap().is_empty());
    }
}

#[test]
fn batches_that_go_back_in_offset_or_epoch_are_refused_and_holes_are_taken() {
    let mut world = World::new(LogConfig::default());
    world.append(batch(0, 3, 5, 0));
    for bad in [batch(4, 3, 1, 0), batch(5, 2, 1, 0)] {
        assert!(matches!(world.log.append(&[bad]), Err(LogError::OutOfOrder { .. })));
    }
    assert!(matches!(world.log.append(&[batch(5, 3, 2, 0), batch(6, 3, 1, 0)]), Err(LogError::OutOfOrder { .. })));
    assert_eq!(world.log.log_end(), Offset(5));
    world.append(batch(9, 4, 2, 0));
    assert_eq!(world.log.epoch_and_end(), (LeaderEpoch(4), Offset(11)));
    let far = 9 + (1i64 << 40);
    world.append(batch(far, 4, 1, 0));
    assert_eq!(world.log.read_now(Offset(10), Offset(11), 1000, true).unwrap().len(), 1);
    assert_eq!(world.all().len(), 3);
    assert_eq!(world.log.segments().len(), 2, "an offset out of an index entry's reach starts a segment");
}

#[test]
fn truncation_keeps_whole_batches_below_and_the_log_goes_on_there() {
    for tail in [0, 1 << 20] {
        let mut world = World::with_tail(small_segments(), tail);
        for _ in 0..20 {
            world.append_records(0, 3);
        }
        let all = world.all();
        assert_eq!(world.log.truncate_to(Offset(100)).unwrap(), Offset(60));
        assert_eq!(world.log.truncate_to(Offset(32)).unwrap(), Offset(30));
        assert_eq!(world.all(), all[..10]);
        assert_eq!(world.log.last_batch_header(), Some(all[9].header()));
        world.append(batch(30, 5, 4, 77));
        assert_eq!(world.log.max_timestamp().unwrap(), Some((1029, Offset(29))));
        assert_eq!(world.all().len(), 11);
        assert_eq!(world.log.truncate_to(Offset(0)).unwrap(), Offset(0));
        assert_eq!(world.log.last_batch_header(), None);
        assert_eq!(world.all(), []);
    }
}

#[test]
fn a_reset_log_is_empty_and_starts_where_it_was_told_also_after_a_restart() {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 3);
    }
    world.log.reset_to(Offset(500)).unwrap();
    assert_eq!((world.log.log_start(), world.log.log_end()), (Offset(500), Offset(500)));
    let recovered = world.crash_and_reopen(Crash::LoseUnsynced, hints());
    assert_eq!(recovered.verdict, Verdict::Sound);
    assert_eq!((world.log.log_start(), world.log.log_end()), (Offset(500), Offset(500)));
    world.append_records(1, 3);
    assert_eq!(world.all().len(), 1);
    world.log.reset_to(Offset(7)).unwrap();
    assert_eq!((world.log.log_start(), world.log.log_end(), world.all().len()), (Offset(7), Offset(7), 0));
}

#[test]
fn a_timestamp_finds_the_first_record_that_is_not_older() {
    let mut world = World::new(small_segments());
    for _ in 0..30 {
        world.append_records(2, 3);
    }
    for wanted in 900..1095 {
        let expected = (wanted <= 1089).then(|| {
            let offset = Offset((wanted - 1000).max(0));
            TimeMatch::Record { timestamp: 1000 + offset.0, offset, leader_epoch: LeaderEpoch(2) }
        });
        assert_eq!(world.log.offset_for_time(wanted).unwrap(), expected, "{wanted}");
    }
    assert_eq!(world.log.max_timestamp().unwrap(), Some((1089, Offset(89))));
    let compressed = batch_of(90, 2, 3, 5000, Codec::Gzip);
    world.append(compressed.clone());
    assert_eq!(world.log.offset_for_time(5001).unwrap(), Some(TimeMatch::Compressed(compressed)));
    world.log.advance_log_start(Offset(50)).unwrap();
    let first = world.log.offset_for_time(0).unwrap();
    assert!(matches!(first, Some(TimeMatch::Record { offset: Offset(50), .. })), "{first:?}");
}

#[test]
fn files_are_freed_in_the_order_of_their_times_also_after_the_delay_was_changed() {
    for (delays, due) in [([1000, 0], [9000, 10_000]), ([0, 1000], [9000, 10_000])] {
        let mut world = World::new(LogConfig { retention_ms: 100, ..small_segments() });
        (0..60).for_each(|_| world.append_records(0, 3));
        let mut deleted = Vec::new();
        // More of one kind than of the other: a search that takes them for sorted finds any place.
        for (delay, high_watermark) in delays.into_iter().zip([60, 180]) {
            world.log.set_config(Arc::new(LogConfig { file_delete_delay_ms: delay, ..(**world.log.config()).clone() }));
            deleted.push((
                delay,
                super::retain(&mut world.log, Some(Time(9000)), Offset(high_watermark), Time(9000)).unwrap().segments,
            ));
        }
        let late = deleted.iter().find(|(delay, _)| *delay > 0).unwrap().1;
        assert!(late > 1 && deleted.iter().all(|(_, segments)| *segments > 1), "{deleted:?}");
        assert_eq!(world.log.freeing_due(), Some(Time(due[0])));
        assert_eq!(world.log.free_deleted(Time(due[0])).unwrap(), late, "{delays:?}");
        assert_eq!(world.log.freeing_due(), Some(Time(due[1])));
        assert_eq!(world.log.free_deleted(Time(due[1] - 1)).unwrap(), late);
        assert_eq!(world.log.free_deleted(Time(due[1])).unwrap(), 0);
        assert_eq!(world.log.freeing_due(), None);
    }
}

#[test]
fn retention_by_time_size_and_log_start_spares_what_is_above_the_high_watermark() {
    let at = |ms| Time(ms);
    let mut world = World::new(LogConfig { retention_ms: 100, file_delete_delay_ms: 10, ..small_segments() });
    for _ in 0..30 {
        world.append_records(0, 3);
    }
    let segments = world.log.segments().len();
    // R39: nothing at or above the high watermark goes.
    assert_eq!(super::retain(&mut world.log, Some(at(9000)), Offset(0), at(9000)).unwrap().segments, 0);
    assert_eq!(
        super::retain(&mut world.log, None, Offset(40), at(9000)).unwrap().segments,
        0,
        "age plays no part while the clock is not believed"
    );
    let some = super::retain(&mut world.log, Some(at(9000)), Offset(40), at(9000)).unwrap();
    assert!(some.segments > 1 && world.log.log_start() <= Offset(40), "{some:?}");
    assert_eq!(world.log.segments().next().unwrap().0, world.log.log_start());
    assert_eq!(world.log.free_deleted(at(9009)).unwrap(), some.segments);
    assert_eq!(world.log.free_deleted(at(9010)).unwrap(), 0);
    let rest = super::retain(&mut world.log, Some(at(9000)), Offset(90), at(9000)).unwrap();
    assert_eq!(rest.segments + some.segments, segments);
    assert_eq!((world.log.log_start(), world.log.log_end(), world.all().len()), (Offset(90), Offset(90), 0));
    world.append_records(0, 3);
    let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
    assert_eq!(recovered.verdict, Verdict::Sound);
    assert_eq!((world.log.log_start(), world.log.log_end()), (Offset(90), Offset(93)));

    let config = LogConfig { retention_bytes: 1000, retention_ms: -1, ..small_segments() };
    let mut world = World::new(config);
    for _ in 0..30 {
        world.append_records(0, 3);
    }
    super::retain(&mut world.log, Some(at(1 << 40)), Offset(90), at(1 << 40)).unwrap();
    assert!((1000..1500).contains(&world.log.size_bytes()), "{}", world.log.size_bytes());
    world.log.advance_log_start(Offset(85)).unwrap();
    super::retain(&mut world.log, Some(at(0)), Offset(90), at(0)).unwrap();
    let bases: Vec<i64> = world.log.segments().map(|(base, _)| base.0).collect();
    assert!(bases[0] <= 85 && bases.get(1).is_none_or(|second| *second > 85), "{bases:?}");
    assert!(matches!(world.log.advance_log_start(Offset(91)), Err(LogError::OutOfRange { .. })));
}

#[test]
fn where_nothing_is_to_be_kept_the_active_segment_goes_too() {
    let mut world = World::new(LogConfig { retention_bytes: 0, retention_ms: -1, ..LogConfig::default() });
    (0..3).for_each(|_| world.append_records(0, 3));
    // R39: not what is above the high watermark.
    assert_eq!(super::retain(&mut world.log, None, Offset(8), Time(0)).unwrap().segments, 0);
    assert_eq!(super::retain(&mut world.log, None, Offset(9), Time(0)).unwrap().segments, 1);
    assert_eq!((world.log.size_bytes(), world.log.log_start()), (0, Offset(9)));
    world.append_records(0, 3);
    assert_eq!(world.all().len(), 1);
}

#[test]
fn what_was_preallocated_is_given_back_once_it_is_switched_off() {
    let config = LogConfig { preallocate: true, ..LogConfig::default() };
    let mut world = World::new(config.clone());
    world.append_records(0, 3);
    assert!(world.disk.space_taken() >= u64::from(config.segment_bytes));
    world.log.set_config(Arc::new(LogConfig::default()));
    assert!(!world.log.maybe_roll(Time(0)).unwrap());
    assert!(world.disk.space_taken() < 10_000, "{}", world.disk.space_taken());
    world.append_records(0, 3);
    assert_eq!(world.all().len(), 2);
}

#[test]
fn an_old_segment_is_rolled_by_its_first_timestamp() {
    let mut world = World::new(LogConfig { segment_ms: 50, ..LogConfig::default() });
    world.append(batch(0, 0, 1, 1000));
    assert!(!world.log.maybe_roll(Time(1050)).unwrap());
    world.append(batch(1, 0, 1, 1050));
    assert_eq!(world.log.segments().len(), 1);
    world.append(batch(2, 0, 1, 1051));
    assert_eq!(world.log.segments().len(), 2);
    assert!(world.log.maybe_roll(Time(2000)).unwrap());
    assert!(!world.log.maybe_roll(Time(9000)).unwrap(), "an empty segment does not roll");
    assert_eq!(world.log.segments().map(|(base, _)| base.0).collect::<Vec<_>>(), [0, 2, 3]);
}

#[test]
fn records_without_a_timestamp_are_as_old_as_their_file_and_roll_by_when_they_were_seen() {
    let config = LogConfig { retention_ms: 100, segment_ms: 50, ..LogConfig::default() };
    let mut world = World::new(config);
    world.disk.set_time(Time(5000));
    for base in 0..2 {
        world.append(batch(base, 0, 1, -1));
    }
    assert!(!world.log.maybe_roll(Time(5000)).unwrap());
    assert!(!world.log.maybe_roll(Time(5050)).unwrap());
    assert!(world.log.maybe_roll(Time(5051)).unwrap());
    world.disk.set_time(Time(5060));
    world.append(batch(2, 0, 1, -1));
    assert!(!world.log.maybe_roll(Time(5060)).unwrap(), "another segment has an age of its own");
    let deleted = |world: &mut World, wall| {
        super::retain(&mut world.log, Some(Time(wall)), Offset(3), Time(wall)).unwrap().segments
    };
    assert_eq!([5100, 5101, 5101].map(|wall| deleted(&mut world, wall)), [0, 1, 0]);
    world.crash_and_reopen(Crash::KeepAll, hints());
    assert_eq!([5160, 5161].map(|wall| deleted(&mut world, wall)), [0, 1]);
    assert_eq!((world.log.log_start(), world.log.log_end()), (Offset(3), Offset(3)));
}

#[test]
fn a_full_index_rolls_the_segment() {
    let mut world = World::new(LogConfig { segment_index_bytes: 16, index_interval_bytes: 0, ..LogConfig::default() });
    for _ in 0..10 {
        world.append_records(0, 1);
    }
    assert!(world.log.segments().len() >= 3, "{}", world.log.segments().len());
    assert_eq!(world.all().len(), 10);
}

#[test]
fn a_scan_shows_every_batch_from_an_offset_on() {
    let mut world = World::new(small_segments());
    for _ in 0..30 {
        world.append_records(0, 3);
    }
    let mut seen = Vec::new();
    world.log.scan(Offset(31), |header, control| seen.push((header.base_offset.0, control.is_some()))).unwrap();
    assert_eq!(seen, (10..30).map(|i| (i * 3, false)).collect::<Vec<_>>());
}

#[test]
fn the_newest_sound_producer_snapshot_is_given_and_none_outlives_a_truncation() {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 3);
    }
    for offset in [30, 45, 60] {
        world.log.write_producer_snapshot(Offset(offset), format!("state {offset}").as_bytes()).unwrap();
    }
    let latest = |world: &World, max| world.log.latest_producer_snapshot(Offset(max)).unwrap().map(|(o, _)| o.0);
    assert_eq!(world.log.latest_producer_snapshot(Offset(50)).unwrap().unwrap().1, "state 45");
    assert_eq!([latest(&world, 100), latest(&world, 44), latest(&world, 29)], [Some(60), Some(30), None]);
    // Without this the records would be gone, and a snapshot of lost records goes with them.
    world.log.sync_now().unwrap();
    world.disk.crash(Crash::LoseUnsynced);
    let path = Path::new(DIR).join("00000000000000000060.snapshot");
    let damaged = world.disk.open(&path, crate::disk::OpenMode::Existing).unwrap();
    damaged.truncate(9).unwrap();
    world.reopen(hints());
    assert_eq!(latest(&world, 100), Some(45), "a damaged one is passed over (R41)");
    world.log.reset_to(Offset(40)).unwrap();
    assert_eq!(latest(&world, 100), None);
}

#[test]
fn open_files_stay_within_the_pool_with_a_thousand_logs() {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/data")).unwrap();
    let env = LogEnv::new(Arc::new(disk.clone()), 20, 1 << 16);
    let config = Arc::new(LogConfig::default());
    let mut logs: Vec<Log> = (0..1000)
        .map(|i| Log::open(&env, Path::new(&format!("/data/t-{i}")), Arc::clone(&config), hints()).unwrap().0)
        .collect();
    assert_eq!(disk.counters().opens, 0, "an empty log opens nothing");
    for round in 0..3 {
        for log in &mut logs {
            log.append(&[batch(round, 0, 1, 0)]).unwrap();
        }
    }
    for log in &mut logs {
        log.sync_now().unwrap();
        assert_eq!(batches_from(log, Offset(0)).len(), 3);
    }
    assert!(env.open_files() <= 20);
    // Beyond the pool there is only what one call holds at a time.
    assert!(disk.counters().open_max <= 25, "{:?}", disk.counters());
    assert!(env.tail_bytes() <= 1 << 16);
}

#[test]
fn a_directory_of_another_topic_is_refused() {
    // R4: the topic was deleted and made again under the same name.
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 1);
    let other = OpenHints { topic_id: TopicId(Uuid::from_u128(8)), ..hints() };
    let refused = Log::open(&world.env, Path::new(DIR), Arc::new(LogConfig::default()), other).unwrap_err();
    assert!(matches!(refused, LogError::WrongTopic { found: TOPIC, .. }), "{refused}");
}

/// A producer snapshot in three steps, as a broker takes it.
fn take_snapshot(world: &mut World, meanwhile: impl FnOnce(&mut World)) -> bool {
    let end = world.log.log_end();
    let started = world.log.start_producer_snapshot(end, format!("state {end}").as_bytes()).unwrap();
    let done = started.expect("the log was synced").run();
    meanwhile(world);
    world.log.finish_producer_snapshot(done).unwrap()
}

fn snapshots(world: &World) -> Vec<String> {
    let entries = world.disk.list(Path::new(DIR)).unwrap();
    entries.into_iter().map(|entry| entry.name).filter(|name| name.contains("snapshot")).collect()
}

#[test]
fn a_producer_snapshot_of_records_that_were_cut_meanwhile_is_not_taken() {
    // R41: others may stand at their offsets by then.
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 10);
    assert!(
        world.log.start_producer_snapshot(Offset(10), b"").unwrap().is_none(),
        "its name would come before the log's"
    );
    world.checkpoint();
    world.append_records(0, 10);
    let taken = take_snapshot(&mut world, |world| {
        world.log.truncate_to(Offset(10)).unwrap();
        world.append_records(0, 30);
    });
    assert_eq!((taken, snapshots(&world)), (false, vec![]));
    assert!(take_snapshot(&mut world, |_| {}));
    assert_eq!(world.log.latest_producer_snapshot(Offset(40)).unwrap().unwrap(), (Offset(40), "state 40".into()));
}

#[test]
fn of_many_producer_snapshots_the_newest_stay_and_one_for_each_segment() {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 3);
        world.checkpoint();
        assert!(take_snapshot(&mut world, |_| {}));
    }
    let bases: Vec<i64> = world.log.segments().map(|(base, _)| base.0).collect();
    let kept: Vec<i64> = snapshots(&world).iter().map(|name| name[..20].parse().unwrap()).collect();
    assert!(bases.len() > 3 && kept.ends_with(&[54, 57, 60]), "{bases:?} {kept:?}");
    for pair in bases.windows(2) {
        let inside: Vec<_> = kept.iter().filter(|offset| (pair[0]..pair[1]).contains(offset)).collect();
        assert!(inside.len() == 1 || *inside[0] >= 48, "one for the segment from {}: {kept:?}", pair[0]);
    }
}
