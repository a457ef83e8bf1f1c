//! API keys as an operator configures them: a name and the SHA-256 of the key, so that whoever reads the configuration
//! cannot send with it. A name may stand for several keys, as while one is being replaced by another.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// More are a user database, which this is not; each costs a comparison a request.
const MOST_KEYS: usize = 1000;

/// The keys that are let in.
#[derive(Clone)]
pub struct ApiKeys(Arc<[(Arc<str>, [u8; 32])]>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl ApiKeys {
    /// The parser of the variable: `name:sha256` pairs, separated by commas or lines; a line may be a `#` comment.
    ///
    /// # Errors
    /// An entry that is no such pair, by its number; no key at all; one key under two names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let entries = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty());
        let mut keys: Vec<(Arc<str>, [u8; 32])> = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            let (name, hash) = pair(entry).map_err(|why| format!("entry {number} {why}"))?;
            if let Some((other, _)) = keys.iter().find(|(_, known)| *known == hash) {
                return Err(format!("entry {number} ({name}) has the key of {other}"));
            }
            keys.push((name.into(), hash));
        }
        match keys.len() {
            0 => Err("names no key".into()),
            1..=MOST_KEYS => Ok(Self(keys.into())),
            _ => Err(format!("names more than {MOST_KEYS} keys")),
        }
    }

    /// The name of a key's holder. The time that this takes does not depend on the key or on which one it is.
    pub fn holder(&self, key: &[u8]) -> Option<&Arc<str>> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let (mut found, mut at) = (Choice::from(0), 0_u32);
        for (index, (_, known)) in (0_u32..).zip(self.0.iter()) {
            let same = known.ct_eq(&hash);
            at.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found).then(|| self.0.get(at as usize).map(|(name, _)| name)).flatten()
    }
}

fn pair(entry: &str) -> Result<(&str, [u8; 32]), &'static str> {
    let (name, hash) = entry.split_once(':').ok_or("is not name:sha256")?;
    let (name, hash) = (name.trim(), hash.trim());
    let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(1..=64).contains(&name.len()) || !name.chars().all(right) {
        return Err("has no name of 1 to 64 letters, digits, '.', '_' or '-'");
    }
    hex(hash).map(|hash| (name, hash)).ok_or("has no SHA-256 of 64 hexadecimal digits after its name")
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    /// `printf %s other | sha256sum`
    const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

    #[test]
    fn a_key_is_known_by_its_hash() {
        let text = format!("# of 2026\nplant-7: {SECRET}\n, lab:{}", OTHER.to_uppercase());
        let keys = ApiKeys::parse(&text).unwrap();
        let holder = |key: &str| keys.holder(key.as_bytes()).map(|name| name.to_string());
        assert_eq!(holder("secret").as_deref(), Some("plant-7"));
        assert_eq!(holder("other").as_deref(), Some("lab"));
        for wrong in ["", "Secret", "secret ", SECRET] {
            assert_eq!(holder(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{keys:?}"), r#"["plant-7", "lab"]"#);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_number_and_no_hash_is_shown() {
        for (wrong, words) in [
            (" ,\n,", "no key"),
            ("secret", "entry 1 is not name:sha256"),
            (&format!("a:{SECRET},b:{}", &OTHER[1..]), "entry 2 has no SHA-256"),
            (&format!("a:{}", "g".repeat(64)), "entry 1 has no SHA-256"),
            (&format!("a b:{SECRET}"), "entry 1 has no name"),
            (&format!(":{SECRET}"), "entry 1 has no name"),
            (&format!("a:{SECRET},b:{SECRET}"), "entry 2 (b) has the key of a"),
        ] {
            let said = ApiKeys::parse(wrong).unwrap_err();
            assert!(said.contains(words) && !said.contains(SECRET), "{said}");
        }
    }

    #[test]
    fn a_name_may_have_two_keys_while_one_replaces_the_other() {
        let keys = ApiKeys::parse(&format!("lab:{SECRET},lab:{OTHER}")).unwrap();
        assert_eq!(keys.holder(b"secret"), keys.holder(b"other"));
    }
}
