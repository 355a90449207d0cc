//! The APIs of transactions: what the coordinator is asked, and what clients of each version are told.

use broker::coordinator::transaction::request::{AddPartitionsRequest, EndTransactionRequest, Producer};
use broker::coordinator::transaction::{PartitionSet, TransactionRequest};
use metadata::ControlRequest;
use model::{ErrorCode, PartitionIndex, ProducerEpoch, ProducerId, TopicPartition};
use protocol::messages::*;

use crate::fake::Served;

fn owned(text: &str) -> String {
    text.to_owned()
}

fn producer() -> Producer {
    Producer { id: ProducerId(7), epoch: ProducerEpoch(3) }
}

#[tokio::test]
async fn a_producer_id_without_a_transactional_id_is_anybodys() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let request = InitProducerIdRequest { transactional_id: None, ..Default::default() };
    let response = client.ask(&request, 4).await;
    assert_eq!((response.error_code, response.producer_id, response.producer_epoch), (0, 4_000, 0));
    assert!(served.broker.asked_transaction.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_init_says_who_the_producer_was_or_nothing_of_it() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let init = |id: &str, producer_id, producer_epoch| InitProducerIdRequest {
        transactional_id: Some(owned(id)),
        transaction_timeout_ms: 9,
        producer_id,
        producer_epoch,
        ..Default::default()
    };
    for bad in [init("", -1, -1), init("t", 7, -1), init("t", -1, 3)] {
        let response = client.ask(&bad, 4).await;
        assert_eq!((response.error_code, response.producer_epoch), (ErrorCode::InvalidRequest.code(), -1));
    }
    assert_eq!(client.ask(&init("t", 7, 3), 4).await.error_code, 0);
    let asked = served.broker.asked_transaction.lock().unwrap().clone();
    let [TransactionRequest::InitProducerId(asked)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((asked.transactional_id.as_str(), asked.timeout_ms, asked.expected), ("t", 9, Some(producer())));
}

#[tokio::test]
async fn clients_that_know_no_fence_are_told_of_an_epoch() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    served.broker.topic("__consumer_offsets", 2);
    *served.broker.transaction_error.lock().unwrap() = Some(ErrorCode::ProducerFenced);
    let client = &mut served.client().await;
    let (old, new) = (ErrorCode::InvalidProducerEpoch.code(), ErrorCode::ProducerFenced.code());
    let init = InitProducerIdRequest { transactional_id: Some(owned("t")), ..Default::default() };
    let end = EndTxnRequest { transactional_id: owned("t"), ..Default::default() };
    let offsets = AddOffsetsToTxnRequest { transactional_id: owned("t"), ..Default::default() };
    assert_eq!([client.ask(&init, 3).await.error_code, client.ask(&init, 4).await.error_code], [old, new]);
    assert_eq!([client.ask(&end, 1).await.error_code, client.ask(&end, 2).await.error_code], [old, new]);
    assert_eq!([client.ask(&offsets, 1).await.error_code, client.ask(&offsets, 2).await.error_code], [old, new]);
    let topics = vec![add_partitions_to_txn_request::AddPartitionsToTxnTopic { name: owned("a"), partitions: vec![0] }];
    let add = AddPartitionsToTxnRequest { v3_and_below_topics: topics, ..Default::default() };
    for (version, code) in [(1, old), (2, new)] {
        let results = client.ask(&add, version).await.results_by_topic_v3_and_below;
        assert_eq!(results[0].results_by_partition[0].partition_error_code, code);
    }
}

