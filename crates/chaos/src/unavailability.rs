//! For how long nothing was acknowledged, and beside which faults.
//!
//! A reading is the longest time without an acknowledgement in one partition from the start of a fault until the cluster was whole
//! again. Faults that overlap share what they cost. What a client needs to notice a new leader is in it.
//! Records of transactions are left out: when they are sent depends on how transactions end.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::event::{Fault, Outcome};
use crate::history::History;

/// What a fault cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reading {
    /// Its place in [`History::faults`].
    pub fault: usize,
    /// What it was.
    pub kind: String,
    /// The longest time without an acknowledgement.
    pub us: u64,
    /// When that began.
    pub from: u64,
    /// In which partition.
    pub place: String,
}

/// All readings of one kind of fault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Summary {
    /// Which.
    pub kind: String,
    /// How many there were.
    pub faults: usize,
    /// The median of their costs.
    pub median_us: u64,
    /// The largest.
    pub worst_us: u64,
}

/// A time in one partition without an acknowledgement.
#[derive(Clone, Copy)]
struct Gap {
    from: u64,
    to: u64,
}

impl Gap {
    fn length(self) -> u64 {
        self.to - self.from
    }

    /// What of it is between two times. What a fault costs does not begin with the fault before it.
    fn within(self, from: u64, to: u64) -> Gap {
        Gap { from: self.from.max(from), to: self.to.min(to) }
    }
}

/// The reading of each fault.
pub fn readings(history: &History) -> Vec<Reading> {
    let gaps = gaps(history);
    let reading = |(index, fault): (usize, &Fault)| {
        let (from, to) = (fault.start, until(fault));
        let over = gaps.iter().filter_map(|(partition, gaps)| Some((longest(gaps, from, to)?, *partition)));
        let (gap, partition) = over.max_by_key(|(gap, _)| gap.length())?;
        let (us, place) = (gap.length(), history.place(partition));
        Some(Reading { fault: index, kind: fault.kind.clone(), us, from: gap.from, place })
    };
    history.faults.iter().enumerate().filter_map(reading).collect()
}

/// The readings by kind, in the order of their names.
pub fn by_kind(readings: &[Reading]) -> Vec<Summary> {
    let mut kinds = BTreeMap::<&str, Vec<u64>>::new();
    for reading in readings {
        kinds.entry(&reading.kind).or_default().push(reading.us);
    }
    let summary = |(kind, mut all): (&str, Vec<u64>)| {
        all.sort_unstable();
        let median_us = all[(all.len() - 1) / 2].midpoint(all[all.len() / 2]);
        Summary { kind: kind.to_owned(), faults: all.len(), median_us, worst_us: all[all.len() - 1] }
    };
    kinds.into_iter().map(summary).collect()
}

/// The longest time without an acknowledgement beside no fault: what the machine and the client do by themselves.
pub fn calm(history: &History) -> Option<u64> {
    let is_calm = |gap: &&Gap| history.faults.iter().all(|fault| gap.to <= fault.start || gap.from >= until(fault));
    gaps(history).values().flatten().filter(is_calm).map(|gap| gap.length()).max()
}

/// Until when a fault may be felt.
fn until(fault: &Fault) -> u64 {
    fault.settled.unwrap_or(fault.end).max(fault.start + 1)
}

/// Of each partition, between acknowledgements; the last one lasts until the last record was given up.
fn gaps(history: &History) -> BTreeMap<u32, Vec<Gap>> {
    let mut times = BTreeMap::<u32, Vec<u64>>::new();
    let mut given_up = BTreeMap::<u32, u64>::new();
    for produce in history.produces.iter().filter(|produce| produce.transaction.is_none()) {
        if produce.outcome == Outcome::Ok {
            times.entry(produce.partition).or_default().push(produce.complete);
        } else {
            let last = given_up.entry(produce.partition).or_default();
            *last = produce.complete.max(*last);
        }
    }
    let between = |(partition, mut times): (u32, Vec<u64>)| {
        times.extend(given_up.get(&partition).filter(|last| times.iter().all(|time| time < last)));
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| Gap { from: pair[0], to: pair[1] }).collect();
        (partition, gaps)
    };
    times.into_iter().map(between).collect()
}

/// The longest part of a gap between two times. Gaps follow each other.
fn longest(gaps: &[Gap], from: u64, to: u64) -> Option<Gap> {
    let first = gaps.partition_point(|gap| gap.to <= from);
    let parts = gaps[first..].iter().take_while(|gap| gap.from < to).map(|gap| gap.within(from, to));
    parts.max_by_key(|gap| gap.length())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Produce};

    fn acknowledged(partition: i32, at: u64) -> Event {
        Event::Produce(Produce {
            process: "p".to_owned(),
            topic: String::new(),
            partition,
            seq: at,
            value: format!("{partition}-{at}"),
            invoke: at,
            complete: at,
            outcome: Outcome::Ok,
            offset: None,
            error: String::new(),
            idempotent: true,
            transaction: None,
        })
    }

    fn fault(kind: &str, start: u64, end: u64, settled: u64) -> Event {
        let settled = Some(settled);
        Event::Fault(Fault { kind: kind.to_owned(), target: "1".to_owned(), start, end, settled })
    }

    #[test]
    fn a_transaction_that_waits_is_no_outage() {
        let mut history = History::default();
        [10, 15, 40].iter().for_each(|at| history.add(acknowledged(0, *at)).expect("sound"));
        for at in [5, 400] {
            let Event::Produce(produce) = acknowledged(1, at) else { unreachable!("it is one") };
            history.add(Event::Produce(Produce { transaction: Some("t".to_owned()), ..produce })).expect("sound");
        }
        history.add(fault("kill", 12, 30, 35)).expect("sound");
        assert_eq!(readings(&history)[0].us, 20);
    }

    #[test]
    fn a_fault_costs_the_longest_time_without_an_acknowledgement_beside_it() {
        let mut history = History::default();
        let times = [(0, [10, 20, 90, 100, 300]), (1, [10, 15, 40, 100, 310])];
        for (partition, times) in times {
            times.iter().for_each(|at| history.add(acknowledged(partition, *at)).expect("sound"));
        }
        for event in [fault("kill", 25, 50, 95), fault("kill", 5, 8, 9), fault("pause", 18, 19, 20)] {
            history.add(event).expect("sound");
        }
        let readings = readings(&history);
        let shown: Vec<_> = readings.iter().map(|r| (r.fault, r.us, r.from, r.place.as_str())).collect();
        assert_eq!(shown, [(0, 65, 25, "partition 0"), (2, 2, 18, "partition 1")]);
        assert_eq!(calm(&history), Some(210));
        let kill = Summary { kind: "kill".to_owned(), faults: 1, median_us: 65, worst_us: 65 };
        assert_eq!(by_kind(&readings)[0], kill);
    }
}
