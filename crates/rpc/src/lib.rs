//! Internal gRPC between nodes: generated from `/proto`, offered as plain Rust types.
//!
//! [`net`] holds connections and servers with their socket and HTTP/2 settings; [`replication`] the stream of a follower
//! and a leader (`R56` to `R64`); [`broker`] what any node may ask a broker (`R76`); [`transactions`] what brokers ask each
//! other about transactions (`R47`, `R50`), [`lag`] about groups; [`raft`] and [`controller`] the metadata quorum.
//!
//! Invariants: only this crate knows tonic; no prost type appears in a public signature; what a peer sends is checked
//! here for form and bounded by [`net::MAX_MESSAGE`], and by the receiver for meaning.

pub mod broker;
mod bulk;
pub mod controller;
pub mod lag;
pub mod net;
pub mod raft;
pub mod replication;
pub mod transactions;

mod wire {
    //! Generated code.
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::allow_attributes_without_reason,
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::too_many_lines,
        clippy::large_futures,
        reason = "generated from /proto"
    )]
    pub mod replication {
        tonic::include_proto!("ottla.replication.v1");
    }
    pub mod broker {
        tonic::include_proto!("ottla.broker.v1");
    }
    pub mod transactions {
        tonic::include_proto!("ottla.transactions.v1");
    }
    pub mod lag {
        tonic::include_proto!("ottla.lag.v1");
    }
    pub mod raft {
        tonic::include_proto!("ottla.raft.v1");
    }
    pub mod controller {
        tonic::include_proto!("ottla.controller.v1");
    }
}

use bytes::Bytes;
use model::Uuid;

/// The version of every internal message; a peer that speaks another one is refused with both numbers.
pub const INTERNAL_VERSION: u32 = 1;

/// Why a call or a stream failed, by what the caller can do.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum RpcError {
    /// The peer could not be reached or went away: try again, or another peer.
    #[error("{peer} is unreachable: {reason}")]
    Unavailable {
        /// Address.
        peer: String,
        /// What the transport said.
        reason: String,
    },
    /// The peer refused: what was sent, or who sent it, is not acceptable.
    #[error("{peer} refused: {reason}")]
    Refused {
        /// Address.
        peer: String,
        /// What it said.
        reason: String,
    },
    /// The peer sent something that is not a message of this protocol.
    #[error("a peer sent an invalid message: {0}")]
    Invalid(&'static str),
}

impl RpcError {
    pub(crate) fn of(peer: &str, status: &tonic::Status) -> RpcError {
        let reason = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            tonic::Code::FailedPrecondition
            | tonic::Code::PermissionDenied
            | tonic::Code::InvalidArgument
            | tonic::Code::Unimplemented => RpcError::Refused { peer: peer.to_owned(), reason },
            _ => RpcError::Unavailable { peer: peer.to_owned(), reason },
        }
    }
}

pub(crate) fn uuid_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn uuid_from(bytes: &[u8]) -> Result<Uuid, RpcError> {
    Uuid::from_slice(bytes).map_err(|_| RpcError::Invalid("an identifier has not 16 bytes"))
}

pub(crate) fn check_version(version: u32) -> Result<(), RpcError> {
    if version == INTERNAL_VERSION {
        Ok(())
    } else {
        Err(RpcError::Invalid("the peer speaks another version of the internal protocol"))
    }
}
