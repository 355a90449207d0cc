//! The leader's side: appends, sessions of followers, acknowledgements, the high watermark.
//!
//! Invariants: a follower's log end counts only if it came in a session of this leader epoch (`R18`, `R59`); the high
//! watermark does not fall, and does not rise below the effective min ISR (`R18`); nothing is sent twice in one session.

use std::collections::VecDeque;

use model::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Rule, Time};

use crate::isr::Pending;
use crate::messages::{Ack, Action, Answer, CloseStream, Open, OpenVerdict, PartitionState, Progress, Session};
use crate::replica::{Core, Replica, Role};

/// Frames in flight that are remembered one by one; more are counted together.
const FRAMES_MAX: usize = 64;

/// What a leader knows and decides.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Leader {
    /// LESO: where the log ended when this leadership began.
    pub(crate) epoch_start: Offset,
    /// The committed in-sync replicas.
    pub(crate) isr: Vec<BrokerId>,
    /// The other replicas.
    pub(crate) peers: Vec<Peer>,
    pub(crate) pending: Option<Pending>,
    /// No new proposal before this.
    pub(crate) hold_until: Time,
}

/// One follower, as its leader sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Peer {
    pub(crate) id: BrokerId,
    /// LEO_f: what it has acknowledged in this leader epoch; None until then.
    pub(crate) log_end: Option<Offset>,
    log_start: Offset,
    /// When it last had all that the leader had.
    pub(crate) caught_up: Time,
    mark: Mark,
    greatest: Option<Session>,
    cursor: Option<Cursor>,
}

/// Where the leader's log ended at a time (`R61`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Mark {
    at: Time,
    log_end: Offset,
}

/// The current session of a follower.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Cursor {
    session: Session,
    sent_end: Offset,
    sent_epoch: LeaderEpoch,
    sent_high_watermark: Offset,
    sent_log_start: Offset,
    /// (end offset, bytes) of what is not acknowledged yet.
    in_flight: VecDeque<(Offset, u64)>,
    in_flight_bytes: u64,
}

/// What to send a follower next (`R58`, `R62`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SendPlan {
    /// The session.
    pub session: Session,
    /// Read from here; also the frame's `prev_offset`.
    pub prev_offset: Offset,
    /// The frame's `prev_epoch`.
    pub prev_epoch: LeaderEpoch,
    /// Whole batches up to this many bytes ...
    pub max_bytes: u64,
    /// ... but at least one batch if this is set: nothing of the session is in flight.
    pub at_least_one: bool,
    /// The frame's high watermark.
    pub high_watermark: Offset,
    /// The frame's log start.
    pub log_start: Offset,
    /// The frame's leader log end.
    pub leader_log_end: Offset,
}

/// What came of an acks=all append (`R20`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProduceVerdict {
    /// Ask again when the high watermark moves.
    Pending,
    /// Answer with this.
    Done(ErrorCode),
}

/// Inputs and questions of a leader.
impl Replica {
    /// Whether records may be appended for a produce with these acks (`R20`), under the lock of the append (`R22`).
    ///
    /// # Errors
    /// `NOT_LEADER_OR_FOLLOWER`; `NOT_ENOUGH_REPLICAS` for acks=all below the min ISR.
    pub fn check_produce(&self, acks: i16) -> Result<(), ErrorCode> {
        let Role::Leader(leader) = &self.role else { return Err(ErrorCode::NotLeaderOrFollower) };
        let strict = self.core.config.rules.hold(Rule::R20MinIsrBeforeAppend);
        if acks == -1 && leader.isr.len() < self.core.min_isr && strict {
            return Err(ErrorCode::NotEnoughReplicas);
        }
        Ok(())
    }

