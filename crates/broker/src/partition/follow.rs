//! The follower's end of a session: open, answers, data, acknowledgements (`R57` to `R60`).

use std::sync::Arc;

use model::{ErrorCode, RecordBatch, Time};
use replication::{Answer, BatchInfo, DataHeader, DataVerdict, Lane};
use rpc::replication as wire;
use storage::{Log, LogError};

use super::{Inner, Partition};
use crate::context::Context;

/// How long a follower whose disk is full, or whose process has too many files open, waits before it asks for records again.
const SHORTAGE_PAUSE_MS: u64 = 1000;

impl Partition {
    /// The open to send on a stream that stands, if a session is wanted and may be opened now; `handle` names it there.
    pub(crate) fn open_session(self: &Arc<Self>, context: &Arc<Context>, handle: u64) -> Option<wire::Open> {
        // Where the log has to be synced first (R59), the core asks for that instead.
        let open = self.handle(context, |inner, now| {
            if inner.dir.health().refuses(inner.settings.log.may_use_reserve) {
                // It could take nothing; and a replica without a session is not proposed into the ISR.
                inner.reopen_at = Some(now + SHORTAGE_PAUSE_MS);
                return None;
            }
            let open = inner.replica.open_request()?;
            inner.handle = Some((handle, open.open_no));
            Some(open)
        })?;
        Some(wire::Open {
            handle,
            partition: self.id,
            leader_epoch: open.leader_epoch,
            open_no: open.open_no,
            log_end: open.log_end,
            last_epoch: open.last_epoch,
            log_start: open.log_start,
            durable: open.durable,
        })
    }

    /// The leader answered an open.
    pub(crate) fn handle_answer(self: &Arc<Self>, context: &Arc<Context>, answer: wire::OpenAnswer) {
        self.handle(context, |inner, now| {
            let opened = match answer.answer {
                wire::Answer::Opened { high_watermark, log_start, log_end, sync_before_ack } => {
                    let end = inner.log.log_end();
                    inner.append_times.opened(end, log_end);
                    Answer::Opened { high_watermark, log_start, log_end, sync_before_ack }
                }
                wire::Answer::Diverging { epoch, end } => Answer::Diverging { epoch, end },
                wire::Answer::OutOfRange { log_start, log_end } => Answer::OutOfRange { log_start, log_end },
                wire::Answer::Refused(code) => Answer::Refused(ErrorCode::from_code(code)),
                wire::Answer::Moved(wire::LaneKind::CatchUp) => Answer::Moved(Lane::CatchUp),
                wire::Answer::Moved(wire::LaneKind::Tail | wire::LaneKind::Mixed) => Answer::Moved(Lane::Tail),
            };
            inner.replica.handle_answer(answer.open_no, opened, now);
        });
    }

    /// Records came (`R58`): checks them, appends them, and leaves the acknowledgement to [`next_ack`](Self::next_ack).
    pub(crate) fn handle_data(self: &Arc<Self>, context: &Arc<Context>, data: wire::Data) {
        let open_no = data.open_no;
        // CRC and framing, before the lock.
        let checked: Result<Vec<Vec<RecordBatch>>, _> =
            data.batches.iter().map(|chunk| RecordBatch::split_all(chunk.clone())).collect();
        let batches: Vec<RecordBatch> = match checked {
            Ok(batches) => batches.into_iter().flatten().collect(),
            Err(error) => {
                tracing::warn!(partition = %self.id, topic = %self.topic, %error, "the leader sent a broken batch; the session ends");
                self.handle(context, |inner, _| inner.replica.handle_bad_data(open_no));
                return;
            }
        };
        let infos: Vec<BatchInfo> = batches.iter().map(info).collect();
        let header = DataHeader {
            prev_offset: data.prev_offset,
            prev_epoch: data.prev_epoch,
            high_watermark: data.high_watermark,
            log_start: data.log_start,
            leader_log_end: data.leader_log_end,
            batches: &infos,
        };
        self.handle_in_frame(context, |inner, now| match inner.replica.check_data(open_no, &header) {
            DataVerdict::Append => self.append_replicated(context, inner, open_no, &header, &batches, now),
            DataVerdict::Drop => {}
            DataVerdict::EndSession => {
                tracing::info!(partition = %self.id, topic = %self.topic, "a frame does not continue the log; opening anew");
            }
        });
    }

