//! Time as the cores see it: milliseconds, given as an argument, never read.

use std::fmt;
use std::ops::{Add, Sub};

/// A point in time in milliseconds. Cores compare monotonic times with each other and wall-clock times (Unix epoch) with
/// each other; which one a value is stands with the argument that carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The earliest time.
    pub const ZERO: Time = Time(0);

    /// Milliseconds from `earlier` to `self`; 0 where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Time {
    type Output = Time;
    fn add(self, ms: u64) -> Time {
        Time(self.0.saturating_add(ms))
    }
}

impl Sub<u64> for Time {
    type Output = Time;
    fn sub(self, ms: u64) -> Time {
        Time(self.0.saturating_sub(ms))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}
