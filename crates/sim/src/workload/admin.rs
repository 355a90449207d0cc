//! An operator who does not leave the cluster alone: replicas are moved (`R37`), moves are changed and taken back, replicas go from
//! one log directory to the other, `min.insync.replicas` goes up and down, records that were read are deleted (`R39`). Whatever is
//! refused is refused.

use std::time::Duration;

use anyhow::{Context, Result};
use protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use protocol::messages::alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic};
use protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, AlterReplicaLogDirsRequest,
    AlterReplicaLogDirsResponse, DeleteRecordsRequest, DeleteRecordsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};

use super::{KEYED, OFFSETS, OUT, OUTS, PARTITIONS, TOPIC, TRANSACTIONS, topics_made};
use crate::chance::Chance;
use crate::client::Client;
use crate::disks::{DATA, SPARE};
use crate::history::Shared;
use crate::net::HostId;
use crate::node::address;

/// What min ISR may be where any disk may lose what was not synced, and acknowledged records were.
const SYNCED: &[&str] = &["1", "2", "3"];
/// What it may be where one disk at a time may lose something.
const UNSYNCED: &[&str] = &["2", "3"];
/// How many milliseconds an operator rests at most, from a nervous one to a calm one.
const PAUSES: &[u64] = &[200, 1_500, 4_000];
/// The topics, and how many partitions each has.
const TOPICS: &[(&str, i32)] = &[(TOPIC, PARTITIONS), (OUT, OUTS), (OFFSETS, 2), (TRANSACTIONS, 2), (KEYED, 1)];
/// The type of a topic's configs.
const TOPIC_CONFIGS: i8 = 2;

/// See the module.
#[derive(Debug)]
pub struct Admin {
    /// How many nodes there are.
    pub nodes: u8,
    /// Those of them that have two log directories.
    pub two_dirs: Vec<HostId>,
    /// Whether acknowledged records are synced.
    pub synced: bool,
    /// How it asks.
    pub client: Client,
    /// Its chance.
    pub chance: Chance,
    /// What it did.
    pub history: Shared,
}

impl Admin {
    /// Acts until the faults are over.
    pub async fn run(mut self) {
        topics_made(&self.history).await;
        let pause = *self.chance.pick(PAUSES);
        while !self.history.lock().calm {
            let what = match self.chance.between(0, 10) {
                8 | 9 => ("dir-moves", self.relocate().await),
                0 => ("min-isr", self.set_min_isr().await),
                1..=3 => ("deletions", self.delete_records().await),
                _ => ("moves", self.reassign().await),
            };
            if let (name, Ok(true)) = what {
                self.history.lock().step(name);
            }
            let ms = self.chance.between(20, pause);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Another set of replicas, or an end of the move that is under way.
    async fn reassign(&mut self) -> Result<bool> {
        let (topic, partitions) = *self.chance.pick(TOPICS);
        let partition = self.partition(partitions);
        let replicas = (!self.chance.one_in(5)).then(|| self.replicas());
        let partition = ReassignablePartition { partition_index: partition, replicas };
        let topic = ReassignableTopic { name: topic.to_owned(), partitions: vec![partition] };
        let request =
            AlterPartitionReassignmentsRequest { topics: vec![topic], timeout_ms: 3_000, ..Default::default() };
        let answer: AlterPartitionReassignmentsResponse = self.client.any(&request).await?;
        let topic = answer.responses.first().context("no topic")?;
        Ok(topic.partitions.first().context("no partition")?.error_code == 0)
    }

    /// A replica to the other log directory, or to the one that it is in; or what comes to a node is to come there.
    async fn relocate(&mut self) -> Result<bool> {
        if self.two_dirs.is_empty() {
            return Ok(false);
        }
        let node = *self.chance.pick(&self.two_dirs);
        let (topic, partitions) = *self.chance.pick(TOPICS);
        let partitions = vec![self.partition(partitions)];
        let topic = AlterReplicaLogDirTopic { name: topic.to_owned(), partitions };
        let path = (*self.chance.pick(&[DATA, SPARE])).to_owned();
        let request = AlterReplicaLogDirsRequest { dirs: vec![AlterReplicaLogDir { path, topics: vec![topic] }] };
        let answer: AlterReplicaLogDirsResponse = self.client.at(&address(node, "PLAINTEXT"), &request).await?;
        let topic = answer.results.first().context("no topic")?;
        Ok(topic.partitions.first().context("no partition")?.error_code == 0)
    }

    /// Two to all of the nodes, in any order.
    fn replicas(&mut self) -> Vec<i32> {
        let mut nodes: Vec<i32> = (1..=i32::from(self.nodes)).collect();
        for at in 0..nodes.len() {
            let other = self.chance.between(0, u64::from(self.nodes));
            nodes.swap(at, usize::try_from(other).expect("it is below a length"));
        }
        let count = if self.chance.one_in(3) { self.chance.between(2, u64::from(self.nodes) + 1) } else { 3 };
        nodes.truncate(usize::try_from(count).expect("a few"));
        nodes
    }

    fn partition(&mut self, partitions: i32) -> i32 {
        i32::try_from(self.chance.draw() % u64::from(partitions.unsigned_abs())).expect("it is below a small number")
    }

    async fn set_min_isr(&mut self) -> Result<bool> {
        let value = *self.chance.pick(if self.synced { SYNCED } else { UNSYNCED });
        let config = AlterableConfig {
            name: "min.insync.replicas".to_owned(),
            value: Some(value.to_owned()),
            ..Default::default()
        };
        let topic = *self.chance.pick(&[TOPIC, OUT]);
        let resource = AlterConfigsResource {
            resource_type: TOPIC_CONFIGS,
            resource_name: topic.to_owned(),
            configs: vec![config],
        };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
        let answer: IncrementalAlterConfigsResponse = self.client.any(&request).await?;
        Ok(answer.responses.first().context("no resource")?.error_code == 0)
    }

    /// Of what has been read some is deleted, or all; each producer's last batch stays, or it could not be known again (`R40`).
    /// What transactions wrote needs no such care: nobody writes on where a marker stands.
    async fn delete_records(&mut self) -> Result<bool> {
        let (topic, partitions) = *self.chance.pick(&[(TOPIC, PARTITIONS), (OUT, OUTS)]);
        let partition = self.partition(partitions);
        let end = {
            let history = self.history.lock();
            let read = || history.stable_positions.get(&partition).copied().unwrap_or(0);
            if topic == TOPIC { history.deletable(partition) } else { read() }
        };
        let anywhere = i64::try_from(self.chance.between(0, end.unsigned_abs() + 1)).context("too many records")?;
        let offset = if self.chance.one_in(3) { end } else { anywhere };
        let mut client = self.client.fresh();
        let leader = client.leader(topic, partition).await?;
        let partitions = vec![DeleteRecordsPartition { partition_index: partition, offset }];
        let topics = vec![DeleteRecordsTopic { name: topic.to_owned(), partitions }];
        let request = DeleteRecordsRequest { topics, timeout_ms: 3_000 };
        let answer: DeleteRecordsResponse = client.at(&leader, &request).await?;
        let topic = answer.topics.into_iter().next().context("no topic")?;
        Ok(topic.partitions.first().context("no partition")?.error_code == 0)
    }
}
