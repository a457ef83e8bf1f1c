//! What each Slipstream process does alike, written once: configuration from the [`environment`] ([`settings`](mod@settings)), the
//! command line ([`program`]), logs ([`logs`]), the stop signal ([`stop`]), the health and metrics listener
//! ([`health`]), error bodies ([`problem`]), what others answer ([`json`], [`retry_after`](mod@retry_after)), waiting between attempts ([`backoff`]), what standing still means
//! ([`standstill`]) and, for those that talk to a broker, the shared Kafka settings ([`kafka`]), the upkeep of topics
//! ([`topics`]), the members of a consumer group ([`group`]), and clients that have lost sight of every broker
//! ([`bootstrap`]).

pub mod backoff;
#[cfg(feature = "kafka")]
pub mod bootstrap;
pub mod brokers;
pub mod environment;
#[cfg(feature = "kafka")]
pub mod group;
#[cfg(feature = "kafka")]
pub mod headers;
pub mod health;
pub mod healthcheck;
pub mod json;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod lock;
pub mod logs;
pub mod open_files;
pub mod problem;
mod process;
pub mod program;
pub mod retry_after;
pub mod secret;
pub mod settings;
pub mod standstill;
pub mod stop;
#[cfg(feature = "kafka")]
pub mod topics;

pub use program::{Outcome, Program};
pub use retry_after::retry_after;
pub use secret::Secret;
pub use settings::{Check, ConfigFaults, Kind, Variable, parse};
