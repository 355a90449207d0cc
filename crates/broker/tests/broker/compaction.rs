//! Compaction and recompression through whole brokers.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use broker::api::{Acks, BrokerApi, CoordinatorKind};
use broker::{Broker, compression};
use bytes::{Bytes, BytesMut};
use coordinator::request::{
    DescribeGroupRequest, JoinGroupRequest, JoinProtocol, MemberAssignment, OffsetCommitRequest, OffsetFetchRequest,
    OffsetToCommit, SyncGroupRequest, TopicOffsetsToCommit,
};
use coordinator::{GroupRequest, GroupResponse};
use metadata::ConfigResource;
use metadata::control::{
    ConfigChange, ConfigOperation, ControlRequest, DeleteTopics, IncrementalAlterConfigs, TopicRef,
};
use model::{
    Codec, ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Record, RecordBatch, RecordIter,
    TopicId, TopicPartition, encode_batch, encode_records,
};
use storage::compression::{CompressionLevels, compress_into};
use storage::disk::{Call, Crash, Disk, FaultKind};

use crate::cluster::*;
use crate::transactions::{Agrees, end, marker, transactional, write};

/// Segments end by time, and the cleaner looks often.
const QUICK: &[(&str, &str)] =
    &[("log.cleaner.backoff.ms", "20"), ("log.roll.ms", "20"), ("log.cleaner.min.cleanable.ratio", "0.01")];
const COMPACT: &[(&str, &str)] = &[("cleanup.policy", "compact")];

fn keyed(codec: Codec, rows: &[(&str, Option<&str>)], producer: Option<(i64, i32)>) -> BytesMut {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let records: Vec<Record> = (0..)
        .zip(rows)
        .map(|(offset_delta, (key, value))| Record {
            offset_delta,
            key: (!key.is_empty()).then(|| bytes(key)),
            value: value.map(bytes),
            ..Record::default()
        })
        .collect();
    let mut payload = Vec::new();
    compress_into(&mut payload, codec, &CompressionLevels::default(), &encode_records(&records)).unwrap();
    packed(codec, &payload, i32::try_from(rows.len()).unwrap(), producer)
}

fn packed(codec: Codec, payload: &[u8], count: i32, producer: Option<(i64, i32)>) -> BytesMut {
    let now = i64::try_from(broker::clock::Clock::wall(&broker::clock::SystemClock::new()).0).unwrap();
    let producer = producer.map(|(id, sequence)| (ProducerId(id), ProducerEpoch(0), sequence));
    encode_batch(payload, codec, count, now, now, producer)
}

async fn put(broker: &Broker, id: TopicPartition, rows: &[(&str, Option<&str>)], producer: Option<(i64, i32)>) -> i64 {
    let produced = produce(broker, id, Acks::All, keyed(Codec::None, rows, producer)).await;
    assert_eq!(produced.error, ErrorCode::None, "{:?}", produced.message);
    produced.base_offset.0
}

/// All batches from the log's start on, as this broker serves them.
async fn batches(broker: &Broker, id: TopicPartition) -> Vec<RecordBatch> {
    let (mut next, mut found) = (0, Vec::new());
    loop {
        let request = broker::api::FetchRequest { rack: Some("none".to_owned()), ..fetch_request(id, next) };
        let fetched = soon("a fetch to be answered", broker.fetch(request)).await.partitions.remove(0);
        assert_eq!(fetched.error, ErrorCode::None);
        let read: Vec<RecordBatch> =
            fetched.records.into_iter().flat_map(|chunk| RecordBatch::split_all(chunk).unwrap()).collect();
        let Some(last) = read.last() else { return found };
        next = last.header().next_offset().0;
        found.extend(read);
    }
}

