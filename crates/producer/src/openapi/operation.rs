//! One operation of the document: a method at a path, what it takes, and everything that it may answer.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::refusals::Refusal;
use super::schemas::named;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::auth::overloaded;
use crate::http::body::CODINGS;

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Lower case, as the document has it.
    pub method: &'static str,
    /// With `{parameters}` as the router has them.
    pub path: &'static str,
    body: Value,
    answers: BTreeMap<u16, Value>,
    refusals: BTreeMap<u16, Vec<Refusal>>,
}

impl Operation {
    /// An operation of `tag`, named `id`.
    pub fn new(method: &'static str, path: &'static str, tag: &str, id: &str) -> Self {
        let body = json!({
            "operationId": id,
            "tags": [tag],
            "parameters": [
                header("X-Request-Id", "Names the request in the log and in the answer's `X-Request-Id`."),
            ],
        });
        Self { method, path, body, answers: BTreeMap::new(), refusals: BTreeMap::new() }
    }

    /// A line, and what else there is to say.
    pub fn about(mut self, summary: &str, description: &str) -> Self {
        self.body["summary"] = summary.into();
        if !description.is_empty() {
            self.body["description"] = description.into();
        }
        self
    }

    /// A parameter.
    pub fn parameter(mut self, parameter: Value) -> Self {
        if let Some(parameters) = self.body["parameters"].as_array_mut() {
            parameters.push(parameter);
        }
        self
    }

    /// What makes records: the trace goes on in them.
    pub fn traced(self) -> Self {
        self.parameter(header(
            "traceparent",
            "W3C trace context; goes on in the record's headers if it is valid.",
        ))
    }

    /// The body may be compressed.
    pub fn unpacked(self) -> Self {
        let codings = ["identity"].into_iter().chain(CODINGS.split(", "));
        self.parameter(json!({
            "name": "Content-Encoding",
            "in": "header",
            "description": "How the body is compressed. The limits are those of what it becomes; a window of zstd has at \
                most 8 MiB.",
            "schema": {"type": "string", "enum": codings.collect::<Vec<_>>()},
        }))
    }

    /// It needs a key where the producer has keys.
    pub fn guarded(mut self, config: &Config) -> Self {
        self.body["security"] = match config.entrance.api_keys {
            None => json!([{}, {"bearer": []}, {"apiKey": []}]),
            Some(_) => json!([{"bearer": []}, {"apiKey": []}]),
        };
        self.refused_by(Refusal::no_key())
    }

    /// It needs a place among the requests in flight.
    pub fn limited(self) -> Self {
        self.refused(overloaded())
    }

    /// The request's body.
    pub fn takes(mut self, body: Value) -> Self {
        self.body["requestBody"] = body;
        self
    }

    /// What it answers when all went well.
    pub fn answers(mut self, status: u16, description: &str, media_type: &str, content: Value) -> Self {
        let mut answer = json!({
            "description": description,
            "headers": {"X-Request-Id": request_id()},
        });
        answer["content"][media_type] = content;
        self.answers.insert(status, answer);
        self
    }

    /// An answer without a body.
    pub fn answers_nothing(mut self, status: u16, description: &str) -> Self {
        let answer = json!({"description": description, "headers": {"X-Request-Id": request_id()}});
        self.answers.insert(status, answer);
        self
    }

    /// A further header, or links, of the answer of `status`.
    pub fn with(mut self, status: u16, pointer: &str, name: &str, value: Value) -> Self {
        if let Some(answer) = self.answers.get_mut(&status) {
            answer[pointer][name] = value;
        }
        self
    }

    /// One way to be refused.
    pub fn refused(mut self, refusal: impl Into<Refusal>) -> Self {
        let refusal = refusal.into();
        self.refusals.entry(refusal.status()).or_default().push(refusal);
        self
    }

    /// Ways to be refused.
    pub fn refused_by<R: Into<Refusal>>(self, refusals: impl IntoIterator<Item = R>) -> Self {
        refusals.into_iter().fold(self, Self::refused)
    }

    /// As the document has it.
    pub fn into_json(mut self) -> Value {
        let head = [ApiError::Host("the request has no Host"), ApiError::TransferCoding];
        self = self.refused(Refusal::other_method()).refused_by(head);
        for (status, refusals) in std::mem::take(&mut self.refusals) {
            let refused = refusal_answer(status, &refusals);
            self.answers.insert(status, refused);
        }
        let answers = std::mem::take(&mut self.answers).into_iter();
        self.body["responses"] =
            answers.map(|(status, answer)| (status.to_string(), answer)).collect::<Map<_, _>>().into();
        self.body
    }
}

/// An optional header of the request. Any text will do: what is not valid is left out, not refused.
fn header(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
}

fn request_id() -> Value {
    json!({
        "description": "The request's own, or a new one.",
        "required": true,
        "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    })
}

/// The answer of a status, with an example for each way to get it.
fn refusal_answer(status: u16, refusals: &[Refusal]) -> Value {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut headers = json!({"X-Request-Id": request_id()});
    for (name, header) in refusals.iter().flat_map(|refusal| refusal.headers(refusals)) {
        headers[name] = header;
    }
    let examples: Map<String, Value> =
        refusals.iter().map(|refusal| (refusal.name.clone(), json!({"value": refusal.body()}))).collect();
    // The schema of a batch has those of the others in it.
    let schemas: Vec<&str> = refusals.iter().map(|refusal| refusal.schema).collect();
    let schema = schemas.iter().find(|schema| **schema == "BatchProblem").or(schemas.first());
    json!({
        "description": title.unwrap_or("Refused"),
        "headers": headers,
        "content": {
            "application/problem+json": {
                "schema": schema.map(|name| named(name)),
                "examples": examples,
            },
        },
    })
}
