//! Runs producer, consumer and poller as tasks, with the same code as their binaries.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::configs::{Addresses, Configs, poller_config};
use crate::http;
use kafka::BoxError;

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
                while let Err(cause) = http::get(&url, Duration::from_secs(2)).await {
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
