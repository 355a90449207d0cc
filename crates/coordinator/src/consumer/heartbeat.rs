//! ConsumerGroupHeartbeat: joining, living, changing and leaving in one request (KIP-848).

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{ErrorCode, Rule, Time};

use crate::consumer::draft::{Decided, Draft, Refused, Surroundings, Wait};
use crate::consumer::group::{
    ConsumerFact, ConsumerGroup, CurrentAssignment, JOINING_EPOCH, LEAVE_EPOCH, Member, MemberProfile, OwnedPartitions,
    Partitions, STATIC_LEAVE_EPOCH, Subscription,
};
use crate::consumer::request::{ConsumerHeartbeatRequest, ConsumerHeartbeatResponse};
use crate::consumer::{assign::Assignor, regex};

/// All regular expressions of a group are resolved again no sooner than this.
const REFRESH_REGEXES_MS: u64 = 10_000;
/// Those that are not resolved yet are looked at no sooner than this after the last time.
const RESOLVE_REGEXES_MS: u64 = 1_000;

/// What is known softly of a group: it is not stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Soft {
    /// Its topics must be looked at again.
    pub refresh_due: bool,
    /// Its regular expressions are being resolved.
    pub resolving: bool,
    /// The metadata offset at which the last topic was created.
    pub topic_created_at: i64,
}

/// What the request says that no group has to be asked about.
///
/// # Errors
/// Kafka's answer to what makes no sense.
pub fn check(request: &ConsumerHeartbeatRequest, assignors: &[Assignor]) -> Result<(), Refused> {
    let invalid = |message: &str| Err(Refused::new(ErrorCode::InvalidRequest, message));
    let is_empty = |text: &Option<String>| text.as_deref() == Some("");
    let names_member = request.requires_member_id || request.member_epoch > 0 || request.member_epoch == LEAVE_EPOCH;
    if names_member && request.member_id.trim().is_empty() {
        return invalid("MemberId can't be empty.");
    }
    if request.group_id.trim().is_empty() {
        return invalid("GroupId can't be empty.");
    }
    if is_empty(&request.instance_id) {
        return invalid("InstanceId can't be empty.");
    }
    if is_empty(&request.rack_id) {
        return invalid("RackId can't be empty.");
    }
    match request.member_epoch {
        JOINING_EPOCH if request.rebalance_timeout_ms == -1 => {
            return invalid("RebalanceTimeoutMs must be provided in first request.");
        }
        JOINING_EPOCH if request.owned.as_ref().is_none_or(|owned| !owned.is_empty()) => {
            return invalid("TopicPartitions must be empty when (re-)joining.");
        }
        JOINING_EPOCH if request.topics.is_none() && request.regex.is_none() => {
            return invalid("Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.");
        }
        STATIC_LEAVE_EPOCH if request.instance_id.is_none() => return invalid("InstanceId can't be null."),
        ..STATIC_LEAVE_EPOCH => return invalid("MemberEpoch is invalid."),
        _ => {}
    }
    match request.assignor.as_deref() {
        Some(name) if !assignors.iter().any(|assignor| assignor.name() == name) => {
            let known: Vec<&str> = assignors.iter().map(|assignor| assignor.name()).collect();
            let message = format!("ServerAssignor {name} is not supported. Supported assignors: {}.", known.join(", "));
            Err(Refused::new(ErrorCode::UnsupportedAssignor, message))
        }
        _ => Ok(()),
    }
}

