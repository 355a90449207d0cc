//! Consumer groups in a shard.
//!
//! A consumer group is decided on what was decided before, committed or not: five hundred members do not wait for each
//! other's records. So [`LiveConsumerGroup`] is ahead of [`GroupState`] by the facts that are on their way. Two things
//! follow:
//! - Nobody is told of what is not stored: an answer waits for its own facts, and where it has none, for those before it.
//! - When facts of a group certainly are not stored, everything that was decided on them is refused with them, and the group
//!   goes back to what is committed and what is still in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::MetadataImage;
use model::{ErrorCode, Rule, TopicId};

use crate::classic::ClassicGroup;
use crate::config::MEMBER_OVERHEAD_BYTES;
use crate::consumer::draft::{Decided, Refused, Surroundings, Wait};
use crate::consumer::group::{
    ConsumerFact, ConsumerGroup, JOINING_EPOCH, LEAVE_EPOCH, OwnedPartitions, ResolvedRegex, STATIC_LEAVE_EPOCH,
};
use crate::consumer::heartbeat::{self, Leave};
use crate::consumer::request::{
    ConsumerDescribeRequest, ConsumerDescribeResponse, ConsumerHeartbeatRequest, ConsumerHeartbeatResponse,
};
use crate::consumer::{LiveConsumerGroup, classic_members, convert, describe};
use crate::record::Fact;
use crate::request::{
    GroupResponse, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest, SyncGroupResponse, random_uuid,
};
use crate::shard::{GroupEffect, GroupShard, Now, Stage, Token};
use crate::state::GroupState;
use crate::writes::{Operation, Waiting};

/// Who reads what a group has offsets of.
#[derive(Clone, Copy, Debug)]
pub enum Readers<'a> {
    /// A classic group.
    Classic(&'a ClassicGroup),
    /// A consumer group.
    Consumer(&'a ConsumerGroup),
    /// There are offsets at most.
    Nobody,
}

impl Readers<'_> {
    /// Whether nobody is in the group.
    #[must_use]
    pub fn is_empty(self) -> bool {
        match self {
            Readers::Classic(group) => group.is_empty(),
            Readers::Consumer(group) => group.is_empty(),
            Readers::Nobody => true,
        }
    }

    /// Whether a member reads `topic`, as far as that is known.
    #[must_use]
    pub fn read(self, topic: &str) -> bool {
        match self {
            Readers::Classic(group) => group.is_subscribed_to(topic),
            Readers::Consumer(group) => group.is_subscribed_to(topic),
            Readers::Nobody => false,
        }
    }
}

