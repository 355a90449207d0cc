//! What single APIs answer where it is easy to get wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::broker::api as broker_api;
use bytes::{Bytes, BytesMut};
use metadata::ControlRequest;
use metadata::records::{ConfigResource, MetadataRecord};
use model::{BrokerId, ErrorCode, Uuid};
use protocol::Records;
use protocol::messages::*;

use crate::fake::{Client, HERE, Served, broker, partition, topic_id};

fn owned(text: &str) -> String {
    text.to_owned()
}

fn metadata_of(names: &[&str], create: bool) -> MetadataRequest {
    let topic = |name: &&str| metadata_request::MetadataRequestTopic { name: Some(owned(name)), ..Default::default() };
    let topics = Some(names.iter().map(topic).collect());
    MetadataRequest { topics, allow_auto_topic_creation: create, ..Default::default() }
}

#[tokio::test]
async fn the_paths_and_topics_of_an_alter_replica_log_dirs_are_kept_once_for_all_their_partitions() {
    use alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
    let served = Served::start().await;
    let partitions: Vec<i32> = (0..500).collect();
    let topic = |name: &str| AlterReplicaLogDirTopic { name: owned(name), partitions: partitions.clone() };
    let dir = |path: &str| AlterReplicaLogDir { path: owned(path), topics: vec![topic("a"), topic("b")] };
    let request = AlterReplicaLogDirsRequest { dirs: vec![dir("/data"), dir("/else")] };
    let response = served.client().await.ask(&request, 2).await;
    let answered: Vec<_> = response.results.iter().map(|topic| topic.partitions.len()).collect();
    assert_eq!(answered, [1000, 1000]);
    let wanted = served.broker.wanted_dirs.lock().unwrap();
    assert_eq!(wanted.len(), 2000);
    // Each partition is named in four bytes; a text of its own for each would weigh thousands of times the request.
    let texts = |text: fn(&broker_api::ReplicaLogDir) -> &Arc<str>| {
        wanted.iter().map(|each| Arc::as_ptr(text(each)).cast::<u8>()).collect::<BTreeSet<_>>().len()
    };
    assert_eq!((texts(|each| &each.path), texts(|each| &each.topic)), (2, 4));
}

fn told(response: &MetadataResponse) -> Vec<(&str, ErrorCode)> {
    let topic = |topic: &'_ metadata_response::MetadataResponseTopic| ErrorCode::from_code(topic.error_code);
    response.topics.iter().map(|each| (each.name.as_deref().unwrap_or("-"), topic(each))).collect()
}

#[tokio::test]
async fn metadata_tells_brokers_that_live_and_flags_internal_topics() {
    let served = Served::start().await;
    served.broker.topic("a", 2);
    served.broker.topic("__consumer_offsets", 1);
    let client = &mut served.client().await;
    let request = MetadataRequest { topics: None, ..Default::default() };
    let response = client.ask(&request, 12).await;
    let brokers: Vec<_> = response.brokers.iter().map(|b| (b.node_id, b.host.as_str(), b.port)).collect();
    assert_eq!(brokers, [(1, "host-1", 9_091), (2, "host-2", 9_092)]);
    assert_eq!(response.controller_id, 1);
    let internal: Vec<_> = response.topics.iter().map(|t| (t.name.as_deref().unwrap(), t.is_internal)).collect();
    assert_eq!(internal, [("__consumer_offsets", true), ("a", false)]);
    let first = &response.topics[1].partitions[0];
    assert_eq!((first.leader_id, first.leader_epoch, first.error_code), (1, 3, 0));
    assert_eq!((&first.replica_nodes, &first.isr_nodes), (&vec![1, 2], &vec![1]));
    assert_eq!(response.topics[1].topic_authorized_operations, i32::MIN, "nobody asked");
    let nothing = MetadataRequest { topics: Some(Vec::new()), ..Default::default() };
    assert_eq!(client.ask(&nothing, 0).await.topics.len(), 2, "in version 0 nothing means everything");
    assert_eq!(client.ask(&nothing, 1).await.topics.len(), 0);
}

