//! The high watermark of a leader does not go back in its epoch (`R18`), and no replica shows one above its log's end.

use std::collections::BTreeMap;

use broker::PartitionMetrics;
use model::TopicPartition;

/// See the module: the highest that each leadership has shown.
#[derive(Debug, Default)]
pub struct Watermarks(BTreeMap<(TopicPartition, i32), i64>);

impl Watermarks {
    /// Looks at a replica.
    pub fn look(&mut self, replica: &PartitionMetrics) -> Option<String> {
        let PartitionMetrics { partition, leader_epoch, high_watermark, log_end, leads, .. } = replica;
        if high_watermark > log_end {
            return Some(format!("{partition:?}: the high watermark {high_watermark} is above the end {log_end}"));
        }
        if !leads {
            return None;
        }
        let before = self.0.entry((*partition, *leader_epoch)).or_insert(*high_watermark);
        let went_back = *high_watermark < *before;
        let what = || {
            format!("{partition:?}, epoch {leader_epoch}: the high watermark went from {before} to {high_watermark}")
        };
        let found = went_back.then(what);
        *before = *high_watermark.max(before);
        found
    }
}
