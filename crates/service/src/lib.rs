//! Parts that every process shares.
//!
//! - Start: configuration from the [`environment`] ([`config`]) with its value parsers ([`parse`]),
//!   the command line ([`cli`]), logs ([`logging`]).
//! - Stop: the stop signal ([`signals`]) and the supervision of long-lived tasks ([`tasks`]).
//! - Observation: the listener for health and metrics ([`health`]), its probe ([`healthcheck`]),
//!   and the process metrics ([`process`]).
//! - HTTP: error bodies ([`problem`]) and the parsing of responses ([`json`],
//!   [`retry_after`](mod@retry_after)).
//! - Text: [`plural`] forms.
//! - Time: [`backoff`] between attempts, and the detection of a suspended process ([`suspension`]).

pub mod backoff;
pub mod cli;
pub mod config;
pub mod environment;
pub mod health;
pub mod healthcheck;
pub mod json;
pub mod lock;
pub mod logging;
pub mod parse;
pub mod plural;
pub mod problem;
pub mod process;
pub mod retry_after;
pub mod signals;
pub mod suspension;
pub mod tasks;

pub use cli::{Program, RunResult};
pub use config::{ConfigErrors, ConfigReader, Kind, Secret, Variable};
pub use retry_after::retry_after;
