//! What is asked of a group coordinator and what it answers, without API versions: where versions behave differently the
//! gateway says so in a field. Each request concerns one group (the gateway asks once per group of a request that
//! names several); only [`ListGroupsRequest`] concerns every group of every shard.

use bytes::Bytes;
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, Uuid};

use crate::consumer::request::{
    ConsumerDescribeRequest, ConsumerDescribeResponse, ConsumerHeartbeatRequest, ConsumerHeartbeatResponse,
};
use crate::transaction::Marker;
use crate::transaction::request::Producer;

/// A request to the coordinator of a group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GroupRequest {
    /// Enter the group, or a new generation of it.
    JoinGroup(JoinGroupRequest),
    /// Bring (leader) and fetch (all) the assignment of a generation.
    SyncGroup(SyncGroupRequest),
    /// Keep the session.
    Heartbeat(HeartbeatRequest),
    /// Leave, or remove members.
    LeaveGroup(LeaveGroupRequest),
    /// Store offsets.
    OffsetCommit(OffsetCommitRequest),
    /// Store offsets in a transaction (`R49`).
    TxnOffsetCommit(TxnOffsetCommitRequest),
    /// End a transaction in the partition that is this shard's; no client asks for it, and no other shard is to be asked.
    EndTransaction(Marker),
    /// Read stored offsets.
    OffsetFetch(OffsetFetchRequest),
    /// Delete stored offsets.
    OffsetDelete(OffsetDeleteRequest),
    /// Delete an empty group with its offsets.
    DeleteGroup(DeleteGroupRequest),
    /// Show one group.
    DescribeGroup(DescribeGroupRequest),
    /// List groups; to be asked of every shard of the broker.
    ListGroups(ListGroupsRequest),
    /// Live in a consumer group.
    ConsumerHeartbeat(ConsumerHeartbeatRequest),
    /// Show one consumer group.
    ConsumerDescribe(ConsumerDescribeRequest),
}

/// The answer, of the request's kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "each variant answers the request of its name")]
pub enum GroupResponse {
    JoinGroup(JoinGroupResponse),
    SyncGroup(SyncGroupResponse),
    Heartbeat(HeartbeatResponse),
    LeaveGroup(LeaveGroupResponse),
    OffsetCommit(OffsetCommitResponse),
    TxnOffsetCommit(OffsetCommitResponse),
    EndTransaction(EndTransactionResponse),
    OffsetFetch(OffsetFetchResponse),
    OffsetDelete(OffsetDeleteResponse),
    DeleteGroup(DeleteGroupResponse),
    DescribeGroup(DescribeGroupResponse),
    ListGroups(ListGroupsResponse),
    ConsumerHeartbeat(ConsumerHeartbeatResponse),
    ConsumerDescribe(ConsumerDescribeResponse),
}

/// A protocol that a member can speak (for consumers: an assignor), with what it says in it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JoinProtocol {
    /// Its name.
    pub name: String,
    /// The member's subscription, not interpreted by the rebalance.
    pub metadata: Bytes,
}

/// JoinGroup.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JoinGroupRequest {
    /// The group.
    pub group_id: String,
    /// The member id, or empty for a new member.
    pub member_id: String,
    /// The id of a static member (`R54`).
    pub group_instance_id: Option<String>,
    /// The client's `client.id`.
    pub client_id: String,
    /// The client's address, as Kafka shows it: `/127.0.0.1`.
    pub client_host: String,
    /// How long the member may be silent.
    pub session_timeout_ms: i32,
    /// How long the member needs to rejoin; version 0 has none and passes its session timeout.
    pub rebalance_timeout_ms: i32,
    /// `consumer`, `connect` …
    pub protocol_type: String,
    /// The protocols, the member's favourite first.
    pub protocols: Vec<JoinProtocol>,
    /// Version 4 and later: a new dynamic member is told its id first and joins with it (MEMBER_ID_REQUIRED).
    pub require_known_member_id: bool,
    /// Version 9 and later: a static leader that comes back is told to keep the assignment (KIP-814).
    pub supports_skip_assignment: bool,
    /// Why the member joins, for people.
    pub reason: Option<String>,
}

/// One member of a generation, as the leader sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JoinedMember {
    /// Who.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Its subscription in the protocol chosen.
    pub metadata: Bytes,
}

/// What a JoinGroup comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct JoinGroupResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The generation, or -1.
    pub generation_id: i32,
    /// The group's protocol type.
    pub protocol_type: Option<String>,
    /// The protocol chosen; None is the empty string below version 7.
    pub protocol_name: Option<String>,
    /// The leader's member id, or empty.
    pub leader: String,
    /// Whether the leader must keep the assignment.
    pub skip_assignment: bool,
    /// The member's id (with MEMBER_ID_REQUIRED: the one to join with).
    pub member_id: String,
    /// All members for the leader, none for the others.
    pub members: Vec<JoinedMember>,
}

