//! Groups that change between the classic and the consumer protocol while they live, with members of both.

use coordinator::consumer::config::MigrationPolicy;
use coordinator::consumer::group::Partitions;
use coordinator::consumer::request::ConsumerHeartbeatRequest;
use coordinator::request::{JoinGroupRequest, JoinProtocol, LeaveGroupRequest, LeavingMember};
use coordinator::{GroupRequest, GroupResponse, Token};
use model::ErrorCode;

use crate::consumers::{config, joining, living, parts};
use crate::context::{Context, GROUP, new_member};

/// An assignment in the consumer protocol, version 0.
fn assignment(topic: &str, partitions: &[i32]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 0, 1];
    bytes.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    bytes.extend(topic.as_bytes());
    bytes.extend(i32::try_from(partitions.len()).unwrap().to_be_bytes());
    partitions.iter().for_each(|index| bytes.extend(index.to_be_bytes()));
    bytes.extend([0xff; 4]);
    bytes
}

fn nothing() -> Vec<u8> {
    let mut bytes = vec![0; 6];
    bytes.extend([0xff; 4]);
    bytes
}

fn context() -> Context {
    Context::in_cluster(config(), &[("t", 4)])
}

impl Context {
    /// Two classic members in a stable generation, with partitions 0, 1 and 2, 3 of topic `t`.
    fn classic_pair(&mut self) -> [String; 2] {
        let tokens = [(); 2].map(|()| self.join(new_member()));
        self.advance(0);
        let joined = tokens.map(|token| self.joined(token));
        let leader = joined[0].leader.clone();
        let follower = joined.iter().find(|member| member.member_id != leader).unwrap().member_id.clone();
        let assign = |member_id: &str, partitions: &[i32]| coordinator::request::MemberAssignment {
            member_id: member_id.to_owned(),
            assignment: assignment("t", partitions).into(),
        };
        let assignments = vec![assign(&leader, &[0, 1]), assign(&follower, &[2, 3])];
        self.sync_raw(&leader, 1, assignments);
        self.sync_raw(&follower, 1, Vec::new());
        assert_eq!(self.describe().state, "Stable");
        [leader, follower]
    }

    fn sync_raw(
        &mut self,
        member_id: &str,
        generation_id: i32,
        assignments: Vec<coordinator::request::MemberAssignment>,
    ) -> Token {
        self.send(GroupRequest::SyncGroup(coordinator::request::SyncGroupRequest {
            group_id: GROUP.into(),
            generation_id,
            member_id: member_id.into(),
            group_instance_id: None,
            protocol_type: Some("consumer".into()),
            protocol_name: Some("range".into()),
            assignments,
        }))
    }

    fn assigned(&mut self, member_id: &str, generation_id: i32) -> Result<Vec<u8>, ErrorCode> {
        let token = self.sync_raw(member_id, generation_id, Vec::new());
        match self.reply(token) {
            Some(GroupResponse::SyncGroup(response)) if response.error.is_none() => Ok(response.assignment.to_vec()),
            Some(GroupResponse::SyncGroup(response)) => Err(response.error),
            other => panic!("no answer to a SyncGroup: {other:?}"),
        }
    }

    fn rejoin(&mut self, member_id: &str) -> i32 {
        let token = self.join(JoinGroupRequest { member_id: member_id.into(), ..new_member() });
        let joined = self.joined(token);
        assert_eq!((joined.error, joined.leader.as_str()), (ErrorCode::None, ""), "nobody leads a consumer group");
        joined.generation_id
    }

    fn kinds(&self) -> (usize, usize) {
        (self.shard.groups().count(), self.shard.consumers().count())
    }
}

#[test]
fn a_classic_group_is_upgraded_by_the_first_consumer_and_its_members_are_led_on() {
    let mut c = context();
    let [a, b] = c.classic_pair();
    let response = c.beat(joining("new", &["t"]));
    assert_eq!((response.error, response.member_epoch), (ErrorCode::None, 2));
    assert_eq!(response.assignment, Some(Partitions::new()));
    assert_eq!((c.kinds(), c.describe_consumers().state), ((0, 1), "Reconciling"));
    assert_eq!(c.shard.state(), &c.replayed());
    assert!(c.shard.state().group(GROUP).is_none(), "the classic generation is gone");
    // The one that has to give something up is asked to come back; it comes with nothing, as eager ones do.
    assert_eq!(c.heartbeat(&a, 1), ErrorCode::RebalanceInProgress);
    assert_eq!(c.rejoin(&a), 2);
    assert_eq!(c.heartbeat(&b, 1), ErrorCode::RebalanceInProgress);
    assert_eq!(c.rejoin(&b), 2);
    let (first, second) = (c.assigned(&a, 2).unwrap(), c.assigned(&b, 2).unwrap());
    let third = c.beat(living("new", 2)).assignment.unwrap();
    // Who gives something up is a matter of member ids.
    let a_gives = (assignment("t", &[0]), assignment("t", &[2, 3]), parts(&[("t", &[1])]));
    let b_gives = (assignment("t", &[0, 1]), assignment("t", &[2]), parts(&[("t", &[3])]));
    let given = (first, second, third);
    assert!(given == a_gives || given == b_gives, "{given:?}");
    assert_eq!(c.describe_consumers().state, "Stable");
    for member in [&a, &b] {
        assert_eq!(c.heartbeat(member, 2), ErrorCode::None);
        assert_eq!(c.heartbeat(member, 1), ErrorCode::IllegalGeneration);
    }
    let token = c.commit_offsets(&a, 2, 9);
    assert_eq!(c.committed(token), ErrorCode::None);
}

