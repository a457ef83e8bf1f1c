//! The command line of `verify`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use crate::cli::duration;

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyOptions {
    /// What `load` wrote.
    #[arg(long, value_name = "FILE")]
    pub ledger: PathBuf,
    /// How long to wait until the consumer has finished what is on the topic: 30s, 5m, or until-done.
    #[arg(long, default_value = "30s", value_name = "DURATION|until-done")]
    pub wait: Wait,
    /// How many events of the run must be dead letters.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub expect_dead_letters: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How long to wait for the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// So long at most.
    For(Duration),
    /// However long it takes.
    UntilDone,
}

impl Wait {
    /// `period`, but no longer than the whole wait.
    pub fn at_most(self, period: Duration) -> Duration {
        match self {
            Self::For(limit) => period.min(limit),
            Self::UntilDone => period,
        }
    }
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "until-done" {
            return Ok(Self::UntilDone);
        }
        duration(text).map(Self::For).map_err(|why| format!("{why}; or until-done"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_duration_or_until_done() {
        assert_eq!("until-done".parse(), Ok(Wait::UntilDone));
        assert_eq!("90".parse(), Ok(Wait::For(Duration::from_secs(90))));
        assert_eq!("5m".parse(), Ok(Wait::For(Duration::from_secs(300))));
        for wrong in ["", "done", "until done", "0s"] {
            assert!(wrong.parse::<Wait>().unwrap_err().contains("until-done"), "{wrong}");
        }
    }
}
