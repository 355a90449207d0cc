//! Group commit over a disk in memory that loses what was not synced.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use model::{ClientBatches, Codec, LeaderEpoch, Offset, Record, TopicId, Uuid, encode_batch, encode_records};
use tokio::task::JoinSet;

use super::*;
use crate::disk::{Call, Crash, Disk, FaultKind, MemDisk};
use crate::log::{Log, LogError, OpenHints};
use crate::reserve::Ballast;
use crate::{LogConfig, LogEnv};

const DIR: &str = "/data";
const MANY: usize = 20;

struct Logs {
    disk: MemDisk,
    env: LogEnv,
    logs: Vec<Log>,
}

impl Logs {
    fn new(count: usize) -> Logs {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        disk.crash(Crash::KeepAll);
        Self::on(disk, count)
    }

    /// As a process finds them on this disk.
    fn on(disk: MemDisk, count: usize) -> Logs {
        let bare: Arc<dyn Disk> = Arc::new(disk.clone());
        let ballast = Ballast::new(Arc::clone(&bare), Path::new(DIR));
        let env = LogEnv::new(bare, 16, 0).for_directory(ballast);
        Self::of(disk, env, count)
    }

    fn of(disk: MemDisk, env: LogEnv, count: usize) -> Logs {
        let config = Arc::new(LogConfig { flush_messages: 1, ..LogConfig::default() });
        let open = |at: usize| {
            let dir = PathBuf::from(format!("{DIR}/topic-{at}"));
            Log::open(&env, &dir, Arc::clone(&config), hints()).unwrap().0
        };
        let logs = (0..count).map(open).collect();
        Logs { disk, env, logs }
    }

    /// One record more in each.
    fn append(&mut self) {
        for log in &mut self.logs {
            let records = encode_records(&[Record { value: Some("v".into()), ..Record::default() }]);
            let bytes = encode_batch(&records, Codec::None, 1, 1, 1, None);
            let batch = ClientBatches::check(bytes).unwrap().stamp(log.log_end(), LeaderEpoch(0));
            log.append(&[batch]).unwrap();
        }
    }

    fn tickets(&mut self) -> Vec<SyncTicket> {
        self.logs.iter_mut().map(|log| log.start_sync().unwrap().unwrap()).collect()
    }

    /// Syncs all logs; the only thread for syncs is busy until all stand in the line.
    fn sync_at_once(&mut self) -> Vec<Result<Offset, LogError>> {
        let (tickets, group) = (self.tickets(), Arc::clone(&self.env.group));
        let pool = DiskPool::of(1, 1).unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let done = runtime.block_on(async {
            let held = pool.clone();
            let held = tokio::spawn(async move { held.run_sync(move || gate.recv()).await });
            tokio::task::yield_now().await;
            let (mut tasks, count) = (JoinSet::new(), tickets.len());
            for (at, ticket) in tickets.into_iter().enumerate() {
                let pool = pool.clone();
                tasks.spawn(async move { (at, ticket.run_in_turn(&pool).await) });
            }
            while group.line().waiting.len() < count {
                tokio::task::yield_now().await;
            }
            open.send(()).unwrap();
            held.await.unwrap().unwrap();
            let mut done = tasks.join_all().await;
            done.sort_by_key(|(at, _)| *at);
            done
        });
        self.logs.iter_mut().zip(done).map(|(log, (_, done))| log.finish_sync(done)).collect()
    }

    /// The same; it must succeed, up to each log's end.
    fn sync(&mut self) {
        let done = self.sync_at_once();
        for (log, synced) in self.logs.iter().zip(done) {
            assert_eq!(synced.unwrap(), log.log_end());
        }
    }

    /// How many of the logs would have lost something that is said to be synced, if the power failed now.
    fn lost(&self) -> usize {
        let disk = self.disk.fork();
        disk.crash(Crash::LoseUnsynced);
        let after = Logs::on(disk, self.logs.len());
        self.logs.iter().zip(&after.logs).filter(|(log, after)| after.log_end() < log.synced_end()).count()
    }
}

fn hints() -> OpenHints {
    OpenHints {
        topic_id: TopicId(Uuid::from_u128(7)),
        recovery_point: Offset::ZERO,
        clean: false,
        log_start: Offset::ZERO,
        high_watermark: Offset::ZERO,
    }
}

