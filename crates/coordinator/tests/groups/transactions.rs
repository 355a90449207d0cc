//! Offsets in transactions: `R49`.

use coordinator::request::{ListGroupsRequest, OffsetCommitRequest, OffsetFetchRequest};
use coordinator::{GroupConfig, GroupRequest, GroupResponse, Token};
use model::{ErrorCode, Offset, PartitionIndex, TopicId, Uuid};

use crate::cluster::topic_id;
use crate::consumers::{config, joining};
use crate::context::{Context, Entry, GROUP, commit_request, fetch_request, known_member, marker, txn_commit_request};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn txn_commit(c: &mut Context, id: i64, commit: OffsetCommitRequest) -> ErrorCode {
    let token = c.send(txn_commit_request(id, commit));
    committed(c, token)
}

fn committed(c: &mut Context, token: Token) -> ErrorCode {
    match c.reply(token) {
        Some(GroupResponse::TxnOffsetCommit(response)) => response.topics[0].partitions[0].1,
        other => panic!("no answer to a TxnOffsetCommit: {other:?}"),
    }
}

fn end(c: &mut Context, id: i64, commit: bool) -> ErrorCode {
    let token = c.send(GroupRequest::EndTransaction(marker(id, commit)));
    ended(c, token)
}

fn ended(c: &mut Context, token: Token) -> ErrorCode {
    match c.reply(token) {
        Some(GroupResponse::EndTransaction(response)) => response.error,
        other => panic!("no answer to a marker: {other:?}"),
    }
}

/// What a consumer that needs a stable offset is told.
fn stable(c: &mut Context) -> Result<i64, ErrorCode> {
    let token = c.send(GroupRequest::OffsetFetch(fetch_request(true)));
    match c.reply(token) {
        Some(GroupResponse::OffsetFetch(response)) => {
            let found = &response.topics[0].partitions[0];
            if found.error.is_none() { Ok(found.offset.0) } else { Err(found.error) }
        }
        other => panic!("no answer to an OffsetFetch: {other:?}"),
    }
}

const UNSTABLE: Result<i64, ErrorCode> = Err(ErrorCode::UnstableOffsetCommit);

#[test]
fn an_offset_counts_from_the_commit_of_its_transaction_on() {
    let mut c = Context::new();
    c.commit_offsets("", -1, 1);
    assert_eq!(txn_commit(&mut c, 7, commit_request("", -1, 5)), ErrorCode::None);
    assert_eq!((c.fetch(), stable(&mut c)), (1, UNSTABLE));
    assert_eq!(end(&mut c, 7, true), ErrorCode::None);
    assert_eq!((c.fetch(), stable(&mut c)), (5, Ok(5)));
    assert_eq!(c.shard.state(), &c.replayed());
}

#[test]
fn an_aborted_transaction_leaves_the_offset_as_it_was() {
    let mut c = Context::new();
    c.commit_offsets("", -1, 1);
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    assert_eq!(end(&mut c, 7, false), ErrorCode::None);
    assert_eq!((c.fetch(), stable(&mut c)), (1, Ok(1)));
    // The next transaction of the same producer is another one.
    assert_eq!(end(&mut c, 7, true), ErrorCode::None);
    assert_eq!(c.fetch(), 1);
}

#[test]
fn the_next_coordinator_knows_what_waits_for_which_marker() {
    let mut c = Context::new();
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    txn_commit(&mut c, 8, commit_request("", -1, 6));
    let mut next = c.fail_over();
    assert_eq!(next.shard.state(), c.shard.state());
    assert_eq!((next.fetch(), stable(&mut next)), (-1, UNSTABLE));
    end(&mut next, 8, false);
    assert_eq!((next.fetch(), stable(&mut next)), (-1, UNSTABLE));
    end(&mut next, 7, true);
    assert_eq!((next.fetch(), stable(&mut next)), (5, Ok(5)));
    assert_eq!(next.fail_over().fetch(), 5);
}