impl JoinGroupResponse {
    /// A refusal.
    #[must_use]
    pub fn refused(member_id: &str, error: ErrorCode) -> Self {
        JoinGroupResponse {
            error,
            generation_id: -1,
            protocol_type: None,
            protocol_name: None,
            leader: String::new(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members: Vec::new(),
        }
    }
}

/// What the leader assigns to one member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MemberAssignment {
    /// To whom.
    pub member_id: String,
    /// What, not interpreted.
    pub assignment: Bytes,
}

/// SyncGroup. Version 5 and later must name protocol type and protocol; the gateway answers INCONSISTENT_GROUP_PROTOCOL
/// where one is null.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SyncGroupRequest {
    /// The group.
    pub group_id: String,
    /// The generation joined.
    pub generation_id: i32,
    /// Who.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Checked against the group's where given (version 5).
    pub protocol_type: Option<String>,
    /// Checked against the group's where given (version 5).
    pub protocol_name: Option<String>,
    /// The assignments; from the leader only.
    pub assignments: Vec<MemberAssignment>,
}

/// What a SyncGroup comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SyncGroupResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The group's protocol type.
    pub protocol_type: Option<String>,
    /// The protocol chosen.
    pub protocol_name: Option<String>,
    /// The member's assignment.
    pub assignment: Bytes,
}

impl SyncGroupResponse {
    /// A refusal.
    #[must_use]
    pub fn refused(error: ErrorCode) -> Self {
        SyncGroupResponse { error, protocol_type: None, protocol_name: None, assignment: Bytes::new() }
    }
}

/// Heartbeat.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HeartbeatRequest {
    /// The group.
    pub group_id: String,
    /// The generation joined.
    pub generation_id: i32,
    /// Who.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
}

/// What a Heartbeat comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HeartbeatResponse {
    /// NONE, REBALANCE_IN_PROGRESS, or why not.
    pub error: ErrorCode,
}

/// A member that leaves or is removed: by its id, or by its static id alone with an empty member id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LeavingMember {
    /// Who, or empty.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Why, for people.
    pub reason: Option<String>,
}

/// LeaveGroup. Below version 3 there is one member, whose error becomes the response's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LeaveGroupRequest {
    /// The group.
    pub group_id: String,
    /// Who leaves.
    pub members: Vec<LeavingMember>,
}

/// What became of one leaving member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LeftMember {
    /// As in the request.
    pub member_id: String,
    /// As in the request.
    pub group_instance_id: Option<String>,
    /// NONE, or why not.
    pub error: ErrorCode,
}

/// What a LeaveGroup comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LeaveGroupResponse {
    /// NONE, or why the whole request was refused.
    pub error: ErrorCode,
    /// The members in the request's order.
    pub members: Vec<LeftMember>,
}

/// An offset to store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetToCommit {
    /// Of which partition.
    pub partition: PartitionIndex,
    /// The next offset to read.
    pub offset: Offset,
    /// The leader epoch of the last record read, or NONE.
    pub leader_epoch: LeaderEpoch,
    /// The consumer's own words; null is stored as empty.
    pub metadata: String,
}

/// The offsets to store for one topic. The gateway resolves version 10's topic ids to names, and answers
/// unknown topics and partitions by itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicOffsetsToCommit {
    /// The topic's name.
    pub name: String,
    /// Its id, or NONE where it is not known.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<OffsetToCommit>,
}

/// OffsetCommit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetCommitRequest {
    /// The group.
    pub group_id: String,
    /// The generation or member epoch, or -1 from a simple consumer or an administrator (`R53`).
    pub generation_id: i32,
    /// Who, or empty.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Versions 2 to 4: keep for so long, or -1.
    pub retention_time_ms: i64,
    /// The offsets.
    pub topics: Vec<TopicOffsetsToCommit>,
    /// Version 9 and later: members of the consumer protocol may commit, and an unknown group is GROUP_ID_NOT_FOUND; before,
    /// it is ILLEGAL_GENERATION.
    pub supports_member_epochs: bool,
}

/// TxnOffsetCommit: offsets that count when the producer's transaction is committed (KIP-98, KIP-447).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TxnOffsetCommitRequest {
    /// Whose transaction.
    pub producer: Producer,
    /// What the shell verified the transaction with, to be given back to it (`R50`); None where that was not needed.
    pub guard: Option<u64>,
    /// The offsets, and who commits them: a member's generation or epoch fences, where one is named.
    pub commit: OffsetCommitRequest,
}

/// What became of a marker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EndTransactionResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
}

