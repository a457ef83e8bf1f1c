//! Requests to Kafka, repeated until Kafka answers or a deadline passes. A broker that has just
//! started rejects requests to a group coordinator while it loads the group's offsets. An error
//! names the variable KAFKA_BROKER and the address.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{ClientConfig, TopicPartitionList};
use service::tasks::lock;

use crate::context::{log_line, without_duration};

/// Any error, with a text for the user of a command.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Maximum time for a request, all its attempts included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time for one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum time for one attempt without a deadline: the observer gets the first cause within 5 s.
const OBSERVED_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What an operator can do if Kafka is unavailable.
pub const UNAVAILABLE_REMEDY: &str =
    "start it, or correct KAFKA_BROKER and, where it requires a login, KAFKA_PROPERTIES";

/// The librdkafka client of a [`RequestClient`].
pub type Client = BaseConsumer<LastConnectionError>;

/// Called with the cause after each failed attempt of a request without a deadline.
pub type RetryObserver = dyn Fn(&RequestError) + Send + Sync;

/// Sends requests through its own librdkafka client.
#[derive(Clone)]
pub struct RequestClient {
    client: Arc<Client>,
    address: String,
    retry_observer: Option<Arc<RetryObserver>>,
}

/// Client context that keeps the cause of the last failed connection, as librdkafka logs it.
#[derive(Debug, Default)]
pub struct LastConnectionError {
    cause: Mutex<Option<String>>,
}

impl ClientContext for LastConnectionError {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
        // The log line names the cause; the error code is the same for all causes.
        if facility == "FAIL" {
            let text = message.split_once("]: ").map_or(message, |(_thread, text)| text);
            *lock(&self.cause) = Some(without_duration(text).to_owned());
        }
    }
}

impl ConsumerContext for LastConnectionError {}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    /// The cause, without the address.
    pub cause: String,
    /// The bootstrap servers.
    pub address: String,
    /// What was requested, as in `the offsets of group g`.
    subject: String,
    /// Whether no broker can be reached. Otherwise a broker answered, but not this request.
    is_unreachable: bool,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, address, subject, is_unreachable } = self;
        if *is_unreachable {
            write!(f, "kafka does not answer at {address} (KAFKA_BROKER): {cause}; {UNAVAILABLE_REMEDY}")
        } else {
            write!(f, "kafka at {address} (KAFKA_BROKER) does not return {subject}: {cause}")
        }
    }
}

impl std::error::Error for RequestError {}

impl RequestClient {
    /// Creates the client without connecting.
    ///
    /// # Errors
    /// librdkafka rejects the configuration.
    pub fn new(config: &ClientConfig) -> Result<Self, BoxError> {
        let client = config.create_with_context(LastConnectionError::default())?;
        let address = config.get("bootstrap.servers").unwrap_or_default().to_owned();
        Ok(Self { client: Arc::new(client), address, retry_observer: None })
    }

    /// Removes the deadline of requests; `observer` gets the cause after each failed attempt.
    pub fn without_deadline(self, observer: Arc<RetryObserver>) -> Self {
        Self { retry_observer: Some(observer), ..self }
    }

