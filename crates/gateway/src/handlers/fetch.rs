//! Fetch: sessions (KIP-227), positions, and the records uncopied, or left in their files.

use std::collections::BTreeSet;
use std::sync::Arc;

use broker::api::{self, BrokerApi, CurrentLeader, FetchAnswer, Fetched, FileRecords, Isolation};
use broker::budget::Charge;
use model::{BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicPartition};
use protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use protocol::messages::{FetchRequest, FetchResponse};
use protocol::{Elsewhere, Records, messages::fetch_request};

use crate::call::Call;
use crate::connection::{Answer, Answering};
use crate::dispatch;
use crate::refusal::Refusal;
use crate::resolve::{self, ByPartition, TopicKey};
use crate::sessions::{FetchPlan, Found, NO_SESSION, Wanted};

/// The first version that names topics by id.
const BY_ID: i16 = 13;
/// The first version in which a consumer tells its rack (KIP-392).
const TELLS_RACK: i16 = 11;
/// The first version that says where the leader is (KIP-951).
const TELLS_LEADER: i16 = 16;
/// The first version whose answer has an error of its own.
const HAS_ERROR: i16 = 7;

/// Answers when there is enough, or after the time that the client gives. The answer takes along what its records are
/// charged.
pub(crate) fn start<B: BrokerApi>(call: Call<B>, request: FetchRequest, correlation_id: i32) -> Answering {
    Box::pin(async move {
        let mut read = Read::default();
        let response = fetch(&call, request, &mut read).await;
        let Read { charge, files } = read;
        let refused = |refusal: Refusal| FetchResponse { error_code: refusal.wire(), ..Default::default() };
        match dispatch::encoded(&response.unwrap_or_else(refused), call.version, correlation_id) {
            Answer::Frame { frame, errors, .. } => Answer::Frame { frame, files, errors, charge },
            other => other,
        }
    })
}

/// What goes with the response.
#[derive(Default)]
struct Read {
    /// What the records in memory are charged.
    charge: Option<Charge>,
    /// Those that are sent from files.
    files: Vec<Arc<dyn FileRecords>>,
}

async fn fetch<B: BrokerApi>(
    call: &Call<B>,
    mut request: FetchRequest,
    beside: &mut Read,
) -> Result<FetchResponse, Refusal> {
    if request.replica_id >= 0 || request.replica_state.replica_id >= 0 {
        return Ok(all_refused(&request, &Refusal::FromReplica));
    }
    let isolation = match isolation(request.isolation_level) {
        Err(refusal) if call.version < HAS_ERROR => return Ok(all_refused(&request, &refusal)),
        isolation => isolation?,
    };
    let by_id = call.version >= BY_ID;
    // A session compares names for each partition, again and again: it is not to remember what cannot be.
    let (unknown, topics): (Vec<_>, Vec<_>) =
        std::mem::take(&mut request.topics).into_iter().partition(|topic| resolve::is_too_long(&topic.topic));
    let now_ms = call.shared.coarse_ms.load(std::sync::atomic::Ordering::Relaxed);
    let (session, limits) = ((request.session_id, request.session_epoch), Limits::of(call, &request));
    // KIP-392: who can tell a rack may read from followers, told or not.
    let rack = (call.version >= TELLS_RACK).then_some(request.rack_id);
    let forgotten = forgotten(by_id, request.forgotten_topics_data);
    let (plan, wanted) = call.shared.sessions.begin(session, by_id, all_wanted(by_id, topics), forgotten, now_ms)?;
    let found = read(call, &wanted, limits, isolation, rack, beside).await;
    let summaries: Vec<(&Wanted, Found)> = wanted.iter().zip(found.iter().map(summary)).collect();
    let told = plan.select(&summaries)?;
    let session_id = match plan {
        FetchPlan::Full { remember: true } => {
            let told = summaries.into_iter().map(|(wanted, found)| (wanted.clone(), found)).collect();
            call.shared.sessions.remember(by_id, told, now_ms)
        }
        FetchPlan::Full { remember: false } => NO_SESSION,
        FetchPlan::Incremental { id, .. } => id,
    };
    let mut response = FetchResponse { session_id, ..Default::default() };
    let chosen = wanted.into_iter().zip(found).zip(told).filter_map(|(pair, told)| told.then_some(pair));
    chosen.for_each(|(wanted, data)| push(&mut response, wanted.topic, data));
    response.responses.extend(unknown.iter().map(|topic| topic_refused(topic, &Refusal::UnknownTopicOrPartition)));
    if call.version >= TELLS_LEADER {
        response.node_endpoints = endpoints(call, &response);
    }
    Ok(response)
}

