//! What is on its way to the log, what is committed, what fails, and the next coordinator: `R44`, `R45`.

use coordinator::transaction::request::DescribeTransactionRequest;
use coordinator::transaction::{Status, TransactionRequest, TransactionResponse};
use coordinator::{CoordinatorRecord, Shard, Token, TransactionConfig, TransactionShard};
use model::{ErrorCode, LeaderEpoch, Rules, Time};

use crate::context::{Context, ID, add_request, end_request, init_request, init_request_of, partitions, producer};

#[test]
fn a_change_takes_effect_when_it_is_committed_and_not_before() {
    let mut c = Context::new();
    let mine = c.init(None).unwrap();
    c.log_works = false;
    let added = c.send(add_request(mine, &[0], false));
    assert!(c.is_parked(added));
    assert_eq!(c.describe().state, "Empty");
    assert_eq!(c.verify(mine, &[0]), [ErrorCode::TransactionAbortable]);
    assert_eq!(c.add(mine, &[1]), ErrorCode::ConcurrentTransactions);
    assert_eq!(c.end(mine, true), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
    c.commit();
    assert_eq!((c.added(added), c.describe().state), (vec![ErrorCode::None], "Ongoing"));
    let ended = c.send(end_request(mine, true, 2));
    assert!(c.is_parked(ended) && c.markers.is_empty(), "no marker before the decision is committed");
    c.commit();
    assert_eq!((c.ended(ended), c.markers.len()), (Ok(producer(mine.id.0, 1)), 1));
}

#[test]
fn a_change_that_fails_leaves_nothing() {
    let cases = [
        (ErrorCode::NotEnoughReplicas, ErrorCode::CoordinatorNotAvailable),
        (ErrorCode::NotLeaderOrFollower, ErrorCode::NotCoordinator),
        (ErrorCode::MessageTooLarge, ErrorCode::UnknownServerError),
    ];
    for (error, told) in cases {
        let mut c = Context::new();
        let mine = c.open();
        c.log_works = false;
        let ended = c.send(end_request(mine, true, 2));
        c.fail(error);
        assert_eq!((c.ended(ended), c.status()), (Err(told), Status::Ongoing));
        c.log_works = true;
        assert_eq!(c.end(mine, true), Ok(producer(mine.id.0, 1)));
    }
}

#[test]
fn a_change_that_takes_too_long_is_answered_and_may_still_become_true() {
    let mut c = Context::new();
    let mine = c.open();
    c.log_works = false;
    let ended = c.send(end_request(mine, true, 2));
    let queued = c.send(init_request_of("other", None));
    c.advance(30_000);
    assert_eq!(c.ended(ended), Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(c.inited(queued), Err(ErrorCode::CoordinatorNotAvailable));
    assert_eq!(c.end(mine, false), Err(ErrorCode::ConcurrentTransactions), "it may still be committed");
    c.commit();
    assert_eq!(c.status(), Status::PrepareCommit);
    assert!(c.in_flight.is_none(), "what had not been sent was given up");
    c.advance(100_000);
    c.write_markers();
    assert!(c.in_flight.is_some());
}

#[test]
fn a_completion_that_fails_is_tried_again() {
    let mut c = Context::new();
    let mine = c.open();
    c.end(mine, true).unwrap();
    c.log_works = false;
    c.write_markers();
    for _ in 0..3 {
        c.fail(ErrorCode::NotEnoughReplicas);
        assert!(c.in_flight.is_none() && c.status() == Status::PrepareCommit);
        c.advance(100);
    }
    c.commit();
    assert_eq!(c.status(), Status::CompleteCommit);
}

#[test]
fn the_next_coordinator_writes_the_markers_again_with_its_own_epoch() {
    let mut c = Context::new();
    let mine = c.open();
    let next = c.end(mine, true).unwrap();
    let (_, marker, _) = c.markers.remove(0);
    c.marked(ID, &marker, &partitions(&[0]));
    let mut c = c.fail_over();
    let (id, again, told) = c.markers[0].clone();
    assert_eq!((id.as_str(), told), (ID, partitions(&[0, 1])), "which ones were written, the log does not say");
    assert_eq!(again, coordinator::transaction::Marker { coordinator_epoch: LeaderEpoch(2), ..marker });
    c.write_markers();
    assert_eq!((c.status(), c.known().producer()), (Status::CompleteCommit, next));
}

#[test]
fn a_late_word_of_an_earlier_transactions_marker_says_nothing_of_the_present_one() {
    let mut c = Context::new();
    let mine = c.open();
    let next = c.end(mine, true).unwrap();
    let (_, earlier, told) = c.markers.remove(0);
    c.marked(ID, &earlier, &told);
    c.add(next, &[0, 1]);
    c.end(next, false).unwrap();
    c.marked(ID, &earlier, &told);
    assert_eq!(c.status(), Status::PrepareAbort);
    c.write_markers();
    assert_eq!(c.status(), Status::CompleteAbort);
}

#[test]
fn changes_of_several_ids_go_out_together() {
    let mut c = Context::new();
    c.log_works = false;
    let first = c.send(init_request_of("0", None));
    let rest: Vec<Token> = (1..10).map(|id| c.send(init_request_of(&id.to_string(), None))).collect();
    assert_eq!(c.in_flight.as_ref().unwrap().1.len(), 1);
    c.commit();
    assert!(c.inited(first).is_ok());
    assert_eq!(c.in_flight.as_ref().unwrap().1.len(), 9);
    c.commit();
    assert!(rest.into_iter().all(|token| c.inited(token).is_ok()));
}

#[test]
fn unloading_answers_everybody_and_asks_for_nothing_more() {
    let mut c = Context::new();
    let mine = c.open();
    (c.log_works, c.ids_work) = (false, false);
    let ended = c.send(end_request(mine, true, 2));
    let parked = c.send(init_request_of("other", None));
    c.shard.unload(ErrorCode::NotCoordinator);
    c.in_flight = None;
    c.drain();
    assert_eq!(c.ended(ended), Err(ErrorCode::NotCoordinator));
    assert_eq!(c.inited(parked), Err(ErrorCode::NotCoordinator));
    c.bring_ids();
    assert_eq!(c.init(None), Err(ErrorCode::NotCoordinator));
    assert!(c.shard.poll_timeout().is_none() && c.in_flight.is_none());
}

#[test]
fn nothing_is_served_while_loading_and_what_cannot_be_read_is_counted() {
    let mut shard = TransactionShard::new(TransactionConfig::default(), LeaderEpoch(1), 2, Rules::all());
    shard.replay(&CoordinatorRecord { key: vec![0].into(), value: None });
    assert_eq!(shard.skipped_records(), 1);
    let request = TransactionRequest::Describe(DescribeTransactionRequest { transactional_id: ID.into() });
    let now = coordinator::Now { monotonic: Time(0), wall: Time(0) };
    shard.handle(Token(1), request, 0, now);
    let Some(coordinator::driver::Output::Reply { response: TransactionResponse::Describe(response), .. }) =
        shard.poll_output()
    else {
        panic!("no answer")
    };
    assert_eq!(response.error, ErrorCode::CoordinatorLoadInProgress);
}

#[test]
fn a_transaction_does_not_grow_beyond_what_can_be_ended() {
    let mut c = Context::new();
    let mine = c.init(None).unwrap();
    let most: Vec<i32> = (0..249_900).collect();
    assert_eq!(c.add(mine, &most), ErrorCode::None);
    assert_eq!(c.add(mine, &(249_900..260_000).collect::<Vec<_>>()), ErrorCode::UnknownServerError);
    assert!(c.end(mine, true).is_ok());
    c.write_markers();
    assert_eq!(c.status(), Status::CompleteCommit);
}

#[test]
fn a_shard_holds_so_many_ids_and_no_more() {
    let mut c = Context::new();
    let config = TransactionConfig { max_ids: 2, ..TransactionConfig::default() };
    c.shard = TransactionShard::new(config, LeaderEpoch(1), 2, Rules::all());
    let now = c.now();
    c.shard.finish_load(now);
    assert!(c.init(None).is_ok());
    let other = c.send(init_request_of("other", None));
    assert!(c.inited(other).is_ok());
    let third = c.send(init_request_of("third", None));
    assert_eq!(c.inited(third), Err(ErrorCode::CoordinatorNotAvailable));
    assert!(c.init(None).is_ok(), "those that are there are served");
    let again = c.send(init_request(None));
    assert!(c.inited(again).is_ok());
}
