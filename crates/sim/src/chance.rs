//! Chance of a run: one generator for each purpose, all from one seed, so that another draw here changes nothing there.

/// A generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The generator of `purpose` in the run of `seed`.
    #[must_use]
    pub fn of(seed: u64, purpose: &str) -> Chance {
        let mut state = seed ^ 0x5157_4a11_0c0f_fee5;
        for byte in purpose.bytes() {
            state = Chance(state ^ u64::from(byte)).draw();
        }
        Chance(state)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 128 bits.
    pub fn wide(&mut self) -> u128 {
        u128::from(self.draw()) << 64 | u128::from(self.draw())
    }

    /// From `least` on, below `end`.
    pub fn between(&mut self, least: u64, end: u64) -> u64 {
        assert!(least < end, "there is nothing from {least} below {end}");
        least + self.draw() % (end - least)
    }

    /// Whether one of `of` equal chances falls.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.draw().is_multiple_of(of)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        let at = self.between(0, u64::try_from(among.len()).expect("it is in memory"));
        &among[usize::try_from(at).expect("it is below a length")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_and_seeds_have_sequences_of_their_own() {
        let draw = |seed, purpose| Chance::of(seed, purpose).wide();
        assert_eq!(draw(1, "disk"), draw(1, "disk"));
        assert_ne!(draw(1, "disk"), draw(1, "network"));
        assert_ne!(draw(1, "disk"), draw(2, "disk"));
    }
}
