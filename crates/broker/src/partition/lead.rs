//! The leader's end of sessions: opens, acknowledgements, what to send next (`R56` to `R62`).

use std::sync::Arc;

use bytes::Bytes;
use model::{BatchHeader, BrokerId, ErrorCode, LeaderEpoch, Offset};
use replication::{Ack, Answer, Lane, Open, Room, SendPlan, Session};
use rpc::replication as wire;
use storage::{ColdRead, LogError, Read};

use super::{Inner, Link, Partition, SHORTAGE_PAUSE, kind_of};
use crate::context::Context;
use crate::leader_streams::LeaderStream;

/// What came of an open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    /// The answer is on the stream's list, or there is to be none.
    Done,
    /// Wait for metadata, then ask again.
    Park,
}

/// What a partition has for a follower's stream.
#[derive(Debug)]
pub(crate) enum NextData {
    /// Nothing.
    Nothing,
    /// Records.
    Data(wire::Data),
    /// Records that must be read from disk first.
    Cold(Box<ColdData>),
}

/// Records for a follower that have to be read from disk, without the lock.
#[derive(Debug)]
pub(crate) struct ColdData {
    partition: Arc<Partition>,
    stream: Arc<LeaderStream>,
    turn: Turn,
    read: ColdRead,
}

/// One partition's turn in a message.
#[derive(Clone, Copy, Debug)]
struct Turn {
    follower: BrokerId,
    plan: SendPlan,
    space: Space,
}

/// What a message may still take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// Bytes that it has room for.
    pub(crate) message: usize,
    /// It is empty so far: one batch goes in whatever its size, if the windows allow it.
    pub(crate) first: bool,
    /// What its stream's window has room for.
    pub(crate) window: Room,
}

impl Partition {
    /// A follower opens a session on `stream` (`R57`). The answer is put on the stream's list under this lock: no data of
    /// the session can come before it.
    pub(crate) fn handle_open(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        open: wire::Open,
    ) -> Opening {
        self.handle(context, |inner, now| {
            if inner.failed.is_some() {
                stream.refuse(open.handle, open.open_no, ErrorCode::KafkaStorageError);
                return Opening::Done;
            }
            let request = Open {
                open_no: open.open_no,
                leader_epoch: open.leader_epoch,
                log_end: open.log_end,
                last_epoch: open.last_epoch,
                log_start: open.log_start,
                durable: open.durable,
            };
            let session = session_of(stream, open.open_no);
            match inner.replica.handle_open(stream.follower, session, request, now) {
                replication::OpenVerdict::Park => return Opening::Park,
                replication::OpenVerdict::Ignore => {}
                replication::OpenVerdict::Answer(answer) => {
                    match answer {
                        Answer::Opened { .. } => inner.link(stream, open.handle, open.open_no),
                        // Nobody is asked to open there.
                        Answer::Moved(_) => {}
                        // The session is the greatest, but not current: the one before is void.
                        Answer::Diverging { .. } | Answer::OutOfRange { .. } => inner.unlink(stream.follower),
                        Answer::Refused(_) => {}
                    }
                    let answer = answer_to_wire(answer);
                    stream.push_answer(wire::OpenAnswer { handle: open.handle, open_no: open.open_no, answer });
                    // R62: back on its tail lane at once, if there is nothing to read from disk any more.
                    if stream.lane == Some(Lane::CatchUp) && inner.log.is_in_memory(open.log_end) {
                        inner.replica.handle_next_records(stream.follower, Lane::CatchUp, true, now);
                    }
                }
            }
            Opening::Done
        })
    }

    /// A follower acknowledges (`R59`).
    ///
    /// # Errors
    /// Why the stream must be closed.
    pub(crate) fn handle_ack(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        ack: wire::Ack,
    ) -> Result<(), String> {
        self.handle(context, |inner, now| {
            let session = session_of(stream, ack.open_no);
            let wire::Ack { open_no, log_end, log_start, durable, .. } = ack;
            let ack = Ack { open_no, log_end, log_start, durable };
            inner.replica.handle_ack(stream.follower, session, ack, now).map_err(|error| error.to_string())?;
            // The window has room again, whether it was full or only too full for the next batch.
            self.queue_ready(inner, stream.follower);
            Ok(())
        })
    }

