//! One planted anomaly of each class is found, and nothing in a sound run.

use std::collections::{BTreeMap, BTreeSet};

use super::{Class, Verdict, check};
use crate::event::{
    Commit, Committed, End, Event, Isolation, Log, Outcome, Poll, Produce, Replica, Transaction, TransactionEnd,
};
use crate::history::{History, HistoryError};

/// A run before it is told: two producers in turn in one partition, ten records each; a consumer, commits, three replicas.
#[derive(Clone)]
struct Plan {
    produces: Vec<Produce>,
    log: Vec<(i64, String)>,
    high_watermark: i64,
    polls: Vec<Poll>,
    commits: Vec<Commit>,
    committed: Vec<Committed>,
    replicas: BTreeMap<i32, Replica>,
    transactions: Vec<Transaction>,
    /// What a read_committed reader saw at the end, where there was one.
    committed_log: Option<Vec<(i64, String)>>,
    others: Vec<Event>,
}

impl Plan {
    /// The last record of the second producer is of unknown outcome, and not there.
    fn sound() -> Plan {
        let mut produces: Vec<Produce> = (0..20).map(produce).collect();
        produces[19].outcome = Outcome::Unknown;
        produces[19].offset = None;
        let log: Vec<(i64, String)> =
            produces[..19].iter().map(|p| (p.offset.expect("acknowledged"), p.value.clone())).collect();
        let polls = log.iter().map(|(offset, value)| poll(*offset, value)).collect();
        let commits = vec![commit(5, 40, Outcome::Ok), commit(9, 42, Outcome::Unknown), commit(12, 44, Outcome::Ok)];
        let committed = vec![committed(-1, 39), committed(5, 42), committed(12, 46)];
        let replicas = (1..=3).map(|node| (node, replica(node, &log))).collect();
        let (transactions, committed_log, others) = (Vec::new(), None, Vec::new());
        Plan {
            produces,
            log,
            high_watermark: 19,
            polls,
            commits,
            committed,
            replicas,
            transactions,
            committed_log,
            others,
        }
    }

    /// The records of producer b are of transactions of two: 0 and 1 are committed, 2 is aborted, of 3 nobody knows and it
    /// is committed, 4 is never ended. Nobody consumes.
    fn transactional() -> Plan {
        let mut plan = Plan::sound();
        (plan.polls, plan.commits, plan.committed) = (Vec::new(), Vec::new(), Vec::new());
        for (index, produce) in plan.produces.iter_mut().filter(|p| p.process == "b").enumerate() {
            produce.transaction = Some(format!("t{}", index / 2));
        }
        let ends =
            [TransactionEnd::Committed, TransactionEnd::Committed, TransactionEnd::Aborted, TransactionEnd::Unknown];
        plan.transactions = ends.iter().enumerate().map(|(index, end)| transaction(index, *end)).collect();
        let undecided = ["b4", "b5", "b8", "b9"];
        let is_seen = |value: &str| !undecided.contains(&value);
        plan.committed_log = Some(plan.log.iter().filter(|(_, value)| is_seen(value)).cloned().collect());
        plan
    }

    fn verdict(self) -> Result<Verdict, HistoryError> {
        let mut events = self.others;
        events.extend(self.produces.into_iter().map(Event::Produce));
        events.extend(self.polls.into_iter().map(Event::Poll));
        events.extend(self.commits.into_iter().map(Event::Commit));
        events.extend(self.committed.into_iter().map(Event::Committed));
        events.extend(self.replicas.into_values().map(Event::Replica));
        events.extend(self.transactions.into_iter().map(Event::Transaction));
        let log = |isolation, records| Event::Log(Log { topic: String::new(), partition: 0, isolation, records });
        events.push(log(Isolation::ReadUncommitted, self.log));
        events.extend(self.committed_log.map(|records| log(Isolation::ReadCommitted, records)));
        events.push(Event::End(End { topic: String::new(), partition: 0, high_watermark: self.high_watermark }));
        // What is judged has been a line of a file.
        let lines: Vec<String> = events.iter().map(Event::line).collect();
        check(&History::read(lines.join("\n").as_bytes())?)
    }

    fn classes(self) -> BTreeSet<Class> {
        self.verdict().expect("it can be judged").anomalies.into_keys().collect()
    }

    fn poll_of(&mut self, offset: i64) -> &mut Poll {
        self.polls.iter_mut().find(|poll| poll.records[0].0 == offset).expect("polled")
    }

