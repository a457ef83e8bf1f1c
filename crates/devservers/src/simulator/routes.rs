//! The endpoints and their responses, byte for byte in the format of ADSBDB.

use std::sync::Arc;

use axum::extract::{self, ConnectInfo, Path};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::connection::Cut;
use super::fault::Fault;
use super::state::State;

type Shared = extract::State<Arc<State>>;

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v0/aircraft/random", get(random))
        .route("/v0/aircraft/{id}", get(by_id))
        .route("/livez", get(async || Json(json!({"status": "alive"}))))
        .fallback(async || text(StatusCode::NOT_FOUND, "not found"))
        .with_state(state)
}

async fn random(extract::State(state): Shared, ConnectInfo(cut): ConnectInfo<Cut>) -> Response {
    let fault = state.next_fault().await;
    answer(state.sample.random(), fault, &cut)
}

async fn by_id(
    extract::State(state): Shared,
    ConnectInfo(cut): ConnectInfo<Cut>,
    Path(id): Path<String>,
) -> Response {
    let fault = state.next_fault().await;
    answer(state.sample.find(&id), fault, &cut)
}

fn answer(aircraft: Option<&str>, fault: Option<Fault>, cut: &Cut) -> Response {
    let Some(aircraft) = aircraft else { return unknown() };
    match fault {
        None | Some(Fault::Slow(_)) => good(aircraft),
        Some(Fault::RateLimited { seconds }) => {
            text(StatusCode::TOO_MANY_REQUESTS, &format!("rate limited for {seconds} seconds"))
        }
        Some(Fault::ServerError) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        Some(Fault::NotFound) => unknown(),
        Some(Fault::Reset) => {
            cut.reset();
            StatusCode::OK.into_response()
        }
        Some(Fault::Html) => {
            Html("<!doctype html><title>Sign in</title><h1>Sign in to this network</h1>").into_response()
        }
        Some(Fault::TruncatedJson) => {
            let whole = envelope(aircraft);
            let half = whole.char_indices().nth(whole.chars().count() / 2).map_or(0, |(half, _)| half);
            json_body(StatusCode::OK, whole[..half].to_owned())
        }
        Some(Fault::ResponseIsText) => text(StatusCode::OK, "aircraft"),
        Some(Fault::ExtraField) => {
            good(&changed(aircraft, |fields| fields["first_flight"] = json!("1998-05-17")))
        }
        Some(Fault::Nulls) => good(&changed(aircraft, |fields| {
            for name in ["registered_owner_operator_flag_code", "url_photo", "url_photo_thumbnail"] {
                fields[name] = Value::Null;
            }
        })),
    }
}

fn good(aircraft: &str) -> Response {
    json_body(StatusCode::OK, envelope(aircraft))
}

fn envelope(aircraft: &str) -> String {
    format!("{{\"response\":{{\"aircraft\":{aircraft}}}}}")
}

fn unknown() -> Response {
    text(StatusCode::NOT_FOUND, "unknown aircraft")
}

/// The body of an error: a text in place of the aircraft.
fn text(status: StatusCode, response: &str) -> Response {
    json_body(status, json!({ "response": response }).to_string())
}

fn json_body(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn changed(aircraft: &str, change: impl FnOnce(&mut Value)) -> String {
    // Each line of the sample was parsed at the start.
    let mut fields = serde_json::from_str(aircraft).unwrap_or_else(|_| json!({}));
    change(&mut fields);
    fields.to_string()
}
