//! When this node was last in contact with a leader, or as a leader with a quorum (`R75`).

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use model::{Rule, Rules};
use openraft::{LogId, ServerState};
use rpc::controller::Tenure;
use tokio::time::Instant;

use crate::raft::types::{NodeId, RaftMetrics, tenure};

/// openraft's metrics as they were last reported, with the time when they arrived here: they stand still while its core
/// waits for the disk.
#[derive(Debug)]
pub(crate) struct Contact {
    state: Mutex<State>,
    started: Instant,
    /// The lease of a follower, and the longest age at which a leader's quorum ack counts (`R68`).
    lease: Duration,
    rules: Rules,
}

#[derive(Debug)]
struct State {
    metrics: RaftMetrics,
    reported: Instant,
    heard: Instant,
    /// When this node became what it is in the quorum.
    since: Instant,
    /// A tenure of this node that is over for good although openraft may still show it (`R67`).
    over: Option<Tenure>,
}

impl Contact {
    pub(crate) fn new(metrics: RaftMetrics, lease: Duration, rules: Rules) -> Contact {
        let now = Instant::now();
        let state = State { metrics, reported: now, heard: now, since: now, over: None };
        Contact { state: Mutex::new(state), started: now, lease, rules }
    }

    pub(crate) fn lease(&self) -> Duration {
        self.lease
    }

    /// New metrics were reported.
    pub(crate) fn report(&self, metrics: RaftMetrics) {
        let mut state = self.state();
        state.reported = Instant::now();
        if (state.metrics.state, state.metrics.vote) != (metrics.state, metrics.vote) {
            state.since = state.reported;
        }
        state.metrics = metrics;
    }

    /// A leader's message was accepted.
    pub(crate) fn heard(&self) {
        self.state().heard = Instant::now();
    }

    /// The age of the last contact; for a leader, of its last quorum ack, or of its election before the first one.
    pub(crate) fn age(&self) -> Duration {
        let state = self.state();
        if state.metrics.state == ServerState::Leader {
            return state.quorum_ack_age().unwrap_or_else(|| state.since.elapsed());
        }
        state.heard.elapsed()
    }

    /// Whether an election of another node, which has `last`, may be started as far as this one knows (`R75`).
    pub(crate) fn consents(&self, last: Option<LogId<NodeId>>, own_last: Option<LogId<NodeId>>) -> bool {
        let alone = self.age() > self.lease || !self.rules.hold(Rule::R75Lease);
        alone && (own_last <= last || !self.rules.hold(Rule::R75LogId))
    }

    /// Whether this node started less than a lease ago: openraft's own lease is void after a restart.
    pub(crate) fn just_started(&self) -> bool {
        self.started.elapsed() < self.lease
    }

    /// The tenure in which this node is the active controller, at this very moment (`R68`).
    pub(crate) fn active(&self) -> Option<Tenure> {
        let state = self.state();
        let metrics = &state.metrics;
        if metrics.state != ServerState::Leader || metrics.running_state.is_err() || !metrics.vote.committed {
            return None;
        }
        if metrics.vote.leader_id.node_id != metrics.id {
            return None;
        }
        let own_entry_applied = metrics.last_applied.is_some_and(|id| id.leader_id == metrics.vote.leader_id);
        let fresh = state.quorum_ack_age().is_some_and(|age| age < self.lease);
        let now = tenure(&metrics.vote.leader_id);
        let fresh = fresh || !self.rules.hold(Rule::R68Fresh);
        (own_entry_applied && fresh && state.over != Some(now)).then_some(now)
    }

    /// The tenure of this node as a leader, whether it is active or not.
    pub(crate) fn leading(&self) -> Option<Tenure> {
        let state = self.state();
        let metrics = &state.metrics;
        let mine = metrics.state == ServerState::Leader && metrics.vote.leader_id.node_id == metrics.id;
        (mine && metrics.vote.committed).then(|| tenure(&metrics.vote.leader_id))
    }

    /// That tenure will not become active again.
    pub(crate) fn give_up(&self, over: Tenure) {
        self.state().over = Some(over);
    }

    pub(crate) fn has_given_up(&self, tenure: Tenure) -> bool {
        self.state().over == Some(tenure)
    }

    pub(crate) fn metrics(&self) -> RaftMetrics {
        self.state().metrics.clone()
    }

