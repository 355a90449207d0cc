//! How openraft reaches the other members.
//!
//! Each message names sender and receiver with their directories (`R5`). A client dials at its first call, never when it is
//! made: openraft's core waits for that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, SnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot, Vote};
use rpc::RpcError;
use rpc::raft::{AppendResult, QuorumNode, RaftAnswer, RaftCall, RaftPeer};
use tokio::time::Instant;

use crate::raft::codec;
use crate::raft::types::{Member, NodeId, TypeConfig, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire};

/// The pause before an unreachable member is tried again.
const BACKOFF: Duration = Duration::from_millis(100);

/// What every connection of this node shares.
#[derive(Debug)]
pub(crate) struct Links {
    network: rpc::net::Network,
    me: QuorumNode,
    /// By `node.id`: the configured addresses, which may be newer than those that the membership began with.
    addresses: BTreeMap<i32, String>,
    acknowledged: Mutex<BTreeMap<NodeId, Instant>>,
    #[cfg(test)]
    pub(crate) cut: Mutex<std::collections::BTreeSet<i32>>,
}

impl Links {
    pub(crate) fn new(network: rpc::net::Network, me: QuorumNode, addresses: BTreeMap<i32, String>) -> Links {
        Links {
            network,
            me,
            addresses,
            acknowledged: Mutex::default(),
            #[cfg(test)]
            cut: Mutex::default(),
        }
    }

    /// When a member answered an append last.
    pub(crate) fn acknowledged(&self, node: NodeId) -> Option<Instant> {
        self.acknowledged.lock().expect("no holder of the lock panics").get(&node).copied()
    }

    /// The address of a member: as an operator gave it when it was added, else as it is configured.
    pub(crate) fn address(&self, node: NodeId, member: &Member) -> String {
        if member.given {
            return member.address.clone();
        }
        self.addresses.get(&node.id).unwrap_or(&member.address).clone()
    }

    /// A connection to the node at `address`.
    pub(crate) fn peer(&self, to: QuorumNode, address: &str) -> Result<RaftPeer, RpcError> {
        RaftPeer::new(&self.network, address, self.me, to)
    }

    /// Whether messages to or from a node pass; tests cut them.
    pub(crate) fn passes(&self, id: i32) -> bool {
        #[cfg(test)]
        return !self.cut.lock().expect("no holder of the lock panics").contains(&id);
        #[cfg(not(test))]
        {
            let _ = id;
            true
        }
    }
}

/// Makes connections for openraft.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) links: Arc<Links>,
}

/// A connection to one member.
#[derive(Debug)]
pub(crate) struct Connection {
    links: Arc<Links>,
    target: NodeId,
    peer: Result<RaftPeer, RpcError>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Connection {
        let peer = self.links.peer(target.quorum_node(), &self.links.address(target, node));
        Connection { links: Arc::clone(&self.links), target, peer }
    }
}

/// A call that found no link.
#[derive(thiserror::Error, Debug)]
enum CallError {
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("the answer is to another question")]
    Mismatch,
    #[error("the link is cut")]
    Cut,
}

type RpcResult<T, E = openraft::error::Infallible> = Result<T, RPCError<NodeId, Member, RaftError<NodeId, E>>>;

fn unreachable<E: std::error::Error>(error: &CallError) -> RPCError<NodeId, Member, RaftError<NodeId, E>> {
    RPCError::Unreachable(Unreachable::new(error))
}

impl Connection {
    async fn call(&self, call: RaftCall, timeout: Duration) -> Result<RaftAnswer, CallError> {
        if !self.links.passes(self.target.id) {
            return Err(CallError::Cut);
        }
        let peer = self.peer.as_ref().map_err(Clone::clone)?;
        Ok(peer.call(call, timeout).await?)
    }

    fn acknowledged(&self) {
        let now = Instant::now();
        self.links.acknowledged.lock().expect("no holder of the lock panics").insert(self.target, now);
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<NodeId>> {
        let call = RaftCall::Append {
            vote: vote_to_wire(&request.vote),
            previous: request.prev_log_id.as_ref().map(log_id_to_wire),
            leader_commit: request.leader_commit.as_ref().map(log_id_to_wire),
            entries: request.entries.iter().map(codec::entry_to_wire).collect(),
        };
        let answer = self.call(call, option.hard_ttl()).await.map_err(|error| unreachable(&error))?;
        let RaftAnswer::Append(result) = answer else { return Err(unreachable(&CallError::Mismatch)) };
        self.acknowledged();
        Ok(match result {
            AppendResult::Success => AppendEntriesResponse::Success,
            AppendResult::Partial(last) => AppendEntriesResponse::PartialSuccess(last.map(log_id_from_wire)),
            AppendResult::Conflict => AppendEntriesResponse::Conflict,
            AppendResult::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_from_wire(vote)),
        })
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<TypeConfig>,
        _: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<NodeId>, InstallSnapshotError> {
        // Snapshots travel whole, by `full_snapshot`.
        Err(unreachable(&CallError::Mismatch))
    }

    async fn vote(&mut self, request: VoteRequest<NodeId>, option: RPCOption) -> RpcResult<VoteResponse<NodeId>> {
        let call = RaftCall::Vote {
            vote: vote_to_wire(&request.vote),
            last: request.last_log_id.as_ref().map(log_id_to_wire),
        };
        let answer = self.call(call, option.hard_ttl()).await.map_err(|error| unreachable(&error))?;
        let RaftAnswer::Vote { vote, granted, last } = answer else { return Err(unreachable(&CallError::Mismatch)) };
        Ok(VoteResponse { vote: vote_from_wire(vote), vote_granted: granted, last_log_id: last.map(log_id_from_wire) })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let network = |error: &CallError| StreamingError::Network(NetworkError::new(error));
        if !self.links.passes(self.target.id) {
            return Err(network(&CallError::Cut));
        }
        let peer = self.peer.as_ref().map_err(|error| network(&CallError::Rpc(error.clone())))?;
        let meta = codec::to_json(&snapshot.meta);
        let data = Bytes::from(snapshot.snapshot.into_inner());
        let sent = peer.install_snapshot(vote_to_wire(&vote), meta, data, option.hard_ttl());
        tokio::select! {
            // Dropping the transfer is safe: a snapshot takes effect only when it arrived whole.
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = sent => {
                let vote = answer.map_err(|error| network(&CallError::Rpc(error)))?;
                self.acknowledged();
                Ok(SnapshotResponse::new(vote_from_wire(vote)))
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
