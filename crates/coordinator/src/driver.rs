//! How a shell drives a shard, whatever the shard coordinates. A shard is the part of a coordinator's state that one
//! partition of its topic holds.
//!
//! The shell owns the log and the clocks:
//! 1. Load: [`Shard::replay`] every record from the log start to its end, once the high watermark covers it, those of
//!    transactions with [`Shard::replay_in_transaction`], markers with [`Shard::replay_marker`]; then [`Shard::finish_load`].
//! 2. For each request or due [`Shard::poll_timeout`]: call the method, then drain [`Shard::poll_output`]. Requests that
//!    wait may be handed in together before draining: their records then go into one batch.
//! 3. For an [`Output::Append`], [`Output::AppendInTransaction`] or [`Output::AppendMarker`]: append with acks=all, in the
//!    order in which they come; when the high watermark covers it, [`Shard::committed`]; when it is certain that nothing was
//!    appended, [`Shard::failed`]; as long as neither is certain, nothing: the shard answers the waiting requests in time by
//!    itself. Then drain again.
//! 4. Leadership lost: [`Shard::unload`], drain, drop the shard. A new shard is loaded from the log.
//!
//! Every token is answered exactly once, by [`Output::Reply`].

use model::{ErrorCode, ProducerId, Time};

use crate::record::CoordinatorRecord;
use crate::request::{GroupRequest, GroupResponse};
use crate::shard::{self, GroupEffect, GroupShard};
use crate::transaction::Marker;
use crate::transaction::request::Producer;

pub use crate::shard::{BatchNumber, Now, Token};

/// What the shell must do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Output<R, E> {
    /// Answer a request.
    Reply {
        /// Which.
        token: Token,
        /// The answer.
        response: R,
    },
    /// Append these records as one batch with acks=all, and say [`Shard::committed`] or [`Shard::failed`].
    Append {
        /// Its number.
        batch: BatchNumber,
        /// Its records, in order; never empty.
        records: Vec<CoordinatorRecord>,
    },
    /// The same, as part of a producer's transaction (`R49`).
    AppendInTransaction {
        /// Its number.
        batch: BatchNumber,
        /// Whose.
        producer: Producer,
        /// What the transaction was verified with (`R50`), as the request had it.
        guard: Option<u64>,
        /// Its records, in order; never empty.
        records: Vec<CoordinatorRecord>,
    },
    /// The same with a marker that ends a transaction.
    AppendMarker {
        /// Its number.
        batch: BatchNumber,
        /// The marker.
        marker: Marker,
    },
    /// Something that only this kind of shard asks for.
    Effect(E),
}

/// A coordinator's shard, as its shell sees it.
pub trait Shard {
    /// What is asked.
    type Request;
    /// What is answered.
    type Response;
    /// What else it asks of its shell.
    type Effect;

    /// Applies a record of the log while loading. What cannot be read is skipped and counted.
    fn replay(&mut self, record: &CoordinatorRecord);

    /// The same with a record that stands in a producer's transaction. A shard that writes none takes it as it stands.
    fn replay_in_transaction(&mut self, record: &CoordinatorRecord, _producer_id: ProducerId) {
        self.replay(record);
    }

    /// The same with the marker that ends a producer's transaction.
    fn replay_marker(&mut self, _producer_id: ProducerId, _commit: bool) {}

    /// The log is replayed.
    fn finish_load(&mut self, now: Now);

    /// Takes a request; the answer comes from [`Self::poll_output`], now or later. `entropy` is 128 random bits.
    fn handle(&mut self, token: Token, request: Self::Request, entropy: u128, now: Now);

    /// What to do next.
    fn poll_output(&mut self) -> Option<Output<Self::Response, Self::Effect>>;

    /// The high watermark covers the batch: its records are true.
    fn committed(&mut self, batch: BatchNumber, now: Now);

    /// The batch is certainly not in the log, and never will be.
    fn failed(&mut self, batch: BatchNumber, error: ErrorCode, now: Now);

    /// When to call [`Self::handle_timeout`], on the monotonic clock.
    fn poll_timeout(&self) -> Option<Time>;

    /// Carries out what is due; does nothing when called early.
    fn handle_timeout(&mut self, now: Now);

    /// The leadership ended: everything that waits, and everything that still comes, is answered with `error`.
    fn unload(&mut self, error: ErrorCode);

    /// Records of the log that could not be read.
    fn skipped_records(&self) -> u64;
}

impl Shard for GroupShard {
    type Request = GroupRequest;
    type Response = GroupResponse;
    type Effect = GroupEffect;

    fn replay(&mut self, record: &CoordinatorRecord) {
        self.replay(record);
    }

    fn replay_in_transaction(&mut self, record: &CoordinatorRecord, producer_id: ProducerId) {
        self.replay_in_transaction(record, producer_id);
    }

    fn replay_marker(&mut self, producer_id: ProducerId, commit: bool) {
        self.replay_marker(producer_id, commit);
    }

    fn finish_load(&mut self, now: Now) {
        self.finish_load(now);
    }

    fn handle(&mut self, token: Token, request: GroupRequest, entropy: u128, now: Now) {
        self.handle(token, request, entropy, now);
    }

    fn poll_output(&mut self) -> Option<Output<GroupResponse, GroupEffect>> {
        Some(match self.poll_output()? {
            shard::Output::Reply { token, response } => Output::Reply { token, response },
            shard::Output::Append { batch, records } => Output::Append { batch, records },
            shard::Output::AppendInTransaction { batch, producer, guard, records } => {
                Output::AppendInTransaction { batch, producer, guard, records }
            }
            shard::Output::AppendMarker { batch, marker } => Output::AppendMarker { batch, marker },
            shard::Output::Effect(effect) => Output::Effect(effect),
        })
    }

    fn committed(&mut self, batch: BatchNumber, now: Now) {
        self.committed(batch, now);
    }

    fn failed(&mut self, batch: BatchNumber, error: ErrorCode, now: Now) {
        self.failed(batch, error, now);
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Now) {
        self.handle_timeout(now);
    }

    fn unload(&mut self, error: ErrorCode) {
        self.unload(error);
    }

    fn skipped_records(&self) -> u64 {
        self.skipped_records()
    }
}
