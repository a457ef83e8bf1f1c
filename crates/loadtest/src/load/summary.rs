//! The counters and latencies of a run, and their summary as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use service::plural::counted;

use crate::ledger::Header;

/// The counters of a run.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Events that were sent at least once.
    pub events: u64,
    /// Events that are older than the newest event of their key.
    pub superseded: u64,
    /// Events that delete.
    pub deletes: u64,
    /// Events with a hostile payload.
    pub hostile: u64,
    /// Events with a 202.
    pub accepted: u64,
    /// Events that no attempt stored.
    pub rejected: u64,
    /// Events that may or may not be stored.
    pub unknown: u64,
    /// Rejected and unknown events that were abandoned although a retry might have helped.
    pub unanswered: u64,
    /// Attempts by the status of the event; a batch request counts once for each of its events.
    pub responses: BTreeMap<u16, u64>,
    /// Attempts that ended without a readable response.
    pub interrupted: u64,
    /// Attempts that reached no producer.
    pub unreachable: u64,
    /// Cause of the last such attempt.
    pub unreachable_reason: Option<Arc<str>>,
    /// Latencies of the accepted events.
    pub latencies: Latencies,
}

impl Counters {
    /// Events in a final state.
    pub fn finished(&self) -> u64 {
        self.accepted + self.rejected + self.unknown
    }

    /// The counters as one line of progress; `rate` is the accepted events per second.
    pub fn progress(&self, rate: f64) -> String {
        let responses: String =
            self.responses.iter().map(|(status, count)| format!("  {status}: {count}")).collect();
        let no_response = match self.interrupted + self.unreachable {
            0 => String::new(),
            count => format!("  no response: {count}"),
        };
        format!("{rate:.0}/s{responses}{no_response}  {}", latency_text(&self.latencies))
    }
}

/// The summary of a finished run.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The run.
    pub header: Header,
    /// Its counters.
    pub counters: Counters,
    /// Time from the first event to the last response.
    pub duration: Duration,
    /// Scheduled events that were not sent, because the producer was too slow or the run was
    /// stopped.
    pub not_sent: u64,
    /// Path of the ledger.
    pub ledger: Option<String>,
}

impl Summary {
    /// Whether every event got a final response, and at least one was accepted.
    pub fn is_success(&self) -> bool {
        self.counters.unanswered == 0 && (self.counters.accepted > 0 || self.counters.events == 0)
    }

    /// Accepted events per second.
    pub fn rate(&self) -> f64 {
        self.counters.accepted as f64 / self.duration.as_secs_f64().max(1e-3)
    }

    /// The summary as JSON.
    pub fn json(&self) -> Value {
        let Counters { latencies, .. } = &self.counters;
        let ms =
            |latency: Option<Duration>| latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3);
        let answers: BTreeMap<String, u64> =
            self.counters.responses.iter().map(|(status, count)| (status.to_string(), *count)).collect();
        json!({
            "run": self.header.run,
            "source": self.header.source,
            "seed": self.header.workload.seed,
            "ledger": self.ledger,
            "seconds": (self.duration.as_secs_f64() * 1e3).round() / 1e3,
            "accepted_per_second": (self.rate() * 10.0).round() / 10.0,
            "events": self.counters.events,
            "superseded": self.counters.superseded,
            "deletes": self.counters.deletes,
            "hostile": self.counters.hostile,
            "accepted": self.counters.accepted,
            "refused": self.counters.rejected,
            "unknown": self.counters.unknown,
            "unanswered": self.counters.unanswered,
            "not_sent": self.not_sent,
            "answers": answers,
            "cut": self.counters.interrupted,
            "unreachable": self.counters.unreachable,
            "unreachable_reason": self.counters.unreachable_reason.as_deref(),
            "latency_ms": {
                "p50": ms(latencies.quantile(0.5)),
                "p90": ms(latencies.quantile(0.9)),
                "p99": ms(latencies.quantile(0.99)),
                "max": ms((self.counters.accepted > 0).then_some(latencies.max())),
            },
            "well": self.is_success(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, counters, .. } = self;
        writeln!(
            f,
            "{}: {} of source {} in {:.1} s, {:.0} accepted per second (seed {})",
            header.run,
            counted(counters.events, "event"),
            header.source,
            self.duration.as_secs_f64(),
            self.rate(),
            header.workload.seed
        )?;
        writeln!(
            f,
            "  accepted {}, rejected {}, unknown {}; without a final response {}",
            counters.accepted, counters.rejected, counters.unknown, counters.unanswered
        )?;
        write!(f, "  attempts ")?;
        counters.responses.iter().try_for_each(|(status, count)| write!(f, "{status}: {count}, "))?;
        write!(f, "interrupted: {}, unreachable: {}", counters.interrupted, counters.unreachable)?;
        let reason = counters.unreachable_reason.as_ref().map(|reason| format!(" ({reason})"));
        writeln!(f, "{}", reason.unwrap_or_default())?;
        write!(f, "  superseded {}, hostile {}", counters.superseded, counters.hostile)?;
        match counters.deletes {
            0 => writeln!(f)?,
            deletes => writeln!(f, ", deletes {deletes}")?,
        }
        if self.not_sent > 0 {
            writeln!(f, "  scheduled but not sent: {}", counted(self.not_sent, "event"))?;
        }
        write!(f, "  latency from due time to 202: {}", latency_text(&counters.latencies))?;
        self.ledger.as_ref().map_or(Ok(()), |ledger| write!(f, "\n  ledger {ledger}"))
    }
}

fn latency_text(latencies: &Latencies) -> String {
    let ms = |share| {
        let quantile = latencies.quantile(share).unwrap_or_default();
        format!("{:.1} ms", quantile.as_secs_f64() * 1e3)
    };
    format!("p50 {}, p99 {}, max {:.1} ms", ms(0.5), ms(0.99), latencies.max().as_secs_f64() * 1e3)
}

/// Buckets for each doubling.
const STEPS: f64 = 36.0;
/// Up to 2^40 µs, which is 12 days.
const BUCKETS: usize = 40 * STEPS as usize;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
    max: Duration,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], max: Duration::ZERO }
    }
}

