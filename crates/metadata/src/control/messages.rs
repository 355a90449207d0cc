//! What may be asked of the active controller, and what it answers: typed values without API versions.

use std::collections::BTreeMap;

use model::{
    BrokerEpoch, BrokerId, DirectoryId, ErrorCode, Incarnation, LeaderEpoch, MetadataOffset, Offset, PartitionEpoch,
    PartitionIndex, ProducerId, TopicId, TopicPartition,
};

use crate::records::{
    ConfigResource, ControllerRegistration, FeatureRange, LeaderRecoveryState, Listener, MetadataRecord,
};

/// What may be asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ControlRequest {
    /// A broker starts (`R6`).
    RegisterBroker(RegisterBroker),
    /// A broker lives (`R7`, `R9`, `R32`).
    Heartbeat(Heartbeat),
    /// A controller says where it can be reached.
    RegisterController(ControllerRegistration),
    /// A node believes that a broker is gone (`R76`).
    Suspect(Suspect),
    /// A sign of life between heartbeats, of a thread that does little else (`R76`).
    Alive {
        /// Who.
        broker: BrokerId,
        /// Its registration.
        epoch: BrokerEpoch,
    },
    /// A leader proposes ISR changes (`R13`).
    AlterPartitions(AlterPartitions),
    /// A broker says what its replicas of leaderless partitions hold (`R35`).
    RecoveryReport(RecoveryReport),
    /// New topics.
    CreateTopics(CreateTopics),
    /// Topics to delete.
    DeleteTopics(DeleteTopics),
    /// More partitions for topics.
    CreatePartitions(CreatePartitions),
    /// Config operations (IncrementalAlterConfigs).
    IncrementalAlterConfigs(IncrementalAlterConfigs),
    /// Whole new configs of resources (AlterConfigs).
    AlterConfigs(AlterConfigs),
    /// Leader elections asked for by an operator.
    ElectLeaders(ElectLeaders),
    /// Replicas to move (`R37`).
    AlterReassignments(AlterReassignments),
    /// A broker says in which directories its replicas are (KIP-858).
    AssignReplicas(AssignReplicas),
    /// A block of producer ids (`R42`).
    AllocateProducerIds {
        /// Who asks.
        broker: BrokerId,
        /// Its registration.
        epoch: BrokerEpoch,
    },
    /// Features to finalise.
    UpdateFeatures(UpdateFeatures),
    /// A broker that is not to come back.
    UnregisterBroker {
        /// Which.
        broker: BrokerId,
    },
}

impl ControlRequest {
    /// Whether asking twice is as asking once: then it may be asked again although it is unknown what became of it. Most of what
    /// clients want done is not: the second time would meet the effect of the first. New topics are known by their identities.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        match self {
            ControlRequest::RegisterBroker(_)
            | ControlRequest::Heartbeat(_)
            | ControlRequest::RegisterController(_)
            | ControlRequest::Suspect(_)
            | ControlRequest::Alive { .. }
            | ControlRequest::AlterPartitions(_)
            | ControlRequest::RecoveryReport(_)
            | ControlRequest::AssignReplicas(_)
            | ControlRequest::AllocateProducerIds { .. } => true,
            ControlRequest::CreateTopics(request) => request.seed != 0,
            ControlRequest::DeleteTopics(_)
            | ControlRequest::CreatePartitions(_)
            | ControlRequest::IncrementalAlterConfigs(_)
            | ControlRequest::AlterConfigs(_)
            | ControlRequest::ElectLeaders(_)
            | ControlRequest::AlterReassignments(_)
            | ControlRequest::UpdateFeatures(_)
            | ControlRequest::UnregisterBroker { .. } => false,
        }
    }

    /// Whether an answer that records nothing must be current (`R71`). What brokers say of their lives comes often, and a
    /// late answer to it does no harm: there the lease of the tenure is enough (`R68`).
    #[must_use]
    pub fn wants_current_answer(&self) -> bool {
        !matches!(
            self,
            ControlRequest::Heartbeat(_)
                | ControlRequest::Suspect(_)
                | ControlRequest::Alive { .. }
                | ControlRequest::RecoveryReport(_)
        )
    }
}

