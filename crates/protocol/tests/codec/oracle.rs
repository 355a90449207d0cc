//! A second implementation reads what we write and writes the same: kafka-protocol 0.18.
//!
//! It only ever sees what our encoder wrote, since it trusts counts, and only the stable versions of Kafka 4.1.
//! The messages are Kafka's samples and what is left of them after random damage that still decodes.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{RequestKind, ResponseKind};
use proptest::prelude::*;
use protocol::ApiKey;

use crate::samples::{Sample, messages};

/// Has the other implementation decode and encode a message; `None` where it does not know the API or the version.
fn theirs(sample: &Sample, bytes: &Bytes) -> Option<BytesMut> {
    let (name, direction) = sample.message.split_once(' ')?;
    let ours = ApiKey::all().find(|api| api.name() == name)?;
    let api = kafka_protocol::messages::ApiKey::try_from(ours.key()).ok()?;
    let range = api.valid_versions();
    if sample.version < range.min || sample.version > range.max || !ours.versions().contains(&sample.version) {
        return None;
    }
    let (mut input, mut output) = (bytes.clone(), BytesMut::new());
    let result = match direction {
        "request" => RequestKind::decode(api, &mut input, sample.version)
            .and_then(|request| request.encode(&mut output, sample.version)),
        _ => ResponseKind::decode(api, &mut input, sample.version)
            .and_then(|response| response.encode(&mut output, sample.version)),
    };
    match result {
        // Its table of versions is ahead of some of its messages.
        Err(error) if format!("{error:#}").contains("specified version not supported") => return None,
        Err(error) => panic!("{} version {}: {error:#} in {bytes:?}", sample.message, sample.version),
        Ok(()) => {}
    }
    assert!(input.is_empty(), "{} version {}: {} bytes left", sample.message, sample.version, input.len());
    Some(output)
}

fn agree(sample: &Sample, bytes: &[u8]) -> bool {
    let Ok(Some(ours)) = (sample.probe.recode)(BytesMut::from(bytes), sample.version) else { return false };
    let Some(theirs) = theirs(sample, &ours) else { return false };
    assert_eq!(theirs, ours, "{} version {}", sample.message, sample.version);
    true
}

#[test]
fn another_implementation_agrees_on_the_samples() {
    let agreed = messages().iter().filter(|sample| agree(sample, &sample.bytes)).count();
    println!("{agreed} agreed on");
    assert!(agreed > 1_000, "only {agreed} were compared");
}

proptest! {
    #[test]
    fn another_implementation_agrees_on_damaged_samples_that_still_decode(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        static SAMPLES: std::sync::OnceLock<Vec<Sample>> = std::sync::OnceLock::new();
        let sample = which.get(SAMPLES.get_or_init(messages));
        let mut bytes = sample.bytes.to_vec();
        for (at, byte) in damage.into_iter().filter(|_| !sample.bytes.is_empty()) {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        agree(sample, &bytes);
    }
}
