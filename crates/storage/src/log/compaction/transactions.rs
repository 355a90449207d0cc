//! What compaction has to know of transactions: whose records were aborted, and which markers nobody needs any more.
//!
//! A transaction's marker may go once a cleaning has gone through the log without meeting a batch of the transaction, and
//! its time is over (`R39`). Its entry in the index of aborted transactions goes with it.

use std::collections::{BTreeMap, BTreeSet};

use model::{BatchHeader, Offset, ProducerId};

use crate::log::AbortedTransaction;

/// The transactions, while a cleaning goes through the log. All below its bound have their end.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// First and last offset of each producer's aborted transactions, ascending; the others were committed.
    aborted: BTreeMap<ProducerId, Vec<(Offset, Offset)>>,
    /// Producers of which a batch was met since their last marker.
    met: BTreeSet<ProducerId>,
}

impl Outcomes {
    pub(super) fn new(list: &[AbortedTransaction]) -> Self {
        let mut aborted: BTreeMap<ProducerId, Vec<(Offset, Offset)>> = BTreeMap::new();
        for one in list {
            aborted.entry(one.producer_id).or_default().push((one.first_offset, one.last_offset));
        }
        aborted.values_mut().for_each(|ranges| ranges.sort_unstable());
        Self { aborted, met: BTreeSet::new() }
    }

    /// Whether a batch of records belongs to an aborted transaction.
    pub(super) fn is_aborted(&self, header: &BatchHeader) -> bool {
        let ranges = self.aborted.get(&header.producer_id).filter(|_| header.is_transactional());
        let Some(ranges) = ranges else { return false };
        let before = ranges.partition_point(|(first, _)| *first <= header.base_offset);
        before.checked_sub(1).is_some_and(|i| header.base_offset < ranges[i].1)
    }

    /// The copy met a batch of records.
    pub(super) fn meet(&mut self, header: &BatchHeader) {
        if header.is_transactional() {
            self.met.insert(header.producer_id);
        }
    }

    /// The copy met a marker: whether no batch of its transaction is left.
    pub(super) fn is_spent(&mut self, marker: &BatchHeader) -> bool {
        !self.met.remove(&marker.producer_id)
    }
}
