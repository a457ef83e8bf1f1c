//! Works around librdkafka #5301: a client whose metadata became empty never re-bootstraps
//! (<https://github.com/confluentinc/librdkafka/issues/5301>).
//!
//! librdkafka keeps only the brokers of the last metadata response. A single broker that was suspended
//! fences itself when it resumes, and for a moment its metadata contains no broker. When the last
//! connection closes, librdkafka schedules a re-bootstrap. The end of the same metadata response
//! cancels it. librdkafka then treats the re-bootstrap as in progress for ever, and a client without
//! brokers has no request that would start another one.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use serde::Deserialize;

/// The bootstrap servers of a client, and whether the client has lost all brokers.
#[derive(Debug)]
pub struct Rebootstrap {
    servers: CString,
    is_without_brokers: AtomicBool,
}

/// The used part of librdkafka's statistics.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    source: String,
}

impl Rebootstrap {
    /// Enables statistics once a second in `config`.
    ///
    /// The context of the client must pass them to [`Rebootstrap::on_statistics`], and the client must
    /// be polled.
    pub fn enable(config: &mut ClientConfig) -> Arc<Self> {
        config.set("statistics.interval.ms", "1000");
        let servers = config.get("bootstrap.servers").and_then(|servers| CString::new(servers).ok());
        Arc::new(Self { servers: servers.unwrap_or_default(), is_without_brokers: AtomicBool::new(false) })
    }

    /// Reads the statistics of the client, in JSON
    /// (<https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>).
    pub fn on_statistics(&self, statistics: &[u8]) {
        let Ok(Statistics { brokers }) = serde_json::from_slice(statistics) else { return };
        // Brokers of other sources are internal and stand for a role.
        let is_real = |broker: &Broker| broker.source == "learned" || broker.source == "configured";
        self.is_without_brokers.store(!brokers.values().any(is_real), Ordering::Relaxed);
    }

    /// Adds the bootstrap servers to `client` if it has no broker. Call it about once a second.
    #[expect(unsafe_code, reason = "rdkafka has no binding for this call")]
    pub fn restore_brokers<C: ClientContext>(&self, client: &Client<C>) {
        if self.is_without_brokers.swap(false, Ordering::Relaxed) {
            tracing::debug!("kafka client lost all brokers, adding its bootstrap servers");
            // SAFETY: the client is alive while it is borrowed. The text ends with NUL and is copied. The call
            // is thread-safe.
            unsafe { rdkafka::bindings::rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests;
