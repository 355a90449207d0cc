//! A consumer group for people and tools.

use model::ErrorCode;

use crate::consumer::config::ConsumerConfig;
use crate::consumer::draft::preferred_assignor;
use crate::consumer::group::{ConsumerGroup, Member, Partitions};
use crate::consumer::heartbeat::partitions;
use crate::consumer::request::{ConsumerDescribeResponse, DescribedConsumer};

/// What a member has, with what it was told to give up and may still read.
fn held(member: &Member) -> Partitions {
    let mut held = partitions(&member.current.assigned);
    for (topic, revoking) in partitions(&member.current.revoking) {
        held.entry(topic).or_default().extend(revoking);
    }
    held
}

/// Describes a group that exists.
pub(crate) fn describe(group_id: &str, group: &ConsumerGroup, config: &ConsumerConfig) -> ConsumerDescribeResponse {
    let member = |(member_id, member): (&String, &Member)| DescribedConsumer {
        member_id: member_id.clone(),
        instance_id: member.profile.instance_id.clone(),
        rack_id: member.profile.rack_id.clone(),
        member_epoch: member.current.epoch,
        client_id: member.profile.client_id.clone(),
        client_host: member.profile.client_host.clone(),
        topics: (*member.profile.subscription.topics).clone(),
        regex: member.profile.subscription.regex.as_deref().map(str::to_owned),
        assignment: held(member),
        target: group.targets().get(member_id).map(|target| (**target).clone()).unwrap_or_default(),
        is_classic: member.is_classic(),
    };
    ConsumerDescribeResponse {
        error: ErrorCode::None,
        error_message: None,
        group_id: group_id.to_owned(),
        state: group.state(),
        group_epoch: group.epoch(),
        assignment_epoch: group.target_epoch().epoch,
        assignor: preferred_assignor(group, config).name(),
        members: group.members().iter().map(member).collect(),
    }
}
