//! Order, limits, and what happens to connections that misbehave.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use gateway::{Descriptors, Limits};
use metadata::records::{ConfigResource, MetadataRecord};
use model::ErrorCode;
use protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use protocol::messages::*;
use protocol::{ApiKey, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use crate::fake::{Client, Filed, Served};

fn produce(acks: i16, records: &[u8]) -> ProduceRequest {
    let partition_data = vec![PartitionProduceData { index: 0, records: Some(BytesMut::from(records)) }];
    let topic = TopicProduceData { name: "t".to_owned(), partition_data, ..Default::default() };
    ProduceRequest { acks, timeout_ms: 1_000, topic_data: vec![topic], ..Default::default() }
}

fn codes(response: &ProduceResponse) -> Vec<i16> {
    response.responses.iter().flat_map(|topic| &topic.partition_responses).map(|p| p.error_code).collect()
}

async fn is_alive(client: &mut Client) -> bool {
    !client.ask(&ApiVersionsRequest::default(), 0).await.api_keys.is_empty()
}

fn set_for_all_brokers(served: &Served, name: &str, value: Option<&str>) {
    let (resource, name) = (ConfigResource::DefaultBroker, name.to_owned());
    let value = value.map(str::to_owned);
    served.broker.apply(&[MetadataRecord::Config { resource, name, value }]);
}

#[tokio::test]
async fn connection_limits_that_are_changed_act_on_the_running_broker() {
    let served = Served::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let first = &mut served.client().await;
    assert!(is_alive(first).await);
    let mut second = served.client().await;
    let id = second.send(&ApiVersionsRequest::default(), 0).await;
    let early = tokio::time::timeout(Duration::from_millis(100), second.frame()).await;
    assert!(early.is_err(), "one connection is allowed by the file");
    set_for_all_brokers(&served, "max.connections", Some("10"));
    assert_eq!(second.receive::<ApiVersionsRequest>(0).await.0, id);
    set_for_all_brokers(&served, "max.connections.per.ip", Some("2"));
    let refused = || served.handle.metrics().connections_refused.load(Ordering::Relaxed);
    // Until the sweep has seen it, more are let in; each goes away again.
    while refused() == 0 {
        let mut third = served.client().await;
        third.send(&ApiVersionsRequest::default(), 0).await;
        let _ = third.frame().await;
    }
    assert!(is_alive(first).await && is_alive(&mut second).await, "who is there stays");
}

#[tokio::test]
async fn clients_wait_in_the_queue_until_the_broker_is_ready() {
    let (ready, told) = oneshot::channel();
    let served = Served::from(Limits::default(), async { told.await.unwrap() }).await;
    let client = &mut served.client().await;
    let id = client.send(&ApiVersionsRequest::default(), 0).await;
    let early = tokio::time::timeout(Duration::from_millis(100), client.frame()).await;
    assert!(early.is_err(), "answered before the broker was ready");
    ready.send(()).unwrap();
    assert_eq!(client.receive::<ApiVersionsRequest>(0).await.0, id);
}

#[tokio::test]
async fn produces_are_appended_while_others_wait_for_acks_and_answered_in_order() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    let client = &mut served.client().await;
    let first = client.send(&produce(-1, b"one"), 9).await;
    let second = client.send(&produce(-1, b"two"), 9).await;
    let third = client.send(&FetchRequest::default(), 12).await;
    let fourth = client.send(&produce(-1, b"four"), 9).await;
    let one = served.appends.recv().await.unwrap();
    let two = served.appends.recv().await.unwrap();
    let four = served.appends.recv().await.unwrap();
    let records = [&one, &two, &four].map(|each| each.request.partitions[0].records.to_vec());
    assert_eq!(records, [b"one".to_vec(), b"two".to_vec(), b"four".to_vec()]);
    four.acked.send(ErrorCode::None).unwrap();
    two.acked.send(ErrorCode::NotEnoughReplicasAfterAppend).unwrap();
    one.acked.send(ErrorCode::None).unwrap();
    let answer = client.receive::<ProduceRequest>(9).await;
    assert_eq!((answer.0, codes(&answer.1)), (first, vec![0]));
    let answer = client.receive::<ProduceRequest>(9).await;
    assert_eq!((answer.0, codes(&answer.1)), (second, vec![ErrorCode::NotEnoughReplicasAfterAppend.code()]));
    assert_eq!(client.receive::<FetchRequest>(12).await.0, third);
    assert_eq!(client.receive::<ProduceRequest>(9).await.0, fourth);
}

