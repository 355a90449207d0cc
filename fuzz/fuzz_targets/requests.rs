//! Bytes from a client: a request frame with its header, and the body in every API and version.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{Decoder, decode_request_head};

fuzz_target!(|data: &[u8]| {
    // The frame as it comes: the header chooses API and version, so that coverage leads into every one of them.
    let mut decoder = Decoder::from_slice(data);
    if let Ok(head) = decode_request_head(&mut decoder) {
        let name = head.api.name();
        let request = fuzz::probes(" request").find(|probe| probe.name.strip_suffix(" request") == Some(name));
        fuzz::recode_twice(request.expect("an API has a request"), head.version, decoder.peek());
    }
    // And the same bytes as the body of everything.
    for probe in fuzz::probes(" request") {
        probe.versions.clone().for_each(|version| fuzz::recode_twice(probe, version, data));
    }
});
