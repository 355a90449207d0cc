//! The replicas of a partition agree byte for byte (`R22`, `R24`): what lies on the disks of a cluster that is healed and quiet
//! is the same everywhere, from the offset on that all of them have.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use model::{BrokerId, RecordBatch};
use storage::disk::{Disk, OpenMode, read_exact_at};

use crate::cluster::Cluster;
use crate::disks::Disks;
use crate::net::HostId;
use crate::node::Node;
use crate::workload::{LOOSE, OUT, TOPIC};

/// Compares the logs on all disks.
#[must_use]
pub fn check_replicas(cluster: &Cluster) -> Vec<String> {
    let mut violations = Vec::new();
    for topic in [TOPIC, OUT, LOOSE] {
        for (partition, nodes) in replicas_of(cluster, topic) {
            let mut logs = Vec::new();
            for node in nodes {
                match read_log(&node.disks, topic, partition) {
                    Ok(batches) => logs.push((node.id, batches)),
                    Err(error) => violations.push(format!("{topic}-{partition} on {:?}: {error}", node.id)),
                }
            }
            violations.extend(compare(&logs).map(|what| format!("{topic}-{partition} {what}")));
        }
    }
    violations
}

fn compare(logs: &[(HostId, Vec<RecordBatch>)]) -> Option<String> {
    let begins = |batches: &Vec<RecordBatch>| batches.first().map_or(i64::MAX, |batch| batch.header().base_offset.0);
    // Records that were deleted are gone where their segment is.
    let first = logs.iter().map(|(_, batches)| begins(batches)).max()?;
    let from = |batches: &'_ [RecordBatch]| -> Vec<Bytes> {
        let kept = batches.iter().filter(|batch| batch.header().base_offset.0 >= first);
        kept.map(|batch| batch.bytes().clone()).collect()
    };
    let (first_id, expected) = logs.first().map(|(id, batches)| (*id, from(batches)))?;
    for (id, batches) in logs {
        let found = from(batches);
        if found != expected {
            let same = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let lengths = (found.len(), expected.len());
            return Some(format!(
                "differs on {id:?} and {first_id:?} after {same} batches from offset {first} on; lengths {lengths:?}"
            ));
        }
    }
    None
}

/// The partitions of a topic, with the nodes that have them.
pub(super) fn replicas_of<'a>(cluster: &'a Cluster, topic: &str) -> Vec<(i32, Vec<&'a Node>)> {
    let seen = cluster.observer.lock();
    let Some(id) = seen.image.topic_id(topic) else { return Vec::new() };
    let has = |replicas: &[BrokerId], node: &Node| replicas.contains(&BrokerId(i32::from(node.id.0)));
    let of_topic = seen.image.partitions().filter(|partition| partition.id().topic_id == id);
    let with_nodes = of_topic.map(|partition| {
        let nodes = cluster.nodes.iter().filter(|node| has(&partition.replicas, node)).collect();
        (partition.partition.0, nodes)
    });
    with_nodes.collect()
}

/// The batches of all segments, in order.
pub(super) fn read_log(disks: &Disks, topic: &str, partition: i32) -> io::Result<Vec<RecordBatch>> {
    // Without the faults that are still to come.
    let mut disk = disks.fork();
    (0..disk.count()).for_each(|number| disk.set_broken(number, false));
    let places = disk.log_dirs().into_iter().map(|dir| dir.join(format!("{topic}-{partition}")));
    let mut found: Vec<PathBuf> = places.filter(|dir| disk.list(dir).is_ok()).collect();
    // Nothing was ever written to it.
    let Some(dir) = found.pop() else { return Ok(Vec::new()) };
    if !found.is_empty() {
        return Err(io::Error::other("it is in both log directories"));
    }
    let mut names: Vec<String> = disk.list(&dir)?.into_iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    let mut all = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".log")) {
        let file = disk.open(&dir.join(name), OpenMode::ReadOnly)?;
        let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0)];
        read_exact_at(&*file, &mut bytes, 0)?;
        let batches = RecordBatch::split_all(Bytes::from(bytes));
        all.extend(batches.map_err(|error| io::Error::other(format!("{name}: {error}")))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use model::{Codec, LeaderEpoch, Offset, Record, encode_batch, encode_records};

    use super::*;

    #[test]
    fn logs_that_differ_are_noticed_and_what_was_deleted_is_not() {
        let log = |parts: &[(i64, &str)]| parts.iter().map(|(offset, value)| batch(*offset, value)).collect::<Vec<_>>();
        let compared = |a: &[(i64, &str)], b: &[(i64, &str)]| compare(&[(HostId(1), log(a)), (HostId(2), log(b))]);
        assert_eq!(compared(&[(0, "a"), (1, "b")], &[(0, "a"), (1, "b")]), None);
        assert_eq!(compared(&[(0, "a"), (1, "b")], &[(1, "b")]), None);
        assert!(compared(&[(0, "a"), (1, "b")], &[(0, "a"), (1, "c")]).is_some());
        assert!(compared(&[(0, "a"), (1, "b")], &[(0, "a")]).is_some());
    }

    fn batch(offset: i64, value: &str) -> RecordBatch {
        let record = Record { value: Some(Bytes::copy_from_slice(value.as_bytes())), ..Record::default() };
        let bytes = encode_batch(&encode_records(&[record]), Codec::None, 1, 0, 0, None);
        let batches = model::ClientBatches::check(bytes).expect("it is whole");
        batches.stamp(Offset(offset), LeaderEpoch(1))
    }
}