/// The answer to a [`ControlRequest`]; each variant to the request of its name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ControlResponse {
    /// The request as a whole was refused.
    Refused(ControlError),
    /// Done; there is nothing more to say: `RegisterController`, `Suspect`, `Alive`, `RecoveryReport`,
    /// `AssignReplicas`, `UnregisterBroker`, a tick.
    Done,
    /// The broker's epoch.
    RegisterBroker {
        /// The epoch of the registration.
        epoch: BrokerEpoch,
    },
    /// The broker's state.
    Heartbeat(HeartbeatAnswer),
    /// One answer for each partition asked for, in order.
    AlterPartitions(Vec<AlteredPartition>),
    /// One answer for each topic asked for, in order.
    CreateTopics(Vec<CreatedTopic>),
    /// One answer for each topic asked for, in order.
    DeleteTopics(Vec<DeletedTopic>),
    /// One answer for each topic asked for, in order.
    CreatePartitions(Vec<TopicResult>),
    /// One answer for each resource asked for, in order.
    IncrementalAlterConfigs(Vec<ConfigResult>),
    /// One answer for each resource asked for, in order.
    AlterConfigs(Vec<ConfigResult>),
    /// One answer for each partition asked for, or elected where all were asked for.
    ElectLeaders(Vec<ElectionResult>),
    /// One answer for each partition asked for, in order.
    AlterReassignments(Vec<ReassignmentResult>),
    /// The block.
    AllocateProducerIds {
        /// Its first id.
        first: ProducerId,
        /// How many.
        len: i32,
    },
    /// One answer for each feature asked for, in order.
    UpdateFeatures(Vec<FeatureResult>),
}

/// An error as Kafka has it, with a sentence for people.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[error("{}: {message}", code.name())]
pub struct ControlError {
    /// The code.
    pub code: ErrorCode,
    /// What is wrong.
    pub message: String,
}

impl ControlError {
    /// An error.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What a decision comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Decision {
    /// What to append, in this order; nothing may come between. A batch that is too large may be cut where a record does not
    /// go on with the one before it ([`MetadataRecord::goes_on`]): the records before such a cut are legal alone, but the
    /// response holds for the whole only (`R67`).
    pub records: Vec<MetadataRecord>,
    /// What to answer once all records are applied.
    pub response: ControlResponse,
    /// What to tell operators once all records are applied, with the evidence.
    pub events: Vec<ControlEvent>,
}

/// Something that the controller did by itself, and why.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ControlEvent {
    /// A broker was fenced.
    BrokerFenced {
        /// Which.
        broker: BrokerId,
        /// Its registration.
        epoch: BrokerEpoch,
        /// Why.
        reason: FenceReason,
    },
    /// A leader was elected that may not have all committed records (`R35`, `R36`).
    UncleanElection {
        /// Of which partition.
        partition: TopicPartition,
        /// Who led before.
        last_leader: BrokerId,
        /// Who leads now.
        leader: BrokerId,
        /// Its epoch.
        leader_epoch: LeaderEpoch,
        /// What was answered, by candidates and others.
        answers: Vec<(BrokerId, RecoveryAnswer)>,
        /// Candidates that did not answer.
        absent: Vec<BrokerId>,
        /// Whether committed records may be lost: an answer was lossy or missing, or nobody was asked.
        potential_loss: bool,
    },
    /// All replicas that had all acknowledged records of this leaderless partition came back without the directories that they
    /// had them in: unless these come back too, or one of them has the most of all replicas, only an operator elects (`R35`, `R36`).
    NobodyIsKnown(TopicPartition),
}

/// Why a broker was fenced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FenceReason {
    /// No heartbeat for a session timeout (`R9`).
    SessionExpired,
    /// It was found gone (`R76`).
    FoundGone,
    /// A new incarnation registered (`R6`).
    Replaced,
    /// It asked for it.
    Asked,
    /// It may stop (`R32`).
    ShutDown,
    /// An operator unregistered it.
    Unregistered,
}

/// A broker starts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RegisterBroker {
    /// Its `node.id`.
    pub broker: BrokerId,
    /// The cluster it believes to be part of; `NONE` on its first start.
    pub cluster_id: model::ClusterId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// This run of its machine.
    pub boot: model::BootId,
    /// Its log directories.
    pub directories: Vec<DirectoryId>,
    /// Those of them that failed (`R30`).
    pub offline_directories: Vec<DirectoryId>,
    /// Those of them that take no new replicas (KIP-1066).
    pub cordoned_directories: Vec<DirectoryId>,
    /// Whether a configured directory could not be opened, so that not even its identity is known: those that the broker
    /// had before and does not name are then offline, and not gone.
    pub unidentified_directories: bool,
    /// Where it can be reached.
    pub listeners: Vec<Listener>,
    /// Its zone.
    pub rack: Option<String>,
    /// What it supports.
    pub features: BTreeMap<String, FeatureRange>,
    /// Its epoch before, if its last shutdown is proven clean (`R10`), else `NONE`.
    pub previous_epoch: BrokerEpoch,
    /// Replicas that lost records although the shutdown was clean (`R29`, `R78`).
    pub lossy: Vec<TopicPartition>,
}

