//! What `inspect` shows of a log's files, and what it finds wrong with them.

use super::*;
use crate::disk::{OpenMode, read_exact_at, read_small_file, replace_file, write_all_at};
use crate::log::inspect::verify::{Report, Severity, verify};
use crate::log::inspect::{Piece, dump};
use crate::log::segment::{FileKind, file_path};
use crate::{Checkpoint, DataDir};
use model::PartitionIndex;

/// A log of several segments, stopped cleanly, with all kinds of files; its data directory has the checkpoints.
fn stopped() -> World {
    let mut world = World::new(small_segments());
    for i in 0..30 {
        world.append_records(i / 8, 2);
    }
    world.checkpoint();
    world.log.write_producer_snapshot(Offset(40), b"state").unwrap();
    world.log.settle().unwrap();
    let end = world.log.recovery_point();
    let dir = DataDir::open(&world.env, Path::new("/data")).unwrap();
    let topic = "topic";
    for which in [Checkpoint::RecoveryPoint, Checkpoint::HighWatermark] {
        dir.write_checkpoint(which, [(topic, PartitionIndex(0), end)]).unwrap();
    }
    world
}

fn verified(disk: &MemDisk, dir: &str) -> Report {
    verify(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(dir)).unwrap()
}

fn content(disk: &MemDisk, path: &Path) -> Vec<u8> {
    read_small_file(disk, path, 1 << 20).unwrap().unwrap()
}

fn damage(disk: &MemDisk, path: &Path, position: u64) {
    let file = disk.open(path, OpenMode::Existing).unwrap();
    let mut byte = [0u8];
    read_exact_at(&*file, &mut byte, position).unwrap();
    byte[0] ^= 0x10;
    write_all_at(&*file, &mut [std::io::IoSlice::new(&byte)], position).unwrap();
}

/// Whether a byte of a segment is one that its batch's checksum does not cover, and no place in the file tells.
fn is_uncovered(log: &[u8], position: u64) -> bool {
    let mut start = 0;
    while let Some(header) = model::BatchHeader::read(&log[start..]) {
        let inside = usize::try_from(position).unwrap().wrapping_sub(start);
        if inside < header.size {
            return inside < 8 || (12..16).contains(&inside);
        }
        start += header.size;
    }
    false
}

#[test]
fn what_was_stopped_cleanly_is_found_whole_and_nothing_is_written() {
    let world = stopped();
    let before = world.disk.counters();
    for dir in [DIR, "/data"] {
        let report = verified(&world.disk, dir);
        let wrong: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Damage).collect();
        assert_eq!((wrong, report.more), (vec![], 0));
        assert_eq!((report.partitions, report.batches, report.bytes), (1, 30, world.log.size_bytes()));
        assert_eq!(report.segments, world.log.segments().len());
    }
    let after = world.disk.counters();
    assert_eq!((before.writes, before.data_syncs, before.dir_syncs), (after.writes, after.data_syncs, after.dir_syncs));
}

#[test]
fn a_directory_in_use_is_refused() {
    let world = stopped();
    let held = DataDir::open(&world.env, Path::new("/data")).unwrap();
    for dir in [DIR, "/data"] {
        let refused = verify(&(Arc::new(world.disk.clone()) as Arc<dyn Disk>), Path::new(dir)).unwrap_err();
        assert!(refused.to_string().contains("is in use by process"), "{refused}");
    }
    drop(held);
    verified(&world.disk, "/data");
}

#[test]
fn a_flipped_bit_in_any_byte_of_any_file_is_found() {
    let world = stopped();
    let (mut flips, mut uncovered) = (0, 0);
    for entry in world.disk.list(Path::new(DIR)).unwrap() {
        let path = Path::new(DIR).join(&entry.name);
        let whole = content(&world.disk, &path);
        for position in 0..whole.len() {
            let disk = world.disk.fork();
            damage(&disk, &path, position as u64);
            let report = verified(&disk, DIR);
            flips += 1;
            if report.is_damaged() {
                assert!(report.findings.iter().all(|finding| !finding.at_start.is_empty()));
            } else {
                let log = entry.name.ends_with(".log");
                assert!(log && is_uncovered(&whole, position as u64), "byte {position} of {}", entry.name);
                uncovered += 1;
            }
        }
    }
    println!(
        "log verify: {flips} flips tried, {} found, {uncovered} in offsets and epochs that no checksum covers",
        flips - uncovered
    );
    assert!(flips > 2500, "{flips}");
    assert!(uncovered < 200, "{uncovered} of {flips}");
}