impl Latencies {
    /// Counts a latency.
    pub fn add(&mut self, latency: Duration) {
        let micros = latency.as_micros().max(1) as f64;
        let bucket = ((micros.log2() * STEPS) as usize).min(BUCKETS - 1);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.max = self.max.max(latency);
    }

    /// The latency that this share of all latencies did not exceed, at most 2 % too high; `None` if
    /// nothing was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.counts.iter().sum();
        let rank = ((all as f64 * share).ceil() as u64).max(1);
        let mut counted = 0;
        let reached = |count: &u64| {
            counted += count;
            counted >= rank
        };
        let bucket = self.counts.iter().position(reached)?;
        let upper = 2_f64.powf((bucket + 1) as f64 / STEPS);
        Some(Duration::from_secs_f64(upper / 1e6).min(self.max))
    }

    /// The highest latency.
    pub fn max(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    #[test]
    fn a_run_succeeds_if_all_events_have_a_final_response_and_one_is_accepted() {
        let workload = Workload { seed: 1, keys: 1, superseded_ppm: 0, hostile_ppm: 0, deletes_ppm: 0 };
        let header = Header::of_test(workload);
        let summary = |accepted, rejected, unanswered| {
            let events = accepted + rejected;
            let counters = Counters { events, accepted, rejected, unanswered, ..Counters::default() };
            let duration = Duration::from_secs(2);
            Summary { header: header.clone(), counters, duration, not_sent: 0, ledger: None }
        };
        assert!(summary(10, 5, 0).is_success());
        assert!(!summary(0, 5, 0).is_success(), "all were rejected");
        assert!(!summary(10, 5, 1).is_success(), "one has no final response");
        assert!(summary(0, 0, 0).is_success());
        assert_eq!(summary(10, 0, 0).json()["accepted_per_second"], 5.0);
    }

    #[test]
    fn the_progress_has_the_rate_the_responses_and_the_latencies() {
        let responses = [(202, 7), (503, 2)].into();
        let mut counters = Counters { responses, interrupted: 1, ..Counters::default() };
        counters.latencies.add(Duration::from_millis(3));
        let line = counters.progress(12.4);
        assert!(line.starts_with("12/s  202: 7  503: 2  no response: 1  p50 3.0 ms, p99 3.0 ms"), "{line}");
    }

    #[test]
    fn a_quantile_is_right_within_2_percent() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for ms in 1..=1_000 {
            latencies.add(Duration::from_millis(ms));
        }
        for (share, right) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0)] {
            let found = latencies.quantile(share).unwrap().as_secs_f64();
            assert!(found >= right * 0.999 && found <= right * 1.02, "{share}: {found}");
        }
        assert_eq!(latencies.max(), Duration::from_secs(1));
    }

    #[test]
    fn the_shortest_and_the_longest_latency_have_a_bucket() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::ZERO);
        latencies.add(Duration::from_secs(100_000_000));
        assert!(latencies.quantile(0.5).unwrap() <= Duration::from_micros(2));
        assert!(latencies.quantile(1.0).unwrap() >= Duration::from_secs(1_000_000));
    }
}
