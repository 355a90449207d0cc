//! One replica of one partition: its role, its mirror of the log, and what anyone may ask of it.
//!
//! ```text
//!             metadata: leader = me                metadata: leader = another
//!   Idle ───────────────────────────► Leader ◄──────────────────────────────► Follower
//!     ▲                                 │                                        │
//!     └──────────── metadata: no leader, or I am no replica ─────────────────────┘
//! ```

use std::collections::VecDeque;

use model::{
    BrokerEpoch, BrokerId, EpochCache, EpochEnd, ErrorCode, LeaderEpoch, Offset, PartitionEpoch, Rule, Rules, Time,
};

use crate::follower::Follower;
use crate::leader::Leader;
use crate::messages::{
    AckRule, Action, Divergence, FetchPosition, LogView, Member, PartitionState, ReplicaConfig, SyncPoint,
};

/// The core of one partition replica. See the crate.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    pub(crate) core: Core,
    pub(crate) role: Role,
}

/// What a replica does.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Role {
    Idle,
    Leader(Box<Leader>),
    Follower(Follower),
}

/// What all roles share.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Core {
    pub(crate) config: ReplicaConfig,
    pub(crate) log: LogView,
    pub(crate) truncations: u32,
    pub(crate) epochs: EpochCache,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) partition_epoch: PartitionEpoch,
    pub(crate) members: Vec<Member>,
    pub(crate) ack_rule: AckRule,
    /// By this broker's own settings.
    pub(crate) own_sync_before_ack: bool,
    /// By those of the leader that it follows, as that said last: a default may stand in the file of one broker only.
    pub(crate) leader_syncs_before_ack: bool,
    pub(crate) recovering: bool,
    pub(crate) last_open_no: u64,
    pub(crate) last_proposal: u64,
    pub(crate) actions: VecDeque<Action>,
}

impl Replica {
    /// A replica with the log as recovered; idle until metadata comes. The high watermark is a hint (`R19`), and the
    /// cache is trimmed to the log (`R25`).
    #[must_use]
    pub fn new(config: ReplicaConfig, log: LogView, mut epochs: EpochCache) -> Self {
        epochs.truncate_from_start(log.start);
        epochs.truncate_to(log.end);
        let log = LogView {
            high_watermark: log.high_watermark.clamp(log.start, log.end),
            synced_end: log.synced_end.clamp(log.start, log.end),
            ..log
        };
        let core = Core {
            last_open_no: config.opens_before,
            config,
            log,
            truncations: 0,
            epochs,
            leader_epoch: LeaderEpoch::NONE,
            partition_epoch: PartitionEpoch::NONE,
            members: Vec::new(),
            ack_rule: AckRule { min_isr: 1, zones: 0 },
            own_sync_before_ack: false,
            leader_syncs_before_ack: false,
            recovering: false,
            last_proposal: 0,
            actions: VecDeque::new(),
        };
        Self { core, role: Role::Idle }
    }

