//! An acknowledged record is never lost, and stands where it was said to stand, once; an idempotent producer's records have
//! neither duplicates nor gaps, in the order in which they were written (`R20`, `R40`; the project's reason to exist).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{History, Outcome, Written, name};

/// Compares what was written with what was read of the whole log.
#[must_use]
pub fn check_written(history: &History) -> Vec<String> {
    let mut violations = Vec::new();
    let mut places: BTreeMap<&Bytes, Vec<i64>> = BTreeMap::new();
    for ((_, offset), (_, value)) in &history.read {
        places.entry(value).or_default().push(*offset);
    }
    let mut known = 0;
    for ((partition, producer), written) in &history.written {
        let whose = format!("producer {producer} of partition {partition}");
        let mut last = -1;
        for batch in written {
            let (found, at) = check_batch(&places, batch, &mut last);
            violations.extend(found.map(|what| format!("{whose}: {what}")));
            known += at;
        }
    }
    if known != history.read.len() {
        violations.push(format!("{} records are in the log that nobody wrote", history.read.len() - known));
    }
    violations
}

/// Says what is wrong, and how many of its records there are.
fn check_batch(places: &BTreeMap<&Bytes, Vec<i64>>, batch: &Written, last: &mut i64) -> (Option<String>, usize) {
    let offsets: Vec<&[i64]> = batch.values.iter().map(|v| places.get(v).map_or(&[][..], Vec::as_slice)).collect();
    let count = offsets.iter().map(|at| at.len()).sum();
    let first = batch.values.first().map(name).unwrap_or_default();
    if offsets.iter().all(|at| at.is_empty()) {
        let lost = batch.outcome != Outcome::Unknown;
        return (lost.then(|| format!("{first} was acknowledged ({:?}) and is lost", batch.outcome)), 0);
    }
    let Some(base) = offsets.first().and_then(|at| at.first()).copied() else {
        return (Some(format!("of the batch of {first} there is only a part")), count);
    };
    let whole = (base..).zip(&offsets).all(|(expected, at)| **at == [expected]);
    if !whole {
        return (Some(format!("the records of the batch of {first} are at {offsets:?}")), count);
    }
    if let Outcome::Acknowledged(Some(offset)) = batch.outcome
        && offset != base
    {
        return (Some(format!("{first} was acknowledged at {offset} and is at {base}")), count);
    }
    if base <= *last {
        return (Some(format!("{first} is at {base}, before what was written before it at {last}")), count);
    }
    *last = base;
    (None, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(log: &[&str], outcomes: &[(&str, Outcome)]) -> History {
        let mut history = History::default();
        for (offset, value) in (0..).zip(log) {
            history.read.insert((0, offset), (1, Bytes::copy_from_slice(value.as_bytes())));
        }
        let written = outcomes.iter().map(|(values, outcome)| Written {
            values: values.split('+').map(|value| Bytes::copy_from_slice(value.as_bytes())).collect(),
            outcome: *outcome,
        });
        history.written.insert((0, 0), written.collect());
        history
    }

    /// What lies in the log, what clients were told, and a part of what is said about it.
    type Case = (&'static [&'static str], &'static [(&'static str, Outcome)], &'static str);

    #[test]
    fn each_anomaly_is_named() {
        const fn acked(offset: i64) -> Outcome {
            Outcome::Acknowledged(Some(offset))
        }
        const CASES: [Case; 7] = [
            (&["a", "b", "c"], &[("a+b", acked(0)), ("c", Outcome::Unknown)], ""),
            (&["a"], &[("a", acked(0)), ("b", Outcome::Acknowledged(None))], "lost"),
            (&["a", "a"], &[("a", acked(0))], "are at"),
            (&["a"], &[("a", acked(1))], "is at 0"),
            (&["b", "a"], &[("a", acked(1)), ("b", acked(0))], "before what was written"),
            (&["a", "x"], &[("a", acked(0))], "nobody wrote"),
            (&["b"], &[("a+b", Outcome::Unknown)], "only a part"),
        ];
        for (log, outcomes, expected) in CASES {
            let found = check_written(&history(log, outcomes)).join("; ");
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{log:?}: {found}");
        }
    }
}
