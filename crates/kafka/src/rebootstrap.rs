//! Brings back a Kafka client that has forgotten every broker.
//!
//! librdkafka keeps those brokers only that the last metadata named. A lone broker that stood still fences itself when it
//! goes on, and for that moment its metadata names none. When the last connection ends, librdkafka orders that it begins
//! again with its bootstrap servers; but that the same metadata is read to its end calls off whatever was ordered. From
//! then on such orders are taken for under way, and a client without a broker has nobody to ask, which is what would begin
//! it otherwise (<https://github.com/confluentinc/librdkafka/issues/5301>).

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use serde::Deserialize;

/// The bootstrap servers of a client, and whether it has forgotten every broker.
#[derive(Debug)]
pub struct Rebootstrap {
    servers: CString,
    forgotten: AtomicBool,
}

/// The little that is wanted of the statistics, which have much of each partition.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    source: String,
}

impl Rebootstrap {
    /// Has the client that is made of `config` tell its statistics once a second: its context is to pass them on to
    /// [`Rebootstrap::on_statistics`], and somebody has to poll it.
    pub fn enable(config: &mut ClientConfig) -> Arc<Self> {
        config.set("statistics.interval.ms", "1000");
        let servers = config.get("bootstrap.servers").and_then(|servers| CString::new(servers).ok());
        Arc::new(Self { servers: servers.unwrap_or_default(), forgotten: AtomicBool::new(false) })
    }

    /// What the client tells of itself, in JSON
    /// (<https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>).
    pub fn on_statistics(&self, statistics: &[u8]) {
        let Ok(Statistics { brokers }) = serde_json::from_slice(statistics) else { return };
        // The others are librdkafka's own, which stand for a role.
        let known = |broker: &Broker| broker.source == "learned" || broker.source == "configured";
        self.forgotten.store(!brokers.values().any(known), Ordering::Relaxed);
    }

    /// Gives `client` its bootstrap servers again if it has no broker. To be called once a second or so by whoever uses
    /// it.
    #[expect(unsafe_code, reason = "rdkafka does not pass on this call")]
    pub fn restore_brokers<C: ClientContext>(&self, client: &Client<C>) {
        if self.forgotten.swap(false, Ordering::Relaxed) {
            tracing::debug!("kafka client forgot every broker, giving it its bootstrap servers again");
            // SAFETY: the client is alive for as long as it is borrowed, the text ends with a zero and is copied, and any
            // thread may call this.
            unsafe { rdkafka::bindings::rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests;
