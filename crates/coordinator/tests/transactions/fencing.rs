//! Who may have a transactional id, and who may no longer: `R46`, `R48`.

use coordinator::transaction::Status;
use coordinator::transaction::request::{InitProducerIdRequest, ListTransactionsRequest, Producer};
use coordinator::transaction::{TransactionRequest, TransactionResponse};
use model::{ErrorCode, ProducerEpoch, ProducerId, Rules};

use crate::context::{Context, ID, init_request, init_request_of, producer};

#[test]
fn whoever_comes_with_a_transactional_id_fences_the_one_before() {
    let mut c = Context::new();
    let first = c.init(None).unwrap();
    assert_eq!(first, producer(1_001, 0));
    assert_eq!(c.describe().state, "Empty");
    let second = c.init(None).unwrap();
    assert_eq!(second, producer(1_001, 1));
    assert_eq!(c.add(first, &[0]), ErrorCode::ProducerFenced);
    assert_eq!(c.add(second, &[0]), ErrorCode::None);
}

#[test]
fn a_producer_id_comes_before_anything_is_stored_and_meanwhile_the_id_is_taken() {
    let mut c = Context::new();
    c.ids_work = false;
    let first = c.send(init_request(None));
    assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
    assert!(c.is_parked(first) && c.log.is_empty());
    assert_eq!(c.add(producer(1_001, 0), &[0]), ErrorCode::ConcurrentTransactions);
    c.bring_ids();
    assert_eq!(c.inited(first), Ok(producer(1_001, 0)));
    let refused = c.send(init_request_of("other", None));
    let now = c.now();
    c.shard.producer_id_allocated("other", Err(ErrorCode::CoordinatorNotAvailable), now);
    c.drain();
    assert_eq!(c.inited(refused), Err(ErrorCode::CoordinatorNotAvailable));
    c.ids_wanted.clear();
    c.ids_work = true;
    let again = c.send(init_request_of("other", None));
    assert_eq!(c.inited(again), Ok(producer(1_002, 0)));
}

#[test]
fn an_open_transaction_is_aborted_first_and_the_client_comes_again() {
    for (version, fenced, granted) in [(0, 1, 2), (1, 1, 2), (2, 2, 3)] {
        let mut c = Context::at_version(version);
        let old = c.open();
        assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
        assert_eq!((c.status(), c.known().producer_epoch), (Status::PrepareAbort, ProducerEpoch(fenced)));
        let (_, marker, _) = c.markers[0].clone();
        assert_eq!((marker.commit, marker.producer_epoch), (false, ProducerEpoch(fenced)));
        assert_eq!(marker.transaction_version, version);
        assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
        c.write_markers();
        assert_eq!(c.status(), Status::CompleteAbort);
        assert_eq!(
            c.end(old, false),
            Err(ErrorCode::ProducerFenced),
            "an abort of its own would have told it the epoch"
        );
        assert_eq!(c.end(old, true), Err(ErrorCode::ProducerFenced));
        assert_eq!(c.init(None), Ok(producer(old.id.0, granted)));
    }
}

#[test]
fn a_fence_that_could_not_be_stored_bumps_the_epoch_no_second_time() {
    let mut c = Context::at_version(0);
    c.open();
    for _ in 0..3 {
        c.log_works = false;
        let token = c.send(init_request(None));
        c.fail(ErrorCode::NotEnoughReplicas);
        assert_eq!(c.inited(token), Err(ErrorCode::CoordinatorNotAvailable));
        assert_eq!(c.status(), Status::Ongoing);
    }
    c.log_works = true;
    assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(c.known().producer_epoch, ProducerEpoch(1));
}

#[test]
fn a_producer_that_goes_on_after_an_error_says_who_it_is() {
    let mut c = Context::new();
    let first = c.init(None).unwrap();
    let second = c.init(Some(first)).unwrap();
    assert_eq!(second, producer(first.id.0, 1));
    assert_eq!(c.init(Some(first)), Ok(second), "the answer was lost: no second bump");
    assert_eq!(c.init(Some(second)), Ok(producer(first.id.0, 2)));
    assert_eq!(c.init(Some(first)), Err(ErrorCode::ProducerFenced));
    assert_eq!(c.init(Some(producer(77, 2))), Err(ErrorCode::ProducerFenced));
    let other = c.init(None).unwrap();
    assert_eq!(c.init(Some(producer(first.id.0, 2))), Err(ErrorCode::ProducerFenced), "somebody else came meanwhile");
    assert_eq!(c.known().producer(), other);
}

