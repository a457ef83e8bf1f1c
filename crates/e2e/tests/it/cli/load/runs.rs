//! Loads that pass verification.

use std::collections::{HashMap, HashSet};

use bson::doc;
use rdkafka::Message;
use serde_json::value::RawValue;
use testkit::{Stack, mongo};

use super::{Site, lines};

/// A mixture: every fifth event is superseded, every fifth is hostile.
const MIXTURE: [&str; 8] = ["--keys", "60", "--superseded", "20%", "--hostile", "20%", "--connections", "8"];

/// Panics unless each event of the ledger is on the topic as recorded.
async fn assert_ledger(site: &Site, events: usize, batched: bool) {
    let ledger = lines(&site.ledger());
    assert_eq!(ledger.len(), events + 1);
    let run = ledger[0]["run"].as_str().unwrap();
    assert_eq!((&ledger[0]["source"], &ledger[0]["api_version"]), (&"manual".into(), &"1.0.0".into()));
    let records = testkit::kafka::read_all(&site.names, &site.names.topic).await;
    let at = |record: &rdkafka::message::OwnedMessage| (record.partition(), record.offset());
    let records: HashMap<_, _> = records.iter().map(|record| (at(record), record)).collect();
    let mut numbers = HashSet::new();
    for line in &ledger[1..] {
        assert_eq!((&line["answer"], &line["status"]), (&"accepted".into(), &202.into()), "{line}");
        assert!(numbers.insert(line["n"].as_u64().unwrap()), "{line} is there twice");
        let place = (line["partition"].as_i64().unwrap() as i32, line["offset"].as_i64().unwrap());
        // Compared as text: serde_json cannot hold some numbers.
        let record: HashMap<String, Box<RawValue>> =
            serde_json::from_slice(records[&place].payload().unwrap()).unwrap();
        let same = |name: &str| serde_json::to_string(&line[name]).unwrap() == record[name].get();
        assert!(same("id") && same("timestamp"), "{line} {record:?}");
        assert!(line["id"].as_str().unwrap().starts_with(run), "{line}");
        assert_eq!(line["ingested_at"].is_null(), batched, "{line}");
        assert!(batched || same("ingested_at"), "{line}");
        assert!(batched || line["topic"] == site.names.topic.as_str(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_has_every_response_and_verification_passes() {
    let site = Site::start(Stack::shared_without_sync().await).await;
    let sent = site.load(&[&MIXTURE[..], &["--events", "600", "--seed", "5"]].concat()).await;
    assert_eq!(
        (sent.code, sent.count("/accepted"), sent.count("/answers/202")),
        (Some(0), 600, 600),
        "{sent:?}"
    );
    assert!(
        (60..240).contains(&sent.count("/superseded")) && (60..240).contains(&sent.count("/hostile")),
        "{sent:?}"
    );
    assert!(sent.json["latency_ms"]["p99"].as_f64() >= sent.json["latency_ms"]["p50"].as_f64());
    assert_ledger(&site, 600, false).await;
    let verdict = site.verify(&[]).await;
    assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), 60), "{verdict:#?}");
    for kind in ["missing", "duplicated", "superseded", "altered", "foreign", "dead_lettered"] {
        assert_eq!(verdict.count(&format!("/{kind}/count")), 0, "{verdict:#?}");
    }
    // Superseded events came after newer ones and changed nothing.
    let health = testkit::http::get(&site.consumer.url("/health")).await.unwrap().body;
    assert!(health["counters"]["superseded"].as_u64().unwrap() > 0, "{health}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_of_batches_has_a_line_per_event_and_verification_passes() {
    let site = Site::start(Stack::shared_without_sync().await).await;
    let sent = site.load(&[&MIXTURE[..], &["--events", "1010", "--batch", "100"]].concat()).await;
    assert_eq!((sent.code, sent.count("/accepted")), (Some(0), 1_010), "{sent:?}");
    assert_ledger(&site, 1_010, true).await;
    let verdict = site.verify(&[]).await;
    assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), 60), "{verdict:#?}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn load_follows_its_rate_and_the_same_seed_repeats_it() {
    let site = Site::start(Stack::shared_without_sync().await).await;
    let arguments = ["--rate", "100", "--for", "1500ms", "--keys", "10", "--seed", "9"];
    let mut runs = Vec::new();
    for _ in 0..2 {
        let sent = site.load(&arguments).await;
        assert_eq!(
            (sent.code, sent.count("/events"), sent.count("/not_sent")),
            (Some(0), 150, 0),
            "{sent:?}"
        );
        let seconds = sent.json["seconds"].as_f64().unwrap();
        assert!(seconds > 1.4, "150 events at 100 a second in {seconds} s");
        assert_eq!(site.verify(&[]).await.code, Some(0));
        let mut events = lines(&site.ledger()).split_off(1);
        events.sort_by_key(|line| line["n"].as_u64());
        runs.push(
            events.iter().map(|line| (line["timestamp"].clone(), line["hash"].clone())).collect::<Vec<_>>(),
        );
        std::fs::remove_file(site.ledger()).unwrap();
    }
    assert_eq!(runs[0], runs[1]);
    let manual = mongo::collection(&site.names, "manual").await;
    assert_eq!(manual.count_documents(doc! {}).await.unwrap(), 20, "each run has ids of its own");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_events_alone_survive_inserts_and_updates_and_a_batch_too_large_for_a_request_goes_in_parts()
{
    let site = Site::start(Stack::shared_without_sync().await).await;
    // About 14 MiB; the limit of a request is 16 MiB.
    let all =
        ["--events", "1600", "--keys", "800", "--batch", "1600", "--hostile", "100%", "--superseded", "0%"];
    let sent = site.load(&all).await;
    assert_eq!(sent.json["answers"], serde_json::json!({"202": 1_600}), "{sent:?}");
    assert_eq!(
        (sent.code, sent.count("/hostile"), sent.count("/superseded")),
        (Some(0), 1_600, 0),
        "{sent:?}"
    );
    let requests = testkit::http::text(&site.producer.url("/metrics")).await.unwrap();
    let counted = r#"slipstream_http_requests_total{route="/ingest/batch",status="202"} "#;
    let counted = requests.lines().find_map(|line| line.strip_prefix(counted)).unwrap();
    assert!(counted.parse::<u64>().unwrap() > 1, "{counted}");
    let verdict = site.verify(&[]).await;
    assert_eq!((verdict.code, verdict.count("/documents")), (Some(0), 800), "{verdict:#?}");
    site.end().await;
}
