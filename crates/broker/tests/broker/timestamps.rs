//! Timestamps of records: what headers may claim, what retention and lookups by time go by, what topics refuse.

use broker::Broker;
use broker::api::{Acks, BrokerApi, Isolation, ListOffsetsPartition, OffsetSpec, Produced};
use broker::clock::{Clock, SystemClock};
use bytes::{Bytes, BytesMut};
use model::batch::{BatchHeader, HEADER_LEN, put_batch};
use model::{
    Codec, ErrorCode, LeaderEpoch, Offset, Record, RecordBatch, TimestampType, TopicPartition, encode_batch,
    encode_records,
};
use storage::compression::{CompressionLevels, compress_into};

use crate::cluster::*;

const HOUR: i64 = 3_600_000;
const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

fn now() -> i64 {
    i64::try_from(SystemClock::new().wall().0).unwrap()
}

/// Records of these times, under a header that claims `max`.
fn claiming(codec: Codec, times: &[i64], max: i64) -> BytesMut {
    let records: Vec<Record> = (0..)
        .zip(times)
        .map(|(offset_delta, time)| Record {
            offset_delta,
            timestamp_delta: time - times[0],
            value: Some(Bytes::from_static(b"x")),
            ..Record::default()
        })
        .collect();
    let mut payload = Vec::new();
    compress_into(&mut payload, codec, &CompressionLevels::default(), &encode_records(&records)).unwrap();
    encode_batch(&payload, codec, i32::try_from(times.len()).unwrap(), times[0], max, None)
}

/// The same batch with other fields in its header.
fn with_header(batch: &BytesMut, change: impl FnOnce(&mut BatchHeader)) -> BytesMut {
    let mut header = BatchHeader::read(batch).unwrap();
    change(&mut header);
    let mut out = Vec::new();
    put_batch(&mut out, &header, &batch[HEADER_LEN..]);
    BytesMut::from(&out[..])
}

/// The header as this broker serves it, a follower as soon as it may.
async fn stored(broker: &Broker, id: TopicPartition, offset: i64) -> BatchHeader {
    let asked = async {
        loop {
            let rack = Some("none".to_owned());
            let request = broker::api::FetchRequest { rack, max_wait_ms: 100, ..fetch_request(id, offset) };
            let fetched = broker.fetch(request).await.partitions.remove(0);
            assert_eq!(fetched.error, ErrorCode::None);
            let batches = fetched.records.into_iter().flat_map(|chunk| RecordBatch::split_all(chunk).unwrap());
            let found = batches.map(|batch| *batch.header()).find(|header| header.base_offset == Offset(offset));
            if let Some(found) = found {
                return found;
            }
        }
    };
    soon("the batch", asked).await
}

async fn listed(broker: &Broker, id: TopicPartition, spec: OffsetSpec) -> i64 {
    let asked = ListOffsetsPartition { partition: id, current_leader_epoch: LeaderEpoch::NONE, spec };
    broker.list_offsets(Isolation::ReadUncommitted, vec![asked]).await[0].offset.0
}

