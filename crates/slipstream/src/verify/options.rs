//! The command line of `verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::duration;

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyOptions {
    /// What `load` wrote.
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
    /// How long to wait until the consumer has finished what is on the topic.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub wait: Duration,
    /// How many events of the run must be dead letters.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub expect_dead_letters: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}
