//! What there is: brokers with their replica, log and clock, streams between them, proposals under way, the controller, and
//! what a consumer may have seen.

use std::collections::VecDeque;
use std::sync::Arc;

use model::{BrokerEpoch, EpochCache, EpochStart, LeaderEpoch, Offset, Rules, Time};
use replication::{
    Ack, AlterAnswer, Answer, LogView, Open, PartitionState, Progress, Proposal, Replica, ReplicaConfig,
};

use crate::control::{Control, id};
use crate::scenario::{Before, Bounds, NODES, Scenario};

/// As much as may happen before a model begins.
const PLENTY: Bounds = Bounds {
    appends: 99,
    fences: 99,
    crashes: 99,
    stops: 99,
    timers: 99,
    breaks: 99,
    losses: 99,
    elections: 99,
    moves: 99,
    deletes: 99,
    progress: 99,
    skips: 99,
    decays: 99,
    gaps: 99,
    repeats: 99,
};

/// Where the clock of a broker starts.
pub(crate) const START: Time = Time(1_000_000);

/// A record, known by who wrote it when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Record {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) writer: u8,
    /// Counts the writer's records.
    pub(crate) number: u8,
}

/// What stands where no record is: below a log's start, or in a gap that must not be.
pub(crate) const HOLE: Record = Record { epoch: LeaderEpoch::NONE, writer: u8::MAX, number: 0 };

/// A broker.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// None while it is down.
    pub(crate) replica: Option<Replica>,
    pub(crate) log: Vec<Record>,
    /// Where the log starts, and the checkpointed high watermark: while it is down.
    pub(crate) start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) epoch: BrokerEpoch,
    pub(crate) starts: u8,
    pub(crate) now: Time,
    /// Metadata that it has not applied.
    pub(crate) feed: VecDeque<Arc<PartitionState>>,
    /// Lost records in a crash, and has not been in sync since.
    pub(crate) lossy: bool,
    /// The registration that it stopped cleanly in, by the proof on its disk (`R10`).
    pub(crate) proof: BrokerEpoch,
    pub(crate) writes: u8,
    /// The newest metadata that it has applied, and its newest proposal: what a proposal is judged by.
    pub(crate) applied: Option<Arc<PartitionState>>,
    pub(crate) proposed: u64,
    /// It found its log broken, and has not been in sync since (`R78`).
    pub(crate) decayed: bool,
    /// Whether it takes produces: leads, and has not said that they fail (`R20`).
    pub(crate) serves: bool,
}

/// From a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Up {
    Open(Open),
    Ack(Ack),
    Close(u64),
}

/// From a leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Down {
    Answer(u64, Answer),
    Data(Data),
    Progress(Progress),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Data {
    pub(crate) open_no: u64,
    pub(crate) prev_offset: Offset,
    pub(crate) prev_epoch: LeaderEpoch,
    pub(crate) high_watermark: Offset,
    pub(crate) log_start: Offset,
    pub(crate) leader_log_end: Offset,
    pub(crate) records: Vec<Record>,
}

/// A stream from a follower to a leader. What the follower sent may arrive after it gave the stream up.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) follower: usize,
    pub(crate) leader: usize,
    pub(crate) number: u64,
    /// The follower's registration, of the hello.
    pub(crate) epoch: BrokerEpoch,
    /// The follower still holds its end.
    pub(crate) attached: bool,
    /// The newest open that it carried.
    pub(crate) opened: Option<u64>,
    pub(crate) up: VecDeque<Up>,
    pub(crate) down: VecDeque<Down>,
}

