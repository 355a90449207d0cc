//! Crashes, torn writes, power cuts, corruption and failing disks.

use super::*;
use crate::disk::{Call, FaultKind, OpenMode, replace_file, write_all_at};
use crate::log::segment::{FileKind, file_path};
use crate::log::{LogError, Verdict};
use model::Time;
use proptest::prelude::*;

fn flip(world: &World, base: i64, kind: FileKind, position: u64) {
    let file = world.disk.open(&file_path(Path::new(DIR), Offset(base), kind), OpenMode::Existing).unwrap();
    let mut byte = [0u8];
    crate::disk::read_exact_at(&*file, &mut byte, position).unwrap();
    byte[0] ^= 0x10;
    crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(&byte)], position).unwrap();
}

/// The size of the log file of a segment.
fn size(world: &World, base: i64) -> u64 {
    world.log.segments().find(|(b, _)| b.0 == base).unwrap().1
}

#[test]
fn a_last_segment_cut_at_any_byte_opens_with_the_whole_batches_before_the_cut() {
    // R29: the end is torn, nothing valid follows.
    let mut world = World::new(LogConfig { index_interval_bytes: 100, ..LogConfig::default() });
    for i in 0..8 {
        world.append_records(i / 3, 2);
    }
    let all = world.all();
    world.disk.crash(Crash::KeepAll);
    let whole = size(&world, 0);
    for cut in 0..whole {
        let disk = world.disk.fork();
        let log = disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
        log.truncate(cut).unwrap();
        let mut found = World::on(disk, world.config.clone(), 0);
        let mut end = 0;
        let kept: Vec<RecordBatch> = all
            .iter()
            .take_while(|batch| {
                end += batch.bytes().len() as u64;
                end <= cut
            })
            .cloned()
            .collect();
        assert_eq!(found.all(), kept, "cut at {cut}");
        for batch in &kept {
            let epoch = found.epochs.epoch_of(batch.header().base_offset);
            assert_eq!(epoch, Some(batch.header().leader_epoch), "R25, cut at {cut}");
        }
        // The log goes on where it was cut, and is sound then.
        found.append_records(9, 1);
        assert_eq!(found.reopen(hints()).verdict, Verdict::Sound);
        assert_eq!(found.all().len(), kept.len() + 1);
    }
    println!("a segment cut at each of {whole} bytes: 0 whole batches lost");
}

#[test]
fn a_write_torn_at_any_byte_loses_nothing_that_was_synced() {
    let mut world = World::new(small_segments());
    for _ in 0..6 {
        world.append_records(0, 2);
    }
    let recovery_point = world.checkpoint();
    let synced = world.all();
    for i in 0..6 {
        world.append_records(1 + i / 3, 2);
    }
    let all = world.all();
    let unsynced = world.disk.unsynced_bytes();
    assert!(unsynced > 400, "{unsynced}");
    for cut in 0..=unsynced {
        let disk = world.disk.fork();
        disk.crash(Crash::TornAt(cut));
        let mut found = World::on(MemDisk::new_with_data(), world.config.clone(), 0);
        found.disk = disk;
        let recovered = found.reopen(OpenHints { recovery_point, ..hints() });
        let now = found.all();
        assert!(now.len() >= synced.len() && all.starts_with(&now), "cut at {cut}: {} batches", now.len());
        assert!(!matches!(recovered.verdict, Verdict::Lossy { .. }), "cut at {cut}: {recovered:?}");
        for batch in &now {
            assert_eq!(recovered.epochs.epoch_of(batch.header().base_offset), Some(batch.header().leader_epoch));
        }
    }
    println!("a write torn at each of {unsynced} bytes: 0 synced records lost");
}

#[test]
fn a_bad_batch_with_valid_ones_behind_it_is_corruption_until_the_loss_is_accepted() {
    // R29, R78: the verdict stays over restarts.
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    world.disk.crash(Crash::KeepAll);
    let all = world.all_of_reopened();
    flip(&world, 0, FileKind::Log, all[0].bytes().len() as u64 + 70);
    for _ in 0..2 {
        let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
        assert_eq!(recovered.verdict, Verdict::Lossy { first_bad: Offset(2) });
        assert_eq!(world.log.append(&[batch(2, 0, 1, 0)]), Err(LogError::Lossy { first_bad: Offset(2) }));
        assert_eq!(world.all(), all[..1]);
    }
    assert_eq!(world.log.truncate_to(Offset(2)).unwrap(), Offset(2));
    world.append_records(0, 2);
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, Verdict::Sound);
    assert_eq!(world.all().len(), 2);
}

