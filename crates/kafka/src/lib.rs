//! The one place for librdkafka: properties and client construction ([`client`], [`properties`]),
//! KAFKA_BROKER ([`bootstrap_servers`]), topic creation and readiness ([`topics`]), the members of a
//! consumer group ([`group`]), record headers ([`headers`]) and the workaround for clients that
//! lost every broker ([`rebootstrap`]).

pub mod bootstrap_servers;
pub mod client;
pub mod group;
pub mod headers;
pub mod properties;
pub mod rebootstrap;
pub mod topics;

pub use client::{
    ConnectionContext, QuietContext, check_consumer, check_producer, client_config, log_line, require_offset,
};
pub use properties::{Connection, KafkaProperties, read_connection};
