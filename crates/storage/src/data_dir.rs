//! One log directory: who uses it, which cluster and node it is of, how the last process left it, its checkpoints, and
//! the partitions in it. Kafka's file names and formats.
//!
//! Invariants: a [`DataDir`] holds the lock on `.lock` as long as it lives. The mark of a clean shutdown is gone, durably,
//! before anything else happens (`R10`). Every file is replaced whole (`R31`). A damaged checkpoint is a hint lost, not a
//! failed start.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use model::{
    BrokerEpoch, BrokerId, ClusterId, DirectoryId, MetadataOffset, Offset, PartitionIndex, TopicId, TopicPartition,
    Uuid,
};

use crate::checkpoint;
use crate::disk::{
    DirEntry, Disk, DiskFile, OpenMode, is_out_of_descriptors, read_small_file, replace_file, write_all_at,
};
use crate::env::LogEnv;
use crate::log::identity::{self, Identity};
use crate::reserve::{Ballast, reserve_of};

pub(crate) const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
/// 100,000 partitions with names of the greatest length take a third of this.
pub(crate) const CHECKPOINT_MAX: usize = 64 << 20;
pub(crate) const SMALL_MAX: usize = 64 << 10;
/// File names have at most so many bytes.
const NAME_MAX: usize = 255;
pub(crate) const DELETED: &str = "-delete";
/// Kafka's, of a directory that is kept for people to look at.
pub(crate) const STRAY: &str = "-stray";
/// Which topic each log here is of, once more: a name may be another topic's next time.
pub(crate) const TOPIC_IDS: &str = "topic-id-checkpoint";
/// How new the restored metadata is by which the logs here were sorted.
const RESTORED: &str = "metadata-restored-checkpoint";
/// Kafka's, of the copy of a log that is moved.
const FUTURE: &str = "-future";

/// What can go wrong with a log directory as a whole.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error("{} is in use by {}: stop that process or give this one its own log.dirs", path.display(), holder(.pid.as_ref()))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, as far as it is known.
        pid: Option<u32>,
    },
    /// `meta.properties` cannot be understood.
    #[error("{} is damaged ({what}): restore it, or start with an empty log directory", path.display())]
    BadMeta {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// It belongs to another node.
    #[error("{} belongs to node {found}, not to {wanted}: give this node its own log.dirs", path.display())]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: BrokerId,
        /// Who wants it.
        wanted: BrokerId,
    },
    /// It belongs to another cluster than the directories before it.
    #[error("{} belongs to cluster {found}, the other log.dirs to {wanted}: take it out of log.dirs", path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose the others are.
        wanted: ClusterId,
    },
    /// It says that it is another one.
    #[error("{} is a copy of {}: take one of them out of log.dirs", path.display(), other.display())]
    SameIdentity {
        /// The directory.
        path: PathBuf,
        /// The one with the same identity.
        other: PathBuf,
    },
    /// The disk.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl DataDirError {
    /// Whether no file descriptor was to be had: nothing is wrong with the directory.
    #[must_use]
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self, DataDirError::Io { source, .. } if is_out_of_descriptors(source))
    }
}

/// `meta.properties`: whose directory this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaProperties {
    /// Of which cluster; none until the node has joined one.
    pub cluster_id: Option<ClusterId>,
    /// Of which node.
    pub node_id: BrokerId,
    /// This directory's own identity.
    pub directory_id: DirectoryId,
}

/// The checkpoints that hold one offset for each partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Checkpoint {
    /// Below it, everything was synced (`R25`).
    RecoveryPoint,
    /// Where each log starts.
    LogStart,
    /// The high watermark: a hint (`R19`).
    HighWatermark,
    /// Of replicas that synced all they ever acknowledged before: where the log ended when that began (`R35`). Its
    /// entries have topic ids in the place of names: it must not be taken for another topic's of that name.
    SyncedBeforeAck,
}

/// A partition's directory, as it was found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PartitionDir {
    /// The topic's name.
    pub topic: String,
    /// Which of its partitions.
    pub partition: PartitionIndex,
    /// The topic's id; None where `partition.metadata` is missing or damaged.
    pub topic_id: Option<TopicId>,
    /// A checksum in that file vouches for it.
    pub checked: bool,
    /// The directory.
    pub path: PathBuf,
}

