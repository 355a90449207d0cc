//! Syncs in three steps, so that nothing waits for a disk under a lock: `start_sync` on the log, [`SyncTicket::run`] on
//! the `DiskPool`, `finish_sync` on the log. Syncs of different logs overlap; one log has one at a time, and what is
//! appended meanwhile goes with the next (group commit).

use std::io;
use std::path::Path;
use std::sync::Arc;

use model::Offset;

use super::segment::{FileKind, SegmentFiles};
use super::{Log, LogError, Names, identity};
use crate::disk::DiskFile;
use crate::env::LogEnv;

/// Whether a sync runs, and up to where its success counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SyncState {
    Idle,
    InFlight(Offset),
}

/// One sync of one log, to be run where blocking is allowed.
#[derive(Debug)]
pub struct SyncTicket {
    env: LogEnv,
    dir: Arc<Path>,
    logs: Vec<(SegmentFiles, Arc<dyn DiskFile>)>,
    /// Of these, those that an earlier process wrote to: whether that reached the disk only their own syncs tell.
    inherited: Vec<Arc<dyn DiskFile>>,
    indexes: Vec<Arc<dyn DiskFile>>,
    names: Names,
}

/// The outcome of a [`SyncTicket`], to be given to [`Log::finish_sync`].
#[derive(Debug)]
#[must_use = "the log waits for the outcome of its sync"]
pub struct SyncDone {
    result: Result<(), LogError>,
    /// What was to be made durable of the names.
    names: Names,
}

impl Log {
    /// Whether there is something that a sync would make durable.
    #[must_use]
    pub fn needs_sync(&self) -> bool {
        self.synced_end < self.log_end || self.segments.iter().any(|segment| segment.dirty || segment.indexes_dirty)
    }

    /// A sync of all that was appended so far. None where nothing is to be synced, or a sync of this log runs: then call
    /// again after `finish_sync`.
    ///
    /// # Errors
    /// As an append.
    pub fn start_sync(&mut self) -> Result<Option<SyncTicket>, LogError> {
        self.usable()?;
        if self.sync != SyncState::Idle || !self.needs_sync() {
            return Ok(None);
        }
        if self.sync_flushes_indexes() {
            match self.flush_indexes() {
                // The records are synced all the same, and the entries wait.
                Ok(()) | Err(LogError::NoSpace(_)) => {}
                Err(error) => return Err(error),
            }
        }
        // All are opened before anything is taken off: where there is no descriptor, or no space for a new index, the next
        // sync begins where this one did.
        let failed = self.short();
        let mut ticket = SyncTicket {
            env: self.env.clone(),
            dir: Arc::clone(&self.dir),
            logs: Vec::new(),
            inherited: Vec::new(),
            indexes: Vec::new(),
            names: self.names,
        };
        for segment in &self.segments {
            let files = segment.files(&self.env, &self.dir);
            if segment.indexes_dirty {
                for kind in [FileKind::Index, FileKind::TimeIndex] {
                    ticket.indexes.push(files.create(kind).map_err(&failed)?);
                }
            }
            if segment.dirty {
                let log = files.open(FileKind::Log).map_err(&failed)?;
                if segment.inherited {
                    ticket.inherited.push(Arc::clone(&log));
                }
                ticket.logs.push((files, log));
            }
        }
        for segment in &mut self.segments {
            segment.inherited &= !segment.dirty;
            (segment.dirty, segment.indexes_dirty) = (false, false);
        }
        self.names = Names::Durable;
        self.sync = SyncState::InFlight(self.log_end);
        self.written_syncing = self.written;
        Ok(Some(ticket))
    }

