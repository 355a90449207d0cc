//! What the targets of the codec have in common; [`logs`] and [`targets`] are of the storage.
//!
//! Oracle: no panic, memory bounded (libFuzzer's malloc limit), and whatever decodes and encodes decodes to the same
//! bytes again.

pub mod logs;
pub mod targets;

use bytes::BytesMut;
use protocol::json::Probe;

/// Decodes `body` as one version of a message, encodes the result, and does both again.
pub fn recode_twice(probe: &Probe, version: i16, body: &[u8]) {
    let Ok(first) = (probe.recode)(BytesMut::from(body), version) else { return };
    let first = first.expect("what was decoded can be encoded");
    let second = (probe.recode)(BytesMut::from(&first[..]), version);
    assert_eq!(second, Ok(Some(first)), "{} version {version} of {body:02x?}", probe.name);
}

/// The messages whose name ends so.
pub fn probes(suffix: &str) -> impl Iterator<Item = &'static Probe> {
    let all = protocol::messages::PROBES.iter().chain(protocol::records::PROBES);
    all.filter(move |probe| probe.name.ends_with(suffix))
}
