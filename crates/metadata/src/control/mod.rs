//! How the cluster may change: the decisions of the active controller, as a log-driven core.
//!
//! The shell calls [`ClusterControl::observe`] when a request *arrives* (`R71`), then [`ClusterControl::decide`]; it replays
//! the records of the decision at once, so that the next decision of the batch sees them (`R67`), and answers when the batch
//! is applied. After a batch that was not applied it calls [`ClusterControl::reset`] with the image that is; when a tenure
//! begins, [`ClusterControl::begin_tenure`].
//!
//! Invariants: deciding changes nothing; replaying neither fails nor decides; soft state never reaches a record but through
//! a decision; a decision's records up to any that does not go on with the one before it ([`MetadataRecord::goes_on`]) are
//! legal alone.

mod alter_configs;
mod alter_partitions;
mod brokers;
mod directories;
mod draft;
mod elections;
pub mod messages;
mod placement;
mod reassign;
mod recoveries;
mod soft;
mod topics;

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerEpoch, BrokerId, ClusterId, ErrorCode, ProducerId, Rule, Rules, Time, TopicPartition};

use crate::configs::MIN_INSYNC_REPLICAS;
use crate::image::MetadataImage;
use crate::records::{ConfigResource, FeatureRange, MetadataRecord};
use draft::Draft;
pub use messages::*;
pub use soft::{SoftState, Suspicion};
pub use topics::check_topic_name;

/// How many producer ids a broker is given at once (`R42`).
pub const PRODUCER_ID_BLOCK: i32 = 1000;

/// The levels of each feature that this program can work at; what is not listed does not exist for it.
pub const FEATURES: &[(&str, FeatureRange)] = &[
    ("metadata.version", FeatureRange { min: 1, max: 1 }),
    // Level 1 has consumer groups of the next generation (KIP-848).
    (GROUP_VERSION, FeatureRange { min: 0, max: 1 }),
    // From 2 on every transaction has an epoch of its own (R51).
    ("transaction.version", FeatureRange { min: 0, max: 2 }),
];

/// The name of the feature behind KIP-848.
pub const GROUP_VERSION: &str = "group.version";

/// [`FEATURES`] as a registration carries it.
#[must_use]
pub fn supported_features() -> BTreeMap<String, FeatureRange> {
    FEATURES.iter().map(|(name, range)| ((*name).to_owned(), *range)).collect()
}

/// What the controller is configured with.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ControlSettings {
    /// `broker.session.timeout.ms` (`R9`).
    pub session_timeout_ms: u64,
    /// `ottla.recovery.wait.ms` (`R35`).
    pub recovery_wait_ms: u64,
    /// `num.partitions`.
    pub num_partitions: i32,
    /// `default.replication.factor`.
    pub default_replication_factor: i16,
    /// `min.insync.replicas`, as the cluster's first records carry it.
    pub min_insync_replicas: u32,
    /// `unclean.leader.election.enable` (`R36`).
    pub unclean_leader_election: bool,
    /// `leader.imbalance.check.interval.seconds` in milliseconds; `None` where `auto.leader.rebalance.enable` is off.
    pub leader_rebalance_ms: Option<u64>,
    /// Which rules hold.
    pub rules: Rules,
}

