//! An invalid configuration ends a process at the start, with all errors.

use testkit::process::command;

async fn complaint(name: &str, environment: &[(&str, &str)]) -> String {
    let output = command(name, environment).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn producer_reports_all_invalid_variables_at_once() {
    let said = complaint(
        "producer",
        &[("KAFKA_BROKER", ""), ("MAX_PAYLOAD_BYTES", "abc"), ("KAFKA_PROPERTIES", "acks=1")],
    )
    .await;
    for part in ["KAFKA_BROKER", "MAX_PAYLOAD_BYTES", "KAFKA_PROPERTIES", "acks"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[tokio::test]
async fn consumer_reports_all_invalid_variables_at_once() {
    let said = complaint("consumer", &[("KAFKA_BROKER", "")]).await;
    assert!(said.contains("KAFKA_BROKER") && said.contains("MONGODB_URI"), "{said}");
    for uri in [
        "mongodb//admin:hunter2@m:27017/",
        "mongodb://admin:hunter2@:port/",
        "mongodb://admin:hunter2@m:27017/?w=0",
        "mongodb://admin:hunter2@a,b/?directConnection=true",
        "mongodb://admin:hunter2@m/?authMechanism=MONGODB-AWS",
        "mongodb://admin:hunter2",
        "mongodb://h:99999",
    ] {
        let said = complaint("consumer", &[("KAFKA_BROKER", "k:9092"), ("MONGODB_URI", uri)]).await;
        assert!(said.contains("MONGODB_URI") && !said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn poller_reports_all_invalid_variables_at_once() {
    let said = complaint("poller", &[("INTERVAL_SEC", "0"), ("DURATION_SEC", "-1")]).await;
    for part in ["PRODUCER_BASE_URL", "INTERVAL_SEC", "DURATION_SEC"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[tokio::test]
async fn every_process_has_help_version_and_check_config() {
    let right = [
        ("KAFKA_BROKER", "k:9092"),
        ("MONGODB_URI", "mongodb://m/?foo=bar"),
        ("PRODUCER_BASE_URL", "http://p:8080"),
    ];
    for (name, variable) in
        [("producer", "MAX_PAYLOAD_BYTES"), ("consumer", "MONGODB_URI"), ("poller", "INTERVAL_SEC")]
    {
        let help = command(name, &[]).arg("--help").output().await.unwrap();
        assert!(
            help.status.success() && String::from_utf8_lossy(&help.stdout).contains(variable),
            "{help:?}"
        );
        let version = command(name, &[]).arg("--version").output().await.unwrap();
        assert!(String::from_utf8_lossy(&version.stdout).starts_with(name), "{version:?}");
        let check = command(name, &right).arg("--check-config").output().await.unwrap();
        assert!(check.status.success(), "{check:?}");
        let unknown = command(name, &right).arg("--frobnicate").output().await.unwrap();
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
        let health = command(name, &right).arg("healthcheck").output().await.unwrap();
        assert_eq!(health.status.code(), Some(1), "nothing listens: {health:?}");
    }
}
