//! Consumer groups of the next generation, as their members see them: KIP-848, `R53`, `R54`.

use std::collections::BTreeSet;

use coordinator::consumer::group::Partitions;
use coordinator::consumer::request::{ConsumerDescribeRequest, ConsumerHeartbeatRequest, ConsumerHeartbeatResponse};
use coordinator::request::ListGroupsRequest;
use coordinator::{GroupConfig, GroupRequest, GroupResponse, Token};
use model::{ErrorCode, PartitionIndex};

use crate::cluster::{add_partitions, topic_id};
use crate::context::{Context, GROUP, commit_request, fetch_request};

/// Without the pause between assignments, so that each test shows one thing.
pub(crate) fn config() -> GroupConfig {
    let mut config = GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    config.consumer.assignment_interval_ms.value = 0;
    config
}

pub(crate) fn joining(member_id: &str, topics: &[&str]) -> ConsumerHeartbeatRequest {
    ConsumerHeartbeatRequest {
        rebalance_timeout_ms: 60_000,
        topics: Some(topics.iter().map(|topic| (*topic).to_owned()).collect()),
        owned: Some(Partitions::new()),
        ..living(member_id, 0)
    }
}

/// A heartbeat that says nothing but that the member lives.
pub(crate) fn living(member_id: &str, member_epoch: i32) -> ConsumerHeartbeatRequest {
    ConsumerHeartbeatRequest {
        group_id: GROUP.into(),
        member_id: member_id.into(),
        member_epoch,
        instance_id: None,
        rack_id: None,
        rebalance_timeout_ms: -1,
        topics: None,
        regex: None,
        assignor: None,
        owned: None,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        requires_member_id: true,
    }
}

fn holding(member_id: &str, member_epoch: i32, owned: &Partitions) -> ConsumerHeartbeatRequest {
    ConsumerHeartbeatRequest { owned: Some(owned.clone()), ..living(member_id, member_epoch) }
}

/// Partitions of topics.
pub(crate) fn parts(all: &[(&str, &[i32])]) -> Partitions {
    all.iter().map(|(topic, list)| (topic_id(topic), list.iter().copied().map(PartitionIndex).collect())).collect()
}

impl Context {
    pub(crate) fn beat(&mut self, request: ConsumerHeartbeatRequest) -> ConsumerHeartbeatResponse {
        let token = self.send(GroupRequest::ConsumerHeartbeat(request));
        self.beaten(token)
    }

    pub(crate) fn beaten(&mut self, token: Token) -> ConsumerHeartbeatResponse {
        match self.reply(token) {
            Some(GroupResponse::ConsumerHeartbeat(response)) => response,
            other => panic!("no answer to a ConsumerGroupHeartbeat: {other:?}"),
        }
    }

    /// The member epoch and what the member was told to have, if it was told.
    fn lives(&mut self, request: ConsumerHeartbeatRequest) -> (i32, Option<Partitions>) {
        let response = self.beat(request);
        assert_eq!(response.error, ErrorCode::None, "{:?}", response.error_message);
        (response.member_epoch, response.assignment)
    }

    fn fails(&mut self, request: ConsumerHeartbeatRequest) -> ErrorCode {
        self.beat(request).error
    }

    pub(crate) fn describe_consumers(&mut self) -> coordinator::consumer::request::ConsumerDescribeResponse {
        let token = self.send(GroupRequest::ConsumerDescribe(ConsumerDescribeRequest { group_id: GROUP.into() }));
        match self.reply(token) {
            Some(GroupResponse::ConsumerDescribe(response)) => response,
            other => panic!("no answer to a ConsumerGroupDescribe: {other:?}"),
        }
    }

    fn consumer_state(&mut self) -> &'static str {
        self.describe_consumers().state
    }
}

fn context(topics: &[(&str, i32)]) -> Context {
    Context::in_cluster(config(), topics)
}

