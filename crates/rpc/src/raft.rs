//! Messages among the voters of the metadata quorum (`R72` to `R75`), as plain types.
//!
//! Entries and descriptions of snapshots are opaque bytes here: what they mean is the `controller`'s business.
//!
//! Invariant (`R5`, `R74`): each message says which node, with which directory, sends it, and which it means; a server
//! hears of nothing that means another.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use model::{BrokerId, DirectoryId};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::net::Network;
use crate::wire::raft as wire;
use crate::{INTERNAL_VERSION, RpcError, check_version, net, uuid_bytes, uuid_from};

/// A member of the quorum: a node with another metadata directory is another one (`R74`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QuorumNode {
    /// Its `node.id`.
    pub id: BrokerId,
    /// Its metadata directory; `NONE` where the sender does not know it yet.
    pub directory: DirectoryId,
}

/// A vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RaftVote {
    /// The term.
    pub term: u64,
    /// For whom.
    pub node: QuorumNode,
    /// Whether a quorum gave it.
    pub committed: bool,
}

/// The identity of a log entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RaftLogId {
    /// The term of the leader that made it.
    pub term: u64,
    /// That leader.
    pub node: QuorumNode,
    /// Its place in the log.
    pub index: u64,
}

/// What one member asks of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RaftCall {
    /// A leader sends entries, or none as a heartbeat.
    Append {
        /// The leader's vote.
        vote: RaftVote,
        /// The entry before them.
        previous: Option<RaftLogId>,
        /// What is committed.
        leader_commit: Option<RaftLogId>,
        /// The entries as they lie in the log.
        entries: Vec<Bytes>,
    },
    /// A candidate asks for a vote.
    Vote {
        /// For this.
        vote: RaftVote,
        /// Its last entry.
        last: Option<RaftLogId>,
    },
    /// Whether an election may be started (`R75`).
    MayElect {
        /// The asker's last entry.
        last: Option<RaftLogId>,
    },
    /// The first meeting of voters (`R74`).
    Meet,
}

/// The answer to a [`RaftCall`], each variant to the call of its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RaftAnswer {
    /// What became of the entries.
    Append(AppendResult),
    /// A vote, or none.
    Vote {
        /// The answerer's vote now.
        vote: RaftVote,
        /// Whether it is the one asked for.
        granted: bool,
        /// The answerer's last entry.
        last: Option<RaftLogId>,
    },
    /// Whether an election may be started.
    MayElect(bool),
    /// Who answers, and whether it has neither a log entry nor a snapshot.
    Meet {
        /// Who.
        node: QuorumNode,
        /// Whether it is empty.
        empty: bool,
    },
}

/// What became of entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendResult {
    /// All are durable.
    Success,
    /// Those up to this one are durable.
    Partial(Option<RaftLogId>),
    /// The entry before them is not there.
    Conflict,
    /// The answerer has a higher vote.
    HigherVote(RaftVote),
}

/// A connection to another member.
#[derive(Clone, Debug)]
pub struct RaftPeer {
    address: String,
    channel: Channel,
    from: QuorumNode,
    to: QuorumNode,
}

/// How much of a snapshot one message carries.
const SNAPSHOT_PART: usize = 1 << 20;
/// The largest snapshot that is taken in.
const SNAPSHOT_MAX: usize = 4 << 30;

impl RaftPeer {
    /// A connection that dials at its first call.
    ///
    /// # Errors
    /// [`RpcError::Unavailable`] where `address` is no `host:port`.
    pub fn new(network: &Network, address: &str, from: QuorumNode, to: QuorumNode) -> Result<RaftPeer, RpcError> {
        Ok(RaftPeer { address: address.to_owned(), channel: network.connect_lazy(address)?, from, to })
    }

    /// Asks, and waits for at most `timeout`.
    ///
    /// # Errors
    /// [`RpcError::Refused`] where the node there is not the one that is meant.
    pub async fn call(&self, call: RaftCall, timeout: Duration) -> Result<RaftAnswer, RpcError> {
        let request = wire::RaftRequest {
            version: INTERNAL_VERSION,
            from: Some(node_to_wire(self.from)),
            to: Some(node_to_wire(self.to)),
            call: Some(call_to_wire(call)),
        };
        let mut client = wire::raft_client::RaftClient::new(self.channel.clone())
            .max_decoding_message_size(net::MAX_MESSAGE)
            .max_encoding_message_size(net::MAX_MESSAGE);
        let answer = tokio::time::timeout(timeout, client.call(request)).await.map_err(|_| self.late())?;
        let answer = answer.map_err(|status| RpcError::of(&self.address, &status))?.into_inner();
        answer_from_wire(answer)
    }

