//! Several log directories in one broker: placement, one that fails, one that is missing, empty or of an older time.

use std::time::Duration;

use broker::api::{Acks, BrokerApi, LogDirDescription};
use broker::{Broker, BrokerState};
use metadata::control::{ConfigChange, ConfigOperation, IncrementalAlterConfigs};
use metadata::{ConfigResource, ControlRequest};
use model::{BrokerId, ErrorCode, Offset, TopicPartition};
use storage::Checkpoint;
use storage::disk::{Call, Crash, Disk, FaultKind, MemDisk, OpenMode, replace_file};

use crate::cluster::{
    Cluster, batch, begin_produce, checkpointed, eventually, fetch, path_of, produce, produce_ok, soon, values,
};
use crate::moves::wait_values;

/// Brokers with two directories each.
pub(crate) async fn two_each(brokers: i32, min_isr: u32) -> Cluster {
    let mut cluster = Cluster::start(0, min_isr).await;
    cluster.directories = 2;
    for id in 1..=brokers {
        cluster.start_broker(id).await;
    }
    cluster
}

fn describe(broker: &Broker) -> Vec<LogDirDescription> {
    broker.describe_log_dirs()
}

/// In which of a broker's directories a partition is.
pub(crate) fn place(broker: &Broker, id: TopicPartition) -> Option<usize> {
    let has_it = |dir: &LogDirDescription| dir.replicas.iter().any(|each| each.partition == id && !each.is_future);
    describe(broker).iter().position(has_it)
}

pub(crate) async fn placed(cluster: &Cluster, broker: i32, id: TopicPartition) -> usize {
    eventually("the replica is there", || place(cluster.broker(broker), id)).await
}

