//! The directory of one partition, and a data directory with all that is in it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use model::{EpochCache, Offset, PartitionIndex, TopicId};

use super::super::identity::{self, Identity};
use super::super::segment::{CLEANED, FILE_KINDS, file_path, parse_name};
use super::super::truncate::segment_bases;
use super::super::walk::Order;
use super::super::{Log, LogError, OpenHints, Recovered, Verdict, epochs, snapshots};
use super::segment::LogScan;
use super::verify::{Finding, Report, Severity};
use super::{FileContent, whole};
use crate::checkpoint;
use crate::data_dir::{
    CHECKPOINT_MAX, CLEAN_SHUTDOWN, Checkpoint, DELETED, DataDirError, SMALL_MAX, STRAY, TOPIC_IDS, io_error,
    parse_clean_shutdown, parse_meta, parse_offsets, parse_partition, parse_topic_ids,
};
use crate::disk::{Disk, OpenMode, OverlayDisk, read_small_file};
use crate::env::LogEnv;
use crate::quorum_log::{QuorumError, QuorumLog};
use crate::quorum_snapshot::QuorumSnapshots;
use crate::quorum_vote::QuorumVote;

const QUORUM: &str = "__cluster_metadata";

/// What a data directory says of its logs.
#[derive(Debug, Default)]
pub(super) struct DataDirectory {
    /// The mark of a clean shutdown is there.
    clean: bool,
    recovery_points: Offsets,
    log_starts: Offsets,
    high_watermarks: Offsets,
    topic_ids: BTreeMap<(String, PartitionIndex), TopicId>,
}

type Offsets = BTreeMap<(String, PartitionIndex), Offset>;

/// Whether a directory with a file of this name is one of a log.
pub(super) fn is_of_a_log(name: &str) -> bool {
    name == "partition.metadata"
        || FileContent::of(name).is_some_and(|content| matches!(content, FileContent::Batches(_)))
}

impl DataDirectory {
    /// Reads the checkpoints and the mark of a clean shutdown.
    pub(super) fn read(disk: &Arc<dyn Disk>, dir: &Path, report: &mut Report) -> Result<Self, DataDirError> {
        let mut offsets = |which: Checkpoint, lost: &str| -> Result<Offsets, DataDirError> {
            let path = dir.join(which.file_name());
            match read(disk, &path, CHECKPOINT_MAX)?.map(|text| parse_offsets(&text)) {
                None => Ok(Offsets::new()),
                Some(Ok(offsets)) => Ok(offsets),
                Some(Err(what)) => {
                    report.tell(Severity::Damage, &path, what, lost);
                    Ok(Offsets::new())
                }
            }
        };
        let recovery_points =
            offsets(Checkpoint::RecoveryPoint, "it is passed over: every log is checked from its start after a crash")?;
        let log_starts = offsets(Checkpoint::LogStart, "it is passed over: every log starts at its first segment")?;
        let high_watermarks = offsets(
            Checkpoint::HighWatermark,
            "it is passed over: high watermarks begin at the logs' starts and come from the leaders; a lost end below one is not noticed",
        )?;
        offsets(
            Checkpoint::SyncedBeforeAck,
            "it is passed over: no replica counts as one that synced all it acknowledged",
        )?;
        let path = dir.join(TOPIC_IDS);
        let topic_ids = match read(disk, &path, CHECKPOINT_MAX)?.map(|text| parse_topic_ids(&text)) {
            None => BTreeMap::new(),
            Some(Ok(ids)) => ids,
            Some(Err(what)) => {
                let lost =
                    "it is passed over: a log whose partition.metadata is damaged is kept aside and fetched again";
                report.tell(Severity::Damage, &path, what, lost);
                BTreeMap::new()
            }
        };
        let path = dir.join(CLEAN_SHUTDOWN);
        let mark = read(disk, &path, SMALL_MAX)?;
        let clean = mark.as_deref().is_some_and(|text| parse_clean_shutdown(text).is_some());
        if mark.is_some() && !clean {
            let at_start = "the last shutdown is not proven clean: what follows the recovery points is checked";
            report.tell(Severity::Damage, &path, "it is no mark of a clean shutdown", at_start);
        }
        Ok(Self { clean, recovery_points, log_starts, high_watermarks, topic_ids })
    }

    /// Whose a partition's directory was when the checkpoints were written.
    fn topic_id(&self, dir: &Path) -> Option<TopicId> {
        let name = dir.file_name().and_then(|name| name.to_str()).and_then(parse_partition)?;
        self.topic_ids.get(&name).copied()
    }