#[test]
fn the_first_member_gets_everything_at_once() {
    let mut c = context(&[("t", 3)]);
    let response = c.beat(joining("a", &["t"]));
    assert_eq!((response.error, response.member_epoch), (ErrorCode::None, 1));
    assert_eq!(response.member_id.as_deref(), Some("a"));
    assert_eq!(response.heartbeat_interval_ms, 5_000);
    assert_eq!(response.assignment, Some(parts(&[("t", &[0, 1, 2])])));
    let group = c.describe_consumers();
    assert_eq!((group.state, group.group_epoch, group.assignment_epoch), ("Stable", 1, 1));
    assert_eq!(group.assignor, "uniform");
}

#[test]
fn one_member_more_moves_only_what_must_move_and_who_keeps_its_partitions_does_not_stop() {
    let mut c = context(&[("t", 4)]);
    let (epoch, all) = c.lives(joining("a", &["t"]));
    let (_, none) = c.lives(joining("b", &["t"]));
    assert_eq!(none, Some(Partitions::new()), "what b should have is still a's");
    assert_eq!(c.consumer_state(), "Reconciling");
    // a is told to give up two, and stays in its epoch until it has.
    let kept = parts(&[("t", &[0, 1])]);
    assert_eq!(c.lives(holding("a", epoch, &all.clone().unwrap())), (1, Some(kept.clone())));
    assert_eq!(c.lives(holding("a", 1, &all.clone().unwrap())), (1, None), "it still holds them");
    assert_eq!(c.describe_consumers().members[0].assignment, all.unwrap(), "and is described so");
    assert_eq!(c.lives(living("b", 2)), (2, None), "and b waits");
    assert_eq!(c.lives(holding("a", 1, &kept)), (2, None));
    assert_eq!(c.lives(living("b", 2)), (2, Some(parts(&[("t", &[2, 3])]))));
    assert_eq!(c.consumer_state(), "Stable");
}

#[test]
fn a_third_member_does_not_disturb_those_who_have_no_more_than_their_share() {
    let mut c = context(&[("t", 6)]);
    c.lives(joining("a", &["t"]));
    c.lives(joining("b", &["t"]));
    c.lives(holding("a", 1, &parts(&[("t", &[0, 1, 2])])));
    c.lives(living("b", 2));
    c.lives(joining("c", &["t"]));
    // Each gives one; what they keep is never taken from them.
    let (_, a) = c.lives(living("a", 2));
    assert_eq!(a, Some(parts(&[("t", &[0, 1])])));
    let (_, b) = c.lives(living("b", 2));
    assert_eq!(b, Some(parts(&[("t", &[3, 4])])));
}

#[test]
fn a_member_that_leaves_frees_its_partitions_at_once() {
    let mut c = context(&[("t", 2)]);
    c.lives(joining("a", &["t"]));
    c.lives(joining("b", &["t"]));
    c.lives(holding("a", 1, &parts(&[("t", &[0])])));
    c.lives(living("b", 2));
    assert_eq!(c.lives(living("b", -1)), (-1, None));
    assert_eq!(c.lives(living("a", 2)), (3, Some(parts(&[("t", &[0, 1])]))));
    assert_eq!(c.lives(living("a", -1)).0, -1);
    assert_eq!((c.consumer_state(), c.fails(living("a", 3))), ("Empty", ErrorCode::UnknownMemberId));
}

#[test]
fn epochs_that_are_not_the_members_are_fenced_but_for_a_lost_answer() {
    let mut c = context(&[("t", 2)]);
    c.lives(joining("a", &["t"]));
    c.lives(joining("b", &["t"]));
    c.lives(holding("a", 1, &parts(&[("t", &[0])])));
    assert_eq!(c.fails(living("a", 3)), ErrorCode::FencedMemberEpoch);
    assert_eq!(c.fails(living("a", 1)), ErrorCode::FencedMemberEpoch, "it does not say what it holds");
    assert_eq!(c.fails(holding("a", 1, &parts(&[("t", &[0, 1])]))), ErrorCode::FencedMemberEpoch);
    assert_eq!(c.lives(holding("a", 1, &parts(&[("t", &[0])]))).0, 2, "the answer with 2 was lost");
    assert_eq!(c.fails(living("x", 1)), ErrorCode::UnknownMemberId);
    let other = ConsumerHeartbeatRequest { group_id: "other".into(), ..living("a", 1) };
    assert_eq!(c.fails(other), ErrorCode::GroupIdNotFound);
}

