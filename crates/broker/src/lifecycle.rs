//! Keeps this broker registered: registration, heartbeats, the metadata stream, suspicions, controlled shutdown (`R6` to
//! `R9`, `R32`, `R35`, `R76`, `R77`).

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use metadata::MetadataImage;
use metadata::control::{
    ControlRequest, ControlResponse, Heartbeat, HeartbeatAnswer, RecoveryReport, RegisterBroker, Suspect,
};
use model::{BrokerEpoch, BrokerId, ErrorCode, MetadataOffset, TopicPartition};
use rpc::controller::MetadataEvent;
use rpc::net::Keepalive;
use storage::DirHealth;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::context::Context;
use crate::loading::Replicas;

/// Between heartbeats until the broker is unfenced (`R7`).
const FENCED_INTERVAL: Duration = Duration::from_millis(100);
/// Between heartbeats of a broker that wants to stop.
const STOPPING_INTERVAL: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a sign of life may be under way before the next one is due all the same.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// The threads that serve requests are stuck when they get nowhere for so long, in which this process ran.
const STUCK_MS: u64 = 5_000;
/// How long a peer may take to be watched anew.
const WATCH_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an unreachable peer is not reported again.
const SUSPECT_PAUSE: Duration = Duration::from_millis(200);
/// R77: how long a stopping broker waits for an active controller, and in all.
const STOP_WITHOUT_CONTROLLER: Duration = Duration::from_secs(2);
const STOP_AT_MOST: Duration = Duration::from_secs(30);

/// Where this broker stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokerState {
    /// Registering, recovering, or not caught up yet.
    Starting,
    /// Serves.
    Running,
    /// The controller has fenced it: others lead.
    Fenced,
    /// Moves its leaderships away.
    Stopping,
    /// May end.
    Stopped,
}

/// A controller of the same process, if there is one: it hears of its own broker without a connection, ten wake-ups each (`R76`).
pub trait OwnController: std::fmt::Debug + Send + Sync {
    /// The broker lives. False where this is not the active controller, or it cannot listen now.
    fn hear(&self, broker: BrokerId, epoch: BrokerEpoch) -> bool;
}

/// What the lifecycle's tasks share.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: watch::Sender<BrokerState>,
    stop_wanted: AtomicBool,
    stop: Notify,
    may_stop: Notify,
}

impl Lifecycle {
    pub(crate) fn new() -> Arc<Lifecycle> {
        Arc::new(Lifecycle {
            state: watch::Sender::new(BrokerState::Starting),
            stop_wanted: AtomicBool::new(false),
            stop: Notify::new(),
            may_stop: Notify::new(),
        })
    }

    pub(crate) fn state(&self) -> watch::Receiver<BrokerState> {
        self.state.subscribe()
    }

    /// Has the leaderships moved away; returns when the broker may end, or when there is nobody to ask (`R77`).
    pub(crate) async fn shut_down(&self) {
        self.stop_wanted.store(true, Ordering::Release);
        self.state.send_replace(BrokerState::Stopping);
        self.stop.notify_one();
        if tokio::time::timeout(STOP_AT_MOST, self.may_stop.notified()).await.is_err() {
            tracing::warn!("the controller did not let this broker stop in time; stopping without");
        }
        self.state.send_replace(BrokerState::Stopped);
    }

    /// This broker cannot go on: the process is to end.
    fn give_up(&self) {
        self.may_stop.notify_one();
        self.state.send_replace(BrokerState::Stopped);
    }

    fn stops(&self) -> bool {
        self.stop_wanted.load(Ordering::Acquire)
    }

    fn note(&self, answer: &HeartbeatAnswer) {
        self.state.send_if_modified(|state| {
            let next = match (*state, answer.is_fenced) {
                (BrokerState::Stopping | BrokerState::Stopped, _) => *state,
                (_, false) if answer.is_caught_up => BrokerState::Running,
                (BrokerState::Running, true) => BrokerState::Fenced,
                (state, _) => state,
            };
            if next != *state {
                tracing::info!(from = ?*state, to = ?next, "broker state");
            }
            std::mem::replace(state, next) != next
        });
    }
}

