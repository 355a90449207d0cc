//! What an operator may choose for consumer groups, for all of them and for one, with Kafka's names and defaults.

use metadata::MetadataImage;
use metadata::records::ConfigResource;
use model::{BrokerId, Rules};

use crate::consumer::assign::Assignor;

/// A config with what it may be set to for one group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bounded {
    /// Where nothing is set for the group.
    pub value: u64,
    /// The least that counts.
    pub min: u64,
    /// The most that counts.
    pub max: u64,
}

impl Bounded {
    /// The value for a group that has `set`.
    fn of(self, set: Option<&str>) -> u64 {
        let set = set.and_then(|value| value.trim().parse::<u64>().ok());
        // Checked when it was set; the bounds may have been other ones then.
        set.map_or(self.value, |value| value.max(self.min).min(self.max))
    }
}

/// Which live groups change between the protocols (`group.consumer.migration.policy`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MigrationPolicy {
    /// A classic group becomes a consumer group when a member of the consumer protocol joins it.
    pub upgrade: bool,
    /// A consumer group becomes a classic group when its last member of the consumer protocol leaves it.
    pub downgrade: bool,
}

impl MigrationPolicy {
    /// The policy of a name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let policy = |upgrade, downgrade| Some(MigrationPolicy { upgrade, downgrade });
        match name.to_ascii_lowercase().as_str() {
            "disabled" => policy(false, false),
            "upgrade" => policy(true, false),
            "downgrade" => policy(false, true),
            "bidirectional" => policy(true, true),
            _ => None,
        }
    }
}

/// The configuration of all consumer groups of a shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConsumerConfig {
    /// Which broker this is, for configs that are set for one.
    pub broker: BrokerId,
    /// `group.consumer.session.timeout.ms`.
    pub session_timeout_ms: Bounded,
    /// `group.consumer.heartbeat.interval.ms`.
    pub heartbeat_interval_ms: Bounded,
    /// `group.consumer.assignment.interval.ms`.
    pub assignment_interval_ms: Bounded,
    /// `group.consumer.max.size`: members of one group.
    pub max_size: usize,
    /// `group.consumer.assignors`, the default first.
    pub assignors: Vec<Assignor>,
    /// `group.consumer.migration.policy`.
    pub migration: MigrationPolicy,
    /// How often regular expressions are resolved again (`group.consumer.regex.refresh.interval.ms`, which Kafka does not
    /// document).
    pub regex_refresh_interval_ms: u64,
    /// Which rules hold.
    pub rules: Rules,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            broker: BrokerId::NONE,
            session_timeout_ms: Bounded { value: 45_000, min: 45_000, max: 60_000 },
            heartbeat_interval_ms: Bounded { value: 5_000, min: 5_000, max: 15_000 },
            assignment_interval_ms: Bounded { value: 1_000, min: 0, max: 15_000 },
            max_size: 2_147_483_647,
            assignors: vec![Assignor::Uniform, Assignor::Range],
            migration: MigrationPolicy { upgrade: true, downgrade: true },
            regex_refresh_interval_ms: 600_000,
            rules: Rules::all(),
        }
    }
}

/// What holds for one group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GroupSettings {
    /// `consumer.session.timeout.ms`.
    pub session_timeout_ms: u64,
    /// `consumer.heartbeat.interval.ms`.
    pub heartbeat_interval_ms: u64,
    /// `consumer.assignment.interval.ms`.
    pub assignment_interval_ms: u64,
}

impl ConsumerConfig {
    /// What holds for a group: what is set for it, else what is set for all.
    #[must_use]
    pub fn of_group(&self, group_id: &str, image: &MetadataImage) -> GroupSettings {
        let set = image.configs().get(&ConfigResource::Group(group_id.to_owned()));
        let set = |name: &str| set.and_then(|set| set.get(name)).map(String::as_str);
        let interval = "group.consumer.assignment.interval.ms";
        let dynamic = image.broker_config(self.broker, interval).and_then(|value| value.trim().parse().ok());
        let for_all = dynamic.unwrap_or(self.assignment_interval_ms.value);
        let assignment_interval_ms = Bounded { value: for_all, ..self.assignment_interval_ms };
        GroupSettings {
            session_timeout_ms: self.session_timeout_ms.of(set("consumer.session.timeout.ms")),
            heartbeat_interval_ms: self.heartbeat_interval_ms.of(set("consumer.heartbeat.interval.ms")),
            assignment_interval_ms: assignment_interval_ms.of(set("consumer.assignment.interval.ms")),
        }
    }
}
