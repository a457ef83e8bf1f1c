//! What an operator can ask of a running consumer: `POST /admin/dead-letters` sets one record aside. Only for those who
//! know ADMIN_TOKEN; without one in the configuration, for nobody.

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
use service::problem::Problem;
use subtle::ConstantTimeEq;

use crate::partition::progress::Waits;
use crate::partition::set_aside::Reply;
use crate::partition::view::View;
use crate::partition::workers::Lanes;

const BODY_BYTES: usize = 64 * 1024;
/// As long as the header of the dead letter that holds it.
const REASON_BYTES: usize = 1024;
/// How long a request waits until the dead letter is written.
const REPLY_LIMIT: Duration = Duration::from_secs(15);
/// Partitions that are named one by one.
const NAMED: usize = 20;

/// What the requests need.
pub struct Admin {
    /// Those who know it are let in.
    pub token: Option<Secret>,
    /// The lanes of this consumer's partitions.
    pub lanes: Arc<Lanes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    topic: String,
    partition: i32,
    offset: i64,
    reason: String,
}

/// The endpoint.
pub fn routes(admin: Admin) -> Router {
    Router::new().route("/admin/dead-letters", post(set_aside)).with_state(Arc::new(admin))
}

async fn set_aside(State(admin): State<Arc<Admin>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let outcome = async {
        admin.let_in(&head.headers)?;
        let wanted = read(body).await?;
        admin.set_aside(&wanted).await
    };
    outcome.await.map_or_else(|problem| problem.into_response(), |done| Json(done).into_response())
}

impl Admin {
    fn let_in(&self, headers: &HeaderMap) -> Result<(), Box<Problem>> {
        let refused = |detail: &str| Err(Box::new(Problem::new(StatusCode::FORBIDDEN, detail)));
        let Some(token) = &self.token else {
            return refused("setting a record aside is off: ADMIN_TOKEN is not set in this consumer");
        };
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| {
            let (scheme, rest) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest)
        });
        match given {
            Some(given) if bool::from(token.expose().as_bytes().ct_eq(given)) => Ok(()),
            Some(_) => refused("the token is not the ADMIN_TOKEN of this consumer"),
            None => refused("no token: Authorization must be Bearer and the ADMIN_TOKEN of this consumer"),
        }
    }

    async fn set_aside(&self, wanted: &Wanted) -> Result<Value, Box<Problem>> {
        let Wanted { topic, partition, offset, reason } = wanted;
        let record = format!("{topic}/{partition}@{offset}");
        let not_found = |detail: String| Box::new(Problem::new(StatusCode::NOT_FOUND, detail));
        let later = |detail: String| {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail);
            Box::new(problem.retryable(Duration::from_secs(1)))
        };
        let lane = self.lanes.list().into_iter().find(|lane| {
            let progress = &lane.progress;
            *progress.topic == **topic && progress.partition == *partition
        });
        let Some(lane) = lane else {
            let detail =
                format!("this consumer does not have {topic}/{partition}; it has {}", self.partitions());
            return Err(not_found(detail));
        };
        let reply = lane.inbox.requests.ask(*offset, reason.clone());
        match tokio::time::timeout(REPLY_LIMIT, reply).await {
            Ok(Ok(Reply::Done(letter))) => Ok(json!({
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "reason": reason,
                "dead_letter": {
                    "topic": letter.topic,
                    "partition": letter.partition,
                    "offset": letter.offset,
                },
            })),
            Ok(Ok(Reply::NotInHand)) => Err(not_found(format!(
                "{record} is no unfinished record that is worked on: {}",
                state(&lane, *offset)
            ))),
            Ok(Ok(Reply::UnderWay)) => {
                Err(later(format!("the dead letter of {record} is under way already: {}", waits(&lane))))
            }
            Ok(Err(_)) => Err(later(format!("{topic}/{partition} is given to another consumer: ask again"))),
            Err(_) => {
                Err(later(format!("{record} is set aside once its dead letter is written: {}", waits(&lane))))
            }
        }
    }

    fn partitions(&self) -> String {
        let mut places = self.lanes.places();
        places.sort();
        let named = places.iter().take(NAMED).map(|(topic, partition)| format!("{topic}/{partition}"));
        let named = named.collect::<Vec<_>>().join(", ");
        match places.len() {
            0 => "no partition".into(),
            count if count > NAMED => format!("{named} and {} more", count - NAMED),
            _ => named,
        }
    }
}

async fn read(body: Body) -> Result<Wanted, Box<Problem>> {
    let wrong = |detail: String| Box::new(Problem::new(StatusCode::BAD_REQUEST, detail));
    let bytes = to_bytes(body, BODY_BYTES).await.map_err(|_| {
        let detail = format!("the body cannot be read, or has more than {BODY_BYTES} bytes");
        Box::new(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
    })?;
    // A struct could also be read from an array.
    let object: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("the body is no JSON object: {error}")))?;
    let wanted: Wanted = serde_json::from_value(Value::Object(object))
        .map_err(|error| wrong(format!("the body is not {{topic, partition, offset, reason}}: {error}")))?;
    if wanted.reason.trim().is_empty() || wanted.reason.len() > REASON_BYTES {
        return Err(wrong(format!("reason must have 1 to {REASON_BYTES} bytes")));
    }
    Ok(wanted)
}

/// Where the lane is, for one who asked for a record at `offset` that it has not in hand.
fn state(lane: &View, offset: i64) -> String {
    let progress = &lane.progress;
    let position = progress.position();
    let hand = format!("{} records in hand, {} wait behind them", progress.in_hand(), lane.inbox.len());
    match position {
        Some(position) if offset < position => format!("it is finished, as all below offset {position} are"),
        Some(position) => format!("the next offset to be finished is {position}; {hand}"),
        None => hand,
    }
}

fn waits(lane: &View) -> String {
    lane.progress.waits().as_ref().map_or_else(|| "ask again".into(), |waits| Waits::reason(waits).to_owned())
}