/// An AlterPartition on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Alter {
    pub(crate) from: usize,
    pub(crate) epoch: BrokerEpoch,
    pub(crate) proposal: Proposal,
    pub(crate) stage: Stage,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// To the controller.
    Asked,
    /// To the controller, but the leader waits no more.
    Forgotten,
    /// Back to the leader.
    Answered(AlterAnswer),
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Violation {
    /// A leader was elected that lacks a committed record.
    CommittedLost(String),
    /// A replica shows a record below its high watermark that is not the committed one.
    Disagrees(String),
    /// A member of the ISR, or of the ELR, lacks a committed record although it lost none.
    MemberLacks(String),
    /// A record was committed that too few brokers, or too few zones, have.
    CommittedThinly(String),
    /// A committed record was cut off the log of a member of ISR or ELR.
    CommittedCut(String),
    /// Two logs have the same epoch at an offset, and differ at or below it.
    LogsPart(String),
    /// Two leaders in one leader epoch.
    TwoLeaders(String),
    /// A leader's high watermark fell.
    WatermarkFell(String),
    /// A consumer may read what is not committed, or is told an end below what it has read.
    BadRead(String),
    /// The log's start went above the high watermark.
    DeletedTooMuch(String),
    /// A client was told that its record is safe, or that one would be, where too few are in sync.
    ToldTooMuch(String),
    /// A change of the partition without epochs that say so (`R1`).
    BadEpochs(String),
    /// A broker that is fenced or stops is in the ISR, or leads (`R7`, `R15`).
    FencedMember(String),
    /// A leader that could go on lost its leadership (`R33`).
    LeaderMoved(String),
    /// Fewer are eligible to lead than a record was committed on, or more than have all of it (`R34`).
    BadElr(String),
    /// Somebody leads from outside of ISR and ELR, and is not said to recover (`R35`).
    NotRecovering(String),
    /// A reassignment was completed without those who come, or with too few (`R37`).
    MovedTooSoon(String),
    /// A leader proposes somebody into the ISR who must not, or out of it who need not (`R11`, `R12`, `R64`).
    BadProposal(String),
    /// A leader has a session that it must not have, or knows more of a follower than that has (`R8`, `R23`, `R38`, `R57`).
    BadSession(String),
    /// A follower cannot go on, and nothing will come that helps (`R24`, `R57`).
    Stuck(String),
    /// A cache names another epoch than a record's own (`R25`).
    WrongEpoch(String),
    /// Produces wait at a broker that leads no more (`R20`).
    Waiting(String),
    /// A leader was chosen before all had answered who may have more (`R35`).
    ElectedTooSoon(String),
    /// What was acknowledged is not known any more when a stream ends (`R61`).
    Forgotten(String),
    /// More is under way than the window lets, or what was deleted is sent (`R26`, `R62`).
    BadFlow(String),
    /// An incarnation has two registrations (`R6`).
    TwoRegistrations(String),
    /// A peer broke the protocol.
    BadPeer(String),
    /// A core met what it takes for impossible.
    Panicked(String),
}

impl Violation {
    /// Whether something is lost, or told wrongly; else a rule that guards against that was not kept.
    pub(crate) fn is_loss(&self) -> bool {
        use Violation::*;
        matches!(
            self,
            CommittedLost(_)
                | Disagrees(_)
                | MemberLacks(_)
                | CommittedThinly(_)
                | CommittedCut(_)
                | LogsPart(_)
                | TwoLeaders(_)
                | WatermarkFell(_)
                | BadRead(_)
                | DeletedTooMuch(_)
                | ToldTooMuch(_)
                | BadPeer(_)
                | Panicked(_)
        )
    }
}

/// The state of a model.
#[derive(Clone)]
pub struct World {
    pub(crate) control: Arc<Control>,
    pub(crate) nodes: [Arc<Node>; NODES],
    /// By follower, leader and number.
    pub(crate) streams: Vec<Arc<Stream>>,
    pub(crate) alters: Vec<Arc<Alter>>,
    /// What consumers may have seen.
    pub(crate) committed: Vec<Record>,
    pub(crate) left: Bounds,
    /// An operator was told that records may be lost: nothing is promised any more.
    pub(crate) over: bool,
    /// Brokers, as bits, whose replica may ask for something.
    pub(crate) touched: u8,
    /// What went wrong.
    pub violation: Option<Violation>,
}

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// A leader appends a record.
    Append(usize),
    /// A log is synced.
    Sync(usize),
    /// A broker applies the next metadata.
    Apply(usize),
    /// The timer that a replica asked for fires.
    Timer(usize),
    /// A leader takes the next message of a stream (follower, leader, number).
    Up(usize, usize, u64),
    /// A follower takes the next message of a stream.
    Down(usize, usize, u64),
    /// A follower gives a stream up.
    Break(usize, usize, u64),
    /// A leader sees the end of a stream.
    Ended(usize, usize, u64),
    /// A leader moves a follower's session to the other lane (`R62`).
    Move(usize, usize),
    /// A leader tells a follower its watermarks.
    Progress(usize, usize),
    /// The controller decides on a proposal.
    Decide(usize),
    /// The answer arrives.
    Answer(usize),
    /// A leader gives a proposal's answer up; the request may still arrive.
    GiveUp(usize),
    /// The controller fences a broker.
    Fence(usize),
    /// The controller unfences a broker.
    Unfence(usize),
    /// A broker reports what it holds (`R35`).
    Report(usize),
    /// A broker crashes; its log keeps so many records.
    Crash(usize, usize),
    /// A broker that is down starts.
    Restart(usize),
    /// A broker asks to stop (`R32`), and stops once it may.
    Shutdown(usize),
    /// A broker stops without being allowed to (`R77`).
    Stop(usize),
    /// An operator wants the preferred leader.
    Prefer,
    /// An operator moves the replicas.
    Reassign(usize),
    /// A leader is asked to delete all that its log has.
    Delete(usize),
    /// A broker applies the newest metadata, as a snapshot brings it, and what is between is never seen.
    Skip(usize),
    /// A broker finds its log broken, tells so, and opens it anew with so many records.
    Decay(usize, usize),
    /// The next frame of a stream is lost, and those behind it are not.
    Lose(usize, usize, u64),
    /// A broker's registration arrives once more.
    Repeat(usize),
}

