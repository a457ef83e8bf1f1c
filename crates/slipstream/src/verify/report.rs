//! What was found, for people and for programs.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

/// How many are named.
const EXAMPLES: usize = 10;

/// How many there are of one kind, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How many.
    pub count: u64,
    /// Some of them, each with what there is to say of it.
    pub examples: Vec<String>,
}

impl Finding {
    /// One more.
    pub fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// What the ledger says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledgered {
    /// Events.
    pub events: u64,
    /// Answered with 202.
    pub accepted: u64,
    /// Not stored.
    pub refused: u64,
    /// May be stored or not.
    pub unknown: u64,
    /// How often an event was sent.
    pub attempts: u64,
    /// How many of these attempts were answered with 504.
    pub unconfirmed: u64,
}

/// The verdict.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The run.
    pub run: String,
    /// Database and collection.
    pub collection: String,
    /// What was sent.
    pub ledger: Ledgered,
    /// Documents of the run.
    pub documents: u64,
    /// Records that the group had not finished when the wait was over.
    pub waiting: u64,
    /// Ids with an accepted event and no document.
    pub missing: Finding,
    /// The same, where no record is left of which one could be made.
    pub gone: Finding,
    /// Ids with several documents.
    pub duplicated: Finding,
    /// Documents that hold an event that a newer one should have replaced.
    pub stale: Finding,
    /// Documents that are not what was sent.
    pub altered: Finding,
    /// Documents whose id begins as the run's, and that was never sent or was refused.
    pub foreign: Finding,
    /// Events that were dead-lettered.
    pub dead_lettered: Finding,
    /// How many dead letters there must be.
    pub expected_dead_letters: u64,
}

impl Report {
    fn findings(&self) -> [(&'static str, &Finding); 6] {
        [
            ("missing", &self.missing),
            ("gone", &self.gone),
            ("duplicated", &self.duplicated),
            ("stale", &self.stale),
            ("altered", &self.altered),
            ("foreign", &self.foreign),
        ]
    }

    /// Whether all is as it must be.
    pub fn is_well(&self) -> bool {
        self.waiting == 0
            && self.dead_lettered.count == self.expected_dead_letters
            && self.findings().iter().all(|(_, finding)| finding.count == 0)
    }

    /// Attempts that were answered with 504, of all.
    pub fn share_of_504s(&self) -> f64 {
        self.ledger.unconfirmed as f64 / self.ledger.attempts.max(1) as f64
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let Ledgered { events, accepted, refused, unknown, attempts, unconfirmed } = self.ledger;
        let mut json = json!({
            "run": self.run,
            "collection": self.collection,
            "events": events,
            "accepted": accepted,
            "refused": refused,
            "unknown": unknown,
            "documents": self.documents,
            "waiting": self.waiting,
            "dead_lettered": self.dead_lettered,
            "expected_dead_letters": self.expected_dead_letters,
            "attempts": attempts,
            "answered_504": unconfirmed,
            "share_of_504s": self.share_of_504s(),
            "well": self.is_well(),
        });
        for (name, finding) in self.findings() {
            json[name] = json!(finding);
        }
        json
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledgered { events, accepted, refused, unknown, attempts, unconfirmed } = self.ledger;
        writeln!(
            f,
            "{}: {events} events, {accepted} accepted, {refused} refused, {unknown} unknown",
            self.run
        )?;
        writeln!(f, "{}: {} documents of the run", self.collection, self.documents)?;
        if self.waiting > 0 {
            writeln!(f, "  waiting        {}: the group has not finished them", self.waiting)?;
        }
        let examples = |f: &mut fmt::Formatter<'_>, finding: &Finding| {
            finding.examples.iter().try_for_each(|example| writeln!(f, "      {example}"))?;
            match finding.count - finding.examples.len() as u64 {
                0 => Ok(()),
                more => writeln!(f, "      and {more} more"),
            }
        };
        for (name, finding) in self.findings() {
            writeln!(f, "  {name:<14} {}", finding.count)?;
            examples(f, finding)?;
        }
        writeln!(
            f,
            "  dead-lettered  {}, and {} are expected",
            self.dead_lettered.count, self.expected_dead_letters
        )?;
        examples(f, &self.dead_lettered)?;
        let share = 100.0 * self.share_of_504s();
        writeln!(f, "  504s           {unconfirmed} of {attempts} attempts ({share:.2} %)")?;
        match self.is_well() {
            true => write!(f, "all is as it must be"),
            false => write!(f, "WRONG: slipstream trace ID tells where an event is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_few_and_the_rest_is_counted() {
        let mut report = Report::default();
        assert!(report.is_well());
        for n in 0..12 {
            report.stale.add(|| format!("id-{n}"));
        }
        let text = report.to_string();
        assert!(text.contains("  stale          12\n      id-0\n"), "{text}");
        assert!(text.contains("      id-9\n      and 2 more\n") && text.contains("WRONG"), "{text}");
        assert!(!report.is_well());
        assert_eq!(report.json()["stale"]["count"], 12);
    }

    #[test]
    fn each_number_that_is_not_as_it_must_be_counts() {
        let well = Report { expected_dead_letters: 1, ..Report::default() };
        assert!(!well.is_well(), "a dead letter is missing");
        assert!(!Report { waiting: 1, ..Report::default() }.is_well());
        let mut report = Report::default();
        report.dead_lettered.add(String::new);
        assert!(!report.is_well(), "a dead letter too many");
        report.expected_dead_letters = 1;
        assert!(report.is_well());
    }
}