/// Whether a commit to a consumer group is of one of its members, and of its present epoch, or of an earlier one in which
/// it had the partitions already (`R53`, KIP-1251). In a transaction it may name no member, as old producers do (`R49`).
pub(super) fn check_consumer_commit(
    group: &ConsumerGroup,
    request: &OffsetCommitRequest,
    in_transaction: bool,
    image: &MetadataImage,
) -> Result<(), ErrorCode> {
    let epoch = request.generation_id;
    let unnamed = epoch == -1 && request.member_id.is_empty() && request.group_instance_id.is_none();
    if (epoch < 0 && group.is_empty()) || (in_transaction && unnamed) {
        return Ok(());
    }
    let member = group.member(&request.member_id).ok_or(ErrorCode::UnknownMemberId)?;
    if !member.is_classic() && !request.supports_member_epochs {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let stale = if member.is_classic() { ErrorCode::IllegalGeneration } else { ErrorCode::StaleMemberEpoch };
    if epoch == member.current.epoch {
        return Ok(());
    }
    if epoch > member.current.epoch {
        return Err(stale);
    }
    let had = |owned: &OwnedPartitions, topic: TopicId, index| {
        owned.get(&topic).and_then(|owned| owned.get(index)).is_some_and(|since| *since <= epoch)
    };
    for topic in &request.topics {
        let id = if topic.topic_id.is_none() { image.topic_id(&topic.name) } else { Some(topic.topic_id) };
        let id = id.ok_or(stale)?;
        for partition in &topic.partitions {
            let index = &partition.partition;
            if !had(&member.current.assigned, id, index) && !had(&member.current.revoking, id, index) {
                return Err(stale);
            }
        }
    }
    Ok(())
}

/// Whether a fetch from a consumer group is of one of its members and of its present epoch (`R53`). Who names no member is
/// an administrator.
pub(super) fn check_consumer_fetch(state: &GroupState, request: &OffsetFetchRequest) -> Result<(), ErrorCode> {
    let Some(group) = state.consumer(&request.group_id).filter(|group| group.exists()) else { return Ok(()) };
    let Some(member_id) = request.member_id.as_deref() else {
        return if request.member_epoch < 0 { Ok(()) } else { Err(ErrorCode::UnknownMemberId) };
    };
    let member = group.member(member_id).ok_or(ErrorCode::UnknownMemberId)?;
    match member.current.epoch == request.member_epoch {
        true => Ok(()),
        false if member.is_classic() => Err(ErrorCode::IllegalGeneration),
        false => Err(ErrorCode::StaleMemberEpoch),
    }
}

/// The shell's side.
impl GroupShard {
    /// The cluster changed. `changed` are topics whose partitions or replicas are other ones, from
    /// [`crate::consumer::topics::changed_topics`].
    pub fn handle_metadata(&mut self, image: &Arc<MetadataImage>, changed: &BTreeSet<Arc<str>>) {
        let is_new = |name: &&Arc<str>| self.image.topic_id(name).is_none() && image.topic_id(name).is_some();
        if changed.iter().any(|name| is_new(&name)) {
            self.topic_created_at = i64::try_from(image.next_offset().0).unwrap_or(i64::MAX);
        }
        self.image = Arc::clone(image);
        for live in self.consumers.values_mut() {
            if changed.iter().any(|name| live.group.is_subscribed_to(name)) {
                live.request_refresh();
            }
        }
    }

    /// Takes what [`GroupEffect::Resolve`] asked for.
    pub fn resolved(&mut self, group_id: &str, resolved: BTreeMap<String, ResolvedRegex>, now: Now) {
        if !matches!(self.stage, Stage::Serving { .. }) {
            return;
        }
        if let Some(live) = self.consumers.get_mut(group_id) {
            live.set_resolving(false);
        }
        let Some(live) = self.consumers.get(group_id) else { return };
        let decided = heartbeat::take_resolved(&live.group, resolved, self.around(group_id, now));
        self.carry_out(group_id, decided, |()| None, now);
    }

    /// The consumer groups, as they are decided.
    pub fn consumers(&self) -> impl Iterator<Item = (&String, &LiveConsumerGroup)> {
        self.consumers.iter()
    }

    /// Takes over what the log says of consumer groups; what is left of others goes.
    pub(super) fn load_consumers(&mut self, now: Now) {
        let mut remains = Vec::new();
        let mut loaded = Vec::new();
        for (group_id, group) in self.state.consumers() {
            // R52: of a group that changed its kind when its coordinator died, see `consumer::convert`.
            if group.exists() && self.state.group(group_id).is_none() {
                loaded.push((group_id.clone(), group.clone()));
            } else {
                remains.push(consumer_facts(group_id, group.tombstones()));
            }
        }
        for (group_id, group) in loaded {
            let session_timeout_ms = self.around(&group_id, now).settings.session_timeout_ms;
            self.member_bytes += group.bytes();
            self.consumers.insert(group_id.clone(), LiveConsumerGroup::new(group, session_timeout_ms, now));
            self.reschedule(&group_id);
        }
        for facts in remains {
            self.write(facts, None, now);
        }
    }

    pub(super) fn consumer_group(&self, group_id: &str) -> Option<&ConsumerGroup> {
        self.consumers.get(group_id).map(|live| &live.group)
    }

    pub(super) fn readers(&self, group_id: &str) -> Readers<'_> {
        match (self.groups.get(group_id), self.consumers.get(group_id)) {
            (Some(group), _) => Readers::Classic(group),
            (None, Some(live)) => Readers::Consumer(&live.group),
            (None, None) => Readers::Nobody,
        }
    }

    /// What removes a group that nobody is in, besides its offsets.
    pub(super) fn group_tombstones(&self, group_id: &str) -> Vec<Fact> {
        if let Some(live) = self.consumers.get(group_id) {
            return consumer_facts(group_id, live.group.tombstones());
        }
        if self.groups.contains_key(group_id) || self.state.group(group_id).is_some() {
            return vec![Fact::Group { group_id: group_id.to_owned(), metadata: None }];
        }
        Vec::new()
    }

    fn around<'a>(&'a self, group_id: &str, now: Now) -> Surroundings<'a> {
        let config = &self.config.consumer;
        Surroundings { config, settings: config.of_group(group_id, &self.image), image: &self.image, now }
    }
}