    /// The offset that the next appended record gets.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.core.log.end
    }

    /// The leader appended records stamped with its epoch, from `next_offset` up to `log_end` (`R22`, `R25`, `R61`).
    ///
    /// # Panics
    /// If it does not lead, or the log would not grow: both mean that check and append were not under one lock.
    pub fn handle_leader_append(&mut self, log_end: Offset, now: Time) {
        let core = &mut self.core;
        let Role::Leader(leader) = &mut self.role else {
            panic!("a replica that does not lead appended up to {log_end}")
        };
        assert!(log_end > core.log.end, "append does not grow the log: end={} new={log_end}", core.log.end);
        let old_end = core.log.end;
        core.epoch_appended(core.leader_epoch, old_end);
        core.log.end = log_end;
        leader.handle_append(core, old_end, now);
    }

    /// What to answer to an acks=all produce whose last record is before `end` (`R17`, `R20`). Every error of it is
    /// indeterminate.
    #[must_use]
    pub fn produce_verdict(&self, end: Offset) -> ProduceVerdict {
        let Role::Leader(leader) = &self.role else { return ProduceVerdict::Done(ErrorCode::NotLeaderOrFollower) };
        if self.core.log.high_watermark < end {
            return ProduceVerdict::Pending;
        }
        let enough = leader.maximal_isr_len() >= self.core.min_isr;
        if enough || !self.core.config.rules.hold(Rule::R20MinIsrAfterAppend) {
            ProduceVerdict::Done(ErrorCode::None)
        } else {
            ProduceVerdict::Done(ErrorCode::NotEnoughReplicasAfterAppend)
        }
    }

    /// A follower opens a session (`R57`, with the checks of `R8`, `R23`, `R24`, `R26`).
    pub fn handle_open(&mut self, follower: BrokerId, session: Session, open: Open, now: Time) -> OpenVerdict {
        let core = &mut self.core;
        if open.leader_epoch > core.leader_epoch {
            return OpenVerdict::Park;
        }
        if open.leader_epoch < core.leader_epoch {
            return OpenVerdict::Answer(Answer::Refused(ErrorCode::FencedLeaderEpoch));
        }
        let Role::Leader(leader) = &mut self.role else {
            return OpenVerdict::Answer(Answer::Refused(ErrorCode::NotLeaderOrFollower));
        };
        leader.handle_open(core, follower, session, open, now)
    }

    /// A follower acknowledges (`R59`). Acks of other than the current session are without effect.
    ///
    /// # Errors
    /// It acknowledged what it was not sent.
    pub fn handle_ack(&mut self, follower: BrokerId, session: Session, ack: Ack, now: Time) -> Result<(), CloseStream> {
        match &mut self.role {
            Role::Leader(leader) => leader.handle_ack(&mut self.core, follower, session, ack, now),
            _ => Ok(()),
        }
    }

    /// The follower ended this session.
    pub fn handle_session_closed(&mut self, follower: BrokerId, session: Session, now: Time) {
        self.drop_cursor(follower, |current| current == session, now);
    }

    /// A stream ended, or either side's broker epoch changed (`R56`): nothing still in it counts. What was acknowledged
    /// stays (`R61`).
    pub fn handle_stream_closed(&mut self, follower: BrokerId, broker_epoch: BrokerEpoch, stream_no: u64, now: Time) {
        let of_stream = |current: Session| current.broker_epoch == broker_epoch && current.stream_no == stream_no;
        self.drop_cursor(follower, of_stream, now);
    }

    fn drop_cursor(&mut self, follower: BrokerId, which: impl Fn(Session) -> bool, now: Time) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.iter_mut().find(|peer| peer.id == follower) else { return };
        if peer.cursor.as_ref().is_some_and(|cursor| which(cursor.session)) {
            peer.cursor = None;
            leader.settle(&mut self.core, now);
        }
    }

    /// What to send this follower next; None while there is nothing, or its window is full (`R62`).
    #[must_use]
    pub fn next_send(&self, follower: BrokerId) -> Option<SendPlan> {
        let Role::Leader(leader) = &self.role else { return None };
        let cursor = leader.peer(follower)?.cursor.as_ref()?;
        let (log, window) = (self.core.log, self.core.config.window_bytes);
        if cursor.sent_end >= log.end || (cursor.in_flight_bytes >= window && !cursor.in_flight.is_empty()) {
            return None;
        }
        Some(SendPlan {
            session: cursor.session,
            prev_offset: cursor.sent_end,
            prev_epoch: cursor.sent_epoch,
            max_bytes: window.saturating_sub(cursor.in_flight_bytes),
            at_least_one: cursor.in_flight.is_empty(),
            high_watermark: log.high_watermark,
            log_start: log.start,
            leader_log_end: log.end,
        })
    }

    /// A frame as planned is on its way: it ends at `end`, its last batch is of `last_epoch`, it has `bytes`.
    pub fn handle_sent(
        &mut self,
        follower: BrokerId,
        plan: &SendPlan,
        end: Offset,
        last_epoch: LeaderEpoch,
        bytes: u64,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(cursor) = leader.cursor_mut(follower, plan.session) else { return };
        if cursor.sent_end != plan.prev_offset || end <= cursor.sent_end {
            return;
        }
        cursor.sent_end = end;
        cursor.sent_epoch = last_epoch;
        cursor.sent_high_watermark = plan.high_watermark;
        cursor.sent_log_start = plan.log_start;
        cursor.in_flight_bytes += bytes;
        let together = if cursor.in_flight.len() >= FRAMES_MAX { cursor.in_flight.pop_back() } else { None };
        cursor.in_flight.push_back((end, bytes + together.map_or(0, |(_, before)| before)));
    }

    /// The watermarks to send this follower where no data carries them (`R60`); counts as sent.
    pub fn next_progress(&mut self, follower: BrokerId) -> Option<Progress> {
        let log = self.core.log;
        let Role::Leader(leader) = &mut self.role else { return None };
        let cursor = leader.peer_mut(follower)?.cursor.as_mut()?;
        if cursor.sent_high_watermark == log.high_watermark && cursor.sent_log_start == log.start {
            return None;
        }
        cursor.sent_high_watermark = log.high_watermark;
        cursor.sent_log_start = log.start;
        Some(Progress { session: cursor.session, high_watermark: log.high_watermark, log_start: log.start })
    }

    /// The committed ISR; empty where this replica does not lead.
    #[must_use]
    pub fn isr(&self) -> &[BrokerId] {
        match &self.role {
            Role::Leader(leader) => &leader.isr,
            _ => &[],
        }
    }

    /// What the leader knows of a follower's log end; None until it opened in this leader epoch.
    #[must_use]
    pub fn follower_log_end(&self, follower: BrokerId) -> Option<Offset> {
        match &self.role {
            Role::Leader(leader) => leader.peer(follower)?.log_end,
            _ => None,
        }
    }

    /// The smallest log start of the live replicas: DeleteRecords answers when it is reached (`R60`). `NONE` while a live
    /// follower has not said its own.
    #[must_use]
    pub fn low_watermark(&self) -> Offset {
        let Role::Leader(leader) = &self.role else { return Offset::NONE };
        let live = |peer: &&Peer| self.core.member(peer.id).is_some_and(|member| member.eligible);
        leader.peers.iter().filter(live).map(|peer| peer.log_start).fold(self.core.log.start, Offset::min)
    }
}

