//! Batches as clients and peers send them, and the records in them, in each codec: see `fuzz::targets::batches`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::targets::batches(data));
