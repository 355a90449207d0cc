//! openraft's own suite over our store, the same with every file reopened after each call, fencing, and power cuts.

use std::fmt::Debug;
use std::io::Cursor;
use std::ops::RangeBounds;

use metadata::MetadataRecord;
use model::{ClusterId, Uuid};
use openraft::storage::{
    LogFlushed, LogState, RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, LogId, OptionalSend, RaftLogReader, Snapshot, Vote};
use storage::disk::{Crash, MemDisk};

use super::types::{Applied, Entry, Member, StorageError, StoredMembership, TypeConfig};
use super::*;

fn mem_disk() -> MemDisk {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/q")).unwrap();
    disk.crash(Crash::KeepAll);
    disk
}

fn config(disk: &MemDisk) -> QuorumConfig {
    QuorumConfig {
        network: rpc::net::Network::Tcp,
        me: QuorumNode { id: BrokerId(1), directory: model::DirectoryId(Uuid::from_u128(1)) },
        voters: Vec::new(),
        disk: Arc::new(disk.clone()),
        waits: Waits::never(),
        dir: PathBuf::from("/q"),
        keep_image: false,
        pool: DiskPool::inline(),
        timeouts: Timeouts::default(),
        rules: crate::rules(),
    }
}

fn open(disk: &MemDisk) -> Result<(LogStore, StateMachine), OpenError> {
    open_stores(&config(disk), Arc::new(MetadataLog::keeping(0)))
}

struct Plain;

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for Plain {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError> {
        let (log, machine) = open(&mem_disk()).unwrap();
        Ok(((), log, machine))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::test_all(Plain).unwrap();
}

/// A log store whose files are closed and opened again after every call, with the power cut in between.
struct Reopening {
    disk: MemDisk,
    inner: LogStore,
}

impl Reopening {
    fn reopen(&mut self) {
        self.disk.crash(Crash::LoseUnsynced);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        // Purges are not held back here: a snapshot of everything is said to be durable.
        let all = LogId::new(CommittedLeaderId::new(u64::MAX, NodeId::default()), u64::MAX);
        self.inner = LogStore::open(&disk, Path::new("/q"), DiskPool::inline(), Some(all), Rules::all()).unwrap();
    }
}

impl RaftLogReader<TypeConfig> for Reopening {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.inner.try_get_log_entries(range).await
    }
}

impl RaftLogStorage<TypeConfig> for Reopening {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.inner.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.inner.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError> {
        self.inner.save_vote(vote).await?;
        self.reopen();
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError> {
        self.inner.read_vote().await
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.inner.append(entries, callback).await?;
        self.reopen();
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError> {
        self.inner.truncate(log_id).await?;
        self.reopen();
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError> {
        self.inner.purge(log_id).await?;
        self.reopen();
        Ok(())
    }
}

/// A machine that is thrown away after every snapshot, and made again from what is on the disk.
struct ReopeningMachine {
    disk: MemDisk,
    inner: StateMachine,
}

impl RaftSnapshotBuilder<TypeConfig> for ReopeningMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        self.inner.build_snapshot().await
    }
}

impl RaftStateMachine<TypeConfig> for ReopeningMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId<NodeId>>, StoredMembership), StorageError> {
        self.inner.applied_state().await
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let applied = self.inner.apply(entries).await?;
        // What is applied is not durable by itself: a snapshot makes it so.
        self.inner.build_snapshot().await?;
        let forked = self.disk.fork();
        forked.crash(Crash::LoseUnsynced);
        self.inner = open(&forked).unwrap().1;
        self.disk = forked;
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.inner.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        self.inner.begin_receiving_snapshot().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        self.inner.install_snapshot(meta, snapshot).await?;
        self.disk.crash(Crash::LoseUnsynced);
        self.inner = open(&self.disk).unwrap().1;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        self.inner.get_current_snapshot().await
    }
}

struct Reopened;

