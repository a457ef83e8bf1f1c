//! The findings of probes.

use std::fmt;

use serde::Serialize;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No fault.
    Ok,
    /// The deployment works, but an operator should look at it.
    Warn,
    /// The deployment does not work, or loses data.
    Fail,
}

/// A finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Severity.
    pub level: Level,
    /// What was checked.
    pub subject: String,
    /// The result.
    pub cause: String,
    /// What an operator can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a fault.
    pub fn ok(subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.into(), cause: cause.into(), remedy: None }
    }

    /// A warning.
    pub fn warn(subject: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, remedy: Some(remedy.into()), ..Self::ok(subject, cause) }
    }

    /// A failure.
    pub fn fail(subject: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(subject, cause, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:<5} {}: {}", self.subject, self.cause)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "\n      -> {remedy}"))
    }
}
