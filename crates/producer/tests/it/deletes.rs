//! Deletes of documents: by a record that the filter of the source selects, and by DELETE.

use std::collections::BTreeMap;

use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::application::{Answer, Application, assert_says};
use crate::real_broker::{records, shared};

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];
const SCHEMA: &str = r#"{"type": "object", "required": ["no", "lines"]}"#;

/// A producer with `orders`, which takes deletes, and `notes`, which does not.
struct Shop {
    app: Application,
    bootstrap: &'static str,
    _folder: TempDir,
}

impl Shop {
    async fn start() -> Self {
        let (folder, bootstrap) = (tempfile::tempdir().unwrap(), shared().await);
        let path = folder.path().join("sources.yaml");
        let text = "sources:\n  orders:\n    push: {}\n    event: {id: /no, timestamp: /at}\n    schema: s.json\n    \
                    delete: {when: '.state == \"cancelled\"'}\n  notes: {push: {}, event: {id: /no}}\n";
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("s.json"), SCHEMA).unwrap();
        let settings = [("SOURCES_FILE", path.to_str().unwrap())];
        let app = Application::start(bootstrap, &settings).await.ready().await;
        Self { app, bootstrap, _folder: folder }
    }

    async fn delete(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.app.request("DELETE", path, headers, body).await
    }

    /// The value of the record with this key.
    async fn record(&self, key: &str) -> Value {
        let wanted = key.to_owned();
        let is_there = move |found: &BTreeMap<String, OwnedMessage>| found.contains_key(&wanted);
        let found = records(self.bootstrap, &self.app.topic, 3, is_there).await;
        serde_json::from_slice(found[key].payload().unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_record_that_the_filter_selects_becomes_a_delete() {
    let shop = Shop::start().await;
    // The schema and the payload do not matter to a delete.
    let body = r#"{"no":"A-1","at":1730000000,"state":"cancelled"}"#;
    let response = shop.app.request("POST", "/ingest/orders", &JSON, body).await;
    assert_eq!((response.status, &response.json()["id"]), (202, &json!("A-1")), "{response:?}");
    let value = shop.record("A-1").await;
    let ingested_at = response.json()["ingested_at"].clone();
    let expected = json!({"id": "A-1", "timestamp": 1_730_000_000_000_i64, "source": "orders", "op": "delete",
        "ingested_at": ingested_at, "api_version": "1.0.0"});
    assert_eq!(value, expected);
    let lines = [
        r#"{"no":"A-2","at":1730000000,"state":"cancelled"}"#,
        r#"{"no":"A-3","at":1730000000,"state":"open","lines":[]}"#,
        r#"{"no":"A-4","at":1730000000,"state":"open"}"#,
    ];
    let ndjson = [("Content-Type", "application/x-ndjson")];
    let response = shop.app.request("POST", "/ingest/orders/batch", &ndjson, &lines.join("\n")).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 422]), "{response:?}");
    assert_eq!(shop.record("A-2").await["op"], "delete");
    let order = shop.record("A-3").await;
    assert_eq!((&order["op"], &order["payload"]["state"]), (&Value::Null, &json!("open")));
    let faulty = shop.app.request("POST", "/ingest/orders", &JSON, r#"{"state":"cancelled"}"#).await;
    assert_eq!(faulty.problem(422, false)["errors"].as_array().map(Vec::len), Some(2), "id and timestamp");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_delete_is_answered_as_an_ingest() {
    let shop = Shop::start().await;
    let response = shop.delete("/ingest/orders/DE%2F%C3%A9?timestamp=1730000000.5", &[], "").await;
    let body = response.json();
    assert_eq!((response.status, &body["id"], &body["status"]), (202, &json!("DE/é"), &json!("enqueued")));
    assert_eq!((&body["topic"], &body["timestamp"]), (&json!(shop.app.topic), &json!(1_730_000_000_500_i64)));
    let value = shop.record("DE/é").await;
    assert_eq!((&value["op"], &value["timestamp"]), (&json!("delete"), &json!(1_730_000_000_500_i64)));
    assert_eq!(value["payload"], Value::Null);
    // Ids that are endpoints of other methods, and a body, which is ignored.
    for id in ["batch", "poll"] {
        let response = shop.delete(&format!("/ingest/orders/{id}"), &JSON, "{").await;
        assert_eq!((response.status, &response.json()["id"]), (202, &json!(id)), "{response:?}");
        let value = shop.record(id).await;
        assert_eq!(value["timestamp"], value["ingested_at"], "an absent timestamp is now");
    }
    let route = r#"slipstream_http_requests_total{route="/ingest/{source}/{id}",status="202"}"#;
    assert_eq!(shop.app.metric(route).await, Some(3.0));
    assert_eq!(shop.app.metric(r#"slipstream_events_accepted_total{source="orders"}"#).await, Some(3.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_cannot_be_accepted_says_why() {
    let shop = Shop::start().await;
    let body = shop.delete("/ingest/notes/a", &[], "").await.problem(404, false);
    assert_says(&body, &["the source notes takes no deletes", "delete: {}"]);
    shop.delete("/ingest/unknown/a", &[], "").await.problem(404, false);
    // Here these are the endpoints of other methods.
    for id in ["batch", "poll"] {
        let response = shop.delete(&format!("/ingest/notes/{id}"), &[], "").await;
        response.problem(405, false);
        assert!(response.header("allow").is_some_and(|allow| allow.contains("POST")), "{response:?}");
    }
    let body = shop.delete("/ingest/orders/%ff?timestamp=soon&at=1", &[], "").await.problem(422, false);
    let places: Vec<String> =
        body["errors"].as_array().unwrap().iter().map(|error| error["loc"].to_string()).collect();
    assert_eq!(places, [r#"["path","id"]"#, r#"["query","timestamp"]"#, r#"["query","at"]"#]);
    shop.delete("/ingest/orders/a", &[("Idempotency-Key", "a")], "").await.problem(400, false);
    shop.app.get("/ingest/orders/a").await.problem(405, false);
    let document = shop.app.get("/openapi.json").await.json();
    let operation = &document["paths"]["/ingest/orders/{id}"]["delete"];
    assert_eq!(operation["operationId"], "deleteDocument_orders");
    assert!(operation["requestBody"].is_null() && operation["responses"]["202"].is_object(), "{operation}");
    assert!(document["paths"]["/ingest/notes/{id}"].is_null());
    assert_eq!(shop.app.counters.accepted(), 0);
}