#[test]
fn many_logs_are_synced_by_one_sync_of_all_and_nothing_acknowledged_is_lost() {
    let mut logs = Logs::new(MANY);
    for _ in 0..3 {
        logs.append();
        let before = logs.disk.counters();
        logs.sync();
        let after = logs.disk.counters();
        assert_eq!(after.all_syncs - before.all_syncs, 1);
        assert_eq!(after.data_syncs - before.data_syncs, 1, "the witness");
        assert_eq!(after.dir_syncs, before.dir_syncs, "names too are durable by it");
        assert_eq!(logs.lost(), 0);
    }
}

#[test]
fn a_log_that_is_acknowledged_without_its_sync_is_noticed() {
    // What the other tests rest on.
    let mut logs = Logs::new(MANY);
    logs.append();
    logs.sync();
    logs.append();
    logs.disk.fail(Call::SyncAll, 0, FaultKind::Lie);
    logs.sync();
    assert_eq!(logs.lost(), MANY - 1, "all but the witness");
    let mut few = Logs::new(3);
    few.append();
    // The second one is of the directory of the first log.
    few.disk.fail(Call::SyncDir, 1, FaultKind::Lie);
    few.sync();
    assert_eq!(few.lost(), 1);
}

#[test]
fn few_logs_are_synced_each_by_itself() {
    let mut logs = Logs::new(SHARED_MIN - 1);
    for _ in 0..2 {
        logs.append();
        let before = logs.disk.counters();
        logs.sync();
        let after = logs.disk.counters();
        assert_eq!(after.all_syncs, 0);
        assert!(after.data_syncs - before.data_syncs >= SHARED_MIN as u64 - 1);
        assert_eq!(logs.lost(), 0);
    }
}

#[test]
fn a_shared_sync_that_fails_takes_the_directory_offline_for_all_and_is_never_tried_again() {
    // R30: also where only the witness tells of it.
    for (call, data_syncs) in [(Call::SyncAll, 0), (Call::SyncData, 1)] {
        let mut logs = Logs::new(MANY);
        logs.append();
        logs.sync();
        logs.append();
        let before = logs.disk.counters();
        logs.disk.fail(call, 0, FaultKind::Eio);
        for synced in logs.sync_at_once() {
            assert!(matches!(synced, Err(LogError::DirectoryOffline(_))), "{synced:?}");
        }
        assert!(logs.env.health().failure().is_some());
        for log in &mut logs.logs {
            assert_eq!(log.synced_end(), Offset(1));
            assert!(matches!(log.start_sync(), Err(LogError::DirectoryOffline(_))));
        }
        let after = logs.disk.counters();
        assert_eq!((after.all_syncs - before.all_syncs, after.data_syncs - before.data_syncs), (1, data_syncs));
    }
}

#[test]
fn what_an_earlier_process_wrote_is_synced_by_its_own_sync_once() {
    // An error of write-back that came before this process opened the directory is told by the file alone.
    let mut logs = Logs::new(MANY);
    logs.append();
    let mut logs = Logs::on(logs.disk, MANY);
    for data_syncs in [1 + MANY as u64, 1] {
        logs.append();
        let before = logs.disk.counters().data_syncs;
        logs.sync();
        assert_eq!(logs.disk.counters().data_syncs - before, data_syncs);
        assert_eq!(logs.lost(), 0);
    }
    assert_eq!(logs.disk.counters().all_syncs, 2);
}

/// A sync of all that says when it is called, and waits until it may go on.
#[derive(Debug)]
struct Held {
    disk: MemDisk,
    worth: bool,
    asked: AtomicUsize,
    entered: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl SharedSync for Held {
    fn is_worth(&self, _files: usize, _each: Duration) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.worth
    }

    fn sync_all(&self) -> io::Result<()> {
        self.entered.send(()).unwrap();
        self.go.lock().unwrap().recv().unwrap();
        self.disk.sync_all()
    }
}

/// Logs with a sync of all that is held; what it says, and what lets it go on.
fn held(count: usize, worth: bool) -> (Logs, Arc<Held>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.crash(Crash::KeepAll);
    let ((entered, enters), (lets_go, go)) = (mpsc::channel(), mpsc::channel());
    let shared = Arc::new(Held { disk: disk.clone(), worth, asked: AtomicUsize::new(0), entered, go: Mutex::new(go) });
    let group = Arc::new(GroupSync::new(Some(Arc::clone(&shared) as Arc<dyn SharedSync>)));
    let env = LogEnv { group, ..LogEnv::new(Arc::new(disk.clone()), 16, 0) };
    (Logs::of(disk, env, count), shared, enters, lets_go)
}