/// Requests.
impl GroupShard {
    pub(super) fn consumer_heartbeat(
        &mut self,
        token: Token,
        mut request: ConsumerHeartbeatRequest,
        entropy: u128,
        now: Now,
    ) {
        if request.member_id.is_empty() && !request.requires_member_id {
            request.member_id = new_member_id(entropy);
        }
        let served = match request.member_epoch {
            LEAVE_EPOCH | STATIC_LEAVE_EPOCH => self.consumer_leaves(token, &request, now),
            _ => self.consumer_lives(token, &request, now),
        };
        if let Err(refused) = served {
            let response = ConsumerHeartbeatResponse::refused(refused.error, Some(refused.message));
            self.reply(token, GroupResponse::ConsumerHeartbeat(response));
        }
    }

    fn consumer_lives(&mut self, token: Token, request: &ConsumerHeartbeatRequest, now: Now) -> Result<(), Refused> {
        heartbeat::check(request, &self.config.consumer.assignors)?;
        let group_id = &request.group_id;
        let answer = move |response| Some((token, GroupResponse::ConsumerHeartbeat(response)));
        if let Some(live) = self.consumers.get(group_id) {
            let soft = live.soft(self.topic_created_at, now);
            self.check_brought(request)?;
            let decided = heartbeat::decide(&live.group, soft, request, self.around(group_id, now))?;
            self.carry_out(group_id, decided, answer, now);
            return Ok(());
        }
        if request.member_epoch > 0 {
            let message = format!("Group {group_id} is not a consumer group, or not found.");
            return Err(Refused::new(ErrorCode::GroupIdNotFound, message));
        }
        self.check_room_for_group().map_err(|error| Refused::new(error, "this coordinator has too many groups"))?;
        self.check_brought(request)?;
        let around = self.around(group_id, now);
        let classic = self.groups.get(group_id).filter(|group| !group.is_empty());
        let taken_over = classic.map(|classic| convert::upgrade(classic, around)).transpose()?.unwrap_or_default();
        let mut group = ConsumerGroup::default();
        taken_over.iter().for_each(|fact| group.replay(fact));
        let live = LiveConsumerGroup::new(group, around.settings.session_timeout_ms, now);
        let soft = live.soft(self.topic_created_at, now);
        let mut decided = heartbeat::decide(&live.group, soft, request, around)?;
        decided.facts.splice(0..0, taken_over);
        self.begin_consumers(group_id, live, decided, answer, now);
        Ok(())
    }

