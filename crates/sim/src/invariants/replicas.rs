//! The replicas of a partition agree byte for byte (`R22`, `R24`): what lies on the disks of a cluster that is healed and quiet
//! is the same everywhere, and nothing else than what was read.

use std::path::{Path, PathBuf};

use storage::disk::{Disk, OpenMode, read_exact_at};

use crate::node::{DATA, Node};
use crate::workload::{PARTITIONS, TOPIC};

/// Compares the logs on all disks.
#[must_use]
pub fn check_replicas(nodes: &[Node]) -> Vec<String> {
    let mut violations = Vec::new();
    for partition in 0..PARTITIONS {
        let log = |node: &Node| records(&node.disk, &PathBuf::from(DATA).join(format!("{TOPIC}-{partition}")));
        let logs: Vec<_> = nodes.iter().map(|node| (node.id, log(node))).collect();
        for (id, log) in &logs {
            match (log, &logs[0].1) {
                (Err(error), _) => violations.push(format!("partition {partition} on {id:?}: {error}")),
                (Ok(log), Ok(first)) if log != first => {
                    let same = log.iter().zip(first).take_while(|(a, b)| a == b).count();
                    let lengths = (log.len(), first.len());
                    violations.push(format!(
                        "partition {partition} differs on {id:?} and {:?} from byte {same} on; lengths {lengths:?}",
                        logs[0].0
                    ));
                }
                _ => {}
            }
        }
    }
    violations
}

/// The bytes of all segments, in order.
fn records(disk: &dyn Disk, dir: &Path) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    for entry in disk.list(dir)? {
        if entry.name.ends_with(".log") {
            let file = disk.open(&dir.join(&entry.name), OpenMode::ReadOnly)?;
            let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0)];
            read_exact_at(&*file, &mut bytes, 0)?;
            all.extend(bytes);
        }
    }
    Ok(all)
}