/// Two partitions that broker 1 leads, in one directory each.
pub(crate) async fn one_in_each(cluster: &Cluster, replicas: &[i32], configs: &[(&str, &str)]) -> [TopicPartition; 2] {
    let first = cluster.topic("first", replicas, configs).await;
    let second = cluster.topic("second", replicas, configs).await;
    for (at, id) in [first, second].into_iter().enumerate() {
        assert_eq!(cluster.wait_leader(id).await, 1);
        assert_eq!(placed(cluster, 1, id).await, at);
    }
    [first, second]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_spread_over_the_directories_and_are_found_there_again() {
    let mut cluster = two_each(1, 1).await;
    let ids = one_in_each(&cluster, &[1], &[]).await;
    for id in ids {
        produce_ok(cluster.broker(1), id, &["a"]).await;
    }
    let listed = cluster.disk_at(1, 1).list(&path_of(1)).unwrap();
    assert!(listed.iter().any(|entry| entry.name == "second-0"), "{listed:?}");
    cluster.shut_down(1).await;
    cluster.start_broker(1).await;
    for (at, id) in ids.into_iter().enumerate() {
        cluster.wait_leader(id).await;
        assert_eq!(placed(&cluster, 1, id).await, at);
        assert_eq!(produce_ok(cluster.broker(1), id, &["b"]).await, 1);
    }
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    for id in ids {
        cluster.wait_leader(id).await;
        assert_eq!(values(cluster.broker(1), id, 0).await, ["a", "b"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_directory_fails_under_load_and_nothing_acknowledged_is_lost() {
    // R30, R33, R78
    for call in [Call::Write, Call::SyncData] {
        let cluster = two_each(3, 2).await;
        let [first, second] = one_in_each(&cluster, &[1, 2, 3], &[("flush.messages", "1")]).await;
        let (mut acknowledged, mut on_second) = (Vec::new(), 0);
        for i in 0..400 {
            if i == 20 {
                cluster.disk_at(1, 0).fail(call, 3, FaultKind::Eio);
            }
            let Some(leader) = cluster.leader(first) else { continue };
            let value = format!("v{i}");
            let appended = begin_produce(cluster.broker(leader), first, Acks::All, batch(&[&value]));
            let produced = soon("a produce to be answered", appended).await;
            if produced.error == ErrorCode::None {
                acknowledged.push(value);
            }
            // The other directory's partition goes on at broker 1, whatever happens.
            produce_ok(cluster.broker(1), second, &["x"]).await;
            on_second += 1;
            if leader != 1 && acknowledged.len() > 60 {
                break;
            }
        }
        let leader = cluster.wait_leader(first).await;
        assert_ne!(leader, 1, "{call:?}: the directory has failed");
        let found = values(cluster.broker(leader), first, 0).await;
        assert!(
            acknowledged.iter().all(|value| found.contains(value)),
            "{call:?}: lost of {acknowledged:?}: {found:?}"
        );
        assert_eq!(cluster.wait_leader(second).await, 1);
        assert_eq!(values(cluster.broker(1), second, 0).await.len(), on_second);
        let told = describe(cluster.broker(1));
        assert_eq!(
            told.iter().map(|dir| dir.error).collect::<Vec<_>>(),
            [ErrorCode::KafkaStorageError, ErrorCode::None]
        );
        assert_eq!(cluster.isr(first), [2, 3]);
        let refused = produce(cluster.broker(1), first, Acks::All, batch(&["y"])).await;
        assert!(refused.error != ErrorCode::None);
        assert_eq!(*cluster.broker(1).state().borrow(), BrokerState::Running);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_file_descriptors_keeps_its_directory_and_all_that_it_acknowledged() {
    // R30: nothing is wrong with the disk.
    let mut cluster = Cluster::on_disk_only(1, 1, &[("log.retention.check.interval.ms", "50")]).await;
    let mut ids = Vec::new();
    for name in ["t", "u", "v"] {
        let id = cluster.topic(name, &[1], &[]).await;
        cluster.wait_leader(id).await;
        cluster.disk(1).set_descriptors(Some(0));
        let refused = produce(cluster.broker(1), id, Acks::All, batch(&["refused"])).await;
        assert_eq!(refused.error, ErrorCode::KafkaStorageError, "{name}");
        cluster.disk(1).set_descriptors(None);
        assert_eq!(produce_ok(cluster.broker(1), id, &["a"]).await, 0);
        ids.push(id);
    }
    assert!(cluster.broker(1).metrics().descriptor_shortages >= 3);
    assert_eq!(describe(cluster.broker(1))[0].error, ErrorCode::None);
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    for id in ids {
        cluster.wait_leader(id).await;
        wait_values(&cluster, 1, id, 0, &["a".to_owned()]).await;
        assert_eq!(produce_ok(cluster.broker(1), id, &["b"]).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_before_an_acknowledgement_that_finds_no_descriptor_is_made_up_for() {
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[("flush.messages", "1")]).await;
    cluster.wait_leader(id).await;
    // The first sync of a log opens its directory. Others who sync one, for a checkpoint, may meet some of these.
    (0..6).for_each(|_| cluster.disk(1).fail(Call::SyncDir, 0, FaultKind::Emfile));
    produce_ok(cluster.broker(1), id, &["a"]).await;
    assert_eq!(cluster.disk(1).faults_waiting(), 0, "it was not acknowledged before it was synced");
    assert!(cluster.broker(1).metrics().descriptor_shortages > 0);
    assert_eq!(describe(cluster.broker(1))[0].error, ErrorCode::None);
    cluster.kill_and_fence(1, Crash::LoseUnsynced).await;
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    wait_values(&cluster, 1, id, 0, &["a".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_file_descriptors_waits_and_takes_no_replica_for_lost() {
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    // Before a log directory is in use there is no start. Then come its checkpoints, a look into it, whose its partitions are,
    // and the files of each.
    for (call, which) in [(Call::Open, &[3, 8][..]), (Call::List, &[0])] {
        for skip in which.iter().copied() {
            (0..2).for_each(|_| cluster.disk(1).fail(call, skip, FaultKind::Emfile));
            cluster.start_broker(1).await;
            cluster.wait_leader(id).await;
            wait_values(&cluster, 1, id, 0, &["a".to_owned()]).await;
            cluster.kill_and_fence(1, Crash::KeepAll).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_replica_in_a_directory_that_fails_is_out_of_sync_at_once() {
    let cluster = two_each(2, 1).await;
    let [idle, other] = one_in_each(&cluster, &[1, 2], &[]).await;
    let third = cluster.topic("third", &[1, 2], &[]).await;
    assert_eq!(placed(&cluster, 1, third).await, 0);
    cluster.wait_leader(third).await;
    cluster.disk_at(1, 0).fail(Call::Write, 0, FaultKind::Eio);
    let failed = produce(cluster.broker(1), third, Acks::All, batch(&["a"])).await;
    assert_eq!(failed.error, ErrorCode::KafkaStorageError);
    eventually("nobody counts on that directory", || {
        (cluster.isr(idle) == [2] && cluster.isr(third) == [2]).then_some(())
    })
    .await;
    assert_eq!(cluster.isr(other), [1, 2]);
    // New replicas go to the other one.
    let new = cluster.topic("new", &[1, 2], &[]).await;
    assert_eq!(placed(&cluster, 1, new).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_stops_when_no_directory_is_left() {
    let cluster = two_each(2, 1).await;
    let ids = one_in_each(&cluster, &[1, 2], &[]).await;
    for (at, id) in ids.into_iter().enumerate() {
        assert_eq!(*cluster.broker(1).state().borrow(), BrokerState::Running);
        cluster.disk_at(1, at).fail(Call::Write, 0, FaultKind::Eio);
        let failed = produce(cluster.broker(1), id, Acks::Leader, batch(&["a"])).await;
        assert_eq!(failed.error, ErrorCode::KafkaStorageError);
        eventually("the other broker leads", || (cluster.leader(id) == Some(2)).then_some(())).await;
    }
    let mut state = cluster.broker(1).state();
    soon("the broker to stop", state.wait_for(|state| *state == BrokerState::Stopped)).await.unwrap();
}

/// Broker 2 has `a` in each of the two partitions, as broker 1 has, and broker 1 is down after a clean shutdown.
async fn shut_down_with_records() -> (Cluster, [TopicPartition; 2]) {
    let mut cluster = two_each(2, 1).await;
    let ids = one_in_each(&cluster, &[1, 2], &[]).await;
    for id in ids {
        produce_ok(cluster.broker(1), id, &["a"]).await;
        cluster.wait_isr(id, &[1, 2]).await;
    }
    cluster.shut_down(1).await;
    (cluster, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_opened_keeps_its_replicas_offline_until_it_is_back() {
    let (mut cluster, [first, second]) = shut_down_with_records().await;
    cluster.mounts(1).set_unreadable(&path_of(1), true);
    cluster.start_broker(1).await;
    cluster.wait_isr(first, &[1, 2]).await;
    let told = describe(cluster.broker(1));
    assert_eq!((told[1].error, told[1].path.as_str()), (ErrorCode::KafkaStorageError, "/data1"));
    let listed = cluster.disk_at(1, 0).list(&path_of(0)).unwrap();
    assert!(!listed.iter().any(|entry| entry.name == "second-0"), "it is not made anew elsewhere");
    assert_eq!(place(cluster.broker(1), second), None);
    let asked = crate::cluster::fetch(cluster.broker(1), second, 0).await;
    assert_eq!(asked.error, ErrorCode::KafkaStorageError);
    produce_ok(cluster.broker(2), second, &["b"]).await;
    assert_eq!(cluster.isr(second), [2]);
    // The disk is back, with what it had.
    cluster.shut_down(1).await;
    cluster.mounts(1).set_unreadable(&path_of(1), false);
    cluster.start_broker(1).await;
    cluster.wait_isr(second, &[1, 2]).await;
    assert_eq!(placed(&cluster, 1, second).await, 1);
    eventually("it has caught up", || (cluster.log_end(1, second) == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_disk_in_the_place_of_one_does_not_lead_and_an_old_one_catches_up() {
    // R10, R34, R35, R78: the shutdown was clean, and what it vouched for is gone
    let mut cluster = two_each(2, 2).await;
    let ids @ [first, second] = one_in_each(&cluster, &[1, 2], &[]).await;
    for id in ids {
        produce_ok(cluster.broker(1), id, &["a"]).await;
    }
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    cluster.stop(1).await;
    let old = cluster.mounts(1).replace(&path_of(1), MemDisk::new());
    cluster.start_broker(1).await;
    // What it has kept leads again: the controller has decided about both.
    assert_eq!(cluster.wait_leader(first).await, 1);
    assert_eq!(cluster.leader(second), None, "an empty replica does not lead");
    cluster.start_broker(2).await;
    for id in ids {
        let leader = cluster.wait_leader(id).await;
        cluster.wait_isr(id, &[1, 2]).await;
        assert_eq!(values(cluster.broker(leader), id, 0).await, ["a"]);
        eventually("both have it", || (cluster.log_end(1, id) == 1 && cluster.log_end(2, id) == 1).then_some(())).await;
    }
    produce_ok(cluster.broker(cluster.wait_leader(second).await), second, &["b"]).await;
    // The old disk comes back, without what came since.
    cluster.shut_down(1).await;
    cluster.mounts(1).replace(&path_of(1), old);
    cluster.start_broker(1).await;
    cluster.wait_isr(second, &[1, 2]).await;
    assert_eq!(placed(&cluster, 1, second).await, 1);
    assert_eq!(cluster.log_end(1, second), 2);
    let known = cluster.controller.image().partition(second).unwrap().directory_of(BrokerId(1));
    assert!(cluster.controller.image().broker(BrokerId(1)).unwrap().directories.contains(&known));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_found_where_it_is_and_of_two_copies_the_greater_one_counts() {
    let mut cluster = two_each(1, 1).await;
    let [first, second] = one_in_each(&cluster, &[1], &[]).await;
    produce_ok(cluster.broker(1), first, &["a"]).await;
    produce_ok(cluster.broker(1), second, &["x"]).await;
    cluster.shut_down(1).await;
    let older = cluster.disk_at(1, 0).fork();
    cluster.start_broker(1).await;
    cluster.wait_leader(first).await;
    produce_ok(cluster.broker(1), first, &["b"]).await;
    cluster.shut_down(1).await;
    // As an operator who moves files does; and the older copy is left behind.
    copy(cluster.disk_at(1, 0), "/data/first-0", cluster.disk_at(1, 1), "/data1/first-0");
    cluster.disk_at(1, 0).remove_dir_all("/data/first-0".as_ref()).unwrap();
    copy(&older, "/data/first-0", cluster.disk_at(1, 0), "/data/first-0");
    cluster.start_broker(1).await;
    cluster.wait_leader(first).await;
    assert_eq!(placed(&cluster, 1, first).await, 1);
    assert_eq!(values(cluster.broker(1), first, 0).await, ["a", "b"]);
    let gone = || !cluster.disk_at(1, 0).list(&path_of(0)).unwrap().iter().any(|entry| entry.name == "first-0");
    eventually("the other copy is gone", || gone().then_some(())).await;
    let of = |id| cluster.controller.image().partition(id).unwrap().directory_of(BrokerId(1));
    eventually("the controller knows", || (of(first) == of(second)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_synced_before_a_log_was_found_in_another_directory_is_not_taken_for_committed() {
    // R18: what the old directory says of a log that is not there any more has to be in it, and need not be committed.
    let mut cluster = two_each(2, 2).await;
    let [id, _] = one_in_each(&cluster, &[1, 2], &[("flush.messages", "1")]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    cluster.wait_isr(id, &[1]).await;
    let alone = produce(cluster.broker(1), id, Acks::Leader, batch(&["b"])).await;
    assert_eq!((alone.error, alone.base_offset), (ErrorCode::None, Offset(1)));
    cluster.shut_down(1).await;
    assert_eq!(checkpointed(&cluster, 1, Checkpoint::RecoveryPoint, "first"), Some(2));
    assert_eq!(checkpointed(&cluster, 1, Checkpoint::HighWatermark, "first"), Some(1));
    copy(cluster.disk_at(1, 0), "/data/first-0", cluster.disk_at(1, 1), "/data1/first-0");
    cluster.disk_at(1, 0).remove_dir_all("/data/first-0".as_ref()).unwrap();
    cluster.start_broker(1).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    assert_eq!(cluster.log_end(1, id), 2);
    let fetched = fetch(cluster.broker(1), id, 0).await;
    assert_eq!(fetched.high_watermark, Offset(1), "only one replica has the second record");
}

/// Copies the files of a directory, durably.
fn copy(from: &MemDisk, old: &str, to: &MemDisk, new: &str) {
    to.create_dir_all(new.as_ref()).unwrap();
    for entry in from.list(old.as_ref()).unwrap() {
        let file = from.open(&std::path::Path::new(old).join(&entry.name), OpenMode::Existing).unwrap();
        let mut content = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        storage::disk::read_exact_at(&*file, &mut content, 0).unwrap();
        replace_file(to, &std::path::Path::new(new).join(&entry.name), &content).unwrap();
    }
    to.sync_dir(std::path::Path::new(new).parent().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_directory_takes_no_new_replicas_from_the_next_heartbeat_on() {
    let cluster = two_each(1, 1).await;
    let cordon = |paths: &str| {
        let change = ConfigChange {
            name: "cordoned.log.dirs".to_owned(),
            operation: ConfigOperation::Set(Some(paths.to_owned())),
        };
        let resources = vec![(ConfigResource::Broker(BrokerId(1)), vec![change])];
        cluster
            .controller
            .ask(&ControlRequest::IncrementalAlterConfigs(IncrementalAlterConfigs { resources, validate_only: false }));
    };
    let cordoned = || cluster.controller.image().broker(BrokerId(1)).unwrap().cordoned_directories.len();
    cordon("/data");
    eventually("the controller knows", || (cordoned() == 1).then_some(())).await;
    for name in ["a", "b", "c"] {
        let id = cluster.topic(name, &[1], &[]).await;
        assert_eq!(placed(&cluster, 1, id).await, 1);
    }
    assert_eq!(describe(cluster.broker(1)).iter().map(|dir| dir.is_cordoned).collect::<Vec<_>>(), [true, false]);
    cordon("*");
    eventually("the controller knows", || (cordoned() == 2).then_some(())).await;
    cordon("");
    eventually("the controller knows", || (cordoned() == 0).then_some(())).await;
    let id = cluster.topic("d", &[1], &[]).await;
    assert_eq!(placed(&cluster, 1, id).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_replica_with_records_to_be_synced_does_not_wake_up_for_them_any_more() {
    let cluster = two_each(1, 1).await;
    let [first, _] = one_in_each(&cluster, &[1], &[("flush.ms", "2")]).await;
    (0..100).for_each(|_| cluster.disk_at(1, 0).fail(Call::SyncData, 0, FaultKind::Eio));
    produce(cluster.broker(1), first, Acks::Leader, batch(&["a"])).await;
    let metrics = || cluster.broker(1).metrics();
    eventually("the directory fails", || metrics().directories[0].failure.as_ref().map(drop)).await;
    let before = metrics().timeouts;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let woken = metrics().timeouts - before;
    assert!(woken < 40, "{woken} times in 0.4 s");
}
