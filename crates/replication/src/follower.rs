//! The follower's side: sessions, divergence, data.
//!
//! ```text
//!   Wanted ──open_request──► Opening ──Opened──► Current
//!     ▲  ▲                      │                   │
//!     │  └─ Diverging, OutOfRange (log cut) ◄───────┤ frame that fails a check, stream lost
//!     └──── Backoff ◄── Refused ◄───────────────────┘ Refused
//! ```
//! Invariants: the log is cut only in answer to the Open in flight, made in the present leader epoch (`R24`, `R58`); every
//! Open has a number of its own (`R57`); in `Current` the log ends where the session's last frame ended.

use model::{BrokerId, LeaderEpoch, Offset, Rule, Time};

use crate::messages::{Ack, Action, Answer, DataHeader, DataVerdict, Open};
use crate::replica::{Core, Replica, Role};

/// Before a refused session is opened again.
const REFUSED_MS: u64 = 100;

/// What a follower knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Follower {
    pub(crate) leader: BrokerId,
    link: Link,
}

/// The session with the leader.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Link {
    /// To be opened as soon as there is a stream.
    Wanted,
    /// Refused: not before this time.
    Backoff(Time),
    /// Opened, not answered yet.
    Opening(Open),
    /// Data may come.
    Current(Current),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Current {
    open_no: u64,
    /// The epoch of the record before the next frame: of the Open, then of each frame's last batch.
    prev_epoch: LeaderEpoch,
    acked: Ack,
}

/// Inputs and questions of a follower.
impl Replica {
    /// The Open to send, if a session is wanted and may be opened now. There must be a stream to the leader.
    pub fn open_request(&mut self) -> Option<Open> {
        match &mut self.role {
            Role::Follower(follower) => follower.open_request(&mut self.core),
            _ => None,
        }
    }

    /// The leader's answer to the open of that number. An answer to any other is without effect (`R24`).
    pub fn handle_answer(&mut self, open_no: u64, answer: Answer, now: Time) {
        if let Role::Follower(follower) = &mut self.role {
            follower.handle_answer(&mut self.core, open_no, answer, now);
        }
    }

    /// Checks a Data frame (`R58`).
    pub fn check_data(&mut self, open_no: u64, data: &DataHeader<'_>) -> DataVerdict {
        let Role::Follower(follower) = &mut self.role else { return DataVerdict::Drop };
        match &follower.link {
            Link::Current(current) if current.open_no == open_no => {
                if continues_log(&self.core, current.prev_epoch, data) {
                    return DataVerdict::Append;
                }
                follower.reopen(&mut self.core);
                DataVerdict::EndSession
            }
            _ => DataVerdict::Drop,
        }
    }

    /// The frame that `check_data` allowed is in the log.
    ///
    /// # Panics
    /// If `check_data` would not have allowed it.
    pub fn handle_follower_append(&mut self, data: &DataHeader<'_>) {
        let Role::Follower(follower) = &mut self.role else {
            panic!("a replica that does not follow appended a frame")
        };
        follower.handle_append(&mut self.core, data);
    }

    /// The frame that `check_data` allowed has a wrong length or CRC: the session ends (`R58`).
    pub fn handle_bad_data(&mut self, open_no: u64) {
        if let Role::Follower(follower) = &mut self.role
            && follower.is_current(open_no)
        {
            follower.reopen(&mut self.core);
        }
    }

    /// The leader's watermarks (`R60`).
    pub fn handle_progress(&mut self, open_no: u64, high_watermark: Offset, log_start: Offset) {
        if let Role::Follower(follower) = &mut self.role
            && follower.is_current(open_no)
        {
            follower.handle_watermarks(&mut self.core, high_watermark, log_start);
        }
    }

