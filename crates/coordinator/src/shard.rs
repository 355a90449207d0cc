//! One shard: the groups of one partition of `__consumer_offsets`, and how a shell drives it.
//!
//! The shell owns the log and the clocks:
//! 1. Load: [`GroupShard::replay`] every record from the log start to the high watermark, then [`GroupShard::finish_load`].
//! 2. For each request, topic deletion or due [`GroupShard::poll_timeout`]: call the method, then drain
//!    [`GroupShard::poll_output`].
//! 3. For an [`Output::Append`]: append with acks=all; when the high watermark covers it, [`GroupShard::committed`]; when
//!    it is certain that nothing was appended, [`GroupShard::failed`]. Then drain again.
//! 4. Leadership lost: [`GroupShard::unload`], drain, drop the shard.
//!
//! Every token is answered exactly once, by [`Output::Reply`].

use std::collections::VecDeque;

use model::{ErrorCode, Time, TopicId};

use crate::config::GroupConfig;
use crate::record::CoordinatorRecord;
use crate::request::{GroupRequest, GroupResponse};
use crate::state::GroupState;

/// Names a request until it is answered; chosen by the shell, unique while in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Counts the batches of a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchNumber(pub u64);

/// Both clocks: sessions and rebalances are measured with the one, what is written is dated with the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Now {
    /// A clock that never goes back.
    pub monotonic: Time,
    /// Milliseconds since 1970.
    pub wall: Time,
}

/// What the shell must do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Output {
    /// Answer a request.
    Reply {
        /// Which.
        token: Token,
        /// The answer.
        response: GroupResponse,
    },
    /// Append these records as one batch with acks=all, and say [`GroupShard::committed`] or [`GroupShard::failed`].
    Append {
        /// Its number.
        batch: BatchNumber,
        /// Its records, in order; never empty.
        records: Vec<CoordinatorRecord>,
    },
}

/// The groups of one partition of `__consumer_offsets`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GroupShard {
    config: GroupConfig,
    state: GroupState,
    outputs: VecDeque<Output>,
}

impl GroupShard {
    /// An empty shard, to be loaded.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        GroupShard { config, state: GroupState::default(), outputs: VecDeque::new() }
    }

    /// Applies a record of the log while loading. Records that this version does not know are skipped.
    pub fn replay(&mut self, _record: &CoordinatorRecord) {}

    /// The log is replayed up to the high watermark: every stored member's session starts now.
    pub fn finish_load(&mut self, _now: Now) {}

    /// Takes a request; the answer comes from [`Self::poll_output`], now or later. `entropy` is 128 random bits, for the
    /// id of a new member.
    pub fn handle(&mut self, token: Token, request: GroupRequest, _entropy: u128, _now: Now) {
        let response = request.refused(ErrorCode::CoordinatorNotAvailable);
        self.outputs.push_back(Output::Reply { token, response });
    }

    /// Topics were deleted: their offsets go with them. An offset stored under another id of that name stays.
    pub fn handle_topics_deleted(&mut self, _topics: &[(String, TopicId)], _now: Now) {}

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The high watermark covers the batch.
    pub fn committed(&mut self, _batch: BatchNumber, _now: Now) {}

    /// The batch is certainly not in the log, and never will be.
    pub fn failed(&mut self, _batch: BatchNumber, _error: ErrorCode, _now: Now) {}

    /// When to call [`Self::handle_timeout`], on the monotonic clock.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// Carries out what is due; does nothing when called early.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// This broker coordinates these groups no longer: everything that waits is answered with `error`.
    pub fn unload(&mut self, _error: ErrorCode) {}

    /// What the log says.
    #[must_use]
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// What this shard was configured with.
    #[must_use]
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }
}