/// Offset, key and value of each record.
async fn rows(broker: &Broker, id: TopicPartition) -> Vec<(i64, String, Option<String>)> {
    let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
    let mut rows = Vec::new();
    for batch in batches(broker, id).await {
        let header = *batch.header();
        for record in RecordIter::new(compression::decompress(&batch).unwrap(), header.record_count) {
            let record = record.unwrap();
            let offset = header.base_offset.0 + i64::from(record.offset_delta);
            rows.push((offset, record.key.map(text).unwrap_or_default(), record.value.map(text)));
        }
    }
    rows
}

/// Waits until this broker's log of the partition has so many records.
async fn wait_records(broker: &Broker, id: TopicPartition, count: usize) -> Vec<(i64, String, Option<String>)> {
    for _ in 0..6_000 {
        let found = rows(broker, id).await;
        if found.len() == count {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {count} records are left: {:?}", rows(broker, id).await);
}

/// A cleaning is counted a moment after readers see what it left.
async fn wait_counted(broker: &Broker) -> broker::CleanerMetrics {
    for _ in 0..6_000 {
        let cleaner = broker.metrics().cleaner;
        if cleaner.cleanings > 0 {
            return cleaner;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("waited in vain until a cleaning is counted: {:?}", broker.metrics().cleaner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_and_followers_keep_the_last_value_of_each_key_and_who_wrote_what() {
    let mut cluster = Cluster::on_disk_only(3, 2, QUICK).await;
    let id = cluster.topic("t", &[1, 2, 3], COMPACT).await;
    let leader = cluster.wait_leader(id).await;
    cluster.wait_isr(id, &[1, 2, 3]).await;
    assert_eq!(put(cluster.broker(leader), id, &[("a", Some("mine")), ("b", Some("mine"))], Some((5, 0))).await, 0);
    for round in 0..20 {
        let value = round.to_string();
        put(cluster.broker(leader), id, &[("a", Some(&value)), ("b", Some(&value)), ("c", None)], None).await;
    }
    let last = [
        (59, "a".to_owned(), Some("19".to_owned())),
        (60, "b".to_owned(), Some("19".to_owned())),
        (61, "c".to_owned(), None),
    ];
    for broker in 1..=3 {
        assert_eq!(wait_records(cluster.broker(broker), id, 3).await, last, "broker {broker}");
        let cleaner = wait_counted(cluster.broker(broker)).await;
        assert!(cleaner.bytes_read > cleaner.bytes_written, "{cleaner:?}");
        assert_eq!(cleaner.uncleanable_partitions, 0);
    }
    // R39, R40: what the producer wrote is gone, and that it did is known, also to the next leader after a restart.
    cluster.kill_and_fence(leader, Crash::LoseUnsynced).await;
    cluster.start_broker(leader).await;
    let next = cluster.wait_leader(id).await;
    let again = || keyed(Codec::None, &[("a", Some("mine")), ("b", Some("mine"))], Some((5, 0)));
    for broker in [next, leader] {
        if cluster.wait_leader(id).await != broker {
            cluster.shut_down(next).await;
            assert_eq!(cluster.wait_leader(id).await, broker);
        }
        let produced = produce(cluster.broker(broker), id, Acks::All, again()).await;
        assert_eq!((produced.error, produced.base_offset), (ErrorCode::None, Offset(0)), "broker {broker}");
        assert_eq!(wait_records(cluster.broker(broker), id, 3).await, last);
        if broker == next {
            cluster.wait_isr(id, &[1, 2, 3]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_copies_a_compacted_log() {
    let mut cluster = Cluster::on_disk_only(2, 1, QUICK).await;
    let id = cluster.topic("t", &[1, 2], COMPACT).await;
    assert_eq!(cluster.wait_leader(id).await, 1);
    cluster.wait_isr(id, &[1, 2]).await;
    put(cluster.broker(1), id, &[("a", Some("0"))], None).await;
    cluster.kill_and_fence(2, Crash::KeepAll).await;
    cluster.wait_isr(id, &[1]).await;
    for round in 1..30 {
        put(cluster.broker(1), id, &[("a", Some(&round.to_string())), ("b", None)], None).await;
    }
    let left = wait_records(cluster.broker(1), id, 2).await;
    cluster.start_broker(2).await;
    cluster.wait_isr(id, &[1, 2]).await;
    assert_eq!(cluster.log_end(2, id), 59);
    assert_eq!(wait_records(cluster.broker(2), id, 2).await, left);
}

/// A log that is dirty, and is not compacted before [`compact`].
async fn dirty_log() -> (Cluster, TopicPartition) {
    let file = [("log.cleaner.backoff.ms", "200"), ("log.roll.ms", "20"), ("log.cleaner.min.cleanable.ratio", "0.01")];
    let cluster = Cluster::of(1, 1, Some(Arc::new(Agrees)), &file).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    for round in 0..20 {
        put(cluster.broker(1), id, &[("a", Some(&round.to_string())), ("b", None)], None).await;
    }
    let names = || cluster.disk(1).list(Path::new("/data/t-0")).unwrap().into_iter().map(|entry| entry.name);
    let ready =
        || names().any(|name| name == "leader-epoch-checkpoint") && names().any(|name| name.ends_with("40.log"));
    eventually("all is in sealed segments, and synced", || ready().then_some(())).await;
    (cluster, id)
}

fn compact(cluster: &Cluster) {
    set(cluster, "cleanup.policy", "compact");
}

fn set(cluster: &Cluster, name: &str, value: &str) {
    let operation = ConfigOperation::Set(Some(value.to_owned()));
    let changes = vec![ConfigChange { name: name.to_owned(), operation }];
    cluster.controller.ask(&ControlRequest::IncrementalAlterConfigs(IncrementalAlterConfigs {
        resources: vec![(ConfigResource::Topic("t".to_owned()), changes)],
        validate_only: false,
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_cleaning_finds_no_space_is_not_tried_again_at_once() {
    let (cluster, _) = dirty_log().await;
    (0..5_000).for_each(|_| cluster.disk(1).fail(Call::Write, 0, FaultKind::Enospc));
    compact(&cluster);
    let cleaner = || cluster.broker(1).metrics().cleaner;
    let first = eventually("one is given up", || Some(cleaner()).filter(|now| now.given_up > 0)).await;
    let later = eventually("some rounds more", || Some(cleaner()).filter(|now| now.rounds >= first.rounds + 8)).await;
    // Each that is given up begins a round at once, which must not take the same log again.
    assert!(later.given_up - first.given_up <= 5, "{first:?} {later:?}");
    assert_eq!(later.cleanings, 0);
    assert!(cluster.disk(1).faults_waiting() > 0);
}

/// What waits in memory to be written before a cleaning: the ends of aborted transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_cleaning_cannot_even_begin_is_not_tried_again_at_once() {
    let (cluster, id) = dirty_log().await;
    set(&cluster, "segment.ms", "3600000");
    let broker = cluster.broker(1);
    assert_eq!(write(broker, id, transactional("a", 0, 0)).await.0, ErrorCode::None);
    assert_eq!(end(broker, id, marker(1, 0, false)).await, ErrorCode::None);
    (0..5_000).for_each(|_| cluster.disk(1).fail(Call::Write, 0, FaultKind::Enospc));
    compact(&cluster);
    let cleaner = || broker.metrics().cleaner;
    let first = eventually("one is given up", || Some(cleaner()).filter(|now| now.given_up > 0)).await;
    let later = eventually("some rounds more", || Some(cleaner()).filter(|now| now.rounds >= first.rounds + 8)).await;
    assert!(later.given_up - first.given_up <= 5, "{first:?} {later:?}");
    assert_eq!(later.cleanings, 0, "{later:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cleaning_begins_below_the_reserve() {
    let (cluster, id) = dirty_log().await;
    cluster.disk(1).leave_space(RESERVE.unsigned_abs() - 1);
    let metrics = || cluster.broker(1).metrics();
    eventually("it is noticed", || metrics().directories[0].space.full.then_some(())).await;
    compact(&cluster);
    let before = metrics().cleaner;
    let later = eventually("rounds", || Some(metrics().cleaner).filter(|now| now.rounds >= before.rounds + 5)).await;
    assert_eq!((later.bytes_read, later.given_up), (0, 0));
    cluster.disk(1).leave_space(10 * RESERVE.unsigned_abs());
    wait_records(cluster.broker(1), id, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_neither_takes_tombstones_early_nor_keeps_what_is_to_be_freed() {
    const HOURS: i64 = 3 * 3_600_000;
    let cluster = Cluster::on_disk_only(1, 1, QUICK).await;
    let configs = [COMPACT, &[("delete.retention.ms", "3600000"), ("file.delete.delay.ms", "3000")]].concat();
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    put(cluster.broker(1), id, &[("a", Some("1"))], None).await;
    put(cluster.broker(1), id, &[("a", None)], None).await;
    let tombstone = (1, "a".to_owned(), None);
    assert_eq!(wait_records(cluster.broker(1), id, 1).await, std::slice::from_ref(&tombstone));
    cluster.clock.set_ahead(-HOURS);
    let files = || cluster.disk(1).list(Path::new("/data/t-0")).unwrap();
    let freed = || !files().iter().any(|entry| entry.name.ends_with(".deleted"));
    eventually("what was replaced is freed", || freed().then_some(())).await;
    // Its hour is not over because the clock says so.
    cluster.clock.set_ahead(HOURS);
    put(cluster.broker(1), id, &[("b", Some("1"))], None).await;
    put(cluster.broker(1), id, &[("b", Some("2"))], None).await;
    assert_eq!(wait_records(cluster.broker(1), id, 2).await, [tombstone, (3, "b".to_owned(), Some("2".to_owned()))]);
}

fn commit(group: &str, partition: i32, offset: i64) -> GroupRequest {
    GroupRequest::OffsetCommit(OffsetCommitRequest {
        group_id: group.to_owned(),
        generation_id: -1,
        member_id: String::new(),
        group_instance_id: None,
        retention_time_ms: -1,
        topics: vec![TopicOffsetsToCommit {
            name: "t".to_owned(),
            topic_id: TopicId::NONE,
            partitions: vec![OffsetToCommit {
                partition: PartitionIndex(partition),
                offset: Offset(offset),
                leader_epoch: LeaderEpoch::NONE,
                metadata: format!("at {offset}"),
            }],
        }],
        supports_member_epochs: true,
    })
}

fn join(group: &str) -> GroupRequest {
    GroupRequest::JoinGroup(JoinGroupRequest {
        group_id: group.to_owned(),
        member_id: String::new(),
        group_instance_id: None,
        client_id: "c".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout_ms: 300_000,
        rebalance_timeout_ms: 300_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![JoinProtocol { name: "range".to_owned(), metadata: Bytes::from_static(b"m") }],
        require_known_member_id: false,
        supports_skip_assignment: false,
        reason: None,
    })
}

/// Asks the brokers until the group's coordinator is there.
async fn ask(cluster: &Cluster, group: &str, request: &GroupRequest) -> GroupResponse {
    let asked = async {
        loop {
            for broker in cluster.brokers.values() {
                if broker.find_coordinator(CoordinatorKind::Group, group).await.is_ok()
                    && let Ok(answer) = broker.group(request.clone()).await
                {
                    return answer;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon("the coordinator", asked).await
}

/// All that the coordinator says of these groups.
async fn state(cluster: &Cluster, groups: &[String]) -> Vec<GroupResponse> {
    let mut state = Vec::new();
    for group in groups {
        let fetch = OffsetFetchRequest {
            group_id: group.clone(),
            member_id: None,
            member_epoch: -1,
            topics: None,
            require_stable: true,
        };
        state.push(ask(cluster, group, &GroupRequest::OffsetFetch(fetch)).await);
        let describe = DescribeGroupRequest { group_id: group.clone() };
        state.push(ask(cluster, group, &GroupRequest::DescribeGroup(describe)).await);
    }
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_are_loaded_from_a_compacted_log_are_what_they_were() {
    let mut cluster = Cluster::on_disk_only(2, 1, QUICK).await;
    let groups: Vec<String> = (0..6).map(|i| format!("group{i}")).collect();
    for round in 0..40 {
        for (group, partition) in groups.iter().zip(0..) {
            ask(&cluster, group, &commit(group, partition, round * 10)).await;
        }
    }
    for group in &groups[..3] {
        let GroupResponse::JoinGroup(joined) = ask(&cluster, group, &join(group)).await else {
            panic!("another answer")
        };
        assert_eq!(joined.error, ErrorCode::None);
        let sync = SyncGroupRequest {
            group_id: group.clone(),
            generation_id: joined.generation_id,
            member_id: joined.member_id.clone(),
            group_instance_id: None,
            protocol_type: None,
            protocol_name: None,
            assignments: vec![MemberAssignment { member_id: joined.member_id, assignment: Bytes::from_static(b"all") }],
        };
        let GroupResponse::SyncGroup(synced) = ask(&cluster, group, &GroupRequest::SyncGroup(sync)).await else {
            panic!("another answer")
        };
        assert_eq!(synced.error, ErrorCode::None);
    }
    let before = state(&cluster, &groups).await;
    let topic = cluster.broker(1).image().topic_by_name("__consumer_offsets").unwrap().id;
    let partitions = [0, 1].map(|index| TopicPartition { topic_id: topic, partition: PartitionIndex(index) });
    // 40 commits and a member for each group were written; the last of each key stays, on both replicas.
    for id in partitions {
        cluster.wait_isr(id, &[1, 2]).await;
        let leader = cluster.wait_leader(id).await;
        let keys = rows(cluster.broker(leader), id).await.into_iter().map(|row| row.1).collect::<BTreeSet<_>>().len();
        let end = usize::try_from(cluster.log_end(leader, id)).unwrap();
        assert!(keys > 0 && keys * 4 < end, "{keys} of {end}");
        for broker in [1, 2] {
            wait_records(cluster.broker(broker), id, keys).await;
        }
    }
    for broker in [1, 2] {
        cluster.kill_and_fence(broker, Crash::LoseUnsynced).await;
        assert_eq!(state(&cluster, &groups).await, before, "as the other broker has it");
        cluster.start_broker(broker).await;
        for id in partitions {
            cluster.wait_isr(id, &[1, 2]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleaning_that_is_slowed_down_holds_up_neither_a_deletion_nor_a_shutdown() {
    let mut file = QUICK.to_vec();
    file.push(("log.cleaner.io.max.bytes.per.second", "1"));
    file.push(("log.cleaner.threads", "2"));
    let mut cluster = Cluster::on_disk_only(1, 1, &file).await;
    let mut ids = Vec::new();
    for name in ["gone", "stays"] {
        let id = cluster.topic(name, &[1], COMPACT).await;
        cluster.wait_leader(id).await;
        for _ in 0..50 {
            put(cluster.broker(1), id, &[("a", Some("some value")); 200], None).await;
        }
        ids.push(id);
    }
    // Both are begun, as the cleaner has a thread for each; at a byte a second neither would end for days.
    eventually("the cleaner has looked", || (cluster.broker(1).metrics().cleaner.dirty_percent > 0.0).then_some(()))
        .await;
    cluster.controller.ask(&ControlRequest::DeleteTopics(DeleteTopics { topics: vec![TopicRef::Id(ids[0].topic_id)] }));
    eventually("the directory is gone", || cluster.disk(1).list(Path::new("/data/gone-0")).is_err().then_some(()))
        .await;
    cluster.shut_down(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_has_the_codec_that_it_asks_for_whatever_clients_send() {
    let cluster = Cluster::start(1, 1).await;
    let all = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let names = ["uncompressed", "gzip", "snappy", "lz4", "zstd"];
    let text = "a long value, a long value, a long value";
    for (wanted, name) in all.into_iter().zip(names) {
        let configs = [("compression.type", name), ("compression.zstd.level", "7"), ("compression.gzip.level", "9")];
        let id = cluster.topic(name, &[1], &configs).await;
        cluster.wait_leader(id).await;
        let broker = cluster.broker(1);
        for sent in all {
            let batch = keyed(sent, &[("a", Some(text)), ("b", None)], Some((9, 0)));
            let produced = produce(broker, id, Acks::All, batch).await;
            // The same sequence again: the first one's offset, whatever codec it comes in.
            assert_eq!((produced.error, produced.base_offset), (ErrorCode::None, Offset(0)), "{sent:?} to {name}");
            let fresh = produce(broker, id, Acks::All, keyed(sent, &[("a", Some(text)), ("b", None)], None)).await;
            assert_eq!(fresh.error, ErrorCode::None, "{sent:?} to {name}: {:?}", fresh.message);
        }
        let stored = batches(broker, id).await;
        assert_eq!(stored.len(), 6);
        assert!(stored.iter().all(|batch| batch.header().codec() == Some(wanted)), "{name}");
        let found = rows(broker, id).await;
        assert_eq!(found.len(), 12);
        assert!(found.iter().step_by(2).all(|row| row.1 == "a" && row.2.as_deref() == Some(text)));
        // What does not decode is refused, also where it has the right codec in name only.
        if wanted != Codec::Gzip {
            let noise = produce(broker, id, Acks::All, packed(Codec::Gzip, b"noise", 1, None)).await;
            assert_eq!(noise.error, ErrorCode::InvalidRecord, "{name}");
            let mut bomb = Vec::new();
            compress_into(&mut bomb, Codec::Gzip, &CompressionLevels::default(), &vec![0; 70 << 20]).unwrap();
            let bomb = produce(broker, id, Acks::All, packed(Codec::Gzip, &bomb, 1, None)).await;
            assert_eq!(bomb.error, ErrorCode::InvalidRecord, "{name}");
        }
        assert_eq!(rows(broker, id).await.len(), 12);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recompressed_batch_must_fit_and_a_compacted_topic_wants_keys_in_compressed_batches_too() {
    let cluster = Cluster::start(1, 1).await;
    let configs = [("compression.type", "uncompressed"), ("max.message.bytes", "2000")];
    let small = cluster.topic("small", &[1], &configs).await;
    cluster.wait_leader(small).await;
    let value = "x".repeat(5000);
    let large = produce(cluster.broker(1), small, Acks::All, keyed(Codec::Gzip, &[("a", Some(&value))], None)).await;
    assert_eq!(large.error, ErrorCode::MessageTooLarge, "it fits as it comes, and not as it would be stored");
    let compacted = cluster.topic("compacted", &[1], COMPACT).await;
    cluster.wait_leader(compacted).await;
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let keyless = keyed(codec, &[("a", Some("1")), ("", Some("1"))], None);
        let refused = produce(cluster.broker(1), compacted, Acks::All, keyless).await;
        assert_eq!(refused.error, ErrorCode::InvalidRecord, "{codec:?}");
        assert_eq!(refused.refused.iter().map(|refused| refused.index).collect::<Vec<_>>(), [1]);
        let good = produce(cluster.broker(1), compacted, Acks::All, keyed(codec, &[("a", Some("1"))], None)).await;
        assert_eq!(good.error, ErrorCode::None, "{codec:?}");
    }
    assert_eq!(rows(cluster.broker(1), compacted).await.len(), 5);
}
