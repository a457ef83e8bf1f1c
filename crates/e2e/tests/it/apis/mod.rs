//! Eight public APIs from the fetch to the document. `apis/sources.yaml` has them as a user writes
//! them. The simulator serves their samples, through an API that keeps what it served.

mod expected;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bson::{Bson, Document, doc};
use devservers::Simulator;
use serde_json::{Value, json};
use testkit::api::{Answer, Exchange, response};
use testkit::http::{Response, request};
use testkit::{Api, Names, Process, Stack, eventually, mongo};

use expected::{Event, Expected};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/apis/sources.yaml");
const LIMIT: Duration = Duration::from_secs(60);

/// Producer and consumer with the file, and the APIs.
struct Apis {
    api: Api,
    names: Names,
    producer: Process,
    consumer: Process,
    _simulator: Simulator,
}

impl Apis {
    async fn start() -> Self {
        let names = Stack::shared_without_sync().await.names();
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let api = Api::start(Some(simulator.address())).await;
        // An API of a test can be asked again after a second.
        api.replace("x-poll-interval: 60", "x-poll-interval: 1");
        let more = [("SOURCES_FILE", FILE), ("SIMULATOR_URL", api.url.as_str())];
        let environment = names.environment(&more);
        let producer = Process::start("producer", &environment);
        let consumer = Process::start("consumer", &environment);
        producer.ready().await;
        consumer.ready().await;
        Self { api, names, producer, consumer, _simulator: simulator }
    }

    async fn fetch(&self, source: &str) -> Response {
        let url = self.producer.url(&format!("/ingest/{source}"));
        request("POST", &url, "application/json", "").await.unwrap()
    }

    /// Fetches a source. Returns the response and what the API served.
    async fn fetched(&self, source: &str, target: &str) -> (Response, Vec<Exchange>) {
        let before = self.api.exchanges(target).len();
        let response = self.fetch(source).await;
        (response, self.api.exchanges(target).split_off(before))
    }

    /// The documents of a source by event id, once there are `count`.
    async fn documents(&self, source: &str, count: usize) -> BTreeMap<String, Document> {
        let collection = mongo::collection(&self.names, source).await;
        let what = format!("{count} documents of {source}");
        let documents = eventually(&what, LIMIT, || async {
            let documents = mongo::all(&collection, doc! {}).await;
            (documents.len() >= count).then_some(documents)
        });
        let by_id = |document: Document| (document.get_str("event_id").unwrap().to_owned(), document);
        documents.await.into_iter().map(by_id).collect()
    }

    /// Panics unless the collection has exactly these events, field by field.
    async fn assert_documents(&self, source: &str, events: Expected) {
        let found = self.documents(source, events.len()).await;
        let ids = |ids: Vec<&String>| ids.into_iter().cloned().collect::<Vec<_>>();
        assert_eq!(ids(found.keys().collect()), ids(events.keys().collect()), "{source}");
        for (id, event) in events {
            assert_document(found[&id].clone(), event);
        }
    }

