//! What there is: the coordinator with its log, partitions with theirs, clients, and what is under way between them.

use std::collections::{BTreeMap, BTreeSet};

use coordinator::transaction::request::Producer;
use coordinator::transaction::{Marker, Status, TransactionFact, TransactionMetadata, TransactionResponse, state};
use coordinator::{BatchNumber, CoordinatorRecord, Now, Shard, TransactionConfig, TransactionShard};
use model::{LeaderEpoch, ProducerEpoch, ProducerId, Time};
use replication::producers::ProducerTable;

use super::{Bounds, Scenario};

/// The transactional id of everybody.
pub(crate) const ID: &str = "x";
/// The topic of the partitions.
pub(crate) const TOPIC: &str = "t";
/// `transaction.timeout.ms` of the clients.
pub(crate) const TIMEOUT_MS: i32 = 1_000;
/// The cluster's transaction version.
pub(crate) const CLUSTER_VERSION: i16 = 2;

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

/// The coordinator in force.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Coordinator {
    pub(crate) shard: TransactionShard,
    pub(crate) epoch: i32,
    pub(crate) log: Vec<CoordinatorRecord>,
    /// What the log says.
    pub(crate) stored: state::TransactionState,
    pub(crate) in_flight: Option<(BatchNumber, Vec<CoordinatorRecord>)>,
    /// Who is answered on which token.
    pub(crate) asked: BTreeMap<u64, Message>,
}

/// What stands in a partition's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Entry {
    /// A record.
    Data { who: Who, sequence: i32, tag: Tag },
    /// The end of a transaction.
    Marker { who: Who, commit: bool, coordinator_epoch: i32 },
}

impl Entry {
    pub(crate) fn who(self) -> Who {
        match self {
            Entry::Data { who, .. } | Entry::Marker { who, .. } => who,
        }
    }
}

/// The leader of a partition.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Part {
    pub(crate) log: Vec<Entry>,
    pub(crate) high_watermark: usize,
    pub(crate) leadership: u8,
    pub(crate) table: ProducerTable,
    /// Batches that wait for the coordinator's word, by their guard.
    pub(crate) waiting: BTreeMap<u64, Message>,
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
    /// AddPartitionsToTxn.
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
    /// A record.
    Produce {
        /// Of whom, and in which transaction.
        tag: (u8, u8),
        /// Where to.
        partition: u8,
        /// As whom.
        who: (i64, i16),
        /// Its sequence.
        sequence: i32,
        /// The client's transaction version.
        version: i16,
    },
    /// A leader asks the coordinator.
    Verify {
        /// For whom.
        who: (i64, i16),
        /// Where.
        partition: u8,
        /// In which leadership.
        leadership: u8,
        /// Under which guard.
        guard: u64,
        /// Whether to add the partition.
        add: bool,
    },
    /// The coordinator's word.
    Verified {
        /// To whom.
        partition: u8,
        /// In which leadership.
        leadership: u8,
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
    pub(crate) fenced: bool,
    /// The request to the coordinator that it waits for.
    pub(crate) expecting: Option<Message>,
    /// Counts its transactions.
    pub(crate) transaction: u8,
    pub(crate) added: Vec<bool>,
    pub(crate) writes: Vec<Write>,
    pub(crate) sequences: Vec<i32>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
    pub(crate) now: Now,
    /// Commits that a client asked for.
    pub(crate) asked: BTreeSet<Tag>,
    /// What clients were told of transactions: committed, or aborted.
    pub(crate) told: BTreeMap<Tag, bool>,
    /// Transactions that somebody's InitProducerId has ended.
    pub(crate) doomed: BTreeSet<Tag>,
    pub(crate) unverified: u8,
    pub(crate) left: Bounds,
    pub(crate) violation: Option<Violation>,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Violation {
    /// One transaction was committed in one partition and aborted in another, or otherwise than its client was told.
    Torn(String),
    /// A record was committed whose client never asked for it.
    Unasked(String),
    /// A record was committed that its successor's InitProducerId had ended.
    Zombie(String),
    /// A fenced producer got its id back.
    ZombieGranted(String),
    /// The last stable offset is not where it has to be (`R43`).
    BadStableOffset(String),
    /// A transaction is open in a partition that no marker will come for.
    Hanging(String),
    /// A marker of the coordinator in force is refused for ever.
    NeverEnds(String),
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
    /// The time of open transactions is over.
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
                | Step::DeliverCopy(_)
                | Step::Miss
                | Step::Refuse
                | Step::MoveCoordinator(_)
                | Step::Timeout
                | Step::MarkLate(_)
                | Step::MoveLeader(..)
        )
    }
}

impl Transactions {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let partitions = usize::from(scenario.partitions);
        let client = |version: &i16| Client {
            version: *version,
            who: None,
            fenced: false,
            expecting: None,
            transaction: 0,
            added: vec![false; partitions],
            writes: vec![Write::Unsent; partitions],
            sequences: vec![0; partitions],
        };
        let now = Now { monotonic: Time(10_000_000), wall: Time(10_000_000) };
        let log: Vec<_> = scenario.first_epoch.map(|epoch| earlier(epoch, now.wall)).into_iter().collect();
        let (shard, stored) = loaded(&log, 1, scenario, now);
        Transactions {
            coordinator: Coordinator { shard, epoch: 1, log, stored, in_flight: None, asked: BTreeMap::new() },
            parts: vec![Part::default(); partitions],
            clients: scenario.clients.iter().map(client).collect(),
            network: BTreeSet::new(),
            answers: Vec::new(),
            works: BTreeMap::new(),
            late: BTreeSet::new(),
            next_producer_id: 2,
            now,
            asked: BTreeSet::new(),
            told: BTreeMap::new(),
            doomed: BTreeSet::new(),
            unverified: 0,
            left: scenario.bounds,
            violation: None,
        }
    }

    pub(crate) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// What the log says of the id.
    pub(crate) fn stored(&self) -> Option<&TransactionMetadata> {
        self.coordinator.stored.get(ID)
    }
}

/// A coordinator of this epoch that has read the log, and what the log says.
pub(crate) fn loaded(
    log: &[CoordinatorRecord],
    epoch: i32,
    scenario: &Scenario,
    now: Now,
) -> (TransactionShard, state::TransactionState) {
    let config = TransactionConfig::default();
    let mut shard = TransactionShard::new(config, LeaderEpoch(epoch), CLUSTER_VERSION, scenario.rules);
    let mut stored = state::TransactionState::default();
    for record in log {
        shard.replay(record);
        take(&mut stored, record);
    }
    shard.finish_load(now);
    (shard, stored)
}

pub(crate) fn take(stored: &mut state::TransactionState, record: &CoordinatorRecord) {
    let fact = TransactionFact::decode(record).expect("the coordinator wrote it");
    stored.replay(fact.expect("it is of a transaction"));
}

/// The id has been used before, up to this epoch.
fn earlier(epoch: i16, now: Time) -> CoordinatorRecord {
    let metadata = TransactionMetadata {
        producer_id: ProducerId(1),
        previous_producer_id: ProducerId(1),
        next_producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(epoch),
        last_producer_epoch: ProducerEpoch::NONE,
        timeout_ms: TIMEOUT_MS,
        status: Status::Empty,
        partitions: coordinator::transaction::PartitionSet::default(),
        started: None,
        updated: now,
        client_version: CLUSTER_VERSION,
    };
    let fact = TransactionFact { transactional_id: ID.to_owned(), metadata: Some(Box::new(metadata)) };
    fact.encode(CLUSTER_VERSION).expect("a short record")
}
