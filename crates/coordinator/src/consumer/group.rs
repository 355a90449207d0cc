//! What the log says of one consumer group of the next generation (KIP-848).
//!
//! It changes by [`ConsumerGroup::replay`] alone, which neither fails nor decides. What is derived (static ids, owners,
//! subscriptions counted) follows from the rest; a log whose records contradict each other leaves no trace in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use model::{PartitionIndex, Time, TopicId};

use crate::config::MEMBER_OVERHEAD_BYTES;

/// The member epoch of a member that is not in the group yet, or comes back.
pub const JOINING_EPOCH: i32 = 0;
/// The member epoch by which a member leaves.
pub const LEAVE_EPOCH: i32 = -1;
/// The member epoch of a static member that left for a while and keeps its partitions until its session ends.
pub const STATIC_LEAVE_EPOCH: i32 = -2;

/// Partitions by topic.
pub type Partitions = BTreeMap<TopicId, BTreeSet<PartitionIndex>>;

/// Partitions by topic, each with the group epoch in which its owner was given it (KIP-1251).
pub type OwnedPartitions = BTreeMap<TopicId, BTreeMap<PartitionIndex, i32>>;

/// Topics by name; shared among the members that ask for the same.
pub type TopicNames = Arc<BTreeSet<String>>;

/// What a member is subscribed to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Subscription {
    /// Topics by name.
    pub topics: TopicNames,
    /// Topics by a regular expression; None and empty are the same.
    pub regex: Option<Arc<str>>,
}

/// A protocol of a classic member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClassicProtocol {
    /// Its name.
    pub name: String,
    /// The subscription in it.
    pub metadata: Bytes,
}

/// What a member of the classic protocol brings besides.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClassicMember {
    /// How long it may be silent.
    pub session_timeout_ms: i32,
    /// Its protocols, the favourite first.
    pub protocols: Vec<ClassicProtocol>,
}

/// What a member says of itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MemberProfile {
    /// Its static id (`R54`).
    pub instance_id: Option<String>,
    /// Its zone.
    pub rack_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// Its address.
    pub client_host: String,
    /// What it reads.
    pub subscription: Subscription,
    /// How long it may take to give up partitions; -1 where it never said.
    pub rebalance_timeout_ms: i32,
    /// The assignor that it asks for.
    pub assignor: Option<String>,
    /// Of a member that speaks the classic protocol.
    pub classic: Option<ClassicMember>,
}

impl Default for MemberProfile {
    fn default() -> Self {
        MemberProfile {
            instance_id: None,
            rack_id: None,
            client_id: String::new(),
            client_host: String::new(),
            subscription: Subscription::default(),
            rebalance_timeout_ms: -1,
            assignor: None,
            classic: None,
        }
    }
}

impl MemberProfile {
    /// Bytes that it keeps, generously; what members share is counted for each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let topics: usize = self.subscription.topics.iter().map(|topic| topic.len() + 24).sum();
        let classic = self.classic.iter().flat_map(|classic| &classic.protocols);
        let protocols: usize = classic.map(|protocol| protocol.name.len() + protocol.metadata.len()).sum();
        let regex = self.subscription.regex.as_ref().map_or(0, |regex| regex.len());
        let names = text(&self.instance_id) + text(&self.rack_id) + text(&self.assignor);
        topics + protocols + regex + names + self.client_id.len() + self.client_host.len()
    }
}

/// Where a member stands on its way to its target assignment.
///
/// ```text
///            a new target takes partitions away            it has given them up
///   Stable ─────────────────────────────────► UnrevokedPartitions ──────────────┐
///     ▲ ▲                                                                       │
///     │ └────────────── nothing more to wait for ───────────────────────────────┤
///     └── they are free ── UnreleasedPartitions ◄── others still hold partitions┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum MemberState {
    /// It has what its epoch gives it.
    #[default]
    Stable,
    /// It must give up partitions first.
    UnrevokedPartitions,
    /// It waits for partitions that others have not given up.
    UnreleasedPartitions,
    /// Written by a later version: it must join anew.
    Unknown,
}

impl MemberState {
    /// Its number in the log.
    #[must_use]
    pub fn code(self) -> i8 {
        match self {
            MemberState::Stable => 0,
            MemberState::UnrevokedPartitions => 1,
            MemberState::UnreleasedPartitions => 2,
            MemberState::Unknown => 127,
        }
    }

    /// The state of a number.
    #[must_use]
    pub fn from_code(code: i8) -> Self {
        match code {
            0 => MemberState::Stable,
            1 => MemberState::UnrevokedPartitions,
            2 => MemberState::UnreleasedPartitions,
            _ => MemberState::Unknown,
        }
    }
}

