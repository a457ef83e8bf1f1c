//! Runs producer, consumer and poller as tasks, with the same code as their binaries. At the start,
//! `up` waits for the servers; each cause of a wait is printed once, within seconds.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::doc;
use consumer::mongo::{StoreState, read_hello};
use kafka::requests::{RequestClient, RequestError};
use kafka::{BoxError, client_config};
use loadtest::mongo::{Mongo, address};
use rdkafka::consumer::Consumer;
use service::tasks::Supervisor;
use service::tasks::lock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stack::{Addresses, poller_config};
use crate::output::write_progress;

/// Maximum time for a process to stop; a process ends itself after 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// A running process.
#[derive(Debug)]
struct ProcessTask {
    name: &'static str,
    stop: CancellationToken,
    /// `None` after its end was reported.
    task: Option<JoinHandle<Result<(), BoxError>>>,
}

impl ProcessTask {
    fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = Some(tokio::spawn(run(stop.clone())));
        Self { name, stop, task }
    }

    fn failed(&self, cause: &dyn std::fmt::Display) -> BoxError {
        format!("the {} failed: {cause}", self.name).into()
    }

    /// Waits for an unexpected end.
    async fn ended(&mut self) -> BoxError {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Ok(())) => format!("the {} ended unexpectedly", self.name).into(),
            Ok(Err(error)) => self.failed(&error),
            Err(error) => self.failed(&error),
        }
    }

    async fn stop(&mut self) -> Result<(), BoxError> {
        self.stop.cancel();
        let Some(task) = self.task.take() else { return Ok(()) };
        match tokio::time::timeout(STOP_TIMEOUT, task).await {
            Ok(Ok(ended)) => ended.map_err(|error| self.failed(&error)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_) => Err(format!("the {} did not stop within {STOP_TIMEOUT:?}", self.name).into()),
        }
    }
}

/// Runs the poller. Calls that fail are no failure of the process: the status line shows them.
async fn run_poller(
    app: poller::App,
    stop: CancellationToken,
    start_tasks: impl FnOnce(&Supervisor),
) -> Result<(), BoxError> {
    let mut tasks = None;
    let start = |supervisor: &Supervisor| {
        start_tasks(supervisor);
        tasks = Some(supervisor.clone());
    };
    _ = app.run_with(stop, start).await;
    Ok(tasks.map_or(Ok(()), |tasks| tasks.alive())?)
}

/// The counters of the processes; they can be read after the end.
#[derive(Clone)]
pub struct Counts {
    /// The consumer's counters.
    pub consumed: consumer::Counters,
    /// The producer's counters.
    pub produced: producer::Counters,
}

/// Producer, consumer and poller.
pub struct Processes {
    producer: ProcessTask,
    consumer: ProcessTask,
    poller: Option<ProcessTask>,
    /// The producer's address.
    pub producer_address: SocketAddr,
    /// The consumer's address, for health and metrics.
    pub consumer_address: SocketAddr,
    /// The counters.
    pub counts: Counts,
}

impl Processes {
    /// Starts producer and consumer; [`Processes::start_poller`] starts the poller.
    pub async fn start(producer: producer::Config, consumer: consumer::Config) -> Result<Self, BoxError> {
        let producer = producer::App::build(producer).await?;
        let consumer = consumer::App::build(consumer).await?;
        Ok(Self {
            producer_address: producer.address(),
            consumer_address: consumer.address(),
            counts: Counts { consumed: consumer.counters(), produced: producer.counters() },
            producer: ProcessTask::start("producer", async move |stop| Ok(producer.run_until(stop).await?)),
            consumer: ProcessTask::start("consumer", async move |stop| Ok(consumer.run_until(stop).await?)),
            poller: None,
        })
    }