    /// The follower ended the session that it named `handle`.
    pub(crate) fn follower_session_closed(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        handle: u64,
    ) {
        self.handle(context, |inner, now| {
            let closed = |link: &Link| Arc::ptr_eq(&link.stream, stream) && link.handle == handle;
            let Some(at) = inner.links.iter().position(closed) else { return };
            let session = session_of(stream, inner.links.swap_remove(at).open_no);
            inner.replica.handle_session_closed(stream.follower, session, now);
        });
    }

    /// The stream is gone: nothing still in it counts (`R56`).
    pub(crate) fn follower_stream_closed(self: &Arc<Self>, context: &Arc<Context>, stream: &Arc<LeaderStream>) {
        self.handle(context, |inner, now| {
            inner.links.retain(|link| !Arc::ptr_eq(&link.stream, stream));
            inner.replica.handle_stream_closed(stream.follower, stream.follower_epoch, stream.stream_no, now);
        });
    }

    /// Whether a follower is in the committed ISR.
    pub(crate) fn is_in_sync(&self, follower: BrokerId) -> bool {
        self.lock().replica.isr().contains(&follower)
    }

    /// The next records for `stream`'s follower, as many as fit into `space`.
    pub(crate) fn next_data(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        space: Space,
    ) -> NextData {
        let mut inner = self.lock();
        let Some(link) = inner.links.iter_mut().find(|link| Arc::ptr_eq(&link.stream, stream)) else {
            return NextData::Nothing;
        };
        link.queued_data = false;
        let Some(plan) = inner.replica.next_send(stream.follower) else {
            // It was listed while a frame with older watermarks was being read: then nothing carries the new ones (`R60`).
            self.queue_progress(&mut inner, stream.follower);
            return NextData::Nothing;
        };
        let turn = Turn { follower: stream.follower, plan, space };
        match inner.log.read_memory(plan.prev_offset, plan.leader_log_end, turn.max_bytes(), turn.min_one()) {
            Ok(Some(batches)) => self.sent(context, &mut inner, stream, &turn, batches),
            Ok(None) => self.next_on_disk(context, &mut inner, stream, turn),
            Err(error) => self.cannot_read(context, &mut inner, &turn, &error),
        }
    }

    /// What is next is on disk: that is the catch-up lane's business (`R62`).
    fn next_on_disk(
        self: &Arc<Self>,
        context: &Arc<Context>,
        inner: &mut Inner,
        stream: &Arc<LeaderStream>,
        turn: Turn,
    ) -> NextData {
        let now = context.clock.monotonic();
        if stream.lane.is_some_and(|lane| inner.replica.handle_next_records(turn.follower, lane, false, now)) {
            self.carry_out(context, inner);
            return NextData::Nothing;
        }
        let (from, upto) = (turn.plan.prev_offset, turn.plan.leader_log_end);
        match inner.log.read(from, upto, turn.max_bytes(), turn.min_one()) {
            Ok(Read::Memory(batches)) => self.sent(context, inner, stream, &turn, batches),
            Ok(Read::Cold(read)) => {
                let (partition, stream) = (Arc::clone(self), Arc::clone(stream));
                NextData::Cold(Box::new(ColdData { partition, stream, turn, read }))
            }
            Err(error) => self.cannot_read(context, inner, &turn, &error),
        }
    }

    fn cannot_read(
        self: &Arc<Self>,
        context: &Arc<Context>,
        inner: &mut Inner,
        turn: &Turn,
        error: &LogError,
    ) -> NextData {
        self.log_failed(context, inner, error);
        if error.is_shortage() {
            // Not at once: files have to be closed first.
            let (partition, follower) = (Arc::clone(self), turn.follower);
            context.runtime.spawn(async move {
                tokio::time::sleep(SHORTAGE_PAUSE).await;
                partition.queue_ready(&mut partition.lock(), follower);
            });
        }
        self.carry_out(context, inner);
        NextData::Nothing
    }

