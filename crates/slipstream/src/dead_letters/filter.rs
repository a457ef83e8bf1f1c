//! Which dead letters are meant.

use super::options::Filters;
use crate::dead_letter::DeadLetter;

/// The filters, at the moment at which the command began.
#[derive(Debug, Clone)]
pub struct Filter {
    reason: Option<String>,
    source: Option<String>,
    /// The first millisecond that is meant.
    pub since_ms: Option<i64>,
    until_ms: Option<i64>,
}

impl Filter {
    /// Of `filters`, at `now_ms`.
    pub fn new(filters: Filters, now_ms: i64) -> Self {
        Self {
            reason: filters.reason,
            source: filters.source.map(|source| source.to_string()),
            since_ms: filters.since.map(|since| since.epoch_ms(now_ms)),
            until_ms: filters.until.map(|until| until.epoch_ms(now_ms)),
        }
    }

    /// Whether `letter` is meant. One without a timestamp is of no time.
    pub fn takes(&self, letter: &DeadLetter) -> bool {
        let reason = self.reason.as_ref().is_none_or(|text| letter.reason_text().contains(text));
        let source = self.source.is_none() || self.source == letter.source;
        let since = self.since_ms.is_none_or(|since| letter.timestamp_ms.is_some_and(|ms| ms >= since));
        let until = self.until_ms.is_none_or(|until| letter.timestamp_ms.is_some_and(|ms| ms < until));
        reason && source && since && until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::options::Moment;
    use events::Source;
    use kafka::topic_reader::RecordPosition;

    fn letter() -> DeadLetter {
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

    fn takes(filters: Filters, letter: &DeadLetter) -> bool {
        Filter::new(filters, 10_000).takes(letter)
    }

    #[test]
    fn a_reason_is_a_part_of_class_or_message() {
        for (text, taken) in
            [("Unstorable", true), ("too deep", true), ("Unstorable: payload", true), ("x", false)]
        {
            let filters = Filters { reason: Some(text.into()), ..Filters::default() };
            assert_eq!(takes(filters, &letter()), taken, "{text}");
        }
    }

    #[test]
    fn a_source_is_that_of_the_value_and_an_unreadable_one_is_none() {
        let filters = |name| Filters { source: Some(Source::new(name).unwrap()), ..Filters::default() };
        assert!(takes(filters("manual"), &letter()) && !takes(filters("man"), &letter()));
        assert!(!takes(filters("manual"), &DeadLetter { source: None, ..letter() }));
    }

    #[test]
    fn since_is_within_and_until_is_not() {
        let between = |since, until| Filters {
            since: Some(Moment::At(since)),
            until: Some(Moment::At(until)),
            ..Filters::default()
        };
        assert!(takes(between(5_000, 5_001), &letter()));
        assert!(!takes(between(5_001, 6_000), &letter()) && !takes(between(0, 5_000), &letter()));
        assert!(!takes(between(0, 9_000), &DeadLetter { timestamp_ms: None, ..letter() }));
        assert!(takes(Filters::default(), &DeadLetter { timestamp_ms: None, ..letter() }));
    }
}
