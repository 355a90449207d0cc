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
use crate::messages::{AckRule, Action};
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
        /// The rule that the controller decided by, where the answer says it: metadata may bring it later than the answer
        /// brings an ISR whose ELR rests on it (`R34`).
        ack_rule: Option<AckRule>,
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
    pub(crate) uncertain: bool,
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
            if !recovering && !self.isr.contains(&peer.id) && peer.may_join(core, self.epoch_start, now) {
                // The session's epoch, not the metadata's: the incarnation that acknowledged is the one that joins (R64).
                let by_session = core.config.rules.hold(Rule::R64SessionBrokerEpoch);
                wanted.push((peer.id, if by_session { peer.session_epoch() } else { core.broker_epoch(peer.id) }));
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
            AlterAnswer::Changed { leader_epoch, partition_epoch, isr, ack_rule } => {
                let newer = leader_epoch == core.leader_epoch && partition_epoch > core.partition_epoch;
                if newer || (!strict && leader_epoch == core.leader_epoch) {
                    core.partition_epoch = core.partition_epoch.max(partition_epoch);
                    core.recovering = false;
                    if let Some(rule) = ack_rule.filter(|_| core.config.rules.hold(Rule::R34RuleOfAnswer)) {
                        core.adopt_rule(rule);
                    }
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
            | ErrorCode::NewLeaderElected => {
                if !core.config.rules.hold(Rule::R16StayPendingOnRefusal) {
                    self.roll_back(core, now);
                }
            }
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
            Some(pending) if pending.uncertain && core.config.rules.hold(Rule::R16RollBackOnlyIfCertain) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::ProduceVerdict;
    use crate::messages::{Answer, OpenVerdict, PartitionState, ReplicaConfig, Session};
    use crate::testing::*;
    use model::{Offset, Rules};

    fn id(partition_epoch: i32, number: u64) -> ProposalId {
        ProposalId { leader_epoch: LeaderEpoch(5), partition_epoch: PartitionEpoch(partition_epoch), number }
    }

    fn proposal(partition_epoch: i32, number: u64, isr: &[i32]) -> Proposal {
        let isr = isr.iter().map(|id| (BrokerId(*id), BrokerEpoch(i64::from(*id) * 10))).collect();
        Proposal { id: id(partition_epoch, number), isr }
    }

    fn proposals(replica: &mut Replica) -> Vec<Proposal> {
        let only = |action| if let Action::ProposeIsr(proposal) = action { Some(proposal) } else { None };
        drain(replica).into_iter().filter_map(only).collect()
    }

    fn changed(partition_epoch: i32, isr: &[i32]) -> AlterAnswer {
        AlterAnswer::Changed {
            leader_epoch: LeaderEpoch(5),
            partition_epoch: PartitionEpoch(partition_epoch),
            isr: isr.iter().map(|id| BrokerId(*id)).collect(),
            ack_rule: None,
        }
    }

    fn refused(error: ErrorCode) -> AlterAnswer {
        AlterAnswer::Refused { error, partition_epoch: None }
    }

    fn hw(replica: &Replica) -> i64 {
        replica.log().high_watermark.0
    }

    /// ISR {1, 2}, min ISR 1: a shrink to {1} is accepted under a min ISR of 2 that this leader has not heard of.
    fn shrunk_under_a_newer_rule(rules: model::Rules) -> Replica {
        let config = crate::messages::ReplicaConfig { rules, ..config() };
        let mut leader = replica_with(config, 10, 10, &[(4, 0)]);
        let rule = AckRule { min_isr: 1, zones: 0 };
        leader.handle_metadata(&PartitionState { ack_rule: rule, ..state(1, 5, 50, &[1, 2]) }, T0);
        append(&mut leader, 12, T0);
        leader.handle_timeout(T0 + LAG_MS + 1);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1])]);
        let rule = AckRule { min_isr: 2, zones: 0 };
        let answer = AlterAnswer::Changed {
            leader_epoch: LeaderEpoch(5),
            partition_epoch: PartitionEpoch(51),
            isr: vec![ME],
            ack_rule: Some(rule),
        };
        leader.handle_alter_partition_answer(id(50, 1), answer, T0 + LAG_MS + 2);
        leader
    }

    #[test]
    fn a_leader_goes_by_the_rule_that_its_isr_was_accepted_under() {
        // R34: 2 is an eligible leader there, and must have all that is committed
        let leader = shrunk_under_a_newer_rule(rules());
        assert_eq!((hw(&leader), leader.isr()), (10, &[ME][..]));
        assert_eq!(leader.check_produce(-1), Err(ErrorCode::NotEnoughReplicas));
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn by_its_own_older_rule_it_would_commit_alone() {
        assert_eq!(hw(&shrunk_under_a_newer_rule(model::Rules::without(Rule::R34RuleOfAnswer))), 12);
    }

    /// ISR {1, 2} at 10; broker 3 has just joined at 10: the expansion is in flight as proposal 1.
    fn expanding() -> Replica {
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
        leader
    }

    /// ISR {1, 2, 3} at 10; 3 stays at 10 while 12 is appended, until it lags: the shrink is in flight as proposal 1.
    fn shrinking() -> (Replica, Time) {
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        let late = T0 + LAG_MS + 1;
        assert_eq!(leader.poll_timeout(), Some(late));
        leader.handle_timeout(late - 1);
        assert_eq!(proposals(&mut leader), []);
        leader.handle_timeout(late);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2])]);
        assert_eq!(leader.poll_timeout(), None);
        (leader, late)
    }

    #[test]
    fn a_member_that_lags_in_time_is_proposed_out() {
        // R11
        let (leader, _) = shrinking();
        assert_eq!(leader.isr(), [ME, B2, B3]);
    }

    #[test]
    fn a_slow_follower_that_keeps_up_in_time_stays() {
        // R11, R61: always behind, never by more than the lag time
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        for i in 1..10 {
            let now = T0 + i * 12_000;
            let end = 10 + i64::try_from(i).unwrap();
            append(&mut leader, end, now);
            acks(&mut leader, B2, 1, end, now);
            acks(&mut leader, B3, 1, end - 1, now);
            leader.handle_timeout(now);
            assert_eq!(proposals(&mut leader), []);
        }
    }

    #[test]
    fn a_follower_that_acknowledges_without_ever_catching_up_falls_out() {
        // R11: the time of its last ack does not save it
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        append(&mut leader, 100, T0);
        let mut out = Vec::new();
        for i in 1..8 {
            let now = T0 + i * 5_000;
            let end = 100 + 10 * i64::try_from(i).unwrap();
            append(&mut leader, end, now);
            acks(&mut leader, B2, 1, end, now);
            acks(&mut leader, B3, 1, 10 + i64::try_from(i).unwrap(), now);
            leader.handle_timeout(now);
            out.extend(proposals(&mut leader));
        }
        assert_eq!(out, [proposal(50, 1, &[1, 2])]);
    }

    #[test]
    fn the_first_append_after_idleness_empties_no_isr() {
        // R61
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        let later = T0 + 10 * LAG_MS;
        append(&mut leader, 11, later);
        leader.handle_timeout(later + LAG_MS);
        assert_eq!(proposals(&mut leader), []);
    }

    #[test]
    fn a_member_that_opens_below_the_high_watermark_is_proposed_out_at_once() {
        // R57
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 6, T0);
        let lost = Action::MemberLostRecords { follower: B3, log_end: Offset(6), high_watermark: Offset(10) };
        let actions = drain(&mut leader);
        assert!(actions.contains(&lost));
        assert!(actions.contains(&Action::ProposeIsr(proposal(50, 1, &[1, 2]))));
    }

    #[test]
    fn a_follower_joins_once_it_reaches_the_start_of_the_leader_epoch() {
        // R12: not at the high watermark, which may be behind the true one
        let mut leader = leader(10, 7, &[1, 2]);
        opens(&mut leader, B3, 1, 8, T0);
        assert_eq!(proposals(&mut leader), []);
        send_all(&mut leader);
        acks(&mut leader, B3, 1, 10, T0);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
    }

    #[test]
    fn a_fenced_follower_joins_when_it_is_unfenced() {
        // R12, R64
        let mut leader = leader(10, 10, &[1, 2]);
        let mut fenced = state(1, 5, 50, &[1, 2]);
        fenced.replicas[2].eligible = false;
        leader.handle_metadata(&fenced, T0);
        opens(&mut leader, B3, 1, 10, T0);
        assert_eq!(proposals(&mut leader), []);
        leader.handle_metadata(&state(1, 5, 50, &[1, 2]), T0);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
    }

    #[test]
    fn a_follower_without_a_current_session_does_not_join() {
        // R64
        let mut leader = leader(10, 7, &[1, 2]);
        opens(&mut leader, B3, 1, 8, T0);
        leader.handle_stream_closed(B3, BrokerEpoch(30), 1, T0);
        acks(&mut leader, B3, 1, 10, T0);
        assert_eq!(proposals(&mut leader), []);
    }

    /// Fenced broker 3 acknowledged all of the log; then its log parted from it (its disk is bad), and it is unfenced.
    fn parted_and_unfenced(rules: Rules) -> Replica {
        let mut leader = replica_with(ReplicaConfig { rules, ..config() }, 10, 10, &[(4, 0)]);
        let mut fenced = state(1, 5, 50, &[1, 2]);
        fenced.replicas[2].eligible = false;
        leader.handle_metadata(&fenced, T0);
        opens(&mut leader, B3, 1, 10, T0);
        let parted = leader.handle_open(B3, session(B3, 2), open(2, 30, 4), T0);
        assert!(matches!(parted, OpenVerdict::Answer(Answer::Diverging { .. })), "{parted:?}");
        drain(&mut leader);
        leader.handle_metadata(&state(1, 5, 50, &[1, 2]), T0);
        leader
    }

    #[test]
    fn what_an_ended_session_acknowledged_lets_nobody_join() {
        // R57, R64: the log end that the leader remembers is of a log that is no more
        let mut leader = parted_and_unfenced(Rules::all());
        assert_eq!(leader.follower_log_end(B3), Some(Offset(10)));
        assert_eq!(proposals(&mut leader), []);
    }

    #[test]
    #[cfg(feature = "mutations")]
    fn without_r64_an_ended_session_would_let_a_follower_join() {
        let mut leader = parted_and_unfenced(Rules::without(model::Rule::R64SessionBrokerEpoch));
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
    }

    #[test]
    fn one_change_is_in_flight_at_a_time() {
        // R13
        let mut leader = expanding();
        append(&mut leader, 12, T0);
        leader.handle_timeout(T0 + LAG_MS + 1);
        assert_eq!(proposals(&mut leader), []);
        leader.handle_alter_partition_answer(id(50, 1), changed(51, &[1, 2, 3]), T0 + LAG_MS + 2);
        assert_eq!(proposals(&mut leader), [proposal(51, 2, &[1])]);
    }

    #[test]
    fn an_expansion_in_flight_counts_for_the_high_watermark() {
        // R14
        let mut leader = expanding();
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        assert_eq!(hw(&leader), 10);
        acks(&mut leader, B3, 1, 11, T0);
        assert_eq!(hw(&leader), 11);
    }

    #[test]
    fn a_shrink_in_flight_does_not_release_records() {
        // R14
        let (mut leader, late) = shrinking();
        assert_eq!(leader.produce_verdict(Offset(12)), ProduceVerdict::Pending);
        leader.handle_alter_partition_answer(id(50, 1), changed(51, &[1, 2]), late);
        assert_eq!(leader.produce_verdict(Offset(12)), ProduceVerdict::Done(ErrorCode::None));
    }

    #[test]
    fn a_success_is_adopted_with_its_partition_epoch() {
        // R16
        let mut leader = expanding();
        leader.handle_alter_partition_answer(id(50, 1), changed(51, &[1, 2, 3]), T0);
        assert_eq!((leader.isr(), leader.partition_epoch()), (&[ME, B2, B3][..], PartitionEpoch(51)));
        leader.handle_metadata(&state(1, 5, 50, &[1, 2]), T0);
        assert_eq!(leader.isr(), [ME, B2, B3], "R3: the older state is dropped");
        leader.handle_metadata(&state(1, 5, 51, &[1, 2, 3]), T0);
        assert_eq!(leader.isr(), [ME, B2, B3]);
    }

    #[test]
    fn an_answer_to_another_proposal_is_ignored() {
        // R16
        let mut leader = expanding();
        let before = leader.clone();
        leader.handle_alter_partition_answer(id(50, 7), changed(51, &[1, 2, 3]), T0);
        leader.handle_alter_partition_answer(id(49, 1), refused(ErrorCode::IneligibleReplica), T0);
        assert_eq!(leader, before);
        leader.handle_metadata(&state(1, 5, 51, &[1, 2]), T0);
        drain(&mut leader);
        let before = leader.clone();
        leader.handle_alter_partition_answer(id(50, 1), changed(52, &[1, 2, 3]), T0);
        assert_eq!(leader, before, "the metadata has moved on from what it was proposed under");
    }

    #[test]
    fn a_certain_refusal_goes_back_to_the_committed_isr() {
        // R16
        for error in [ErrorCode::IneligibleReplica, ErrorCode::OperationNotAttempted] {
            let mut leader = expanding();
            append(&mut leader, 12, T0);
            acks(&mut leader, B2, 1, 12, T0);
            let mut fenced = state(1, 5, 50, &[1, 2]);
            fenced.replicas[2].eligible = false;
            leader.handle_metadata(&fenced, T0);
            assert_eq!(hw(&leader), 10, "still pending");
            leader.handle_alter_partition_answer(id(50, 1), refused(error), T0);
            assert_eq!(hw(&leader), 12);
        }
    }

    #[test]
    fn a_refused_expansion_is_proposed_again_after_a_while() {
        let mut leader = expanding();
        leader.handle_alter_partition_answer(id(50, 1), refused(ErrorCode::IneligibleReplica), T0);
        assert_eq!(proposals(&mut leader), []);
        assert_eq!(leader.poll_timeout(), Some(T0 + RETRY_MS));
        leader.handle_timeout(T0 + RETRY_MS);
        assert_eq!(proposals(&mut leader), [proposal(50, 2, &[1, 2, 3])]);
    }

    #[test]
    fn refusals_that_announce_newer_metadata_stay_pending_until_it_comes() {
        // R16
        for error in [
            ErrorCode::FencedLeaderEpoch,
            ErrorCode::InvalidUpdateVersion,
            ErrorCode::InvalidRequest,
            ErrorCode::UnknownTopicOrPartition,
            ErrorCode::UnknownTopicId,
            ErrorCode::NewLeaderElected,
        ] {
            let mut leader = expanding();
            leader.handle_alter_partition_answer(id(50, 1), refused(error), T0);
            append(&mut leader, 12, T0);
            acks(&mut leader, B2, 1, 12, T0);
            assert_eq!((hw(&leader), leader.poll_timeout(), proposals(&mut leader)), (10, None, vec![]), "{error}");
            leader.handle_metadata(&state(1, 5, 51, &[1, 2]), T0);
            assert_eq!((hw(&leader), proposals(&mut leader)), (10, vec![proposal(51, 2, &[1, 2, 3])]));
        }
    }

    #[test]
    fn an_unanswered_proposal_is_sent_again_as_it_was() {
        // R16
        let mut leader = expanding();
        leader.handle_alter_partition_answer(id(50, 1), AlterAnswer::Unknown, T0);
        assert_eq!(leader.poll_timeout(), Some(T0 + RETRY_MS));
        leader.handle_timeout(T0 + RETRY_MS);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
        leader.handle_alter_partition_answer(id(50, 1), refused(ErrorCode::NotController), T0 + 60);
        leader.handle_timeout(T0 + 60 + RETRY_MS);
        assert_eq!(proposals(&mut leader), [proposal(50, 1, &[1, 2, 3])]);
    }

    #[test]
    fn a_refusal_after_an_unanswered_copy_kills_that_copy_before_it_rolls_back() {
        // R16: the committed ISR under the same partition epoch, which only raises that
        let mut leader = expanding();
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        leader.handle_alter_partition_answer(id(50, 1), AlterAnswer::Unknown, T0);
        leader.handle_timeout(T0 + RETRY_MS);
        drain(&mut leader);
        leader.handle_alter_partition_answer(id(50, 1), refused(ErrorCode::IneligibleReplica), T0 + 60);
        leader.handle_timeout(T0 + 60 + RETRY_MS);
        assert_eq!(proposals(&mut leader), [proposal(50, 2, &[1, 2])]);
        assert_eq!(hw(&leader), 10, "the old copy may still be applied");
        leader.handle_stream_closed(B3, BrokerEpoch(30), 1, T0 + 120);
        assert_eq!(hw(&leader), 10);
        leader.handle_alter_partition_answer(id(50, 2), changed(51, &[1, 2]), T0 + 130);
        assert_eq!(hw(&leader), 12);
    }

    #[test]
    fn an_invalid_request_from_a_controller_that_is_where_we_are_rolls_back() {
        // R16
        let mut leader = expanding();
        let error = ErrorCode::InvalidRequest;
        let answer = AlterAnswer::Refused { error, partition_epoch: Some(PartitionEpoch(50)) };
        leader.handle_alter_partition_answer(id(50, 1), answer, T0);
        assert_eq!(leader.poll_timeout(), Some(T0 + RETRY_MS));
    }

    #[test]
    fn a_recovering_leader_reports_before_anyone_joins() {
        // R35
        let mut replica = replica(10, 10, &[(4, 0)]);
        let recovering = PartitionState { recovering: true, ..state(1, 5, 50, &[1]) };
        replica.handle_metadata(&recovering, T0);
        assert_eq!(proposals(&mut replica), [proposal(50, 1, &[1])]);
        opens(&mut replica, B2, 1, 10, T0);
        assert_eq!(proposals(&mut replica), []);
        replica.handle_alter_partition_answer(id(50, 1), changed(51, &[1]), T0);
        assert_eq!(proposals(&mut replica), [proposal(51, 2, &[1, 2])]);
    }

    #[test]
    fn the_high_watermark_waits_for_a_follower_that_is_about_to_join() {
        // R18: refused for now, caught up, eligible
        let mut leader = expanding();
        leader.handle_alter_partition_answer(id(50, 1), refused(ErrorCode::IneligibleReplica), T0);
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        assert_eq!((hw(&leader), leader.poll_timeout()), (10, Some(T0 + RETRY_MS)));
        leader.handle_stream_closed(B3, BrokerEpoch(30), 1, T0);
        assert_eq!(hw(&leader), 12, "without a session it joins no more");
    }

    #[test]
    fn the_high_watermark_does_not_wait_for_one_that_it_has_left_behind() {
        // R18: broker 3 had everything a moment ago, was started anew, and has to be brought up first
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        let mut again = state(1, 5, 51, &[1, 2]);
        again.replicas[2].broker_epoch = BrokerEpoch(77);
        leader.handle_metadata(&again, T0);
        append(&mut leader, 14, T0);
        acks(&mut leader, B2, 1, 14, T0);
        let started_anew = Session { broker_epoch: BrokerEpoch(77), ..session(B3, 1) };
        let answer = leader.handle_open(B3, started_anew, open(1, 10, 4), T0 + 1);
        assert!(matches!(answer, OpenVerdict::Answer(Answer::Opened { .. })), "{answer:?}");
        append(&mut leader, 16, T0 + 2);
        acks(&mut leader, B2, 1, 16, T0 + 2);
        assert_eq!(hw(&leader), 16);
    }
}
