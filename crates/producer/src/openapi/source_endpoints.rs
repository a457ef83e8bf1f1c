//! The endpoints of the sources of the file, as copies of those that every producer has.

use axum::http::Method;
use events::{Loc, Violation};
use serde_json::{Map, Value, json};
use sources::{Pull, Records, Source, Upstream};

use super::{
    ErrorExample, aircraft_errors, batch_errors, complete, delivery_errors, examples, ingest_errors,
    job_errors, list_jobs_errors, start_job_errors,
};
use crate::config::{ADSBDB, Config};
use crate::error::ApiError;
use crate::http::middleware::{Auth, Endpoint, Events, Limit};
use crate::pull::error::example_errors;

/// An operation of a source: method, path below that of the source, and path of the original.
type Copy = (Method, &'static str, &'static str);

const POLL: [Copy; 4] = [
    (Method::GET, "/poll", "/ingest/adsbdb/poll"),
    (Method::POST, "/poll", "/ingest/adsbdb/poll"),
    (Method::GET, "/poll/{job_id}", "/ingest/adsbdb/poll/{job_id}"),
    (Method::DELETE, "/poll/{job_id}", "/ingest/adsbdb/poll/{job_id}"),
];

/// Adds the endpoints of all sources. `document` has those of every producer, without what
/// [`complete`] adds.
pub(super) fn add(document: &mut Value, config: &Config) {
    let Some(sources) = &config.sources else { return };
    let original = document["paths"].clone();
    for source in sources.iter().filter(|source| source.name.as_str() != ADSBDB) {
        let name = source.name.as_str();
        let tag = json!({"name": name, "description": source.description.as_deref().unwrap_or("A source")});
        if let Value::Array(tags) = &mut document["tags"] {
            tags.push(tag);
        }
        let component = format!("Record_{name}");
        let mut schema = source.schema.as_ref().map_or(json!({}), |schema| schema.document().clone());
        rebase(&mut schema, &format!("#/components/schemas/{component}"));
        if source.push {
            document["components"]["schemas"][&component] = schema;
            let reference = json!({"$ref": format!("#/components/schemas/{component}")});
            push(document, &original, source, &reference, config);
        }
        if source.delete.is_some() {
            delete(document, &original, source, config);
        }
        if let Some(pull) = &source.pull {
            fetch(document, &original, source, pull, config);
        }
    }
}

/// Copies an operation to the path of a source.
fn copy(
    document: &mut Value,
    original: &Value,
    (source, (method, path, from)): (&Source, &Copy),
    change: impl FnOnce(&mut Value),
    (errors, config): (Vec<ErrorExample>, &Config),
) {
    let lower = method.as_str().to_ascii_lowercase();
    // A delete is described like the event that it is.
    let of_original = if *from == "/ingest" { "post" } else { &*lower };
    let mut operation = original[*from][of_original].clone();
    remove_links(&mut operation);
    let id = operation["operationId"].as_str().unwrap_or_default().replace("Aircraft", "Source");
    operation["operationId"] = format!("{id}_{}", source.name).into();
    operation["tags"] = json!([source.name.as_str()]);
    change(&mut operation);
    let changes = *method == Method::POST || *from == "/ingest";
    let limit = if changes { Limit::InFlight } else { Limit::Connections };
    let endpoint =
        Endpoint { method: method.clone(), path: "", auth: Auth::ApiKey, limit, events: Events::None };
    complete(&mut operation, &endpoint, errors, config);
    document["paths"][format!("/ingest/{}{path}", source.name)][lower] = operation;
}

fn push(document: &mut Value, original: &Value, source: &Source, record: &Value, config: &Config) {
    let about = source.description.clone().unwrap_or_default();
    let topic = config.topic_of(source);
    let one = |operation: &mut Value| {
        operation["summary"] = format!("Accepts a record of {}", source.name).into();
        operation["description"] = format!(
            "{about}\n\nThe body is the record. 202 is returned only after Kafka acknowledged its event. It \
             has at most {} bytes. A 422 lists every fault, `loc` is the path in the body.",
            config.max_payload_bytes
        )
        .into();
        operation["requestBody"]["content"] = json!({"application/json": {"schema": record}});
        operation["responses"]["202"]["content"]["application/json"]["example"]["topic"] = topic.into();
    };
    let errors = ingest_errors(config);
    let to = (Method::POST, "", "/ingest");
    copy(document, original, (source, &to), one, (errors, config));
    let many = |operation: &mut Value| {
        operation["summary"] = format!("Accepts many records of {}", source.name).into();
        let list = json!({"schema": {"type": "array", "minItems": 1, "items": record}});
        operation["requestBody"]["content"] = json!({"application/json": list, "application/x-ndjson": list});
    };
    let to = (Method::POST, "/batch", "/ingest/batch");
    copy(document, original, (source, &to), many, (batch_errors(config), config));
}

/// The schema of a field of an event, in a place that cannot have null.
fn of_text(field: &Value) -> Value {
    let mut forms = field["anyOf"].as_array().cloned().unwrap_or_default();
    forms.retain(|form| form["type"] != "null");
    json!({"anyOf": forms})
}

