//! Space that a log directory keeps free, so that no node ever stops for want of it (`R30`).
//!
//! ```text
//!  free space ▲
//!             │  appends go on
//!  reserve ───┼──────────────────  below it appends are refused, but for those of internal topics; they go on again at
//!             │                    an eighth more than the reserve
//!  floor   ───┼──────────────────  a quarter of the reserve: below it those are refused, too; again at an eighth more
//!             │                    than the floor. What is left is for the quorum's log, votes, snapshots, checkpoints and
//!             │                    indexes
//!  ballast ───┼──────────────────  a file that holds its space against everybody else: given up when the quorum's log, a
//!             │                    vote, a checkpoint or an index finds the disk full, made again when there is room
//!           0 ┘
//! ```
//!
//! Invariants: between two looks at the file system, appends are counted against what the last one found: the reserve is
//! not overrun by a fast writer, nor is the floor. Segment data never takes from the ballast.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use model::Time;

use crate::disk::{DirEntry, Disk, DiskFile, OpenMode, Sent, SharedSync, is_out_of_space};

/// The file that holds the ballast.
const FILE: &str = ".ottla-ballast";
/// A reserve that was not given is this share of the file system ...
const SHARE: u64 = 100;
/// ... within these bounds ...
const LEAST: u64 = 32 << 20;
const MOST: u64 = 1 << 30;
/// ... and never more than this share.
const SHARE_MAX: u64 = 10;
/// The ballast is this share of the reserve, in these bounds.
const BALLAST_SHARE: u64 = 4;
const BALLAST_MAX: u64 = 64 << 20;
/// This share of the reserve no segment data takes.
const FLOOR_SHARE: u64 = 4;

/// The reserve of a file system of `total` bytes, where `configured` was given (negative: not given).
#[must_use]
pub fn reserve_of(total: u64, configured: i64) -> u64 {
    u64::try_from(configured).unwrap_or_else(|_| (total / SHARE).clamp(LEAST, MOST).min(total / SHARE_MAX))
}

/// Below so many free bytes nothing of a reserve is left for the logs of internal topics.
#[must_use]
pub fn floor_of(reserve: u64) -> u64 {
    reserve / FLOOR_SHARE
}

/// A directory that had less than `least` is short of space until it has so much: a little more, so that one at the edge does
/// not go back and forth.
#[must_use]
pub fn end_of_shortage(least: u64) -> u64 {
    least.saturating_add(least / 8)
}

/// What is known of a directory's free space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes that were free when it was looked at last.
    pub available: u64,
    /// Below this, appends are refused.
    pub reserve: u64,
    /// Whether they are.
    pub full: bool,
    /// Whether those of internal topics are, too.
    pub exhausted: bool,
}

/// Whether a directory has space for appends. See the module.
#[derive(Debug, Default)]
pub(crate) struct SpaceGauge {
    total: AtomicU64,
    available: AtomicU64,
    reserve: AtomicU64,
    /// What may be appended before the reserve is reached; counted only where there is a reserve.
    left: AtomicI64,
    full: AtomicBool,
    exhausted: AtomicBool,
}

/// Whether so much space is too little, where it was before or was not.
fn is_short(before: bool, available: u64, least: u64) -> bool {
    available < if before { end_of_shortage(least) } else { least }
}

