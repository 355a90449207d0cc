//! The transaction coordinator as a pure, log-driven core: one [`TransactionShard`] holds the transactional ids of one
//! partition of `__transaction_state` (`R44` to `R48`, `R51`).
//!
//! ```text
//!                 add partitions            EndTxn                       every marker is written
//!   Empty ───────────────────► Ongoing ───────────────► PrepareCommit ───────────────► CompleteCommit
//!     ▲                          │  ▲    EndTxn, timeout,                                    │
//!     │                          │  │    InitProducerId                                      │
//!     │                          └──┼──────────────────► PrepareAbort ────────────────► CompleteAbort
//!     │                             │                                                        │
//!     │                             └───────────────── add partitions ───────────────────────┤
//!     └──────────────────────────────────── InitProducerId ──────────────────────────────────┘
//! ```
//!
//! A stored PrepareCommit or PrepareAbort is the point of no return: from then on every partition gets its marker, however
//! long it takes, and nothing else happens to that transactional id (`R45`).
//!
//! Reading order: [`config`], [`request`] (what is asked and answered, without versions), [`state`] (what the log says),
//! [`record`] (how it is written), `decide` (what a request comes to, which changes nothing), [`shard`] (the whole, and how
//! a shell drives it).

pub mod config;
mod decide;
pub mod record;
pub mod request;
pub mod shard;
pub mod state;

pub use config::TransactionConfig;
pub use record::TransactionFact;
pub use request::{TransactionRequest, TransactionResponse};
pub use shard::{Marker, TransactionEffect, TransactionShard};
pub use state::{PartitionSet, Status, TransactionMetadata, TransactionState};

/// The first transaction version in which the epoch is bumped with every transaction (KIP-890, `R51`).
pub const EPOCH_BUMP_VERSION: i16 = 2;