    /// The next thing to carry out. Drain it after each input, before the next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.core.actions.pop_front()
    }

    /// When to call `handle_timeout`; None while time changes nothing.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        match &self.role {
            Role::Idle => None,
            Role::Leader(leader) => leader.timeout(&self.core),
            Role::Follower(follower) => follower.timeout(),
        }
    }

    /// The time of `poll_timeout` has come. Calling it early or late does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        match &mut self.role {
            Role::Idle => {}
            Role::Leader(leader) => leader.handle_timeout(&mut self.core, now),
            Role::Follower(follower) => follower.handle_timeout(&mut self.core, now),
        }
    }

    /// The partition's record, or anything that the metadata says of its replicas or its topic, changed (`R3`, `R28`).
    pub fn handle_metadata(&mut self, state: &PartitionState, now: Time) {
        let core = &mut self.core;
        if state.partition_epoch < core.partition_epoch && core.config.rules.hold(Rule::R3StalePartitionEpoch) {
            return;
        }
        let same_leadership = state.leader_epoch == core.leader_epoch;
        let changed = state.partition_epoch != core.partition_epoch;
        let before = core.syncs_before_ack();
        core.adopt(state);
        let mine = state.replicas.iter().any(|member| member.id == core.config.me);
        if state.leader == core.config.me && mine {
            match &mut self.role {
                Role::Leader(leader) if same_leadership => leader.handle_metadata(core, state, changed, now),
                _ => self.start_leading(state, now),
            }
        } else if state.leader != BrokerId::NONE && mine {
            let same = matches!(&self.role, Role::Follower(f) if f.leader == state.leader);
            let epoch_ends = !same_leadership && core.config.rules.hold(Rule::R28NewEpochEndsSession);
            if !same || epoch_ends {
                self.start_following(state.leader);
            }
        } else {
            self.stop_role();
        }
        let after = self.core.syncs_before_ack();
        if after && !before {
            self.become_durable();
        } else if before
            && !after
            && let Role::Follower(follower) = &self.role
        {
            // What waited for a sync counts now, and nothing else may come that would tell so.
            follower.handle_sync_before_ack(&mut self.core);
        }
    }

    /// Records count once they are durable from now on: what is not yet has to be, and what is has to be told (`R59`).
    fn become_durable(&mut self) {
        let core = &mut self.core;
        match &mut self.role {
            Role::Idle => {}
            Role::Leader(_) | Role::Follower(_) if core.log.synced_end < core.log.end => core.act(Action::Sync),
            Role::Leader(_) => {}
            Role::Follower(follower) => follower.ack_dirty(core),
        }
    }

    /// The partition goes away from this broker, or the broker stops: as metadata without a leader.
    pub fn handle_stop(&mut self) {
        self.stop_role();
    }

    /// A sync ended that began when `sync_point` gave `point`.
    pub fn handle_synced(&mut self, point: SyncPoint, now: Time) {
        let core = &mut self.core;
        if point.truncations != core.truncations || point.end <= core.log.synced_end {
            return;
        }
        core.log.synced_end = point.end.min(core.log.end);
        match &mut self.role {
            Role::Idle => {}
            Role::Leader(leader) => leader.settle(core, now),
            Role::Follower(follower) => follower.handle_synced(core),
        }
    }

    /// Whether records count only once they are durable has changed.
    pub fn handle_sync_before_ack(&mut self, sync_before_ack: bool, now: Time) {
        let core = &mut self.core;
        core.own_sync_before_ack = sync_before_ack;
        match &mut self.role {
            Role::Idle => {}
            Role::Leader(leader) => {
                leader.tell_mode(core);
                leader.settle(core, now);
            }
            Role::Follower(follower) => follower.handle_sync_before_ack(core),
        }
    }

    /// The end of what this replica vouches for by itself: under sync before ack what is durable (`R18`).
    #[must_use]
    pub fn counted_end(&self) -> Offset {
        self.core.counted_end()
    }

    /// What a sync that starts now covers.
    #[must_use]
    pub fn sync_point(&self) -> SyncPoint {
        SyncPoint { end: self.core.log.end, truncations: self.core.truncations }
    }

    /// The log now starts at `start`, by retention or DeleteRecords: never above the high watermark (`R39`).
    pub fn handle_log_start(&mut self, start: Offset) {
        let core = &mut self.core;
        if !core.raise_log_start(start) {
            return;
        }
        match &mut self.role {
            Role::Idle => {}
            Role::Leader(leader) => leader.handle_log_start(core),
            Role::Follower(follower) => follower.ack_dirty(core),
        }
    }

    fn start_leading(&mut self, state: &PartitionState, now: Time) {
        let previous = self.leave_role(false);
        let leader = Leader::start(&mut self.core, state, previous, now);
        self.role = Role::Leader(Box::new(leader));
        if let Role::Leader(leader) = &mut self.role {
            leader.settle(&mut self.core, now);
        }
    }

    fn start_following(&mut self, leader: BrokerId) {
        self.leave_role(true);
        self.role = Role::Follower(Follower::start(&mut self.core, leader));
    }

    fn stop_role(&mut self) {
        let followed = matches!(self.role, Role::Follower(_));
        self.leave_role(true);
        if followed {
            self.core.act(Action::FollowerStopped);
        }
    }

    /// Ends sessions and, where leadership is lost, the waiting produces. A leader of a newer epoch keeps those: its log
    /// has their records.
    fn leave_role(&mut self, loses_leadership: bool) -> Option<Box<Leader>> {
        self.core.leader_syncs_before_ack = false;
        match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Idle => None,
            Role::Leader(mut leader) => {
                if loses_leadership && self.core.config.rules.hold(Rule::R20FailWaitingProduces) {
                    self.core.act(Action::LeaderStopped);
                }
                leader.end_sessions(&mut self.core);
                Some(leader)
            }
            Role::Follower(mut follower) => {
                follower.end_session(&mut self.core);
                None
            }
        }
    }
}

