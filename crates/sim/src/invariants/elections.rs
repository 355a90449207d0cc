//! An elected leader was in the ISR or an eligible leader replica (`R33`, `R34`), or is taken into the ISR by the leader that a
//! reassignment moves away with the change that ends it (`R37`); unless nobody was: then it is chosen by recovery among those
//! who may have everything (`R35`), or the topic is content with whoever lives (`R36`). Each election raises the leader epoch,
//! each change the partition epoch (`R1`).
//!
//! Judged by who follows the metadata from its first record, as a broker does.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use metadata::records::{Partition, PartitionChange};
use metadata::{MetadataImage, MetadataRecord};
use model::{BrokerId, ClusterId, MetadataOffset};
use rpc::controller::{ControllerClient, MetadataEvent};

use crate::history::Shared;
use crate::workload::LOOSE;

/// What the metadata came to.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The newest image.
    pub image: MetadataImage,
    /// Leaders elected, the first ones of new partitions aside.
    pub elections: u64,
    /// Of those, out of the ELR.
    pub elr_elections: u64,
    /// Of those, by recovery.
    pub recoveries: u64,
    /// Of those, of somebody who need not have everything (`R36`).
    pub unclean: u64,
    /// Changes that took a member out of an ISR.
    pub shrinks: u64,
    /// Changes that took one in.
    pub expands: u64,
    /// Replicas that are in another log directory than before.
    pub relocations: u64,
    /// Brokers fenced.
    pub fences: u64,
    /// How often all of it was told anew.
    pub snapshots: u64,
}

/// Who follows the metadata.
#[derive(Clone, Debug, Default)]
pub struct Observer(Arc<Mutex<Seen>>);

impl Observer {
    /// What was seen.
    pub fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows for as long as the run lasts.
pub async fn observe(client: ControllerClient, observer: Observer, history: Shared) {
    let mut events = pin!(client.follow(ClusterId::NONE, MetadataOffset(0)));
    while let Some(event) = events.next().await {
        let mut seen = observer.lock();
        match event {
            MetadataEvent::Snapshot { next_offset, records } => {
                seen.snapshots += 1;
                seen.image = MetadataImage::from_snapshot(next_offset, &records);
            }
            MetadataEvent::Batch { base, records } => {
                if base != seen.image.next_offset() {
                    let expected = seen.image.next_offset();
                    history.violation(format!("a batch of metadata begins at {base:?} where {expected:?} is next"));
                }
                for record in &records {
                    if let Some(what) = seen.judge(record) {
                        history.violation(what);
                    }
                    seen.image.apply(record);
                }
            }
            MetadataEvent::Refused(why) => history.violation(format!("the quorum has gone back: {why}")),
        }
    }
}

impl Seen {
    fn judge(&mut self, record: &MetadataRecord) -> Option<String> {
        match record {
            MetadataRecord::PartitionChange(change) => {
                let before = Arc::clone(self.image.partition(change.id())?);
                self.judge_change(&before, change)
            }
            MetadataRecord::BrokerChange(change) => {
                self.fences += u64::from(change.fenced == Some(true));
                None
            }
            _ => None,
        }
    }

    /// How many replicas are in another log directory than before, while there is that one still.
    fn relocated(&self, before: &Partition, after: &Partition) -> u64 {
        let moved = |id: &&BrokerId| {
            let (from, to) = (before.directory_of(**id), after.directory_of(**id));
            let has = |directory| self.image.broker(**id).is_some_and(|broker| broker.directories.contains(&directory));
            from != to && has(from) && has(to)
        };
        u64::try_from(after.replicas.iter().filter(moved).count()).unwrap_or(u64::MAX)
    }