#[test]
fn the_log_decides_between_transactions_and_not_the_order_of_their_ends() {
    for (first, second, offset) in [((7, true), (8, true), 6), ((8, true), (7, true), 6), ((8, false), (7, true), 5)] {
        let mut c = Context::new();
        txn_commit(&mut c, 7, commit_request("", -1, 5));
        txn_commit(&mut c, 8, commit_request("", -1, 6));
        end(&mut c, first.0, first.1);
        end(&mut c, second.0, second.1);
        assert_eq!(stable(&mut c), Ok(offset), "{first:?}, then {second:?}");
    }
    let mut c = Context::new();
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    c.commit_offsets("", -1, 9);
    assert_eq!((c.fetch(), stable(&mut c)), (9, UNSTABLE));
    end(&mut c, 7, true);
    assert_eq!(stable(&mut c), Ok(9), "a compaction keeps the last record of a key");
}

#[test]
fn a_transaction_is_answered_when_it_is_stored_and_batches_need_not_wait_for_each_other() {
    let mut c = Context::new();
    c.log_works = false;
    let plain = c.commit_offsets("", -1, 1);
    let tokens = [7, 8].map(|id| c.send(txn_commit_request(id, commit_request("", -1, id))));
    let marker_of_7 = c.send(GroupRequest::EndTransaction(marker(7, true)));
    assert_eq!((c.in_flight.is_some(), c.behind.len()), (true, 3), "all are on their way");
    let late = c.commit_offsets("", -1, 2);
    assert_eq!(c.behind.len(), 3, "one batch of other facts at a time");
    // The end of the third and fourth is known first.
    let (third, fourth) = (c.behind[1].0, c.behind[2].0);
    let now = c.now();
    c.shard.committed(fourth, now);
    c.shard.failed(third, ErrorCode::InvalidProducerEpoch, now);
    c.drain();
    assert!(c.is_parked(marker_of_7) && c.is_parked(tokens[1]) && c.fetch() == -1);
    c.commit();
    assert_eq!((c.committed(plain), c.fetch()), (ErrorCode::None, 1));
    assert!(c.is_parked(tokens[0]) && c.is_parked(marker_of_7));
    c.commit();
    assert_eq!(tokens.map(|token| committed(&mut c, token)), [ErrorCode::None, ErrorCode::InvalidProducerEpoch]);
    assert_eq!((ended(&mut c, marker_of_7), c.fetch()), (ErrorCode::None, 7));
    (c.in_flight, c.log_works) = (c.behind.pop_back(), true);
    c.behind.clear();
    c.commit();
    assert_eq!((c.committed(late), c.fetch()), (ErrorCode::None, 2));
}

#[test]
fn what_is_not_stored_is_refused_and_a_marker_says_why() {
    let mut c = Context::new();
    c.log_works = false;
    let cases = [
        (ErrorCode::InvalidProducerEpoch, ErrorCode::InvalidProducerEpoch),
        (ErrorCode::InvalidTxnState, ErrorCode::InvalidTxnState),
        (ErrorCode::NotEnoughReplicas, ErrorCode::CoordinatorNotAvailable),
        (ErrorCode::NotLeaderOrFollower, ErrorCode::NotCoordinator),
    ];
    for (error, answer) in cases {
        let token = c.send(txn_commit_request(7, commit_request("", -1, 5)));
        c.fail(error);
        assert_eq!(committed(&mut c, token), answer);
    }
    let token = c.send(GroupRequest::EndTransaction(marker(7, true)));
    c.fail(ErrorCode::TransactionCoordinatorFenced);
    assert_eq!(ended(&mut c, token), ErrorCode::TransactionCoordinatorFenced);
    let parked = [
        c.send(txn_commit_request(7, commit_request("", -1, 5))),
        c.send(GroupRequest::EndTransaction(marker(7, true))),
    ];
    c.shard.unload(ErrorCode::NotCoordinator);
    c.drain();
    assert_eq!(
        (committed(&mut c, parked[0]), ended(&mut c, parked[1])),
        (ErrorCode::NotCoordinator, ErrorCode::NotCoordinator)
    );
}