#[tokio::test]
async fn metadata_tells_all_brokers_where_none_lives() {
    let served = Served::start().await;
    served.broker.apply(&[broker(1, true), broker(2, true)]);
    let response = served.client().await.ask(&MetadataRequest::default(), 9).await;
    let ids: Vec<i32> = response.brokers.iter().map(|broker| broker.node_id).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn metadata_is_held_while_a_leader_seems_to_be_gone_and_then_tells_the_next_one() {
    let served = Served::start().await;
    let id = served.broker.topic("a", 1);
    served.broker.unsettled.send_replace(true);
    let client = &mut served.client().await;
    client.send(&metadata_of(&["a"], false), 9).await;
    let early = tokio::time::timeout(std::time::Duration::from_millis(100), client.frame()).await;
    assert!(early.is_err(), "it would have named the old leader");
    served.broker.apply(&[MetadataRecord::Partition(Box::new(partition(id, 0, BrokerId(2))))]);
    served.broker.unsettled.send_replace(false);
    let (_, response) = client.receive::<MetadataRequest>(9).await;
    assert_eq!(response.topics[0].partitions[0].leader_id, 2);
}

#[tokio::test]
async fn a_broker_that_was_just_fenced_is_still_listed_and_leads_nothing() {
    let served = Served::start().await;
    let id = served.broker.topic("a", 1);
    served.broker.apply(&[MetadataRecord::Partition(Box::new(partition(id, 0, BrokerId(3))))]);
    let client = &mut served.client().await;
    let listed = |response: &MetadataResponse| response.brokers.iter().map(|b| b.node_id).collect::<Vec<_>>();
    assert_eq!(listed(&client.ask(&metadata_of(&["a"], false), 9).await), [1, 2]);
    *served.broker.recently_gone.lock().unwrap() = vec![BrokerId(3)];
    let response = client.ask(&metadata_of(&["a"], false), 9).await;
    assert_eq!(listed(&response), [1, 2, 3]);
    assert_eq!(response.topics[0].partitions[0].leader_id, -1);
}

#[tokio::test]
async fn metadata_creates_what_may_be_created_and_refuses_bad_names() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let names = ["new", "bad name", ".."];
    let response = client.ask(&metadata_of(&names, false), 9).await;
    let (unknown, invalid) = (ErrorCode::UnknownTopicOrPartition, ErrorCode::InvalidTopicException);
    assert_eq!(told(&response), [("new", unknown), ("bad name", invalid), ("..", invalid)]);
    assert!(served.broker.controlled.lock().unwrap().is_empty());
    let response = client.ask(&metadata_of(&names, true), 9).await;
    assert_eq!(told(&response), [("new", ErrorCode::None), ("bad name", invalid), ("..", invalid)]);
    let controlled = served.broker.controlled.lock().unwrap().clone();
    let [ControlRequest::CreateTopics(create)] = controlled.as_slice() else { panic!("{controlled:?}") };
    let created: Vec<_> = create.topics.iter().map(|t| (t.name.as_str(), t.partitions, t.replication_factor)).collect();
    assert_eq!(created, [("new", -1, -1)]);
}

#[tokio::test]
async fn metadata_by_id_knows_unknown_ids_and_belongs_to_version_12() {
    let served = Served::start().await;
    let id = served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let by = |id: Uuid| metadata_request::MetadataRequestTopic { topic_id: id, name: None };
    let request = MetadataRequest { topics: Some(vec![by(id.0), by(Uuid::from_u128(99))]), ..Default::default() };
    let mut topics = client.ask(&request, 12).await.topics;
    topics.sort_by_key(|topic| topic.error_code);
    assert_eq!((topics[0].name.as_deref(), topics[0].error_code), (Some("a"), 0));
    let unknown = (topics[1].name.as_deref(), topics[1].error_code, topics[1].topic_id);
    assert_eq!(unknown, (None, ErrorCode::UnknownTopicId.code(), Uuid::from_u128(99)));
    let codes: Vec<i16> = client.ask(&request, 10).await.topics.iter().map(|topic| topic.error_code).collect();
    assert_eq!(codes, [ErrorCode::InvalidRequest.code(); 2]);
}

#[tokio::test]
async fn a_partition_without_a_reachable_leader_says_so() {
    let served = Served::start().await;
    let id = served.broker.topic("a", 1);
    for (index, leader) in [(1, BrokerId::NONE), (2, BrokerId(3))] {
        served.broker.apply(&[MetadataRecord::Partition(Box::new(partition(id, index, leader)))]);
    }
    let client = &mut served.client().await;
    let response = client.ask(&metadata_of(&["a"], false), 9).await;
    let partitions = response.topics[0].partitions.iter().map(|p| (p.leader_id, ErrorCode::from_code(p.error_code)));
    let missing = (-1, ErrorCode::LeaderNotAvailable);
    assert_eq!(partitions.collect::<Vec<_>>(), [(1, ErrorCode::None), missing, missing]);
}

fn produce_to(topics: &[(&str, i32)], acks: i16) -> ProduceRequest {
    let topic = |(name, index): &(&str, i32)| produce_request::TopicProduceData {
        name: owned(name),
        topic_id: topic_id(name).0,
        partition_data: vec![
            produce_request::PartitionProduceData { index: *index, records: Some(BytesMut::from("records")) },
            produce_request::PartitionProduceData { index: index + 1, records: None },
        ],
    };
    ProduceRequest { acks, topic_data: topics.iter().map(topic).collect(), ..Default::default() }
}

fn produce_codes(response: &ProduceResponse) -> Vec<(i32, i64, ErrorCode)> {
    let partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    partitions.map(|p| (p.index, p.base_offset, ErrorCode::from_code(p.error_code))).collect()
}

#[tokio::test]
async fn produce_answers_each_partition_in_the_order_of_the_request() {
    let served = Served::start().await;
    served.broker.topic("a", 3);
    served.broker.topic("b", 2);
    let client = &mut served.client().await;
    let request = produce_to(&[("b", 0), ("nowhere", 0), ("a", 1), ("a", 7)], 1);
    let expected = |unknown| {
        vec![
            (0, 5, ErrorCode::None),
            (1, -1, ErrorCode::InvalidRecord),
            (0, -1, unknown),
            (1, -1, unknown),
            (1, 5, ErrorCode::None),
            (2, -1, ErrorCode::InvalidRecord),
            (7, -1, ErrorCode::UnknownTopicOrPartition),
            (8, -1, ErrorCode::UnknownTopicOrPartition),
        ]
    };
    let response = client.ask(&request, 9).await;
    assert_eq!(produce_codes(&response), expected(ErrorCode::UnknownTopicOrPartition));
    let response = client.ask(&request, 13).await;
    assert_eq!(produce_codes(&response), expected(ErrorCode::UnknownTopicId));
    assert_eq!(response.responses[0].topic_id, topic_id("b").0);
    let response = client.ask(&produce_to(&[("a", 0)], 2), 9).await;
    assert!(produce_codes(&response).iter().all(|(_, _, code)| *code == ErrorCode::InvalidRequiredAcks));
}

