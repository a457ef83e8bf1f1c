//! `POST /ingest/batch`.

use serde_json::{Value, json};

use super::operation::Operation;
use super::refusals::{of_bodies, of_delivery};
use super::schemas::{count, id, named, object};
use crate::config::Config;
use crate::error::ApiError;

/// The operations.
pub fn operations(config: &Config) -> Vec<Operation> {
    vec![batch(config)]
}

/// The one that this page describes.
pub fn batch(config: &Config) -> Operation {
    let event = json!({"source": "manual", "payload": {"value": 42}});
    let content = json!({
        "application/json": {
            "schema": {"type": "array", "items": named("Event")},
            "example": [event],
        },
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "One event a line."},
            "example": format!("{event}\n{event}\n"),
        },
    });
    let about = format!(
        "A JSON array or NDJSON, whichever Content-Type says. Events are sent while the body still arrives, and one bad \
         event harms no other. Each event has at most {} bytes. The results are in the order of the events; what broke \
         the body itself is the last result. The status is 202 if all were accepted, 207 once any was and something \
         failed, else the one that all results share (207 if they differ).",
        config.max_payload_bytes
    );
    let mut operation = Operation::new("post", "/ingest/batch", "events", "ingestBatch")
        .about("Takes many events", &about)
        .traced()
        .guarded()
        .takes(json!({"required": true, "content": content}))
        .answers(202, "All are in the topic, acknowledged", "application/json", answer(&[accepted(0)]))
        .answers(207, "Some failed", "application/json", answer(&[accepted(0), refused(1, 422)]))
        .refused(ApiError::KeyNotTaken)
        .refused_by(of_bodies(config))
        .refused_by(of_delivery());
    for status in [400, 408, 413, 422, 503, 504] {
        let content = answer(&[refused(0, status)]);
        operation =
            operation.answers(status, "All failed, or the body was refused", "application/json", content);
    }
    operation
}

fn answer(results: &[Value]) -> Value {
    let accepted = results.iter().filter(|result| result["id"].is_string()).count();
    let example = json!({"accepted": accepted, "rejected": results.len() - accepted, "results": results});
    json!({"schema": named("BatchResults"), "example": example})
}

fn accepted(index: usize) -> Value {
    json!({"index": index, "status": 202, "id": "order-7", "partition": 5, "offset": 5 + index})
}

fn refused(index: usize, status: u16) -> Value {
    let detail = "the request breaks a rule: body.source: Field required";
    json!({"index": index, "status": status, "detail": detail, "retryable": matches!(status, 408 | 503 | 504)})
}

/// The schema of the answer.
pub fn results() -> Value {
    let index = count("The event's place in the body, from 0.");
    let accepted = json!({
        "index": index,
        "status": {"const": 202},
        "id": id("The event's own, or the one that it was given."),
        "partition": count("Where it is in the topic."),
        "offset": {"type": ["integer", "null"], "minimum": 0},
    });
    let refused = json!({
        "index": index,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "id": id("The event's id, where it had or was given one."),
        "detail": {"type": "string", "minLength": 1},
        "retryable": {"type": "boolean"},
    });
    let result = json!({"anyOf": [object(&accepted, &[]), object(&refused, &["id"])]});
    let properties = json!({
        "accepted": count("Results of 202."),
        "rejected": count("Other results."),
        "results": {"type": "array", "items": result},
    });
    object(&properties, &[])
}
