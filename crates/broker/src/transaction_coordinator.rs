//! Transaction coordinators: what is theirs alone besides what [`crate::shards`] does for every kind (`R44` to `R51`), and
//! the way to them, here or on another broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coordinator::TransactionShard;
use coordinator::transaction::request::{AddPartitionsRequest, ListTransactionsResponse, Producer};
use coordinator::transaction::{EPOCH_BUMP_VERSION, TransactionEffect, TransactionRequest, TransactionResponse};
use metadata::MetadataImage;
use model::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, ProducerId, TopicPartition};
use rpc::transactions::{Answering, TransactionPeer, Verify, WriteMarker};

use crate::api::{TransactionMarker, TransactionVerifier, Verified, VerifyTransaction};
use crate::context::Context;
use crate::markers::{MarkerSender, Work};
use crate::peers::Peers;
use crate::producer_ids::ProducerIds;
use crate::shards::{Kind, Shard, Shards};
use crate::transactions::MarkerWriter;

/// The topic that the transactions' state is kept in.
pub(crate) const TRANSACTIONS_TOPIC: &str = "__transaction_state";
/// The feature that says how transactions are done (KIP-890).
const TRANSACTION_VERSION: &str = "transaction.version";
/// How long another broker's coordinator may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an addition may wait for what is under way for its transactional id.
const ADD_PATIENCE: Duration = Duration::from_millis(100);
/// How long a coordinator waits to hear of a topic that a partition's leader knows.
const METADATA_WAIT: Duration = Duration::from_millis(500);
/// Another broker does not make this one wait for longer.
const MAX_MARKER_TIMEOUT: Duration = Duration::from_secs(60);

/// The kind.
#[derive(Debug)]
pub(crate) struct Transactions {
    pub(crate) producer_ids: Arc<ProducerIds>,
    pub(crate) markers: Arc<MarkerSender>,
}

impl Kind for Transactions {
    type Core = TransactionShard;

    const TOPIC: &'static str = TRANSACTIONS_TOPIC;

    fn core(&self, context: &Context, leader_epoch: LeaderEpoch) -> TransactionShard {
        let version = context.image().feature(TRANSACTION_VERSION);
        TransactionShard::new(context.config.transactions.clone(), leader_epoch, version, context.config.rules)
    }

    fn listed(core: &mut TransactionShard, context: &Context) {
        core.set_transaction_version(context.image().feature(TRANSACTION_VERSION));
    }

    fn carry_out(shards: &Arc<Shards<Self>>, shard: &Arc<Shard<Self>>, effect: TransactionEffect) {
        let (shards, shard) = (Arc::clone(shards), Arc::clone(shard));
        match effect {
            TransactionEffect::AllocateProducerId { transactional_id } => {
                tokio::spawn(async move {
                    let id = shards.next_producer_id().await;
                    shards.tell(&shard, |core, now| core.producer_id_allocated(&transactional_id, id, now));
                });
            }
            TransactionEffect::WriteMarkers { transactional_id, marker, partitions } => {
                let sender = Arc::clone(&shards.kind.markers);
                let transactional_id = transactional_id.into();
                let work = Work { shards, shard, transactional_id, marker, partitions, attempts: 0 };
                tokio::spawn(async move { sender.send(&work) });
            }
        }
    }
}

impl Shards<Transactions> {
    /// Asks the coordinator of the request's transactional id, if it is here; a request for all ids, all coordinators that
    /// are here.
    ///
    /// # Errors
    /// As [`Shards::ask`]; INVALID_REQUEST for the empty id, which no broker coordinates.
    pub(crate) async fn transaction(
        self: &Arc<Self>,
        request: TransactionRequest,
    ) -> Result<TransactionResponse, ErrorCode> {
        if let Some(id) = request.transactional_id().map(str::to_owned) {
            if id.is_empty() {
                return Err(ErrorCode::InvalidRequest);
            }
            return self.ask(&id, request).await;
        }
        let mut all = ListTransactionsResponse { error: ErrorCode::None, transactions: Vec::new() };
        for answer in self.ask_all(request).await? {
            if let TransactionResponse::List(listed) = answer {
                all.transactions.extend(listed.transactions);
            }
        }
        Ok(TransactionResponse::List(all))
    }

    /// The code for want of an id is Kafka's: the client asks again.
    async fn next_producer_id(&self) -> Result<ProducerId, ErrorCode> {
        self.kind.producer_ids.next(&self.context).await.map_err(|error| {
            tracing::warn!(%error, "no producer ids");
            ErrorCode::CoordinatorLoadInProgress
        })
    }

    /// The cluster's transaction version, told to the shards, until the broker stops.
    pub(crate) async fn follow_features(self: Arc<Self>) {
        let mut images = self.context.images();
        let mut before = images.borrow_and_update().feature(TRANSACTION_VERSION);
        while images.changed().await.is_ok() {
            let version = images.borrow_and_update().feature(TRANSACTION_VERSION);
            if version != before {
                before = version;
                for shard in self.all() {
                    self.tell(&shard, |core, _| core.set_transaction_version(version));
                }
            }
        }
    }

    /// What another leader adds at the same time, and the end of the transaction before, are waited for rather than refused.
    async fn add_patiently(self: &Arc<Self>, add: AddPartitionsRequest) -> Result<TransactionResponse, ErrorCode> {
        let patience = if add.verify_only { Duration::ZERO } else { ADD_PATIENCE };
        let until = tokio::time::Instant::now() + patience;
        let concurrent = |answer: &TransactionResponse| match answer {
            TransactionResponse::AddPartitions(answer) => {
                answer.partitions.iter().any(|(_, _, error)| *error == ErrorCode::ConcurrentTransactions)
            }
            _ => false,
        };
        let id = add.transactional_id.clone();
        if id.is_empty() {
            return Err(ErrorCode::InvalidRequest);
        }
        self.ask_patiently(&id, TransactionRequest::AddPartitions(add), until, concurrent).await
    }

