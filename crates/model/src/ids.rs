//! A type for every integer and identifier, so that an offset is never taken for an epoch.

use std::fmt;
use std::ops::{Add, Sub};
use uuid::Uuid;

macro_rules! integer {
    ($(#[$doc:meta])* $name:ident($int:ty), $none:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub $int);

        impl $name {
            /// Kafka's value for "none" or "unknown".
            pub const NONE: $name = $name($none);
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
    };
}

integer!(
    /// The position of a record in a partition's log. Ranges are half-open.
    Offset(i64), -1
);
integer!(
    /// Counts the leaderships of a partition (`R1`).
    LeaderEpoch(i32), -1
);
integer!(
    /// Counts every change of a partition's record (`R1`).
    PartitionEpoch(i32), -1
);
integer!(
    /// A node's `node.id`, as broker or controller.
    BrokerId(i32), -1
);
integer!(
    /// The metadata offset of a broker's registration record (`R6`).
    BrokerEpoch(i64), -1
);
integer!(
    /// An idempotent or transactional producer.
    ProducerId(i64), -1
);
integer!(
    /// Counts the incarnations of one producer id; fences the older ones (`R40`).
    ProducerEpoch(i16), -1
);
integer!(
    /// The number of a partition within its topic.
    PartitionIndex(i32), -1
);
integer!(
    /// The ordinal of a record in the metadata log, given when it is applied (`R65`).
    MetadataOffset(u64), u64::MAX
);

impl Offset {
    /// The first offset of a log.
    pub const ZERO: Offset = Offset(0);
}

impl Add<i64> for Offset {
    type Output = Offset;
    fn add(self, records: i64) -> Offset {
        Offset(self.0 + records)
    }
}

impl Sub<Offset> for Offset {
    type Output = i64;
    fn sub(self, other: Offset) -> i64 {
        self.0 - other.0
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The all-zero identifier: none.
            pub const NONE: $name = $name(Uuid::nil());

            /// Whether this is the all-zero identifier.
            #[must_use]
            pub fn is_none(self) -> bool {
                self.0.is_nil()
            }
        }

        impl fmt::Display for $name {
            /// Kafka's notation: URL-safe base64 without padding, 22 characters.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base64(self.0.as_bytes()))
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadIdentifier;
            /// Reads Kafka's notation.
            fn from_str(text: &str) -> Result<Self, BadIdentifier> {
                from_base64(text).map($name).ok_or_else(|| BadIdentifier(text.chars().take(64).collect()))
            }
        }
    };
}

identifier!(
    /// A topic's identity: a topic deleted and created again is another topic (`R4`).
    TopicId
);
identifier!(
    /// A log directory's identity (`R6`, `R74`).
    DirectoryId
);
identifier!(
    /// One run of a broker process (`R6`).
    Incarnation
);
identifier!(
    /// One run of a machine, from its start to its end: what its page cache held outlives a process, and not this (`R35`).
    /// None where the machine does not tell.
    BootId
);
identifier!(
    /// The identity of a whole cluster.
    ClusterId
);

/// A text that is not a 22-character URL-safe base64 identifier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadIdentifier(pub String);

impl fmt::Display for BadIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an identifier: expected 22 characters of URL-safe base64", self.0)
    }
}

impl std::error::Error for BadIdentifier {}

/// One partition of one topic, by identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicPartition {
    /// Which topic.
    pub topic_id: TopicId,
    /// Which of its partitions.
    pub partition: PartitionIndex,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic_id, self.partition)
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn base64(bytes: &[u8; 16]) -> String {
    let mut out = String::with_capacity(22);
    for chunk in bytes.chunks(3) {
        let mut group = [0u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        for i in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * i)) & 63;
            out.push(char::from(ALPHABET[usize::try_from(index).unwrap_or(0)]));
        }
    }
    out
}

fn from_base64(text: &str) -> Option<Uuid> {
    if text.len() != 22 {
        return None;
    }
    let mut bits: u128 = 0;
    for (i, c) in text.bytes().enumerate() {
        let value = u128::try_from(ALPHABET.iter().position(|a| *a == c)?).ok()?;
        // The last character carries two bits only.
        bits = if i < 21 { bits << 6 | value } else { bits << 2 | value >> 4 };
    }
    Some(Uuid::from_u128(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_reads_back_as_it_was_written() {
        for bits in [0u128, 1, u128::MAX, 0x0123_4567_89ab_cdef_0011_2233_4455_6677] {
            let id = TopicId(Uuid::from_u128(bits));
            assert_eq!(id.to_string().parse::<TopicId>().unwrap(), id);
        }
        assert_eq!("ESIzRFVmd44AAAAAAAAABg".parse::<TopicId>().unwrap().to_string(), "ESIzRFVmd44AAAAAAAAABg");
    }

    #[test]
    fn a_text_that_is_no_identifier_is_refused() {
        for text in ["", "short", "ESIzRFVmd44AAAAAAAAAB!", "ESIzRFVmd44AAAAAAAAABgg"] {
            assert!(text.parse::<TopicId>().is_err(), "{text}");
        }
    }
}
