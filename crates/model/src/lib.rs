//! The vocabulary of Ottla: a type for every integer, Kafka's error codes, and record batches as checked views over bytes.
//!
//! Reading order: [`ids`] (what things are called), [`time`], [`error_code`], [`batch`] (the one unit that moves through
//! the data path), [`marker`] (how transactions end), [`epoch_cache`] (`R25`), [`rules`] (the safety rules that tests can
//! switch off).
//!
//! Invariant: nothing here reads a clock, a file, a socket or a random number.

pub mod batch;
pub mod epoch_cache;
pub mod error_code;
pub mod ids;
pub mod marker;
pub mod record;
pub mod rules;
pub mod time;

pub use batch::{BatchError, BatchHeader, ClientBatches, Codec, RecordBatch, TimestampType};
pub use epoch_cache::{EpochCache, EpochEnd, EpochStart};
pub use error_code::ErrorCode;
pub use ids::{
    BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, Incarnation, LeaderEpoch, MetadataOffset, Offset,
    PartitionEpoch, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TopicPartition,
};
pub use marker::EndMarker;
pub use record::{Header, Record, RecordError, RecordIter, encode_batch, encode_records, encode_transactional_batch};
pub use rules::{Rule, Rules};
pub use time::Time;
pub use uuid::Uuid;
