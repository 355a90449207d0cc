//! The life of one partition replica: leader, follower, in-sync replicas, high watermark, epochs, producer state.
//!
//! A [`Replica`] is a message-driven core. Its owner hands it inputs (`handle_*`), carries out every action that
//! [`Replica::poll_action`] gives before the next input, in order, and comes back at [`Replica::poll_timeout`]. It keeps
//! no bytes: records are (base offset, last offset, epoch, size). It reads no clock: `now` is a monotonic [`model::Time`].
//!
//! Reading order: [`messages`] (what goes in and out), [`replica`] (roles and the mirror of the log), [`leader`] (sessions,
//! acknowledgements, high watermark), [`isr`] (changes of the in-sync replicas), [`follower`] (sessions, divergence, data),
//! [`producers`] (idempotent producers, transactions), [`window`] (how much of a stream may be under way), [`throttle`] (how
//! fast replicas that are not in sync are brought there).
//!
//! Invariants: `log_start <= high_watermark <= log_end` and `synced_end <= log_end`; a leader's high watermark is monotonic
//! in its leader epoch and counts the maximal ISR (`R14`, `R18`); a log shrinks only in answer to the replica's own Open in
//! the present leader epoch (`R58`); every rule that a test can switch off is asked through [`model::Rules::hold`].

pub mod follower;
pub mod isr;
pub mod leader;
pub mod messages;
#[cfg(feature = "models")]
pub mod normal;
pub mod producers;
pub mod replica;
pub mod throttle;
pub mod window;

pub use isr::{AlterAnswer, Proposal, ProposalId};
pub use leader::{ProduceVerdict, SendPlan};
pub use messages::{
    Ack, AckRule, Action, Answer, BatchInfo, CloseStream, DataHeader, DataVerdict, Divergence, FetchPosition, Lane,
    LogView, Member, Open, OpenVerdict, PartitionState, Progress, ReplicaConfig, Session, SyncPoint,
};
pub use producers::{
    BatchKind, EndedTransaction, MarkerClaim, ProducerBatch, ProducerState, ProducerTable, RetainedBatch,
    SequenceCheck, SnapshotError, VerificationGuard,
};
pub use replica::Replica;
pub use throttle::{Admission, Throttle};
pub use window::{Room, Window};

#[cfg(test)]
mod testing;