    fn judge_change(&mut self, before: &Partition, change: &PartitionChange) -> Option<String> {
        let after = before.with(change);
        self.shrinks += u64::from(before.isr.iter().any(|member| !after.isr.contains(member)));
        self.expands += u64::from(after.isr.iter().any(|member| !before.isr.contains(member)));
        self.relocations += self.relocated(before, &after);
        let id = after.id();
        if after.partition_epoch.0 <= before.partition_epoch.0 {
            return Some(format!("{id:?} changes in partition epoch {:?}: {change:?}", before.partition_epoch));
        }
        if after.leader == before.leader || after.is_leaderless() {
            return None;
        }
        self.elections += 1;
        if after.leader_epoch.0 <= before.leader_epoch.0 {
            return Some(format!("{id:?}: an election in epoch {:?}: {change:?}", before.leader_epoch));
        }
        if before.isr.contains(&after.leader) {
            return None;
        }
        if before.elr.contains(&after.leader) {
            self.elr_elections += 1;
            return None;
        }
        // The leader that is being moved away took it in with this very change, which ends the move (R37).
        let is_taken_in = !before.is_leaderless() && after.isr.contains(&after.leader);
        if is_taken_in && !after.replicas.contains(&before.leader) {
            return None;
        }
        if self.image.topic(id.topic_id).is_some_and(|topic| &*topic.name == LOOSE) {
            self.unclean += 1;
            return None;
        }
        self.recoveries += 1;
        let may = before.awaits_recovery() && before.last_known().contains(&after.leader);
        (!may).then(|| format!("{id:?}: {:?} is elected; before: {before:?}", after.leader))
    }
}

#[cfg(test)]
mod tests {
    use metadata::records::LeaderRecoveryState;
    use model::{DirectoryId, LeaderEpoch, PartitionEpoch, PartitionIndex, TopicId, Uuid};

    use super::*;

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId).collect()
    }

    /// Replicas 1 to 4 in leader epoch 5 and partition epoch 9: the leader (0 for none), ISR, ELR and last known ELR.
    fn partition(leader: i32, isr: &[i32], elr: &[i32], last_known: &[i32]) -> Partition {
        Partition {
            topic_id: TopicId(Uuid::from_u128(1)),
            partition: PartitionIndex(0),
            replicas: ids(&[1, 2, 3, 4]),
            directories: vec![DirectoryId::NONE; 4],
            adding: Vec::new(),
            removing: Vec::new(),
            isr: ids(isr),
            elr: ids(elr),
            last_known_elr: ids(last_known),
            displaced: vec![],
            leader: if leader == 0 { BrokerId::NONE } else { BrokerId(leader) },
            last_leader: BrokerId(1),
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(5),
            partition_epoch: PartitionEpoch(9),
            leader_recovery_state: LeaderRecoveryState::Recovered,
        }
    }

    /// `before`, changed as it is to be: in the next epochs with another leader and ISR.
    fn elected(before: &Partition, leader: i32, isr: &[i32]) -> Partition {
        let (leader_epoch, partition_epoch) = (LeaderEpoch(6), PartitionEpoch(10));
        Partition { leader: BrokerId(leader), isr: ids(isr), leader_epoch, partition_epoch, ..before.clone() }
    }

    fn judged(before: &Partition, after: &Partition) -> (bool, [u64; 3]) {
        let mut seen = Seen::default();
        let found = seen.judge_change(before, &PartitionChange::between(before, after));
        (found.is_some(), [seen.elections, seen.elr_elections, seen.recoveries])
    }

    #[test]
    fn who_may_not_lead_is_noticed() {
        let led = partition(1, &[1, 2], &[], &[]);
        assert_eq!(judged(&led, &elected(&led, 2, &[2])), (false, [1, 0, 0]));
        assert!(judged(&led, &elected(&led, 3, &[3])).0, "neither ISR nor ELR");

        let below = partition(0, &[], &[2], &[1, 2]);
        assert_eq!(judged(&below, &elected(&below, 2, &[2])), (false, [1, 1, 0]));
        assert_eq!(judged(&below, &elected(&below, 1, &[1])), (false, [1, 0, 1]), "by recovery");
        assert!(judged(&below, &elected(&below, 3, &[3])).0, "nobody knows it to have anything");

        let lone = partition(0, &[1], &[], &[1, 2]);
        assert!(judged(&lone, &elected(&lone, 2, &[2])).0, "there is somebody in sync");
    }

    #[test]
    fn who_is_taken_in_by_the_end_of_a_move_may_lead() {
        let moving = partition(1, &[1, 2], &[], &[]);
        let ended = elected(&moving, 3, &[2, 3]);
        assert!(judged(&moving, &ended).0, "its leader stays");
        let ended = Partition { replicas: ids(&[2, 3, 4]), directories: vec![DirectoryId::NONE; 3], ..ended };
        assert_eq!(judged(&moving, &ended), (false, [1, 0, 0]));
    }

    #[test]
    fn epochs_that_do_not_rise_are_noticed() {
        let before = partition(1, &[1, 2], &[], &[]);
        let same_change = Partition { partition_epoch: before.partition_epoch, isr: ids(&[1]), ..before.clone() };
        assert!(judged(&before, &same_change).0);
        let same_leadership = Partition { leader_epoch: before.leader_epoch, ..elected(&before, 2, &[2]) };
        assert!(judged(&before, &same_leadership).0);
    }
}
