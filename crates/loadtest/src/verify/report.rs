//! The report of a verification, as text and as JSON.

use std::cmp::Ordering;
use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};
use service::plural::{counted, counted_with};

use super::catch_up::{estimate, seconds_left};

/// Maximum number of examples of a finding.
const MAX_EXAMPLES: usize = 10;

/// The differences of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Their number.
    pub count: u64,
    /// The first of them, as text.
    pub examples: Vec<String>,
}

impl Finding {
    /// Adds a difference.
    pub fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// The counts of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerCounts {
    /// Events.
    pub events: u64,
    /// Events with a 202.
    pub accepted: u64,
    /// Events that no attempt stored.
    pub rejected: u64,
    /// Events that may or may not be stored.
    pub unknown: u64,
    /// Attempts of all events.
    pub attempts: u64,
    /// Attempts with a 504.
    pub unconfirmed: u64,
}

/// The result of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyResult {
    /// No difference.
    Passed,
    /// A difference that no unfinished record can remove.
    Failed,
    /// No difference so far, but unfinished records.
    Incomplete,
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The report.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The run.
    pub run: String,
    /// Database and collection.
    pub collection: String,
    /// The sent events.
    pub ledger: LedgerCounts,
    /// Documents of the run.
    pub documents: u64,
    /// Records that the group had not finished at the end of the wait.
    pub waiting: u64,
    /// Records per second that the group finished; `None` if it finished none.
    pub per_second: Option<f64>,
    /// Ids that were not compared, because an unfinished record may still change them.
    pub undecided: u64,
    /// Whether events of the run delete.
    pub has_deletes: bool,
    /// Ids whose newest document has expired and is removed.
    pub expired: u64,
    /// Ids with an accepted event and no document.
    pub missing: Finding,
    /// Ids that lack an accepted event whose record Kafka no longer has.
    pub gone: Finding,
    /// Ids with several documents.
    pub duplicated: Finding,
    /// Documents that hold an event that a newer one should have replaced.
    pub superseded: Finding,
    /// Documents that a newer delete should have removed.
    pub resurrected: Finding,
    /// Documents that differ from the sent event.
    pub altered: Finding,
    /// Documents with an id of the run that was never sent, or was rejected.
    pub foreign: Finding,
    /// Events that were dead-lettered.
    pub dead_lettered: Finding,
    /// Expected number of dead letters.
    pub expected_dead_letters: u64,
}

