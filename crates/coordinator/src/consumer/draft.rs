//! A decision in the making: facts that are added see those before them, and the group itself stays as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::MetadataImage;
use model::{ErrorCode, Rule, Time};

use crate::consumer::assign::{Assignor, Input};
use crate::consumer::config::{ConsumerConfig, GroupSettings};
use crate::consumer::group::{
    ConsumerFact, ConsumerGroup, CurrentAssignment, GroupEpoch, Member, MemberProfile, MemberState, Partitions,
    TargetEpoch,
};
use crate::consumer::reconcile::Step;
use crate::consumer::topics::metadata_hash;
use crate::shard::Now;

/// A refusal with words for people.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refused {
    /// What clients act on.
    pub error: ErrorCode,
    /// What people read.
    pub message: String,
}

impl Refused {
    /// A refusal.
    pub fn new(error: ErrorCode, message: impl Into<String>) -> Self {
        Refused { error, message: message.into() }
    }
}

/// What surrounds a decision.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The coordinator's configuration.
    pub config: &'a ConsumerConfig,
    /// The group's own.
    pub settings: GroupSettings,
    /// The cluster.
    pub image: &'a Arc<MetadataImage>,
    /// The time.
    pub now: Now,
}

/// A change of what a member is waited for. It is not stored: the next coordinator begins anew.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Wait {
    /// It must be heard of within so many milliseconds.
    Session(String, u64),
    /// It must leave this epoch within so many milliseconds, for it has partitions to give up.
    Revocation(String, i32, u64),
    /// It has nothing to give up any more.
    NoRevocation(String),
    /// A classic member must join within so many milliseconds; an earlier deadline stays.
    Join(String, u64),
    /// It has joined.
    NoJoin(String),
    /// A classic member must sync within so many milliseconds.
    Sync(String, u64),
    /// It has synced.
    NoSync(String),
    /// It is gone.
    Gone(String),
}

