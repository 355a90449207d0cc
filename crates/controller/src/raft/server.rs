//! Messages of other members.
//!
//! Invariants: a message that means another node or directory is refused (`R5`); a leader's message counts as contact only
//! after openraft accepted it (`R75`); for one lease after a start no vote is given, unless this node was blank.

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use openraft::Snapshot;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use rpc::raft::{AppendResult, QuorumNode, RaftAnswer, RaftCall, RaftLogId, RaftServer, RaftVote};

use crate::raft::types::{NodeId, SnapshotMeta, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire};
use crate::raft::{Quorum, codec};

impl RaftServer for Quorum {
    async fn call(self: Arc<Self>, from: QuorumNode, to: QuorumNode, call: RaftCall) -> Result<RaftAnswer, String> {
        self.check_route(from, to)?;
        check_form(from, &call)?;
        self.check_awake(&call)?;
        match call {
            RaftCall::Meet => {
                let empty = self.is_empty();
                self.meetings.lock().expect("no holder of the lock panics").met(from, empty);
                Ok(RaftAnswer::Meet { node: self.me.quorum_node(), empty })
            }
            RaftCall::MayElect { last } => {
                let consents = self.contact.consents(last.map(log_id_from_wire), self.log_store.last());
                Ok(RaftAnswer::MayElect(consents))
            }
            RaftCall::Vote { vote, last } => self.answer_vote(vote, last).await,
            RaftCall::Append { vote, previous, leader_commit, entries } => {
                let entries = entries.into_iter().map(codec::entry_from_wire).collect::<Result<Vec<_>, _>>();
                let entries = entries.map_err(|error| error.to_string())?;
                let first = previous.map_or(0, |id| id.index.saturating_add(1));
                if !entries.iter().map(|entry| entry.log_id.index).eq((first..).take(entries.len())) {
                    return Err(format!("entries do not follow each other from {first} on"));
                }
                let request = AppendEntriesRequest {
                    vote: vote_from_wire(vote),
                    prev_log_id: previous.map(log_id_from_wire),
                    leader_commit: leader_commit.map(log_id_from_wire),
                    entries,
                };
                let result = self.raft.append_entries(request).await.map_err(|error| error.to_string())?;
                if !matches!(result, AppendEntriesResponse::HigherVote(_)) {
                    self.contact.heard();
                }
                Ok(RaftAnswer::Append(append_result(&result)))
            }
        }
    }

    fn snapshot_arriving(&self, from: QuorumNode, vote: RaftVote) {
        let vote = vote_from_wire(vote);
        let own = self.contact.metrics().vote;
        // A long transfer must not look like silence; its end is judged by openraft.
        if NodeId::new(from) == vote.leader_id.node_id && vote.committed && vote >= own {
            self.contact.heard();
        }
    }

    async fn install_snapshot(
        self: Arc<Self>,
        from: QuorumNode,
        to: QuorumNode,
        vote: RaftVote,
        meta: Bytes,
        data: Bytes,
    ) -> Result<RaftVote, String> {
        self.check_route(from, to)?;
        check_vote(from, vote, true)?;
        self.check_space()?;
        if self.waits.snapshots.is_waiting() {
            // openraft takes one that comes again for one that it has, and would say so before it is saved (R72).
            return Err("this node waits for space for a snapshot".to_owned());
        }
        let vote = vote_from_wire(vote);
        let meta: SnapshotMeta = codec::from_json(&meta).map_err(|error| error.to_string())?;
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(data.to_vec())) };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())?;
        if answer.vote <= vote {
            self.contact.heard();
        }
        Ok(vote_to_wire(&answer.vote))
    }
}

impl Quorum {
    /// Whether the message means this node, and comes from one that it hears (`R5`, `R74`).
    fn check_route(&self, from: QuorumNode, to: QuorumNode) -> Result<(), String> {
        let me = self.me.quorum_node();
        if to.id != me.id || !(to.directory.is_none() || to.directory == me.directory) {
            return Err(format!(
                "this is node {} with directory {}, not {}@{}",
                me.id, me.directory, to.id, to.directory
            ));
        }
        if !self.links.passes(from.id.0) {
            return Err("the link is cut".to_owned());
        }
        let pinned = self.meetings.lock().expect("no holder of the lock panics").pinned(from.id);
        match pinned.filter(|directory| *directory != from.directory && self.is_empty()) {
            Some(directory) => Err(format!("node {} was met with directory {directory}", from.id)),
            None => Ok(()),
        }
    }

    /// Whether openraft is not asked, or can answer.
    fn check_awake(&self, call: &RaftCall) -> Result<(), String> {
        match call {
            RaftCall::Append { .. } | RaftCall::Vote { .. } => self.check_space(),
            RaftCall::MayElect { .. } | RaftCall::Meet => Ok(()),
        }
    }

    /// A member that waits for space is as one that is paused: what came meanwhile would pile up before its core.
    fn check_space(&self) -> Result<(), String> {
        if self.waits_for_space() { Err("this node waits for space on its disk".to_owned()) } else { Ok(()) }
    }

    async fn answer_vote(&self, vote: RaftVote, last: Option<RaftLogId>) -> Result<RaftAnswer, String> {
        if self.contact.just_started() && !self.was_blank {
            let own = self.contact.metrics().vote;
            let last = self.log_store.last();
            return Ok(RaftAnswer::Vote {
                vote: vote_to_wire(&own),
                granted: false,
                last: last.as_ref().map(log_id_to_wire),
            });
        }
        let request = VoteRequest { vote: vote_from_wire(vote), last_log_id: last.map(log_id_from_wire) };
        let answer = self.raft.vote(request).await.map_err(|error| error.to_string())?;
        Ok(RaftAnswer::Vote {
            vote: vote_to_wire(&answer.vote),
            granted: answer.vote_granted,
            last: answer.last_log_id.as_ref().map(log_id_to_wire),
        })
    }
}

/// A leader speaks with a committed vote for itself, a candidate with one that is not committed.
fn check_form(from: QuorumNode, call: &RaftCall) -> Result<(), String> {
    match call {
        RaftCall::Append { vote, .. } => check_vote(from, *vote, true),
        RaftCall::Vote { vote, .. } => check_vote(from, *vote, false),
        RaftCall::MayElect { .. } | RaftCall::Meet => Ok(()),
    }
}

fn check_vote(from: QuorumNode, vote: RaftVote, committed: bool) -> Result<(), String> {
    if vote.node == from && vote.committed == committed { Ok(()) } else { Err(format!("{vote:?} is not {from:?}'s")) }
}

fn append_result(result: &AppendEntriesResponse<NodeId>) -> AppendResult {
    match result {
        AppendEntriesResponse::Success => AppendResult::Success,
        AppendEntriesResponse::PartialSuccess(last) => AppendResult::Partial(last.as_ref().map(log_id_to_wire)),
        AppendEntriesResponse::Conflict => AppendResult::Conflict,
        AppendEntriesResponse::HigherVote(vote) => AppendResult::HigherVote(vote_to_wire(vote)),
    }
}
