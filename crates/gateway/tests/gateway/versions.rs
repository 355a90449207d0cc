//! Every API that is served, in every version that is advertised.

use model::ErrorCode;
use protocol::messages::*;
use protocol::{ApiKey, Request, decode_response};

use crate::fake::{Client, Served};

async fn each_version<R: Request>(client: &mut Client, request: R, answered: &mut Vec<ApiKey>) {
    for version in R::API.versions() {
        client.ask(&request, version).await;
    }
    answered.push(R::API);
}

#[tokio::test]
async fn every_api_that_is_advertised_answers_in_every_version() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let advertised = client.ask(&ApiVersionsRequest::default(), 0).await.api_keys;
    let done = &mut Vec::new();
    each_version(client, ProduceRequest { acks: 1, ..Default::default() }, done).await;
    each_version(client, FetchRequest::default(), done).await;
    each_version(client, ListOffsetsRequest::default(), done).await;
    each_version(client, MetadataRequest::default(), done).await;
    each_version(client, OffsetCommitRequest::default(), done).await;
    each_version(client, OffsetFetchRequest::default(), done).await;
    each_version(client, FindCoordinatorRequest::default(), done).await;
    each_version(client, JoinGroupRequest::default(), done).await;
    each_version(client, HeartbeatRequest::default(), done).await;
    each_version(client, LeaveGroupRequest::default(), done).await;
    each_version(client, SyncGroupRequest::default(), done).await;
    each_version(client, DescribeGroupsRequest { groups: vec!["g".to_owned()], ..Default::default() }, done).await;
    each_version(client, ListGroupsRequest::default(), done).await;
    each_version(client, ApiVersionsRequest::default(), done).await;
    each_version(client, CreateTopicsRequest::default(), done).await;
    each_version(client, DeleteTopicsRequest::default(), done).await;
    each_version(client, DeleteRecordsRequest::default(), done).await;
    let init = InitProducerIdRequest { transactional_id: None, ..Default::default() };
    each_version(client, init, done).await;
    each_version(client, OffsetForLeaderEpochRequest::default(), done).await;
    each_version(client, AddPartitionsToTxnRequest::default(), done).await;
    each_version(client, AddOffsetsToTxnRequest::default(), done).await;
    each_version(client, EndTxnRequest::default(), done).await;
    each_version(client, WriteTxnMarkersRequest::default(), done).await;
    each_version(client, TxnOffsetCommitRequest::default(), done).await;
    each_version(client, DescribeAclsRequest::default(), done).await;
    each_version(client, CreateAclsRequest::default(), done).await;
    each_version(client, DeleteAclsRequest::default(), done).await;
    let mut describe = DescribeConfigsRequest { include_synonyms: true, ..Default::default() };
    for resource_type in [2, 4, 8, 32] {
        let resource = describe_configs_request::DescribeConfigsResource { resource_type, ..Default::default() };
        describe.resources.push(resource);
    }
    each_version(client, describe, done).await;
    each_version(client, AlterConfigsRequest::default(), done).await;
    each_version(client, AlterReplicaLogDirsRequest::default(), done).await;
    each_version(client, DescribeLogDirsRequest { topics: None }, done).await;
    each_version(client, CreatePartitionsRequest::default(), done).await;
    each_version(client, DeleteGroupsRequest { groups_names: vec!["g".to_owned()] }, done).await;
    each_version(client, ElectLeadersRequest { topic_partitions: None, ..Default::default() }, done).await;
    each_version(client, IncrementalAlterConfigsRequest::default(), done).await;
    each_version(client, AlterPartitionReassignmentsRequest::default(), done).await;
    each_version(client, ListPartitionReassignmentsRequest::default(), done).await;
    each_version(client, OffsetDeleteRequest::default(), done).await;
    each_version(client, quorum(), done).await;
    each_version(client, UpdateFeaturesRequest::default(), done).await;
    each_version(client, DescribeClusterRequest::default(), done).await;
    each_version(client, DescribeProducersRequest::default(), done).await;
    each_version(client, UnregisterBrokerRequest::default(), done).await;
    let ids = vec!["t".to_owned()];
    each_version(client, DescribeTransactionsRequest { transactional_ids: ids }, done).await;
    each_version(client, ListTransactionsRequest::default(), done).await;
    each_version(client, ConsumerGroupHeartbeatRequest::default(), done).await;
    each_version(client, ConsumerGroupDescribeRequest { group_ids: vec!["g".to_owned()], ..Default::default() }, done)
        .await;
    each_version(client, ListConfigResourcesRequest::default(), done).await;
    each_version(client, DescribeTopicPartitionsRequest::default(), done).await;
    each_version(client, AddRaftVoterRequest::default(), done).await;
    each_version(client, RemoveRaftVoterRequest::default(), done).await;

    let keys: Vec<i16> = advertised.iter().map(|entry| entry.api_key).collect();
    assert_eq!(keys, done.iter().map(|api| api.key()).collect::<Vec<_>>(), "advertised is what is served");
    for entry in advertised {
        let versions = ApiKey::from_key(entry.api_key).unwrap().versions();
        // Produce claims version 0 for librdkafka's sake.
        let min = if entry.api_key == ApiKey::Produce.key() { 0 } else { *versions.start() };
        assert_eq!((entry.min_version, entry.max_version), (min, *versions.end()));
    }
}

fn quorum() -> DescribeQuorumRequest {
    let partitions = vec![describe_quorum_request::PartitionData::default()];
    let topic_name = "__cluster_metadata".to_owned();
    DescribeQuorumRequest { topics: vec![describe_quorum_request::TopicData { topic_name, partitions }] }
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered_in_version_0_with_what_can_be_asked() {
    use tokio::io::AsyncWriteExt;
    let served = Served::start().await;
    let client = &mut served.client().await;
    // Key 18, version 99, correlation id 7, client id "t", no tags, and a body of a time to come.
    let frame = b"\0\0\0\x10\0\x12\0\x63\0\0\0\x07\0\x01t\0\xde\xad\xbe\xef";
    client.stream.write_all(frame).await.unwrap();
    let (id, response) = decode_response::<ApiVersionsResponse>(client.frame().await.unwrap(), 0).unwrap();
    assert_eq!((id, response.error_code), (7, ErrorCode::UnsupportedVersion.code()));
    let keys: Vec<_> = response.api_keys.iter().map(|key| (key.api_key, key.min_version, key.max_version)).collect();
    assert_eq!(keys, [(18, 0, 4)]);
    client.ask(&ApiVersionsRequest::default(), 0).await;
}

#[tokio::test]
async fn finalised_features_are_told() {
    let served = Served::start().await;
    let client = &mut served.client().await;
    let named = |text: &str| text.to_owned();
    let request = ApiVersionsRequest { client_software_name: named("tester"), client_software_version: named("1.0") };
    for version in [3, 4] {
        let response = client.ask(&request, version).await;
        assert_eq!(response.error_code, 0);
        let finalized = &response.finalized_features;
        assert!(finalized.iter().any(|each| each.name == "metadata.version" && each.max_version_level == 1));
        assert!(response.finalized_features_epoch >= 0);
    }
    assert_eq!(client.ask(&ApiVersionsRequest::default(), 3).await.error_code, ErrorCode::InvalidRequest.code());
}
