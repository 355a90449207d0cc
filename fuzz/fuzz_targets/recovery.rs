//! A segment as a crash, a bad disk or somebody else left it.
//!
//! Oracle: no panic, memory bounded; what recovery kept reads back as sound batches; opened again, it is the same log with
//! the same verdict, or a sound one where an end was cut; and `verify` looks at all of it.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use fuzz::logs::{DIR, hints, open, put, read_all, sound};
use libfuzzer_sys::fuzz_target;
use model::Offset;
use storage::disk::Disk;
use storage::log::inspect::verify::verify;
use storage::{OpenHints, Verdict};

fuzz_target!(|data: &[u8]| {
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
});
