//! What is done where the system gives no file descriptor: the pool of open files gives back what nobody uses, and the open
//! is tried once more. That is a design, not a hope: the pool holds up to a thousand files that are only kept because they may
//! be wanted again. Where that does not help either the caller hears of it, as of a disk that is full.
//!
//! Invariants: only an open is tried again. A call that synced, wrote or read something is not, whatever it says (`R30`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{DirEntry, Disk, DiskFile, OpenMode, SharedSync, is_out_of_descriptors};
use crate::env::FilePool;

/// A disk for whoever opens files and directories beside the pool.
#[derive(Debug)]
pub(crate) struct GivenBack {
    inner: Arc<dyn Disk>,
    files: Arc<FilePool>,
}

impl GivenBack {
    /// Over `inner`, which the pool opens its own files on: a pool that waited for itself would wait for ever.
    pub(crate) fn over(inner: Arc<dyn Disk>, files: Arc<FilePool>) -> Arc<dyn Disk> {
        Arc::new(Self { inner, files })
    }

    fn open_with<T>(&self, call: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let opened = match call() {
            Err(error) if is_out_of_descriptors(&error) && self.files.give_back() => call(),
            other => other,
        };
        if let Err(error) = &opened {
            self.files.note_shortage(error);
        }
        opened
    }
}

impl Disk for GivenBack {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.open_with(|| self.inner.open(path, mode))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.open_with(|| self.inner.list(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.open_with(|| self.inner.remove_dir_all(path))
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.inner.space(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Where there was no descriptor the directory was not opened, and no sync has failed.
        self.open_with(|| self.inner.sync_dir(dir))
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        self.inner.shared_sync(dir)
    }
}
