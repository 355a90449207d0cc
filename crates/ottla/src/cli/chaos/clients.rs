//! The clients of `ottla chaos run`: idempotent producers, a consumer that commits, a watcher of what is committed; and the final
//! reads. Each writes what it did into the history.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::chaos::event::{Commit, Committed, End, Event, Isolation, Log, Outcome, Poll, Produce};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use model::{Codec, ErrorCode, Record, RecordBatch, RecordIter, encode_batch, encode_records};
use protocol::messages::{
    FetchRequest, FetchResponse, ProduceRequest, ProduceResponse, fetch_request, produce_request,
};

use crate::cli::group;
use crate::cli::partitions::{LATEST, Topic, list_offsets};
use crate::cli::produce::{identify, now_ms};
use crate::kafka_client::{KafkaClient, check, code_of, is_retriable};

pub(super) const TOPIC: &str = "chaos";
const GROUP: &str = "chaos";
pub(super) const PARTITIONS: i32 = 3;
/// How long a client waits for an answer before it asks somebody else.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a record is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two records, two attempts, two polls that found nothing, and two commits.
const PACE: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(20);
const COMMIT: Duration = Duration::from_millis(500);
const FETCH_BYTES: i32 = 1 << 20;

/// Where all clients write, and what of it is told while the run goes on.
pub(super) struct Recorder {
    begun: Instant,
    file: Mutex<BufWriter<File>>,
    pub(super) bootstrap: String,
    pub(super) stopped: AtomicBool,
    pub(super) acknowledged: AtomicU64,
}

impl Recorder {
    pub(super) fn create(path: &Path, bootstrap: String) -> Result<Recorder> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let file = Mutex::new(BufWriter::with_capacity(1 << 20, file));
        let (stopped, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(Recorder { begun: Instant::now(), file, bootstrap, stopped, acknowledged })
    }

    /// Microseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a run ends")
    }

    pub(super) fn write(&self, event: &Event) -> Result<()> {
        let mut file = self.file.lock().expect("nobody panics while writing");
        writeln!(file, "{}", event.line()).context("cannot write the history")
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.file.lock().expect("nobody panics while writing").flush().context("cannot write the history")
    }

    fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn client(&self) -> Result<KafkaClient> {
        Ok(KafkaClient::new(&self.bootstrap)?.with_timeout(ANSWER))
    }
}

/// Sends one record after the other to one partition. A record whose outcome is unknown ends its identity: what comes later is
/// another producer's.
pub(super) async fn produce(recorder: &Recorder, number: usize, partition: i32) -> Result<()> {
    let mut client = recorder.client()?;
    for life in 0.. {
        let process = format!("p{number}.{life}");
        let identity = identify(&mut client).await?;
        for seq in 0.. {
            if !recorder.goes_on() {
                return Ok(());
            }
            let invoke = recorder.now();
            let value = format!("{process}-{seq}");
            let record = Record { value: Some(Bytes::from(value.clone())), ..Record::default() };
            let producer = Some((identity.0, identity.1, i32::try_from(seq)?));
            let now = now_ms();
            let batch = encode_batch(&encode_records(&[record]), Codec::None, 1, now, now, producer);
            let sent = send(&mut client, partition, &batch).await;
            let (outcome, offset, error) = match sent {
                Ok(offset) => (Outcome::Ok, Some(offset), String::new()),
                Err(error) => (Outcome::Unknown, None, format!("{error:#}")),
            };
            let (process, topic, complete) = (process.clone(), TOPIC.to_owned(), recorder.now());
            let (idempotent, transaction) = (true, None);
            #[rustfmt::skip]
            let produce = Produce { process, topic, partition, seq, value, invoke, complete, outcome, offset, error, idempotent, transaction };
            recorder.write(&Event::Produce(produce))?;
            if outcome == Outcome::Unknown {
                break;
            }
            recorder.acknowledged.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PACE).await;
        }
    }
    Ok(())
}

/// Sends a batch until it is acknowledged, or until nobody knows. Gives its offset; -1: it was there already.
async fn send(client: &mut KafkaClient, partition: i32, batch: &bytes::BytesMut) -> Result<i64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match send_once(client, partition, batch.clone()).await {
            Ok(offset) => return Ok(offset),
            Err(error) if code_of(&error) == Some(ErrorCode::DuplicateSequenceNumber) => return Ok(-1),
            Err(error) if is_retriable(&error) && Instant::now() < deadline => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error),
        }
    }
}

async fn send_once(client: &mut KafkaClient, partition: i32, records: bytes::BytesMut) -> Result<i64> {
    let topic = Topic::look_up(client, TOPIC).await?;
    let data = produce_request::TopicProduceData {
        name: topic.name,
        topic_id: topic.id.0,
        partition_data: vec![produce_request::PartitionProduceData { index: partition, records: Some(records) }],
    };
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 1500, topic_data: vec![data] };
    let answer: ProduceResponse = client.at(&topic.leaders[&partition], &request).await?;
    let result = answer.responses.iter().flat_map(|topic| &topic.partition_responses).next();
    let result = result.context("Produce answered nothing")?;
    check(result.error_code)?;
    Ok(result.base_offset)
}

