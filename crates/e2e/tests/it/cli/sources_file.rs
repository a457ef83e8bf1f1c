//! The operator's commands on a sources file with two sources on two topics: a source that is fetched
//! and has a faulty row, and one that is pushed.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::process::command;
use testkit::{Names, Process, Stack, eventually, http};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::up::{read_exports, shell};

const LIMIT: Duration = Duration::from_secs(60);

/// The answer of the API. The second row has no id.
const ROWS: &str = r#"[{"id":"row-1","n":1},{"n":2.50},{"id":"row-3","n":3}]"#;

/// Starts an API that answers each request with [`ROWS`]. It ends with the test's runtime.
async fn api() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await?);
                }
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n";
                let answer = format!("{head}content-length: {}\r\n\r\n{ROWS}", ROWS.len());
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    address
}

/// A folder with the sources file, and the path of the file.
fn file(api: SocketAddr, topic: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sources.yaml");
    let text = format!(
        "sources:
  rows:
    pull: {{url: 'http://{api}/rows', every: 500ms, records: ''}}
    topic: {topic}.rows
    event: {{id: /id}}
    store: {{collection: own_rows, keys: [id]}}
  orders:
    push: {{}}
    topic: {topic}.orders
    event: {{id: /no, timestamp: /meta/changed}}
    store: {{collection: own_orders, source_field: from, indexes: [{{keys: {{altitude_ft: -1}}}}]}}
"
    );
    std::fs::write(&path, text).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn up_balances_with_two_topics_and_a_dead_letter_of_a_pull() {
    let (folder, path) = file(api().await, "own");
    let mut up = command("slipstream", &[])
        .args(["up", "--for", "15s", "--port", "0", "--simulate", "--sources", &path])
        .envs(shell())
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (mut said, mut producer) = (Vec::new(), String::new());
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["tools", "export", exported @ ..] => {
                    let variables = read_exports(exported);
                    let base = variables.into_iter().find(|(name, _)| name == "PRODUCER_BASE_URL");
                    producer = base.unwrap().1;
                }
                ["stop", ..] => {
                    for number in [1, 2] {
                        let order = json!({"no": number, "meta": {"changed": 1_700_000_000_000_i64}});
                        let url = format!("{producer}/ingest/orders");
                        assert_eq!(http::post(&url, &order).await.unwrap().status, 202);
                    }
                }
                _ => {}
            }
            said.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(240), reading).await.expect("up ends");
    let ended = up.wait().await.unwrap();
    let said = said.join("\n");
    assert!(ended.success(), "{said}");
    for line in [
        "4 records = 4 inserted + 0 updated",
        "4 events accepted",
        "besides, 1 fetched record in the dead-letter topics",
        "every record is accounted for",
        "rows: 2 documents in kafka_events_db.own_rows",
        "orders: 2 documents in kafka_events_db.own_orders",
    ] {
        assert!(said.contains(line), "no {line} in {said}");
    }
}

