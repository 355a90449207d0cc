//! Elections (`R75`): openraft's own are off, because without a pre-vote an isolated or restarted node deposes a healthy
//! leader.
//!
//! A voter that has been without contact for a lease and a random time asks all voters of its effective membership whether
//! they too are without contact and not ahead of it; only a quorum of yes starts an election.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::{Membership, ServerState};
use rpc::raft::{RaftAnswer, RaftCall};

use crate::raft::Quorum;
use crate::raft::runtime::Random;
use crate::raft::types::{Member, NodeId, log_id_to_wire};

/// Elections in vain after which they follow each other at no longer distances.
const SPREAD_MAX: u32 = 3;

/// Runs until it is dropped.
pub(crate) async fn run(quorum: Arc<Quorum>, mut random: Random) {
    let lease = quorum.contact.lease();
    let (min, max) = (quorum.timeouts.election_min / 4, quorum.timeouts.election_min);
    // Elections since somebody led that came to nothing.
    let mut vain = 0;
    loop {
        let patience = lease + random.between(min, max);
        if wait_for_silence(&quorum, patience).await {
            vain = 0;
        }
        if quorum.waits_for_space() {
            tokio::time::sleep(lease).await;
            continue;
        }
        // A round's answers are void after half a lease; elections follow each other at random distances.
        let round = tokio::time::timeout(lease / 2, ask_all(&quorum)).await;
        let silent = is_bound_to_nobody(&quorum) || quorum.contact.age() > lease;
        if round == Ok(true) && silent && quorum.contact.metrics().state != ServerState::Leader {
            tracing::info!(node = %quorum.me, "no contact with a leader, and a quorum agrees: an election starts");
            if let Err(error) = quorum.raft.trigger().elect().await {
                tracing::error!(%error, "openraft takes no election");
            }
            vain += 1;
        }
        // A vote is synced by one node, then by others: where that takes longer than the distance, candidates overtake each
        // other for ever.
        rest(&quorum, random.between(min, max) * (1 << vain.min(SPREAD_MAX))).await;
    }
}

/// Waits so long, or until somebody leads.
async fn rest(quorum: &Quorum, distance: Duration) {
    let until = tokio::time::Instant::now() + distance;
    let mut reports = quorum.reports();
    while tokio::time::timeout_at(until, reports.changed()).await.is_ok_and(|change| change.is_ok()) {
        if quorum.contact.age() <= quorum.contact.lease() {
            return;
        }
    }
}

/// Whether no other node can be a leader, or count on the lease of this one, however short ago it was started: then it waits
/// for nobody (`R75`).
fn is_bound_to_nobody(quorum: &Quorum) -> bool {
    let metrics = quorum.contact.metrics();
    let membership = metrics.membership_config.membership();
    metrics.state == ServerState::Follower && rules_alone(membership, metrics.vote.leader_id.node_id, quorum.me)
}

/// Whether a node is the only voter, and voted for itself last. A quorum of any configuration that may still be in force
/// somewhere needs its vote or its acknowledgement, and with that vote it waited for the end of what it had promised others,
/// and has refused them since.
fn rules_alone(membership: &Membership<NodeId, Member>, voted_for: NodeId, me: NodeId) -> bool {
    voted_for == me && *membership.get_joint_config() == [BTreeSet::from([me])]
}

/// Returns when this node is a voter, no leader, and without contact for `patience`, or bound to nobody; whether there was
/// contact before.
async fn wait_for_silence(quorum: &Quorum, patience: Duration) -> bool {
    let mut reports = quorum.reports();
    let mut heard = false;
    loop {
        reports.borrow_and_update();
        let metrics = quorum.contact.metrics();
        let voter = metrics.membership_config.membership().voter_ids().any(|id| id == quorum.me);
        let age = quorum.contact.age();
        heard |= age <= quorum.contact.lease();
        if voter && metrics.state != ServerState::Leader && (age >= patience || is_bound_to_nobody(quorum)) {
            return heard;
        }
        let rest = patience.saturating_sub(age).max(Duration::from_millis(20));
        // What it is in the quorum is reported only after the start.
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            _ = reports.changed() => {}
        }
    }
}

/// Whether a quorum consents; returns as soon as that is known, so that the dead need not be waited for.
async fn ask_all(quorum: &Quorum) -> bool {
    let metrics = quorum.contact.metrics();
    let membership = metrics.membership_config.membership();
    let last = quorum.log_store.last().as_ref().map(log_id_to_wire);
    let mut yes = BTreeSet::from([quorum.me]);
    let others = membership.voter_ids().filter(|id| *id != quorum.me);
    let mut answers: FuturesUnordered<_> = others
        .filter_map(|id| {
            let member = membership.get_node(&id)?;
            if !quorum.links.passes(id.id) {
                return None;
            }
            let peer = quorum.links.peer(id.quorum_node(), &quorum.links.address(id, member)).ok()?;
            let timeout = quorum.contact.lease() / 2;
            Some(async move { (id, peer.call(RaftCall::MayElect { last }, timeout).await) })
        })
        .collect();
    loop {
        if is_quorum(membership, &yes) {
            return true;
        }
        match answers.next().await {
            Some((id, Ok(RaftAnswer::MayElect(true)))) => {
                yes.insert(id);
            }
            Some(_) => {}
            None => return false,
        }
    }
}

/// Whether these are a majority of each of the configurations in force.
pub(crate) fn is_quorum(membership: &Membership<NodeId, Member>, nodes: &BTreeSet<NodeId>) -> bool {
    let configs = membership.get_joint_config();
    let majority = |config: &BTreeSet<NodeId>| config.intersection(nodes).count() * 2 > config.len();
    !configs.is_empty() && configs.iter().all(majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId::from(*id)).collect::<BTreeSet<_>>();
        let joint = Membership::new(vec![set(&[1, 2, 3]), set(&[3, 4, 5])], ());
        assert!(!is_quorum(&joint, &set(&[1, 2])));
        assert!(!is_quorum(&joint, &set(&[4, 5, 1])));
        assert!(is_quorum(&joint, &set(&[1, 3, 4])));
        assert!(is_quorum(&Membership::new(vec![set(&[7])], ()), &set(&[7])));
        assert!(!is_quorum(&Membership::default(), &set(&[7])));
    }

    #[test]
    fn only_a_sole_voter_that_voted_for_itself_waits_for_nobody() {
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId::from(*id)).collect::<BTreeSet<_>>();
        let (me, other) = (NodeId::from(7), NodeId::from(8));
        let alone = Membership::new(vec![set(&[7])], ());
        assert!(rules_alone(&alone, me, me));
        assert!(!rules_alone(&alone, other, me), "the one it voted for may still count on its lease");
        assert!(!rules_alone(&alone, NodeId::default(), me), "a fresh initialiser");
        assert!(!rules_alone(&Membership::new(vec![set(&[7, 8])], ()), me, me));
        assert!(!rules_alone(&Membership::new(vec![set(&[7, 8]), set(&[7])], ()), me, me));
        assert!(!rules_alone(&Membership::new(vec![set(&[8])], ()), me, me), "a learner");
    }
}
