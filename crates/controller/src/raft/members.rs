//! The leader's care for the membership (`R74`): a voter whose disk was wiped is replaced by its successor, a joint
//! configuration that a lost leader left is finished, and voters come and go as an operator says (KIP-853).
//!
//! Invariants: one change at a time, through a joint configuration; the old member has been silent for
//! [`Timeouts::replace_after`](crate::Timeouts::replace_after); the new one has caught up as a learner.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use metadata::ControlError;
use model::{BrokerId, ErrorCode};
use openraft::ChangeMembers;
use rpc::raft::QuorumNode;
use tokio::time::Instant;

use crate::raft::Quorum;
use crate::raft::types::{Member, NodeId};

/// Between two looks of a leader.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a learner may take to catch up before the replacement is tried anew.
const CATCH_UP: Duration = Duration::from_secs(60);
const CHANGE: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(crate) async fn run(quorum: Arc<Quorum>) {
    let mut leading_since: Option<Instant> = None;
    let mut reports = quorum.reports();
    loop {
        if leading_since.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
        if quorum.contact.active().is_none() {
            leading_since = None;
            // It becomes active by a report only.
            if reports.changed().await.is_err() {
                return;
            }
            continue;
        }
        let since = *leading_since.get_or_insert_with(Instant::now);
        // An operator's change is under way: it finishes what it began, or leaves it to the next round.
        let Ok(_one) = quorum.changing.try_lock() else { continue };
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
    membership.voter_ids().find_map(|old| {
        let directory = meetings.newcomer(BrokerId(old.id))?;
        let new = NodeId { id: old.id, directory: directory.0 };
        if new == old {
            return None;
        }
        let before = membership.get_node(&old)?;
        let member = Member { address: quorum.links.address(old, before), given: before.given };
        let silent = quorum.links.acknowledged(old).map_or(since.elapsed(), |at| at.elapsed().min(since.elapsed()));
        (old != quorum.me && silent >= quorum.timeouts.replace_after).then_some((old, new, member))
    })
}

async fn replace(quorum: &Quorum, old: NodeId, new: NodeId, member: Member) {
    tracing::warn!(%old, %new, "a voter with a new metadata directory replaces its predecessor");
    if let Err(error) = teach(quorum, new, member).await {
        tracing::warn!(%error, "the new voter does not follow yet");
        return;
    }
    change(quorum, voters(quorum).into_iter().map(|id| if id == old { new } else { id }).collect()).await;
}

fn voters(quorum: &Quorum) -> BTreeSet<NodeId> {
    quorum.contact.metrics().membership_config.membership().voter_ids().collect()
}

/// Adds a voter that an operator names, once it follows and has caught up.
pub(crate) async fn add(quorum: &Quorum, node: QuorumNode, address: String) -> Result<(), ControlError> {
    let _one = quorum.changing.lock().await;
    settle(quorum).await?;
    let refuse = |code, message: String| Err(ControlError::new(code, message));
    if voters(quorum).iter().any(|voter| voter.id == node.id.0) {
        return refuse(ErrorCode::DuplicateVoter, format!("node {} is a voter already", node.id));
    }
    if address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).is_none() {
        return refuse(ErrorCode::InvalidRequest, format!("{address:?} is not host:port of a CONTROLLER listener"));
    }
    let met = quorum.meetings.lock().expect("no holder of the lock panics").newcomer(node.id);
    let Some(directory) = Some(node.directory).filter(|directory| !directory.is_none()).or(met) else {
        let message = format!(
            "node {} has not introduced itself: start it with these controllers in its controller.quorum.voters, or say its \
             directory id",
            node.id
        );
        return refuse(ErrorCode::VoterNotFound, message);
    };
    let new = NodeId { id: node.id.0, directory: directory.0 };
    tracing::warn!(%new, address, "a voter is added");
    let member = Member { address, given: true };
    let known = quorum.contact.metrics().membership_config.membership().get_node(&new).cloned();
    if known.is_some_and(|known| known != member) {
        // It was named before, at another address: openraft keeps the first one.
        forget(quorum, new).await;
    }
    if let Err(error) = teach(quorum, new, member).await {
        forget(quorum, new).await;
        return Err(error);
    }
    let mut wanted = voters(quorum);
    wanted.insert(new);
    commit(quorum, wanted).await
}

