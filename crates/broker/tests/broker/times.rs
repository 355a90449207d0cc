//! Questions about timestamps and retention read the disk without the partition's lock.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use broker::api::{Acks, BrokerApi, Isolation, ListOffsetsPartition, ListedOffset, OffsetSpec};
use metadata::control::{ConfigChange, ConfigOperation, IncrementalAlterConfigs};
use metadata::{ConfigResource, ControlRequest};
use model::{ErrorCode, LeaderEpoch, Offset, TopicPartition};
use storage::disk::{Call, Disk, FaultKind};

use crate::cluster::*;

fn ask(cluster: &Cluster, id: TopicPartition, spec: OffsetSpec) -> tokio::task::JoinHandle<ListedOffset> {
    let broker = Arc::clone(cluster.broker(1));
    let asked = ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec };
    tokio::spawn(async move { broker.list_offsets(Isolation::ReadUncommitted, vec![asked]).await.remove(0) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_goes_on_while_a_lookup_by_time_hangs_in_a_read() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    produce_ok(cluster.broker(1), id, &["a"]).await;
    for spec in [OffsetSpec::Timestamp(0), OffsetSpec::MaxTimestamp] {
        let gate = cluster.disk(1).hold_reads("t-0/");
        let answer = ask(&cluster, id, spec);
        eventually("the lookup hangs", || (gate.waiting() == 1).then_some(())).await;
        produce_ok(cluster.broker(1), id, &["b"]).await;
        assert_eq!(gate.waiting(), 1, "it hangs still");
        drop(gate);
        let found = soon("the answer", answer).await.unwrap();
        assert_eq!(found.error, ErrorCode::None);
        assert!(spec == OffsetSpec::MaxTimestamp || found.offset == Offset(0), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_while_it_is_looked_for_is_not_the_answer() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    for value in ["a", "b", "c"] {
        produce_ok(cluster.broker(1), id, &[value]).await;
    }
    let gate = cluster.disk(1).hold_reads("t-0/");
    let answer = ask(&cluster, id, OffsetSpec::Timestamp(0));
    eventually("the lookup hangs", || (gate.waiting() == 1).then_some(())).await;
    let deleted = cluster.broker(1).delete_records(vec![(id, Offset(2))], 20_000);
    assert_eq!(soon("the deletion", deleted).await[0].error, ErrorCode::None);
    drop(gate);
    let found = soon("the answer", answer).await.unwrap();
    assert_eq!((found.error, found.offset), (ErrorCode::None, Offset(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_goes_on_while_retention_hangs_in_a_read() {
    let mut cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[("segment.bytes", "1048576"), ("retention.ms", "3600000")]).await;
    cluster.wait_leader(id).await;
    for _ in 0..4 {
        produce_ok(cluster.broker(1), id, &[&"z".repeat(600_000)]).await;
    }
    cluster.shut_down(1).await;
    // How old the first segment is has to be read again.
    let gate = cluster.disk(1).hold_reads("t-0/00000000000000000000.timeindex");
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    eventually("retention hangs", || (gate.waiting() == 1).then_some(())).await;
    assert_eq!(produce_ok(cluster.broker(1), id, &["more"]).await, 4);
    assert_eq!(gate.waiting(), 1, "it hangs still");
    drop(gate);
    assert_eq!(values(cluster.broker(1), id, 4).await, ["more"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_makes_space_also_where_there_is_none_for_a_roll() {
    let cluster = Cluster::start(1, 1).await;
    let configs = [
        ("segment.bytes", "1048576"),
        ("preallocate", "true"),
        ("segment.ms", "300"),
        ("retention.ms", "1000"),
        ("file.delete.delay.ms", "0"),
    ];
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    for _ in 0..4 {
        produce_ok(cluster.broker(1), id, &[&"z".repeat(600_000)]).await;
    }
    (0..10_000).for_each(|_| cluster.disk(1).fail(Call::Preallocate, 0, FaultKind::Enospc));
    let files = || cluster.disk(1).list(Path::new("/data/t-0")).unwrap();
    let logs = || files().into_iter().filter(|entry| entry.name.contains(".log")).map(|entry| entry.name);
    eventually("all is deleted", || logs().eq(["00000000000000000004.log"]).then_some(())).await;
    assert!(cluster.disk(1).faults_waiting() > 0, "there was no space for a roll all the time");
    let earliest = ask(&cluster, id, OffsetSpec::Earliest).await.unwrap();
    assert_eq!((earliest.error, earliest.offset), (ErrorCode::None, Offset(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_files_are_freed_at_their_time_and_not_with_the_next_round_of_retention() {
    const ROUND: Duration = Duration::from_secs(6);
    let mut cluster = Cluster::start(0, 1).await;
    cluster.retention_check_ms = u64::try_from(ROUND.as_millis()).unwrap();
    cluster.start_broker(1).await;
    let configs = [("segment.bytes", "1048576"), ("retention.bytes", "1"), ("file.delete.delay.ms", "500")];
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    for _ in 0..4 {
        produce_ok(cluster.broker(1), id, &[&"z".repeat(600_000)]).await;
    }
    let waiting = || {
        let files = cluster.disk(1).list(Path::new("/data/t-0")).unwrap();
        files.into_iter().filter(|entry| entry.name.ends_with(".deleted")).count()
    };
    eventually("a round of retention", || (waiting() > 0).then_some(())).await;
    let since = Instant::now();
    eventually("they are freed", || (waiting() == 0).then_some(())).await;
    assert!(since.elapsed() < ROUND / 2, "after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_an_idle_producer_is_known_may_be_changed_while_brokers_run() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let broker = cluster.broker(1);
    let written = produce(broker, id, Acks::All, batch_of(&["a"], Some((7, 0, 0)))).await;
    assert_eq!(written.error, ErrorCode::None);
    assert_eq!(broker.describe_producers(id).producers.len(), 1);
    let change = ConfigChange {
        name: "producer.id.expiration.ms".to_owned(),
        operation: ConfigOperation::Set(Some("1".to_owned())),
    };
    let request = IncrementalAlterConfigs {
        resources: vec![(ConfigResource::DefaultBroker, vec![change])],
        validate_only: false,
    };
    cluster.controller.ask(&ControlRequest::IncrementalAlterConfigs(request));
    let forgotten = || broker.describe_producers(id).producers.is_empty().then_some(());
    eventually("the producer is forgotten", forgotten).await;
}
