//! The classic group protocol: who is in a group right now, and how a generation comes to be.
//!
//! ```text
//!             first member joins                   all joined, or time is up
//!   Empty ─────────────────────► PreparingRebalance ─────────────────────────► CompletingRebalance
//!     ▲                            │        ▲   ▲                                   │        │
//!     └── nobody is left ──────────┘        │   └──── join, leave, lost, no sync ───┘        │ leader's assignment
//!                                           │                                                ▼ is committed
//!                                           └───────── join, leave, lost, no sync ──────── Stable
//! ```
//!
//! Nothing here reads the log or writes to it: a change that must be stored is handed out as a [`Write`], and takes
//! effect, where members could see it, when that is committed. Invariants, held by [`ClassicGroup::assert_invariants`]:
//! - `static_members` maps exactly the static ids of `members`, one to one (`R54`);
//! - a group with members has a leader, which is a member, and one protocol at least that all support;
//! - a parked JoinGroup or SyncGroup always has an end: a deadline of the phase, or a write under way.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use model::{ErrorCode, Time};

use crate::config::{GroupConfig, MEMBER_OVERHEAD_BYTES};
use crate::record::{Fact, subscribed_topics};
use crate::request::{
    DescribeGroupResponse, DescribedMember, GroupResponse, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    JoinProtocol, JoinedMember, LeaveGroupRequest, LeavingMember, LeftMember, SyncGroupRequest, SyncGroupResponse,
    random_uuid,
};
use crate::shard::{Now, Token};
use crate::state::{GroupMetadata, MemberMetadata};

/// The protocol type of consumers, the only one whose subscriptions are read.
const CONSUMER: &str = "consumer";
/// Member ids handed out and not used yet, in one group.
const MAX_PENDING_MEMBERS: usize = 10_000;
/// The part of a member id that comes from the client: it must fit Kafka's strings together with the rest.
const MAX_MEMBER_ID_PREFIX: usize = 1_024;
/// A rebalance that nobody joined is looked at again no sooner.
const MIN_REBALANCE_RETRY_MS: u64 = 100;

/// What a change of a group asks of the shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Effects {
    /// Requests to answer.
    pub replies: Vec<(Token, GroupResponse)>,
    /// Facts to store.
    pub writes: Vec<Write>,
}

/// The circumstances of one change, and what it asks for.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The time.
    pub now: Now,
    /// The shard's configuration.
    pub config: &'a GroupConfig,
    /// What is asked of the shard.
    pub fx: Effects,
}

/// A group's generation to store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Write {
    /// What to store.
    pub fact: Fact,
    /// What the group does when it is stored, or cannot be.
    pub then: Option<Stored>,
}

/// What a group waits for while a write is under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Stored {
    /// The assignment of this generation, to be given to its members.
    Assignment {
        /// The generation.
        generation_id: i32,
        /// By member id.
        assignments: BTreeMap<String, Bytes>,
    },
    /// The new member id of a static member that came back to a stable group (`R54`).
    StaticMember {
        /// The new member id.
        member_id: String,
        /// The generation, unchanged.
        generation_id: i32,
        /// The leader before: who does not know KIP-814 must not take itself for the leader.
        previous_leader: String,
        /// Whether the client knows KIP-814.
        supports_skip_assignment: bool,
    },
}

/// A request of a member that is not answered yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Parked {
    Nothing,
    Join(Token),
    Sync(Token),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Member {
    group_instance_id: Option<String>,
    client_id: String,
    client_host: String,
    rebalance_timeout_ms: u64,
    session_timeout_ms: u64,
    protocols: Vec<JoinProtocol>,
    assignment: Bytes,
    parked: Parked,
    /// Not yet in any generation: its parked JoinGroup does not keep it here for ever.
    is_new: bool,
    /// In this generation, and has not fetched its assignment.
    owes_sync: bool,
    session_deadline: Time,
}

impl Member {
    /// A parked request keeps a member alive, unless it is new.
    fn expires_at(&self) -> Option<Time> {
        (self.is_new || self.parked == Parked::Nothing).then_some(self.session_deadline)
    }

    fn awaits_join(&self) -> bool {
        matches!(self.parked, Parked::Join(_))
    }

    fn metadata(&self, protocol: Option<&str>) -> Bytes {
        self.protocols
            .iter()
            .find(|p| Some(p.name.as_str()) == protocol)
            .map(|p| p.metadata.clone())
            .unwrap_or_default()
    }

    fn protocol_names(&self) -> BTreeSet<&str> {
        self.protocols.iter().map(|p| p.name.as_str()).collect()
    }

    /// Its id is made of its client's or static id: that is counted once more for it.
    fn bytes(&self) -> usize {
        let names = self.client_id.len() + self.group_instance_id.as_ref().map_or(0, String::len);
        MEMBER_OVERHEAD_BYTES + protocol_bytes(&self.protocols) + 2 * names
    }
}

/// A member with all that it brought and was given: how members go from one kind of group to the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClassicMemberParts {
    /// Its id.
    pub member_id: String,
    /// Its static id.
    pub group_instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// How long it needs to rejoin.
    pub rebalance_timeout_ms: u64,
    /// How long it may be silent.
    pub session_timeout_ms: u64,
    /// Its protocols, the favourite first.
    pub protocols: Vec<JoinProtocol>,
    /// Its assignment.
    pub assignment: Bytes,
}

/// The wait of an empty group's first members for each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct InitialDelay {
    /// The wait under way.
    delay_ms: u64,
    /// How much longer it may become.
    remaining_ms: u64,
    /// Whether somebody joined during the wait under way.
    member_added: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Empty,
    PreparingRebalance {
        deadline: Time,
        initial: Option<InitialDelay>,
    },
    /// `storing`: the leader's assignment is on its way to the log.
    CompletingRebalance {
        sync_deadline: Option<Time>,
        storing: bool,
    },
    Stable {
        sync_deadline: Option<Time>,
    },
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::PreparingRebalance { .. } => "PreparingRebalance",
            Phase::CompletingRebalance { .. } => "CompletingRebalance",
            Phase::Stable { .. } => "Stable",
        }
    }

    fn deadline(self) -> Option<Time> {
        match self {
            Phase::Empty => None,
            Phase::PreparingRebalance { deadline, .. } => Some(deadline),
            Phase::CompletingRebalance { sync_deadline, .. } | Phase::Stable { sync_deadline } => sync_deadline,
        }
    }
}

