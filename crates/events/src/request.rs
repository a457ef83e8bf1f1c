//! Parses an HTTP body into an event, or returns all its violations. Writes the event as the value
//! of a record.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{
    document::DocumentBuilder,
    fields::{self, DELETE, Envelope, EventId, Millis, Source, non_null},
    json::{self, Cursor, unescape},
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
pub struct NewEvent {
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

/// Checks that a body is one JSON value, and returns its text without white space around it.
///
/// # Errors
/// The body is empty or not JSON.
pub fn parse_json(body: &[u8]) -> Result<&str, RequestError> {
    if body.trim_ascii().is_empty() {
        return Err(RequestError::Empty);
    }
    let raw = json::check_bytes(body).map_err(|error| RequestError::NotJson {
        message: error.message,
        line: error.line,
        column: error.column,
        hint: error.hint,
    })?;
    Ok(raw.get())
}

/// Parses an event. An accepted event can always be stored.
pub fn parse_request(body: &[u8], rules: &Rules) -> Result<NewEvent, RequestError> {
    let text = parse_json(body)?;
    let mut violations = Violations::default();
    let event = match Envelope::split(text) {
        Some(envelope) => event(&envelope, rules, &mut violations),
        None => {
            violations.push(&BODY, BrokenRule::new("model_attributes_type", "Input should be a JSON object"));
            None
        }
    };
    event.filter(|_| violations.is_empty()).ok_or_else(|| RequestError::Invalid(violations.into_list()))
}

fn event(envelope: &Envelope<'_>, rules: &Rules, violations: &mut Violations) -> Option<NewEvent> {
    let id = non_null(envelope.id).and_then(|raw| violations.take(&at("id"), fields::id(raw)));
    let timestamp = non_null(envelope.timestamp).and_then(|raw| {
        violations.take(&at("timestamp"), fields::timestamp(raw, fields::timestamp_of_number))
    });
    let source = envelope.source.ok_or_else(BrokenRule::missing).and_then(|raw| source(raw, rules));
    let source = violations.take(&at("source"), source);
    let payload = violations
        .take(&at("payload"), envelope.payload.ok_or_else(BrokenRule::missing))
        .and_then(|text| Payload::validate(text, &at("payload"), violations));
    reject_other_fields(envelope, violations);
    Some(NewEvent { id, timestamp, source: source?, payload: payload? })
}

fn source(raw: &str, rules: &Rules) -> Result<Source, BrokenRule> {
    let source = fields::source(raw)?;
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

/// The content of an event: a JSON object that can be stored, byte for byte as received. The event
/// of a delete has none. A clone is cheap.
#[derive(Clone)]
pub struct Payload(Option<Arc<str>>);

impl Payload {
    /// Validates `text` as a payload and returns all violations, located at `body.payload`. White
    /// space around the object is removed.
    pub fn parse(text: &str) -> Result<Self, Vec<Violation>> {
        let path = Path::Name(&BODY, "payload");
        let mut violations = Violations::default();
        let raw = json::check(text).map_err(|error| BrokenRule::new("json_invalid", error.to_string()));
        let payload =
            violations.take(&path, raw).and_then(|raw| Self::validate(raw.get(), &path, &mut violations));
        payload.ok_or_else(|| violations.into_list())
    }

    /// As [`Payload::parse`], for a text that is known to be one JSON value without white space
    /// around it: it is not checked again.
    pub fn of_json(text: &str) -> Result<Self, Vec<Violation>> {
        let path = Path::Name(&BODY, "payload");
        let mut violations = Violations::default();
        let payload = Self::validate(text, &path, &mut violations);
        payload.ok_or_else(|| violations.into_list())
    }

    /// Validates the JSON value `text` as a payload.
    fn validate(text: &str, path: &Path<'_>, violations: &mut Violations) -> Option<Self> {
        let before = violations.count();
        DocumentBuilder::new(text, path, violations);
        (violations.count() == before).then(|| Self(Some(Arc::from(text))))
    }

    /// The absent payload of an event that deletes the document of its id.
    pub const fn of_delete() -> Self {
        Self(None)
    }

    /// Whether the event deletes.
    pub const fn is_delete(&self) -> bool {
        self.0.is_none()
    }

    /// The text of the payload, which is `null` in a delete.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("null")
    }
}

impl fmt::Debug for Payload {
    /// Writes only the size, so that no payload gets into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.as_str().len())
    }
}