    fn no_files(&mut self) {
        self.replicas.clear();
    }

    fn no_polls(&mut self) {
        self.polls.clear();
    }
}

fn produce(index: u64) -> Produce {
    let process = if index.is_multiple_of(2) { "a" } else { "b" };
    Produce {
        process: process.to_owned(),
        topic: String::new(),
        partition: 0,
        seq: index / 2,
        value: format!("{process}{}", index / 2),
        invoke: 10 * index,
        complete: 10 * index + 15,
        outcome: Outcome::Ok,
        offset: i64::try_from(index).ok(),
        error: String::new(),
        idempotent: true,
        transaction: None,
    }
}

fn poll(offset: i64, value: &str) -> Poll {
    Poll {
        process: "c".to_owned(),
        group: "g".to_owned(),
        session: 1,
        topic: String::new(),
        partition: 0,
        invoke: 300,
        complete: 300 + u64::try_from(offset).expect("positive"),
        isolation: Isolation::ReadUncommitted,
        generation: Some(1),
        records: vec![(offset, value.to_owned())],
    }
}

fn commit(offset: i64, invoke: u64, outcome: Outcome) -> Commit {
    Commit {
        process: "c".to_owned(),
        group: "g".to_owned(),
        topic: String::new(),
        partition: 0,
        offset,
        invoke: 10 * invoke,
        complete: 10 * invoke + 10,
        outcome,
        error: String::new(),
        transaction: None,
    }
}

fn committed(offset: i64, invoke: u64) -> Committed {
    let (group, topic) = ("g".to_owned(), String::new());
    Committed { group, topic, partition: 0, offset, invoke: 10 * invoke, complete: 10 * invoke + 2 }
}

fn transaction(index: usize, end: TransactionEnd) -> Transaction {
    let complete = 400;
    Transaction { name: format!("t{index}"), invoke: 350, complete, end, error: String::new() }
}

fn replica(node: i32, log: &[(i64, String)]) -> Replica {
    let batches = log.iter().map(|(offset, _)| (*offset, *offset, format!("digest {offset}"))).collect();
    let (records, topic) = (log.to_vec(), String::new());
    Replica { node, topic, partition: 0, in_sync: true, batches, records, markers: Vec::new() }
}

/// After `change` of a sound plan the checker finds `class`, and beside it at most what follows from the change.
fn plant(mut plan: Plan, class: Class, beside: &[Class], change: impl FnOnce(&mut Plan)) {
    change(&mut plan);
    let mut found = plan.classes();
    assert!(found.remove(&class), "{class:?} is not found, but {found:?}");
    assert!(found.iter().all(|other| beside.contains(other)), "{class:?} is found, and {found:?}");
}

fn none(mut plan: Plan, change: impl FnOnce(&mut Plan)) {
    change(&mut plan);
    assert_eq!(plan.verdict().expect("it can be judged").anomalies, BTreeMap::new());
}

#[test]
fn a_sound_run_has_no_anomaly() {
    none(Plan::sound(), |_| ());
    none(Plan::transactional(), |_| ());
    let figures = Plan::transactional().verdict().expect("it can be judged").figures;
    assert_eq!((figures.acknowledged, figures.unknown, figures.read_back), (19, 1, 19));
    assert_eq!((figures.committed, figures.aborted, figures.undecided), (2, 1, 1));
}

#[test]
fn an_unknown_record_may_be_in_the_log() {
    none(Plan::sound(), |plan| {
        plan.log.push((19, "b9".to_owned()));
        plan.high_watermark = 20;
        plan.replicas = (1..=3).map(|node| (node, replica(node, &plan.log))).collect();
    });
}

#[test]
fn what_nobody_read_back_and_what_holds_nothing_is_not_judged() {
    let mut plan = Plan::sound();
    plan.produces[3].partition = 1;
    assert!(matches!(plan.verdict(), Err(HistoryError::NotReadBack(_))));
    let mut plan = Plan::sound();
    plan.produces[3].value = "a0".to_owned();
    assert!(matches!(plan.verdict(), Err(HistoryError::Contradiction(_))));
    let mut plan = Plan::sound();
    plan.produces.iter_mut().for_each(|p| p.outcome = Outcome::Unknown);
    assert!(matches!(plan.verdict(), Err(HistoryError::TooLittle(_))));
    let torn = r#"{"type":"run","version":1}"#.to_owned() + "\n{\"type\":\"prod";
    assert!(matches!(History::read(torn.as_bytes()), Err(HistoryError::Line { line: 2, .. })));
    let later = r#"{"type":"run","version":2}"#;
    assert!(matches!(History::read(later.as_bytes()), Err(HistoryError::Version(2))));
}