    /// What a member brings is bounded, as that of classic ones; and that there is one more takes room, too.
    fn check_brought(&self, request: &ConsumerHeartbeatRequest) -> Result<(), Refused> {
        let topics: usize = request.topics.iter().flatten().map(|topic| topic.len() + 24).sum();
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let joins = request.member_epoch == JOINING_EPOCH
            && self.consumer_group(&request.group_id).is_none_or(|group| group.member(&request.member_id).is_none());
        let names =
            request.member_id.len() + request.client_id.len() + text(&request.instance_id) + text(&request.rack_id);
        let itself = if joins { MEMBER_OVERHEAD_BYTES + names } else { 0 };
        let brought = topics + text(&request.regex);
        if !self.have_room(&request.group_id, &request.member_id, brought, itself) {
            return Err(Refused::new(ErrorCode::GroupMaxSizeReached, "the members' subscriptions take too much room"));
        }
        Ok(())
    }

    /// A consumer group comes to be, in the place of a classic one where there is one.
    fn begin_consumers<R>(
        &mut self,
        group_id: &str,
        live: LiveConsumerGroup,
        decided: Decided<R>,
        answer: impl FnOnce(R) -> Option<(Token, GroupResponse)>,
        now: Now,
    ) {
        let stored = self.state.group(group_id).is_some() || self.writes.touch(group_id);
        let Decided { facts, response, waits, refreshed, resolve } = decided;
        let mut all = consumer_facts(group_id, facts.clone());
        if stored {
            all.push(Fact::Group { group_id: group_id.to_owned(), metadata: None });
        }
        let waiting = answer(response).map(|(token, response)| Waiting::Reply(token, response));
        if !self.write(all, waiting, now) {
            return;
        }
        if let Some(mut classic) = self.groups.remove(group_id) {
            self.member_bytes -= classic.bytes();
            // Its members come back, and find a group that leads them on.
            self.replies.extend(classic.unload(ErrorCode::RebalanceInProgress));
        }
        // What was taken over is in the group already; applying it again changes nothing.
        self.member_bytes += live.group.bytes();
        self.consumers.insert(group_id.to_owned(), live);
        self.advance(group_id, &facts, &waits, refreshed, resolve, now);
    }

    fn consumer_leaves(&mut self, token: Token, request: &ConsumerHeartbeatRequest, now: Now) -> Result<(), Refused> {
        heartbeat::check(request, &self.config.consumer.assignors)?;
        let group_id = &request.group_id;
        let Some(live) = self.consumers.get(group_id) else {
            let message = format!("Group {group_id} is not a consumer group, or not found.");
            return Err(Refused::new(ErrorCode::GroupIdNotFound, message));
        };
        let answer = move |response| Some((token, GroupResponse::ConsumerHeartbeat(response)));
        match heartbeat::leave(&live.group, request, self.around(group_id, now))? {
            Leave::ForAWhile(decided) => self.carry_out(group_id, decided, answer, now),
            Leave::Remove(members, response) => self.remove_members(group_id, &members, response, answer, now),
        }
        Ok(())
    }

    /// Removes members, after which the group may be a classic one.
    fn remove_members<R>(
        &mut self,
        group_id: &str,
        members: &BTreeSet<String>,
        response: R,
        answer: impl FnOnce(R) -> Option<(Token, GroupResponse)>,
        now: Now,
    ) {
        let Some(live) = self.consumers.get(group_id) else { return };
        let allowed = self.config.consumer.migration.downgrade;
        if !members.is_empty() && convert::is_downgrade(&live.group, members, allowed, self.config.max_size) {
            let classic = convert::downgrade(group_id, &live.group, members, &self.image, now);
            return self.begin_classic(group_id, classic, true, answer(response), now);
        }
        let decided = heartbeat::remove(&live.group, members, response, self.around(group_id, now));
        self.carry_out(group_id, decided, answer, now);
    }

