//! Text and JSON forms of untrusted bytes. The text cannot move the cursor or break a line.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

/// Maximum number of bytes that a line shows of a key that is not UTF-8.
const MAX_SHOWN_BYTES: usize = 48;

/// Whether a character is invisible but has an effect: control characters, and those that change
/// the text direction.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text for one line, with escaped control characters and backslashes.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) || c == '\\' { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Bytes for one line: as text, or in hexadecimal if they are not UTF-8.
pub fn bytes_line(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => {
            let more = if bytes.len() > MAX_SHOWN_BYTES { "…" } else { "" };
            format!("0x{}{more}", hex(&bytes[..bytes.len().min(MAX_SHOWN_BYTES)]))
        }
    }
}

/// Printable text unchanged, other bytes as a hex dump with offsets and ASCII characters.
pub fn bytes_block(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| matches!(c, '\n' | '\t') || !is_control(c)) => text.to_owned(),
        _ => dump(bytes),
    }
}

fn dump(bytes: &[u8]) -> String {
    let rows = bytes.chunks(16).enumerate().map(|(n, row)| {
        let halves: Vec<String> =
            row.chunks(8).map(|half| half.iter().map(|byte| format!("{byte:02x} ")).collect()).collect();
        let ascii: String = row
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
            .collect();
        format!("{:08x}  {:<49} |{ascii}|", n * 16, halves.join(" "))
    });
    rows.collect::<Vec<_>>().join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// Inserts a member `name` with the text, or `NAME_base64` if the bytes are not UTF-8.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => _ = object.insert(name.to_owned(), Value::Null),
        Some((Ok(text), _)) => _ = object.insert(name.to_owned(), text.into()),
        Some((Err(_), bytes)) => {
            _ = object.insert(format!("{name}_base64"), BASE64_STANDARD.encode(bytes).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_control_characters() {
        assert_eq!(bytes_line("Zu\u{308}rich \"7\"".as_bytes()), "Zu\u{308}rich \"7\"");
        assert_eq!(bytes_line(b"a\nb\x1b[2J\\"), "a\\nb\\u{1b}[2J\\\\");
        assert_eq!(bytes_line("\u{202e}x".as_bytes()), "\\u{202e}x");
        assert_eq!(bytes_line(b"\xff\x00a"), "0xff0061");
        assert_eq!(bytes_line(&[0xff; 50]), format!("0x{}…", "ff".repeat(48)));
        assert_eq!(bytes_line(b""), "");
    }

    #[test]
    fn a_block_is_printable_text_or_a_hex_dump() {
        let text = "{\n\t\"a\": \"é\\n\"}";
        assert_eq!(bytes_block(text.as_bytes()), text);
        assert_eq!(bytes_block(b""), "");
        let dump = bytes_block(b"0123456789abcdef\xff\x1b ");
        let wanted = "00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|\n\
                      00000010  ff 1b 20                                          |.. |";
        assert_eq!(dump, wanted);
        assert!(bytes_block(b"a\x1b[2J").starts_with("00000000  61 1b"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_inserted_as_base64() {
        let mut object = Map::new();
        insert_bytes(&mut object, "a", Some(b"x\n"));
        insert_bytes(&mut object, "b", Some(b"\xff"));
        insert_bytes(&mut object, "c", None);
        let wanted = serde_json::json!({"a": "x\n", "b_base64": "/w==", "c": null});
        assert_eq!(Value::Object(object), wanted);
    }
}
