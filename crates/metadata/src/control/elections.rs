//! Elections that are not the effect of a fence: recovery among the last known eligible leader replicas (`R35`), those an
//! operator asks for (`R36`), and leaders that go back to the preferred replica.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Rule, Time, TopicPartition};

use crate::control::draft::{Draft, Want};
use crate::control::messages::{
    ControlError, ControlResponse, ElectLeaders, ElectionResult, ElectionType, RecoveryAnswer, RecoveryReport,
};
use crate::records::Partition;

/// How many leaders go back to the preferred replica at once, as in Kafka.
const REBALANCED_AT_ONCE: usize = 1000;

impl Draft<'_> {
    pub(super) fn recovery_report(
        &mut self,
        request: &RecoveryReport,
        now: Time,
    ) -> Result<ControlResponse, ControlError> {
        self.check_broker_epoch(request.broker, request.epoch)?;
        for (id, _) in &request.answers {
            self.recover(*id, now);
        }
        Ok(ControlResponse::Done)
    }

    /// Elects where there is enough to do so (`R35`), or where the topic is content with whoever lives (`R36`).
    pub(super) fn recover(&mut self, id: TopicPartition, now: Time) {
        let Some(partition) = self.image.partition(id).cloned().filter(|partition| partition.awaits_recovery()) else {
            return;
        };
        let recovered = self.recovered_leader(&partition, now);
        if recovered.is_some() || self.allows_unclean(&partition) {
            self.change(id, &Want { recovered, ..Want::default() });
        }
    }

    /// Who leads after recovery, once enough is known (`R35`).
    fn recovered_leader(&self, partition: &Partition, now: Time) -> Option<BrokerId> {
        let recovery = self.soft().recoveries.get(&partition.id()).filter(|_| !is_forgotten(partition))?;
        let (candidates, everybody) = (self.candidates(partition), self.answers(partition));
        let answers: Vec<_> = everybody.iter().copied().filter(|(b, _)| candidates.contains(b)).collect();
        let synced = self.greatest(partition, answers.iter().filter(|answered| self.proves(partition, answered)));
        if synced.is_some() {
            return synced;
        }
        let answered = |b: &BrokerId| answers.iter().any(|(broker, _)| broker == b);
        let some = !answers.is_empty() && !self.holds(Rule::R35AllAnswer);
        if candidates.iter().all(answered) || some {
            let greatest = self.greatest(partition, &answers)?;
            let leads =
                self.knows_enough(partition, &answers) || self.is_greatest_of_all(partition, greatest, &everybody);
            return leads.then_some(greatest);
        }
        let waited = now.since(recovery.since) >= self.control.settings.recovery_wait_ms;
        let last_leader_is_whole = answers.iter().any(|(broker, answer)| {
            let whole = !answer.lossy || !self.holds(Rule::R35LossyLastLeader);
            let its_own = answer.directory == partition.last_leader_directory;
            *broker == partition.last_leader && whole && (its_own || !self.holds(Rule::R35LastLeadersDirectory))
        });
        (waited && last_leader_is_whole).then(|| self.greatest(partition, &answers)).flatten()
    }

    /// Whether the greatest of these logs, which all candidates have answered, has what was committed: one of them is where it
    /// was in sync, and has not lost everything. Else somebody who is no candidate may have more (`R35`).
    fn knows_enough(&self, partition: &Partition, answers: &[Answered]) -> bool {
        let lost_all = |answer: &RecoveryAnswer| answer.lossy && has_nothing(answer);
        let knows = |answered: &Answered| self.is_home(partition, answered) && !lost_all(&answered.1);
        answers.iter().any(knows) || !self.holds(Rule::R35LossyLastLeader)
    }

    /// Whether every replica has answered, and none has more than this one: there is nobody to wait for. Else an operator has to
    /// choose (`R36`).
    fn is_greatest_of_all(&self, partition: &Partition, leader: BrokerId, everybody: &[Answered]) -> bool {
        let committed = emptied_at(everybody);
        let log = |b: &BrokerId| everybody.iter().find(|(broker, _)| broker == b).map(|(_, a)| log_rank(a, committed));
        let Some(greatest) = log(&leader) else { return false };
        partition.replicas.iter().all(|b| log(b).is_some_and(|log| log <= greatest))
    }

    /// Who has the greatest log. Of equals one that lost nothing is taken, then one that is where it was in sync, then the last
    /// leader, else the first replica.
    fn greatest<'l>(
        &self,
        partition: &Partition,
        answers: impl IntoIterator<Item = &'l Answered, IntoIter: Clone>,
    ) -> Option<BrokerId> {
        let answers = answers.into_iter();
        let committed = emptied_at(answers.clone());
        let rank = |answered: &&Answered| {
            let (broker, answer) = *answered;
            let place = partition.replicas.iter().position(|replica| replica == broker);
            let log = Some(log_rank(answer, committed)).filter(|_| self.holds(Rule::R35GreatestLog));
            let is_home = self.is_home(partition, answered);
            (log, !answer.lossy, is_home, *broker == partition.last_leader, std::cmp::Reverse(place))
        };
        answers.max_by_key(rank).map(|(broker, _)| *broker)
    }

    /// Whether a replica that was in sync has all acknowledged records, whatever became of the others (`R35`). Where the metadata
    /// was restored, it may have left since (`R80`).
    pub(super) fn proves(&self, partition: &Partition, answered: &Answered) -> bool {
        let is_known = partition.last_leader != BrokerId::NONE || !self.holds(Rule::R80NobodyAlone);
        is_known && answered.1.synced_before_ack && !answered.1.lossy && self.is_home(partition, answered)
    }

    /// Whether a replica failed, by what its broker said last, and says nothing of its log (`R35`).
    pub(super) fn has_failed(&self, partition: &Partition, broker: BrokerId) -> bool {
        let recovery = self.soft().recoveries.get(&partition.id());
        recovery.and_then(|recovery| recovery.failed.get(&broker)) == Some(&self.image.broker_epoch(broker))
    }

    /// Whether a log is in the directory in which the replica was in sync, as far as is known (`R35`).
    pub(super) fn is_home(&self, partition: &Partition, (broker, answer): &Answered) -> bool {
        let home = partition.displaced_from(*broker).unwrap_or_else(|| partition.directory_of(*broker));
        let is_displaced = partition.displaced_from(*broker).is_some();
        let unknown = home.is_none() && !is_displaced;
        unknown || home == answer.directory || !self.holds(Rule::R35LossyLastLeader)
    }

    /// Who may have all committed records: an ELR member that is absent counts as not answered. Where nobody was ever in sync,
    /// everybody.
    pub(super) fn candidates(&self, partition: &Partition) -> Vec<BrokerId> {
        let nobody = nobody_is_a_candidate(partition);
        let may = |b: &BrokerId| nobody || partition.last_known().contains(b) || partition.elr.contains(b);
        partition.replicas.iter().copied().filter(may).collect()
    }

    /// The answers that count, of all replicas: of those that can lead, by the registrations in force.
    pub(super) fn answers(&self, partition: &Partition) -> Vec<Answered> {
        let Some(recovery) = self.soft().recoveries.get(&partition.id()) else { return Vec::new() };
        let counts = |(broker, (epoch, answer)): (&BrokerId, &(_, RecoveryAnswer))| {
            let counts = self.image.broker_epoch(*broker) == *epoch && self.image.is_eligible(partition, *broker);
            (counts && partition.replicas.contains(broker)).then_some((*broker, *answer))
        };
        recovery.answers.iter().filter_map(counts).collect()
    }

    pub(super) fn elect_leaders(&mut self, request: &ElectLeaders) -> Result<ControlResponse, ControlError> {
        let asked: Vec<(String, PartitionIndex)> = match &request.partitions {
            Some(partitions) => partitions.clone(),
            None => self.all_partitions(),
        };
        let mut results = Vec::new();
        let mut seen = BTreeSet::new();
        for (topic, partition) in asked {
            let result = if seen.insert((topic.clone(), partition)) {
                self.elect_leader(&topic, partition, request.election)
            } else {
                Err(ControlError::new(ErrorCode::InvalidRequest, "the partition is named more than once"))
            };
            let not_needed = matches!(&result, Err(error) if error.code == ErrorCode::ElectionNotNeeded);
            if request.partitions.is_some() || !not_needed {
                results.push(ElectionResult { topic, partition, result });
            }
        }
        Ok(ControlResponse::ElectLeaders(results))
    }

    fn all_partitions(&self) -> Vec<(String, PartitionIndex)> {
        let ids = self.image.topic_ids().iter();
        let topics = ids.filter_map(|(name, id)| self.image.topic(*id).map(|topic| (name, topic)));
        topics.flat_map(|(name, topic)| topic.partitions.keys().map(|index| (name.to_string(), *index))).collect()
    }

    fn elect_leader(&mut self, topic: &str, index: PartitionIndex, kind: ElectionType) -> Result<(), ControlError> {
        let unknown = || {
            let message = format!("partition {index} of topic {topic} does not exist");
            ControlError::new(ErrorCode::UnknownTopicOrPartition, message)
        };
        let partition = self.image.topic_by_name(topic).and_then(|topic| topic.partition(index)).cloned();
        let partition = partition.ok_or_else(unknown)?;
        match kind {
            ElectionType::Preferred => self.elect_preferred(&partition),
            ElectionType::Unclean => self.elect_unclean(&partition),
        }
    }

    fn elect_preferred(&mut self, partition: &Arc<Partition>) -> Result<(), ControlError> {
        let preferred = partition.replicas.first().copied().unwrap_or(BrokerId::NONE);
        if partition.leader == preferred {
            return Err(ControlError::new(
                ErrorCode::ElectionNotNeeded,
                "Leader election not needed for topic partition.",
            ));
        }
        self.change(partition.id(), &Want { preferred: true, ..Want::default() });
        if self.image.partition(partition.id()).is_some_and(|now| now.leader == preferred) {
            return Ok(());
        }
        let message = format!("the preferred leader, broker {preferred}, is not alive and in sync");
        Err(ControlError::new(ErrorCode::PreferredLeaderNotAvailable, message))
    }

    /// An operator takes the loss on himself (`R36`). Whoever answered with the most is taken, where no candidate is still to
    /// answer; else the first that lives of those, and who is known to have nothing only where there is nobody else.
    fn elect_unclean(&mut self, partition: &Arc<Partition>) -> Result<(), ControlError> {
        if !partition.is_leaderless() {
            return Err(ControlError::new(
                ErrorCode::ElectionNotNeeded,
                "Leader election not needed for topic partition.",
            ));
        }
        let answers = self.answers(partition);
        let candidates = self.candidates(partition);
        let eligible = |b: &BrokerId| self.image.is_eligible(partition, *b);
        let can = |b: &BrokerId| !self.has_failed(partition, *b);
        let answered = |b: &BrokerId| answers.iter().any(|(broker, _)| broker == b);
        let may_have_some = |b: &BrokerId| can(b) && !answered(b) && !partition.is_away(*b);
        let is_awaited = candidates.iter().any(|b| eligible(b) && may_have_some(b));
        let counts = |(b, answer): &&Answered| !has_nothing(answer) && (!is_awaited || candidates.contains(b));
        let greatest = self.greatest(partition, answers.iter().filter(counts));
        let alive = (0..).zip(&partition.replicas).filter(|(_, b)| eligible(b));
        let rank = |(place, b): &(i32, &BrokerId)| {
            (may_have_some(b), can(b), candidates.contains(b), std::cmp::Reverse(*place))
        };
        let first = || alive.max_by_key(rank).map(|(_, b)| *b);
        let Some(leader) = greatest.or_else(first) else {
            let message = "no replica is alive: start a broker that has one";
            return Err(ControlError::new(ErrorCode::EligibleLeadersNotAvailable, message));
        };
        self.change(partition.id(), &Want { recovered: Some(leader), ..Want::default() });
        Ok(())
    }

    /// Leaders go back to the preferred replica where it is alive and in sync: so many at once; whether there are more.
    pub(super) fn rebalance_leaders(&mut self) -> bool {
        let away = |partition: &&Arc<Partition>| {
            let preferred = partition.replicas.first().copied().unwrap_or(BrokerId::NONE);
            partition.leader != preferred
                && partition.isr.contains(&preferred)
                && self.image.is_eligible(partition, preferred)
        };
        let mut ids: Vec<_> =
            self.image.partitions().filter(away).map(|p| p.id()).take(REBALANCED_AT_ONCE + 1).collect();
        let more = ids.len() > REBALANCED_AT_ONCE;
        ids.truncate(REBALANCED_AT_ONCE);
        for id in ids {
            self.change(id, &Want { preferred: true, ..Want::default() });
        }
        more
    }
}