/// One group of the classic protocol, as it is right now.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClassicGroup {
    group_id: String,
    phase: Phase,
    /// When the phase began, wall clock.
    phase_since: Option<Time>,
    generation_id: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Member ids by static id.
    static_members: BTreeMap<String, String>,
    /// Member ids handed out with MEMBER_ID_REQUIRED, and until when they may be used.
    pending: BTreeMap<String, Time>,
    /// How many members support each protocol.
    supporters: BTreeMap<String, usize>,
    /// How many members have a parked JoinGroup.
    awaiting_join: usize,
    /// Of a consumer group whose subscriptions can be read.
    subscribed_topics: Option<BTreeSet<String>>,
    bytes: usize,
    /// No deadline of this group is earlier. It may be too early: heartbeats do not move it.
    earliest_deadline: Option<Time>,
}

/// What can be seen of a group, and its deadlines.
impl ClassicGroup {
    /// A group that nobody has joined yet.
    #[must_use]
    pub fn new(group_id: &str, now: Now) -> Self {
        ClassicGroup {
            group_id: group_id.to_owned(),
            phase: Phase::Empty,
            phase_since: Some(now.wall),
            generation_id: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeMap::new(),
            supporters: BTreeMap::new(),
            awaiting_join: 0,
            subscribed_topics: None,
            bytes: 0,
            earliest_deadline: None,
        }
    }

    /// The group that a stored generation speaks of: its members are taken to be alive, and their sessions start now.
    #[must_use]
    pub fn load(group_id: &str, stored: &GroupMetadata, now: Now) -> Self {
        let mut group = ClassicGroup::new(group_id, now);
        group.phase_since = stored.current_state_timestamp;
        group.generation_id = stored.generation_id;
        group.protocol_type = Some(stored.protocol_type.clone()).filter(|t| !t.is_empty());
        group.protocol = stored.protocol.clone();
        for (member_id, member) in &stored.members {
            group.insert(member_id.clone(), Member::load(member, stored.protocol.as_deref(), now));
        }
        let leader = stored.leader.clone().filter(|id| group.members.contains_key(id));
        group.leader = leader.or_else(|| group.members.keys().next().cloned());
        if !group.members.is_empty() {
            group.phase = Phase::Stable { sync_deadline: None };
        }
        group.subscribed_topics = group.read_subscriptions();
        group.refresh_deadline();
        group
    }

    /// A stable group of consumers with these members, whose sessions start now.
    #[must_use]
    pub fn from_parts(group_id: &str, generation_id: i32, members: Vec<ClassicMemberParts>, now: Now) -> Self {
        let mut group = ClassicGroup::new(group_id, now);
        group.generation_id = generation_id;
        group.protocol_type = Some(CONSUMER.to_owned());
        for parts in members {
            let (member_id, member) = Member::from_parts(parts, now);
            group.insert(member_id, member);
        }
        group.protocol = group.select_protocol();
        group.enter(Phase::Stable { sync_deadline: None }, now);
        group.subscribed_topics = group.read_subscriptions();
        group.refresh_deadline();
        group
    }

    /// Its members, with all that they brought and were given.
    pub fn members(&self) -> impl Iterator<Item = ClassicMemberParts> {
        self.members.iter().map(|(member_id, member)| member.parts(member_id))
    }

    /// Its id.
    #[must_use]
    pub fn group_id(&self) -> &str {
        &self.group_id
    }

    /// The generation.
    #[must_use]
    pub fn generation_id(&self) -> i32 {
        self.generation_id
    }

    /// The protocol chosen.
    #[must_use]
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// The group as it is stored.
    #[must_use]
    pub fn as_fact(&self) -> Fact {
        self.to_fact(None)
    }

