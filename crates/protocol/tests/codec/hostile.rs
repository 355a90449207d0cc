//! Bytes that are not a message give an error: never a panic, never memory out of proportion.

use bytes::BytesMut;
use proptest::prelude::*;
use protocol::messages::{ConsumerGroupHeartbeatRequest, MetadataRequest, ProduceRequest};
use protocol::{DecodeError, Decoder, MEMORY_FLOOR, MEMORY_PER_BYTE, Message};

use crate::memory::peak_of;
use crate::samples::{Sample, messages, records};

/// Arrays are charged; on top come copied strings, and the blocks by which the pieces of a frame are shared.
fn bound(size: usize) -> usize {
    (MEMORY_PER_BYTE + 2) * size + MEMORY_FLOOR + 1024
}

fn all_samples() -> Vec<Sample> {
    messages().into_iter().chain(records()).collect()
}

/// Decodes without keeping, and holds the decoder to its bound of memory.
fn recode(sample: &Sample, bytes: &[u8]) -> Result<(), DecodeError> {
    let bytes = BytesMut::from(bytes);
    let size = bytes.len();
    let (result, peak) = peak_of(|| (sample.probe.recode)(bytes, sample.version).map(drop));
    // Encoding again takes memory as well: the output and its growth.
    assert!(peak <= bound(size) + 4 * size, "{} took {peak} bytes for {size}", sample.message);
    result
}

#[test]
fn every_prefix_of_every_message_is_an_error() {
    let mut prefixes = 0;
    for sample in all_samples() {
        for end in 0..sample.bytes.len() {
            prefixes += 1;
            let result = recode(&sample, &sample.bytes[..end]);
            assert!(result.is_err(), "{} version {} cut at {end} was read", sample.message, sample.version);
        }
    }
    println!("{prefixes} prefixes");
    assert!(prefixes > 50_000, "only {prefixes} prefixes");
}

#[test]
fn every_message_with_a_byte_too_many_is_an_error() {
    for sample in all_samples() {
        let mut longer = sample.bytes.clone();
        longer.extend_from_slice(&[0]);
        assert_eq!(recode(&sample, &longer), Err(DecodeError::TrailingBytes { count: 1 }), "{}", sample.message);
    }
}

#[test]
fn every_byte_set_to_every_extreme_is_taken_calmly() {
    let mut refused = 0;
    for sample in all_samples() {
        let mut bytes = sample.bytes.to_vec();
        for at in 0..bytes.len() {
            let kept = bytes[at];
            for wrong in [0x00, 0x7f, 0xff] {
                bytes[at] = wrong;
                refused += usize::from(recode(&sample, &bytes).is_err());
            }
            bytes[at] = kept;
        }
    }
    println!("{refused} refused");
    assert!(refused > 30_000, "only {refused} were refused");
}

#[test]
fn a_count_of_two_billion_in_four_bytes_allocates_nothing() {
    let bytes = BytesMut::from(&[0x7f, 0xff, 0xff, 0xff][..]);
    let (result, peak) = peak_of(|| MetadataRequest::decode_all(&mut Decoder::new(bytes), 4));
    assert!(matches!(result, Err(DecodeError::Truncated { remaining: 0, .. })), "{result:?}");
    assert!(peak < 100, "{peak} bytes");
}

#[test]
fn an_array_of_next_to_nothing_is_refused_before_it_is_allocated() {
    let size = 1 << 20;
    let mut bytes = vec![1; size];
    // No transactional id, acks, timeout, then 49,151 topics: ids of ones and empty lists of partitions.
    bytes[..7].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0]);
    bytes[7..10].copy_from_slice(&[0x80, 0x80, 0x03]);
    let input = BytesMut::from(&bytes[..]);
    let (result, peak) = peak_of(|| ProduceRequest::decode_all(&mut Decoder::new(input), 13));
    assert!(result.is_err());
    assert!(peak <= bound(size), "{peak} bytes for {size}");
    // A member's heartbeat with a list of a million empty names: 24 bytes in memory for each byte.
    let heartbeat = [&[2, b'g', 2, b'm', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x3e][..], &bytes[10..]].concat();
    let input = BytesMut::from(&heartbeat[..]);
    let (result, peak) = peak_of(|| ConsumerGroupHeartbeatRequest::decode_all(&mut Decoder::new(input), 0));
    assert_eq!(result, Err(DecodeError::TooMuchMemory));
    assert!(peak < 1_000, "{peak} bytes");
}

#[test]
fn tags_that_repeat_descend_or_lie_about_their_size_are_errors() {
    let decode = |tags: &[u8]| {
        // A flexible Fetch request without topics, its tagged fields last.
        let head = [[0, 0, 0, 0].as_slice(), &[0; 4], &[0; 4], &[0], &[0; 4], &[0; 4], &[1, 1, 1]].concat();
        let bytes = BytesMut::from(&[&head, tags].concat()[..]);
        protocol::messages::FetchRequest::decode_all(&mut Decoder::new(bytes), 17)
    };
    let read = decode(&[1, 0, 2, 2, b'c']).expect("one known tag");
    assert_eq!(read.cluster_id.as_deref(), Some("c"));
    assert_eq!(decode(&[2, 0, 2, 2, b'c', 9, 1, 0]), Ok(read), "an unknown tag is skipped");
    assert_eq!(decode(&[2, 9, 0, 9, 0]), Err(DecodeError::BadTags));
    assert_eq!(decode(&[2, 9, 0, 8, 0]), Err(DecodeError::BadTags));
    assert_eq!(decode(&[0xff, 0x01]), Err(DecodeError::BadTags));
    let wrong = DecodeError::BadTagSize { tag: 0, announced: 3, taken: 2 };
    assert_eq!(decode(&[1, 0, 3, 2, b'c', 0]), Err(wrong));
    assert_eq!(decode(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0x1f]), Err(DecodeError::BadVarint));
}

proptest! {
    #[test]
    fn random_bytes_and_random_damage_never_panic_and_stay_within_the_bound(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        tail in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let samples = SAMPLES.get_or_init(all_samples);
        let sample = which.get(samples);
        let mut bytes = sample.bytes.to_vec();
        for (at, byte) in damage {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let _ = recode(sample, &bytes);
        let _ = recode(sample, &tail);
        bytes.extend_from_slice(&tail);
        let _ = recode(sample, &bytes);
    }
}

static SAMPLES: std::sync::OnceLock<Vec<Sample>> = std::sync::OnceLock::new();