/// Decides on a heartbeat that does not leave. The member id must not be empty.
///
/// # Errors
/// Kafka's answer to what the group does not allow.
pub fn decide(
    group: &ConsumerGroup,
    soft: Soft,
    request: &ConsumerHeartbeatRequest,
    around: Surroundings<'_>,
) -> Result<Decided<ConsumerHeartbeatResponse>, Refused> {
    check_room(group, &request.member_id, around.config.max_size)?;
    let mut draft = Draft::new(group, around);
    let member = draft.subscribe(request)?;
    let profile = updated_profile(&member.profile, request);
    let regex = draft.change_regex(&member, &profile)?;
    let names_changed = draft.update_profile(&member, profile);
    draft.refresh_regexes(soft);
    let bump = group.epoch() == 0 || names_changed || regex == RegexChange::Resolved;
    if bump || soft.refresh_due {
        draft.bump_epoch(bump);
    }
    draft.update_target();
    let changed = names_changed || regex != RegexChange::None;
    let current = draft.reconcile(&member.id, changed, request.owned.as_ref())?;
    draft.waits.push(Wait::Session(member.id.to_string(), around.settings.session_timeout_ms));
    let is_full = request.rebalance_timeout_ms != -1
        && (request.topics.is_some() || request.regex.is_some())
        && request.owned.is_some();
    let tell = request.member_epoch == JOINING_EPOCH || is_full || current.assigned != member.current.assigned;
    let response = ConsumerHeartbeatResponse {
        error: ErrorCode::None,
        error_message: None,
        member_id: Some(member.id.to_string()),
        member_epoch: current.epoch,
        heartbeat_interval_ms: i32::try_from(around.settings.heartbeat_interval_ms).unwrap_or(i32::MAX),
        assignment: tell.then(|| partitions(&current.assigned)),
    };
    Ok(draft.decided(response))
}

/// What a leave comes to: a decision, or members to remove, which may change the group's protocol.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Leave {
    /// A static member leaves for a while.
    ForAWhile(Decided<ConsumerHeartbeatResponse>),
    /// These members are to be removed.
    Remove(BTreeSet<String>, ConsumerHeartbeatResponse),
}

/// Decides on a heartbeat by which a member leaves.
///
/// # Errors
/// Kafka's answer to what the group does not allow.
pub fn leave(
    group: &ConsumerGroup,
    request: &ConsumerHeartbeatRequest,
    around: Surroundings<'_>,
) -> Result<Leave, Refused> {
    let member = match &request.instance_id {
        None => group.member(&request.member_id).ok_or_else(|| unknown_member(&request.member_id))?,
        Some(instance) => static_member(group, &request.member_id, instance)?,
    };
    let response = ConsumerHeartbeatResponse {
        member_id: Some(member.id.to_string()),
        member_epoch: request.member_epoch,
        ..ConsumerHeartbeatResponse::default()
    };
    if request.instance_id.is_none() || request.member_epoch == LEAVE_EPOCH {
        return Ok(Leave::Remove(BTreeSet::from([member.id.to_string()]), response));
    }
    let mut draft = Draft::new(group, around);
    let away =
        CurrentAssignment { epoch: STATIC_LEAVE_EPOCH, revoking: OwnedPartitions::new(), ..(*member.current).clone() };
    draft.push(ConsumerFact::Current(member.id.to_string(), Some(Arc::new(away))));
    draft.waits.push(Wait::NoRevocation(member.id.to_string()));
    Ok(Leave::ForAWhile(draft.decided(response)))
}

/// Removes members, and what only they needed.
pub fn remove<R>(
    group: &ConsumerGroup,
    member_ids: &BTreeSet<String>,
    response: R,
    around: Surroundings<'_>,
) -> Decided<R> {
    let mut draft = Draft::new(group, around);
    if member_ids.is_empty() {
        return draft.decided(response);
    }
    for member_id in member_ids {
        draft.remove(member_id);
        draft.waits.push(Wait::Gone(member_id.clone()));
    }
    draft.drop_regexes();
    draft.bump_epoch(true);
    draft.decided(response)
}

/// Takes what regular expressions were resolved to.
pub fn take_resolved(
    group: &ConsumerGroup,
    resolved: std::collections::BTreeMap<String, crate::consumer::group::ResolvedRegex>,
    around: Surroundings<'_>,
) -> Decided<()> {
    let mut draft = Draft::new(group, around);
    let mut changed = false;
    for (regex, resolved) in resolved {
        if group.regex_subscribers(&regex) == 0 {
            continue;
        }
        let before = group.regexes().get(&regex).map(|before| &before.topics);
        changed |= before.map_or(!resolved.topics.is_empty(), |before| *before != resolved.topics);
        draft.push(ConsumerFact::Regex(regex, Some(Arc::new(resolved))));
    }
    if draft.has_facts() {
        draft.bump_epoch(changed);
    }
    draft.decided(())
}

