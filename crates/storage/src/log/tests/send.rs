//! Records that are sent from their files: the same bytes as a read gives, whatever happens to the log meanwhile.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use model::Time;

use super::*;
use crate::disk::{OpenMode, RealDisk, Sent};
use crate::log::{ColdRead, ColdRecords, LEND_MIN, LogError, Read, RecordRange};

/// A batch of about `size` bytes at the log's end, that no other one is like.
fn append(log: &mut Log, size: usize, epoch: i32) -> RecordBatch {
    let base = log.log_end();
    let byte = |i: usize| (i as u64 * 31 + base.0.unsigned_abs() + 7).to_le_bytes()[0] ^ epoch.to_le_bytes()[0];
    let value: Vec<u8> = (0..size).map(byte).collect();
    let records = [0, 1].map(|offset_delta| Record {
        offset_delta,
        value: Some(value[..size / 2].to_vec().into()),
        ..Record::default()
    });
    let bytes = encode_batch(&encode_records(&records), Codec::None, 2, 1000, 1000, None);
    let batch = model::ClientBatches::check(bytes).unwrap().stamp(base, LeaderEpoch(epoch));
    log.append(std::slice::from_ref(&batch)).unwrap();
    batch
}

/// The read, lent if it may be.
fn lent(log: &mut Log, from: i64, max_bytes: usize) -> ColdRead {
    let Read::Cold(mut read) = log.read(Offset(from), log.log_end(), max_bytes, true).unwrap() else {
        panic!("not cold");
    };
    log.lend(&mut read);
    read
}

fn range(log: &mut Log, from: i64, max_bytes: usize) -> RecordRange {
    match lent(log, from, max_bytes).run_to_send().unwrap() {
        ColdRecords::File(range) => range,
        ColdRecords::Memory(bytes) => panic!("{} bytes in memory", bytes.len()),
    }
}

/// All that a socket gets of it from `from` on.
fn sent(range: &RecordRange, from: usize) -> io::Result<Vec<u8>> {
    let (socket, mut client) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut done, mut received) = (from, Vec::new());
    while done < range.len() {
        match range.send_to(socket.as_fd(), done) {
            Ok(Sent::Bytes(count)) => done += count,
            Ok(Sent::NotCached) => drop(range.load(done).unwrap()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut taken = vec![0; done - from - received.len()];
                client.read_exact(&mut taken)?;
                received.extend(taken);
            }
            Err(e) => return Err(e),
        }
    }
    drop(socket);
    client.read_to_end(&mut received)?;
    Ok(received)
}

/// All that is loaded of it from `from` on.
fn loaded(range: &RecordRange, from: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while from + all.len() < range.len() {
        let part = range.load(from + all.len()).unwrap();
        assert!(!part.is_empty() && part.len() < (512 << 10) + 250_500, "{}", part.len());
        all.extend_from_slice(&part);
    }
    all
}

/// Segments of a megabyte, and no tail cache.
fn big_segments() -> LogConfig {
    LogConfig { segment_bytes: 1 << 20, index_interval_bytes: 4096, ..LogConfig::default() }
}

const SIZES: [usize; 9] = [300, 20_000, 70_000, 100, 131_072, 131_011, 250_000, 5, 60_000];

fn filled(world: &mut World, batches: usize) -> Vec<RecordBatch> {
    (0..batches).map(|i| append(&mut world.log, SIZES[i % SIZES.len()], 0)).collect()
}

/// What a log does on each kind of disk.
fn on_each_disk(test: impl Fn(&mut Log)) {
    let mut world = World::with_tail(big_segments(), 0);
    filled(&mut world, 25);
    test(&mut world.log);
    let dir = tempfile::tempdir().unwrap();
    let env = LogEnv::new(Arc::new(RealDisk), 16, 0);
    let (mut log, _) = Log::open(&env, &dir.path().join("t-0"), Arc::new(big_segments()), hints()).unwrap();
    for i in 0..25 {
        append(&mut log, SIZES[i % SIZES.len()], 0);
    }
    test(&mut log);
}