/// The directory of a log that was on its way to this log directory, as it was found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FutureDir {
    /// The topic's name.
    pub topic: String,
    /// Which partition, by its name.
    pub id: TopicPartition,
    /// The directory.
    pub path: PathBuf,
}

/// See the module.
#[derive(Debug)]
pub struct DataDir {
    env: LogEnv,
    path: PathBuf,
    ballast: Arc<Ballast>,
    /// As configured; negative: a share of the file system.
    reserve: AtomicI64,
    _lock: Arc<dyn DiskFile>,
}

impl Checkpoint {
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Checkpoint::RecoveryPoint => "recovery-point-offset-checkpoint",
            Checkpoint::LogStart => "log-start-offset-checkpoint",
            Checkpoint::HighWatermark => "replication-offset-checkpoint",
            Checkpoint::SyncedBeforeAck => "synced-before-ack-checkpoint",
        }
    }
}

impl DataDir {
    /// Makes the directory if it is not there, and takes it for this process. Its health is its own.
    ///
    /// # Errors
    /// `InUse` names the process that holds it.
    pub fn open(env: &LogEnv, path: &Path) -> Result<Self, DataDirError> {
        let disk = &*env.disk;
        let failed = |what| io_error(what, path);
        disk.create_dir_all(path).map_err(failed("make"))?;
        let file = path.join(".lock");
        let lock = disk.open(&file, OpenMode::Create).map_err(io_error("open", &file))?;
        if !lock.try_lock().map_err(io_error("lock", &file))? {
            let text = read_small_file(disk, &file, SMALL_MAX).ok().flatten().unwrap_or_default();
            let pid = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
            return Err(DataDirError::InUse { path: path.to_owned(), pid });
        }
        let pid = format!("{}\n", std::process::id());
        // A full disk must not keep a broker from starting: the pid is for people only.
        let noted = lock.truncate(0).and_then(|()| write_all_at(&*lock, &mut [IoSlice::new(pid.as_bytes())], 0));
        if let Err(error) = noted {
            tracing::warn!(path = %file.display(), %error, "cannot note the process id");
        }
        path.parent().map_or(Ok(()), |above| disk.sync_dir(above)).map_err(failed("sync the directory above"))?;
        let ballast = Ballast::new(Arc::clone(&env.disk), path);
        let env = env.for_directory(Arc::clone(&ballast));
        Ok(Self { env, path: path.to_owned(), ballast, reserve: AtomicI64::new(0), _lock: lock })
    }

    /// What the logs of this directory are opened with.
    #[must_use]
    pub fn env(&self) -> &LogEnv {
        &self.env
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on so many bytes are kept free; negative: a share of the file system.
    pub fn keep_reserve(&self, bytes: i64) {
        self.reserve.store(bytes, Ordering::Relaxed);
        self.watch_space();
    }

    /// Looks at the free space; says whether that changed what may be appended. Blocks shortly.
    pub fn watch_space(&self) -> bool {
        let Ok((total, available)) = self.disk().space(&self.path) else {
            // Where it cannot be told, the disk itself says when it is full.
            return self.env.health.space.measured(0, u64::MAX, 0);
        };
        let reserve = reserve_of(total, self.reserve.load(Ordering::Relaxed));
        self.ballast.take(available, reserve);
        self.env.health.space.measured(total, available, reserve)
    }

    /// Total and available bytes of the file system that the directory is on; None where they cannot be told.
    #[must_use]
    pub fn space(&self) -> Option<(i64, i64)> {
        let (total, available) = self.disk().space(&self.path).ok()?;
        Some((i64::try_from(total).ok()?, i64::try_from(available).ok()?))
    }

    /// Whose directory it is; None in a new one.
    ///
    /// # Errors
    /// `BadMeta`: an identity is never guessed.
    pub fn meta(&self) -> Result<Option<MetaProperties>, DataDirError> {
        let path = self.meta_path();
        let text = read_small_file(self.disk(), &path, SMALL_MAX).map_err(io_error("read", &path))?;
        let Some(text) = text else { return Ok(None) };
        parse_meta(&text).map(Some).map_err(|what| DataDirError::BadMeta { path, what })
    }

    /// Makes it the directory of this cluster and node, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_meta(&self, meta: &MetaProperties) -> Result<(), DataDirError> {
        let mut text = format!("version=1\nnode.id={}\ndirectory.id={}\n", meta.node_id, meta.directory_id);
        if let Some(cluster_id) = meta.cluster_id {
            text.push_str(&format!("cluster.id={cluster_id}\n"));
        }
        self.replace(&self.meta_path(), text.as_bytes())
    }

