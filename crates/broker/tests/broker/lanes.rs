//! The flow of replication (`R62`): the catch-up lane beside the tail's, and the window of a stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use broker::api::{Acks, BrokerApi};
use model::{ErrorCode, Offset, RecordBatch, TopicPartition};
use rpc::replication::{Answer, Data, LaneKind};
use storage::disk::Crash;

use crate::cluster::*;
use crate::peers::*;

/// Of the tail caches here.
const TAIL: usize = 60_000;
/// What a stream that a broker leads takes of the budget.
const STREAM: u64 = 11 << 20;

/// A cluster whose first broker keeps little in memory.
async fn forgetful(brokers: i32, window_bytes: u64) -> Cluster {
    let mut cluster = Cluster::start(brokers, 1).await;
    (cluster.tail_bytes, cluster.window_bytes) = (TAIL, window_bytes);
    cluster.shut_down(1).await;
    cluster.start_broker(1).await;
    cluster
}

/// Writes records that the tail cache cannot hold all of.
async fn write_much(cluster: &Cluster, id: TopicPartition) -> Vec<String> {
    let values: Vec<String> = (0..30).map(|n| format!("{n}-{}", "z".repeat(10_000))).collect();
    for value in &values {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    values
}

/// A follower that the test plays, out of the ISR, and much that was written since.
async fn left_behind(cluster: &Cluster) -> (Played, TopicPartition) {
    let played = Played::start(cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    played.leave();
    cluster.wait_isr(id, &[1]).await;
    write_much(cluster, id).await;
    (played, id)
}

/// What the first broker's streams take of its budget.
fn charged(cluster: &Cluster) -> u64 {
    cluster.budgets[&1].used() - u64::try_from(TAIL).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_of_partitions_in_sync_never_wait_for_another_ones_cold_read() {
    let mut cluster = forgetful(2, 10 << 20).await;
    let cold = cluster.topic("cold", &[1, 2], &[]).await;
    let hot = cluster.topic("hot", &[1, 2], &[]).await;
    cluster.wait_leader(cold).await;
    cluster.wait_leader(hot).await;
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    let mut written = write_much(&cluster, cold).await;
    let gate = cluster.disk(1).hold_reads("cold-0");
    cluster.start_broker(2).await;
    cluster.wait_isr(hot, &[1, 2]).await;
    eventually("the cold read hangs", || (gate.waiting() == 1).then_some(())).await;
    for n in 0..20 {
        assert_eq!(produce_ok(cluster.broker(1), hot, &["hot"]).await, n);
    }
    assert_eq!((gate.waiting(), cluster.isr(cold)), (1, vec![1]), "all that time");
    eventually("both lanes are charged", || (charged(&cluster) == 2 * STREAM).then_some(())).await;
    drop(gate);
    // It comes back while it is written to, and nothing is missing or there twice.
    for n in 0..200 {
        let value = format!("later {n}");
        produce(cluster.broker(1), cold, Acks::Leader, batch(&[&value])).await;
        written.push(value);
    }
    cluster.wait_isr(cold, &[1, 2]).await;
    written.push("last".to_owned());
    produce_ok(cluster.broker(1), cold, &["last"]).await;
    eventually("the follower has it", || (cluster.log_end(2, cold) == cluster.log_end(1, cold)).then_some(())).await;
    eventually("only the tail's lane is left", || (charged(&cluster) == STREAM).then_some(())).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(cold).await, 2);
    assert_eq!(values(cluster.broker(2), cold, 0).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_before_an_acknowledgement_waits_for_no_cold_read() {
    let cluster = forgetful(1, 10 << 20).await;
    let cold = cluster.topic("cold", &[1], &[]).await;
    let synced = cluster.topic("synced", &[1], &[("flush.messages", "1")]).await;
    cluster.wait_leader(cold).await;
    cluster.wait_leader(synced).await;
    let written = write_much(&cluster, cold).await;
    let gate = cluster.disk(1).hold_reads("cold-0");
    let read = || {
        let broker = Arc::clone(cluster.broker(1));
        tokio::spawn(async move { fetch(&broker, cold, 0).await })
    };
    // More than there are threads for them.
    let readers: Vec<_> = (0..4 * DISK_THREADS).map(|_| read()).collect();
    eventually("every thread for reads hangs", || (gate.waiting() == DISK_THREADS).then_some(())).await;
    for n in 0..20 {
        let before = cluster.disk(1).counters();
        assert_eq!(produce_ok(cluster.broker(1), synced, &["synced"]).await, n);
        let after = cluster.disk(1).counters();
        assert!(after.data_syncs + after.all_syncs > before.data_syncs + before.all_syncs);
    }
    assert_eq!(gate.waiting(), DISK_THREADS, "all that time");
    drop(gate);
    for reader in readers {
        assert_eq!(soon("a cold read", reader).await.unwrap().error, ErrorCode::None);
    }
    assert_eq!(values(cluster.broker(1), cold, 0).await, written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_to_the_catch_up_lane_and_back_and_no_ack_from_there_counts_any_more() {
    let cluster = forgetful(1, 10 << 20).await;
    let (mut played, id) = left_behind(&cluster).await;
    let mut tail = played.follow_on(1, LaneKind::Tail).await;
    tail.open(open(id, 1, 0, -1)).await;
    assert!(matches!(tail.answer().await.answer, Answer::Opened { log_end: Offset(30), .. }));
    let sent_to = |kind| move |answer: rpc::replication::OpenAnswer| answer.answer == Answer::Moved(kind);
    let moved = tail.next("to be sent away", |frame| {
        assert_eq!(frame.data, [], "nothing that has to be read from disk");
        frame.answers.into_iter().find(|answer| answer.open_no == 1)
    });
    assert!(sent_to(LaneKind::CatchUp)(moved.await));

    let mut catch_up = played.follow_on(1, LaneKind::CatchUp).await;
    catch_up.open(open(id, 2, 0, -1)).await;
    let mut end = 0;
    let mut moved = false;
    while !moved {
        let frame = catch_up.next("records, then to be sent back", Some).await;
        for data in &frame.data {
            assert_eq!(data.prev_offset, Offset(end), "no gap");
            end += count(data);
        }
        moved = frame.answers.into_iter().any(sent_to(LaneKind::Tail));
        catch_up.ack(2, 2, end).await;
    }
    assert!(end > 20, "most of it was on disk only: {end}");
    tail.open(open(id, 3, end, 0)).await;
    tail.ack(3, 3, 30).await;
    let mut tail_end = end;
    while tail_end < 30 {
        let data = tail.next("the rest", |frame| frame.data.first().cloned()).await;
        assert_eq!((data.open_no, data.prev_offset), (3, Offset(tail_end)), "no gap");
        tail_end += count(&data);
        tail.ack(3, 3, tail_end).await;
    }
    cluster.wait_isr(id, &[1, PLAYED]).await;

    let mut waiting = Box::pin(begin_produce(cluster.broker(1), id, Acks::All, batch(&["new"])));
    tail.next("the new one", |frame| frame.data.first().cloned()).await;
    // Of the session that has moved: whatever it says.
    catch_up.ack(2, 2, 31).await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "an ack of an old session counted");
    tail.ack(3, 3, 31).await;
    assert_eq!(soon("the acknowledgement", waiting).await.error, ErrorCode::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_knows_of_no_lanes_gets_everything_on_its_one_stream() {
    let cluster = forgetful(1, 10 << 20).await;
    let (mut played, id) = left_behind(&cluster).await;
    let mut stream = played.follow_on(1, LaneKind::Mixed).await;
    stream.open(open(id, 1, 0, -1)).await;
    let mut end = 0;
    while end < 30 {
        let frame = stream.next("records", Some).await;
        assert!(frame.answers.iter().all(|answer| matches!(answer.answer, Answer::Opened { .. })));
        end += frame.data.iter().map(count).sum::<i64>();
        stream.ack(1, 1, end).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_that_move_during_a_cold_read_are_told_after_it() {
    // R60: the frame that is being read has the ones from before, and nothing comes after it.
    let cluster = forgetful(1, 10 << 20).await;
    let (mut played, id) = left_behind(&cluster).await;
    let gate = cluster.disk(1).hold_reads("t-0/");
    let mut stream = played.follow_on(1, LaneKind::Mixed).await;
    stream.open(open(id, 1, 10, 0)).await;
    eventually("the cold read hangs", || (gate.waiting() == 1).then_some(())).await;
    // The played one does not say that its log starts there, too: that is not waited for.
    let deleted = soon("the deletion", cluster.broker(1).delete_records(vec![(id, Offset(5))], 1)).await;
    assert_eq!((deleted.len(), gate.waiting()), (1, 1));
    drop(gate);
    let mut end = 10;
    let told = stream.next("the log start", |frame| {
        for data in &frame.data {
            assert_eq!(data.log_start, Offset(0), "it was read before");
            end += count(data);
        }
        frame.progress.iter().map(|progress| progress.log_start).next_back()
    });
    assert_eq!(told.await, Offset(5));
    assert_eq!(end, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_has_no_more_under_way_than_its_window_but_for_one_larger_batch() {
    const WINDOW: u64 = 45_000;
    const SIZES: [usize; 6] = [10_000, 10_000, 30_000, 100_000, 10_000, 10_000];
    for kind in [LaneKind::Tail, LaneKind::CatchUp] {
        let mut cluster = forgetful(1, WINDOW).await;
        let mut played = Played::start(&cluster).await;
        let mut ids = Vec::new();
        for name in ["a", "b", "c"] {
            let id = cluster.topic(name, &[1, PLAYED], &[]).await;
            cluster.wait_leader(id).await;
            ids.push(id);
        }
        played.leave();
        for id in &ids {
            cluster.wait_isr(*id, &[1]).await;
        }
        if kind == LaneKind::CatchUp {
            // Nothing is kept in memory, so nobody is sent back.
            cluster.tail_bytes = 0;
        } else {
            cluster.tail_bytes = 16 << 20;
        }
        cluster.shut_down(1).await;
        cluster.start_broker(1).await;
        for id in &ids {
            cluster.wait_leader(*id).await;
            for size in SIZES {
                produce(cluster.broker(1), *id, Acks::Leader, batch(&[&"z".repeat(size)])).await;
            }
        }
        let epoch = cluster.controller.image().partition(ids[0]).unwrap().leader_epoch;
        let mut stream = played.follow_on(1, kind).await;
        let numbered = (1..).zip(&ids);
        for (number, id) in numbered {
            stream.open(rpc::replication::Open { leader_epoch: epoch, ..open(*id, number, 0, -1) }).await;
        }
        let mut ends = BTreeMap::from([(1, 0), (2, 0), (3, 0)]);
        let mut under_way: Vec<u64> = Vec::new();
        let next = |end: &i64| SIZES.get(usize::try_from(*end).unwrap()).map(|size| u64::try_from(size + 100).unwrap());
        while ends.values().any(|end| next(end).is_some()) {
            let frame = stream.next("records", Some).await;
            for data in &frame.data {
                assert_eq!(data.prev_offset, Offset(ends[&data.open_no]), "no gap");
                *ends.get_mut(&data.open_no).unwrap() += count(data);
                under_way.extend(data.batches.iter().flat_map(sizes));
            }
            let bytes: u64 = under_way.iter().sum();
            assert!(bytes <= WINDOW || under_way.len() == 1, "{kind:?}: {under_way:?}");
            // One that does not fit holds up the others, so that its turn comes.
            if ends.values().filter_map(next).any(|size| bytes + size > WINDOW) {
                under_way.clear();
                for (number, end) in &ends {
                    stream.ack(*number, *number, *end).await;
                }
            }
        }
    }
}

fn count(data: &Data) -> i64 {
    data.batches.iter().map(|chunk| i64::try_from(sizes(chunk).len()).unwrap()).sum()
}

/// The size of each batch of a chunk.
fn sizes(chunk: &bytes::Bytes) -> Vec<u64> {
    let batches = RecordBatch::split_all(chunk.clone()).unwrap();
    batches.iter().map(|batch| u64::try_from(batch.bytes().len()).unwrap()).collect()
}
