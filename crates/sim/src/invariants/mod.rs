//! What must hold, one file each: while the cluster runs, and at the end.

mod acknowledged;
mod elections;
mod images;
mod keyed;
mod leaders;
mod offsets;
mod owners;
mod replicas;
mod transactions;
mod watermarks;
mod zombies;
mod zones;

pub use acknowledged::check_written;
pub use elections::{Observer, Seen, observe};
pub use images::check_images;
pub use keyed::check_keyed;
pub use leaders::Leaders;
pub use offsets::{Offsets, check_offsets};
pub use owners::Owners;
pub use replicas::check_replicas;
pub use transactions::{Attempt, Attempts, Id, check_transactions, value};
pub use watermarks::Watermarks;
pub use zombies::Grants;
pub use zones::Zones;

#[cfg(test)]
mod tests {
    use broker::PartitionMetrics;
    use model::{PartitionIndex, TopicId, TopicPartition, Uuid};
    use storage::FlushPolicy;

    /// A replica as its broker shows it.
    pub(super) fn replica(leads: bool, leader_epoch: i32, high_watermark: i64, log_end: i64) -> PartitionMetrics {
        PartitionMetrics {
            partition: TopicPartition { topic_id: TopicId(Uuid::from_u128(1)), partition: PartitionIndex(0) },
            topic: "t".to_owned(),
            leads,
            leader_epoch,
            size: 0,
            log_end,
            high_watermark,
            flush_policy: FlushPolicy::PageCache,
            bytes_in: 0,
            messages_in: 0,
            bytes_out: 0,
        }
    }
}
