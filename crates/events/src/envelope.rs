//! The fields of an event as raw JSON, by name.

use std::borrow::Cow;

use crate::cursor::{Cursor, unescape};

/// The raw values of an event's fields. A `null` is kept.
#[derive(Default)]
pub(crate) struct Envelope<'t> {
    pub(crate) id: Option<&'t str>,
    pub(crate) timestamp: Option<&'t str>,
    pub(crate) source: Option<&'t str>,
    pub(crate) payload: Option<&'t str>,
    pub(crate) ingested_at: Option<&'t str>,
    pub(crate) api_version: Option<&'t str>,
    /// Other fields in their order: raw key and raw value.
    pub(crate) extra: Vec<(&'t str, &'t str)>,
    /// Names of the six fields above that occur more than once. The last value is kept.
    pub(crate) repeated: Vec<Cow<'t, str>>,
}

impl<'t> Envelope<'t> {
    /// Splits a JSON object into its fields. `None` if `text` is another JSON value.
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

/// The value of a field, `None` if it is absent or `null`.
pub(crate) fn non_null(field: Option<&str>) -> Option<&str> {
    field.filter(|raw| *raw != "null")
}
