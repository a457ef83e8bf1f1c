//! Deletes and expiry: what the fields mean, which files are refused, and which records delete.

use std::time::Duration;

use events::Millis;
use sources::{Context, Sources};

use crate::{fault, parse, source};

const DAY: Duration = Duration::from_hours(24);

fn valid(fields: &str) -> Sources {
    source(fields).unwrap_or_else(|faults| panic!("{faults}"))
}

/// A source of orders. A cancelled one is deleted.
fn orders() -> Sources {
    valid(
        "push: {}\nevent: {id: /no, timestamp: /at, payload: /order}\ndelete: {when: '.state == \"cancelled\"'}",
    )
}

#[test]
fn deletes_and_expiry_have_defaults_and_imply_the_key() {
    let sources = valid("push: {}\nevent: {id: /i}");
    let plain = sources.get("s").unwrap();
    assert!(plain.delete.is_none() && plain.store.ttl.is_none() && plain.store.keys.is_none());
    for delete in ["delete:", "delete: {}"] {
        let sources = valid(&format!("push: {{}}\nevent: {{id: /i}}\n{delete}"));
        let source = sources.get("s").unwrap();
        let delete = source.delete.as_ref().unwrap();
        assert_eq!((delete.when.is_none(), delete.tombstones), (true, 90 * DAY));
        assert_eq!(source.store.keys.as_deref(), Some(&["event_id".to_owned()][..]));
    }
    let sources = valid(
        "push: {}\nevent: {id: /i}\ndelete: {when: .gone, tombstones: 7d}\nstore: {keys: [event_id], ttl: 30d}",
    );
    let source = sources.get("s").unwrap();
    let delete = source.delete.as_ref().unwrap();
    assert_eq!(delete.when.as_ref().unwrap().as_str(), ".gone");
    assert_eq!((delete.tombstones, source.store.ttl), (7 * DAY, Some(30 * DAY)));
    assert!(valid("envelope: true\ndelete: {}").get("s").unwrap().delete.is_some());
}

const FAULTS: &[(&str, &str)] = &[
    ("push: {}\nevent: {id: /i}\ndelete: [a]", "sources.s.delete: should be a map of fields and is a list"),
    (
        "push: {}\nevent: {id: /i}\ndelete: {if: .a}",
        "sources.s.delete.if: unknown field; known fields: when, tombstones",
    ),
    ("push: {}\nevent: {id: /i}\ndelete: {when: env}", "sources.s.delete.when: is not an allowed jq filter"),
    (
        "push: {}\nevent: {id: /i}\ndelete: {tombstones: 5m}",
        "sources.s.delete.tombstones: should be a duration from 1h to 3650d",
    ),
    (
        "push: {}\nevent: {id: /i}\ndelete: {}\nstore: {keys: [email]}",
        "sources.s.store.keys: a delete knows only the id, so a source with `delete` has `keys: [event_id]`",
    ),
    (
        "push: {}\nevent: {id: /i}\ndelete: {}\nstore: {keys: [event_id, email]}",
        "sources.s.store.keys: a delete knows only the id",
    ),
    (
        "envelope: true\ndelete: {when: .a}",
        "sources.s.delete.when: only records that `event` maps can be tested",
    ),
    ("pull: {kind: adsbdb}\ndelete: {when: .a}", "sources.s.delete.when: only records that `event` maps"),
    ("envelope: true\nstore: {ttl: 0s}", "sources.s.store.ttl: should be a duration from 1s to 36500d"),
    (
        "envelope: true\nstore: {ttl: 1d, source_field: expires_at}",
        "sources.s.store.ttl: `ttl` writes and indexes the field expires_at, so `source_field` should not have it",
    ),
    (
        "envelope: true\nstore: {ttl: 1d, keys: [expires_at]}",
        "sources.s.store.ttl: `ttl` writes and indexes the field expires_at, so `keys` should not have it",
    ),
    (
        "envelope: true\nstore: {ttl: 1d, indexes: [{keys: {expires_at: 1}}]}",
        "sources.s.store.ttl: `ttl` writes and indexes the field expires_at, so `indexes` should not have it",
    ),
];

#[test]
fn what_deletes_and_expiry_cannot_do_is_refused_with_the_reason() {
    for (fields, expected) in FAULTS {
        let found = fault(fields);
        assert!(found.starts_with(expected), "{fields}\n{found}");
    }
    assert!(source("envelope: true\nstore: {source_field: expires_at}").is_ok(), "without ttl it is free");
}

#[test]
fn the_collection_of_deletes_belongs_to_its_source() {
    for text in [
        "sources:\n  a: {envelope: true, delete: {}}\n  a.deletes: {envelope: true}\n",
        "sources:\n  b: {envelope: true, store: {collection: a.deletes}}\n  a: {envelope: true, delete: {}}\n",
    ] {
        let faults = parse(text).unwrap_err().to_string();
        assert!(faults.contains("the collection is that of the source"), "{faults}");
    }
    assert!(parse("sources:\n  a: {envelope: true}\n  a.deletes: {envelope: true}\n").is_ok());
}

#[test]
fn a_record_deletes_if_the_filter_returns_true() {
    let sources = orders();
    let now = Millis::new(9).unwrap();
    let extract = |record| sources.get("s").unwrap().extract(record, Context::default(), now);
    let record = r#"{"no":"A","at":5000000000000,"state":"cancelled"}"#;
    let delete = extract(record).unwrap();
    assert_eq!((delete.id.as_str(), delete.timestamp.get()), ("A", 5_000_000_000_000));
    assert!(delete.deletes && delete.payload.is_empty(), "the record needs no payload");
    let order = extract(r#"{"no":"A","at":1,"order":{"x":1}}"#).unwrap();
    assert!(!order.deletes && order.payload == r#"{"x":1}"#);
    let faulty = extract(r#"{"at":true,"state":"cancelled"}"#).unwrap_err();
    let fields: Vec<&str> = faulty.reasons.iter().map(|(field, _)| *field).collect();
    assert_eq!(fields, ["id", "timestamp"], "{faulty}");
}

#[test]
fn a_filter_without_a_truth_value_deletes_nothing_and_is_a_fault() {
    let sources = valid("push: {}\nevent: {id: /id}\ndelete: {when: .gone}");
    let extract =
        |record| sources.get("s").unwrap().extract(record, Context::default(), Millis::new(1).unwrap());
    for (record, deletes) in [
        (r#"{"id":"a","gone":true}"#, true),
        (r#"{"id":"a","gone":false}"#, false),
        (r#"{"id":"a","gone":null}"#, false),
        (r#"{"id":"a"}"#, false),
    ] {
        assert_eq!(extract(record).unwrap().deletes, deletes, "{record}");
    }
    for (record, kind) in [(r#"{"id":"a","gone":0}"#, "number"), (r#"{"id":"a","gone":"true"}"#, "string")] {
        let fault = extract(record).unwrap_err().to_string();
        assert_eq!(
            fault,
            format!("delete: the jq filter should return true, false or null, and returned {kind}")
        );
    }
    let fault = extract("[1]").unwrap_err().to_string();
    assert!(fault.contains("id: ") && fault.contains("delete: "), "{fault}");
}
