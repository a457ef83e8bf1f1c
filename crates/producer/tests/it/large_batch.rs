//! A batch far above the default limits, sent with curl.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;

use crate::application::unique;
use crate::compressed::{peak, process};
use crate::real_broker::shared;

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_100_mib_uses_less_than_150_mb_of_memory() {
    let topic = unique("large");
    let raised = [
        ("KAFKA_BROKER", shared().await),
        ("KAFKA_TOPIC", &topic),
        ("MAX_BATCH_EVENTS", "1000000"),
        ("MAX_BATCH_BYTES", "209715200"),
    ];
    let (child, app) = process(&raised).await;
    app.readyz(200).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, results) = (folder.path().join("events.ndjson"), folder.path().join("results.json"));
    let (mut lines, mut count) = (String::new(), 0);
    while lines.len() < 100 * MIB {
        writeln!(lines, r#"{{"id":"aircraft-{count}","source":"manual","payload":{{"mode_s":"3F28BC","speed":{count}.5,"note":"{}"}}}}"#, "x".repeat(180)).unwrap();
        count += 1;
    }
    tokio::fs::write(&file, lines).await.unwrap();
    let began = Instant::now();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", "POST", "-H", "Content-Type: application/x-ndjson", "-w", "%{http_code}"]);
    curl.arg("-T").arg(&file).arg("-o").arg(&results).arg(format!("http://{}/ingest/batch", app.address));
    let output = curl.kill_on_drop(true).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "202", "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(300), "{:?}", began.elapsed());
    let peak = peak(&child).await;
    assert!(peak < 150_000_000, "{} MB", peak / 1_000_000);
    let response: Value = serde_json::from_slice(&tokio::fs::read(&results).await.unwrap()).unwrap();
    assert_eq!((&response["accepted"], &response["rejected"]), (&count.into(), &0.into()));
    let results = response["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[4711]["id"]), (count, &"aircraft-4711".into()));
    println!("{count} events in {:?}, {} MB", began.elapsed(), peak / 1_000_000);
}
