//! What HTTP brings becomes a draft of an event, or is refused with everything that is wrong with it.

use crate::{
    cursor::unescape,
    envelope::{Envelope, given},
    fault::{BODY, Breach, Fault, Faults, Path},
    field,
    id::EventId,
    json,
    millis::Millis,
    payload::Payload,
    source::Source,
    timestamp,
};

/// What this installation accepts.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The sources that are accepted; None: every valid one.
    pub accept_sources: Option<Vec<Source>>,
}

/// An event as a client describes it. The producer adds what is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Absent: a header or the producer decides.
    pub id: Option<EventId>,
    /// Absent: now.
    pub timestamp: Option<Millis>,
    /// Where it comes from.
    pub source: Source,
    /// What happened.
    pub payload: Payload,
}

/// Why a body is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing but white space (400).
    Empty,
    /// Not JSON, and where (400).
    NotJson {
        /// What the parser says.
        message: String,
        /// The line, from 1.
        line: usize,
        /// The column in bytes, from 1.
        column: usize,
        /// What was probably meant, and how JSON says it.
        hint: Option<&'static str>,
    },
    /// JSON that breaks a rule; all faults (422).
    Invalid(Vec<Fault>),
}

/// The event that `body` describes. Whatever this accepts can be stored.
pub fn parse_request(body: &[u8], rules: &Rules) -> Result<Draft, Refusal> {
    if body.trim_ascii().is_empty() {
        return Err(Refusal::Empty);
    }
    let raw = json::check_bytes(body).map_err(|error| Refusal::NotJson {
        message: error.message,
        line: error.line,
        column: error.column,
        hint: error.hint,
    })?;
    let mut faults = Faults::default();
    let draft = match Envelope::split(raw.get()) {
        Some(envelope) => draft(&envelope, rules, &mut faults),
        None => {
            faults.push(&BODY, Breach::new("model_attributes_type", "Input should be a JSON object"));
            None
        }
    };
    draft.filter(|_| faults.is_empty()).ok_or_else(|| Refusal::Invalid(faults.into_list()))
}

fn draft(envelope: &Envelope<'_>, rules: &Rules, faults: &mut Faults) -> Option<Draft> {
    let id = given(envelope.id).and_then(|raw| faults.take(&at("id"), field::id(raw)));
    let timestamp = given(envelope.timestamp)
        .and_then(|raw| faults.take(&at("timestamp"), field::timestamp(raw, timestamp::of_number)));
    let source = envelope.source.ok_or_else(Breach::missing).and_then(|raw| source(raw, rules));
    let source = faults.take(&at("source"), source);
    let payload = faults
        .take(&at("payload"), envelope.payload.ok_or_else(Breach::missing))
        .and_then(|text| Payload::judge(text, &at("payload"), faults));
    refuse_other_fields(envelope, faults);
    Some(Draft { id, timestamp, source: source?, payload: payload? })
}

fn source(raw: &str, rules: &Rules) -> Result<Source, Breach> {
    let source = field::source(raw)?;
    match &rules.accept_sources {
        Some(accepted) if !accepted.contains(&source) => {
            let accepted: Vec<&str> = accepted.iter().map(Source::as_str).collect();
            Err(Breach::new("literal_error", format!("Source should be one of: {}", accepted.join(", "))))
        }
        _ => Ok(source),
    }
}

/// What the producer itself decides is as unwelcome as what nobody knows: dropping it silently would be a loss.
fn refuse_other_fields(envelope: &Envelope<'_>, faults: &mut Faults) {
    let own = [("ingested_at", envelope.ingested_at), ("api_version", envelope.api_version)];
    let own = own.into_iter().filter(|(_, raw)| raw.is_some()).map(|(name, _)| name.into());
    let unknown = envelope.extra.iter().map(|(key, _)| unescape(key).unwrap_or((*key).into()));
    for name in own.chain(unknown) {
        faults.push(&at(&name), Breach::new("extra_forbidden", "Extra inputs are not permitted"));
    }
    for name in &envelope.repeated {
        faults.push(&at(name), Breach::new("duplicate_field", "Field should be given only once"));
    }
}

fn at(name: &str) -> Path<'_> {
    Path::Name(&BODY, name)
}

#[cfg(test)]
mod tests {
    use super::{Draft, Refusal, Rules, parse_request};
    use crate::{Source, fault::Loc};

    fn parse(body: &str) -> Result<Draft, Refusal> {
        parse_request(body.as_bytes(), &Rules::default())
    }

