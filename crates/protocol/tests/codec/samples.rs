//! Encodings written by Kafka's own serialisers, as data.

use bytes::BytesMut;
use protocol::json::Probe;
use serde_json::Value;

/// One encoding and its meaning.
pub(crate) struct Sample {
    pub(crate) message: String,
    pub(crate) version: i16,
    pub(crate) value: Value,
    pub(crate) bytes: BytesMut,
    pub(crate) probe: &'static Probe,
}

/// Requests, responses, headers, control records, the consumer protocol.
pub(crate) fn messages() -> Vec<Sample> {
    parse(include_str!("../vectors/vectors.jsonl"), protocol::messages::PROBES)
}

/// The records of the coordinators' topics, without the int16 in front.
pub(crate) fn records() -> Vec<Sample> {
    parse(include_str!("../vectors/coordinator-vectors.jsonl"), protocol::records::PROBES)
}

fn parse(lines: &str, probes: &'static [Probe]) -> Vec<Sample> {
    let sample = |line| {
        let mut line: Value = serde_json::from_str(line).expect("a sample is JSON");
        let message = line["message"].as_str().expect("a sample names its message").to_owned();
        let probe = probes.iter().find(|probe| probe.name == message).expect("the message is known");
        let hex = line["hex"].as_str().expect("a sample has its bytes").to_owned();
        let version = line["version"].as_i64().and_then(|version| i16::try_from(version).ok());
        let version = version.expect("a sample has its version");
        Sample { message, version, value: line["value"].take(), bytes: from_hex(&hex), probe }
    };
    lines.lines().map(sample).collect()
}

fn from_hex(hex: &str) -> BytesMut {
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(pair).collect::<Vec<u8>>().as_slice().into()
}
