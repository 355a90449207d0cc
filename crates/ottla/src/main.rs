//! `ottla`: a server, a local cluster in one command, and the command line for both.

mod cli;
mod config;
mod demo;
mod descriptors;
mod group_status;
mod http;
mod kafka_client;
mod local;
mod properties;
mod server;
mod status;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use cli::output::{Output, OutputClosed};
use futures_util::FutureExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A Kafka-compatible, replicated log
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node
    Server {
        /// A Kafka properties file
        #[arg(long)]
        config: PathBuf,
        /// A setting that replaces the file's, as name=value
        #[arg(long = "override", value_name = "NAME=VALUE")]
        overrides: Vec<String>,
        /// Stop when this process, which started this one, ends
        #[arg(long, hide = true, value_name = "PID")]
        end_with_parent: Option<i32>,
    },
    /// Run a cluster on this machine until Ctrl-C
    Local {
        /// Where the nodes keep their data
        #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
        data: Option<PathBuf>,
        /// Keep the data in a temporary directory and remove it at the end
        #[arg(long)]
        ephemeral: bool,
        /// How many nodes, in zones a, b and c in turn
        #[arg(long, default_value_t = 3)]
        nodes: u16,
        /// Kafka port of the first node; INTERNAL is 1000 above, CONTROLLER 2000, HTTP 3000
        #[arg(long, default_value_t = 9092, value_parser = clap::value_parser!(u16).range(1..))]
        base_port: u16,
        /// A setting for every node, as name=value
        #[arg(long = "override", value_name = "NAME=VALUE")]
        overrides: Vec<String>,
    },
    /// Show what Ottla is for: kill leaders and coordinators, and count what was acknowledged and committed
    Demo {
        /// Kafka port of the first node
        #[arg(long, default_value_t = 19092, value_parser = clap::value_parser!(u16).range(1..))]
        base_port: u16,
        /// How many times the leader is killed
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Print the outcome as JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Client(cli::ClientCommand),
    /// The files of a data directory: show what they hold, check them
    Log(cli::log::LogOptions),
    /// What a cluster does under faults: do harm under load, and judge what came of it
    Chaos(cli::chaos::ChaosOptions),
    /// Ask a node's HTTP port whether it serves; exit code 0 if it does
    Health {
        /// The node's ottla.http.listener
        #[arg(long, default_value = "127.0.0.1:12092")]
        http: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads no further has what he wanted.
        Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ottla: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Server { config, overrides, end_with_parent } => server::run(&config, &overrides, end_with_parent),
        Command::Log(options) => cli::log::run(options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ottla", &mut script);
            Output { json: false }.lines(|out| out.write_all(&script))
        }
        other => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let outcome = runtime.block_on(run_async(other).boxed_local());
            // A thread that waits for a line of standard input is not waited for.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn run_async(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Local { data, ephemeral, nodes, base_port, overrides } => {
            local::run(local::LocalOptions { data, ephemeral, nodes, base_port, overrides, detoured: false }).await
        }
        Command::Demo { base_port, rounds, json } => demo::run(base_port, rounds, Output { json }).await,
        Command::Client(command) => cli::run(command).await,
        Command::Chaos(options) => cli::chaos::run(options).await,
        Command::Health { http, json } => health(&http, Output { json }).await,
        Command::Server { .. } | Command::Log(_) | Command::Completions { .. } => Ok(()),
    }
}

async fn health(address: &str, output: Output) -> anyhow::Result<()> {
    let answer = http::get(address, "/health/ready").await?;
    let why = answer.body.trim();
    if answer.code == 200 {
        return output.fact("ready", &serde_json::json!({ "ready": true }));
    }
    if output.json {
        output.fact("", &serde_json::json!({ "ready": false, "why": why }))?;
    }
    anyhow::bail!("{address} is not ready: {why}")
}
