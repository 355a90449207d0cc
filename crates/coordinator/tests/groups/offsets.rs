//! Commit, fetch, delete and expiry of offsets: `R52`, `R53`, `R55`.

use coordinator::request::{OffsetCommitRequest, OffsetFetchRequest, TopicPartitions};
use coordinator::{GroupConfig, GroupRequest, GroupResponse};
use model::{ErrorCode, PartitionIndex, TopicId, Uuid};

use crate::context::{Context, GROUP, commit_request, fetch_request, known_member, new_member};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

#[test]
fn a_member_commits_and_reads_its_offset_back() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(1);
    let token = c.commit_offsets(&members[0], generation, 42);
    assert_eq!((c.committed(token), c.fetch()), (ErrorCode::None, 42));
}

#[test]
fn an_unknown_group_or_partition_has_offset_minus_one_and_no_error() {
    let mut c = Context::new();
    assert_eq!(c.fetch(), -1);
    let all = OffsetFetchRequest { topics: None, ..fetch_request(false) };
    let token = c.send(GroupRequest::OffsetFetch(all.clone()));
    let Some(GroupResponse::OffsetFetch(response)) = c.reply(token) else { panic!("no answer") };
    assert_eq!((response.error, response.topics), (ErrorCode::None, Vec::new()));
    c.commit_offsets("", -1, 5);
    let token = c.send(GroupRequest::OffsetFetch(all));
    let Some(GroupResponse::OffsetFetch(response)) = c.reply(token) else { panic!("no answer") };
    assert_eq!((response.topics[0].name.as_str(), response.topics[0].partitions[0].offset.0), ("t", 5));
}

#[test]
fn a_simple_consumer_commits_only_while_nobody_is_a_member() {
    let mut c = Context::new();
    let token = c.commit_offsets("", -1, 1);
    assert_eq!(c.committed(token), ErrorCode::None);
    let (members, _) = c.stable_group(1);
    let token = c.commit_offsets("", -1, 2);
    assert_eq!(c.committed(token), ErrorCode::UnknownMemberId);
    let token = c.commit_offsets(&members[0], -1, 2);
    assert_eq!(c.committed(token), ErrorCode::IllegalGeneration);
    c.leave(&[(&members[0], None)]);
    let token = c.commit_offsets("", -1, 3);
    assert_eq!((c.committed(token), c.fetch()), (ErrorCode::None, 3));
}

#[test]
fn a_generation_of_a_group_that_is_not_there_is_refused_by_version() {
    let mut c = Context::new();
    for (supports_member_epochs, error) in [(true, ErrorCode::GroupIdNotFound), (false, ErrorCode::IllegalGeneration)] {
        let request = OffsetCommitRequest { supports_member_epochs, ..commit_request("m", 1, 1) };
        let token = c.send(GroupRequest::OffsetCommit(request));
        assert_eq!(c.committed(token), error);
    }
    c.commit_offsets("", -1, 1);
    let token = c.commit_offsets("m", 1, 1);
    assert_eq!(c.committed(token), ErrorCode::UnknownMemberId);
}

#[test]
fn nobody_commits_between_join_and_sync_and_everybody_may_before_rejoining() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(2);
    c.join(known_member(&members[0]));
    let token = c.commit_offsets(&members[1], generation, 7);
    assert_eq!(c.committed(token), ErrorCode::None);
    c.join(known_member(&members[1]));
    let token = c.commit_offsets(&members[1], generation, 8);
    assert_eq!(c.committed(token), ErrorCode::IllegalGeneration);
    let token = c.commit_offsets(&members[1], generation + 1, 8);
    assert_eq!((c.committed(token), c.fetch()), (ErrorCode::RebalanceInProgress, 7));
}

#[test]
fn too_long_words_are_refused_for_their_partition_alone() {
    let mut c = Context::new();
    let mut request = commit_request("", -1, 1);
    let mut second = request.topics[0].partitions[0].clone();
    second.partition = PartitionIndex(1);
    second.metadata = "x".repeat(4_096);
    request.topics[0].partitions.push(second);
    request.topics[0].partitions[0].metadata = "x".repeat(4_097);
    let token = c.send(GroupRequest::OffsetCommit(request));
    let Some(GroupResponse::OffsetCommit(response)) = c.reply(token) else { panic!("no answer") };
    let expected = [(PartitionIndex(0), ErrorCode::OffsetMetadataTooLarge), (PartitionIndex(1), ErrorCode::None)];
    assert_eq!(response.topics[0].partitions, expected);
    assert_eq!(c.fetch(), -1);
}

