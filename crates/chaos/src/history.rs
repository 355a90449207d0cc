//! A history in memory: what the lines say, with numbers for names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use crate::event::{self, Event, Fault, Isolation, Note, Outcome, Run, TransactionEnd, VERSION};
use crate::names::Names;

/// Why a history cannot be judged.
#[derive(thiserror::Error, Debug)]
pub enum HistoryError {
    /// It cannot be read.
    #[error("the history cannot be read")]
    Io(#[from] std::io::Error),
    /// A line is none.
    #[error("line {line} of the history: {source}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It was written by another version of this program.
    #[error("the history has version {0}; this program reads version {VERSION}")]
    Version(u32),
    /// A line contradicts another one.
    #[error("the history contradicts itself: {0}")]
    Contradiction(String),
    /// Something was written that nobody read back.
    #[error("nobody read {0} back: a run that was cut off says nothing")]
    NotReadBack(String),
    /// It says too little.
    #[error("too little was tried: {0}")]
    TooLittle(String),
}

/// What was sent. Numbers are those of [`History`]'s names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Produce {
    pub(crate) process: u32,
    pub(crate) partition: u32,
    pub(crate) seq: u64,
    pub(crate) value: u32,
    pub(crate) invoke: u64,
    pub(crate) complete: u64,
    pub(crate) outcome: Outcome,
    pub(crate) offset: Option<i64>,
    pub(crate) idempotent: bool,
    pub(crate) transaction: Option<u32>,
}

/// One record that a consumer was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Polled {
    /// One assignment: of a process, its session and a partition.
    pub(crate) session: u32,
    pub(crate) offset: i64,
    pub(crate) value: u32,
    pub(crate) complete: u64,
}

/// What one assignment of a partition to a process is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Session {
    pub(crate) process: u32,
    pub(crate) number: u64,
    pub(crate) partition: u32,
    pub(crate) group: u32,
    pub(crate) isolation: Isolation,
    pub(crate) generation: Option<i64>,
}

/// A commit, or what is committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupOffset {
    pub(crate) group: u32,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) invoke: u64,
    pub(crate) complete: u64,
    pub(crate) outcome: Outcome,
    pub(crate) transaction: Option<u32>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transaction {
    pub(crate) invoke: u64,
    pub(crate) complete: u64,
    pub(crate) end: TransactionEnd,
}

/// The files of one replica.
#[derive(Clone, Default, Debug)]
pub(crate) struct Replica {
    pub(crate) in_sync: bool,
    pub(crate) batches: Vec<(i64, i64, u32)>,
    pub(crate) records: Vec<(i64, u32)>,
    pub(crate) markers: BTreeSet<i64>,
}

/// Offsets and values.
pub(crate) type Records = Vec<(i64, u32)>;

/// See the module.
#[derive(Clone, Default, Debug)]
pub struct History {
    /// What run it is.
    pub run: Run,
    /// The harm that was done.
    pub faults: Vec<Fault>,
    /// What was worth telling.
    pub notes: Vec<Note>,
    pub(crate) produces: Vec<Produce>,
    pub(crate) polls: Vec<Polled>,
    pub(crate) commits: Vec<GroupOffset>,
    pub(crate) committed: Vec<GroupOffset>,
    pub(crate) transactions: BTreeMap<u32, Transaction>,
    /// By partition and what the reader was to see.
    pub(crate) logs: BTreeMap<(u32, Isolation), Records>,
    pub(crate) ends: BTreeMap<u32, i64>,
    /// By partition and node.
    pub(crate) replicas: BTreeMap<(u32, i32), Replica>,
    pub(crate) values: Names<String>,
    pub(crate) partitions: Names<(String, i32)>,
    pub(crate) sessions: Names<Session>,
    /// Processes, groups, transactions and digests.
    pub(crate) words: Names<String>,
}

impl History {
    /// Reads the lines of a history.
    pub fn read(mut lines: impl BufRead) -> Result<History, HistoryError> {
        let (mut history, mut text, mut line) = (History::default(), String::new(), 0);
        loop {
            text.clear();
            line += 1;
            if lines.read_line(&mut text)? == 0 {
                return Ok(history);
            }
            if !text.trim().is_empty() {
                let event = serde_json::from_str(&text).map_err(|source| HistoryError::Line { line, source })?;
                history.add(event)?;
            }
        }
    }

    /// Takes one event in.
    pub fn add(&mut self, event: Event) -> Result<(), HistoryError> {
        match event {
            Event::Run(run) if run.version != VERSION => return Err(HistoryError::Version(run.version)),
            Event::Run(run) => self.run = run,
            Event::Produce(produce) => self.add_produce(produce),
            Event::Poll(poll) => self.add_poll(poll),
            Event::Commit(commit) => self.add_commit(commit),
            Event::Committed(committed) => self.add_committed(committed),
            Event::Transaction(transaction) => return self.add_transaction(transaction),
            Event::Log(log) => self.add_log(log),
            Event::End(end) => return self.add_end(end),
            Event::Replica(replica) => self.add_replica(replica),
            Event::Fault(fault) => self.faults.push(fault),
            Event::Note(note) => self.notes.push(note),
        }
        Ok(())
    }