#[tokio::test]
async fn what_waits_for_acks_is_bounded_in_bytes() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    let (mut client, other) = (served.client().await, &mut served.client().await);
    let sending = tokio::spawn(async move {
        for _ in 0..9 {
            client.send(&produce(-1, &[7; 1 << 20]), 9).await;
        }
        client
    });
    let mut waiting = Vec::new();
    while waiting.len() < 8 {
        waiting.push(served.appends.recv().await.unwrap());
    }
    while served.budget.used() < 9 << 20 {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        assert!(is_alive(other).await);
    }
    assert!(served.appends.try_recv().is_err(), "the ninth is not appended before another one is answered");
    waiting.remove(0).acked.send(ErrorCode::None).unwrap();
    assert!(served.appends.recv().await.is_some());
    drop(waiting);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_request_that_waits_holds_back_the_next_but_not_its_own_progress() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    served.broker.fetch_waits.store(true, Ordering::SeqCst);
    let client = &mut served.client().await;
    client.send(&produce(-1, b"one"), 9).await;
    let fetch = handlers_fetch(&["t"]);
    client.send(&fetch, 12).await;
    client.send(&produce(-1, b"two"), 9).await;
    let one = served.appends.recv().await.unwrap();
    while served.broker.fetches.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    one.acked.send(ErrorCode::None).unwrap();
    assert_eq!(client.receive::<ProduceRequest>(9).await.0, 1);
    assert!(served.appends.try_recv().is_err(), "what comes after the fetch was not started");
}

fn handlers_fetch(names: &[&str]) -> FetchRequest {
    let partitions = vec![fetch_request::FetchPartition { partition_max_bytes: 100, ..Default::default() }];
    let topic = |name: &&str| fetch_request::FetchTopic {
        topic: (*name).to_owned(),
        partitions: partitions.clone(),
        ..Default::default()
    };
    FetchRequest { max_wait_ms: 60_000, min_bytes: 1, topics: names.iter().map(topic).collect(), ..Default::default() }
}

#[tokio::test]
async fn acks_0_is_not_answered_and_its_failure_closes_the_connection() {
    let served = Served::start().await;
    served.broker.topic("t", 1);
    let client = &mut served.client().await;
    client.send(&produce(0, b"fine"), 9).await;
    assert!(is_alive(client).await, "the next answer is that of the next request");
    client.send(&produce(0, b"corrupt"), 9).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn bad_bytes_close_their_own_connection_and_no_other() {
    let served = Served::start().await;
    let other = &mut served.client().await;
    assert!(is_alive(other).await);
    let metadata = |version: i16| {
        let frame = encode_request(&MetadataRequest::default(), 12, 1, None).unwrap().into_bytes();
        let mut frame = frame.to_vec();
        frame[6..8].copy_from_slice(&version.to_be_bytes());
        frame
    };
    let mut truncated = metadata(12);
    truncated.truncate(truncated.len() - 3);
    let size = i32::try_from(truncated.len() - 4).unwrap();
    truncated[..4].copy_from_slice(&size.to_be_bytes());
    let bad: [(&str, Vec<u8>); 9] = [
        ("a negative size", vec![0xff, 0xff, 0xff, 0xff, 1]),
        ("no size", vec![0, 0, 0, 0]),
        ("an oversize", i32::MAX.to_be_bytes().to_vec()),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no header", vec![0, 0, 0, 2, 0, 3]),
        ("an unknown API", vec![0, 0, 0, 10, 0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0xff, 0xff]),
        ("an API that is not served", vec![0, 0, 0, 10, 0, 56, 0, 2, 0, 0, 0, 1, 0xff, 0xff]),
        ("an unknown version", metadata(99)),
        ("a body that ends early", truncated),
    ];
    for (what, bytes) in bad {
        let before = served.handle.metrics().bad_requests.load(Ordering::Relaxed);
        let client = &mut served.client().await;
        client.stream.write_all(&bytes).await.unwrap();
        assert!(client.is_closed().await, "{what}");
        assert_eq!(served.handle.metrics().bad_requests.load(Ordering::Relaxed), before + 1, "{what}");
        assert!(is_alive(other).await, "{what}");
    }
    assert_eq!(served.budget.used(), 0);
}

#[tokio::test]
async fn over_the_budget_nothing_is_read_until_memory_is_given_back() {
    let mut served = Served::with(Limits { memory_bytes: 1_000, ..Limits::default() }).await;
    served.broker.topic("t", 1);
    let (one, two) = (&mut served.client().await, &mut served.client().await);
    one.send(&produce(-1, &[7; 2_000]), 9).await;
    let appended = served.appends.recv().await.unwrap();
    assert!(served.budget.used() > 1_000);
    two.send(&ApiVersionsRequest::default(), 0).await;
    let metrics = served.handle.metrics();
    let asked = || metrics.api(ApiKey::ApiVersions).request_bytes.load(Ordering::Relaxed);
    while !served.budget.is_contended() {
        tokio::task::yield_now().await;
    }
    assert_eq!(asked(), 0, "the request was not looked at");
    appended.acked.send(ErrorCode::None).unwrap();
    assert_eq!(two.receive::<ApiVersionsRequest>(0).await.0, 1);
    one.receive::<ProduceRequest>(9).await;
    assert!(asked() > 0);
    assert_eq!(served.budget.used(), 0);
}

/// The beginning of a Produce of `size` bytes.
fn beginning(size: usize, sent: usize) -> Vec<u8> {
    let mut bytes = i32::try_from(size).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff]);
    bytes.resize(sent, 0);
    bytes
}