impl Step {
    /// Whether it is what brokers and controller do by themselves, and not what befalls them.
    pub(crate) fn is_ordinary(&self) -> bool {
        match self {
            Step::Append(_)
            | Step::Sync(_)
            | Step::Apply(_)
            | Step::Up(..)
            | Step::Down(..)
            | Step::Ended(..)
            | Step::Progress(..)
            | Step::Decide(_)
            | Step::Answer(_)
            | Step::Unfence(_)
            | Step::Report(_)
            | Step::Restart(_) => true,
            Step::Timer(_)
            | Step::Break(..)
            | Step::Move(..)
            | Step::GiveUp(_)
            | Step::Fence(_)
            | Step::Crash(..)
            | Step::Shutdown(_)
            | Step::Stop(_)
            | Step::Prefer
            | Step::Reassign(_)
            | Step::Delete(_)
            | Step::Skip(_)
            | Step::Decay(..)
            | Step::Lose(..)
            | Step::Repeat(_) => false,
        }
    }
}

pub(crate) fn offset(at: usize) -> Offset {
    Offset(i64::try_from(at).expect("a small number"))
}

pub(crate) fn at(offset: Offset) -> usize {
    usize::try_from(offset.0).expect("an offset of a log")
}

impl Node {
    /// A replica of the log as it is on disk, after so many opens of this process. Epochs are rebuilt from the records (`R25`).
    pub(crate) fn recover(&self, node: usize, opens_before: u64, scenario: &Scenario) -> Replica {
        let config = ReplicaConfig {
            me: id(node),
            lag_time_max_ms: 0,
            window_bytes: scenario.window_bytes,
            opens_before,
            rules: scenario.rules,
        };
        let end = offset(self.log.len());
        let synced_end = if scenario.sync_before_ack { end } else { Offset::ZERO };
        let log = LogView { start: self.start, end, synced_end, high_watermark: self.high_watermark };
        let mut epochs: Vec<EpochStart> = Vec::new();
        for (start, record) in self.log.iter().enumerate().skip(at(self.start)) {
            if epochs.last().is_none_or(|last| last.epoch != record.epoch) {
                epochs.push(EpochStart { epoch: record.epoch, start: offset(start) });
            }
        }
        Replica::new(config, log, EpochCache::from_entries(epochs))
    }

    /// The replica goes; what is on the disk of its watermarks stays.
    pub(crate) fn keep_watermarks(&mut self) {
        if let Some(replica) = self.replica.take() {
            let end = offset(self.log.len());
            self.start = replica.log().start.min(end);
            self.high_watermark = replica.log().high_watermark.clamp(self.start, end);
        }
        // The next replica knows nothing, and counts its proposals anew.
        (self.applied, self.proposed, self.serves) = (None, 0, false);
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    pub(crate) fn follows(&self) -> Option<usize> {
        self.replica.as_ref()?.followed_leader().map(crate::control::node_of)
    }

    pub(crate) fn leads(&self) -> Option<&Replica> {
        self.replica.as_ref().filter(|replica| replica.is_leader())
    }
}

impl World {
    /// Everybody is in sync, every session is open.
    pub(crate) fn new(scenario: &Scenario) -> World {
        let control = Control::new(scenario);
        let view = Arc::new(control.view());
        let node = |number: usize| {
            let mut node = Node {
                replica: None,
                log: Vec::new(),
                start: Offset::ZERO,
                high_watermark: Offset::ZERO,
                epoch: control.broker_epoch(number),
                starts: 1,
                now: START,
                feed: VecDeque::from([Arc::clone(&view)]),
                lossy: false,
                proof: BrokerEpoch::NONE,
                writes: 0,
                applied: None,
                proposed: 0,
                decayed: false,
                serves: false,
            };
            node.replica = Some(node.recover(number, 0, scenario));
            Arc::new(node)
        };
        let mut world = World {
            nodes: [node(0), node(1), node(2)],
            control: Arc::new(control),
            streams: Vec::new(),
            alters: Vec::new(),
            committed: Vec::new(),
            left: scenario.bounds,
            over: false,
            touched: 0,
            violation: None,
        };
        (0..NODES).for_each(|node| world.apply_metadata(node));
        world.settle();
        // Opens and their answers.
        for _ in 0..2 {
            for (follower, leader, number) in world.stream_ids() {
                world.deliver_up(follower, leader, number);
                world.settle();
                world.deliver_down(follower, leader, number);
                world.settle();
            }
        }
        assert!(world.streams.iter().all(|stream| stream.up.is_empty() && stream.down.is_empty()), "{world:?}");
        world.prepare(scenario)
    }

