//! All log directories of a process (`log.dirs`): which of them work, whose they are, and what they prove together.
//!
//! ```text
//!            opened ──► works ──an I/O error──► offline until the process starts again (R30)
//!  configured ┤
//!            cannot be opened ────────────────► offline, and not even its identity is known
//! ```
//!
//! Invariants: there is one that could be opened. All are of one node and one cluster, no two have the same identity. A clean
//! shutdown is proven by every configured directory, with the same broker epoch, or not at all (`R10`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use model::{BrokerEpoch, BrokerId, ClusterId, DirectoryId};

use crate::data_dir::{DataDir, DataDirError, MetaProperties};
use crate::env::{DirHealth, LogEnv};

/// One log directory with its identity.
#[derive(Debug)]
pub struct LogDir {
    id: DirectoryId,
    data: DataDir,
    /// Its `meta.properties` names the cluster.
    joined: AtomicBool,
}

/// A configured directory that could not be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnopenedDir {
    /// Where it should be.
    pub path: PathBuf,
    /// Why it is not.
    pub reason: String,
}

/// See the module.
#[derive(Debug)]
pub struct LogDirs {
    dirs: Vec<Arc<LogDir>>,
    unopened: Vec<UnopenedDir>,
    node_id: BrokerId,
    cluster_id: ClusterId,
    /// Without it the process cannot go on: the quorum's files are in it.
    needed: Option<DirectoryId>,
}

impl LogDir {
    /// Its identity.
    #[must_use]
    pub fn id(&self) -> DirectoryId {
        self.id
    }

    /// Its files.
    #[must_use]
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// Whether it takes reads and writes, and has space.
    #[must_use]
    pub fn health(&self) -> &Arc<DirHealth> {
        self.data.env().health()
    }

    /// Whether it is in use.
    #[must_use]
    pub fn works(&self) -> bool {
        self.health().failure().is_none()
    }

    /// Takes it offline after an error of one of its own files; one that only says that it is full, or that the process has
    /// too many files open, is none (`R30`).
    pub fn failed(&self, error: &DataDirError) {
        if let DataDirError::Io { what, path, source } = error
            && !crate::disk::is_out_of_space(source)
            && !crate::disk::is_out_of_descriptors(source)
        {
            self.health().fail(path, &format!("cannot {what}"), source);
        }
    }
}

/// What a log directory is, once it is open: or why it is not.
enum Opened {
    Works(LogDir, Option<ClusterId>),
    Unopened(DataDirError),
}

