//! What must hold in every state.

use std::collections::BTreeMap;

use coordinator::transaction::Status;
use model::Offset;
use replication::LogView;

use super::Scenario;
use super::world::{Entry, Part, Tag, Transactions, Violation};

/// What a marker says of a record, and where it stands.
type Verdict = Option<(bool, usize)>;

impl Part {
    /// By the first marker of its producer behind it.
    fn verdict(&self, at: usize) -> Verdict {
        let id = self.log[at].who().0;
        self.log.iter().enumerate().skip(at).find_map(|(at, entry)| match entry {
            Entry::Marker { who, commit, .. } if who.0 == id => Some((*commit, at)),
            _ => None,
        })
    }

    fn records(&self) -> impl Iterator<Item = (usize, Tag)> {
        self.log.iter().enumerate().filter_map(|(at, entry)| match entry {
            Entry::Data { tag, .. } => Some((at, *tag)),
            Entry::Marker { .. } => None,
        })
    }
}

impl Transactions {
    /// Whether a record of it was committed somewhere.
    pub(crate) fn is_committed(&self, tag: Tag) -> bool {
        let committed = |part: &Part| {
            let mut of_tag = part.records().filter(|(_, of)| *of == tag);
            of_tag.any(|(at, _)| part.verdict(at).is_some_and(|(commit, _)| commit))
        };
        self.parts.iter().any(committed)
    }

    /// Looks at the state that a step came to.
    pub(crate) fn check(&mut self, scenario: &Scenario) {
        if self.violation.is_none() {
            let found = self.outcomes().or_else(|| self.stable(scenario)).or_else(|| self.hanging());
            self.violation = found;
        }
    }

    /// Each transaction has one outcome, and it is the one that its client asked for.
    fn outcomes(&self) -> Option<Violation> {
        let mut outcomes: BTreeMap<Tag, bool> = BTreeMap::new();
        for part in &self.parts {
            for (at, tag) in part.records() {
                let Some((commit, _)) = part.verdict(at) else { continue };
                let text = || format!("{tag:?} at {at} of {:?}: commit {commit}, told {:?}", part.log, self.told);
                if *outcomes.entry(tag).or_insert(commit) != commit {
                    return Some(Violation::Torn(text()));
                }
                if self.told.get(&tag).is_some_and(|told| *told != commit) {
                    return Some(Violation::Torn(text()));
                }
                if commit && !self.asked.contains(&tag) {
                    return Some(Violation::Unasked(text()));
                }
                if commit && self.doomed.contains(&tag) {
                    return Some(Violation::Zombie(text()));
                }
            }
        }
        None
    }

    /// `R43`: below the last stable offset each record has its outcome, by a marker that is not lost any more; and it is no
    /// lower than that.
    fn stable(&self, scenario: &Scenario) -> Option<Violation> {
        self.parts.iter().find_map(|part| {
            let end = |at: usize| Offset(i64::try_from(at).expect("a short log"));
            let view = LogView {
                start: Offset::ZERO,
                end: end(part.log.len()),
                synced_end: end(part.log.len()),
                high_watermark: end(part.high_watermark),
            };
            let is_open = |(at, _): &(usize, Tag)| part.verdict(*at).is_none_or(|(_, at)| at >= part.high_watermark);
            let first_open = part.records().find(is_open).map_or(part.high_watermark, |(at, _)| at);
            let expected = end(first_open.min(part.high_watermark));
            let told = part.table.last_stable_offset(view, scenario.rules);
            let text = || format!("{told} is not {expected} at {:?}, watermark {}", part.log, part.high_watermark);
            (told != expected).then(|| Violation::BadStableOffset(text()))
        })
    }

    /// `R50`: the coordinator's log knows of each transaction that is open in a partition, so that a marker will come for it.
    fn hanging(&self) -> Option<Violation> {
        self.parts.iter().zip(0u8..).find_map(|(part, number)| {
            part.table.iter().filter(|(_, state)| state.transaction_start.is_some()).find_map(|(id, state)| {
                let known = self.stored().filter(|known| known.producer_id == id);
                let comes = known.is_some_and(|known| match known.status {
                    Status::Ongoing => {
                        known.producer_epoch == state.epoch
                            && known.partitions.contains(super::world::TOPIC, model::PartitionIndex(number.into()))
                    }
                    Status::PrepareCommit | Status::PrepareAbort => {
                        self.works.iter().any(|(work, _)| work.partition == number && work.who.0 == id.0)
                    }
                    Status::Empty | Status::CompleteCommit | Status::CompleteAbort => false,
                });
                let text = || format!("partition {number}: {:?}, the coordinator has {:?}", part.log, self.stored());
                (!comes).then(|| Violation::Hanging(text()))
            })
        })
    }
}