impl PartialEq for Payload {
    /// Compares the texts.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Payload {}

/// The id of an aircraft: its `mode_s`, else its `registration`; `None` if neither is a valid id.
pub fn aircraft_id(payload: &Payload) -> Option<EventId> {
    let (mut mode_s, mut registration) = (None, None);
    let mut cursor = Cursor::new(payload.as_str());
    cursor.enter();
    while let Some(key) = cursor.next_key() {
        let value = cursor.value();
        match fields::text(key).as_deref() {
            Ok("mode_s") => mode_s = Some(value),
            Ok("registration") => registration = Some(value),
            _ => {}
        }
    }
    let id = |raw: &str| EventId::validate(fields::text(raw).ok()?.into_owned()).ok();
    mode_s.and_then(id).or_else(|| registration.and_then(id))
}

/// Approximate bytes of a record value besides the payload.
const ENVELOPE_BYTES: usize = 256;

/// An accepted event. It can always be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The record's key.
    pub id: EventId,
    /// When the event happened.
    pub timestamp: Millis,
    /// The origin of the event.
    pub source: Source,
    /// The content of the event.
    pub payload: Payload,
    /// When the producer accepted the event. It is also the record's timestamp.
    pub ingested_at: Millis,
    /// API_VERSION of the producer.
    pub api_version: String,
}

impl Event {
    /// Builds the event of a request. `id` replaces the one of the request. If that has no
    /// timestamp, it is `ingested_at`.
    pub fn new(event: NewEvent, id: EventId, ingested_at: Millis, api_version: &str) -> Self {
        let NewEvent { id: _, timestamp, source, payload } = event;
        let timestamp = timestamp.unwrap_or(ingested_at);
        Self { id, timestamp, source, payload, ingested_at, api_version: api_version.to_owned() }
    }

    /// The value of the record: compact JSON with the fields in the order of the contract, and the
    /// payload byte for byte. A delete has `op` in its place, so that a consumer without deletes
    /// makes it a dead letter.
    pub fn to_json(&self) -> Vec<u8> {
        let payload = self.payload.as_str();
        let mut value = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
        put(&mut value, "{\"id\":", self.id.as_str());
        put(&mut value, ",\"timestamp\":", &self.timestamp.get());
        put(&mut value, ",\"source\":", self.source.as_str());
        if self.payload.is_delete() {
            put(&mut value, ",\"op\":", DELETE);
        } else {
            value.extend_from_slice(b",\"payload\":");
            // The payload is valid JSON and is not parsed again.
            value.extend_from_slice(payload.as_bytes());
        }
        put(&mut value, ",\"ingested_at\":", &self.ingested_at.get());
        put(&mut value, ",\"api_version\":", self.api_version.as_str());
        value.push(b'}');
        value
    }
}

fn put(json: &mut Vec<u8>, before: &str, value: &(impl Serialize + ?Sized)) {
    json.extend_from_slice(before.as_bytes());
    // Serializing text and integers into memory cannot fail.
    _ = serde_json::to_writer(json, value);
}

#[cfg(test)]
mod tests {
    use super::{Event, NewEvent, Payload, RequestError, Rules, aircraft_id, parse_request};
    use crate::{
        fields::{EventId, Millis, Source},
        validation::Loc,
    };

    fn parse(body: &str) -> Result<NewEvent, RequestError> {
        parse_request(body.as_bytes(), &Rules::default())
    }