/// Questions.
impl Replica {
    /// The mirror of the log.
    #[must_use]
    pub fn log(&self) -> LogView {
        self.core.log
    }

    /// Which rules hold: for what the log's owner asks of other cores.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.core.config.rules
    }

    /// The leader-epoch cache, to be made durable (`R25`).
    #[must_use]
    pub fn epochs(&self) -> &EpochCache {
        &self.core.epochs
    }

    /// The leader epoch of the metadata applied last.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.core.leader_epoch
    }

    /// The partition epoch in force.
    #[must_use]
    pub fn partition_epoch(&self) -> PartitionEpoch {
        self.core.partition_epoch
    }

    /// The epoch of the last record; `NONE` where the log is empty (`R57`).
    #[must_use]
    pub fn last_epoch(&self) -> LeaderEpoch {
        self.core.last_epoch()
    }

    /// Whether it leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Whom it follows.
    #[must_use]
    pub fn followed_leader(&self) -> Option<BrokerId> {
        match &self.role {
            Role::Follower(follower) => Some(follower.leader),
            _ => None,
        }
    }

    /// Checks the leader epoch that a request carries (`NONE`: none) against this replica's (`R23`).
    ///
    /// # Errors
    /// `FENCED_LEADER_EPOCH` or `UNKNOWN_LEADER_EPOCH`.
    pub fn check_epoch(&self, leader_epoch: LeaderEpoch) -> Result<(), ErrorCode> {
        if leader_epoch == LeaderEpoch::NONE || leader_epoch == self.core.leader_epoch {
            Ok(())
        } else if leader_epoch < self.core.leader_epoch {
            Err(ErrorCode::FencedLeaderEpoch)
        } else {
            Err(ErrorCode::UnknownLeaderEpoch)
        }
    }

    /// As `check_epoch`, and that this replica leads.
    ///
    /// # Errors
    /// Those of `check_epoch`, then `NOT_LEADER_OR_FOLLOWER`.
    pub fn check_leader(&self, leader_epoch: LeaderEpoch) -> Result<(), ErrorCode> {
        self.check_epoch(leader_epoch)?;
        if self.is_leader() { Ok(()) } else { Err(ErrorCode::NotLeaderOrFollower) }
    }

    /// Where a consumer's offset stands (`R19`) that may read up to `readable_end`, the high watermark or the last stable
    /// offset (`R43`): offsets that this has not reached yet wait. A follower may lag behind any offset that exists, so it
    /// makes all of them wait.
    #[must_use]
    pub fn fetch_position(&self, offset: Offset, readable_end: Offset) -> FetchPosition {
        let log = self.core.log;
        if offset < log.start || (offset > log.end && self.is_leader()) {
            FetchPosition::OutOfRange
        } else if offset < readable_end
            || (offset < log.end && !self.core.config.rules.hold(Rule::R19ReadBelowHighWatermark))
        {
            FetchPosition::Readable
        } else {
            FetchPosition::Wait
        }
    }

    /// The offset that ListOffsets calls latest (`R19`).
    ///
    /// # Errors
    /// `OFFSET_NOT_AVAILABLE` while a new leader's high watermark may be behind the one clients saw.
    pub fn latest_offset(&self) -> Result<Offset, ErrorCode> {
        match &self.role {
            Role::Leader(leader)
                if self.core.log.high_watermark < leader.epoch_start
                    && self.core.config.rules.hold(Rule::R19LatestOffset) =>
            {
                Err(ErrorCode::OffsetNotAvailable)
            }
            _ => Ok(self.core.log.high_watermark),
        }
    }

    /// Where `leader_epoch`, or the largest one below it, ends here (`R24`), as Kafka tells its clients: nothing of an epoch
    /// that is yet to come, and of one before all that is here the beginning of what is.
    #[must_use]
    pub fn end_offset_for_epoch(&self, leader_epoch: LeaderEpoch) -> Option<EpochEnd> {
        let epochs = &self.core.epochs;
        if leader_epoch > epochs.latest()?.epoch {
            return None;
        }
        let before_all = || Some(EpochEnd { epoch: leader_epoch, end: epochs.entries().first()?.start });
        epochs.end_offset_for(leader_epoch, self.core.log.end).or_else(before_all)
    }

    /// Whether a client whose record before `fetch_offset` has epoch `last_fetched_epoch` read from another log (KIP-595).
    #[must_use]
    pub fn divergence(&self, last_fetched_epoch: LeaderEpoch, fetch_offset: Offset) -> Divergence {
        match self.end_offset_for_epoch(last_fetched_epoch) {
            None => Divergence::OutOfRange,
            Some(found) if found.epoch < last_fetched_epoch || found.end < fetch_offset => Divergence::Diverging(found),
            Some(_) => Divergence::None,
        }
    }
}

