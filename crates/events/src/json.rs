//! Reads JSON: the check of a text, and a cursor over checked text.
//!
//! The cursor checks nothing and allocates nothing. On unchecked text it returns meaningless values,
//! but it terminates and never panics.

use std::{borrow::Cow, fmt};

use memchr::{memchr, memchr2};
use serde_json::value::RawValue;

/// A syntax error with its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotJson {
    pub(crate) message: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    /// How JSON writes what was probably meant.
    pub(crate) hint: Option<&'static str>,
}

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at line {} column {}", self.message, self.line, self.column)?;
        self.hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// The JSON value in `bytes` without surrounding white space.
pub(crate) fn check_bytes(bytes: &[u8]) -> Result<&RawValue, NotJson> {
    match std::str::from_utf8(bytes) {
        Ok(text) => check(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = valid.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(NotJson { message: "not valid UTF-8".to_owned(), line, column, hint: None })
        }
    }
}

/// The JSON value in `text` without surrounding white space.
pub(crate) fn check(text: &str) -> Result<&RawValue, NotJson> {
    if text.starts_with('\u{feff}') {
        let message = "a byte order mark before the JSON".to_owned();
        return Err(NotJson { message, line: 1, column: 1, hint: Some("send it without") });
    }
    serde_json::from_str(text).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&place).unwrap_or(&message).to_owned();
        let hint = hint(text, error.line(), error.column());
        NotJson { message, line: error.line(), column: error.column(), hint }
    })
}

/// How JSON writes the word at this position, if it is a word of another language.
fn hint(text: &str, line: usize, column: usize) -> Option<&'static str> {
    let line = text.split('\n').nth(line.checked_sub(1)?)?.as_bytes();
    let (before, after) = line.split_at_checked(column.saturating_sub(1))?;
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-');
    let start = before.iter().rposition(|byte| !in_word(byte)).map_or(0, |space| space + 1);
    let end = after.iter().position(|byte| !in_word(byte)).unwrap_or(after.len());
    let word = line.get(start..before.len() + end)?;
    let lower = word.to_ascii_lowercase();
    match lower.strip_prefix(b"-").or(lower.strip_prefix(b"+")).unwrap_or(&lower) {
        b"nan" | b"inf" | b"infinity" => Some("NaN and Infinity are not JSON: send null or a text"),
        b"none" | b"undefined" | b"nil" => Some("JSON has null for no value"),
        b"true" | b"false" if word != lower => Some("JSON has true and false in lower case"),
        _ => None,
    }
}

/// A position in valid JSON text.
pub struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    /// Starts at the first byte of `text`, which has no white space in front.
    pub fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// The byte at the position, 0 at the end.
    pub fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    /// Moves into the object or array at the position.
    pub fn enter(&mut self) {
        self.at += 1;
    }

    /// In an object: returns the next raw key and moves to its value. At the end of the object
    /// returns `None` and moves behind it.
    pub fn next_key(&mut self) -> Option<&'t str> {
        if !self.next_item() {
            return None;
        }
        let key = self.string();
        self.skip(|byte| is_space(byte) || byte == b':');
        Some(key)
    }

    /// The text of the value at the position.
    pub fn value(&mut self) -> &'t str {
        match self.peek() {
            b'"' => self.string(),
            b'{' | b'[' => self.container(),
            _ => self.scalar(),
        }
    }

    /// The string at the position, with quotes and escapes.
    pub fn string(&mut self) -> &'t str {
        let start = self.at;
        self.at += 1;
        loop {
            let rest = self.rest();
            self.at += memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
            match self.peek() {
                b'\\' => self.at += 2,
                _ => break,
            }
        }
        self.at += 1;
        self.since(start)
    }

    /// The number or literal at the position.
    pub fn scalar(&mut self) -> &'t str {
        let start = self.at;
        self.skip(|byte| !is_space(byte) && !matches!(byte, b',' | b']' | b'}'));
        self.since(start)
    }

    /// Uses no recursion, so that a million nesting levels do not overflow the stack.
    fn container(&mut self) -> &'t str {
        let start = self.at;
        let mut open = 0_usize;
        loop {
            match self.peek() {
                0 if self.at >= self.text.len() => break,
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => open += 1,
                b'}' | b']' => open = open.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                break;
            }
        }
        self.since(start)
    }

    /// Whether another member or item follows; moves to it. At the end of the object or array
    /// returns false and moves behind it.
    pub fn next_item(&mut self) -> bool {
        self.skip(|byte| is_space(byte) || byte == b',');
        let more = !matches!(self.peek(), b'}' | b']' | 0);
        if !more {
            self.at += 1;
        }
        more
    }

    fn skip(&mut self, wanted: impl Fn(u8) -> bool) {
        let rest = self.rest();
        self.at += rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len());
    }

    fn rest(&self) -> &'t [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn since(&self, start: usize) -> &'t str {
        self.text.get(start..self.at.min(self.text.len())).unwrap_or_default()
    }
}