    /// Fetches a list, and panics unless each record has a result and becomes the document that
    /// `expected` makes of the served answer. Returns the served answer.
    async fn assert_list(
        &self,
        source: &str,
        target: &str,
        expected: impl Fn(&[Value]) -> Expected,
    ) -> Vec<Exchange> {
        let (response, exchanges) = self.fetched(source, target).await;
        let answers: Vec<Value> = exchanges.iter().map(Exchange::json).collect();
        let events = expected(&answers);
        assert_eq!(response.status, 202, "{source}: {response:?}");
        let results = response.body["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["status"] == 202), "{source}: {results:?}");
        assert_eq!(response.body["accepted"], results.len(), "{source}");
        assert_eq!(response.body["rejected"], 0, "{source}");
        assert!(events.len() > 1 && results.len() >= events.len(), "{source}: {}", results.len());
        self.assert_documents(source, events).await;
        exchanges
    }

    /// As [`Apis::assert_list`], for an API whose answer is one record.
    async fn assert_one(&self, source: &str, target: &str, expected: impl Fn(&[Value]) -> Expected) {
        let (response, exchanges) = self.fetched(source, target).await;
        let answer = exchanges[0].json();
        let events = expected(std::slice::from_ref(&answer));
        let (id, event) = events.first_key_value().unwrap();
        assert_eq!(response.status, 202, "{source}: {response:?}");
        assert_eq!(response.body["id"], json!(id), "{source}");
        assert_eq!(response.body["timestamp"], json!(event.timestamp), "{source}");
        assert_eq!(response.body["payload"], answer, "{source}");
        assert_eq!(response.body["topic"], json!(self.names.topic), "{source}");
        self.assert_documents(source, events).await;
    }
}

/// Panics unless the document has exactly the fields of the event.
fn assert_document(mut found: Document, event: Event) {
    assert!(matches!(found.remove("_id"), Some(Bson::ObjectId(_))), "{found}");
    for (number, iso) in [("event_timestamp", "event_timestamp_iso"), ("ingested_at", "ingested_at_iso")] {
        let text = found.get_str(iso).unwrap();
        let millis = bson::DateTime::parse_rfc3339_str(text).unwrap().timestamp_millis();
        assert!(text.len() == 24 && text.ends_with('Z'), "{found}");
        assert_eq!(found.get_i64(number).unwrap(), millis, "{found}");
        found.remove(iso);
    }
    let age = bson::DateTime::now().timestamp_millis() - found.get_i64("ingested_at").unwrap();
    assert!((0..600_000).contains(&age), "{found}");
    found.remove("ingested_at");
    let mut document = event.fields;
    document
        .extend(doc! { "event_id": event.id, "event_timestamp": event.timestamp, "api_version": "1.0.0" });
    assert_eq!(found, document);
}

/// One test, because the start of the processes takes longer than all fetches.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_eight_public_apis_become_documents_field_by_field() {
    let apis = Apis::start().await;
    apis.assert_list("flights", "/api/states/all", expected::flights).await;
    apis.assert_list("quakes", "/earthquakes/", expected::quakes).await;
    apis.assert_list("bikes", "/v2/networks/velib", expected::bikes).await;
    apis.assert_list("prices", "/api/v3/simple/price", expected::prices).await;
    apis.assert_one("weather", "/v1/forecast", expected::weather).await;
    apis.assert_one("iss", "/iss-now.json", expected::iss).await;
    pages_of_trades_are_fetched_to_the_end(&apis).await;
    trades_keep_64_bit_ids_and_the_text_of_prices(&apis).await;
    pages_of_events_are_fetched_to_the_end_and_not_again(&apis).await;
    unchanged_record_is_not_modified(&apis).await;
    limits_and_errors_of_opensky_end_in_their_own_answers(&apis).await;
    flight_without_a_time_has_that_of_the_answer(&apis).await;
    let Apis { producer, consumer, .. } = apis;
    assert!(producer.terminate().await.success());
    let counted = consumer.terminate_with_counters().await;
    assert_eq!((counted.repeated, counted.dead_lettered), (0, 0), "{counted:?}");
}

async fn pages_of_trades_are_fetched_to_the_end(apis: &Apis) {
    let pages = apis.assert_list("trades", "/products/BTC-USD/trades", expected::trades).await;
    assert_eq!(pages.len(), 3, "240 trades in pages of 100");
    assert!(pages[0].target().ends_with("/trades?limit=100"), "{}", pages[0].target());
    for pair in pages.windows(2) {
        let cursor = pair[0].received("cb-after").expect("a cursor");
        assert!(pair[1].target().ends_with(&format!("/trades?limit=100&after={cursor}")));
    }
    assert_eq!(pages[2].received("cb-after"), None, "the last page");
}

async fn trades_keep_64_bit_ids_and_the_text_of_prices(apis: &Apis) {
    let trade = r#"[{"time":"2026-11-28T20:15:03.860123Z","trade_id":9007199254740993,"price":"6225.32000000","size":"0.06469797","side":"sell"}]"#;
    apis.api.set("/trades", Answer::This(response("200 OK", "", trade)));
    assert_eq!(apis.fetch("trades").await.body["accepted"], 1);
    apis.api.unset("/trades");
    let trades = mongo::collection(&apis.names, "trades").await;
    let found = eventually("the trade", LIMIT, || mongo::find(&trades, "9007199254740993")).await;
    assert_eq!(found.get_i64("trade_id").unwrap(), 9_007_199_254_740_993);
    assert_eq!(found.get_str("price").unwrap(), "6225.32000000");
    assert_eq!(found.get_str("size").unwrap(), "0.06469797");
    assert_eq!(found.get_str("time").unwrap(), "2026-11-28T20:15:03.860123Z");
    assert_eq!(found.get_i64("event_timestamp").unwrap(), 1_795_896_903_860);
}