impl Core {
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn adopt(&mut self, state: &PartitionState) {
        self.leader_epoch = state.leader_epoch;
        self.partition_epoch = state.partition_epoch;
        self.members.clone_from(&state.replicas);
        self.adopt_rule(state.ack_rule);
        self.own_sync_before_ack = state.sync_before_ack;
        self.recovering = state.recovering;
    }

    /// Of the members that are here.
    pub(crate) fn adopt_rule(&mut self, rule: AckRule) {
        self.ack_rule = AckRule { min_isr: rule.min_isr.min(self.members.len()), ..rule };
    }

    /// Whether these in-sync replicas may commit (`R18`, `R79`).
    pub(crate) fn is_enough(&self, isr: impl Iterator<Item = BrokerId> + Clone) -> bool {
        let AckRule { min_isr, zones } = self.ack_rule;
        let by_zones = zones > 0 && self.config.rules.hold(Rule::R79Zones);
        isr.clone().count() >= min_isr && (!by_zones || self.zones_of(isr) >= zones)
    }

    /// How many zones they are in.
    fn zones_of(&self, isr: impl Iterator<Item = BrokerId> + Clone) -> usize {
        let zone = |id| self.member(id).and_then(|member| member.zone);
        let first_of_zone = |(at, id): &(usize, BrokerId)| {
            zone(*id).is_some_and(|mine| isr.clone().take(*at).all(|other| zone(other) != Some(mine)))
        };
        isr.clone().enumerate().filter(first_of_zone).count()
    }

    pub(crate) fn member(&self, id: BrokerId) -> Option<Member> {
        self.members.iter().find(|member| member.id == id).copied()
    }

    pub(crate) fn broker_epoch(&self, id: BrokerId) -> BrokerEpoch {
        self.member(id).map_or(BrokerEpoch::NONE, |member| member.broker_epoch)
    }

    /// Whether records count only once they are durable: by this broker's settings or by its leader's, which would wait for
    /// ever for what no follower syncs (`R59`).
    pub(crate) fn syncs_before_ack(&self) -> bool {
        self.own_sync_before_ack || self.leader_syncs_before_ack
    }

    /// The end of what this replica vouches for: under sync before ack what is durable (`R18`, `R59`).
    pub(crate) fn counted_end(&self) -> Offset {
        let synced = self.syncs_before_ack() && self.config.rules.hold(Rule::R18SyncedEnd);
        if synced { self.log.synced_end } else { self.log.end }
    }