impl LogDirs {
    /// Opens the directories of a node; those that are new get an identity from `new_id`. `needed` names the one without which
    /// there is no point in starting.
    ///
    /// # Errors
    /// Where one is in use, damaged, or another's; where the one that is needed, or each of them, cannot be opened.
    pub fn open(
        env: &LogEnv,
        paths: &[PathBuf],
        node_id: BrokerId,
        needed: Option<&Path>,
        mut new_id: impl FnMut() -> io::Result<DirectoryId>,
    ) -> Result<LogDirs, DataDirError> {
        let mut all =
            LogDirs { dirs: Vec::new(), unopened: Vec::new(), node_id, cluster_id: ClusterId::NONE, needed: None };
        let mut first_error = None;
        for path in paths {
            match open_one(env, path, node_id, &mut new_id)? {
                Opened::Works(dir, cluster_id) => {
                    if needed == Some(path) {
                        all.needed = Some(dir.id);
                    }
                    all.add(dir, cluster_id)?;
                }
                Opened::Unopened(error) if needed == Some(path) => return Err(error),
                Opened::Unopened(error) => {
                    tracing::error!(directory = %path.display(), %error, "a log directory cannot be opened: it is offline");
                    all.unopened.push(UnopenedDir { path: path.clone(), reason: error.to_string() });
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if all.dirs.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    fn add(&mut self, dir: LogDir, cluster_id: Option<ClusterId>) -> Result<(), DataDirError> {
        let path = || dir.data.path().to_owned();
        if let Some(other) = self.dirs.iter().find(|other| other.id == dir.id) {
            return Err(DataDirError::SameIdentity { path: path(), other: other.data.path().to_owned() });
        }
        if let Some(cluster_id) = cluster_id {
            if !self.cluster_id.is_none() && self.cluster_id != cluster_id {
                return Err(DataDirError::OtherCluster { path: path(), found: cluster_id, wanted: self.cluster_id });
            }
            self.cluster_id = cluster_id;
        }
        self.dirs.push(Arc::new(dir));
        Ok(())
    }

    /// Those that could be opened, in the order of the configuration.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<LogDir>> {
        self.dirs.iter()
    }

    /// Those that are in use.
    pub fn working(&self) -> impl Iterator<Item = &Arc<LogDir>> {
        self.dirs.iter().filter(|dir| dir.works())
    }

    /// The one with this identity.
    #[must_use]
    pub fn get(&self, id: DirectoryId) -> Option<&Arc<LogDir>> {
        self.dirs.iter().find(|dir| dir.id == id)
    }

    /// The one at this path.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&Arc<LogDir>> {
        self.dirs.iter().find(|dir| dir.data.path() == path)
    }

    /// Those that could not be opened.
    #[must_use]
    pub fn unopened(&self) -> &[UnopenedDir] {
        &self.unopened
    }

    /// The cluster that they belong to; `NONE` before the first start.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// What all logs share.
    #[must_use]
    pub fn env(&self) -> &LogEnv {
        let first = self.dirs.first().expect("there is one that could be opened");
        first.data.env()
    }

    /// The identities of those that failed since they were opened.
    #[must_use]
    pub fn offline(&self) -> Vec<DirectoryId> {
        self.dirs.iter().filter(|dir| !dir.works()).map(|dir| dir.id).collect()
    }

    /// Whether each that works says which cluster it is of.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.working().all(|dir| dir.joined.load(Ordering::Acquire))
    }

    /// Whether the process can go on: with one directory at least, and with the one that it needs.
    #[must_use]
    pub fn can_go_on(&self) -> bool {
        let needed = self.needed.and_then(|id| self.get(id));
        self.working().next().is_some() && needed.is_none_or(|dir| dir.works())
    }

    /// Notes the cluster in the directories that do not say it yet. Blocks.
    ///
    /// # Errors
    /// Where none can be written. One that cannot is offline from then on.
    pub fn join(&self, cluster_id: ClusterId) -> Result<(), DataDirError> {
        let mut last_error = None;
        for dir in self.working().filter(|dir| !dir.joined.load(Ordering::Acquire)) {
            let meta = MetaProperties { cluster_id: Some(cluster_id), node_id: self.node_id, directory_id: dir.id };
            match dir.data.write_meta(&meta) {
                Ok(()) => dir.joined.store(true, Ordering::Release),
                Err(error) => {
                    dir.failed(&error);
                    last_error = Some(error);
                }
            }
        }
        match last_error {
            Some(error) if self.dirs.iter().all(|dir| !dir.joined.load(Ordering::Acquire)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the marks of a clean shutdown away, durably, and gives the broker epoch in them where all have the same. To be
    /// called before anything else is done (`R10`). Blocks.
    ///
    /// # Errors
    /// Where that fails in each, or for want of file descriptors: then nothing may be started. One where it fails is offline
    /// from then on.
    pub fn take_clean_shutdown(&self) -> Result<Option<BrokerEpoch>, DataDirError> {
        let (mut epochs, mut last_error) = (Vec::new(), None);
        for dir in &self.dirs {
            match dir.data.take_clean_shutdown() {
                Ok(epoch) => epochs.push(epoch),
                Err(error) if error.is_out_of_descriptors() => return Err(error),
                Err(error) => {
                    dir.failed(&error);
                    last_error = Some(error);
                }
            }
        }
        match last_error {
            Some(error) if epochs.is_empty() => return Err(error),
            Some(_) => return Ok(None),
            None => {}
        }
        let first = epochs.first().copied().flatten().filter(|_| self.unopened.is_empty());
        Ok(first.filter(|epoch| epochs.iter().all(|other| *other == Some(*epoch))))
    }

    /// Leaves the marks of a clean shutdown: after every log is flushed and closed (`R10`). Blocks.
    ///
    /// # Errors
    /// The disk's, and where a directory is offline: then that shutdown is proven by none.
    pub fn write_clean_shutdown(&self, broker_epoch: BrokerEpoch) -> Result<(), DataDirError> {
        if let Some(unopened) = self.unopened.first() {
            let source = io::Error::other(unopened.reason.clone());
            return Err(DataDirError::Io { what: "mark as cleanly shut down", path: unopened.path.clone(), source });
        }
        self.dirs.iter().try_for_each(|dir| dir.data.write_clean_shutdown(broker_epoch))
    }
}

fn open_one(
    env: &LogEnv,
    path: &Path,
    node_id: BrokerId,
    new_id: &mut impl FnMut() -> io::Result<DirectoryId>,
) -> Result<Opened, DataDirError> {
    let opened = DataDir::open(env, path).and_then(|data| {
        let meta = match data.meta()? {
            Some(meta) => meta,
            None => {
                let source = |source| DataDirError::Io { what: "find an identity for", path: path.to_owned(), source };
                let meta = MetaProperties { cluster_id: None, node_id, directory_id: new_id().map_err(source)? };
                data.write_meta(&meta)?;
                meta
            }
        };
        Ok((data, meta))
    });
    match opened {
        Ok((_, meta)) if meta.node_id != node_id => {
            Err(DataDirError::OtherNode { path: path.to_owned(), found: meta.node_id, wanted: node_id })
        }
        Ok((data, meta)) => {
            let joined = AtomicBool::new(meta.cluster_id.is_some());
            Ok(Opened::Works(LogDir { id: meta.directory_id, data, joined }, meta.cluster_id))
        }
        // The disk may be broken; what says that it is another's is not to be started with, nor without descriptors.
        Err(error @ DataDirError::Io { .. }) if !error.is_out_of_descriptors() => Ok(Opened::Unopened(error)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Call, Disk, FaultKind, MemDisk, replace_file};
    use model::Uuid;

    const NODE: BrokerId = BrokerId(3);
    const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(9));

    fn paths() -> Vec<PathBuf> {
        ["/a", "/b", "/c"].map(PathBuf::from).to_vec()
    }

    fn open(disk: &MemDisk) -> Result<LogDirs, DataDirError> {
        open_as(disk, NODE, None, 100)
    }

    fn open_as(disk: &MemDisk, node: BrokerId, needed: Option<&str>, first: u128) -> Result<LogDirs, DataDirError> {
        let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
        let mut ids = first..;
        let new_id = || Ok(DirectoryId(Uuid::from_u128(ids.next().unwrap())));
        LogDirs::open(&env, &paths(), node, needed.map(Path::new), new_id)
    }

    fn ids(dirs: &LogDirs) -> Vec<u128> {
        dirs.iter().map(|dir| dir.id().0.as_u128()).collect()
    }

    #[test]
    fn each_has_an_identity_of_its_own_that_stays() {
        let disk = MemDisk::new();
        let dirs = open(&disk).unwrap();
        assert_eq!(ids(&dirs), [100, 101, 102]);
        assert_eq!(dirs.cluster_id(), ClusterId::NONE);
        dirs.join(CLUSTER).unwrap();
        drop(dirs);
        let dirs = open_as(&disk, NODE, None, 500).unwrap();
        assert_eq!((ids(&dirs), dirs.cluster_id()), (vec![100, 101, 102], CLUSTER));
        assert_eq!(dirs.at(Path::new("/b")).map(|dir| dir.id().0.as_u128()), Some(101));
        drop(dirs);
        // A new disk in the place of an old one.
        disk.remove_dir_all(Path::new("/b")).unwrap();
        let dirs = open_as(&disk, NODE, None, 500).unwrap();
        assert_eq!((ids(&dirs), dirs.cluster_id()), (vec![100, 500, 102], CLUSTER));
        dirs.join(CLUSTER).unwrap();
        assert_eq!(dirs.at(Path::new("/b")).unwrap().data().meta().unwrap().unwrap().cluster_id, Some(CLUSTER));
    }

    #[test]
    fn directories_of_others_are_refused() {
        let disk = MemDisk::new();
        let dirs = open(&disk).unwrap();
        assert!(matches!(open(&disk), Err(DataDirError::InUse { .. })));
        drop(dirs);
        assert!(matches!(open_as(&disk, BrokerId(4), None, 1), Err(DataDirError::OtherNode { .. })));
        let meta = |directory: u128, cluster: u128| {
            let (directory, cluster) = (Uuid::from_u128(directory), ClusterId(Uuid::from_u128(cluster)));
            format!("version=1\nnode.id=3\ndirectory.id={}\ncluster.id={cluster}\n", DirectoryId(directory))
        };
        let put = |path: &str, text: String| replace_file(&disk, Path::new(path), text.as_bytes()).unwrap();
        put("/a/meta.properties", meta(1, 9));
        put("/b/meta.properties", meta(1, 9));
        assert!(matches!(open(&disk), Err(DataDirError::SameIdentity { .. })), "a copy of another one");
        put("/b/meta.properties", meta(2, 8));
        assert!(matches!(open(&disk), Err(DataDirError::OtherCluster { .. })));
        put("/b/meta.properties", "version=7".to_owned());
        assert!(matches!(open(&disk), Err(DataDirError::BadMeta { .. })));
    }

    #[test]
    fn one_that_cannot_be_opened_is_offline_unless_it_is_needed_or_the_last_one() {
        let disk = MemDisk::new();
        drop(open(&disk).unwrap());
        disk.fail(Call::Open, 0, FaultKind::Eio);
        let dirs = open(&disk).unwrap();
        assert_eq!(ids(&dirs), [101, 102]);
        assert_eq!(dirs.unopened()[0].path, Path::new("/a"));
        drop(dirs);
        disk.fail(Call::Open, 0, FaultKind::Eio);
        assert!(matches!(open_as(&disk, NODE, Some("/a"), 1), Err(DataDirError::Io { .. })));
        let env = LogEnv::new(Arc::new(disk.clone()), 16, 0);
        disk.fail(Call::Open, 0, FaultKind::Eio);
        let only = LogDirs::open(&env, &["/a".into()], NODE, None, || Err(io::Error::other("none is wanted")));
        assert!(matches!(only, Err(DataDirError::Io { .. })));
    }

    #[test]
    fn a_clean_shutdown_is_proven_by_all_of_them_with_one_epoch() {
        // R10
        let disk = MemDisk::new();
        let dirs = open(&disk).unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None);
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), Some(BrokerEpoch(7)));
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None, "it is gone");
        // One is missing; one is of another time.
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        dirs.iter().next().unwrap().data().take_clean_shutdown().unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None);
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        dirs.iter().next().unwrap().data().write_clean_shutdown(BrokerEpoch(6)).unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None);
        // One cannot be opened.
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        drop(dirs);
        disk.fail(Call::Open, 0, FaultKind::Eio);
        let dirs = open(&disk).unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None);
        assert!(dirs.write_clean_shutdown(BrokerEpoch(8)).is_err());
        drop(dirs);
        let dirs = open(&disk).unwrap();
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None, "the others' are gone");
        // One cannot be taken away: that directory is out of use, and another start is not misled by what it says.
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        disk.fail(Call::Remove, 1, FaultKind::Eio);
        assert_eq!(dirs.take_clean_shutdown().unwrap(), None);
        assert_eq!(dirs.offline(), [DirectoryId(Uuid::from_u128(101))]);
        assert!(dirs.can_go_on());
        assert!(dirs.write_clean_shutdown(BrokerEpoch(8)).is_err());
        drop(dirs);
        assert_eq!(open(&disk).unwrap().take_clean_shutdown().unwrap(), None);
    }

    #[test]
    fn a_process_without_descriptors_does_not_take_its_directories_for_broken() {
        let disk = MemDisk::new();
        let dirs = open(&disk).unwrap();
        dirs.write_clean_shutdown(BrokerEpoch(7)).unwrap();
        disk.set_descriptors(Some(0));
        let dir = dirs.iter().next().unwrap();
        for error in [
            dir.data().partitions().unwrap_err(),
            dir.data().write_checkpoint(crate::Checkpoint::LogStart, []).unwrap_err(),
            dirs.join(CLUSTER).unwrap_err(),
            // R10: what is not taken away may not be passed over.
            dirs.take_clean_shutdown().unwrap_err(),
        ] {
            assert!(error.is_out_of_descriptors(), "{error}");
            dir.failed(&error);
        }
        assert_eq!(dirs.offline(), []);
        disk.set_descriptors(None);
        assert_eq!(dirs.take_clean_shutdown().unwrap(), Some(BrokerEpoch(7)));
        drop(dirs);
        disk.set_descriptors(Some(0));
        assert!(open(&disk).unwrap_err().is_out_of_descriptors(), "a start without descriptors is none");
    }

    #[test]
    fn the_process_goes_on_while_one_works_and_the_needed_one_does() {
        let disk = MemDisk::new();
        let dirs = open_as(&disk, NODE, Some("/b"), 1).unwrap();
        let fail = |at: usize| {
            let error = io::Error::from_raw_os_error(5);
            let what = DataDirError::Io { what: "write", path: "/x".into(), source: error };
            dirs.iter().nth(at).unwrap().failed(&what);
        };
        fail(0);
        assert!(dirs.can_go_on());
        fail(1);
        assert!(!dirs.can_go_on());
        let dirs = open_as(&MemDisk::new(), NODE, None, 1).unwrap();
        let full = DataDirError::Io { what: "write", path: "/x".into(), source: io::Error::from_raw_os_error(28) };
        dirs.iter().for_each(|dir| dir.failed(&full));
        assert_eq!(dirs.offline(), [], "a full disk is not a broken one");
    }
}
