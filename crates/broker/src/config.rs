//! What a broker is told at its start, with Kafka's names and defaults.

use metadata::Listener;
use metadata::configs::StaticConfig;
use model::{BootId, BrokerId, Incarnation};

/// The default of `ottla.peer.keepalive.ms`.
pub const PEER_KEEPALIVE_MS: u64 = 200;
/// The default of `ottla.peer.silence.ms`.
pub const PEER_SILENCE_MS: u64 = 250;

/// See the module. Field `a_b` is Kafka's `a.b`.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// `node.id`.
    pub broker_id: BrokerId,
    /// This run of the process.
    pub incarnation: Incarnation,
    /// This run of the machine.
    pub boot: BootId,
    /// `broker.rack`.
    pub rack: Option<String>,
    /// Where this broker can be reached, all listeners.
    pub listeners: Vec<Listener>,
    /// The name of the listener that brokers use among themselves.
    pub internal_listener: String,
    /// `replica.lag.time.max.ms`.
    pub replica_lag_time_max_ms: u64,
    /// `replica.fetch.max.bytes`.
    pub replica_fetch_max_bytes: u64,
    /// `replica.fetch.response.max.bytes`.
    pub replica_fetch_response_max_bytes: u64,
    /// `num.replica.fetchers`.
    pub num_replica_fetchers: u32,
    /// `broker.heartbeat.interval.ms`.
    pub broker_heartbeat_interval_ms: u64,
    /// `ottla.peer.keepalive.ms`: between two signs of life, asked of other brokers and given to the controller (`R76`).
    pub peer_keepalive_ms: u64,
    /// `ottla.peer.silence.ms`: how long another broker may owe such a sign before it is reported.
    pub peer_silence_ms: u64,
    /// `log.retention.check.interval.ms`.
    pub log_retention_check_interval_ms: u64,
    /// `producer.id.expiration.ms`, where it is not set while the broker runs.
    pub producer_id_expiration_ms: u64,
    /// `offsets.topic.num.partitions`.
    pub offsets_topic_num_partitions: i32,
    /// `offsets.topic.replication.factor`.
    pub offsets_topic_replication_factor: i16,
    /// `offsets.topic.segment.bytes`.
    pub offsets_topic_segment_bytes: u32,
    /// `transaction.state.log.num.partitions`.
    pub transaction_state_log_num_partitions: i32,
    /// `transaction.state.log.replication.factor`.
    pub transaction_state_log_replication_factor: i16,
    /// `transaction.state.log.min.isr`.
    pub transaction_state_log_min_isr: u32,
    /// `transaction.state.log.segment.bytes`.
    pub transaction_state_log_segment_bytes: u32,
    /// `replica.selector.class` names a rack-aware selector (KIP-392).
    pub rack_aware_reads: bool,
    /// This broker's file, by Kafka's names.
    pub file: StaticConfig,
    /// The group coordinator's own.
    pub groups: coordinator::GroupConfig,
    /// The transaction coordinator's own.
    pub transactions: coordinator::TransactionConfig,
    /// Which rules its replicas hold: all, but for a test that shows that another one notices.
    pub rules: model::Rules,
}