#[test]
fn an_offset_of_a_topic_made_anew_is_not_its_offset() {
    let mut c = Context::new();
    let id = |n| TopicId(Uuid::from_u128(n));
    let mut request = commit_request("", -1, 1);
    request.topics[0].topic_id = id(1);
    c.send(GroupRequest::OffsetCommit(request));
    let mut fetch = |topic_id| {
        let topic = TopicPartitions { name: "t".into(), topic_id, partitions: vec![PartitionIndex(0)] };
        let request = OffsetFetchRequest { topics: Some(vec![topic]), ..fetch_request(false) };
        let token = c.send(GroupRequest::OffsetFetch(request));
        c.fetched(token)
    };
    assert_eq!([fetch(id(1)), fetch(id(2)), fetch(TopicId::NONE)], [1, -1, 1]);
    let now = c.now();
    c.shard.handle_topics_deleted(&[("t".into(), id(2))], now);
    c.drain();
    assert_eq!(c.fetch(), 1);
    c.shard.handle_topics_deleted(&[("t".into(), id(1))], now);
    c.drain();
    assert_eq!(c.fetch(), -1);
}

#[test]
fn a_deleted_topic_takes_offsets_on_their_way_with_it() {
    let mut c = Context::new();
    c.log_works = false;
    let token = c.commit_offsets("", -1, 1);
    let now = c.now();
    c.shard.handle_topics_deleted(&[("t".into(), TopicId::NONE)], now);
    c.drain();
    c.commit();
    assert_eq!((c.committed(token), c.fetch()), (ErrorCode::None, 1));
    c.commit();
    assert_eq!(c.fetch(), -1);
    assert_eq!(c.shard.state(), &c.replayed());
}

#[test]
fn a_group_is_deleted_with_its_offsets_and_stays_deleted() {
    let mut c = Context::new();
    assert_eq!(c.delete_group(), ErrorCode::GroupIdNotFound);
    let (members, generation) = c.stable_group(1);
    c.commit_offsets(&members[0], generation, 9);
    assert_eq!(c.delete_group(), ErrorCode::NonEmptyGroup);
    c.leave(&[(&members[0], None)]);
    assert_eq!(c.delete_group(), ErrorCode::None);
    let mut next = c.fail_over();
    for c in [&mut c, &mut next] {
        assert_eq!((c.fetch(), c.describe().error), (-1, ErrorCode::GroupIdNotFound));
        assert_eq!(c.shard.state(), &coordinator::GroupState::default());
    }
}

#[test]
fn a_deletion_catches_commits_that_are_on_their_way() {
    let mut c = Context::new();
    c.log_works = false;
    c.commit_offsets("", -1, 1);
    c.commit_offsets("", -1, 2);
    let delete = GroupRequest::DeleteGroup(coordinator::request::DeleteGroupRequest { group_id: GROUP.into() });
    let token = c.send(delete);
    c.commit();
    assert_eq!(c.fetch(), 1);
    c.commit();
    assert!(!c.is_parked(token));
    assert_eq!(c.fetch(), -1);
}

#[test]
fn a_group_joined_while_its_tombstone_is_on_its_way_lives() {
    let mut c = Context::new();
    c.commit_offsets("", -1, 1);
    c.log_works = false;
    c.send(GroupRequest::DeleteGroup(coordinator::request::DeleteGroupRequest { group_id: GROUP.into() }));
    let token = c.join(new_member());
    c.commit();
    c.advance(0);
    let joined = c.joined(token);
    assert_eq!((joined.error, c.describe().state), (ErrorCode::None, "CompletingRebalance"));
    c.log_works = true;
    let token = c.sync(&joined.member_id, joined.generation_id, &[(&joined.member_id, "x")]);
    assert_eq!(c.synced(token), Ok("x".into()));
    assert_eq!(c.fail_over().describe().state, "Stable");
}

