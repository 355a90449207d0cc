//! Transactions as the partitions see them; the test plays the coordinator.

use std::pin::Pin;
use std::sync::Arc;

use broker::Broker;
use broker::api::{
    Acks, BrokerApi, FetchRequest, Isolation, ListOffsetsPartition, OffsetSpec, ProducePartition, ProduceRequest,
    Produced, TransactionMarker, TransactionSupport, TransactionVerifier, Verified, VerifyTransaction,
};
use broker::clock::{Clock, SystemClock};
use bytes::BytesMut;
use coordinator::request::TxnOffsetCommitRequest;
use coordinator::transaction::request::Producer;
use coordinator::{GroupRequest, GroupResponse};
use model::{
    Codec, EndMarker, ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Record, RecordBatch, RecordIter,
    TopicPartition,
};
use storage::disk::Crash;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::*;
use crate::groups::{ask, commit_request};

/// A question to the coordinator, and where its answer goes.
type Question = (VerifyTransaction, oneshot::Sender<Vec<ErrorCode>>);

/// Passes questions on to the test.
#[derive(Debug)]
struct Asked(mpsc::UnboundedSender<Question>);

impl TransactionVerifier for Asked {
    fn verify(&self, request: VerifyTransaction) -> Verified {
        let (answer, answered) = oneshot::channel();
        self.0.send((request, answer)).unwrap();
        Box::pin(async move { answered.await.unwrap_or_default() })
    }
}

/// Knows of every transaction.
#[derive(Debug)]
pub(crate) struct Agrees;

impl TransactionVerifier for Agrees {
    fn verify(&self, request: VerifyTransaction) -> Verified {
        Box::pin(std::future::ready(vec![ErrorCode::None; request.partitions.len()]))
    }
}

async fn asking(brokers: i32) -> (Cluster, mpsc::UnboundedReceiver<Question>) {
    let (questions, asked) = mpsc::unbounded_channel();
    (Cluster::with_verifier(brokers, 1, Some(Arc::new(Asked(questions)))).await, asked)
}

const PRODUCER: i64 = 7;

/// One record in the transaction of a producer: id, epoch, sequence.
pub(crate) fn in_transaction(value: &str, (id, epoch, sequence): (i64, i16, i32)) -> BytesMut {
    let record = Record { value: Some(value.to_owned().into()), ..Record::default() };
    let producer = (ProducerId(id), ProducerEpoch(epoch), sequence);
    let now = i64::try_from(SystemClock::new().wall().0).unwrap();
    model::encode_transactional_batch(&model::encode_records(&[record]), 1, now, producer)
}

pub(crate) fn transactional(value: &str, epoch: i16, sequence: i32) -> BytesMut {
    in_transaction(value, (PRODUCER, epoch, sequence))
}

pub(crate) fn begin(
    broker: &Broker,
    id: TopicPartition,
    transactional_id: Option<&str>,
    transactions: TransactionSupport,
    records: BytesMut,
) -> Pin<Box<dyn Future<Output = Produced> + Send>> {
    let answer = broker.produce(ProduceRequest {
        acks: Acks::All,
        transactional_id: transactional_id.map(str::to_owned),
        transactions,
        timeout_ms: 25_000,
        partitions: vec![ProducePartition { partition: id, records }],
    });
    Box::pin(async move { soon("a produce", answer).await.remove(0) })
}

pub(crate) async fn write(broker: &Broker, id: TopicPartition, records: BytesMut) -> (ErrorCode, i64) {
    let produced = begin(broker, id, Some("t"), TransactionSupport::Implicit, records).await;
    (produced.error, produced.base_offset.0)
}

pub(crate) fn marker(epoch: i16, coordinator_epoch: i32, commit: bool) -> TransactionMarker {
    TransactionMarker {
        producer_id: ProducerId(PRODUCER),
        producer_epoch: ProducerEpoch(epoch),
        coordinator_epoch,
        transaction_version: 2,
        commit,
    }
}

