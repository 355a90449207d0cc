//! `ottla demo`: what Ottla is for, in one command and some seconds. A cluster in three zones, and two acts: records whose
//! leader is killed ([`failover`]), and transactions whose coordinator is ([`transactions`]).

mod failover;
mod producer;
mod transactions;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use protocol::messages::{CreateTopicsRequest, CreateTopicsResponse, create_topics_request};

use crate::cli::output::Output;
use crate::kafka_client::{KafkaClient, check_message};
use crate::local::{LocalCluster, LocalOptions};
use crate::stop::StopSignal;

/// How long a cluster may take to serve again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells people on the way; programs get one object at the end.
#[derive(Clone, Copy, Debug)]
struct Teller(Output);

impl Teller {
    fn line(self, text: &str) -> Result<()> {
        if self.0.json { Ok(()) } else { self.0.text(text) }
    }
}

/// Runs the demonstration; in the first act the leader is killed `rounds` times.
pub(crate) async fn run(base_port: u16, rounds: u32, output: Output) -> Result<()> {
    let options =
        LocalOptions { data: None, ephemeral: true, nodes: 3, base_port, overrides: Vec::new(), detoured: false };
    let mut stop = StopSignal::new()?;
    let started = Instant::now();
    let mut cluster = LocalCluster::start(&options)?;
    // Ctrl-C in the middle still stops the nodes, and removes what they wrote.
    let outcome = tokio::select! {
        outcome = show(&mut cluster, rounds, started, output) => outcome,
        () = stop.received() => Err(anyhow::anyhow!("stopped before the end")),
    };
    cluster.stop(&mut stop).await?;
    outcome
}

async fn show(cluster: &mut LocalCluster, rounds: u32, started: Instant, output: Output) -> Result<()> {
    let tell = Teller(output);
    cluster.wait_ready(PATIENCE).await?;
    tell.line(&format!("three nodes in zones a, b, c serve after {:.2} s", started.elapsed().as_secs_f64()))?;
    let mut client = KafkaClient::new(&cluster.bootstrap())?;
    let failover = failover::play(cluster, &mut client, rounds, tell).await?;
    failover.check()?;
    tell.line("every acknowledged record is there, once, at its offset\n")?;
    let transactions = transactions::play(cluster, &mut client, tell).await?;
    tell.line("each transaction ended whole: all of its records and its offset, or none")?;
    if output.json {
        let mut object = failover.json();
        object["transactions"] = serde_json::to_value(transactions)?;
        output.fact("", &object)?;
    }
    Ok(())
}

/// Creates a topic that waits for two of three replicas.
async fn create_topic(client: &mut KafkaClient, name: &str, partitions: i32) -> Result<()> {
    let config = create_topics_request::CreatableTopicConfig {
        name: "min.insync.replicas".to_owned(),
        value: Some("2".to_owned()),
    };
    let topic = create_topics_request::CreatableTopic {
        name: name.to_owned(),
        num_partitions: partitions,
        replication_factor: 3,
        configs: vec![config],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, validate_only: false };
    let answer: CreateTopicsResponse = client.any(&request).await?;
    let created = answer.topics.first().context("CreateTopics answered nothing")?;
    check_message(created.error_code, created.error_message.as_deref()).context("cannot create the topic")
}
