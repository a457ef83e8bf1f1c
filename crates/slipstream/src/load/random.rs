//! Random numbers that are the same in every version of this program and on every machine: a ledger is judged by what
//! they give again.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Those of event `n` in a run with this seed.
    pub fn of(seed: u64, n: u64) -> Self {
        let run = Self(seed).next();
        Self(Self(run.wrapping_add(n)).next())
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which must be above 0.
    pub fn below(&mut self, limit: u32) -> u32 {
        // The remainder fits, as the limit does.
        u32::try_from(self.next() % u64::from(limit)).unwrap_or_default()
    }

    /// True for so many millionths of the calls.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < ppm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_algorithm() {
        let mut random = Random(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_share_is_met() {
        let hits = (0..100_000).filter(|n| Random::of(7, *n).chance(100_000)).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
    }
}
