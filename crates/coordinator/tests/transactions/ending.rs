//! Transactions from their first partition to their last marker: `R45`, `R51`.

use coordinator::transaction::Status;
use coordinator::transaction::request::Producer;
use model::{ErrorCode, ProducerEpoch, ProducerId, Rules};

use crate::context::{Context, ID, partitions, producer};

#[test]
fn a_commit_reaches_every_partition_and_is_complete_when_the_last_marker_is_written() {
    let mut c = Context::new();
    let mine = c.open();
    assert_eq!(c.describe().state, "Ongoing");
    let next = c.end(mine, true).unwrap();
    assert_eq!(next, producer(mine.id.0, 1), "the next transaction has an epoch of its own");
    assert_eq!(c.describe().state, "PrepareCommit");
    let (id, marker, told) = c.markers.remove(0);
    assert_eq!((id.as_str(), told), (ID, partitions(&[0, 1])));
    assert_eq!((marker.producer_id, marker.producer_epoch), (mine.id, ProducerEpoch(1)), "R51: the bumped epoch");
    assert!(marker.commit && marker.transaction_version == 2);
    c.marked(ID, &marker, &partitions(&[0]));
    assert_eq!(c.status(), Status::PrepareCommit);
    c.marked(ID, &marker, &partitions(&[0]));
    assert_eq!(c.status(), Status::PrepareCommit, "one marker told of twice is one marker");
    c.marked(ID, &marker, &partitions(&[1]));
    assert_eq!((c.status(), c.known().partitions.is_empty()), (Status::CompleteCommit, true));
    assert_eq!(c.add(next, &[2]), ErrorCode::None);
    assert_eq!(c.known().partitions, partitions(&[2]));
    assert_eq!(c.shard.state(), &c.replayed());
}

#[test]
fn an_abort_of_an_old_client_keeps_the_epoch() {
    for version in [0, 1, 2] {
        let mut c = Context::at_version(version);
        let mine = c.open();
        assert_eq!(c.end_at(0, mine, false), Ok(Producer::NONE));
        let (_, marker, _) = c.markers[0].clone();
        assert_eq!((marker.producer_epoch, marker.commit, marker.transaction_version), (mine.epoch, false, 0));
        c.write_markers();
        assert_eq!((c.status(), c.known().producer()), (Status::CompleteAbort, mine));
        assert_eq!(c.end_at(0, mine, false), Ok(Producer::NONE), "a repeated request is answered again");
        assert_eq!(c.end_at(0, mine, true), Err(ErrorCode::InvalidTxnState));
        assert_eq!(c.add(mine, &[2]), ErrorCode::None);
        let known = c.known();
        assert_eq!((known.status, known.previous_producer_id), (Status::Ongoing, mine.id));
    }
}

#[test]
fn while_markers_are_written_everything_is_concurrent_whatever_it_asks() {
    for version in [0, 2] {
        let mut c = Context::at_version(version);
        let mine = c.open();
        let next = c.end(mine, true).unwrap();
        let next = if next == Producer::NONE { mine } else { next };
        for who in [mine, next] {
            assert_eq!(c.end(who, true), Err(ErrorCode::ConcurrentTransactions));
            assert_eq!(c.end(who, false), Err(ErrorCode::ConcurrentTransactions));
            assert_eq!(c.end_at(0, who, false), Err(ErrorCode::ConcurrentTransactions));
            assert_eq!(c.add(who, &[5]), ErrorCode::ConcurrentTransactions);
            assert_eq!(c.verify(who, &[0]), [ErrorCode::ConcurrentTransactions]);
            assert_eq!(c.init(Some(who)), Err(ErrorCode::ConcurrentTransactions));
        }
        assert_eq!(c.init(None), Err(ErrorCode::ConcurrentTransactions));
        assert_eq!((c.status(), c.log.len()), (Status::PrepareCommit, 3));
    }
}

#[test]
fn a_repeated_end_is_known_by_its_epoch() {
    for commit in [true, false] {
        let mut c = Context::new();
        let mine = c.open();
        let next = c.end(mine, commit).unwrap();
        c.write_markers();
        let records = c.log.len();
        assert_eq!(c.end(mine, commit), Ok(next));
        assert_eq!(c.end(mine, !commit), Err(ErrorCode::InvalidTxnState), "the outcome is decided");
        assert_eq!(c.end(producer(mine.id.0, 3), commit), Err(ErrorCode::ProducerFenced));
        assert_eq!(c.end(producer(7, 0), commit), Err(ErrorCode::InvalidProducerIdMapping));
        assert_eq!(c.log.len(), records, "nothing of this is stored");
        assert_eq!(c.end(next, true), Err(ErrorCode::InvalidTxnState), "there is nothing to commit");
        assert_eq!(c.end(next, false), Ok(producer(mine.id.0, 2)), "an abort of nothing brings a new epoch");
        assert_eq!((c.status(), c.markers.len()), (Status::CompleteAbort, 0), "without a partition at once");
    }
}

#[test]
fn a_repeated_end_is_known_after_a_change_of_coordinator() {
    let mut c = Context::new();
    let mine = c.open();
    let next = c.end(mine, true).unwrap();
    c.write_markers();
    let mut c = c.fail_over();
    assert_eq!(c.end(mine, true), Ok(next));
}

