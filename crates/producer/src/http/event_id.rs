//! Event ids that do not come from the body: the header Idempotency-Key and generated ids.

use axum::http::HeaderMap;
use events::{EventId, Fault};
use uuid::Uuid;

use crate::http::head;

/// The header that can contain the id of an event.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The id in the header Idempotency-Key, if the request has one.
///
/// # Errors
/// The value is not a valid id, or the request has several values.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Fault> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter().map(|value| {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| "Id should be UTF-8".to_owned())?;
        EventId::new(head::unquoted(text)?)
    });
    let Some(key) = keys.next().transpose().map_err(key_violation)? else { return Ok(None) };
    if keys.all(|other| other.as_ref() == Ok(&key)) {
        Ok(Some(key))
    } else {
        Err(key_violation("Idempotency-Key should have one value, and has several"))
    }
}

/// A violation in the header Idempotency-Key.
pub fn key_violation(msg: impl Into<String>) -> Fault {
    head::violation("Idempotency-Key", msg)
}

/// Generates an id. Generated ids are ordered by time.
pub fn new_id() -> EventId {
    id_of(Uuid::now_v7())
}

/// The id that has the text of `uuid`.
#[expect(clippy::expect_used, reason = "36 printable characters are a valid id")]
pub fn id_of(uuid: Uuid) -> EventId {
    let text = &mut Uuid::encode_buffer();
    EventId::new(&*uuid.hyphenated().encode_lower(text)).expect("a UUID is a valid id")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn an_idempotency_key_is_an_id() {
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
        let id = idempotency_key(&with(IDEMPOTENCY_KEY, "order-7")).unwrap().unwrap();
        assert_eq!(id.as_str(), "order-7");
        let violation = idempotency_key(&with(IDEMPOTENCY_KEY, &"x".repeat(257))).unwrap_err();
        assert!(violation.to_string().starts_with("header.Idempotency-Key: "), "{violation}");
    }
}
