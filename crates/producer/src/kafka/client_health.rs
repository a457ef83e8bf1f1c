//! What the Kafka client tells about its connections, and what follows from it. librdkafka's threads write, requests
//! read; nothing waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use service::lock::lock;

/// librdkafka keeps a connection's error to itself if it had the same within this time.
const SILENCE: Duration = Duration::from_secs(30);
/// An acknowledgement is proof that a broker answers for so long.
pub const PROOF: Duration = Duration::from_secs(1);

/// What librdkafka reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// A connection, or an attempt to make one, failed.
    Connection,
    /// No broker is connected.
    AllBrokers,
    /// The client complains of something else; no connection broke.
    Client,
    /// The client cannot go on.
    Fatal,
}

/// What is wrong with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing known.
    None,
    /// A connection broke; whether another works is being asked.
    Suspected,
    /// No broker answers; why.
    Away(String),
    /// The client cannot be used any more; why.
    Fatal(String),
    /// A new client stands in for one that could not be used any more; why. No broker has answered it yet.
    Replaced(String),
}

/// The state, written by librdkafka's callbacks.
#[derive(Debug)]
pub struct Signals {
    started: Instant,
    errors: AtomicU64,
    /// Milliseconds since `started`, plus 1; 0 is never.
    broke_at: AtomicU64,
    confirmed_at: AtomicU64,
    reason: Mutex<String>,
    trouble: watch::Sender<Trouble>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            errors: AtomicU64::new(0),
            broke_at: AtomicU64::new(0),
            confirmed_at: AtomicU64::new(0),
            reason: Mutex::new("no connection yet".into()),
            trouble: watch::Sender::new(Trouble::None),
        }
    }
}

impl Signals {
    /// Time since the signals were made, for [`Signals::broke_since`].
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Several threads tell of what happened; one that was held up since it looked at the clock hides nothing later.
    fn mark(at: &AtomicU64, now: Duration) {
        let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1);
        at.fetch_max(ms + 1, Ordering::AcqRel);
    }

    fn marked(at: &AtomicU64) -> Option<Duration> {
        at.load(Ordering::Acquire).checked_sub(1).map(Duration::from_millis)
    }

    /// An error that librdkafka reports.
    pub fn broke(&self, what: Break, reason: &str) {
        // What the client itself is at fault for sends no record twice.
        if matches!(what, Break::Connection | Break::AllBrokers) {
            Self::mark(&self.broke_at, self.now());
        }
        let next = match what {
            Break::Fatal => Trouble::Fatal(reason.to_owned()),
            Break::AllBrokers => Trouble::Away(lock(&self.reason).clone()),
            Break::Connection | Break::Client => {
                reason.clone_into(&mut lock(&self.reason));
                Trouble::Suspected
            }
        };
        self.trouble.send_if_modified(|trouble| {
            // Under the lock, so that an answer to an older question finds the error and its trouble, or neither.
            self.errors.fetch_add(1, Ordering::AcqRel);
            let graver = rank(&next) > rank(trouble);
            if graver {
                *trouble = next;
            }
            graver
        });
    }

    /// A line that librdkafka logs: some tell of a broken connection that no error tells of.
    pub fn log(&self, facility: &str) {
        if matches!(facility, "FAIL" | "REQTMOUT") {
            Self::mark(&self.broke_at, self.now());
        }
    }

    /// A record was acknowledged.
    pub fn confirmed(&self) {
        Self::mark(&self.confirmed_at, self.now());
    }

    /// Whether a record was acknowledged within the last second.
    pub fn confirmed_lately(&self) -> bool {
        Self::marked(&self.confirmed_at).is_some_and(|at| self.now().saturating_sub(at) < PROOF)
    }

    /// Whether a record was acknowledged after `time`.
    pub fn confirmed_since(&self, time: Duration) -> bool {
        Self::marked(&self.confirmed_at).is_some_and(|at| at > time)
    }

    /// Whether a connection may have broken after `time`, so that a record of then may have been sent twice.
    pub fn broke_since(&self, time: Duration) -> bool {
        Self::marked(&self.broke_at).is_some_and(|at| at + SILENCE >= time)
    }

    /// Errors so far.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Acquire)
    }

    /// The present trouble.
    pub fn trouble(&self) -> Trouble {
        self.trouble.borrow().clone()
    }

    /// The present trouble, to wait for.
    pub fn troubles(&self) -> watch::Receiver<Trouble> {
        self.trouble.subscribe()
    }

    /// A broker answered a question that was asked when there had been `errors` errors.
    pub fn well_unless_new(&self, errors: u64) {
        self.trouble.send_if_modified(|trouble| {
            let well = self.errors() == errors && !matches!(trouble, Trouble::Fatal(_) | Trouble::None);
            if well {
                *trouble = Trouble::None;
            }
            well
        });
    }

    /// No broker answered.
    pub fn away(&self) {
        let reason = lock(&self.reason).clone();
        self.trouble.send_if_modified(|trouble| {
            let new = *trouble == Trouble::Suspected;
            if new {
                *trouble = Trouble::Away(reason);
            }
            new
        });
    }

    /// A new client stands in for one that had a fatal error.
    pub fn replaced(&self, why: &str) {
        self.trouble.send_replace(Trouble::Replaced(why.to_owned()));
    }
}