#[test]
fn a_fenced_producer_does_not_end_its_successors_transaction() {
    let mut c = Context::new();
    let old = c.init(None).unwrap();
    let mine = c.open();
    assert_eq!(c.init(Some(old)), Err(ErrorCode::ProducerFenced));
    assert_eq!(c.status(), Status::Ongoing);
    assert_eq!(c.init(Some(mine)), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(c.status(), Status::PrepareAbort);
}

#[test]
fn a_producer_whose_id_was_forgotten_gets_a_new_one() {
    let mut c = Context::new();
    assert_eq!(c.init(Some(producer(5, 3))), Ok(producer(1_001, 0)));
}

#[test]
fn an_id_whose_epochs_are_used_up_is_replaced() {
    let mut c = Context::with_epoch(i16::MAX - 1, Rules::all());
    let last = producer(1_001, i16::MAX - 1);
    assert_eq!(c.init(Some(producer(1_001, 4))), Err(ErrorCode::ProducerFenced));
    assert_eq!(c.init(Some(last)), Ok(producer(1_002, 0)));
    assert_eq!(c.init(Some(last)), Ok(producer(1_002, 0)), "the answer was lost: the same id again");
    assert_eq!(c.init(None), Ok(producer(1_002, 1)));
    assert_eq!(c.init(Some(last)), Err(ErrorCode::ProducerFenced));
}

#[test]
fn the_last_epoch_is_kept_for_a_fence() {
    let mut c = Context::with_epoch(i16::MAX - 1, Rules::all());
    let last = producer(1_001, i16::MAX - 1);
    c.add(last, &[0]);
    assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
    assert_eq!(c.known().producer_epoch, ProducerEpoch(i16::MAX));
    c.write_markers();
    for commit in [true, false] {
        assert_eq!(c.end(last, commit), Err(ErrorCode::ProducerFenced));
    }
    assert_eq!(c.init(Some(last)), Err(ErrorCode::ProducerFenced));
    assert_eq!(c.init(None), Ok(producer(1_002, 0)));
}

/// A producer whose transaction was open for too long: it is aborted, its markers are written.
fn timed_out(version: i16) -> (Context, Producer) {
    let mut c = Context::at_version(version);
    let mine = c.open();
    c.advance(60_000);
    assert_eq!(c.status(), Status::Ongoing, "not before its time");
    c.advance(10_000);
    assert_eq!((c.status(), c.known().producer_epoch), (Status::PrepareAbort, ProducerEpoch(1)));
    let (_, marker, _) = c.markers[0].clone();
    assert_eq!((marker.commit, marker.producer_epoch), (false, ProducerEpoch(1)), "late batches are refused by it");
    assert_eq!(marker.transaction_version, version);
    for commit in [true, false] {
        assert_eq!(c.end(mine, commit), Err(ErrorCode::ConcurrentTransactions));
    }
    assert_eq!(c.init(Some(mine)), Err(ErrorCode::ConcurrentTransactions));
    c.write_markers();
    assert_eq!(c.status(), Status::CompleteAbort);
    assert_eq!(c.add(mine, &[0]), ErrorCode::ProducerFenced);
    assert_eq!(c.verify(mine, &[0]), [ErrorCode::ProducerFenced]);
    (c, mine)
}

#[test]
fn a_transaction_that_is_open_too_long_is_aborted_and_its_producer_goes_on_once_it_has_heard_of_it() {
    let (mut c, mine) = timed_out(2);
    let records = c.log.len();
    let next = producer(mine.id.0, 1);
    assert_eq!(c.end(mine, true), Err(ErrorCode::InvalidTxnState), "it is not committed");
    for _ in 0..2 {
        assert_eq!(c.end(mine, false), Ok(next));
    }
    assert_eq!(c.log.len(), records, "nothing of this is stored");
    assert_eq!(c.add(next, &[0]), ErrorCode::None);
    assert_eq!(c.end(mine, false), Err(ErrorCode::ProducerFenced), "the epoch before is of no use any more");
    assert_eq!(c.end(next, true), Ok(producer(mine.id.0, 2)));
}

#[test]
fn a_transaction_is_open_too_long_whatever_the_wall_clock_says() {
    let mut c = Context::new();
    c.open();
    let mut next = c.fail_over();
    for c in [&mut c, &mut next] {
        // Set back, or ahead and not believed: by it the transaction has yet to begin.
        c.set_back_ms = 3_600_000;
        c.advance(60_000);
        assert_eq!(c.status(), Status::Ongoing, "not before its time");
        c.advance(10_000);
        assert_eq!(c.status(), Status::PrepareAbort);
    }
}

#[test]
fn a_producer_whose_transaction_was_open_too_long_asks_for_its_next_epoch() {
    for version in [0, 1, 2] {
        let (mut c, mine) = timed_out(version);
        let next = producer(mine.id.0, 1);
        if version < 2 {
            for commit in [true, false] {
                assert_eq!(c.end(mine, commit), Err(ErrorCode::ProducerFenced));
            }
        }
        assert_eq!(c.init(Some(mine)), Ok(next));
        assert_eq!(c.init(Some(mine)), Ok(next), "the answer was lost: no second epoch");
        assert_eq!(c.add(mine, &[0]), ErrorCode::ProducerFenced);
        assert_eq!(c.add(next, &[0]), ErrorCode::None);
    }
}

#[test]
fn a_producer_whose_transaction_was_open_too_long_is_fenced_once_somebody_else_has_come() {
    for version in [0, 2] {
        let (mut c, mine) = timed_out(version);
        let other = c.init(None).unwrap();
        assert_eq!(other, producer(mine.id.0, 2));
        for commit in [true, false] {
            assert_eq!(c.end(mine, commit), Err(ErrorCode::ProducerFenced));
        }
        assert_eq!(c.init(Some(mine)), Err(ErrorCode::ProducerFenced));
        assert_eq!(c.add(other, &[0]), ErrorCode::None);
        assert_eq!(c.init(Some(mine)), Err(ErrorCode::ProducerFenced));
        assert_eq!(c.status(), Status::Ongoing);
    }
}

#[test]
fn a_producer_whose_last_epoch_timed_out_goes_on_in_none() {
    let mut c = Context::with_epoch(i16::MAX - 1, Rules::all());
    let last = producer(1_001, i16::MAX - 1);
    c.add(last, &[0]);
    c.advance(70_000);
    assert_eq!((c.status(), c.known().producer_epoch), (Status::PrepareAbort, ProducerEpoch(i16::MAX)));
    c.write_markers();
    for commit in [true, false] {
        assert_eq!(c.end(last, commit), Err(ErrorCode::ProducerFenced));
    }
    assert_eq!(c.init(Some(last)), Err(ErrorCode::ProducerFenced));
    assert_eq!(c.init(None), Ok(producer(1_002, 0)));
}

#[test]
fn a_transaction_times_out_under_the_next_coordinator_too() {
    let mut c = Context::new();
    c.open();
    c.advance(50_000);
    let mut c = c.fail_over();
    c.advance(11_000);
    assert_eq!(c.status(), Status::Ongoing);
    c.advance(9_000);
    assert_eq!(c.status(), Status::PrepareAbort);
}

#[test]
fn an_id_without_a_transaction_is_forgotten_in_time_and_an_open_one_never() {
    let mut c = Context::new();
    let mine = c.init(None).unwrap();
    c.advance(604_800_000 - 3_600_000);
    assert_eq!(c.status(), Status::Empty);
    c.advance(2 * 3_600_000);
    assert_eq!(c.describe().error, ErrorCode::TransactionalIdNotFound);
    assert_eq!(c.replayed(), *c.shard.state());
    assert_eq!(c.add(mine, &[0]), ErrorCode::InvalidProducerIdMapping);
    assert_eq!(c.end(mine, false), Err(ErrorCode::InvalidProducerIdMapping));
    assert_eq!(c.init(Some(mine)), Ok(producer(1_002, 0)));
    c.add(producer(1_002, 0), &[0]);
    c.end(producer(1_002, 0), true).unwrap();
    c.advance(2 * 604_800_000);
    assert_eq!(c.status(), Status::PrepareCommit, "its markers are not written");
}

#[test]
fn bad_requests_are_refused_as_kafka_refuses_them() {
    let mut c = Context::new();
    for timeout_ms in [0, -1, 900_001] {
        let request = InitProducerIdRequest { transactional_id: ID.into(), timeout_ms, expected: None };
        let token = c.send(TransactionRequest::InitProducerId(request));
        assert_eq!(c.inited(token), Err(ErrorCode::InvalidTransactionTimeout));
    }
    let token = c.send(init_request_of("", None));
    assert_eq!(c.inited(token), Err(ErrorCode::InvalidRequest));
    assert_eq!(c.add(producer(1, 0), &[0]), ErrorCode::InvalidProducerIdMapping);
    assert_eq!(c.end(producer(1, 0), true), Err(ErrorCode::InvalidProducerIdMapping));
    assert_eq!(c.end_at(0, producer(1, 0), true), Err(ErrorCode::InvalidProducerIdMapping));
    assert_eq!(c.describe().error, ErrorCode::TransactionalIdNotFound);
}

#[test]
fn a_list_shows_what_its_filters_let_through() {
    let mut c = Context::new();
    c.open();
    c.advance(5_000);
    let token = c.send(init_request_of("other", None));
    assert!(matches!(c.reply(token), Some(TransactionResponse::InitProducerId(_))));
    let all = ListTransactionsRequest { open_longer_than_ms: -1, ..ListTransactionsRequest::default() };
    assert_eq!(c.list(all.clone()), [ID, "other"]);
    assert_eq!(c.list(ListTransactionsRequest { states: vec!["Ongoing".into()], ..all.clone() }), [ID]);
    assert_eq!(c.list(ListTransactionsRequest { states: vec!["ongoing".into()], ..all.clone() }), [""; 0]);
    assert_eq!(c.list(ListTransactionsRequest { producer_ids: vec![ProducerId(1_002)], ..all.clone() }), ["other"]);
    assert_eq!(c.list(ListTransactionsRequest { open_longer_than_ms: 4_999, ..all.clone() }), [ID]);
    assert_eq!(c.list(ListTransactionsRequest { open_longer_than_ms: 5_000, ..all }), [""; 0]);
}
