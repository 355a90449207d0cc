//! Producer snapshots: the file around them, and what is in it: see `fuzz::targets::producers`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::targets::producers(data));
