//! Whether sync before ack has been in force for all that this replica has ever acknowledged (`R35`): its history, not the
//! topic's present setting.
//!
//! ```text
//!            wanted, in sync              a sync covers what was there
//!   Broken ───────────────────► Covering ──────────────────────────────► Held ◄── noted in the checkpoint: a restart
//!     ▲                            │                                      │
//!     ├───────── unwanted ─────────┘                             unwanted │
//!     └───────── the checkpoint says it no longer ◄──────────────────── Ending
//! ```
//!
//! Invariants: the checkpoint says it only of a replica that holds it, or that goes on as if it did until the checkpoint
//! says it no longer: the answer in a recovery is never optimistic. A replica that came out of a crash begins anew only as
//! a member of the ISR of its present registration: then it has all that was ever committed (`R12`).

use model::Offset;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SyncHistory {
    state: State,
    /// The topic's setting, as the metadata has it.
    wanted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Something may have been acknowledged that no sync covered.
    Broken,
    /// In force from here on; a sync has not covered yet what the log held before.
    Covering { until: Offset },
    /// In force for everything; `since` is where the log ended when that began.
    Held { since: Offset },
    /// No longer wanted, but the checkpoint may still say it.
    Ending,
}

impl SyncHistory {
    /// As the last process left it: `since` is what the checkpoint says of this replica, whose log ends at `log_end`.
    pub(crate) fn restored(since: Option<Offset>, log_end: Offset) -> SyncHistory {
        match since {
            Some(since) if since <= log_end => SyncHistory { state: State::Held { since }, wanted: true },
            _ => SyncHistory { state: State::Broken, wanted: false },
        }
    }

    /// The metadata says what the topic wants, and whether this replica is in sync in its present registration.
    pub(crate) fn want(&mut self, wanted: bool, in_sync: bool, log_end: Offset) {
        self.wanted = wanted;
        match self.state {
            State::Broken if wanted && in_sync => self.state = State::Covering { until: log_end },
            State::Covering { .. } if !wanted => self.state = State::Broken,
            State::Held { .. } if !wanted => self.state = State::Ending,
            _ => {}
        }
    }

    /// What the log holds below `synced_end` is durable.
    pub(crate) fn synced(&mut self, synced_end: Offset) {
        if let State::Covering { until } = self.state
            && synced_end >= until
        {
            self.state = State::Held { since: until };
        }
    }

    /// The checkpoint that is on disk now does not say it: what was ending has ended.
    pub(crate) fn forgotten(&mut self, log_end: Offset) {
        if self.state == State::Ending {
            // It was in force all the time: where it is wanted again, only the checkpoint has to say so again.
            self.state = if self.wanted { State::Covering { until: log_end } } else { State::Broken };
        }
    }

    /// Whether records count only once they are durable.
    pub(crate) fn in_force(&self) -> bool {
        self.wanted || self.is_ending()
    }

    /// Whether all that this replica acknowledged was synced before.
    pub(crate) fn holds(&self) -> bool {
        matches!(self.state, State::Held { .. } | State::Ending)
    }

    /// What the checkpoint is to say.
    pub(crate) fn since(&self) -> Option<Offset> {
        match self.state {
            State::Held { since } => Some(since),
            _ => None,
        }
    }

    /// Whether it waits for a checkpoint that does not say it.
    pub(crate) fn is_ending(&self) -> bool {
        self.state == State::Ending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica of the ISR whose topic has wanted it from the log end 10 on, all synced.
    fn held() -> SyncHistory {
        let mut history = SyncHistory::restored(None, Offset(10));
        history.want(true, true, Offset(10));
        history.synced(Offset(10));
        assert_eq!(history.since(), Some(Offset(10)));
        history
    }

    #[test]
    fn a_setting_says_nothing_of_what_was_acknowledged_before_it() {
        let mut history = SyncHistory::restored(None, Offset(10));
        assert!(!history.in_force());
        history.want(true, true, Offset(10));
        assert!(history.in_force() && !history.holds());
        history.synced(Offset(9));
        assert!(!history.holds(), "what was acknowledged below 10 may be in no disk");
        history.synced(Offset(10));
        assert!(history.holds());
    }

    #[test]
    fn a_replica_that_is_not_in_sync_may_lack_what_it_acknowledged_before_a_crash() {
        let mut history = SyncHistory::restored(None, Offset(10));
        history.want(true, false, Offset(10));
        history.synced(Offset(10));
        assert!(history.in_force() && !history.holds() && history.since().is_none());
        history.want(true, true, Offset(12));
        history.synced(Offset(12));
        assert_eq!(history.since(), Some(Offset(12)));
    }

    #[test]
    fn it_stays_in_force_until_no_checkpoint_says_so() {
        let mut history = held();
        history.want(false, true, Offset(20));
        assert!(history.in_force() && history.holds() && history.is_ending());
        assert_eq!(history.since(), None);
        history.forgotten(Offset(21));
        assert!(!history.in_force() && !history.holds());
        history.synced(Offset(30));
        assert!(!history.holds());
    }

    #[test]
    fn wanted_again_before_it_ended_it_went_on() {
        let mut history = held();
        history.want(false, true, Offset(20));
        history.want(true, false, Offset(20));
        assert!(history.is_ending(), "a checkpoint that is being written may or may not say it");
        history.forgotten(Offset(25));
        assert!(history.in_force() && history.since().is_none());
        history.synced(Offset(25));
        assert_eq!(history.since(), Some(Offset(25)));
        // What nobody waited for changes nothing.
        history.forgotten(Offset(26));
        assert!(history.holds());
    }

    #[test]
    fn a_restart_goes_on_where_the_checkpoint_says_so_and_the_log_reaches_it() {
        assert!(SyncHistory::restored(Some(Offset(10)), Offset(10)).holds());
        assert!(!SyncHistory::restored(Some(Offset(10)), Offset(9)).holds());
        assert!(!SyncHistory::restored(None, Offset(9)).holds());
        let mut weaker = SyncHistory::restored(Some(Offset(10)), Offset(30));
        weaker.want(false, false, Offset(30));
        assert!(weaker.is_ending());
    }
}
