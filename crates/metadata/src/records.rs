//! The facts that the metadata log consists of (`R65`). A decision may change between versions of the program, the meaning
//! of a record may not.
//!
//! Invariant: a record says what *is* afterwards, epochs included; replaying it needs no decision, no clock and cannot fail.

use std::collections::BTreeMap;

use model::{
    BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, Incarnation, LeaderEpoch, MetadataOffset, PartitionEpoch,
    PartitionIndex, ProducerId, TopicId, TopicPartition,
};

/// One fact of the metadata log.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum MetadataRecord {
    /// The cluster's identity: the first record of the log, and only that (`R66`).
    ClusterId(ClusterId),
    /// A feature is finalised at a level; level 0 takes it back.
    FeatureLevel {
        /// The feature.
        name: String,
        /// Its level.
        level: i16,
    },
    /// A broker's registration, which replaces any other of its id. In the log its epoch is the record's own offset (`R6`).
    RegisterBroker(Box<BrokerRegistration>),
    /// A registered broker changed.
    BrokerChange(BrokerChange),
    /// A broker is no longer part of the cluster.
    UnregisterBroker {
        /// Which.
        id: BrokerId,
        /// The registration that ends.
        epoch: BrokerEpoch,
    },
    /// A controller says where it can be reached.
    ControllerRegistration(Box<ControllerRegistration>),
    /// A topic exists; its partitions follow.
    Topic {
        /// Its identity.
        id: TopicId,
        /// Its name.
        name: String,
    },
    /// A topic is deleted, with its partitions and its configs.
    RemoveTopic {
        /// Which.
        id: TopicId,
    },
    /// A partition as a whole.
    Partition(Box<Partition>),
    /// A partition changed.
    PartitionChange(Box<PartitionChange>),
    /// A config is set, or taken back.
    Config {
        /// Whose.
        resource: ConfigResource,
        /// Which.
        name: String,
        /// To what; `None` takes it back.
        value: Option<String>,
    },
    /// Producer ids below `next` are given out (`R42`).
    ProducerIds {
        /// The first one that is not.
        next: ProducerId,
    },
    /// The metadata was put back, or recovered from what one voter had; only in snapshots (`R80`).
    Restored {
        /// The first offset after that: nobody was told of one at or above it before.
        at: MetadataOffset,
    },
}

impl MetadataRecord {
    /// Whether this record, the next one of a decision, goes on with what `before` is a part of, so that nobody may see one without
    /// the other: a new topic with its configs and partitions, partitions that are added to one, the configs of a resource. What
    /// else a decision consists of is legal after each of its records.
    #[must_use]
    pub fn goes_on(&self, before: &Self) -> bool {
        match (before, self) {
            (Self::Topic { name, .. }, Self::Config { resource, .. }) => {
                matches!(resource, ConfigResource::Topic(of) if of == name)
            }
            (Self::Topic { id, .. }, Self::Partition(partition)) => partition.topic_id == *id,
            (Self::Config { resource, .. }, Self::Config { resource: next, .. }) => resource == next,
            // Within a decision only the partitions of a new topic come after configs: its own.
            (Self::Config { .. }, Self::Partition(_)) => true,
            (Self::Partition(partition), Self::Partition(next)) => partition.topic_id == next.topic_id,
            _ => false,
        }
    }
}

/// Where a node can be reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Listener {
    /// The listener's name.
    pub name: String,
    /// The host that is advertised.
    pub host: String,
    /// The port that is advertised.
    pub port: u16,
    /// How it is secured.
    pub security_protocol: SecurityProtocol,
}

/// How a listener is secured; the numbers are Kafka's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SecurityProtocol {
    /// Neither TLS nor authentication.
    Plaintext,
    /// TLS.
    Ssl,
    /// SASL without TLS.
    SaslPlaintext,
    /// SASL over TLS.
    SaslSsl,
}

impl SecurityProtocol {
    /// Kafka's number of it.
    #[must_use]
    pub fn code(self) -> i16 {
        match self {
            SecurityProtocol::Plaintext => 0,
            SecurityProtocol::Ssl => 1,
            SecurityProtocol::SaslPlaintext => 2,
            SecurityProtocol::SaslSsl => 3,
        }
    }

    /// The protocol of a number.
    #[must_use]
    pub fn from_code(code: i16) -> Option<Self> {
        [Self::Plaintext, Self::Ssl, Self::SaslPlaintext, Self::SaslSsl].into_iter().find(|p| p.code() == code)
    }

    /// Kafka's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SecurityProtocol::Plaintext => "PLAINTEXT",
            SecurityProtocol::Ssl => "SSL",
            SecurityProtocol::SaslPlaintext => "SASL_PLAINTEXT",
            SecurityProtocol::SaslSsl => "SASL_SSL",
        }
    }
}

