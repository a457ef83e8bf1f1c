//! `POST /ingest`.

use serde_json::json;

use crate::config::Config;
use crate::error::ApiError;
use crate::openapi::errors::{body_errors, delivery_errors};
use crate::openapi::operation::Operation;
use crate::openapi::schemas::named;

/// A quoted string, or text that does not begin with a quote.
const KEY_PATTERN: &str = r#"^(?:[!#-~][!-~]*|"(?:[ !#-\[\]-~]|\\["\\])+")$"#;

/// Documents `POST /ingest`.
pub fn ingest(operation: Operation, config: &Config) -> Operation {
    let about = format!(
        "202 is returned only after Kafka acknowledged the record on all in-sync replicas. The body has at most {} \
         bytes. A request without Content-Type is JSON.",
        config.max_payload_bytes
    );
    let missing_id = config.require_id.then_some(ApiError::MissingId);
    operation
            .named("events", "ingest")
            .about("Accepts one event", &about)
            .traced()
            .compressible()
            .parameter(json!({
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The event's id, if the body has none: a quoted string (RFC 8941), or the same text without \
                    quotes. A different id in the body, or several different keys, are a 422.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": KEY_PATTERN},
            }))
            .request_body(json!({"required": true, "content": {"application/json": {"schema": named("Event")}}}))
            .response(
                202,
                "The event is in the topic",
                "application/json",
                json!({
                    "schema": named("Accepted"),
                    "example": {
                        "id": "01a20c8a-1fbb-76ce-9696-4511ccb46f6a",
                        "topic": config.topic.name,
                        "partition": 5,
                        "offset": 5,
                        "status": "enqueued",
                        "timestamp": 1_795_506_708_411_i64,
                        "ingested_at": 1_795_506_708_411_i64,
                    },
                }),
            )
            .errors(body_errors(config))
            .errors(missing_id)
            .errors(delivery_errors())
}
