//! Transactions are atomic and isolated (`R43` to `R51`): who reads committed records sees all of a transaction or nothing, all
//! of one whose commit was acknowledged, and nothing of one that was aborted, or whose commit nobody has asked for yet. And as
//! a transaction takes its input's offsets with it, the committed ones take each input once, without a gap, up to the offset
//! that is committed.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{History, name};
use crate::workload::TRANSFORM;

/// A transaction: its input's partition and its number there.
pub type Id = (i32, u64);

/// What a transaction was to do.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// The inputs: from this offset on.
    pub first: i64,
    /// Up to this one.
    pub end: i64,
    /// Whether it was asked to commit (or to abort).
    pub asked: Option<bool>,
    /// What was acknowledged.
    pub told: Option<bool>,
}

/// See the module: all transactions.
#[derive(Debug, Default)]
pub struct Attempts(BTreeMap<Id, Attempt>);

/// The value that a transaction writes for one of its inputs.
#[must_use]
pub fn value((partition, number): Id, input: i64) -> Bytes {
    Bytes::from(format!("{partition}-{number}-{input} "))
}

fn parse(value: &Bytes) -> Option<(Id, i64)> {
    let name = name(value);
    let mut parts = name.split('-');
    let id = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((id, parts.next()?.parse().ok()?))
}

impl Attempts {
    /// A new transaction with these inputs.
    pub fn begin(&mut self, partition: i32, first: i64, end: i64) -> Id {
        let last = self.0.range((partition, 0)..=(partition, u64::MAX)).next_back();
        let id = (partition, last.map_or(0, |((_, number), _)| number + 1));
        self.0.insert(id, Attempt { first, end, asked: None, told: None });
        id
    }

    /// It is asked to commit, or to abort.
    pub fn asked(&mut self, id: Id, commit: bool) {
        if let Some(attempt) = self.0.get_mut(&id) {
            attempt.asked = Some(commit);
        }
    }

    /// That is acknowledged.
    pub fn told(&mut self, id: Id, commit: bool) {
        if let Some(attempt) = self.0.get_mut(&id) {
            attempt.told = Some(commit);
        }
    }

    /// Who reads committed records has seen a value.
    #[must_use]
    pub fn seen(&self, value: &Bytes) -> Option<String> {
        let attempt = parse(value).and_then(|(id, _)| self.0.get(&id));
        let committed = attempt.is_some_and(|attempt| attempt.asked == Some(true));
        (!committed).then(|| format!("{} is read as committed; its transaction: {attempt:?}", name(value)))
    }
}

/// Compares what transactions were to do with what was read of them, and with the offsets that are committed.
#[must_use]
pub fn check_transactions(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    let mut seen: BTreeMap<Id, BTreeMap<i64, u64>> = BTreeMap::new();
    for value in history.stable.values() {
        match parse(value) {
            Some((id, input)) => *seen.entry(id).or_default().entry(input).or_default() += 1,
            None => violations.push(format!("{} is no transaction's", name(value))),
        }
    }
    let nothing = BTreeMap::new();
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    for (id, attempt) in &history.attempts.0 {
        let found = seen.get(id).unwrap_or(&nothing);
        violations.extend(judge(attempt, found).map(|what| format!("transaction {id:?}: {what}; {attempt:?}")));
        if !found.is_empty() {
            let next = next.entry(id.0).or_default();
            if attempt.first != *next {
                violations.push(format!("transaction {id:?} begins at {}, {next} is next", attempt.first));
            }
            *next = attempt.end;
        }
    }
    for (partition, next) in next {
        let committed = history.audited.as_ref().and_then(|offsets| offsets.get(&(TRANSFORM.to_owned(), partition)));
        if committed != Some(&next) {
            violations.push(format!("the input {partition} is transformed to {next}; committed is {committed:?}"));
        }
    }
    violations
}

fn judge(attempt: &Attempt, found: &BTreeMap<i64, u64>) -> Option<String> {
    let whole = (attempt.first..attempt.end).all(|input| found.get(&input) == Some(&1));
    let count = found.values().sum::<u64>();
    let is_whole = whole && i64::try_from(count) == Ok(attempt.end - attempt.first);
    match (count, attempt.told) {
        (0, Some(true)) => Some("it was committed, and is lost".to_owned()),
        (0, _) => None,
        (_, Some(false)) => Some("it was aborted, and is read".to_owned()),
        _ => (!is_whole).then(|| format!("it is torn: {found:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outcomes that were told, what is read of inputs (by transaction), the committed offset, and a part of what is said.
    type Case = (&'static [Option<bool>], &'static [(u64, i64)], i64, &'static str);

    #[test]
    fn each_anomaly_is_named() {
        // Each transaction takes two inputs, from where the last that is not aborted ended.
        const CASES: [Case; 9] = [
            (&[Some(true), None, Some(true)], &[(0, 0), (0, 1), (2, 2), (2, 3)], 4, ""),
            (&[Some(true), Some(false)], &[(0, 0), (0, 1)], 2, ""),
            (&[Some(true)], &[(0, 0)], 2, "torn"),
            (&[None], &[(0, 1)], 2, "torn"),
            (&[Some(true)], &[(0, 0), (0, 1), (0, 1)], 2, "torn"),
            (&[Some(true)], &[], -1, "lost"),
            (&[Some(false)], &[(0, 0), (0, 1)], 2, "aborted"),
            (&[None, Some(true)], &[(0, 0), (0, 1), (1, 0), (1, 1)], 2, "is next"),
            (&[Some(true)], &[(0, 0), (0, 1)], 0, "committed is"),
        ];
        for (told, read, committed, expected) in CASES {
            let found = check_transactions(&history(told, read, committed)).join("; ");
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{told:?} {read:?}: {found}");
        }
    }

    #[test]
    fn what_nobody_has_asked_to_commit_must_not_be_read() {
        let mut attempts = Attempts::default();
        let id = attempts.begin(1, 0, 2);
        assert!(attempts.seen(&value(id, 0)).is_some());
        attempts.asked(id, false);
        assert!(attempts.seen(&value(id, 0)).is_some());
        attempts.asked(id, true);
        assert_eq!(attempts.seen(&value(id, 0)), None);
        assert!(attempts.seen(&value((1, 7), 0)).is_some());
    }

    fn history(told: &[Option<bool>], read: &[(u64, i64)], committed: i64) -> History {
        let mut history = History::default();
        let mut first = 0;
        for outcome in told {
            let id = history.attempts.begin(0, first, first + 2);
            if let Some(commit) = outcome {
                history.attempts.told(id, *commit);
            }
            first += if *outcome == Some(true) { 2 } else { 0 };
        }
        for (offset, (number, input)) in (0..).zip(read) {
            history.stable.insert((0, offset), value((0, *number), *input));
        }
        history.audited = Some(BTreeMap::from([((TRANSFORM.to_owned(), 0), committed)]));
        history
    }
}
