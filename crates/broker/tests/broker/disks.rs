//! Several disks in memory as one file system: each is mounted at a path of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use storage::disk::{Crash, DirEntry, Disk, DiskFile, MemDisk, OpenMode, SharedSync};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts {
    mounts: BTreeMap<PathBuf, Mount>,
}

#[derive(Clone, Debug, Default)]
struct Mount {
    disk: MemDisk,
    unreadable: Arc<AtomicBool>,
}

impl Mounts {
    /// The disk at a path, a new one where there is none.
    pub(crate) fn disk(&mut self, path: &Path) -> &MemDisk {
        &self.mounts.entry(path.to_owned()).or_default().disk
    }

    /// Another disk takes the place of the one at a path, which is given back.
    pub(crate) fn replace(&mut self, path: &Path, disk: MemDisk) -> MemDisk {
        let mount = self.mounts.entry(path.to_owned()).or_default();
        std::mem::replace(&mut mount.disk, disk)
    }

    /// Nothing can be opened or made on the disk at a path, or it can again.
    pub(crate) fn set_unreadable(&mut self, path: &Path, unreadable: bool) {
        self.mounts.entry(path.to_owned()).or_default().unreadable.store(unreadable, Ordering::Release);
    }

    /// The disk at a path.
    pub(crate) fn at(&self, path: &Path) -> &MemDisk {
        &self.mounts[path].disk
    }

    /// The machine of all of them is gone at once.
    pub(crate) fn crash(&self, how: Crash) {
        self.mounts.values().for_each(|mount| mount.disk.crash(how));
    }

    fn of(&self, path: &Path) -> io::Result<&MemDisk> {
        let (_, mount) = self.mounts.iter().find(|(root, _)| path.starts_with(root)).ok_or(io::ErrorKind::NotFound)?;
        if mount.unreadable.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(&mount.disk)
    }
}

impl Disk for Mounts {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.of(path)?.open(path, mode)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.of(path)?.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.of(dir)?.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.of(from)?.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.of(path)?.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.of(path)?.remove_dir_all(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.of(path)?.space(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // What is mounted in the root is in none of its disks alone.
        let inside = self.mounts.iter().filter(|(root, _)| root.parent() == Some(dir));
        inside.into_iter().try_for_each(|(_, mount)| mount.disk.sync_dir(dir))?;
        self.of(dir).map_or(Ok(()), |disk| disk.sync_dir(dir))
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        self.of(dir).ok()?.shared_sync(dir)
    }
}
