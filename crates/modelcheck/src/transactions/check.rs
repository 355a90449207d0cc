//! What must hold in every state.

use std::collections::BTreeSet;

use coordinator::transaction::Status;
use model::{ErrorCode, PartitionIndex};
use replication::LogView;

use super::Scenario;
use super::groups::{offset_of, plain_offset};
use super::leaders::offset;
use super::world::{Entry, Part, TOPIC, Tag, Transactions, Violation};

/// What a marker says of a record, and where it stands.
type Verdict = Option<(bool, usize)>;

impl Part {
    /// By the first marker of its producer behind it.
    fn verdict(&self, at: usize) -> Verdict {
        let Entry::Data { who: of, .. } = self.log[at] else { return None };
        self.log.iter().enumerate().skip(at).find_map(|(at, entry)| match entry {
            Entry::Marker { who, commit, .. } if who.0 == of.0 => Some((*commit, at)),
            _ => None,
        })
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, Tag)> {
        self.log.iter().enumerate().filter_map(|(at, entry)| match entry {
            Entry::Data { tag, .. } => Some((at, *tag)),
            Entry::Marker { .. } | Entry::Plain(_) => None,
        })
    }

    /// Whether what stands at `at` counts, by what is replicated; None where that is open.
    fn counts(&self, at: usize) -> Option<bool> {
        match self.log[at] {
            Entry::Plain(_) => Some(true),
            Entry::Marker { .. } => Some(false),
            Entry::Data { .. } => {
                self.verdict(at).filter(|(_, at)| *at < self.high_watermark).map(|(commit, _)| commit)
            }
        }
    }

    /// The group's offset, as the log has it: the last one of those that count (`R49`).
    fn expected_offset(&self) -> Option<i64> {
        let last = (0..self.high_watermark).rev().find(|at| self.counts(*at) == Some(true))?;
        match self.log[last] {
            Entry::Data { tag, .. } => Some(offset_of(tag)),
            Entry::Plain(serial) => serial.map(plain_offset),
            Entry::Marker { .. } => None,
        }
    }

    /// Whether a marker may still change the group's offset, for all that a reader knows; a tombstone ends that.
    fn is_unstable(&self) -> bool {
        let deleted = (0..self.high_watermark).rev().find(|at| self.log[*at] == Entry::Plain(None));
        (deleted.unwrap_or(0)..self.high_watermark).any(|at| self.counts(at).is_none())
    }
}

impl Transactions {
    /// Looks at the state that a step came to.
    pub(crate) fn check(&mut self, scenario: &Scenario) {
        if self.violation.is_none() {
            let found = self.outcomes().or_else(|| self.stable(scenario));
            self.violation = found.or_else(|| self.hanging()).or_else(|| self.offsets(scenario));
        }
    }

    /// Each record's outcome is the one that its transaction has in the coordinator's log, and it stands there once.
    fn outcomes(&self) -> Option<Violation> {
        for part in &self.parts {
            let mut seen = BTreeSet::new();
            for (at, tag) in part.records() {
                let text = || format!("{tag:?} at {at} of {:?}; decided {:?}", part.log, self.decided);
                if part.group.is_none() && !seen.insert(tag) {
                    return Some(Violation::Doubled(text()));
                }
                let Some((commit, _)) = part.verdict(at) else { continue };
                match self.decided.get(&tag) {
                    Some(decided) if *decided != commit => return Some(Violation::Torn(text())),
                    None if commit => return Some(Violation::Undecided(text())),
                    _ => {}
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
            let view = LogView {
                start: offset(0),
                end: offset(part.log.len()),
                synced_end: offset(part.log.len()),
                high_watermark: offset(part.high_watermark),
            };
            let is_open = |(at, _): &(usize, Tag)| part.verdict(*at).is_none_or(|(_, at)| at >= part.high_watermark);
            let first_open = part.records().find(is_open).map_or(part.high_watermark, |(at, _)| at);
            let expected = offset(first_open.min(part.high_watermark));
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
                            && known.partitions.contains(TOPIC, PartitionIndex(number.into()))
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

    /// `R49`: the group's offset, and what a consumer hears that must not see one that may change.
    fn offsets(&self, scenario: &Scenario) -> Option<Violation> {
        let part = self.parts.last().filter(|part| part.group.is_some())?;
        let group = part.group.as_ref()?;
        let text = || format!("{:?} at {:?}, watermark {}", group.offset(), part.log, part.high_watermark);
        let stranger = scenario.stranger;
        if part.records().any(|(_, tag)| Some(tag.0) == stranger) {
            return Some(Violation::StrangeOffset(text()));
        }
        let expected = part.expected_offset();
        if group.offset() != expected {
            return Some(Violation::BadOffset(text()));
        }
        let told = group.fetch_stable()?;
        let should = if part.is_unstable() { Err(ErrorCode::UnstableOffsetCommit) } else { Ok(expected) };
        (told != should).then(|| Violation::BadStability(format!("{told:?}, {}", text())))
    }
}