/// Whether one more member fits, or this one is in already.
pub(super) fn check_room(group: &ConsumerGroup, member_id: &str, max_size: usize) -> Result<(), Refused> {
    if group.members().len() >= max_size && group.member(member_id).is_none() {
        let message = format!("The consumer group has reached its maximum capacity of {max_size} members.");
        return Err(Refused::new(ErrorCode::GroupMaxSizeReached, message));
    }
    Ok(())
}

/// The member of a static id, which must be this one (`R54`).
pub(super) fn static_member<'a>(
    group: &'a ConsumerGroup,
    member_id: &str,
    instance_id: &str,
) -> Result<&'a Member, Refused> {
    let holder = group.static_member(instance_id).and_then(|holder| group.member(holder));
    let Some(holder) = holder else {
        return Err(Refused::new(ErrorCode::UnknownMemberId, format!("Instance id {instance_id} is unknown.")));
    };
    if &*holder.id != member_id {
        let message =
            format!("Static member {member_id} with instance id {instance_id} was fenced by member {}.", holder.id);
        return Err(Refused::new(ErrorCode::FencedInstanceId, message));
    }
    Ok(holder)
}

pub(super) fn unknown_member(member_id: &str) -> Refused {
    Refused::new(ErrorCode::UnknownMemberId, format!("Member {member_id} is not a member of the group."))
}

/// What of a member's partitions clients are told.
pub(super) fn partitions(owned: &OwnedPartitions) -> Partitions {
    owned.iter().map(|(topic, partitions)| (*topic, partitions.keys().copied().collect())).collect()
}

fn updated_profile(old: &MemberProfile, request: &ConsumerHeartbeatRequest) -> MemberProfile {
    let or = |new: &Option<String>, old: &Option<String>| new.clone().or_else(|| old.clone());
    let topics = match &request.topics {
        Some(topics) if *topics != *old.subscription.topics => Arc::new(topics.clone()),
        Some(_) | None => Arc::clone(&old.subscription.topics),
    };
    let regex = match request.regex.as_deref() {
        Some("") => None,
        Some(regex) => Some(Arc::from(regex)),
        None => old.subscription.regex.clone(),
    };
    let timeout = request.rebalance_timeout_ms;
    MemberProfile {
        instance_id: or(&request.instance_id, &old.instance_id),
        rack_id: or(&request.rack_id, &old.rack_id),
        client_id: request.client_id.clone(),
        client_host: request.client_host.clone(),
        subscription: Subscription { topics, regex },
        rebalance_timeout_ms: if timeout == -1 { old.rebalance_timeout_ms } else { timeout },
        assignor: or(&request.assignor, &old.assignor),
        classic: None,
    }
}

/// What became of a member's regular expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RegexChange {
    None,
    /// It is another one, which is not resolved yet.
    Unresolved,
    /// It is another one, which is resolved, or none.
    Resolved,
}

