//! The indexes of a segment, each with bytes of the fuzzer.
//!
//! Oracle: no panic, memory bounded; an index is a hint, so every batch of the log is read as it was written.

#![no_main]

use fuzz::logs::{hints, open, put, read_all, sound};
use libfuzzer_sys::fuzz_target;
use model::Offset;
use storage::{Aborted, OpenHints};

fuzz_target!(|data: &[u8]| {
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
});
