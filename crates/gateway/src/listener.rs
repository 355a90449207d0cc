//! The listeners of a broker: accepting connections within the limits, sweeping over them, stopping.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker::api::BrokerApi;
use broker::budget::MemoryBudget;
use futures_util::FutureExt;
use metadata::configs::StaticConfig;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::call::{ConnectionInfo, Principal, Shared};
use crate::config::{ConnectionLimits, Descriptors, Limits};
use crate::connection::Connection;
use crate::metrics::GatewayMetrics;
use crate::sessions::FetchSessions;
use crate::stream::{Port, Stream};
use crate::watch::{Order, Watch};

/// How often all connections are looked at, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A connection that was quiet for so long gives its buffers back.
const TRIM_AFTER_MS: u64 = 2_000;
/// How often while somebody waits for memory, and the least time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a connection may hold memory that others wait for without progress.
const STALL_MS_MAX: u64 = 400;
/// The part of the memory budget that is taken back at once from connections that hold it without progress.
const TAKEN_BACK: u64 = 4;
/// How long to wait after an accept failed, mostly for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A port that is open.
#[derive(Debug)]
pub struct BoundListener {
    /// The listener's name; brokers register under it what clients of it are told.
    pub name: String,
    /// The socket.
    pub socket: Port,
}

/// What the gateway is started with.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Where to listen.
    pub listeners: Vec<BoundListener>,
    /// The limits.
    pub limits: Limits,
    /// The broker's own file under Kafka's names, shown by DescribeConfigs.
    pub file: Arc<StaticConfig>,
    /// Makes the ids of fetch sessions differ between brokers and runs: any number that is not the same twice.
    pub session_seed: u64,
    /// The broker's memory budget.
    pub budget: Arc<MemoryBudget>,
}

/// The Kafka listeners of a broker.
#[derive(Debug)]
pub struct Gateway;

impl Gateway {
    /// Serves the listeners from `ready` until [`GatewayHandle::stop`]; before, clients wait in the sockets' queues. A
    /// broker that does not know the metadata yet would tell them that their topics do not exist, and they would believe
    /// it. To be called on a tokio runtime.
    pub fn start<B: BrokerApi>(
        config: GatewayConfig,
        broker: Arc<B>,
        ready: impl Future<Output = ()> + Send + 'static,
    ) -> GatewayHandle {
        let GatewayConfig { listeners, limits, file, session_seed, budget } = config;
        let metrics = Arc::new(GatewayMetrics::default());
        let connections = Arc::new(Connections {
            metrics: Arc::clone(&metrics),
            open: Mutex::new(Open::new(connection_limits(&*broker, &limits))),
            descriptors: limits.descriptors,
            none_left: Notify::new(),
            room: Notify::new(),
        });
        let idle_ms_max = limits.connection_idle_ms_max;
        let shared = Arc::new(Shared {
            broker,
            sessions: FetchSessions::new(limits.fetch_sessions_max, session_seed),
            limits,
            file,
            budget,
            metrics: Arc::clone(&metrics),
            coarse_ms: AtomicU64::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let addresses = listeners.iter().filter_map(|each| Some((each.name.clone(), each.socket.address()?)));
        let addresses = addresses.collect();
        let ready = ready.shared();
        for listener in listeners {
            let acceptor = Acceptor {
                name: listener.name.into(),
                socket: listener.socket,
                shared: Arc::clone(&shared),
                connections: Arc::clone(&connections),
            };
            tokio::spawn(acceptor.run(ready.clone(), stopped.clone()).boxed());
        }
        tokio::spawn(sweep(shared, Arc::clone(&connections), idle_ms_max, stopped).boxed());
        GatewayHandle { metrics, addresses, connections, stop }
    }
}

/// The running gateway.
#[derive(Debug)]
pub struct GatewayHandle {
    metrics: Arc<GatewayMetrics>,
    addresses: Vec<(String, SocketAddr)>,
    connections: Arc<Connections>,
    stop: watch::Sender<bool>,
}

impl GatewayHandle {
    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> Arc<GatewayMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The listeners by name, with the addresses that they are bound to.
    #[must_use]
    pub fn addresses(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }

    /// Stops accepting, lets Produces that were appended be answered, and closes all connections: those that are not
    /// done after `within` are cut.
    pub async fn stop(&self, within: Duration) {
        self.stop.send_replace(true);
        self.connections.order_all(Order::Drain);
        if tokio::time::timeout(within, self.connections.wait_until_none()).await.is_err() {
            self.connections.abort_all();
            self.connections.wait_until_none().await;
        }
    }
}

/// As they are now: the metadata's, else the file's.
fn connection_limits<B: BrokerApi>(broker: &B, limits: &Limits) -> ConnectionLimits {
    ConnectionLimits::resolve(&broker.image(), broker.identity().broker_id, limits)
}

/// The connections that are open.
#[derive(Debug)]
struct Connections {
    metrics: Arc<GatewayMetrics>,
    open: Mutex<Open>,
    descriptors: Descriptors,
    none_left: Notify,
    /// A connection ended, or there may be more of them.
    room: Notify,
}

#[derive(Debug)]
struct Open {
    limits: ConnectionLimits,
    /// Connections, and places that were taken for one that is to be accepted.
    taken: usize,
    next_id: u64,
    stopping: bool,
    by_id: BTreeMap<u64, Entry>,
    per_ip: BTreeMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    ip: IpAddr,
    watch: Arc<Watch>,
    abort: Option<AbortHandle>,
}

impl Open {
    fn new(limits: ConnectionLimits) -> Open {
        Open { limits, taken: 0, next_id: 0, stopping: false, by_id: BTreeMap::new(), per_ip: BTreeMap::new() }
    }
}

/// Why a connection that was accepted is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum Refused {
    #[error("the broker stops")]
    Stopping,
    #[error("max.connections.per.ip is reached")]
    PerIp,
    #[error(
        "the process may have {} files open (RLIMIT_NOFILE), which leaves {} to connections: raise that limit",
        .0.limit, .0.connections
    )]
    NoDescriptor(Descriptors),
}

