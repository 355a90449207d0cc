//! One shard: the groups of one partition of `__consumer_offsets`, and how a shell drives it.
//!
//! The shell owns the log and the clocks:
//! 1. Load: [`GroupShard::replay`] every record from the log start to its end, once the high watermark covers it, those of
//!    transactions with [`GroupShard::replay_in_transaction`], markers with [`GroupShard::replay_marker`]; then
//!    [`GroupShard::finish_load`].
//! 2. For each request, topic deletion or due [`GroupShard::poll_timeout`]: call the method, then drain
//!    [`GroupShard::poll_output`]. Requests that wait may be handed in together before draining: their records
//!    then go into one batch.
//! 3. For an [`Output::Append`], [`Output::AppendInTransaction`] or [`Output::AppendMarker`]: append with acks=all, in the
//!    order in which they come; when the high watermark covers it, [`GroupShard::committed`]; when it is certain that nothing
//!    was appended, [`GroupShard::failed`]; as long as neither is certain, nothing: the shard answers the waiting requests in
//!    time by itself. Then drain again.
//! 4. Leadership lost: [`GroupShard::unload`], drain, drop the shard. A new shard is loaded from the log.
//!
//! Every token is answered exactly once, by [`Output::Reply`].
//!
//! # Why one batch in flight is enough, and sound
//!
//! One batch is on its way to the log; what is decided meanwhile gathers in a queue, and goes out as the next batch. What
//! belongs to transactions is a batch of its own, and may be on its way beside it: nothing is decided on it.
//! Heartbeats, joins, fetches and descriptions are answered meanwhile: they read the members as they are now, or the
//! offsets that are committed. No decision assumes that a queued write will succeed, or that it will fail: commits do not
//! look at offsets at all, a deletion writes tombstones for what is stored *and* for what is on its way, and expiry passes
//! over a group with writes on their way. So the order of the log is all that counts, and a failed batch takes
//! nothing with it but the requests that waited for it.

mod consumers;
mod deleted_topics;
mod transactions;

use std::collections::VecDeque;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::MetadataImage;
use model::{ErrorCode, PartitionIndex, Time, TopicId};

use crate::classic::{ClassicGroup, Effects, Stored, Turn, Write, protocol_bytes};
use crate::config::{GroupConfig, MEMBER_OVERHEAD_BYTES};
use crate::consumer::request::ConsumerHeartbeatResponse;
use crate::consumer::{ConsumerFact, LiveConsumerGroup};
use crate::offsets;
use crate::pending::OffsetKey;
use crate::record::{CoordinatorRecord, Fact};
use crate::request::{
    DeleteGroupRequest, DeleteGroupResponse, DescribeGroupRequest, DescribeGroupResponse, GroupRequest, GroupResponse,
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    LeftMember, ListGroupsRequest, ListGroupsResponse, ListedGroup, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, SyncGroupRequest, SyncGroupResponse,
};
use crate::state::GroupState;
use crate::transaction::Marker;
use crate::transaction::request::Producer;
use crate::writes::{Form, Operation, Resolved, Waiting, Writes};
pub use consumers::Readers;
use consumers::{check_consumer_commit, check_consumer_fetch};

/// Names a request until it is answered; chosen by the shell, unique while in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Counts the batches of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchNumber(pub u64);

/// Both clocks: sessions and rebalances are measured with the one, what is written is dated with the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Now {
    /// A clock that never goes back.
    pub monotonic: Time,
    /// Milliseconds since 1970.
    pub wall: Time,
}

/// What a group coordinator asks of its shell besides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupEffect {
    /// Call [`crate::consumer::regex::resolve`], which may take a while, then [`GroupShard::resolved`].
    Resolve {
        /// For which group.
        group_id: String,
        /// What to resolve.
        expressions: Vec<String>,
        /// Against what.
        image: Arc<MetadataImage>,
    },
}

/// What the shell must do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Answer a request.
    Reply {
        /// Which.
        token: Token,
        /// The answer.
        response: GroupResponse,
    },
    /// Append these records as one batch with acks=all, and say [`GroupShard::committed`] or [`GroupShard::failed`].
    Append {
        /// Its number.
        batch: BatchNumber,
        /// Its records, in order; never empty.
        records: Vec<CoordinatorRecord>,
    },
    /// The same, as part of a producer's transaction (`R49`).
    AppendInTransaction {
        /// Its number.
        batch: BatchNumber,
        /// Whose.
        producer: Producer,
        /// As it stood in the request.
        guard: Option<u64>,
        /// Its records, in order; never empty.
        records: Vec<CoordinatorRecord>,
    },
    /// The same with a marker that ends a transaction.
    AppendMarker {
        /// Its number.
        batch: BatchNumber,
        /// The marker.
        marker: Marker,
    },
    /// Something else.
    Effect(GroupEffect),
}

