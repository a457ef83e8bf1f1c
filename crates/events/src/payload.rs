//! A payload that is known to be storable, as the text it came as.

use std::{fmt, sync::Arc};

use crate::{
    cursor::Cursor,
    document,
    fault::{BODY, Breach, Fault, Faults, Path},
    field,
    id::EventId,
    json,
};

/// A JSON object that can be stored, byte for byte as it came. A clone is cheap.
#[derive(Clone)]
pub struct Payload(Arc<str>);

impl Payload {
    /// The payload that `text` is, or everything that keeps it from being stored. White space around the object is
    /// not part of it. Faults are at `body.payload`.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let path = Path::Name(&BODY, "payload");
        let mut faults = Faults::default();
        let raw = json::check(text).map_err(|error| Breach::new("json_invalid", error.to_string()));
        let payload = faults.take(&path, raw).and_then(|raw| Self::judge(raw.get(), &path, &mut faults));
        payload.ok_or_else(|| faults.into_list())
    }

    /// The payload that the JSON value `text` is.
    pub(crate) fn judge(text: &str, path: &Path<'_>, faults: &mut Faults) -> Option<Self> {
        let before = faults.count();
        document::Draft::new(text, path, faults);
        (faults.count() == before).then(|| Self(Arc::from(text)))
    }

    /// The payload's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Payload {
    /// Only the size: a payload never gets into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.as_str().len())
    }
}

impl PartialEq for Payload {
    /// Whether the texts are the same.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Payload {}

/// The id of an aircraft: its `mode_s`, else its `registration`; None if neither is text that makes an id.
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
    let id = |raw: &str| EventId::judge(field::text(raw).ok()?.into_owned()).ok();
    mode_s.and_then(id).or_else(|| registration.and_then(id))
}

#[cfg(test)]
mod tests {
    use super::{Payload, aircraft_id};

    fn id(payload: &str) -> Option<String> {
        aircraft_id(&Payload::parse(payload).unwrap()).map(|id| id.to_string())
    }

    fn fault(payload: &str) -> (String, &'static str) {
        let faults = Payload::parse(payload).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        (faults[0].to_string(), faults[0].kind)
    }

    #[test]
    fn the_text_stays_byte_for_byte() {
        let text = "{ \"b\" : 1.50,\n\t\"a\":\"\\u0041\", \"b\":1e0 }";
        let payload = Payload::parse(&format!(" \n{text}\r\n")).unwrap();
        assert_eq!(payload.as_str(), text);
        assert_eq!(payload, payload.clone());
        assert_eq!(format!("{payload:?}"), format!("Payload({} bytes)", text.len()));
    }

    #[test]
    fn only_a_json_object_is_a_payload() {
        for text in ["[]", "1", "null", "\"{}\""] {
            assert_eq!(fault(text).1, "dict_type", "{text}");
        }
        let (fault, kind) = fault("{\n\"a\":}");
        assert_eq!(kind, "json_invalid");
        assert_eq!(fault, "body.payload: expected value at line 2 column 5");
    }

    #[test]
    fn what_cannot_be_stored_is_refused_with_its_path() {
        assert_eq!(fault(r#"{"a":[{"b":1e9999}]}"#).1, "number_out_of_range");
        assert!(fault(r#"{"a":[{"b":1e9999}]}"#).0.starts_with("body.payload.a[0].b: "));
        assert_eq!(fault(r#"{"mode_s":[],"registration":[]}"#).1, "parallel_arrays");
        assert!(Payload::parse(r#"{"mode_s":[],"registration":"x"}"#).is_ok());
        assert!(Payload::parse(r#"{"mode_s":[],"registration":[],"mode_s":1}"#).is_ok());
    }

    #[test]
    fn a_payload_whose_document_would_be_too_large_is_refused() {
        let payload = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes));
        assert!(Payload::parse(&payload(16 * 1024 * 1024 - 5000)).is_ok());
        assert_eq!(fault(&payload(16 * 1024 * 1024 - 4096)).1, "document_too_large");
        // The text is smaller than 16 MiB, its document is not.
        assert_eq!(fault(&format!(r#"{{"a":[1{}]}}"#, ",1".repeat(2_000_000))).1, "document_too_large");
    }

    #[test]
    fn an_aircraft_is_its_mode_s_or_else_its_registration() {
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":"3F28BC"}"#).as_deref(), Some("3F28BC"));
        assert_eq!(id(r#"{"registration":"D-OBII"}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":""}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"registration":"D-OBII","mode_s":null}"#).as_deref(), Some("D-OBII"));
        assert_eq!(id(r#"{"mode_s":"old","mode\u005fs":"new"}"#).as_deref(), Some("new"));
        assert_eq!(id(r#"{"inner":{"mode_s":"x"},"mode_s":5}"#), None);
    }
}
