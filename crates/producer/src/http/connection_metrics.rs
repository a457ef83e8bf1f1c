//! What is counted of connections, for `/metrics`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::timeouts::Late;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: &'static str,
}

/// Counts of connections, and of requests in flight.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections that are open.
    pub connections: Gauge,
    /// Requests that hold a place.
    pub in_flight: Gauge,
    refused: Counter,
    cut: Family<ByStep, Counter>,
}

impl Counts {
    /// Shows them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let in_flight = "Requests in flight that bring events";
        registry.register("connections", "Connections that are open", self.connections.clone());
        registry.register("requests_in_flight", in_flight, self.in_flight.clone());
        registry.register("connections_refused", "Connections beyond the limit", self.refused.clone());
        registry.register("connections_cut", "Connections of clients that were too slow", self.cut.clone());
    }

    /// One beyond the limit.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// A client was too slow.
    pub fn timed_out(&self, what: Late) {
        let step = match what {
            Late::Head => "head",
            Late::Write => "answer",
            // It had nothing to ask.
            Late::Idle => return,
        };
        self.cut.get_or_create(&ByStep { step }).inc();
    }

    /// A TLS handshake failed or took too long.
    pub fn handshake_failed(&self) {
        self.cut.get_or_create(&ByStep { step: "handshake" }).inc();
    }
}
