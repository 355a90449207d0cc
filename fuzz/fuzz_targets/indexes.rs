//! The indexes of a segment, each with bytes of the fuzzer: see `fuzz::targets::indexes`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::targets::indexes(data));