    fn hints(&self, dir: &Path, topic_id: TopicId) -> OpenHints {
        let name = dir.file_name().and_then(|name| name.to_str()).and_then(parse_partition);
        let of = |offsets: &Offsets| name.as_ref().and_then(|key| offsets.get(key)).copied().unwrap_or(Offset::ZERO);
        OpenHints {
            topic_id,
            recovery_point: of(&self.recovery_points),
            clean: self.clean,
            log_start: of(&self.log_starts),
            high_watermark: of(&self.high_watermarks),
        }
    }
}

/// A data directory.
pub(super) fn all(disk: &Arc<dyn Disk>, dir: &Path, report: &mut Report) -> Result<(), DataDirError> {
    let path = dir.join("meta.properties");
    match read(disk, &path, SMALL_MAX)?.map(|text| parse_meta(&text)) {
        Some(Ok(_)) => {}
        Some(Err(what)) => report.tell(Severity::Damage, &path, what, "a broker does not start with it"),
        None => report.tell(Severity::Note, &path, "it is missing", "the directory is taken for a new one"),
    }
    let hints = DataDirectory::read(disk, dir, report)?;
    let mut seen = Vec::new();
    for entry in disk.list(dir).map_err(io_error("list", dir))? {
        let path = dir.join(&entry.name);
        if !entry.is_dir {
            if entry.name.ends_with(".tmp") {
                report.tell(Severity::Note, &path, "it was not put in its place", "it is overwritten in its time");
            }
        } else if entry.name == QUORUM {
            quorum(disk, &path, report)?;
        } else if let Some(key) = parse_partition(&entry.name) {
            partition(disk, &path, &hints, report)?;
            seen.push(key);
        } else if entry.name.ends_with(DELETED) {
            report.tell(Severity::Note, &path, "a deleted partition", "its space is freed");
        } else if entry.name.ends_with(STRAY) {
            let what = "a log of which nothing said which topic's it is, or not that of its name";
            report.tell(Severity::Note, &path, what, "it is left alone: look into it, then delete it");
        } else {
            report.tell(Severity::Note, &path, "no directory of a partition", "it is left alone");
        }
    }
    for (key, offset) in hints.recovery_points.iter().chain(&hints.high_watermarks) {
        if *offset > Offset::ZERO && !seen.contains(key) {
            let path = dir.join(format!("{}-{}", key.0, key.1));
            let what = format!("it is missing, and had records below {offset}");
            let at_start = "the replica counts as lost, and so the shutdown as unclean; it is fetched again";
            report.tell(Severity::Damage, &path, what, at_start);
            seen.push(key.clone());
        }
    }
    Ok(())
}

/// One partition's directory.
pub(super) fn partition(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    hints: &DataDirectory,
    report: &mut Report,
) -> Result<(), DataDirError> {
    let failed = |source| io_error("read", dir)(source);
    report.partitions += 1;
    let bases = segment_bases(&**disk, dir).map_err(failed)?;
    let mut scan = LogScan {
        disk,
        dir,
        order: Order::from(Offset::ZERO),
        is_first: true,
        epochs: EpochCache::default(),
        bad: Vec::new(),
        report,
    };
    for (i, base) in bases.iter().enumerate() {
        scan.segment(*base, bases.get(i + 1).copied()).map_err(failed)?;
    }
    let LogScan { epochs, bad, .. } = scan;
    let (found, noted) = (identity::read(&**disk, dir).map_err(failed)?, hints.topic_id(dir));
    tell_identity(dir, found, noted, report);
    let known = match found {
        Identity::Known { topic_id, .. } => Some(topic_id),
        Identity::Unknown => noted,
    };
    let Some(topic_id) = known else {
        let at_start = "the replica is not opened";
        for bad in bad {
            let (path, position, what) = (bad.path, Some(bad.position), bad.what);
            report.add(Finding { path, position, severity: Severity::Damage, what, at_start: at_start.to_owned() });
        }
        return Ok(());
    };
    let started = Started::by(disk, dir, hints.hints(dir, topic_id));
    for bad in bad {
        let at_start = started.does(bad.offset);
        let (path, position, what) = (bad.path, Some(bad.position), bad.what);
        report.add(Finding { path, position, severity: Severity::Damage, what, at_start });
    }
    started.tell(dir, report);
    small_files(disk, dir, &started, report).map_err(failed)?;
    epoch_checkpoint(disk, dir, &epochs, &started, report).map_err(failed)?;
    other_names(disk, dir, &bases, report).map_err(failed)
}

