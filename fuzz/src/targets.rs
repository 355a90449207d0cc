//! The bodies of the storage's targets: each takes the bytes that a fuzzer made, and holds its oracle. The loop runs them too,
//! with a few thousand mutations of sound files (`crates/ottla/tests/it/fuzz.rs`).

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use model::record::check_records;
use model::{ClientBatches, Codec, Offset, RecordBatch, RecordIter};
use replication::producers::ProducerTable;
use storage::compression::{DECODED_MAX, decompress_into_counted};
use storage::disk::Disk;
use storage::log::inspect::verify::verify;
use storage::{Aborted, OpenHints, Verdict};

use super::logs::{DIR, hints, open, put, read_all, sound};

/// A segment as a crash, a bad disk or somebody else left it.
///
/// Oracle: no panic, memory bounded; what recovery kept reads back as sound batches; opened again, it is the same log with
/// the same verdict, or a sound one where an end was cut; and `verify` looks at all of it.
pub fn recovery(data: &[u8]) {
    let Some((&[mode, point], content)) = data.split_first_chunk::<2>() else { return };
    let (disk, _) = sound();
    // One segment is replaced: the first, one in the middle, the last.
    let bases: Vec<String> = disk.list(Path::new(DIR)).expect("memory").into_iter().map(|entry| entry.name).collect();
    let logs: Vec<&String> = bases.iter().filter(|name| name.ends_with(".log")).collect();
    put(&disk, logs[usize::from(mode >> 2) % logs.len()], content);
    let hints = OpenHints {
        recovery_point: Offset(i64::from(point)),
        high_watermark: if mode & 2 == 0 { Offset::ZERO } else { Offset(i64::from(point)) },
        clean: mode & 1 == 1,
        ..hints()
    };
    let looked: Arc<dyn Disk> = Arc::new(disk.clone());
    verify(&looked, Path::new(DIR)).expect("a disk in memory has no faults");
    let (log, recovered) = open(&disk, hints);
    let first = read_all(&log);
    drop(log);
    let (log, again) = open(&disk, hints);
    assert_eq!(read_all(&log), first);
    match recovered.verdict {
        Verdict::TruncatedTail { .. } => assert!(!matches!(again.verdict, Verdict::TruncatedTail { .. })),
        verdict => assert_eq!(again.verdict, verdict),
    }
}

/// The indexes of a segment, each with bytes of the fuzzer.
///
/// Oracle: no panic, memory bounded; an index is a hint, so every batch of the log is read as it was written.
pub fn indexes(data: &[u8]) {
    let Some((&[mode], content)) = data.split_first_chunk::<1>() else { return };
    let (disk, batches) = sound();
    let suffix = ["index", "timeindex", "txnindex"][usize::from(mode >> 1) % 3];
    put(&disk, &format!("{:020}.{suffix}", 0), content);
    let end = batches.last().expect("there are some").header().next_offset();
    let synced = OpenHints { recovery_point: end, high_watermark: end, clean: mode & 1 == 1, ..hints() };
    let (mut log, _) = open(&disk, synced);
    assert_eq!(read_all(&log), batches);
    for batch in batches {
        let from = batch.header().last_offset();
        let read = log.read_now(from, end, 1, true).expect("a sound log").concat();
        assert_eq!(read, batch.bytes()[..]);
    }
    // These two are what the indexes say.
    let _ = log.offset_for_time(1050);
    if let Ok(Aborted::Cold(cold)) = log.aborted(Offset::ZERO, end) {
        let _ = cold.run();
    }
}

/// The epoch checkpoint of a log, with bytes of the fuzzer.
///
/// Oracle: no panic, memory bounded; after a start that trusts nothing, each batch has its own epoch (`R25`).
pub fn epochs(data: &[u8]) {
    let (disk, batches) = sound();
    put(&disk, "leader-epoch-checkpoint", data);
    let (log, recovered) = open(&disk, hints());
    assert_eq!(read_all(&log), batches);
    for batch in batches {
        let header = batch.header();
        assert_eq!(
            recovered.epochs.epoch_of(header.base_offset),
            Some(header.leader_epoch),
            "at {}",
            header.base_offset
        );
    }
}

/// Producer snapshots: the file around them, and what is in it.
///
/// Oracle: no panic, memory bounded; a state that is restored is written and restored to the same again.
pub fn producers(data: &[u8]) {
    let (disk, _) = sound();
    put(&disk, &format!("{:020}.snapshot", 40), data);
    let (log, _) = open(&disk, hints());
    let _ = log.latest_producer_snapshot(Offset(120)).expect("a disk in memory has no faults");
    // The checksums keep the fuzzer out: the state is given one that is right.
    let sealed = [&1u16.to_be_bytes()[..], &model::batch::crc32c(data).to_be_bytes(), data].concat();
    let newer = [&2u16.to_be_bytes()[..], &model::batch::crc32c(data).to_be_bytes(), data].concat();
    for bytes in [data, &sealed, &newer] {
        if let Ok((offset, table)) = ProducerTable::restore(bytes) {
            assert_eq!(ProducerTable::restore(&table.snapshot(offset)), Ok((offset, table)));
        }
    }
}

/// What a decoder may hold beside what it has told of: its window and its blocks.
const SLACK: usize = 1 << 20;

/// Batches as clients and peers send them, and the records in them, in each codec.
///
/// Oracle: no panic; what comes out of a decoder is bounded, whatever the input claims; a batch that is checked has the
/// bytes that it was given.
pub fn batches(data: &[u8]) {
    if let Ok(batches) = RecordBatch::split_all(Bytes::copy_from_slice(data)) {
        let bytes: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes().to_vec()).collect();
        assert_eq!(bytes, data);
    }
    let _ = ClientBatches::check(BytesMut::from(data));
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let (mut out, told) = (Vec::new(), Cell::new(0usize));
        let decoded = decompress_into_counted(&mut out, codec, data, &mut |more| told.set(told.get() + more));
        assert!(out.len() <= DECODED_MAX + SLACK, "{codec:?} gave {} bytes", out.len());
        if decoded.is_ok() {
            assert!(told.get() >= out.len(), "{codec:?} told of {} of {} bytes", told.get(), out.len());
            let count = i32::try_from(data.len() % 1000).expect("small");
            let _ = check_records(&out, count);
            RecordIter::new(out.into(), count).take(2000).for_each(drop);
        }
    }
}