fn taken(produced: &Produced) -> i64 {
    assert_eq!(produced.error, ErrorCode::None, "{:?}", produced.message);
    produced.base_offset.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_timestamp_is_the_records_own_whatever_the_header_claims() {
    let cluster = Cluster::start(2, 1).await;
    let id = cluster.topic("t", &[1, 2], &[]).await;
    let leader = cluster.wait_leader(id).await;
    cluster.wait_isr(id, &[1, 2]).await;
    let mut newest = now() - HOUR;
    for codec in CODECS {
        for claim in [-1, 1000, i64::MAX] {
            newest += 1000;
            let batch = claiming(codec, &[newest - 7, newest, newest - 3], claim);
            let offset = taken(&produce(cluster.broker(leader), id, Acks::All, batch).await);
            for broker in [1, 2] {
                let header = stored(cluster.broker(broker), id, offset).await;
                assert_eq!(header.max_timestamp, newest, "{codec:?} {claim} on {broker}");
            }
            let found = listed(cluster.broker(leader), id, OffsetSpec::Timestamp(newest)).await;
            assert_eq!(found, offset + 1, "{codec:?} {claim}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_without_timestamps_have_none_in_the_header() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[("retention.ms", "-1"), ("message.timestamp.before.max.ms", "1000")]).await;
    cluster.wait_leader(id).await;
    for codec in CODECS {
        let offset = taken(&produce(cluster.broker(1), id, Acks::All, claiming(codec, &[-1, -1], now())).await);
        assert_eq!(stored(cluster.broker(1), id, offset).await.max_timestamp, -1, "{codec:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_goes_by_the_records_and_not_by_what_the_header_claims() {
    let cluster = Cluster::start(1, 1).await;
    let kept = cluster.topic("kept", &[1], &[("retention.ms", "86400000")]).await;
    let old = cluster.topic("old", &[1], &[("retention.ms", "2000")]).await;
    for id in [kept, old] {
        cluster.wait_leader(id).await;
    }
    for codec in CODECS {
        taken(&produce(cluster.broker(1), kept, Acks::All, claiming(codec, &[now()], 1000)).await);
        taken(&produce(cluster.broker(1), old, Acks::All, claiming(codec, &[now() - HOUR], -1)).await);
    }
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while listed(cluster.broker(1), old, OffsetSpec::Earliest).await < 5 {
        assert!(tokio::time::Instant::now() < deadline, "nothing was deleted");
        tokio::task::yield_now().await;
    }
    // The same rounds of retention have seen both.
    assert_eq!(listed(cluster.broker(1), kept, OffsetSpec::Earliest).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_within_the_topics_bounds_or_named_in_the_refusal() {
    let cluster = Cluster::start(1, 1).await;
    let configs = [("message.timestamp.before.max.ms", "60000"), ("message.timestamp.after.max.ms", "60000")];
    let id = cluster.topic("t", &[1], &configs).await;
    cluster.wait_leader(id).await;
    let plain = cluster.topic("plain", &[1], &[]).await;
    cluster.wait_leader(plain).await;
    for codec in CODECS {
        for other in [-HOUR, HOUR] {
            let now = now();
            // One without a timestamp, which is always allowed, hides none between it and the others.
            let batch = claiming(codec, &[now, now + other, -1], now);
            let refused = produce(cluster.broker(1), id, Acks::All, batch).await;
            assert_eq!(refused.error, ErrorCode::InvalidTimestamp, "{codec:?} {other}");
            let message = "One or more records have been rejected due to invalid timestamp";
            assert_eq!(refused.message.as_deref(), Some(message));
            assert_eq!(refused.log_start, Offset(0));
            let named: Vec<(i32, &str)> = refused.refused.iter().map(|r| (r.index, r.message.as_str())).collect();
            let start = format!("Timestamp {} of message with offset 1 is out of range. The timestamp", now + other);
            assert!(matches!(named[..], [(1, text)] if text.starts_with(&start)), "{named:?}");
        }
        let times = [now(), now() - 1000, now() + 1000, -1];
        taken(&produce(cluster.broker(1), id, Acks::All, claiming(codec, &times, times[2])).await);
        // By default there is no bound to the past, and a future that only the header claims is none.
        taken(
            &produce(cluster.broker(1), plain, Acks::All, claiming(codec, &[now() - 9 * HOUR], now() + 9 * HOUR)).await,
        );
        let future = claiming(codec, &[now() + 9 * HOUR], now() + 9 * HOUR);
        let refused = produce(cluster.broker(1), plain, Acks::All, future).await;
        assert_eq!((refused.error, refused.refused.len()), (ErrorCode::InvalidTimestamp, 1), "{codec:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_no_more_records_than_people_read() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[("cleanup.policy", "compact")]).await;
    cluster.wait_leader(id).await;
    let refused = produce(cluster.broker(1), id, Acks::All, claiming(Codec::None, &vec![now(); 5000], now())).await;
    assert_eq!((refused.error, refused.refused.len()), (ErrorCode::InvalidRecord, 100));
    let each = "Compacted topic cannot accept message without key in topic partition t-0";
    assert!(refused.refused.iter().all(|record| record.message == each));
    let text = refused.message.unwrap();
    let start = "One or more records have been rejected due to 5000 record errors in total, and only showing the first \
                 three errors at most: [RecordError(batchIndex=0, message='Compacted topic cannot";
    assert!(text.starts_with(start) && text.matches("RecordError(").count() == 3, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_clock_it_is_the_topic_says_and_a_base_offset_is_no_business_of_a_client() {
    let cluster = Cluster::start(1, 1).await;
    let id = cluster.topic("t", &[1], &[]).await;
    cluster.wait_leader(id).await;
    let own = cluster.topic("own", &[1], &[("message.timestamp.type", "LogAppendTime")]).await;
    cluster.wait_leader(own).await;
    for codec in CODECS {
        let then = now() - HOUR;
        let claims = with_header(&claiming(codec, &[then], then), |header| {
            header.attributes |= 0x08;
            header.max_timestamp = 5;
        });
        let offset = taken(&produce(cluster.broker(1), id, Acks::All, claims.clone()).await);
        let header = stored(cluster.broker(1), id, offset).await;
        assert_eq!((header.timestamp_type(), header.max_timestamp), (TimestampType::CreateTime, then), "{codec:?}");
        let produced = produce(cluster.broker(1), own, Acks::All, claims).await;
        let header = stored(cluster.broker(1), own, taken(&produced)).await;
        assert_eq!(header.timestamp_type(), TimestampType::LogAppendTime, "{codec:?}");
        assert_eq!(header.max_timestamp, produced.log_append_time);
        for base in [5, -5] {
            let shifted = with_header(&claiming(codec, &[then], then), |header| header.base_offset = Offset(base));
            let refused = produce(cluster.broker(1), id, Acks::All, shifted).await;
            assert_eq!(refused.error, ErrorCode::InvalidRecord, "{codec:?} {base}");
        }
    }
}
