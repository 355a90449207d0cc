//! The follower's side: sessions, divergence, data.
//!
//! ```text
//!   Wanted ──open_request──► Opening ──Opened──► Current
//!     ▲  ▲                      │                   │
//!     │  └─ Diverging, OutOfRange (log cut) ◄───────┤ frame that fails a check, stream lost
//!     └──── Backoff ◄── Refused ◄───────────────────┘ Refused
//!
//!   Current ──Moved──► Wanted, on a stream of the other lane (R62)
//! ```
//! Invariants: the log is cut only in answer to the Open in flight, made in the present leader epoch (`R24`, `R58`); every
//! Open has a number of its own (`R57`), so that frames and answers of an older one are dropped (`R27`); in `Current` the log ends where the session's last frame ended.

use model::{BrokerId, LeaderEpoch, Offset, Rule, Time};

use crate::messages::{Ack, Action, Answer, BatchInfo, DataHeader, DataVerdict, Open};
use crate::replica::{Core, Replica, Role};

/// Before a refused session is opened again.
const REFUSED_MS: u64 = 100;

/// What a follower knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Follower {
    pub(crate) leader: BrokerId,
    pub(crate) link: Link,
}

/// The session with the leader.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Link {
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
pub(crate) struct Current {
    pub(crate) open_no: u64,
    /// The epoch of the record before the next frame: of the Open, then of each frame's last batch.
    pub(crate) prev_epoch: LeaderEpoch,
    pub(crate) acked: Ack,
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
        let any_session = !self.core.config.rules.hold(Rule::R58CurrentSession);
        match &follower.link {
            Link::Current(current) if current.open_no == open_no || any_session => {
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

    /// The leader's watermarks (`R60`), and whether it counts what is durable only (`R59`).
    pub fn handle_progress(&mut self, open_no: u64, high_watermark: Offset, log_start: Offset, sync_before_ack: bool) {
        if let Role::Follower(follower) = &mut self.role
            && follower.is_current(open_no)
        {
            follower.handle_mode(&mut self.core, sync_before_ack);
            follower.handle_watermarks(&mut self.core, high_watermark, log_start);
        }
    }

    /// The acknowledgement to send, if it says anything new (`R59`).
    pub fn ack(&mut self) -> Option<Ack> {
        let Role::Follower(Follower { link: Link::Current(current), .. }) = &mut self.role else { return None };
        let log_end = self.core.counted_end();
        let ack = Ack {
            open_no: current.open_no,
            log_end,
            log_start: self.core.log.start,
            durable: self.core.syncs_before_ack(),
        };
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
    for (at, batch) in data.batches.iter().enumerate() {
        let first = at == 0 && begins_inside(core, batch);
        let ascends = (batch.base_offset >= end || first) && batch.last_offset >= batch.base_offset;
        let legal = batch.leader_epoch >= epoch && batch.leader_epoch <= core.leader_epoch;
        let ascends = ascends || !core.config.rules.hold(Rule::R58Ascending);
        let legal = legal || !core.config.rules.hold(Rule::R58Epochs);
        if !ascends || !legal || batch.last_offset.0 == i64::MAX {
            return false;
        }
        (end, epoch) = (batch.last_offset + 1, batch.leader_epoch);
    }
    !data.batches.is_empty()
}

/// Whether the log is empty and begins with the last records of this batch: those before have been deleted (DeleteRecords), and a
/// batch is never cut. Its whole is appended, and the log start stays. An entry in the epoch cache is one without a record there.
fn begins_inside(core: &Core, batch: &BatchInfo) -> bool {
    let start = core.log.start;
    let empty = start == core.log.end;
    empty && batch.base_offset >= Offset::ZERO && batch.base_offset < start && batch.last_offset >= start
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
        if core.counted_end() < core.log.end && core.config.rules.hold(Rule::R59SyncBeforeAck) {
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
            durable: core.syncs_before_ack(),
        };
        self.link = Link::Opening(open);
        Some(open)
    }

    fn handle_answer(&mut self, core: &mut Core, open_no: u64, answer: Answer, now: Time) {
        let open = match &self.link {
            Link::Opening(open) if open.open_no == open_no => *open,
            // A leader may end a session at any time; that cuts nothing.
            Link::Current(current) if current.open_no == open_no => {
                match answer {
                    Answer::Refused(_) => self.link = Link::Backoff(now + REFUSED_MS),
                    // R62: what it has sent comes before this on the same stream; the next Open says what has arrived.
                    Answer::Moved(to) => {
                        self.link = Link::Wanted;
                        core.act(Action::MoveSession { leader: self.leader, to });
                    }
                    Answer::Opened { .. } | Answer::Diverging { .. } | Answer::OutOfRange { .. } => {}
                }
                return;
            }
            _ => return,
        };
        match answer {
            Answer::Opened { high_watermark, log_start, sync_before_ack, .. } => {
                let acked = Ack { open_no, log_end: open.log_end, log_start: open.log_start, durable: open.durable };
                self.link = Link::Current(Current { open_no, prev_epoch: open.last_epoch, acked });
                self.handle_mode(core, sync_before_ack);
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
            // A divergence that cuts nothing, a negative offset, a move of what was never open are no answers; not again at
            // once.
            Answer::Refused(_) | Answer::Diverging { .. } | Answer::OutOfRange { .. } | Answer::Moved(_) => {
                self.link = Link::Backoff(now + REFUSED_MS);
            }
        }
    }

    fn handle_append(&mut self, core: &mut Core, data: &DataHeader<'_>) {
        let Link::Current(current) = &mut self.link else { panic!("a frame was appended outside of a session") };
        assert!(continues_log(core, current.prev_epoch, data), "appended frame does not continue the log: {data:?}");
        for batch in data.batches {
            core.epoch_appended(batch.leader_epoch, batch.base_offset.max(core.log.start));
            core.log.end = batch.last_offset + 1;
            current.prev_epoch = batch.leader_epoch;
        }
        core.act(if core.syncs_before_ack() { Action::Sync } else { Action::AckDirty });
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
            Link::Current(_) if core.syncs_before_ack() => core.act(Action::AckDirty),
            Link::Wanted if core.counted_end() == core.log.end => core.act(Action::OpenSession { leader: self.leader }),
            _ => {}
        }
    }

    /// What counts has changed with the setting: an Open or an acknowledgement may wait for it.
    pub(crate) fn handle_sync_before_ack(&self, core: &mut Core) {
        match self.link {
            Link::Current(_) => core.act(Action::AckDirty),
            Link::Wanted => core.act(Action::OpenSession { leader: self.leader }),
            Link::Backoff(_) | Link::Opening(_) => {}
        }
    }

    /// What the leader counts: where that is only what is durable, this follower syncs before it acknowledges, whatever its own
    /// broker's settings say (`R59`); else the leader would wait for ever.
    fn handle_mode(&self, core: &mut Core, sync_before_ack: bool) {
        let before = core.syncs_before_ack();
        core.leader_syncs_before_ack = sync_before_ack;
        let after = core.syncs_before_ack();
        if after && !before && core.log.synced_end < core.log.end {
            core.act(Action::Sync);
        } else if after != before {
            self.ack_dirty(core);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Lane, PartitionState};
    use crate::testing::*;
    use model::ErrorCode;

    /// Follows broker 2 in epoch 5; its log is 0..`end`; the Open is out as number 1; actions drained.
    fn opening(end: i64, hw: i64, epochs: &[(i32, i64)]) -> (Replica, Open) {
        let mut replica = replica(end, hw, epochs);
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        let open = replica.open_request().unwrap();
        drain(&mut replica);
        (replica, open)
    }

    fn opened(high_watermark: i64) -> Answer {
        Answer::Opened {
            high_watermark: Offset(high_watermark),
            log_start: Offset(0),
            log_end: Offset(100),
            sync_before_ack: false,
        }
    }

    /// As `opening`, with the session open at the follower's own high watermark.
    fn current(end: i64, epochs: &[(i32, i64)]) -> Replica {
        let (mut replica, open) = opening(end, end, epochs);
        replica.handle_answer(open.open_no, opened(end), T0);
        drain(&mut replica);
        replica
    }

    fn diverging(epoch: i32, end: i64) -> Answer {
        Answer::Diverging { epoch: LeaderEpoch(epoch), end: Offset(end) }
    }

    fn batch(base: i64, last: i64, epoch: i32) -> BatchInfo {
        BatchInfo { base_offset: Offset(base), last_offset: Offset(last), leader_epoch: LeaderEpoch(epoch), size: 100 }
    }

    fn data(prev_offset: i64, prev_epoch: i32, batches: &[BatchInfo]) -> DataHeader<'_> {
        DataHeader {
            prev_offset: Offset(prev_offset),
            prev_epoch: LeaderEpoch(prev_epoch),
            high_watermark: Offset(prev_offset),
            log_start: Offset(0),
            leader_log_end: Offset(100),
            batches,
        }
    }

    const OPEN: Action = Action::OpenSession { leader: B2 };

    #[test]
    fn a_follower_starts_with_an_open_and_cuts_nothing() {
        // R24, R28: the high watermark is below the end
        let mut replica = replica(10, 7, &[(4, 0)]);
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        let started = Action::FollowerStarted { leader: B2, leader_epoch: LeaderEpoch(5) };
        assert_eq!(drain(&mut replica), [started, OPEN]);
        assert_eq!(replica.open_request(), Some(open(1, 10, 4)));
        assert_eq!(replica.open_request(), None, "one is in flight");
    }

    #[test]
    fn a_leader_that_becomes_follower_fails_its_waiting_produces_first() {
        // R20, R28
        let mut replica = leader(10, 7, &[1, 2, 3]);
        replica.handle_metadata(&state(2, 6, 51, &[1, 2, 3]), T0);
        let started = Action::FollowerStarted { leader: B2, leader_epoch: LeaderEpoch(6) };
        assert_eq!(drain(&mut replica), [Action::LeaderStopped, started, OPEN]);
        assert_eq!(replica.check_leader(LeaderEpoch(6)), Err(ErrorCode::NotLeaderOrFollower));
        assert_eq!(replica.check_leader(LeaderEpoch(5)), Err(ErrorCode::FencedLeaderEpoch));
        assert_eq!(replica.check_leader(LeaderEpoch(7)), Err(ErrorCode::UnknownLeaderEpoch));
    }

    #[test]
    fn the_open_names_the_last_records_epoch_not_that_of_a_recordless_entry() {
        // R57: it led epoch 5 and wrote nothing
        let mut replica = leader(10, 7, &[1, 2, 3]);
        assert_eq!(replica.epochs().latest().map(|entry| entry.epoch), Some(LeaderEpoch(5)));
        replica.handle_metadata(&state(2, 6, 51, &[1, 2, 3]), T0);
        assert_eq!(replica.open_request().map(|open| open.last_epoch), Some(LeaderEpoch(4)));
        let (_, open) = opening(0, 0, &[]);
        assert_eq!(open.last_epoch, LeaderEpoch::NONE);
    }

    #[test]
    fn a_new_leader_epoch_ends_the_session() {
        // R57
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_metadata(&state(2, 6, 51, &[1, 2, 3]), T0);
        let started = Action::FollowerStarted { leader: B2, leader_epoch: LeaderEpoch(6) };
        assert_eq!(drain(&mut replica), [Action::CloseSession { open_no: 1 }, started, OPEN]);
        let batches = [batch(10, 10, 5)];
        assert_eq!(replica.check_data(1, &data(10, 4, &batches)), DataVerdict::Drop);
        assert_eq!(replica.open_request().map(|open| open.open_no), Some(2));
    }

    #[test]
    fn a_weaker_setting_lets_go_what_waited_for_a_sync() {
        // R59: acknowledged as durable as the setting says, whichever it is now
        let mut replica = replica(10, 10, &[(4, 0)]);
        let synced_first = PartitionState { sync_before_ack: true, ..state(2, 5, 50, &[1, 2, 3]) };
        replica.handle_metadata(&synced_first, T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, opened(10), T0);
        let batches = [batch(10, 11, 5)];
        replica.handle_follower_append(&data(10, 4, &batches));
        drain(&mut replica);
        assert_eq!(replica.ack(), None);
        replica.handle_sync_before_ack(false, T0);
        assert_eq!(drain(&mut replica), [Action::AckDirty]);
        assert_eq!(replica.ack().map(|ack| ack.log_end), Some(Offset(12)));
    }

    #[test]
    fn a_weaker_setting_that_comes_with_metadata_does_so_too() {
        // R59: by a replica whose history of syncs is not whole, so that it goes on at once
        let (mut replica, open) = opening(10, 10, &[(4, 0)]);
        let metadata = |sync_before_ack| PartitionState { sync_before_ack, ..state(2, 5, 50, &[1, 2]) };
        replica.handle_metadata(&metadata(true), T0);
        replica.handle_answer(open.open_no, opened(10), T0);
        replica.handle_follower_append(&data(10, 4, &[batch(10, 11, 5)]));
        let point = replica.sync_point();
        drain(&mut replica);
        replica.handle_metadata(&metadata(false), T0);
        assert_eq!(drain(&mut replica), [Action::AckDirty], "the sync that ends later says nothing new");
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(12), false)));
        replica.handle_synced(point, T0);
        assert_eq!((drain(&mut replica), replica.ack()), (vec![], None));
    }

    #[test]
    fn whose_leader_counts_what_is_durable_syncs_whatever_its_own_settings_say() {
        // R59: else that leader would wait for ever
        let (mut replica, open) = opening(10, 10, &[(4, 0)]);
        replica.core.log.synced_end = Offset(8);
        let opened = |sync_before_ack| Answer::Opened {
            high_watermark: Offset(10),
            log_start: Offset(0),
            log_end: Offset(100),
            sync_before_ack,
        };
        replica.handle_answer(open.open_no, opened(true), T0);
        assert_eq!(drain(&mut replica), [Action::Sync], "what it had counts once it is durable");
        let point = replica.sync_point();
        replica.handle_synced(point, T0);
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(10), true)));
        drain(&mut replica);
        replica.handle_follower_append(&data(10, 4, &[batch(10, 12, 5)]));
        assert!(drain(&mut replica).contains(&Action::Sync));
        assert_eq!(replica.ack(), None);
        // Not any more: what waited is acknowledged at once.
        replica.handle_progress(1, Offset(10), Offset(0), false);
        assert_eq!(drain(&mut replica), [Action::AckDirty]);
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(13), false)));
        replica.handle_progress(1, Offset(10), Offset(0), true);
        assert_eq!(drain(&mut replica), [Action::Sync]);
        // It says nothing about another leader, nor about this replica as one.
        replica.handle_metadata(&state(1, 6, 51, &[1, 2, 3]), T0);
        assert_eq!(replica.counted_end(), Offset(13));
    }

    #[test]
    fn the_same_metadata_again_keeps_the_session() {
        // R28
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_metadata(&state(2, 5, 51, &[2]), T0);
        assert_eq!((drain(&mut replica), replica.current_open_no()), (vec![], Some(1)));
    }

    #[test]
    fn what_was_sent_before_a_truncation_is_discarded_after_it() {
        // R27: frames and answers of the first session arrive once the log was cut and another session is open
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_metadata(&state(3, 6, 51, &[1, 2, 3]), T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, diverging(4, 8), T0);
        let open = replica.open_request().unwrap();
        assert_eq!((open.open_no, open.log_end), (3, Offset(8)));
        replica.handle_answer(open.open_no, opened(8), T0);
        drain(&mut replica);
        let before = replica.clone();
        for old in [1, 2] {
            assert_eq!(replica.check_data(old, &data(8, 4, &[batch(8, 9, 5)])), DataVerdict::Drop, "it would fit");
            assert_eq!(replica.check_data(old, &data(10, 4, &[batch(10, 12, 5)])), DataVerdict::Drop);
            replica.handle_answer(old, diverging(4, 2), T0);
            replica.handle_answer(old, Answer::OutOfRange { log_start: Offset(3), log_end: Offset(9) }, T0);
            replica.handle_progress(old, Offset(10), Offset(5), false);
        }
        assert_eq!(replica, before);
    }

    #[test]
    fn a_parted_log_is_cut_where_both_may_agree() {
        // R24: to the least of the leader's end, the own end of that epoch, and the log's end
        for (answer, cut) in [(diverging(4, 12), 12), (diverging(3, 18), 8), (diverging(4, 30), 15)] {
            let (mut replica, open) = opening(20, 5, &[(2, 0), (4, 8), (5, 15)]);
            replica.handle_answer(open.open_no, answer, T0);
            assert_eq!(drain(&mut replica), [Action::TruncateTo(Offset(cut)), Action::EpochsChanged, OPEN]);
            assert_eq!(replica.log().end, Offset(cut));
            assert_eq!(replica.open_request().map(|open| (open.open_no, open.log_end)), Some((2, Offset(cut))));
        }
    }

    #[test]
    fn a_cut_below_the_high_watermark_lowers_it() {
        let (mut replica, open) = opening(20, 18, &[(4, 0)]);
        replica.handle_answer(open.open_no, diverging(4, 15), T0);
        assert_eq!(replica.log().high_watermark, Offset(15));
    }

    #[test]
    fn a_log_without_any_epoch_that_old_keeps_nothing() {
        // R24
        let (mut replica, open) = opening(20, 5, &[(4, 0)]);
        replica.handle_answer(open.open_no, diverging(3, 18), T0);
        assert_eq!(replica.log().end, Offset(0));
    }

    #[test]
    fn an_answer_to_an_earlier_open_cuts_nothing() {
        // R24, R58
        let (mut replica, _) = opening(20, 5, &[(4, 0)]);
        replica.handle_session_lost();
        replica.open_request();
        drain(&mut replica);
        replica.handle_answer(1, diverging(4, 3), T0);
        replica.handle_answer(1, Answer::OutOfRange { log_start: Offset(50), log_end: Offset(60) }, T0);
        assert_eq!((drain(&mut replica), replica.log().end), (vec![], Offset(20)));
        replica.handle_answer(2, opened(5), T0);
        replica.handle_answer(2, diverging(4, 3), T0);
        assert_eq!(replica.log().end, Offset(20), "nor one in a session that stands");
    }

    #[test]
    fn an_answer_that_cuts_nothing_is_not_asked_for_in_a_loop() {
        let (mut replica, open) = opening(20, 5, &[(4, 0)]);
        replica.handle_answer(open.open_no, diverging(4, 20), T0);
        assert_eq!((drain(&mut replica), replica.poll_timeout()), (vec![], Some(T0 + REFUSED_MS)));
    }

    #[test]
    fn a_follower_out_of_range_starts_anew_at_the_leaders_log_start() {
        // R26
        let (mut replica, open) = opening(20, 5, &[(4, 0)]);
        replica.handle_answer(open.open_no, Answer::OutOfRange { log_start: Offset(50), log_end: Offset(60) }, T0);
        let actions = [Action::ResetTo(Offset(50)), Action::EpochsChanged, Action::HighWatermark(Offset(50)), OPEN];
        assert_eq!(drain(&mut replica), actions);
        assert_eq!(replica.open_request(), Some(Open { log_start: Offset(50), ..crate::testing::open(2, 50, -1) }));
    }

    /// By a leader whose log is 50..60, all of it committed.
    const OPENED_50_TO_60: Answer = Answer::Opened {
        high_watermark: Offset(60),
        log_start: Offset(50),
        log_end: Offset(60),
        sync_before_ack: false,
    };

    /// Its log was reset to the leader's log start of 50, and the session is open as number 2; actions drained.
    fn reset_to_50() -> Replica {
        let (mut replica, open) = opening(20, 5, &[(4, 0)]);
        replica.handle_answer(open.open_no, Answer::OutOfRange { log_start: Offset(50), log_end: Offset(60) }, T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, OPENED_50_TO_60, T0);
        drain(&mut replica);
        replica
    }

    #[test]
    fn an_empty_log_begins_inside_of_a_batch_whose_first_records_were_deleted() {
        // R26, R58: a batch is never cut, and the log start stays where the leader's is
        let mut replica = reset_to_50();
        let batches = [batch(44, 52, 4), batch(53, 55, 5)];
        assert_eq!(replica.check_data(2, &data(50, -1, &batches)), DataVerdict::Append);
        replica.handle_follower_append(&data(50, -1, &batches));
        assert_eq!((replica.log().start, replica.log().end), (Offset(50), Offset(56)));
        assert_eq!(*replica.epochs(), cache(&[(4, 50), (5, 53)]));
        assert_eq!(replica.ack().map(|ack| (ack.log_start, ack.log_end)), Some((Offset(50), Offset(56))));
        assert_eq!(
            replica.check_data(2, &data(56, 5, &[batch(54, 57, 5)])),
            DataVerdict::EndSession,
            "not empty any more"
        );
    }

    #[test]
    fn a_log_that_led_without_a_record_of_its_own_is_empty_all_the_same() {
        // R25, R57, R58: the entry of its leadership has no record; without this it would open, and end, sessions for ever
        let mut replica = reset_to_50();
        replica.handle_metadata(&state(1, 6, 51, &[1]), T0);
        replica.handle_metadata(&state(2, 7, 52, &[2]), T0);
        let open = replica.open_request().unwrap();
        assert_eq!(
            (open.log_end, open.last_epoch, replica.epochs().clone()),
            (Offset(50), LeaderEpoch::NONE, cache(&[(6, 50)]))
        );
        replica.handle_answer(open.open_no, OPENED_50_TO_60, T0);
        let batches = [batch(44, 52, 4)];
        assert_eq!(replica.check_data(open.open_no, &data(50, -1, &batches)), DataVerdict::Append);
        replica.handle_follower_append(&data(50, -1, &batches));
        assert_eq!((replica.log().end, replica.epochs().clone()), (Offset(53), cache(&[(4, 50)])));
    }

    #[test]
    fn an_empty_log_takes_no_batch_that_does_not_reach_its_start() {
        // R58
        let wrong: [&[BatchInfo]; 4] =
            [&[batch(40, 49, 4)], &[batch(-1, 52, 4)], &[batch(50, 51, 4), batch(44, 52, 4)], &[batch(44, 52, 6)]];
        for batches in wrong {
            let mut replica = reset_to_50();
            assert_eq!(replica.check_data(2, &data(50, -1, batches)), DataVerdict::EndSession, "{batches:?}");
        }
    }

    #[test]
    fn a_session_that_is_moved_opens_anew_on_the_other_lane_with_what_has_arrived() {
        // R62
        let mut replica = current(10, &[(4, 0)]);
        let frame = [batch(10, 12, 4)];
        assert_eq!(replica.check_data(1, &data(10, 4, &frame)), DataVerdict::Append);
        replica.handle_follower_append(&data(10, 4, &frame));
        drain(&mut replica);
        replica.handle_answer(7, Answer::Moved(Lane::CatchUp), T0);
        assert_eq!(drain(&mut replica), [], "another session's");
        replica.handle_answer(1, Answer::Moved(Lane::CatchUp), T0);
        assert_eq!(drain(&mut replica), [Action::MoveSession { leader: B2, to: Lane::CatchUp }]);
        assert_eq!(replica.ack(), None, "the next open says it");
        let open = replica.open_request().unwrap();
        assert_eq!((open.open_no, open.log_end), (2, Offset(13)));
        // What is still under way on the lane that it has left is of an old session, whether it would fit or not.
        let before = replica.clone();
        replica.handle_answer(1, Answer::Moved(Lane::Tail), T0);
        assert_eq!(replica.check_data(1, &data(13, 4, &[batch(13, 14, 4)])), DataVerdict::Drop);
        assert_eq!(replica, before);
    }

    #[test]
    fn a_move_of_what_was_never_open_is_no_answer() {
        // R62: nobody moves it round and round
        let (mut replica, open) = opening(10, 10, &[(4, 0)]);
        replica.handle_answer(open.open_no, Answer::Moved(Lane::CatchUp), T0);
        assert_eq!((drain(&mut replica), replica.poll_timeout()), (Vec::new(), Some(T0 + REFUSED_MS)));
    }

    #[test]
    fn a_refused_open_is_made_again_after_a_while() {
        let (mut replica, open) = opening(20, 5, &[(4, 0)]);
        replica.handle_answer(open.open_no, Answer::Refused(ErrorCode::UnknownLeaderEpoch), T0);
        assert_eq!((replica.open_request(), replica.poll_timeout()), (None, Some(T0 + REFUSED_MS)));
        replica.handle_timeout(T0 + REFUSED_MS);
        assert_eq!(drain(&mut replica), [OPEN]);
        assert!(replica.open_request().is_some());
    }

    #[test]
    fn a_leader_may_end_a_session_that_stands() {
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_answer(1, Answer::Refused(ErrorCode::OffsetOutOfRange), T0);
        assert_eq!((replica.current_open_no(), replica.poll_timeout()), (None, Some(T0 + REFUSED_MS)));
    }

    #[test]
    fn data_that_goes_on_where_the_log_ends_is_appended_and_acknowledged() {
        // R58, R59, R25, R19
        let mut replica = current(10, &[(4, 0)]);
        let batches = [batch(10, 12, 4), batch(20, 20, 5)];
        let frame = DataHeader { high_watermark: Offset(15), ..data(10, 4, &batches) };
        assert_eq!(replica.check_data(1, &frame), DataVerdict::Append, "holes are legal");
        replica.handle_follower_append(&frame);
        let actions = [Action::EpochsChanged, Action::AckDirty, Action::HighWatermark(Offset(15))];
        assert_eq!(drain(&mut replica), actions);
        assert_eq!(*replica.epochs(), cache(&[(4, 0), (5, 20)]));
        assert_eq!(replica.ack(), Some(Ack { open_no: 1, log_end: Offset(21), log_start: Offset(0), durable: false }));
        assert_eq!(replica.ack(), None);
        let next = [batch(21, 21, 5)];
        assert_eq!(replica.check_data(1, &data(21, 5, &next)), DataVerdict::Append);
    }

    #[test]
    fn data_of_another_session_is_dropped_and_the_session_stands() {
        // R58
        let mut replica = current(10, &[(4, 0)]);
        let batches = [batch(10, 10, 5)];
        assert_eq!(replica.check_data(7, &data(10, 4, &batches)), DataVerdict::Drop);
        assert_eq!((drain(&mut replica), replica.current_open_no()), (vec![], Some(1)));
    }

    #[test]
    fn data_that_fails_a_check_ends_the_session_and_cuts_nothing() {
        // R58
        let wrong: [(i64, i32, &[BatchInfo]); 8] = [
            (11, 4, &[batch(11, 11, 5)]),
            (10, 3, &[batch(10, 10, 5)]),
            (10, 4, &[batch(9, 10, 5)]),
            (10, 4, &[batch(10, 10, 3)]),
            (10, 4, &[batch(10, 10, 6)]),
            (10, 4, &[batch(10, 12, 5), batch(12, 13, 5)]),
            (10, 4, &[batch(10, 9, 5)]),
            (10, 4, &[]),
        ];
        for (prev_offset, prev_epoch, batches) in wrong {
            let mut replica = current(10, &[(4, 0)]);
            let frame = data(prev_offset, prev_epoch, batches);
            assert_eq!(replica.check_data(1, &frame), DataVerdict::EndSession, "{frame:?}");
            assert_eq!(drain(&mut replica), [Action::CloseSession { open_no: 1 }, OPEN]);
            assert_eq!(replica.log().end, Offset(10));
            assert_eq!(replica.open_request().map(|open| open.open_no), Some(2));
        }
    }

    #[test]
    fn a_recordless_entry_of_its_own_leadership_goes_when_the_older_epochs_record_comes() {
        // R25: broker 1 led epoch 5 from 10 and wrote nothing; broker 2 leads 6 and has a record of 4 at 10
        let mut replica = leader(10, 10, &[1, 2, 3]);
        replica.handle_metadata(&state(2, 6, 51, &[1, 2, 3]), T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, opened(10), T0);
        let batches = [batch(10, 10, 4)];
        assert_eq!(replica.check_data(open.open_no, &data(10, 4, &batches)), DataVerdict::Append);
        replica.handle_follower_append(&data(10, 4, &batches));
        assert_eq!(*replica.epochs(), cache(&[(4, 0)]));
    }

    #[test]
    fn under_sync_before_ack_opens_and_acks_wait_for_the_disk() {
        // R59
        let mut replica = replica(10, 10, &[(4, 0)]);
        let metadata = |epoch| PartitionState { sync_before_ack: true, ..state(2, epoch, 45 + epoch, &[1, 2]) };
        replica.handle_metadata(&metadata(5), T0);
        let first = replica.open_request().unwrap();
        replica.handle_answer(first.open_no, opened(10), T0);
        drain(&mut replica);
        let batches = [batch(10, 12, 5)];
        replica.handle_follower_append(&data(10, 4, &batches));
        assert!(drain(&mut replica).contains(&Action::Sync));
        assert_eq!(replica.ack(), None);
        let point = replica.sync_point();
        replica.handle_metadata(&metadata(6), T0);
        drain(&mut replica);
        assert_eq!((replica.open_request(), drain(&mut replica)), (None, vec![Action::Sync]));
        replica.handle_synced(point, T0);
        assert_eq!(drain(&mut replica), [OPEN]);
        assert_eq!(replica.open_request().map(|open| open.log_end), Some(Offset(13)));
    }

    #[test]
    fn a_stricter_mode_is_told_once_the_log_is_durable_to_its_end() {
        // R59: what was acknowledged from the page cache before does not count as durable.
        let (mut replica, open) = opening(10, 10, &[(4, 0)]);
        replica.handle_answer(open.open_no, opened(10), T0);
        replica.handle_follower_append(&data(10, 4, &[batch(10, 12, 5)]));
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(13), false)));
        drain(&mut replica);
        let strict = PartitionState { sync_before_ack: true, ..state(2, 5, 50, &[1, 2, 3]) };
        replica.handle_metadata(&strict, T0);
        assert_eq!(drain(&mut replica), [Action::Sync]);
        let point = replica.sync_point();
        replica.handle_synced(point, T0);
        assert_eq!(drain(&mut replica), [Action::AckDirty]);
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(13), true)));
        // A log that is durable already is told at once.
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        drain(&mut replica);
        replica.ack();
        replica.handle_metadata(&strict, T0);
        assert_eq!(drain(&mut replica), [Action::AckDirty]);
        assert_eq!(replica.ack().map(|ack| (ack.log_end, ack.durable)), Some((Offset(13), true)));
    }

    #[test]
    fn a_sync_from_before_a_truncation_says_nothing_of_what_came_after() {
        // R59
        let mut replica = replica(20, 10, &[(4, 0)]);
        replica.core.log.synced_end = Offset(10);
        let point = replica.sync_point();
        replica.core.truncate_to(Offset(12));
        replica.core.log.end = Offset(15);
        replica.handle_synced(point, T0);
        assert_eq!(replica.log().synced_end, Offset(10));
        let point = replica.sync_point();
        replica.handle_synced(point, T0);
        assert_eq!(replica.log().synced_end, Offset(15));
    }

    #[test]
    fn progress_moves_the_high_watermark_up_to_the_own_end_then_the_log_start() {
        // R19, R60
        let (mut replica, open) = opening(10, 3, &[(4, 0)]);
        replica.handle_answer(open.open_no, opened(4), T0);
        drain(&mut replica);
        replica.handle_progress(9, Offset(9), Offset(9), false);
        assert_eq!(drain(&mut replica), [], "not of this session");
        replica.handle_progress(1, Offset(40), Offset(6), false);
        let actions = [Action::HighWatermark(Offset(10)), Action::AdvanceLogStart(Offset(6)), Action::AckDirty];
        assert_eq!(drain(&mut replica), actions);
        let ack = Ack { open_no: 1, log_end: Offset(10), log_start: Offset(6), durable: false };
        assert_eq!(replica.ack(), Some(ack));
    }

    #[test]
    fn a_new_leader_may_lower_a_followers_high_watermark() {
        // R19
        let (mut replica, open) = opening(10, 9, &[(4, 0)]);
        replica.handle_answer(open.open_no, opened(7), T0);
        assert_eq!(drain(&mut replica), [Action::HighWatermark(Offset(7))]);
    }

    #[test]
    fn a_lost_stream_wants_a_new_session() {
        // R63
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_session_lost();
        assert_eq!(drain(&mut replica), [Action::CloseSession { open_no: 1 }]);
        assert_eq!(replica.open_request().map(|open| open.open_no), Some(2));
    }

    #[test]
    fn without_a_leader_it_follows_nobody() {
        let mut replica = current(10, &[(4, 0)]);
        replica.handle_metadata(&state(-1, 6, 51, &[]), T0);
        assert_eq!(drain(&mut replica), [Action::CloseSession { open_no: 1 }, Action::FollowerStopped]);
        assert_eq!(replica.open_request(), None);
    }

    #[test]
    fn a_replica_made_again_uses_no_open_number_twice() {
        // R57
        let config = crate::messages::ReplicaConfig { opens_before: 41, ..config() };
        let mut replica = replica_with(config, 10, 10, &[(4, 0)]);
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        assert_eq!(replica.open_request().map(|open| open.open_no), Some(42));
    }

    #[test]
    fn at_start_the_high_watermark_is_clamped_and_the_cache_trimmed_to_the_log() {
        // R19, R25
        let replica = replica(10, 99, &[(2, 0), (4, 6), (5, 10), (6, 12)]);
        assert_eq!(replica.log().high_watermark, Offset(10));
        assert_eq!(*replica.epochs(), cache(&[(2, 0), (4, 6)]));
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn without_the_previous_batch_a_frame_would_leave_a_gap() {
        let rules = model::Rules::without(Rule::R58PreviousBatch);
        let mut replica = replica_with(crate::messages::ReplicaConfig { rules, ..config() }, 10, 10, &[(4, 0)]);
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, opened(10), T0);
        let batches = [batch(12, 12, 5)];
        assert_eq!(replica.check_data(open.open_no, &data(12, 5, &batches)), DataVerdict::Append);
    }

    #[cfg(feature = "mutations")]
    #[test]
    fn without_the_own_end_of_the_epoch_records_of_another_epoch_would_stay() {
        let rules = model::Rules::without(Rule::R24EndOffsetForEpoch);
        let config = crate::messages::ReplicaConfig { rules, ..config() };
        let mut replica = replica_with(config, 20, 5, &[(2, 0), (4, 8), (5, 15)]);
        replica.handle_metadata(&state(2, 5, 50, &[1, 2, 3]), T0);
        let open = replica.open_request().unwrap();
        replica.handle_answer(open.open_no, diverging(3, 18), T0);
        assert_eq!(replica.log().end, Offset(18));
    }
}
