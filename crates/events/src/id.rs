//! The id of an event. It is the record's key and the document's `event_id`.

use std::fmt;

use bson::oid::ObjectId;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::validation::BrokenRule;

const MAX_CHARS: usize = 256;

/// An event's id: 1 to 256 characters without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct EventId(String);

impl EventId {
    /// Validates `text` as an id. The error is the reason.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::validate(text.into()).map_err(|broken_rule| broken_rule.msg)
    }

    pub(crate) fn validate(text: String) -> Result<Self, BrokenRule> {
        if text.is_empty() {
            return Err(BrokenRule::new("string_too_short", "Id should have at least 1 character"));
        }
        if text.chars().nth(MAX_CHARS).is_some() {
            return Err(BrokenRule::new("string_too_long", "Id should have at most 256 characters"));
        }
        if text.chars().any(char::is_control) {
            return Err(BrokenRule::new("string_pattern_mismatch", "Id should have no control characters"));
        }
        Ok(Self(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `_id` of a document without a usable upsert key: the first 12 bytes of the SHA-256 of its
/// event id. It is the same on every replay.
pub fn derived_object_id(id: &EventId) -> ObjectId {
    let digest = Sha256::digest(id.as_str().as_bytes());
    let mut bytes = [0; 12];
    bytes.iter_mut().zip(digest).for_each(|(byte, digest)| *byte = digest);
    ObjectId::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::{EventId, derived_object_id};

    #[test]
    fn an_id_has_1_to_256_characters() {
        assert!(EventId::new("").unwrap_err().contains("at least 1"));
        assert!(EventId::new("é".repeat(256)).is_ok());
        assert!(EventId::new("e".repeat(257)).unwrap_err().contains("at most 256"));
    }

    #[test]
    fn an_id_has_no_control_characters() {
        for text in ["a\nb", "\0", "a\u{7f}", "\u{85}"] {
            assert!(EventId::new(text).unwrap_err().contains("control"), "{text:?}");
        }
        assert!(EventId::new("a b \u{2028} 😀").is_ok());
    }

    #[test]
    fn the_derived_object_id_is_the_start_of_the_hash() {
        let id = EventId::new("abc").unwrap();
        assert_eq!(derived_object_id(&id).to_hex(), "ba7816bf8f01cfea414140de");
    }
}
