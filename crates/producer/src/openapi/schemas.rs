//! The schemas of bodies, as narrow as JSON Schema allows. Further rules, such as the nesting of
//! the payload, are in the descriptions. Their violation is a 422, too.

use serde_json::{Value, json};

use crate::config::Config;

/// An id has no control characters.
const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f]+$";
const SOURCE: &str = r"^(?!system\.)(?!.*\.(?:system\.|\.|$))[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
/// RFC 3339 with an offset, from 1970 on. It allows only days of the calendar, and a leap second
/// only at the end of a day in UTC.
const TIMESTAMP: &str = concat!(
    r"^(?:(?:19[7-9][0-9]|[2-9][0-9]{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    r"|(?:19(?:7[26]|8[048]|9[26])|[2-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[3579][26])00)-02-29)",
    r"[Tt ](?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?",
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])|23:59:60(?:\.[0-9]+)?(?:[Zz]|[+-]00:00))$",
);

/// A reference to a schema of the document.
pub fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object with exactly these properties. All are required, except `optional` ones.
pub fn object(properties: &Value, optional: &[&str]) -> Value {
    let names = properties.as_object().into_iter().flat_map(|properties| properties.keys());
    let required: Vec<&String> = names.filter(|name| !optional.contains(&name.as_str())).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// An integer that is not negative.
pub fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

/// An id in a response.
pub fn id(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 256, "description": description})
}

/// The schema of an event.
pub fn event(config: &Config) -> Value {
    let mut source = json!({
        "type": "string",
        "pattern": SOURCE,
        "description": "The origin of the event, and the name of the collection. It does not start with `system.` or \
            contain `.system.`, does not end with a dot, and has no two dots in a row.",
    });
    if let Some(sources) = &config.accept_sources {
        source["enum"] = sources.iter().map(ToString::to_string).collect();
    }
    let properties = json!({
        "id": {
            "description": "Identifies the event. An integer becomes its decimal text. If it is absent, the id is the header \
                Idempotency-Key, else a UUIDv7.",
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 256, "pattern": PRINTABLE},
                {"type": "integer"},
                {"type": "null"},
            ],
        },
        "timestamp": {
            "description": "Time of the event, from 1970 to 9999: epoch milliseconds, epoch seconds (below 10^12, fractions \
                allowed), or RFC 3339 text with an offset. It is truncated to milliseconds. Second 60 is valid \
                only as 23:59:60 in UTC. If it is absent, the time is now.",
            "anyOf": [
                {"type": "number", "minimum": 0, "exclusiveMaximum": 253_402_300_800_i64},
                {"type": "number", "minimum": 1_000_000_000_000_i64, "exclusiveMaximum": 253_402_300_800_000_i64},
                {"type": "string", "pattern": TIMESTAMP},
                {"type": "null"},
            ],
        },
        "source": source,
        "payload": {
            "type": "object",
            "description": "The content of the event, stored unchanged. It has at most 90 levels of nesting, no NUL in a \
                key, no unpaired surrogate, only numbers that Decimal128 represents, and at most 16 MiB as \
                a document.",
        },
    });
    let mut event = object(&properties, &["id", "timestamp"]);
    event["description"] = "Other fields are rejected, and so is a field that occurs twice.".into();
    event["examples"] = json!([
        {"source": "manual", "payload": {"message": "Hello", "value": 42}},
        {"id": "order-7", "timestamp": "2025-10-26T20:16:03.123Z", "source": "manual", "payload": {}},
    ]);
    event
}

/// The schema of a 202 response, with further properties.
pub fn accepted(more: Value) -> Value {
    let mut properties = json!({
        "id": id("The event's id, or a generated id."),
        "topic": {"type": "string"},
        "partition": count("The partition of the record."),
        "offset": count("The offset of the record."),
        "status": {"const": "enqueued"},
        "timestamp": count("Epoch milliseconds."),
        "ingested_at": count("Epoch milliseconds, different for each event of an id."),
    });
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
    }
    object(&properties, &[])
}

/// The schema of an error response, with further properties.
pub fn problem(more: Value, required: &[&str]) -> Value {
    let mut properties = json!({
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string", "description": "The text of the status."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "minLength": 1, "description": "What is wrong, and what is right."},
        "retryable": {"type": "boolean", "description": "Whether a retry of the same request can succeed."},
        "id": id("The event's id, which may be generated. A retry should use it."),
    });
    if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
        properties.extend(more);
    }
    let optional: &[&str] = if required.contains(&"id") { &[] } else { &["id"] };
    object(&properties, optional)
}

/// The schema of the violations of an event.
pub fn errors() -> Value {
    let step = json!({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]});
    let violation = json!({
        "loc": {"type": "array", "minItems": 1, "items": step, "description": "The path of the value."},
        "msg": {"type": "string", "minLength": 1},
        "type": {"type": "string", "pattern": "^[a-z_]+$", "description": "The type of the violation."},
    });
    json!({"type": "array", "minItems": 1, "items": object(&violation, &[]), "description": "All violations."})
}
