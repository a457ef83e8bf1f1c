//! Each command of `docs/sources.md`, on the example file with `slipstream up`, and what the page
//! says about dead letters and changed keys.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bson::{Document, doc};
use devservers::Simulator;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use testkit::page::{blocks, commands, is_shown};
use testkit::process::{binary, command};
use testkit::{Names, Process, Stack, http};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::up::{read_exports, shell};

const PAGE: &str = include_str!("../../../../../docs/sources.md");
const COMPOSE: &str = include_str!("../../../../../docker-compose.yml");
const NAMES: [&str; 5] = ["adsbdb", "quakes", "bikes", "trades", "orders"];
/// The page's commands that need a Docker engine, which does not run here.
const NEED_DOCKER: [&str; 1] = ["docker compose up -d --build --wait"];
/// Time limit of `up`, which may download its servers.
const PATIENCE: Duration = Duration::from_secs(240);

/// A fresh clone, as far as the page needs it, with the files that the page shows.
fn clone() -> tempfile::TempDir {
    let (folder, root) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    for name in ["examples", "sources"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    for name in ["examples/sources.yaml", "examples/orders.schema.json"] {
        std::fs::copy(root.join(name), folder.path().join(name)).unwrap();
    }
    for block in blocks(PAGE) {
        match block.info.as_str() {
            "console" => assert!(block.text.starts_with("$ "), "{}", block.text),
            "yaml" => {
                let name = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
                std::fs::write(folder.path().join(name.expect("the name of the file")), &block.text).unwrap();
            }
            other => panic!("a block of the page that no test runs: {other}: {}", block.text),
        }
    }
    folder
}

/// A running `slipstream up`.
struct Up {
    process: Child,
    /// What it printed until now.
    printed: Arc<Mutex<String>>,
    /// The variables that it prints for the tools.
    variables: Vec<(String, String)>,
}

impl Up {
    /// Runs the page's command until [`Up::stop`], with the simulator and on a free port. Returns
    /// when it is up.
    async fn start(line: &str, folder: &Path) -> Self {
        let arguments = line.strip_prefix("slipstream ").unwrap().split(' ');
        let arguments = arguments.filter(|argument| !["--for", "60s"].contains(argument));
        let mut process = command("slipstream", &[])
            .args(arguments.chain(["--simulate", "--port", "0"]))
            .envs(shell())
            .current_dir(folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let printed = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&printed);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let variables = testkit::eventually("up is up", PATIENCE, || async {
            let printed = printed.lock().unwrap().clone();
            printed.contains("\n  stop ").then_some(())?;
            let tools = printed.lines().find_map(|line| line.strip_prefix("  tools     export "))?;
            Some(read_exports(&tools.split(' ').collect::<Vec<_>>()))
        });
        let variables = variables.await;
        Self { process, printed, variables }
    }

    fn value(&self, name: &str) -> &str {
        &self.variables.iter().find(|(key, _)| key == name).expect("a variable of the tools").1
    }

    /// Runs a command of the page, and returns what it prints.
    async fn run(&self, line: &str, folder: &Path) -> String {
        let line = line.replace("http://localhost:8090", self.value("PRODUCER_BASE_URL"));
        let line = line.replace("curl ", "curl -sS ");
        let bin = binary("slipstream").parent().unwrap().display().to_string();
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", &format!("{line} 2>&1")]).current_dir(folder).env_clear();
        shell.envs(self.variables.iter().cloned()).env("PATH", format!("{bin}:/usr/bin:/bin"));
        let output = shell.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Stops it with SIGINT, and returns all that it printed. Panics unless it exits with 0.
    async fn stop(mut self) -> String {
        kill(Pid::from_raw(self.process.id().unwrap().cast_signed()), Signal::SIGINT).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("up ends").unwrap();
        let printed = self.printed.lock().unwrap().clone();
        assert!(ended.success(), "{ended}: {printed}");
        printed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_of_the_sources_page_prints_the_shown_output() {
    let folder = clone();
    let all: Vec<_> = blocks(PAGE).iter().flat_map(commands).collect();
    assert!(all.len() >= 10, "{all:?}");
    let mut ups = all.iter().filter(|(line, _)| line.starts_with("slipstream up "));
    let (Some((up_line, up_shown)), None) = (ups.next(), ups.next()) else { panic!("{all:?}") };
    let up = Up::start(up_line, folder.path()).await;
    let mut with_docker = BTreeSet::new();
    for (line, shown) in all.iter().filter(|(line, _)| line != up_line) {
        if line.contains("docker") {
            with_docker.insert(line.as_str());
            continue;
        }
        let printed = up.run(line, folder.path()).await;
        assert!(is_shown(&printed, shown), "{line}\nprinted {printed}\nnot {shown}");
    }
    assert_eq!(with_docker, BTreeSet::from(NEED_DOCKER));
    compose_gets_the_file(&up, folder.path()).await;
    each_source_has_documents(&up).await;
    let all = up.stop().await;
    // Downloads and waits for a server are reported before, and the page does not show them.
    let printed = &all[all.find("slipstream is up\n").expect("it is up")..];
    assert!(is_shown(printed, up_shown), "{up_line}\nprinted {printed}\nnot {up_shown}");
    for name in NAMES {
        let is_filled = |line: &str| {
            let count = line.strip_prefix(&format!("{name}: "))?.split(' ').next()?.parse::<u64>().ok();
            count.filter(|count| *count > 0)
        };
        assert!(printed.lines().find_map(is_filled).is_some(), "{name}: {printed}");
    }
}

/// The commands before the start of Compose made a `.env` that Compose passes on, and a folder with
/// a file without faults.
async fn compose_gets_the_file(up: &Up, folder: &Path) {
    let variables = std::fs::read_to_string(folder.join(".env")).unwrap();
    let lines: Vec<_> = variables.lines().map(|line| line.split_once('=').unwrap()).collect();
    assert!(lines.contains(&("SOURCES_FILE", "/sources/sources.yaml")), "{variables}");
    assert!(COMPOSE.contains("\n    - ./sources:/sources:ro\n"));
    for (name, _) in lines {
        assert!(COMPOSE.contains(&format!("{name}: ${{{name}:-")), "{name} is not passed on");
    }
    let checked = up.run("slipstream sources check sources/sources.yaml", folder).await;
    assert_eq!(checked, "sources/sources.yaml: 5 sources, no faults\n");
}

/// Each source has documents, and the indexes of the file.
async fn each_source_has_documents(up: &Up) {
    let envelope = json!({"source": "orders", "payload": {"a": 1}});
    let answer = http::post(&format!("{}/ingest", up.value("PRODUCER_BASE_URL")), &envelope).await.unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    let client = mongodb::Client::with_uri_str(up.value("MONGODB_URI")).await.unwrap();
    let database = client.database("kafka_events_db");
    for name in NAMES {
        let what = format!("a document of {name}");
        testkit::eventually(&what, Duration::from_secs(30), || async {
            database.collection::<Document>(name).find_one(doc! {}).await.ok()?
        })
        .await;
    }
    let orders = database.collection::<Document>("orders");
    testkit::eventually("the order of the page", Duration::from_secs(10), || async {
        orders.find_one(doc! {"event_id": "DE-1042", "lines.sku": "tea-500"}).await.ok()?
    })
    .await;
    for (name, index) in [("quakes", "mag_-1"), ("quakes", "place_1"), ("orders", "customer.email_1")] {
        let collection = database.collection::<Document>(name);
        testkit::eventually("an index of the file", Duration::from_secs(10), || async {
            collection.list_index_names().await.ok()?.contains(&index.to_owned()).then_some(())
        })
        .await;
    }
}

/// Producer, consumer and tools, each with a sources file of its own.
struct Deployment {
    names: Names,
    folder: tempfile::TempDir,
    simulator: String,
}

impl Deployment {
    fn write(&self, name: &str, sources: &str) {
        std::fs::write(self.folder.path().join(name), sources).unwrap();
    }

    /// Starts a process with the file of its name.
    fn start(&self, process: &str) -> Process {
        let file = self.folder.path().join(process).display().to_string();
        let more = [("SOURCES_FILE", file.as_str()), ("SIMULATOR_URL", &self.simulator)];
        Process::start(process, &self.names.environment(&more))
    }

    /// The output of `slipstream dead-letters`, a value for each line. Panics unless it exits with 0.
    async fn dead_letters(&self, arguments: &[&str]) -> Vec<serde_json::Value> {
        let mut tool = command("slipstream", &self.names.environment(&[]));
        let output = tool.arg("dead-letters").args(arguments).arg("--json").output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect()
    }
}

const ORDERS: &str = "sources:\n  orders: {push: {}, event: {id: /no}}\n";
const NOTES: &str = "  notes: {push: {}, event: {id: /id}}\n";
/// The schema rejects each record of the simulator.
const QUAKES: &str = "  quakes:
    pull: {url: '${SIMULATOR_URL}/earthquakes/feed/v1.0/summary/all_hour.geojson', records: /features}
    event: {id: /id}
    schema: none.json
";

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_and_changed_keys_are_as_the_sources_page_says() {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let (names, folder) = (Stack::shared().await.names(), tempfile::tempdir().unwrap());
    let deployment = Deployment { names, folder, simulator: simulator.base_url() };
    deployment.write("none.json", r#"{"required": ["nothing"]}"#);
    deployment.write("producer", &format!("{ORDERS}{NOTES}{QUAKES}"));
    deployment.write("consumer", ORDERS);
    let (producer, consumer) = (deployment.start("producer"), deployment.start("consumer"));
    producer.ready().await;
    consumer.ready().await;
    let quakes = producer.url("/ingest/quakes");
    let fetched = http::request("POST", &quakes, "application/json", "").await.unwrap();
    assert_eq!((fetched.status, &fetched.body["rejected"]), (207, &json!(10)), "{fetched:?}");
    let note = http::post(&producer.url("/ingest/notes"), &json!({"id": "n1", "text": "hi"})).await.unwrap();
    assert_eq!(note.status, 202, "{note:?}");

    let listed = testkit::eventually("all dead letters", Duration::from_secs(60), || async {
        let listed = deployment.dead_letters(&["list"]).await;
        (listed.len() == 11).then_some(listed)
    });
    let listed = listed.await;
    let of_pull = listed.iter().find(|letter| letter["stage"] == "pull").expect("a dead letter of a pull");
    let place = ["topic", "partition", "offset"].map(|name| of_pull[name].to_string().replace('"', ""));
    let place = format!("{}/{}@{}", place[0], place[1], place[2]);
    let shown = deployment.dead_letters(&["show", &place]).await.remove(0);
    let headers = shown["headers"].as_array().unwrap();
    assert!(headers.contains(&json!({"name": "pull", "value": "quakes"})), "{shown}");

    // The consumer learns of the source, and of other keys of another one.
    let order = http::post(&producer.url("/ingest/orders"), &json!({"no": 1, "shop": "a"})).await.unwrap();
    assert_eq!(order.status, 202, "{order:?}");
    let client = mongodb::Client::with_uri_str(&deployment.names.mongodb).await.unwrap();
    let database = client.database(&deployment.names.database);
    let is_stored = async |collection: &str| {
        let found = database.collection::<Document>(collection).find_one(doc! {}).await;
        found.ok().flatten().map(drop)
    };
    testkit::eventually("the order", Duration::from_secs(30), || is_stored("orders")).await;
    assert!(consumer.terminate().await.success());
    let changed = ORDERS.replace("event: {id: /no}", "event: {id: /no}, store: {keys: [shop]}");
    deployment.write("consumer", &format!("{changed}{NOTES}"));
    let consumer = deployment.start("consumer");
    let replayed = deployment.dead_letters(&["replay", "--reason", "UnknownSource"]).await;
    assert_eq!(replayed[0]["replayed"], 1, "{replayed:?}");
    testkit::eventually("the note", Duration::from_secs(30), || is_stored("notes")).await;
    let reason = testkit::eventually("the blocked collection", Duration::from_secs(30), || async {
        let ready = http::get(&consumer.url("/readyz")).await.ok()?;
        (ready.status == 503).then_some(ready.body.to_string())
    });
    let reason = reason.await;
    assert!(reason.contains("was written under the keys event_id"), "{reason}");
    let replayed = deployment.dead_letters(&["replay"]).await;
    assert_eq!(replayed[0]["replayed"], 0, "a dead letter of a pull was replayed: {replayed:?}");
}
