//! When a controller gives up its tenure, and when its process must end (`R67`).
//!
//! A leader whose batch stays unresolved or whose metrics stand still for two seconds stops its heartbeats, so that the
//! others elect; after ten seconds, or when openraft has stopped, nothing but a restart helps. The ten seconds are of a
//! process that runs: one that was paused starts to count when it goes on, and so does one whose log waits for space.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rpc::controller::Tenure;
use tokio::time::Instant;

use crate::raft::Quorum;

const RESIGN: Duration = Duration::from_secs(2);
const FATAL: Duration = Duration::from_secs(10);
/// Between two looks where something may be wrong, and where nothing is.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// What to do when this process cannot go on as a controller.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub(crate) struct Supervision {
    on_fatal: OnFatal,
    resigned: Mutex<Option<Tenure>>,
    awake: Mutex<Awake>,
}

/// Since when this process runs without a pause, as far as it can tell from how often it looks.
#[derive(Debug)]
struct Awake {
    since: Instant,
    looked: Instant,
}

impl Awake {
    /// How long nothing has paused the process, as far as it is not `held`.
    fn look(&mut self, now: Instant, held: bool) -> Duration {
        if held || now - self.looked >= RESIGN {
            self.since = now;
        }
        self.looked = now;
        now - self.since
    }
}

impl fmt::Debug for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervision").field("resigned", &self.resigned).finish_non_exhaustive()
    }
}

impl Supervision {
    pub(crate) fn new(on_fatal: OnFatal) -> Supervision {
        let now = Instant::now();
        Supervision { on_fatal, resigned: Mutex::default(), awake: Mutex::new(Awake { since: now, looked: now }) }
    }

    /// A proposal has been unresolved for so long.
    pub(crate) fn unresolved(&self, quorum: &Quorum, tenure: Tenure, age: Duration) {
        self.judge(quorum, tenure, age, "a proposal stays unresolved");
    }

    /// This process cannot go on.
    pub(crate) fn fatal(&self, why: &str) {
        tracing::error!(why, "this controller cannot go on");
        (self.on_fatal)(why);
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(&self, quorum: &Quorum) {
        let mut pause = LOOK;
        loop {
            tokio::time::sleep(pause).await;
            self.awake(quorum);
            let leading = quorum.contact.leading();
            if let Some(tenure) = leading {
                self.judge(quorum, tenure, quorum.contact.silence(), "openraft's metrics stand still");
            }
            let silent = leading.is_some() && quorum.contact.silence() >= LOOK_SELDOM;
            let mut resigned = self.resigned.lock().expect("no holder of the lock panics");
            pause = if silent || resigned.is_some() { LOOK } else { LOOK_SELDOM };
            if resigned.is_some() && *resigned != leading {
                *resigned = None;
                quorum.raft.runtime_config().heartbeat(true);
            }
        }
    }

    fn judge(&self, quorum: &Quorum, tenure: Tenure, age: Duration, why: &str) {
        if age.min(self.awake(quorum)) >= FATAL {
            self.fatal(why);
        } else if age >= RESIGN {
            self.resign(quorum, tenure, why);
        }
    }

    fn awake(&self, quorum: &Quorum) -> Duration {
        self.awake.lock().expect("no holder of the lock panics").look(Instant::now(), quorum.waits_for_space())
    }

    fn resign(&self, quorum: &Quorum, tenure: Tenure, why: &str) {
        let voters = quorum.contact.metrics().membership_config.membership().voter_ids().count();
        let mut resigned = self.resigned.lock().expect("no holder of the lock panics");
        // A sole voter has nobody to resign to.
        if *resigned == Some(tenure) || voters == 1 {
            return;
        }
        tracing::warn!(term = tenure.term, why, "this controller resigns");
        *resigned = Some(tenure);
        quorum.contact.give_up(tenure);
        quorum.raft.runtime_config().heartbeat(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_the_process_was_paused_makes_nothing_fatal() {
        let start = Instant::now();
        let mut awake = Awake { since: start, looked: start };
        let mut now = start;
        while now < start + 2 * FATAL {
            now += LOOK;
            awake.look(now, false);
        }
        assert!(awake.look(now, false) >= FATAL, "a process that runs counts all of it");
        now += 2 * FATAL;
        assert_eq!(awake.look(now, false), Duration::ZERO);
        assert_eq!(awake.look(now + LOOK, false), LOOK);
    }

    #[test]
    fn time_in_which_the_log_waited_for_space_makes_nothing_fatal() {
        let start = Instant::now();
        let mut awake = Awake { since: start, looked: start };
        let mut now = start;
        while now < start + 2 * FATAL {
            now += LOOK;
            assert_eq!(awake.look(now, true), Duration::ZERO);
        }
        assert_eq!(awake.look(now + LOOK, false), LOOK);
    }
}