/// Producer and consumer with the file, and the command.
struct Site {
    names: Names,
    path: String,
    producer: Process,
    consumer: Process,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let stack = Stack::shared().await;
        let names = stack.names();
        let (folder, path) = file(api().await, &names.topic);
        let variables = names.environment(&[("SOURCES_FILE", &path)]);
        let producer = Process::start("producer", &variables);
        let consumer = Process::start("consumer", &variables);
        producer.ready().await;
        consumer.ready().await;
        Self { names, path, producer, consumer, folder }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let (producer, consumer) = (self.producer.url(""), self.consumer.url(""));
        let variables = [
            ("SOURCES_FILE", self.path.as_str()),
            ("PRODUCER_BASE_URL", &producer),
            ("CONSUMER_BASE_URL", &consumer),
            // Nothing listens there: this file has no ADSBDB.
            ("ADSBDB_BASE_URL", "http://127.0.0.1:9"),
        ];
        command("slipstream", &self.names.environment(&variables)).args(arguments).output().await.unwrap()
    }

    /// The exit code and the whole output.
    async fn text(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(arguments).await;
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    }

    /// The JSON of a successful command.
    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat()).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn fetch_rows(&self) -> Value {
        let url = self.producer.url("/ingest/rows");
        let answer = http::request("POST", &url, "application/json", "").await.unwrap();
        assert!([200, 202, 207].contains(&answer.status), "{answer:?}");
        answer.body
    }

    async fn end(self) {
        assert!(self.producer.terminate().await.success());
        assert!(self.consumer.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_a_pull_is_listed_and_shown_and_not_replayed() {
    let site = Site::start().await;
    let fetched = site.fetch_rows().await;
    assert_eq!((&fetched["accepted"], &fetched["rejected"]), (&2.into(), &1.into()), "{fetched}");
    // The same row gets no second letter.
    let again = site.fetch_rows().await;
    assert_eq!((&again["accepted"], &again["unchanged"]), (&0.into(), &3.into()), "{again}");

    let letter = site.json(&["dead-letters", "list"]).await;
    let topic = format!("{}.rows.dlq", site.names.topic);
    for (field, value) in [
        ("topic", json!(topic)),
        ("source", json!("rows")),
        ("pulled", json!(true)),
        ("stage", json!("pull")),
        ("class", json!("RecordFault")),
        ("origin", Value::Null),
        ("key", Value::Null),
        ("replayed", json!(false)),
    ] {
        assert_eq!(letter[field], value, "{field} of {letter}");
    }
    let place = format!("{topic}/{}@{}", letter["partition"], letter["offset"]);
    let (code, shown) = site.text(&["dead-letters", "show", &place]).await;
    assert_eq!(code, Some(0), "{shown}");
    for part in ["origin   a fetch of rows", "  pull: rows", r#"{"n":2.50}"#] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    let filtered = site.text(&["dead-letters", "list", "--source", "orders"]).await;
    assert!(filtered.1.contains("0 dead letters"), "{filtered:?}");

    let (code, said) = site.text(&["dead-letters", "replay", "--dry-run"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("left out of fetched records, which never were on a topic: 1"), "{said}");
    let report = site.json(&["dead-letters", "replay"]).await;
    assert_eq!((&report["replayed"], &report["left_out"]["pulled"]), (&0.into(), &1.into()), "{report}");
    assert_eq!(report["left_out"]["no_origin"], 0, "{report}");
    // It does not hold the group's offset.
    let report = site.json(&["dead-letters", "replay"]).await;
    assert_eq!(report["left_out"]["pulled"], 0, "{report}");
    assert_eq!(site.json(&["dead-letters", "list"]).await["replayed"], false);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn load_verify_trace_and_check_follow_the_file() {
    let site = Site::start().await;
    for (name, batch) in [("one", "1"), ("many", "50")] {
        let ledger = site.folder.path().join(name);
        let ledger = ledger.to_str().unwrap();
        let sent = site
            .json(&["load", "--source", "orders", "--events", "600", "--keys", "40", "--hostile", "5%"])
            .await;
        assert_eq!(sent["accepted"], 600, "without a ledger: {sent}");
        let arguments = ["load", "--events", "600", "--keys", "40", "--hostile", "5%", "--batch", batch];
        let sent = site.json(&[&arguments[..], &["--ledger", ledger]].concat()).await;
        assert_eq!(sent["accepted"], 600, "orders is the first that load can send to: {sent}");
        let verified = site.json(&["verify", "--wait", "60s", "--ledger", ledger]).await;
        assert_eq!(verified["documents"], 40, "{verified}");
        let id = std::fs::read_to_string(ledger).unwrap();
        let id: Value = serde_json::from_str(id.lines().nth(1).unwrap()).unwrap();
        let (code, traced) = site.text(&["trace", id["id"].as_str().unwrap()]).await;
        assert_eq!(code, Some(0), "{traced}");
        let (topic, database) = (&site.names.topic, &site.names.database);
        for part in [format!("{topic}.orders/"), format!("document in {database}.own_orders: ")] {
            assert!(traced.contains(&part), "no {part} in {traced}");
        }
        assert!(traced.contains(r#""from":"orders""#), "{traced}");
    }
    let (code, said) = site.text(&["load", "--source", "rows", "--events", "1"]).await;
    assert!(code == Some(2) && said.contains("rows is fetched, so nothing can be sent to it"), "{said}");

    // A document that another writer changes is found.
    let ledger = site.folder.path().join("many").display().to_string();
    let orders = testkit::mongo::collection(&site.names, "own_orders").await;
    let changed = bson::doc! {"$set": {"from": "rows"}};
    let run = bson::doc! {"event_id": {"$regex": "^load-.*-7$"}};
    assert_eq!(orders.update_many(run, changed).await.unwrap().modified_count, 4);
    let (code, said) = site.text(&["verify", "--ledger", &ledger]).await;
    assert!(code == Some(1) && said.contains("differs in from"), "{said}");

    site.fetch_rows().await;
    let database = &site.names.database;
    eventually("the rows are found and the check has no failure", LIMIT, || async {
        let (code, traced) = site.text(&["trace", "row-1"]).await;
        let is_found = code == Some(0) && traced.contains(&format!("document in {database}.own_rows: "));
        let (_, checked) = site.text(&["check"]).await;
        let is_right = |name: &str| checked.contains(&format!("ok    collection {database}.{name}: "));
        (is_found && is_right("own_rows") && is_right("own_orders")).then_some(())
    })
    .await;
    // The collection has the unique index of other keys.
    let other = std::fs::read_to_string(&site.path).unwrap().replace("keys: [id]", "keys: [n]");
    std::fs::write(&site.path, other).unwrap();
    let (code, checked) = site.text(&["check"]).await;
    let failed =
        checked.lines().find(|line| line.starts_with(&format!("FAIL  collection {database}.own_rows")));
    assert!(code == Some(1) && failed.is_some(), "{checked}");
    site.end().await;
}
