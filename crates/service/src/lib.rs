//! Parts that every process shares.
//!
//! - Start: configuration from the environment ([`config`]) with its value parsers ([`parse`]), the
//!   command line and the logs ([`cli`]).
//! - Stop: the stop signal and the supervision of long-lived tasks ([`tasks`]).
//! - Observation: the listener for health and metrics, and its probe ([`health`]).
//! - HTTP: error bodies, and the parsing of responses ([`http`]).
//! - Time: delays between attempts, and the detection of a suspended process ([`time`]).
//! - Text: [`plural`] forms.

pub mod cli;
pub mod config;
pub mod health;
pub mod http;
pub mod parse;
pub mod plural;
pub mod tasks;
pub mod time;

pub use cli::{Program, RunResult};
pub use config::{ConfigErrors, ConfigReader, Kind, Secret, Variable};
pub use http::retry_after;