#[test]
fn a_power_cut_right_after_a_loss_was_accepted_leaves_the_directory_its_topics() {
    // R31: what says whose the directory is was durable, and stays so, whatever is kept of the changes since.
    for seed in 0..32 {
        let mut world = World::new(small_segments());
        for _ in 0..20 {
            world.append_records(0, 2);
        }
        let synced = OpenHints { recovery_point: world.checkpoint(), ..hints() };
        flip(&world, 0, FileKind::Log, world.all()[0].bytes().len() as u64 + 70);
        let unsynced = OpenHints { recovery_point: Offset::ZERO, ..hints() };
        let recovered = world.crash_and_reopen(Crash::KeepAll, unsynced);
        assert_eq!(recovered.verdict, Verdict::Lossy { first_bad: Offset(2) });
        world.log.truncate_to(Offset(2)).unwrap();
        world.disk.crash(Crash::Scatter(seed));
        let after = OpenHints { recovery_point: Offset(2), ..synced };
        let opened = Log::open(&world.env, Path::new(DIR), Arc::default(), after);
        assert!(opened.is_ok(), "seed {seed}: {opened:?}");
    }
}

#[test]
fn a_log_that_ends_below_its_high_watermark_or_recovery_point_is_lossy() {
    // R29: what is missing below the checkpointed high watermark was promised to somebody.
    let mut world = World::new(LogConfig::default());
    for _ in 0..5 {
        world.append_records(0, 2);
    }
    let cut = size(&world, 0) - 1;
    world.disk.crash(Crash::KeepAll);
    let log = world.disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
    log.truncate(cut).unwrap();
    for hints in [
        OpenHints { high_watermark: Offset(9), ..hints() },
        OpenHints { recovery_point: Offset(10), ..hints() },
        OpenHints { high_watermark: Offset(10), recovery_point: Offset(10), clean: true, ..hints() },
    ] {
        assert_eq!(world.reopen(hints).verdict, Verdict::Lossy { first_bad: Offset(8) });
    }
    let bytes = cut - cut / 5 * 5 + cut / 5 * 5;
    let torn = world.reopen(OpenHints { high_watermark: Offset(8), ..hints() }).verdict;
    assert!(matches!(torn, Verdict::TruncatedTail { from: Offset(8), bytes: b } if b > 0 && b < bytes), "{torn:?}");
    world.disk.remove_dir_all(Path::new(DIR)).unwrap();
    let gone = world.reopen(OpenHints { high_watermark: Offset(8), ..hints() }).verdict;
    assert_eq!(gone, Verdict::Lossy { first_bad: Offset(0) });
}

#[test]
fn the_end_of_a_segment_that_is_missing_before_the_next_one_is_noticed() {
    // The page cache wrote back the newer segment only: a hole that no leader ever made.
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    world.disk.crash(Crash::KeepAll);
    let all = world.all_of_reopened();
    let first = all.iter().take_while(|batch| batch.header().base_offset < world.log.segments().nth(1).unwrap().0);
    let (count, last) = first.enumerate().last().unwrap();
    let log = world.disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
    log.truncate(size(&world, 0) - last.bytes().len() as u64).unwrap();
    let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
    assert_eq!(recovered.verdict, Verdict::Lossy { first_bad: last.header().base_offset });
    assert_eq!(world.all(), all[..count]);
}

#[test]
fn a_power_cut_after_a_loss_was_accepted_leaves_the_directory_its_topic() {
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 2);
    let recovery_point = world.checkpoint();
    let lossy = OpenHints { recovery_point, high_watermark: Offset(9), ..hints() };
    assert!(matches!(world.crash_and_reopen(Crash::KeepAll, lossy).verdict, Verdict::Lossy { .. }));
    assert_eq!(world.log.truncate_to(Offset(2)), Ok(Offset(2)));
    for seed in 0..100 {
        let mut found = World { disk: world.disk.fork(), ..World::new(LogConfig::default()) };
        let recovered = found.crash_and_reopen(Crash::Scatter(seed), OpenHints { recovery_point, ..hints() });
        assert_eq!((recovered.verdict, found.all().len()), (Verdict::Sound, 1), "{seed}");
    }
}