#[tokio::test]
async fn who_announces_much_and_sends_little_keeps_nobody_out() {
    let mut served = Served::with(Limits { memory_bytes: 8 << 20, ..Limits::default() }).await;
    served.broker.topic("t", 1);
    let mut announcers = Vec::new();
    for _ in 0..50 {
        let mut client = served.client().await;
        client.stream.write_all(&i32::to_be_bytes(100 << 20)).await.unwrap();
        announcers.push(client);
    }
    while served.budget.used() < 50 * 8_000 {
        tokio::task::yield_now().await;
    }
    let other = &mut served.client().await;
    assert!(is_alive(other).await);
    other.send(&produce(-1, &[7; 2 << 20]), 9).await;
    served.appends.recv().await.unwrap().acked.send(ErrorCode::None).unwrap();
    assert_eq!(codes(&other.receive::<ProduceRequest>(9).await.1), [0]);
    assert!(!served.budget.is_contended() && served.budget.used() < 2 << 20, "{}", served.budget.used());
}

#[tokio::test]
async fn half_sent_frames_that_hold_all_memory_make_room_for_one_that_comes() {
    let mut served = Served::with(Limits { memory_bytes: 1 << 20, ..Limits::default() }).await;
    served.broker.topic("t", 1);
    let mut halves = Vec::new();
    let other = &mut served.client().await;
    for _ in 0..6 {
        let mut client = served.client().await;
        client.stream.write_all(&beginning(4 << 20, 300_000)).await.unwrap();
        halves.push(client);
        assert!(is_alive(other).await);
    }
    while !served.budget.is_contended() && served.handle.metrics().connections.load(Ordering::Relaxed) > 6 {
        tokio::task::yield_now().await;
    }
    let large = &mut served.client().await;
    large.send(&produce(-1, &[7; 600_000]), 9).await;
    served.appends.recv().await.unwrap().acked.send(ErrorCode::None).unwrap();
    assert_eq!(codes(&large.receive::<ProduceRequest>(9).await.1), [0]);
}

#[tokio::test]
async fn who_does_not_take_its_answer_is_closed_when_others_wait_for_memory() {
    let served = Served::with(Limits { memory_bytes: 1 << 20, ..Limits::default() }).await;
    served.broker.topic("t", 1);
    let (sleeper, other) = (&mut served.client().await, &mut served.client().await);
    assert!(is_alive(other).await);
    // More than both sockets' buffers take.
    served.broker.logs.lock().unwrap().insert(0, (1, vec![bytes::Bytes::from(vec![7; 64 << 20])]));
    sleeper.send(&FetchRequest { max_wait_ms: 0, ..handlers_fetch(&["t"]) }, 12).await;
    while served.budget.used() < 64 << 20 {
        tokio::task::yield_now().await;
    }
    assert!(is_alive(other).await, "it waits until there is memory");
    assert_eq!(served.budget.used(), 0);
    let mut taken = Vec::new();
    // A reset is a close as well.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut sleeper.stream, &mut taken).await;
    assert!(taken.len() < 64 << 20, "the answer was not sent to its end");
}

#[tokio::test]
async fn a_large_frame_is_not_read_behind_a_request_that_waits() {
    let served = Served::start().await;
    served.broker.topic("t", 1);
    served.broker.fetch_waits.store(true, Ordering::SeqCst);
    let (mut client, other) = (served.client().await, &mut served.client().await);
    client.send(&handlers_fetch(&["t"]), 12).await;
    while served.broker.fetches.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let sending = tokio::spawn(async move {
        let _ = client.stream.write_all(&beginning(50 << 20, 50 << 20)).await;
    });
    for _ in 0..500 {
        assert!(is_alive(other).await);
        assert!(served.budget.used() < 1 << 20, "{}", served.budget.used());
    }
    assert!(!sending.is_finished());
    sending.abort();
}

