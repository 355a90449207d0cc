//! Holds back what brings replicas into sync, as Kafka's throttle configs say: the seam between the metadata, which says
//! whom, the token buckets, which say how much, and the streams' writers, which ask here before they send to a replica that
//! is not in sync.
//!
//! Invariant: nobody waits here for longer than [`RECHECK_MS`] without being looked at again: a replica that came into the
//! ISR meanwhile is not held back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use metadata::{MetadataImage, ReplicationThrottle};
use model::{BrokerId, Time, TopicPartition};
use replication::{Admission, Throttle};

/// Who is held back is looked at again after this.
const RECHECK_MS: u64 = 50;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Throttles {
    /// Whether anybody is throttled at all.
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    whom: ReplicationThrottle,
    leading: Option<Throttle>,
    following: BTreeMap<BrokerId, Throttle>,
}

impl Throttles {
    /// The metadata changed from `before` to `after`, as the broker `me` sees it.
    pub(crate) fn follow(&self, before: &MetadataImage, after: &MetadataImage, me: BrokerId, now: Time) {
        let configs_changed = !std::ptr::eq(before.configs(), after.configs());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Replicas that are named may fall out of sync, and leaders change.
        if !configs_changed && !state.whom.names_replicas() {
            return;
        }
        let whom = ReplicationThrottle::resolve(after, me);
        state.leading = whom.leader_rate.map(|rate| at_rate(state.leading.take(), rate, now));
        let mut old = std::mem::take(&mut state.following);
        let bucket = |(id, rate): (&BrokerId, &u64)| (*id, at_rate(old.remove(id), *rate, now));
        state.following = whom.follower_rates.iter().map(bucket).collect();
        self.active.store(!whom.is_empty(), Ordering::Release);
        state.whom = whom;
    }

    /// Whether there is anything to ask for.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// What the broker `me` may send now of a partition that it leads, to a follower that is not in sync.
    pub(crate) fn admit(&self, id: TopicPartition, me: BrokerId, follower: BrokerId, now: Time) -> Admission {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = state.buckets(id, me, follower).map(|bucket| bucket.admit(now));
        match admission.fold(Admission::Free, Admission::and) {
            Admission::Wait(until) => Admission::Wait(until.min(now + RECHECK_MS)),
            other => other,
        }
    }

    /// So many bytes were sent after [`Throttles::admit`].
    pub(crate) fn spend(&self, id: TopicPartition, me: BrokerId, follower: BrokerId, bytes: u64, now: Time) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.buckets(id, me, follower).for_each(|bucket| bucket.spend(bytes, now));
    }
}

impl State {
    /// The buckets that hold for a partition and a follower.
    fn buckets(&mut self, id: TopicPartition, me: BrokerId, follower: BrokerId) -> impl Iterator<Item = &mut Throttle> {
        let leading = self.leading.as_mut().filter(|_| self.whom.throttles_leader(id, me));
        let throttled = self.whom.throttles_follower(id, follower);
        let following = self.following.get_mut(&follower).filter(|_| throttled);
        leading.into_iter().chain(following)
    }
}

/// A bucket at a rate: the one there was, so that a change of the metadata gives nobody new credit.
fn at_rate(old: Option<Throttle>, rate: u64, now: Time) -> Throttle {
    match old {
        Some(mut bucket) => {
            bucket.set_rate(rate, now);
            bucket
        }
        None => Throttle::new(rate, now),
    }
}
