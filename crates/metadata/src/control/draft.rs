//! A decision in the making: the image as the records so far would leave it, and how a partition changes.

use std::collections::BTreeMap;

use model::{
    BrokerEpoch, BrokerId, DirectoryId, ErrorCode, LeaderEpoch, MetadataOffset, PartitionEpoch, Rule, TopicPartition,
};

use crate::configs::{ACK_RULE, UNCLEAN_LEADER_ELECTION};
use crate::control::elections::{Answered, has_nothing, is_forgotten, nobody_is_known};
use crate::control::messages::{ControlError, ControlEvent, ControlResponse, Decision};
use crate::control::reassign::Assignment;
use crate::control::{ClusterControl, soft::SoftState};
use crate::image::MetadataImage;
use crate::records::{LeaderRecoveryState, MetadataRecord, Partition, PartitionChange};
use crate::restore::EPOCHS;

/// See the module.
pub(super) struct Draft<'a> {
    pub(super) control: &'a ClusterControl,
    /// What the cluster is after `records`.
    pub(super) image: MetadataImage,
    pub(super) records: Vec<MetadataRecord>,
    pub(super) events: Vec<ControlEvent>,
    /// How many replicas each log directory has, once somebody has asked.
    pub(super) loads: Option<BTreeMap<DirectoryId, usize>>,
}

