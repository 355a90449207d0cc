//! One module for each API, as `handle(call, request) -> response`; before them what several share.

pub(crate) mod config_changes;
pub(crate) mod config_view;
pub(crate) mod partition_view;

pub(crate) mod produce;

pub(crate) mod fetch;
pub(crate) mod list_offsets;
pub(crate) mod offset_for_leader_epoch;

pub(crate) mod api_versions;
pub(crate) mod describe_cluster;
pub(crate) mod describe_quorum;
pub(crate) mod describe_topic_partitions;
pub(crate) mod metadata;

pub(crate) mod consumer_group_describe;
pub(crate) mod consumer_group_heartbeat;
pub(crate) mod delete_groups;
pub(crate) mod describe_groups;
pub(crate) mod find_coordinator;
pub(crate) mod heartbeat;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_groups;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod sync_group;

pub(crate) mod alter_partition_reassignments;
pub(crate) mod alter_replica_log_dirs;
mod broker_configs;
pub(crate) mod create_partitions;
pub(crate) mod create_topics;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod elect_leaders;
pub(crate) mod list_partition_reassignments;
pub(crate) mod unregister_broker;

pub(crate) mod add_raft_voter;
pub(crate) mod remove_raft_voter;

pub(crate) mod create_acls;
pub(crate) mod delete_acls;
pub(crate) mod describe_acls;

pub(crate) mod alter_configs;
pub(crate) mod describe_configs;
pub(crate) mod group_configs;
pub(crate) mod incremental_alter_configs;
pub(crate) mod list_config_resources;

pub(crate) mod describe_log_dirs;
pub(crate) mod describe_producers;

pub(crate) mod transactional;

pub(crate) mod add_offsets_to_txn;
pub(crate) mod add_partitions_to_txn;
pub(crate) mod describe_transactions;
pub(crate) mod end_txn;
pub(crate) mod init_producer_id;
pub(crate) mod list_transactions;
pub(crate) mod txn_offset_commit;
pub(crate) mod update_features;
pub(crate) mod write_txn_markers;

/// Everything that may be done to a resource, as bits by Kafka's operation codes: without an authorizer anybody may.
pub(crate) mod operations {
    /// Read, write, create, delete, alter, describe, describe and alter configs.
    pub(crate) const TOPIC: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
    /// Read, delete, describe, describe and alter configs.
    pub(crate) const GROUP: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
    /// Create, alter, describe, act for the cluster, describe and alter configs, write idempotently.
    pub(crate) const CLUSTER: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
    /// What is answered where nobody asked.
    pub(crate) const NOT_ASKED: i32 = i32::MIN;

    /// The operations of a resource, if they were asked for.
    pub(crate) fn if_asked(asked: bool, operations: i32) -> i32 {
        if asked { operations } else { NOT_ASKED }
    }
}

/// A time of a request; negative ones are none.
pub(crate) fn millis(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0)
}

/// Whether the cluster's finalised features and this broker's file let consumer groups of the next generation be.
pub(crate) fn consumer_groups_are_served<B: ::broker::api::BrokerApi>(call: &crate::call::Call<B>) -> bool {
    let protocols = call.shared.file.get("group.coordinator.rebalance.protocols");
    let named = protocols.is_none_or(|list| ::metadata::configs::list(list).iter().any(|name| name == "consumer"));
    named && call.image().feature(::metadata::control::GROUP_VERSION) >= 1
}

/// Asks the group coordinator, and takes the answer of the request's kind.
macro_rules! ask_group {
    ($call:expr, $kind:ident, $request:expr) => {
        match $call.broker().group(::broker::coordinator::GroupRequest::$kind($request)).await {
            Ok(::broker::coordinator::GroupResponse::$kind(answer)) => Ok(answer),
            Ok(_) => Err($crate::refusal::Refusal::Unanswered),
            Err(code) => Err($crate::refusal::Refusal::Broker(code)),
        }
    };
}

/// Asks the controller, and takes the answer of the request's kind.
macro_rules! ask_controller {
    ($call:expr, $kind:ident, $request:expr, $timeout_ms:expr) => {
        match $call.broker().control(::metadata::ControlRequest::$kind($request), $timeout_ms).await {
            Ok(::metadata::ControlResponse::$kind(answer)) => Ok(answer),
            Ok(::metadata::ControlResponse::Refused(error)) => Err($crate::refusal::Refusal::Decided(error)),
            Ok(_) => Err($crate::refusal::Refusal::Unanswered),
            Err(unavailable) => Err($crate::refusal::Refusal::Undecided(unavailable)),
        }
    };
}

pub(crate) use {ask_controller, ask_group};