    /// What happened before (see [`Before`]). Where a rule is switched off it may come otherwise: what is not possible then
    /// is left out.
    fn prepare(mut self, scenario: &Scenario) -> World {
        // Now it befalls anybody.
        let all = Scenario { befalls: &[0, 1, 2], ..scenario.clone() };
        for before in scenario.before {
            self.left = PLENTY;
            match before {
                Before::Rest => while self.take_what_comes(&all) {},
                Before::Take(step) => {
                    let next = self.is_possible(*step, &all).then(|| self.step(*step, &all)).flatten();
                    assert!(next.is_some() || scenario.rules != Rules::all(), "{step:?} is not possible in {self:?}");
                    self = next.unwrap_or(self);
                }
            }
        }
        self.left = scenario.bounds;
        self
    }

    fn is_possible(&self, step: Step, scenario: &Scenario) -> bool {
        let mut steps = Vec::new();
        self.possible(scenario, &mut steps);
        steps.contains(&step)
    }

    /// The first of what happens by itself; false where nothing does.
    fn take_what_comes(&mut self, scenario: &Scenario) -> bool {
        let mut steps = Vec::new();
        self.possible(scenario, &mut steps);
        let comes = |step: &Step| match step {
            Step::Append(_) | Step::Unfence(_) | Step::Restart(_) | Step::Report(_) => false,
            // A late copy stays late.
            Step::Decide(number) => self.alters[*number].stage == Stage::Asked,
            Step::Timer(node) => self.nodes[*node].leads().is_none(),
            step => step.is_ordinary() && !matches!(step, Step::Progress(..)),
        };
        let next = steps.into_iter().filter(comes).find_map(|step| self.step(step, scenario));
        let came = next.is_some();
        *self = next.unwrap_or_else(|| self.clone());
        came
    }

    pub(crate) fn node(&mut self, node: usize) -> &mut Node {
        self.touched |= 1 << node;
        Arc::make_mut(&mut self.nodes[node])
    }

    pub(crate) fn replica(&mut self, node: usize) -> Option<&mut Replica> {
        self.node(node).replica.as_mut()
    }

    pub(crate) fn stream_ids(&self) -> Vec<(usize, usize, u64)> {
        self.streams.iter().map(|stream| (stream.follower, stream.leader, stream.number)).collect()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "controller: {:?}", self.control.partition())?;
        for (number, node) in self.nodes.iter().enumerate() {
            let role = match node.replica.as_ref() {
                None => "down".to_owned(),
                Some(replica) if replica.is_leader() => {
                    format!("leads {}, ISR {:?}", replica.leader_epoch(), replica.isr())
                }
                Some(replica) => format!("follows {:?} in {}", replica.followed_leader(), replica.leader_epoch()),
            };
            let log: Vec<_> = node.log.iter().map(|r| format!("{}:{}.{}", r.epoch, r.writer, r.number)).collect();
            let view = node.replica.as_ref().map(Replica::log);
            let feed = node.feed.len();
            writeln!(f, "{}: {role}, log {log:?}, {view:?}, lossy {}, feed {feed}", number + 1, node.lossy)?;
        }
        for stream in &self.streams {
            let Stream { follower, leader, number, attached, up, down, .. } = &**stream;
            if !up.is_empty() || !down.is_empty() {
                writeln!(f, "{}→{} #{number} attached {attached}: up {up:?} down {down:?}", follower + 1, leader + 1)?;
            }
        }
        writeln!(f, "proposals: {:?}", self.alters)?;
        write!(f, "committed: {:?}, violation: {:?}", self.committed, self.violation)
    }
}
