//! What a model explores: a partition, and how much of what may happen.

use model::Rules;

use crate::prepared;
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
    pub(crate) fn after(self, before: &'static [Before]) -> Self {
        Self { before, ..self }
    }
}

pub(crate) const NOTHING: Bounds = Bounds {
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
    .chain(prepared::small())
    .collect()
}

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
    ]
    .into_iter()
    .chain(prepared::large())
    .collect()
}

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
pub(crate) fn moving(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { replicas: &[1, 2], targets: &[&[3, 1], &[1, 2], &[]], ..Scenario::new(name, bounds) }
}
