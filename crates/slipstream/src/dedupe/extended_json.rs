//! Canonical Extended JSON v2, which keeps the type of every number, in the order of the document's fields.

use bson::{Bson, Document};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A document as one line.
///
/// # Errors
/// None that a document of the server can bring about.
pub fn canonical(document: &Document) -> serde_json::Result<String> {
    serde_json::to_string(&Fields(document))
}

struct Fields<'a>(&'a Document);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, Value(value))))
    }
}

struct Value<'a>(&'a Bson);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Bson::Document(document) => Fields(document).serialize(serializer),
            Bson::Array(values) => serializer.collect_seq(values.iter().map(Value)),
            Bson::Int32(number) => typed(serializer, "$numberInt", &number.to_string()),
            Bson::Int64(number) => typed(serializer, "$numberLong", &number.to_string()),
            Bson::Double(number) => typed(serializer, "$numberDouble", &double(*number)),
            // bson itself writes the types that JSON has no form of as Extended JSON.
            value => value.serialize(serializer),
        }
    }
}

fn typed<S: Serializer>(serializer: S, name: &str, text: &str) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(1))?;
    map.serialize_entry(name, text)?;
    map.end()
}

fn double(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn every_number_keeps_its_type_and_every_field_its_place() {
        let text = canonical(&doc! {
            "z": 1, "a": 1_i64, "r": [1.0, 1e300, -0.0, f64::INFINITY, f64::NAN], "t": true, "n": null, "d": { "$x": "y" },
            "when": bson::DateTime::from_millis(5),
        });
        let right = concat!(
            r#"{"z":{"$numberInt":"1"},"a":{"$numberLong":"1"},"r":[{"$numberDouble":"1.0"},{"$numberDouble":"1e300"},"#,
            r#"{"$numberDouble":"-0.0"},{"$numberDouble":"Infinity"},{"$numberDouble":"NaN"}],"t":true,"n":null,"#,
            r#""d":{"$x":"y"},"when":{"$date":{"$numberLong":"5"}}}"#,
        );
        assert_eq!(text.unwrap(), right);
    }
}
