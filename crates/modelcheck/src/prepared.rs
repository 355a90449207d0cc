//! Scenarios in which little happens, after much has happened: what a single rule guards against, in few steps.

use crate::scenario::{
    Before::{self, Rest, Take},
    Bounds, NOTHING, Scenario, moving,
};
use crate::world::Step::*;

/// What is explored to the end within a second, also by a program that is not optimised.
pub(crate) fn small() -> Vec<Scenario> {
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
        Scenario {
            sync_before_ack: true,
            ..plain("broken streams, synced", Bounds { appends: 1, breaks: 1, ..NOTHING })
        },
        Scenario { window_bytes: 1, ..plain("a window of one record", Bounds { appends: 2, ..NOTHING }) },
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
        Scenario::new("a late answer", Bounds { appends: 1, breaks: 1, ..NOTHING }).after(LATE_ANSWER),
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
    ]
}

fn of_moves() -> Vec<Scenario> {
    let moving = |name, bounds| Scenario { targets: &[&[3, 1], &[]], ..moving(name, bounds) };
    vec![
        Scenario { min_isr: 1, ..moving("a move where one is enough", Bounds { moves: 1, ..NOTHING }) },
        Scenario { befalls: &[0], ..moving("a move without its leader", Bounds { moves: 2, fences: 1, ..NOTHING }) },
    ]
}

/// What takes some seconds, optimised.
pub(crate) fn large() -> Vec<Scenario> {
    vec![
        second("a leader for a moment", Bounds { elections: 1, breaks: 1, ..MOMENT }).after(BACK_IN_SYNC),
        second("a leader for a record", Bounds { appends: 1, ..MOMENT }).after(PREFERRED_WITHOUT),
        Scenario::new("all crash", NOTHING).after(ALL_CRASH),
        Scenario { befalls: &[0], keeps_proof: true, ..Scenario::new("an old proof", Bounds { fences: 1, ..NOTHING }) }
            .after(OLD_PROOF),
    ]
}

/// A leader goes, and somebody does not see that it led.
const MOMENT: Bounds = Bounds { fences: 1, skips: 1, ..NOTHING };

/// Broker 2 is the preferred leader.
fn second(name: &'static str, bounds: Bounds) -> Scenario {
    Scenario { replicas: &[2, 1, 3], befalls: &[1], ..Scenario::new(name, bounds) }
}

/// Broker 3 was out, and its expansion is on its way to the controller.
const EXPANDING: &[Before] = &[Take(Fence(2)), Rest, Take(Unfence(2)), Take(Apply(0))];

/// The expansion is decided, and the answer lost.
const ANSWER_LOST: &[Before] =
    &[Take(Fence(2)), Rest, Take(Unfence(2)), Take(Apply(0)), Take(Decide(0)), Take(GiveUp(0))];

/// Broker 3 was late and is out by leader 1's first proposal, whose answer comes after the metadata; the second one lets 3 in
/// again, and is on its way to the controller.
const LATE_ANSWER: &[Before] = &[
    Take(Append(0)),
    Take(Down(1, 0, 0)),
    Take(Up(1, 0, 0)),
    Take(Timer(0)),
    Take(Decide(0)),
    Take(Apply(0)),
    Take(Down(2, 0, 0)),
    Take(Up(2, 0, 0)),
];

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