#[test]
fn members_that_wait_for_a_rebalance_are_told_to_come_back() {
    let mut c = context();
    c.classic_pair();
    let joins = c.join(new_member());
    assert!(c.is_parked(joins));
    c.beat(joining("new", &["t"]));
    assert_eq!(c.joined(joins).error, ErrorCode::RebalanceInProgress);
}

#[test]
fn what_cannot_be_upgraded_is_refused_and_stays_as_it_is() {
    let mut disabled = config();
    disabled.consumer.migration = MigrationPolicy { upgrade: false, downgrade: true };
    let mut c = Context::in_cluster(disabled, &[("t", 4)]);
    let [a, _] = c.classic_pair();
    assert_eq!(c.beat(joining("new", &["t"])).error, ErrorCode::GroupIdNotFound);
    assert_eq!((c.kinds(), c.heartbeat(&a, 1)), ((1, 0), ErrorCode::None));
    let mut other = context();
    let connect = JoinGroupRequest { protocol_type: "connect".into(), ..new_member() };
    other.join(connect);
    other.advance(0);
    assert_eq!(other.beat(joining("new", &["t"])).error, ErrorCode::GroupIdNotFound);
    assert_eq!(other.kinds(), (1, 0));
}

#[test]
fn an_empty_group_of_one_kind_makes_room_for_the_other() {
    let mut c = context();
    let [a, b] = c.classic_pair();
    c.leave(&[(&a, None), (&b, None)]);
    assert_eq!(c.beat(joining("new", &["t"])).member_epoch, 1);
    c.beat(living("new", -1));
    assert_eq!(c.kinds(), (0, 1));
    let token = c.join(new_member());
    c.advance(0);
    assert_eq!(c.joined(token).generation_id, 1);
    assert_eq!(c.kinds(), (1, 0));
    assert_eq!(c.shard.state(), &c.replayed());
    assert_eq!(c.shard.state().consumers().count(), 0);
}

#[test]
fn when_the_last_consumer_leaves_the_group_is_classic_again() {
    let mut c = context();
    let [a, b] = c.classic_pair();
    c.beat(joining("new", &["t"]));
    c.rejoin(&a);
    c.rejoin(&b);
    c.beat(living("new", -1));
    assert_eq!((c.kinds(), c.describe().state), ((1, 0), "PreparingRebalance"));
    let described = c.describe().members;
    assert!(described.iter().all(|member| !member.assignment.is_empty()), "what they read is told: {described:?}");
    assert_eq!(c.heartbeat(&a, 2), ErrorCode::RebalanceInProgress);
    assert_eq!(c.shard.state(), &c.replayed());
    let mut next = c.fail_over();
    assert_eq!((next.kinds(), next.describe().members.len()), ((1, 0), 2));
    let tokens = [&a, &b].map(|id| next.join(JoinGroupRequest { member_id: id.clone(), ..new_member() }));
    let generations = tokens.map(|token| next.joined(token).generation_id);
    assert_eq!(generations[0], generations[1], "they rebalance as classic members do");
}

#[test]
fn a_group_that_must_not_be_downgraded_stays_a_consumer_group() {
    let mut only_up = config();
    only_up.consumer.migration = MigrationPolicy { upgrade: true, downgrade: false };
    let mut c = Context::in_cluster(only_up, &[("t", 4)]);
    let [a, _] = c.classic_pair();
    c.beat(joining("new", &["t"]));
    c.rejoin(&a);
    c.beat(living("new", -1));
    assert_eq!(c.kinds(), (0, 1));
    assert_eq!(c.heartbeat(&a, 2), ErrorCode::RebalanceInProgress);
}

#[test]
fn an_upgrade_that_is_not_stored_did_not_happen() {
    let mut c = context();
    let [a, _] = c.classic_pair();
    c.log_works = false;
    let upgrade = c.send(GroupRequest::ConsumerHeartbeat(joining("new", &["t"])));
    c.fail(ErrorCode::NotEnoughReplicas);
    assert_eq!(c.beaten(upgrade).error, ErrorCode::CoordinatorNotAvailable);
    c.log_works = true;
    assert_eq!((c.kinds(), c.heartbeat(&a, 1)), ((1, 0), ErrorCode::None));
    assert_eq!(c.beat(joining("new", &["t"])).error, ErrorCode::None);
    assert_eq!(c.kinds(), (0, 1));
}