#[test]
fn requests_that_make_no_sense_are_told_so() {
    let mut c = context(&[("t", 2)]);
    let join = || joining("a", &["t"]);
    let cases = [
        ConsumerHeartbeatRequest { group_id: String::new(), ..join() },
        ConsumerHeartbeatRequest { member_id: String::new(), ..join() },
        ConsumerHeartbeatRequest { instance_id: Some(String::new()), ..join() },
        ConsumerHeartbeatRequest { rack_id: Some(String::new()), ..join() },
        ConsumerHeartbeatRequest { rebalance_timeout_ms: -1, ..join() },
        ConsumerHeartbeatRequest { owned: None, ..join() },
        ConsumerHeartbeatRequest { owned: Some(parts(&[("t", &[0])])), ..join() },
        ConsumerHeartbeatRequest { topics: None, ..join() },
        living("a", -2),
        living("a", -3),
    ];
    for request in cases {
        assert_eq!(c.fails(request.clone()), ErrorCode::InvalidRequest, "{request:?}");
    }
    let assignor = ConsumerHeartbeatRequest { assignor: Some("best".into()), ..join() };
    assert_eq!(c.fails(assignor), ErrorCode::UnsupportedAssignor);
    let regex = ConsumerHeartbeatRequest { regex: Some("(".into()), ..join() };
    assert_eq!(c.fails(regex), ErrorCode::InvalidRegularExpression);
    assert_eq!(c.shard.consumers().count(), 0);
}

#[test]
fn version_0_is_given_a_member_id() {
    let mut c = context(&[("t", 2)]);
    let response = c.beat(ConsumerHeartbeatRequest { requires_member_id: false, ..joining("", &["t"]) });
    assert_eq!(response.member_id.unwrap().len(), 22, "a UUID as Kafka writes them");
}

#[test]
fn a_static_member_that_leaves_for_a_while_keeps_its_partitions() {
    let mut c = context(&[("t", 4)]);
    let of = |request: ConsumerHeartbeatRequest| ConsumerHeartbeatRequest { instance_id: Some("i".into()), ..request };
    let (_, all) = c.lives(of(joining("a", &["t"])));
    assert_eq!(c.fails(of(joining("b", &["t"]))), ErrorCode::UnreleasedInstanceId);
    assert_eq!(c.fails(of(living("b", 1))), ErrorCode::FencedInstanceId);
    assert_eq!(c.lives(of(living("a", -2))), (-2, None));
    let group_epoch = c.describe_consumers().group_epoch;
    assert_eq!(c.lives(of(joining("b", &["t"]))), (1, all), "under a new member id, without a rebalance");
    assert_eq!(c.describe_consumers().group_epoch, group_epoch);
    assert_eq!(c.fails(of(living("a", 1))), ErrorCode::FencedInstanceId);
    assert_eq!(c.describe_consumers().members.len(), 1);
}

#[test]
fn a_static_member_that_does_not_come_back_is_removed_when_its_session_ends() {
    let mut c = context(&[("t", 2)]);
    let of = |request: ConsumerHeartbeatRequest| ConsumerHeartbeatRequest { instance_id: Some("i".into()), ..request };
    c.lives(of(joining("a", &["t"])));
    c.lives(joining("b", &["t"]));
    c.lives(of(living("a", -2)));
    c.advance(40_000);
    assert_eq!(c.lives(living("b", 2)), (2, None), "its partitions wait for it");
    c.advance(5_001);
    assert_eq!(c.lives(living("b", 2)), (3, Some(parts(&[("t", &[0, 1])]))));
}

