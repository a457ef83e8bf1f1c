//! Authentication. If API_KEYS is set, an endpoint with [`Auth::ApiKey`] requires one of its keys.
//! It is checked before anything else of the request.
//!
//! API_KEYS contains a name and the SHA-256 of each key. So the configuration does not contain the
//! keys. A name can have several keys, for example while a key is replaced.
//!
//! [`Auth::ApiKey`]: crate::http::middleware::Auth::ApiKey

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use events::Source;
use service::http::Problem;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::{ApiError, Rejection};
use crate::http::headers::{self, SeveralValues};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The error texts of the three ways to fail.
pub const NO_KEY: &str = "an API key is required: send `Authorization: Bearer KEY` or `X-API-Key: KEY`";
pub const SEVERAL_KEYS: &str = "the request has several values of Authorization or X-API-Key: send one key";
pub const UNKNOWN_KEY: &str = "the API key is unknown: send one of the producer's API_KEYS";

/// The name of the API key of a request. It is an extension of the response, for the access log.
#[derive(Debug, Clone)]
pub struct ApiKeyName(pub Arc<str>);

/// The only sources that an API key is for. It is an extension of the request.
#[derive(Debug, Clone)]
pub struct SourceScope(Arc<[Source]>);

impl SourceScope {
    /// Checks that the key is for `source`.
    ///
    /// # Errors
    /// 403.
    pub fn check(&self, source: &str) -> Result<(), ApiError> {
        if self.0.iter().any(|allowed| allowed.as_str() == source) {
            Ok(())
        } else {
            Err(ApiError::SourceForbidden(source.chars().take(MAX_NAME_CHARS).collect()))
        }
    }
}

/// Maximum length of a source's name in an error.
const MAX_NAME_CHARS: usize = 64;

/// Finds the name of the request's API key, and the sources that it is for. An unknown key in one header, such as the credentials
/// of a proxy, does not hide a known key in the other.
///
/// # Errors
/// The 401 response.
pub fn authenticate(
    keys: &ApiKeys,
    headers: &HeaderMap,
) -> Result<(ApiKeyName, Option<SourceScope>), Box<Response>> {
    let presented = presented_keys(headers).map_err(|_| unauthorized(SEVERAL_KEYS))?;
    let mut detail = NO_KEY;
    for key in presented {
        match keys.find(key) {
            Some(key) => return Ok((ApiKeyName(Arc::clone(&key.name)), key.scope.clone())),
            None => detail = UNKNOWN_KEY,
        }
    }
    Err(unauthorized(detail))
}

/// The keys in the headers of a request.
fn presented_keys(headers: &HeaderMap) -> Result<impl Iterator<Item = &[u8]>, SeveralValues> {
    let bearer = headers::single_value(headers, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    let own = headers::single_value(headers, &X_API_KEY)?.map(|value| value.as_bytes().trim_ascii());
    Ok(bearer.into_iter().chain(own))
}

fn unauthorized(detail: &str) -> Box<Response> {
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    let challenge = HeaderValue::from_static("Bearer realm=\"slipstream\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response.extensions_mut().insert(Rejection { reason: "unauthorized", failure: None });
    Box::new(response)
}

/// Each key costs one comparison per request.
const MAX_KEYS: usize = 1000;

/// The known keys. Debug output contains only their names.
#[derive(Clone)]
pub struct ApiKeys(Arc<[ApiKey]>);

#[derive(Clone)]
struct ApiKey {
    name: Arc<str>,
    hash: [u8; 32],
    /// `None` if the key is for all sources.
    scope: Option<SourceScope>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.name)).finish()
    }
}

