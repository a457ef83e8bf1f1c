//! What a probe found.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it must be.
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// It does not work, or loses something.
    Fail,
}

/// One line of `slipstream check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub cause: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it must be.
    pub fn ok(subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.into(), cause: cause.into(), remedy: None }
    }

    /// Somebody should know.
    pub fn warn(subject: impl Into<String>, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, remedy: Some(remedy.into()), ..Self::ok(subject, cause) }
    }

    /// It does not work.
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
