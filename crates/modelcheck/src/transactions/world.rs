//! What there is: the coordinator with its log, partitions with theirs, clients, and what is under way between them.

use std::collections::{BTreeMap, BTreeSet};

use coordinator::transaction::request::Producer;
use coordinator::transaction::{
    Marker, PartitionSet, Status, TransactionFact, TransactionMetadata, TransactionResponse,
};
use coordinator::{BatchNumber, CoordinatorRecord, Now, Shard, TransactionConfig, TransactionShard};
use model::{LeaderEpoch, PartitionIndex, ProducerEpoch, ProducerId, Time};
use replication::producers::ProducerTable;

use super::groups::Group;
use super::{Bounds, Scenario};

/// The transactional id of everybody.
pub(crate) const ID: &str = "x";
/// The topic of the partitions.
pub(crate) const TOPIC: &str = "t";
/// `transaction.timeout.ms` of the clients.
pub(crate) const TIMEOUT_MS: i32 = 1_000;
/// The cluster's transaction version.
pub(crate) const CLUSTER_VERSION: i16 = 2;
/// Time stands still: what is due comes due in a step of its own.
pub(crate) const NOW: Now = Now { monotonic: Time(10_000_000), wall: Time(10_000_000) };

/// A producer's id and epoch.
pub(crate) type Who = (i64, i16);
/// Which transaction of which client.
pub(crate) type Tag = (u8, u8);

pub(crate) fn who(producer: Producer) -> Who {
    (producer.id.0, producer.epoch.0)
}

pub(crate) fn producer(who: Who) -> Producer {
    Producer { id: ProducerId(who.0), epoch: ProducerEpoch(who.1) }
}

pub(crate) fn set_of(partition: u8) -> PartitionSet {
    [(TOPIC, PartitionIndex(partition.into()))].into_iter().collect()
}

/// The coordinator in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Coordinator {
    pub(crate) shard: TransactionShard,
    pub(crate) epoch: i32,
    /// The last record of its log, which replaces those before it.
    pub(crate) log: Option<CoordinatorRecord>,
    /// What that says.
    pub(crate) stored: Option<TransactionMetadata>,
    pub(crate) in_flight: Option<InFlight>,
    /// Who is answered on which token.
    pub(crate) asked: BTreeMap<u64, Message>,
}

/// A record on its way into the coordinator's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InFlight {
    pub(crate) batch: BatchNumber,
    pub(crate) record: CoordinatorRecord,
    /// What it says.
    pub(crate) next: TransactionMetadata,
    /// The request that it comes of, where it is one.
    pub(crate) cause: Option<Message>,
}

/// What stands in a partition's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Entry {
    /// A record of a transaction.
    Data { who: Who, sequence: i32, tag: Tag },
    /// The end of a transaction.
    Marker { who: Who, commit: bool, coordinator_epoch: i32 },
    /// An offset outside of transactions, or its tombstone.
    Plain(Option<u8>),
}

/// A partition, as its leader has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) log: Vec<Entry>,
    pub(crate) high_watermark: usize,
    pub(crate) leadership: u8,
    pub(crate) table: ProducerTable,
    /// Batches that wait for the coordinator's word, by the guard of the verification.
    pub(crate) waiting: BTreeMap<u64, Vec<Message>>,
    /// Of the partition of groups: their coordinator.
    pub(crate) group: Option<Box<Group>>,
}

/// Something on its way, at most once: a copy is the same again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Message {
    /// InitProducerId.
    Init {
        /// Of whom.
        client: u8,
        /// What it believes to be.
        expected: Option<(i64, i16)>,
    },
    /// AddPartitionsToTxn, AddOffsetsToTxn.
    Add {
        /// Of whom.
        client: u8,
        /// Which partition.
        partition: u8,
        /// As whom.
        who: (i64, i16),
    },
    /// EndTxn.
    End {
        /// Of whom, and of which transaction.
        tag: (u8, u8),
        /// Commit, or abort.
        commit: bool,
        /// As whom.
        who: (i64, i16),
    },
    /// A record; an offset, where the partition is that of groups.
    Write {
        /// Of whom, and in which transaction.
        tag: (u8, u8),
        /// Where to.
        partition: u8,
        /// As whom.
        who: (i64, i16),
        /// Its sequence.
        sequence: i32,
    },
    /// A leader asks the coordinator.
    Verify {
        /// For whom.
        who: (i64, i16),
        /// Where.
        partition: u8,
        /// Under which guard of the present leader; 0 where nobody waits any more.
        guard: u64,
        /// Whether to add the partition.
        add: bool,
    },
    /// The coordinator's word.
    Verified {
        /// To whom.
        partition: u8,
        /// Under which guard.
        guard: u64,
        /// The error's code.
        code: i16,
    },
}

