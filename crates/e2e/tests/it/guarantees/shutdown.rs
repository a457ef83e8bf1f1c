//! Clean stops under load.

use std::time::Duration;

use bson::doc;
use serde_json::json;
use testkit::{Process, Stack, eventually, http, mongo};

const EVENTS: u64 = 4_000;

/// Records that the consumer read and finished so far.
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
    // What the first one finished is stored, committed, and not read again: the second finishes exactly the rest.
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
        (0..8).map(|sender| tokio::spawn(send_until_refused(url.clone(), sender))).collect();
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

/// What one client saw until the producer was gone.
struct Sent {
    accepted: u64,
    /// Whether its last connection was closed without an answer: it was made in the moment in which the listener
    /// closed, and its request was not read any more. Such an outcome is unknown to a client.
    cut: bool,
}

/// Sends until the producer is gone; every answer until then must be a true one.
async fn send_until_refused(url: String, sender: usize) -> Sent {
    let mut accepted = 0;
    loop {
        let body = json!({"id": format!("{sender}-{accepted}"), "source": "manual", "payload": {}});
        match http::post(&url, &body).await {
            Ok(answer) if answer.status == 202 => accepted += 1,
            Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
            Err(error) => return Sent { accepted, cut: !error.is_connect() },
        }
    }
}