/// What is to become of a partition; the rest follows from the rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Want {
    /// The ISR that the leader proposes.
    pub(super) isr: Option<Vec<BrokerId>>,
    /// A replica that leaves the ISR.
    pub(super) leaves: Option<BrokerId>,
    /// Whether the one that leaves may have lost records, and leaves the ELR as well (`R34`, `R78`).
    pub(super) unclean: bool,
    /// Whether its machine was started anew since, without a clean shutdown: what its log ends with may be lost unseen
    /// (`R35`).
    pub(super) cache_lost: bool,
    /// Whether the preferred replica is to lead.
    pub(super) preferred: bool,
    /// The leader that recovery, or an unclean election, came to (`R35`, `R36`).
    pub(super) recovered: Option<BrokerId>,
    /// The leader reports that it recovered.
    pub(super) leader_recovery_state: Option<LeaderRecoveryState>,
    /// The directory of each replica.
    pub(super) directories: Option<Vec<DirectoryId>>,
    /// A replica that is in another directory than this one, in which it was (`R35`).
    pub(super) displaced: Option<(BrokerId, DirectoryId)>,
    /// Where the replicas are, and are to be (`R37`).
    pub(super) assignment: Option<Assignment>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(control: &'a ClusterControl) -> Self {
        Self { control, image: control.image.clone(), records: Vec::new(), events: Vec::new(), loads: None }
    }

    /// The finished decision. A refusal leaves nothing behind.
    pub(super) fn decided(self, answer: Result<ControlResponse, ControlError>) -> Decision {
        match answer {
            Ok(response) => Decision { records: self.records, response, events: self.events },
            Err(error) => {
                Decision { records: Vec::new(), response: ControlResponse::Refused(error), events: Vec::new() }
            }
        }
    }

    pub(super) fn push(&mut self, record: MetadataRecord) {
        self.image.apply(&record);
        self.records.push(record);
    }

    /// Takes back all records after the first `kept`.
    pub(super) fn rewind(&mut self, kept: usize) {
        self.records.truncate(kept);
        self.loads = None;
        self.image = self.control.image.clone();
        for record in &self.records {
            self.image.apply(record);
        }
    }

    pub(super) fn soft(&self) -> &'a SoftState {
        &self.control.soft
    }

    pub(super) fn holds(&self, rule: Rule) -> bool {
        self.control.settings.rules.hold(rule)
    }

    /// Each call of a broker carries its epoch (`R8`).
    pub(super) fn check_broker_epoch(&self, broker: BrokerId, epoch: BrokerEpoch) -> Result<(), ControlError> {
        let current = self.image.broker_epoch(broker);
        if current == BrokerEpoch::NONE {
            let message = format!("broker {broker} is not registered: it has to register first");
            return Err(ControlError::new(ErrorCode::StaleBrokerEpoch, message));
        }
        if current != epoch && self.holds(Rule::R8BrokerEpoch) {
            let message = format!("broker {broker} is registered with epoch {current}, not {epoch}");
            return Err(ControlError::new(ErrorCode::StaleBrokerEpoch, message));
        }
        Ok(())
    }

    /// Changes a partition where there is something to change.
    pub(super) fn change(&mut self, id: TopicPartition, want: &Want) {
        let Some(before) = self.image.partition(id).cloned() else { return };
        let after = self.plan(&before, want);
        if (Partition { partition_epoch: before.partition_epoch, ..after.clone() }) != *before {
            self.put(&before, &after);
        }
    }

    /// Records that a partition goes from `before` to `after`.
    pub(super) fn put(&mut self, before: &Partition, after: &Partition) {
        let elected = !after.is_leaderless() && after.leader_epoch != before.leader_epoch;
        // Who joined the ISR in the same change, as at the end of a move, leads cleanly.
        let recovers = after.leader_recovery_state == LeaderRecoveryState::Recovering;
        if elected && recovers && !before.isr.contains(&after.leader) && !before.elr.contains(&after.leader) {
            self.note_unclean(before, after);
        }
        let nobody = |partition: &Partition| partition.awaits_recovery() && nobody_is_known(partition);
        if nobody(after) && !nobody(before) {
            self.events.push(ControlEvent::NobodyIsKnown(after.id()));
        }
        self.push(MetadataRecord::PartitionChange(Box::new(PartitionChange::between(before, after))));
    }

    /// A partition as `want` and the rules leave it: reassignment (`R37`), election (`R33`), ELR (`R34`), last known ELR
    /// (`R35`), epochs (`R1`).
    pub(super) fn plan(&self, before: &Partition, want: &Want) -> Partition {
        let mut after = before.clone();
        after.partition_epoch = PartitionEpoch(before.partition_epoch.0 + 1);
        if let Some(directories) = &want.directories {
            after.directories.clone_from(directories);
        }
        if let Some(state) = want.leader_recovery_state {
            after.leader_recovery_state = state;
        }
        if let Some(assignment) = &want.assignment {
            assignment.apply(&mut after);
        }
        let isr = want.isr.as_ref().unwrap_or(&before.isr);
        after.isr = in_order(&after, |b| isr.contains(&b) && want.leaves != Some(b));
        self.maybe_complete_reassignment(&mut after);
        after.elr = self.target_elr(before, want, &after);
        self.elect(before, want, &mut after);
        if self.is_enough(&after) && self.holds(Rule::R34ElrEndsAtMinIsr) {
            after.elr = Vec::new();
        }
        after.last_known_elr = self.target_last_known(before, &after);
        after.displaced = target_displaced(before, want, &after);
        if self.begins_leader_epoch(before, &after) || want.recovered.is_some() {
            after.leader_epoch = LeaderEpoch(self.newest_epoch(before).0 + 1);
        }
        let leads = !after.is_leaderless();
        if leads && (after.leader_epoch != before.leader_epoch || after.directories != before.directories) {
            after.last_leader = after.leader;
            after.last_leader_directory = after.directory_of(after.leader);
        }
        let lost = want.cache_lost && want.leaves == Some(after.last_leader) && self.holds(Rule::R35LossyLastLeader);
        if lost && !leads {
            after.last_leader_directory = DirectoryId::NONE;
        }
        after
    }

    /// The newest leader epoch that anybody told of: a log may have a later one than the metadata, where that was restored
    /// (`R80`). What is further away than one restoration raises is no epoch that was ever given.
    fn newest_epoch(&self, partition: &Partition) -> LeaderEpoch {
        let known = partition.leader_epoch;
        let told = self.answers(partition).into_iter().map(|(_, answer)| answer.last_epoch);
        let told =
            told.filter(|epoch| epoch.0 < known.0.saturating_add(2 * EPOCHS) && self.holds(Rule::R80AboveTheLogs));
        told.fold(known, LeaderEpoch::max)
    }

    /// Whether a leadership of its own begins: the leader changed, or a replica left the assignment (`R1`, `R37`).
    fn begins_leader_epoch(&self, before: &Partition, after: &Partition) -> bool {
        let left = || before.replicas.iter().any(|b| !after.replicas.contains(b));
        after.leader != before.leader || (left() && self.holds(Rule::R37LeaderEpoch))
    }

    /// Whether the ISR may commit (`R18`, `R34`, `R79`).
    pub(super) fn is_enough(&self, partition: &Partition) -> bool {
        let Some(topic) = self.image.topic(partition.topic_id) else { return !partition.isr.is_empty() };
        if !self.holds(Rule::R79Zones) {
            return partition.isr.len() >= self.image.min_isr(&topic.name, partition.factor());
        }
        self.image.is_enough(&topic.name, partition.factor(), &partition.isr)
    }

    /// Why replicas on these brokers could never commit under an ack rule of so many zones (`R79`); `None` where they can.
    pub(super) fn lacks_zones(&self, zones: usize, replicas: &[BrokerId]) -> Option<String> {
        let found = self.image.zones_of(replicas);
        (found < zones).then(|| {
            let brokers: Vec<_> = replicas.iter().map(ToString::to_string).collect();
            format!(
                "{ACK_RULE}=zones={zones} needs replicas in {zones} zones, but those on the brokers {} are in {found}: place \
                 them in others, give the brokers a broker.rack, or set {ACK_RULE}=isr",
                brokers.join(", ")
            )
        })
    }

    fn target_elr(&self, before: &Partition, want: &Want, after: &Partition) -> Vec<BrokerId> {
        let ends = self.is_enough(after) && self.holds(Rule::R34ElrEndsAtMinIsr);
        if ends || !self.holds(Rule::R34EligibleLeaderReplicas) {
            return Vec::new();
        }
        let unclean = want.leaves.filter(|_| want.unclean);
        in_order(after, |b| {
            (before.elr.contains(&b) || before.isr.contains(&b)) && !after.isr.contains(&b) && unclean != Some(b)
        })
    }

    fn target_last_known(&self, before: &Partition, after: &Partition) -> Vec<BrokerId> {
        if self.is_enough(after) {
            return Vec::new();
        }
        if !self.holds(Rule::R35LastKnownLeaders) {
            // What the model refutes: only the last non-empty ISR.
            return if after.isr.is_empty() && before.isr.is_empty() {
                before.last_known_elr.clone()
            } else {
                before.isr.clone()
            };
        }
        let sets = [before.last_known(), &before.isr, &before.elr, &after.isr, &after.elr];
        in_order(after, |b| sets.iter().any(|set| set.contains(&b)))
    }

    /// Keeps a valid leader; else takes the first valid replica (`R33`), else, where that is allowed, anybody (`R36`).
    fn elect(&self, before: &Partition, want: &Want, after: &mut Partition) {
        if let Some(leader) = want.recovered {
            let recovers = self.holds(Rule::R35Recovering);
            let state = if recovers { LeaderRecoveryState::Recovering } else { LeaderRecoveryState::Recovered };
            return lead_alone(after, leader, state);
        }
        let any_eligible = !self.holds(Rule::R33LeaderIsInSync);
        let eligible = |b: BrokerId| want.leaves != Some(b) && self.image.is_eligible(after, b);
        let valid = |b: BrokerId| {
            let in_sync = after.isr.contains(&b) || (after.isr.is_empty() && after.elr.contains(&b));
            eligible(b) && (in_sync || any_eligible)
        };
        let preferred = after.replicas.first().copied().filter(|first| want.preferred && valid(*first));
        let current = Some(before.leader).filter(|leader| valid(*leader) && self.holds(Rule::R33KeepsTheLeader));
        let clean = preferred.or(current).or_else(|| after.replicas.iter().copied().find(|b| valid(*b)));
        if let Some(leader) = clean {
            let state = after.leader_recovery_state;
            if after.isr.is_empty() {
                lead_alone(after, leader, state)
            } else {
                after.leader = leader
            }
            return;
        }
        let has_more =
            |b: BrokerId| (!self.has_failed(before, b), !before.is_away(b), before.last_known().contains(&b));
        let first_of_most = || {
            let alive = (0..).zip(&after.replicas).filter(|(_, b)| eligible(**b));
            alive.max_by_key(|(place, b)| (has_more(**b), std::cmp::Reverse(*place))).map(|(_, b)| *b)
        };
        match self.allows_unclean(before).then(first_of_most).flatten() {
            Some(leader) => lead_alone(after, leader, LeaderRecoveryState::Recovering),
            None => after.leader = BrokerId::NONE,
        }
    }

    /// `unclean.leader.election.enable` of a partition's topic (`R36`).
    pub(super) fn allows_unclean(&self, partition: &Partition) -> bool {
        let topic = self.image.topic(partition.topic_id);
        let set = topic.and_then(|t| self.image.topic_config(&t.name, UNCLEAN_LEADER_ELECTION, BrokerId::NONE));
        !self.holds(Rule::R36UncleanIsOff)
            || set.map_or(self.control.settings.unclean_leader_election, |value| {
                value.trim().eq_ignore_ascii_case("true")
            })
    }

    fn note_unclean(&mut self, before: &Partition, after: &Partition) {
        let answers = self.answers(before);
        let mut absent = self.candidates(before);
        let (known, _): (Vec<Answered>, _) = answers.iter().copied().partition(|(b, _)| absent.contains(b));
        absent.retain(|b| known.iter().all(|(a, _)| a != b));
        let home = |answered: &&Answered| self.is_home(before, answered);
        let proven = known.iter().any(|answered| answered.0 == after.leader && self.proves(before, answered));
        let lost = |answered: &Answered| answered.1.lossy || (!home(&answered) && has_nothing(&answered.1));
        let lacking = !absent.is_empty() || known.iter().any(lost);
        let nobody = is_forgotten(before) || nobody_is_known(before) && !known.iter().any(|answered| home(&answered));
        let potential_loss = nobody || !proven && lacking;
        self.events.push(ControlEvent::UncleanElection {
            partition: before.id(),
            last_leader: before.last_leader,
            leader: after.leader,
            leader_epoch: after.leader_epoch,
            answers,
            absent,
            potential_loss,
        });
    }

    /// The offset that the next record will have.
    pub(super) fn next_offset(&self) -> MetadataOffset {
        self.image.next_offset()
    }
}

/// Who is out of the directory that it was in sync in, of those that count (`R35`); where it was first, and until it is in sync.
fn target_displaced(before: &Partition, want: &Want, after: &Partition) -> Vec<(BrokerId, DirectoryId)> {
    let now = want.displaced;
    let from =
        |b: &BrokerId| before.displaced_from(*b).or(now.filter(|(displaced, _)| displaced == b).map(|(_, from)| from));
    let known = after.last_known_elr.iter().filter(|b| !after.isr.contains(b));
    known.filter_map(|b| Some((*b, from(b)?))).collect()
}

/// The leader is the whole ISR: nobody else is known to have what it has.
fn lead_alone(partition: &mut Partition, leader: BrokerId, state: LeaderRecoveryState) {
    partition.leader = leader;
    partition.isr = vec![leader];
    partition.elr.retain(|b| *b != leader);
    partition.leader_recovery_state = state;
}

/// The replicas that are wanted, in the order of the assignment.
pub(super) fn in_order(partition: &Partition, wanted: impl Fn(BrokerId) -> bool) -> Vec<BrokerId> {
    partition.replicas.iter().copied().filter(|b| wanted(*b)).collect()
}
