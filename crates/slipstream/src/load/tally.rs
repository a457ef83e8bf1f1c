//! What a run has done so far, for the progress bar and for the summary.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::latency::Latencies;
use super::ledger::Header;
use crate::out::counted;

/// The numbers of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Events that were sent at least once.
    pub events: u64,
    /// Those of them that are older than the newest of their key.
    pub stale: u64,
    /// Those of them whose payload is awkward.
    pub hostile: u64,
    /// Answered with 202.
    pub accepted: u64,
    /// Not stored, whatever became of the attempts.
    pub refused: u64,
    /// May be stored or not.
    pub unknown: u64,
    /// Those of the refused and unknown that were given up although sending them again might have helped.
    pub unanswered: u64,
    /// Attempts by the status that the event was answered with; one request brings as many as it has events.
    pub answers: BTreeMap<u16, u64>,
    /// Attempts that ended without an answer that can be read.
    pub cut: u64,
    /// Attempts that reached nobody.
    pub unreachable: u64,
    /// Why the last of them did not.
    pub unreachable_reason: Option<Arc<str>>,
    /// Of the accepted events.
    pub latencies: Latencies,
}

impl Tally {
    /// Events that nothing more is done for.
    pub fn finished(&self) -> u64 {
        self.accepted + self.refused + self.unknown
    }
}

/// A run that is over.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Which run.
    pub header: Header,
    /// What it did.
    pub tally: Tally,
    /// From the first event to the last answer.
    pub lasted: Duration,
    /// Events that should have been sent and were not, as the producer did not keep up or the run was stopped.
    pub not_sent: u64,
    /// The ledger.
    pub ledger: Option<String>,
}

impl Summary {
    /// Whether every event was answered for good, and not every one refused.
    pub fn is_well(&self) -> bool {
        self.tally.unanswered == 0 && (self.tally.accepted > 0 || self.tally.events == 0)
    }

    /// Accepted events a second.
    pub fn rate(&self) -> f64 {
        self.tally.accepted as f64 / self.lasted.as_secs_f64().max(1e-3)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let Tally { latencies, .. } = &self.tally;
        let ms =
            |latency: Option<Duration>| latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3);
        let answers: BTreeMap<String, u64> =
            self.tally.answers.iter().map(|(status, count)| (status.to_string(), *count)).collect();
        json!({
            "run": self.header.run,
            "source": self.header.source,
            "seed": self.header.mix.seed,
            "ledger": self.ledger,
            "seconds": (self.lasted.as_secs_f64() * 1e3).round() / 1e3,
            "accepted_per_second": (self.rate() * 10.0).round() / 10.0,
            "events": self.tally.events,
            "stale": self.tally.stale,
            "hostile": self.tally.hostile,
            "accepted": self.tally.accepted,
            "refused": self.tally.refused,
            "unknown": self.tally.unknown,
            "unanswered": self.tally.unanswered,
            "not_sent": self.not_sent,
            "answers": answers,
            "cut": self.tally.cut,
            "unreachable": self.tally.unreachable,
            "unreachable_reason": self.tally.unreachable_reason.as_deref(),
            "latency_ms": {
                "p50": ms(latencies.quantile(0.5)),
                "p90": ms(latencies.quantile(0.9)),
                "p99": ms(latencies.quantile(0.99)),
                "max": ms((self.tally.accepted > 0).then_some(latencies.most())),
            },
            "well": self.is_well(),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, tally, .. } = self;
        writeln!(
            f,
            "{}: {} of source {} in {:.1} s, {:.0} accepted a second (seed {})",
            header.run,
            counted(tally.events, "event"),
            header.source,
            self.lasted.as_secs_f64(),
            self.rate(),
            header.mix.seed
        )?;
        writeln!(
            f,
            "  accepted {}, refused {}, unknown {}; {} of them given up unanswered",
            tally.accepted, tally.refused, tally.unknown, tally.unanswered
        )?;
        write!(f, "  attempts ")?;
        tally.answers.iter().try_for_each(|(status, count)| write!(f, "{status}: {count}, "))?;
        write!(f, "cut: {}, unreachable: {}", tally.cut, tally.unreachable)?;
        let why = tally.unreachable_reason.as_ref().map(|why| format!(" ({why})"));
        writeln!(f, "{}", why.unwrap_or_default())?;
        writeln!(f, "  stale {}, hostile {}", tally.stale, tally.hostile)?;
        if self.not_sent > 0 {
            writeln!(f, "  of the schedule, {} not sent", counted(self.not_sent, "event"))?;
        }
        write!(f, "  from due to accepted: {}", latencies(&tally.latencies))?;
        self.ledger.as_ref().map_or(Ok(()), |ledger| write!(f, "\n  ledger {ledger}"))
    }
}

/// In words.
pub fn latencies(latencies: &Latencies) -> String {
    let ms = |share| {
        let found = latencies.quantile(share).unwrap_or_default();
        format!("{:.1} ms", found.as_secs_f64() * 1e3)
    };
    format!("p50 {}, p99 {}, max {:.1} ms", ms(0.5), ms(0.99), latencies.most().as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::event::Mix;
    use super::*;

    #[test]
    fn a_run_is_well_if_all_was_answered_and_something_accepted() {
        let mix = Mix { seed: 1, keys: 1, stale_ppm: 0, hostile_ppm: 0 };
        let header = Header { run: "r".into(), source: "s".into(), started_at: 0, mix, api_version: None };
        let summary = |accepted, refused, unanswered| {
            let tally =
                Tally { events: accepted + refused, accepted, refused, unanswered, ..Tally::default() };
            let lasted = Duration::from_secs(2);
            Summary { header: header.clone(), tally, lasted, not_sent: 0, ledger: None }
        };
        assert!(summary(10, 5, 0).is_well());
        assert!(!summary(0, 5, 0).is_well(), "all were refused");
        assert!(!summary(10, 5, 1).is_well(), "one was given up");
        assert!(summary(0, 0, 0).is_well());
        assert_eq!(summary(10, 0, 0).json()["accepted_per_second"], 5.0);
    }
}
