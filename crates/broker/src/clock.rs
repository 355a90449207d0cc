//! Time and chance, as the broker's shells take them: behind one trait each, so that a simulation can give its own.

use std::sync::atomic::{AtomicU64, Ordering};
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

#[cfg(test)]
mod tests {
    use super::*;

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
