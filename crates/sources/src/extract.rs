//! Makes the parts of an event of a record.

use std::borrow::Cow;
use std::fmt;

use events::{EventId, Millis};

use crate::config::{EventMapping, PayloadRule, Source};
use crate::filter::{Filter, Input};
use crate::kind::kind;
use crate::place::Context;

/// The parts of an event. The payload is not yet validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted<'t> {
    /// The id.
    pub id: EventId,
    /// Whether the id was generated, so that the same record gets another one next time.
    pub id_generated: bool,
    /// The timestamp.
    pub timestamp: Millis,
    /// Whether the record deletes the document of its id.
    pub deletes: bool,
    /// The text of the payload, for [`events::Payload::parse`]. It is empty if the record deletes.
    pub payload: Cow<'t, str>,
}

/// Why no event can be made of a record: at least one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFault {
    /// The reasons, each with the field of the event that has none: `id`, `timestamp`, `payload`,
    /// or with `delete` if its filter fails.
    pub reasons: Vec<(&'static str, String)>,
    /// Whether the record deletes.
    pub deletes: bool,
}

impl fmt::Display for RecordFault {
    /// Writes `id: the record has no id …; payload: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (field, reason)) in self.reasons.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{field}: {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RecordFault {}

impl Source {
    /// Makes the parts of an event of `record`, which is valid JSON. `now` is the time of a record
    /// that has none.
    ///
    /// # Errors
    /// A part cannot be made. All reasons are returned.
    pub fn extract<'t>(
        &self,
        record: &'t str,
        context: Context<'t>,
        now: Millis,
    ) -> Result<Extracted<'t>, RecordFault> {
        match &self.event {
            Some(mapping) => {
                let when = self.delete.as_ref().and_then(|delete| delete.when.as_ref());
                mapping.extract(record, when, context, now)
            }
            None => {
                let reason = format!("the source {} takes only events in an envelope", self.name);
                Err(RecordFault { reasons: vec![("payload", reason)], deletes: false })
            }
        }
    }
}

impl EventMapping {
    /// `when` is whether a record deletes.
    fn extract<'t>(
        &self,
        record: &'t str,
        when: Option<&Filter>,
        context: Context<'t>,
        now: Millis,
    ) -> Result<Extracted<'t>, RecordFault> {
        let record = record.trim_ascii();
        let input = Input::new(record, context.key);
        let id = self.id.apply(&input, context.answer);
        let timestamp = self.timestamp.apply(&input, context.answer, now);
        let deletes = when.map_or(Ok(false), |when| is_true(when, &input));
        let payload = match &deletes {
            Ok(true) => Ok(Cow::Borrowed("")),
            Ok(false) => self.payload(record, &input).map_err(|reason| ("payload", reason)),
            Err(reason) => Err(("delete", reason.clone())),
        };
        match (id, timestamp, payload) {
            (Ok(id), Ok(timestamp), Ok(payload)) => {
                let deletes = deletes.unwrap_or_default();
                Ok(Extracted { id: id.id, id_generated: id.generated, timestamp, deletes, payload })
            }
            (id, timestamp, payload) => {
                let id = id.err().map(|reason| ("id", reason));
                let timestamp = timestamp.err().map(|reason| ("timestamp", reason));
                let reasons = [id, timestamp, payload.err()].into_iter().flatten().collect();
                Err(RecordFault { reasons, deletes: deletes.unwrap_or_default() })
            }
        }
    }

    fn payload<'t>(&self, record: &'t str, input: &Input<'t>) -> Result<Cow<'t, str>, String> {
        match &self.payload {
            PayloadRule::Record => Ok(Cow::Borrowed(record)),
            PayloadRule::Pointer(pointer) => {
                let found = pointer.find(record).map(Cow::Borrowed);
                found.ok_or_else(|| format!("{} is absent", pointer.as_str()))
            }
            PayloadRule::Filter(filter) => filter.apply(input).map(Cow::Owned),
        }
    }
}

/// Whether a condition holds for a record. Only `true`, `false` and `null` are answers, so that a
/// filter which returns the wrong value deletes nothing.
fn is_true(when: &Filter, input: &Input<'_>) -> Result<bool, String> {
    match when.apply(input)?.as_str() {
        "true" => Ok(true),
        "false" | "null" => Ok(false),
        other => {
            Err(format!("the jq filter should return true, false or null, and returned {}", kind(other)))
        }
    }
}