    /// Sends a snapshot, and waits until it is installed, at most `timeout`. Answers the other's vote.
    ///
    /// # Errors
    /// [`RpcError::Refused`] where the node there is not the one that is meant.
    pub async fn install_snapshot(
        &self,
        vote: RaftVote,
        meta: Bytes,
        mut data: Bytes,
        timeout: Duration,
    ) -> Result<RaftVote, RpcError> {
        let mut parts = vec![wire::SnapshotPart {
            version: INTERNAL_VERSION,
            from: Some(node_to_wire(self.from)),
            to: Some(node_to_wire(self.to)),
            vote: Some(vote_to_wire(vote)),
            meta,
            data: Bytes::new(),
        }];
        while !data.is_empty() {
            let data = data.split_to(data.len().min(SNAPSHOT_PART));
            parts.push(wire::SnapshotPart { version: INTERNAL_VERSION, data, ..wire::SnapshotPart::default() });
        }
        let mut client = wire::raft_client::RaftClient::new(self.channel.clone());
        let sent = tokio::time::timeout(timeout, client.install_snapshot(stream::iter(parts)));
        let answer = sent.await.map_err(|_| self.late())?;
        let answer = answer.map_err(|status| RpcError::of(&self.address, &status))?.into_inner();
        match answer.answer {
            Some(wire::raft_response::Answer::Snapshot(answer)) => vote_from_wire(answer.vote),
            _ => Err(RpcError::Invalid("a snapshot was answered with something else")),
        }
    }

    fn late(&self) -> RpcError {
        RpcError::Unavailable { peer: self.address.clone(), reason: "no answer in time".to_owned() }
    }
}

/// Answers for this member.
pub trait RaftServer: Send + Sync + 'static {
    /// Answers a call, or says why it is refused.
    fn call(
        self: Arc<Self>,
        from: QuorumNode,
        to: QuorumNode,
        call: RaftCall,
    ) -> impl Future<Output = Result<RaftAnswer, String>> + Send;

    /// A part of a snapshot arrived; more may follow.
    fn snapshot_arriving(&self, from: QuorumNode, vote: RaftVote);

    /// Installs a snapshot that has arrived whole, and answers the own vote; or says why it is refused.
    fn install_snapshot(
        self: Arc<Self>,
        from: QuorumNode,
        to: QuorumNode,
        vote: RaftVote,
        meta: Bytes,
        data: Bytes,
    ) -> impl Future<Output = Result<RaftVote, String>> + Send;
}

/// The service, which [`crate::controller::routes`] puts beside its own.
pub(crate) fn service<S: RaftServer>(server: Arc<S>) -> wire::raft_server::RaftServer<Service<S>> {
    wire::raft_server::RaftServer::new(Service { server })
        .max_decoding_message_size(net::MAX_MESSAGE)
        .max_encoding_message_size(net::MAX_MESSAGE)
}

pub(crate) struct Service<S> {
    server: Arc<S>,
}