impl StoreBuilder<TypeConfig, Reopening, ReopeningMachine> for Reopened {
    async fn build(&self) -> Result<((), Reopening, ReopeningMachine), StorageError> {
        // Log and machine on disks of their own: the suite applies entries that it never appends.
        let (log_disk, machine_disk) = (mem_disk(), mem_disk());
        let mut log = Reopening { inner: open(&log_disk).unwrap().0, disk: log_disk };
        log.reopen();
        let machine = ReopeningMachine { inner: open(&machine_disk).unwrap().1, disk: machine_disk };
        Ok(((), log, machine))
    }
}

#[test]
fn openrafts_suite_passes_when_the_power_is_cut_after_every_call() {
    Suite::test_all(Reopened).unwrap();
}

const NODE: u64 = 1;

fn log_id(term: u64, index: u64) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(term, NODE.into()), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Blank }
}

/// An entry made in `term` with records that were decided in `decided` at `base`.
fn entry(term: u64, index: u64, decided: u64, base: u64, records: &[MetadataRecord]) -> Entry {
    let records = RecordBytes(metadata::wire::encode_records(records).into());
    let batch = Batch { term: decided, node: NODE.into(), base, records };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(batch) }
}

fn founding() -> MetadataRecord {
    MetadataRecord::ClusterId(ClusterId(Uuid::from_u128(5)))
}

fn feature(level: i16) -> MetadataRecord {
    MetadataRecord::FeatureLevel { name: "f".to_owned(), level }
}

#[tokio::test]
async fn an_entry_of_another_tenure_or_offset_changes_nothing() {
    // R66
    let (_, mut machine) = open(&mem_disk()).unwrap();
    let entries = [
        entry(2, 1, 1, 0, &[founding()]),
        entry(2, 2, 2, 1, &[founding()]),
        entry(2, 3, 2, 0, &[feature(1)]),
        entry(2, 4, 2, 0, &[founding(), feature(1)]),
        entry(3, 5, 2, 2, &[feature(2)]),
        entry(3, 6, 3, 1, &[feature(2)]),
        entry(3, 7, 3, 2, &[founding()]),
        entry(3, 8, 3, 2, &[feature(3), founding()]),
        entry(3, 9, 3, 2, &[feature(4)]),
    ];
    let expected = [
        Applied::Superseded,
        Applied::Superseded,
        Applied::Superseded,
        Applied::Records { next_offset: 2 },
        Applied::Superseded,
        Applied::Superseded,
        Applied::Superseded,
        Applied::Superseded,
        Applied::Records { next_offset: 3 },
    ];
    assert_eq!(machine.apply(entries).await.unwrap(), expected);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(3, 9)));
}

#[tokio::test]
async fn a_purge_waits_for_the_snapshot_and_an_append_behind_it_too() {
    // R72
    let disk = mem_disk();
    let (mut log, _) = open(&disk).unwrap();
    log.blocking_append((1..=5).map(|i| blank(1, i))).await.unwrap();
    // As openraft does when it has queued the installation of a snapshot up to 9.
    log.purge(log_id(1, 9)).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, 9)));
    assert!(log.try_get_log_entries(..).await.unwrap().is_empty());
    let behind = log.bounds().unwrap();
    assert_eq!(behind, LogBounds { purged: None, last: Some(log_id(1, 5)) });
    let mut other = log.clone();
    let append = tokio::spawn(async move { other.blocking_append([blank(1, 10)]).await });
    tokio::task::yield_now().await;
    assert!(!append.is_finished());
    // The power goes: nothing that was acknowledged is lost.
    let cut = disk.fork();
    cut.crash(Crash::LoseUnsynced);
    assert_eq!(open(&cut).unwrap().0.bounds().unwrap(), behind);
    log.snapshot_saved(log_id(1, 9)).await.unwrap();
    append.await.unwrap().unwrap();
    let bounds = LogBounds { purged: Some(log_id(1, 9)), last: Some(log_id(1, 10)) };
    assert_eq!(log.bounds().unwrap(), bounds);
}

use super::log_store::LogBounds;