/// A marker that a coordinator wants written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Work {
    /// The coordinator's epoch.
    pub(crate) coordinator_epoch: i32,
    pub(crate) partition: u8,
    pub(crate) who: Who,
    pub(crate) commit: bool,
    pub(crate) version: i16,
}

impl Work {
    pub(crate) fn of(marker: &Marker, partition: u8) -> Work {
        Work {
            coordinator_epoch: marker.coordinator_epoch.0,
            partition,
            who: (marker.producer_id.0, marker.producer_epoch.0),
            commit: marker.commit,
            version: marker.transaction_version,
        }
    }
}

/// A record of a client's transaction, in one partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Write {
    #[default]
    Unsent,
    Sent,
    Acked,
    Refused,
}

/// A producer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Client {
    pub(crate) version: i16,
    pub(crate) who: Option<Who>,
    /// It was told that it is fenced, or has done all that it may.
    pub(crate) stopped: bool,
    /// The request to the coordinator that it waits for.
    pub(crate) expecting: Option<Message>,
    /// Counts its transactions.
    pub(crate) transaction: u8,
    pub(crate) added: Vec<bool>,
    pub(crate) writes: Vec<Write>,
    pub(crate) sequences: Vec<i32>,
}

/// How often things happened; not part of what a state is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Happened {
    pub(crate) unverified: u64,
    pub(crate) cut: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Transactions {
    pub(crate) coordinator: Coordinator,
    pub(crate) parts: Vec<Part>,
    pub(crate) clients: Vec<Client>,
    pub(crate) network: BTreeSet<Message>,
    /// Answers on their way to clients: each is heard, or lost, before anything else happens.
    pub(crate) answers: Vec<(Message, TransactionResponse)>,
    /// Markers that the coordinator in force wants, and where they stand once they are appended.
    pub(crate) works: BTreeMap<Work, Option<usize>>,
    /// Copies of markers that still travel.
    pub(crate) late: BTreeSet<Work>,
    pub(crate) next_producer_id: i64,
    /// What the coordinator's log decided of each transaction.
    pub(crate) decided: BTreeMap<Tag, bool>,
    /// Transactions that somebody's InitProducerId has ended.
    pub(crate) doomed: BTreeSet<Tag>,
    pub(crate) left: Bounds,
    pub(crate) happened: Happened,
    pub(crate) violation: Option<Violation>,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Violation {
    /// A record has another outcome in its partition than its transaction has in the coordinator's log.
    Torn(String),
    /// A record counts as committed whose transaction nobody decided to commit.
    Undecided(String),
    /// One transaction was decided both ways, or after it had ended.
    DecidedTwice(String),
    /// A client was told an outcome that is not the transaction's.
    ToldWrong(String),
    /// A client that repeats its EndTxn is refused, although nobody has come since.
    RepeatRefused(String),
    /// A record was committed that its successor's InitProducerId had ended.
    Zombie(String),
    /// A fenced producer got its id back.
    ZombieGranted(String),
    /// One record stands twice in its partition.
    Doubled(String),
    /// The last stable offset is not where it has to be (`R43`).
    BadStableOffset(String),
    /// A transaction is open in a partition that no marker will come for.
    Hanging(String),
    /// A marker of the coordinator in force is refused for ever.
    NeverEnds(String),
    /// The group's offset is not the last one of those that count (`R49`).
    BadOffset(String),
    /// A consumer that must wait for a marker is not told to, or one that need not is (`R49`).
    BadStability(String),
    /// Somebody committed an offset who is no member of the group (`R49`).
    StrangeOffset(String),
    /// A core met what it takes for impossible.
    Panicked(String),
}

/// What may happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// A client asks for its producer id.
    Init(u8),
    /// A client that has one asks again.
    Recover(u8),
    /// A client of version 1 adds a partition.
    Add(u8, u8),
    /// A client writes.
    Write(u8, u8),
    /// A client writes the same again.
    Rewrite(u8, u8),
    /// A client ends its transaction.
    End(u8, bool),
    /// A client asks the same again.
    Resend(u8),
    /// A client that does not know what came of its EndTxn asks for the contrary.
    Turn(u8),
    /// An offset is committed outside of transactions.
    CommitOffset,
    /// The offset is deleted.
    DeleteOffset,
    /// Something arrives.
    Deliver(Message),
    /// Something arrives, and will once more.
    DeliverCopy(Message),
    /// A client hears the answer.
    Hear,
    /// An answer is lost.
    Miss,
    /// The coordinator's record is committed.
    Store,
    /// It is refused.
    Refuse,
    /// The coordinator moves; what is in flight is in the log, or not.
    MoveCoordinator(bool),
    /// The time of the open transaction is over.
    Timeout,
    /// A marker is appended.
    Mark(Work),
    /// A late copy of one is.
    MarkLate(Work),
    /// All that a partition has is replicated.
    Replicate(u8),
    /// A partition's leader moves; what was not replicated is there, or not.
    MoveLeader(u8, bool),
}

