//! How fast bytes may go: a token bucket, decided from the time alone.
//!
//! Invariant: over any stretch of time no more goes than its rate gives, the credit of `BURST_MS` and one batch.

use model::Time;

/// How long a bucket that is not used saves up for.
const BURST_MS: i64 = 100;
/// Credit is counted in thousandths of a byte: what a rate in bytes a second gives in a millisecond.
const THOUSANDTHS: i64 = 1000;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    credit: i64,
    at: Time,
}

/// What may go now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Admission {
    /// Anything.
    Free,
    /// So many bytes, and one batch in any case.
    UpTo(u64),
    /// Nothing before this time.
    Wait(Time),
}

impl Admission {
    /// Both must admit it.
    #[must_use]
    pub fn and(self, other: Admission) -> Admission {
        match (self, other) {
            (Admission::Free, one) | (one, Admission::Free) => one,
            (Admission::Wait(one), Admission::Wait(other)) => Admission::Wait(one.max(other)),
            (Admission::Wait(until), _) | (_, Admission::Wait(until)) => Admission::Wait(until),
            (Admission::UpTo(one), Admission::UpTo(other)) => Admission::UpTo(one.min(other)),
        }
    }
}

impl Throttle {
    /// A full bucket.
    #[must_use]
    pub fn new(bytes_per_second: u64, now: Time) -> Self {
        let mut throttle = Self { bytes_per_second, credit: 0, at: now };
        throttle.credit = throttle.credit_max();
        throttle
    }

    /// Another rate from now on; what was spent stays spent.
    pub fn set_rate(&mut self, bytes_per_second: u64, now: Time) {
        self.pass(now);
        self.bytes_per_second = bytes_per_second;
        self.credit = self.credit.min(self.credit_max());
    }

    /// What may go at `now`.
    pub fn admit(&mut self, now: Time) -> Admission {
        self.pass(now);
        if self.credit > 0 {
            // Less than a byte counts as one: whoever has credit may go on.
            return Admission::UpTo(u64::try_from(self.credit / THOUSANDTHS).unwrap_or(0).max(1));
        }
        // A rate of nothing never admits anything: to be asked again when it was changed.
        let missing = u64::try_from(1 - self.credit).unwrap_or(u64::MAX);
        Admission::Wait(now + missing.div_ceil(self.bytes_per_second.max(1)))
    }

    /// So many bytes went at `now`: more than was admitted makes the next wait longer.
    pub fn spend(&mut self, bytes: u64, now: Time) {
        self.pass(now);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.credit = self.credit.saturating_sub(bytes.saturating_mul(THOUSANDTHS));
    }

    fn pass(&mut self, now: Time) {
        let elapsed = i64::try_from(now.since(self.at)).unwrap_or(i64::MAX);
        self.at = self.at.max(now);
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(self.rate())).min(self.credit_max());
    }

    /// Thousandths of a byte in a millisecond.
    fn rate(&self) -> i64 {
        i64::try_from(self.bytes_per_second).unwrap_or(i64::MAX)
    }

    fn credit_max(&self) -> i64 {
        self.rate().saturating_mul(BURST_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time(5_000);

    /// Bytes that go in `ms` milliseconds, asked for each millisecond, in batches of `batch`.
    fn goes(throttle: &mut Throttle, ms: u64, batch: u64) -> u64 {
        let mut sent = 0;
        for at in 0..ms {
            while let Admission::UpTo(_) = throttle.admit(T0 + at) {
                throttle.spend(batch, T0 + at);
                sent += batch;
            }
        }
        sent
    }

    #[test]
    fn what_goes_is_what_the_rate_gives_and_one_burst() {
        let rate = 1_000_000;
        for batch in [1_000, 16_000, 900_000] {
            let sent = goes(&mut Throttle::new(rate, T0), 10_000, batch);
            let most = 10 * rate + rate / 10 + batch;
            assert!(sent <= most && sent + batch >= 10 * rate, "batches of {batch}: {sent} of at most {most}");
        }
    }

    #[test]
    fn what_was_not_used_is_saved_up_for_a_tenth_of_a_second_only() {
        let mut throttle = Throttle::new(1_000, T0);
        assert_eq!(throttle.admit(T0 + 3_600_000), Admission::UpTo(100));
    }

    #[test]
    fn a_debt_is_waited_for_to_the_millisecond() {
        let mut throttle = Throttle::new(1_000, T0);
        throttle.spend(600, T0);
        assert_eq!(throttle.admit(T0), Admission::Wait(T0 + 501));
        assert_eq!(throttle.admit(T0 + 500), Admission::Wait(T0 + 501));
        assert_eq!(throttle.admit(T0 + 501), Admission::UpTo(1));
    }

    #[test]
    fn a_new_rate_holds_from_now_on() {
        let mut throttle = Throttle::new(1_000, T0);
        throttle.spend(1_100, T0);
        throttle.set_rate(10_000, T0 + 500);
        assert_eq!(throttle.admit(T0 + 500), Admission::Wait(T0 + 551));
        throttle.set_rate(0, T0 + 551);
        assert!(matches!(throttle.admit(T0 + 600), Admission::Wait(_)));
        assert_eq!(Throttle::new(u64::MAX, T0).admit(T0), Admission::UpTo(u64::try_from(i64::MAX / 1_000).unwrap()));
    }

    #[test]
    fn two_throttles_admit_what_both_do() {
        let (free, some, wait) = (Admission::Free, Admission::UpTo(7), Admission::Wait(T0));
        assert_eq!(free.and(some).and(Admission::UpTo(9)), some);
        assert_eq!(some.and(wait).and(free), wait);
        assert_eq!(wait.and(Admission::Wait(T0 + 1)), Admission::Wait(T0 + 1));
    }
}
