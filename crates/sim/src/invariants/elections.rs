//! An elected leader was in the ISR or an eligible leader replica (`R33`, `R34`), or is taken into the ISR by the leader that a
//! reassignment moves away with the change that ends it (`R37`); unless nobody was: then it is chosen by recovery among those
//! who may have everything (`R35`). Each election raises the leader epoch, each change the partition
//! epoch (`R1`).
//!
//! Judged by who follows the metadata from its first record, as a broker does.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use metadata::records::{Partition, PartitionChange};
use metadata::{MetadataImage, MetadataRecord};
use model::{ClusterId, MetadataOffset};
use rpc::controller::{ControllerClient, MetadataEvent};

use crate::history::Shared;

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
    /// Changes that took a member out of an ISR.
    pub shrinks: u64,
    /// Changes that took one in.
    pub expands: u64,
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

    fn judge_change(&mut self, before: &Partition, change: &PartitionChange) -> Option<String> {
        let after = before.with(change);
        self.shrinks += u64::from(before.isr.iter().any(|member| !after.isr.contains(member)));
        self.expands += u64::from(after.isr.iter().any(|member| !before.isr.contains(member)));
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
        self.recoveries += 1;
        let may = before.awaits_recovery() && before.last_known().contains(&after.leader);
        (!may).then(|| format!("{id:?}: {:?} is elected; before: {before:?}", after.leader))
    }
}
