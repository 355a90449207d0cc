//! Coordinators as pure, log-driven cores. [`driver`] says how a shell drives one, whatever it coordinates;
//! [`transaction`] is the transaction coordinator. The rest is the group coordinator: one [`GroupShard`] holds the groups of
//! one partition of `__consumer_offsets` (`R49`, `R52` to `R55`).
//!
//! Reading order: [`request`] (what is asked and answered, without versions), [`config`], [`record`] (what is written),
//! [`state`] (what the log says), [`classic`] (members and their rebalance), [`consumer`] (groups of the next generation),
//! [`offsets`] (commit, fetch, delete, expire), [`pending`] (offsets in transactions, `R49`), [`shard`] (the whole, and how
//! a shell drives it), [`partition`] (which shard a group belongs to).
//!
//! Three kinds of state, never mixed:
//! - [`GroupState`] is what the log says: it changes by `replay` alone, which neither fails nor decides, and only after
//!   the records are committed. Whoever replays the same log has the same `GroupState`.
//! - [`classic::ClassicGroup`] is who is here right now: members, parked requests, deadlines. It dies with the coordinator;
//!   the next one rebuilds it from `GroupState`, and every member's session starts anew.
//! - [`consumer::LiveConsumerGroup`] is what is decided of a consumer group, committed or not, and who is waited for. What is
//!   not committed in the end is taken back.

pub mod driver;

pub mod classic;
pub mod config;
pub mod consumer;
pub mod offsets;
pub mod partition;
pub mod pending;
pub mod record;
pub mod request;
pub mod shard;
pub mod state;
mod writes;

pub mod transaction;

pub use config::GroupConfig;
pub use driver::Shard;
pub use partition::partition_for;
pub use record::{CoordinatorRecord, Fact};
pub use request::{GroupRequest, GroupResponse};
pub use shard::{BatchNumber, GroupShard, Now, Output, Rebalances, Token};
pub use state::{CommittedOffset, GroupMetadata, GroupState, MemberMetadata};
pub use transaction::{TransactionConfig, TransactionShard};
