//! Bytes from a broker or a log: the body in every response, control record and coordinator record, in every version.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Two bytes choose one message and version, so that coverage leads into every one of them.
    if let Some((&[which, version], body)) = data.split_first_chunk::<2>() {
        let count = fuzz::probes("").filter(|probe| !probe.name.ends_with(" request")).count();
        let probe = fuzz::probes("").filter(|probe| !probe.name.ends_with(" request")).nth(usize::from(which) % count);
        fuzz::recode_twice(probe.expect("the index is within the count"), i16::from(version % 20), body);
    }
    for probe in fuzz::probes("").filter(|probe| !probe.name.ends_with(" request")) {
        probe.versions.clone().for_each(|version| fuzz::recode_twice(probe, version, data));
    }
});