    /// Takes the mark of a clean shutdown away, durably, and gives the broker epoch in it; None where there is none or it
    /// is damaged: then the last shutdown is not proven clean. To be called before anything else is done (`R10`).
    ///
    /// # Errors
    /// The disk's: then nothing may be started.
    pub fn take_clean_shutdown(&self) -> Result<Option<BrokerEpoch>, DataDirError> {
        let path = self.path.join(CLEAN_SHUTDOWN);
        let text = match read_small_file(self.disk(), &path, SMALL_MAX) {
            Ok(None) => return Ok(None),
            Ok(Some(text)) => text,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Vec::new(),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let removed = self.disk().remove_file(&path).and_then(|()| self.disk().sync_dir(&self.path));
        removed.map_err(io_error("remove", &path))?;
        Ok(parse_clean_shutdown(&text))
    }

    /// Leaves the mark of a clean shutdown: after every log of the directory is flushed and closed (`R10`).
    ///
    /// # Errors
    /// The disk's, and where the directory is offline: then there is no mark.
    pub fn write_clean_shutdown(&self, broker_epoch: BrokerEpoch) -> Result<(), DataDirError> {
        let path = self.path.join(CLEAN_SHUTDOWN);
        if let Some(reason) = self.env.health.failure() {
            return Err(io_error("mark as cleanly shut down", &path)(io::Error::other(reason.to_owned())));
        }
        self.replace(&path, format!("{{\"version\":0,\"brokerEpoch\":{broker_epoch}}}").as_bytes())
    }

    /// The offsets of a checkpoint; empty where it is not there or damaged.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_checkpoint(
        &self,
        which: Checkpoint,
    ) -> Result<BTreeMap<(String, PartitionIndex), Offset>, DataDirError> {
        let path = self.path.join(which.file_name());
        let text = match read_small_file(self.disk(), &path, CHECKPOINT_MAX) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Some(Vec::new()),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let Some(text) = text else { return Ok(BTreeMap::new()) };
        Ok(parse_offsets(&text).unwrap_or_else(|what| {
            tracing::warn!(path = %path.display(), what, "a damaged checkpoint is passed over");
            BTreeMap::new()
        }))
    }

    /// Replaces a checkpoint, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_checkpoint<'a>(
        &self,
        which: Checkpoint,
        offsets: impl IntoIterator<Item = (&'a str, PartitionIndex, Offset)>,
    ) -> Result<(), DataDirError> {
        let lines: Vec<String> =
            offsets.into_iter().map(|(topic, p, offset)| format!("{topic} {p} {offset}")).collect();
        self.replace(&self.path.join(which.file_name()), checkpoint::format(lines.into_iter()).as_bytes())
    }

