//! What a coordinator of groups asks the leaders of partitions: how far behind an offset is, in records and in time.

use std::sync::Arc;
use std::time::Duration;

use model::{Offset, PartitionIndex, TopicId, TopicPartition};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::net::Network;
use crate::transactions::Answering;
use crate::wire::lag as wire;
use crate::wire::lag::lag_peer_client::LagPeerClient;
use crate::wire::lag::lag_peer_server::{LagPeer as WirePeer, LagPeerServer};
use crate::{INTERNAL_VERSION, RpcError, check_version, uuid_bytes, uuid_from};

/// Positions in one question, at most.
pub const POSITIONS_MAX: usize = 10_000;

/// How far behind an offset is; what is None is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behind {
    /// Records from it up to the high watermark.
    pub records: Option<u64>,
    /// Milliseconds since the first of them was appended; 0 where there is none.
    pub ms: Option<u64>,
}

/// Answers for this broker.
pub trait LagPeer: Send + Sync + 'static {
    /// One answer for each position, in order.
    fn behind(&self, positions: Vec<(TopicPartition, Offset)>) -> Answering<Vec<Behind>>;
}

/// A connection to another broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct LagClient {
    address: String,
    client: LagPeerClient<Channel>,
}

impl LagClient {
    /// The broker at `host:port`; dials at the first call, and again after each loss.
    ///
    /// # Errors
    /// [`RpcError::Unavailable`] where `address` is no `host:port`.
    pub fn new(network: &Network, address: &str) -> Result<Self, RpcError> {
        Ok(LagClient { address: address.to_owned(), client: LagPeerClient::new(network.connect_lazy(address)?) })
    }

    /// Asks the leader there, for [`POSITIONS_MAX`] at most.
    ///
    /// # Errors
    /// Where no answer came in time, or it is not one for each position.
    pub async fn behind(
        &self,
        positions: &[(TopicPartition, Offset)],
        timeout: Duration,
    ) -> Result<Vec<Behind>, RpcError> {
        let request = wire::BehindRequest {
            version: INTERNAL_VERSION,
            positions: positions.iter().map(|(id, offset)| position_to_wire(*id, *offset)).collect(),
        };
        let mut client = self.client.clone();
        let late = RpcError::Unavailable { peer: self.address.clone(), reason: "no answer in time".to_owned() };
        let answer = tokio::time::timeout(timeout, client.behind(request)).await.map_err(|_| late)?;
        let answer = answer.map_err(|status| RpcError::of(&self.address, &status))?.into_inner();
        check_version(answer.version)?;
        if answer.behind.len() != positions.len() {
            return Err(RpcError::Invalid("an answer has not one lag for each position"));
        }
        Ok(answer.behind.iter().map(|behind| Behind { records: behind.records, ms: behind.ms }).collect())
    }
}

/// The service to put on the INTERNAL listener.
pub fn routes(peer: Arc<dyn LagPeer>) -> Routes {
    Routes::new(LagPeerServer::new(Service { peer }))
}

struct Service {
    peer: Arc<dyn LagPeer>,
}

#[tonic::async_trait]
impl WirePeer for Service {
    async fn behind(&self, request: Request<wire::BehindRequest>) -> Result<Response<wire::BehindAnswer>, Status> {
        let positions = from_wire(&request.into_inner()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let behind = self.peer.behind(positions).await;
        let behind = behind.iter().map(|behind| wire::Behind { records: behind.records, ms: behind.ms }).collect();
        Ok(Response::new(wire::BehindAnswer { version: INTERNAL_VERSION, behind }))
    }
}

fn position_to_wire(id: TopicPartition, offset: Offset) -> wire::Position {
    wire::Position { topic_id: uuid_bytes(id.topic_id.0), partition: id.partition.0, offset: offset.0 }
}

fn from_wire(request: &wire::BehindRequest) -> Result<Vec<(TopicPartition, Offset)>, RpcError> {
    check_version(request.version)?;
    if request.positions.len() > POSITIONS_MAX {
        return Err(RpcError::Invalid("too many positions are asked for at once"));
    }
    let position = |position: &wire::Position| {
        let topic_id = TopicId(uuid_from(&position.topic_id)?);
        let id = TopicPartition { topic_id, partition: PartitionIndex(position.partition) };
        Ok((id, Offset(position.offset)))
    };
    request.positions.iter().map(position).collect()
}