/// One of `max.connections`, given back when dropped.
#[derive(Debug)]
struct Slot {
    connections: Arc<Connections>,
}

/// A place among the open connections, given back when dropped.
#[derive(Debug)]
struct Place {
    connections: Arc<Connections>,
    id: u64,
    watch: Arc<Watch>,
    _slot: Slot,
}

impl Connections {
    fn with_open<T>(&self, change: impl FnOnce(&mut Open) -> T) -> T {
        change(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is room for one more connection, and takes it.
    async fn take_slot(self: &Arc<Self>) -> Slot {
        loop {
            // Registered before the look, so that room in between is not missed.
            let room = self.room.notified();
            let taken = self.with_open(|open| {
                let fits = open.taken < open.limits.all;
                open.taken += usize::from(fits);
                fits
            });
            if taken {
                return Slot { connections: Arc::clone(self) };
            }
            room.await;
        }
    }

    /// Other limits are in force from now on. Connections that are open stay.
    fn set_limits(&self, limits: ConnectionLimits) {
        let raised = self.with_open(|open| {
            let before = std::mem::replace(&mut open.limits, limits);
            limits.all > before.all
        });
        if raised {
            self.room.notify_waiters();
        }
    }

    /// A place for a connection from `ip`, or why there is none.
    fn enter(self: &Arc<Self>, ip: IpAddr, slot: Slot) -> Result<Place, Refused> {
        let watch = Arc::new(Watch::default());
        let id = self.with_open(|open| {
            if open.stopping {
                return Err(Refused::Stopping);
            }
            if open.by_id.len() >= self.descriptors.connections {
                return Err(Refused::NoDescriptor(self.descriptors));
            }
            if open.per_ip.get(&ip).copied().unwrap_or(0) >= open.limits.per_ip {
                return Err(Refused::PerIp);
            }
            *open.per_ip.entry(ip).or_default() += 1;
            open.next_id += 1;
            open.by_id.insert(open.next_id, Entry { ip, watch: Arc::clone(&watch), abort: None });
            Ok(open.next_id)
        })?;
        self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Place { connections: Arc::clone(self), id, watch, _slot: slot })
    }

    fn set_abort(&self, id: u64, abort: AbortHandle) {
        self.with_open(|open| {
            if let Some(entry) = open.by_id.get_mut(&id) {
                entry.abort = Some(abort);
            }
        });
    }

    fn leave(&self, id: u64) {
        let left = self.with_open(|open| {
            if let Some(Entry { ip, .. }) = open.by_id.remove(&id)
                && let Some(count) = open.per_ip.get_mut(&ip)
            {
                *count -= 1;
                if *count == 0 {
                    open.per_ip.remove(&ip);
                }
            }
            open.by_id.len()
        });
        self.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
            self.none_left.notify_waiters();
        }
    }

