//! A consumer's fetch over many partitions: read what is there, wait for more, read again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{BrokerId, ErrorCode, Offset, TopicPartition};

use crate::api::{FetchRequest, Fetched, Isolation};
use crate::context::Context;
use crate::partition::{PartitionRead, ReadResult};
use crate::waiters::FetchWaiter;

/// An answer without records or offsets.
pub(crate) fn unanswered(partition: TopicPartition, error: ErrorCode) -> Fetched {
    Fetched {
        partition,
        error,
        high_watermark: Offset::NONE,
        last_stable_offset: Offset::NONE,
        log_start: Offset::NONE,
        diverging: None,
        preferred_replica: None,
        current_leader: None,
        aborted: None,
        records: Vec::new(),
    }
}

/// Reads for a consumer; waits up to `max_wait_ms` for `min_bytes`.
pub(crate) async fn fetch(context: &Arc<Context>, request: FetchRequest) -> Vec<Fetched> {
    let fetched = fetch_enough(context, request).await;
    for part in &fetched {
        let bytes: usize = part.records.iter().map(Bytes::len).sum();
        if bytes > 0
            && let Some(partition) = context.partition(part.partition)
        {
            partition.traffic.bytes_out.add(u64::try_from(bytes).unwrap_or(0));
        }
    }
    fetched
}

async fn fetch_enough(context: &Arc<Context>, request: FetchRequest) -> Vec<Fetched> {
    let mut newest = read_all(context, &request, None).await;
    if request.max_wait_ms == 0 || is_enough(&newest, &request) {
        return newest;
    }
    let until_enough = async {
        let waiter = Arc::new(FetchWaiter::default());
        loop {
            // Each partition lists the waiter under the lock that it is read under: no move is missed.
            newest = read_all(context, &request, Some(&waiter)).await;
            if is_enough(&newest, &request) {
                return;
            }
            waiter.moved().await;
        }
    };
    // A read that is cut off by the time has read nothing that anybody saw.
    let _ = tokio::time::timeout(Duration::from_millis(request.max_wait_ms), until_enough).await;
    newest
}

/// Errors and divergences are answered at once, as Kafka does.
fn is_enough(answers: &[Fetched], request: &FetchRequest) -> bool {
    let speaks = |fetched: &Fetched| {
        !fetched.error.is_none() || fetched.diverging.is_some() || fetched.preferred_replica.is_some()
    };
    let bytes: usize = answers.iter().flat_map(|fetched| &fetched.records).map(Bytes::len).sum();
    bytes >= request.min_bytes.min(request.max_bytes) || answers.iter().any(speaks)
}

async fn read_all(context: &Arc<Context>, request: &FetchRequest, waiter: Option<&Arc<FetchWaiter>>) -> Vec<Fetched> {
    let mut left = request.max_bytes;
    let mut any = false;
    let mut answers = Vec::with_capacity(request.partitions.len());
    for position in &request.partitions {
        let Some(partition) = context.partition(position.partition) else {
            answers.push(unanswered(position.partition, not_here(context, position.partition)));
            continue;
        };
        let read = PartitionRead {
            position: *position,
            isolation: request.isolation,
            max_bytes: left,
            min_one: !any,
            from_follower: request.rack.is_some(),
        };
        let ReadResult { mut fetched, cold } = partition.read(context, &read, waiter);
        if let Some(cold) = cold {
            match context.disk_pool.run(move || cold.run()).await {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => fetched.records = vec![bytes],
                Err(error) => fetched.error = partition.read_failed(context, position.fetch_offset, error).await,
            }
        }
        if request.isolation == Isolation::ReadCommitted && fetched.error.is_none() && fetched.aborted.is_none() {
            partition.find_aborted(context, position.fetch_offset, &mut fetched).await;
        }
        if let Some(nearer) = nearest_replica(context, request, position.partition, &fetched) {
            fetched.records.clear();
            fetched.preferred_replica = Some(nearer);
        }
        let bytes: usize = fetched.records.iter().map(Bytes::len).sum();
        left = left.saturating_sub(bytes);
        any |= bytes > 0;
        answers.push(fetched);
    }
    answers
}

/// Why a partition is not here: it does not exist, or its replicas are elsewhere.
pub(crate) fn not_here(context: &Context, partition: TopicPartition) -> ErrorCode {
    let image = context.image();
    match image.partition(partition) {
        None if image.topic(partition.topic_id).is_none() => ErrorCode::UnknownTopicId,
        None => ErrorCode::UnknownTopicOrPartition,
        Some(_) => ErrorCode::NotLeaderOrFollower,
    }
}

/// A replica in the client's rack that has what it asks for (KIP-392); None where the leader is as good.
fn nearest_replica(
    context: &Context,
    request: &FetchRequest,
    id: TopicPartition,
    fetched: &Fetched,
) -> Option<BrokerId> {
    let rack = request.rack.as_deref().filter(|rack| !rack.is_empty() && context.config.rack_aware_reads)?;
    if context.config.rack.as_deref() == Some(rack) || !fetched.error.is_none() {
        return None;
    }
    let partition = context.partition(id)?;
    let inner = partition.lock();
    if !inner.replica.is_leader() {
        return None;
    }
    let position = request.partitions.iter().find(|position| position.partition == id)?;
    let has = |broker: BrokerId| inner.replica.follower_log_end(broker).is_some_and(|end| end >= position.fetch_offset);
    let isr: BTreeSet<BrokerId> = inner.replica.isr().iter().copied().collect();
    let image = context.image();
    let near =
        |broker: &BrokerId| image.broker(*broker).is_some_and(|b| b.is_active() && b.rack.as_deref() == Some(rack));
    isr.into_iter().find(|broker| near(broker) && has(*broker))
}