    /// The librdkafka client, to read records with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Repeats a request for `subject` until it succeeds, at most for [`REQUEST_TIMEOUT`]. Blocks
    /// the thread.
    ///
    /// # Errors
    /// The deadline passed, or the error is permanent.
    pub fn request<T>(
        &self,
        subject: &str,
        send: impl Fn(&Client, Duration) -> KafkaResult<T>,
    ) -> Result<T, RequestError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let timeout = match self.retry_observer {
                Some(_) => OBSERVED_ATTEMPT_TIMEOUT,
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    ATTEMPT_TIMEOUT.min(left).max(RETRY_PAUSE)
                }
            };
            let error = match send(&self.client, timeout) {
                Ok(response) => {
                    *lock(&self.client.context().cause) = None;
                    return Ok(response);
                }
                Err(error) => error,
            };
            match &self.retry_observer {
                _ if is_permanent(&error) => return Err(self.error(subject, &error)),
                Some(observer) => observer(&self.error(subject, &error)),
                None if Instant::now() + RETRY_PAUSE >= deadline => {
                    return Err(self.error(subject, &error));
                }
                None => {}
            }
            // librdkafka delivers log lines during a poll. The client has no assignment yet, so
            // that the poll takes no record.
            drop(self.client.poll(RETRY_PAUSE));
        }
    }

    /// As [`RequestClient::request`], on a thread that may block.
    ///
    /// # Errors
    /// As [`RequestClient::request`].
    pub async fn request_async<T: Send + 'static>(
        &self,
        subject: impl Into<String>,
        send: impl Fn(&Client, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, RequestError> {
        let (requests, subject) = (self.clone(), subject.into());
        match tokio::task::spawn_blocking(move || requests.request(&subject, send)).await {
            Ok(response) => response,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// The error of a request for `subject` that failed with `error`.
    pub fn error(&self, subject: &str, error: &KafkaError) -> RequestError {
        while self.client.poll(Duration::ZERO).is_some() {}
        let connection_error = lock(&self.client.context().cause).clone();
        RequestError {
            cause: cause(error, connection_error),
            address: self.address.clone(),
            subject: subject.to_owned(),
            is_unreachable: is_connection_error(error),
        }
    }
}

/// The committed offsets of the client's group in `partitions`.
///
/// # Errors
/// The coordinator returned an error for at least one partition. Such an error never counts as "no
/// offset committed".
pub fn committed(
    client: &Client,
    partitions: TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<TopicPartitionList> {
    let found = client.committed_offsets(partitions, timeout)?;
    match found.elements().iter().map(|at| at.error()).find(Result::is_err) {
        Some(Err(error)) => Err(error),
        _ => Ok(found),
    }
}

/// Whether `error` only states that a connection failed. The log line names the cause.
fn is_connection_error(error: &KafkaError) -> bool {
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

/// The cause of `error`: for a connection error, that of the last failed connection.
fn cause(error: &KafkaError, connection_error: Option<String>) -> String {
    connection_error.filter(|_| is_connection_error(error)).unwrap_or_else(|| error.to_string())
}

/// Whether a retry returns the same error. Every other error can be transient.
pub fn is_permanent(error: &KafkaError) -> bool {
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
    fn only_a_connection_error_has_the_last_failed_connection_as_cause() {
        let cause_of = |code| cause(&KafkaError::MetadataFetch(code), Some("127.0.0.1:9: refused".into()));
        for code in [
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::OperationTimedOut,
            RDKafkaErrorCode::Authentication,
        ] {
            assert_eq!(cause_of(code), "127.0.0.1:9: refused");
        }
        let specific = cause_of(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert!(specific.contains("GroupAuthorizationFailed") && !specific.contains("refused"), "{specific}");
        let without_log_line = cause(&KafkaError::MetadataFetch(RDKafkaErrorCode::AllBrokersDown), None);
        assert!(without_log_line.contains("AllBrokersDown"), "{without_log_line}");
    }

    fn request_client(cluster: &MockCluster<'_, rdkafka::producer::DefaultProducerContext>) -> RequestClient {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", "g");
        RequestClient::new(&config).unwrap()
    }

    fn offset(requests: &RequestClient) -> Result<Option<i64>, RequestError> {
        requests.request("the offsets of group g", |client, timeout| {
            let mut list = TopicPartitionList::new();
            list.add_partition("t", 0);
            let found = committed(client, list, timeout)?;
            Ok(match found.elements()[0].offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
        })
    }

    #[test]
    fn a_coordinator_that_is_not_ready_is_retried() {
        use RDKafkaRespErr::{
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS as LOADING,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE as NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR as NOT_COORDINATOR,
        };
        for code in [NOT_COORDINATOR, LOADING, NOT_AVAILABLE] {
            let cluster = MockCluster::new(1).unwrap();
            cluster.create_topic("t", 1, 1).unwrap();
            cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[code; 5]);
            assert_eq!(offset(&request_client(&cluster)), Ok(None), "{code:?}");
        }
    }

    #[test]
    fn a_permanent_error_is_returned_at_once_with_variable_and_address() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let unauthorized = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[unauthorized; 20]);
        let started = Instant::now();
        let error = offset(&request_client(&cluster)).unwrap_err().to_string();
        assert!(started.elapsed() < REQUEST_TIMEOUT, "{error}");
        let prefix = format!("kafka at {} (KAFKA_BROKER)", cluster.bootstrap_servers());
        assert!(error.starts_with(&prefix) && error.contains("the offsets of group g: "), "{error}");
    }

    #[test]
    fn an_unreachable_broker_is_an_error_with_variable_address_and_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &address).set("group.id", "g");
        let started = Instant::now();
        let error = offset(&RequestClient::new(&config).unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("kafka does not answer at {address} (KAFKA_BROKER): ")), "{error}");
        assert!(error.contains("refused") && error.contains(UNAVAILABLE_REMEDY), "{error}");
        assert!(started.elapsed() < REQUEST_TIMEOUT + ATTEMPT_TIMEOUT, "{:?}", started.elapsed());
    }
}
