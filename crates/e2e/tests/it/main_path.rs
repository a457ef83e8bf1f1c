//! The main path, on the broker that SLIPSTREAM_BROKER names.

use std::time::Duration;

use bson::{Bson, doc};
use devservers::Simulator;
use serde_json::json;
use testkit::{Process, Stack, eventually, http, kafka, mongo};

const SAMPLE_EVENT: &str = include_str!("../../../events/fixtures/event.json");
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn sample_event_becomes_the_sample_document() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let consumer = stack.consumer(&names, &[("EXPECTED_SOURCE", "adsbdb")]);
    consumer.ready().await;
    kafka::produce(&names, &[(Some("3F28BC"), SAMPLE_EVENT.as_bytes())]).await;

    let adsbdb = mongo::collection(&names, "adsbdb").await;
    let mut document = eventually("document", LIMIT, || mongo::find(&adsbdb, "3F28BC")).await;
    assert!(matches!(document.remove("_id"), Some(Bson::ObjectId(_))));
    let sample = doc! {
        "type": "G Hot Air Balloon",
        "icao_type": "BALL",
        "manufacturer": "Schroeder Fire Balloons",
        "mode_s": "3F28BC",
        "registration": "D-OBII",
        "registered_owner_country_iso_name": "DE",
        "registered_owner_country_name": "Germany",
        "registered_owner_operator_flag_code": "BALL",
        "registered_owner": "Private",
        "event_id": "3F28BC",
        "event_timestamp": 1_730_000_000_000_i64,
        "ingested_at": 1_730_000_000_100_i64,
        "api_version": "1.0.0",
        "event_timestamp_iso": "2024-10-27T03:33:20.000Z",
        "ingested_at_iso": "2024-10-27T03:33:20.100Z",
    };
    assert_eq!(document, sample);
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn event_of_any_source_is_stored_in_its_collection() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let body =
        json!({"source": "manual", "payload": {"message": "Hello", "value": 42, "$set": {"a.b": "$c"}}});
    let response = http::post(&producer.url("/ingest"), &body).await.unwrap();
    assert_eq!(response.status, 202, "{response:?}");
    assert_eq!(response.body["status"], "enqueued");
    let id = response.body["id"].as_str().unwrap();

    let manual = mongo::collection(&names, "manual").await;
    let document = eventually("document", LIMIT, || mongo::find(&manual, id)).await;
    assert_eq!(document.get_i32("value").unwrap(), 42);
    assert_eq!(document.get_document("$set").unwrap(), &doc! {"a.b": "$c"});
    assert_eq!(document.get_i64("ingested_at").ok(), response.body["ingested_at"].as_i64());
}

#[tokio::test(flavor = "multi_thread")]
async fn polled_aircraft_have_mode_s_as_event_id() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]);
    let consumer = stack.consumer(&names, &[("EXPECTED_SOURCE", "adsbdb")]);
    let base = producer.url("");
    let poller = Process::start(
        "poller",
        &[("PRODUCER_BASE_URL", &base), ("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0")],
    );

    let adsbdb = mongo::collection(&names, "adsbdb").await;
    let documents = eventually("aircraft", LIMIT, || async {
        let documents = mongo::all(&adsbdb, doc! {}).await;
        (documents.len() >= 5).then_some(documents)
    });
    for document in documents.await {
        assert_eq!(document.get("event_id"), document.get("mode_s"), "{document}");
    }
    assert!(poller.terminate().await.success());
    assert!(producer.terminate().await.success());
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g3_older_event_after_a_newer_one_changes_nothing() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    for (timestamp, value) in
        [(1_700_000_000_000_u64, "first"), (1_800_000_000_000, "newest"), (1_750_000_000_000, "late")]
    {
        let body =
            json!({"id": "one", "timestamp": timestamp, "source": "manual", "payload": {"value": value}});
        assert_eq!(http::post(&producer.url("/ingest"), &body).await.unwrap().status, 202);
    }
    let last = json!({"id": "two", "source": "manual", "payload": {}});
    assert_eq!(http::post(&producer.url("/ingest"), &last).await.unwrap().status, 202);

    let manual = mongo::collection(&names, "manual").await;
    eventually("all three are finished", LIMIT, || async {
        let health = http::get(&consumer.url("/health")).await.ok()?.body;
        (health["counters"]["superseded"] == 1).then_some(())
    })
    .await;
    let document = mongo::find(&manual, "one").await.unwrap();
    assert_eq!(document.get_str("value").unwrap(), "newest");
}
