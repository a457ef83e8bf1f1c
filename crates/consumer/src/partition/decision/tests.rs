use proptest::prelude::*;

use super::*;
use crate::mongo::UpsertKeys;
use kept::{kept, near, shown};

#[path = "../../../../events/tests/it/kept.rs"]
mod kept;

fn step(value: Option<&[u8]>) -> Step {
    let record = Record::new(0, Some(5), Some(b"k"), value, std::iter::empty);
    Step::of(&record, &Expected::Of([Source::new("adsbdb").unwrap()].into()))
}

#[test]
fn a_null_value_is_skipped_and_an_empty_one_is_a_dead_letter() {
    assert!(matches!(step(None), Step::Skip));
    assert!(matches!(step(Some(b"")), Step::DeadLetter(_)));
}

#[test]
fn another_source_is_skipped_whatever_else_is_wrong_with_it() {
    assert!(matches!(step(Some(br#"{"source":"other","payload":7}"#)), Step::Skip));
    assert!(matches!(step(Some(br#"{"source":"adsbdb","payload":7}"#)), Step::DeadLetter(_)));
    assert!(matches!(step(Some(br#"{"source":"adsbdb","payload":{}}"#)), Step::Store(_)));
}

/// Decides on a record with this value, key and timestamp; whatever they are, the decision is one that can be acted on.
fn judged(value: &[u8], key: Option<&[u8]>, timestamp: Option<i64>, keys: &UpsertKeys) -> Step {
    let record = Record::new(0, timestamp, key, Some(value), std::iter::empty);
    let step = Step::of(&record, &Expected::Any);
    match &step {
        Step::Store(event) => {
            // What a write is made of.
            assert!(!keys.filter(event).is_empty(), "{}", shown(value));
            let whole = bson::Document::try_from(event.document.clone());
            assert!(whole.is_ok_and(|document| document.get_str("event_id").is_ok()), "{}", shown(value));
        }
        // With every source expected, only a null value is skipped.
        Step::Skip => panic!("skipped: {}", shown(value)),
        Step::DeadLetter(poison) => {
            assert!((1..=1024).contains(&poison.reason.len()), "{}", shown(value));
        }
    }
    let none = Step::of(&record, &Expected::Of([Source::new("nobody").unwrap()].into()));
    assert!(!matches!(none, Step::Store(_)), "{}", shown(value));
    step
}

#[test]
fn fuzz_each_kept_record_is_stored_or_dead_lettered() {
    let keys = UpsertKeys::parse("mode_s,a.b").unwrap();
    let (mut stored, mut dead) = (0, 0);
    for (_, value) in kept("record") {
        match judged(&value, Some(b"k"), Some(5), &keys) {
            Step::Store(_) => stored += 1,
            _ => dead += 1,
        }
    }
    assert!(stored > 20 && dead > 40, "{stored} stored, {dead} dead-lettered");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_records_near_the_kept_ones_are_stored_or_dead_lettered(
        value in near("record"),
        key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
        timestamp in proptest::option::of(any::<i64>()),
        fields in proptest::sample::select(vec!["event_id", "mode_s", "mode_s,registration", "a.b", "envelope_extra.v,type"]),
    ) {
        judged(&value, key.as_deref(), timestamp, &UpsertKeys::parse(fields).unwrap());
    }
}
