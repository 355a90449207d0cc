//! The leader's side: appends, sessions of followers, acknowledgements, the high watermark.
//!
//! Invariants: a follower's log end counts only if it came in a session of this leader epoch (`R18`, `R59`); the high
//! watermark does not fall, and does not rise below the effective min ISR (`R18`) or in too few zones (`R79`); nothing is sent twice in one session.

use std::collections::VecDeque;
use std::ops::Range;

use model::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Rule, Time};

use crate::isr::Pending;
use crate::messages::{Ack, Action, Answer, CloseStream, Lane, Open, OpenVerdict, PartitionState, Progress, Session};
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
    /// Until when the high watermark waits for a follower that is about to join.
    pub(crate) joins_until: Option<Time>,
}

/// One follower, as its leader sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Peer {
    pub(crate) id: BrokerId,
    /// LEO_f: what it has acknowledged in this leader epoch; None until then.
    pub(crate) log_end: Option<Offset>,
    /// The same, of what it has told to be durable.
    pub(crate) durable_end: Option<Offset>,
    pub(crate) log_start: Offset,
    /// When it last had all that the leader had.
    pub(crate) caught_up: Time,
    pub(crate) mark: Mark,
    pub(crate) greatest: Option<Session>,
    pub(crate) cursor: Option<Cursor>,
}

/// Where the leader's log ended at a time (`R61`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Mark {
    pub(crate) at: Time,
    pub(crate) log_end: Offset,
}