/// What is wrong with what says whose the log is.
fn tell_identity(dir: &Path, found: Identity, noted: Option<TopicId>, report: &mut Report) {
    let (what, at_start) = match (found, noted) {
        (Identity::Unknown, Some(noted)) => {
            ("it is missing or damaged".to_owned(), format!("it is written again: {TOPIC_IDS} says topic {noted}"))
        }
        (Identity::Unknown, None) => (
            "it is missing or damaged".to_owned(),
            "the replica is not opened; where the metadata places one, the directory is renamed and kept, and it is fetched again".to_owned(),
        ),
        (Identity::Known { topic_id, .. }, Some(noted)) if topic_id != noted => (
            format!("it says topic {topic_id}, and {TOPIC_IDS} says {noted}"),
            "the log is the one's that the metadata places here under that name; the shutdown counts as unclean".to_owned(),
        ),
        _ => return,
    };
    report.tell(Severity::Damage, &identity::path(dir), what, &at_start);
}

/// What a broker finds when it starts with this log.
struct Started {
    hints: OpenHints,
    /// Where the log starts and ends then, and what is known of its epochs; or why it is not opened.
    outcome: Result<(Offset, Offset, Recovered), String>,
}

impl Started {
    fn by(disk: &Arc<dyn Disk>, dir: &Path, hints: OpenHints) -> Self {
        let over: Arc<dyn Disk> = Arc::new(OverlayDisk::over(Arc::clone(disk)));
        let env = LogEnv::new(Arc::clone(&over), 16, 0);
        // What a start writes again where it is damaged.
        let restored = match identity::read(&*over, dir) {
            Ok(Identity::Unknown) => identity::replace(&*over, dir, hints.topic_id),
            _ => Ok(()),
        };
        let opened = restored
            .map_err(|error| LogError::write(env.health(), dir, &error))
            .and_then(|()| Log::open(&env, dir, Arc::default(), hints));
        let outcome = opened.map(|(log, recovered)| (log.log_start(), log.log_end(), recovered));
        Self { hints, outcome: outcome.map_err(|error| error.to_string()) }
    }

    /// About something bad behind `offset`.
    fn does(&self, offset: Offset) -> String {
        match &self.outcome {
            Err(error) => format!("the log is not opened: {error}"),
            Ok((_, end, recovered)) if offset >= *end => match recovered.verdict {
                Verdict::TruncatedTail { from, bytes } => format!("the log is cut at offset {from}; {bytes} bytes go"),
                Verdict::Lossy { first_bad } => format!(
                    "the replica counts as lossy: the controller is told, and it fetches from offset {first_bad} on again; the only replica of a partition ends there"
                ),
                Verdict::Sound => "it is passed over".to_owned(),
            },
            Ok(_) => {
                let upto = if self.hints.clean { "the shutdown was clean" } else { "it lies below the recovery point" };
                format!(
                    "a start does not look there ({upto}); whoever reads it is refused, and the replica counts as lossy"
                )
            }
        }
    }

    /// What no batch tells of: an end that is missing.
    fn tell(&self, dir: &Path, report: &mut Report) {
        let told =
            report.findings.iter().any(|finding| finding.path.parent() == Some(dir) && finding.position.is_some());
        match &self.outcome {
            Err(_) if !told => report.tell(Severity::Damage, dir, "the log cannot be opened", &self.does(Offset::ZERO)),
            Ok((_, end, Recovered { verdict: Verdict::Lossy { .. }, .. })) if !told => {
                let promised = self.hints.high_watermark.max(self.hints.recovery_point);
                let what = format!("the log ends at offset {end}, and had records below {promised}");
                report.tell(Severity::Damage, dir, what, &self.does(*end));
            }
            _ => {}
        }
    }
}

/// Producer snapshots, and the checkpoints of one offset.
fn small_files(disk: &Arc<dyn Disk>, dir: &Path, started: &Started, report: &mut Report) -> io::Result<()> {
    let end = started.outcome.as_ref().map_or(Offset(i64::MAX), |(_, end, _)| *end);
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        if let Some(offset) = parse_name(&entry.name, "snapshot") {
            let content = disk.open(&path, OpenMode::ReadOnly).and_then(|file| whole(&*file, snapshots::SIZE_MAX));
            if content.map_or_else(ignore_size, |bytes| Ok(snapshots::decode(bytes)))?.is_none() {
                let at_start = "it is passed over: producers are made again from the snapshot before it and the log";
                report.tell(Severity::Damage, &path, "it fails its checksum", at_start);
            } else if offset > end {
                report.tell(Severity::Note, &path, "it tells of records that are not there", "it is removed");
            }
        }
        let lost = match entry.name.as_str() {
            "truncation-checkpoint" | "damage-checkpoint" => "the log is checked from its start",
            "cleaner-offset-checkpoint" => "the log is compacted from its start",
            _ => continue,
        };
        let text = disk.open(&path, OpenMode::ReadOnly).and_then(|file| whole(&*file, SMALL_MAX))?;
        let one = checkpoint::parse(&text).map(|lines| matches!(lines[..], [one] if one.parse::<i64>().is_ok()));
        if one != Ok(true) {
            report.tell(Severity::Damage, &path, one.err().unwrap_or("it is not one offset"), lost);
        }
    }
    Ok(())
}

