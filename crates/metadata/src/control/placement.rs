//! Where new replicas go: leaders and followers spread over racks and over the brokers in them.
//!
//! Invariant: the replicas of a partition whose ack rule asks for zones are in as many (`R79`), wherever those brokers are that
//! make it possible: one that is fenced, or about to be, serves later what no other can.

use std::collections::{BTreeMap, BTreeSet};

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

/// Whether a broker can have replicas in sync; the first is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Standing {
    Active,
    Fenced,
    /// In controlled shutdown: takes what nobody else in its zone can, and nothing else.
    Stopping,
}

impl Standing {
    fn of(broker: &BrokerRegistration) -> Self {
        match (broker.fenced, broker.in_controlled_shutdown) {
            (true, _) => Self::Fenced,
            (false, true) => Self::Stopping,
            (false, false) => Self::Active,
        }
    }
}

#[derive(Clone, Debug)]
struct Candidate {
    id: BrokerId,
    /// Brokers without a rack are spread as if they shared one.
    rack: usize,
    /// Whether it has a rack at all: without one it is in no zone (`R79`).
    zoned: bool,
    standing: Standing,
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
    /// Over the registered brokers that are not cordoned; `entropy` says who is first, `is_full` which directories take no
    /// appends now.
    pub(super) fn new(
        image: &MetadataImage,
        is_full: impl Fn(&BrokerRegistration, DirectoryId) -> bool,
        entropy: &mut Entropy,
    ) -> Self {
        let mut racks: BTreeMap<Option<&str>, Vec<(BrokerId, Standing, bool)>> = BTreeMap::new();
        for broker in image.brokers().values().filter(|broker| !broker.is_cordoned()) {
            let full = broker.open_directories().all(|directory| is_full(broker, directory));
            racks.entry(broker.rack.as_deref()).or_default().push((broker.id, Standing::of(broker), full));
        }
        let depth = racks.values().map(Vec::len).max().unwrap_or(0);
        let mut ring = Vec::new();
        for row in 0..depth {
            for (rack, (name, brokers)) in racks.iter().enumerate() {
                if let Some((id, standing, full)) = brokers.get(row) {
                    let (id, zoned, standing, full) = (*id, name.is_some(), *standing, *full);
                    ring.push(Candidate { id, rack, zoned, standing, full, leaders: 0, replicas: 0 });
                }
            }
        }
        let turn = u64::try_from(ring.len()).ok().and_then(|len| entropy.next().checked_rem(len));
        ring.rotate_left(turn.and_then(|turn| usize::try_from(turn).ok()).unwrap_or(0));
        Self { ring, placed: 0 }
    }

    /// How many brokers there are to choose from, those that are about to stop not counted.
    pub(super) fn brokers(&self) -> usize {
        self.ring.iter().filter(|broker| broker.standing != Standing::Stopping).count()
    }

    /// How many zones replicas can be in.
    pub(super) fn zones(&self) -> usize {
        self.ring.iter().filter(|broker| broker.zoned).map(|broker| broker.rack).collect::<BTreeSet<_>>().len()
    }

    /// Whether a partition with so many replicas in so many zones can have a leader now.
    pub(super) fn can_lead(&self, replicas: usize, zones: usize) -> bool {
        self.ring.iter().any(|broker| broker.standing == Standing::Active && (broker.zoned || zones < replicas))
    }

    /// The replicas of the next partition, the leader first, in `zones` zones at least; fewer than asked for where there are
    /// not as many brokers.
    pub(super) fn place(&mut self, replicas: usize, zones: usize) -> Vec<BrokerId> {
        let mut chosen: Vec<usize> = Vec::new();
        while chosen.len() < replicas.min(self.brokers()) {
            let Some(next) = self.next(&chosen, replicas, zones) else { break };
            if chosen.is_empty() {
                self.ring[next].leaders += 1;
            }
            self.ring[next].replicas += 1;
            chosen.push(next);
        }
        self.placed += 1;
        chosen.into_iter().map(|at| self.ring[at].id).collect()
    }

    /// The best one beside those `chosen`. Once as many zones are missing as replicas it has to bring one: before that a broker
    /// that can be in sync now is better.
    fn next(&self, chosen: &[usize], replicas: usize, zones: usize) -> Option<usize> {
        let len = self.ring.len();
        let first = chosen.first().copied();
        let in_rack = |rack: usize| chosen.iter().filter(|other| self.ring[**other].rack == rack).count();
        let had: BTreeSet<_> = chosen.iter().filter(|at| self.ring[**at].zoned).map(|at| self.ring[*at].rack).collect();
        let must_bring_a_zone = zones.saturating_sub(had.len()) >= replicas - chosen.len();
        let may = |at: &usize| {
            let broker = &self.ring[*at];
            let brings_a_zone = broker.zoned && in_rack(broker.rack) == 0;
            let fits = if must_bring_a_zone { brings_a_zone } else { broker.standing != Standing::Stopping };
            fits && !chosen.contains(at)
        };
        let rank = |at: &usize| {
            let broker = &self.ring[*at];
            let leads = if first.is_none() { broker.leaders } else { 0 };
            // Followers come after the leader on the ring, from another place for each partition.
            let distance = first.map_or(*at, |first| (at + 2 * len - first - 1 - self.placed % len) % len);
            (broker.standing, broker.full, in_rack(broker.rack), leads, broker.replicas, distance)
        };
        (0..len).filter(may).min_by_key(rank)
    }
}
