//! A timestamp in milliseconds, within the years 1970 to 9999.

use jiff::{SignedDuration, civil};
use serde::Serialize;

/// Civil time and not [`jiff::Timestamp`], which ends a day before the end of the year 9999.
pub(crate) const EPOCH: civil::DateTime = civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// Milliseconds since 1970-01-01T00:00:00Z, from 0 to the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Millis(i64);

impl Millis {
    /// The last millisecond of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// `None` if `ms` is negative or after the year 9999.
    pub fn new(ms: i64) -> Option<Self> {
        (0..=Self::MAX.0).contains(&ms).then_some(Self(ms))
    }

    /// The number of milliseconds.
    pub fn get(self) -> i64 {
        self.0
    }

    /// The time as text with three digits of a second: `2025-10-26T20:16:03.123Z`.
    pub fn iso(self) -> String {
        let time = EPOCH.saturating_add(SignedDuration::from_millis(self.0));
        format!("{time:.3}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::Millis;

    #[test]
    fn iso_text_always_has_milliseconds() {
        let iso = |ms| Millis::new(ms).unwrap().iso();
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(1_730_000_000_000), "2024-10-27T03:33:20.000Z");
        assert_eq!(iso(1_761_509_763_123), "2025-10-26T20:16:03.123Z");
        assert_eq!(Millis::MAX.iso(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn times_outside_the_years_1970_to_9999_are_rejected() {
        assert_eq!(Millis::new(-1), None);
        assert_eq!(Millis::new(Millis::MAX.get() + 1), None);
        assert_eq!(Millis::new(i64::MIN), None);
        assert_eq!(Millis::new(Millis::MAX.get()), Some(Millis::MAX));
    }
}
