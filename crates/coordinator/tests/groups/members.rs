//! Joining, syncing, living, leaving: `R53`, `R54` and Kafka's answers.

use coordinator::GroupConfig;
use coordinator::GroupRequest;
use coordinator::GroupResponse;
use coordinator::request::{JoinGroupRequest, ListGroupsRequest, SyncGroupRequest};
use model::ErrorCode;

use crate::context::{Context, GROUP, known_member, new_member, protocol, static_member};

#[test]
fn the_first_member_leads_the_first_generation() {
    let mut c = Context::new();
    let token = c.join(new_member());
    c.advance(0);
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id), (ErrorCode::None, 1));
    assert_eq!((joined.leader.clone(), joined.members.len()), (joined.member_id.clone(), 1));
    assert_eq!(joined.protocol_name.as_deref(), Some("range"));
    assert!(joined.member_id.starts_with("client-"), "{}", joined.member_id);
    assert_eq!(c.describe().state, "CompletingRebalance");
}

#[test]
fn while_a_group_rebalances_it_is_described_with_what_its_members_had() {
    let mut c = Context::new();
    let (ids, _) = c.stable_group(2);
    let had = |c: &mut Context| -> Vec<(String, bool, bool)> {
        let members = c.describe().members.into_iter();
        members.map(|m| (m.member_id.clone(), m.assignment == m.member_id.as_bytes(), m.metadata.is_empty())).collect()
    };
    let shown = |mut ids: Vec<String>, without_metadata| {
        ids.sort();
        ids.into_iter().map(|id| (id, true, without_metadata)).collect::<Vec<_>>()
    };
    assert_eq!(had(&mut c), shown(ids.clone(), false));
    let first = c.join(known_member(&ids[0]));
    assert_eq!(c.describe().state, "PreparingRebalance");
    assert_eq!(had(&mut c), shown(ids.clone(), true));
    let second = c.join(known_member(&ids[1]));
    assert_eq!(c.joined(first).generation_id, c.joined(second).generation_id);
    assert_eq!(c.describe().state, "CompletingRebalance");
    assert_eq!(had(&mut c), shown(ids, true));
}

#[test]
fn the_first_rebalance_waits_for_more_members_and_longer_while_they_come() {
    let mut c = Context::with(GroupConfig::default());
    let first = c.join(new_member());
    c.advance(2_999);
    let second = c.join(new_member());
    c.advance(2_999);
    assert!(c.is_parked(first) && c.is_parked(second));
    c.advance(2);
    let (first, second) = (c.joined(first), c.joined(second));
    assert_eq!((first.generation_id, second.generation_id), (1, 1));
    assert_eq!(first.members.len() + second.members.len(), 2);
}

#[test]
fn the_first_rebalance_waits_no_longer_than_the_rebalance_timeout() {
    let mut c = Context::with(GroupConfig::default());
    let member = || JoinGroupRequest { rebalance_timeout_ms: 7_000, ..new_member() };
    let first = c.join(member());
    for _ in 0..6 {
        c.advance(1_000);
        c.join(member());
    }
    assert!(c.is_parked(first));
    c.advance(1_000);
    assert_eq!(c.joined(first).generation_id, 1);
}

#[test]
fn a_new_member_is_told_its_id_and_joins_with_it() {
    let mut c = Context::new();
    let token = c.join(JoinGroupRequest { require_known_member_id: true, ..new_member() });
    let told = c.joined(token);
    assert_eq!((told.error, told.generation_id), (ErrorCode::MemberIdRequired, -1));
    let token = c.join(JoinGroupRequest { require_known_member_id: true, ..known_member(&told.member_id) });
    c.advance(0);
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.member_id), (ErrorCode::None, told.member_id));
}

#[test]
fn a_member_id_that_is_not_used_within_the_session_timeout_is_forgotten() {
    let mut c = Context::new();
    let token = c.join(JoinGroupRequest { require_known_member_id: true, ..new_member() });
    let told = c.joined(token);
    c.advance(10_001);
    let token = c.join(known_member(&told.member_id));
    assert_eq!(c.joined(token).error, ErrorCode::UnknownMemberId);
    assert_eq!(c.describe().error, ErrorCode::GroupIdNotFound, "a group that nobody joined is no group");
}