impl Default for ControlSettings {
    /// The defaults of the configs named.
    fn default() -> Self {
        Self {
            session_timeout_ms: 9_000,
            recovery_wait_ms: 30_000,
            num_partitions: 1,
            default_replication_factor: 1,
            min_insync_replicas: 1,
            unclean_leader_election: false,
            leader_rebalance_ms: Some(300_000),
            rules: Rules::all(),
        }
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterControl {
    settings: ControlSettings,
    image: MetadataImage,
    /// The partitions without a leader: derived from the image.
    leaderless: BTreeSet<TopicPartition>,
    soft: SoftState,
}

impl ClusterControl {
    /// Control over an empty cluster.
    #[must_use]
    pub fn new(settings: ControlSettings) -> Self {
        Self { settings, image: MetadataImage::default(), leaderless: BTreeSet::new(), soft: SoftState::default() }
    }

    /// The first records of a new cluster (`R66`).
    #[must_use]
    pub fn first_records(&self, cluster_id: ClusterId) -> Vec<MetadataRecord> {
        let mut records = vec![MetadataRecord::ClusterId(cluster_id)];
        let feature = |(name, range): &(&str, FeatureRange)| {
            (range.max > 0).then(|| MetadataRecord::FeatureLevel { name: (*name).to_owned(), level: range.max })
        };
        records.extend(FEATURES.iter().filter_map(feature));
        records.push(MetadataRecord::Config {
            resource: ConfigResource::DefaultBroker,
            name: MIN_INSYNC_REPLICAS.to_owned(),
            value: Some(self.settings.min_insync_replicas.to_string()),
        });
        records
    }

    /// The image decided on.
    #[must_use]
    pub fn image(&self) -> &MetadataImage {
        &self.image
    }

    /// Starts over from an image, which was applied. What is known softly stays.
    pub fn reset(&mut self, image: MetadataImage) {
        self.leaderless = image.partitions().filter(|p| p.is_leaderless()).map(|p| p.id()).collect();
        self.soft.prune(&image, &self.leaderless);
        self.image = image;
    }

    /// A tenure begins: nothing is known softly, and all brokers count as heard of now (`R71`).
    pub fn begin_tenure(&mut self, now: Time) {
        // R71: silence before the tenure is nobody's fault.
        let began = if self.settings.rules.hold(Rule::R71NewTenure) { now } else { Time::ZERO };
        self.soft = SoftState::begin(began, now);
        self.soft.prune(&self.image, &self.leaderless);
    }

    /// Notes what a request tells by arriving: to be called before any queue (`R71`).
    pub fn observe(&mut self, request: &ControlRequest, now: Time) {
        self.soft.pass(now, self.stall_ms());
        match request {
            ControlRequest::RegisterBroker(register) => self.soft.registering(&self.image, register, now),
            ControlRequest::Heartbeat(heartbeat) => self.soft.heartbeat(&self.image, heartbeat, now),
            ControlRequest::Suspect(suspect) => self.soft.suspect(&self.image, *suspect, now),
            ControlRequest::Alive { broker, epoch } => self.soft.alive(&self.image, *broker, *epoch, now),
            ControlRequest::RecoveryReport(report) => self.soft.report(&self.image, report, now),
            ControlRequest::RegisterController(_)
            | ControlRequest::AlterPartitions(_)
            | ControlRequest::CreateTopics(_)
            | ControlRequest::DeleteTopics(_)
            | ControlRequest::CreatePartitions(_)
            | ControlRequest::IncrementalAlterConfigs(_)
            | ControlRequest::AlterConfigs(_)
            | ControlRequest::ElectLeaders(_)
            | ControlRequest::AlterReassignments(_)
            | ControlRequest::AssignReplicas(_)
            | ControlRequest::AllocateProducerIds { .. }
            | ControlRequest::UpdateFeatures(_)
            | ControlRequest::UnregisterBroker { .. } => {}
        }
    }

    /// Decides. `entropy` is fresh for each request: topic ids and the first broker of a placement come from it.
    #[must_use]
    pub fn decide(&self, request: &ControlRequest, now: Time, entropy: u128) -> Decision {
        let mut draft = Draft::new(self);
        let answer = match request {
            ControlRequest::RegisterBroker(request) => draft.register_broker(request, now),
            ControlRequest::Heartbeat(request) => draft.heartbeat(request),
            ControlRequest::RegisterController(request) => draft.register_controller(request),
            ControlRequest::Suspect(_) | ControlRequest::Alive { .. } => Ok(ControlResponse::Done),
            ControlRequest::AlterPartitions(request) => draft.alter_partitions(request),
            ControlRequest::RecoveryReport(request) => draft.recovery_report(request, now),
            ControlRequest::CreateTopics(request) => draft.create_topics(request, entropy),
            ControlRequest::DeleteTopics(request) => draft.delete_topics(request),
            ControlRequest::CreatePartitions(request) => draft.create_partitions(request, entropy),
            ControlRequest::IncrementalAlterConfigs(request) => draft.incremental_alter_configs(request),
            ControlRequest::AlterConfigs(request) => draft.alter_configs(request),
            ControlRequest::ElectLeaders(request) => draft.elect_leaders(request),
            ControlRequest::AlterReassignments(request) => draft.alter_reassignments(request),
            ControlRequest::AssignReplicas(request) => draft.assign_replicas(request),
            ControlRequest::AllocateProducerIds { broker, epoch } => draft.allocate_producer_ids(*broker, *epoch),
            ControlRequest::UpdateFeatures(request) => draft.update_features(request),
            ControlRequest::UnregisterBroker { broker } => draft.unregister_broker(*broker),
        };
        draft.decided(answer)
    }

    /// Applies a record: of a decision of this control, or of a batch of another.
    pub fn replay(&mut self, record: &MetadataRecord) {
        let touched = match record {
            MetadataRecord::Partition(partition) => Some(partition.id()),
            MetadataRecord::PartitionChange(change) => Some(change.id()),
            _ => None,
        };
        let leader = |image: &MetadataImage| touched.and_then(|id| image.partition(id)).map(|p| p.leader);
        let before = leader(&self.image);
        if let MetadataRecord::RemoveTopic { id } = record {
            for gone in self.leaderless.extract_if(.., |partition| partition.topic_id == *id) {
                self.soft.recoveries.is_over(gone);
            }
        }
        self.image.apply(record);
        let after = leader(&self.image);
        if let Some(id) = touched {
            if after == Some(BrokerId::NONE) {
                self.leaderless.insert(id);
                self.soft.recoveries.is_leaderless(id);
            } else {
                // This one only: with each of a hundred thousand a look at all takes minutes.
                self.leaderless.remove(&id);
                self.soft.recoveries.is_over(id);
            }
        }
        self.soft.replayed(record, &self.image, before, after);
    }

    /// Decides what is due by the time alone: sessions that expired (`R9`), recoveries that waited long enough (`R35`),
    /// leaders that go back to the preferred replica. Changes soft state only.
    pub fn tick(&mut self, now: Time) -> Decision {
        self.soft.pass(now, self.stall_ms());
        let recoverable = self.soft.recoveries.note(&self.image, now, self.settings.recovery_wait_ms);
        let rebalance = self.next_rebalance().is_some_and(|due| now >= due);
        let mut draft = Draft::new(self);
        for broker in self.expired(now) {
            draft.fence(broker, FenceReason::SessionExpired);
        }
        for id in recoverable {
            draft.recover(id, now);
        }
        let goes_on = rebalance && draft.rebalance_leaders();
        let decision = draft.decided(Ok(ControlResponse::Done));
        if rebalance {
            self.soft.rebalanced(now, goes_on);
        }
        decision
    }

    /// When leaders go back to their preferred replicas next.
    fn next_rebalance(&self) -> Option<Time> {
        self.settings.leader_rebalance_ms.map(|every| self.soft.next_rebalance(every))
    }

    /// When to call [`ClusterControl::tick`] next, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Time {
        let sessions =
            self.image.alive_brokers().map(|b| self.soft.last_contact(b) + (self.settings.session_timeout_ms + 1));
        let recoveries = self.soft.recoveries.due(self.soft.passed, self.settings.recovery_wait_ms);
        // Seldom enough, but often enough that time which passes is not taken for a stall (R71).
        let idle = self.soft.passed + self.settings.session_timeout_ms / 4;
        sessions.chain(recoveries).chain(self.next_rebalance()).fold(idle, Time::min)
    }

    /// When [`suspects`](Self::suspects) may have somebody to name by the time alone; `None` while that cannot be.
    #[must_use]
    pub fn next_suspicion(&self) -> Option<Time> {
        self.soft.next_suspicion(&self.image)
    }

    /// Who is believed gone (`R76`): to be probed over a new connection.
    #[must_use]
    pub fn suspects(&self, now: Time) -> Vec<Suspicion> {
        self.soft.standing(&self.image, now)
    }

    /// A suspect was found gone: fences it, unless a sign of life of it arrived since the suspicion, or more than half of the
    /// brokers are suspected still: those that live have answered their probes by then (`R76`).
    #[must_use]
    pub fn fence_suspect(&self, suspicion: &Suspicion, now: Time) -> Decision {
        let mut draft = Draft::new(self);
        let standing = self.suspects(now);
        let stands = standing.contains(suspicion) || !self.settings.rules.hold(Rule::R76HeartbeatClears);
        if stands && !self.too_many(standing.len()) && self.image.broker_epoch(suspicion.broker) == suspicion.epoch {
            draft.fence(suspicion.broker, FenceReason::FoundGone);
        }
        draft.decided(Ok(ControlResponse::Done))
    }

    /// A suspect answered the probe with the same epoch: the suspicion is dropped (`R76`).
    pub fn clear_suspicion(&mut self, suspicion: &Suspicion) {
        self.soft.clear(suspicion);
    }

    /// Time that jumps by more than half of this is taken for a stall of this process (`R71`).
    fn stall_ms(&self) -> u64 {
        if self.settings.rules.hold(Rule::R71Stall) { self.settings.session_timeout_ms } else { u64::MAX }
    }

    fn too_many(&self, suspects: usize) -> bool {
        suspects * 2 > self.image.alive_brokers().count() && self.settings.rules.hold(Rule::R76MoreThanHalf)
    }

    /// Unfenced brokers whose session expired, the longest silent first.
    fn expired(&self, now: Time) -> Vec<BrokerId> {
        let silent = |broker: &crate::records::BrokerRegistration| now.since(self.soft.last_contact(broker));
        let alive = self.image.alive_brokers().map(|broker| (silent(broker), broker.id));
        let session =
            if self.settings.rules.hold(Rule::R9SilenceOfASession) { self.settings.session_timeout_ms } else { 0 };
        let mut expired: Vec<_> = alive.filter(|(silent, _)| *silent > session).collect();
        expired.sort_by_key(|(silent, id)| (std::cmp::Reverse(*silent), *id));
        expired.into_iter().map(|(_, id)| id).collect()
    }
}

impl Draft<'_> {
    fn allocate_producer_ids(&mut self, broker: BrokerId, epoch: BrokerEpoch) -> Result<ControlResponse, ControlError> {
        self.check_broker_epoch(broker, epoch)?;
        let first = self.image.next_producer_id();
        let next = first.0.checked_add(i64::from(PRODUCER_ID_BLOCK)).map(ProducerId);
        let next =
            next.ok_or_else(|| ControlError::new(ErrorCode::UnknownServerError, "all producer ids are given out"))?;
        self.push(MetadataRecord::ProducerIds { next });
        Ok(ControlResponse::AllocateProducerIds { first, len: PRODUCER_ID_BLOCK })
    }