    /// A classic group takes the place of a consumer group.
    fn begin_classic(
        &mut self,
        group_id: &str,
        classic: ClassicGroup,
        rebalance: bool,
        answer: Option<(Token, GroupResponse)>,
        now: Now,
    ) {
        let Some(live) = self.consumers.get(group_id) else { return };
        let mut facts = vec![classic.as_fact()];
        facts.extend(consumer_facts(group_id, live.group.tombstones()));
        let waiting = answer.map(|(token, response)| Waiting::Reply(token, response));
        if !self.write(facts, waiting, now) {
            return self.rewind(group_id, now);
        }
        if let Some(live) = self.consumers.remove(group_id) {
            self.member_bytes -= live.group.bytes();
        }
        self.member_bytes += classic.bytes();
        self.groups.insert(group_id.to_owned(), classic);
        self.change(group_id, now, |group, turn| {
            if rebalance {
                group.prepare_rebalance(turn);
            }
        });
    }

    /// A consumer group that nobody is in makes room for a classic one.
    pub(super) fn drop_empty_consumers(&mut self, group_id: &str, now: Now) {
        if self.consumer_group(group_id).is_some_and(ConsumerGroup::is_empty) {
            let facts = self.group_tombstones(group_id);
            self.write_for_group(facts, None, now);
        }
    }

    pub(super) fn consumer_describe(&mut self, token: Token, request: &ConsumerDescribeRequest) {
        let group_id = &request.group_id;
        let not_found =
            |message: String| ConsumerDescribeResponse::refused(group_id, ErrorCode::GroupIdNotFound, Some(message));
        let committed = self.state.consumer(group_id).filter(|group| group.exists());
        let response = match (self.groups.contains_key(group_id), committed) {
            (false, Some(group)) => describe::describe(group_id, group, &self.config.consumer),
            (false, None) if !self.knows(group_id) => not_found(format!("Group {group_id} not found.")),
            _ => not_found(format!("Group {group_id} is not a consumer group.")),
        };
        self.reply(token, GroupResponse::ConsumerDescribe(response));
    }
}

/// Requests of the classic protocol.
impl GroupShard {
    pub(super) fn join_consumers(&mut self, token: Token, request: &JoinGroupRequest, entropy: u128, now: Now) {
        if let Err(error) = self.serve_join(token, request, entropy, now) {
            let response = JoinGroupResponse::refused(&request.member_id, error);
            self.reply(token, GroupResponse::JoinGroup(response));
        }
    }

    fn serve_join(
        &mut self,
        token: Token,
        request: &JoinGroupRequest,
        entropy: u128,
        now: Now,
    ) -> Result<(), ErrorCode> {
        self.check_join(request)?;
        let group_id = &request.group_id;
        let Some(live) = self.consumers.get(group_id) else { return Err(ErrorCode::UnknownMemberId) };
        let member_id = match request.member_id.as_str() {
            "" => new_member_id(entropy),
            known => known.to_owned(),
        };
        let (soft, around) = (live.soft(self.topic_created_at, now), self.around(group_id, now));
        let joined = classic_members::join(&live.group, soft, request, &member_id, around);
        let (decided, last_replaced) = match joined.map_err(|refused| refused.error)? {
            classic_members::Joined::NeedsMemberId(response) => {
                self.reply(token, GroupResponse::JoinGroup(response));
                return Ok(());
            }
            classic_members::Joined::In { decided, last_replaced } => (decided, last_replaced),
        };
        let allowed = around.config.migration.downgrade && live.group.members().len() <= self.config.max_size;
        if let Some(rebalance) = last_replaced.filter(|_| allowed) {
            let mut after = live.group.clone();
            decided.facts.iter().for_each(|fact| after.replay(fact));
            let classic = convert::downgrade(group_id, &after, &BTreeSet::new(), &self.image, now);
            let answer = Some((token, GroupResponse::JoinGroup(decided.response)));
            self.begin_classic(group_id, classic, rebalance, answer, now);
        } else {
            self.carry_out(group_id, decided, |response| Some((token, GroupResponse::JoinGroup(response))), now);
        }
        Ok(())
    }

