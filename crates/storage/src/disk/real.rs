//! The machine's file system.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::Time;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::{DirEntry, Disk, DiskFile, OpenMode, Sent, SharedSync, opening};

/// How many slices one pwritev takes (Linux's UIO_MAXIOV).
const SLICES_MAX: usize = 1024;
/// What one call sends at most: others want the thread too.
const SEND_MAX: usize = 512 << 10;
/// How far apart the bytes are whose pages are looked for in memory: the kernel reads, and forgets, more than a page at once.
const LOOK_EVERY: usize = 128 << 10;

/// The file system whose syncfs makes all durable and tells every error (statfs's `f_type`): ext4. XFS's does not: it empties
/// the disk's cache only where its log has something new, and of a write in place within one tick of the clock it has not.
const SYNCFS_RELIABLE: u64 = 0xef53;
/// The first kernel whose syncfs tells the errors of write-back.
const SYNCFS_TELLS_ERRORS: (u32, u32) = (5, 8);
/// A sync of all is worth it with at most so much dirty data of others for each file that is to be synced: what is written in
/// the time of one fdatasync of a fast disk.
const DIRTY_KIB_PER_FILE: u64 = 64;
/// On a disk whose flushes are slow it may be more: so many KiB for each millisecond that a file's own sync takes. That is 200
/// MB/s, for eight that are synced at once.
const DIRTY_KIB_PER_MS: u64 = 25;

/// See the module.
#[derive(Debug, Default)]
pub struct RealDisk;

/// The directory, opened before anything is written in it: errors are told from then on, once for each opened file.
#[derive(Debug)]
struct RealSharedSync(File);

#[derive(Debug)]
struct RealFile(File);

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != OpenMode::ReadOnly);
        match mode {
            OpenMode::ReadOnly | OpenMode::Existing => &mut options,
            OpenMode::Create => options.create(true).truncate(false),
            OpenMode::Truncate => options.create(true).truncate(true),
        };
        Ok(Arc::new(RealFile(options.open(path).map_err(opening)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).map_err(opening)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir });
            }
        }
        entries.sort_unstable();
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path).map_err(opening)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((stat.f_frsize * stat.f_blocks, stat.f_frsize * stat.f_bavail))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir).map_err(opening)?.sync_all()
    }

    fn shared_sync(&self, dir: &Path) -> Option<Arc<dyn SharedSync>> {
        let dir = File::open(dir).ok()?;
        let kind = u64::try_from(rustix::fs::fstatfs(&dir).ok()?.f_type).ok()?;
        let reliable = kind == SYNCFS_RELIABLE && kernel()? >= SYNCFS_TELLS_ERRORS;
        reliable.then(|| Arc::new(RealSharedSync(dir)) as _)
    }
}

/// The kernel's version.
fn kernel() -> Option<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

impl SharedSync for RealSharedSync {
    fn is_worth(&self, files: usize, each: Duration) -> bool {
        // Of the whole machine: a directory's own is not told. Where it cannot be read, it may be any amount.
        let Ok(text) = fs::read_to_string("/proc/meminfo") else { return false };
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        let waiting =
            ["Dirty:", "Writeback:"].map(|name| text.lines().find(|line| line.starts_with(name)).and_then(kib));
        let each = u64::try_from(each.as_millis()).unwrap_or(u64::MAX).saturating_mul(DIRTY_KIB_PER_MS);
        let allowed = each.max(DIRTY_KIB_PER_FILE).saturating_mul(u64::try_from(files).unwrap_or(u64::MAX));
        matches!(waiting, [Some(dirty), Some(writeback)] if dirty.saturating_add(writeback) <= allowed)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, into, position)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let from = &from[..from.len().min(SLICES_MAX)];
        Ok(rustix::io::pwritev(&self.0, from, position)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn modified(&self) -> io::Result<Time> {
        let since = self.0.metadata()?.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        Ok(Time(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, size) {
            // A file system without it: the space is then taken as it is written.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn can_send(&self) -> bool {
        // Where the system does not tell what is in memory, a send would wait for the disk.
        let mut byte = [0];
        let told = rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT);
        !matches!(told, Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM))
    }

    fn send_to(&self, socket: BorrowedFd<'_>, position: u64, len: usize) -> io::Result<Sent> {
        let len = len.min(SEND_MAX);
        for ahead in (0..len).step_by(LOOK_EVERY).chain(len.checked_sub(1)) {
            if !self.is_cached(position + ahead as u64)? {
                return Ok(Sent::NotCached);
            }
        }
        let mut at = position;
        match rustix::io::retry_on_intr(|| rustix::fs::sendfile(socket, &self.0, Some(&mut at), len)) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => Ok(Sent::Bytes(sent)),
            // Of the file, not of the socket: who loads it sees what it is (`R30`).
            Err(Errno::IO | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(Sent::NotCached),
            Err(error) => Err(error.into()),
        }
    }
}

impl RealFile {
    /// Whether the byte can be read without waiting for the disk; no where the file system does not tell.
    fn is_cached(&self, position: u64) -> io::Result<bool> {
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(&self.0, &mut into, position, ReadWriteFlags::NOWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::IO) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
