//! The next step of a member towards its target assignment: first it gives up, then it is given.
//!
//! Invariant: a partition is added to what a member has only where nobody else has it, or has not given it up yet. A
//! partition leaves a member's record only when the member said that it does not hold it, or is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{ErrorCode, PartitionIndex, TopicId};

use crate::consumer::group::{CurrentAssignment, MemberState, OwnedPartitions, Partitions};

/// The circumstances of a step.
pub struct Step<'a> {
    /// What the member has.
    pub current: &'a Arc<CurrentAssignment>,
    /// The epoch of the target assignment.
    pub target_epoch: i32,
    /// What it should have.
    pub target: &'a Partitions,
    /// Whether it reads a topic: what it does not read is taken away at once, whatever the target says.
    pub reads: &'a dyn Fn(TopicId) -> bool,
    /// Whether its subscription changed with this request.
    pub subscription_changed: bool,
    /// Whether somebody else has a partition, or has not given it up yet.
    pub is_held: &'a dyn Fn(TopicId, PartitionIndex) -> bool,
    /// What the member says that it holds; None where it says nothing.
    pub owned: Option<&'a Partitions>,
}

impl Step<'_> {
    /// What the member has after this step; the same where there is nothing to do.
    ///
    /// # Errors
    /// If the member must join anew.
    pub fn next(&self) -> Result<Arc<CurrentAssignment>, ErrorCode> {
        if !self.subscription_changed && self.current.is_reconciled_to(self.target_epoch) {
            return Ok(Arc::clone(self.current));
        }
        match self.current.state {
            MemberState::Stable if self.current.epoch != self.target_epoch => Ok(self.advance()),
            MemberState::UnrevokedPartitions if self.holds(&self.current.revoking) => Ok(self.unsubscribe()),
            MemberState::Stable => Ok(self.unsubscribe()),
            MemberState::UnrevokedPartitions | MemberState::UnreleasedPartitions => Ok(self.advance()),
            // Written by a later version: begin again, without partitions.
            MemberState::Unknown if self.owned.is_some_and(BTreeMap::is_empty) => Ok(self.advance()),
            MemberState::Unknown => Err(ErrorCode::FencedMemberEpoch),
        }
    }

    /// Whether the member still holds one of these. Who says nothing may.
    fn holds(&self, partitions: &OwnedPartitions) -> bool {
        let Some(owned) = self.owned else { return !partitions.is_empty() };
        let held = |topic: &TopicId, index: &PartitionIndex| owned.get(topic).is_some_and(|held| held.contains(index));
        partitions.iter().any(|(topic, indexes)| indexes.keys().any(|index| held(topic, index)))
    }

    /// Takes away what the member does not read any more, and nothing else.
    fn unsubscribe(&self) -> Arc<CurrentAssignment> {
        let unread = |topic: &TopicId| !(self.reads)(*topic);
        if !self.subscription_changed || !self.current.assigned.keys().any(unread) {
            return Arc::clone(self.current);
        }
        let mut next = (**self.current).clone();
        let (gone, kept): (OwnedPartitions, OwnedPartitions) =
            std::mem::take(&mut next.assigned).into_iter().partition(|(topic, _)| unread(topic));
        next.assigned = kept;
        for (topic, partitions) in gone {
            next.revoking.entry(topic).or_default().extend(partitions);
        }
        if self.holds(&next.revoking) {
            next.state = MemberState::UnrevokedPartitions;
        } else {
            next.revoking.clone_from(&self.current.revoking);
        }
        next.previous_epoch = next.epoch;
        Arc::new(next)
    }

    /// Takes away what the target does not give; when that is given up, gives what is free.
    fn advance(&self) -> Arc<CurrentAssignment> {
        let mut kept = OwnedPartitions::new();
        let mut revoking = OwnedPartitions::new();
        for (topic, partitions) in &self.current.assigned {
            let target = self.target.get(topic).filter(|_| (self.reads)(*topic));
            for (index, epoch) in partitions {
                let keeps = target.is_some_and(|target| target.contains(index));
                let into = if keeps { &mut kept } else { &mut revoking };
                into.entry(*topic).or_default().insert(*index, *epoch);
            }
        }
        if self.holds(&revoking) {
            return Arc::new(CurrentAssignment {
                epoch: self.current.epoch,
                previous_epoch: self.current.epoch,
                state: MemberState::UnrevokedPartitions,
                assigned: kept,
                revoking,
            });
        }
        let unreleased = self.take_free(&mut kept);
        Arc::new(CurrentAssignment {
            epoch: self.target_epoch,
            previous_epoch: self.current.epoch,
            state: if unreleased { MemberState::UnreleasedPartitions } else { MemberState::Stable },
            assigned: kept,
            revoking: OwnedPartitions::new(),
        })
    }

    /// Adds what the target gives and nobody else has; says whether others still have something.
    fn take_free(&self, assigned: &mut OwnedPartitions) -> bool {
        let mut unreleased = false;
        for (topic, partitions) in self.target.iter().filter(|(topic, _)| (self.reads)(**topic)) {
            for index in partitions {
                if assigned.get(topic).is_some_and(|held| held.contains_key(index)) {
                    continue;
                }
                if (self.is_held)(*topic, *index) {
                    unreleased = true;
                } else {
                    assigned.entry(*topic).or_default().insert(*index, self.target_epoch);
                }
            }
        }
        unreleased
    }
}