/// Whether requests can be served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    Loading,
    Serving { next_expiry: Time },
    Unloaded(ErrorCode),
}

/// The groups of one partition of `__consumer_offsets`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupShard {
    config: GroupConfig,
    stage: Stage,
    /// What is committed.
    state: GroupState,
    /// The groups with members, or that had some. A group that only has offsets is not here.
    groups: BTreeMap<String, ClassicGroup>,
    /// The consumer groups, as they are decided. A group is here or above, never in both.
    consumers: BTreeMap<String, LiveConsumerGroup>,
    /// The cluster.
    image: Arc<MetadataImage>,
    /// The metadata offset at which the last topic was seen to be there.
    topic_created_at: i64,
    effects: VecDeque<GroupEffect>,
    /// Bytes that the members of all groups brought.
    member_bytes: usize,
    /// For each group with deadlines, one time at or before the next.
    timers: BTreeSet<(Time, String)>,
    scheduled: BTreeMap<String, Time>,
    writes: Writes,
    replies: VecDeque<(Token, GroupResponse)>,
    skipped_records: u64,
    /// Offsets of deleted topics that wait for what another topic of the name has on its way.
    spared: BTreeMap<OffsetKey, BTreeSet<TopicId>>,
    rebalances: Rebalances,
}

/// How often the groups of a shard were rebalanced since it was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rebalances {
    /// Generations of classic groups, with members, that were stored.
    pub classic: u64,
    /// Group epochs of consumer groups.
    pub consumer: u64,
}

