//! Consumer groups of the next generation (KIP-848): the coordinator computes who should have which partition, and leads
//! each member there by itself; nobody stops because somebody else joins.
//!
//! Reading order: [`group`] (what the log says of a group), [`request`], [`config`], [`draft`] (a decision in the making),
//! [`heartbeat`] (how members come, live and go), [`assign`] (who should have what), [`reconcile`] (the next step of a
//! member), [`topics`] and [`regex`] (what subscriptions stand for), `classic_members` and [`convert`] (members of the
//! classic protocol, and groups that change between the two), [`presence`] (who is waited for), `record` (the bytes).

pub mod group;
pub mod request;

pub mod config;
pub mod draft;
pub mod heartbeat;

pub mod assign;
pub mod reconcile;

pub mod regex;
pub mod topics;

pub(crate) mod classic_members;
pub mod convert;
pub(crate) mod embedded;

pub(crate) mod describe;

pub mod presence;
pub(crate) mod record;

pub use config::ConsumerConfig;
pub use group::{ConsumerFact, ConsumerGroup};
pub use presence::LiveConsumerGroup;