    /// The epoch of the last record, never that of a cache entry without a record (`R57`).
    pub(crate) fn last_epoch(&self) -> LeaderEpoch {
        if self.log.start >= self.log.end {
            return LeaderEpoch::NONE;
        }
        if !self.config.rules.hold(Rule::R57LastRecordsEpoch) {
            return self.epochs.latest().map_or(LeaderEpoch::NONE, |latest| latest.epoch);
        }
        self.epochs.epoch_of(self.log.end + -1).unwrap_or(LeaderEpoch::NONE)
    }

    pub(crate) fn set_high_watermark(&mut self, high_watermark: Offset) {
        if high_watermark != self.log.high_watermark {
            self.log.high_watermark = high_watermark;
            self.act(Action::HighWatermark(high_watermark));
        }
    }

    /// Cuts the log; the caller has proved by `R24` that what goes is not committed.
    pub(crate) fn truncate_to(&mut self, end: Offset) {
        if end >= self.log.end {
            return;
        }
        assert!(end >= self.log.start, "truncation below the log start: end={end} log start={}", self.log.start);
        self.truncations = self.truncations.wrapping_add(1);
        self.log.end = end;
        self.log.synced_end = self.log.synced_end.min(end);
        self.epochs.truncate_to(end);
        self.act(Action::TruncateTo(end));
        self.act(Action::EpochsChanged);
        self.set_high_watermark(self.log.high_watermark.min(end));
    }

    /// Drops everything and starts anew (`R26`).
    pub(crate) fn reset_to(&mut self, start: Offset) {
        self.truncations = self.truncations.wrapping_add(1);
        self.log = LogView { start, end: start, synced_end: start, ..self.log };
        self.epochs = EpochCache::default();
        self.act(Action::ResetTo(start));
        self.act(Action::EpochsChanged);
        self.set_high_watermark(start);
    }

    /// Raises the log start, up to the high watermark; whether it moved.
    pub(crate) fn raise_log_start(&mut self, start: Offset) -> bool {
        let below = self.config.rules.hold(Rule::R39LogStart);
        let start = start.min(if below { self.log.high_watermark } else { self.log.end });
        if start <= self.log.start {
            return false;
        }
        self.log.start = start;
        self.log.synced_end = self.log.synced_end.max(start);
        self.epochs.truncate_from_start(start);
        true
    }

    /// A record of `epoch` now stands at `offset` (`R25`).
    pub(crate) fn epoch_appended(&mut self, epoch: LeaderEpoch, offset: Offset) {
        let before = self.epochs.latest();
        if self.config.rules.hold(Rule::R25DropStaleEpochs) {
            self.epochs.appended(epoch, offset);
        } else if before.is_none_or(|latest| latest.epoch < epoch) {
            self.epochs.assign(epoch, offset);
        }
        if self.epochs.latest() != before {
            self.act(Action::EpochsChanged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::replica;

    #[test]
    fn clients_are_told_where_epochs_end_as_kafka_tells_them() {
        // R24
        let replica = replica(40, 40, &[(3, 10), (7, 25)]);
        let ask = |epoch| replica.end_offset_for_epoch(LeaderEpoch(epoch)).map(|found| (found.epoch.0, found.end.0));
        let told = [ask(2), ask(3), ask(5), ask(7), ask(8)];
        assert_eq!(told, [Some((2, 10)), Some((3, 25)), Some((3, 25)), Some((7, 40)), None]);
        let diverges = |epoch, offset| replica.divergence(LeaderEpoch(epoch), Offset(offset));
        let diverging = |epoch, end| Divergence::Diverging(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) });
        assert_eq!(diverges(7, 40), Divergence::None);
        assert_eq!((diverges(3, 26), diverges(5, 20)), (diverging(3, 25), diverging(3, 25)));
        assert_eq!((diverges(2, 10), diverges(2, 11)), (Divergence::None, diverging(2, 10)));
        assert_eq!(diverges(8, 40), Divergence::OutOfRange);
    }
}
