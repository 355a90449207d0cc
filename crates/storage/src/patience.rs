//! A disk whose writers wait for space where there is none: for the quorum's files, that no process may end for (`R30`).
//!
//! The reserve and the ballast ([`reserve`](crate::reserve)) keep that from happening as long as nobody else fills the disk.
//! Where somebody does, a call that finds no space is made again until it finds some, or until nobody is to wait any more, at
//! the end of the process. Whoever waits has acknowledged nothing; to the others it is like one that was paused.
//!
//! Invariants: only a call that did nothing is made again: of a write that was half done the rest is asked for by another call,
//! and an fdatasync is never repeated, whatever it says (`R30`). What a process leaves that ends while it waits is what a crash
//! leaves.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Time;

use crate::disk::{DirEntry, Disk, DiskFile, OpenMode, Sent, SharedSync, is_out_of_space};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Who waits for space, and whether they still may.
#[derive(Debug, Default)]
pub struct Patience {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls that wait.
    waiting: usize,
    ended: bool,
}

impl Patience {
    /// Whether a call waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state().waiting > 0
    }

    /// From now on nobody waits: whoever does gets the error, and so does every later call that finds no space.
    pub fn end(&self) {
        self.state().ended = true;
        self.ended.notify_all();
    }

    /// Makes the call until it finds space.
    fn insist<T>(&self, path: &Path, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut outcome = call();
        if !lacks_space(&outcome) || self.state().ended {
            return outcome;
        }
        self.begin(path);
        while lacks_space(&outcome) && self.pause() {
            outcome = call();
        }
        self.state().waiting -= 1;
        if !lacks_space(&outcome) {
            tracing::info!(path = %path.display(), "there is space for the quorum's files again: they are written");
        }
        outcome
    }

    fn begin(&self, path: &Path) {
        let mut state = self.state();
        state.waiting += 1;
        if state.waiting == 1 {
            tracing::error!(
                path = %path.display(),
                "no space is left on the disk, for the quorum's files neither: this controller waits, and acknowledges \
                 nothing, until there is some; free some, it goes on by itself"
            );
        }
    }

    /// Lets some time pass; false where nobody is to wait any more.
    fn pause(&self) -> bool {
        let waited = self.ended.wait_timeout_while(self.state(), PAUSE, |state| !state.ended);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lacks_space<T>(outcome: &io::Result<T>) -> bool {
    outcome.as_ref().is_err_and(is_out_of_space)
}

/// See the module.
#[derive(Debug)]
pub struct PatientDisk {
    inner: Arc<dyn Disk>,
    patience: Arc<Patience>,
}

#[derive(Debug)]
struct PatientFile {
    inner: Arc<dyn DiskFile>,
    path: Box<Path>,
    patience: Arc<Patience>,
}

impl PatientDisk {
    /// Over `inner`.
    #[must_use]
    pub fn over(inner: Arc<dyn Disk>, patience: Arc<Patience>) -> Arc<dyn Disk> {
        Arc::new(Self { inner, patience })
    }
}

impl Disk for PatientDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.patience.insist(path, || self.inner.open(path, mode))?;
        Ok(Arc::new(PatientFile { inner, path: path.into(), patience: Arc::clone(&self.patience) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.patience.insist(path, || self.inner.create_dir_all(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.patience.insist(to, || self.inner.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir_all(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.inner.space(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        self.inner.shared_sync(dir)
    }
}

impl DiskFile for PatientFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        self.inner.read_at(into, position)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        self.patience.insist(&self.path, || self.inner.write_at(from, position))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.patience.insist(&self.path, || self.inner.truncate(size))
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn modified(&self) -> io::Result<Time> {
        self.inner.modified()
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        self.patience.insist(&self.path, || self.inner.preallocate(size))
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }

    fn can_send(&self) -> bool {
        self.inner.can_send()
    }

    fn send_to(&self, socket: BorrowedFd<'_>, position: u64, len: usize) -> io::Result<Sent> {
        self.inner.send_to(socket, position, len)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::disk::{Call, Crash, FaultKind, MemDisk};
    use crate::quorum_log::{QuorumEntry, QuorumError, QuorumLog};
    use crate::reserve::{Ballast, ReservedDisk};

    const PATH: &str = "/m/quorum.log";

    fn disk() -> MemDisk {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/m")).unwrap();
        disk.crash(Crash::KeepAll);
        disk
    }

    fn entry(index: u64, size: usize) -> QuorumEntry {
        QuorumEntry { index, id: format!("id {index}").into(), payload: vec![7; size].into() }
    }

    fn open(disk: &MemDisk, patience: &Arc<Patience>) -> QuorumLog {
        let ballast = Ballast::new(Arc::new(disk.clone()), Path::new("/m"));
        let reserved = ReservedDisk::over(Arc::new(disk.clone()), ballast);
        QuorumLog::open(PatientDisk::over(reserved, Arc::clone(patience)), Path::new(PATH)).unwrap()
    }

    fn until(condition: impl Fn() -> bool) {
        let since = Instant::now();
        while !condition() {
            assert!(since.elapsed() < Duration::from_secs(30), "it does not come");
            thread::yield_now();
        }
    }

    #[test]
    fn an_append_without_space_waits_for_it_and_goes_on() {
        let (disk, patience) = (disk(), Arc::default());
        let mut log = open(&disk, &patience);
        log.append(&[entry(1, 100)]).unwrap();
        disk.leave_space(1000);
        thread::scope(|scope| {
            // More than is reserved: a part of what is asked for is there.
            let appending = scope.spawn(|| log.append(&[entry(2, 5 << 20)]));
            until(|| patience.is_waiting());
            // A crash meanwhile finds what was acknowledged, and nothing else.
            let crashed = disk.fork();
            crashed.crash(Crash::KeepAll);
            assert_eq!(open(&crashed, &Arc::default()).read(0..9, usize::MAX).unwrap(), [entry(1, 100)]);
            disk.set_capacity(None);
            appending.join().unwrap().unwrap();
        });
        assert!(!patience.is_waiting());
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(open(&disk, &patience).read(0..9, usize::MAX).unwrap(), [entry(1, 100), entry(2, 5 << 20)]);
    }

    #[test]
    fn a_write_of_which_a_part_found_space_leaves_a_torn_one_until_it_goes_on() {
        let (disk, patience) = (disk(), Arc::default());
        let mut log = open(&disk, &patience);
        log.append(&[entry(1, 100)]).unwrap();
        disk.fail(Call::Write, 0, FaultKind::ShortWrite(50));
        (0..1000).for_each(|_| disk.fail(Call::Write, 0, FaultKind::Enospc));
        thread::scope(|scope| {
            let appending = scope.spawn(|| log.append(&[entry(2, 100)]));
            until(|| patience.is_waiting());
            let crashed = disk.fork();
            crashed.crash(Crash::KeepAll);
            assert_eq!(open(&crashed, &Arc::default()).read(0..9, usize::MAX).unwrap(), [entry(1, 100)]);
            disk.forgive();
            appending.join().unwrap().unwrap();
        });
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(open(&disk, &patience).read(0..9, usize::MAX).unwrap(), [entry(1, 100), entry(2, 100)]);
    }

    #[test]
    fn who_waits_is_told_the_end_and_nobody_waits_after_it() {
        let (disk, patience) = (disk(), Arc::default());
        let mut log = open(&disk, &patience);
        disk.leave_space(0);
        thread::scope(|scope| {
            let appending = scope.spawn(|| log.append(&[entry(1, 100)]));
            until(|| patience.is_waiting());
            patience.end();
            assert!(matches!(appending.join().unwrap(), Err(QuorumError::Io { .. })));
        });
        assert!(matches!(log.append(&[entry(1, 100)]), Err(QuorumError::Dead { .. })), "nothing is known of it");
        assert!(!patience.is_waiting());
        assert!(QuorumLog::open(PatientDisk::over(Arc::new(disk.clone()), patience), Path::new("/m/other")).is_err());
    }

    #[test]
    fn a_sync_that_finds_no_space_is_never_repeated() {
        // R30.
        let (disk, patience) = (disk(), Arc::default());
        let mut log = open(&disk, &patience);
        let before = disk.counters().data_syncs;
        disk.fail(Call::SyncData, 0, FaultKind::Enospc);
        assert!(matches!(log.append(&[entry(1, 100)]), Err(QuorumError::Io { .. })));
        assert_eq!((disk.counters().data_syncs, patience.is_waiting()), (before + 1, false));
    }
}