/// What a broker answered.
pub(super) type Answered = (BrokerId, RecoveryAnswer);

/// Whether all that were in sync have left the assignment: a reassignment was taken back under unclean elections (`R36`, `R37`).
/// Nobody can know then what was acknowledged.
pub(super) fn is_forgotten(partition: &Partition) -> bool {
    nobody_is_a_candidate(partition) && partition.last_leader != BrokerId::NONE
}

/// Whether no replica was in sync, ever, or none that was is left.
fn nobody_is_a_candidate(partition: &Partition) -> bool {
    partition.last_known().is_empty() && partition.elr.is_empty()
}

/// Whether all that had all committed records came back without the directory that they had them in (`R35`).
pub(super) fn nobody_is_known(partition: &Partition) -> bool {
    let mut known = partition.last_known().iter().chain(&partition.elr);
    known.all(|b| partition.displaced_from(*b).is_some())
}

/// Whether a replica has no records, and had none that were deleted: it may have lost all.
pub(super) fn has_nothing(answer: &RecoveryAnswer) -> bool {
    answer.log_end == Offset::ZERO
}

/// Which of two logs may have more, where all below `committed` was.
fn log_rank(answer: &RecoveryAnswer, committed: Offset) -> (bool, LeaderEpoch, Offset) {
    (answer.log_end >= committed, answer.last_epoch, answer.log_end)
}

/// Up to where records were committed, as an empty log tells: they were deleted, which no leader does above the high
/// watermark (`R39`). Such a log has no last epoch, and yet lacks nothing: one that ends lower does (`R35`).
fn emptied_at<'l>(answers: impl IntoIterator<Item = &'l Answered>) -> Offset {
    let emptied = answers.into_iter().filter(|(_, answer)| answer.last_epoch == LeaderEpoch::NONE);
    emptied.map(|(_, answer)| answer.log_end).max().unwrap_or(Offset::ZERO)
}
