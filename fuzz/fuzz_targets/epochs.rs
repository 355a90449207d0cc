//! The epoch checkpoint of a log, with bytes of the fuzzer.
//!
//! Oracle: no panic, memory bounded; after a start that trusts nothing, each batch has its own epoch (`R25`).

#![no_main]

use fuzz::logs::{hints, open, put, read_all, sound};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (disk, batches) = sound();
    put(&disk, "leader-epoch-checkpoint", data);
    let (log, recovered) = open(&disk, hints());
    assert_eq!(read_all(&log), batches);
    for batch in batches {
        let header = batch.header();
        assert_eq!(recovered.epochs.epoch_of(header.base_offset), Some(header.leader_epoch), "at {}", header.base_offset);
    }
});
