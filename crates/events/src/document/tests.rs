//! Tests of the document, and of the conversion from JSON to BSON.

use bson::spec::ElementType;
use bson::{Document, RawDocumentBuf, cstr, doc, rawdoc};

use super::{Converter, DocumentBuilder, FEW, MAX_NESTING, Members, Metadata, Number, Writer, number};
use crate::{
    fields::{EventId, Millis},
    validation::{Path, Violations},
};

fn document(payload: &str, api_version: Option<&str>, extra: &[(&str, &str)]) -> Document {
    let mut violations = Violations::default();
    let mut builder = DocumentBuilder::new(payload, &Path::Root, &mut violations);
    let id = EventId::new("e").unwrap();
    let timestamp = Millis::new(1).unwrap();
    builder.metadata(&Metadata { id: &id, timestamp, ingested_at: Millis::MAX, api_version });
    builder.extra(extra, &mut violations);
    let document = builder.finish(&mut violations).ok_or(violations.into_list()).unwrap();
    Document::try_from(document).unwrap()
}

fn metadata() -> Document {
    doc! {
        "event_id": "e", "event_timestamp": 1_i64, "ingested_at": 253_402_300_799_999_i64, "api_version": "1",
        "event_timestamp_iso": "1970-01-01T00:00:00.001Z", "ingested_at_iso": "9999-12-31T23:59:59.999Z",
    }
}

#[test]
fn the_payload_comes_first_and_the_metadata_after_it() {
    let mut expected = doc! { "z": 1_i32, "a": 2_i32 };
    expected.extend(metadata());
    assert_eq!(document(r#"{"z":1,"a":2}"#, Some("1"), &[]), expected);
}

#[test]
fn fields_with_reserved_names_are_kept_in_payload_conflicts() {
    let payload = r#"{"_id":{"a":[1]},"x":1,"event_id":5,"payload_conflicts":{"b":2},"api_version":"p",
        "event_id":6,"envelope_extra":null,"y":{"_id":1}}"#;
    let mut expected = doc! {
        "x": 1_i32, "y": { "_id": 1_i32 },
        "payload_conflicts": {
            "_id": { "a": [1_i32] }, "payload_conflicts": { "b": 2_i32 }, "api_version": "p", "event_id": 6_i32,
            "envelope_extra": null,
        },
    };
    expected.extend(metadata());
    assert_eq!(document(payload, Some("1"), &[]), expected);
}

#[test]
fn unknown_fields_of_the_envelope_are_kept_in_envelope_extra() {
    let extra = [("\"trace\"", "[1]"), ("\"_id\"", "1"), ("\"trace\"", "{\"a\":2}")];
    let mut expected = metadata();
    expected.extend(doc! { "envelope_extra": { "_id": 1_i32, "trace": { "a": 2_i32 } } });
    assert_eq!(document("{}", Some("1"), &extra), expected);
}

#[test]
fn an_absent_api_version_is_omitted() {
    let mut expected = metadata();
    expected.remove("api_version");
    assert_eq!(document("{}", None, &[]), expected);
}

#[test]
fn the_size_of_the_whole_document_is_checked() {
    let mut violations = Violations::default();
    let mut builder = DocumentBuilder::new("{}", &Path::Root, &mut violations);
    builder.extra(&[("\"x\"", &format!("\"{}\"", "x".repeat(16 * 1024 * 1024)))], &mut violations);
    assert!(builder.finish(&mut violations).is_none());
    assert_eq!(violations.into_list()[0].kind, "document_too_large");
}

fn convert(json: &str) -> Result<Document, Vec<String>> {
    let mut violations = Violations::default();
    let mut converter = Converter::new(0, &mut violations);
    let open = converter.writer.open();
    converter.payload(json, &Path::Name(&Path::Root, "payload"), &mut |_| true);
    converter.writer.close(&open);
    let bytes = converter.writer.bytes;
    let violations = violations.into_list();
    if violations.is_empty() {
        Ok(Document::try_from(RawDocumentBuf::from_bytes(bytes).unwrap()).unwrap())
    } else {
        Err(violations.iter().map(ToString::to_string).collect())
    }
}

#[test]
fn every_kind_of_value_is_converted() {
    let json = r#" { "n" : null, "t":true,"f":false, "i":1, "l":-3000000000, "d":1.5, "s":"a\n\u0000é",
        "o":{"x":{}}, "a":[ 1 , "two",[ ], {"k":[false]} ] } "#
        .trim();
    let expected = doc! {
        "n": null, "t": true, "f": false, "i": 1_i32, "l": -3_000_000_000_i64, "d": 1.5, "s": "a\n\0é",
        "o": { "x": {} }, "a": [1_i32, "two", [], { "k": [false] }],
    };
    assert_eq!(convert(json), Ok(expected));
    assert_eq!(convert("{}"), Ok(doc! {}));
}

