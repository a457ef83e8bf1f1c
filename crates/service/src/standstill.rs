//! Whether this process itself stood still: stopped by a signal, its container paused, its machine suspended. What timed out
//! meanwhile, or finds its connections dead afterwards, says nothing of the server at the other end.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Two looks are never this far apart in a process that runs, however busy its machine is.
const GAP: Duration = Duration::from_secs(4);
/// For so long afterwards a client library may still be finding out that it slept.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Notices standstills, while somebody [looks](Standstill::look) every second or so.
#[derive(Debug, Default)]
pub struct Standstill(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    last: Option<Instant>,
    woke: Option<Instant>,
}

impl Standstill {
    /// Says that the process runs.
    pub fn look(&self) {
        lock(&self.0).look(Instant::now());
    }

    /// Whether it has just stood still.
    pub fn is_just_over(&self) -> bool {
        lock(&self.0).is_just_over(Instant::now())
    }
}

impl Looks {
    fn look(&mut self, now: Instant) {
        if self.missed(now) {
            self.woke = Some(now);
        }
        self.last = Some(now);
    }

    fn is_just_over(&self, now: Instant) -> bool {
        // Whoever looks may be late to find out.
        self.missed(now) || self.woke.is_some_and(|woke| now < woke + AFTERMATH)
    }

    fn missed(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) > GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_between_two_looks_is_a_standstill_until_its_aftermath_is_over() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut looks = Looks::default();
        assert!(!looks.is_just_over(at(100)), "nobody looks");
        for second in [0, 1, 3, 7] {
            looks.look(at(second));
            assert!(!looks.is_just_over(at(second)), "a look every few seconds");
        }
        assert!(looks.is_just_over(at(47)), "after 40 s without one");
        looks.look(at(47));
        assert!(looks.is_just_over(at(49)));
        looks.look(at(49));
        assert!(!looks.is_just_over(at(50)), "it is over");
    }
}
