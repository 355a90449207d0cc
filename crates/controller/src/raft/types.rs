//! openraft's types as this crate chooses them.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use model::{BrokerId, DirectoryId, Uuid};
use openraft::{CommittedLeaderId, LogId, Vote};
use rpc::controller::Tenure;
use rpc::raft::{QuorumNode, RaftLogId, RaftVote};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::raft::runtime::SeededRuntime;

openraft::declare_raft_types!(
    /// openraft's type parameters.
    pub(crate) TypeConfig:
        D = Batch,
        R = Applied,
        NodeId = NodeId,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = std::io::Cursor<Vec<u8>>,
        AsyncRuntime = SeededRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type StoredMembership = openraft::StoredMembership<NodeId, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, Member>;
pub(crate) type StorageError = openraft::StorageError<NodeId>;
pub(crate) type StorageIOError = openraft::StorageIOError<NodeId>;
pub(crate) type RaftMetrics = openraft::RaftMetrics<NodeId, Member>;

/// A member of the quorum (`R74`). The default stands for nobody: no directory has the nil id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct NodeId {
    pub(crate) id: i32,
    pub(crate) directory: Uuid,
}

/// Where a member can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) address: String,
    /// An operator said so when it was added: no file knows better. Not in what earlier versions wrote.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) given: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What an entry says: records, fenced by the tenure that decided them and the offset they were decided on (`R66`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) term: u64,
    pub(crate) node: NodeId,
    pub(crate) base: u64,
    /// In the metadata wire format.
    pub(crate) records: RecordBytes,
}

/// Encoded records, shared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecordBytes(pub(crate) Bytes);

/// What applying an entry came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Applied {
    /// Its records are part of the image; the next one gets this offset.
    Records { next_offset: u64 },
    /// It was decided by another tenure or on another offset: nothing changed (`R66`).
    Superseded,
    /// It carried no records.
    Nothing,
}

impl NodeId {
    pub(crate) fn new(node: QuorumNode) -> Self {
        Self { id: node.id.0, directory: node.directory.0 }
    }

    pub(crate) fn quorum_node(self) -> QuorumNode {
        QuorumNode { id: BrokerId(self.id), directory: DirectoryId(self.directory) }
    }
}

/// For openraft's test suite, which counts its nodes.
impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self { id: i32::try_from(id).unwrap_or(i32::MAX), directory: Uuid::nil() }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, DirectoryId(self.directory))
    }
}

/// A text that is no node.
#[derive(thiserror::Error, Debug)]
#[error("{0:?} is not a quorum node: expected node.id@directory")]
pub(crate) struct BadNode(String);

impl FromStr for NodeId {
    type Err = BadNode;

    fn from_str(text: &str) -> Result<Self, BadNode> {
        let parsed = text.split_once('@').and_then(|(id, directory)| {
            let directory: DirectoryId = directory.parse().ok()?;
            Some(NodeId { id: id.parse().ok()?, directory: directory.0 })
        });
        parsed.ok_or_else(|| BadNode(text.chars().take(64).collect()))
    }
}

/// As text, so that it can be the key of a JSON object.
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for RecordBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RecordBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| RecordBytes(bytes.into()))
    }
}

/// The tenure of the leader that made an entry, or whom a vote is for.
pub(crate) fn tenure(leader: &CommittedLeaderId<NodeId>) -> Tenure {
    Tenure { term: leader.term, node: leader.node_id.quorum_node() }
}

pub(crate) fn vote_to_wire(vote: &Vote<NodeId>) -> RaftVote {
    let leader = vote.leader_id;
    RaftVote { term: leader.term, node: leader.node_id.quorum_node(), committed: vote.committed }
}

pub(crate) fn vote_from_wire(vote: RaftVote) -> Vote<NodeId> {
    let node = NodeId::new(vote.node);
    if vote.committed { Vote::new_committed(vote.term, node) } else { Vote::new(vote.term, node) }
}

pub(crate) fn log_id_to_wire(id: &LogId<NodeId>) -> RaftLogId {
    RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id.quorum_node(), index: id.index }
}

pub(crate) fn log_id_from_wire(id: RaftLogId) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(id.term, NodeId::new(id.node)), id.index)
}
