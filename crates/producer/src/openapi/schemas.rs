//! The shapes of bodies: as narrow as JSON Schema can say. What it cannot say (the payload's nesting, numbers that no
//! document holds, a field given twice) stands in the descriptions, and is a 422 all the same.

use serde_json::{Value, json};

use crate::config::Config;

/// No control characters, as an id has none.
const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";
const SOURCE: &str = r"^(?!system\.)(?!.*\.(?:system\.|\.|$))[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
/// RFC 3339 with an offset, from 1970 on, without days that are not in the calendar; a leap second in UTC only.
const MOMENT: &str = concat!(
    r"^(?:(?:19[7-9][0-9]|[2-9][0-9]{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    r"|(?:19(?:7[26]|8[048]|9[26])|[2-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[3579][26])00)-02-29)",
    r"[Tt ](?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?",
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])|23:59:60(?:\.[0-9]+)?(?:[Zz]|[+-]00:00))$",
);

/// All of them, by name.
pub fn all(config: &Config) -> Value {
    json!({
        "Event": event(config),
        "Accepted": accepted(json!({})),
        "AcceptedAircraft": accepted(json!({"payload": {"type": "object", "description": "The aircraft, as ADSBDB sent it."}})),
        "Problem": problem(json!({}), &[]),
        "InvalidProblem": problem(json!({"errors": errors()}), &["errors"]),
        "UnknownOutcomeProblem": problem(json!({}), &["id"]),
        "BatchResults": object(&super::batch::results(), &[]),
        "BatchProblem": {"anyOf": [
            named("Problem"),
            problem(super::batch::results(), &[]),
        ]},
        "PollJob": super::jobs::job(),
        "PollJobStarted": super::jobs::started(),
        "Health": super::own::health(),
    })
}

/// A reference to one of them.
pub fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object of exactly these properties, all required but `optional`.
pub fn object(properties: &Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flat_map(|properties| properties.keys());
    let required: Vec<&String> = names.filter(|name| !optional.contains(&name.as_str())).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// A whole number from 0 on.
pub fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

/// An id as answers show it.
pub fn id(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 256, "description": description})
}

fn event(config: &Config) -> Value {
    let mut source = json!({
        "type": "string",
        "pattern": SOURCE,
        "description": "Where it comes from; it names the collection. It does not start with `system.` or contain \
            `.system.`, does not end with a dot, and has no two dots in a row.",
    });
    if let Some(sources) = &config.accept_sources {
        source["enum"] = sources.iter().map(ToString::to_string).collect();
    }
    let properties = json!({
        "id": {
            "description": "What makes it the same event when it comes again; an integer is taken as its decimal text. \
                Absent: the header Idempotency-Key, else a UUIDv7.",
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 256, "pattern": PRINTABLE},
                {"type": "integer"},
                {"type": "null"},
            ],
        },
        "timestamp": {
            "description": "When it happened: epoch milliseconds, epoch seconds (below 10^12, fractions allowed), or RFC \
                3339 text with an offset; 1970 to 9999. Finer than a millisecond is cut. Second 60 is accepted \
                where it is 23:59:60 in UTC. Absent: now.",
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": 253_402_300_800_i64},
                {"type": "number", "minimum": 1_000_000_000_000_i64, "exclusiveMaximum": 253_402_300_800_000_i64},
                {"type": "string", "pattern": MOMENT},
                {"type": "null"},
            ],
        },
        "source": source,
        "payload": {
            "type": "object",
            "description": "What happened: passed through byte for byte. Nesting at most 90, no NUL in a key, no \
                unpaired surrogate, numbers within Decimal128, 16 MiB as a document.",
        },
    });
    let mut event = object(&properties, &["id", "timestamp"]);
    event["description"] =
        "No other fields: dropping data silently is a loss. A field given twice is refused.".into();
    event["examples"] = json!([
        {"source": "manual", "payload": {"message": "Hello", "value": 42}},
        {"id": "order-7", "timestamp": "2025-10-26T20:16:03.123Z", "source": "manual", "payload": {}},
    ]);
    event
}

fn accepted(more: Value) -> Value {
    let mut properties = json!({
        "id": id("The event's own, or the one that it was given."),
        "topic": {"type": "string"},
        "partition": count("Where it is in the topic."),
        "offset": count("Its offset there."),
        "status": {"const": "enqueued"},
        "timestamp": count("Epoch milliseconds."),
        "ingested_at": count("Epoch milliseconds; never the same twice for one id."),
    });
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
    }
    object(&properties, &[])
}

fn problem(more: Value, required: &[&str]) -> Value {
    let mut properties = json!({
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "minLength": 1, "description": "What was wrong, and what is right."},
        "retryable": {"type": "boolean", "description": "Whether the same request can succeed later."},
        "id": id("The event's id, generated or not, so that a retry can send it again."),
    });
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
    }
    let optional: &[&str] = if required.contains(&"id") { &[] } else { &["id"] };
    object(&properties, optional)
}

/// All faults of an event.
pub fn errors() -> Value {
    let step = json!({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]});
    let fault = json!({
        "loc": {"type": "array", "minItems": 1, "items": step, "description": "The way to the value."},
        "msg": {"type": "string", "minLength": 1},
        "type": {"type": "string", "pattern": "^[a-z_]+$", "description": "For programs."},
    });
    json!({"type": "array", "minItems": 1, "items": object(&fault, &[]), "description": "Every fault at once."})
}
