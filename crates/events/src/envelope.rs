//! The fields of an event, still as raw JSON, sorted by name.

use std::borrow::Cow;

use crate::cursor::{Cursor, unescape};

/// The raw values of an event's fields. `null` is kept as it is.
#[derive(Default)]
pub(crate) struct Envelope<'t> {
    pub(crate) id: Option<&'t str>,
    pub(crate) timestamp: Option<&'t str>,
    pub(crate) source: Option<&'t str>,
    pub(crate) payload: Option<&'t str>,
    pub(crate) ingested_at: Option<&'t str>,
    pub(crate) api_version: Option<&'t str>,
    /// Other fields in their order: raw key, raw value.
    pub(crate) extra: Vec<(&'t str, &'t str)>,
    /// The names of the six fields above that were given more than once; the last value is the one kept.
    pub(crate) repeated: Vec<Cow<'t, str>>,
}

impl<'t> Envelope<'t> {
    /// The fields of the JSON object that `text` is; None if it is another JSON value.
    pub(crate) fn split(text: &'t str) -> Option<Self> {
        let mut cursor = Cursor::new(text);
        if cursor.peek() != b'{' {
            return None;
        }
        let mut envelope = Self::default();
        cursor.enter();
        while let Some(key) = cursor.next_key() {
            envelope.add(key, cursor.value());
        }
        Some(envelope)
    }

    fn add(&mut self, key: &'t str, value: &'t str) {
        let name = unescape(key).unwrap_or_default();
        let field = match name.as_ref() {
            "id" => &mut self.id,
            "timestamp" => &mut self.timestamp,
            "source" => &mut self.source,
            "payload" => &mut self.payload,
            "ingested_at" => &mut self.ingested_at,
            "api_version" => &mut self.api_version,
            _ => return self.extra.push((key, value)),
        };
        if field.replace(value).is_some() && !self.repeated.contains(&name) {
            self.repeated.push(name);
        }
    }
}

/// A field that says something: given, and not `null`.
pub(crate) fn given(field: Option<&str>) -> Option<&str> {
    field.filter(|raw| *raw != "null")
}
