//! The follower's end of replication: one task and one stream per leader and lane (`R56`), whatever the number of
//! partitions.
//!
//! A partition begins on its tail lane. Where the leader says so it goes over to the catch-up lane, a stream of its own
//! that is dialled when somebody needs it, and later back (`R62`).
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
use model::{BrokerEpoch, BrokerId, TopicPartition};
use replication::Lane;
use rpc::RpcError;
use rpc::net::STREAM_BYTES;
use rpc::replication::{FollowerFrame, FollowerSender, Hello, LeaderFrame, LeaderFrames, dial};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budget::Standing;
use crate::context::Context;
use crate::partition::{Partition, kind_of};

/// Frames taken in one wake-up before their acknowledgements are sent.
const FRAMES_A_TURN: usize = 16;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// A stream that stood for so long was of use: after its end, dial at once (`R63`).
const STEADY: Duration = Duration::from_secs(1);

/// How long the leader's end of a stream that is no longer needed is waited for.
const PARTING: Duration = Duration::from_secs(1);

/// How long to wait before a leader is dialled again: not at all at first, then ever longer (`R63`).
#[derive(Default)]
struct Redial {
    pause: Option<Duration>,
}

impl Redial {
    /// A stream stood for so long, and ended.
    fn stood(&mut self, time: Duration) {
        if time >= STEADY {
            self.pause = None;
        }
    }

    /// The pause before the next try; `None` where it is to be at once.
    fn next_pause(&mut self) -> Option<Duration> {
        let next = self.pause.map_or(FIRST_RETRY, |pause| (pause * 2).min(LAST_RETRY));
        self.pause.replace(next)
    }
}

/// All streams on which this broker follows.
#[derive(Debug, Default)]
pub(crate) struct FollowerStreams {
    streams: Mutex<BTreeMap<(BrokerId, u32), Arc<FollowerStream>>>,
    /// Counts up with each stream of this process (`R56`).
    stream_no: AtomicU64,
    /// Counts the opens of all streams: no two have the same handle.
    handles: AtomicU64,
}

/// One stream, connected or trying to be.
#[derive(Debug)]
pub(crate) struct FollowerStream {
    leader: BrokerId,
    /// Which of the streams to this leader.
    number: u32,
    lane: Lane,
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
    /// Sessions that are over.
    to_close: BTreeSet<u64>,
    stopped: bool,
}

