//! The metadata quorum: openraft with its log on `storage`, wired to `metadata::control`.
//!
//! Reading order: [`Controller`] (how one is started), `control_loop` (the active controller decides), `service` (what it
//! answers over `rpc`), `metadata_log` (what followers are offered), `supervision` (when it gives up), `registration` (it
//! tells the cluster where it is), `raft` (everything that knows openraft), in it [`recovery`] (what an operator does to a
//! stopped node's metadata).
//!
//! Invariants: the log holds facts, fenced by tenure and offset (`R66`); one proposal is in flight (`R67`); nothing is
//! answered but in an active tenure (`R68`); only `raft` knows openraft. A controller lives on its own thread and runtime,
//! so that its heartbeats wait for nobody's records.

mod control_loop;
mod metadata_log;
mod raft;
mod registration;
mod service;
mod supervision;

#[cfg(test)]
mod tests;

/// All rules, but for the one that `just mutations` has switched off.
#[cfg(test)]
fn rules() -> model::Rules {
    model::Rules::without_named(&std::env::var("OTTLA_SWITCHED_OFF").unwrap_or_default())
}

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;

use futures_util::FutureExt;
use metadata::control::{ControlRequest, ControlSettings};
use metadata::records::{BrokerRegistration, Listener};
use model::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Incarnation, MetadataOffset};
use rpc::controller::QuorumInfo;
use rpc::net::{Incoming, Listening, Network};
use rpc::raft::QuorumNode;
use storage::DiskPool;
use storage::disk::Disk;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::control_loop::{ControlConfig, ControlHandle, ControlLoop};
use crate::raft::runtime::{Random, seed_thread};
use crate::raft::{OpenError, Quorum, QuorumConfig, Waits};
use crate::service::Service;
use crate::supervision::Supervision;

pub use crate::raft::{Timeouts, recovery};
pub use crate::supervision::OnFatal;

/// What a controller is started with.
#[derive(Clone)]
pub struct ControllerConfig {
    /// Its `node.id`.
    pub node_id: BrokerId,
    /// The identity of its metadata directory, durable before the start (`R74`).
    pub directory: DirectoryId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// Over which it reaches other nodes.
    pub network: Network,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Where the log, the vote, the snapshots and the copy of the image lie; nothing else does.
    pub path: PathBuf,
    /// Whether a copy of the image is kept in sled there, to restart faster (`R73`): on the machine's own file system only.
    pub keep_image: bool,
    /// `controller.quorum.voters`, as (node.id, `host:port`).
    pub voters: Vec<(BrokerId, String)>,
    /// Where the CONTROLLER listener is bound.
    pub bind: SocketAddr,
    /// The listeners that the cluster is told.
    pub listeners: Vec<Listener>,
    /// `inter.broker.listener.name`: where brokers are probed (`R76`).
    pub internal_listener: String,
    /// The identity that a cluster formed by this node gets; a random one where there is none.
    pub cluster_id: Option<ClusterId>,
    /// What decisions depend on.
    pub settings: ControlSettings,
    /// How long things take.
    pub timeouts: Timeouts,
    /// Where random timeouts and identifiers come from: fresh entropy, or a fixed number in a simulation.
    pub seed: u64,
    /// What to do when this process cannot go on (`R67`): abort it.
    pub on_fatal: OnFatal,
}

/// Why a controller does not start.
#[derive(thiserror::Error, Debug)]
pub enum ControllerError {
    /// Its files cannot be used.
    #[error("{0}")]
    Store(String),
    /// Its listener cannot be bound.
    #[error("the CONTROLLER listener cannot be bound to {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The error.
        source: std::io::Error,
    },
    /// The system gives no thread.
    #[error("the controller's thread does not start: {0}")]
    Thread(std::io::Error),
}

/// How a controller is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControllerStatus {
    /// What it knows of the quorum.
    pub quorum: QuorumInfo,
    /// The cluster's identity; `NONE` before there is one.
    pub cluster_id: ClusterId,
    /// The offset after the last record that it has applied.
    pub next_offset: MetadataOffset,
}

/// Starts controllers.
#[derive(Debug)]
pub struct Controller;

