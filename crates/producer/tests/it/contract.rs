//! The documents of the HTTP API against the running producer: each command of `docs/http-api.md`,
//! and the OpenAPI document.
//!
//! The output of a command is compared with the page. Ids, times and numbers may differ.
//!
//! schemathesis checks the examples, the limits of each schema, random valid and invalid requests,
//! and sequences of requests. Its earlier findings have their own tests.

use std::process::Stdio;
use std::time::{Duration, Instant};

use devservers::{Machine, Progress, Simulator, python_packages};
use serde_json::Value;
use tokio::process::Command;

use crate::application::{Application, PATIENCE};
use crate::real_broker::shared;
use crate::sources::File;

const PAGE: &str = include_str!("../../../../docs/http-api.md");
const ADDRESS: &str = "http://localhost:8090";
/// Fields whose numbers must be equal. Other numbers may differ.
const FIXED: [&str; 4] = ["status", "index", "interval_sec", "duration_sec"];
/// Fields whose texts may differ.
const CHANGING: [&str; 5] = ["id", "topic", "job_id", "started_at", "next_tick_at"];

/// The commands of the page, each with its output.
fn commands() -> Vec<(String, String)> {
    let blocks = PAGE.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    let commands =
        blocks.flat_map(|block| block.split("\n\n")).filter_map(|part| part.trim().strip_prefix("$ "));
    let commands = commands.map(|part| part.split_once('\n').unwrap_or((part, "")));
    // The commands with a key need a producer with API_KEYS.
    let commands = commands.filter(|(command, _)| !command.contains("KEY"));
    commands.map(|(command, prints)| (command.to_owned(), prints.to_owned())).collect()
}