    fn append_replicated(
        self: &Arc<Self>,
        context: &Arc<Context>,
        inner: &mut Inner,
        open_no: u64,
        header: &DataHeader<'_>,
        batches: &[RecordBatch],
        now: Time,
    ) {
        self.accept_loss(context, inner);
        if inner.failed.is_some() {
            // It follows nobody any more: there is no session to append in.
            return;
        }
        match append(&mut inner.log, batches) {
            Ok(()) => {
                (inner.no_space, inner.append_refused) = (false, false);
                if let Err(error) = batches.iter().try_for_each(|batch| inner.note_producer(batch)) {
                    self.log_failed(context, inner, &error);
                    return;
                }
                let (from, end) = (header.prev_offset, inner.log.log_end());
                inner.append_times.note_frame(from, end, header.leader_log_end, now);
                inner.replica.handle_follower_append(header);
            }
            Err(error) if error.is_shortage() && !inner.log.is_unfinished() => {
                self.log_failed(context, inner, &error);
                // The session ends, and another one waits: what does not fit now does not fit at once.
                inner.replica.handle_session_lost();
                inner.reopen_at = Some(now + SHORTAGE_PAUSE_MS);
            }
            Err(error) => {
                self.log_failed(context, inner, &error);
                inner.replica.handle_bad_data(open_no);
            }
        }
    }

    /// The leader's watermarks (`R60`).
    pub(crate) fn handle_progress(self: &Arc<Self>, context: &Arc<Context>, progress: wire::Progress) {
        self.handle_in_frame(context, |inner, _| {
            let wire::Progress { open_no, high_watermark, log_start, sync_before_ack, .. } = progress;
            inner.replica.handle_progress(open_no, high_watermark, log_start, sync_before_ack);
        });
    }

    /// As `handle`, for an input after which the stream's task asks for the acknowledgement by itself.
    fn handle_in_frame(self: &Arc<Self>, context: &Arc<Context>, input: impl FnOnce(&mut Inner, Time)) {
        let mut inner = self.lock();
        inner.in_frame = true;
        input(&mut inner, context.clock.monotonic());
        self.carry_out(context, &mut inner);
        inner.in_frame = false;
    }

    /// The acknowledgement to send on the session named `handle`, if it says anything new (`R59`).
    pub(crate) fn next_ack(&self, handle: u64) -> Option<wire::Ack> {
        let mut inner = self.lock();
        let (current, open_no) = inner.handle?;
        if current != handle {
            return None;
        }
        let ack = inner.replica.ack().filter(|ack| ack.open_no == open_no)?;
        Some(wire::Ack { handle, open_no, log_end: ack.log_end, log_start: ack.log_start, durable: ack.durable })
    }

    /// The stream of the session named `handle` is gone; a session is wanted again when the next one stands.
    pub(crate) fn session_lost(self: &Arc<Self>, context: &Arc<Context>, handle: u64) {
        self.handle(context, |inner, _| {
            // The partition may have a newer session on another stream by now.
            if inner.handle.is_some_and(|(current, _)| current == handle) {
                inner.handle = None;
                inner.replica.handle_session_lost();
            }
        });
    }
}

/// An empty log may begin inside of a batch whose first records were deleted (`R58`): its file then begins with the whole batch, and
/// its log start stays. After a crash in between, the log is empty below the leader's log start, and is reset to that (`R26`).
fn append(log: &mut Log, batches: &[RecordBatch]) -> Result<(), LogError> {
    let start = log.log_start();
    let begins_inside = batches.first().map(|batch| batch.header().base_offset).filter(|base| *base < start);
    let Some(base) = begins_inside else { return log.append(batches).map(drop) };
    log.reset_to(base)?;
    if let Err(error) = log.append(batches) {
        // As it was, for the next try; an error of this one took the directory offline, or left the log unfinished.
        log.reset_to(start)?;
        return Err(error);
    }
    log.advance_log_start(start).map(drop)
}

fn info(batch: &RecordBatch) -> BatchInfo {
    let header = batch.header();
    BatchInfo {
        base_offset: header.base_offset,
        last_offset: header.last_offset(),
        leader_epoch: header.leader_epoch,
        size: u32::try_from(header.size).unwrap_or(u32::MAX),
    }
}