    /// Takes the outcome of the sync that runs, and gives the offset below which everything is synced now.
    ///
    /// # Errors
    /// `DirectoryOffline` where the sync failed: it is never tried again (`R30`). `NoDescriptor` where the directory of new
    /// names could not be opened to be synced: no sync has failed, and the next one makes up for it.
    pub fn finish_sync(&mut self, done: SyncDone) -> Result<Offset, LogError> {
        let SyncState::InFlight(upto) = std::mem::replace(&mut self.sync, SyncState::Idle) else {
            return Ok(self.synced_end);
        };
        if let Err(error) = done.result {
            if matches!(error, LogError::NoDescriptor(_)) {
                // The files were synced before; their names were not.
                self.names = self.names.min(done.names);
            }
            return Err(error);
        }
        self.usable()?;
        self.synced_end = self.synced_end.max(upto);
        self.written_synced = self.written_syncing;
        self.raise_recovery_point()?;
        Ok(self.synced_end)
    }

    /// Syncs at once, in this thread.
    ///
    /// # Errors
    /// As `start_sync` and `finish_sync`.
    pub fn sync_now(&mut self) -> Result<Offset, LogError> {
        match self.start_sync()? {
            Some(ticket) => self.finish_sync(ticket.run()),
            None => Ok(self.synced_end),
        }
    }

    /// Completes the indexes, for a clean shutdown or to give an idle log's memory back, and syncs. Blocks.
    ///
    /// # Errors
    /// As `sync_now`.
    pub fn settle(&mut self) -> Result<Offset, LogError> {
        self.usable()?;
        if self.indexer.is_some() {
            self.seal()?;
        }
        let synced = self.sync_now()?;
        self.indexer = None;
        Ok(synced)
    }
}

impl SyncTicket {
    /// Syncs all files of the ticket, and the directories where names are new. Blocks.
    pub fn run(self) -> SyncDone {
        if let Some(reason) = self.env.health.failure() {
            let result = Err(LogError::DirectoryOffline(reason.to_owned()));
            return SyncDone { result, names: self.names };
        }
        let result = self.sync().map_err(|e| LogError::fatal(&self.env.health, &self.dir, "cannot sync a file in", &e));
        SyncDone { result, names: self.names }
    }

    /// What the logs of a directory share.
    pub(crate) fn env(&self) -> &LogEnv {
        &self.env
    }

    /// Syncs all files and names of these tickets, which are of one directory, by `sync_all` of their file system. Blocks.
    pub(crate) fn run_together(tickets: &[SyncTicket], sync_all: impl FnOnce() -> io::Result<()>) -> Vec<SyncDone> {
        let Some(first) = tickets.first() else { return Vec::new() };
        let health = &first.env.health;
        let synced = match health.failure() {
            Some(_) => Ok(()),
            None => sync_all().and_then(|()| tickets.iter().try_for_each(|ticket| ticket.sync_inherited())),
        };
        // A file system that went read-only after an error has nothing to sync, and says that this went well; a single
        // file's sync says what happened (`R30`).
        let witness = || tickets.iter().find_map(|ticket| ticket.any_file()).map_or(Ok(()), |file| file.sync_data());
        if health.failure().is_none()
            && let Err(error) = synced.and_then(|()| witness())
        {
            // Nothing is opened on the way: whatever it says, a sync has failed.
            health.fail(&first.dir, "cannot sync files with that in", &error);
        }
        let outcome = || match health.failure() {
            Some(reason) => Err(LogError::DirectoryOffline(reason.to_owned())),
            None => Ok(()),
        };
        tickets.iter().map(|ticket| SyncDone { result: outcome(), names: ticket.names }).collect()
    }

    fn sync_inherited(&self) -> io::Result<()> {
        self.inherited.iter().try_for_each(|log| log.sync_data())
    }

    fn any_file(&self) -> Option<&dyn DiskFile> {
        self.logs.first().map(|(_, log)| log).or(self.indexes.first()).map(|file| &**file)
    }

    /// The names come last: where there is no descriptor to open their directory by, all else was synced.
    fn sync(&self) -> io::Result<()> {
        for index in &self.indexes {
            index.sync_data()?;
        }
        for (_, log) in &self.logs {
            log.sync_data()?;
        }
        let disk = &*self.env.disk;
        match self.names {
            Names::Durable | Names::Absent => Ok(()),
            Names::NewFiles => disk.sync_dir(&self.dir),
            Names::NewDirectory => identity::sync(disk, &self.dir),
        }
    }
}