#[tokio::test]
async fn a_log_purged_beyond_its_snapshot_is_refused_with_its_directory() {
    // R72
    let disk = mem_disk();
    let (mut log, mut machine) = open(&disk).unwrap();
    log.blocking_append((1..=5).map(|i| blank(1, i))).await.unwrap();
    machine.apply((1..=4).map(|i| blank(1, i))).await.unwrap();
    machine.build_snapshot().await.unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(open(&disk).unwrap().1.applied_state().await.unwrap().0, Some(log_id(1, 4)));
    disk.remove_dir_all(Path::new("/q/snapshots")).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::SnapshotMissing { purged: 4, snapshot: None, .. }), "{error}");
    assert!(error.to_string().contains("/q"));
}

#[tokio::test]
async fn a_restart_takes_the_commitment_from_the_vote() {
    let disk = mem_disk();
    let (mut log, _) = open(&disk).unwrap();
    log.save_vote(&Vote::new_committed(7, NODE.into())).await.unwrap();
    let (mut log, _) = open(&disk).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(7, NODE.into())));
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_in_power_cuts_at_random_instants() {
    for seed in 0..60u64 {
        let disk = mem_disk();
        let mut random = runtime::Random(seed);
        let (mut log, mut machine) = open(&disk).unwrap();
        let mut next = 1;
        let mut acknowledged = 0;
        for _ in 0..6 {
            for _ in 0..random.next() % 12 {
                let count = 1 + random.next() % 4;
                log.blocking_append((next..next + count).map(|i| blank(1, i))).await.unwrap();
                next += count;
                acknowledged = next - 1;
                if random.next().is_multiple_of(4) {
                    let applied = machine.applied_state().await.unwrap().0.map_or(0, |id| id.index);
                    machine.apply((applied + 1..next).map(|i| blank(1, i))).await.unwrap();
                    machine.build_snapshot().await.unwrap();
                    log.purge(log_id(1, next - 1 - random.next() % 2)).await.unwrap();
                }
            }
            disk.crash(if random.next().is_multiple_of(2) {
                Crash::LoseUnsynced
            } else {
                Crash::Scatter(random.next())
            });
            (log, machine) = open(&disk).unwrap();
            let last = log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index);
            assert_eq!(last, acknowledged, "seed {seed}");
            let applied = machine.applied_state().await.unwrap().0;
            assert!(applied.map_or(0, |id| id.index) <= last);
            let first = log.bounds().unwrap().purged.map_or(0, |id| id.index);
            let kept = log.try_get_log_entries(..).await.unwrap();
            assert_eq!(kept.iter().map(|e| e.log_id.index).collect::<Vec<_>>(), (first + 1..=last).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn the_copy_in_sled_is_loaded_only_where_the_log_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let config = QuorumConfig {
        network: rpc::net::Network::Tcp,
        disk: Arc::new(storage::disk::RealDisk),
        dir: dir.path().join("q"),
        keep_image: true,
        ..config(&mem_disk())
    };
    let open = || open_stores(&config, Arc::new(MetadataLog::keeping(0))).unwrap();
    let (mut log, mut machine) = open();
    let entries = [entry(1, 1, 1, 0, &[founding(), feature(1)]), entry(1, 2, 1, 2, &[feature(2)])];
    log.blocking_append(entries.clone()).await.unwrap();
    machine.apply(entries).await.unwrap();
    machine.keep().await;
    drop((log, machine));
    let (mut log, mut machine) = open();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 2)), "nothing was replayed");
    let membership = openraft::Membership::new(
        vec![[NODE.into()].into()],
        [(NODE.into(), Member::default())].into_iter().collect::<std::collections::BTreeMap<NodeId, Member>>(),
    );
    let entries = [
        Entry { log_id: log_id(1, 3), payload: EntryPayload::Membership(membership) },
        entry(1, 4, 1, 3, &[feature(0)]),
    ];
    log.blocking_append(entries.clone()).await.unwrap();
    machine.apply(entries).await.unwrap();
    machine.keep().await;
    // The log loses what the copy has: an unsynced tail, for example.
    log.truncate(log_id(1, 2)).await.unwrap();
    drop((log, machine));
    let (_, mut machine) = open();
    assert_eq!(machine.applied_state().await.unwrap().0, None, "the copy is ahead of the log");
}