#[test]
fn a_rebalance_waits_for_a_member_that_was_told_its_id() {
    let mut c = Context::new();
    let (members, _) = c.stable_group(1);
    let token = c.join(JoinGroupRequest { require_known_member_id: true, ..new_member() });
    let told = c.joined(token);
    let rejoin = c.join(known_member(&members[0]));
    assert!(c.is_parked(rejoin));
    let join = c.join(known_member(&told.member_id));
    assert_eq!((c.joined(rejoin).generation_id, c.joined(join).generation_id), (2, 2));
}

#[test]
fn bad_joins_are_refused_as_kafka_refuses_them() {
    let mut c = Context::new();
    let other = JoinGroupRequest { protocol_type: "connect".into(), ..new_member() };
    let cases: [(JoinGroupRequest, ErrorCode); 6] = [
        (JoinGroupRequest { group_id: String::new(), ..new_member() }, ErrorCode::InvalidGroupId),
        (JoinGroupRequest { session_timeout_ms: 5_999, ..new_member() }, ErrorCode::InvalidSessionTimeout),
        (JoinGroupRequest { session_timeout_ms: -1, ..new_member() }, ErrorCode::InvalidSessionTimeout),
        (known_member("nobody"), ErrorCode::UnknownMemberId),
        (JoinGroupRequest { protocol_type: String::new(), ..new_member() }, ErrorCode::InconsistentGroupProtocol),
        (JoinGroupRequest { protocols: Vec::new(), ..new_member() }, ErrorCode::InconsistentGroupProtocol),
    ];
    for (request, error) in cases {
        let token = c.join(request);
        assert_eq!(c.joined(token).error, error);
    }
    assert_eq!(c.shard.groups().count(), 0, "a refused join leaves nothing behind");
    c.stable_group(1);
    for request in [other, JoinGroupRequest { protocols: vec![protocol("other", &[])], ..new_member() }] {
        let token = c.join(request);
        assert_eq!(c.joined(token).error, ErrorCode::InconsistentGroupProtocol);
    }
}

#[test]
fn the_protocol_is_one_that_all_support_and_most_prefer() {
    let mut c = Context::new();
    let with = |names: &[&str]| JoinGroupRequest {
        protocols: names.iter().map(|name| protocol(name, &["t"])).collect(),
        ..new_member()
    };
    let tokens = [with(&["new", "a", "b"]), with(&["b", "a"]), with(&["b", "a"])].map(|request| c.join(request));
    c.advance(0);
    for token in tokens {
        assert_eq!(c.joined(token).protocol_name.as_deref(), Some("b"));
    }
}

#[test]
fn everybody_gets_the_leaders_assignment() {
    let mut c = Context::new();
    let tokens = [(); 3].map(|()| c.join(new_member()));
    c.advance(0);
    let joined = tokens.map(|token| c.joined(token));
    let leader = joined[0].leader.clone();
    let followers: Vec<&str> = joined.iter().map(|j| j.member_id.as_str()).filter(|id| *id != leader).collect();
    assert_eq!(joined.iter().map(|j| j.members.len()).sum::<usize>(), 3, "the leader alone sees the members");
    let first = c.sync(followers[0], 1, &[]);
    assert!(c.is_parked(first));
    let leads = c.sync(&leader, 1, &[(followers[0], "one"), (&leader, "two")]);
    let last = c.sync(followers[1], 1, &[]);
    assert_eq!(c.synced(first), Ok("one".into()));
    assert_eq!(c.synced(leads), Ok("two".into()));
    assert_eq!(c.synced(last), Ok(String::new()), "nothing was assigned to it");
    let described = c.describe();
    assert_eq!((described.state, described.protocol.as_str(), described.members.len()), ("Stable", "range", 3));
}

