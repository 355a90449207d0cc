//! Carries the leaders' proposals of in-sync replicas to the active controller, many in one request (`R13`, `R16`).
//!
//! Invariant: every copy of a proposal that is sent is answered to its replica once, with `Unknown` where no answer came.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metadata::control::{AlterPartition, AlterPartitions, ControlRequest, ControlResponse};
use metadata::records::LeaderRecoveryState;
use model::{BrokerEpoch, BrokerId, ErrorCode, TopicPartition};
use replication::{AckRule, AlterAnswer, Proposal};
use tokio::sync::Notify;

use crate::context::Context;
use crate::partition::Partition;

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Proposals in one request, at most.
const BATCH: usize = 1000;

/// Proposals that wait to be sent: the newest of each partition.
#[derive(Debug, Default)]
pub(crate) struct IsrProposals {
    waiting: Mutex<BTreeMap<TopicPartition, Proposed>>,
    wake: Notify,
}

/// A proposal, and what it would do.
#[derive(Debug)]
struct Proposed {
    partition: Arc<Partition>,
    proposal: Proposal,
    /// A member leaves.
    shrinks: bool,
    /// A member joins.
    expands: bool,
}

impl IsrProposals {
    /// Sends `proposal`, to follow the in-sync replicas `before`, with the next request. A replica has one in flight, so
    /// nothing is replaced but what was never sent.
    pub(crate) fn propose(&self, partition: &Arc<Partition>, before: &[BrokerId], proposal: Proposal) {
        let (shrinks, expands) = moves(before, &proposal);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(partition.id(), Proposed { partition: Arc::clone(partition), proposal, shrinks, expands });
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Proposed> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < BATCH {
            let Some((_, next)) = waiting.pop_first() else { break };
            taken.push(next);
        }
        taken
    }
}

/// Whether a member leaves, and whether one joins.
fn moves(before: &[BrokerId], proposal: &Proposal) -> (bool, bool) {
    let leaves = |member: &BrokerId| proposal.isr.iter().all(|(id, _)| id != member);
    let joins = |(id, _): &(BrokerId, BrokerEpoch)| !before.contains(id);
    (before.iter().any(leaves), proposal.isr.iter().any(joins))
}

/// Runs until the broker stops.
pub(crate) async fn run(context: Arc<Context>) {
    loop {
        let proposals = context.isr.take();
        if proposals.is_empty() {
            context.isr.wake.notified().await;
            continue;
        }
        send(&context, proposals).await;
    }
}

async fn send(context: &Arc<Context>, proposals: Vec<Proposed>) {
    let Some((epoch, _)) = context.registration() else {
        for proposed in proposals {
            // It was never sent, but the replica only knows answers and "unknown", which is the safe one.
            proposed.answered(context, AlterAnswer::Unknown);
        }
        return;
    };
    let request = AlterPartitions {
        broker: context.config.broker_id,
        epoch,
        partitions: proposals.iter().map(|proposed| alter(proposed.partition.id(), &proposed.proposal)).collect(),
    };
    let answer = context.ask(ControlRequest::AlterPartitions(request), TIMEOUT).await;
    let answers = match answer {
        Ok(ControlResponse::AlterPartitions(answers)) if answers.len() == proposals.len() => answers,
        Ok(other) => {
            tracing::warn!(?other, "the controller refused a request for ISR changes");
            Vec::new()
        }
        Err(error) => {
            tracing::info!(%error, "no answer to a request for ISR changes; asking again");
            Vec::new()
        }
    };
    let mut answers = answers.into_iter();
    for proposed in proposals {
        let answer = match answers.next().map(|answer| answer.result) {
            None => AlterAnswer::Unknown,
            Some(Ok(now)) => AlterAnswer::Changed {
                leader_epoch: now.leader_epoch,
                partition_epoch: now.partition_epoch,
                isr: now.isr,
                ack_rule: ack_rule(now.min_isr, now.ack_zones),
            },
            // What the controller may or may not have done is unknown (R67).
            Some(Err(ErrorCode::NotController | ErrorCode::RequestTimedOut)) => AlterAnswer::Unknown,
            // A controller that is elsewhere says so before it looks at what is proposed (R15).
            Some(Err(error)) => {
                AlterAnswer::Refused { error, partition_epoch: Some(proposed.proposal.id.partition_epoch) }
            }
        };
        proposed.answered(context, answer);
    }
}

impl Proposed {
    fn answered(self, context: &Arc<Context>, answer: AlterAnswer) {
        let counters = &context.isr_counters;
        match answer {
            AlterAnswer::Changed { .. } => {
                counters.shrinks.add(u64::from(self.shrinks));
                counters.expands.add(u64::from(self.expands));
            }
            AlterAnswer::Refused { .. } | AlterAnswer::Unknown => counters.failed.add(1),
        }
        self.partition.handle_isr_answer(context, self.proposal.id, answer);
    }
}

/// The rule that an answer says; a controller before this was said leaves it at nothing.
fn ack_rule(min_isr: u32, zones: u32) -> Option<AckRule> {
    let number = |number| usize::try_from(number).unwrap_or(usize::MAX);
    (min_isr > 0).then(|| AckRule { min_isr: number(min_isr), zones: number(zones) })
}

fn alter(partition: TopicPartition, proposal: &Proposal) -> AlterPartition {
    AlterPartition {
        partition,
        leader_epoch: proposal.id.leader_epoch,
        partition_epoch: proposal.id.partition_epoch,
        isr: proposal.isr.clone(),
        leader_recovery_state: LeaderRecoveryState::Recovered,
    }
}

#[cfg(test)]
mod tests {
    use model::{LeaderEpoch, PartitionEpoch};
    use replication::ProposalId;

    use super::*;

    #[test]
    fn a_proposal_shrinks_expands_or_does_both() {
        let id = ProposalId { leader_epoch: LeaderEpoch(1), partition_epoch: PartitionEpoch(1), number: 1 };
        let to = |members: &[i32]| {
            let isr = members.iter().map(|member| (BrokerId(*member), BrokerEpoch(1))).collect();
            moves(&[BrokerId(1), BrokerId(2)], &Proposal { id, isr })
        };
        assert_eq!(
            [to(&[1]), to(&[1, 2, 3]), to(&[3, 1]), to(&[2, 1])],
            [(true, false), (false, true), (true, true), (false, false)]
        );
    }
}