#[test]
fn an_end_that_repeats_nothing_is_fenced_in_an_empty_or_open_transaction() {
    let mut c = Context::new();
    let old = c.init(None).unwrap();
    let mine = c.init(None).unwrap();
    for commit in [true, false] {
        assert_eq!(c.end(old, commit), Err(ErrorCode::ProducerFenced));
    }
    assert_eq!(c.end(mine, true), Err(ErrorCode::InvalidTxnState));
    c.add(mine, &[0]);
    for commit in [true, false] {
        assert_eq!(c.end(old, commit), Err(ErrorCode::ProducerFenced));
        assert_eq!(c.end_at(0, old, commit), Err(ErrorCode::ProducerFenced));
    }
    assert_eq!(c.status(), Status::Ongoing);
}

#[test]
fn an_end_is_no_repetition_of_an_older_clients_transaction() {
    for commit in [true, false] {
        let mut c = Context::new();
        let old = c.init(None).unwrap();
        let mine = c.init(None).unwrap();
        assert_eq!(c.add(mine, &[0]), ErrorCode::None);
        assert_eq!(c.end_at(0, mine, commit), Ok(Producer::NONE));
        c.write_markers();
        assert_eq!(c.end(old, commit), Err(ErrorCode::ProducerFenced), "its epoch is the one before, and not its own");
        assert_eq!(c.end_at(0, mine, commit), Ok(Producer::NONE));
    }
}

#[test]
fn an_empty_transaction_of_an_old_client_cannot_be_ended() {
    let mut c = Context::at_version(0);
    let mine = c.init(None).unwrap();
    for commit in [true, false] {
        assert_eq!(c.end(mine, commit), Err(ErrorCode::InvalidTxnState));
    }
}

#[test]
fn the_last_epoch_but_one_ends_its_transaction_and_the_next_has_another_id() {
    let mut c = Context::with_epoch(i16::MAX - 1, Rules::all());
    let last = producer(1_001, i16::MAX - 1);
    assert_eq!(c.add(last, &[0]), ErrorCode::None);
    let next = c.end(last, true).unwrap();
    assert_eq!(next, producer(1_002, 0));
    let (_, marker, _) = c.markers[0].clone();
    assert_eq!((marker.producer_id, marker.producer_epoch), (last.id, ProducerEpoch(i16::MAX)));
    assert_eq!(c.known().next_producer_id, next.id);
    assert_eq!(c.add(next, &[1]), ErrorCode::ConcurrentTransactions, "it is not in force yet");
    let mut c = c.fail_over();
    c.write_markers();
    assert_eq!((c.status(), c.known().producer()), (Status::CompleteCommit, next));
    assert_eq!((c.known().previous_producer_id, c.known().next_producer_id), (last.id, ProducerId::NONE));
    assert_eq!(c.end(last, true), Ok(next), "a repeated request is known by the id before");
    assert_eq!(c.end(last, false), Err(ErrorCode::InvalidTxnState));
    assert_eq!(c.init(Some(last)), Err(ErrorCode::ProducerFenced), "the last epoch is forgotten with its coordinator");
    assert_eq!(c.add(next, &[1]), ErrorCode::None);
    assert_eq!(c.end(last, true), Err(ErrorCode::InvalidProducerIdMapping));
}

#[test]
fn a_producer_that_never_heard_of_its_new_id_goes_on_with_it() {
    let mut c = Context::with_epoch(i16::MAX - 1, Rules::all());
    let last = producer(1_001, i16::MAX - 1);
    c.add(last, &[0]);
    let next = c.end(last, true).unwrap();
    c.write_markers();
    assert_eq!(c.init(Some(last)), Ok(next));
    assert_eq!(c.init(Some(producer(1_001, 5))), Err(ErrorCode::ProducerFenced));
}

#[test]
fn a_partition_is_verified_where_it_is_in_the_open_transaction() {
    let mut c = Context::new();
    assert_eq!(c.verify(producer(1, 0), &[0]), [ErrorCode::InvalidProducerIdMapping]);
    let mine = c.open();
    let in_and_out = [ErrorCode::None, ErrorCode::None, ErrorCode::TransactionAbortable];
    assert_eq!(c.verify(mine, &[0, 1, 2]), in_and_out);
    assert_eq!(c.verify(producer(mine.id.0, 9), &[0]), [ErrorCode::ProducerFenced]);
    assert_eq!(c.verify(producer(9, 0), &[0]), [ErrorCode::InvalidProducerIdMapping]);
    let next = c.end(mine, true).unwrap();
    c.write_markers();
    assert_eq!(c.verify(next, &[0]), [ErrorCode::TransactionAbortable], "the next transaction is another one");
}

#[test]
fn partitions_that_are_in_already_are_not_stored_again() {
    let mut c = Context::new();
    let mine = c.open();
    let records = c.log.len();
    assert_eq!(c.add(mine, &[1, 0]), ErrorCode::None);
    assert_eq!(c.log.len(), records);
    assert_eq!(c.add(mine, &[1, 2]), ErrorCode::None);
    assert_eq!(c.known().partitions, partitions(&[0, 1, 2]));
    assert_eq!(c.add(producer(mine.id.0, 7), &[3]), ErrorCode::ProducerFenced);
    assert_eq!(c.add(producer(8, 0), &[3]), ErrorCode::InvalidProducerIdMapping);
}
