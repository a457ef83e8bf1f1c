//! A clock that is set back, a full disk, and a producer at its limit of open files.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::Message;
use testkit::fault_test::Setup;
use testkit::fault_test::{DatabaseSetup, ServerSetup};
use testkit::{FaultTest, Process, eventually, kafka};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{RECOVERY_TIMEOUT, wait_seconds};

/// Compiles the library that sets back the clock of a process into which it is preloaded.
async fn clock_library(folder: &Path) -> PathBuf {
    let library = folder.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/faults/clock.c");
    let mut compile = Command::new("cc");
    let compiled = compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().await;
    assert!(compiled.expect("a C compiler").success());
    library
}

fn wall_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g3_clock_set_back_by_an_hour_restores_no_older_event() {
    let folder = tempfile::tempdir().unwrap();
    let (library, set_back) = (clock_library(folder.path()).await, folder.path().join("set-back"));
    let environment =
        [("LD_PRELOAD", library.to_str().unwrap()), ("CLOCK_BACK_ONCE", set_back.to_str().unwrap())];
    let test = FaultTest::start_with_load(Setup { environment: &environment, ..Setup::default() }).await;
    let at = wall_ms();
    std::fs::write(&set_back, "").unwrap();
    wait_seconds(10).await;
    test.wait_for_finished(1_000, Duration::from_secs(30)).await;
    for process in ["producer", "consumer"] {
        test.assert_never_reported(process, "kafka");
        test.assert_never_reported(process, "mongodb");
    }
    let (mut newest, mut since) = (0, 0);
    for record in kafka::read_all(&test.names, &test.names.topic).await {
        let ingested_at = record.timestamp().to_millis().unwrap();
        assert!(
            ingested_at > at - 600_000,
            "{ingested_at} is from the clock that was set back; the true time is {at}"
        );
        newest = newest.max(ingested_at);
        since += u32::from(ingested_at > at - 500);
    }
    // The clock of the producer nearly stops until the true time has caught up.
    assert!(newest < at + 5_000 && since > 1_000, "{newest}, {since} records since {at}");
    test.verify_and_end(0).await;
}

/// Part of the error of a write to a full disk: first for missing space, later for a panic of the
/// storage engine.
const DISK_FULL_ERROR: &str = "WiredTiger error";

/// A tmpfs of 256 MB in the mount namespace of a process.
struct Disk {
    folder: &'static Path,
    _process: Child,
}

impl Disk {
    async fn mount() -> Self {
        let mut process = Command::new("unshare");
        let mount = "mount -t tmpfs -o size=256m none /mnt && echo mounted && exec sleep 900";
        process.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
        let process = process.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
        let mut process = process.expect("unshare");
        let said = BufReader::new(process.stdout.take().unwrap()).lines().next_line().await.unwrap();
        assert_eq!(said.as_deref(), Some("mounted"));
        let folder: &'static Path = PathBuf::from(format!("/proc/{}/root/mnt", process.id().unwrap())).leak();
        Self { folder, _process: process }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Writes until no space is left.
    fn fill(&self) {
        use std::io::Write;
        let mut filler = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        for chunk in [1 << 20, 4 << 10] {
            while filler.write_all(&vec![0; chunk]).is_ok() {}
        }
    }
}

#[testkit::needs(apache_kafka, own_mongodb, user_namespaces)]
#[tokio::test(flavor = "multi_thread")]
async fn g6_mongodb_disk_full_until_freed_no_event_is_lost() {
    let disk = Disk::mount().await;
    let database =
        Some(DatabaseSetup { sync_on_commit: true, folder: Some(disk.folder), ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut test = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    eventually("the consumer reports the full disk", Duration::from_secs(60), || async {
        disk.fill();
        test.has_reported("consumer", DISK_FULL_ERROR).then_some(())
    })
    .await;
    wait_seconds(10).await;
    std::fs::remove_file(disk.filler()).unwrap();
    // The server writes again only after a restart, although there is space.
    test.servers.database().kill();
    test.servers.database().restart().await.unwrap();
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_not_reported("kafka");
    test.verify_and_end(0).await;
}

/// The number of open files of a process.
fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

/// Limits the number of open files of a process.
async fn limit_open_files(process: &Process, files: usize) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &process.pid().to_string(), &format!("--nofile={files}:")]);
    assert!(prlimit.status().await.expect("prlimit of util-linux").success());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g4_producer_out_of_files_serves_its_open_connections() {
    let mut test = FaultTest::start_with_load(Setup::default()).await;
    let files = open_files(test.producer());
    limit_open_files(test.producer(), files + 10).await;
    let mut connections = Vec::new();
    for _ in 0..50 {
        connections.push(TcpStream::connect(test.producer().address).await.unwrap());
    }
    eventually("the producer is at its limit of open files", Duration::from_secs(10), || async {
        (open_files(test.producer()) >= files + 10).then_some(())
    })
    .await;
    wait_seconds(5).await;
    test.wait_for_finished(500, Duration::from_secs(10)).await;
    drop(connections);
    limit_open_files(test.producer(), 4_096).await;
    test.assert_work_resumes_within(RECOVERY_TIMEOUT).await;
    test.assert_no_server_reported();
    test.verify_and_end(0).await;
}