#[tokio::test]
async fn produce_names_the_new_leader_from_version_10_on() {
    let mut served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    for version in [9, 10] {
        client.send(&produce_to(&[("a", 0)], -1), version).await;
        served.appends.recv().await.unwrap().acked.send(ErrorCode::NotLeaderOrFollower).unwrap();
        let response = client.receive::<ProduceRequest>(version).await.1;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, ErrorCode::NotLeaderOrFollower.code());
        let endpoints: Vec<_> = response.node_endpoints.iter().map(|e| (e.node_id, e.host.as_str(), e.port)).collect();
        if version == 10 {
            assert_eq!((partition.current_leader.leader_id, partition.current_leader.leader_epoch), (2, 9));
            assert_eq!(endpoints, [(2, "host-2", 9_092)]);
        } else {
            assert!(endpoints.is_empty());
        }
    }
}

fn fetch(session: (i32, i32), topics: &[(&str, i32, i64)]) -> FetchRequest {
    let topic = |(name, index, offset): &(&str, i32, i64)| fetch_request::FetchTopic {
        topic: owned(name),
        topic_id: topic_id(name).0,
        partitions: vec![fetch_request::FetchPartition {
            partition: *index,
            fetch_offset: *offset,
            partition_max_bytes: 1_000,
            ..Default::default()
        }],
    };
    let topics = topics.iter().map(topic).collect();
    let (session_id, session_epoch) = session;
    FetchRequest { session_id, session_epoch, topics, max_bytes: 1_000, rack_id: owned("zone-2"), ..Default::default() }
}

fn fetched(response: &FetchResponse) -> Vec<(i32, ErrorCode, usize)> {
    let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
    let size = |records: &Option<Records>| records.as_ref().map_or(0, Records::len);
    partitions.map(|p| (p.partition_index, ErrorCode::from_code(p.error_code), size(&p.records))).collect()
}

async fn session_of(client: &mut Client, version: i16) -> i32 {
    let response = client.ask(&fetch((0, 0), &[("a", 0, 0), ("a", 1, 0)]), version).await;
    assert_eq!(fetched(&response), [(0, ErrorCode::None, 0), (1, ErrorCode::None, 0)], "a full answer");
    assert_ne!(response.session_id, 0);
    response.session_id
}

#[tokio::test]
async fn a_fetch_session_tells_what_changed_and_ends() {
    let served = Served::start().await;
    served.broker.topic("a", 2);
    let client = &mut served.client().await;
    for version in [7, 12, 13, 18] {
        served.broker.logs.lock().unwrap().clear();
        let id = session_of(client, version).await;
        let response = client.ask(&fetch((id, 1), &[]), version).await;
        assert_eq!((response.session_id, fetched(&response)), (id, vec![]), "nothing changed");
        served.broker.logs.lock().unwrap().insert(1, (3, vec![Bytes::from("batch")]));
        let response = client.ask(&fetch((id, 2), &[]), version).await;
        assert_eq!(fetched(&response), [(1, ErrorCode::None, 5)]);
        let response = client.ask(&fetch((id, 3), &[("a", 1, 3)]), version).await;
        assert_eq!(fetched(&response), [], "it moved on, and nothing is new");
        let response = client.ask(&fetch((id, 3), &[]), version).await;
        assert_eq!(response.error_code, ErrorCode::InvalidFetchSessionEpoch.code());
        let other = client.ask(&fetch((id ^ 1, 4), &[]), version).await;
        assert_eq!(other.error_code, ErrorCode::FetchSessionIdNotFound.code());
        let closed = client.ask(&fetch((id, -1), &[("a", 0, 0)]), version).await;
        assert_eq!((closed.session_id, fetched(&closed).len()), (0, 1));
        let gone = client.ask(&fetch((id, 4), &[]), version).await;
        assert_eq!(gone.error_code, ErrorCode::FetchSessionIdNotFound.code());
    }
    served.broker.logs.lock().unwrap().clear();
    let id = session_of(client, 12).await;
    let response = client.ask(&fetch((id, 1), &[]), 13).await;
    assert_eq!(response.error_code, ErrorCode::FetchSessionTopicIdError.code());
}

#[tokio::test]
async fn beside_an_error_stand_no_offsets_and_a_session_tells_them_once_it_is_over() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let response = client.ask(&fetch((0, 0), &[("a", 0, 9_999)]), 12).await;
    assert_eq!(fetched(&response), [(0, ErrorCode::OffsetOutOfRange, 0)]);
    let partition = &response.responses[0].partitions[0];
    let offsets = (partition.high_watermark, partition.last_stable_offset, partition.log_start_offset);
    assert_eq!(offsets, (-1, -1, -1));
    let response = client.ask(&fetch((response.session_id, 1), &[("a", 0, 0)]), 12).await;
    assert_eq!(fetched(&response), [(0, ErrorCode::None, 0)], "the watermark is news");
}

