//! `slipstream up`.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bson::doc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use testkit::http;
use testkit::process::command;
use tokio::io::{AsyncBufReadExt, BufReader};

/// The variables of a user's shell that the tools of `up` need.
pub fn shell() -> Vec<(String, String)> {
    let kept = ["PATH", "HOME", "JAVA_HOME", "SLIPSTREAM_CACHE", "SLIPSTREAM_BROKER", "XDG_CACHE_HOME"];
    std::env::vars()
        .filter(|(name, _)| kept.contains(&name.as_str()) || name.to_lowercase().ends_with("proxy"))
        .collect()
}

/// The child processes of `pid`.
fn children(pid: u32) -> Vec<String> {
    let output =
        std::process::Command::new("ps").args(["-o", "pid=", "--ppid", &pid.to_string()]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_stores_aircraft_and_events_and_its_summary_balances() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = command("slipstream", &[])
        .args(["up", "--for", "20s", "--port", "0", "--simulate", "--poll-interval", "200ms"])
        .envs(shell())
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = up.id().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (mut said, mut mongodb, mut ingest, mut servers) = (Vec::new(), None, None, Vec::new());
    let mut variables = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["mongodb", uri, ..] => mongodb = Some((*uri).to_owned()),
                ["try", "curl", "-X", "POST", url, ..] => ingest = Some((*url).to_owned()),
                ["tools", "export", exported @ ..] => variables = read_exports(exported),
                ["stop", ..] => {
                    servers = children(pid);
                    post_and_find(ingest.as_ref().unwrap(), mongodb.as_ref().unwrap()).await;
                    let checked = operate(&variables, &["check"]).await;
                    assert!(
                        checked.contains("ok    producer: is ready") && checked.contains("0 failures"),
                        "{checked}"
                    );
                    assert!(operate(&variables, &["trace", "from-up"]).await.contains("  stored"));
                }
                _ => {}
            }
            said.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(240), reading)
        .await
        .unwrap_or_else(|_| panic!("up does not end"));
    let ended = up.wait().await.unwrap();
    let said = said.join("\n");
    assert!(ended.success(), "{said}");
    assert!(said.contains("every record is accounted for") && said.contains(" 0 waiting"), "{said}");
    assert!(said.contains("lag 0"), "a status line: {said}");
    let brings_mongod = shell().iter().any(|(name, paths)| {
        name == "PATH" && std::env::split_paths(paths).any(|path| path.join("mongod").is_file())
    });
    assert!(
        brings_mongod || said.contains("an update changes values that look like extended JSON"),
        "{said}"
    );
    assert!(!servers.is_empty(), "{said}");
    for server in servers {
        assert!(!std::path::Path::new("/proc").join(&server).exists(), "child {server} is left");
    }
}

/// Parses words `NAME=value` as a shell does.
pub fn read_exports(words: &[&str]) -> Vec<(String, String)> {
    let pairs = words.iter().map(|word| word.split_once('=').expect("NAME=value"));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

/// The output of a subcommand. Panics unless it exits with 0.
async fn operate(variables: &[(String, String)], arguments: &[&str]) -> String {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = command("slipstream", &variables).args(arguments).output().await.unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

async fn post_and_find(ingest: &str, mongodb: &str) {
    let body = json!({"id": "from-up", "source": "adsbdb", "payload": {"message": "Hello", "value": 42}});
    let answer = http::post(ingest, &body).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let client = mongodb::Client::with_uri_str(mongodb).await.unwrap();
    let adsbdb = client.database("kafka_events_db").collection::<bson::Document>("adsbdb");
    testkit::eventually("the event by its event_id", Duration::from_secs(1), || async {
        adsbdb.find_one(doc! {"event_id": "from-up"}).await.ok()?
    })
    .await;
    testkit::eventually("a polled aircraft", Duration::from_secs(5), || async {
        adsbdb.find_one(doc! {"mode_s": {"$exists": true}}).await.ok()?
    })
    .await;
}

#[tokio::test]
async fn up_reports_all_invalid_variables_before_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = [("MAX_PAYLOAD_BYTES", "abc"), ("UPSERT_KEYS", "a,,b"), ("INTERVAL_SEC", "0")];
    let output = command("slipstream", &wrong).arg("up").current_dir(folder.path()).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        ["MAX_PAYLOAD_BYTES", "UPSERT_KEYS", "INTERVAL_SEC"].iter().all(|name| said.contains(name)),
        "{said}"
    );
}