#[test]
fn a_classic_member_of_another_generation_commits_nothing() {
    let mut c = Context::new();
    assert_eq!(txn_commit(&mut c, 7, commit_request("m", 1, 5)), ErrorCode::IllegalGeneration, "no such group");
    assert_eq!(
        txn_commit(&mut c, 7, OffsetCommitRequest { group_id: String::new(), ..commit_request("", -1, 5) }),
        ErrorCode::InvalidGroupId
    );
    let (members, generation) = c.stable_group(2);
    let (first, second) = (members[0].as_str(), members[1].as_str());
    for (member, generation, error) in [
        (first, generation, ErrorCode::None),
        (first, generation - 1, ErrorCode::IllegalGeneration),
        (first, -1, ErrorCode::IllegalGeneration),
        ("nobody", generation, ErrorCode::UnknownMemberId),
        // KIP-447: an old producer names nobody.
        ("", -1, ErrorCode::None),
    ] {
        assert_eq!(txn_commit(&mut c, 7, commit_request(member, generation, 5)), error, "{member} {generation}");
    }
    let fenced = OffsetCommitRequest { group_instance_id: Some("i".into()), ..commit_request("", -1, 5) };
    assert_eq!(txn_commit(&mut c, 7, fenced), ErrorCode::UnknownMemberId);
    // Between join and sync, where other commits are refused.
    let tokens = [first, second].map(|member| c.join(known_member(member)));
    let generation = tokens.map(|token| c.joined(token).generation_id)[0];
    assert_eq!(c.describe().state, "CompletingRebalance");
    assert_eq!(txn_commit(&mut c, 7, commit_request(second, generation, 6)), ErrorCode::None);
}

#[test]
fn a_consumer_of_another_epoch_commits_nothing_but_what_it_had() {
    let mut c = Context::in_cluster(config(), &[("t", 1)]);
    let epoch = c.beat(joining("a", &["t"])).member_epoch;
    for (member, epoch, error) in [
        ("a", epoch, ErrorCode::None),
        ("a", epoch + 1, ErrorCode::IllegalGeneration),
        ("b", epoch, ErrorCode::UnknownMemberId),
        ("", -1, ErrorCode::None),
        ("", -2, ErrorCode::UnknownMemberId),
    ] {
        assert_eq!(txn_commit(&mut c, 7, commit_request(member, epoch, 5)), error, "{member} {epoch}");
    }
    let mut unknown = commit_request("a", epoch - 1, 5);
    unknown.topics[0].name = "gone".into();
    assert_eq!(txn_commit(&mut c, 7, unknown), ErrorCode::IllegalGeneration);
}

#[test]
fn a_deletion_takes_what_waits_with_it() {
    let mut c = Context::new();
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    assert_eq!(c.delete_offset("t"), (ErrorCode::None, Some(ErrorCode::None)));
    assert_eq!(stable(&mut c), Ok(-1));
    end(&mut c, 7, true);
    assert_eq!((c.fetch(), c.delete_group()), (-1, ErrorCode::GroupIdNotFound));
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    assert_eq!(c.delete_group(), ErrorCode::None);
    end(&mut c, 7, true);
    assert_eq!((c.fetch(), c.fail_over().fetch()), (-1, -1));
    // Also what is on its way.
    c.log_works = false;
    c.send(txn_commit_request(7, commit_request("", -1, 5)));
    c.send(GroupRequest::DeleteGroup(coordinator::request::DeleteGroupRequest { group_id: GROUP.into() }));
    c.log_works = true;
    while c.in_flight.is_some() {
        c.commit();
    }
    end(&mut c, 7, true);
    assert_eq!((c.fetch(), c.replayed()), (-1, coordinator::GroupState::default()));
}

#[test]
fn a_deleted_topics_offsets_do_not_come_back_with_a_marker() {
    let mut c = Context::in_cluster(config(), &[("t", 1)]);
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    let now = c.now();
    c.shard.handle_topics_deleted(&[("t".to_owned(), topic_id("t"))], now);
    c.drain();
    end(&mut c, 7, true);
    assert_eq!(c.fetch(), -1);
}

/// A commit to a topic of this id, whose name is that of all.
fn commit_of(id: u128, offset: i64) -> OffsetCommitRequest {
    let mut request = commit_request("", -1, offset);
    request.topics[0].topic_id = TopicId(Uuid::from_u128(id));
    request
}

fn delete_topic(c: &mut Context, id: u128) {
    let now = c.now();
    c.shard.handle_topics_deleted(&[("t".to_owned(), TopicId(Uuid::from_u128(id)))], now);
    c.drain();
}

#[test]
fn what_waits_of_a_new_topic_outlives_the_one_before_of_its_name() {
    for commit in [true, false] {
        let mut c = Context::new();
        c.send(GroupRequest::OffsetCommit(commit_of(1, 3)));
        txn_commit(&mut c, 7, commit_of(2, 5));
        delete_topic(&mut c, 1);
        assert_eq!(end(&mut c, 7, commit), ErrorCode::None);
        assert_eq!(c.fetch(), if commit { 5 } else { -1 }, "the deleted topic's offset is gone in any case");
        assert_eq!(c.shard.state(), &c.replayed());
        delete_topic(&mut c, 2);
        assert_eq!((c.fetch(), c.replayed()), (-1, coordinator::GroupState::default()));
    }
}