/// A controller that runs. Dropping the last handle does not stop it; [`ControllerHandle::shutdown`] does.
#[derive(Clone, Debug)]
pub struct ControllerHandle {
    quorum: Arc<Quorum>,
    /// The event loop, once it runs.
    control: Arc<OnceLock<ControlHandle>>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<bool>,
}

impl Controller {
    /// Opens the files, binds the listener and starts a controller on its own thread. It forms or joins its quorum by
    /// itself.
    ///
    /// # Errors
    /// Where files, listener or thread cannot be had.
    pub async fn start(config: ControllerConfig) -> Result<ControllerHandle, ControllerError> {
        let (ready, started) = oneshot::channel();
        let run = move || {
            seed_thread(config.seed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(run(config, None, ready).boxed_local()),
                Err(error) => drop(ready.send(Err(ControllerError::Thread(error)))),
            }
        };
        thread::Builder::new().name("controller".to_owned()).spawn(run).map_err(ControllerError::Thread)?;
        begun(started).await
    }

    /// As [`start`](Self::start), in the runtime of the caller, without a thread of its own, and for the connections that
    /// `incoming` gives: the entry of a simulation, which has one thread and its own network ([`ControllerConfig::network`])
    /// and disk.
    ///
    /// # Errors
    /// Where the files cannot be had.
    pub async fn start_within(
        config: ControllerConfig,
        incoming: Incoming,
    ) -> Result<ControllerHandle, ControllerError> {
        let (ready, started) = oneshot::channel();
        seed_thread(config.seed);
        tokio::spawn(run(config, Some(incoming), ready).boxed());
        begun(started).await
    }
}

type Begun = Result<ControllerHandle, ControllerError>;

async fn begun(started: oneshot::Receiver<Begun>) -> Begun {
    let gone = std::io::Error::other("it ended at once");
    started.await.unwrap_or(Err(ControllerError::Thread(gone)))
}

impl ControllerHandle {
    /// Where its listener is bound.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> ControllerStatus {
        let image = self.quorum.image();
        ControllerStatus {
            quorum: self.quorum.describe(),
            cluster_id: image.cluster_id(),
            next_offset: image.next_offset(),
        }
    }

    /// Whether it is the active controller at this moment (`R68`).
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.quorum.contact.active().is_some()
    }

    /// A sign of life of a broker of this very process (`R76`), which counts as one that came over a connection. False where it
    /// has to come over one: this is not the active controller, or it is just deciding something.
    #[must_use]
    pub fn hear(&self, broker: BrokerId, epoch: BrokerEpoch) -> bool {
        let alive = ControlRequest::Alive { broker, epoch };
        self.control.get().is_some_and(|control| control.observe_here(&alive))
    }

    /// How many leaders it had elected while it was active, since it started, and how many of them may not have had all
    /// committed records.
    #[must_use]
    pub fn elections(&self) -> (u64, u64) {
        let elections = &self.quorum.elections;
        (elections.all.load(Ordering::Relaxed), elections.unclean.load(Ordering::Relaxed))
    }

    /// Brokers that are on their way out and not fenced yet: they need the quorum for it (`R77`).
    #[must_use]
    pub fn stopping_brokers(&self) -> usize {
        let stops = |broker: &&Arc<BrokerRegistration>| broker.in_controlled_shutdown && !broker.fenced;
        self.quorum.image().brokers().values().filter(stops).count()
    }

    /// Stops it; what it acknowledged is durable.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let mut stopped = self.stopped.clone();
        // An error says that the thread is gone, which is what is waited for.
        drop(stopped.wait_for(|stopped| *stopped).await);
    }
}

