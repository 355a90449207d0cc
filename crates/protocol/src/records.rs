//! Records of `__consumer_offsets`, `__transaction_state` and `__share_group_state`: one module a record, generated.
//!
//! In the log a key is an int16 type and its body, a value an int16 version and its body. Tools of others read these
//! topics, so the bytes are Kafka's.

use bytes::Bytes;

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::{DecodeError, EncodeError};
use crate::message::{Message, RecordKey};

include!(concat!(env!("OUT_DIR"), "/records.rs"));

/// Keys have one version.
const KEY_VERSION: i16 = 0;

/// The type of a stored key, by which its decoder is chosen.
///
/// # Errors
/// If there are not two bytes.
pub fn key_type(stored: &[u8]) -> Result<i16, DecodeError> {
    match stored.first_chunk::<2>() {
        Some(bytes) => Ok(i16::from_be_bytes(*bytes)),
        None => Err(DecodeError::Truncated { needed: 2, remaining: stored.len() }),
    }
}

/// A key as it is stored.
///
/// # Errors
/// If a name is too long.
pub fn encode_key<K: RecordKey>(key: &K) -> Result<Bytes, EncodeError> {
    prefixed(K::TYPE, key, KEY_VERSION)
}

/// A stored key of a known type.
///
/// # Errors
/// If the bytes are no such key.
pub fn decode_key<K: RecordKey>(stored: &[u8]) -> Result<K, DecodeError> {
    let found = key_type(stored)?;
    if found != K::TYPE {
        return Err(DecodeError::WrongRecordType { expected: K::TYPE, found });
    }
    K::decode_all(&mut Decoder::from_slice(&stored[2..]), KEY_VERSION)
}

/// A value as it is stored. Also how the consumer protocol's subscription and assignment stand in a group's metadata.
///
/// # Errors
/// If the version cannot express the value.
pub fn encode_value<V: Message>(value: &V, version: i16) -> Result<Bytes, EncodeError> {
    prefixed(version, value, version)
}

/// A stored value of whatever version.
///
/// Bytes behind the value are left, as in Kafka: a later version may have appended something.
///
/// # Errors
/// If the bytes are no such value.
pub fn decode_value<V: Message>(stored: &[u8]) -> Result<V, DecodeError> {
    let version = key_type(stored)?;
    V::decode(&mut Decoder::from_slice(&stored[2..]), version)
}

fn prefixed<M: Message>(prefix: i16, message: &M, version: i16) -> Result<Bytes, EncodeError> {
    let mut encoder = Encoder::new();
    encoder.put(&prefix.to_be_bytes());
    message.encode(&mut encoder, version)?;
    Ok(encoder.finish().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_carries_its_type_and_a_value_its_version() {
        let key = OffsetCommitKey { group: "g".to_owned(), topic: "t".to_owned(), partition: 3 };
        let stored = encode_key(&key).unwrap();
        assert_eq!(stored[..], [0, 1, 0, 1, b'g', 0, 1, b't', 0, 0, 0, 3]);
        assert_eq!(key_type(&stored), Ok(OffsetCommitKey::TYPE));
        assert_eq!(decode_key(&stored), Ok(key));
        let wrong = DecodeError::WrongRecordType { expected: 2, found: 1 };
        assert_eq!(decode_key::<GroupMetadataKey>(&stored), Err(wrong));

        let value = OffsetCommitValue { offset: 7, leader_epoch: 2, commit_timestamp: 11, ..Default::default() };
        let stored = encode_value(&value, 3).unwrap();
        assert_eq!(stored[..2], [0, 3]);
        assert_eq!(decode_value(&stored), Ok(value));
    }

    #[test]
    fn an_absent_classic_member_is_told_from_a_null_one_as_kafka_does() {
        // Kafka's default of this tagged field is an empty struct, so null is written out.
        let value = ConsumerGroupMemberMetadataValue { classic_member_metadata: None, ..Default::default() };
        let stored = encode_value(&value, 0).unwrap();
        assert_eq!(stored[stored.len() - 4..], [1, 0, 1, 0xff]);
        assert_eq!(decode_value(&stored), Ok(value));
    }

    #[test]
    fn what_is_too_short_for_its_prefix_or_of_a_version_to_come_is_an_error() {
        assert_eq!(key_type(&[0]), Err(DecodeError::Truncated { needed: 2, remaining: 1 }));
        let unknown = DecodeError::UnknownVersion { message: "OffsetCommitValue", version: 5 };
        assert_eq!(decode_value::<OffsetCommitValue>(&[0, 5, 0, 0]), Err(unknown));
    }
}
