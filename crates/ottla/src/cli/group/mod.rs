//! `ottla group`.

mod describe;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use model::ErrorCode;
use protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, offset_commit_request, offset_fetch_request,
};
use protocol::{Request, Response};
use serde_json::{Value, json};

use super::output::{Output, counted};
use super::partitions::{EARLIEST, LATEST, Retry, list_offsets};
use crate::kafka_client::{KafkaClient, check, is_retriable};

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List groups
    List,
    /// Show a group's members, offsets and lag
    Describe {
        /// The group
        group: String,
    },
    /// Set the offsets of an empty group
    Reset(ResetOptions),
    /// Delete empty groups with their offsets
    Delete {
        /// The groups
        #[arg(required = true)]
        groups: Vec<String>,
    },
}

/// Arguments of `reset`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("to").required(true))]
pub(crate) struct ResetOptions {
    /// The group
    group: String,
    /// The topic
    #[arg(long)]
    topic: String,
    /// To the first record there is
    #[arg(long, group = "to")]
    to_earliest: bool,
    /// To the end
    #[arg(long, group = "to")]
    to_latest: bool,
    /// To this offset in every partition
    #[arg(long, group = "to", value_name = "OFFSET", allow_negative_numbers = true)]
    to_offset: Option<i64>,
    /// To the first record at or after a time, in milliseconds since 1970
    #[arg(long, group = "to", value_name = "MS")]
    to_timestamp: Option<i64>,
    /// Only show what would be set
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: GroupCommand) -> Result<()> {
    match command {
        GroupCommand::List => list(client, output).await,
        GroupCommand::Describe { group } => describe::describe(client, output, &group).await,
        GroupCommand::Reset(options) => reset(client, output, options).await,
        GroupCommand::Delete { groups } => delete(client, output, groups).await,
    }
}

async fn list(client: &mut KafkaClient, output: Output) -> Result<()> {
    let retry = Retry::new();
    let mut rows = loop {
        match list_once(client).await {
            Ok(rows) => break rows,
            Err(error) => retry.after(error).await?,
        }
    };
    rows.sort_by_key(|row| row[0].to_string());
    output.rows(&["group", "state", "type", "protocol"], rows)
}

async fn list_once(client: &mut KafkaClient) -> Result<Vec<Vec<Value>>> {
    let mut rows = Vec::new();
    for (_, address) in client.brokers().await? {
        let answer: ListGroupsResponse = client.at(&address, &ListGroupsRequest::default()).await?;
        check(answer.error_code).with_context(|| format!("groups of {address}"))?;
        for group in answer.groups {
            let state = [group.group_id, group.group_state, group.group_type, group.protocol_type];
            rows.push(state.map(|text| json!(text)).to_vec());
        }
    }
    Ok(rows)
}

/// Asks a group's coordinator, and again while that one moves or loads. `code` finds an answer's error.
async fn ask<R: Request, A: Response>(
    client: &mut KafkaClient,
    group: &str,
    request: &R,
    code: impl Fn(&A) -> Option<i16>,
) -> Result<A> {
    let retry = Retry::new();
    loop {
        let address = client.coordinator(group).await?;
        let answer: Result<A> = client.at(&address, request).await;
        let error = match answer {
            Ok(answer) => match check(code(&answer).unwrap_or(0)) {
                Err(error) if is_retriable(&error) => error.context(format!("coordinator of {group} at {address}")),
                _ => return Ok(answer),
            },
            Err(error) => error,
        };
        retry.after(error).await?;
    }
}

/// A committed offset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) offset: i64,
    /// Milliseconds since the next record was appended, as the brokers tell it.
    lag_ms: Option<u64>,
}

impl Committed {
    /// For people and programs: null is what no broker knows.
    fn lag_seconds(self) -> Option<f64> {
        self.lag_ms.map(|ms| Duration::from_millis(ms).as_secs_f64())
    }
}

/// Committed offsets by topic and partition.
pub(super) async fn committed(client: &mut KafkaClient, group: &str) -> Result<BTreeMap<(String, i32), Committed>> {
    let asked = offset_fetch_request::OffsetFetchRequestGroup {
        group_id: group.to_owned(),
        topics: None,
        ..Default::default()
    };
    let request =
        OffsetFetchRequest { group_id: group.to_owned(), groups: vec![asked], with_lag: true, ..Default::default() };
    let code = |answer: &OffsetFetchResponse| answer.groups.first().map(|group| group.error_code);
    let answer = ask(client, group, &request, code).await?;
    let found = answer.groups.into_iter().next().context("OffsetFetch answered nothing")?;
    check(found.error_code)?;
    let mut offsets = BTreeMap::new();
    let names = topic_names(client).await?;
    for topic in found.topics {
        let name =
            if topic.name.is_empty() { names.get(&topic.topic_id).cloned().unwrap_or_default() } else { topic.name };
        for partition in topic.partitions {
            let lag_ms = u64::try_from(partition.lag_ms).ok();
            let found = Committed { offset: partition.committed_offset, lag_ms };
            offsets.insert((name.clone(), partition.partition_index), found);
        }
    }
    Ok(offsets)
}