/// A number of bytes that is counted with others.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl SpaceGauge {
    /// The file system was looked at; says whether that changed what may be appended.
    pub(crate) fn measured(&self, total: u64, available: u64, reserve: u64) -> bool {
        self.total.store(total, Ordering::Relaxed);
        self.available.store(available, Ordering::Relaxed);
        self.reserve.store(reserve, Ordering::Relaxed);
        self.left.store(signed(available).saturating_sub(signed(reserve)), Ordering::Relaxed);
        let full = is_short(self.is_full(), available, reserve);
        let exhausted = is_short(self.is_exhausted(), available, floor_of(reserve));
        let changed = self.full.swap(full, Ordering::Relaxed) != full;
        self.exhausted.swap(exhausted, Ordering::Relaxed) != exhausted || changed
    }

    /// So many bytes were appended, or written to a copy.
    pub(crate) fn spend(&self, bytes: u64) {
        let reserve = self.reserve.load(Ordering::Relaxed);
        if reserve == 0 {
            return;
        }
        let bytes = signed(bytes);
        let left = self.left.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        if left < 0 {
            self.full.store(true, Ordering::Relaxed);
        }
        if left.saturating_add(signed(reserve)) < signed(floor_of(reserve)) {
            self.exhausted.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    pub(crate) fn space(&self) -> Space {
        Space {
            total: self.total.load(Ordering::Relaxed),
            available: self.available.load(Ordering::Relaxed),
            reserve: self.reserve.load(Ordering::Relaxed),
            full: self.is_full(),
            exhausted: self.is_exhausted(),
        }
    }
}

/// The file that keeps space for those who must not fail.
#[derive(Debug)]
pub struct Ballast {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    held: Mutex<bool>,
}

impl Ballast {
    /// In `dir`, that may not be there yet.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, dir: &Path) -> Arc<Self> {
        Arc::new(Self { disk, path: dir.join(FILE), held: Mutex::new(false) })
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Takes `reserve`'s share for itself, where the file system has more than both; what an earlier process left is taken
    /// over. A ballast that cannot be had is none: the disk is as full as it is.
    pub fn take(&self, available: u64, reserve: u64) {
        let size = (reserve / BALLAST_SHARE).min(BALLAST_MAX);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held || size == 0 {
            return;
        }
        let mode = if available > reserve + size { OpenMode::Create } else { OpenMode::Existing };
        let taken = self.disk.open(&self.path, mode).and_then(|file| file.preallocate(size));
        *held = taken.is_ok();
        if !*held {
            // What could not be filled would take what others need.
            let _ = self.disk.remove_file(&self.path);
        }
    }

    /// Gives the space up; says whether there was any.
    fn give_up(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = false;
        let freed = self.disk.remove_file(&self.path).is_ok();
        if freed {
            tracing::error!(path = %self.path.display(), "the disk is full; the space that was kept for the quorum's log and the checkpoints is in use now");
        }
        freed
    }
}

/// A disk whose writers may use up the ballast: for all but the data of segments.
#[derive(Debug)]
pub struct ReservedDisk {
    inner: Arc<dyn Disk>,
    ballast: Arc<Ballast>,
}

#[derive(Debug)]
struct ReservedFile {
    inner: Arc<dyn DiskFile>,
    ballast: Arc<Ballast>,
}

impl ReservedDisk {
    /// Over `inner`.
    #[must_use]
    pub fn over(inner: Arc<dyn Disk>, ballast: Arc<Ballast>) -> Arc<dyn Disk> {
        Arc::new(Self { inner, ballast })
    }
}

/// Calls again once there is more space. A call that failed for want of space did nothing; an fdatasync is never repeated
/// (`R30`).
fn with_ballast<T>(ballast: &Ballast, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(error) if is_out_of_space(&error) && ballast.give_up() => call(),
        other => other,
    }
}

