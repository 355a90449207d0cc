//! Names that no topic can have: a request carries one once, and each partition of it in four bytes. What is kept or compared
//! for each of them must not weigh the name.

use std::future::Future;

use metadata::ControlRequest;
use model::{ErrorCode, PartitionIndex};
use protocol::messages::*;

use crate::fake::{Client, Served};

const NAME_LEN: usize = 30_000;
/// With the name for each of them: 900 MB.
const PARTITIONS: i32 = 30_000;
/// What one request may add to the most that the process ever took: others run at the same time.
const GROWTH_MAX_MIB: u64 = 300;

const UNKNOWN: ErrorCode = ErrorCode::UnknownTopicOrPartition;

fn long() -> String {
    "x".repeat(NAME_LEN)
}

/// The most memory that this process ever took.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() / 1_024
}

async fn weighed<T>(what: &str, answering: impl Future<Output = T>) -> T {
    let before = peak_mib();
    let answer = answering.await;
    let growth = peak_mib() - before;
    assert!(growth < GROWTH_MAX_MIB, "{what}: {growth} MiB");
    answer
}

fn elect(election_type: i8, topics: Vec<(String, Vec<i32>)>) -> ElectLeadersRequest {
    let topic = |(topic, partitions)| elect_leaders_request::TopicPartitions { topic, partitions };
    let topic_partitions = Some(topics.into_iter().map(topic).collect());
    ElectLeadersRequest { election_type, topic_partitions, timeout_ms: 1_000 }
}

fn elected(response: &ElectLeadersResponse) -> Vec<(usize, i32, ErrorCode)> {
    let topics = response.replica_election_results.iter();
    let each = topics.flat_map(|topic| topic.partition_result.iter().map(|result| (topic.topic.len(), result)));
    each.map(|(len, result)| (len, result.partition_id, ErrorCode::from_code(result.error_code))).collect()
}

fn reassign(topics: Vec<(String, Vec<i32>)>) -> AlterPartitionReassignmentsRequest {
    use alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
    let partition = |partition_index| ReassignablePartition { partition_index, replicas: Some(vec![1]) };
    let topic = |(name, partitions): (String, Vec<i32>)| ReassignableTopic {
        name,
        partitions: partitions.into_iter().map(partition).collect(),
    };
    let topics = topics.into_iter().map(topic).collect();
    AlterPartitionReassignmentsRequest { timeout_ms: 1_000, topics, ..Default::default() }
}

#[tokio::test]
async fn the_controller_elects_nothing_of_a_name_that_no_topic_can_have() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let topics = vec![(long(), vec![3, 4]), ("a".to_owned(), vec![0, 1]), (long(), vec![]), ("b".to_owned(), vec![0])];
    let response = client.ask(&elect(0, topics.clone()), 2).await;
    let unknown = [3, 4].map(|index| (NAME_LEN, index, UNKNOWN));
    let known = [0, 1, 0].map(|index| (1, index, ErrorCode::None));
    assert_eq!((response.error_code, elected(&response)), (0, [&known[..], &unknown[..]].concat()));
    let controlled = served.broker.controlled.lock().unwrap().clone();
    let [ControlRequest::ElectLeaders(asked)] = controlled.as_slice() else { panic!("{} requests", controlled.len()) };
    let expected = [("a", 0), ("a", 1), ("b", 0)].map(|(name, index)| (name.to_owned(), PartitionIndex(index)));
    assert_eq!(asked.partitions.as_deref(), Some(&expected[..]));
    // What is wrong with the whole is told for all, in the order of the request.
    let response = client.ask(&elect(7, topics), 2).await;
    let invalid = [(NAME_LEN, 3), (NAME_LEN, 4), (1, 0), (1, 1), (1, 0)];
    assert_eq!(elected(&response), invalid.map(|(len, index)| (len, index, ErrorCode::InvalidRequest)));
}