#[test]
fn what_is_on_its_way_of_a_new_topic_outlives_the_one_before_of_its_name() {
    let mut c = Context::new();
    c.send(GroupRequest::OffsetCommit(commit_of(1, 3)));
    c.log_works = false;
    c.send(GroupRequest::OffsetCommit(commit_of(2, 5)));
    delete_topic(&mut c, 1);
    c.log_works = true;
    while c.in_flight.is_some() {
        c.commit();
    }
    assert_eq!((c.fetch(), c.shard.state()), (5, &c.replayed()));
}

#[test]
fn a_group_of_which_offsets_wait_is_known_and_does_not_expire() {
    let retention = GroupConfig { offsets_retention_ms: DAY_MS, ..GroupConfig::default() };
    let mut c = Context::with(retention);
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    let token = c.send(GroupRequest::ListGroups(ListGroupsRequest::default()));
    let Some(GroupResponse::ListGroups(listed)) = c.reply(token) else { panic!("no answer") };
    assert_eq!((listed.groups.len(), listed.groups[0].state), (1, "Empty"));
    assert_eq!(c.describe().error, ErrorCode::None);
    c.commit_offsets("", -1, 4);
    c.advance(3 * DAY_MS);
    assert_eq!(c.fetch(), 4, "what a transaction may change is kept");
    end(&mut c, 7, false);
    c.advance(600_001);
    assert_eq!((c.fetch(), c.describe().error), (-1, ErrorCode::GroupIdNotFound));
}

#[test]
fn of_all_offsets_only_those_that_may_change_are_unstable() {
    let mut c = Context::new();
    let mut two = commit_request("", -1, 1);
    let other =
        coordinator::request::OffsetToCommit { partition: PartitionIndex(1), ..two.topics[0].partitions[0].clone() };
    two.topics[0].partitions.push(other);
    c.send(GroupRequest::OffsetCommit(two));
    txn_commit(&mut c, 7, commit_request("", -1, 5));
    let all = OffsetFetchRequest { topics: None, ..fetch_request(true) };
    let token = c.send(GroupRequest::OffsetFetch(all));
    let Some(GroupResponse::OffsetFetch(response)) = c.reply(token) else { panic!("no answer") };
    let found: Vec<(ErrorCode, Offset)> = response.topics[0].partitions.iter().map(|p| (p.error, p.offset)).collect();
    assert_eq!(found, [(ErrorCode::UnstableOffsetCommit, Offset::NONE), (ErrorCode::None, Offset(1))]);
}

#[test]
fn metadata_that_is_too_large_is_refused_alone() {
    let mut c = Context::new();
    let mut request = commit_request("", -1, 1);
    request.topics[0].partitions[0].metadata = "x".repeat(4_097);
    assert_eq!(txn_commit(&mut c, 7, request), ErrorCode::OffsetMetadataTooLarge);
    assert!(c.log.is_empty());
}

#[test]
fn a_large_transaction_is_cut_into_batches_of_its_producer() {
    let mut c = Context::with(GroupConfig { max_batch_bytes: 1_000, ..GroupConfig::default() });
    let mut request = commit_request("", -1, 1);
    let partition = request.topics[0].partitions[0].clone();
    for index in 1..100 {
        let partition = coordinator::request::OffsetToCommit { partition: PartitionIndex(index), ..partition.clone() };
        request.topics[0].partitions.push(partition);
    }
    assert_eq!(txn_commit(&mut c, 7, request), ErrorCode::None);
    assert!(c.log.iter().all(|entry| matches!(entry, Entry::InTransaction(producer, _) if producer.id.0 == 7)));
    end(&mut c, 7, true);
    let stored = c.shard.state().offsets(GROUP).map(|topics| topics["t"].len());
    assert_eq!((stored, c.shard.state()), (Some(100), &c.replayed()));
    assert_eq!(c.shard.state().offset(GROUP, "t", PartitionIndex(9)).map(|c| c.topic_id), Some(TopicId::NONE));
}
