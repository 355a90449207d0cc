//! `ottla quorum`: who votes on the metadata.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use controller::recovery;
use futures_util::StreamExt;
use metadata::MetadataImage;
use metadata::restore::Raised;
use model::{BrokerId, ClusterId, DirectoryId, MetadataOffset};
use protocol::messages::{
    AddRaftVoterRequest, AddRaftVoterResponse, DescribeQuorumRequest, DescribeQuorumResponse, RemoveRaftVoterRequest,
    RemoveRaftVoterResponse, add_raft_voter_request, describe_quorum_request, describe_quorum_response,
};
use rpc::controller::{ControllerClient, MetadataEvent};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::output::Output;
use crate::config::NodeConfig;
use crate::kafka_client::{KafkaClient, check, check_message};

const TIMEOUT_MS: i32 = 60_000;
const BACKUP_TIMEOUT: Duration = Duration::from_secs(60);
const COLUMNS: [&str; 6] = ["node", "role", "directory", "log_end", "behind", "address"];

/// What to do with the quorum.
#[derive(Debug, Subcommand)]
pub(crate) enum QuorumCommand {
    /// Show the voters, and how far each of them is
    Describe,
    /// Take on a controller that runs and waits as a voter
    Add {
        /// Its node.id
        node: i32,
        /// host:port of its CONTROLLER listener
        address: String,
        /// Its directory id; without it, the one that it introduced itself by
        #[arg(long)]
        directory: Option<String>,
    },
    /// Save the cluster's metadata in a file: topics, configs, where everything is; no records
    Backup {
        /// The file to write
        file: PathBuf,
    },
    /// Put a backup into the metadata directory of a stopped node that has none; it is then the only voter
    Restore {
        /// The file to read
        file: PathBuf,
        /// The node's server.properties
        #[arg(long)]
        config: PathBuf,
    },
    /// Make a stopped node the only voter of what it has, where a majority of the voters is lost for good
    Recover {
        /// The node's server.properties
        #[arg(long)]
        config: PathBuf,
        /// Yes: what only the lost voters had is given up, and they never come back with their old directories
        #[arg(long = "unsafe", required = true)]
        accepted: bool,
    },
    /// Go on without a voter
    Remove {
        /// Its node.id
        node: i32,
        /// Its directory id; without it, whichever one of that node votes
        #[arg(long)]
        directory: Option<String>,
    },
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: QuorumCommand) -> Result<()> {
    match command {
        QuorumCommand::Describe => describe(client, output).await,
        QuorumCommand::Backup { file } => backup(client, output, &file).await,
        QuorumCommand::Restore { file, config } => restore(output, &file, &config).await,
        QuorumCommand::Recover { config, accepted: _ } => recover(output, &config).await,
        QuorumCommand::Add { node, address, directory } => add(client, output, node, &address, directory).await,
        QuorumCommand::Remove { node, directory } => {
            let request = RemoveRaftVoterRequest {
                cluster_id: None,
                voter_id: node,
                voter_directory_id: directory_id(directory)?.0,
            };
            let answer: RemoveRaftVoterResponse = client.any(&request).await?;
            check_message(answer.error_code, answer.error_message.as_deref())?;
            output.fact(&format!("node {node} votes no longer"), &json!({ "node": node }))
        }
    }
}

/// Follows the active controller's metadata up to where the quorum is now.
async fn backup(client: &mut KafkaClient, output: Output, file: &Path) -> Result<()> {
    let answer = ask_quorum(client).await?;
    let voters: Vec<(BrokerId, String)> = answer
        .nodes
        .iter()
        .filter_map(|node| Some((BrokerId(node.node_id), controller_address(&answer, node.node_id)?)))
        .collect();
    let controllers = ControllerClient::new(&voters).context("no controller has told its address")?;
    let deadline = Instant::now() + BACKUP_TIMEOUT;
    let end = controllers.describe(deadline).await?.next_offset;
    let mut image = MetadataImage::default();
    let mut events = pin!(controllers.follow(ClusterId::NONE, MetadataOffset(0)));
    while image.next_offset() < end {
        let event = tokio::time::timeout_at(deadline, events.next()).await.context("no controller answers")?;
        match event.context("the controllers say no more")? {
            MetadataEvent::Snapshot { next_offset, records } => {
                image = MetadataImage::from_snapshot(next_offset, &records);
            }
            MetadataEvent::Batch { records, .. } => records.iter().for_each(|record| image.apply(record)),
            MetadataEvent::Refused(reason) => bail!("{reason}"),
        }
    }
    let bytes = recovery::write_backup(&image);
    std::fs::write(file, &bytes).with_context(|| format!("cannot write {}", file.display()))?;
    let sentence = format!(
        "saved the metadata of cluster {} up to offset {}: {} topics, {} bytes",
        image.cluster_id(),
        image.next_offset(),
        image.topics().len(),
        bytes.len()
    );
    let object = json!({
        "cluster_id": image.cluster_id().to_string(), "next_offset": image.next_offset().0, "topics": image.topics().len(),
    });
    output.fact(&sentence, &object)
}

fn node_config(path: &Path) -> Result<NodeConfig> {
    NodeConfig::load(path, &[])
}

async fn restore(output: Output, file: &Path, config: &Path) -> Result<()> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (_locked, files) = crate::server::quorum_files(&node_config(config)?)?;
    let restored = recovery::restore(&files, bytes.into()).await?;
    let sentence = format!(
        "restored the metadata of cluster {} up to offset {}: node {} is its only voter.\n{}\nwhat may be missing: what was \
         changed since the backup: topics, partitions, configs, where replicas are. {LOGS_OF_OTHERS}\n{WHO_LEADS}\nstop every \
         node that still runs, start this one, then the others with empty metadata directories, and add those that are to \
         vote with `ottla quorum add`",
        restored.cluster_id,
        restored.next_offset,
        files.node_id,
        what_was_raised(&restored.raised)
    );
    output.fact(&sentence, &facts(&restored))
}