#[test]
fn a_lost_record_is_found() {
    plant(Plan::sound(), Class::LostWrite, &[Class::InconsistentOffsets, Class::NonmonotonicSend], |plan| {
        plan.log[7] = (7, "b9".to_owned());
        plan.no_polls();
        plan.no_files();
    });
    // The end of the log.
    plant(Plan::sound(), Class::LostWrite, &[], |plan| {
        plan.log.pop();
        plan.high_watermark = 18;
        plan.polls.pop();
        plan.no_files();
    });
}

#[test]
fn a_lost_record_that_was_acknowledged_without_an_offset_is_found() {
    none(Plan::sound(), |plan| plan.produces[6].offset = None);
    none(Plan::sound(), |plan| plan.produces[6].offset = Some(-1));
    plant(Plan::sound(), Class::LostWrite, &[Class::NotInReplica], |plan| plan.produces[19].outcome = Outcome::Ok);
}

#[test]
fn a_committed_record_that_no_reader_of_committed_ones_sees_is_found() {
    let without = |gone: &[&str]| {
        let gone: Vec<String> = gone.iter().map(|value| (*value).to_owned()).collect();
        move |plan: &mut Plan| plan.committed_log.as_mut().expect("read").retain(|(_, value)| !gone.contains(value))
    };
    plant(Plan::transactional(), Class::LostWrite, &[], without(&["a3"]));
    plant(Plan::transactional(), Class::LostWrite, &[], without(&["b2", "b3"]));
}

#[test]
fn a_duplicate_is_found_where_one_copy_is_promised() {
    let twice = |plan: &mut Plan| {
        plan.log.push((19, "a9".to_owned()));
        plan.high_watermark = 20;
        plan.no_files();
    };
    plant(Plan::sound(), Class::Duplicate, &[], twice);
    none(Plan::sound(), |plan| {
        twice(plan);
        plan.produces.iter_mut().for_each(|p| p.idempotent = false);
    });
}

#[test]
fn records_behind_later_ones_of_their_producer_are_found() {
    plant(Plan::sound(), Class::NonmonotonicSend, &[], |plan| {
        // Concurrent, so that only the producer's own order is broken.
        (plan.produces[4].complete, plan.produces[6].complete) = (90, 90);
        (plan.produces[4].offset, plan.produces[6].offset) = (Some(6), Some(4));
        (plan.log[4].1, plan.log[6].1) = ("a3".to_owned(), "a2".to_owned());
        plan.no_polls();
        plan.no_files();
    });
}

#[test]
fn an_offset_that_is_another_ones_or_none_is_found() {
    // Acknowledged elsewhere than it is.
    plant(Plan::sound(), Class::InconsistentOffsets, &[Class::NotInReplica], |plan| {
        (plan.produces[3].offset, plan.produces[3].complete) = (Some(30), 1000);
    });
    // Two acknowledged at one place.
    plant(Plan::sound(), Class::InconsistentOffsets, &[Class::NotInReplica], |plan| {
        (plan.produces[5].offset, plan.produces[5].invoke) = (Some(4), 40);
    });
    // Another one was read than is there at the end, and that one is nowhere.
    plant(Plan::sound(), Class::InconsistentOffsets, &[Class::LostWrite], |plan| {
        plan.poll_of(6).records[0].1 = "b9".to_owned()
    });
    // In another partition than it was sent to.
    plant(Plan::sound(), Class::InconsistentOffsets, &[], |plan| {
        let records = vec![(0, "b9".to_owned())];
        let (topic, isolation) = ("other".to_owned(), Isolation::ReadUncommitted);
        plan.others.push(Event::Log(Log { topic, partition: 0, isolation, records }));
    });
}

#[test]
fn a_record_that_nobody_sent_is_found() {
    plant(Plan::sound(), Class::Phantom, &[], |plan| {
        plan.log.push((19, "never sent".to_owned()));
        plan.high_watermark = 20;
        plan.no_files();
    });
    plant(Plan::sound(), Class::Phantom, &[], |plan| plan.polls.push(poll(25, "never sent")));
}

