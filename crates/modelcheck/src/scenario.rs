//! What a model explores: a partition, and how much of what may happen.

use model::{Rule, Rules};

use crate::world::Step;

/// How many brokers there are.
pub const NODES: usize = 3;

/// How often each thing may happen on one path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Records that leaders append.
    pub appends: u8,
    /// Brokers that the controller fences although they may live.
    pub fences: u8,
    /// Crashes; what was not synced may be lost.
    pub crashes: u8,
    /// Brokers that stop cleanly.
    pub stops: u8,
    /// Timers of leaders that fire: whoever is not caught up is late then.
    pub timers: u8,
    /// Streams that break, and sessions that move to another one.
    pub breaks: u8,
    /// AlterPartition requests and answers that are lost, or late.
    pub losses: u8,
    /// Elections of the preferred leader.
    pub elections: u8,
    /// Reassignments asked for.
    pub moves: u8,
    /// Records deleted from the start of the log.
    pub deletes: u8,
    /// Times that watermarks travel without data.
    pub progress: u8,
    /// Times that a broker applies the newest metadata at once, as a snapshot brings it, and never sees what was between.
    pub skips: u8,
    /// Logs that a running broker finds broken, and opens anew with less (`R29`, `R78`).
    pub decays: u8,
    /// Frames that are lost between two others.
    pub gaps: u8,
    /// Registrations that arrive once more.
    pub repeats: u8,
}

/// How it comes to the state that a scenario begins with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Before {
    /// This happens.
    Take(Step),
    /// What happens by itself happens, but for appends and for brokers that come back.
    Rest,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The brokers of the replicas, the preferred leader first.
    pub replicas: &'static [i32],
    /// `min.insync.replicas`.
    pub min_isr: u32,
    /// The zone of each broker.
    pub racks: [&'static str; NODES],
    /// `ottla.ack.rule` asks for so many zones; 0 where it asks for none.
    pub zones: u32,
    /// Records count once they are durable (mode R of section 17 of the rules).
    pub sync_before_ack: bool,
    /// The replicas that reassignments ask for; an empty one cancels.
    pub targets: &'static [&'static [i32]],
    /// Bytes of a session under way; a record is one. Without bound, a frame has all there is.
    pub window_bytes: u64,
    /// The proof of a clean stop stays when a broker starts: what it names is all that guards (`R10`).
    pub keeps_proof: bool,
    /// What happened before.
    pub before: &'static [Before],
    /// The brokers that are fenced, crash, stop or find their log broken.
    pub befalls: &'static [usize],
    /// Only what is lost counts, not the rules that guard against it: for those that stand in for each other.
    pub only_losses: bool,
    /// How much may happen.
    pub bounds: Bounds,
    /// Which rules hold.
    pub rules: Rules,
}

impl Scenario {
    /// Three replicas, min ISR 2, nothing happens.
    #[must_use]
    pub fn new(name: &'static str, bounds: Bounds) -> Self {
        Self {
            name,
            replicas: &[1, 2, 3],
            min_isr: 2,
            racks: ["a", "b", "c"],
            zones: 0,
            sync_before_ack: false,
            targets: &[],
            window_bytes: u64::MAX,
            keeps_proof: false,
            before: &[],
            befalls: &[0, 1, 2],
            only_losses: false,
            bounds,
            rules: Rules::all(),
        }
    }