/// What a member has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CurrentAssignment {
    /// Its member epoch.
    pub epoch: i32,
    /// The member epoch before: its client may not have heard of the present one.
    pub previous_epoch: i32,
    /// Where it stands.
    pub state: MemberState,
    /// What it may read.
    pub assigned: OwnedPartitions,
    /// What it was told to give up, and has not given up yet.
    pub revoking: OwnedPartitions,
}

impl Default for CurrentAssignment {
    /// Of a member that is not in the group.
    fn default() -> Self {
        CurrentAssignment {
            epoch: JOINING_EPOCH,
            previous_epoch: LEAVE_EPOCH,
            state: MemberState::Stable,
            assigned: BTreeMap::new(),
            revoking: BTreeMap::new(),
        }
    }
}

impl CurrentAssignment {
    /// Whether it has all of the target of `target_epoch`.
    #[must_use]
    pub fn is_reconciled_to(&self, target_epoch: i32) -> bool {
        self.state == MemberState::Stable && self.epoch == target_epoch
    }
}

/// A member.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Its id.
    pub id: Arc<str>,
    /// What it says of itself.
    pub profile: Arc<MemberProfile>,
    /// What it has.
    pub current: Arc<CurrentAssignment>,
}

impl Member {
    /// A member that is not in the group yet.
    #[must_use]
    pub fn new(member_id: &str) -> Self {
        Member { id: Arc::from(member_id), profile: Arc::default(), current: Arc::default() }
    }

    /// Whether it speaks the classic protocol.
    #[must_use]
    pub fn is_classic(&self) -> bool {
        self.profile.classic.is_some()
    }
}

/// The topics that a regular expression stands for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ResolvedRegex {
    /// The topics.
    pub topics: TopicNames,
    /// The metadata offset that they were looked up at.
    pub version: i64,
    /// When, wall clock.
    pub resolved_at: Time,
}

/// A fact about a consumer group. None is a tombstone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ConsumerFact {
    /// The group has this epoch, decided on metadata with this hash; or is no more.
    Epoch(Option<GroupEpoch>),
    /// A member says this of itself, or is gone.
    Profile(String, Option<Arc<MemberProfile>>),
    /// The target assignment of this epoch is complete.
    TargetEpoch(Option<TargetEpoch>),
    /// A member's part of the target assignment.
    Target(String, Option<Arc<Partitions>>),
    /// What a member has.
    Current(String, Option<Arc<CurrentAssignment>>),
    /// What a regular expression stands for.
    Regex(String, Option<Arc<ResolvedRegex>>),
}

/// A group's epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct GroupEpoch {
    /// Its number: every change of members, subscriptions or topics counts it up.
    pub epoch: i32,
    /// A digest of the topics that the group is subscribed to.
    pub metadata_hash: i64,
}

/// The epoch of a target assignment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TargetEpoch {
    /// The group epoch that it was computed for.
    pub epoch: i32,
    /// When, wall clock.
    pub computed_at: Time,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ConsumerGroup {
    epoch: Option<GroupEpoch>,
    target_epoch: TargetEpoch,
    members: BTreeMap<String, Member>,
    targets: BTreeMap<String, Arc<Partitions>>,
    regexes: BTreeMap<String, Arc<ResolvedRegex>>,
    /// Member ids by static id.
    static_members: BTreeMap<String, String>,
    /// Who has each partition, or has not given it up yet.
    owners: BTreeMap<TopicId, BTreeMap<PartitionIndex, Arc<str>>>,
    /// How many members have each subscription.
    subscriptions: BTreeMap<Subscription, usize>,
    classic_members: usize,
    bytes: usize,
}

/// Bytes that a member takes, generously: members that are subscribed to nothing take some, too.
fn member_bytes(member_id: &str, profile: &MemberProfile) -> usize {
    MEMBER_OVERHEAD_BYTES + member_id.len() + profile.bytes()
}

/// How the group changes.
impl ConsumerGroup {
    /// Applies a fact.
    pub fn replay(&mut self, fact: &ConsumerFact) {
        match fact {
            ConsumerFact::Epoch(epoch) => self.epoch = *epoch,
            ConsumerFact::TargetEpoch(epoch) => self.target_epoch = epoch.unwrap_or_default(),
            ConsumerFact::Target(member_id, Some(target)) => {
                self.targets.insert(member_id.clone(), Arc::clone(target));
            }
            ConsumerFact::Target(member_id, None) => {
                self.targets.remove(member_id);
            }
            ConsumerFact::Regex(regex, Some(resolved)) => {
                self.regexes.insert(regex.clone(), Arc::clone(resolved));
            }
            ConsumerFact::Regex(regex, None) => {
                self.regexes.remove(regex);
            }
            ConsumerFact::Profile(member_id, profile) => self.set_profile(member_id, profile.as_ref()),
            ConsumerFact::Current(member_id, current) => self.set_current(member_id, current.clone()),
        }
    }

