//! Groups through a broker's shards.

use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::Ordering;

use broker::api::{BrokerApi, CoordinatorKind};
use bytes::Bytes;
use coordinator::request::{
    JoinGroupRequest, JoinProtocol, MemberAssignment, OffsetCommitRequest, OffsetFetchRequest, OffsetToCommit,
    SyncGroupRequest, TopicOffsetsToCommit,
};
use coordinator::{GroupRequest, GroupResponse};
use metadata::control::ControlRequest;
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};
use storage::disk::{Crash, Disk, OpenMode, read_exact_at, write_all_at};

use crate::cluster::*;

/// Asks again while the coordinator is on its way.
pub(crate) async fn ask(cluster: &Cluster, request: &GroupRequest) -> GroupResponse {
    let asked = async {
        loop {
            for broker in cluster.brokers.values() {
                match broker.find_coordinator(CoordinatorKind::Group, "g").await {
                    Ok(id) if cluster.brokers.contains_key(&id.0) => {
                        if let Ok(answer) = cluster.broker(id.0).group(request.clone()).await {
                            return answer;
                        }
                    }
                    _ => {}
                }
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the coordinator", asked).await
}

fn join(member_id: &str) -> GroupRequest {
    GroupRequest::JoinGroup(JoinGroupRequest {
        group_id: "g".to_owned(),
        member_id: member_id.to_owned(),
        group_instance_id: None,
        client_id: "c".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 30_000,
        rebalance_timeout_ms: 30_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![JoinProtocol { name: "range".to_owned(), metadata: Bytes::from_static(b"m") }],
        require_known_member_id: false,
        supports_skip_assignment: false,
        reason: None,
    })
}

fn commit(generation_id: i32, member_id: &str, offset: i64) -> GroupRequest {
    GroupRequest::OffsetCommit(commit_request(generation_id, member_id, offset))
}

pub(crate) fn commit_request(generation_id: i32, member_id: &str, offset: i64) -> OffsetCommitRequest {
    OffsetCommitRequest {
        group_id: "g".to_owned(),
        generation_id,
        member_id: member_id.to_owned(),
        group_instance_id: None,
        retention_time_ms: -1,
        topics: vec![TopicOffsetsToCommit {
            name: "t".to_owned(),
            topic_id: TopicId::NONE,
            partitions: vec![OffsetToCommit {
                partition: PartitionIndex(0),
                offset: Offset(offset),
                leader_epoch: LeaderEpoch::NONE,
                metadata: String::new(),
            }],
        }],
        supports_member_epochs: true,
    }
}

async fn committed(cluster: &Cluster) -> Offset {
    let fetch = OffsetFetchRequest {
        group_id: "g".to_owned(),
        member_id: None,
        member_epoch: -1,
        topics: None,
        require_stable: true,
    };
    let GroupResponse::OffsetFetch(fetched) = ask(cluster, &GroupRequest::OffsetFetch(fetch)).await else {
        panic!("another answer")
    };
    assert_eq!(fetched.error, ErrorCode::None);
    fetched.topics[0].partitions[0].offset
}

#[tokio::test]
async fn a_coordinator_that_may_have_a_successor_tells_no_stable_offset() {
    // R49, R76: the next one may have acknowledged another offset by then.
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(-1, "", 2)).await else { panic!("another answer") };
    assert_eq!(answer.topics[0].partitions[0].1, ErrorCode::None);
    assert_eq!(committed(&cluster).await, Offset(2));
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
    let fetch = |require_stable| {
        let (group_id, member_id, topics) = ("g".to_owned(), None, None);
        let request = OffsetFetchRequest { group_id, member_id, member_epoch: -1, topics, require_stable };
        cluster.broker(coordinator.0).group(GroupRequest::OffsetFetch(request))
    };
    // It heard of the controller a moment ago, and does not now.
    cluster.controller.refuses.store(true, Ordering::Relaxed);
    assert_eq!(fetch(true).await.err(), Some(ErrorCode::CoordinatorLoadInProgress));
    assert!(fetch(false).await.is_ok(), "who does not ask for more is told what there is");
    cluster.controller.refuses.store(false, Ordering::Relaxed);
    // It hears of the controller, but not yet of what was decided.
    cluster.controller.hold_metadata(true);
    let epoch = cluster.controller.image().broker_epoch(coordinator);
    cluster.controller.ask(&ControlRequest::AllocateProducerIds { broker: coordinator, epoch });
    assert_eq!(fetch(true).await.err(), Some(ErrorCode::CoordinatorLoadInProgress));
    cluster.controller.hold_metadata(false);
    assert_eq!(committed(&cluster).await, Offset(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_group_is_behind_shows_at_its_coordinator() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a", "b", "c", "d", "e"]).await;
    let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(-1, "", 2)).await else { panic!("another answer") };
    assert_eq!(answer.topics[0].partitions[0].1, ErrorCode::None);
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
    for broker in [1, 2] {
        let mut lags = cluster.broker(broker).group_lags().await;
        let late: Vec<_> = lags.lags.iter_mut().map(|row| row.lag_ms.take()).collect();
        assert!(late.iter().all(|late| late.is_some_and(|ms| ms < 60_000)), "{late:?}");
        // Wherever the coordinator is: the leader is asked.
        let here = broker::GroupLag {
            group: "g".to_owned(),
            topic: "t".to_owned(),
            partition: id,
            committed: 2,
            lag: Some(3),
            lag_ms: None,
        };
        let expected = if coordinator.0 == broker { vec![here] } else { Vec::new() };
        assert_eq!((lags.lags, lags.left_out), (expected, 0), "broker {broker}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_keeps_its_offsets_and_members_when_its_coordinator_moves() {
    let mut cluster = Cluster::start(3, 1).await;
    let GroupResponse::JoinGroup(joined) = ask(&cluster, &join("")).await else { panic!("another answer") };
    assert_eq!((joined.error, joined.generation_id), (ErrorCode::None, 1));
    let member = joined.member_id.clone();
    let sync = SyncGroupRequest {
        group_id: "g".to_owned(),
        generation_id: 1,
        member_id: member.clone(),
        group_instance_id: None,
        protocol_type: None,
        protocol_name: None,
        assignments: vec![MemberAssignment { member_id: member.clone(), assignment: Bytes::from_static(b"all") }],
    };
    let GroupResponse::SyncGroup(synced) = ask(&cluster, &GroupRequest::SyncGroup(sync)).await else {
        panic!("another answer")
    };
    assert_eq!((synced.error, &synced.assignment[..]), (ErrorCode::None, &b"all"[..]));
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
    let watched = cluster.broker(coordinator.0).group_lags().await;
    assert_eq!(watched.states.into_iter().collect::<Vec<_>>(), [(("classic", "Stable"), 1)]);
    assert_eq!((watched.rebalances.classic, watched.rebalances.consumer), (1, 0));
    for offset in [5, 7] {
        let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(1, &member, offset)).await else {
            panic!("another answer")
        };
        assert_eq!(answer.topics[0].partitions[0].1, ErrorCode::None);
    }
    assert_eq!(committed(&cluster).await, Offset(7));
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
    cluster.kill_and_fence(coordinator.0, Crash::KeepAll).await;
    assert_eq!(committed(&cluster).await, Offset(7));
    let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(1, &member, 9)).await else {
        panic!("another answer")
    };
    assert_eq!(answer.topics[0].partitions[0].1, ErrorCode::None, "the member and its generation are known");
    assert_eq!(committed(&cluster).await, Offset(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_could_not_be_read_once_is_loaded_all_the_same() {
    let mut cluster = Cluster::start(0, 1).await;
    cluster.tail_bytes = 0;
    for id in [1, 2] {
        cluster.start_broker(id).await;
    }
    let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(-1, "", 5)).await else { panic!("another answer") };
    assert_eq!(answer.topics[0].partitions[0].1, ErrorCode::None);
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap().0;
    let image = cluster.controller.image();
    let topic_id = image.topic_id("__consumer_offsets").unwrap();
    let id = TopicPartition { topic_id, partition: coordinator::partition_for("g", 2) };
    cluster.wait_isr(id, &[1, 2]).await;
    let next = 3 - coordinator;
    let folder = format!("__consumer_offsets-{}/", id.partition);
    let log = format!("/data/{folder}00000000000000000000.log");
    let log = cluster.disk(next).open(Path::new(&log), OpenMode::Existing).unwrap();
    // A byte of the record, behind the header of its batch.
    let (position, mut byte) = (80, [0]);
    read_exact_at(&*log, &mut byte, position).unwrap();
    let gate = cluster.disk(next).hold_reads(&folder);
    cluster.kill_and_fence(coordinator, Crash::KeepAll).await;
    eventually("the log is read before it is served", || (gate.waiting() > 0).then_some(())).await;
    write_all_at(&*log, &mut [IoSlice::new(&[!byte[0]])], position).unwrap();
    drop(gate);
    let loads = async {
        while cluster.broker(next).group(commit(-1, "", 6)).await.err() != Some(ErrorCode::CoordinatorLoadInProgress) {
            tokio::task::yield_now().await;
        }
    };
    soon("the next coordinator to load", loads).await;
    let reads = cluster.disk(next).counters().reads;
    eventually("it tries", || (cluster.disk(next).counters().reads > reads + 2).then_some(())).await;
    write_all_at(&*log, &mut [IoSlice::new(&byte)], position).unwrap();
    assert_eq!(committed(&cluster).await, Offset(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_refused_where_little_of_the_reserve_is_left_and_taken_again_with_space() {
    let cluster = Cluster::start(2, 1).await;
    let commits = async |offset| {
        let GroupResponse::OffsetCommit(answer) = ask(&cluster, &commit(-1, "", offset)).await else {
            panic!("another")
        };
        answer.topics[0].partitions[0].1
    };
    // Both of them, and how much their disks have.
    let leave = |bytes| [1, 2].into_iter().for_each(|id| cluster.disk(id).leave_space(bytes));
    let spaces = || [1, 2].map(|id| cluster.broker(id).metrics().directories[0].space);
    let reserve = RESERVE.unsigned_abs();
    assert_eq!(commits(1).await, ErrorCode::None);
    leave(reserve - 1);
    eventually("they are full", || spaces().iter().all(|space| space.full).then_some(())).await;
    assert_eq!(commits(2).await, ErrorCode::None, "the reserve is for them");
    leave(reserve / 4 - 1);
    eventually("they are exhausted", || spaces().iter().all(|space| space.exhausted).then_some(())).await;
    let refusal = async |id| {
        let refused = match cluster.broker(id).group(commit(-1, "", 3)).await {
            Ok(GroupResponse::OffsetCommit(answer)) => answer.topics[0].partitions[0].1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => error,
        };
        // The one that was exhausted first may have handed its partition over, which is read there then.
        (refused != ErrorCode::CoordinatorLoadInProgress).then_some(refused)
    };
    for id in [1, 2, 1, 2] {
        let refused = soon("an answer", async {
            loop {
                if let Some(refused) = refusal(id).await {
                    return refused;
                }
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(refused.await, ErrorCode::NotCoordinator, "clients ask again");
    }
    assert_eq!(committed(&cluster).await, Offset(2), "what is there is served");
    leave(10 * reserve);
    eventually("there is space", || spaces().iter().all(|space| !space.full).then_some(())).await;
    assert_eq!(commits(4).await, ErrorCode::None);
    assert_eq!(committed(&cluster).await, Offset(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_with_little_of_its_reserve_left_hands_internal_topics_over_too() {
    let cluster = Cluster::start(3, 2).await;
    let id = cluster.topic("__consumer_offsets", &[1, 2, 3], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.disk(1).leave_space(RESERVE.unsigned_abs() / 4 - 1);
    eventually("another leads", || cluster.led_by_another_than(id, 1)).await;
    cluster.wait_isr(id, &[2, 3]).await;
    cluster.disk(1).leave_space(10 * RESERVE.unsigned_abs());
    cluster.wait_isr(id, &[1, 2, 3]).await;
}