#[test]
fn unusual_keys_are_kept_unchanged() {
    let json = r#"{"":1,"a.b":2,"$set":{"$inc":"$x"},"0":3,"é\n":4}"#;
    let expected = doc! { "": 1, "a.b": 2, "$set": { "$inc": "$x" }, "0": 3, "é\n": 4 };
    assert_eq!(convert(json), Ok(expected));
}

#[test]
fn the_last_of_duplicate_keys_wins_at_every_level() {
    let json = r#"{"a":1,"b":[{"c":1,"\u0063":{"d":1,"d":2}}],"a":{"x":1}}"#;
    assert_eq!(convert(json), Ok(doc! { "b": [{ "c": { "d": 2 } }], "a": { "x": 1 } }));
}

#[test]
fn all_violations_are_found_with_their_paths() {
    let json = r#"{"a":[1,1e9999,{"k\u0000":"\ud800"}],"\udfff":12345678901234567890123456789012345,"ok":1}"#;
    let violations = convert(json).unwrap_err();
    assert_eq!(violations.len(), 5, "{violations:?}");
    assert!(violations[0].starts_with("payload.a[1]: Number"), "{violations:?}");
    assert!(violations[1].starts_with("payload.a[2].k\0: Key"), "{violations:?}");
    assert!(violations[2].starts_with("payload.a[2].k\0: Input"), "{violations:?}");
    assert!(violations[3].starts_with("payload.\"\\udfff\": Input"), "{violations:?}");
    assert!(violations[4].starts_with("payload.\"\\udfff\": Number"), "{violations:?}");
}

#[test]
fn ninety_levels_are_accepted_and_ninety_one_are_a_violation() {
    let arrays = |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    let objects = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    assert!(convert(&arrays(MAX_NESTING - 1)).is_ok());
    assert!(convert(&objects(MAX_NESTING)).is_ok());
    for json in [arrays(MAX_NESTING), objects(MAX_NESTING + 1), arrays(1_000_000)] {
        let violations = convert(&json).unwrap_err();
        assert_eq!(violations.len(), 1);
        assert!(violations[0].contains("at most 90 levels"), "{violations:?}");
    }
}

