//! Runs a poller in this process and asks its listener.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use poller::metrics::{Progress, Tally};
use poller::{App, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running poller.
pub struct Poller {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    progress: Progress,
    task: JoinHandle<ExitCode>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: ExitCode,
    pub tally: Tally,
    /// Since it was waited for, or stopped.
    pub took: Duration,
}

impl Ended {
    /// `ExitCode` has no comparison of its own.
    pub fn failed(&self) -> bool {
        self.code == ExitCode::FAILURE
    }
}

/// The configuration of a poller of `producer`, with further variables.
pub fn config(producer: SocketAddr, variables: &[(&str, &str)]) -> Config {
    let url = format!("http://{producer}");
    let base = [("PRODUCER_BASE_URL", url.as_str()), ("LISTEN_ADDR", "127.0.0.1:0")];
    let pairs = base.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_environment(pairs).unwrap()
}

impl Poller {
    pub async fn start(producer: SocketAddr, variables: &[(&str, &str)]) -> Self {
        let app = App::build(config(producer, variables)).await.unwrap();
        let (address, progress, stop) = (app.address(), app.progress(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { app.run_until(stopped).await.unwrap() });
        Self { address, stop, progress, task }
    }

    pub fn tally(&self) -> Tally {
        self.progress.tally()
    }

    /// Waits for its own end.
    pub async fn end(self) -> Ended {
        let since = Instant::now();
        let code = tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap();
        Ended { code, tally: self.progress.tally(), took: since.elapsed() }
    }

    pub async fn stop(self) -> Ended {
        self.stop.cancel();
        self.end().await
    }

    /// The answer of its listener, head and body.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: poller\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// Waits for a condition, for ten seconds at most.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