#[test]
fn a_stranger_or_a_past_generation_is_fenced() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::None);
    assert_eq!(c.heartbeat(&members[0], generation + 1), ErrorCode::IllegalGeneration);
    assert_eq!(c.heartbeat("nobody", generation), ErrorCode::UnknownMemberId);
    for (member, generation, error) in [
        ("nobody", generation, ErrorCode::UnknownMemberId),
        (members[0].as_str(), generation - 1, ErrorCode::IllegalGeneration),
    ] {
        let token = c.sync(member, generation, &[]);
        assert_eq!(c.synced(token), Err(error));
        let token = c.commit_offsets(member, generation, 1);
        assert_eq!(c.committed(token), error);
    }
    let request = SyncGroupRequest {
        group_id: GROUP.into(),
        generation_id: generation,
        member_id: members[0].clone(),
        group_instance_id: None,
        protocol_type: None,
        protocol_name: Some("other".into()),
        assignments: Vec::new(),
    };
    let token = c.send(GroupRequest::SyncGroup(request));
    assert_eq!(c.synced(token), Err(ErrorCode::InconsistentGroupProtocol));
}

#[test]
fn a_member_that_joins_makes_the_others_rejoin() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    let new = c.join(new_member());
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::RebalanceInProgress);
    let token = c.sync(&members[0], generation, &[]);
    assert_eq!(c.synced(token), Err(ErrorCode::RebalanceInProgress));
    let first = c.join(known_member(&members[0]));
    assert!(c.is_parked(new) && c.is_parked(first));
    let second = c.join(known_member(&members[1]));
    let joined = [new, first, second].map(|token| c.joined(token));
    assert!(joined.iter().all(|j| j.generation_id == generation + 1 && j.leader == members[0]));
}

#[test]
fn who_does_not_rejoin_in_time_is_out() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    let new = c.join(new_member());
    // The other one keeps its session, but does not rejoin.
    for _ in 0..12 {
        assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::RebalanceInProgress);
        assert_eq!(c.heartbeat(&members[1], generation), ErrorCode::RebalanceInProgress);
        c.advance(5_000);
    }
    let joined = c.joined(new);
    assert_eq!((joined.members.len(), joined.leader == joined.member_id), (1, true));
    assert_eq!(c.heartbeat(&members[1], generation), ErrorCode::UnknownMemberId);
}

#[test]
fn a_silent_member_is_lost_after_its_session_timeout() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    c.advance(9_000);
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::None);
    c.advance(999);
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::None);
    c.advance(2);
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::RebalanceInProgress);
    let rejoin = c.join(known_member(&members[0]));
    assert_eq!(c.joined(rejoin).members.len(), 1);
}

#[test]
fn a_commit_keeps_the_session() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(1);
    for offset in 0..3 {
        c.advance(9_000);
        let token = c.commit_offsets(&members[0], generation, offset);
        assert_eq!(c.committed(token), ErrorCode::None);
    }
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::None);
}

#[test]
fn a_group_whose_members_are_all_lost_is_empty_and_says_so_in_the_log() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    c.advance(80_000);
    let described = c.describe();
    assert_eq!((described.state, described.protocol_type.as_str()), ("Empty", "consumer"));
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::UnknownMemberId);
    let stored = c.shard.state().group(GROUP).unwrap();
    assert_eq!((stored.generation_id, stored.members.len(), &stored.protocol), (generation + 1, 0, &None));
}

#[test]
fn a_new_member_that_never_hears_its_id_does_not_stay_for_ever() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(1);
    let request = JoinGroupRequest { rebalance_timeout_ms: 1_000_000, ..known_member(&members[0]) };
    let rejoin = c.join(request);
    assert_eq!(c.joined(rejoin).generation_id, generation + 1);
    let lost = c.join(new_member());
    for _ in 0..60 {
        c.heartbeat(&members[0], generation + 1);
        c.advance(5_000);
    }
    assert_eq!(c.joined(lost).error, ErrorCode::UnknownMemberId);
}

#[test]
fn a_leader_that_brings_no_assignment_is_removed_and_the_others_try_again() {
    let mut c = Context::new();
    let tokens = [(); 2].map(|()| c.join(new_member()));
    c.advance(0);
    let joined = tokens.map(|token| c.joined(token));
    let leader = joined[0].leader.clone();
    let follower = joined.iter().find(|j| j.member_id != leader).unwrap().member_id.clone();
    let sync = c.sync(&follower, 1, &[]);
    for _ in 0..12 {
        c.heartbeat(&leader, 1);
        c.advance(5_000);
    }
    assert_eq!(c.synced(sync), Err(ErrorCode::RebalanceInProgress));
    assert_eq!(c.heartbeat(&leader, 1), ErrorCode::UnknownMemberId);
    let rejoin = c.join(known_member(&follower));
    assert_eq!(c.joined(rejoin).leader, follower);
}