    pub(super) fn sync_consumers(&mut self, token: Token, request: &SyncGroupRequest, now: Now) {
        let group_id = &request.group_id;
        let Some(live) = self.consumers.get(group_id) else { return };
        let (response, waits) = match classic_members::sync(&live.group, request, self.around(group_id, now)) {
            Ok(synced) => synced,
            Err((error, waits)) => (SyncGroupResponse::refused(error), waits),
        };
        self.wait_for(group_id, &waits, now);
        self.answer_after_writes(group_id, token, GroupResponse::SyncGroup(response), now);
    }

    pub(super) fn heartbeat_consumers(&mut self, token: Token, request: &HeartbeatRequest, now: Now) {
        let Some(live) = self.consumers.get(&request.group_id) else { return };
        let error = match classic_members::heartbeat(&live.group, request) {
            Ok((error, waits)) => {
                self.wait_for(&request.group_id, &waits, now);
                error
            }
            Err(error) => error,
        };
        self.reply(token, GroupResponse::Heartbeat(HeartbeatResponse { error }));
    }

    pub(super) fn leave_consumers(&mut self, token: Token, request: LeaveGroupRequest, now: Now) {
        let Some(live) = self.consumers.get(&request.group_id) else { return };
        let (gone, members) = classic_members::leave(&live.group, request.members);
        let response = LeaveGroupResponse { error: ErrorCode::None, members };
        let answer = |response| Some((token, GroupResponse::LeaveGroup(response)));
        self.remove_members(&request.group_id, &gone, response, answer, now);
    }
}

/// Facts, time and failure.
impl GroupShard {
    /// Has a decision stored, and goes on from it at once.
    fn carry_out<R>(
        &mut self,
        group_id: &str,
        decided: Decided<R>,
        answer: impl FnOnce(R) -> Option<(Token, GroupResponse)>,
        now: Now,
    ) {
        let Decided { facts, response, waits, refreshed, resolve } = decided;
        let answer = answer(response);
        if facts.is_empty() {
            if let Some((token, response)) = answer {
                self.answer_after_writes(group_id, token, response, now);
            }
        } else {
            let waiting = answer.map(|(token, response)| Waiting::Reply(token, response));
            if !self.write(consumer_facts(group_id, facts.clone()), waiting, now) {
                // Whoever was to be removed stays, and is waited for again.
                return self.rewind(group_id, now);
            }
        }
        self.advance(group_id, &facts, &waits, refreshed, resolve, now);
    }

    /// The live group goes on from what is decided and queued.
    fn advance(
        &mut self,
        group_id: &str,
        facts: &[ConsumerFact],
        waits: &[Wait],
        refreshed: bool,
        resolve: Vec<String>,
        now: Now,
    ) {
        let Some(live) = self.consumers.get_mut(group_id) else { return };
        let bytes = live.group.bytes();
        facts.iter().for_each(|fact| live.replay(fact));
        waits.iter().for_each(|wait| live.wait(wait, now));
        if refreshed {
            live.refreshed(now);
        }
        if !resolve.is_empty() {
            live.set_resolving(true);
            let (group_id, image) = (group_id.to_owned(), Arc::clone(&self.image));
            self.effects.push_back(GroupEffect::Resolve { group_id, expressions: resolve, image });
        }
        self.member_bytes = self.member_bytes - bytes + live.group.bytes();
        if !live.group.exists() {
            self.member_bytes -= live.group.bytes();
            self.consumers.remove(group_id);
        }
        self.reschedule(group_id);
    }

    fn wait_for(&mut self, group_id: &str, waits: &[Wait], now: Now) {
        if let Some(live) = self.consumers.get_mut(group_id) {
            waits.iter().for_each(|wait| live.wait(wait, now));
        }
        self.reschedule(group_id);
    }

