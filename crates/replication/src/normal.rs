//! The normal form of a replica, for models (feature `models`): what two replicas share that will do the same for ever.
//!
//! A model's state is known by its hash. What only names a thing (numbers of opens and proposals) is hashed by its rank,
//! which the model knows; what is a time, by where it is from now: a model lets [`crate::ReplicaConfig::lag_time_max_ms`] be
//! less than any step of its clock, so that whatever is not of now is late. Nothing is left out but what no decision reads:
//! the count of truncations (a model's syncs end where they begin) and, where there is no window, what is in flight.
//!
//! Invariant: every field of the core is named here, so that a new one cannot be forgotten.

use std::hash::{Hash, Hasher};

use model::{BrokerId, Time};

use crate::follower::{Current, Follower, Link};
use crate::isr::{Pending, Proposal, ProposalId};
use crate::leader::{Cursor, Leader, Mark, Peer};
use crate::messages::{Ack, Open, ReplicaConfig, Session};
use crate::replica::{Core, Replica, Role};

/// What the numbers and times of a replica stand for.
pub struct Names<'a> {
    /// The replica's clock.
    pub now: Time,
    /// The rank of a follower's open number.
    pub open: &'a dyn Fn(BrokerId, u64) -> u64,
    /// The rank of a number of this replica's proposals.
    pub proposal: &'a dyn Fn(u64) -> u64,
}

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("now", &self.now).finish_non_exhaustive()
    }
}

/// A time that is ahead, or due.
fn ahead(time: Time, now: Time) -> u64 {
    if time == Time::ZERO { 0 } else { 1 + time.since(now) }
}

/// A time that is past: of now, or late.
fn is_of_now(time: Time, now: Time) -> bool {
    time >= now
}

impl Replica {
    /// Hashes the normal form.
    pub fn hash_normal<H: Hasher>(&self, names: &Names<'_>, state: &mut H) {
        let Replica { core, role } = self;
        core.hash_normal(names, state);
        std::mem::discriminant(role).hash(state);
        match role {
            Role::Idle => {}
            Role::Leader(leader) => leader.hash_normal(core, names, state),
            Role::Follower(follower) => follower.hash_normal(core, names, state),
        }
    }

    /// Calls `seen` with each open number that this replica knows, and whose it is.
    pub fn open_numbers(&self, seen: &mut dyn FnMut(BrokerId, u64)) {
        let me = self.core.config.me;
        seen(me, self.core.last_open_no);
        match &self.role {
            Role::Idle => {}
            Role::Leader(leader) => {
                for peer in &leader.peers {
                    let sessions = peer.greatest.into_iter().chain(peer.cursor.as_ref().map(|cursor| cursor.session));
                    sessions.for_each(|session| seen(peer.id, session.open_no));
                }
            }
            Role::Follower(Follower { link, .. }) => match link {
                Link::Wanted | Link::Backoff(_) => {}
                Link::Opening(Open { open_no, .. }) | Link::Current(Current { open_no, .. }) => seen(me, *open_no),
            },
        }
    }

    /// The number of the open that this follower waits on, or of its session.
    #[must_use]
    pub fn open_number(&self) -> Option<u64> {
        match &self.role {
            Role::Follower(Follower { link: Link::Opening(Open { open_no, .. }), .. })
            | Role::Follower(Follower { link: Link::Current(Current { open_no, .. }), .. }) => Some(*open_no),
            _ => None,
        }
    }

    /// The current session of a follower at this leader.
    #[must_use]
    pub fn current_session(&self, follower: BrokerId) -> Option<Session> {
        match &self.role {
            Role::Leader(leader) => leader.peer(follower)?.cursor.as_ref().map(|cursor| cursor.session),
            _ => None,
        }
    }

    /// Whether there is something to carry out.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.core.actions.is_empty()
    }

    /// The number of the proposal that is not decided yet.
    #[must_use]
    pub fn pending_proposal(&self) -> Option<u64> {
        match &self.role {
            Role::Leader(leader) => leader.pending.as_ref().map(|pending| pending.proposal.id.number),
            _ => None,
        }
    }
}