    /// Notes that a frame is on its way, and makes it; whoever has more goes back on the list, or to its other lane.
    fn sent(
        self: &Arc<Self>,
        context: &Arc<Context>,
        inner: &mut Inner,
        stream: &Arc<LeaderStream>,
        turn: &Turn,
        batches: Vec<Bytes>,
    ) -> NextData {
        let Turn { follower, plan, .. } = turn;
        let bytes = u64::try_from(batches.iter().map(Bytes::len).sum::<usize>()).unwrap_or(u64::MAX);
        let Some((end, last_epoch)) = last_of(&batches).filter(|_| turn.fits(bytes)) else {
            self.too_large(inner, stream, turn, bytes);
            return NextData::Nothing;
        };
        let Some(link) = inner.links.iter().find(|link| Arc::ptr_eq(&link.stream, stream)) else {
            return NextData::Nothing;
        };
        let (handle, open_no) = (link.handle, link.open_no);
        inner.replica.handle_sent(*follower, plan, end, last_epoch, bytes);
        let now = context.clock.monotonic();
        let caught_up = stream.lane == Some(Lane::CatchUp) && inner.log.is_in_memory(end);
        if caught_up && inner.replica.handle_next_records(*follower, Lane::CatchUp, true, now) {
            // The answer that says so comes after this frame on the stream.
            self.carry_out(context, inner);
        } else {
            inner.note_in_flight();
            self.queue_ready(inner, *follower);
        }
        NextData::Data(wire::Data {
            handle,
            open_no,
            prev_offset: plan.prev_offset,
            prev_epoch: plan.prev_epoch,
            high_watermark: plan.high_watermark,
            log_start: plan.log_start,
            leader_log_end: plan.leader_log_end,
            batches,
        })
    }

    /// The next batch is too large: for what is left of the message, then it is the first of another one; for what is left
    /// of the stream's window, then nothing goes there before an acknowledgement; or for what is left of the session's,
    /// then an acknowledgement of its own makes room.
    fn too_large(self: &Arc<Self>, inner: &mut Inner, stream: &Arc<LeaderStream>, turn: &Turn, bytes: u64) {
        let Space { message, first, window } = turn.space;
        let message_is_full = !first && message < turn.window();
        let window_is_full = !window.at_least_one && (bytes > window.bytes || window.bytes < turn.plan.max_bytes);
        if window_is_full && !message_is_full {
            stream.too_large(window);
        }
        if message_is_full || window_is_full {
            self.queue_ready(inner, turn.follower);
        }
    }

    /// Puts this partition on the ready list of the follower's stream, where it has data and is not there yet.
    fn queue_ready(self: &Arc<Self>, inner: &mut Inner, follower: BrokerId) {
        let Some(link) = inner.links.iter_mut().find(|link| link.follower == follower && !link.queued_data) else {
            return;
        };
        if inner.replica.next_send(follower).is_some() {
            link.queued_data = true;
            link.stream.push_ready(Arc::clone(self));
        }
    }

    /// As `queue_ready`; where there is no data, the watermarks may have moved.
    pub(super) fn queue_data(self: &Arc<Self>, inner: &mut Inner, follower: BrokerId) {
        self.queue_ready(inner, follower);
        if inner.links.iter().any(|link| link.follower == follower && !link.queued_data) {
            self.queue_progress(inner, follower);
        }
    }

    /// Puts this partition on the list of those whose watermarks, or mode, the follower has not been told.
    pub(super) fn queue_progress(self: &Arc<Self>, inner: &mut Inner, follower: BrokerId) {
        let waits = |link: &&mut Link| link.follower == follower && !link.queued_progress;
        if let Some(link) = inner.links.iter_mut().find(waits) {
            link.queued_progress = true;
            link.stream.push_moved(Arc::clone(self));
        }
    }

    /// The watermarks, where no data carried them (`R60`).
    pub(crate) fn next_progress(&self, stream: &Arc<LeaderStream>) -> Option<wire::Progress> {
        let mut inner = self.lock();
        let link = inner.links.iter_mut().find(|link| Arc::ptr_eq(&link.stream, stream))?;
        link.queued_progress = false;
        let handle = link.handle;
        let progress = inner.replica.next_progress(stream.follower)?;
        Some(wire::Progress {
            handle,
            open_no: progress.session.open_no,
            high_watermark: progress.high_watermark,
            log_start: progress.log_start,
            sync_before_ack: progress.sync_before_ack,
        })
    }
}

impl Turn {
    /// Bytes that the windows of session and stream have room for.
    fn window(&self) -> usize {
        usize::try_from(self.plan.max_bytes.min(self.space.window.bytes)).unwrap_or(usize::MAX)
    }