/// The levels of a feature that a node can work at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FeatureRange {
    /// The lowest.
    pub min: i16,
    /// The highest.
    pub max: i16,
}

/// A broker as it registered (`R6`), and what became of it since.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BrokerRegistration {
    /// Its `node.id`.
    pub id: BrokerId,
    /// The metadata offset of the registration: given when the record is applied if it is `NONE` here, kept if not (a
    /// snapshot's records have lost their offsets).
    pub epoch: BrokerEpoch,
    /// Which run of the process.
    pub incarnation: Incarnation,
    /// Which run of its machine.
    pub boot: BootId,
    /// Its log directories.
    pub directories: Vec<DirectoryId>,
    /// Those of them that failed (`R30`).
    pub offline_directories: Vec<DirectoryId>,
    /// Those of them that take no new replicas, as an operator wants it (KIP-1066).
    pub cordoned_directories: Vec<DirectoryId>,
    /// Where it can be reached.
    pub listeners: Vec<Listener>,
    /// Its zone.
    pub rack: Option<String>,
    /// What it supports.
    pub features: BTreeMap<String, FeatureRange>,
    /// Whether it is fenced (`R7`).
    pub fenced: bool,
    /// Whether it is on its way out (`R32`).
    pub in_controlled_shutdown: bool,
}

impl BrokerRegistration {
    /// Whether it may lead and be in an ISR, as far as the broker as a whole is concerned (`R12`, `R33`).
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.fenced && !self.in_controlled_shutdown
    }

    /// Whether a replica kept in `directory` can be used. A replica without a known directory can while one is online.
    #[must_use]
    pub fn is_online(&self, directory: DirectoryId) -> bool {
        if directory.is_none() {
            return self.directories.is_empty()
                || self.directories.iter().any(|each| !self.offline_directories.contains(each));
        }
        !self.offline_directories.contains(&directory)
    }

    /// The directories that may take new replicas, in their order.
    pub fn open_directories(&self) -> impl Iterator<Item = DirectoryId> {
        let shut =
            |each: &DirectoryId| self.offline_directories.contains(each) || self.cordoned_directories.contains(each);
        self.directories.iter().copied().filter(move |each| !shut(each))
    }

    /// Whether an operator wants no new replicas on this broker at all (KIP-1066).
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        !self.directories.is_empty() && self.directories.iter().all(|each| self.cordoned_directories.contains(each))
    }

    /// Its listener of a name.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|listener| listener.name == name)
    }
}

/// What changed of a registered broker; the rest stays. It has no effect on another registration than that of `epoch`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BrokerChange {
    /// Which broker.
    pub id: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// Whether it is fenced now.
    pub fenced: Option<bool>,
    /// Whether it is on its way out now.
    pub in_controlled_shutdown: Option<bool>,
    /// The log directories that have failed by now.
    pub offline_directories: Option<Vec<DirectoryId>>,
    /// The log directories that are cordoned now.
    pub cordoned_directories: Option<Vec<DirectoryId>>,
}

/// Where a controller can be reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ControllerRegistration {
    /// Its `node.id`.
    pub id: BrokerId,
    /// Which run of the process.
    pub incarnation: Incarnation,
    /// Its metadata directory (`R74`).
    pub directory: DirectoryId,
    /// Where it can be reached.
    pub listeners: Vec<Listener>,
    /// What it supports.
    pub features: BTreeMap<String, FeatureRange>,
}

/// Whether a leader that was elected uncleanly has recovered (`R35`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum LeaderRecoveryState {
    /// The normal state.
    #[default]
    Recovered,
    /// Elected uncleanly; nobody joins the ISR until the leader reports that it recovered.
    Recovering,
}

/// A partition's record (`R1`). All lists of brokers but `replicas`, `adding` and `removing` are sets, kept in the order of
/// `replicas`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Partition {
    /// Of which topic.
    pub topic_id: TopicId,
    /// Which of its partitions.
    pub partition: PartitionIndex,
    /// Who has it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// In which directory, for each replica; `NONE` where the broker chooses.
    pub directories: Vec<DirectoryId>,
    /// Replicas that a reassignment adds (`R37`); all others were there before it.
    pub adding: Vec<BrokerId>,
    /// Replicas that a reassignment removes. One that is added too was added by a reassignment that another has replaced.
    pub removing: Vec<BrokerId>,
    /// The committed in-sync replicas.
    pub isr: Vec<BrokerId>,
    /// The eligible leader replicas (`R34`).
    pub elr: Vec<BrokerId>,
    /// Who was in ISR or ELR since the ISR fell below min ISR (`R35`). Empty stands for the ISR, which it is above.
    pub last_known_elr: Vec<BrokerId>,
    /// Those of `last_known_elr` that have their log in another directory than they were in sync in, with that: the disk was
    /// replaced, or was not mounted at a start, or the log was moved. What they have elsewhere may be less (`R35`).
    pub displaced: Vec<(BrokerId, DirectoryId)>,
    /// The leader; `NONE` where there is none.
    pub leader: BrokerId,
    /// Who led last: the leader, where there is one. `NONE` where nobody ever led, or the metadata was restored since and
    /// nobody knows who did (`R80`).
    pub last_leader: BrokerId,
    /// The directory that the last leader led from.
    pub last_leader_directory: DirectoryId,
    /// Counts the leaderships.
    pub leader_epoch: LeaderEpoch,
    /// Counts the changes.
    pub partition_epoch: PartitionEpoch,
    /// Whether the leader recovers from an unclean election.
    pub leader_recovery_state: LeaderRecoveryState,
}