#[tokio::test]
async fn a_partition_that_does_not_exist_keeps_out_the_others() {
    let served = Served::start().await;
    served.broker.topic("a", 2);
    let client = &mut served.client().await;
    let topic = |name: &str, partitions: &[i32]| add_partitions_to_txn_request::AddPartitionsToTxnTopic {
        name: owned(name),
        partitions: partitions.to_vec(),
    };
    let one = |topics| add_partitions_to_txn_request::AddPartitionsToTxnTransaction {
        transactional_id: owned("t"),
        producer_id: 7,
        producer_epoch: 3,
        verify_only: true,
        topics,
    };
    let transactions = vec![one(vec![topic("a", &[0, 5])]), one(vec![topic("a", &[1, 0])])];
    let request = AddPartitionsToTxnRequest { transactions, ..Default::default() };
    let response = client.ask(&request, 4).await;
    let codes: Vec<Vec<(i32, i16)>> = response
        .results_by_transaction
        .iter()
        .map(|result| &result.topic_results[0].results_by_partition)
        .map(|partitions| partitions.iter().map(|p| (p.partition_index, p.partition_error_code)).collect())
        .collect();
    let (unknown, not_tried) = (ErrorCode::UnknownTopicOrPartition.code(), ErrorCode::OperationNotAttempted.code());
    assert_eq!(codes, [vec![(0, not_tried), (5, unknown)], vec![(1, 0), (0, 0)]]);
    let asked = served.broker.asked_transaction.lock().unwrap().clone();
    let partitions: PartitionSet = [("a", PartitionIndex(0)), ("a", PartitionIndex(1))].into_iter().collect();
    let expected = AddPartitionsRequest {
        transactional_id: owned("t"),
        producer: producer(),
        partitions,
        verify_only: true,
        client_version: 2,
    };
    assert_eq!(asked, [TransactionRequest::AddPartitions(expected)]);
}

#[tokio::test]
async fn the_groups_partition_joins_the_transaction() {
    let served = Served::start().await;
    served.broker.topic("__consumer_offsets", 2);
    let client = &mut served.client().await;
    let request = AddOffsetsToTxnRequest {
        transactional_id: owned("t"),
        producer_id: 7,
        producer_epoch: 3,
        group_id: owned("g"),
    };
    assert_eq!(client.ask(&request, 3).await.error_code, 0);
    let asked = served.broker.asked_transaction.lock().unwrap().clone();
    let [TransactionRequest::AddPartitions(asked)] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(asked.partitions.contains("__consumer_offsets", PartitionIndex(1)) && !asked.verify_only);
}

#[tokio::test]
async fn an_end_bumps_the_epoch_for_clients_that_know_it() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let request = EndTxnRequest { transactional_id: owned("t"), producer_id: 7, producer_epoch: 3, committed: true };
    for version in [4, 5] {
        client.ask(&request, version).await;
    }
    let end = |client_version| {
        TransactionRequest::EndTransaction(EndTransactionRequest {
            transactional_id: owned("t"),
            producer: producer(),
            commit: true,
            client_version,
        })
    };
    assert_eq!(*served.broker.asked_transaction.lock().unwrap(), [end(0), end(2)]);
}

#[tokio::test]
async fn markers_go_to_partitions_that_exist() {
    let served = Served::start().await;
    let topic_id = served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let topic = |name: &str, partition_indexes: &[i32]| write_txn_markers_request::WritableTxnMarkerTopic {
        name: owned(name),
        partition_indexes: partition_indexes.to_vec(),
    };
    let marker = write_txn_markers_request::WritableTxnMarker {
        producer_id: 7,
        producer_epoch: 3,
        transaction_result: true,
        topics: vec![topic("nope", &[0]), topic("a", &[9, 0])],
        coordinator_epoch: 5,
        transaction_version: 2,
    };
    let response = client.ask(&WriteTxnMarkersRequest { markers: vec![marker] }, 2).await;
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    let told: Vec<(&str, i32, i16)> = response.markers[0]
        .topics
        .iter()
        .flat_map(|t| t.partitions.iter().map(|p| (t.name.as_str(), p.partition_index, p.error_code)))
        .collect();
    assert_eq!(
        (response.markers[0].producer_id, told),
        (7, vec![("nope", 0, unknown), ("a", 9, unknown), ("a", 0, 0)])
    );
    let written = served.broker.markers.lock().unwrap().clone();
    let [(marker, partitions)] = written.as_slice() else { panic!("{written:?}") };
    assert!(marker.commit && marker.transaction_version == 2 && marker.coordinator_epoch == 5);
    assert_eq!(*partitions, [TopicPartition { topic_id, partition: PartitionIndex(0) }]);
}