#[test]
fn zeros_and_noise_behind_the_last_batch_are_cut_off() {
    for tail in [vec![0u8; 5000], (0..5000u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()] {
        let mut world = World::new(LogConfig::default());
        world.append_records(0, 2);
        let end = size(&world, 0);
        world.disk.crash(Crash::KeepAll);
        let log = world.disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
        crate::disk::write_all_at(&*log, &mut [std::io::IoSlice::new(&tail)], end).unwrap();
        let recovered = world.reopen(hints());
        assert_eq!(recovered.verdict, Verdict::TruncatedTail { from: Offset(2), bytes: 5000 });
        assert_eq!(world.reopen(hints()).verdict, Verdict::Sound);
    }
}

#[test]
fn only_what_follows_the_recovery_point_is_read() {
    let mut world = World::new(LogConfig { segment_bytes: 5000, index_interval_bytes: 500, ..LogConfig::default() });
    for _ in 0..400 {
        world.append_records(0, 2);
    }
    let recovery_point = world.checkpoint();
    // Corruption below the recovery point is not looked at by recovery, and found by who reads it.
    world.disk.crash(Crash::KeepAll);
    flip(&world, 0, FileKind::Log, 80);
    let before = world.disk.counters().reads;
    let recovered = world.reopen(OpenHints { recovery_point, high_watermark: recovery_point, ..hints() });
    assert_eq!(recovered.verdict, Verdict::Sound);
    assert!(world.disk.counters().reads - before < 40, "{}", world.disk.counters().reads - before);
    let refused = world.log.read_now(Offset(0), Offset(10), 1000, true).unwrap_err();
    assert!(matches!(refused, LogError::Corrupt { position: 0, .. }), "{refused}");
}

#[test]
fn lost_or_damaged_indexes_change_no_answer() {
    let mut world = World::new(LogConfig { segment_bytes: 3000, index_interval_bytes: 100, ..LogConfig::default() });
    for _ in 0..100 {
        world.append_records(0, 2);
    }
    let recovery_point = world.checkpoint();
    world.log.settle().unwrap();
    world.disk.crash(Crash::KeepAll);
    let all = world.all_of_reopened();
    let bases: Vec<Offset> = world.log.segments().map(|(base, _)| base).collect();
    for damage in 0..5u8 {
        for clean in [false, true] {
            let mut found = World { disk: world.disk.fork(), ..World::new(world.config.clone()) };
            for base in &bases {
                for kind in [FileKind::Index, FileKind::TimeIndex] {
                    let path = file_path(Path::new(DIR), *base, kind);
                    let file = found.disk.open(&path, OpenMode::Existing).unwrap();
                    match damage {
                        0 => found.disk.remove_file(&path).unwrap(),
                        1 => file.truncate(0).unwrap(),
                        2 => file.truncate(file.size().unwrap() / 2 + 3).unwrap(),
                        3 if kind == FileKind::Index => {
                            let size = file.size().unwrap();
                            file.truncate(0).unwrap();
                            file.truncate(size).unwrap();
                        }
                        4 if kind == FileKind::Index => {
                            let noise = vec![0x5a; 4096];
                            crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(&noise)], 0).unwrap();
                        }
                        _ => {}
                    }
                }
            }
            let recovered = found.reopen(OpenHints { recovery_point, clean, high_watermark: Offset(200), ..hints() });
            assert_eq!(recovered.verdict, Verdict::Sound, "{damage} {clean}");
            for from in (0..200).step_by(7) {
                let batches = batches_from(&found.log, Offset(from));
                assert_eq!(batches, all[usize::try_from(from / 2).unwrap()..], "{damage} {clean} {from}");
            }
            assert_eq!(found.log.max_timestamp().unwrap(), Some((1199, Offset(199))), "{damage} {clean}");
        }
    }
}

#[test]
fn the_recovery_point_never_passes_an_epoch_that_is_not_on_disk() {
    // R25.
    let mut world = World::new(LogConfig::default());
    world.append_records(1, 5);
    world.log.sync_now().unwrap();
    assert_eq!((world.log.synced_end(), world.log.recovery_point()), (Offset(5), Offset(0)));
    world.log.write_epoch_checkpoint(&world.epochs).unwrap();
    assert_eq!(world.log.recovery_point(), Offset(5));
    world.append_records(1, 5);
    world.append_records(3, 5);
    world.log.sync_now().unwrap();
    assert_eq!((world.log.synced_end(), world.log.recovery_point()), (Offset(15), Offset(10)));
    // A checkpoint that was started before the append does not free it.
    let early = world.log.start_epoch_checkpoint(&world.epochs).unwrap().unwrap();
    world.append_records(4, 5);
    world.log.sync_now().unwrap();
    world.log.finish_epoch_checkpoint(early.run()).unwrap();
    assert_eq!(world.log.recovery_point(), Offset(10));
    world.log.write_epoch_checkpoint(&world.epochs).unwrap();
    assert_eq!(world.log.recovery_point(), Offset(20));
    // A recordless epoch that an older one overtakes: the checkpoint must be told again.
    world.log.truncate_to(Offset(15)).unwrap();
    world.epochs.truncate_to(Offset(15));
    world.append_records(3, 5);
    world.log.sync_now().unwrap();
    assert_eq!(world.log.recovery_point(), Offset(15));
    let recovered = world.crash_and_reopen(Crash::LoseUnsynced, OpenHints { recovery_point: Offset(15), ..hints() });
    let told: Vec<(i32, i64)> = recovered.epochs.entries().iter().map(|e| (e.epoch.0, e.start.0)).collect();
    assert_eq!(told, [(1, 0), (3, 10)]);
}