    fn set_profile(&mut self, member_id: &str, profile: Option<&Arc<MemberProfile>>) {
        let old = self.members.get(member_id).map(|member| Arc::clone(&member.profile));
        if let Some(old) = old {
            self.forget_profile(member_id, &old);
        }
        let Some(profile) = profile else {
            self.set_current(member_id, None);
            self.members.remove(member_id);
            return;
        };
        if let Some(instance) = &profile.instance_id {
            self.static_members.insert(instance.clone(), member_id.to_owned());
        }
        self.classic_members += usize::from(profile.classic.is_some());
        self.bytes += member_bytes(member_id, profile);
        let profile = self.share_subscription(profile);
        *self.subscriptions.entry(profile.subscription.clone()).or_default() += 1;
        self.members.entry(member_id.to_owned()).or_insert_with(|| Member::new(member_id)).profile = profile;
    }

    /// The same profile, holding the list of topics that another member holds already.
    fn share_subscription(&self, profile: &Arc<MemberProfile>) -> Arc<MemberProfile> {
        match self.subscriptions.get_key_value(&profile.subscription) {
            Some((held, _)) if !Arc::ptr_eq(&held.topics, &profile.subscription.topics) => {
                Arc::new(MemberProfile { subscription: held.clone(), ..(**profile).clone() })
            }
            Some(_) | None => Arc::clone(profile),
        }
    }

    fn forget_profile(&mut self, member_id: &str, old: &MemberProfile) {
        if let Some(instance) = &old.instance_id
            && self.static_members.get(instance).is_some_and(|holder| holder == member_id)
        {
            self.static_members.remove(instance);
        }
        self.classic_members -= usize::from(old.classic.is_some());
        self.bytes -= member_bytes(member_id, old);
        if let Some(count) = self.subscriptions.get_mut(&old.subscription) {
            *count -= 1;
            if *count == 0 {
                self.subscriptions.remove(&old.subscription);
            }
        }
    }

    fn set_current(&mut self, member_id: &str, current: Option<Arc<CurrentAssignment>>) {
        // Compaction may have taken an earlier profile away: then the present one comes after what the member has.
        if current.is_some() && !self.members.contains_key(member_id) {
            self.set_profile(member_id, Some(&Arc::default()));
        }
        let Some(member) = self.members.get_mut(member_id) else { return };
        let old = std::mem::replace(&mut member.current, current.unwrap_or_default());
        let (new, id) = (Arc::clone(&member.current), Arc::clone(&member.id));
        for (topic, partitions) in old.assigned.iter().chain(&old.revoking) {
            let Some(owners) = self.owners.get_mut(topic) else { continue };
            for partition in partitions.keys() {
                if owners.get(partition).is_some_and(|owner| *owner == id) {
                    owners.remove(partition);
                }
            }
            if owners.is_empty() {
                self.owners.remove(topic);
            }
        }
        for (topic, partitions) in new.assigned.iter().chain(&new.revoking).filter(|(_, held)| !held.is_empty()) {
            let owners = self.owners.entry(*topic).or_default();
            owners.extend(partitions.keys().map(|partition| (*partition, Arc::clone(&id))));
        }
    }
}