    /// Which topic each log in the directory was of when the checkpoints were last written; empty where that is not known.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_topic_ids(&self) -> Result<BTreeMap<(String, PartitionIndex), TopicId>, DataDirError> {
        let path = self.path.join(TOPIC_IDS);
        let text = match read_small_file(self.disk(), &path, CHECKPOINT_MAX) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Some(Vec::new()),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let Some(text) = text else { return Ok(BTreeMap::new()) };
        Ok(parse_topic_ids(&text).unwrap_or_else(|what| {
            tracing::warn!(path = %path.display(), what, "a damaged checkpoint is passed over");
            BTreeMap::new()
        }))
    }

    /// Replaces that, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_topic_ids<'a>(
        &self,
        ids: impl IntoIterator<Item = (&'a str, PartitionIndex, TopicId)>,
    ) -> Result<(), DataDirError> {
        let lines: Vec<String> = ids.into_iter().map(|(topic, p, id)| format!("{topic} {p} {id}")).collect();
        self.replace(&self.path.join(TOPIC_IDS), checkpoint::format(lines.into_iter()).as_bytes())
    }

    /// Where the metadata was restored that the logs here were last sorted by (`R80`); 0 where it never was, or nobody can
    /// tell.
    ///
    /// # Errors
    /// The disk's.
    pub fn read_restored_at(&self) -> Result<MetadataOffset, DataDirError> {
        let path = self.path.join(RESTORED);
        let text = match read_small_file(self.disk(), &path, SMALL_MAX) {
            Ok(text) => text.unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Vec::new(),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let at = checkpoint::parse_one(&text).and_then(|at| u64::try_from(at.0).ok());
        Ok(MetadataOffset(at.unwrap_or(0)))
    }

    /// Notes that, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_restored_at(&self, at: MetadataOffset) -> Result<(), DataDirError> {
        let text = checkpoint::format([at.0.to_string()].into_iter());
        self.replace(&self.path.join(RESTORED), text.as_bytes())
    }

    /// Whether any file of a partition's directory has records.
    ///
    /// # Errors
    /// The disk's.
    pub fn has_records(&self, topic: &str, partition: PartitionIndex) -> Result<bool, DataDirError> {
        let path = self.partition_path(topic, partition);
        for entry in self.disk().list(&path).map_err(io_error("list", &path))? {
            if entry.name.ends_with(".log") {
                let file = path.join(&entry.name);
                let size = self.disk().open(&file, OpenMode::ReadOnly).and_then(|file| file.size());
                if size.map_err(io_error("read", &file))? > 0 {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Writes anew, durably, whose a partition's directory is, whatever it said. The log of it must not be open.
    ///
    /// # Errors
    /// The disk's.
    pub fn restore_identity(&self, path: &Path, topic_id: TopicId) -> Result<(), DataDirError> {
        identity::replace(self.disk(), path, topic_id).map_err(io_error("write whose log it is in", path))
    }

    /// Where a partition's log lies, whether it is there or not.
    #[must_use]
    pub fn partition_path(&self, topic: &str, partition: PartitionIndex) -> PathBuf {
        self.path.join(format!("{topic}-{partition}"))
    }

    /// The partitions that have a directory, ascending.
    ///
    /// # Errors
    /// The disk's.
    pub fn partitions(&self) -> Result<Vec<PartitionDir>, DataDirError> {
        let mut found = Vec::new();
        for entry in self.disk().list(&self.path).map_err(io_error("list", &self.path))? {
            let Some((topic, partition)) = parse_partition(&entry.name).filter(|_| entry.is_dir) else { continue };
            let path = self.path.join(&entry.name);
            let (topic_id, checked) = match identity::read(self.disk(), &path).map_err(io_error("read", &path))? {
                Identity::Known { topic_id, checked } => (Some(topic_id), checked),
                Identity::Unknown => (None, false),
            };
            found.push(PartitionDir { topic, partition, topic_id, checked, path });
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Where the copy of a partition's log is while it comes to this directory; None where the name would be too long.
    #[must_use]
    pub fn future_path(&self, topic: &str, id: TopicPartition) -> Option<PathBuf> {
        is_movable(topic, id.partition).then(|| self.path.join(future_name(topic, id)))
    }

    /// The logs that were on their way to this directory, ascending.
    ///
    /// # Errors
    /// The disk's.
    pub fn futures(&self) -> Result<Vec<FutureDir>, DataDirError> {
        let entries = self.disk().list(&self.path).map_err(io_error("list", &self.path))?;
        let future = |entry: &DirEntry| {
            let (topic, id) = parse_future(&entry.name).filter(|_| entry.is_dir)?;
            Some(FutureDir { topic, id, path: self.path.join(&entry.name) })
        };
        Ok(entries.iter().filter_map(future).collect())
    }

    /// Whether a partition's log has its name here.
    ///
    /// # Errors
    /// The disk's.
    pub fn has_partition(&self, topic: &str, partition: PartitionIndex) -> Result<bool, DataDirError> {
        let names = self.disk().list(&self.path).map_err(io_error("list", &self.path))?;
        Ok(names.iter().any(|entry| entry.name == format!("{topic}-{partition}")))
    }

    /// Takes the directory of a log that was on its way here out of use, durably, as [`DataDir::delete_partition`].
    ///
    /// # Errors
    /// The disk's.
    pub fn delete_future(&self, path: &Path) -> Result<(), DataDirError> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.take_away(&[name.to_owned()], DELETED).map(drop)
    }

    /// Takes a partition's directory out of use, durably, under a name that nobody opens; its space is freed with
    /// [`DataDir::free_deleted`]. The log of it must be dropped. False where there is none.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete_partition(&self, topic: &str, partition: PartitionIndex) -> Result<bool, DataDirError> {
        Ok(self.delete_partitions(&[(topic, partition)])? > 0)
    }

    /// The same for many at once, with one look at the directory and one sync of it; says how many there were.
    ///
    /// # Errors
    /// The disk's.
    pub fn delete_partitions(&self, partitions: &[(&str, PartitionIndex)]) -> Result<usize, DataDirError> {
        let names: Vec<String> = partitions.iter().map(|(topic, partition)| format!("{topic}-{partition}")).collect();
        Ok(self.take_away(&names, DELETED)?.len())
    }

    /// Takes a partition's directory out of use as [`delete_partition`](Self::delete_partition) does, under a name that
    /// nobody opens or deletes but people. Gives the name; None where there is no such directory.
    ///
    /// # Errors
    /// The disk's.
    pub fn set_aside(&self, topic: &str, partition: PartitionIndex) -> Result<Option<PathBuf>, DataDirError> {
        Ok(self.take_away(&[format!("{topic}-{partition}")], STRAY)?.pop())
    }

    /// Gives those that were there other names, with this ending; says which.
    fn take_away(&self, names: &[String], ending: &str) -> Result<Vec<PathBuf>, DataDirError> {
        let entries = self.disk().list(&self.path).map_err(io_error("list", &self.path))?;
        let mut there: BTreeSet<String> = entries.into_iter().map(|entry| entry.name).collect();
        let mut taken = Vec::new();
        for name in names.iter().filter(|name| there.contains(*name)).collect::<Vec<_>>() {
            let away = free_name(&there, name, ending);
            let (path, target) = (self.path.join(name), self.path.join(&away));
            self.disk().rename(&path, &target).map_err(io_error("rename", &path))?;
            there.remove(name);
            there.insert(away);
            taken.push(target);
        }
        if !taken.is_empty() {
            self.disk().sync_dir(&self.path).map_err(io_error("sync", &self.path))?;
        }
        Ok(taken)
    }

    /// Frees the space of deleted partitions, also of those that an earlier process left; says how many. Blocks for long, and
    /// may run beside another one.
    ///
    /// # Errors
    /// The disk's.
    pub fn free_deleted(&self) -> Result<usize, DataDirError> {
        let mut freed = 0;
        for entry in self.disk().list(&self.path).map_err(io_error("list", &self.path))? {
            if entry.is_dir && entry.name.ends_with(DELETED) && parse_partition(&entry.name).is_none() {
                let path = self.path.join(&entry.name);
                match self.disk().remove_dir_all(&path) {
                    Ok(()) => freed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("remove", &path)(error)),
                }
            }
        }
        Ok(freed)
    }

    fn disk(&self) -> &dyn Disk {
        &*self.env.disk
    }

    fn meta_path(&self) -> PathBuf {
        self.path.join("meta.properties")
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), DataDirError> {
        replace_file(self.disk(), path, content).map_err(io_error("write", path))
    }
}

/// The name under which a directory is put away: one that is not there.
fn free_name(there: &BTreeSet<String>, name: &str, ending: &str) -> String {
    let numbered = |number: u64| {
        let suffix = format!(".{number}{ending}");
        let kept = name.len().min(NAME_MAX - suffix.len());
        format!("{}{suffix}", name.get(..kept).unwrap_or("topic"))
    };
    (0..).map(numbered).find(|away| !there.contains(away)).expect("there are more numbers than files")
}

fn holder(pid: Option<&u32>) -> String {
    pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
}

pub(crate) fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |source| DataDirError::Io { what, path: path.clone(), source }
}

pub(crate) fn parse_meta(text: &[u8]) -> Result<MetaProperties, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let values: BTreeMap<&str, &str> =
        lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.trim(), value.trim())).collect();
    if values.get("version") != Some(&"1") {
        return Err("its version is not 1");
    }
    let node_id = values.get("node.id").and_then(|n| n.parse().ok()).ok_or("it has no node.id")?;
    let directory_id = values.get("directory.id").and_then(|id| id.parse().ok()).ok_or("it has no directory.id")?;
    let cluster_id = match values.get("cluster.id") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| "its cluster.id is no identifier")?),
    };
    Ok(MetaProperties { cluster_id, node_id: BrokerId(node_id), directory_id })
}