#[test]
fn what_is_sent_is_what_a_read_gives_from_each_offset_and_of_each_size() {
    on_each_disk(|log| {
        let mut by_file = 0;
        for from in 0..log.log_end().0 {
            for max_bytes in [LEND_MIN, 90_000, 131_072, 200_000, 1 << 20] {
                let read = log.read_now(Offset(from), log.log_end(), max_bytes, true).unwrap().concat();
                match lent(log, from, max_bytes).run_to_send().unwrap() {
                    ColdRecords::Memory(bytes) => {
                        assert!(bytes.len() < LEND_MIN, "{from} {max_bytes}");
                        assert_eq!(bytes, read, "{from} {max_bytes}");
                    }
                    ColdRecords::File(range) => {
                        by_file += 1;
                        assert_eq!(range.len(), read.len());
                        let last = RecordBatch::split_all(read.clone().into()).unwrap().pop().unwrap();
                        assert_eq!(range.end(), last.header().next_offset());
                        assert!(sent(&range, 0).unwrap() == read, "{from} {max_bytes}");
                        for skip in [1, LEND_MIN - 1, range.len() - 1] {
                            assert!(sent(&range, skip).unwrap() == read[skip..], "{from} {max_bytes} {skip}");
                            assert!(loaded(&range, skip) == read[skip..], "{from} {max_bytes} {skip}");
                        }
                    }
                }
            }
        }
        assert!(by_file > 100, "{by_file}");
    });
}

#[test]
fn little_is_not_lent_and_no_more_files_than_half_of_the_pool() {
    let mut world = World::with_tail(big_segments(), 0);
    filled(&mut world, 10);
    assert!(!lent(&mut world.log, 0, LEND_MIN - 1).is_lent());
    let held: Vec<ColdRead> = (0..8).map(|_| lent(&mut world.log, 0, 1 << 20)).collect();
    assert!(held.iter().all(ColdRead::is_lent));
    assert_eq!(world.env.lent_files(), 8);
    let more = lent(&mut world.log, 0, 1 << 20);
    assert!(!more.is_lent());
    assert!(matches!(more.run_to_send().unwrap(), ColdRecords::Memory(bytes) if bytes.len() > LEND_MIN));
    drop(held);
    let range = range(&mut world.log, 0, 1 << 20);
    assert_eq!(world.env.lent_files(), 1);
    drop(range);
    assert_eq!(world.env.lent_files(), 0);
}

#[test]
fn records_on_their_way_stay_as_they_are_when_the_log_is_cut_below_them_and_goes_on() {
    on_each_disk(|log| {
        let read = log.read_now(Offset(4), log.log_end(), 1 << 20, true).unwrap().concat();
        let prepared = lent(log, 4, 1 << 20);
        let range = range(log, 4, 1 << 20);
        let kept = log.truncate_to(Offset(6)).unwrap();
        for _ in 0..12 {
            append(log, 150_000, 1);
        }
        assert!(sent(&range, 0).unwrap() == read);
        assert!(loaded(&range, 5) == read[5..]);
        // So does a read that was lent and not begun.
        let ColdRecords::File(late) = prepared.run_to_send().unwrap() else { panic!("in memory") };
        assert!(sent(&late, 0).unwrap() == read);
        let now = batches_from(log, Offset(0));
        let epochs: Vec<i32> = now.iter().map(|batch| batch.header().leader_epoch.0).collect();
        assert_eq!((kept, epochs), (Offset(6), [vec![0; 3], vec![1; 12]].concat()));
    });
}

#[test]
fn a_cut_above_what_was_lent_is_made_in_place() {
    let mut world = World::with_tail(big_segments(), 0);
    filled(&mut world, 6);
    let Read::Cold(mut read) = world.log.read(Offset(0), Offset(10), 1 << 20, true).unwrap() else {
        panic!("not cold")
    };
    world.log.lend(&mut read);
    let ColdRecords::File(range) = read.run_to_send().unwrap() else { panic!("in memory") };
    let (before, writes) = (sent(&range, 0).unwrap(), world.disk.counters().writes);
    world.log.truncate_to(Offset(10)).unwrap();
    assert_eq!(world.disk.counters().writes, writes, "nothing is copied");
    append(&mut world.log, 100_000, 1);
    assert_eq!((range.end(), sent(&range, 0).unwrap() == before), (Offset(10), true));
    assert!(loaded(&range, 0) == before);
}

