//! Progress lines for the user during downloads and preparation.

use std::fmt;
use std::sync::Arc;

/// Receives progress lines. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl Progress {
    /// Calls `show` with each line.
    pub fn new(show: impl Fn(&str) + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(show))
    }

    /// For tests: writes the lines to the trace log only.
    pub fn silent() -> Progress {
        Progress::new(|line| tracing::debug!(line, "progress"))
    }

    pub(crate) fn report(&self, line: &str) {
        (self.0)(line);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Progress")
    }
}
