//! `POST /ingest/batch`: each event has its own result, and a bad event does not affect others.

use std::collections::{BTreeMap, HashMap};

use rdkafka::message::{Headers, Message};
use serde_json::{Value, json};

use crate::application::{Application, Cluster, assert_says};
use crate::real_broker::{records, shared};

const LINES: [(&str, &str); 1] = [("Content-Type", "application/x-ndjson")];
const ARRAY: [(&str, &str); 1] = [("Content-Type", "application/json")];

fn event(id: &str) -> String {
    format!(r#"{{"id":"{id}","source":"manual","payload":{{"b" : 1.50}}}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_an_accepted_batch_event_is_on_the_topic_where_its_result_says() {
    let bootstrap = shared().await;
    let app = Application::start(bootstrap, &[]).await.ready().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (format, name) in [("application/x-ndjson", "é"), ("application/json", "è")] {
        let mut events: Vec<String> = (0..2_500).map(|number| event(&format!("{name}-{number}"))).collect();
        events.push(r#"{"source":"manual","timestamp":5000,"payload":{}}"#.into());
        let lines = format == "application/x-ndjson";
        let body = if lines { events.join("\n") } else { format!("[{}]", events.join(" ,\n")) };
        let headers = [("Content-Type", format), ("traceparent", trace)];
        let response = app.request("POST", "/ingest/batch", &headers, &body).await;
        assert_eq!((response.status, response.header("content-type")), (202, Some("application/json")));
        assert_eq!(response.statuses(), vec![202; 2_501]);
        let results = response.json()["results"].as_array().unwrap().clone();
        let fields: Vec<&String> = results[0].as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "index", "offset", "partition", "status"]);
        let seventh = format!("{name}-7");
        assert_eq!(results[7]["id"], seventh);
        let generated = results[2_500]["id"].as_str().unwrap().to_owned();
        assert_eq!(generated.len(), 36);

        let ids: Vec<String> =
            results.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect();
        let complete = move |found: &BTreeMap<_, _>| ids.iter().all(|id| found.contains_key(id));
        let found = records(bootstrap, &app.topic, 3, complete).await;
        let all = results.iter().all(|result| {
            let record = &found[result["id"].as_str().unwrap()];
            json!(record.partition()) == result["partition"] && json!(record.offset()) == result["offset"]
        });
        assert!(all, "a record is not where its result says");
        let record = &found[&seventh];
        let value = std::str::from_utf8(record.payload().unwrap()).unwrap();
        assert!(value.starts_with(&format!(r#"{{"id":"{seventh}","timestamp":"#)), "{value}");
        assert!(value.contains(r#","source":"manual","payload":{"b" : 1.50},"ingested_at":"#), "{value}");
        let headers: Vec<(&str, &[u8])> =
            record.headers().unwrap().iter().map(|h| (h.key, h.value.unwrap())).collect();
        let expected = [("content-type", b"application/json".as_slice()), ("traceparent", trace.as_bytes())];
        assert_eq!(headers, expected);
        let value: Value = serde_json::from_slice(found[&generated].payload().unwrap()).unwrap();
        assert_eq!((&value["id"], &value["timestamp"]), (&json!(generated), &json!(5_000_000)));
    }
    assert_eq!(app.counters.accepted(), 5_002);
    assert_eq!(app.metric(r#"slipstream_events_accepted_total{source="manual"}"#).await, Some(5_002.0));
    assert_eq!(app.metric("slipstream_kafka_delivery_seconds_count").await, Some(5_002.0));
    assert_eq!(app.get("/health").await.json()["accepted_last_min"], 5_002);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_events_of_one_id_keep_their_order() {
    let app = Application::start(shared().await, &[]).await.ready().await;
    let events: Vec<String> = (0..300).map(|number| event(["a", "b", "c"][number % 3])).collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let response = app.batch(&events).await;
    assert_eq!(response.status, 202);
    let mut last: HashMap<String, i64> = HashMap::new();
    for result in response.json()["results"].as_array().unwrap() {
        let offset = result["offset"].as_i64().unwrap();
        let before = last.insert(result["id"].as_str().unwrap().to_owned(), offset);
        assert!(before.is_none_or(|before| before < offset), "{result}");
    }
    assert_eq!(last.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g5_a_bad_event_does_not_affect_the_others() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("MAX_PAYLOAD_BYTES", "200")]).await;
    let long = event(&"x".repeat(250));
    let bad = r#"{"id":"","source":"manual","payload":[],"colour":1}"#;
    let events = [&event("a"), "oops", bad, &long, &event("b")];
    for (headers, body) in [(LINES, events.join("\r\n\n")), (ARRAY, format!("[{}]", events.join(",")))] {
        let response = app.request("POST", "/ingest/batch", &headers, &body).await;
        assert_eq!(
            (response.status, response.header("content-type")),
            (207, Some("application/json")),
            "{response:?}"
        );
        assert_eq!(response.statuses(), [202, 400, 422, 413, 202]);
        assert_eq!((&response.result(0)["id"], &response.result(4)["id"]), (&json!("a"), &json!("b")));
        let expected = json!({
            "index": 1, "status": 400, "retryable": false,
            "detail": "the event is not JSON: expected value at line 1 column 1",
        });
        assert_eq!(response.result(1), expected);
        let rejected = response.result(2);
        assert_eq!(rejected["retryable"], false);
        let locs: Vec<&Value> =
            rejected["errors"].as_array().unwrap().iter().map(|error| &error["loc"]).collect();
        let expected = [json!(["body", "id"]), json!(["body", "payload"]), json!(["body", "colour"])];
        assert_eq!(locs, expected.iter().collect::<Vec<_>>());
        assert_says(&response.result(3), &["longer than 200 bytes", "MAX_PAYLOAD_BYTES"]);
    }
    for (reason, count) in [("not_json", 2.0), ("invalid", 2.0), ("event_too_large", 2.0)] {
        let line = format!("slipstream_events_rejected_total{{reason=\"{reason}\"}}");
        assert_eq!(app.metric(&line).await, Some(count), "{reason}");
    }
    assert_eq!((app.counters.accepted(), app.counters.rejected()), (4, 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_shared_by_all_events_is_the_status_of_the_batch() {
    let cluster = Cluster::start();
    let app = cluster.application(&[("REQUIRE_ID", "true")]).await;
    let no_id = r#"{"source":"manual","payload":{}}"#;
    let response = app.batch(&[no_id, no_id]).await;
    assert_says(&response.problem(400, false), &["no event was accepted", "results"]);
    assert_eq!(response.statuses(), [400, 400]);
    assert_says(&response.result(1), &["no id", "send `id`"]);
    let response = app.batch(&["{}", "[]", "7"]).await;
    response.problem(422, false);
    assert_eq!(response.statuses(), [422; 3]);
    let response = app.batch(&["{}", "oops"]).await;
    assert_eq!((response.status, response.statuses()), (207, vec![422, 400]), "the statuses differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_rejections_is_complete() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let events: Vec<String> = (0..3_000)
        .map(|number| if number % 3 == 0 { event("a-1") } else { format!(r#"{{"x{number}":1,"y":2}}"#) })
        .filter(|text| !text.contains("a-1"))
        .collect();
    let lines: Vec<&str> = events.iter().map(String::as_str).collect();
    let response = app.batch(&lines).await;
    response.problem(422, false);
    assert_eq!(response.statuses(), vec![422; 2_000]);
    let errors: BTreeMap<String, usize> =
        response.json()["results"].as_array().unwrap().iter().fold(BTreeMap::new(), |mut counts, result| {
            *counts.entry(result["errors"].as_array().unwrap().len().to_string()).or_default() += 1;
            counts
        });
    assert_eq!(errors, BTreeMap::from([("4".to_owned(), 2_000)]), "source, payload and two unknown fields");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_read_in_the_format_that_its_content_type_names() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let (line, array) = (event("a"), format!("[{}]", event("a")));
    for (media_type, body) in [
        ("application/x-ndjson", &line),
        ("application/ndjson; charset=utf-8", &line),
        ("application/jsonl", &line),
        ("application/json", &array),
        ("", &array),
    ] {
        let response = app.request("POST", "/ingest/batch", &[("Content-Type", media_type)], body).await;
        assert_eq!(response.status, 202, "{media_type}: {response:?}");
    }
    assert_eq!(
        app.request("POST", "/ingest/batch", &[], &array).await.status,
        202,
        "without the header, as at /ingest"
    );
    for wrong in ["text/plain", "application/x-www-form-urlencoded", "text/plain; charset=utf-16"] {
        let response = app.request("POST", "/ingest/batch", &[("Content-Type", wrong)], &line).await;
        assert_says(&response.problem(415, false), &["application/json", "application/x-ndjson"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_with_an_idempotency_key_is_a_400() {
    let cluster = Cluster::start();
    let app = cluster.application(&[]).await;
    let headers = [LINES[0], ("Idempotency-Key", "k")];
    // The client reads the response only after it sent the whole body.
    let response = app.request("POST", "/ingest/batch", &headers, &[&*event("a"); 10_000].join("\n")).await;
    assert_says(&response.problem(400, false), &["Idempotency-Key", "POST /ingest"]);
}
