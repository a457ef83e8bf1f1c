//! A validated payload, kept as its original text.

use std::{fmt, sync::Arc};

use crate::{
    cursor::Cursor,
    document, field,
    id::EventId,
    json,
    validation::{BODY, BrokenRule, Path, Violation, Violations},
};

/// A JSON object that can be stored, byte for byte as received. A clone is cheap.
#[derive(Clone)]
pub struct Payload(Arc<str>);

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

    /// Validates the JSON value `text` as a payload.
    pub(crate) fn validate(text: &str, path: &Path<'_>, violations: &mut Violations) -> Option<Self> {
        let before = violations.count();
        document::DocumentBuilder::new(text, path, violations);
        (violations.count() == before).then(|| Self(Arc::from(text)))
    }

    /// The text of the payload.
    pub fn as_str(&self) -> &str {
        &self.0
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
        match field::text(key).as_deref() {
            Ok("mode_s") => mode_s = Some(value),
            Ok("registration") => registration = Some(value),
            _ => {}
        }
    }
    let id = |raw: &str| EventId::validate(field::text(raw).ok()?.into_owned()).ok();
    mode_s.and_then(id).or_else(|| registration.and_then(id))
}

#[cfg(test)]
mod tests {
    use super::{Payload, aircraft_id};

    fn id(payload: &str) -> Option<String> {
        aircraft_id(&Payload::parse(payload).unwrap()).map(|id| id.to_string())
    }

    fn violation(payload: &str) -> (String, &'static str) {
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
            assert_eq!(violation(text).1, "dict_type", "{text}");
        }
        let (violation, kind) = violation("{\n\"a\":}");
        assert_eq!(kind, "json_invalid");
        assert_eq!(violation, "body.payload: expected value at line 2 column 5");
    }

    #[test]
    fn a_value_that_cannot_be_stored_is_a_violation_with_its_path() {
        assert_eq!(violation(r#"{"a":[{"b":1e9999}]}"#).1, "number_out_of_range");
        assert!(violation(r#"{"a":[{"b":1e9999}]}"#).0.starts_with("body.payload.a[0].b: "));
        assert_eq!(violation(r#"{"mode_s":[],"registration":[]}"#).1, "parallel_arrays");
        assert!(Payload::parse(r#"{"mode_s":[],"registration":"x"}"#).is_ok());
        assert!(Payload::parse(r#"{"mode_s":[],"registration":[],"mode_s":1}"#).is_ok());
    }

    #[test]
    fn a_payload_whose_document_is_too_large_is_rejected() {
        let payload = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes));
        assert!(Payload::parse(&payload(16 * 1024 * 1024 - 5000)).is_ok());
        assert_eq!(violation(&payload(16 * 1024 * 1024 - 4096)).1, "document_too_large");
        // The text is smaller than 16 MiB, its document is larger.
        assert_eq!(violation(&format!(r#"{{"a":[1{}]}}"#, ",1".repeat(2_000_000))).1, "document_too_large");
    }

    #[test]
    fn the_id_of_an_aircraft_is_its_mode_s_else_its_registration() {
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":"3F28BC"}"#).as_deref(), Some("3F28BC"));
        assert_eq!(id(r#"{"registration":"D-OBII"}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":""}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":null}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"mode_s":"old","mode\u005fs":"new"}"#).as_deref(), Some("new"));
        assert_eq!(id(r#"{"inner":{"mode_s":"x"},"mode_s":5}"#), None);
    }
}
