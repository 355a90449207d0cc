//! The epoch checkpoint of a log, with bytes of the fuzzer: see `fuzz::targets::epochs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::targets::epochs(data));
