//! `slipstream check`: a healthy deployment, and each warning and failure on servers that have its
//! cause.

mod database;
mod group;
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

/// Runs `slipstream check --json` and parses its findings.
mod findings {
    use serde_json::Value;
    use testkit::Names;
    use testkit::process::command;

    /// The result of a check.
    #[derive(Debug)]
    pub struct Findings {
        /// The findings.
        pub all: Vec<Value>,
        /// The exit code.
        pub code: Option<i32>,
    }

    impl Findings {
        /// Whether there is a finding of this level and subject whose cause contains `part`.
        pub fn has(&self, level: &str, subject: &str, part: &str) -> bool {
            self.all.iter().any(|finding| {
                finding["level"] == level
                    && finding["subject"] == subject
                    && finding["cause"].as_str().is_some_and(|cause| cause.contains(part))
                    && (level == "ok") == finding["remedy"].is_null()
            })
        }

        /// Panics unless there is such a finding and the exit code agrees.
        pub fn assert(&self, level: &str, subject: &str, part: &str) {
            assert!(self.has(level, subject, part), "no {level} of {subject} with {part:?}: {self:#?}");
            let failed = self.all.iter().any(|finding| finding["level"] == "fail");
            assert_eq!(self.code, Some(i32::from(failed)));
        }
    }

    /// The variables of a deployment with these names. Later ones override earlier ones.
    pub fn environment<'a>(names: &'a Names, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        // Not the public ADSBDB: tests send no requests to the internet.
        names.environment(&[&[("ADSBDB_BASE_URL", "http://127.0.0.1:9")], more].concat())
    }

    /// Checks the deployment with these names.
    pub async fn check(names: &Names, more: &[(&str, &str)]) -> Findings {
        let output = command("slipstream", &environment(names, more))
            .args(["check", "--json"])
            .output()
            .await
            .unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        Findings { all: said["findings"].as_array().unwrap().clone(), code: output.status.code() }
    }
}

/// Producer, consumer and ADSBDB.
mod processes {
    use std::net::SocketAddr;

    use devservers::{Fault, Simulator};
    use testkit::{Stack, eventually};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::findings::check;
    use testkit::certificate;

    /// Starts a server that returns this date in each response.
    async fn of_another_time(date: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                _ = stream.read(&mut [0; 4096]).await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                );
                _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn unnamed_unavailable_and_unready_processes_are_reported() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let unknown = check(&names, &[]).await;
        unknown.assert("warn", "producer", "PRODUCER_BASE_URL is not set");
        unknown.assert("warn", "consumer", "CONSUMER_BASE_URL is not set");
        let nobody = format!("http://{}", testkit::process::free_address());
        let away = check(&names, &[("PRODUCER_BASE_URL", &nobody), ("CONSUMER_BASE_URL", &nobody)]).await;
        away.assert("fail", "producer", "refused");
        away.assert("fail", "consumer", "refused");

        let nobody = testkit::process::free_address();
        let producer = stack.producer(&names, &[("KAFKA_BROKER", &nobody.to_string())]);
        let consumer = stack.consumer(&names, &[("MONGODB_URI", &format!("mongodb://{nobody}"))]);
        let (producer_url, consumer_url) = (producer.url(""), consumer.url(""));
        eventually("both answer", std::time::Duration::from_secs(60), || async {
            let urls = [("PRODUCER_BASE_URL", producer_url.as_str()), ("CONSUMER_BASE_URL", &consumer_url)];
            let found = check(&names, &urls).await;
            let (kafka, mongodb) = ("is not ready (503): kafka", "is not ready (503): mongodb");
            (found.has("fail", "producer", kafka) && found.has("fail", "consumer", mongodb)).then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn clock_difference_is_a_warning() {
        let names = Stack::shared().await.names();
        let past = format!("http://{}", of_another_time("Sun, 06 Nov 1994 08:49:37 GMT").await);
        let future = format!("http://{}", of_another_time("Sat, 06 Nov 2094 08:49:37 GMT").await);
        let found = check(&names, &[("PRODUCER_BASE_URL", &past), ("CONSUMER_BASE_URL", &future)]).await;
        found.assert("warn", "producer clock", "behind the local one");
        found.assert("warn", "consumer clock", "ahead of the local one");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn adsbdb_without_response_or_with_an_error_is_a_warning() {
        let names = Stack::shared().await.names();
        let nobody = format!("http://{}", testkit::process::free_address());
        check(&names, &[("ADSBDB_BASE_URL", &nobody)]).await.assert("warn", "adsbdb", "does not answer");
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        simulator.set_fault(Some(Fault::ServerError));
        check(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())])
            .await
            .assert("warn", "adsbdb", "with 500");
        simulator.set_fault(Some(Fault::Html));
        check(&names, &[("ADSBDB_BASE_URL", &simulator.base_url())]).await.assert(
            "warn",
            "adsbdb",
            "without an aircraft",
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn producer_with_its_own_ca_is_checked_over_tls() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, private) = certificate(folder.path());
        let producer = stack.producer(&names, &[("TLS_CERT_FILE", &certificate), ("TLS_KEY_FILE", &private)]);
        let url = format!("https://{}", producer.address);
        let trusting = [("PRODUCER_BASE_URL", url.as_str()), ("PRODUCER_CA_FILE", &certificate)];
        eventually("the producer is ready", std::time::Duration::from_secs(60), || async {
            check(&names, &trusting).await.has("ok", "producer", "is ready").then_some(())
        })
        .await;
        let stranger = check(&names, &trusting[..1]).await;
        stranger.assert("fail", "producer", "does not answer");
        let remedy =
            stranger.all.iter().find(|finding| finding["subject"] == "producer").unwrap()["remedy"].as_str();
        assert!(remedy.unwrap().contains("this very certificate in PRODUCER_CA_FILE"), "{stranger:?}");
    }
}