#[test]
fn a_follower_that_never_fetches_its_assignment_is_removed_from_the_stable_group() {
    let mut c = Context::new();
    let tokens = [(); 2].map(|()| c.join(new_member()));
    c.advance(0);
    let joined = tokens.map(|token| c.joined(token));
    let leader = joined[0].leader.clone();
    let follower = joined.iter().find(|j| j.member_id != leader).unwrap().member_id.clone();
    c.sync(&leader, 1, &[(&follower, "x")]);
    assert_eq!(c.describe().state, "Stable");
    for _ in 0..12 {
        assert_eq!(c.heartbeat(&leader, 1), ErrorCode::None);
        assert_eq!(c.heartbeat(&follower, 1), ErrorCode::None);
        c.advance(5_000);
    }
    assert_eq!(c.heartbeat(&leader, 1), ErrorCode::RebalanceInProgress);
    assert_eq!(c.heartbeat(&follower, 1), ErrorCode::UnknownMemberId);
}

#[test]
fn a_follower_that_joins_again_with_the_same_words_disturbs_nobody_and_a_leader_does() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    let token = c.join(known_member(&members[1]));
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id, joined.members.len()), (ErrorCode::None, generation, 0));
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::None);
    let changed = JoinGroupRequest { protocols: vec![protocol("range", &["u"])], ..known_member(&members[1]) };
    let token = c.join(changed);
    assert!(c.is_parked(token));
    let leader = c.join(known_member(&members[0]));
    assert_eq!((c.joined(token).generation_id, c.joined(leader).generation_id), (generation + 1, generation + 1));
    // In CompletingRebalance the same answer is given again, the members to the leader too.
    let again = c.join(known_member(&members[0]));
    assert_eq!(c.joined(again).members.len(), 2);
}

#[test]
fn a_request_asked_again_on_another_connection_answers_the_one_before() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    let first = c.join(known_member(&members[0]));
    let second = c.join(known_member(&members[0]));
    assert_eq!(c.joined(first).error, ErrorCode::RebalanceInProgress);
    let other = c.join(known_member(&members[1]));
    assert_eq!(c.joined(second).generation_id, generation + 1);
    c.joined(other);
    let first = c.sync(&members[1], generation + 1, &[]);
    let second = c.sync(&members[1], generation + 1, &[]);
    assert_eq!(c.synced(first), Err(ErrorCode::RebalanceInProgress));
    let leads = c.sync(&members[0], generation + 1, &[(&members[1], "x")]);
    assert_eq!((c.synced(second), c.synced(leads)), (Ok("x".into()), Ok(String::new())));
}

#[test]
fn a_group_takes_no_more_members_than_it_may() {
    let mut c = Context::with(GroupConfig { max_size: 2, initial_rebalance_delay_ms: 0, ..GroupConfig::default() });
    let (members, _) = c.stable_group(2);
    let token = c.join(new_member());
    assert_eq!(c.joined(token).error, ErrorCode::GroupMaxSizeReached);
    let token = c.join(known_member(&members[1]));
    assert_eq!(c.joined(token).error, ErrorCode::None);
}

#[test]
fn what_members_bring_is_bounded() {
    let config = GroupConfig { max_members_bytes: 1_300, max_groups: 2, ..GroupConfig::default() };
    let mut c = Context::with(GroupConfig { initial_rebalance_delay_ms: 0, ..config });
    let large = |bytes: usize| {
        let metadata = vec![0; bytes].into();
        JoinGroupRequest {
            protocols: vec![coordinator::request::JoinProtocol { name: "p".into(), metadata }],
            ..new_member()
        }
    };
    let tokens = [large(200), large(200)].map(|request| c.join(request));
    assert!(c.is_parked(tokens[0]));
    assert_eq!(c.joined(tokens[1]).error, ErrorCode::GroupMaxSizeReached);
    let named = |group: &str| JoinGroupRequest { group_id: group.into(), ..new_member() };
    c.join(named("second"));
    let third = c.join(named("third"));
    assert_eq!(c.joined(third).error, ErrorCode::CoordinatorNotAvailable);
}