impl Step {
    pub(crate) fn is_ordinary(self) -> bool {
        !matches!(
            self,
            Step::Recover(_)
                | Step::Turn(_)
                | Step::DeliverCopy(_)
                | Step::Miss
                | Step::Refuse
                | Step::MoveCoordinator(_)
                | Step::Timeout
                | Step::MarkLate(_)
                | Step::MoveLeader(..)
                | Step::CommitOffset
                | Step::DeleteOffset
        )
    }
}

impl Transactions {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let parts = usize::from(scenario.partitions) + usize::from(scenario.offsets);
        let client = |version: &i16| Client {
            version: *version,
            who: None,
            stopped: false,
            expecting: None,
            transaction: 0,
            added: vec![false; parts],
            writes: vec![Write::Unsent; parts],
            sequences: vec![0; parts],
        };
        let log = scenario.first_epoch.map(earlier);
        let part = |at: usize| Part {
            log: Vec::new(),
            high_watermark: 0,
            leadership: 1,
            table: ProducerTable::default(),
            waiting: BTreeMap::new(),
            group: (at == usize::from(scenario.partitions)).then(|| Box::new(Group::new(scenario.rules))),
        };
        Transactions {
            coordinator: Coordinator {
                shard: loaded(log.as_ref(), 1, scenario),
                epoch: 1,
                stored: log.as_ref().map(read),
                log,
                in_flight: None,
                asked: BTreeMap::new(),
            },
            parts: (0..parts).map(part).collect(),
            clients: scenario.clients.iter().map(client).collect(),
            network: BTreeSet::new(),
            answers: Vec::new(),
            works: BTreeMap::new(),
            late: BTreeSet::new(),
            next_producer_id: 2,
            decided: BTreeMap::new(),
            doomed: BTreeSet::new(),
            left: scenario.bounds,
            happened: Happened::default(),
            violation: None,
        }
    }

    pub(crate) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// What the log says of the id.
    pub(crate) fn stored(&self) -> Option<&TransactionMetadata> {
        self.coordinator.stored.as_ref()
    }

    pub(crate) fn version_of(&self, client: u8) -> i16 {
        self.clients[usize::from(client)].version
    }
}

/// A coordinator of this epoch that has read the log.
pub(crate) fn loaded(log: Option<&CoordinatorRecord>, epoch: i32, scenario: &Scenario) -> TransactionShard {
    // What is answered late is an answer that is lost, which has a step of its own.
    let config = TransactionConfig {
        abort_interval_ms: 1,
        retry_ms: 1,
        request_timeout_ms: 1_000_000_000,
        ..TransactionConfig::default()
    };
    let mut shard = TransactionShard::new(config, LeaderEpoch(epoch), CLUSTER_VERSION, scenario.rules);
    log.into_iter().for_each(|record| shard.replay(record));
    shard.finish_load(NOW);
    shard
}

/// What a record of the coordinator says.
pub(crate) fn read(record: &CoordinatorRecord) -> TransactionMetadata {
    let fact = TransactionFact::decode(record).expect("the coordinator wrote it").expect("it is of a transaction");
    *fact.metadata.expect("no id expires here")
}

/// The id has been used before, up to this epoch.
fn earlier(epoch: i16) -> CoordinatorRecord {
    let metadata = TransactionMetadata {
        producer_id: ProducerId(1),
        previous_producer_id: ProducerId(1),
        next_producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(epoch),
        last_producer_epoch: ProducerEpoch::NONE,
        timeout_ms: TIMEOUT_MS,
        status: Status::Empty,
        partitions: PartitionSet::default(),
        started: None,
        updated: NOW.wall,
        client_version: CLUSTER_VERSION,
    };
    let fact = TransactionFact { transactional_id: ID.to_owned(), metadata: Some(Box::new(metadata)) };
    fact.encode(CLUSTER_VERSION).expect("a short record")
}
