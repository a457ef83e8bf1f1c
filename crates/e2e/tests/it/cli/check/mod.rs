//! `slipstream check`: a healthy deployment, and each warning and failure on servers that have its
//! cause.

mod database;
mod findings;
mod group;
mod processes;
mod topics;

use devservers::Simulator;
use findings::{Findings, check};
use testkit::{Process, Stack};

#[tokio::test(flavor = "multi_thread")]
async fn healthy_deployment_passes_with_the_warnings_of_a_single_broker() {
    let stack = Stack::shared().await;
    let names = stack.names();
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (producer, consumer) = (stack.producer(&names, &[]), stack.consumer(&names, &[]));
    producer.ready().await;
    consumer.ready().await;
    let url = |process: &Process| process.url("");
    let (producer_url, consumer_url, adsbdb_url) = (url(&producer), url(&consumer), simulator.base_url());
    let environment = [
        ("PRODUCER_BASE_URL", producer_url.as_str()),
        ("CONSUMER_BASE_URL", &consumer_url),
        ("ADSBDB_BASE_URL", &adsbdb_url),
    ];
    let joined =
        |findings: &Findings| findings.has("ok", &format!("group {}", names.group), "1 member, stable");
    let found = testkit::eventually("the group is stable", std::time::Duration::from_secs(60), || async {
        let found = check(&names, &environment).await;
        (joined(&found) && found.code == Some(0)).then_some(found)
    })
    .await;
    assert_eq!(found.code, Some(0), "{found:?}");
    for subject in
        ["kafka", "mongodb", "mongodb write concern", "mongodb rights", "producer", "consumer", "adsbdb"]
    {
        found.assert("ok", subject, "");
    }
    found.assert("ok", &format!("topic {}", names.topic), "6 partitions");
    found.assert("ok", &format!("collection {}.adsbdb", names.database), "does not exist yet");
    let copies = format!("topic {}", names.topic);
    found.assert("warn", &copies, "replication factor 1");
    found.assert("warn", &copies, "records are deleted after 7 days (retention.ms)");
    assert!(found.all.iter().all(|finding| finding["level"] == "ok"
        || finding["cause"].as_str().unwrap().starts_with("replication factor 1")
        || finding["cause"].as_str().unwrap().contains("(retention.ms)")));
    let text = testkit::process::command("slipstream", &findings::environment(&names, &environment));
    let text = { text }.arg("check").output().await.unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("ok    kafka: answers") && text.contains("0 failures, 3 warnings"), "{text}");
    assert!(text.contains("\n      -> "), "each warning has its remedy: {text}");
}

#[tokio::test]
async fn invalid_configuration_is_rejected_with_all_invalid_variables() {
    let wrong = [("KAFKA_BROKER", "k:9092"), ("PRODUCER_BASE_URL", "p:8080")];
    let output = testkit::process::command("slipstream", &wrong).arg("check").output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("PRODUCER_BASE_URL") && said.contains("MONGODB_URI"), "{said}");
}