impl Leader {
    /// `R28`. The caller settles once the role is in place.
    pub(crate) fn start(core: &mut Core, state: &PartitionState, previous: Option<Box<Leader>>, now: Time) -> Leader {
        let epoch_start = core.log.end;
        core.epochs.assign(core.leader_epoch, epoch_start);
        core.act(Action::EpochsChanged);
        core.act(Action::LeaderStarted { leader_epoch: core.leader_epoch });
        let mut leader =
            Leader { epoch_start, isr: state.isr.clone(), peers: Vec::new(), pending: None, hold_until: Time::ZERO };
        leader.adopt_members(core, now);
        if let Some(previous) = previous
            && !core.config.rules.hold(Rule::R18ForgetFollowersOnElection)
        {
            for peer in &mut leader.peers {
                peer.log_end = previous.peer(peer.id).and_then(|before| before.log_end);
            }
        }
        leader
    }

    /// The same leadership, newer metadata (`R16`, `R28`).
    pub(crate) fn handle_metadata(&mut self, core: &mut Core, state: &PartitionState, changed: bool, now: Time) {
        if changed {
            // A proposal under the old partition epoch can no longer be applied (R15).
            self.pending = None;
            self.hold_until = Time::ZERO;
        }
        self.isr.clone_from(&state.isr);
        self.adopt_members(core, now);
        self.settle(core, now);
    }

    /// Keeps what is known of followers that stay, forgets those that went or registered anew (`R8`, `R56`).
    fn adopt_members(&mut self, core: &mut Core, now: Time) {
        let mut before = std::mem::take(&mut self.peers);
        let me = core.config.me;
        for member in core.members.clone().into_iter().filter(|member| member.id != me) {
            let known = before.iter().position(|peer| peer.id == member.id).map(|at| before.swap_remove(at));
            let in_isr = self.isr.contains(&member.id);
            let mut peer = known.unwrap_or_else(|| Peer::new(member.id, in_isr, core.log.end, now));
            let stale = peer.greatest.is_some_and(|session| session.broker_epoch < member.broker_epoch);
            if stale && core.config.rules.hold(Rule::R8BrokerEpoch) {
                peer.log_end = None;
                peer.end_session(core, ErrorCode::NotLeaderOrFollower);
            }
            self.peers.push(peer);
        }
        for mut gone in before {
            gone.end_session(core, ErrorCode::UnknownLeaderEpoch);
        }
    }

