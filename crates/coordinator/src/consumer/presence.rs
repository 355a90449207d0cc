//! A consumer group as its coordinator has it: what is decided, committed or not, and who is waited for.

use std::collections::BTreeMap;

use model::Time;

use crate::consumer::draft::Wait;
use crate::consumer::group::{ConsumerFact, ConsumerGroup, MemberState};
use crate::consumer::heartbeat::Soft;
use crate::shard::Now;

/// The topics of a group are looked at again after this long, whatever the metadata says.
const REFRESH_MS: u64 = 3_600_000;

/// Until when a member is waited for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Deadlines {
    session: Time,
    /// With the epoch that it must leave.
    revocation: Option<(Time, i32)>,
    join: Option<Time>,
    sync: Option<Time>,
}

impl Deadlines {
    fn new(session: Time) -> Self {
        Deadlines { session, revocation: None, join: None, sync: None }
    }

    fn earliest(&self) -> Time {
        let revocation = self.revocation.map(|(at, _)| at);
        [revocation, self.join, self.sync].into_iter().flatten().fold(self.session, Time::min)
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LiveConsumerGroup {
    /// What is decided.
    pub group: ConsumerGroup,
    deadlines: BTreeMap<String, Deadlines>,
    refresh_at: Time,
    resolving: bool,
    /// No deadline of this group is earlier. It may be too early: heartbeats do not move it.
    earliest: Option<Time>,
}

impl LiveConsumerGroup {
    /// A group whose members were not heard of yet: their sessions, and the time they have to give up partitions, start now.
    #[must_use]
    pub fn new(group: ConsumerGroup, session_timeout_ms: u64, now: Now) -> Self {
        let mut live = LiveConsumerGroup {
            group,
            deadlines: BTreeMap::new(),
            refresh_at: Time::ZERO,
            resolving: false,
            earliest: None,
        };
        let members: Vec<_> = live.group.members().iter().map(|(id, member)| (id.clone(), member.clone())).collect();
        for (member_id, member) in members {
            let classic = member.profile.classic.as_ref();
            let session = classic.map_or(session_timeout_ms, |c| u64::try_from(c.session_timeout_ms).unwrap_or(0));
            live.wait(&Wait::Session(member_id.clone(), session), now);
            if classic.is_none() && member.current.state == MemberState::UnrevokedPartitions {
                let timeout_ms = u64::try_from(member.profile.rebalance_timeout_ms).unwrap_or(0);
                live.wait(&Wait::Revocation(member_id, member.current.epoch, timeout_ms), now);
            }
        }
        live
    }

    /// Puts another state of the group in the place of this one: what was decided could not be stored. Who is in it is
    /// waited for as before.
    pub fn restore(&mut self, group: ConsumerGroup, session_timeout_ms: u64, now: Now) {
        let mut fresh = LiveConsumerGroup::new(group, session_timeout_ms, now);
        for (member_id, deadlines) in &mut fresh.deadlines {
            if let Some(before) = self.deadlines.get(member_id) {
                deadlines.session = before.session;
            }
        }
        fresh.earliest = fresh.exact();
        *self = fresh;
    }

    /// Applies a fact that was decided.
    pub fn replay(&mut self, fact: &ConsumerFact) {
        self.group.replay(fact);
    }

    /// What is known softly.
    #[must_use]
    pub fn soft(&self, topic_created_at: i64, now: Now) -> Soft {
        Soft { refresh_due: now.monotonic >= self.refresh_at, resolving: self.resolving, topic_created_at }
    }

    /// The group's topics were looked at.
    pub fn refreshed(&mut self, now: Now) {
        self.refresh_at = now.monotonic + REFRESH_MS;
    }

    /// The group's topics must be looked at.
    pub fn request_refresh(&mut self) {
        self.refresh_at = Time::ZERO;
    }

    /// Its regular expressions are being resolved, or not any more.
    pub fn set_resolving(&mut self, resolving: bool) {
        self.resolving = resolving;
    }

    /// Waits for somebody, or not any more.
    pub fn wait(&mut self, wait: &Wait, now: Now) {
        let member_id = match wait {
            Wait::Gone(member_id) => {
                self.deadlines.remove(member_id);
                return;
            }
            Wait::Session(id, _) | Wait::Revocation(id, ..) | Wait::Join(id, _) | Wait::Sync(id, _) => id,
            Wait::NoRevocation(id) | Wait::NoJoin(id) | Wait::NoSync(id) => id,
        };
        let at = |ms: u64| now.monotonic + ms;
        // A new member's session is set by the same request.
        let known = self.deadlines.entry(member_id.clone()).or_insert_with(|| Deadlines::new(Time(u64::MAX)));
        match wait {
            Wait::Session(_, ms) => known.session = at(*ms),
            Wait::Revocation(_, epoch, ms) => known.revocation = Some((at(*ms), *epoch)),
            Wait::NoRevocation(_) => known.revocation = None,
            Wait::Join(_, ms) => known.join = known.join.or(Some(at(*ms))),
            Wait::NoJoin(_) => known.join = None,
            Wait::Sync(_, ms) => known.sync = Some(at(*ms)),
            Wait::NoSync(_) => known.sync = None,
            Wait::Gone(_) => {}
        }
        let earliest = known.earliest();
        self.earliest = Some(self.earliest.map_or(earliest, |before| before.min(earliest)));
    }

    /// The members that were waited for too long; they are not waited for any more.
    pub fn take_overdue(&mut self, now: Now) -> Vec<String> {
        let due = |at: Time| at <= now.monotonic;
        let mut overdue = Vec::new();
        for (member_id, deadlines) in &mut self.deadlines {
            // A member that left the epoch in time has given up what it had to.
            let current = self.group.member(member_id).map(|member| member.current.epoch);
            deadlines.revocation.take_if(|(at, epoch)| due(*at) && current != Some(*epoch));
            if due(deadlines.earliest()) {
                overdue.push(member_id.clone());
            }
        }
        for member_id in &overdue {
            self.deadlines.remove(member_id);
        }
        self.earliest = self.exact();
        overdue
    }

    /// A time at or before the next deadline.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.earliest
    }

    /// Panics where the group contradicts itself.
    pub fn assert_invariants(&self) {
        self.group.assert_invariants();
        let waited: Vec<&String> = self.deadlines.keys().collect();
        let members: Vec<&String> = self.group.members().keys().collect();
        assert_eq!(waited, members, "every member is waited for, and nobody else");
        let exact = self.exact();
        assert!(exact.is_none() || self.earliest <= exact, "timer: {:?} {exact:?}", self.earliest);
    }

    fn exact(&self) -> Option<Time> {
        self.deadlines.values().map(Deadlines::earliest).min()
    }
}
