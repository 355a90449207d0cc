//! The lines of a history. Times are microseconds since the run began, on one clock.
//!
//! The order of the lines means nothing, but for those of one session of a consumer, of one final read and of one replica:
//! these are in the order in which their records were seen. Lines of other programs may leave out what has a default.

use serde::{Deserialize, Serialize};

/// The version of the lines that this program writes, and reads.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// What run this is.
    Run(Run),
    /// A record that was sent.
    Produce(Produce),
    /// Records that a consumer was given.
    Poll(Poll),
    /// An offset that a group was to keep.
    Commit(Commit),
    /// The offset that a group has.
    Committed(Committed),
    /// The end of a transaction.
    Transaction(Transaction),
    /// A part of the log as it was read back when all was over.
    Log(Log),
    /// Where a partition ended then.
    End(End),
    /// A part of a replica's files.
    Replica(Replica),
    /// Harm that was done.
    Fault(Fault),
    /// Something worth telling.
    Note(Note),
}

/// How an operation ended. An error after a request was sent says nothing of its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was acknowledged.
    Ok,
    /// It may have happened once, or not.
    Unknown,
    /// It was refused before anything was sent: it never happened.
    Failed,
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionEnd {
    /// Its commit was acknowledged.
    Committed,
    /// Its abort was acknowledged, or its commit was refused for good.
    Aborted,
    /// Nobody knows.
    Unknown,
}

/// What a reader was to see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Everything below the high watermark.
    #[default]
    ReadUncommitted,
    /// No record of a transaction that is open or aborted.
    ReadCommitted,
}

/// See [`Event::Run`].
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Run {
    /// [`VERSION`].
    pub version: u32,
    /// What the choices of the run came from.
    #[serde(default)]
    pub seed: u64,
    /// Of which commit the program under test was.
    #[serde(default)]
    pub commit: String,
    /// When it began, for people.
    #[serde(default)]
    pub started: String,
    /// What it is of, for people.
    #[serde(default)]
    pub title: String,
}

/// See [`Event::Produce`]. `seq` counts up for each process and partition in the order of sending; `value` is unique.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Produce {
    /// Who sent it.
    pub process: String,
    /// To where.
    #[serde(default)]
    pub topic: String,
    /// To where.
    pub partition: i32,
    /// As the how-manieth.
    pub seq: u64,
    /// What.
    pub value: String,
    /// When it was handed to the client.
    pub invoke: u64,
    /// When the client told the outcome.
    #[serde(default)]
    pub complete: u64,
    /// Which was this.
    pub outcome: Outcome,
    /// Where it was acknowledged; a retry that the broker knows may be acknowledged without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
    /// What the client said instead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Whether its producer promises one copy, in order.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub idempotent: bool,
    /// The transaction that it was sent in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
}

/// See [`Event::Poll`]. A session is one assignment of the partition to the process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Poll {
    /// Who asked.
    pub process: String,
    /// For which group.
    #[serde(default)]
    pub group: String,
    /// In which of its sessions.
    pub session: u64,
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// When it asked.
    #[serde(default)]
    pub invoke: u64,
    /// When it was given them.
    pub complete: u64,
    /// What it was to see.
    #[serde(default)]
    pub isolation: Isolation,
    /// The group's generation or member epoch, where the client tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Offsets and values.
    pub records: Vec<(i64, String)>,
}

/// See [`Event::Commit`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// Who committed.
    #[serde(default)]
    pub process: String,
    /// For which group.
    #[serde(default)]
    pub group: String,
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// What.
    pub offset: i64,
    /// When it was asked for.
    pub invoke: u64,
    /// When it was answered.
    pub complete: u64,
    /// How.
    pub outcome: Outcome,
    /// What the client said instead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// The transaction that it is a part of, on whose end it depends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
}

/// See [`Event::Committed`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Committed {
    /// Of which group.
    #[serde(default)]
    pub group: String,
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// What; -1: none.
    pub offset: i64,
    /// When it was asked for.
    pub invoke: u64,
    /// When it was answered.
    pub complete: u64,
}

/// See [`Event::Transaction`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Its name in this history, unique.
    pub name: String,
    /// When the client was told to end it.
    pub invoke: u64,
    /// When it said how it ended.
    pub complete: u64,
    /// How.
    pub end: TransactionEnd,
    /// What the client said instead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// See [`Event::Log`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Log {
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// As who saw it.
    #[serde(default)]
    pub isolation: Isolation,
    /// Offsets and values.
    pub records: Vec<(i64, String)>,
}

/// See [`Event::End`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct End {
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// The high watermark that the final reads went up to.
    pub high_watermark: i64,
}

/// See [`Event::Replica`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replica {
    /// Whose.
    pub node: i32,
    /// Of where.
    #[serde(default)]
    pub topic: String,
    /// Of where.
    pub partition: i32,
    /// Whether it was in the ISR when the final reads were made.
    #[serde(default = "yes")]
    pub in_sync: bool,
    /// First offset, last offset and digest of the bytes of each batch.
    pub batches: Vec<(i64, i64, String)>,
    /// Offsets and values of their records.
    #[serde(default)]
    pub records: Vec<(i64, String)>,
    /// Offsets of markers of transactions, which no consumer sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub markers: Vec<i64>,
}

/// See [`Event::Fault`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// `kill`, `pause`, `partition`, …
    pub kind: String,
    /// On whom.
    #[serde(default)]
    pub target: String,
    /// When it began.
    pub start: u64,
    /// When it was taken away.
    pub end: u64,
    /// When the cluster was whole again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<u64>,
}

/// See [`Event::Note`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// When.
    pub at: u64,
    /// What.
    pub text: String,
}

fn yes() -> bool {
    true
}

impl Event {
    /// The line, without its end.
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("an event has nothing that JSON cannot hold")
    }
}