#[tokio::test]
async fn a_large_request_and_a_large_answer_pass_whole() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    let client = &mut served.client().await;
    let records: Vec<u8> = (0..5_000_000u32).map(|at| at.to_le_bytes()[1]).collect();
    client.send(&produce(-1, &records), 9).await;
    let appended = served.appends.recv().await.unwrap();
    assert!(appended.request.partitions[0].records == records, "the bytes arrived as they were sent");
    appended.acked.send(ErrorCode::None).unwrap();
    client.receive::<ProduceRequest>(9).await;
    let chunks: Vec<bytes::Bytes> = records.chunks(70_001).map(bytes::Bytes::copy_from_slice).collect();
    served.broker.logs.lock().unwrap().insert(0, (1, chunks));
    let mut fetch = handlers_fetch(&["t"]);
    fetch.max_wait_ms = 0;
    let fetched = client.ask(&fetch, 12).await;
    let found = fetched.responses[0].partitions[0].records.as_ref().unwrap();
    assert!(found.to_bytes() == records);
    assert_eq!(served.budget.used(), 0, "all is given back once it is written");
}

/// A topic of which one partition is in memory and two are in files, and the bytes of each.
fn filed(served: &Served, left: usize) -> Vec<u8> {
    served.broker.topic("t", 3);
    let records: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3).to_le_bytes()[1]).collect();
    served.broker.logs.lock().unwrap().insert(1, (1, vec![bytes::Bytes::copy_from_slice(&records)]));
    let mut files = served.broker.files.lock().unwrap();
    files.insert(0, Filed::new(&records, records.len()));
    files.insert(2, Filed::new(&records, left));
    records
}

fn fetch_of_three() -> FetchRequest {
    let mut fetch = handlers_fetch(&["t"]);
    fetch.max_wait_ms = 0;
    let partition = fetch.topics[0].partitions[0].clone();
    let of = |index| fetch_request::FetchPartition { partition: index, ..partition.clone() };
    fetch.topics[0].partitions = (0..3).map(of).collect();
    fetch
}

#[tokio::test]
async fn records_in_files_and_in_memory_pass_whole_side_by_side_and_one_answer_after_the_other() {
    let served = Served::start().await;
    let records = filed(&served, 3_000_000);
    let client = &mut served.client().await;
    for _ in 0..2 {
        client.send(&fetch_of_three(), 12).await;
    }
    for _ in 0..2 {
        let (_, fetched) = client.receive::<FetchRequest>(12).await;
        for partition in &fetched.responses[0].partitions {
            assert!(partition.records.as_ref().unwrap().to_bytes() == records, "{}", partition.partition_index);
        }
    }
    assert!(is_alive(client).await);
    assert_eq!(served.budget.used(), 0, "all is given back once it is written");
}

