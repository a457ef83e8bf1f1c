//! A batch request when the results of all batches use all their memory.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::Value;

use crate::app::App;
use crate::config::Config;
use crate::http::server::Handler;

async fn post(app: &App) -> (u16, Value) {
    let request = Request::post("/ingest/batch").header("host", "t");
    let request = request.header("content-type", "application/x-ndjson");
    let response =
        app.dispatcher().handle(request.body(Body::from("{}\n".repeat(1000))).unwrap(), false).await;
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
}

#[tokio::test]
async fn a_batch_without_memory_for_a_result_ends_there_with_a_503() {
    let app = App::build(Config::without_kafka(&[])).await.unwrap();
    let permits = Arc::clone(&app.state().batch_memory);
    let all = u32::try_from(permits.available_permits()).unwrap();
    let others = Arc::clone(&permits).try_acquire_many_owned(all - 4096).unwrap();
    let (status, body) = post(&app).await;
    let results = body["results"].as_array().unwrap();
    let (last, before) = results.split_last().unwrap();
    assert_eq!((status, before.len()), (207, 4096 / 7), "two bytes and their header each");
    assert!(before.iter().all(|result| result["status"] == 422), "{body}");
    assert_eq!((&last["status"], &last["retryable"]), (&503.into(), &true.into()));
    let detail = last["detail"].as_str().unwrap();
    assert!(detail.starts_with("nothing was stored: ") && detail.ends_with("in another batch"), "{detail}");
    assert_eq!(permits.available_permits(), 4096, "the response releases its permits");
    drop(others);
    let (status, body) = post(&app).await;
    assert_eq!((status, body["results"].as_array().map(Vec::len)), (422, Some(1000)));
}
