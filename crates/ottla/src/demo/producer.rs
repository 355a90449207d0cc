//! A small transactional producer, and a reader of committed records.
//!
//! The producer is one of transaction version 2: partitions join its transaction with their first records, and the answer to
//! its end brings the epoch of the next one. What a dead broker left unanswered is asked of its successor, with the same
//! epoch and sequence: what was done already is not done twice.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::{
    EndMarker, ErrorCode, ProducerEpoch, ProducerId, Record, RecordBatch, RecordIter, encode_records,
    encode_transactional_batch,
};
use protocol::messages::{
    EndTxnRequest, EndTxnResponse, FetchRequest, FetchResponse, InitProducerIdRequest, InitProducerIdResponse,
    ProduceRequest, ProduceResponse, TxnOffsetCommitRequest, TxnOffsetCommitResponse, fetch_request, fetch_response,
    produce_request, txn_offset_commit_request,
};

use crate::cli::partitions::{Retry, Topic};
use crate::cli::produce::now_ms;
use crate::kafka_client::{KafkaClient, check, code_of};

const TIMEOUT_MS: i32 = 60_000;
const FETCH_BYTES: i32 = 1 << 20;
/// Fetch's number for committed records only.
const READ_COMMITTED: i8 = 1;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct TransactionalProducer {
    transactional_id: String,
    topic: String,
    identity: (ProducerId, ProducerEpoch),
    /// The next sequence of each partition.
    sequences: BTreeMap<i32, i32>,
}

impl TransactionalProducer {
    /// Takes the name over: whoever had it is fenced, and what it left open is aborted.
    pub(super) async fn begin(client: &mut KafkaClient, id: &str, topic: &str) -> Result<TransactionalProducer> {
        let retry = Retry::new();
        let identity = loop {
            match init(client, id).await {
                Ok(identity) => break identity,
                Err(error) => retry.after(error.context("cannot get a producer id")).await?,
            }
        };
        let (transactional_id, topic) = (id.to_owned(), topic.to_owned());
        Ok(TransactionalProducer { transactional_id, topic, identity, sequences: BTreeMap::new() })
    }

    /// Sends values to a partition as one batch, to whoever leads it, until it is acknowledged.
    pub(super) async fn send(&mut self, client: &mut KafkaClient, partition: i32, values: &[String]) -> Result<()> {
        let records: Vec<Record> = (0..)
            .zip(values)
            .map(|(offset_delta, value)| Record {
                offset_delta,
                value: Some(Bytes::from(value.clone())),
                ..Record::default()
            })
            .collect();
        let count = i32::try_from(values.len())?;
        let sequence = self.sequences.get(&partition).copied().unwrap_or(0);
        let (id, epoch) = self.identity;
        let batch = encode_transactional_batch(&encode_records(&records), count, now_ms(), (id, epoch, sequence));
        let retry = Retry::new();
        while let Err(error) = self.send_once(client, partition, &batch).await {
            // What was written by an attempt that nobody answered.
            if code_of(&error) == Some(ErrorCode::DuplicateSequenceNumber) {
                break;
            }
            retry.after(error).await.with_context(|| format!("cannot write to {}-{partition}", self.topic))?;
        }
        self.sequences.insert(partition, sequence + count);
        Ok(())
    }

    async fn send_once(&self, client: &mut KafkaClient, partition: i32, batch: &bytes::BytesMut) -> Result<()> {
        let topic = Topic::look_up(client, &self.topic).await?;
        let records = Some(batch.clone());
        let data = produce_request::TopicProduceData {
            name: topic.name,
            topic_id: topic.id.0,
            partition_data: vec![produce_request::PartitionProduceData { index: partition, records }],
        };
        let transactional_id = Some(self.transactional_id.clone());
        let request = ProduceRequest { transactional_id, acks: -1, timeout_ms: 5_000, topic_data: vec![data] };
        let leader = topic.leaders.get(&partition).context("there is no such partition")?;
        let answer: ProduceResponse = client.at(leader, &request).await?;
        let result = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        check(result.context("Produce answered nothing")?.error_code)
    }