impl Core {
    fn hash_normal<H: Hasher>(&self, names: &Names<'_>, state: &mut H) {
        let Core {
            config,
            log,
            truncations: _,
            epochs,
            leader_epoch,
            partition_epoch,
            members,
            ack_rule,
            own_sync_before_ack,
            leader_syncs_before_ack,
            recovering,
            last_open_no,
            // Only new numbers come from it.
            last_proposal: _,
            actions,
        } = self;
        let ReplicaConfig { me, lag_time_max_ms: _, window_bytes: _, opens_before: _, rules } = config;
        (me, rules, log, epochs, leader_epoch, partition_epoch).hash(state);
        (members, ack_rule, own_sync_before_ack, leader_syncs_before_ack, recovering, actions).hash(state);
        (names.open)(*me, *last_open_no).hash(state);
    }
}

impl Leader {
    fn hash_normal<H: Hasher>(&self, core: &Core, names: &Names<'_>, state: &mut H) {
        let Leader { epoch_start, isr, peers, pending, hold_until, joins_until } = self;
        (epoch_start, isr).hash(state);
        (ahead(*hold_until, names.now), joins_until.map(|time| ahead(time, names.now))).hash(state);
        peers.len().hash(state);
        peers.iter().for_each(|peer| peer.hash_normal(core, names, state));
        pending.is_some().hash(state);
        if let Some(Pending { proposal, added, uncertain, send_at }) = pending {
            hash_proposal(proposal, names, state);
            (added, uncertain, send_at.map(|time| ahead(time, names.now))).hash(state);
        }
    }
}

/// Hashes a proposal by the rank of its number.
pub fn hash_proposal<H: Hasher>(proposal: &Proposal, names: &Names<'_>, state: &mut H) {
    let Proposal { id, isr } = proposal;
    hash_proposal_id(id, names, state);
    isr.hash(state);
}

/// As [`hash_proposal`], for what an answer names.
pub fn hash_proposal_id<H: Hasher>(id: &ProposalId, names: &Names<'_>, state: &mut H) {
    let ProposalId { leader_epoch, partition_epoch, number } = id;
    (leader_epoch, partition_epoch, (names.proposal)(*number)).hash(state);
}

impl Peer {
    fn hash_normal<H: Hasher>(&self, core: &Core, names: &Names<'_>, state: &mut H) {
        let Peer { id, log_end, durable_end, log_start, caught_up, mark, greatest, cursor } = self;
        let Mark { at, log_end: mark_end } = mark;
        (id, log_end, durable_end, log_start, mark_end).hash(state);
        (is_of_now(*caught_up, names.now), is_of_now(*at, names.now)).hash(state);
        greatest.is_some().hash(state);
        if let Some(session) = greatest {
            hash_session(*id, *session, names, state);
        }
        cursor.is_some().hash(state);
        if let Some(cursor) = cursor {
            let Cursor {
                session, sent_end, sent_epoch, sent_high_watermark, sent_log_start, sent_mode, in_flight, ..
            } = cursor;
            hash_session(*id, *session, names, state);
            (sent_end, sent_epoch, sent_high_watermark, sent_log_start, sent_mode).hash(state);
            if core.config.window_bytes != u64::MAX {
                (in_flight, cursor.in_flight_bytes).hash(state);
            }
        }
    }
}

fn hash_session<H: Hasher>(follower: BrokerId, session: Session, names: &Names<'_>, state: &mut H) {
    let Session { broker_epoch, open_no, stream_no } = session;
    (broker_epoch, (names.open)(follower, open_no), stream_no).hash(state);
}

impl Follower {
    fn hash_normal<H: Hasher>(&self, core: &Core, names: &Names<'_>, state: &mut H) {
        let Follower { leader, link } = self;
        let number = |open_no| (names.open)(core.config.me, open_no);
        leader.hash(state);
        std::mem::discriminant(link).hash(state);
        match link {
            Link::Wanted => {}
            Link::Backoff(until) => ahead(*until, names.now).hash(state),
            Link::Opening(open) => {
                let Open { open_no, leader_epoch, log_end, last_epoch, log_start, durable } = *open;
                (number(open_no), leader_epoch, log_end, last_epoch, log_start, durable).hash(state);
            }
            Link::Current(Current { open_no, prev_epoch, acked }) => {
                let Ack { open_no: acked_in, log_end, log_start, durable } = *acked;
                (number(*open_no), prev_epoch, number(acked_in), log_end, log_start, durable).hash(state);
            }
        }
    }
}
