//! The disks of a machine: one that has everything there is one of, and on some machines another one with a second log
//! directory. Each is a file system of its own, which fails, fills up and is synced by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Time;
use storage::disk::{Crash, DirEntry, Disk, DiskFile, MemDisk, OpenMode, SharedSync};

/// Where a node has everything, its quorum's files too.
pub const DATA: &str = "/data";
/// Where it has more logs.
pub const SPARE: &str = "/spare";
/// By their numbers.
const PLACES: [&str; 2] = [DATA, SPARE];

/// See the module. Clones are handles to the same disks.
#[derive(Clone, Debug)]
pub struct Disks {
    all: Vec<MemDisk>,
    /// Those on which every call fails.
    broken: Vec<bool>,
}

impl Disks {
    /// So many empty disks.
    #[must_use]
    pub fn new(count: usize) -> Disks {
        Disks { all: (0..count).map(empty).collect(), broken: vec![false; count] }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, number: usize) -> &MemDisk {
        &self.all[number]
    }

    /// The log directories.
    #[must_use]
    pub fn log_dirs(&self) -> Vec<PathBuf> {
        PLACES[..self.count()].iter().map(PathBuf::from).collect()
    }

    /// Bytes in writes that no sync has covered, on all of them.
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        self.all.iter().map(MemDisk::unsynced_bytes).sum()
    }

    /// From now on it is so late.
    pub fn set_time(&self, wall: Time) {
        self.all.iter().for_each(|disk| disk.set_time(wall));
    }

    /// Every call to this disk fails, or none any more.
    pub fn set_broken(&mut self, number: usize, broken: bool) {
        self.broken[number] = broken;
        self.all[number].set_broken(broken);
    }

    /// Whether every call to one of them fails.
    #[must_use]
    pub fn is_any_broken(&self) -> bool {
        self.broken.contains(&true)
    }

    /// The machine loses its power, or ends a process.
    pub fn crash(&self, how: Crash) {
        self.all.iter().for_each(|disk| disk.crash(how));
    }

    /// Others with the same on them, and nothing in common.
    #[must_use]
    pub fn fork(&self) -> Disks {
        let mut copy = Disks { all: self.all.iter().map(MemDisk::fork).collect(), broken: self.broken.clone() };
        for number in 0..copy.count() {
            copy.set_broken(number, self.broken[number]);
        }
        copy
    }

    /// A new disk takes the place of one.
    pub fn replace(&mut self, number: usize) {
        self.all[number] = empty(number);
        self.all[number].set_broken(self.broken[number]);
    }

    /// The disk that a path is on.
    fn of(&self, path: &Path) -> &MemDisk {
        &self.all[self.number(path)]
    }

    fn number(&self, path: &Path) -> usize {
        PLACES[..self.count()].iter().rposition(|place| path.starts_with(place)).unwrap_or(0)
    }
}

/// A disk, mounted.
fn empty(number: usize) -> MemDisk {
    let disk = MemDisk::new();
    if number > 0 {
        let mounted = disk.create_dir_all(Path::new(PLACES[number])).and_then(|()| disk.sync_dir(Path::new("/")));
        mounted.expect("nothing fails on it yet");
    }
    disk
}

impl Disk for Disks {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.of(path).open(path, mode)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.of(path).create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.of(dir).list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.number(from) != self.number(to) {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        self.of(from).rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.of(path).remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.of(path).remove_dir_all(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.of(path).space(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.of(dir).sync_dir(dir)
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        self.of(dir).shared_sync(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_breaks_leaves_the_other_one_as_it_is_and_a_crash_does_not_mend_it() {
        let mut disks = Disks::new(2);
        disks.create_dir_all(Path::new(DATA)).expect("it works");
        let files = [DATA, SPARE].map(|place| Path::new(place).join("f"));
        disks.set_broken(1, true);
        let opens = |disks: &Disks| files.clone().map(|file| disks.open(&file, OpenMode::Truncate).is_ok());
        assert_eq!(opens(&disks), [true, false]);
        disks.crash(Crash::KeepAll);
        let mut disks = disks.fork();
        assert_eq!(opens(&disks), [true, false]);
        disks.set_broken(1, false);
        assert_eq!(opens(&disks), [true, true]);
        assert!(disks.rename(&files[0], &files[1]).is_err(), "they are two file systems");
    }

    #[test]
    fn the_second_disk_stays_mounted_when_nothing_was_synced() {
        let disks = Disks::new(2);
        disks.crash(Crash::LoseUnsynced);
        assert!(disks.list(Path::new(SPARE)).expect("it is there").is_empty());
    }
}
