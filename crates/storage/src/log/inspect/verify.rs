//! Whether a directory is what it should be, offline: every batch, every index against the batches, every checkpoint and
//! snapshot; and what a broker would do with it at a start. That is found out by starting: over a disk that keeps all
//! changes to itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::{self, DataDirectory};
use crate::data_dir::{DataDirError, io_error};
use crate::disk::{Disk, OpenMode, read_small_file};

/// Findings of one file that are told one by one.
const OF_ONE_FILE: usize = 20;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// As it may be after a crash, or while something is under way.
    Note,
    /// Not what was written.
    Damage,
}

/// Something that is not as a clean shutdown leaves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Of which file.
    pub path: PathBuf,
    /// Where in it.
    pub position: Option<u64>,
    /// How bad.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What a broker would do about it.
    pub at_start: String,
}

/// What was looked at, and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Directories of partitions.
    pub partitions: usize,
    /// Segments in them.
    pub segments: usize,
    /// Batches in those.
    pub batches: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// In the order of their files.
    pub findings: Vec<Finding>,
    /// Findings that are not listed, because their file had so many.
    pub more: usize,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Note => "note",
            Severity::Damage => "damage",
        })
    }
}

impl Report {
    /// Whether anything is not what was written.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Damage)
    }

    pub(super) fn add(&mut self, finding: Finding) {
        let same = self.findings.iter().rev().take(OF_ONE_FILE).take_while(|other| other.path == finding.path).count();
        if same < OF_ONE_FILE { self.findings.push(finding) } else { self.more += 1 }
    }

    /// A finding about a file as a whole.
    pub(super) fn tell(&mut self, severity: Severity, path: &Path, what: impl Into<String>, at_start: &str) {
        let (path, at_start) = (path.to_owned(), at_start.to_owned());
        self.add(Finding { path, position: None, severity, what: what.into(), at_start });
    }
}

/// Checks a data directory, or the directory of one partition. No broker can use it meanwhile. Blocks for as long as it
/// takes to read all of it.
///
/// # Errors
/// `InUse` where a broker has it; `Io` where it cannot be read.
pub fn verify(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Report, DataDirError> {
    let names = disk.list(dir).map_err(io_error("list", dir))?;
    let is_partition = names.iter().any(|entry| !entry.is_dir && directory::is_of_a_log(&entry.name));
    let data = if is_partition { dir.parent().unwrap_or(dir) } else { dir };
    let _held = hold(disk, data)?;
    let mut report = Report::default();
    if is_partition {
        // A copy that stands somewhere else has no checkpoints beside it.
        let hints = DataDirectory::read(disk, data, &mut Report::default())?;
        directory::partition(disk, dir, &hints, &mut report)?;
    } else {
        directory::all(disk, dir, &mut report)?;
    }
    Ok(report)
}

/// Takes the lock that brokers take, where there is one, for as long as what is given back lives.
fn hold(disk: &Arc<dyn Disk>, data: &Path) -> Result<Option<Arc<dyn crate::disk::DiskFile>>, DataDirError> {
    let path = data.join(".lock");
    let lock = match disk.open(&path, OpenMode::ReadOnly) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", &path)(error)),
    };
    if lock.try_lock().map_err(io_error("lock", &path))? {
        return Ok(Some(lock));
    }
    let text = read_small_file(&**disk, &path, 64).ok().flatten().unwrap_or_default();
    let pid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    Err(DataDirError::InUse { path: data.to_owned(), pid })
}
