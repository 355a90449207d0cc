//! A group's committed offset never goes back (`R49`, `R52`, `R53`): whoever is given a partition is told at least what was
//! acknowledged to those before, and in the log of the coordinator no offset is lower than the one before it.
//!
//! Members keep to their part: what they commit grows, and after a commit whose outcome they do not know they commit nothing
//! more under that identity.

use std::collections::BTreeMap;

use coordinator::{CoordinatorRecord, Fact};
use model::{RecordBatch, RecordIter};

use super::replicas::{read_log, replicas_of};
use crate::cluster::Cluster;
use crate::workload::{OFFSETS, TRANSFORM};

/// A group, a partition, and the generation (or member epoch) of who asks.
type At<'a> = (&'a str, i32, i32);

/// See the module: what was acknowledged, by group and partition, then by generation.
#[derive(Debug, Default)]
pub struct Offsets(BTreeMap<(String, i32), BTreeMap<i32, i64>>);

impl Offsets {
    /// A commit was acknowledged.
    pub fn acknowledged(&mut self, (group, partition, generation): At<'_>, offset: i64) {
        let known = self.0.entry((group.to_owned(), partition)).or_default().entry(generation).or_insert(offset);
        *known = offset.max(*known);
    }

    /// What a member of `generation` that asks from now on has to be told at least; -1 where nothing was committed.
    #[must_use]
    pub fn floor(&self, group: &str, partition: i32, generation: i32) -> i64 {
        let known = self.0.get(&(group.to_owned(), partition));
        known.and_then(|known| known.range(..=generation).map(|(_, offset)| *offset).max()).unwrap_or(-1)
    }

    /// A member was told an offset; `floor` is from before it asked.
    #[must_use]
    pub fn told(&self, (group, partition, generation): At<'_>, floor: i64, offset: i64) -> Option<String> {
        let what = || {
            format!(
                "group {group}, partition {partition}: generation {generation} is told {offset}, {floor} was acknowledged"
            )
        };
        (offset < floor).then(what)
    }
}

/// Looks through the logs of the groups' coordinators. Says what goes back. Offsets in transactions count from their markers on;
/// those are judged by what the transactions come to.
#[must_use]
pub fn check_offsets(cluster: &Cluster) -> Vec<String> {
    let mut violations = Vec::new();
    for (partition, nodes) in replicas_of(cluster, OFFSETS) {
        let Some(node) = nodes.first() else { continue };
        match read_log(&node.disks, OFFSETS, partition) {
            Ok(batches) => violations.extend(check_log(&batches)),
            Err(error) => violations.push(format!("{OFFSETS}-{partition} of {:?}: {error}", node.id)),
        }
    }
    violations
}

fn check_log(batches: &[RecordBatch]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut last: BTreeMap<(String, i32), i64> = BTreeMap::new();
    for batch in batches.iter().filter(|batch| !batch.header().is_control()) {
        for record in RecordIter::new(batch.payload(), batch.header().record_count).flatten() {
            let record = CoordinatorRecord { key: record.key.unwrap_or_default(), value: record.value };
            let Ok(Some(Fact::Offset { group_id, partition, committed, .. })) = Fact::decode(&record) else { continue };
            let Some(committed) = committed.filter(|_| group_id != TRANSFORM) else { continue };
            let offset = committed.offset.0;
            let before = last.insert((group_id.clone(), partition.0), offset).unwrap_or(-1);
            if offset < before {
                let at = batch.header().base_offset.0;
                violations
                    .push(format!("group {group_id}, partition {}: {before}, then {offset} at {at}", partition.0));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use coordinator::CommittedOffset;
    use model::{LeaderEpoch, Offset, PartitionIndex, Record, Time, TopicId, encode_batch, encode_records};

    use super::*;

    #[test]
    fn who_is_told_less_than_was_acknowledged_before_is_noticed_and_later_generations_do_not_count() {
        let mut offsets = Offsets::default();
        offsets.acknowledged(("g", 0, 3), 7);
        offsets.acknowledged(("g", 0, 4), 9);
        assert_eq!((offsets.floor("g", 0, 2), offsets.floor("g", 0, 3), offsets.floor("g", 0, 8)), (-1, 7, 9));
        assert_eq!(offsets.floor("g", 1, 8), -1);
        assert_eq!(offsets.told(("g", 0, 3), 7, 7), None);
        assert!(offsets.told(("g", 0, 4), 9, 8).is_some());
    }

    #[test]
    fn a_log_in_which_an_offset_goes_back_is_noticed() {
        assert_eq!(check_log(&[log(&[3, 3, 5])]), Vec::<String>::new());
        assert_eq!(check_log(&[log(&[3, 5]), log(&[4])]).len(), 1);
    }

    fn log(offsets: &[i64]) -> RecordBatch {
        let record = |(at, offset): (i32, &i64)| {
            let committed = CommittedOffset {
                offset: Offset(*offset),
                leader_epoch: LeaderEpoch(-1),
                metadata: String::new(),
                commit_timestamp: Time(0),
                expire_timestamp: None,
                topic_id: TopicId::NONE,
            };
            let fact = Fact::Offset {
                group_id: "g".to_owned(),
                topic: "t".to_owned(),
                partition: PartitionIndex(0),
                committed: Some(committed),
            };
            let record = fact.encode().expect("it is small");
            Record { offset_delta: at, key: Some(record.key), value: record.value, ..Record::default() }
        };
        let records: Vec<Record> = (0..).zip(offsets).map(record).collect();
        let count = i32::try_from(records.len()).expect("a few");
        let bytes = encode_batch(&encode_records(&records), model::Codec::None, count, 0, 0, None);
        RecordBatch::split_off(&mut bytes.freeze()).expect("it is whole")
    }
}
