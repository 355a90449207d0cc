//! Producer snapshots: the file around them, and what is in it.
//!
//! Oracle: no panic, memory bounded; a state that is restored is written and restored to the same again.

#![no_main]

use fuzz::logs::{hints, open, put, sound};
use libfuzzer_sys::fuzz_target;
use model::Offset;
use replication::producers::ProducerTable;

fuzz_target!(|data: &[u8]| {
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
});
