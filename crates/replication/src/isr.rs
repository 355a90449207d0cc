//! Changes of the in-sync replicas: proposed by the leader, made true by the controller alone.
//!
//! ```text
//!             propose                       no answer: a copy is left behind
//!   none ───────────────► Pending(in flight) ──────────────────────────────► Pending(retry, uncertain)
//!     ▲                      │        │                                         │
//!     │ success, or metadata │        │ fenced, invalid version, …              │ refused while uncertain: propose the
//!     │ with a newer pe      │        ▼                                         ▼ committed ISR under the same pe
//!     │                      │     Pending(held until metadata)              Pending(no change, uncertain)
//!     └──────────────────────┴── refused and certain: back to the committed ISR
//! ```
//! Invariant: while a proposal is pending, the maximal ISR is the committed one and all that were ever proposed under
//! this partition epoch (`R14`, `R16`).

use model::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, PartitionEpoch, Rule, Time};

use crate::leader::Leader;
use crate::messages::Action;
use crate::replica::{Core, Replica, Role};

/// Before a proposal that got no answer is sent again, or one that was refused is replaced.
const RETRY_MS: u64 = 50;

/// What an answer names to belong to a proposal (`R16`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProposalId {
    /// The leader epoch of the proposal.
    pub leader_epoch: LeaderEpoch,
    /// The partition epoch that it was proposed under.
    pub partition_epoch: PartitionEpoch,
    /// Counts this replica's proposals.
    pub number: u64,
}

/// An AlterPartition to send (`R13`). It always says that the leader has recovered (`R35`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposal {
    /// Which.
    pub id: ProposalId,
    /// The whole new ISR, each member with its broker epoch.
    pub isr: Vec<(BrokerId, BrokerEpoch)>,
}

/// What came of one copy of a proposal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum AlterAnswer {
    /// The controller made it true.
    Changed {
        /// The leader epoch.
        leader_epoch: LeaderEpoch,
        /// The new partition epoch.
        partition_epoch: PartitionEpoch,
        /// The new ISR.
        isr: Vec<BrokerId>,
    },
    /// The controller refused it.
    Refused {
        /// Why.
        error: ErrorCode,
        /// The controller's partition epoch, where the answer says it.
        partition_epoch: Option<PartitionEpoch>,
    },
    /// No answer in time, no active controller, a broken connection: it may have been applied.
    Unknown,
}

/// The proposal that is not decided yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Pending {
    pub(crate) proposal: Proposal,
    /// Members that it, or an undecided proposal before it, adds.
    pub(crate) added: Vec<BrokerId>,
    /// A copy was left unanswered: it may still be applied.
    uncertain: bool,
    /// When to send it (again); None while an answer or metadata is waited for.
    pub(crate) send_at: Option<Time>,
}

impl Replica {
    /// What came of one copy of a proposal (`R16`).
    pub fn handle_alter_partition_answer(&mut self, id: ProposalId, answer: AlterAnswer, now: Time) {
        if let Role::Leader(leader) = &mut self.role {
            leader.handle_alter_answer(&mut self.core, id, answer, now);
        }
    }
}

impl Leader {
    /// Proposes the ISR as it should be, if that is another one and nothing is in flight (`R11` to `R13`).
    pub(crate) fn maybe_propose(&mut self, core: &mut Core, now: Time) {
        let one_in_flight = core.config.rules.hold(Rule::R13OneChangeInFlight);
        if (self.pending.is_some() && one_in_flight) || now < self.hold_until {
            return;
        }
        let wanted = self.wanted_isr(core, now);
        let undecided = self.pending.as_ref().map(|pending| &pending.proposal.isr);
        let unchanged = wanted.iter().map(|(id, _)| id).eq(self.isr.iter());
        if (unchanged && !core.recovering) || undecided == Some(&wanted) {
            return;
        }
        let added = wanted.iter().map(|(id, _)| *id).filter(|id| !self.isr.contains(id)).collect();
        let proposal = new_proposal(core, wanted);
        core.act(Action::ProposeIsr(proposal.clone()));
        self.pending = Some(Pending { proposal, added, uncertain: false, send_at: None });
    }