async fn pages_of_events_are_fetched_to_the_end_and_not_again(apis: &Apis) {
    let pages = apis.assert_list("activity", "/events", expected::activity).await;
    assert_eq!(pages.len(), 3, "90 events in pages of 30");
    for page in &pages {
        assert_eq!(page.sent("accept"), Some("application/vnd.github+json"));
        assert!(page.sent("user-agent").is_some_and(|agent| agent.starts_with("slipstream/")));
        assert_eq!(page.sent("if-none-match"), None, "nothing is known yet");
    }
    let next = |page: &Exchange| page.received("link").map(|link| link.contains("rel=\"next\""));
    assert_eq!(pages.iter().map(next).collect::<Vec<_>>(), [Some(true), Some(true), None]);
    // X-Poll-Interval: no request is sent before.
    let (early, none) = apis.fetched("activity", "/events").await;
    assert_eq!((early.status, none.len()), (502, 0), "{early:?}");
    assert_eq!(early.header("retry-after"), Some("1"), "{early:?}");
    assert!(early.body["detail"].as_str().unwrap().contains("allows its next request in"), "{early:?}");
    // Each ten seconds there is a new event, and then the answer has changed.
    eventually("304", LIMIT, || async {
        let (response, pages) = apis.fetched("activity", "/events").await;
        let tags = pages.iter().all(|page| page.sent("if-none-match").is_some());
        if response.body["not_modified"] != true {
            return None;
        }
        assert!(tags && pages.len() == 3 && pages.iter().all(|page| page.status() == 304), "{pages:?}");
        assert_eq!(response.status, 200);
        let body = json!({"accepted": 0, "rejected": 0, "results": [], "not_modified": true});
        assert_eq!(response.body, body);
        Some(())
    })
    .await;
}

async fn unchanged_record_is_not_modified(apis: &Apis) {
    // The weather changes each quarter of an hour.
    let not_modified = eventually("an unchanged record", LIMIT, || async {
        let response = apis.fetch("weather").await;
        (response.status == 200).then_some(response)
    });
    assert_eq!(not_modified.await.body["not_modified"], true);
}

async fn limits_and_errors_of_opensky_end_in_their_own_answers(apis: &Apis) {
    let limit = response("429 Too Many Requests", "X-Rate-Limit-Retry-After-Seconds: 2\r\n", "");
    apis.api.set("/api/states/all", Answer::This(limit));
    let limited = Instant::now();
    let (refused, requests) = apis.fetched("flights", "/api/states/all").await;
    apis.api.unset("/api/states/all");
    assert_eq!((refused.status, requests.len()), (502, 1), "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("2"), "{refused:?}");
    assert_eq!(refused.body["retryable"], true, "{refused:?}");
    // Another source is not limited.
    assert_eq!(apis.fetch("iss").await.status / 100, 2);
    let (_, requests) = apis.fetched("flights", "/api/states/all").await;
    assert!(requests.is_empty(), "a request within the limit: {requests:?}");
    eventually("the limit ends", LIMIT, || async {
        (apis.fetched("flights", "/api/states/all").await.0.status == 202).then_some(())
    })
    .await;
    assert!(limited.elapsed() >= Duration::from_secs(2), "{:?}", limited.elapsed());

    apis.api.set("/api/states/all", Answer::This(response("404 Not Found", "", "")));
    let (missing, requests) = apis.fetched("flights", "/api/states/all").await;
    apis.api.unset("/api/states/all");
    assert_eq!((missing.status, requests.len()), (502, 1), "{missing:?}");
    let detail = missing.body["detail"].as_str().unwrap();
    assert_eq!(detail, "the API of flights returned status 404", "{missing:?}");

    // An area without aircraft.
    let empty = response("200 OK", "", r#"{"time":1795898400,"states":null}"#);
    apis.api.set("/api/states/all", Answer::This(empty));
    let empty = apis.fetch("flights").await;
    apis.api.unset("/api/states/all");
    let body = json!({"accepted": 0, "rejected": 0, "unchanged": 0, "results": []});
    assert_eq!((empty.status, empty.body), (202, body));
}

async fn flight_without_a_time_has_that_of_the_answer(apis: &Apis) {
    let states = r#"{"time":1795898400,"states":[["3c6444","DLH9LF  ","Germany",null,null,6.15,50.19,9639.3,false,232.9,98.3,4.5,null,9547.9,"1000",false,0]]}"#;
    apis.api.set("/api/states/all", Answer::This(response("200 OK", "", states)));
    assert_eq!(apis.fetch("flights").await.body["accepted"], 1);
    let flights = mongo::collection(&apis.names, "flights").await;
    let found = eventually("the flight", LIMIT, || mongo::find(&flights, "3c6444")).await;
    let states: Value = serde_json::from_str(states).unwrap();
    let event = expected::flights(&[states]).remove("3c6444").unwrap();
    assert_eq!(event.timestamp, 1_795_898_400_000);
    assert_document(found, event);
}