async fn run(config: ControllerConfig, incoming: Option<Incoming>, ready: oneshot::Sender<Begun>) {
    let (quorum, listener, address) = match open(&config, incoming).await {
        Ok(opened) => opened,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let (stop, stopping) = watch::channel(false);
    let (done, stopped) = watch::channel(false);
    let control = Arc::<OnceLock<ControlHandle>>::default();
    let handle =
        ControllerHandle { quorum: Arc::clone(&quorum), control: Arc::clone(&control), address, stop, stopped };
    if ready.send(Ok(handle)).is_ok() {
        serve(&config, Arc::clone(&quorum), &control, listener, stopping).await;
    }
    // What waits for space was acknowledged to nobody.
    quorum.waits.end();
    quorum.shutdown().await;
    done.send_replace(true);
}

async fn open(
    config: &ControllerConfig,
    incoming: Option<Incoming>,
) -> Result<(Arc<Quorum>, Listening, SocketAddr), ControllerError> {
    let bind = |source| ControllerError::Bind { address: config.bind, source };
    let (listener, address, pool, waits) = match incoming {
        // One thread does everything: nothing may wait in it.
        Some(incoming) => (Listening::Links(incoming), config.bind, DiskPool::inline(), Waits::never()),
        None => {
            let listener = TcpListener::bind(config.bind).await.map_err(bind)?;
            let address = listener.local_addr().map_err(bind)?;
            // One thread writes, one reads: nobody else's work comes between.
            let pool = DiskPool::new(2).map_err(ControllerError::Thread)?;
            (Listening::Tcp(listener), address, pool, Waits::default())
        }
    };
    let quorum = Quorum::open(QuorumConfig {
        me: QuorumNode { id: config.node_id, directory: config.directory },
        voters: config.voters.clone(),
        disk: Arc::clone(&config.disk),
        waits,
        dir: config.path.clone(),
        keep_image: config.keep_image,
        pool,
        network: config.network.clone(),
        timeouts: config.timeouts,
        rules: config.settings.rules,
    });
    let quorum = quorum.await.map_err(|error: OpenError| ControllerError::Store(error.to_string()))?;
    Ok((Arc::new(quorum), listener, address))
}

/// Runs everything until it is told to stop.
async fn serve(
    config: &ControllerConfig,
    quorum: Arc<Quorum>,
    reached: &OnceLock<ControlHandle>,
    listener: Listening,
    mut stopping: watch::Receiver<bool>,
) {
    let mut random = Random(config.seed);
    let supervision = Arc::new(Supervision::new(Arc::clone(&config.on_fatal)));
    let control = ControlConfig {
        network: config.network.clone(),
        internal_listener: config.internal_listener.clone(),
        probe: config.timeouts.probe,
        cluster_id: config.cluster_id,
        settings: config.settings.clone(),
    };
    let loop_random = Random(random.next());
    let (control_loop, handle) = ControlLoop::new(Arc::clone(&quorum), Arc::clone(&supervision), control, loop_random);
    reached.set(handle.clone()).expect("a controller serves once");
    let service = Arc::new(Service { quorum: Arc::clone(&quorum), control: handle });
    let routes = rpc::controller::routes(service, Arc::clone(&quorum));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(control_loop.run().boxed());
    tasks.spawn(raft::election::run(Arc::clone(&quorum), Random(random.next())).boxed());
    tasks.spawn(raft::formation::run(Arc::clone(&quorum)).boxed());
    tasks.spawn(raft::members::run(Arc::clone(&quorum)).boxed());
    tasks.spawn(registration::run(Arc::clone(&quorum), config.clone()).boxed());
    let watched = Arc::clone(&quorum);
    tasks.spawn(async move { watched.keep_image().await }.boxed());
    let (watched, fatal) = (Arc::clone(&quorum), Arc::clone(&supervision));
    tasks.spawn(async move {
        watched.watch_metrics().await;
        fatal.fatal("openraft has stopped");
    });
    let watched = Arc::clone(&quorum);
    let supervisor = Arc::clone(&supervision);
    tasks.spawn(async move { supervisor.run(&watched).await }.boxed());
    tasks.spawn(async move {
        let served = rpc::net::serve(listener, routes, std::future::pending()).await;
        tracing::error!(?served, "the CONTROLLER listener ended");
    });
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => {
                if ended.is_err() {
                    // A controller without one of its tasks would look alive and do nothing.
                    supervision.fatal("a task of the controller panicked");
                }
            }
            _ = stopping.wait_for(|stop| *stop) => break,
        }
    }
    // Nothing here holds what is not durable: the tasks may end anywhere.
    tasks.shutdown().await;
}