#[test]
fn a_missing_or_cut_file_is_found_and_said_what_becomes_of_it() {
    let world = stopped();
    let base = world.log.segments().nth(1).unwrap().0;
    let last = world.log.segments().last().unwrap().0;
    // What a start does about the damage to this file.
    let found = |path: &Path, change: &dyn Fn(&MemDisk)| {
        let disk = world.disk.fork();
        change(&disk);
        let report = verified(&disk, "/data");
        let finding =
            report.findings.iter().find(|finding| finding.severity == Severity::Damage && finding.path == path);
        finding.unwrap_or_else(|| panic!("{report:?}")).at_start.clone()
    };
    let index = file_path(Path::new(DIR), base, FileKind::Index);
    let at_start = found(&index, &|disk| disk.remove_file(&index).unwrap());
    assert!(at_start.contains("walk from the segment's start"), "{at_start}");
    // A torn end below the recovery point was promised to somebody.
    let log = file_path(Path::new(DIR), last, FileKind::Log);
    let cut = |disk: &MemDisk| {
        let file = disk.open(&log, OpenMode::Existing).unwrap();
        file.truncate(file.size().unwrap() - 1).unwrap();
    };
    let at_start = found(&log, &cut);
    assert!(at_start.contains("counts as lossy") && at_start.contains("offset 58"), "{at_start}");
    // The same where nothing was promised.
    let at_start = found(&log, &|disk| {
        cut(disk);
        for name in ["recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
            disk.remove_file(&Path::new("/data").join(name)).unwrap();
        }
    });
    assert!(at_start.contains("is cut at offset 58"), "{at_start}");
    // In the middle, below the recovery point: a start does not look there.
    let second = file_path(Path::new(DIR), base, FileKind::Log);
    let at_start = found(&second, &|disk| damage(disk, &second, 70));
    assert!(at_start.contains("does not look there"), "{at_start}");
    let at_start = found(Path::new(DIR), &|disk| disk.remove_dir_all(Path::new(DIR)).unwrap());
    assert!(at_start.contains("counts as lost"), "{at_start}");
    let identity = Path::new(DIR).join("partition.metadata");
    let at_start = found(&identity, &|disk| disk.remove_file(&identity).unwrap());
    assert!(at_start.contains("is renamed and kept"), "{at_start}");
    let ids = |disk: &MemDisk, id: u128| {
        let dir = DataDir::open(&LogEnv::new(Arc::new(disk.clone()), 4, 0), Path::new("/data")).unwrap();
        dir.write_topic_ids([("topic", PartitionIndex(0), TopicId(Uuid::from_u128(id)))]).unwrap();
    };
    let at_start = found(&identity, &|disk| {
        ids(disk, 9);
        disk.remove_file(&identity).unwrap();
    });
    assert!(at_start.contains("it is written again"), "{at_start}");
    let at_start = found(&identity, &|disk| ids(disk, 77));
    assert!(at_start.contains("the shutdown counts as unclean"), "{at_start}");
    let meta = Path::new("/data/meta.properties");
    let at_start = found(meta, &|disk| replace_file(disk, meta, b"version=1\n").unwrap());
    assert_eq!(at_start, "a broker does not start with it");
}

#[test]
fn the_pieces_of_each_file_are_shown_and_what_is_none_is_said() {
    let world = stopped();
    let base = world.log.segments().next().unwrap().0;
    let pieces = |disk: &MemDisk, path: &Path| {
        let mut pieces = Vec::new();
        dump(disk, path, &mut |piece| {
            pieces.push(piece);
            true
        })
        .map(|()| pieces)
    };
    let log = file_path(Path::new(DIR), base, FileKind::Log);
    let all = world.all();
    let shown = pieces(&world.disk, &log).unwrap();
    let shown: Vec<_> = shown
        .into_iter()
        .map(|piece| match piece {
            Piece::Batch { checked, .. } => checked.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(!shown.is_empty() && all.starts_with(&shown));
    let disk = world.disk.fork();
    damage(&disk, &log, 16);
    damage(&disk, &log, shown[0].bytes().len() as u64 + 70);
    let damaged = pieces(&disk, &log).unwrap();
    let end = shown[0].bytes().len() as u64 + shown[1].bytes().len() as u64;
    assert!(
        matches!(&damaged[0], Piece::Unreadable { position: 0, end: e, what } if *e == end && what == "magic is not 2"),
        "{:?}",
        damaged[0]
    );
    assert_eq!(damaged.len(), shown.len() - 1);
    let entries = pieces(&world.disk, &file_path(Path::new(DIR), base, FileKind::Index)).unwrap();
    assert!(matches!(entries[0], Piece::OffsetEntry { offset: Offset(5), .. }), "{:?}", entries[0]);
    let times = pieces(&world.disk, &file_path(Path::new(DIR), base, FileKind::TimeIndex)).unwrap();
    assert!(matches!(times[0], Piece::TimeEntry { timestamp: 1005, offset: Offset(5) }), "{:?}", times[0]);
    let lines = pieces(&world.disk, &Path::new(DIR).join("leader-epoch-checkpoint")).unwrap();
    assert!(matches!(&lines[0], Piece::Line(line) if line == "0 0"), "{lines:?}");
    let snapshot = pieces(&world.disk, &Path::new(DIR).join("00000000000000000040.snapshot")).unwrap();
    assert!(matches!(&snapshot[0], Piece::Producers(state) if &state[..] == b"state"));
    for (name, why) in [("leader-epoch-checkpoint", "checksum"), ("00000000000000000040.snapshot", "checksum")] {
        let disk = world.disk.fork();
        damage(&disk, &Path::new(DIR).join(name), 8);
        let error = pieces(&disk, &Path::new(DIR).join(name)).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(name), "{error}");
    }
    assert!(pieces(&world.disk, Path::new("/data/noise")).is_err());
}