#[test]
fn a_lost_or_damaged_epoch_checkpoint_is_rebuilt_from_the_batches() {
    // R25, and a damaged checkpoint is a hint lost.
    for damage in [&b""[..], b"0\n1\n7 0\n", b"0\n2\n1 0\n", b"noise"] {
        let mut world = World::new(small_segments());
        for i in 0..12 {
            world.append_records(i / 4, 3);
        }
        let recovery_point = world.checkpoint();
        let epochs = world.epochs.clone();
        let path = Path::new(DIR).join("leader-epoch-checkpoint");
        crate::disk::replace_file(&world.disk, &path, damage).unwrap();
        let recovered = world.crash_and_reopen(Crash::LoseUnsynced, OpenHints { recovery_point, ..hints() });
        assert_eq!(recovered, Recovered { epochs, verdict: Verdict::Sound });
        assert_eq!(world.log.recovery_point(), recovery_point);
    }
}

#[test]
fn a_truncation_below_the_recovery_point_makes_recovery_look_again() {
    let mut world = World::new(LogConfig::default());
    for _ in 0..10 {
        world.append_records(0, 2);
    }
    let recovery_point = world.checkpoint();
    assert_eq!(recovery_point, Offset(20));
    world.log.truncate_to(Offset(6)).unwrap();
    world.epochs.truncate_to(Offset(6));
    for _ in 0..10 {
        world.append_records(1, 2);
    }
    let end = world.disk.unsynced_bytes();
    let hints = OpenHints { recovery_point, ..hints() };
    // The checkpoint on disk still says 20, and what is there below 20 was never synced.
    for cut in [end / 2, end / 2 + 1, end - 1] {
        let mut found = World { disk: world.disk.fork(), ..World::new(world.config.clone()) };
        let recovered = found.crash_and_reopen(Crash::TornAt(cut), hints);
        assert!(!matches!(recovered.verdict, Verdict::Lossy { .. }), "{recovered:?}");
        assert!(world.all().starts_with(&found.all()) && found.all().len() >= 3);
    }
    // Once the recovery point has passed the old one, the note is gone.
    world.checkpoint();
    assert_eq!(world.log.recovery_point(), Offset(26));
    let names = world.disk.list(Path::new(DIR)).unwrap();
    assert!(names.iter().all(|entry| entry.name != "truncation-checkpoint"), "{names:?}");
}

#[test]
fn a_failed_sync_ends_the_directory_and_is_never_tried_again() {
    // R30.
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 2);
    world.log.sync_now().unwrap();
    world.append_records(0, 2);
    world.disk.fail(Call::SyncData, 0, FaultKind::Eio);
    let ticket = world.log.start_sync().unwrap().unwrap();
    assert!(world.log.start_sync().unwrap().is_none(), "one sync of a log at a time");
    let syncs = world.disk.counters().data_syncs;
    assert!(matches!(world.log.finish_sync(ticket.run()), Err(LogError::DirectoryOffline(_))));
    assert_eq!(world.log.synced_end(), Offset(2));
    assert!(matches!(world.log.sync_now(), Err(LogError::DirectoryOffline(_))));
    assert!(matches!(world.log.append(&[batch(4, 0, 1, 0)]), Err(LogError::DirectoryOffline(_))));
    assert!(matches!(world.log.read_now(Offset(0), Offset(1), 1, true), Err(LogError::DirectoryOffline(_))));
    assert_eq!(world.disk.counters().data_syncs, syncs + 1);
    let ballast = crate::reserve::Ballast::new(Arc::new(world.disk.clone()), Path::new("/data"));
    let other_directory = world.env.for_directory(ballast);
    let (other, _) = Log::open(&other_directory, Path::new("/data/u-0"), Arc::default(), hints()).unwrap();
    assert!(other.read_now(Offset(0), Offset(0), 1, true).is_ok(), "another directory goes on");
}

#[test]
fn an_append_on_a_full_disk_changes_nothing_and_works_again_with_space() {
    // R30, without taking the directory offline: nothing of the failed append stays.
    let mut world = World::new(small_segments());
    for _ in 0..3 {
        world.append_records(0, 2);
    }
    let before = world.all();
    let used = world.log.size_bytes() + 43;
    for room in [0, 1, 50, 200, 400, 700] {
        world.disk.set_capacity(Some(used + room));
        let many: Vec<RecordBatch> = (0..12).map(|i| batch(6 + i, 1, 1, 5)).collect();
        let refused = world.log.append(&many);
        assert!(matches!(refused, Err(LogError::NoSpace(_))), "{room}: {refused:?}");
        assert_eq!((world.all(), world.log.log_end()), (before.clone(), Offset(6)), "{room}");
    }
    world.disk.set_capacity(None);
    for _ in 0..5 {
        world.append_records(1, 2);
    }
    world.checkpoint();
    let recovered = world.crash_and_reopen(Crash::LoseUnsynced, hints());
    assert_eq!((recovered.verdict, world.all().len()), (Verdict::Sound, 8));
}

