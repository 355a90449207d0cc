//! What consumers were given: each record of an assignment after the other, and none left out by the group.

use std::collections::BTreeMap;

use super::{Class, Facts, Verdict};
use crate::event::{Isolation, Outcome, TransactionEnd};
use crate::history::{Polled, Session};

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    check_sessions(facts, verdict);
    check_records(facts, verdict);
    check_owners(facts, verdict);
    check_unseen(facts, verdict);
}

/// Within an assignment offsets go up, by the next record that the reader was to see.
fn check_sessions(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    // A generation may change while an assignment goes on.
    let mut last = BTreeMap::<(u32, u64, u32), i64>::new();
    for polled in &history.polls {
        let session = history.sessions.name(polled.session);
        let before = last.insert((session.process, session.number, session.partition), polled.offset);
        let Some(before) = before else { continue };
        let place = || {
            let (process, number) = (history.word(session.process), session.number);
            format!("{process}, assignment {number} of {}", history.place(session.partition))
        };
        if polled.offset <= before {
            verdict.add(Class::NonmonotonicPoll, || format!("{}: {} after {before}", place(), polled.offset));
        } else if let Some(skipped) = skipped(facts, session, before, polled.offset) {
            verdict
                .add(Class::PollSkip, || format!("{}: {} after {before}, and not {skipped}", place(), polled.offset));
        }
    }
}

/// A record between two offsets that a reader was to see.
fn skipped(facts: &Facts<'_>, session: &Session, before: i64, offset: i64) -> Option<i64> {
    let log = facts.history.log(session.partition, session.isolation);
    let next = log.partition_point(|(other, _)| *other <= before);
    log.get(next).map(|(other, _)| *other).filter(|other| *other < offset)
}

/// What was polled was sent, and was to be seen when it was.
fn check_records(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    for polled in &history.polls {
        let session = history.sessions.name(polled.session);
        let text = || format!("{} was given {}", history.word(session.process), history.value(polled.value));
        let Some(produce) = facts.sent(polled.value) else {
            verdict.add(Class::Phantom, || format!("{}, which nobody sent", text()));
            continue;
        };
        if produce.outcome == Outcome::Failed {
            verdict.add(Class::AbortedRead, || format!("{}, which was refused before it was sent", text()));
        }
        // Acknowledged ones are looked for anyway. What a consumer has seen was committed, whatever its producer knows.
        let is_read_back = history.logs.contains_key(&(session.partition, Isolation::ReadUncommitted));
        if produce.outcome == Outcome::Unknown && is_read_back && facts.places(polled.value).is_empty() {
            verdict.add(Class::LostWrite, || format!("{}, which is nowhere any more", text()));
        }
        if session.isolation == Isolation::ReadUncommitted || produce.transaction.is_none() {
            continue;
        }
        if facts.end_of(produce) == TransactionEnd::Aborted {
            verdict.add(Class::AbortedRead, || format!("{} of an aborted transaction", text()));
        } else if produce.transaction.is_some_and(|t| history.transactions[&t].invoke > polled.complete) {
            verdict.add(Class::PrecommittedRead, || format!("{} before its transaction was to commit", text()));
        }
    }
}

/// In one generation one member owns a partition.
fn check_owners(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let mut owners = BTreeMap::<(u32, i64, u32), u32>::new();
    for Polled { session, .. } in &history.polls {
        let session = history.sessions.name(*session);
        let Some(generation) = session.generation else { continue };
        let owner = *owners.entry((session.group, generation, session.partition)).or_insert(session.process);
        if owner != session.process {
            let (one, other) = (history.word(owner), history.word(session.process));
            let place = history.place(session.partition);
            verdict.add(Class::TwoOwners, || format!("{place}, generation {generation}: {one} and {other}"));
        }
    }
}

/// Who reads on from where a group has committed has been given all that is behind it.
fn check_unseen(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let mut groups = BTreeMap::<(u32, u32, Isolation), Vec<i64>>::new();
    for Polled { session, offset, .. } in &history.polls {
        let session = history.sessions.name(*session);
        groups.entry((session.group, session.partition, session.isolation)).or_default().push(*offset);
    }
    for ((group, partition, isolation), mut offsets) in groups {
        offsets.sort_unstable();
        let highest = offsets.last().copied().unwrap_or(-1);
        for (offset, value) in history.log(partition, isolation) {
            let acknowledged = facts.sent(*value).is_some_and(|produce| produce.outcome == Outcome::Ok);
            if acknowledged && *offset <= highest && offsets.binary_search(offset).is_err() {
                let (group, place) = (history.word(group), history.place(partition));
                let value = history.value(*value);
                verdict.add(Class::Unseen, || {
                    format!("group {group:?} was never given {value} at {offset} of {place}, and read up to {highest}")
                });
            }
        }
    }
}