    /// The same, with these rules.
    #[must_use]
    pub fn with(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The same, after this has happened.
    fn after(self, before: &'static [Before]) -> Self {
        Self { before, ..self }
    }
}

const NOTHING: Bounds = Bounds {
    appends: 0,
    fences: 0,
    crashes: 0,
    stops: 0,
    timers: 0,
    breaks: 0,
    losses: 0,
    elections: 0,
    moves: 0,
    deletes: 0,
    progress: 0,
    skips: 0,
    decays: 0,
    gaps: 0,
    repeats: 0,
};

/// What is explored to the end within seconds, also by a program that is not optimised.
#[must_use]
pub fn small() -> Vec<Scenario> {
    let plain = Scenario::new;
    vec![
        plain("elections", Bounds { appends: 1, fences: 1, elections: 1, ..NOTHING }),
        plain("lag", Bounds { appends: 1, timers: 2, ..NOTHING }),
        plain("lost answers", Bounds { appends: 1, fences: 1, losses: 1, ..NOTHING }),
        plain("broken streams", Bounds { appends: 2, breaks: 1, timers: 1, ..NOTHING }),
        plain("crashes", Bounds { appends: 1, crashes: 1, ..NOTHING }),
        plain("clean stops", Bounds { appends: 1, stops: 1, ..NOTHING }),
        plain("deleted records", Bounds { appends: 2, deletes: 1, ..NOTHING }),
        plain("watermarks", Bounds { appends: 1, fences: 1, progress: 1, ..NOTHING }),
        synced("synced before acknowledged", Bounds { appends: 1, crashes: 1, ..NOTHING }),
        zones("two zones", Bounds { appends: 1, crashes: 1, ..NOTHING }),
        zones_synced("two zones, synced", Bounds { appends: 1, crashes: 1, ..NOTHING }),
        moving("reassignment", Bounds { appends: 1, moves: 2, ..NOTHING }),
        plain("elections and lag", Bounds { appends: 1, fences: 1, timers: 1, ..NOTHING }),
    ]
    .into_iter()
    .chain(prepared())
    .collect()
}

/// Few things happen in each, after much has happened: what a single rule guards against.
fn prepared() -> Vec<Scenario> {
    [of_sessions(), of_proposals(), of_elections(), of_moves()].concat()
}

fn of_sessions() -> Vec<Scenario> {
    let plain = Scenario::new;
    vec![
        Scenario {
            befalls: &[2],
            ..plain("a follower is out for a while", Bounds { fences: 1, breaks: 1, ..NOTHING })
        },
        plain("streams that break twice", Bounds { breaks: 2, ..NOTHING }),
        Scenario {
            befalls: &[2],
            only_losses: true,
            ..plain("a follower starts anew", Bounds { appends: 1, crashes: 1, ..NOTHING })
        },
        Scenario { befalls: &[2], ..plain("a log that decays", Bounds { appends: 1, decays: 1, ..NOTHING }) },
        Scenario {
            befalls: &[2],
            ..plain("a log that decays, and broken streams", Bounds { decays: 1, breaks: 1, ..NOTHING })
        }
        .after(EMPTIED),
        plain("a gap", Bounds { appends: 2, gaps: 1, ..NOTHING }),
        plain("lag, record by record", Bounds { appends: 2, timers: 1, ..NOTHING }),
        Scenario { befalls: &[0], ..plain("a registration comes twice", Bounds { appends: 1, repeats: 1, ..NOTHING }) },
        Scenario {
            window_bytes: 1,
            ..plain("records go, within a window", Bounds { appends: 1, deletes: 1, ..NOTHING })
        }
        .after(LATE_IN_A_WINDOW),
        plain("a follower behind what is deleted", Bounds { deletes: 1, ..NOTHING }).after(BEHIND),
    ]
}

fn of_proposals() -> Vec<Scenario> {
    let third = |name, bounds| Scenario { befalls: &[2], ..Scenario::new(name, bounds) };
    vec![
        third("an expansion in flight", Bounds { appends: 1, fences: 1, losses: 1, timers: 1, ..NOTHING })
            .after(EXPANDING),
        third("a refused expansion", Bounds { fences: 1, losses: 1, timers: 2, ..NOTHING }).after(EXPANDING),
        third("an expansion whose answer is lost", Bounds { appends: 1, breaks: 1, timers: 1, ..NOTHING })
            .after(ANSWER_LOST),
        third("a proposal from before two elections", Bounds { appends: 1, ..NOTHING }).after(LEADS_AGAIN),
        third("a former leader's proposal", Bounds { appends: 1, ..NOTHING }).after(LED_BEFORE),
    ]
}

fn of_elections() -> Vec<Scenario> {
    let plain = Scenario::new;
    vec![
        Scenario { befalls: &[1, 2], ..plain("two are fenced", Bounds { fences: 2, ..NOTHING }) },
        second("a leader of a record of before", MOMENT).after(PREFERRED_WITH),
        Scenario { replicas: &[3, 1, 2], befalls: &[2], ..plain("a leader that cuts", MOMENT) }.after(CUT_MEANWHILE),
        plain("all crashed", NOTHING).after(TWO_ARE_BACK),
        Scenario { befalls: &[0], keeps_proof: true, ..plain("an old proof", Bounds { fences: 1, ..NOTHING }) }
            .after(OLD_PROOF),
    ]
}

fn of_moves() -> Vec<Scenario> {
    let moving = |name, bounds| Scenario { targets: &[&[3, 1], &[]], ..moving(name, bounds) };
    vec![
        Scenario { min_isr: 1, ..moving("a move where one is enough", Bounds { moves: 1, ..NOTHING }) },
        Scenario { befalls: &[0], ..moving("a move without its leader", Bounds { moves: 2, fences: 1, ..NOTHING }) },
    ]
}

use Before::{Rest, Take};
use Step::*;

/// Broker 3 was out, and its expansion is on its way to the controller.
const EXPANDING: &[Before] = &[Take(Fence(2)), Rest, Take(Unfence(2)), Take(Apply(0))];

/// The expansion is decided, and the answer lost.
const ANSWER_LOST: &[Before] =
    &[Take(Fence(2)), Rest, Take(Unfence(2)), Take(Apply(0)), Take(Decide(0)), Take(GiveUp(0))];

/// A copy of leader 1's expansion by 3 is on its way still; 2 led meanwhile, and 1 leads again. The session of 3 has ended.
const LEADS_AGAIN: &[Before] = &[
    Take(Fence(2)),
    Rest,
    Take(Unfence(2)),
    Take(Apply(0)),
    Take(GiveUp(0)),
    Take(Fence(2)),
    Take(Fence(0)),
    Rest,
    Take(Unfence(0)),
    Rest,
    Take(Prefer),
    Rest,
    Take(Break(2, 0, 0)),
    Take(Ended(2, 0, 0)),
    Take(Unfence(2)),
    Take(Apply(0)),
];

/// The same, but 2 leads still.
const LED_BEFORE: &[Before] = &[
    Take(Fence(2)),
    Rest,
    Take(Unfence(2)),
    Take(Apply(0)),
    Take(GiveUp(0)),
    Take(Fence(2)),
    Take(Fence(0)),
    Rest,
    Take(Unfence(0)),
    Rest,
    Take(Break(2, 1, 0)),
    Take(Ended(2, 1, 0)),
    Take(Unfence(2)),
    Take(Apply(1)),
];

/// Everybody is in sync, and broker 1 leads instead of the preferred one, 2.
const BACK_IN_SYNC: &[Before] = &[Take(Fence(1)), Rest, Take(Unfence(1)), Rest];

/// Broker 1 appended a record, and 2 leads without it.
const PREFERRED_WITHOUT: &[Before] =
    &[Take(Fence(1)), Rest, Take(Unfence(1)), Rest, Take(Append(0)), Take(Prefer), Take(Apply(1))];

/// Broker 1 appended a record, and 2, which has it, leads and appends none.
const PREFERRED_WITH: &[Before] =
    &[Take(Fence(1)), Rest, Take(Unfence(1)), Rest, Take(Append(0)), Take(Down(1, 0, 0)), Take(Prefer), Take(Apply(1))];

/// Broker 2 acknowledged a record of leader 1, then cut it for 3, which leads without it. Broker 1 has not heard of that.
const CUT_MEANWHILE: &[Before] = &[
    Take(Fence(2)),
    Rest,
    Take(Unfence(2)),
    Rest,
    Take(Append(0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Prefer),
    Take(Apply(2)),
    Take(Apply(1)),
    Take(Up(1, 2, 0)),
    Take(Down(1, 2, 0)),
];

/// A committed record, and all crash; the leader lost it.
const ALL_CRASH: &[Before] = &[Take(Append(0)), Rest, Take(Crash(0, 0)), Take(Crash(1, 1)), Take(Crash(2, 1))];

/// The same; 2 and 3, which have the record, are back, and have not said so.
const TWO_ARE_BACK: &[Before] = &[
    Take(Append(0)),
    Rest,
    Take(Crash(0, 0)),
    Take(Crash(1, 1)),
    Take(Crash(2, 1)),
    Take(Restart(1)),
    Take(Unfence(1)),
    Take(Restart(2)),
    Take(Unfence(2)),
];

/// Broker 3 stopped cleanly once; 1 and 3 had a committed record, 2 is out, and now 3 crashed and lost the record.
const OLD_PROOF: &[Before] = &[
    Take(Stop(2)),
    Take(Restart(2)),
    Rest,
    Take(Unfence(2)),
    Rest,
    Take(Append(0)),
    Rest,
    Take(Fence(1)),
    Rest,
    Take(Crash(2, 0)),
];

/// Two records are committed; of 3, which is out of the ISR, not even the first one was acknowledged.
const LATE_IN_A_WINDOW: &[Before] = &[
    Take(Append(0)),
    Take(Append(0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Timer(0)),
    Take(Decide(0)),
    Take(Answer(0)),
];

/// Broker 3 has one record of three that are committed, is out of the ISR, and opens anew.
const BEHIND: &[Before] = &[
    Take(Append(0)),
    Rest,
    Take(Break(2, 0, 0)),
    Take(Ended(2, 0, 0)),
    Take(Append(0)),
    Take(Append(0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Timer(0)),
    Take(Decide(0)),
    Take(Answer(0)),
];

/// Two committed records, and the first one is deleted everywhere.
const EMPTIED: &[Before] = &[Take(Append(0)), Rest, Take(Delete(0)), Take(Append(0)), Rest];

/// What takes minutes, optimised.
#[must_use]
pub fn large() -> Vec<Scenario> {
    let plain = Scenario::new;
    vec![
        plain("two records, an election, lag", Bounds { appends: 2, fences: 1, timers: 1, ..NOTHING }),
        plain("two elections", Bounds { appends: 1, fences: 2, ..NOTHING }),
        plain("elections, lag, lost answers", Bounds { appends: 1, fences: 1, timers: 1, losses: 1, ..NOTHING }),
        plain("lag and lost answers", Bounds { appends: 2, timers: 2, losses: 2, ..NOTHING }),
        plain("broken streams and an election", Bounds { appends: 1, fences: 1, breaks: 1, ..NOTHING }),
        plain("two crashes", Bounds { appends: 1, crashes: 2, ..NOTHING }),
        plain("a crash and an election", Bounds { appends: 1, crashes: 1, fences: 1, ..NOTHING }),
        plain("a crash and lag", Bounds { appends: 1, crashes: 1, timers: 1, ..NOTHING }),
        plain("a crash and a clean stop", Bounds { appends: 1, crashes: 1, stops: 1, ..NOTHING }),
        plain("deleted records and an election", Bounds { appends: 2, fences: 1, deletes: 1, ..NOTHING }),
        plain("deleted records and two crashes", Bounds { appends: 2, crashes: 2, deletes: 1, ..NOTHING }),
        plain("back to the preferred leader", Bounds { appends: 2, fences: 1, elections: 1, ..NOTHING }),
        plain("watermarks, two records", Bounds { appends: 2, fences: 1, progress: 2, ..NOTHING }),
        synced("two crashes, synced", Bounds { appends: 1, crashes: 2, ..NOTHING }),
        zones("zones that crash", Bounds { appends: 1, crashes: 2, ..NOTHING }),
        zones("zones and lag", Bounds { appends: 1, fences: 1, timers: 1, ..NOTHING }),
        zones_synced("zones that crash, synced", Bounds { appends: 1, crashes: 2, ..NOTHING }),
        moving("reassignment and an election", Bounds { appends: 1, moves: 2, fences: 1, ..NOTHING }),
        moving("reassignment and a crash", Bounds { appends: 1, moves: 1, crashes: 1, ..NOTHING }),
        second("a leader for a moment", Bounds { elections: 1, breaks: 1, ..MOMENT }).after(BACK_IN_SYNC),
        second("a leader for a record", Bounds { appends: 1, ..MOMENT }).after(PREFERRED_WITHOUT),
        plain("all crash", NOTHING).after(ALL_CRASH),
    ]
}

/// Rules that stand in for each other: a model that notices when all of them are switched off, and when one is left does not.
pub const STAND_INS: &[(&[Rule], &str)] = &[
    (&[Rule::R8BrokerEpoch, Rule::R64SessionBrokerEpoch], "a follower starts anew"),
    (&[Rule::R15LeaderEpoch, Rule::R15PartitionEpoch], "a proposal from before two elections"),
    (&[Rule::R15Sender, Rule::R15LeaderEpoch, Rule::R15PartitionEpoch], "a former leader's proposal"),
    (&[Rule::R16StayPendingOnRefusal, Rule::R16RollBackOnlyIfCertain], "an expansion whose answer is lost"),
];

/// Beyond what can be explored to the end: for random walks.
#[must_use]
pub fn endless() -> Vec<Scenario> {
    let all = Bounds {
        appends: 12,
        fences: 6,
        crashes: 6,
        stops: 3,
        timers: 8,
        breaks: 4,
        losses: 4,
        elections: 3,
        moves: 0,
        deletes: 3,
        progress: 6,
        skips: 4,
        decays: 3,
        gaps: 2,
        repeats: 2,
    };
    vec![
        Scenario::new("everything", all),
        synced("everything, synced", all),
        zones("everything, two zones", all),
        zones_synced("everything, two zones, synced", all),
        moving("everything, moving", Bounds { moves: 4, ..all }),
    ]
}

/// A leader goes, and somebody does not see that it led.
const MOMENT: Bounds = Bounds { fences: 1, skips: 1, ..NOTHING };

/// Broker 2 is the preferred leader.
fn second(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { replicas: &[2, 1, 3], befalls: &[1], ..Scenario::new(name, bounds) }
}

fn synced(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { sync_before_ack: true, ..Scenario::new(name, bounds) }
}

/// Two of the three brokers are in one zone.
fn zones(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { zones: 2, racks: ["a", "a", "b"], ..Scenario::new(name, bounds) }
}

/// The same, and records count once they are durable.
fn zones_synced(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { sync_before_ack: true, ..zones(name, bounds) }
}

/// Two replicas, on 1 and 2, that move to 3 and 1, and back.
fn moving(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { replicas: &[1, 2], targets: &[&[3, 1], &[1, 2], &[]], ..Scenario::new(name, bounds) }
}

/// Whether a rule is about what these models have: the sections 2 to 11, 18 and 19, without the quorum and without time.
#[must_use]
pub fn asks(rule: Rule) -> bool {
    let name = format!("{rule:?}");
    let number: u32 =
        name.trim_start_matches('R').chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    !(40..=56).contains(&number) && !matches!(number, 9 | 66 | 68 | 71 | 72 | 75 | 76)
}
