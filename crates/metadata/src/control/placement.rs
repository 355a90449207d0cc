//! Where new replicas go: leaders and followers spread over racks and over the brokers in them.

use std::collections::BTreeMap;

use model::{BrokerId, DirectoryId};

use crate::image::MetadataImage;
use crate::records::BrokerRegistration;

/// A sequence of numbers from one seed (SplitMix64 over both halves): the same for the same entropy.
#[derive(Clone, Debug)]
pub(super) struct Entropy(u64, u64);

impl Entropy {
    pub(super) fn new(seed: u128) -> Self {
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
        Self(half(seed), half(seed >> 64))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) ^ mix(self.1)
    }

    pub(super) fn next_u128(&mut self) -> u128 {
        // Both halves of the seed reach both halves of the result.
        self.1 = self.1.wrapping_add(0xd1b5_4a32_d192_ed03);
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[derive(Clone, Debug)]
struct Candidate {
    id: BrokerId,
    rack: usize,
    fenced: bool,
    /// None of its directories takes appends now, for want of space, or works.
    full: bool,
    leaders: usize,
    replicas: usize,
}

/// Places partitions one after another.
#[derive(Clone, Debug)]
pub(super) struct Placer {
    /// The first broker of each rack, then the second of each, and so on.
    ring: Vec<Candidate>,
    placed: usize,
}

impl Placer {
    /// Over the registered brokers that are neither about to stop nor cordoned; `entropy` says who is first, `is_full` which
    /// directories take no appends now.
    pub(super) fn new(
        image: &MetadataImage,
        is_full: impl Fn(&BrokerRegistration, DirectoryId) -> bool,
        entropy: &mut Entropy,
    ) -> Self {
        let mut racks: BTreeMap<Option<&str>, Vec<(BrokerId, bool, bool)>> = BTreeMap::new();
        let stays = |broker: &BrokerRegistration| !broker.in_controlled_shutdown || broker.fenced;
        for broker in image.brokers().values().filter(|broker| stays(broker) && !broker.is_cordoned()) {
            let full = broker.open_directories().all(|directory| is_full(broker, directory));
            racks.entry(broker.rack.as_deref()).or_default().push((broker.id, broker.fenced, full));
        }
        let depth = racks.values().map(Vec::len).max().unwrap_or(0);
        let mut ring = Vec::new();
        for row in 0..depth {
            for (rack, brokers) in racks.values().enumerate() {
                if let Some((id, fenced, full)) = brokers.get(row) {
                    ring.push(Candidate { id: *id, rack, fenced: *fenced, full: *full, leaders: 0, replicas: 0 });
                }
            }
        }
        let turn = u64::try_from(ring.len()).ok().and_then(|len| entropy.next().checked_rem(len));
        ring.rotate_left(turn.and_then(|turn| usize::try_from(turn).ok()).unwrap_or(0));
        Self { ring, placed: 0 }
    }

    /// How many brokers there are to choose from.
    pub(super) fn brokers(&self) -> usize {
        self.ring.len()
    }

    /// How many of them are unfenced.
    pub(super) fn unfenced(&self) -> usize {
        self.ring.iter().filter(|broker| !broker.fenced).count()
    }

    /// The replicas of the next partition, the leader first; fewer than asked for where there are not as many brokers.
    pub(super) fn place(&mut self, replicas: usize) -> Vec<BrokerId> {
        let mut chosen: Vec<usize> = Vec::new();
        let len = self.ring.len();
        while chosen.len() < replicas.min(len) {
            let first = chosen.first().copied();
            let rank = |at: &usize| {
                let broker = &self.ring[*at];
                let in_rack = chosen.iter().filter(|other| self.ring[**other].rack == broker.rack).count();
                let leads = if first.is_none() { broker.leaders } else { 0 };
                // Followers come after the leader on the ring, from another place for each partition.
                let distance = first.map_or(*at, |first| (at + 2 * len - first - 1 - self.placed % len) % len);
                (broker.fenced, broker.full, in_rack, leads, broker.replicas, distance)
            };
            let Some(next) = (0..len).filter(|at| !chosen.contains(at)).min_by_key(rank) else { break };
            if first.is_none() {
                self.ring[next].leaders += 1;
            }
            self.ring[next].replicas += 1;
            chosen.push(next);
        }
        self.placed += 1;
        chosen.into_iter().map(|at| self.ring[at].id).collect()
    }
}
