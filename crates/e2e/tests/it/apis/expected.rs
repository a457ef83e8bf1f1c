//! The documents that the answers of the APIs become, made by hand for each API.

use std::collections::BTreeMap;

use bson::{Bson, Document, doc};
use serde_json::Value;

/// An event that must be a document.
#[derive(Debug, PartialEq)]
pub struct Event {
    pub id: String,
    /// In milliseconds.
    pub timestamp: i64,
    /// The fields of the payload, and `source_field` if the source has it.
    pub fields: Document,
}

/// Events by id.
pub type Expected = BTreeMap<String, Event>;

/// A JSON value as BSON: an integer has 32 bits if they suffice, else 64, and a decimal is a double.
fn to_bson(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(to_bson).collect()),
        Value::Object(_) => Bson::Document(document(value)),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => i32::try_from(integer).map_or(Bson::Int64(integer), Bson::Int32),
            None => Bson::Double(number.as_f64().unwrap()),
        },
    }
}

fn document(value: &Value) -> Document {
    value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), to_bson(value))).collect()
}

fn by_id(events: impl Iterator<Item = Event>) -> Expected {
    events.map(|event| (event.id.clone(), event)).collect()
}

fn items<'a>(answers: &'a [Value], pointer: &str) -> impl Iterator<Item = &'a Value> {
    answers.iter().flat_map(move |answer| answer.pointer(pointer).unwrap().as_array().unwrap())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Milliseconds of an RFC 3339 time.
fn millis(time: &str) -> i64 {
    bson::DateTime::parse_rfc3339_str(time).unwrap().timestamp_millis()
}

/// Rows are arrays. The time is that of the row in seconds, else that of the answer.
pub fn flights(answers: &[Value]) -> Expected {
    by_id(items(answers, "/states").map(|row| Event {
        id: text(&row[0]),
        timestamp: row[4].as_i64().or(answers[0]["time"].as_i64()).unwrap() * 1_000,
        fields: doc! {
            "icao24": to_bson(&row[0]),
            "callsign": row[1].as_str().unwrap().trim_end(),
            "lon": to_bson(&row[5]),
            "lat": to_bson(&row[6]),
            "row": to_bson(row),
        },
    }))
}

/// Times are in milliseconds, and the document has the name of its source.
pub fn quakes(answers: &[Value]) -> Expected {
    by_id(items(answers, "/features").map(|feature| {
        let mut fields = document(&feature["properties"]);
        fields.insert("where", to_bson(&feature["geometry"]["coordinates"]));
        fields.insert("source", "quakes");
        assert!(matches!(fields.get("updated"), Some(Bson::Int64(_))), "{fields}");
        Event {
            id: text(&feature["id"]),
            timestamp: feature["properties"]["updated"].as_i64().unwrap(),
            fields,
        }
    }))
}

/// One object. Its id is joined, and its time has neither seconds nor zone.
pub fn weather(answers: &[Value]) -> Expected {
    let answer = &answers[0];
    let time = text(&answer["current"]["time"]);
    assert_eq!(time.len(), "2026-11-28T20:15".len());
    by_id(std::iter::once(Event {
        id: format!("52.52:13.42:{time}"),
        timestamp: millis(&format!("{time}:00Z")),
        fields: document(answer),
    }))
}

/// Ids are digits in a string.
pub fn activity(answers: &[Value]) -> Expected {
    by_id(items(answers, "").map(|event| Event {
        id: text(&event["id"]),
        timestamp: millis(event["created_at"].as_str().unwrap()),
        fields: document(event),
    }))
}

/// Ids are numbers, prices are strings, and times have microseconds.
pub fn trades(answers: &[Value]) -> Expected {
    by_id(items(answers, "").map(|trade| {
        assert!(trade["price"].is_string() && trade["size"].is_string(), "{trade}");
        let millisecond = trade["time"].as_str().unwrap().replace("860123Z", "860Z");
        Event {
            id: trade["trade_id"].as_i64().unwrap().to_string(),
            timestamp: millis(&millisecond),
            fields: document(trade),
        }
    }))
}

/// Times have an offset and a Z.
pub fn bikes(answers: &[Value]) -> Expected {
    by_id(items(answers, "/network/stations").map(|station| {
        let time = station["timestamp"].as_str().unwrap().strip_suffix(".505032+00:00Z").unwrap();
        Event {
            id: text(&station["id"]),
            timestamp: millis(&format!("{time}.505Z")),
            fields: document(station),
        }
    }))
}

/// One object without an id. Its numbers are strings.
pub fn iss(answers: &[Value]) -> Expected {
    let answer = &answers[0];
    assert!(answer["iss_position"]["latitude"].is_string(), "{answer}");
    let seconds = answer["timestamp"].as_i64().unwrap();
    by_id(std::iter::once(Event {
        id: seconds.to_string(),
        timestamp: seconds * 1_000,
        fields: document(answer),
    }))
}

/// A map, whose keys are the ids.
pub fn prices(answers: &[Value]) -> Expected {
    by_id(answers[0].as_object().unwrap().iter().map(|(coin, price)| {
        let mut fields = document(price);
        fields.insert("coin", coin);
        Event { id: coin.clone(), timestamp: price["last_updated_at"].as_i64().unwrap() * 1_000, fields }
    }))
}
