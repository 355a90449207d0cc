//! The event loop of the active controller (`R65` to `R71`).
//!
//! ```text
//!             active (R68)                     records applied, all answered
//!  standby ───────────────► idle ──── decide ───► one proposal in flight ───┐
//!     ▲                      ▲ │                    │ superseded: start over │
//!     └── tenure over ───────┼─┘                    │ from the image applied │
//!                            └──────────────────────┴────────────────────────┘
//! ```
//!
//! Invariants: a decision has effect only once its records are committed and applied (`R2`); one proposal in flight; what
//! queues up meanwhile is decided together (`R67`); an answer leaves only while
//! the tenure is active at that moment (`R68`), and one that must be current and recorded nothing only after a quorum has
//! confirmed the leadership since (`R71`); what the core knows softly lives as long as the tenure (`R71`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metadata::control::{ControlEvent, Suspicion};
use metadata::wire::ENTRY_MAX;
use metadata::{ClusterControl, ControlRequest, ControlResponse, Decision, MetadataRecord};
use model::{BrokerId, ClusterId, Incarnation, MetadataOffset, Time, Uuid};
use rpc::broker::Probed;
use rpc::controller::{Answered, Reply, Tenure};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::raft::runtime::Random;
use crate::raft::{Elections, Proposed, Quorum};
use crate::supervision::Supervision;

/// Requests that wait at most; who comes then waits at the door until its timeout.
const QUEUE: usize = 1024;
/// Requests decided together at most.
const TOGETHER: usize = 256;
/// How often the loop looks at suspicions that stand, and at its tenure while it waits for an answer.
const LOOK: Duration = Duration::from_millis(50);
/// How often it looks when nothing is to be looked at: all else wakes it.
const LOOK_SELDOM: Duration = Duration::from_secs(1);
/// Of more leaders that one batch recovered the log says how many.
const TOLD_ONE_BY_ONE: usize = 20;
/// How long a quorum may take to confirm the leadership (`R71`).
pub(crate) const CONFIRMATION: Duration = Duration::from_millis(500);
/// In such steps the time is counted that a suspect has to answer (`R76`).
const STEP: Duration = Duration::from_millis(20);
/// No probe takes longer by the clock, however seldom this thread runs.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Monotonic time as the core counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { origin: Instant::now() }
    }

    fn now(self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(self, time: Time) -> Instant {
        self.origin + Duration::from_millis(time.0)
    }
}

#[derive(Debug)]
enum Input {
    Call { request: Box<ControlRequest>, reply: oneshot::Sender<Reply<Answered>> },
    Probed { suspicion: Suspicion, gone: bool },
}

/// The core, and the tenure that it decides for.
#[derive(Debug)]
struct Active {
    tenure: Option<Tenure>,
    control: ClusterControl,
}

/// Asks the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ControlHandle {
    inputs: mpsc::Sender<Input>,
    active: Arc<Mutex<Active>>,
    quorum: Arc<Quorum>,
    clock: Clock,
}

/// What one that is not answered may count on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// Nothing was decided for it, nor will be.
    Undecided,
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ControlLoop {
    inputs: mpsc::Receiver<Input>,
    handle: ControlHandle,
    supervision: Arc<Supervision>,
    network: rpc::net::Network,
    internal_listener: String,
    /// How long a probe waits.
    probe: Duration,
    cluster_id: Option<ClusterId>,
    random: Random,
    probing: BTreeSet<(BrokerId, model::BrokerEpoch)>,
}

/// A decided batch with those who wait for it.
#[derive(Default)]
struct Pending {
    records: Vec<MetadataRecord>,
    /// Where the records of each decision end.
    ends: Vec<usize>,
    parked: Vec<Parked>,
    events: Vec<ControlEvent>,
}

/// Who waits for an answer.
struct Parked {
    caller: Caller,
    response: ControlResponse,
}

struct Caller {
    reply: oneshot::Sender<Reply<Answered>>,
    /// The answer must be current, whether it records anything or not (`R71`).
    wants_current: bool,
}