    fn wanted_isr(&self, core: &Core, now: Time) -> Vec<(BrokerId, BrokerEpoch)> {
        // While it recovers, the leader stands alone (R35): it only reports.
        let recovering = core.recovering;
        let stays = |id: &BrokerId| recovering || self.peer(*id).is_none_or(|peer| !peer.is_out_of_sync(core, now));
        let mut wanted: Vec<(BrokerId, BrokerEpoch)> =
            self.isr.iter().filter(|id| stays(id)).map(|id| (*id, core.broker_epoch(*id))).collect();
        for peer in &self.peers {
            if !recovering && !self.isr.contains(&peer.id) && peer.may_join(core, self.epoch_start) {
                // The session's epoch, not the metadata's: the incarnation that acknowledged is the one that joins (R64).
                wanted.push((peer.id, peer.session_epoch()));
            }
        }
        wanted
    }

    fn handle_alter_answer(&mut self, core: &mut Core, id: ProposalId, answer: AlterAnswer, now: Time) {
        let strict = core.config.rules.hold(Rule::R16AnswerBelongsToProposal);
        let belongs = self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.proposal.id == id && id.partition_epoch == core.partition_epoch);
        if strict && !belongs {
            return;
        }
        match answer {
            AlterAnswer::Changed { leader_epoch, partition_epoch, isr } => {
                let newer = leader_epoch == core.leader_epoch && partition_epoch > core.partition_epoch;
                if newer || (!strict && leader_epoch == core.leader_epoch) {
                    core.partition_epoch = core.partition_epoch.max(partition_epoch);
                    core.recovering = false;
                    self.isr = isr;
                    self.pending = None;
                } else {
                    self.unanswered(core, now);
                }
            }
            AlterAnswer::Refused { error, partition_epoch } => self.refused(core, error, partition_epoch, now),
            AlterAnswer::Unknown => self.unanswered(core, now),
        }
        self.settle(core, now);
    }

    fn refused(&mut self, core: &mut Core, error: ErrorCode, controller: Option<PartitionEpoch>, now: Time) {
        match error {
            ErrorCode::OperationNotAttempted | ErrorCode::IneligibleReplica => self.roll_back(core, now),
            // Nothing newer will come if the controller is where we are.
            ErrorCode::InvalidRequest if controller == Some(core.partition_epoch) => self.roll_back(core, now),
            ErrorCode::InvalidRequest
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::InvalidUpdateVersion
            | ErrorCode::UnknownTopicOrPartition
            | ErrorCode::UnknownTopicId
            | ErrorCode::NewLeaderElected => {}
            _ => self.unanswered(core, now),
        }
    }

    /// The same proposal goes out again: whether this copy was applied is unknown.
    fn unanswered(&mut self, core: &Core, now: Time) {
        if !core.config.rules.hold(Rule::R16StayPendingOnTimeout) {
            self.pending = None;
            self.hold_until = now + RETRY_MS;
            return;
        }
        if let Some(pending) = &mut self.pending {
            pending.uncertain = true;
            pending.send_at = Some(now + RETRY_MS);
        }
    }

    /// Back to the committed ISR. Where another copy may still be applied, only a newer partition epoch makes that safe:
    /// the committed ISR is proposed, which changes nothing but the epoch and so kills the old copy.
    fn roll_back(&mut self, core: &mut Core, now: Time) {
        let committed = self.isr.iter().map(|id| (*id, core.broker_epoch(*id))).collect();
        match &mut self.pending {
            Some(pending) if pending.uncertain => {
                pending.proposal = new_proposal(core, committed);
                pending.send_at = Some(now + RETRY_MS);
            }
            _ => {
                self.pending = None;
                // What made it refused is on its way as metadata: not at once again.
                self.hold_until = now + RETRY_MS;
            }
        }
    }

    /// Sends the pending proposal again if it is due.
    pub(crate) fn maybe_send_again(&mut self, core: &mut Core, now: Time) {
        if let Some(pending) = &mut self.pending
            && pending.send_at.is_some_and(|at| at <= now)
        {
            pending.send_at = None;
            core.act(Action::ProposeIsr(pending.proposal.clone()));
        }
    }
}

fn new_proposal(core: &mut Core, isr: Vec<(BrokerId, BrokerEpoch)>) -> Proposal {
    core.last_proposal += 1;
    let id = ProposalId {
        leader_epoch: core.leader_epoch,
        partition_epoch: core.partition_epoch,
        number: core.last_proposal,
    };
    Proposal { id, isr }
}
