//! What goes into a replica and what comes out of it: values without behaviour.

use model::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionEpoch, Rules};

use crate::isr::Proposal;

/// What does not change while a replica lives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReplicaConfig {
    /// The broker that this replica is on.
    pub me: BrokerId,
    /// `replica.lag.time.max.ms` (`R11`).
    pub lag_time_max_ms: u64,
    /// `replica.fetch.max.bytes`: unacknowledged bytes of one session (`R62`).
    pub window_bytes: u64,
    /// Opens of this partition by this process before this replica was made: a replica that is made again must not use a
    /// number again (`R57`).
    pub opens_before: u64,
    /// Which rules hold.
    pub rules: Rules,
}

/// Where a log starts and ends, and what is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LogView {
    /// The first offset.
    pub start: Offset,
    /// The offset after the last record.
    pub end: Offset,
    /// The end of what is durable.
    pub synced_end: Offset,
    /// The high watermark; before start-up a hint that is clamped to the log (`R19`).
    pub high_watermark: Offset,
}

/// One replica of the assignment, as the metadata shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// The broker.
    pub id: BrokerId,
    /// Its registration in force; `NONE` where it has none.
    pub broker_epoch: BrokerEpoch,
    /// Unfenced and not in controlled shutdown (`R12`).
    pub eligible: bool,
    /// Its zone: a number that members in the same zone share (`R79`). None where it has none.
    pub zone: Option<u32>,
}

/// What in-sync replicas must be for records to be committed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AckRule {
    /// `min.insync.replicas`; counts as the number of replicas where that is smaller (`R18`).
    pub min_isr: usize,
    /// In so many zones (`R79`); 0 where zones do not count.
    pub zones: usize,
}

/// A partition's record, with what the metadata says of its replicas and its topic.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PartitionState {
    /// The leader; `NONE` where there is none.
    pub leader: BrokerId,
    /// Counts leaderships.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes.
    pub partition_epoch: PartitionEpoch,
    /// All replicas, in the order of the assignment.
    pub replicas: Vec<Member>,
    /// The committed in-sync replicas.
    pub isr: Vec<BrokerId>,
    /// The leader was elected uncleanly and has not reported that it recovered (`R35`).
    pub recovering: bool,
    /// What the ISR must be for records to be committed.
    pub ack_rule: AckRule,
    /// Whether records count only once they are durable (sync before ack).
    pub sync_before_ack: bool,
}

/// Names a session of one follower at one leader (`R57`). Later opens are greater: open numbers of one process only grow,
/// whichever of its streams they travel on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Session {
    /// The follower's registration, of the stream's hello.
    pub broker_epoch: BrokerEpoch,
    /// The follower's number of the open.
    pub open_no: u64,
    /// The stream that it came on.
    pub stream_no: u64,
}

/// The kind of stream that a session runs on (`R56`, `R62`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// What the follower lacks is in the leader's memory: nobody on it waits for a disk.
    Tail,
    /// It is on the leader's disk.
    CatchUp,
}

/// A follower asks for the records after its log's end (`R57`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Open {
    /// Counts the opens.
    pub open_no: u64,
    /// The leader epoch that the follower is in.
    pub leader_epoch: LeaderEpoch,
    /// Where its log ends.
    pub log_end: Offset,
    /// The epoch of its last record; `NONE` where the log is empty.
    pub last_epoch: LeaderEpoch,
    /// Where its log starts.
    pub log_start: Offset,
    /// Every byte below `log_end` is on its disk: it keeps to sync before ack (`R59`).
    pub durable: bool,
}

/// A leader's answer to an [`Open`] (`R57`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// The session is open; records follow.
    Opened {
        /// The leader's high watermark.
        high_watermark: Offset,
        /// Where its log starts.
        log_start: Offset,
        /// Where it ends.
        log_end: Offset,
        /// The leader counts what is durable only (`R59`).
        sync_before_ack: bool,
    },
    /// The logs part (`R24`).
    Diverging {
        /// The leader's largest epoch that is not above the follower's last.
        epoch: LeaderEpoch,
        /// Where it ends at the leader.
        end: Offset,
    },
    /// The follower's end is outside of the leader's log (`R26`).
    OutOfRange {
        /// Where the leader's log starts.
        log_start: Offset,
        /// Where it ends.
        log_end: Offset,
    },
    /// Not now.
    Refused(ErrorCode),
    /// The session that was open is over: to be opened anew on a stream of this lane (`R62`).
    Moved(Lane),
}

/// What the shell of a leader does about an [`Open`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OpenVerdict {
    /// Send this.
    Answer(Answer),
    /// The follower knows newer metadata: ask again when metadata arrives; after 1 s refuse with `UNKNOWN_LEADER_EPOCH`.
    Park,
    /// A later open of this follower came first: send nothing.
    Ignore,
}

/// What a follower has (`R59`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ack {
    /// The session.
    pub open_no: u64,
    /// Every byte below it is in the follower's log, as durable as the flush policy says.
    pub log_end: Offset,
    /// Where its log starts.
    pub log_start: Offset,
    /// The follower keeps to sync before ack: every byte below `log_end` is on its disk.
    pub durable: bool,
}

/// The peer broke the protocol: close the stream (`R59`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("broker {follower} acknowledged offset {acked} but was sent up to {sent} only: close the stream")]
pub struct CloseStream {
    /// The follower.
    pub follower: BrokerId,
    /// What it acknowledged.
    pub acked: Offset,
    /// What it was sent.
    pub sent: Offset,
}

