//! The follower's end of replication: one task and one stream per leader and lane (`R56`), whatever the number of
//! partitions.
//!
//! A partition that follows is assigned to a stream; the task dials, opens a session for each assigned partition, hands
//! what arrives to the partitions and sends their acknowledgements, the newest of each, once per wake-up (`R59`).
//!
//! Invariants: a handle names one open on one stream and is never used again; no lock of a stream is held while a
//! partition is locked (partitions call in here with their own lock held); the sets below hold each partition once, so
//! their bound is the number of partitions assigned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use model::{BrokerId, TopicPartition};
use rpc::replication::{FollowerFrame, FollowerSender, Hello, LeaderFrame, LeaderFrames, dial};
use tokio::sync::Notify;

use crate::context::Context;
use crate::partition::Partition;

/// Frames taken in one wake-up before their acknowledgements are sent.
const FRAMES_A_TURN: usize = 16;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// All streams on which this broker follows.
#[derive(Debug, Default)]
pub(crate) struct FollowerStreams {
    streams: Mutex<BTreeMap<(BrokerId, u32), Arc<FollowerStream>>>,
    /// On which stream each partition that follows is.
    assignments: Mutex<BTreeMap<TopicPartition, Arc<FollowerStream>>>,
    /// Counts up with each stream of this process (`R56`).
    stream_no: AtomicU64,
}

/// One stream, connected or trying to be.
#[derive(Debug)]
pub(crate) struct FollowerStream {
    leader: BrokerId,
    lane: u32,
    work: Mutex<Work>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Work {
    assigned: BTreeMap<TopicPartition, Arc<Partition>>,
    /// Assigned partitions whose session is to be opened, or opened anew.
    to_open: BTreeSet<TopicPartition>,
    /// Assigned partitions whose acknowledgement moved outside of a frame's handling.
    to_ack: BTreeSet<TopicPartition>,
    stopped: bool,
}

impl FollowerStreams {
    /// From now on `partition` follows `leader`; opens a session as soon as the stream stands.
    pub(crate) fn assign(&self, context: &Arc<Context>, leader: BrokerId, partition: &Arc<Partition>) {
        self.unassign(partition.id());
        let lane = lane_of(partition.id(), context.config.num_replica_fetchers);
        let mut streams = lock(&self.streams);
        let stream = Arc::clone(streams.entry((leader, lane)).or_insert_with(|| self.start(context, leader, lane)));
        let mut work = lock(&stream.work);
        work.assigned.insert(partition.id(), Arc::clone(partition));
        work.to_open.insert(partition.id());
        drop(work);
        drop(streams);
        stream.wake.notify_one();
        lock(&self.assignments).insert(partition.id(), stream);
    }

    /// `partition` follows nobody any more. A stream without partitions ends.
    pub(crate) fn unassign(&self, partition: TopicPartition) {
        let Some(stream) = lock(&self.assignments).remove(&partition) else { return };
        let mut streams = lock(&self.streams);
        let mut work = lock(&stream.work);
        work.assigned.remove(&partition);
        work.to_open.remove(&partition);
        work.to_ack.remove(&partition);
        if work.assigned.is_empty() {
            work.stopped = true;
            let key = (stream.leader, stream.lane);
            if streams.get(&key).is_some_and(|current| Arc::ptr_eq(current, &stream)) {
                streams.remove(&key);
            }
        }
        drop(work);
        stream.wake.notify_one();
    }

    /// The session of `partition` ended, or its log was truncated: open anew.
    pub(crate) fn reopen(&self, partition: TopicPartition) {
        self.mark(partition, |work| &mut work.to_open);
    }

    /// What `partition` may acknowledge has moved (a sync returned).
    pub(crate) fn ack_moved(&self, partition: TopicPartition) {
        self.mark(partition, |work| &mut work.to_ack);
    }

    /// Ends every stream, as the broker stops.
    pub(crate) fn stop(&self) {
        lock(&self.assignments).clear();
        for stream in std::mem::take(&mut *lock(&self.streams)).into_values() {
            lock(&stream.work).stopped = true;
            stream.wake.notify_one();
        }
    }