#[test]
fn a_full_disk_refuses_a_cut_that_needs_a_copy_and_leaves_the_log_as_it_was() {
    let mut world = World::with_tail(big_segments(), 0);
    filled(&mut world, 25);
    let before = world.all();
    let range = range(&mut world.log, 4, 1 << 20);
    world.disk.set_capacity(Some(world.log.size_bytes() + 10_000));
    assert!(matches!(world.log.truncate_to(Offset(6)), Err(LogError::NoSpace(_))));
    assert_eq!(world.all(), before);
    assert!(world.disk.list(Path::new(DIR)).unwrap().iter().all(|entry| !entry.name.ends_with(".tmp")));
    world.disk.set_capacity(None);
    assert_eq!(world.log.truncate_to(Offset(6)), Ok(Offset(6)));
    assert_eq!(sent(&range, 0).unwrap().len(), range.len());
}

#[test]
fn records_on_their_way_outlive_their_segment() {
    on_each_disk(|log| {
        let read = log.read_now(Offset(0), log.log_end(), 1 << 20, true).unwrap().concat();
        let range = range(log, 0, 1 << 20);
        let end = log.log_end();
        log.advance_log_start(end).unwrap();
        super::retain(log, Some(Time(5000)), end, Time(5000)).unwrap();
        log.free_deleted(Time(1 << 40)).unwrap();
        assert_eq!(log.size_bytes(), 0);
        assert!(sent(&range, 0).unwrap() == read);
    });
}

#[test]
fn a_file_that_is_shorter_than_it_was_sends_no_more_and_says_so() {
    let mut world = World::with_tail(big_segments(), 0);
    filled(&mut world, 5);
    let range = range(&mut world.log, 0, 1 << 20);
    let path = Path::new(DIR).join("00000000000000000000.log");
    world.disk.open(&path, OpenMode::Existing).unwrap().truncate(50_000).unwrap();
    assert_eq!(sent(&range, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(range.load(0).is_err());
}

#[test]
fn damage_is_found_before_anything_is_lent_and_again_when_it_is_loaded() {
    let damaged = |at: u64| {
        let mut world = World::with_tail(big_segments(), 0);
        filled(&mut world, 8);
        let path = Path::new(DIR).join("00000000000000000000.log");
        let range = range(&mut world.log, 0, 1 << 20);
        let file = world.disk.open(&path, OpenMode::Existing).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[io::IoSlice::new(&[!byte[0]])], at).unwrap();
        (world, range)
    };
    let mut position = 0;
    let batches = filled(&mut World::with_tail(big_segments(), 0), 8);
    for batch in &batches {
        for inside in [20, 61, batch.bytes().len() as u64 - 1] {
            let (mut world, range) = damaged(position + inside);
            let from = batch.header().base_offset.0;
            let reading = lent(&mut world.log, from, 1 << 20).run_to_send();
            assert!(matches!(reading, Err(LogError::Corrupt { .. })), "{from} {inside}: {reading:?}");
            let before = lent(&mut world.log, 0, 1 << 20).run_to_send();
            match before {
                Err(LogError::Corrupt { .. }) => assert_eq!(from, 0),
                Ok(ColdRecords::Memory(bytes)) => assert_eq!(bytes.len() as u64, position),
                Ok(ColdRecords::File(sound)) => assert_eq!(sound.len() as u64, position),
                Err(other) => panic!("{other}"),
            }
            let at = usize::try_from(position).unwrap();
            assert!(matches!(range.load(at), Err(LogError::Corrupt { .. })), "{from} {inside}");
        }
        position += batch.bytes().len() as u64;
    }
}