    /// The state's name, as Kafka shows it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        self.phase.name()
    }

    /// Whether nobody is in the group; ids handed out and not used yet do not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.phase == Phase::Empty
    }

    /// Whether the group holds nothing that anybody could miss.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.is_forgettable() && self.generation_id == 0
    }

    /// Whether nobody is in the group and nobody was told to come.
    #[must_use]
    pub fn is_forgettable(&self) -> bool {
        self.is_empty() && self.pending.is_empty()
    }

    /// `consumer` …
    #[must_use]
    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// When the present state began, wall clock, where that is known.
    #[must_use]
    pub fn state_since(&self) -> Option<Time> {
        self.phase_since
    }

    /// Bytes that its members brought.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that one of its members takes.
    #[must_use]
    pub fn bytes_of(&self, member_id: &str) -> usize {
        self.members.get(member_id).map_or(0, Member::bytes)
    }

    /// How many are in it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Whether the members are consumers.
    #[must_use]
    pub fn is_consumer(&self) -> bool {
        self.protocol_type.as_deref() == Some(CONSUMER)
    }

    /// Whether the stable group's subscriptions are known, so that offsets of other topics may expire (`R55`).
    #[must_use]
    pub fn knows_subscriptions(&self) -> bool {
        matches!(self.phase, Phase::Stable { .. }) && self.is_consumer() && self.subscribed_topics.is_some()
    }

    /// Whether a member reads `topic`: yes, where consumers' subscriptions cannot be read.
    #[must_use]
    pub fn is_subscribed_to(&self, topic: &str) -> bool {
        self.subscribed_topics.as_ref().map_or(self.is_consumer(), |topics| topics.contains(topic))
    }

    /// A time at or before the next deadline.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.earliest_deadline
    }

    /// The group for people and tools.
    #[must_use]
    pub fn describe(&self) -> DescribeGroupResponse {
        let stable = matches!(self.phase, Phase::Stable { .. });
        let describe = |(member_id, member): (&String, &Member)| DescribedMember {
            member_id: member_id.clone(),
            group_instance_id: member.group_instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if stable { member.metadata(self.protocol.as_deref()) } else { Bytes::new() },
            // What a member had before the rebalance it goes on reading until it has joined again.
            assignment: member.assignment.clone(),
        };
        DescribeGroupResponse {
            error: ErrorCode::None,
            error_message: None,
            group_id: self.group_id.clone(),
            state: self.state(),
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().filter(|_| stable).unwrap_or_default(),
            members: self.members.iter().map(describe).collect(),
        }
    }

    /// Whether offsets may be committed by this member of this generation (`R53`). In a transaction they may also be by
    /// somebody who names no member, as old producers do, and before the generation is assigned (`R49`).
    ///
    /// # Errors
    /// The code to answer.
    pub fn check_offset_commit(
        &self,
        member_id: &str,
        group_instance_id: Option<&str>,
        generation_id: i32,
        in_transaction: bool,
    ) -> Result<(), ErrorCode> {
        if generation_id < 0 && self.is_empty() {
            return Ok(());
        }
        if generation_id < 0 && member_id.is_empty() && group_instance_id.is_none() {
            return if in_transaction { Ok(()) } else { Err(ErrorCode::UnknownMemberId) };
        }
        self.check_member(member_id, group_instance_id)?;
        if generation_id != self.generation_id {
            return Err(ErrorCode::IllegalGeneration);
        }
        match self.phase {
            Phase::CompletingRebalance { .. } if !in_transaction => Err(ErrorCode::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// Panics where the group contradicts itself.
    pub fn assert_invariants(&self, write_under_way: bool) {
        let statics: BTreeMap<String, String> =
            self.members.iter().filter_map(|(id, m)| m.group_instance_id.clone().map(|s| (s, id.clone()))).collect();
        assert_eq!(statics, self.static_members, "static members of {}", self.group_id);
        let awaiting = self.members.values().filter(|m| m.awaits_join()).count();
        assert_eq!(awaiting, self.awaiting_join, "parked JoinGroups of {}", self.group_id);
        if let Some(leader) = &self.leader {
            assert!(self.members.contains_key(leader), "leader {leader} of {} is no member", self.group_id);
        }
        assert_eq!(self.leader.is_none(), self.members.is_empty(), "leader of {}", self.group_id);
        if !self.members.is_empty() {
            assert!(!self.is_empty(), "{} is Empty with {} members", self.group_id, self.members.len());
            assert!(!self.candidates().is_empty(), "no protocol of {} suits all members", self.group_id);
        }
        let bytes: usize = self.members.values().map(Member::bytes).sum::<usize>() + pending_bytes(&self.pending);
        assert_eq!(bytes, self.bytes, "bytes of {}", self.group_id);
        if let Some(exact) = self.exact_deadline() {
            let earliest = self.earliest_deadline;
            assert!(earliest.is_some_and(|e| e <= exact), "timer of {}: {earliest:?} {exact}", self.group_id);
        }
        if self.members.values().any(|m| m.parked != Parked::Nothing) {
            let ends = self.phase.deadline().is_some() || write_under_way;
            assert!(ends, "a parked request of {} has no end in {:?}", self.group_id, self.phase);
        }
    }

    fn check_member(&self, member_id: &str, group_instance_id: Option<&str>) -> Result<(), ErrorCode> {
        if let Some(instance) = group_instance_id {
            match self.static_members.get(instance) {
                None => return Err(ErrorCode::UnknownMemberId),
                Some(current) if current != member_id => return Err(ErrorCode::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ErrorCode::UnknownMemberId) }
    }

    fn exact_deadline(&self) -> Option<Time> {
        let members = self.members.values().filter_map(Member::expires_at);
        members.chain(self.pending.values().copied()).chain(self.phase.deadline()).min()
    }

    fn refresh_deadline(&mut self) {
        self.earliest_deadline = self.exact_deadline();
    }

    fn note_deadline(&mut self, deadline: Time) {
        self.earliest_deadline = Some(self.earliest_deadline.map_or(deadline, |earliest| earliest.min(deadline)));
    }
}

/// JoinGroup.
impl ClassicGroup {
    /// Takes a JoinGroup: answers it, or parks it until the rebalance completes.
    pub fn join(&mut self, token: Token, request: JoinGroupRequest, entropy: u128, turn: &mut Turn<'_>) {
        let refuse = |error| GroupResponse::JoinGroup(JoinGroupResponse::refused(&request.member_id, error));
        if !self.accepts(&request.member_id, turn.config) {
            let response = JoinGroupResponse::refused("", ErrorCode::GroupMaxSizeReached);
            turn.fx.replies.push((token, GroupResponse::JoinGroup(response)));
            self.remove(&request.member_id, turn);
            self.maybe_complete_join(turn);
        } else if !self.supports(&request) {
            turn.fx.replies.push((token, refuse(ErrorCode::InconsistentGroupProtocol)));
        } else if request.member_id.is_empty() {
            self.join_new(token, request, entropy, turn);
        } else if self.pending.contains_key(&request.member_id) && request.group_instance_id.is_none() {
            let member_id = request.member_id.clone();
            self.add_and_rebalance(token, request, member_id, turn);
        } else {
            match self.check_member(&request.member_id, request.group_instance_id.as_deref()) {
                Err(error) => turn.fx.replies.push((token, refuse(error))),
                Ok(()) => self.rejoin(token, request, turn),
            }
        }
    }

    fn join_new(&mut self, token: Token, request: JoinGroupRequest, entropy: u128, turn: &mut Turn<'_>) {
        let member_id = self.new_member_id(&request, entropy);
        let known = request.group_instance_id.as_ref().and_then(|id| self.static_members.get(id)).cloned();
        if let Some(old_member_id) = known {
            self.replace_static(token, request, &old_member_id, member_id, turn);
        } else if request.group_instance_id.is_none() && request.require_known_member_id {
            let error = if self.pending.len() < MAX_PENDING_MEMBERS {
                let deadline = turn.now.monotonic + millis(request.session_timeout_ms);
                self.bytes += member_id.len();
                self.pending.insert(member_id.clone(), deadline);
                self.note_deadline(deadline);
                JoinGroupResponse::refused(&member_id, ErrorCode::MemberIdRequired)
            } else {
                JoinGroupResponse::refused("", ErrorCode::GroupMaxSizeReached)
            };
            turn.fx.replies.push((token, GroupResponse::JoinGroup(error)));
        } else {
            self.add_and_rebalance(token, request, member_id, turn);
        }
    }

    fn rejoin(&mut self, token: Token, request: JoinGroupRequest, turn: &mut Turn<'_>) {
        let member_id = request.member_id.clone();
        let same = self.members.get(&member_id).is_some_and(|member| member.protocols == request.protocols);
        let leads = self.leader.as_deref() == Some(&member_id);
        match self.phase {
            // The member did not get the answer that it had.
            Phase::CompletingRebalance { .. } if same => {
                turn.fx.replies.push((token, GroupResponse::JoinGroup(self.joined(&member_id))));
            }
            Phase::Stable { .. } if same && !leads => {
                turn.fx.replies.push((token, GroupResponse::JoinGroup(self.joined(&member_id))));
            }
            // A leader comes back to have the assignment made anew, for topics that changed.
            Phase::CompletingRebalance { .. } | Phase::Stable { .. } => {
                self.update(&member_id, request);
                self.park(&member_id, Parked::Join(token), turn);
                self.prepare_rebalance(turn);
            }
            Phase::PreparingRebalance { .. } => {
                self.update(&member_id, request);
                self.park(&member_id, Parked::Join(token), turn);
                self.maybe_complete_join(turn);
            }
            Phase::Empty => {
                let response = JoinGroupResponse::refused(&member_id, ErrorCode::UnknownMemberId);
                turn.fx.replies.push((token, GroupResponse::JoinGroup(response)));
            }
        }
    }

    fn add_and_rebalance(&mut self, token: Token, request: JoinGroupRequest, member_id: String, turn: &mut Turn<'_>) {
        if let Phase::PreparingRebalance { initial: Some(initial), .. } = &mut self.phase {
            initial.member_added = true;
        }
        // Its session cannot end before it knows its id, but a client that is gone must not stay for ever.
        let session_deadline = turn.now.monotonic + turn.config.new_member_join_timeout_ms;
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        self.insert(member_id.clone(), Member::new(request, session_deadline));
        self.park(&member_id, Parked::Join(token), turn);
        match self.phase {
            Phase::PreparingRebalance { .. } => self.maybe_complete_join(turn),
            Phase::Empty | Phase::CompletingRebalance { .. } | Phase::Stable { .. } => {
                self.prepare_rebalance(turn);
            }
        }
    }

    /// A static member came back without its member id: it gets a new one, and the old one is fenced at once (`R54`).
    fn replace_static(
        &mut self,
        token: Token,
        request: JoinGroupRequest,
        old_member_id: &str,
        member_id: String,
        turn: &mut Turn<'_>,
    ) {
        let previous_leader = self.leader.clone().unwrap_or_default();
        let supports_skip_assignment = request.supports_skip_assignment;
        self.fence(old_member_id, turn);
        let Some(mut member) = self.take(old_member_id) else { return };
        member.session_deadline = turn.now.monotonic + millis(request.session_timeout_ms);
        member.owes_sync = false;
        member.is_new = false;
        if previous_leader == old_member_id {
            self.leader = Some(member_id.clone());
        }
        self.insert(member_id.clone(), member);
        self.update(&member_id, request);
        self.park(&member_id, Parked::Join(token), turn);
        match self.phase {
            Phase::Stable { .. } if self.select_protocol() == self.protocol => {
                let generation_id = self.generation_id;
                let fact = self.to_fact(None);
                let then = Stored::StaticMember { member_id, generation_id, previous_leader, supports_skip_assignment };
                turn.fx.writes.push(Write { fact, then: Some(then) });
            }
            Phase::Stable { .. } | Phase::CompletingRebalance { .. } => self.prepare_rebalance(turn),
            Phase::Empty | Phase::PreparingRebalance { .. } => self.maybe_complete_join(turn),
        }
    }

    /// The size limit counts who has joined while a group rebalances, so that it also drives out the last of a group
    /// that was too large already.
    fn accepts(&self, member_id: &str, config: &GroupConfig) -> bool {
        match self.phase {
            Phase::Empty => true,
            Phase::PreparingRebalance { .. } => {
                self.members.get(member_id).is_some_and(Member::awaits_join) || self.awaiting_join < config.max_size
            }
            Phase::CompletingRebalance { .. } | Phase::Stable { .. } => {
                self.members.contains_key(member_id) || self.members.len() < config.max_size
            }
        }
    }

    fn supports(&self, request: &JoinGroupRequest) -> bool {
        if self.is_empty() {
            return !request.protocol_type.is_empty() && !request.protocols.is_empty();
        }
        self.protocol_type.as_deref() == Some(&request.protocol_type)
            && request.protocols.iter().any(|p| self.supporters_of(&p.name) == self.members.len())
    }

    fn supporters_of(&self, protocol: &str) -> usize {
        self.supporters.get(protocol).copied().unwrap_or(0)
    }

    fn new_member_id(&self, request: &JoinGroupRequest, entropy: u128) -> String {
        let name = request.group_instance_id.as_deref().unwrap_or(&request.client_id);
        let mut end = name.len().min(MAX_MEMBER_ID_PREFIX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let mut random = entropy;
        loop {
            let member_id = format!("{}-{}", &name[..end], random_uuid(random));
            if !self.members.contains_key(&member_id) && !self.pending.contains_key(&member_id) {
                return member_id;
            }
            random = random.wrapping_add(1);
        }
    }

    fn joined(&self, member_id: &str) -> JoinGroupResponse {
        let leads = self.leader.as_deref() == Some(member_id);
        JoinGroupResponse {
            error: ErrorCode::None,
            generation_id: self.generation_id,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            member_id: member_id.to_owned(),
            members: if leads { self.joined_members() } else { Vec::new() },
        }
    }

    fn joined_members(&self) -> Vec<JoinedMember> {
        let show = |(member_id, member): (&String, &Member)| JoinedMember {
            member_id: member_id.clone(),
            group_instance_id: member.group_instance_id.clone(),
            metadata: member.metadata(self.protocol.as_deref()),
        };
        self.members.iter().map(show).collect()
    }
}

/// The rebalance.
impl ClassicGroup {
    /// Asks every member to join a new generation. Of a loaded group that is over its size limit, too.
    pub fn prepare_rebalance(&mut self, turn: &mut Turn<'_>) {
        if let Phase::CompletingRebalance { .. } = self.phase {
            self.give_assignments(&BTreeMap::new(), ErrorCode::RebalanceInProgress, turn);
        }
        self.members.values_mut().for_each(|member| member.owes_sync = false);
        let timeout_ms = self.rebalance_timeout_ms();
        let initial = self.is_empty().then(|| InitialDelay {
            delay_ms: turn.config.initial_rebalance_delay_ms,
            remaining_ms: timeout_ms.saturating_sub(turn.config.initial_rebalance_delay_ms),
            member_added: false,
        });
        let wait_ms = initial.map_or(timeout_ms, |initial| initial.delay_ms);
        self.enter(Phase::PreparingRebalance { deadline: turn.now.monotonic + wait_ms, initial }, turn.now);
        if initial.is_none() && self.all_joined() {
            self.complete_join(turn);
        }
    }

    /// Completes the rebalance where nobody is missing. The first members of a group wait for others all the same.
    fn maybe_complete_join(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::PreparingRebalance { initial: None, .. }) && self.all_joined() {
            self.complete_join(turn);
        }
    }

    fn all_joined(&self) -> bool {
        self.awaiting_join == self.members.len() && self.pending.is_empty()
    }

    fn initial_delay_over(&mut self, mut initial: InitialDelay, turn: &mut Turn<'_>) {
        if !initial.member_added || initial.remaining_ms == 0 {
            return self.complete_join(turn);
        }
        let wait_ms = initial.delay_ms.min(initial.remaining_ms);
        initial.remaining_ms = initial.remaining_ms.saturating_sub(wait_ms);
        initial.delay_ms = wait_ms;
        initial.member_added = false;
        let deadline = turn.now.monotonic + wait_ms;
        self.phase = Phase::PreparingRebalance { deadline, initial: Some(initial) };
        self.note_deadline(deadline);
    }

    fn complete_join(&mut self, turn: &mut Turn<'_>) {
        let missing: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| !member.awaits_join() && member.group_instance_id.is_none())
            .map(|(member_id, _)| member_id.clone())
            .collect();
        for member_id in missing {
            self.remove(&member_id, turn);
        }
        if !self.members.is_empty() && !self.elect_joined_leader() {
            // Only static members, and none is back: they have until their sessions end.
            let wait_ms = self.rebalance_timeout_ms().max(MIN_REBALANCE_RETRY_MS);
            let deadline = turn.now.monotonic + wait_ms;
            self.phase = Phase::PreparingRebalance { deadline, initial: None };
            self.note_deadline(deadline);
            return;
        }
        self.generation_id = self.generation_id.checked_add(1).unwrap_or(1);
        self.protocol = self.select_protocol();
        self.subscribed_topics = self.read_subscriptions();
        if self.members.is_empty() {
            self.enter(Phase::Empty, turn.now);
            let fact = self.to_fact(None);
            turn.fx.writes.push(Write { fact, then: None });
        } else {
            self.begin_sync(turn);
        }
    }

    fn begin_sync(&mut self, turn: &mut Turn<'_>) {
        let sync_deadline = Some(turn.now.monotonic + self.rebalance_timeout_ms());
        self.enter(Phase::CompletingRebalance { sync_deadline, storing: false }, turn.now);
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            let response = self.joined(&member_id);
            self.answer_join(&member_id, response, turn);
            self.renew_session(&member_id, turn.now);
            if let Some(member) = self.members.get_mut(&member_id) {
                member.is_new = false;
                member.owes_sync = true;
            }
        }
    }

    fn elect_joined_leader(&mut self) -> bool {
        let joined = |id: &String| self.members.get(id).is_some_and(Member::awaits_join);
        if !self.leader.as_ref().is_some_and(joined) {
            let next = self.members.iter().find(|(_, member)| member.awaits_join()).map(|(id, _)| id.clone());
            if next.is_none() {
                return false;
            }
            self.leader = next;
        }
        true
    }

    /// The protocol that most members like best of those that all support; None without members.
    fn select_protocol(&self) -> Option<String> {
        let candidates = self.candidates();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let favourite = member.protocols.iter().map(|p| p.name.as_str()).find(|name| candidates.contains(name));
            if let Some(name) = favourite {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        votes.into_iter().find(|(_, count)| *count == most).map(|(name, _)| name.to_owned())
    }

    fn candidates(&self) -> BTreeSet<&str> {
        let all = self.members.len();
        self.supporters.iter().filter(|(_, count)| **count == all).map(|(name, _)| name.as_str()).collect()
    }

    fn rebalance_timeout_ms(&self) -> u64 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    fn read_subscriptions(&self) -> Option<BTreeSet<String>> {
        if !self.is_consumer() {
            return None;
        }
        let mut topics = BTreeSet::new();
        for member in self.members.values() {
            topics.extend(subscribed_topics(&member.metadata(self.protocol.as_deref()))?);
        }
        Some(topics)
    }

    fn enter(&mut self, phase: Phase, now: Now) {
        self.phase = phase;
        self.phase_since = Some(now.wall);
        if let Some(deadline) = phase.deadline() {
            self.note_deadline(deadline);
        }
    }
}

/// SyncGroup, Heartbeat, LeaveGroup, and the passing of time.
impl ClassicGroup {
    /// Takes a SyncGroup: answers it, or parks it until the leader's assignment is stored.
    pub fn sync(&mut self, token: Token, request: SyncGroupRequest, turn: &mut Turn<'_>) {
        let mut answer = |response| turn.fx.replies.push((token, GroupResponse::SyncGroup(response)));
        if let Err(error) = self.check_sync(&request) {
            return answer(SyncGroupResponse::refused(error));
        }
        match self.phase {
            Phase::Empty => answer(SyncGroupResponse::refused(ErrorCode::UnknownMemberId)),
            Phase::PreparingRebalance { .. } => answer(SyncGroupResponse::refused(ErrorCode::RebalanceInProgress)),
            Phase::CompletingRebalance { storing, sync_deadline } => {
                self.park(&request.member_id, Parked::Sync(token), turn);
                self.settle_sync(&request.member_id);
                if self.leader.as_deref() == Some(&request.member_id) && !storing {
                    self.phase = Phase::CompletingRebalance { storing: true, sync_deadline };
                    self.store_assignment(request, turn);
                }
            }
            Phase::Stable { .. } => {
                self.settle_sync(&request.member_id);
                answer(self.assigned(&request.member_id));
                if !self.members.values().any(|member| member.owes_sync) {
                    self.phase = Phase::Stable { sync_deadline: None };
                }
            }
        }
    }

    /// Takes a Heartbeat.
    ///
    /// # Errors
    /// The code to answer.
    pub fn heartbeat(&mut self, request: &HeartbeatRequest, now: Now) -> Result<(), ErrorCode> {
        self.check_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation_id != self.generation_id {
            return Err(ErrorCode::IllegalGeneration);
        }
        self.renew_session(&request.member_id, now);
        match self.phase {
            Phase::Empty => Err(ErrorCode::UnknownMemberId),
            Phase::PreparingRebalance { .. } => Err(ErrorCode::RebalanceInProgress),
            Phase::CompletingRebalance { .. } | Phase::Stable { .. } => Ok(()),
        }
    }

    /// A commit is a sign of life.
    pub fn note_offset_commit(&mut self, member_id: &str, now: Now) {
        self.renew_session(member_id, now);
    }

    /// Takes a LeaveGroup.
    pub fn leave(&mut self, request: LeaveGroupRequest, turn: &mut Turn<'_>) -> Vec<LeftMember> {
        let left: Vec<LeftMember> = request.members.into_iter().map(|member| self.leave_one(member, turn)).collect();
        if left.iter().any(|member| member.error.is_none()) {
            match self.phase {
                Phase::Stable { .. } | Phase::CompletingRebalance { .. } => self.prepare_rebalance(turn),
                Phase::PreparingRebalance { .. } => self.maybe_complete_join(turn),
                Phase::Empty => {}
            }
        }
        left
    }

    /// What was on its way to the log is stored.
    pub fn stored(&mut self, then: Stored, turn: &mut Turn<'_>) {
        match then {
            Stored::Assignment { generation_id, assignments } => {
                if let Some(sync_deadline) = self.storing_deadline(generation_id) {
                    let owed = self.members.values().any(|member| member.owes_sync);
                    self.enter(Phase::Stable { sync_deadline: sync_deadline.filter(|_| owed) }, turn.now);
                    self.give_assignments(&assignments, ErrorCode::None, turn);
                }
            }
            Stored::StaticMember { member_id, generation_id, previous_leader, supports_skip_assignment } => {
                // Where a rebalance has begun meanwhile, the parked JoinGroup is part of it already.
                if matches!(self.phase, Phase::Stable { .. }) && generation_id == self.generation_id {
                    let mut response = self.joined(&member_id);
                    if supports_skip_assignment {
                        response.skip_assignment = !response.members.is_empty();
                    } else {
                        response.leader = previous_leader;
                        response.members = Vec::new();
                    }
                    self.answer_join(&member_id, response, turn);
                    self.renew_session(&member_id, turn.now);
                }
            }
        }
    }

    /// What was on its way to the log is not stored, as far as can be told.
    pub fn not_stored(&mut self, then: Stored, error: ErrorCode, turn: &mut Turn<'_>) {
        match then {
            Stored::Assignment { generation_id, .. } => {
                if self.storing_deadline(generation_id).is_some() {
                    self.give_assignments(&BTreeMap::new(), error, turn);
                    self.prepare_rebalance(turn);
                }
            }
            Stored::StaticMember { member_id, generation_id, .. } => {
                // The client does not learn the new id and will come back for another; the old one stays fenced.
                if matches!(self.phase, Phase::Stable { .. }) && generation_id == self.generation_id {
                    self.answer_join(&member_id, JoinGroupResponse::refused("", error), turn);
                    self.renew_session(&member_id, turn.now);
                }
            }
        }
    }

    /// Carries out what is due.
    pub fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        if self.earliest_deadline.is_none_or(|deadline| deadline > turn.now.monotonic) {
            return;
        }
        self.expire_members(turn);
        if self.phase.deadline().is_some_and(|deadline| deadline <= turn.now.monotonic) {
            match self.phase {
                Phase::Empty => {}
                Phase::PreparingRebalance { initial: Some(initial), .. } => self.initial_delay_over(initial, turn),
                Phase::PreparingRebalance { initial: None, .. } => self.complete_join(turn),
                Phase::CompletingRebalance { storing, .. } => {
                    self.phase = Phase::CompletingRebalance { sync_deadline: None, storing };
                    self.expire_sync(turn);
                }
                Phase::Stable { .. } => {
                    self.phase = Phase::Stable { sync_deadline: None };
                    self.expire_sync(turn);
                }
            }
        }
        self.refresh_deadline();
    }

    /// Takes everything that is parked, to be answered with `error`.
    pub fn unload(&mut self, error: ErrorCode) -> Vec<(Token, GroupResponse)> {
        self.awaiting_join = 0;
        let mut replies = Vec::new();
        for (member_id, member) in &mut self.members {
            match std::mem::replace(&mut member.parked, Parked::Nothing) {
                Parked::Nothing => {}
                Parked::Join(token) => {
                    replies.push((token, GroupResponse::JoinGroup(JoinGroupResponse::refused(member_id, error))));
                }
                Parked::Sync(token) => {
                    replies.push((token, GroupResponse::SyncGroup(SyncGroupResponse::refused(error))));
                }
            }
        }
        replies
    }

    fn check_sync(&self, request: &SyncGroupRequest) -> Result<(), ErrorCode> {
        self.check_member(&request.member_id, request.group_instance_id.as_deref())?;
        if request.generation_id != self.generation_id {
            return Err(ErrorCode::IllegalGeneration);
        }
        let differs =
            |asked: &Option<String>, ours: &Option<String>| asked.is_some() && ours.is_some() && asked != ours;
        if differs(&request.protocol_type, &self.protocol_type) || differs(&request.protocol_name, &self.protocol) {
            return Err(ErrorCode::InconsistentGroupProtocol);
        }
        Ok(())
    }

    fn store_assignment(&mut self, request: SyncGroupRequest, turn: &mut Turn<'_>) {
        let mut assignments: BTreeMap<String, Bytes> =
            request.assignments.into_iter().map(|given| (given.member_id, given.assignment)).collect();
        assignments.retain(|member_id, _| self.members.contains_key(member_id));
        assignments.values_mut().for_each(|assignment| *assignment = Bytes::copy_from_slice(assignment));
        let fact = self.to_fact(Some(&assignments));
        let then = Stored::Assignment { generation_id: self.generation_id, assignments };
        turn.fx.writes.push(Write { fact, then: Some(then) });
    }

    /// The sync deadline, where the assignment of this generation is what the group waits for.
    fn storing_deadline(&self, generation_id: i32) -> Option<Option<Time>> {
        match self.phase {
            Phase::CompletingRebalance { storing: true, sync_deadline } if generation_id == self.generation_id => {
                Some(sync_deadline)
            }
            _ => None,
        }
    }

    fn give_assignments(&mut self, given: &BTreeMap<String, Bytes>, error: ErrorCode, turn: &mut Turn<'_>) {
        let member_ids: Vec<String> = self.members.keys().cloned().collect();
        for member_id in member_ids {
            if let Some(member) = self.members.get_mut(&member_id) {
                member.assignment = given.get(&member_id).cloned().unwrap_or_default();
            }
            let response = if error.is_none() { self.assigned(&member_id) } else { SyncGroupResponse::refused(error) };
            if self.answer_sync(&member_id, response, turn) {
                self.renew_session(&member_id, turn.now);
            }
        }
    }

    fn assigned(&self, member_id: &str) -> SyncGroupResponse {
        SyncGroupResponse {
            error: ErrorCode::None,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol.clone(),
            assignment: self.members.get(member_id).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }

    fn leave_one(&mut self, leaving: LeavingMember, turn: &mut Turn<'_>) -> LeftMember {
        let error = match self.check_leave(&leaving) {
            Ok(member_id) => {
                self.remove(&member_id, turn);
                ErrorCode::None
            }
            Err(error) => error,
        };
        LeftMember { member_id: leaving.member_id, group_instance_id: leaving.group_instance_id, error }
    }

    /// The member id to remove.
    fn check_leave(&self, leaving: &LeavingMember) -> Result<String, ErrorCode> {
        if leaving.member_id.is_empty() {
            let current = leaving.group_instance_id.as_ref().and_then(|id| self.static_members.get(id));
            return current.cloned().ok_or(ErrorCode::UnknownMemberId);
        }
        if !self.pending.contains_key(&leaving.member_id) {
            self.check_member(&leaving.member_id, leaving.group_instance_id.as_deref())?;
        }
        Ok(leaving.member_id.clone())
    }

    fn expire_members(&mut self, turn: &mut Turn<'_>) {
        let due = |deadline: Time| deadline <= turn.now.monotonic;
        let mut lost: Vec<String> = self.pending.iter().filter(|(_, d)| due(**d)).map(|(id, _)| id.clone()).collect();
        let member_lost = self.members.iter().filter(|(_, member)| member.expires_at().is_some_and(due));
        let members: Vec<String> = member_lost.map(|(id, _)| id.clone()).collect();
        let any_member = !members.is_empty();
        lost.extend(members);
        if lost.is_empty() {
            return;
        }
        for member_id in &lost {
            self.remove(member_id, turn);
        }
        match self.phase {
            Phase::Stable { .. } | Phase::CompletingRebalance { .. } if any_member => {
                self.prepare_rebalance(turn);
            }
            Phase::PreparingRebalance { .. } if self.all_joined() => self.complete_join(turn),
            Phase::Empty
            | Phase::PreparingRebalance { .. }
            | Phase::CompletingRebalance { .. }
            | Phase::Stable { .. } => {}
        }
    }

    /// Members that joined a generation and never fetched their assignment hold up their partitions: they go.
    fn expire_sync(&mut self, turn: &mut Turn<'_>) {
        let silent: Vec<String> =
            self.members.iter().filter(|(_, member)| member.owes_sync).map(|(id, _)| id.clone()).collect();
        if silent.is_empty() {
            return;
        }
        for member_id in &silent {
            self.remove(member_id, turn);
        }
        self.prepare_rebalance(turn);
    }
}

/// Members, one by one.
impl ClassicGroup {
    fn insert(&mut self, member_id: String, member: Member) {
        if let Some(deadline) = member.expires_at() {
            self.note_deadline(deadline);
        }
        if self.pending.remove(&member_id).is_some() {
            self.bytes -= member_id.len();
        }
        if let Some(instance) = &member.group_instance_id {
            self.static_members.insert(instance.clone(), member_id.clone());
        }
        self.count(&member, true);
        self.awaiting_join += usize::from(member.awaits_join());
        self.leader.get_or_insert_with(|| member_id.clone());
        self.members.insert(member_id, member);
    }

    /// Takes a member out; its parked request must have been answered. The leader stays named.
    fn take(&mut self, member_id: &str) -> Option<Member> {
        let member = self.members.remove(member_id)?;
        self.count(&member, false);
        self.awaiting_join -= usize::from(member.awaits_join());
        if let Some(instance) = &member.group_instance_id {
            self.static_members.remove(instance);
        }
        Some(member)
    }

    /// Removes a member, or an id handed out. A parked request is answered so that a client that is there starts anew.
    fn remove(&mut self, member_id: &str, turn: &mut Turn<'_>) {
        self.answer_join(member_id, JoinGroupResponse::refused("", ErrorCode::UnknownMemberId), turn);
        self.answer_sync(member_id, SyncGroupResponse::refused(ErrorCode::UnknownMemberId), turn);
        if self.pending.remove(member_id).is_some() {
            self.bytes -= member_id.len();
        }
        self.take(member_id);
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    fn fence(&mut self, member_id: &str, turn: &mut Turn<'_>) {
        self.answer_join(member_id, JoinGroupResponse::refused(member_id, ErrorCode::FencedInstanceId), turn);
        self.answer_sync(member_id, SyncGroupResponse::refused(ErrorCode::FencedInstanceId), turn);
    }

    fn update(&mut self, member_id: &str, request: JoinGroupRequest) {
        let Some(mut member) = self.members.remove(member_id) else { return };
        self.count(&member, false);
        member.session_timeout_ms = millis(request.session_timeout_ms);
        member.rebalance_timeout_ms = millis(request.rebalance_timeout_ms);
        member.protocols = owned(request.protocols);
        self.count(&member, true);
        self.members.insert(member_id.to_owned(), member);
    }

    fn count(&mut self, member: &Member, joins: bool) {
        for name in member.protocol_names() {
            if !joins {
                if let Some(count) = self.supporters.get_mut(name) {
                    *count -= 1;
                }
            } else if let Some(count) = self.supporters.get_mut(name) {
                *count += 1;
            } else {
                self.supporters.insert(name.to_owned(), 1);
            }
        }
        if joins {
            self.bytes += member.bytes();
        } else {
            self.supporters.retain(|_, count| *count > 0);
            self.bytes -= member.bytes();
        }
    }

    /// Parks a request. One that was parked before is answered: its client asked again, on another connection.
    fn park(&mut self, member_id: &str, parked: Parked, turn: &mut Turn<'_>) {
        self.answer_join(member_id, JoinGroupResponse::refused(member_id, ErrorCode::RebalanceInProgress), turn);
        self.answer_sync(member_id, SyncGroupResponse::refused(ErrorCode::RebalanceInProgress), turn);
        if let Some(member) = self.members.get_mut(member_id) {
            member.parked = parked;
            self.awaiting_join += usize::from(member.awaits_join());
        }
    }

    fn answer_join(&mut self, member_id: &str, response: JoinGroupResponse, turn: &mut Turn<'_>) -> bool {
        let Some(member) = self.members.get_mut(member_id) else { return false };
        let Parked::Join(token) = member.parked else { return false };
        member.parked = Parked::Nothing;
        self.awaiting_join -= 1;
        turn.fx.replies.push((token, GroupResponse::JoinGroup(response)));
        true
    }

    fn answer_sync(&mut self, member_id: &str, response: SyncGroupResponse, turn: &mut Turn<'_>) -> bool {
        let Some(member) = self.members.get_mut(member_id) else { return false };
        let Parked::Sync(token) = member.parked else { return false };
        member.parked = Parked::Nothing;
        turn.fx.replies.push((token, GroupResponse::SyncGroup(response)));
        true
    }

    fn settle_sync(&mut self, member_id: &str) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.owes_sync = false;
        }
    }

    fn renew_session(&mut self, member_id: &str, now: Now) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.session_deadline = now.monotonic + member.session_timeout_ms;
            let deadline = member.session_deadline;
            self.note_deadline(deadline);
        }
    }

    /// This generation as it is stored, with these assignments or those given already.
    fn to_fact(&self, assignments: Option<&BTreeMap<String, Bytes>>) -> Fact {
        let store = |(member_id, member): (&String, &Member)| {
            let assignment = match assignments {
                Some(given) => given.get(member_id).cloned().unwrap_or_default(),
                None => member.assignment.clone(),
            };
            (member_id.clone(), member.store(self.protocol.as_deref(), assignment))
        };
        let metadata = GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation_id: self.generation_id,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            current_state_timestamp: self.phase_since,
            members: self.members.iter().map(store).collect(),
        };
        Fact::Group { group_id: self.group_id.clone(), metadata: Some(Box::new(metadata)) }
    }
}