/// Registers, then sends heartbeats until the broker stops.
pub(crate) async fn keep_registered(
    context: Arc<Context>,
    lifecycle: Arc<Lifecycle>,
    previous_epoch: BrokerEpoch,
    lossy: Vec<TopicPartition>,
) {
    let Some(mut epoch) = register(&context, &lifecycle, previous_epoch, &lossy).await else { return };
    let mut silent_since: Option<tokio::time::Instant> = None;
    let mut images = context.images();
    loop {
        let asked = tokio::time::Instant::now();
        // An image that comes while the heartbeat is under way is one that it did not tell of.
        images.borrow_and_update();
        let can_go_on = context.dirs.can_go_on();
        match heartbeat(&context, &lifecycle, epoch).await {
            Ok(answer) => {
                silent_since = None;
                lifecycle.note(&answer);
                if !can_go_on {
                    return end_without_disks(&lifecycle);
                }
                if answer.should_shut_down && lifecycle.stops() {
                    lifecycle.may_stop.notify_one();
                    return;
                }
                if report_recovery(&context, epoch, &answer.recovery_wanted).await {
                    // A heartbeat asks for so many at most: the next one has the rest, and nobody leads them meanwhile.
                    continue;
                }
            }
            Err(HeartbeatError::Stale) => {
                tracing::warn!(%epoch, "the controller knows this broker no longer; registering again");
                match register(&context, &lifecycle, BrokerEpoch::NONE, &lossy).await {
                    Some(registered) => epoch = registered,
                    None => return,
                }
                continue;
            }
            Err(HeartbeatError::NoAnswer) => {
                let since = *silent_since.get_or_insert(asked);
                if !can_go_on && since.elapsed() >= STOP_WITHOUT_CONTROLLER {
                    return end_without_disks(&lifecycle);
                }
                if lifecycle.stops() && since.elapsed() >= STOP_WITHOUT_CONTROLLER {
                    tracing::warn!("no active controller to hand over to; stopping without");
                    lifecycle.may_stop.notify_one();
                    return;
                }
            }
        }
        let state = *lifecycle.state.borrow();
        let pause = match state {
            _ if silent_since.is_some() => FENCED_INTERVAL,
            BrokerState::Starting | BrokerState::Fenced => FENCED_INTERVAL,
            BrokerState::Stopping | BrokerState::Stopped => STOPPING_INTERVAL,
            BrokerState::Running => Duration::from_millis(context.config.broker_heartbeat_interval_ms),
        };
        // Whichever comes first; the others are asked again next time.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = lifecycle.stop.notified() => {}
            () = context.heartbeat_wanted.notified() => {}
            _ = images.changed(), if state == BrokerState::Starting => {}
        }
    }
}

/// The controller knows, or there is nobody to tell: without the directories that it needs, the process can do nothing but
/// end, and be started again (`R30`).
fn end_without_disks(lifecycle: &Lifecycle) {
    tracing::error!("the log directories that this node needs are out of use: it stops");
    lifecycle.give_up();
}

/// None where the broker is to stop: what is not registered has nothing to hand over.
async fn register(
    context: &Arc<Context>,
    lifecycle: &Lifecycle,
    previous_epoch: BrokerEpoch,
    lossy: &[TopicPartition],
) -> Option<BrokerEpoch> {
    let config = &context.config;
    let mut warned = None;
    loop {
        if lifecycle.stops() {
            lifecycle.may_stop.notify_one();
            return None;
        }
        let request = RegisterBroker {
            broker: config.broker_id,
            cluster_id: context.known_cluster(),
            incarnation: config.incarnation,
            boot: config.boot,
            directories: context.dirs.iter().map(|dir| dir.id()).collect(),
            offline_directories: context.dirs.offline(),
            cordoned_directories: context.cordoned_directories(),
            unidentified_directories: !context.dirs.unopened().is_empty(),
            listeners: config.listeners.clone(),
            rack: config.rack.clone(),
            features: metadata::control::supported_features(),
            previous_epoch,
            lossy: lossy.iter().copied().chain(context.failed_replicas()).chain(context.found_lossy()).collect(),
        };
        let reason = match context.ask(ControlRequest::RegisterBroker(request), CALL_TIMEOUT).await {
            Ok(ControlResponse::RegisterBroker { epoch }) => {
                tracing::info!(%epoch, "registered");
                context.registered(epoch);
                return Some(epoch);
            }
            Ok(ControlResponse::Refused(error)) => error.to_string(),
            Ok(other) => format!("an answer to another question: {other:?}"),
            Err(error) => error.to_string(),
        };
        if warned.as_ref() != Some(&reason) {
            tracing::warn!(reason, "cannot register yet; trying again");
            warned = Some(reason);
        }
        let _ = tokio::time::timeout(context.jitter(FENCED_INTERVAL), lifecycle.stop.notified()).await;
    }
}

