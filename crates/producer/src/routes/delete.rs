//! `DELETE /ingest/{source}/{id}`: an event that deletes the document of the id.

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use events::{EventId, Loc, Millis, NewEvent, Payload, Violation};
use sources::Source;

use crate::error::ApiError;
use crate::http::headers::IDEMPOTENCY_KEY;
use crate::http::middleware::discard_body;
use crate::http::path::{event_id, percent_decoded};
use crate::routes::ingest::{Accepted, publish};
use crate::routes::source::source_of;
use crate::state::{Admission, AppState, Permit};
use crate::traces::traceparent;

/// The handler in the router. [`handle`] serves the requests, because an id may be `batch` or
/// `poll`.
pub async fn unrouted() -> ApiError {
    ApiError::SourceNotFound
}

/// Sends the event of a delete. The body is ignored.
pub async fn handle(
    state: &AppState,
    admission: Admission,
    _permit: Option<Permit>,
    request: Request,
) -> Response {
    let source = source_of(state, &request);
    let (parts, body) = request.into_parts();
    let (_, ended) = discard_body(&parts.headers, body).await;
    let deleted = async {
        let source = source?;
        if source.delete.is_none() {
            return Err(ApiError::OtherEndpoint(format!(
                "the source {} takes no deletes: add `delete: {{}}` to it in the sources file",
                source.name
            )));
        }
        if parts.headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(ApiError::UnexpectedIdempotencyKey);
        }
        let raw_id = parts.uri.path().split('/').nth(3).unwrap_or_default();
        let (event, id) = event_of(source, raw_id, parts.uri.query().unwrap_or_default())?;
        if !admission.granted() {
            return Err(ApiError::shutting_down(Some(id)));
        }
        publish(state, event, id, traceparent(&parts.headers)).await
    };
    let mut response = deleted.await.map_or_else(IntoResponse::into_response, Accepted::into_response);
    if !ended {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The event of a delete, and its id.
fn event_of(source: &Source, raw_id: &str, query: &str) -> Result<(NewEvent, EventId), ApiError> {
    let mut violations = Vec::new();
    let id = id_of(raw_id).map_err(|violation| violations.push(violation)).ok();
    let mut timestamp = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decoded(name).unwrap_or_default();
        if name != "timestamp" || timestamp.is_some() {
            let (kind, msg) = match name.as_str() {
                "timestamp" => ("duplicate_field", "Field should be given only once"),
                _ => ("extra_forbidden", "Extra inputs are not permitted"),
            };
            violations.push(violation("query", &name, kind, msg));
            continue;
        }
        let read = percent_decoded(value).and_then(|text| timestamp_of(&text));
        match read {
            Ok(at) => timestamp = Some(at),
            Err(msg) => violations.push(violation("query", "timestamp", "timestamp", &msg)),
        }
    }
    match id {
        Some(id) if violations.is_empty() => {
            let (source, payload) = (source.name.clone(), Payload::of_delete());
            Ok((NewEvent { id: None, timestamp, source, payload }, id))
        }
        _ => Err(ApiError::Violations(violations)),
    }
}

fn id_of(raw: &str) -> Result<EventId, Violation> {
    event_id(raw).map_err(|msg| violation("path", "id", "id", &msg))
}

/// A number or RFC 3339 text, as in the body of an event. A plus after the date is the space of a
/// form.
fn timestamp_of(text: &str) -> Result<Millis, String> {
    let spaced = match text.as_bytes().get(10) {
        Some(b'+') => text.replacen('+', " ", 1),
        _ => text.to_owned(),
    };
    let text = spaced.as_str();
    let is_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit())
        && serde_json::from_str::<serde_json::Number>(text).is_ok();
    if is_number { events::timestamp_from_json(text) } else { events::timestamp_from_text(text) }
}

fn violation(part: &str, name: &str, kind: &'static str, msg: &str) -> Violation {
    Violation { loc: vec![Loc::Name(part.into()), Loc::Name(name.into())], msg: msg.to_owned(), kind }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sources::Sources;

    use super::*;

    fn event(id: &str, query: &str) -> Result<(NewEvent, EventId), ApiError> {
        let text = "sources: {orders: {push: {}, event: {id: /no}, delete: {}}}";
        let sources = Sources::parse("s", text, Path::new(""), &|_| None).expect("no faults");
        event_of(sources.get("orders").expect("a source"), id, query)
    }

    #[test]
    fn the_id_is_decoded_and_the_timestamp_is_as_in_an_event() {
        for (raw, id) in
            [("DE-1", "DE-1"), ("a%2Fb", "a/b"), ("%C3%A9%25", "é%"), ("a+b", "a+b"), ("poll", "poll")]
        {
            assert_eq!(event(raw, "").expect("an event").1.as_str(), id);
        }
        for (query, ms) in [
            ("timestamp=1795898300", Some(1_795_898_300_000)),
            ("timestamp=1795898300456&", Some(1_795_898_300_456)),
            ("timestamp=1970-01-01T01:00:01.5%2B01:00", Some(1500)),
            ("timestamp=1970-01-01T01:00:01.5+01:00", Some(1500)),
            ("timestamp=1970-01-01+01:00:01.5%2B01:00", Some(1500)),
            ("timestamp=1970-01-01%2001:00:01.5+01:00", Some(1500)),
            ("timestamp=253402300799999", Some(253_402_300_799_999)),
            ("", None),
        ] {
            let (event, _) = event("a", query).expect("an event");
            assert!(event.payload.is_delete());
            assert_eq!(event.timestamp.map(Millis::get), ms, "{query}");
        }
    }

    #[test]
    fn all_violations_of_a_delete_are_reported() {
        let violations = |id, query| match event(id, query) {
            Err(ApiError::Violations(violations)) => {
                violations.iter().map(|violation| violation.kind).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        let long = "a".repeat(257);
        for id in ["%", "%2", "%zz", "%ff", "%00", &long] {
            assert_eq!(violations(id, ""), ["id"], "{id}");
        }
        for (query, kinds) in [
            ("timestamp=", &["timestamp"][..]),
            ("timestamp=soon", &["timestamp"]),
            ("timestamp=-1", &["timestamp"]),
            ("timestamp=1e99", &["timestamp"]),
            // After the year 9999.
            ("timestamp=253402300800000", &["timestamp"]),
            ("timestamp=true", &["timestamp"]),
            ("timestamp=%ff", &["timestamp"]),
            // A plus that a client decoded as a space.
            ("timestamp=2026-11-28T22:00:00%2002:00", &["timestamp"]),
            ("timestamp=1&timestamp=2&at=3", &["duplicate_field", "extra_forbidden"]),
        ] {
            assert_eq!(violations("a", query), kinds, "{query}");
        }
        assert_eq!(violations("%", "at=1"), ["id", "extra_forbidden"]);
    }
}