/// How much is read and for how long it is waited.
struct Limits {
    max_wait_ms: u64,
    min_bytes: usize,
    max_bytes: usize,
}

impl Limits {
    fn of<B: BrokerApi>(call: &Call<B>, request: &FetchRequest) -> Self {
        let max_bytes = size(request.max_bytes).min(call.shared.limits.fetch_bytes_max);
        Self {
            max_wait_ms: u64::try_from(request.max_wait_ms).unwrap_or(0),
            min_bytes: size(request.min_bytes).min(max_bytes),
            max_bytes,
        }
    }
}

async fn read<B: BrokerApi>(
    call: &Call<B>,
    wanted: &[Wanted],
    limits: Limits,
    isolation: Isolation,
    rack: Option<String>,
    beside: &mut Read,
) -> Vec<PartitionData> {
    let image = call.image();
    let resolve = |wanted: &Wanted| resolve::partition(&wanted.topic.find(&image), wanted.partition.0);
    let resolved: Vec<Result<TopicPartition, Refusal>> = wanted.iter().map(resolve).collect();
    drop(image);
    let position = |(wanted, partition): (&Wanted, &Result<TopicPartition, Refusal>)| {
        Some(api::FetchPartition {
            partition: *partition.as_ref().ok()?,
            current_leader_epoch: wanted.current_leader_epoch,
            fetch_offset: wanted.fetch_offset,
            last_fetched_epoch: wanted.last_fetched_epoch,
            max_bytes: wanted.max_bytes,
        })
    };
    let partitions: Vec<api::FetchPartition> = wanted.iter().zip(&resolved).filter_map(position).collect();
    let Limits { max_wait_ms, min_bytes, max_bytes } = limits;
    let fetched = if partitions.is_empty() {
        Vec::new()
    } else {
        let request =
            api::FetchRequest { max_wait_ms, min_bytes, max_bytes, isolation, rack, by_file: true, partitions };
        let FetchAnswer { partitions, memory } = call.broker().fetch(request).await;
        beside.charge = Some(memory);
        partitions
    };
    let mut fetched = ByPartition::new(fetched, |fetched| fetched.partition);
    let answers = wanted.iter().zip(resolved).map(|(wanted, partition)| {
        let index = wanted.partition;
        match partition.and_then(|partition| fetched.take(partition)) {
            Ok(fetched) => partition_data(index, fetched, &mut beside.files),
            Err(refusal) => refused(index.0, &refusal),
        }
    });
    answers.collect()
}

fn partition_data(index: PartitionIndex, fetched: Fetched, files: &mut Vec<Arc<dyn FileRecords>>) -> PartitionData {
    let aborted = |transactions: Vec<api::AbortedTransaction>| {
        let aborted = |each: api::AbortedTransaction| AbortedTransaction {
            producer_id: each.producer_id.0,
            first_offset: each.first_offset.0,
        };
        transactions.into_iter().map(aborted).collect()
    };
    let leader =
        |leader: CurrentLeader| LeaderIdAndEpoch { leader_id: leader.leader.0, leader_epoch: leader.leader_epoch.0 };
    // Offsets beside an error mean nothing to a client, and a session must tell them once the error is over.
    let beside = |offset: Offset| if fetched.error == ErrorCode::None { offset.0 } else { Offset::NONE.0 };
    let records: Records = match fetched.in_file {
        None => fetched.records.into_iter().collect(),
        Some(in_file) => {
            let elsewhere = Elsewhere { number: files.len(), len: in_file.len() };
            files.push(in_file);
            Records::lying_elsewhere(elsewhere)
        }
    };
    let diverging = fetched.diverging.map(|end| EpochEndOffset { epoch: end.epoch.0, end_offset: end.end.0 });
    PartitionData {
        partition_index: index.0,
        error_code: fetched.error.code(),
        high_watermark: beside(fetched.high_watermark),
        last_stable_offset: beside(fetched.last_stable_offset),
        log_start_offset: beside(fetched.log_start),
        aborted_transactions: fetched.aborted.map(aborted),
        preferred_read_replica: fetched.preferred_replica.unwrap_or(BrokerId::NONE).0,
        records: Some(records),
        diverging_epoch: diverging.unwrap_or_default(),
        current_leader: fetched.current_leader.map(leader).unwrap_or_default(),
        ..Default::default()
    }
}

