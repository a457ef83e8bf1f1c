//! Contexts of librdkafka clients: the handlers of its log lines, errors and statistics.

use std::sync::{Arc, Mutex};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use service::lock::lock;

use crate::rebootstrap::Rebootstrap;

/// A context that logs the lines of librdkafka at debug.
///
/// Slipstream itself logs each change of state once, at a higher level.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuietContext;

impl ClientContext for QuietContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", error = %error, reason, "client error");
    }
}

impl ConsumerContext for QuietContext {}

/// A context for a long-lived client: it keeps the last connection failure and passes on the
/// statistics that [`Rebootstrap`] needs.
///
/// A request that times out does not contain the cause, for example a rejected password. The
/// connection failure does. The client must be polled, because librdkafka calls the context only
/// then.
#[derive(Debug)]
pub struct ConnectionContext {
    last_failure: Mutex<Option<String>>,
    bootstrap: Arc<Rebootstrap>,
}

impl ConnectionContext {
    /// A context without a failure.
    pub fn new(bootstrap: Arc<Rebootstrap>) -> Self {
        Self { last_failure: Mutex::default(), bootstrap }
    }

    /// The last connection failure since [`ConnectionContext::clear_last_failure`].
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.last_failure).clone()
    }

    /// Removes the last failure. Call it when a connection works.
    pub fn clear_last_failure(&self) {
        *lock(&self.last_failure) = None;
    }
}

impl ClientContext for ConnectionContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        QuietContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // AllBrokersDown follows the failure of each broker and does not contain a cause.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // The duration of the connection is not a part of the cause.
            let cause = reason.split_once(" (after ").map_or(reason, |(cause, _)| cause);
            *lock(&self.last_failure) = Some(cause.to_owned());
        }
        QuietContext.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bootstrap.on_statistics(statistics);
    }
}

impl ConsumerContext for ConnectionContext {}

impl ProducerContext for ConnectionContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Logs a line of librdkafka at debug, with the target `librdkafka`.
pub fn log_line(facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", facility, detail = message, "client line");
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;

    use super::*;

    #[test]
    fn the_last_failure_is_kept_until_it_is_cleared() {
        let context = ConnectionContext::new(Rebootstrap::enable(&mut ClientConfig::new()));
        let cause = "sasl_ssl://k:9092/bootstrap: SASL authentication error: Authentication failed";
        let error = |code| KafkaError::Global(code);
        context.error(
            error(RDKafkaErrorCode::Authentication),
            &format!("{cause} (after 301ms in state AUTH_REQ)"),
        );
        context.error(error(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(context.last_failure().as_deref(), Some(cause));
        context.clear_last_failure();
        assert_eq!(context.last_failure(), None);
    }
}
