//! Several sources: each has a schedule, a failure state and a summary line of its own.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Poller, Response, ScriptedProducer, until};

const FILE: &str = "
sources:
  adsbdb: {pull: {kind: adsbdb, every: 3s}}
  quakes: {pull: {url: 'https://example.com/q', every: 200ms, records: ''}, event: {id: /id}}
";

/// A folder with a sources file, and the path of the file.
fn file() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sources.yaml");
    std::fs::write(&path, FILE).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn records() -> Response {
    Response::records(207, r#"{"accepted":3,"rejected":1,"unchanged":2,"results":[{"index":0}]}"#)
}

/// A poller that calls for each source of the file, every 0.1 s, until it is stopped.
async fn start_with_all_sources(producer: &ScriptedProducer, path: &str) -> Poller {
    let variables =
        [("SOURCES_FILE", path), ("POLL_SOURCES", "*"), ("DURATION_SEC", "0"), ("INTERVAL_SEC", "0.1")];
    Poller::start(producer.address, &variables).await
}

#[tokio::test]
async fn a_slow_source_delays_no_other_source() {
    let (_folder, path) = file();
    let producer = ScriptedProducer::start([Response::never()]).await;
    producer.set_other(records());
    let variables = [("SOURCES_FILE", path.as_str()), ("POLL_SOURCES", "*"), ("DURATION_SEC", "0")];
    let poller = Poller::start(producer.address, &variables).await;
    until("five calls", || producer.others().len() >= 5).await;
    let others = producer.others();
    assert!(others.iter().all(|(source, _)| source == "quakes"), "{others:?}");
    assert_eq!(producer.calls().len(), 1, "the call for adsbdb is in flight");
    let pace = others[4].1 - others[0].1;
    assert!(pace > Duration::from_millis(600) && pace < Duration::from_millis(1600), "{pace:?}");
    poller.stop.cancel();
}

#[tokio::test]
async fn a_failing_source_neither_stops_others_nor_makes_the_poller_unready() {
    let (_folder, path) = file();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_other(Response::rejected(502));
    let poller = start_with_all_sources(&producer, &path).await;
    until("calls for both", || poller.counts().sent >= 3 && poller.counts().failed >= 2).await;
    assert!(poller.get("/readyz").await.starts_with("HTTP/1.1 200"));
    let health = poller.get("/health").await;
    let health: serde_json::Value = serde_json::from_str(health.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(health["status"], "ok", "{health}");
    assert!(
        health["sources"]["quakes"]["cause"].as_str().unwrap().contains("rejected by script"),
        "{health}"
    );
    assert!(health["sources"]["adsbdb"]["cause"].is_null(), "{health}");
    assert!(!poller.stop().await.failed());
}

#[tokio::test]
async fn a_source_without_news_is_a_success() {
    let (_folder, path) = file();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let unchanged = r#"{"accepted":0,"rejected":0,"results":[],"not_modified":true}"#;
    producer.set_other(Response::records(200, unchanged));
    let variables = [("SOURCES_FILE", path.as_str()), ("POLL_SOURCES", "quakes"), ("DURATION_SEC", "0.5")];
    let ended = Poller::start(producer.address, &variables).await.end().await;
    assert!(!ended.failed());
    assert_eq!((ended.counts.sent, ended.counts.failed), (3, 0));
    assert!(producer.calls().is_empty(), "adsbdb is not in POLL_SOURCES");
}

#[tokio::test]
async fn each_status_of_a_fetch_counts_for_its_source() {
    let (_folder, path) = file();
    let one = r#"{"id":"a","topic":"t","partition":0,"offset":7,"status":"enqueued"}"#;
    let many = r#"{"accepted":2,"rejected":1,"unchanged":4,"results":[]}"#;
    for (status, body, outcome) in [
        (200, many, "sent"),
        (202, many, "sent"),
        (202, one, "sent"),
        (207, many, "sent"),
        (200, one, "failed"),
        (207, one, "failed"),
        (202, r#"{"accepted":true}"#, "failed"),
        (207, r#"{"accepted":2,"rejected":1,"unchanged":0,"incomplete":"page 2","results":[]}"#, "failed"),
    ] {
        let producer = ScriptedProducer::start([Response::accepted()]).await;
        producer.set_other(Response::records(status, body));
        let variables = [("SOURCES_FILE", path.as_str()), ("POLL_SOURCES", "*"), ("DURATION_SEC", "0")];
        let poller = Poller::start(producer.address, &variables).await;
        until("a call for each", || poller.counts().sent + poller.counts().failed >= 2).await;
        let text = poller.get("/metrics").await;
        let sample = |name: &str, source: &str, rest: &str| -> f64 {
            let start = format!("slipstream_{name}{{source=\"{source}\"{rest}}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&start));
            value.unwrap_or_else(|| panic!("{start} in {text}")).parse().unwrap()
        };
        for other in ["sent", "failed", "abandoned"] {
            let calls = sample("source_poll_calls_total", "quakes", &format!(",outcome=\"{other}\""));
            assert_eq!(calls > 0.0, other == outcome, "{status} {body}: {other} {calls}");
        }
        assert!(sample("source_poll_calls_total", "adsbdb", ",outcome=\"sent\"") >= 1.0);
        let last = "source_last_poll_success_timestamp_seconds";
        assert!(sample(last, "adsbdb", "") > 1.7e9);
        assert_eq!(sample(last, "quakes", "") > 1.7e9, outcome == "sent");
        assert!(!text.contains("trades"), "only sources of POLL_SOURCES: {text}");
        poller.stop.cancel();
    }
}

#[tokio::test]
async fn retry_after_of_a_502_delays_only_its_source() {
    let (_folder, path) = file();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_other(Response::rejected(502).retry_after(2));
    let poller = start_with_all_sources(&producer, &path).await;
    until("two calls for quakes", || producer.others().len() >= 2).await;
    let calls = producer.others();
    let gap = calls[1].1 - calls[0].1;
    assert!(gap >= Duration::from_secs(2), "{gap:?}");
    assert!(producer.calls().len() >= 8, "adsbdb keeps its pace: {}", producer.calls().len());
    poller.stop.cancel();
}

#[tokio::test]
async fn a_file_without_pull_sources_leaves_the_poller_idle_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sources.yaml");
    std::fs::write(&path, "sources:\n  orders: {push: {}, event: {id: /no}}\n").unwrap();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    let variables = [("SOURCES_FILE", path.to_str().unwrap()), ("POLL_SOURCES", "*")];
    let poller = Poller::start(producer.address, &variables).await;
    assert!(poller.get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(producer.calls().is_empty() && producer.others().is_empty());
    poller.stop.cancel();
}

#[tokio::test]
async fn each_source_has_one_summary_line() {
    let (_folder, path) = file();
    let producer = ScriptedProducer::start([Response::accepted()]).await;
    producer.set_other(records());
    let mut command = Command::new(env!("CARGO_BIN_EXE_poller"));
    let url = format!("http://{}", producer.address);
    command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped()).envs([
        ("PRODUCER_BASE_URL", url.as_str()),
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("SOURCES_FILE", &path),
        ("POLL_SOURCES", "*"),
        ("DURATION_SEC", "1"),
    ]);
    let child = command.spawn().unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let summaries: Vec<_> = lines.filter(|line| line["message"] == "polling ended").collect();
    let counts: Vec<_> =
        summaries.iter().map(|line| (line["source"].as_str().unwrap(), line["sent"].as_u64())).collect();
    assert_eq!(counts, [("adsbdb", Some(1)), ("quakes", Some(5))]);
    assert!(text.contains(r#""accepted":3,"rejected":1,"unchanged":2,"not_modified":false"#), "{text}");
}
