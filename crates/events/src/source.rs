//! The source of an event. A valid source is also a valid name of a collection.

use std::fmt;

use serde::Serialize;

use crate::validation::BrokenRule;

const MAX_BYTES: usize = 64;

/// A source: `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`, except names that MongoDB or its drivers reject
/// for a collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source(String);

impl Source {
    /// Validates `text` as a source. The error is the reason.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::validate(text.into()).map_err(|broken_rule| broken_rule.msg)
    }

    pub(crate) fn validate(text: String) -> Result<Self, BrokenRule> {
        let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let goes_on_well = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let violation = if !starts_well || !goes_on_well || text.len() > MAX_BYTES {
            "Source should match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
        } else if text.starts_with("system.") || text.contains(".system.") {
            "Source should not start with system. or contain .system. (MongoDB reserves such collections)"
        } else if text.ends_with('.') || text.contains("..") {
            "Source should not end with a dot or contain two in a row (drivers cannot open such collections)"
        } else {
            return Ok(Self(text));
        };
        Err(BrokenRule::new("string_pattern_mismatch", violation))
    }

    /// The source as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::Source;

    /// The server's check when a client creates a collection.
    fn server_rejects(name: &str) -> bool {
        name.is_empty()
            || name.starts_with('.')
            || name.contains(['$', '\0'])
            || name.starts_with("system.")
            || name.contains(".system.")
            // The longest database name, a dot, and the limit of a sharded collection's namespace.
            || 63 + 1 + name.len() > 235
    }

    /// The check of the drivers for Python and Node.js before they send a command.
    fn driver_rejects(name: &str) -> bool {
        name.is_empty()
            || name.starts_with('.')
            || name.ends_with('.')
            || name.contains("..")
            || name.contains(['$', '\0'])
    }

    fn matches_pattern(name: &str) -> bool {
        let (first, rest) = name.as_bytes().split_first().unwrap_or((&b'.', &[]));
        first.is_ascii_alphanumeric()
            && rest.len() < 64
            && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    }

    proptest! {
        #[test]
        fn a_source_is_accepted_only_if_its_collection_can_be_opened(
            parts in prop::collection::vec(
                select(vec![".", "..", "system", "System", "system.", "buckets", "a", "9", "_", "-", "$", "\0", "é", "abcdefghij"]),
                0..9,
            ),
        ) {
            let name = parts.concat();
            let right = matches_pattern(&name) && !server_rejects(&name) && !driver_rejects(&name);
            prop_assert_eq!(Source::new(name.clone()).is_ok(), right, "{:?}", name);
        }
    }

    #[test]
    fn names_of_collections_are_sources() {
        for text in [
            "adsbdb",
            "a",
            "9",
            "A.b_c-d",
            "system",
            "systems.x",
            "a.system",
            "a.systems.b",
            "a.System.b",
            "a_system.b",
            "admin",
            "local",
            &"a".repeat(64),
        ] {
            assert_eq!(Source::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_cannot_be_a_collection_are_rejected_with_a_reason() {
        for (text, reason) in [
            ("", "match ^"),
            (".a", "match ^"),
            ("-a", "match ^"),
            ("_a", "match ^"),
            ("a b", "match ^"),
            ("a/b", "match ^"),
            ("a$", "match ^"),
            ("a\0", "match ^"),
            ("é", "match ^"),
            ("a\n", "match ^"),
            (&"a".repeat(65), "match ^"),
            ("system.x", "contain .system."),
            ("system.buckets.a", "contain .system."),
            ("system.", "contain .system."),
            ("a.system.b", "contain .system."),
            ("a.system.", "contain .system."),
            ("a.system.buckets.b", "contain .system."),
            ("a.", "end with a dot"),
            ("a..b", "two in a row"),
            ("a..", "two in a row"),
        ] {
            let why = Source::new(text).unwrap_err();
            assert!(why.contains(reason), "{text:?}: {why}");
        }
    }
}
