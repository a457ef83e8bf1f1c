//! The admin endpoint: `POST /admin/dead-letters` sets one record aside as a dead letter. It
//! requires ADMIN_TOKEN as bearer token, and is off if that is not configured.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::Secret;
use service::http::Problem;
use service::plural::counted;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use crate::partition::progress::PartitionView;
use crate::partition::queue::{SetAsideReply, SetAsideRequest};
use crate::partition::workers::Workers;

const MAX_BODY_BYTES: usize = 64 * 1024;
/// Equals the limit of the dead-letter header that contains the reason.
const MAX_REASON_BYTES: usize = 1024;
/// How long a request waits until the dead letter is written.
const REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of partitions that an error lists.
const MAX_LISTED_PARTITIONS: usize = 20;

/// The state of the endpoint.
pub struct Admin {
    pub token: Option<Secret>,
    pub workers: Arc<Workers>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAsideBody {
    topic: String,
    partition: i32,
    offset: i64,
    reason: String,
}

pub fn routes(admin: Admin) -> Router {
    Router::new().route("/admin/dead-letters", post(set_aside)).with_state(Arc::new(admin))
}

async fn set_aside(State(admin): State<Arc<Admin>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let response = async {
        admin.authenticate(&head.headers)?;
        let body = parse(body).await?;
        admin.set_aside(&body).await
    };
    response.await.map_or_else(|problem| problem.into_response(), |body| Json(body).into_response())
}

impl Admin {
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Box<Problem>> {
        let rejected = |detail: &str| Err(Box::new(Problem::new(StatusCode::FORBIDDEN, detail)));
        let Some(token) = &self.token else {
            return rejected("setting records aside is off: ADMIN_TOKEN is not set for this consumer");
        };
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| {
            let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest)
        });
        match given {
            Some(given) if bool::from(token.expose().as_bytes().ct_eq(given)) => Ok(()),
            Some(_) => rejected("the bearer token is not the ADMIN_TOKEN of this consumer"),
            None => rejected("no bearer token: send the ADMIN_TOKEN of this consumer in Authorization"),
        }
    }

    async fn set_aside(&self, body: &SetAsideBody) -> Result<Value, Box<Problem>> {
        let SetAsideBody { topic, partition, offset, reason } = body;
        let record = format!("{topic}/{partition}@{offset}");
        let not_found = |detail: String| Box::new(Problem::new(StatusCode::NOT_FOUND, detail));
        let unavailable = |detail: String| {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
            Box::new(problem.retryable(Duration::from_secs(1)))
        };
        let view = self.workers.views().into_iter().find(|view| {
            let progress = &view.progress;
            *progress.topic == **topic && progress.partition == *partition
        });
        let Some(view) = view else {
            let assigned = self.assigned_partitions();
            let detail =
                format!("{topic}/{partition} is not assigned to this consumer; assigned are: {assigned}");
            return Err(not_found(detail));
        };
        let (reply, received) = oneshot::channel();
        let request = SetAsideRequest { offset: *offset, reason: reason.clone(), reply };
        // If the worker has ended, the request and the sender of its reply are dropped.
        _ = view.set_aside.send(request);
        match tokio::time::timeout(REPLY_TIMEOUT, received).await {
            Ok(Ok(SetAsideReply::DeadLettered(position))) => Ok(json!({
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "reason": reason,
                "dead_letter": {
                    "topic": position.topic,
                    "partition": position.partition,
                    "offset": position.offset,
                },
            })),
            Ok(Ok(SetAsideReply::NotInBatch)) => Err(not_found(format!(
                "{record} is not an unfinished record of the current batch: {}",
                state(&view, *offset)
            ))),
            Ok(Ok(SetAsideReply::InProgress)) => Err(unavailable(format!(
                "the dead letter of {record} is already being written: {}",
                wait_reason(&view)
            ))),
            Ok(Err(_)) => {
                Err(unavailable(format!("{topic}/{partition} is moving to another consumer: retry")))
            }
            Err(_) => Err(unavailable(format!(
                "{record} will be set aside once its dead letter is written: {}",
                wait_reason(&view)
            ))),
        }
    }

    fn assigned_partitions(&self) -> String {
        let mut assigned = self.workers.assigned();
        assigned.sort();
        let listed = assigned.iter().take(MAX_LISTED_PARTITIONS);
        let listed = listed.map(|(topic, partition)| format!("{topic}/{partition}"));
        let listed = listed.collect::<Vec<_>>().join(", ");
        match assigned.len() {
            0 => "no partitions".into(),
            count if count > MAX_LISTED_PARTITIONS => {
                format!("{listed} and {} more", count - MAX_LISTED_PARTITIONS)
            }
            _ => listed,
        }
    }
}

async fn parse(body: Body) -> Result<SetAsideBody, Box<Problem>> {
    let invalid = |detail: String| Box::new(Problem::new(StatusCode::BAD_REQUEST, detail));
    let bytes = to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| {
        let detail = format!("the body cannot be read, or has more than {MAX_BODY_BYTES} bytes");
        Box::new(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
    })?;
    // serde would also accept a JSON array for the struct, so require an object first.
    let object: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("the body is not a JSON object: {error}")))?;
    let body: SetAsideBody = serde_json::from_value(Value::Object(object))
        .map_err(|error| invalid(format!("the body is not {{topic, partition, offset, reason}}: {error}")))?;
    if body.reason.trim().is_empty() || body.reason.len() > MAX_REASON_BYTES {
        return Err(invalid(format!("reason must have 1 to {MAX_REASON_BYTES} bytes")));
    }
    Ok(body)
}

/// The state of the partition, for a request whose record is not in the current batch.
fn state(view: &PartitionView, offset: i64) -> String {
    let progress = &view.progress;
    let position = progress.position();
    let batch = counted(progress.in_batch(), "record");
    let counts = format!("{batch} in the batch, {} queued", view.queue.len());
    match position {
        Some(position) if offset < position => {
            format!("it is finished, as are all records below offset {position}")
        }
        Some(position) => format!("the next offset to finish is {position}; {counts}"),
        None => counts,
    }
}

fn wait_reason(view: &PartitionView) -> String {
    view.progress.wait_reason().as_ref().map_or_else(|| "retry".into(), |reason| reason.text().to_owned())
}