    /// Field and kind of each violation.
    fn violations(outcome: Result<NewEvent, RequestError>) -> Vec<(String, &'static str)> {
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

    fn aircraft(payload: &str) -> Option<String> {
        aircraft_id(&Payload::parse(payload).unwrap()).map(|id| id.to_string())
    }

    fn payload_violation(payload: &str) -> (String, &'static str) {
        let violations = Payload::parse(payload).unwrap_err();
        assert_eq!(violations.len(), 1, "{violations:?}");
        (violations[0].to_string(), violations[0].kind)
    }

    #[test]
    fn the_text_is_kept_byte_for_byte() {
        let text = "{ \"b\" : 1.50,\n\t\"a\":\"\\u0041\", \"b\":1e0 }";
        let payload = Payload::parse(&format!(" \n{text}\r\n")).unwrap();
        assert_eq!(payload.as_str(), text);
        assert_eq!(payload, payload.clone());
        assert_eq!(format!("{payload:?}"), format!("Payload({} bytes)", text.len()));
    }

    #[test]
    fn only_a_json_object_is_a_payload() {
        for text in ["[]", "1", "null", "\"{}\""] {
            assert_eq!(payload_violation(text).1, "dict_type", "{text}");
        }
        let (violation, kind) = payload_violation("{\n\"a\":}");
        assert_eq!(kind, "json_invalid");
        assert_eq!(violation, "body.payload: expected value at line 2 column 5");
    }

    #[test]
    fn a_value_that_cannot_be_stored_is_a_violation_with_its_path() {
        assert_eq!(payload_violation(r#"{"a":[{"b":1e9999}]}"#).1, "number_out_of_range");
        assert!(payload_violation(r#"{"a":[{"b":1e9999}]}"#).0.starts_with("body.payload.a[0].b: "));
        assert_eq!(payload_violation(r#"{"mode_s":[],"registration":[]}"#).1, "parallel_arrays");
        assert!(Payload::parse(r#"{"mode_s":[],"registration":"x"}"#).is_ok());
        assert!(Payload::parse(r#"{"mode_s":[],"registration":[],"mode_s":1}"#).is_ok());
    }

    #[test]
    fn a_payload_whose_document_is_too_large_is_rejected() {
        let payload = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes));
        assert!(Payload::parse(&payload(16 * 1024 * 1024 - 5000)).is_ok());
        assert_eq!(payload_violation(&payload(16 * 1024 * 1024 - 4096)).1, "document_too_large");
        // The text is smaller than 16 MiB, its document is larger.
        assert_eq!(
            payload_violation(&format!(r#"{{"a":[1{}]}}"#, ",1".repeat(2_000_000))).1,
            "document_too_large"
        );
    }

    #[test]
    fn the_id_of_an_aircraft_is_its_mode_s_else_its_registration() {
        assert_eq!(aircraft(r#"{"registration":"D-OBII","mode_s":"3F28BC"}"#).as_deref(), Some("3F28BC"));
        assert_eq!(aircraft(r#"{"registration":"D-OBII"}"#).as_deref(), Some("D-OBII"));
        assert_eq!(aircraft(r#"{"registration":"D-OBII","mode_s":""}"#).as_deref(), Some("D-OBII"));
        assert_eq!(aircraft(r#"{"registration":"D-OBII","mode_s":null}"#).as_deref(), Some("D-OBII"));
        assert_eq!(aircraft(r#"{"mode_s":"old","mode\u005fs":"new"}"#).as_deref(), Some("new"));
        assert_eq!(aircraft(r#"{"inner":{"mode_s":"x"},"mode_s":5}"#), None);
    }

    #[test]
    fn the_value_of_a_delete_has_op_and_no_payload() {
        let draft = NewEvent {
            id: None,
            timestamp: Millis::new(4),
            source: Source::new("orders").unwrap(),
            payload: Payload::of_delete(),
        };
        assert!(draft.payload.is_delete() && !Payload::parse("{}").unwrap().is_delete());
        let event = Event::new(draft, EventId::new("a").unwrap(), Millis::new(5).unwrap(), "1.0.0");
        assert_eq!(
            String::from_utf8(event.to_json()).unwrap(),
            "{\"id\":\"a\",\"timestamp\":4,\"source\":\"orders\",\"op\":\"delete\",\
             \"ingested_at\":5,\"api_version\":\"1.0.0\"}"
        );
    }

    #[test]
    fn the_value_is_compact_ordered_and_keeps_the_payload() {
        let draft = NewEvent {
            id: None,
            timestamp: None,
            source: Source::new("manual").unwrap(),
            payload: Payload::parse("{ \"b\": 1.50,\n \"a\": \"\\u0041\" }").unwrap(),
        };
        let event = Event::new(draft, EventId::new("a\"é").unwrap(), Millis::new(5).unwrap(), "1.0.0");
        assert_eq!(event.timestamp, event.ingested_at);
        assert_eq!(
            String::from_utf8(event.to_json()).unwrap(),
            "{\"id\":\"a\\\"é\",\"timestamp\":5,\"source\":\"manual\",\
             \"payload\":{ \"b\": 1.50,\n \"a\": \"\\u0041\" },\"ingested_at\":5,\"api_version\":\"1.0.0\"}"
        );
    }
}
