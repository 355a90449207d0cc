//! `ottla transaction`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use model::ErrorCode;
use protocol::messages::describe_producers_response::ProducerState;
use protocol::messages::describe_transactions_response::TransactionState;
use protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    ListTransactionsRequest, ListTransactionsResponse, WriteTxnMarkersRequest, WriteTxnMarkersResponse,
    describe_producers_request, list_transactions_response, write_txn_markers_request,
};
use serde_json::{Value, json};

use super::output::{Output, object};
use super::partitions::Retry;
use crate::kafka_client::{KafkaClient, addresses, check, check_message};

/// What to do with transactions.
#[derive(Debug, Subcommand)]
pub(crate) enum TransactionCommand {
    /// List transactional ids
    List {
        /// Only those in this state (Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort)
        #[arg(long, value_name = "STATE")]
        state: Vec<String>,
    },
    /// Show a transactional id and the partitions of its transaction
    Describe {
        /// The id
        transactional_id: String,
    },
    /// Find transactions that are open in a partition, and that no coordinator will end
    FindHanging {
        /// Only in this topic
        #[arg(long)]
        topic: Option<String>,
        /// Only those that have written nothing for so long
        #[arg(long, value_name = "MINUTES", default_value_t = 15)]
        older_than_minutes: u64,
    },
    /// Abort a transaction that hangs in a partition: whoever still writes in it loses what he writes
    Abort(AbortOptions),
}

/// Arguments of `abort`.
#[derive(Debug, Args)]
pub(crate) struct AbortOptions {
    /// The topic
    #[arg(long)]
    topic: String,
    /// The partition
    #[arg(long)]
    partition: i32,
    /// Where the transaction begins in it, as `find-hanging` says
    #[arg(long)]
    start_offset: i64,
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: TransactionCommand) -> Result<()> {
    match command {
        TransactionCommand::List { state } => list(client, output, state).await,
        TransactionCommand::Describe { transactional_id } => describe(client, output, &transactional_id).await,
        TransactionCommand::FindHanging { topic, older_than_minutes } => {
            find_hanging(client, output, topic.as_deref(), older_than_minutes).await
        }
        TransactionCommand::Abort(options) => abort(client, output, &options).await,
    }
}