#[tokio::test]
async fn the_controller_moves_nothing_of_a_name_that_no_topic_can_have() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let topics = vec![(long(), vec![3, 4]), ("a".to_owned(), vec![0]), (long(), vec![])];
    let response = client.ask(&reassign(topics), 1).await;
    let topics = response.responses.iter();
    let told: Vec<(usize, Vec<i16>)> =
        topics.map(|topic| (topic.name.len(), topic.partitions.iter().map(|p| p.error_code).collect())).collect();
    assert_eq!((response.error_code, told), (0, vec![(1, vec![0]), (NAME_LEN, vec![UNKNOWN.code(); 2])]));
    let controlled = served.broker.controlled.lock().unwrap().clone();
    let [ControlRequest::AlterReassignments(asked)] = controlled.as_slice() else {
        panic!("{} requests", controlled.len())
    };
    assert_eq!(asked.partitions.iter().map(|each| each.topic.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn no_replica_is_looked_for_by_a_name_that_no_topic_can_have() {
    use alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
    let served = Served::start().await;
    let topic = |name, partitions| AlterReplicaLogDirTopic { name, partitions };
    let dir = |path: &str, topics| AlterReplicaLogDir { path: path.to_owned(), topics };
    let dirs = vec![
        dir("/data", vec![topic(long(), vec![5]), topic("b".to_owned(), vec![1]), topic("a".to_owned(), vec![])]),
        dir("/else", vec![topic("b".to_owned(), vec![2]), topic(long(), vec![6])]),
    ];
    let response = served.client().await.ask(&AlterReplicaLogDirsRequest { dirs }, 2).await;
    let topics = response.results.iter();
    let told = topics.flat_map(|topic| topic.partitions.iter().map(|result| (topic.topic_name.len(), result)));
    let told: Vec<_> =
        told.map(|(len, each)| (len, each.partition_index, ErrorCode::from_code(each.error_code))).collect();
    let invalid = ErrorCode::InvalidTopicException;
    let expected =
        [(1, 1, ErrorCode::None), (1, 2, ErrorCode::LogDirNotFound), (NAME_LEN, 5, invalid), (NAME_LEN, 6, invalid)];
    assert_eq!(told, expected);
    let wanted = served.broker.wanted_dirs.lock().unwrap();
    assert_eq!(wanted.iter().map(|each| &*each.topic).collect::<Vec<_>>(), ["b", "b"]);
}

async fn fetched(client: &mut Client, session: (i32, i32), names: &[&str]) -> (i32, Vec<(usize, ErrorCode)>) {
    let topic = |name: &&str| fetch_request::FetchTopic {
        topic: (*name).to_owned(),
        partitions: vec![fetch_request::FetchPartition::default()],
        ..Default::default()
    };
    let topics = names.iter().map(topic).collect();
    let (session_id, session_epoch) = session;
    let response = client.ask(&FetchRequest { session_id, session_epoch, topics, ..Default::default() }, 12).await;
    assert_eq!(response.error_code, 0);
    let told = |topic: &fetch_response::FetchableTopicResponse| {
        (topic.topic.len(), ErrorCode::from_code(topic.partitions[0].error_code))
    };
    (response.session_id, response.responses.iter().map(told).collect())
}

#[tokio::test]
async fn a_fetch_session_remembers_no_name_that_no_topic_can_have() {
    let served = Served::start().await;
    served.broker.topic("a", 1);
    let client = &mut served.client().await;
    let (long, unknown) = (&*long(), (NAME_LEN, UNKNOWN));
    assert_eq!(fetched(client, (0, 0), &[long]).await, (0, vec![unknown]), "there is nothing to remember");
    let (id, told) = fetched(client, (0, 0), &[long, "a"]).await;
    assert!(id != 0, "of the other topic there is");
    assert_eq!(told, [(1, ErrorCode::None), unknown]);
    assert_eq!(fetched(client, (id, 1), &[long]).await, (id, vec![unknown]), "who names it is told");
    assert_eq!(fetched(client, (id, 2), &[]).await, (id, vec![]), "and nobody else");
}

#[tokio::test]
async fn a_request_for_many_partitions_of_a_long_name_weighs_the_name_once() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let all = || (long(), (0..PARTITIONS).collect::<Vec<i32>>());
    let count = usize::try_from(PARTITIONS).unwrap();
    for election_type in [0, 7] {
        let response = weighed("ElectLeaders", client.ask(&elect(election_type, vec![all()]), 2)).await;
        assert_eq!(elected(&response).len(), count);
    }
    let response = weighed("AlterPartitionReassignments", client.ask(&reassign(vec![all()]), 1)).await;
    assert_eq!(response.responses[0].partitions.len(), count);

    let (name, partition_indexes) = all();
    let topics = vec![write_txn_markers_request::WritableTxnMarkerTopic { name, partition_indexes }];
    let markers = vec![write_txn_markers_request::WritableTxnMarker { topics, ..Default::default() }];
    let response = weighed("WriteTxnMarkers", client.ask(&WriteTxnMarkersRequest { markers }, 1)).await;
    assert_eq!(response.markers[0].topics[0].partitions.len(), count);

    // Each stands there twice.
    let partition = |index| list_offsets_request::ListOffsetsPartition { partition_index: index, ..Default::default() };
    let partitions = (0..PARTITIONS).chain(0..PARTITIONS).map(partition).collect();
    let topics = vec![list_offsets_request::ListOffsetsTopic { name: long(), partitions }];
    let request = ListOffsetsRequest { topics, ..Default::default() };
    let response = weighed("ListOffsets", client.ask(&request, 6)).await;
    assert_eq!(response.topics[0].partitions.len(), count);
}

#[tokio::test]
async fn a_partition_that_is_named_many_times_for_a_transaction_weighs_its_topics_name_once() {
    let served = Served::start().await;
    let name = "x".repeat(249);
    served.broker.topic(&name, 1);
    let client = &mut served.client().await;
    let topics = vec![add_partitions_to_txn_request::AddPartitionsToTxnTopic { name, partitions: vec![0; 1_500_000] }];
    let request = AddPartitionsToTxnRequest { v3_and_below_topics: topics, ..Default::default() };
    let response = weighed("AddPartitionsToTxn", client.ask(&request, 3)).await;
    let results = &response.results_by_topic_v3_and_below[0].results_by_partition;
    assert!(results.len() == 1_500_000 && results.iter().all(|each| each.partition_error_code == 0));
}
