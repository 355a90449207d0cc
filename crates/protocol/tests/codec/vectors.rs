//! Every sample decodes to the value that Kafka shows for it and encodes to the same bytes.

use std::collections::BTreeSet;

use protocol::json::Probe;

use crate::samples::{Sample, messages, records};

fn assert_round_trip(sample: &Sample) {
    let Sample { message, version, .. } = sample;
    let value = (sample.probe.to_json)(sample.bytes.clone(), *version)
        .unwrap_or_else(|error| panic!("{message} version {version}: {error}"));
    assert_eq!(value, sample.value, "{message} version {version}");
    let again = (sample.probe.recode)(sample.bytes.clone(), *version).expect("it was decoded a moment ago");
    assert_eq!(again.as_deref(), Some(&sample.bytes[..]), "{message} version {version}");
}

/// The samples cover every message in every version, so that the count alone is no empty success.
fn assert_complete(samples: &[Sample], probes: &[Probe]) {
    let seen: BTreeSet<(&str, i16)> = samples.iter().map(|sample| (sample.message.as_str(), sample.version)).collect();
    let known = probes.iter().flat_map(|probe| probe.versions.clone().map(|version| (probe.name, version)));
    assert_eq!(seen, known.collect(), "sampled against known");
}

#[test]
fn every_message_of_kafka_decodes_to_its_value_and_encodes_to_its_bytes() {
    let samples = messages();
    samples.iter().for_each(assert_round_trip);
    assert_complete(&samples, protocol::messages::PROBES);
    println!("{} messages", samples.len());
    assert_eq!(samples.len(), 1250);
}

#[test]
fn every_coordinator_record_of_kafka_decodes_to_its_value_and_encodes_to_its_bytes() {
    let samples = records();
    samples.iter().for_each(assert_round_trip);
    assert_complete(&samples, protocol::records::PROBES);
    println!("{} records", samples.len());
    assert_eq!(samples.len(), 118);
}
