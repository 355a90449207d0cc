//! A model of transactions (`R43` to `R51`): the coordinator's shard, the producers' tables of two partitions, two producers
//! with one transactional id, and what a network does to their requests.
//!
//! The cores are the very ones: `coordinator::TransactionShard`, `replication::producers::ProducerTable`. What a broker does
//! between them is written down here as `broker::partition::transactions` does it: a first batch waits for its verification
//! under a guard, a marker is tried until the high watermark covers it.
//!
//! Requests arrive late, twice, or never; answers get lost; coordinator and leaders move, and take what was not replicated
//! with them; a transaction's time runs out at any moment. A client of version 2 adds its partitions by writing (KIP-890).
//!
//! What is left out: a coordinator that goes on after it lost its leadership (its last messages still travel), replicas as
//! such (what is above the high watermark may be gone after a failover), offsets in transactions (`R49`: the shards of groups
//! have random models of their own, in `coordinator`). A late copy of a marker of the same coordinator is taken for a client of
//! version 2 only: before, nothing tells it from the next transaction's, as in Kafka.
//!
//! Reading order: this file (bounds), [`world`] (what there is), `steps` (what may happen), `parts` (coordinator, leaders and
//! clients), `check` (what must hold).

pub mod world;

mod check;
mod parts;
mod steps;

use std::sync::atomic::{AtomicU64, Ordering};

use model::Rules;

use crate::search::Setting;
use world::{Step, Transactions, Violation};

/// How often each thing may happen on one path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    /// Transactions of each client.
    pub transactions: u8,
    /// Requests that arrive once more, and clients that ask again although the first request is on its way.
    pub copies: u8,
    /// Answers that are lost.
    pub losses: u8,
    /// Coordinators that move.
    pub coordinators: u8,
    /// Partitions whose leader moves.
    pub leaders: u8,
    /// Transactions whose time runs out.
    pub timeouts: u8,
    /// Writes of the coordinator that are refused.
    pub refusals: u8,
    /// Clients that ask for an epoch although they have one (KIP-360).
    pub recoveries: u8,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The transaction version of each client; they have one transactional id.
    pub clients: &'static [i16],
    /// How many partitions they write to.
    pub partitions: u8,
    /// The epoch that the id has before the first of them comes; none where nobody had it.
    pub first_epoch: Option<i16>,
    /// How much may happen.
    pub bounds: Bounds,
    /// Which rules hold.
    pub rules: Rules,
}

impl Scenario {
    /// The same, with these rules.
    #[must_use]
    pub fn with(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }
}

const NOTHING: Bounds = Bounds {
    transactions: 1,
    copies: 0,
    losses: 0,
    coordinators: 0,
    leaders: 0,
    timeouts: 0,
    refusals: 0,
    recoveries: 0,
};

fn scenario(name: &'static str, clients: &'static [i16], partitions: u8, bounds: Bounds) -> Scenario {
    Scenario { name, clients, partitions, first_epoch: None, bounds, rules: Rules::all() }
}

