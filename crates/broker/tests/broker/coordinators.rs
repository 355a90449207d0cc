//! Transactions through their coordinators: from the first partition to the markers, over several brokers, and over
//! coordinators and leaders that die.

use std::sync::atomic::Ordering;
use std::time::Duration;

use broker::api::{BrokerApi, CoordinatorKind, FetchRequest, Isolation, TransactionSupport};
use coordinator::request::{OffsetFetchRequest, TopicPartitions, TxnOffsetCommitRequest};
use coordinator::transaction::request::{
    AddPartitionsRequest, DescribeTransactionRequest, EndTransactionRequest, InitProducerIdRequest,
    ListTransactionsRequest, Producer,
};
use coordinator::transaction::{TransactionRequest, TransactionResponse};
use coordinator::{GroupRequest, GroupResponse};
use model::{ErrorCode, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TopicPartition};
use storage::disk::Crash;

use crate::cluster::*;
use crate::groups;
use crate::transactions::{begin, in_transaction};

const ID: &str = "id";
const STATE_TOPIC: &str = "__transaction_state";

/// Asks the coordinator wherever it is, again while it is on its way or busy with the transaction before.
async fn ask(cluster: &Cluster, request: TransactionRequest) -> TransactionResponse {
    let asked = async {
        loop {
            for broker in cluster.brokers.values() {
                let Ok(id) = broker.find_coordinator(CoordinatorKind::Transaction, ID).await else { continue };
                let Some(coordinator) = cluster.brokers.get(&id.0) else { continue };
                match coordinator.transaction(request.clone()).await {
                    Ok(answer) if !is_busy(&answer) => return answer,
                    _ => {}
                }
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the coordinator", asked).await
}

fn is_busy(answer: &TransactionResponse) -> bool {
    let error = match answer {
        TransactionResponse::InitProducerId(r) => r.error,
        TransactionResponse::AddPartitions(r) => r.partitions[0].2,
        TransactionResponse::EndTransaction(r) => r.error,
        TransactionResponse::Describe(_) | TransactionResponse::List(_) => ErrorCode::None,
    };
    let later = [
        ErrorCode::ConcurrentTransactions,
        ErrorCode::CoordinatorNotAvailable,
        ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::NotCoordinator,
    ];
    later.contains(&error)
}

async fn init(cluster: &Cluster) -> Producer {
    let request = InitProducerIdRequest { transactional_id: ID.to_owned(), timeout_ms: 60_000, expected: None };
    match ask(cluster, TransactionRequest::InitProducerId(request)).await {
        TransactionResponse::InitProducerId(answer) if answer.error.is_none() => answer.producer,
        other => panic!("{other:?}"),
    }
}

async fn end(cluster: &Cluster, producer: Producer, commit: bool) -> Result<Producer, ErrorCode> {
    let request = EndTransactionRequest { transactional_id: ID.to_owned(), producer, commit, client_version: 2 };
    match ask(cluster, TransactionRequest::EndTransaction(request)).await {
        TransactionResponse::EndTransaction(answer) if answer.error.is_none() => Ok(answer.producer),
        TransactionResponse::EndTransaction(answer) => Err(answer.error),
        other => panic!("{other:?}"),
    }
}

async fn state(cluster: &Cluster) -> &'static str {
    let request = DescribeTransactionRequest { transactional_id: ID.to_owned() };
    match ask(cluster, TransactionRequest::Describe(request)).await {
        TransactionResponse::Describe(answer) => answer.state,
        other => panic!("{other:?}"),
    }
}

async fn wait_state(cluster: &Cluster, wanted: &str) {
    let reached = async {
        while state(cluster).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    soon(wanted, reached).await;
}

/// One record, until the partition's leader takes it.
async fn write(cluster: &Cluster, id: TopicPartition, value: &str, producer: Producer, sequence: i32) {
    let written = async {
        loop {
            let leader = cluster.wait_leader(id).await;
            let records = in_transaction(value, (producer.id.0, producer.epoch.0, sequence));
            let broker = cluster.broker(leader);
            let produced = begin(broker, id, Some(ID), TransactionSupport::Implicit, records).await;
            match produced.error {
                ErrorCode::None => return,
                ErrorCode::NotEnoughReplicas
                | ErrorCode::ConcurrentTransactions
                | ErrorCode::NotLeaderOrFollower
                | ErrorCode::UnknownTopicOrPartition => {}
                other => panic!("{other} to a record"),
            }
        }
    };
    soon("a record", written).await;
}

/// What a consumer of committed records sees, up to the last stable offset, with how many aborted transactions it is told
/// of.
async fn committed(cluster: &Cluster, id: TopicPartition) -> (i64, usize) {
    let leader = cluster.wait_leader(id).await;
    let request = FetchRequest { isolation: Isolation::ReadCommitted, max_wait_ms: 0, ..fetch_request(id, 0) };
    let fetched = soon("a fetch", cluster.broker(leader).fetch(request)).await.partitions.remove(0);
    assert_eq!(fetched.error, ErrorCode::None);
    (fetched.last_stable_offset.0, fetched.aborted.map_or(0, |aborted| aborted.len()))
}

async fn wait_committed(cluster: &Cluster, id: TopicPartition, wanted: (i64, usize)) {
    let reached = async {
        while committed(cluster, id).await != wanted {
            tokio::task::yield_now().await;
        }
    };
    soon("the last stable offset", reached).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_over_several_brokers_becomes_true_everywhere() {
    let cluster = Cluster::start(2, 1).await;
    let near = cluster.topic("near", &[1], &[]).await;
    let far = cluster.topic("far", &[2], &[]).await;
    let mut producer = init(&cluster).await;
    assert_eq!(state(&cluster).await, "Empty");
    for (round, commit) in [(0, true), (1, false), (2, true)] {
        write(&cluster, near, "a", producer, 0).await;
        write(&cluster, far, "b", producer, 0).await;
        write(&cluster, far, "c", producer, 1).await;
        assert_eq!(state(&cluster).await, "Ongoing");
        let aborted = usize::from(round == 2);
        wait_committed(&cluster, near, (2 * round, aborted)).await;
        let next = end(&cluster, producer, commit).await.unwrap();
        assert_eq!(next, Producer { epoch: ProducerEpoch(producer.epoch.0 + 1), ..producer });
        wait_state(&cluster, if commit { "CompleteCommit" } else { "CompleteAbort" }).await;
        assert_eq!(end(&cluster, producer, commit).await, Ok(next), "asked again");
        assert_eq!(end(&cluster, producer, !commit).await, Err(ErrorCode::InvalidTxnState));
        let aborted = usize::from(round >= 1);
        wait_committed(&cluster, near, (2 * round + 2, aborted)).await;
        wait_committed(&cluster, far, (3 * round + 3, aborted)).await;
        producer = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_is_made_as_kafka_makes_it() {
    let cluster = Cluster::start(2, 1).await;
    init(&cluster).await;
    let image = cluster.broker(1).image();
    let topic = image.topic_by_name(STATE_TOPIC).unwrap();
    assert_eq!(topic.partitions.len(), 2);
    let config = |name: &str| image.topic_config(STATE_TOPIC, name, model::BrokerId(1)).unwrap();
    assert_eq!((config("cleanup.policy"), config("min.insync.replicas")), ("compact", "1"));
    assert_eq!(config("compression.type"), "uncompressed");
    assert_eq!(config("unclean.leader.election.enable"), "false");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_empty_id_is_refused_as_such_by_every_broker() {
    let cluster = Cluster::start(2, 1).await;
    init(&cluster).await;
    let describe = || TransactionRequest::Describe(DescribeTransactionRequest { transactional_id: String::new() });
    for broker in cluster.brokers.values() {
        assert_eq!(broker.transaction(describe()).await.unwrap_err(), ErrorCode::InvalidRequest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_coordinator_ends_what_the_one_before_decided() {
    let mut cluster = Cluster::start(3, 1).await;
    let producer = init(&cluster).await;
    let image = cluster.broker(1).image();
    let topic = image.topic_by_name(STATE_TOPIC).unwrap();
    let index = coordinator::partition_for(ID, 2);
    let replicas = topic.partition(index).unwrap().replicas.clone();
    let coordinator = cluster.wait_leader(TopicPartition { topic_id: topic.id, partition: index }).await;
    let stays = replicas.iter().find(|id| id.0 != coordinator).unwrap().0;
    // A partition whose only replica is away: its marker cannot be written yet.
    let away = *[1, 2, 3].iter().find(|id| !replicas.contains(&model::BrokerId(**id))).unwrap();
    let id = cluster.topic("t", &[away], &[]).await;
    write(&cluster, id, "a", producer, 0).await;
    cluster.kill_and_fence(away, Crash::KeepAll).await;
    let next = end(&cluster, producer, true).await.unwrap();
    assert_eq!(state(&cluster).await, "PrepareCommit");
    cluster.kill_and_fence(coordinator, Crash::KeepAll).await;
    wait_state_on(&cluster, stays, "PrepareCommit").await;
    cluster.start_broker(away).await;
    wait_state(&cluster, "CompleteCommit").await;
    wait_committed(&cluster, id, (2, 0)).await;
    assert_eq!(end(&cluster, producer, true).await, Ok(next), "R51: known by its epoch, by the next coordinator too");
}

/// The coordinator has moved to this broker and has loaded.
async fn wait_state_on(cluster: &Cluster, broker: i32, wanted: &str) {
    let moved = async {
        while !matches!(cluster.broker(broker).find_coordinator(CoordinatorKind::Transaction, ID).await, Ok(id) if id.0 == broker)
        {
            tokio::task::yield_now().await;
        }
    };
    soon("the coordinator's move", moved).await;
    wait_state(cluster, wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_waits_for_nothing_where_its_topic_is_gone() {
    let cluster = Cluster::start(2, 1).await;
    let kept = cluster.topic("kept", &[1], &[]).await;
    let gone = cluster.topic("gone", &[1], &[]).await;
    let producer = init(&cluster).await;
    write(&cluster, kept, "a", producer, 0).await;
    write(&cluster, gone, "a", producer, 0).await;
    let delete = metadata::ControlRequest::DeleteTopics(metadata::control::DeleteTopics {
        topics: vec![metadata::control::TopicRef::Name("gone".to_owned())],
    });
    cluster.controller.ask(&delete);
    end(&cluster, producer, true).await.unwrap();
    wait_state(&cluster, "CompleteCommit").await;
    wait_committed(&cluster, kept, (2, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_producer_ends_the_firsts_transaction() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    let first = init(&cluster).await;
    write(&cluster, id, "a", first, 0).await;
    let second = init(&cluster).await;
    assert_eq!((second.id, second.epoch.0 > first.epoch.0), (first.id, true));
    wait_committed(&cluster, id, (2, 1)).await;
    let leader = cluster.wait_leader(id).await;
    let late = in_transaction("b", (first.id.0, first.epoch.0, 1));
    let refused = begin(cluster.broker(leader), id, Some(ID), TransactionSupport::Implicit, late).await;
    assert_eq!(refused.error, ErrorCode::InvalidProducerEpoch);
    assert_eq!(end(&cluster, first, true).await, Err(ErrorCode::ProducerFenced));
    write(&cluster, id, "c", second, 0).await;
    end(&cluster, second, true).await.unwrap();
    wait_committed(&cluster, id, (4, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_adds_is_asked_for_by_the_partition() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    let producer = init(&cluster).await;
    let leader = cluster.wait_leader(id).await;
    let records = || in_transaction("a", (producer.id.0, producer.epoch.0, 0));
    let alone = begin(cluster.broker(leader), id, Some(ID), TransactionSupport::KnowsAbortable, records()).await;
    assert_eq!(alone.error, ErrorCode::TransactionAbortable, "R50: nobody added the partition");
    let add = AddPartitionsRequest {
        transactional_id: ID.to_owned(),
        producer,
        partitions: [("t", PartitionIndex(0))].into_iter().collect(),
        verify_only: false,
        client_version: 0,
    };
    match ask(&cluster, TransactionRequest::AddPartitions(add)).await {
        TransactionResponse::AddPartitions(answer) => assert_eq!(answer.partitions[0].2, ErrorCode::None),
        other => panic!("{other:?}"),
    }
    let added = begin(cluster.broker(leader), id, Some(ID), TransactionSupport::AddsPartitions, records()).await;
    assert_eq!(added.error, ErrorCode::None);
    let all = ListTransactionsRequest { open_longer_than_ms: -1, ..ListTransactionsRequest::default() };
    match ask(&cluster, TransactionRequest::List(all)).await {
        TransactionResponse::List(answer) => {
            let listed = answer.transactions.iter().map(|t| (t.transactional_id.as_str(), t.producer_id, t.state));
            assert_eq!(listed.collect::<Vec<_>>(), [(ID, ProducerId(producer.id.0), "Ongoing")]);
        }
        other => panic!("{other:?}"),
    }
}

/// Commits an offset in a transaction at the group's coordinator, wherever that is, again while it or the transaction's is on
/// its way.
async fn commit_offset(
    cluster: &Cluster,
    producer: Producer,
    transactions: TransactionSupport,
    (generation, member): (i32, &str),
    offset: i64,
) -> ErrorCode {
    let request =
        TxnOffsetCommitRequest { producer, guard: None, commit: groups::commit_request(generation, member, offset) };
    let later = [
        ErrorCode::CoordinatorNotAvailable,
        ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::NotCoordinator,
        ErrorCode::ConcurrentTransactions,
    ];
    let asked = async {
        loop {
            for broker in cluster.brokers.values() {
                let Ok(id) = broker.find_coordinator(CoordinatorKind::Group, "g").await else { continue };
                let Some(coordinator) = cluster.brokers.get(&id.0) else { continue };
                let asked = coordinator.commit_in_transaction(ID.to_owned(), transactions, request.clone());
                let error = asked.await.map_or_else(|error| error, |answer| answer.topics[0].partitions[0].1);
                if !later.contains(&error) {
                    return error;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the group's coordinator", asked).await
}

/// The group's offset, as somebody is told who needs a stable one, or not.
async fn offset(cluster: &Cluster, require_stable: bool) -> Result<i64, ErrorCode> {
    let topic = TopicPartitions { name: "t".into(), topic_id: TopicId::NONE, partitions: vec![PartitionIndex(0)] };
    let fetch = OffsetFetchRequest {
        group_id: "g".to_owned(),
        member_id: None,
        member_epoch: -1,
        topics: Some(vec![topic]),
        require_stable,
    };
    match groups::ask(cluster, &GroupRequest::OffsetFetch(fetch)).await {
        GroupResponse::OffsetFetch(answer) if answer.error.is_none() => {
            let found = &answer.topics[0].partitions[0];
            if found.error.is_none() { Ok(found.offset.0) } else { Err(found.error) }
        }
        other => panic!("{other:?}"),
    }
}

async fn wait_stable(cluster: &Cluster, wanted: i64) {
    let reached = async {
        while offset(cluster, true).await != Ok(wanted) {
            tokio::task::yield_now().await;
        }
    };
    soon("a stable offset", reached).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_become_true_with_their_transaction_also_where_the_coordinator_dies_in_between() {
    let mut cluster = Cluster::start(3, 1).await;
    let (id, unstable) = (cluster.topic("t", &[1, 2, 3], &[]).await, Err(ErrorCode::UnstableOffsetCommit));
    let mut producer = init(&cluster).await;
    for (round, commit) in [(0, true), (1, false), (2, true)] {
        let before = [-1, 10, 10][round];
        write(&cluster, id, "a", producer, 0).await;
        let next = 10 * (i64::try_from(round).unwrap() + 1);
        for offset in [next - 1, next] {
            let committed = commit_offset(&cluster, producer, TransactionSupport::Implicit, (-1, ""), offset).await;
            assert_eq!(committed, ErrorCode::None);
        }
        assert_eq!((offset(&cluster, false).await, offset(&cluster, true).await), (Ok(before), unstable));
        if round == 1 {
            let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
            cluster.kill_and_fence(coordinator.0, Crash::KeepAll).await;
            assert_eq!((offset(&cluster, false).await, offset(&cluster, true).await), (Ok(before), unstable));
            cluster.start_broker(coordinator.0).await;
        }
        producer = end(&cluster, producer, commit).await.unwrap();
        wait_stable(&cluster, if commit { next } else { before }).await;
    }
    let image = cluster.broker(1).image();
    let group = TopicPartition {
        topic_id: image.topic_id("__consumer_offsets").unwrap(),
        partition: cluster.broker(1).group_partition("g").unwrap().partition,
    };
    let leader = cluster.wait_leader(group).await;
    let described = cluster.broker(leader).describe_producers(group).producers;
    assert_eq!(described.len(), 1, "{described:?}");
    assert_eq!((described[0].producer_id, described[0].transaction_start.0), (producer.id, -1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_committed_in_no_transaction_but_an_open_one_of_its_present_producer() {
    use TransactionSupport::{AddsPartitions, Implicit, KnowsAbortable};
    let cluster = Cluster::start(2, 1).await;
    let first = init(&cluster).await;
    // R50: nobody has added the group's partition.
    let alone = commit_offset(&cluster, first, KnowsAbortable, (-1, ""), 5).await;
    assert_eq!(alone, ErrorCode::TransactionAbortable);
    assert_eq!(commit_offset(&cluster, first, AddsPartitions, (-1, ""), 5).await, ErrorCode::InvalidTxnState);
    let group = cluster.broker(1).group_partition("g").unwrap().partition;
    let add = AddPartitionsRequest {
        transactional_id: ID.to_owned(),
        producer: first,
        partitions: [("__consumer_offsets", group)].into_iter().collect(),
        verify_only: false,
        client_version: 0,
    };
    ask(&cluster, TransactionRequest::AddPartitions(add)).await;
    assert_eq!(commit_offset(&cluster, first, AddsPartitions, (-1, ""), 5).await, ErrorCode::None);
    // KIP-447: the member is none, whatever the producer may.
    assert_eq!(commit_offset(&cluster, first, Implicit, (3, "m"), 6).await, ErrorCode::UnknownMemberId);
    let second = init(&cluster).await;
    wait_stable(&cluster, -1).await;
    assert_eq!(commit_offset(&cluster, first, Implicit, (-1, ""), 7).await, ErrorCode::InvalidProducerEpoch);
    assert_eq!(commit_offset(&cluster, second, Implicit, (-1, ""), 8).await, ErrorCode::None);
    end(&cluster, second, true).await.unwrap();
    wait_stable(&cluster, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_cut_off_does_not_say_that_no_transaction_is_open() {
    // R76: the next one may have begun it by then, and producers end where they are told so
    let cluster = Cluster::start(2, 1).await;
    let producer = init(&cluster).await;
    let refused = commit_offset(&cluster, producer, TransactionSupport::KnowsAbortable, (-1, ""), 5).await;
    assert_eq!(refused, ErrorCode::TransactionAbortable);
    let request = TxnOffsetCommitRequest { producer, guard: None, commit: groups::commit_request(-1, "", 5) };
    let coordinator = cluster.broker(1).find_coordinator(CoordinatorKind::Group, "g").await.unwrap();
    cluster.controller.refuses.store(true, Ordering::Relaxed);
    let in_doubt = async {
        loop {
            let broker = cluster.broker(coordinator.0);
            let asked =
                broker.commit_in_transaction(ID.to_owned(), TransactionSupport::KnowsAbortable, request.clone());
            match asked.await {
                Err(ErrorCode::TransactionAbortable) => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other.map(|_| ()),
            }
        }
    };
    assert_eq!(soon("another answer", in_doubt).await, Err(ErrorCode::CoordinatorNotAvailable));
    cluster.controller.refuses.store(false, Ordering::Relaxed);
    let refused = commit_offset(&cluster, producer, TransactionSupport::KnowsAbortable, (-1, ""), 5).await;
    assert_eq!(refused, ErrorCode::TransactionAbortable);
}