#[test]
fn a_refused_or_an_aborted_record_that_shows_is_found() {
    plant(Plan::sound(), Class::AbortedRead, &[], |plan| {
        plan.produces[19].outcome = Outcome::Failed;
        plan.log.push((19, "b9".to_owned()));
        plan.high_watermark = 20;
        plan.no_files();
    });
    for aborted in [(9, "b4"), (17, "b8")] {
        let seen = (aborted.0, aborted.1.to_owned());
        plant(Plan::transactional(), Class::AbortedRead, &[], |plan| {
            let log = plan.committed_log.as_mut().expect("read");
            log.push(seen.clone());
            log.sort();
        });
        // Of what else a group that began in the middle should have seen nothing is said here.
        plant(Plan::transactional(), Class::AbortedRead, &[Class::Unseen], |plan| {
            plan.polls = vec![Poll { isolation: Isolation::ReadCommitted, complete: 900, ..poll(seen.0, &seen.1) }];
        });
    }
}

#[test]
fn a_record_of_unknown_outcome_that_a_consumer_saw_and_that_is_gone_is_found() {
    plant(Plan::sound(), Class::LostWrite, &[], |plan| {
        let seen = poll(19, &plan.produces[19].value);
        plan.polls.push(seen);
    });
}

#[test]
fn a_record_that_is_read_before_its_transaction_was_to_commit_is_found() {
    let early = |complete| {
        move |plan: &mut Plan| {
            plan.polls = vec![Poll { isolation: Isolation::ReadCommitted, complete, ..poll(1, "b0") }];
            plan.polls[0].records.insert(0, (0, "a0".to_owned()));
        }
    };
    plant(Plan::transactional(), Class::PrecommittedRead, &[], early(349));
    none(Plan::transactional(), early(351));
}

#[test]
fn a_transaction_of_which_a_part_is_seen_is_found() {
    // Of an unknown end: all or nothing.
    none(Plan::transactional(), |plan| {
        plan.committed_log.as_mut().expect("read").retain(|(_, value)| value != "b6" && value != "b7");
    });
    plant(Plan::transactional(), Class::TornTransaction, &[], |plan| {
        plan.committed_log.as_mut().expect("read").retain(|(_, value)| value != "b7");
    });
    plant(Plan::transactional(), Class::TornTransaction, &[Class::LostWrite], |plan| {
        plan.committed_log.as_mut().expect("read").retain(|(_, value)| value != "b3");
    });
}

#[test]
fn an_offset_below_one_acknowledged_before_is_found() {
    plant(Plan::sound(), Class::StaleOffset, &[Class::NonmonotonicSend], |plan| {
        (plan.produces[4].offset, plan.produces[7].offset) = (Some(7), Some(4));
        (plan.log[4].1, plan.log[7].1) = ("b3".to_owned(), "a2".to_owned());
        plan.no_polls();
        plan.no_files();
    });
}

#[test]
fn a_hole_is_found_where_no_marker_is() {
    let hole = |plan: &mut Plan| {
        plan.log[18].0 = 19;
        plan.high_watermark = 20;
        plan.produces[18].offset = Some(19);
        plan.polls.pop();
        plan.replicas = (1..=3).map(|node| (node, replica(node, &plan.log))).collect();
    };
    plant(Plan::sound(), Class::Hole, &[], hole);
    none(Plan::sound(), |plan| {
        hole(plan);
        plan.replicas.values_mut().for_each(|replica| replica.markers = vec![18]);
    });
    plant(Plan::sound(), Class::Hole, &[], |plan| {
        plan.log.swap(3, 4);
        plan.no_polls();
    });
    plant(Plan::sound(), Class::Hole, &[Class::ShortReplica], |plan| plan.high_watermark = 21);
}

#[test]
fn a_consumer_that_is_not_given_a_record_or_goes_back_is_found() {
    plant(Plan::sound(), Class::PollSkip, &[Class::Unseen], |plan| drop(plan.polls.remove(5)));
    plant(Plan::sound(), Class::NonmonotonicPoll, &[], |plan| plan.polls.push(poll(3, "b1")));
    // In another generation the assignment is the same; in another session it is another one.
    plant(Plan::sound(), Class::NonmonotonicPoll, &[], |plan| {
        plan.polls.push(Poll { generation: Some(2), ..poll(3, "b1") });
    });
    none(Plan::sound(), |plan| plan.polls.push(Poll { session: 2, ..poll(3, "b1") }));
}

#[test]
fn a_record_that_a_group_was_never_given_is_found() {
    // Between two assignments.
    plant(Plan::sound(), Class::Unseen, &[], |plan| {
        plan.polls.remove(5);
        plan.polls[5..].iter_mut().for_each(|poll| poll.session = 2);
    });
    // What is behind all that it read is still to come.
    none(Plan::sound(), |plan| drop(plan.polls.pop()));
}