/// The text of a raw JSON string, `None` if it has an unpaired surrogate.
pub fn unescape(raw: &str) -> Option<Cow<'_, str>> {
    if memchr(b'\\', raw.as_bytes()).is_some() {
        return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default()))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

#[cfg(test)]
mod tests {
    use super::{Cursor, check, check_bytes, unescape};

    #[test]
    fn a_syntax_error_has_its_line_and_column() {
        let error = check("{\n  \"a\": 1,\n  oops\n}").unwrap_err();
        assert_eq!((error.line, error.column), (3, 3));
        assert_eq!(error.message, "key must be a string");
    }

    #[test]
    fn invalid_utf_8_has_its_line_and_column() {
        let error = check_bytes(b"{\n \"a\": \"\xff\"}").unwrap_err();
        assert_eq!((error.message.as_str(), error.line, error.column), ("not valid UTF-8", 2, 8));
    }

    #[test]
    fn a_byte_order_mark_is_reported() {
        let error = check("\u{feff}{}").unwrap_err().to_string();
        assert_eq!(error, "a byte order mark before the JSON at line 1 column 1; send it without");
    }

    #[test]
    fn a_word_of_another_language_gets_a_hint() {
        for word in ["NaN", "nan", "-NaN", "Infinity", "-Infinity", "+Infinity", "Inf", "-inf"] {
            for text in [
                word.to_owned(),
                format!("{{\n \"a\": {word} }}"),
                format!("[1,{word}]"),
                format!("[{word},1]"),
            ] {
                let error = check(&text).unwrap_err().to_string();
                assert!(
                    error.ends_with("; NaN and Infinity are not JSON: send null or a text"),
                    "{text}: {error}"
                );
            }
        }
        for (text, hint) in [
            ("{\"a\":None}", "JSON has null for no value"),
            ("{\"a\":undefined}", "JSON has null for no value"),
            ("[True]", "JSON has true and false in lower case"),
            ("{\"é\": FALSE}", "JSON has true and false in lower case"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.ends_with(hint), "{text}: {error}");
        }
    }

    #[test]
    fn other_errors_have_no_hint() {
        for text in [
            "",
            "{",
            "[1,]",
            "{'a':1}",
            "[nul]",
            "[-]",
            "[\"NaN\" 1]",
            "[bananas]",
            "[1 true]",
            "é",
            "[1 é",
            "\n\n",
        ] {
            assert_eq!(check(text).unwrap_err().hint, None, "{text}");
        }
    }

    #[test]
    fn text_after_the_value_and_json5_are_rejected() {
        for text in ["{} {}", "{\"a\":1,}", "[01]", "NaN", "{'a':1}", "\"\u{1}\"", "\"\\x\"", "", " "] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_million_levels_do_not_overflow_the_stack() {
        let text = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert_eq!(check(&text).unwrap().get().len(), text.len());
    }

    #[test]
    fn members_are_returned_raw_and_in_order() {
        let mut cursor = Cursor::new(r#"{ "a\"}" : [1, {"b": "]"}] , "c":-1.5e3,"d":"x" }"#);
        cursor.enter();
        let mut members = Vec::new();
        while let Some(key) = cursor.next_key() {
            members.push((key, cursor.value()));
        }
        assert_eq!(
            members,
            [(r#""a\"}""#, r#"[1, {"b": "]"}]"#), (r#""c""#, "-1.5e3"), (r#""d""#, r#""x""#)]
        );
    }

    #[test]
    fn text_that_is_not_json_ends_without_a_panic() {
        for text in ["", "{", "[", "\"", "\"\\", "{\"a", "{\"a\":", "[1", "{a:1}", "]", "{]", "é", "\"é"] {
            let mut cursor = Cursor::new(text);
            cursor.value();
            let mut cursor = Cursor::new(text);
            cursor.enter();
            while cursor.next_key().is_some() && cursor.at < text.len() {
                cursor.value();
            }
        }
    }

    #[test]
    fn escapes_are_resolved_and_unpaired_surrogates_rejected() {
        assert_eq!(unescape(r#""""#).as_deref(), Some(""));
        assert_eq!(unescape(r#""a\n\u00e9\ud83d\ude00""#).as_deref(), Some("a\né😀"));
        for raw in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\ud83d""#] {
            assert_eq!(unescape(raw), None, "{raw}");
        }
    }
}