#[test]
fn a_downgrade_that_is_not_stored_did_not_happen() {
    let mut c = context();
    let [a, _] = c.classic_pair();
    c.beat(joining("new", &["t"]));
    c.rejoin(&a);
    c.log_works = false;
    let leaves = c.send(GroupRequest::ConsumerHeartbeat(living("new", -1)));
    assert_eq!(c.kinds(), (1, 0));
    let joins = c.join(new_member());
    c.fail(ErrorCode::NotEnoughReplicas);
    assert_eq!(c.beaten(leaves).error, ErrorCode::CoordinatorNotAvailable);
    assert_eq!(c.joined(joins).error, ErrorCode::CoordinatorNotAvailable);
    c.log_works = true;
    assert_eq!((c.kinds(), c.beat(living("new", 2)).error), ((0, 1), ErrorCode::None));
}

#[test]
fn a_static_consumer_that_comes_back_as_a_classic_member_may_downgrade_its_group() {
    let mut c = context();
    let of = |request: ConsumerHeartbeatRequest| ConsumerHeartbeatRequest { instance_id: Some("i".into()), ..request };
    c.beat(of(joining("new", &["t"])));
    let old = JoinGroupRequest { group_instance_id: Some("i".into()), ..new_member() };
    let token = c.join(old);
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id), (ErrorCode::None, 1));
    assert_eq!((c.kinds(), c.describe().state), ((1, 0), "Stable"));
    let sync = c.send(GroupRequest::SyncGroup(coordinator::request::SyncGroupRequest {
        group_id: GROUP.into(),
        generation_id: 1,
        member_id: joined.member_id,
        group_instance_id: Some("i".into()),
        protocol_type: None,
        protocol_name: None,
        assignments: Vec::new(),
    }));
    let Some(GroupResponse::SyncGroup(response)) = c.reply(sync) else { panic!("no answer") };
    assert_eq!(response.assignment.to_vec(), assignment("t", &[0, 1, 2, 3]), "it goes on where it stopped");
}

#[test]
fn classic_members_of_a_consumer_group_are_led_by_the_same_rules() {
    let mut c = context();
    c.beat(joining("new", &["t"]));
    let odd = JoinGroupRequest { protocol_type: "connect".into(), ..new_member() };
    let token = c.join(odd);
    assert_eq!(c.joined(token).error, ErrorCode::InconsistentGroupProtocol);
    let broken = JoinProtocol { name: "range".into(), metadata: bytes::Bytes::from_static(&[0, 9]) };
    let token = c.join(JoinGroupRequest { protocols: vec![broken], ..new_member() });
    assert_eq!(c.joined(token).error, ErrorCode::InconsistentGroupProtocol);
    let token = c.join(JoinGroupRequest { require_known_member_id: true, ..new_member() });
    let told = c.joined(token);
    assert_eq!(told.error, ErrorCode::MemberIdRequired);
    let token = c.join(JoinGroupRequest { member_id: told.member_id.clone(), ..new_member() });
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id), (ErrorCode::None, 2));
    assert_eq!(joined.protocol_name.as_deref(), Some("range"));
    let member = joined.member_id;
    assert_eq!(c.assigned(&member, 2), Ok(nothing()));
    // It waits for the other to give up; then it is asked to come for the rest.
    assert_eq!(c.heartbeat(&member, 2), ErrorCode::None);
    let kept = parts(&[("t", &[0, 1])]);
    c.beat(ConsumerHeartbeatRequest { owned: Some(parts(&[("t", &[0, 1, 2, 3])])), ..living("new", 1) });
    c.beat(ConsumerHeartbeatRequest { owned: Some(kept), ..living("new", 1) });
    assert_eq!(c.heartbeat(&member, 2), ErrorCode::RebalanceInProgress);
    assert_eq!(c.rejoin(&member), 2);
    assert_eq!(c.assigned(&member, 2), Ok(assignment("t", &[2, 3])));
    assert_eq!(c.assigned("new", 2), Err(ErrorCode::UnknownMemberId));
    assert_eq!(c.assigned(&member, 7), Err(ErrorCode::IllegalGeneration));
    assert_eq!(c.beat(living(&member, 2)).error, ErrorCode::None, "and it may change its protocol");
    let leaving = LeavingMember { member_id: "new".into(), group_instance_id: None, reason: None };
    let request = LeaveGroupRequest { group_id: GROUP.into(), members: vec![leaving] };
    let token = c.send(GroupRequest::LeaveGroup(request));
    let Some(GroupResponse::LeaveGroup(response)) = c.reply(token) else { panic!("no answer") };
    assert_eq!(response.members[0].error, ErrorCode::None);
}

#[test]
fn a_classic_member_that_does_not_come_back_in_time_is_removed() {
    let mut c = context();
    let [a, b] = c.classic_pair();
    c.beat(joining("new", &["t"]));
    assert_eq!(c.heartbeat(&a, 1), ErrorCode::RebalanceInProgress);
    for _ in 0..12 {
        c.advance(5_000);
        let _ = c.heartbeat(&a, 1);
        c.beat(living("new", c.shard.state().consumer(GROUP).unwrap().member("new").unwrap().current.epoch));
    }
    assert_eq!(c.heartbeat(&a, 1), ErrorCode::UnknownMemberId, "it beats, but it does not rejoin");
    assert_eq!(c.heartbeat(&b, 1), ErrorCode::UnknownMemberId);
}