    pub(crate) fn end_sessions(&mut self, core: &mut Core) {
        for peer in &mut self.peers {
            peer.end_session(core, ErrorCode::NotLeaderOrFollower);
        }
    }

    /// After anything that the ISR or the high watermark depends on. First the ISR: who is about to join already counts.
    pub(crate) fn settle(&mut self, core: &mut Core, now: Time) {
        self.maybe_propose(core, now);
        self.maybe_advance_high_watermark(core, now);
    }

    /// `R18`, over the maximal ISR (`R14`) and those about to join.
    fn maybe_advance_high_watermark(&mut self, core: &mut Core, now: Time) {
        if self.isr.len() < core.min_isr && core.config.rules.hold(Rule::R18NoAdvanceBelowMinIsr) {
            return;
        }
        let mut lowest = core.counted_end();
        for peer in &self.peers {
            if self.counts(core, peer.id) || self.is_joining(core, peer, now) {
                let Some(log_end) = peer.log_end else { return };
                lowest = lowest.min(log_end);
            }
        }
        if lowest > core.log.high_watermark {
            core.set_high_watermark(lowest);
            self.progress_dirty(core);
        }
    }

    /// Whether a follower is in the maximal ISR (`R14`).
    fn counts(&self, core: &Core, id: BrokerId) -> bool {
        let rules = core.config.rules;
        let Some(pending) = &self.pending else { return self.isr.contains(&id) };
        if self.isr.contains(&id) {
            let stays = pending.proposal.isr.iter().any(|(member, _)| *member == id);
            return stays || rules.hold(Rule::R14MaximalIsrOnShrink);
        }
        pending.added.contains(&id) && rules.hold(Rule::R14MaximalIsrOnExpand)
    }

    /// Whether a follower is not proposed yet but will be: caught up and eligible (`R18`).
    fn is_joining(&self, core: &Core, peer: &Peer, now: Time) -> bool {
        let proposed = self.pending.as_ref().is_some_and(|pending| pending.added.contains(&peer.id));
        !proposed
            && !self.isr.contains(&peer.id)
            && !core.recovering
            && peer.is_eligible(core)
            && peer.is_caught_up(core, now)
    }

    pub(crate) fn maximal_isr_len(&self) -> usize {
        let added =
            self.pending.as_ref().map_or(0, |pending| pending.added.iter().filter(|id| !self.isr.contains(id)).count());
        self.isr.len() + added
    }

    fn handle_append(&mut self, core: &mut Core, old_end: Offset, now: Time) {
        for peer in &mut self.peers {
            if peer.log_end == Some(old_end) && core.config.rules.hold(Rule::R61AppendCountsAsCaughtUp) {
                peer.caught_up = now;
                peer.mark = Mark { at: now, log_end: core.log.end };
            }
            if peer.cursor.is_some() {
                core.act(Action::StreamDirty { follower: peer.id });
            }
        }
        if core.sync_before_ack {
            core.act(Action::Sync);
        }
        self.settle(core, now);
    }

    fn handle_open(&mut self, core: &mut Core, id: BrokerId, session: Session, open: Open, now: Time) -> OpenVerdict {
        let refused = |code| OpenVerdict::Answer(Answer::Refused(code));
        let Some(member) = core.member(id).filter(|_| id != core.config.me) else {
            return refused(ErrorCode::UnknownLeaderEpoch);
        };
        if core.config.rules.hold(Rule::R8BrokerEpoch) {
            if session.broker_epoch < member.broker_epoch {
                return refused(ErrorCode::NotLeaderOrFollower);
            }
            if session.broker_epoch > member.broker_epoch {
                return OpenVerdict::Park;
            }
        }
        let greatest_only = core.config.rules.hold(Rule::R57GreatestSession);
        let Some(peer) = self.peer_mut(id) else { return refused(ErrorCode::UnknownLeaderEpoch) };
        if greatest_only && peer.greatest.is_some_and(|greatest| greatest >= session) {
            return OpenVerdict::Ignore;
        }
        peer.greatest = Some(session);
        peer.cursor = None;
        let answer = divergence_of(core, &open);
        if let Answer::Opened { .. } = answer {
            peer.opened(core, session, open, now);
            let lost = open.log_end < core.log.high_watermark && self.isr.contains(&id);
            if lost {
                let high_watermark = core.log.high_watermark;
                core.act(Action::MemberLostRecords { follower: id, log_end: open.log_end, high_watermark });
            }
            if open.log_end < core.log.end {
                core.act(Action::StreamDirty { follower: id });
            }
        }
        self.settle(core, now);
        OpenVerdict::Answer(answer)
    }

