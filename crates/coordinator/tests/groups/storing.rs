//! What is on its way to the log, what is committed, what fails, and the next coordinator: `R52`.

use coordinator::{GroupConfig, GroupRequest, GroupResponse, GroupShard, Output, Token};
use model::{ErrorCode, Time};

use crate::context::{Context, Entry, GROUP, commit_request, fetch_request, known_member, new_member, static_member};

#[test]
fn a_commit_is_answered_and_visible_when_it_is_committed_and_not_before() {
    let mut c = Context::new();
    c.log_works = false;
    let token = c.commit_offsets("", -1, 4);
    assert!(c.is_parked(token));
    assert_eq!(c.fetch(), -1);
    c.commit();
    assert_eq!((c.committed(token), c.fetch()), (ErrorCode::None, 4));
}

#[test]
fn commits_that_wait_go_out_together_in_order() {
    let mut c = Context::new();
    c.log_works = false;
    let first = c.commit_offsets("", -1, 1);
    let rest: Vec<Token> = (2..=10).map(|offset| c.commit_offsets("", -1, offset)).collect();
    assert_eq!(c.in_flight.as_ref().unwrap().1.len(), 1);
    c.commit();
    assert_eq!(c.committed(first), ErrorCode::None);
    assert_eq!(c.in_flight.as_ref().unwrap().1.len(), 9);
    c.commit();
    assert!(rest.into_iter().all(|token| c.committed(token).is_none()));
    assert_eq!(c.fetch(), 10);
}

#[test]
fn a_commit_that_fails_leaves_nothing_and_takes_nobody_with_it() {
    let cases = [
        (ErrorCode::NotEnoughReplicas, ErrorCode::CoordinatorNotAvailable),
        (ErrorCode::NotLeaderOrFollower, ErrorCode::NotCoordinator),
        (ErrorCode::MessageTooLarge, ErrorCode::UnknownServerError),
    ];
    for (error, answer) in cases {
        let mut c = Context::new();
        c.log_works = false;
        let fails = c.commit_offsets("", -1, 1);
        let waits = c.commit_offsets("", -1, 2);
        c.fail(error);
        assert_eq!(c.committed(fails), answer);
        c.commit();
        assert_eq!((c.committed(waits), c.fetch()), (ErrorCode::None, 2));
        assert_eq!(c.shard.state(), &c.replayed());
    }
}

#[test]
fn a_commit_that_takes_too_long_is_answered_and_may_still_become_true() {
    let mut c = Context::new();
    c.log_works = false;
    let in_flight = c.commit_offsets("", -1, 1);
    let queued = c.commit_offsets("", -1, 2);
    c.advance(5_000);
    assert_eq!(c.committed(in_flight), ErrorCode::CoordinatorNotAvailable);
    assert_eq!(c.committed(queued), ErrorCode::CoordinatorNotAvailable);
    c.commit();
    assert_eq!(c.fetch(), 1);
    assert!(c.in_flight.is_none(), "what was queued is given up");
}

#[test]
fn a_stable_fetch_waits_for_the_commits_before_it() {
    let mut c = Context::new();
    c.log_works = false;
    let stable = GroupRequest::OffsetFetch(fetch_request(true));
    let at_once = c.send(stable.clone());
    assert_eq!(c.fetched(at_once), -1);
    c.commit_offsets("", -1, 1);
    let behind_one = c.send(stable.clone());
    c.commit_offsets("", -1, 2);
    let behind_two = c.send(stable.clone());
    c.commit();
    assert_eq!(c.fetched(behind_one), 1);
    assert!(c.is_parked(behind_two));
    c.fail(ErrorCode::NotEnoughReplicas);
    assert_eq!(c.fetched(behind_two), 1, "the commit before it has failed");
    c.commit_offsets("", -1, 3);
    let late = c.send(stable);
    c.advance(5_000);
    let Some(GroupResponse::OffsetFetch(response)) = c.reply(late) else { panic!("no answer") };
    assert_eq!(response.error, ErrorCode::NotCoordinator);
}

#[test]
fn the_queue_is_bounded() {
    let mut c = Context::with(GroupConfig { max_queued_bytes: 1_000, ..GroupConfig::default() });
    c.log_works = false;
    let tokens: Vec<Token> = (0..30).map(|offset| c.commit_offsets("", -1, offset)).collect();
    let refused = tokens.iter().filter(|token| !c.is_parked(**token)).count();
    assert!(refused > 10, "{refused}");
    let last = *tokens.last().unwrap();
    assert_eq!(c.committed(last), ErrorCode::CoordinatorNotAvailable);
}

