//! `POST /ingest/batch`.

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::ApiError;
use crate::openapi::errors::batch_errors;
use crate::openapi::operation::Operation;
use crate::openapi::schemas::{count, errors, id, named, object};

/// Documents `POST /ingest/batch`.
pub fn ingest_batch(operation: Operation, config: &Config) -> Operation {
    let event = json!({"source": "manual", "payload": {"value": 42}});
    let content = json!({
        "application/json": {
            "schema": {"type": "array", "minItems": 1, "items": named("Event")},
            "example": [event],
        },
        "application/x-ndjson": {
            "schema": {"type": "array", "minItems": 1, "items": named("Event"), "description": "One event per line."},
            "example": [event],
        },
    });
    let about = format!(
        "A JSON array or NDJSON, according to Content-Type. Events are sent while the body arrives, and a rejected \
         event does not affect the others. Each event has at most {} bytes. The results have the order of the events; \
         an error of the body itself is the last result. The status is 202 if all events were accepted, and 207 if \
         some were. If none was, it is the status of all results, or 207 if they differ.",
        config.max_payload_bytes
    );
    operation
        .named("events", "ingestBatch")
        .about("Accepts many events", &about)
        .traced()
        .compressible()
        .request_body(json!({"required": true, "content": content}))
        .response(202, "All events are in the topic", "application/json", response(&[accepted(0)]))
        .response(207, "Some events were rejected", "application/json", response(&[accepted(0), rejected(1)]))
        .error(ApiError::UnexpectedIdempotencyKey)
        .errors(batch_errors(config))
}

fn response(results: &[Value]) -> Value {
    json!({"schema": named("BatchResults"), "example": example(results)})
}

fn example(results: &[Value]) -> Value {
    let accepted = results.iter().filter(|result| result["id"].is_string()).count();
    json!({"accepted": accepted, "rejected": results.len() - accepted, "results": results})
}

fn accepted(index: usize) -> Value {
    json!({"index": index, "status": 202, "id": "order-7", "partition": 5, "offset": 5 + index})
}

fn rejected(index: usize) -> Value {
    let msg = "Field required";
    json!({
        "index": index,
        "status": 422,
        "detail": format!("the request breaks a rule: body.source: {msg}"),
        "retryable": false,
        "errors": [{"loc": ["body", "source"], "msg": msg, "type": "missing"}],
    })
}

/// The properties of a response to a batch.
pub fn results() -> Value {
    let index = count("Position of the event in the body, from 0.");
    let accepted = json!({
        "index": index,
        "status": {"const": 202},
        "id": id("The event's id, or a generated id."),
        "partition": count("The partition of the record."),
        "offset": count("The offset of the record."),
    });
    let rejected = json!({
        "index": index,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "id": id("The event's id, if it has one."),
        "detail": {"type": "string", "minLength": 1},
        "errors": errors(),
        "retryable": {"type": "boolean"},
    });
    let result = json!({"anyOf": [object(&accepted, &[]), object(&rejected, &["id", "errors"])]});
    json!({
        "accepted": count("Number of results with 202."),
        "rejected": count("Number of other results."),
        "results": {"type": "array", "items": result},
    })
}