impl Disk for ReservedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inner = with_ballast(&self.ballast, || self.inner.open(path, mode))?;
        Ok(Arc::new(ReservedFile { inner, ballast: Arc::clone(&self.ballast) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        with_ballast(&self.ballast, || self.inner.create_dir_all(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        with_ballast(&self.ballast, || self.inner.rename(from, to))
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

impl DiskFile for ReservedFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        self.inner.read_at(into, position)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        with_ballast(&self.ballast, || self.inner.write_at(from, position))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        with_ballast(&self.ballast, || self.inner.truncate(size))
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn modified(&self) -> io::Result<Time> {
        self.inner.modified()
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        with_ballast(&self.ballast, || self.inner.preallocate(size))
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
    use super::*;
    use crate::disk::{MemDisk, replace_file};

    #[test]
    fn a_reserve_is_as_given_or_a_share_of_the_file_system_in_bounds() {
        assert_eq!(reserve_of(100 << 30, 5), 5);
        assert_eq!(reserve_of(100 << 30, 0), 0);
        assert_eq!(reserve_of(10_000 << 20, -1), 100 << 20);
        assert_eq!(reserve_of(1 << 40, -1), MOST);
        assert_eq!(reserve_of(1000 << 20, -1), LEAST);
        assert_eq!(reserve_of(64 << 20, -1), (64 << 20) / 10);
    }

    #[test]
    fn a_directory_is_full_below_its_reserve_and_takes_appends_again_a_little_above() {
        let gauge = SpaceGauge::default();
        let steps = [(1000, false), (800, false), (799, true), (899, true), (900, false), (0, true)];
        for (available, full) in steps {
            gauge.measured(10_000, available, 800);
            assert_eq!((available, gauge.is_full()), (available, full));
        }
        let space = Space { total: 10_000, available: 0, reserve: 800, full: true, exhausted: true };
        assert_eq!(gauge.space(), space);
    }

    #[test]
    fn a_directory_below_a_quarter_of_its_reserve_is_exhausted_until_it_has_a_little_more() {
        let gauge = SpaceGauge::default();
        for (available, exhausted) in [(799, false), (200, false), (199, true), (224, true), (225, false)] {
            gauge.measured(10_000, available, 800);
            assert_eq!((available, gauge.is_exhausted(), gauge.is_full()), (available, exhausted, true));
        }
        assert!(gauge.measured(10_000, 100, 800) && !gauge.measured(10_000, 99, 800), "only a change is news");
        // What is appended counts here, too.
        gauge.measured(10_000, 300, 800);
        gauge.spend(100);
        assert!(!gauge.is_exhausted());
        gauge.spend(1);
        assert!(gauge.is_exhausted());
        gauge.measured(10_000, 0, 0);
        assert!(!gauge.is_exhausted(), "without a reserve nothing is refused before the disk is full");
    }

    #[test]
    fn what_is_appended_counts_until_the_next_look() {
        let gauge = SpaceGauge::default();
        gauge.measured(10_000, 1000, 800);
        gauge.spend(200);
        assert!(!gauge.is_full());
        gauge.spend(1);
        assert!(gauge.is_full());
        gauge.measured(10_000, 5000, 0);
        assert!(!gauge.is_full());
        gauge.spend(u64::MAX);
        assert!(!gauge.is_full(), "without a reserve nothing is refused before the disk is full");
    }

    #[test]
    fn a_full_disk_takes_checkpoints_from_the_ballast_and_data_from_none() {
        let disk = MemDisk::new();
        let (dir, bare) = (Path::new("/d"), Arc::new(disk.clone()) as Arc<dyn Disk>);
        disk.create_dir_all(dir).unwrap();
        disk.set_capacity(Some(4000));
        let ballast = Ballast::new(Arc::clone(&bare), dir);
        let (_, available) = disk.space(dir).unwrap();
        ballast.take(available, 2000);
        let file = disk.open(&dir.join("data"), OpenMode::Create).unwrap();
        assert_eq!(file.write_at(&[IoSlice::new(&[1; 9000])], 0).unwrap(), 3500, "a quarter of the reserve is held");
        assert!(is_out_of_space(&replace_file(&*bare, &dir.join("checkpoint"), &[2; 100]).unwrap_err()));
        let reserved = ReservedDisk::over(bare, Arc::clone(&ballast));
        replace_file(&*reserved, &dir.join("checkpoint"), &[2; 100]).unwrap();
        assert_eq!(disk.space(dir).unwrap().1, 400);
        assert!(replace_file(&*reserved, &dir.join("another"), &[2; 500]).is_err(), "there is one ballast");
        // Once there is room it is taken again; what the failed attempt left beside is overwritten by the next one.
        disk.set_capacity(Some(9000));
        ballast.take(disk.space(dir).unwrap().1, 2000);
        assert_eq!(disk.space(dir).unwrap().1, 9000 - 3500 - 100 - 400 - 500);
    }
}
