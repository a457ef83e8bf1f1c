//! Bytes of strangers, for terminals and for programs: nothing in them can move a cursor or break a line of ours.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

/// How many bytes of a key that is no text a line shows.
const SHOWN_BYTES: usize = 48;

/// Characters that are not seen but do something: control characters, and those that turn the direction of a line.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text for one line: what would do something to the terminal is escaped, and so is the backslash.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) || c == '\\' { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Bytes for one line: as text, or in hexadecimal where they are none.
pub fn line(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => {
            let more = if bytes.len() > SHOWN_BYTES { "…" } else { "" };
            format!("0x{}{more}", hex(&bytes[..bytes.len().min(SHOWN_BYTES)]))
        }
    }
}

/// Bytes as they are where they are text that can be printed, else as a dump: offset, bytes, and what of them is ASCII.
pub fn block(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| matches!(c, '\n' | '\t') || !acts(c)) => text.to_owned(),
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

/// A member `name` that holds the text, or a member `NAME_base64` where the bytes are none.
pub fn member(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
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
    fn a_line_stays_a_line_and_moves_no_cursor() {
        assert_eq!(line("Zu\u{308}rich \"7\"".as_bytes()), "Zu\u{308}rich \"7\"");
        assert_eq!(line(b"a\nb\x1b[2J\\"), "a\\nb\\u{1b}[2J\\\\");
        assert_eq!(line("\u{202e}x".as_bytes()), "\\u{202e}x");
        assert_eq!(line(b"\xff\x00a"), "0xff0061");
        assert_eq!(line(&[0xff; 50]), format!("0x{}…", "ff".repeat(48)));
        assert_eq!(line(b""), "");
    }

    #[test]
    fn a_block_is_the_text_itself_or_a_dump() {
        let text = "{\n\t\"a\": \"é\\n\"}";
        assert_eq!(block(text.as_bytes()), text);
        assert_eq!(block(b""), "");
        let dump = block(b"0123456789abcdef\xff\x1b ");
        let wanted = "00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|\n\
                      00000010  ff 1b 20                                          |.. |";
        assert_eq!(dump, wanted);
        assert!(block(b"a\x1b[2J").starts_with("00000000  61 1b"));
    }

    #[test]
    fn a_member_says_by_its_name_whether_it_is_text() {
        let mut object = Map::new();
        member(&mut object, "a", Some(b"x\n"));
        member(&mut object, "b", Some(b"\xff"));
        member(&mut object, "c", None);
        let wanted = serde_json::json!({"a": "x\n", "b_base64": "/w==", "c": null});
        assert_eq!(Value::Object(object), wanted);
    }
}