    /// Field and kind of each fault.
    fn faults(outcome: Result<Draft, Refusal>) -> Vec<(String, &'static str)> {
        let Err(Refusal::Invalid(faults)) = outcome else { panic!("faults expected, not {outcome:?}") };
        let name = |loc: &[Loc]| match loc {
            [Loc::Name(body)] => body.clone(),
            [_, Loc::Name(field), ..] => field.clone(),
            _ => panic!("{loc:?}"),
        };
        faults.iter().map(|fault| (name(&fault.loc), fault.kind)).collect()
    }

    fn fault(body: &str) -> (String, &'static str) {
        let mut faults = faults(parse(body));
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.remove(0)
    }

    #[test]
    fn the_originals_example_is_accepted() {
        let draft = parse(r#"{"source":"manual","payload":{"message":"Hello","value":42}}"#).unwrap();
        assert_eq!((draft.id, draft.timestamp), (None, None));
        assert_eq!(draft.source.as_str(), "manual");
        assert_eq!(draft.payload.as_str(), r#"{"message":"Hello","value":42}"#);
    }

    #[test]
    fn id_and_timestamp_are_taken_when_given_and_null_is_absent() {
        let draft = parse(r#"{"id":7,"timestamp":1.73e9,"source":"s","payload":{}}"#).unwrap();
        assert_eq!(draft.id.unwrap().as_str(), "7");
        assert_eq!(draft.timestamp.unwrap().get(), 1_730_000_000_000);
        let draft = parse(r#"{"id":null,"timestamp":null,"source":"s","payload":{}}"#).unwrap();
        assert_eq!((draft.id, draft.timestamp), (None, None));
    }

    #[test]
    fn nothing_but_white_space_is_empty() {
        assert_eq!(parse(""), Err(Refusal::Empty));
        assert_eq!(parse(" \r\n\t"), Err(Refusal::Empty));
    }

    #[test]
    fn what_is_not_json_has_its_place() {
        for (body, line, column) in [
            (&b"{\"source\":\n}"[..], 2, 1),
            (b"{\"a\":\"\xc3\x28\"}", 1, 7),
            (b"\xef\xbb\xbf{}", 1, 1),
            (b"{\"source\":\"s\",\"payload\":{\"a\":01}}", 1, 31),
        ] {
            match parse_request(body, &Rules::default()) {
                Err(Refusal::NotJson { line: l, column: c, .. }) => assert_eq!((l, c), (line, column)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_invalid() {
        for body in ["[]", "1", "null", "\"\\ud800\""] {
            assert_eq!(fault(body), ("body".to_owned(), "model_attributes_type"), "{body}");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
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
        assert_eq!(faults(parse(body)), expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn required_fields_are_named() {
        let expected = [("source", "missing"), ("payload", "missing")];
        assert_eq!(faults(parse("{}")), expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(fault(r#"{"source":null,"payload":{}}"#), ("source".to_owned(), "string_type"));
        assert_eq!(fault(r#"{"source":"s","payload":null}"#), ("payload".to_owned(), "dict_type"));
    }

    #[test]
    fn a_field_given_twice_is_refused_however_it_is_written() {
        let body = r#"{"source":"s","sourc\u0065":"s","payload":{},"source":"s"}"#;
        assert_eq!(fault(body), ("source".to_owned(), "duplicate_field"));
    }

    #[test]
    fn unpaired_surrogates_are_faults_and_not_syntax_errors() {
        for (body, field) in [
            (r#"{"id":"\ud800","source":"s","payload":{}}"#, "id"),
            (r#"{"source":"\ud800","payload":{}}"#, "source"),
            (r#"{"source":"s","timestamp":"\udfff","payload":{}}"#, "timestamp"),
            (r#"{"source":"s","payload":{"a":"\ud800"}}"#, "payload"),
            (r#"{"source":"s","payload":{"\ud800":1}}"#, "payload"),
        ] {
            assert_eq!(fault(body), (field.to_owned(), "string_unicode"), "{body}");
        }
        let expected = (r#""\ud800""#.to_owned(), "extra_forbidden");
        assert_eq!(fault(r#"{"source":"s","payload":{},"\ud800":1}"#), expected);
    }

    #[test]
    fn only_listed_sources_are_accepted() {
        let rules =
            Rules { accept_sources: Some(vec![Source::new("a").unwrap(), Source::new("b").unwrap()]) };
        assert!(parse_request(br#"{"source":"b","payload":{}}"#, &rules).is_ok());
        let refused = parse_request(br#"{"source":"c","payload":{}}"#, &rules);
        assert_eq!(faults(refused), [("source".to_owned(), "literal_error")]);
    }
}