#[tokio::test]
async fn a_fetch_is_refused_for_each_partition_where_its_answer_has_no_error_of_its_own() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let mut request = fetch((0, -1), &[("a", 0, 0)]);
    request.isolation_level = 2;
    let response = client.ask(&request, 4).await;
    assert_eq!(fetched(&response), [(0, ErrorCode::InvalidRequest, 0)]);
    let response = client.ask(&request, 7).await;
    assert_eq!((response.error_code, fetched(&response)), (ErrorCode::InvalidRequest.code(), vec![]));
}

#[tokio::test]
async fn every_negative_epoch_of_a_fetch_is_none() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let mut request = fetch((0, -1), &[("a", 0, 0)]);
    let partition = &mut request.topics[0].partitions[0];
    (partition.current_leader_epoch, partition.last_fetched_epoch) = (-5, -7);
    client.ask(&request, 12).await;
    let asked = served.broker.last_fetch.lock().unwrap().take().unwrap().partitions[0];
    assert_eq!((asked.current_leader_epoch.0, asked.last_fetched_epoch.0), (-1, -1));
}

#[tokio::test]
async fn fetch_passes_position_and_rack_on_and_refuses_replicas_and_unknown_topics() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let mut request = fetch((0, -1), &[("a", 0, 7), ("nowhere", 0, 0), ("a", 5, 0)]);
    let response = client.ask(&request, 12).await;
    let unknown = ErrorCode::UnknownTopicOrPartition;
    assert_eq!(fetched(&response), [(0, ErrorCode::None, 0), (0, unknown, 0), (5, unknown, 0)]);
    let asked = served.broker.last_fetch.lock().unwrap().take().unwrap();
    assert_eq!((asked.rack.as_deref(), asked.partitions.len()), (Some("zone-2"), 1));
    assert_eq!(asked.partitions[0].fetch_offset.0, 7);
    let response = client.ask(&request, 13).await;
    assert_eq!(fetched(&response)[1].1, ErrorCode::UnknownTopicId);
    request.replica_id = 2;
    let response = client.ask(&request, 12).await;
    assert!(fetched(&response).iter().all(|(_, code, _)| *code == ErrorCode::TopicAuthorizationFailed));
}

#[tokio::test]
async fn offsets_of_unknown_topics_are_refused_here_and_the_rest_is_asked_for() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let topic = |name: &str| offset_commit_request::OffsetCommitRequestTopic {
        name: owned(name),
        topic_id: topic_id(name).0,
        partitions: [0, 1]
            .map(|partition_index| offset_commit_request::OffsetCommitRequestPartition {
                partition_index,
                committed_metadata: Some(String::new()),
                ..Default::default()
            })
            .to_vec(),
    };
    let request =
        OffsetCommitRequest { group_id: owned("g"), topics: vec![topic("x"), topic("a")], ..Default::default() };
    for (version, no_topic) in [(9, ErrorCode::UnknownTopicOrPartition), (10, ErrorCode::UnknownTopicId)] {
        let response = client.ask(&request, version).await;
        let codes =
            response.topics.iter().flat_map(|topic| &topic.partitions).map(|p| ErrorCode::from_code(p.error_code));
        let unknown = ErrorCode::UnknownTopicOrPartition;
        assert_eq!(codes.collect::<Vec<_>>(), [no_topic, no_topic, ErrorCode::None, unknown]);
    }
    *served.broker.group_error.lock().unwrap() = Some(ErrorCode::NotCoordinator);
    let response = client.ask(&request, 9).await;
    assert_eq!(response.topics[1].partitions[0].error_code, ErrorCode::NotCoordinator.code());
}

#[tokio::test]
async fn a_consumer_group_without_a_name_is_refused_before_its_coordinator_is_looked_for() {
    let served = Served::start().await;
    let feature = metadata::control::GROUP_VERSION.to_owned();
    served.broker.apply(&[MetadataRecord::FeatureLevel { name: feature, level: 1 }]);
    let client = &mut served.client().await;
    *served.broker.group_error.lock().unwrap() = Some(ErrorCode::NotCoordinator);
    let request = |group: &str| ConsumerGroupHeartbeatRequest { group_id: owned(group), ..Default::default() };
    let response = client.ask(&request("g"), 1).await;
    assert_eq!(response.error_code, ErrorCode::NotCoordinator.code());
    let response = client.ask(&request(""), 1).await;
    assert_eq!(response.error_code, ErrorCode::InvalidRequest.code());
}

