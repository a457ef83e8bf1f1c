//! Checks that a text is JSON. The other modules of this crate read only text that passed this
//! check.

use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::{check, check_bytes};

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
}