    /// The acknowledgement to send, if it says anything new (`R59`).
    pub fn ack(&mut self) -> Option<Ack> {
        let Role::Follower(Follower { link: Link::Current(current), .. }) = &mut self.role else { return None };
        let log_end = self.core.counted_end();
        let ack = Ack { open_no: current.open_no, log_end, log_start: self.core.log.start };
        if ack == current.acked {
            return None;
        }
        current.acked = ack;
        Some(ack)
    }

    /// The stream of the session ended, or the session is to move to another stream: it must be opened anew. The shell
    /// calls `open_request` when a stream stands.
    pub fn handle_session_lost(&mut self) {
        if let Role::Follower(follower) = &mut self.role {
            follower.end_session(&mut self.core);
        }
    }

    /// The number of the session that data may come in.
    #[must_use]
    pub fn current_open_no(&self) -> Option<u64> {
        match &self.role {
            Role::Follower(Follower { link: Link::Current(current), .. }) => Some(current.open_no),
            _ => None,
        }
    }
}

/// `R58`: whether the frame goes on where this log ends.
fn continues_log(core: &Core, prev_epoch: LeaderEpoch, data: &DataHeader<'_>) -> bool {
    let follows = data.prev_offset == core.log.end && data.prev_epoch == prev_epoch;
    if !follows && core.config.rules.hold(Rule::R58PreviousBatch) {
        return false;
    }
    let (mut end, mut epoch) = (core.log.end, prev_epoch);
    for batch in data.batches {
        let ascends = batch.base_offset >= end && batch.last_offset >= batch.base_offset;
        if !ascends
            || batch.last_offset.0 == i64::MAX
            || batch.leader_epoch < epoch
            || batch.leader_epoch > core.leader_epoch
        {
            return false;
        }
        (end, epoch) = (batch.last_offset + 1, batch.leader_epoch);
    }
    !data.batches.is_empty()
}

impl Follower {
    /// `R28`. Nothing is cut here: the high watermark says nothing of where logs part (`R24`).
    pub(crate) fn start(core: &mut Core, leader: BrokerId) -> Follower {
        core.act(Action::FollowerStarted { leader, leader_epoch: core.leader_epoch });
        if !core.config.rules.hold(Rule::R24NoTruncationByHighWatermark) {
            core.truncate_to(core.log.high_watermark);
        }
        core.act(Action::OpenSession { leader });
        Follower { leader, link: Link::Wanted }
    }

    fn open_request(&mut self, core: &mut Core) -> Option<Open> {
        if self.link != Link::Wanted {
            return None;
        }
        if core.counted_end() < core.log.end {
            // The Open is an ack of all that the log holds (R59).
            core.act(Action::Sync);
            return None;
        }
        core.last_open_no += 1;
        let open = Open {
            open_no: core.last_open_no,
            leader_epoch: core.leader_epoch,
            log_end: core.log.end,
            last_epoch: core.last_epoch(),
            log_start: core.log.start,
        };
        self.link = Link::Opening(open);
        Some(open)
    }

    fn handle_answer(&mut self, core: &mut Core, open_no: u64, answer: Answer, now: Time) {
        let open = match &self.link {
            Link::Opening(open) if open.open_no == open_no => *open,
            // A leader may end a session at any time; that cuts nothing.
            Link::Current(current) if current.open_no == open_no => {
                if let Answer::Refused(_) = answer {
                    self.link = Link::Backoff(now + REFUSED_MS);
                }
                return;
            }
            _ => return,
        };
        match answer {
            Answer::Opened { high_watermark, log_start, .. } => {
                let acked = Ack { open_no, log_end: open.log_end, log_start: open.log_start };
                self.link = Link::Current(Current { open_no, prev_epoch: open.last_epoch, acked });
                self.handle_watermarks(core, high_watermark, log_start);
            }
            Answer::Diverging { epoch, end } if common_end(core, epoch, end) < core.log.end => {
                self.link = Link::Wanted;
                core.truncate_to(common_end(core, epoch, end));
                core.act(Action::OpenSession { leader: self.leader });
            }
            Answer::OutOfRange { log_start, .. } if log_start >= Offset::ZERO => {
                self.link = Link::Wanted;
                core.reset_to(log_start);
                core.act(Action::OpenSession { leader: self.leader });
            }
            // A divergence that cuts nothing or a negative offset are no answers; not again at once.
            Answer::Refused(_) | Answer::Diverging { .. } | Answer::OutOfRange { .. } => {
                self.link = Link::Backoff(now + REFUSED_MS);
            }
        }
    }