/// The broker epoch of `{"version":0,"brokerEpoch":7}`.
pub(crate) fn parse_clean_shutdown(text: &[u8]) -> Option<BrokerEpoch> {
    let text = std::str::from_utf8(text).ok()?;
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let fields: BTreeMap<&str, &str> =
        inside.split(',').filter_map(|field| field.split_once(':')).map(|(k, v)| (k.trim(), v.trim())).collect();
    let epoch = fields.get("\"brokerEpoch\"")?.parse().ok()?;
    (fields.get("\"version\"") == Some(&"0")).then_some(BrokerEpoch(epoch))
}

pub(crate) fn parse_offsets(text: &[u8]) -> Result<BTreeMap<(String, PartitionIndex), Offset>, &'static str> {
    let mut offsets = BTreeMap::new();
    for line in checkpoint::parse(text)? {
        let mut words = line.split(' ');
        let (Some(topic), Some(partition), Some(offset), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("a line has not three words");
        };
        let partition = partition.parse().map_err(|_| "a partition is not a number")?;
        let offset: i64 = offset.parse().map_err(|_| "an offset is not a number")?;
        if offset < 0 {
            return Err("an offset is negative");
        }
        offsets.insert((topic.to_owned(), PartitionIndex(partition)), Offset(offset));
    }
    Ok(offsets)
}

