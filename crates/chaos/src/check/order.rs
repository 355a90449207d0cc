//! The order of the log: that in which each producer sent, and that in which things happened.

use std::collections::BTreeMap;

use super::{Class, Facts, Verdict};
use crate::event::Outcome;
use crate::history::Produce;

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    check_senders(facts, verdict);
    check_real_time(facts, verdict);
}

/// Where a record is: as it was read back, or else as it was acknowledged.
fn offset_of(facts: &Facts<'_>, produce: &Produce) -> Option<i64> {
    let found = facts.places(produce.value).iter().find(|(_, partition, _)| *partition == produce.partition);
    found.map(|(.., offset)| *offset).or(produce.offset)
}

/// The records of one idempotent producer in one partition are in the order of sending.
fn check_senders(facts: &Facts<'_>, verdict: &mut Verdict) {
    let idempotent = facts.history.produces.iter().filter(|produce| produce.idempotent);
    let mut sent: Vec<&Produce> = idempotent.collect();
    sent.sort_by_key(|produce| (produce.process, produce.partition, produce.seq));
    for of_one in sent.chunk_by(|a, b| (a.process, a.partition) == (b.process, b.partition)) {
        let mut last: Option<(&Produce, i64)> = None;
        for produce in of_one {
            let Some(offset) = offset_of(facts, produce) else { continue };
            if let Some((before, highest)) = last
                && offset < highest
            {
                let history = facts.history;
                let (earlier, later) = (history.value(before.value), history.value(produce.value));
                let place = history.place(produce.partition);
                verdict.add(Class::NonmonotonicSend, || {
                    format!("{place}: {later} at {offset} was sent after {earlier} at {highest}")
                });
            }
            last = last.filter(|(_, highest)| *highest > offset).or(Some((produce, offset)));
        }
    }
}

/// A record that was sent after another one of its partition was acknowledged has a higher offset.
fn check_real_time(facts: &Facts<'_>, verdict: &mut Verdict) {
    let mut partitions: BTreeMap<u32, Vec<(&Produce, i64)>> = BTreeMap::new();
    for produce in facts.history.produces.iter().filter(|produce| produce.outcome == Outcome::Ok) {
        if let Some(offset) = produce.offset {
            partitions.entry(produce.partition).or_default().push((produce, offset));
        }
    }
    for (partition, mut by_invoke) in partitions {
        let mut by_complete = by_invoke.clone();
        by_complete.sort_by_key(|(produce, _)| produce.complete);
        by_invoke.sort_by_key(|(produce, _)| produce.invoke);
        let (mut done, mut highest) = (by_complete.into_iter().peekable(), None::<(&Produce, i64)>);
        for (produce, offset) in by_invoke {
            while let Some(before) = done.next_if(|(before, _)| before.complete < produce.invoke) {
                highest = highest.filter(|(_, highest)| *highest > before.1).or(Some(before));
            }
            if let Some((before, highest)) = highest.filter(|(_, highest)| *highest > offset) {
                let history = facts.history;
                let (earlier, later) = (history.value(before.value), history.value(produce.value));
                let place = history.place(partition);
                verdict.add(Class::StaleOffset, || {
                    format!("{place}: {later} got {offset} after {earlier} had been acknowledged at {highest}")
                });
            }
        }
    }
}
