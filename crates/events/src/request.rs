//! Parses an HTTP body into the draft of an event, or returns all its violations.

use crate::{
    cursor::unescape,
    envelope::{Envelope, non_null},
    field,
    id::EventId,
    json,
    millis::Millis,
    payload::Payload,
    source::Source,
    timestamp,
    validation::{BODY, BrokenRule, Path, Violation, Violations},
};

/// The rules of this installation.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The accepted sources. `None`: every valid source.
    pub accept_sources: Option<Vec<Source>>,
}

/// An event as the client describes it. The producer adds the absent fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// If absent, a header or the producer decides.
    pub id: Option<EventId>,
    /// If absent, the time of acceptance.
    pub timestamp: Option<Millis>,
    /// The origin of the event.
    pub source: Source,
    /// The content of the event.
    pub payload: Payload,
}

/// Why a body is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestError {
    /// The body is empty or white space (400).
    Empty,
    /// The body is not JSON (400).
    NotJson {
        /// The parser's message.
        message: String,
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
        /// How JSON writes what was probably meant.
        hint: Option<&'static str>,
    },
    /// The JSON has violations: all of them (422).
    Invalid(Vec<Violation>),
}

/// Parses an event. An accepted event can always be stored.
pub fn parse_request(body: &[u8], rules: &Rules) -> Result<Draft, RequestError> {
    if body.trim_ascii().is_empty() {
        return Err(RequestError::Empty);
    }
    let raw = json::check_bytes(body).map_err(|error| RequestError::NotJson {
        message: error.message,
        line: error.line,
        column: error.column,
        hint: error.hint,
    })?;
    let mut violations = Violations::default();
    let draft = match Envelope::split(raw.get()) {
        Some(envelope) => draft(&envelope, rules, &mut violations),
        None => {
            violations.push(&BODY, BrokenRule::new("model_attributes_type", "Input should be a JSON object"));
            None
        }
    };
    draft.filter(|_| violations.is_empty()).ok_or_else(|| RequestError::Invalid(violations.into_list()))
}

fn draft(envelope: &Envelope<'_>, rules: &Rules, violations: &mut Violations) -> Option<Draft> {
    let id = non_null(envelope.id).and_then(|raw| violations.take(&at("id"), field::id(raw)));
    let timestamp = non_null(envelope.timestamp)
        .and_then(|raw| violations.take(&at("timestamp"), field::timestamp(raw, timestamp::of_number)));
    let source = envelope.source.ok_or_else(BrokenRule::missing).and_then(|raw| source(raw, rules));
    let source = violations.take(&at("source"), source);
    let payload = violations
        .take(&at("payload"), envelope.payload.ok_or_else(BrokenRule::missing))
        .and_then(|text| Payload::validate(text, &at("payload"), violations));
    reject_other_fields(envelope, violations);
    Some(Draft { id, timestamp, source: source?, payload: payload? })
}

fn source(raw: &str, rules: &Rules) -> Result<Source, BrokenRule> {
    let source = field::source(raw)?;
    match &rules.accept_sources {
        Some(accepted) if !accepted.contains(&source) => {
            let accepted: Vec<&str> = accepted.iter().map(Source::as_str).collect();
            Err(BrokenRule::new("literal_error", format!("Source should be one of: {}", accepted.join(", "))))
        }
        _ => Ok(source),
    }
}

/// Rejects unknown fields and the fields that the producer sets, because dropping them silently
/// would lose data.
fn reject_other_fields(envelope: &Envelope<'_>, violations: &mut Violations) {
    let own = [("ingested_at", envelope.ingested_at), ("api_version", envelope.api_version)];
    let own = own.into_iter().filter(|(_, raw)| raw.is_some()).map(|(name, _)| name.into());
    let unknown = envelope.extra.iter().map(|(key, _)| unescape(key).unwrap_or((*key).into()));
    for name in own.chain(unknown) {
        violations.push(&at(&name), BrokenRule::new("extra_forbidden", "Extra inputs are not permitted"));
    }
    for name in &envelope.repeated {
        violations.push(&at(name), BrokenRule::new("duplicate_field", "Field should be given only once"));
    }
}

fn at(name: &str) -> Path<'_> {
    Path::Name(&BODY, name)
}

#[cfg(test)]
mod tests {
    use super::{Draft, RequestError, Rules, parse_request};
    use crate::{Source, validation::Loc};

    fn parse(body: &str) -> Result<Draft, RequestError> {
        parse_request(body.as_bytes(), &Rules::default())
    }

    /// Field and kind of each violation.
    fn violations(outcome: Result<Draft, RequestError>) -> Vec<(String, &'static str)> {
        let Err(RequestError::Invalid(violations)) = outcome else {
            panic!("faults expected, not {outcome:?}")
        };
        let name = |loc: &[Loc]| match loc {
            [Loc::Name(body)] => body.clone(),
            [_, Loc::Name(field), ..] => field.clone(),
            _ => panic!("{loc:?}"),
        };
        violations.iter().map(|violation| (name(&violation.loc), violation.kind)).collect()
    }

