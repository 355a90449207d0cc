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
        let recovery = self.soft().recoveries.get(&partition.id())?;
        if nobody_is_known(partition) && !self.nothing_to_lose(partition) {
            return None;
        }
        let answers = self.answers(partition);
        let committed = emptied_at(&answers);
        let greatest = |among: &dyn Fn(&RecoveryAnswer) -> bool| {
            let candidates = answers.iter().filter(|(_, answer)| among(answer));
            // The last of equals is taken: who lost nothing, the last leader, else the first replica.
            let rank = |(broker, answer): &&(BrokerId, RecoveryAnswer)| {
                let place = partition.replicas.iter().position(|replica| replica == broker);
                let log = (answer.log_end >= committed, answer.last_epoch, answer.log_end);
                let log = Some(log).filter(|_| self.holds(Rule::R35GreatestLog));
                (log, !answer.lossy, *broker == partition.last_leader, std::cmp::Reverse(place))
            };
            candidates.max_by_key(rank).map(|(broker, _)| *broker)
        };
        // R80: who was in sync when the metadata ends may have left since: such a log is no proof alone.
        let is_known = partition.last_leader != BrokerId::NONE || !self.holds(Rule::R80NobodyAlone);
        let synced = greatest(&|answer| is_known && answer.synced_before_ack && !answer.lossy);
        if synced.is_some() {
            return synced;
        }
        let answered = |b: &BrokerId| answers.iter().any(|(broker, _)| broker == b);
        let some = !answers.is_empty() && !self.holds(Rule::R35AllAnswer);
        if self.candidates(partition).iter().all(answered) || some {
            let lost_all = |leader: &BrokerId| {
                answers.iter().any(|(broker, answer)| broker == leader && answer.lossy && has_nothing(answer))
            };
            let may_lead = |leader: &BrokerId| !lost_all(leader) || self.nothing_to_lose(partition);
            return greatest(&|_| true).filter(may_lead);
        }
        let waited = now.since(recovery.since) >= self.control.settings.recovery_wait_ms;
        let last_leader_is_whole = answers.iter().any(|(broker, answer)| {
            let whole = !answer.lossy || !self.holds(Rule::R35LossyLastLeader);
            let its_own = answer.directory == partition.last_leader_directory;
            *broker == partition.last_leader && whole && (its_own || !self.holds(Rule::R35LastLeadersDirectory))
        });
        (waited && last_leader_is_whole).then(|| greatest(&|_| true)).flatten()
    }

    /// Whether every replica has answered, and none has a record: there is nobody to wait for, whatever was lost. Else, where
    /// all that may have all committed records lost everything, as with a replaced disk, somebody else may have some, and an
    /// operator has to choose (`R35`, `R36`).
    fn nothing_to_lose(&self, partition: &Partition) -> bool {
        let nothing = |b: &BrokerId| self.answer(partition, *b).is_some_and(|answer| has_nothing(&answer));
        partition.replicas.iter().all(nothing) || !self.holds(Rule::R35LossyLastLeader)
    }

    /// Who may have all committed records: an ELR member that is absent counts as not answered. Where nobody is known to have
    /// any, everybody, for an operator to know whom to choose.
    pub(super) fn candidates(&self, partition: &Partition) -> Vec<BrokerId> {
        let nobody = nobody_is_known(partition);
        let may = |b: &BrokerId| nobody || partition.last_known().contains(b) || partition.elr.contains(b);
        partition.replicas.iter().copied().filter(may).collect()
    }

    /// The answers that count: of candidates that can lead, by the registrations in force.
    pub(super) fn answers(&self, partition: &Partition) -> Vec<(BrokerId, RecoveryAnswer)> {
        let answer = |broker| Some((broker, self.answer(partition, broker)?));
        self.candidates(partition).into_iter().filter_map(answer).collect()
    }

    fn answer(&self, partition: &Partition, broker: BrokerId) -> Option<RecoveryAnswer> {
        let (epoch, answer) = self.soft().recoveries.get(&partition.id())?.answers.get(&broker)?;
        let counts = self.image.broker_epoch(broker) == *epoch && self.image.is_eligible(partition, broker);
        counts.then_some(*answer)
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

    /// An operator takes the loss on himself (`R36`). Whoever answered with the most is taken, else the first that lives, and
    /// who is known to have nothing only where there is nobody else.
    fn elect_unclean(&mut self, partition: &Arc<Partition>) -> Result<(), ControlError> {
        if !partition.is_leaderless() {
            return Err(ControlError::new(
                ErrorCode::ElectionNotNeeded,
                "Leader election not needed for topic partition.",
            ));
        }
        let answers = self.answers(partition);
        let committed = emptied_at(&answers);
        let with_records = answers.iter().filter(|(_, answer)| !has_nothing(answer));
        let answered = with_records.max_by_key(|(broker, answer)| {
            let reaches = answer.log_end >= committed;
            (!answer.lossy, reaches, answer.last_epoch, answer.log_end, *broker == partition.last_leader)
        });
        let eligible = |b: &BrokerId| self.image.is_eligible(partition, *b);
        let is_empty = |b: &BrokerId| answers.iter().any(|(broker, answer)| broker == b && has_nothing(answer));
        let known = || self.candidates(partition).into_iter().find(|b| eligible(b) && !is_empty(b));
        let others = || partition.replicas.iter().copied().find(|b| eligible(b) && !is_empty(b));
        let anybody = || partition.replicas.iter().copied().find(|b| eligible(b));
        let answered = answered.map(|(broker, _)| *broker);
        let Some(leader) = answered.or_else(known).or_else(others).or_else(anybody) else {
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

/// Whether all that may have had all committed records lost everything (`R35`).
pub(super) fn nobody_is_known(partition: &Partition) -> bool {
    partition.last_known().is_empty() && partition.elr.is_empty()
}

/// Whether a replica has no records, and had none that were deleted: it may have lost all.
fn has_nothing(answer: &RecoveryAnswer) -> bool {
    answer.log_end == Offset::ZERO
}

/// Up to where records were committed, as an empty log tells: they were deleted, which no leader does above the high
/// watermark (`R39`). Such a log has no last epoch, and yet lacks nothing: one that ends lower does (`R35`).
fn emptied_at(answers: &[(BrokerId, RecoveryAnswer)]) -> Offset {
    let emptied = answers.iter().filter(|(_, answer)| answer.last_epoch == LeaderEpoch::NONE);
    emptied.map(|(_, answer)| answer.log_end).max().unwrap_or(Offset::ZERO)
}