#[test]
fn members_that_bring_nothing_are_bounded_as_well() {
    let config = GroupConfig { max_members_bytes: 2_000, initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    let mut c = Context::with(config);
    let tokens: Vec<_> = (0..20)
        .map(|n| {
            let protocols = vec![coordinator::request::JoinProtocol { name: "p".into(), metadata: Vec::new().into() }];
            c.join(JoinGroupRequest { client_id: format!("c{n}"), protocols, ..new_member() })
        })
        .collect();
    assert_eq!(tokens.iter().filter(|token| c.is_parked(**token)).count(), 3);
    assert_eq!(c.joined(tokens[19]).error, ErrorCode::GroupMaxSizeReached);
}

#[test]
fn who_is_in_a_full_coordinator_joins_again() {
    let config = GroupConfig { max_members_bytes: 2_600, initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    let mut c = Context::with(config);
    let large = |member_id: &str| JoinGroupRequest {
        protocols: vec![coordinator::request::JoinProtocol { name: "p".into(), metadata: vec![0; 700].into() }],
        ..known_member(member_id)
    };
    let tokens = [c.join(large("")), c.join(large(""))];
    c.advance(0);
    let members = tokens.map(|token| c.joined(token).member_id);
    let third = c.join(large(""));
    assert_eq!(c.joined(third).error, ErrorCode::GroupMaxSizeReached);
    let tokens = members.map(|member| c.join(large(&member)));
    for token in tokens {
        assert_eq!(c.joined(token).error, ErrorCode::None);
    }
}

#[test]
fn members_leave_one_by_one_or_together() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(3);
    let left = c.leave(&[(&members[1], None), ("nobody", None), ("", Some("nobody"))]);
    assert_eq!(left, [ErrorCode::None, ErrorCode::UnknownMemberId, ErrorCode::UnknownMemberId]);
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::RebalanceInProgress);
    c.leave(&[(&members[0], None), (&members[2], None)]);
    assert_eq!(c.describe().state, "Empty");
    assert_eq!(c.leave(&[(&members[0], None)]), [ErrorCode::UnknownMemberId]);
}

#[test]
fn when_the_last_missing_member_leaves_the_rebalance_completes() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    let rejoin = c.join(known_member(&members[0]));
    assert!(c.is_parked(rejoin));
    c.leave(&[(&members[1], None)]);
    assert_eq!(c.joined(rejoin).generation_id, generation + 1);
}

/// A stable group of two static members, the leader first, with the ids of both.
fn static_group(c: &mut Context) -> [String; 2] {
    let tokens = [static_member("a"), static_member("b")].map(|request| c.join(request));
    c.advance(0);
    let joined = tokens.map(|token| c.joined(token));
    let leader = joined[0].leader.clone();
    let follower = joined.iter().map(|j| j.member_id.clone()).find(|id| *id != leader).unwrap();
    c.sync(&follower, 1, &[]);
    c.sync(&leader, 1, &[(&leader, "of leader"), (&follower, "of follower")]);
    assert_eq!(c.describe().state, "Stable");
    [leader, follower]
}

fn instance_of(c: &mut Context, member_id: &str) -> String {
    let described = c.describe();
    described.members.into_iter().find(|m| m.member_id == member_id).unwrap().group_instance_id.unwrap()
}

#[test]
fn a_static_member_that_comes_back_gets_a_new_id_and_no_rebalance() {
    let mut c = Context::new();
    let [leader, follower] = static_group(&mut c);
    let instance = instance_of(&mut c, &follower);
    let token = c.join(static_member(&instance));
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id, joined.skip_assignment), (ErrorCode::None, 1, false));
    assert_ne!(joined.member_id, follower);
    assert_eq!(c.heartbeat(&leader, 1), ErrorCode::None);
    let token = c.sync(&joined.member_id, 1, &[]);
    assert_eq!(c.synced(token), Ok("of follower".into()));
    assert!(c.shard.state().group(GROUP).unwrap().members.contains_key(&joined.member_id));
    assert!(!c.shard.state().group(GROUP).unwrap().members.contains_key(&follower));
}