pub(crate) async fn end(broker: &Broker, id: TopicPartition, marker: TransactionMarker) -> ErrorCode {
    let written = soon("a marker", broker.write_txn_markers(vec![(marker, vec![id])], 25_000)).await;
    written[0][0].1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transactional_batch_needs_a_transactional_id_and_a_coordinator() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let nobody = begin(cluster.broker(1), id, None, TransactionSupport::Implicit, transactional("a", 0, 0)).await;
    assert_eq!(nobody.error, ErrorCode::TransactionalIdAuthorizationFailed);
    assert_eq!(write(cluster.broker(1), id, transactional("a", 0, 0)).await, (ErrorCode::NotEnoughReplicas, -1));
    assert_eq!(cluster.log_end(1, id), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_asked_once_a_transaction_and_batches_wait_for_it_in_order() {
    let (cluster, mut questions) = asking(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    let first = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("a", 0, 0));
    let second = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("b", 0, 1));
    let (asked, answer) = soon("a question", questions.recv()).await.unwrap();
    let expected = VerifyTransaction {
        transactional_id: "t".to_owned(),
        producer_id: ProducerId(PRODUCER),
        producer_epoch: ProducerEpoch(0),
        partitions: vec![id],
        add: true,
    };
    assert_eq!(asked, expected);
    assert_eq!(cluster.log_end(1, id), 0, "R50");
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!((first.await.base_offset, second.await.base_offset), (Offset(0), Offset(1)));
    assert_eq!(write(broker, id, transactional("c", 0, 2)).await, (ErrorCode::None, 2));
    assert_eq!(write(broker, id, transactional("b", 0, 1)).await, (ErrorCode::None, 1), "sent again");
    let outside = produce(broker, id, Acks::All, batch_of(&["outside"], Some((PRODUCER, 0, 3)))).await;
    assert_eq!(outside.error, ErrorCode::InvalidTxnState, "as Kafka refuses it");
    assert_eq!(end(broker, id, marker(1, 0, true)).await, ErrorCode::None);
    assert!(questions.try_recv().is_err());
    let next = begin(broker, id, Some("t"), TransactionSupport::KnowsAbortable, transactional("d", 1, 0));
    let (asked, answer) = soon("a question", questions.recv()).await.unwrap();
    assert_eq!(asked, VerifyTransaction { producer_epoch: ProducerEpoch(1), add: false, ..expected });
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!(next.await.base_offset, Offset(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_producer_begins_at_sequence_0_where_each_transaction_has_its_own_epoch() {
    // KIP-890: a later sequence says that something is missing here.
    let cluster = agreeing(1, 16 << 20).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    use TransactionSupport::{Implicit, KnowsAbortable};
    for (client, error) in [(Implicit, ErrorCode::OutOfOrderSequenceNumber), (KnowsAbortable, ErrorCode::None)] {
        let answer = begin(cluster.broker(1), id, Some("t"), client, transactional("a", 0, 5)).await;
        assert_eq!(answer.error, error, "{client:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_after_the_marker_does_not_count() {
    // R50: else the batch would begin a transaction that its coordinator does not know of.
    let (cluster, mut questions) = asking(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    let late = begin(broker, id, Some("t"), TransactionSupport::AddsPartitions, transactional("a", 0, 0));
    let (_, answer) = soon("a question", questions.recv()).await.unwrap();
    let abort = TransactionMarker { transaction_version: 1, ..marker(0, 0, false) };
    assert_eq!(end(broker, id, abort).await, ErrorCode::None);
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!(late.await.error, ErrorCode::InvalidTxnState);
    assert_eq!(cluster.log_end(1, id), 1, "the marker alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_that_was_waited_for_does_not_void_what_is_asked_after_it() {
    // R50: the next transaction's first batch overtakes the marker of the one before.
    let (cluster, mut questions) = asking(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    let before = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("a", 0, 0));
    let (_, answer) = soon("a question", questions.recv()).await.unwrap();
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!(before.await.error, ErrorCode::None);
    let next = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("b", 1, 0));
    let (_, answer) = soon("a question", questions.recv()).await.unwrap();
    assert_eq!(end(broker, id, marker(1, 0, true)).await, ErrorCode::None);
    answer.send(vec![ErrorCode::ConcurrentTransactions]).unwrap();
    let (_, answer) = soon("another question", questions.recv()).await.unwrap();
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!(next.await.error, ErrorCode::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_asked_about_the_next_transaction_once_the_marker_of_the_one_before_is_there() {
    let (cluster, mut questions) = asking(1).await;
    let broker = cluster.broker(1);
    // Where this test is slower with the marker than the broker is patient, it asks before: then once more, with another topic.
    for round in 0.. {
        assert!(round < 20, "never behind the marker");
        let id = cluster.topic(&format!("t-{round}"), &[1], &[]).await;
        cluster.wait_leader(id).await;
        let before = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("a", 0, 0));
        let (_, answer) = soon("a question", questions.recv()).await.unwrap();
        answer.send(vec![ErrorCode::None]).unwrap();
        assert_eq!(before.await.error, ErrorCode::None);
        let next = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("b", 1, 0));
        let next = tokio::spawn(next);
        assert_eq!(end(broker, id, marker(1, 0, true)).await, ErrorCode::None);
        let mut ends = Vec::new();
        while let Some((asked, answer)) = asked_or_done(&mut questions, &next).await {
            assert_eq!(asked.producer_epoch, ProducerEpoch(1));
            ends.push(cluster.log_end(1, id));
            // Nobody waits for it where the broker has given up.
            drop(answer.send(vec![ErrorCode::None]));
        }
        if next.await.unwrap().error == ErrorCode::None && ends == [2] {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_marker_overtook_is_asked_again() {
    // R50: what was said before the marker does not count; the producer need not hear of that.
    let (cluster, mut questions) = asking(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    // Where this test is too slow for the broker's patience, the producer is told: so it comes again.
    for coordinator_epoch in 0.. {
        let first = begin(broker, id, Some("t"), TransactionSupport::Implicit, transactional("a", 0, 0));
        let (_, answer) = soon("a question", questions.recv()).await.unwrap();
        let abort = TransactionMarker { transaction_version: 1, ..marker(0, coordinator_epoch, false) };
        assert_eq!(end(broker, id, abort).await, ErrorCode::None);
        answer.send(vec![ErrorCode::None]).unwrap();
        let first = tokio::spawn(first);
        let Some((_, answer)) = asked_or_done(&mut questions, &first).await else {
            assert_eq!(first.await.unwrap().error, ErrorCode::ConcurrentTransactions);
            assert!(coordinator_epoch < 20, "never asked again");
            continue;
        };
        answer.send(vec![ErrorCode::None]).unwrap();
        assert_eq!(first.await.unwrap().error, ErrorCode::None);
        break;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_coordinator_says_reaches_the_producer_as_it_understands_it() {
    let (cluster, mut questions) = asking(1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    use TransactionSupport::{AddsPartitions, Implicit, KnowsAbortable};
    for (said, client, told) in [
        (ErrorCode::InvalidTxnState, Implicit, ErrorCode::InvalidTxnState),
        (ErrorCode::ProducerFenced, Implicit, ErrorCode::InvalidProducerEpoch),
        (ErrorCode::TransactionAbortable, AddsPartitions, ErrorCode::InvalidTxnState),
        (ErrorCode::TransactionAbortable, KnowsAbortable, ErrorCode::TransactionAbortable),
        (ErrorCode::NotCoordinator, Implicit, ErrorCode::NotEnoughReplicas),
        (ErrorCode::ConcurrentTransactions, KnowsAbortable, ErrorCode::NotEnoughReplicas),
    ] {
        let refused = begin(cluster.broker(1), id, Some("t"), client, transactional("a", 0, 0));
        let (_, answer) = soon("a question", questions.recv()).await.unwrap();
        answer.send(vec![said]).unwrap();
        assert_eq!(refused.await.error, told, "{said:?} to {client:?}");
    }
    // A transaction that is just ending: asked again, for a while.
    let patient = begin(cluster.broker(1), id, Some("t"), Implicit, transactional("a", 0, 0));
    for said in [ErrorCode::ConcurrentTransactions, ErrorCode::None] {
        let (_, answer) = soon("a question", questions.recv()).await.unwrap();
        answer.send(vec![said]).unwrap();
    }
    assert_eq!(patient.await.error, ErrorCode::None);
    assert_eq!(cluster.log_end(1, id), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_that_ends_answers_those_who_wait_for_a_coordinator() {
    let (cluster, mut questions) = asking(2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    let waiting = begin(cluster.broker(1), id, Some("t"), TransactionSupport::Implicit, transactional("a", 0, 0));
    let (_, answer) = soon("a question", questions.recv()).await.unwrap();
    let broker = Arc::clone(cluster.broker(1));
    let stopping = tokio::spawn(async move { broker.shut_down().await });
    assert_eq!(waiting.await.error, ErrorCode::NotLeaderOrFollower);
    let _ = answer.send(vec![ErrorCode::None]);
    soon("the shutdown", stopping).await.unwrap();
    assert_eq!(cluster.log_end(2, id), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_are_fenced_by_what_the_log_says_also_at_the_next_leader() {
    let mut cluster = Cluster::with_verifier(2, 1, Some(Arc::new(Agrees))).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(write(cluster.broker(1), id, transactional("a", 4, 0)).await, (ErrorCode::None, 0));
    assert_eq!(end(cluster.broker(1), id, marker(5, 9, true)).await, ErrorCode::None);
    assert_eq!(write(cluster.broker(1), id, transactional("b", 5, 0)).await, (ErrorCode::None, 2));
    assert_eq!(end(cluster.broker(2), id, marker(6, 9, true)).await, ErrorCode::NotLeaderOrFollower);
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    let next = cluster.broker(2);
    // R47, from the markers in the replicated log.
    assert_eq!(end(next, id, marker(4, 9, false)).await, ErrorCode::InvalidProducerEpoch);
    assert_eq!(end(next, id, marker(6, 8, false)).await, ErrorCode::TransactionCoordinatorFenced);
    assert_eq!(end(next, id, marker(5, 9, false)).await, ErrorCode::InvalidProducerEpoch, "a late copy");
    assert_eq!(end(next, id, marker(6, 9, true)).await, ErrorCode::None);
    assert_eq!(write(next, id, transactional("z", 5, 1)).await.0, ErrorCode::InvalidProducerEpoch);
    let described = next.describe_producers(id).producers;
    assert_eq!((described[0].coordinator_epoch, described[0].producer_epoch.0), (9, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_records_with_the_sequences_of_an_ended_transaction_are_refused_and_not_taken_for_it() {
    // R40: what a client that reuses sequence numbers after an abort would take for acknowledged is nowhere.
    let mut cluster = Cluster::with_verifier(2, 1, Some(Arc::new(Agrees))).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    let broker = cluster.broker(1);
    assert_eq!(write(broker, id, transactional("given up", 0, 0)).await, (ErrorCode::None, 0));
    assert_eq!(write(broker, id, transactional("given up", 0, 0)).await, (ErrorCode::None, 0), "sent again");
    let abort = TransactionMarker { transaction_version: 1, ..marker(0, 0, false) };
    assert_eq!(end(broker, id, abort).await, ErrorCode::None);
    let refused = (ErrorCode::OutOfOrderSequenceNumber, -1);
    assert_eq!(write(broker, id, transactional("another", 0, 0)).await, refused);
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    assert_eq!(write(cluster.broker(2), id, transactional("another", 0, 0)).await, refused);
    assert_eq!(write(cluster.broker(2), id, transactional("the next one", 0, 1)).await, (ErrorCode::None, 2));
}

/// All values that a read_committed consumer takes from `from` on, as clients do it: it leaves out what the aborted
/// transactions that it is told of have written. And where it stops.
pub(crate) async fn committed(broker: &Broker, id: TopicPartition, from: i64, max_bytes: usize) -> (Vec<String>, i64) {
    let (mut next, mut found) = (from, Vec::new());
    loop {
        let mut request = FetchRequest {
            isolation: Isolation::ReadCommitted,
            rack: Some("none".to_owned()),
            by_file: false,
            ..fetch_request(id, next)
        };
        request.max_bytes = max_bytes;
        let fetched = soon("a fetch", broker.fetch(request)).await.partitions.remove(0);
        assert_eq!(fetched.error, ErrorCode::None);
        assert!(fetched.last_stable_offset <= fetched.high_watermark);
        let mut aborted = fetched.aborted.unwrap();
        aborted.sort_by_key(|transaction| transaction.first_offset);
        let mut left_out = std::collections::BTreeSet::new();
        let before = next;
        for batch in fetched.records.into_iter().flat_map(|chunk| RecordBatch::split_all(chunk).unwrap()) {
            let header = *batch.header();
            assert!(header.next_offset() <= fetched.last_stable_offset, "R43: {header:?}");
            next = header.next_offset().0;
            while aborted.first().is_some_and(|transaction| transaction.first_offset <= header.last_offset()) {
                left_out.insert(aborted.remove(0).producer_id);
            }
            if let Some(marker) = EndMarker::of(&batch) {
                assert_eq!(left_out.remove(&header.producer_id), !marker.commit, "marker at {}", header.base_offset);
            } else if !(header.is_transactional() && left_out.contains(&header.producer_id)) {
                let records = RecordIter::new(batch.payload(), header.record_count);
                found.extend(records.map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap()));
            }
        }
        if next == before {
            return (found, next);
        }
    }
}

pub(crate) fn end_of(producer: i64, commit: bool) -> TransactionMarker {
    TransactionMarker { producer_id: ProducerId(producer), transaction_version: 1, ..marker(0, 0, commit) }
}

/// What a producer has written: in all, and in its open transaction, each with its offset.
#[derive(Default)]
struct Writer {
    sequence: i32,
    open: Vec<(i64, String)>,
}

/// Writes many transactions of six producers that overlap each other, a third of them aborted, and one that stays open;
/// answers the values that are committed, in order.
async fn write_many(broker: &Broker, id: TopicPartition) -> Vec<String> {
    let mut writers: [Writer; 6] = Default::default();
    let mut committed = std::collections::BTreeMap::new();
    for turn in 0..126usize {
        let number = turn % 6;
        let (producer, writer) = (i64::try_from(number).unwrap() + 10, &mut writers[number]);
        let value = format!("{number}/{turn}/{}", "x".repeat(200));
        let (error, offset) = write(broker, id, in_transaction(&value, (producer, 0, writer.sequence))).await;
        assert_eq!(error, ErrorCode::None);
        writer.sequence += 1;
        writer.open.push((offset, value));
        // Some transactions are long; in the last round all end.
        if turn % 4 == number / 2 || turn >= 120 {
            let commit = turn % 9 > 2;
            assert_eq!(end(broker, id, end_of(producer, commit)).await, ErrorCode::None);
            committed.extend(writer.open.drain(..).filter(|_| commit));
        }
    }
    assert_eq!(write(broker, id, in_transaction("undecided", (99, 0, 0))).await.0, ErrorCode::None);
    assert!((60..120).contains(&committed.len()), "{} of 126", committed.len());
    committed.into_values().collect()
}

async fn agreeing(brokers: i32, tail_bytes: usize) -> Cluster {
    let mut cluster = Cluster::with_verifier(0, 1, Some(Arc::new(Agrees))).await;
    cluster.tail_bytes = tail_bytes;
    for id in 1..=brokers {
        cluster.start_broker(id).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committed_records_and_no_others_are_read_from_leader_and_follower_after_failover_and_restart() {
    for tail_bytes in [16 << 20, 0] {
        let mut cluster = agreeing(3, tail_bytes).await;
        let id = cluster.topic("t", &[1, 2, 3], &[("segment.bytes", "1048576")]).await;
        assert_eq!(cluster.wait_leader(id).await, 1);
        cluster.wait_isr(id, &[1, 2, 3]).await;
        let expected = write_many(cluster.broker(1), id).await;
        let end = cluster.log_end(1, id);
        let undecided = end - 1;
        let check = async |cluster: &Cluster, broker: i32, what: &str| {
            for max_bytes in [50 << 20, 2_000] {
                let (found, stopped) = committed(cluster.broker(broker), id, 0, max_bytes).await;
                assert_eq!((found.len(), stopped), (expected.len(), undecided), "broker {broker}, {what}");
                assert_eq!(found, expected, "broker {broker}, {what}");
            }
        };
        for follower in [2, 3] {
            eventually("the follower has all", || (cluster.log_end(follower, id) == end).then_some(())).await;
            wait_stable(cluster.broker(follower), id, undecided).await;
        }
        for broker in [1, 2, 3] {
            check(&cluster, broker, "at once").await;
        }
        cluster.kill_and_fence(1, Crash::KeepAll).await;
        let next = cluster.wait_leader(id).await;
        wait_stable(cluster.broker(next), id, undecided).await;
        check(&cluster, next, "after a failover").await;
        cluster.start_broker(1).await;
        cluster.wait_isr(id, &[1, 2, 3]).await;
        wait_stable(cluster.broker(1), id, undecided).await;
        check(&cluster, 1, "after a kill and a restart").await;
        cluster.shut_down(1).await;
        cluster.start_broker(1).await;
        cluster.wait_isr(id, &[1, 2, 3]).await;
        wait_stable(cluster.broker(1), id, undecided).await;
        check(&cluster, 1, "after a clean restart").await;
    }
}

/// Waits until a replica shows this last stable offset, which travels behind the records (R60).
async fn wait_stable(broker: &Broker, id: TopicPartition, stable: i64) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let request = FetchRequest { rack: Some("none".to_owned()), ..fetch_request(id, 0) };
        let fetched = soon("a fetch", broker.fetch(request)).await.partitions.remove(0);
        if fetched.last_stable_offset == Offset(stable) {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{fetched:?} is not stable to {stable}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

async fn latest(broker: &Broker, id: TopicPartition, isolation: Isolation, spec: OffsetSpec) -> i64 {
    let asked = ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec };
    let listed = soon("offsets", broker.list_offsets(isolation, vec![asked])).await.remove(0);
    assert_eq!(listed.error, ErrorCode::None);
    listed.offset.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_for_committed_records_waits_for_the_end_of_the_transaction() {
    let cluster = agreeing(1, 16 << 20).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    produce_ok(broker, id, &["plain"]).await;
    assert_eq!(write(broker, id, in_transaction("a", (8, 0, 0))).await, (ErrorCode::None, 1));
    let record = Record { value: Some("behind".to_owned().into()), ..Record::default() };
    let later = i64::try_from(SystemClock::new().wall().0).unwrap() + 60_000;
    let behind = model::encode_batch(&model::encode_records(&[record]), Codec::None, 1, later, later, None);
    assert_eq!(produce(broker, id, Acks::All, behind).await.base_offset, Offset(2));
    use Isolation::{ReadCommitted, ReadUncommitted};
    for (isolation, expected) in [(ReadUncommitted, 3), (ReadCommitted, 1)] {
        assert_eq!(latest(broker, id, isolation, OffsetSpec::Latest).await, expected);
    }
    assert_eq!(latest(broker, id, ReadCommitted, OffsetSpec::Timestamp(1_700_000_000_000)).await, 0);
    assert_eq!(latest(broker, id, ReadUncommitted, OffsetSpec::MaxTimestamp).await, 2);
    assert_eq!(latest(broker, id, ReadCommitted, OffsetSpec::MaxTimestamp).await, -1, "beyond the last stable offset");
    let poller = Arc::clone(broker);
    let poll = FetchRequest { max_wait_ms: 25_000, isolation: ReadCommitted, ..fetch_request(id, 1) };
    let mut poll = tokio::spawn(async move { poller.fetch(poll).await.partitions.remove(0) });
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut poll).await;
    assert!(early.is_err(), "answered with undecided records");
    assert_eq!(end(broker, id, end_of(8, true)).await, ErrorCode::None);
    let fetched = soon("the poll", poll).await.unwrap();
    assert_eq!((fetched.records.is_empty(), fetched.aborted), (false, Some(Vec::new())));
    assert_eq!(latest(broker, id, ReadCommitted, OffsetSpec::Latest).await, 4);
    let described = broker.describe_producers(id).producers.remove(0);
    assert_eq!((described.producer_id, described.transaction_start), (ProducerId(8), Offset::NONE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_stops_at_an_open_transaction_and_a_deletion_of_records_does_not() {
    let cluster = agreeing(1, 16 << 20).await;
    let configs = [("segment.bytes", "1048576"), ("retention.bytes", "1"), ("file.delete.delay.ms", "0")];
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    let large = "x".repeat(700_000);
    produce_ok(broker, id, &[&large]).await;
    assert_eq!(write(broker, id, in_transaction("open", (8, 0, 0))).await, (ErrorCode::None, 1));
    for _ in 0..4 {
        produce_ok(broker, id, &[&large]).await;
    }
    let start = async || latest(broker, id, Isolation::ReadUncommitted, OffsetSpec::Earliest).await;
    // R39: several rounds of retention take nothing of the open transaction.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(start().await <= 1, "{}", start().await);
    let poller = Arc::clone(broker);
    let poll = FetchRequest { max_wait_ms: 25_000, isolation: Isolation::ReadCommitted, ..fetch_request(id, 1) };
    let poll = tokio::spawn(async move { poller.fetch(poll).await.partitions.remove(0) });
    let deleted = soon("the deletion", broker.delete_records(vec![(id, Offset(4))], 25_000)).await;
    assert_eq!(deleted[0].error, ErrorCode::None);
    assert_eq!(soon("the poll", poll).await.unwrap().error, ErrorCode::OffsetOutOfRange);
    assert_eq!(latest(broker, id, Isolation::ReadCommitted, OffsetSpec::Latest).await, 4, "the log start");
    assert_eq!(end(broker, id, end_of(8, false)).await, ErrorCode::None);
    let (found, stopped) = committed(broker, id, 4, 50 << 20).await;
    assert_eq!((found.len(), stopped), (2, 7));
}

/// The group's partition of `__consumer_offsets`, once it is served, and by whom.
async fn coordinated(cluster: &Cluster) -> (TopicPartition, i32) {
    let GroupResponse::OffsetCommit(_) = ask(cluster, &GroupRequest::OffsetCommit(commit_request(-1, "", 1))).await
    else {
        panic!("another answer")
    };
    let id = cluster.broker(1).group_partition("g").unwrap();
    (id, cluster.wait_leader(id).await)
}

fn commit_in_transaction(broker: &Arc<Broker>) -> tokio::task::JoinHandle<ErrorCode> {
    let broker = Arc::clone(broker);
    let producer = Producer { id: ProducerId(PRODUCER), epoch: ProducerEpoch(1) };
    let request = TxnOffsetCommitRequest { producer, guard: None, commit: commit_request(-1, "", 5) };
    tokio::spawn(async move {
        let committed = broker.commit_in_transaction("t".to_owned(), TransactionSupport::Implicit, request).await;
        committed.map_or_else(|error| error, |answer| answer.topics[0].partitions[0].1)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_commit_is_verified_anew_after_the_marker_that_it_waited_for_and_not_by_what_was_said_before_it() {
    let (cluster, mut questions) = asking(2).await;
    let (id, leader) = coordinated(&cluster).await;
    let broker = cluster.broker(leader);
    let mut coordinator_epoch = 0;
    // Where this test is too slow for the coordinator's patience, the client is told to come again: so it does.
    loop {
        let committing = commit_in_transaction(broker);
        let (_, answer) = soon("a question", questions.recv()).await.unwrap();
        // The marker of the transaction before: whatever was asked until now says nothing of the next one (R50).
        assert_eq!(end(broker, id, marker(1, coordinator_epoch, true)).await, ErrorCode::None);
        coordinator_epoch += 1;
        answer.send(vec![ErrorCode::ConcurrentTransactions]).unwrap();
        match asked_or_done(&mut questions, &committing).await {
            Some((_, answer)) => answer.send(vec![ErrorCode::None]).unwrap(),
            None => {
                assert_eq!(committing.await.unwrap(), ErrorCode::ConcurrentTransactions);
                continue;
            }
        }
        assert_eq!(soon("the commit", committing).await.unwrap(), ErrorCode::None);
        break;
    }
    assert_eq!(end(broker, id, marker(1, coordinator_epoch, false)).await, ErrorCode::InvalidProducerEpoch);
    assert_eq!(end(broker, id, marker(2, coordinator_epoch, true)).await, ErrorCode::None);
}

/// A question, or None where what asks for it has ended without one.
async fn asked_or_done<T>(
    questions: &mut mpsc::UnboundedReceiver<Question>,
    asking: &tokio::task::JoinHandle<T>,
) -> Option<Question> {
    let found = async {
        loop {
            match questions.try_recv() {
                Ok(question) => return Some(question),
                Err(_) if asking.is_finished() => return questions.try_recv().ok(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    soon("a question, or an answer", found).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_no_coordinator_knows_of_stays_open_until_somebody_ends_it() {
    let cluster = Cluster::with_verifier(1, 1, Some(Arc::new(Agrees))).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    // It is verified as if it were open; the marker never comes.
    assert_eq!(write(broker, id, transactional("a", 0, 0)).await, (ErrorCode::None, 0));
    let described = broker.describe_producers(id);
    let open: Vec<_> = described.producers.iter().map(|producer| producer.transaction_start).collect();
    assert_eq!(open, [Offset(0)]);
    // As an operator aborts it: with its own epoch, below version 2, and no coordinator in force.
    let abort = TransactionMarker { transaction_version: 0, ..marker(0, 0, false) };
    assert_eq!(end(broker, id, abort).await, ErrorCode::None);
    assert_eq!(broker.describe_producers(id).producers[0].transaction_start, Offset::NONE);
}
