//! What a log does on a disk without space, and what it leaves to those who must go on.

use metadata::configs::FlushPolicy;

use super::*;
use crate::data_dir::DataDir;
use crate::disk::{Call, FaultKind, replace_file};
use crate::quorum_log::{QuorumEntry, QuorumLog};

const MIB: u64 = 1 << 20;

/// A batch of a quarter of a MiB.
fn large(base: Offset) -> RecordBatch {
    let record = Record { value: Some(vec![7; 256 << 10].into()), ..Record::default() };
    let bytes = encode_batch(&encode_records(&[record]), Codec::None, 1, 0, 0, None);
    model::ClientBatches::check(bytes).unwrap().stamp(base, LeaderEpoch(0))
}

fn entry(index: u64, size: usize) -> QuorumEntry {
    QuorumEntry { index, id: format!("id {index}").into(), payload: vec![7; size].into() }
}

#[test]
fn logs_that_may_use_the_reserve_leave_what_the_quorum_needs() {
    let disk = MemDisk::new();
    disk.set_capacity(Some(32 * MIB));
    let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
    let dir = DataDir::open(&env, Path::new("/data")).unwrap();
    dir.keep_reserve(16 << 20);
    let has_ballast = || disk.list(Path::new("/data")).unwrap().iter().any(|entry| entry.name == ".ottla-ballast");
    assert!(has_ballast());
    let mut quorum = QuorumLog::open(Arc::clone(dir.env().disk()), Path::new("/data/quorum.log")).unwrap();
    quorum.append(&[entry(1, 10)]).unwrap();
    // What others took since the last look is not known of.
    dir.watch_space();
    let open = |name: &str, may_use_reserve| {
        let config = LogConfig { may_use_reserve, ..LogConfig::default() };
        Log::open(dir.env(), &Path::new("/data").join(name), Arc::new(config), hints()).unwrap().0
    };
    let fill = |log: &mut Log| {
        while log.append(&[large(log.log_end())]).is_ok() {}
        // What such a batch leaves over.
        while log.append(&[batch(log.log_end().0, 0, 1, 0)]).is_ok() {}
        log.append(&[batch(log.log_end().0, 0, 1, 0)]).unwrap_err()
    };
    let (mut user, mut internal) = (open("user-0", false), open("__consumer_offsets-0", true));
    assert!(matches!(fill(&mut user), LogError::NoSpace(_)));
    let before = internal.log_end();
    // Checkpoints are written meanwhile; where they had to use up the ballast, the log would take that, too.
    for _ in 0..20 {
        assert!(matches!(fill(&mut internal), LogError::NoSpace(_)));
        replace_file(&**dir.env().disk(), Path::new("/data/checkpoint"), &[1; 5000]).unwrap();
        dir.watch_space();
    }
    assert!(internal.log_end() - before > 30, "most of the reserve is theirs");
    assert!(has_ballast());
    quorum.append(&[entry(2, 4 << 20)]).unwrap();
    assert!(dir.env().health().failure().is_none());
    // With space all goes on.
    disk.set_capacity(None);
    dir.watch_space();
    for log in [&mut user, &mut internal] {
        log.append(&[large(log.log_end())]).unwrap();
    }
}

#[test]
fn a_cut_whose_note_finds_no_space_leaves_the_log_as_it_was() {
    let mut world = World::new(small_segments());
    (0..20).for_each(|_| world.append_records(0, 2));
    world.checkpoint();
    let all = world.all();
    world.disk.leave_space(0);
    for _ in 0..2 {
        assert!(matches!(world.log.truncate_to(Offset(6)), Err(LogError::NoSpace(_))));
        assert!(matches!(world.log.reset_to(Offset(90)), Err(LogError::NoSpace(_))));
    }
    assert_eq!((world.all(), world.log.is_unfinished()), (all.clone(), false));
    assert!(world.env.health().failure().is_none(), "no directory goes offline for want of space");
    world.disk.set_capacity(None);
    assert_eq!(world.log.truncate_to(Offset(6)), Ok(Offset(6)));
    assert_eq!(world.all(), all[..3]);
}