/// The life of a shard, and the shell's side of it.
impl GroupShard {
    /// An empty shard, to be loaded.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        GroupShard {
            config,
            stage: Stage::Loading,
            state: GroupState::default(),
            groups: BTreeMap::new(),
            consumers: BTreeMap::new(),
            image: Arc::default(),
            topic_created_at: -1,
            effects: VecDeque::new(),
            member_bytes: 0,
            timers: BTreeSet::new(),
            scheduled: BTreeMap::new(),
            writes: Writes::default(),
            replies: VecDeque::new(),
            skipped_records: 0,
            spared: BTreeMap::new(),
            rebalances: Rebalances::default(),
        }
    }

    /// Applies a record of the log while loading. Records that cannot be read are skipped and counted, those of kinds that
    /// this version does not know are skipped.
    pub fn replay(&mut self, record: &CoordinatorRecord) {
        match Fact::decode(record) {
            Ok(Some(fact)) => self.state.replay(fact, self.config.consumer.rules),
            Ok(None) => {}
            Err(_) => self.skipped_records += 1,
        }
    }

    /// The log is replayed: every stored member's session starts now.
    pub fn finish_load(&mut self, now: Now) {
        assert_eq!(self.stage, Stage::Loading, "a shard is loaded once");
        let interval_ms = self.config.offsets_retention_check_interval_ms.max(1);
        self.stage = Stage::Serving { next_expiry: now.monotonic + interval_ms };
        self.load_consumers(now);
        let loaded: Vec<(String, ClassicGroup)> =
            self.state.groups().map(|(id, stored)| (id.clone(), ClassicGroup::load(id, stored, now))).collect();
        for (group_id, group) in loaded {
            let too_large = group.size() > self.config.max_size;
            self.member_bytes += group.bytes();
            self.groups.insert(group_id.clone(), group);
            self.change(&group_id, now, |group, turn| {
                if too_large {
                    group.prepare_rebalance(turn);
                }
            });
        }
    }

    /// Takes a request; the answer comes from [`Self::poll_output`], now or later. `entropy` is 128 random bits, for the
    /// id of a new member.
    pub fn handle(&mut self, token: Token, request: GroupRequest, entropy: u128, now: Now) {
        match self.stage {
            Stage::Loading => self.reply(token, request.refused(ErrorCode::CoordinatorLoadInProgress)),
            Stage::Unloaded(error) => self.reply(token, request.refused(error)),
            Stage::Serving { .. } => self.serve(token, request, entropy, now),
        }
    }

    /// What to do next. Answers come first; a batch is cut when nothing else is to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some((token, response)) = self.replies.pop_front() {
                return Some(Output::Reply { token, response });
            }
            if let Some(effect) = self.effects.pop_front() {
                return Some(Output::Effect(effect));
            }
            let done = self.writes.take_leading_barriers();
            if done.is_empty() {
                let (batch, form, records) = self.writes.cut_batch(self.config.max_batch_bytes)?;
                return Some(match form {
                    Form::Plain => Output::Append { batch, records },
                    Form::InTransaction { producer, guard } => {
                        Output::AppendInTransaction { batch, producer, guard, records }
                    }
                    Form::End(marker) => Output::AppendMarker { batch, marker },
                });
            }
            for waiting in done {
                match waiting {
                    Waiting::Fetch(token, request) => self.answer_fetch((token, request)),
                    Waiting::Reply(token, response) => self.reply(token, response),
                    Waiting::Group(_) => {}
                }
            }
        }
    }

    /// The high watermark covers the batch: its records are true, and who waited for them is answered.
    pub fn committed(&mut self, batch: BatchNumber, now: Now) {
        self.writes.resolve(batch, Ok(()));
        self.settle(now);
    }

    /// Takes in what is known of batches, in the order of the log.
    fn settle(&mut self, now: Now) {
        while let Some(Resolved { form, operations, outcome }) = self.writes.take_resolved() {
            match outcome {
                Ok(()) => self.apply(form, operations, now),
                Err(error) => self.give_up(operations, error, now),
            }
        }
        self.drop_spared(now);
    }

    fn apply(&mut self, form: Form, operations: Vec<Operation>, now: Now) {
        let rules = self.rules();
        if let Form::End(marker) = form {
            self.state.replay_marker(marker.producer_id, marker.commit, rules);
        }
        for operation in operations {
            let group_id = operation.waiting.as_ref().and_then(|waiting| waiting.group_id(&operation.facts));
            for fact in operation.facts {
                self.count(&fact);
                self.follow(&fact, now);
                match form {
                    Form::InTransaction { producer, .. } => {
                        self.state.replay_in_transaction(producer.id, fact, rules);
                    }
                    Form::Plain | Form::End(_) => self.state.replay(fact, rules),
                }
            }
            match (operation.waiting, group_id) {
                (Some(Waiting::Reply(token, response)), _) => self.reply(token, response),
                (Some(Waiting::Fetch(token, request)), _) => self.answer_fetch((token, request)),
                (Some(Waiting::Group(then)), Some(group_id)) => {
                    self.change(&group_id, now, |group, turn| group.stored(then, turn));
                }
                (Some(Waiting::Group(_)), None) | (None, _) => {}
            }
        }
    }

    fn count(&mut self, fact: &Fact) {
        match fact {
            Fact::Group { group_id, metadata: Some(next) } => {
                let before = self.state.group(group_id).map(|stored| stored.generation_id);
                let is_new = before != Some(next.generation_id) && !next.members.is_empty();
                self.rebalances.classic += u64::from(is_new);
            }
            Fact::Consumer { fact: ConsumerFact::Epoch(Some(_)), .. } => self.rebalances.consumer += 1,
            Fact::Group { .. } | Fact::Consumer { .. } | Fact::Offset { .. } => {}
        }
    }

    /// How often the groups here were rebalanced.
    #[must_use]
    pub fn rebalances(&self) -> Rebalances {
        self.rebalances
    }

    /// The batch is certainly not in the log, and never will be.
    pub fn failed(&mut self, batch: BatchNumber, error: ErrorCode, now: Now) {
        self.writes.resolve(batch, Err(error));
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`], on the monotonic clock.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let Stage::Serving { next_expiry } = self.stage else { return None };
        let group = self.timers.first().map(|(deadline, _)| *deadline);
        [group, self.writes.poll_timeout()].into_iter().flatten().chain([next_expiry]).min()
    }

    /// Carries out what is due; does nothing when called early.
    pub fn handle_timeout(&mut self, now: Now) {
        let Stage::Serving { next_expiry } = self.stage else { return };
        let overdue = self.writes.take_overdue(now.monotonic);
        for operation in overdue.in_flight {
            self.fail(operation, ErrorCode::RequestTimedOut, now);
        }
        self.give_up(overdue.given_up, ErrorCode::RequestTimedOut, now);
        let due: Vec<String> = self
            .timers
            .iter()
            .take_while(|(deadline, _)| *deadline <= now.monotonic)
            .map(|(_, group_id)| group_id.clone())
            .collect();
        for group_id in due {
            self.change(&group_id, now, |group, turn| group.handle_timeout(turn));
            self.expire_consumers(&group_id, now);
        }
        if next_expiry <= now.monotonic {
            let interval_ms = self.config.offsets_retention_check_interval_ms.max(1);
            self.stage = Stage::Serving { next_expiry: now.monotonic + interval_ms };
            self.expire_offsets(now);
        }
    }

    /// This broker coordinates these groups no longer: everything that waits, and everything that still comes, is answered
    /// with `error` (NOT_COORDINATOR).
    pub fn unload(&mut self, error: ErrorCode) {
        self.stage = Stage::Unloaded(error);
        for group in self.groups.values_mut() {
            self.replies.extend(group.unload(error));
        }
        for operation in self.writes.take_all() {
            match operation.waiting {
                Some(Waiting::Reply(token, response)) => self.reply(token, refuse(response, error)),
                Some(Waiting::Fetch(token, request)) => {
                    self.reply(token, GroupResponse::OffsetFetch(request.refused(error)));
                }
                // Its requests are parked in the group.
                Some(Waiting::Group(_)) | None => {}
            }
        }
    }

    /// What is committed.
    #[must_use]
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// What this shard was configured with.
    #[must_use]
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// The groups with members, or that had some, by id.
    pub fn groups(&self) -> impl Iterator<Item = (&String, &ClassicGroup)> {
        self.groups.iter()
    }

    /// Records of the log that could not be read.
    #[must_use]
    pub fn skipped_records(&self) -> u64 {
        self.skipped_records
    }

    /// Panics where the shard contradicts itself.
    pub fn assert_invariants(&self) {
        let waited_for = self.writes.groups_waiting();
        for (group_id, group) in &self.groups {
            group.assert_invariants(waited_for.contains(group_id.as_str()));
            assert_eq!(self.scheduled.get(group_id).copied(), group.poll_timeout(), "timer of {group_id}");
        }
        for (group_id, live) in &self.consumers {
            live.assert_invariants();
            assert!(!self.groups.contains_key(group_id), "{group_id} is of two kinds");
            assert_eq!(self.scheduled.get(group_id).copied(), live.poll_timeout(), "timer of {group_id}");
        }
        let consumers: usize = self.consumers.values().map(|live| live.group.bytes()).sum();
        let bytes: usize = consumers + self.groups.values().map(ClassicGroup::bytes).sum::<usize>();
        assert_eq!(bytes, self.member_bytes, "bytes of all members");
        self.state.pending().assert_invariants();
        let timers: BTreeSet<(Time, String)> = self.scheduled.iter().map(|(id, at)| (*at, id.clone())).collect();
        assert_eq!(timers, self.timers, "timers");
    }
}

/// One method a request.
impl GroupShard {
    fn serve(&mut self, token: Token, request: GroupRequest, entropy: u128, now: Now) {
        match request {
            GroupRequest::JoinGroup(request) => self.join(token, request, entropy, now),
            GroupRequest::SyncGroup(request) => self.sync(token, request, now),
            GroupRequest::Heartbeat(request) => self.heartbeat(token, &request, now),
            GroupRequest::LeaveGroup(request) => self.leave(token, request, now),
            GroupRequest::OffsetCommit(request) => self.commit_offsets(token, request, now),
            GroupRequest::TxnOffsetCommit(request) => self.commit_in_transaction(token, &request, now),
            GroupRequest::EndTransaction(marker) => self.end_transaction(token, marker, now),
            GroupRequest::OffsetFetch(request) => self.fetch_offsets(token, request, now),
            GroupRequest::OffsetDelete(request) => self.delete_offsets(token, request, now),
            GroupRequest::DeleteGroup(request) => self.delete_group(token, request, now),
            GroupRequest::DescribeGroup(request) => {
                let response = self.describe(&request);
                self.reply(token, GroupResponse::DescribeGroup(response));
            }
            GroupRequest::ConsumerHeartbeat(request) => self.consumer_heartbeat(token, request, entropy, now),
            GroupRequest::ConsumerDescribe(request) => self.consumer_describe(token, &request),
            GroupRequest::ListGroups(request) => {
                let response = self.list(&request);
                self.reply(token, GroupResponse::ListGroups(response));
            }
        }
    }

    fn join(&mut self, token: Token, request: JoinGroupRequest, entropy: u128, now: Now) {
        if self.consumer_group(&request.group_id).is_some_and(|group| !group.is_empty()) {
            return self.join_consumers(token, &request, entropy, now);
        }
        if let Err(error) = self.check_join(&request) {
            let response = JoinGroupResponse::refused(&request.member_id, error);
            return self.reply(token, GroupResponse::JoinGroup(response));
        }
        let group_id = request.group_id.clone();
        self.drop_empty_consumers(&group_id, now);
        self.groups.entry(group_id.clone()).or_insert_with(|| ClassicGroup::new(&group_id, now));
        self.change(&group_id, now, |group, turn| group.join(token, request, entropy, turn));
    }

    fn check_join(&self, request: &JoinGroupRequest) -> Result<(), ErrorCode> {
        if request.group_id.is_empty() {
            return Err(ErrorCode::InvalidGroupId);
        }
        let session = u64::try_from(request.session_timeout_ms).unwrap_or(0);
        if session < self.config.min_session_timeout_ms || session > self.config.max_session_timeout_ms {
            return Err(ErrorCode::InvalidSessionTimeout);
        }
        if !self.knows(&request.group_id) {
            if !request.member_id.is_empty() {
                return Err(ErrorCode::UnknownMemberId);
            }
            self.check_room_for_group()?;
        }
        let brought = protocol_bytes(&request.protocols);
        let itself = if request.member_id.is_empty() { MEMBER_OVERHEAD_BYTES } else { 0 };
        let fits = self.have_room(&request.group_id, &request.member_id, brought, itself);
        if fits { Ok(()) } else { Err(ErrorCode::GroupMaxSizeReached) }
    }

    /// Whether what a member brings fits beside what all members take. What it brought before makes room: who is in is not put
    /// out by those who came after it.
    fn have_room(&self, group_id: &str, member_id: &str, brought: usize, itself: usize) -> bool {
        let classic = self.groups.get(group_id).map(|group| group.bytes_of(member_id));
        let consumer = || Some(self.consumer_group(group_id)?.member(member_id)?.profile.bytes());
        let held = classic.or_else(consumer).unwrap_or(0);
        let more = (brought + itself).saturating_sub(held);
        brought <= self.config.max_member_metadata_bytes
            && (more == 0 || self.member_bytes.saturating_add(more) <= self.config.max_members_bytes)
    }

    fn sync(&mut self, token: Token, request: SyncGroupRequest, now: Now) {
        let group_id = request.group_id.clone();
        let error = if group_id.is_empty() { ErrorCode::InvalidGroupId } else { ErrorCode::UnknownMemberId };
        if self.consumers.contains_key(&group_id) {
            return self.sync_consumers(token, &request, now);
        }
        let served = self.change(&group_id, now, |group, turn| group.sync(token, request, turn));
        if served.is_none() {
            self.reply(token, GroupResponse::SyncGroup(SyncGroupResponse::refused(error)));
        }
    }

    fn heartbeat(&mut self, token: Token, request: &HeartbeatRequest, now: Now) {
        if self.consumers.contains_key(&request.group_id) {
            return self.heartbeat_consumers(token, request, now);
        }
        // Only ever moves a deadline later, so that no timer need be set: this is the most frequent request of all.
        let error = match self.groups.get_mut(&request.group_id) {
            _ if request.group_id.is_empty() => ErrorCode::InvalidGroupId,
            None => ErrorCode::UnknownMemberId,
            Some(group) => group.heartbeat(request, now).err().unwrap_or(ErrorCode::None),
        };
        self.reschedule(&request.group_id);
        self.reply(token, GroupResponse::Heartbeat(HeartbeatResponse { error }));
    }

    fn leave(&mut self, token: Token, request: LeaveGroupRequest, now: Now) {
        if request.group_id.is_empty() {
            let response = LeaveGroupResponse { error: ErrorCode::InvalidGroupId, members: Vec::new() };
            return self.reply(token, GroupResponse::LeaveGroup(response));
        }
        let group_id = request.group_id.clone();
        if self.consumers.contains_key(&group_id) {
            return self.leave_consumers(token, request, now);
        }
        if !self.groups.contains_key(&group_id) {
            let unknown = |member: crate::request::LeavingMember| LeftMember {
                member_id: member.member_id,
                group_instance_id: member.group_instance_id,
                error: ErrorCode::UnknownMemberId,
            };
            let members = request.members.into_iter().map(unknown).collect();
            let response = LeaveGroupResponse { error: ErrorCode::None, members };
            return self.reply(token, GroupResponse::LeaveGroup(response));
        }
        let left = self.change(&group_id, now, |group, turn| group.leave(request, turn));
        let response = LeaveGroupResponse { error: ErrorCode::None, members: left.unwrap_or_default() };
        self.reply(token, GroupResponse::LeaveGroup(response));
    }

    fn commit_offsets(&mut self, token: Token, request: OffsetCommitRequest, now: Now) {
        if let Err(error) = self.check_commit(&request, false) {
            return self.reply(token, GroupResponse::OffsetCommit(request.refused(error)));
        }
        if let Some(group) = self.groups.get_mut(&request.group_id) {
            group.note_offset_commit(&request.member_id, now);
            self.reschedule(&request.group_id);
        }
        let decision = offsets::decide_commit(&request, now.wall, &self.config);
        let response = GroupResponse::OffsetCommit(decision.response);
        self.write(decision.facts, Some(Waiting::Reply(token, response)), now);
    }

    fn check_commit(&self, request: &OffsetCommitRequest, in_transaction: bool) -> Result<(), ErrorCode> {
        if let Some(group) = self.consumer_group(&request.group_id) {
            return check_consumer_commit(group, request, in_transaction, &self.image);
        }
        let Some(group) = self.groups.get(&request.group_id) else {
            if request.generation_id < 0 {
                return if self.knows(&request.group_id) { Ok(()) } else { self.check_room_for_group() };
            }
            let knows_not_found = request.supports_member_epochs && !in_transaction;
            return Err(match (self.knows(&request.group_id), knows_not_found) {
                (true, _) => ErrorCode::UnknownMemberId,
                (false, true) => ErrorCode::GroupIdNotFound,
                (false, false) => ErrorCode::IllegalGeneration,
            });
        };
        let (member_id, instance) = (&request.member_id, request.group_instance_id.as_deref());
        group.check_offset_commit(member_id, instance, request.generation_id, in_transaction)
    }

    fn fetch_offsets(&mut self, token: Token, request: OffsetFetchRequest, now: Now) {
        if request.require_stable && self.writes.touch(&request.group_id) {
            self.writes.push_barrier(token, request, now.monotonic + self.config.offsets_commit_timeout_ms);
        } else {
            self.answer_fetch((token, request));
        }
    }

    fn answer_fetch(&mut self, (token, request): (Token, OffsetFetchRequest)) {
        if let Err(error) = check_consumer_fetch(&self.state, &request) {
            return self.reply(token, GroupResponse::OffsetFetch(request.refused(error)));
        }
        let response = offsets::fetch(&self.state, &request, self.rules());
        self.reply(token, GroupResponse::OffsetFetch(response));
    }

    fn delete_offsets(&mut self, token: Token, request: OffsetDeleteRequest, now: Now) {
        let group = self.readers(&request.group_id);
        let error = match group {
            _ if request.group_id.is_empty() => ErrorCode::InvalidGroupId,
            _ if !self.knows(&request.group_id) => ErrorCode::GroupIdNotFound,
            Readers::Classic(group) if !group.is_empty() && !group.is_consumer() => ErrorCode::NonEmptyGroup,
            Readers::Classic(_) | Readers::Consumer(_) | Readers::Nobody => ErrorCode::None,
        };
        if !error.is_none() {
            return self.reply(token, GroupRequest::OffsetDelete(request).refused(error));
        }
        let under_way = self.offsets_under_way(&request.group_id);
        let decision = offsets::decide_delete(group, &request, |topic, partition| {
            self.state.offset(&request.group_id, topic, partition).is_some()
                || self.state.pending().contains(&request.group_id, topic, partition)
                || under_way.contains(&(topic.to_owned(), partition))
        });
        let response = GroupResponse::OffsetDelete(decision.response);
        self.write(decision.facts, Some(Waiting::Reply(token, response)), now);
    }

    fn delete_group(&mut self, token: Token, request: DeleteGroupRequest, now: Now) {
        let error = match self.readers(&request.group_id) {
            Readers::Classic(group) if !group.is_empty() => ErrorCode::NonEmptyGroup,
            Readers::Consumer(group) if !group.is_empty() => ErrorCode::NonEmptyGroup,
            Readers::Nobody if !self.knows(&request.group_id) => ErrorCode::GroupIdNotFound,
            Readers::Classic(_) | Readers::Consumer(_) | Readers::Nobody => ErrorCode::None,
        };
        if !error.is_none() {
            return self.reply(token, GroupRequest::DeleteGroup(request).refused(error));
        }
        // Offsets on their way are committed before these tombstones, if at all; so are those of open transactions.
        let mut doomed = self.offsets_under_way(&request.group_id);
        let pending = self.state.pending().partitions(&request.group_id);
        doomed.extend(pending.map(|(topic, partition)| (topic.to_owned(), partition)));
        for (topic, partitions) in self.state.offsets(&request.group_id).into_iter().flatten() {
            doomed.extend(partitions.keys().map(|partition| (topic.clone(), *partition)));
        }
        let mut facts: Vec<Fact> =
            doomed.iter().map(|(topic, partition)| offsets::tombstone(&request.group_id, topic, *partition)).collect();
        facts.extend(self.group_tombstones(&request.group_id));
        let response = DeleteGroupResponse { group_id: request.group_id, error: ErrorCode::None };
        self.write_for_group(facts, Some(Waiting::Reply(token, GroupResponse::DeleteGroup(response))), now);
    }

    fn describe(&self, request: &DescribeGroupRequest) -> DescribeGroupResponse {
        match self.groups.get(&request.group_id) {
            Some(group) => group.describe(),
            None if self.consumers.contains_key(&request.group_id) => DescribeGroupResponse {
                error_message: Some(format!("Group {} is not a classic group.", request.group_id)),
                ..DescribeGroupResponse::refused(&request.group_id, ErrorCode::GroupIdNotFound)
            },
            None if self.knows(&request.group_id) => DescribeGroupResponse {
                state: "Empty",
                ..DescribeGroupResponse::refused(&request.group_id, ErrorCode::None)
            },
            None => DescribeGroupResponse {
                error_message: Some(format!("Group {} not found.", request.group_id)),
                ..DescribeGroupResponse::refused(&request.group_id, ErrorCode::GroupIdNotFound)
            },
        }
    }

    fn list(&self, request: &ListGroupsRequest) -> ListGroupsResponse {
        let passes = |filter: &[String], value: &str| {
            filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        let held = |id: &&String| self.groups.contains_key(*id) || self.consumers.contains_key(*id);
        let simple = self.state.all_offsets().map(|(group_id, _)| group_id).chain(self.state.pending().groups());
        let simple = simple.filter(|id| !held(id));
        let simple = simple.map(|group_id| (group_id, "Empty", "", "classic"));
        let classic = self.groups.iter();
        let classic = classic.map(|(id, group)| (id, group.state(), group.protocol_type().unwrap_or(""), "classic"));
        // As they are committed, as in Kafka.
        let consumers = self.state.consumers().filter(|(id, group)| group.exists() && !self.groups.contains_key(*id));
        let consumers = consumers.map(|(id, group)| (id, group.state(), "consumer", "consumer"));
        let listed: BTreeMap<String, ListedGroup> = (classic.chain(simple).chain(consumers))
            .filter(|(_, state, _, kind)| passes(&request.states, state) && passes(&request.types, kind))
            .map(|(group_id, state, protocol_type, group_type)| {
                let (group_id, protocol_type) = (group_id.clone(), protocol_type.to_owned());
                ListedGroup { group_id, protocol_type, state, group_type }
            })
            .map(|listed| (listed.group_id.clone(), listed))
            .collect();
        ListGroupsResponse { error: ErrorCode::None, groups: listed.into_values().collect() }
    }
}

/// Changes of groups, writes and timers.
impl GroupShard {
    /// Changes a group, and carries out what that asks for. None where there is no such group.
    fn change<R>(
        &mut self,
        group_id: &str,
        now: Now,
        change: impl FnOnce(&mut ClassicGroup, &mut Turn<'_>) -> R,
    ) -> Option<R> {
        let group = self.groups.get_mut(group_id)?;
        let mut turn = Turn { now, config: &self.config, fx: Effects::default() };
        let bytes = group.bytes();
        let result = change(group, &mut turn);
        let fx = turn.fx;
        self.member_bytes = self.member_bytes - bytes + group.bytes();
        if group.is_void() && self.state.group(group_id).is_none() {
            self.groups.remove(group_id);
        }
        self.reschedule(group_id);
        self.replies.extend(fx.replies);
        for Write { fact, then } in fx.writes {
            self.write(vec![fact], then.map(Waiting::Group), now);
        }
        Some(result)
    }

    fn reschedule(&mut self, group_id: &str) {
        let classic = self.groups.get(group_id).and_then(ClassicGroup::poll_timeout);
        let next = classic.or_else(|| self.consumers.get(group_id).and_then(LiveConsumerGroup::poll_timeout));
        let scheduled = self.scheduled.get(group_id).copied();
        if next == scheduled {
            return;
        }
        if let Some(deadline) = scheduled {
            self.timers.remove(&(deadline, group_id.to_owned()));
            self.scheduled.remove(group_id);
        }
        if let Some(deadline) = next {
            self.timers.insert((deadline, group_id.to_owned()));
            self.scheduled.insert(group_id.to_owned(), deadline);
        }
    }

    /// Queues facts; who waits for them is answered when the last of them is committed. Says whether they are queued.
    fn write(&mut self, facts: Vec<Fact>, waiting: Option<Waiting>, now: Now) -> bool {
        if facts.is_empty() {
            if let Some(Waiting::Reply(token, response)) = waiting {
                self.reply(token, response);
            }
            return true;
        }
        self.push((Form::Plain, facts), waiting, now)
    }

    fn push(&mut self, what: (Form, Vec<Fact>), waiting: Option<Waiting>, now: Now) -> bool {
        let deadline = now.monotonic + self.config.offsets_commit_timeout_ms;
        let pushed = self.writes.push(what, waiting, deadline, &self.config);
        let queued = pushed.is_ok();
        if let Err((operation, error)) = pushed {
            self.fail(*operation, error, now);
        }
        queued
    }

    fn fail(&mut self, operation: Operation, error: ErrorCode, now: Now) {
        let group_id = operation.waiting.as_ref().and_then(|waiting| waiting.group_id(&operation.facts));
        match (operation.waiting, group_id) {
            (Some(Waiting::Reply(token, response)), _) => self.reply(token, refuse(response, append_error(error))),
            // As in Kafka: consumers before 3.9 do not know the other codes for this.
            (Some(Waiting::Fetch(token, request)), _) if error == ErrorCode::RequestTimedOut => {
                self.reply(token, GroupResponse::OffsetFetch(request.refused(ErrorCode::NotCoordinator)));
            }
            // The writes before it have failed: what is committed is what there is.
            (Some(Waiting::Fetch(token, request)), _) => self.answer_fetch((token, request)),
            (Some(Waiting::Group(then)), Some(group_id)) => {
                self.not_stored(&group_id, then, append_error(error), now);
            }
            (Some(Waiting::Group(_)), None) | (None, _) => {}
        }
    }

    fn not_stored(&mut self, group_id: &str, then: Stored, error: ErrorCode, now: Now) {
        self.change(group_id, now, |group, turn| group.not_stored(then, error, turn));
    }

    /// Members follow the log in two cases only. A group whose tombstone is committed is gone, unless somebody joined it
    /// meanwhile; a generation that was queued behind such a tombstone brings its group back.
    fn follow(&mut self, fact: &Fact, now: Now) {
        let Fact::Group { group_id, metadata } = fact else { return };
        if self.consumers.contains_key(group_id) {
            return;
        }
        match (self.groups.get(group_id), metadata) {
            (Some(group), None) if group.is_empty() => {
                self.member_bytes -= group.bytes();
                self.groups.remove(group_id);
            }
            (None, Some(stored)) => {
                let group = ClassicGroup::load(group_id, stored, now);
                self.member_bytes += group.bytes();
                self.groups.insert(group_id.clone(), group);
            }
            (Some(_), _) | (None, None) => {}
        }
        self.reschedule(group_id);
    }

    /// Expires offsets, and removes empty groups that have none left (`R55`).
    fn expire_offsets(&mut self, now: Now) {
        let mut group_ids: BTreeSet<String> = self.groups.keys().chain(self.consumers.keys()).cloned().collect();
        group_ids.extend(self.state.all_offsets().map(|(group_id, _)| group_id.clone()));
        let pending = self.state.pending();
        for busy in self.writes.groups_touched() {
            group_ids.remove(&busy);
        }
        let none = BTreeMap::new();
        let mut decided = Vec::new();
        let mut forgotten = Vec::new();
        for group_id in group_ids {
            let group = self.readers(&group_id);
            let stored = self.state.offsets(&group_id).unwrap_or(&none);
            let (mut facts, all) = if stored.is_empty() {
                (Vec::new(), true)
            } else {
                offsets::decide_expiry(&group_id, group, (stored, pending), now.wall, &self.config)
            };
            let all = all && !pending.has_group(&group_id);
            let forgettable = matches!(group, Readers::Classic(group) if group.is_forgettable());
            if all && group.is_empty() {
                facts.extend(self.group_tombstones(&group_id));
            }
            if !facts.is_empty() {
                decided.push(facts);
            } else if all && forgettable {
                // Its last generation could not be stored; there is nothing to remove but itself.
                forgotten.push(group_id);
            }
        }
        for group_id in forgotten {
            self.groups.remove(&group_id);
            self.reschedule(&group_id);
        }
        for facts in decided {
            self.write_for_group(facts, None, now);
        }
    }

    /// The group's offsets that are on their way to the log.
    fn offsets_under_way(&self, group_id: &str) -> BTreeSet<(String, PartitionIndex)> {
        self.writes
            .offsets_under_way()
            .filter(|(id, ..)| *id == group_id)
            .map(|(_, topic, partition, _)| (topic.to_owned(), partition))
            .collect()
    }

    fn knows(&self, group_id: &str) -> bool {
        self.groups.contains_key(group_id)
            || self.consumers.contains_key(group_id)
            || self.state.group(group_id).is_some()
            || self.state.offsets(group_id).is_some()
            || self.state.pending().has_group(group_id)
            || self.writes.touch(group_id)
    }

    fn check_room_for_group(&self) -> Result<(), ErrorCode> {
        let full = self.groups.len() + self.consumers.len() >= self.config.max_groups
            || self.state.offset_groups() >= self.config.max_groups;
        if full { Err(ErrorCode::CoordinatorNotAvailable) } else { Ok(()) }
    }

    fn reply(&mut self, token: Token, response: GroupResponse) {
        self.replies.push_back((token, response));
    }
}

/// What a client hears of an append that failed, as Kafka tells it.
fn append_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::NotEnoughReplicasAfterAppend
        | ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidFetchSize => {
            ErrorCode::UnknownServerError
        }
        other => other,
    }
}

/// The answer that was ready for success, with `error` in every place of success.
fn refuse(mut response: GroupResponse, error: ErrorCode) -> GroupResponse {
    match &mut response {
        GroupResponse::OffsetCommit(response) | GroupResponse::TxnOffsetCommit(response) => {
            let partitions = response.topics.iter_mut().flat_map(|topic| topic.partitions.iter_mut());
            partitions.filter(|(_, code)| code.is_none()).for_each(|(_, code)| *code = error);
        }
        GroupResponse::OffsetDelete(response) => {
            response.error = error;
            response.topics.clear();
        }
        GroupResponse::EndTransaction(response) => response.error = error,
        GroupResponse::DeleteGroup(response) => response.error = error,
        GroupResponse::JoinGroup(response) => response.error = error,
        GroupResponse::SyncGroup(response) => response.error = error,
        GroupResponse::Heartbeat(response) => response.error = error,
        GroupResponse::LeaveGroup(response) => response.error = error,
        GroupResponse::OffsetFetch(response) => response.error = error,
        GroupResponse::DescribeGroup(response) => response.error = error,
        GroupResponse::ListGroups(response) => response.error = error,
        GroupResponse::ConsumerHeartbeat(response) => *response = ConsumerHeartbeatResponse::refused(error, None),
        GroupResponse::ConsumerDescribe(response) => response.error = error,
    }
    response
}
