//! How many error codes a response holds, for the metrics: one entry for each API that is served.

use protocol::messages::*;

/// Counts the codes that are not NONE.
pub(crate) trait ErrorCount {
    /// How many there are.
    fn error_count(&self) -> u64;
}

macro_rules! error_counts {
    ($($response:ident: $self:ident => $codes:expr;)*) => {
        $(impl ErrorCount for $response {
            fn error_count(&self) -> u64 {
                let $self = self;
                let codes = $codes;
                codes.into_iter().map(|code| u64::from(code != 0)).sum()
            }
        })*
    };
}

error_counts! {
    ProduceResponse: r => r.responses.iter().flat_map(|t| &t.partition_responses).map(|p| p.error_code);
    FetchResponse: r => [r.error_code].into_iter().chain(r.responses.iter().flat_map(|t| &t.partitions).map(|p| p.error_code));
    ListOffsetsResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    MetadataResponse: r => r.topics.iter().map(|t| t.error_code);
    OffsetCommitResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    OffsetFetchResponse: r => {
        let old = r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
        let new = r.groups.iter().flat_map(|g| &g.topics).flat_map(|t| &t.partitions).map(|p| p.error_code);
        [r.error_code].into_iter().chain(old).chain(r.groups.iter().map(|g| g.error_code)).chain(new)
    };
    FindCoordinatorResponse: r => [r.error_code].into_iter().chain(r.coordinators.iter().map(|c| c.error_code));
    JoinGroupResponse: r => [r.error_code];
    HeartbeatResponse: r => [r.error_code];
    LeaveGroupResponse: r => [r.error_code].into_iter().chain(r.members.iter().map(|m| m.error_code));
    SyncGroupResponse: r => [r.error_code];
    DescribeGroupsResponse: r => r.groups.iter().map(|g| g.error_code);
    ListGroupsResponse: r => [r.error_code];
    ApiVersionsResponse: r => [r.error_code];
    CreateTopicsResponse: r => r.topics.iter().map(|t| t.error_code);
    DeleteTopicsResponse: r => r.responses.iter().map(|t| t.error_code);
    DeleteRecordsResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    InitProducerIdResponse: r => [r.error_code];
    AddPartitionsToTxnResponse: r => {
        let old = r.results_by_topic_v3_and_below.iter();
        let new = r.results_by_transaction.iter().flat_map(|t| &t.topic_results);
        let partitions = old.chain(new).flat_map(|t| &t.results_by_partition).map(|p| p.partition_error_code);
        [r.error_code].into_iter().chain(partitions)
    };
    AddOffsetsToTxnResponse: r => [r.error_code];
    EndTxnResponse: r => [r.error_code];
    WriteTxnMarkersResponse: r => {
        r.markers.iter().flat_map(|m| &m.topics).flat_map(|t| &t.partitions).map(|p| p.error_code)
    };
    TxnOffsetCommitResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    DescribeTransactionsResponse: r => r.transaction_states.iter().map(|t| t.error_code);
    ListTransactionsResponse: r => [r.error_code];
    UpdateFeaturesResponse: r => [r.error_code].into_iter().chain(r.results.iter().map(|f| f.error_code));
    OffsetForLeaderEpochResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    DescribeAclsResponse: r => [r.error_code];
    CreateAclsResponse: r => r.results.iter().map(|c| c.error_code);
    DeleteAclsResponse: r => r.filter_results.iter().map(|f| f.error_code);
    DescribeConfigsResponse: r => r.results.iter().map(|c| c.error_code);
    AlterConfigsResponse: r => r.responses.iter().map(|c| c.error_code);
    AlterReplicaLogDirsResponse: r => r.results.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    DescribeLogDirsResponse: r => [r.error_code].into_iter().chain(r.results.iter().map(|d| d.error_code));
    CreatePartitionsResponse: r => r.results.iter().map(|t| t.error_code);
    DeleteGroupsResponse: r => r.results.iter().map(|g| g.error_code);
    ElectLeadersResponse: r => {
        let partitions = r.replica_election_results.iter().flat_map(|t| &t.partition_result).map(|p| p.error_code);
        [r.error_code].into_iter().chain(partitions)
    };
    AlterPartitionReassignmentsResponse: r => {
        let partitions = r.responses.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
        [r.error_code].into_iter().chain(partitions)
    };
    ListPartitionReassignmentsResponse: r => [r.error_code];
    IncrementalAlterConfigsResponse: r => r.responses.iter().map(|c| c.error_code);
    OffsetDeleteResponse: r => {
        let partitions = r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
        [r.error_code].into_iter().chain(partitions)
    };
    DescribeQuorumResponse: r => {
        let partitions = r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
        [r.error_code].into_iter().chain(partitions)
    };
    UnregisterBrokerResponse: r => [r.error_code];
    AddRaftVoterResponse: r => [r.error_code];
    RemoveRaftVoterResponse: r => [r.error_code];
    DescribeClusterResponse: r => [r.error_code];
    DescribeProducersResponse: r => r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
    ConsumerGroupHeartbeatResponse: r => [r.error_code];
    ConsumerGroupDescribeResponse: r => r.groups.iter().map(|g| g.error_code);
    ListConfigResourcesResponse: r => [r.error_code];
    DescribeTopicPartitionsResponse: r => r.topics.iter().map(|t| t.error_code);
}
