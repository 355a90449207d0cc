//! What the logs of a broker share: the disk, the pool of open files, the budget of the tail caches, and the health of
//! the log directory that they lie in.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::descriptors::GivenBack;
use crate::disk::{Disk, DiskFile, OpenMode, is_out_of_descriptors};
use crate::group_sync::GroupSync;
use crate::log::tail::TailBudget;
use crate::reserve::{Ballast, ReservedDisk, Space, SpaceGauge};

/// Bytes of all tail caches together, unless told otherwise.
pub const TAIL_BYTES_DEFAULT: usize = 64 << 20;
/// Files open at once, unless told otherwise.
pub const OPEN_FILES_DEFAULT: usize = 512;
/// So many files the pool gives back at once where descriptors are short, if nobody uses them.
const GIVEN_BACK: usize = 32;

/// See the module. A cheap handle.
#[derive(Clone, Debug)]
pub struct LogEnv {
    pub(crate) disk: Arc<dyn Disk>,
    /// The same for the pool of open files, but for the data of segments.
    pub(crate) pooled: Arc<dyn Disk>,
    pub(crate) files: Arc<FilePool>,
    pub(crate) tail: Arc<TailBudget>,
    pub(crate) health: Arc<DirHealth>,
    pub(crate) group: Arc<GroupSync>,
}

impl LogEnv {
    /// An environment with at most `open_files` files open and `tail_bytes` in tail caches.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, open_files: usize, tail_bytes: usize) -> Self {
        let files = Arc::new(FilePool::new(Arc::clone(&disk), open_files));
        let tail = Arc::new(TailBudget::new(tail_bytes));
        let pooled = Arc::clone(&disk);
        let disk = GivenBack::over(disk, Arc::clone(&files));
        Self { disk, pooled, files, tail, health: Arc::default(), group: Arc::default() }
    }

    /// The same, for another log directory: its health is its own, and so are what is kept for a full disk and the line of
    /// those who want a sync. To be made before anything is written there.
    #[must_use]
    pub fn for_directory(&self, ballast: Arc<Ballast>) -> Self {
        let group = Arc::new(GroupSync::new(self.disk.shared_sync(ballast.dir())));
        let pooled = ReservedDisk::over(Arc::clone(&self.pooled), ballast);
        let disk = GivenBack::over(Arc::clone(&pooled), Arc::clone(&self.files));
        Self { disk, pooled, health: Arc::default(), group, ..self.clone() }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether the directory still takes reads and writes.
    #[must_use]
    pub fn health(&self) -> &Arc<DirHealth> {
        &self.health
    }

    /// Bytes in tail caches now.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.tail.used()
    }

    /// Bytes that all tail caches may hold.
    #[must_use]
    pub fn tail_limit(&self) -> usize {
        self.tail.limit()
    }

    /// Files open in the pool now.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// How often no file descriptor was to be had, also after the pool gave some back.
    #[must_use]
    pub fn descriptor_shortages(&self) -> u64 {
        self.files.shortages.load(Ordering::Relaxed)
    }

    /// Reads whose records are lent to be sent from their files: each may hold one open that the pool has closed.
    #[must_use]
    pub fn lent_files(&self) -> usize {
        self.files.lent.load(Ordering::Relaxed)
    }
}

/// Whether a log directory still works, and has space. Once it failed it stays failed until the process starts again
/// (`R30`).
#[derive(Debug, Default)]
pub struct DirHealth {
    failed: OnceLock<String>,
    pub(crate) space: SpaceGauge,
}

impl DirHealth {
    /// Why the directory is offline, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// What is known of its free space.
    #[must_use]
    pub fn space(&self) -> Space {
        self.space.space()
    }

    /// Whether appends are refused for want of space, but for those of logs that may use the reserve.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.space.is_full()
    }

    /// Whether those are, too: what is left of the reserve is for what keeps the node going.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.space.is_exhausted()
    }

    /// Whether the appends of a log are refused for want of space, by whether it may use the reserve.
    #[must_use]
    pub fn refuses(&self, may_use_reserve: bool) -> bool {
        if may_use_reserve { self.is_exhausted() } else { self.is_full() }
    }

    /// Takes the directory offline; the first reason stays.
    pub fn fail(&self, path: &Path, what: &str, error: &io::Error) {
        let reason = format!("{what} {}: {error}", path.display());
        if self.failed.set(reason.clone()).is_ok() {
            tracing::error!(%reason, "the log directory is offline until the broker starts again");
        }
    }
}

