//! From a frame to a handler: the one table of what is served.

use std::sync::Arc;

use broker::api::BrokerApi;
use bytes::BytesMut;
use model::ErrorCode;
use protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, FetchRequest, ProduceRequest};
use protocol::{ApiKey, DecodeError, Decoder, Request, RequestHead, Response, encode_response};

use crate::call::{Call, ConnectionInfo, Shared};
use crate::connection::{Answer, Answering, Started};
use crate::error_counts::ErrorCount;
use crate::handlers;

/// Why bytes are not a request that is served: the connection is closed, as Kafka does.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BadRequest {
    /// They are no request.
    #[error("it sent what is no Kafka request: {0}")]
    Undecodable(#[from] DecodeError),
    /// The body is not that of this API and version.
    #[error("it sent a {api} request of version {version} that cannot be read: {why}")]
    BadBody {
        /// The API.
        api: &'static str,
        /// The version.
        version: i16,
        /// What is wrong.
        why: DecodeError,
    },
    /// The API is not served.
    #[error("it sent a {0} request, which is not served: ApiVersions says what is")]
    NotServed(&'static str),
    /// The version is not served.
    #[error("it sent a {api} request of version {version}, which is not served: ApiVersions says what is")]
    VersionNotServed {
        /// The API.
        api: &'static str,
        /// The version.
        version: i16,
    },
}

/// The APIs that are served, each in all of Kafka's versions, with the module that does it.
macro_rules! served {
    ($($api:ident by $module:ident,)*) => {
        /// What is served, by key. Nothing else is advertised.
        pub(crate) const SERVED: &[ApiKey] = &[ApiKey::Produce, ApiKey::Fetch, $(ApiKey::$api,)*];

        fn dispatch<B: BrokerApi>(call: Call<B>, head: &RequestHead, decoder: &mut Decoder) -> Result<Answering, BadRequest> {
            match head.api {
                ApiKey::Produce => {
                    let request = body::<ProduceRequest>(head, decoder)?;
                    Ok(handlers::produce::start(call, request, head.correlation_id))
                }
                ApiKey::Fetch => {
                    let request = body::<FetchRequest>(head, decoder)?;
                    Ok(handlers::fetch::start(call, request, head.correlation_id))
                }
                $(ApiKey::$api => answer(call, head, decoder, handlers::$module::handle),)*
                other => Err(BadRequest::NotServed(other.name())),
            }
        }
    };
}

served! {
    ListOffsets by list_offsets,
    Metadata by metadata,
    OffsetCommit by offset_commit,
    OffsetFetch by offset_fetch,
    FindCoordinator by find_coordinator,
    JoinGroup by join_group,
    Heartbeat by heartbeat,
    LeaveGroup by leave_group,
    SyncGroup by sync_group,
    DescribeGroups by describe_groups,
    ListGroups by list_groups,
    ApiVersions by api_versions,
    CreateTopics by create_topics,
    DeleteTopics by delete_topics,
    DeleteRecords by delete_records,
    InitProducerId by init_producer_id,
    OffsetForLeaderEpoch by offset_for_leader_epoch,
    AddPartitionsToTxn by add_partitions_to_txn,
    AddOffsetsToTxn by add_offsets_to_txn,
    EndTxn by end_txn,
    WriteTxnMarkers by write_txn_markers,
    TxnOffsetCommit by txn_offset_commit,
    DescribeAcls by describe_acls,
    CreateAcls by create_acls,
    DeleteAcls by delete_acls,
    DescribeConfigs by describe_configs,
    AlterConfigs by alter_configs,
    AlterReplicaLogDirs by alter_replica_log_dirs,
    DescribeLogDirs by describe_log_dirs,
    CreatePartitions by create_partitions,
    DeleteGroups by delete_groups,
    ElectLeaders by elect_leaders,
    IncrementalAlterConfigs by incremental_alter_configs,
    AlterPartitionReassignments by alter_partition_reassignments,
    ListPartitionReassignments by list_partition_reassignments,
    OffsetDelete by offset_delete,
    DescribeQuorum by describe_quorum,
    UpdateFeatures by update_features,
    DescribeCluster by describe_cluster,
    DescribeProducers by describe_producers,
    UnregisterBroker by unregister_broker,
    DescribeTransactions by describe_transactions,
    ListTransactions by list_transactions,
    ConsumerGroupHeartbeat by consumer_group_heartbeat,
    ConsumerGroupDescribe by consumer_group_describe,
    ListConfigResources by list_config_resources,
    DescribeTopicPartitions by describe_topic_partitions,
    AddRaftVoter by add_raft_voter,
    RemoveRaftVoter by remove_raft_voter,
}

/// Starts the request of a frame.
pub(crate) fn start<B: BrokerApi>(
    shared: &Arc<Shared<B>>,
    info: &Arc<ConnectionInfo>,
    frame: BytesMut,
) -> Result<Started, BadRequest> {
    let mut decoder = Decoder::new(frame);
    let mut head = protocol::decode_request_head(&mut decoder)?;
    let api = head.api;
    let client_id = head.client_id.take();
    let call = Call { shared: Arc::clone(shared), connection: Arc::clone(info), version: head.version, client_id };
    let answering = if api.versions().contains(&head.version) {
        dispatch(call, &head, &mut decoder)?
    } else if api == ApiKey::ApiVersions {
        versions_of_unknown_version(head.correlation_id)
    } else if SERVED.contains(&api) {
        return Err(BadRequest::VersionNotServed { api: api.name(), version: head.version });
    } else {
        return Err(BadRequest::NotServed(api.name()));
    };
    Ok(Started { api, holds_back: api != ApiKey::Produce, answering })
}

/// Encodes a response.
pub(crate) fn encoded<R: Response + ErrorCount>(response: &R, version: i16, correlation_id: i32) -> Answer {
    match encode_response(response, version, correlation_id) {
        Ok(frame) => Answer::Frame { frame, files: Vec::new(), errors: response.error_count(), charge: None },
        Err(error) => Answer::HangUp(error.into()),
    }
}

/// Reads the body. Bytes that follow it are let through, as Kafka does.
fn body<R: Request>(head: &RequestHead, decoder: &mut Decoder) -> Result<R, BadRequest> {
    let (api, version) = (head.api.name(), head.version);
    R::decode(decoder, version).map_err(|why| BadRequest::BadBody { api, version, why })
}

fn answer<B, R, F>(
    call: Call<B>,
    head: &RequestHead,
    decoder: &mut Decoder,
    handler: impl FnOnce(Call<B>, R) -> F,
) -> Result<Answering, BadRequest>
where
    B: BrokerApi,
    R: Request<Response: ErrorCount>,
    F: Future<Output = R::Response> + Send + 'static,
{
    let (version, correlation_id) = (head.version, head.correlation_id);
    let response = handler(call, body::<R>(head, decoder)?);
    Ok(Box::pin(async move { encoded(&response.await, version, correlation_id) }))
}

/// A client that knows newer versions of ApiVersions than are served is told so in version 0, with the versions of
/// ApiVersions that it can ask in (KIP-511). The body is not looked at.
fn versions_of_unknown_version(correlation_id: i32) -> Answering {
    let response = ApiVersionsResponse {
        error_code: ErrorCode::UnsupportedVersion.code(),
        api_keys: vec![handlers::api_versions::entry(ApiVersionsRequest::API)],
        ..Default::default()
    };
    Box::pin(std::future::ready(encoded(&response, 0, correlation_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_brokers_apis_only() {
        assert!(SERVED.windows(2).all(|pair| pair[0].key() < pair[1].key()));
        assert!(SERVED.iter().all(|api| api.listener() != protocol::Listener::Controller));
        assert_eq!(SERVED.len(), 51);
    }
}