/// A broker lives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Heartbeat {
    /// Who.
    pub broker: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// The `next_offset` of the image that it has applied.
    pub next_offset: MetadataOffset,
    /// Whether it wants to be, or stay, fenced: it still recovers.
    pub want_fence: bool,
    /// Whether it wants to stop (`R32`).
    pub want_shutdown: bool,
    /// The log directories that have failed by now (`R30`).
    pub offline_directories: Vec<DirectoryId>,
    /// Replicas found lossy since the registration (`R29`, `R78`).
    pub lossy: Vec<TopicPartition>,
    /// The log directories that take no appends now, for want of space, but for those of internal topics.
    pub full_directories: Vec<DirectoryId>,
    /// Those of them that take none of internal topics, either.
    pub exhausted_directories: Vec<DirectoryId>,
    /// The log directories that take no new replicas, as an operator wants it (KIP-1066).
    pub cordoned_directories: Vec<DirectoryId>,
}

/// Where a broker has its replicas, other than the metadata says (KIP-858).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AssignReplicas {
    /// Who.
    pub broker: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// The directory of each replica: those of partitions that are gone, or without a replica there, are passed over.
    pub replicas: Vec<(TopicPartition, DirectoryId)>,
}

/// What a broker is now.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HeartbeatAnswer {
    /// Whether it is fenced.
    pub is_fenced: bool,
    /// Whether it has applied the metadata up to its own registration.
    pub is_caught_up: bool,
    /// Whether it may stop now.
    pub should_shut_down: bool,
    /// Leaderless partitions that it is asked for a [`RecoveryReport`] of (`R35`); not all, if they are many.
    pub recovery_wanted: Vec<TopicPartition>,
}

/// A node believes that a broker is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Suspect {
    /// Who is believed gone.
    pub broker: BrokerId,
    /// Its registration as the reporter knows it.
    pub epoch: BrokerEpoch,
    /// Who says so.
    pub reporter: BrokerId,
}

/// A leader's proposals, each judged alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlterPartitions {
    /// Who asks.
    pub broker: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// The proposals.
    pub partitions: Vec<AlterPartition>,
}

/// A proposal (`R13`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlterPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// The partition epoch that the proposal is made under.
    pub partition_epoch: PartitionEpoch,
    /// The whole new ISR with each member's broker epoch.
    pub isr: Vec<(BrokerId, BrokerEpoch)>,
    /// Whether the leader has recovered.
    pub leader_recovery_state: LeaderRecoveryState,
}

/// What became of a proposal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlteredPartition {
    /// Which partition.
    pub partition: TopicPartition,
    /// The partition now, or why the proposal is refused.
    pub result: Result<PartitionNow, ErrorCode>,
}

/// A partition after a proposal was accepted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PartitionNow {
    /// The leader.
    pub leader: BrokerId,
    /// Its epoch.
    pub leader_epoch: LeaderEpoch,
    /// The ISR.
    pub isr: Vec<BrokerId>,
    /// Whether the leader recovers.
    pub leader_recovery_state: LeaderRecoveryState,
    /// The partition's epoch.
    pub partition_epoch: PartitionEpoch,
    /// The min ISR that this was decided under: the leader may not have it in its metadata yet (`R34`). 0 in the answer of a
    /// controller that does not say so.
    pub min_isr: u32,
    /// And the zones of the ack rule (`R79`).
    pub ack_zones: u32,
}

/// What a broker's replicas hold, of partitions that nobody leads (`R35`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RecoveryReport {
    /// Who reports.
    pub broker: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// One answer for each partition.
    pub answers: Vec<(TopicPartition, RecoveryAnswer)>,
}

/// What a replica holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecoveryAnswer {
    /// The directory it is in.
    pub directory: DirectoryId,
    /// The epoch of its last record; `NONE` where it is empty (`R57`).
    pub last_epoch: LeaderEpoch,
    /// Where its log ends.
    pub log_end: Offset,
    /// Whether it is known to have lost records (`R29`).
    pub lossy: bool,
    /// Whether each record below the high watermark was synced before it was acknowledged.
    pub synced_before_ack: bool,
}

/// New topics.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CreateTopics {
    /// The topics.
    pub topics: Vec<CreateTopic>,
    /// Whether only to say what would happen.
    pub validate_only: bool,
    /// The identities of the topics follow from it, so that a request that is asked again knows what it created the first time.
    /// Chosen by who asks, another one for each request; 0: the controller chooses, and the request is not to be asked again.
    pub seed: u128,
}

/// A new topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; -1: the default, or as assigned.
    pub partitions: i32,
    /// How many replicas of each; -1: the default, or as assigned.
    pub replication_factor: i16,
    /// The replicas of each partition, where the client places them.
    pub assignments: Vec<(PartitionIndex, Vec<BrokerId>)>,
    /// Its configs.
    pub configs: Vec<NamedValue>,
}

