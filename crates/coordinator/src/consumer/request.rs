//! What is asked of the coordinator about consumer groups, without versions.

use std::collections::BTreeSet;

use model::ErrorCode;

use crate::consumer::group::Partitions;

/// ConsumerGroupHeartbeat. What is None did not change since the last one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerHeartbeatRequest {
    /// The group.
    pub group_id: String,
    /// The member; version 0 may leave it empty and is given one.
    pub member_id: String,
    /// Its epoch; 0 joins, -1 leaves, -2 is a static member that leaves for a while.
    pub member_epoch: i32,
    /// Its static id (`R54`).
    pub instance_id: Option<String>,
    /// Its zone.
    pub rack_id: Option<String>,
    /// How long it may take to give up partitions, or -1.
    pub rebalance_timeout_ms: i32,
    /// The topics that it reads.
    pub topics: Option<BTreeSet<String>>,
    /// The topics that it reads, as a regular expression; empty is none.
    pub regex: Option<String>,
    /// The assignor that it asks for.
    pub assignor: Option<String>,
    /// The partitions that it holds.
    pub owned: Option<Partitions>,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// Version 1 and later: the client chooses its member id.
    pub requires_member_id: bool,
}

/// What a ConsumerGroupHeartbeat comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerHeartbeatResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// More than the code says, for people.
    pub error_message: Option<String>,
    /// The member's id.
    pub member_id: Option<String>,
    /// Its epoch.
    pub member_epoch: i32,
    /// When to come back.
    pub heartbeat_interval_ms: i32,
    /// What it may read; None where that did not change.
    pub assignment: Option<Partitions>,
}

impl Default for ConsumerHeartbeatResponse {
    fn default() -> Self {
        Self::refused(ErrorCode::None, None)
    }
}

impl ConsumerHeartbeatResponse {
    /// A refusal.
    #[must_use]
    pub fn refused(error: ErrorCode, error_message: Option<String>) -> Self {
        ConsumerHeartbeatResponse {
            error,
            error_message,
            member_id: None,
            member_epoch: 0,
            heartbeat_interval_ms: 0,
            assignment: None,
        }
    }
}

/// Describes one consumer group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerDescribeRequest {
    /// The group.
    pub group_id: String,
}

/// A member as ConsumerGroupDescribe shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribedConsumer {
    /// Who.
    pub member_id: String,
    /// Its static id.
    pub instance_id: Option<String>,
    /// Its zone.
    pub rack_id: Option<String>,
    /// Its epoch.
    pub member_epoch: i32,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// The topics that it names.
    pub topics: BTreeSet<String>,
    /// Its regular expression.
    pub regex: Option<String>,
    /// What it has.
    pub assignment: Partitions,
    /// What it should have.
    pub target: Partitions,
    /// Whether it speaks the classic protocol.
    pub is_classic: bool,
}

/// A group as ConsumerGroupDescribe shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerDescribeResponse {
    /// NONE, or GROUP_ID_NOT_FOUND.
    pub error: ErrorCode,
    /// More than the code says, for people.
    pub error_message: Option<String>,
    /// As in the request.
    pub group_id: String,
    /// `Empty`, `Assigning`, `Reconciling`, `Stable`; empty where it is not found.
    pub state: &'static str,
    /// Its epoch.
    pub group_epoch: i32,
    /// The epoch of its target assignment.
    pub assignment_epoch: i32,
    /// The assignor that its members ask for.
    pub assignor: &'static str,
    /// Its members.
    pub members: Vec<DescribedConsumer>,
}

impl ConsumerDescribeResponse {
    /// The answer with `error` and no description.
    #[must_use]
    pub fn refused(group_id: &str, error: ErrorCode, error_message: Option<String>) -> Self {
        ConsumerDescribeResponse {
            error,
            error_message,
            group_id: group_id.to_owned(),
            state: "",
            group_epoch: 0,
            assignment_epoch: 0,
            assignor: "",
            members: Vec::new(),
        }
    }
}
