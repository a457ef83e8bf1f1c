//! Deletes of documents: by a record that the filter of the source selects, and by DELETE.

use std::collections::BTreeMap;

use rdkafka::Message;
use rdkafka::message::OwnedMessage;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::api::{self, Api};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::application::{Answer, Application, PATIENCE, assert_says};
use crate::real_broker::{records, shared};
use crate::sources::{header, messages};

const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];
const SCHEMA: &str = r#"{"type": "object", "required": ["no", "lines"]}"#;

/// A producer with `orders`, which takes deletes, and `notes`, which does not.
struct Shop {
    app: Application,
    bootstrap: String,
    _folder: TempDir,
}

impl Shop {
    async fn start() -> Self {
        Self::start_with("", &[]).await
    }

    /// Starts one with more sources and variables.
    async fn start_with(more: &str, variables: &[(&str, &str)]) -> Self {
        let shop = Self::start_on(shared().await, more, variables).await;
        Self { app: shop.app.ready().await, ..shop }
    }

    async fn start_on(bootstrap: &str, more: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources.yaml");
        let text = "sources:\n  orders:\n    push: {}\n    event: {id: /no, timestamp: /at}\n    schema: s.json\n    \
                    delete: {when: '.state == \"cancelled\"'}\n  notes: {push: {}, event: {id: /no}}\n";
        std::fs::write(&path, format!("{text}{more}")).unwrap();
        std::fs::write(folder.path().join("s.json"), SCHEMA).unwrap();
        let settings = [&[("SOURCES_FILE", path.to_str().unwrap())], variables].concat();
        let app = Application::start(bootstrap, &settings).await;
        Self { app, bootstrap: bootstrap.to_owned(), _folder: folder }
    }

    async fn delete(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.app.request("DELETE", path, headers, body).await
    }