/// One batch of a Data frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BatchInfo {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset of the last record.
    pub last_offset: Offset,
    /// The leader epoch that wrote it.
    pub leader_epoch: LeaderEpoch,
    /// Bytes.
    pub size: u32,
}

/// A Data frame without its bytes (`R58`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataHeader<'a> {
    /// The log end that these records follow.
    pub prev_offset: Offset,
    /// The epoch of the record before.
    pub prev_epoch: LeaderEpoch,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// Where the leader's log starts.
    pub log_start: Offset,
    /// Where it ends.
    pub leader_log_end: Offset,
    /// The batches; length and CRC are the shell's to check.
    pub batches: &'a [BatchInfo],
}

/// What to do with a Data frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DataVerdict {
    /// Write the bytes, then call `handle_follower_append`, under the same lock.
    Append,
    /// Not of the current session.
    Drop,
    /// A frame of the current session failed a check: it is dropped and the session has ended.
    EndSession,
}

/// The watermarks of a leader (`R60`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Progress {
    /// The session.
    pub session: Session,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// Where its log starts.
    pub log_start: Offset,
    /// The leader counts what is durable only (`R59`).
    pub sync_before_ack: bool,
}

/// What a sync that starts now will make durable: given back when it is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SyncPoint {
    pub(crate) end: Offset,
    /// Truncations so far: a sync that began before one says nothing of what was written after it.
    pub(crate) truncations: u32,
}

impl SyncPoint {
    /// The end of what it covers.
    #[must_use]
    pub fn end(self) -> Offset {
        self.end
    }
}

/// Where a consumer's fetch offset stands (`R19`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FetchPosition {
    /// There are records to return, up to the end of what may be read.
    Readable,
    /// At or above that end: wait; nothing to return yet.
    Wait,
    /// `OFFSET_OUT_OF_RANGE`.
    OutOfRange,
}

/// Whether the log that a client read from parts from this one (`R24`, KIP-595).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Divergence {
    /// It does not.
    None,
    /// It does: answer with this diverging epoch and no records.
    Diverging(model::EpochEnd),
    /// The epoch is older than everything here: `OFFSET_OUT_OF_RANGE`.
    OutOfRange,
}

/// What the shell carries out, in the order given, before the next input.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The replica leads: serve produce and fetch.
    LeaderStarted {
        /// Its epoch.
        leader_epoch: LeaderEpoch,
    },
    /// It leads no longer: fail every waiting produce with `NOT_LEADER_OR_FOLLOWER` (`R20`, `R28`).
    LeaderStopped,
    /// It follows this leader; an `OpenSession` comes along.
    FollowerStarted {
        /// The leader.
        leader: BrokerId,
        /// Its epoch.
        leader_epoch: LeaderEpoch,
    },
    /// It follows nobody any more: there is no leader, or this broker is no replica.
    FollowerStopped,
    /// The high watermark moved: answer fetches and produces that wait for it, with `produce_verdict` (`R17`).
    HighWatermark(Offset),
    /// Send an AlterPartition; every copy sent gets one `handle_alter_partition_answer`, `Unknown` where none came.
    ProposeIsr(Proposal),
    /// An in-sync follower opened below the high watermark: it lost records; log it (`R57`).
    MemberLostRecords {
        /// Who.
        follower: BrokerId,
        /// Where its log ends.
        log_end: Offset,
        /// What it should have had.
        high_watermark: Offset,
    },
    /// `next_send` or `next_progress` may have something for this follower.
    StreamDirty {
        /// Who.
        follower: BrokerId,
    },
    /// `next_progress` has something for this follower that no data carries.
    ProgressDirty {
        /// Who.
        follower: BrokerId,
    },
    /// The session is void: forget its place in the stream and, if the stream still stands, send `Refused` with this error
    /// as a second answer to its open; the follower then opens anew.
    SessionEnded {
        /// Who.
        follower: BrokerId,
        /// Which.
        session: Session,
        /// Why.
        error: ErrorCode,
    },
    /// The session is over: send `Moved` as a second answer to its open (`R62`).
    SessionMoved {
        /// Who.
        follower: BrokerId,
        /// Which.
        session: Session,
        /// Where its follower is to open anew.
        to: Lane,
    },
    /// Cut the log here (`R24`).
    TruncateTo(Offset),
    /// Drop the whole log and start an empty one here (`R26`).
    ResetTo(Offset),
    /// Records below may be deleted: the leader's log starts here (`R60`).
    AdvanceLogStart(Offset),
    /// The leader-epoch cache changed: make it durable before the flushed-offset checkpoint passes its newest entry (`R25`).
    EpochsChanged,
    /// Sync the log: something waits for `handle_synced`.
    Sync,
    /// Call `open_request` as soon as there is a stream to the leader.
    OpenSession {
        /// The leader.
        leader: BrokerId,
    },
    /// The session is over: as `OpenSession`, on a stream of this lane (`R62`).
    MoveSession {
        /// The leader.
        leader: BrokerId,
        /// Which.
        to: Lane,
    },
    /// Tell the leader that this session is over, if its stream still stands.
    CloseSession {
        /// Which.
        open_no: u64,
    },
    /// `ack` has something new.
    AckDirty,
}