#[test]
fn a_short_write_is_completed_and_an_io_error_ends_the_directory() {
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 2);
    world.disk.fail(Call::Write, 0, FaultKind::ShortWrite(7));
    world.append_records(0, 2);
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, Verdict::Sound);
    assert_eq!(world.all().len(), 2);
    world.disk.fail(Call::Write, 0, FaultKind::Eio);
    assert!(matches!(world.log.append(&[batch(4, 0, 1, 0)]), Err(LogError::DirectoryOffline(_))));
    let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
    assert_eq!((recovered.verdict, world.all().len()), (Verdict::Sound, 2));
}

#[test]
fn files_that_do_not_say_whose_they_are_are_not_taken_for_ours() {
    // R4: a crash before the first sync may leave records without partition.metadata.
    let mut world = World::new(LogConfig::default());
    world.append_records(0, 2);
    let metadata = Path::new(DIR).join("partition.metadata");
    world.disk.remove_file(&metadata).unwrap();
    let fork = world.disk.fork();
    let recovered = world.crash_and_reopen(Crash::KeepAll, hints());
    assert!(matches!(recovered.verdict, Verdict::TruncatedTail { from: Offset(0), .. }), "{recovered:?}");
    assert_eq!(world.all(), []);
    world.append_records(0, 1);
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, Verdict::Sound);

    world.disk = fork;
    let lossy = OpenHints { high_watermark: Offset(1), ..hints() };
    for _ in 0..2 {
        assert_eq!(world.crash_and_reopen(Crash::KeepAll, lossy).verdict, Verdict::Lossy { first_bad: Offset(0) });
    }
    let synced = OpenHints { recovery_point: Offset(2), ..hints() };
    let refused = Log::open(&world.env, Path::new(DIR), Arc::default(), synced).unwrap_err();
    assert!(matches!(refused, LogError::UnknownTopic(_)));
    world.log.truncate_to(Offset(0)).unwrap();
    world.append_records(0, 1);
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, Verdict::Sound);
}

impl World {
    /// All batches as a new process reads them; the verdict must be sound.
    fn all_of_reopened(&mut self) -> Vec<RecordBatch> {
        assert_eq!(self.reopen(hints()).verdict, Verdict::Sound);
        self.all()
    }
}

