//! Makes the parts of an event of a record.

use std::borrow::Cow;
use std::fmt;

use events::{EventId, Millis};

use crate::config::{EventMapping, PayloadRule, Source};
use crate::filter::Input;
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
    /// The text of the payload, for [`events::Payload::parse`].
    pub payload: Cow<'t, str>,
}

/// Why no event can be made of a record: at least one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFault {
    /// The reasons, each with the field of the event that has none: `id`, `timestamp`, `payload`.
    pub reasons: Vec<(&'static str, String)>,
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
            Some(mapping) => mapping.extract(record, context, now),
            None => {
                let reason = format!("the source {} takes only events in an envelope", self.name);
                Err(RecordFault { reasons: vec![("payload", reason)] })
            }
        }
    }
}

impl EventMapping {
    fn extract<'t>(
        &self,
        record: &'t str,
        context: Context<'t>,
        now: Millis,
    ) -> Result<Extracted<'t>, RecordFault> {
        let record = record.trim_ascii();
        let input = Input::new(record, context.key);
        let id = self.id.apply(&input, context.answer);
        let timestamp = self.timestamp.apply(&input, context.answer, now);
        let payload = match &self.payload {
            PayloadRule::Record => Ok(Cow::Borrowed(record)),
            PayloadRule::Pointer(pointer) => {
                let found = pointer.find(record).map(Cow::Borrowed);
                found.ok_or_else(|| format!("{} is absent", pointer.as_str()))
            }
            PayloadRule::Filter(filter) => filter.apply(&input).map(Cow::Owned),
        };
        match (id, timestamp, payload) {
            (Ok(id), Ok(timestamp), Ok(payload)) => {
                Ok(Extracted { id: id.id, id_generated: id.generated, timestamp, payload })
            }
            (id, timestamp, payload) => {
                let reasons = [("id", id.err()), ("timestamp", timestamp.err()), ("payload", payload.err())];
                let reasons = reasons.into_iter().filter_map(|(field, reason)| Some((field, reason?)));
                Err(RecordFault { reasons: reasons.collect() })
            }
        }
    }
}
