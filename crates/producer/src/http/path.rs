//! Parts of paths and queries without their percent-encoding.

use events::EventId;

/// The event id that a segment of a path encodes.
///
/// # Errors
/// The segment cannot be decoded, or is no id.
pub fn event_id(segment: &str) -> Result<EventId, String> {
    percent_decoded(segment).and_then(EventId::new)
}

/// The text without its percent-encoding. A plus stays a plus, because times contain one.
///
/// # Errors
/// The text is not the percent-encoding of UTF-8.
pub fn percent_decoded(text: &str) -> Result<String, String> {
    decoded(text).ok_or_else(|| "Percent-encoding should be that of UTF-8 text".to_owned())
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let byte = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?
            }
            (b'%', _) => return None,
            (byte, _) => *byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}
