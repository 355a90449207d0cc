//! The range assignor: contiguous ranges of each topic, the same ones of topics that are alike.
//!
//! Topics with the same number of partitions and the same readers are divided alike, so that a member has the same
//! partition numbers of all of them (joins rely on it). The order in which members stand is sticky: who had earlier
//! partitions stands earlier, so that ranges move no further than they must; members that had none come last, in the order
//! of their static or member ids.

use std::collections::BTreeMap;

use super::{Input, Slot};

/// Who gets what, by member.
pub(super) fn assign(input: &Input) -> Vec<Vec<Slot>> {
    let mut parts = vec![Vec::new(); input.members.len()];
    let mut alike: BTreeMap<(Vec<usize>, usize), Vec<usize>> = BTreeMap::new();
    for (topic, readers) in input.readers().into_iter().enumerate().filter(|(_, readers)| !readers.is_empty()) {
        alike.entry((readers, input.topics[topic].racks.len())).or_default().push(topic);
    }
    for ((mut readers, partitions), topics) in alike {
        readers.sort_by_cached_key(|reader| place(input, *reader, &topics));
        let (share, mut with_one_more) = (partitions / readers.len(), partitions % readers.len());
        let mut next = 0;
        for reader in readers {
            let end = next + share + usize::from(with_one_more > 0);
            with_one_more = with_one_more.saturating_sub(1);
            for topic in &topics {
                parts[reader].extend((next..end).map(|partition| (*topic, partition)));
            }
            next = end;
        }
    }
    parts
}

/// Where a member stood among topics that are alike; last where it had nothing of them.
fn place<'a>(input: &'a Input, reader: usize, topics: &[usize]) -> (usize, (bool, &'a str), &'a str) {
    let member = &input.members[reader];
    let had = member.prior.iter().filter(|slot| topics.binary_search(&slot.0).is_ok());
    let first = had.map(|slot| slot.1).min().unwrap_or(usize::MAX);
    // Static members first, by their static ids: those outlive their member ids.
    let name = member.instance_id.as_deref();
    (first, (name.is_none(), name.unwrap_or_default()), &member.id)
}
