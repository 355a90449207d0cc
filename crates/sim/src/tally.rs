//! What happened in a run how often: a run in which too little happened says nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use broker::{BrokerMetrics, PartitionMetrics};
use model::{Incarnation, TopicPartition};

use crate::net::HostId;

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Processes started.
    pub starts: u64,
    /// Processes that ended by themselves: their disk, or their controller.
    pub ended: u64,
    /// Processes that were started anew because they went on without one of their log directories.
    pub repaired: u64,
    /// Logs that became shorter.
    pub truncations: u64,
    /// Images compared with the observer's.
    pub images: u64,
    /// High watermarks that were found in two zones.
    pub zoned: u64,
    ends: BTreeMap<(HostId, TopicPartition), i64>,
    cleanings: BTreeMap<(HostId, Incarnation), u64>,
    refused: BTreeMap<(HostId, Incarnation), u64>,
    snapshots: BTreeMap<(HostId, Incarnation), u64>,
}

impl Tally {
    /// A fault of this kind began.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Looks at a replica.
    pub fn look(&mut self, node: HostId, replica: &PartitionMetrics) {
        let before = self.ends.insert((node, replica.partition), replica.log_end);
        self.truncations += u64::from(before.is_some_and(|before| replica.log_end < before));
    }

    /// What a node does not have any more may come back with less.
    pub fn forget_others(&mut self, node: HostId, replicas: &[PartitionMetrics]) {
        let has = |id: TopicPartition| replicas.iter().any(|replica| replica.partition == id);
        self.ends.retain(|(of, id), _| *of != node || has(*id));
    }

    /// Looks at what a broker counts.
    pub fn look_at_broker(&mut self, node: HostId, incarnation: Incarnation, metrics: &BrokerMetrics) {
        self.refused.insert((node, incarnation), metrics.isr.failed);
        self.cleanings.insert((node, incarnation), metrics.cleaner.cleanings);
        self.snapshots.insert((node, incarnation), metrics.metadata_snapshots);
    }

    /// Logs that were compacted.
    #[must_use]
    pub fn cleanings(&self) -> u64 {
        self.cleanings.values().sum()
    }

    /// How often brokers were told all of the metadata anew.
    #[must_use]
    pub fn snapshots(&self) -> u64 {
        self.snapshots.values().sum()
    }

    /// ISR changes that were refused, or whose answer was lost.
    #[must_use]
    pub fn isr_failed(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The way that it took.
    pub trace: u64,
    /// How long it lasted, in milliseconds of its own time.
    pub ms: u64,
    /// How often what happened.
    pub counts: BTreeMap<String, u64>,
    /// What must not be.
    pub violations: Vec<String>,
    /// What did not happen.
    pub too_little: Vec<String>,
}

impl Report {
    /// Whether it shows what it should.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.too_little.is_empty()
    }

    /// One line that a program can read.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!("seed={} trace={:016x} ms={}", self.seed, self.trace, self.ms);
        for (name, count) in &self.counts {
            // Writing to a string does not fail.
            let _ = write!(line, " {name}={count}");
        }
        line
    }
}
