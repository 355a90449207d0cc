//! Transactions as the partitions see them; the test plays the coordinator.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use broker::Broker;
use broker::api::{
    Acks, BrokerApi, ProducePartition, ProduceRequest, Produced, TransactionMarker, TransactionSupport,
    TransactionVerifier, Verified, VerifyTransaction,
};
use bytes::BytesMut;
use model::{ErrorCode, Offset, ProducerEpoch, ProducerId, Record, TopicPartition};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::*;

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
#[derive(Debug, Default)]
struct Agrees(Mutex<usize>);

impl TransactionVerifier for Agrees {
    fn verify(&self, request: VerifyTransaction) -> Verified {
        *self.0.lock().unwrap() += 1;
        Box::pin(std::future::ready(vec![ErrorCode::None; request.partitions.len()]))
    }
}

async fn asking(brokers: i32) -> (Cluster, mpsc::UnboundedReceiver<Question>) {
    let (questions, asked) = mpsc::unbounded_channel();
    (Cluster::with_verifier(brokers, 1, Some(Arc::new(Asked(questions)))).await, asked)
}

const PRODUCER: i64 = 7;

/// One record in the transaction of producer 7.
fn transactional(value: &str, epoch: i16, sequence: i32) -> BytesMut {
    let record = Record { value: Some(value.to_owned().into()), ..Record::default() };
    let producer = (ProducerId(PRODUCER), ProducerEpoch(epoch), sequence);
    model::encode_transactional_batch(&model::encode_records(&[record]), 1, 1_700_000_000_000, producer)
}

fn begin(
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

async fn write(broker: &Broker, id: TopicPartition, records: BytesMut) -> (ErrorCode, i64) {
    let produced = begin(broker, id, Some("t"), TransactionSupport::Implicit, records).await;
    (produced.error, produced.base_offset.0)
}

fn marker(epoch: i16, coordinator_epoch: i32, commit: bool) -> TransactionMarker {
    TransactionMarker {
        producer_id: ProducerId(PRODUCER),
        producer_epoch: ProducerEpoch(epoch),
        coordinator_epoch,
        transaction_version: 2,
        commit,
    }
}

async fn end(broker: &Broker, id: TopicPartition, marker: TransactionMarker) -> ErrorCode {
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
    assert_eq!(end(broker, id, marker(1, 0, true)).await, ErrorCode::None);
    assert!(questions.try_recv().is_err());
    let next = begin(broker, id, Some("t"), TransactionSupport::KnowsAbortable, transactional("d", 1, 0));
    let (asked, answer) = soon("a question", questions.recv()).await.unwrap();
    assert_eq!(asked, VerifyTransaction { producer_epoch: ProducerEpoch(1), add: false, ..expected });
    answer.send(vec![ErrorCode::None]).unwrap();
    assert_eq!(next.await.base_offset, Offset(4));
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
    let mut cluster = Cluster::with_verifier(2, 1, Some(Arc::new(Agrees::default()))).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(write(cluster.broker(1), id, transactional("a", 4, 0)).await, (ErrorCode::None, 0));
    assert_eq!(end(cluster.broker(1), id, marker(5, 9, true)).await, ErrorCode::None);
    assert_eq!(write(cluster.broker(1), id, transactional("b", 5, 0)).await, (ErrorCode::None, 2));
    assert_eq!(end(cluster.broker(2), id, marker(6, 9, true)).await, ErrorCode::NotLeaderOrFollower);
    cluster.kill_and_fence(1, storage::disk::Crash::KeepAll).await;
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
