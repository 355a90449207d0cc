//! What an operator may choose for transactions, with Kafka's names and defaults, and the bounds that keep a hostile client
//! from filling the broker.

/// The configuration of a shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TransactionConfig {
    /// `transaction.max.timeout.ms`.
    pub max_timeout_ms: i32,
    /// `transactional.id.expiration.ms`: how long an id without a transaction is remembered.
    pub id_expiration_ms: u64,
    /// `transaction.abort.timed.out.transaction.cleanup.interval.ms`.
    pub abort_interval_ms: u64,
    /// `transaction.remove.expired.transaction.cleanup.interval.ms`.
    pub expiry_interval_ms: u64,
    /// `request.timeout.ms`: how long an answer waits for its record to be committed.
    pub request_timeout_ms: u64,
    /// How soon a completion that could not be stored is tried again.
    pub retry_ms: u64,
    /// A batch of records is cut before this size, so that it fits the topic's `max.message.bytes`; a transaction's record
    /// grows no larger.
    pub max_batch_bytes: usize,
    /// Writes that may wait for the log, in bytes; more are answered with COORDINATOR_NOT_AVAILABLE.
    pub max_queued_bytes: usize,
    /// Transactional ids of one shard; more are answered with COORDINATOR_NOT_AVAILABLE.
    pub max_ids: usize,
}

impl Default for TransactionConfig {
    fn default() -> Self {
        TransactionConfig {
            max_timeout_ms: 900_000,
            id_expiration_ms: 604_800_000,
            abort_interval_ms: 10_000,
            expiry_interval_ms: 3_600_000,
            request_timeout_ms: 30_000,
            retry_ms: 100,
            max_batch_bytes: 1_000_000,
            max_queued_bytes: 16 << 20,
            max_ids: 100_000,
        }
    }
}
