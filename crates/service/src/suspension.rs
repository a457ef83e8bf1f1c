//! Whether this process itself stood still: stopped by a signal, its container paused, its machine suspended. What timed out
//! meanwhile, or finds its connections dead afterwards, says nothing of the server at the other end.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;

const INTERVAL: Duration = Duration::from_millis(250);
/// Looks that are this far apart are a standstill: half of what a server's answer may take, so that a shorter one alone
/// lets no answer come too late.
const GAP: Duration = Duration::from_secs(1);
/// For so long afterwards a client library may still be finding out that it slept.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Notices standstills.
#[derive(Debug)]
pub struct SuspensionDetector(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    last: Option<Instant>,
    woke: Option<Instant>,
}

impl SuspensionDetector {
    /// Looks on in the background of the tokio runtime until this is dropped.
    pub fn start() -> Arc<Self> {
        let looks = Looks { last: Some(Instant::now()), woke: None };
        let watched = Arc::new(Self(Mutex::new(looks)));
        let watcher = Arc::downgrade(&watched);
        tokio::spawn(async move {
            while let Some(watched) = watcher.upgrade() {
                lock(&watched.0).look(Instant::now());
                drop(watched);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        watched
    }

    /// Whether it has just stood still.
    pub fn recently_resumed(&self) -> bool {
        lock(&self.0).recently_resumed(Instant::now())
    }
}

impl Looks {
    fn look(&mut self, now: Instant) {
        if self.missed(now) {
            self.woke = Some(now);
        }
        self.last = Some(now);
    }

    fn recently_resumed(&self, now: Instant) -> bool {
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
        assert!(!looks.recently_resumed(at(100)), "nobody looks");
        for second in [0, 1, 2] {
            looks.look(at(second));
            assert!(!looks.recently_resumed(at(second)), "a look every second");
        }
        assert!(looks.recently_resumed(at(42)), "after 40 s without one");
        looks.look(at(42));
        (43..45).for_each(|second| looks.look(at(second)));
        assert!(looks.recently_resumed(at(44)));
        looks.look(at(45));
        assert!(!looks.recently_resumed(at(45)), "it is over");
    }
}