    /// Makes an offset of a group a part of the transaction.
    pub(super) async fn commit_offset(
        &self,
        client: &mut KafkaClient,
        group: &str,
        (topic, partition): (&str, i32),
        offset: i64,
    ) -> Result<()> {
        use txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic};
        let position = TxnOffsetCommitRequestPartition {
            partition_index: partition,
            committed_offset: offset,
            ..Default::default()
        };
        let (producer_id, producer_epoch) = (self.identity.0.0, self.identity.1.0);
        let request = TxnOffsetCommitRequest {
            transactional_id: self.transactional_id.clone(),
            group_id: group.to_owned(),
            producer_id,
            producer_epoch,
            topics: vec![TxnOffsetCommitRequestTopic { name: topic.to_owned(), partitions: vec![position] }],
            ..Default::default()
        };
        let retry = Retry::new();
        loop {
            match offset_once(client, group, &request).await {
                Ok(()) => return Ok(()),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Ends the transaction, and asks for that until somebody answers.
    pub(super) async fn end(&mut self, client: &mut KafkaClient, commit: bool) -> Result<()> {
        let retry = Retry::new();
        while let Err(error) = self.end_once(client, commit).await {
            retry.after(error).await.context("cannot end the transaction")?;
        }
        Ok(())
    }

    async fn end_once(&mut self, client: &mut KafkaClient, commit: bool) -> Result<()> {
        let address = client.transaction_coordinator(&self.transactional_id).await?;
        self.end_at(client, &address, commit).await
    }

    /// Asks one broker once for the end.
    pub(super) async fn end_at(&mut self, client: &mut KafkaClient, coordinator: &str, commit: bool) -> Result<()> {
        let request = EndTxnRequest {
            transactional_id: self.transactional_id.clone(),
            producer_id: self.identity.0.0,
            producer_epoch: self.identity.1.0,
            committed: commit,
        };
        let answer: EndTxnResponse = client.at(coordinator, &request).await?;
        check(answer.error_code)?;
        ensure!(answer.producer_id >= 0, "the broker does not serve transaction version 2");
        // The next transaction has an epoch of its own, and its sequences begin with it.
        self.identity = (ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch));
        self.sequences.clear();
        Ok(())
    }
}

async fn init(client: &mut KafkaClient, id: &str) -> Result<(ProducerId, ProducerEpoch)> {
    let address = client.transaction_coordinator(id).await?;
    let request = InitProducerIdRequest {
        transactional_id: Some(id.to_owned()),
        transaction_timeout_ms: TIMEOUT_MS,
        ..Default::default()
    };
    let answer: InitProducerIdResponse = client.at(&address, &request).await?;
    check(answer.error_code)?;
    Ok((ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch)))
}

async fn offset_once(client: &mut KafkaClient, group: &str, request: &TxnOffsetCommitRequest) -> Result<()> {
    let address = client.coordinator(group).await?;
    let answer: TxnOffsetCommitResponse = client.at(&address, request).await?;
    let result = answer.topics.first().and_then(|topic| topic.partitions.first());
    check(result.context("TxnOffsetCommit answered nothing")?.error_code)
}

/// What a reader of committed records gets of a topic.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) values: Vec<String>,
    /// Whether something is undecided still: the reader ends before it.
    pub(super) undecided: bool,
}

/// Reads all that is committed now, from the beginnings.
pub(super) async fn read_committed(client: &mut KafkaClient, topic: &str) -> Result<Committed> {
    let retry = Retry::new();
    loop {
        match read_once(client, topic).await {
            Ok(committed) => return Ok(committed),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn read_once(client: &mut KafkaClient, topic: &str) -> Result<Committed> {
    let topic = Topic::look_up(client, topic).await?;
    let mut committed = Committed::default();
    for (partition, leader) in &topic.leaders {
        let mut next = 0;
        loop {
            let found = fetch(client, leader, &topic, *partition, next).await?;
            let (stable, end) = (found.last_stable_offset, found.high_watermark);
            next = read_into(&mut committed.values, found)?.max(next);
            if next >= stable {
                committed.undecided |= stable < end;
                break;
            }
        }
    }
    Ok(committed)
}

async fn fetch(
    client: &mut KafkaClient,
    leader: &str,
    topic: &Topic,
    partition: i32,
    from: i64,
) -> Result<fetch_response::PartitionData> {
    let asked = fetch_request::FetchPartition {
        partition,
        fetch_offset: from,
        partition_max_bytes: FETCH_BYTES,
        ..Default::default()
    };
    let asked = fetch_request::FetchTopic { topic: topic.name.clone(), topic_id: topic.id.0, partitions: vec![asked] };
    let (max_bytes, isolation_level) = (FETCH_BYTES, READ_COMMITTED);
    let request = FetchRequest { max_bytes, isolation_level, topics: vec![asked], ..Default::default() };
    let answer: FetchResponse = client.at(leader, &request).await?;
    check(answer.error_code)?;
    let found = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
    let found = found.context("Fetch answered nothing")?;
    check(found.error_code)?;
    Ok(found)
}

/// Takes the values that are of no aborted transaction, as a Kafka client does, and gives the offset behind them.
fn read_into(values: &mut Vec<String>, found: fetch_response::PartitionData) -> Result<i64> {
    let mut aborted = found.aborted_transactions.unwrap_or_default();
    aborted.sort_by_key(|transaction| std::cmp::Reverse(transaction.first_offset));
    let (mut open, mut next) = (BTreeSet::new(), 0);
    for batch in RecordBatch::split_all(found.records.map(|records| records.to_bytes()).unwrap_or_default())? {
        let header = *batch.header();
        next = header.next_offset().0;
        while aborted.last().is_some_and(|transaction| transaction.first_offset < next) {
            open.extend(aborted.pop().map(|transaction| ProducerId(transaction.producer_id)));
        }
        if header.is_control() {
            if EndMarker::of(&batch).is_some_and(|marker| !marker.commit) {
                open.remove(&header.producer_id);
            }
        } else if !header.is_transactional() || !open.contains(&header.producer_id) {
            for record in RecordIter::new(batch.payload(), header.record_count) {
                let value = record?.value.unwrap_or_default();
                values.push(String::from_utf8(value.to_vec()).context("a value that nobody wrote")?);
            }
        }
    }
    Ok(next)
}
