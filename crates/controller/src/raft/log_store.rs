//! The Raft log and vote on our own files, as openraft wants them.
//!
//! Every access runs on the disk pool under one lock, in the order in which openraft asks. Appends and votes are answered
//! after they are durable.
//!
//! Invariant (`R72`): nothing behind the newest durable snapshot leaves the disk, whatever openraft purges: it queues a purge
//! behind the installation of a snapshot without waiting for it. Until the snapshot is durable, what is behind the purge
//! point is hidden but kept, and an append that would leave a gap waits.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use model::{Rule, Rules};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{LogId, OptionalSend, RaftLogReader, Vote};
use storage::DiskPool;
use storage::disk::Disk;
use storage::quorum_log::{PurgePoint, QuorumEntry, QuorumError, QuorumLog};
use storage::quorum_vote::QuorumVote;
use tokio::sync::Notify;

use crate::raft::codec::{self, CodecError};
use crate::raft::types::{Entry, NodeId, StorageError, StorageIOError, TypeConfig};

/// What one read gives at most: it must be sent and synced within a heartbeat interval (`R67`).
pub(crate) const READ_MAX: usize = 128 << 10;

/// Why the store cannot be used.
#[derive(thiserror::Error, Debug)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Files(#[from] QuorumError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The last entry, readable while the disk is busy.
    last: Mutex<Option<LogId<NodeId>>>,
    pool: DiskPool,
    snapshot_saved: Notify,
    /// An append stands still until a snapshot is saved that it goes on behind.
    awaits_snapshot: AtomicBool,
    rules: Rules,
}

#[derive(Debug)]
struct State {
    log: QuorumLog,
    vote: QuorumVote,
    /// As openraft knows it; the log's own purge point may be lower.
    purged: Option<LogId<NodeId>>,
    /// The newest snapshot that is durable.
    snapshot: Option<LogId<NodeId>>,
    rules: Rules,
}

impl LogStore {
    /// Opens the files in `dir`; `snapshot` is the newest snapshot there.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        pool: DiskPool,
        snapshot: Option<LogId<NodeId>>,
        rules: Rules,
    ) -> Result<LogStore, StoreError> {
        let log = QuorumLog::open(Arc::clone(disk), &dir.join("quorum.log"))?;
        let vote = QuorumVote::open(&**disk, &dir.join("quorum.vote"))?;
        let purged = log.purged().map(|point| codec::from_json(&point.id)).transpose()?;
        let state = State { log, vote, purged, snapshot, rules };
        let last = Mutex::new(state.last()?);
        let shared = Shared {
            state: Mutex::new(state),
            last,
            pool,
            snapshot_saved: Notify::new(),
            awaits_snapshot: AtomicBool::new(false),
            rules,
        };
        Ok(LogStore { shared: Arc::new(shared) })
    }

    /// Which rules hold for what is kept here.
    pub(crate) fn rules(&self) -> Rules {
        self.shared.rules
    }

    /// Takes the commitment from the stored vote: a restarted leader must be elected again, because it may have lost
    /// entries that nobody else has.
    pub(crate) fn forget_leadership(&self) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock().expect("no holder of the lock panics");
        if let Some(mut vote) = state.vote()?.filter(|vote| vote.committed) {
            vote.committed = false;
            state.vote.save(&codec::to_json(&vote))?;
        }
        Ok(())
    }

    /// The last entry, purged or not; `None` where there was never one (`R74`).
    pub(crate) fn last(&self) -> Option<LogId<NodeId>> {
        *self.shared.last.lock().expect("no holder of the lock panics")
    }

    /// Whether a vote was ever stored.
    pub(crate) fn has_voted(&self) -> bool {
        self.shared.state.lock().expect("no holder of the lock panics").vote.vote().is_some()
    }

    /// The log's own purge point, and its end.
    pub(crate) fn bounds(&self) -> Result<LogBounds, StoreError> {
        let state = self.shared.state.lock().expect("no holder of the lock panics");
        let point = |id: &[u8]| codec::from_json::<LogId<NodeId>>(id);
        Ok(LogBounds {
            purged: state.log.purged().map(|p| point(&p.id)).transpose()?,
            last: state.log.last().map(|(_, id)| point(id)).transpose()?,
        })
    }

    /// Whether the log has the entry of this identity.
    pub(crate) fn has(&self, id: &LogId<NodeId>) -> bool {
        let state = self.shared.state.lock().expect("no holder of the lock panics");
        state
            .log
            .id_at(id.index)
            .is_some_and(|stored| codec::from_json::<LogId<NodeId>>(stored).is_ok_and(|s| s == *id))
    }

    /// A snapshot up to `upto` is durable: what was purged behind it may go (`R72`).
    /// Whether openraft's core stands still until a snapshot is saved.
    pub(crate) fn awaits_snapshot(&self) -> bool {
        self.shared.awaits_snapshot.load(Ordering::Relaxed)
    }

    pub(crate) async fn snapshot_saved(&self, upto: LogId<NodeId>) -> Result<(), StoreError> {
        let done = self.with(move |state| {
            state.snapshot = state.snapshot.max(Some(upto));
            state.purge_allowed()
        });
        done.await?;
        self.shared.snapshot_saved.notify_waiters();
        Ok(())
    }

    async fn with<T: Send + 'static>(&self, job: impl FnOnce(&mut State) -> T + Send + 'static) -> T {
        let shared = Arc::clone(&self.shared);
        let locked = move || {
            let mut state = shared.state.lock().expect("no holder of the lock panics");
            let answer = job(&mut state);
            // What does not decode was refused when it was opened.
            *shared.last.lock().expect("no holder of the lock panics") = state.last().unwrap_or_default();
            answer
        };
        self.shared.pool.run(locked).await
    }

    /// Appends, where no gap would follow; else gives the entries back.
    async fn try_append(&self, entries: Vec<QuorumEntry>) -> Result<Result<(), StoreError>, Vec<QuorumEntry>> {
        self.with(move |state| {
            if state.would_leave_a_gap(&entries) {
                Err(entries)
            } else {
                Ok(state.log.append(&entries).map_err(Into::into))
            }
        })
        .await
    }
}

