//! Requests to Kafka. Each is repeated until Kafka answers it or a deadline passes: a broker that has just started refuses
//! requests to a coordinator while it loads the offsets of its groups. A failure names the variable and the address.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kafka::log_line;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};
use service::lock::lock;

use crate::Failure;

/// How long a request is repeated.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(4);
/// The same where somebody is told after each: within 5 s, whatever else is waited for.
const FIRST_WORDS: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// What an operator can do about a Kafka that does not answer.
pub const REMEDY: &str = "start it, or correct KAFKA_BROKER and, where it wants a login, KAFKA_PROPERTIES";

/// The client of one command.
pub type Client = BaseConsumer<Listener>;

/// Learns why there is no answer yet.
pub type Told = dyn Fn(&Unanswered) + Send + Sync;

/// Sends requests through a client of its own.
#[derive(Clone)]
pub struct Asker {
    client: Arc<Client>,
    address: String,
    told: Option<Arc<Told>>,
}

/// Keeps the reason of the last failed connection, as the client library logs it.
#[derive(Debug, Default)]
pub struct Listener {
    heard: Mutex<Option<String>>,
}

impl ClientContext for Listener {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
        // Its lines name the cause; an error's code is the same for all of them.
        if facility == "FAIL" {
            let text = message.split_once("]: ").map_or(message, |(_thread, text)| text);
            // How long the connection lasted is not a part of the reason.
            let why = text.split_once(" (after ").map_or(text, |(why, _)| why);
            *lock(&self.heard) = Some(why.to_owned());
        }
    }
}

impl ConsumerContext for Listener {}

/// A request that was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Why, without the address.
    pub cause: String,
    /// The bootstrap servers.
    pub address: String,
    /// The noun of the request, as in `the offsets of group g`.
    what: String,
    /// Whether no broker can be reached; else a broker answers, but not this.
    away: bool,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, address, what, away } = self;
        if *away {
            write!(f, "kafka does not answer at {address} (KAFKA_BROKER): {cause}; {REMEDY}")
        } else {
            write!(f, "kafka at {address} (KAFKA_BROKER) does not tell {what}: {cause}")
        }
    }
}

impl std::error::Error for Unanswered {}

impl Asker {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The client library refuses the configuration.
    pub fn new(config: &ClientConfig) -> Result<Self, Failure> {
        let client = config.create_with_context(Listener::default())?;
        let address = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        Ok(Self { client: Arc::new(client), address, told: None })
    }

    /// Requests have no deadline from now on; `told` learns why there is no answer yet, again and again.
    pub fn wait_for_ever(self, told: Arc<Told>) -> Self {
        Self { told: Some(told), ..self }
    }

