//! Which document an event belongs to: the values of the fields that UPSERT_KEYS names, or, where one of them is no
//! single value, an `_id` derived from the event's id. The same event always has the same key.

use std::fmt;

use bson::oid::ObjectId;
use bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use events::StorableEvent;

/// The fields of UPSERT_KEYS: at least one, each a path whose parts are joined by dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpsertKeys(Vec<String>);

impl UpsertKeys {
    /// Reads a comma-separated list, as in `event_id` or `mode_s,registration`.
    ///
    /// # Errors
    /// Says what is wrong, to complete a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fields: Vec<String> = Vec::new();
        for field in text.split(',').map(str::trim) {
            if field.split('.').any(|part| part.is_empty() || part.starts_with('$') || part.contains('\0')) {
                return Err("is not a list of fields such as event_id or mode_s,registration".into());
            }
            if field == "_id" || field.starts_with("_id.") {
                return Err("names _id, which MongoDB makes; use event_id".into());
            }
            if fields.iter().any(|other| overlap(other, field)) {
                return Err(format!("names {field} twice"));
            }
            fields.push(field.to_owned());
        }
        Ok(Self(fields))
    }

    /// The paths, in the order given.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether the key is `event_id` alone, which no event lacks.
    pub fn is_event_id(&self) -> bool {
        self.0 == ["event_id"]
    }

    /// Whether a filter must name the types to find an index: not where one that is not partial begins with the key.
    pub(super) fn need_types(&self) -> bool {
        let first = super::index::LOOKUP.get(..self.0.len()).unwrap_or_default();
        let looked_up = !first.is_empty() && self.fields().all(|field| first.contains(&field));
        !self.is_event_id() && !looked_up
    }

    /// The identity of the key that a stored document has.
    pub(super) fn identity_in(&self, document: &Document) -> Option<Vec<u8>> {
        let raw = RawDocumentBuf::try_from(document).ok()?;
        let values: Option<Vec<_>> = self.0.iter().map(|path| scalar_at(&raw, path)).collect();
        match (values, document.get_object_id("_id")) {
            (Some(values), _) => Some(Key::Fields(values).identity()),
            (None, Ok(id)) => Some(Key::Derived(id).identity()),
            (None, Err(_)) => None,
        }
    }

    /// What finds the document that `event` belongs to, by the unique index.
    pub fn filter(&self, event: &StorableEvent) -> Document {
        let values = match self.key_of(event) {
            Key::Derived(id) => return doc! { "_id": id },
            Key::Fields(values) => values,
        };
        let condition = |value| {
            let mut condition = doc! { "$eq": Bson::try_from(value).unwrap_or(Bson::Null) };
            if !self.is_event_id() {
                condition.insert("$type", super::index::INDEXED_TYPES.to_vec());
            }
            Bson::Document(condition)
        };
        self.fields().zip(values).map(|(field, value)| (field.to_owned(), condition(value))).collect()
    }

    /// The key of `event`.
    pub(super) fn key_of<'a>(&self, event: &'a StorableEvent) -> Key<'a> {
        // The document has it too, behind the payload's fields.
        if self.is_event_id() {
            return Key::Fields(vec![RawBsonRef::String(event.id.as_str())]);
        }
        let values = self.0.iter().map(|path| scalar_at(&event.document, path)).collect();
        match values {
            Some(values) => Key::Fields(values),
            None => Key::Derived(events::derived_object_id(&event.id)),
        }
    }
}

impl fmt::Display for UpsertKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Whether two paths are the same, or one lies within the other.
fn overlap(one: &str, other: &str) -> bool {
    let within =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    one == other || within(one, other) || within(other, one)
}

/// The document that an event belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Key<'a> {
    /// The one whose key fields have these values, in the order of UPSERT_KEYS.
    Fields(Vec<RawBsonRef<'a>>),
    /// The one with this `_id`.
    Derived(ObjectId),
}

impl Key<'_> {
    /// Bytes that are equal for two keys exactly if the server holds them for equal.
    pub(super) fn identity(&self) -> Vec<u8> {
        match self {
            Self::Derived(id) => id.bytes().to_vec(),
            Self::Fields(values) => values.iter().fold(vec![b'f'], |mut bytes, value| {
                append_identity(&mut bytes, *value);
                bytes
            }),
        }
    }
}

