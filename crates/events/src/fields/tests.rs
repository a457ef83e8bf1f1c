//! Tests of single fields.

use proptest::{prelude::*, sample::select};

use super::{
    EventId, Millis, Source, Unit, derived_object_id, id, source, timestamp, timestamp_from_number,
    timestamp_of_number, timestamp_of_record_number, timestamp_of_text,
};

#[test]
fn an_id_is_a_string_or_an_integer() {
    assert_eq!(id(r#""3F28BC""#).unwrap().as_str(), "3F28BC");
    assert_eq!(id(r#""\u0041 ""#).unwrap().as_str(), "A ");
    assert_eq!(id("123456789012345678901234567890").unwrap().as_str(), "123456789012345678901234567890");
    assert_eq!(id("-7").unwrap().as_str(), "-7");
    assert_eq!(id("-0").unwrap().as_str(), "0");
    for (raw, kind) in [
        ("1.0", "string_type"),
        ("1e3", "string_type"),
        ("true", "string_type"),
        ("{}", "string_type"),
        (r#""""#, "string_too_short"),
        (r#""\ud800""#, "string_unicode"),
        (r#""a\n""#, "string_pattern_mismatch"),
    ] {
        assert_eq!(id(raw).unwrap_err().kind, kind, "{raw}");
    }
    assert_eq!(id(&"9".repeat(257)).unwrap_err().kind, "string_too_long");
}

#[test]
fn a_source_is_a_string() {
    assert_eq!(source(r#""adsbdb""#).unwrap().as_str(), "adsbdb");
    assert_eq!(source("1").unwrap_err().kind, "string_type");
    assert_eq!(source(r#""\udc00""#).unwrap_err().kind, "string_unicode");
    assert_eq!(source(r#""system.x""#).unwrap_err().kind, "string_pattern_mismatch");
}

#[test]
fn a_timestamp_is_a_number_or_text() {
    let kind = |raw| timestamp(raw, timestamp_of_number).unwrap_err().kind;
    assert_eq!(timestamp("1.5", timestamp_of_number).unwrap().get(), 1500);
    assert_eq!(timestamp(r#""1970-01-01T00:00:01Z""#, timestamp_of_number).unwrap().get(), 1000);
    assert_eq!(kind("true"), "datetime_type");
    assert_eq!(kind("[]"), "datetime_type");
    assert_eq!(kind(r#""soon""#), "datetime_parsing");
    assert_eq!(kind(r#""\ud800""#), "string_unicode");
}

#[test]
fn an_id_has_1_to_256_characters() {
    assert!(EventId::new("").unwrap_err().contains("at least 1"));
    assert!(EventId::new("é".repeat(256)).is_ok());
    assert!(EventId::new("e".repeat(257)).unwrap_err().contains("at most 256"));
}

#[test]
fn an_id_has_no_control_characters() {
    for text in ["a\nb", "\0", "a\u{7f}", "\u{85}"] {
        assert!(EventId::new(text).unwrap_err().contains("control"), "{text:?}");
    }
    assert!(EventId::new("a b \u{2028} 😀").is_ok());
}

#[test]
fn the_derived_object_id_is_the_start_of_the_hash() {
    let id = EventId::new("abc").unwrap();
    assert_eq!(derived_object_id(&id).to_hex(), "ba7816bf8f01cfea414140de");
}

/// The server's check when a client creates a collection.
fn server_rejects(name: &str) -> bool {
    name.is_empty()
        || name.starts_with('.')
        || name.contains(['$', '\0'])
        || name.starts_with("system.")
        || name.contains(".system.")
        // The longest database name, a dot, and the limit of a sharded collection's namespace.
        || 63 + 1 + name.len() > 235
}

/// The check of the drivers for Python and Node.js before they send a command.
fn driver_rejects(name: &str) -> bool {
    name.is_empty()
        || name.starts_with('.')
        || name.ends_with('.')
        || name.contains("..")
        || name.contains(['$', '\0'])
}

fn matches_pattern(name: &str) -> bool {
    let (first, rest) = name.as_bytes().split_first().unwrap_or((&b'.', &[]));
    first.is_ascii_alphanumeric()
        && rest.len() < 64
        && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

proptest! {
    #[test]
    fn a_source_is_accepted_only_if_its_collection_can_be_opened(
        parts in prop::collection::vec(
            select(vec![".", "..", "system", "System", "system.", "buckets", "a", "9", "_", "-", "$", "\0", "é", "abcdefghij"]),
            0..9,
        ),
    ) {
        let name = parts.concat();
        let right = matches_pattern(&name) && !server_rejects(&name) && !driver_rejects(&name);
        prop_assert_eq!(Source::new(name.clone()).is_ok(), right, "{:?}", name);
    }
}

#[test]
fn names_of_collections_are_sources() {
    for text in [
        "adsbdb",
        "a",
        "9",
        "A.b_c-d",
        "system",
        "systems.x",
        "a.system",
        "a.systems.b",
        "a.System.b",
        "a_system.b",
        "admin",
        "local",
        &"a".repeat(64),
    ] {
        assert_eq!(Source::new(text).unwrap().as_str(), text);
    }
}

#[test]
fn names_that_cannot_be_a_collection_are_rejected_with_a_reason() {
    for (text, reason) in [
        ("", "match ^"),
        (".a", "match ^"),
        ("-a", "match ^"),
        ("_a", "match ^"),
        ("a b", "match ^"),
        ("a/b", "match ^"),
        ("a$", "match ^"),
        ("a\0", "match ^"),
        ("é", "match ^"),
        ("a\n", "match ^"),
        (&"a".repeat(65), "match ^"),
        ("system.x", "contain .system."),
        ("system.buckets.a", "contain .system."),
        ("system.", "contain .system."),
        ("a.system.b", "contain .system."),
        ("a.system.", "contain .system."),
        ("a.system.buckets.b", "contain .system."),
        ("a.", "end with a dot"),
        ("a..b", "two in a row"),
        ("a..", "two in a row"),
    ] {
        let why = Source::new(text).unwrap_err();
        assert!(why.contains(reason), "{text:?}: {why}");
    }
}

#[test]
fn iso_text_always_has_milliseconds() {
    let iso = |ms| Millis::new(ms).unwrap().iso();
    assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(iso(1_730_000_000_000), "2024-10-27T03:33:20.000Z");
    assert_eq!(iso(1_761_509_763_123), "2025-10-26T20:16:03.123Z");
    assert_eq!(Millis::MAX.iso(), "9999-12-31T23:59:59.999Z");
}

#[test]
fn times_outside_the_years_1970_to_9999_are_rejected() {
    assert_eq!(Millis::new(-1), None);
    assert_eq!(Millis::new(Millis::MAX.get() + 1), None);
    assert_eq!(Millis::new(i64::MIN), None);
    assert_eq!(Millis::new(Millis::MAX.get()), Some(Millis::MAX));
}

fn number(text: &str) -> Result<i64, &'static str> {
    timestamp_of_number(text).map(|millis| millis.get()).map_err(|broken_rule| broken_rule.kind)
}

fn text(text: &str) -> Result<i64, &'static str> {
    timestamp_of_text(text).map(|millis| millis.get()).map_err(|broken_rule| broken_rule.kind)
}

#[test]
fn integers_from_ten_to_the_twelfth_are_milliseconds_and_below_seconds() {
    assert_eq!(number("1730000000000"), Ok(1_730_000_000_000));
    assert_eq!(number("1000000000000"), Ok(1_000_000_000_000));
    assert_eq!(number("999999999999"), Err("less_than_equal"));
    assert_eq!(number("1730000000"), Ok(1_730_000_000_000));
    assert_eq!(number("0"), Ok(0));
    assert_eq!(number("-0"), Ok(0));
}

#[test]
fn fractions_are_truncated_to_milliseconds_without_floats() {
    assert_eq!(number("1730000000.123456"), Ok(1_730_000_000_123));
    assert_eq!(number("1730000000.9999999999"), Ok(1_730_000_000_999));
    assert_eq!(number("0.0019"), Ok(1));
    assert_eq!(number("0.0009"), Ok(0));
    assert_eq!(number("1730000000000.9"), Ok(1_730_000_000_000));
    // 1730000000.289 as a double is 1730000000.2889999…
    assert_eq!(number("1730000000.289"), Ok(1_730_000_000_289));
}

#[test]
fn numbers_with_exponents_are_read() {
    assert_eq!(number("1.73e9"), Ok(1_730_000_000_000));
    assert_eq!(number("1.73E+12"), Ok(1_730_000_000_000));
    assert_eq!(number("1730000000123e-3"), Ok(1_730_000_000_123));
    assert_eq!(number("1e-99999999999999999999"), Ok(0));
    assert_eq!(number("0e99999999999999999999"), Ok(0));
    assert_eq!(number("1e99999999999999999999"), Err("less_than_equal"));
}

#[test]
fn numbers_outside_the_years_1970_to_9999_are_rejected() {
    assert_eq!(number("-1"), Err("greater_than_equal"));
    assert_eq!(number("-0.0001"), Err("greater_than_equal"));
    assert_eq!(number("253402300799"), Ok(253_402_300_799_000));
    assert_eq!(number("253402300799.9999"), Ok(253_402_300_799_999));
    assert_eq!(number("253402300800"), Err("less_than_equal"));
    assert_eq!(number("253402300799999"), Ok(253_402_300_799_999));
    assert_eq!(number("253402300800000"), Err("less_than_equal"));
    assert_eq!(number("99999999999999999999999"), Err("less_than_equal"));
}

#[test]
fn a_number_of_a_known_unit_is_not_judged_by_its_size() {
    let of = |text, unit| timestamp_from_number(text, unit).map(Millis::get);
    assert_eq!(of("1730000000123456", Unit::Micros), Ok(1_730_000_000_123));
    assert_eq!(of("1730000000123456789", Unit::Nanos), Ok(1_730_000_000_123));
    assert_eq!(of("5", Unit::Millis), Ok(5));
    assert_eq!(of("999", Unit::Micros), Ok(0));
    assert_eq!(of("1.7300000001239e9", Unit::Seconds), Ok(1_730_000_000_123));
    assert_eq!(of("253402300799999999", Unit::Micros), Ok(253_402_300_799_999));
    for (text, unit) in [
        ("1730000000000", Unit::Seconds),
        ("253402300800000", Unit::Millis),
        ("99999999999999999999999", Unit::Nanos),
        ("-1", Unit::Seconds),
    ] {
        assert!(of(text, unit).is_err(), "{text} {unit:?}");
    }
}

#[test]
fn in_a_record_an_integer_of_any_size_is_milliseconds() {
    assert_eq!(timestamp_of_record_number("1730000000").unwrap().get(), 1_730_000_000);
    assert_eq!(timestamp_of_record_number("5").unwrap().get(), 5);
    for (text, kind) in [
        ("1.5", "int_type"),
        ("1e3", "int_type"),
        ("-1", "greater_than_equal"),
        ("-99999999999999999999", "greater_than_equal"),
        ("99999999999999999999", "less_than_equal"),
    ] {
        assert_eq!(timestamp_of_record_number(text).unwrap_err().kind, kind, "{text}");
    }
}

#[test]
fn rfc_3339_text_is_read() {
    assert_eq!(text("2024-10-27T03:33:20Z"), Ok(1_730_000_000_000));
    assert_eq!(text("2024-10-27t03:33:20.1z"), Ok(1_730_000_000_100));
    assert_eq!(text("2024-10-27 05:33:20.123999999999+02:00"), Ok(1_730_000_000_123));
    assert_eq!(text("2024-10-26T22:03:20-05:30"), Ok(1_730_000_000_000));
    assert_eq!(text("9999-12-31T23:59:59.999Z"), Ok(253_402_300_799_999));
}

#[test]
fn second_60_is_read_only_at_23_59_60_in_utc() {
    for (right, same) in [
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.5Z"),
        ("2017-01-01T01:59:60+02:00", "2016-12-31T23:59:59Z"),
        ("1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59Z"),
        ("2017-01-01T05:29:60.999+05:30", "2016-12-31T23:59:59.999Z"),
        ("1972-06-30 23:59:60-00:00", "1972-06-30T23:59:59Z"),
    ] {
        assert_eq!(text(right), text(same), "{right}");
        assert!(text(right).is_ok(), "{right}");
    }
    for wrong in [
        "2016-12-31T23:58:60Z",
        "2016-12-31T00:00:60Z",
        "2024-10-27T03:33:60Z",
        "2016-12-31T23:59:60+02:00",
        "2016-12-31T23:59:60-00:01",
        "2017-01-01T05:30:60+05:30",
    ] {
        assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
        assert!(timestamp_of_text(wrong).unwrap_err().msg.contains("Second 60"), "{wrong}");
    }
    for wrong in ["2016-12-31T23:59:61Z", "2016-12-31T23:60:60Z", "2016-12-31T24:59:60Z"] {
        assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
    }
}

#[test]
fn a_violation_names_the_broken_rule() {
    for (wrong, rule) in [
        ("27.10.2024", "RFC 3339"),
        ("2024-10-27T03:33:20", "with an offset"),
        ("2024-02-30T00:00:00Z", "that exist"),
        ("2024-10-27T24:00:00Z", "that exist"),
    ] {
        let msg = timestamp_of_text(wrong).unwrap_err().msg;
        assert!(msg.contains(rule), "{wrong}: {msg}");
    }
    for (wrong, unit) in [("999999999999", "taken as seconds"), ("1730000000000000", "taken as milliseconds")]
    {
        let msg = timestamp_of_number(wrong).unwrap_err().msg;
        assert!(msg.contains(unit), "{wrong}: {msg}");
    }
}

#[test]
fn text_outside_the_years_1970_to_9999_is_rejected() {
    assert_eq!(text("1969-12-31T23:59:59.999Z"), Err("greater_than_equal"));
    assert_eq!(text("9999-12-31T23:59:59-00:01"), Err("less_than_equal"));
    assert_eq!(text("0000-01-01T00:00:00Z"), Err("greater_than_equal"));
}

#[test]
fn other_text_is_rejected() {
    for wrong in [
        "",
        "now",
        "1730000000000",
        "2024-10-27",
        "2024-10-27T03:33:20",
        "2024-10-27T03:33Z",
        "2024-02-30T00:00:00Z",
        "2024-10-27T24:00:00Z",
        "2024-10-27T03:33:20.Z",
        "2024-10-27T03:33:20,5Z",
        "2024-10-27T03:33:20+24:00",
        "2024-10-27T03:33:20+2:00",
        "2024-10-27T03:33:20+02:60",
        "2024-10-27T03:33:20+0200",
        "2024-10-27T03:33:20Z[UTC]",
        "+002024-10-27T03:33:20Z",
        "2024-10-27T03:33:20.5",
        "2024-10-27T03:33:20.5é",
        "2024-10-27T03:33:2é",
        "2024-10-27T03:33:20é",
    ] {
        assert_eq!(text(wrong), Err("datetime_parsing"), "{wrong}");
    }
}
