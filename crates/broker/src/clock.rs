//! Time and chance, as the broker's shells take them: behind one trait each, so that a simulation can give its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::Time;

/// Where a broker takes its time from.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Milliseconds of a clock that never goes back; only differences mean something.
    fn monotonic(&self) -> Time;
    /// Milliseconds since 1970, as the machine believes.
    fn wall(&self) -> Time;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Monotonic time counts from now on.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Time {
        // An hour ahead of zero, so that "long ago" can be written as a time.
        Time(millis(self.start.elapsed()) + 3_600_000)
    }

    fn wall(&self) -> Time {
        Time(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A generator of chance from one seed: for jitter and member ids, not for secrets.
#[derive(Debug)]
pub struct Chance {
    state: AtomicU64,
}

impl Chance {
    /// The same seed gives the same sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// The next 64 bits (splitmix64).
    pub fn next(&self) -> u64 {
        let mut bits =
            self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 128 bits.
    pub fn next_wide(&self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    /// Between half of `duration` and all of it.
    pub fn jitter(&self, duration: Duration) -> Duration {
        let half = duration / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.next() % nanos)
    }
}

/// A wall clock that moved by more than this against the monotonic one has jumped.
pub(crate) const JUMP_MS: u64 = 600_000;
/// A new time that has stood so long is believed: whoever watches has had the time to correct it.
pub(crate) const BELIEVED_MS: u64 = 86_400_000;

/// Compares the wall clock with the monotonic one: what is deleted by age must not go because a clock was set wrong.
///
/// ```text
///  steady ──wall moved by more than 10 minutes──► jumped ──moved back, or a day passed, or a restart──► steady
/// ```
///
/// While it is jumped, no time of it or of the clock before it makes anything older than the other one does.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    state: Mutex<WatchState>,
}

#[derive(Clone, Copy, Debug)]
struct WatchState {
    /// Wall minus monotonic time that is believed.
    skew: i128,
    /// Since when, by the monotonic clock, the wall clock says something else.
    jumped: Option<Time>,
}

/// What a look at the clocks came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Judged {
    /// The time by which age is judged.
    pub(crate) wall: Time,
    /// Whether deletion by age is to pause.
    pub(crate) paused: bool,
    /// Whether that has just begun or ended.
    pub(crate) news: bool,
}

fn skew(monotonic: Time, wall: Time) -> i128 {
    i128::from(wall.0) - i128::from(monotonic.0)
}

impl ClockWatch {
    /// Believes the clocks as they are.
    pub(crate) fn new(monotonic: Time, wall: Time) -> Self {
        Self { state: Mutex::new(WatchState { skew: skew(monotonic, wall), jumped: None }) }
    }

    /// Looks at the clocks.
    pub(crate) fn look(&self, monotonic: Time, wall: Time) -> Judged {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.jumped;
        let now = skew(monotonic, wall);
        let jumped = (now - state.skew).unsigned_abs() > u128::from(JUMP_MS);
        let since = state.jumped.unwrap_or(monotonic);
        state.jumped = jumped.then_some(since).filter(|since| monotonic.since(*since) < BELIEVED_MS);
        if state.jumped.is_none() {
            // Small steps, as time servers make them, are followed.
            state.skew = now;
        }
        let believed = u64::try_from(i128::from(monotonic.0) + state.skew).unwrap_or(0);
        let paused = state.jumped.is_some();
        Judged { wall: Time(wall.0.min(believed)), paused, news: paused != before.is_some() }
    }

    /// Whether deletion by age is paused, as of the last look.
    pub(crate) fn is_paused(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jumped.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_wall_clock_that_jumps_pauses_deletion_until_it_is_corrected_or_believed() {
        let (mono, wall) = (Time(HOUR), Time(1_000 * HOUR));
        let watch = ClockWatch::new(mono, wall);
        let look = |after: u64, wall_after: i128| {
            let wall = u64::try_from(i128::from(wall.0) + wall_after).unwrap();
            watch.look(mono + after, Time(wall))
        };
        let steady = |at: u64| Judged { wall: wall + at, paused: false, news: false };
        assert_eq!(look(0, 0), steady(0));
        // Ten minutes and less are followed, again and again.
        assert_eq!(look(1000, 601_000), steady(601_000));
        assert_eq!(look(2000, 1_202_000), steady(1_202_000));
        // A year ahead: age is judged by the clock before, until it is set right.
        let year = i128::from(8760 * HOUR);
        assert_eq!(look(3000, year), Judged { wall: wall + 1_203_000, paused: true, news: true });
        assert_eq!(look(4000, year + 1000), Judged { wall: wall + 1_204_000, paused: true, news: false });
        assert!(watch.is_paused());
        assert_eq!(
            look(5000, 5000),
            Judged { wall: wall + 5000, paused: true, news: false },
            "twenty minutes too far back"
        );
        assert_eq!(look(6000, 1_206_000), Judged { wall: wall + 1_206_000, paused: false, news: true });
        // A jump back: what is written now must not look old to the clock before.
        let back = look(7000, -i128::from(100 * HOUR));
        assert_eq!((back.wall, back.paused), (Time(900 * HOUR), true));
        // A new time that stands for a day is the time.
        assert!(look(7000 + BELIEVED_MS - 1, -i128::from(76 * HOUR)).paused);
        let believed = look(7000 + BELIEVED_MS, -i128::from(76 * HOUR));
        assert_eq!((believed.paused, believed.news), (false, true));
    }

    #[test]
    fn one_seed_gives_one_sequence_and_jitter_stays_in_bounds() {
        let (a, b) = (Chance::new(7), Chance::new(7));
        for _ in 0..100 {
            assert_eq!(a.next(), b.next());
            let jittered = a.jitter(Duration::from_millis(20));
            b.next();
            assert!(jittered >= Duration::from_millis(10) && jittered < Duration::from_millis(20), "{jittered:?}");
        }
    }
}
