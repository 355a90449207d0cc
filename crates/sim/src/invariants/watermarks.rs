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

#[cfg(test)]
mod tests {
    use super::super::tests::replica;
    use super::*;

    #[test]
    fn one_that_goes_back_or_is_above_the_log_is_noticed() {
        let mut watermarks = Watermarks::default();
        assert_eq!(watermarks.look(&replica(true, 4, 7, 9)), None);
        assert_eq!(watermarks.look(&replica(true, 4, 8, 9)), None);
        assert_eq!(watermarks.look(&replica(false, 4, 3, 9)), None, "a follower hears of it later");
        assert_eq!(watermarks.look(&replica(true, 5, 6, 6)), None, "the next leader learns it");
        assert!(watermarks.look(&replica(true, 4, 7, 9)).is_some());
        assert!(watermarks.look(&replica(true, 5, 5, 6)).is_some());
        assert!(watermarks.look(&replica(false, 5, 7, 6)).is_some());
    }
}
