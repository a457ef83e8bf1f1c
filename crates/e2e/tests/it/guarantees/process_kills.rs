//! Processes that are killed under load.

use std::collections::HashSet;
use std::time::Duration;

use bson::doc;
use serde_json::json;
use testkit::{Stack, eventually, http, mongo};

#[tokio::test(flavor = "multi_thread")]
async fn g1_5_000_events_survive_three_kills_of_the_consumer() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let bodies = (0..5_000).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
    let (url, bodies) = (producer.url("/ingest"), bodies.collect());
    let load = tokio::spawn(async move { http::post_all(&url, bodies).await });

    let manual = mongo::collection(&names, "manual").await;
    for kill in 1..=3_u64 {
        let consumer = stack.consumer(&names, &[]);
        // It is killed while it works: it has stored more documents than before.
        eventually("the consumer works", Duration::from_secs(60), || async {
            let stored = manual.count_documents(doc! {}).await.ok()?;
            (stored >= kill * 600).then_some(())
        })
        .await;
        consumer.kill().await;
    }
    load.await.unwrap();
    let consumer = stack.consumer(&names, &[]);
    let documents = eventually("every event is a document", Duration::from_secs(90), || async {
        let documents = mongo::all(&manual, doc! {}).await;
        (documents.len() >= 5_000).then_some(documents)
    })
    .await;
    let ids: HashSet<&str> = documents.iter().map(|document| document.get_str("event_id").unwrap()).collect();
    assert_eq!((ids.len(), documents.len()), (5_000, 5_000), "none lost, none twice");
    assert!(consumer.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_accepted_events_survive_a_kill_of_the_producer() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let consumer = stack.consumer(&names, &[]);
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let accepted = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (url, collected) = (producer.url("/ingest"), std::sync::Arc::clone(&accepted));
    let load = tokio::spawn(async move {
        for n in 0.. {
            let id = format!("k{n}");
            let body = json!({"id": id, "source": "manual", "payload": {}});
            match http::post(&url, &body).await {
                Ok(response) if response.status == 202 => collected.lock().unwrap().push(id),
                Ok(response) => panic!("{response:?}"),
                Err(_) => return,
            }
        }
    });
    eventually("some are accepted", Duration::from_secs(30), || async {
        (accepted.lock().unwrap().len() > 300).then_some(())
    })
    .await;
    producer.kill().await;
    load.await.unwrap();
    let manual = mongo::collection(&names, "manual").await;
    let accepted = accepted.lock().unwrap().clone();
    eventually("every accepted event is a document", Duration::from_secs(60), || async {
        let documents = mongo::all(&manual, doc! {}).await;
        let ids: HashSet<&str> =
            documents.iter().filter_map(|document| document.get_str("event_id").ok()).collect();
        accepted.iter().all(|id| ids.contains(id.as_str())).then_some(())
    })
    .await;
    assert!(consumer.terminate().await.success());
}