/// Where the log starts and ends on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogBounds {
    pub(crate) purged: Option<LogId<NodeId>>,
    pub(crate) last: Option<LogId<NodeId>>,
}

impl State {
    fn vote(&self) -> Result<Option<Vote<NodeId>>, CodecError> {
        self.vote.vote().map(|vote| codec::from_json(vote)).transpose()
    }

    /// The last entry, or the purge point where that is further.
    fn last(&self) -> Result<Option<LogId<NodeId>>, CodecError> {
        let last = self.log.last().map(|(_, id)| codec::from_json::<LogId<NodeId>>(id)).transpose()?;
        Ok(if last.map(|id| id.index) > self.purged.map(|id| id.index) { last } else { self.purged })
    }

    /// Purges what openraft purged, as far as the snapshot goes.
    fn purge_allowed(&mut self) -> Result<(), StoreError> {
        let bound = if self.rules.hold(Rule::R72PurgeBound) { self.snapshot } else { self.purged };
        let Some(allowed) = self.purged.min(bound) else { return Ok(()) };
        Ok(self.log.purge(&PurgePoint { index: allowed.index, id: codec::to_json(&allowed) })?)
    }

    /// Whether entries would stand behind a purge that is not on disk yet, with nothing before them.
    fn would_leave_a_gap(&self, entries: &[QuorumEntry]) -> bool {
        let Some(purged) = self.purged.map(|id| id.index) else { return false };
        let pending = self.log.purged().is_none_or(|point| point.index < purged);
        let last = self.log.last().map(|(index, _)| index);
        let gap = |first: u64| first > purged && last.is_none_or(|last| first > last + 1);
        pending && entries.first().is_some_and(|first| gap(first.index))
    }

    fn read(&self, range: std::ops::Range<u64>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let start = self.purged.map_or(range.start, |purged| range.start.max(purged.index + 1));
        let entries = self.log.read(start..range.end, limit)?;
        entries.iter().map(|entry| codec::entry_from_log(entry).map_err(Into::into)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let entries = self.with(move |state| state.read(start..end, usize::MAX)).await;
        entries.map_err(|error| StorageIOError::read_logs(&error).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let entries = self.with(move |state| state.read(start..end, READ_MAX)).await;
        entries.map_err(|error| StorageIOError::read_logs(&error).into())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let state = self.with(|state| -> Result<_, StoreError> {
            Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last()? })
        });
        state.await.map_err(|error| StorageIOError::read_logs(&error).into())
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError> {
        let bytes = codec::to_json(vote);
        let saved = self.with(move |state| state.vote.save(&bytes)).await;
        saved.map_err(|error| StorageIOError::write_vote(&error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError> {
        let vote = self.with(|state| state.vote()).await;
        vote.map_err(|error| StorageIOError::read_vote(&error).into())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries: Vec<QuorumEntry> = entries.into_iter().map(|entry| codec::entry_to_log(&entry)).collect();
        let appended = loop {
            let saved = self.shared.snapshot_saved.notified();
            tokio::pin!(saved);
            // Registered before the look: a snapshot saved in between is not missed.
            saved.as_mut().enable();
            match self.try_append(entries).await {
                Ok(appended) => break appended,
                Err(back) => entries = back,
            }
            self.shared.awaits_snapshot.store(true, Ordering::Relaxed);
            saved.await;
            self.shared.awaits_snapshot.store(false, Ordering::Relaxed);
        };
        let result = appended.as_ref().copied().map_err(|error| std::io::Error::other(error.to_string()));
        callback.log_io_completed(result);
        appended.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError> {
        let truncated = self.with(move |state| state.log.truncate_from(log_id.index)).await;
        truncated.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError> {
        let purged = self.with(move |state| {
            state.purged = state.purged.max(Some(log_id));
            state.purge_allowed()
        });
        purged.await.map_err(|error| StorageIOError::write_logs(&error).into())
    }
}