/// What the loop is configured with.
#[derive(Clone, Debug)]
pub(crate) struct ControlConfig {
    /// Over which brokers are probed.
    pub(crate) network: rpc::net::Network,
    /// The name of the listener at which brokers are probed.
    pub(crate) internal_listener: String,
    /// How long each of two probes may take.
    pub(crate) probe: Duration,
    /// The identity that a new cluster gets; a random one where there is none.
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) settings: metadata::control::ControlSettings,
}

impl ControlHandle {
    /// Asks, for at most `timeout`.
    pub(crate) async fn call(&self, request: ControlRequest, timeout: Duration) -> Reply<Answered> {
        if !self.observe(&request) {
            return self.not_controller(Outcome::Undecided);
        }
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.inputs.send(Input::Call { request: Box::new(request), reply }).await.ok()?;
            answer.await.ok()
        };
        // A request that is given up may still be decided: to the caller, that outcome is unknown (R67).
        let answer = tokio::time::timeout(timeout, asked).await.ok().flatten();
        answer.unwrap_or_else(|| self.not_controller(Outcome::Unknown))
    }

    /// Notes what the arrival of a request tells (`R71`); false where this is not the active controller.
    fn observe(&self, request: &ControlRequest) -> bool {
        let Some(tenure) = self.quorum.contact.active() else { return false };
        let mut active = self.lock();
        if active.tenure == Some(tenure) {
            active.control.observe(request, self.clock.now());
        }
        true
    }

    /// As [`observe`](Self::observe), of a request that nothing is to be decided for, on any thread: false also where that would
    /// have to wait for a decision.
    pub(crate) fn observe_here(&self, request: &ControlRequest) -> bool {
        let Some(tenure) = self.quorum.contact.active() else { return false };
        let Ok(mut active) = self.active.try_lock() else { return false };
        let is_served = active.tenure == Some(tenure);
        if is_served {
            active.control.observe(request, self.clock.now());
        }
        is_served
    }

    fn not_controller<T>(&self, outcome: Outcome) -> Reply<T> {
        let leader = self.quorum.leader().filter(|(id, _)| id.0 != self.quorum.me.id);
        Reply::NotController { leader, undecided: outcome == Outcome::Undecided }
    }

    /// Answers what was decided on the image at `next_offset`, if the tenure is active at this moment (`R68`).
    fn answer(&self, tenure: Tenure, next_offset: MetadataOffset, parked: Vec<Parked>, otherwise: Outcome) {
        for Parked { caller, response } in parked {
            let active = self.quorum.contact.active() == Some(tenure);
            let reply = Reply::Active(tenure, Answered { response, next_offset });
            // Who no longer waits wants no answer.
            drop(caller.reply.send(if active { reply } else { self.not_controller(otherwise) }));
        }
    }

    /// As `answer`, for what recorded nothing and must be current: waits until a quorum has confirmed that nobody else led
    /// when it was decided (`R71`).
    async fn answer_current(self, tenure: Tenure, next_offset: MetadataOffset, parked: Vec<Parked>) {
        if self.quorum.is_current(CONFIRMATION).await {
            return self.answer(tenure, next_offset, parked, Outcome::Undecided);
        }
        tracing::warn!(term = tenure.term, answers = parked.len(), "no quorum confirms that this controller is active");
        for Parked { caller, .. } in parked {
            drop(caller.reply.send(self.not_controller(Outcome::Undecided)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.lock().expect("no holder of the lock panics")
    }
}

impl ControlLoop {
    pub(crate) fn new(
        quorum: Arc<Quorum>,
        supervision: Arc<Supervision>,
        config: ControlConfig,
        random: Random,
    ) -> (ControlLoop, ControlHandle) {
        let (sender, inputs) = mpsc::channel(QUEUE);
        let active = Active { tenure: None, control: ClusterControl::new(config.settings) };
        let handle =
            ControlHandle { inputs: sender, active: Arc::new(Mutex::new(active)), quorum, clock: Clock::new() };
        let control_loop = ControlLoop {
            inputs,
            handle: handle.clone(),
            supervision,
            network: config.network,
            internal_listener: config.internal_listener,
            probe: config.probe,
            cluster_id: config.cluster_id,
            random,
            probing: BTreeSet::new(),
        };
        (control_loop, handle)
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut reports = self.handle.quorum.reports();
        loop {
            match self.handle.quorum.contact.active() {
                Some(tenure) => self.serve(tenure).await,
                None => tokio::select! {
                    Some(input) = self.inputs.recv() => self.turn_away(input),
                    // It becomes active by a report only.
                    _ = reports.changed() => {}
                },
            }
        }
    }

    /// Decides for one tenure, until it is over.
    async fn serve(&mut self, tenure: Tenure) {
        tracing::info!(term = tenure.term, node = %self.handle.quorum.me, "this controller is active");
        let image = self.handle.quorum.image();
        let unfounded = image.next_offset() == MetadataOffset(0);
        let first = {
            let mut active = self.handle.lock();
            active.control.reset(image);
            active.control.begin_tenure(self.handle.clock.now());
            active.tenure = Some(tenure);
            let id = self.cluster_id.unwrap_or_else(|| ClusterId(Uuid::from_u128(self.random.next_u128())));
            if unfounded { active.control.first_records(id) } else { Vec::new() }
        };
        self.probing.clear();
        let mut pending = Pending::default();
        self.take(&mut pending, Decision { records: first, response: ControlResponse::Done, events: vec![] }, None);
        loop {
            if !self.settle(tenure, pending).await {
                break;
            }
            pending = self.gather(tenure).await;
            if !self.holds(tenure) {
                // It was not proposed.
                self.refuse(pending, Outcome::Undecided);
                break;
            }
        }
        self.handle.lock().tenure = None;
        tracing::info!(term = tenure.term, node = %self.handle.quorum.me, "this controller is no longer active");
    }

    /// Whether the tenure may still become active again, if it is not now.
    fn holds(&self, tenure: Tenure) -> bool {
        holds(&self.handle.quorum, tenure)
    }

    /// When something may have to be done by the time alone: what is due, or a look at who is suspected.
    fn next_look(&self) -> Instant {
        let clock = self.handle.clock;
        let (deadline, suspicion) = {
            let active = self.handle.lock();
            (active.control.next_deadline(), active.control.next_suspicion())
        };
        let now = Instant::now();
        // At least a moment: a deadline that stays in the past must not spin.
        let due = clock.instant(deadline).clamp(now + Duration::from_millis(1), now + LOOK_SELDOM);
        // One that stands is looked at again and again.
        suspicion.map_or(due, |suspicion| due.min(clock.instant(suspicion).max(now + LOOK)))
    }

    /// Waits for something to decide, and decides all there is.
    async fn gather(&mut self, tenure: Tenure) -> Pending {
        let mut pending = Pending::default();
        let look = self.next_look();
        let (quorum, mut reports) = (Arc::clone(&self.handle.quorum), self.handle.quorum.reports());
        // Dropping any is safe: what has not come is still to come.
        tokio::select! {
            Some(input) = self.inputs.recv() => self.decide(&mut pending, input),
            () = tokio::time::sleep_until(look) => {}
            () = async { while holds(&quorum, tenure) && reports.changed().await.is_ok() {} } => {}
        }
        while pending.parked.len() < TOGETHER
            && let Ok(input) = self.inputs.try_recv()
        {
            self.decide(&mut pending, input);
        }
        self.tick(&mut pending);
        if self.handle.quorum.contact.active() == Some(tenure) {
            self.probe_suspects();
        }
        pending
    }

    fn decide(&mut self, pending: &mut Pending, input: Input) {
        let now = self.handle.clock.now();
        let entropy = self.random.next_u128();
        match input {
            Input::Call { request, reply } => {
                let decision = self.handle.lock().control.decide(&request, now, entropy);
                let caller = Caller { reply, wants_current: request.wants_current_answer() };
                self.take(pending, decision, Some(caller));
            }
            Input::Probed { suspicion, gone } => {
                self.probing.remove(&(suspicion.broker, suspicion.epoch));
                let mut active = self.handle.lock();
                if gone {
                    let decision = active.control.fence_suspect(&suspicion, now);
                    drop(active);
                    self.take(pending, decision, None);
                } else {
                    active.control.clear_suspicion(&suspicion);
                }
            }
        }
    }

    /// What is due by the time alone.
    fn tick(&mut self, pending: &mut Pending) {
        let now = self.handle.clock.now();
        let decision = {
            let mut active = self.handle.lock();
            (active.control.next_deadline() <= now).then(|| active.control.tick(now))
        };
        if let Some(decision) = decision {
            self.take(pending, decision, None);
        }
    }

    /// Replays a decision, so that the next one sees it, and parks its answer.
    fn take(&mut self, pending: &mut Pending, decision: Decision, caller: Option<Caller>) {
        let mut active = self.handle.lock();
        decision.records.iter().for_each(|record| active.control.replay(record));
        pending.records.extend(decision.records);
        pending.ends.push(pending.records.len());
        pending.events.extend(decision.events);
        pending.parked.extend(caller.map(|caller| Parked { caller, response: decision.response }));
    }

    /// Has a batch applied and answers for it; false when the tenure is over.
    async fn settle(&mut self, tenure: Tenure, pending: Pending) -> bool {
        let mut base = self.handle.quorum.image().next_offset();
        let before = base;
        for part in in_parts(&pending.records, &pending.ends) {
            match self.propose(tenure, base, part).await {
                Proposed::Applied(next) => base = next,
                Proposed::Superseded => {
                    tracing::warn!(term = tenure.term, %base, "a batch was superseded: deciding starts over");
                    let image = self.handle.quorum.image();
                    self.handle.lock().control.reset(image);
                    // R66: what is superseded changes nothing, now or later. A part before it may have been applied.
                    self.refuse(pending, if base == before { Outcome::Undecided } else { Outcome::Unknown });
                    return true;
                }
                Proposed::TenureOver | Proposed::Dead => {
                    self.handle.quorum.contact.give_up(tenure);
                    self.refuse(pending, Outcome::Unknown);
                    return false;
                }
            }
        }
        let decided = self.handle.lock().control.image().next_offset();
        assert_eq!(decided, base, "what was decided is not what was applied");
        tell(&pending.events);
        count_elections(&self.handle.quorum.elections, &pending);
        // Records that were applied in this tenure prove that it was current when they were decided.
        let proven = !pending.records.is_empty();
        let at_once = |parked: &Parked| proven || !parked.caller.wants_current;
        let (now, later): (Vec<_>, Vec<_>) = pending.parked.into_iter().partition(at_once);
        self.handle.answer(tenure, base, now, if proven { Outcome::Unknown } else { Outcome::Undecided });
        if !later.is_empty() {
            // A task of its own: heartbeats do not wait for it. It holds no more than callers that wait.
            tokio::spawn(self.handle.clone().answer_current(tenure, base, later));
        }
        true
    }

    /// Proposes one entry, and waits until what becomes of it is known, or the tenure is over (`R67`).
    async fn propose(&self, tenure: Tenure, base: MetadataOffset, records: &[MetadataRecord]) -> Proposed {
        let records = metadata::wire::encode_entry(records);
        let proposed = self.handle.quorum.propose(tenure, base, records.into());
        tokio::pin!(proposed);
        let since = Instant::now();
        loop {
            tokio::select! {
                outcome = &mut proposed => return outcome,
                () = tokio::time::sleep(LOOK) => {
                    if !self.holds(tenure) {
                        return Proposed::TenureOver;
                    }
                    self.supervision.unresolved(&self.handle.quorum, tenure, since.elapsed());
                }
            }
        }
    }

    fn refuse(&self, pending: Pending, outcome: Outcome) {
        for Parked { caller, .. } in pending.parked {
            drop(caller.reply.send(self.handle.not_controller(outcome)));
        }
    }

    fn turn_away(&self, input: Input) {
        if let Input::Call { reply, .. } = input {
            drop(reply.send(self.handle.not_controller(Outcome::Undecided)));
        }
    }

    /// Asks those who are believed gone whether they are (`R76`).
    fn probe_suspects(&mut self) {
        let active = self.handle.lock();
        let suspects = active.control.suspects(self.handle.clock.now());
        let standing: BTreeMap<_, _> = suspects.into_iter().map(|s| ((s.broker, s.epoch), s)).collect();
        for (key, suspicion) in standing {
            let Some(broker) = active.control.image().broker(suspicion.broker) else { continue };
            let Some(listener) = broker.listener(&self.internal_listener) else { continue };
            if !self.probing.insert(key) {
                continue;
            }
            let address = format!("{}:{}", listener.host, listener.port);
            let (incarnation, inputs) = (broker.incarnation, self.handle.inputs.clone());
            let (network, patience) = (self.network.clone(), self.probe);
            tokio::spawn(async move {
                let gone = is_gone(&network, &address, patience, suspicion, incarnation).await;
                // A loop that has ended needs no answer.
                drop(inputs.send(Input::Probed { suspicion, gone }).await);
            });
        }
    }
}

/// See [`ControlLoop::holds`].
fn holds(quorum: &Quorum, tenure: Tenure) -> bool {
    quorum.contact.leading() == Some(tenure) && !quorum.contact.has_given_up(tenure)
}

/// Whether a suspect is gone: refused, another incarnation, or silent twice (`R76`).
async fn is_gone(
    network: &rpc::net::Network,
    address: &str,
    patience: Duration,
    suspicion: Suspicion,
    incarnation: Incarnation,
) -> bool {
    for _ in 0..2 {
        let asked = async {
            match rpc::broker::probe(network, address, PROBE_LIMIT).await {
                Probed::Answered(probe) => Some(probe),
                Probed::Refused => None,
                // That nobody can be asked says no more than silence does.
                Probed::Unknown(error) => {
                    tracing::debug!(broker = %suspicion.broker, %error, "a probe came to nothing");
                    std::future::pending().await
                }
            }
        };
        let answer = tokio::select! {
            // A probe that is given up has no effect anywhere.
            answer = asked => answer,
            () = live_through(patience) => None,
        };
        if let Some(probe) = answer {
            return probe.incarnation != incarnation && probe.broker_epoch != suspicion.epoch;
        }
    }
    true
}

/// As long as `span`, of time in which this thread runs: who is blamed for a silence must have been listened to. What arrived
/// while this thread stood still is looked at before the rest of the time is over.
async fn live_through(span: Duration) {
    let mut left = span;
    while !left.is_zero() {
        tokio::time::sleep(STEP.min(left)).await;
        left = left.saturating_sub(STEP);
    }
}

/// Cuts a batch of decisions, which end at `ends`, into entries that can be sent and synced within a heartbeat interval (`R67`).
/// What goes on with the record before it stays with it.
fn in_parts<'a>(records: &'a [MetadataRecord], ends: &[usize]) -> Vec<&'a [MetadataRecord]> {
    let mut parts = Vec::new();
    let (mut start, mut at, mut size) = (0, 0, 0);
    for (whole, len) in wholes(records, ends) {
        if size + len > ENTRY_MAX && at > start {
            parts.push(&records[start..at]);
            (start, size) = (at, 0);
        }
        size += len;
        at += whole.len();
    }
    if start < records.len() {
        parts.push(&records[start..]);
    }
    parts
}

