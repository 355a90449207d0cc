//! ISR changes that leaders propose (`R13`), judged in the order of `R15`.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{BrokerId, ErrorCode, Rule};

use crate::control::draft::{Draft, Want};
use crate::control::messages::{
    AlterPartition, AlterPartitions, AlteredPartition, ControlError, ControlResponse, PartitionNow,
};
use crate::image::TopicImage;
use crate::records::{LeaderRecoveryState, Partition};

impl Draft<'_> {
    pub(super) fn alter_partitions(&mut self, request: &AlterPartitions) -> Result<ControlResponse, ControlError> {
        self.check_broker_epoch(request.broker, request.epoch)?;
        let alter = |proposal: &AlterPartition| AlteredPartition {
            partition: proposal.partition,
            result: self.alter_partition(request.broker, proposal),
        };
        Ok(ControlResponse::AlterPartitions(request.partitions.iter().map(alter).collect()))
    }

    fn alter_partition(&mut self, sender: BrokerId, proposal: &AlterPartition) -> Result<PartitionNow, ErrorCode> {
        let before = self.image.partition(proposal.partition).cloned().ok_or_else(|| self.unknown(proposal))?;
        self.check_proposal(&before, sender, proposal)?;
        let after = self.plan(
            &before,
            &Want {
                isr: Some(proposal.isr.iter().map(|(member, _)| *member).collect()),
                leader_recovery_state: Some(proposal.leader_recovery_state),
                ..Want::default()
            },
        );
        // Even where the ISR stays the same: the new partition epoch kills older copies of a proposal (R16).
        let same = Partition { partition_epoch: before.partition_epoch, ..after.clone() } == *before;
        if !same || self.holds(Rule::R1EachChangeRaisesTheEpoch) {
            self.put(&before, &after);
        }
        if after.leader_epoch != before.leader_epoch {
            // It completed a reassignment (R37): done, but by a leadership that the sender has yet to hear of.
            return Err(ErrorCode::NewLeaderElected);
        }
        let topic = self.image.topic(after.topic_id);
        let rule = |topic: &Arc<TopicImage>| {
            (self.image.min_isr(&topic.name, after.factor()), self.image.ack_zones(&topic.name))
        };
        let (min_isr, ack_zones) = topic.map_or((1, 0), rule);
        Ok(PartitionNow {
            leader: after.leader,
            leader_epoch: after.leader_epoch,
            isr: after.isr,
            leader_recovery_state: after.leader_recovery_state,
            partition_epoch: after.partition_epoch,
            min_isr: u32::try_from(min_isr).unwrap_or(u32::MAX),
            ack_zones: u32::try_from(ack_zones).unwrap_or(u32::MAX),
        })
    }

    fn unknown(&self, proposal: &AlterPartition) -> ErrorCode {
        match self.image.topic(proposal.partition.topic_id) {
            Some(_) => ErrorCode::UnknownTopicOrPartition,
            None => ErrorCode::UnknownTopicId,
        }
    }

    /// `R15`, in its order.
    fn check_proposal(&self, now: &Partition, sender: BrokerId, proposal: &AlterPartition) -> Result<(), ErrorCode> {
        let check_epoch = self.holds(Rule::R15PartitionEpoch);
        if proposal.leader_epoch > now.leader_epoch || (check_epoch && proposal.partition_epoch > now.partition_epoch) {
            return Err(ErrorCode::NotController);
        }
        if proposal.leader_epoch < now.leader_epoch && self.holds(Rule::R15LeaderEpoch) {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        if sender != now.leader && self.holds(Rule::R15Sender) {
            return Err(ErrorCode::InvalidRequest);
        }
        if check_epoch && proposal.partition_epoch < now.partition_epoch {
            return Err(ErrorCode::InvalidUpdateVersion);
        }
        let members: BTreeSet<BrokerId> = proposal.isr.iter().map(|(member, _)| *member).collect();
        let are_replicas = members.iter().all(|member| now.replicas.contains(member));
        let legal = are_replicas && members.len() == proposal.isr.len() && members.contains(&now.leader);
        if !legal && self.holds(Rule::R15Members) {
            return Err(ErrorCode::InvalidRequest);
        }
        let recovers = proposal.leader_recovery_state == LeaderRecoveryState::Recovering;
        let recovered = now.leader_recovery_state == LeaderRecoveryState::Recovered;
        if recovers && (members.len() > 1 || recovered) && self.holds(Rule::R15Recovering) {
            return Err(ErrorCode::InvalidRequest);
        }
        let epoch_matches = |(member, epoch)| self.image.broker_epoch(member) == epoch;
        let eligible = |member: &(BrokerId, _)| self.image.is_eligible(now, member.0) && epoch_matches(*member);
        if !proposal.isr.iter().all(eligible) && self.holds(Rule::R15EligibleMembers) {
            return Err(ErrorCode::IneligibleReplica);
        }
        Ok(())
    }
}
