//! What brokers ask each other about transactions: whether a coordinator knows of one (`R50`), and that one is ended
//! (`R47`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use model::{ErrorCode, PartitionIndex, ProducerEpoch, ProducerId, TopicId, TopicPartition};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::net::Network;
use crate::wire::transactions as wire;
use crate::wire::transactions::transaction_peer_client::TransactionPeerClient;
use crate::wire::transactions::transaction_peer_server::{TransactionPeer as WirePeer, TransactionPeerServer};
use crate::{INTERNAL_VERSION, RpcError, check_version, net, uuid_bytes, uuid_from};

/// Asks a coordinator about partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verify {
    /// Whose transaction.
    pub transactional_id: String,
    /// Its producer id.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// Add the partitions where they are not in it.
    pub add: bool,
    /// Which partitions.
    pub partitions: Vec<TopicPartition>,
}

/// The end of a transaction in some partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteMarker {
    /// Whose transaction.
    pub producer_id: ProducerId,
    /// The epoch in force from then on.
    pub producer_epoch: ProducerEpoch,
    /// The epoch of the coordinator that decided.
    pub coordinator_epoch: i32,
    /// Committed, else aborted.
    pub commit: bool,
    /// The version of the transaction protocol.
    pub transaction_version: i8,
    /// Where.
    pub partitions: Vec<TopicPartition>,
}

/// A future of what a peer is told.
pub type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Answers for this broker.
pub trait TransactionPeer: Send + Sync + 'static {
    /// A code for each partition, in order.
    fn verify(&self, verify: Verify) -> Answering<Vec<ErrorCode>>;
    /// A code for each partition of each marker, in order.
    fn write_markers(&self, markers: Vec<WriteMarker>, timeout: Duration) -> Answering<Vec<ErrorCode>>;
}

/// A connection to another broker; cheap to clone.
#[derive(Clone, Debug)]
pub struct TransactionClient {
    address: String,
    client: TransactionPeerClient<Channel>,
}

impl TransactionClient {
    /// The broker at `host:port`; dials at the first call, and again after each loss.
    ///
    /// # Errors
    /// [`RpcError::Unavailable`] where `address` is no `host:port`.
    pub fn new(network: &Network, address: &str) -> Result<Self, RpcError> {
        let client = TransactionPeerClient::new(network.connect_lazy(address)?)
            .max_decoding_message_size(net::MAX_MESSAGE)
            .max_encoding_message_size(net::MAX_MESSAGE);
        Ok(TransactionClient { address: address.to_owned(), client })
    }

    /// Asks the coordinator there.
    ///
    /// # Errors
    /// Where no answer came in time; what became of the request is open.
    pub async fn verify(&self, verify: &Verify, timeout: Duration) -> Result<Vec<ErrorCode>, RpcError> {
        let request = wire::VerifyRequest {
            version: INTERNAL_VERSION,
            transactional_id: verify.transactional_id.clone(),
            producer_id: verify.producer_id.0,
            producer_epoch: i32::from(verify.producer_epoch.0),
            add: verify.add,
            partitions: verify.partitions.iter().map(partition_to_wire).collect(),
        };
        let mut client = self.client.clone();
        let answer = self.in_time(timeout, client.verify(request)).await?;
        check_version(answer.version)?;
        errors(&answer.errors, verify.partitions.len())
    }

    /// Has the leader there write markers, waiting for its in-sync replicas for `timeout`.
    ///
    /// # Errors
    /// Where no answer came in time; what became of the markers is open.
    pub async fn write_markers(&self, markers: &[WriteMarker], timeout: Duration) -> Result<Vec<ErrorCode>, RpcError> {
        let request = wire::WriteMarkersRequest {
            version: INTERNAL_VERSION,
            markers: markers.iter().map(marker_to_wire).collect(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let mut client = self.client.clone();
        // The peer's own limit comes first.
        let answer = self.in_time(timeout + Duration::from_secs(1), client.write_markers(request)).await?;
        check_version(answer.version)?;
        errors(&answer.errors, markers.iter().map(|marker| marker.partitions.len()).sum())
    }

    async fn in_time<T>(
        &self,
        timeout: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(answer) => Ok(answer.map_err(|status| RpcError::of(&self.address, &status))?.into_inner()),
            Err(_) => Err(RpcError::Unavailable { peer: self.address.clone(), reason: "no answer in time".to_owned() }),
        }
    }
}

/// The service to put on the INTERNAL listener.
pub fn routes(peer: Arc<dyn TransactionPeer>) -> Routes {
    let server = TransactionPeerServer::new(Service { peer })
        .max_decoding_message_size(net::MAX_MESSAGE)
        .max_encoding_message_size(net::MAX_MESSAGE);
    Routes::new(server)
}

struct Service {
    peer: Arc<dyn TransactionPeer>,
}

#[tonic::async_trait]
impl WirePeer for Service {
    async fn verify(&self, request: Request<wire::VerifyRequest>) -> Result<Response<wire::VerifyAnswer>, Status> {
        let verify = verify_from_wire(request.into_inner()).map_err(invalid)?;
        let errors = self.peer.verify(verify).await;
        Ok(Response::new(wire::VerifyAnswer { version: INTERNAL_VERSION, errors: codes(&errors) }))
    }