/// Posts events to `ingest` until `over` and ignores the responses.
async fn post_until(ingest: String, over: Arc<AtomicBool>) {
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let body = json!({"id": format!("e{n}"), "source": "adsbdb", "payload": {"n": n}});
        if http::post(&ingest, &body).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Kills the broker under load and restarts it after the session timeout, so that finished,
/// uncommitted records are read again. Returns whether there was such a record.
async fn lose_partitions(broker: &devservers::Broker, consumer: &str) -> bool {
    let health = async || http::get(consumer).await.map(|answer| answer.body).unwrap_or_default();
    let counter = |health: &serde_json::Value, name: &str| health["counters"][name].as_u64();
    let minute = Duration::from_secs(60);
    let before = counter(&health().await, "inserted").unwrap_or_default();
    testkit::eventually("events are stored", minute, || async {
        (counter(&health().await, "inserted")? > before + 100).then_some(())
    })
    .await;
    broker.kill();
    testkit::eventually("the partitions are lost", minute, || async {
        health().await["assignment"].as_array()?.is_empty().then_some(())
    })
    .await;
    broker.restart().await.unwrap();
    let at_work = testkit::eventually("work goes on", minute, || async {
        let health = health().await;
        (counter(&health, "inserted")? > before + 200 && health["lag"].as_u64()? < 100).then_some(health)
    });
    counter(&at_work.await, "repeated").unwrap() > 0
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn up_summary_balances_after_lost_partitions_and_repeated_records() {
    let (folder, stack) = (tempfile::tempdir().unwrap(), testkit::Stack::start_without_sync().await);
    let (kafka, mongodb) = (stack.broker.bootstrap(), stack.mongodb.uri());
    let mut up = command("slipstream", &[("KAFKA_BROKER", &kafka), ("MONGODB_URI", &mongodb)])
        .args(["up", "--port", "0", "--simulate", "--poll-interval", "1s"])
        .envs(shell())
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(up.id().unwrap().cast_signed());
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (mut said, mut ingest, mut consumer) = (Vec::new(), String::new(), String::new());
    while let Some(line) = lines.next_line().await.unwrap() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["consumer", url] => consumer = (*url).to_owned(),
            ["try", "curl", "-X", "POST", url, ..] => ingest = (*url).to_owned(),
            ["stop", ..] => {
                let over = Arc::new(AtomicBool::new(false));
                let load = tokio::spawn(post_until(ingest.clone(), Arc::clone(&over)));
                // All records can be committed at that moment by chance, but hardly twice.
                let again = lose_partitions(&stack.broker, &consumer).await
                    || lose_partitions(&stack.broker, &consumer).await;
                assert!(again, "nothing was read again");
                over.store(true, Ordering::Relaxed);
                load.await.unwrap();
                kill(pid, Signal::SIGINT).unwrap();
            }
            _ => {}
        }
        said.push(line);
    }
    let (ended, said) = (up.wait().await.unwrap(), said.join("\n"));
    assert!(ended.success(), "{said}");
    assert!(said.contains("every record is accounted for") && said.contains(" read again + "), "{said}");
}

/// Runs `up` until `signal`. Returns its lines and the time of the first. Panics unless it exits
/// with 0.
async fn stopped_while_it_waits(variables: &[(&str, &str)], signal: Signal) -> (Vec<String>, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let began = std::time::Instant::now();
    let mut up = command("slipstream", variables)
        .args(["up", "--for", "3", "--port", "0", "--simulate"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (mut said, mut first) = (Vec::new(), None);
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said.push(line);
            if first.is_none() && said.len() == variables.len() {
                first = Some(began.elapsed());
                kill(Pid::from_raw(up.id().unwrap().cast_signed()), signal).unwrap();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading)
        .await
        .expect("it says what it waits for, and ends");
    assert!(up.wait().await.unwrap().success(), "{said:?}");
    (said, first.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn up_reports_within_5_s_which_server_is_unavailable_and_why() {
    let [kafka, mongodb] = [0, 1].map(|_| testkit::process::free_address().to_string());
    let uri = format!("mongodb://u:hunter2@{mongodb}");
    let variables = [("KAFKA_BROKER", kafka.as_str()), ("MONGODB_URI", &uri)];
    let (said, first) = stopped_while_it_waits(&variables, Signal::SIGINT).await;
    let said = said.join("\n");
    assert!(first < Duration::from_secs(5), "{first:?}: {said}");
    for part in [
        format!("waiting: kafka does not answer at {kafka} (KAFKA_BROKER): "),
        format!("waiting: mongodb does not answer at {mongodb} (MONGODB_URI): Connection refused"),
    ] {
        assert!(said.contains(&part), "{part} in {said}");
    }
    assert!(!said.contains("hunter2") && !said.contains("Topology"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_terminal_stops_up_gracefully() {
    let stack = testkit::Stack::shared().await;
    let (kafka, mongodb) = (stack.broker.bootstrap(), stack.mongodb.uri());
    let names = stack.names();
    let variables = [
        ("KAFKA_BROKER", kafka.as_str()),
        ("MONGODB_URI", &mongodb),
        ("KAFKA_TOPIC", &names.topic),
        ("KAFKA_GROUP_ID", &names.group),
        ("MONGODB_DB", &names.database),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut up = command("slipstream", &variables)
        .args(["up", "--port", "0", "--simulate", "--poll-interval", "1"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(up.id().unwrap().cast_signed());
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.trim_start().starts_with("stop ") {
                kill(pid, Signal::SIGHUP).unwrap();
            }
            said.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), reading).await.expect("up ends");
    let said = said.join("\n");
    assert!(up.wait().await.unwrap().success(), "{said}");
    assert!(said.contains("every record is accounted for"), "{said}");
}
