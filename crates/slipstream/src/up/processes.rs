//! The three processes, run in this one by the same code that their binaries run.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::environment::{Configs, Places, poller_config};
use crate::http;
use kafka::BoxError;

/// How long a process may take to stop: its own limit is 10 s.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// One running process.
#[derive(Debug)]
struct Running {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Running {
    fn start<F>(name: &'static str, run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(stop.clone()));
        Self { name, stop, task }
    }

    /// Waits for an end that nobody asked for.
    async fn ended(&mut self) -> BoxError {
        match (&mut self.task).await {
            Ok(Ok(())) => format!("the {} ended by itself", self.name).into(),
            Ok(Err(error)) => format!("the {} failed: {error}", self.name).into(),
            Err(error) => format!("the {} failed: {error}", self.name).into(),
        }
    }

    async fn stop(&mut self) -> Result<(), BoxError> {
        self.stop.cancel();
        if self.task.is_finished() {
            return Ok(());
        }
        match tokio::time::timeout(STOP_LIMIT, &mut self.task).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => Err(format!("the {} failed: {error}", self.name).into()),
            Err(_) => Err(format!("the {} did not stop within {STOP_LIMIT:?}", self.name).into()),
        }
    }
}

/// What the processes count; good also after they stopped.
#[derive(Clone)]
pub struct Counts {
    /// The consumer's counters.
    pub consumed: consumer::Counters,
    /// The producer's counters.
    pub produced: producer::Counters,
}

/// Producer, consumer and poller.
pub struct Processes {
    producer: Running,
    consumer: Running,
    poller: Option<Running>,
    /// The producer's address.
    pub producer_address: SocketAddr,
    /// The consumer's address, for health and metrics.
    pub consumer_address: SocketAddr,
    counts: Counts,
}

impl Processes {
    /// Starts producer and consumer; the poller follows with [`Processes::start_poller`].
    ///
    /// # Errors
    /// An address cannot be listened on, or a configuration is refused.
    pub async fn start(configs: Configs) -> Result<Self, BoxError> {
        let producer = producer::App::build(configs.producer).await?;
        let consumer = consumer::App::build(configs.consumer).await?;
        Ok(Self {
            producer_address: producer.address(),
            consumer_address: consumer.address(),
            counts: Counts { consumed: consumer.counters(), produced: producer.counters() },
            producer: Running::start("producer", async move |stop| Ok(producer.run_until(stop).await?)),
            consumer: Running::start("consumer", async move |stop| Ok(consumer.run_until(stop).await?)),
            poller: None,
        })
    }

    /// What they count.
    pub fn counts(&self) -> Counts {
        self.counts.clone()
    }

    /// Waits until producer and consumer can do their work, for as long as that takes; `told` learns why they cannot yet.
    ///
    /// # Errors
    /// One of them ended.
    pub async fn ready(&mut self, told: impl Fn(&str)) -> Result<(), BoxError> {
        let urls = [("producer", self.producer_address), ("consumer", self.consumer_address)];
        let answers = async {
            for (name, address) in urls {
                let url = format!("http://{address}/readyz");
                while let Err(why) = http::get(&url, Duration::from_secs(2)).await {
                    told(&format!("the {name} is not ready: {why}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        tokio::select! {
            () = answers => Ok(()),
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
        places: &Places,
    ) -> Result<(), BoxError> {
        let config = poller_config(environment, places, self.producer_address)?;
        let app = poller::App::build(config).await?;
        self.poller = Some(Running::start("poller", async move |stop| {
            // Its exit code says whether a call succeeded, which the status line shows.
            _ = app.run_until(stop).await;
            Ok(())
        }));
        Ok(())
    }

    /// Waits for an end that nobody asked for.
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

    /// Stops what brings events, the poller first: nothing is accepted any more when this returns.
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

    /// Stops the consumer: what it finished is committed when this returns.
    ///
    /// # Errors
    /// It failed or did not stop in time.
    pub async fn stop_consumer(&mut self) -> Result<(), BoxError> {
        self.consumer.stop().await
    }
}