/// Reads one partition from its beginning, and commits as it goes, until the run is over and all is read.
pub(super) async fn consume(recorder: &Recorder, partition: i32) -> Result<()> {
    let (mut client, process) = (recorder.client()?, format!("c{partition}"));
    let (mut next, mut committed, mut due) = (0, 0, Instant::now() + COMMIT);
    let mut over_since = None;
    loop {
        let over = !recorder.goes_on();
        let since = *over_since.get_or_insert_with(Instant::now);
        if !over {
            over_since = None;
        }
        let invoke = recorder.now();
        // A leader that is gone or new is asked again.
        let (records, end) = fetch(&mut client, partition, next).await.unwrap_or((Vec::new(), None));
        // A log that ends below what was read never gets there: the judge will say so.
        let done = over && (end == Some(next) || since.elapsed() >= PATIENCE);
        if let Some((last, _)) = records.last() {
            next = last + 1;
            let (process, group, topic, complete) =
                (process.clone(), GROUP.to_owned(), TOPIC.to_owned(), recorder.now());
            let (session, isolation, generation) = (1, Isolation::ReadUncommitted, None);
            #[rustfmt::skip]
            let poll = Poll { process, group, session, topic, partition, invoke, complete, isolation, generation, records };
            recorder.write(&Event::Poll(poll))?;
        } else {
            tokio::time::sleep(IDLE).await;
        }
        if next > committed && (done || Instant::now() >= due) {
            due = Instant::now() + COMMIT;
            commit(recorder, &mut client, &process, partition, next).await?;
            committed = next;
        }
        if done {
            return Ok(());
        }
    }
}

async fn commit(
    recorder: &Recorder,
    client: &mut KafkaClient,
    process: &str,
    partition: i32,
    offset: i64,
) -> Result<()> {
    let invoke = recorder.now();
    let done = group::commit(client, GROUP, TOPIC, &BTreeMap::from([(partition, offset)])).await;
    let (outcome, error) = match done {
        Ok(()) => (Outcome::Ok, String::new()),
        Err(error) => (Outcome::Unknown, format!("{error:#}")),
    };
    let (process, group, topic, complete) = (process.to_owned(), GROUP.to_owned(), TOPIC.to_owned(), recorder.now());
    let commit =
        Commit { process, group, topic, partition, offset, invoke, complete, outcome, error, transaction: None };
    recorder.write(&Event::Commit(commit))
}

/// Asks again and again what is committed.
pub(super) async fn watch(recorder: &Recorder) -> Result<()> {
    let mut client = recorder.client()?;
    while recorder.goes_on() {
        tokio::time::sleep(COMMIT / 2).await;
        let invoke = recorder.now();
        let Ok(offsets) = group::committed(&mut client, GROUP).await else { continue };
        for partition in 0..PARTITIONS {
            let (group, topic, complete) = (GROUP.to_owned(), TOPIC.to_owned(), recorder.now());
            let offset = offsets.get(&(topic.clone(), partition)).map_or(-1, |committed| committed.offset);
            recorder.write(&Event::Committed(Committed { group, topic, partition, offset, invoke, complete }))?;
        }
    }
    Ok(())
}

/// Records from an offset on, and the high watermark where the leader told it.
async fn fetch(client: &mut KafkaClient, partition: i32, from: i64) -> Result<(Vec<(i64, String)>, Option<i64>)> {
    let topic = Topic::look_up(client, TOPIC).await?;
    let asked = fetch_request::FetchPartition {
        partition,
        fetch_offset: from,
        partition_max_bytes: FETCH_BYTES,
        ..Default::default()
    };
    let asked = fetch_request::FetchTopic { topic: topic.name, topic_id: topic.id.0, partitions: vec![asked] };
    let request = FetchRequest { max_bytes: FETCH_BYTES, topics: vec![asked], ..Default::default() };
    let answer: FetchResponse = client.at(&topic.leaders[&partition], &request).await?;
    check(answer.error_code)?;
    let found = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
    let found = found.context("Fetch answered nothing")?;
    check(found.error_code)?;
    let mut records = Vec::new();
    for batch in RecordBatch::split_all(found.records.map(|records| records.to_bytes()).unwrap_or_default())? {
        for record in RecordIter::new(batch.payload(), batch.header().record_count) {
            let record = record?;
            let offset = batch.header().base_offset.0 + i64::from(record.offset_delta);
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            if offset >= from && !batch.header().is_control() {
                records.push((offset, value));
            }
        }
    }
    Ok((records, Some(found.high_watermark)))
}

/// Reads every partition from its beginning up to the end that it has now.
pub(super) async fn read_back(recorder: &Recorder) -> Result<()> {
    let mut client = recorder.client()?;
    for (partition, high_watermark) in list_offsets(&mut client, TOPIC, LATEST).await? {
        let (mut next, deadline) = (0, Instant::now() + PATIENCE);
        while next < high_watermark {
            ensure!(Instant::now() < deadline, "{TOPIC}-{partition} could not be read beyond {next}");
            let Ok((mut records, _)) = fetch(&mut client, partition, next).await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            records.retain(|(offset, _)| *offset < high_watermark);
            next = records.last().map_or(next, |(last, _)| last + 1);
            let (topic, isolation) = (TOPIC.to_owned(), Isolation::ReadUncommitted);
            recorder.write(&Event::Log(Log { topic, partition, isolation, records }))?;
        }
        recorder.write(&Event::End(End { topic: TOPIC.to_owned(), partition, high_watermark }))?;
    }
    Ok(())
}
