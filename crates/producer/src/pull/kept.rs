//! What a process keeps of each fetched source, in bounded memory: the hashes of the records that
//! it sent or dead-lettered, and the validators of the pages.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use url::Url;

/// Maximum number of hashes in one generation. All records of a fetch fit. A map has at most two
/// generations, about 15 MB.
const MAX_HASHES: usize = 128 * 1024;

/// A hash of 128 bits.
pub type Hash = [u8; 16];

/// The hash of some texts.
pub fn hash(texts: &[&str]) -> Hash {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update(text.len().to_le_bytes());
        digest.update(text.as_bytes());
    }
    let whole: [u8; 32] = digest.finalize().into();
    let mut half = Hash::default();
    half.copy_from_slice(&whole[..16]);
    half
}

/// A map that forgets the entries that were not used for the longest time.
#[derive(Debug, Default)]
pub struct Hashes {
    current: HashMap<Hash, Hash>,
    previous: HashMap<Hash, Hash>,
}

impl Hashes {
    /// Whether `key` has this value. Such an entry is kept longer.
    pub fn has(&mut self, key: &Hash, value: &Hash) -> bool {
        if self.current.get(key) == Some(value) {
            return true;
        }
        let found = !self.current.contains_key(key) && self.previous.get(key) == Some(value);
        if found {
            self.insert(*key, *value);
        }
        found
    }

    /// Removes the value of `key`.
    pub fn forget(&mut self, key: &Hash) {
        self.current.remove(key);
        self.previous.remove(key);
    }

    pub fn insert(&mut self, key: Hash, value: Hash) {
        if self.current.len() >= MAX_HASHES && !self.current.contains_key(&key) {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(key, value);
    }
}

/// The validators of a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// A page whose records all have a delivery report or a dead letter.
#[derive(Debug, Clone)]
pub struct KeptPage {
    pub validators: Validators,
    pub records: usize,
    /// The page after it.
    pub next: Option<Url>,
}

/// What is kept of one source.
#[derive(Debug, Default)]
pub struct Kept {
    /// The records that were sent: the hash of the id, and that of the record.
    pub sent: Hashes,
    /// The records of which no event can be made, and which were dead-lettered: their hashes.
    pub dead_lettered: Hashes,
    /// The records whose events are larger than the limit of the broker: their hashes.
    pub too_large: Hashes,
    /// The pages of the last complete fetch, by URL.
    pub pages: HashMap<String, KeptPage>,
}

impl Kept {
    /// The records that were dead-lettered for one of the two reasons.
    pub fn lettered(&mut self, is_too_large: bool) -> &mut Hashes {
        if is_too_large { &mut self.too_large } else { &mut self.dead_lettered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_bounded_and_used_entries_stay() {
        let mut hashes = Hashes::default();
        let key = |number: usize| hash(&[&number.to_string()]);
        hashes.insert(key(0), key(1));
        for number in 0..MAX_HASHES * 5 {
            hashes.insert(key(number + 10), key(number));
            assert!(number % 1000 != 0 || hashes.has(&key(0), &key(1)), "{number}");
        }
        assert!(hashes.current.len() + hashes.previous.len() <= MAX_HASHES * 2);
        assert!(!hashes.has(&key(10), &key(0)), "it was not used");
        hashes.insert(key(0), key(2));
        assert!(!hashes.has(&key(0), &key(1)) && hashes.has(&key(0), &key(2)));
        hashes.forget(&key(0));
        assert!(!hashes.has(&key(0), &key(2)), "not in the previous generation either");
    }

    #[test]
    fn the_border_between_texts_is_part_of_a_hash() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
