//! G4: the content of error responses, and retries.

use std::time::Duration;

use bson::doc;
use serde_json::json;
use testkit::http::{Response, request};
use testkit::{Stack, eventually, http, kafka, mongo};

const JSON: &str = "application/json";

/// Panics unless the response is a complete problem document with this status and `retryable`.
fn assert_problem(response: &Response, status: u16, retryable: bool) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{response:?}");
    assert_eq!(response.body["retryable"], retryable, "{response:?}");
    assert_eq!(response.body["status"], status, "{response:?}");
    for field in ["type", "title", "detail"] {
        assert!(response.body[field].is_string(), "{field} in {response:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_every_error_response_states_whether_a_retry_helps() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let more = [
        ("REQUIRE_ID", "true"),
        ("MAX_PAYLOAD_BYTES", "1000"),
        ("ACCEPT_SOURCES", "manual,adsbdb"),
        // Nothing listens on port 1: ADSBDB is unavailable.
        ("ADSBDB_BASE_URL", "http://127.0.0.1:1"),
    ];
    let producer = stack.producer(&names, &more);
    producer.ready().await;
    let url = producer.url("/ingest");
    let large = json!({"id": "x", "source": "manual", "payload": {"text": "x".repeat(2_000)}}).to_string();
    for (method, path, content_type, body, status) in [
        ("POST", "/ingest", JSON, "", 400),
        ("POST", "/ingest", JSON, "{", 400),
        ("POST", "/ingest", JSON, r#"{"source":"manual","payload":{}}"#, 400),
        ("GET", "/nowhere", JSON, "", 404),
        ("DELETE", "/ingest", JSON, "", 405),
        ("POST", "/ingest", JSON, &large, 413),
        ("POST", "/ingest", "text/plain", "{}", 415),
        ("POST", "/ingest", JSON, r#"{"id":"x","source":"manual","payload":[]}"#, 422),
        ("POST", "/ingest", JSON, r#"{"id":"x","source":"other","payload":{}}"#, 422),
        ("POST", "/ingest", JSON, r#"{"id":"x","source":"manual","payload":{},"more":1}"#, 422),
        ("POST", "/ingest/adsbdb/poll?interval_sec=0", JSON, "", 400),
        ("GET", "/ingest/adsbdb/poll/none", JSON, "", 404),
    ] {
        let response = request(method, &producer.url(path), content_type, body).await.unwrap();
        assert_problem(&response, status, false);
        assert_eq!(response.header("retry-after"), None, "{response:?}");
    }
    let response = request("POST", &producer.url("/ingest/adsbdb"), JSON, "").await.unwrap();
    assert_problem(&response, 502, true);
    let fine = json!({"id": "x", "source": "manual", "payload": {}});
    assert_eq!(http::post(&url, &fine).await.unwrap().status, 202);
    assert_eq!(kafka::read_all(&names, &names.topic).await.len(), 1, "what is refused is not on the topic");
    assert!(producer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g4_unknown_outcome_is_504_and_a_retry_with_the_same_id_is_safe() {
    let stack = Stack::start().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[("DELIVERY_TIMEOUT_MS", "1000")]);
    let consumer = stack.consumer(&names, &[]);
    producer.ready().await;
    consumer.ready().await;
    let (url, body) = (producer.url("/ingest"), json!({"source": "manual", "payload": {"n": 1}}));
    let first = http::post(&url, &body).await.unwrap();
    assert_eq!(first.status, 202);
    stack.broker.pause();
    let response = http::post(&url, &body).await.unwrap();
    assert_problem(&response, 504, true);
    let id = response.body["id"].as_str().expect("the id, though it was generated").to_owned();
    stack.broker.resume();

    let again = json!({"id": id, "source": "manual", "payload": {"n": 2}});
    for _ in 0..3 {
        eventually("it is accepted", Duration::from_secs(30), || async {
            let response = http::post(&url, &again).await.ok()?;
            assert!(response.status == 202 || response.body["retryable"] == true, "{response:?}");
            (response.status == 202).then_some(())
        })
        .await;
    }
    let manual = mongo::collection(&names, "manual").await;
    let first = first.body["id"].as_str().expect("an id");
    eventually("both events are documents", Duration::from_secs(30), || async {
        // The events can be in different partitions, so either can be stored first.
        mongo::find(&manual, first).await?;
        let found = mongo::find(&manual, &id).await?;
        (found.get_i32("n").ok()? == 2).then_some(())
    })
    .await;
    assert_eq!(manual.count_documents(doc! {}).await.unwrap(), 2);
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}
