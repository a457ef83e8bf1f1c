//! Delivery of records to Kafka.

pub mod batch_publisher;
mod client;
mod client_health;
pub mod delivery;
mod delivery_error;
pub mod delivery_tracker;
pub mod properties;
pub mod publisher;
mod readiness;
mod supervisor;
