//! Delivery of records to Kafka: the only module of the producer that uses librdkafka.
//!
//! - Sending never blocks a thread and never takes longer than DELIVERY_TIMEOUT_MS.
//! - A record counts as stored only after a delivery report that has an offset.
//! - A record counts as not stored only if that is certain. Otherwise its outcome is unknown.
//! - A fatal error of the idempotent producer replaces the client.

pub mod batch_publisher;
pub mod client;
mod client_health;
pub mod delivery;
pub mod delivery_tracker;
pub mod publisher;