#[test]
fn a_large_decision_is_cut_into_batches_and_fails_as_a_whole() {
    for fails in [false, true] {
        let mut c = Context::with(GroupConfig { max_batch_bytes: 1_000, ..GroupConfig::default() });
        c.log_works = false;
        let mut request = commit_request("", -1, 1);
        let partition = request.topics[0].partitions[0].clone();
        for index in 1..100 {
            let mut next = partition.clone();
            next.partition = model::PartitionIndex(index);
            request.topics[0].partitions.push(next);
        }
        let token = c.send(GroupRequest::OffsetCommit(request));
        let other = c.commit_offsets("", -1, 2);
        c.commit();
        assert!(c.is_parked(token));
        if fails {
            c.fail(ErrorCode::NotEnoughReplicas);
            assert_eq!(c.committed(token), ErrorCode::CoordinatorNotAvailable);
        }
        while c.in_flight.is_some() {
            let records = &c.in_flight.as_ref().unwrap().1;
            assert!(records.iter().map(Entry::batch_bytes).sum::<usize>() <= 1_000);
            c.commit();
        }
        if !fails {
            assert_eq!(c.committed(token), ErrorCode::None);
        }
        assert_eq!((c.committed(other), c.fetch()), (ErrorCode::None, 2));
        assert_eq!(c.shard.state(), &c.replayed());
    }
}

#[test]
fn nobody_gets_an_assignment_that_is_not_stored() {
    let mut c = Context::new();
    let tokens = [(); 2].map(|()| c.join(new_member()));
    c.advance(0);
    let joined = tokens.map(|token| c.joined(token));
    let leader = joined[0].leader.clone();
    let follower = joined.iter().find(|j| j.member_id != leader).unwrap().member_id.clone();
    c.log_works = false;
    let leads = c.sync(&leader, 1, &[(&follower, "x")]);
    let follows = c.sync(&follower, 1, &[]);
    assert!(c.is_parked(leads) && c.is_parked(follows));
    assert_eq!(c.heartbeat(&leader, 1), ErrorCode::None, "heartbeats do not wait for the log");
    // The leader asks again: the assignment on its way stands.
    let again = c.sync(&leader, 1, &[(&follower, "y")]);
    assert_eq!(c.synced(leads), Err(ErrorCode::RebalanceInProgress));
    c.commit();
    assert!(c.in_flight.is_none());
    assert_eq!((c.synced(again), c.synced(follows)), (Ok(String::new()), Ok("x".into())));
}

#[test]
fn an_assignment_that_cannot_be_stored_starts_the_rebalance_again() {
    for timeout in [false, true] {
        let mut c = Context::new();
        let token = c.join(new_member());
        c.advance(0);
        let member = c.joined(token).member_id;
        c.log_works = false;
        let sync = c.sync(&member, 1, &[(&member, "x")]);
        if timeout {
            c.advance(5_000);
        } else {
            c.fail(ErrorCode::NotEnoughReplicas);
        }
        assert_eq!(c.synced(sync), Err(ErrorCode::CoordinatorNotAvailable));
        assert_eq!(c.heartbeat(&member, 1), ErrorCode::RebalanceInProgress);
        if timeout {
            c.commit();
        }
        c.log_works = true;
        let token = c.join(known_member(&member));
        assert_eq!(c.joined(token).generation_id, 2);
        let sync = c.sync(&member, 2, &[(&member, "y")]);
        assert_eq!(c.synced(sync), Ok("y".into()));
    }
}

#[test]
fn an_assignment_stored_too_late_is_given_to_nobody() {
    let mut c = Context::new();
    let token = c.join(new_member());
    c.advance(0);
    let member = c.joined(token).member_id;
    c.log_works = false;
    let sync = c.sync(&member, 1, &[(&member, "x")]);
    let new = c.join(new_member());
    assert_eq!(c.synced(sync), Err(ErrorCode::RebalanceInProgress));
    c.commit();
    assert_eq!(c.describe().state, "PreparingRebalance");
    let rejoin = c.join(known_member(&member));
    assert_eq!((c.joined(new).generation_id, c.joined(rejoin).generation_id), (2, 2));
}

