//! The fixed schedule of a poll job, without a clock.

use std::time::Duration;

use tokio::time::Instant;

/// When the next call is due, and how many were left out before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Due at.
    pub at: Instant,
    /// Ticks before it that are left out.
    pub skipped: u64,
}

/// The first tick of the schedule that is neither `last` nor before `earliest`. Ticks from `end` on count as none.
pub fn next_tick(last: Instant, interval: Duration, earliest: Instant, end: Instant) -> Tick {
    let ticks_until = |instant: Instant| {
        let behind = instant.saturating_duration_since(last);
        (behind.as_secs_f64() / interval.as_secs_f64()).ceil().max(1.0)
    };
    let ticks = ticks_until(earliest);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a year has fewer milliseconds, and it is not negative"
    )]
    let skipped = (ticks.min(ticks_until(end)) - 1.0) as u64;
    Tick { at: last + interval.mul_f64(ticks), skipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_call_skips_ticks_and_the_schedule_stays_fixed() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let end = start + second * 3600;
        for (earliest, at, skipped) in [(1, 3, 0), (7, 9, 2), (0, 3, 0), (3, 3, 0), (6, 6, 1)] {
            let tick = next_tick(start, second * 3, start + second * earliest, end);
            assert_eq!(tick, Tick { at: start + second * at, skipped }, "{earliest}");
        }
    }

    #[test]
    fn ticks_after_the_end_are_not_skipped() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        for (end, skipped) in [(1, 0), (2, 1), (3, 2), (60, 59)] {
            let tick = next_tick(start, second, start + second * 60, start + second * end);
            assert_eq!(tick.skipped, skipped, "{end}");
        }
    }
}
