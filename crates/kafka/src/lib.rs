//! The only place for librdkafka's properties, client construction and unsafe code.
//!
//! - KAFKA_BROKER and KAFKA_PROPERTIES: [`bootstrap_servers`], [`properties`].
//! - Clients: their common configuration ([`client`]), their contexts ([`context`]), and the
//!   workaround for a client without brokers ([`rebootstrap`]).
//! - Cluster: creation and readiness of topics ([`topics`]), members of a consumer group ([`group`]).
//! - Records: their [`headers`], the headers of dead letters ([`dead_letter_headers`]), and reads
//!   of a topic to its end ([`topic_reader`]).
//! - Requests with a deadline ([`requests`]), and descriptions of topics and offsets ([`cluster`]).

pub mod bootstrap_servers;
pub mod client;
pub mod cluster;
pub mod context;
pub mod dead_letter_headers;
pub mod group;
pub mod headers;
pub mod properties;
pub mod rebootstrap;
pub mod requests;
pub mod topic_reader;
pub mod topics;

pub use client::{client_config, require_offset};
pub use context::{ConnectionContext, QuietContext, log_line};
pub use properties::{Connection, KafkaProperties, check_consumer, check_producer, read_connection};
pub use requests::BoxError;