fn rank(trouble: &Trouble) -> u8 {
    match trouble {
        Trouble::None => 0,
        Trouble::Suspected => 1,
        Trouble::Away(_) | Trouble::Replaced(_) => 2,
        Trouble::Fatal(_) => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graver_trouble_stays_until_a_broker_answers() {
        let signals = Signals::default();
        signals.broke(Break::Connection, "k:9092: connection refused");
        assert_eq!(signals.trouble(), Trouble::Suspected);
        signals.broke(Break::AllBrokers, "1/1 brokers are down");
        assert_eq!(signals.trouble(), Trouble::Away("k:9092: connection refused".into()));
        signals.broke(Break::Connection, "k:9092: connection refused");
        assert!(matches!(signals.trouble(), Trouble::Away(_)));
        signals.well_unless_new(signals.errors());
        assert_eq!(signals.trouble(), Trouble::None);
    }

    #[test]
    fn an_answer_from_before_a_new_error_counts_for_nothing() {
        let signals = Signals::default();
        signals.broke(Break::AllBrokers, "down");
        let asked = signals.errors();
        signals.broke(Break::AllBrokers, "down again");
        signals.well_unless_new(asked);
        assert!(matches!(signals.trouble(), Trouble::Away(_)));
    }

    #[test]
    fn only_a_new_client_ends_a_fatal_error() {
        let signals = Signals::default();
        signals.broke(Break::Fatal, "fenced");
        signals.broke(Break::AllBrokers, "down");
        signals.well_unless_new(signals.errors());
        assert_eq!(signals.trouble(), Trouble::Fatal("fenced".into()));
        signals.replaced("fenced");
        signals.broke(Break::AllBrokers, "down");
        assert_eq!(signals.trouble(), Trouble::Replaced("fenced".into()));
        signals.well_unless_new(signals.errors());
        assert_eq!(signals.trouble(), Trouble::None);
    }

    #[test]
    fn a_break_makes_what_was_sent_shortly_before_it_or_after_it_uncertain() {
        let signals = Signals::default();
        signals.broke(Break::Fatal, "fenced");
        signals.broke(Break::Client, "no permission");
        assert!(!signals.broke_since(Duration::ZERO), "the client is at fault, and no connection");
        signals.log("FAIL");
        assert!(signals.broke_since(Duration::ZERO));
        assert!(signals.broke_since(signals.now() + SILENCE / 2));
        assert!(!signals.broke_since(signals.now() + SILENCE * 2));
    }

    #[test]
    fn in_every_order_of_threads_a_break_is_not_hidden_by_an_earlier_one_that_is_told_late() {
        // Two threads of clients look at the clock and tell of a break; a request sends a record and judges it. From
        // one look at the clock to the next it takes longer than librdkafka is silent.
        for order in devservers::interleavings(&[2, 2, 2]) {
            let signals = Signals::default();
            let (mut clock, mut looked, mut told) = (Duration::ZERO, [None; 3], Duration::ZERO);
            for thread in &order {
                match (thread, looked[*thread]) {
                    (_, None) => {
                        clock += SILENCE * 2;
                        looked[*thread] = Some(clock);
                    }
                    (2, Some(sent)) => {
                        assert_eq!(signals.broke_since(sent), told > sent, "{order:?}");
                    }
                    (_, Some(broke)) => {
                        Signals::mark(&signals.broke_at, broke);
                        told = told.max(broke);
                    }
                }
            }
        }
    }

    #[test]
    fn in_every_order_of_breaks_and_answers_an_answer_clears_only_what_broke_before_its_question() {
        // Two threads of clients tell of breaks; the caretaker asks three times, and the second time nobody answers.
        for order in devservers::interleavings(&[2, 2, 6]) {
            let signals = Signals::default();
            let breaks = [[Break::Connection, Break::AllBrokers], [Break::Client, Break::Connection]];
            let (mut taken, mut asked) = ([0; 3], (0, 0));
            let (mut last_break, mut last_answered) = (None, None);
            for (now, thread) in order.iter().enumerate() {
                match (breaks.get(*thread), taken[2]) {
                    (Some(breaks), _) => {
                        signals.broke(breaks[taken[*thread]], "k:9092: connection refused");
                        last_break = Some(now);
                    }
                    (None, 0 | 2 | 4) => asked = (signals.errors(), now),
                    (None, 3) => signals.away(),
                    (None, _) => {
                        signals.well_unless_new(asked.0);
                        last_answered = Some(asked.1);
                    }
                }
                taken[*thread] += 1;
                let broken = last_break > last_answered;
                assert_eq!(signals.trouble() != Trouble::None, broken, "step {now} of {order:?}");
            }
        }
    }
}