async fn topic_names(client: &mut KafkaClient) -> Result<BTreeMap<model::Uuid, String>> {
    let metadata = client.metadata(None).await?;
    Ok(metadata.topics.into_iter().filter_map(|topic| Some((topic.topic_id, topic.name?))).collect())
}

async fn reset(client: &mut KafkaClient, output: Output, options: ResetOptions) -> Result<()> {
    let first = list_offsets(client, &options.topic, EARLIEST).await?;
    let ends = list_offsets(client, &options.topic, LATEST).await?;
    let targets = if options.to_earliest {
        first.clone()
    } else if options.to_latest {
        ends.clone()
    } else if let Some(timestamp) = options.to_timestamp {
        let mut found = list_offsets(client, &options.topic, timestamp).await?;
        // A partition without a record that late goes to its end, as Kafka's tool does.
        found.retain(|_, offset| *offset >= 0);
        ends.iter().map(|(p, end)| (*p, found.get(p).copied().unwrap_or(*end))).collect()
    } else {
        ends.keys().map(|partition| (*partition, options.to_offset.unwrap_or(0))).collect()
    };
    // An offset that no record has or will have next would send the consumers to wherever their reset policy says.
    let within = |(partition, offset): (i32, i64)| {
        let (first, end) = (first.get(&partition).copied().unwrap_or(0), ends.get(&partition).copied().unwrap_or(0));
        let taken = offset.clamp(first, end.max(first));
        if taken != offset {
            eprintln!("partition {partition}: {offset} is not within its log, from {first} to {end}: {taken} is taken");
        }
        (partition, taken)
    };
    let targets: BTreeMap<i32, i64> = targets.into_iter().map(within).collect();
    if !options.dry_run {
        commit(client, &options.group, &options.topic, &targets).await?;
    }
    let rows = targets.iter().map(|(partition, offset)| vec![json!(options.topic), json!(partition), json!(offset)]);
    output.rows(&["topic", "partition", "new_offset"], rows.collect())
}

/// Commits for a group without members.
pub(super) async fn commit(
    client: &mut KafkaClient,
    group: &str,
    topic: &str,
    targets: &BTreeMap<i32, i64>,
) -> Result<()> {
    use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
    let id = topic_names(client).await?.into_iter().find(|(_, name)| name == topic).map(|(id, _)| id);
    let partition = |(partition_index, committed_offset): (&i32, &i64)| OffsetCommitRequestPartition {
        partition_index: *partition_index,
        committed_offset: *committed_offset,
        committed_leader_epoch: -1,
        ..Default::default()
    };
    let asked = OffsetCommitRequestTopic {
        name: topic.to_owned(),
        topic_id: id.unwrap_or_default(),
        partitions: targets.iter().map(partition).collect(),
    };
    let request = OffsetCommitRequest {
        group_id: group.to_owned(),
        generation_id_or_member_epoch: -1,
        retention_time_ms: -1,
        topics: vec![asked],
        ..Default::default()
    };
    let code = |answer: &OffsetCommitResponse| Some(answer.topics.first()?.partitions.first()?.error_code);
    let answer = ask(client, group, &request, code).await?;
    for result in answer.topics.iter().flat_map(|topic| &topic.partitions) {
        let error = ErrorCode::from_code(result.error_code);
        ensure!(error != ErrorCode::UnknownMemberId, "group {group} has members: stop them first");
        check(result.error_code).with_context(|| format!("cannot set {topic}-{}", result.partition_index))?;
    }
    Ok(())
}

async fn delete(client: &mut KafkaClient, output: Output, groups: Vec<String>) -> Result<()> {
    let mut failed = 0;
    for group in &groups {
        let request = DeleteGroupsRequest { groups_names: vec![group.clone()] };
        let code = |answer: &DeleteGroupsResponse| answer.results.first().map(|result| result.error_code);
        let answer = ask(client, group, &request, code).await?;
        let result = answer.results.first().context("DeleteGroups answered nothing")?;
        match ErrorCode::from_code(result.error_code) {
            ErrorCode::None => output.fact(&format!("deleted group {group}"), &json!({ "group": group }))?,
            error => {
                let why = match error {
                    ErrorCode::NonEmptyGroup => "it has members; stop them first".to_owned(),
                    ErrorCode::GroupIdNotFound => {
                        "there is no such group; `ottla group list` shows those there are".to_owned()
                    }
                    other => other.to_string(),
                };
                eprintln!("cannot delete group {group}: {why}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} not deleted", counted(i64::try_from(groups.len())?, "group"))
    } else {
        Ok(())
    }
}
