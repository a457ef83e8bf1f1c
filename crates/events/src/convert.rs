//! Converts JSON to BSON. This one function decides which payloads can be stored, for producer and
//! consumer.
//!
//! It makes one pass into one buffer and reports every violation with its path. After a violation
//! the bytes are incomplete, and the caller drops them.

use std::borrow::Cow;

use crate::{
    cursor::{Cursor, unescape},
    members::{Members, Written},
    number::{self, Number},
    validation::{BrokenRule, Path, Violations},
    writer::{Element, Writer, kind},
};

/// MongoDB accepts 100 levels. Ten are reserved for the fields around a payload.
pub(crate) const MAX_NESTING: usize = 90;

/// Converts JSON values into a BSON buffer.
pub(crate) struct Converter<'f> {
    pub(crate) writer: Writer,
    pub(crate) violations: &'f mut Violations,
    members: Members,
}

impl<'f> Converter<'f> {
    pub(crate) fn new(capacity_bytes: usize, violations: &'f mut Violations) -> Self {
        Self { writer: Writer::with_capacity(capacity_bytes), violations, members: Members::new() }
    }

    /// Writes the members of a whole payload that `keep` accepts, without the length before and the
    /// NUL after them.
    pub(crate) fn payload(
        &mut self,
        payload: &str,
        path: &Path<'_>,
        keep: &mut dyn FnMut(Written<'_>) -> bool,
    ) {
        let first = self.members.count();
        self.read_members(&mut Cursor::new(payload), path, 1);
        self.members.complete(first, &mut self.writer.bytes, keep);
    }

    /// Writes members that are not from one object. `members` are raw keys and raw values.
    pub(crate) fn loose_members(&mut self, members: &[(&str, &str)], path: &Path<'_>) {
        let first = self.members.count();
        for (key, value) in members {
            self.member(key, &mut Cursor::new(value), path, 1);
        }
        self.members.complete(first, &mut self.writer.bytes, &mut |_| true);
    }

    fn object(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let first = self.members.count();
        self.read_members(cursor, path, level);
        self.members.complete(first, &mut self.writer.bytes, &mut |_| true);
    }

    fn read_members(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        cursor.enter();
        while let Some(key) = cursor.next_key() {
            self.member(key, cursor, path, level);
        }
    }

    fn member(&mut self, raw_key: &str, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let key = unescape(raw_key);
        let readable = key.is_some();
        let key = key.unwrap_or(Cow::Borrowed(raw_key));
        let path = Path::Name(path, &key);
        if !readable {
            self.violations.push(&path, BrokenRule::not_unicode());
        }
        if key.contains('\0') {
            self.violations.push(&path, BrokenRule::new("invalid_key", "Key should have no NUL character"));
        }
        let start = self.writer.len();
        let element = self.writer.key(&key);
        self.members.push(start, self.writer.len());
        self.value(&element, cursor, &path, level);
    }

    fn array(&mut self, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        cursor.enter();
        let mut index = 0;
        while cursor.next_item() {
            let element = self.writer.index(index);
            self.value(&element, cursor, &Path::Index(path, index), level);
            index += 1;
        }
    }

    /// `level` is the level of the object or array around the value.
    fn value(&mut self, element: &Element, cursor: &mut Cursor<'_>, path: &Path<'_>, level: usize) {
        let kind = match cursor.peek() {
            b'{' | b'[' if level >= MAX_NESTING => {
                cursor.value();
                let msg = format!("Nesting should be at most {MAX_NESTING} levels");
                self.violations.push(path, BrokenRule::new("nesting_too_deep", msg));
                kind::NULL
            }
            b'{' => {
                let open = self.writer.open();
                self.object(cursor, path, level + 1);
                self.writer.close(&open);
                kind::DOCUMENT
            }
            b'[' => {
                let open = self.writer.open();
                self.array(cursor, path, level + 1);
                self.writer.close(&open);
                kind::ARRAY
            }
            b'"' => self.string(cursor.string(), path),
            _ => self.scalar(cursor.scalar(), path),
        };
        self.writer.set_kind(element, kind);
    }

    fn string(&mut self, raw: &str, path: &Path<'_>) -> u8 {
        match unescape(raw) {
            Some(text) => self.writer.text(&text),
            None => self.violations.push(path, BrokenRule::not_unicode()),
        }
        kind::STRING
    }

    fn scalar(&mut self, text: &str, path: &Path<'_>) -> u8 {
        let bytes = &mut self.writer.bytes;
        match text {
            "null" => return kind::NULL,
            "true" | "false" => {
                bytes.push(u8::from(text == "true"));
                return kind::BOOLEAN;
            }
            _ => {}
        }
        match number::of_json(text) {
            Some(Number::Int32(integer)) => {
                bytes.extend_from_slice(&integer.to_le_bytes());
                kind::INT32
            }
            Some(Number::Int64(integer)) => {
                bytes.extend_from_slice(&integer.to_le_bytes());
                kind::INT64
            }
            Some(Number::Double(double)) => {
                bytes.extend_from_slice(&double.to_le_bytes());
                kind::DOUBLE
            }
            Some(Number::Decimal(decimal)) => {
                bytes.extend_from_slice(&decimal.bytes());
                kind::DECIMAL128
            }
            None => {
                let msg = "Number should fit Decimal128 exactly (34 digits, exponent -6176 to 6111)";
                self.violations.push(path, BrokenRule::new("number_out_of_range", msg));
                kind::NULL
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::{Document, RawDocumentBuf, doc};

    use super::{Converter, MAX_NESTING};
    use crate::validation::{Path, Violations};

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
        let json =
            r#"{"a":[1,1e9999,{"k\u0000":"\ud800"}],"\udfff":12345678901234567890123456789012345,"ok":1}"#;
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
}
