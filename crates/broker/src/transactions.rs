//! What the broker does about transactions beyond one partition: asks their coordinators (`R50`), writes their markers
//! (`R47`), and commits offsets in them (`R49`).

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use coordinator::request::{OffsetCommitResponse, TxnOffsetCommitRequest};
use coordinator::transaction::Marker;
use coordinator::{GroupRequest, GroupResponse};
use model::{ErrorCode, LeaderEpoch, TopicPartition};

use crate::api::{TransactionMarker, TransactionSupport, TransactionVerifier, VerifyTransaction};
use crate::context::Context;
use crate::groups::{Groups, OFFSETS_TOPIC};
use crate::offsets;
use crate::partition::{Partition, Verification, Verifying};
use crate::shards::{Answer, Shards};
use crate::waiters::PendingProduce;

/// A transaction that is just ending makes the next one's first produce wait so long at most; then the client is told.
const CONCURRENT_WAIT: Duration = Duration::from_millis(100);
/// Between two questions about it.
const CONCURRENT_BACKOFF: Duration = Duration::from_millis(20);

/// Asks the coordinator for all that one request has to wait for, and tells the partitions, in a task of its own: it goes
/// on where the client goes away.
pub(crate) fn verify(
    context: &Arc<Context>,
    verifier: &Arc<dyn TransactionVerifier>,
    transactional_id: &str,
    transactions: TransactionSupport,
    mut asked: Vec<Verification>,
) {
    // One request is one producer's; if not, each is asked for alone.
    while let Some(producer) = asked.first().map(|verification| verification.producer) {
        let (mine, others) = asked.into_iter().partition(|verification| verification.producer == producer);
        asked = others;
        let request = VerifyTransaction {
            transactional_id: transactional_id.to_owned(),
            producer_id: producer.0,
            producer_epoch: producer.1,
            partitions: Vec::new(),
            add: transactions == TransactionSupport::Implicit,
        };
        context.runtime.spawn(verify_producer(Arc::clone(context), Arc::clone(verifier), request, mine));
    }
}

async fn verify_producer(
    context: Arc<Context>,
    verifier: Arc<dyn TransactionVerifier>,
    request: VerifyTransaction,
    mut waiting: Vec<Verification>,
) {
    if request.add {
        waiting = wait_for_markers(waiting).await;
    }
    let until = tokio::time::Instant::now() + CONCURRENT_WAIT;
    while !waiting.is_empty() {
        let partitions = waiting.iter().map(|verification| verification.partition.id()).collect();
        let errors = verifier.verify(VerifyTransaction { partitions, ..request.clone() }).await;
        let last = !request.add || tokio::time::Instant::now() + CONCURRENT_BACKOFF > until;
        let (mut again, mut pause) = (Vec::new(), false);
        for (verification, error) in
            waiting.into_iter().zip(errors.into_iter().chain(iter::repeat(ErrorCode::UnknownServerError)))
        {
            let concurrent = error == ErrorCode::ConcurrentTransactions;
            // The marker that was awaited voids what was asked before it (R50).
            if !last && (concurrent || error.is_none() && verification.is_void()) {
                pause |= concurrent;
                again.push(verification);
            } else {
                let partition = Arc::clone(&verification.partition);
                partition.verified(&context, &verification, error);
            }
        }
        if pause {
            tokio::time::sleep(CONCURRENT_BACKOFF).await;
        }
        waiting = again.into_iter().filter_map(Verification::renew).collect();
    }
}

/// The next transaction's first batch may overtake the marker of the one before: what is asked once that is here counts.
async fn wait_for_markers(waiting: Vec<Verification>) -> Vec<Verification> {
    let until = tokio::time::Instant::now() + CONCURRENT_WAIT;
    let mut ready = Vec::with_capacity(waiting.len());
    for verification in waiting {
        if verification.wait_for_marker(until).await {
            ready.extend(verification.renew());
        } else {
            ready.push(verification);
        }
    }
    ready
}

/// Commits offsets of a group that is coordinated here in a transaction, which its own coordinator is asked about first where
/// this broker does not know that it is open (`R49`, `R50`).
///
/// # Errors
/// What the request as a whole is refused with.
pub(crate) async fn commit_offsets(
    groups: &Arc<Shards<Groups>>,
    verifier: &Arc<dyn TransactionVerifier>,
    transactional_id: String,
    transactions: TransactionSupport,
    mut request: TxnOffsetCommitRequest,
) -> Result<OffsetCommitResponse, ErrorCode> {
    if request.commit.group_id.is_empty() {
        return Err(ErrorCode::InvalidGroupId);
    }
    let partition = groups.home(&request.commit.group_id)?;
    let asked = VerifyTransaction {
        transactional_id,
        producer_id: request.producer.id,
        producer_epoch: request.producer.epoch,
        partitions: vec![partition.id()],
        add: transactions == TransactionSupport::Implicit,
    };
    // Dropped where the client goes away: what waits to be appended is refused then.
    let verifying = verify_patiently(verifier, &partition, &asked, transactions).await?;
    request.guard = verifying.as_ref().map(|verifying| verifying.guard().number());
    let group_id = request.commit.group_id.clone();
    match groups.ask(&group_id, GroupRequest::TxnOffsetCommit(request)).await? {
        GroupResponse::TxnOffsetCommit(response) => Ok(response),
        _ => Err(ErrorCode::UnknownServerError),
    }
}

