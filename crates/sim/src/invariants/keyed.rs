//! A compacted log has the last value of each key, on every replica, and nothing in it changes its place: what is left of a key's
//! values is in the order in which they were written (`R20`; Kafka's promise for `cleanup.policy=compact`).

use std::collections::BTreeMap;

use model::{RecordBatch, RecordIter};

use super::replicas::{read_log, replicas_of};
use crate::cluster::Cluster;
use crate::workload::KEYED;

/// Looks through the logs on all disks. To be asked when all that was written is acknowledged.
#[must_use]
pub fn check_keyed(cluster: &Cluster) -> Vec<String> {
    let written = cluster.history.lock().keyed.clone();
    let mut violations = Vec::new();
    for (_, nodes) in replicas_of(cluster, KEYED) {
        for node in nodes {
            let found = match read_log(&node.disks, KEYED, 0) {
                Ok(batches) => check_log(&batches, &written),
                Err(error) => vec![error.to_string()],
            };
            violations.extend(found.into_iter().map(|what| format!("{KEYED} on {:?}: {what}", node.id)));
        }
    }
    violations
}

fn check_log(batches: &[RecordBatch], written: &BTreeMap<String, i32>) -> Vec<String> {
    let mut violations = Vec::new();
    let mut last: BTreeMap<String, i32> = BTreeMap::new();
    let mut next = 0;
    for batch in batches {
        let header = batch.header();
        if header.base_offset.0 < next {
            violations.push(format!("a batch is at {}, {next} is next", header.base_offset.0));
        }
        next = header.next_offset().0;
        for record in RecordIter::new(batch.payload(), header.record_count).flatten() {
            let key = String::from_utf8_lossy(&record.key.unwrap_or_default()).into_owned();
            let value = record.value.as_deref().and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            let Some(value) = value else { continue };
            let before = last.insert(key.clone(), value).unwrap_or(-1);
            if value <= before {
                violations.push(format!("{key} is {before}, then {value} at {}", header.base_offset.0));
            }
        }
    }
    if last != *written {
        violations.push(format!("the last values are {last:?}; written were {written:?}"));
    }
    violations
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use model::{Codec, LeaderEpoch, Offset, Record, encode_batch, encode_records};

    use super::*;

    #[test]
    fn a_value_that_is_lost_or_comes_back_is_noticed_and_one_that_was_overwritten_is_not() {
        let written = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let found = |log: &[(i64, &str, i32)]| {
            let batches: Vec<RecordBatch> =
                log.iter().map(|(offset, key, value)| batch(*offset, key, *value)).collect();
            check_log(&batches, &written).len()
        };
        assert_eq!(found(&[(0, "a", 1), (2, "b", 2), (3, "a", 3)]), 0);
        assert_eq!(found(&[(2, "b", 2), (3, "a", 3)]), 0);
        assert_eq!(found(&[(0, "a", 1), (2, "b", 2)]), 1);
        assert_eq!(found(&[(3, "a", 3)]), 1);
        assert_eq!(found(&[(2, "b", 2), (3, "a", 3), (4, "a", 1)]), 2);
        assert_eq!(found(&[(3, "b", 2), (2, "a", 3)]), 1);
    }

    fn batch(offset: i64, key: &str, value: i32) -> RecordBatch {
        let key = Some(Bytes::copy_from_slice(key.as_bytes()));
        let record = Record { key, value: Some(Bytes::from(value.to_string())), ..Record::default() };
        let bytes = encode_batch(&encode_records(&[record]), Codec::None, 1, 0, 0, None);
        let batches = model::ClientBatches::check(bytes).expect("it is whole");
        batches.stamp(Offset(offset), LeaderEpoch(1))
    }
}
