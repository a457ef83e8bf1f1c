//! Tells what `up` waits for before it is up: within seconds, and once for each reason.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bson::doc;
use consumer::mongo::{StoreState, read_hello};
use kafka::client_config;
use rdkafka::consumer::Consumer;
use service::lock::lock;

use super::say;
use kafka::BoxError;
use kafka::requests::RequestClient;
use loadtest::mongo::{Mongo, address};

/// A wait is not told before: servers that were just started need a moment.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a process that was just started.
const START: Duration = Duration::from_secs(3);
/// Between two requests to MongoDB.
const PAUSE: Duration = Duration::from_millis(200);

/// Tells each reason once, until another takes its place.
#[derive(Debug, Clone)]
pub struct Waits {
    began: Instant,
    last: Arc<Mutex<Vec<(&'static str, String)>>>,
}

impl Waits {
    /// Begins now.
    pub fn start() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    /// Tells that `whom` is waited for, and why.
    pub fn tell(&self, whom: &'static str, why: &str) {
        let patience = if whom == "processes" { START } else { PATIENCE };
        let mut last = lock(&self.last);
        let told = last.iter().any(|(of, text)| *of == whom && text == why);
        if told || self.began.elapsed() < patience {
            return;
        }
        last.retain(|(of, _)| *of != whom);
        last.push((whom, why.to_owned()));
        say(&format!("waiting: {why}"));
    }

    /// Returns when the broker answers.
    ///
    /// # Errors
    /// The client library refuses the configuration, or Kafka refuses us for good.
    pub async fn kafka(&self, config: &consumer::Config) -> Result<(), BoxError> {
        let client = client_config(&config.kafka_broker, "slipstream-up", &[], &config.properties);
        let waits = self.clone();
        let told = Arc::new(move |why: &kafka::requests::RequestError| waits.tell("kafka", &why.to_string()));
        let asker = RequestClient::new(&client)?.without_deadline(told);
        let answer =
            asker.request_async("its topics", |client, limit| client.fetch_metadata(None, limit).map(drop));
        Ok(answer.await?)
    }

    /// Returns when MongoDB answers and takes writes.
    pub async fn mongodb(&self, config: &consumer::Config) {
        let store = &config.store;
        loop {
            let hello = async {
                let mongo = Mongo::open_with_short_timeouts(&store.uri, &store.database).await?;
                mongo.with_timeout(mongo.database.run_command(doc! { "hello": 1 })).await
            };
            let why = match hello.await.map(|hello| read_hello(&hello)) {
                Ok(StoreState::Ready | StoreState::Unknown) => return,
                Ok(StoreState::Unavailable(why) | StoreState::Unusable(why)) => {
                    format!("mongodb at {} (MONGODB_URI): {why}", address(&store.uri))
                }
                Err(why) => why.to_string(),
            };
            self.tell("mongodb", &why);
            tokio::time::sleep(PAUSE).await;
        }
    }
}
