//! The commands that talk to a running cluster over Kafka's protocol, and [`log`] that reads files: tables for people,
//! `--json` for programs.

pub(crate) mod chaos;
mod cluster;
mod consume;
mod disks;
mod group;
pub(crate) mod log;
mod outlook;
pub(crate) mod output;
pub(crate) mod partitions;
pub(crate) mod produce;
mod quorum;
mod rebalance;
mod topic;
mod transaction;
mod trouble;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::kafka_client::KafkaClient;
use output::Output;

/// The nodes of `ottla local`: any of them may be down.
const DEFAULT_BOOTSTRAP: &str = "127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094";

/// What every command that asks a cluster takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// Brokers to ask first, as host:port,…
    #[arg(long, short = 'b', global = true, default_value = DEFAULT_BOOTSTRAP, env = "OTTLA_BOOTSTRAP")]
    bootstrap: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

/// The client commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Topics: create, list, describe, alter, delete
    Topic {
        #[command(subcommand)]
        command: topic::TopicCommand,
        #[command(flatten)]
        target: Target,
    },
    /// Write lines of standard input as records
    Produce {
        #[command(flatten)]
        options: produce::ProduceOptions,
        #[command(flatten)]
        target: Target,
    },
    /// Print records
    Consume {
        #[command(flatten)]
        options: consume::ConsumeOptions,
        #[command(flatten)]
        target: Target,
    },
    /// Consumer groups: list, describe, reset, delete
    Group {
        #[command(subcommand)]
        command: group::GroupCommand,
        #[command(flatten)]
        target: Target,
    },
    /// Transactions: list, describe, find those that hang, abort them
    Transaction {
        #[command(subcommand)]
        command: transaction::TransactionCommand,
        #[command(flatten)]
        target: Target,
    },
    /// The metadata quorum: who votes
    Quorum {
        #[command(subcommand)]
        command: quorum::QuorumCommand,
        #[command(flatten)]
        target: Target,
    },
    /// The cluster: nodes, zones, quorum, partitions in trouble
    Cluster {
        #[command(subcommand)]
        command: cluster::ClusterCommand,
        #[command(flatten)]
        target: Target,
    },
}

/// Runs a client command.
pub(crate) async fn run(command: ClientCommand) -> Result<()> {
    match command {
        ClientCommand::Topic { command, target } => {
            let (mut client, output) = connect(&target)?;
            topic::run(&mut client, output, command).await
        }
        ClientCommand::Produce { options, target } => {
            let (mut client, output) = connect(&target)?;
            produce::produce(&mut client, output, options).await
        }
        ClientCommand::Consume { options, target } => {
            let (mut client, output) = connect(&target)?;
            consume::consume(&mut client, output, options).await
        }
        ClientCommand::Group { command, target } => {
            let (mut client, output) = connect(&target)?;
            group::run(&mut client, output, command).await
        }
        ClientCommand::Transaction { command, target } => {
            let (mut client, output) = connect(&target)?;
            transaction::run(&mut client, output, command).await
        }
        ClientCommand::Quorum { command, target } => {
            let (mut client, output) = connect(&target)?;
            quorum::run(&mut client, output, command).await
        }
        ClientCommand::Cluster { command, target } => {
            let (mut client, output) = connect(&target)?;
            cluster::run(&mut client, output, command).await
        }
    }
}

fn connect(target: &Target) -> Result<(KafkaClient, Output)> {
    Ok((KafkaClient::new(&target.bootstrap)?, Output { json: target.json }))
}