/// Takes a voter out; the quorum goes on without it.
pub(crate) async fn remove(quorum: &Quorum, node: QuorumNode) -> Result<(), ControlError> {
    let _one = quorum.changing.lock().await;
    settle(quorum).await?;
    let refuse = |code, message: String| Err(ControlError::new(code, message));
    let mut wanted = voters(quorum);
    let is_meant =
        |voter: &NodeId| voter.id == node.id.0 && (node.directory.is_none() || voter.directory == node.directory.0);
    let Some(gone) = wanted.iter().copied().find(is_meant) else {
        return refuse(ErrorCode::VoterNotFound, format!("there is no voter {} with that directory", node.id));
    };
    wanted.remove(&gone);
    if wanted.is_empty() {
        return refuse(ErrorCode::InvalidRequest, "the last voter cannot be removed".to_owned());
    }
    tracing::warn!(%gone, "a voter is removed");
    commit(quorum, wanted).await
}

/// Waits until the last change is committed: before, openraft takes no other one. Who asked for it may have gone away meanwhile.
async fn settle(quorum: &Quorum) -> Result<(), ControlError> {
    let mut reports = quorum.reports();
    let settled = async {
        loop {
            let metrics = quorum.contact.metrics();
            if *metrics.membership_config.log_id() <= metrics.last_applied {
                return true;
            }
            if reports.changed().await.is_err() {
                return false;
            }
        }
    };
    if tokio::time::timeout(CHANGE, settled).await == Ok(true) {
        return Ok(());
    }
    Err(ControlError::new(ErrorCode::RequestTimedOut, "an earlier change of the voters is not committed yet"))
}

/// A learner that does not become a voter is sent nothing any more. Where that does not come about, it follows on.
async fn forget(quorum: &Quorum, learner: NodeId) {
    let removed = quorum.raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([learner])), true);
    match tokio::time::timeout(CHANGE, removed).await {
        Ok(Ok(_)) => {}
        other => tracing::warn!(%learner, ?other, "a node that follows is not taken out yet"),
    }
}

/// A node follows as a learner until it has what there is now.
async fn teach(quorum: &Quorum, new: NodeId, member: Member) -> Result<(), ControlError> {
    let late = |what: &str| ControlError::new(ErrorCode::RequestTimedOut, format!("{new} {what}"));
    let added = tokio::time::timeout(CHANGE, quorum.raft.add_learner(new, member, false)).await;
    if !matches!(added, Ok(Ok(_))) {
        return Err(late(&format!("is not taken on yet: {added:?}")));
    }
    let target = quorum.contact.metrics().last_log_index;
    match tokio::time::timeout(CATCH_UP, caught_up(quorum, new, target)).await {
        Ok(true) => Ok(()),
        _ => Err(late("does not catch up: is it running, and its address right?")),
    }
}

async fn commit(quorum: &Quorum, voters: BTreeSet<NodeId>) -> Result<(), ControlError> {
    if change(quorum, voters).await {
        return Ok(());
    }
    let message = "the change is not committed yet: describe the quorum to see what became of it";
    Err(ControlError::new(ErrorCode::RequestTimedOut, message))
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

/// Whether the change is committed.
async fn change(quorum: &Quorum, voters: BTreeSet<NodeId>) -> bool {
    let changed = tokio::time::timeout(CHANGE, quorum.raft.change_membership(voters, false)).await;
    match changed {
        Ok(Ok(_)) => {
            tracing::info!("the membership changed");
            true
        }
        // It may be left joint: it is finished by the next round, or by the next leader.
        other => {
            tracing::warn!(?other, "the membership has not changed yet");
            false
        }
    }
}
