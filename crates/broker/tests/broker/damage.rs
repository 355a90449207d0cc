//! Records that rot on a disk, where no start looks (`R29`): whoever reads them notices, and nobody is served them.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::api::{Acks, BrokerApi, FetchRequest, Fetched, Isolation, ListOffsetsPartition, ListedOffset, OffsetSpec};
use metadata::ControlRequest;
use metadata::control::{DeleteTopics, TopicRef};
use model::{BrokerId, ErrorCode, LeaderEpoch, Offset, TopicPartition};
use storage::disk::{Crash, Disk, OpenMode, read_exact_at, read_small_file, replace_file, write_all_at};

use crate::cluster::{Cluster, batch, eventually, fetch, fetch_request, produce, produce_ok, soon, values};

const BATCHES: usize = 20;

/// Brokers that read everything from their disks, and a topic on all of them with some batches.
async fn cluster_with_records(brokers: i32, min_isr: u32) -> (Cluster, TopicPartition, Vec<String>) {
    let mut cluster = Cluster::start(0, min_isr).await;
    cluster.tail_bytes = 0;
    let ids: Vec<i32> = (1..=brokers).collect();
    for id in &ids {
        cluster.start_broker(*id).await;
    }
    let id = cluster.topic("t", &ids, &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    let mut written = Vec::new();
    for n in 0..BATCHES {
        let value = format!("{n:02}-{}", "x".repeat(300));
        produce_ok(cluster.broker(1), id, &[&value]).await;
        written.push(value);
    }
    cluster.wait_isr(id, &ids).await;
    for broker in ids {
        let end = i64::try_from(BATCHES).unwrap();
        eventually("all of it is everywhere", || (cluster.log_end(broker, id) == end).then_some(())).await;
    }
    (cluster, id, written)
}

/// Flips a bit in the record of one of the batches, which are all of one size.
fn rot(cluster: &Cluster, broker: i32, batch: u64) {
    let file = Path::new("/data/t-0/00000000000000000000.log");
    let file = cluster.disk(broker).open(file, OpenMode::Existing).unwrap();
    let position = file.size().unwrap() / BATCHES as u64 * batch + 100;
    let mut byte = [0];
    read_exact_at(&*file, &mut byte, position).unwrap();
    byte[0] ^= 4;
    write_all_at(&*file, &mut [IoSlice::new(&byte)], position).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_finds_damaged_of_a_replica_that_is_gone_is_none_of_its_directory() {
    let (cluster, id, _) = cluster_with_records(2, 1).await;
    let file = Path::new("/data/t-0/00000000000000000000.log");
    let file = cluster.disk(1).open(file, OpenMode::Existing).unwrap();
    let gate = cluster.disk(1).hold_reads("t-0/");
    let broker = Arc::clone(cluster.broker(1));
    let reading = tokio::spawn(async move { fetch(&broker, id, 0).await });
    eventually("the read hangs", || (gate.waiting() == 1).then_some(())).await;
    let deleted = DeleteTopics { topics: vec![TopicRef::Id(id.topic_id)] };
    cluster.controller.ask(&ControlRequest::DeleteTopics(deleted));
    let names = || cluster.disk(1).list(Path::new("/data")).unwrap();
    let is_gone = || !names().iter().any(|entry| entry.name.starts_with("t-0"));
    eventually("the replica is gone", || is_gone().then_some(())).await;
    write_all_at(&*file, &mut [IoSlice::new(&[0xaa])], 100).unwrap();
    drop(gate);
    let fetched = soon("the read", reading).await.unwrap();
    assert!(fetched.error != ErrorCode::CorruptMessage && fetched.records.is_empty(), "{fetched:?}");
    assert_eq!(cluster.broker(1).describe_log_dirs()[0].error, ErrorCode::None);
}

/// As a consumer that may read from a follower.
async fn fetch_near(cluster: &Cluster, broker: i32, id: TopicPartition, offset: i64) -> Fetched {
    let request = FetchRequest { rack: Some("none".to_owned()), ..fetch_request(id, offset) };
    soon("a fetch to be answered", cluster.broker(broker).fetch(request)).await.partitions.remove(0)
}

/// Waits until a replica that was thrown out of the ISR is in it again.
async fn wait_out_and_in(cluster: &Cluster, id: TopicPartition, before: i32, isr: &[i32]) {
    eventually("the damaged replica was out of the ISR, and is in it again", || {
        let image = cluster.controller.image();
        let epoch = image.partition(id).unwrap().partition_epoch.0;
        (epoch >= before + 2 && cluster.isr(id) == isr).then_some(())
    })
    .await;
    cluster.wait_isr(id, isr).await;
}

/// All values that a replica serves, once it knows that they are committed.
async fn all_values(cluster: &Cluster, broker: i32, id: TopicPartition, count: usize) -> Vec<String> {
    let all = async {
        loop {
            let found = values(cluster.broker(broker), id, 0).await;
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("all values", all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_records_rot_hands_over_and_fetches_them_again() {
    let (cluster, id, mut written) = cluster_with_records(3, 2).await;
    let before = cluster.controller.image().partition(id).unwrap().partition_epoch.0;
    rot(&cluster, 1, 7);
    let sound = fetch(cluster.broker(1), id, 0).await;
    assert_eq!((sound.error, sound.records.len()), (ErrorCode::None, 1), "what is before it");
    let refused = fetch(cluster.broker(1), id, 7).await;
    assert_eq!((refused.error, refused.records.len()), (ErrorCode::KafkaStorageError, 0));
    let leader = eventually("another one leads", || cluster.led_by_another_than(id, 1)).await;
    wait_out_and_in(&cluster, id, before, &[1, 2, 3]).await;
    produce_ok(cluster.broker(leader), id, &["after"]).await;
    written.push("after".to_owned());
    for broker in [leader, 1] {
        assert_eq!(all_values(&cluster, broker, id, written.len()).await, written, "broker {broker}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_records_rot_is_out_of_sync_until_it_has_them_again() {
    let (cluster, id, written) = cluster_with_records(2, 1).await;
    let before = cluster.controller.image().partition(id).unwrap().partition_epoch.0;
    rot(&cluster, 2, 3);
    let refused = fetch_near(&cluster, 2, id, 3).await;
    assert_eq!((refused.error, refused.records.len()), (ErrorCode::KafkaStorageError, 0));
    wait_out_and_in(&cluster, id, before, &[1, 2]).await;
    assert_eq!(cluster.controller.image().partition(id).unwrap().leader.0, 1);
    assert_eq!(all_values(&cluster, 2, id, written.len()).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_failed_and_could_not_be_opened_anew_says_nothing_in_a_recovery() {
    // R35: it could not lead, and would be asked and answer for ever
    let (mut cluster, id, _) = cluster_with_records(2, 2).await;
    cluster.disk(2).leave_space(0);
    rot(&cluster, 2, 3);
    let refused = fetch_near(&cluster, 2, id, 3).await;
    assert_eq!((refused.error, refused.records.len()), (ErrorCode::KafkaStorageError, 0));
    eventually("the failed replica is out of the ISR", || (cluster.isr(id) == [1]).then_some(())).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    let asked = || cluster.controller.recoveries_of(BrokerId(2));
    eventually("2 is asked twice", || (asked().0 >= 2).then_some(())).await;
    assert_eq!(asked().1, 0);
    cluster.start_broker(1).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_catches_up_makes_the_damage_of_its_leader_known() {
    // The leader is the only one in sync when it is read; it hands over once another one is.
    let (mut cluster, id, mut written) = cluster_with_records(3, 1).await;
    cluster.kill_and_fence(3, Crash::KeepAll).await;
    cluster.wait_isr(id, &[1, 2]).await;
    produce_ok(cluster.broker(1), id, &["while it is away"]).await;
    written.push("while it is away".to_owned());
    let file = Path::new("/data/t-0/00000000000000000000.log");
    let file = cluster.disk(1).open(file, OpenMode::Existing).unwrap();
    let position = file.size().unwrap() - 1;
    write_all_at(&*file, &mut [IoSlice::new(&[0x55])], position).unwrap();
    let before = cluster.controller.image().partition(id).unwrap().partition_epoch.0;
    cluster.start_broker(3).await;
    assert_eq!(eventually("another one leads", || cluster.led_by_another_than(id, 1)).await, 2);
    wait_out_and_in(&cluster, id, before, &[1, 2, 3]).await;
    for broker in [1, 2, 3] {
        assert_eq!(all_values(&cluster, broker, id, written.len()).await, written, "broker {broker}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_refuses_what_rots_and_keeps_and_serves_the_rest() {
    let (cluster, id, written) = cluster_with_records(1, 1).await;
    rot(&cluster, 1, 7);
    for _ in 0..2 {
        assert_eq!(fetch(cluster.broker(1), id, 0).await.error, ErrorCode::None);
        let refused = fetch(cluster.broker(1), id, 7).await;
        assert_eq!((refused.error, refused.records.len()), (ErrorCode::CorruptMessage, 0));
    }
    assert_eq!(values(cluster.broker(1), id, 8).await, written[8..]);
    produce_ok(cluster.broker(1), id, &["after"]).await;
    assert_eq!(fetch(cluster.broker(1), id, 20).await.error, ErrorCode::None);
}

const IDENTITY: &str = "/data/t-0/partition.metadata";
const TOPIC_IDS: &str = "/data/topic-id-checkpoint";

fn content(cluster: &Cluster, broker: i32, path: &str) -> Vec<u8> {
    read_small_file(cluster.disk(broker), Path::new(path), 1 << 20).unwrap().unwrap()
}

fn replace(cluster: &Cluster, broker: i32, path: &str, content: &[u8]) {
    replace_file(cluster.disk(broker), Path::new(path), content).unwrap();
}

/// The directories that a broker kept aside.
fn kept_aside(cluster: &Cluster, broker: i32) -> Vec<String> {
    let names = cluster.disk(broker).list(Path::new("/data")).unwrap().into_iter().map(|entry| entry.name);
    names.filter(|name| name.ends_with("-stray")).collect()
}

/// The identity as Kafka writes it, without a checksum, with one bit of the topic's id flipped.
fn flipped_kafkas(whole: &[u8]) -> Vec<u8> {
    let end = whole.iter().rposition(|byte| *byte == b'\n').expect("a line with the checksum");
    let mut kafkas = whole[..end].to_vec();
    // A digit or a letter of base64 stays one.
    let at = kafkas.windows(9).position(|at| at == b"topic_id:").unwrap() + 12;
    kafkas[at] = if kafkas[at] == b'A' { b'C' } else { b'A' };
    kafkas
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_identity_rots_or_is_gone_is_found_and_served_whole() {
    // R4, R29: two files say whose a log is, and one of them is enough
    let (mut cluster, id, written) = cluster_with_records(1, 1).await;
    cluster.shut_down(1).await;
    let whole = content(&cluster, 1, IDENTITY);
    let mut damaged: Vec<Option<Vec<u8>>> = vec![None, Some(Vec::new()), Some(flipped_kafkas(&whole))];
    for byte in (0..whole.len()).step_by(4) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << (byte % 7);
        damaged.push(Some(flipped));
    }
    for (number, damage) in damaged.into_iter().enumerate() {
        match &damage {
            Some(damage) => replace(&cluster, 1, IDENTITY, damage),
            None => cluster.disk(1).remove_file(Path::new(IDENTITY)).unwrap(),
        }
        cluster.start_broker(1).await;
        cluster.wait_leader(id).await;
        assert_eq!(all_values(&cluster, 1, id, BATCHES).await, written, "damage {number}");
        assert_eq!(content(&cluster, 1, IDENTITY), whole, "damage {number}: written again");
        cluster.shut_down(1).await;
        assert_eq!(kept_aside(&cluster, 1), [""; 0]);
    }
    // The checkpoint alone is gone: the file says enough, and a start writes the other one.
    cluster.disk(1).remove_file(Path::new(TOPIC_IDS)).unwrap();
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    assert_eq!(all_values(&cluster, 1, id, BATCHES).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nothing_proves_to_be_another_topics_is_no_deleted_one() {
    // R35, R78: the last one in sync comes back with another topic's id in its file; nobody truncates to its empty log
    for damage in [flipped_kafkas as fn(&[u8]) -> Vec<u8>, |_| b"noise".to_vec()] {
        let (mut cluster, id, written) = cluster_with_records(3, 2).await;
        for broker in [1, 2, 3] {
            cluster.shut_down(broker).await;
        }
        let eligible = cluster.controller.image().partition(id).unwrap().elr.clone();
        assert!(eligible.contains(&BrokerId(3)), "the last one in sync: {eligible:?}");
        let whole = content(&cluster, 3, IDENTITY);
        replace(&cluster, 3, IDENTITY, &damage(&whole));
        // As a directory that Kafka left.
        cluster.disk(3).remove_file(Path::new(TOPIC_IDS)).unwrap();
        cluster.start_broker(3).await;
        let image = cluster.controller.image();
        let now = image.partition(id).unwrap();
        assert!(!now.isr.contains(&BrokerId(3)) && !now.elr.contains(&BrokerId(3)), "what it lost, it does not lead");
        cluster.start_broker(1).await;
        cluster.start_broker(2).await;
        let leader = cluster.wait_leader(id).await;
        assert_ne!(leader, 3);
        cluster.wait_isr(id, &[1, 2, 3]).await;
        for broker in [1, 2, 3] {
            assert_eq!(all_values(&cluster, broker, id, BATCHES).await, written, "broker {broker}");
        }
        assert_eq!(kept_aside(&cluster, 3), ["t-0.0-stray"]);
        let kept = "/data/t-0.0-stray/00000000000000000000.log";
        assert!(!content(&cluster, 3, kept).is_empty(), "it is kept with its records");
        cluster.shut_down(3).await;
        cluster.start_broker(3).await;
        assert_eq!(kept_aside(&cluster, 3), ["t-0.0-stray"], "also over another start");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_produce_at_the_end_of_all_offsets_is_refused_and_the_broker_goes_on() {
    let (mut cluster, id, _) = cluster_with_records(1, 1).await;
    cluster.shut_down(1).await;
    let old = [".log", ".index", ".timeindex"].map(|kind| format!("/data/t-0/00000000000000000000{kind}"));
    old.iter().for_each(|path| cluster.disk(1).remove_file(Path::new(path)).unwrap());
    replace(&cluster, 1, "/data/t-0/09223372036854775806.log", b"");
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    assert_eq!(produce_ok(cluster.broker(1), id, &["last"]).await, i64::MAX - 1);
    let refused = produce(cluster.broker(1), id, Acks::All, batch(&["one more"])).await;
    assert_eq!(refused.error, ErrorCode::KafkaStorageError);
    assert_eq!(values(cluster.broker(1), id, i64::MAX - 1).await, ["last"]);
}

async fn list(cluster: &Cluster, broker: i32, id: TopicPartition, spec: OffsetSpec) -> ListedOffset {
    let asked = ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec };
    soon("offsets", cluster.broker(broker).list_offsets(Isolation::ReadUncommitted, vec![asked])).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lookup_by_time_finds_damaged_is_fetched_again() {
    let (cluster, id, written) = cluster_with_records(3, 2).await;
    let before = cluster.controller.image().partition(id).unwrap().partition_epoch.0;
    rot(&cluster, 1, 0);
    let asked = list(&cluster, 1, id, OffsetSpec::Timestamp(0)).await;
    assert_eq!((asked.error, asked.offset), (ErrorCode::KafkaStorageError, Offset::NONE));
    let leader = eventually("another one leads", || cluster.led_by_another_than(id, 1)).await;
    wait_out_and_in(&cluster, id, before, &[1, 2, 3]).await;
    assert_eq!(list(&cluster, leader, id, OffsetSpec::Timestamp(0)).await.offset, Offset(0));
    assert_eq!(all_values(&cluster, 1, id, written.len()).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_refuses_lookups_by_time_of_what_rots_only() {
    let (cluster, id, _) = cluster_with_records(1, 1).await;
    rot(&cluster, 1, 0);
    let refused = list(&cluster, 1, id, OffsetSpec::Timestamp(0)).await;
    assert_eq!((refused.error, refused.offset), (ErrorCode::CorruptMessage, Offset::NONE));
    assert_eq!(list(&cluster, 1, id, OffsetSpec::Latest).await.offset, Offset(20));
    assert_eq!(list(&cluster, 1, id, OffsetSpec::Earliest).await.error, ErrorCode::None);
}
