use proptest::prelude::*;

use events::Source;

use super::*;
use crate::mongo::UpsertKeys;
use kept::{kept, near, shown};

#[path = "../../../../events/tests/it/kept.rs"]
mod kept;

fn record(offset: usize, padding: usize) -> Record {
    let value = format!(
        r#"{{"id":"{offset}","source":"s","timestamp":1,"ingested_at":1,"payload":{{"p":"{}"}}}}"#,
        "x".repeat(padding)
    );
    Record::new(offset as i64, Some(1), None, Some(value.as_bytes()), std::iter::empty)
}

fn size(entry: &Entry) -> usize {
    match &entry.decision {
        Decision::Store(event) => event.document.as_bytes().len() + STATEMENT_BYTES,
        _ => 0,
    }
}

proptest! {
    #[test]
    fn batches_keep_the_order_and_are_as_full_as_the_limits_allow(
        paddings in prop::collection::vec(0_usize..3000, 1..40),
        arrivals in prop::collection::vec(1_usize..10, 1..10),
        records in 1_usize..8,
        bytes in 1_usize..8000,
    ) {
        let limits = BatchLimits { records, bytes };
        let mut input = paddings.iter().enumerate().map(|(offset, &padding)| record(offset, padding));
        let mut batcher = Batcher::default();
        let mut seen = Vec::new();
        for arrived in arrivals.into_iter().cycle() {
            batcher.add(input.by_ref().take(arrived));
            let waited = batcher.waiting();
            let batch = batcher.next(limits, &ExpectedSources::All);
            if waited == 0 { break }
            let taken = batch.len();
            let total: usize = batch.iter().map(size).sum();
            prop_assert!(taken >= 1 && taken <= records);
            prop_assert!(total <= bytes || taken == 1);
            if let Some(next) = batcher.waiting.front().filter(|_| taken < records) {
                let next = Entry { record: next.clone(), decision: Decision::of(next, &ExpectedSources::All) };
                prop_assert!(total + size(&next) > bytes, "one more record would have fitted");
            }
            seen.extend(batch.iter().map(|entry| entry.record.offset));
        }
        prop_assert_eq!(seen, (0..paddings.len() as i64).collect::<Vec<_>>());
    }
}

fn decision(value: Option<&[u8]>) -> Decision {
    let record = Record::new(0, Some(5), Some(b"k"), value, std::iter::empty);
    Decision::of(&record, &ExpectedSources::Listed([Source::new("adsbdb").unwrap()].into()))
}

#[test]
fn null_value_is_skipped_and_empty_value_is_dead_lettered() {
    assert!(matches!(decision(None), Decision::Skip));
    assert!(matches!(decision(Some(b"")), Decision::DeadLetter(_)));
}

#[test]
fn record_of_another_source_is_skipped_despite_other_errors() {
    assert!(matches!(decision(Some(br#"{"source":"other","payload":7}"#)), Decision::Skip));
    assert!(matches!(decision(Some(br#"{"source":"adsbdb","payload":7}"#)), Decision::DeadLetter(_)));
    assert!(matches!(decision(Some(br#"{"source":"adsbdb","payload":{}}"#)), Decision::Store(_)));
}

/// Decides on a record and checks that the decision can be carried out.
fn checked_decision(value: &[u8], key: Option<&[u8]>, timestamp: Option<i64>, keys: &UpsertKeys) -> Decision {
    let record = Record::new(0, timestamp, key, Some(value), std::iter::empty);
    let decision = Decision::of(&record, &ExpectedSources::All);
    match &decision {
        Decision::Store(event) => {
            // A write needs a filter and a complete document.
            assert!(!keys.filter(event).is_empty(), "{}", shown(value));
            let whole = bson::Document::try_from(event.document.clone());
            assert!(whole.is_ok_and(|document| document.get_str("event_id").is_ok()), "{}", shown(value));
        }
        // If all sources are expected, only a null value is skipped.
        Decision::Skip => panic!("skipped: {}", shown(value)),
        Decision::DeadLetter(poison) => {
            assert!((1..=1024).contains(&poison.reason.len()), "{}", shown(value));
        }
    }
    let none = Decision::of(&record, &ExpectedSources::Listed([Source::new("nobody").unwrap()].into()));
    assert!(!matches!(none, Decision::Store(_)), "{}", shown(value));
    decision
}

#[test]
fn fuzz_each_corpus_record_is_stored_or_dead_lettered() {
    let keys = UpsertKeys::parse("mode_s,a.b").unwrap();
    let (mut stored, mut dead) = (0, 0);
    for (_, value) in kept("record") {
        match checked_decision(&value, Some(b"k"), Some(5), &keys) {
            Decision::Store(_) => stored += 1,
            _ => dead += 1,
        }
    }
    assert!(stored > 20 && dead > 40, "{stored} stored, {dead} dead-lettered");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_records_near_the_corpus_are_stored_or_dead_lettered(
        value in near("record"),
        key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
        timestamp in proptest::option::of(any::<i64>()),
        fields in proptest::sample::select(vec!["event_id", "mode_s", "mode_s,registration", "a.b", "envelope_extra.v,type"]),
    ) {
        checked_decision(&value, key.as_deref(), timestamp, &UpsertKeys::parse(fields).unwrap());
    }
}