impl MemDisk {
    fn new_with_data() -> MemDisk {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/data")).unwrap();
        disk
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// R29, R31: whatever of the unsynced writes, names and truncations a power cut keeps, nothing that `finish_sync`
    /// reported is lost, and what is there is a prefix of what was appended.
    #[test]
    fn a_power_cut_never_loses_what_was_synced(
        steps in prop::collection::vec((0u8..10, 1i32..4), 1..60),
        seeds in prop::collection::vec(any::<u64>(), 4),
    ) {
        let mut world = World::new(small_segments());
        let (mut epoch, mut recovery_point) = (0, Offset::ZERO);
        let (mut shadow, mut synced) = (Vec::<RecordBatch>::new(), Offset::ZERO);
        for (step, n) in steps {
            match step {
                0..=4 => {
                    let batch = batch(world.log.log_end().0, epoch, n, 1000);
                    shadow.push(batch.clone());
                    world.append(batch);
                }
                5 => epoch += 1,
                6 => synced = world.log.sync_now().unwrap(),
                7 => {
                    recovery_point = world.checkpoint();
                    synced = world.log.synced_end();
                }
                8 => {
                    let to = Offset((world.log.log_end().0 - i64::from(n) * 2).max(0));
                    if n == 3 {
                        // Its file is replaced, not cut.
                        world.log.assume_lent();
                    }
                    let end = world.log.truncate_to(to).unwrap();
                    world.epochs.truncate_to(end);
                    shadow.retain(|batch| batch.header().next_offset() <= end);
                    synced = synced.min(end);
                    epoch += 1;
                }
                _ => {
                    world.log.write_epoch_checkpoint(&world.epochs).unwrap();
                }
            }
        }
        for seed in seeds {
            let mut found = World { disk: world.disk.fork(), ..World::new(small_segments()) };
            let recovered = found.crash_and_reopen(Crash::Scatter(seed), OpenHints { recovery_point, ..hints() });
            let now = found.all();
            prop_assert!(shadow.starts_with(&now), "{recovered:?}\n{now:?}\n{shadow:?}");
            prop_assert!(found.log.log_end() >= synced, "{recovered:?}: {} < {}", found.log.log_end(), synced);
            for batch in &now {
                prop_assert_eq!(
                    recovered.epochs.epoch_of(batch.header().base_offset), Some(batch.header().leader_epoch));
            }
            // And it goes on.
            found.log.truncate_to(found.log.log_end()).unwrap();
            found.append_records(99, 2);
            found.checkpoint();
            let again = found.crash_and_reopen(Crash::LoseUnsynced, OpenHints { recovery_point, ..hints() });
            prop_assert_eq!(again.verdict, Verdict::Sound);
            prop_assert_eq!(found.all().len(), now.len() + 1);
        }
    }
}

#[test]
fn a_power_cut_while_retention_empties_a_log_leaves_it_where_it_ended() {
    for seed in 0..64 {
        let mut world = World::new(LogConfig { retention_ms: 10, ..small_segments() });
        for _ in 0..8 {
            world.append_records(0, 2);
        }
        let end = world.checkpoint();
        super::retain(&mut world.log, Some(Time(1_000_000)), end, Time(1_000_000)).unwrap();
        assert_eq!(world.log.size_bytes(), 0);
        let kept = OpenHints { recovery_point: end, high_watermark: end, ..hints() };
        let recovered = world.crash_and_reopen(Crash::Scatter(seed), kept);
        assert_eq!((recovered.verdict, world.log.log_end()), (Verdict::Sound, end), "seed {seed}");
    }
}

/// A deletion renames files; a power cut may undo any of the renames that were not synced. What comes back lies below the log
/// start that was written before, or is the end of what was deleted: a log without a hole in either case.
#[test]
fn a_power_cut_after_retention_leaves_no_hole() {
    for (seed, is_written) in (0..64).flat_map(|seed| [(seed, true), (seed, false)]) {
        let mut world = World::new(LogConfig { retention_bytes: 600, retention_ms: -1, ..small_segments() });
        (0..40).for_each(|_| world.append_records(0, 2));
        let end = world.checkpoint();
        assert!(world.log.expire(None, end).unwrap());
        let start = world.log.log_start();
        assert!(world.log.delete_below(start, is_written, end, Time(0)).unwrap().segments > 3);
        let log_start = if is_written { start } else { Offset::ZERO };
        for recovery_point in [Offset::ZERO, end] {
            let mut found = World { disk: world.disk.fork(), ..World::new(small_segments()) };
            let kept = OpenHints { recovery_point, high_watermark: end, log_start, ..hints() };
            let recovered = found.crash_and_reopen(Crash::Scatter(seed), kept);
            let what = format!("seed {seed}, written {is_written}, from {recovery_point}: {recovered:?}");
            assert_eq!((recovered.verdict, found.log.log_end()), (Verdict::Sound, end), "{what}");
            assert!(found.log.log_start() <= start && (!is_written || found.log.log_start() == start), "{what}");
            let mut expected = found.log.segments().next().unwrap().0;
            for batch in batches_from(&found.log, found.log.log_start()) {
                assert_eq!(batch.header().base_offset, expected, "{what}");
                expected = batch.header().next_offset();
            }
            assert_eq!(expected, end, "{what}");
        }
    }
}

#[test]
fn what_a_read_found_damaged_is_found_at_each_start_until_the_loss_is_accepted() {
    // R29, R78: also after a stop that was clean, which looks at nothing.
    let mut world = World::with_tail(small_segments(), 0);
    for _ in 0..40 {
        world.append_records(0, 2);
    }
    let end = world.checkpoint();
    let all = world.all();
    world.log.settle().unwrap();
    let stopped = OpenHints { recovery_point: end, high_watermark: end, clean: true, ..hints() };
    let killed = OpenHints { clean: false, ..stopped };
    flip(&world, 0, FileKind::Log, all[0].bytes().len() as u64 + 70);
    world.disk.crash(Crash::KeepAll);
    for hints in [stopped, killed] {
        assert_eq!(world.reopen(hints).verdict, Verdict::Sound, "a start looks at what follows the recovery point");
    }
    assert_eq!(
        world.log.read_now(Offset(0), end, 1 << 20, true).unwrap().concat(),
        all[0].bytes()[..],
        "what is sound"
    );
    let error = world.log.read_now(Offset(2), end, 1 << 20, true).unwrap_err();
    let LogError::Corrupt { offset, .. } = error else { panic!("{error}") };
    assert_eq!(offset, Offset(2));
    world.log.note_damage(offset).unwrap();
    for hints in [stopped, killed, stopped] {
        assert_eq!(world.crash_and_reopen(Crash::LoseUnsynced, hints).verdict, Verdict::Lossy { first_bad: Offset(2) });
        assert_eq!(world.log.settle().unwrap(), Offset(2));
    }
    world.log.truncate_to(Offset(2)).unwrap();
    for batch in &all[1..] {
        world.append(batch.clone());
    }
    world.checkpoint();
    world.log.settle().unwrap();
    assert_eq!(world.reopen(stopped).verdict, Verdict::Sound);
    assert_eq!(world.all(), all);
}

#[test]
fn a_segment_with_the_offsets_of_another_one_and_damage_in_it_is_found_lossy() {
    let mut world = World::new(small_segments());
    (0..20).for_each(|_| world.append_records(0, 2));
    let recovery_point = world.checkpoint();
    let bases: Vec<Offset> = world.log.segments().map(|(base, _)| base).collect();
    let path = |base: Offset| Path::new(DIR).join(format!("{:020}.log", base.0));
    let mut other = crate::disk::read_small_file(&world.disk, &path(bases[2]), 1 << 20).unwrap().unwrap();
    // The length of the second batch in it.
    let second = 12 + usize::from(other[11]);
    other[second + 8] = 0x7f;
    crate::disk::replace_file(&world.disk, &path(bases[0]), &other).unwrap();
    world.disk.remove_file(&Path::new(DIR).join("leader-epoch-checkpoint")).unwrap();
    let hints = OpenHints { recovery_point, high_watermark: recovery_point, ..hints() };
    for clean in [false, true] {
        let recovered = world.crash_and_reopen(Crash::KeepAll, OpenHints { clean, ..hints });
        assert!(matches!(recovered.verdict, Verdict::Lossy { .. }), "{recovered:?}");
    }
}

#[test]
fn a_log_found_lossy_at_a_start_is_found_so_after_a_clean_stop_as_well() {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    world.checkpoint();
    flip(&world, 0, FileKind::Log, world.all()[0].bytes().len() as u64 + 70);
    let lossy = Verdict::Lossy { first_bad: Offset(2) };
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, lossy);
    world.log.settle().unwrap();
    let stopped = OpenHints { recovery_point: Offset(2), high_watermark: Offset(40), clean: true, ..hints() };
    assert_eq!(world.reopen(stopped).verdict, lossy);
}

