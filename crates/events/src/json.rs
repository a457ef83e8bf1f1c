//! Whether a text is JSON at all. Every other module of this crate reads only text that passed here.

use serde_json::value::RawValue;

/// Not JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotJson {
    pub(crate) message: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// The JSON value that `bytes` hold, without the white space around it.
pub(crate) fn check_bytes(bytes: &[u8]) -> Result<&RawValue, NotJson> {
    match std::str::from_utf8(bytes) {
        Ok(text) => check(text),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = valid.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(NotJson { message: "not valid UTF-8".to_owned(), line, column })
        }
    }
}

/// The JSON value that `text` holds, without the white space around it.
pub(crate) fn check(text: &str) -> Result<&RawValue, NotJson> {
    if text.starts_with('\u{feff}') {
        return Err(NotJson { message: "a byte order mark before the JSON".to_owned(), line: 1, column: 1 });
    }
    serde_json::from_str(text).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&place).unwrap_or(&message).to_owned();
        NotJson { message, line: error.line(), column: error.column() }
    })
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
    fn a_byte_order_mark_is_named() {
        assert!(check("\u{feff}{}").unwrap_err().message.contains("byte order mark"));
    }

    #[test]
    fn text_after_the_value_and_json5_are_refused() {
        for text in ["{} {}", "{\"a\":1,}", "[01]", "NaN", "{'a':1}", "\"\u{1}\"", "\"\\x\"", "", " "] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_million_levels_do_not_end_the_process() {
        let text = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        assert_eq!(check(&text).unwrap().get().len(), text.len());
    }
}
