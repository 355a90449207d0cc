//! Produce, fetch, offsets.

use std::io::{IoSlice, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use broker::api::{
    Acks, BrokerApi, FetchAnswer, FetchRequest, FileRecords, Isolation, ListOffsetsPartition, OffsetSpec,
};
use metadata::ControlRequest;
use metadata::control::{DeleteTopics, TopicRef};
use model::{ErrorCode, LeaderEpoch, Offset, TopicPartition};
use storage::Checkpoint;
use storage::disk::{Crash, Disk as _, Gate, OpenMode, write_all_at};

use crate::cluster::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_produced_with_any_acks_is_read_back_in_order_from_leader_and_follower() {
    // R21
    let cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    let leader = cluster.wait_leader(id).await;
    let broker = cluster.broker(leader);
    assert_eq!(produce(broker, id, Acks::None, batch(&["a", "b"])).await.base_offset, Offset(0));
    assert_eq!(produce(broker, id, Acks::Leader, batch(&["c"])).await.base_offset, Offset(2));
    assert_eq!(produce_ok(broker, id, &["d"]).await, 3);
    for follower in [1, 2, 3] {
        eventually("the replica has all", || (cluster.log_end(follower, id) == 4).then_some(())).await;
        let mut read = Vec::new();
        // The last high watermark travels after the last record (R60).
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while read.len() < 4 && tokio::time::Instant::now() < deadline {
            read = values(cluster.broker(follower), id, 0).await;
        }
        assert_eq!(read, ["a", "b", "c", "d"], "broker {follower}");
    }
    let elsewhere = produce(cluster.broker(leader % 3 + 1), id, Acks::Leader, batch(&["x"])).await;
    assert_eq!(elsewhere.error, ErrorCode::NotLeaderOrFollower);
    assert_eq!(elsewhere.current_leader.unwrap().leader.0, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_a_broker_without_the_partition_is_told_its_leader() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let elsewhere = fetch(cluster.broker(2), id, 0).await;
    assert_eq!(elsewhere.error, ErrorCode::NotLeaderOrFollower);
    assert_eq!(elsewhere.current_leader.expect("KIP-951").leader.0, 1);
    let mut request = fetch_request(id, 0);
    request.partitions[0].current_leader_epoch = LeaderEpoch(99);
    let ahead = soon("an error", cluster.broker(1).fetch(request)).await.partitions.remove(0);
    assert_eq!((ahead.error, ahead.current_leader), (ErrorCode::UnknownLeaderEpoch, None), "the client knows better");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_batch_of_the_second_format_is_refused_by_what_it_is() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let with_magic = |magic: u8| {
        let mut bytes = batch(&["a"]);
        bytes[16] = magic;
        bytes
    };
    let mut cut = batch(&["a"]);
    cut.truncate(cut.len() - 1);
    let invalid = [with_magic(0), with_magic(1), cut];
    let corrupt = [with_magic(3), with_magic(255)];
    for (batches, error) in [(&invalid[..], ErrorCode::InvalidRecord), (&corrupt[..], ErrorCode::CorruptMessage)] {
        for bytes in batches {
            let refused = produce(cluster.broker(1), id, Acks::All, bytes.clone()).await;
            assert_eq!((refused.error, refused.base_offset), (error, Offset::NONE), "{:?}", refused.message);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_is_told_when_it_was_appended_where_the_topic_says_so() {
    let cluster = Cluster::start(1, 1).await;
    for (kind, told) in [("LogAppendTime", true), ("CreateTime", false)] {
        let id = cluster.topic(kind, &[1], &[("message.timestamp.type", kind)]).await;
        cluster.wait_leader(id).await;
        let once = batch_of(&["a"], Some((5, 0, 0)));
        let first = produce(cluster.broker(1), id, Acks::All, once.clone()).await;
        let again = produce(cluster.broker(1), id, Acks::All, once).await;
        assert_eq!((again.error, again.base_offset), (ErrorCode::None, Offset(0)));
        assert_eq!(again.log_append_time, first.log_append_time);
        assert_eq!(again.log_append_time >= 0, told, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_cuts_a_log_that_is_only_compacted() {
    let cluster = Cluster::start(1, 1).await;
    for (policy, error) in [("compact", ErrorCode::PolicyViolation), ("compact,delete", ErrorCode::None)] {
        let name = policy.replace(',', "-");
        let id = cluster.topic(&name, &[1], &[("cleanup.policy", policy)]).await;
        cluster.wait_leader(id).await;
        let deleted = soon("an answer", cluster.broker(1).delete_records(vec![(id, Offset(0))], 25_000)).await;
        assert_eq!(deleted[0].error, error, "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_loses_is_the_end_of_what_was_not_acknowledged_by_all_and_the_order_stays() {
    // R21: records of weaker acks go the same way as the others, so the next leader has a beginning of the log
    let mut cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    let leader = cluster.wait_leader(id).await;
    let written: Vec<String> = (0..300).map(|n| format!("v{n}")).collect();
    let begin = |(n, value): (usize, &String)| {
        let acks = [Acks::None, Acks::Leader, Acks::All][n % 3];
        (acks, begin_produce(cluster.broker(leader), id, acks, batch(&[value])))
    };
    let mut begun: Vec<_> = written.iter().enumerate().map(begin).collect();
    let (_, of_all) = begun.swap_remove(29);
    assert_eq!(soon("an acknowledgement by all", of_all).await.error, ErrorCode::None);
    cluster.kill_and_fence(leader, Crash::KeepAll).await;
    let next = cluster.wait_leader(id).await;
    produce_ok(cluster.broker(next), id, &["last"]).await;
    let mut read = values(cluster.broker(next), id, 0).await;
    assert_eq!(read.pop().as_deref(), Some("last"));
    assert!(read.len() >= 30, "acknowledged by all: {}", read.len());
    assert_eq!(read, written[..read.len()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_tail_cache_and_the_streams_may_hold_is_charged_and_given_back() {
    let mut cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let tail = u64::try_from(cluster.tail_bytes).unwrap();
    // The leader's window and a message, what the transport holds at the follower's.
    for (broker, stream) in [(1, 11 << 20), (2, rpc::net::STREAM_BYTES)] {
        let budget = &cluster.budgets[&broker];
        eventually("the stream's end is charged", || (budget.used() == tail + stream).then_some(())).await;
    }
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    let budget = &cluster.budgets[&1];
    eventually("the stream's end is given back", || (budget.used() == tail).then_some(())).await;
}

/// How many bytes of records an answer has.
fn bytes_of(answer: &FetchAnswer) -> u64 {
    let records = answer.partitions.iter().flat_map(|fetched| &fetched.records);
    records.map(|chunk| u64::try_from(chunk.len()).unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fetches_share_the_memory_that_is_left_and_wait_for_more_of_it() {
    // Read from memory, and from disk.
    for on_disk in [false, true] {
        let cluster = if on_disk {
            Cluster::on_disk_only(1, 1, &[("log.cleaner.enable", "true")]).await
        } else {
            Cluster::start(1, 1).await
        };
        let id = cluster.topic("t", &[1], &[]).await;
        cluster.wait_leader(id).await;
        let value = "x".repeat(100_000);
        for _ in 0..100 {
            produce_ok(cluster.broker(1), id, &[&value]).await;
        }
        let budget = &cluster.budgets[&1];
        let (idle, one) = (budget.used(), u64::try_from(batch(&[&value]).len()).unwrap());
        let whole = cluster.broker(1).fetch(fetch_request(id, 0)).await;
        assert_eq!(budget.used() - idle, bytes_of(&whole), "charged as long as it is held");
        assert_eq!(bytes_of(&whole), 100 * one, "alone it gets all that it wants");
        drop(whole);
        let room = 8 << 20;
        let others = budget.charge((256 << 20) - (32 << 20) - room);
        let broker = std::sync::Arc::clone(cluster.broker(1));
        let fetch = move || {
            tokio::spawn({
                let broker = std::sync::Arc::clone(&broker);
                async move { broker.fetch(fetch_request(id, 0)).await }
            })
        };
        let mut answers: Vec<FetchAnswer> = Vec::new();
        let mut held = 0;
        // Where there is no room left one more is admitted over the budget.
        while answers.len() < 20 {
            let is_full = held >= room;
            let next = soon("a part", fetch()).await.unwrap();
            assert!(bytes_of(&next) >= one && bytes_of(&next) < 100 * one, "a part");
            held += bytes_of(&next);
            answers.push(next);
            if is_full {
                break;
            }
        }
        let last = fetch();
        let waits = || (budget.is_contended() && budget.used() - idle - others.bytes() == held).then_some(());
        eventually("whoever waits holds nothing", waits).await;
        assert!((4 << 20..11 << 20).contains(&held), "{held} in {} answers", answers.len());
        let mut metadata = broker::budget::Admission::new(budget);
        let small = std::future::poll_fn(|cx| std::task::Poll::Ready(metadata.poll_small(cx, 1_000).is_ready()));
        assert!(small.await, "small requests do not wait behind them");
        answers.clear();
        let answer = soon("the fetch that waited", last).await.unwrap();
        assert!(bytes_of(&answer) >= one);
        drop((answer, others));
        assert_eq!(budget.used(), idle);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_that_waits_for_more_holds_no_memory() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["0123456789"]).await;
    let budget = &cluster.budgets[&1];
    let idle = budget.used();
    let patient = FetchRequest { max_wait_ms: 300, min_bytes: 1_000_000, ..fetch_request(id, 0) };
    let mut poll = std::pin::pin!(cluster.broker(1).fetch(patient));
    let early = tokio::time::timeout(Duration::from_millis(1), &mut poll).await;
    assert!(early.is_err() && budget.used() == idle);
    let answer = soon("the end of its time", poll).await;
    assert!(bytes_of(&answer) > 0, "what is there is told in the end");
    assert_eq!(budget.used() - idle, bytes_of(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_comes_twice_is_answered_with_its_first_offset_also_by_the_next_leader() {
    let mut cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    let leader = cluster.wait_leader(id).await;
    let once = || batch_of(&["a", "b"], Some((5, 0, 0)));
    assert_eq!(produce(cluster.broker(leader), id, Acks::All, once()).await.base_offset, Offset(0));
    assert_eq!(produce_ok(cluster.broker(leader), id, &["other"]).await, 2);
    let again = produce(cluster.broker(leader), id, Acks::All, once()).await;
    assert_eq!((again.error, again.base_offset), (ErrorCode::None, Offset(0)));
    let gap = produce(cluster.broker(leader), id, Acks::All, batch_of(&["c"], Some((5, 0, 9)))).await;
    assert_eq!(gap.error, ErrorCode::OutOfOrderSequenceNumber);
    cluster.kill_and_fence(leader, Crash::KeepAll).await;
    let next = cluster.wait_leader(id).await;
    let again = produce(cluster.broker(next), id, Acks::All, once()).await;
    assert_eq!((again.error, again.base_offset), (ErrorCode::None, Offset(0)));
    let third = produce(cluster.broker(next), id, Acks::All, batch_of(&["c"], Some((5, 0, 2)))).await;
    assert_eq!((third.error, third.base_offset), (ErrorCode::None, Offset(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_poll_is_answered_when_enough_is_there_and_not_before() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let one = batch(&["0123456789"]).len();
    let request = FetchRequest { max_wait_ms: 25_000, min_bytes: 2 * one, ..fetch_request(id, 0) };
    let broker = std::sync::Arc::clone(cluster.broker(1));
    let mut poll = tokio::spawn(async move { broker.fetch(request).await });
    produce_ok(cluster.broker(1), id, &["0123456789"]).await;
    let early = tokio::time::timeout(Duration::from_millis(300), &mut poll).await;
    assert!(early.is_err(), "answered with less than it asked for");
    let began = tokio::time::Instant::now();
    produce_ok(cluster.broker(1), id, &["0123456789"]).await;
    let fetched = soon("the poll", poll).await.unwrap().partitions.remove(0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(fetched.records.iter().map(bytes::Bytes::len).sum::<usize>(), 2 * one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_is_answered_with_little_when_its_time_is_up_and_with_errors_at_once() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let patient = FetchRequest { max_wait_ms: 50, min_bytes: 1_000_000, ..fetch_request(id, 0) };
    assert!(!cluster.broker(1).fetch(patient).await.partitions[0].records.is_empty());
    let lost = FetchRequest { max_wait_ms: 25_000, ..fetch_request(id, 99) };
    let fetched = soon("an error", cluster.broker(1).fetch(lost)).await.partitions.remove(0);
    assert_eq!(fetched.error, ErrorCode::OffsetOutOfRange);
    let tiny = FetchRequest { max_bytes: 1, ..fetch_request(id, 0) };
    assert!(
        !cluster.broker(1).fetch(tiny).await.partitions[0].records.is_empty(),
        "the first batch is given whatever its size"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_records_are_gone_from_all_replicas_and_stay_gone_after_a_kill() {
    let mut cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    for value in ["a", "b", "c", "d"] {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    let deleted = soon("the deletion", cluster.broker(1).delete_records(vec![(id, Offset(2))], 25_000)).await;
    assert_eq!((deleted[0].error, deleted[0].low_watermark), (ErrorCode::None, Offset(2)));
    assert_eq!(fetch(cluster.broker(1), id, 1).await.error, ErrorCode::OffsetOutOfRange);
    let too_far = cluster.broker(1).delete_records(vec![(id, Offset(9))], 1_000).await;
    assert_eq!(too_far[0].error, ErrorCode::OffsetOutOfRange);
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    let asked =
        ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec: OffsetSpec::Earliest };
    let listed = cluster.broker(2).list_offsets(broker::api::Isolation::ReadUncommitted, vec![asked]).await;
    assert_eq!(listed[0].offset, Offset(2));
    assert_eq!(values(cluster.broker(2), id, 2).await, ["c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_write_and_read_is_counted_where_they_do() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    let sent = batch(&["a", "b", "c"]);
    let size = u64::try_from(sent.len()).unwrap();
    assert_eq!(produce(cluster.broker(1), id, Acks::All, sent.clone()).await.error, ErrorCode::None);
    assert_eq!(produce(cluster.broker(1), id, Acks::All, sent).await.error, ErrorCode::None);
    assert_eq!(values(cluster.broker(1), id, 0).await.len(), 6);
    let counted = |broker| {
        let metrics = cluster.broker(broker).metrics();
        let found = metrics.partitions.iter().find(|partition| partition.partition == id).unwrap();
        [found.bytes_in, found.messages_in, found.bytes_out]
    };
    assert_eq!([counted(1), counted(2)], [[2 * size, 6, 2 * size], [0; 3]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_into_sync_is_counted() {
    let mut cluster = Cluster::start(3, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    let before = cluster.broker(1).metrics().isr;
    assert_eq!((before.shrinks, before.expands), (0, 0));
    cluster.kill_and_fence(2, storage::disk::Crash::KeepAll).await;
    cluster.start_broker(2).await;
    cluster.wait_isr(id, &[1, 2]).await;
    // The records of the metadata may be here before the answer is.
    eventually("it is counted", || (cluster.broker(1).metrics().isr.expands == 1).then_some(())).await;
    assert_eq!(cluster.broker(1).metrics().isr.shrinks, 0, "the controller took it out by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_moves_the_log_start_on_leader_and_follower() {
    let cluster = Cluster::start(2, 1).await;
    let configs = [("segment.bytes", "1048576"), ("retention.bytes", "1500000"), ("file.delete.delay.ms", "0")];
    let id = cluster.topic("t", &[1, 2], &configs).await;
    cluster.wait_leader(id).await;
    let large = "x".repeat(400_000);
    for _ in 0..10 {
        produce_ok(cluster.broker(1), id, &[&large]).await;
    }
    let asked =
        ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec: OffsetSpec::Earliest };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let listed = cluster.broker(1).list_offsets(broker::api::Isolation::ReadUncommitted, vec![asked]).await;
        if listed[0].offset > Offset(0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing was deleted");
    }
    eventually("the follower deletes too", || {
        let logs = cluster.broker(2).describe_log_dirs();
        logs[0]
            .replicas
            .iter()
            .find(|replica| replica.partition == id)
            .filter(|replica| replica.size < 3_000_000)
            .map(drop)
    })
    .await;
    assert_eq!(produce_ok(cluster.broker(1), id, &["more"]).await, 10);
}

/// A partition of broker 1 with more than retention keeps; no checkpoint of a log start is written before the gate is dropped, so
/// that nothing goes.
async fn more_than_is_retained(cluster: &Cluster) -> (TopicPartition, Gate) {
    let configs = [("segment.bytes", "1048576"), ("retention.bytes", "1500000"), ("file.delete.delay.ms", "0")];
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    let gate = cluster.disk(1).hold_opens("log-start-offset-checkpoint");
    let large = "x".repeat(400_000);
    for _ in 0..10 {
        produce_ok(cluster.broker(1), id, &[&large]).await;
    }
    (id, gate)
}

fn has_first_segment(cluster: &Cluster) -> bool {
    let entries = cluster.disk(1).list("/data/t-0".as_ref()).expect("a directory");
    entries.iter().any(|entry| entry.name == "00000000000000000000.log")
}

/// What a power cut brings back of deleted segments, with holes where it did not, lies below the log start that is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_segment_goes_before_a_checkpoint_holds_the_log_start() {
    let cluster = Cluster::start(1, 1).await;
    let (id, gate) = more_than_is_retained(&cluster).await;
    let asked =
        ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec: OffsetSpec::Earliest };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while cluster.broker(1).list_offsets(broker::api::Isolation::ReadUncommitted, vec![asked]).await[0].offset
        == Offset(0)
    {
        assert!(tokio::time::Instant::now() < deadline, "the log start stays");
    }
    assert!(has_first_segment(&cluster));
    drop(gate);
    eventually("the segment goes", || (!has_first_segment(&cluster)).then_some(())).await;
    assert!(checkpointed(&cluster, 1, Checkpoint::LogStart, "t") > Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_makes_space_where_there_is_none_for_a_checkpoint() {
    let cluster = Cluster::start(1, 1).await;
    let (id, gate) = more_than_is_retained(&cluster).await;
    cluster.disk(1).set_capacity(Some(1));
    drop(gate);
    eventually("the segment goes", || (!has_first_segment(&cluster)).then_some(())).await;
    cluster.disk(1).set_capacity(None);
    assert_eq!(produce_ok(cluster.broker(1), id, &["more"]).await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.disk(1).set_capacity(Some(1));
    let refused = produce(cluster.broker(1), id, Acks::All, batch(&["b"])).await;
    assert_eq!(refused.error, ErrorCode::KafkaStorageError);
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a"]);
    cluster.disk(1).set_capacity(None);
    assert_eq!(produce_ok(cluster.broker(1), id, &["c"]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_behind_one_that_a_full_disk_refused_are_not_out_of_order() {
    // R40: several of a producer's are on their way at once, and it sends all of them again.
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let send = async |sequence| {
        let produced = produce(cluster.broker(1), id, Acks::All, batch_of(&["a"], Some((5, 0, sequence)))).await;
        (produced.error, produced.base_offset.0)
    };
    assert_eq!(send(0).await, (ErrorCode::None, 0));
    cluster.disk(1).set_capacity(Some(1));
    assert_eq!(send(1).await.0, ErrorCode::KafkaStorageError);
    assert_eq!(send(2).await.0, ErrorCode::KafkaStorageError);
    assert_eq!(send(0).await, (ErrorCode::None, 0), "what was taken is acknowledged");
    cluster.disk(1).set_capacity(None);
    assert_eq!(
        send(3).await.0,
        ErrorCode::KafkaStorageError,
        "there is space, but what it follows was not sent again yet"
    );
    assert_eq!(send(1).await, (ErrorCode::None, 1));
    assert_eq!(send(3).await.0, ErrorCode::OutOfOrderSequenceNumber, "nothing was refused since");
    assert_eq!(send(2).await, (ErrorCode::None, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_is_full_tries_again_and_catches_up() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.disk(2).set_capacity(Some(1));
    let before = cluster.disk(2).counters().writes;
    let waiting = begin_produce(cluster.broker(1), id, Acks::All, batch(&["b"]));
    eventually("the follower has tried", || (cluster.disk(2).counters().writes > before).then_some(())).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["c"])).await;
    assert_eq!(cluster.log_end(2, id), 1);
    cluster.disk(2).set_capacity(None);
    assert_eq!(soon("the follower to catch up", waiting).await.error, ErrorCode::None);
    eventually("all is there", || (cluster.log_end(2, id) == 3).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_directory_is_reported_and_another_broker_leads() {
    let cluster = Cluster::start(3, 1).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.disk(1).fail(storage::disk::Call::Write, 0, storage::disk::FaultKind::Eio);
    let failed = produce(cluster.broker(1), id, Acks::All, batch(&["b"])).await;
    assert_eq!(failed.error, ErrorCode::KafkaStorageError);
    let next = eventually("another broker leads", || {
        Some(cluster.controller.image().partition(id)?.leader.0).filter(|leader| [2, 3].contains(leader))
    })
    .await;
    eventually("it knows", || {
        let metrics = cluster.broker(next).metrics();
        metrics.partitions.iter().any(|partition| partition.leads).then_some(())
    })
    .await;
    assert_eq!(produce_ok(cluster.broker(next), id, &["c"]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_found_by_time() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    produce_ok(cluster.broker(1), id, &["b"]).await;
    let list = async |spec| {
        let asked = ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec };
        cluster.broker(1).list_offsets(broker::api::Isolation::ReadUncommitted, vec![asked]).await[0].offset
    };
    assert_eq!(list(OffsetSpec::Timestamp(0)).await, Offset(0));
    assert_eq!(list(OffsetSpec::Timestamp(i64::MAX)).await, Offset::NONE);
    assert_eq!(list(OffsetSpec::Latest).await, Offset(2));
}

/// How often the disk of broker 1 was synced while 60 records were produced, one every `pause`.
async fn syncs_of(config: (&str, &str), pause: Duration) -> u64 {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[config]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["first"]).await;
    let before = cluster.disk(1).counters().data_syncs;
    for _ in 0..60 {
        produce_ok(cluster.broker(1), id, &["x"]).await;
        tokio::time::sleep(pause).await;
    }
    cluster.disk(1).counters().data_syncs - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_synced_at_the_interval_that_it_asks_for() {
    // The background flusher alone, with its checkpoints, syncs some five times a second.
    let by_messages = syncs_of(("flush.messages", "2"), Duration::ZERO).await;
    assert!(by_messages >= 25, "{by_messages}");
    let by_time = syncs_of(("flush.ms", "5"), Duration::from_millis(8)).await;
    assert!(by_time >= 25, "{by_time}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_sync_before_ack_the_leader_alone_acknowledges_what_it_has_synced() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[("flush.messages", "1")]).await;
    cluster.wait_leader(id).await;
    for n in 0..20 {
        let syncs = || cluster.disk(1).counters().data_syncs + cluster.disk(1).counters().all_syncs;
        let before = syncs();
        let produced = produce(cluster.broker(1), id, Acks::Leader, batch(&["x"])).await;
        assert_eq!((produced.error, produced.base_offset), (ErrorCode::None, Offset(n)));
        assert!(syncs() > before, "record {n} was acknowledged first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_below_its_reserve_hands_over_serves_reads_and_comes_back_by_itself() {
    let mut cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    produce_ok(cluster.broker(1), id, &["a"]).await;
    cluster.disk(1).leave_space(RESERVE.unsigned_abs() - 1);
    let leader = eventually("another leads", || cluster.led_by_another_than(id, 1)).await;
    cluster.wait_isr(id, &[2, 3]).await;
    assert_eq!(produce_ok(cluster.broker(leader), id, &["b"]).await, 1);
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a"], "what it has is still read here");
    assert!(cluster.broker(1).metrics().directories[0].space.full);
    // It starts there too, and is not taken back before it has space.
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    assert_eq!(cluster.isr(id), [2, 3]);
    cluster.disk(1).leave_space(10 * RESERVE.unsigned_abs());
    cluster.wait_isr(id, &[1, 2, 3]).await;
    assert_eq!(values(cluster.broker(1), id, 0).await, ["a", "b"]);
}

/// All that a socket is sent of it.
fn sent(records: &dyn FileRecords) -> Vec<u8> {
    let (socket, mut client) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut from, mut received) = (0, Vec::new());
    while from < records.len() {
        match records.send_to(socket.as_fd(), from) {
            Ok(count) => from += count.expect("a disk in memory is not waited for"),
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
                let mut taken = vec![0; from - received.len()];
                client.read_exact(&mut taken).unwrap();
                received.extend(taken);
            }
        }
    }
    drop(socket);
    client.read_to_end(&mut received).unwrap();
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_of_a_cold_log_is_given_in_its_file_and_takes_no_memory() {
    let mut cluster = Cluster::start(0, 1).await;
    cluster.tail_bytes = 0;
    cluster.start_broker(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    for byte in ["a", "b", "c", "d", "e"] {
        produce_ok(cluster.broker(1), id, &[&byte.repeat(30_000)]).await;
    }
    let broker = cluster.broker(1);
    let by_file = |max_bytes| FetchRequest { by_file: true, max_bytes, ..fetch_request(id, 0) };
    let memory = broker.fetch(fetch_request(id, 0)).await;
    let expected = memory.partitions[0].records.concat();
    assert_eq!(memory.memory.bytes(), expected.len() as u64);
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        let answer = broker.fetch(FetchRequest { isolation, ..by_file(1 << 20) }).await;
        let fetched = &answer.partitions[0];
        let records = fetched.in_file.as_ref().expect("they stay in their file");
        assert_eq!((answer.memory.bytes(), fetched.records.len(), fetched.bytes()), (0, 0, expected.len()));
        assert_eq!(records.end(), Offset(5));
        assert_eq!(fetched.aborted.is_some(), isolation == Isolation::ReadCommitted);
        assert!(sent(&**records) == expected);
        assert!(
            records.load(0).await.unwrap() == expected && records.load(70_000).await.unwrap() == expected[70_000..]
        );
    }
    let little = broker.fetch(by_file(60_000)).await;
    assert!(little.partitions[0].in_file.is_none() && !little.partitions[0].records.is_empty());
    assert_eq!(little.memory.bytes(), little.partitions[0].bytes() as u64);
    // Whoever waits for more than there is gets what there is, when the time is up.
    let patient = FetchRequest { max_wait_ms: 50, min_bytes: 1 << 20, ..by_file(1 << 20) };
    assert_eq!(broker.fetch(patient).await.partitions[0].bytes(), expected.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_on_its_way_keeps_one_file_of_a_deleted_topic_open_and_no_other() {
    let mut cluster = Cluster::start(0, 1).await;
    cluster.tail_bytes = 0;
    cluster.start_broker(1).await;
    let id = cluster.topic("t", &[1], &[("segment.bytes", "1048576")]).await;
    cluster.wait_leader(id).await;
    let open = || cluster.disk(1).counters().open_now;
    let before = open();
    for _ in 0..4 {
        produce_ok(cluster.broker(1), id, &[&"a".repeat(600_000)]).await;
    }
    for offset in 0..4 {
        assert_eq!(fetch(cluster.broker(1), id, offset).await.error, ErrorCode::None);
    }
    let request = FetchRequest { by_file: true, ..fetch_request(id, 0) };
    let records = cluster.broker(1).fetch(request).await.partitions.remove(0).in_file.expect("in its file");
    assert!(open() >= before + 4, "of each segment one at least");
    let delete = DeleteTopics { topics: vec![TopicRef::Id(id.topic_id)] };
    cluster.controller.ask(&ControlRequest::DeleteTopics(delete));
    eventually("only what is on its way is open", || (open() == before + 1).then_some(())).await;
    assert_eq!(sent(&*records).len(), records.len(), "and it goes on");
    drop(records);
    eventually("nothing is left", || (open() == before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_rot_on_their_way_are_not_loaded() {
    let mut cluster = Cluster::start(0, 1).await;
    cluster.tail_bytes = 0;
    cluster.start_broker(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    for byte in ["a", "b", "c", "d", "e"] {
        produce_ok(cluster.broker(1), id, &[&byte.repeat(30_000)]).await;
    }
    let request = || FetchRequest { by_file: true, ..fetch_request(id, 0) };
    let records = cluster.broker(1).fetch(request()).await.partitions.remove(0).in_file.expect("in its file");
    let file = Path::new("/data/t-0/00000000000000000000.log");
    let file = cluster.disk(1).open(file, OpenMode::Existing).unwrap();
    write_all_at(&*file, &mut [IoSlice::new(b"!")], 100_000).unwrap();
    assert!(records.load(0).await.is_none());
    // Who asks gets what is before it.
    let before = cluster.broker(1).fetch(request()).await.partitions.remove(0);
    assert!((90_000..100_000).contains(&before.bytes()), "{}", before.bytes());
}