#[test]
fn a_flipped_bit_of_an_offset_is_noticed_by_who_reads_and_by_who_recovers() {
    // The checksum does not cover it: the batches around it tell.
    let mut world = World::with_tail(small_segments(), 0);
    for _ in 0..40 {
        world.append_records(0, 2);
    }
    world.checkpoint();
    let all = world.all();
    let end = world.log.log_end();
    let (base, _) = world.log.segments().nth(2).unwrap();
    for number in 0..3 {
        let first = all.iter().position(|batch| batch.header().base_offset == base).unwrap();
        let position: usize = all[first..first + number].iter().map(|batch| batch.bytes().len()).sum();
        let damaged = &all[first + number];
        for bit in 0..64 {
            let disk = world.disk.fork();
            let file = disk.open(&file_path(Path::new(DIR), base, FileKind::Log), OpenMode::Existing).unwrap();
            let mut byte = [0u8];
            let place = position as u64 + bit / 8;
            crate::disk::read_exact_at(&*file, &mut byte, place).unwrap();
            byte[0] ^= 1 << (bit % 8);
            crate::disk::write_all_at(&*file, &mut [std::io::IoSlice::new(&byte)], place).unwrap();
            let synced = OpenHints { recovery_point: end, high_watermark: end, ..hints() };
            let mut found = World::on(MemDisk::new_with_data(), world.config.clone(), 0);
            found.disk = disk;
            found.reopen(synced);
            let (mut next, mut read) = (Offset::ZERO, Vec::new());
            let error = loop {
                assert!(next < end, "batch {number}, bit {bit}: nobody noticed");
                match found.log.read_now(next, end, 200, true) {
                    Ok(bytes) => {
                        read.extend(bytes.into_iter().flat_map(|bytes| RecordBatch::split_all(bytes).unwrap()));
                        next = read.last().unwrap().header().next_offset();
                    }
                    Err(error) => break error,
                }
            };
            assert!(all.starts_with(&read), "batch {number}, bit {bit}");
            let LogError::Corrupt { offset, .. } = error else { panic!("{error}") };
            assert!(offset <= damaged.header().base_offset, "batch {number}, bit {bit}: {offset}");
            found.log.note_damage(offset).unwrap();
            let first_bad = damaged.header().base_offset;
            assert_eq!(found.reopen(synced).verdict, Verdict::Lossy { first_bad }, "batch {number}, bit {bit}");
        }
    }
}

#[test]
fn damage_that_a_start_meets_where_it_reads_the_epochs_makes_the_log_lossy() {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    let end = world.checkpoint();
    let all = world.all();
    let log = world.disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
    // A length that is none, in the second batch.
    crate::disk::write_all_at(&*log, &mut [std::io::IoSlice::new(&[0xff])], all[0].bytes().len() as u64 + 8).unwrap();
    world.disk.remove_file(&Path::new(DIR).join("leader-epoch-checkpoint")).unwrap();
    for clean in [false, true] {
        let hints = OpenHints { recovery_point: end, high_watermark: end, clean, ..hints() };
        let recovered = world.crash_and_reopen(Crash::KeepAll, hints);
        assert_eq!(recovered.verdict, Verdict::Lossy { first_bad: Offset(2) });
        assert_eq!(world.all(), all[..1]);
    }
}

/// A log of several segments, all of it synced.
fn of_several_segments() -> (World, OpenHints, Vec<RecordBatch>) {
    let mut world = World::new(small_segments());
    for _ in 0..20 {
        world.append_records(0, 2);
    }
    let hints = OpenHints { recovery_point: world.checkpoint(), ..hints() };
    world.log.settle().unwrap();
    let all = world.all();
    (world, hints, all)
}