#[test]
fn the_old_id_of_a_static_member_is_fenced_at_once() {
    let mut c = Context::new();
    let [_, follower] = static_group(&mut c);
    let instance = instance_of(&mut c, &follower);
    c.log_works = false;
    let token = c.join(static_member(&instance));
    assert!(c.is_parked(token), "the new id is not stored yet");
    let rejoin = JoinGroupRequest { member_id: follower.clone(), ..static_member(&instance) };
    let fenced = c.join(rejoin);
    assert_eq!(c.joined(fenced).error, ErrorCode::FencedInstanceId);
    assert_eq!(c.leave(&[(&follower, Some(&instance))]), [ErrorCode::FencedInstanceId]);
    c.commit();
    assert_eq!(c.joined(token).error, ErrorCode::None);
}

#[test]
fn a_static_leader_that_comes_back_keeps_the_assignment_where_it_understands_that() {
    for supports_skip_assignment in [true, false] {
        let mut c = Context::new();
        let [leader, _] = static_group(&mut c);
        let instance = instance_of(&mut c, &leader);
        let token = c.join(JoinGroupRequest { supports_skip_assignment, ..static_member(&instance) });
        let joined = c.joined(token);
        assert_eq!((joined.generation_id, joined.skip_assignment), (1, supports_skip_assignment));
        assert_eq!(joined.members.len(), if supports_skip_assignment { 2 } else { 0 });
        assert_eq!(joined.leader == joined.member_id, supports_skip_assignment);
    }
}

#[test]
fn a_static_member_that_waits_is_fenced_when_its_twin_comes() {
    let mut c = Context::new();
    let [leader, follower] = static_group(&mut c);
    let instance = instance_of(&mut c, &follower);
    c.join(known_member(&leader));
    let waiting = c.join(JoinGroupRequest { member_id: follower, ..static_member(&instance) });
    // The leader has rejoined already: this completes. A third member starts the next rebalance.
    assert_eq!(c.joined(waiting).generation_id, 2);
    let third = c.join(new_member());
    let waiting = c.join(static_member(&instance));
    let twin = c.join(static_member(&instance));
    assert_eq!(c.joined(waiting).error, ErrorCode::FencedInstanceId);
    assert!(c.is_parked(third) && c.is_parked(twin));
}

#[test]
fn a_static_member_keeps_its_place_until_its_session_ends_and_can_be_removed_by_its_name() {
    let mut c = Context::new();
    let [leader, follower] = static_group(&mut c);
    let instance = instance_of(&mut c, &follower);
    let group_instance_id = Some(instance_of(&mut c, &leader));
    let rejoin = c.join(JoinGroupRequest { group_instance_id, ..known_member(&leader) });
    assert!(c.is_parked(rejoin));
    assert_eq!(c.leave(&[("", Some(&instance))]), [ErrorCode::None]);
    assert_eq!(c.joined(rejoin).members.len(), 1);
}

#[test]
fn groups_are_listed_by_state_and_type() {
    let mut c = Context::new();
    c.stable_group(1);
    let commit = coordinator::request::OffsetCommitRequest {
        group_id: "simple".into(),
        ..crate::context::commit_request("", -1, 1)
    };
    c.send(GroupRequest::OffsetCommit(commit));
    let mut list = |states: &[&str], types: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let token = c.send(GroupRequest::ListGroups(ListGroupsRequest { states: owned(states), types: owned(types) }));
        match c.reply(token) {
            Some(GroupResponse::ListGroups(response)) => {
                response.groups.into_iter().map(|g| (g.group_id, g.state, g.protocol_type)).collect::<Vec<_>>()
            }
            other => panic!("no list: {other:?}"),
        }
    };
    let stable = (GROUP.to_owned(), "Stable", "consumer".to_owned());
    let simple = ("simple".to_owned(), "Empty", String::new());
    assert_eq!(list(&[], &[]), [stable.clone(), simple.clone()]);
    assert_eq!(list(&["stable"], &["Classic"]), [stable]);
    assert_eq!(list(&["Empty", "Dead"], &[]), [simple]);
    assert_eq!(list(&[], &["consumer"]), []);
}