    fn violation(body: &str) -> (String, &'static str) {
        let mut violations = violations(parse(body));
        assert_eq!(violations.len(), 1, "{violations:?}");
        violations.remove(0)
    }

    #[test]
    fn the_example_of_the_original_system_is_accepted() {
        let draft = parse(r#"{"source":"manual","payload":{"message":"Hello","value":42}}"#).unwrap();
        assert_eq!((draft.id, draft.timestamp), (None, None));
        assert_eq!(draft.source.as_str(), "manual");
        assert_eq!(draft.payload.as_str(), r#"{"message":"Hello","value":42}"#);
    }

    #[test]
    fn id_and_timestamp_are_optional_and_null_is_absent() {
        let draft = parse(r#"{"id":7,"timestamp":1.73e9,"source":"s","payload":{}}"#).unwrap();
        assert_eq!(draft.id.unwrap().as_str(), "7");
        assert_eq!(draft.timestamp.unwrap().get(), 1_730_000_000_000);
        let draft = parse(r#"{"id":null,"timestamp":null,"source":"s","payload":{}}"#).unwrap();
        assert_eq!((draft.id, draft.timestamp), (None, None));
    }

    #[test]
    fn a_body_of_white_space_is_empty() {
        assert_eq!(parse(""), Err(RequestError::Empty));
        assert_eq!(parse(" \r\n\t"), Err(RequestError::Empty));
    }

    #[test]
    fn a_syntax_error_has_its_line_and_column() {
        for (body, line, column) in [
            (&b"{\"source\":\n}"[..], 2, 1),
            (b"{\"a\":\"\xc3\x28\"}", 1, 7),
            (b"\xef\xbb\xbf{}", 1, 1),
            (b"{\"source\":\"s\",\"payload\":{\"a\":01}}", 1, 31),
        ] {
            match parse_request(body, &Rules::default()) {
                Err(RequestError::NotJson { line: l, column: c, .. }) => assert_eq!((l, c), (line, column)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_body_that_is_not_an_object_is_invalid() {
        for body in ["[]", "1", "null", "\"\\ud800\""] {
            assert_eq!(violation(body), ("body".to_owned(), "model_attributes_type"), "{body}");
        }
    }

    #[test]
    fn all_violations_are_reported_at_once() {
        let body = r#"{"id":"","timestamp":-1,"payload":{"a":1e9999,"\u0000":1},"colour":1,"api_version":"x","id":[]}"#;
        let expected = [
            ("id", "string_type"),
            ("timestamp", "greater_than_equal"),
            ("source", "missing"),
            ("payload", "number_out_of_range"),
            ("payload", "invalid_key"),
            ("api_version", "extra_forbidden"),
            ("colour", "extra_forbidden"),
            ("id", "duplicate_field"),
        ];
        assert_eq!(violations(parse(body)), expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn required_fields_are_named() {
        let expected = [("source", "missing"), ("payload", "missing")];
        assert_eq!(violations(parse("{}")), expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(violation(r#"{"source":null,"payload":{}}"#), ("source".to_owned(), "string_type"));
        assert_eq!(violation(r#"{"source":"s","payload":null}"#), ("payload".to_owned(), "dict_type"));
    }

    #[test]
    fn a_repeated_field_is_rejected_in_any_spelling() {
        let body = r#"{"source":"s","sourc\u0065":"s","payload":{},"source":"s"}"#;
        assert_eq!(violation(body), ("source".to_owned(), "duplicate_field"));
    }

    #[test]
    fn unpaired_surrogates_are_violations_and_not_syntax_errors() {
        for (body, field) in [
            (r#"{"id":"\ud800","source":"s","payload":{}}"#, "id"),
            (r#"{"source":"\ud800","payload":{}}"#, "source"),
            (r#"{"source":"s","timestamp":"\udfff","payload":{}}"#, "timestamp"),
            (r#"{"source":"s","payload":{"a":"\ud800"}}"#, "payload"),
            (r#"{"source":"s","payload":{"\ud800":1}}"#, "payload"),
        ] {
            assert_eq!(violation(body), (field.to_owned(), "string_unicode"), "{body}");
        }
        let expected = (r#""\ud800""#.to_owned(), "extra_forbidden");
        assert_eq!(violation(r#"{"source":"s","payload":{},"\ud800":1}"#), expected);
    }

    #[test]
    fn only_listed_sources_are_accepted() {
        let rules =
            Rules { accept_sources: Some(vec![Source::new("a").unwrap(), Source::new("b").unwrap()]) };
        assert!(parse_request(br#"{"source":"b","payload":{}}"#, &rules).is_ok());
        let rejected = parse_request(br#"{"source":"c","payload":{}}"#, &rules);
        assert_eq!(violations(rejected), [("source".to_owned(), "literal_error")]);
    }
}