/// What every coordinator knows, with its broker.
async fn listed(
    client: &mut KafkaClient,
    states: &[String],
) -> Result<Vec<(i32, list_transactions_response::TransactionState)>> {
    let retry = Retry::new();
    loop {
        match listed_once(client, states).await {
            Ok(found) => return Ok(found),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn listed_once(
    client: &mut KafkaClient,
    states: &[String],
) -> Result<Vec<(i32, list_transactions_response::TransactionState)>> {
    let mut found = Vec::new();
    for (id, address) in client.brokers().await? {
        let request = ListTransactionsRequest {
            state_filters: states.to_vec(),
            duration_filter: -1,
            transactional_id_pattern: None,
            ..Default::default()
        };
        let answer: ListTransactionsResponse = client.at(&address, &request).await?;
        check(answer.error_code).with_context(|| format!("transactions of {address}"))?;
        if let Some(unknown) = answer.unknown_state_filters.first() {
            bail!("there is no state {unknown}; `ottla transaction list --help` names them");
        }
        found.extend(answer.transaction_states.into_iter().map(|state| (id, state)));
    }
    found.sort_by(|(_, a), (_, b)| a.transactional_id.cmp(&b.transactional_id));
    Ok(found)
}

async fn list(client: &mut KafkaClient, output: Output, states: Vec<String>) -> Result<()> {
    let row = |(coordinator, state): (i32, list_transactions_response::TransactionState)| {
        vec![
            json!(state.transactional_id),
            json!(coordinator),
            json!(state.producer_id),
            json!(state.transaction_state),
        ]
    };
    let rows = listed(client, &states).await?.into_iter().map(row).collect();
    output.rows(&["transactional_id", "coordinator", "producer_id", "state"], rows)
}

/// Asks the coordinator, and again while that one moves or loads.
async fn state_of(client: &mut KafkaClient, transactional_id: &str) -> Result<TransactionState> {
    let retry = Retry::new();
    loop {
        match state_once(client, transactional_id).await {
            Ok(state) => return Ok(state),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn state_once(client: &mut KafkaClient, transactional_id: &str) -> Result<TransactionState> {
    let address = client.transaction_coordinator(transactional_id).await?;
    let request = DescribeTransactionsRequest { transactional_ids: vec![transactional_id.to_owned()] };
    let answer: DescribeTransactionsResponse = client.at(&address, &request).await?;
    let state = answer.transaction_states.into_iter().next().context("DescribeTransactions answered nothing")?;
    if ErrorCode::from_code(state.error_code) == ErrorCode::TransactionalIdNotFound {
        bail!("there is no transactional id {transactional_id}; `ottla transaction list` shows those there are");
    }
    check(state.error_code)?;
    Ok(state)
}

async fn describe(client: &mut KafkaClient, output: Output, transactional_id: &str) -> Result<()> {
    const COLUMNS: [&str; 2] = ["topic", "partition"];
    let state = state_of(client, transactional_id).await?;
    let topics = state.topics.iter();
    let rows: Vec<Vec<Value>> = topics
        .flat_map(|topic| topic.partitions.iter().map(|partition| vec![json!(topic.topic), json!(partition)]))
        .collect();
    let started = (state.transaction_start_time_ms >= 0).then_some(state.transaction_start_time_ms);
    let open_s = started.map(|started| (now_ms() - started).max(0) / 1_000);
    if output.json {
        let partitions: Vec<Value> = rows.into_iter().map(|row| object(&COLUMNS, row)).collect();
        let all = json!({ "transactional_id": transactional_id, "state": state.transaction_state,
                          "producer_id": state.producer_id, "producer_epoch": state.producer_epoch,
                          "timeout_ms": state.transaction_timeout_ms, "started_ms": started, "partitions": partitions });
        return output.fact("", &all);
    }
    let open = open_s.map_or("-".to_owned(), |seconds| format!("{seconds} s"));
    let producer = format!("{}, epoch {}", state.producer_id, state.producer_epoch);
    output
        .text(&format!("id        {transactional_id}\nstate     {}\nproducer  {producer}", state.transaction_state))?;
    output.text(&format!("timeout   {} ms\nopen for  {open}\n", state.transaction_timeout_ms))?;
    output.rows(&COLUMNS, rows)
}

/// A transaction that is open in a partition.
#[derive(Debug)]
struct Open {
    topic: String,
    partition: i32,
    /// The partition's leader.
    leader: String,
    producer: ProducerState,
}

/// The transactions that are open in partitions of one topic, or of all.
async fn open_transactions(client: &mut KafkaClient, topic: Option<&str>) -> Result<Vec<Open>> {
    let retry = Retry::new();
    loop {
        match open_once(client, topic).await {
            Ok(open) => return Ok(open),
            Err(error) => retry.after(error).await?,
        }
    }
}

async fn open_once(client: &mut KafkaClient, topic: Option<&str>) -> Result<Vec<Open>> {
    use describe_producers_request::TopicRequest;
    let metadata = client.metadata(topic.as_ref().map(std::slice::from_ref)).await?;
    let brokers = addresses(&metadata);
    let mut by_leader: BTreeMap<i32, BTreeMap<String, Vec<i32>>> = BTreeMap::new();
    for found in metadata.topics {
        check(found.error_code).with_context(|| format!("topic {}", found.name.as_deref().unwrap_or_default()))?;
        for partition in found.partitions {
            let name = found.name.clone().unwrap_or_default();
            let topics = by_leader.entry(partition.leader_id).or_default();
            topics.entry(name).or_default().push(partition.partition_index);
        }
    }
    let mut open = Vec::new();
    for (leader, topics) in by_leader {
        // What has no leader cannot be asked, nor can it be written to.
        let Some(address) = brokers.get(&leader) else { continue };
        let topics = topics.into_iter().map(|(name, partition_indexes)| TopicRequest { name, partition_indexes });
        let request = DescribeProducersRequest { topics: topics.collect() };
        let answer: DescribeProducersResponse = client.at(address, &request).await?;
        for topic in answer.topics {
            for partition in topic.partitions {
                check_message(partition.error_code, partition.error_message.as_deref())
                    .with_context(|| format!("producers of {}-{}", topic.name, partition.partition_index))?;
                let in_transaction = partition.active_producers.into_iter().filter(|p| p.current_txn_start_offset >= 0);
                open.extend(in_transaction.map(|producer| Open {
                    topic: topic.name.clone(),
                    partition: partition.partition_index,
                    leader: address.clone(),
                    producer,
                }));
            }
        }
    }
    Ok(open)
}

/// A transaction hangs where its coordinator does not know that it is open in that partition: nobody will end it.
async fn find_hanging(
    client: &mut KafkaClient,
    output: Output,
    topic: Option<&str>,
    older_than_minutes: u64,
) -> Result<()> {
    let limit = i64::try_from(older_than_minutes.saturating_mul(60_000)).unwrap_or(i64::MAX);
    let now = now_ms();
    let mut old = open_transactions(client, topic).await?;
    old.retain(|open| now.saturating_sub(open.producer.last_timestamp) >= limit);
    let mut ids = BTreeMap::new();
    if !old.is_empty() {
        ids.extend(
            listed(client, &[]).await?.into_iter().map(|(_, state)| (state.producer_id, state.transactional_id)),
        );
    }
    let mut rows = Vec::new();
    for open in old {
        let id = ids.get(&open.producer.producer_id);
        let known = match id {
            Some(id) => reaches(&state_of(client, id).await?, &open),
            None => false,
        };
        if !known {
            let minutes = now.saturating_sub(open.producer.last_timestamp) / 60_000;
            rows.push(vec![
                json!(open.topic),
                json!(open.partition),
                json!(open.producer.current_txn_start_offset),
                json!(open.producer.producer_id),
                json!(open.producer.producer_epoch),
                json!(id),
                json!(minutes),
            ]);
        }
    }
    let columns =
        ["topic", "partition", "start_offset", "producer_id", "producer_epoch", "transactional_id", "idle_minutes"];
    output.rows(&columns, rows)
}

/// Whether a coordinator will end what is open in that partition.
fn reaches(state: &TransactionState, open: &Open) -> bool {
    let unfinished = ["Ongoing", "PrepareCommit", "PrepareAbort"].contains(&state.transaction_state.as_str());
    let partitions: BTreeSet<(&str, i32)> = state
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(move |partition| (topic.topic.as_str(), *partition)))
        .collect();
    unfinished
        && state.producer_id == open.producer.producer_id
        && partitions.contains(&(open.topic.as_str(), open.partition))
}

async fn abort(client: &mut KafkaClient, output: Output, options: &AbortOptions) -> Result<()> {
    use write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
    let AbortOptions { topic, partition, start_offset } = options;
    let open = open_transactions(client, Some(topic)).await?;
    let here = |open: &Open| open.partition == *partition && open.producer.current_txn_start_offset == *start_offset;
    let Some(Open { leader, producer, .. }) = open.into_iter().find(here) else {
        bail!(
            "no transaction in {topic}-{partition} begins at offset {start_offset}: see `ottla transaction find-hanging`"
        );
    };
    let marker = WritableTxnMarker {
        producer_id: producer.producer_id,
        producer_epoch: i16::try_from(producer.producer_epoch).context("the producer's epoch")?,
        transaction_result: false,
        topics: vec![WritableTxnMarkerTopic { name: topic.clone(), partition_indexes: vec![*partition] }],
        // The one that it knows; none has written to it before.
        coordinator_epoch: producer.coordinator_epoch.max(0),
        // By the rule of the first version the producer's own epoch may end its transaction.
        transaction_version: 0,
    };
    let answer: WriteTxnMarkersResponse = client.at(&leader, &WriteTxnMarkersRequest { markers: vec![marker] }).await?;
    let written = answer.markers.iter().flat_map(|marker| &marker.topics).flat_map(|topic| &topic.partitions);
    let code = written.map(|partition| partition.error_code).next().context("WriteTxnMarkers answered nothing")?;
    check(code).with_context(|| format!("the transaction at offset {start_offset} of {topic}-{partition}"))?;
    let fact = json!({ "topic": topic, "partition": partition, "start_offset": start_offset,
                       "producer_id": producer.producer_id, "aborted": true });
    output.fact(&format!("aborted the transaction at offset {start_offset} of {topic}-{partition}"), &fact)
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