async fn run(command: &str) -> String {
    let quiet = command.replace("curl ", "curl -sS ");
    let output = Command::new("sh").arg("-c").arg(&quiet).kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{quiet}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// Fails if `real` differs from the `shown` output.
#[track_caller]
fn assert_like(shown: &Value, real: &Value, key: &str, command: &str) {
    let place = format!("{key} of {command}: {real}");
    match (shown, real) {
        (Value::Object(shown), Value::Object(real)) if key == "payload" => {
            assert!(shown.keys().eq(real.keys()), "{place}");
        }
        (Value::Object(shown), Value::Object(real)) => {
            assert!(shown.keys().eq(real.keys()), "{place}");
            shown
                .iter()
                .zip(real.values())
                .for_each(|((key, shown), real)| assert_like(shown, real, key, command));
        }
        (Value::Array(shown), Value::Array(real)) => {
            assert_eq!(shown.len(), real.len(), "{place}");
            shown.iter().zip(real).for_each(|(shown, real)| assert_like(shown, real, key, command));
        }
        (Value::Number(_), Value::Number(_)) if !FIXED.contains(&key) => {}
        (Value::String(_), Value::String(_)) if CHANGING.contains(&key) || key == "ended_at" => {}
        (shown, real) => assert_eq!(shown, real, "{place}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_http_api_page_print_the_shown_output() {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = simulator.base_url();
    let app = Application::start(shared().await, &[("ADSBDB_BASE_URL", &url)]).await.ready().await;
    let (mut shown_job, mut job) = (String::from("no job yet"), String::new());
    let commands = commands();
    assert!(commands.len() >= 13, "{commands:?}");
    for (command, shown) in commands {
        let real = command.replace(ADDRESS, &format!("http://{}", app.address)).replace(&shown_job, &job);
        let printed = run(&real).await;
        let (Ok(shown), Ok(printed)) =
            (serde_json::from_str::<Value>(&shown), serde_json::from_str(&printed))
        else {
            // Not JSON, or cut short with an ellipsis.
            let text = |all: &str| all.split(['\u{2026}', ' ']).next().unwrap_or_default().to_owned();
            assert!(printed.starts_with(&text(&shown)), "{command}: {printed}");
            continue;
        };
        assert_like(&shown, &printed, "", &command);
        if printed["status"] == "started" {
            shown_job = shown["job_id"].as_str().unwrap().to_owned();
            job = printed["job_id"].as_str().unwrap().to_owned();
            let began = Instant::now();
            while app.get(&format!("/ingest/adsbdb/poll/{job}")).await.json()["sent"] != 1 {
                assert!(began.elapsed() < PATIENCE);
            }
        }
    }
}

const REQUIREMENTS: &str = include_str!("schemathesis/requirements.txt");
const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schemathesis");
/// Enough for a debug build while other tests use every core.
const LIMIT: Duration = Duration::from_secs(300);

#[testkit::needs(pip)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_what_the_document_says() {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    assert_as_documented(&[("ADSBDB_BASE_URL", &simulator.base_url())]).await;
}

/// A record of this schema always has a valid id and a valid time.
const ORDERS: &str = r##"{
    "type": "object",
    "required": ["no", "changed_at", "lines"],
    "properties": {
        "no": {"type": "integer", "minimum": 1, "maximum": 1000000000},
        "changed_at": {"type": "integer", "minimum": 0, "maximum": 1700000000000},
        "note": {"type": "string", "maxLength": 100},
        "lines": {"type": "array", "maxItems": 5, "items": {"$ref": "#/$defs/line"}}
    },
    "additionalProperties": false,
    "$defs": {"line": {
        "type": "object",
        "required": ["sku"],
        "properties": {"sku": {"type": "string", "minLength": 1}, "count": {"type": "integer", "minimum": 1, "maximum": 99}},
        "additionalProperties": false
    }}
}"##;

#[testkit::needs(pip)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_of_a_source_is_what_the_document_says() {
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = simulator.base_url();
    let file = File::new(&format!(
        "sources:\n  adsbdb: {{pull: {{kind: adsbdb}}}}\n  planes: {{pull: {{kind: adsbdb}}}}\n  notes: \
         {{envelope: true, delete: {{}}}}\n  orders:\n    \
         push: {{}}\n    event: {{id: /no, timestamp: {{from: /changed_at, unit: ms}}}}\n    schema: \
         orders.json\n  quakes:\n    pull: {{url: \
         '{url}/earthquakes/feed/v1.0/summary/all_hour.geojson', records: /features}}\n    event: {{id: /id, \
         timestamp: /properties/updated}}\n"
    ));
    file.add("orders.json", ORDERS);
    assert_as_documented(&[("ADSBDB_BASE_URL", &url), ("SOURCES_FILE", &file.path())]).await;
}

/// Starts a producer and runs schemathesis on it.
async fn assert_as_documented(settings: &[(&str, &str)]) {
    let machine = Machine::from_env();
    let packages = python_packages("schemathesis-4.32.5", REQUIREMENTS, &machine, &Progress::silent()).await;
    let app = Application::start(shared().await, settings).await.ready().await;

    // A low priority, because other tests measure times.
    let mut command = Command::new("nice");
    command.args(["-n", "15", "python3", "-m", "schemathesis.cli", "--config-file"]);
    command.arg(format!("{SETTINGS}/schemathesis.toml")).arg("run");
    command.arg(format!("http://{}/openapi.json", app.address));
    // `use_after_free` does not apply: a deleted job stays in the list as cancelled.
    command.args(["--checks=all", "--exclude-checks=use_after_free", "--mode=all", "--no-color"]);
    let modules = std::env::join_paths([packages.unwrap(), SETTINGS.into()]).unwrap();
    command.env("PYTHONPATH", modules).env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONDONTWRITEBYTECODE", "1");
    // schemathesis writes files into its working directory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    command.current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("an end in time").unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(stdout.contains(&format!("✅ {phase}")), "no {phase} in {stdout}");
    }
    assert!(app.counters.accepted() > 50, "{} events accepted", app.counters.accepted());
    app.readyz(200).await;
    app.stop().await;
}