    /// Asks something of all connections, for good if it is to drain: nobody enters any more.
    fn order_all(&self, order: Order) {
        self.with_open(|open| {
            open.stopping |= order == Order::Drain;
            open.by_id.values().for_each(|entry| entry.watch.order(order));
        });
    }

    fn abort_all(&self) {
        self.with_open(|open| {
            open.by_id.values().filter_map(|entry| entry.abort.as_ref()).for_each(AbortHandle::abort)
        });
    }

    async fn wait_until_none(&self) {
        loop {
            // Registered before the look, so that the last one to leave in between is not missed.
            let none_left = self.none_left.notified();
            if self.with_open(|open| open.by_id.is_empty()) {
                return;
            }
            none_left.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.with_open(|open| open.taken -= 1);
        self.connections.room.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.leave(self.id);
    }
}

struct Acceptor<B> {
    name: Arc<str>,
    socket: Port,
    shared: Arc<Shared<B>>,
    connections: Arc<Connections>,
}

impl<B: BrokerApi> Acceptor<B> {
    async fn run(self, ready: impl Future<Output = ()>, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            () = ready => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        loop {
            // Both branches may be dropped at any time: a slot that was not given and a connection that was not
            // accepted are still there for the next.
            tokio::select! {
                () = self.accept() => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    async fn accept(&self) {
        // Over `max.connections` nothing is accepted: clients wait in the socket's queue.
        let slot = self.connections.take_slot().await;
        match self.socket.accept().await {
            Ok((stream, peer)) => self.serve(stream, peer, slot),
            Err(error) => {
                tracing::warn!(listener = %self.name, %error, "cannot accept a connection: trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }

    fn serve(&self, stream: Stream, peer: SocketAddr, slot: Slot) {
        self.shared.metrics.connections_accepted.fetch_add(1, Ordering::Relaxed);
        let place = match self.connections.enter(peer.ip(), slot) {
            Ok(place) => place,
            Err(why) => {
                self.shared.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%peer, listener = %self.name, "closing the connection of {peer}: {why}");
                return;
            }
        };
        stream.set_up();
        let info = ConnectionInfo { listener: Arc::clone(&self.name), peer, principal: Principal::Anonymous };
        tracing::debug!(%peer, listener = %self.name, principal = %info.principal, "connection accepted");
        place.watch.touch(self.shared.coarse_ms.load(Ordering::Relaxed));
        let connection = Connection::new(Arc::clone(&self.shared), Arc::new(info), Arc::clone(&place.watch), stream);
        let id = place.id;
        // Boxed, as all large tasks: tokio makes code for a task four times over (each scheduler, kept inline or not).
        let run = async move {
            connection.run().await;
            drop(place);
        };
        self.connections.set_abort(id, tokio::spawn(run.boxed()).abort_handle());
    }
}

/// Looks at all connections now and then: closes the idle ones, takes buffers back, and, while somebody waits for memory,
/// closes those that hold most of it without progress. What an operator changed of the limits is in force from the next look
/// on.
async fn sweep<B: BrokerApi>(
    shared: Arc<Shared<B>>,
    connections: Arc<Connections>,
    idle_ms_max: Option<u64>,
    mut stopped: watch::Receiver<bool>,
) {
    let every = idle_ms_max.map_or(SWEEP_EVERY, |idle| Duration::from_millis((idle / 4).max(1)).min(SWEEP_EVERY));
    let start = Instant::now();
    let taken_back = (shared.budget.capacity() / TAKEN_BACK).max(1);
    loop {
        let now_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.coarse_ms.store(now_ms, Ordering::Relaxed);
        connections.set_limits(connection_limits(&*shared.broker, &shared.limits));
        let contended = shared.budget.is_contended();
        let orders = connections.with_open(|open| orders(open, now_ms, idle_ms_max, contended.then_some(taken_back)));
        for (watch, order) in orders {
            if order == Order::CloseIdle {
                shared.metrics.connections_idle_closed.fetch_add(1, Ordering::Relaxed);
            }
            watch.order(order);
        }
        let next = async {
            tokio::time::sleep(LOOK_EVERY.min(every)).await;
            if !contended {
                tokio::select! {
                    () = tokio::time::sleep(every.saturating_sub(LOOK_EVERY)) => {}
                    () = shared.budget.contention() => {}
                }
            }
        };
        // Nothing is lost with either: the budget is asked at each look.
        tokio::select! {
            () = next => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// What is to be asked of whom. `take_back`: so many bytes, because others wait for memory.
fn orders(open: &Open, now_ms: u64, idle_ms_max: Option<u64>, take_back: Option<u64>) -> Vec<(Arc<Watch>, Order)> {
    let mut orders = Vec::new();
    let mut stalled = Vec::new();
    for Entry { watch, .. } in open.by_id.values() {
        let stalled_ms = watch.stalled_ms(now_ms);
        if take_back.is_some() && stalled_ms >= STALL_MS_MAX && watch.held() > 0 {
            stalled.push((watch.held(), watch));
        } else if let Some(order) = due(watch, now_ms, idle_ms_max) {
            orders.push((Arc::clone(watch), order));
        }
    }
    // Those that hold most, and no more of them than it takes.
    stalled.sort_unstable_by_key(|(held, _)| Reverse(*held));
    let mut left = take_back.unwrap_or(0);
    for (held, watch) in stalled {
        if left == 0 {
            break;
        }
        left = left.saturating_sub(held);
        orders.push((Arc::clone(watch), Order::CloseStalled));
    }
    orders
}

/// What is to be asked of a connection that nobody waits for.
fn due(watch: &Watch, now_ms: u64, idle_ms_max: Option<u64>) -> Option<Order> {
    let quiet_ms = now_ms.saturating_sub(watch.active_ms());
    let standing = watch.standing();
    if idle_ms_max.is_some_and(|max| quiet_ms > max) && (!standing.busy || standing.amid_transfer) {
        Some(Order::CloseIdle)
    } else if standing.untrimmed && quiet_ms > TRIM_AFTER_MS {
        Some(Order::Trim)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{PROGRESS_MIN, Standing};

    fn quiet(standing: Standing) -> Watch {
        let watch = Watch::default();
        watch.touch(1_000);
        watch.publish(standing);
        watch
    }

    #[test]
    fn an_idle_connection_is_trimmed_then_closed() {
        let watch = quiet(Standing { untrimmed: true, ..Standing::default() });
        assert_eq!(due(&watch, 2_000, Some(600_000)), None);
        assert_eq!(due(&watch, 4_000, Some(600_000)), Some(Order::Trim));
        assert_eq!(due(&watch, 602_000, Some(600_000)), Some(Order::CloseIdle));
        assert_eq!(due(&watch, 602_000, None), Some(Order::Trim));
    }

    #[test]
    fn a_connection_that_waits_for_an_answer_is_not_idle_unless_it_does_not_take_it() {
        let waiting = quiet(Standing { busy: true, ..Standing::default() });
        assert_eq!(due(&waiting, 602_000, Some(600_000)), None);
        let clogged = quiet(Standing { busy: true, amid_transfer: true, ..Standing::default() });
        assert_eq!(due(&clogged, 602_000, Some(600_000)), Some(Order::CloseIdle));
    }

    #[test]
    fn connections_that_hold_most_without_progress_are_closed_when_others_wait_for_memory() {
        let amid = Standing { amid_transfer: true, ..Standing::default() };
        let mut open = Open::new(ConnectionLimits { all: 10, per_ip: 10 });
        let holds = [(amid, 10), (amid, 1_000), (Standing::default(), 5_000), (amid, 600), (amid, 0), (amid, 500)];
        for (id, (standing, held)) in (0..).zip(holds) {
            let watch = Arc::new(quiet(standing));
            watch.publish_memory(7, held);
            open.by_id.insert(id, Entry { ip: IpAddr::from([127, 0, 0, 1]), watch, abort: None });
        }
        let asked = |now_ms, take_back| {
            let orders = orders(&open, now_ms, None, take_back).into_iter();
            orders.map(|(watch, order)| (watch.held(), order)).collect::<Vec<_>>()
        };
        assert_eq!(asked(2_000, Some(1_500)), [], "it is not known since when they stand so");
        assert_eq!(asked(2_400, None), [], "nobody waits");
        let largest = [(1_000, Order::CloseStalled), (600, Order::CloseStalled)];
        assert_eq!(asked(2_400, Some(1_500)), largest);
        open.by_id[&1].watch.publish_memory(7 + PROGRESS_MIN, 1_000);
        assert_eq!(asked(2_500, Some(1_000)), [(600, Order::CloseStalled), (500, Order::CloseStalled)]);
    }
}