/// The current session of a follower.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Cursor {
    pub(crate) session: Session,
    pub(crate) sent_end: Offset,
    pub(crate) sent_epoch: LeaderEpoch,
    pub(crate) sent_high_watermark: Offset,
    pub(crate) sent_log_start: Offset,
    /// Whether it was told that only what is durable counts (`R59`).
    pub(crate) sent_mode: bool,
    /// (end offset, bytes) of what is not acknowledged yet.
    pub(crate) in_flight: VecDeque<(Offset, u64)>,
    pub(crate) in_flight_bytes: u64,
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
    /// `NOT_LEADER_OR_FOLLOWER`; `NOT_ENOUGH_REPLICAS` for acks=all where the ISR is not enough (`R79`).
    pub fn check_produce(&self, acks: i16) -> Result<(), ErrorCode> {
        let Role::Leader(leader) = &self.role else { return Err(ErrorCode::NotLeaderOrFollower) };
        let strict = self.core.config.rules.hold(Rule::R20MinIsrBeforeAppend);
        if acks == -1 && strict && !self.core.is_enough(leader.isr.iter().copied()) {
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
        let enough = self.core.is_enough(leader.maximal_isr());
        if enough || !self.core.config.rules.hold(Rule::R20MinIsrAfterAppend) {
            ProduceVerdict::Done(ErrorCode::None)
        } else {
            ProduceVerdict::Done(ErrorCode::NotEnoughReplicasAfterAppend)
        }
    }

    /// What to answer to an acks=1 produce whose last record is before `end`: under sync before ack the leader's own records
    /// count once they are durable, as in Kafka, whose append with `flush.messages=1` ends with a sync.
    #[must_use]
    pub fn leader_verdict(&self, end: Offset) -> ProduceVerdict {
        match &self.role {
            Role::Leader(_) if self.core.counted_end() < end => ProduceVerdict::Pending,
            Role::Leader(_) => ProduceVerdict::Done(ErrorCode::None),
            _ => ProduceVerdict::Done(ErrorCode::NotLeaderOrFollower),
        }
    }

    /// A follower opens a session (`R57`, with the checks of `R8`, `R23`, `R24`, `R26`).
    pub fn handle_open(&mut self, follower: BrokerId, session: Session, open: Open, now: Time) -> OpenVerdict {
        let core = &mut self.core;
        if open.leader_epoch > core.leader_epoch && core.config.rules.hold(Rule::R23OpenFromTheFuture) {
            return OpenVerdict::Park;
        }
        if open.leader_epoch < core.leader_epoch && core.config.rules.hold(Rule::R23FencedOpen) {
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

    /// What `follower` is to get next is in memory or only on disk, and its session runs on `lane`. Where that is the other
    /// one's business the session is over, as one that the follower closed, and its follower opens another one there
    /// (`R62`). Says whether it moves.
    pub fn handle_next_records(&mut self, follower: BrokerId, lane: Lane, in_memory: bool, now: Time) -> bool {
        let to = match (lane, in_memory) {
            (Lane::Tail, true) | (Lane::CatchUp, false) => return false,
            (Lane::Tail, false) => Lane::CatchUp,
            (Lane::CatchUp, true) => Lane::Tail,
        };
        let Role::Leader(leader) = &self.role else { return false };
        let cursor = leader.peer(follower).and_then(|peer| peer.cursor.as_ref());
        let Some(session) = cursor.map(|cursor| cursor.session) else { return false };
        if !self.core.config.rules.hold(Rule::R62CatchUpLane) {
            return false;
        }
        self.core.act(Action::SessionMoved { follower, session, to });
        self.handle_session_closed(follower, session, now);
        true
    }

    /// Bytes that were sent in this follower's session and are not acknowledged yet (`R62`).
    #[must_use]
    pub fn in_flight(&self, follower: BrokerId) -> u64 {
        let Role::Leader(leader) = &self.role else { return 0 };
        let cursor = leader.peer(follower).and_then(|peer| peer.cursor.as_ref());
        cursor.map_or(0, |cursor| cursor.in_flight_bytes)
    }

    fn drop_cursor(&mut self, follower: BrokerId, which: impl Fn(Session) -> bool, now: Time) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.iter_mut().find(|peer| peer.id == follower) else { return };
        if peer.cursor.as_ref().is_some_and(|cursor| which(cursor.session)) {
            peer.cursor = None;
            if !self.core.config.rules.hold(Rule::R61BrokenStreamKeepsLogEnd) {
                peer.log_end = None;
                peer.durable_end = None;
            }
            leader.settle(&mut self.core, now);
        }
    }

    /// What to send this follower next; None while there is nothing, or its window is full (`R62`).
    #[must_use]
    pub fn next_send(&self, follower: BrokerId) -> Option<SendPlan> {
        let Role::Leader(leader) = &self.role else { return None };
        let cursor = leader.peer(follower)?.cursor.as_ref()?;
        let (log, window) = (self.core.log, self.core.config.window_bytes);
        let full = cursor.in_flight_bytes >= window && !cursor.in_flight.is_empty();
        if cursor.sent_end >= log.end || (full && self.core.config.rules.hold(Rule::R62Window)) {
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

    /// The watermarks to send this follower where no data carries them (`R60`), and whether it is to sync (`R59`); counts as sent.
    pub fn next_progress(&mut self, follower: BrokerId) -> Option<Progress> {
        let (log, sync_before_ack) = (self.core.log, self.core.syncs_before_ack());
        let Role::Leader(leader) = &mut self.role else { return None };
        let cursor = leader.peer_mut(follower)?.cursor.as_mut()?;
        let now = (log.high_watermark, log.start, sync_before_ack);
        if (cursor.sent_high_watermark, cursor.sent_log_start, cursor.sent_mode) == now {
            return None;
        }
        (cursor.sent_high_watermark, cursor.sent_log_start, cursor.sent_mode) = now;
        let (high_watermark, log_start) = (log.high_watermark, log.start);
        Some(Progress { session: cursor.session, high_watermark, log_start, sync_before_ack })
    }

    /// The committed ISR; empty where this replica does not lead.
    #[must_use]
    pub fn isr(&self) -> &[BrokerId] {
        match &self.role {
            Role::Leader(leader) => &leader.isr,
            _ => &[],
        }
    }

    /// Members that an undecided proposal adds (`R14`).
    #[must_use]
    pub fn joining(&self) -> &[BrokerId] {
        match &self.role {
            Role::Leader(leader) => leader.pending.as_ref().map_or(&[], |pending| &pending.added),
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

    /// What the leader knows a follower to have, from its log start to its log end; None until it opened in this leader epoch.
    #[must_use]
    pub fn follower_log(&self, follower: BrokerId) -> Option<Range<Offset>> {
        let Role::Leader(leader) = &self.role else { return None };
        let peer = leader.peer(follower)?;
        Some(peer.log_start..peer.log_end?)
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
        let mut leader = Leader {
            epoch_start,
            isr: state.isr.clone(),
            peers: Vec::new(),
            pending: None,
            hold_until: Time::ZERO,
            joins_until: None,
        };
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
        self.tell_mode(core);
        self.settle(core, now);
    }

    /// Followers are told whether only what is durable counts from now on (`R59`).
    pub(crate) fn tell_mode(&self, core: &mut Core) {
        let mode = core.syncs_before_ack();
        for peer in &self.peers {
            if peer.cursor.as_ref().is_some_and(|cursor| cursor.sent_mode != mode) {
                core.act(Action::ProgressDirty { follower: peer.id });
            }
        }
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
                peer.durable_end = None;
                peer.end_session(core, ErrorCode::NotLeaderOrFollower);
            }
            self.peers.push(peer);
        }
        for mut gone in before {
            if core.config.rules.hold(Rule::R38UnassignedFollower) {
                gone.end_session(core, ErrorCode::UnknownLeaderEpoch);
            } else {
                self.peers.push(gone);
            }
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
        self.joins_until = None;
        let enough = core.is_enough(self.isr.iter().copied());
        if !enough && core.config.rules.hold(Rule::R18NoAdvanceBelowMinIsr) {
            return;
        }
        let mut lowest = Some(core.counted_end());
        let mut joins_until = None;
        for peer in &self.peers {
            let joining = self.is_joining(core, peer, now);
            if joining && peer.counted_end(core) < Some(core.counted_end()) {
                let until = peer.caught_up + core.config.lag_time_max_ms + 1;
                joins_until = Some(joins_until.map_or(until, |other: Time| other.min(until)));
            }
            if joining || self.counts(core, peer.id) {
                // None, an unknown log end, is the lowest.
                lowest = lowest.min(peer.counted_end(core));
            }
        }
        self.joins_until = joins_until;
        if let Some(high_watermark) = lowest.filter(|lowest| *lowest > core.log.high_watermark) {
            core.set_high_watermark(high_watermark);
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

    /// Whether a follower is not proposed yet but will be: caught up and eligible, and not below the high watermark, where it has
    /// to be brought up first, which may take as long as a throttle wants (`R18`).
    fn is_joining(&self, core: &Core, peer: &Peer, now: Time) -> bool {
        let proposed = self.pending.as_ref().is_some_and(|pending| pending.added.contains(&peer.id));
        !proposed
            && !self.isr.contains(&peer.id)
            && !core.recovering
            && peer.is_eligible(core)
            && peer.is_caught_up(core, now)
            && peer.counted_end(core) >= Some(core.log.high_watermark)
    }

    /// The committed ISR, and who a pending proposal adds (`R14`).
    fn maximal_isr(&self) -> impl Iterator<Item = BrokerId> + Clone {
        let added = self.pending.iter().flat_map(|pending| &pending.added).filter(|id| !self.isr.contains(id));
        self.isr.iter().chain(added).copied()
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
        if core.syncs_before_ack() {
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
        if core.config.rules.hold(Rule::R57OnlyOpenedIsCurrent) {
            peer.cursor = None;
        }
        let mut answer = divergence_of(core, &open);
        if !core.config.rules.hold(Rule::R24Divergence) && matches!(answer, Answer::Diverging { .. }) {
            answer = opened(core);
        }
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
                if ack.log_end > cursor.sent_end && core.config.rules.hold(Rule::R59OnlyWhatWasSent) {
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
        peer.acknowledged(core, ack.log_end, ack.durable, now);
        self.settle(core, now);
        Ok(())
    }

    /// Sessions that have not been sent what is now deleted cannot go on: they open anew and are told so (`R26`).
    pub(crate) fn handle_log_start(&mut self, core: &mut Core) {
        let start = core.log.start;
        for peer in &mut self.peers {
            let behind = peer.cursor.as_ref().is_some_and(|cursor| cursor.sent_end < start);
            if behind && core.config.rules.hold(Rule::R26SessionBelowLogStart) {
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
        let decided = match &self.pending {
            Some(pending) => pending.send_at,
            None => self.next_proposal_at(core),
        };
        decided.into_iter().chain(self.joins_until).min()
    }

    /// When a member of the ISR falls out of it (`R11`), or a held proposal may be made.
    fn next_proposal_at(&self, core: &Core) -> Option<Time> {
        let lagging =
            self.peers.iter().filter(|peer| peer.log_end != Some(core.log.end) && self.isr.contains(&peer.id));
        let shrink = lagging.map(|peer| (peer.caught_up + core.config.lag_time_max_ms + 1).max(self.hold_until)).min();
        let held = Some(self.hold_until).filter(|held| *held > Time::ZERO);
        shrink.into_iter().chain(held).min()
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
    if open.last_epoch == LeaderEpoch::NONE {
        // Only an empty log has no last epoch; then there is nothing to compare but the place.
        let empty = open.log_start == open.log_end;
        let inside = log.start <= open.log_end && open.log_end <= log.end;
        return if empty && inside { opened(core) } else { out_of_range };
    }
    if open.log_end < log.start && core.config.rules.hold(Rule::R26LogStart) {
        return out_of_range;
    }
    match core.epochs.end_offset_for(open.last_epoch, log.end) {
        None => out_of_range,
        Some(found) if found.epoch < open.last_epoch || found.end < open.log_end => {
            Answer::Diverging { epoch: found.epoch, end: found.end }
        }
        Some(_) => opened(core),
    }
}

fn opened(core: &Core) -> Answer {
    Answer::Opened {
        high_watermark: core.log.high_watermark,
        log_start: core.log.start,
        log_end: core.log.end,
        sync_before_ack: core.syncs_before_ack(),
    }
}

impl Peer {
    fn new(id: BrokerId, in_isr: bool, leader_log_end: Offset, now: Time) -> Peer {
        Peer {
            id,
            log_end: None,
            durable_end: None,
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
            sent_mode: core.syncs_before_ack(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        });
        self.log_start = open.log_start;
        if core.config.rules.hold(Rule::R57OpenBelowCounts) {
            self.log_end = None;
            self.durable_end = None;
        }
        self.acknowledged(core, open.log_end, open.durable, now);
    }

    /// What of its log counts (`R18`): under sync before ack what it has told to be durable (`R59`).
    fn counted_end(&self, core: &Core) -> Option<Offset> {
        let strict = core.syncs_before_ack() && core.config.rules.hold(Rule::R59DurableAck);
        if strict { self.durable_end } else { self.log_end }
    }

    /// Its log reaches `log_end`: cumulative, and the times of `R61`.
    fn acknowledged(&mut self, core: &Core, log_end: Offset, durable: bool, now: Time) {
        self.log_end = self.log_end.max(Some(log_end));
        if durable {
            self.durable_end = self.durable_end.max(Some(log_end));
        }
        let leader_log_end = core.log.end;
        if log_end >= leader_log_end {
            self.caught_up = now;
            self.mark = Mark { at: now, log_end: leader_log_end };
        } else if log_end >= self.mark.log_end && core.config.rules.hold(Rule::R61Mark) {
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
        let Some(member) = core.member(self.id) else { return false };
        let same = self.cursor.as_ref().is_some_and(|cursor| cursor.session.broker_epoch == member.broker_epoch);
        (member.eligible || !core.config.rules.hold(Rule::R12EligibleMember))
            && (same || !core.config.rules.hold(Rule::R64SessionBrokerEpoch))
    }

    /// `R12`, `R64`; and not out of sync, or it would be proposed in and out in turn.
    pub(crate) fn may_join(&self, core: &Core, epoch_start: Offset, now: Time) -> bool {
        let reaches = |least| self.counted_end(core).is_some_and(|log_end| log_end >= least);
        let in_sync = (reaches(epoch_start) && self.is_caught_up(core, now))
            || !core.config.rules.hold(Rule::R12ExpandAboveLeaderEpochStart);
        let above = reaches(core.log.high_watermark) || !core.config.rules.hold(Rule::R12AboveHighWatermark);
        above && in_sync && self.is_eligible(core)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::FetchPosition;
    use crate::testing::*;

    fn hw(replica: &Replica) -> i64 {
        replica.log().high_watermark.0
    }

    fn opened(high_watermark: i64, log_start: i64, log_end: i64) -> OpenVerdict {
        OpenVerdict::Answer(Answer::Opened {
            high_watermark: Offset(high_watermark),
            log_start: Offset(log_start),
            log_end: Offset(log_end),
            sync_before_ack: false,
        })
    }

    #[test]
    fn a_leader_starts_its_epoch_where_its_log_ends() {
        // R28, R25
        let mut replica = replica(10, 7, &[(4, 0)]);
        replica.handle_metadata(&state(1, 5, 50, &[1, 2, 3]), T0);
        let started = Action::LeaderStarted { leader_epoch: LeaderEpoch(5) };
        assert_eq!(drain(&mut replica), [Action::EpochsChanged, started]);
        assert_eq!(*replica.epochs(), cache(&[(4, 0), (5, 10)]));
        assert_eq!(replica.last_epoch(), LeaderEpoch(4));
    }

    #[test]
    fn the_high_watermark_is_the_lowest_log_end_of_the_in_sync_replicas() {
        // R18
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        assert_eq!(hw(&leader), 7, "the log end of broker 3 is not known in this epoch");
        opens(&mut leader, B3, 1, 9, T0);
        assert_eq!(hw(&leader), 9);
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        assert_eq!(hw(&leader), 9);
        drain(&mut leader);
        acks(&mut leader, B3, 1, 11, T0);
        let dirty = |follower| Action::StreamDirty { follower };
        assert_eq!(drain(&mut leader), [Action::HighWatermark(Offset(11)), dirty(B2), dirty(B3)]);
    }

    #[test]
    fn what_followers_acknowledged_before_an_election_does_not_count_after_it() {
        // R18, R28
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 7, T0);
        drain(&mut leader);
        leader.handle_metadata(&state(1, 6, 51, &[1, 2]), T0);
        assert_eq!(hw(&leader), 7);
        assert_eq!(leader.follower_log_end(B2), None);
        let ended = |follower| Action::SessionEnded {
            follower,
            session: session(follower, 1),
            error: ErrorCode::NotLeaderOrFollower,
        };
        let started = Action::LeaderStarted { leader_epoch: LeaderEpoch(6) };
        assert_eq!(drain(&mut leader), [ended(B2), ended(B3), Action::EpochsChanged, started]);
    }

    #[test]
    fn the_high_watermark_does_not_rise_below_the_min_isr() {
        // R18
        let mut leader = leader(10, 7, &[1]);
        append(&mut leader, 11, T0);
        assert_eq!(hw(&leader), 7);
    }

    #[test]
    fn a_partition_of_one_replica_needs_one_whatever_min_insync_replicas_says() {
        // R18: the effective min ISR
        let mut replica = replica(10, 7, &[(4, 0)]);
        let mut alone = state(1, 5, 50, &[1]);
        alone.replicas.truncate(1);
        replica.handle_metadata(&alone, T0);
        assert_eq!(hw(&replica), 10);
        append(&mut replica, 12, T0);
        assert_eq!(replica.produce_verdict(Offset(12)), ProduceVerdict::Done(ErrorCode::None));
    }

    #[test]
    fn under_sync_before_ack_the_leaders_own_records_count_once_durable() {
        // R18, R59
        let mut replica = replica(10, 10, &[(4, 0)]);
        let metadata = PartitionState { sync_before_ack: true, ..state(1, 5, 50, &[1, 2]) };
        replica.handle_metadata(&metadata, T0);
        opens(&mut replica, B2, 1, 10, T0);
        append(&mut replica, 12, T0);
        acks_durably(&mut replica, B2, 1, 12, T0);
        assert_eq!(hw(&replica), 10);
        assert_eq!(replica.leader_verdict(Offset(12)), ProduceVerdict::Pending);
        assert!(drain(&mut replica).contains(&Action::Sync));
        let point = replica.sync_point();
        replica.handle_synced(point, T0);
        assert_eq!(hw(&replica), 12);
        assert_eq!(replica.leader_verdict(Offset(12)), ProduceVerdict::Done(ErrorCode::None));
        // Where it is no longer asked for, nobody waits for it.
        append(&mut replica, 14, T0);
        assert_eq!(replica.leader_verdict(Offset(14)), ProduceVerdict::Pending);
        replica.handle_sync_before_ack(false, T0);
        assert_eq!(replica.leader_verdict(Offset(14)), ProduceVerdict::Done(ErrorCode::None));
    }

    /// What a leader counts of a follower that has not heard yet that its topic is to be synced before ack.
    fn counts_from_the_page_cache(config: crate::messages::ReplicaConfig) -> Replica {
        let mut replica = replica_with(config, 10, 10, &[(4, 0)]);
        replica.handle_metadata(&state(1, 5, 50, &[1, 2]), T0);
        opens(&mut replica, B2, 1, 10, T0);
        append(&mut replica, 12, T0);
        replica.handle_metadata(&PartitionState { sync_before_ack: true, ..state(1, 5, 50, &[1, 2]) }, T0);
        assert!(drain(&mut replica).contains(&Action::Sync), "the leader's own log has to become durable");
        let point = replica.sync_point();
        replica.handle_synced(point, T0);
        acks(&mut replica, B2, 1, 12, T0);
        replica
    }

    #[test]
    fn after_a_change_to_sync_before_ack_a_follower_counts_once_it_says_that_it_is_durable() {
        // R59
        let mut replica = counts_from_the_page_cache(config());
        assert_eq!((hw(&replica), replica.follower_log_end(B2)), (10, Some(Offset(12))));
        acks_durably(&mut replica, B2, 1, 12, T0);
        assert_eq!(hw(&replica), 12);
    }

    #[test]
    fn a_new_leader_holds_what_it_cannot_prove_committed() {
        // R19
        let mut leader = leader(10, 7, &[1, 2, 3]);
        assert_eq!(leader.latest_offset(), Err(ErrorCode::OffsetNotAvailable));
        let positions =
            |leader: &Replica| [6, 7, 10, 11].map(|o| leader.fetch_position(Offset(o), leader.log().high_watermark));
        use FetchPosition::{OutOfRange, Readable, Wait};
        assert_eq!(positions(&leader), [Readable, Wait, Wait, OutOfRange]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        assert_eq!(leader.latest_offset(), Ok(Offset(10)));
        assert_eq!(positions(&leader), [Readable, Readable, Wait, OutOfRange]);
    }

    #[test]
    fn acks_all_is_refused_below_the_min_isr_before_anything_is_appended() {
        // R20
        let alone = leader(10, 10, &[1]);
        assert_eq!(alone.check_produce(-1), Err(ErrorCode::NotEnoughReplicas));
        assert_eq!(alone.check_produce(1), Ok(()));
        assert_eq!(leader(10, 10, &[1, 2]).check_produce(-1), Ok(()));
        assert_eq!(replica(10, 10, &[]).check_produce(1), Err(ErrorCode::NotLeaderOrFollower));
    }

    /// Broker 1 and 2 are in one zone, 3 in another; records count in two.
    fn zoned(rules: model::Rules, isr: &[i32]) -> Replica {
        let config = crate::messages::ReplicaConfig { rules, ..config() };
        let mut replica = replica_with(config, 10, 10, &[(4, 0)]);
        let mut metadata = state(1, 5, 50, isr);
        metadata.ack_rule.zones = 2;
        for (member, zone) in metadata.replicas.iter_mut().zip([7, 7, 9]) {
            member.zone = Some(zone);
        }
        replica.handle_metadata(&metadata, T0);
        opens(&mut replica, B2, 1, 10, T0);
        drain(&mut replica);
        replica
    }

    #[test]
    fn in_one_zone_nothing_is_committed_however_many_have_it() {
        // R18, R20, R79
        let mut leader = zoned(rules(), &[1, 2]);
        assert_eq!(leader.check_produce(-1), Err(ErrorCode::NotEnoughReplicas));
        assert_eq!(leader.check_produce(1), Ok(()));
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        assert_eq!(hw(&leader), 10);
        let too_few = ProduceVerdict::Done(ErrorCode::NotEnoughReplicasAfterAppend);
        assert_eq!(leader.produce_verdict(Offset(10)), too_few);
        let mut both = zoned(rules(), &[1, 2, 3]);
        assert_eq!(both.check_produce(-1), Ok(()));
        opens(&mut both, B3, 1, 10, T0);
        append(&mut both, 12, T0);
        acks(&mut both, B2, 1, 12, T0);
        assert_eq!(hw(&both), 10);
        acks(&mut both, B3, 1, 12, T0);
        assert_eq!(hw(&both), 12);
    }

    #[test]
    fn a_replica_without_a_zone_is_in_none() {
        // R79
        let mut leader = zoned(rules(), &[1, 3]);
        assert_eq!(leader.check_produce(-1), Ok(()));
        let mut metadata = state(1, 5, 51, &[1, 3]);
        metadata.ack_rule.zones = 2;
        metadata.replicas[0].zone = Some(7);
        leader.handle_metadata(&metadata, T0);
        assert_eq!(leader.check_produce(-1), Err(ErrorCode::NotEnoughReplicas));
    }

    #[test]
    fn a_produce_is_done_when_the_high_watermark_passes_it() {
        // R17, R20
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        append(&mut leader, 12, T0);
        assert_eq!(leader.produce_verdict(Offset(12)), ProduceVerdict::Pending);
        acks(&mut leader, B2, 1, 12, T0);
        assert_eq!(leader.produce_verdict(Offset(12)), ProduceVerdict::Done(ErrorCode::None));
        let mut alone = state(1, 5, 51, &[1]);
        alone.replicas[1].eligible = false;
        leader.handle_metadata(&alone, T0);
        let too_few = ProduceVerdict::Done(ErrorCode::NotEnoughReplicasAfterAppend);
        assert_eq!(leader.produce_verdict(Offset(12)), too_few);
        leader.handle_metadata(&state(2, 6, 52, &[2]), T0);
        assert_eq!(leader.produce_verdict(Offset(12)), ProduceVerdict::Done(ErrorCode::NotLeaderOrFollower));
    }

    #[test]
    fn a_follower_that_agrees_is_opened_and_sent_what_it_lacks() {
        // R57, R58
        let mut leader = leader(10, 7, &[1, 2, 3]);
        assert_eq!(opens(&mut leader, B2, 1, 8, T0), opened(7, 0, 10));
        let plan = SendPlan {
            session: session(B2, 1),
            prev_offset: Offset(8),
            prev_epoch: LeaderEpoch(4),
            max_bytes: 1000,
            at_least_one: true,
            high_watermark: Offset(7),
            log_start: Offset(0),
            leader_log_end: Offset(10),
        };
        assert_eq!(leader.next_send(B2), Some(plan));
        leader.handle_sent(B2, &plan, Offset(10), LeaderEpoch(4), 900);
        assert_eq!(leader.next_send(B2), None);
        leader.handle_leader_append(Offset(11), T0);
        let next = SendPlan { prev_offset: Offset(10), max_bytes: 100, at_least_one: false, ..plan };
        assert_eq!(leader.next_send(B2), Some(SendPlan { leader_log_end: Offset(11), ..next }));
    }

    #[test]
    fn a_full_window_waits_for_an_acknowledgement() {
        // R62
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 5, T0);
        let plan = leader.next_send(B2).unwrap();
        leader.handle_sent(B2, &plan, Offset(7), LeaderEpoch(4), 5000);
        assert_eq!(leader.next_send(B2), None);
        drain(&mut leader);
        acks(&mut leader, B2, 1, 7, T0);
        assert!(drain(&mut leader).contains(&Action::StreamDirty { follower: B2 }));
        assert_eq!(leader.next_send(B2).map(|plan| plan.prev_offset), Some(Offset(7)));
    }

    #[test]
    fn opens_of_other_leader_epochs_are_fenced_or_parked() {
        // R23, R57
        let mut leader = leader(10, 7, &[1, 2, 3]);
        let at = |epoch| Open { leader_epoch: LeaderEpoch(epoch), ..open(1, 10, 4) };
        let fenced = OpenVerdict::Answer(Answer::Refused(ErrorCode::FencedLeaderEpoch));
        assert_eq!(leader.handle_open(B2, session(B2, 1), at(4), T0), fenced);
        assert_eq!(leader.handle_open(B2, session(B2, 1), at(6), T0), OpenVerdict::Park);
        assert_eq!(leader.handle_open(B2, session(B2, 1), at(5), T0), opened(7, 0, 10));
        let unknown = OpenVerdict::Answer(Answer::Refused(ErrorCode::UnknownLeaderEpoch));
        assert_eq!(leader.handle_open(BrokerId(9), session(B2, 1), at(5), T0), unknown);
    }

    #[test]
    fn an_open_of_an_older_registration_is_refused_and_of_a_newer_one_parked() {
        // R8, R56
        let mut leader = leader(10, 7, &[1, 2, 3]);
        let of = |broker_epoch| Session { broker_epoch: BrokerEpoch(broker_epoch), ..session(B2, 1) };
        let refused = OpenVerdict::Answer(Answer::Refused(ErrorCode::NotLeaderOrFollower));
        assert_eq!(leader.handle_open(B2, of(19), open(1, 10, 4), T0), refused);
        assert_eq!(leader.handle_open(B2, of(21), open(1, 10, 4), T0), OpenVerdict::Park);
    }

    #[test]
    fn a_log_that_parts_is_told_where_and_does_not_count() {
        // R24
        let mut replica = replica(20, 12, &[(2, 0), (4, 10)]);
        replica.handle_metadata(&state(1, 5, 50, &[1, 2, 3]), T0);
        let answer = |replica: &mut Replica, open_no, log_end, last_epoch| {
            replica.handle_open(B2, session(B2, open_no), open(open_no, log_end, last_epoch), T0)
        };
        let diverging =
            |epoch, end| OpenVerdict::Answer(Answer::Diverging { epoch: LeaderEpoch(epoch), end: Offset(end) });
        assert_eq!(answer(&mut replica, 1, 15, 3), diverging(2, 10), "an epoch that I do not have");
        assert_eq!(answer(&mut replica, 2, 13, 2), diverging(2, 10), "longer than mine in that epoch");
        assert_eq!(answer(&mut replica, 3, 25, 4), diverging(4, 20), "beyond my end is divergence, not out of range");
        assert_eq!(replica.follower_log_end(B2), None);
        assert_eq!(answer(&mut replica, 4, 10, 2), opened(12, 0, 20));
    }

    #[test]
    fn a_follower_below_my_log_start_or_older_than_all_my_epochs_starts_anew() {
        // R26, R57
        let mut leader = leader(10, 7, &[1, 2, 3]);
        leader.handle_log_start(Offset(5));
        let out_of_range = OpenVerdict::Answer(Answer::OutOfRange { log_start: Offset(5), log_end: Offset(10) });
        assert_eq!(opens(&mut leader, B2, 1, 4, T0), out_of_range);
        assert_eq!(leader.handle_open(B2, session(B2, 2), open(2, 8, 3), T0), out_of_range);
        let empty = |open_no, at| Open { log_start: Offset(at), ..open(open_no, at, -1) };
        assert_eq!(leader.handle_open(B2, session(B2, 3), empty(3, 4), T0), out_of_range);
        assert_eq!(leader.handle_open(B2, session(B2, 4), empty(4, 11), T0), out_of_range);
        assert_eq!(leader.handle_open(B2, session(B2, 5), open(5, 8, -1), T0), out_of_range, "records of no epoch");
        assert_eq!(leader.handle_open(B2, session(B2, 6), empty(6, 5), T0), opened(7, 5, 10));
    }

    #[test]
    fn only_the_greatest_open_of_a_follower_has_a_session() {
        // R57
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 3, 9, T0);
        assert_eq!(opens(&mut leader, B2, 2, 10, T0), OpenVerdict::Ignore);
        assert_eq!(leader.follower_log_end(B2), Some(Offset(9)));
        assert_eq!(opens(&mut leader, B2, 4, 8, T0), opened(7, 0, 10));
        assert_eq!(leader.follower_log_end(B2), Some(Offset(8)), "an open counts even if it is lower than before");
    }

    #[test]
    fn a_later_open_on_an_older_stream_is_the_greater_one() {
        // R57, R62: from the catch-up lane back to its own lane
        let mut leader = leader(10, 7, &[1, 2, 3]);
        let on = |open_no, stream_no| Session { stream_no, ..session(B2, open_no) };
        leader.handle_open(B2, on(1, 9), open(1, 8, 4), T0);
        assert_eq!(leader.handle_open(B2, on(2, 3), open(2, 10, 4), T0), opened(7, 0, 10));
    }

    #[test]
    fn a_session_whose_records_are_on_disk_only_moves_to_the_catch_up_lane_and_comes_back() {
        // R62
        let mut leader = leader(10, 7, &[1, 2, 3]);
        let on = |open_no, stream_no| Session { stream_no, ..session(B2, open_no) };
        opens(&mut leader, B2, 1, 8, T0);
        drain(&mut leader);
        assert!(!leader.handle_next_records(B2, Lane::Tail, true, T0));
        assert!(leader.handle_next_records(B2, Lane::Tail, false, T0));
        let moved = |session, to| [Action::SessionMoved { follower: B2, session, to }];
        assert_eq!(drain(&mut leader), moved(on(1, 1), Lane::CatchUp));
        assert_eq!((leader.next_send(B2), leader.follower_log_end(B2)), (None, Some(Offset(8))));
        assert!(!leader.handle_next_records(B2, Lane::Tail, false, T0), "it moves once");
        leader.handle_open(B2, on(2, 2), open(2, 8, 4), T0);
        assert!(!leader.handle_next_records(B2, Lane::CatchUp, false, T0));
        send_all(&mut leader);
        assert_eq!(leader.in_flight(B2), 10);
        drain(&mut leader);
        assert!(leader.handle_next_records(B2, Lane::CatchUp, true, T0));
        assert_eq!(drain(&mut leader), moved(on(2, 2), Lane::Tail));
        assert_eq!(leader.in_flight(B2), 0);
        assert_eq!(leader.handle_open(B2, on(3, 1), open(3, 10, 4), T0), opened(7, 0, 10));
    }

    #[test]
    fn an_ack_of_a_session_that_has_moved_does_not_count() {
        // R59, R62: what counts is what the follower opens with on its other lane
        let mut leader = leader(10, 7, &[1, 2]);
        opens(&mut leader, B2, 1, 7, T0);
        send_all(&mut leader);
        assert!(leader.handle_next_records(B2, Lane::CatchUp, true, T0));
        acks(&mut leader, B2, 1, 10, T0);
        assert_eq!((leader.follower_log_end(B2), hw(&leader)), (Some(Offset(7)), 7));
        let elsewhere = Session { stream_no: 9, ..session(B2, 2) };
        leader.handle_open(B2, elsewhere, open(2, 10, 4), T0);
        assert_eq!(hw(&leader), 10);
    }

    #[test]
    fn acks_of_other_sessions_do_not_count() {
        // R59
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 8, T0);
        send_all(&mut leader);
        opens(&mut leader, B2, 2, 7, T0);
        send_all(&mut leader);
        acks(&mut leader, B2, 1, 10, T0);
        assert_eq!(leader.follower_log_end(B2), Some(Offset(7)));
        leader.handle_open(B2, session(B2, 3), open(3, 30, 4), T0);
        // All of it was sent in session 2, which the diverging open has ended.
        acks(&mut leader, B2, 2, 10, T0);
        acks(&mut leader, B2, 3, 10, T0);
        assert_eq!(leader.follower_log_end(B2), Some(Offset(7)), "a diverging open is no session");
    }

    #[test]
    fn an_ack_of_bytes_that_were_cut_since_counts_for_nothing() {
        // R27: the follower had 14 of the first leadership; both logs were cut to 10, and grew to 14 anew
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        append(&mut leader, 14, T0);
        leader.handle_metadata(&state(3, 6, 51, &[1, 2, 3]), T0);
        let open_of_mine = leader.open_request().unwrap();
        let diverging = Answer::Diverging { epoch: LeaderEpoch(4), end: Offset(10) };
        leader.handle_answer(open_of_mine.open_no, diverging, T0);
        leader.handle_metadata(&state(1, 7, 52, &[1, 2]), T0);
        let anew = Open { leader_epoch: LeaderEpoch(7), ..open(2, 10, 4) };
        leader.handle_open(B2, session(B2, 2), anew, T0);
        append(&mut leader, 14, T0);
        acks(&mut leader, B2, 1, 14, T0);
        assert_eq!((leader.follower_log_end(B2), hw(&leader)), (Some(Offset(10)), 10));
        acks(&mut leader, B2, 2, 14, T0);
        assert_eq!(hw(&leader), 14);
    }

    #[test]
    fn an_ack_of_what_was_never_sent_closes_the_stream() {
        // R59
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 8, T0);
        let ack = Ack { open_no: 1, log_end: Offset(9), log_start: Offset(0), durable: false };
        let broken = CloseStream { follower: B2, acked: Offset(9), sent: Offset(8) };
        assert_eq!(leader.handle_ack(B2, session(B2, 1), ack, T0), Err(broken));
        assert_eq!(leader.follower_log_end(B2), Some(Offset(8)));
    }

    #[test]
    fn a_new_registration_of_a_follower_voids_its_log_end_and_session() {
        // R8, R56
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        drain(&mut leader);
        let mut metadata = state(1, 5, 50, &[1, 2, 3]);
        metadata.replicas[1].broker_epoch = BrokerEpoch(77);
        leader.handle_metadata(&metadata, T0);
        let error = ErrorCode::NotLeaderOrFollower;
        assert_eq!(drain(&mut leader), [Action::SessionEnded { follower: B2, session: session(B2, 1), error }]);
        assert_eq!(leader.follower_log_end(B2), None);
        acks(&mut leader, B2, 1, 10, T0);
        assert_eq!(leader.follower_log_end(B2), None);
    }

    #[test]
    fn a_replica_that_was_taken_off_the_partition_counts_no_more() {
        // R38
        let mut leader = leader(10, 7, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 9, T0);
        drain(&mut leader);
        let mut metadata = state(1, 5, 51, &[1, 2]);
        metadata.replicas.pop();
        leader.handle_metadata(&metadata, T0);
        let error = ErrorCode::UnknownLeaderEpoch;
        assert_eq!(drain(&mut leader), [Action::SessionEnded { follower: B3, session: session(B3, 1), error }]);
        assert_eq!(leader.follower_log_end(B3), None);
        assert_eq!(opens(&mut leader, B3, 2, 10, T0), OpenVerdict::Answer(Answer::Refused(error)));
    }

    #[test]
    fn a_broken_stream_changes_neither_log_end_nor_lag() {
        // R61
        let mut leader = leader(10, 7, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        leader.handle_stream_closed(B2, BrokerEpoch(20), 1, T0 + 5);
        assert_eq!(leader.follower_log_end(B2), Some(Offset(10)));
        assert_eq!(leader.next_send(B2), None);
    }

    #[test]
    fn watermarks_that_no_data_carried_go_out_once() {
        // R60
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        assert_eq!(leader.next_progress(B2), None);
        append(&mut leader, 12, T0);
        acks(&mut leader, B2, 1, 12, T0);
        let progress = Progress {
            session: session(B2, 1),
            high_watermark: Offset(12),
            log_start: Offset(0),
            sync_before_ack: false,
        };
        assert_eq!(leader.next_progress(B2), Some(progress));
        assert_eq!(leader.next_progress(B2), None);
        leader.handle_log_start(Offset(6));
        assert_eq!(leader.next_progress(B2), Some(Progress { log_start: Offset(6), ..progress }));
    }

    #[test]
    fn followers_are_told_whether_only_what_is_durable_counts() {
        // R59: their own settings may be others
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        drain(&mut leader);
        for strict in [true, false] {
            leader.handle_sync_before_ack(strict, T0);
            assert!(
                drain(&mut leader).contains(&Action::ProgressDirty { follower: B2 }),
                "whether data goes there or not"
            );
            assert_eq!(leader.next_progress(B2).map(|progress| progress.sync_before_ack), Some(strict));
            assert_eq!(leader.next_progress(B2), None);
        }
        leader.handle_metadata(&PartitionState { sync_before_ack: true, ..state(1, 5, 50, &[1, 2]) }, T0);
        assert!(drain(&mut leader).contains(&Action::ProgressDirty { follower: B2 }));
        let answer = leader.handle_open(B3, session(B3, 1), open(1, 10, 4), T0);
        assert!(matches!(answer, OpenVerdict::Answer(Answer::Opened { sync_before_ack: true, .. })), "{answer:?}");
    }

    #[test]
    fn the_low_watermark_waits_for_every_live_replica() {
        // R60
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        leader.handle_log_start(Offset(6));
        assert_eq!(leader.low_watermark(), Offset::NONE);
        opens(&mut leader, B3, 1, 10, T0);
        assert_eq!(leader.low_watermark(), Offset(0));
        for follower in [B2, B3] {
            let ack = Ack { open_no: 1, log_end: Offset(10), log_start: Offset(6), durable: false };
            leader.handle_ack(follower, session(follower, 1), ack, T0).unwrap();
        }
        assert_eq!(leader.low_watermark(), Offset(6));
    }

    #[test]
    fn a_session_behind_the_new_log_start_has_to_open_anew() {
        // R26
        let mut leader = leader(10, 10, &[1, 2]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 3, T0);
        drain(&mut leader);
        leader.handle_log_start(Offset(6));
        let ended = Action::SessionEnded { follower: B3, session: session(B3, 1), error: ErrorCode::OffsetOutOfRange };
        assert_eq!(drain(&mut leader), [ended, Action::StreamDirty { follower: B2 }]);
    }

    #[test]
    fn the_log_start_stays_at_or_below_the_high_watermark() {
        // R39
        let mut leader = leader(10, 7, &[1, 2, 3]);
        leader.handle_log_start(Offset(9));
        assert_eq!(leader.log().start, Offset(7));
    }

    #[test]
    fn an_idle_leader_has_no_timer_and_is_small() {
        let mut leader = leader(10, 10, &[1, 2, 3]);
        opens(&mut leader, B2, 1, 10, T0);
        opens(&mut leader, B3, 1, 10, T0);
        assert_eq!(leader.poll_timeout(), None);
        assert!(std::mem::size_of::<Replica>() <= 320, "{}", std::mem::size_of::<Replica>());
        assert!(std::mem::size_of::<Peer>() <= 240, "{}", std::mem::size_of::<Peer>());
    }

    /// What the tests above hold depends on the very rules: without one, its outcome is another.
    #[cfg(feature = "mutations")]
    mod mutations {
        use super::*;
        use model::Rules;

        fn leader_without(rule: Rule, isr: &[i32]) -> Replica {
            let config = crate::messages::ReplicaConfig { rules: Rules::without(rule), ..config() };
            let mut replica = replica_with(config, 10, 7, &[(4, 0)]);
            replica.handle_metadata(&state(1, 5, 50, isr), T0);
            drain(&mut replica);
            replica
        }

        #[test]
        fn an_older_registration_would_be_opened() {
            let mut leader = leader_without(Rule::R8BrokerEpoch, &[1, 2, 3]);
            let stale = Session { broker_epoch: BrokerEpoch(19), ..session(B2, 1) };
            assert_eq!(leader.handle_open(B2, stale, open(1, 10, 4), T0), opened(7, 0, 10));
        }

        #[test]
        fn a_replica_that_was_taken_off_would_still_be_served() {
            let mut leader = leader_without(Rule::R38UnassignedFollower, &[1, 2]);
            opens(&mut leader, B3, 1, 9, T0);
            let mut metadata = state(1, 5, 51, &[1, 2]);
            metadata.replicas.pop();
            leader.handle_metadata(&metadata, T0);
            assert_eq!(leader.follower_log_end(B3), Some(Offset(9)));
        }

        #[test]
        fn one_zone_alone_would_commit() {
            let mut leader = zoned(Rules::without(Rule::R79Zones), &[1, 2]);
            append(&mut leader, 12, T0);
            acks(&mut leader, B2, 1, 12, T0);
            assert_eq!(hw(&leader), 12);
        }

        #[test]
        fn log_ends_would_outlive_an_election() {
            let mut leader = leader_without(Rule::R18ForgetFollowersOnElection, &[1, 2, 3]);
            opens(&mut leader, B2, 1, 10, T0);
            leader.handle_metadata(&state(1, 6, 51, &[1, 2]), T0);
            assert_eq!(hw(&leader), 10);
        }

        #[test]
        fn an_earlier_open_would_replace_a_later_one() {
            let mut leader = leader_without(Rule::R57GreatestSession, &[1, 2, 3]);
            opens(&mut leader, B2, 3, 9, T0);
            assert_eq!(opens(&mut leader, B2, 2, 10, T0), opened(7, 0, 10));
        }

        #[test]
        fn a_session_would_stay_where_its_disk_holds_up_others() {
            let mut leader = leader_without(Rule::R62CatchUpLane, &[1, 2, 3]);
            opens(&mut leader, B2, 1, 8, T0);
            assert!(!leader.handle_next_records(B2, Lane::Tail, false, T0));
            assert!(leader.next_send(B2).is_some());
        }

        #[test]
        fn an_ack_of_an_ended_session_would_count() {
            let mut leader = leader_without(Rule::R59AckOfCurrentSession, &[1, 2, 3]);
            opens(&mut leader, B2, 1, 8, T0);
            opens(&mut leader, B2, 2, 7, T0);
            acks(&mut leader, B2, 1, 10, T0);
            assert_eq!(leader.follower_log_end(B2), Some(Offset(10)));
        }

        #[test]
        fn an_ack_from_the_page_cache_would_count_under_sync_before_ack() {
            let config = crate::messages::ReplicaConfig { rules: Rules::without(Rule::R59DurableAck), ..config() };
            assert_eq!(hw(&counts_from_the_page_cache(config)), 12);
        }

        #[test]
        fn a_produce_below_the_min_isr_would_be_appended_and_acknowledged() {
            let leader = leader_without(Rule::R20MinIsrBeforeAppend, &[1]);
            assert_eq!(leader.check_produce(-1), Ok(()));
            let leader = leader_without(Rule::R20MinIsrAfterAppend, &[1]);
            assert_eq!(leader.produce_verdict(Offset(7)), ProduceVerdict::Done(ErrorCode::None));
        }

        #[test]
        fn the_first_append_after_idleness_would_empty_the_isr() {
            let mut leader = leader_without(Rule::R61AppendCountsAsCaughtUp, &[1, 2]);
            opens(&mut leader, B2, 1, 10, T0);
            append(&mut leader, 11, T0 + 10 * LAG_MS);
            assert!(drain(&mut leader).iter().any(|action| matches!(action, Action::ProposeIsr(_))));
        }

        #[test]
        fn a_follower_would_be_proposed_out_for_any_lag() {
            let config = crate::messages::ReplicaConfig { rules: Rules::without(Rule::R11LagByTime), ..config() };
            let mut replica = replica_with(config, 10, 7, &[(4, 0)]);
            replica.handle_metadata(&state(1, 5, 50, &[1, 2]), T0);
            assert!(drain(&mut replica).iter().any(|action| matches!(action, Action::ProposeIsr(_))));
        }
    }
}