#[test]
fn offsets_are_deleted_unless_a_member_reads_the_topic() {
    let mut c = Context::new();
    assert_eq!(c.delete_offset("t"), (ErrorCode::GroupIdNotFound, None));
    let (members, generation) = c.stable_group(1);
    c.commit_offsets(&members[0], generation, 9);
    assert_eq!(c.delete_offset("t"), (ErrorCode::None, Some(ErrorCode::GroupSubscribedToTopic)));
    assert_eq!(c.delete_offset("u"), (ErrorCode::None, Some(ErrorCode::None)));
    c.leave(&[(&members[0], None)]);
    assert_eq!(c.delete_offset("t"), (ErrorCode::None, Some(ErrorCode::None)));
    assert_eq!(c.fetch(), -1);
}

#[test]
fn offsets_of_a_group_that_is_no_consumer_are_deleted_only_when_it_is_empty() {
    let mut c = Context::new();
    let request = coordinator::request::JoinGroupRequest { protocol_type: "connect".into(), ..new_member() };
    c.join(request);
    c.advance(0);
    assert_eq!(c.delete_offset("t").0, ErrorCode::NonEmptyGroup);
}

#[test]
fn a_groups_offsets_expire_when_it_has_been_empty_for_the_retention() {
    let retention_ms = 3_600_000;
    let config = GroupConfig { offsets_retention_ms: retention_ms, ..GroupConfig::default() };
    let mut c = Context::with(GroupConfig { initial_rebalance_delay_ms: 0, ..config });
    let (members, generation) = c.stable_group(1);
    c.commit_offsets(&members[0], generation, 9);
    // A member that reads the topic keeps its offset, however old.
    for _ in 0..1_500 {
        c.advance(5_000);
        c.heartbeat(&members[0], generation);
    }
    assert_eq!(c.fetch(), 9);
    c.leave(&[(&members[0], None)]);
    c.advance(retention_ms - 1);
    assert_eq!(c.fetch(), 9);
    c.advance(600_001);
    assert_eq!((c.fetch(), c.describe().error), (-1, ErrorCode::GroupIdNotFound));
    assert_eq!(c.replayed(), coordinator::GroupState::default());
    assert_eq!(c.shard.groups().count(), 0);
}

#[test]
fn a_simple_consumers_offset_expires_after_its_last_commit_or_when_it_said_so() {
    let mut c = Context::new();
    c.commit_offsets("", -1, 1);
    c.advance(6 * DAY_MS);
    c.commit_offsets("", -1, 2);
    c.advance(6 * DAY_MS);
    assert_eq!(c.fetch(), 2);
    c.advance(DAY_MS + 600_001);
    assert_eq!(c.fetch(), -1);
    let request = OffsetCommitRequest { retention_time_ms: 1_000, ..commit_request("", -1, 3) };
    c.send(GroupRequest::OffsetCommit(request));
    assert_eq!(c.fail_over().fetch(), 3);
    c.advance(600_001);
    assert_eq!(c.fetch(), -1);
}

#[test]
fn a_consumer_may_forget_topics_that_it_reads_no_longer() {
    let config = GroupConfig { offsets_retention_ms: 60_000, initial_rebalance_delay_ms: 0, ..GroupConfig::default() };
    let mut c = Context::with(config);
    let mut request = commit_request("", -1, 5);
    request.topics[0].name = "old".into();
    c.send(GroupRequest::OffsetCommit(request));
    let (members, generation) = c.stable_group(1);
    c.commit_offsets(&members[0], generation, 6);
    for _ in 0..130 {
        c.advance(5_000);
        c.heartbeat(&members[0], generation);
    }
    let topics: Vec<&String> = c.shard.state().offsets(GROUP).unwrap().keys().collect();
    assert_eq!(topics, ["t"]);
}

#[test]
fn an_offset_whose_next_commit_is_on_its_way_does_not_expire() {
    let config = GroupConfig { offsets_retention_ms: 60_000, ..GroupConfig::default() };
    let mut c = Context::with(config);
    c.commit_offsets("", -1, 1);
    c.advance(599_999);
    c.log_works = false;
    c.commit_offsets("", -1, 2);
    c.advance(1);
    c.commit();
    c.log_works = true;
    c.drain();
    assert_eq!((c.fetch(), c.in_flight.is_some()), (2, false));
}
