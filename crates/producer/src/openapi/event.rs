//! `POST /ingest`.

use serde_json::json;

use super::operation::Operation;
use super::refusals::{of_bodies, of_delivery};
use super::schemas::named;
use crate::config::Config;
use crate::error::ApiError;

/// A string in quotes, or text that does not begin with one.
const KEY: &str = r#"^(?:[!#-~][!-~]*|"(?:[ !#-\[\]-~]|\\["\\])+")$"#;

/// The operations.
pub fn operations(config: &Config) -> Vec<Operation> {
    let limit = config.max_payload_bytes;
    let about = format!(
        "202 is answered only after the broker's acknowledgement (all in-sync replicas). The body has at most {limit} \
         bytes; no Content-Type means JSON."
    );
    let id_missing = config.require_id.then_some(ApiError::IdMissing);
    vec![
        Operation::new("post", "/ingest", "events", "ingest")
            .about("Takes one event", &about)
            .traced()
            .unpacked()
            .parameter(json!({
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The event's id, where the body has none: a string in quotes (RFC 8941), or text without \
                    them; both are the same id. Another id in the body, or several keys that differ: 422.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": KEY},
            }))
            .guarded(config)
            .limited()
            .takes(json!({"required": true, "content": {"application/json": {"schema": named("Event")}}}))
            .answers(
                202,
                "In the topic, acknowledged",
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
            .refused_by(of_bodies(config))
            .refused_by(id_missing)
            .refused_by(of_delivery()),
    ]
}