impl Member {
    fn new(request: JoinGroupRequest, session_deadline: Time) -> Self {
        Member {
            group_instance_id: request.group_instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            rebalance_timeout_ms: millis(request.rebalance_timeout_ms),
            session_timeout_ms: millis(request.session_timeout_ms),
            protocols: owned(request.protocols),
            assignment: Bytes::new(),
            parked: Parked::Nothing,
            is_new: true,
            owes_sync: false,
            session_deadline,
        }
    }

    fn load(stored: &MemberMetadata, protocol: Option<&str>, now: Now) -> Self {
        let name = protocol.unwrap_or_default().to_owned();
        Member {
            group_instance_id: stored.group_instance_id.clone(),
            client_id: stored.client_id.clone(),
            client_host: stored.client_host.clone(),
            rebalance_timeout_ms: stored.rebalance_timeout_ms,
            session_timeout_ms: stored.session_timeout_ms,
            protocols: vec![JoinProtocol { name, metadata: stored.subscription.clone() }],
            assignment: stored.assignment.clone(),
            parked: Parked::Nothing,
            is_new: false,
            owes_sync: false,
            session_deadline: now.monotonic + stored.session_timeout_ms,
        }
    }

    fn from_parts(parts: ClassicMemberParts, now: Now) -> (String, Self) {
        let member = Member {
            group_instance_id: parts.group_instance_id,
            client_id: parts.client_id,
            client_host: parts.client_host,
            rebalance_timeout_ms: parts.rebalance_timeout_ms,
            session_timeout_ms: parts.session_timeout_ms,
            protocols: parts.protocols,
            assignment: parts.assignment,
            parked: Parked::Nothing,
            is_new: false,
            owes_sync: false,
            session_deadline: now.monotonic + parts.session_timeout_ms,
        };
        (parts.member_id, member)
    }

