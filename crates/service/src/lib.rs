//! Parts that every process shares: configuration from the [`environment`]
//! ([`settings`](mod@settings)), the command line ([`program`]), logs ([`logs`]), the stop signal
//! ([`stop`]), the listener for health and metrics ([`health`]), problem responses ([`problem`]),
//! response parsing ([`json`], [`retry_after`](mod@retry_after)), [`backoff`] and the detection of
//! a suspended process ([`standstill`]).

pub mod backoff;
pub mod environment;
pub mod health;
pub mod healthcheck;
pub mod json;
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

pub use program::{Outcome, Program};
pub use retry_after::retry_after;
pub use secret::Secret;
pub use settings::{Check, ConfigFaults, Kind, Variable, parse};
