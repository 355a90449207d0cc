//! What can go wrong with a log, by what the caller must do.

use std::io;
use std::path::{Path, PathBuf};

use model::{LeaderEpoch, Offset, TopicId};

use crate::disk::{is_out_of_descriptors, is_out_of_space};
use crate::env::DirHealth;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// A segment was deleted or cut while it was read without the log: read again. Where that says the same, bytes are
    /// missing.
    #[error("{} was deleted or cut while it was read", .0.display())]
    Gone(PathBuf),
    /// An earlier or this call failed in a way that ends the use of the whole log directory (`R30`).
    #[error("the log directory is offline: {0}")]
    DirectoryOffline(String),
    /// No space; the log is as it was before the call, and the call may be made again later; but where
    /// [`Log::is_unfinished`](super::Log::is_unfinished) says so, a change was begun that cannot be gone on with here.
    #[error("no space is left for {}: free some, or move partitions away", .0.display())]
    NoSpace(PathBuf),
    /// No file descriptor was to be had for something in there. The disk is as good as it was, the log is as it was before
    /// the call, and the call may be made again later; but where [`Log::is_unfinished`](super::Log::is_unfinished) says so, a
    /// change was begun that cannot be gone on with here.
    #[error("no file descriptor is left for {}: raise the limit of open files, or have fewer connections", .0.display())]
    NoDescriptor(PathBuf),
    /// Bytes on disk are not what was written. Nothing of them is served.
    #[error("{} is corrupt at byte {position}: {what}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// The records below were read and are sound, or are below what was to be read.
        offset: Offset,
        /// In which way.
        what: String,
    },
    /// Batches that do not follow the log's end or each other, or whose leader epoch goes back.
    #[error(
        "batch at offset {offset} of leader epoch {epoch} cannot follow offset {log_end} of leader epoch {last_epoch}"
    )]
    OutOfOrder {
        /// Base offset of the batch.
        offset: Offset,
        /// Its leader epoch.
        epoch: LeaderEpoch,
        /// Where the next batch may start at the earliest.
        log_end: Offset,
        /// The leader epoch before it.
        last_epoch: LeaderEpoch,
    },
    /// An offset outside of the log.
    #[error("offset {offset} is outside the log, which is {log_start} to {log_end}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// The first offset there is.
        log_start: Offset,
        /// The offset after the last.
        log_end: Offset,
    },
    /// The log was found lossy at start (`R29`): it takes appends only after `truncate_to` or `reset_to` accepted the loss.
    #[error("the log is corrupt from offset {first_bad} on: truncate it there or reset it before appending")]
    Lossy {
        /// The first offset that is not sound.
        first_bad: Offset,
    },
    /// The directory belongs to another topic of the same name (`R4`).
    #[error("{} belongs to topic id {found}, not to {expected}: delete it before the partition is used", path.display())]
    WrongTopic {
        /// The partition's directory.
        path: PathBuf,
        /// The id in it.
        found: TopicId,
        /// The id that was asked for.
        expected: TopicId,
    },
    /// `partition.metadata` of a partition with synced records is missing or damaged.
    #[error("{} does not say which topic it belongs to: restore the file, or delete the directory to fetch it again", .0.display())]
    UnknownTopic(PathBuf),
}

impl LogError {
    /// Whether the log is as it was: something was short that may be there again later.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        matches!(self, LogError::NoSpace(_) | LogError::NoDescriptor(_))
    }

    /// An I/O error at `path`: takes the directory offline (`R30`). That a process has too many files open is none.
    pub(crate) fn fatal(health: &DirHealth, path: &Path, what: &str, error: &io::Error) -> LogError {
        if is_out_of_descriptors(error) {
            return LogError::NoDescriptor(path.to_owned());
        }
        health.fail(path, what, error);
        LogError::DirectoryOffline(health.failure().unwrap_or_default().to_owned())
    }

    /// An error of a write: no space can be undone by the caller, anything else is final.
    pub(crate) fn write(health: &DirHealth, path: &Path, error: &io::Error) -> LogError {
        if is_out_of_space(error) {
            LogError::NoSpace(path.to_owned())
        } else {
            Self::fatal(health, path, "cannot write", error)
        }
    }
}
