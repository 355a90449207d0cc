//! The leader-epoch cache: which leader epoch wrote which offsets (`R25`, KIP-101, KIP-279).
//!
//! Invariants: epochs and start offsets both strictly increase; the cache gives each record of the log its own epoch.

use crate::{LeaderEpoch, Offset};

/// Leader epoch `epoch` wrote from `start` on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: LeaderEpoch,
    /// The offset of its first record.
    pub start: Offset,
}

/// Where an epoch ended: the answer to "what do you have for epoch e?" (`R24`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EpochEnd {
    /// The largest epoch in the cache that is not above the one asked for.
    pub epoch: LeaderEpoch,
    /// The first offset after it.
    pub end: Offset,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct EpochCache {
    entries: Vec<EpochStart>,
}

impl EpochCache {
    /// A cache from entries in any order: those that break the invariant are dropped, older epochs first.
    #[must_use]
    pub fn from_entries(entries: impl IntoIterator<Item = EpochStart>) -> Self {
        let mut cache = Self::default();
        for entry in entries {
            cache.assign(entry.epoch, entry.start);
        }
        cache
    }

    /// The entries, ascending.
    #[must_use]
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// The newest epoch, if any.
    #[must_use]
    pub fn latest(&self) -> Option<EpochStart> {
        self.entries.last().copied()
    }

    /// Records that `epoch` starts at `start`, unless it is the latest already. Entries at or above `start` are dropped
    /// first: no record of theirs can exist below the first record of a newer epoch. An epoch below the latest that
    /// remains is ignored.
    pub fn assign(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.latest().is_some_and(|latest| latest.epoch == epoch && latest.start <= start) {
            return;
        }
        self.entries.retain(|entry| entry.start < start && entry.epoch < epoch);
        self.entries.push(EpochStart { epoch, start });
    }

    /// A record of `epoch` is appended at `offset` (`R25`): entries at or above `offset` with another epoch go, then the
    /// epoch is added if it is not the latest.
    pub fn appended(&mut self, epoch: LeaderEpoch, offset: Offset) {
        while self.latest().is_some_and(|latest| latest.start >= offset && latest.epoch != epoch) {
            self.entries.pop();
        }
        if self.latest().is_none_or(|latest| latest.epoch < epoch) {
            self.entries.push(EpochStart { epoch, start: offset });
        }
    }

    /// The log now ends at `end`: drops the entries at or above it.
    pub fn truncate_to(&mut self, end: Offset) {
        self.entries.retain(|entry| entry.start < end);
    }

    /// The log now starts at `start`: the entry that covers it starts there, older ones go.
    pub fn truncate_from_start(&mut self, start: Offset) {
        let covering = self.entries.iter().rposition(|entry| entry.start <= start);
        if let Some(covering) = covering {
            self.entries.drain(..covering);
            self.entries[0].start = start;
        }
    }

    /// The epoch of the record at `offset`, if the cache covers it.
    #[must_use]
    pub fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.entries.iter().rev().find(|entry| entry.start <= offset).map(|entry| entry.epoch)
    }

    /// The largest epoch not above `epoch`, and where it ends in a log that ends at `log_end` (`R24`). None where every
    /// entry is above it.
    #[must_use]
    pub fn end_offset_for(&self, epoch: LeaderEpoch, log_end: Offset) -> Option<EpochEnd> {
        let found = self.entries.iter().rposition(|entry| entry.epoch <= epoch)?;
        let end = self.entries.get(found + 1).map_or(log_end, |next| next.start);
        Some(EpochEnd { epoch: self.entries[found].epoch, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(entries: &[(i32, i64)]) -> EpochCache {
        EpochCache::from_entries(entries.iter().map(|(e, s)| EpochStart { epoch: LeaderEpoch(*e), start: Offset(*s) }))
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_starts() {
        let cache = cache(&[(1, 0), (3, 10), (7, 25)]);
        let ask = |e| cache.end_offset_for(LeaderEpoch(e), Offset(40)).map(|x| (x.epoch.0, x.end.0));
        assert_eq!(
            [ask(0), ask(1), ask(2), ask(3), ask(6), ask(7), ask(9)],
            [None, Some((1, 10)), Some((1, 10)), Some((3, 25)), Some((3, 25)), Some((7, 40)), Some((7, 40))]
        );
    }

    #[test]
    fn a_recordless_entry_goes_when_an_older_epoch_appends_there() {
        // R25: the leader of epoch 5 assigned its start at 10 and wrote nothing; epoch 4's record arrives at 10.
        let mut cache = cache(&[(4, 0), (5, 10)]);
        cache.appended(LeaderEpoch(4), Offset(10));
        assert_eq!(cache, super::tests::cache(&[(4, 0)]));
    }

    #[test]
    fn the_start_of_the_log_keeps_the_epoch_that_covers_it() {
        let mut cache = cache(&[(1, 0), (3, 10), (7, 25)]);
        cache.truncate_from_start(Offset(12));
        assert_eq!(cache, super::tests::cache(&[(3, 12), (7, 25)]));
    }

    proptest! {
        /// Against brute force: a log as a list of epochs, one record each.
        #[test]
        fn each_record_has_its_own_epoch(ops in prop::collection::vec((0..3u8, 0..6i32, 0..30i64), 1..60)) {
            let (mut log, mut cache) = (Vec::<i32>::new(), EpochCache::default());
            for (op, epoch, at) in ops {
                let end = i64::try_from(log.len()).unwrap();
                match op {
                    0 => {
                        let epoch = epoch.max(log.last().copied().unwrap_or(0));
                        cache.appended(LeaderEpoch(epoch), Offset(end));
                        log.push(epoch);
                    }
                    1 => {
                        // A leader takes a newer epoch and has not written yet.
                        let newest = cache.latest().map_or(0, |e| e.epoch.0) + 1;
                        cache.assign(LeaderEpoch(newest), Offset(end));
                    }
                    _ => {
                        log.truncate(usize::try_from(at).unwrap());
                        cache.truncate_to(Offset(i64::try_from(log.len()).unwrap()));
                    }
                }
                for (offset, epoch) in log.iter().enumerate() {
                    prop_assert_eq!(cache.epoch_of(Offset(i64::try_from(offset).unwrap())), Some(LeaderEpoch(*epoch)));
                }
                prop_assert!(cache.entries().windows(2).all(|w| w[0].epoch < w[1].epoch && w[0].start < w[1].start));
            }
        }
    }
}
