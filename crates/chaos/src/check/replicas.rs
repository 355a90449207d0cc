//! The files of the replicas: those in sync hold the same bytes below the high watermark, and every acknowledged record once.

use std::collections::BTreeMap;

use super::{Class, Facts, Verdict};
use crate::event::Outcome;
use crate::history::{Produce, Replica};

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    let in_sync = facts.history.replicas.iter().filter(|(_, replica)| replica.in_sync);
    let mut partitions = BTreeMap::<u32, Vec<(i32, &Replica)>>::new();
    for ((partition, node), replica) in in_sync {
        partitions.entry(*partition).or_default().push((*node, replica));
    }
    for (partition, replicas) in &partitions {
        check_bytes(facts, *partition, replicas, verdict);
    }
    let mut acknowledged = BTreeMap::<u32, Vec<&Produce>>::new();
    for produce in facts.history.produces.iter().filter(|produce| produce.outcome == Outcome::Ok) {
        acknowledged.entry(produce.partition).or_default().push(produce);
    }
    for (partition, produces) in acknowledged {
        for (node, replica) in partitions.get(&partition).into_iter().flatten() {
            check_records(facts, (partition, *node), replica, &produces, verdict);
        }
    }
}

fn check_bytes(facts: &Facts<'_>, partition: u32, replicas: &[(i32, &Replica)], verdict: &mut Verdict) {
    let Some(end) = facts.history.ends.get(&partition) else { return };
    let place = facts.history.place(partition);
    let below =
        |replica: &Replica| replica.batches.iter().take_while(|(first, ..)| first < end).copied().collect::<Vec<_>>();
    let (first_node, first) = (replicas[0].0, below(replicas[0].1));
    for (node, replica) in replicas {
        let batches = below(replica);
        let reached = batches.last().map_or(0, |(_, last, _)| last + 1);
        if reached < *end {
            verdict.add(Class::ShortReplica, || {
                format!("{place}, node {node}: it ends at {reached}, the high watermark is {end}")
            });
        }
        if let Some((one, other)) = first.iter().zip(&batches).find(|(one, other)| one != other) {
            let (from, to) = (one.0.min(other.0), one.1.max(other.1));
            verdict.add(Class::DivergedReplica, || {
                format!("{place}: nodes {first_node} and {node} differ between offsets {from} and {to}")
            });
        }
    }
}

/// Each acknowledged record is in the replica once, at its offset.
fn check_records(
    facts: &Facts<'_>,
    (partition, node): (u32, i32),
    replica: &Replica,
    acknowledged: &[&Produce],
    verdict: &mut Verdict,
) {
    // One whose files were looked at for their batches only.
    if replica.records.is_empty() && !replica.batches.is_empty() {
        return;
    }
    let mut held: Vec<(u32, i64)> = replica.records.iter().map(|(offset, value)| (*value, *offset)).collect();
    held.sort_unstable();
    for produce in acknowledged {
        let from = held.partition_point(|(value, _)| *value < produce.value);
        let here: Vec<i64> = held[from..].iter().take_while(|(v, _)| *v == produce.value).map(|(_, o)| *o).collect();
        let once = if produce.idempotent { here.len() == 1 } else { !here.is_empty() };
        if !once || produce.offset.is_some_and(|offset| !here.contains(&offset)) {
            let history = facts.history;
            let (value, place) = (history.value(produce.value), history.place(partition));
            verdict.add(Class::NotInReplica, || {
                format!("{place}, node {node}: {value}, acknowledged at {:?}, is at {here:?}", produce.offset)
            });
        }
    }
}
