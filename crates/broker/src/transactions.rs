//! What the broker does about transactions beyond one partition: asks their coordinators (`R50`) and writes their markers
//! (`R47`).

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use model::{ErrorCode, TopicPartition};

use crate::api::{TransactionMarker, TransactionSupport, TransactionVerifier, VerifyTransaction};
use crate::context::Context;
use crate::offsets;
use crate::partition::Verification;
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
    let until = tokio::time::Instant::now() + CONCURRENT_WAIT;
    loop {
        let partitions = waiting.iter().map(|verification| verification.partition.id()).collect();
        let errors = verifier.verify(VerifyTransaction { partitions, ..request.clone() }).await;
        let last = !request.add || tokio::time::Instant::now() + CONCURRENT_BACKOFF > until;
        let mut again = Vec::new();
        for (verification, error) in
            waiting.into_iter().zip(errors.into_iter().chain(iter::repeat(ErrorCode::UnknownServerError)))
        {
            if error == ErrorCode::ConcurrentTransactions && !last {
                again.push(verification);
            } else {
                let partition = Arc::clone(&verification.partition);
                partition.verified(&context, &verification, error);
            }
        }
        if again.is_empty() {
            return;
        }
        waiting = again;
        tokio::time::sleep(CONCURRENT_BACKOFF).await;
    }
}

/// Writes markers to partitions led here.
#[derive(Debug)]
pub(crate) struct MarkerWriter {
    pub(crate) context: Arc<Context>,
}

impl MarkerWriter {
    /// Each is answered when all in-sync replicas have it; for each marker, its partitions in the order given.
    pub(crate) async fn write(
        &self,
        markers: Vec<(TransactionMarker, Vec<TopicPartition>)>,
        timeout: Duration,
    ) -> Vec<Vec<(TopicPartition, ErrorCode)>> {
        let pending = PendingProduce::new(markers.iter().map(|(_, partitions)| partitions.len()).sum());
        for (marker, partitions) in &markers {
            for id in partitions {
                match self.context.partition(*id) {
                    Some(partition) => partition.append_marker(&self.context, None, marker, &pending),
                    None => {
                        pending.push(offsets::not_produced(&self.context, *id), false);
                    }
                }
            }
        }
        // What is cut off is only the waiting.
        let _ = tokio::time::timeout(timeout, pending.wait()).await;
        let mut results = pending.take().into_iter();
        let mut written = |(_, partitions): (TransactionMarker, Vec<TopicPartition>)| -> Vec<_> {
            // One result was pushed for each, in this order.
            results.by_ref().take(partitions.len()).map(|result| (result.partition, result.error)).collect()
        };
        markers.into_iter().map(&mut written).collect()
    }
}