/// Asks for one partition, again for a while where the transaction before is just ending; nothing where the transaction is
/// open there.
async fn verify_patiently(
    verifier: &Arc<dyn TransactionVerifier>,
    partition: &Arc<Partition>,
    asked: &VerifyTransaction,
    transactions: TransactionSupport,
) -> Result<Option<Verifying>, ErrorCode> {
    let until = tokio::time::Instant::now() + CONCURRENT_WAIT;
    loop {
        // Anew each time: the marker that is awaited voids what was asked before it (R50).
        let Some(verifying) = partition.begin_verification((asked.producer_id, asked.producer_epoch))? else {
            return Ok(None);
        };
        let errors = verifier.verify(asked.clone()).await;
        let last = !asked.add || tokio::time::Instant::now() + CONCURRENT_BACKOFF > until;
        match errors.first().copied().unwrap_or(ErrorCode::UnknownServerError) {
            // A marker voids what was asked before it: so the transaction before was just ending.
            ErrorCode::None if asked.add && verifying.is_void() => {
                if last {
                    return Err(not_verified(ErrorCode::ConcurrentTransactions, transactions));
                }
                continue;
            }
            ErrorCode::None => return Ok(Some(verifying)),
            ErrorCode::ConcurrentTransactions if !last => {}
            error => return Err(not_verified(error, transactions)),
        }
        drop(verifying);
        tokio::time::sleep(CONCURRENT_BACKOFF).await;
    }
}

/// What the error of a transaction's coordinator is to who commits offsets, as in Kafka.
fn not_verified(error: ErrorCode, transactions: TransactionSupport) -> ErrorCode {
    match error {
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        ErrorCode::TransactionAbortable if transactions < TransactionSupport::KnowsAbortable => {
            ErrorCode::InvalidTxnState
        }
        // Old clients try again after this one, and do not look for the coordinator anew.
        ErrorCode::NetworkException => ErrorCode::CoordinatorLoadInProgress,
        ErrorCode::UnknownTopicOrPartition | ErrorCode::NotEnoughReplicas | ErrorCode::RequestTimedOut => {
            ErrorCode::CoordinatorNotAvailable
        }
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        other => other,
    }
}

/// Writes markers to partitions led here.
#[derive(Debug)]
pub(crate) struct MarkerWriter {
    pub(crate) context: Arc<Context>,
    pub(crate) groups: Arc<Shards<Groups>>,
}

/// A marker on its way to one partition.
enum Writing {
    /// The partition answers.
    Appended(TopicPartition),
    /// The coordinator of groups that keeps its state there answers: it has to know the order (`R49`).
    Coordinated(TopicPartition, Result<Answer<Groups>, ErrorCode>),
}

impl MarkerWriter {
    /// Each is answered when all in-sync replicas have it; for each marker, its partitions in the order given.
    pub(crate) async fn write(
        &self,
        markers: Vec<(TransactionMarker, Vec<TopicPartition>)>,
        timeout: Duration,
    ) -> Vec<Vec<(TopicPartition, ErrorCode)>> {
        let until = tokio::time::Instant::now() + timeout;
        let coordinated = self.context.image().topic_id(OFFSETS_TOPIC);
        let pending = PendingProduce::new(markers.iter().map(|(_, partitions)| partitions.len()).sum());
        let begin = |marker: &TransactionMarker, id: TopicPartition| {
            if Some(id.topic_id) == coordinated {
                return Writing::Coordinated(id, self.groups.ask_at(id, GroupRequest::EndTransaction(to_core(marker))));
            }
            match self.context.partition(id) {
                Some(partition) => partition.append_marker(&self.context, None, marker, &pending),
                None => {
                    pending.push(offsets::not_produced(&self.context, id), false);
                }
            }
            Writing::Appended(id)
        };
        let writing: Vec<Vec<Writing>> = markers
            .iter()
            .map(|(marker, partitions)| partitions.iter().map(|id| begin(marker, *id)).collect())
            .collect();
        // What is cut off is only the waiting.
        let _ = tokio::time::timeout_at(until, pending.wait()).await;
        let mut appended = pending.take(ErrorCode::RequestTimedOut).into_iter();
        let mut written = Vec::with_capacity(writing.len());
        for partitions in writing {
            let mut results = Vec::with_capacity(partitions.len());
            for one in partitions {
                results.push(match one {
                    // One result was pushed for each, in this order.
                    Writing::Appended(id) => {
                        (id, appended.next().map_or(ErrorCode::UnknownServerError, |result| result.error))
                    }
                    Writing::Coordinated(id, answer) => (id, ended(answer, until).await),
                });
            }
            written.push(results);
        }
        written
    }
}

fn to_core(marker: &TransactionMarker) -> Marker {
    Marker {
        producer_id: marker.producer_id,
        producer_epoch: marker.producer_epoch,
        coordinator_epoch: LeaderEpoch(marker.coordinator_epoch),
        commit: marker.commit,
        transaction_version: marker.transaction_version.into(),
    }
}

/// What a coordinator of groups says of a marker, as a partition's leader would, which is what was asked.
async fn ended(answer: Result<Answer<Groups>, ErrorCode>, until: tokio::time::Instant) -> ErrorCode {
    let error = match answer {
        Err(error) => error,
        Ok(answer) => match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(GroupResponse::EndTransaction(answer))) => answer.error,
            Ok(Ok(_)) => ErrorCode::UnknownServerError,
            // It went away with its shard.
            Ok(Err(_)) => ErrorCode::NotCoordinator,
            Err(_) => ErrorCode::RequestTimedOut,
        },
    };
    match error {
        ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoadInProgress | ErrorCode::CoordinatorNotAvailable => {
            ErrorCode::NotLeaderOrFollower
        }
        other => other,
    }
}
