//! Moves of replicas between the log directories of a broker, while they are written to.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use broker::Broker;
use broker::api::{Acks, BrokerApi, Isolation, ListOffsetsPartition, OffsetSpec, ReplicaLogDir, ReplicaOnDisk};
use metadata::control::{ConfigChange, ConfigOperation, IncrementalAlterConfigs};
use metadata::{ConfigResource, ControlRequest};
use model::{BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicPartition};
use storage::disk::{Call, Crash, Disk, DiskFile, FaultKind, OpenMode, write_all_at};

use crate::cluster::{Cluster, batch, eventually, fetch, path_of, produce, produce_ok, soon, values};
use crate::directories::{one_in_each, place, placed, two_each};

const RATE: &str = "replica.alter.log.dirs.io.max.bytes.per.second";

fn alter_to(broker: &Broker, topic: &str, path: &str) -> ErrorCode {
    let wanted = ReplicaLogDir { path: path.into(), topic: topic.into(), partition: PartitionIndex(0) };
    broker.alter_replica_log_dirs(&[wanted])[0]
}

fn alter(cluster: &Cluster, broker: i32, topic: &str, to: usize) {
    let path = path_of(to).display().to_string();
    assert_eq!(alter_to(cluster.broker(broker), topic, &path), ErrorCode::None);
}

/// The copy that a move makes, and in which directory.
fn future(broker: &Broker, id: TopicPartition) -> Option<(usize, ReplicaOnDisk)> {
    let dirs = broker.describe_log_dirs();
    dirs.into_iter().enumerate().find_map(|(at, dir)| {
        dir.replicas.into_iter().find(|replica| replica.partition == id && replica.is_future).map(|found| (at, found))
    })
}

async fn moved(cluster: &Cluster, broker: i32, id: TopicPartition, to: usize) {
    let is_there = || {
        let here = cluster.broker(broker);
        (place(here, id) == Some(to) && future(here, id).is_none()).then_some(())
    };
    eventually("the replica is in the other directory", is_there).await;
    let dirs = || cluster.controller.image().partition(id).unwrap().directory_of(BrokerId(broker));
    let wanted = cluster.controller.image().broker(BrokerId(broker)).unwrap().directories[to];
    eventually("the controller knows", || (dirs() == wanted).then_some(())).await;
}