impl Partition {
    /// A new partition with its replicas and their directories. Those that `can` (asked with the partition as it is without an
    /// ISR) are in sync, the first of them leads.
    #[must_use]
    pub fn new(
        id: TopicPartition,
        replicas: Vec<BrokerId>,
        directories: Vec<DirectoryId>,
        can: impl Fn(&Self, BrokerId) -> bool,
    ) -> Self {
        let mut new = Self {
            topic_id: id.topic_id,
            partition: id.partition,
            replicas,
            directories,
            adding: Vec::new(),
            removing: Vec::new(),
            isr: Vec::new(),
            elr: Vec::new(),
            last_known_elr: Vec::new(),
            displaced: Vec::new(),
            leader: BrokerId::NONE,
            last_leader: BrokerId::NONE,
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(0),
            partition_epoch: PartitionEpoch(0),
            leader_recovery_state: LeaderRecoveryState::Recovered,
        };
        new.isr = new.replicas.iter().copied().filter(|broker| can(&new, *broker)).collect();
        new.leader = new.isr.first().copied().unwrap_or(BrokerId::NONE);
        new.last_leader = new.leader;
        new.last_leader_directory = new.directory_of(new.leader);
        new
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> TopicPartition {
        TopicPartition { topic_id: self.topic_id, partition: self.partition }
    }

    /// Whether there is no leader.
    #[must_use]
    pub fn is_leaderless(&self) -> bool {
        self.leader == BrokerId::NONE
    }

    /// Whether nobody is in sync: the leader will be elected from ELR, or by recovery (`R35`).
    #[must_use]
    pub fn awaits_recovery(&self) -> bool {
        self.is_leaderless() && self.isr.is_empty()
    }

    /// The directory of a replica; `NONE` for a stranger, or where the broker chooses.
    #[must_use]
    pub fn directory_of(&self, broker: BrokerId) -> DirectoryId {
        let at = self.replicas.iter().position(|replica| *replica == broker);
        at.and_then(|at| self.directories.get(at)).copied().unwrap_or(DirectoryId::NONE)
    }

    /// Who may have all that was committed, when nobody is known to (`R35`).
    #[must_use]
    pub fn last_known(&self) -> &[BrokerId] {
        if self.last_known_elr.is_empty() { &self.isr } else { &self.last_known_elr }
    }

    /// The directory that a member of the last known ELR was in sync in, where it was displaced from that (`R35`).
    #[must_use]
    pub fn displaced_from(&self, broker: BrokerId) -> Option<DirectoryId> {
        self.displaced.iter().find(|(replica, _)| *replica == broker).map(|(_, directory)| *directory)
    }

    /// Whether a member of the last known ELR has its log elsewhere than it was in sync in, as far as is known (`R35`).
    #[must_use]
    pub fn is_away(&self, broker: BrokerId) -> bool {
        self.displaced_from(broker).is_some_and(|from| from != self.directory_of(broker))
    }

    /// How many replicas it has but for those that a reassignment adds: what `min.insync.replicas` is held against. A
    /// partition that grows needs no more acknowledgements before it has grown (`R37`).
    #[must_use]
    pub fn factor(&self) -> usize {
        self.replicas.iter().filter(|replica| !self.adding.contains(replica)).count()
    }

    /// Whether a reassignment is under way (`R37`).
    #[must_use]
    pub fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// The replicas that a reassignment leaves, in their order; all where there is none.
    #[must_use]
    pub fn target(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|replica| !self.removing.contains(replica)).collect()
    }

    /// This partition after a change of it.
    #[must_use]
    pub fn with(&self, change: &PartitionChange) -> Partition {
        let mut next = self.clone();
        next.partition_epoch = change.partition_epoch;
        set(&mut next.replicas, change.replicas.as_ref());
        set(&mut next.directories, change.directories.as_ref());
        set(&mut next.adding, change.adding.as_ref());
        set(&mut next.removing, change.removing.as_ref());
        set(&mut next.isr, change.isr.as_ref());
        set(&mut next.elr, change.elr.as_ref());
        set(&mut next.last_known_elr, change.last_known_elr.as_ref());
        set(&mut next.displaced, change.displaced.as_ref());
        set(&mut next.leader, change.leader.as_ref());
        set(&mut next.last_leader, change.last_leader.as_ref());
        set(&mut next.last_leader_directory, change.last_leader_directory.as_ref());
        set(&mut next.leader_epoch, change.leader_epoch.as_ref());
        set(&mut next.leader_recovery_state, change.leader_recovery_state.as_ref());
        next
    }
}

