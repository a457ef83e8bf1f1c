//! What producer, consumer and poller have in common: configuration, authentication, logs, metrics.

/// A producer with TLS and API_KEYS, and a poller with a CA and a key.
mod access {
    use std::path::Path;
    use std::time::Duration;

    use devservers::Simulator;
    use serde_json::{Value, json};
    use testkit::process::command;
    use testkit::{Process, Stack, eventually};

    use testkit::certificate;

    /// `printf %s secret | sha256sum`
    const KEYS: &str = "poller:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    /// Runs a poller with this key. Returns its exit code and its output.
    async fn poll(producer: &Process, authority: &str, key: Option<&str>) -> (Option<i32>, String) {
        let url = format!("https://{}", producer.address);
        let mut poller = command(
            "poller",
            &[
                ("PRODUCER_BASE_URL", &url),
                ("PRODUCER_CA_FILE", authority),
                ("INTERVAL_SEC", "0.2"),
                ("DURATION_SEC", "1"),
                ("LISTEN_ADDR", "127.0.0.1:0"),
            ],
        );
        poller.envs(key.map(|path| ("PRODUCER_API_KEY_FILE", path)));
        let output = tokio::time::timeout(Duration::from_secs(60), poller.output()).await.unwrap().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Runs `slipstream load` with one event. Returns its exit code and its summary.
    async fn load(environment: &[(&str, &str)]) -> (Option<i32>, Value) {
        let arguments = ["load", "--events", "1", "--source", "manual", "--grace", "1s", "--json"];
        let output = command("slipstream", environment).args(arguments).output().await.unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code(), said)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn poller_with_key_and_ca_is_accepted_without_the_key_rejected() {
        let stack = Stack::shared().await;
        let names = stack.names();
        let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (certificate, private) = certificate(folder.path());
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (right, wrong) = (write("right", "secret\n"), write("wrong", "guess\n"));
        let producer = stack.producer(
            &names,
            &[
                ("ADSBDB_BASE_URL", &simulator.base_url()),
                ("TLS_CERT_FILE", &certificate),
                ("TLS_KEY_FILE", &private),
                ("API_KEYS", KEYS),
                ("RUST_LOG", "debug"),
            ],
        );
        let (code, said) = poll(&producer, &certificate, Some(&right)).await;
        assert_eq!(code, Some(0), "{said}");
        let url = format!("https://{}", producer.address);
        let trusting = [
            ("PRODUCER_BASE_URL", url.as_str()),
            ("PRODUCER_API_KEY_FILE", &right),
            ("PRODUCER_CA_FILE", &certificate),
        ];
        let (code, said) = load(&trusting).await;
        assert_eq!((code, &said["accepted"]), (Some(0), &json!(1)), "{said}");
        let (code, said) = load(&trusting[..2]).await;
        let why = said["unreachable_reason"].as_str().unwrap_or_default();
        assert!(code == Some(1) && why.contains("name this very certificate in PRODUCER_CA_FILE"), "{said}");
        for key in [None, Some(wrong.as_str())] {
            let (code, said) = poll(&producer, &certificate, key).await;
            assert!(code == Some(1) && said.contains("401"), "{code:?} {said}");
        }
        let named = || async { producer.log().contains(r#""key":"poller""#).then_some(()) };
        eventually("the access log names the key's holder", Duration::from_secs(5), named).await;
        for secret in ["secret", "guess", "2bb80d53"] {
            assert!(!producer.log().contains(secret), "{secret}");
        }
        assert!(producer.terminate().await.success());
    }

    #[tokio::test]
    async fn unreadable_ca_file_is_a_configuration_error() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for (path, words) in
            [(empty.as_path(), "no certificate"), (Path::new("/no/such.pem"), "cannot be read")]
        {
            let environment =
                [("PRODUCER_BASE_URL", "https://p"), ("PRODUCER_CA_FILE", path.to_str().unwrap())];
            let output = command("poller", &environment).arg("--check-config").output().await.unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("PRODUCER_CA_FILE") && said.contains(words), "{said}");
        }
    }
}

/// An invalid configuration ends a process at the start, with all errors.
mod configuration {
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
}

/// The log of each process has JSON objects. No field has the Debug form of a Rust value.
mod log_lines {
    use std::time::Duration;