pub(crate) fn parse_topic_ids(text: &[u8]) -> Result<BTreeMap<(String, PartitionIndex), TopicId>, &'static str> {
    let mut ids = BTreeMap::new();
    for line in checkpoint::parse(text)? {
        let mut words = line.split(' ');
        let (Some(topic), Some(partition), Some(id), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("a line has not three words");
        };
        let partition = partition.parse().map_err(|_| "a partition is not a number")?;
        let id = id.parse().map_err(|_| "a topic's id is none")?;
        ids.insert((topic.to_owned(), PartitionIndex(partition)), id);
    }
    Ok(ids)
}

/// `topic-7`
pub(crate) fn parse_partition(name: &str) -> Option<(String, PartitionIndex)> {
    let (topic, partition) = name.rsplit_once('-')?;
    if topic.is_empty() || partition.is_empty() || !partition.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((topic.to_owned(), PartitionIndex(partition.parse().ok()?)))
}

/// Whether the copy that a move of a partition makes can have a name.
#[must_use]
pub fn is_movable(topic: &str, partition: PartitionIndex) -> bool {
    future_name(topic, TopicPartition { topic_id: TopicId::NONE, partition }).len() <= NAME_MAX
}

fn future_name(topic: &str, id: TopicPartition) -> String {
    format!("{topic}-{}.{:032x}{FUTURE}", id.partition, id.topic_id.0.as_u128())
}

