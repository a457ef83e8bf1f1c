//! The splitter finds the same events as serde_json, for every chunking of every body.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{Format, Piece, Splitter};

const LIMIT: usize = 60;

/// The pieces of `body`, chunked at each of `cuts`, and the error that ended the split.
fn split(format: Format, body: &[u8], cuts: &[usize]) -> (Vec<Piece>, Option<String>) {
    let mut splitter = Splitter::new(format, LIMIT);
    let (mut pieces, mut rest) = (Vec::new(), Bytes::copy_from_slice(body));
    let mut feed = |chunk: Bytes| {
        splitter.feed(chunk);
        loop {
            match splitter.next() {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => {
                    assert!(splitter.carried.len() <= LIMIT, "an event above the limit is not kept");
                    return None;
                }
                Err(error) => return Some(error),
            }
        }
    };
    for cut in cuts {
        let chunk = rest.split_to((*cut).min(rest.len()));
        if let Some(error) = feed(chunk) {
            return (pieces, Some(error));
        }
    }
    if let Some(error) = feed(rest) {
        return (pieces, Some(error));
    }
    let last = splitter.last();
    pieces.extend(last.clone().ok().flatten());
    (pieces, last.err())
}

fn whole(format: Format, body: &str) -> (Vec<Piece>, Option<String>) {
    split(format, body.as_bytes(), &[])
}

fn event(text: &str) -> Piece {
    if text.len() > LIMIT { Piece::TooLong } else { Piece::Event(Bytes::copy_from_slice(text.as_bytes())) }
}

fn is_json(piece: &Piece) -> bool {
    matches!(piece, Piece::Event(text) if serde_json::from_slice::<&RawValue>(text).is_ok())
}

/// JSON values that are hard to split: brackets, commas and quotes in strings, escapes, nesting.
fn value() -> impl Strategy<Value = String> {
    let text = "\"([a-z,{}\\[\\] é]|\\\\\"|\\\\\\\\|\\\\u00e9|\\\\n){0,12}\"";
    let leaf = prop_oneof![Just("null".to_owned()), "-?[1-9][0-9]{0,3}(\\.[0-9])?", text];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let member =
            ("\"[a-z\\]},]{0,3}\"", inner.clone()).prop_map(|(key, value)| format!("{key} :{value}"));
        prop_oneof![
            vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(",\n"))),
        ]
    })
}

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just(" "), Just("\r\n\t")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_array_in_any_chunks_has_the_elements_that_serde_json_finds(
        elements in vec((space(), value()), 0..8), around in space(), cuts in vec(0_usize..9, 0..80)
    ) {
        let texts: Vec<String> = elements.iter().map(|(before, text)| format!("{before}{text}")).collect();
        let body = format!("{around}[{}{around}]{around}", texts.join(","));
        let expected: Vec<&RawValue> = serde_json::from_str(&body).unwrap();
        let (pieces, error) = split(Format::Array, body.as_bytes(), &cuts);
        prop_assert_eq!(error, None);
        prop_assert_eq!(pieces.len(), expected.len());
        for (piece, expected) in pieces.iter().zip(&expected) {
            prop_assert_eq!(piece, &event(expected.get()));
        }
    }

    #[test]
    fn ndjson_in_any_chunks_has_its_lines(
        lines in vec("[a-z{}\\[\\]\"\\\\, é\r]{0,40}", 0..8), ended in any::<bool>(), cuts in vec(0_usize..9, 0..80)
    ) {
        let body = lines.join("\n") + if ended { "\n" } else { "" };
        let expected: Vec<Piece> =
            body.split('\n').map(str::trim_ascii_end).filter(|line| !line.is_empty()).map(event).collect();
        prop_assert_eq!(split(Format::Lines, body.as_bytes(), &cuts), (expected, None));
    }

    #[test]
    fn a_hostile_body_is_split_alike_in_any_chunks(
        body in vec(prop_oneof![
            Just(b'['), Just(b']'), Just(b'{'), Just(b'}'), Just(b','), Just(b'"'), Just(b'\\'), Just(b'1'),
            Just(b' '), Just(b'\n'), any::<u8>()
        ], 0..200),
        cuts in vec(0_usize..9, 0..80)
    ) {
        for format in [Format::Array, Format::Lines] {
            prop_assert_eq!(split(format, &body, &cuts), split(format, &body, &[]));
        }
    }

    #[test]
    fn a_body_is_valid_exactly_if_serde_json_reads_it_as_an_array(
        elements in vec(value(), 0..5), at in any::<prop::sample::Index>(), byte in any::<u8>(), cuts in vec(0_usize..9, 0..60)
    ) {
        let mut body = format!("[{}]", elements.join(",")).into_bytes();
        let at = at.index(body.len());
        body[at] = byte;
        let (pieces, error) = split(Format::Array, &body, &cuts);
        prop_assume!(!pieces.contains(&Piece::TooLong));
        let valid = error.is_none() && pieces.iter().all(is_json);
        prop_assert_eq!(valid, serde_json::from_slice::<Vec<&RawValue>>(&body).is_ok());
    }
}