fn refused(index: i32, refusal: &Refusal) -> PartitionData {
    PartitionData {
        partition_index: index,
        error_code: refusal.wire(),
        high_watermark: -1,
        aborted_transactions: Some(Vec::new()),
        records: Some(Records::new()),
        ..Default::default()
    }
}

fn summary(data: &PartitionData) -> Found {
    Found {
        high_watermark: data.high_watermark,
        log_start: data.log_start_offset,
        has_records: data.records.as_ref().is_some_and(|records| !records.is_empty()),
        is_error: data.error_code != 0,
        is_redirect: data.preferred_read_replica >= 0 || data.diverging_epoch.epoch >= 0,
    }
}

/// Adds a partition, under the topic before it if it is the same.
fn push(response: &mut FetchResponse, topic: TopicKey, data: PartitionData) {
    let same = |last: &FetchableTopicResponse| match &topic {
        TopicKey::Name(name) => *last.topic == **name,
        TopicKey::Id(id) => last.topic_id == id.0,
    };
    if !response.responses.last().is_some_and(same) {
        let topic = FetchableTopicResponse { topic: topic.name(), topic_id: topic.id(), partitions: Vec::new() };
        response.responses.push(topic);
    }
    if let Some(topic) = response.responses.last_mut() {
        topic.partitions.push(data);
    }
}

/// Where the leaders are that partitions of the response name.
fn endpoints<B: BrokerApi>(call: &Call<B>, response: &FetchResponse) -> Vec<NodeEndpoint> {
    let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
    let leaders = partitions.map(|data| data.current_leader.leader_id).filter(|leader| *leader >= 0);
    let leaders: BTreeSet<BrokerId> = leaders.map(BrokerId).collect();
    let endpoint = |(node_id, host, port, rack)| NodeEndpoint { node_id, host, port, rack };
    call.endpoints(leaders).into_iter().map(endpoint).collect()
}

fn all_wanted(by_id: bool, topics: Vec<fetch_request::FetchTopic>) -> Vec<Wanted> {
    let mut all = Vec::with_capacity(topics.iter().map(|topic| topic.partitions.len()).sum());
    for topic in topics {
        let key = TopicKey::of(by_id, &topic.topic, topic.topic_id);
        all.extend(topic.partitions.into_iter().map(|partition| Wanted {
            topic: key.clone(),
            partition: PartitionIndex(partition.partition),
            current_leader_epoch: epoch(partition.current_leader_epoch),
            fetch_offset: Offset(partition.fetch_offset),
            last_fetched_epoch: epoch(partition.last_fetched_epoch),
            max_bytes: size(partition.partition_max_bytes),
        }));
    }
    all
}

fn forgotten(by_id: bool, topics: Vec<fetch_request::ForgottenTopic>) -> Vec<(TopicKey, PartitionIndex)> {
    let keys = topics.into_iter().flat_map(|topic| {
        let key = TopicKey::of(by_id, &topic.topic, topic.topic_id);
        topic.partitions.into_iter().map(move |partition| (key.clone(), PartitionIndex(partition)))
    });
    keys.collect()
}

fn all_refused(request: &FetchRequest, refusal: &Refusal) -> FetchResponse {
    let responses = request.topics.iter().map(|topic| topic_refused(topic, refusal)).collect();
    FetchResponse { responses, ..Default::default() }
}

fn topic_refused(topic: &fetch_request::FetchTopic, refusal: &Refusal) -> FetchableTopicResponse {
    FetchableTopicResponse {
        topic: topic.topic.clone(),
        topic_id: topic.topic_id,
        partitions: topic.partitions.iter().map(|partition| refused(partition.partition, refusal)).collect(),
    }
}

/// What may be seen, by its number.
pub(crate) fn isolation(level: i8) -> Result<Isolation, Refusal> {
    match level {
        0 => Ok(Isolation::ReadUncommitted),
        1 => Ok(Isolation::ReadCommitted),
        _ => Err(Refusal::Malformed("the isolation level must be 0 or 1")),
    }
}

/// Every negative epoch is none, as in Kafka's fetches.
fn epoch(value: i32) -> LeaderEpoch {
    LeaderEpoch(value).max(LeaderEpoch::NONE)
}

fn size(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}
