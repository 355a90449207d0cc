//! What a partition acts on of its topic's configs, resolved once for each change of metadata.

use std::sync::Arc;

use metadata::MetadataImage;
use metadata::configs::TopicConfig;
use model::{BrokerId, Codec, TimestampType};
use storage::LogConfig;
use storage::compression::CompressionLevels;

use crate::config::BrokerConfig;

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TopicSettings {
    pub(crate) log: Arc<LogConfig>,
    pub(crate) max_message_bytes: usize,
    pub(crate) log_append_time: bool,
    pub(crate) timestamp_after_max_ms: i64,
    pub(crate) timestamp_before_max_ms: i64,
    pub(crate) compacted: bool,
    /// Compacted, and nothing is deleted by age or size.
    pub(crate) only_compacted: bool,
    /// In how many zones records must be before they count (`R79`).
    pub(crate) ack_zones: usize,
    /// The codec that the broker makes every batch have; None leaves it to producers.
    pub(crate) codec: Option<Codec>,
}

impl TopicSettings {
    /// As the metadata and this broker's file say.
    pub(crate) fn resolve(image: &MetadataImage, name: &str, config: &BrokerConfig) -> Arc<TopicSettings> {
        let broker: BrokerId = config.broker_id;
        let ack_zones = image.ack_zones(name);
        let topic = TopicConfig::resolve(image, name, broker, &config.file);
        Arc::new(TopicSettings {
            max_message_bytes: usize::try_from(topic.max_message_bytes).unwrap_or(usize::MAX),
            log_append_time: topic.message_timestamp_type == TimestampType::LogAppendTime,
            timestamp_after_max_ms: signed(topic.message_timestamp_after_max_ms),
            timestamp_before_max_ms: signed(topic.message_timestamp_before_max_ms),
            compacted: topic.cleanup_policy.compact,
            only_compacted: topic.cleanup_policy.compact && !topic.cleanup_policy.delete,
            ack_zones,
            codec: codec(&topic.compression_type),
            log: Arc::new(LogConfig { may_use_reserve: metadata::is_internal_topic(name), ..log_config(&topic) }),
        })
    }

    /// Whether records count only once they are durable.
    pub(crate) fn sync_before_ack(&self) -> bool {
        self.log.flush_policy() == storage::FlushPolicy::BeforeAck
    }
}

/// The codec of a `compression.type`.
fn codec(compression_type: &str) -> Option<Codec> {
    match compression_type {
        "uncompressed" => Some(Codec::None),
        "gzip" => Some(Codec::Gzip),
        "snappy" => Some(Codec::Snappy),
        "lz4" => Some(Codec::Lz4),
        "zstd" => Some(Codec::Zstd),
        _ => None,
    }
}

fn log_config(topic: &TopicConfig) -> LogConfig {
    LogConfig {
        segment_bytes: topic.segment_bytes,
        segment_ms: signed(topic.segment_ms),
        segment_jitter_ms: signed(topic.segment_jitter_ms),
        segment_index_bytes: topic.segment_index_bytes,
        index_interval_bytes: topic.index_interval_bytes,
        retention_ms: topic.retention_ms.map_or(-1, signed),
        retention_bytes: topic.retention_bytes.map_or(-1, signed),
        cleanup_policy: storage::CleanupPolicy {
            delete: topic.cleanup_policy.delete,
            compact: topic.cleanup_policy.compact,
        },
        flush_messages: signed(topic.flush_messages),
        flush_ms: signed(topic.flush_ms),
        file_delete_delay_ms: topic.file_delete_delay_ms,
        preallocate: topic.preallocate,
        delete_retention_ms: signed(topic.delete_retention_ms),
        min_compaction_lag_ms: signed(topic.min_compaction_lag_ms),
        max_compaction_lag_ms: signed(topic.max_compaction_lag_ms),
        min_cleanable_dirty_ratio: topic.min_cleanable_dirty_ratio,
        may_use_reserve: false,
        compression_levels: CompressionLevels {
            gzip: topic.compression_gzip_level,
            lz4: topic.compression_lz4_level,
            zstd: topic.compression_zstd_level,
        },
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