#[tonic::async_trait]
impl<S: RaftServer> wire::raft_server::Raft for Service<S> {
    async fn call(&self, request: Request<wire::RaftRequest>) -> Result<Response<wire::RaftResponse>, Status> {
        let request = request.into_inner();
        let invalid = |error: RpcError| Status::invalid_argument(error.to_string());
        check_version(request.version).map_err(invalid)?;
        let from = node_from_wire(request.from).map_err(invalid)?;
        let to = node_from_wire(request.to).map_err(invalid)?;
        let call = call_from_wire(request.call).map_err(invalid)?;
        let answer = Arc::clone(&self.server).call(from, to, call).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(response(answer_to_wire(answer))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPart>>,
    ) -> Result<Response<wire::RaftResponse>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
        let invalid = |error: RpcError| Status::invalid_argument(error.to_string());
        check_version(first.version).map_err(invalid)?;
        let from = node_from_wire(first.from).map_err(invalid)?;
        let to = node_from_wire(first.to).map_err(invalid)?;
        let vote = vote_from_wire(first.vote).map_err(invalid)?;
        let mut data = BytesMut::from(&first.data[..]);
        while let Some(part) = parts.message().await? {
            if data.len() + part.data.len() > SNAPSHOT_MAX {
                return Err(Status::invalid_argument("the snapshot is too large"));
            }
            self.server.snapshot_arriving(from, vote);
            data.extend_from_slice(&part.data);
        }
        let installed = Arc::clone(&self.server).install_snapshot(from, to, vote, first.meta, data.freeze()).await;
        let vote = installed.map_err(Status::failed_precondition)?;
        let answer = wire::SnapshotAnswer { vote: Some(vote_to_wire(vote)) };
        Ok(Response::new(response(wire::raft_response::Answer::Snapshot(answer))))
    }
}

fn response(answer: wire::raft_response::Answer) -> wire::RaftResponse {
    wire::RaftResponse { version: INTERNAL_VERSION, answer: Some(answer) }
}

fn call_to_wire(call: RaftCall) -> wire::raft_request::Call {
    use wire::raft_request::Call as Wire;
    match call {
        RaftCall::Append { vote, previous, leader_commit, entries } => Wire::Append(wire::AppendEntries {
            vote: Some(vote_to_wire(vote)),
            previous: previous.map(log_id_to_wire),
            leader_commit: leader_commit.map(log_id_to_wire),
            entries,
        }),
        RaftCall::Vote { vote, last } => {
            Wire::Vote(wire::RequestVote { vote: Some(vote_to_wire(vote)), last: last.map(log_id_to_wire) })
        }
        RaftCall::MayElect { last } => Wire::MayElect(wire::MayElect { last: last.map(log_id_to_wire) }),
        RaftCall::Meet => Wire::Meet(wire::Meet {}),
    }
}

fn call_from_wire(call: Option<wire::raft_request::Call>) -> Result<RaftCall, RpcError> {
    use wire::raft_request::Call as Wire;
    Ok(match call.ok_or(RpcError::Invalid("a raft message without content"))? {
        Wire::Append(append) => RaftCall::Append {
            vote: vote_from_wire(append.vote)?,
            previous: append.previous.map(log_id_from_wire).transpose()?,
            leader_commit: append.leader_commit.map(log_id_from_wire).transpose()?,
            entries: append.entries,
        },
        Wire::Vote(vote) => {
            RaftCall::Vote { vote: vote_from_wire(vote.vote)?, last: vote.last.map(log_id_from_wire).transpose()? }
        }
        Wire::MayElect(ask) => RaftCall::MayElect { last: ask.last.map(log_id_from_wire).transpose()? },
        Wire::Meet(wire::Meet {}) => RaftCall::Meet,
    })
}

fn answer_to_wire(answer: RaftAnswer) -> wire::raft_response::Answer {
    use wire::append_answer::Result as Append;
    use wire::raft_response::Answer as Wire;
    match answer {
        RaftAnswer::Append(result) => {
            let result = match result {
                AppendResult::Success => Append::Success(true),
                AppendResult::Conflict => Append::Conflict(true),
                AppendResult::Partial(last) => Append::Partial(wire::PartialSuccess { last: last.map(log_id_to_wire) }),
                AppendResult::HigherVote(vote) => Append::HigherVote(vote_to_wire(vote)),
            };
            Wire::Append(wire::AppendAnswer { result: Some(result) })
        }
        RaftAnswer::Vote { vote, granted, last } => {
            Wire::Vote(wire::VoteAnswer { vote: Some(vote_to_wire(vote)), granted, last: last.map(log_id_to_wire) })
        }
        RaftAnswer::MayElect(yes) => Wire::MayElect(wire::MayElectAnswer { yes }),
        RaftAnswer::Meet { node, empty } => Wire::Meet(wire::MeetAnswer { node: Some(node_to_wire(node)), empty }),
    }
}

