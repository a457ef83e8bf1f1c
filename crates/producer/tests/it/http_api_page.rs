//! Runs each command of `docs/http-api.md` and compares the output with the page. Ids, times and
//! numbers may differ.

use std::time::Instant;

use devservers::Simulator;
use serde_json::Value;
use tokio::process::Command;

use crate::application::{Application, PATIENCE};
use crate::real_broker::shared;

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
