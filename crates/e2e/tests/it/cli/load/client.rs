//! How the client handles each response.

use std::time::Duration;

use serde_json::{Value, json};

use super::script::{Say, Script};
use super::{Said, lines, load};

/// Runs a load against `script`. Returns its output and the events of the ledger.
async fn sent(script: &Script, arguments: &[&str]) -> (Said, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let said = load(&script.url(), &[], &ledger, arguments).await;
    (said, lines(&ledger).split_off(1))
}

fn refusal(status: u16, headers: &'static str, retryable: bool) -> Say {
    Say::This(status, headers, json!({"status": status, "retryable": retryable}).to_string())
}

#[tokio::test]
async fn retry_after_is_honored_and_the_same_body_is_sent() {
    let script = Script::start([refusal(503, "retry-after: 1\r\n", true), Say::Accepted]).await;
    let (said, ledger) = sent(&script, &["--events", "1"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.json["answers"], json!({"202": 1, "503": 1}));
    let requests = script.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1), "{requests:?}");
    assert_eq!(requests[0].body, requests[1].body);
    assert_eq!(requests[0].path, "/ingest");
    assert_eq!((&ledger[0]["answer"], &ledger[0]["attempts"]), (&"accepted".into(), &2.into()));
    let place = ["topic", "partition", "offset", "ingested_at"].map(|name| ledger[0][name].clone());
    assert_eq!(place, [json!("t"), json!(0), json!(7), json!(9)]);
    assert!(ledger[0].get("cut").is_none() && ledger[0].get("unconfirmed").is_none(), "nothing was unknown");
}

