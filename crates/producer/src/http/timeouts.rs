//! What a connection is doing, and by when that must be over. A client that is slow loses its own connection and
//! nothing else: the head of a request has the request's time, as has a write that the client does not take, and all
//! waits for one answer together, with a second more for each [`BYTES_A_SECOND`] that are taken; between two requests
//! it has the idle time. While a request is worked on, its handler's own deadlines hold.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the head of a request from its first byte, and for each write to be taken.
    pub request: Duration,
    /// From the opening, or from the end of an answer, to the next request's first byte.
    pub idle: Duration,
}

/// Who takes an answer more slowly, and for longer than a request may last, holds memory that others need.
const BYTES_A_SECOND: u64 = 32 * 1024;

/// No deadline.
const NEVER: u64 = u64::MAX;
/// As good as none, within what a timer takes.
const FAR: Duration = Duration::from_secs(24 * 60 * 60);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// What the client did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// It sent no request.
    Idle,
    /// It did not end the head of a request.
    Head,
    /// It did not take an answer.
    Write,
}

/// One connection's state. Its stream, its requests and its timer share it; they run in one task.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    opened: Instant,
    phase: AtomicU8,
    /// From a request on until its answer has been written.
    answering: AtomicBool,
    /// In milliseconds since the opening, as the next.
    due: AtomicU64,
    write_due: AtomicU64,
    /// Since when the client takes nothing; [`NEVER`] if it does.
    waits_since: AtomicU64,
    /// How long it was waited for before, in this answer.
    waited: AtomicU64,
    /// How many bytes of this answer it took.
    taken: AtomicU64,
}

impl Watch {
    /// A connection that was just opened.
    pub fn new(limits: Limits) -> Self {
        let watch = Self {
            limits,
            opened: Instant::now(),
            phase: AtomicU8::new(IDLE),
            answering: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
            write_due: AtomicU64::new(NEVER),
            waits_since: AtomicU64::new(NEVER),
            waited: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        };
        watch.due.store(watch.after(limits.idle), Ordering::Relaxed);
        watch
    }

    fn after(&self, limit: Duration) -> u64 {
        u64::try_from((self.opened.elapsed() + limit).as_millis()).unwrap_or(NEVER)
    }

    fn enter(&self, phase: u8, due: u64) {
        self.phase.store(phase, Ordering::Relaxed);
        self.due.store(due, Ordering::Relaxed);
    }

    /// Bytes came from the client.
    pub fn bytes_came(&self) {
        if self.phase.load(Ordering::Relaxed) == IDLE {
            self.enter(HEAD, self.after(self.limits.request));
        }
    }

