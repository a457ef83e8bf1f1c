//! The example file of the repository.

use std::path::Path;

use events::{Millis, Payload};
use serde_json::json;
use sources::{Context, NextPage, Records, Secrets, Sources, Upstream};

fn load() -> Sources {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/sources.yaml");
    Sources::load(&path, &[], Secrets::Read).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn the_example_has_five_sources_with_collections_of_their_own() {
    let sources = load();
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["adsbdb", "quakes", "bikes", "trades", "orders"]);
    for source in sources.iter() {
        assert_eq!(source.store.collection, source.name.as_str());
    }
    assert_eq!(sources.get("adsbdb").unwrap().pull.as_ref().unwrap().upstream, Upstream::Adsbdb);
    let Upstream::Http(trades) = &sources.get("trades").unwrap().pull.as_ref().unwrap().upstream else {
        panic!()
    };
    let next = &trades.paging.as_ref().unwrap().next;
    assert_eq!(*next, NextPage::CursorHeader { header: "cb-after".into(), param: "after".into() });
    assert!(matches!(&trades.records, Records::List(pointer) if pointer.as_str().is_empty()));
    assert_eq!(sources.get("orders").unwrap().topic.as_deref(), Some("orders.raw"));
}

#[test]
fn an_aircraft_becomes_the_event_that_the_contract_states() {
    let sources = load();
    let adsbdb = sources.get("adsbdb").unwrap();
    let now = Millis::new(1_730_000_000_000).unwrap();
    let extract = |record| adsbdb.extract(record, Context::default(), now).unwrap();
    let record = r#"{"mode_s":"A1",  "registration":"N1", "n": 1.50}"#;
    let extracted = extract(record);
    assert_eq!((extracted.id.as_str(), extracted.payload.as_ref(), extracted.timestamp), ("A1", record, now));
    assert_eq!(extract(r#"{"mode_s":"","registration":"N1"}"#).id.as_str(), "N1");
    assert!(extract("{}").id_generated);
    // The same as for the built-in source: only a text is an id.
    assert_eq!(extract(r#"{"mode_s":7,"registration":"N1"}"#).id.as_str(), "N1");
    assert_eq!(extract(r#"{"mode_s":{},"registration":"N1"}"#).id.as_str(), "N1");
}

#[test]
fn an_order_is_checked_by_its_schema() {
    let sources = load();
    let orders = sources.get("orders").unwrap();
    let order =
        json!({"no": "DE-1042", "changed_at": "2026-11-28T20:15:03Z", "lines": [{"sku": "a", "count": 2}]});
    let schema = orders.schema.as_ref().unwrap();
    assert!(schema.faults(&order.to_string()).is_empty());
    let mut wrong = order.clone();
    wrong["lines"][0]["count"] = json!(0);
    wrong["state"] = json!("lost");
    assert_eq!(schema.faults(&wrong.to_string()).len(), 2);
    let text = order.to_string();
    let extracted = orders.extract(&text, Context::default(), Millis::new(0).unwrap()).unwrap();
    assert_eq!(extracted.id.as_str(), "DE-1042");
    assert_eq!(extracted.timestamp.iso(), "2026-11-28T20:15:03.000Z");
    assert!(Payload::parse(&extracted.payload).is_ok());
}
