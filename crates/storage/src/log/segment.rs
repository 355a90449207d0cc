//! One segment of a log: what is kept of it in memory, and its files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{BatchHeader, Offset, Time};

use super::LogError;
use super::aborted::AbortedFile;
use crate::disk::{DiskFile, OpenMode};
use crate::env::{FileKey, LogEnv};

/// The largest timestamp of a segment, and the last offset of the batch that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub(super) timestamp: i64,
    pub(super) offset: Offset,
}

impl Stamp {
    /// The larger one; of two alike, this one.
    pub(super) fn or_later(self, other: Stamp) -> Stamp {
        if self.timestamp < other.timestamp { other } else { self }
    }
}

/// The segment's state in memory; the last one of a log is the active one.
#[derive(Debug)]
pub(super) struct Segment {
    /// The first offset that it may hold; its name.
    pub(super) base: Offset,
    /// Bytes of sound batches in its `.log`.
    pub(super) size: u32,
    /// Of its `.log`; the other kinds of files have the next keys.
    pub(super) key: FileKey,
    /// Of the batches behind the first `unread` bytes.
    pub(super) max: Option<Stamp>,
    /// The batches in so many bytes at its start do not count in `max` yet: nobody asked.
    pub(super) unread: u32,
    /// Why they never will: one of them is damaged.
    pub(super) time_damage: Option<Box<LogError>>,
    /// Largest timestamp of its first batch, None until somebody asked.
    pub(super) first_timestamp: Option<i64>,
    /// From when on its age counts where the first batch has no timestamp: since somebody first asked.
    pub(super) aged_from: Option<Time>,
    /// Its `.log` has bytes that no started sync covers.
    pub(super) dirty: bool,
    /// Its `.log` has bytes of an earlier process, and no sync of the file itself was started since.
    pub(super) inherited: bool,
    /// It is sealed, and its indexes are not synced yet.
    pub(super) indexes_dirty: bool,
    /// What its `.txnindex` holds.
    pub(super) aborted: AbortedFile,
}

/// The files of a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FileKind {
    Log,
    Index,
    TimeIndex,
    /// There where the segment holds markers of aborted transactions.
    TxnIndex,
}

pub(super) const FILE_KINDS: [FileKind; 4] = [FileKind::Log, FileKind::Index, FileKind::TimeIndex, FileKind::TxnIndex];

impl FileKind {
    fn suffix(self) -> &'static str {
        match self {
            FileKind::Log => "log",
            FileKind::Index => "index",
            FileKind::TimeIndex => "timeindex",
            FileKind::TxnIndex => "txnindex",
        }
    }

    fn number(self) -> u64 {
        match self {
            FileKind::Log => 0,
            FileKind::Index => 1,
            FileKind::TimeIndex => 2,
            FileKind::TxnIndex => 3,
        }
    }
}

impl Segment {
    pub(super) fn new(env: &LogEnv, base: Offset, size: u32) -> Self {
        let key = env.files.keys(FILE_KINDS.len() as u64);
        Self {
            base,
            size,
            key,
            max: None,
            unread: 0,
            time_damage: None,
            first_timestamp: None,
            aged_from: None,
            dirty: false,
            inherited: false,
            indexes_dirty: false,
            aborted: AbortedFile::NONE,
        }
    }

    /// One whose files an earlier process left; how much of it is sound is not known yet.
    pub(super) fn found(env: &LogEnv, base: Offset) -> Self {
        Self { inherited: true, ..Self::new(env, base, 0) }
    }

    /// The largest timestamp of its batches; None where it has to be read first, or there is none.
    pub(super) fn newest(&self) -> Option<Stamp> {
        self.max.filter(|_| self.unread == 0)
    }

    /// A walk has passed this batch, which ends at `end`. Where it is not believed, what is up to there has to be read.
    pub(super) fn count_time(&mut self, header: &BatchHeader, believed: bool, end: u64) {
        if believed {
            super::append::raise(&mut self.max, header);
        } else {
            self.unread = u32::try_from(end).expect("positions are below 2 GiB");
        }
    }

    /// Whether its largest timestamp has to be read, and can be.
    pub(super) fn has_unread_time(&self) -> bool {
        self.unread > 0 && self.time_damage.is_none()
    }

    pub(super) fn files(&self, env: &LogEnv, dir: &Arc<Path>) -> SegmentFiles {
        SegmentFiles { env: env.clone(), dir: Arc::clone(dir), base: self.base, key: self.key, cleaned: false }
    }
}

/// A handle to the files of a segment, that opens them as they are needed.
#[derive(Clone, Debug)]
pub(super) struct SegmentFiles {
    pub(super) env: LogEnv,
    dir: Arc<Path>,
    base: Offset,
    key: FileKey,
    /// They are a copy that is not in use yet.
    cleaned: bool,
}

/// What the names of a cleaned copy end with.
pub(super) const CLEANED: &str = ".cleaned";

impl SegmentFiles {
    pub(super) fn base(&self) -> Offset {
        self.base
    }

    pub(super) fn path(&self, kind: FileKind) -> PathBuf {
        let path = file_path(&self.dir, self.base, kind);
        if self.cleaned { beside(&path, CLEANED) } else { path }
    }

    /// The same files under the names that a copy has before it is in use.
    pub(super) fn cleaned(self) -> Self {
        Self { cleaned: true, ..self }
    }

    /// The open file; it must be there.
    pub(super) fn open(&self, kind: FileKind) -> io::Result<Arc<dyn DiskFile>> {
        self.open_as(kind, OpenMode::Existing)
    }

    /// The open file; made if it is not there.
    pub(super) fn create(&self, kind: FileKind) -> io::Result<Arc<dyn DiskFile>> {
        self.open_as(kind, OpenMode::Create)
    }

    fn open_as(&self, kind: FileKind, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let key = FileKey(self.key.0 + kind.number());
        // What is small and makes the log whole may use up the ballast; the data may not.
        let ballast = (kind != FileKind::Log).then_some(&self.env.pooled);
        self.env.files.get(key, mode, ballast, || self.path(kind))
    }

    /// What an error of a read without the log means: that the file went away meanwhile is none of the disk's.
    pub(super) fn read_failed(&self, kind: FileKind, error: &io::Error) -> LogError {
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
            return LogError::Gone(self.path(kind));
        }
        LogError::fatal(&self.env.health, &self.path(kind), "cannot read", error)
    }

    pub(super) fn close_all(&self) {
        for kind in FILE_KINDS {
            self.env.files.close(FileKey(self.key.0 + kind.number()));
        }
    }

    /// Removes all files that are there, the `.log` last.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.close_all();
        for kind in FILE_KINDS.iter().rev() {
            match self.env.disk.remove_file(&self.path(*kind)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The path with something behind its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.to_owned().into_os_string();
    beside.push(suffix);
    PathBuf::from(beside)
}

/// `00000000000000000042.log`
pub(super) fn file_path(dir: &Path, base: Offset, kind: FileKind) -> PathBuf {
    dir.join(format!("{:020}.{}", base.0, kind.suffix()))
}

/// The base offset of a file name with this suffix.
pub(super) fn parse_name(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?.strip_suffix('.')?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Offset)
}