/// What changed of a partition; the rest stays (`R1`: the partition epoch always changes).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the fields are those of Partition")]
pub struct PartitionChange {
    pub topic_id: TopicId,
    pub partition: PartitionIndex,
    pub partition_epoch: PartitionEpoch,
    pub replicas: Option<Vec<BrokerId>>,
    pub directories: Option<Vec<DirectoryId>>,
    pub adding: Option<Vec<BrokerId>>,
    pub removing: Option<Vec<BrokerId>>,
    pub isr: Option<Vec<BrokerId>>,
    pub elr: Option<Vec<BrokerId>>,
    pub last_known_elr: Option<Vec<BrokerId>>,
    pub displaced: Option<Vec<(BrokerId, DirectoryId)>>,
    pub leader: Option<BrokerId>,
    pub last_leader: Option<BrokerId>,
    pub last_leader_directory: Option<DirectoryId>,
    pub leader_epoch: Option<LeaderEpoch>,
    pub leader_recovery_state: Option<LeaderRecoveryState>,
}

impl PartitionChange {
    /// What turns `before` into `after`, which are the same partition.
    #[must_use]
    pub fn between(before: &Partition, after: &Partition) -> PartitionChange {
        PartitionChange {
            topic_id: after.topic_id,
            partition: after.partition,
            partition_epoch: after.partition_epoch,
            replicas: changed(&before.replicas, &after.replicas),
            directories: changed(&before.directories, &after.directories),
            adding: changed(&before.adding, &after.adding),
            removing: changed(&before.removing, &after.removing),
            isr: changed(&before.isr, &after.isr),
            elr: changed(&before.elr, &after.elr),
            last_known_elr: changed(&before.last_known_elr, &after.last_known_elr),
            displaced: changed(&before.displaced, &after.displaced),
            leader: changed(&before.leader, &after.leader),
            last_leader: changed(&before.last_leader, &after.last_leader),
            last_leader_directory: changed(&before.last_leader_directory, &after.last_leader_directory),
            leader_epoch: changed(&before.leader_epoch, &after.leader_epoch),
            leader_recovery_state: changed(&before.leader_recovery_state, &after.leader_recovery_state),
        }
    }

    /// Which partition.
    #[must_use]
    pub fn id(&self) -> TopicPartition {
        TopicPartition { topic_id: self.topic_id, partition: self.partition }
    }
}

/// What a config belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ConfigResource {
    /// A topic, by name.
    Topic(String),
    /// One broker.
    Broker(BrokerId),
    /// All brokers.
    DefaultBroker,
    /// A consumer group.
    Group(String),
    /// A subscription to client metrics (KIP-714).
    ClientMetrics(String),
}

impl ConfigResource {
    /// Kafka's number of the resource type.
    #[must_use]
    pub fn type_code(&self) -> i8 {
        match self {
            ConfigResource::Topic(_) => 2,
            ConfigResource::Broker(_) | ConfigResource::DefaultBroker => 4,
            ConfigResource::ClientMetrics(_) => 16,
            ConfigResource::Group(_) => 32,
        }
    }

    /// Kafka's name of the resource within its type; empty for all brokers.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            ConfigResource::Topic(name) | ConfigResource::Group(name) | ConfigResource::ClientMetrics(name) => {
                name.clone()
            }
            ConfigResource::Broker(id) => id.to_string(),
            ConfigResource::DefaultBroker => String::new(),
        }
    }

    /// The resource of a type and a name, as Kafka's messages have them.
    #[must_use]
    pub fn from_kafka(type_code: i8, name: &str) -> Option<ConfigResource> {
        match type_code {
            2 => Some(ConfigResource::Topic(name.to_owned())),
            4 if name.is_empty() => Some(ConfigResource::DefaultBroker),
            4 => name.parse().ok().filter(|id| *id >= 0).map(|id| ConfigResource::Broker(BrokerId(id))),
            16 => Some(ConfigResource::ClientMetrics(name.to_owned())),
            32 => Some(ConfigResource::Group(name.to_owned())),
            _ => None,
        }
    }
}

fn set<T: Clone>(field: &mut T, change: Option<&T>) {
    if let Some(value) = change {
        field.clone_from(value);
    }
}

fn changed<T: Clone + PartialEq>(before: &T, after: &T) -> Option<T> {
    (before != after).then(|| after.clone())
}
