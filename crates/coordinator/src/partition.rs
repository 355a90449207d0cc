//! Which partition of `__consumer_offsets`, and so which shard, a group belongs to: the same as in Kafka, so that a log
//! taken over from Kafka stays where clients and tools look for it.

use model::PartitionIndex;

/// The partition of a group among `partitions`, which must be positive.
#[must_use]
pub fn partition_for(group_id: &str, partitions: i32) -> PartitionIndex {
    assert!(partitions > 0, "a topic has at least one partition: partitions={partitions}");
    // Kafka takes the absolute value of Java's String.hashCode, and 0 for the one number that has none.
    let hash = group_id.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    PartitionIndex(hash.checked_abs().unwrap_or(0) % partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_belongs_to_the_partition_that_kafka_gives_it() {
        // Hash codes as Java has them: "" 0, "a" 97, "my-group" 1439319901.
        assert_eq!(partition_for("", 50), PartitionIndex(0));
        assert_eq!(partition_for("a", 50), PartitionIndex(47));
        // Its hash code is i32::MIN, which has no absolute value.
        assert_eq!(partition_for("polygenelubricants", 50), PartitionIndex(0));
    }
}
