//! Makes events of records, as the sources file describes it.

use std::borrow::Cow;

use events::{EventId, Loc, Millis, NewEvent, Payload, Violation};
use sources::{Context, PayloadRule, SchemaFault, Source};

use crate::http::headers::key_violation;

/// Why no event can be made of a record.
#[derive(Debug)]
pub struct Fault {
    /// `SchemaFault` or `RecordFault`: the class of its dead letter.
    pub class: &'static str,
    /// At least one. The locations begin with `body`, which is the record.
    pub violations: Vec<Violation>,
}

/// An event, and whether its id was generated.
#[derive(Debug)]
pub struct Extraction {
    /// The event. Its field `id` is empty.
    pub event: NewEvent,
    /// The id of the event.
    pub id: EventId,
    /// Whether the id was generated, so that the same record gets another one next time.
    pub id_generated: bool,
}

impl Extraction {
    /// Uses the id of the header Idempotency-Key, which replaces a generated id.
    ///
    /// # Errors
    /// The record has another id.
    pub(crate) fn with_key(mut self, key: Option<EventId>) -> Result<Self, Violation> {
        match key {
            Some(key) if self.id_generated => self.id = key,
            Some(key) if key != self.id => {
                return Err(key_violation("Idempotency-Key should be the record's id"));
            }
            _ => {}
        }
        Ok(self)
    }
}

/// Makes an event of `record`, which is valid JSON. `now` is the time of a record that has none.
///
/// # Errors
/// All violations of the schema, of the mapping and of the payload.
pub fn extract(
    source: &Source,
    record: &str,
    context: Context<'_>,
    now: Millis,
) -> Result<Extraction, Fault> {
    let extracted = source.extract(record, context, now);
    // A record that deletes may lack what the schema requires.
    let deletes = match &extracted {
        Ok(extracted) => extracted.deletes,
        Err(fault) => fault.deletes,
    };
    let schema = source.schema.as_ref().filter(|_| !deletes);
    let schema = schema.map(|schema| schema.faults(record)).unwrap_or_default();
    let class = if schema.is_empty() { "RecordFault" } else { "SchemaFault" };
    let mut violations: Vec<Violation> = schema.into_iter().map(schema_violation).collect();
    let extracted = match extracted {
        Ok(extracted) => extracted,
        Err(fault) => {
            violations.extend(fault.reasons.into_iter().map(|(field, reason)| Violation {
                loc: vec![Loc::Name("body".into())],
                msg: format!("{field}: {reason}"),
                kind: "record_fault",
            }));
            return Err(Fault { class, violations });
        }
    };
    let payload = match &extracted.payload {
        _ if extracted.deletes => Ok(Payload::of_delete()),
        // A part of the record, which is valid JSON.
        Cow::Borrowed(text) => Payload::of_json(text),
        Cow::Owned(text) => Payload::parse(text),
    };
    match payload {
        Ok(payload) if violations.is_empty() => Ok(Extraction {
            event: NewEvent {
                id: None,
                timestamp: Some(extracted.timestamp),
                source: source.name.clone(),
                payload,
            },
            id: extracted.id,
            id_generated: extracted.id_generated,
        }),
        payload => {
            let faults = payload.err().unwrap_or_default();
            violations.extend(faults.into_iter().map(|fault| locate(source, fault)));
            Err(Fault { class, violations })
        }
    }
}

/// The violations of the schema of a source by the payload of an envelope.
pub fn payload_violations(source: &Source, payload: &Payload) -> Vec<Violation> {
    let faults = source.schema.as_ref().map(|schema| schema.faults(payload.as_str()));
    let located = faults.into_iter().flatten().map(|fault| {
        let mut violation = schema_violation(fault);
        violation.loc.insert(1, Loc::Name("payload".into()));
        violation
    });
    located.collect()
}

/// The violation of a schema's rule, in the record.
fn schema_violation(fault: SchemaFault) -> Violation {
    let mut loc = vec![Loc::Name("body".into())];
    loc.extend(fault.path);
    Violation { loc, msg: fault.message, kind: "schema" }
}

/// Changes the location of a payload's violation to its place in the record. Output of a filter has
/// no place there.
fn locate(source: &Source, mut fault: Violation) -> Violation {
    let rest = fault.loc.split_off(fault.loc.len().min(2));
    let rule = source.event.as_ref().map(|event| &event.payload);
    fault.loc = match rule {
        Some(PayloadRule::Filter(_)) => vec![Loc::Name("payload".into())],
        Some(PayloadRule::Pointer(pointer)) => {
            let steps = pointer.as_str().split('/').skip(1).map(|token| {
                let name = token.replace("~1", "/").replace("~0", "~");
                name.parse().map_or(Loc::Name(name), Loc::Index)
            });
            std::iter::once(Loc::Name("body".into())).chain(steps).collect()
        }
        Some(PayloadRule::Record) | None => vec![Loc::Name("body".into())],
    };
    fault.loc.extend(rest);
    fault
}
