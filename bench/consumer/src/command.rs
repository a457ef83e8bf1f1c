//! The commands of the bare client, whole before the clock starts.

use bson::oid::ObjectId;
use bson::raw::cstr;
use bson::{RawArrayBuf, RawDocumentBuf, rawdoc};
use events::StorableEvent;

use crate::Failure;
use crate::cli::Method;
use crate::workload::SOURCE;

/// Writes all these events, with the write concern that the consumer uses.
pub fn write(method: Method, events: &[StorableEvent]) -> Result<RawDocumentBuf, Failure> {
    let mut statements = RawArrayBuf::new();
    for event in events {
        match method {
            Method::Insert => statements.push(with_id(event)?),
            Method::Upsert => statements.push(guarded_upsert(event)),
        }
    }
    let mut command = match method {
        Method::Insert => rawdoc! { "insert": SOURCE },
        Method::Upsert => rawdoc! { "update": SOURCE },
    };
    command.append(cstr!("ordered"), false);
    command.append(cstr!("writeConcern"), rawdoc! { "w": "majority" });
    match method {
        Method::Insert => command.append(cstr!("documents"), statements),
        Method::Upsert => command.append(cstr!("updates"), statements),
    }
    Ok(command)
}

fn with_id(event: &StorableEvent) -> Result<RawDocumentBuf, Failure> {
    let mut document = rawdoc! { "_id": ObjectId::new() };
    for field in &event.document {
        let (name, value) = field?;
        document.append(name, value);
    }
    Ok(document)
}

/// The consumer's guard: a stored document stays if its `(event_timestamp, ingested_at)` is above the event's.
fn guarded_upsert(event: &StorableEvent) -> RawDocumentBuf {
    let (timestamp, ingested_at) = (event.timestamp.get(), event.ingested_at.get());
    let guard = rawdoc! { "$or": [
        { "$lt": ["$event_timestamp", timestamp] },
        { "$and": [
            { "$eq": ["$event_timestamp", timestamp] },
            { "$lte": ["$ingested_at", ingested_at] },
        ] },
    ] };
    let merged = rawdoc! { "$mergeObjects": [{ "_id": "$_id" }, { "$literal": event.document.clone() }] };
    rawdoc! {
        "q": { "event_id": event.id.as_str() },
        "u": [{ "$replaceWith": { "$cond": [guard, merged, "$$ROOT"] } }],
        "upsert": true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{Form, stored, value};
    use crate::workload::Workload;
    use bson::Document;
    use events::RecordView;

    #[test]
    fn a_command_has_a_statement_for_each_event() {
        let aircraft = crate::sample::aircraft().unwrap();
        let events = Workload::New.events(&aircraft, 3).unwrap();
        let decode = |event| {
            let value = value(event, Form::Envelope).unwrap();
            stored(&RecordView { key: None, value: &value, timestamp: None }).unwrap()
        };
        let events: Vec<StorableEvent> = events.iter().map(decode).collect();
        let read = |method| Document::try_from(write(method, &events).unwrap().as_ref()).unwrap();
        let insert = read(Method::Insert);
        let document = insert.get_array("documents").unwrap()[2].as_document().unwrap();
        assert_eq!(document.get_str("event_id").unwrap(), events[2].id.as_str());
        assert_eq!((document.keys().next().map(String::as_str), document.len()), (Some("_id"), 18));
        let upsert = read(Method::Upsert);
        let statement = upsert.get_array("updates").unwrap()[2].as_document().unwrap();
        assert_eq!(statement.get_document("q").unwrap().get_str("event_id").unwrap(), events[2].id.as_str());
    }
}
