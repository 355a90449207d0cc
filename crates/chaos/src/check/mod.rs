//! The classes of anomalies, and the verdict over a history.
//!
//! Nothing here believes a client's word for more than it says: `unknown` is what may have happened once, or not.

mod log;
mod offsets;
mod order;
mod polls;
mod replicas;
mod transactions;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::event::{Isolation, Outcome, TransactionEnd};
use crate::history::{History, HistoryError, Produce};

/// How many anomalies of a class are told; all are counted.
const TOLD_MAX: usize = 20;

/// What may be wrong with a run. The first nine are the classes of the public Kafka workload of Jepsen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A read_committed reader saw a record of an aborted transaction, or anybody one that was refused before it was sent.
    #[serde(rename = "G1a")]
    AbortedRead,
    /// An acknowledged record is not in the log.
    LostWrite,
    /// An acknowledged record is in the log, and the group that read past it was never given it.
    Unseen,
    /// A record of an idempotent producer is in the log twice.
    Duplicate,
    /// Two records were seen at one offset, or one at another offset than it was acknowledged at.
    InconsistentOffsets,
    /// A consumer was not given a record between two others.
    PollSkip,
    /// A consumer was given offsets that go back, within one assignment.
    NonmonotonicPoll,
    /// The records of one producer are not in the order of sending.
    NonmonotonicSend,
    /// A read_committed consumer saw a record before its transaction was told to commit.
    PrecommittedRead,
    /// Of one transaction some records are seen, and some are not.
    TornTransaction,
    /// A record that was sent after another one was acknowledged has a lower offset.
    StaleOffset,
    /// An offset below the high watermark holds nothing, or the final read was not in order.
    Hole,
    /// Somebody saw a record that nobody sent.
    Phantom,
    /// A group's offset is below one that it had before.
    CommitWentBack,
    /// A group has an offset that nobody committed.
    CommitInvented,
    /// Two members were given records of one partition in one generation.
    TwoOwners,
    /// Two replicas in sync differ below the high watermark.
    DivergedReplica,
    /// A replica in sync ends below the high watermark.
    ShortReplica,
    /// An acknowledged record is not at its offset in a replica in sync, or more than once.
    NotInReplica,
}

impl Class {
    /// Its name, as in the public literature.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            other => unreachable!("a class is a word: {other:?}"),
        }
    }
}

/// What was found of one class.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Found {
    /// How often.
    pub count: usize,
    /// Some of them.
    pub told: Vec<String>,
}

/// How much a history holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Figures {
    /// Records that were acknowledged.
    pub acknowledged: usize,
    /// Records of unknown outcome.
    pub unknown: usize,
    /// Records that were never sent.
    pub failed: usize,
    /// Records that the final reads found.
    pub read_back: usize,
    /// Records that consumers were given.
    pub polled: usize,
    /// Commits of groups that were acknowledged.
    pub commits: usize,
    /// Transactions that were committed.
    pub committed: usize,
    /// Transactions that were aborted.
    pub aborted: usize,
    /// Transactions whose end nobody knows.
    pub undecided: usize,
    /// Faults.
    pub faults: usize,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Verdict {
    /// What was found; nothing is what is hoped for.
    pub anomalies: BTreeMap<Class, Found>,
    /// In how much.
    pub figures: Figures,
}

impl Verdict {
    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.anomalies.is_empty()
    }

    /// How often a class was found.
    pub fn count(&self, class: Class) -> usize {
        self.anomalies.get(&class).map_or(0, |found| found.count)
    }

    fn add(&mut self, class: Class, text: impl FnOnce() -> String) {
        let found = self.anomalies.entry(class).or_default();
        found.count += 1;
        if found.told.len() < TOLD_MAX {
            found.told.push(text());
        }
    }
}

/// Judges a history; an error where it cannot be judged, or says too little to be.
pub fn check(history: &History) -> Result<Verdict, HistoryError> {
    let facts = Facts::of(history)?;
    let mut verdict = Verdict { anomalies: BTreeMap::new(), figures: figures(history) };
    if verdict.figures.acknowledged == 0 {
        return Err(HistoryError::TooLittle("no record was acknowledged".to_owned()));
    }
    log::check(&facts, &mut verdict);
    offsets::check(&facts, &mut verdict);
    order::check(&facts, &mut verdict);
    polls::check(&facts, &mut verdict);
    transactions::check(&facts, &mut verdict);
    replicas::check(&facts, &mut verdict);
    Ok(verdict)
}

fn figures(history: &History) -> Figures {
    let records = |outcome| history.produces.iter().filter(|p| p.outcome == outcome).count();
    let ended = |end| history.transactions.values().filter(|t| t.end == end).count();
    Figures {
        acknowledged: records(Outcome::Ok),
        unknown: records(Outcome::Unknown),
        failed: records(Outcome::Failed),
        read_back: history.all_partitions().map(|p| history.log(p, Isolation::ReadUncommitted).len()).sum(),
        polled: history.polls.len(),
        commits: history.commits.iter().filter(|commit| commit.outcome == Outcome::Ok).count(),
        committed: ended(TransactionEnd::Committed),
        aborted: ended(TransactionEnd::Aborted),
        undecided: ended(TransactionEnd::Unknown),
        faults: history.faults.len(),
    }
}

/// A history with what every check looks up in it.
struct Facts<'a> {
    history: &'a History,
    /// Place of the produce of a value in [`History::produces`].
    sent: Vec<Option<u32>>,
    /// The final read as readers of everything see it: value, partition, offset, in this order.
    places: Vec<(u32, u32, i64)>,
}

impl<'a> Facts<'a> {
    fn of(history: &'a History) -> Result<Facts<'a>, HistoryError> {
        let mut sent = vec![None; history.values.len()];
        for (index, produce) in history.produces.iter().enumerate() {
            let index = u32::try_from(index).expect("a history has fewer than 2^32 records");
            if sent[at(produce.value)].replace(index).is_some() {
                let value = history.value(produce.value);
                return Err(HistoryError::Contradiction(format!("{value} was sent twice")));
            }
            if !history.ends.contains_key(&produce.partition) {
                return Err(HistoryError::NotReadBack(history.place(produce.partition)));
            }
        }
        let mut places = Vec::new();
        for partition in history.all_partitions() {
            let log = history.log(partition, Isolation::ReadUncommitted);
            places.extend(log.iter().map(|(offset, value)| (*value, partition, *offset)));
        }
        places.sort_unstable();
        Ok(Facts { history, sent, places })
    }

    fn sent(&self, value: u32) -> Option<&'a Produce> {
        self.sent[at(value)].map(|index| &self.history.produces[at(index)])
    }

    /// Where the final read found a value.
    fn places(&self, value: u32) -> &[(u32, u32, i64)] {
        let from = self.places.partition_point(|(other, ..)| *other < value);
        let to = self.places.partition_point(|(other, ..)| *other <= value);
        &self.places[from..to]
    }

    /// How the transaction of a record ended; a record of none counts as committed.
    fn end_of(&self, produce: &Produce) -> TransactionEnd {
        let Some(transaction) = produce.transaction else { return TransactionEnd::Committed };
        // One that nobody ended is aborted in time; until then nobody sees it.
        self.history.transactions.get(&transaction).map_or(TransactionEnd::Aborted, |t| t.end)
    }

    fn places_text(&self, places: &[(u32, u32, i64)]) -> String {
        if places.is_empty() {
            return "nowhere".to_owned();
        }
        let text = |(_, partition, offset): &(u32, u32, i64)| format!("{} at {offset}", self.history.place(*partition));
        places.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

fn at(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit")
}
