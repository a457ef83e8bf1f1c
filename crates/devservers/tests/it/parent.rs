//! A child process ends with its parent, also if the parent is killed.

use std::process::Command;
use std::time::Duration;

use devservers::{Broker, BrokerKind, BrokerOptions, Child, Progress};

const FOLDER: &str = "SERVERS_TEST_PARENT_FOLDER";

/// The process that the next test starts, from this binary and with the variable set, and then
/// kills.
#[tokio::test]
#[ignore = "not a test: the next one starts it as a process of its own"]
async fn a_parent_that_waits_to_be_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let options = BrokerOptions::new(BrokerKind::Tansu, folder);
    let data = options.data_dir.clone();
    let broker = Broker::start(options, Progress::silent()).await.unwrap();
    std::fs::write(data.join("pid.new"), broker.pid().unwrap().to_string()).unwrap();
    std::fs::rename(data.join("pid.new"), data.join("pid")).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_broker_dies_with_its_killed_parent_even_if_it_is_paused() {
    for paused in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "parent::a_parent_that_waits_to_be_killed"])
            .env(FOLDER, folder.path());
        let parent = Child::start(command, &folder.path().join("parent.log")).unwrap();
        let mut broker = None;
        eventually(|| {
            broker = std::fs::read_to_string(folder.path().join("pid")).ok();
            broker.is_some()
        })
        .await;
        let broker = broker.unwrap();
        assert!(runs(&broker));
        if paused {
            assert!(Command::new("kill").args(["-STOP", &broker]).status().unwrap().success());
        }
        parent.kill().await;
        eventually(|| !runs(&broker)).await;
    }
}

/// Whether the process exists and is not a zombie.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let holds = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while !condition() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), holds).await.unwrap();
}