    use devservers::Simulator;
    use serde_json::Value;
    use testkit::{Process, Stack, eventually, http};

    const LIMIT: Duration = Duration::from_secs(60);
    const OWN_LINES: (&str, &str) =
        ("RUST_LOG", "info,producer=debug,consumer=debug,poller=debug,service=debug");

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
        let settings =
            [("PRODUCER_BASE_URL", &*base), ("INTERVAL_SEC", "0.1"), ("DURATION_SEC", "0"), OWN_LINES];
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
}

/// The names and types of the metrics.
mod metrics {
    use std::time::Duration;

    use serde_json::json;
    use testkit::{Process, Stack, eventually, http};

    /// Metrics of every process.
    const PROCESS: [&str; 4] = [
        "process_cpu_seconds counter",
        "process_resident_memory_bytes gauge",
        "process_open_fds gauge",
        "process_start_time_seconds gauge",
    ];
    const PRODUCER: [&str; 8] = [
        "slipstream_http_requests counter",
        "slipstream_http_request_duration_seconds histogram",
        "slipstream_events_accepted counter",
        "slipstream_events_rejected counter",
        "slipstream_kafka_delivery_seconds histogram",
        "slipstream_kafka_queue_records gauge",
        "slipstream_upstream_requests counter",
        "slipstream_poll_jobs gauge",
    ];
    const CONSUMER: [&str; 10] = [
        "slipstream_records_read counter",
        "slipstream_records_finished counter",
        "slipstream_write_seconds histogram",
        "slipstream_write_batch_records histogram",
        "slipstream_freshness_seconds histogram",
        "slipstream_lag_records gauge",
        "slipstream_committed_lag_records gauge",
        "slipstream_records_lost_to_retention counter",
        "slipstream_store_up gauge",
        "slipstream_kafka_up gauge",
    ];

    async fn metrics(process: &Process) -> String {
        eventually("metrics", Duration::from_secs(60), || async {
            http::text(&process.url("/metrics")).await.ok()
        })
        .await
    }

    async fn has(process: &Process, types: &[&str]) {
        for told in types {
            let line = format!("# TYPE {told}");
            let there = || async { metrics(process).await.lines().any(|found| found == line).then_some(()) };
            eventually(&line, Duration::from_secs(10), there).await;
        }
        assert!(metrics(process).await.ends_with("# EOF\n"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_process_has_the_documented_metrics() {
        let stack = Stack::shared().await;
        let names = stack.names();
        // Nothing listens on port 1: ADSBDB is unavailable.
        let producer = stack.producer(&names, &[("ADSBDB_BASE_URL", "http://127.0.0.1:1")]);
        let consumer = stack.consumer(&names, &[]);
        producer.ready().await;
        consumer.ready().await;
        let base = producer.url("");
        let poller = Process::start("poller", &[("PRODUCER_BASE_URL", &base), ("INTERVAL_SEC", "60")]);
        let body = json!({"id": "one", "source": "manual", "payload": {}});
        assert_eq!(http::post(&producer.url("/ingest"), &body).await.unwrap().status, 202);
        let refused = json!({"id": "two", "source": "manual", "payload": 7});
        assert_eq!(http::post(&producer.url("/ingest"), &refused).await.unwrap().status, 422);
        assert_eq!(http::post(&producer.url("/ingest/adsbdb"), &json!({})).await.unwrap().status, 502);
        let finished = r#"slipstream_records_finished_total{outcome="inserted"} 1"#;
        eventually("the event is finished", Duration::from_secs(60), || async {
            metrics(&consumer).await.lines().any(|line| line == finished).then_some(())
        })
        .await;
        has(&producer, &[&PROCESS[..], &PRODUCER].concat()).await;
        has(&consumer, &[&PROCESS[..], &CONSUMER].concat()).await;
        has(&poller, &PROCESS).await;
        let told = metrics(&producer).await;
        for line in [
            r#"slipstream_events_accepted_total{source="manual"} 1"#,
            r#"slipstream_http_requests_total{route="/ingest",status="202"} 1"#,
            "slipstream_kafka_delivery_seconds_count 1",
        ] {
            assert!(told.lines().any(|found| found == line), "no {line} in\n{told}");
        }
        for process in [poller, producer, consumer] {
            assert!(process.terminate().await.code().is_some());
        }
    }
}