#[test]
fn a_static_member_whose_new_id_cannot_be_stored_comes_back_for_another() {
    let mut c = Context::new();
    let token = c.join(static_member("a"));
    c.advance(0);
    let member = c.joined(token).member_id;
    c.sync(&member, 1, &[(&member, "x")]);
    c.log_works = false;
    let token = c.join(static_member("a"));
    c.fail(ErrorCode::NotEnoughReplicas);
    assert_eq!(c.joined(token).error, ErrorCode::CoordinatorNotAvailable);
    c.log_works = true;
    let token = c.join(static_member("a"));
    let joined = c.joined(token);
    assert_eq!((joined.error, joined.generation_id), (ErrorCode::None, 1));
    let sync = c.sync(&joined.member_id, 1, &[]);
    assert_eq!(c.synced(sync), Ok("x".into()));
}

#[test]
fn the_next_coordinator_knows_the_group_and_every_session_starts_anew() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(3);
    c.commit_offsets(&members[0], generation, 9);
    c.advance(9_000);
    let mut next = c.fail_over();
    assert_eq!(next.shard.state(), c.shard.state());
    assert_eq!(next.describe(), c.describe());
    next.advance(9_000);
    for member in &members {
        assert_eq!(next.heartbeat(member, generation), ErrorCode::None);
        let token = next.sync(member, generation, &[]);
        assert_eq!(next.synced(token), Ok(member.clone()));
    }
    assert_eq!(next.fetch(), 9);
    next.advance(100_000);
    assert_eq!(next.describe().state, "Empty");
}

#[test]
fn a_loaded_group_that_is_too_large_is_asked_to_rebalance() {
    let mut c = Context::new();
    let (members, generation) = c.stable_group(3);
    let config = GroupConfig { max_size: 2, ..c.shard.config().clone() };
    let mut shard = GroupShard::new(config);
    c.log.iter().for_each(|entry| entry.replay(&mut shard));
    shard.finish_load(c.now());
    c.shard = shard;
    assert_eq!(c.heartbeat(&members[0], generation), ErrorCode::RebalanceInProgress);
    let tokens: Vec<Token> = members.iter().map(|member| c.join(known_member(member))).collect();
    let errors: Vec<ErrorCode> = tokens.into_iter().map(|token| c.joined(token).error).collect();
    assert_eq!(errors, [ErrorCode::None, ErrorCode::None, ErrorCode::GroupMaxSizeReached]);
}

#[test]
fn a_shard_that_loads_or_is_unloaded_says_so() {
    let mut shard = GroupShard::new(GroupConfig::default());
    let c = Context::new();
    let fetch = || GroupRequest::OffsetFetch(fetch_request(false));
    shard.handle(Token(1), fetch(), 0, c.now());
    assert_eq!(shard.poll_timeout(), None);
    shard.finish_load(c.now());
    assert_eq!(shard.poll_timeout(), Some(Time(600_000)));
    shard.handle(Token(2), GroupRequest::OffsetCommit(commit_request("", -1, 1)), 0, c.now());
    shard.handle(Token(3), GroupRequest::JoinGroup(new_member()), 0, c.now());
    shard.unload(ErrorCode::NotCoordinator);
    shard.handle(Token(4), fetch(), 0, c.now());
    let mut answers = Vec::new();
    while let Some(output) = shard.poll_output() {
        let Output::Reply { token, response } = output else { panic!("nothing is written any more") };
        let error = match response {
            GroupResponse::OffsetFetch(response) => response.error,
            GroupResponse::JoinGroup(response) => response.error,
            GroupResponse::OffsetCommit(response) => response.topics[0].partitions[0].1,
            other => panic!("{other:?}"),
        };
        answers.push((token.0, error));
    }
    answers.sort();
    let gone = ErrorCode::NotCoordinator;
    assert_eq!(answers, [(1, ErrorCode::CoordinatorLoadInProgress), (2, gone), (3, gone), (4, gone)]);
}

#[test]
fn records_that_cannot_be_read_are_skipped_and_counted() {
    let mut c = Context::new();
    c.commit_offsets("", -1, 1);
    let mut log = c.log.clone();
    let Entry::Record(record) = &mut log[0] else { panic!("{log:?}") };
    record.value = Some(bytes::Bytes::from_static(&[0, 4, 1]));
    log.insert(0, Entry::Record(coordinator::CoordinatorRecord { key: bytes::Bytes::new(), value: None }));
    let mut shard = GroupShard::new(GroupConfig::default());
    log.iter().for_each(|entry| entry.replay(&mut shard));
    assert_eq!((shard.skipped_records(), shard.state().offsets(GROUP)), (2, None));
}
