//! The storage configs of one topic under Kafka's names and defaults.

use metadata::configs::FlushPolicy;

use crate::compression::CompressionLevels;

/// `cleanup.policy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the two values of the config, by name")]
pub struct CleanupPolicy {
    pub delete: bool,
    pub compact: bool,
}

/// The storage configs of one topic. Field `a_b` is Kafka's `a.b`; values are Kafka's, -1 and `i64::MAX` included.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the fields are Kafka's configs, by name")]
pub struct LogConfig {
    pub segment_bytes: u32,
    pub segment_ms: i64,
    pub segment_jitter_ms: i64,
    pub segment_index_bytes: u32,
    pub index_interval_bytes: u32,
    pub retention_ms: i64,
    pub retention_bytes: i64,
    pub cleanup_policy: CleanupPolicy,
    pub flush_messages: i64,
    pub flush_ms: i64,
    pub file_delete_delay_ms: u64,
    pub preallocate: bool,
    pub delete_retention_ms: i64,
    pub min_compaction_lag_ms: i64,
    pub max_compaction_lag_ms: i64,
    pub min_cleanable_dirty_ratio: f64,
    /// Not Kafka's: appends go on below the disk's reserve, until little is left of it. Of the topics that the brokers write
    /// for themselves.
    pub may_use_reserve: bool,
    /// `compression.gzip.level`, `compression.lz4.level`, `compression.zstd.level`.
    pub compression_levels: CompressionLevels,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 604_800_000,
            segment_jitter_ms: 0,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 4096,
            retention_ms: 604_800_000,
            retention_bytes: -1,
            cleanup_policy: CleanupPolicy { delete: true, compact: false },
            flush_messages: i64::MAX,
            flush_ms: i64::MAX,
            file_delete_delay_ms: 60_000,
            preallocate: false,
            delete_retention_ms: 86_400_000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            min_cleanable_dirty_ratio: 0.5,
            may_use_reserve: false,
            compression_levels: CompressionLevels::default(),
        }
    }
}

impl LogConfig {
    /// After how many milliseconds a segment is closed: one that must be compacted in time must be closed by then.
    #[must_use]
    pub fn max_segment_ms(&self) -> i64 {
        if self.cleanup_policy.compact { self.segment_ms.min(self.max_compaction_lag_ms) } else { self.segment_ms }
    }

    /// When appends are synced.
    #[must_use]
    pub fn flush_policy(&self) -> FlushPolicy {
        FlushPolicy::of(self.flush_messages, self.flush_ms)
    }
}
