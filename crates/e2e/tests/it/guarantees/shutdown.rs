//! Graceful shutdown under load.

use std::time::Duration;

use bson::doc;
use serde_json::json;
use testkit::{Process, Stack, eventually, http, mongo};

const EVENTS: u64 = 4_000;

/// The number of records that the consumer has read and finished.
async fn counted(consumer: &Process) -> Option<(u64, u64)> {
    let counters = http::get(&consumer.url("/health")).await.ok()?.body["counters"].clone();
    let finished = ["inserted", "updated", "unchanged", "superseded", "skipped", "dead_lettered"];
    let finished = finished.iter().map(|outcome| counters[outcome].as_u64()).sum::<Option<u64>>()?;
    Some((counters["read"].as_u64()?, finished))
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_consumer_shutdown_under_load_no_loss_and_no_repeat() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let bodies = (0..EVENTS).map(|n| json!({"id": format!("e{n}"), "source": "manual", "payload": {"n": n}}));
    let (url, bodies) = (producer.url("/ingest"), bodies.collect());
    let load = tokio::spawn(async move { http::post_all(&url, bodies).await });
    let first = stack.consumer(&names, &[]);
    let before = eventually("a third is finished", Duration::from_secs(60), || async {
        counted(&first).await.filter(|(_, finished)| *finished > EVENTS / 3)
    });
    before.await;
    let manual = mongo::collection(&names, "manual").await;
    let ended = first.terminate().await;
    assert!(ended.success(), "{ended}");
    load.await.unwrap();
    assert!(producer.terminate().await.success());
    // The records that the first consumer finished are stored, committed, and not read again: the
    // second one finishes exactly the others.
    let stored = manual.count_documents(doc! {}).await.unwrap();
    let second = stack.consumer(&names, &[]);
    eventually("the rest is finished", Duration::from_secs(60), || async {
        (manual.count_documents(doc! {}).await.ok()? == EVENTS).then_some(())
    })
    .await;
    let rest = eventually("the rest is counted", Duration::from_secs(5), || async {
        counted(&second).await.filter(|(read, finished)| read == finished)
    });
    assert_eq!(stored + rest.await.1, EVENTS, "nothing lost, nothing twice");
    assert!(second.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn g7_producer_shutdown_under_load_responds_to_each_request() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let consumer = stack.consumer(&names, &[]);
    let producer = stack.producer(&names, &[]);
    producer.ready().await;
    let url = producer.url("/ingest");
    let senders: Vec<_> =
        (0..8).map(|sender| tokio::spawn(send_until_connection_refused(url.clone(), sender))).collect();
    let manual = mongo::collection(&names, "manual").await;
    eventually("events arrive", Duration::from_secs(60), || async {
        (manual.count_documents(doc! {}).await.ok()? > 200).then_some(())
    })
    .await;
    let ended = producer.terminate().await;
    assert!(ended.success(), "{ended}");
    let (mut accepted, mut cut) = (0, 0);
    for sender in senders {
        let sent = sender.await.unwrap();
        accepted += sent.accepted;
        cut += u64::from(sent.cut);
    }
    eventually("every accepted event is a document", Duration::from_secs(60), || async {
        (manual.count_documents(doc! {}).await.ok()? >= accepted).then_some(())
    })
    .await;
    assert!(consumer.terminate().await.success());
    let stored = manual.count_documents(doc! {}).await.unwrap();
    assert!(stored <= accepted + cut, "{stored} stored, {accepted} accepted, {cut} cut");
}

/// Responses to one client until the producer has ended.
struct Sent {
    accepted: u64,
    /// Whether the last connection was closed without a response: it was opened when the listener
    /// closed, and its request was not read. The outcome is unknown to the client.
    cut: bool,
}

/// Sends until the producer has ended. Panics if a response is neither 202 nor 503.
async fn send_until_connection_refused(url: String, sender: usize) -> Sent {
    let mut accepted = 0;
    loop {
        let body = json!({"id": format!("{sender}-{accepted}"), "source": "manual", "payload": {}});
        match http::post(&url, &body).await {
            Ok(response) if response.status == 202 => accepted += 1,
            Ok(response) => assert_eq!(response.status, 503, "{response:?}"),
            Err(error) => return Sent { accepted, cut: !error.is_connect() },
        }
    }
}
