//! Everything on disk: partition logs, their recovery and retention, checkpoints, data directories.
//!
//! Reading order: [`disk`] (the file system as a trait), [`pool`] (threads for blocking work), [`config`], [`mod@env`] (what
//! logs share), `descriptors` (where the system has none left), `group_sync` (syncs that are asked for at once), [`reserve`]
//! (what is kept of a disk that fills up), [`log`](mod@log) (one partition's log; its parts beside it), [`compression`],
//! [`data_dir`] (one log directory), [`LogDirs`] (all of them).
//! The metadata quorum: [`quorum_log`], [`quorum_vote`], [`quorum_snapshot`], and its image in [`metadata_store`].
//!
//! Invariants: nothing here knows of leadership; a [`Log`] is a plain struct with `&mut self` methods, without locks and
//! without async, owned by whoever owns the partition. Every access to a file goes through [`disk::Disk`]. An idle
//! partition costs a few hundred bytes: no thread, timer, map or open file.

mod checkpoint;
pub mod compression;
pub mod config;
pub mod data_dir;
mod descriptors;
pub mod disk;
pub mod env;
mod group_sync;
pub mod log;
mod log_dirs;
pub mod metadata_store;
pub mod patience;
pub mod pool;
pub mod quorum_log;
pub mod quorum_snapshot;
pub mod quorum_vote;
pub mod reserve;

pub use config::{CleanupPolicy, LogConfig};
pub use data_dir::{Checkpoint, DataDir, DataDirError, FutureDir, MetaProperties, PartitionDir, is_movable};
pub use env::{DirHealth, LogEnv};
pub use log::{
    Aborted, AbortedTransaction, Appended, BatchTime, Cleanable, CleanedSwap, Cleaning, CleaningOptions, CleaningStats,
    CleaningStep, ColdAborted, ColdRead, ColdRecords, Deleted, EpochCheckpoint, LEND_MIN, Log, LogError, OpenHints,
    ProducerSnapshot, Read, RecordRange, Recovered, Removal, SegmentTime, SwapEnd, SyncDone, SyncTicket, TimeLookup,
    TimeMatch, TimeRead, TimeSearch, Verdict,
};
pub use log_dirs::{LogDir, LogDirs, UnopenedDir};
pub use metadata::configs::FlushPolicy;
pub use pool::DiskPool;
pub use reserve::Space;