/// What must not be cut, and how long each is. Configs of one resource that are too long for an entry all the same are: nothing
/// else is.
fn wholes<'a>(records: &'a [MetadataRecord], ends: &[usize]) -> impl Iterator<Item = (&'a [MetadataRecord], usize)> {
    let starts = std::iter::once(&0).chain(ends);
    let decisions = starts.zip(ends).map(|(start, end)| &records[*start..*end]);
    let wholes = decisions.flat_map(|decision| decision.chunk_by(|before, next| next.goes_on(before)));
    wholes.flat_map(|whole| {
        let len = metadata::wire::entry_len(whole);
        let fits = len <= ENTRY_MAX;
        let len_of = move |part: &[MetadataRecord]| if fits { len } else { metadata::wire::entry_len(part) };
        whole.chunks(if fits { whole.len() } else { 1 }).map(move |part| (part, len_of(part)))
    })
}

/// What a batch decided, for the log. Leaders that were recovered whole are told one by one only where they are few: after
/// a power cut there may be a hundred thousand of them.
fn tell(events: &[ControlEvent]) {
    let is_whole = |event: &&ControlEvent| matches!(event, ControlEvent::UncleanElection { potential_loss: false, .. });
    let whole = events.iter().filter(is_whole).count();
    let together = whole > TOLD_ONE_BY_ONE;
    if together {
        tracing::info!(partitions = whole, "leaders were recovered; they have all acknowledged records");
    }
    events.iter().filter(|event| !(together && is_whole(event))).for_each(tell_one);
    let lost = |event: &ControlEvent| match event {
        ControlEvent::NobodyIsKnown(partition) => Some(partition.to_string()),
        _ => None,
    };
    let lost: Vec<_> = events.iter().filter_map(lost).collect();
    if !lost.is_empty() {
        tracing::error!(
            partitions = lost.len(),
            some = lost[..lost.len().min(TOLD_ONE_BY_ONE)].join(" "),
            "the disks of all replicas that had all acknowledged records were replaced: where another replica has records, \
             a leader must be chosen (kafka-leader-election --election-type unclean), or a disk attached again"
        );
    }
}

