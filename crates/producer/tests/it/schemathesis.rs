//! schemathesis checks the running producer against its OpenAPI document: examples, limits of each
//! schema, random valid and invalid requests, and sequences of requests. Its earlier findings have
//! their own tests.

use std::process::Stdio;
use std::time::Duration;

use devservers::{Machine, Progress, Simulator, python_packages};
use tokio::process::Command;

use crate::application::Application;
use crate::real_broker::shared;

const REQUIREMENTS: &str = include_str!("schemathesis/requirements.txt");
const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schemathesis");
/// Enough for a debug build while other tests use every core.
const LIMIT: Duration = Duration::from_secs(300);

#[testkit::needs(pip)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_what_the_document_says() {
    let machine = Machine::from_env();
    let packages = python_packages("schemathesis-4.32.5", REQUIREMENTS, &machine, &Progress::silent()).await;
    let simulator = Simulator::start(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = simulator.base_url();
    let app = Application::start(shared().await, &[("ADSBDB_BASE_URL", &url)]).await.ready().await;

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