    /// Answers when everything that the answer may tell of is stored.
    fn answer_after_writes(&mut self, group_id: &str, token: Token, response: GroupResponse, now: Now) {
        let under_way = self.writes.consumer_facts(group_id).next().is_some();
        if under_way && self.config.consumer.rules.hold(Rule::R53AnswerWhenStored) {
            let deadline = now.monotonic + self.config.offsets_commit_timeout_ms;
            self.writes.push_answer(token, response, group_id, deadline);
        } else {
            self.reply(token, response);
        }
    }

    /// Queues facts of one group, which may be a consumer group, and goes on from them.
    pub(super) fn write_for_group(&mut self, facts: Vec<Fact>, waiting: Option<Waiting>, now: Now) {
        let mut consumers: BTreeMap<String, Vec<ConsumerFact>> = BTreeMap::new();
        for fact in &facts {
            if let Fact::Consumer { group_id, fact } = fact {
                consumers.entry(group_id.clone()).or_default().push(fact.clone());
            }
        }
        if self.write(facts, waiting, now) {
            for (group_id, facts) in consumers {
                self.advance(&group_id, &facts, &[], false, Vec::new(), now);
            }
        }
    }

    /// Removes the members of a group that were waited for too long.
    pub(super) fn expire_consumers(&mut self, group_id: &str, now: Now) {
        let Some(live) = self.consumers.get_mut(group_id) else { return };
        let overdue: BTreeSet<String> = live.take_overdue(now).into_iter().collect();
        if overdue.is_empty() {
            self.reschedule(group_id);
        } else {
            self.remove_members(group_id, &overdue, (), |()| None, now);
        }
    }

    /// Refuses what certainly is not stored, and what was decided on it.
    pub(super) fn give_up(&mut self, operations: Vec<Operation>, error: ErrorCode, now: Now) {
        let groups: BTreeSet<String> =
            operations.iter().filter_map(Operation::consumer_group).map(str::to_owned).collect();
        for operation in operations {
            self.fail(operation, error, now);
        }
        for group_id in groups {
            for operation in self.writes.take_dependent(&group_id) {
                self.fail(operation, error, now);
            }
            self.rewind(&group_id, now);
        }
    }

    /// Puts a group back to what is committed and what is on its way.
    fn rewind(&mut self, group_id: &str, now: Now) {
        let mut group = self.state.consumer(group_id).cloned().unwrap_or_default();
        self.writes.consumer_facts(group_id).for_each(|fact| group.replay(fact));
        let session_timeout_ms = self.around(group_id, now).settings.session_timeout_ms;
        if group.exists() {
            if let Some(mut classic) = self.groups.remove(group_id) {
                self.member_bytes -= classic.bytes();
                self.replies.extend(classic.unload(ErrorCode::CoordinatorNotAvailable));
            }
            self.member_bytes += group.bytes();
            if let Some(live) = self.consumers.get_mut(group_id) {
                self.member_bytes -= live.group.bytes();
                live.restore(group, session_timeout_ms, now);
            } else {
                let live = LiveConsumerGroup::new(group, session_timeout_ms, now);
                self.consumers.insert(group_id.to_owned(), live);
            }
        } else {
            if let Some(live) = self.consumers.remove(group_id) {
                self.member_bytes -= live.group.bytes();
            }
            if let (Some(stored), false) = (self.state.group(group_id), self.groups.contains_key(group_id)) {
                let classic = ClassicGroup::load(group_id, stored, now);
                self.member_bytes += classic.bytes();
                self.groups.insert(group_id.to_owned(), classic);
            }
        }
        self.reschedule(group_id);
    }
}

/// A member id as Kafka gives them here: a UUID in base64.
fn new_member_id(entropy: u128) -> String {
    TopicId(random_uuid(entropy)).to_string()
}

fn consumer_facts(group_id: &str, facts: Vec<ConsumerFact>) -> Vec<Fact> {
    facts.into_iter().map(|fact| Fact::Consumer { group_id: group_id.to_owned(), fact }).collect()
}