/// Which open file is meant: of all files of all logs of this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct FileKey(pub(crate) u64);

/// Open files, at most so many: the one that was used longest ago is closed.
///
/// A file may be closed while the page cache holds writes of it that no fdatasync covered; Linux (4.16 and later) tells
/// a write-back error that nobody saw to the next one who opens and syncs the file, so none gets lost by this.
#[derive(Debug)]
pub(crate) struct FilePool {
    disk: Arc<dyn Disk>,
    limit: usize,
    next_key: AtomicU64,
    open: Mutex<OpenFiles>,
    /// Files that are held open beside the pool, at most half as many as it may have.
    lent: AtomicUsize,
    /// How often there was no descriptor for what was to be opened.
    shortages: AtomicU64,
}

/// A file may be held open as long as this is, whatever the pool does.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<FilePool>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct OpenFiles {
    tick: u64,
    /// How many are being opened.
    opening: usize,
    /// How often a file was closed because what it is of was over.
    closes: u64,
    by_key: BTreeMap<FileKey, (u64, Arc<dyn DiskFile>)>,
    by_use: BTreeMap<u64, FileKey>,
}

impl FilePool {
    fn new(disk: Arc<dyn Disk>, limit: usize) -> Self {
        let (next_key, lent, shortages) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        Self { disk, limit: limit.max(1), next_key, open: Mutex::default(), lent, shortages }
    }

    /// Allows to hold a file open beside the pool, unless there are too many already.
    pub(crate) fn lend(self: &Arc<Self>) -> Option<Lease> {
        let most = self.limit / 2;
        let one_more = |lent| (lent < most).then_some(lent + 1);
        let taken = self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Lease { pool: Arc::clone(self) })
    }

    /// Keys for `count` files, the first of them.
    pub(crate) fn keys(&self, count: u64) -> FileKey {
        FileKey(self.next_key.fetch_add(count, Ordering::Relaxed))
    }

    /// The file, opened if it is not: on `disk`, or on the bare one.
    pub(crate) fn get(
        &self,
        key: FileKey,
        mode: OpenMode,
        disk: Option<&Arc<dyn Disk>>,
        path: impl FnOnce() -> PathBuf,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let (closes, evicted) = {
            let mut open = self.lock();
            if let Some(file) = open.used(key) {
                return Ok(file);
            }
            // Room first, so that the bound holds at every moment.
            open.opening += 1;
            (open.closes, open.make_room(self.limit))
        };
        // Neither closing nor opening is done with the lock held: the files of other log directories are in this pool, too, and
        // a disk that hangs must not hold up theirs.
        drop(evicted);
        let (disk, path) = (disk.unwrap_or(&self.disk), path());
        let opened = match disk.open(&path, mode) {
            Err(error) if is_out_of_descriptors(&error) && self.give_back() => disk.open(&path, mode),
            other => other,
        };
        let opened = opened.inspect_err(|error| self.note_shortage(error));
        let mut open = self.lock();
        open.opening -= 1;
        let file = opened?;
        // What was opened before a close may be the file of a name that means another one now: nobody else is to get it.
        if open.closes == closes {
            open.keep(key, &file);
        }
        Ok(file)
    }

    fn lock(&self) -> MutexGuard<'_, OpenFiles> {
        self.open.lock().expect("no holder of the lock panics")
    }

    /// Closes some of the files that nobody uses, for others who need descriptors; false where there is none.
    pub(crate) fn give_back(&self) -> bool {
        // They are closed when the lock is free again.
        let idle = self.lock().give_back();
        !idle.is_empty()
    }

    /// Counts an error that says that there is no descriptor, and tells of it: each time that it has happened twice as often,
    /// as it may happen at every request.
    pub(crate) fn note_shortage(&self, error: &io::Error) {
        if !is_out_of_descriptors(error) {
            return;
        }
        let times = self.shortages.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::error!(times, %error, "a file cannot be opened; nothing is lost, and it will be tried again");
        }
    }

    /// Closes the file, if it is open.
    pub(crate) fn close(&self, key: FileKey) {
        let closed = {
            let mut open = self.lock();
            open.closes += 1;
            open.take(key)
        };
        drop(closed);
    }

    fn len(&self) -> usize {
        self.lock().by_key.len()
    }
}