#[test]
fn a_bad_element_leaves_the_others_intact() {
    let (pieces, error) = whole(Format::Array, r#"[{"a":1}, oops, {"b":2}},,"c"x,{"d":[]}]"#);
    let expected = [r#"{"a":1}"#, "oops", r#"{"b":2}}"#, "", r#""c"x"#, r#"{"d":[]}"#];
    assert_eq!((pieces, error), (expected.map(event).to_vec(), None));
}

#[test]
fn an_element_above_the_limit_is_skipped() {
    for (format, body) in [
        (Format::Array, format!("[1,[\"{}\"],2]", "],".repeat(LIMIT))),
        (Format::Lines, format!("1\n{}\n2\n", "x".repeat(LIMIT + 1))),
    ] {
        let expected = vec![event("1"), Piece::TooLong, event("2")];
        assert_eq!(whole(format, &body), (expected.clone(), None));
        assert_eq!(split(format, body.as_bytes(), &[1; 300]), (expected, None));
    }
    let exactly = "x".repeat(LIMIT);
    assert_eq!(whole(Format::Lines, &format!("{exactly}\n")), (vec![event(&exactly)], None));
}

#[test]
fn an_error_between_elements_is_reported() {
    for (body, part) in [
        ("", "there is no array"),
        ("  ", "there is no array"),
        ("{\"a\":1}", "not a JSON array; for lines send"),
        ("\u{feff}[]", "not a JSON array"),
        ("NaN", "not a JSON array"),
        ("[", "no end"),
        ("[1,", "no end, after 3 bytes"),
        ("[\"]", "no end"),
        ("[] []", "something follows the array, after 3 bytes"),
    ] {
        let error = whole(Format::Array, body).1.unwrap();
        assert!(error.contains(part), "{body}: {error}");
    }
    assert_eq!(whole(Format::Array, " [ ] "), (vec![], None));
    assert_eq!(whole(Format::Array, "[1,]"), (vec![event("1"), event("")], None));
    assert_eq!(whole(Format::Lines, "\n \r\n"), (vec![], None));
}

#[test]
fn trailing_white_space_does_not_count_to_the_limit() {
    let exactly = format!("\"{}\"", "x".repeat(LIMIT - 2));
    let too_long = format!("\"{}\"", " ".repeat(LIMIT - 1));
    let blanks = " \r\t".repeat(LIMIT);
    let expected = vec![event(&exactly), event("1"), Piece::TooLong, event(&exactly)];
    for (format, body) in [
        (Format::Lines, format!("{exactly}\r\n1{blanks}\n{too_long}\n{blanks}\n{exactly}{blanks}")),
        (Format::Array, format!("[{exactly}{blanks}\n, 1{blanks},{too_long}{blanks},{blanks}{exactly}\n]")),
    ] {
        assert_eq!(whole(format, &body), (expected.clone(), None));
        for size in [1, 7, LIMIT - 1, LIMIT, LIMIT + 1] {
            assert_eq!(split(format, body.as_bytes(), &vec![size; 1000]), (expected.clone(), None), "{size}");
        }
    }
}
