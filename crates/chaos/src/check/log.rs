//! The log as it was read back: whole, of what was sent, once, and with what was acknowledged.

use super::{Class, Facts, Verdict};
use crate::event::{Isolation, Outcome, TransactionEnd};
use crate::history::Produce;

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    for partition in facts.history.ends.keys() {
        check_holes(facts, *partition, verdict);
    }
    check_values(facts, verdict);
    for produce in facts.history.produces.iter().filter(|produce| produce.outcome == Outcome::Ok) {
        check_acknowledged(facts, produce, verdict);
    }
    check_committed_view(facts, verdict);
}

/// Every offset below the high watermark is a record that was read, or a marker.
fn check_holes(facts: &Facts<'_>, partition: u32, verdict: &mut Verdict) {
    let (history, end) = (facts.history, facts.history.ends[&partition]);
    let replicas = || history.replicas.range((partition, i32::MIN)..=(partition, i32::MAX));
    // Without the files of a replica nobody knows where the markers of transactions are.
    let is_transactional = history.produces.iter().any(|p| p.partition == partition && p.transaction.is_some());
    let unknown = is_transactional && replicas().next().is_none();
    let is_marker = |offset: i64| unknown || replicas().any(|(_, replica)| replica.markers.contains(&offset));
    let mut next = 0;
    for (offset, _) in history.log(partition, Isolation::ReadUncommitted) {
        if *offset < next {
            verdict.add(Class::Hole, || {
                format!("{}: offset {offset} was read after {}", history.place(partition), next - 1)
            });
            return;
        }
        if let Some(hole) = (next..*offset).find(|offset| !is_marker(*offset)) {
            verdict.add(Class::Hole, || format!("{}: offset {hole} holds nothing", history.place(partition)));
        }
        next = offset + 1;
    }
    if let Some(hole) = (next..end).find(|offset| !is_marker(*offset)) {
        let place = history.place(partition);
        verdict.add(Class::Hole, || format!("{place}: offset {hole} holds nothing, and the high watermark is {end}"));
    }
}

/// What is in the log was sent, and once.
fn check_values(facts: &Facts<'_>, verdict: &mut Verdict) {
    for places in facts.places.chunk_by(|a, b| a.0 == b.0) {
        let value = places[0].0;
        let text = || format!("{}: {}", facts.history.value(value), facts.places_text(places));
        match facts.sent(value) {
            None => verdict.add(Class::Phantom, || format!("{}: nobody sent it", text())),
            Some(produce) if produce.outcome == Outcome::Failed => {
                verdict.add(Class::AbortedRead, || format!("{}: it was refused before it was sent", text()));
            }
            Some(produce) if places.len() > 1 && produce.idempotent => verdict.add(Class::Duplicate, text),
            Some(produce) if places.iter().any(|(_, partition, _)| *partition != produce.partition) => {
                let meant = facts.history.place(produce.partition);
                verdict.add(Class::InconsistentOffsets, || format!("{}: it was sent to {meant}", text()));
            }
            Some(_) => {}
        }
    }
}

/// An acknowledged record is where it was acknowledged.
fn check_acknowledged(facts: &Facts<'_>, produce: &Produce, verdict: &mut Verdict) {
    let (history, places) = (facts.history, facts.places(produce.value));
    let text = || {
        let offset = produce.offset.map_or_else(|| "without an offset".to_owned(), |offset| format!("at {offset}"));
        let (value, place) = (history.value(produce.value), history.place(produce.partition));
        format!("{value} was acknowledged {offset} of {place} and is {}", facts.places_text(places))
    };
    if places.is_empty() {
        verdict.add(Class::LostWrite, text);
    } else if let Some(offset) = produce.offset
        && !places.contains(&(produce.value, produce.partition, offset))
    {
        verdict.add(Class::InconsistentOffsets, text);
    }
}

/// What a reader of committed records must see: every acknowledged record that was committed.
fn check_committed_view(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let committed = |partition| history.logs.get(&(partition, Isolation::ReadCommitted));
    let mut seen = vec![false; history.values.len()];
    for log in history.all_partitions().filter_map(committed) {
        log.iter().for_each(|(_, value)| seen[super::at(*value)] = true);
    }
    for produce in history.produces.iter().filter(|produce| produce.outcome == Outcome::Ok) {
        let must = facts.end_of(produce) == TransactionEnd::Committed && committed(produce.partition).is_some();
        // What nobody finds at all is told already.
        if must && !seen[super::at(produce.value)] && !facts.places(produce.value).is_empty() {
            let (value, place) = (history.value(produce.value), history.place(produce.partition));
            verdict.add(Class::LostWrite, || {
                format!("{value} of {place} is committed and no read_committed reader sees it")
            });
        }
    }
}