    fn add_produce(&mut self, produce: event::Produce) {
        let produce = Produce {
            process: self.words.number(produce.process),
            partition: self.partitions.number((produce.topic, produce.partition)),
            seq: produce.seq,
            value: self.values.number(produce.value),
            invoke: produce.invoke,
            complete: produce.complete,
            outcome: produce.outcome,
            // Clients say "none" by a negative one, too.
            offset: produce.offset.filter(|offset| *offset >= 0),
            idempotent: produce.idempotent,
            transaction: produce.transaction.map(|name| self.words.number(name)),
        };
        self.produces.push(produce);
    }

    fn add_poll(&mut self, poll: event::Poll) {
        let session = Session {
            process: self.words.number(poll.process),
            number: poll.session,
            partition: self.partitions.number((poll.topic, poll.partition)),
            group: self.words.number(poll.group),
            isolation: poll.isolation,
            generation: poll.generation,
        };
        let session = self.sessions.number(session);
        for (offset, value) in poll.records {
            let value = self.values.number(value);
            self.polls.push(Polled { session, offset, value, complete: poll.complete });
        }
    }

    fn add_commit(&mut self, commit: event::Commit) {
        let commit = GroupOffset {
            group: self.words.number(commit.group),
            partition: self.partitions.number((commit.topic, commit.partition)),
            offset: commit.offset,
            invoke: commit.invoke,
            complete: commit.complete,
            outcome: commit.outcome,
            transaction: commit.transaction.map(|name| self.words.number(name)),
        };
        self.commits.push(commit);
    }

    fn add_committed(&mut self, committed: event::Committed) {
        let committed = GroupOffset {
            group: self.words.number(committed.group),
            partition: self.partitions.number((committed.topic, committed.partition)),
            offset: committed.offset,
            invoke: committed.invoke,
            complete: committed.complete,
            outcome: Outcome::Ok,
            transaction: None,
        };
        self.committed.push(committed);
    }

    fn add_transaction(&mut self, transaction: event::Transaction) -> Result<(), HistoryError> {
        let event::Transaction { name, invoke, complete, end, .. } = transaction;
        let number = self.words.number(name.clone());
        match self.transactions.insert(number, Transaction { invoke, complete, end }) {
            None => Ok(()),
            Some(_) => Err(HistoryError::Contradiction(format!("transaction {name} ends twice"))),
        }
    }

    fn add_log(&mut self, log: event::Log) {
        let partition = self.partitions.number((log.topic, log.partition));
        let records = number_records(&mut self.values, log.records);
        self.logs.entry((partition, log.isolation)).or_default().extend(records);
    }

    fn add_end(&mut self, end: event::End) -> Result<(), HistoryError> {
        let event::End { topic, partition, high_watermark } = end;
        let number = self.partitions.number((topic, partition));
        match self.ends.insert(number, high_watermark) {
            None => Ok(()),
            Some(_) => Err(HistoryError::Contradiction(format!("{} ends twice", self.place(number)))),
        }
    }

    fn add_replica(&mut self, replica: event::Replica) {
        let partition = self.partitions.number((replica.topic, replica.partition));
        let kept = self.replicas.entry((partition, replica.node)).or_default();
        kept.in_sync = replica.in_sync;
        let words = &mut self.words;
        kept.batches
            .extend(replica.batches.into_iter().map(|(first, last, digest)| (first, last, words.number(digest))));
        kept.records.extend(number_records(&mut self.values, replica.records));
        kept.markers.extend(replica.markers);
    }

    /// A partition's name for people.
    pub(crate) fn place(&self, partition: u32) -> String {
        let (topic, index) = self.partitions.name(partition);
        if topic.is_empty() { format!("partition {index}") } else { format!("{topic}-{index}") }
    }

    /// A value.
    pub(crate) fn value(&self, value: u32) -> &str {
        self.values.name(value)
    }

    /// The name of a process, a group or a transaction.
    pub(crate) fn word(&self, word: u32) -> &str {
        self.words.name(word)
    }

    /// The final read of a partition as a reader of this isolation should have seen it: the other one's where only that was
    /// made, as it is without transactions.
    pub(crate) fn log(&self, partition: u32, isolation: Isolation) -> &[(i64, u32)] {
        let other = match isolation {
            Isolation::ReadUncommitted => Isolation::ReadCommitted,
            Isolation::ReadCommitted => Isolation::ReadUncommitted,
        };
        let read = self.logs.get(&(partition, isolation)).or_else(|| self.logs.get(&(partition, other)));
        read.map(Vec::as_slice).unwrap_or_default()
    }

    /// Partitions that something was sent to or read from.
    pub(crate) fn all_partitions(&self) -> impl Iterator<Item = u32> {
        0..u32::try_from(self.partitions.len()).expect("numbers are 32 bits")
    }
}

fn number_records(values: &mut Names<String>, records: Vec<(i64, String)>) -> Records {
    records.into_iter().map(|(offset, value)| (offset, values.number(value))).collect()
}