/// What a decision comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Decided<R> {
    /// What to store.
    pub facts: Vec<ConsumerFact>,
    /// The answer, once that is stored.
    pub response: R,
    /// Whom to wait for, from now on.
    pub waits: Vec<Wait>,
    /// Whether the group's topics were looked at.
    pub refreshed: bool,
    /// Regular expressions to resolve.
    pub resolve: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) before: &'a ConsumerGroup,
    pub(super) group: Cow<'a, ConsumerGroup>,
    pub(super) around: Surroundings<'a>,
    pub(super) waits: Vec<Wait>,
    pub(super) refreshed: bool,
    pub(super) resolve: Vec<String>,
    facts: Vec<ConsumerFact>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(group: &'a ConsumerGroup, around: Surroundings<'a>) -> Self {
        let (facts, waits, resolve) = (Vec::new(), Vec::new(), Vec::new());
        Draft { before: group, group: Cow::Borrowed(group), around, waits, refreshed: false, resolve, facts }
    }

    pub(super) fn push(&mut self, fact: ConsumerFact) {
        self.group.to_mut().replay(&fact);
        self.facts.push(fact);
    }

    /// The decision. The epoch comes first: a decision of more than one batch may end after any of them, and a group whose
    /// epoch is counted up computes its targets again, whatever else is stored.
    pub(super) fn decided<R>(self, response: R) -> Decided<R> {
        let Draft { mut facts, waits, refreshed, resolve, .. } = self;
        facts.sort_by_key(|fact| !matches!(fact, ConsumerFact::Epoch(_)));
        Decided { facts, response, waits, refreshed, resolve }
    }

    pub(super) fn has_facts(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Removes a member.
    pub(super) fn remove(&mut self, member_id: &str) {
        self.push(ConsumerFact::Current(member_id.to_owned(), None));
        self.push(ConsumerFact::Target(member_id.to_owned(), None));
        self.push(ConsumerFact::Profile(member_id.to_owned(), None));
    }

    /// Puts a member in the place of another with the same static id (`R54`): it gets all that the other had.
    pub(super) fn replace(&mut self, old: &Member, member_id: &str) -> Member {
        let target = self.group.targets().get(&*old.id).cloned().unwrap_or_default();
        let current = CurrentAssignment { epoch: 0, previous_epoch: 0, ..(*old.current).clone() };
        let current = Arc::new(current);
        // The new one first: nobody's partitions are ever nobody's, even if only a part of this is stored.
        self.push(ConsumerFact::Profile(member_id.to_owned(), Some(Arc::clone(&old.profile))));
        self.push(ConsumerFact::Target(member_id.to_owned(), Some(target)));
        self.push(ConsumerFact::Current(member_id.to_owned(), Some(Arc::clone(&current))));
        if *old.id != *member_id {
            self.remove(&old.id);
        }
        if *old.id != *member_id {
            self.waits.push(Wait::Gone(old.id.to_string()));
        }
        Member { id: Arc::from(member_id), profile: Arc::clone(&old.profile), current }
    }

    /// Stores what a member says of itself, where that is new; says whether the topics that it names are other ones.
    pub(super) fn update_profile(&mut self, member: &Member, profile: MemberProfile) -> bool {
        let is_new = self.group.member(&member.id).is_none();
        if !is_new && profile == *member.profile {
            return false;
        }
        let names_changed = profile.subscription.topics != member.profile.subscription.topics;
        self.push(ConsumerFact::Profile(member.id.to_string(), Some(Arc::new(profile))));
        names_changed
    }

    /// Counts the group epoch up where `bump` says so, or the topics are other ones than before.
    pub(super) fn bump_epoch(&mut self, bump: bool) {
        let metadata_hash = metadata_hash(&self.group, self.around.image);
        self.refreshed = true;
        if bump || metadata_hash != self.group.metadata_hash() {
            // An epoch that overflows would have counted changes for centuries.
            let epoch = self.group.epoch().saturating_add(1);
            self.push(ConsumerFact::Epoch(Some(GroupEpoch { epoch, metadata_hash })));
        }
    }

    /// Computes a new target assignment, where the group has changed since the last and that is long enough ago.
    pub(super) fn update_target(&mut self) {
        let TargetEpoch { epoch, computed_at } = self.group.target_epoch();
        let now = self.around.now.wall;
        let interval = self.around.settings.assignment_interval_ms;
        // A clock that went back must not stop assignments.
        let too_soon = computed_at <= now && now < computed_at + interval;
        if self.group.epoch() <= epoch || (epoch > 0 && too_soon) {
            return;
        }
        let assignor = preferred_assignor(&self.group, self.around.config);
        let targets = assignor.assign(&Input::of(&self.group, self.around.image));
        self.push_targets(targets, now);
    }

    fn push_targets(&mut self, targets: BTreeMap<String, Partitions>, now: Time) {
        for (member_id, target) in targets {
            if self.group.targets().get(&member_id).is_none_or(|old| **old != target) {
                self.push(ConsumerFact::Target(member_id, Some(Arc::new(target))));
            }
        }
        let epoch = TargetEpoch { epoch: self.group.epoch(), computed_at: now };
        self.push(ConsumerFact::TargetEpoch(Some(epoch)));
    }

    /// Takes a member's next step towards its target; gives what it has then.
    pub(super) fn reconcile(
        &mut self,
        member_id: &str,
        subscription_changed: bool,
        owned: Option<&Partitions>,
    ) -> Result<Arc<CurrentAssignment>, Refused> {
        let Some(member) = self.group.member(member_id).cloned() else { return Ok(Arc::default()) };
        let none = Arc::default();
        let step = Step {
            current: &member.current,
            target_epoch: self.group.target_epoch().epoch,
            target: self.group.target(member_id, member.profile.instance_id.as_deref()).unwrap_or(&none),
            reads: &|topic| {
                let topic = self.around.image.topic(topic);
                topic.is_some_and(|topic| self.group.reads(&member.profile.subscription, &topic.name))
            },
            subscription_changed,
            is_held: &|topic, partition| {
                let held = self.group.owner(topic, partition).is_some_and(|owner| owner != member_id);
                held && self.around.config.rules.hold(Rule::R53OneOwner)
            },
            owned,
        };
        let next = step.next().map_err(|error| {
            Refused::new(error, "the member's state is of a later version: it must give up all partitions and rejoin")
        })?;
        if next != member.current {
            self.push(ConsumerFact::Current(member_id.to_owned(), Some(Arc::clone(&next))));
            self.wait_for_revocation(&member, &next);
        }
        Ok(next)
    }

    fn wait_for_revocation(&mut self, member: &Member, next: &CurrentAssignment) {
        let member_id = member.id.to_string();
        if member.is_classic() {
            return;
        }
        self.waits.push(if next.state == MemberState::UnrevokedPartitions {
            let timeout_ms = u64::try_from(member.profile.rebalance_timeout_ms).unwrap_or(0);
            Wait::Revocation(member_id, next.epoch, timeout_ms)
        } else {
            Wait::NoRevocation(member_id)
        });
    }
}

/// The assignor that most members ask for, the first of the configured ones where they do not care or disagree.
pub(super) fn preferred_assignor(group: &ConsumerGroup, config: &ConsumerConfig) -> Assignor {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for member in group.members().values() {
        if let Some(name) = &member.profile.assignor {
            *votes.entry(name).or_default() += 1;
        }
    }
    let count = |assignor: &&Assignor| votes.get(assignor.name()).copied().unwrap_or(0);
    // The first of those with most votes: `max_by_key` would take the last.
    let best = config.assignors.iter().rev().max_by_key(count);
    best.copied().unwrap_or(Assignor::Uniform)
}
