//! A segment as a crash, a bad disk or somebody else left it: see `fuzz::targets::recovery`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::targets::recovery(data));