impl Draft<'_> {
    /// The member that a heartbeat is of: a new one where it joins.
    fn subscribe(&mut self, request: &ConsumerHeartbeatRequest) -> Result<Member, Refused> {
        let (member_id, joins) = (&request.member_id, request.member_epoch == JOINING_EPOCH);
        let Some(instance) = &request.instance_id else {
            let member = match self.before.member(member_id) {
                Some(member) => member.clone(),
                None if joins => return Ok(Member::new(member_id)),
                None => return Err(unknown_member(member_id)),
            };
            self.check_epoch(&member, request)?;
            return Ok(member);
        };
        if !joins {
            let member = static_member(self.before, member_id, instance)?.clone();
            self.check_epoch(&member, request)?;
            return Ok(member);
        }
        let holder = self.before.static_member(instance).and_then(|holder| self.before.member(holder));
        let Some(holder) = holder.cloned() else {
            return Ok(self.before.member(member_id).cloned().unwrap_or_else(|| Member::new(member_id)));
        };
        if !holder.is_classic() && holder.current.epoch != STATIC_LEAVE_EPOCH {
            let message = format!(
                "Static member {member_id} with instance id {instance} cannot join the group because the instance id is owned by {} member.",
                holder.id
            );
            return Err(Refused::new(ErrorCode::UnreleasedInstanceId, message));
        }
        Ok(self.replace(&holder, member_id))
    }

    /// `R53`: of the present epoch, or of the one before if the answer with the present one may have been lost.
    fn check_epoch(&self, member: &Member, request: &ConsumerHeartbeatRequest) -> Result<(), Refused> {
        let (received, current) = (request.member_epoch, &member.current);
        if received == JOINING_EPOCH || received == current.epoch {
            return Ok(());
        }
        let owns_more = || {
            let Some(owned) = &request.owned else { return true };
            owned.iter().any(|(topic, partitions)| {
                let assigned = current.assigned.get(topic);
                partitions.iter().any(|index| assigned.is_none_or(|assigned| !assigned.contains_key(index)))
            })
        };
        let lost_answer = received < current.epoch && received == current.previous_epoch && !owns_more();
        if lost_answer || !self.around.config.rules.hold(Rule::R53MemberEpoch) {
            return Ok(());
        }
        let how = if received > current.epoch { "greater" } else { "smaller" };
        let message = format!(
            "The consumer group member has a {how} member epoch ({received}) than the one known by the group coordinator ({}). The member must abandon all its partitions and rejoin.",
            current.epoch
        );
        Err(Refused::new(ErrorCode::FencedMemberEpoch, message))
    }

    /// A member may have another regular expression than before.
    pub(super) fn change_regex(&mut self, member: &Member, new: &MemberProfile) -> Result<RegexChange, Refused> {
        let (old, new) = (&member.profile.subscription.regex, &new.subscription.regex);
        if old == new {
            return Ok(RegexChange::None);
        }
        let before = self.before;
        let change = match new {
            Some(new) if before.regex_subscribers(new) == 0 => {
                regex::check(new).map_err(|why| {
                    let message = format!("Regular expression `{new}` is invalid: {why}.");
                    Refused::new(ErrorCode::InvalidRegularExpression, message)
                })?;
                RegexChange::Unresolved
            }
            Some(new) if before.regexes().contains_key(&**new) => RegexChange::Resolved,
            Some(_) => RegexChange::Unresolved,
            None => RegexChange::Resolved,
        };
        if let Some(old) = old.as_ref().filter(|old| before.regex_subscribers(old) == 1) {
            self.push(ConsumerFact::Regex(old.to_string(), None));
        }
        Ok(change)
    }

    /// Asks for the group's regular expressions to be resolved, where that is due.
    fn refresh_regexes(&mut self, soft: Soft) {
        let wanted = self.group.subscribed_regexes();
        if wanted.is_empty() || soft.resolving {
            return;
        }
        let now = self.around.now.wall;
        let resolved = self.group.regexes();
        let last = resolved.values().map(|resolved| resolved.resolved_at).max();
        let passed = |ms: u64| last.is_none_or(|last: Time| last > now || now.since(last) > ms);
        let unresolved = wanted.iter().any(|regex| !resolved.contains_key(&**regex));
        let stale = resolved.values().any(|resolved| resolved.version < soft.topic_created_at);
        let due = (unresolved && passed(RESOLVE_REGEXES_MS))
            || (stale && passed(REFRESH_REGEXES_MS))
            || passed(self.around.config.regex_refresh_interval_ms);
        if due {
            // All of them, so that one change of topics makes one change of the group.
            self.resolve = wanted.into_iter().map(|regex| regex.to_string()).collect();
        }
    }

    /// Regular expressions that nobody has any more go.
    pub(super) fn drop_regexes(&mut self) {
        let wanted = self.group.subscribed_regexes();
        let unwanted: Vec<String> =
            self.group.regexes().keys().filter(|regex| !wanted.contains(regex.as_str())).cloned().collect();
        for regex in unwanted {
            self.push(ConsumerFact::Regex(regex, None));
        }
    }
}