#[test]
fn who_is_not_heard_of_is_removed_and_who_does_not_give_up_partitions_in_time_is_too() {
    let mut c = context(&[("t", 2)]);
    let slow = |request| ConsumerHeartbeatRequest { rebalance_timeout_ms: 10_000, ..request };
    let (_, all) = c.lives(slow(joining("a", &["t"])));
    c.lives(joining("b", &["t"]));
    c.lives(holding("a", 1, all.as_ref().unwrap()));
    c.advance(9_999);
    assert_eq!(c.lives(holding("a", 1, all.as_ref().unwrap())).0, 1);
    c.advance(2);
    assert_eq!(c.fails(living("a", 1)), ErrorCode::UnknownMemberId);
    assert_eq!(c.lives(living("b", 2)), (3, Some(parts(&[("t", &[0, 1])]))));
    c.advance(45_000);
    assert_eq!(c.consumer_state(), "Empty");
}

#[test]
fn new_partitions_and_new_topics_reach_the_members() {
    let mut c = context(&[("t", 1)]);
    c.lives(joining("a", &["t", "later"]));
    c.change_cluster(|image| add_partitions(image, "t", 1..2));
    assert_eq!(c.lives(living("a", 1)), (2, Some(parts(&[("t", &[0, 1])]))));
    c.change_cluster(|image| add_partitions(image, "later", 0..1));
    assert_eq!(c.lives(living("a", 2)), (3, Some(parts(&[("t", &[0, 1]), ("later", &[0])]))));
    c.change_cluster(|image| add_partitions(image, "other", 0..1));
    assert_eq!(c.lives(living("a", 3)), (3, None), "a topic that nobody reads disturbs nobody");
    c.change_cluster(|image| image.apply(&metadata::MetadataRecord::RemoveTopic { id: topic_id("t") }));
    let (epoch, assignment) = c.lives(living("a", 3));
    assert_eq!((epoch, assignment), (3, Some(parts(&[("later", &[0])]))), "it gives up what is gone");
    assert_eq!(c.lives(holding("a", 3, &parts(&[("later", &[0])]))).0, 4);
}

#[test]
fn a_member_that_changes_its_subscription_gives_up_what_it_does_not_read_any_more() {
    let mut c = context(&[("t", 1), ("u", 1)]);
    c.lives(joining("a", &["t"]));
    let changes = ConsumerHeartbeatRequest { topics: Some(BTreeSet::from(["u".into()])), ..living("a", 1) };
    assert_eq!(c.lives(changes), (1, Some(Partitions::new())));
    assert_eq!(c.lives(holding("a", 1, &Partitions::new())), (2, Some(parts(&[("u", &[0])]))));
}

#[test]
fn members_with_different_subscriptions_get_what_they_read() {
    let mut c = context(&[("t", 3), ("u", 3)]);
    c.lives(joining("a", &["t"]));
    let (_, b) = c.lives(joining("b", &["t", "u"]));
    assert_eq!(b, Some(parts(&[("u", &[0, 1, 2])])), "a can read nothing else than t");
    assert_eq!(c.lives(living("a", 1)), (2, None));
}

#[test]
fn a_regular_expression_stands_for_the_topics_that_there_are_and_come() {
    let mut c = context(&[("log-a", 1), ("log-b", 1), ("other", 1)]);
    let request = ConsumerHeartbeatRequest { topics: None, regex: Some("log-.*".into()), ..joining("a", &[]) };
    let (epoch, assignment) = c.lives(request);
    assert_eq!(assignment, Some(Partitions::new()), "it is resolved behind the member's back");
    assert_eq!(c.lives(living("a", epoch)).1, Some(parts(&[("log-a", &[0]), ("log-b", &[0])])));
    c.change_cluster(|image| add_partitions(image, "log-c", 0..1));
    c.advance(10_001);
    let epoch = c.describe_consumers().members[0].member_epoch;
    c.lives(living("a", epoch));
    let all = parts(&[("log-a", &[0]), ("log-b", &[0]), ("log-c", &[0])]);
    assert_eq!(c.lives(living("a", epoch)).1, Some(all.clone()));
    // The next coordinator knows it, and no member has to ask for it again.
    let mut next = c.fail_over();
    let epoch = next.describe_consumers().members[0].member_epoch;
    assert_eq!(next.lives(holding("a", epoch, &all)), (epoch, None));
    let none = ConsumerHeartbeatRequest { regex: Some(String::new()), ..living("a", epoch) };
    next.lives(none);
    assert_eq!(next.shard.state().consumer(GROUP).unwrap().regexes().len(), 0);
}

