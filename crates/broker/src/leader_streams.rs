//! The leader's end of replication: accepts followers' streams (`R56`), and pushes to each what its partitions have.
//!
//! A partition that has something for a follower puts itself on the stream's ready list; the stream's writer takes the
//! list, asks each partition for its next frame, and packs what they give into one message. Reading acknowledgements never
//! waits for writing data (`R62`): the two are tasks of their own.
//!
//! Invariants: a partition is on a stream's ready list at most once; no lock of a stream is held while a partition is
//! locked (partitions call in here with their own lock held).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{BrokerEpoch, BrokerId, ErrorCode, TopicPartition};
use rpc::replication::{
    Answer, Data, FollowerFrame, FollowerFrames, Hello, LeaderFrame, LeaderSender, Open, OpenAnswer, Progress,
    ReplicationServer,
};
use tokio::sync::Notify;

use crate::context::Context;
use crate::partition::{NextData, OpenVerdict, Partition};

/// Payload of one message, at most, but for a single larger batch.
const FRAME_BYTES: usize = 1 << 20;
/// How long a moved watermark may wait for data to ride on (`R60`).
const PROGRESS_DELAY: Duration = Duration::from_millis(5);
/// How long a hello or an open from the future is held until metadata arrives (`R56`, `R57`).
const PARK: Duration = Duration::from_secs(1);

