//! The leader's end of sessions: opens, acknowledgements, what to send next (`R56` to `R62`).

use std::sync::Arc;

use bytes::Bytes;
use model::{BatchHeader, BrokerId, LeaderEpoch, Offset};
use replication::{Ack, Answer, Open, SendPlan, Session};
use rpc::replication as wire;
use storage::{ColdRead, Read};

use super::{Inner, Link, Partition};
use crate::context::Context;
use crate::leader_streams::LeaderStream;

/// The leader's answer to an open.
#[derive(Debug)]
pub(crate) enum OpenVerdict {
    /// Send this.
    Answer(wire::Answer),
    /// Wait for metadata, then ask again.
    Park,
    /// Send nothing.
    Ignore,
}

/// What a partition has for a follower's stream.
#[derive(Debug)]
pub(crate) enum NextData {
    /// Nothing.
    Nothing,
    /// Records, and whether there are more.
    Data { data: wire::Data, more: bool },
    /// Records that must be read from disk first.
    Cold(Box<ColdData>),
}

/// Records for a follower that have to be read from disk, without the lock.
#[derive(Debug)]
pub(crate) struct ColdData {
    partition: Arc<Partition>,
    follower: BrokerId,
    plan: SendPlan,
    read: ColdRead,
}

impl Partition {
    /// A follower opens a session on `stream` (`R57`).
    pub(crate) fn handle_open(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        open: wire::Open,
    ) -> OpenVerdict {
        self.handle(context, |inner, now| {
            let request = Open {
                open_no: open.open_no,
                leader_epoch: open.leader_epoch,
                log_end: open.log_end,
                last_epoch: open.last_epoch,
                log_start: open.log_start,
            };
            let session = session_of(stream, open.open_no);
            match inner.replica.handle_open(stream.follower, session, request, now) {
                replication::OpenVerdict::Park => OpenVerdict::Park,
                replication::OpenVerdict::Ignore => OpenVerdict::Ignore,
                replication::OpenVerdict::Answer(answer) => {
                    if matches!(answer, Answer::Opened { .. }) {
                        inner.link(stream, open.handle, open.open_no);
                    }
                    OpenVerdict::Answer(answer_to_wire(answer))
                }
            }
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
            let ack = Ack { open_no: ack.open_no, log_end: ack.log_end, log_start: ack.log_start };
            inner.replica.handle_ack(stream.follower, session, ack, now).map_err(|error| error.to_string())
        })
    }

    /// The stream is gone: nothing still in it counts (`R56`).
    pub(crate) fn follower_stream_closed(self: &Arc<Self>, context: &Arc<Context>, stream: &Arc<LeaderStream>) {
        self.handle(context, |inner, now| {
            inner.links.retain(|link| !Arc::ptr_eq(&link.stream, stream));
            inner.replica.handle_stream_closed(stream.follower, stream.follower_epoch, stream.stream_no, now);
        });
    }

    /// The next records for `stream`'s follower, of at most `budget` bytes but for one larger batch.
    pub(crate) fn next_data(
        self: &Arc<Self>,
        context: &Arc<Context>,
        stream: &Arc<LeaderStream>,
        budget: usize,
    ) -> NextData {
        let mut inner = self.lock();
        let Some(link) = inner.links.iter_mut().find(|link| Arc::ptr_eq(&link.stream, stream)) else {
            return NextData::Nothing;
        };
        link.queued_data = false;
        let Some(plan) = inner.replica.next_send(stream.follower) else { return NextData::Nothing };
        let max_bytes = usize::try_from(plan.max_bytes).unwrap_or(usize::MAX).min(budget);
        match inner.log.read(plan.prev_offset, plan.leader_log_end, max_bytes, plan.at_least_one) {
            Ok(Read::Memory(batches)) => self.sent(&mut inner, stream.follower, &plan, batches),
            Ok(Read::Cold(read)) => NextData::Cold(Box::new(ColdData {
                partition: Arc::clone(self),
                follower: stream.follower,
                plan,
                read,
            })),
            Err(error) => {
                self.log_failed(context, &mut inner, &error);
                NextData::Nothing
            }
        }
    }

    /// Notes that a frame is on its way, and makes it.
    fn sent(&self, inner: &mut Inner, follower: BrokerId, plan: &SendPlan, batches: Vec<Bytes>) -> NextData {
        let Some((end, last_epoch)) = last_of(&batches) else { return NextData::Nothing };
        let Some(link) = inner.links.iter().find(|link| link.follower == follower) else { return NextData::Nothing };
        let (handle, open_no) = (link.handle, link.open_no);
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        inner.replica.handle_sent(follower, plan, end, last_epoch, u64::try_from(bytes).unwrap_or(u64::MAX));
        let data = wire::Data {
            handle,
            open_no,
            prev_offset: plan.prev_offset,
            prev_epoch: plan.prev_epoch,
            high_watermark: plan.high_watermark,
            log_start: plan.log_start,
            leader_log_end: plan.leader_log_end,
            batches,
        };
        NextData::Data { data, more: inner.replica.next_send(follower).is_some() }
    }

    /// There is more for `stream` than one turn took.
    pub(crate) fn requeue(self: &Arc<Self>, stream: &Arc<LeaderStream>) {
        let mut inner = self.lock();
        self.queue_data(&mut inner, stream.follower);
    }

    /// Puts this partition on the ready list of the follower's stream, and on its progress list, each at most once.
    pub(super) fn queue_data(self: &Arc<Self>, inner: &mut Inner, follower: BrokerId) {
        let has_data = inner.replica.next_send(follower).is_some();
        let Some(link) = inner.links.iter_mut().find(|link| link.follower == follower) else { return };
        if has_data && !link.queued_data {
            link.queued_data = true;
            link.stream.push_ready(Arc::clone(self));
        } else if !has_data && !link.queued_progress {
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

impl ColdData {
    /// Reads on the disk pool, then sends if the session still stands where it stood.
    pub(crate) async fn read(self: Box<Self>, context: &Arc<Context>) -> NextData {
        let ColdData { partition, follower, plan, read } = *self;
        let batches = context.disk_pool.run(move || read.run()).await;
        let mut inner = partition.lock();
        let batches = match batches {
            Ok(bytes) if bytes.is_empty() => return NextData::Nothing,
            Ok(bytes) => vec![bytes],
            Err(error) => {
                partition.log_failed(context, &mut inner, &error);
                return NextData::Nothing;
            }
        };
        let current = inner.replica.next_send(follower);
        let unchanged = current.is_some_and(|now| {
            (now.session, now.prev_offset, now.prev_epoch) == (plan.session, plan.prev_offset, plan.prev_epoch)
        });
        if unchanged { partition.sent(&mut inner, follower, &plan, batches) } else { NextData::Nothing }
    }
}

impl Inner {
    /// The newest session of a follower replaces its link.
    fn link(&mut self, stream: &Arc<LeaderStream>, handle: u64, open_no: u64) {
        self.links.retain(|link| link.follower != stream.follower);
        self.links.push(Link {
            follower: stream.follower,
            stream: Arc::clone(stream),
            handle,
            open_no,
            queued_data: false,
            queued_progress: false,
        });
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
fn last_of(chunks: &[Bytes]) -> Option<(Offset, LeaderEpoch)> {
    let mut rest = chunks.last()?.as_ref();
    let mut last = None;
    while let Some(header) = BatchHeader::read(rest) {
        last = Some((header.next_offset(), header.leader_epoch));
        rest = rest.get(header.size..).unwrap_or_default();
    }
    last
}
