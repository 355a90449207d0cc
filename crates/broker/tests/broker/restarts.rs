//! Shutdowns, kills, and catching up.

use std::time::Duration;

use broker::api::{Acks, BrokerApi};
use metadata::ControlRequest;
use metadata::control::{
    AlterConfigs, ConfigChange, ConfigOperation, ControlResponse, CreateTopic, CreateTopics, DeleteTopics,
    IncrementalAlterConfigs, TopicRef,
};
use metadata::records::ConfigResource;
use model::{BrokerId, ErrorCode, PartitionIndex, TopicPartition};
use storage::disk::Crash;
use storage::{Checkpoint, DataDir, LogEnv};

use crate::cluster::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controlled_shutdown_hands_over_and_is_proven_clean_to_the_next_start() {
    let mut cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a", "b"]).await;
    let epoch = cluster.controller.image().broker_epoch(BrokerId(1));
    cluster.shut_down(1).await;
    let next = cluster.wait_leader(id).await;
    assert_ne!(next, 1);
    assert_eq!(cluster.isr(id), [2, 3]);
    // On a copy, what the next start will find.
    let copy = LogEnv::new(std::sync::Arc::new(cluster.disk(1).fork()), 16, 0);
    let data = DataDir::open(&copy, "/data".as_ref()).unwrap();
    assert_eq!(data.take_clean_shutdown().unwrap(), Some(epoch));
    produce_ok(cluster.broker(next), id, &["c"]).await;
    cluster.start_broker(1).await;
    cluster.wait_isr(id, &[1, 2, 3]).await;
    assert_eq!(cluster.log_end(1, id), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_the_controller_waits_until_this_broker_shows_what_it_says() {
    let cluster = Cluster::start(1, 1).await;
    cluster.topic("t", &[1], &[]).await;
    let configs = vec![("retention.ms".to_owned(), Some("77777".to_owned()))];
    let alter =
        AlterConfigs { resources: vec![(ConfigResource::Topic("t".to_owned()), configs)], validate_only: false };
    let delete = DeleteTopics { topics: vec![TopicRef::Name("t".to_owned())] };
    let broker = std::sync::Arc::clone(cluster.broker(1));
    for request in [ControlRequest::AlterConfigs(alter), ControlRequest::DeleteTopics(delete)] {
        cluster.controller.hold_metadata(true);
        let asked = std::sync::Arc::clone(&broker);
        let mut answer = tokio::spawn(async move { asked.control(request, 25_000).await.unwrap() });
        let early = tokio::time::timeout(Duration::from_millis(100), &mut answer).await;
        assert!(early.is_err(), "answered before the image has it: {early:?}");
        cluster.controller.hold_metadata(false);
        soon("the answer", answer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_comes_back_after_a_clean_shutdown_and_after_a_kill() {
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.shut_down(1).await;
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a"]);
    produce_ok(cluster.broker(1), id, &["b"]).await;
    cluster.kill(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    assert_eq!(produce_ok(cluster.broker(1), id, &["c"]).await, 2);
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_controller_stops_after_two_seconds_and_proves_that_it_has_flushed() {
    // R77: clean means flushed, not handed over
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let epoch = cluster.controller.image().broker_epoch(BrokerId(1));
    cluster.controller.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
    let began = std::time::Instant::now();
    cluster.shut_down(1).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "{took:?}");
    let copy = LogEnv::new(std::sync::Arc::new(cluster.disk(1).fork()), 16, 0);
    let data = DataDir::open(&copy, "/data".as_ref()).unwrap();
    assert_eq!(data.take_clean_shutdown().unwrap(), Some(epoch));
    cluster.controller.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_in_a_shutdown_leaves_no_mark() {
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.disk(1).fail(storage::disk::Call::SyncData, 0, storage::disk::FaultKind::Eio);
    let _ = produce(cluster.broker(1), id, Acks::Leader, batch(&["b"])).await;
    cluster.shut_down(1).await;
    let copy = LogEnv::new(std::sync::Arc::new(cluster.disk(1).fork()), 16, 0);
    let data = DataDir::open(&copy, "/data".as_ref()).unwrap();
    assert_eq!(data.take_clean_shutdown().unwrap(), None, "a sync failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_follower_catches_up_from_memory_and_from_disk() {
    for tail_bytes in [16 << 20, 0] {
        let mut cluster = Cluster::start(1, 1).await;
        cluster.tail_bytes = tail_bytes;
        for id in [2, 3] {
            cluster.start_broker(id).await;
        }
        let id = cluster.topic("t", &[2, 3], &[]).await;
        assert_eq!(cluster.wait_leader(id).await, 2);
        produce_ok(cluster.broker(2), id, &["first"]).await;
        cluster.kill_and_fence(3, Crash::KeepAll).await;
        let large = "y".repeat(300_000);
        for _ in 0..12 {
            produce_ok(cluster.broker(2), id, &[&large, "small"]).await;
        }
        cluster.start_broker(3).await;
        cluster.wait_isr(id, &[2, 3]).await;
        assert_eq!(cluster.log_end(3, id), 25);
        produce_ok(cluster.broker(2), id, &["last"]).await;
        cluster.kill_and_fence(2, Crash::KeepAll).await;
        assert_eq!(cluster.wait_leader(id).await, 3);
        let read = values(cluster.broker(3), id, 0).await;
        assert_eq!((read.len(), read[25].as_str()), (26, "last"), "tail cache of {tail_bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synced_before_acked_survives_the_power_cut_of_all_replicas() {
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[("flush.messages", "1")]).await;
    cluster.wait_leader(id).await;
    // Together, so that syncs run while others are asked for.
    let many: Vec<_> =
        (0..50).map(|n| begin_produce(cluster.broker(1), id, Acks::All, batch(&[&format!("v{n}")]))).collect();
    for produced in many {
        assert_eq!(soon("an acknowledgement", produced).await.error, ErrorCode::None);
    }
    cluster.kill(1, Crash::LoseUnsynced).await;
    cluster.kill(2, Crash::LoseUnsynced).await;
    cluster.start_broker(1).await;
    cluster.start_broker(2).await;
    let leader = cluster.wait_leader(id).await;
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(produce_ok(cluster.broker(leader), id, &["v50"]).await, 50);
    let expected: Vec<String> = (0..=50).map(|n| format!("v{n}")).collect();
    assert_eq!(values(cluster.broker(leader), id, 0).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_counts_what_is_durable_has_its_followers_sync_whatever_their_own_settings_say() {
    // R59: the default stands with broker 1 only
    const NAME: &str = "log.flush.interval.messages";
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    produce_ok(cluster.broker(1), id, &["a"]).await;
    for value in [Some("1"), None, Some("1")] {
        let one = ConfigResource::Broker(BrokerId(1));
        set(&cluster, one.clone(), NAME, value);
        let image = |broker: i32| cluster.broker(broker).image();
        let known =
            || (image(1).config_of(&one, NAME) == value && image(2).config_of(&one, NAME) == value).then_some(());
        eventually("the brokers know it", known).await;
        produce_ok(cluster.broker(1), id, &["b"]).await;
    }
    cluster.kill(1, Crash::LoseUnsynced).await;
    cluster.kill(2, Crash::LoseUnsynced).await;
    cluster.start_broker(2).await;
    cluster.start_broker(1).await;
    let leader = cluster.wait_leader(id).await;
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(produce_ok(cluster.broker(leader), id, &["c"]).await, 4);
    assert_eq!(values(cluster.broker(leader), id, 0).await, ["a", "b", "b", "b", "c"]);
}

fn set_flush_messages(cluster: &Cluster, value: Option<&str>) {
    set(cluster, ConfigResource::Topic("t".to_owned()), "flush.messages", value);
}

fn set(cluster: &Cluster, resource: ConfigResource, name: &str, value: Option<&str>) {
    let operation = value.map_or(ConfigOperation::Delete, |value| ConfigOperation::Set(Some(value.to_owned())));
    let change = ConfigChange { name: name.to_owned(), operation };
    let resources = vec![(resource, vec![change])];
    cluster
        .controller
        .ask(&ControlRequest::IncrementalAlterConfigs(IncrementalAlterConfigs { resources, validate_only: false }));
}

/// Both replicas of `t` are gone, broker 1, which led, last; then broker 2 comes back alone.
async fn lose_both_and_start_the_follower(cluster: &mut Cluster) {
    cluster.kill_and_fence(2, Crash::LoseUnsynced).await;
    cluster.kill_and_fence(1, Crash::LoseUnsynced).await;
    cluster.start_broker(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_always_synced_before_it_acknowledged_leads_alone_at_once() {
    // R35: the last leader is absent, but nothing that was acknowledged can be missing here
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[("flush.messages", "1")]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let name = id.topic_id.to_string();
    eventually("the checkpoint says so", || checkpointed(&cluster, 2, Checkpoint::SyncedBeforeAck, &name)).await;
    lose_both_and_start_the_follower(&mut cluster).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    assert_eq!(cluster.log_end(2, id), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_came_later_does_not_vouch_for_what_was_acknowledged_before() {
    // R35: "a" was acknowledged from page caches; the setting says nothing of it
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.kill_and_fence(2, Crash::LoseUnsynced).await;
    cluster.kill_and_fence(1, Crash::LoseUnsynced).await;
    set_flush_messages(&cluster, Some("1"));
    cluster.start_broker(2).await;
    // Twice as long as a recovery waits for those who are absent.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.controller.image().partition(id).unwrap().leader, BrokerId::NONE);
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weaker_setting_ends_the_history() {
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[("flush.messages", "1")]).await;
    cluster.wait_leader(id).await;
    let name = id.topic_id.to_string();
    for broker in [1, 2] {
        eventually("the checkpoint says so", || checkpointed(&cluster, broker, Checkpoint::SyncedBeforeAck, &name))
            .await;
    }
    set_flush_messages(&cluster, None);
    for broker in [1, 2] {
        let gone = || checkpointed(&cluster, broker, Checkpoint::SyncedBeforeAck, &name).is_none().then_some(());
        eventually("the checkpoint says so no longer", gone).await;
    }
    set_flush_messages(&cluster, Some("1"));
    for broker in [1, 2] {
        eventually("it begins anew", || checkpointed(&cluster, broker, Checkpoint::SyncedBeforeAck, &name)).await;
    }
    produce_ok(cluster.broker(1), id, &["a"]).await;
    lose_both_and_start_the_follower(&mut cluster).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_gone_stays_lossy_over_another_crash() {
    // R78, R35: broker 1 led last, from the directory that it has; what was in it is gone
    let mut cluster = Cluster::start(2, 2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let known = || checkpointed(&cluster, 1, Checkpoint::HighWatermark, "t").filter(|offset| *offset == 1);
    eventually("the high watermark is checkpointed", known).await;
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    storage::disk::Disk::remove_dir_all(cluster.disk(1), "/data/t-0".as_ref()).unwrap();
    cluster.start_broker(1).await;
    // Its checkpoints are written anew: another topic's records are in them.
    let other = cluster.topic("other", &[1], &[]).await;
    cluster.wait_leader(other).await;
    produce_ok(cluster.broker(1), other, &["b"]).await;
    let written = || checkpointed(&cluster, 1, Checkpoint::RecoveryPoint, "other").filter(|point| *point == 1);
    eventually("the checkpoints are written", written).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.controller.image().partition(id).unwrap().leader, BrokerId::NONE, "it has lost its records");
    cluster.start_broker(2).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    cluster.wait_isr(id, &[1, 2]).await;
    eventually("the records are committed again", || (cluster.log_end(1, id) == 1).then_some(())).await;
    assert_eq!(values(cluster.broker(2), id, 0).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_again_under_its_name_is_empty_also_for_a_broker_that_was_away() {
    let mut cluster = Cluster::start(2, 1).await;
    let old = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(old).await;
    produce_ok(cluster.broker(1), old, &["old"]).await;
    cluster.shut_down(2).await;
    let delete = metadata::ControlRequest::DeleteTopics(metadata::control::DeleteTopics {
        topics: vec![metadata::control::TopicRef::Name("t".to_owned())],
    });
    cluster.controller.ask(&delete);
    let new = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(new).await;
    produce_ok(cluster.broker(1), new, &["new"]).await;
    cluster.start_broker(2).await;
    cluster.wait_isr(new, &[1, 2]).await;
    assert_eq!(cluster.log_end(2, new), 1);
    assert_eq!(cluster.log_end(2, old), -1);
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(new).await, 2);
    assert_eq!(values(cluster.broker(2), new, 0).await, ["new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_at_once_are_each_made_and_found_again_also_where_an_old_log_is_in_the_way() {
    const MANY: i32 = 400;
    let mut cluster = Cluster::start(2, 1).await;
    let old = cluster.wide_topic(2, &[]);
    let led_by_two = |id: &TopicPartition| cluster.controller.image().partition(*id).unwrap().leader == BrokerId(2);
    let old = old.into_iter().find(led_by_two).unwrap();
    cluster.wait_leads(2, &[old]).await;
    produce_ok(cluster.broker(2), old, &["old"]).await;
    cluster.shut_down(2).await;
    let delete = DeleteTopics { topics: vec![TopicRef::Name("wide".to_owned())] };
    cluster.controller.ask(&ControlRequest::DeleteTopics(delete));
    let topic = CreateTopic {
        name: "wide".to_owned(),
        partitions: -1,
        replication_factor: -1,
        assignments: (0..MANY).map(|at| (PartitionIndex(at), vec![BrokerId(1), BrokerId(2)])).collect(),
        configs: Vec::new(),
    };
    let request = ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 });
    let ControlResponse::CreateTopics(created) = cluster.controller.ask(&request) else { panic!("another answer") };
    let topic_id = created[0].result.as_ref().unwrap().id;
    let new: Vec<_> = (0..MANY).map(|at| TopicPartition { topic_id, partition: PartitionIndex(at) }).collect();
    cluster.wait_leads(1, &new).await;
    let written = [0, old.partition.0, MANY - 1];
    for at in written {
        let id = TopicPartition { topic_id, partition: PartitionIndex(at) };
        produce_ok(cluster.broker(1), id, &["new"]).await;
    }
    for _ in 0..2 {
        cluster.start_broker(2).await;
        eventually("broker 2 has them all", || {
            let end = |id: &TopicPartition| written.iter().filter(|at| **at == id.partition.0).map(|_| 1).sum::<i64>();
            new.iter().all(|id| cluster.log_end(2, *id) == end(id)).then_some(())
        })
        .await;
        cluster.kill(2, Crash::KeepAll).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_leaves_no_file_open_on_any_broker() {
    let cluster = Cluster::start(3, 2).await;
    let stays = cluster.topic("stays", &[1, 2, 3], &[]).await;
    cluster.wait_leader(stays).await;
    produce_ok(cluster.broker(1), stays, &["a"]).await;
    cluster.wait_isr(stays, &[1, 2, 3]).await;
    let open = || [1, 2, 3].map(|id| cluster.disk(id).counters().open_now);
    let before = open();
    for round in 0..3 {
        let ids = [&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]].map(|replicas: &[i32; 3]| (replicas[0], replicas));
        for (leader, replicas) in ids {
            let name = format!("goes-{round}-{leader}");
            let id = cluster.topic(&name, replicas, &[]).await;
            assert_eq!(cluster.wait_leader(id).await, leader);
            produce_ok(cluster.broker(leader), id, &["a"]).await;
            assert_eq!(values(cluster.broker(leader), id, 0).await, ["a"]);
            let delete = DeleteTopics { topics: vec![TopicRef::Id(id.topic_id)] };
            cluster.controller.ask(&ControlRequest::DeleteTopics(delete));
        }
    }
    eventually("only what stays is open", || (open() == before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recovery_point_follows_the_log_so_that_a_start_after_a_kill_scans_little() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    let wait = async |broker, topic: &str, end| {
        eventually("the checkpoint tells all that was synced", || {
            let copy = LogEnv::new(std::sync::Arc::new(cluster.disk(broker).fork()), 16, 0);
            let data = DataDir::open(&copy, "/data".as_ref()).unwrap();
            let points = data.read_checkpoint(Checkpoint::RecoveryPoint).unwrap();
            let point = points.get(&(topic.to_owned(), model::PartitionIndex(0))).copied();
            (point == Some(model::Offset(end))).then_some(())
        })
        .await;
    };
    // A round of the flusher passes after `t` is led and before it has records.
    let other = cluster.topic("other", &[1, 2], &[]).await;
    cluster.wait_leader(other).await;
    produce_ok(cluster.broker(1), other, &["a"]).await;
    wait(1, "other", 1).await;
    produce_ok(cluster.broker(1), id, &["a", "b"]).await;
    for broker in [1, 2] {
        wait(broker, "t", 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_leaderless_partitions_than_a_heartbeat_names_are_led_before_the_next_one_is_due() {
    // R35: each heartbeat asks for a thousand of them
    let mut cluster = Cluster::start(1, 1).await;
    let all = cluster.wide_topic(2_100, &[]);
    cluster.wait_leads(1, &all).await;
    cluster.kill(1, Crash::KeepAll).await;
    cluster.heartbeat_ms = 60_000;
    cluster.start_broker(1).await;
    cluster.wait_leads(1, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_that_are_synced_at_once_lose_nothing_that_was_acknowledged() {
    // R18, R30: sync before ack
    let mut cluster = Cluster::start(1, 1).await;
    let all = cluster.wide_topic(100, &[("flush.messages", "1")]);
    cluster.wait_leads(1, &all).await;
    for round in 0..3 {
        let produced: Vec<_> =
            all.iter().map(|id| begin_produce(cluster.broker(1), *id, Acks::All, batch(&["a"]))).collect();
        for answer in produced {
            let produced = soon("a produce to be answered", answer).await;
            assert_eq!((produced.error, produced.base_offset.0), (ErrorCode::None, round));
        }
        cluster.kill(1, Crash::LoseUnsynced).await;
        cluster.start_broker(1).await;
        cluster.wait_leads(1, &all).await;
        for id in &all {
            assert_eq!(cluster.log_end(1, *id), round + 1);
        }
    }
}
