//! What the cluster is ([`MetadataRecord`], [`MetadataImage`], [`MetadataDelta`]) and how it may change ([`control`]).
//!
//! Reading order: [`records`] (the facts of the metadata log), [`image`] (what they add up to), [`delta`] (what changed),
//! [`restore`] (an older image goes on as a later one),
//! [`configs`] (Kafka's configs as data), [`throttle`] (whose replication is held back), [`control`] (the decisions of the active controller), [`wire`] (all of it as
//! bytes).
//!
//! Invariants: deciding takes `&self`, time and entropy are arguments; replaying neither fails nor decides; nothing here
//! depends on the order of an unordered map.

pub mod records;

pub mod image;

pub mod delta;

pub mod restore;

pub mod configs;
mod flush;

pub mod throttle;

pub mod control;

pub mod wire;

pub use control::{ClusterControl, ControlError, ControlRequest, ControlResponse, ControlSettings, Decision};
pub use delta::MetadataDelta;
pub use image::{MetadataImage, TopicImage, is_internal_topic};
pub use records::{
    BrokerRegistration, ConfigResource, ControllerRegistration, Listener, MetadataRecord, Partition, PartitionChange,
};
pub use throttle::ReplicationThrottle;