#[test]
fn the_pause_between_assignments_gathers_changes() {
    let mut c = Context::in_cluster(GroupConfig::default(), &[("t", 4)]);
    c.lives(joining("a", &["t"]));
    for member in ["b", "c", "d"] {
        let (epoch, assignment) = c.lives(joining(member, &["t"]));
        assert_eq!((epoch, assignment), (1, Some(Partitions::new())));
    }
    assert_eq!(c.consumer_state(), "Assigning");
    c.advance(1_000);
    assert_eq!(c.lives(living("a", 1)), (1, Some(parts(&[("t", &[0])]))));
    assert_eq!(c.describe_consumers().assignment_epoch, 4);
}

#[test]
fn a_group_may_have_settings_of_its_own_within_bounds() {
    let mut c = context(&[("t", 1)]);
    let set = |name: &str, value: &str| metadata::MetadataRecord::Config {
        resource: metadata::ConfigResource::Group(GROUP.into()),
        name: name.into(),
        value: Some(value.into()),
    };
    c.change_cluster(|image| {
        image.apply(&set("consumer.heartbeat.interval.ms", "6000"));
        image.apply(&set("consumer.session.timeout.ms", "99000"));
    });
    let response = c.beat(joining("a", &["t"]));
    assert_eq!(response.heartbeat_interval_ms, 6_000);
    c.advance(59_999);
    assert_eq!(c.describe_consumers().members.len(), 1, "60 s are the most that the broker allows");
    c.advance(1);
    assert_eq!(c.describe_consumers().members.len(), 0);
}

#[test]
fn a_full_group_takes_nobody_new() {
    let mut full = config();
    full.consumer.max_size = 1;
    let mut c = Context::in_cluster(full, &[("t", 1)]);
    c.lives(joining("a", &["t"]));
    assert_eq!(c.fails(joining("b", &["t"])), ErrorCode::GroupMaxSizeReached);
    assert_eq!(c.lives(joining("a", &["t"])).0, 1);
}

#[test]
fn commits_and_fetches_are_of_the_present_epoch_or_of_partitions_held_since() {
    let mut c = context(&[("t", 2)]);
    c.lives(joining("a", &["t"]));
    c.lives(joining("b", &["t"]));
    c.lives(holding("a", 1, &parts(&[("t", &[0])])));
    let mut commit = |member: &str, epoch: i32, index: i32, expected: ErrorCode| {
        let mut request = commit_request(member, epoch, 5);
        request.topics[0].partitions[0].partition = PartitionIndex(index);
        let token = c.send(GroupRequest::OffsetCommit(request));
        assert_eq!(c.committed(token), expected, "{member} {epoch} {index}");
    };
    commit("a", 2, 0, ErrorCode::None);
    commit("a", 1, 0, ErrorCode::None);
    commit("a", 1, 1, ErrorCode::StaleMemberEpoch);
    commit("a", 0, 0, ErrorCode::StaleMemberEpoch);
    commit("a", 3, 0, ErrorCode::StaleMemberEpoch);
    commit("x", 2, 0, ErrorCode::UnknownMemberId);
    commit("", -1, 0, ErrorCode::UnknownMemberId);
    let request =
        coordinator::request::OffsetCommitRequest { supports_member_epochs: false, ..commit_request("a", 2, 5) };
    let token = c.send(GroupRequest::OffsetCommit(request));
    assert_eq!(c.committed(token), ErrorCode::UnsupportedVersion);
    let mut fetch = |member: Option<&str>, member_epoch: i32, expected: ErrorCode| {
        let member_id = member.map(str::to_owned);
        let request = coordinator::request::OffsetFetchRequest { member_id, member_epoch, ..fetch_request(false) };
        let token = c.send(GroupRequest::OffsetFetch(request));
        let Some(GroupResponse::OffsetFetch(response)) = c.reply(token) else { panic!("no answer") };
        assert_eq!(response.error, expected);
    };
    fetch(None, -1, ErrorCode::None);
    fetch(Some("a"), 2, ErrorCode::None);
    fetch(Some("a"), 1, ErrorCode::StaleMemberEpoch);
    fetch(Some("x"), 2, ErrorCode::UnknownMemberId);
}

