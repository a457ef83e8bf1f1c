//! schemathesis judges the running producer by its own OpenAPI document: examples, the edges of each schema, random
//! requests that are right or wrong, and chains of requests. What it found once has a test of its own elsewhere.

use std::process::Stdio;
use std::time::Duration;

use devservers::{Machine, Progress, Simulator, python_packages};
use tokio::process::Command;

use crate::application::Application;
use crate::real_broker::shared;

const REQUIREMENTS: &str = include_str!("schemathesis/requirements.txt");
const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schemathesis");
/// With the debug build and every core taken by other tests.
const LIMIT: Duration = Duration::from_secs(300);

#[testkit::needs(pip)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_what_the_document_says() {
    let machine = Machine::from_env();
    let packages = python_packages("schemathesis-4.32.5", REQUIREMENTS, &machine, &Progress::silent()).await;
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = simulator.base_url();
    let app = Application::start(shared().await, &[("ADSBDB_BASE_URL", &url)]).await.ready().await;

    // Other tests, which measure times, go first.
    let mut command = Command::new("nice");
    command.args(["-n", "15", "python3", "-m", "schemathesis.cli", "--config-file"]);
    command.arg(format!("{SETTINGS}/schemathesis.toml")).arg("run");
    command.arg(format!("http://{}/openapi.json", app.address));
    // A cancelled job stays listed, so it is there after its deletion.
    command.args(["--checks=all", "--exclude-checks=use_after_free", "--mode=all", "--no-color"]);
    let modules = std::env::join_paths([packages.unwrap(), SETTINGS.into()]).unwrap();
    command.env("PYTHONPATH", modules).env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONDONTWRITEBYTECODE", "1");
    // It keeps notes where it runs.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    command.current_dir(place.path()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("an end in time").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(&format!("✅ {phase}")), "no {phase} in {said}");
    }
    assert!(app.counters.accepted() > 50, "{} events accepted", app.counters.accepted());
    app.readyz(200).await;
    app.stop().await;
}