/// What became of a new topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CreatedTopic {
    /// Its name.
    pub name: String,
    /// What it is, or why it is not.
    pub result: Result<NewTopic, ControlError>,
}

/// A topic that was created, or would be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NewTopic {
    /// Its identity; `NONE` where it was only validated.
    pub id: TopicId,
    /// How many partitions.
    pub partitions: i32,
    /// How many replicas of the first.
    pub replication_factor: i16,
    /// The configs that are set for it.
    pub configs: BTreeMap<String, String>,
}

/// A topic by name or by identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TopicRef {
    /// By name.
    Name(String),
    /// By identity.
    Id(TopicId),
}

/// Topics to delete.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DeleteTopics {
    /// Which.
    pub topics: Vec<TopicRef>,
}

/// What became of a topic to delete.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DeletedTopic {
    /// As it was asked for.
    pub topic: TopicRef,
    /// Its name and identity, or why it is still there.
    pub result: Result<(String, TopicId), ControlError>,
}

/// More partitions for topics.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CreatePartitions {
    /// Which.
    pub topics: Vec<MorePartitions>,
    /// Whether only to say what would happen.
    pub validate_only: bool,
}

/// More partitions for a topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MorePartitions {
    /// The topic's name.
    pub name: String,
    /// How many partitions it is to have.
    pub count: i32,
    /// The replicas of each new one, where the client places them.
    pub assignments: Option<Vec<Vec<BrokerId>>>,
}

/// What became of a topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopicResult {
    /// Its name.
    pub name: String,
    /// Nothing, or why not.
    pub result: Result<(), ControlError>,
}

/// Config operations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IncrementalAlterConfigs {
    /// By resource; each is changed as a whole or not at all.
    pub resources: Vec<(ConfigResource, Vec<ConfigChange>)>,
    /// Whether only to say what would happen.
    pub validate_only: bool,
}

/// A config operation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConfigChange {
    /// The config.
    pub name: String,
    /// What to do to it.
    pub operation: ConfigOperation,
}

/// What to do to a config.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ConfigOperation {
    /// Set it; `None` is refused, as Kafka does.
    Set(Option<String>),
    /// Take it back.
    Delete,
    /// Add these elements to the list.
    Append(Option<String>),
    /// Take these elements from the list.
    Subtract(Option<String>),
}

/// A config and its value, as a client sends it.
pub type NamedValue = (String, Option<String>);

/// Whole new configs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlterConfigs {
    /// By resource: what is not named is taken back.
    pub resources: Vec<(ConfigResource, Vec<NamedValue>)>,
    /// Whether only to say what would happen.
    pub validate_only: bool,
}

/// What became of a resource's configs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConfigResult {
    /// Which resource.
    pub resource: ConfigResource,
    /// Nothing, or why not.
    pub result: Result<(), ControlError>,
}

/// Which leaders an election looks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ElectionType {
    /// The first replica, if it is in sync.
    Preferred,
    /// Anybody who is alive, where nobody in sync is (`R36`).
    Unclean,
}

/// Leader elections asked for by an operator.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ElectLeaders {
    /// Which kind.
    pub election: ElectionType,
    /// Which partitions, by topic name; `None`: all.
    pub partitions: Option<Vec<(String, PartitionIndex)>>,
}

/// What became of an election.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ElectionResult {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// Nothing, or why there was none.
    pub result: Result<(), ControlError>,
}

/// Replicas to move (KIP-455).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AlterReassignments {
    /// Each is decided alone.
    pub partitions: Vec<Reassignment>,
    /// Whether the number of replicas may change (KIP-860).
    pub allow_factor_change: bool,
}

/// Where a partition's replicas are to be.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reassignment {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The replicas, the preferred leader first; `None` cancels what is under way.
    pub target: Option<Vec<BrokerId>>,
}

/// What became of a reassignment that was asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReassignmentResult {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// Nothing, or why not.
    pub result: Result<(), ControlError>,
}

/// Features to finalise.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct UpdateFeatures {
    /// The features.
    pub updates: Vec<FeatureUpdate>,
    /// Whether only to say what would happen.
    pub validate_only: bool,
}

/// A feature to finalise.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FeatureUpdate {
    /// The feature.
    pub name: String,
    /// Its new level; 0 takes it back.
    pub level: i16,
    /// Whether the level may be lower than before.
    pub allow_downgrade: bool,
}

/// What became of a feature.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FeatureResult {
    /// The feature.
    pub name: String,
    /// Nothing, or why not.
    pub result: Result<(), ControlError>,
}