#[test]
fn nobody_is_told_of_what_is_not_stored() {
    let mut c = context(&[("t", 2)]);
    c.log_works = false;
    let joins = c.send(GroupRequest::ConsumerHeartbeat(joining("a", &["t"])));
    let again = c.send(GroupRequest::ConsumerHeartbeat(joining("a", &["t"])));
    assert!(c.is_parked(joins) && c.is_parked(again));
    assert_eq!(c.describe_consumers().error, ErrorCode::GroupIdNotFound);
    c.commit();
    let answers = [joins, again].map(|token| c.beaten(token));
    assert_eq!(answers.map(|answer| (answer.error, answer.member_epoch)), [(ErrorCode::None, 1), (ErrorCode::None, 1)]);
}

#[test]
fn what_was_decided_on_what_is_not_stored_is_refused_with_it() {
    let mut c = context(&[("t", 2)]);
    c.lives(joining("a", &["t"]));
    c.log_works = false;
    let before = c.shard.state().clone();
    let joins = c.send(GroupRequest::ConsumerHeartbeat(joining("b", &["t"])));
    let gives_up = c.send(GroupRequest::ConsumerHeartbeat(holding("a", 1, &parts(&[("t", &[0])]))));
    let waits = c.send(GroupRequest::ConsumerHeartbeat(living("b", 2)));
    let commits = c.commit_offsets("", -1, 1);
    let other = c.send(GroupRequest::ConsumerHeartbeat(ConsumerHeartbeatRequest {
        group_id: "other".into(),
        ..joining("x", &["t"])
    }));
    c.fail(ErrorCode::NotEnoughReplicas);
    for token in [joins, gives_up, waits] {
        assert_eq!(c.beaten(token).error, ErrorCode::CoordinatorNotAvailable);
    }
    assert_eq!(c.committed(commits), ErrorCode::UnknownMemberId);
    c.commit();
    assert_eq!(c.beaten(other).error, ErrorCode::None, "another group has nothing to do with it");
    c.log_works = true;
    assert_eq!(c.shard.state().consumer(GROUP), before.consumer(GROUP));
    assert_eq!(c.lives(living("a", 1)), (1, None));
    assert_eq!(c.fails(living("b", 2)), ErrorCode::UnknownMemberId);
}

#[test]
fn the_next_coordinator_goes_on_where_the_last_one_stopped() {
    let mut c = context(&[("t", 4)]);
    c.lives(joining("a", &["t"]));
    c.lives(joining("b", &["t"]));
    c.lives(living("a", 1));
    let mut next = c.fail_over();
    assert_eq!(next.shard.state(), c.shard.state());
    assert_eq!(next.describe_consumers(), c.describe_consumers());
    assert_eq!(next.lives(living("b", 2)), (2, None));
    assert_eq!(next.lives(holding("a", 1, &parts(&[("t", &[0, 1])]))).0, 2);
    assert_eq!(next.lives(living("b", 2)).1, Some(parts(&[("t", &[2, 3])])));
    // Whom the next coordinator never heard of goes in time, too.
    let mut last = next.fail_over();
    last.advance(45_000);
    assert_eq!(last.describe_consumers().members.len(), 0);
}