    fn update_features(&mut self, request: &UpdateFeatures) -> Result<ControlResponse, ControlError> {
        let results: Vec<_> = request.updates.iter().map(|update| self.update_feature(update)).collect();
        // As Kafka: all or none.
        if request.validate_only || results.iter().any(|result| result.result.is_err()) {
            self.rewind(0);
        }
        Ok(ControlResponse::UpdateFeatures(results))
    }

    fn update_feature(&mut self, update: &FeatureUpdate) -> FeatureResult {
        let result = self.check_feature(update);
        if result.is_ok() && self.image.feature(&update.name) != update.level {
            self.push(MetadataRecord::FeatureLevel { name: update.name.clone(), level: update.level });
        }
        FeatureResult { name: update.name.clone(), result }
    }

    fn check_feature(&self, update: &FeatureUpdate) -> Result<(), ControlError> {
        let refuse = |why: String| Err(ControlError::new(ErrorCode::InvalidUpdateVersion, why));
        let (name, level) = (&update.name, update.level);
        let in_range = |range: FeatureRange| range.min <= level && level <= range.max;
        match FEATURES.iter().find(|(known, _)| known == name) {
            None => return refuse(format!("the controller does not know the feature {name}")),
            Some((_, range)) if !in_range(*range) => {
                return refuse(format!(
                    "the controller supports {name} from {} to {}, not {level}",
                    range.min, range.max
                ));
            }
            Some(_) => {}
        }
        for broker in self.image.brokers().values() {
            if level > 0 && !broker.features.get(name).copied().is_some_and(in_range) {
                return refuse(format!("broker {} does not support level {level} of {name}", broker.id));
            }
        }
        let current = self.image.feature(name);
        if level < current && !update.allow_downgrade {
            return refuse(format!(
                "{name} is at level {current}: set the upgrade type to allow a downgrade to {level}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