/// One follower's stream, as its partitions' sessions know it.
#[derive(Debug)]
pub(crate) struct LeaderStream {
    /// Whose it is.
    pub(crate) follower: BrokerId,
    /// The follower's registration that it was opened under.
    pub(crate) follower_epoch: BrokerEpoch,
    /// Orders the streams of one follower's process.
    pub(crate) stream_no: u64,
    queues: Mutex<Queues>,
    wake: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queues {
    answers: Vec<OpenAnswer>,
    /// Partitions with data for the follower.
    ready: Vec<Arc<Partition>>,
    /// Partitions whose watermarks moved.
    moved: Vec<Arc<Partition>>,
}

impl LeaderStream {
    /// A stream without a connection, for its queues.
    fn new(hello: &Hello) -> LeaderStream {
        LeaderStream {
            follower: hello.follower,
            follower_epoch: hello.follower_epoch,
            stream_no: hello.stream_no,
            queues: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// `partition` has data. The caller keeps a partition from being queued twice.
    pub(crate) fn push_ready(&self, partition: Arc<Partition>) {
        lock(&self.queues).ready.push(partition);
        self.wake.notify_one();
    }

    /// `partition`'s watermarks moved. The caller keeps a partition from being queued twice.
    pub(crate) fn push_moved(&self, partition: Arc<Partition>) {
        lock(&self.queues).moved.push(partition);
        self.wake.notify_one();
    }

    fn push_answer(&self, answer: OpenAnswer) {
        lock(&self.queues).answers.push(answer);
        self.wake.notify_one();
    }

    /// A session that was open is void: the follower opens anew.
    pub(crate) fn refuse(&self, handle: u64, open_no: u64, error: ErrorCode) {
        self.push_answer(OpenAnswer { handle, open_no, answer: Answer::Refused(error.code()) });
    }

    /// Ends the stream: nothing still in it counts.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Takes the streams of all followers.
#[derive(Debug)]
pub(crate) struct LeaderStreams {
    context: Arc<Context>,
    /// The newest stream of each follower and lane.
    streams: Mutex<BTreeMap<(BrokerId, u32), Arc<LeaderStream>>>,
}

impl LeaderStreams {
    /// None yet.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, streams: Mutex::default() }
    }

    /// Follows the metadata until the broker stops.
    pub(crate) async fn follow_registrations(self: Arc<Self>) {
        let mut images = self.context.images();
        while images.changed().await.is_ok() {
            images.borrow_and_update();
            self.close_superseded();
        }
    }

    /// Closes the streams of followers whose registration changed (`R56`).
    fn close_superseded(&self) {
        lock(&self.streams).retain(|_, stream| {
            let current = self.context.broker_epoch_of(stream.follower) == Some(stream.follower_epoch);
            if !current {
                stream.close();
            }
            current && !stream.is_closed()
        });
    }

    /// Closes every stream, as the broker stops.
    pub(crate) fn stop(&self) {
        for stream in std::mem::take(&mut *lock(&self.streams)).into_values() {
            stream.close();
        }
    }

    /// R56: is this the right cluster, the right leader, and the follower's newest registration?
    async fn check(&self, hello: &Hello) -> Result<BrokerEpoch, String> {
        let context = &self.context;
        let (own_epoch, cluster_id) =
            context.wait_metadata(PARK, || context.registration()).await.ok_or("this broker is not registered yet")?;
        if hello.cluster_id != cluster_id {
            return Err(format!("this is cluster {cluster_id}, not {}", hello.cluster_id));
        }
        if hello.leader != context.config.broker_id {
            return Err(format!("this is broker {}, not {}", context.config.broker_id, hello.leader));
        }
        if hello.leader_epoch < own_epoch {
            return Err(format!("this broker is registered as epoch {own_epoch}, not {}", hello.leader_epoch));
        }
        let known = context
            .wait_metadata(PARK, || {
                context.broker_epoch_of(hello.follower).filter(|known| *known >= hello.follower_epoch)
            })
            .await;
        match known {
            Some(known) if known == hello.follower_epoch && hello.leader_epoch == own_epoch => Ok(own_epoch),
            // R8: a registration older than the one in force.
            Some(known) => Err(format!("broker {} is registered as epoch {known}", hello.follower)),
            None => Err(format!("the registration of broker {} has not arrived here yet", hello.follower)),
        }
    }

    fn admit(&self, hello: &Hello) -> Result<Arc<LeaderStream>, String> {
        let stream = Arc::new(LeaderStream::new(hello));
        let mut streams = lock(&self.streams);
        if let Some(old) = streams.get(&(hello.follower, hello.lane)) {
            if (old.follower_epoch, old.stream_no) >= (hello.follower_epoch, hello.stream_no) {
                return Err(format!("stream {} of broker {} is newer", old.stream_no, hello.follower));
            }
            old.close();
        }
        streams.insert((hello.follower, hello.lane), Arc::clone(&stream));
        Ok(stream)
    }

    async fn read(self: Arc<Self>, stream: Arc<LeaderStream>, mut frames: FollowerFrames) {
        let mut by_handle: BTreeMap<u64, TopicPartition> = BTreeMap::new();
        loop {
            let closed = async {
                while !stream.is_closed() {
                    tokio::time::sleep(PARK).await;
                }
            };
            // Dropping `closed` loses nothing: it only looks.
            let frame = tokio::select! { frame = frames.next() => frame, () = closed => break };
            match frame {
                Ok(Some(frame)) if !stream.is_closed() => self.handle_frame(&stream, &mut by_handle, frame),
                Ok(_) => break,
                Err(error) => {
                    tracing::info!(follower = %stream.follower, %error, "a follower's replication stream broke");
                    self.context.suspect(stream.follower);
                    break;
                }
            }
        }
        stream.close();
        for partition in by_handle.into_values().filter_map(|id| self.context.partition(id)) {
            partition.follower_stream_closed(&self.context, &stream);
        }
    }

    fn handle_frame(
        self: &Arc<Self>,
        stream: &Arc<LeaderStream>,
        by_handle: &mut BTreeMap<u64, TopicPartition>,
        frame: FollowerFrame,
    ) {
        for handle in frame.closes {
            by_handle.remove(&handle);
        }
        for open in frame.opens {
            by_handle.insert(open.handle, open.partition);
            match self.context.partition(open.partition) {
                Some(partition) => self.open(stream, &partition, open),
                None => self.park_open(stream, open),
            }
        }
        for ack in frame.acks {
            if let Some(partition) = by_handle.get(&ack.handle).and_then(|id| self.context.partition(*id)) {
                if let Err(reason) = partition.handle_ack(&self.context, stream, ack) {
                    tracing::warn!(follower = %stream.follower, partition = %partition.id(), reason, "closing a replication stream");
                    stream.close();
                    return;
                }
            }
        }
    }

    fn open(self: &Arc<Self>, stream: &Arc<LeaderStream>, partition: &Arc<Partition>, open: Open) {
        match partition.handle_open(&self.context, stream, open) {
            OpenVerdict::Answer(answer) => {
                stream.push_answer(OpenAnswer { handle: open.handle, open_no: open.open_no, answer });
            }
            OpenVerdict::Park => self.park_open(stream, open),
            OpenVerdict::Ignore => {}
        }
    }

    /// R57: the open is ahead of this broker's metadata; hold it rather than refuse.
    fn park_open(self: &Arc<Self>, stream: &Arc<LeaderStream>, open: Open) {
        let (streams, stream) = (Arc::clone(self), Arc::clone(stream));
        tokio::spawn(async move {
            let context = &streams.context;
            let answer = context
                .wait_metadata(PARK, || match context.partition(open.partition)?.handle_open(context, &stream, open) {
                    OpenVerdict::Answer(answer) => Some(Some(answer)),
                    OpenVerdict::Ignore => Some(None),
                    OpenVerdict::Park => None,
                })
                .await;
            let refused = Answer::Refused(ErrorCode::UnknownLeaderEpoch.code());
            let Some(answer) = answer.unwrap_or(Some(refused)) else { return };
            stream.push_answer(OpenAnswer { handle: open.handle, open_no: open.open_no, answer });
        });
    }

    async fn write(self: Arc<Self>, stream: Arc<LeaderStream>, sender: LeaderSender, own_epoch: BrokerEpoch) {
        let hello = LeaderFrame { hello: Some(own_epoch), ..LeaderFrame::default() };
        let mut open = sender.send(hello).await;
        while open && !stream.is_closed() {
            let frame = self.next_frame(&stream).await;
            open = frame == LeaderFrame::default() || sender.send(frame).await;
        }
        stream.close();
    }

    /// Waits until there is something to say, then says as much as fits.
    async fn next_frame(&self, stream: &Arc<LeaderStream>) -> LeaderFrame {
        let mut queues = take_queues(stream);
        if queues.answers.is_empty() && queues.ready.is_empty() {
            if queues.moved.is_empty() {
                stream.wake.notified().await;
            } else {
                // Data may come for the watermark to ride on; a notification lost here is found in the queues below.
                let _ = tokio::time::timeout(PROGRESS_DELAY, stream.wake.notified()).await;
            }
            let more = take_queues(stream);
            queues.answers.extend(more.answers);
            queues.ready.extend(more.ready);
            queues.moved.extend(more.moved);
        }
        let data = self.collect(stream, queues.ready).await;
        let progress: Vec<Progress> =
            queues.moved.iter().filter_map(|partition| partition.next_progress(stream)).collect();
        LeaderFrame { hello: None, answers: queues.answers, progress, data }
    }

    /// The partitions' data, in turns, up to the size of a message; who has more, or had no turn, stays on the list.
    async fn collect(&self, stream: &Arc<LeaderStream>, ready: Vec<Arc<Partition>>) -> Vec<Data> {
        let (mut data, mut bytes) = (Vec::new(), 0);
        let mut waiting = ready.into_iter();
        for partition in waiting.by_ref() {
            let mut next = partition.next_data(&self.context, stream, FRAME_BYTES - bytes.min(FRAME_BYTES));
            if let NextData::Cold(cold) = next {
                next = cold.read(&self.context).await;
            }
            if let NextData::Data { data: frame, more } = next {
                bytes += frame.batches.iter().map(bytes::Bytes::len).sum::<usize>();
                data.push(frame);
                if more {
                    partition.requeue(stream);
                }
            }
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        let rest: Vec<_> = waiting.collect();
        if !rest.is_empty() {
            lock(&stream.queues).ready.extend(rest);
            stream.wake.notify_one();
        }
        data
    }
}

impl ReplicationServer for LeaderStreams {
    async fn accept(self: Arc<Self>, hello: Hello, frames: FollowerFrames, sender: LeaderSender) -> Result<(), String> {
        let own_epoch = self.check(&hello).await?;
        let stream = self.admit(&hello)?;
        tracing::debug!(follower = %hello.follower, lane = hello.lane, stream_no = hello.stream_no, "a follower's stream");
        tokio::spawn(Arc::clone(&self).read(Arc::clone(&stream), frames));
        tokio::spawn(self.write(stream, sender, own_epoch));
        Ok(())
    }
}

fn take_queues(stream: &LeaderStream) -> Queues {
    std::mem::take(&mut *lock(&stream.queues))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