/// What can be seen of the group.
impl ConsumerGroup {
    /// Whether the group exists. Facts without an epoch are remains.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.epoch.is_some()
    }

    /// Whether nothing is left of it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let none = self.members.is_empty() && self.targets.is_empty() && self.regexes.is_empty();
        !self.exists() && none && self.target_epoch == TargetEpoch::default()
    }

    /// The group epoch; 0 before the first member.
    #[must_use]
    pub fn epoch(&self) -> i32 {
        self.epoch.map_or(0, |epoch| epoch.epoch)
    }

    /// The digest of the topics that the epoch was decided on.
    #[must_use]
    pub fn metadata_hash(&self) -> i64 {
        self.epoch.map_or(0, |epoch| epoch.metadata_hash)
    }

    /// The epoch of the target assignment, and when it was computed.
    #[must_use]
    pub fn target_epoch(&self) -> TargetEpoch {
        self.target_epoch
    }

    /// The members by id.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// A member.
    #[must_use]
    pub fn member(&self, member_id: &str) -> Option<&Member> {
        self.members.get(member_id)
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member id of a static id.
    #[must_use]
    pub fn static_member(&self, instance_id: &str) -> Option<&str> {
        self.static_members.get(instance_id).map(String::as_str)
    }

    /// A member's part of the target assignment; of a static member, whoever holds its id.
    #[must_use]
    pub fn target(&self, member_id: &str, instance_id: Option<&str>) -> Option<&Arc<Partitions>> {
        let holder = match instance_id {
            Some(instance) => self.static_member(instance)?,
            None => member_id,
        };
        self.targets.get(holder)
    }

    /// The whole target assignment.
    #[must_use]
    pub fn targets(&self) -> &BTreeMap<String, Arc<Partitions>> {
        &self.targets
    }

    /// Who has a partition, or has not given it up yet.
    #[must_use]
    pub fn owner(&self, topic: TopicId, partition: PartitionIndex) -> Option<&str> {
        self.owners.get(&topic)?.get(&partition).map(|owner| &**owner)
    }

    /// The regular expressions that were resolved.
    #[must_use]
    pub fn regexes(&self) -> &BTreeMap<String, Arc<ResolvedRegex>> {
        &self.regexes
    }

    /// The subscriptions that members have, and how many have each.
    #[must_use]
    pub fn subscriptions(&self) -> &BTreeMap<Subscription, usize> {
        &self.subscriptions
    }

    /// How many members have a regular expression.
    #[must_use]
    pub fn regex_subscribers(&self, regex: &str) -> usize {
        let counts = self.subscriptions.iter().filter(|(subscription, _)| subscription.regex.as_deref() == Some(regex));
        counts.map(|(_, count)| count).sum()
    }

    /// The regular expressions that members have.
    #[must_use]
    pub fn subscribed_regexes(&self) -> BTreeSet<Arc<str>> {
        self.subscriptions.keys().filter_map(|subscription| subscription.regex.clone()).collect()
    }

    /// How many members speak the classic protocol.
    #[must_use]
    pub fn classic_members(&self) -> usize {
        self.classic_members
    }

    /// Bytes that the members take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a member reads `topic`, by name or by a regular expression.
    #[must_use]
    pub fn is_subscribed_to(&self, topic: &str) -> bool {
        self.subscriptions.keys().any(|subscription| self.reads(subscription, topic))
    }

    /// Whether a subscription stands for `topic`. An expression that is not resolved stands for nothing.
    #[must_use]
    pub fn reads(&self, subscription: &Subscription, topic: &str) -> bool {
        let resolved = subscription.regex.as_deref().and_then(|regex| self.regexes.get(regex));
        subscription.topics.contains(topic) || resolved.is_some_and(|resolved| resolved.topics.contains(topic))
    }

    /// The state's name, as Kafka shows it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let target_epoch = self.target_epoch.epoch;
        if self.members.is_empty() {
            "Empty"
        } else if self.epoch() > target_epoch {
            "Assigning"
        } else if self.members.values().all(|member| member.current.is_reconciled_to(target_epoch)) {
            "Stable"
        } else {
            "Reconciling"
        }
    }

    /// The tombstones of everything that there is of it, in Kafka's order.
    #[must_use]
    pub fn tombstones(&self) -> Vec<ConsumerFact> {
        let members = || self.members.keys().cloned();
        let mut facts: Vec<ConsumerFact> = members().map(|id| ConsumerFact::Current(id, None)).collect();
        facts.extend(self.targets.keys().cloned().map(|id| ConsumerFact::Target(id, None)));
        facts.push(ConsumerFact::TargetEpoch(None));
        facts.extend(members().map(|id| ConsumerFact::Profile(id, None)));
        facts.extend(self.regexes.keys().cloned().map(|regex| ConsumerFact::Regex(regex, None)));
        facts.push(ConsumerFact::Epoch(None));
        facts
    }

    /// Panics where the group contradicts itself: above all, where a partition has two owners.
    pub fn assert_invariants(&self) {
        let mut owners: BTreeMap<TopicId, BTreeMap<PartitionIndex, Arc<str>>> = BTreeMap::new();
        for (member_id, member) in &self.members {
            for (topic, partitions) in member.current.assigned.iter().chain(&member.current.revoking) {
                for partition in partitions.keys() {
                    let before = owners.entry(*topic).or_default().insert(*partition, Arc::clone(&member.id));
                    assert_eq!(before, None, "{topic}-{partition} belongs to {member_id}, too");
                }
            }
        }
        assert_eq!(owners, self.owners, "owners");
        let mut targets: BTreeSet<(TopicId, PartitionIndex)> = BTreeSet::new();
        for target in self.targets.values() {
            for (topic, partitions) in &**target {
                for partition in partitions {
                    assert!(targets.insert((*topic, *partition)), "{topic}-{partition} is given to two members");
                }
            }
        }
        let count: usize = self.subscriptions.values().sum();
        assert_eq!(count, self.members.len(), "subscriptions");
        let statics = self.members.iter().filter_map(|(id, m)| Some((m.profile.instance_id.clone()?, id.clone())));
        assert_eq!(statics.collect::<BTreeMap<_, _>>(), self.static_members, "static members");
        assert!(self.target_epoch.epoch <= self.epoch(), "the target is ahead of the group");
    }
}
