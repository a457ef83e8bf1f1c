//! Where an event comes from. A valid source is also a valid name of a collection.

use std::fmt;

use serde::Serialize;

use crate::fault::Breach;

const MAX_BYTES: usize = 64;

/// A source: `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`, and not starting with `system.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source(String);

impl Source {
    /// The source that `text` is, or why it is none.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        Self::judge(text.into()).map_err(|breach| breach.msg)
    }

    pub(crate) fn judge(text: String) -> Result<Self, Breach> {
        let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let goes_on_well = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !starts_well || !goes_on_well || text.len() > MAX_BYTES {
            let msg = "Source should match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
            return Err(Breach::new("string_pattern_mismatch", msg));
        }
        if text.starts_with("system.") {
            let msg = "Source should not start with system. (it names a collection)";
            return Err(Breach::new("string_pattern_mismatch", msg));
        }
        Ok(Self(text))
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
    use super::Source;

    #[test]
    fn names_of_collections_are_sources() {
        for text in ["adsbdb", "a", "9", "A.b_c-d", "system", "systems.x", &"a".repeat(64)] {
            assert_eq!(Source::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for text in ["", ".a", "-a", "_a", "a b", "a/b", "a$", "é", "a\n", "system.x", &"a".repeat(65)] {
            assert!(Source::new(text).is_err(), "{text:?}");
        }
    }
}