/// What is explored to the end within seconds, also by a program that is not optimised.
#[must_use]
pub fn small() -> Vec<Scenario> {
    vec![
        scenario("one producer", &[2], 2, NOTHING),
        scenario("one producer of version 1", &[1], 2, NOTHING),
        scenario("two transactions", &[2], 1, Bounds { transactions: 2, copies: 1, ..NOTHING }),
        scenario("two transactions of version 1", &[1], 1, Bounds { transactions: 2, copies: 1, ..NOTHING }),
        scenario("a fence", &[2, 2], 1, NOTHING),
        scenario("a fence of version 1", &[1, 1], 1, NOTHING),
        scenario("a timeout", &[2], 2, Bounds { timeouts: 1, ..NOTHING }),
        scenario("a timeout of version 1", &[1], 2, Bounds { timeouts: 1, ..NOTHING }),
        scenario("another coordinator", &[2], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("another coordinator of version 1", &[1], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("another leader", &[2], 1, Bounds { leaders: 1, ..NOTHING }),
        scenario("another leader of version 1", &[1], 1, Bounds { leaders: 1, ..NOTHING }),
        scenario("a lost answer", &[2], 1, Bounds { losses: 1, timeouts: 1, ..NOTHING }),
        scenario("refused writes", &[2], 1, Bounds { refusals: 2, ..NOTHING }),
        Scenario { first_epoch: Some(i16::MAX - 3), ..scenario("the last epochs", &[2], 1, two()) },
    ]
}

fn two() -> Bounds {
    Bounds { transactions: 2, ..NOTHING }
}

/// What takes minutes, optimised.
#[must_use]
pub fn large() -> Vec<Scenario> {
    let two = two();
    vec![
        scenario("a fence, two partitions", &[2, 2], 2, NOTHING),
        scenario("a fence of version 1, two partitions", &[1, 1], 2, NOTHING),
        scenario("both versions", &[1, 2], 1, Bounds { copies: 1, ..NOTHING }),
        scenario("a fence and another coordinator", &[2, 2], 1, Bounds { coordinators: 1, ..NOTHING }),
        scenario("two transactions, late copies", &[2], 1, Bounds { copies: 2, losses: 1, ..two }),
        scenario("two transactions and a timeout", &[2], 2, Bounds { timeouts: 1, copies: 1, ..two }),
        scenario("two of version 1, another coordinator", &[1], 1, Bounds { coordinators: 1, copies: 2, ..two }),
        scenario("a producer that recovers", &[2, 2], 1, Bounds { recoveries: 2, ..NOTHING }),
    ]
}

/// Beyond what can be explored to the end: for random walks.
#[must_use]
pub fn endless() -> Vec<Scenario> {
    let all = Bounds {
        transactions: 5,
        copies: 8,
        losses: 4,
        coordinators: 3,
        leaders: 4,
        timeouts: 3,
        refusals: 3,
        recoveries: 3,
    };
    vec![
        scenario("transactions, everything", &[2, 2], 2, all),
        scenario("transactions, everything of version 1", &[1, 1], 2, all),
        scenario("transactions, everything of both", &[1, 2], 2, all),
        Scenario { first_epoch: Some(i16::MAX - 6), ..scenario("transactions, the last epochs", &[2, 2], 2, all) },
    ]
}

/// Whether a rule is about what these models have: sections 12 to 14 of the rules, but for offsets in transactions.
#[must_use]
pub fn asks(rule: model::Rule) -> bool {
    let name = format!("{rule:?}");
    ["R40", "R43", "R44", "R45", "R46", "R47", "R48", "R50", "R51"].iter().any(|section| name.starts_with(section))
}

/// How often things happened, over all steps that were explored: a run in which nothing happened proves nothing.
#[derive(Debug, Default)]
pub struct Tally {
    /// Transactions that a client was told are committed.
    pub committed: AtomicU64,
    /// And aborted.
    pub aborted: AtomicU64,
    /// Clients that were fenced.
    pub fenced: AtomicU64,
    /// Batches that waited for a verification and were refused.
    pub unverified: AtomicU64,
    /// Coordinators that moved.
    pub coordinators: AtomicU64,
    /// Records and markers that a leader lost with its leadership.
    pub cut: AtomicU64,
}

impl Setting for Scenario {
    type World = Transactions;
    type Step = Step;
    type Violation = Violation;
    type Tally = Tally;

    fn name(&self) -> &'static str {
        self.name
    }

    fn bounds(&self) -> String {
        format!("{:?}; clients: {:?}, partitions: {}", self.bounds, self.clients, self.partitions)
    }

    fn under(self, rules: Rules) -> Self {
        self.with(rules)
    }

    fn begin(&self) -> Transactions {
        Transactions::new(self)
    }

    fn possible(&self, world: &Transactions, steps: &mut Vec<Step>) {
        world.possible(steps);
    }

    fn step(&self, world: &Transactions, step: Step) -> Option<Transactions> {
        world.step(step, self)
    }

    fn violation(world: &Transactions) -> Option<&Violation> {
        world.violation.as_ref()
    }

    fn panicked(world: &Transactions, text: String) -> Transactions {
        let mut next = world.clone();
        next.violate(Violation::Panicked(text));
        next
    }

    fn is_ordinary(step: Step) -> bool {
        step.is_ordinary()
    }

    fn count(tally: &Tally, before: &Transactions, after: &Transactions) {
        let add = |counter: &AtomicU64, times: usize| {
            counter.fetch_add(u64::try_from(times).unwrap_or(0), Ordering::Relaxed);
        };
        let told = |world: &Transactions, commit| world.told.values().filter(|told| **told == commit).count();
        let fenced = |world: &Transactions| world.clients.iter().filter(|client| client.fenced).count();
        add(&tally.committed, told(after, true) - told(before, true));
        add(&tally.aborted, told(after, false) - told(before, false));
        add(&tally.fenced, fenced(after) - fenced(before));
        add(&tally.unverified, usize::from(after.unverified - before.unverified));
        add(&tally.coordinators, usize::from(after.coordinator.epoch != before.coordinator.epoch));
        let entries = |world: &Transactions| world.parts.iter().map(|part| part.log.len()).sum::<usize>();
        add(&tally.cut, entries(before).saturating_sub(entries(after)));
    }
}