fn answer_from_wire(response: wire::RaftResponse) -> Result<RaftAnswer, RpcError> {
    use wire::append_answer::Result as Append;
    use wire::raft_response::Answer as Wire;
    check_version(response.version)?;
    let missing = RpcError::Invalid("a raft answer without content");
    Ok(match response.answer.ok_or(missing.clone())? {
        Wire::Append(answer) => RaftAnswer::Append(match answer.result.ok_or(missing)? {
            Append::Success(_) => AppendResult::Success,
            Append::Conflict(_) => AppendResult::Conflict,
            Append::Partial(partial) => AppendResult::Partial(partial.last.map(log_id_from_wire).transpose()?),
            Append::HigherVote(vote) => AppendResult::HigherVote(vote_from_wire(Some(vote))?),
        }),
        Wire::Vote(answer) => RaftAnswer::Vote {
            vote: vote_from_wire(answer.vote)?,
            granted: answer.granted,
            last: answer.last.map(log_id_from_wire).transpose()?,
        },
        Wire::MayElect(answer) => RaftAnswer::MayElect(answer.yes),
        Wire::Meet(answer) => RaftAnswer::Meet { node: node_from_wire(answer.node)?, empty: answer.empty },
        Wire::Snapshot(_) => return Err(RpcError::Invalid("a raft call was answered as a snapshot")),
    })
}

fn node_to_wire(node: QuorumNode) -> wire::Node {
    wire::Node { id: node.id.0, directory: uuid_bytes(node.directory.0) }
}

fn node_from_wire(node: Option<wire::Node>) -> Result<QuorumNode, RpcError> {
    let node = node.ok_or(RpcError::Invalid("a raft message names no node"))?;
    Ok(QuorumNode { id: BrokerId(node.id), directory: DirectoryId(uuid_from(&node.directory)?) })
}

fn vote_to_wire(vote: RaftVote) -> wire::Vote {
    wire::Vote { term: vote.term, node: Some(node_to_wire(vote.node)), committed: vote.committed }
}

fn vote_from_wire(vote: Option<wire::Vote>) -> Result<RaftVote, RpcError> {
    let vote = vote.ok_or(RpcError::Invalid("a raft message without a vote"))?;
    Ok(RaftVote { term: vote.term, node: node_from_wire(vote.node)?, committed: vote.committed })
}

fn log_id_to_wire(id: RaftLogId) -> wire::LogId {
    wire::LogId { term: id.term, node: Some(node_to_wire(id.node)), index: id.index }
}

fn log_id_from_wire(id: wire::LogId) -> Result<RaftLogId, RpcError> {
    Ok(RaftLogId { term: id.term, node: node_from_wire(id.node)?, index: id.index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Uuid;

    fn node(id: i32) -> QuorumNode {
        QuorumNode { id: BrokerId(id), directory: DirectoryId(Uuid::from_u128(77)) }
    }

    #[test]
    fn calls_and_answers_read_back_as_they_were_written() {
        let vote = RaftVote { term: 4, node: node(1), committed: true };
        let id = Some(RaftLogId { term: 3, node: node(2), index: 9 });
        let calls = [
            RaftCall::Append { vote, previous: id, leader_commit: None, entries: vec![Bytes::from_static(b"e")] },
            RaftCall::Vote { vote, last: id },
            RaftCall::MayElect { last: None },
            RaftCall::Meet,
        ];
        for call in calls {
            assert_eq!(call_from_wire(Some(call_to_wire(call.clone()))), Ok(call));
        }
        let answers = [
            RaftAnswer::Append(AppendResult::Success),
            RaftAnswer::Append(AppendResult::Conflict),
            RaftAnswer::Append(AppendResult::Partial(id)),
            RaftAnswer::Append(AppendResult::HigherVote(vote)),
            RaftAnswer::Vote { vote, granted: true, last: id },
            RaftAnswer::MayElect(true),
            RaftAnswer::Meet { node: node(3), empty: false },
        ];
        for answer in answers {
            assert_eq!(answer_from_wire(response(answer_to_wire(answer.clone()))), Ok(answer));
        }
    }

    #[test]
    fn a_message_without_content_is_invalid() {
        assert!(call_from_wire(None).is_err());
        assert!(answer_from_wire(wire::RaftResponse { version: INTERNAL_VERSION, answer: None }).is_err());
        assert!(vote_from_wire(Some(wire::Vote::default())).is_err());
    }
}
