//! `POST /ingest/batch`.

use serde_json::{Value, json};

use super::operation::Operation;
use super::refusals::of_batches;
use super::schemas::{count, errors, id, named, object};
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
            "schema": {"type": "array", "minItems": 1, "items": named("Event")},
            "example": [event],
        },
        "application/x-ndjson": {
            "schema": {"type": "array", "minItems": 1, "items": named("Event"), "description": "Each on a line of its own."},
            "example": [event],
        },
    });
    let about = format!(
        "A JSON array or NDJSON, whichever Content-Type says. Events are sent while the body still arrives, and one bad \
         event harms no other. Each event has at most {} bytes. The results are in the order of the events; what broke \
         the body itself is the last result. The status is 202 if all were accepted, 207 once any was and something \
         failed, else the one that all results share (207 if they differ).",
        config.max_payload_bytes
    );
    Operation::new("post", "/ingest/batch", "events", "ingestBatch")
        .about("Takes many events", &about)
        .traced()
        .unpacked()
        .guarded(config)
        .limited()
        .takes(json!({"required": true, "content": content}))
        .answers(202, "All are in the topic, acknowledged", "application/json", answer(&[accepted(0)]))
        .answers(207, "Some failed", "application/json", answer(&[accepted(0), refused(1)]))
        .refused(ApiError::KeyNotTaken)
        .refused_by(of_batches(config))
}

fn answer(results: &[Value]) -> Value {
    json!({"schema": named("BatchResults"), "example": answer_of(results)})
}

fn answer_of(results: &[Value]) -> Value {
    let accepted = results.iter().filter(|result| result["id"].is_string()).count();
    json!({"accepted": accepted, "rejected": results.len() - accepted, "results": results})
}

fn accepted(index: usize) -> Value {
    json!({"index": index, "status": 202, "id": "order-7", "partition": 5, "offset": 5 + index})
}

fn refused(index: usize) -> Value {
    let words = "Field required";
    json!({
        "index": index,
        "status": 422,
        "detail": format!("the request breaks a rule: body.source: {words}"),
        "retryable": false,
        "errors": [{"loc": ["body", "source"], "msg": words, "type": "missing"}],
    })
}

/// What tells of each event.
pub fn results() -> Value {
    let index = count("The event's place in the body, from 0.");
    let accepted = json!({
        "index": index,
        "status": {"const": 202},
        "id": id("The event's own, or the one that it was given."),
        "partition": count("Where it is in the topic."),
        "offset": count("Its offset there."),
    });
    let refused = json!({
        "index": index,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "id": id("The event's id, where it had or was given one."),
        "detail": {"type": "string", "minLength": 1},
        "errors": errors(),
        "retryable": {"type": "boolean"},
    });
    let result = json!({"anyOf": [object(&accepted, &[]), object(&refused, &["id", "errors"])]});
    json!({
        "accepted": count("Results of 202."),
        "rejected": count("Other results."),
        "results": {"type": "array", "items": result},
    })
}