    /// Answers the leader of partitions that a producer wants to write to (`R50`).
    async fn verify_here(self: &Arc<Self>, verify: VerifyTransaction) -> Vec<ErrorCode> {
        let known = || {
            let image = self.context.image();
            verify.partitions.iter().all(|id| image.topic(id.topic_id).is_some()).then_some(())
        };
        // The leader may have heard of the topic before this broker did.
        let _ = self.context.wait_metadata(METADATA_WAIT, known).await;
        let image = self.context.image();
        let request = AddPartitionsRequest {
            transactional_id: verify.transactional_id,
            producer: Producer { id: verify.producer_id, epoch: verify.producer_epoch },
            partitions: verify.partitions.iter().filter_map(|id| name(&image, *id)).collect(),
            verify_only: !verify.add,
            client_version: if verify.add { EPOCH_BUMP_VERSION } else { 0 },
        };
        let answer = if request.partitions.is_empty() {
            Ok(TransactionResponse::AddPartitions(request.answered(ErrorCode::None)))
        } else {
            self.add_patiently(request).await
        };
        let (errors, refused) = match answer {
            Ok(TransactionResponse::AddPartitions(answer)) => (answer.partitions, ErrorCode::UnknownServerError),
            Ok(_) => (Vec::new(), ErrorCode::UnknownServerError),
            Err(error) => (Vec::new(), error),
        };
        let errors: BTreeMap<_, _> =
            errors.into_iter().map(|(topic, partition, error)| ((topic, partition), error)).collect();
        let error = |id: &TopicPartition| match name(&image, *id) {
            None => ErrorCode::UnknownTopicOrPartition,
            Some(name) => errors.get(&name).copied().unwrap_or(refused),
        };
        let errors: Vec<_> = verify.partitions.iter().map(error).collect();
        // R76: the next coordinator may have begun a transaction that one that is cut off does not know.
        if self.context.is_cut_off() && errors.iter().any(|error| !error.is_none()) {
            return vec![ErrorCode::CoordinatorNotAvailable; errors.len()];
        }
        errors
    }
}

fn name(image: &MetadataImage, id: TopicPartition) -> Option<(String, PartitionIndex)> {
    let topic = image.topic(id.topic_id)?;
    topic.partition(id.partition)?;
    Some((topic.name.to_string(), id.partition))
}

/// The broker's own way to coordinators (`R50`).
#[derive(Debug)]
pub(crate) struct CoordinatorVerifier {
    pub(crate) shards: Arc<Shards<Transactions>>,
    pub(crate) peers: Arc<Peers>,
}

impl TransactionVerifier for CoordinatorVerifier {
    fn verify(&self, request: VerifyTransaction) -> Verified {
        let (shards, peers) = (Arc::clone(&self.shards), Arc::clone(&self.peers));
        Box::pin(async move {
            let Some(coordinator) = coordinator_of(&shards, &request.transactional_id) else {
                return vec![ErrorCode::CoordinatorNotAvailable; request.partitions.len()];
            };
            if coordinator == shards.context.config.broker_id {
                return shards.verify_here(request).await;
            }
            let Some(client) = peers.client(coordinator) else {
                return vec![ErrorCode::CoordinatorNotAvailable; request.partitions.len()];
            };
            let verify = Verify {
                transactional_id: request.transactional_id,
                producer_id: request.producer_id,
                producer_epoch: request.producer_epoch,
                add: request.add,
                partitions: request.partitions,
            };
            client.verify(&verify, VERIFY_TIMEOUT).await.unwrap_or_else(|error| {
                tracing::debug!(%coordinator, %error, "a transaction could not be verified");
                vec![ErrorCode::NetworkException; verify.partitions.len()]
            })
        })
    }
}

fn coordinator_of(shards: &Arc<Shards<Transactions>>, transactional_id: &str) -> Option<BrokerId> {
    let partition = shards.partition_of(transactional_id)?;
    let image = shards.context.image();
    let topic_id = image.topic_id(TRANSACTIONS_TOPIC)?;
    image.leader_for(TopicPartition { topic_id, partition }).map(|(leader, _)| leader)
}

/// What other brokers ask this one.
#[derive(Debug)]
pub(crate) struct PeerTransactions {
    pub(crate) shards: Arc<Shards<Transactions>>,
    pub(crate) writer: Arc<MarkerWriter>,
}

impl TransactionPeer for PeerTransactions {
    fn verify(&self, verify: Verify) -> Answering<Vec<ErrorCode>> {
        let shards = Arc::clone(&self.shards);
        let verify = VerifyTransaction {
            transactional_id: verify.transactional_id,
            producer_id: verify.producer_id,
            producer_epoch: verify.producer_epoch,
            partitions: verify.partitions,
            add: verify.add,
        };
        Box::pin(async move { shards.verify_here(verify).await })
    }

    fn write_markers(&self, markers: Vec<WriteMarker>, timeout: Duration) -> Answering<Vec<ErrorCode>> {
        let writer = Arc::clone(&self.writer);
        let markers = markers.into_iter().map(|marker| {
            let told = TransactionMarker {
                producer_id: marker.producer_id,
                producer_epoch: marker.producer_epoch,
                coordinator_epoch: marker.coordinator_epoch,
                transaction_version: marker.transaction_version,
                commit: marker.commit,
            };
            (told, marker.partitions)
        });
        let markers = markers.collect();
        Box::pin(async move {
            let written = writer.write(markers, timeout.min(MAX_MARKER_TIMEOUT)).await;
            written.into_iter().flatten().map(|(_, error)| error).collect()
        })
    }
}
