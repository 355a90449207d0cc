//! The file system as this crate sees it: [`Disk`] and [`DiskFile`], and the two shapes in which bytes become durable.
//!
//! Every access to files goes through these traits: [`RealDisk`] is the machine's file system, [`MemDisk`] one in memory
//! that knows which writes were synced, can crash, and can fail on demand, [`OverlayDisk`] one that keeps the changes to
//! another for itself. All pass the same contract suite.
//!
//! Invariant (`R31`): a name is durable after [`Disk::sync_dir`] of its directory, content after
//! [`DiskFile::sync_data`], both after [`SharedSync::sync_all`]; nothing else is promised.

mod mem;
mod overlay;
mod real;

#[cfg(test)]
mod contract;

pub use mem::{Call, Counters, Crash, FaultKind, Gate, MemDisk};
pub use overlay::OverlayDisk;
pub use real::RealDisk;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::Time;
use rustix::io::Errno;

/// How a file is opened: for reading and writing, but for one mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must be there, and nobody writes: for those who only look.
    ReadOnly,
    /// It must be there.
    Existing,
    /// It is made if it is not there; what is there stays.
    Create,
    /// It is made, or emptied.
    Truncate,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirEntry {
    /// The name, without its directory.
    pub name: String,
    /// Whether it is itself a directory.
    pub is_dir: bool,
}

/// A file system.
pub trait Disk: Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// As the system gives them.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory and those above it; nothing happens where it is there.
    ///
    /// # Errors
    /// As the system gives them.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// What is in a directory, ascending by name; names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// As the system gives them.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Renames a file or directory; a file that has the new name is replaced.
    ///
    /// # Errors
    /// As the system gives them.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the system gives them.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// As the system gives them.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Total and available bytes of the file system that a path is on.
    ///
    /// # Errors
    /// As the system gives them; `Unsupported` where there is no file system.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the system gives them.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// A sync of the whole file system that `dir` is on, or None where there is none that can be relied on: then files are
    /// synced one by one. It tells of what is written from now on.
    fn shared_sync(&self, _dir: &Path) -> Option<Arc<dyn SharedSync>> {
        None
    }
}

/// A sync of all files of a file system in one call. One call at a time: an error is told to one of several.
pub trait SharedSync: Debug + Send + Sync {
    /// Whether it costs no more than the syncs of so many files, where each took so long lately: little else is dirty.
    fn is_worth(&self, files: usize, each: Duration) -> bool;
    /// Makes durable what was written before the call: content, sizes and names.
    ///
    /// # Errors
    /// As the system gives them, also of other files; the caller never tries again (`R30`).
    fn sync_all(&self) -> io::Result<()>;
}

/// What became of an attempt to send bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// So many were sent, at least one.
    Bytes(usize),
    /// None was: some of what is next is not in memory, and a disk would be waited for.
    NotCached,
}

/// An open file; positions are given with each call.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads at `position` what there is, at most `into.len()` bytes; 0 at the end.
    ///
    /// # Errors
    /// As the system gives them.
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize>;
    /// One vectored write at `position`; may write less than asked for.
    ///
    /// # Errors
    /// As the system gives them.
    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize>;
    /// Makes content and size durable (fdatasync).
    ///
    /// # Errors
    /// As the system gives them; the caller never tries again (`R30`).
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file.
    ///
    /// # Errors
    /// As the system gives them.
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// The size in bytes.
    ///
    /// # Errors
    /// As the system gives them.
    fn size(&self) -> io::Result<u64>;
    /// When it was last written, by the system's wall clock.
    ///
    /// # Errors
    /// As the system gives them.
    fn modified(&self) -> io::Result<Time>;
    /// Reserves space for `size` bytes without changing the size that is seen.
    ///
    /// # Errors
    /// As the system gives them.
    fn preallocate(&self, size: u64) -> io::Result<()>;
    /// Takes the exclusive lock on this file, until it is closed; false where another holds it.
    ///
    /// # Errors
    /// As the system gives them.
    fn try_lock(&self) -> io::Result<bool>;
    /// Whether [`DiskFile::send_to`] works.
    fn can_send(&self) -> bool {
        false
    }
    /// Sends some of the `len` bytes at `position` to a socket that does not block, without copying them, and without
    /// waiting for the disk as far as that can be known.
    ///
    /// # Errors
    /// `WouldBlock` where the socket takes nothing now; `UnexpectedEof` where the file ends before; `Unsupported` where
    /// files have no descriptor; else as the system gives them.
    fn send_to(&self, _socket: BorrowedFd<'_>, _position: u64, _len: usize) -> io::Result<Sent> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes all of `slices` at `position`, in one call where the system takes it.
///
/// # Errors
/// The first error; what was written before it stays.
pub fn write_all_at(file: &dyn DiskFile, mut slices: &mut [IoSlice<'_>], mut position: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let written = file.write_at(slices, position)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        position += written as u64;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

/// Reads exactly `into.len()` bytes at `position`.
///
/// # Errors
/// `UnexpectedEof` where the file ends before.
pub fn read_exact_at(file: &dyn DiskFile, into: &mut [u8], position: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        let read = file.read_at(&mut into[filled..], position + filled as u64)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
    }
    Ok(())
}

/// A small file whole, or None where it is not there.
///
/// # Errors
/// Also where it is larger than `limit`: what this crate writes whole is small.
pub fn read_small_file(disk: &dyn Disk, path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Existing) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let size = usize::try_from(file.size()?).unwrap_or(usize::MAX);
    if size > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is larger than {limit}", path.display())));
    }
    let mut content = vec![0; size];
    read_exact_at(&*file, &mut content, 0)?;
    Ok(Some(content))
}

/// Replaces a file so that a crash leaves the old or the new content, durably (`R31`): write aside, sync, rename, sync
/// the directory.
///
/// # Errors
/// As the system gives them.
pub fn replace_file(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    let file = disk.open(aside, OpenMode::Truncate)?;
    write_all_at(&*file, &mut [IoSlice::new(content)], 0)?;
    file.sync_data()?;
    disk.rename(aside, path)?;
    match path.parent() {
        Some(dir) => disk.sync_dir(dir),
        None => Ok(()),
    }
}

/// What stands for the system's word that there is no file descriptor. Only an open has it ([`opening`]).
#[derive(Debug, thiserror::Error)]
#[error("no file descriptor is left: raise the limit of open files (RLIMIT_NOFILE), or have fewer connections")]
struct NoDescriptor;

/// What an open failed with. That there was no descriptor is kept apart from all other errors, whatever the system says of
/// another call: nothing was read, written or synced, and nothing is wrong with the disk (`R30`).
pub(crate) fn opening(error: io::Error) -> io::Error {
    let none = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    if none.contains(&error.raw_os_error()) { io::Error::other(NoDescriptor) } else { error }
}

/// Whether the error says that no file descriptor was to be had: what was asked for did not happen.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NoDescriptor>())
}

/// Whether the error says that there is no space left.
#[must_use]
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_open_is_without_a_descriptor() {
        for errno in [Errno::MFILE, Errno::NFILE] {
            let error = || io::Error::from_raw_os_error(errno.raw_os_error());
            assert!(is_out_of_descriptors(&opening(error())));
            assert!(!is_out_of_descriptors(&error()), "of another call it is an error like any other");
        }
        assert!(!is_out_of_descriptors(&opening(io::ErrorKind::NotFound.into())));
    }
}
