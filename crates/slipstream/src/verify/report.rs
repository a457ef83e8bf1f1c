//! What was found, for people and for programs.

use std::cmp::Ordering;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::progress::{outlook, seconds_left};
use crate::out::{counted, counted_with};

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

/// What there is to say of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it must be.
    Well,
    /// Something is not, whatever is still waiting.
    Wrong,
    /// Nothing is wrong so far, and records wait.
    Unfinished,
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// What was found.
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
    /// How many records a second it finished at last; nothing where it finished none.
    pub per_second: Option<f64>,
    /// Ids that are not judged, as records of theirs may be among those that wait.
    pub not_judged: u64,
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

    /// What there is to say of the whole. A difference that no waiting record can change is one at once.
    pub fn verdict(&self) -> Verdict {
        let waits = self.waiting > 0;
        let letters = self.dead_lettered.count.cmp(&self.expected_dead_letters);
        let differs = self.findings().iter().any(|(_, finding)| finding.count > 0);
        match letters {
            _ if differs => Verdict::Wrong,
            Ordering::Greater => Verdict::Wrong,
            Ordering::Less if !waits => Verdict::Wrong,
            _ if waits => Verdict::Unfinished,
            _ => Verdict::Well,
        }
    }

    /// Whether all is as it must be.
    pub fn is_well(&self) -> bool {
        self.verdict() == Verdict::Well
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
            "finished_per_second": self.per_second.map(rounded),
            "waiting_seconds": seconds_left(self.waiting, self.per_second).map(rounded),
            "not_judged": self.not_judged,
            "dead_lettered": self.dead_lettered,
            "expected_dead_letters": self.expected_dead_letters,
            "attempts": attempts,
            "answered_504": unconfirmed,
            "share_of_504s": self.share_of_504s(),
            "well": self.is_well(),
            "verdict": match self.verdict() {
                Verdict::Well => "well",
                Verdict::Wrong => "wrong",
                Verdict::Unfinished => "unfinished",
            },
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
            "{}: {}, {accepted} accepted, {refused} refused, {unknown} unknown",
            self.run,
            counted(events, "event")
        )?;
        writeln!(f, "{}: {} of the run", self.collection, counted(self.documents, "document"))?;
        if self.waiting > 0 {
            let (records, ids) = (counted(self.waiting, "record"), counted(self.not_judged, "id"));
            writeln!(f, "  waiting        {records}: {}", outlook(self.waiting, self.per_second))?;
            writeln!(f, "  not judged     {ids}: what is stored of them may change")?;
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
        let attempts = counted(attempts, "attempt");
        writeln!(f, "  504s           {unconfirmed} of {attempts} ({share:.2} %)")?;
        match self.verdict() {
            Verdict::Well => write!(f, "all is as it must be"),
            Verdict::Wrong => write!(f, "WRONG: slipstream trace ID tells where an event is"),
            Verdict::Unfinished => write!(
                f,
                "NO VERDICT YET: {} still waiting, {}; --wait until-done waits for the consumer",
                counted_with(self.waiting, "record", ["is", "are"]),
                outlook(self.waiting, self.per_second)
            ),
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
    fn what_waits_is_told_with_its_time_and_without_a_verdict() {
        let (waiting, per_second) = (450_000, Some(2_500.0));
        let report = Report { waiting, per_second, not_judged: 1, ..Report::default() };
        let text = report.to_string();
        let outlook = "about 3 min 0 s at the present rate of 2500 a second";
        for part in [
            format!("  waiting        450000 records: {outlook}\n"),
            "  not judged     1 id: ".to_owned(),
            format!("NO VERDICT YET: 450000 records are still waiting, {outlook}; "),
        ] {
            assert!(text.contains(&part) && !text.contains("WRONG"), "{part} in {text}");
        }
        let json = report.json();
        assert_eq!((&json["waiting"], &json["waiting_seconds"]), (&450_000.into(), &180.0.into()));
        assert_eq!((&json["verdict"], &json["well"]), (&"unfinished".into(), &false.into()));
        assert!(Report { waiting, ..Report::default() }.json()["waiting_seconds"].is_null());
    }

    #[test]
    fn each_number_that_is_not_as_it_must_be_counts() {
        let well = Report { expected_dead_letters: 1, ..Report::default() };
        assert!(!well.is_well(), "a dead letter is missing");
        assert_eq!(Report { waiting: 1, ..well }.verdict(), Verdict::Unfinished, "it may come");
        let mut wrong = Report { waiting: 1, ..Report::default() };
        assert_eq!(wrong.verdict(), Verdict::Unfinished);
        wrong.foreign.add(String::new);
        assert_eq!(wrong.verdict(), Verdict::Wrong, "no record removes it");
        let mut report = Report::default();
        report.dead_lettered.add(String::new);
        assert!(!report.is_well(), "a dead letter too many");
        report.expected_dead_letters = 1;
        assert!(report.is_well());
    }
}
