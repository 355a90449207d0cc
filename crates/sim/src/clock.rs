//! The clocks of a host: a monotonic one, which is the paused clock of its runtime, and a wall clock, which may jump. And the
//! clocks of the system, for dependencies that ask those (a header with the date in each answer over HTTP, for one).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use broker::clock::Clock;
use model::Time;
use tokio::time::Instant;

/// When every run begins, by a wall clock that is right.
pub const EPOCH_MS: u64 = 1_800_000_000_000;
/// So that "long ago" can be written as a time.
const AHEAD_MS: u64 = 3_600_000;

/// The time of the run, in milliseconds since its beginning.
static NOW: AtomicU64 = AtomicU64::new(0);

/// It is so late.
pub fn set_now(ms: u64) {
    NOW.store(ms, Ordering::Relaxed);
}

/// What the system's clocks show, in seconds and nanoseconds, to those who do not ask the host's: it stands still between
/// milliseconds.
#[must_use]
pub fn system_time() -> (u64, u64) {
    let ms = EPOCH_MS + NOW.load(Ordering::Relaxed);
    (ms / 1_000, ms % 1_000 * 1_000_000)
}

/// The right time, as a record's timestamp.
#[must_use]
pub fn timestamp() -> i64 {
    let ms = EPOCH_MS + NOW.load(Ordering::Relaxed);
    i64::try_from(ms).expect("it is of this century")
}

/// How far the wall clock of a machine is from the right time, in milliseconds.
pub type Skew = Arc<AtomicI64>;

/// See the module.
#[derive(Debug)]
pub struct HostClock {
    /// When the process began, by its own clock.
    began: Instant,
    /// The same, in milliseconds of the run.
    began_ms: u64,
    skew: Skew,
}

impl HostClock {
    /// Of a process that begins now, `began_ms` after the run's beginning. To be called in its runtime.
    #[must_use]
    pub fn new(began_ms: u64, skew: Skew) -> HostClock {
        HostClock { began: Instant::now(), began_ms, skew }
    }

    fn elapsed_ms(&self) -> u64 {
        self.began_ms + millis(self.began.elapsed())
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Time {
        Time(self.elapsed_ms() + AHEAD_MS)
    }

    fn wall(&self) -> Time {
        wall(self.elapsed_ms(), &self.skew)
    }
}

/// What a wall clock shows so long after the run's beginning.
#[must_use]
pub fn wall(elapsed_ms: u64, skew: &Skew) -> Time {
    Time((EPOCH_MS + elapsed_ms).saturating_add_signed(skew.load(Ordering::Relaxed)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