#[test]
fn a_log_that_was_emptied_and_finds_no_space_to_begin_anew_is_opened_anew() {
    let mut world = World::new(LogConfig { preallocate: true, ..small_segments() });
    (0..20).for_each(|_| world.append_records(0, 2));
    let recovery_point = world.checkpoint();
    world.disk.fail(Call::Preallocate, 0, FaultKind::Enospc);
    assert!(matches!(world.log.reset_to(Offset(90)), Err(LogError::NoSpace(_))));
    assert!(world.log.is_unfinished() && world.env.health().failure().is_none());
    assert!(matches!(world.log.append(&[batch(40, 0, 1, 0)]), Err(LogError::NoSpace(_))), "it is not what it was");
    // As after a crash: the note says that nothing is promised any more.
    let recovered = world.crash_and_reopen(Crash::KeepAll, OpenHints { recovery_point, ..hints() });
    assert!(matches!(recovered.verdict, Verdict::Sound), "{recovered:?}");
    world.log.reset_to(Offset(90)).unwrap();
    world.append_records(1, 2);
    assert_eq!(world.log.log_end(), Offset(92));
}

#[test]
fn a_start_without_space_for_an_index_goes_on_without_it() {
    let config = LogConfig { segment_bytes: 3000, index_interval_bytes: 100, ..LogConfig::default() };
    let mut world = World::with_tail(config, 0);
    (0..30).for_each(|_| world.append_records(0, 2));
    let recovery_point = world.checkpoint();
    (0..30).for_each(|_| world.append_records(0, 2));
    let all = world.all();
    let times = |world: &mut World| {
        let times = (990..1130).map(|time| world.log.offset_for_time(time).unwrap());
        times.collect::<Vec<_>>()
    };
    let expected = times(&mut world);
    for (recovery_point, room) in [(0, 0), (0, 30), (0, 100), (recovery_point.0, 0), (recovery_point.0, 30)] {
        let mut found = World { disk: world.disk.fork(), ..World::with_tail(world.config.clone(), 0) };
        found.disk.crash(Crash::KeepAll);
        for entry in found.disk.list(Path::new(DIR)).unwrap() {
            if entry.name.ends_with(".index") || entry.name.ends_with(".timeindex") {
                found.disk.remove_file(&Path::new(DIR).join(entry.name)).unwrap();
            }
        }
        found.disk.leave_space(room);
        let hints = OpenHints { recovery_point: Offset(recovery_point), ..hints() };
        assert_eq!(found.reopen(hints).verdict, Verdict::Sound, "{recovery_point} {room}");
        assert_eq!((found.all(), times(&mut found)), (all.clone(), expected.clone()), "{recovery_point} {room}");
        assert_eq!(found.log.sync_now().unwrap(), Offset(120));
        assert!(found.env.health().failure().is_none());
        // What comes later is in the indexes, and they lead to what they should.
        found.disk.set_capacity(None);
        (0..30).for_each(|_| found.append_records(0, 2));
        let recovery_point = found.checkpoint();
        let (later, at) = (found.all(), times(&mut found));
        assert_eq!(
            found.crash_and_reopen(Crash::LoseUnsynced, OpenHints { recovery_point, ..hints }).verdict,
            Verdict::Sound
        );
        assert_eq!((found.all(), times(&mut found)), (later, at));
    }
}

#[test]
fn records_are_synced_where_their_index_entries_find_no_space() {
    let mut world = World::new(LogConfig { index_interval_bytes: 1, ..LogConfig::default() });
    assert_ne!(world.log.flush_policy(), FlushPolicy::BeforeAck, "else the entries would not be written");
    (0..10).for_each(|_| world.append_records(0, 2));
    world.disk.leave_space(0);
    assert_eq!(world.log.sync_now().unwrap(), Offset(20));
    assert_eq!(world.log.start_sync().unwrap().map(drop), None);
    world.disk.set_capacity(None);
    world.append_records(0, 2);
    world.checkpoint();
    let index = world.disk.open(&Path::new(DIR).join("00000000000000000000.index"), crate::disk::OpenMode::Existing);
    assert_eq!(index.unwrap().size().unwrap() / 8, 10, "they have waited");
}