#[tokio::test]
async fn an_offset_fetch_that_fails_says_so_where_its_version_can() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    *served.broker.group_error.lock().unwrap() = Some(ErrorCode::CoordinatorLoadInProgress);
    let code = ErrorCode::CoordinatorLoadInProgress.code();
    let client = &mut served.client().await;
    let topic = offset_fetch_request::OffsetFetchRequestTopic { name: owned("a"), partition_indexes: vec![0] };
    let old = OffsetFetchRequest { group_id: owned("g"), topics: Some(vec![topic]), ..Default::default() };
    let response = client.ask(&old, 1).await;
    assert_eq!(
        (response.topics[0].partitions[0].error_code, response.topics[0].partitions[0].committed_offset),
        (code, -1)
    );
    let response = client.ask(&old, 2).await;
    assert_eq!((response.error_code, response.topics.len()), (code, 0));
    let group =
        offset_fetch_request::OffsetFetchRequestGroup { group_id: owned("g"), topics: None, ..Default::default() };
    let several = OffsetFetchRequest { groups: vec![group.clone(), group], ..Default::default() };
    let response = client.ask(&several, 8).await;
    assert_eq!(response.groups.iter().map(|group| group.error_code).collect::<Vec<_>>(), [code, code]);
}

#[tokio::test]
async fn who_asks_for_lag_gets_it_with_the_offsets_and_nobody_else() {
    let served = Served::start().await;
    served.broker.topic("a", 2);
    let client = &mut served.client().await;
    let topic = offset_fetch_request::OffsetFetchRequestTopics {
        name: owned("a"),
        partition_indexes: vec![0, 1],
        ..Default::default()
    };
    let topics = Some(vec![topic]);
    let group = offset_fetch_request::OffsetFetchRequestGroup { group_id: owned("g"), topics, ..Default::default() };
    let mut request = OffsetFetchRequest { groups: vec![group], ..Default::default() };
    for (with_lag, expected) in [(false, [(-1, -1); 2]), (true, [(12, -1), (6, 700)])] {
        request.with_lag = with_lag;
        let response = client.ask(&request, 9).await;
        let rows = &response.groups[0].topics[0].partitions;
        assert_eq!(rows.iter().map(|row| (row.lag, row.lag_ms)).collect::<Vec<_>>(), expected, "{rows:?}");
    }
}

#[tokio::test]
async fn a_coordinator_is_found_unless_it_is_away() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let keys = ["g", "nowhere", "fenced"].map(owned).to_vec();
    let request = FindCoordinatorRequest { key: owned("g"), coordinator_keys: keys, ..Default::default() };
    let response = client.ask(&request, 4).await;
    let away = ErrorCode::CoordinatorNotAvailable.code();
    let found: Vec<_> = response.coordinators.iter().map(|c| (c.key.as_str(), c.node_id, c.error_code)).collect();
    assert_eq!(found, [("g", 2, 0), ("nowhere", -1, away), ("fenced", -1, away)]);
    let response = client.ask(&request, 0).await;
    assert_eq!((response.node_id, response.host.as_str(), response.port), (2, "host-2", 9_092));
    let response = client.ask(&FindCoordinatorRequest { key_type: 1, ..request.clone() }, 3).await;
    assert_eq!((response.error_code, response.node_id), (0, 1));
    let response = client.ask(&FindCoordinatorRequest { key_type: 2, ..request }, 3).await;
    assert_eq!(response.error_code, ErrorCode::InvalidRequest.code());
}

#[tokio::test]
async fn topics_are_described_in_pages_that_join_up() {
    let served = Served::start().await;
    for name in ["a", "b", "c"] {
        served.broker.topic(name, 3);
    }
    let client = &mut served.client().await;
    let mut request = DescribeTopicPartitionsRequest { response_partition_limit: 2, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let response = client.ask(&request, 0).await;
        for topic in &response.topics {
            let name = topic.name.clone().unwrap();
            seen.extend(topic.partitions.iter().map(|partition| (name.clone(), partition.partition_index)));
            assert_eq!(topic.partitions[0].eligible_leader_replicas.as_deref(), Some(&[2][..]));
        }
        let Some(cursor) = response.next_cursor else { break };
        let (topic_name, partition_index) = (cursor.topic_name, cursor.partition_index);
        request.cursor = Some(describe_topic_partitions_request::Cursor { topic_name, partition_index });
    }
    let all = ["a", "b", "c"].iter().flat_map(|name| (0..3).map(|index| (owned(name), index)));
    assert_eq!(seen, all.collect::<Vec<_>>());
    let topics =
        ["b", "bad name", "x"].map(|name| describe_topic_partitions_request::TopicRequest { name: owned(name) });
    let request = DescribeTopicPartitionsRequest { topics: topics.to_vec(), ..Default::default() };
    let codes: Vec<i16> = client.ask(&request, 0).await.topics.iter().map(|topic| topic.error_code).collect();
    let expected = [ErrorCode::None, ErrorCode::InvalidTopicException, ErrorCode::UnknownTopicOrPartition];
    assert_eq!(codes, expected.map(ErrorCode::code));
    // A cursor that names what is not asked for, or no partition.
    for (topic_name, partition_index) in [("a", 0), ("b", -1)] {
        let cursor = Some(describe_topic_partitions_request::Cursor { topic_name: owned(topic_name), partition_index });
        let refused = client.ask(&DescribeTopicPartitionsRequest { cursor, ..request.clone() }, 0).await;
        let codes: Vec<i16> = refused.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!((codes, refused.next_cursor), (vec![ErrorCode::InvalidRequest.code(); 3], None));
    }
}

