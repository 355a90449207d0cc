//! Reassignment (`R37`, KIP-455): replicas move without the partition ever having fewer than it had.
//!
//! ```text
//!              asked for                       all added ones in sync,
//!  settled ───────────────► moving ──────────► and enough of those that stay ──► settled, with the new replicas
//!     ▲                      │   ▲ │
//!     └── cancelled ─────────┘   └─┘ asked for again: another target
//! ```
//!
//! Invariants: the replicas that are not being added are those from before; nobody leaves the assignment who is needed to
//! commit, or who alone may have what was committed.

use model::{BrokerId, DirectoryId, ErrorCode, Rule};

use crate::control::draft::{Draft, Want};
use crate::control::messages::{AlterReassignments, ControlError, ControlResponse, Reassignment, ReassignmentResult};
use crate::records::Partition;

/// Where the replicas are, and are to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Assignment {
    replicas: Vec<BrokerId>,
    directories: Vec<DirectoryId>,
    adding: Vec<BrokerId>,
    removing: Vec<BrokerId>,
}

impl Assignment {
    pub(super) fn apply(&self, partition: &mut Partition) {
        partition.replicas.clone_from(&self.replicas);
        partition.directories.clone_from(&self.directories);
        partition.adding.clone_from(&self.adding);
        partition.removing.clone_from(&self.removing);
    }
}

impl Draft<'_> {
    pub(super) fn alter_reassignments(
        &mut self,
        request: &AlterReassignments,
    ) -> Result<ControlResponse, ControlError> {
        let mut results = Vec::with_capacity(request.partitions.len());
        for asked in &request.partitions {
            results.push(ReassignmentResult {
                topic: asked.topic.clone(),
                partition: asked.partition,
                result: self.alter_reassignment(asked, request.allow_factor_change),
            });
        }
        Ok(ControlResponse::AlterReassignments(results))
    }

    fn alter_reassignment(&mut self, asked: &Reassignment, allow_factor_change: bool) -> Result<(), ControlError> {
        let unknown = |message| ControlError::new(ErrorCode::UnknownTopicOrPartition, message);
        let topic = self.image.topic_by_name(&asked.topic);
        let topic = topic.ok_or_else(|| unknown(format!("Unable to find a topic named {}.", asked.topic)))?;
        let partition = topic.partition(asked.partition).cloned();
        let partition = partition
            .ok_or_else(|| unknown(format!("Unable to find partition {}:{}.", asked.topic, asked.partition)))?;
        let assignment = match &asked.target {
            Some(target) => self.moved(&partition, target, allow_factor_change)?,
            None => self.cancelled(&partition)?,
        };
        self.change(partition.id(), &Want { assignment: Some(assignment), ..Want::default() });
        Ok(())
    }

    /// Towards `target`: everybody stays until those who come have all of it.
    fn moved(
        &mut self,
        partition: &Partition,
        target: &[BrokerId],
        allow_factor_change: bool,
    ) -> Result<Assignment, ControlError> {
        self.check_replicas(target)?;
        self.check_cordoned(target.iter().filter(|b| !partition.replicas.contains(b)))?;
        let factor = partition.factor();
        if target.len() != factor && !allow_factor_change {
            let message = format!("The replication factor is changed from {factor} to {}", target.len());
            return Err(ControlError::new(ErrorCode::InvalidReplicationFactor, message));
        }
        let topic = self.image.topic(partition.topic_id);
        let zones = topic.map_or(0, |topic| self.image.ack_zones(&topic.name));
        if let Some(message) = self.lacks_zones(zones, target) {
            return Err(ControlError::new(ErrorCode::InvalidReplicaAssignment, message));
        }
        let was_here = |b: &BrokerId| partition.replicas.contains(b) && !partition.adding.contains(b);
        let mut adding: Vec<_> = target.iter().copied().filter(|b| !was_here(b)).collect();
        let is_superseded = |b: &BrokerId| partition.adding.contains(b) && !target.contains(b);
        // One that another target replaced goes at once, unless it counts already.
        let mut removing: Vec<_> = partition
            .replicas
            .iter()
            .copied()
            .filter(|b| !target.contains(b) && (!is_superseded(b) || holds_committed(partition, *b)))
            .collect();
        removing.sort_unstable();
        adding.extend(removing.iter().filter(|b| is_superseded(b)));
        let replicas = target.iter().chain(&removing).copied().collect();
        Ok(self.assignment(partition, replicas, adding, removing))
    }

    /// Back to the replicas from before, unless the ISR would no longer be enough without those that were added.
    fn cancelled(&mut self, partition: &Partition) -> Result<Assignment, ControlError> {
        if !partition.is_reassigning() {
            let message = "No partition reassignment is in progress.";
            return Err(ControlError::new(ErrorCode::NoReassignmentInProgress, message));
        }
        let replicas: Vec<_> = partition.replicas.iter().copied().filter(|b| !partition.adding.contains(b)).collect();
        let back = self.assignment(partition, replicas, Vec::new(), Vec::new());
        let mut after = partition.clone();
        back.apply(&mut after);
        after.isr.retain(|b| after.replicas.contains(b));
        let loses = partition.adding.iter().any(|b| holds_committed(partition, *b));
        if loses && !self.is_enough(&after) && self.holds(Rule::R37CancelKeepsIsr) && !self.allows_unclean(partition) {
            let message = format!(
                "Unable to revert the assignment: only {} of the replicas from before are in sync, too few to do without \
                 those that were added",
                after.isr.len()
            );
            return Err(ControlError::new(ErrorCode::InvalidReplicaAssignment, message));
        }
        Ok(back)
    }

    fn assignment(
        &mut self,
        partition: &Partition,
        replicas: Vec<BrokerId>,
        adding: Vec<BrokerId>,
        removing: Vec<BrokerId>,
    ) -> Assignment {
        let mut directory = |b: &BrokerId| {
            if partition.replicas.contains(b) { partition.directory_of(*b) } else { self.new_directory(*b) }
        };
        let directories = replicas.iter().map(&mut directory).collect();
        Assignment { replicas, directories, adding, removing }
    }

    /// Ends a reassignment once all who were added are in sync, by name and not by number, and those who stay are enough;
    /// where the partition shrinks, once all who stay are in sync: else it would give up the copies that live (`R37`).
    pub(super) fn maybe_complete_reassignment(&self, partition: &mut Partition) {
        if !partition.is_reassigning() {
            return;
        }
        let target = partition.target();
        let in_sync = |b: &BrokerId| partition.isr.contains(b);
        let all_in_sync = partition.adding.iter().filter(|b| target.contains(b)).all(in_sync);
        let as_many_in_sync = partition.isr.len() >= target.len();
        let shrinks = partition.adding.len() < partition.removing.len();
        let all_in_sync = all_in_sync && (!shrinks || target.iter().all(in_sync));
        let has_come = if self.holds(Rule::R37CompletionByMembership) { all_in_sync } else { as_many_in_sync };
        let mut done = partition.clone();
        done.directories = target.iter().map(|b| partition.directory_of(*b)).collect();
        done.isr.retain(|b| target.contains(b));
        done.replicas = target;
        done.adding.clear();
        done.removing.clear();
        if has_come && (self.is_enough(&done) || !self.holds(Rule::R37CompletionAboveMinIsr)) {
            *partition = done;
        }
    }
}

/// Whether a replica is counted on to have what was committed, or may be the only one that has (`R34`, `R35`).
fn holds_committed(partition: &Partition, broker: BrokerId) -> bool {
    let sets = [&partition.isr, &partition.elr, &partition.last_known_elr];
    sets.iter().any(|set| set.contains(&broker))
}
