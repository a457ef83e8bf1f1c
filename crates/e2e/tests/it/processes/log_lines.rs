//! The log of each process has JSON objects. No field has the Debug form of a Rust value.

use std::time::Duration;

use devservers::Simulator;
use serde_json::Value;
use testkit::{Process, Stack, eventually, http};

const LIMIT: Duration = Duration::from_secs(60);
const OWN_LINES: (&str, &str) = ("RUST_LOG", "info,producer=debug,consumer=debug,poller=debug,service=debug");

/// Waits for a log line with this message.
async fn line(process: &Process, message: &str) -> Value {
    eventually(message, LIMIT, || async {
        let log = process.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|line| line["message"] == message)
    })
    .await
}

/// Whether a text is the Debug form of an option, a result, a list, a text or a struct.
fn is_debug_form(text: &str) -> bool {
    let within = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    let of_struct = text.split_once(" { ").is_some_and(|(name, fields)| {
        name.ends_with(|c: char| c.is_alphanumeric()) && fields.contains(": ") && text.ends_with('}')
    });
    text == "None"
        || ["Some(", "Ok(", "Err("].iter().any(|start| within(start, ")"))
        || within("[", "]")
        || (text.len() > 1 && within("\"", "\""))
        || of_struct
}

fn check_all(process: &Process) {
    let log = process.log();
    assert!(!log.is_empty());
    for text in log.lines() {
        let line: Value = serde_json::from_str(text).expect(text);
        for (name, value) in line.as_object().expect(text) {
            assert!(!value.as_str().is_some_and(is_debug_form), "{name} in {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_fields_are_json_values() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", &simulator.base_url()), OWN_LINES]);
    let consumer = stack.consumer(&names, &[OWN_LINES]);
    let base = producer.url("");
    let settings = [("PRODUCER_BASE_URL", &*base), ("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0"), OWN_LINES];
    let poller = Process::start("poller", &settings);
    producer.ready().await;
    let job = producer.url("/ingest/adsbdb/poll?interval_sec=0.1&duration_sec=0.2");
    assert_eq!(http::request("POST", &job, "application/json", "").await.unwrap().status, 202);

    let accepted = line(&poller, "event accepted").await;
    assert!(accepted["offset"].is_u64() && accepted["partition"].is_u64(), "{accepted}");
    let made = line(&consumer, "indexes built").await;
    assert!(made["names"].as_str().is_some_and(|names| names.contains("event_id")), "{made}");
    assert_eq!(line(&producer, "poll job ended").await["state"], "done");
    [&producer, &consumer, &poller].into_iter().for_each(check_all);
}