fn describe(resource_type: i8, name: &str, key: &str) -> DescribeConfigsRequest {
    let resource = describe_configs_request::DescribeConfigsResource {
        resource_type,
        resource_name: owned(name),
        configuration_keys: Some(vec![owned(key)]),
    };
    DescribeConfigsRequest { resources: vec![resource], include_synonyms: true, ..Default::default() }
}

fn set(resource: ConfigResource, name: &str, value: &str) -> MetadataRecord {
    MetadataRecord::Config { resource, name: owned(name), value: Some(owned(value)) }
}

#[tokio::test]
async fn a_config_is_described_with_where_it_comes_from() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let ask = describe(2, "a", "retention.ms");
    let response = client.ask(&ask, 4).await;
    let config = &response.results[0].configs[0];
    assert_eq!((config.value.as_deref(), config.config_source, config.config_type), (Some("7200000"), 4, 5));
    served.broker.apply(&[
        set(ConfigResource::Topic(owned("a")), "retention.ms", "1"),
        set(ConfigResource::DefaultBroker, "log.retention.ms", "2"),
    ]);
    let response = client.ask(&ask, 4).await;
    let config = &response.results[0].configs[0];
    assert_eq!((config.value.as_deref(), config.config_source, config.read_only), (Some("1"), 1, false));
    let synonyms: Vec<_> =
        config.synonyms.iter().map(|each| (each.name.as_str(), each.value.as_deref().unwrap(), each.source)).collect();
    let expected = [("retention.ms", "1", 1), ("log.retention.ms", "2", 3), ("log.retention.ms", "7200000", 4)];
    assert_eq!(synonyms, expected);
}

#[tokio::test]
async fn when_a_topic_is_synced_is_described_to_be_read() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let ask = describe(2, "a", "ottla.flush.mode");
    let steps = [
        (None, "page-cache"),
        (Some(("flush.ms", "50")), "interval"),
        (Some(("flush.messages", "1")), "sync-before-ack"),
    ];
    for (config, mode) in steps {
        if let Some((name, value)) = config {
            served.broker.apply(&[set(ConfigResource::Topic(owned("a")), name, value)]);
        }
        let response = client.ask(&ask, 4).await;
        let config = &response.results[0].configs[0];
        assert_eq!((config.value.as_deref(), config.config_source, config.read_only), (Some(mode), 5, true));
    }
}

#[tokio::test]
async fn brokers_describe_themselves_and_nobody_else() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let response = client.ask(&describe(4, "1", "broker.rack"), 4).await;
    let config = &response.results[0].configs[0];
    assert_eq!((config.value.as_deref(), config.config_source, config.read_only), (Some("zone-1"), 4, true));
    let response = client.ask(&describe(4, "1", "ssl.keystore.password"), 4).await;
    let config = &response.results[0].configs[0];
    assert_eq!((config.value.as_deref(), config.is_sensitive), (None, true));
    for (resource_type, name, code) in [
        (4, "2", ErrorCode::InvalidRequest),
        (2, "x", ErrorCode::UnknownTopicOrPartition),
        (2, "bad name", ErrorCode::InvalidTopicException),
        (8, "1", ErrorCode::InvalidRequest),
        (32, "", ErrorCode::InvalidRequest),
        (32, "g", ErrorCode::None),
    ] {
        let response = client.ask(&describe(resource_type, name, "x"), 4).await;
        assert_eq!(response.results[0].error_code, code.code(), "{resource_type} {name:?}");
    }
}

#[tokio::test]
async fn a_new_topic_is_told_with_all_its_configs() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let config = create_topics_request::CreatableTopicConfig { name: owned("retention.ms"), value: Some(owned("9")) };
    let topic = create_topics_request::CreatableTopic { name: owned("n"), configs: vec![config], ..Default::default() };
    let response = client.ask(&CreateTopicsRequest { topics: vec![topic], ..Default::default() }, 7).await;
    let topic = &response.topics[0];
    assert_eq!((topic.error_code, topic.topic_id, topic.num_partitions), (0, topic_id("n").0, 1));
    let configs = topic.configs.as_ref().unwrap();
    let retention = configs.iter().find(|config| config.name == "retention.ms").unwrap();
    assert_eq!((retention.value.as_deref(), retention.config_source), (Some("9"), 1));
    assert!(configs.len() > 20, "the others by default");
}

#[tokio::test]
async fn a_controller_that_is_away_is_told_for_each_topic() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let state = |name: Option<&str>, id: u128| delete_topics_request::DeleteTopicState {
        name: name.map(owned),
        topic_id: Uuid::from_u128(id),
    };
    let topics =
        vec![state(Some("a"), 0), state(Some("b"), 7), state(None, 0), state(Some("c"), 0), state(Some("c"), 0)];
    let response = client.ask(&DeleteTopicsRequest { topics, ..Default::default() }, 6).await;
    let codes: Vec<_> = response.responses.iter().map(|topic| ErrorCode::from_code(topic.error_code)).collect();
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(codes, [ErrorCode::NotController, invalid, invalid, invalid], "what is repeated is told of once");
}