#[tokio::test]
async fn a_connection_whose_records_become_fewer_on_their_way_is_closed_before_anything_else_is_sent() {
    let served = Served::start().await;
    let records = filed(&served, 2_000_000);
    let client = &mut served.client().await;
    client.send(&fetch_of_three(), 12).await;
    let mut received = Vec::new();
    client.stream.read_to_end(&mut received).await.unwrap();
    let (missing, sent) = (1_000_000, 3 * records.len());
    assert!((sent - missing..sent - missing + 1_000).contains(&received.len()), "{}", received.len());
    assert!(received.ends_with(&records[1_900_000..2_000_000]));
    assert_eq!(served.budget.used(), 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_file_is_closed_when_it_is_idle() {
    let served = Served::with(Limits { connection_idle_ms_max: Some(50), ..Limits::default() }).await;
    served.broker.topic("t", 1);
    let file = Filed::new(&vec![1; 50 << 20], 50 << 20);
    served.broker.files.lock().unwrap().insert(0, Arc::clone(&file));
    let client = &mut served.client().await;
    let mut fetch = handlers_fetch(&["t"]);
    fetch.max_wait_ms = 0;
    client.send(&fetch, 12).await;
    served.broker.files.lock().unwrap().clear();
    while served.handle.metrics().connections_idle_closed.load(Ordering::Relaxed) == 0 || Arc::strong_count(&file) > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let served = Served::with(Limits { connection_idle_ms_max: Some(50), ..Limits::default() }).await;
    let client = &mut served.client().await;
    assert!(is_alive(client).await);
    assert!(client.is_closed().await);
    assert_eq!(served.handle.metrics().connections_idle_closed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let served = Served::with(Limits { connections_per_ip_max: 2, ..Limits::default() }).await;
    let (one, two) = (&mut served.client().await, &mut served.client().await);
    assert!(is_alive(one).await && is_alive(two).await);
    assert!(served.client().await.is_closed().await);
    one.stream.shutdown().await.unwrap();
    assert!(one.is_closed().await);
    let three = &mut served.client().await;
    assert!(is_alive(three).await, "there is room again");
    assert!(is_alive(two).await);
}

#[tokio::test]
async fn connections_that_the_systems_limit_has_no_descriptors_for_are_closed() {
    let descriptors = Descriptors { limit: 100, connections: 2 };
    let served = Served::with(Limits { descriptors, ..Limits::default() }).await;
    let (one, two) = (&mut served.client().await, &mut served.client().await);
    assert!(is_alive(one).await && is_alive(two).await);
    assert!(served.client().await.is_closed().await);
    assert_eq!(served.handle.metrics().connections_refused.load(Ordering::Relaxed), 1);
    one.stream.shutdown().await.unwrap();
    assert!(one.is_closed().await);
    let three = &mut served.client().await;
    assert!(is_alive(three).await && is_alive(two).await, "there is room again");
}

#[tokio::test]
async fn over_the_most_connections_one_waits_for_another_to_end() {
    let served = Served::with(Limits { connections_max: 1, ..Limits::default() }).await;
    let one = &mut served.client().await;
    assert!(is_alive(one).await);
    let two = &mut served.client().await;
    two.send(&ApiVersionsRequest::default(), 0).await;
    assert!(is_alive(one).await);
    assert_eq!(served.handle.metrics().connections_accepted.load(Ordering::Relaxed), 1);
    one.stream.shutdown().await.unwrap();
    two.receive::<ApiVersionsRequest>(0).await;
}

#[tokio::test]
async fn a_stop_answers_what_was_appended_and_closes_everything() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    served.broker.fetch_waits.store(true, Ordering::SeqCst);
    let (producer, consumer, idle) =
        (&mut served.client().await, &mut served.client().await, &mut served.client().await);
    assert!(is_alive(idle).await);
    producer.send(&produce(-1, b"one"), 9).await;
    consumer.send(&handlers_fetch(&["t"]), 12).await;
    let one = served.appends.recv().await.unwrap();
    while served.broker.fetches.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let stop = served.handle.stop(Duration::from_secs(60));
    let client = async {
        assert!(idle.is_closed().await);
        assert!(consumer.is_closed().await, "a consumer asks another broker");
        one.acked.send(ErrorCode::None).unwrap();
        assert_eq!(codes(&producer.receive::<ProduceRequest>(9).await.1), [0]);
        assert!(producer.is_closed().await);
    };
    tokio::join!(stop, client);
    assert_eq!(served.handle.metrics().connections.load(Ordering::Relaxed), 0);
    let refused = tokio::net::TcpStream::connect(served.address).await;
    assert!(refused.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let mut served = Served::start().await;
    served.broker.topic("t", 1);
    let producer = &mut served.client().await;
    producer.send(&produce(-1, b"one"), 9).await;
    let never_acked = served.appends.recv().await.unwrap();
    served.handle.stop(Duration::from_millis(20)).await;
    assert!(producer.is_closed().await);
    drop(never_acked);
}

/// What the process holds in memory, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

/// How many files the process may have open.
fn open_files_max() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_cost_little() {
    let served = Served::start().await;
    // Both ends are in this process.
    let count = 10_000.min((open_files_max() - 100) / 2);
    let mut clients = Vec::with_capacity(count);
    let before = resident();
    for _ in 0..count {
        let mut client = served.client().await;
        assert!(is_alive(&mut client).await);
        clients.push(client);
    }
    let each = (resident().saturating_sub(before)) / count;
    // Before they are trimmed each holds a read buffer of 8 KiB; after that, the task and the socket alone.
    assert!(each < 16_000, "{each} bytes for each of {count} connections");
    let open = served.handle.metrics().connections.load(Ordering::Relaxed);
    assert_eq!(usize::try_from(open).unwrap(), count);
    assert!(is_alive(&mut clients[0]).await && is_alive(&mut clients[count - 1]).await);
    println!("{count} idle connections, {each} bytes each (both ends)");
}
