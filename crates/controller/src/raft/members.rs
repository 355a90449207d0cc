//! The leader's care for the membership (`R74`): a voter whose disk was wiped is replaced by its successor, and a joint
//! configuration that a lost leader left is finished.
//!
//! Invariants: one replacement at a time, through a joint configuration; the old member has been silent for
//! [`Timeouts::replace_after`](crate::Timeouts::replace_after); the new one has caught up as a learner.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::Quorum;
use crate::raft::types::{Member, NodeId};

const PAUSE: Duration = Duration::from_millis(200);
/// How long a learner may take to catch up before the replacement is tried anew.
const CATCH_UP: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(crate) async fn run(quorum: Arc<Quorum>) {
    let mut leading_since: Option<Instant> = None;
    loop {
        tokio::time::sleep(PAUSE).await;
        if quorum.contact.active().is_none() {
            leading_since = None;
            continue;
        }
        let since = *leading_since.get_or_insert_with(Instant::now);
        if finish_joint(&quorum).await {
            continue;
        }
        if let Some((old, new, member)) = due(&quorum, since) {
            replace(&quorum, old, new, member).await;
        }
    }
}

/// Finishes a joint configuration; whether there was one.
async fn finish_joint(quorum: &Quorum) -> bool {
    let metrics = quorum.contact.metrics();
    let configs = metrics.membership_config.membership().get_joint_config();
    let (true, Some(last)) = (configs.len() > 1, configs.last()) else { return false };
    tracing::info!("a joint configuration is finished");
    change(quorum, last.clone()).await;
    true
}

/// A voter that is to be replaced: silent for long enough, while a node of its id with another directory is at the door.
fn due(quorum: &Quorum, since: Instant) -> Option<(NodeId, NodeId, Member)> {
    let metrics = quorum.contact.metrics();
    let membership = metrics.membership_config.membership();
    let meetings = quorum.meetings.lock().expect("no holder of the lock panics");
    quorum.voters.iter().find_map(|(id, address)| {
        let directory = meetings.newcomer(*id)?;
        let new = NodeId { id: id.0, directory: directory.0 };
        let old = membership.voter_ids().find(|voter| voter.id == id.0 && *voter != new)?;
        let silent = quorum.links.acknowledged(old).map_or(since.elapsed(), |at| at.elapsed().min(since.elapsed()));
        (old != quorum.me && silent >= quorum.timeouts.replace_after)
            .then(|| (old, new, Member { address: address.clone() }))
    })
}

async fn replace(quorum: &Quorum, old: NodeId, new: NodeId, member: Member) {
    tracing::warn!(%old, %new, "a voter with a new metadata directory replaces its predecessor");
    let added = tokio::time::timeout(CHANGE, quorum.raft.add_learner(new, member, false)).await;
    if !matches!(added, Ok(Ok(_))) {
        tracing::warn!(?added, "the new voter is not added yet");
        return;
    }
    let target = quorum.contact.metrics().last_log_index;
    if tokio::time::timeout(CATCH_UP, caught_up(quorum, new, target)).await != Ok(true) {
        tracing::warn!(%new, "the new voter does not catch up");
        return;
    }
    let voters = quorum.contact.metrics().membership_config.membership().voter_ids().collect::<BTreeSet<_>>();
    change(quorum, voters.into_iter().map(|id| if id == old { new } else { id }).collect()).await;
}

/// Waits until a learner has the log up to `target`; false when this node is no longer active.
async fn caught_up(quorum: &Quorum, learner: NodeId, target: Option<u64>) -> bool {
    let mut reports = quorum.reports();
    while quorum.contact.active().is_some() {
        let metrics = quorum.contact.metrics();
        let matched = metrics.replication.as_ref().and_then(|replication| replication.get(&learner).copied().flatten());
        if matched.is_some() && matched.map(|id| id.index) >= target {
            return true;
        }
        if reports.changed().await.is_err() {
            return false;
        }
    }
    false
}

async fn change(quorum: &Quorum, voters: BTreeSet<NodeId>) {
    let changed = tokio::time::timeout(CHANGE, quorum.raft.change_membership(voters, false)).await;
    match changed {
        Ok(Ok(_)) => tracing::info!("the membership changed"),
        // It may be left joint: it is finished by the next round, or by the next leader.
        other => tracing::warn!(?other, "the membership has not changed yet"),
    }
}