#[tokio::test]
async fn offsets_in_a_transaction_are_asked_for_where_their_partitions_exist() {
    let served = Served::start().await;
    let topic_id = served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let topic = |name: &str| txn_offset_commit_request::TxnOffsetCommitRequestTopic {
        name: owned(name),
        partitions: [0, 1]
            .map(|partition_index| txn_offset_commit_request::TxnOffsetCommitRequestPartition {
                partition_index,
                committed_offset: 6,
                committed_leader_epoch: 2,
                ..Default::default()
            })
            .to_vec(),
    };
    let request = TxnOffsetCommitRequest {
        transactional_id: owned("t"),
        group_id: owned("g"),
        producer_id: 7,
        producer_epoch: 3,
        generation_id: 4,
        member_id: owned("m"),
        group_instance_id: Some(owned("i")),
        topics: vec![topic("nowhere"), topic("a")],
    };
    let codes = |response: TxnOffsetCommitResponse| -> Vec<i16> {
        response.topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.error_code).collect()
    };
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    use broker::api::TransactionSupport::{AddsPartitions, Implicit, KnowsAbortable};
    for (version, support) in [(3, AddsPartitions), (4, KnowsAbortable), (5, Implicit)] {
        assert_eq!(codes(client.ask(&request, version).await), [unknown, unknown, 0, unknown]);
        let (id, told, asked) = served.broker.committed_in_transactions.lock().unwrap().pop().unwrap();
        assert_eq!((id.as_str(), told, asked.producer, asked.guard), ("t", support, producer(), None));
        let commit = asked.commit;
        assert_eq!((commit.group_id.as_str(), commit.generation_id, commit.member_id.as_str()), ("g", 4, "m"));
        assert_eq!((commit.group_instance_id.as_deref(), commit.topics.len()), (Some("i"), 1));
        let offset = &commit.topics[0].partitions[0];
        assert_eq!((commit.topics[0].topic_id, offset.offset.0, offset.leader_epoch.0), (topic_id, 6, 2));
    }
    *served.broker.group_error.lock().unwrap() = Some(ErrorCode::CoordinatorLoadInProgress);
    let (unavailable, loading) =
        (ErrorCode::CoordinatorNotAvailable.code(), ErrorCode::CoordinatorLoadInProgress.code());
    for (version, code) in [(1, unavailable), (2, loading)] {
        assert_eq!(codes(client.ask(&request, version).await), [unknown, unknown, code, unknown]);
    }
}

#[tokio::test]
async fn a_list_says_which_filters_it_does_not_know() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let states = ["Ongoing", "Dead", "empty", "Nonsense"].map(owned).to_vec();
    let request = ListTransactionsRequest { state_filters: states, ..Default::default() };
    let response = client.ask(&request, 2).await;
    assert_eq!((response.error_code, response.unknown_state_filters), (0, vec![owned("empty"), owned("Nonsense")]));
    for bad in ["[", "a)(b"] {
        let request = ListTransactionsRequest { transactional_id_pattern: Some(owned(bad)), ..Default::default() };
        assert_eq!(client.ask(&request, 2).await.error_code, ErrorCode::InvalidRegularExpression.code());
    }
}

#[tokio::test]
async fn a_feature_goes_down_only_where_that_is_asked_for() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let update = |upgrade_type, allow_downgrade| UpdateFeaturesRequest {
        feature_updates: vec![update_features_request::FeatureUpdateKey {
            feature: owned("transaction.version"),
            max_version_level: 1,
            allow_downgrade,
            upgrade_type,
        }],
        ..Default::default()
    };
    for (version, request) in
        [(0, update(1, true)), (1, update(1, false)), (1, update(2, false)), (2, update(3, false))]
    {
        client.ask(&request, version).await;
    }
    assert_eq!(client.ask(&update(9, false), 1).await.error_code, ErrorCode::InvalidUpdateVersion.code());
    let asked = served.broker.controlled.lock().unwrap().clone();
    let allowed: Vec<bool> = asked
        .iter()
        .map(|request| match request {
            ControlRequest::UpdateFeatures(update) => update.updates[0].allow_downgrade,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(allowed, [true, false, true, true]);
}