    fn parts(&self, member_id: &str) -> ClassicMemberParts {
        ClassicMemberParts {
            member_id: member_id.to_owned(),
            group_instance_id: self.group_instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            protocols: self.protocols.clone(),
            assignment: self.assignment.clone(),
        }
    }

    fn store(&self, protocol: Option<&str>, assignment: Bytes) -> MemberMetadata {
        MemberMetadata {
            group_instance_id: self.group_instance_id.clone(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            rebalance_timeout_ms: self.rebalance_timeout_ms,
            session_timeout_ms: self.session_timeout_ms,
            subscription: self.metadata(protocol),
            assignment,
        }
    }
}

/// Bytes of a member's protocols.
#[must_use]
pub fn protocol_bytes(protocols: &[JoinProtocol]) -> usize {
    protocols.iter().map(|p| p.name.len() + p.metadata.len()).sum()
}

/// Copies of its own: what a member brings stays for long, and must not keep a whole request frame in memory.
fn owned(mut protocols: Vec<JoinProtocol>) -> Vec<JoinProtocol> {
    protocols.iter_mut().for_each(|protocol| protocol.metadata = Bytes::copy_from_slice(&protocol.metadata));
    protocols
}

fn pending_bytes(pending: &BTreeMap<String, Time>) -> usize {
    pending.keys().map(String::len).sum()
}

/// A client's timeout: a negative one is none.
fn millis(timeout_ms: i32) -> u64 {
    u64::try_from(timeout_ms).unwrap_or(0)
}
