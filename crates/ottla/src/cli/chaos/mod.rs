//! `ottla chaos`: what a cluster does under faults. Histories are judged by the crate `chaos`; here are the files, the terminal,
//! the processes and the clients.

mod check;
mod clients;
mod relay;
mod replica;
mod run;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::output::Output;

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct ChaosOptions {
    #[command(subcommand)]
    command: ChaosCommand,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ChaosCommand {
    /// Kill, pause and cut off the nodes of a local cluster under load, and judge what came of it
    Run(run::RunOptions),
    /// Judge a history: exit code 0 if nothing in it is wrong
    Check {
        /// A file of lines, one JSON object each
        history: PathBuf,
        /// Refuse a history with fewer acknowledged records
        #[arg(long, default_value_t = 1)]
        at_least: usize,
    },
    /// Make one page of a history: its faults, throughput, latency, what was not available, the verdict
    Report {
        /// A file of lines, one JSON object each
        history: PathBuf,
        /// Where the page goes
        #[arg(long)]
        out: PathBuf,
    },
    /// Print what the files of a replica hold, as lines of a history
    Replica(replica::ReplicaOptions),
}

/// Runs one of the commands.
pub(crate) async fn run(options: ChaosOptions) -> Result<()> {
    let output = Output { json: options.json };
    match options.command {
        ChaosCommand::Run(options) => run::run(options, output).await,
        ChaosCommand::Check { history, at_least } => check::run(&history, at_least, output),
        ChaosCommand::Report { history, out } => check::report(&history, &out, output),
        ChaosCommand::Replica(options) => replica::run(&options, output),
    }
}