#[tokio::test]
async fn the_cluster_is_described_to_brokers_clients_only() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let response = client.ask(&DescribeClusterRequest::default(), 1).await;
    assert_eq!(response.brokers.iter().map(|broker| broker.broker_id).collect::<Vec<_>>(), [1, 2]);
    let all = DescribeClusterRequest { include_fenced_brokers: true, ..Default::default() };
    let fenced: Vec<_> = client.ask(&all, 2).await.brokers.iter().map(|b| (b.broker_id, b.is_fenced)).collect();
    assert_eq!(fenced, [(1, false), (2, false), (3, true)]);
    for (endpoint_type, code) in [(2, ErrorCode::MismatchedEndpointType), (3, ErrorCode::UnsupportedEndpointType)] {
        let request = DescribeClusterRequest { endpoint_type, ..Default::default() };
        assert_eq!(client.ask(&request, 1).await.error_code, code.code());
    }
}

#[tokio::test]
async fn what_stands_twice_in_a_request_is_refused_and_told_of_once() {
    let served = Served::start().await;
    served.broker.topic("a", 2);
    let client = &mut served.client().await;
    let partition = |partition_index| list_offsets_request::ListOffsetsPartition {
        partition_index,
        timestamp: -1,
        ..Default::default()
    };
    let partitions = [0, 1, 0].map(partition).to_vec();
    let topics = vec![list_offsets_request::ListOffsetsTopic { name: owned("a"), partitions }];
    let response = client.ask(&ListOffsetsRequest { topics, ..Default::default() }, 5).await;
    let told = response.topics[0].partitions.iter().map(|p| (p.partition_index, p.offset, p.error_code));
    assert_eq!(told.collect::<Vec<_>>(), [(0, -1, ErrorCode::InvalidRequest.code()), (1, 11, 0)]);
    let resource = |name: &str| incremental_alter_configs_request::AlterConfigsResource {
        resource_type: 2,
        resource_name: owned(name),
        configs: Vec::new(),
    };
    let resources = ["a", "b", "a"].map(resource).to_vec();
    let request = IncrementalAlterConfigsRequest { resources, ..Default::default() };
    let codes: Vec<i16> = client.ask(&request, 1).await.responses.iter().map(|each| each.error_code).collect();
    let (invalid, away) = (ErrorCode::InvalidRequest.code(), ErrorCode::NotController.code());
    assert_eq!(codes, [invalid, away, invalid]);
}

#[tokio::test]
async fn a_sync_from_version_5_on_names_its_protocol() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let mut request = SyncGroupRequest { protocol_type: Some(owned("consumer")), ..Default::default() };
    assert_eq!(client.ask(&request, 4).await.error_code, 0);
    assert_eq!(client.ask(&request, 5).await.error_code, ErrorCode::InconsistentGroupProtocol.code());
    request.protocol_name = Some(owned("range"));
    assert_eq!(client.ask(&request, 5).await.error_code, 0);
}

#[tokio::test]
async fn reassignments_are_asked_for_by_partition_and_answered_so() {
    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let served = Served::start().await;
    let client = &mut served.client().await;
    let partition = |partition_index, replicas: Option<Vec<i32>>| ReassignablePartition { partition_index, replicas };
    let topic = |name: &str, partitions| ReassignableTopic { name: name.to_owned(), partitions };
    let request = AlterPartitionReassignmentsRequest {
        timeout_ms: 1_000,
        allow_replication_factor_change: false,
        topics: vec![
            topic("a", vec![partition(0, Some(vec![2, 1])), partition(1, None)]),
            topic("b", vec![partition(3, None)]),
        ],
    };
    let response = client.ask(&request, 1).await;
    let told: Vec<_> = response.responses.iter().map(|topic| (topic.name.as_str(), topic.partitions.len())).collect();
    assert_eq!((response.error_code, response.allow_replication_factor_change), (0, false));
    assert_eq!(told, [("a", 2), ("b", 1)]);
    let codes: Vec<_> = response.responses.iter().flat_map(|topic| &topic.partitions).map(|p| p.error_code).collect();
    let none = ErrorCode::NoReassignmentInProgress.code();
    assert_eq!(codes, [0, none, none]);
    let asked = served.broker.controlled.lock().unwrap().clone();
    let [metadata::ControlRequest::AlterReassignments(asked)] = asked.as_slice() else { panic!("{asked:?}") };
    assert!(!asked.allow_factor_change);
    assert_eq!(asked.partitions[0].target, Some(vec![BrokerId(2), BrokerId(1)]));
}

#[tokio::test]
async fn the_replicas_that_move_are_listed() {
    use list_partition_reassignments_request::ListPartitionReassignmentsTopics;
    let served = Served::start().await;
    let id = served.broker.topic("t", 3);
    served.broker.topic("still", 1);
    let mut moving = partition(id, 1, HERE);
    moving.adding = vec![BrokerId(2)];
    moving.removing = vec![HERE];
    served.broker.apply(&[metadata::MetadataRecord::Partition(Box::new(moving))]);
    let client = &mut served.client().await;
    let asked = |name: &str, partition_indexes: Vec<i32>| ListPartitionReassignmentsTopics {
        name: name.to_owned(),
        partition_indexes,
    };
    let cases = [
        (None, vec![1]),
        (Some(vec![asked("t", vec![0, 1]), asked("nope", vec![0]), asked("still", vec![0])]), vec![1]),
        (Some(vec![asked("t", vec![0, 9])]), vec![]),
    ];
    for (topics, expected) in cases {
        let request = ListPartitionReassignmentsRequest { topics, ..Default::default() };
        let response = client.ask(&request, 0).await;
        let listed = response.topics.iter().flat_map(|topic| &topic.partitions);
        let listed: Vec<_> =
            listed.map(|p| (p.partition_index, p.adding_replicas.as_slice(), p.removing_replicas.as_slice())).collect();
        let expected: Vec<_> = expected.into_iter().map(|index| (index, &[2][..], &[1][..])).collect();
        assert_eq!(listed, expected);
    }
}

