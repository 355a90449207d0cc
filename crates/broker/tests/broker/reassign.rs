//! Replicas that move (`R37`, `R38`), and how fast.

use broker::Broker;
use broker::api::{Acks, BrokerApi};
use metadata::control::{AlterReassignments, ConfigChange, ConfigOperation, IncrementalAlterConfigs, Reassignment};
use metadata::{ConfigResource, ControlRequest, ControlResponse, throttle};
use model::{BrokerId, ErrorCode, Offset, PartitionIndex, TopicPartition};
use storage::disk::{Crash, Disk};
use tokio::time::Instant;

use crate::cluster::*;

fn ids(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

/// Asked for at a broker, as clients do.
async fn reassign(broker: &Broker, topic: &str, target: Option<&[i32]>) -> ErrorCode {
    let asked = Reassignment { topic: topic.to_owned(), partition: PartitionIndex(0), target: target.map(ids) };
    let request = AlterReassignments { partitions: vec![asked], allow_factor_change: true };
    match broker.control(ControlRequest::AlterReassignments(request), 10_000).await {
        Ok(ControlResponse::AlterReassignments(mut list)) => {
            list.remove(0).result.err().map_or(ErrorCode::None, |error| error.code)
        }
        other => panic!("{other:?}"),
    }
}

impl Cluster {
    fn replicas(&self, id: TopicPartition) -> Vec<i32> {
        self.controller.image().partition(id).unwrap().replicas.iter().map(|id| id.0).collect()
    }

    async fn wait_replicas(&self, id: TopicPartition, replicas: &[i32]) {
        eventually(&format!("the replicas are {replicas:?}"), || (self.replicas(id) == replicas).then_some(())).await;
    }

    fn set(&self, resource: ConfigResource, name: &str, value: Option<&str>) {
        let operation = match value {
            Some(value) => ConfigOperation::Set(Some(value.to_owned())),
            None => ConfigOperation::Delete,
        };
        let changes = vec![ConfigChange { name: name.to_owned(), operation }];
        let request = IncrementalAlterConfigs { resources: vec![(resource, changes)], validate_only: false };
        let ControlResponse::IncrementalAlterConfigs(results) =
            self.controller.ask(&ControlRequest::IncrementalAlterConfigs(request))
        else {
            panic!("another answer")
        };
        assert_eq!(results[0].result, Ok(()));
    }

    /// Whether a broker's disk has files of a topic's partition.
    fn has_files(&self, broker: i32, topic: &str) -> bool {
        let entries = self.disk(broker).list("/data".as_ref()).unwrap();
        entries.iter().any(|entry| entry.name.starts_with(&format!("{topic}-0")))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_begins_with_the_whole_of_a_batch_whose_first_records_were_deleted() {
    // R26, R58: the leader's log start is inside of its first batch
    let mut cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a", "b", "c"]).await;
    produce_ok(cluster.broker(1), id, &["d"]).await;
    let deleted = soon("the deletion", cluster.broker(1).delete_records(vec![(id, Offset(2))], 25_000)).await;
    assert_eq!(deleted[0].error, ErrorCode::None);
    assert_eq!(reassign(cluster.broker(1), "t", Some(&[1, 2])).await, ErrorCode::None);
    cluster.wait_isr(id, &[1, 2]).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.wait_leader(id).await, 2);
    assert_eq!(fetch(cluster.broker(2), id, 1).await.error, ErrorCode::OffsetOutOfRange);
    assert_eq!(values(cluster.broker(2), id, 2).await, ["a", "b", "c", "d"], "a batch is given whole");
    cluster.start_broker(1).await;
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(produce_ok(cluster.broker(2), id, &["e"]).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_moves_under_load_and_leaves_nothing_behind() {
    // R37, R38
    let cluster = Cluster::start(4, 2).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    let mut written: Vec<String> = (0..50).map(|at| at.to_string()).collect();
    for value in &written {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    assert_eq!(reassign(cluster.broker(2), "t", Some(&[3, 4])).await, ErrorCode::None);
    // The leader leads on until the others are in sync; what it acknowledges meanwhile moves along.
    loop {
        let value = written.len().to_string();
        let produced = produce(cluster.broker(1), id, Acks::All, batch(&[&value])).await;
        match produced.error {
            ErrorCode::None => written.push(value),
            ErrorCode::NotLeaderOrFollower | ErrorCode::UnknownTopicOrPartition => break,
            other => panic!("{other:?} {:?}", produced.message),
        }
    }
    cluster.wait_replicas(id, &[3, 4]).await;
    cluster.wait_isr(id, &[3, 4]).await;
    assert_eq!(cluster.wait_leader(id).await, 3);
    let found = eventually_values(&cluster, id, written.len()).await;
    assert_eq!(found[..written.len()], written[..], "the last produce may be there, too");
    for gone in [1, 2] {
        eventually("the files are gone", || (!cluster.has_files(gone, "t")).then_some(())).await;
        assert_eq!(cluster.log_end(gone, id), -1);
    }
    produce_ok(cluster.broker(3), id, &["after"]).await;
}

async fn eventually_values(cluster: &Cluster, id: TopicPartition, count: usize) -> Vec<String> {
    let until = Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let found = values(cluster.broker(3), id, 0).await;
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < until, "only {} of {count} values", found.len());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_move_deletes_what_was_copied() {
    // R37, R38
    let cluster = Cluster::start(3, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    let value = "x".repeat(50_000);
    for _ in 0..20 {
        produce_ok(cluster.broker(1), id, &[&value]).await;
    }
    // So slow that it is not done before it is cancelled.
    cluster.set(topic("t"), throttle::LEADER_REPLICAS, Some("0:1"));
    cluster.set(ConfigResource::Broker(BrokerId(1)), throttle::LEADER_RATE, Some("1000"));
    assert_eq!(reassign(cluster.broker(3), "t", Some(&[1, 3])).await, ErrorCode::None);
    eventually("the new replica has something", || (cluster.log_end(3, id) > 0).then_some(())).await;
    assert!(cluster.has_files(3, "t"));
    assert_eq!(cluster.replicas(id), [1, 3, 2]);
    assert_eq!(reassign(cluster.broker(3), "t", None).await, ErrorCode::None);
    assert_eq!(cluster.replicas(id), [1, 2]);
    eventually("the copy is gone", || (!cluster.has_files(3, "t")).then_some(())).await;
    assert_eq!(reassign(cluster.broker(3), "t", None).await, ErrorCode::NoReassignmentInProgress);
    produce_ok(cluster.broker(1), id, &["after"]).await;
}

fn topic(name: &str) -> ConfigResource {
    ConfigResource::Topic(name.to_owned())
}

/// Bytes that a throttled replica takes in a second and more, against what the rate allows.
async fn copies_at_the_rate(resource: ConfigResource, rate: &str, replicas: (&str, &str)) {
    const RATE: i64 = 200_000;
    const VALUE: i64 = 50_000;
    let cluster = Cluster::start(3, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    cluster.wait_leader(id).await;
    cluster.set(topic("t"), replicas.0, Some(replicas.1));
    cluster.set(resource.clone(), rate, Some(&RATE.to_string()));
    let value = "x".repeat(usize::try_from(VALUE).unwrap());
    // A replica in sync is not held back: at this rate it would take a minute.
    for _ in 0..240 {
        produce_ok(cluster.broker(1), id, &[&value]).await;
    }
    let begun = Instant::now();
    assert_eq!(reassign(cluster.broker(1), "t", Some(&[1, 2, 3])).await, ErrorCode::None);
    let copied = eventually("the new replica has much of it", || {
        Some(cluster.log_end(3, id) * VALUE).filter(|copied| *copied >= RATE)
    })
    .await;
    let seconds = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let most = RATE as f64 * (seconds + 0.1) + (2 * VALUE) as f64;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let copied = copied as f64;
    assert!(copied <= most, "{copied} bytes in {seconds} s, at most {most}");
    assert_eq!(cluster.isr(id), [1, 2]);
    // Without the throttle the rest comes at once: it would take most of a minute.
    cluster.set(resource, rate, None);
    cluster.wait_isr(id, &[1, 2, 3]).await;
    assert_eq!(cluster.replicas(id), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_sends_at_its_rate_what_is_not_in_sync() {
    let resource = ConfigResource::Broker(BrokerId(1));
    copies_at_the_rate(resource, throttle::LEADER_RATE, (throttle::LEADER_REPLICAS, "*")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_sent_what_its_rate_allows() {
    let resource = ConfigResource::Broker(BrokerId(3));
    copies_at_the_rate(resource, throttle::FOLLOWER_RATE, (throttle::FOLLOWER_REPLICAS, "0:3")).await;
}
