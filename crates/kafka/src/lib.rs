//! The only place for librdkafka's properties, client construction and unsafe code.
//!
//! - KAFKA_BROKER and KAFKA_PROPERTIES: [`bootstrap_servers`], [`properties`].
//! - Clients: their contexts, and the workaround for a client without brokers ([`context`]).
//! - Cluster: creation and readiness of topics ([`topics`]), members of a consumer group
//!   ([`group`]), descriptions of topics and offsets ([`cluster`]).
//! - Records: their [`headers`], also those of dead letters, and reads of a topic to its end
//!   ([`topic_reader`]).
//! - Requests with a deadline ([`requests`]).

pub mod bootstrap_servers;
pub mod cluster;
pub mod context;
pub mod group;
pub mod headers;
pub mod properties;
pub mod requests;
pub mod topic_reader;
pub mod topics;

pub use context::{ConnectionContext, QuietContext, log_line};
pub use properties::{
    Connection, KafkaProperties, check_consumer, check_producer, client_config, read_connection,
    require_offset,
};
pub use requests::BoxError;
