//! G4: what a refusal tells, and what sending again does.

use std::time::Duration;

use bson::doc;
use serde_json::json;
use testkit::http::{Response, request};
use testkit::{Stack, eventually, http, kafka, mongo};

const JSON: &str = "application/json";

/// Fails unless the answer says whether trying again helps, in the one form that all refusals have.
fn assert_tells(answer: &Response, status: u16, retryable: bool) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    assert_eq!(answer.body["retryable"], retryable, "{answer:?}");
    assert_eq!(answer.body["status"], status, "{answer:?}");
    for field in ["type", "title", "detail"] {
        assert!(answer.body[field].is_string(), "{field} in {answer:?}");
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
        // Nothing listens on port 1: ADSBDB is down.
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
        let answer = request(method, &producer.url(path), content_type, body).await.unwrap();
        assert_tells(&answer, status, false);
        assert_eq!(answer.header("retry-after"), None, "{answer:?}");
    }
    let answer = request("POST", &producer.url("/ingest/adsbdb"), JSON, "").await.unwrap();
    assert_tells(&answer, 502, true);
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
    let answer = http::post(&url, &body).await.unwrap();
    assert_tells(&answer, 504, true);
    let id = answer.body["id"].as_str().expect("the id, though it was generated").to_owned();
    stack.broker.resume();

    let again = json!({"id": id, "source": "manual", "payload": {"n": 2}});
    for _ in 0..3 {
        eventually("it is accepted", Duration::from_secs(30), || async {
            let answer = http::post(&url, &again).await.ok()?;
            assert!(answer.status == 202 || answer.body["retryable"] == true, "{answer:?}");
            (answer.status == 202).then_some(())
        })
        .await;
    }
    let manual = mongo::collection(&names, "manual").await;
    let first = first.body["id"].as_str().expect("an id");
    eventually("both events are documents", Duration::from_secs(30), || async {
        // They are in different partitions, maybe: either can come first.
        mongo::find(&manual, first).await?;
        let found = mongo::find(&manual, &id).await?;
        (found.get_i32("n").ok()? == 2).then_some(())
    })
    .await;
    assert_eq!(manual.count_documents(doc! {}).await.unwrap(), 2);
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}