#[test]
fn a_value_that_a_duplicate_key_replaces_is_validated() {
    assert_eq!(convert(r#"{"a":1e9999,"a":1}"#).unwrap_err().len(), 1);
}

/// Elements of type `t` whose value is one byte: the number of the member.
fn complete(keys: &[&str], keep: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut bytes = b"before".to_vec();
    let mut members = Members::new();
    members.push(0, 3);
    let first = members.count();
    for (number, key) in keys.iter().enumerate() {
        let start = bytes.len();
        bytes.push(b't');
        bytes.extend_from_slice(key.as_bytes());
        bytes.push(0);
        members.push(start, bytes.len());
        bytes.push(u8::try_from(number).unwrap());
    }
    members.complete(first, &mut bytes, &mut |member| keep(member.key));
    assert_eq!(members.count(), first);
    bytes
}

#[test]
fn of_several_members_with_one_key_the_last_is_kept() {
    assert_eq!(complete(&["a", "b", "a", "c", "a"], |_| true), b"beforetb\0\x01tc\0\x03ta\0\x04");
    assert_eq!(complete(&["a", "a", ""], |_| true), b"beforeta\0\x01t\0\x02");
    assert_eq!(complete(&[], |_| true), b"before");
}

#[test]
fn many_members_are_treated_like_few() {
    let mut keys = vec!["a"; FEW];
    keys.extend(["b", "c", "b"]);
    assert_eq!(complete(&keys, |_| true), b"beforeta\0\x0ftc\0\x11tb\0\x12");
}

#[test]
fn a_removed_member_leaves_no_gap() {
    assert_eq!(complete(&["a", "b", "c"], |key| key != b"b"), b"beforeta\0\x00tc\0\x02");
    assert_eq!(complete(&["a", "b"], |_| false), b"before");
}

fn decimal(text: &str) -> Option<String> {
    match number(text) {
        Some(Number::Decimal(decimal)) => Some(decimal.to_string()),
        _ => None,
    }
}

#[test]
fn integers_take_the_smallest_form_that_holds_them() {
    assert_eq!(number("0"), Some(Number::Int32(0)));
    assert_eq!(number("-0"), Some(Number::Int32(0)));
    assert_eq!(number("2147483647"), Some(Number::Int32(i32::MAX)));
    assert_eq!(number("-2147483648"), Some(Number::Int32(i32::MIN)));
    assert_eq!(number("2147483648"), Some(Number::Int64(2_147_483_648)));
    assert_eq!(number("9223372036854775807"), Some(Number::Int64(i64::MAX)));
    assert_eq!(number("-9223372036854775808"), Some(Number::Int64(i64::MIN)));
    assert_eq!(decimal("9223372036854775808").as_deref(), Some("9223372036854775808"));
    assert_eq!(decimal("-9223372036854775809").as_deref(), Some("-9223372036854775809"));
}

#[test]
fn large_integers_are_exact_or_rejected() {
    let nines = "9".repeat(34);
    assert_eq!(decimal(&nines), Some(nines.clone()));
    assert_eq!(number(&format!("{nines}9")), None);
    assert_eq!(number(&format!("1{}1", "0".repeat(33))), None);
    assert_eq!(decimal(&format!("{nines}000")), Some(format!("9.{}E+36", "9".repeat(33))));
    assert!(decimal(&format!("1{}", "0".repeat(6144))).is_some());
    assert_eq!(number(&format!("1{}", "0".repeat(6145))), None);
}

#[test]
fn reals_become_the_nearest_double() {
    assert_eq!(number("0.1"), Some(Number::Double(0.1)));
    assert_eq!(number("1.0"), Some(Number::Double(1.0)));
    assert_eq!(number("1E2"), Some(Number::Double(100.0)));
    assert_eq!(
        number("0.1000000000000000055511151231257827021181583404541015625"),
        Some(Number::Double(0.1))
    );
    assert_eq!(number("5e-324"), Some(Number::Double(5e-324)));
    assert_eq!(number("1.7976931348623157e308"), Some(Number::Double(f64::MAX)));
    assert_eq!(number("0e999999999999999999999"), Some(Number::Double(0.0)));
    let Some(Number::Double(zero)) = number("-0.0") else { panic!("a double") };
    assert!(zero == 0.0 && zero.is_sign_negative());
}

#[test]
fn reals_outside_doubles_are_exact_decimals_or_rejected() {
    assert_eq!(decimal("1e400").as_deref(), Some("1E+400"));
    assert_eq!(decimal("-1.50e+400").as_deref(), Some("-1.50E+400"));
    assert_eq!(decimal("1e-400").as_deref(), Some("1E-400"));
    assert_eq!(decimal("1e-6176").as_deref(), Some("1E-6176"));
    assert_eq!(decimal("10e-6177").as_deref(), Some("1E-6176"));
    assert!(decimal("9.999999999999999999999999999999999e6144").is_some());
    for rejected in [
        "1e6145",
        "1e-6177",
        "11e-6177",
        "1e999999999999999999999999999999999999999999",
        "1e-99999999999",
        "1.2345678901234567890123456789012345e400",
        "-1e99999999999999999999",
    ] {
        assert_eq!(number(rejected), None, "{rejected}");
    }
}

#[test]
fn the_bytes_equal_those_of_the_library() {
    let mut writer = Writer::with_capacity(0);
    let document = writer.open();
    writer.string("a", "é\0");
    let element = writer.key("list");
    let list = writer.open();
    for index in [0, 9, 10, 1234] {
        let item = writer.index(index);
        writer.bytes.extend_from_slice(&1_i32.to_le_bytes());
        writer.set_kind(&item, ElementType::Int32);
    }
    writer.close(&list);
    writer.set_kind(&element, ElementType::EmbeddedDocument);
    writer.int64("n", -5);
    writer.close(&document);

    let mut list = RawDocumentBuf::new();
    for key in [cstr!("0"), cstr!("9"), cstr!("10"), cstr!("1234")] {
        list.append(key, 1_i32);
    }
    let expected = rawdoc! { "a": "é\0", "list": list, "n": -5_i64 };
    assert_eq!(writer.bytes, expected.into_bytes());
}