#[test]
fn a_file_that_no_batch_vouches_for_is_not_where_the_log_ends() {
    let (world, hints, all) = of_several_segments();
    for clean in [false, true] {
        for content in [&b""[..], b"noise", &[0; 4096]] {
            let stray = file_path(Path::new(DIR), Offset(i64::MAX), FileKind::Log);
            let mut found = World::on(world.disk.fork(), world.config.clone(), 0);
            replace_file(&found.disk, &stray, content).unwrap();
            let recovered = found.reopen(OpenHints { clean, ..hints });
            assert!(matches!(recovered.verdict, Verdict::TruncatedTail { .. }), "{recovered:?}");
            assert_eq!((found.log.log_end(), found.all()), (world.log.log_end(), all.clone()));
            assert!(found.disk.open(&stray, OpenMode::ReadOnly).is_err(), "it is gone");
            found.append_records(1, 2);
            assert_eq!(found.reopen(OpenHints { clean, ..hints }).verdict, Verdict::Sound);
            assert_eq!(found.all().len(), all.len() + 1);
        }
    }
}

#[test]
fn a_segment_far_behind_the_one_before_counts_by_its_batch() {
    let (mut world, hints, _) = of_several_segments();
    world.append(batch(1 << 40, 0, 2, 0));
    for clean in [true, false] {
        assert_eq!(world.reopen(OpenHints { clean, ..hints }).verdict, Verdict::Sound);
        assert_eq!(world.log.log_end(), Offset((1 << 40) + 2));
    }
}

#[test]
fn an_append_behind_the_last_offset_is_an_error() {
    let mut world = World::new(small_segments());
    world.append_records(0, 1);
    world.log.reset_to(Offset(i64::MAX - 2)).unwrap();
    world.append(batch(i64::MAX - 2, 0, 1, 0));
    let refused = world.log.append(&[batch(i64::MAX - 1, 0, 2, 0)]).unwrap_err();
    assert!(matches!(refused, LogError::OutOfRange { offset: Offset(offset), .. } if offset == i64::MAX - 1));
    world.append(batch(i64::MAX - 1, 0, 1, 0));
    assert_eq!(world.log.log_end(), Offset(i64::MAX));
    let refused = world.log.append(&[batch(i64::MAX, 0, 1, 0)]).unwrap_err();
    assert!(matches!(refused, LogError::OutOfRange { .. }), "{refused}");
    assert_eq!(world.crash_and_reopen(Crash::KeepAll, hints()).verdict, Verdict::Sound);
    assert_eq!((world.log.log_end(), world.all().len()), (Offset(i64::MAX), 2));
}

#[test]
fn what_only_looks_like_a_batch_behind_a_torn_end_makes_no_damage_of_it() {
    // A record whose value is a batch of another log, from far above or of another age.
    let mut world = World::new(small_segments());
    world.append_records(3, 2);
    world.disk.crash(Crash::KeepAll);
    let whole = size(&world, 0);
    let torn = |value: &RecordBatch| {
        let mut found = World::on(world.disk.fork(), world.config.clone(), 0);
        let log = found.disk.open(&file_path(Path::new(DIR), Offset(0), FileKind::Log), OpenMode::Existing).unwrap();
        let mut bytes = vec![7; 30];
        bytes.extend_from_slice(value.bytes());
        write_all_at(&*log, &mut [std::io::IoSlice::new(&bytes)], whole).unwrap();
        found.reopen(hints()).verdict
    };
    for value in [batch(1 << 40, 3, 2, 0), batch(5, 2, 2, 0), batch(1, 3, 1, 0)] {
        let header = *value.header();
        assert!(matches!(torn(&value), Verdict::TruncatedTail { .. }), "{header:?}");
    }
    assert!(matches!(torn(&batch(5, 3, 2, 0)), Verdict::Lossy { .. }), "one that can be the log's own");
}

#[test]
fn indexes_of_a_segment_that_is_gone_are_removed() {
    let (world, hints, all) = of_several_segments();
    let mut found = World::on(world.disk.fork(), world.config.clone(), 0);
    let orphans = [FileKind::Index, FileKind::TimeIndex, FileKind::TxnIndex]
        .map(|kind| file_path(Path::new(DIR), Offset(1), kind));
    for orphan in &orphans {
        replace_file(&found.disk, orphan, &[1; 8]).unwrap();
    }
    for clean in [true, false] {
        assert_eq!(found.reopen(OpenHints { clean, ..hints }).verdict, Verdict::Sound);
        assert!(orphans.iter().all(|orphan| found.disk.open(orphan, OpenMode::ReadOnly).is_err()), "they are gone");
        assert_eq!(found.all(), all);
    }
}
