//! JSON Pointers (RFC 6901) over the text of a JSON value.
//!
//! A pointer returns a piece of the text, so that each number keeps its digits and its exponent.

use std::fmt;

use events::{Cursor, unescape};

/// Maximum length of a pointer's text.
const MAX_BYTES: usize = 1024;

/// A JSON Pointer. The empty pointer is the whole value.
#[derive(Clone, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, PartialEq, Eq)]
struct Token {
    key: String,
    /// The token as an index of an array: digits without a leading zero.
    index: Option<usize>,
}

impl Pointer {
    /// The pointer to the whole value.
    pub fn whole() -> Self {
        Self { text: String::new(), tokens: Vec::new() }
    }

    /// Parses `text`. The error continues the sentence `path: …`.
    ///
    /// # Errors
    /// `text` is not a JSON Pointer.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("is a JSON Pointer of more than {MAX_BYTES} bytes"));
        }
        if text.is_empty() {
            return Ok(Self::whole());
        }
        let rest =
            text.strip_prefix('/').ok_or("is not a JSON Pointer: it should be empty or begin with /")?;
        let tokens: Result<Vec<Token>, String> = rest.split('/').map(Token::parse).collect();
        Ok(Self { text: text.to_owned(), tokens: tokens? })
    }

    /// The text of the value that the pointer names in `json`, which is valid JSON. Of several
    /// members with one key the last is taken, as in a document.
    pub fn find<'t>(&self, json: &'t str) -> Option<&'t str> {
        let mut text = json.trim_ascii();
        for token in &self.tokens {
            text = match text.as_bytes().first() {
                Some(b'{') => member(text, &token.key)?,
                Some(b'[') => item(text, token.index?)?,
                _ => return None,
            };
        }
        Some(text)
    }

    /// The pointer as written in the file.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, String> {
        let mut key = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            key.push(match char {
                '~' => match chars.next() {
                    Some('0') => '~',
                    Some('1') => '/',
                    _ => {
                        return Err(
                            "is not a JSON Pointer: ~ should be written as ~0, and / in a key as ~1".into()
                        );
                    }
                },
                other => other,
            });
        }
        let is_index = !key.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_digit())
            && (key.len() == 1 || !key.starts_with('0'));
        let index = if is_index { key.parse().ok() } else { None };
        Ok(Self { key, index })
    }
}

impl fmt::Debug for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pointer({:?})", self.text)
    }
}

fn member<'t>(object: &'t str, wanted: &str) -> Option<&'t str> {
    let mut cursor = Cursor::new(object);
    cursor.enter();
    let mut found = None;
    while let Some(key) = cursor.next_key() {
        let value = cursor.value();
        if is_key(key, wanted) {
            found = Some(value);
        }
    }
    found
}

fn item(array: &str, index: usize) -> Option<&str> {
    let mut cursor = Cursor::new(array);
    cursor.enter();
    let mut at = 0;
    while cursor.next_item() {
        let value = cursor.value();
        if at == index {
            return Some(value);
        }
        at += 1;
    }
    None
}

