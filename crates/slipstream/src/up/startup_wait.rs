//! Waits for the servers at the start of `up`. Each cause of a wait is printed once, within
//! seconds.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::doc;
use consumer::mongo::{StoreState, read_hello};
use kafka::client_config;
use rdkafka::consumer::Consumer;
use service::lock::lock;

use crate::output::write_progress;
use kafka::BoxError;
use kafka::requests::{RequestClient, RequestError};
use loadtest::mongo::{Mongo, address};

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