#[tokio::test]
async fn retry_after_with_a_date_is_honored() {
    let headers = "date: Tue, 24 Nov 2026 06:30:00 GMT\r\nretry-after: Tue, 24 Nov 2026 06:30:02 GMT\r\n";
    let script = Script::start([refusal(503, headers, true), Say::Accepted]).await;
    let (said, _) = sent(&script, &["--events", "1"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    let requests = script.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(2), "{requests:?}");
}

#[tokio::test]
async fn event_with_an_unknown_outcome_is_retried_and_recorded_as_such() {
    let script = Script::start([Say::Nothing, refusal(504, "", true), Say::Accepted]).await;
    let (said, ledger) = sent(&script, &["--events", "1"]).await;
    assert_eq!((said.code, said.count("/cut"), said.count("/answers/504")), (Some(0), 1, 1), "{said:?}");
    let bodies: Vec<String> = script.requests().into_iter().map(|request| request.body).collect();
    assert!(bodies.len() == 3 && bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    let [line] = &ledger[..] else { panic!("{ledger:?}") };
    assert_eq!((&line["answer"], &line["attempts"]), (&"accepted".into(), &3.into()));
    assert_eq!(line["cut"].as_array().map(Vec::len), Some(1), "{line}");
    assert_eq!(line["unconfirmed"].as_array().map(Vec::len), Some(1), "{line}");
}

#[tokio::test]
async fn only_events_of_a_batch_without_a_final_result_are_retried() {
    let partly = json!({"accepted": 0, "rejected": 4, "results": [
        {"index": 0, "status": 422, "detail": "x", "retryable": false},
        {"index": 1, "status": 503, "detail": "x", "retryable": true},
        {"index": 2, "status": 422, "detail": "x", "retryable": false},
        {"index": 3, "status": 504, "detail": "x", "retryable": true},
    ]});
    let rest = json!({"retryable": false, "results": [
        {"index": 0, "status": 422, "detail": "x", "retryable": false},
        {"index": 1, "status": 422, "detail": "x", "retryable": false},
    ]});
    let script =
        Script::start([Say::This(207, "", partly.to_string()), Say::This(422, "", rest.to_string())]).await;
    let (said, ledger) = sent(&script, &["--events", "4", "--batch", "4"]).await;
    let requests = script.requests();
    let ids = |body: &str| {
        body.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
            .collect::<Vec<_>>()
    };
    let (first, second) = (ids(&requests[0].body), ids(&requests[1].body));
    assert_eq!(requests.len(), 2);
    assert_eq!(second, [first[1].clone(), first[3].clone()]);
    assert!(
        requests[0].path == "/ingest/batch"
            && requests[0].head.contains("content-type: application/x-ndjson")
    );
    // Nothing was accepted, so the load fails. One event may be stored.
    assert_eq!((said.code, said.count("/refused"), said.count("/unknown")), (Some(1), 3, 1), "{said:?}");
    let unknown: Vec<&Value> = ledger.iter().filter(|line| line["answer"] == "unknown").collect();
    assert!(unknown.len() == 1 && unknown[0]["id"] == first[3], "{ledger:?}");
}

#[tokio::test]
async fn events_without_a_final_response_are_abandoned_after_the_grace() {
    for (say, answer) in [
        (refusal(504, "", true), "unknown"),
        (refusal(503, "", true), "refused"),
        (refusal(503, "retry-after: 3000\r\n", true), "refused"),
        (Say::This(502, "", "<html>".into()), "unknown"),
    ] {
        let script = Script::start([say]).await;
        let (said, ledger) = sent(&script, &["--events", "2", "--grace", "1s"]).await;
        assert_eq!((said.code, said.count("/unanswered")), (Some(1), 2), "{said:?}");
        assert!(ledger.len() == 2 && ledger.iter().all(|line| line["answer"] == answer), "{ledger:?}");
        assert!(said.json["seconds"].as_f64().unwrap() < 10.0, "{said:?}");
    }
}

#[tokio::test]
async fn missing_response_is_a_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let said = load(&url, &[("CALL_TIMEOUT_SEC", "60")], &ledger, &["--events", "1", "--grace", "1s"]).await;
    assert_eq!((said.code, said.count("/unknown"), said.count("/cut")), (Some(1), 1, 1), "{said:?}");
    assert_eq!(lines(&ledger)[1]["status"], Value::Null);
    drop(listener);
}

#[tokio::test]
async fn permanent_error_is_not_retried() {
    let script = Script::start([refusal(422, "", false), Say::Accepted]).await;
    let (said, ledger) = sent(&script, &["--events", "2", "--connections", "1"]).await;
    assert_eq!((said.code, said.count("/refused"), said.count("/accepted")), (Some(0), 1, 1), "{said:?}");
    assert_eq!(script.requests().len(), 2);
    assert_eq!((&ledger[0]["answer"], &ledger[0]["status"]), (&"refused".into(), &422.into()));
}

#[tokio::test]
async fn load_with_an_event_limit_ends_although_some_cannot_be_sent() {
    let script = Script::start([refusal(503, "", true)]).await;
    let (said, ledger) = sent(&script, &["--events", "9", "--connections", "2", "--grace", "1s"]).await;
    assert_eq!((said.code, said.count("/events"), said.count("/not_sent")), (Some(1), 2, 7), "{said:?}");
    assert_eq!(ledger.len(), 2, "what was not sent has no line: {ledger:?}");
}

#[tokio::test]
async fn delayed_schedule_is_caught_up() {
    let script = Script::start([refusal(503, "retry-after: 1\r\n", true), Say::Accepted]).await;
    let arguments = ["--rate", "100", "--for", "500ms", "--connections", "1"];
    let (said, ledger) = sent(&script, &arguments).await;
    assert_eq!((said.code, said.count("/accepted"), said.count("/not_sent")), (Some(0), 50, 0), "{said:?}");
    assert_eq!(ledger.len(), 50);
    // The delayed event delayed the next ones. The latency of each counts from its scheduled time.
    assert!(said.json["latency_ms"]["p50"].as_f64().unwrap() > 400.0, "{said:?}");
}

#[tokio::test]
async fn unwritable_ledger_ends_the_load() {
    let script = Script::start([Say::Accepted]).await;
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    // Limits the file size to some kilobytes and ignores SIGXFSZ.
    let line = "trap '' XFSZ; ulimit -f 8; exec \"$0\" load --source manual --ledger \"$1\"";
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", line]).arg(testkit::process::binary("slipstream")).arg(&ledger);
    command.env_clear().env("PRODUCER_BASE_URL", script.url()).kill_on_drop(true);
    let ended = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(1) && said.contains("File too large"), "{:?} {said}", ended.status);
}