    fn handle_append(&mut self, core: &mut Core, data: &DataHeader<'_>) {
        let Link::Current(current) = &mut self.link else { panic!("a frame was appended outside of a session") };
        assert!(continues_log(core, current.prev_epoch, data), "appended frame does not continue the log: {data:?}");
        for batch in data.batches {
            core.epoch_appended(batch.leader_epoch, batch.base_offset);
            core.log.end = batch.last_offset + 1;
            current.prev_epoch = batch.leader_epoch;
        }
        core.act(if core.sync_before_ack { Action::Sync } else { Action::AckDirty });
        self.handle_watermarks(core, data.high_watermark, data.log_start);
    }

    /// First the high watermark, then the log start, which stays at or below it (`R19`, `R60`).
    fn handle_watermarks(&mut self, core: &mut Core, high_watermark: Offset, log_start: Offset) {
        let reach = if core.config.rules.hold(Rule::R19FollowerHighWatermark) { core.log.end } else { high_watermark };
        core.set_high_watermark(high_watermark.min(reach).max(core.log.start));
        if core.raise_log_start(log_start) {
            core.act(Action::AdvanceLogStart(core.log.start));
            self.ack_dirty(core);
        }
    }

    pub(crate) fn handle_synced(&mut self, core: &mut Core) {
        match self.link {
            Link::Current(_) if core.sync_before_ack => core.act(Action::AckDirty),
            Link::Wanted if core.counted_end() == core.log.end => core.act(Action::OpenSession { leader: self.leader }),
            _ => {}
        }
    }

    pub(crate) fn ack_dirty(&self, core: &mut Core) {
        if let Link::Current(_) = self.link {
            core.act(Action::AckDirty);
        }
    }

    /// Ends the session and asks for another.
    fn reopen(&mut self, core: &mut Core) {
        self.end_session(core);
        core.act(Action::OpenSession { leader: self.leader });
    }

    pub(crate) fn end_session(&mut self, core: &mut Core) {
        match std::mem::replace(&mut self.link, Link::Wanted) {
            Link::Opening(Open { open_no, .. }) | Link::Current(Current { open_no, .. }) => {
                core.act(Action::CloseSession { open_no });
            }
            Link::Wanted | Link::Backoff(_) => {}
        }
    }

    fn is_current(&self, open_no: u64) -> bool {
        matches!(&self.link, Link::Current(current) if current.open_no == open_no)
    }

    pub(crate) fn timeout(&self) -> Option<Time> {
        match self.link {
            Link::Backoff(until) => Some(until),
            _ => None,
        }
    }

    pub(crate) fn handle_timeout(&mut self, core: &mut Core, now: Time) {
        if self.timeout().is_some_and(|at| at <= now) {
            self.link = Link::Wanted;
            core.act(Action::OpenSession { leader: self.leader });
        }
    }
}

/// `R24`: up to where this log and the leader's may agree, given that the leader's `epoch` ends at `end`.
fn common_end(core: &Core, epoch: LeaderEpoch, end: Offset) -> Offset {
    let own = core.epochs.end_offset_for(epoch, core.log.end);
    if !core.config.rules.hold(Rule::R24EndOffsetForEpoch) {
        return core.log.end.min(end).max(core.log.start);
    }
    // Without an epoch that old, every record here is of a newer one, so none is shared.
    let own_end = own.map_or(core.log.start, |found| found.end);
    end.min(own_end).min(core.log.end).max(core.log.start)
}