#[tokio::test]
async fn a_broker_is_unregistered_by_the_controller() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let response = client.ask(&UnregisterBrokerRequest { broker_id: 3 }, 0).await;
    assert_eq!(response.error_code, 0);
    let response = client.ask(&UnregisterBrokerRequest { broker_id: 9 }, 0).await;
    assert_eq!(response.error_code, ErrorCode::BrokerIdNotRegistered.code());
    assert!(response.error_message.is_some());
}

#[tokio::test]
async fn voters_come_by_their_controller_listener_and_only_to_the_cluster_that_is_meant() {
    use add_raft_voter_request::Listener;
    let served = Served::start().await;
    let client = &mut served.client().await;
    let listener = |name: &str, port| Listener { name: owned(name), host: owned("h"), port };
    let mut add = AddRaftVoterRequest {
        cluster_id: None,
        voter_id: 4,
        listeners: vec![listener("OTHER", 1), listener("CONTROLLER", 2)],
        ..Default::default()
    };
    assert_eq!(client.ask(&add, 1).await.error_code, 0);
    add.cluster_id = Some(owned("another"));
    assert_eq!(client.ask(&add, 1).await.error_code, ErrorCode::InconsistentClusterId.code());
    add.listeners.clear();
    add.cluster_id = None;
    assert_eq!(client.ask(&add, 0).await.error_code, ErrorCode::InvalidRequest.code());
    let remove = RemoveRaftVoterRequest { cluster_id: None, voter_id: 1, ..Default::default() };
    assert_eq!(client.ask(&remove, 0).await.error_code, 0);
    let directory = model::DirectoryId::NONE;
    let asked = served.broker.voters.lock().unwrap().clone();
    let added = broker_api::VoterChange::Add { id: BrokerId(4), directory, address: owned("h:2") };
    assert_eq!(asked, [added, broker_api::VoterChange::Remove { id: BrokerId(1), directory }]);
}

#[tokio::test]
async fn without_an_authorizer_acls_are_refused_one_by_one() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let disabled = ErrorCode::SecurityDisabled.code();
    let described = client.ask(&DescribeAclsRequest::default(), 3).await;
    assert_eq!((described.error_code, described.resources.len()), (disabled, 0));
    assert_eq!(described.error_message.as_deref(), Some("No Authorizer is configured."));
    let created = client.ask(&CreateAclsRequest { creations: vec![Default::default(); 2] }, 3).await.results;
    assert_eq!(created.iter().map(|result| result.error_code).collect::<Vec<_>>(), [disabled; 2]);
    let deleted = client.ask(&DeleteAclsRequest { filters: vec![Default::default(); 3] }, 3).await.filter_results;
    assert_eq!(deleted.iter().map(|result| result.error_code).collect::<Vec<_>>(), [disabled; 3]);
}

#[tokio::test]
async fn what_coordinators_keep_is_written_and_deleted_by_brokers_alone() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let refused = ErrorCode::InvalidTopicException.code();
    for name in ["__consumer_offsets", "__transaction_state"] {
        served.broker.topic(name, 1);
        let data = produce_request::PartitionProduceData { index: 0, records: Some(b"records".as_slice().into()) };
        let topic =
            produce_request::TopicProduceData { name: owned(name), partition_data: vec![data], ..Default::default() };
        let request = ProduceRequest { acks: 1, topic_data: vec![topic], ..Default::default() };
        let answer = client.ask(&request, 9).await.responses.remove(0).partition_responses.remove(0);
        assert_eq!(answer.error_code, refused, "{name}");
        let partition = delete_records_request::DeleteRecordsPartition { partition_index: 0, offset: -1 };
        let topic = delete_records_request::DeleteRecordsTopic { name: owned(name), partitions: vec![partition] };
        let request = DeleteRecordsRequest { topics: vec![topic], timeout_ms: 1_000 };
        assert_eq!(client.ask(&request, 2).await.topics[0].partitions[0].error_code, refused, "{name}");
    }
}

#[tokio::test]
async fn success_has_no_message_or_kafkas() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let topic = create_topics_request::CreatableTopic {
        name: owned("new"),
        num_partitions: 1,
        replication_factor: 1,
        ..Default::default()
    };
    let created =
        client.ask(&CreateTopicsRequest { topics: vec![topic], timeout_ms: 1_000, ..Default::default() }, 7).await;
    assert_eq!((created.topics[0].error_code, created.topics[0].error_message.as_deref()), (0, None));
    let listed = client.ask(&ListPartitionReassignmentsRequest::default(), 0).await;
    assert_eq!((listed.error_code, listed.error_message), (0, None));
    let found =
        client.ask(&FindCoordinatorRequest { coordinator_keys: vec![owned("g")], ..Default::default() }, 4).await;
    assert_eq!(found.coordinators[0].error_message.as_deref(), Some("NONE"));
}