#[test]
fn two_owners_in_one_generation_are_found() {
    let other = |generation| {
        move |plan: &mut Plan| {
            let process = "d".to_owned();
            plan.polls.push(Poll { process, generation: Some(generation), ..poll(18, "a9") });
        }
    };
    plant(Plan::sound(), Class::TwoOwners, &[], other(1));
    none(Plan::sound(), other(2));
}

#[test]
fn a_commit_that_goes_back_or_that_nobody_made_is_found() {
    for offset in [5, -1] {
        plant(Plan::sound(), Class::CommitWentBack, &[], |plan| plan.committed.push(committed(offset, 50)));
    }
    for offset in [5, 9] {
        none(Plan::sound(), |plan| plan.committed.push(committed(offset, 43)));
    }
    plant(Plan::sound(), Class::CommitInvented, &[], |plan| plan.committed.push(committed(13, 50)));
}

#[test]
fn the_offsets_of_a_transaction_count_as_it_ended() {
    let of = |end| {
        move |plan: &mut Plan| {
            plan.commits.push(Commit { transaction: Some("t".to_owned()), ..commit(15, 46, Outcome::Ok) });
            plan.transactions.push(Transaction { name: "t".to_owned(), ..transaction(0, end) });
            plan.transactions[0].complete = 480;
        }
    };
    let then = |end, offset| {
        move |plan: &mut Plan| {
            of(end)(plan);
            plan.committed.push(committed(offset, 50));
        }
    };
    none(Plan::sound(), then(TransactionEnd::Committed, 15));
    plant(Plan::sound(), Class::CommitWentBack, &[], then(TransactionEnd::Committed, 12));
    none(Plan::sound(), then(TransactionEnd::Aborted, 12));
    plant(Plan::sound(), Class::CommitInvented, &[], then(TransactionEnd::Aborted, 15));
    for offset in [12, 15] {
        none(Plan::sound(), then(TransactionEnd::Unknown, offset));
    }
}

#[test]
fn replicas_that_differ_or_lack_records_are_found() {
    let change = |change: fn(&mut Replica)| move |plan: &mut Plan| change(plan.replicas.get_mut(&2).expect("there"));
    let other_bytes: fn(&mut Replica) = |replica| replica.batches[11].2 = "other bytes".to_owned();
    plant(Plan::sound(), Class::DivergedReplica, &[], change(other_bytes));
    // The one that all others are compared with.
    plant(Plan::sound(), Class::DivergedReplica, &[], |plan| {
        plan.replicas.get_mut(&1).expect("there").batches[11].2 = "other bytes".to_owned();
    });
    let short: fn(&mut Replica) = |replica| drop(replica.batches.pop());
    plant(Plan::sound(), Class::ShortReplica, &[], change(short));
    let lacks: fn(&mut Replica) = |replica| drop(replica.records.remove(4));
    plant(Plan::sound(), Class::NotInReplica, &[], change(lacks));
    let moved: fn(&mut Replica) = |replica| replica.records[4].0 = 30;
    plant(Plan::sound(), Class::NotInReplica, &[], change(moved));
    let twice: fn(&mut Replica) = |replica| replica.records.push((30, "a2".to_owned()));
    plant(Plan::sound(), Class::NotInReplica, &[], change(twice));
    // Who is not in sync may lack what he likes, and above the high watermark everything may differ.
    none(Plan::sound(), |plan| {
        change(other_bytes)(plan);
        change(short)(plan);
        plan.replicas.get_mut(&2).expect("there").in_sync = false;
        plan.replicas.get_mut(&3).expect("there").batches.push((19, 19, "not yet committed".to_owned()));
    });
}

#[test]
fn every_anomaly_is_counted_and_some_are_told() {
    let mut plan = Plan::sound();
    (1..=100).for_each(|at| plan.committed.push(committed(13, 50 + at)));
    let found = plan.verdict().expect("it can be judged").anomalies.remove(&Class::CommitInvented).expect("found");
    assert_eq!((found.count, found.told.len()), (100, super::TOLD_MAX));
    assert_eq!(found.told[0], "group \"g\", partition 0: nobody committed 13");
    assert_eq!(
        (Class::AbortedRead.name(), Class::CommitInvented.name()),
        ("G1a".to_owned(), "commit-invented".to_owned())
    );
}
