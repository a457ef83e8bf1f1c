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
use service::lock::lock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::stack::{Addresses, Configs, poller_config};
use crate::output::write_progress;

/// Maximum time for a process to stop; a process ends itself after 10 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// A running process.
#[derive(Debug)]
struct ProcessTask {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<Result<(), BoxError>>,
}

impl ProcessTask {
    fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(stop.clone()));
        Self { name, stop, task }
    }

    /// Waits for an unexpected end.
    async fn ended(&mut self) -> BoxError {
        match (&mut self.task).await {
            Ok(Ok(())) => format!("the {} ended unexpectedly", self.name).into(),
            Ok(Err(error)) => format!("the {} failed: {error}", self.name).into(),
            Err(error) => format!("the {} failed: {error}", self.name).into(),
        }
    }

    async fn stop(&mut self) -> Result<(), BoxError> {
        self.stop.cancel();
        if self.task.is_finished() {
            return Ok(());
        }
        match tokio::time::timeout(STOP_TIMEOUT, &mut self.task).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => Err(format!("the {} failed: {error}", self.name).into()),
            Err(_) => Err(format!("the {} did not stop within {STOP_TIMEOUT:?}", self.name).into()),
        }
    }
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
    counts: Counts,
}

impl Processes {
    /// Starts producer and consumer; [`Processes::start_poller`] starts the poller.
    ///
    /// # Errors
    /// An address cannot be bound, or a configuration is rejected.
    pub async fn start(configs: Configs) -> Result<Self, BoxError> {
        let producer = producer::App::build(configs.producer).await?;
        let consumer = consumer::App::build(configs.consumer).await?;
        Ok(Self {
            producer_address: producer.address(),
            consumer_address: consumer.address(),
            counts: Counts { consumed: consumer.counters(), produced: producer.counters() },
            producer: ProcessTask::start("producer", async move |stop| Ok(producer.run_until(stop).await?)),
            consumer: ProcessTask::start("consumer", async move |stop| Ok(consumer.run_until(stop).await?)),
            poller: None,
        })
    }

    /// The counters.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// Waits without a limit until producer and consumer are ready; `observer` gets the causes.
    ///
    /// # Errors
    /// One of them ended.
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
    ///
    /// # Errors
    /// Its configuration is wrong.
    pub async fn start_poller(
        &mut self,
        environment: &[(String, String)],
        addresses: &Addresses,
    ) -> Result<(), BoxError> {
        let config = poller_config(environment, addresses, self.producer_address)?;
        let app = poller::App::build(config).await?;
        self.poller = Some(ProcessTask::start("poller", async move |stop| {
            // The exit code depends on the calls, which the status line shows.
            _ = app.run_until(stop).await;
            Ok(())
        }));
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
    ///
    /// # Errors
    /// One of them failed or did not stop in time.
    pub async fn stop_intake(&mut self) -> Result<(), BoxError> {
        let poller = match &mut self.poller {
            Some(poller) => poller.stop().await,
            None => Ok(()),
        };
        self.producer.stop().await.and(poller)
    }

    /// Stops the consumer; afterwards its finished records are committed.
    ///
    /// # Errors
    /// The consumer failed or did not stop in time.
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
    ///
    /// # Errors
    /// librdkafka rejects the configuration, or Kafka returns a permanent error.
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