async fn recover(output: Output, config: &Path) -> Result<()> {
    let (_locked, files) = crate::server::quorum_files(&node_config(config)?)?;
    let recovered = recovery::recover_alone(&files).await?;
    let others: Vec<String> =
        recovered.voters.iter().filter(|id| **id != files.node_id).map(ToString::to_string).collect();
    let (index, term) = recovered.last_entry.unwrap_or_default();
    let sentence = format!(
        "node {} is the only voter of cluster {}, with the metadata up to offset {}.\n{}\nwhat may be lost: everything that the \
         voters {} had after log entry {index} of term {term}: topics, partitions, configs, where replicas are. \
         {LOGS_OF_OTHERS}\n{WHO_LEADS}\nthose voters must never come back with their old metadata directories: wipe those, \
         start them, and add them with `ottla quorum add`. Stop every broker that still runs, and start it again",
        files.node_id,
        recovered.cluster_id,
        recovered.next_offset,
        what_was_raised(&recovered.raised),
        others.join(", ")
    );
    output.fact(&sentence, &facts(&recovered))
}

/// R80, for whoever reads what these commands print.
const LOGS_OF_OTHERS: &str = "Logs that this metadata does not place where they are, each broker keeps under a name that ends in -stray \
     when it starts next: nobody reads them, and nobody but you deletes them. Topics that were deleted since come back empty";
const WHO_LEADS: &str = "a partition is led again once each of its replicas has told what it has; where one never comes back, elect \
     uncleanly (kafka-leader-election.sh --election-type unclean)";

fn what_was_raised(raised: &Raised) -> String {
    format!(
        "raised above what brokers and clients may know: the next metadata offset to {}, the next producer id to {}, the epochs of \
         {} partitions by {}; {} brokers have to register anew",
        raised.next_offset, raised.next_producer_id, raised.partitions, raised.epochs_by, raised.brokers
    )
}

fn facts(recovered: &recovery::Recovered) -> Value {
    let (index, term) = recovered.last_entry.unzip();
    json!({
        "cluster_id": recovered.cluster_id.to_string(), "next_offset": recovered.next_offset.0, "last_index": index,
        "last_term": term, "former_voters": recovered.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
        "raised": {
            "next_offset": recovered.raised.next_offset.0, "next_producer_id": recovered.raised.next_producer_id.0,
            "partitions": recovered.raised.partitions, "brokers": recovered.raised.brokers, "epochs_by": recovered.raised.epochs_by,
        },
    })
}

async fn ask_quorum(client: &mut KafkaClient) -> Result<DescribeQuorumResponse> {
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".to_owned(),
        partitions: vec![describe_quorum_request::PartitionData { partition_index: 0 }],
    };
    let answer: DescribeQuorumResponse = client.any(&DescribeQuorumRequest { topics: vec![topic] }).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    Ok(answer)
}

/// Where a voter's CONTROLLER listener is.
fn controller_address(answer: &DescribeQuorumResponse, id: i32) -> Option<String> {
    let node = answer.nodes.iter().find(|node| node.node_id == id)?;
    let listener = node.listeners.iter().find(|each| each.name == "CONTROLLER")?;
    Some(format!("{}:{}", listener.host, listener.port))
}

fn directory_id(text: Option<String>) -> Result<DirectoryId> {
    let Some(text) = text else { return Ok(DirectoryId::NONE) };
    text.parse().with_context(|| format!("--directory {text:?} is no directory id"))
}

async fn add(
    client: &mut KafkaClient,
    output: Output,
    node: i32,
    address: &str,
    directory: Option<String>,
) -> Result<()> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts else { bail!("{address:?} is not host:port") };
    let listener = add_raft_voter_request::Listener { name: "CONTROLLER".to_owned(), host: host.to_owned(), port };
    let request = AddRaftVoterRequest {
        cluster_id: None,
        timeout_ms: TIMEOUT_MS,
        voter_id: node,
        voter_directory_id: directory_id(directory)?.0,
        listeners: vec![listener],
        ack_when_committed: true,
    };
    let answer: AddRaftVoterResponse = client.any(&request).await?;
    check_message(answer.error_code, answer.error_message.as_deref())?;
    output.fact(&format!("node {node} votes"), &json!({ "node": node }))
}

async fn describe(client: &mut KafkaClient, output: Output) -> Result<()> {
    let answer = ask_quorum(client).await?;
    let partition = answer.topics.iter().flat_map(|topic| &topic.partitions).next();
    let partition = partition.context("DescribeQuorum answered nothing")?;
    check(partition.error_code)?;
    let newest = partition.current_voters.iter().map(|voter| voter.log_end_offset).max().unwrap_or(-1);
    let row = |replica: &describe_quorum_response::ReplicaState, role: &str| -> Vec<Value> {
        let known = (replica.log_end_offset >= 0).then_some(replica.log_end_offset);
        vec![
            json!(replica.replica_id),
            json!(role),
            json!(DirectoryId(replica.replica_directory_id).to_string()),
            json!(known),
            json!(known.map(|end| newest - end)),
            json!(controller_address(&answer, replica.replica_id)),
        ]
    };
    let voter = |voter: &describe_quorum_response::ReplicaState| {
        row(voter, if voter.replica_id == partition.leader_id { "leader" } else { "voter" })
    };
    let voters = partition.current_voters.iter().map(voter);
    let rows: Vec<_> = voters.chain(partition.observers.iter().map(|observer| row(observer, "observer"))).collect();
    output.rows(&COLUMNS, rows)
}
