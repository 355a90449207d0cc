//! What clients did and saw, and what of it can be judged at once.
//!
//! An attempt whose outcome a client does not know stays *unknown*: its records may be there or not, once at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::invariants::{Attempts, Grants, Offsets, Owners};

/// A partition of the topic.
pub type Partition = i32;

/// One batch of a producer: its records are in the log together.
#[derive(Clone, Debug)]
pub struct Written {
    /// The records' values.
    pub values: Vec<Bytes>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a client knows of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing yet, or never.
    Unknown,
    /// Acknowledged at this offset; without one where the broker has forgotten where.
    Acknowledged(Option<i64>),
}

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    /// What each producer wrote, in order: by partition and producer.
    pub written: BTreeMap<(Partition, u64), Vec<Written>>,
    /// What was read at each offset: anybody who reads there must see the same.
    pub read: BTreeMap<(Partition, i64), (i32, Bytes)>,
    /// What must not be, in words.
    pub violations: Vec<String>,
    /// Records acknowledged so far.
    pub acknowledged: u64,
    /// Acknowledged records of each partition and producer, to see that all get on.
    pub progress: BTreeMap<(Partition, u64), u64>,
    /// Up to where each partition's reader is.
    pub positions: BTreeMap<Partition, i64>,
    /// Answers of clients that were errors, by their code.
    pub errors: BTreeMap<i16, u64>,
    /// What transactions wrote, as readers of committed records saw it.
    pub stable: BTreeMap<(Partition, i64), Bytes>,
    /// Up to where each of these partitions was read.
    pub stable_positions: BTreeMap<Partition, i64>,
    /// What was written last under each key of the compacted topic.
    pub keyed: BTreeMap<String, i32>,
    /// Partitions of these that were read to the end when nobody wrote any more.
    pub settled: BTreeMap<Partition, bool>,
    /// Offsets that groups committed.
    pub offsets: Offsets,
    /// What members of groups had.
    pub owners: Owners,
    /// Who may write under each transactional id.
    pub grants: Grants,
    /// What transactions were to do.
    pub attempts: Attempts,
    /// How often each of the others got on.
    pub steps: BTreeMap<String, u64>,
    /// Those of them who still work.
    pub working: u64,
    /// The offsets of groups after the last of them was done.
    pub audited: Option<BTreeMap<(String, Partition), i64>>,
    /// The topics are made.
    pub has_topics: bool,
    /// No more faults: replicas stay where they are.
    pub calm: bool,
    /// No new records are wanted.
    pub stopping: bool,
}

/// The history, as tasks share it.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<History>>);

impl Shared {
    /// The history itself.
    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that must not be.
    pub fn violation(&self, what: String) {
        self.lock().violations.push(what);
    }
}

impl History {
    /// The last batch of a producer is acknowledged.
    pub fn acknowledge(&mut self, producer: (Partition, u64), offset: Option<i64>) {
        let Some(last) = self.written.get_mut(&producer).and_then(|written| written.last_mut()) else { return };
        last.outcome = Outcome::Acknowledged(offset);
        let records = u64::try_from(last.values.len()).unwrap_or(0);
        self.acknowledged += records;
        *self.progress.entry(producer).or_default() += records;
    }

    /// Below that everything was read, and is no producer's last batch.
    #[must_use]
    pub fn deletable(&self, partition: Partition) -> i64 {
        let last = |written: &Vec<Written>| {
            let offsets = written.iter().rev().filter_map(|batch| match batch.outcome {
                Outcome::Acknowledged(offset) => offset,
                Outcome::Unknown => None,
            });
            offsets.into_iter().next().unwrap_or(0)
        };
        let read = self.positions.get(&partition).copied().unwrap_or(0);
        let of_partition = self.written.range((partition, 0)..=(partition, u64::MAX));
        of_partition.map(|(_, written)| last(written)).fold(read, i64::min)
    }

    /// One of the others got on.
    pub fn step(&mut self, who: &str) {
        *self.steps.entry(who.to_owned()).or_default() += 1;
    }

    /// A record of a transaction was read at `offset` of `partition` by who reads committed ones only.
    pub fn saw_stable(&mut self, partition: Partition, offset: i64, value: &Bytes) {
        let first = self.stable.entry((partition, offset)).or_insert_with(|| value.clone());
        if *first != *value {
            let what = format!("offset {offset} of {partition} was {} and is {}", name(first), name(value));
            self.violations.push(what);
        }
        self.violations.extend(self.attempts.seen(value));
    }

    /// A record was read at `offset` of `partition`, written in `epoch`.
    pub fn saw(&mut self, partition: Partition, offset: i64, epoch: i32, value: &Bytes) {
        let first = self.read.entry((partition, offset)).or_insert_with(|| (epoch, value.clone()));
        if first.0 != epoch || first.1 != *value {
            let what = format!(
                "offset {offset} of partition {partition} was {} of epoch {} and is {} of epoch {epoch}",
                name(&first.1),
                first.0,
                name(value)
            );
            self.violations.push(what);
        }
    }
}

/// A value as it is told: its beginning names it.
#[must_use]
pub fn name(value: &Bytes) -> String {
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}