/// 1 and 1.0 are one value to the server, as in an index.
fn append_identity(bytes: &mut Vec<u8>, value: RawBsonRef<'_>) {
    match value {
        RawBsonRef::String(text) => {
            bytes.push(b's');
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        RawBsonRef::Boolean(truth) => bytes.extend_from_slice(&[b'b', u8::from(truth)]),
        RawBsonRef::Int32(number) => append_number(bytes, i64::from(number)),
        RawBsonRef::Int64(number) => append_number(bytes, number),
        RawBsonRef::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e15 => {
            append_number(bytes, number as i64);
        }
        RawBsonRef::Double(number) => {
            bytes.push(b'd');
            bytes.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        RawBsonRef::Decimal128(number) => {
            bytes.push(b'm');
            bytes.extend_from_slice(&number.bytes());
        }
        _ => bytes.push(b'?'),
    }
}

fn append_number(bytes: &mut Vec<u8>, number: i64) {
    bytes.push(b'i');
    bytes.extend_from_slice(&number.to_le_bytes());
}

/// The single value at `path`. A field whose own name contains the dots is another field to MongoDB, and here.
fn scalar_at<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    let (parent, last) = match path.rsplit_once('.') {
        Some((parents, last)) => {
            let inner = parents.split('.').try_fold(document, |inner, part| inner.get_document(part).ok());
            (inner?, last)
        }
        None => (document, path),
    };
    parent.get(last).ok().flatten().filter(|value| is_scalar(*value))
}

/// The values that [`INDEXED_TYPES`](super::index::INDEXED_TYPES) covers.
fn is_scalar(value: RawBsonRef<'_>) -> bool {
    use RawBsonRef::{Boolean, Decimal128, Double, Int32, Int64, String};
    matches!(value, String(_) | Boolean(_) | Int32(_) | Int64(_) | Double(_) | Decimal128(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn a_list_of_fields_is_read_and_anything_else_is_refused() {
        let keys = UpsertKeys::parse("mode_s, position.registration").expect("two fields");
        assert_eq!(keys.fields().collect::<Vec<_>>(), ["mode_s", "position.registration"]);
        assert!(!keys.is_event_id());
        assert!(UpsertKeys::parse("event_id").expect("one field").is_event_id());
        for wrong in
            ["", " ", "a,,b", ".a", "a.", "a..b", "$a", "a.$b", "_id", "_id.x", "a,a", "a,a.b", "a.b,a"]
        {
            assert!(UpsertKeys::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_key_field_is_a_path_through_documents_to_one_value() {
        let document = rawdoc! {
            "a": { "b": { "c": "deep" }, "n": null }, "a.x": "a name with a dot", "list": [ { "b": 1 } ], "one": 1,
        };
        assert_eq!(scalar_at(&document, "a.b.c"), Some(RawBsonRef::String("deep")));
        assert_eq!(scalar_at(&document, "one"), Some(RawBsonRef::Int32(1)));
        for none in ["a", "a.b", "a.n", "a.x", "list", "list.b", "list.0", "absent", "one.more", "a.b.c.d"] {
            assert_eq!(scalar_at(&document, none), None, "{none}");
        }
    }

    #[test]
    fn equal_values_have_one_identity_and_others_do_not() {
        let identity = |values: &[RawBsonRef<'_>]| Key::Fields(values.to_vec()).identity();
        use RawBsonRef::{Boolean, Double, Int32, Int64, String};
        assert_eq!(identity(&[Int32(1)]), identity(&[Double(1.0)]));
        assert_eq!(identity(&[Int64(0)]), identity(&[Double(-0.0)]));
        assert_ne!(identity(&[Int32(1)]), identity(&[String("1")]));
        assert_ne!(identity(&[Int32(1)]), identity(&[Boolean(true)]));
        assert_ne!(identity(&[String("ab"), String("c")]), identity(&[String("a"), String("bc")]));
        assert_ne!(identity(&[Double(0.5)]), identity(&[Double(0.25)]));
    }
}