/// The errors of one topic's partitions, in the request's order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicErrors {
    /// The topic's name.
    pub name: String,
    /// Its id as in the request, or NONE.
    pub topic_id: TopicId,
    /// NONE, or why not, for each partition.
    pub partitions: Vec<(PartitionIndex, ErrorCode)>,
}

/// What an OffsetCommit comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetCommitResponse {
    /// The topics in the request's order. An error of the whole request stands at every partition.
    pub topics: Vec<TopicErrors>,
}

/// The offsets of one topic that are asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicPartitions {
    /// The topic's name.
    pub name: String,
    /// Its id, or NONE where it is not known: an offset stored for another id of that name is not its offset (`R4`).
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<PartitionIndex>,
}

/// OffsetFetch of one group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetFetchRequest {
    /// The group.
    pub group_id: String,
    /// The member that asks (version 9); None from those that do not say.
    pub member_id: Option<String>,
    /// Its member epoch, or -1.
    pub member_epoch: i32,
    /// Which offsets; None for all there are.
    pub topics: Option<Vec<TopicPartitions>>,
    /// Answer only when writes now under way are committed, so that the answer is not about to change (KIP-447).
    pub require_stable: bool,
}

/// A stored offset.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FetchedOffset {
    /// Of which partition.
    pub partition: PartitionIndex,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The offset, or -1 where none is stored.
    pub offset: Offset,
    /// Its leader epoch, or -1.
    pub leader_epoch: LeaderEpoch,
    /// The consumer's own words.
    pub metadata: String,
}

/// The stored offsets of one topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicFetchedOffsets {
    /// The topic's name.
    pub name: String,
    /// As in the request; NONE where all offsets were asked for.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchedOffset>,
}

/// What an OffsetFetch comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetFetchResponse {
    /// As in the request.
    pub group_id: String,
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The topics, in the request's order where it named them.
    pub topics: Vec<TopicFetchedOffsets>,
}

/// OffsetDelete.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetDeleteRequest {
    /// The group.
    pub group_id: String,
    /// Which offsets.
    pub topics: Vec<TopicPartitions>,
}

/// What an OffsetDelete comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OffsetDeleteResponse {
    /// NONE, or why the whole request was refused.
    pub error: ErrorCode,
    /// The topics in the request's order.
    pub topics: Vec<TopicErrors>,
}

/// Deletes one group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DeleteGroupRequest {
    /// The group.
    pub group_id: String,
}

/// What a deletion comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DeleteGroupResponse {
    /// As in the request.
    pub group_id: String,
    /// NONE, or why not.
    pub error: ErrorCode,
}

/// Describes one group.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribeGroupRequest {
    /// The group.
    pub group_id: String,
}

/// One member as DescribeGroups shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribedMember {
    /// Who.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// Its subscription in the protocol chosen; empty unless the group is Stable.
    pub metadata: Bytes,
    /// Its assignment; empty unless the group is Stable.
    pub assignment: Bytes,
}

/// One group as DescribeGroups shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribeGroupResponse {
    /// NONE, or GROUP_ID_NOT_FOUND with state `Dead`, which versions below 6 answer without the error.
    pub error: ErrorCode,
    /// More than the code says, for people.
    pub error_message: Option<String>,
    /// As in the request.
    pub group_id: String,
    /// `Empty`, `PreparingRebalance`, `CompletingRebalance`, `Stable` or `Dead`.
    pub state: &'static str,
    /// `consumer` …, or empty.
    pub protocol_type: String,
    /// The protocol chosen, where the group is Stable.
    pub protocol: String,
    /// The members.
    pub members: Vec<DescribedMember>,
}

/// Lists groups. Empty filters let all through; both compare without case.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ListGroupsRequest {
    /// Only groups in one of these states.
    pub states: Vec<String>,
    /// Only groups of one of these types.
    pub types: Vec<String>,
}

/// One group in a list.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListedGroup {
    /// Its id.
    pub group_id: String,
    /// `consumer` …, or empty.
    pub protocol_type: String,
    /// As in [`DescribeGroupResponse::state`] or [`ConsumerDescribeResponse::state`].
    pub state: &'static str,
    /// `classic` or `consumer`.
    pub group_type: &'static str,
}

/// The groups of one shard; the shell joins the shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListGroupsResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The groups by id.
    pub groups: Vec<ListedGroup>,
}

impl GroupRequest {
    /// Whether it is of members of a group, which has to have a name; simple consumers may keep offsets under none.
    #[must_use]
    pub fn needs_a_name(&self) -> bool {
        use GroupRequest as R;
        matches!(self, R::JoinGroup(_) | R::SyncGroup(_) | R::Heartbeat(_) | R::LeaveGroup(_) | R::OffsetDelete(_))
    }

