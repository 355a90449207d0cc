//! The leader's end of sessions: opens, acknowledgements, what to send next (`R56` to `R62`).

use std::sync::Arc;

use bytes::Bytes;
use model::{BatchHeader, BrokerId, ErrorCode, LeaderEpoch, Offset};
use replication::{Ack, Answer, Open, SendPlan, Session};
use rpc::replication as wire;
use storage::{ColdRead, Read};

use super::{Inner, Link, Partition};
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
    turn: Turn,
    read: ColdRead,
}

/// One partition's turn in a message.
#[derive(Clone, Copy, Debug)]
struct Turn {
    follower: BrokerId,
    plan: SendPlan,
    /// Bytes that the message had room for.
    room: usize,
    /// The message was empty.
    first: bool,
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
                        // The session is the greatest, but not current: the one before is void.
                        Answer::Diverging { .. } | Answer::OutOfRange { .. } => inner.unlink(stream.follower),
                        Answer::Refused(_) => {}
                    }
                    let answer = answer_to_wire(answer);
                    stream.push_answer(wire::OpenAnswer { handle: open.handle, open_no: open.open_no, answer });
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

    /// The next records for `stream`'s follower: of at most `room` bytes, but for one larger batch where the message is
    /// empty so far (`first`).
    pub(crate) fn next_data(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        room: usize,
        first: bool,
    ) -> NextData {
        let mut inner = self.lock();
        let Some(link) = inner.links.iter_mut().find(|link| Arc::ptr_eq(&link.stream, stream)) else {
            return NextData::Nothing;
        };
        link.queued_data = false;
        let Some(plan) = inner.replica.next_send(stream.follower) else { return NextData::Nothing };
        let turn = Turn { follower: stream.follower, plan, room, first };
        match inner.log.read(plan.prev_offset, plan.leader_log_end, turn.max_bytes(), first || plan.at_least_one) {
            Ok(Read::Memory(batches)) => self.sent(&mut inner, &turn, batches),
            Ok(Read::Cold(read)) => NextData::Cold(Box::new(ColdData { partition: Arc::clone(self), turn, read })),
            Err(error) => {
                self.log_failed(context, &mut inner, &error);
                self.carry_out(context, &mut inner);
                NextData::Nothing
            }
        }
    }

    /// Notes that a frame is on its way, and makes it; whoever has more goes back on the list.
    fn sent(self: &Arc<Self>, inner: &mut Inner, turn: &Turn, batches: Vec<Bytes>) -> NextData {
        let Turn { follower, plan, .. } = turn;
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        let found = last_of(&batches);
        let fits = plan.at_least_one || bytes <= turn.window();
        let (Some((end, last_epoch)), true) = (found, fits) else {
            // The next batch is too large: for what is left of the message, then it is the first of another one; or for
            // what is left of the window, then an acknowledgement makes room.
            if !turn.first && turn.room < turn.window() {
                self.queue_ready(inner, *follower);
            }
            return NextData::Nothing;
        };
        let Some(link) = inner.links.iter().find(|link| link.follower == *follower) else { return NextData::Nothing };
        let (handle, open_no) = (link.handle, link.open_no);
        inner.replica.handle_sent(*follower, plan, end, last_epoch, u64::try_from(bytes).unwrap_or(u64::MAX));
        self.queue_ready(inner, *follower);
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
        let waits = |link: &&mut Link| link.follower == follower && !link.queued_data && !link.queued_progress;
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
        })
    }
}

impl Turn {
    /// Bytes that the session's window has room for.
    fn window(&self) -> usize {
        usize::try_from(self.plan.max_bytes).unwrap_or(usize::MAX)
    }

    fn max_bytes(&self) -> usize {
        self.window().min(self.room)
    }
}

impl ColdData {
    /// Reads on the disk pool, then sends if the session still stands where it stood.
    pub(crate) async fn read(self: Box<Self>, context: &Arc<Context>) -> NextData {
        let ColdData { partition, turn, read } = *self;
        let batches = match context.disk_pool.run(move || read.run()).await {
            Ok(bytes) if bytes.is_empty() => Vec::new(),
            Ok(bytes) => vec![bytes],
            Err(error) => {
                partition.read_failed(context, turn.plan.prev_offset, error).await;
                partition.queue_ready(&mut partition.lock(), turn.follower);
                return NextData::Nothing;
            }
        };
        let mut inner = partition.lock();
        let plan = &turn.plan;
        let unchanged = inner.replica.next_send(turn.follower).is_some_and(|now| {
            (now.session, now.prev_offset, now.prev_epoch) == (plan.session, plan.prev_offset, plan.prev_epoch)
        });
        if unchanged { partition.sent(&mut inner, &turn, batches) } else { NextData::Nothing }
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
            queued_data: false,
            queued_progress: false,
        });
    }

    fn unlink(&mut self, follower: BrokerId) {
        self.links.retain(|link| link.follower != follower);
    }
}

fn session_of(stream: &LeaderStream, open_no: u64) -> Session {
    Session { broker_epoch: stream.follower_epoch, open_no, stream_no: stream.stream_no }
}

fn answer_to_wire(answer: Answer) -> wire::Answer {
    match answer {
        Answer::Opened { high_watermark, log_start, log_end } => {
            wire::Answer::Opened { high_watermark, log_start, log_end }
        }
        Answer::Diverging { epoch, end } => wire::Answer::Diverging { epoch, end },
        Answer::OutOfRange { log_start, log_end } => wire::Answer::OutOfRange { log_start, log_end },
        Answer::Refused(error) => wire::Answer::Refused(error.code()),
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