fn tell_one(event: &ControlEvent) {
    match event {
        ControlEvent::BrokerFenced { broker, epoch, reason } => {
            tracing::warn!(%broker, %epoch, ?reason, "a broker is fenced");
        }
        ControlEvent::UncleanElection { partition, leader, potential_loss: true, .. } => {
            tracing::error!(%partition, %leader, evidence = ?event, "a leader was elected that may lack acknowledged records");
        }
        ControlEvent::UncleanElection { partition, leader, leader_epoch, answers, .. } => {
            let log_end = answers.iter().find(|(id, _)| id == leader).map(|(_, answer)| answer.log_end);
            tracing::info!(%partition, %leader, %leader_epoch, ?log_end, "a leader was recovered; it has all acknowledged records");
        }
        // Told together.
        ControlEvent::NobodyIsKnown(_) => {}
    }
}

/// An election of a partition's leader shows by its new epoch.
fn count_elections(elections: &Elections, pending: &Pending) {
    let elects = |record: &&MetadataRecord| match record {
        MetadataRecord::PartitionChange(change) => {
            change.leader_epoch.is_some() && change.leader.is_some_and(|leader| leader != BrokerId::NONE)
        }
        _ => false,
    };
    let unclean = |event: &&ControlEvent| matches!(event, ControlEvent::UncleanElection { .. });
    let add = |counter: &AtomicU64, count: usize| {
        counter.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    };
    add(&elections.all, pending.records.iter().filter(elects).count());
    add(&elections.unclean, pending.events.iter().filter(unclean).count());
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::future::BoxFuture;
    use metadata::records::{ConfigResource, Partition};
    use model::{BrokerEpoch, DirectoryId, PartitionIndex, TopicId, TopicPartition};
    use rpc::net::{Dial, Link, Network};

    use super::*;

    #[test]
    fn only_a_new_leader_in_a_new_epoch_is_an_election() {
        let change = |leader: Option<i32>, epoch: Option<i32>| {
            MetadataRecord::PartitionChange(Box::new(metadata::records::PartitionChange {
                topic_id: model::TopicId::NONE,
                partition: model::PartitionIndex(0),
                partition_epoch: model::PartitionEpoch(1),
                replicas: None,
                directories: None,
                adding: None,
                removing: None,
                isr: None,
                elr: None,
                last_known_elr: None,
                displaced: None,
                leader: leader.map(BrokerId),
                last_leader: None,
                last_leader_directory: None,
                leader_epoch: epoch.map(model::LeaderEpoch),
                leader_recovery_state: None,
            }))
        };
        let records =
            vec![change(Some(7), Some(7)), change(Some(-1), Some(8)), change(None, Some(9)), change(None, None)];
        let elections = Elections::default();
        count_elections(&elections, &Pending { records, ..Pending::default() });
        let counted = (elections.all.load(Ordering::Relaxed), elections.unclean.load(Ordering::Relaxed));
        assert_eq!(counted, (1, 0));
    }

    /// R76: a controller that stood still blames nobody for what it did not hear meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_standstill_of_this_thread_counts_as_one_step() {
        let span = Duration::from_millis(200);
        let begun = Instant::now();
        live_through(span).await;
        assert_eq!(begun.elapsed(), span);
        let begun = Instant::now();
        let waits = tokio::spawn(live_through(span));
        tokio::task::yield_now().await;
        tokio::time::advance(10 * span).await;
        waits.await.unwrap();
        assert_eq!(begun.elapsed(), 10 * span + span - STEP);
    }

    /// Nobody can be connected to, for this reason.
    struct Failing(io::ErrorKind);

    impl Dial for Failing {
        fn dial(&self, _: &str) -> BoxFuture<'static, io::Result<Box<dyn Link>>> {
            let error = io::Error::from(self.0);
            Box::pin(async { Err(error) })
        }
    }

    /// R76: only a refusal says at once that nobody is there. What keeps the controller from asking is silence: as long as that
    /// lasts, whoever lives can say so.
    #[tokio::test(start_paused = true)]
    async fn what_keeps_a_controller_from_asking_is_no_refusal() {
        let suspicion = Suspicion { broker: BrokerId(1), epoch: BrokerEpoch(1), since: Time(0) };
        let patience = Duration::from_millis(200);
        for (kind, takes) in [(io::ErrorKind::ConnectionRefused, Duration::ZERO), (io::ErrorKind::Other, 2 * patience)]
        {
            let network = Network::Other(Arc::new(Failing(kind)));
            let begun = Instant::now();
            assert!(is_gone(&network, "10.0.0.1:1", patience, suspicion, Incarnation(Uuid::from_u128(1))).await);
            assert_eq!(begun.elapsed(), takes, "{kind:?}");
        }
    }

    #[test]
    fn a_large_batch_is_cut_between_records() {
        // R67
        let record = |len: usize| MetadataRecord::FeatureLevel { name: "x".repeat(len), level: 1 };
        let sizes = |records: &[MetadataRecord]| {
            in_parts(records, &[records.len()]).iter().map(|part| part.len()).collect::<Vec<_>>()
        };
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&vec![record(10); 100]), [100]);
        assert_eq!(sizes(&vec![record(ENTRY_MAX / 2); 3]), [1, 1, 1]);
        assert_eq!(sizes(&vec![record(ENTRY_MAX / 3); 5]), [2, 2, 1]);
        assert_eq!(sizes(&[record(1), record(2 * ENTRY_MAX), record(1)]), [1, 1, 1]);
    }

    /// R67: a topic never appears with a part of its partitions, nor without its configs, whatever is decided with it.
    #[test]
    fn what_belongs_together_is_not_cut() {
        let config = |topic: &str, name: &str, len: usize| MetadataRecord::Config {
            resource: ConfigResource::Topic(topic.to_owned()),
            name: name.to_owned(),
            value: Some("x".repeat(len)),
        };
        let topic = |number: u128, partitions: i32| {
            let id = TopicId(Uuid::from_u128(number));
            let name = format!("t-{number}");
            let partition = |index| {
                let id = TopicPartition { topic_id: id, partition: PartitionIndex(index) };
                let brokers = (1..=3).map(|broker| BrokerId((index + broker) % 5)).collect();
                MetadataRecord::Partition(Box::new(Partition::new(id, brokers, vec![DirectoryId::NONE; 3], |_, _| {
                    true
                })))
            };
            let head = [MetadataRecord::Topic { id, name: name.clone() }, config(&name, "retention.ms", 20)];
            head.into_iter().chain((0..partitions).map(partition)).collect::<Vec<_>>()
        };
        let decisions = [topic(1, 10_000), topic(2, 900), topic(3, 900), vec![config("t-9", "a", 10); 2]];
        let ends: Vec<usize> = (1..=4).map(|n| decisions[..n].iter().map(Vec::len).sum()).collect();
        let records = decisions.concat();
        let parts = in_parts(&records, &ends);
        assert!(parts.len() > 1, "{}", parts.len());
        let mut end = 0;
        for part in parts {
            end += part.len();
            assert!(ends.contains(&end), "cut at {end} of {ends:?}");
            let encoded = metadata::wire::encode_entry(part);
            assert!(encoded.len() <= ENTRY_MAX, "{}", encoded.len());
            assert_eq!(metadata::wire::decode_records(&encoded).unwrap(), part);
        }
        // Two decisions are never one, and too many configs for an entry are cut.
        let same = vec![config("t", "a", ENTRY_MAX / 2); 3];
        assert_eq!(in_parts(&same, &[1, 3]).iter().map(|part| part.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
