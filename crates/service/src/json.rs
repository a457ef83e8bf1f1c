//! Structs from JSON of other processes. Only a JSON object is accepted.
//!
//! A derived `Deserialize` alone also accepts an array: it assigns the items to the fields in order.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Deserializes a `T` from a JSON object only. Nested structs need it too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}

/// Parses a `T` from a JSON object.
///
/// # Errors
/// `bytes` is not JSON, not an object, or not a `T`.
pub fn object<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Object<T>>(bytes).map(|Object(value)| value)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::{Object, object};

    #[derive(Debug, Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        raw: &'a RawValue,
        list: Option<Vec<Object<Inner>>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        number: u8,
    }

    #[test]
    fn a_struct_is_parsed_from_an_object() {
        let outer: Outer<'_> = object(br#" {"raw": [1.50], "list": [{"number": 7}], "other": 1}"#).unwrap();
        assert_eq!((outer.raw.get(), outer.list.unwrap()[0].0.number), ("[1.50]", 7));
    }

    #[test]
    fn a_struct_is_not_parsed_from_an_array() {
        assert!(serde_json::from_slice::<Outer<'_>>(b"[1, null]").is_ok(), "serde alone accepts it");
        for wrong in
            [&b"[1, [[7]]]"[..], b"[1, null]", br#"{"raw": 1, "list": [[7]]}"#, b"null", b"1", b"\"\""]
        {
            let error = object::<Outer<'_>>(wrong).unwrap_err().to_string();
            assert!(error.contains("a JSON object"), "{error}");
        }
    }
}
