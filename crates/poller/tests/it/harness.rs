//! A poller that runs in the test process, and requests to its listener.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use poller::metrics::{CallCounts, Metrics};
use poller::{App, Config};
use service::tasks::Supervisor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running poller.
pub struct Poller {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    metrics: Metrics,
    task: JoinHandle<ExitCode>,
}

/// The result of a run.
#[derive(Debug)]
pub struct Ended {
    pub code: ExitCode,
    pub counts: CallCounts,
    /// Time from the call of `end` or `stop` to the end of the run.
    pub took: Duration,
}

impl Ended {
    /// Whether the exit code is 1.
    pub fn failed(&self) -> bool {
        self.code == ExitCode::FAILURE
    }
}

/// A configuration for `producer` and `variables`.
pub fn config(producer: SocketAddr, variables: &[(&str, &str)]) -> Config {
    let url = format!("http://{producer}");
    let base = [("PRODUCER_BASE_URL", url.as_str()), ("LISTEN_ADDR", "127.0.0.1:0")];
    let pairs = base.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_environment(pairs).unwrap()
}

impl Poller {
    pub async fn start(producer: SocketAddr, variables: &[(&str, &str)]) -> Self {
        Self::start_with(producer, variables, |_| ()).await
    }

    /// Starts a poller with further supervised tasks.
    pub async fn start_with(
        producer: SocketAddr,
        variables: &[(&str, &str)],
        start_tasks: impl FnOnce(&Supervisor) + Send + 'static,
    ) -> Self {
        let app = App::build(config(producer, variables)).await.unwrap();
        let (address, metrics, stop) = (app.address(), app.metrics(), CancellationToken::new());
        let task = tokio::spawn(app.run_with(stop.clone(), start_tasks));
        Self { address, stop, metrics, task }
    }

    pub fn counts(&self) -> CallCounts {
        self.metrics.counts()
    }

    /// Waits until the run ends.
    pub async fn end(self) -> Ended {
        let since = Instant::now();
        let code = tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap();
        Ended { code, counts: self.metrics.counts(), took: since.elapsed() }
    }

    pub async fn stop(self) -> Ended {
        self.stop.cancel();
        self.end().await
    }

    /// The response of the poller's listener, head and body.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: poller\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }
}

/// Waits up to 10 s until `holds` returns true.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