impl ApiKeys {
    /// Parses the variable: `name:sha256` or `name:sha256:source|source`, separated by commas or
    /// lines. Lines that begin with `#` are comments.
    ///
    /// # Errors
    /// An entry is no such pair, a key occurs twice, or there is no key. The error gives the number
    /// of the entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let entries = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|entry| !entry.is_empty());
        let mut keys: Vec<ApiKey> = Vec::new();
        for (number, entry) in (1..).zip(entries) {
            let (name, hash, scope) = parse_entry(entry).map_err(|why| format!("entry {number} {why}"))?;
            if let Some(other) = keys.iter().find(|known| known.hash == hash) {
                return Err(format!("entry {number} ({name}) has the same key as {}", other.name));
            }
            keys.push(ApiKey { name: name.into(), hash, scope });
        }
        match keys.len() {
            0 => Err("names no key".into()),
            1..=MAX_KEYS => Ok(Self(keys.into())),
            _ => Err(format!("names more than {MAX_KEYS} keys")),
        }
    }

    /// Whether a key is only for some sources.
    pub fn has_scopes(&self) -> bool {
        self.0.iter().any(|key| key.scope.is_some())
    }

    #[cfg(test)]
    fn name_of(&self, key: &[u8]) -> Option<&Arc<str>> {
        self.find(key).map(|key| &key.name)
    }

    /// The entry of `key`. The duration depends neither on the key nor on its position in the list.
    fn find(&self, key: &[u8]) -> Option<&ApiKey> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let (mut found, mut position) = (Choice::from(0), 0_u32);
        for (index, known) in (0_u32..).zip(self.0.iter()) {
            let same = known.hash.ct_eq(&hash);
            position.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found).then(|| self.0.get(position as usize)).flatten()
    }
}

fn parse_entry(entry: &str) -> Result<(&str, [u8; 32], Option<SourceScope>), &'static str> {
    let (name, rest) = entry.split_once(':').ok_or("is not name:sha256")?;
    let (hash, sources) = rest.split_once(':').map_or((rest, None), |(hash, sources)| (hash, Some(sources)));
    let (name, hash) = (name.trim(), hash.trim());
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !(1..=64).contains(&name.len()) || !name.chars().all(valid) {
        return Err("has no name of 1 to 64 letters, digits, '.', '_' or '-'");
    }
    let hash = parse_hex(hash).ok_or("has no SHA-256 of 64 hexadecimal digits after its name")?;
    let scope = |sources: &str| {
        let sources: Result<Arc<[Source]>, _> =
            sources.split('|').map(|name| Source::new(name.trim())).collect();
        sources.map(SourceScope).map_err(|_| "has no sources, separated by |, after its SHA-256")
    };
    Ok((name, hash, sources.map(scope).transpose()?))
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
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

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        let found = |pairs| -> Vec<Vec<u8>> {
            presented_keys(&headers(pairs)).unwrap().map(<[u8]>::to_vec).collect()
        };
        assert!(found(&[]).is_empty());
        assert!(found(&[("authorization", "Basic YTpi")]).is_empty());
        assert_eq!(found(&[("authorization", "bearer  k")]), [b"k"]);
        assert_eq!(found(&[("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Basic YTpi"), ("x-api-key", "k")]), [b"k"]);
        assert_eq!(found(&[("authorization", "Bearer a"), ("x-api-key", "k")]), [b"a", b"k"]);
    }

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    /// `printf %s other | sha256sum`
    const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

    #[test]
    fn a_key_is_found_by_its_hash() {
        let text = format!("# of 2026\nplant-7: {SECRET}\n, lab:{}", OTHER.to_uppercase());
        let keys = ApiKeys::parse(&text).unwrap();
        let name_of = |key: &str| keys.name_of(key.as_bytes()).map(|name| name.to_string());
        assert_eq!(name_of("secret").as_deref(), Some("plant-7"));
        assert_eq!(name_of("other").as_deref(), Some("lab"));
        for wrong in ["", "Secret", "secret ", SECRET] {
            assert_eq!(name_of(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{keys:?}"), r#"["plant-7", "lab"]"#);
    }

    #[test]
    fn an_error_names_the_entry_and_contains_no_hash() {
        for (wrong, words) in [
            (" ,\n,", "no key"),
            ("secret", "entry 1 is not name:sha256"),
            (&format!("a:{SECRET},b:{}", &OTHER[1..]), "entry 2 has no SHA-256"),
            (&format!("a:{}", "g".repeat(64)), "entry 1 has no SHA-256"),
            (&format!("a b:{SECRET}"), "entry 1 has no name"),
            (&format!(":{SECRET}"), "entry 1 has no name"),
            (&format!("a:{SECRET},b:{SECRET}"), "entry 2 (b) has the same key as a"),
        ] {
            let error = ApiKeys::parse(wrong).unwrap_err();
            assert!(error.contains(words) && !error.contains(SECRET), "{error}");
        }
    }

    #[test]
    fn a_name_can_have_two_keys() {
        let keys = ApiKeys::parse(&format!("lab:{SECRET},lab:{OTHER}")).unwrap();
        assert_eq!(keys.name_of(b"secret"), keys.name_of(b"other"));
    }
}
