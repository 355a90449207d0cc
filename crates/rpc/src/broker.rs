//! What any node may ask of a broker's INTERNAL listener: who runs there, and a stream whose end says that it is gone
//! (`R76`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use model::{BrokerEpoch, BrokerId, ClusterId, Incarnation};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::net::{Keepalive, Network};
use crate::wire::broker as wire;
use crate::{INTERNAL_VERSION, RpcError, check_version, uuid_bytes, uuid_from};

/// Who runs at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Its cluster; none until it knows.
    pub cluster_id: ClusterId,
    /// Its `node.id`.
    pub broker_id: BrokerId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// Its broker epoch; none until it is registered.
    pub broker_epoch: BrokerEpoch,
}

/// What a probe came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probed {
    /// This process runs there.
    Answered(Probe),
    /// Nobody listens there.
    Refused,
    /// What else it may be, that the other side does not answer or that this one cannot ask: it says nothing of who runs there.
    Unknown(RpcError),
}

/// Asks over a new connection who runs at `host:port`, and waits for the answer as long as `timeout`.
pub async fn probe(network: &Network, address: &str, timeout: Duration) -> Probed {
    let asked = async {
        let Some(channel) = network.connect_unless_refused(address).await? else { return Ok(Probed::Refused) };
        let mut client = wire::broker_peer_client::BrokerPeerClient::new(channel);
        let answer = client.probe(wire::ProbeRequest { version: INTERNAL_VERSION }).await;
        from_wire(&answer.map_err(|status| RpcError::of(address, &status))?.into_inner()).map(Probed::Answered)
    };
    let asked = tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(late(address)));
    asked.unwrap_or_else(Probed::Unknown)
}

/// Follows the process at `host:port`: yields who it is, and a watch that ends when it is gone, or silent by `keepalive`
/// (HTTP/2).
///
/// # Errors
/// [`RpcError::Unavailable`] where nobody answers within `timeout`.
pub async fn watch(
    network: &Network,
    address: &str,
    keepalive: Keepalive,
    timeout: Duration,
) -> Result<(Probe, Watch), RpcError> {
    let asked = async {
        let channel = network.connect_watched(address, keepalive).await?;
        let mut client = wire::broker_peer_client::BrokerPeerClient::new(channel);
        let answer = client.watch(wire::ProbeRequest { version: INTERNAL_VERSION }).await;
        let mut stream = answer.map_err(|status| RpcError::of(address, &status))?.into_inner();
        let first = stream.message().await.map_err(|status| RpcError::of(address, &status))?;
        let first = first.ok_or(RpcError::Invalid("a watch ended before its first answer"))?;
        Ok((from_wire(&first)?, Watch { stream }))
    };
    tokio::time::timeout(timeout, asked).await.unwrap_or_else(|_| Err(late(address)))
}

fn late(address: &str) -> RpcError {
    RpcError::Unavailable { peer: address.to_owned(), reason: "no answer in time".to_owned() }
}

/// An open watch.
#[derive(Debug)]
pub struct Watch {
    stream: tonic::Streaming<wire::ProbeAnswer>,
}

impl Watch {
    /// Returns when the watched process is gone or silent.
    pub async fn ended(&mut self) {
        while let Ok(Some(_)) = self.stream.message().await {}
    }
}

/// Answers for this broker.
pub trait BrokerPeer: Send + Sync + 'static {
    /// Who runs here.
    fn identity(&self) -> Probe;
}

/// The service to put on the INTERNAL listener.
pub fn routes(peer: Arc<dyn BrokerPeer>) -> Routes {
    Routes::new(wire::broker_peer_server::BrokerPeerServer::new(Service { peer }))
}

struct Service {
    peer: Arc<dyn BrokerPeer>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::ProbeAnswer, Status>> + Send>>;

#[tonic::async_trait]
impl wire::broker_peer_server::BrokerPeer for Service {
    async fn probe(&self, _: Request<wire::ProbeRequest>) -> Result<Response<wire::ProbeAnswer>, Status> {
        Ok(Response::new(to_wire(&self.peer.identity())))
    }

    type WatchStream = Answers;

    async fn watch(&self, _: Request<wire::ProbeRequest>) -> Result<Response<Answers>, Status> {
        let first = to_wire(&self.peer.identity());
        Ok(Response::new(Box::pin(stream::once(async { Ok(first) }).chain(stream::pending()))))
    }
}

fn to_wire(probe: &Probe) -> wire::ProbeAnswer {
    wire::ProbeAnswer {
        version: INTERNAL_VERSION,
        cluster_id: uuid_bytes(probe.cluster_id.0),
        broker_id: probe.broker_id.0,
        incarnation: uuid_bytes(probe.incarnation.0),
        broker_epoch: probe.broker_epoch.0,
    }
}

fn from_wire(answer: &wire::ProbeAnswer) -> Result<Probe, RpcError> {
    check_version(answer.version)?;
    Ok(Probe {
        cluster_id: ClusterId(uuid_from(&answer.cluster_id)?),
        broker_id: BrokerId(answer.broker_id),
        incarnation: Incarnation(uuid_from(&answer.incarnation)?),
        broker_epoch: BrokerEpoch(answer.broker_epoch),
    })
}