    fn mark(&self, partition: TopicPartition, set: impl Fn(&mut Work) -> &mut BTreeSet<TopicPartition>) {
        let Some(stream) = lock(&self.assignments).get(&partition).cloned() else { return };
        let mut work = lock(&stream.work);
        if work.assigned.contains_key(&partition) {
            set(&mut work).insert(partition);
        }
        drop(work);
        stream.wake.notify_one();
    }

    fn start(&self, context: &Arc<Context>, leader: BrokerId, lane: u32) -> Arc<FollowerStream> {
        let stream = Arc::new(FollowerStream { leader, lane, work: Mutex::default(), wake: Notify::new() });
        let (context, running) = (Arc::clone(context), Arc::clone(&stream));
        let first_no = self.stream_no.fetch_add(1 << 32, Ordering::Relaxed) + (1 << 32);
        tokio::spawn(async move { running.run(context, first_no).await });
        stream
    }
}

/// A connection's own state: which handle is which partition's newest session.
struct Connection {
    sender: FollowerSender,
    next_handle: u64,
    by_handle: BTreeMap<u64, Arc<Partition>>,
    handles: BTreeMap<TopicPartition, u64>,
}

impl FollowerStream {
    /// Dials until told to stop. Stream numbers count up from `stream_no` by one a connection; streams of one process
    /// start 2^32 apart.
    async fn run(self: Arc<Self>, context: Arc<Context>, mut stream_no: u64) {
        let mut retry = FIRST_RETRY;
        while !self.is_stopped() {
            stream_no += 1;
            match self.connect(&context, stream_no).await {
                Ok((sender, frames)) => {
                    retry = FIRST_RETRY;
                    self.serve(&context, sender, frames).await;
                    // R63: dial at once, then back off.
                    context.suspect(self.leader);
                }
                Err(reason) => {
                    tracing::debug!(leader = %self.leader, lane = self.lane, %reason, "cannot follow");
                    context.suspect(self.leader);
                    let pause = context.jitter(retry);
                    // Dropping the wake-up is safe: the sets keep what it was for.
                    let _ = tokio::time::timeout(pause, self.stop_notified()).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
            self.close_sessions(&context);
        }
    }

    async fn stop_notified(&self) {
        while !self.is_stopped() {
            self.wake.notified().await;
        }
    }

    async fn connect(&self, context: &Context, stream_no: u64) -> Result<(FollowerSender, LeaderFrames), String> {
        let (address, leader_epoch) = context.internal_address(self.leader).ok_or("the leader is not registered")?;
        let (follower_epoch, cluster_id) = context.registration().ok_or("this broker is not registered yet")?;
        let hello = Hello {
            cluster_id,
            follower: context.config.broker_id,
            follower_incarnation: context.config.incarnation,
            follower_epoch,
            stream_no,
            leader: self.leader,
            leader_epoch,
            lane: self.lane,
        };
        dial(&address, hello).await.map_err(|error| error.to_string())
    }

    async fn serve(&self, context: &Arc<Context>, sender: FollowerSender, mut frames: LeaderFrames) {
        let mut connection =
            Connection { sender, next_handle: 0, by_handle: BTreeMap::new(), handles: BTreeMap::new() };
        {
            let mut work = lock(&self.work);
            let all: BTreeSet<_> = work.assigned.keys().copied().collect();
            work.to_open = all;
        }
        if !self.send_work(&mut connection, &BTreeSet::new()).await {
            return;
        }
        loop {
            // Both branches may be dropped: a notification leaves its work in the sets, and `next` reads whole frames.
            tokio::select! {
                () = self.wake.notified() => {
                    if self.is_stopped() || !self.send_work(&mut connection, &BTreeSet::new()).await {
                        return;
                    }
                }
                frame = frames.next() => {
                    if !self.handle_frames(context, &mut connection, &mut frames, frame).await {
                        return;
                    }
                }
            }
        }
    }

    /// Handles `first` and what arrived with it, then acknowledges all of it at once. False where the stream is over.
    async fn handle_frames(
        &self,
        context: &Arc<Context>,
        connection: &mut Connection,
        frames: &mut LeaderFrames,
        first: Result<Option<LeaderFrame>, rpc::RpcError>,
    ) -> bool {
        let mut touched = BTreeSet::new();
        let mut frame = first;
        let mut open = true;
        for _ in 0..FRAMES_A_TURN {
            match frame {
                Ok(Some(frame)) => handle_frame(context, connection, frame, &mut touched),
                Ok(None) => open = false,
                Err(error) => {
                    tracing::info!(leader = %self.leader, lane = self.lane, %error, "the replication stream broke");
                    open = false;
                }
            }
            match if open { frames.next().now_or_never() } else { None } {
                Some(next) => frame = next,
                None => break,
            }
        }
        open && self.send_work(connection, &touched).await
    }

    /// Sends opens, acknowledgements and closes, where there are any. False where the stream is over.
    async fn send_work(&self, connection: &mut Connection, touched: &BTreeSet<u64>) -> bool {
        let (to_open, to_ack, gone) = {
            let mut work = lock(&self.work);
            let to_open: Vec<Arc<Partition>> =
                std::mem::take(&mut work.to_open).iter().filter_map(|id| work.assigned.get(id).cloned()).collect();
            let to_ack = std::mem::take(&mut work.to_ack);
            let gone: Vec<TopicPartition> =
                connection.handles.keys().filter(|id| !work.assigned.contains_key(id)).copied().collect();
            (to_open, to_ack, gone)
        };
        let mut frame = FollowerFrame::default();
        for id in gone {
            if let Some(handle) = connection.handles.remove(&id) {
                connection.by_handle.remove(&handle);
                frame.closes.push(handle);
            }
        }
        let moved = to_ack.iter().filter_map(|id| connection.handles.get(id));
        let handles: BTreeSet<u64> = touched.iter().chain(moved).copied().collect();
        for handle in handles {
            frame.acks.extend(connection.by_handle.get(&handle).and_then(|partition| partition.next_ack(handle)));
        }
        for partition in to_open {
            connection.next_handle += 1;
            let handle = connection.next_handle;
            let Some(open) = partition.open_session(handle) else { continue };
            if let Some(old) = connection.handles.insert(partition.id(), handle) {
                connection.by_handle.remove(&old);
            }
            connection.by_handle.insert(handle, partition);
            frame.opens.push(open);
        }
        frame == FollowerFrame::default() || connection.sender.send(frame).await
    }

    /// The connection is gone: no session of it counts any more.
    fn close_sessions(&self, context: &Arc<Context>) {
        let partitions: Vec<_> = lock(&self.work).assigned.values().cloned().collect();
        for partition in partitions {
            partition.session_lost(context);
        }
    }

    fn is_stopped(&self) -> bool {
        lock(&self.work).stopped
    }
}

fn handle_frame(context: &Arc<Context>, connection: &Connection, frame: LeaderFrame, touched: &mut BTreeSet<u64>) {
    for answer in frame.answers {
        if let Some(partition) = connection.by_handle.get(&answer.handle) {
            partition.handle_answer(context, answer);
        }
    }
    for data in frame.data {
        let handle = data.handle;
        if let Some(partition) = connection.by_handle.get(&handle) {
            partition.handle_data(context, data);
            touched.insert(handle);
        }
    }
    for progress in frame.progress {
        let handle = progress.handle;
        if let Some(partition) = connection.by_handle.get(&handle) {
            partition.handle_progress(context, progress);
            touched.insert(handle);
        }
    }
}

/// Partitions spread over the lanes by a hash that both process runs agree on.
fn lane_of(partition: TopicPartition, lanes: u32) -> u32 {
    let bits = partition.topic_id.0.as_u128();
    let folded = (bits ^ (bits >> 64)) & u128::from(u32::MAX);
    let hash = u32::try_from(folded).unwrap_or(0).wrapping_mul(31).wrapping_add(partition.partition.0.cast_unsigned());
    hash % lanes.max(1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
