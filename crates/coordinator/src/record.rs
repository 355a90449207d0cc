//! What the coordinator writes, byte for byte as Kafka 4.3 does: keys and values begin with an int16 type or version.

use bytes::Bytes;
use model::PartitionIndex;

use crate::state::{CommittedOffset, GroupMetadata};

/// One record of `__consumer_offsets`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CoordinatorRecord {
    /// What it is about.
    pub key: Bytes,
    /// What is so now; None is a tombstone.
    pub value: Option<Bytes>,
}

/// What a record says. None is a tombstone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// An offset is stored, or removed.
    Offset {
        /// Whose.
        group_id: String,
        /// Of which topic.
        topic: String,
        /// Of which partition.
        partition: PartitionIndex,
        /// The offset.
        committed: Option<CommittedOffset>,
    },
    /// A group has this generation, or is no more.
    Group {
        /// Which group.
        group_id: String,
        /// The generation.
        metadata: Option<Box<GroupMetadata>>,
    },
}