    /// The value of the record with this key.
    async fn record(&self, key: &str) -> Value {
        let wanted = key.to_owned();
        let is_there = move |found: &BTreeMap<String, OwnedMessage>| found.contains_key(&wanted);
        let found = records(&self.bootstrap, &self.app.topic, 3, is_there).await;
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
    // Endpoints of other methods, as before.
    for path in ["/ingest/adsbdb/poll", "/ingest/notes/batch", "/ingest/notes/poll"] {
        let response = shop.delete(path, &[], "").await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_the_longest_and_the_oddest_ids_are_deleted_and_no_id_is_not() {
    let shop = Shop::start().await;
    let encode = |id: &str| id.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    // 256 characters of four bytes.
    let longest = "\u{1f6ab}".repeat(256);
    for id in [longest.as_str(), "..", "a/b/../c", " ", "?&#+;=%2F", "$where", "\u{2028}"] {
        let response = shop.delete(&format!("/ingest/orders/{}?timestamp=1", encode(id)), &[], "").await;
        assert_eq!((response.status, &response.json()["id"]), (202, &json!(id)), "{response:?}");
        assert_eq!(shop.record(id).await["op"], "delete");
    }
    for id in [encode(&"a".repeat(257)), "%00".into(), "%0A".into(), "%C2%85".into()] {
        let body = shop.delete(&format!("/ingest/orders/{id}"), &[], "").await.problem(422, false);
        assert_eq!(body["errors"][0]["loc"], json!(["path", "id"]), "{body}");
    }
    shop.delete("/ingest/orders/", &[], "").await.problem(405, false);
    shop.delete("/ingest/orders//", &[], "").await.problem(404, false);
    shop.delete("/ingest/orders/a/b", &[], "").await.problem(404, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_other_sources_may_not_delete() {
    // The key is `secret`.
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let shop = Shop::start_with("", &[("API_KEYS", &format!("shop:{hash}:orders"))]).await;
    let key = [("X-API-Key", "secret")];
    assert_eq!(shop.delete("/ingest/orders/a", &key, "").await.status, 202);
    for source in ["notes", "unknown", "%6Frders"] {
        let body = shop.delete(&format!("/ingest/{source}/a"), &key, "").await.problem(403, false);
        assert_says(&body, &["not for the source"]);
    }
    shop.delete("/ingest/orders/a", &[], "").await.problem(401, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_is_not_stored_names_its_id() {
    let limits = [("MAX_IN_FLIGHT", "1"), ("REQUEST_TIMEOUT_MS", "60000")];
    let shop = Shop::start_with("", &limits).await;
    let mut holder = TcpStream::connect(shop.app.address).await.unwrap();
    holder.write_all(b"POST /ingest HTTP/1.1\r\nHost: t\r\nContent-Length: 43\r\n\r\n").await.unwrap();
    testkit::eventually("the permit is taken", PATIENCE, || async {
        (shop.app.metric("slipstream_requests_in_flight").await == Some(1.0)).then_some(())
    })
    .await;
    let (_, body) = shop.delete("/ingest/orders/a%2Fb", &[], "").await.retry_after(503);
    assert_eq!(body["id"], "a/b", "{body}");
    assert_says(&body, &["MAX_IN_FLIGHT"]);
    assert_eq!(shop.delete("/ingest/orders/%ff", &[], "").await.retry_after(503).1.get("id"), None);
    drop(holder);

    let nobody = testkit::process::free_address().to_string();
    let shop = Shop::start_on(&nobody, "", &[]).await;
    let (_, body) = shop.delete("/ingest/orders/a", &[], "").await.retry_after(503);
    assert_eq!(body["id"], "a", "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_without_a_truth_value_is_a_fault_of_its_record() {
    let other = "  flags: {push: {}, event: {id: /no}, delete: {when: .gone}}\n";
    let shop = Shop::start_with(other, &[]).await;
    let record = |no: &str, gone: &str| format!(r#"{{"no":"{no}","gone":{gone}}}"#);
    let body = shop.app.request("POST", "/ingest/flags", &JSON, &record("a", "1")).await.problem(422, false);
    let fault = "delete: the jq filter should return true, false or null, and returned number";
    assert_eq!(body["errors"], json!([{"loc": ["body"], "msg": fault, "type": "record_fault"}]));
    let lines = [record("b", "true"), record("c", "\"true\""), record("d", "null")];
    let ndjson = [("Content-Type", "application/x-ndjson")];
    let response = shop.app.request("POST", "/ingest/flags/batch", &ndjson, &lines.join("\n")).await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 422, 202]), "{response:?}");
    assert_eq!(shop.record("b").await["op"], "delete");
    assert_eq!(shop.record("d").await["payload"], json!({"no": "d", "gone": null}));
    // The key of the request is that of the record.
    let headers = [JSON[0], ("Idempotency-Key", "e")];
    let response = shop.app.request("POST", "/ingest/flags", &headers, &record("e", "true")).await;
    assert_eq!(response.status, 202, "{response:?}");
    let body = shop.app.request("POST", "/ingest/flags", &headers, &record("f", "true")).await;
    body.problem(422, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_fetched_record_deletes_and_one_that_the_filter_cannot_judge_is_a_dead_letter() {
    let rows = r#"[{"no":"a","gone":false},{"no":"b","gone":true},{"no":"c","gone":"yes"},{"gone":true}]"#;
    let api = Api::start(None).await;
    api.set("/", api::Answer::This(api::response("200 OK", "", rows)));
    let source = format!(
        "  rows:\n    pull: {{url: '{}', records: ''}}\n    event: {{id: /no}}\n    delete: {{when: .gone}}\n    \
         store: {{ttl: 1d}}\n",
        api.url
    );
    let shop = Shop::start_with(&source, &[]).await;
    let response = shop.app.post("/ingest/rows").await;
    assert_eq!((response.status, response.statuses()), (207, vec![202, 202, 422, 422]), "{response:?}");
    assert_eq!(shop.record("b").await["op"], "delete");
    assert_eq!(shop.record("a").await["payload"]["no"], "a");
    let letters = messages(&shop.bootstrap, &format!("{}.dlq", shop.app.topic), 3, 2).await;
    let reason = |part: &str| {
        let letter = letters.iter().find(|letter| {
            letter.payload().is_some_and(|value| String::from_utf8_lossy(value).contains(part))
        });
        header(letter.unwrap(), "__connect.errors.exception.message").unwrap()
    };
    assert!(reason("\"c\"").contains("delete: the jq filter should return true"), "{}", reason("\"c\""));
    assert!(reason("{\"gone\":true}").contains("id: "), "{}", reason("{\"gone\":true}"));
    // What has not changed is not deleted again.
    let again = shop.app.post("/ingest/rows").await;
    assert_eq!((&again.json()["accepted"], &again.json()["unchanged"]), (&json!(0), &json!(4)), "{again:?}");
    // A delete by request is for requests and for fetched records alike.
    assert_eq!(shop.delete("/ingest/rows/a", &[], "").await.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_may_be_the_name_of_an_endpoint_of_adsbdb() {
    let shop = Shop::start_with("  adsbdb: {pull: {kind: adsbdb}, delete: {}}\n", &[]).await;
    for id in ["poll", "batch", "3F28BC"] {
        let response = shop.delete(&format!("/ingest/adsbdb/{id}"), &[], "").await;
        assert_eq!((response.status, &response.json()["id"]), (202, &json!(id)), "{response:?}");
    }
    assert_eq!(shop.app.get("/ingest/adsbdb/poll").await.status, 200);
    shop.delete("/ingest/adsbdb/poll/none", &[], "").await.problem(404, false);
}