impl OpenFiles {
    /// An open file, which is used now.
    fn used(&mut self, key: FileKey) -> Option<Arc<dyn DiskFile>> {
        let (used, file) = self.by_key.get_mut(&key)?;
        self.tick += 1;
        let before = std::mem::replace(used, self.tick);
        let file = Arc::clone(file);
        self.by_use.remove(&before);
        self.by_use.insert(self.tick, key);
        Some(file)
    }

    /// A file was opened, by one or by several at once.
    fn keep(&mut self, key: FileKey, file: &Arc<dyn DiskFile>) {
        if !self.by_key.contains_key(&key) {
            self.tick += 1;
            self.by_key.insert(key, (self.tick, Arc::clone(file)));
            self.by_use.insert(self.tick, key);
        }
    }

    /// The files that were used longest ago, until those that are being opened have room.
    fn make_room(&mut self, limit: usize) -> Vec<Arc<dyn DiskFile>> {
        let mut evicted = Vec::new();
        while self.by_key.len() + self.opening > limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            evicted.extend(self.by_key.remove(&oldest).map(|(_, file)| file));
        }
        evicted
    }

    fn take(&mut self, key: FileKey) -> Option<Arc<dyn DiskFile>> {
        let (used, file) = self.by_key.remove(&key)?;
        self.by_use.remove(&used);
        Some(file)
    }

    /// The files that were used longest ago, and that nobody else holds: to close another one would free no descriptor.
    fn give_back(&mut self) -> Vec<Arc<dyn DiskFile>> {
        let is_idle = |key: &&FileKey| self.by_key.get(*key).is_some_and(|(_, file)| Arc::strong_count(file) == 1);
        let idle: Vec<FileKey> = self.by_use.values().filter(is_idle).take(GIVEN_BACK).copied().collect();
        idle.into_iter().filter_map(|key| self.take(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::disk::MemDisk;

    const FILES: [&str; 2] = ["/one/file", "/two/file"];

    fn pool(limit: usize) -> (MemDisk, FilePool) {
        let disk = MemDisk::new();
        for path in FILES {
            disk.create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            drop(disk.open(Path::new(path), OpenMode::Create).unwrap());
        }
        let pool = FilePool::new(Arc::new(disk.clone()), limit);
        assert_eq!(pool.keys(2), FileKey(0));
        (disk, pool)
    }

    fn get(pool: &FilePool, key: u64, path: &str) -> Arc<dyn DiskFile> {
        pool.get(FileKey(key), OpenMode::Existing, None, || path.into()).unwrap()
    }

    #[test]
    fn a_file_that_hangs_while_it_is_opened_holds_up_no_other() {
        let (disk, pool) = pool(4);
        let gate = disk.hold_opens("/one/");
        thread::scope(|scope| {
            scope.spawn(|| get(&pool, 0, FILES[0]));
            while gate.waiting() == 0 {
                thread::yield_now();
            }
            get(&pool, 1, FILES[1]);
            pool.close(FileKey(1));
            assert_eq!(gate.waiting(), 1, "all that time");
            drop(gate);
        });
        assert_eq!(pool.len(), 0, "what was opened before a close is kept for nobody else");
    }

    #[test]
    fn what_is_being_opened_has_its_place_in_the_pool() {
        let (disk, pool) = pool(1);
        drop(get(&pool, 1, FILES[1]));
        let gate = disk.hold_opens("/one/");
        thread::scope(|scope| {
            scope.spawn(|| get(&pool, 0, FILES[0]));
            while gate.waiting() == 0 {
                thread::yield_now();
            }
            assert_eq!(pool.len(), 0);
            drop(gate);
        });
        assert_eq!(pool.len(), 1);
    }
}
