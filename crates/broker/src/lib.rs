//! Hosts partitions and coordinator shards, replicates them, follows the metadata and keeps this broker registered.
//!
//! Reading order: [`api`] (what listeners may ask), [`config`], [`clock`], [`budget`], `context` (what the parts share),
//! `partition` (one replica), `leader_streams` and `follower_streams` (replication), `throttle`, `fetch` and `waiters` (long
//! polls and acks), `transactions` (verification, markers), `isr`, `loading`, `lifecycle`, `flusher`, `directories`, `moves`, `housekeeping`,
//! `shards` (coordinators of any kind), `groups`, `transaction_coordinator`, `markers` (to other brokers), `lag` (of groups), `node` (the
//! whole).
//!
//! Invariants: decisions about a partition are the `replication` core's, about a group the `coordinator` core's; here bytes
//! and time are moved. A partition is owned by its lock. Every queue holds each partition at most once.

pub mod api;
pub mod budget;
mod catch_up;
mod cleaner;
pub mod clock;
pub mod config;
mod context;
mod counters;
mod departures;
mod directories;
mod fetch;
mod flusher;
mod follower_streams;
mod groups;
mod housekeeping;
mod isr;
mod lag;
mod leader_streams;
mod leaderships;
mod lifecycle;
mod loading;
mod markers;
mod metrics;
mod moves;
mod node;
mod offsets;
mod partition;
mod peers;
mod producer_ids;
mod shards;
mod throttle;
mod timers;
mod topic_settings;
mod transaction_coordinator;
mod transactions;
mod waiters;

pub use cleaner::CleanerMetrics;
pub use config::BrokerConfig;
pub use lifecycle::{BrokerState, OwnController};
pub use metrics::{BrokerMetrics, DirectoryMetrics, GroupLag, GroupLags, IsrMetrics, LAGS_MAX, PartitionMetrics};
pub use node::{Broker, BrokerParts};
pub use storage::compression;
pub use {coordinator, metadata};