    fn handle_ack(
        &mut self,
        core: &mut Core,
        follower: BrokerId,
        session: Session,
        ack: Ack,
        now: Time,
    ) -> Result<(), CloseStream> {
        let strict = core.config.rules.hold(Rule::R59AckOfCurrentSession);
        let Some(peer) = self.peer_mut(follower) else { return Ok(()) };
        match &mut peer.cursor {
            Some(cursor) if cursor.session == session => {
                if ack.log_end > cursor.sent_end {
                    return Err(CloseStream { follower, acked: ack.log_end, sent: cursor.sent_end });
                }
                let window_was_full = cursor.in_flight_bytes >= core.config.window_bytes;
                cursor.acknowledged(ack.log_end);
                if window_was_full && cursor.sent_end < core.log.end {
                    core.act(Action::StreamDirty { follower });
                }
            }
            _ if strict => return Ok(()),
            _ => {}
        }
        peer.log_start = peer.log_start.max(ack.log_start);
        peer.acknowledged(core, ack.log_end, now);
        self.settle(core, now);
        Ok(())
    }

    /// Sessions that have not been sent what is now deleted cannot go on: they open anew and are told so (`R26`).
    pub(crate) fn handle_log_start(&mut self, core: &mut Core) {
        let start = core.log.start;
        for peer in &mut self.peers {
            if peer.cursor.as_ref().is_some_and(|cursor| cursor.sent_end < start) {
                peer.end_session(core, ErrorCode::OffsetOutOfRange);
            }
        }
        self.progress_dirty(core);
    }

    fn progress_dirty(&self, core: &mut Core) {
        for peer in self.peers.iter().filter(|peer| peer.cursor.is_some()) {
            core.act(Action::StreamDirty { follower: peer.id });
        }
    }

    pub(crate) fn timeout(&self, core: &Core) -> Option<Time> {
        if let Some(at) = self.pending.as_ref().and_then(|pending| pending.send_at) {
            return Some(at);
        }
        let lag = core.config.lag_time_max_ms;
        let lagging = self.peers.iter().filter(|peer| peer.log_end != Some(core.log.end));
        let watched = lagging.filter(|peer| {
            let in_isr = self.isr.contains(&peer.id);
            (in_isr && self.pending.is_none())
                || (!in_isr && peer.cursor.is_some() && core.log.high_watermark < core.log.end)
        });
        let expires = watched.map(|peer| peer.caught_up + lag + 1).min();
        expires.max(expires.map(|_| self.hold_until)).or(self.held())
    }

    fn held(&self) -> Option<Time> {
        (self.hold_until > Time::ZERO && self.pending.is_none()).then_some(self.hold_until)
    }

    pub(crate) fn handle_timeout(&mut self, core: &mut Core, now: Time) {
        self.maybe_send_again(core, now);
        if self.hold_until <= now {
            self.hold_until = Time::ZERO;
        }
        self.settle(core, now);
    }

    pub(crate) fn peer(&self, id: BrokerId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.id == id)
    }

    fn peer_mut(&mut self, id: BrokerId) -> Option<&mut Peer> {
        self.peers.iter_mut().find(|peer| peer.id == id)
    }

    fn cursor_mut(&mut self, id: BrokerId, session: Session) -> Option<&mut Cursor> {
        self.peer_mut(id)?.cursor.as_mut().filter(|cursor| cursor.session == session)
    }
}

