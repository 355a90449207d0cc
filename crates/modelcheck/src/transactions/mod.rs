//! A model of transactions (`R43` to `R51`): the coordinator's shard, the producers' tables of partitions, the shard of a
//! group whose offset is committed in transactions, two producers with one transactional id, and what a network does to their
//! requests.
//!
//! The cores are the very ones: `coordinator::TransactionShard`, `coordinator::GroupShard`,
//! `replication::producers::ProducerTable`. What a broker does between them is written down here as it does it: a first batch
//! waits for its verification under a guard, a marker is tried until the high watermark covers it.
//!
//! Requests arrive late, twice, or never; answers get lost; coordinator and leaders move, and take what was not replicated
//! with them; a transaction's time runs out at any moment. A client of version 2 adds its partitions by writing (KIP-890).
//! Nothing is bounded but what befalls: a client that is told to come again does so for ever, and comes to the same state.
//!
//! What is left out: a coordinator that goes on after it lost its leadership (its last messages still travel), replicas as
//! such (what is above the high watermark may be gone after a failover), the members of groups, ids that expire. Late copies
//! of what nothing tells from the next transaction's before KIP-890 (EndTxn, AddPartitionsToTxn, a marker of the same
//! coordinator) come for clients of version 2 only: there, Kafka has these faults, and so has whoever speaks its protocol.
//!
//! Reading order: this file (bounds), [`world`] (what there is), `steps` (what may happen), `coordinator`, `leaders`, `groups`
//! and `clients` (what each does), `check` (what must hold), `same` (which states are one).

pub mod world;

mod check;
mod clients;
mod coordinator;
mod groups;
mod leaders;
mod same;
mod scenario;
mod steps;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::search::Setting;
pub use scenario::{Bounds, Scenario, asks, endless, large, small};
use world::{Step, Transactions, Violation};

/// How often things happened, over all steps that were explored: a run in which nothing happened proves nothing.
#[derive(Debug, Default)]
pub struct Tally {
    /// Transactions that were committed.
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
    /// Changes of the group's offset.
    pub offsets: AtomicU64,
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
        let offsets = if self.offsets { " and offsets" } else { "" };
        format!("{:?}; clients: {:?}, partitions: {}{offsets}", self.bounds, self.clients, self.partitions)
    }

    fn under(self, rules: model::Rules) -> Self {
        self.with(rules)
    }

    fn begin(&self) -> Transactions {
        Transactions::new(self)
    }

    fn possible(&self, world: &Transactions, steps: &mut Vec<Step>) {
        world.possible(self, steps);
    }

    fn step(&self, world: &Transactions, step: Step) -> Option<Transactions> {
        Some(world.step(step, self))
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
        let add = |counter: &AtomicU64, times: u64| {
            counter.fetch_add(times, Ordering::Relaxed);
        };
        let count = |many: usize| u64::try_from(many).unwrap_or(0);
        let decided = |world: &Transactions, commit| world.decided.values().filter(|is| **is == commit).count();
        let stopped = |world: &Transactions| world.clients.iter().filter(|client| client.stopped).count();
        let offset = |world: &Transactions| world.parts.last()?.group.as_ref().map(|group| group.offset());
        add(&tally.committed, count(decided(after, true).saturating_sub(decided(before, true))));
        add(&tally.aborted, count(decided(after, false).saturating_sub(decided(before, false))));
        add(&tally.fenced, count(stopped(after).saturating_sub(stopped(before))));
        add(&tally.unverified, after.happened.unverified - before.happened.unverified);
        add(&tally.coordinators, u64::from(after.coordinator.epoch != before.coordinator.epoch));
        add(&tally.cut, after.happened.cut - before.happened.cut);
        add(&tally.offsets, u64::from(offset(before) != offset(after)));
    }
}
