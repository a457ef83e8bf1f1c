//! Servers that are unavailable and return.

use std::time::{Duration, Instant};

use bson::doc;
use serde_json::json;
use testkit::{Stack, eventually, http, kafka, mongo};

/// Duration of the outage: longer than every timeout of the client libraries.
const OUTAGE: Duration = Duration::from_secs(20);

#[testkit::needs(own_mongodb)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_unavailable_for_20_s_no_event_is_lost() {
    let stack = Stack::start().await;
    let names = stack.names();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let manual = mongo::collection(&names, "manual").await;
    let bodies = (0..3_000).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
    let (url, bodies) = (producer.url("/ingest"), bodies.collect());
    let load = tokio::spawn(async move { http::post_all(&url, bodies).await });
    eventually("the middle of the load", Duration::from_secs(30), || async {
        (manual.count_documents(doc! {}).await.ok()? >= 500).then_some(())
    })
    .await;

    stack.mongodb.kill();
    let gone = Instant::now();
    eventually("the consumer says that it is not ready", Duration::from_secs(15), || async {
        let response = http::get(&consumer.url("/readyz")).await.ok()?;
        (response.status == 503).then_some(())
    })
    .await;
    load.await.unwrap();
    tokio::time::sleep_until((gone + OUTAGE).into()).await;
    assert!(consumer.is_running() && producer.is_running());
    stack.mongodb.restart().await.unwrap();
    let back = Instant::now();
    eventually("every event is a document", Duration::from_secs(60), || async {
        (manual.count_documents(doc! {}).await.ok()? == 3_000).then_some(())
    })
    .await;
    println!("all stored {:?} after the database answered again", back.elapsed());
    assert!(
        kafka::read_all(&names, &names.dead_letter_topic()).await.is_empty(),
        "an outage is no reason for a dead letter"
    );
    assert!(consumer.is_running() && producer.is_running());
    let log = consumer.log();
    let lines = ["mongodb is unavailable", "mongodb is ready"].map(|message| log.matches(message).count());
    assert_eq!(lines, [1, 2], "one line a change of state: {log}");
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g6_unavailable_broker_is_reported_at_once_and_work_resumes() {
    let stack = Stack::start().await;
    let names = stack.names();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    stack.broker.kill();
    eventually("readyz is 503", Duration::from_secs(10), || async {
        let response = http::get(&producer.url("/readyz")).await.ok()?;
        (response.status == 503).then_some(())
    })
    .await;

    let asked = Instant::now();
    let body = json!({"id": "one", "source": "manual", "payload": {}});
    let response = http::post(&producer.url("/ingest"), &body).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.header("retry-after").is_some(), "{response:?}");
    assert_eq!((&response.body["retryable"], &response.body["id"]), (&json!(true), &json!("one")));
    let health = http::get(&producer.url("/health")).await.unwrap();
    assert_eq!((health.status, &health.body["status"]), (200, &json!("degraded")), "{health:?}");
    assert!(health.body["last_error"].is_string() || health.body["last_error"].is_object(), "{health:?}");

    stack.broker.restart().await.unwrap();
    let back = Instant::now();
    eventually("events are accepted again", Duration::from_secs(5), || async {
        let response = http::post(&producer.url("/ingest"), &body).await.ok()?;
        (response.status == 202).then_some(())
    })
    .await;
    println!("accepted {:?} after the broker answered again", back.elapsed());
    let manual = mongo::collection(&names, "manual").await;
    eventually("the event is a document", Duration::from_secs(30), || mongo::find(&manual, "one")).await;
    println!("stored {:?} after the broker answered again", back.elapsed());
    assert!(consumer.is_running() && producer.is_running());
}
