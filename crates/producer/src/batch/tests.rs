//! A batch when the results of all batches have no more room.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::Value;

use crate::app::App;
use crate::config::Config;

async fn post(app: &App) -> (u16, Value) {
    let request = Request::post("/ingest/batch").header("host", "t");
    let request = request.header("content-type", "application/x-ndjson");
    let response = app.front().answer(request.body(Body::from("{}\n".repeat(1000))).unwrap()).await;
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
}

#[tokio::test]
async fn a_batch_ends_where_there_is_no_room_for_its_results_and_says_so() {
    let app = App::build(Config::without_kafka(&[])).await.unwrap();
    let room = Arc::clone(&app.producer().journals);
    let most = u32::try_from(room.available_permits()).unwrap();
    let others = Arc::clone(&room).try_acquire_many_owned(most - 4096).unwrap();
    let (status, body) = post(&app).await;
    let results = body["results"].as_array().unwrap();
    let (last, before) = results.split_last().unwrap();
    assert_eq!((status, before.len()), (207, 4096 / 7), "two bytes and their header each");
    assert!(before.iter().all(|result| result["status"] == 422), "{body}");
    assert_eq!((&last["status"], &last["retryable"]), (&503.into(), &true.into()));
    let detail = last["detail"].as_str().unwrap();
    assert!(detail.starts_with("nothing was stored: ") && detail.ends_with("in another batch"), "{detail}");
    assert_eq!(room.available_permits(), 4096, "it is given back with the answer");
    drop(others);
    let (status, body) = post(&app).await;
    assert_eq!((status, body["results"].as_array().map(Vec::len)), (422, Some(1000)));
}