/// `topic-7.0123456789abcdef0123456789abcdef-future`
fn parse_future(name: &str) -> Option<(String, TopicPartition)> {
    let (partition, topic_id) = name.strip_suffix(FUTURE)?.rsplit_once('.')?;
    let (topic, partition) = parse_partition(partition)?;
    let digits = topic_id.len() == 32 && topic_id.bytes().all(|b| b.is_ascii_hexdigit());
    let topic_id = u128::from_str_radix(topic_id, 16).ok().filter(|_| digits)?;
    Some((topic, TopicPartition { topic_id: TopicId(Uuid::from_u128(topic_id)), partition }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Call, Crash, FaultKind, MemDisk, RealDisk};
    use model::Uuid;

    const PATH: &str = "/logs";

    fn on(disk: &MemDisk) -> Result<DataDir, DataDirError> {
        DataDir::open(&LogEnv::new(Arc::new(disk.clone()), 4, 0), Path::new(PATH))
    }

    fn write(disk: &dyn Disk, path: &Path, content: &[u8]) {
        replace_file(disk, path, content).unwrap();
    }

    #[test]
    fn a_directory_in_use_names_the_process_that_holds_it() {
        let temp = tempfile::tempdir().unwrap();
        let env = LogEnv::new(Arc::new(RealDisk), 4, 0);
        let held = DataDir::open(&env, temp.path()).unwrap();
        let refused = DataDir::open(&env, temp.path()).unwrap_err();
        assert!(matches!(refused, DataDirError::InUse { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(held);
        DataDir::open(&env, temp.path()).unwrap();
    }

    #[test]
    fn meta_properties_that_kafka_wrote_are_read_and_ours_read_back() {
        let disk = MemDisk::new();
        let dir = on(&disk).unwrap();
        assert_eq!(dir.meta().unwrap(), None);
        let kafkas = "#\n#Tue Nov 24 10:30:03 UTC 2026\nnode.id=1\ndirectory.id=yuDu4SfjM2_9hbGUDRxxaw\nversion=1\n\
                      cluster.id=MkU3OEVBNTcwNTJENDM2Qg\n";
        write(&disk, &dir.meta_path(), kafkas.as_bytes());
        let meta = dir.meta().unwrap().unwrap();
        assert_eq!((meta.node_id, meta.directory_id.to_string()), (BrokerId(1), "yuDu4SfjM2_9hbGUDRxxaw".to_owned()));
        for meta in [meta, MetaProperties { cluster_id: None, node_id: BrokerId(3), ..meta }] {
            dir.write_meta(&meta).unwrap();
            assert_eq!(dir.meta().unwrap(), Some(meta));
        }
        for damage in ["", "version=2\nnode.id=1\n", "version=1\nnode.id=x\ndirectory.id=yuDu4SfjM2_9hbGUDRxxaw"] {
            write(&disk, &dir.meta_path(), damage.as_bytes());
            assert!(matches!(dir.meta(), Err(DataDirError::BadMeta { .. })), "{damage}");
        }
    }

    #[test]
    fn the_mark_of_a_clean_shutdown_is_taken_once_and_survives_only_until_then() {
        // R10: durable when written, durably gone when taken, before anything else.
        let disk = MemDisk::new();
        on(&disk).unwrap().write_clean_shutdown(BrokerEpoch(77)).unwrap();
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(on(&disk).unwrap().take_clean_shutdown().unwrap(), Some(BrokerEpoch(77)));
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(on(&disk).unwrap().take_clean_shutdown().unwrap(), None);
        let dir = on(&disk).unwrap();
        for damage in ["", "{}", "{\"version\":1,\"brokerEpoch\":7}", "{\"version\":0,\"brokerEpoch\":", "noise"] {
            write(&disk, &dir.path().join(CLEAN_SHUTDOWN), damage.as_bytes());
            assert_eq!(dir.take_clean_shutdown().unwrap(), None, "{damage}");
            assert_eq!(dir.disk().list(dir.path()).unwrap().len(), 1, "only the lock stays");
        }
        dir.write_clean_shutdown(BrokerEpoch(1)).unwrap();
        disk.fail(Call::SyncDir, 0, FaultKind::Eio);
        assert!(dir.take_clean_shutdown().is_err(), "a mark that may come back starts nothing");
        dir.env().health().fail(dir.path(), "cannot sync", &io::Error::other("test"));
        assert!(dir.write_clean_shutdown(BrokerEpoch(1)).is_err(), "what failed to sync is not clean (R30)");
    }

    #[test]
    fn checkpoints_read_back_and_damage_loses_the_hint_only() {
        let disk = MemDisk::new();
        let dir = on(&disk).unwrap();
        assert!(dir.read_checkpoint(Checkpoint::LogStart).unwrap().is_empty());
        let offsets = [("a-b.c", PartitionIndex(0), Offset(5)), ("t", PartitionIndex(12), Offset(1 << 40))];
        dir.write_checkpoint(Checkpoint::RecoveryPoint, offsets).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let dir = on(&disk).unwrap();
        let read = dir.read_checkpoint(Checkpoint::RecoveryPoint).unwrap();
        let expected = offsets.map(|(topic, partition, offset)| ((topic.to_owned(), partition), offset));
        assert_eq!(read, BTreeMap::from(expected));
        for damage in
            ["", "0\n1\nt 0\n", "0\n1\nt 0 -5\n", "0\n1\nt x 5\n", "0\n2\nt 0 5\n", "7\n0\n", "0\n1\nt 0 5 6\n"]
        {
            write(&disk, &dir.path().join("recovery-point-offset-checkpoint"), damage.as_bytes());
            assert!(dir.read_checkpoint(Checkpoint::RecoveryPoint).unwrap().is_empty(), "{damage}");
        }
    }

    #[test]
    fn partitions_are_listed_with_their_topic_ids_and_deleted_by_a_rename() {
        let disk = MemDisk::new();
        let dir = on(&disk).unwrap();
        let topic_id = TopicId(Uuid::from_u128(9));
        let long = "x".repeat(249);
        for (topic, partition) in [("a-b", 3), ("a-b", 10), (long.as_str(), 0)] {
            let path = dir.partition_path(topic, PartitionIndex(partition));
            disk.create_dir_all(&path).unwrap();
            if partition != 10 {
                identity::write(&disk, &path, topic_id).unwrap();
            }
        }
        disk.create_dir_all(&dir.path().join("no partition")).unwrap();
        let listed = |dir: &DataDir| -> Vec<(String, i32, Option<TopicId>)> {
            dir.partitions().unwrap().into_iter().map(|p| (p.topic, p.partition.0, p.topic_id)).collect()
        };
        assert!(dir.partitions().unwrap().iter().all(|found| found.checked == found.topic_id.is_some()));
        let all =
            [("a-b".to_owned(), 3, Some(topic_id)), ("a-b".to_owned(), 10, None), (long.clone(), 0, Some(topic_id))];
        assert_eq!(listed(&dir), all);
        for _ in 0..2 {
            assert!(dir.delete_partition("a-b", PartitionIndex(10)).unwrap());
            assert!(!dir.delete_partition("a-b", PartitionIndex(10)).unwrap());
            disk.create_dir_all(&dir.partition_path("a-b", PartitionIndex(10))).unwrap();
        }
        assert!(dir.delete_partition(&long, PartitionIndex(0)).unwrap());
        assert_eq!(listed(&dir), all[..2]);
        disk.crash(Crash::KeepAll);
        let dir = on(&disk).unwrap();
        assert_eq!(dir.free_deleted().unwrap(), 3);
        assert_eq!((dir.free_deleted().unwrap(), listed(&dir)), (0, all[..2].to_vec()));
    }

    #[test]
    fn by_which_metadata_the_logs_were_sorted_outlives_a_crash_and_is_nothing_where_it_is_damaged() {
        // R80
        let disk = MemDisk::new();
        let dir = on(&disk).unwrap();
        assert_eq!(dir.read_restored_at().unwrap(), MetadataOffset(0));
        dir.write_restored_at(MetadataOffset(1 << 58)).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let dir = on(&disk).unwrap();
        assert_eq!(dir.read_restored_at().unwrap(), MetadataOffset(1 << 58));
        for damage in ["", "0\n1\n-5\n", "0\n1\nnoise\n", "0\n0\n", "0\n1\n1\n#crc32c 00000000\n"] {
            write(&disk, &dir.path().join(RESTORED), damage.as_bytes());
            assert_eq!(dir.read_restored_at().unwrap(), MetadataOffset(0), "{damage}");
        }
    }

    #[test]
    fn whose_the_logs_are_is_known_twice_and_a_directory_set_aside_is_kept() {
        let disk = MemDisk::new();
        let dir = on(&disk).unwrap();
        assert!(dir.read_topic_ids().unwrap().is_empty());
        let (topic_id, index) = (TopicId(Uuid::from_u128(9)), PartitionIndex(3));
        dir.write_topic_ids([("a-b", index, topic_id), ("c", index, TopicId(Uuid::from_u128(7)))]).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let dir = on(&disk).unwrap();
        let ids = dir.read_topic_ids().unwrap();
        assert_eq!((ids.len(), ids.get(&("a-b".to_owned(), index))), (2, Some(&topic_id)));
        for damage in ["", "0\n1\na-b 3 noise\n", "0\n1\na-b 3\n", "0\n2\n"] {
            write(&disk, &dir.path().join(TOPIC_IDS), damage.as_bytes());
            assert!(dir.read_topic_ids().unwrap().is_empty(), "{damage}");
        }
        let path = dir.partition_path("a-b", index);
        disk.create_dir_all(&path).unwrap();
        disk.sync_dir(dir.path()).unwrap();
        dir.restore_identity(&path, topic_id).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let dir = on(&disk).unwrap();
        let found = dir.partitions().unwrap().remove(0);
        assert_eq!((found.topic_id, found.checked), (Some(topic_id), true));
        let aside = dir.set_aside("a-b", index).unwrap().unwrap();
        assert_eq!(dir.set_aside("a-b", index).unwrap(), None);
        assert_eq!((dir.free_deleted().unwrap(), dir.partitions().unwrap()), (0, vec![]));
        assert!(identity::read(&disk, &aside).unwrap().is(topic_id), "{}", aside.display());
    }
}
