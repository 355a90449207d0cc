//! Groups that change between the protocols while they live (KIP-848's online migration).
//!
//! A large group's conversion may take more than one batch. The records are in such an order that, wherever they end, the
//! classic group's record says whose members count: it is the last to go, or the first to come. Where both are in the log,
//! the classic group is the group, and what there is of the other are remains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::MetadataImage;
use model::{ErrorCode, PartitionIndex, TopicId};

use crate::classic::{ClassicGroup, ClassicMemberParts};
use crate::consumer::draft::{Refused, Surroundings};
use crate::consumer::embedded::{self, Unreadable};
use crate::consumer::group::{
    ClassicMember, ClassicProtocol, ConsumerFact, ConsumerGroup, CurrentAssignment, GroupEpoch, Member, MemberProfile,
    MemberState, OwnedPartitions, Partitions, Subscription, TargetEpoch,
};
use crate::request::JoinProtocol;
use crate::shard::Now;

/// The facts of the consumer group that a classic group with members becomes. All members are where the last generation
/// put them.
///
/// # Errors
/// If the group cannot be one, or must not.
pub fn upgrade(classic: &ClassicGroup, around: Surroundings<'_>) -> Result<Vec<ConsumerFact>, Refused> {
    let group_id = classic.group_id();
    let refuse = |why: &str| {
        let message = format!("Cannot upgrade classic group {group_id} to consumer group because {why}.");
        Err(Refused::new(ErrorCode::GroupIdNotFound, message))
    };
    if !around.config.migration.upgrade {
        return refuse("online upgrade is disabled");
    }
    if !classic.is_consumer() {
        return refuse("the group does not use the consumer embedded protocol");
    }
    if classic.size() > around.config.max_size {
        return refuse("the group size exceeds the consumer group maximum size");
    }
    let mut taken: BTreeSet<(TopicId, PartitionIndex)> = BTreeSet::new();
    let mut members = Vec::new();
    for parts in classic.members() {
        let assigned = match embedded::read_assignment(&parts.assignment, around.image) {
            Ok(assigned) => assigned,
            Err(Unreadable::Malformed) => return refuse("the embedded consumer protocol is malformed"),
            Err(Unreadable::CustomAssignor) => return refuse("an unsupported custom assignor is in use"),
        };
        let Some(profile) = profile(&parts, classic.protocol()) else {
            return refuse("the embedded consumer protocol is malformed");
        };
        // An assignor of the members' own may have given a partition to two of them: here it has one owner.
        let mut own = |topic: TopicId, indexes: BTreeSet<PartitionIndex>| {
            let indexes: BTreeSet<_> = indexes.into_iter().filter(|index| taken.insert((topic, *index))).collect();
            (topic, indexes)
        };
        let assigned = assigned.into_iter().map(|(topic, indexes)| own(topic, indexes));
        members.push((parts.member_id, profile, assigned.filter(|(_, indexes)| !indexes.is_empty()).collect()));
    }
    Ok(facts(classic.generation_id(), members))
}

fn facts(epoch: i32, members: Vec<(String, MemberProfile, Partitions)>) -> Vec<ConsumerFact> {
    let mut facts = Vec::new();
    for (member_id, profile, _) in &members {
        facts.push(ConsumerFact::Profile(member_id.clone(), Some(Arc::new(profile.clone()))));
    }
    facts.push(ConsumerFact::Epoch(Some(GroupEpoch { epoch, metadata_hash: 0 })));
    for (member_id, _, assigned) in &members {
        facts.push(ConsumerFact::Target(member_id.clone(), Some(Arc::new(assigned.clone()))));
    }
    facts.push(ConsumerFact::TargetEpoch(Some(TargetEpoch { epoch, computed_at: model::Time::ZERO })));
    for (member_id, _, assigned) in members {
        let with_epoch = |(topic, indexes): (TopicId, BTreeSet<PartitionIndex>)| {
            (topic, indexes.into_iter().map(|index| (index, epoch)).collect())
        };
        let current = CurrentAssignment {
            epoch,
            previous_epoch: epoch,
            state: MemberState::Stable,
            assigned: assigned.into_iter().map(with_epoch).collect::<OwnedPartitions>(),
            revoking: BTreeMap::new(),
        };
        facts.push(ConsumerFact::Current(member_id, Some(Arc::new(current))));
    }
    facts
}

fn profile(parts: &ClassicMemberParts, protocol: Option<&str>) -> Option<MemberProfile> {
    let chosen = parts.protocols.iter().find(|each| Some(each.name.as_str()) == protocol);
    let subscription = embedded::read_subscription(&chosen.or(parts.protocols.first())?.metadata)?;
    let own =
        |protocol: &JoinProtocol| ClassicProtocol { name: protocol.name.clone(), metadata: protocol.metadata.clone() };
    Some(MemberProfile {
        instance_id: parts.group_instance_id.clone(),
        rack_id: subscription.rack_id,
        client_id: parts.client_id.clone(),
        client_host: parts.client_host.clone(),
        subscription: Subscription { topics: Arc::new(subscription.topics), regex: None },
        rebalance_timeout_ms: i32::try_from(parts.rebalance_timeout_ms).unwrap_or(i32::MAX),
        assignor: None,
        classic: Some(ClassicMember {
            session_timeout_ms: i32::try_from(parts.session_timeout_ms).unwrap_or(i32::MAX),
            protocols: parts.protocols.iter().map(own).collect(),
        }),
    })
}

/// Whether a group is a classic one once `leaving` are gone: members are left, and all speak the classic protocol.
#[must_use]
pub fn is_downgrade(group: &ConsumerGroup, leaving: &BTreeSet<String>, allowed: bool, max_size: usize) -> bool {
    let mut staying = group.members().iter().filter(|(member_id, _)| !leaving.contains(*member_id)).peekable();
    let left = group.members().len().saturating_sub(leaving.len());
    allowed && left <= max_size && staying.peek().is_some() && staying.all(|(_, member)| member.is_classic())
}

/// The classic group that a consumer group becomes when `leaving` are gone: stable, in the generation of its epoch.
#[must_use]
pub fn downgrade(
    group_id: &str,
    group: &ConsumerGroup,
    leaving: &BTreeSet<String>,
    image: &MetadataImage,
    now: Now,
) -> ClassicGroup {
    let staying = group.members().iter().filter(|(member_id, _)| !leaving.contains(*member_id));
    let parts = staying.filter_map(|(member_id, member)| parts(member_id, member, image));
    ClassicGroup::from_parts(group_id, group.epoch(), parts.collect(), now)
}

fn parts(member_id: &str, member: &Member, image: &MetadataImage) -> Option<ClassicMemberParts> {
    let (profile, classic) = (&member.profile, member.profile.classic.as_ref()?);
    let metadata: &[u8] = classic.protocols.first().map_or(&[], |protocol| &protocol.metadata);
    let own =
        |protocol: &ClassicProtocol| JoinProtocol { name: protocol.name.clone(), metadata: protocol.metadata.clone() };
    Some(ClassicMemberParts {
        member_id: member_id.to_owned(),
        group_instance_id: profile.instance_id.clone(),
        client_id: profile.client_id.clone(),
        client_host: profile.client_host.clone(),
        rebalance_timeout_ms: u64::try_from(profile.rebalance_timeout_ms).unwrap_or(0),
        session_timeout_ms: u64::try_from(classic.session_timeout_ms).unwrap_or(0),
        assignment: embedded::write_assignment(&member.current.assigned, metadata, image),
        protocols: classic.protocols.iter().map(own).collect(),
    })
}