    /// Waits without a limit until producer and consumer are ready; `observer` gets the causes.
    pub async fn ready(&mut self, observer: impl Fn(&str)) -> Result<(), BoxError> {
        let urls = [("producer", self.producer_address), ("consumer", self.consumer_address)];
        let ready = async {
            for (name, address) in urls {
                let url = format!("http://{address}/readyz");
                while let Err(cause) = crate::check::http::get(&url, Duration::from_secs(2)).await {
                    observer(&format!("the {name} is not ready: {cause}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        tokio::select! {
            () = ready => Ok(()),
            failure = self.producer.ended() => Err(failure),
            failure = self.consumer.ended() => Err(failure),
        }
    }

    /// Starts the poller.
    pub async fn start_poller(
        &mut self,
        environment: &[(String, String)],
        addresses: &Addresses,
    ) -> Result<(), BoxError> {
        let config = poller_config(environment, addresses, self.producer_address)?;
        let app = poller::App::build(config).await?;
        self.poller = Some(ProcessTask::start("poller", |stop| run_poller(app, stop, |_| ())));
        Ok(())
    }

    /// Waits for an unexpected end.
    pub async fn ended(&mut self) -> BoxError {
        let poller = async {
            match &mut self.poller {
                Some(poller) => poller.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = self.producer.ended() => failure,
            failure = self.consumer.ended() => failure,
            failure = poller => failure,
        }
    }

    /// Stops poller and producer; afterwards no event is accepted.
    pub async fn stop_intake(&mut self) -> Result<(), BoxError> {
        let poller = match &mut self.poller {
            Some(poller) => poller.stop().await,
            None => Ok(()),
        };
        self.producer.stop().await.and(poller)
    }

    /// Stops the consumer; afterwards its finished records are committed.
    pub async fn stop_consumer(&mut self) -> Result<(), BoxError> {
        self.consumer.stop().await
    }
}

/// Minimum wait for a server before its cause is printed: a server that was just started needs a
/// moment.
const SERVER_GRACE: Duration = Duration::from_secs(1);
/// Minimum wait for the processes before its cause is printed.
const PROCESS_GRACE: Duration = Duration::from_secs(3);
/// Pause between two requests to MongoDB.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Prints the causes of waits; each cause once, until it changes.
#[derive(Debug, Clone)]
pub struct StartupWait {
    started: Instant,
    printed: Arc<Mutex<Vec<(&'static str, String)>>>,
}

impl StartupWait {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now(), printed: Arc::default() }
    }

    /// Reports the cause of the wait for `subject`.
    pub fn report(&self, subject: &'static str, cause: &str) {
        let grace = if subject == "processes" { PROCESS_GRACE } else { SERVER_GRACE };
        let mut printed = lock(&self.printed);
        let is_printed = printed.iter().any(|(of, text)| *of == subject && text == cause);
        if is_printed || self.started.elapsed() < grace {
            return;
        }
        printed.retain(|(of, _)| *of != subject);
        printed.push((subject, cause.to_owned()));
        write_progress(&format!("waiting: {cause}"));
    }

    /// Waits until the broker answers.
    pub async fn kafka(&self, config: &consumer::Config) -> Result<(), BoxError> {
        let client = client_config(&config.kafka_broker, "slipstream-up", &[], &config.properties);
        let wait = self.clone();
        let observer = Arc::new(move |error: &RequestError| wait.report("kafka", &error.to_string()));
        let requests = RequestClient::new(&client)?.without_deadline(observer);
        let request = requests
            .request_async("its topics", |client, timeout| client.fetch_metadata(None, timeout).map(drop));
        Ok(request.await?)
    }

    /// Waits until MongoDB answers and accepts writes.
    pub async fn mongodb(&self, config: &consumer::Config) {
        let store = &config.store;
        loop {
            let hello = async {
                let mongo = Mongo::open_with_short_timeouts(&store.uri, &store.database).await?;
                mongo.with_timeout(mongo.database.run_command(doc! { "hello": 1 })).await
            };
            let cause = match hello.await.map(|hello| read_hello(&hello)) {
                Ok(StoreState::Ready | StoreState::Unknown) => return,
                Ok(StoreState::Unavailable(cause) | StoreState::Unusable(cause)) => {
                    format!("mongodb at {} (MONGODB_URI): {cause}", address(&store.uri))
                }
                Err(error) => error.to_string(),
            };
            self.report("mongodb", &cause);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A producer that is ready and rejects every call.
    async fn rejecting_producer() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let count = stream.read(&mut request).await.unwrap();
                let status = if request[..count].starts_with(b"GET ") { "200 OK" } else { "503 Unavailable" };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        });
        address
    }

    async fn poller(producer: SocketAddr) -> poller::App {
        let producer = format!("http://{producer}");
        let environment =
            [("PRODUCER_BASE_URL", producer.as_str()), ("LISTEN_ADDR", "127.0.0.1:0"), ("DURATION_SEC", "0")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        poller::App::build(poller::Config::from_environment(environment).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_failed_task_of_the_poller_is_an_unexpected_end_with_its_name() {
        let app = poller(rejecting_producer().await).await;
        let fail = |tasks: &Supervisor| drop(tasks.spawn("test task", async { Err::<(), _>("why") }));
        let mut process = ProcessTask::start("poller", |stop| run_poller(app, stop, fail));
        let why = tokio::time::timeout(STOP_TIMEOUT, process.ended()).await.expect("it ends").to_string();
        assert_eq!(why, "the poller failed: task \"test task\" failed: why");
        assert!(process.stop().await.is_ok(), "it was reported");
    }

    #[tokio::test]
    async fn a_task_of_the_poller_that_fails_at_the_stop_is_an_error() {
        let app = poller(rejecting_producer().await).await;
        let fail = |tasks: &Supervisor| {
            let stop = tasks.stop_token().clone();
            let task = async move {
                stop.cancelled().await;
                Err::<(), _>("why")
            };
            drop(tasks.spawn("test task", task));
        };
        let mut process = ProcessTask::start("poller", |stop| run_poller(app, stop, fail));
        let why = process.stop().await.unwrap_err().to_string();
        assert_eq!(why, "the poller failed: task \"test task\" failed: why");
    }

    #[tokio::test]
    async fn failed_calls_of_the_poller_are_no_failure_of_the_process() {
        let app = poller(rejecting_producer().await).await;
        let metrics = app.metrics();
        let mut process = ProcessTask::start("poller", |stop| run_poller(app, stop, |_| ()));
        let failed = async {
            while metrics.counts().failed == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(STOP_TIMEOUT, failed).await.expect("a call fails");
        assert!(process.stop().await.is_ok());
    }
}