/// `R24`, `R26`, `R57`: how the follower's log stands to this one.
fn divergence_of(core: &Core, open: &Open) -> Answer {
    let log = core.log;
    let out_of_range = Answer::OutOfRange { log_start: log.start, log_end: log.end };
    let opened = Answer::Opened { high_watermark: log.high_watermark, log_start: log.start, log_end: log.end };
    if open.last_epoch == LeaderEpoch::NONE {
        // Only an empty log has no last epoch; then there is nothing to compare but the place.
        let empty = open.log_start == open.log_end;
        let inside = log.start <= open.log_end && open.log_end <= log.end;
        return if empty && inside { opened } else { out_of_range };
    }
    if open.log_end < log.start {
        return out_of_range;
    }
    match core.epochs.end_offset_for(open.last_epoch, log.end) {
        None => out_of_range,
        Some(found) if found.epoch < open.last_epoch || found.end < open.log_end => {
            Answer::Diverging { epoch: found.epoch, end: found.end }
        }
        Some(_) => opened,
    }
}

impl Peer {
    fn new(id: BrokerId, in_isr: bool, leader_log_end: Offset, now: Time) -> Peer {
        Peer {
            id,
            log_end: None,
            log_start: Offset::NONE,
            caught_up: if in_isr { now } else { Time::ZERO },
            mark: Mark { at: now, log_end: leader_log_end },
            greatest: None,
            cursor: None,
        }
    }

    fn opened(&mut self, core: &Core, session: Session, open: Open, now: Time) {
        self.cursor = Some(Cursor {
            session,
            sent_end: open.log_end,
            sent_epoch: open.last_epoch,
            sent_high_watermark: core.log.high_watermark,
            sent_log_start: core.log.start,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        });
        self.log_start = open.log_start;
        self.log_end = None;
        self.acknowledged(core, open.log_end, now);
    }

    /// Its log reaches `log_end`: cumulative, and the times of `R61`.
    fn acknowledged(&mut self, core: &Core, log_end: Offset, now: Time) {
        self.log_end = self.log_end.max(Some(log_end));
        let leader_log_end = core.log.end;
        if log_end >= leader_log_end {
            self.caught_up = now;
            self.mark = Mark { at: now, log_end: leader_log_end };
        } else if log_end >= self.mark.log_end {
            self.caught_up = self.caught_up.max(self.mark.at);
            self.mark = Mark { at: now, log_end: leader_log_end };
        }
    }

    fn end_session(&mut self, core: &mut Core, error: ErrorCode) {
        if let Some(cursor) = self.cursor.take() {
            core.act(Action::SessionEnded { follower: self.id, session: cursor.session, error });
        }
    }

    fn is_caught_up(&self, core: &Core, now: Time) -> bool {
        self.log_end == Some(core.log.end) || now.since(self.caught_up) <= core.config.lag_time_max_ms
    }

    /// `R11`; and at once when it opened below the high watermark (`R57`).
    pub(crate) fn is_out_of_sync(&self, core: &Core, now: Time) -> bool {
        let lost_records = self.log_end.is_some_and(|log_end| log_end < core.log.high_watermark);
        let by_time = core.config.rules.hold(Rule::R11LagByTime);
        lost_records || if by_time { !self.is_caught_up(core, now) } else { self.log_end != Some(core.log.end) }
    }

    /// The member that the metadata shows, unfenced, and the very incarnation of the current session (`R12`, `R64`).
    fn is_eligible(&self, core: &Core) -> bool {
        let (Some(cursor), Some(member)) = (&self.cursor, core.member(self.id)) else { return false };
        let same = cursor.session.broker_epoch == member.broker_epoch;
        member.eligible && (same || !core.config.rules.hold(Rule::R64SessionBrokerEpoch))
    }

    /// `R12`, `R64`.
    pub(crate) fn may_join(&self, core: &Core, epoch_start: Offset) -> bool {
        let leso = core.config.rules.hold(Rule::R12ExpandAboveLeaderEpochStart);
        let least = if leso { core.log.high_watermark.max(epoch_start) } else { core.log.high_watermark };
        self.log_end.is_some_and(|log_end| log_end >= least) && self.is_eligible(core)
    }

    pub(crate) fn session_epoch(&self) -> BrokerEpoch {
        self.cursor.as_ref().map_or(BrokerEpoch::NONE, |cursor| cursor.session.broker_epoch)
    }
}

impl Cursor {
    fn acknowledged(&mut self, log_end: Offset) {
        while let Some((end, bytes)) = self.in_flight.front().copied()
            && end <= log_end
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }
}