    /// The head of a request is complete.
    pub fn request_began(&self) {
        self.enter(REQUEST, NEVER);
        self.answering.store(true, Ordering::Relaxed);
        self.waited.store(0, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
    }

    /// The answer's last byte is on its way.
    pub fn answer_ended(&self) {
        self.enter(IDLE, self.after(self.limits.idle));
    }

    /// All that was to be written has been.
    pub fn flushed(&self) {
        if !self.is_in_request() {
            self.answering.store(false, Ordering::Relaxed);
        }
    }

    /// Whether what is written now belongs to a request.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Whether a request is worked on, or its answer is not at its end.
    pub fn is_in_request(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == REQUEST
    }

    /// The client takes no more for now.
    pub fn write_waits(&self) {
        if self.waits_since.load(Ordering::Relaxed) == NEVER {
            let (waited, taken) = (self.waited.load(Ordering::Relaxed), self.taken.load(Ordering::Relaxed));
            let earned = Duration::from_millis(taken.saturating_mul(1000) / BYTES_A_SECOND);
            let left = (self.limits.request + earned).saturating_sub(Duration::from_millis(waited));
            self.waits_since.store(self.after(Duration::ZERO), Ordering::Relaxed);
            self.write_due.store(self.after(left.min(self.limits.request)), Ordering::Relaxed);
        }
    }

    /// The client took so many bytes.
    pub fn write_went_on(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        self.write_due.store(NEVER, Ordering::Relaxed);
        let since = self.waits_since.swap(NEVER, Ordering::Relaxed);
        if since != NEVER {
            let waited = self.after(Duration::ZERO).saturating_sub(since);
            self.waited.fetch_add(waited, Ordering::Relaxed);
        }
    }

    /// When the present step must be over.
    pub fn deadline(&self) -> Instant {
        match self.due.load(Ordering::Relaxed).min(self.write_due.load(Ordering::Relaxed)) {
            NEVER => Instant::now() + FAR,
            ms => self.opened + Duration::from_millis(ms),
        }
    }

    /// What was not done in time, if something was not.
    pub fn late(&self) -> Option<Late> {
        let now = self.after(Duration::ZERO);
        if self.write_due.load(Ordering::Relaxed) <= now {
            return Some(Late::Write);
        }
        let late = self.due.load(Ordering::Relaxed) <= now;
        late.then(|| if self.phase.load(Ordering::Relaxed) == HEAD { Late::Head } else { Late::Idle })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets time pass, and tells what is late then.
    fn after(watch: &mut Watch, time_ms: u64) -> Option<Late> {
        watch.opened -= Duration::from_millis(time_ms);
        watch.late()
    }

    fn watch() -> Watch {
        Watch::new(Limits { request: Duration::from_secs(100), idle: Duration::from_secs(1000) })
    }

    #[test]
    fn a_head_has_the_time_of_a_request_from_its_first_byte_on() {
        let mut watch = watch();
        assert_eq!(after(&mut watch, 900_000), None);
        watch.bytes_came();
        assert_eq!(after(&mut watch, 60_000), None);
        watch.bytes_came();
        assert_eq!(after(&mut watch, 40_000), Some(Late::Head));
    }

    #[test]
    fn between_requests_the_idle_time_counts_and_during_one_none() {
        let mut watch = watch();
        watch.bytes_came();
        watch.request_began();
        assert_eq!(after(&mut watch, 5_000_000), None);
        assert!(watch.deadline() > Instant::now() + FAR / 2);
        watch.answer_ended();
        assert_eq!(after(&mut watch, 990_000), None);
        assert!(watch.deadline() > Instant::now());
        assert_eq!(after(&mut watch, 10_000), Some(Late::Idle));
        assert!(watch.deadline() <= Instant::now());
    }

    #[test]
    fn a_write_must_go_on_whatever_else_is_done() {
        let mut watch = watch();
        watch.bytes_came();
        watch.request_began();
        watch.write_waits();
        assert_eq!(after(&mut watch, 90_000), None);
        watch.write_waits();
        assert_eq!(after(&mut watch, 10_000), Some(Late::Write));
        watch.write_went_on(1);
        assert_eq!(after(&mut watch, 1_000_000), None);
    }

    /// Takes `bytes` every 50 s, and tells after how many it is late.
    fn takes(watch: &mut Watch, bytes: u64) -> Option<usize> {
        (0..100).find(|_| {
            watch.write_waits();
            let late = after(watch, 50_000);
            watch.write_went_on(usize::try_from(bytes).unwrap());
            late == Some(Late::Write)
        })
    }

    #[test]
    fn an_answer_that_is_taken_in_drops_is_late_and_a_long_one_is_not() {
        let mut watch = watch();
        watch.request_began();
        assert_eq!(takes(&mut watch, 1), Some(1), "as if nothing were taken");
        watch.answer_ended();
        watch.request_began();
        assert_eq!(takes(&mut watch, BYTES_A_SECOND * 25), Some(2), "half of the time is earned");
        watch.answer_ended();
        watch.request_began();
        assert_eq!(takes(&mut watch, BYTES_A_SECOND * 51), None);
        watch.answer_ended();
        watch.request_began();
        watch.write_went_on(usize::try_from(BYTES_A_SECOND).unwrap() * 1000);
        assert_eq!(after(&mut watch, 1_000_000), None, "what the server takes is not the client's");
        watch.write_waits();
        assert_eq!(after(&mut watch, 100_000), Some(Late::Write), "and no pause is longer for it");
    }
}
