//! Lines that tell a waiting user what is being fetched and prepared.

use std::fmt;
use std::sync::Arc;

/// Takes one line at a time; a cheap clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl Progress {
    /// Hands each line to `show`.
    pub fn new(show: impl Fn(&str) + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(show))
    }

    /// For tests: the lines are only traced.
    pub fn silent() -> Progress {
        Progress::new(|line| tracing::debug!(line, "progress"))
    }

    pub(crate) fn say(&self, line: &str) {
        (self.0)(line);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Progress")
    }
}