/// Why there is no stream.
#[derive(thiserror::Error, Debug)]
enum NoStream {
    #[error("{0}")]
    NotYet(&'static str),
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl FollowerStreams {
    /// From now on `partition`, which was on `before` with its newest session `handle`, follows `leader` on its tail lane;
    /// opens a session as soon as the stream stands.
    pub(crate) fn assign(
        &self,
        context: &Arc<Context>,
        leader: BrokerId,
        partition: &Arc<Partition>,
        before: Option<Arc<FollowerStream>>,
        handle: Option<u64>,
    ) -> Arc<FollowerStream> {
        let number = number_of(context, partition.id(), Lane::Tail);
        if let Some(before) = before {
            if (before.leader, before.number) == (leader, number) {
                before.want_session(partition.id());
                return before;
            }
            self.unassign(&before, partition.id(), handle);
        }
        self.join(context, leader, Lane::Tail, partition)
    }

    /// The session of `partition` on `before`, named `handle`, is over: the next one is on a stream of that lane.
    pub(crate) fn move_to(
        &self,
        context: &Arc<Context>,
        lane: Lane,
        partition: &Arc<Partition>,
        before: &Arc<FollowerStream>,
        handle: Option<u64>,
    ) -> Arc<FollowerStream> {
        // First the new one: where both are the same, it does not end in between.
        let stream = self.join(context, before.leader, lane, partition);
        match handle {
            _ if !Arc::ptr_eq(&stream, before) => self.unassign(before, partition.id(), handle),
            Some(handle) => stream.close_session(partition.id(), handle),
            None => {}
        }
        stream
    }

    fn join(
        &self,
        context: &Arc<Context>,
        leader: BrokerId,
        lane: Lane,
        partition: &Arc<Partition>,
    ) -> Arc<FollowerStream> {
        let number = number_of(context, partition.id(), lane);
        let mut streams = lock(&self.streams);
        let start = || self.start(context, leader, number, lane);
        let stream = Arc::clone(streams.entry((leader, number)).or_insert_with(start));
        let mut work = lock(&stream.work);
        work.assigned.insert(partition.id(), Arc::clone(partition));
        work.to_open.insert(partition.id());
        drop(work);
        stream.wake.notify_one();
        stream
    }

    /// `partition` follows on `stream` no longer, where its newest session was `handle`. A stream without partitions ends.
    pub(crate) fn unassign(&self, stream: &Arc<FollowerStream>, partition: TopicPartition, handle: Option<u64>) {
        let mut streams = lock(&self.streams);
        let mut work = lock(&stream.work);
        work.assigned.remove(&partition);
        work.to_open.remove(&partition);
        work.to_ack.remove(&partition);
        work.to_close.extend(handle);
        if work.assigned.is_empty() {
            work.stopped = true;
            let key = (stream.leader, stream.number);
            if streams.get(&key).is_some_and(|current| Arc::ptr_eq(current, stream)) {
                streams.remove(&key);
            }
        }
        drop(work);
        stream.wake.notify_one();
    }

    /// Ends every stream, as the broker stops.
    pub(crate) fn stop(&self) {
        for stream in std::mem::take(&mut *lock(&self.streams)).into_values() {
            *lock(&stream.work) = Work { stopped: true, ..Work::default() };
            stream.wake.notify_one();
        }
    }

    fn start(&self, context: &Arc<Context>, leader: BrokerId, number: u32, lane: Lane) -> Arc<FollowerStream> {
        let stream = Arc::new(FollowerStream { leader, number, lane, work: Mutex::default(), wake: Notify::new() });
        let (task_context, running) = (Arc::clone(context), Arc::clone(&stream));
        let first_no = self.stream_no.fetch_add(1 << 32, Ordering::Relaxed) + (1 << 32);
        context.runtime.spawn(async move { running.run(task_context, first_no).await });
        stream
    }

    fn next_handle(&self) -> u64 {
        self.handles.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A connection's own state: which handle is which partition's newest session.
struct Connection {
    sender: FollowerSender,
    /// The leader's registration, as the hello meant it.
    leader_epoch: BrokerEpoch,
    by_handle: BTreeMap<u64, Arc<Partition>>,
    handles: BTreeMap<TopicPartition, u64>,
    /// What its windows can hold.
    _memory: Standing,
}

/// What partitions ask of their stream, with their lock held.
impl FollowerStream {
    /// A session of `partition` is wanted, or another one in the place of the one that ended.
    pub(crate) fn want_session(&self, partition: TopicPartition) {
        self.mark(partition, |work| work.to_open.insert(partition));
    }

    /// A session of `partition` is over: the leader is to hear of it.
    pub(crate) fn close_session(&self, partition: TopicPartition, handle: u64) {
        self.mark(partition, |work| work.to_close.insert(handle));
    }

    /// What `partition` may acknowledge has moved.
    pub(crate) fn ack_moved(&self, partition: TopicPartition) {
        self.mark(partition, |work| work.to_ack.insert(partition));
    }

    fn mark(&self, partition: TopicPartition, insert: impl FnOnce(&mut Work) -> bool) {
        let mut work = lock(&self.work);
        if work.assigned.contains_key(&partition) && insert(&mut work) {
            drop(work);
            self.wake.notify_one();
        }
    }
}

impl FollowerStream {
    /// Dials until told to stop. Stream numbers count up from `stream_no` by one a connection; streams of one process
    /// start 2^32 apart.
    async fn run(self: Arc<Self>, context: Arc<Context>, mut stream_no: u64) {
        let mut redial = Redial::default();
        while !self.is_stopped() {
            stream_no += 1;
            let dialled = Instant::now();
            match self.connect(&context, stream_no).await {
                Ok((mut connection, mut frames)) => {
                    self.serve(&context, &mut connection, &mut frames).await;
                    connection.lose_sessions(&context);
                    if self.is_stopped() {
                        drop(context);
                        return part(frames).await;
                    }
                    context.suspect(self.leader);
                    redial.stood(dialled.elapsed());
                }
                Err(reason) => {
                    tracing::debug!(leader = %self.leader, lane = ?self.lane, %reason, "cannot follow");
                    if let NoStream::Rpc(RpcError::Unavailable { .. }) = reason {
                        context.suspect(self.leader);
                    }
                }
            }
            if let Some(pause) = redial.next_pause() {
                // Dropping the wake-up is safe: the sets keep what it was for.
                let _ = tokio::time::timeout(context.jitter(pause), self.stop_notified()).await;
            }
        }
    }

    async fn stop_notified(&self) {
        while !self.is_stopped() {
            self.wake.notified().await;
        }
    }

    async fn connect(&self, context: &Context, stream_no: u64) -> Result<(Connection, LeaderFrames), NoStream> {
        let leader = context.internal_address(self.leader);
        let (address, leader_epoch) = leader.ok_or(NoStream::NotYet("the leader is not registered"))?;
        let own = context.registration();
        let (follower_epoch, cluster_id) = own.ok_or(NoStream::NotYet("this broker is not registered yet"))?;
        let hello = Hello {
            cluster_id,
            follower: context.config.broker_id,
            follower_incarnation: context.config.incarnation,
            follower_epoch,
            stream_no,
            leader: self.leader,
            leader_epoch,
            lane: self.number,
            kind: kind_of(self.lane),
        };
        let (sender, frames) = dial(&context.network, &address, hello).await?;
        let connection = Connection {
            sender,
            leader_epoch,
            by_handle: BTreeMap::new(),
            handles: BTreeMap::new(),
            _memory: context.budget.stand(STREAM_BYTES),
        };
        Ok((connection, frames))
    }

    async fn serve(&self, context: &Arc<Context>, connection: &mut Connection, frames: &mut LeaderFrames) {
        {
            let mut work = lock(&self.work);
            work.to_open = work.assigned.keys().copied().collect();
            work.to_close.clear();
        }
        if !self.send_work(context, connection, &BTreeSet::new()).await {
            return;
        }
        loop {
            // Both branches may be dropped: a notification leaves its work in the sets, and `next` reads whole frames.
            tokio::select! {
                () = self.wake.notified() => {
                    if self.is_stopped() || !self.send_work(context, connection, &BTreeSet::new()).await {
                        return;
                    }
                }
                frame = frames.next() => {
                    if !self.handle_frames(context, connection, frames, frame).await {
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
        first: Result<Option<LeaderFrame>, RpcError>,
    ) -> bool {
        let mut touched = BTreeSet::new();
        let mut next = Some(first);
        for turn in 1..=FRAMES_A_TURN {
            let Some(frame) = next.take() else { break };
            match frame {
                Ok(Some(frame)) if frame.hello.is_none_or(|epoch| epoch == connection.leader_epoch) => {
                    handle_frame(context, connection, frame, &mut touched);
                }
                // R5, R56: another incarnation than the one meant.
                Ok(Some(_)) => {
                    tracing::warn!(leader = %self.leader, "another incarnation of the leader answered");
                    return false;
                }
                Ok(None) => return false,
                Err(error) => {
                    tracing::info!(leader = %self.leader, lane = ?self.lane, %error, "the replication stream broke");
                    return false;
                }
            }
            if turn < FRAMES_A_TURN {
                next = frames.next().now_or_never();
            }
        }
        self.send_work(context, connection, &touched).await
    }

    /// Sends opens, acknowledgements and closes, where there are any. False where the stream is over.
    async fn send_work(&self, context: &Arc<Context>, connection: &mut Connection, touched: &BTreeSet<u64>) -> bool {
        let (to_open, to_ack, to_close) = {
            let mut work = lock(&self.work);
            let to_open: Vec<Arc<Partition>> =
                std::mem::take(&mut work.to_open).iter().filter_map(|id| work.assigned.get(id).cloned()).collect();
            (to_open, std::mem::take(&mut work.to_ack), std::mem::take(&mut work.to_close))
        };
        let mut frame = FollowerFrame::default();
        for handle in to_close {
            if let Some(partition) = connection.by_handle.remove(&handle) {
                if connection.handles.get(&partition.id()) == Some(&handle) {
                    connection.handles.remove(&partition.id());
                }
                frame.closes.push(handle);
            }
        }
        let moved = to_ack.iter().filter_map(|id| connection.handles.get(id));
        let handles: BTreeSet<u64> = touched.iter().chain(moved).copied().collect();
        for handle in handles {
            frame.acks.extend(connection.by_handle.get(&handle).and_then(|partition| partition.next_ack(handle)));
        }
        for partition in to_open {
            let handle = context.follower_streams.next_handle();
            let Some(open) = partition.open_session(context, handle) else { continue };
            if let Some(old) = connection.handles.insert(partition.id(), handle) {
                connection.by_handle.remove(&old);
            }
            connection.by_handle.insert(handle, partition);
            frame.opens.push(open);
        }
        frame == FollowerFrame::default() || connection.sender.send(frame).await
    }

    fn is_stopped(&self) -> bool {
        lock(&self.work).stopped
    }
}

impl Connection {
    /// The connection is gone: no session of it counts any more.
    fn lose_sessions(self, context: &Arc<Context>) {
        for (handle, partition) in self.by_handle {
            partition.session_lost(context, handle);
        }
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

/// The end of a stream that is no longer needed. It is read up to there, so that the leader sees it end and not break.
async fn part(mut frames: LeaderFrames) {
    let end = async { while let Ok(Some(_)) = frames.next().await {} };
    // A leader that does not answer hears of the connection's end.
    let _ = tokio::time::timeout(PARTING, end).await;
}

/// The number of a partition's stream: those of the tail count from 0, the one for catching up comes after them (`R56`).
fn number_of(context: &Context, partition: TopicPartition, lane: Lane) -> u32 {
    let fetchers = context.config.num_replica_fetchers.max(1);
    match lane {
        Lane::Tail => fetcher_of(partition, fetchers),
        Lane::CatchUp => fetchers,
    }
}

/// Partitions spread over the tail's streams by a hash that both process runs agree on.
fn fetcher_of(partition: TopicPartition, fetchers: u32) -> u32 {
    let bits = partition.topic_id.0.as_u128();
    let folded = (bits ^ (bits >> 64)) & u128::from(u32::MAX);
    let hash = u32::try_from(folded).unwrap_or(0).wrapping_mul(31).wrapping_add(partition.partition.0.cast_unsigned());
    hash % fetchers
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_dialled_at_once_and_then_after_ever_longer_pauses() {
        // R63
        let mut redial = Redial::default();
        let pauses = |redial: &mut Redial| [(); 9].map(|()| redial.next_pause().map(|pause| pause.as_millis()));
        let growing = [None, Some(20), Some(40), Some(80), Some(160), Some(320), Some(640), Some(1000), Some(1000)];
        assert_eq!(pauses(&mut redial), growing);
        // One that ends again and again is no reason to dial again and again.
        redial.stood(STEADY - Duration::from_millis(1));
        assert_eq!(redial.next_pause(), Some(LAST_RETRY));
        redial.stood(STEADY);
        assert_eq!(pauses(&mut redial), growing);
    }
}
