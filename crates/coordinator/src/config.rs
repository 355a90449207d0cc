//! What an operator may choose for groups, with Kafka's names and defaults, and the bounds that keep a hostile client from
//! filling the broker.

use crate::consumer::ConsumerConfig;

/// What a member takes besides the bytes that it brings, roughly: its places in the maps of its group.
pub(crate) const MEMBER_OVERHEAD_BYTES: usize = 512;

/// The configuration of a shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupConfig {
    /// `group.initial.rebalance.delay.ms`: how long the first rebalance of an empty group waits for more members.
    pub initial_rebalance_delay_ms: u64,
    /// `group.min.session.timeout.ms`.
    pub min_session_timeout_ms: u64,
    /// `group.max.session.timeout.ms`.
    pub max_session_timeout_ms: u64,
    /// `group.max.size`: members of one group.
    pub max_size: usize,
    /// `offset.metadata.max.bytes` (`R55`).
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`, in milliseconds (`R55`).
    pub offsets_retention_ms: u64,
    /// `offsets.retention.check.interval.ms`.
    pub offsets_retention_check_interval_ms: u64,
    /// `offsets.commit.timeout.ms`: how long an answer waits for its records to be committed (`R52`).
    pub offsets_commit_timeout_ms: u64,
    /// How long a new member's parked JoinGroup keeps it in the group (Kafka: five minutes, no option).
    pub new_member_join_timeout_ms: u64,
    /// A batch of records is cut before this size, so that it fits the topic's `max.message.bytes`.
    pub max_batch_bytes: usize,
    /// Writes that may wait for the log, in bytes; more are answered with COORDINATOR_NOT_AVAILABLE.
    pub max_queued_bytes: usize,
    /// Groups of one shard.
    pub max_groups: usize,
    /// Bytes of protocol names and metadata that one member may bring.
    pub max_member_metadata_bytes: usize,
    /// Bytes that all members of a shard may bring together.
    pub max_members_bytes: usize,
    /// Of consumer groups.
    pub consumer: ConsumerConfig,
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            initial_rebalance_delay_ms: 3_000,
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            max_size: 2_147_483_647,
            offset_metadata_max_bytes: 4_096,
            offsets_retention_ms: 10_080 * 60_000,
            offsets_retention_check_interval_ms: 600_000,
            offsets_commit_timeout_ms: 5_000,
            new_member_join_timeout_ms: 300_000,
            max_batch_bytes: 1_000_000,
            max_queued_bytes: 16 << 20,
            max_groups: 100_000,
            max_member_metadata_bytes: 1_000_000,
            max_members_bytes: 64 << 20,
            consumer: ConsumerConfig::default(),
        }
    }
}
