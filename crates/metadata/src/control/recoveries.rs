//! The partitions that wait for a leader among their last known eligible leader replicas (`R35`): since when, what was
//! answered, and who is to be looked at next.
//!
//! Invariant: `since` says of each recovery when it began and of nothing else. A hundred thousand partitions may wait at
//! once, and the loop asks after every batch what is due: nothing here goes through all of them for that.

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerEpoch, BrokerId, PartitionIndex, Time, TopicId, TopicPartition, Uuid};

use crate::control::messages::RecoveryAnswer;
use crate::image::MetadataImage;

/// Comes before every other partition in the order of waiting.
const FIRST: TopicPartition = TopicPartition { topic_id: TopicId(Uuid::from_u128(0)), partition: PartitionIndex(0) };

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Recoveries {
    /// What is known of each.
    of: BTreeMap<TopicPartition, Recovery>,
    /// The keys of `of`, the longest waiting first.
    since: BTreeSet<(Time, TopicPartition)>,
    /// Leaderless partitions that changed since they were noted last.
    unnoted: BTreeSet<TopicPartition>,
    /// Something changed that concerns all: who did not count may count now, or lead without that.
    others_may_lead: bool,
}

/// A recovery among the last known eligible leader replicas (`R35`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Recovery {
    /// Since when it waits.
    pub(super) since: Time,
    /// What was answered, with the registration that answered it.
    pub(super) answers: BTreeMap<BrokerId, (BrokerEpoch, RecoveryAnswer)>,
    /// Whose replica is lossy by the last heartbeat, and has not answered since: one that failed says nothing, and could not lead.
    pub(super) failed: BTreeMap<BrokerId, BrokerEpoch>,
}

impl Recoveries {
    pub(super) fn get(&self, id: &TopicPartition) -> Option<&Recovery> {
        self.of.get(id)
    }

    /// A broker answered for a partition, which waits from now on if it did not before.
    pub(super) fn answered(
        &mut self,
        id: TopicPartition,
        broker: BrokerId,
        epoch: BrokerEpoch,
        answer: RecoveryAnswer,
        now: Time,
    ) {
        let recovery = self.wait(id, now);
        recovery.answers.insert(broker, (epoch, answer));
        recovery.failed.remove(&broker);
    }

    /// What a broker answered for a partition is true no more: its replica is lossy, or failed.
    pub(super) fn forget(&mut self, id: TopicPartition, broker: BrokerId, epoch: BrokerEpoch) {
        if let Some(recovery) = self.of.get_mut(&id) {
            recovery.answers.remove(&broker);
            recovery.failed.insert(broker, epoch);
        }
    }

    fn wait(&mut self, id: TopicPartition, now: Time) -> &mut Recovery {
        let since = &mut self.since;
        self.of.entry(id).or_insert_with(|| {
            since.insert((now, id));
            Recovery { since: now, answers: BTreeMap::new(), failed: BTreeMap::new() }
        })
    }

    /// A partition has no leader, or still has none after a change.
    pub(super) fn is_leaderless(&mut self, id: TopicPartition) {
        self.unnoted.insert(id);
    }

    /// A partition has a leader, or is gone.
    pub(super) fn is_over(&mut self, id: TopicPartition) {
        self.unnoted.remove(&id);
        if let Some(recovery) = self.of.remove(&id) {
            self.since.remove(&(recovery.since, id));
        }
    }

    /// A broker registered, was fenced or unfenced, or lost a directory; or leaders may be unclean from now on (`R36`).
    pub(super) fn others_may_lead(&mut self) {
        self.others_may_lead = true;
    }

    /// Starts over with these partitions; what is known of them stays.
    pub(super) fn prune(&mut self, leaderless: &BTreeSet<TopicPartition>) {
        self.of.retain(|id, _| leaderless.contains(id));
        self.since = self.of.iter().map(|(id, recovery)| (recovery.since, *id)).collect();
        self.unnoted.clone_from(leaderless);
        self.others_may_lead = true;
    }

    /// Those that nobody has answered yet wait from now on. Returns whom a leader may be found for: what changed, what has
    /// waited for `wait_ms`, and after a change that concerns all, all.
    pub(super) fn note(&mut self, image: &MetadataImage, now: Time, wait_ms: u64) -> Vec<TopicPartition> {
        let awaits = |id: &TopicPartition| image.partition(*id).is_some_and(|partition| partition.awaits_recovery());
        let mut candidates = std::mem::take(&mut self.unnoted);
        for id in candidates.iter().copied().filter(awaits) {
            self.wait(id, now);
        }
        if std::mem::take(&mut self.others_may_lead) {
            return self.of.keys().copied().collect();
        }
        let waited = self.since.iter().take_while(|(since, _)| now.since(*since) >= wait_ms);
        candidates.extend(waited.map(|(_, id)| *id));
        candidates.into_iter().collect()
    }

    /// When [`Recoveries::note`] has something new to tell; `None` while nothing waits for the time alone.
    pub(super) fn due(&self, passed: Time, wait_ms: u64) -> Option<Time> {
        if !self.unnoted.is_empty() || (self.others_may_lead && !self.of.is_empty()) {
            return Some(Time::ZERO);
        }
        // One that was due by then has been looked at.
        let (since, _) = self.since.range((passed + 1 - wait_ms, FIRST)..).next()?;
        Some(*since + wait_ms)
    }
}