#[test]
fn while_a_shared_sync_runs_few_go_alone_and_many_wait_for_the_next_one() {
    let (mut logs, _, enters, lets_go) = held(2 * MANY + 3, true);
    logs.append();
    let (pool, group) = (DiskPool::inline(), Arc::clone(&logs.env.group));
    let mut tickets = logs.tickets().into_iter();
    let first: Vec<_> = tickets.by_ref().take(MANY).map(|ticket| group.join(ticket)).collect();
    let (number, job) = (first[0].0, (Arc::clone(&group), pool.clone()));
    let runs = thread::spawn(move || job.0.serve(number, &job.1));
    enters.recv().unwrap();
    for ticket in tickets.by_ref().take(3) {
        let (number, mut answered) = group.join(ticket);
        group.serve(number, &pool);
        assert!(answered.try_recv().is_ok(), "as its own sync completes");
    }
    let second: Vec<_> = tickets.map(|ticket| group.join(ticket)).collect();
    for (number, _) in &second {
        group.serve(*number, &pool);
    }
    assert_eq!(group.line().waiting.len(), MANY, "they wait");
    lets_go.send(()).unwrap();
    lets_go.send(()).unwrap();
    runs.join().unwrap();
    enters.recv().unwrap();
    for (_, mut answered) in first.into_iter().chain(second) {
        assert!(answered.try_recv().is_ok());
    }
    assert_eq!(logs.disk.counters().all_syncs, 2);
    assert!(enters.try_recv().is_err());
}

#[test]
fn who_was_put_off_is_served_also_if_few_are_left() {
    let (mut logs, _, enters, lets_go) = held(2 * MANY, true);
    logs.append();
    let (pool, group) = (DiskPool::inline(), Arc::clone(&logs.env.group));
    let mut tickets = logs.tickets().into_iter();
    let first: Vec<_> = tickets.by_ref().take(MANY).map(|ticket| group.join(ticket)).collect();
    let (number, job) = (first[0].0, (Arc::clone(&group), pool.clone()));
    let runs = thread::spawn(move || job.0.serve(number, &job.1));
    enters.recv().unwrap();
    let mut second: Vec<_> = tickets.map(|ticket| group.join(ticket)).collect();
    group.serve(second[0].0, &pool);
    // All but two are gone, as if others had taken them.
    let two = group.line().waiting.split_off(MANY - 2);
    let gone = std::mem::replace(&mut group.line().waiting, two);
    drop(gone);
    lets_go.send(()).unwrap();
    runs.join().unwrap();
    for (_, answered) in &mut second[MANY - 2..] {
        assert!(answered.try_recv().is_ok(), "each alone");
    }
    assert_eq!(logs.disk.counters().all_syncs, 1);
}

#[test]
fn few_at_once_go_alone_and_leave_those_who_come_meanwhile_to_the_first_that_is_done() {
    let (mut logs, _, enters, _lets_go) = held(ALONE_MAX + SHARED_MIN - 1, true);
    logs.append();
    let (pool, group) = (DiskPool::inline(), Arc::clone(&logs.env.group));
    let (mut running, mut all) = (Vec::new(), Vec::new());
    for (at, ticket) in logs.tickets().into_iter().enumerate() {
        let (number, answered) = group.join(ticket);
        if at < ALONE_MAX {
            let Turn::One(waiting) = group.take(number) else { panic!("nobody else is there") };
            running.push(waiting);
        } else {
            group.serve(number, &pool);
            assert_eq!(group.line().waiting.len(), at + 1 - ALONE_MAX, "it waits");
        }
        all.push(answered);
    }
    group.sync_alone(running.remove(0));
    group.serve(0, &pool);
    assert!(all[0].try_recv().is_ok());
    for answered in &mut all[ALONE_MAX..] {
        assert!(answered.try_recv().is_ok());
    }
    for waiting in running {
        group.sync_alone(waiting);
    }
    assert_eq!(group.line().alone, 0);
    assert!(!group.line().left);
    assert!(enters.try_recv().is_err(), "no sync of all");
}

#[test]
fn where_a_shared_sync_is_not_worth_it_all_go_alone_and_it_is_asked_once() {
    let (mut logs, shared, enters, _lets_go) = held(MANY, false);
    logs.append();
    logs.sync();
    assert!(enters.try_recv().is_err());
    assert_eq!(shared.asked.load(Ordering::Relaxed), 1);
    assert_eq!(logs.lost(), 0);
}