enum HeartbeatError {
    /// The registration is not in force.
    Stale,
    NoAnswer,
}

async fn heartbeat(
    context: &Context,
    lifecycle: &Lifecycle,
    epoch: BrokerEpoch,
) -> Result<HeartbeatAnswer, HeartbeatError> {
    // First how far the metadata is applied: what was found lossy on the way there is told with it (R78).
    let next_offset = context.image().next_offset();
    let found_lossy = context.found_lossy();
    let failed = context.failed_replicas();
    let request = Heartbeat {
        broker: context.config.broker_id,
        epoch,
        next_offset,
        want_fence: context.stuck.load(Ordering::Relaxed),
        want_shutdown: lifecycle.stops(),
        offline_directories: context.dirs.offline(),
        cordoned_directories: context.cordoned_directories(),
        lossy: failed.iter().chain(&found_lossy).copied().collect(),
        full_directories: context.directories_that(DirHealth::is_full),
        exhausted_directories: context.directories_that(DirHealth::is_exhausted),
    };
    match context.ask(ControlRequest::Heartbeat(request), CALL_TIMEOUT).await {
        Ok(ControlResponse::Heartbeat(answer)) => {
            context.lossy_told(&found_lossy);
            context.failures_told(&failed);
            Ok(answer)
        }
        Ok(ControlResponse::Refused(error)) if error.code == ErrorCode::StaleBrokerEpoch => Err(HeartbeatError::Stale),
        Ok(other) => {
            tracing::warn!(?other, "the controller refused a heartbeat");
            Err(HeartbeatError::NoAnswer)
        }
        Err(error) => {
            tracing::debug!(%error, "no answer to a heartbeat");
            Err(HeartbeatError::NoAnswer)
        }
    }
}

/// Tells the controller that this process lives, as often as its peers ask for a sign of life (`R76`). One is under way at a
/// time: who hears no answers tells nothing, and is not taken for alive by what it sends.
pub(crate) async fn keep_alive(context: Arc<Context>) {
    let interval = Duration::from_millis(context.config.peer_keepalive_ms);
    let mut standstill = Standstill::default();
    loop {
        let stuck = standstill.look(context.turns.load(Ordering::Relaxed), context.config.peer_keepalive_ms);
        if context.stuck.swap(stuck, Ordering::Relaxed) != stuck {
            tracing::warn!(stuck, "whether nothing was served for {STUCK_MS} ms, so that another broker is to lead");
            context.heartbeat_wanted.notify_one();
        }
        context.turn_wanted.notify_one();
        if let Some((epoch, _)) = context.registration().filter(|(epoch, _)| !context.is_heard_here(*epoch)) {
            let alive = ControlRequest::Alive { broker: context.config.broker_id, epoch };
            if let Err(error) = context.ask(alive, ALIVE_TIMEOUT).await {
                tracing::debug!(%error, "a sign of life was not heard");
            }
        }
        tokio::time::sleep(interval).await;
    }
}