    async fn write_markers(
        &self,
        request: Request<wire::WriteMarkersRequest>,
    ) -> Result<Response<wire::WriteMarkersAnswer>, Status> {
        let request = request.into_inner();
        check_version(request.version).map_err(invalid)?;
        let markers: Result<Vec<_>, _> = request.markers.into_iter().map(marker_from_wire).collect();
        let timeout = Duration::from_millis(request.timeout_ms);
        let errors = self.peer.write_markers(markers.map_err(invalid)?, timeout).await;
        Ok(Response::new(wire::WriteMarkersAnswer { version: INTERNAL_VERSION, errors: codes(&errors) }))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn invalid(error: RpcError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn codes(errors: &[ErrorCode]) -> Vec<i32> {
    errors.iter().map(|error| i32::from(error.code())).collect()
}

fn errors(codes: &[i32], expected: usize) -> Result<Vec<ErrorCode>, RpcError> {
    if codes.len() != expected {
        return Err(RpcError::Invalid("an answer has not one error for each partition"));
    }
    let code = |code: &i32| i16::try_from(*code).map(ErrorCode::from_code);
    codes.iter().map(code).collect::<Result<_, _>>().map_err(|_| RpcError::Invalid("an error code is out of range"))
}

fn partition_to_wire(partition: &TopicPartition) -> wire::Partition {
    wire::Partition { topic_id: uuid_bytes(partition.topic_id.0), partition: partition.partition.0 }
}

fn partitions_from_wire(partitions: &[wire::Partition]) -> Result<Vec<TopicPartition>, RpcError> {
    let partition = |partition: &wire::Partition| {
        let topic_id = TopicId(uuid_from(&partition.topic_id)?);
        Ok(TopicPartition { topic_id, partition: PartitionIndex(partition.partition) })
    };
    partitions.iter().map(partition).collect()
}

fn verify_from_wire(request: wire::VerifyRequest) -> Result<Verify, RpcError> {
    check_version(request.version)?;
    Ok(Verify {
        transactional_id: request.transactional_id,
        producer_id: ProducerId(request.producer_id),
        producer_epoch: epoch(request.producer_epoch)?,
        add: request.add,
        partitions: partitions_from_wire(&request.partitions)?,
    })
}

fn marker_to_wire(marker: &WriteMarker) -> wire::Marker {
    wire::Marker {
        producer_id: marker.producer_id.0,
        producer_epoch: i32::from(marker.producer_epoch.0),
        coordinator_epoch: marker.coordinator_epoch,
        commit: marker.commit,
        transaction_version: i32::from(marker.transaction_version),
        partitions: marker.partitions.iter().map(partition_to_wire).collect(),
    }
}

fn marker_from_wire(marker: wire::Marker) -> Result<WriteMarker, RpcError> {
    let transaction_version = i8::try_from(marker.transaction_version)
        .map_err(|_| RpcError::Invalid("a transaction version is out of range"))?;
    Ok(WriteMarker {
        producer_id: ProducerId(marker.producer_id),
        producer_epoch: epoch(marker.producer_epoch)?,
        coordinator_epoch: marker.coordinator_epoch,
        commit: marker.commit,
        transaction_version,
        partitions: partitions_from_wire(&marker.partitions)?,
    })
}

fn epoch(epoch: i32) -> Result<ProducerEpoch, RpcError> {
    i16::try_from(epoch).map(ProducerEpoch).map_err(|_| RpcError::Invalid("a producer epoch is out of range"))
}