/// A file that is too large is as good as damaged.
fn ignore_size<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::InvalidData { Ok(None) } else { Err(error) }
}

/// R25: the cache gives each record its own epoch.
fn epoch_checkpoint(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    scanned: &EpochCache,
    started: &Started,
    report: &mut Report,
) -> io::Result<()> {
    let path = epochs::path(dir);
    let on_disk = epochs::read(&**disk, dir)?;
    let again = "the epochs are read from the batches";
    match disk.open(&path, OpenMode::ReadOnly) {
        Ok(_) if on_disk.is_none() => report.tell(Severity::Damage, &path, "it is damaged", again),
        Err(_) if !scanned.entries().is_empty() => {
            let covered = started.hints.recovery_point > Offset::ZERO || started.hints.clean;
            let severity = if covered { Severity::Damage } else { Severity::Note };
            report.tell(severity, &path, "it is missing", again);
        }
        _ => {}
    }
    let Ok((start, end, recovered)) = &started.outcome else { return Ok(()) };
    for entry in scanned.entries() {
        let offset = entry.start.max(*start);
        let Some(known) = recovered.epochs.epoch_of(offset) else { continue };
        if offset < *end && known != entry.epoch && scanned.epoch_of(offset) == Some(entry.epoch) {
            let what = format!("it gives offset {offset} the leader epoch {known}, and its batch has {}", entry.epoch);
            report.tell(Severity::Damage, &path, what, "it is believed: a start does not look at that batch");
        }
    }
    Ok(())
}

/// Files that belong to nothing, and what a crash left.
fn other_names(disk: &Arc<dyn Disk>, dir: &Path, bases: &[Offset], report: &mut Report) -> io::Result<()> {
    for entry in disk.list(dir)? {
        let path = dir.join(&entry.name);
        let name = entry.name.as_str();
        let is_left = [".deleted", ".tmp", CLEANED].iter().any(|suffix| name.ends_with(suffix));
        if name.ends_with(".swap") {
            report.tell(Severity::Note, &path, "a compaction was interrupted", "it is completed");
        } else if is_left {
            report.tell(Severity::Note, &path, "something was interrupted", "it is removed");
        } else if entry.is_dir || FileContent::of(name).is_none() {
            report.tell(Severity::Note, &path, "no file of a log", "it is left alone");
        }
        let belongs = |base: &Offset| FILE_KINDS.iter().any(|kind| file_path(dir, *base, *kind) == path);
        let is_index = matches!(
            FileContent::of(name),
            Some(FileContent::OffsetIndex(_) | FileContent::TimeIndex(_) | FileContent::AbortedIndex(_))
        );
        if is_index && !is_left && !bases.iter().any(belongs) {
            report.tell(Severity::Note, &path, "it belongs to no segment", "it is removed");
        }
    }
    Ok(())
}

/// The quorum's log, vote and snapshots.
fn quorum(disk: &Arc<dyn Disk>, dir: &Path, report: &mut Report) -> Result<(), DataDirError> {
    let over: Arc<dyn Disk> = Arc::new(OverlayDisk::over(Arc::clone(disk)));
    let log = QuorumLog::open(Arc::clone(&over), &dir.join("quorum.log")).map(drop);
    let vote = QuorumVote::open(&*over, &dir.join("quorum.vote")).map(drop);
    let snapshots = QuorumSnapshots::open(over, &dir.join("snapshots")).and_then(|all| all.newest()).map(drop);
    for outcome in [log, vote, snapshots] {
        match outcome {
            Ok(()) => {}
            Err(QuorumError::Corrupt { path, position, reason }) => report.add(Finding {
                path,
                position: Some(position),
                severity: Severity::Damage,
                what: reason.to_string(),
                at_start: "the node does not start: it has to be set up anew as another member of the quorum"
                    .to_owned(),
            }),
            Err(error) => return Err(io_error("read", dir)(io::Error::other(error.to_string()))),
        }
    }
    Ok(())
}

fn read(disk: &Arc<dyn Disk>, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, DataDirError> {
    match read_small_file(&**disk, path, limit) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(Vec::new())),
        other => other.map_err(io_error("read", path)),
    }
}
