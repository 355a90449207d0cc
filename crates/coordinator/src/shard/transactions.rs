//! Offsets in transactions (`R49`), in a shard.
//!
//! They are written with their producer's id, as part of its transaction, and wait in [`crate::pending`] for its marker,
//! which comes through this shard, too: so the shard knows the order of both. Whether the transaction is open, and the epoch
//! its producer's, the partition checks as it appends (`R47`, `R50`).

use model::{ErrorCode, ProducerId, Rule, Rules};

use crate::offsets;
use crate::record::{CoordinatorRecord, Fact};
use crate::request::{EndTransactionResponse, GroupResponse, OffsetCommitRequest, TxnOffsetCommitRequest};
use crate::shard::{GroupShard, Now, Token};
use crate::transaction::Marker;
use crate::writes::{Form, Waiting};

impl GroupShard {
    /// As [`Self::replay`], for a record that stands in a producer's transaction.
    pub fn replay_in_transaction(&mut self, record: &CoordinatorRecord, producer_id: ProducerId) {
        match Fact::decode(record) {
            Ok(Some(fact)) => self.state.replay_in_transaction(producer_id, fact, self.config.consumer.rules),
            Ok(None) => {}
            Err(_) => self.skipped_records += 1,
        }
    }

    /// As [`Self::replay`], for the marker that ends a producer's transaction.
    pub fn replay_marker(&mut self, producer_id: ProducerId, commit: bool) {
        self.state.replay_marker(producer_id, commit, self.config.consumer.rules);
    }

    pub(super) fn rules(&self) -> Rules {
        self.config.consumer.rules
    }

    pub(super) fn commit_in_transaction(&mut self, token: Token, request: &TxnOffsetCommitRequest, now: Now) {
        let TxnOffsetCommitRequest { producer, guard, commit } = request;
        if let Err(error) = self.check_commit_in_transaction(commit) {
            return self.reply(token, GroupResponse::TxnOffsetCommit(commit.refused(error)));
        }
        let decision = offsets::decide_commit(commit, now.wall, &self.config);
        let response = GroupResponse::TxnOffsetCommit(decision.response);
        if decision.facts.is_empty() {
            return self.reply(token, response);
        }
        let form = Form::InTransaction { producer: *producer, guard: *guard };
        self.push((form, decision.facts), Some(Waiting::Reply(token, response)), now);
    }

    /// KIP-447: a member that is one no longer commits nothing, whatever its producer may.
    fn check_commit_in_transaction(&self, request: &OffsetCommitRequest) -> Result<(), ErrorCode> {
        if request.group_id.is_empty() {
            return Err(ErrorCode::InvalidGroupId);
        }
        if !self.rules().hold(Rule::R49MemberFence) {
            return Ok(());
        }
        // Producers know of generations only.
        self.check_commit(request, true).map_err(|error| match error {
            ErrorCode::StaleMemberEpoch => ErrorCode::IllegalGeneration,
            other => other,
        })
    }

    pub(super) fn end_transaction(&mut self, token: Token, marker: Marker, now: Now) {
        let response = GroupResponse::EndTransaction(EndTransactionResponse { error: ErrorCode::None });
        self.push((Form::End(marker), Vec::new()), Some(Waiting::Reply(token, response)), now);
    }
}