    /// The client, for what is no request.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks for `what` until there is an answer, at most for [`LIMIT`]. Blocks its thread.
    ///
    /// # Errors
    /// There is none, or it cannot change.
    pub fn ask<T>(
        &self,
        what: &str,
        question: impl Fn(&Client, Duration) -> KafkaResult<T>,
    ) -> Result<T, Unanswered> {
        let until = Instant::now() + LIMIT;
        loop {
            let attempt = match self.told {
                Some(_) => FIRST_WORDS,
                None => ATTEMPT.min(until.saturating_duration_since(Instant::now())).max(PAUSE),
            };
            let error = match question(&self.client, attempt) {
                Ok(answer) => {
                    *lock(&self.client.context().heard) = None;
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match &self.told {
                _ if is_final(&error) => return Err(self.unanswered(what, &error)),
                Some(told) => told(&self.unanswered(what, &error)),
                None if Instant::now() + PAUSE >= until => return Err(self.unanswered(what, &error)),
                None => {}
            }
            // The client's log lines come out while it is polled. It has no partitions yet: no record is lost.
            drop(self.client.poll(PAUSE));
        }
    }

    /// As [`Asker::ask`], on a thread where it may block.
    ///
    /// # Errors
    /// As [`Asker::ask`].
    pub async fn ask_aside<T: Send + 'static>(
        &self,
        what: impl Into<String>,
        question: impl Fn(&Client, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (asker, what) = (self.clone(), what.into());
        match tokio::task::spawn_blocking(move || asker.ask(&what, question)).await {
            Ok(answer) => answer,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// What to say of `error`, which came instead of `what`.
    pub fn unanswered(&self, what: &str, error: &KafkaError) -> Unanswered {
        while self.client.poll(Duration::ZERO).is_some() {}
        let heard = lock(&self.client.context().heard).clone();
        Unanswered {
            cause: cause(error, heard),
            address: self.address.clone(),
            what: what.to_owned(),
            away: is_vague(error),
        }
    }
}

/// The committed offsets of the client's group in `partitions`.
///
/// # Errors
/// The coordinator does not answer, for one of them at least: an offset that is not told is not taken for none.
pub fn committed(
    client: &Client,
    partitions: TopicPartitionList,
    limit: Duration,
) -> KafkaResult<TopicPartitionList> {
    let found = client.committed_offsets(partitions, limit)?;
    match found.elements().iter().map(|at| at.error()).find(Result::is_err) {
        Some(Err(error)) => Err(error),
        _ => Ok(found),
    }
}

/// Whether `error` stands for many causes, each of them a connection that does not work.
fn is_vague(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::SSL
                | Code::Authentication
                | Code::SaslAuthenticationFailed
        )
    )
}

/// What to say of an error. The last failed connection names the cause of a vague one; any other speaks for itself.
fn cause(error: &KafkaError, heard: Option<String>) -> String {
    heard.filter(|_| is_vague(error)).unwrap_or_else(|| error.to_string())
}

/// Whether the answer stays the same however often one asks. Everything else may pass.
pub fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::GroupAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::InvalidGroupId
                | Code::InvalidTopic
                | Code::UnsupportedVersion
                | Code::UnsupportedSASLMechanism
                | Code::NotImplemented
                | Code::InvalidArgument
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::Offset;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    #[test]
    fn the_last_failed_connection_is_the_cause_of_vague_errors_only() {
        let said = |code| cause(&KafkaError::MetadataFetch(code), Some("127.0.0.1:9: refused".into()));
        for vague in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
            RDKafkaErrorCode::Authentication,
        ] {
            assert_eq!(said(vague), "127.0.0.1:9: refused");
        }
        let clear = said(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert!(clear.contains("GroupAuthorizationFailed") && !clear.contains("refused"), "{clear}");
        let silent = cause(&KafkaError::MetadataFetch(RDKafkaErrorCode::AllBrokersDown), None);
        assert!(silent.contains("AllBrokersDown"), "{silent}");
    }

    fn asker(cluster: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>) -> Asker {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        Asker::new(&config).unwrap()
    }

    fn offset(asker: &Asker) -> Result<Option<i64>, Unanswered> {
        asker.ask("the offsets of group g", |client, limit| {
            let mut list = TopicPartitionList::new();
            list.add_partition("t", 0);
            let found = committed(client, list, limit)?;
            Ok(match found.elements()[0].offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
        })
    }

    #[test]
    fn a_coordinator_that_is_not_ready_yet_is_asked_again() {
        use RDKafkaRespErr::{
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS as LOADING,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE as NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR as NOT_COORDINATOR,
        };
        for code in [NOT_COORDINATOR, LOADING, NOT_AVAILABLE] {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("t", 1, 1).unwrap();
            cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[code; 5]);
            assert_eq!(offset(&asker(&cluster)), Ok(None), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_that_cannot_change_is_told_at_once_with_variable_and_address() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[refused; 20]);
        let began = Instant::now();
        let said = offset(&asker(&cluster)).unwrap_err().to_string();
        assert!(began.elapsed() < LIMIT, "{said}");
        let place = format!("kafka at {} (KAFKA_BROKER)", cluster.bootstrap_servers());
        assert!(said.starts_with(&place) && said.contains("the offsets of group g: "), "{said}");
    }

    #[test]
    fn no_broker_at_all_is_told_after_the_deadline_with_variable_address_and_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &address).set("group.id", "g");
        let began = Instant::now();
        let said = offset(&Asker::new(&config).unwrap()).unwrap_err().to_string();
        assert!(said.contains(&format!("kafka does not answer at {address} (KAFKA_BROKER): ")), "{said}");
        assert!(said.contains("refused") && said.contains(REMEDY), "{said}");
        assert!(began.elapsed() < LIMIT + ATTEMPT, "{:?}", began.elapsed());
    }
}
