//! Members of the classic protocol in a consumer group: they join, sync, beat and leave as they are used to, and are led
//! through the same reconciliation as the others.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use model::ErrorCode;

use crate::consumer::draft::{Decided, Draft, Refused, Surroundings, Wait};
use crate::consumer::embedded::{self, EmbeddedSubscription};
use crate::consumer::group::{
    ClassicMember, ClassicProtocol, ConsumerGroup, Member, MemberProfile, MemberState, Subscription,
};
use crate::consumer::heartbeat::{RegexChange, Soft, check_room, static_member, unknown_member};
use crate::request::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, JoinProtocol, LeavingMember, LeftMember, SyncGroupRequest,
    SyncGroupResponse,
};

/// The protocol type of consumers, the only one that a consumer group takes.
const CONSUMER: &str = "consumer";

/// What a JoinGroup comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Joined {
    /// The member is told its id first.
    NeedsMemberId(JoinGroupResponse),
    /// The member is in.
    In {
        /// The decision.
        decided: Decided<JoinGroupResponse>,
        /// Whether it took the place of the last member of the consumer protocol, so that the group may be downgraded; and
        /// whether its subscription is another one than that had.
        last_replaced: Option<bool>,
    },
}

/// Decides on a JoinGroup. `member_id` is the request's, or a new one.
pub(crate) fn join(
    group: &ConsumerGroup,
    soft: Soft,
    request: &JoinGroupRequest,
    member_id: &str,
    around: Surroundings<'_>,
) -> Result<Joined, Refused> {
    check_room(group, member_id, around.config.max_size)?;
    let inconsistent =
        || Refused::new(ErrorCode::InconsistentGroupProtocol, "the member's protocols are not supported");
    if !supports(group, request) {
        return Err(inconsistent());
    }
    if request.member_id.is_empty() && request.group_instance_id.is_none() && request.require_known_member_id {
        let response = JoinGroupResponse::refused(member_id, ErrorCode::MemberIdRequired);
        return Ok(Joined::NeedsMemberId(response));
    }
    let first = request.protocols.first().ok_or_else(inconsistent)?;
    let subscription = embedded::read_subscription(&first.metadata).ok_or_else(inconsistent)?;
    let mut draft = Draft::new(group, around);
    let (member, replaced) = draft.subscribe_classic(request, member_id)?;
    let profile = profile(&member.profile, request, &subscription);
    let regex = draft.change_regex(&member, &profile)?;
    let changed = draft.update_profile(&member, profile) || regex != RegexChange::None;
    if changed || group.epoch() == 0 || soft.refresh_due {
        draft.bump_epoch(changed || group.epoch() == 0);
    }
    let others = group.members().values().filter(|other| replaced.as_deref() != Some(&*other.id));
    let last_replaced = replaced.as_ref().is_some_and(|_| others.clone().all(Member::is_classic)).then_some(changed);
    if last_replaced.is_none() {
        draft.update_target();
    }
    let owned = embedded::owned(&subscription, around.image);
    let current = draft.reconcile(&member.id, changed, Some(&owned))?;
    let member_id = member.id.to_string();
    draft.waits.push(Wait::NoJoin(member_id.clone()));
    draft.waits.push(Wait::Session(member_id.clone(), millis(request.session_timeout_ms)));
    draft.waits.push(Wait::Sync(member_id, millis(request.rebalance_timeout_ms)));
    let response = JoinGroupResponse {
        generation_id: current.epoch,
        protocol_type: Some(CONSUMER.to_owned()),
        protocol_name: Some(first.name.clone()),
        ..JoinGroupResponse::refused(&member.id, ErrorCode::None)
    };
    Ok(Joined::In { decided: draft.decided(response), last_replaced })
}

/// Decides on a SyncGroup, and whom to wait for from now on. Nothing is stored.
pub(crate) fn sync(
    group: &ConsumerGroup,
    request: &SyncGroupRequest,
    around: Surroundings<'_>,
) -> Result<(SyncGroupResponse, Vec<Wait>), (ErrorCode, Vec<Wait>)> {
    let plain = |error| (error, Vec::new());
    let (member, classic) = classic_member(group, &request.member_id, request.group_instance_id.as_deref())
        .map_err(|refused| plain(refused.error))?;
    if member.current.epoch != request.generation_id {
        return Err(plain(ErrorCode::IllegalGeneration));
    }
    let first = classic.protocols.first();
    let differs = |asked: &Option<String>, ours: Option<&str>| asked.is_some() && asked.as_deref() != ours;
    if differs(&request.protocol_type, Some(CONSUMER))
        || differs(&request.protocol_name, first.map(|protocol| protocol.name.as_str()))
    {
        return Err(plain(ErrorCode::InconsistentGroupProtocol));
    }
    let member_id = request.member_id.clone();
    if group.epoch() > member.current.epoch && member.current.state != MemberState::UnrevokedPartitions {
        let wait = Wait::Join(member_id, millis(member.profile.rebalance_timeout_ms));
        return Err((ErrorCode::RebalanceInProgress, vec![wait]));
    }
    let metadata: &[u8] = first.map_or(&[], |protocol| &protocol.metadata);
    let response = SyncGroupResponse {
        error: ErrorCode::None,
        protocol_type: request.protocol_type.clone(),
        protocol_name: request.protocol_name.clone(),
        assignment: embedded::write_assignment(&member.current.assigned, metadata, around.image),
    };
    let session = Wait::Session(member_id.clone(), millis(classic.session_timeout_ms));
    Ok((response, vec![Wait::NoSync(member_id), session]))
}

