//! Selects dead letters by the filters of the command line.

use super::dead_letter::DeadLetter;
use super::options::Filters;

/// The filters, with times relative to the start of the command.
#[derive(Debug, Clone)]
pub struct Filter {
    reason: Option<String>,
    source: Option<String>,
    /// The lowest selected timestamp.
    pub since_ms: Option<i64>,
    until_ms: Option<i64>,
}

impl Filter {
    /// Resolves `filters` at the time `now_ms`.
    pub fn new(filters: Filters, now_ms: i64) -> Self {
        Self {
            reason: filters.reason,
            source: filters.source.map(|source| source.to_string()),
            since_ms: filters.since.map(|since| since.epoch_ms(now_ms)),
            until_ms: filters.until.map(|until| until.epoch_ms(now_ms)),
        }
    }

    /// Whether the filters select `dead_letter`. A time filter excludes one without a timestamp.
    pub fn matches(&self, dead_letter: &DeadLetter) -> bool {
        let reason = self.reason.as_ref().is_none_or(|text| dead_letter.reason_text().contains(text));
        let source = self.source.is_none() || self.source == dead_letter.source;
        let since = self.since_ms.is_none_or(|since| dead_letter.timestamp_ms.is_some_and(|ms| ms >= since));
        let until = self.until_ms.is_none_or(|until| dead_letter.timestamp_ms.is_some_and(|ms| ms < until));
        reason && source && since && until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::options::TimeArgument;
    use events::Source;
    use kafka::topic_reader::RecordPosition;

    fn dead_letter() -> DeadLetter {
        DeadLetter {
            position: RecordPosition { topic: "t.dlq".into(), partition: 0, offset: 0 },
            timestamp_ms: Some(5_000),
            key: None,
            value_bytes: Some(1),
            source: Some("manual".into()),
            origin: None,
            stage: None,
            class: Some("Unstorable".into()),
            reason: Some("payload.a: too deep".into()),
            replays: 0,
        }
    }

    fn matches(filters: Filters, dead_letter: &DeadLetter) -> bool {
        Filter::new(filters, 10_000).matches(dead_letter)
    }

    #[test]
    fn a_reason_is_a_part_of_class_or_message() {
        for (text, taken) in
            [("Unstorable", true), ("too deep", true), ("Unstorable: payload", true), ("x", false)]
        {
            let filters = Filters { reason: Some(text.into()), ..Filters::default() };
            assert_eq!(matches(filters, &dead_letter()), taken, "{text}");
        }
    }

    #[test]
    fn a_source_filter_excludes_a_value_without_a_readable_source() {
        let filters = |name| Filters { source: Some(Source::new(name).unwrap()), ..Filters::default() };
        assert!(matches(filters("manual"), &dead_letter()) && !matches(filters("man"), &dead_letter()));
        assert!(!matches(filters("manual"), &DeadLetter { source: None, ..dead_letter() }));
    }

    #[test]
    fn since_is_inclusive_and_until_is_exclusive() {
        let between = |since, until| Filters {
            since: Some(TimeArgument::At(since)),
            until: Some(TimeArgument::At(until)),
            ..Filters::default()
        };
        assert!(matches(between(5_000, 5_001), &dead_letter()));
        assert!(
            !matches(between(5_001, 6_000), &dead_letter()) && !matches(between(0, 5_000), &dead_letter())
        );
        assert!(!matches(between(0, 9_000), &DeadLetter { timestamp_ms: None, ..dead_letter() }));
        assert!(matches(Filters::default(), &DeadLetter { timestamp_ms: None, ..dead_letter() }));
    }
}