/// A new leader shows everything once it knows again how far it is committed.
pub(crate) async fn wait_values(cluster: &Cluster, broker: i32, id: TopicPartition, from: i64, want: &[String]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = values(cluster.broker(broker), id, from).await;
        if found == want {
            return;
        }
        assert!(want.starts_with(&found), "{found:?} is not what was written");
        assert!(tokio::time::Instant::now() < deadline, "{} of {} records", found.len(), want.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn set(cluster: &Cluster, name: &str, value: Option<&str>) {
    let operation = value.map_or(ConfigOperation::Delete, |value| ConfigOperation::Set(Some(value.to_owned())));
    let changes = vec![ConfigChange { name: name.to_owned(), operation }];
    cluster.controller.ask(&ControlRequest::IncrementalAlterConfigs(IncrementalAlterConfigs {
        resources: vec![(ConfigResource::Broker(BrokerId(1)), changes)],
        validate_only: false,
    }));
}

fn names(cluster: &Cluster, broker: i32, at: usize) -> Vec<String> {
    cluster.disk_at(broker, at).list(&path_of(at)).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_and_followers_move_under_load_and_nothing_is_lost() {
    for configs in [&[][..], &[("flush.messages", "1")][..]] {
        let mut cluster = two_each(3, 2).await;
        let [id, _] = one_in_each(&cluster, &[1, 2, 3], configs).await;
        let mut sent = Vec::new();
        for i in 0..200 {
            if i == 20 {
                for broker in 1..=3 {
                    let to = 1 - placed(&cluster, broker, id).await;
                    alter(&cluster, broker, "first", to);
                }
            }
            let value = format!("v{i}");
            produce_ok(cluster.broker(1), id, &[&value]).await;
            sent.push(value);
        }
        for broker in 1..=3 {
            moved(&cluster, broker, id, 1).await;
            eventually("its old files are gone", || {
                (!names(&cluster, broker, 0).iter().any(|name| name.starts_with("first"))).then_some(())
            })
            .await;
        }
        assert_eq!(cluster.isr(id), [1, 2, 3]);
        produce_ok(cluster.broker(1), id, &["last"]).await;
        sent.push("last".to_owned());
        assert_eq!(values(cluster.broker(1), id, 0).await, sent);
        cluster.kill_and_fence(1, Crash::KeepAll).await;
        let leader = cluster.wait_leader(id).await;
        wait_values(&cluster, leader, id, 0, &sent).await;
        cluster.start_broker(1).await;
        cluster.wait_isr(id, &[1, 2, 3]).await;
        assert_eq!(placed(&cluster, 1, id).await, 1);
        assert_eq!(cluster.log_end(1, id), 201);
    }
}

/// Broker 1 alone, with a partition in its first directory that takes long to move.
async fn slow_move() -> (Cluster, TopicPartition) {
    let cluster = two_each(1, 1).await;
    let [id, _] = one_in_each(&cluster, &[1], &[]).await;
    let value = "x".repeat(20_000);
    for _ in 0..100 {
        produce_ok(cluster.broker(1), id, &[&value]).await;
    }
    set(&cluster, RATE, Some("1000"));
    eventually("the rate is known", || {
        cluster.broker(1).image().config_of(&ConfigResource::Broker(BrokerId(1)), RATE).map(|_| ())
    })
    .await;
    alter(&cluster, 1, "first", 1);
    let begun = || future(cluster.broker(1), id).filter(|(_, future)| future.size > 0);
    let (at, copy) = eventually("the copy is begun", begun).await;
    assert_eq!((at, place(cluster.broker(1), id)), (1, Some(0)));
    assert!(copy.offset_lag > 0 && copy.offset_lag < 100, "{copy:?}");
    (cluster, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_held_back_and_can_be_given_up() {
    let (cluster, id) = slow_move().await;
    assert!(names(&cluster, 1, 1).iter().any(|name| name.starts_with("first-0.") && name.ends_with("-future")));
    produce_ok(cluster.broker(1), id, &["goes on"]).await;
    assert!(future(cluster.broker(1), id).is_some(), "2 MB take 2,000 seconds");
    alter(&cluster, 1, "first", 0);
    assert_eq!((future(cluster.broker(1), id), place(cluster.broker(1), id)), (None, Some(0)));
    set(&cluster, RATE, None);
    // And wanted again, at once.
    alter(&cluster, 1, "first", 1);
    alter(&cluster, 1, "first", 0);
    alter(&cluster, 1, "first", 1);
    assert!(produce_ok(cluster.broker(1), id, &["still"]).await > 0);
    alter(&cluster, 1, "first", 0);
    assert_eq!(place(cluster.broker(1), id).map(|at| at < 2), Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_after_a_crash_and_ends_with_its_topic() {
    let (mut cluster, id) = slow_move().await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    let begun = || future(cluster.broker(1), id).filter(|(_, future)| future.size > 0);
    let (at, _) = eventually("the copy is gone on with", begun).await;
    assert_eq!(at, 1);
    set(&cluster, RATE, None);
    cluster.shut_down(1).await;
    cluster.start_broker(1).await;
    moved(&cluster, 1, id, 1).await;
    assert_eq!(values(cluster.broker(1), id, 0).await.len(), 100);
    set(&cluster, RATE, Some("1000"));
    alter(&cluster, 1, "first", 0);
    let deleted = metadata::control::DeleteTopics { topics: vec![metadata::control::TopicRef::Id(id.topic_id)] };
    cluster.controller.ask(&ControlRequest::DeleteTopics(deleted));
    let left = || [0, 1].iter().any(|at| names(&cluster, 1, *at).iter().any(|name| name.starts_with("first")));
    set(&cluster, RATE, None);
    eventually("nothing is left of it", || (!left()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_as_synced_survives_a_power_cut_wherever_a_move_is() {
    let mut cluster = two_each(1, 1).await;
    let [id, _] = one_in_each(&cluster, &[1], &[("flush.messages", "1")]).await;
    let mut sent = Vec::new();
    for (round, to) in [1, 0, 1, 0, 1].into_iter().enumerate() {
        alter(&cluster, 1, "first", to);
        // Some are cut off in the middle of the move, some after it.
        for i in 0..4 * round {
            let value = format!("{round}.{i}");
            produce_ok(cluster.broker(1), id, &[&value]).await;
            sent.push(value);
        }
        if round == 3 {
            moved(&cluster, 1, id, to).await;
        }
        cluster.kill_and_fence(1, Crash::LoseUnsynced).await;
        cluster.start_broker(1).await;
        cluster.wait_leader(id).await;
        wait_values(&cluster, 1, id, 0, &sent).await;
        produce_ok(cluster.broker(1), id, &["after"]).await;
        sent.push("after".to_owned());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_comes_back_once_the_checkpoints_have_forgotten_it_and_keeps_its_log_start() {
    let mut cluster = two_each(1, 1).await;
    let [id, _] = one_in_each(&cluster, &[1], &[]).await;
    for value in ["a", "b", "c"] {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    let deleted = cluster.broker(1).delete_records(vec![(id, Offset(2))], 5_000).await;
    assert_eq!(deleted[0].error, ErrorCode::None);
    for to in [1, 0, 1] {
        alter(&cluster, 1, "first", to);
        moved(&cluster, 1, id, to).await;
        assert_eq!(values(cluster.broker(1), id, 2).await, ["c"]);
    }
    let line = |at: usize| {
        let disk = cluster.disk_at(1, at);
        let path = path_of(at).join("recovery-point-offset-checkpoint");
        let text = storage::disk::read_small_file(disk, &path, 10_000).unwrap().unwrap_or_default();
        String::from_utf8(text).unwrap().contains("first 0 ")
    };
    eventually("only its own directory speaks of it", || (line(1) && !line(0)).then_some(())).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    wait_values(&cluster, 1, id, 2, &["c".to_owned()]).await;
    let asked =
        ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec: OffsetSpec::Earliest };
    assert_eq!(cluster.broker(1).list_offsets(Isolation::ReadUncommitted, vec![asked]).await[0].offset, Offset(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_fails_leaves_the_replica_where_it_is() {
    for call in [Call::Write, Call::SyncData, Call::Rename] {
        let cluster = two_each(1, 1).await;
        let [id, _] = one_in_each(&cluster, &[1], &[]).await;
        produce_ok(cluster.broker(1), id, &["a"]).await;
        cluster.disk_at(1, 1).fail(call, 0, FaultKind::Eio);
        alter(&cluster, 1, "first", 1);
        eventually("the directory has failed", || {
            (cluster.broker(1).describe_log_dirs()[1].error == ErrorCode::KafkaStorageError).then_some(())
        })
        .await;
        eventually("the move is over", || future(cluster.broker(1), id).is_none().then_some(())).await;
        assert_eq!(place(cluster.broker(1), id), Some(0), "{call:?}");
        assert_eq!(produce_ok(cluster.broker(1), id, &["b"]).await, 1);
        assert_eq!(values(cluster.broker(1), id, 0).await, ["a", "b"]);
    }
}

/// Broker 1 alone, with two directories and without a tail cache, and a partition with three batches in the first one; and its
/// file.
async fn read_from_disk() -> (Cluster, TopicPartition, Arc<dyn DiskFile>) {
    let mut cluster = Cluster::start(0, 1).await;
    (cluster.directories, cluster.tail_bytes) = (2, 0);
    cluster.start_broker(1).await;
    let [id, _] = one_in_each(&cluster, &[1], &[]).await;
    for value in ["a", "b", "c"] {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    let file = path_of(0).join("first-0/00000000000000000000.log");
    let file = cluster.disk_at(1, 0).open(&file, OpenMode::Existing).unwrap();
    (cluster, id, file)
}

/// Changes the last byte of the first batch.
fn rot(file: &dyn DiskFile) {
    let position = file.size().unwrap() / 3 - 1;
    write_all_at(file, &mut [IoSlice::new(&[0xaa])], position).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_holds_of_a_directory_that_was_left_is_no_error_of_the_log_of_now() {
    for rots in [true, false] {
        let (cluster, id, file) = read_from_disk().await;
        let gate = cluster.disk_at(1, 0).hold_reads("first-0/");
        let broker = Arc::clone(cluster.broker(1));
        let reading = tokio::spawn(async move { fetch(&broker, id, 0).await });
        eventually("the read hangs", || (gate.waiting() == 1).then_some(())).await;
        gate.let_others_pass();
        alter(&cluster, 1, "first", 1);
        moved(&cluster, 1, id, 1).await;
        if rots {
            rot(&*file);
        } else {
            cluster.disk_at(1, 0).fail(Call::Read, 0, FaultKind::Eio);
        }
        drop(gate);
        assert_eq!(soon("the read", reading).await.unwrap().error, ErrorCode::None, "{rots}");
        let errors: Vec<_> = cluster.broker(1).describe_log_dirs().iter().map(|dir| dir.error).collect();
        let left = if rots { ErrorCode::None } else { ErrorCode::KafkaStorageError };
        assert_eq!(errors, [left, ErrorCode::None]);
        assert_eq!(produce_ok(cluster.broker(1), id, &["d"]).await, 3);
        assert_eq!(values(cluster.broker(1), id, 0).await, ["a", "b", "c", "d"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_cannot_be_leaves_nothing_behind() {
    let (cluster, id, file) = read_from_disk().await;
    // The last batch: what is before it can be copied.
    write_all_at(&*file, &mut [IoSlice::new(&[0xaa])], file.size().unwrap() - 1).unwrap();
    alter(&cluster, 1, "first", 1);
    eventually("the move is over", || future(cluster.broker(1), id).is_none().then_some(())).await;
    assert_eq!(place(cluster.broker(1), id), Some(0));
    let left = || names(&cluster, 1, 1).into_iter().find(|name| name.starts_with("first"));
    eventually("nothing is left of the copy", || left().is_none().then_some(())).await;
    assert_eq!(produce_ok(cluster.broker(1), id, &["d"]).await, 3, "it stays where it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_process_had_copied_is_freed_before_it_is_copied_anew() {
    let (mut cluster, id) = slow_move().await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    let begun = || future(cluster.broker(1), id).filter(|(_, future)| future.size > 0);
    eventually("the copy is begun anew", begun).await;
    let copies: Vec<_> = names(&cluster, 1, 1).into_iter().filter(|name| name.starts_with("first")).collect();
    assert!(copies.len() == 1 && copies[0].ends_with("-future"), "{copies:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_is_answered_as_kafka_does_and_what_is_not_here_yet_comes_where_it_is_wanted() {
    let cluster = two_each(1, 1).await;
    one_in_each(&cluster, &[1], &[]).await;
    let broker = cluster.broker(1);
    assert_eq!(alter_to(broker, "first", "/nowhere"), ErrorCode::LogDirNotFound);
    assert_eq!(alter_to(broker, "none", "/data1"), ErrorCode::UnknownTopicOrPartition);
    // The first one has as many.
    let id = cluster.topic("none", &[1], &[]).await;
    assert_eq!(placed(&cluster, 1, id).await, 1);
    moved(&cluster, 1, id, 1).await;
    set(&cluster, "cordoned.log.dirs", Some("/data1"));
    eventually("it is cordoned", || broker.describe_log_dirs()[1].is_cordoned.then_some(())).await;
    assert_eq!(alter_to(broker, "first", "/data1"), ErrorCode::InvalidReplicaAssignment);
    set(&cluster, "cordoned.log.dirs", None);
    cluster.disk_at(1, 1).fail(Call::Write, 0, FaultKind::Eio);
    let failed = soon("a produce", produce(broker, id, Acks::Leader, batch(&["a"]))).await;
    assert_eq!(failed.error, ErrorCode::KafkaStorageError);
    assert_eq!(alter_to(broker, "first", "/data1"), ErrorCode::KafkaStorageError);
    assert_eq!(alter_to(broker, "none", "/data"), ErrorCode::KafkaStorageError, "the replica is offline");
}