/// Counts the turns of the threads that serve requests, one for each look at them.
pub(crate) async fn count_turns(context: Arc<Context>) {
    loop {
        context.turn_wanted.notified().await;
        context.turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether the threads that serve requests stand still, say on a disk that hangs, while this process runs: then another
/// broker is to lead. Looks are counted, not time: one that was paused as a whole has no thread that stands still.
#[derive(Default)]
struct Standstill {
    turns: u64,
    looks: u64,
}

impl Standstill {
    /// Whether they are stuck, where a look is taken every `every_ms`.
    fn look(&mut self, turns: u64, every_ms: u64) -> bool {
        self.looks = if turns == self.turns { self.looks + 1 } else { 0 };
        self.turns = turns;
        self.looks * every_ms >= STUCK_MS
    }
}

/// R35: says what the replicas here hold of partitions that nobody leads. True where the controller has taken some of it.
async fn report_recovery(context: &Arc<Context>, epoch: BrokerEpoch, wanted: &[TopicPartition]) -> bool {
    let answers: Vec<_> =
        wanted.iter().filter_map(|id| Some((*id, context.partition(*id)?.recovery_answer()?))).collect();
    if answers.is_empty() {
        return false;
    }
    let report = RecoveryReport { broker: context.config.broker_id, epoch, answers };
    match context.ask(ControlRequest::RecoveryReport(report), CALL_TIMEOUT).await {
        Ok(answer) => matches!(answer, ControlResponse::Done),
        Err(error) => {
            tracing::info!(%error, "no answer to a recovery report; the controller will ask again");
            false
        }
    }
}

/// Follows the metadata: applies each batch to the replicas, then publishes the image. Replicas hear of nothing before this
/// process is in the metadata: what was decided before is about an earlier one, and no replica takes the role that it had
/// then (`R7`). Returns where this node cannot follow that quorum (`R69`).
pub(crate) async fn follow_metadata(context: Arc<Context>, lifecycle: Arc<Lifecycle>, mut replicas: Replicas) {
    // What the replicas have been told.
    let mut told = context.image();
    let mut registered = false;
    loop {
        let next = context.image().next_offset();
        let mut stream = pin!(context.controller.follow(context.known_cluster(), next));
        loop {
            // Dropping either is safe: an event that has not come is still to come, and a wish is looked up.
            let event = tokio::select! {
                event = stream.next() => event,
                () = context.reopening_wanted.notified(), if registered => {
                    replicas.reopen_damaged(&told).await;
                    continue;
                }
            };
            let Some(event) = event else { break };
            let before = context.image();
            let after = match event {
                MetadataEvent::Snapshot { next_offset, records } => {
                    context.metadata_snapshots.add(1);
                    MetadataImage::from_snapshot(next_offset, &records)
                }
                MetadataEvent::Batch { base, records } if base == before.next_offset() => {
                    let mut image = (*before).clone();
                    for record in &records {
                        image.apply(record);
                    }
                    image
                }
                MetadataEvent::Batch { base, .. } => {
                    tracing::warn!(%base, expected = %before.next_offset(), "the metadata stream has a gap; following anew");
                    break;
                }
                MetadataEvent::Refused(reason) => {
                    tracing::error!(reason, "this node cannot follow that quorum; look at its data directory");
                    return lifecycle.give_up();
                }
            };
            if is_of_before(&before, &after) {
                tracing::error!(known_to = %before.next_offset(), restored_at = %after.restored_at(), "the metadata was restored while this broker ran, which knows what it lost: it stops. Start it again");
                return lifecycle.give_up();
            }
            let after = Arc::new(after);
            if let Err(error) = context.join_cluster(after.cluster_id()).await {
                tracing::error!(%error, "this directory cannot follow that cluster");
                return lifecycle.give_up();
            }
            let first = !registered && is_registered(&context, &after);
            registered |= first;
            if registered {
                replicas.apply(&told, &after).await;
                replicas.reopen_damaged(&after).await;
                told = Arc::clone(&after);
            }
            context.publish(after);
            if first {
                replicas.drop_strays().await;
            }
        }
    }
}

/// Whether `before` may be of a time that `after` does not know, as it was restored since. Nobody goes on from one to the other:
/// roles, coordinators and producer ids that this process holds are of another history (`R80`).
fn is_of_before(before: &MetadataImage, after: &MetadataImage) -> bool {
    before.next_offset() > MetadataOffset(0) && before.next_offset() < after.restored_at()
}

/// Whether the metadata knows this process.
fn is_registered(context: &Context, image: &MetadataImage) -> bool {
    let incarnation = context.config.incarnation;
    image.broker(context.config.broker_id).is_some_and(|broker| broker.incarnation == incarnation)
}

/// Watches the other brokers, and tells the controller who seems to be gone (`R76`).
pub(crate) async fn watch_peers(context: Arc<Context>) {
    // The tasks end with this one.
    let mut tasks = JoinSet::new();
    let mut watches: BTreeMap<BrokerId, (BrokerEpoch, AbortHandle)> = BTreeMap::new();
    let mut images = context.images();
    loop {
        let image = Arc::clone(&images.borrow_and_update());
        watches.retain(|id, (epoch, task)| {
            let keep = image.broker(*id).is_some_and(|broker| broker.epoch == *epoch && !broker.fenced);
            if !keep {
                task.abort();
            }
            keep
        });
        while tasks.try_join_next().is_some() {}
        for broker in image.alive_brokers().filter(|broker| broker.id != context.config.broker_id) {
            watches.entry(broker.id).or_insert_with(|| {
                (broker.epoch, tasks.spawn(watch_peer(Arc::clone(&context), broker.id, broker.epoch)))
            });
        }
        tokio::select! {
            changed = images.changed() => if changed.is_err() { return },
            () = context.suspected.notified() => report_suspects(&context, &image).await,
        }
    }
}

/// Until the metadata has another registration of `broker`.
async fn watch_peer(context: Arc<Context>, broker: BrokerId, epoch: BrokerEpoch) {
    let keepalive = Keepalive {
        interval: Duration::from_millis(context.config.peer_keepalive_ms),
        silence: Duration::from_millis(context.config.peer_silence_ms),
    };
    loop {
        if let Some((address, _)) = context.internal_address(broker)
            && let Ok((probe, mut watch)) =
                rpc::broker::watch(&context.network, &address, keepalive, WATCH_TIMEOUT).await
        {
            if probe.broker_id == broker && probe.broker_epoch > epoch {
                return;
            }
            // R5: another process at that address is not the broker.
            if probe.broker_id == broker && probe.broker_epoch == epoch {
                watch.ended().await;
            }
        }
        context.suspect(broker);
        tokio::time::sleep(SUSPECT_PAUSE).await;
    }
}

async fn report_suspects(context: &Arc<Context>, image: &MetadataImage) {
    for broker in context.take_suspects() {
        let Some(registration) = image.broker(broker).filter(|registration| !registration.fenced) else { continue };
        let suspect = Suspect { broker, epoch: registration.epoch, reporter: context.config.broker_id };
        let context = Arc::clone(context);
        tokio::spawn(async move {
            // The controller probes for itself; a lost report is repeated by whoever still cannot reach the broker.
            if let Err(error) = context.ask(ControlRequest::Suspect(suspect), CALL_TIMEOUT).await {
                tracing::debug!(%broker, %error, "a suspicion was not heard");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_goes_on_from_metadata_that_was_restored_since() {
        // R80
        let at = |next| MetadataImage::from_snapshot(MetadataOffset(next), &[]);
        let (restored, _) = metadata::restore::go_on(&at(20), 0).unwrap();
        assert!(is_of_before(&at(15), &restored), "it may have led since");
        assert!(is_of_before(&at(30), &restored), "it knows what was lost");
        let mut later = restored.clone();
        later.apply(&metadata::MetadataRecord::ProducerIds { next: model::ProducerId(1) });
        assert!(!is_of_before(&restored, &later));
        assert!(!is_of_before(&MetadataImage::default(), &restored), "it has just begun");
        assert!(!is_of_before(&at(20), &at(30)), "nothing was restored");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_nobody_lets_stop_stops_after_thirty_seconds() {
        // R77
        let (lifecycle, began) = (Lifecycle::new(), tokio::time::Instant::now());
        let state = lifecycle.state();
        let early = tokio::time::timeout(Duration::from_millis(29_999), lifecycle.shut_down()).await;
        assert!(early.is_err());
        assert_eq!(*state.borrow(), BrokerState::Stopping);
        let lifecycle = Lifecycle::new();
        lifecycle.shut_down().await;
        assert_eq!(began.elapsed(), Duration::from_millis(59_999));
        assert_eq!(*lifecycle.state().borrow(), BrokerState::Stopped);
    }

    #[test]
    fn who_makes_no_turn_for_many_looks_is_stuck_until_the_next_turn() {
        let mut standstill = Standstill::default();
        let every_ms = 200;
        assert!(!standstill.look(1, every_ms));
        let stuck = (1..=STUCK_MS / every_ms).map(|_| standstill.look(1, every_ms)).collect::<Vec<_>>();
        assert_eq!(stuck.iter().position(|stuck| *stuck), Some(stuck.len() - 1));
        assert!(!standstill.look(2, every_ms));
    }
}
