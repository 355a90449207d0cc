//! `ottla cluster`.

use anyhow::Result;
use clap::Subcommand;
use protocol::messages::{DescribeQuorumRequest, DescribeQuorumResponse, MetadataResponse, describe_quorum_request};
use serde_json::{Value, json};

use super::output::Output;
use crate::kafka_client::{KafkaClient, check};

/// What to ask of the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show nodes, zones, the quorum, and partitions in trouble
    Status,
}

pub(super) async fn run(client: &mut KafkaClient, output: Output, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Status => status(client, output).await,
    }
}

struct Quorum {
    leader: i32,
    voters: Vec<i32>,
}

async fn status(client: &mut KafkaClient, output: Output) -> Result<()> {
    let metadata = client.metadata(None).await?;
    let quorum = quorum(client).await?;
    let led = |id: i32| metadata.topics.iter().flat_map(|t| &t.partitions).filter(|p| p.leader_id == id).count();
    let held =
        |id: i32| metadata.topics.iter().flat_map(|t| &t.partitions).filter(|p| p.replica_nodes.contains(&id)).count();
    let node = |broker: &protocol::messages::metadata_response::MetadataResponseBroker| {
        let id = broker.node_id;
        let role = match (quorum.leader == id, quorum.voters.contains(&id)) {
            (true, _) => "active",
            (false, true) => "standby",
            (false, false) => "-",
        };
        vec![
            json!(id),
            json!(broker.rack),
            json!(format!("{}:{}", broker.host, broker.port)),
            json!(role),
            json!(led(id)),
            json!(held(id)),
        ]
    };
    let nodes: Vec<Vec<Value>> = metadata.brokers.iter().map(node).collect();
    let (under, offline) = in_trouble(&metadata);
    if output.json {
        let keys = ["node", "zone", "address", "controller", "leaders", "replicas"];
        let object = |row: &Vec<Value>| -> Value {
            keys.iter().map(|k| (*k).to_owned()).zip(row.iter().cloned()).collect::<serde_json::Map<_, _>>().into()
        };
        let all = json!({
            "cluster_id": metadata.cluster_id,
            "nodes": nodes.iter().map(object).collect::<Vec<_>>(),
            "active_controller": quorum.leader,
            "voters": quorum.voters,
            "topics": metadata.topics.len(),
            "under_replicated": under,
            "offline": offline,
        });
        return output.fact("", &all);
    }
    println!("cluster {}", metadata.cluster_id.as_deref().unwrap_or("-"));
    println!("quorum  active controller {}, voters {:?}", quorum.leader, quorum.voters);
    let missing: Vec<_> =
        quorum.voters.iter().filter(|id| metadata.brokers.iter().all(|b| b.node_id != **id)).collect();
    if !missing.is_empty() {
        println!("down    {missing:?}");
    }
    println!(
        "topics  {}, under-replicated partitions {}, offline partitions {}\n",
        metadata.topics.len(),
        under.len(),
        offline.len()
    );
    output.rows(&["node", "zone", "address", "controller", "leaders", "replicas"], nodes)?;
    for (what, partitions) in [("under-replicated", under), ("offline", offline)] {
        if !partitions.is_empty() {
            println!("\n{what}: {}", partitions.join(" "));
        }
    }
    Ok(())
}

/// `topic-partition` of those under-replicated, and of those without a leader.
fn in_trouble(metadata: &MetadataResponse) -> (Vec<String>, Vec<String>) {
    let (mut under, mut offline) = (Vec::new(), Vec::new());
    for topic in &metadata.topics {
        for partition in &topic.partitions {
            let name = format!("{}-{}", topic.name.as_deref().unwrap_or("?"), partition.partition_index);
            if partition.leader_id < 0 {
                offline.push(name);
            } else if partition.isr_nodes.len() < partition.replica_nodes.len() {
                under.push(name);
            }
        }
    }
    (under, offline)
}

async fn quorum(client: &mut KafkaClient) -> Result<Quorum> {
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".to_owned(),
        partitions: vec![describe_quorum_request::PartitionData { partition_index: 0 }],
    };
    let answer: DescribeQuorumResponse = client.any(&DescribeQuorumRequest { topics: vec![topic] }).await?;
    check(answer.error_code)?;
    let partition = answer.topics.into_iter().flat_map(|topic| topic.partitions).next();
    let Some(partition) = partition else { return Ok(Quorum { leader: -1, voters: Vec::new() }) };
    check(partition.error_code)?;
    let voters = partition.current_voters.iter().map(|voter| voter.replica_id).collect();
    Ok(Quorum { leader: partition.leader_id, voters })
}
