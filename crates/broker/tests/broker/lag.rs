//! How far behind an offset is, in records and in time.

use broker::api::{Acks, Behind, BrokerApi};
use broker::clock::{Clock, SystemClock};
use bytes::{Bytes, BytesMut};
use model::{Codec, ErrorCode, Offset, Record, TopicPartition, encode_batch, encode_records};
use storage::disk::Crash;

use crate::cluster::*;

const HOUR_MS: u64 = 3_600_000;

/// One record that its producer says is of that time.
fn record_of(timestamp: i64) -> BytesMut {
    let record = Record { value: Some(Bytes::from_static(b"v")), ..Record::default() };
    encode_batch(&encode_records(&[record]), Codec::None, 1, timestamp, timestamp, None)
}

async fn behind(cluster: &Cluster, broker: i32, id: TopicPartition, offset: i64) -> Behind {
    soon("a lag", cluster.broker(broker).behind(vec![(id, Offset(offset))])).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_waits_since_its_append_and_what_was_there_before_a_start_since_its_timestamp() {
    let mut cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let wall = i64::try_from(SystemClock::new().wall().0).unwrap();
    for timestamp in [wall - i64::try_from(HOUR_MS).unwrap(), -1] {
        let produced = produce(cluster.broker(1), id, Acks::All, record_of(timestamp)).await;
        assert_eq!(produced.error, ErrorCode::None);
    }
    // Broker 2 has no replica, and asks.
    for broker in [1, 2] {
        let found = behind(&cluster, broker, id, 0).await;
        assert!(found.records == Some(2) && found.ms.is_some_and(|ms| ms < HOUR_MS), "at {broker}: {found:?}");
        assert_eq!(behind(&cluster, broker, id, 2).await, Behind { records: Some(0), ms: Some(0) });
    }
    cluster.shut_down(1).await;
    assert_eq!(behind(&cluster, 2, id, 0).await, Behind::default(), "nobody knows");
    cluster.start_broker(1).await;
    cluster.wait_leader(id).await;
    let served = || cluster.broker(1).metrics().leaders == 1;
    eventually("it leads", || served().then_some(())).await;
    let found = soon("the leader's word", async {
        loop {
            match behind(&cluster, 2, id, 0).await {
                Behind { records: Some(2), ms } => return ms,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    assert!(found.await.is_some_and(|ms| ms >= HOUR_MS), "by the batch's timestamp");
    assert_eq!(behind(&cluster, 2, id, 1).await, Behind { records: Some(1), ms: None }, "it has no timestamp");
    // Looked up once: whoever stands still costs no second look.
    let gate = cluster.disk(1).hold_reads("t-0/");
    assert!(behind(&cluster, 1, id, 0).await.ms.is_some_and(|ms| ms >= HOUR_MS));
    drop(gate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_comes_to_lead_knows_when_records_were_appended() {
    let mut cluster = Cluster::start(3, 1).await;
    let id = cluster.topic("t", &[1, 2, 3], &[]).await;
    cluster.wait_isr(id, &[1, 2, 3]).await;
    let wall = i64::try_from(SystemClock::new().wall().0).unwrap();
    for _ in 0..2 {
        let produced =
            produce(cluster.broker(1), id, Acks::All, record_of(wall - i64::try_from(HOUR_MS).unwrap())).await;
        assert_eq!(produced.error, ErrorCode::None);
    }
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    let leader = eventually("another leader", || cluster.led_by_another_than(id, 1)).await;
    let found = soon("its high watermark", async {
        loop {
            match behind(&cluster, leader, id, 1).await {
                Behind { records: Some(1), ms } => return ms,
                _ => tokio::task::yield_now().await,
            }
        }
    });
    assert!(found.await.is_some_and(|ms| ms < HOUR_MS), "it saw the append");
}