impl Report {
    fn findings(&self) -> [(&'static str, &Finding); 7] {
        [
            ("missing", &self.missing),
            ("gone", &self.gone),
            ("duplicated", &self.duplicated),
            ("superseded", &self.superseded),
            ("resurrected", &self.resurrected),
            ("altered", &self.altered),
            ("foreign", &self.foreign),
        ]
    }

    /// The result. A difference that no unfinished record can remove is a failure at once.
    pub fn result(&self) -> VerifyResult {
        let is_unfinished = self.waiting > 0;
        let dead_letters = self.dead_lettered.count.cmp(&self.expected_dead_letters);
        let differs = self.findings().iter().any(|(_, finding)| finding.count > 0);
        match dead_letters {
            _ if differs => VerifyResult::Failed,
            Ordering::Greater => VerifyResult::Failed,
            Ordering::Less if !is_unfinished => VerifyResult::Failed,
            _ if is_unfinished => VerifyResult::Incomplete,
            _ => VerifyResult::Passed,
        }
    }

    /// Whether the verification passed.
    pub fn is_passed(&self) -> bool {
        self.result() == VerifyResult::Passed
    }

    /// Share of the attempts with a 504.
    pub fn share_of_504s(&self) -> f64 {
        self.ledger.unconfirmed as f64 / self.ledger.attempts.max(1) as f64
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let LedgerCounts { events, accepted, rejected, unknown, attempts, unconfirmed } = self.ledger;
        let mut json = json!({
            "run": self.run,
            "collection": self.collection,
            "events": events,
            "accepted": accepted,
            "refused": rejected,
            "unknown": unknown,
            "documents": self.documents,
            "waiting": self.waiting,
            "finished_per_second": self.per_second.map(rounded),
            "waiting_seconds": seconds_left(self.waiting, self.per_second).map(rounded),
            "not_judged": self.undecided,
            "expired": self.expired,
            "dead_lettered": self.dead_lettered,
            "expected_dead_letters": self.expected_dead_letters,
            "attempts": attempts,
            "answered_504": unconfirmed,
            "share_of_504s": self.share_of_504s(),
            "well": self.is_passed(),
            "verdict": match self.result() {
                VerifyResult::Passed => "well",
                VerifyResult::Failed => "wrong",
                VerifyResult::Incomplete => "unfinished",
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
        let LedgerCounts { events, accepted, rejected, unknown, attempts, unconfirmed } = self.ledger;
        writeln!(
            f,
            "{}: {}, {accepted} accepted, {rejected} rejected, {unknown} unknown",
            self.run,
            counted(events, "event")
        )?;
        writeln!(f, "{}: {} of the run", self.collection, counted(self.documents, "document"))?;
        if self.waiting > 0 {
            let (records, ids) = (counted(self.waiting, "record"), counted(self.undecided, "id"));
            writeln!(f, "  waiting        {records}: {}", estimate(self.waiting, self.per_second))?;
            writeln!(f, "  not compared   {ids}: their documents may still change")?;
        }
        if self.expired > 0 {
            writeln!(f, "  expired        {}: their documents are removed", counted(self.expired, "id"))?;
        }
        let examples = |f: &mut fmt::Formatter<'_>, finding: &Finding| {
            finding.examples.iter().try_for_each(|example| writeln!(f, "      {example}"))?;
            match finding.count - finding.examples.len() as u64 {
                0 => Ok(()),
                more => writeln!(f, "      and {more} more"),
            }
        };
        for (name, finding) in self.findings() {
            if name == "resurrected" && !self.has_deletes {
                continue;
            }
            writeln!(f, "  {name:<14} {}", finding.count)?;
            examples(f, finding)?;
        }
        writeln!(
            f,
            "  dead-lettered  {}, expected {}",
            self.dead_lettered.count, self.expected_dead_letters
        )?;
        examples(f, &self.dead_lettered)?;
        let share = 100.0 * self.share_of_504s();
        let attempts = counted(attempts, "attempt");
        writeln!(f, "  504s           {unconfirmed} of {attempts} ({share:.2} %)")?;
        match self.result() {
            VerifyResult::Passed => write!(f, "verification passed"),
            VerifyResult::Failed => {
                write!(f, "VERIFICATION FAILED: slipstream trace ID shows where an event is")
            }
            VerifyResult::Incomplete => write!(
                f,
                "VERIFICATION INCOMPLETE: {} unfinished, {}; --wait until-done waits for the consumer",
                counted_with(self.waiting, "record", ["is", "are"]),
                estimate(self.waiting, self.per_second)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_examples_are_shown_and_the_rest_is_counted() {
        let mut report = Report::default();
        assert!(report.is_passed());
        for n in 0..12 {
            report.superseded.add(|| format!("id-{n}"));
        }
        let text = report.to_string();
        assert!(text.contains("  superseded     12\n      id-0\n"), "{text}");
        assert!(
            text.contains("      id-9\n      and 2 more\n") && text.contains("VERIFICATION FAILED"),
            "{text}"
        );
        assert!(!report.is_passed());
        assert_eq!(report.json()["superseded"]["count"], 12);
    }

    #[test]
    fn unfinished_records_are_shown_with_an_estimate() {
        let (waiting, per_second) = (450_000, Some(2_500.0));
        let report = Report { waiting, per_second, undecided: 1, ..Report::default() };
        let text = report.to_string();
        let estimate = "about 3 min 0 s at the current rate of 2500 per second";
        for part in [
            format!("  waiting        450000 records: {estimate}\n"),
            "  not compared   1 id: ".to_owned(),
            format!("VERIFICATION INCOMPLETE: 450000 records are unfinished, {estimate}; "),
        ] {
            assert!(text.contains(&part) && !text.contains("VERIFICATION FAILED"), "{part} in {text}");
        }
        let json = report.json();
        assert_eq!((&json["waiting"], &json["waiting_seconds"]), (&450_000.into(), &180.0.into()));
        assert_eq!((&json["verdict"], &json["well"]), (&"unfinished".into(), &false.into()));
        assert!(Report { waiting, ..Report::default() }.json()["waiting_seconds"].is_null());
    }

    #[test]
    fn any_finding_or_wrong_number_of_dead_letters_is_a_failure() {
        let well = Report { expected_dead_letters: 1, ..Report::default() };
        assert!(!well.is_passed(), "a dead letter is missing");
        assert_eq!(Report { waiting: 1, ..well }.result(), VerifyResult::Incomplete, "it may still be added");
        let mut wrong = Report { waiting: 1, ..Report::default() };
        assert_eq!(wrong.result(), VerifyResult::Incomplete);
        wrong.foreign.add(String::new);
        assert_eq!(wrong.result(), VerifyResult::Failed, "no record removes it");
        let mut report = Report::default();
        report.dead_lettered.add(String::new);
        assert!(!report.is_passed(), "an unexpected dead letter");
        report.expected_dead_letters = 1;
        assert!(report.is_passed());
    }
}