    fn max_bytes(&self) -> usize {
        self.window().min(self.space.message)
    }

    /// One batch is looked at whatever its size.
    fn min_one(&self) -> bool {
        self.space.first || self.plan.at_least_one
    }

    /// R62: at least one batch, of a session and of a stream that have nothing in flight.
    fn fits(&self, bytes: u64) -> bool {
        let Room { bytes: left, at_least_one, .. } = self.space.window;
        (self.plan.at_least_one || bytes <= self.plan.max_bytes) && (at_least_one || bytes <= left)
    }
}

impl ColdData {
    /// Reads on the disk pool, then sends if the session still stands where it stood.
    pub(crate) async fn read(self: Box<Self>, context: &Arc<Context>) -> NextData {
        let ColdData { partition, stream, turn, read } = *self;
        let batches = match context.disk_pool.run(move || read.run()).await {
            Ok(bytes) if bytes.is_empty() => Vec::new(),
            Ok(bytes) => vec![bytes],
            Err(error) => {
                let damaged = matches!(error, LogError::Corrupt { .. });
                partition.read_failed(context, turn.plan.prev_offset, error).await;
                if !damaged {
                    partition.queue_ready(&mut partition.lock(), turn.follower);
                }
                // What is damaged is asked for again when there is more: at once would be for ever.
                return NextData::Nothing;
            }
        };
        let mut inner = partition.lock();
        let plan = &turn.plan;
        let unchanged = inner.replica.next_send(turn.follower).is_some_and(|now| {
            (now.session, now.prev_offset, now.prev_epoch) == (plan.session, plan.prev_offset, plan.prev_epoch)
        });
        match unchanged {
            true => partition.sent(context, &mut inner, &stream, &turn, batches),
            false => NextData::Nothing,
        }
    }
}

impl Inner {
    /// The newest session of a follower replaces its link. On the same stream it keeps its places in the stream's lists.
    fn link(&mut self, stream: &Arc<LeaderStream>, handle: u64, open_no: u64) {
        if let Some(link) = self.links.iter_mut().find(|link| Arc::ptr_eq(&link.stream, stream)) {
            (link.handle, link.open_no) = (handle, open_no);
            return;
        }
        self.unlink(stream.follower);
        self.links.push(Link {
            follower: stream.follower,
            stream: Arc::clone(stream),
            handle,
            open_no,
            in_flight: 0,
            queued_data: false,
            queued_progress: false,
        });
    }

    fn unlink(&mut self, follower: BrokerId) {
        self.links.retain(|link| link.follower != follower);
    }

    /// Each stream's window counts what the core says is in flight of this partition's session on it.
    pub(super) fn note_in_flight(&mut self) {
        for link in &mut self.links {
            link.set_in_flight(self.replica.in_flight(link.follower));
        }
    }
}

impl Link {
    fn set_in_flight(&mut self, bytes: u64) {
        let before = std::mem::replace(&mut self.in_flight, bytes);
        if before != bytes {
            self.stream.in_flight_changed(before, bytes);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.set_in_flight(0);
    }
}

fn session_of(stream: &LeaderStream, open_no: u64) -> Session {
    Session { broker_epoch: stream.follower_epoch, open_no, stream_no: stream.stream_no }
}

fn answer_to_wire(answer: Answer) -> wire::Answer {
    match answer {
        Answer::Opened { high_watermark, log_start, log_end, sync_before_ack } => {
            wire::Answer::Opened { high_watermark, log_start, log_end, sync_before_ack }
        }
        Answer::Diverging { epoch, end } => wire::Answer::Diverging { epoch, end },
        Answer::OutOfRange { log_start, log_end } => wire::Answer::OutOfRange { log_start, log_end },
        Answer::Refused(error) => wire::Answer::Refused(error.code()),
        Answer::Moved(to) => wire::Answer::Moved(kind_of(to)),
    }
}

/// The end and the epoch of the last batch in chunks of whole batches.
pub(super) fn last_of(chunks: &[Bytes]) -> Option<(Offset, LeaderEpoch)> {
    let mut rest = chunks.last()?.as_ref();
    let mut last = None;
    while let Some(header) = BatchHeader::read(rest) {
        last = Some((header.next_offset(), header.leader_epoch));
        rest = rest.get(header.size..).unwrap_or_default();
    }
    last
}