#[test]
fn lists_descriptions_and_deletion_know_both_kinds() {
    let mut c = context(&[("t", 1)]);
    c.lives(joining("a", &["t"]));
    assert_eq!(c.describe().error, ErrorCode::GroupIdNotFound, "DescribeGroups is for classic groups");
    assert_eq!(c.delete_group(), ErrorCode::NonEmptyGroup);
    let mut list = |types: &[&str], states: &[&str]| {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let token = c.send(GroupRequest::ListGroups(ListGroupsRequest { types: own(types), states: own(states) }));
        let Some(GroupResponse::ListGroups(listed)) = c.reply(token) else { panic!("no answer") };
        listed.groups.into_iter().map(|g| (g.group_type, g.state, g.protocol_type)).collect::<Vec<_>>()
    };
    let here = [("consumer", "Stable", "consumer".to_owned())];
    assert_eq!(list(&[], &[]), here);
    assert_eq!(list(&["Consumer"], &["stable"]), here);
    assert_eq!(list(&["classic"], &[]), []);
    assert_eq!(list(&[], &["empty"]), []);
    assert_eq!(c.delete_offset("t"), (ErrorCode::None, Some(ErrorCode::GroupSubscribedToTopic)));
    c.lives(living("a", -1));
    assert_eq!((c.delete_group(), c.delete_group()), (ErrorCode::None, ErrorCode::GroupIdNotFound));
    assert_eq!((c.shard.state().consumers().count(), c.shard.consumers().count()), (0, 0));
    assert_eq!(c.shard.state(), &c.replayed());
}

#[test]
fn an_empty_group_goes_with_its_last_offset() {
    let mut c = context(&[("t", 1)]);
    c.lives(joining("a", &["t"]));
    let token = c.commit_offsets("a", 1, 3);
    assert_eq!(c.committed(token), ErrorCode::None);
    let days = |days: u64| days * 86_400_000;
    for _ in 0..(8 * 24 * 60) {
        c.advance(60_000 / 2);
        c.lives(living("a", 1));
    }
    assert_eq!(c.fetch(), 3, "a member reads the topic");
    c.lives(living("a", -1));
    c.advance(days(8));
    assert_eq!((c.fetch(), c.shard.state().consumers().count()), (-1, 0));
}

#[test]
fn members_that_are_subscribed_to_nothing_are_bounded_as_well() {
    let mut c = Context::in_cluster(GroupConfig { max_members_bytes: 2_000, ..config() }, &[("t", 1)]);
    let joined = (0..100).filter(|n| c.beat(joining(&format!("m{n}"), &[])).error.is_none()).count();
    assert_eq!(joined, 3);
    // Who is in stays, also by joining anew, and makes room by leaving.
    assert_eq!(c.fails(joining("m0", &[])), ErrorCode::None);
    assert_eq!(c.fails(joining("m9", &[])), ErrorCode::GroupMaxSizeReached);
    assert_eq!(c.fails(living("m1", -1)), ErrorCode::None);
    assert_eq!(c.fails(joining("m9", &[])), ErrorCode::None);
    // A name takes room, too.
    let named = ConsumerHeartbeatRequest { instance_id: Some("i".repeat(1_500)), ..joining("m", &[]) };
    assert_eq!(c.fails(living("m9", -1)), ErrorCode::None);
    assert_eq!(c.fails(named), ErrorCode::GroupMaxSizeReached);
}

#[test]
fn who_is_in_a_full_coordinator_says_again_what_it_said_before() {
    let topics: Vec<String> = (0..20).map(|n| format!("topic-{n}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut c = Context::in_cluster(GroupConfig { max_members_bytes: 2_500, ..config() }, &[("topic-0", 1)]);
    assert_eq!(c.fails(joining("m0", &topics)), ErrorCode::None);
    assert_eq!(c.fails(joining("m1", &topics)), ErrorCode::None);
    assert_eq!(c.fails(joining("m2", &topics)), ErrorCode::GroupMaxSizeReached);
    assert_eq!(c.fails(joining("m0", &topics)), ErrorCode::None, "as after an answer that was lost");
    assert_eq!(c.fails(joining("m0", &topics[..10])), ErrorCode::None);
}
