//! What stands at an offset, as everybody saw it; and the offsets of groups.

use std::collections::{BTreeMap, BTreeSet};

use super::{Class, Facts, Verdict};
use crate::event::{Outcome, TransactionEnd};
use crate::history::GroupOffset;

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    check_one_value(facts, verdict);
    check_groups(facts, verdict);
}

/// All who saw a record at an offset saw the same one: producers, consumers, the final reads.
fn check_one_value(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let mut seen: Vec<(u32, i64, u32, &str)> = Vec::new();
    for produce in history.produces.iter().filter(|produce| produce.outcome == Outcome::Ok) {
        if let Some(offset) = produce.offset {
            seen.push((produce.partition, offset, produce.value, "acknowledged"));
        }
    }
    for polled in &history.polls {
        seen.push((history.sessions.name(polled.session).partition, polled.offset, polled.value, "polled"));
    }
    for ((partition, _), log) in &history.logs {
        seen.extend(log.iter().map(|(offset, value)| (*partition, *offset, *value, "read back")));
    }
    seen.sort_unstable();
    seen.dedup();
    for same in seen.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (partition, offset, value, _) = same[0];
        if same.iter().any(|other| other.2 != value) {
            let one = |(_, _, value, how): &(u32, i64, u32, &str)| format!("{} {how}", history.value(*value));
            let all = same.iter().map(one).collect::<Vec<_>>().join(", ");
            let place = history.place(partition);
            verdict.add(Class::InconsistentOffsets, || format!("{place}, offset {offset}: {all}"));
        }
    }
}

/// A group's offset is one that somebody committed, and none below one that it had before somebody asked.
fn check_groups(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let commits: Vec<GroupOffset> = history.commits.iter().filter_map(|commit| decided(facts, commit)).collect();
    let tried: BTreeSet<(u32, u32, i64)> = commits.iter().map(|c| (c.group, c.partition, c.offset)).collect();
    let known = commits.iter().filter(|commit| commit.outcome == Outcome::Ok);
    let mut known: Vec<&GroupOffset> = known.chain(&history.committed).collect();
    known.sort_by_key(|offset| offset.complete);
    let mut fetches: Vec<&GroupOffset> = history.committed.iter().collect();
    fetches.sort_by_key(|fetch| fetch.invoke);
    let (mut known, mut floors) = (known.into_iter().peekable(), BTreeMap::<(u32, u32), i64>::new());
    for fetch in fetches {
        while let Some(before) = known.next_if(|before| before.complete < fetch.invoke) {
            let floor = floors.entry((before.group, before.partition)).or_insert(-1);
            *floor = before.offset.max(*floor);
        }
        let floor = floors.get(&(fetch.group, fetch.partition)).copied().unwrap_or(-1);
        let place = || format!("group {:?}, {}", history.word(fetch.group), history.place(fetch.partition));
        if fetch.offset < floor {
            verdict.add(Class::CommitWentBack, || format!("{}: {} after {floor}", place(), fetch.offset));
        }
        if fetch.offset >= 0 && !tried.contains(&(fetch.group, fetch.partition, fetch.offset)) {
            verdict.add(Class::CommitInvented, || format!("{}: nobody committed {}", place(), fetch.offset));
        }
    }
}

/// A commit as its transaction decided it; None: it never counts.
fn decided(facts: &Facts<'_>, commit: &GroupOffset) -> Option<GroupOffset> {
    let Some(transaction) = commit.transaction else {
        return (commit.outcome != Outcome::Failed).then_some(*commit);
    };
    let transaction = facts.history.transactions.get(&transaction)?;
    let outcome = match (transaction.end, commit.outcome) {
        (TransactionEnd::Aborted, _) | (_, Outcome::Failed) => return None,
        (TransactionEnd::Committed, outcome) => outcome,
        (TransactionEnd::Unknown, _) => Outcome::Unknown,
    };
    Some(GroupOffset { outcome, complete: transaction.complete, ..*commit })
}