fn delete(document: &mut Value, original: &Value, source: &Source, config: &Config) {
    let topic = config.topic_of(source);
    let event = &document["components"]["schemas"]["Event"]["properties"];
    let [id, timestamp] = ["id", "timestamp"].map(|field| of_text(&event[field]));
    let change = |operation: &mut Value| {
        operation["operationId"] = format!("deleteDocument_{}", source.name).into();
        operation["summary"] = format!("Deletes a document of {}", source.name).into();
        operation["description"] = "202 is returned only after Kafka acknowledged the event. The consumer deletes the \
            document unless an event with a newer timestamp is stored, and keeps older events out from then on."
            .into();
        if let Some(operation) = operation.as_object_mut() {
            operation.remove("requestBody");
        }
        operation["parameters"] = json!([
            {
                "name": "id",
                "in": "path",
                "required": true,
                "description": "The id of the event, percent-encoded.",
                "schema": id,
            },
            {
                "name": "timestamp",
                "in": "query",
                "description": "When the document was deleted: epoch seconds or milliseconds, or RFC 3339. If absent, now.",
                "schema": timestamp,
            },
        ]);
        operation["responses"]["202"]["content"]["application/json"]["example"]["topic"] = topic.into();
    };
    let violation = Violation {
        loc: vec![Loc::Name("query".into()), Loc::Name("timestamp".into())],
        msg: "Input should be a number or RFC 3339 text".into(),
        kind: "timestamp",
    };
    let own = [ApiError::UnexpectedIdempotencyKey, ApiError::Violations(vec![violation])];
    let errors = examples(own.into_iter().chain(delivery_errors()));
    let to = (Method::DELETE, "/{id}", "/ingest");
    copy(document, original, (source, &to), change, (errors, config));
}

fn fetch(document: &mut Value, original: &Value, source: &Source, pull: &Pull, config: &Config) {
    let name = source.name.as_str();
    let about = source.description.clone().unwrap_or_default();
    let results = fetch_results(document);
    let change = |operation: &mut Value| {
        operation["summary"] = format!("Fetches {name} now").into();
        operation["description"] = format!("{about}\n\nThe request has no body.").into();
        let Upstream::Http(api) = &pull.upstream else { return };
        let content = |schema: Value| json!({"application/json": {"schema": schema}});
        let unchanged = json!({
            "type": "object",
            "required": ["accepted", "not_modified", "rejected", "results"],
            "properties": {
                "accepted": {"const": 0},
                "rejected": {"const": 0},
                "results": {"type": "array", "maxItems": 0},
                "not_modified": {"const": true},
            },
        });
        operation["responses"]["200"] =
            json!({"description": "Nothing has changed", "content": content(unchanged)});
        if !matches!(api.records, Records::One(_)) || api.paging.is_some() {
            operation["responses"]["202"] = json!({"description": "All new records are in the topic", "content": content(results.clone())});
            operation["responses"]["207"] =
                json!({"description": "Some records were rejected", "content": content(results)});
        }
    };
    let errors = match &pull.upstream {
        Upstream::Adsbdb => aircraft_errors(config),
        Upstream::Http(_) => {
            let errors = [
                ApiError::UnexpectedIdempotencyKey,
                ApiError::unexpected_body(name),
                ApiError::shutting_down(None),
            ];
            let named =
                |(label, error): (&str, ApiError)| ErrorExample { name: label.into(), ..error.into() };
            let delivery =
                delivery_errors().into_iter().filter(|error| !matches!(error, ApiError::RecordTooLarge));
            examples(errors.into_iter().chain(delivery))
                .into_iter()
                .chain(example_errors(name).map(named))
                .collect()
        }
    };
    let to = (Method::POST, "", "/ingest/adsbdb");
    copy(document, original, (source, &to), change, (errors, config));
    for to in POLL {
        let errors = match (&to.0, to.1) {
            (&Method::POST, _) => start_job_errors(config),
            (_, "/poll") => list_jobs_errors(config),
            _ => job_errors(config),
        };
        let change = |operation: &mut Value| {
            if to.0 == Method::POST {
                start_job(operation, name, pull);
            }
        };
        copy(document, original, (source, &to), change, (errors, config));
    }
}

/// The schema of the results of a fetch.
fn fetch_results(document: &Value) -> Value {
    let mut schema = document["components"]["schemas"]["BatchResults"].clone();
    schema["properties"]["unchanged"] = json!({
        "type": "integer",
        "minimum": 0,
        "description": "Records that were sent or dead-lettered before, and have not changed.",
    });
    schema["properties"]["has_more"] = json!({
        "const": true,
        "description": "The API has more pages than `max_pages`, and the last page had new records.",
    });
    schema["properties"]["incomplete"] = json!({
        "type": "string",
        "description": "Why records are missing, which the next fetch sends.",
    });
    if let Value::Array(required) = &mut schema["required"] {
        required.push("unchanged".into());
    }
    schema
}

/// Describes the start of a poll job of a source.
fn start_job(operation: &mut Value, name: &str, pull: &Pull) {
    operation["description"] =
        "The job fetches the source on a schedule, in the background. Its calls do not \
                                overlap. The request has no other parameters and no body."
            .into();
    let path = format!("^/ingest/{}/poll/[0-9a-f-]{{36}}$", name.replace('.', "\\."));
    operation["responses"]["202"]["headers"]["Location"]["schema"]["pattern"] = path.into();
    let interval = pull.every.as_secs_f64();
    for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
        if parameter["name"] == "interval_sec" {
            parameter["schema"]["default"] = interval.into();
        }
    }
    operation["responses"]["202"]["content"]["application/json"]["example"]["interval_sec"] = interval.into();
}

/// Removes the links of responses, whose targets are other copies.
fn remove_links(operation: &mut Value) {
    for response in operation["responses"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Value::Object(response) = response {
            response.remove("links");
        }
    }
}

/// Changes the references within a schema to its place in the document.
fn rebase(schema: &mut Value, place: &str) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, place)),
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(reference)
                        if key == "$ref" && (reference == "#" || reference.starts_with("#/")) =>
                    {
                        *reference = format!("{place}{}", &reference[1..]);
                    }
                    value => rebase(value, place),
                }
            }
        }
        _ => {}
    }
}