/// Whether a raw key is this key.
fn is_key(raw: &str, wanted: &str) -> bool {
    if raw.len() == wanted.len() + 2 && !raw.contains('\\') {
        return raw.get(1..raw.len() - 1) == Some(wanted);
    }
    raw.contains('\\') && unescape(raw).as_deref() == Some(wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::Pointer;

    fn find<'t>(pointer: &str, json: &'t str) -> Option<&'t str> {
        Pointer::parse(pointer).unwrap().find(json)
    }

    #[test]
    fn the_examples_of_the_standard_are_found() {
        let json =
            r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        for (pointer, value) in [
            ("", json),
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(find(pointer, json), Some(value), "{pointer}");
        }
    }

    #[test]
    fn a_value_that_is_not_there_is_not_found() {
        let json = r#" { "a" : [ 1 , { "b" : null } ] } "#;
        assert_eq!(find("/a/1/b", json), Some("null"));
        for pointer in ["/b", "/a/2", "/a/01", "/a/-", "/a/-1", "/a/+1", "/a/x", "/a/0/x", "/a/1/b/c", "/A"] {
            assert_eq!(find(pointer, json), None, "{pointer}");
        }
        assert_eq!(find("/a/99999999999999999999999", json), None);
    }

    #[test]
    fn text_that_is_no_pointer_is_rejected() {
        for text in ["a", "a/b", "#/a", "/a~", "/~2", "/a~b", " /a"] {
            assert!(Pointer::parse(text).is_err(), "{text}");
        }
        assert!(Pointer::parse(&"/a".repeat(2000)).unwrap_err().contains("1024 bytes"));
    }

    #[test]
    fn numbers_keep_their_text() {
        let json = r#"{"a":[9007199254740993,123456789012345678901234567890,0.10,1e400,-0,1E5,1.0]}"#;
        let numbers =
            ["9007199254740993", "123456789012345678901234567890", "0.10", "1e400", "-0", "1E5", "1.0"];
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(find(&format!("/a/{index}"), json), Some(*number));
        }
    }

    #[test]
    fn of_equal_keys_the_last_is_taken_in_any_spelling() {
        assert_eq!(find("/a", r#"{"a":1,"\u0061":2}"#), Some("2"));
        assert_eq!(find("/a", r#"{"\u0061":2,"a":1}"#), Some("1"));
        assert_eq!(find("/é", "{\"\\u00e9\":1}"), Some("1"));
    }

    #[test]
    fn deep_and_large_values_are_walked_without_recursion() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert_eq!(find("/0/0", &deep).map(str::len), Some(deep.len() - 4));
        let large = format!(r#"{{"a":"{}","b":7}}"#, "x\\\"".repeat(500_000));
        assert_eq!(find("/b", &large), Some("7"));
    }

    /// A JSON number in any spelling.
    fn number() -> impl Strategy<Value = String> {
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?"
    }

    /// JSON text with white space, and the raw values in it with their pointers.
    fn json() -> impl Strategy<Value = String> {
        let string = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
        let leaf = prop_oneof![number(), string, Just("null".to_owned()), Just("true".to_owned())];
        leaf.prop_recursive(5, 64, 6, |inner| {
            let key = any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap());
            let space = || prop_oneof![Just(""), Just(" "), Just("\n\t")];
            prop_oneof![
                (prop::collection::vec(inner.clone(), 0..6), space()).prop_map(|(items, space)| format!(
                    "[{space}{}{space}]",
                    items.join(&format!("{space},{space}"))
                )),
                (prop::collection::vec((key, inner), 0..6), space()).prop_map(|(members, space)| {
                    let members: Vec<String> =
                        members.iter().map(|(key, value)| format!("{key}{space}:{space}{value}")).collect();
                    format!("{{{space}{}{space}}}", members.join(&format!("{space},{space}")))
                }),
            ]
        })
    }

    /// Each pointer into `value`.
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
        match value {
            Value::Object(members) => {
                members
                    .iter()
                    .for_each(|(key, value)| pointers(value, &format!("{at}/{}", escape(key)), found));
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), found));
            }
            _ => {}
        }
    }

    /// `json` with its numbers as strings, so that the parser does not change them.
    fn parsed(json: &str) -> Option<Value> {
        fn value(raw: &serde_json::value::RawValue) -> Option<Value> {
            let text = raw.get();
            Some(match text.as_bytes()[0] {
                b'{' => {
                    let mut map = Map::new();
                    // Of equal keys the last is kept.
                    let members: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
                        serde_json::from_str(text).ok()?;
                    for (key, member) in members {
                        map.insert(key, value(&member)?);
                    }
                    Value::Object(map)
                }
                b'[' => {
                    let items: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(text).ok()?;
                    Value::Array(items.iter().map(|item| value(item)).collect::<Option<_>>()?)
                }
                _ => Value::String(text.to_owned()),
            })
        }
        value(serde_json::from_str(json).ok()?)
    }

    proptest! {
        #[test]
        fn what_a_pointer_finds_is_what_was_sent(json in json()) {
            let parsed = parsed(&json).unwrap();
            let mut all = Vec::new();
            pointers(&parsed, "", &mut all);
            for pointer in all {
                if pointer.len() > super::MAX_BYTES {
                    continue;
                }
                let expected = parsed.pointer(&pointer).unwrap();
                let found = find(&pointer, &json);
                prop_assert!(found.is_some(), "{}", pointer);
                let found = found.unwrap();
                prop_assert!(json.contains(found));
                match expected {
                    Value::String(text) => prop_assert_eq!(found, text),
                    other => prop_assert_eq!(&super::tests::parsed(found).unwrap(), other),
                }
            }
        }

        #[test]
        fn any_text_ends_without_a_panic(json in any::<String>(), pointer in "(/[a-z0-9]{0,2}){0,3}") {
            _ = find(&pointer, &json);
        }
    }
}