    /// For how long the metrics have stood still.
    pub(crate) fn silence(&self) -> Duration {
        self.state().reported.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

impl State {
    fn quorum_ack_age(&self) -> Option<Duration> {
        let ack = self.metrics.millis_since_quorum_ack?;
        Some(self.reported.elapsed() + Duration::from_millis(ack))
    }
}

#[cfg(test)]
mod tests {
    use model::{BrokerId, DirectoryId, Uuid};
    use rpc::raft::QuorumNode;
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_millis(400);
    const MOMENT: Duration = Duration::from_millis(1);

    fn node(id: i32) -> NodeId {
        NodeId::new(QuorumNode { id: BrokerId(id), directory: DirectoryId(Uuid::from_u128(1)) })
    }

    fn last(term: u64, index: u64) -> Option<LogId<NodeId>> {
        Some(LogId::new(openraft::CommittedLeaderId::new(term, node(1)), index))
    }

    fn contact(state: ServerState) -> Contact {
        let mut metrics = RaftMetrics::new_initial(node(2));
        metrics.state = state;
        Contact::new(metrics, LEASE, crate::rules())
    }

    /// R68: who was confirmed by a quorum within the lease, and by nobody since, is active until the lease is over.
    #[tokio::test(start_paused = true)]
    async fn a_leader_is_active_only_while_a_quorum_has_confirmed_it_within_the_lease() {
        let mut metrics = RaftMetrics::new_initial(node(2));
        metrics.state = ServerState::Leader;
        metrics.vote = openraft::Vote::new_committed(3, node(2));
        metrics.last_applied = Some(LogId::new(openraft::CommittedLeaderId::new(3, node(2)), 7));
        let contact = Contact::new(metrics.clone(), LEASE, crate::rules());
        assert_eq!(contact.active(), None, "nobody has confirmed it yet");
        metrics.millis_since_quorum_ack = Some(100);
        contact.report(metrics.clone());
        let active = contact.active().expect("confirmed a moment ago");
        advance(LEASE - Duration::from_millis(101)).await;
        assert_eq!(contact.active(), Some(active));
        advance(MOMENT).await;
        assert_eq!(contact.active(), None, "openraft's numbers grow older while it reports none");
        metrics.millis_since_quorum_ack = Some(0);
        contact.report(metrics);
        assert_eq!(contact.active(), Some(active));
        contact.give_up(active);
        assert_eq!(contact.active(), None);
    }

    /// R75: start and restart count as contact, and so does what a leader says; only silence of more than a lease lets another
    /// node be elected.
    #[tokio::test(start_paused = true)]
    async fn a_voter_agrees_to_an_election_after_a_lease_without_contact_only() {
        let contact = contact(ServerState::Follower);
        assert!(!contact.consents(last(1, 5), last(1, 5)), "it has just started");
        advance(LEASE).await;
        assert!(!contact.consents(last(1, 5), last(1, 5)));
        advance(MOMENT).await;
        assert!(contact.consents(last(1, 5), last(1, 5)));
        contact.heard();
        assert!(!contact.consents(last(1, 5), last(1, 5)), "a leader spoke");
        advance(LEASE + MOMENT).await;
        assert!(contact.consents(last(1, 5), last(1, 5)));
    }

    /// R75: log ids are compared, not lengths.
    #[tokio::test(start_paused = true)]
    async fn a_voter_agrees_to_the_election_of_nobody_whose_log_is_behind_its_own() {
        let contact = contact(ServerState::Follower);
        advance(LEASE + MOMENT).await;
        assert!(!contact.consents(last(1, 4), last(1, 5)));
        assert!(!contact.consents(last(1, 9), last(2, 5)), "longer, of an older term");
        assert!(contact.consents(last(2, 5), last(1, 9)), "shorter, of a newer term");
        assert!(!contact.consents(None, last(1, 1)));
        assert!(contact.consents(None, None), "both are blank");
    }

    /// R68, R75: a leader's contact is its last quorum ack, which grows older while nothing is reported, and its election until
    /// the first of them.
    #[tokio::test(start_paused = true)]
    async fn a_leader_without_its_quorum_agrees_to_the_election_of_another() {
        let contact = contact(ServerState::Leader);
        assert!(!contact.consents(last(1, 5), last(1, 5)), "it has just been elected");
        advance(LEASE / 2).await;
        let mut metrics = contact.metrics();
        metrics.millis_since_quorum_ack = Some(100);
        contact.report(metrics);
        advance(LEASE - Duration::from_millis(100)).await;
        assert!(!contact.consents(last(1, 5), last(1, 5)));
        advance(MOMENT).await;
        assert!(contact.consents(last(1, 5), last(1, 5)));
    }
}
