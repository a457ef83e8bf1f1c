//! `slipstream up --sources` on the example file, and the commands of `docs/sources.md` that need
//! servers.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bson::{Document, doc};
use serde_json::json;
use testkit::http;
use testkit::process::command;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::up::{read_exports, shell};

const PAGE: &str = include_str!("../../../../../docs/sources.md");

/// The curl commands of the page, with the line that each prints.
fn curl_commands() -> Vec<(String, String)> {
    let lines: Vec<&str> = PAGE.lines().collect();
    let shown = lines.windows(2).filter(|pair| pair[0].starts_with("$ curl "));
    shown.map(|pair| (pair[0][2..].to_owned(), pair[1].to_owned())).collect()
}

/// Runs a command of the page against this producer.
pub async fn run_curl(line: &str, producer: &str) -> String {
    let line = line.replace("http://localhost:8090", producer);
    let mut shell = tokio::process::Command::new("sh");
    let output = shell.args(["-c", &format!("{line} -s")]).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_fills_a_collection_of_each_source_of_the_example() {
    let folder = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/sources.yaml");
    let mut up = command("slipstream", &[])
        .args(["up", "--for", "25s", "--port", "0", "--simulate", "--sources", file.to_str().unwrap()])
        .envs(shell())
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let (mut said, mut variables) = (Vec::new(), Vec::new());
    let reading = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["tools", "export", exported @ ..] => variables = read_exports(exported),
                ["stop", ..] => post_and_find(&variables).await,
                _ => {}
            }
            said.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(240), reading).await.expect("up ends");
    let ended = up.wait().await.unwrap();
    let said = said.join("\n");
    assert!(ended.success() && said.contains("every record is accounted for"), "{said}");
    for name in ["adsbdb", "quakes", "bikes", "trades", "orders"] {
        let prefix = format!("{name}: ");
        let count =
            said.lines().find_map(|line| line.strip_prefix(&prefix)?.split(' ').next()?.parse::<u64>().ok());
        assert!(count > Some(0), "{name}: {said}");
    }
}

async fn post_and_find(variables: &[(String, String)]) {
    let value =
        |name: &str| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap();
    let producer = value("PRODUCER_BASE_URL");
    let curl = curl_commands();
    assert_eq!(curl.len(), 2, "{curl:?}");
    for (line, shown) in &curl {
        let said = run_curl(line, &producer).await;
        for part in shown.split('…') {
            assert!(said.contains(part), "{line} printed {said}, not {part}");
        }
    }
    let refused = json!({"source": "orders", "payload": {"a": 1}});
    let answer = http::post(&format!("{producer}/ingest"), &refused).await.unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    let client = mongodb::Client::with_uri_str(value("MONGODB_URI")).await.unwrap();
    let database = client.database("kafka_events_db");
    let orders = database.collection::<Document>("orders");
    testkit::eventually("the order", Duration::from_secs(10), || async {
        orders.find_one(doc! {"event_id": "DE-1042"}).await.ok()?
    })
    .await;
    let quakes = database.collection::<Document>("quakes");
    testkit::eventually("the indexes of the file", Duration::from_secs(10), || async {
        let names = quakes.list_index_names().await.ok()?;
        ["mag_-1", "place_1"].iter().all(|name| names.iter().any(|is| is == name)).then_some(())
    })
    .await;
}
