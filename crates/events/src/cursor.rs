//! A cursor over valid JSON text.
//!
//! It checks nothing and allocates nothing. On other text its results are meaningless, but it
//! always ends and never panics.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

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
        if !self.more() {
            return None;
        }
        let key = self.string();
        self.skip(|byte| is_space(byte) || byte == b':');
        Some(key)
    }

    /// In an array: whether another item follows; moves to it. At the end of the array returns
    /// false and moves behind it.
    pub fn next_item(&mut self) -> bool {
        self.more()
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

    fn more(&mut self) -> bool {
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
    use super::{Cursor, unescape};

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