    /// The group, which decides the shard; None for a request to every shard, or to one that is known.
    #[must_use]
    pub fn group_id(&self) -> Option<&str> {
        match self {
            GroupRequest::JoinGroup(r) => Some(&r.group_id),
            GroupRequest::SyncGroup(r) => Some(&r.group_id),
            GroupRequest::Heartbeat(r) => Some(&r.group_id),
            GroupRequest::LeaveGroup(r) => Some(&r.group_id),
            GroupRequest::OffsetCommit(r) => Some(&r.group_id),
            GroupRequest::TxnOffsetCommit(r) => Some(&r.commit.group_id),
            GroupRequest::EndTransaction(_) => None,
            GroupRequest::OffsetFetch(r) => Some(&r.group_id),
            GroupRequest::OffsetDelete(r) => Some(&r.group_id),
            GroupRequest::DeleteGroup(r) => Some(&r.group_id),
            GroupRequest::DescribeGroup(r) => Some(&r.group_id),
            GroupRequest::ListGroups(_) => None,
            GroupRequest::ConsumerHeartbeat(r) => Some(&r.group_id),
            GroupRequest::ConsumerDescribe(r) => Some(&r.group_id),
        }
    }

    /// The answer that refuses this request as a whole: for a coordinator that is loading, or not here.
    #[must_use]
    pub fn refused(&self, error: ErrorCode) -> GroupResponse {
        match self {
            GroupRequest::JoinGroup(r) => GroupResponse::JoinGroup(JoinGroupResponse::refused(&r.member_id, error)),
            GroupRequest::SyncGroup(_) => GroupResponse::SyncGroup(SyncGroupResponse::refused(error)),
            GroupRequest::Heartbeat(_) => GroupResponse::Heartbeat(HeartbeatResponse { error }),
            GroupRequest::LeaveGroup(_) => GroupResponse::LeaveGroup(LeaveGroupResponse { error, members: Vec::new() }),
            GroupRequest::OffsetCommit(r) => GroupResponse::OffsetCommit(r.refused(error)),
            GroupRequest::TxnOffsetCommit(r) => GroupResponse::TxnOffsetCommit(r.commit.refused(error)),
            GroupRequest::EndTransaction(_) => GroupResponse::EndTransaction(EndTransactionResponse { error }),
            GroupRequest::OffsetFetch(r) => GroupResponse::OffsetFetch(r.refused(error)),
            GroupRequest::OffsetDelete(_) => {
                GroupResponse::OffsetDelete(OffsetDeleteResponse { error, topics: Vec::new() })
            }
            GroupRequest::DeleteGroup(r) => {
                GroupResponse::DeleteGroup(DeleteGroupResponse { group_id: r.group_id.clone(), error })
            }
            GroupRequest::DescribeGroup(r) => {
                GroupResponse::DescribeGroup(DescribeGroupResponse::refused(&r.group_id, error))
            }
            GroupRequest::ListGroups(_) => GroupResponse::ListGroups(ListGroupsResponse { error, groups: Vec::new() }),
            GroupRequest::ConsumerHeartbeat(_) => {
                GroupResponse::ConsumerHeartbeat(ConsumerHeartbeatResponse::refused(error, None))
            }
            GroupRequest::ConsumerDescribe(r) => {
                GroupResponse::ConsumerDescribe(ConsumerDescribeResponse::refused(&r.group_id, error, None))
            }
        }
    }
}

impl OffsetCommitRequest {
    /// The answer with `error` at every partition.
    #[must_use]
    pub fn refused(&self, error: ErrorCode) -> OffsetCommitResponse {
        let refuse = |topic: &TopicOffsetsToCommit| TopicErrors {
            name: topic.name.clone(),
            topic_id: topic.topic_id,
            partitions: topic.partitions.iter().map(|p| (p.partition, error)).collect(),
        };
        OffsetCommitResponse { topics: self.topics.iter().map(refuse).collect() }
    }
}

impl OffsetFetchRequest {
    /// The answer with `error` and no offsets.
    #[must_use]
    pub fn refused(&self, error: ErrorCode) -> OffsetFetchResponse {
        OffsetFetchResponse { group_id: self.group_id.clone(), error, topics: Vec::new() }
    }
}

impl DescribeGroupResponse {
    /// The answer with `error` and no description.
    #[must_use]
    pub fn refused(group_id: &str, error: ErrorCode) -> Self {
        DescribeGroupResponse {
            error,
            error_message: None,
            group_id: group_id.to_owned(),
            state: "Dead",
            protocol_type: String::new(),
            protocol: String::new(),
            members: Vec::new(),
        }
    }
}

/// Random bits with the marks of a version 4 UUID.
pub(crate) fn random_uuid(bits: u128) -> Uuid {
    let version = (bits & !(0xf << 76)) | (4 << 76);
    Uuid::from_u128((version & !(0b11 << 62)) | (0b10 << 62))
}
