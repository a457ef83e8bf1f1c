//! A clock that is set back, a disk that is full, and a producer that may open no more files.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::Message;
use testkit::fault_test::Setup;
use testkit::fault_test::servers::{DatabaseSetup, ServerSetup};
use testkit::{FaultTest, Process, eventually, kafka};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{RECOVERY, lasts};

/// The library that sets back the clock of the processes that it is preloaded into.
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
async fn g3_a_clock_that_is_set_back_by_an_hour_turns_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let (library, set_back) = (clock_library(folder.path()).await, folder.path().join("set-back"));
    let environment =
        [("LD_PRELOAD", library.to_str().unwrap()), ("CLOCK_BACK_ONCE", set_back.to_str().unwrap())];
    let trial = FaultTest::start_with_load(Setup { environment: &environment, ..Setup::default() }).await;
    let at = wall_ms();
    std::fs::write(&set_back, "").unwrap();
    lasts(10).await;
    trial.wait_for_finished(1_000, Duration::from_secs(30)).await;
    for process in ["producer", "consumer"] {
        trial.assert_never_reported(process, "kafka");
        trial.assert_never_reported(process, "mongodb");
    }
    let (mut newest, mut since) = (0, 0);
    for record in kafka::read_all(&trial.names, &trial.names.topic).await {
        let ingested_at = record.timestamp().to_millis().unwrap();
        assert!(
            ingested_at > at - 600_000,
            "{ingested_at} is the clock that was set back, {at} the true one"
        );
        newest = newest.max(ingested_at);
        since += u32::from(ingested_at > at - 500);
    }
    // The producer's clock stands nearly still: it was set back.
    assert!(newest < at + 5_000 && since > 1_000, "{newest}, {since} records since {at}");
    trial.verify_and_end(0).await;
}

/// What the database answers to a write then: first that there is no room, later that its storage has panicked.
const FULL: &str = "WiredTiger error";

/// A disk of 256 MB in memory, which nobody sees but through the process that keeps it.
struct Disk {
    folder: &'static Path,
    _keeper: Child,
}

impl Disk {
    async fn mount() -> Self {
        let mut keeper = Command::new("unshare");
        let mount = "mount -t tmpfs -o size=256m none /mnt && echo made && exec sleep 900";
        keeper.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
        let keeper = keeper.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn();
        let mut keeper = keeper.expect("unshare");
        let said = BufReader::new(keeper.stdout.take().unwrap()).lines().next_line().await.unwrap();
        assert_eq!(said.as_deref(), Some("made"));
        let folder: &'static Path = PathBuf::from(format!("/proc/{}/root/mnt", keeper.id().unwrap())).leak();
        Self { folder, _keeper: keeper }
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    /// Takes all the room that is left.
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
async fn g6_a_database_whose_disk_is_full_is_waited_for() {
    let disk = Disk::mount().await;
    let database =
        Some(DatabaseSetup { sync_on_commit: true, folder: Some(disk.folder), ..DatabaseSetup::default() });
    let servers = ServerSetup { database, ..ServerSetup::default() };
    let mut trial = FaultTest::start_with_load(Setup { servers, ..Setup::default() }).await;
    eventually("the disk is full for the database", Duration::from_secs(60), || async {
        disk.fill();
        trial.has_reported("consumer", FULL).then_some(())
    })
    .await;
    lasts(10).await;
    std::fs::remove_file(disk.filler()).unwrap();
    // It writes nothing more until it is started again, although there is room.
    trial.servers.database().kill();
    trial.servers.database().restart().await.unwrap();
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_not_reported("kafka");
    trial.verify_and_end(0).await;
}

/// How many files a process has open.
fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

/// How many files it may open from now on.
async fn may_open(process: &Process, files: usize) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &process.pid().to_string(), &format!("--nofile={files}:")]);
    assert!(prlimit.status().await.expect("prlimit of util-linux").success());
}

#[testkit::needs(apache_kafka)]
#[tokio::test(flavor = "multi_thread")]
async fn g4_a_producer_that_is_out_of_files_serves_the_connections_that_it_has() {
    let mut trial = FaultTest::start_with_load(Setup::default()).await;
    let files = open_files(trial.producer());
    may_open(trial.producer(), files + 10).await;
    let mut crowd = Vec::new();
    for _ in 0..50 {
        crowd.push(TcpStream::connect(trial.producer().address).await.unwrap());
    }
    eventually("it is out of files", Duration::from_secs(10), || async {
        (open_files(trial.producer()) >= files + 10).then_some(())
    })
    .await;
    lasts(5).await;
    trial.wait_for_finished(500, Duration::from_secs(10)).await;
    drop(crowd);
    may_open(trial.producer(), 4_096).await;
    trial.assert_work_resumes_within(RECOVERY).await;
    trial.assert_no_server_reported();
    trial.verify_and_end(0).await;
}