/// Decides on a Heartbeat, and whom to wait for from now on. Nothing is stored.
pub(crate) fn heartbeat(
    group: &ConsumerGroup,
    request: &HeartbeatRequest,
) -> Result<(ErrorCode, Vec<Wait>), ErrorCode> {
    let (member, classic) = classic_member(group, &request.member_id, request.group_instance_id.as_deref())
        .map_err(|refused| refused.error)?;
    if member.current.epoch != request.generation_id {
        return Err(ErrorCode::IllegalGeneration);
    }
    let member_id = request.member_id.clone();
    let mut waits = vec![Wait::Session(member_id.clone(), millis(classic.session_timeout_ms))];
    let rejoins = match member.current.state {
        _ if member.current.epoch < group.epoch() => true,
        MemberState::UnrevokedPartitions => true,
        MemberState::UnreleasedPartitions => !waits_for_others(group, member),
        MemberState::Stable | MemberState::Unknown => false,
    };
    if !rejoins {
        return Ok((ErrorCode::None, waits));
    }
    waits.push(Wait::Join(member_id, millis(member.profile.rebalance_timeout_ms)));
    Ok((ErrorCode::RebalanceInProgress, waits))
}

/// Which members a LeaveGroup removes, and what it says of each.
pub(crate) fn leave(group: &ConsumerGroup, leaving: Vec<LeavingMember>) -> (BTreeSet<String>, Vec<LeftMember>) {
    let mut gone = BTreeSet::new();
    let mut left = Vec::new();
    for member in leaving {
        let found = match &member.group_instance_id {
            None => group.member(&member.member_id).ok_or_else(|| unknown_member(&member.member_id)),
            // Tools remove static members by their static ids alone.
            Some(instance) if member.member_id.is_empty() => {
                let holder = group.static_member(instance).and_then(|holder| group.member(holder));
                holder.ok_or_else(|| unknown_member(instance))
            }
            Some(instance) => static_member(group, &member.member_id, instance),
        };
        let error = found.as_ref().err().map_or(ErrorCode::None, |refused| refused.error);
        gone.extend(found.ok().map(|member| member.id.to_string()));
        left.push(LeftMember { member_id: member.member_id, group_instance_id: member.group_instance_id, error });
    }
    (gone, left)
}

fn classic_member<'a>(
    group: &'a ConsumerGroup,
    member_id: &str,
    instance_id: Option<&str>,
) -> Result<(&'a Member, &'a ClassicMember), Refused> {
    let member = match instance_id {
        None => group.member(member_id).ok_or_else(|| unknown_member(member_id))?,
        Some(instance) => static_member(group, member_id, instance)?,
    };
    let classic = member.profile.classic.as_ref();
    classic.map(|classic| (member, classic)).ok_or_else(|| unknown_member(member_id))
}

/// Whether all that its target still gives a member is held by others.
fn waits_for_others(group: &ConsumerGroup, member: &Member) -> bool {
    let Some(target) = group.target(&member.id, member.profile.instance_id.as_deref()) else { return false };
    target.iter().any(|(topic, partitions)| {
        let missing = |index| member.current.assigned.get(topic).is_none_or(|held| !held.contains_key(index));
        partitions.iter().any(|index| missing(index) && group.owner(*topic, *index).is_some())
    })
}

fn supports(group: &ConsumerGroup, request: &JoinGroupRequest) -> bool {
    let classic: Vec<&ClassicMember> = group.members().values().filter_map(|m| m.profile.classic.as_ref()).collect();
    let all_have = |name: &str| classic.iter().all(|member| member.protocols.iter().any(|p| p.name == name));
    request.protocol_type == CONSUMER && request.protocols.iter().any(|protocol| all_have(&protocol.name))
}

fn profile(old: &MemberProfile, request: &JoinGroupRequest, subscription: &EmbeddedSubscription) -> MemberProfile {
    let own = |protocol: &JoinProtocol| ClassicProtocol {
        name: protocol.name.clone(),
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    };
    let topics = if *old.subscription.topics == subscription.topics {
        Arc::clone(&old.subscription.topics)
    } else {
        Arc::new(subscription.topics.clone())
    };
    MemberProfile {
        instance_id: request.group_instance_id.clone().or_else(|| old.instance_id.clone()),
        rack_id: subscription.rack_id.clone().or_else(|| old.rack_id.clone()),
        client_id: request.client_id.clone(),
        client_host: request.client_host.clone(),
        subscription: Subscription { topics, regex: None },
        rebalance_timeout_ms: request.rebalance_timeout_ms,
        assignor: old.assignor.clone(),
        classic: Some(ClassicMember {
            session_timeout_ms: request.session_timeout_ms,
            protocols: request.protocols.iter().map(own).collect(),
        }),
    }
}

/// A time that a client said; negative ones are none.
fn millis(ms: i32) -> u64 {
    u64::try_from(ms).unwrap_or(0)
}

impl Draft<'_> {
    /// The member that a JoinGroup is of, and the id of the one whose place it takes.
    fn subscribe_classic(
        &mut self,
        request: &JoinGroupRequest,
        member_id: &str,
    ) -> Result<(Member, Option<String>), Refused> {
        let known = || self.before.member(member_id).cloned().unwrap_or_else(|| Member::new(member_id));
        let Some(instance) = &request.group_instance_id else { return Ok((known(), None)) };
        if !request.member_id.is_empty() {
            return Ok((static_member(self.before, member_id, instance)?.clone(), None));
        }
        let holder = self.before.static_member(instance).and_then(|holder| self.before.member(holder));
        let Some(holder) = holder.cloned() else { return Ok((known(), None)) };
        let replaced = holder.id.to_string();
        Ok((self.replace(&holder, member_id), Some(replaced)))
    }
}
