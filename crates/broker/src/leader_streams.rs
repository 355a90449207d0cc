//! The leader's end of replication: accepts followers' streams (`R56`), and pushes to each what its partitions have.
//!
//! A partition that has something for a follower puts itself on the stream's ready list; the stream's source takes the
//! list, asks each partition for its next frame, and packs what they give into one message, whenever the transport takes
//! one. Reading acknowledgements never waits for writing data (`R62`): a task reads, the transport's own task writes.
//!
//! A follower has streams of two kinds, each a connection of its own (`R62`). On the tail's nothing is sent but what is in
//! memory, so that nobody on it waits for a disk; a session that needs the disk moves to the catch-up lane, where sessions
//! wait for each other's reads, and comes back once what it needs next is in memory. Each stream has a window for what is
//! not acknowledged; a full one takes nothing off the ready list until an acknowledgement makes room.
//!
//! Invariants: a link is on its stream's ready list at most once; no lock of a stream is held while a partition is
//! locked (partitions call in here with their own lock held).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use model::{BrokerEpoch, BrokerId, ErrorCode, TopicPartition};
use replication::{Admission, Lane, Room, Window};
use rpc::replication::{
    Answer, Data, FollowerFrame, FollowerFrames, Hello, LaneKind, LeaderFrame, LeaderSource, Open, OpenAnswer,
    Progress, ReplicationServer,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::budget::Standing;
use crate::context::Context;
use crate::partition::{NextData, Opening, Partition, Space};

/// Payload of one message, at most, but for a single larger batch.
const FRAME_BYTES: usize = 1 << 20;
/// How long a moved watermark may wait for data to ride on (`R60`).
const PROGRESS_DELAY: Duration = Duration::from_millis(5);
/// How long a hello or an open from the future is held until metadata arrives (`R56`, `R57`).
const PARK: Duration = Duration::from_secs(1);

/// Opens that one stream may have parked.
const PARKED_MAX: usize = 100_000;
/// Answers that may wait for one that reads none: more than it has replicas.
const ANSWERS_MAX: usize = 200_000;
/// Lanes of one follower; two for each of its fetchers.
const LANES_MAX: u32 = 4096;

/// One follower's stream, as its partitions' sessions know it.
#[derive(Debug)]
pub(crate) struct LeaderStream {
    /// Whose it is.
    pub(crate) follower: BrokerId,
    /// The follower's registration that it was opened under.
    pub(crate) follower_epoch: BrokerEpoch,
    /// Orders the streams of one follower's process.
    pub(crate) stream_no: u64,
    /// Which sessions it is for; None where the follower does not know of lanes.
    pub(crate) lane: Option<Lane>,
    /// This broker's registration that it was opened under.
    own_epoch: BrokerEpoch,
    queues: Mutex<Queues>,
    /// What is not acknowledged.
    window: Mutex<Window>,
    wake: Notify,
    closed: watch::Sender<bool>,
    /// What it can hold: its window, and a message that is being read from disk.
    memory: Mutex<Option<Standing>>,
}

#[derive(Debug, Default)]
struct Queues {
    answers: Vec<OpenAnswer>,
    /// Answers to sessions that move: a frame has its answers before its data, and these come after their sessions' data.
    moves: Vec<OpenAnswer>,
    /// Partitions with data for the follower.
    ready: Vec<Arc<Partition>>,
    /// Partitions whose watermarks moved.
    moved: Vec<Arc<Partition>>,
    /// Partitions with data that is throttled, and when to look at them again.
    held: Vec<Arc<Partition>>,
    held_until: Option<Instant>,
}

impl LeaderStream {
    fn new(hello: &Hello, own_epoch: BrokerEpoch, context: &Context) -> LeaderStream {
        let window = context.config.replica_fetch_response_max_bytes;
        LeaderStream {
            follower: hello.follower,
            follower_epoch: hello.follower_epoch,
            stream_no: hello.stream_no,
            lane: match hello.kind {
                LaneKind::Mixed => None,
                LaneKind::Tail => Some(Lane::Tail),
                LaneKind::CatchUp => Some(Lane::CatchUp),
            },
            own_epoch,
            queues: Mutex::default(),
            window: Mutex::new(Window::new(window, context.config.rules)),
            wake: Notify::new(),
            closed: watch::Sender::new(false),
            memory: Mutex::new(Some(context.budget.stand(window.saturating_add(FRAME_BYTES as u64)))),
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

    /// `partition` has data that may not go before `until`. It counts as being on the ready list.
    fn hold(&self, partition: Arc<Partition>, until: Instant) {
        let mut queues = lock(&self.queues);
        queues.held.push(partition);
        queues.held_until = Some(queues.held_until.map_or(until, |other| other.min(until)));
    }

    /// The answer to an open, in order with what its session gives.
    pub(crate) fn push_answer(&self, answer: OpenAnswer) {
        let waiting = {
            let mut queues = lock(&self.queues);
            queues.answers.push(answer);
            queues.answers.len()
        };
        if waiting > ANSWERS_MAX && !self.is_closed() {
            tracing::warn!(follower = %self.follower, waiting, "a follower opens sessions and reads no answers; its stream ends");
            self.close();
            // Nobody is told any of it; the stream itself may last as long as its connection.
            lock(&self.queues).answers = Vec::new();
        }
        self.wake.notify_one();
    }

    /// A session that was open goes on elsewhere: told in a later frame than all that it was sent.
    pub(crate) fn push_move(&self, answer: OpenAnswer) {
        lock(&self.queues).moves.push(answer);
        self.wake.notify_one();
    }

    /// A session of the stream that had `before` bytes in flight has `after` now.
    pub(crate) fn in_flight_changed(&self, before: u64, after: u64) {
        if lock(&self.window).handle_in_flight(before, after) {
            self.wake.notify_one();
        }
    }

    /// What is next does not fit into `room`.
    pub(crate) fn too_large(&self, room: Room) {
        lock(&self.window).handle_too_large(room);
    }

    fn room(&self) -> Option<Room> {
        lock(&self.window).room()
    }

    /// A session that was open is void: the follower opens anew.
    pub(crate) fn refuse(&self, handle: u64, open_no: u64, error: ErrorCode) {
        self.push_answer(OpenAnswer { handle, open_no, answer: Answer::Refused(error.code()) });
    }

    /// Ends the stream: nothing still in it counts.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
        // The stream itself is remembered for its number.
        lock(&self.memory).take();
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
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

    /// Closes the streams of followers whose registration changed, and all where this broker's did (`R56`).
    fn close_superseded(&self) {
        let own_epoch = self.context.registration().map(|(epoch, _)| epoch);
        lock(&self.streams).retain(|_, stream| {
            let current = self.context.broker_epoch_of(stream.follower) == Some(stream.follower_epoch)
                && own_epoch == Some(stream.own_epoch);
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
        if hello.leader_epoch != own_epoch {
            return Err(format!("this broker is registered as epoch {own_epoch}, not {}", hello.leader_epoch));
        }
        let known = context
            .wait_metadata(PARK, || {
                context.broker_epoch_of(hello.follower).filter(|known| *known >= hello.follower_epoch)
            })
            .await;
        match known {
            Some(known) if known == hello.follower_epoch => Ok(own_epoch),
            // R8: a registration older than the one in force.
            Some(known) => Err(format!("broker {} is registered as epoch {known}", hello.follower)),
            None => Err(format!("the registration of broker {} has not arrived here yet", hello.follower)),
        }
    }

    fn admit(&self, hello: &Hello, own_epoch: BrokerEpoch) -> Result<Arc<LeaderStream>, String> {
        if hello.lane >= LANES_MAX {
            return Err(format!("broker {} has no lane {}", hello.follower, hello.lane));
        }
        let stream = Arc::new(LeaderStream::new(hello, own_epoch, &self.context));
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
        let mut sessions = Sessions::default();
        let mut closed = stream.closed.subscribe();
        let mut images = self.context.images();
        loop {
            let parked_until = sessions.parked_until();
            // Any branch may be dropped: `next` reads whole frames, the others only look.
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => break,
                frame = frames.next() => match frame {
                    Ok(Some(frame)) => self.handle_frame(&stream, &mut sessions, frame),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::info!(follower = %stream.follower, %error, "a follower's replication stream broke");
                        self.context.suspect(stream.follower);
                        break;
                    }
                },
                changed = images.changed(), if parked_until.is_some() => {
                    if changed.is_err() {
                        break;
                    }
                    images.borrow_and_update();
                    for (open, until) in sessions.take_parked() {
                        self.open(&stream, &mut sessions, open, until);
                    }
                }
                () = until(parked_until) => sessions.refuse_parked(&stream, Instant::now()),
            }
        }
        stream.close();
        for partition in sessions.by_handle.into_values() {
            partition.follower_stream_closed(&self.context, &stream);
        }
    }

    fn handle_frame(&self, stream: &Arc<LeaderStream>, sessions: &mut Sessions, frame: FollowerFrame) {
        for handle in frame.closes {
            if let Some(partition) = sessions.close(handle) {
                partition.follower_session_closed(&self.context, stream, handle);
            }
        }
        let until = Instant::now() + PARK;
        for open in frame.opens {
            self.open(stream, sessions, open, until);
        }
        for ack in frame.acks {
            if let Some(partition) = sessions.by_handle.get(&ack.handle)
                && let Err(reason) = partition.handle_ack(&self.context, stream, ack)
            {
                tracing::warn!(follower = %stream.follower, partition = %partition.id(), reason, "closing a replication stream");
                stream.close();
                return;
            }
        }
    }

    /// R57: an open that is ahead of this broker's metadata is held rather than refused.
    fn open(&self, stream: &Arc<LeaderStream>, sessions: &mut Sessions, open: Open, until: Instant) {
        let partition = self.context.partition(open.partition);
        match partition.as_ref().map_or(Opening::Park, |partition| partition.handle_open(&self.context, stream, open)) {
            Opening::Done => sessions.opened(open, partition),
            Opening::Park if sessions.parked.len() < PARKED_MAX => {
                sessions.parked.insert(open.partition, (open, until));
            }
            Opening::Park => stream.refuse(open.handle, open.open_no, ErrorCode::UnknownLeaderEpoch),
        }
    }

    /// What the stream is sent: a frame whenever its transport takes one, until either end closes it.
    fn source(self: Arc<Self>, stream: Arc<LeaderStream>) -> LeaderSource {
        let hello = LeaderFrame { hello: Some(stream.own_epoch), ..LeaderFrame::default() };
        let first = futures_util::stream::once(std::future::ready(hello));
        let rest = futures_util::stream::unfold(CloseOnDrop(stream), move |stream| {
            let streams = Arc::clone(&self);
            async move {
                let mut closed = stream.0.closed.subscribe();
                // What is dropped when the stream closes counts for nobody.
                let next = tokio::select! {
                    next = streams.next_frame(&stream.0) => Some(next),
                    _ = closed.wait_for(|closed| *closed) => None,
                };
                next.map(|frame| (frame, stream))
            }
        });
        first.chain(rest).boxed()
    }

    /// Waits until there is something to say, then says as much as fits.
    async fn next_frame(&self, stream: &Arc<LeaderStream>) -> LeaderFrame {
        let mut moved: Vec<Arc<Partition>> = Vec::new();
        let mut moved_until: Option<Instant> = None;
        loop {
            let has_room = stream.room().is_some();
            let (ready, moves, answers, held_until) = {
                let mut queues = lock(&stream.queues);
                moved.append(&mut queues.moved);
                queues.release_held(Instant::now());
                let ready = if has_room { std::mem::take(&mut queues.ready) } else { Vec::new() };
                (ready, std::mem::take(&mut queues.moves), !queues.answers.is_empty(), queues.held_until)
            };
            let answers = answers || !moves.is_empty();
            if !ready.is_empty() || answers || moved_until.is_some_and(|until| until <= Instant::now()) {
                let data = self.collect(stream, ready).await;
                let progress: Vec<Progress> =
                    moved.drain(..).filter_map(|partition| partition.next_progress(stream)).collect();
                // Last: the answer that opened a session was listed before the session could give anything.
                let mut answers = std::mem::take(&mut lock(&stream.queues).answers);
                answers.extend(moves);
                let frame = LeaderFrame { hello: None, answers, progress, data };
                if frame != LeaderFrame::default() {
                    return frame;
                }
                moved_until = None;
            } else {
                // R60: data may come for the watermarks to ride on.
                let ride = || *moved_until.get_or_insert_with(|| Instant::now() + PROGRESS_DELAY);
                let ride = (!moved.is_empty()).then(ride);
                tokio::select! {
                    // Both are waits: dropping them loses nothing.
                    () = stream.wake.notified() => {}
                    () = until(ride.into_iter().chain(held_until).min()) => {}
                }
            }
        }
    }

    /// The partitions' data, in turns, up to the size of a message; who had no turn has one before those who have more.
    async fn collect(&self, stream: &Arc<LeaderStream>, ready: Vec<Arc<Partition>>) -> Vec<Data> {
        let (mut data, mut bytes) = (Vec::new(), 0);
        let mut waiting = ready.into_iter();
        while let Some(window) = stream.room()
            && let Some(partition) = waiting.next()
        {
            let admission = self.throttle(stream, &partition);
            let mut message = FRAME_BYTES.saturating_sub(bytes);
            match admission {
                Admission::Free => {}
                Admission::UpTo(credit) => message = message.min(usize::try_from(credit).unwrap_or(usize::MAX)),
                Admission::Wait(until) => {
                    stream.hold(partition, self.instant(until));
                    continue;
                }
            }
            let space = Space { message, first: data.is_empty(), window };
            let mut next = partition.next_data(&self.context, stream, space);
            if let NextData::Cold(cold) = next {
                next = cold.read(&self.context).await;
            }
            if let NextData::Data(frame) = next {
                let size = frame.batches.iter().map(bytes::Bytes::len).sum::<usize>();
                if admission != Admission::Free {
                    self.spend(stream, &partition, size);
                }
                bytes += size;
                data.push(frame);
            }
            if bytes >= FRAME_BYTES {
                break;
            }
        }
        let mut rest: Vec<_> = waiting.collect();
        if !rest.is_empty() {
            let mut queues = lock(&stream.queues);
            rest.append(&mut queues.ready);
            queues.ready = rest;
        }
        data
    }
}

/// The throttle: what brings a replica into sync may be held back, what keeps one in sync may not.
impl LeaderStreams {
    fn throttle(&self, stream: &LeaderStream, partition: &Partition) -> Admission {
        let context = &self.context;
        if !context.throttles.is_active() || partition.is_in_sync(stream.follower) {
            return Admission::Free;
        }
        let now = context.clock.monotonic();
        context.throttles.admit(partition.id(), context.config.broker_id, stream.follower, now)
    }

    fn spend(&self, stream: &LeaderStream, partition: &Partition, bytes: usize) {
        let context = &self.context;
        let (bytes, now) = (u64::try_from(bytes).unwrap_or(u64::MAX), context.clock.monotonic());
        context.throttles.spend(partition.id(), context.config.broker_id, stream.follower, bytes, now);
    }

    fn instant(&self, time: model::Time) -> Instant {
        Instant::now() + Duration::from_millis(time.since(self.context.clock.monotonic()))
    }
}

impl Queues {
    /// Whoever was held back is looked at again once it is time.
    fn release_held(&mut self, now: Instant) {
        if self.held_until.take_if(|until| *until <= now).is_some() {
            self.ready.append(&mut self.held);
        }
    }
}

/// What the reader of one stream knows of its sessions.
#[derive(Default)]
struct Sessions {
    by_handle: BTreeMap<u64, Arc<Partition>>,
    /// The newest handle of each partition.
    handles: BTreeMap<TopicPartition, u64>,
    /// The newest open of each partition that is ahead of the metadata, and when it is refused.
    parked: BTreeMap<TopicPartition, (Open, Instant)>,
}

impl Sessions {
    fn opened(&mut self, open: Open, partition: Option<Arc<Partition>>) {
        self.parked.remove(&open.partition);
        if let Some(old) = self.handles.insert(open.partition, open.handle) {
            self.by_handle.remove(&old);
        }
        self.by_handle.extend(partition.map(|partition| (open.handle, partition)));
    }

    fn close(&mut self, handle: u64) -> Option<Arc<Partition>> {
        self.parked.retain(|_, (open, _)| open.handle != handle);
        let partition = self.by_handle.remove(&handle)?;
        self.handles.remove(&partition.id());
        Some(partition)
    }

    fn take_parked(&mut self) -> Vec<(Open, Instant)> {
        std::mem::take(&mut self.parked).into_values().collect()
    }

    fn parked_until(&self) -> Option<Instant> {
        self.parked.values().map(|(_, until)| *until).min()
    }

    fn refuse_parked(&mut self, stream: &LeaderStream, now: Instant) {
        self.parked.retain(|_, (open, until)| {
            if *until <= now {
                stream.refuse(open.handle, open.open_no, ErrorCode::UnknownLeaderEpoch);
            }
            *until > now
        });
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl ReplicationServer for LeaderStreams {
    async fn accept(self: Arc<Self>, hello: Hello, frames: FollowerFrames) -> Result<LeaderSource, String> {
        let own_epoch = self.check(&hello).await?;
        let stream = self.admit(&hello, own_epoch)?;
        tracing::debug!(follower = %hello.follower, lane = hello.lane, stream_no = hello.stream_no, "a follower's stream");
        tokio::spawn(Arc::clone(&self).read(Arc::clone(&stream), frames));
        Ok(self.source(stream))
    }
}

/// The transport drops what it is fed from when the connection is gone: nothing still in the stream counts.
struct CloseOnDrop(Arc<LeaderStream>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
